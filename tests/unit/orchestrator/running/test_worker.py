"""A worker: epochs on their way to the driver, and what is measured on a network that is trained
already."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import ray

from orchestrator.machine.cluster import Resources
from orchestrator.results.store import ResultStore
from orchestrator.running import actors as module
from orchestrator.running.actors import (
    ActorHandles,
    EpochPublisher,
    IsweepEpochs,
    MessageQueue,
)
from orchestrator.running.messages import TrialAssignment
from orchestrator.running.perform import TrialTask, perform_trial
from orchestrator.running.trial_device import TrialDevice, device_for
from search_spaces.specs import AttackSpec
from tasks.prepared.subsets import TrialData
from tasks.trials import trial
from tasks.trials.records import EpochRecord, EpochScore
from tests.unit.orchestrator.results.examples import trial_record, trial_spec


def epoch(number: int) -> EpochRecord:
    return EpochRecord(number, 0.5, 0.7, 0.1)


def test_fast_epochs_are_told_together_slow_ones_at_once_and_a_score_with_its_own():
    sent, now = [], [0.0]
    publisher = EpochPublisher("t", sent.append, clock=lambda: now[0])
    for number in range(1, 11):
        now[0] += 0.125
        publisher.epoch_ended(epoch(number))
    assert [[said.epoch.epoch for said in batch] for batch in sent] == [[1, 2, 3, 4], [5, 6, 7, 8]]
    now[0] += 60
    publisher.score_evaluated(EpochScore(epoch=11, test_loss=0.4, test_accuracy=0.8))
    publisher.epoch_ended(epoch(11))
    assert [(said.epoch.epoch, said.score is None) for said in sent[-1]] == [
        (9, True),
        (10, True),
        (11, False),
    ]


def test_the_board_gives_each_report_once_and_keeps_the_newest(monkeypatch):
    monkeypatch.setattr(module, "MAX_MESSAGES", 3)
    board = IsweepEpochs()
    for number in range(5):
        board.put([number])
    assert board.take() == [2, 3, 4]
    assert board.take() == []


@pytest.mark.ray
def test_the_driver_hears_what_was_told_without_waiting(ray_local, monkeypatch):
    monkeypatch.setattr(module, "POLL_INTERVAL_S", 0.0)
    board = MessageQueue()
    monkeypatch.setattr(module, "PUBLISH_INTERVAL_S", 0.0)
    board.publisher("t").epoch_ended(epoch(1))
    heard = []
    while not heard:
        heard += board.poll()
    assert [(said.trial_id, said.epoch.epoch) for said in heard] == [("t", 1)]


class FakeRay:
    """Stands in for Ray, whose actor answers only while ``answers`` is true; keeps the waits."""

    exceptions = ray.exceptions

    def __init__(self) -> None:
        self.answers = True
        self.timeouts: list[float] = []

    def wait(self, calls, timeout):
        self.timeouts.append(timeout)
        return (calls, []) if self.answers else ([], calls)

    def get(self, call):
        return ["message"]


def test_a_lost_actor_is_waited_for_once_however_many_workers_end(monkeypatch):
    fake_ray = FakeRay()
    actor = SimpleNamespace(take=SimpleNamespace(remote=lambda: "call"))
    monkeypatch.setattr(module, "ray", fake_ray)
    monkeypatch.setattr(module, "start_beside_driver", lambda *_, **__: actor)
    messages = MessageQueue()
    assert messages.poll(wait=True) == ["message"]
    fake_ray.answers = False
    fake_ray.timeouts.clear()
    for _ in range(64):
        assert messages.poll(wait=True) == []
    assert [timeout for timeout in fake_ray.timeouts if timeout] == [module.POLL_TIMEOUT_S]
    fake_ray.answers = True
    assert messages.poll() == ["message"]
    # It answers again, so the next worker that ends is waited for.
    fake_ray.timeouts.clear()
    assert messages.poll(wait=True) == ["message"]
    assert fake_ray.timeouts == [module.POLL_TIMEOUT_S]


@pytest.mark.ray
def test_the_actors_of_a_run_end_by_a_word_to_each(ray_local, tmp_path):
    def asked_until_it_is_gone(actor):
        while True:
            ray.get(actor.__ray_ready__.remote())

    actors = ActorHandles(str(tmp_path))
    actors.end()
    for actor in (actors.messages.actor, actors.files.actor, actors.arrays):
        with pytest.raises(ray.exceptions.RayActorError):
            asked_until_it_is_gone(actor)


def test_another_strength_is_measured_on_the_kept_network(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (60, 1, 16, 16), np.uint8), np.arange(60) % 2
    data = TrialData(images[:40], labels[:40], images[40:], labels[40:], 2, "f")
    spec = trial_spec().model_copy(update={"attacks": AttackSpec(epsilons=(2.0,))})
    assignment = TrialAssignment(spec, "array", Resources(1, 0), "code", keep_weights=True)
    # The store stands in for the actor before it.
    task = TrialTask(assignment, data, TrialDevice(), ResultStore(str(tmp_path)))
    first, trained = perform_trial(task)
    assert trained
    assert first.weights is not None

    def no_training(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr("tasks.trials.trial.run_trial", no_training)
    more = spec.model_copy(update={"attacks": AttackSpec(epsilons=(2.0, 16.0))})
    again = replace(
        assignment,
        spec=more,
        earlier=trial_record(first, spec=spec),
        resources=Resources(1, 0, micro_batch=2),  # it was out of memory
    )
    parts, whole = [], trial.scaled_batch_size
    monkeypatch.setattr(
        trial, "scaled_batch_size", lambda *given: parts.append(given[-1]) or whole(*given)
    )
    performed = perform_trial(
        replace(task, assignment=again, device=device_for(again.resources, more.network))
    )
    assert not performed.trained
    assert parts == [2]
    assert performed.result.scores == first.scores
    assert {attack.epsilon for attack in performed.result.attacks} >= {16.0}
