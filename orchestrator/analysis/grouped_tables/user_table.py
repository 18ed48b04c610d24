"""Reading and checking of a user's table for a fit within and between groups.

Numbers become float64. Groups and ``within`` columns stay text, so that ids keep leading
zeros. If the table has several problems, one :class:`ConfigError` lists all of them, with the
numbers of the rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from orchestrator.analysis.grouped_tables.crossing import CrossingColumn, crossing_columns
from orchestrator.analysis.grouped_tables.design import Design
from orchestrator.analysis.grouped_tables.suspicions import row_numbers, suspicions
from orchestrator.analysis.number_formats import listing
from search_spaces.errors import (
    ConfigError,
    missing_path_hint,
    plural,
    raise_all,
    unknown_name,
)
from tasks.sources.tables import READERS, TableError, read_text

SUFFIXES = (".csv", ".tsv", ".txt", *READERS)
"""File extensions of the tables that isweep can read."""
SAVE_AS_CSV = "Save the table as CSV in UTF-8 with one line of column names"
MAX_SHARE_LEFT_OUT = 0.05
"""Largest share of rows that may be left out, because a value is missing or the row is a copy
of an earlier row. With a larger share, the fitted rows may no longer represent the table."""
MAX_MAGNITUDE = 1e100
"""Largest accepted absolute value of a number. The smallest accepted absolute value, apart
from 0, is one over this limit. In float64, squares of larger values are infinite, and squares
of smaller values are 0."""
MIN_ROUNDING_STEPS = 1e4
"""Smallest standard deviation of a column. The unit is the distance between neighboring
float64 numbers at the column's largest value. With this standard deviation, a slope has four
correct digits."""
MAX_KINDS_WITHIN = 200
"""Largest number of combinations of values of the ``within`` columns. Each combination adds a
column to the fit."""
MISSING_TEXTS = frozenset({"", "na", "n/a", "nan", "null", "none", "-", "."})
"""Cell texts, in lower case, that mean that the value is missing."""


@dataclass(frozen=True, slots=True)
class UserTable:
    """The rows of a user's table that a fit uses, with remarks on the table.

    Attributes:
        rows: The fitted rows, with the columns of the design, and with the crossing columns as
            text.
        remarks: Sentences on rows that were left out and on suspicious values.
        crossing: Columns outside the design whose values recur in most groups.
    """

    rows: pd.DataFrame
    remarks: tuple[str, ...]
    crossing: tuple[CrossingColumn, ...] = ()


def read_user_table(path: Path, design: Design) -> UserTable:
    """Read the columns of a design from a file whose extension is in :data:`SUFFIXES`.

    Raises:
        ConfigError: If the file or its rows cannot be used. The error lists every problem.
    """
    cells = _read_cells(path)
    _check_columns(cells, design, path.name)
    is_copy = cells.duplicated()
    cells = cells.apply(lambda column: column.str.strip())
    named: pd.DataFrame = cells[list(design.columns)]
    is_missing = named.apply(lambda column: column.str.lower().isin(MISSING_TEXTS))
    numeric = list(design.numeric)
    numbers = named[numeric].apply(pd.to_numeric, errors="coerce")
    numbers = numbers.astype(float)
    sizes = numbers.abs()
    is_neither_huge_nor_tiny = (sizes < MAX_MAGNITUDE) & (sizes > 1 / MAX_MAGNITUDE)
    is_usable = is_neither_huge_nor_tiny | (sizes == 0)
    is_bad = ~(is_usable | is_missing[numeric])
    is_fitted = ~(is_missing.any(axis=1) | is_copy)
    reasons = _reasons_left_out(named, is_missing, is_copy)
    rows = named.copy()
    rows[numeric] = numbers
    faults = [
        *_number_faults(is_bad),
        *_share_faults(is_fitted, reasons),
        *_variation_faults(rows[is_fitted], is_bad, design),
    ]
    raise_all(faults)

    fitted_cells = cells[is_fitted].reset_index(drop=True)
    fitted_rows: pd.DataFrame = rows[is_fitted].reset_index(drop=True)
    crossing = tuple(crossing_columns(fitted_cells, fitted_rows, design))
    for column in crossing:
        fitted_rows[column.name] = fitted_cells[column.name]
    remarks = [f"Left out: {reason}." for reason in reasons]
    remarks += suspicions(fitted_rows, design)
    remarks += [column.warning(design) for column in crossing]
    return UserTable(fitted_rows, tuple(dict.fromkeys(remarks)), crossing)


def _read_cells(path: Path) -> pd.DataFrame:
    """Return all cells of a file as text, after a check that all column names differ."""
    try:
        is_file = path.is_file()
    except OSError as error:  # for example, a folder above may not be entered
        hint = "Give a path that you can open"
        raise ConfigError(f"{path} cannot be read: {error.strerror}", hint=hint) from None
    if not is_file:
        if path.is_dir():
            raise ConfigError(f"{path} is a folder", hint="Give the path of a table in this folder")
        raise ConfigError(f"The table {path} does not exist", hint=missing_path_hint(path))
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ConfigError(
            f"{path.name} does not have the file extension of a table that isweep can read",
            hint=f"Give a file with one of these extensions: {', '.join(SUFFIXES)}",
        )
    read, kind = READERS.get(suffix, (read_text, "UTF-8 text"))
    try:
        lines = read(path.read_bytes()).rows
    except TableError as error:
        hint = error.hint or SAVE_AS_CSV
        raise ConfigError(f"{path.name} {error.problem}", hint=hint) from None
    except Exception as error:  # Readers raise many kinds of errors on damaged files.
        raise ConfigError(
            f"{path.name} cannot be read as {kind}: {error}", hint=SAVE_AS_CSV
        ) from None
    if not lines or not lines[0]:
        raise ConfigError(f"{path.name} is empty", hint=SAVE_AS_CSV)
    names = [name.strip() for name in lines[0]]
    repeated = {name for name in names if names.count(name) > 1}
    if repeated:
        raise ConfigError(
            f"{path.name} has more than one column with the name {listing(sorted(repeated))}",
            hint="Rename columns until all names differ",
        )
    lengths = pd.Series([len(line) for line in lines[1:]], dtype=int)
    is_uneven = lengths != len(names)
    if is_uneven.any():
        num_uneven = plural(int(is_uneven.sum()), "row")
        raise ConfigError(
            f"{path.name} has {num_uneven} with more or fewer cells than the header, which "
            f"has {plural(len(names), 'cell')}. Look at {row_numbers(is_uneven)}",
            hint=SAVE_AS_CSV,
        )
    return pd.DataFrame(lines[1:], columns=names, dtype=str)


def _check_columns(cells: pd.DataFrame, design: Design, file_name: str) -> None:
    """Raise an error if a design contains a column twice, or a column missing from the table."""
    table_names = [str(name) for name in cells.columns]
    absent = [name for name in design.columns if name not in table_names]
    raise_all(unknown_name("column", name, table_names, of=file_name) for name in absent)
    for name in design.columns:
        if design.columns.count(name) > 1:
            raise ConfigError(
                f"The column {name} is used more than once in --response, --on, --groups and "
                "--within",
                hint="Use every column in only one of these options",
            )


def _reasons_left_out(
    named: pd.DataFrame, is_missing: pd.DataFrame, is_copy: pd.Series
) -> list[str]:
    """Return a text for each reason to leave out rows: the number of rows and the first ones."""
    masks = {}
    for name, mask in is_missing.items():
        spellings = named[name][mask].unique()
        texts = [repr(text) for text in spellings if text]
        spelled = ""
        if texts:
            spelled = f", because {listing(texts)} counts as missing"
        masks[f"without {name}{spelled}"] = mask
    masks["equal to an earlier row in every column"] = is_copy
    return [
        f"{plural(int(mask.sum()), 'row')} {why} ({row_numbers(mask)})"
        for why, mask in masks.items()
        if mask.any()
    ]


def _number_faults(is_bad: pd.DataFrame) -> Iterator[ConfigError]:
    """Yield an error for each column in which a cell is neither a usable number nor missing."""
    for name, mask in is_bad.items():
        if not mask.any():
            continue
        limits = f"{1 / MAX_MAGNITUDE:g} and {MAX_MAGNITUDE:g}"
        num_cells = plural(int(mask.sum()), "cell")
        yield ConfigError(
            f"Column {name} has {num_cells} without a usable number ({row_numbers(mask)} "
            "below the header)",
            hint="Write numbers such as 1234.5, without commas, units or words. If a value is "
            "missing, leave its cell empty. The absolute value of a number must be between "
            f"{limits}",
        )


def _share_faults(is_fitted: pd.Series, reasons: list[str]) -> Iterator[ConfigError]:
    """Yield an error if too many rows would be left out."""
    share = 1 - is_fitted.mean()
    if share > MAX_SHARE_LEFT_OUT:
        yield ConfigError(
            f"The fit would leave out {share:.0%} of the rows (at most {MAX_SHARE_LEFT_OUT:.0%} "
            f"are allowed): {'; '.join(reasons)}",
            hint="If these rows are wrong, remove them from the table. If equal rows are "
            "correct, add a column in which they differ. If the name of a group counts as "
            "missing, rename the group",
        )


def _variation_faults(
    rows: pd.DataFrame, is_bad: pd.DataFrame, design: Design
) -> Iterator[ConfigError]:
    """Yield an error for each column with too few groups or values, or too many combinations."""
    for name in design.groups:
        num_groups = rows[name].nunique()
        if num_groups < 2:
            yield ConfigError(
                f"Column {name} has only {plural(num_groups, 'group')}, but a fit needs at least 2",
                hint="Choose a column whose values mark rows that belong together, for "
                "example dataset or patient",
            )
    for name in design.numeric:
        if is_bad[name].any():
            continue  # _number_faults reports these columns.
        values = rows[name]
        rounding_step = np.spacing(values.abs().max())
        if not values.std() > MIN_ROUNDING_STEPS * rounding_step:
            yield ConfigError(
                f"Column {name} varies too little for a slope: its values agree in about 12 digits",
                hint="Choose another column. If the values differ in later digits, subtract a "
                "constant before you save the table",
            )
    num_kinds = 0
    if design.within:
        kinds = rows[list(design.within)].drop_duplicates()
        num_kinds = len(kinds)
    if num_kinds > MAX_KINDS_WITHIN:
        yield ConfigError(
            f"The columns of --within have {num_kinds:,} combinations of values, but a fit "
            f"can use at most {MAX_KINDS_WITHIN:,}",
            hint="Choose columns with fewer different values",
        )
