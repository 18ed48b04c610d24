"""The watchdog: ends trials that hang, and tells the user why no trial starts.

Ray itself waits forever and prints nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.results.records import FailureKind, TrialFailure
from orchestrator.running.queue import trial_id_of
from search_spaces.errors import SetupError
from tasks.clock import SYSTEM, Clock

WARN_AFTER_S = 60.0
"""Seconds without a running trial before the run prints what is missing, and between two checks."""
GIVE_UP_AFTER_S = 180.0
"""Seconds without a running trial, and without a worker that makes progress, before the run ends.
This holds for private clusters only: they never grow, and nobody else uses them."""
STARTING_CPU_S = 1.0
"""CPU seconds that a starting worker uses at least between two checks, a minute apart. With 80 busy
processes on two cores each gets 1.5 s of a minute."""
MAX_STARTING_S = 1800.0
"""Seconds without a running trial before the run ends although workers use CPU time. No import
takes half an hour."""
STOOD_STILL_S = 30.0
"""Seconds between two checks from which on the driver itself was stopped, so that no trial hung."""
WORKER_TIMEOUT_S = 60.0
"""Seconds that a worker may take to confirm that it has started its trial."""


@dataclass
class _WatchedTrial:
    """A trial that was sent to a worker.

    Attributes:
        silent_since: monotonic time of the trial's last message, in seconds.
        limit_s: seconds without a message after which the trial counts as hung.
        confirmed: whether the worker has confirmed the start of the trial.
    """

    silent_since: float
    limit_s: float
    confirmed: bool = False


class Watchdog:
    """Time limits for a run's trials, and for the wait until one starts.

    Args:
        note: prints a line for the user.
        killer_of: returns a function that kills a Tune trial's process; None if it has no process.
        shortage: returns text about the resources that a trial waits for.
        is_private: whether this run started the cluster. Only then may the watchdog end the run.
        cpu_seconds: returns the CPU seconds of Ray's worker processes on this machine, by id.
        clock: source of the time.
    """

    def __init__(
        self,
        note: Callable[[str], None],
        killer_of: Callable[[Any], Callable[[], object] | None],
        shortage: Callable[[], str],
        *,
        is_private: bool,
        cpu_seconds: Callable[[], Mapping[int, float]] = dict,
        clock: Clock = SYSTEM,
    ) -> None:
        self._note = note
        self._killer_of = killer_of
        self._shortage = shortage
        self._is_private = is_private
        self._cpu_seconds = cpu_seconds
        self._clock = clock
        self._watched: dict[str, _WatchedTrial] = {}
        self._failures: dict[str, TrialFailure] = {}
        now = clock.monotonic()
        self._ran_at = now
        self._progress_at = now
        self._asked_at = now
        self._checked_at = now
        self._last_shortage = ""
        self._cpu_before: Mapping[int, float] = {}

    def started(self, trial_id: str, limit_s: float) -> None:
        """Watch a starting trial, which counts as hung after ``limit_s`` s without a message."""
        self._failures.pop(trial_id, None)
        self._watched[trial_id] = _WatchedTrial(self._clock.monotonic(), limit_s)

    def message_from(self, trial_id: str) -> None:
        """Restart a trial's time limit after a message from its worker."""
        if trial_id in self._watched:
            watched = self._watched[trial_id]
            watched.silent_since = self._clock.monotonic()
            watched.confirmed = True

    def ended(self, trial_id: str) -> None:
        """Stop watching a trial that has ended."""
        self._watched.pop(trial_id, None)

    def failure(self, trial_id: str) -> TrialFailure | None:
        """Return the failure of a trial that the watchdog ended; None for any other."""
        return self._failures.get(trial_id)

    def check(self, trials: Collection[Any], running: Collection[str]) -> None:
        """End trials that hang, and print why no trial starts.

        Args:
            trials: Tune's trials.
            running: ids of the trials that should run.

        Raises:
            SetupError: no trial could start on a private cluster for minutes.
        """
        now = self._clock.monotonic()
        since_last_check = now - self._checked_at
        self._checked_at = now
        if since_last_check > STOOD_STILL_S:
            self._ran_at = self._progress_at = self._asked_at = now
            for watched in self._watched.values():
                watched.silent_since += since_last_check
        if not running or any(trial.status == "RUNNING" for trial in trials):
            if self._last_shortage and running:
                self._note(f"The first trial started after {now - self._ran_at:.0f} s.")
            self._ran_at = self._progress_at = now
            self._last_shortage = ""
        elif now - max(self._ran_at, self._asked_at) > WARN_AFTER_S:
            self._check_start(now)
        for trial in trials:
            trial_id = trial_id_of(trial)
            if trial_id in running and trial_id not in self._failures:
                self._end_if_silent(trial_id, self._killer_of(trial), now)

    def _check_start(self, now: float) -> None:
        """Print why no trial starts; end the run if a private cluster makes no progress."""
        self._asked_at = now
        waited_s = now - self._ran_at
        shortage = self._shortage()
        if shortage != self._last_shortage:
            self._last_shortage = shortage
            self._note(f"No trial could start for {waited_s:.0f} s: {shortage}")
        if not self._is_private:
            return
        if self._workers_progress():
            self._progress_at = now
        if now - self._progress_at > GIVE_UP_AFTER_S or waited_s > MAX_STARTING_S:
            raise SetupError(
                f"Ray started no trial on this machine for {waited_s:.0f} s: {shortage}",
                hint="Run `isweep doctor` to look for the cause, and end other programs if "
                "the machine is busy. Then run the same command again. Finished trials are "
                "kept",
            )

    def _workers_progress(self) -> bool:
        """Return whether a worker process of the last check has used CPU time since then.

        New processes do not count: workers that crash at their start also use CPU time.
        """
        cpu_before = self._cpu_before
        self._cpu_before = self._cpu_seconds()
        return any(
            cpu_s - cpu_before[pid] >= STARTING_CPU_S
            for pid, cpu_s in self._cpu_before.items()
            if pid in cpu_before
        )

    def _end_if_silent(self, trial_id: str, kill: Callable[[], object] | None, now: float) -> None:
        if kill is None:
            return
        # A reused worker first gets the trial; Tune calls the trial started when it answers.
        watched = self._watched.setdefault(trial_id, _WatchedTrial(now, WORKER_TIMEOUT_S))
        limit_s = watched.limit_s
        if not watched.confirmed:
            limit_s = min(limit_s, WORKER_TIMEOUT_S)
        if now - watched.silent_since <= limit_s:
            return
        if watched.confirmed:
            kind = FailureKind.HUNG
            message = (
                f"the trial ended no epoch and sent no result for {limit_s:.0f} s, which is far "
                "longer than expected"
            )
        else:
            kind = FailureKind.WORKER_CRASH
            message = f"the worker did not answer for {limit_s:.0f} s, so its process was killed"
            self._note(f"{trial_id}: {message}")
        self._failures[trial_id] = TrialFailure(kind=kind, message=message)
        kill()
