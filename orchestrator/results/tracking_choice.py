"""Which tracker a sweep has: the one place that chooses."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.planning.paths import RootPaths
from orchestrator.planning.plan import Workspace
from orchestrator.results.rows import Row
from orchestrator.results.state import StoredResults, judge
from orchestrator.results.store import ResultStore
from orchestrator.results.tracking import Ending, NoopTracker, Tracker
from search_spaces.errors import SetupError

if TYPE_CHECKING:
    from orchestrator.results.mlflow_pages import Page


Say = Callable[[str], None]


@dataclass(frozen=True)
class TrackerKind:
    """A tracker that a sweep may have.

    Attributes:
        open: Returns it for a sweep, the sweep's result store, the URI asked for, and who is told.
        rows: Returns the rows that it shows for a sweep, an URI and a result store's identity (None for those
            that name none), and makes nothing; raises ``SetupError`` when it does not answer.
        check: Says in words that it answers, for a root and an URI; raises ``SweepError`` when it does not.
        keeps: Whether it can be asked for what it was told.
    """

    open: Callable[[Workspace, ResultStore, str | None, Say], Tracker]
    rows: Callable[[Workspace, str | None, str | None], list[Row]]
    check: Callable[[RootPaths, str | None], str]
    keeps: bool = True


def _open_mlflow(workspace: Workspace, store: ResultStore, uri: str | None, say: Say) -> Tracker:
    from orchestrator.results.mlflow_tracker import MLflowTracker, connector

    resolved = mlflow_uri(workspace.paths, uri)
    artifacts = workspace.paths.mlflow_artifacts if resolved.startswith("sqlite") else None
    return MLflowTracker(
        connector(resolved),
        _page(workspace),
        artifacts,
        storage=store.own_identity(),
        say=say,
    )


def _page(workspace: Workspace) -> Page:
    """Return what MLflow's pages say of a sweep."""
    from orchestrator.results.mlflow_pages import Page
    from tasks.trials.records import attack_name

    sweep = workspace.plan.sweep
    attacks = [attack_name(method, e) for method in sweep.attacks.methods for e in sweep.attacks.epsilons]
    loss_gain = f"{attacks[0]}_loss_gain" if attacks else ""
    return Page(sweep.name, sweep.description, len(workspace.plan.trials), loss_gain)


def _mlflow_rows(workspace: Workspace, uri: str | None, storage: str | None) -> list[Row]:
    from orchestrator.results.mlflow_tracker import connect, read_rows

    resolved = mlflow_uri(workspace.paths, uri)
    # MLflow would make the file, and the reader is only asking.
    if resolved.startswith("sqlite:///") and not Path(resolved.removeprefix("sqlite:///")).exists():
        return []
    return read_rows(connect(resolved), workspace.plan.sweep.name, storage)


def _check_mlflow(paths: RootPaths, uri: str | None) -> str:
    from orchestrator.results.mlflow_tracker import connect

    resolved = mlflow_uri(paths, uri)
    if resolved == f"sqlite:///{paths.mlflow_database}" and not paths.mlflow_database.exists():
        return f"{paths.mlflow_database}, not made yet"
    connect(resolved)
    return f"answers ({resolved.partition('://')[0]})"


TRACKERS: dict[str, TrackerKind] = {
    "mlflow": TrackerKind(_open_mlflow, _mlflow_rows, _check_mlflow),
    "none": TrackerKind(
        lambda *_: NoopTracker(), rows=lambda *_: [], check=lambda *_: "nothing is tracked", keeps=False
    ),
}
"""One row per tracker; tests/unit/orchestrator/results/test_trackers.py holds every one to the contract."""

CHOSEN = "mlflow"
"""The tracker of every sweep that is not run with ``--no-tracking``."""


def make_tracker(
    workspace: Workspace, store: ResultStore, uri: str | None, *, used: bool = True, say: Say = lambda _: None
) -> Tracker:
    """Return the sweep's tracker.

    Args:
        workspace: The sweep.
        store: Its results.
        uri: See :func:`mlflow_uri`.
        used: False tracks nothing.
        say: Is told what a person should know, such as a server that does not answer.

    Raises:
        SweepError: for a URI that can never work, or a server that refuses us.
    """
    return TRACKERS[CHOSEN if used else "none"].open(workspace, store, uri, say)


@contextmanager
def open_tracker(
    workspace: Workspace,
    stored: StoredResults,
    uri: str | None,
    *,
    used: bool = True,
    say: Say = lambda _: None,
) -> Iterator[Tracker]:
    """Open the sweep's tracker, which catches up with the store by itself, and close it whatever happens.

    Arguments as of :func:`make_tracker`.
    """
    tracker = make_tracker(workspace, stored.store, uri, used=used, say=say)
    ending: Ending = "FAILED"
    try:
        state = judge(workspace, stored)
        tracker.reconcile(state.flat_runs(), state.told_failures(), wait=False)
        yield tracker
        ending = "FINISHED"
    except KeyboardInterrupt:
        ending = "KILLED"
        raise
    finally:
        tracker.close(ending)


def mlflow_uri(paths: RootPaths, uri: str | None) -> str:
    """Return the MLflow store to use: as asked, else the environment's, else SQLite below the root.

    Raises:
        SetupError: when it is below a root whose path is another one in a URL.
    """
    if named := uri or os.environ.get("MLFLOW_TRACKING_URI"):
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


def tracked_rows(workspace: Workspace, uri: str | None, storage: str | None) -> list[Row]:
    """Return the rows that the tracker shows for a sweep; nothing is made there.

    Args:
        workspace: The sweep.
        uri: See :func:`mlflow_uri`.
        storage: Identity of the result store whose runs are wanted; None takes those that name none.

    Raises:
        SetupError: when the tracker does not answer.
    """
    return TRACKERS[CHOSEN].rows(workspace, uri, storage)


def check_tracker(paths: RootPaths, uri: str | None) -> str:
    """Say in words that the tracker answers; nothing is made there.

    Args:
        paths: The root.
        uri: See :func:`mlflow_uri`.

    Raises:
        SweepError: when it does not answer, or never will at this URI.
    """
    return TRACKERS[CHOSEN].check(paths, uri)
