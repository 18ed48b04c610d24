"""The queue from which Tune takes cells one by one, and into which a cell that failed goes back."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from ray.tune.search import Searcher

from search_spaces.errors import SweepError


@dataclass
class CellQueue:
    """Ids of cells that wait, run, or are tried again later.

    Attributes:
        ready: Waiting, in the order in which they are taken.
        later: When each cell that failed may be taken again, by a monotonic clock; ready cells go first.
        running: Taken and not settled.
        error: Why no more are given out, where something ended the sweep.
    """

    ready: deque[str]
    later: dict[str, float] = field(default_factory=dict)
    running: set[str] = field(default_factory=set)
    error: SweepError | None = None

    @classmethod
    def of(cls, trial_ids: Iterable[str]) -> CellQueue:
        """Return a queue in which these wait."""
        return cls(deque(trial_ids))

    @property
    def empty(self) -> bool:
        """Whether every cell is settled, or none is given out any more."""
        return self.error is not None or not (self.ready or self.later or self.running)

    def take(self, now: float) -> str | None:
        """Return the next cell, which runs from now on; None when none may be taken yet."""
        if self.error is not None:
            return None
        due = min(self.later, key=self.later.__getitem__, default=None)
        if self.ready:
            taken = self.ready.popleft()
        elif due is not None and self.later[due] <= now:
            taken = due
            del self.later[due]
        else:
            return None
        self.running.add(taken)
        return taken

    def settle(self, trial_id: str) -> None:
        """A cell has its result, or has failed for good."""
        self.running.discard(trial_id)

    def again(self, trial_id: str, at: float) -> None:
        """A cell that ran may be taken again from the time ``at`` on."""
        self.running.discard(trial_id)
        self.later[trial_id] = at


class Feed(Searcher):  # type: ignore[misc]  # Ray ships without types
    """Gives Tune one cell at a time; ``config`` makes what its worker needs of it."""

    def __init__(self, queue: CellQueue, config: Callable[[str], dict[str, Any]]) -> None:
        super().__init__()
        self._queue, self._config = queue, config

    # Tune saves its searcher in its own state, of which nothing is ever read back.
    def __getstate__(self) -> dict[str, Any]:
        return {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the next cell, ``FINISHED``, or None for "not yet"."""
        if self._queue.empty:
            return str(Searcher.FINISHED)
        cell = self._queue.take(time.monotonic())
        return None if cell is None else self._config(cell)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Learn nothing: the sweep's bookkeeping settles cells."""

    def save(self, checkpoint_path: str) -> None:
        """Save nothing."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing."""
