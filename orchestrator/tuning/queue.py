"""The queue from which Ray Tune takes a search's trials: each is made when it is taken."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from orchestrator.running.feed import CellQueue
from orchestrator.tuning.search import Asked, Search
from search_spaces.errors import SweepError
from search_spaces.trials import TrialSpec

AHEAD = 2
"""Trials that may wait for their worker: a point that is asked for early knows less."""


class SearchQueue(CellQueue):
    """Trials of a search that wait, run, or are tried again later.

    Args:
        search: Says what is next.
        cells: Taken trials by id; added to here.
        note: Told of a trial before it is given out; an error of it ends the search.
    """

    def __init__(
        self, search: Search, cells: dict[str, TrialSpec], note: Callable[[Asked], None] = lambda asked: None
    ) -> None:
        super().__init__(deque())
        self._search, self._cells, self._note = search, cells, note
        self._waiting: set[str] = set()

    @property
    def empty(self) -> bool:
        """Whether the search is over, or no trials are given out any more."""
        return self.error is not None or (not (self.later or self.running) and self._search.done)

    def take(self, now: float) -> str | None:
        """Return the next trial, which runs from now on; None when none may be taken yet."""
        taken = super().take(now)
        if taken is None and self.error is None and len(self._waiting) < AHEAD:
            taken = self._asked_for()
        if taken is not None:
            self._waiting.add(taken)
        return taken

    def _asked_for(self) -> str | None:
        """Return a new trial of the search, if it has one."""
        asked = self._search.next()
        if asked is None:
            return None
        try:
            self._note(asked)
        except SweepError as error:
            self.error = error
            return None
        trial_id = asked.spec.trial_id
        self._cells[trial_id] = asked.spec
        self.running.add(trial_id)
        return trial_id

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
