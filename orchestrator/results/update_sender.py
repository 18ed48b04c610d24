"""A thread that sends updates to MLflow. Other threads can wait for this thread.

The thread works in rounds. A round sends each update of the table once, and the next round
starts after a pause. An update of the table has one of these states:

=========  ======================================  ============================================
state      event                                   next state
=========  ======================================  ============================================
sendable   MLflow stores the update                removed from the table
sendable   the attempt fails, but a later one may  sendable, behind all others; the round ends
           succeed
sendable   MLflow refuses the update               held back
sendable   MLflow refuses the connection           held back, with all other updates
sendable   the attempt fails in the last round     held back
sendable   the sender gives up                     held back
any        a newer update of the run arrives       replaced; the newer update is sendable
=========  ======================================  ============================================

Other threads can wait until no sendable update is left. A wait has two limits: the longest
time without progress, and the longest time in total.

:class:`~orchestrator.results.pending_updates.PendingUpdates` explains updates that are held
back. If a newer update replaces an update while it is being sent, the outcome of this attempt
is ignored.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from orchestrator.results.flat_runs import LiveRun
from orchestrator.results.mlflow_errors import (
    MISSING_CODE,
    error_code,
    first_line,
    is_refusal,
)
from orchestrator.results.outage_notes import OutageNotes
from orchestrator.results.pending_updates import (
    EndSweep,
    FinishedRun,
    PendingUpdates,
    SweepReport,
    Update,
)
from orchestrator.results.round_pauses import RoundPauses
from tasks.clock import Clock

if TYPE_CHECKING:
    from orchestrator.results.mlflow_runs import SweepRuns

log = logging.getLogger(__name__)

JOIN_S = 1.0
"""Longest wait for the end of the thread, seconds. The thread may still be waiting for a
server."""


@dataclass(frozen=True)
class WaitLimit:
    """The limits of a wait for the thread.

    Attributes:
        idle_s: Seconds without progress after which the wait ends.
        total_s: Seconds after which the wait ends, even if MLflow makes progress.
    """

    idle_s: float
    total_s: float = math.inf


class UpdateSender:
    """A thread that sends the updates of a table to MLflow.

    Args:
        connect: Function that connects to MLflow and returns the sweep's runs. The thread
            calls this function until it succeeds. If None, nothing is sent and no thread is
            started.
        print_note: Function that prints a message for the user.
        clock: Clock that measures and waits.

    Attributes:
        lock: Condition with a reentrant lock. The lock protects ``pending``, ``running``, the
            pauses and the number of steps. Waiting threads are notified of new updates and of
            progress.
        pending: Table of the updates that MLflow lacks.
        running: Keys of the trials that run. Their runs in MLflow stay open.
        runs: The sweep's runs in MLflow, or None without a connection. Only the sending thread
            changes this attribute.
        counts: Number of runs in MLflow by the change that was made to them: ``replayed`` for
            results that were sent, ``closed`` for runs that were ended, and ``duplicates`` for
            runs that were deleted.
        last_error: The last error of the thread, or None if there was no error.
    """

    def __init__(
        self,
        connect: Callable[[], SweepRuns] | None,
        print_note: Callable[[str], None],
        clock: Clock,
    ) -> None:
        self.lock = clock.condition()
        self.pending = PendingUpdates()
        self.running = set[str]()
        self.runs: SweepRuns | None = None
        self.counts = Counter(replayed=0, closed=0, duplicates=0, up_to_date=0)
        self.last_error: Exception | None = None
        self._connect = connect
        self._notes = OutageNotes(print_note)
        self._clock = clock
        self._thread: threading.Thread | None = None
        self._pauses = RoundPauses()
        # Number of steps of progress: updates that were sent or held back, and files of a
        # report that were sent.
        self._num_progress_steps = 0
        self._is_last_round = False
        self._is_stopped = False

    # The next methods are for other threads.

    @property
    def is_started(self) -> bool:
        """True if the thread was started."""
        return self._thread is not None

    def start(self) -> None:
        """Start the thread if it was not started yet."""
        with self.lock:
            if self._thread is None and self._connect is not None:
                self._thread = self._clock.thread(partial(self._work, self._connect), "mlflow")
                self._thread.start()

    def put(self, key: str, update: Update) -> None:
        """Add an update to the table, in place of an older update with the same key."""
        if self._connect is None:
            return
        with self.lock:
            self.pending.put(key, update)
            self.lock.notify_all()

    def wait_for_connection(self, timeout_s: float) -> Exception | None:
        """Wait for MLflow's first answer.

        Args:
            timeout_s: Longest wait, seconds.

        Returns:
            The error with which MLflow refused the connection, or None if MLflow did not
            refuse it.
        """
        with self.lock:
            self.lock.wait_for(lambda: self._num_progress_steps or self.last_error, timeout_s)
            if self.runs is None and self.pending.has_held_back:
                return self.last_error
            return None

    def wait_until_none_sendable(self, limit: WaitLimit) -> bool:
        """Wait until no sendable update is left: each update was sent or is held back.

        Args:
            limit: Limits of the wait.

        Returns:
            True if no sendable update is left.
        """
        end = self._clock.monotonic() + limit.total_s
        # Perhaps `reconcile` added only EndTrials. This update does not start the thread.
        self.start()
        with self.lock:
            self._pauses.skip()
            self.lock.notify_all()
            while self.pending.has_sendable and self._thread is not None:
                wait_s = min(limit.idle_s, end - self._clock.monotonic())
                if not self._thread.is_alive() or not self._wait_for_progress(wait_s):
                    break
            return not self.pending.has_sendable

    def _wait_for_progress(self, timeout_s: float) -> bool:
        """Wait until MLflow makes progress. Return False if it makes no progress in time."""
        if timeout_s <= 0:
            return False
        num_before = self._num_progress_steps
        return self.lock.wait_for(lambda: self._num_progress_steps > num_before, timeout_s)

    def mark_last_round(self) -> None:
        """Make the next attempt of each update the last one: an update that fails is held back."""
        with self.lock:
            self._is_last_round = True

    def hold_back_all(self) -> None:
        """Hold back all updates of the table: the sender does not send them any more."""
        with self.lock:
            self.pending.hold_back_all()

    def stop(self) -> None:
        """Stop the thread, and wait a short time for its end.

        Do not wait for a server that does not answer.
        """
        with self.lock:
            self._is_stopped = True
            self.lock.notify_all()
        if self._thread is not None:
            self._thread.join(JOIN_S)

    # The next methods are for the thread itself.

    def _work(self, connect: Callable[[], SweepRuns]) -> None:
        """Send updates in rounds until the thread is stopped. The thread runs this function."""
        while self._wait_for_updates():
            self._send_round(connect)

    def _wait_for_updates(self) -> bool:
        """Wait for updates, and for the end of the pause. Return False if the thread must stop."""
        with self.lock:
            self.lock.wait_for(lambda: self._is_stopped or self.pending.has_sendable)
            # The pause ends early if another thread waits for the updates.
            self.lock.wait_for(
                lambda: self._is_stopped or self._pauses.starts_at_once, self._pauses.next_pause_s
            )
            self._pauses.start_round()
            return not self._is_stopped

    def _send_round(self, connect: Callable[[], SweepRuns]) -> None:
        """Send all updates of the table.

        A failure ends the round, except in the last round.
        """
        with self.lock:
            updates = self.pending.in_sending_order()
        others_succeed = False
        for key, update in updates:
            if not self._must_send(key, update):
                continue
            try:
                if self.runs is None:
                    self.runs = connect()
                self._send(self.runs, key, update)
            except Exception as error:
                log.warning("The update of %s in MLflow failed: %s", key, first_line(error))
                # If there is no connection, the update was not tried, so this was not an
                # attempt of the update.
                was_tried = self.runs is not None
                if (was_tried and self._is_last_round) or is_refusal(error):
                    self._hold_back(error, key, update)
                else:
                    self._forget_missing_runs(error)
                    self._send_later(error, key, update, others_succeed=others_succeed)
                    return
            else:
                others_succeed = True
                self._remove(key, update)

    def _must_send(self, key: str, update: Update) -> bool:
        """Return whether the thread must still send an update.

        The thread must not be stopped, and the update must be neither replaced nor held back.
        """
        with self.lock:
            return not self._is_stopped and self.pending.is_sendable(key, update)

    def _send(self, runs: SweepRuns, key: str, update: Update) -> None:
        """Send an update.

        If an earlier attempt sent only some of its values, sending it again is safe.
        """
        if isinstance(update, LiveRun):
            runs.show_live(key, update)
        elif isinstance(update, FinishedRun):
            if runs.show(update.run()):
                self.counts["replayed"] += 1
            else:
                self.counts["up_to_date"] += 1
        elif isinstance(update, SweepReport):
            runs.show_report(update.numbers, update.folder, self._note_progress)
        else:
            # If a run has an update that is still sendable, the run stays open for this
            # update.
            with self.lock:
                open_keys = self.running | self.pending.sendable_keys
            closed, duplicates = runs.end_running(open_keys)
            self.counts.update(closed=closed, duplicates=duplicates)
            if isinstance(update, EndSweep):
                runs.end_sweep(update.status)

    def _remove(self, key: str, update: Update) -> None:
        """Remove an update from the table after it was sent."""
        self._notes.update_succeeded(key, is_last_round=self._is_last_round)
        with self.lock:
            self.pending.remove(key, update)
            self._note_progress()

    def _hold_back(self, error: Exception, key: str, update: Update) -> None:
        """Hold back an update. If MLflow refuses the connection, hold back all updates."""
        with self.lock:
            self.last_error = error
            if self.runs is None:
                self.pending.hold_back_all()
            else:
                self.pending.hold_back(key, update)
            self._note_progress()

    def _forget_missing_runs(self, error: Exception) -> None:
        """Forget the sweep's runs if one of them is missing, so that the thread reads them again.

        Runs are missing after MLflow was restored to an older state.
        """
        if error_code(error) == MISSING_CODE:
            self.runs = None

    def _send_later(
        self, error: Exception, key: str, update: Update, *, others_succeed: bool
    ) -> None:
        """Put an update behind all others, and warn the user if MLflow fails for a long time."""
        now = self._clock.monotonic()
        with self.lock:
            self.last_error = error
            self.pending.postpone(key, update)
            self._pauses.note_failure(now)
            self.lock.notify_all()
        failing_s = self._pauses.failing_s(now)
        self._notes.update_failed(error, key, failing_s=failing_s, others_succeed=others_succeed)

    def _note_progress(self) -> None:
        """Count a step of progress, and notify the threads that wait for progress."""
        with self.lock:
            self._num_progress_steps += 1
            self._pauses.note_progress()
            self.lock.notify_all()
