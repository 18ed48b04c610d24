"""``isweep reconcile``: write the stored results to MLflow again."""

from __future__ import annotations

from collections.abc import Callable

from orchestrator.machine.locks import lock_root_and_store
from orchestrator.planning.workspace import Workspace
from orchestrator.results.state import compare_with_plan
from orchestrator.results.stored_results import StoredResults
from orchestrator.results.sweep_tracking import log_sweep, make_tracker


def reconcile_sweep(
    workspace: Workspace, mlflow_uri: str | None, say: Callable[[str], None]
) -> dict[str, int]:
    """Write the stored results to MLflow. Mark as ended the MLflow runs that no driver works
    on.

    Args:
        workspace: The sweep.
        mlflow_uri: Address of the MLflow server or store. None means the MLflow store in the
            root.
        say: Function that prints a message for the user.

    Returns:
        Number of MLflow runs, by the kind of change that was made to them.
    """
    workspace.paths.make()
    with lock_root_and_store(workspace, "isweep reconcile"):
        stored = StoredResults.read(workspace.results_url)
        state = compare_with_plan(workspace, stored)
        tracker = make_tracker(workspace, stored.store, mlflow_uri, print_note=say)
        is_finished = len(state.results) >= len(workspace.plan.trials)
        try:
            log_sweep(tracker, workspace, state)
            counts = tracker.reconcile(state.flat_runs(), state.failures.values())
            tracker.save_run_pages(workspace.sweep_paths.run_pages)
        finally:
            tracker.close("FINISHED" if is_finished else "KILLED")
    return counts
