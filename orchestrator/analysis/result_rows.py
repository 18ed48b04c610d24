"""Selection of rows of a table of results, and averages over seeds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from search_spaces.errors import unknown_name

if TYPE_CHECKING:
    import pandas as pd

COMBINATION = ("model", "recipe", "dataset", "domain", "class_pair", "train_size")
"""Columns whose values are equal in trials that differ only in their seed."""


def select_rows(table: pd.DataFrame, wanted: Mapping[str, object]) -> pd.DataFrame:
    """Return the rows of a table that have the given values.

    Args:
        table: A results table with one row per trial.
        wanted: Required value of a column, by name of the column.

    Raises:
        ConfigError: If a value does not occur in its column.
    """
    for column, value in wanted.items():
        texts = table[column].map(_text)
        text = _text(value)
        if text not in set(texts):
            values = table[column].dropna().unique().tolist()
            raise unknown_name(column.replace("_", " "), text, values, of="these results")
        table = table[texts == text]
    return table


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)


def average_over_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """Return one row per combination, with means over seeds and the number of seeds."""
    from pandas.api.types import is_float_dtype  # The import takes a second.

    columns = [name for name in COMBINATION if name in table]
    numbers = [name for name in table if is_float_dtype(table[name]) and name not in columns]
    groups = table.groupby(columns, sort=False, dropna=False)
    return groups[numbers].mean().assign(num_seeds=groups.size()).reset_index()
