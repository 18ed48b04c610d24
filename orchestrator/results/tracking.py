"""The tracker: a thread that sends the state of a sweep to MLflow.

The result store has the results, and MLflow has copies. :class:`Tracker` has a table of pending
updates: running or failed trials, results, and the sweep's report. A thread sends one update after
the other and removes it from the table. An update that fails stays in the table and is sent again
after a pause. A newer update of a run replaces an older one.

The table is only in memory, so a killed driver loses it. ``reconcile`` adds all results of the
store to the table again. Importing this module does not import ``mlflow``.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.planning.plan import CellStatus
from orchestrator.results.columns import ATTEMPT, STATUS
from orchestrator.results.flat_runs import CurvePoint, FlatRun, LiveRun, milliseconds
from orchestrator.results.mlflow_errors import (
    MISSING_CODE,
    error_code,
    first_line,
    is_final,
    no_answer_error,
    refused_error,
)
from orchestrator.results.mlflow_pages import SWEEP_KEY
from orchestrator.results.pending_updates import (
    END_KEY,
    REPORT_KEY,
    Ending,
    EndSweep,
    EndTrials,
    FinishedRun,
    PendingUpdates,
    SweepReport,
    Update,
)
from orchestrator.results.records import FailureRecord
from tasks.atomic import write_atomic
from tasks.clock import SYSTEM, Clock

if TYPE_CHECKING:
    from orchestrator.results.mlflow_runs import SweepRuns

log = logging.getLogger(__name__)

GATHER_S = 1.0
"""Seconds during which updates are collected, so that many trials need few requests."""
FIRST_PAUSE_S = 0.05
"""Seconds before the first retry. If only one reply was lost, the retry succeeds."""
MAX_PAUSE_S = 15.0
"""Seconds of the longest pause between two retries."""
PAUSE_GROWTH = 1.6
"""Factor between the lengths of two pauses, so that a server that is down gets fewer requests."""
WARN_AFTER_S = 2.0
"""Seconds without an answer after which a warning is printed."""
FIRST_ANSWER_S = 5.0
"""Seconds of the longest wait for MLflow's first answer at the start of a run."""
FLUSH_S = 60.0
"""Seconds without progress after which a finished sweep no longer waits for MLflow. Creating
MLflow's SQLite file takes 5 s on an idle machine."""
STOP_FLUSH_S = 8.0
"""Seconds without progress after which a stopped sweep no longer waits for MLflow."""
STOP_LIMIT_S = 30.0
"""Seconds after which a stopped sweep no longer waits for MLflow, even if it makes progress. The
next start of the sweep sends the rest."""
LAST_ROUND_S = 15.0
"""Seconds of the last round of a finished sweep, in which each update that MLflow lacks gets one
attempt. It follows only if an update failed until the limit."""
END_FLUSH_S = 2.0
"""Seconds without progress after which a sweep no longer waits for the end of its runs in MLflow.
This wait follows only if other updates failed until their limit."""
JOIN_S = 1.0
"""Seconds of the longest wait for the end of the thread, which may still wait for a server."""
MAX_MESSAGE_LENGTH = 4000
"""Largest number of characters of a failure's message in MLflow."""


@dataclass
class _Pauses:
    """The pauses before the rounds in which updates are sent; they grow while MLflow fails.

    Attributes:
        next_pause_s: Seconds of the pause before the next round.
        is_skipped: True if the next round starts at once, because another thread waits for it.
        failing_since: Monotonic time of the first failure since the last progress, in seconds. None
            if MLflow answers.
        is_warned: True if the user was warned that MLflow does not answer.
    """

    next_pause_s: float = 0.0
    is_skipped: bool = False
    failing_since: float | None = None
    is_warned: bool = False

    def skip(self) -> None:
        """Let the next round start at once, and retry failed updates soon."""
        self.is_skipped = True
        self.next_pause_s = FIRST_PAUSE_S

    def round_started(self) -> None:
        """Choose the pause after a round in which no update fails."""
        self.is_skipped = False
        if self.failing_since is None:
            self.next_pause_s = GATHER_S

    def failed(self, now: float) -> None:
        """Choose the pause after a round in which an update failed."""
        if self.failing_since is None:
            self.failing_since = now
            self.next_pause_s = FIRST_PAUSE_S
        else:
            self.next_pause_s = min(PAUSE_GROWTH * self.next_pause_s, MAX_PAUSE_S)

    def must_warn(self, now: float) -> bool:
        """Return whether the user must be warned now that MLflow does not answer."""
        if self.is_warned or self.failing_since is None:
            return False
        return now - self.failing_since >= WARN_AFTER_S


class Tracker:
    """The connection to MLflow, which gets the state of a sweep in the background.

    Only the methods ``check``, ``reconcile``, ``flush`` and ``close`` wait for MLflow.

    Args:
        open_runs: Function that connects to MLflow and returns the sweep's runs. It is called in
            the background until it succeeds. None to track nothing.
        print_note: Function that prints a message for the user, for example if a server does not
            answer.
        clock: Clock for pauses and times.
        connect_late: True to connect only at the first update. This is for a SQLite file that does
            not exist yet. No server can refuse the connection then.
    """

    def __init__(
        self,
        open_runs: Callable[[], SweepRuns] | None = None,
        print_note: Callable[[str], None] = log.info,
        clock: Clock = SYSTEM,
        *,
        connect_late: bool = False,
    ) -> None:
        self._open_runs = open_runs
        self._print_note = print_note
        self._clock = clock
        # The lock of this condition protects the table of updates and the states below. Threads
        # that wait for the condition are notified of new updates and of progress.
        self._changed = clock.condition()
        self._pending = PendingUpdates()
        self._running = set[str]()
        self._sweep_run_opened = False
        self._stopped = False
        self._is_last_round = False
        self._connects_at_first_update = connect_late
        # Only the thread changes the runs and their counts.
        self._runs: SweepRuns | None = None
        self._counts = Counter(replayed=0, closed=0, duplicates=0, up_to_date=0)
        self._pauses = _Pauses()
        self._last_error: Exception | None = None
        self._num_processed = 0  # updates that were sent or refused
        self._thread = clock.thread(self._work, "mlflow")
        if open_runs:
            # This update connects to MLflow, so that a refusal is reported before any training.
            self._pending.put(SWEEP_KEY, LiveRun())
        if open_runs and not connect_late:
            self._thread.start()

    # Updates, which the thread sends later.

    def start_trial(self, trial_id: str, tags: Mapping[str, str]) -> None:
        """Show a trial as running. A trial that failed before continues its run in MLflow."""
        with self._changed:
            self._open_sweep_run()
            self._running.add(trial_id)
            self._change_state(trial_id, tags, failed=False)

    def log_points(self, trial_id: str, points: Sequence[CurvePoint]) -> None:
        """Add points to the curves of a running trial."""
        with self._changed:
            if trial_id in self._running:
                self._add_points(trial_id, points)

    def log_counts(self, step: int, counts: Mapping[str, float]) -> None:
        """Add numbers of trials by state to the curves of the sweep's run."""
        at_ms = milliseconds(self._clock.time())
        points = [CurvePoint(name, step, value, at_ms) for name, value in counts.items()]
        with self._changed:
            self._open_sweep_run()
            self._add_points(SWEEP_KEY, points)

    def finish(self, run: FlatRun) -> None:
        """Send the result of a trial, or a learning curve."""
        with self._changed:
            self._open_sweep_run()
            self._running.discard(run.run_key)
            self._put(run.run_key, FinishedRun.of(run))

    def fail_trial(self, failure: FailureRecord) -> None:
        """Show a trial as failed, with the kind and message of the failure."""
        tags = {
            STATUS: str(CellStatus.FAILED),
            ATTEMPT: str(failure.attempt),
            "failure_kind": str(failure.failure.kind),
            "failure_message": failure.failure.message[:MAX_MESSAGE_LENGTH],
        }
        with self._changed:
            self._running.discard(failure.trial_id)
            self._change_state(failure.trial_id, tags, failed=True)

    def log_report(self, numbers: Mapping[str, float], folder: Path | None = None) -> None:
        """Send the final numbers of the sweep and the files of its report to the sweep's run."""
        self._put(REPORT_KEY, SweepReport(numbers, folder))

    def _open_sweep_run(self) -> None:
        """Open the sweep's run in MLflow again, at the first action of this process."""
        if not self._sweep_run_opened:
            self._sweep_run_opened = True
            self._change_state(SWEEP_KEY, tags={}, failed=False)

    def _change_state(self, key: str, tags: Mapping[str, str], *, failed: bool) -> None:
        """Add the start or failure of a live run to its pending update."""
        at_ms = milliseconds(self._clock.time())
        live = self._pending.live_run(key)
        if failed:
            # The start may not be sent yet. Its tags name the network, the dataset and N.
            tags = {**(live.tags or {}), **tags}
        self._put(key, replace(live, tags=tags, failed=failed, at_ms=at_ms))

    def _add_points(self, key: str, points: Sequence[CurvePoint]) -> None:
        """Add points to the pending update of a live run, after its pending points."""
        live = self._pending.live_run(key)
        self._put(key, replace(live, points=(*live.points, *points)))

    def _put(self, key: str, update: Update) -> None:
        """Add an update to the table, in place of an older update with the same key."""
        if self._open_runs is None:
            return
        with self._changed:
            self._pending.put(key, update)
            self._changed.notify_all()
        # Without a connection there are no runs to end.
        if not isinstance(update, EndTrials):
            self._start_thread_if_late()

    def _start_thread_if_late(self) -> None:
        """Start the thread if it was to connect at the first update."""
        with self._changed:
            if self._connects_at_first_update:
                self._connects_at_first_update = False
                self._thread.start()

    # Waits for MLflow.

    @property
    def num_unsent_updates(self) -> int:
        """Number of updates that MLflow lacks: not sent yet, or refused."""
        return len(self._pending)

    def check(self) -> None:
        """Wait a few seconds for MLflow's first answer.

        Raises:
            SetupError: MLflow refuses the connection, and would refuse it again.
        """
        if self._connects_at_first_update or not self._open_runs:
            return
        with self._changed:
            self._changed.wait_for(lambda: self._num_processed or self._last_error, FIRST_ANSWER_S)
        if self._last_error and self._runs is None and self._pending.has_refused:
            raise refused_error(self._last_error)

    def reconcile(
        self,
        results: Iterable[FlatRun],
        failures: Iterable[FailureRecord] = (),
        *,
        wait: bool = True,
    ) -> dict[str, int]:
        """Correct MLflow so that it has exactly these results and failures, and no running trial.

        All values are compared with MLflow's. If MLflow has several runs of one trial, all but one
        are deleted. Runs with the status RUNNING are ended.

        Args:
            results: Results of all trials.
            failures: Failures of trials without a result.
            wait: True to wait until all updates are sent. False to send them in the background.

        Returns:
            Numbers of runs that were changed, ended, deleted or up to date. Empty if ``wait`` is
            False.

        Raises:
            SetupError: MLflow does not answer, or refused an update.
        """
        counts_before = self._counts.copy()
        for run in results:
            self._put(run.run_key, FinishedRun.of(run))
        self._running.clear()
        for failure in failures:
            self.fail_trial(failure)
        self._put(END_KEY, EndTrials())
        if not wait:
            return {}
        if not self.flush() or self._pending.has_refused:
            raise no_answer_error(self._last_error or TimeoutError("there was no reply in time"))
        return {name: count - counts_before[name] for name, count in self._counts.items()}

    def flush(self, timeout_s: float | None = None, limit_s: float = float("inf")) -> bool:
        """Wait until all updates are sent, except refused ones.

        Args:
            timeout_s: Seconds without progress after which the wait ends. None for FLUSH_S.
            limit_s: Seconds after which the wait ends, even if MLflow makes progress.

        Returns:
            True if all updates are sent.
        """
        if timeout_s is None:
            timeout_s = FLUSH_S
        end = self._clock.monotonic() + limit_s
        self._start_thread_if_late()
        with self._changed:
            self._pauses.skip()
            self._changed.notify_all()
            has_progress = True
            while has_progress and self._pending.has_sendable and self._thread.is_alive():
                is_past = partial(self._is_past, self._num_processed)
                wait_s = min(timeout_s, end - self._clock.monotonic())
                has_progress = wait_s > 0 and self._changed.wait_for(is_past, wait_s)
            return not self._pending.has_sendable

    def _is_past(self, num_processed: int) -> bool:
        """Return whether more updates than ``num_processed`` were sent or refused."""
        return self._num_processed > num_processed

    def save_run_pages(self, path: Path) -> None:
        """Write the addresses of all known runs to a file, so that reports can link to them."""
        if self._runs is None:
            return
        try:
            pages = self._runs.run_pages()
            write_atomic(path, pages.model_dump_json().encode(), durable=False)
        except OSError as error:
            log.warning("%s cannot be written, so reports have no links to MLflow: %s", path, error)

    def close(self, ending: Ending) -> None:
        """Send all pending updates, end all open runs, and stop the thread.

        The wait for updates ends if MLflow makes no progress. If the sweep has finished, a last
        round follows, in which each pending update gets one attempt: the updates behind one that
        always fails, for example because a folder is not writable, are sent then. All runs are
        ended all the same, if MLflow answers.

        Args:
            ending: New status of the sweep's run. A run that had ended before and was not opened
                again can only change to FINISHED.
        """
        if self._connects_at_first_update:
            return
        self._running.clear()
        self._put(END_KEY, EndSweep(ending))
        try:
            if not self._send_all(ending):
                with self._changed:
                    self._pending.refuse_all()
                self._put(END_KEY, EndSweep(ending))
                self.flush(END_FLUSH_S)
        finally:
            with self._changed:
                self._stopped = True
                self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(JOIN_S)

    def _send_all(self, ending: Ending) -> bool:
        """Wait until every update is sent or had its last attempt; return whether none is left."""
        if ending != "FINISHED":
            return self.flush(STOP_FLUSH_S, STOP_LIMIT_S)
        if self.flush(FLUSH_S):
            return True
        with self._changed:
            self._is_last_round = True
        return self.flush(LAST_ROUND_S, LAST_ROUND_S)

    # The thread, which sends updates.

    def _work(self) -> None:
        """Send updates in rounds until the tracker is stopped; the thread runs this function."""
        open_runs = self._open_runs
        if open_runs is None:
            return
        while self._wait_for_updates():
            self._send_round(open_runs)

    def _send_round(self, open_runs: Callable[[], SweepRuns]) -> None:
        """Send all pending updates; end the round early if MLflow does not answer.

        The last round goes on after a failure, and does not send the failed update again.
        """
        with self._changed:
            updates = self._pending.in_sending_order()
        for key, update in updates:
            # Reading without the lock is safe: if an update is replaced at this moment, the older
            # one is sent first, and the next round sends the newer one.
            if self._stopped or not self._pending.is_sendable(key, update):
                continue
            try:
                if self._runs is None:
                    self._runs = open_runs()
                self._send(self._runs, key, update)
            except Exception as error:
                log.warning("The update of %s in MLflow failed: %s", key, first_line(error))
                is_last_attempt = self._is_last_round and self._runs is not None
                if is_last_attempt or is_final(error):
                    self._note_refusal(error, key, update)
                else:
                    self._note_failure(error, key, update)
                    return
            else:
                self._note_success(key, update)

    def _wait_for_updates(self) -> bool:
        """Wait for updates and for the pause; return False if the tracker is stopped."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._pending.has_sendable)
            self._changed.wait_for(
                lambda: self._stopped or self._pauses.is_skipped, self._pauses.next_pause_s
            )
            self._pauses.round_started()
            return not self._stopped

    def _send(self, runs: SweepRuns, key: str, update: Update) -> None:
        """Send an update; a call may be repeated after an attempt that succeeded in part."""
        if isinstance(update, LiveRun):
            runs.show_live(key, update)
        elif isinstance(update, FinishedRun):
            if runs.show(update.run()):
                self._counts["replayed"] += 1
            else:
                self._counts["up_to_date"] += 1
        elif isinstance(update, SweepReport):
            runs.show_report(update.numbers, update.folder, self._note_progress)
        else:
            with self._changed:
                open_keys = self._running | self._pending.sendable_keys
            closed, duplicates = runs.end_running(open_keys)
            self._counts.update(closed=closed, duplicates=duplicates)
            if isinstance(update, EndSweep):
                runs.end_sweep(update.status)

    def _note_success(self, key: str, update: Update) -> None:
        """Remove an update that was sent from the table."""
        if self._pauses.is_warned and not self._is_last_round:
            self._pauses.is_warned = False
            self._print_note("MLflow answers again")
        with self._changed:
            self._pending.remove(key, update)
        self._note_progress()

    def _note_refusal(self, error: Exception, key: str, update: Update) -> None:
        """Mark an update as refused; mark all updates if MLflow refuses the connection."""
        with self._changed:
            self._last_error = error
            if self._runs is None:
                self._pending.refuse_all()
            else:
                self._pending.refuse(key, update)
            self._note_progress()

    def _note_failure(self, error: Exception, key: str, update: Update) -> None:
        """Send an update last in the next round, and warn the user if MLflow fails for long."""
        now = self._clock.monotonic()
        with self._changed:
            self._last_error = error
            if error_code(error) == MISSING_CODE:
                # MLflow was restored to an older state, so the runs must be read again.
                self._runs = None
            self._pending.postpone(key, update)
            self._pauses.failed(now)
            self._changed.notify_all()
        if self._pauses.must_warn(now):
            self._pauses.is_warned = True
            problem = no_answer_error(error).problem
            self._print_note(
                f"{problem}. Results are stored without MLflow, and isweep tries again"
            )

    def _note_progress(self) -> None:
        """Count an update that was sent or refused, for the threads that wait for it."""
        with self._changed:
            self._num_processed += 1
            self._pauses.failing_since = None
            self._changed.notify_all()
