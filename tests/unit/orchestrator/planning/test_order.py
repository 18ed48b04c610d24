"""Order against what it promises: longest first, arrays in memory bounded."""

import pytest

from orchestrator.planning.estimate import order_trials
from orchestrator.planning.plan import plan_sweep
from orchestrator.planning.predict import array_bytes
from orchestrator.planning.sweep_file import parse_sweep

SWEEP = """
name: mine
models: [small_cnn]
datasets: [{name: mnist5k, class_pairs: [[0, 1], [2, 3], [4, 5], [6, 7]]}]
train_sizes: [20]
test_size: 20
image_size: 28
seeds: [1, 5, 3]
recipe: smoke
"""
PLAN = plan_sweep(parse_sweep(SWEEP, origin="mine.yaml"))
ONE = array_bytes(PLAN.trials[0].network)


def ordered(budget):
    """Array and seconds of each trial, where arrays may take so many times that of one: seeds are seconds."""
    seconds = {trial.trial_id: float(trial.network.seed) for trial in PLAN.trials}
    order = order_trials(PLAN, PLAN.trials, budget * ONE, seconds)
    return [(trial.network.subset.class_pair[0] // 2, trial.network.seed) for trial in order]


def test_the_longest_go_first_over_all_arrays_where_all_fit():
    assert ordered(4) == [(array, seconds) for seconds in (5, 3, 1) for array in range(4)]


@pytest.mark.parametrize("budget", [3.9, 0.5])
def test_where_they_do_not_fit_a_shelf_is_what_fits_half_the_budget(budget):
    """One array in 1.95 of them; and one that is larger than all the budget has a shelf of its own."""
    assert ordered(budget) == [(array, seconds) for array in range(4) for seconds in (5, 3, 1)]
