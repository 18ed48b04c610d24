"""The one place that chooses a sweep's tracker and opens it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from orchestrator.planning.workspace import Workspace
from orchestrator.results.state import StoredResults, judge
from orchestrator.results.tracking.tracker import NoopTracker, Tracker


@contextmanager
def open_tracker(
    workspace: Workspace, stored: StoredResults, uri: str | None, *, tracking: bool
) -> Iterator[Tracker]:
    """Open the sweep's tracker, brought up to date with the store, and close it whatever happens.

    Args:
        workspace: The sweep.
        stored: What its store holds.
        uri: See :func:`mlflow_uri`.
        tracking: False tracks nothing.
    """
    if not tracking:
        yield NoopTracker()
        return
    tracker = mlflow_tracker(workspace, uri)
    completed = False
    try:
        tracker.reconcile(judge(workspace, stored).flat_runs())
        yield tracker
        completed = True
    finally:
        tracker.close(completed=completed)


def mlflow_tracker(workspace: Workspace, uri: str | None) -> Tracker:
    """Return the MLflow tracker of a sweep, its tables made and its parent run opened.

    Raises:
        SetupError: when the MLflow store does not answer.
    """
    from orchestrator.results.tracking.mlflow import MLflowTracker
    from orchestrator.results.tracking.mlflow import connect as connect_mlflow

    resolved = mlflow_uri(workspace, uri)
    own = resolved.startswith("sqlite")
    artifacts = workspace.paths.mlflow_artifacts if own else None
    client = connect_mlflow(resolved)
    tags = {"planned": str(len(workspace.plan.trials)), "description": workspace.plan.sweep.description}
    return MLflowTracker(client, workspace.plan.sweep.name, tags, artifacts)


def mlflow_uri(workspace: Workspace, uri: str | None) -> str:
    """Return the MLflow store to use: as asked, else the environment's, else SQLite below the root."""
    default = f"sqlite:///{workspace.paths.mlflow_database}"
    return uri or os.environ.get("MLFLOW_TRACKING_URI") or default
