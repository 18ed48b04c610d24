"""What a sweep tells its tracker. The store is the truth; a tracker is a view that people query."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from pydantic import BaseModel, Field

from orchestrator.results import table as c
from orchestrator.results.rows import FlatRun, Point, Row, row_of
from tasks.atomic import read_whole, write_atomic

# Updates for a server that may be slow, away or cutting connections: sent in order, each until it is taken.
#
# One background thread sends; whoever tells something never waits. An update must be repeatable: when its
# reply was lost it is sent again. Nothing is kept on disk, because the result store has it all: what a
# killed driver did not send is found by comparing when the next one starts.

log = logging.getLogger(__name__)

FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 15.0
SAID_AFTER_S = 2.0
"""A lost reply now and then is the log's business; a server that is away is a person's."""
GROWTH = 1.6
"""Of pauses: a lost reply is asked for again at once, and a server that is down not hammered."""

Update = Callable[[], None]


class Outbox:
    """Sends updates in the background.

    Args:
        connect: Makes the other side ready; called before the first update, again until it works.
        is_final: Tells whether an error will be the same however often the update is sent.
        say: Is told once when the other side is away for a while, and once when it is back.
        name: Of the other side, for people.
        describe: Says in a line what an error means.
    """

    def __init__(
        self,
        connect: Update,
        is_final: Callable[[Exception], bool],
        say: Callable[[str], None],
        name: str,
        describe: Callable[[Exception], str] = str,
    ) -> None:
        self.num_refused = 0
        self.error: Exception | None = None
        self.last_error: Exception | None = None
        self._connect, self._is_final, self._say, self._name = connect, is_final, say, name
        self._describe = describe
        self._connected = False
        self._troubled_since: float | None = None
        self._said = False
        self._updates: queue.Queue[Update | None] = queue.Queue()
        self._first_try = threading.Event()
        self._stopping = threading.Event()
        self._progress = 0
        self._thread = threading.Thread(target=self._drain, name=f"{name}-outbox", daemon=True)
        self._thread.start()

    @property
    def num_behind(self) -> int:
        """Updates that were refused or have not been sent."""
        return self.num_refused + self._updates.unfinished_tasks

    def put(self, update: Update) -> None:
        """Send ``update`` after all earlier ones."""
        self._updates.put(update)

    def wait_for_first_try(self, timeout: float) -> None:
        """Wait until the other side was asked once, for at most ``timeout`` seconds.

        Raises:
            Exception: the other side's, when it will never be another.
        """
        self._first_try.wait(timeout)
        if self.error is not None:
            raise self.error

    def flush(self, patience: float) -> bool:
        """Wait until everything was sent; False after ``patience`` seconds without any progress."""
        since, seen = time.monotonic(), self._progress
        while self._updates.unfinished_tasks and self._thread.is_alive():
            if self._progress != seen:
                since, seen = time.monotonic(), self._progress
            if time.monotonic() - since > patience:
                return False
            time.sleep(0.02)
        return not self._updates.unfinished_tasks

    def trouble(self) -> float:
        """Return for how many seconds the other side has not answered; 0 when it does."""
        since = self._troubled_since
        return 0.0 if since is None else time.monotonic() - since

    def moved(self) -> None:
        """Say that a long update is getting on."""
        self._progress += 1

    def stop(self, timeout: float = 1.0) -> None:
        """Send no more; the thread is left alone when the other side does not let go of it."""
        self._stopping.set()
        self._updates.put(None)
        self._thread.join(timeout)

    def _drain(self) -> None:
        self._send(lambda: None)
        self._first_try.set()
        while (update := self._updates.get()) is not None:
            if not self._stopping.is_set() and self._send(update):
                self._updates.task_done()
                self._progress += 1
        self._updates.task_done()

    def _send(self, update: Update) -> bool:
        """Try until the update was taken or refused for good; False when stopped before."""
        pause = FIRST_PAUSE_S
        while not self._stopping.is_set():
            try:
                if not self._connected:
                    self._connect()
                    self._connected = True
                update()
            except Exception as error:
                if self._is_final(error):
                    return self._refused(error)
                self._away(error)
                self._stopping.wait(pause)
                pause = min(GROWTH * pause, LONGEST_PAUSE_S)
                continue
            self._back()
            return True
        return False

    def _refused(self, error: Exception) -> bool:
        if not self._connected and self.error is None:
            self.error = error
        self.num_refused += 1
        log.warning(
            "%s refused an update (%d so far): %s", self._name, self.num_refused, self._describe(error)
        )
        return True

    def _away(self, error: Exception) -> None:
        self.last_error = error
        self._first_try.set()
        log.warning("%s did not take an update, which is sent again: %s", self._name, self._describe(error))
        if self._troubled_since is None:
            self._troubled_since = time.monotonic()
        if not self._said and self.trouble() >= SAID_AFTER_S:
            self._said = True
            self._say(
                f"{self._name} does not answer ({self._describe(error)}); "
                "the sweep goes on, and it is told later"
            )

    def _back(self) -> None:
        self._troubled_since = None
        if self._said:
            self._said = False
            self._say(f"{self._name} answers again")


# Points of curves on their way to a tracker, put together so that many trials cost few calls.
#
# However fast points come, an update with all of them is sent every few seconds at most, and none while one
# waits: a slow server gets fewer and larger ones.

INTERVAL_S = 2.0


class Curves:
    """Collects points by run, in the thread that tells them.

    Args:
        write: Sends points of one run; may be repeated with the same ones.
        put: Takes an update into the outbox.
        clock: Tells the time, in seconds.
    """

    def __init__(
        self,
        write: Callable[[str, list[Point]], None],
        put: Callable[[Callable[[], None]], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._write, self._put, self._clock = write, put, clock
        self._points: dict[str, list[Point]] = {}
        self._arrived = threading.Event()
        self._arrived.set()
        self._sent = clock() - INTERVAL_S

    def add(self, run_key: str, points: Iterable[Point]) -> None:
        """Take points, and send all there are unless some were sent a moment ago or still wait."""
        self._points.setdefault(run_key, []).extend(points)
        if self._arrived.is_set() and self._clock() - self._sent >= INTERVAL_S:
            self.send()

    def send(self) -> None:
        """Send all there are in their turn: before whatever is put into the outbox next."""
        if not self._points:
            return
        batch, self._points = self._points, {}
        self._sent = self._clock()
        self._arrived = arrived = threading.Event()

        def write() -> None:
            for run_key, points in batch.items():
                self._write(run_key, points)
            arrived.set()

        self._put(write)


# Where the tracker shows a sweep's trials, kept beside the sweep so that a report can link there unasked.


class RunPages(BaseModel):
    """Where a tracker shows the runs of trials, as far as it knows.

    Attributes:
        prefix: What stands before a run's id in the address of its page.
        runs: The run's id, by trial id.
    """

    prefix: str = ""
    runs: dict[str, str] = Field(default_factory=dict)


def keep_run_pages(path: Path, pages: RunPages) -> None:
    """Write down what a tracker knows; one that knows nothing leaves what an earlier run knew.

    A link is a convenience: that it cannot be written is said in the log and ends nothing.
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


Ending = Literal["FINISHED", "FAILED", "KILLED"]
"""How a sweep ended: it did what it could, it could not go on, or it was stopped."""

PARENT_KEY = "sweep"
"""Run key of the sweep itself."""


@dataclass(frozen=True)
class Failure:
    """One failed attempt at a trial."""

    run_key: str
    kind: str
    message: str
    attempt: int


class Tracker(Protocol):
    """What a tracker does.

    Telling it something neither blocks for long nor raises when the other side is away; asking it something
    raises ``SetupError`` then.

    What could not be sent is counted in ``num_behind`` and is sent by the next ``reconcile``, because the
    store holds it.
    """

    @property
    def num_behind(self) -> int:
        """How much of what was said the other side has not taken."""

    def start_trial(self, trial_id: str, tags: dict[str, str]) -> None:
        """A trial starts (again)."""

    def finish(self, run: FlatRun) -> None:
        """A trial or measure has its result."""

    def fail_trial(self, failure: Failure) -> None:
        """An attempt at a trial failed."""

    def extend(self, run_key: str, points: Sequence[Point]) -> None:
        """The curves of something that runs go on: of a trial, or of the sweep (``PARENT_KEY``)."""

    def add_report(self, folder: Path, summary: Mapping[str, float]) -> None:
        """The sweep's report was written; ``summary`` has what it found by name."""

    def reconcile(
        self, results: Iterable[FlatRun], failures: Sequence[Failure] = (), *, wait: bool = True
    ) -> dict[str, int]:
        """Show exactly these results and failures; nothing runs. Returns counts of what that took, or nothing
        with ``wait=False``, which leaves it to the background.
        """

    def rows(self) -> list[Row]:
        """Rows of all trials with a result, ordered by trial id."""

    def pages(self) -> RunPages:
        """Where it shows trials, without asking the other side anything."""

    def close(self, ending: Ending) -> None:
        """Nothing more will come: end the sweep's run and leave none running.

        A sweep that ended before, and of which nothing was done since, stays as it was unless it is finished
        now: a start that is refused changes nothing.
        """


class NoopTracker:
    """Tracks nothing (``--no-tracking``); the store still has everything."""

    num_behind = 0

    def start_trial(self, trial_id: str, tags: dict[str, str]) -> None:
        """Do nothing."""

    def finish(self, run: FlatRun) -> None:
        """Do nothing."""

    def fail_trial(self, failure: Failure) -> None:
        """Do nothing."""

    def extend(self, run_key: str, points: Sequence[Point]) -> None:
        """Do nothing."""

    def add_report(self, folder: Path, summary: Mapping[str, float]) -> None:
        """Do nothing."""

    def reconcile(
        self, results: Iterable[FlatRun], failures: Sequence[Failure] = (), *, wait: bool = True
    ) -> dict[str, int]:
        """Do nothing."""
        return {}

    def rows(self) -> list[Row]:
        """Return no rows."""
        return []

    def pages(self) -> RunPages:
        """Return none."""
        return RunPages()

    def close(self, ending: Ending) -> None:
        """Do nothing."""


@dataclass
class InMemoryTracker:
    """Keeps what it is told, for tests."""

    statuses: dict[str, str] = field(default_factory=dict)
    runs: dict[str, FlatRun] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    reports: list[Path] = field(default_factory=list)
    num_behind: int = 0
    ending: Ending | None = None
    points: dict[str, list[Point]] = field(default_factory=dict)

    def start_trial(self, trial_id: str, tags: dict[str, str]) -> None:
        """Mark as running."""
        self.statuses[trial_id] = "RUNNING"

    def finish(self, run: FlatRun) -> None:
        """Keep the run."""
        self.statuses[run.run_key] = "FINISHED"
        self.runs[run.run_key] = run

    def fail_trial(self, failure: Failure) -> None:
        """Keep the failure."""
        self.statuses[failure.run_key] = "FAILED"
        self.failures.append(failure)

    def extend(self, run_key: str, points: Sequence[Point]) -> None:
        """Keep the points."""
        self.points.setdefault(run_key, []).extend(points)

    def add_report(self, folder: Path, summary: Mapping[str, float]) -> None:
        """Keep the folder."""
        self.reports.append(folder)

    def reconcile(
        self, results: Iterable[FlatRun], failures: Sequence[Failure] = (), *, wait: bool = True
    ) -> dict[str, int]:
        """Take the results as they are."""
        replayed = [run for run in results if self.runs.get(run.run_key) != run]
        for run in replayed:
            self.finish(run)
        for failure in failures:
            if self.statuses.get(failure.run_key) != "FAILED":
                self.fail_trial(failure)
        return {"replayed": len(replayed)}

    def rows(self) -> list[Row]:
        """Return the rows of all finished trials."""
        runs = sorted((run for run in self.runs.values() if run.kind == "trial"), key=lambda r: r.run_key)
        return [row_of(run.tags, run.metrics) for run in runs]

    def pages(self) -> RunPages:
        """Call each run as its trial."""
        return RunPages(prefix="memory:", runs={key: key for key in self.runs})

    def close(self, ending: Ending) -> None:
        """End whatever still runs."""
        self.ending = ending
        for key, status in self.statuses.items():
            if status == "RUNNING":
                self.statuses[key] = "KILLED"


# What a tracker shows beside what the store holds: the store counts, and every difference is said.

Value = str | int | float | None
MOST_SAID = 3


@dataclass(frozen=True)
class Difference:
    """One value of one trial that the tracker shows otherwise than the store."""

    trial_id: str
    column: str
    stored: Value
    tracked: Value

    def __str__(self) -> str:
        """Say it in one line."""
        return f"{self.trial_id} {self.column}: {_spelled(self.tracked)}, stored {_spelled(self.stored)}"


@dataclass(frozen=True)
class Comparison:
    """How a tracker's rows differ from the store's.

    Attributes:
        missing: Trials that the store has and the tracker lacks.
        strange: Trials that the tracker has and the store lacks.
        differences: Values that differ, ordered by trial.
    """

    missing: tuple[str, ...] = ()
    strange: tuple[str, ...] = ()
    differences: tuple[Difference, ...] = ()

    def sentences(self, mend: str) -> list[str]:
        """Say what differs, if anything, and the command ``mend`` that mends it."""
        said = []
        if self.differences:
            trials = len({difference.trial_id for difference in self.differences})
            shown = "; ".join(map(str, self.differences[:MOST_SAID]))
            more = len(self.differences) - MOST_SAID
            shown += f"; and {more} more" if more > 0 else ""
            said.append(
                f"MLflow differs from the result store in {len(self.differences)} values of {trials} trials "
                f"({shown}); the store's are used. Mend MLflow with `{mend}`"
            )
        if self.missing:
            said.append(
                f"MLflow lacks {len(self.missing)} results that the store has: send them with `{mend}`"
            )
        if self.strange:
            said.append(
                f"MLflow shows {len(self.strange)} trials of which the sweep, as it is planned now, has no "
                "result; left out"
            )
        return said


def compare(stored: Iterable[Row], tracked: Iterable[Row]) -> Comparison:
    """Compare rows cell by cell; a column that is absent on one side is a difference too."""
    ours = {str(row[c.TRIAL_ID]): row for row in stored}
    theirs = {str(row[c.TRIAL_ID]): row for row in tracked}
    differences = [
        Difference(trial_id, column, row.get(column), shown.get(column))
        for trial_id, row in sorted(ours.items())
        if (shown := theirs.get(trial_id)) is not None
        for column in _names(row, shown)
        if row.get(column) != shown.get(column)
    ]
    return Comparison(
        tuple(sorted(ours.keys() - theirs.keys())),
        tuple(sorted(theirs.keys() - ours.keys())),
        tuple(differences),
    )


def _names(row: Row, shown: Row) -> list[str]:
    """Return the columns to compare: ours, and of the tracker's only those that are ours in kind."""
    strangers = {column.name for column in c.describe(shown) if column.origin is None}
    return [name for name in {**row, **shown} if name in row or name not in strangers]


def _spelled(value: Value) -> str:
    return "nothing" if value is None else repr(value)
