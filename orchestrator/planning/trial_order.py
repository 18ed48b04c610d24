"""Order in which trials start: the longest first. If memory is short, trials start in batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from orchestrator.planning.costs.memory import array_bytes
from orchestrator.planning.plan import SweepPlan
from search_spaces.specs import TrialSpec
from search_spaces.tuning import SearchTrialSpec


def array_key(plan: SweepPlan, trial: TrialSpec) -> str:
    """Return the key of the arrays that a trial needs.

    Trials of all train sizes share their arrays. Exceptions: a fault of the study may make the
    images depend on the train size, and each validation split of a search has separate arrays.
    """
    subset = trial.network.subset
    key = f"{subset.subset_id}@{plan.load_size(subset, trial.network.train_size)}"
    if isinstance(trial, SearchTrialSpec):
        return f"{key}/{trial.validation.split}"
    return key


def order_trials(
    plan: SweepPlan, trials: Sequence[TrialSpec], budget: float, seconds: Mapping[str, float]
) -> list[TrialSpec]:
    """Return trials in the order in which they start: the longest first, or in batches.

    If the arrays of all trials need more memory than the budget, trials start in batches, one
    batch after the other. The arrays of one batch fit into half of the budget. So the next
    batch can be loaded while the last trials of a batch still run. Trials of equal length keep
    their order.

    Args:
        plan: The plan of the trials.
        trials: The trials to order.
        budget: Memory that arrays may use, bytes.
        seconds: Expected seconds of each trial, by its id.
    """
    by_length = sorted(trials, key=lambda trial: -seconds[trial.trial_id])
    keys = {trial.trial_id: array_key(plan, trial) for trial in by_length}
    sizes: dict[str, int] = {}
    for trial in by_length:
        num_loaded = plan.load_size(trial.network.subset, trial.network.train_size)
        sizes[keys[trial.trial_id]] = array_bytes(trial.network, num_loaded)
    if sum(sizes.values()) <= budget:
        return by_length
    batch_of: dict[str, int] = {}
    batch = 0
    used = 0
    for key, size in sizes.items():
        if used and used + size > budget / 2:
            batch += 1
            used = 0
        batch_of[key] = batch
        used += size
    return sorted(by_length, key=lambda trial: batch_of[keys[trial.trial_id]])
