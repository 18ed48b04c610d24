"""``isweep status``: where a sweep stands, and what happened to one trial."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from orchestrator.planning.plan import CellStatus
from orchestrator.planning.workspace import Workspace
from orchestrator.results.state import read_state
from orchestrator.results.store import Event, ResultStore
from orchestrator.running.progress import read_run, running_trials
from orchestrator.tuning.search_records import search_standing
from search_spaces.errors import CorruptStoreError
from tasks.trials.records import TrialStatus


def sweep_status(workspace: Workspace) -> dict[str, Any]:
    """Return where a sweep stands: counts, what runs, failures, costs."""
    # What runs is read before what is done, so that a trial which ends in between counts as done.
    run = read_run(workspace)
    running: dict[str, dict[str, Any]] = {}
    if run is not None:
        running = {trial_id: trial.model_dump() for trial_id, trial in run.running.items()}
    state = read_state(workspace, running, look=True)
    counts = Counter(state.status(trial_id) for trial_id in workspace.plan.trials_by_id)
    results = state.results.values()
    return {
        "planned": counts.total(),
        "done": counts[CellStatus.DONE],
        "failed": counts[CellStatus.FAILED],
        "running": counts[CellStatus.RUNNING],
        "pending": counts[CellStatus.PENDING] + counts[CellStatus.STALE],
        "stale": counts[CellStatus.STALE],
        "diverged": sum(result.status == TrialStatus.DIVERGED for result in results),
        "now": "" if run is None else run.now,
        "seconds_left": None if run is None else run.seconds_left,
        "running_trials": {
            trial_id: trial for trial_id, trial in running.items() if trial_id not in state.results
        },
        "failures": state.failure_rows(),
        "unreadable": [vars(item) for item in state.unreadable],
        "foreign": sorted(state.foreign),
        "cost": state.cost(),
        "search": search_standing(workspace),
    }


@dataclass(frozen=True)
class TrialHistory:
    """What happened to a trial.

    Attributes:
        document: Attempts, nodes, failures and logs, as ``isweep status --cell ID --json`` prints
            them.
        last_log: What its last attempt printed.
    """

    document: dict[str, Any]
    last_log: str


def trial_history(workspace: Workspace, trial_id: str) -> TrialHistory:
    """Return what happened to a trial."""
    state = read_state(workspace, running_trials(workspace), look=True)
    store = ResultStore(workspace.results_url)
    events: list[Event] = []
    problem = ""
    try:
        events = store.story(trial_id)
    except CorruptStoreError as error:
        problem = str(error)
    logs: dict[int, str] = {}
    for attempt in sorted({event.attempt for event in events}):
        text = store.log(trial_id, attempt)
        if text is not None:
            logs[attempt] = text
    failure = state.failures.get(trial_id)
    failure_row = None
    if failure is not None:
        failure_row = {**failure.row(), "traceback": failure.failure.traceback}
    document = {
        "trial_id": trial_id,
        "status": str(state.status(trial_id)),
        "events": [event.plain() for event in events],
        "logs": {str(attempt): store.log_path(trial_id, attempt) for attempt in logs},
        "failure": failure_row,
        "unreadable": problem,
    }
    return TrialHistory(document, logs[max(logs)] if logs else "")
