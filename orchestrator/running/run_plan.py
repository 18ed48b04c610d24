"""``isweep plan``: what a run of a sweep would do, and what it would cost."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.machine.gpus import check_driver, gpu_check_folders, gpu_models_here
from orchestrator.planning.checks import check_feasible
from orchestrator.planning.costs.gpu_models import gpu_model
from orchestrator.planning.estimate import estimate
from orchestrator.planning.estimate_text import extras_text
from orchestrator.planning.extra_costs import extras
from orchestrator.planning.plan import CellStatus, plan_rows
from orchestrator.planning.workspace import Workspace
from orchestrator.results.state import read_state
from orchestrator.running.progress import running_trials
from search_spaces.errors import (
    ConfigError,
)

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class RunPlan:
    """A sweep that can run: a row per trial and per measure with its status, and what the rest will
    cost.

    ``not_prepared`` are datasets that a run prepares, or that must be brought; of own data, the
    path, how many files were listed there and not opened, and what was left out or is doubtful, by
    reason. ``cost["text"]``, and ``beside`` training, are in words.
    """

    rows: list[dict[str, str | int]]
    cost: dict[str, Any]
    measures: list[dict[str, Any]]
    not_prepared: list[dict[str, Any]]
    beside: str


def plan_run(
    workspace: Workspace, *, gpu: str | None = None, num_gpus: int | None = None
) -> RunPlan:
    """Plan a sweep for ``num_gpus`` of a model of ``gpu``; SweepError for one that cannot run.

    None is the GPUs that are here, if any, or as many as a trial asks for.
    """
    gpu_here, num_here = gpu_models_here(gpu_check_folders(workspace.paths.root))
    if gpu is None and not num_here:
        check_driver()
    kind = gpu_here if gpu is None else gpu_model(gpu)
    if num_gpus is None and gpu is None and num_here:
        num_gpus = num_here
    unopened = check_feasible(workspace)
    state = read_state(workspace, running_trials(workspace), quick=True)
    trials = workspace.plan.trials_by_id
    left = [trial for name, trial in trials.items() if name not in state.results]
    share = workspace.plan.sweep.resources.num_gpus
    here = len(os.sched_getaffinity(0))
    cost = estimate(
        left, state.measured_trials(), gpu=kind, num_gpus=num_gpus, share=share, num_cpus=here
    )
    beside = extras(workspace.plan, [one.has_weights for one in state.partial.values()])
    rows = plan_rows(workspace.plan, {name: state.status(name) for name in trials})
    measures = [
        {
            "measure_id": measure.measure_id,
            "dataset": measure.subset.dataset,
            "train_sizes": list(measure.train_sizes),
            "status": CellStatus.DONE
            if measure.measure_id in state.measures
            else CellStatus.PENDING,
        }
        for measure in workspace.plan.measures
    ]
    own = {choice.name: choice.own.path for choice in workspace.plan.sweep.datasets if choice.own}
    missing = [
        {
            "dataset": spec.dataset,
            "prepared_id": spec.prepared_id,
            "own": own.get(spec.dataset),
            "unopened": len(listing.items) if (listing := unopened.get(spec.prepared_id)) else None,
            "left_out": listing.excluded if listing else {},
            "doubtful": listing.flags if listing else {},
        }
        for spec in workspace.plan.prepared
        if spec.prepared_id not in workspace.prepared
    ]
    return RunPlan(rows, cost | beside, measures, missing, extras_text(beside))


def describe_power(workspace: Workspace) -> tuple[dict[str, object] | None, list[str]]:
    """Return what the planned sweep could settle if the law holds, as data and in lines; or why
    nothing.
    """
    from orchestrator.analysis.power import planned_power

    try:  # with 40 tables shares are good to 8 points; isweep power draws more
        found = planned_power(workspace.plan, num_tables=40)
    except ConfigError as error:
        return None, [f"settles no question of the study: {error}"]
    return asdict(found), found.lines()
