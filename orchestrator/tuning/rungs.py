"""Which trials are stopped early: asynchronous successive halving over epochs.

Li et al., "A System for Massively Parallel Hyperparameter Tuning" (ASHA), MLSys 2020, in the form that stops:
a trial that comes to a rung goes on when it is among the best third of those that came there before, itself
included, once enough came to tell a third of them. Nobody waits for anybody.
"""

from __future__ import annotations

import math
from collections.abc import Hashable

REDUCTION = 3
RUNGS = (1 / 3,)
"""Shares of a whole training after which a trial is judged. An earlier rung, at a ninth, made searches on the
table of trainings worse than no stopping at all: rates that are best at first are not best at the end."""

BEFORE = 5
"""So many come to a rung before anybody is stopped there: among fewer the best third is the luckiest. At the
default budget of five trainings that stops nothing, which is what the table of trainings speaks for."""


def rung_epochs(num_epochs: int) -> tuple[int, ...]:
    """Return the epochs after which a trial is judged.

    Example:
        >>> rung_epochs(20), rung_epochs(100), rung_epochs(2)
        ((7,), (34,), (1,))
    """
    epochs = {math.ceil(num_epochs * share) for share in RUNGS}
    return tuple(sorted(epoch for epoch in epochs if epoch < num_epochs))


class Rungs:
    """The losses at every rung of every study.

    Args:
        reduction: one in so many goes on.
        before: see :data:`BEFORE`.
    """

    def __init__(self, reduction: int = REDUCTION, before: int = BEFORE) -> None:
        self._reduction, self._before = reduction, before
        self._losses: dict[tuple[Hashable, int], dict[str, float]] = {}

    def come(self, study: Hashable, trial_id: str, epoch: int, loss: float) -> bool:
        """Note a trial's loss at a rung; tell whether it goes on."""
        losses = self._losses.setdefault((study, epoch), {})
        losses[trial_id] = loss
        better = sum(other < loss for other in losses.values())
        return len(losses) <= self._before or better < math.ceil(len(losses) / self._reduction)
