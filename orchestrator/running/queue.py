"""The queue of a run's trials, and the generator through which Ray Tune takes them from it.

Tune only executes. Which trial is next, and which is tried again, is decided here and in
:mod:`orchestrator.running.trials`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from ray.tune.search import Searcher

from orchestrator.running.messages import TrialAssignment
from search_spaces.errors import SweepError
from tasks.clock import SYSTEM, Clock

TRIAL_ID = "trial_id"
"""Key of the trial's id in the configuration of a Tune trial."""
ASSIGNMENT = "assignment"
"""Key of its :class:`TrialAssignment`; None once the trial has ended."""


@dataclass
class TrialQueue:
    """Ids of the trials of a run, by what they wait for.

    Attributes:
        ready: trials that may start now, in their order.
        retry_at: when each failed trial may be tried again, by a monotonic clock; they come after
            those that are ready.
        running: trials that were given to Tune.
        started: those of ``running`` that have their worker.
        error: why the run ends; no trial is given out any more. None while it goes on.
    """

    ready: deque[str]
    retry_at: dict[str, float] = field(default_factory=dict)
    running: set[str] = field(default_factory=set)
    started: set[str] = field(default_factory=set)
    error: SweepError | None = None

    @property
    def is_empty(self) -> bool:
        """True if every trial is settled, or none is given out any more."""
        if self.error is not None:
            return True
        return not (self.ready or self.retry_at or self.running)

    def take(self, now: float) -> str | None:
        """Return the next trial, which is running from now on; None if none may start yet."""
        if self.error is not None:
            return None
        if self.ready:
            trial_id = self.ready.popleft()
        elif self.retry_at and min(self.retry_at.values()) <= now:
            trial_id = min(self.retry_at, key=self.retry_at.__getitem__)
            del self.retry_at[trial_id]
        else:
            return None
        self.running.add(trial_id)
        self.started.discard(trial_id)
        return trial_id

    def settle(self, trial_id: str) -> None:
        """Remove a trial that has its result, or that failed for good."""
        self.running.discard(trial_id)

    def retry(self, trial_id: str, at: float) -> None:
        """Let a trial that ran be taken again from the time ``at`` on."""
        self.running.discard(trial_id)
        self.retry_at[trial_id] = at


class TrialGenerator(Searcher):  # type: ignore[misc]  # Ray ships without types
    """Gives Tune one trial at a time.

    Args:
        queue: the trials.
        assign: returns what a trial's worker is given.
        clock: the time.
    """

    def __init__(
        self,
        queue: TrialQueue,
        assign: Callable[[str], TrialAssignment],
        clock: Clock = SYSTEM,
    ) -> None:
        super().__init__()
        self._queue = queue
        self._assign = assign
        self._clock = clock

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Tune saves its state, and nothing is ever restored from it."""
        return {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the configuration of the next trial, ``FINISHED``, or None for "not yet".

        ``trial_id`` is Tune's own id, which is of no use here.
        """
        if self._queue.is_empty:
            return str(Searcher.FINISHED)
        next_id = self._queue.take(self._clock.monotonic())
        if next_id is None:
            return None
        return {TRIAL_ID: next_id, ASSIGNMENT: self._assign(next_id)}

    def on_trial_complete(self, *_: Any, **__: Any) -> None:
        """Do nothing: :class:`~orchestrator.running.trials.TrialLoop` settles trials."""

    save = restore = on_trial_complete


def trial_id_of(trial: Any) -> str:
    """Return the id of the trial that a Tune trial runs."""
    return str(trial.config[TRIAL_ID])


def assignment_of(trial: Any) -> TrialAssignment:
    """Return what the worker of a Tune trial was given."""
    assignment: TrialAssignment = trial.config[ASSIGNMENT]
    return assignment


def release(trial: Any) -> None:
    """Free the memory of a Tune trial that has ended; its result is in the store.

    Tune holds every trial until the last one has ended. Each holds copies of its configuration, its
    whole report, statistics of every number in the report, and an object of Ray's.
    """
    trial.config[ASSIGNMENT] = None
    # Private: with a Ray that lacks these, the driver grows by 20 kB for each trial.
    with suppress(AttributeError):
        trial.evaluated_params = {}
        trial.experiment_tag = ""
        metadata = trial.run_metadata
        metadata.last_result = {}
        metadata.metric_analysis = {}
        metadata.metric_n_steps = {}
        # The answer to a question that Tune asks each trial's actor; Ray keeps both.
        trial._default_result_or_future = None
