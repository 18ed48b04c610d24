"""The tracker of a sweep: make it, send the stored results with it, and log the final numbers."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from orchestrator.planning.workspace import Workspace
from orchestrator.results.flat_runs import FlatRun, curve_runs
from orchestrator.results.mlflow_connection import SQLITE, connect, mlflow_uri
from orchestrator.results.mlflow_pages import Page
from orchestrator.results.pending_updates import Ending
from orchestrator.results.records import FailureRecord
from orchestrator.results.state import State
from orchestrator.results.store import ResultStore
from orchestrator.results.tracking import Tracker
from tasks.atomic import read_whole

if TYPE_CHECKING:
    from orchestrator.results.mlflow_runs import SweepRuns

log = logging.getLogger(__name__)

HEADLINE = "headline.json"
"""Name of a report's file that contains numbers for MLflow, for example the best losses."""


def make_tracker(
    workspace: Workspace,
    store: ResultStore,
    uri: str | None,
    *,
    is_enabled: bool = True,
    print_note: Callable[[str], None] = log.info,
) -> Tracker:
    """Return a sweep's tracker. It connects to MLflow in the background.

    Args:
        workspace: The sweep.
        store: Result store of the sweep.
        uri: URI of the MLflow store. None means the default URI.
        is_enabled: If False, return a tracker that sends nothing.
        print_note: Function that prints a message for the user.
    """
    if not is_enabled:
        return Tracker(None)
    resolved = mlflow_uri(workspace.paths, uri)
    store_id = store.store_id(create=True)
    database = workspace.paths.mlflow_database

    def connect_sweep() -> SweepRuns:
        from orchestrator.results.mlflow_runs import SweepRuns

        artifacts = None
        if resolved.startswith("sqlite"):
            artifacts = workspace.paths.mlflow_artifacts
        runs = SweepRuns(connect(resolved), Page.of(workspace), store_id, artifacts)
        # If another result store uses the usual name of the experiment, this experiment has a
        # suffix that begins with "@".
        if "@" in runs.name:
            usual = runs.name.partition("@")[0]
            print_note(
                f"The MLflow experiment {usual} belongs to another result store. The runs of this "
                f"store are in the experiment {runs.name}"
            )
        return runs

    is_new = resolved == f"{SQLITE}{database}" and not database.exists()
    return Tracker(connect_sweep, print_note, connect_at_first_update=is_new)


@contextmanager
def tracking_session(
    tracker: Tracker, results: Iterable[FlatRun], failures: Iterable[FailureRecord] = ()
) -> Iterator[Tracker]:
    """Send stored results with a tracker, and close it at the end of the ``with`` block.

    Args:
        tracker: The tracker.
        results: Stored results.
        failures: Failures of trials. If a trial has a result, its failure is not sent.
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
