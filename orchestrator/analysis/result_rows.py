"""Rows of a table of results: select some, or average over seeds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from search_spaces.errors import (
    unknown_name,
)

if TYPE_CHECKING:
    import pandas as pd


def select_rows(table: pd.DataFrame, wanted: Mapping[str, object]) -> pd.DataFrame:
    """Return the rows of a tidy table that have these values, by column; ConfigError where no row
    has one.
    """

    def spelled(value: object) -> str:
        return f"{value:g}" if isinstance(value, float) else str(value)

    for name, value in wanted.items():
        values, asked = table[name].map(spelled), spelled(value)
        if asked not in set(values):
            known = table[name].dropna().unique().tolist()
            raise unknown_name(f"{name.replace('_', ' ')} of these results", asked, known)
        table = table[values == asked]
    return table


def average_over_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """Return one row per cell of a sweep: means over its seeds, and how many there are
    (``num_seeds``).
    """
    from pandas.api.types import is_float_dtype

    known = ("model", "recipe", "dataset", "domain", "class_pair", "train_size")
    cells = [name for name in known if name in table]
    numbers = [name for name in table if is_float_dtype(table[name]) and name not in cells]
    groups = table.groupby(cells, sort=False, dropna=False)
    return groups[numbers].mean().assign(num_seeds=groups.size()).reset_index()
