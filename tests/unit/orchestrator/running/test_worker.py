"""Test a worker: epochs are sent to the driver, and a trained network is measured again."""

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
    IsweepMessages,
    MessageQueue,
)
from orchestrator.running.messages import TrialAssignment
from orchestrator.running.workers.perform import TrialTask, perform_trial
from orchestrator.running.workers.trial_device import TrialDevice, device_for
from search_spaces.specs import AttackSpec
from tasks.prepared.subsets import TrialData
from tasks.trials import trial
from tasks.trials.records import EpochRecord, EpochScore
from tests.unit.orchestrator.results.examples import trial_record, trial_spec


def epoch(number: int) -> EpochRecord:
    return EpochRecord(number, 0.5, 0.7, 0.1)


def test_fast_epochs_are_sent_together_slow_ones_at_once_and_a_score_with_its_epoch():
    sent = []
    now = [0.0]
    publisher = EpochPublisher("t", sent.append, clock=lambda: now[0])
    for number in range(1, 11):
        now[0] += 0.125
        publisher.epoch_ended(epoch(number))
    epochs = [[report.epoch.epoch for report in batch] for batch in sent]
    assert epochs == [[1, 2, 3, 4], [5, 6, 7, 8]]
    now[0] += 60
    publisher.score_evaluated(EpochScore(epoch=11, test_loss=0.4, test_accuracy=0.8))
    publisher.epoch_ended(epoch(11))
    last_batch = [(report.epoch.epoch, report.score is None) for report in sent[-1]]
    assert last_batch == [(9, True), (10, True), (11, False)]


def test_the_queue_returns_each_report_once_and_keeps_the_newest(monkeypatch):
    monkeypatch.setattr(module, "MAX_MESSAGES", 3)
    queue = IsweepMessages()
    for number in range(5):
        queue.put([number])
    assert queue.take() == [2, 3, 4]
    assert queue.take() == []


@pytest.mark.ray
def test_the_driver_gets_sent_epochs_without_waiting(ray_local, monkeypatch):
    monkeypatch.setattr(module, "POLL_INTERVAL_S", 0.0)
    queue = MessageQueue()
    monkeypatch.setattr(module, "PUBLISH_INTERVAL_S", 0.0)
    queue.publisher("t").epoch_ended(epoch(1))
    reports = []
    while not reports:
        reports += queue.poll()
    assert [(report.trial_id, report.epoch.epoch) for report in reports] == [("t", 1)]


class FakeRay:
    """A simulated Ray whose actor answers only while ``answers`` is true; collects timeouts."""

    exceptions = ray.exceptions

    def __init__(self) -> None:
        self.answers = True
        self.timeouts: list[float] = []

    def wait(self, calls, timeout):
        self.timeouts.append(timeout)
        return (calls, []) if self.answers else ([], calls)

    def get(self, call):
        return ["message"]


def test_the_driver_waits_once_for_a_lost_actor_however_many_workers_end(monkeypatch):
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
    # The actor answers again, so the driver waits for the next worker that ends.
    fake_ray.timeouts.clear()
    assert messages.poll(wait=True) == ["message"]
    assert fake_ray.timeouts == [module.POLL_TIMEOUT_S]


@pytest.mark.ray
def test_all_actors_of_a_run_are_ended(ray_local, tmp_path):
    def call_until_it_has_ended(actor):
        while True:
            ray.get(actor.__ray_ready__.remote())

    actors = ActorHandles(str(tmp_path))
    actors.end()
    for actor in (actors.messages.actor, actors.files.actor, actors.arrays):
        with pytest.raises(ray.exceptions.RayActorError):
            call_until_it_has_ended(actor)


def test_another_attack_strength_is_measured_on_the_stored_network(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, 1, 16, 16), np.uint8)
    labels = np.arange(60) % 2
    data = TrialData(images[:40], labels[:40], images[40:], labels[40:], 2, "f")
    spec = trial_spec().model_copy(update={"attacks": AttackSpec(epsilons=(2.0,))})
    assignment = TrialAssignment(spec, "array", Resources(1, 0), "code", keep_weights=True)
    # The store takes the place of the actor that usually has it.
    task = TrialTask(assignment, data, TrialDevice(), ResultStore(str(tmp_path)))
    first, trained = perform_trial(task)
    assert trained
    assert first.weights is not None

    def fail_if_trained(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr("tasks.trials.trial.run_trial", fail_if_trained)
    larger_spec = spec.model_copy(update={"attacks": AttackSpec(epsilons=(2.0, 16.0))})
    second_assignment = replace(
        assignment,
        spec=larger_spec,
        earlier=trial_record(first, spec=spec),
        resources=Resources(1, 0, micro_batch=2),  # as after running out of memory
    )
    micro_batches = []
    scaled_batch_size = trial.scaled_batch_size

    def collect_micro_batch(*arguments):
        micro_batches.append(arguments[-1])
        return scaled_batch_size(*arguments)

    monkeypatch.setattr(trial, "scaled_batch_size", collect_micro_batch)
    performed = perform_trial(
        replace(
            task,
            assignment=second_assignment,
            device=device_for(second_assignment.resources, larger_spec.network),
        )
    )
    assert not performed.trained
    assert micro_batches == [2]
    assert performed.result.scores == first.scores
    assert {attack.epsilon for attack in performed.result.attacks} >= {16.0}
