"""The tracker: a thread that sends the state of a sweep to MLflow.

The result store has the results, and MLflow has copies. :class:`Tracker` has a table of pending
updates: running or failed trials, results, and the sweep's report. A thread sends one update after
the other and removes it from the table. An update that fails stays in the table and is sent again
after a pause. A newer update of a run replaces an older one.

The table is only in memory, so a killed driver loses it. ``reconcile`` adds all results of the
store to the table again. Importing this module does not import ``mlflow``.
"""

from __future__ import annotations

import json
import logging
import pickle
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from orchestrator.planning.plan import CellStatus
from orchestrator.planning.workspace import Workspace
from orchestrator.results.columns import ATTEMPT, STATUS
from orchestrator.results.flat_runs import (
    CurvePoint,
    FlatRun,
    LiveRun,
    curve_runs,
    milliseconds,
)
from orchestrator.results.mlflow_connection import SQLITE, connect, mlflow_uri
from orchestrator.results.mlflow_errors import (
    MISSING_CODE,
    error_code,
    first_line,
    is_final,
    no_answer_error,
    refused_error,
)
from orchestrator.results.mlflow_pages import SWEEP_KEY, Page
from orchestrator.results.records import FailureRecord
from orchestrator.results.state import State
from orchestrator.results.store import ResultStore
from tasks.atomic import read_whole, write_atomic
from tasks.clock import SYSTEM, Clock

if TYPE_CHECKING:
    from orchestrator.results.mlflow_runs import SweepRuns

log = logging.getLogger(__name__)

Ending = Literal["FINISHED", "FAILED", "KILLED"]
"""MLflow's status of a sweep that ended: normally, with an error, or by Ctrl-C."""

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
END_FLUSH_S = 2.0
"""Seconds without progress after which a sweep no longer waits for the end of its runs in MLflow.
This wait follows only if other updates failed until their limit."""
JOIN_S = 1.0
"""Seconds of the longest wait for the end of the thread, which may still wait for a server."""
MAX_MESSAGE_LENGTH = 4000
"""Largest number of characters of a failure's message in MLflow."""
HEADLINE = "headline.json"
"""File of a report with the numbers for MLflow, such as the best losses."""

_REPORT_KEY = "sweep report"
"""Key of the update with the sweep's report; no run has this key."""
_END_KEY = "sweep end"
"""Key of the update that ends runs; no run has this key."""


@dataclass(frozen=True)
class _Result:
    """A finished run, compressed to 2 kB, because 10,000 runs wait if MLflow is down for a night.

    Attributes:
        packed: The compressed run.
    """

    packed: bytes

    @classmethod
    def of(cls, run: FlatRun) -> _Result:
        """Compress a run."""
        return cls(zlib.compress(pickle.dumps(run), level=1))

    def run(self) -> FlatRun:
        """Decompress the run."""
        unpacked: FlatRun = pickle.loads(zlib.decompress(self.packed))  # noqa: S301 (our own bytes)
        return unpacked


@dataclass(frozen=True)
class _Report:
    """The final numbers of the sweep, and its report.

    Attributes:
        numbers: Final numbers of the sweep, by name.
        folder: Folder of the report. None without a report.
    """

    numbers: Mapping[str, float]
    folder: Path | None


@dataclass(frozen=True)
class _EndTrials:
    """The end of all runs in MLflow whose trials are not running any more."""


@dataclass(frozen=True)
class _EndSweep:
    """The end of all runs in MLflow, also of the sweep's run.

    Attributes:
        status: Status of the sweep's run.
    """

    status: Ending


_Update = LiveRun | _Result | _Report | _EndTrials | _EndSweep


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
        self._connects_late = connect_late
        self._runs: SweepRuns | None = None
        self._pending: dict[str, _Update] = {}
        if open_runs:
            # This update connects to MLflow, so that a refusal is reported before any training.
            self._pending[SWEEP_KEY] = LiveRun()
        self._refused = set[str]()
        self._running = set[str]()
        self._counts = Counter(replayed=0, closed=0, duplicates=0, up_to_date=0)
        self._sweep_run_opened = False
        self._stopped = False
        self._warned = False
        self._error: Exception | None = None
        self._failing_since: float | None = None
        self._num_steps = 0  # of progress: updates that were sent or refused
        self._pause_s = 0.0
        self._skip_pause = False
        self._changed = clock.condition()
        self._thread = clock.thread(self._work, "mlflow")
        if open_runs and not connect_late:
            self._thread.start()

    @property
    def num_unsent_updates(self) -> int:
        """Number of updates that MLflow lacks: not sent yet, or refused."""
        return len(self._pending)

    def check(self) -> None:
        """Wait a few seconds for MLflow's first answer.

        Raises:
            SetupError: MLflow refuses the connection, and would refuse it again.
        """
        if self._connects_late or not self._open_runs:
            return
        with self._changed:
            self._changed.wait_for(lambda: self._num_steps or self._error, FIRST_ANSWER_S)
        if self._error and self._runs is None and self._refused:
            raise refused_error(self._error)

    def start_trial(self, trial_id: str, tags: Mapping[str, str]) -> None:
        """Show a trial as running. A trial that failed before continues its run in MLflow."""
        with self._changed:
            self._open_sweep_run()
            self._running.add(trial_id)
            self._change(trial_id, tags=tags, failed=False)

    def log_points(self, trial_id: str, points: Sequence[CurvePoint]) -> None:
        """Add points to the curves of a running trial."""
        with self._changed:
            if trial_id in self._running:
                self._change(trial_id, points)

    def log_counts(self, step: int, counts: Mapping[str, float]) -> None:
        """Add numbers of trials by state to the curves of the sweep's run."""
        at_ms = milliseconds(self._clock.time())
        points = [CurvePoint(name, step, value, at_ms) for name, value in counts.items()]
        with self._changed:
            self._open_sweep_run()
            self._change(SWEEP_KEY, points)

    def finish(self, run: FlatRun) -> None:
        """Send the result of a trial, or a learning curve."""
        with self._changed:
            self._open_sweep_run()
            self._running.discard(run.run_key)
            self._put(run.run_key, _Result.of(run))

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
            self._change(failure.trial_id, tags=tags, failed=True)

    def log_report(self, numbers: Mapping[str, float], folder: Path | None = None) -> None:
        """Send the final numbers of the sweep and the files of its report to the sweep's run."""
        self._put(_REPORT_KEY, _Report(numbers, folder))

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
            SetupError: MLflow does not answer.
        """
        counts_before = self._counts.copy()
        for run in results:
            self._put(run.run_key, _Result.of(run))
        self._running.clear()
        for failure in failures:
            self.fail_trial(failure)
        self._put(_END_KEY, _EndTrials())
        if not wait:
            return {}
        if not self.flush() or self._refused:
            raise no_answer_error(self._error or TimeoutError("there was no reply in time"))
        return {name: count - counts_before[name] for name, count in self._counts.items()}

    def flush(self, timeout_s: float | None = None) -> bool:
        """Wait until all updates are sent, except refused ones.

        Args:
            timeout_s: Seconds without progress after which the wait ends. None for FLUSH_S.

        Returns:
            True if all updates are sent.
        """
        if timeout_s is None:
            timeout_s = FLUSH_S
        self._start_thread_if_late()
        with self._changed:
            self._skip_pause = True
            self._pause_s = FIRST_PAUSE_S
            self._changed.notify_all()
            has_progress = True
            while has_progress and self._has_sendable() and self._thread.is_alive():
                is_past = partial(self._is_past, self._num_steps)
                has_progress = self._changed.wait_for(is_past, timeout_s)
            return not self._has_sendable()

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

        The wait for updates ends if MLflow makes no progress. An update that still fails then, for
        example because a folder is not writable, is not sent again. All runs are ended all the
        same, if MLflow answers.

        Args:
            ending: New status of the sweep's run. A run that had ended before and was not opened
                again can only change to FINISHED.
        """
        if self._connects_late:
            return
        self._running.clear()
        self._put(_END_KEY, _EndSweep(ending))
        timeout_s = FLUSH_S if ending == "FINISHED" else STOP_FLUSH_S
        if not self.flush(timeout_s):
            self._refuse_all_but_the_end()
            self.flush(END_FLUSH_S)
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(JOIN_S)

    def _refuse_all_but_the_end(self) -> None:
        """Count all pending updates except the end as refused, so that the end is sent."""
        with self._changed:
            self._refused.update(self._pending.keys() - {_END_KEY})

    def _open_sweep_run(self) -> None:
        """Open the sweep's run in MLflow again, at the first action of this process."""
        if not self._sweep_run_opened:
            self._sweep_run_opened = True
            self._change(SWEEP_KEY, tags={})

    def _change(self, key: str, points: Sequence[CurvePoint] = (), **state: Any) -> None:
        """Add points and a new state to the pending update of a live run.

        Args:
            key: Key of the run.
            points: New points, which are sent after the pending points.
            state: New values of other fields of :class:`LiveRun`.
        """
        update = self._pending.get(key)
        live = update if isinstance(update, LiveRun) else LiveRun()
        if state:
            state["at_ms"] = milliseconds(self._clock.time())
        self._put(key, replace(live, points=(*live.points, *points), **state))

    def _put(self, key: str, update: _Update) -> None:
        """Add an update to the table, in place of an older update with the same key."""
        if self._open_runs is None:
            return
        with self._changed:
            self._pending[key] = update
            self._refused.discard(key)
            self._changed.notify_all()
        # Without a connection there are no runs to end.
        if not isinstance(update, _EndTrials):
            self._start_thread_if_late()

    def _start_thread_if_late(self) -> None:
        """Start the thread if it was to connect at the first update."""
        with self._changed:
            if self._connects_late:
                self._connects_late = False
                self._thread.start()

    def _is_past(self, num_steps: int) -> bool:
        return self._num_steps > num_steps

    def _has_sendable(self) -> bool:
        """Return whether there are pending updates that were not refused."""
        return len(self._pending) > len(self._refused)

    def _work(self) -> None:
        """Send updates until the tracker is stopped; the thread runs this function."""
        open_runs = self._open_runs
        if open_runs is None:
            return
        while True:
            updates = self._wait_for_updates()
            if not updates:
                return
            for key, update in updates:
                # Reading without the lock is safe: if an update is replaced at this moment, the
                # older one is sent first, and the next round sends the newer one.
                if self._stopped or self._pending.get(key) is not update or key in self._refused:
                    continue
                try:
                    if self._runs is None:
                        self._runs = open_runs()
                    self._show(self._runs, key, update)
                except Exception as error:
                    if not self._note_failure(error, key, update):
                        break
                else:
                    self._note_success(key, update)

    def _wait_for_updates(self) -> list[tuple[str, _Update]]:
        """Return the pending updates after the pause; return none if the tracker is stopped."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._has_sendable())
            self._changed.wait_for(lambda: self._stopped or self._skip_pause, self._pause_s)
            self._skip_pause = False
            if self._failing_since is None:
                self._pause_s = GATHER_S
            if self._stopped:
                return []
            updates = [*self._pending.items()]
        # Final numbers are sent after the points of curves, and the end is sent last.
        return sorted(updates, key=lambda item: (item[0] == _END_KEY, item[0] == _REPORT_KEY))

    def _show(self, runs: SweepRuns, key: str, update: _Update) -> None:
        """Send an update; a call may be repeated after an attempt that succeeded in part."""
        if isinstance(update, LiveRun):
            runs.show_live(key, update)
        elif isinstance(update, _Result):
            if runs.show(update.run()):
                self._counts["replayed"] += 1
            else:
                self._counts["up_to_date"] += 1
        elif isinstance(update, _Report):
            runs.show_report(update.numbers, update.folder, self._note_progress)
        else:
            with self._changed:
                busy = self._running | self._pending.keys() - self._refused
            closed, duplicates = runs.end_running(busy)
            self._counts.update(closed=closed, duplicates=duplicates)
            if isinstance(update, _EndSweep):
                runs.end_sweep(update.status)

    def _note_success(self, key: str, update: _Update) -> None:
        """Remove an update that was sent from the table."""
        if self._warned:
            self._warned = False
            self._print_note("MLflow answers again")
        with self._changed:
            if self._pending.get(key) is update:
                del self._pending[key]
                self._refused.discard(key)
        self._note_progress()

    def _note_failure(self, error: Exception, key: str, update: _Update) -> bool:
        """Process a failed update, and return whether MLflow refused it.

        A refused update is not sent again. If MLflow refuses the connection, all pending updates
        count as refused.
        """
        reason = first_line(error)
        now = self._clock.monotonic()
        log.warning("The update of %s in MLflow failed: %s", key, reason)
        with self._changed:
            self._error = error
            if is_final(error):
                if self._runs is None:
                    self._refused.update(self._pending)
                elif self._pending.get(key) is update:  # else a newer update will be sent
                    self._refused.add(key)
                self._note_progress()
                return True
            if error_code(error) == MISSING_CODE:
                # MLflow was restored to an older state, so the runs must be read again.
                self._runs = None
            if self._failing_since is None:
                self._failing_since = now
                self._pause_s = FIRST_PAUSE_S
            else:
                self._pause_s = min(PAUSE_GROWTH * self._pause_s, MAX_PAUSE_S)
            if self._pending.get(key) is update:
                self._pending[key] = self._pending.pop(key)  # moves it to the end of the table
            self._changed.notify_all()
        if not self._warned and now - self._failing_since >= WARN_AFTER_S:
            self._warned = True
            problem = no_answer_error(error).problem
            self._print_note(
                f"{problem}. Results are stored without MLflow, and isweep tries again"
            )
        return False

    def _note_progress(self) -> None:
        """Count a step of progress, for the threads that wait for it."""
        with self._changed:
            self._num_steps += 1
            self._failing_since = None
            self._changed.notify_all()


def make_tracker(
    workspace: Workspace,
    store: ResultStore,
    uri: str | None,
    *,
    used: bool = True,
    print_note: Callable[[str], None] = log.info,
) -> Tracker:
    """Return a sweep's tracker, which connects to MLflow in the background.

    Args:
        workspace: The sweep.
        store: Result store of the sweep.
        uri: URI of the MLflow store. None for the default.
        used: False returns a tracker that sends nothing.
        print_note: Function that prints a message for the user.
    """
    if not used:
        return Tracker(None)
    resolved = mlflow_uri(workspace.paths, uri)
    store_id = store.store_id(create=True)
    database = workspace.paths.mlflow_database

    def open_runs() -> SweepRuns:
        from orchestrator.results.mlflow_runs import SweepRuns

        artifacts = None
        if resolved.startswith("sqlite"):
            artifacts = workspace.paths.mlflow_artifacts
        runs = SweepRuns(connect(resolved), Page.of(workspace), store_id, artifacts)
        if "@" in runs.name:
            usual = runs.name.partition("@")[0]
            print_note(
                f"The MLflow experiment {usual} belongs to another result store. The runs of this "
                f"store are in the experiment {runs.name}"
            )
        return runs

    is_new = resolved == f"{SQLITE}{database}" and not database.exists()
    return Tracker(open_runs, print_note, connect_late=is_new)


@contextmanager
def open_tracker(
    tracker: Tracker, results: Iterable[FlatRun], failures: Iterable[FailureRecord] = ()
) -> Iterator[Tracker]:
    """Send stored results with a tracker, and close it at the end of the ``with`` block.

    Args:
        tracker: The tracker.
        results: Stored results.
        failures: Failures of trials without a result.
    """
    ending: Ending = "FAILED"
    try:
        tracker.reconcile(results, failures, wait=False)
        yield tracker
        ending = "FINISHED"
    except KeyboardInterrupt:
        ending = "KILLED"
        raise
    finally:
        tracker.close(ending)


def log_sweep(tracker: Tracker, workspace: Workspace, state: State) -> None:
    """Send the sweep's learning curves, numbers of trials and latest report to MLflow."""
    for run in curve_runs(state.flat_runs()):
        tracker.finish(run)
    folder = workspace.sweep_paths.report
    numbers: dict[str, float] = {}
    try:
        numbers = json.loads(read_whole(folder / HEADLINE))
    except (OSError, ValueError) as error:
        log.info("the numbers of the latest report cannot be read: %s", error)
    for name, count in state.counts(workspace.plan).items():
        numbers[f"trials_{name}"] = count
    tracker.log_report(numbers, folder if folder.is_dir() else None)
