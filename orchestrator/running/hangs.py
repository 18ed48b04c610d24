"""Trials that hang: found by a limit from the time that was expected of them, and ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import ray

from orchestrator.results.records import FailureKind, TrialFailure
from search_spaces.trials import TrialSpec

HELD_UP_S = 30.0
"""A gap between two looks from which on it was the driver that stood still, and no trial is to blame."""


class HangWatch:
    """Watches the trials of one sweep.

    Args:
        limit: Seconds without a word after which a trial counts as hung; None sets no limit.
    """

    def __init__(self, limit: Callable[[TrialSpec], float] | None) -> None:
        self._limit = limit
        self._running: dict[str, tuple[float, float]] = {}
        self._hung: dict[str, float] = {}
        self._looked_at = time.monotonic()

    def started(self, cell: TrialSpec) -> None:
        """A trial begins, for the first time or again."""
        self._hung.pop(cell.trial_id, None)
        if self._limit is not None:
            self._running[cell.trial_id] = (time.monotonic(), self._limit(cell))

    def ended(self, trial_id: str) -> None:
        """A trial has its result."""
        self._running.pop(trial_id, None)

    def heard(self, trial_id: str) -> None:
        """A trial told of an epoch: it lives, however slow it is, and its limit begins anew."""
        if trial_id in self._running:
            self._running[trial_id] = (time.monotonic(), self._running[trial_id][1])

    def end_hung(self, trials: Iterable[Any]) -> None:
        """End the process of each of Tune's running ``trials`` that is past its limit."""
        now, before = time.monotonic(), self._looked_at
        self._looked_at = now
        if now - before > HELD_UP_S:
            self._running = {key: (start + now - before, m) for key, (start, m) in self._running.items()}
        for trial in trials:
            trial_id = str(trial.config["cell"]["trial_id"])
            start, limit = self._running.get(trial_id, (0.0, float("inf")))
            actor = trial.temporary_state.ray_actor
            if actor is not None and trial_id not in self._hung and now - start > limit:
                self._hung[trial_id] = limit
                ray.kill(actor)

    def failure(self, trial_id: str) -> TrialFailure | None:
        """Return the failure of a trial that was ended here; None for any other."""
        if trial_id not in self._hung:
            return None
        message = (
            f"neither a result nor an epoch in {self._hung[trial_id]:.0f} s, far beyond what was expected"
        )
        return TrialFailure(kind=FailureKind.HUNG, message=message)
