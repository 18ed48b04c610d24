"""Watchdog: ends trials that hang and workers that do not answer, and says why no trial starts.

Ray itself waits silently, and for ever.
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
"""Seconds without a started trial before the run says what it waits for, and between two checks."""
GIVE_UP_AFTER_S = 180.0
"""Seconds without a started trial on a private cluster, in which no worker makes progress, before
the run ends. Such a cluster never grows, and nobody else holds anything of it."""
STARTING_CPU_S = 1.0
"""CPU seconds between two checks, a minute apart, that show that a worker is still starting. With
80 busy processes on two cores each gets 1.5 s of a minute."""
MAX_STARTING_S = 1800.0
"""Seconds after which the run ends even so: no import takes half an hour."""
STOOD_STILL_S = 30.0
"""Seconds between two checks from which on the driver stood still, and no trial is to blame."""
WORKER_TIMEOUT_S = 60.0
"""Seconds that a worker may take to confirm the trial that it was given."""


@dataclass
class _WatchedTrial:
    """A trial that was given to a worker.

    Attributes:
        silent_since: time of its last message.
        limit_s: seconds that it may be silent.
        confirmed: whether its worker has said that it runs.
    """

    silent_since: float
    limit_s: float
    confirmed: bool = False


class Watchdog:
    """The limits of a run's trials.

    Args:
        note: shows a line to the user.
        killer_of: returns how to kill the process of a Tune trial; None if it has none.
        shortage: returns what is missing for a trial to start.
        is_private: the cluster is this run's own, so waiting for it may be given up.
        cpu_seconds: returns the CPU time of each of Ray's worker processes here, by process id.
        clock: the time.
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
        """Watch a trial that starts; it counts as hung after ``limit_s`` seconds of silence."""
        self._failures.pop(trial_id, None)
        self._watched[trial_id] = _WatchedTrial(self._clock.monotonic(), limit_s)

    def message_from(self, trial_id: str) -> None:
        """Begin a trial's limit anew: it said where it runs, or that an epoch ended."""
        if trial_id in self._watched:
            watched = self._watched[trial_id]
            watched.silent_since = self._clock.monotonic()
            watched.confirmed = True

    def ended(self, trial_id: str) -> None:
        """Stop watching a trial: it has its result, or its process is gone."""
        self._watched.pop(trial_id, None)

    def failure(self, trial_id: str) -> TrialFailure | None:
        """Return the failure of a trial that the watchdog ended; None for any other."""
        return self._failures.get(trial_id)

    def check(self, trials: Collection[Any], running: Collection[str]) -> None:
        """End trials that are silent for too long, and say why none starts.

        Args:
            trials: Tune's trials.
            running: ids of those that should run.

        Raises:
            SetupError: on a private cluster no trial could start for minutes.
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
        """Say why no trial starts; end the run if that will not change."""
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
                hint="Run the same command again when the machine has less to do and bash is on "
                "PATH; finished trials are kept. Check other causes with `isweep doctor`",
            )

    def _workers_progress(self) -> bool:
        """Return whether a worker process that was there at the last check has computed since.

        A process that is new does not count: workers that die at once, and are started again, use
        CPU as well.
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
        # A worker that was used before is asked to take the trial; only then does Tune start it.
        watched = self._watched.setdefault(trial_id, _WatchedTrial(now, WORKER_TIMEOUT_S))
        limit_s = watched.limit_s
        if not watched.confirmed:
            limit_s = min(limit_s, WORKER_TIMEOUT_S)
        if now - watched.silent_since <= limit_s:
            return
        if watched.confirmed:
            kind = FailureKind.HUNG
            message = (
                f"the trial gave neither a result nor an epoch in {limit_s:.0f} s, far longer than "
                "expected"
            )
        else:
            kind = FailureKind.WORKER_CRASH
            message = f"the worker did not answer for {limit_s:.0f} s and was ended"
            self._note(f"{trial_id}: {message}")
        self._failures[trial_id] = TrialFailure(kind=kind, message=message)
        kill()
