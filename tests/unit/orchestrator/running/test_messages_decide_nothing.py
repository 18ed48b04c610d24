"""Test that decisions depend on fields only: a reworded message changes no decision."""

import json
import math
import time
from types import SimpleNamespace

import pytest
import ray.exceptions as rex

from orchestrator.machine.cluster import Resources
from orchestrator.planning.plan import plan_sweep
from orchestrator.planning.sweep_file import load_sweep
from orchestrator.results.records import FailureKind, FailureRecord, TrialFailure
from orchestrator.running.messages import TrialReport
from orchestrator.running.recovery.failures import OtherCodeError, classify, classify_lost_worker
from orchestrator.running.recovery.node_health import NodeHealth
from orchestrator.running.recovery.resource_policy import ResourcePolicy
from orchestrator.running.recovery.retries import Retries
from orchestrator.running.workers import trial_device
from orchestrator.running.workers.trial_device import UnusableGpuError
from orchestrator.running.workers.worker import TrialTrainable
from search_spaces.errors import ConfigError, DataError, SetupError, SweepError
from tasks.trials.cuda_graphs import CaptureError
from tests.simulation.schedules import draw, run_seed
from tests.simulation.workers import SimulatedBackend
from tests.small_sweep import small_sweep
from tests.unit.orchestrator.results.examples import trial_spec
from tests.unit.orchestrator.running.test_failures import GPU_ERRORS, RAY_MESSAGE

ISWEEP_ERRORS = (
    (UnusableGpuError.of("GPU-1 of node a", "it has no driver", "install one"), {}),
    (OtherCodeError("A worker runs other code than the driver", hint="Install it"), {}),
    (CaptureError("a step could not be captured: RuntimeError: unsupported"), {}),
    (ConfigError("A batch has one image", hint="Raise batch_size"), {}),
    (DataError("Pixels must be finite"), {}),
    (SetupError("Storage must answer"), {}),
)
REWORDED = "GPU-9 of node z: out of memory, others hold 9 of 9 GiB; a step could not be captured"
"""A message with the words that once decided, about something that did not happen."""


@pytest.fixture(scope="module")
def trial():
    sweep = load_sweep(small_sweep("mine", models=["small_mlp"]))
    return plan_sweep(sweep).trials[0]


def failures():
    """Return pairs of a failure and the same failure in other words, for each kind of failure."""
    originals = [classify(error) for error, *_ in GPU_ERRORS]
    originals += [classify(error) for error, _ in ISWEEP_ERRORS]
    originals.append(classify_lost_worker(None, RAY_MESSAGE, pid=411))
    originals.append(classify_lost_worker(rex.RayActorError("ab", "gone"), "gone"))
    originals += [failure.model_copy(update={"held_by_others": 0.5}) for failure in originals]
    update = {"message": REWORDED, "traceback": REWORDED}
    return [(failure, failure.model_copy(update=update)) for failure in originals]


def decisions_on(trial, failure):
    """Return all decisions after a trial fails 25 times in this way on the only node."""
    retries = Retries()
    health = NodeHealth()
    decisions = []
    policy = ResourcePolicy(Resources(1, 0.5))
    for _ in range(25):
        request = policy.start_attempt(trial)
        is_final = policy.failed(trial, failure).is_final
        decision = retries.failed(
            "t", failure, process_ended=failure.ends_process, is_final=is_final
        )
        ends_sweep = False
        try:
            health.count_node_failure("a", failure, {"a"})
        except SetupError:
            ends_sweep = True
        decisions.append((request, is_final, decision.pause_s, ends_sweep, failure.gpu))
    return decisions


@pytest.mark.parametrize(
    ("failure", "reworded"), failures(), ids=[str(pair[0].message)[:50] for pair in failures()]
)
def test_a_reworded_failure_has_the_same_retries_nodes_and_resources(trial, failure, reworded):
    assert decisions_on(trial, failure) == decisions_on(trial, reworded)


def test_the_reworded_failures_lead_to_different_decisions(trial):
    """Otherwise the test before would pass for a program that decides nothing."""
    different_decisions = {str(decisions_on(trial, failure)) for failure, _ in failures()}
    assert len(different_decisions) >= 8


@pytest.mark.parametrize(
    "error", [error for error, _ in ISWEEP_ERRORS], ids=lambda error: type(error).__name__
)
def test_an_error_of_isweep_in_other_words_is_classified_alike(error):
    reworded = type(error)(*[REWORDED.replace("GPU-9", "a GPU")] * len(error.args))
    if "gpu" in error.__dict__:
        reworded.__dict__["gpu"] = error.__dict__["gpu"]
    without_text = {"message": "", "traceback": ""}
    failure = classify(reworded).model_copy(update=without_text)
    assert failure == classify(error).model_copy(update=without_text)


def test_a_worker_waits_after_a_kind_of_error_and_not_after_words(monkeypatch):
    pauses = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    worker = SimpleNamespace(
        _has_finished_a_trial=False,
        assignment=SimpleNamespace(resources=Resources(1, 0.5)),
        _gpu_uuid="GPU-1",
    )
    for error in (ValueError(REWORDED), DataError(REWORDED)):
        failure = TrialTrainable._failure(worker, error)
        assert failure.gpu == ""
        TrialTrainable._delay_broken_node(worker, failure)
    assert pauses == []
    failure = TrialTrainable._failure(worker, UnusableGpuError.of("GPU-1", "words", "other words"))
    TrialTrainable._delay_broken_node(worker, failure)
    assert pauses == [trial_device.FIRST_QUARANTINE_S]


@pytest.mark.parametrize("seed", [seed for seed in range(40) if len(draw(seed)) >= 7][:4])
def test_a_sweep_whose_failures_are_reworded_takes_the_same_course(monkeypatch, seed):
    expected = [failure[:3] for failure in run_seed(seed).reported_failures]
    original_outcome_of = SimulatedBackend.outcome_of

    def reworded_outcome_of(backend, trial, location):
        outcome = original_outcome_of(backend, trial, location)
        if isinstance(outcome, TrialReport):
            failure = outcome.outcome.model_copy(update={"message": REWORDED})
            return outcome.model_copy(update={"outcome": failure})
        return outcome.model_copy(update={"message": REWORDED})

    monkeypatch.setattr(SimulatedBackend, "outcome_of", reworded_outcome_of)
    assert [failure[:3] for failure in run_seed(seed).reported_failures] == expected


def test_a_failure_that_an_older_version_stored_is_still_read():
    older = '{"kind": "device_error", "message": "CUDA error", "traceback": "…"}'
    failure = TrialFailure.model_validate_json(older)
    assert (failure.gpu, failure.memory, failure.held_by_others) == ("", "", None)
    stored = FailureRecord(trial_id="t", spec=trial_spec(), attempt=1, failure=failure)
    record = stored.model_dump(mode="json")
    old_fields = ("kind", "message", "traceback")
    record["failure"] = {name: record["failure"][name] for name in old_fields}
    assert FailureRecord.model_validate_json(json.dumps(record)).failure == failure


def test_every_kind_of_failure_is_reworded_here_or_decided_by_its_type():
    kinds = {failure.kind for failure, _ in failures()}
    decided_by_type = {"lost_node", "cluster_error", "hung", "disk_full", "code_error"}
    assert kinds | decided_by_type == set(FailureKind)
    assert issubclass(UnusableGpuError, SweepError)
    assert math.isinf(ResourcePolicy(Resources(1, 0)).node_memory_bytes())
