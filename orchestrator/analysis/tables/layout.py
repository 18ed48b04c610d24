"""A table of text cells, and its construction from records and columns."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from orchestrator.analysis.number_formats import interval, number, p_value

Column = str | Callable[[Any], str]
"""Content of a column: the name of a field, or a function that returns the text for a
record."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table of text.

    Attributes:
        key: Anchor of the table on the page.
        title: Heading.
        note: Explanation of the columns.
        header: Names of the columns.
        rows: Cells of each row.
        numeric_from: Index of the first column of numbers. Columns of numbers are
            right-aligned.
    """

    key: str
    title: str
    note: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric_from: int = 1


def laid_out(
    key: str,
    title: str,
    note: str,
    records: Iterable[Any],
    columns: Mapping[str, Column],
    *,
    numeric_from: int = 1,
) -> Table:
    """Return a table with one row per record. Columns that are empty in all rows are left out.

    Args:
        key: Anchor of the table on the page.
        title: Heading.
        note: Explanation of the columns.
        records: The records: mappings, or objects with fields.
        columns: Content of each column, by name of the column.
        numeric_from: Index of the first column of numbers.
    """
    rows = []
    for record in records:
        rows.append([_cell(record, column) for column in columns.values()])
    filled = []
    for k in range(len(columns)):
        if not rows or any(row[k] for row in rows):
            filled.append(k)
    names = list(columns)
    filled_rows = []
    for row in rows:
        filled_rows.append(tuple(row[k] for k in filled))
    return Table(
        key=key,
        title=title,
        note=note,
        header=tuple(names[k] for k in filled),
        rows=tuple(filled_rows),
        numeric_from=bisect_left(filled, numeric_from),
    )


def _field(record: Any, name: str) -> Any:
    """Return a field of an object, or an entry of a mapping; None if the mapping lacks it."""
    if isinstance(record, Mapping):
        return record.get(name)
    return getattr(record, name)


def _cell(record: Any, column: Column) -> str:
    """Return the text of a column for a record."""
    if callable(column):
        return column(record)
    value = _field(record, column)
    if column == "interval":
        return interval(value)
    if isinstance(value, Integral) and not isinstance(value, bool):
        return f"{value:,}"
    if value is None or isinstance(value, float):
        is_p_value = column.startswith(("p_", "adjusted_p"))
        if is_p_value:
            return p_value(value)
        return number(value)
    return str(value)
