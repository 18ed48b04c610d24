"""Which tracker a sweep has: the one place that chooses."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from orchestrator.planning.workspace import Workspace
from orchestrator.results.rows import Row
from orchestrator.results.state import StoredResults, judge
from orchestrator.results.store import ResultStore
from orchestrator.results.tracking.tracker import NoopTracker, Tracker

TrackerName = Literal["mlflow", "none"]
Say = Callable[[str], None]


def _mlflow(workspace: Workspace, store: ResultStore, uri: str | None, say: Say) -> Tracker:
    from orchestrator.results.tracking.mlflow import MLflowTracker, connector

    resolved = mlflow_uri(workspace, uri)
    artifacts = workspace.paths.mlflow_artifacts if resolved.startswith("sqlite") else None
    tags = {"planned": str(len(workspace.plan.trials)), "description": workspace.plan.sweep.description}
    return MLflowTracker(
        connector(resolved),
        workspace.plan.sweep.name,
        tags,
        artifacts,
        storage=store.own_identity(),
        say=say,
    )


def _none(workspace: Workspace, store: ResultStore, uri: str | None, say: Say) -> Tracker:
    return NoopTracker()


TRACKERS: dict[TrackerName, Callable[[Workspace, ResultStore, str | None, Say], Tracker]] = {
    "mlflow": _mlflow,
    "none": _none,
}
"""One row per tracker: how it is opened for a sweep, its result store, the URI asked for and who is told."""


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
    return TRACKERS["mlflow" if used else "none"](workspace, store, uri, say)


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
    completed = False
    try:
        state = judge(workspace, stored)
        tracker.reconcile(state.flat_runs(), state.told_failures(), wait=False)
        yield tracker
        completed = True
    finally:
        tracker.close(completed=completed)


def mlflow_uri(workspace: Workspace, uri: str | None) -> str:
    """Return the MLflow store to use: as asked, else the environment's, else SQLite below the root."""
    default = f"sqlite:///{workspace.paths.mlflow_database}"
    return uri or os.environ.get("MLFLOW_TRACKING_URI") or default


def tracked_rows(workspace: Workspace, uri: str | None, storage: str | None) -> list[Row]:
    """Return the rows that MLflow shows for a sweep; nothing is made there.

    Args:
        workspace: The sweep.
        uri: See :func:`mlflow_uri`.
        storage: Identity of the result store whose runs are wanted; None takes those that name none.

    Raises:
        SetupError: when MLflow does not answer.
    """
    from orchestrator.results.tracking.mlflow import connect, read_rows

    resolved = mlflow_uri(workspace, uri)
    # MLflow would make the file, and the reader is only asking.
    if resolved.startswith("sqlite:///") and not Path(resolved.removeprefix("sqlite:///")).exists():
        return []
    return read_rows(connect(resolved), workspace.plan.sweep.name, storage)
