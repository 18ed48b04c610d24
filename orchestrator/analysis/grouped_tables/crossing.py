"""Columns that a design does not name and whose values recur over groups.

A table of datasets × models, fitted with ``--groups dataset`` alone, takes the rows of one model
for independent. They are not: a model that is good on one dataset is good on most. Drawn tables
whose models share such a shock gave a false claim in half of all cases, with any method that
counts datasets only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from orchestrator.analysis.grouped_tables.design import Design
from orchestrator.analysis.table import listing, plural

_WHOLE_NUMBER = re.compile(r"[+-]?\d+(\.0*)?")


@dataclass(frozen=True, slots=True)
class CrossingColumn:
    """A column that is not named in the design and whose values recur over most groups.

    Attributes:
        name: Name of the column.
        num_recurring: Groups of which at least half of the rows have a recurring value.
        num_groups: All groups.
    """

    name: str
    num_recurring: int
    num_groups: int

    def warning(self, design: Design) -> str:
        """Say what recurs, what the fit makes of it, and what to do."""
        groups = plural(self.num_groups, listing(design.groups))
        if len(design.groups) > 1:
            groups = f"{self.num_groups:,} combinations of {listing(design.groups)}"
        return (
            f"Beware: {self.name} recurs in {self.num_recurring:,} of {groups}: name it in "
            f"--groups or --within. While it is not named, a claim must also hold when rows of one "
            f"{self.name} are taken for dependent. If {self.name} is a measurement, drop the "
            "column."
        )


def crossing_columns(
    cells: pd.DataFrame, rows: pd.DataFrame, design: Design
) -> Iterator[CrossingColumn]:
    """Find the columns that recur over most groups and vary within most of them.

    A text recurs if two groups have it. A whole number recurs if more than half of the groups have
    it: counts agree by chance. Other numbers are measurements.

    Args:
        cells: All columns of the table as text, fitted rows only.
        rows: The columns of the design for the same rows, numbers as float64.
        design: What is asked of the table.
    """
    units = rows.groupby(list(design.groups)).ngroup()
    cells_within = pd.Series(0, index=rows.index)
    if design.within:
        cells_within = rows.groupby(list(design.within)).ngroup()
    reported: list[pd.Series] = []
    candidates = [str(name) for name in cells.columns if name not in design.columns]
    candidates.sort(key=lambda name: -cells[name].nunique())
    for name in candidates:
        labels = cells[name]
        num_recurring = _num_recurring_groups(labels, units)
        if 2 * num_recurring <= units.nunique() or not _varies_within_most(labels, units):
            continue
        is_named_already = _is_function_of(labels, cells_within)
        is_implied = any(_is_function_of(labels, finer) for finer in reported)
        is_other_unit = any(_is_monotone_copy(labels, rows[number]) for number in design.numeric)
        if is_named_already or is_implied or is_other_unit:
            continue
        reported.append(labels)
        yield CrossingColumn(name, num_recurring, units.nunique())


def _is_whole_number(labels: pd.Series) -> bool:
    """Return whether every cell that is not empty holds a whole number."""
    filled = labels[labels != ""]
    return bool(filled.map(lambda text: _WHOLE_NUMBER.fullmatch(text) is not None).all())


def _num_recurring_groups(labels: pd.Series, units: pd.Series) -> int:
    """Count the groups of which at least half of the rows have a value that recurs."""
    filled = labels != ""
    num_units_of = units[filled].groupby(labels[filled]).nunique()
    is_number = pd.to_numeric(labels[filled], errors="coerce").notna().all()
    num_needed = 2.0
    if is_number:
        if not _is_whole_number(labels):
            return 0
        num_needed = max(2.0, (units.nunique() + 1) / 2)
    recurs = labels.map(num_units_of).fillna(0) >= num_needed
    return int((recurs.groupby(units).mean() >= 0.5).sum())


def _varies_within_most(labels: pd.Series, units: pd.Series) -> bool:
    """Return whether more than half of the groups have two values or more."""
    return bool((labels.groupby(units).nunique() > 1).mean() > 0.5)


def _is_function_of(labels: pd.Series, keys: pd.Series) -> bool:
    """Return whether rows with one key always have one label."""
    return bool((labels.groupby(keys).nunique() <= 1).all())


def _is_monotone_copy(labels: pd.Series, numbers: pd.Series) -> bool:
    """Return whether labels are the same quantity in another unit, as N is of log N."""
    if not _is_whole_number(labels) or (labels == "").any():
        return False
    pairs = pd.DataFrame({"label": labels.astype(float), "number": numbers}).drop_duplicates()
    if pairs["label"].duplicated().any() or pairs["number"].duplicated().any():
        return False
    ordered = pairs.sort_values("label")["number"]
    return bool(ordered.is_monotonic_increasing or ordered.is_monotonic_decreasing)
