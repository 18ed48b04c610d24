"""The tracker of a sweep, which copies the sweep's state to MLflow in the background.

The result store contains the results, and MLflow contains copies of them. In this module, a
*run* is always a run in MLflow: one for each trial and learning curve, and one for the sweep.
The methods of :class:`Tracker` put updates of runs into a table in memory
(:class:`~orchestrator.results.pending_updates.PendingUpdates`). An update contains the state
of a trial (running or failed), a result, or the sweep's report. The table has one entry for
each run, so a newer update of a run replaces an older one.

:mod:`orchestrator.results.update_sender` sends the updates in a thread. The thread *holds
back* an update if it does not send the update any more, for example because MLflow refused it.
The update stays in the table, because MLflow still lacks it. An update that is not held back
is *sendable*.

If the driver is killed, the table is lost. The method ``reconcile`` puts all results of the
store into the table again. Importing this module does not import ``mlflow``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.planning.plan import PlannedStatus
from orchestrator.results.columns import DOMAIN
from orchestrator.results.flat_runs import (
    CurvePoint,
    FlatRun,
    LiveRun,
    milliseconds,
    trial_tags,
)
from orchestrator.results.mlflow_errors import no_answer_error, refused_error
from orchestrator.results.mlflow_pages import SWEEP_KEY
from orchestrator.results.pending_updates import (
    END_KEY,
    REPORT_KEY,
    Ending,
    EndSweep,
    EndTrials,
    FinishedRun,
    SweepReport,
    Update,
)
from orchestrator.results.records import FailureRecord
from orchestrator.results.update_sender import UpdateSender, WaitLimit
from tasks.atomic import write_atomic
from tasks.clock import SYSTEM, Clock

if TYPE_CHECKING:
    from orchestrator.results.mlflow_runs import SweepRuns

log = logging.getLogger(__name__)

FIRST_ANSWER_S = 5.0
"""Longest wait for MLflow's first answer when a sweep starts, seconds."""
SILENT_WAIT = WaitLimit(idle_s=5.0, total_s=5.0)
"""Limit of the first wait for the updates of a finished sweep. After this wait, isweep prints
a message."""
FINISHED_SWEEP = WaitLimit(idle_s=60.0)
"""Limit of the second wait for the updates of a finished sweep, after the message. It is long,
because MLflow needs 5 s to create its SQLite file even on an idle machine."""
LAST_ROUND = WaitLimit(idle_s=15.0, total_s=15.0)
"""Limit of the third wait for the updates of a finished sweep. In this wait, isweep tries each
remaining update one last time."""
STOPPED_SWEEP = WaitLimit(idle_s=6.0, total_s=30.0)
"""Limit of the only wait for the updates of a stopped sweep. The next start of the sweep sends
the remaining updates. If MLflow does not answer, isweep waits 6 s because of this limit and 2
s because of END_OF_RUNS."""
END_OF_RUNS = WaitLimit(idle_s=2.0)
"""Limit of the wait for the update that ends all runs. All other updates are held back before
this wait."""
MAX_MESSAGE_LENGTH = 4000
"""Largest number of characters of a failure's message that are sent to MLflow."""


class Tracker:
    """The connection to MLflow, which gets the state of a sweep in the background.

    Only the methods ``check``, ``reconcile``, ``flush`` and ``close`` wait for MLflow.

    Args:
        connect: Function that connects to MLflow and returns the sweep's runs. It is called in
            the background until it succeeds. If None, track nothing.
        print_note: Function that prints a message for the user, for example if a server does
            not answer.
        clock: Clock for times and waits.
        connect_at_first_update: If True, connect only at the first update. Use it if the
            SQLite file does not exist yet: such a connection cannot be refused, so there is no
            reason to connect early.
    """

    def __init__(
        self,
        connect: Callable[[], SweepRuns] | None = None,
        print_note: Callable[[str], None] = log.info,
        clock: Clock = SYSTEM,
        *,
        connect_at_first_update: bool = False,
    ) -> None:
        self._clock = clock
        self._print_note = print_note
        self._sender = UpdateSender(connect, print_note, clock)
        self._has_reopened_sweep_run = False
        # Because of this empty update, the thread connects to MLflow at once. If MLflow
        # refuses the connection, the user learns it before any training.
        self._sender.put(SWEEP_KEY, LiveRun())
        if not connect_at_first_update:
            self._sender.start()

    # Updates, which the thread sends later.

    def start_trial(self, trial_id: str, tags: Mapping[str, str]) -> None:
        """Show a trial as running in MLflow.

        If the trial failed before, MLflow continues its run.
        """
        with self._sender.lock:
            self._reopen_sweep_run()
            self._sender.running.add(trial_id)
            self._change_state(trial_id, tags, failed=False)

    def log_points(self, trial_id: str, points: Sequence[CurvePoint]) -> None:
        """Add points to the curves of a running trial."""
        with self._sender.lock:
            if trial_id in self._sender.running:
                self._add_points(trial_id, points)

    def log_counts(self, step: int, counts: Mapping[str, float]) -> None:
        """Add numbers of trials by state to the curves of the sweep's run."""
        at_ms = milliseconds(self._clock.time())
        points = [CurvePoint(name, step, value, at_ms) for name, value in counts.items()]
        with self._sender.lock:
            self._reopen_sweep_run()
            self._add_points(SWEEP_KEY, points)

    def finish(self, run: FlatRun) -> None:
        """Send the result of a trial, or a learning curve."""
        with self._sender.lock:
            self._reopen_sweep_run()
            self._sender.running.discard(run.run_key)
            self._put(run.run_key, FinishedRun.of(run))

    def fail_trial(self, failure: FailureRecord) -> None:
        """Show a trial as failed, with the kind and message of the failure."""
        tags = trial_tags(failure.spec, None, PlannedStatus.FAILED, failure.attempt)
        # A failure does not contain the domain. An empty tag would overwrite the domain that
        # was sent at the start of the trial.
        del tags[DOMAIN]
        tags["failure_kind"] = str(failure.failure.kind)
        tags["failure_message"] = failure.failure.message[:MAX_MESSAGE_LENGTH]
        with self._sender.lock:
            self._sender.running.discard(failure.trial_id)
            self._change_state(failure.trial_id, tags, failed=True)

    def log_report(self, numbers: Mapping[str, float], folder: Path | None = None) -> None:
        """Send the final numbers of the sweep and the files of its report to the sweep's run."""
        self._put(REPORT_KEY, SweepReport(numbers, folder))

    def _reopen_sweep_run(self) -> None:
        """Set the sweep's run to RUNNING at the first change: an earlier driver may have ended it.

        If a driver changes nothing, for example because its start is refused, the run is not
        opened.
        """
        if not self._has_reopened_sweep_run:
            self._has_reopened_sweep_run = True
            self._change_state(SWEEP_KEY, tags={}, failed=False)

    def _change_state(self, key: str, tags: Mapping[str, str], *, failed: bool) -> None:
        """Add the start or failure of a live run to its pending update."""
        at_ms = milliseconds(self._clock.time())
        live = self._sender.pending.live_run(key)
        if failed:
            # Perhaps the start of the trial was not sent yet. Only the tags of the start
            # contain the domain of the dataset, so they stay in the update.
            tags = {**(live.tags or {}), **tags}
        self._put(key, replace(live, tags=tags, failed=failed, at_ms=at_ms))

    def _add_points(self, key: str, points: Sequence[CurvePoint]) -> None:
        """Add points to the pending update of a live run, after its pending points."""
        live = self._sender.pending.live_run(key)
        self._put(key, replace(live, points=(*live.points, *points)))

    def _put(self, key: str, update: Update) -> None:
        """Let the thread send an update, in place of an older update with the same key."""
        self._sender.put(key, update)
        # EndTrials alone must not start the thread: if there is no thread, this driver has
        # opened no run that must end.
        if not isinstance(update, EndTrials):
            self._sender.start()

    # The methods below are for waits, and for the end of the command.

    @property
    def num_unsent_updates(self) -> int:
        """Number of updates that MLflow lacks.

        Sendable updates and held-back updates both count.
        """
        return len(self._sender.pending)

    def check(self) -> None:
        """Wait a few seconds for MLflow's first answer.

        Raises:
            SetupError: MLflow refuses the connection, and would refuse it again.
        """
        if not self._sender.is_started:
            return
        error = self._sender.wait_for_connection(FIRST_ANSWER_S)
        if error is not None:
            raise refused_error(error)

    def reconcile(
        self,
        results: Iterable[FlatRun],
        failures: Iterable[FailureRecord] = (),
        *,
        wait: bool = True,
    ) -> dict[str, int]:
        """Correct MLflow so that it has exactly these results and failures, and no running trial.

        All values are compared with the values in MLflow. If MLflow has several runs of one
        trial, all runs except one are deleted. Runs with the status RUNNING are ended.

        Args:
            results: Results of all trials.
            failures: Failures of trials. If a trial has a result, its failure is not sent,
                because only a later measurement of the trained network failed.
            wait: If True, wait until all updates are sent. If False, send them in the
            background.

        Returns:
            Number of runs that were changed (``replayed``), ended (``closed``), deleted
            (``duplicates``) or correct (``up_to_date``). The result is empty if ``wait`` is
            False.

        Raises:
            SetupError: MLflow does not answer, or refused an update.
        """
        counts_before = self._sender.counts.copy()
        result_keys = set()
        for run in results:
            result_keys.add(run.run_key)
            self._put(run.run_key, FinishedRun.of(run))
        self._forget_running_trials()
        for failure in failures:
            if failure.trial_id not in result_keys:
                self.fail_trial(failure)
        self._put(END_KEY, EndTrials())
        if not wait:
            return {}
        if not self.flush() or self._sender.pending.has_held_back:
            error = self._sender.last_error or TimeoutError("there was no reply in time")
            raise no_answer_error(error)
        return {name: count - counts_before[name] for name, count in self._sender.counts.items()}

    def flush(self) -> bool:
        """Wait until no sendable update is left. Return False if the wait ended before that.

        The wait ends early if MLflow makes no progress for a minute.
        """
        return self._sender.wait_until_none_sendable(FINISHED_SWEEP)

    def save_run_pages(self, path: Path) -> None:
        """Write the addresses of all known runs to a file, so that reports can link to them."""
        runs = self._sender.runs
        if runs is None:
            return
        try:
            pages = runs.run_pages()
            write_atomic(path, pages.model_dump_json().encode(), durable=False)
        except OSError as error:
            log.warning("%s cannot be written, so reports have no links to MLflow: %s", path, error)

    def close(self, ending: Ending) -> None:
        """Send all pending updates, end all open runs, and stop the thread.

        If sendable updates are left after the wait, only the runs are ended.

        Args:
            ending: New status of the sweep's run. Exception: if the run had ended before this
                command and was not opened again, only the status FINISHED is set.
        """
        if not self._sender.is_started:
            return
        self._forget_running_trials()
        self._put(END_KEY, EndSweep(ending))
        try:
            if ending == "FINISHED":
                none_sendable = self._send_updates_of_finished_sweep()
            else:
                none_sendable = self._sender.wait_until_none_sendable(STOPPED_SWEEP)
            # The update that ends the runs is still pending if it was held back during the
            # wait.
            if not none_sendable or END_KEY in self._sender.pending:
                self._end_runs_without_updates(ending)
        finally:
            self._sender.stop()

    def _send_updates_of_finished_sweep(self) -> bool:
        """Send the pending updates. Return whether no sendable update is left.

        There are up to three waits. Each wait ends early if all updates were sent.
        """
        if self._sender.wait_until_none_sendable(SILENT_WAIT):
            return True
        self._print_note(
            "isweep waits until MLflow has stored all results. If MLflow does not answer, isweep "
            f"waits at most {FINISHED_SWEEP.idle_s:.0f} s"
        )
        if self.flush():
            return True
        # From now on, an update that fails is held back. So it does not block the updates
        # behind it.
        self._sender.mark_last_round()
        return self._sender.wait_until_none_sendable(LAST_ROUND)

    def _end_runs_without_updates(self, ending: Ending) -> None:
        """Hold back all pending updates, and end all open runs."""
        self._sender.hold_back_all()
        # The new update is sendable. It replaces the update with the same key, which was just
        # held back.
        self._put(END_KEY, EndSweep(ending))
        self._sender.wait_until_none_sendable(END_OF_RUNS)

    def _forget_running_trials(self) -> None:
        """Forget which trials are running, so that the next EndTrials or EndSweep ends all runs."""
        with self._sender.lock:
            self._sender.running.clear()
