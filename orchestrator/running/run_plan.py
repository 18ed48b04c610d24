"""``isweep plan``: list the trials that a run of a sweep would train, and estimate their cost."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from orchestrator.machine.gpus.this_machine import check_driver, weakest_gpu_model
from orchestrator.planning.checks import changed_own_data, check_feasible
from orchestrator.planning.costs.gpu_checks import gpu_check_folders
from orchestrator.planning.costs.gpu_models import gpu_model
from orchestrator.planning.estimate import estimate
from orchestrator.planning.estimate_text import extras_text
from orchestrator.planning.extra_costs import extras
from orchestrator.planning.plan import PlannedStatus, plan_rows
from orchestrator.planning.workspace import Workspace
from orchestrator.results.state import State, removed_trials_text
from orchestrator.running.progress import read_live_state
from search_spaces.errors import ConfigError
from tasks.sources.base import Listing

NUM_TABLES = 40
"""Number of result tables that are simulated to compute the power in a plan. With 40 tables,
the standard error of the power is at most 8 percentage points. ``isweep power`` simulates more
tables."""


@dataclass(frozen=True)
class RunPlan:
    """The trials, measures and cost of a run.

    Attributes:
        rows: One row per trial, with its status.
        cost: Cost of the remaining trials (see
            :func:`orchestrator.planning.estimate.estimate`) and of all other work (see
            :func:`orchestrator.planning.extra_costs.extras`).
        measures: One row per measure, with its status.
        not_prepared: One row per dataset that a run would prepare. For data of the user, the
            row contains the path and the number of listed files. It also contains the excluded
            files and the doubtful files, by reason.
        changed: The present list of files, by dataset, for each dataset of the user whose
            files changed after it was prepared.
        extra_costs: Text about the cost of all work besides training.
        removed: Sentences about finished trials that the plan lacks; empty if there are none.
    """

    rows: list[dict[str, str | int]]
    cost: dict[str, Any]
    measures: list[dict[str, Any]]
    not_prepared: list[dict[str, Any]]
    changed: dict[str, Listing]
    extra_costs: str
    removed: str = ""


def plan_run(
    workspace: Workspace, *, gpu: str | None = None, num_gpus: int | None = None
) -> RunPlan:
    """Return the trials and measures that a run of the sweep would compute, with their cost.

    Args:
        workspace: The sweep.
        gpu: Kind of GPU. None means the GPUs of this machine, if it has any.
        num_gpus: Number of GPUs. None means all GPUs of this machine. If this machine has no
            GPU, None means the number of GPUs that a trial requests.

    Raises:
        SweepError: The sweep cannot run.
    """
    model, num_here = weakest_gpu_model(gpu_check_folders(workspace.paths.root))
    if gpu is not None:
        model = gpu_model(gpu)
    elif num_here:
        num_gpus = num_gpus or num_here
    else:
        check_driver()
    new_listings = check_feasible(workspace)
    state = read_live_state(workspace)
    trials = workspace.plan.trials_by_id
    cost = estimate(
        [trial for trial_id, trial in trials.items() if trial_id not in state.results],
        state.measured_trials(),
        gpu=model,
        num_gpus=num_gpus,
        share=workspace.plan.sweep.resources.num_gpus,
        num_cpus=len(os.sched_getaffinity(0)),
    )
    extra_costs = extras(
        workspace.plan, [partial.has_weights for partial in state.partial.values()]
    )
    return RunPlan(
        rows=plan_rows(workspace.plan, {trial_id: state.status(trial_id) for trial_id in trials}),
        cost={**cost, **extra_costs},
        measures=_measure_rows(workspace, state),
        not_prepared=_not_prepared(workspace, new_listings),
        changed=changed_own_data(workspace),
        extra_costs=extras_text(extra_costs),
        removed=removed_trials_text(workspace, state),
    )


def _measure_rows(workspace: Workspace, state: State) -> list[dict[str, Any]]:
    """Return one row per measure, with its status."""
    rows: list[dict[str, Any]] = []
    for measure in workspace.plan.measures:
        is_done = measure.measure_id in state.measures
        rows.append(
            {
                "measure_id": measure.measure_id,
                "dataset": measure.subset.dataset,
                "train_sizes": list(measure.train_sizes),
                "status": PlannedStatus.DONE if is_done else PlannedStatus.PENDING,
            }
        )
    return rows


def _not_prepared(
    workspace: Workspace, new_listings: Mapping[str, Listing]
) -> list[dict[str, Any]]:
    """Return one row per dataset that a run would prepare."""
    rows: list[dict[str, Any]] = []
    for spec in workspace.plan.prepared:
        if spec.prepared_id in workspace.prepared:
            continue
        listing = new_listings.get(spec.prepared_id)
        rows.append(
            {
                "dataset": spec.dataset,
                "prepared_id": spec.prepared_id,
                "own": workspace.plan.own_paths.get(spec.dataset),
                "unopened": None if listing is None else len(listing.items),
                "left_out": {} if listing is None else listing.excluded,
                "doubtful": {} if listing is None else listing.flags,
            }
        )
    return rows


class PlannedPower(NamedTuple):
    """The power of a planned sweep for the study's questions.

    Attributes:
        power: The fields of :class:`orchestrator.analysis.power.Power`, by name. None if the
            sweep is too small to test any question.
        lines: The power as text, one line per question.
    """

    power: dict[str, object] | None
    lines: list[str]


def describe_power(workspace: Workspace) -> PlannedPower:
    """Return the power of a planned sweep for the study's questions. It is computed as if the
    law holds.
    """
    # Imports scipy and pandas, which take seconds.
    from orchestrator.analysis.power import planned_power

    try:
        power = planned_power(workspace.plan, num_tables=NUM_TABLES)
    except ConfigError as error:
        lines = [_results_text(workspace)]
        has_pairs = any(choice.class_pairs for choice in workspace.plan.sweep.datasets)
        if _num_datasets(workspace) == 1:
            lines = [f"{lines[0]} One dataset is enough for this."]
        elif not has_pairs:
            lines.append(f"The study's questions compare datasets. {error}")
        return PlannedPower(None, lines)
    return PlannedPower(asdict(power), power.lines())


def _results_text(workspace: Workspace) -> str:
    """Return a text that says what a sweep will show if it is too small to test the study's
    questions.
    """
    sweep = workspace.plan.sweep
    summary = "This sweep will show the test loss of each model"
    if len(sweep.train_sizes) > 1:
        summary = "This sweep will show how the test loss of each model falls with more images"
    if _num_datasets(workspace) > 1:
        summary += ", on each dataset"
    return f"{summary}."


def _num_datasets(workspace: Workspace) -> int:
    """Return the number of datasets of a sweep."""
    return len({measure.subset.dataset for measure in workspace.plan.measures})
