"""The watchdog, which ends trials that hang. Ray has no time limit for a trial."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from orchestrator.results.records import FailureKind, TrialFailure
from orchestrator.running.queue import trial_id_of
from orchestrator.running.recovery.start_wait import StartWait
from tasks.clock import SYSTEM, Clock

MAX_CHECK_GAP_S = 30.0
"""Longest normal time between two checks, in seconds. If more time has passed, the driver
itself was suspended. The time limits of all trials are then extended by the time between the
checks."""
WORKER_TIMEOUT_S = 60.0
"""Seconds that a worker has to confirm the start of its trial. After this time, the worker
counts as dead."""


@dataclass
class _WatchedTrial:
    """A trial that was sent to a worker.

    Attributes:
        last_message_at: monotonic time of the trial's last message, in seconds.
        max_silence_s: seconds without a message after which the trial counts as hung.
        is_confirmed: True if the worker has confirmed the start of the trial.
    """

    last_message_at: float
    max_silence_s: float
    is_confirmed: bool = False

    @property
    def limit_s(self) -> float:
        """Seconds without a message after which the trial's process is killed."""
        if self.is_confirmed:
            return self.max_silence_s
        return min(self.max_silence_s, WORKER_TIMEOUT_S)

    @property
    def failure_if_killed(self) -> TrialFailure:
        """The failure that is stored for the trial if its process is killed now."""
        if self.is_confirmed:
            return TrialFailure(
                kind=FailureKind.HUNG,
                message="the trial finished no epoch and sent no result for "
                f"{self.limit_s:.0f} s, which is far longer than expected",
            )
        return TrialFailure(
            kind=FailureKind.WORKER_CRASH,
            message=f"the worker did not answer for {self.limit_s:.0f} s, so its process "
            "was killed",
        )


class Watchdog:
    """The time limits of a run's trials.

    Args:
        note: function that prints a line for the user.
        killer_of: function that returns a function to kill a Tune trial's process, or None if
            the trial has no process.
        start_wait: the wait until a trial starts. The watchdog also checks this wait. If the
            driver was suspended, the limits of both are extended.
        clock: source of the time.
    """

    def __init__(
        self,
        note: Callable[[str], None],
        killer_of: Callable[[Any], Callable[[], object] | None],
        start_wait: StartWait,
        clock: Clock = SYSTEM,
    ) -> None:
        self._note = note
        self._killer_of = killer_of
        self._start_wait = start_wait
        self._clock = clock
        self._watched: dict[str, _WatchedTrial] = {}
        self._failures: dict[str, TrialFailure] = {}
        self._last_check_at = clock.monotonic()

    def add(self, trial_id: str, max_silence_s: float) -> None:
        """Add a trial that starts now.

        Args:
            trial_id: id of the trial.
            max_silence_s: seconds without a message after which the trial counts as hung.
        """
        self._watched[trial_id] = _WatchedTrial(self._clock.monotonic(), max_silence_s)

    def note_message(self, trial_id: str) -> None:
        """Restart the time limit of a trial whose worker sent a message."""
        if trial_id in self._watched:
            watched = self._watched[trial_id]
            watched.last_message_at = self._clock.monotonic()
            watched.is_confirmed = True

    def remove(self, trial_id: str) -> None:
        """Remove the time limit and the failure of an attempt that has ended."""
        self._watched.pop(trial_id, None)
        self._failures.pop(trial_id, None)

    def failure_of(self, trial_id: str) -> TrialFailure | None:
        """Return the failure of an attempt that the watchdog ended, or None for any other
        attempt.

        The failure is available until :meth:`remove` is called for the trial.
        """
        return self._failures.get(trial_id)

    def check(self, trials: Collection[Any], submitted: Collection[str]) -> None:
        """End trials that hang, and print why no trial starts.

        Args:
            trials: all of Tune's trials, including trials that have ended.
            submitted: ids of the trials that were passed to Tune and have not ended.

        Raises:
            SetupError: no trial could start on a private cluster for several minutes.
        """
        now = self._clock.monotonic()
        gap_s = now - self._last_check_at
        self._last_check_at = now
        if gap_s > MAX_CHECK_GAP_S:
            self._extend_limits(gap_s, now)
        self._check_start_wait(trials, submitted, now)
        for trial in trials:
            trial_id = trial_id_of(trial)
            if trial_id in submitted and trial_id not in self._failures:
                self._end_if_silent(trial_id, self._killer_of(trial), now)

    def _check_start_wait(
        self, trials: Collection[Any], submitted: Collection[str], now: float
    ) -> None:
        """Print why no trial starts. End the run if no trial could start for several minutes."""
        if not submitted:
            self._start_wait.note_empty_queue(now)
        elif any(trial.status == "RUNNING" for trial in trials):
            self._start_wait.note_running_trial(now)
        else:
            self._start_wait.check_waiting_trials(now)

    def _extend_limits(self, gap_s: float, now: float) -> None:
        """Extend all time limits, because the driver was suspended for ``gap_s`` seconds."""
        self._start_wait.restart(now)
        for watched in self._watched.values():
            watched.last_message_at += gap_s

    def _end_if_silent(self, trial_id: str, kill: Callable[[], object] | None, now: float) -> None:
        """Kill the process of a trial that sent no message within its time limit."""
        if kill is None:
            return
        if trial_id not in self._watched:
            # `add` is called when the trial's worker answers. A reused worker may never
            # answer, so its time limit begins here.
            self._watched[trial_id] = _WatchedTrial(now, WORKER_TIMEOUT_S)
        watched = self._watched[trial_id]
        if now - watched.last_message_at <= watched.limit_s:
            return
        failure = watched.failure_if_killed
        if not watched.is_confirmed:
            self._note(f"{trial_id}: {failure.message}")
        self._failures[trial_id] = failure
        kill()
