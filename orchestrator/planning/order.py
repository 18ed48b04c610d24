"""In which order trials are offered: the longest first, as far as the arrays they share fit into memory."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from orchestrator.planning.measured import Expectation
from orchestrator.planning.plan import SweepPlan
from search_spaces.errors import SweepError
from search_spaces.trials import TrialSpec
from search_spaces.tuning import SearchTrialSpec

log = logging.getLogger(__name__)
Cell = TypeVar("Cell")


def order_trials(
    plan: SweepPlan, trials: Sequence[TrialSpec], budget: float, seconds: Mapping[str, float]
) -> list[TrialSpec]:
    """Return trials in the order in which they are offered, when arrays may take ``budget`` bytes at once.

    ``seconds`` are those of :func:`expected_seconds`.
    """
    return longest_first_within(
        trials,
        seconds=lambda trial: seconds[trial.trial_id],
        array=lambda trial: array_key(plan, trial),
        array_bytes=lambda trial: _array_bytes(plan, trial),
        budget=budget,
    )


def expected_seconds(trials: Iterable[TrialSpec], expectation: Expectation) -> dict[str, float]:
    """Return how long each trial is expected to take, by its id; infinite where nothing is known of it."""
    return {trial.trial_id: _seconds(trial, expectation) for trial in trials}


def array_key(plan: SweepPlan, trial: TrialSpec) -> str:
    """Name the arrays that a trial needs; trials of all sizes share them where no fault forbids it.

    Those of a search are of one size, and of one validation split each.
    """
    subset = trial.network.subset
    key = f"{subset.subset_id}@{plan.load_size(subset, trial.network.train_size)}"
    return f"{key}/{trial.validation.split}" if isinstance(trial, SearchTrialSpec) else key


def _array_bytes(plan: SweepPlan, trial: TrialSpec) -> int:
    network, prepared = trial.network, trial.network.subset.prepared
    num_images = plan.load_size(network.subset, network.train_size) + network.subset.test_size
    return num_images * prepared.channels * prepared.image_size**2


def _seconds(trial: TrialSpec, expectation: Expectation) -> float:
    try:
        return expectation.seconds(trial)
    except SweepError as error:  # it will say so itself, and soonest when it goes first
        log.warning("%s: %s", trial.trial_id, error)
        return math.inf


def longest_first_within(
    cells: Sequence[Cell],
    *,
    seconds: Callable[[Cell], float],
    array: Callable[[Cell], str],
    array_bytes: Callable[[Cell], int],
    budget: float,
) -> list[Cell]:
    """Return ``cells``, the longest first; where their arrays do not fit together, one shelf after another.

    A shelf is as many arrays as fit into half the budget, so that the next one can be filled while the last
    trials of the one before still run: nothing waits for a shelf to be done.

    Args:
        cells: to order; ties keep their order.
        seconds: how long a cell is expected to take, on any scale.
        array: name of the array that a cell needs.
        array_bytes: how large that array is.
        budget: bytes that arrays may take at once.
    """
    sizes = {array(cell): array_bytes(cell) for cell in cells}
    by_length = sorted(cells, key=lambda cell: -seconds(cell))
    if sum(sizes.values()) <= budget:
        return by_length
    shelf_of = _shelves((array(cell) for cell in by_length), sizes, budget / 2)
    return sorted(by_length, key=lambda cell: shelf_of[array(cell)])


def _shelves(names: Iterable[str], sizes: dict[str, int], room: float) -> dict[str, int]:
    """Return the shelf of each array, filled in the order in which the longest cells need them."""
    shelf_of: dict[str, int] = {}
    shelf, used = 0, 0.0
    for name in names:
        if name in shelf_of:
            continue
        if used and used + sizes[name] > room:
            shelf, used = shelf + 1, 0.0
        shelf_of[name] = shelf
        used += sizes[name]
    return shelf_of
