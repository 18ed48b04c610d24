"""``isweep reconcile``: write the stored results to MLflow again."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from orchestrator.machine.locks import locked
from orchestrator.planning.workspace import Workspace
from orchestrator.results.state import compare_with_plan
from orchestrator.results.stored_results import StoredResults
from orchestrator.results.tracking import log_sweep, make_tracker

if TYPE_CHECKING:
    pass


def reconcile_sweep(
    workspace: Workspace, mlflow_uri: str | None, say: Callable[[str], None]
) -> dict[str, int]:
    """Replay the result store to MLflow and close ghosts; returns counts of what was done."""
    workspace.paths.make()
    with locked(workspace, "isweep reconcile"):
        stored = StoredResults.read(workspace.results_url)
        state = compare_with_plan(workspace, stored)
        tracker = make_tracker(workspace, stored.store, mlflow_uri, say=say)
        try:
            log_sweep(tracker, workspace, state)
            counts = tracker.reconcile(state.flat_runs(), state.failures.values())
            tracker.save_run_pages(workspace.sweep_paths.run_pages)
        finally:
            tracker.close(
                "KILLED" if len(state.results) < len(workspace.plan.trials) else "FINISHED"
            )
    return counts
