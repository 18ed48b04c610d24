"""The state of a sweep and the history of a trial, as dictionaries for ``isweep status``."""

from __future__ import annotations

from collections import Counter
from typing import Any

from orchestrator.planning.plan import PlannedStatus
from orchestrator.planning.workspace import Workspace
from orchestrator.results.state import read_state
from orchestrator.results.store import Event, ResultStore
from orchestrator.running.progress import RunState, read_run
from orchestrator.tuning.search_records import search_standing
from search_spaces.errors import CorruptStoreError
from tasks.trials.records import TrialStatus


def sweep_status(workspace: Workspace) -> dict[str, Any]:
    """Return the state of a sweep: counts, running trials, failures and costs."""
    # isweep reads running trials before results. So if a trial ends in between, it counts only
    # once.
    run = read_run(workspace) or RunState()
    state = read_state(workspace, run.running, run.waiting, quick=True)
    counts = Counter(state.status(trial_id) for trial_id in workspace.plan.trials_by_id)
    num_diverged = sum(result.status == TrialStatus.DIVERGED for result in state.results.values())
    running = {
        name: trial.model_dump() for name, trial in run.running.items() if name not in state.results
    }
    waiting = {}
    for name, trial in run.waiting.items():
        if state.status(name) == PlannedStatus.WAITING:
            message = state.failures[name].failure.message if name in state.failures else ""
            waiting[name] = trial.model_dump() | {"message": message}
    return {
        "planned": counts.total(),
        "done": counts[PlannedStatus.DONE],
        "failed": counts[PlannedStatus.FAILED],
        "running": counts[PlannedStatus.RUNNING],
        "waiting": counts[PlannedStatus.WAITING],
        "pending": counts[PlannedStatus.PENDING] + counts[PlannedStatus.STALE],
        "stale": counts[PlannedStatus.STALE],
        "diverged": num_diverged,
        "now": run.now,
        "seconds_left": run.seconds_left,
        "running_trials": running,
        "waiting_trials": waiting,
        "failures": state.failure_rows(),
        "unreadable": [vars(item) for item in state.unreadable],
        "foreign": sorted(state.unplanned),
        "cost": state.cost(),
        "search": search_standing(workspace),
    }


def trial_history(workspace: Workspace, trial_id: str) -> tuple[dict[str, Any], str]:
    """Return the history of one trial.

    Args:
        workspace: The sweep.
        trial_id: Full id of the trial.

    Returns:
        The trial's attempts, nodes, failures and logs as a dictionary, and the log of its last
        attempt.
    """
    run = read_run(workspace) or RunState()
    state = read_state(workspace, run.running, run.waiting, quick=True)
    store = ResultStore(workspace.results_url)
    events: list[Event] = []
    problem = ""
    try:
        events = store.events(trial_id)
    except CorruptStoreError as error:
        problem = str(error)
    log_by_attempt: dict[int, str] = {}
    for attempt in sorted({event.attempt for event in events}):
        text = store.attempt_log(trial_id, attempt)
        if text is not None:
            log_by_attempt[attempt] = text
    failure = None
    if trial_id in state.failures:
        record = state.failures[trial_id]
        failure = record.row() | {"traceback": record.failure.traceback}
    status = state.status(trial_id)
    retry_at = None
    if status == PlannedStatus.WAITING:
        retry_at = run.waiting[trial_id].retry_at
    document = {
        "trial_id": trial_id,
        "status": str(status),
        "retry_at": retry_at,
        "events": [event.plain() for event in events],
        "logs": {
            str(attempt): store.attempt_log_path(trial_id, attempt) for attempt in log_by_attempt
        },
        "failure": failure,
        "unreadable": problem,
    }
    last_log = ""
    if log_by_attempt:
        last_log = log_by_attempt[max(log_by_attempt)]
    return document, last_log
