"""A worker: epochs on their way to the driver, and what is measured on a network that is trained
already."""

from types import SimpleNamespace

import numpy as np
import pytest
import ray

from orchestrator.results.store import ResultStore
from orchestrator.running import actors as module
from orchestrator.running.actors import Desk, EpochBoard, EpochTeller, IsweepEpochs
from orchestrator.running.worker import perform_cell
from search_spaces.specs import AttackSpec
from tasks.prepared.subsets import TrialData
from tasks.trials import trial
from tasks.trials.records import EpochRecord, EpochScore
from tests.unit.orchestrator.results.examples import trial_record, trial_spec


def epoch(number: int) -> EpochRecord:
    return EpochRecord(number, 0.5, 0.7, 0.1)


def test_fast_epochs_are_told_together_slow_ones_at_once_and_a_score_with_its_own():
    sent, now = [], [0.0]
    teller = EpochTeller("t", sent.append, clock=lambda: now[0])
    for number in range(1, 11):
        now[0] += 0.125
        teller.ended(epoch(number))
    assert [[said.epoch.epoch for said in batch] for batch in sent] == [[1, 2, 3, 4], [5, 6, 7, 8]]
    now[0] += 60
    teller.scored(EpochScore(epoch=11, test_loss=0.4, test_accuracy=0.8))
    teller.ended(epoch(11))
    assert [(said.epoch.epoch, said.score is None) for said in sent[-1]] == [
        (9, True),
        (10, True),
        (11, False),
    ]


def test_the_board_gives_each_report_once_and_keeps_the_newest(monkeypatch):
    monkeypatch.setattr(module, "MOST_KEPT", 3)
    board = IsweepEpochs()
    for number in range(5):
        board.tell([number])
    assert board.take() == [2, 3, 4]
    assert board.take() == []


@pytest.mark.ray
def test_the_driver_hears_what_was_told_without_waiting(ray_local, monkeypatch):
    monkeypatch.setattr(module, "ASK_INTERVAL_S", 0.0)
    board = EpochBoard()
    monkeypatch.setattr(module, "TELL_INTERVAL_S", 0.0)
    board.teller("t").ended(epoch(1))
    heard = []
    while not heard:
        heard += board.heard()
    assert [(said.trial_id, said.epoch.epoch) for said in heard] == [("t", 1)]


@pytest.mark.ray
def test_the_actors_of_a_run_end_by_a_word_to_each(ray_local, tmp_path):
    def asked_until_it_is_gone(actor):
        while True:
            ray.get(actor.__ray_ready__.remote())

    desk = Desk(str(tmp_path))
    desk.end()
    for actor in (desk.board.actor, desk.keeper.actor, desk.arrays):
        with pytest.raises(ray.exceptions.RayActorError):
            asked_until_it_is_gone(actor)


def test_another_strength_is_measured_on_the_kept_network(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (60, 1, 16, 16), np.uint8), np.arange(60) % 2
    data = TrialData(images[:40], labels[:40], images[40:], labels[40:], 2, "f")
    options = {"device": "cpu", "num_threads": 1, "gpu_fraction": None}
    spec = trial_spec().model_copy(update={"attacks": AttackSpec(epsilons=(2.0,))})
    # The store stands in for the actor before it.
    worker = SimpleNamespace(keeper=ResultStore(str(tmp_path)), pretrained={}, epochs=None)
    worker.cell = {
        "keep_weights": True,
        "micro_batch": None,
        "known": "",
        "spec": spec.model_dump_json(),
    }
    first, trained = perform_cell(worker, data, dict(options))
    assert trained
    assert first.weights is not None

    def no_training(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr("tasks.trials.trial.run_trial", no_training)
    more = spec.model_copy(update={"attacks": AttackSpec(epsilons=(2.0, 16.0))})
    known = trial_record(first, spec=spec).text()
    worker.cell = {**worker.cell, "known": known, "spec": more.model_dump_json()}
    worker.cell |= {"micro_batch": 2}  # it was out of memory
    parts, whole = [], trial.scaled_batch_size
    monkeypatch.setattr(
        trial, "scaled_batch_size", lambda *given: parts.append(given[-1]) or whole(*given)
    )
    found, trained = perform_cell(worker, data, dict(options))
    assert not trained
    assert parts == [2]
    assert found.scores == first.scores
    assert {attack.epsilon for attack in found.attacks} >= {16.0}
