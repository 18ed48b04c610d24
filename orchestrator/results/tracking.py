"""What MLflow should show of a sweep, and the thread that makes it so.

The result store is the truth and MLflow a view of it. :class:`Tracker` keeps a table of what MLflow
does not show yet: a run that is running or failed, a result, the sweep's report. One thread makes
MLflow show row after row and strikes them out; a row that failed stays, and is tried again after a
pause. A newer state of a run replaces its row. Nothing of this is on disk: what a killed driver did
not send, ``reconcile`` finds by putting the whole store into the table. Importing this module does
not import ``mlflow``.
"""

from __future__ import annotations

import json
import logging
import pickle
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from orchestrator.planning.plan import CellStatus
from orchestrator.planning.workspace import Workspace
from orchestrator.results import columns as c
from orchestrator.results.flat_runs import FlatRun, Live, Point, curve_runs, milliseconds
from orchestrator.results.mlflow_pages import SWEEP_KEY, Page
from orchestrator.results.records import FailureRecord
from orchestrator.results.state import State
from orchestrator.results.store import ResultStore
from tasks.atomic import read_whole, write_atomic
from tasks.clock import SYSTEM, Clock

if TYPE_CHECKING:
    from orchestrator.results.mlflow_runs import SweepRuns

from orchestrator.results.mlflow_connection import connect, mlflow_uri
from orchestrator.results.mlflow_errors import first_line, is_final, no_answer

log = logging.getLogger(__name__)

Say = Callable[[str], None]

Ending = Literal["FINISHED", "FAILED", "KILLED"]

"""How a sweep ended: it did what it could, it could not go on, or it was stopped."""

GATHER_S = 1.0

"""How long rows wait for more, so that many trials cost few calls."""

FIRST_PAUSE_S, LONGEST_PAUSE_S, GROWTH = 0.05, 15.0, 1.6

"""After a failure: a lost reply is repeated at once, and a server that is down not hammered."""

SAID_AFTER_S, FIRST_TRY_S = 2.0, 5.0

"""After how long a server's absence is told on the terminal, and how long a start waits to be
refused."""

PATIENCE_S, STOP_PATIENCE_S = 60.0, 8.0

"""How long the end of a sweep, and Ctrl-C, wait for a server. A new SQLite file takes 5 s when
quiet."""

HEADLINE = "headline.json"

"""Of a report: best losses and the headline claims by name, as the sweep's own run shows them."""

_REPORT, _END = "sweep report", "sweep end"

"""Keys of rows that are no runs; keys of runs hold no blank."""

_Row = Live | bytes | tuple[Mapping[str, float], Path | None] | Ending | None

"""A live run; a result, packed into 2 kB, since 10,000 may wait for a night; final numbers and the
report's folder; or the end of runs that nobody works on and, with an ending, of the sweep's own."""


class Tracker:
    """Makes MLflow show a sweep; no method waits for it unless it says so, and none raises when it
    is away.

    ``open_runs``, called in the background until it works, returns the sweep's runs in MLflow; None
    tracks nothing. ``say`` is told what a person should know, such as a server that does not
    answer. One that ``waits``, since nobody is there yet who could refuse us, begins when there is
    something to show.
    """

    def __init__(
        self,
        open_runs: Callable[[], SweepRuns] | None = None,
        say: Say = log.info,
        clock: Clock = SYSTEM,
        *,
        waits: bool = False,
    ) -> None:
        self._open_runs, self._say, self._clock = open_runs, say, clock
        self._runs: SweepRuns | None = None
        # The first row connects: a server that refuses us should do so before anything is trained.
        self._behind: dict[str, _Row] = {SWEEP_KEY: Live()} if open_runs else {}
        self._refused, self._running = set[str](), set[str]()
        self._counts = Counter(replayed=0, closed=0, duplicates=0, up_to_date=0)
        self._begun = self._stopped = self._reported = False
        self._error: Exception | None = None
        self._failing_since: float | None = None
        self._progress, self._pause, self._hurried = 0, 0.0, False
        self._changed = clock.condition()
        self._thread, self._waits = clock.thread(self._work, "mlflow"), waits
        if open_runs and not waits:
            self._thread.start()

    @property
    def num_behind(self) -> int:
        """Rows that MLflow does not show: not sent yet, or refused."""
        return len(self._behind)

    def check(self) -> None:
        """Wait a few seconds for MLflow's first answer; SetupError when it refuses us, and always
        will.
        """
        if self._waits or not self._open_runs:
            return
        with self._changed:
            self._changed.wait_for(lambda: self._progress or self._error, FIRST_TRY_S)
        if self._error and self._runs is None and self._refused:
            raise self._error

    def start_trial(self, trial_id: str, tags: Mapping[str, str]) -> None:
        """Show a trial as running; one that failed before goes on in its run."""
        with self._changed:
            self._begin()
            self._running.add(trial_id)
            self._change(trial_id, tags=tags, failed=False)

    def log_points(self, trial_id: str, points: Sequence[Point]) -> None:
        """Add points to the curves of a running trial."""
        with self._changed:
            if trial_id in self._running:
                self._change(trial_id, points)

    def log_counts(self, step: int, counts: Mapping[str, float]) -> None:
        """Add to the curves of the sweep's own run how many trials are done, failed and so on."""
        at = milliseconds(self._clock.time())
        with self._changed:
            self._begin()
            self._change(SWEEP_KEY, [(name, step, value, at) for name, value in counts.items()])

    def finish(self, run: FlatRun) -> None:
        """Show the result of a trial or measure."""
        with self._changed:
            self._begin()
            self._running.discard(run.run_key)
            self._want(run.run_key, _packed(run))

    def fail_trial(self, failure: FailureRecord) -> None:
        """Show that an attempt at a trial failed, with kind and message."""
        tags = {
            c.STATUS: str(CellStatus.FAILED),
            c.ATTEMPT: str(failure.attempt),
            "failure_kind": str(failure.failure.kind),
            "failure_message": failure.failure.message[:4000],
        }
        with self._changed:
            self._running.discard(failure.trial_id)
            self._change(failure.trial_id, tags=tags, failed=True)

    def log_report(self, numbers: Mapping[str, float], folder: Path | None = None) -> None:
        """Show the final numbers of the sweep in its own run, and the files of its report, if it
        has one.
        """
        self._want(_REPORT, (numbers, folder))

    def reconcile(
        self,
        results: Iterable[FlatRun],
        failures: Iterable[FailureRecord] = (),
        *,
        wait: bool = True,
    ) -> dict[str, int]:
        """Show exactly these results, and failures of cells without one; nothing runs.

        Every value is compared; second runs of one key are deleted, RUNNING ones are closed.
        ``wait=False`` leaves it to the background and returns no counts; else SetupError without an
        answer.
        """
        before = self._counts.copy()
        for run in results:
            self._want(run.run_key, _packed(run))
        self._running.clear()
        for failure in failures:
            self.fail_trial(failure)
        self._want(_END, None)
        if not wait:
            return {}
        if not self.flush() or self._refused:
            raise no_answer(self._error or TimeoutError("no answer"))
        return {name: n - before[name] for name, n in self._counts.items()}

    def flush(self, patience: float | None = None) -> bool:
        """Wait until all is shown that is not refused; False after ``patience`` seconds without
        progress.
        """
        self._wake()
        patience = PATIENCE_S if patience is None else patience
        with self._changed:
            self._hurried, self._pause = True, FIRST_PAUSE_S
            self._changed.notify_all()
            moves = True
            while moves and self._is_dirty() and self._thread.is_alive():
                moves = self._changed.wait_for(partial(self._is_past, self._progress), patience)
            return not self._is_dirty()

    def keep_pages(self, path: Path) -> None:
        """Keep at ``path`` where MLflow's server shows the runs that are known, for reports to link
        there.
        """
        if self._runs is not None:
            try:
                write_atomic(path, self._runs.run_pages().model_dump_json().encode(), durable=False)
            except OSError as error:
                log.warning("%s cannot be written, and reports link to no runs: %s", path, error)

    def close(self, ending: Ending) -> None:
        """Send what is behind for as long as MLflow takes something, then end every run that is
        open.

        A sweep that ended before, and in which nothing was done since, stays as it was unless it is
        finished.
        """
        if self._waits:
            return
        self._running.clear()
        self._want(_END, ending)
        self.flush(PATIENCE_S if ending == "FINISHED" else STOP_PATIENCE_S)
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(1.0)  # left alone where the other side does not let go of it

    def _begin(self) -> None:
        if not self._begun:
            self._begun = True
            self._change(SWEEP_KEY, tags={})

    def _change(self, key: str, points: Sequence[Point] = (), **state: Any) -> None:
        """Change what is wanted of a live run; points not sent yet stay, of an earlier attempt
        too.
        """
        row = self._behind.get(key)
        live = row if isinstance(row, Live) else Live()
        if state:
            state["at_ms"] = milliseconds(self._clock.time())
        self._want(key, replace(live, points=(*live.points, *points), **state))

    def _want(self, key: str, row: _Row) -> None:
        if self._open_runs is not None:
            with self._changed:
                self._behind[key] = row
                self._refused.discard(key)
                self._changed.notify_all()
            if row is not None:
                self._wake()

    def _wake(self) -> None:
        with self._changed:
            if self._waits:
                self._waits = False
                self._thread.start()

    def _is_past(self, progress: int) -> bool:
        return self._progress > progress

    def _is_dirty(self) -> bool:
        return len(self._behind) > len(self._refused)

    def _work(self) -> None:
        if self._open_runs is None:
            return
        while rows := self._due():
            for key, row in rows:
                if self._stopped or self._behind.get(key) is not row or key in self._refused:
                    continue  # a newer one comes with the next round
                try:
                    self._runs = self._runs or self._open_runs()
                    self._show(self._runs, key, row)
                except Exception as error:
                    if not self._is_refused(error, key, row):
                        break
                else:
                    self._shown(key, row)

    def _due(self) -> list[tuple[str, _Row]]:
        """Wait for rows, and for a pause; nothing when stopped."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._is_dirty())
            self._changed.wait_for(lambda: self._stopped or self._hurried, self._pause)
            self._hurried, self._pause = (
                False,
                GATHER_S if self._failing_since is None else self._pause,
            )
            rows = [] if self._stopped else [*self._behind.items()]
        # Final numbers come after the points of their curves, and the end last.
        return sorted(rows, key=lambda item: (item[0] == _END, item[0] == _REPORT))

    def _show(self, runs: SweepRuns, key: str, row: _Row) -> None:
        """Make MLflow show a row; may be repeated whatever became of the last try."""
        if isinstance(row, Live):
            runs.show_live(key, row)
        elif isinstance(row, bytes):
            wrote = runs.show(pickle.loads(zlib.decompress(row)))  # noqa: S301 (our own bytes)
            self._counts["replayed" if wrote else "up_to_date"] += 1
        elif isinstance(row, tuple):
            runs.show_report(*row, self._moved)
        else:
            with self._changed:
                busy = self._running | self._behind.keys() - self._refused
            closed, duplicates = runs.end_running(busy)
            self._counts.update(closed=closed, duplicates=duplicates)
            if row is not None:
                runs.end_sweep(row)

    def _shown(self, key: str, row: _Row) -> None:
        if self._reported:
            self._reported = False
            self._say("MLflow answers again")
        with self._changed:
            if self._behind.get(key) is row:
                del self._behind[key]
                self._refused.discard(key)
        self._moved()

    def _is_refused(self, error: Exception, key: str, row: _Row) -> bool:
        """Note why a row is not shown; what is refused (all, where nobody is let in) waits for a
        newer.
        """
        why, now = first_line(error), self._clock.monotonic()
        log.warning("MLflow does not show %s: %s", key, why)
        with self._changed:
            self._error = error
            if is_final(error):
                self._refused.update(
                    self._behind if self._runs is None else {key} & self._behind.keys()
                )
                self._moved()
                return True
            if getattr(error, "error_code", "") == "RESOURCE_DOES_NOT_EXIST":
                self._runs = (
                    None  # MLflow is an older one than it was: what we know of it holds no more
                )
            self._pause = (
                min(GROWTH * self._pause, LONGEST_PAUSE_S) if self._failing_since else FIRST_PAUSE_S
            )
            self._failing_since = self._failing_since or now
            if self._behind.get(key) is row:
                self._behind[key] = self._behind.pop(key)  # behind the others
            self._changed.notify_all()
        if not self._reported and now - self._failing_since >= SAID_AFTER_S:
            self._reported = True
            self._say(
                f"MLflow does not answer ({why}); the sweep goes on, and MLflow is updated later"
            )
        return False

    def _moved(self) -> None:
        with self._changed:
            self._progress += 1
            self._failing_since = None
            self._changed.notify_all()


def _packed(run: FlatRun) -> bytes:
    return zlib.compress(pickle.dumps(run), 1)


def make_tracker(
    workspace: Workspace,
    store: ResultStore,
    uri: str | None,
    *,
    used: bool = True,
    say: Say = log.info,
) -> Tracker:
    """Return the sweep's tracker, which connects in the background; not ``used``, it tracks
    nothing.
    """
    if not used:
        return Tracker(None)
    resolved, storage = mlflow_uri(workspace.paths, uri), store.identity(make=True)
    database = workspace.paths.mlflow_database

    def open_runs() -> SweepRuns:
        from orchestrator.results.mlflow_runs import SweepRuns

        artifacts = workspace.paths.mlflow_artifacts if resolved.startswith("sqlite") else None
        runs = SweepRuns(connect(resolved), Page.of(workspace), storage, artifacts)
        if "@" in runs.name:
            usual = runs.name.partition("@")[0]
            say(f"MLflow's {usual} is another result store's; this one's runs are in {runs.name}")
        return runs

    return Tracker(
        open_runs, say, waits=resolved == f"sqlite:///{database}" and not database.exists()
    )


@contextmanager
def open_tracker(
    tracker: Tracker, results: Iterable[FlatRun], failures: Iterable[FailureRecord] = ()
) -> Iterator[Tracker]:
    """Bring a tracker up to what is stored, and close it whatever happens in the block."""
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
    """Show in MLflow the sweep's curves, and in its own run what the store has and the latest
    report.
    """
    for run in curve_runs(state.flat_runs()):
        tracker.finish(run)
    folder, numbers = workspace.sweep_paths.report, dict[str, float]()
    try:
        numbers = json.loads(read_whole(folder / HEADLINE))
    except (OSError, ValueError) as error:
        log.info("the numbers of the latest report cannot be read: %s", error)
    counts = {f"trials_{name}": count for name, count in state.counts(workspace.plan).items()}
    tracker.log_report({**numbers, **counts}, folder if folder.is_dir() else None)
