"""What a sweep tells its tracker. The store is the truth; a tracker is a view that people query."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from orchestrator.results.rows import FlatRun, Point, Row, row_of
from orchestrator.results.tracking.run_pages import RunPages

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
