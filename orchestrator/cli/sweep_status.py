"""``isweep status``: where a sweep stands, and what happened to one trial."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from orchestrator.planning.plan import CellStatus
from orchestrator.planning.workspace import Workspace
from orchestrator.results.state import read_state
from orchestrator.results.store import Event, ResultStore
from orchestrator.running.progress import read_run, running_trials
from orchestrator.tuning.cells import search_standing
from search_spaces.errors import (
    CorruptStoreError,
)
from tasks.trials.records import TrialStatus

if TYPE_CHECKING:
    pass


def sweep_status(workspace: Workspace) -> dict[str, Any]:
    """Return where a sweep stands: counts, what runs, failures, costs."""
    # First what runs, then what is done: a trial that ends in between counts once, as done.
    run = read_run(workspace)
    trials = (
        {} if run is None else {name: trial.model_dump() for name, trial in run.running.items()}
    )
    state = read_state(workspace, trials, look=True)
    counts = Counter(state.status(trial_id) for trial_id in workspace.plan.trials_by_id)
    return {
        "planned": counts.total(),
        **{
            str(one): counts[one]
            for one in (CellStatus.DONE, CellStatus.FAILED, CellStatus.RUNNING)
        },
        "pending": counts[CellStatus.PENDING] + counts[CellStatus.STALE],
        "stale": counts[CellStatus.STALE],
        "diverged": sum(one.status == TrialStatus.DIVERGED for one in state.results.values()),
        "now": "" if run is None else run.now,
        "seconds_left": None if run is None else run.seconds_left,
        "running_trials": {
            name: trial for name, trial in trials.items() if name not in state.results
        },
        "failures": state.failure_rows(),
        "unreadable": [vars(item) for item in state.unreadable],
        "foreign": sorted(state.foreign),
        "cost": state.cost(),
        "search": search_standing(workspace),
    }


def trial_history(workspace: Workspace, trial_id: str) -> tuple[dict[str, Any], str]:
    """Return what happened to a cell (attempts, nodes, failures, logs) and what its last attempt
    logged.
    """
    state = read_state(workspace, running_trials(workspace), look=True)
    store, story, problem = ResultStore(workspace.results_url), list[Event](), ""
    try:
        story = store.story(trial_id)
    except CorruptStoreError as error:
        problem = str(error)
    numbers = sorted({event.attempt for event in story})
    said = {number: text for number in numbers if (text := store.log(trial_id, number)) is not None}
    failure = state.failures.get(trial_id)
    document = {
        "trial_id": trial_id,
        "status": str(state.status(trial_id)),
        "events": [event.plain() for event in story],
        "logs": {str(number): store.log_path(trial_id, number) for number in said},
        "failure": None
        if failure is None
        else failure.row() | {"traceback": failure.failure.traceback},
        "unreadable": problem,
    }
    return document, said[max(said)] if said else ""
