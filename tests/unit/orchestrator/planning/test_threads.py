"""Hours by threads of a trial, against schedules worked out by hand."""

import pytest

from orchestrator.planning import estimate as estimating
from orchestrator.planning.estimate import hours_by_threads, threads_text
from orchestrator.planning.plan import plan_sweep
from orchestrator.planning.predict import MeasuredTrial, flops
from orchestrator.planning.sweep_file import parse_sweep

SWEEP = """
name: mine
models: [small_cnn, small_mlp]
datasets: [manifold_d4]
train_sizes: [20]
test_size: 20
image_size: 16
seeds: [0, 1, 2]
recipe: smoke
"""


@pytest.fixture(scope="module")
def trials():
    return plan_sweep(parse_sweep(SWEEP, origin="mine.yaml")).trials


def of_model(trials, name):
    return [trial for trial in trials if trial.network.model.name == name]


def measured(trial, threads, seconds, *, on_gpu=False):
    return MeasuredTrial(spec=trial, on_gpu=on_gpu, share=float(threads), seconds=seconds)


def test_three_trials_on_two_cores_end_first_with_two_threads_where_these_are_twice_as_fast(trials):
    left = of_model(trials, "small_cnn")
    # One thread: two trials, then the third, 20 s. Two threads: one after another, 5 s each.
    found = hours_by_threads(left, [measured(left[0], 1, 10.0), measured(left[0], 2, 5.0)], 2)
    assert found == {1: pytest.approx(20 / 3600), 2: pytest.approx(15 / 3600)}
    said = threads_text(found, 2)
    assert "0.0056 h with 1, 0.0042 h with 2; resources.num_cpus: 2 ends first" in said


def test_a_network_measured_with_one_number_of_threads_gains_what_others_do(trials):
    cnn, mlp = of_model(trials, "small_cnn")[0], of_model(trials, "small_mlp")[0]
    done = [measured(cnn, 1, 10.0), measured(cnn, 4, 4.0), measured(mlp, 1, 3.0)]
    found = hours_by_threads([mlp], done, 8)
    assert found == {1: pytest.approx(3 / 3600), 4: pytest.approx(1.2 / 3600)}


def test_a_network_that_was_never_measured_is_taken_for_a_middling_one(trials):
    cnn, mlp = of_model(trials, "small_cnn")[0], of_model(trials, "small_mlp")[0]
    found = hours_by_threads([mlp], [measured(cnn, 1, 10.0), measured(cnn, 2, 8.0)], 2)
    share = flops(mlp) / flops(cnn)
    # Nor can one be compared that was measured with a number of threads that no other had beside the fewest.
    assert hours_by_threads([mlp], [measured(cnn, 1, 10.0), measured(cnn, 2, 8.0), measured(mlp, 3, 1.0)], 2)[
        1
    ] == pytest.approx(10 * share / 3600)
    assert found == {1: pytest.approx(10 * share / 3600), 2: pytest.approx(8 * share / 3600)}


def test_without_two_measured_numbers_of_threads_that_fit_nothing_is_said(trials):
    cnn, mlp = of_model(trials, "small_cnn")[0], of_model(trials, "small_mlp")[0]
    one = measured(cnn, 1, 10.0)
    for done in ([], [one], [one, measured(mlp, 2, 1.0)], [one, measured(cnn, 2, 1.0, on_gpu=True)]):
        assert hours_by_threads(trials, done, 4) == {}
    assert hours_by_threads(trials, [one, measured(cnn, 8, 1.0)], 4) == {}
    assert hours_by_threads([], [one, measured(cnn, 2, 5.0)], 4) == {}
    assert threads_text({}, 4) == ""


def test_a_plan_says_it(trials, monkeypatch):
    monkeypatch.setattr(estimating.os, "cpu_count", lambda: 2)
    left = of_model(trials, "small_cnn")
    found = estimating.estimate(left, [measured(left[0], 1, 10.0), measured(left[0], 2, 5.0)])
    assert set(found["hours_by_threads"]) == {1, 2}
    assert "\non 2 cores, by measured threads of a trial:" in found["text"]
    assert "threads of a trial" not in estimating.estimate(left, [])["text"]
