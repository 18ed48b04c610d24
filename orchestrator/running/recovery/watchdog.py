"""The watchdog: it ends trials that hang, and prints why no trial starts.

Ray has no time limit for a trial, and prints nothing while no trial starts.
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
"""Seconds without a running trial before the run prints which resources are missing. Also the
seconds between two such checks."""
GIVE_UP_AFTER_S = 180.0
"""Seconds without a running trial and without progress of a worker before the run ends. The limit
is for private clusters only, because a shared cluster may get free resources later."""
MIN_STARTING_CPU_S = 1.0
"""Least CPU seconds that a starting worker uses between two checks, which are a minute apart. With
80 busy processes on two cores, each process gets 1.5 s in a minute."""
MAX_STARTING_S = 1800.0
"""Seconds without a running trial before the run ends, even if workers use CPU time. No import
takes half an hour."""
MAX_CHECK_GAP_S = 30.0
"""Seconds between two checks. If two checks are further apart, the driver itself was suspended, and
the time limits of all trials are extended by the gap."""
WORKER_TIMEOUT_S = 60.0
"""Seconds after which a worker counts as dead if it has not confirmed the start of its trial."""


@dataclass
class _WatchedTrial:
    """A trial that was sent to a worker.

    Attributes:
        last_message_at: monotonic time of the trial's last message, in seconds.
        limit_s: seconds without a message after which the trial counts as hung.
        is_confirmed: True if the worker has confirmed the start of the trial.
    """

    last_message_at: float
    limit_s: float
    is_confirmed: bool = False


class Watchdog:
    """The time limits for a run's trials, and for the wait until a trial starts.

    Args:
        note: prints a line for the user.
        killer_of: returns a function that kills a Tune trial's process; None if it has no process.
        shortage: returns text about the resources that a trial waits for.
        is_private: True if this run started the cluster. Only then may the watchdog end the run.
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
        # Monotonic times in seconds.
        self._last_check_at = now
        self._last_running_at = now
        self._last_report_at = now
        self._last_progress_at = now
        self._last_shortage = ""
        self._cpu_before: Mapping[int, float] = {}

    def add(self, trial_id: str, limit_s: float) -> None:
        """Add a starting trial, with its time limit ``limit_s`` in seconds between two messages."""
        self._failures.pop(trial_id, None)
        self._watched[trial_id] = _WatchedTrial(self._clock.monotonic(), limit_s)

    def message_from(self, trial_id: str) -> None:
        """Restart the time limit of a trial whose worker sent a message."""
        if trial_id in self._watched:
            watched = self._watched[trial_id]
            watched.last_message_at = self._clock.monotonic()
            watched.is_confirmed = True

    def remove(self, trial_id: str) -> None:
        """Remove the time limit of a trial that has ended."""
        self._watched.pop(trial_id, None)

    def failure(self, trial_id: str) -> TrialFailure | None:
        """Return the failure of a trial that the watchdog ended; None for any other trial."""
        return self._failures.get(trial_id)

    def check(self, trials: Collection[Any], submitted: Collection[str]) -> None:
        """End trials that hang, and print why no trial starts.

        Args:
            trials: Tune's trials.
            submitted: ids of the trials that were passed to Tune and have not ended.

        Raises:
            SetupError: no trial could start on a private cluster for minutes.
        """
        now = self._clock.monotonic()
        gap_s = now - self._last_check_at
        self._last_check_at = now
        if gap_s > MAX_CHECK_GAP_S:
            self._extend_limits(gap_s, now)
        if not submitted or any(trial.status == "RUNNING" for trial in trials):
            if self._last_shortage and submitted:
                waited_s = now - self._last_running_at
                self._note(f"A trial started after {waited_s:.0f} s without a running trial.")
            self._last_running_at = now
            self._last_progress_at = now
            self._last_shortage = ""
        elif now - max(self._last_running_at, self._last_report_at) > WARN_AFTER_S:
            self._report_shortage(now)
        for trial in trials:
            trial_id = trial_id_of(trial)
            if trial_id in submitted and trial_id not in self._failures:
                self._end_if_silent(trial_id, self._killer_of(trial), now)

    def _extend_limits(self, gap_s: float, now: float) -> None:
        """Extend all time limits, because the driver was suspended for ``gap_s`` seconds."""
        self._last_running_at = now
        self._last_report_at = now
        self._last_progress_at = now
        for watched in self._watched.values():
            watched.last_message_at += gap_s

    def _report_shortage(self, now: float) -> None:
        """Print why no trial starts, and end the run if a private cluster makes no progress."""
        self._last_report_at = now
        waited_s = now - self._last_running_at
        shortage = self._shortage()
        if shortage != self._last_shortage:
            self._last_shortage = shortage
            self._note(f"No trial could start for {waited_s:.0f} s: {shortage}")
        if not self._is_private:
            return
        if self._workers_progress():
            self._last_progress_at = now
        if now - self._last_progress_at > GIVE_UP_AFTER_S or waited_s > MAX_STARTING_S:
            raise SetupError(
                f"Ray started no trial on this machine for {waited_s:.0f} s: {shortage}",
                hint="Run `isweep doctor` to look for the cause, and end other programs if "
                "the machine is busy. Then run the same command again. Finished trials are "
                "kept",
            )

    def _workers_progress(self) -> bool:
        """Return whether a worker process has used CPU time since the last check.

        A process that is newer than the last check does not count, because a worker that crashes at
        its start also uses CPU time.
        """
        cpu_before = self._cpu_before
        self._cpu_before = self._cpu_seconds()
        return any(
            cpu_s - cpu_before[pid] >= MIN_STARTING_CPU_S
            for pid, cpu_s in self._cpu_before.items()
            if pid in cpu_before
        )

    def _end_if_silent(self, trial_id: str, kill: Callable[[], object] | None, now: float) -> None:
        """Kill the process of a trial that sent no message within its time limit."""
        if kill is None:
            return
        # Tune reports the start of a trial only when its worker answers. Until then a reused worker
        # has no entry here.
        watched = self._watched.setdefault(trial_id, _WatchedTrial(now, WORKER_TIMEOUT_S))
        limit_s = watched.limit_s
        if not watched.is_confirmed:
            limit_s = min(limit_s, WORKER_TIMEOUT_S)
        if now - watched.last_message_at <= limit_s:
            return
        if watched.is_confirmed:
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
