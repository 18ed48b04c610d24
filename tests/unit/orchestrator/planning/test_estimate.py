"""What is left of a sweep, from the rates of trials that are done."""

import pytest

from orchestrator.planning.estimate import estimate, flops
from orchestrator.planning.paths import RootPaths
from orchestrator.planning.plan import plan_sweep
from orchestrator.planning.sweep_file import parse_sweep
from orchestrator.planning.workspace import State, Workspace
from orchestrator.results.store import ResultStore

SWEEP = """
name: mine
models: [small_cnn]
datasets: [manifold_d4]
train_sizes: [20]
test_size: 20
image_size: 16
seeds: [0, 1, 2]
recipe: smoke
"""


@pytest.fixture
def workspace(tmp_path):
    plan = plan_sweep(parse_sweep(SWEEP, origin="mine.yaml"))
    return Workspace(plan, RootPaths.create(str(tmp_path)), ResultStore(str(tmp_path / "store")))


def state(results):
    return State(results, {}, frozenset(), frozenset(), frozenset(), [])


def record(seconds, **changes):
    cell = {"status": "done", "device": "cpu", "num_threads": 1, "started_at": 0.0, "finished_at": seconds}
    return {**cell, **changes}


def cost(workspace, *records):
    ids = list(workspace.plan.trials_by_id)
    return estimate(workspace, state(dict(zip(ids, records, strict=False))))


def test_core_hours_count_every_thread_of_a_trial(workspace):
    # Two trials are left, each as long as the measured one: 100 s on four cores.
    assert cost(workspace, record(100.0, num_threads=4))["cpu_core_hours"] == pytest.approx(2 * 400 / 3600)


@pytest.mark.parametrize(("share", "gpu_seconds"), [({"gpu_share": 0.25}, 25.0), ({}, 100.0)])
def test_gpu_hours_count_a_trials_share_of_its_card(workspace, share, gpu_seconds):
    found = cost(workspace, record(100.0, device="cuda:0", num_threads=4, **share))
    assert found["gpu_hours"] == pytest.approx(2 * gpu_seconds / 3600)


def test_diverged_trials_tell_no_rate(workspace):
    found = cost(workspace, record(100.0), record(0.001, status="diverged"))
    assert found["cpu_core_hours"] == pytest.approx(100 / 3600)
    assert cost(workspace, record(0.001, status="diverged"))["measured_share"] == 0.0


def test_without_measured_trials_the_rate_is_assumed(workspace):
    total = sum(flops(trial) for trial in workspace.plan.trials_by_id.values())
    assert cost(workspace)["cpu_core_hours"] == pytest.approx(total / 30e9 / 3600)
