"""Results as CSV that a spreadsheet can open without running anything.

A text cell that begins with ``=``, ``+``, ``-`` or ``@`` is a formula to a spreadsheet. Such cells get a
leading apostrophe (OWASP, "CSV Injection"), which reading takes off again, so a round trip loses nothing.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from orchestrator.results.columns import TEXT_COLUMNS
from search_spaces.errors import DataError

# The apostrophe is escaped too: otherwise a text that really begins with '= would come back without it.
_RISKY = ("=", "+", "-", "@", "\t", "\r", "'")


def escape_cell(value: object) -> object:
    """Return ``value`` made safe for a spreadsheet; anything but risky text is returned as it is."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_RISKY) else value


def unescape_cell(value: object) -> object:
    """Undo :func:`escape_cell`."""
    return (
        value[1:] if isinstance(value, str) and value[:1] == "'" and value[1:].startswith(_RISKY) else value
    )


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
    """Read a table that :func:`write_csv` wrote: text columns stay text, empty text stays empty.

    Raises:
        DataError: if the file is missing or holds no table.
    """
    try:
        header = pd.read_csv(path, nrows=0).columns
        text = {name: str for name in header if unescape_cell(name) in TEXT_COLUMNS}
        blank = {name: ["", "nan"] for name in header if name not in text}
        table = pd.read_csv(
            path, dtype=text, na_values=blank, keep_default_na=False, float_precision="round_trip"
        )
    except (OSError, pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        raise DataError(
            "A results file must be a CSV table", f"{path}: {error}", "write it with `isweep results --csv`"
        ) from error
    for name in table.columns:
        if not pd.api.types.is_numeric_dtype(table[name].dtype):
            table[name] = table[name].astype(object).map(unescape_cell)
    return table.rename(columns=unescape_cell)
