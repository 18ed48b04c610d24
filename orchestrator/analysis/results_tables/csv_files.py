"""Results tables as CSV files that are safe in a spreadsheet and are read back unchanged.

A spreadsheet treats a text cell that begins with =, +, - or @ as a formula. Therefore
:func:`write_csv` puts an apostrophe in front of such a cell (OWASP, "CSV Injection"), and
:func:`read_csv` removes the apostrophe. If a cell already begins with an apostrophe, it gets a
second one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from orchestrator.results.columns import COLUMNS, NUM_CLASSES, TEXT_COLUMNS
from search_spaces.errors import DataError

RISKY_STARTS = ("=", "+", "-", "@", "\t", "\r", "'")
"""First characters of the cells that get an apostrophe."""

INTEGER_COLUMNS = {column.name for column in COLUMNS if column.kind == "integer"} | {NUM_CLASSES}
"""Columns of whole numbers, such as the train size. The number of classes is added here,
because MLflow stores it as a float."""
LARGEST_EXACT = 2**53
"""Limit for whole numbers. Below this limit, float64 represents every whole number exactly."""


def escape_cell(value: object) -> object:
    """Return a cell that is safe in a spreadsheet. Risky texts get an apostrophe."""
    if isinstance(value, str) and value.startswith(RISKY_STARTS):
        return f"'{value}"
    return value


def unescape_cell(value: object) -> object:
    """Return the cell as it was before :func:`escape_cell`."""
    if not isinstance(value, str) or not value.startswith("'"):
        return value
    text = value[1:]
    if text.startswith(RISKY_STARTS):
        return text
    return value


def csv_text(table: pd.DataFrame) -> str:
    """Return a table as CSV text, with numbers in full precision and with escaped texts."""
    safe = table.rename(columns=escape_cell)
    for position, (name, dtype) in enumerate(zip(table.columns, safe.dtypes, strict=True)):
        if name in INTEGER_COLUMNS and pd.api.types.is_float_dtype(dtype):
            safe.isetitem(position, _whole_numbers(safe.iloc[:, position]).array)
        elif not pd.api.types.is_numeric_dtype(dtype):
            cells = safe.iloc[:, position]
            safe.isetitem(position, [escape_cell(value) for value in cells])
    return str(safe.to_csv(index=False, lineterminator="\n"))


def _whole_numbers(cells: pd.Series) -> pd.Series:
    """Return a column of floats as whole numbers. If one of them is not whole, return it unchanged.

    pandas stores a column with missing values as floats, so it would write the train size 220
    as 220.0.
    """
    values = cells.dropna()
    are_whole = (values % 1 == 0).all() and (values.abs() < LARGEST_EXACT).all()
    return cells.astype("Int64") if are_whole else cells


def write_csv(table: pd.DataFrame, path: Path) -> Path:
    """Write a table as the CSV text of :func:`csv_text`, and return the path."""
    path.write_text(csv_text(table), encoding="utf-8", newline="")
    return path


def read_csv(path: Path) -> pd.DataFrame:
    """Read a table that :func:`write_csv` wrote. An empty text stays an empty text.

    Raises:
        DataError: If the file is missing, or is not a CSV table.
    """
    try:
        table = _read(path)
    except (OSError, pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        raise DataError(
            f"The results table {path} cannot be read as CSV: {error}",
            hint="Write the table with `isweep results --csv`",
        ) from error
    for name in table.columns:
        if not pd.api.types.is_numeric_dtype(table[name].dtype):
            table[name] = table[name].astype(object).map(unescape_cell)
    return table.rename(columns=unescape_cell)


def _read(path: Path) -> pd.DataFrame:
    """Return the cells of a file, with the apostrophes of :func:`escape_cell`."""
    texts = {}
    blanks = {}
    for name in pd.read_csv(path, nrows=0).columns:
        if unescape_cell(name) in TEXT_COLUMNS:
            texts[name] = str
        else:
            blanks[name] = ["", "nan"]
    exact: Any = {"keep_default_na": False, "float_precision": "round_trip"}
    table: pd.DataFrame = pd.read_csv(path, dtype=texts, na_values=blanks, **exact)
    return table
