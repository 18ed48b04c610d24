"""The queue from which Ray Tune takes a search's trials: each is made when it is taken."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from orchestrator.running.feed import CellQueue
from orchestrator.tuning.search import Asked, Search
from search_spaces.trials import TrialSpec

AHEAD = 2
"""Trials that may wait for their worker: a point that is asked for early knows less."""


class SearchQueue(CellQueue):
    """Trials of a search that wait, run, or are tried again later.

    Args:
        search: Says what is next.
        cells: Taken trials by id; added to here.
    """

    def __init__(self, search: Search, cells: dict[str, TrialSpec]) -> None:
        super().__init__(deque())
        self._search, self._cells = search, cells
        self._waiting: set[str] = set()
        self.on_asked: Callable[[Asked], None] = lambda asked: None
        """Told of a trial before it is given out; may close the queue."""

    @property
    def empty(self) -> bool:
        """Whether the search is over, or no trials are given out any more."""
        return self.closed or (not (self.later or self.running) and self._search.done)

    def take(self, now: float) -> str | None:
        """Return the next trial, which runs from now on; None when none may be taken yet."""
        taken = super().take(now)
        if taken is None and not self.closed and len(self._waiting) < AHEAD:
            asked = self._search.next()
            if asked is not None:
                self.on_asked(asked)
            if asked is not None and not self.closed:
                taken = asked.spec.trial_id
                self._cells[taken] = asked.spec
                self.running.add(taken)
        if taken is not None:
            self._waiting.add(taken)
        return taken

    def started(self, trial_id: str) -> None:
        """A trial has its worker."""
        self._waiting.discard(trial_id)

    def settle(self, trial_id: str) -> None:
        """See :meth:`CellQueue.settle`."""
        self._waiting.discard(trial_id)
        super().settle(trial_id)

    def again(self, trial_id: str, at: float) -> None:
        """See :meth:`CellQueue.again`."""
        self._waiting.discard(trial_id)
        super().again(trial_id, at)
