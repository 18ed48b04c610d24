"""What is left of a sweep, from the rates of trials that are done."""

import pytest

from orchestrator.planning.estimate import estimate, flops
from orchestrator.planning.plan import plan_sweep
from orchestrator.planning.sweep_file import parse_sweep
from orchestrator.results.state import State
from tests.unit.orchestrator.results.examples import trial_record, trial_result

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
def trials():
    return plan_sweep(parse_sweep(SWEEP, origin="mine.yaml")).trials


def record(trial, seconds, *, gpu_share=0.0, device="cpu", num_threads=1, status="done"):
    result = trial_result().model_copy(
        update={"device": device, "num_threads": num_threads, "status": status}
    )
    return trial_record(result, spec=trial, started_at=0.0, finished_at=seconds, gpu_share=gpu_share)


def cost(trials, *records):
    done = {
        f"{i}": record(trial, **given) for i, (trial, given) in enumerate(zip(trials, records, strict=False))
    }
    return estimate(trials[len(done) :], State(results=done).measured_trials(), share=0.25)


def test_core_hours_count_every_thread_of_a_trial(trials):
    # Two trials are left, each as long as the measured one: 100 s on four cores.
    assert cost(trials, {"seconds": 100.0, "num_threads": 4})["cpu_core_hours"] == pytest.approx(
        2 * 400 / 3600
    )


@pytest.mark.parametrize(("share", "gpu_seconds"), [({"gpu_share": 0.25}, 25.0), ({}, 100.0)])
def test_gpu_hours_count_a_trials_share_of_its_card(trials, share, gpu_seconds):
    found = cost(trials, {"seconds": 100.0, "device": "cuda:0", "num_threads": 4, **share})
    assert found["gpu_hours"] == pytest.approx(2 * gpu_seconds / 3600)


def test_diverged_trials_tell_no_rate(trials):
    found = cost(trials, {"seconds": 100.0}, {"seconds": 0.001, "status": "diverged"})
    assert found["cpu_core_hours"] == pytest.approx(100 / 3600)
    assert cost(trials, {"seconds": 0.001, "status": "diverged"})["measured_share"] == 0.0


def test_without_measured_trials_the_rate_is_assumed(trials):
    total = sum(flops(trial) for trial in trials)
    assert cost(trials)["cpu_core_hours"] == pytest.approx(total / 30e9 / 3600)
