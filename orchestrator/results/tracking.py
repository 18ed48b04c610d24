"""What MLflow should show of a sweep, and the thread that makes it so.

The result store is the truth and MLflow a view of it. :class:`Tracker` keeps a table of what MLflow does not
show yet: a finished run, a run that is running with its tags and points, a failure, the sweep's own numbers
and report. One thread takes row after row, makes MLflow show it and strikes it out; a row that failed stays,
and is tried again after a pause. A newer state of a run replaces its row, so a night's outage costs a row per
run. Nothing of this is kept on disk: what a killed driver did not send, ``reconcile`` finds by putting the
whole store into the table, where rows that MLflow shows already cost a comparison. Importing this module
does not import ``mlflow``; :mod:`orchestrator.results.mlflow_runs` does.
"""

from __future__ import annotations

import logging
import math
import os
import pickle
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, Field

from orchestrator.planning.paths import RootPaths, without_secrets
from orchestrator.planning.plan import Workspace
from orchestrator.results import table as c
from orchestrator.results.records import FailureRecord
from orchestrator.results.rows import FlatRun, Point, Row
from orchestrator.results.state import StoredResults, judge
from orchestrator.results.store import ResultStore
from search_spaces.errors import ConfigError, SetupError
from tasks.atomic import read_whole, write_atomic

if TYPE_CHECKING:
    from orchestrator.results.mlflow_runs import SweepRuns

log = logging.getLogger(__name__)
Say = Callable[[str], None]

Ending = Literal["FINISHED", "FAILED", "KILLED"]
"""How a sweep ended: it did what it could, it could not go on, or it was stopped."""

FIRST_PAUSE_S, LONGEST_PAUSE_S, GROWTH = 0.05, 15.0, 1.6
"""Of pauses: a lost reply is repeated at once, and a server that is down not hammered."""
SAID_AFTER_S = 2.0
"""A lost reply now and then goes to the log; a server that is away for longer, to the terminal."""
POINTS_WAIT_S = 2.0
"""How long points of a running trial wait for more, so that many trials cost few calls."""
FIRST_TRY_S = 5.0
"""How long a sweep's start waits for the server to refuse it; one that is slow or away is reported later."""
PATIENCE_S = 60.0
STOP_PATIENCE_S = 8.0
"""How long the end of a sweep, and Ctrl-C, wait for a server. A new SQLite file takes 5 s when quiet."""

SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks")
"""What MLflow itself opens, of databases also with a driver, as in ``postgresql+psycopg``."""

COUNTS_KEY, REPORT_KEY, END_KEY = "sweep counts", "sweep report", "sweep end"
"""Rows of the sweep's own run; keys of others hold no blank."""


@dataclass(frozen=True)
class _Running:
    """A run that is running."""

    tags: Mapping[str, str] | None
    """Of its start; None where it is open already."""
    at_ms: int = 0
    points: tuple[Point, ...] = ()
    not_before: float = 0.0
    """Monotonic time until which the row may wait for more points."""


@dataclass(frozen=True)
class _Failed:
    """A run whose latest attempt failed, with the points of its curves that are not sent yet."""

    failure: FailureRecord
    at_ms: int
    points: tuple[Point, ...] = ()


@dataclass(frozen=True)
class _Finished:
    """A run with its result, packed into 2 kB: 10,000 of them may wait for a night."""

    packed: bytes

    @classmethod
    def of(cls, run: FlatRun) -> _Finished:
        return cls(zlib.compress(pickle.dumps(run), 1))

    def run(self) -> FlatRun:
        run: FlatRun = pickle.loads(zlib.decompress(self.packed))  # noqa: S301 (our own bytes)
        return run


@dataclass(frozen=True)
class _Report:
    """What the sweep's own run shows of its results."""

    numbers: Mapping[str, float]
    folder: Path | None


@dataclass(frozen=True)
class _End:
    """No run is open that nobody works on; with an ending, the sweep's own has ended too."""

    ending: Ending | None


_Row = _Running | _Failed | _Finished | _Report | _End


class Tracker:
    """Makes MLflow show a sweep.

    No method waits for MLflow unless it says so, and none raises when MLflow is away.

    Args:
        open_runs: Returns the sweep's runs in MLflow; called in the background, until it works. None tracks
            nothing (``--no-tracking``); the store still has everything.
        say: Is called with what a person should know, such as a server that does not answer.
    """

    def __init__(self, open_runs: Callable[[], SweepRuns] | None = None, say: Say = log.info) -> None:
        self._open_runs, self._say = open_runs, say
        self._runs: SweepRuns | None = None
        # The first row connects: a server that refuses us should do so before anything is trained.
        self._behind: dict[str, _Row] = {COUNTS_KEY: _Running(None, 0)} if open_runs else {}
        self._refused, self._running = set[str](), set[str]()
        self._counts = Counter(replayed=0, closed=0, duplicates=0, up_to_date=0)
        self._begun = self._stopped = self._urgent = self._reported = False
        self._refusal: Exception | None = None
        self._error: Exception = TimeoutError("no answer")
        self._failing_since: float | None = None
        self._progress, self._pause = 0, FIRST_PAUSE_S
        self._asked, self._changed = threading.Event(), threading.Condition()
        self._thread = threading.Thread(target=self._work, args=(open_runs,), name="mlflow", daemon=True)
        if open_runs:
            self._thread.start()

    @property
    def num_behind(self) -> int:
        """Rows that MLflow does not show: not sent yet, or refused."""
        return len(self._behind) + len(self._refused - self._behind.keys())

    def check(self) -> None:
        """Wait a few seconds for MLflow's first answer.

        Raises:
            SetupError: when it refuses us, and always will.
        """
        if self._open_runs is not None:
            self._asked.wait(FIRST_TRY_S)
        if self._refusal is not None:
            raise self._refusal

    def start_trial(self, trial_id: str, tags: Mapping[str, str]) -> None:
        """Show a trial as running; one that failed before goes on in its run."""
        with self._changed:
            self._begun = True
            self._running.add(trial_id)
            self._want(trial_id, _Running(tags, _now(), self._points(trial_id)))

    def log_points(self, trial_id: str, points: Sequence[Point]) -> None:
        """Add points to the curves of a running trial."""
        with self._changed:
            if trial_id in self._running:
                self._add(trial_id, points)

    def log_counts(self, step: int, counts: Mapping[str, float]) -> None:
        """Add to the curves of the sweep's own run how many trials are done, failed and so on."""
        at = _now()
        with self._changed:
            self._begun = True
            self._add(COUNTS_KEY, [(name, step, value, at) for name, value in counts.items()])

    def finish(self, run: FlatRun) -> None:
        """Show the result of a trial or measure."""
        row = _Finished.of(run)
        with self._changed:
            self._begun = True
            self._running.discard(run.run_key)
            self._want(run.run_key, row)

    def fail_trial(self, failure: FailureRecord) -> None:
        """Show that an attempt at a trial failed, with kind and message."""
        key = failure.trial_id
        with self._changed:
            self._running.discard(key)
            self._want(key, _Failed(failure, _now(), self._points(key)))

    def log_report(self, numbers: Mapping[str, float], folder: Path | None = None) -> None:
        """Show the final numbers of the sweep in its own run, and the files of its report, each by itself.

        Args:
            numbers: By name, such as ``trials_done``.
            folder: Of the report; None where there is none.
        """
        with self._changed:
            self._want(REPORT_KEY, _Report(numbers, folder))

    def reconcile(
        self, results: Iterable[FlatRun], failures: Iterable[FailureRecord] = (), *, wait: bool = True
    ) -> dict[str, int]:
        """Show exactly these results and failures; nothing runs.

        Every value is compared; second runs of one key are marked as duplicates, RUNNING ones are closed.

        Args:
            results: All that the store has.
            failures: Of cells that have no result.
            wait: False leaves it to the background and returns no counts.

        Raises:
            SetupError: when MLflow does not answer.
        """
        if wait:
            self.check()
        before = self._counts.copy()
        for run in results:
            row = _Finished.of(run)
            with self._changed:
                self._want(run.run_key, row)
        with self._changed:
            self._running.clear()
            for failure in failures:
                self._want(failure.trial_id, _Failed(failure, _now()))
            self._want(END_KEY, _End(None))
        if not wait:
            return {}
        if not self.flush() or self._refused:
            from orchestrator.results.mlflow_runs import no_answer

            raise no_answer(self._error)
        return {name: n - before[name] for name, n in self._counts.items()}

    def flush(self, patience: float | None = None) -> bool:
        """Wait until nothing is behind; False after ``patience`` seconds without any progress."""
        patience = PATIENCE_S if patience is None else patience
        with self._changed:
            self._urgent, self._pause = True, FIRST_PAUSE_S
            self._changed.notify_all()
            since, seen = time.monotonic(), self._progress
            while self._behind and self._thread.is_alive() and time.monotonic() - since <= patience:
                self._changed.wait(0.1)
                if self._progress != seen:
                    since, seen = time.monotonic(), self._progress
            self._urgent = False
            return not self._behind

    def pages(self) -> RunPages:
        """Return where MLflow's server shows the runs that are known; none before it has answered."""
        runs = self._runs
        return RunPages() if runs is None else RunPages(prefix=runs.pages, runs=runs.run_ids())

    def close(self, ending: Ending) -> None:
        """Send what is behind, then end every run that is open, and the sweep's own as it ended.

        Waits for MLflow as long as it takes something. A sweep that ended before, and in which nothing was
        done since, stays as it was unless it is finished now: a start that is refused changes nothing.
        """
        with self._changed:
            self._running.clear()
            self._want(END_KEY, _End(ending))
        self.flush(PATIENCE_S if ending == "FINISHED" else STOP_PATIENCE_S)
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(1.0)  # left alone where the other side does not let go of it

    def _want(self, key: str, row: _Row) -> None:
        if self._open_runs is not None:
            self._behind[key] = row
            self._changed.notify_all()

    def _points(self, key: str) -> tuple[Point, ...]:
        row = self._behind.get(key)  # of an earlier attempt
        return row.points if isinstance(row, _Running | _Failed) else ()

    def _add(self, key: str, points: Sequence[Point]) -> None:
        row = self._behind.get(key)
        if not isinstance(row, _Running):
            row = _Running(None, 0, not_before=time.monotonic() + POINTS_WAIT_S)
        self._want(key, replace(row, points=(*row.points, *points)))

    def _work(self, open_runs: Callable[[], SweepRuns]) -> None:
        from orchestrator.results.mlflow_runs import first_line, is_final

        while (found := self._next()) is not None:
            try:
                self._runs = self._runs or open_runs()
                self._show(self._runs, *found)
            except Exception as error:
                log.warning("MLflow does not show %s: %s", found[0], first_line(error))
                if is_final(error):
                    self._refused_by(error, *found)
                else:
                    self._postpone(found[0], error, first_line(error))
            else:
                self._shown(*found)

    def _next(self) -> tuple[str, _Row] | None:
        """Wait for a row that is due; None when stopped."""
        with self._changed:
            while not self._stopped:
                # Final numbers come after the points of their curves, and those do not wait then.
                reports = REPORT_KEY in self._behind
                now = math.inf if reports or self._urgent else time.monotonic()
                for key, row in self._behind.items():
                    waits = isinstance(row, _Running) and row.not_before > now
                    later = key == END_KEY or (key == REPORT_KEY and COUNTS_KEY in self._behind)
                    if not waits and not later:
                        return key, row
                # Points that wait keep no ghost alive, but a sweep ends when all of it is shown.
                end = self._behind.get(END_KEY)
                if isinstance(end, _End) and (end.ending is None or len(self._behind) == 1):
                    return END_KEY, end
                self._changed.wait(0.2 if self._behind else None)
        return None

    def _show(self, runs: SweepRuns, key: str, row: _Row) -> None:
        """Make MLflow show a row; may be repeated whatever became of the last try."""
        if self._begun:
            runs.begin()
        match row:
            case _Running():
                if row.tags is not None:
                    runs.open(key, "trial", row.tags, row.at_ms)
                runs.log_points(None if key == COUNTS_KEY else key, row.points)
            case _Failed():
                runs.log_points(key, row.points)
                runs.show_failure(row.failure, row.at_ms)
            case _Finished():
                wrote = runs.show(row.run())
                self._counts["replayed" if wrote else "up_to_date"] += 1
            case _Report():
                runs.show_report(row.numbers, row.folder, self._moved)
            case _End():
                self._counts["duplicates"] += runs.mark_duplicates()
                self._counts["closed"] += runs.end_running(but=self._running.copy())
                if row.ending is not None:
                    runs.end_sweep(row.ending)

    def _shown(self, key: str, row: _Row) -> None:
        self._asked.set()
        if self._reported:
            self._reported = False
            self._say("MLflow answers again")
        with self._changed:
            self._refused.discard(key)
            self._remove(key, row)

    def _refused_by(self, error: Exception, key: str, row: _Row) -> None:
        """Give a row up until it is wanted anew; all of them where MLflow lets nobody in."""
        self._error = error
        with self._changed:
            if self._runs is None:
                self._refusal = self._refusal or error
                self._refused.update(self._behind)
                self._behind.clear()
            self._refused.add(key)
            self._remove(key, row)
        self._asked.set()

    def _postpone(self, key: str, error: Exception, why: str) -> None:
        """Put a row behind the others, and pause, each time for longer until something gets on."""
        self._error = error
        self._asked.set()
        if getattr(error, "error_code", "") == "RESOURCE_DOES_NOT_EXIST":
            self._runs = None  # MLflow is an older one than it was: what we know of its runs holds no more
        self._failing_since = self._failing_since or time.monotonic()
        if not self._reported and time.monotonic() - self._failing_since >= SAID_AFTER_S:
            self._reported = True
            self._say(f"MLflow does not answer ({why}); the sweep goes on, and MLflow is updated later")
        with self._changed:
            if key in self._behind:
                self._behind[key] = self._behind.pop(key)
            urgent = self._urgent
            pause, self._pause = self._pause, min(GROWTH * self._pause, LONGEST_PAUSE_S)
            self._changed.wait_for(lambda: self._stopped or (self._urgent and not urgent), pause)

    def _remove(self, key: str, row: _Row) -> None:
        """Take a row out of the table unless a newer one has replaced it."""
        if self._behind.get(key) is row:
            del self._behind[key]
        self._moved()

    def _moved(self) -> None:
        self._progress += 1
        self._pause, self._failing_since = FIRST_PAUSE_S, None
        with self._changed:
            self._changed.notify_all()


def _now() -> int:
    """Return milliseconds since 1970."""
    return round(time.time() * 1000)


# Which MLflow a sweep has.


def mlflow_uri(paths: RootPaths, uri: str | None) -> str:
    """Return the MLflow store to use: as asked, else the environment's, else SQLite below the root.

    Raises:
        ConfigError: for a file store, which MLflow has closed, and what neither MLflow nor a plugin opens.
        SetupError: when it is below a root whose path is another one in a URL.
    """
    if named := uri or os.environ.get("MLFLOW_TRACKING_URI"):
        scheme, found, _ = named.partition("://")
        plugins = (plugin.name for plugin in entry_points(group="mlflow.tracking_store"))
        if not found or scheme.partition("+")[0] not in {*SCHEMES, *plugins}:
            raise ConfigError(
                "The MLflow URI must be a database or server",
                without_secrets(named),
                "e.g. sqlite:////data/mlflow.db or https://…",
            )
        return named
    # Up to the question mark would be a file beside the root, open to everybody; and MLflow makes the folders
    # of a file by its quoted name, so that quoting is no way out.
    if any(sign in str(paths.root) for sign in "?%"):
        raise SetupError(
            "The path of a root with MLflow's SQLite file must have no '?' and no '%'",
            str(paths.root),
            "choose another with --root, name an MLflow server with --mlflow-uri, or run with --no-tracking",
        )
    return f"sqlite:///{paths.mlflow_database}"


def make_tracker(
    workspace: Workspace, store: ResultStore, uri: str | None, *, used: bool = True, say: Say = log.info
) -> Tracker:
    """Return the sweep's tracker, which connects in the background.

    Args:
        workspace: The sweep.
        store: Its results.
        uri: See :func:`mlflow_uri`.
        used: False tracks nothing.
        say: Is called with what a person should know, such as a server that does not answer.

    Raises:
        SweepError: for a URI that can never work.
    """
    if not used:
        return Tracker(None)
    resolved, storage = mlflow_uri(workspace.paths, uri), store.own_identity()

    def open_runs() -> SweepRuns:
        from orchestrator.results.mlflow_pages import Page
        from orchestrator.results.mlflow_runs import SweepRuns, connect

        artifacts = workspace.paths.mlflow_artifacts if resolved.startswith("sqlite") else None
        runs = SweepRuns(connect(resolved), Page.of(workspace), storage, artifacts)
        if runs.name != runs.usual_name:
            say(f"MLflow's {runs.usual_name} is another result store's; this one's runs are in {runs.name}")
        return runs

    return Tracker(open_runs, say)


@contextmanager
def open_tracker(
    workspace: Workspace, stored: StoredResults, uri: str | None, *, used: bool = True, say: Say = log.info
) -> Iterator[Tracker]:
    """Open the tracker of :func:`make_tracker`, bring it up to the store, and close it whatever happens."""
    tracker = make_tracker(workspace, stored.store, uri, used=used, say=say)
    ending: Ending = "FAILED"
    try:
        state = judge(workspace, stored)
        tracker.reconcile(state.flat_runs(), state.failures.values(), wait=False)
        yield tracker
        ending = "FINISHED"
    except KeyboardInterrupt:
        ending = "KILLED"
        raise
    finally:
        tracker.close(ending)


def tracked_rows(workspace: Workspace, uri: str | None, storage: str | None) -> list[Row]:
    """Return the rows that MLflow shows for a sweep, ordered by trial id; nothing is made there.

    Args:
        workspace: The sweep.
        uri: See :func:`mlflow_uri`.
        storage: Identity of the result store whose runs are wanted; None takes whatever bears the name.

    Raises:
        SetupError: when MLflow does not answer.
    """
    from orchestrator.results.mlflow_runs import connect, read_rows

    resolved = mlflow_uri(workspace.paths, uri)
    # MLflow would make the file, and the reader is only asking.
    if resolved.startswith("sqlite:///") and not Path(resolved.removeprefix("sqlite:///")).exists():
        return []
    return read_rows(connect(resolved), workspace.plan.sweep.name, storage)


def check_tracker(paths: RootPaths, uri: str | None) -> str:
    """Say in words that MLflow answers; nothing is made there. Arguments as of :func:`mlflow_uri`.

    Raises:
        SweepError: when it does not answer, or never will at this URI.
    """
    from orchestrator.results.mlflow_runs import connect

    resolved = mlflow_uri(paths, uri)
    if resolved == f"sqlite:///{paths.mlflow_database}" and not paths.mlflow_database.exists():
        return f"{paths.mlflow_database}, not made yet"
    connect(resolved)
    return f"answers ({resolved.partition('://')[0]})"


# Where MLflow shows a sweep's trials, kept beside the sweep so that a report can link there unasked.


class RunPages(BaseModel):
    """Where MLflow shows runs: what stands before a run's id in the address of its page, and ids by key."""

    prefix: str = ""
    runs: dict[str, str] = Field(default_factory=dict)


def keep_run_pages(path: Path, pages: RunPages) -> None:
    """Write down what is known; nothing known leaves what an earlier run kept.

    A link is a convenience: where it cannot be written, the log says so.
    """
    if not pages.runs:
        return
    try:
        write_atomic(path, pages.model_dump_json().encode(), durable=False)
    except OSError as error:
        log.warning("%s cannot be written: %s", path, error)


def read_run_pages(path: Path) -> RunPages:
    """Return what was kept; nothing where nothing was, or where it cannot be read."""
    if not path.exists():
        return RunPages()
    try:
        return RunPages.model_validate_json(read_whole(path))
    except (OSError, ValueError) as error:
        log.warning("%s cannot be read, and reports link to no runs: %s", path, error)
        return RunPages()


# What MLflow shows beside what the store holds: the store counts, and every difference is reported.

MOST_SHOWN = 3


def differences(stored: Iterable[Row], tracked: Iterable[Row], mend: str) -> list[str]:
    """Say in sentences what MLflow shows otherwise than the store, if anything.

    Args:
        stored: Rows of the store.
        tracked: Rows of MLflow. A column that is absent on one side is a difference too, unless it is none of
            ours.
        mend: The command that mends it.
    """
    ours = {str(row[c.TRIAL_ID]): row for row in stored}
    theirs = {str(row[c.TRIAL_ID]): row for row in tracked}
    found: dict[str, list[str]] = {}
    for trial_id in sorted(ours.keys() & theirs.keys()):
        row, shown = ours[trial_id], theirs[trial_id]
        strangers = {column.name for column in c.describe(shown) if column.origin is None}
        for name in {**row, **shown}:
            if row.get(name) != shown.get(name) and (name in row or name not in strangers):
                there, here = (repr(one[name]) if name in one else "nothing" for one in (shown, row))
                found.setdefault(trial_id, []).append(f"{trial_id} {name}: {there}, stored {here}")
    sentences = []
    if values := [text for texts in found.values() for text in texts]:
        more = [f"and {len(values) - MOST_SHOWN} more"] if len(values) > MOST_SHOWN else []
        sentences.append(
            f"MLflow differs from the result store in {len(values)} values of {len(found)} trials "
            f"({'; '.join([*values[:MOST_SHOWN], *more])}); the store's are used. Mend MLflow with `{mend}`"
        )
    if missing := ours.keys() - theirs.keys():
        sentences.append(f"MLflow lacks {len(missing)} results that the store has: send them with `{mend}`")
    if strange := theirs.keys() - ours.keys():
        sentences.append(
            f"MLflow shows {len(strange)} trials of which the sweep, as it is planned now, has no result; "
            "left out"
        )
    return sentences
