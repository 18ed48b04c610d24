"""Test which trials are retried: a crash counts against a trial only if no others crash."""

import heapq
import json
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest

from orchestrator.results.records import FailureKind, TrialFailure
from orchestrator.running.attempts import Attempt, Attempts
from orchestrator.running.messages import EpochReport, WorkerLocation
from orchestrator.running.outcomes import Outcomes
from orchestrator.running.queue import ASSIGNMENT, TRIAL_ID
from orchestrator.running.recovery import quarantine
from orchestrator.running.recovery.failures import classify
from orchestrator.running.recovery.node_health import (
    DEVICE_ERROR_WEIGHT,
    NODE_UNFIT_AFTER,
    NodeHealth,
)
from orchestrator.running.recovery.quarantine import MAX_QUARANTINE_S, GpuQuarantine
from orchestrator.running.recovery.retries import (
    RETRY_POLICIES,
    Retries,
    RetryPolicy,
)
from orchestrator.running.trials import TrialLoop
from orchestrator.running.workers.trial_device import FIRST_QUARANTINE_S, UnusableGpuError
from search_spaces.errors import SetupError

CRASH, LOST, DEVICE, MEMORY = (
    TrialFailure(kind=kind, message="")
    for kind in ("worker_crash", "lost_node", "device_error", "out_of_memory")
)


def test_a_trial_that_alone_crashes_is_given_up_after_three_times():
    retries = Retries()
    decisions = []
    for _ in range(3):
        decisions.append(retries.failed("poison", CRASH, process_ended=True))
        retries.finished()
    assert [decision.pause_s for decision in decisions] == [1.0, 2.0, None]
    assert decisions[0].reason == "retried in 1 s; worker_crash 1 of at most 3"
    assert decisions[-1].reason == ("other trials crashed at most once, so this trial is the cause")


def test_a_trial_gets_more_attempts_if_other_trials_crash_too():
    retries = Retries()
    for number in range(40):
        retries.failed(f"other {number}", CRASH, process_ended=True)
        retries.finished()
    pauses = [retries.failed("mine", CRASH, process_ended=True).pause_s for _ in range(20)]
    assert None not in pauses[:-1]
    assert pauses[-1] is None


def test_a_trial_keeps_its_attempts_if_all_trials_run_out_of_memory():
    retries = Retries()
    for _ in range(4):
        for trial_id in ("a", "b", "c"):
            assert retries.failed(trial_id, MEMORY, process_ended=True).pause_s is not None
    fifth_decision = retries.failed("a", MEMORY, process_ended=True)
    assert fifth_decision.reason == "retried in 16 s; out_of_memory 5 of at most 20"
    other_retries = Retries()
    for trial_id in ("b", "c") * 4:  # these processes did not end
        other_retries.failed(trial_id, MEMORY)
    decisions = [other_retries.failed("a", MEMORY, process_ended=True) for _ in range(20)]
    assert [decision.pause_s is None for decision in decisions] == [False] * 19 + [True]
    assert decisions[-1].reason == "the trial crashed or ran out of memory 20 times"


def test_a_lost_node_does_not_count_as_an_attempt():
    retries = Retries()
    for _ in range(201):
        assert retries.failed("a", LOST, process_ended=True).pause_s <= 60.0
    retries.finished()
    assert retries.failed("a", LOST, process_ended=True).pause_s == 60.0
    assert retries.failed("a", CRASH, process_ended=True).pause_s is not None


def test_a_kind_of_failure_can_have_a_pause_of_its_own(monkeypatch):
    """A licence that is in use becomes free after minutes, not after seconds."""
    policy = RetryPolicy(2, first_pause_s=600.0, max_pause_s=600.0)
    monkeypatch.setitem(RETRY_POLICIES, FailureKind.SETUP, policy)
    busy = TrialFailure(kind=FailureKind.SETUP, message="")
    retries = Retries()
    decisions = [retries.failed("a", busy) for _ in range(3)]
    assert [decision.pause_s for decision in decisions] == [600.0, 600.0, None]
    assert decisions[0].reason == "retried in 600 s; setup 1 of at most 3"
    retries.failed("b", busy)
    assert retries.failed("b", CRASH).pause_s == 2.0  # other kinds keep their pauses
    growing = RetryPolicy(None, first_pause_s=100.0, max_pause_s=300.0)
    assert [growing.pause_s(num_failures) for num_failures in (1, 2, 3)] == [100.0, 200.0, 300.0]
    assert growing.pause_s(1025) == 300.0
    with pytest.raises(ValueError, match="first_pause_s=600, which is more than max_pause_s=60"):
        RetryPolicy(2, first_pause_s=600.0)


def test_a_sweep_ends_after_200_failed_retries_in_a_row():
    retries = Retries()
    trial_ids = [f"trial {number}" for number in range(200)]
    for trial_id in (*trial_ids, *trial_ids, "one more"):  # 201 nodes may be lost at once
        assert retries.failed(trial_id, LOST, process_ended=True).pause_s is not None
    last = retries.failed("one more", LOST, process_ended=True)
    assert last.reason == "the last 200 retries of all trials failed"


@pytest.mark.parametrize(
    ("kind", "is_final", "reason"),
    [
        (FailureKind.CODE_ERROR, False, "a retry would fail with code_error again"),
        (FailureKind.OUT_OF_MEMORY, True, "every further attempt would fail as well"),
    ],
)
def test_a_bug_and_a_final_failure_are_not_retried(kind, is_final, reason):
    failure = TrialFailure(kind=kind, message="")
    assert Retries().failed("a", failure, is_final=is_final) == (None, reason)


NO_DRIVER = UnusableGpuError.of(
    "GPU 0 of node a", "the NVIDIA driver is absent", "Install a driver"
)


def test_every_node_has_its_chances_before_the_sweep_ends():
    health = NodeHealth()
    failure = classify(NO_DRIVER)
    for node in ["a"] * 10 + ["b"] * (NODE_UNFIT_AFTER - 1):
        health.count_node_failure(node, failure, {"a", "b"})
    last = (
        r"the NVIDIA driver is absent\. Install a driver\. Check every node with .* Repair a node"
    )
    with pytest.raises(SetupError, match=rf"\(2 nodes tried\)\. .* {last}"):
        health.count_node_failure("b", failure, {"a", "b"})


def test_each_of_eight_gpus_has_its_chances_before_the_sweep_ends():
    """The first self-tests of VGG-19 on eight GPUs of a node may all take too long at once."""
    health = NodeHealth()
    failure = classify(NO_DRIVER)
    for _ in range(NODE_UNFIT_AFTER - 1):
        for gpu in range(8):
            health.count_node_failure("a", failure, {"a"}, str(gpu))
    with pytest.raises(SetupError, match="No node has a GPU on which trials"):
        health.count_node_failure("a", failure, {"a"}, "5")


def test_trials_that_share_a_gpu_and_fail_together_count_once():
    """Four trials wait for one self-test. If it takes too long, all four fail, one by one."""
    now_s = [0.0]
    health = NodeHealth(monotonic=lambda: now_s[0])
    failure = classify(NO_DRIVER)
    quarantines_s = []

    def fail_together():
        started_s = now_s[0]
        for _ in range(4):
            now_s[0] += 100.0
            quarantines_s.append(health.count_gpu_failure("a", "0", started_s))
            health.count_node_failure("a", failure, {"a"}, "0", started_s)

    for _ in range(NODE_UNFIT_AFTER - 1):
        fail_together()
    assert quarantines_s == [120.0] * 4 + [240.0] * 4 + [480.0] * 4
    with pytest.raises(SetupError, match="No node has a GPU on which trials"):
        fail_together()


def test_device_errors_of_trials_that_share_a_gpu_count_once():
    """Under MPS, a fatal error of one trial ends the other trials on the GPU too."""
    now_s = [0.0]
    health = NodeHealth(monotonic=lambda: now_s[0])
    lost_device = TrialFailure(kind="device_error", message="", device_lost=True)
    num_allowed = round(NODE_UNFIT_AFTER / DEVICE_ERROR_WEIGHT)
    for number in range(num_allowed):
        started_s = now_s[0]
        ending = nullcontext()
        if number == num_allowed - 1:
            ending = pytest.raises(SetupError, match="No node has a GPU on which trials")
        with ending:
            for _ in range(4):
                now_s[0] += 1.0
                health.count_node_failure("a", lost_device, {"a"}, "0", started_s)


def test_device_errors_on_several_gpus_of_a_node_are_counted_together():
    health = NodeHealth()
    lost_device = TrialFailure(kind="device_error", message="", device_lost=True)
    num_allowed = round(NODE_UNFIT_AFTER / DEVICE_ERROR_WEIGHT)
    for number in range(num_allowed - 1):
        health.count_node_failure("a", lost_device, {"a"}, str(number % 8))
    with pytest.raises(SetupError, match="No node has a GPU on which trials"):
        health.count_node_failure("a", lost_device, {"a"}, "7")


def attempts_with(attempt):
    """Return attempts of which each trial has this one."""
    return SimpleNamespace(of=lambda trial_id: attempt)


def test_the_gpu_of_a_failed_trial_is_counted_and_not_only_its_node():
    counted = []
    location = WorkerLocation("t", "actor", "10.0.0.1", gpus="3")
    outcomes = SimpleNamespace(
        _attempts=attempts_with(Attempt(1, location, "10.0.0.1", started_s=7.0)),
        _backend=SimpleNamespace(eligible_nodes=lambda failure: {"10.0.0.1"}),
        node_health=SimpleNamespace(count_node_failure=lambda *values: counted.append(values)),
    )
    failure = classify(NO_DRIVER)
    Outcomes._count_node_failure(outcomes, "t", failure)
    assert counted == [("10.0.0.1", failure, {"10.0.0.1"}, "3", 7.0)]


def test_a_sweep_continues_if_a_node_gave_a_result_or_has_not_been_tried():
    health = NodeHealth()
    failure = classify(NO_DRIVER)
    for _ in range(5):
        for _ in range(NODE_UNFIT_AFTER - 1):
            health.count_node_failure("a", failure, {"a"})
        health.finished("a", "0")
    for _ in range(20):
        NodeHealth().count_node_failure("a", failure, {"a", "b"})
    # Failures of other kinds do not count against a node.
    health = NodeHealth()
    for kind in set(FailureKind) - {FailureKind.OTHER_CODE}:
        other_failure = TrialFailure(kind=kind, message="CUDA error: launch failure")
        for _ in range(NODE_UNFIT_AFTER):
            health.count_node_failure("a", other_failure, {"a"})


def test_the_only_gpu_ends_the_sweep_if_every_training_fails_and_not_if_a_trial_asserts():
    """A sweep once made first attempts for 47 hours, each with a quarantine after it."""
    lost_device = TrialFailure(kind="device_error", message="", device_lost=True)
    assertion = TrialFailure(kind="device_error", message="", device_lost=False)
    health = NodeHealth()
    for _ in range(500):
        health.count_node_failure("a", assertion, {"a"})
    num_allowed = round(NODE_UNFIT_AFTER / DEVICE_ERROR_WEIGHT)
    for _ in range(10):
        for _ in range(num_allowed - 1):
            health.count_node_failure("a", lost_device, {"a"})
        health.epoch_ended("a")  # an epoch shows that the GPU computes

    def fail_more_often_than_allowed():
        for _ in range(num_allowed + 1):
            health.count_node_failure("a", lost_device, {"a"})

    with pytest.raises(SetupError, match="No node has a GPU on which trials"):
        fail_more_often_than_allowed()


def test_one_dead_gpu_among_working_gpus_of_a_node_ends_no_sweep():
    """Trials may take longer than four quarantines of the dead GPU: epochs show that others work."""
    health = NodeHealth()
    failure = classify(NO_DRIVER)
    epoch = EpochReport("cell", 1, None)
    loop = SimpleNamespace(
        _outcomes=SimpleNamespace(node_health=health),
        _attempts=attempts_with(Attempt(1, node="a")),
        _source=SimpleNamespace(
            trials={"cell": 0}, trained_network=int, curve_points=lambda *message: ()
        ),
        _run=SimpleNamespace(monitor=SimpleNamespace(trial_epoch=lambda *message: None)),
    )
    for _ in range(5 * NODE_UNFIT_AFTER):
        health.count_node_failure("a", failure, {"a"})
        TrialLoop._epoch_ended(loop, epoch, 0)


def device_error_on(gpu):
    return DEVICE.model_copy(update={"gpu": gpu})


def num_trials_given_up(num_gpus, *, num_trials=972, trial_s=125.0, fails_after_s=12.0):
    """Simulate a sweep with two trials on each GPU, of which one fails all its trials at once.

    Each failure ends its process, which had finished nothing, so the GPU is in quarantine before
    the driver gets the failure. Returns the number of trials that were given up.
    """
    retries = Retries()
    waiting = list(range(num_trials))
    retried_later = []  # (time, trial)
    num_given_up = 0
    events = [(0.0, slot, None) for slot in range(2 * num_gpus)]  # (time, slot, trial that ended)
    while events:
        now, slot, ended_trial = heapq.heappop(events)
        # Running processes take trials before a new process starts: the dead GPU comes last.
        is_dead = slot >= 2 * num_gpus - 2
        if ended_trial is not None and is_dead:
            failure = device_error_on("GPU-1 of node a")
            decision = retries.failed(str(ended_trial), failure, process_ended=True)
            if decision.pause_s is None:
                num_given_up += 1
            else:
                retried_later.append((now + decision.pause_s, ended_trial))
        elif ended_trial is not None:
            retries.finished()
        due = [trial for at, trial in retried_later if at <= now]
        if not waiting and not due:
            if retried_later or any(trial is not None for *_, trial in events):
                heapq.heappush(events, (now + 1.0, slot, None))
            continue
        next_trial = waiting.pop(0) if waiting else due[0]
        retried_later = [(at, trial) for at, trial in retried_later if trial != next_trial]
        duration = fails_after_s + FIRST_QUARANTINE_S if is_dead else trial_s
        heapq.heappush(events, (now + duration, slot, next_trial))
    return num_given_up


@pytest.mark.parametrize("num_gpus", [8, 4])
def test_a_dead_gpu_among_working_ones_costs_no_trial(num_gpus):
    """Otherwise 122 of 972 trials would be given up with eight GPUs, and 352 with four.

    The quarantine and the count of failures for each GPU prevent this.
    """
    assert num_trials_given_up(num_gpus) == 0


def test_a_trial_that_breaks_every_gpu_is_given_up():
    retries = Retries()
    failures = [device_error_on(f"GPU-{number} of node a") for number in range(4)]
    decisions = [retries.failed("poison", failure, process_ended=True) for failure in failures]
    assert [decision.pause_s is None for decision in decisions] == [False, False, False, True]


@pytest.mark.chaos  # starts a private cluster and takes a minute
def test_the_last_trial_gets_another_gpu_than_the_dead_one_that_ray_would_use_again(tmp_path):
    """The test starts another process, whose private cluster has two simulated GPUs."""
    command = [sys.executable, "-m", "tests.integration.faults", "dead_gpu", str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[4]
    )
    report = json.loads(done.stdout.splitlines()[-1])
    assert list(report["results"]) == report["planned"]
    # The process on the dead GPU may still be ending when the quarantine starts. Then the next
    # failure starts it.
    assert 1 <= len(report["told"]) <= RETRY_POLICIES[FailureKind.DEVICE_ERROR].num_retries
    for _, kind, _, message in report["told"]:
        assert kind == "device_error"
        assert "uncorrectable ECC error encountered (GPU-0 of node" in message


def test_a_gpu_that_failed_is_quarantined_once_at_a_time_and_never_the_last_one(monkeypatch):
    occupied = []
    ended = []

    def occupy(location, seconds):
        occupied.append(location.gpus)
        return len(occupied)

    monkeypatch.setattr(quarantine, "occupy", occupy)
    monkeypatch.setattr(quarantine.ray, "wait", lambda tasks, **_: (ended and tasks, []))
    for num_gpus, share, expected in (
        (1, 1.0, []),
        (2, 1.0, ["0"]),
        (8, 1.0, ["0", "3"]),
        (8, 0.4, ["0", "0", "3"]),
    ):
        occupied.clear()
        gpus = GpuQuarantine(num_gpus)
        for gpu in ("0", "0", "0", "3"):
            gpus.add(WorkerLocation("cell", "actor", "10.0.0.1", gpus=gpu, num_gpus=share), 120.0)
        assert occupied == expected
    ended.append("0")
    gpus.add(WorkerLocation("cell", "actor", "10.0.0.1", gpus="0"), 120.0)
    assert occupied == ["0", "0", "3", "0"]


def test_a_gpu_on_which_a_trial_hangs_is_quarantined_and_costs_no_trial_its_attempts():
    """A hang itself names no GPU.

    The last trial of a sweep once got the same GPU again, and was given up.
    """
    failures = []
    decisions = []
    retries = Retries()
    hung = TrialFailure(kind="hung", message="neither a result nor an epoch in 600 s")
    for trial_id in ("a", "b", "b", "b"):
        loop = SimpleNamespace(
            _take_messages=lambda wait: None,
            _attempts=attempts_with(
                Attempt(1, WorkerLocation(trial_id, "actor", "10.0.0.1", gpus="0"))
            ),
            _watchdog=SimpleNamespace(failure_of=lambda trial_id: hung),
            _outcomes=SimpleNamespace(
                process_unreported_end=lambda trial_id, failure: failures.append(failure)
            ),
        )
        loop._watchdog_failure = lambda trial_id, loop=loop: TrialLoop._watchdog_failure(
            loop, trial_id
        )
        trial = SimpleNamespace(config={TRIAL_ID: trial_id, ASSIGNMENT: None})
        TrialLoop.on_trial_error(loop, 0, [], trial)
        failure = failures[-1]
        assert failure.gpu == "GPU 0 of node 10.0.0.1"
        assert failure.message == f"{hung.message} (GPU 0 of node 10.0.0.1)"
        decisions.append(retries.failed(trial_id, failure, process_ended=True))
    assert all(decision.pause_s is not None for decision in decisions)
    assert decisions[-1].reason == "retried in 4 s; hung 3 of at most 20"
    assert retries.failed("c", hung, process_ended=True).pause_s is not None
    assert retries.failed("c", hung, process_ended=True).pause_s is None


@pytest.mark.parametrize(
    "location",
    [
        None,
        WorkerLocation("t", "actor", "10.0.0.1", gpus="", num_gpus=0.0),
        WorkerLocation("t", "actor", "10.0.0.1", gpus="", num_gpus=1.0),
    ],
    ids=["no location", "no GPU", "a GPU without a name"],
)
def test_a_hang_counts_against_no_gpu_if_the_gpu_of_the_trial_is_unknown(location):
    hung = TrialFailure(kind="hung", message="neither a result nor an epoch in 600 s")
    loop = SimpleNamespace(
        _attempts=attempts_with(Attempt(1, location)),
        _watchdog=SimpleNamespace(failure_of=lambda trial_id: hung),
    )
    assert TrialLoop._watchdog_failure(loop, "t") == hung


def test_a_new_attempt_has_no_location_from_the_attempt_before():
    """The GPU of the attempt before once counted for a worker that never answered."""
    attempts = Attempts({"t": 4}, MagicMock())
    attempts.begin("t")
    attempts.of("t").location = WorkerLocation("t", "actor", "10.0.0.1")
    attempts.begin("t")
    assert attempts.of("t") == Attempt(6)


def test_a_quarantine_doubles_after_each_failure_until_the_gpu_has_a_result():
    health = NodeHealth()
    assert [health.count_gpu_failure("a", "0") for _ in range(5)] == [120, 240, 480, 960, 960]
    assert health.count_gpu_failure("a", "1") == 120
    for _ in range(2000):
        assert health.count_gpu_failure("a", "0") == MAX_QUARANTINE_S
    health.finished("a", "1")
    assert (health.count_gpu_failure("a", "0"), health.count_gpu_failure("a", "1")) == (960, 120)
