"""Commands that weigh sweeps: what a design could detect, and how two sweeps differ."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Literal

from cyclopts import Parameter

from orchestrator.cli.options import Place, whole
from orchestrator.cli.printing import emit, line, stdout, text_table
from orchestrator.cli.results import read_table
from search_spaces.errors import ConfigError


def power(
    preset: str,
    /,
    *,
    effect: Literal["law", "sharpness", "exponent", "d_data"] = "law",
    num_tables: Annotated[int, whole(20), Parameter(metavar="N")] = 200,
    seed: Annotated[int, whole(0)] = 0,
    place: Place = Place(),
) -> int:
    """Simulate how often a sweep's own analysis would settle its questions, before anything is trained.

    Args:
        preset: Name of a preset or of a sweep of the root, or path of a sweep file.
        effect: What is true in the simulated world: the whole law (default), or a part of it alone.
        num_tables: Simulated sweeps (default 200); shares are good to 0.5 / √N.
        seed: Seed of the simulation (default 0).
        place: Where everything lies.
    """
    from orchestrator.analysis.power import planned_power
    from orchestrator.planning.workspace import Workspace

    plan = Workspace.open(preset, place.root, place.storage).plan
    found = planned_power(plan, effect=effect, num_tables=num_tables, seed=seed)

    def show() -> None:
        for table in found.tables():
            stdout.print(text_table(table))
            line(table.note)
        for text in found.lines():
            line(text)

    emit(place, found.to_json(), show)
    return 0


def compare(first: str, second: str, /, *, from_store: bool = False, place: Place = Place()) -> int:
    """Compare two sweeps on the cells that both have, datasets being the replicates.

    Args:
        first: A preset's or sweep's name, or the path of a sweep file.
        second: The other; ratios are of it over the first.
        from_store: Do not compare with MLflow.
        place: Where everything lies.
    """
    from orchestrator.analysis import compare as compare_tables

    if first == second:
        way_out = "name another one; isweep status lists those of the root"
        raise ConfigError("compare needs two sweeps", f"{first} twice", way_out)
    tables = [read_table(name, place, from_store=from_store) for name in (first, second)]
    found = compare_tables(tables[0], tables[1], names=(first, second))

    def show() -> None:
        table = found.table()
        stdout.print(text_table(table))
        line(table.note)

    emit(place, asdict(found), show)
    return 0
