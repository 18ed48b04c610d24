"""Trials that hang, and workers that do not answer: found by a limit, and ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import ray

from orchestrator.results.records import FailureKind, TrialFailure

HELD_UP_S = 30.0
"""A gap between two looks from which on it was the driver that stood still, and no trial is to blame."""
ANSWERS_WITHIN_S = 60.0
"""How long a worker may take to say that it has the cell that it was given."""


@dataclass
class _Watched:
    """A trial that was given to a worker: since when it is silent, and how long it may be."""

    since: float
    limit_s: float
    answered: bool = False

    def overdue(self, now: float) -> float:
        """Return the limit that it is past, or 0."""
        limit = self.limit_s if self.answered else min(self.limit_s, ANSWERS_WITHIN_S)
        return limit if now - self.since > limit else 0.0


class HangWatch:
    """Watches the trials of one sweep.

    Args:
        say: Is told of a worker that does not answer.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._watched: dict[str, _Watched] = {}
        self._failures: dict[str, TrialFailure] = {}
        self._looked_at = time.monotonic()

    def started(self, trial_id: str, limit_s: float) -> None:
        """A trial begins, for the first time or again.

        Args:
            trial_id: Which.
            limit_s: Seconds without an epoch or a result after which it counts as hung.
        """
        self._failures.pop(trial_id, None)
        self._watched[trial_id] = _Watched(time.monotonic(), limit_s)

    def heard(self, trial_id: str) -> None:
        """A trial said where it runs, or told of an epoch: it lives, and its limit begins anew."""
        if trial_id in self._watched:
            watched = self._watched[trial_id]
            watched.since, watched.answered = time.monotonic(), True

    def ended(self, trial_id: str) -> None:
        """A trial has its result, or its process is gone."""
        self._watched.pop(trial_id, None)

    def end_hung(self, trials: Iterable[Any]) -> None:
        """End the process of each of Tune's ``trials`` that is past its limit."""
        now, before = time.monotonic(), self._looked_at
        self._looked_at = now
        if now - before > HELD_UP_S:
            for watched in self._watched.values():
                watched.since += now - before
        for trial in trials:
            trial_id, actor = str(trial.config["cell"]["trial_id"]), _actor_of(trial)
            if actor is None or trial_id in self._failures:
                continue
            # A worker that was used before is asked to take the cell; only then does the trial start.
            watched = self._watched.setdefault(trial_id, _Watched(now, ANSWERS_WITHIN_S))
            if limit := watched.overdue(now):
                self._failures[trial_id] = self._failure(trial_id, limit, answered=watched.answered)
                ray.kill(actor)

    def failure(self, trial_id: str) -> TrialFailure | None:
        """Return the failure of a trial that was ended here; None for any other."""
        return self._failures.get(trial_id)

    def _failure(self, trial_id: str, limit: float, *, answered: bool) -> TrialFailure:
        if answered:
            told = f"neither a result nor an epoch in {limit:.0f} s, far beyond what was expected"
            return TrialFailure(kind=FailureKind.HUNG, message=told)
        told = f"its worker did not answer for {limit:.0f} s and was ended"
        self._say(f"{trial_id}: {told}")
        return TrialFailure(kind=FailureKind.WORKER_CRASH, message=told)


def _actor_of(trial: Any) -> Any:
    """Return the actor that has a Tune trial, or None."""
    # Private: with a Ray that has it no more, hung trials are waited for (tests/contracts/test_internals.py).
    return getattr(getattr(trial, "temporary_state", None), "ray_actor", None)
