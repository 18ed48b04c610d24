"""Read the results of a sweep for a command, and print messages about missing results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.cli.options import Place
from orchestrator.cli.printing import print_message
from search_spaces.errors import ConfigError, CorruptStoreError, SetupError

if TYPE_CHECKING:
    import pandas as pd

    from orchestrator.analysis.experiments.records import Arm
    from orchestrator.analysis.limits import SweepFacts
    from orchestrator.planning.workspace import Workspace
    from orchestrator.results.state import State


def read_table(
    sweep: str, place: Place, *, from_store: bool
) -> tuple[pd.DataFrame, tuple[Arm, ...]]:
    """Return the results table of a sweep, with at least one row, and its experiment's conditions.

    The arguments and errors are those of :func:`read_results`.
    """
    from orchestrator.analysis.report import arms_of, results_table

    workspace, state = read_results(sweep, place, from_store=from_store)
    return results_table(workspace, state=state), arms_of(workspace)


@dataclass(frozen=True)
class FitInputs:
    """The inputs of a sweep's fits.

    Attributes:
        table: The results table.
        arms: The conditions of an experiment. Empty for other sweeps.
        facts: Facts about the sweep that limit what its fits can answer.
        predictions: Stored predictions for each test image. None if no predictions are stored.
    """

    table: pd.DataFrame
    arms: tuple[Arm, ...]
    facts: SweepFacts
    predictions: pd.DataFrame | None = None


def read_fit_inputs(sweep: str, place: Place, *, from_store: bool) -> FitInputs:
    """Return the inputs of a sweep's fits. The results table has at least one row.

    The arguments and errors are those of :func:`read_results`.
    """
    from orchestrator.analysis.report import arms_of, facts_of, results_table, stored_predictions

    workspace, state = read_results(sweep, place, from_store=from_store)
    table = results_table(workspace, state=state)
    return FitInputs(
        table=table,
        arms=arms_of(workspace),
        facts=facts_of(workspace),
        predictions=stored_predictions(workspace, state, table),
    )


def read_results(sweep: str, place: Place, *, from_store: bool) -> tuple[Workspace, State]:
    """Return a sweep and the state of its result store. The store has at least one result.

    Args:
        sweep: Name or path of the sweep.
        place: Options of the command on the root, the result store and MLflow.
        from_store: If True, do not compare the results with MLflow.

    Raises:
        ConfigError: The sweep has no result yet.
    """
    from orchestrator.results.state import read_state

    workspace = place.open(sweep)
    state = read_state(workspace)
    print_what_is_missing(sweep, workspace, state, place)
    if not (state.results or state.partial):
        raise no_results(sweep, workspace, place)
    if not from_store:
        compare_with_mlflow(sweep, workspace, state, place)
    return workspace, state


def print_what_is_missing(sweep: str, workspace: Workspace, state: State, place: Place) -> None:
    """Print unreadable results, reasons for missing d_data, and the number of remaining trials."""
    for item in state.unreadable:
        print_message(f"isweep does not use the file {item.path}: {item.reason}")
    reasons = set()
    for record in state.measures.values():
        for size in record.result.sizes:
            estimate = size.d_data.get("mle")
            if estimate and estimate.value is None:
                reasons.add((size.train_size, estimate.reason))
    for train_size, reason in sorted(reasons):
        print_message(f"d_data at N = {train_size} is undefined: {reason}")
    num_planned = len(workspace.plan.trials)
    num_done = len(state.results)
    if num_done < num_planned and (num_done or state.partial):
        num_left = num_planned - num_done
        run = place.hint("run", sweep)
        print_message(
            f"{num_done} of {num_planned} trials are done. To run the other {num_left} trials, "
            f"use `{run}`."
        )


def compare_with_mlflow(sweep: str, workspace: Workspace, state: State, place: Place) -> None:
    """Print differences between MLflow and the result store.

    Commands use the numbers of the store.
    """
    from orchestrator.results.mlflow_differences import differences, tracked_rows
    from orchestrator.results.store import ResultStore

    try:
        storage = ResultStore(workspace.results_url).store_id()
        tracked = tracked_rows(workspace, place.mlflow_uri, storage)
    except (SetupError, CorruptStoreError) as error:
        print_message(
            f"The results cannot be compared with MLflow. {error} The command uses the results in "
            "the result store."
        )
        return
    for sentence in differences(state.rows(), tracked, place.hint("reconcile", sweep)):
        print_message(sentence)


def no_results(sweep: str, workspace: Workspace, place: Place) -> ConfigError:
    """Return the error for a sweep without results, with a command as hint."""
    from orchestrator.running.progress import read_run

    problem = f"Sweep {sweep!r} has no results yet"
    hint = f"Run the sweep with `{place.hint('run', sweep)}`"
    if read_run(workspace) is not None:
        problem += ", but the sweep is running"
        hint = f"Watch the run with `{place.hint('status', sweep)}`"
    elif not workspace.paths.root.is_dir():
        problem += f", and the root {workspace.paths.root} does not exist"
    return ConfigError(problem, hint=hint)
