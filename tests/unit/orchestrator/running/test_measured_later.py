"""A worker that is given a trained network measures what is missing, and trains nothing."""

from types import SimpleNamespace

import numpy as np

from orchestrator.results.store import ResultStore
from orchestrator.running.worker import perform_cell
from search_spaces.specs import AttackSpec
from tasks.prepared.subsets import TrialData
from tests.unit.orchestrator.results.examples import trial_record, trial_spec


def test_another_strength_is_measured_on_the_kept_network(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (60, 1, 16, 16), np.uint8), np.arange(60) % 2
    data = TrialData(images[:40], labels[:40], images[40:], labels[40:], 2, "f")
    options = {"device": "cpu", "num_threads": 1, "gpu_fraction": None}
    spec = trial_spec().model_copy(update={"attacks": AttackSpec(epsilons=(2.0,))})
    # The store stands in for the actor before it.
    worker = SimpleNamespace(keeper=ResultStore(str(tmp_path)), pretrained={}, epochs=None)
    worker.cell = {"keep_weights": True, "micro_batch": None, "known": "", "spec": spec.model_dump_json()}
    first, trained = perform_cell(worker, data, dict(options))
    assert trained
    assert first.weights is not None

    def no_training(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr("tasks.trials.trial.run_trial", no_training)
    more = spec.model_copy(update={"attacks": AttackSpec(epsilons=(2.0, 16.0))})
    known = trial_record(first, spec=spec).text()
    worker.cell = {**worker.cell, "known": known, "spec": more.model_dump_json()}
    found, trained = perform_cell(worker, data, dict(options))
    assert not trained
    assert found.scores == first.scores
    assert {attack.epsilon for attack in found.attacks} >= {16.0}
