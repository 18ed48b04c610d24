"""Results tables as CSV files, safe to open in a spreadsheet and read back unchanged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from orchestrator.results.table import TEXT_COLUMNS
from search_spaces.errors import DataError

# A text cell that begins with =, +, - or @ is a formula to a spreadsheet: such cells get a leading
# apostrophe (OWASP, "CSV Injection"), which reading takes off again; so is a leading apostrophe
# itself.
_RISKY = ("=", "+", "-", "@", "\t", "\r", "'")


def escape_cell(value: object) -> object:
    """Return ``value`` made safe for a spreadsheet; anything but risky text is returned as it
    is.
    """
    return f"'{value}" if isinstance(value, str) and value.startswith(_RISKY) else value


def unescape_cell(value: object) -> object:
    """Undo :func:`escape_cell`."""
    escaped = isinstance(value, str) and value[:1] == "'" and value[1:].startswith(_RISKY)
    return value[1:] if isinstance(value, str) and escaped else value


def csv_text(table: pd.DataFrame) -> str:
    """Return ``table`` as CSV with every number in full precision and every risky text escaped."""
    safe = table.rename(columns=escape_cell)
    for position, dtype in enumerate(safe.dtypes):
        if not pd.api.types.is_numeric_dtype(dtype):
            safe.isetitem(position, [escape_cell(value) for value in safe.iloc[:, position]])
    return str(safe.to_csv(index=False, lineterminator="\n"))


def write_csv(table: pd.DataFrame, path: Path) -> Path:
    """Write ``table`` as :func:`csv_text` has it."""
    path.write_text(csv_text(table), encoding="utf-8", newline="")
    return path


def read_csv(path: Path) -> pd.DataFrame:
    """Read a table that :func:`write_csv` wrote, empty text staying empty; DataError if there is
    none.
    """
    try:
        header = pd.read_csv(path, nrows=0).columns
        text = {name: str for name in header if unescape_cell(name) in TEXT_COLUMNS}
        blank = {name: ["", "nan"] for name in header if name not in text}
        exact: Any = {"keep_default_na": False, "float_precision": "round_trip"}
        table: pd.DataFrame = pd.read_csv(path, dtype=text, na_values=blank, **exact)
    except (OSError, pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        rule, way_out = "A results file must be a CSV table", "write it with `isweep results --csv`"
        raise DataError(rule, f"{path}: {error}", way_out) from error
    for name in table.columns:
        if not pd.api.types.is_numeric_dtype(table[name].dtype):
            table[name] = table[name].astype(object).map(unescape_cell)
    return table.rename(columns=unescape_cell)
