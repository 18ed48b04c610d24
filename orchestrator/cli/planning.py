"""The command that says what a sweep will do and cost, before it is started."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.markup import escape

from orchestrator.cli.listing import emit_grid
from orchestrator.cli.options import Changes, Place, whole
from orchestrator.cli.printing import emit, stdout
from search_spaces.errors import ConfigError

if TYPE_CHECKING:
    from orchestrator.planning.workspace import Workspace
    from orchestrator.results.state import State

MOST_CARDS = 100_000
"""To plan for: more would only take memory, since no sweep has as many trials."""


def plan(
    preset: str,
    /,
    *,
    all_: Annotated[bool, Parameter(name="--all")] = False,
    card: str | None = None,
    gpus: Annotated[int | None, whole(1, MOST_CARDS + 1, f"from 1 to {MOST_CARDS:,}")] = None,
    changes: Changes = (),
    place: Place = Place(),
) -> int:
    """Show the grid, what is done and what it will cost; refuse what cannot run.

    Args:
        preset: Name of a preset or of a sweep of the root, or path of a sweep file.
        all_: Print a line per trial; else one per model and dataset.
        changes: Change one value, e.g. recipe.epochs=3; may be given for several.
        card: Kind of graphics card to plan for (default: what the root's prices.yaml names, else h100).
        gpus: How many of them (default: 1, or as many as a trial asks for).
        place: Where everything lies.
    """
    from orchestrator.commands import planned
    from orchestrator.planning.changes import read_changes
    from orchestrator.planning.workspace import Workspace
    from orchestrator.tuning.standing import most_trainings

    workspace = Workspace.open(preset, place.root, place.storage, changes=read_changes(changes))
    found = planned(workspace, card=card, num_cards=gpus)
    rows, cost = found.rows, found.cost
    measures, missing = _measures(workspace, found.state), _not_prepared(workspace)
    trainings, search = most_trainings(workspace)
    settled, said = _settled(workspace)

    def show() -> None:
        emit_grid(rows, all_=all_)
        stdout.print(f"{_counted('trials', rows)}; {_counted('measures', measures)}")
        _say_what_is_missing(workspace, missing)
        for text in filter(None, (cost["text"], found.beside, search, *said)):
            stdout.print(escape(text))

    document: dict[str, object] = {"sweep": workspace.plan.sweep.name, "trials": rows, "measures": measures}
    document |= {"not_prepared": missing, "estimate": cost, "search": {"most_trainings": trainings}}
    emit(place, document | {"power": settled}, show)
    return 0


PLAN_TABLES = 40
"""Drawn for the line of a plan: shares are good to 8 points; isweep power draws more."""


def _settled(workspace: Workspace) -> tuple[dict[str, object] | None, list[str]]:
    """What the planned sweep could settle if the law holds, as data and in a line; or why nothing."""
    from orchestrator.analysis.planned_power import planned_power

    try:
        found = planned_power(workspace.plan, num_tables=PLAN_TABLES)
    except ConfigError as error:
        return None, [f"settles no question of the study: {error}"]
    return found.to_json(), found.lines()


def _say_what_is_missing(workspace: Workspace, missing: list[dict[str, Any]]) -> None:
    from orchestrator.running.cluster import this_machine, trial_resources

    try:
        trial_resources(workspace.plan.sweep.resources, this_machine(), "cpu")
    except ConfigError as error:
        stdout.print(escape(f"not on this machine: {error}"), soft_wrap=True)
    for item in missing:
        hint = "isweep run prepares it" if item["own"] else f"see: isweep datasets {item['dataset']}"
        stdout.print(f"not prepared: {item['dataset']} ({hint})")


def _measures(workspace: Workspace, state: State) -> list[dict[str, Any]]:
    from orchestrator.planning.plan import CellStatus

    return [
        {
            "measure_id": measure.measure_id,
            "dataset": measure.subset.prepared.dataset,
            "train_sizes": list(measure.train_sizes),
            "status": CellStatus.DONE if measure.measure_id in state.measures else CellStatus.PENDING,
        }
        for measure in workspace.plan.measures
    ]


def _not_prepared(workspace: Workspace) -> list[dict[str, Any]]:
    own = {choice.name for choice in workspace.plan.sweep.datasets if choice.own}
    return [
        {"dataset": spec.dataset, "prepared_id": spec.prepared_id, "own": spec.dataset in own}
        for spec in workspace.plan.prepared
        if spec.prepared_id not in workspace.prepared
    ]


def _counted(what: str, rows: Sequence[Mapping[str, Any]]) -> str:
    from orchestrator.planning.plan import CellStatus

    return f"{len(rows)} {what}: {sum(row['status'] == CellStatus.DONE for row in rows)} done"
