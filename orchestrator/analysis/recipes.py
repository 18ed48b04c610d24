"""Recipes as an axis of the grid: fits never average over them as if they were seeds."""

from __future__ import annotations

import pandas as pd

from orchestrator.results import columns as c

_CELL = [c.MODEL, c.DATASET, c.CLASS_PAIR, c.TRAIN_SIZE, c.SEED, c.DATA_MODE]


def split_by_recipe(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with models told apart by what their recipes vary: ``vgg13 (learning_rate=0.0003)``.

    Only what varies within one cell is an axis: a recipe that differs between datasets splits no model.
    """
    if c.RECIPE not in table:
        return table
    parts = table[c.RECIPE].fillna("").map(_changes)
    keys = [name for name in _CELL if name in table]
    axes = {
        name
        for _, cell in parts.groupby([table[key].fillna("") for key in keys])
        for name in _varied(list(cell))
    }
    if not axes:
        return table
    labels = parts.map(
        lambda changes: ", ".join(f"{name}={changes.get(name, 'as given')}" for name in sorted(axes))
    )
    return table.assign(**{c.MODEL: table[c.MODEL].astype(str) + " (" + labels + ")"})


def _changes(recipe: str) -> dict[str, str]:
    base, *changes = recipe.split("+")
    return {"recipe": base, **dict(change.split("=", 1) for change in changes if "=" in change)}


def _varied(cell: list[dict[str, str]]) -> set[str]:
    names = {name for changes in cell for name in changes}
    return {name for name in names if len({changes.get(name) for changes in cell}) > 1}
