"""Rows of a table of results: select some, or average over seeds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from search_spaces.errors import unknown_name

if TYPE_CHECKING:
    import pandas as pd

COMBINATION = ("model", "recipe", "dataset", "domain", "class_pair", "train_size")
"""Columns that trials which differ only by their seed share."""


def select_rows(table: pd.DataFrame, wanted: Mapping[str, object]) -> pd.DataFrame:
    """Return the rows of a table that have given values.

    Args:
        table: A row per trial.
        wanted: Value by column.

    Raises:
        ConfigError: No row has one of the values.
    """
    for column, value in wanted.items():
        texts = table[column].map(_text)
        text = _text(value)
        if text not in set(texts):
            known = table[column].dropna().unique().tolist()
            raise unknown_name(f"{column.replace('_', ' ')} of these results", text, known)
        table = table[texts == text]
    return table


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)


def average_over_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """Return a row per combination: means over its seeds, and their number (``num_seeds``)."""
    from pandas.api.types import is_float_dtype  # takes a second

    columns = [name for name in COMBINATION if name in table]
    numbers = [name for name in table if is_float_dtype(table[name]) and name not in columns]
    groups = table.groupby(columns, sort=False, dropna=False)
    return groups[numbers].mean().assign(num_seeds=groups.size()).reset_index()
