"""A worker that is given a trained network measures what is missing, and trains nothing."""

import numpy as np

from orchestrator.results.store import WeightStore
from orchestrator.running.worker import TrialTrainable
from search_spaces.specs import AttackSpec
from tasks.prepared.subsets import TrialData
from tests.unit.orchestrator.results.examples import trial_record, trial_spec


def test_another_strength_is_measured_on_the_kept_network(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (60, 1, 16, 16), np.uint8), np.arange(60) % 2
    data = TrialData(images[:40], labels[:40], images[40:], labels[40:], 2, "f")
    options = {"device": "cpu", "num_threads": 1, "gpu_fraction": None}
    spec = trial_spec().model_copy(update={"attacks": AttackSpec(epsilons=(2.0,))})
    # Not through setup(), which needs Tune; the store stands in for the actor before it.
    worker = TrialTrainable.__new__(TrialTrainable)
    worker._keeper, worker._pretrained = WeightStore(str(tmp_path)), {}
    worker._cell = {"keep_weights": True, "micro_batch": None, "known": ""}
    first = worker._outcome(spec, data, dict(options))
    assert first.weights is not None

    def no_training(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr("tasks.trials.trial.run_trial", no_training)
    more = spec.model_copy(update={"attacks": AttackSpec(epsilons=(2.0, 16.0))})
    worker._cell = {**worker._cell, "known": trial_record(first, spec=spec).text()}
    found = worker._outcome(more, data, dict(options))
    assert found.scores == first.scores
    assert {attack.epsilon for attack in found.attacks} >= {16.0}
