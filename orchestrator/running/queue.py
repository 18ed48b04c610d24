"""The queue of a run's trials, and the generator from which Ray Tune gets them.

Tune only executes trials. Whenever Tune can start a trial, it requests one from
:class:`TrialGenerator`. The generator takes the next trial from :class:`TrialQueue`, and gets
the assignment for the worker from :class:`~orchestrator.running.trials.TrialLoop`. The loop
also puts trials that are tried again back into the queue.

An assignment contains no images and no files. A worker gets the reference of its images from
an actor on the driver's node. It stores its files through a second actor
(:mod:`orchestrator.running.actors`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from ray.tune.search import Searcher

from orchestrator.running.messages import TrialAssignment
from search_spaces.errors import SweepError
from tasks.clock import SYSTEM, Clock

TRIAL_ID = "trial_id"
"""Key under which the configuration of a Tune trial contains the trial's id."""
ASSIGNMENT = "assignment"
"""Key under which the configuration of a Tune trial contains the :class:`TrialAssignment`.
When the trial ends, the value becomes None."""


@dataclass
class TrialQueue:
    """The ids of a run's trials, sorted by the state of the trial.

    Attributes:
        ready: trials that may start now, in their order.
        retry_at: monotonic time in seconds at which each failed trial may start again, by
            trial id. Failed trials start only after all ``ready`` trials, even if their time
            comes earlier.
        submitted: trials that were passed to Tune and have not ended.
        running: the trials in ``submitted`` that have a worker.
        stop_error: the error that stops the run, or None. After such an error, no further
            trial starts.
    """

    ready: deque[str]
    retry_at: dict[str, float] = field(default_factory=dict)
    submitted: set[str] = field(default_factory=set)
    running: set[str] = field(default_factory=set)
    stop_error: SweepError | None = None

    @property
    def is_stopped(self) -> bool:
        """True if an error stops the run."""
        return self.stop_error is not None

    def stop(self, error: SweepError) -> None:
        """Save the error that stops the run. No further trial starts."""
        self.stop_error = error

    def raise_if_stopped(self) -> None:
        """Raise the error that stops the run, if there is one."""
        if self.stop_error is not None:
            raise self.stop_error

    @contextmanager
    def stop_on_error(self) -> Iterator[None]:
        """Catch a SweepError that the ``with`` block raises, and stop the run with this error.

        :meth:`raise_if_stopped` raises the error later. If a callback raised the error, Tune
        would treat it as a failure of Tune itself.
        """
        try:
            yield
        except SweepError as error:
            self.stop(error)

    @property
    def is_finished(self) -> bool:
        """True if no trial is left, or if an error stops the run."""
        if self.is_stopped:
            return True
        return not (self.ready or self.retry_at or self.submitted)

    def take(self, now: float) -> str | None:
        """Return the id of the next trial, and count this trial as submitted. Return None if
        no trial may start now.
        """
        if self.is_stopped:
            return None
        if self.ready:
            trial_id = self.ready.popleft()
        elif self.retry_at and min(self.retry_at.values()) <= now:
            trial_id = min(self.retry_at, key=self.retry_at.__getitem__)
            del self.retry_at[trial_id]
        else:
            return None
        self.submitted.add(trial_id)
        return trial_id

    def start(self, trial_id: str) -> None:
        """Count a submitted trial as running. It has a worker now."""
        self.running.add(trial_id)

    def remove(self, trial_id: str) -> None:
        """Remove a submitted trial that has a result, or that gets no further attempt."""
        self.submitted.discard(trial_id)
        self.running.discard(trial_id)

    def retry(self, trial_id: str, at: float) -> None:
        """Let a submitted trial start again at the monotonic time ``at``."""
        self.submitted.discard(trial_id)
        self.running.discard(trial_id)
        self.retry_at[trial_id] = at


class TrialGenerator(Searcher):  # type: ignore[misc]  # Ray ships without types
    """Search algorithm for Tune that returns the trials of the queue, one at a time.

    Args:
        queue: the trials.
        start_attempt: function that counts a new attempt at a trial and returns the assignment
            for its worker.
        clock: source of the time.
    """

    def __init__(
        self,
        queue: TrialQueue,
        start_attempt: Callable[[str], TrialAssignment],
        clock: Clock = SYSTEM,
    ) -> None:
        super().__init__()
        self._queue = queue
        self._start_attempt = start_attempt
        self._clock = clock

    def __getstate__(self) -> dict[str, Any]:
        """Return an empty state. Tune saves this state, but isweep never restores it."""
        return {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the configuration of the next trial.

        Return ``FINISHED`` if no trial is left. Return None if no trial may start now.
        ``trial_id`` is Tune's id of the trial. It is not used.
        """
        if self._queue.is_finished:
            return str(Searcher.FINISHED)
        next_id = self._queue.take(self._clock.monotonic())
        if next_id is None:
            return None
        return {TRIAL_ID: next_id, ASSIGNMENT: self._start_attempt(next_id)}

    def on_trial_complete(self, *_: Any, **__: Any) -> None:
        """Do nothing: :class:`~orchestrator.running.trials.TrialLoop` handles ended trials."""

    def save(self, *_: Any, **__: Any) -> None:
        """Save nothing: isweep resumes a run from its own store."""

    def restore(self, *_: Any, **__: Any) -> None:
        """Restore nothing: isweep resumes a run from its own store."""


def trial_id_of(trial: Any) -> str:
    """Return the id of isweep's trial that a Tune trial runs."""
    return str(trial.config[TRIAL_ID])


def assignment_of(trial: Any) -> TrialAssignment:
    """Return the assignment of a Tune trial."""
    assignment: TrialAssignment = trial.config[ASSIGNMENT]
    return assignment


def free_memory(trial: Any) -> None:
    """Free the memory of an ended Tune trial. Its outcome is already in the store.

    Tune's list of trials stays in memory until the last trial ends. Each Tune trial contains
    copies of its configuration and its report, statistics of every number in the report, and a
    Ray object.
    """
    trial.config[ASSIGNMENT] = None
    # These attributes are private. If a version of Ray lacks them, the driver needs 20 kB more
    # for each trial.
    with suppress(AttributeError):
        trial.evaluated_params = {}
        trial.experiment_tag = ""
        metadata = trial.run_metadata
        metadata.last_result = {}
        metadata.metric_analysis = {}
        metadata.metric_n_steps = {}
        # Reference of a result that Tune requested. Ray keeps the result until it is removed.
        trial._default_result_or_future = None
