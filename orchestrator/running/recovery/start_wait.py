"""The wait until a trial starts. If it takes long, isweep prints what is missing, or ends the
run.

Ray itself prints nothing while no trial starts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from search_spaces.errors import SetupError

WARN_AFTER_S = 60.0
"""Seconds without a running trial after which the run checks and prints which resources are
missing. The check is repeated after the same time."""
GIVE_UP_AFTER_S = 180.0
"""Seconds without a running trial and without progress of a starting worker after which the
run ends. The limit applies only to private clusters, because resources of a shared cluster may
become free later."""
MIN_STARTING_CPU_S = 1.0
"""CPU seconds that a starting worker must use between two checks to count as making progress.
The checks are a minute apart. Even if 80 busy processes share two cores, each process gets 1.5
s of CPU time in a minute."""
MAX_STARTING_S = 1800.0
"""Seconds without a running trial after which the run ends, even if starting workers make
progress. No worker needs half an hour to import its modules."""


class StartWait:
    """The time limits of a run while trials wait and no trial runs. All times are monotonic,
    in seconds.

    Args:
        note: function that prints a line for the user.
        shortage: function that returns a text about the missing resources.
        is_private: True if this run started the cluster. On a shared cluster, a long wait does
            not end the run.
        cpu_seconds: function that returns the CPU seconds of Ray's worker processes on this
            machine, by process id. They show whether starting workers make progress.
        now: present time.
    """

    def __init__(
        self,
        note: Callable[[str], None],
        shortage: Callable[[], str],
        *,
        is_private: bool,
        cpu_seconds: Callable[[], Mapping[int, float]],
        now: float,
    ) -> None:
        self._note = note
        self._shortage = shortage
        self._is_private = is_private
        self._cpu_seconds = cpu_seconds
        self._began_at = now
        self._last_check_at = now
        self._last_progress_at = now
        self._cpu_before: Mapping[int, float] = {}
        self._printed_shortage = ""

    def note_running_trial(self, now: float) -> None:
        """End the wait because a trial runs. If missing resources were printed, print how long
        the wait took.
        """
        if self._printed_shortage:
            waited_s = now - self._began_at
            self._note(f"A trial started after {waited_s:.0f} s without a running trial.")
        self.note_empty_queue(now)

    def note_empty_queue(self, now: float) -> None:
        """End the wait because no trial is left to start."""
        self._printed_shortage = ""
        self.restart(now)

    def restart(self, now: float) -> None:
        """Restart all time limits, for example because the driver was suspended."""
        self._began_at = now
        self._last_check_at = now
        self._last_progress_at = now

    def check_waiting_trials(self, now: float) -> None:
        """Check once a minute why no trial starts, and print a new cause.

        Raises:
            SetupError: no trial could start on a private cluster for several minutes.
        """
        if now - self._last_check_at <= WARN_AFTER_S:
            return
        self._last_check_at = now
        waited_s = now - self._began_at
        shortage = self._shortage()
        if shortage != self._printed_shortage:
            self._printed_shortage = shortage
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

        A process that started after the last check does not count, because a worker that
        crashes when it starts also uses CPU time.
        """
        cpu_before = self._cpu_before
        self._cpu_before = self._cpu_seconds()
        return any(
            cpu_s - cpu_before[pid] >= MIN_STARTING_CPU_S
            for pid, cpu_s in self._cpu_before.items()
            if pid in cpu_before
        )
