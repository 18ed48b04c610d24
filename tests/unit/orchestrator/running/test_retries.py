"""Who is tried again: a death counts against a trial only when it dies again and again while others
live."""

import heapq
import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from orchestrator.results.records import FailureKind, TrialFailure
from orchestrator.running.messages import EpochReport, WorkerLocation
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
    BASE_RETRIES,
    MAX_PAUSE_S,
    Retries,
)
from orchestrator.running.trial_device import FIRST_QUARANTINE_S, UnusableGpuError
from orchestrator.running.trials import Attempt, TrialLoop
from search_spaces.errors import SetupError

CRASH, LOST, DEVICE, MEMORY = (
    TrialFailure(kind=kind, message="")
    for kind in ("worker_crash", "lost_node", "device_error", "out_of_memory")
)


def test_a_trial_that_dies_alone_is_given_up_after_the_third_time():
    retries = Retries()
    decisions = []
    for _ in range(3):
        decisions.append(retries.failed("poison", CRASH, process_ended=True))
        retries.finished()
    assert [decision.pause_s for decision in decisions] == [1.0, 2.0, None]
    assert decisions[0].reason == "retried in 1 s; worker_crash 1 of at most 3"
    assert decisions[-1].reason == "other trials have not crashed, so this trial is the cause"


def test_where_others_die_too_a_trial_gets_more_attempts_but_not_for_ever():
    retries = Retries()
    for other in range(40):
        retries.failed(f"other {other}", CRASH, process_ended=True)
        retries.finished()
    pauses = [retries.failed("mine", CRASH, process_ended=True).pause_s for _ in range(20)]
    assert None not in pauses[:-1]
    assert pauses[-1] is None


def test_a_node_whose_memory_others_take_costs_no_trial_its_attempts():
    retries = Retries()
    for _ in range(4):
        for cell in ("a", "b", "c"):
            assert retries.failed(cell, MEMORY, process_ended=True).pause_s is not None
    more = retries.failed("a", MEMORY, process_ended=True)
    assert more.reason == "retried in 16 s; out_of_memory 5 of at most 20"
    alone = Retries()
    for cell in ("b", "c") * 4:  # these caught it themselves
        alone.failed(cell, MEMORY)
    decisions = [alone.failed("a", MEMORY, process_ended=True) for _ in range(20)]
    assert [decision.pause_s is None for decision in decisions] == [False] * 19 + [True]
    assert decisions[-1].reason == "the trial crashed or ran out of memory 20 times"


def test_a_lost_node_never_counts_and_uses_up_no_attempt_of_a_crash():
    retries = Retries()
    for _ in range(201):
        assert retries.failed("a", LOST, process_ended=True).pause_s <= MAX_PAUSE_S
    retries.finished()
    assert retries.failed("a", LOST, process_ended=True).pause_s == MAX_PAUSE_S
    assert retries.failed("a", CRASH, process_ended=True).pause_s is not None


def test_where_nothing_ever_works_the_sweep_ends():
    retries = Retries()
    cells = [f"cell {number}" for number in range(200)]
    for cell in (*cells, *cells, "one more"):  # 201 nodes may go at once
        assert retries.failed(cell, LOST, process_ended=True).pause_s is not None
    last = retries.failed("one more", LOST, process_ended=True)
    assert last.reason == "200 retries of trials failed in a row"


@pytest.mark.parametrize(
    ("kind", "is_final", "reason"),
    [
        (FailureKind.CODE_ERROR, False, "a retry would fail with code_error again"),
        (FailureKind.OUT_OF_MEMORY, True, "every further attempt would fail as well"),
    ],
)
def test_a_bug_and_what_can_get_no_more_are_not_tried_again(kind, is_final, reason):
    failure = TrialFailure(kind=kind, message="")
    assert Retries().failed("a", failure, is_final=is_final) == (None, reason)


NONE = UnusableGpuError.of("GPU 0 of node a", "the NVIDIA driver is absent", "Install a driver")


def test_every_node_has_its_chances_before_the_sweep_ends():
    health, failure = NodeHealth(), classify(NONE)
    for node in ["a"] * 10 + ["b"] * (NODE_UNFIT_AFTER - 1):
        health.count_node_failure(node, failure, {"a", "b"})
    last = r"the NVIDIA driver is absent\. Install a driver\. Repair a node"
    with pytest.raises(SetupError, match=rf"\(2 nodes tried\)\. .* {last}"):
        health.count_node_failure("b", failure, {"a", "b"})


def test_a_node_that_gave_a_result_is_sound_and_one_not_heard_of_may_be():
    health, failure = NodeHealth(), classify(NONE)
    for _ in range(5):
        for _ in range(NODE_UNFIT_AFTER - 1):
            health.count_node_failure("a", failure, {"a"})
        health.finished("a", "0")
    for _ in range(20):
        NodeHealth().count_node_failure("a", failure, {"a", "b"})
    # Other failures say nothing of GPUs.
    health = NodeHealth()
    for kind in set(FailureKind) - {FailureKind.OTHER_CODE}:
        for _ in range(NODE_UNFIT_AFTER):
            health.count_node_failure(
                "a", TrialFailure(kind=kind, message="CUDA error: launch failure"), {"a"}
            )


def test_a_lone_gpu_on_which_every_training_fails_ends_the_sweep_and_a_trial_that_asserts_does_not():
    """It was 47 hours of first attempts, each of which rested."""
    failure = TrialFailure(kind="device_error", message="", device_lost=True)
    own = TrialFailure(kind="device_error", message="", device_lost=False)
    health = NodeHealth()
    for _ in range(500):
        health.count_node_failure("a", own, {"a"})
    for _ in range(10):
        for _ in range(round(NODE_UNFIT_AFTER / DEVICE_ERROR_WEIGHT) - 1):
            health.count_node_failure("a", failure, {"a"})
        health.epoch_ended("a")  # an epoch is told
    with pytest.raises(SetupError, match="No node has a GPU on which trials"):
        [
            health.count_node_failure("a", failure, {"a"})
            for _ in range(round(NODE_UNFIT_AFTER / DEVICE_ERROR_WEIGHT) + 1)
        ]


def test_one_dead_gpu_of_a_node_whose_others_compute_ends_no_sweep():
    """Trials may take longer than the dead one rests four times: it is the epochs of the others
    that tell."""
    health, failure = NodeHealth(), classify(NONE)
    epoch = EpochReport("cell", 1, None)
    loop = SimpleNamespace(
        _node_health=health,
        _attempt=lambda trial_id: Attempt(1, node="a"),
        _source=SimpleNamespace(
            trials={"cell": 0}, trained_network=int, curve_points=lambda *message: ()
        ),
        _run=SimpleNamespace(monitor=SimpleNamespace(trial_epoch=lambda *message: None)),
    )
    for _ in range(5 * NODE_UNFIT_AFTER):
        health.count_node_failure("a", failure, {"a"})
        TrialLoop._epoch_ended(loop, epoch, 0)


def on_gpu(gpu):
    return DEVICE.model_copy(update={"gpu": gpu})


def given_up(num_gpus, *, num_cells=972, trial_s=125.0, fails_after_s=12.0):
    """Run a sweep of two trials a GPU, one of which fails everything at once; return the cells
    given up.

    Each failure takes its process along, which had finished nothing: the GPU rests before it is
    told."""
    retries, waiting, later, lost = Retries(), list(range(num_cells)), [], 0
    events = [(0.0, slot, None) for slot in range(2 * num_gpus)]
    while events:
        now, slot, ran = heapq.heappop(events)
        dead = slot >= 2 * num_gpus - 2  # processes that live take cells before another is started
        if ran is not None and dead:
            decision = retries.failed(str(ran), on_gpu("GPU-1 of node a"), process_ended=True)
            lost += decision.pause_s is None
            if decision.pause_s is not None:
                later.append((now + decision.pause_s, ran))
        elif ran is not None:
            retries.finished()
        due = [cell for at, cell in later if at <= now]
        if not waiting and not due:
            if later or any(ran is not None for *_, ran in events):
                heapq.heappush(events, (now + 1.0, slot, None))
            continue
        cell = waiting.pop(0) if waiting else due[0]
        later = [(at, other) for at, other in later if other != cell]
        heapq.heappush(
            events, (now + (fails_after_s + FIRST_QUARANTINE_S if dead else trial_s), slot, cell)
        )
    return lost


@pytest.mark.parametrize("num_gpus", [8, 4])
def test_a_dead_gpu_among_sound_ones_costs_no_cell(num_gpus):
    """Without its rest and its own count it was 122 cells of 972 with eight GPUs, 352 with four."""
    assert given_up(num_gpus) == 0


def test_a_cell_that_breaks_every_gpu_it_is_given_is_given_up():
    retries = Retries()
    gpus = [f"GPU-{number} of node a" for number in range(4)]
    decisions = [retries.failed("poison", on_gpu(gpu), process_ended=True) for gpu in gpus]
    assert [decision.pause_s is None for decision in decisions] == [False, False, False, True]


@pytest.mark.chaos  # a cluster of its own, a minute
def test_a_last_cell_gets_another_gpu_than_the_dead_one_that_ray_would_give_it_again(tmp_path):
    """In a process of its own, whose private cluster hands out two GPUs."""
    command = [sys.executable, "-m", "tests.integration.faults", "dead_gpu", str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[4]
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert list(found["results"]) == found["planned"]
    # The dead GPU's process may still be ending when it is asked to rest: then the next failure
    # asks again.
    assert 1 <= len(found["told"]) <= BASE_RETRIES[FailureKind.DEVICE_ERROR]
    for _, kind, _, message in found["told"]:
        assert kind == "device_error"
        assert "uncorrectable ECC error encountered (GPU-0 of node" in message


def test_a_gpu_that_failed_is_quarantined_once_at_a_time_and_never_the_last_one(monkeypatch):
    occupied, ended = [], []
    monkeypatch.setattr(
        quarantine, "occupy", lambda place, seconds: occupied.append(place.gpus) or len(occupied)
    )
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
    """A hang names no GPU itself: the last trial of a sweep got the same one again, and was given
    up."""
    lost, decisions, retries = [], [], Retries()
    hung = TrialFailure(kind="hung", message="neither a result nor an epoch in 600 s")
    for trial_id in ("a", "b", "b", "b"):
        loop = SimpleNamespace(
            _take_messages=lambda wait: None,
            _attempt=lambda trial_id: Attempt(
                1, WorkerLocation(trial_id, "actor", "10.0.0.1", gpus="0")
            ),
            _watchdog=SimpleNamespace(failure=lambda trial_id: hung),
            _ended_without_report=lambda trial_id, failure: lost.append(failure),
        )
        loop._hang_failure = lambda trial_id, loop=loop: TrialLoop._hang_failure(loop, trial_id)
        trial = SimpleNamespace(config={TRIAL_ID: trial_id, ASSIGNMENT: None})
        TrialLoop.on_trial_error(loop, 0, [], trial)
        failure = lost[-1]
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
def test_a_hang_is_no_gpus_fault_if_it_is_not_known_which_gpu_the_trial_had(location):
    hung = TrialFailure(kind="hung", message="neither a result nor an epoch in 600 s")
    loop = SimpleNamespace(
        _attempt=lambda trial_id: Attempt(1, location),
        _watchdog=SimpleNamespace(failure=lambda trial_id: hung),
    )
    assert TrialLoop._hang_failure(loop, "t") == hung


def test_a_new_attempt_is_not_thought_to_run_where_the_last_one_did():
    """A worker that never answered had the GPU of the attempt before counted against it."""
    loop = SimpleNamespace(
        _attempts={"t": Attempt(1, WorkerLocation("t", "actor", "10.0.0.1"), "10.0.0.1")},
        _source=SimpleNamespace(
            trials={"t": "spec"}, assignment=lambda trial, resources: (trial, resources)
        ),
        _resources=SimpleNamespace(start_attempt=lambda trial: "resources"),
    )
    loop._attempt = partial(TrialLoop._attempt, loop)
    assert TrialLoop._assign(loop, "t") == ("spec", "resources")
    assert loop._attempts == {"t": Attempt(2)}


def test_a_gpu_that_fails_after_its_rest_rests_twice_as_long_until_it_has_a_result():
    health = NodeHealth()
    assert [health.count_gpu_failure("a", "0") for _ in range(5)] == [120, 240, 480, 960, 960]
    assert health.count_gpu_failure("a", "1") == 120
    for _ in range(2000):
        assert health.count_gpu_failure("a", "0") == MAX_QUARANTINE_S
    health.finished("a", "1")
    assert (health.count_gpu_failure("a", "0"), health.count_gpu_failure("a", "1")) == (960, 120)
