"""Order in which trials are offered: the longest first, as far as their arrays fit in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from orchestrator.planning.costs.memory import array_bytes
from orchestrator.planning.plan import SweepPlan
from search_spaces.specs import TrialSpec
from search_spaces.tuning import SearchTrialSpec

# In which order trials are offered: the longest first, as far as the arrays they share fit into
# memory.


def array_key(plan: SweepPlan, trial: TrialSpec) -> str:
    """Name the arrays that a trial needs; all sizes share them unless a fault forbids it, splits do
    not.
    """
    subset = trial.network.subset
    key = f"{subset.subset_id}@{plan.load_size(subset, trial.network.train_size)}"
    return f"{key}/{trial.validation.split}" if isinstance(trial, SearchTrialSpec) else key


def order_trials(
    plan: SweepPlan, trials: Sequence[TrialSpec], budget: float, seconds: Mapping[str, float]
) -> list[TrialSpec]:
    """Return trials, the longest first; where their arrays do not fit together, one shelf after
    another.

    A shelf is as many arrays as fit into half the ``budget`` of bytes, so that the next one can be
    filled while the last trials of the one before still run: nothing waits for a shelf. Ties keep
    their order.
    """
    by_length = sorted(trials, key=lambda trial: -seconds[trial.trial_id])
    keys = {trial.trial_id: array_key(plan, trial) for trial in by_length}
    sizes = {
        keys[trial.trial_id]: array_bytes(
            trial.network, plan.load_size(trial.network.subset, trial.network.train_size)
        )
        for trial in by_length
    }
    if sum(sizes.values()) <= budget:
        return by_length
    shelf_of, shelf, used = dict[str, int](), 0, 0
    for key, size in sizes.items():
        if used and used + size > budget / 2:
            shelf, used = shelf + 1, 0
        shelf_of[key], used = shelf, used + size
    return sorted(by_length, key=lambda trial: shelf_of[keys[trial.trial_id]])
