"""Columns that a design does not name and whose values recur over groups.

A table of datasets × models, fitted with ``--groups dataset`` alone, takes the rows of one model
for independent. They are not: a model that is good on one dataset is good on most. Of drawn tables
whose models share such a shock, and nothing else, 22 to 53 in 100 gave a false claim while
datasets alone were counted (``benchmarks/results/grouped_tables.json``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from orchestrator.analysis.grouped_tables.design import Design
from orchestrator.analysis.number_formats import listing
from search_spaces.errors import plural

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
            f"Beware: {self.name} recurs in {self.num_recurring:,} of {groups}. Name {self.name} "
            "in --groups or --within. Until then a claim must also hold if rows of one "
            f"{self.name} depend on each other. If {self.name} is a measurement, drop the column."
        )


def crossing_columns(
    cells: pd.DataFrame,
    rows: pd.DataFrame,
    design: Design,
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
    named_or_reported: list[pd.Series] = []
    if design.within:
        kinds = rows.groupby(list(design.within)).ngroup()
        named_or_reported.append(kinds)
    num_units = units.nunique()
    unnamed = [str(name) for name in cells.columns if name not in design.columns]
    finest_first = cells[unnamed].nunique().sort_values(ascending=False, kind="stable")
    for name in finest_first.index:
        labels = cells[name]
        num_recurring = _num_recurring_groups(labels, units)
        if num_recurring <= num_units / 2:
            continue
        if not _varies_within_most(labels, units):
            continue
        if any(_is_function_of(labels, finer) for finer in named_or_reported):
            continue
        if any(_is_monotone_copy(labels, rows[number]) for number in design.numeric):
            continue
        named_or_reported.append(labels)
        yield CrossingColumn(name, num_recurring, num_units)


def _is_whole_number(labels: pd.Series) -> bool:
    """Return whether every cell that is not empty holds a whole number."""
    filled = labels[labels != ""]
    return all(_WHOLE_NUMBER.fullmatch(text) for text in filled.unique())


def _num_recurring_groups(labels: pd.Series, units: pd.Series) -> int:
    """Count the groups of which at least half of the rows have a value that recurs."""
    filled = labels[labels != ""]
    num_units_of = units[filled.index].groupby(filled).nunique()
    numbers = pd.to_numeric(filled, errors="coerce")
    num_needed = 2.0
    if numbers.notna().all():
        if not _is_whole_number(labels):
            return 0
        num_needed = max(2.0, (units.nunique() + 1) / 2)
    num_units_with = labels.map(num_units_of).fillna(0)
    recurs = num_units_with >= num_needed
    share_by_unit = recurs.groupby(units).mean()
    return int((share_by_unit >= 0.5).sum())


def _varies_within_most(labels: pd.Series, units: pd.Series) -> bool:
    """Return whether more than half of the groups have two values or more."""
    num_values = labels.groupby(units).nunique()
    share_varying = (num_values > 1).mean()
    return bool(share_varying > 0.5)


def _is_function_of(labels: pd.Series, keys: pd.Series) -> bool:
    """Return whether rows with one key always have one label."""
    num_values = labels.groupby(keys).nunique()
    return bool((num_values <= 1).all())


def _is_monotone_copy(labels: pd.Series, numbers: pd.Series) -> bool:
    """Return whether labels are the same quantity in another unit, as N is of log N."""
    if not _is_whole_number(labels) or (labels == "").any():
        return False
    pairs = pd.DataFrame({"label": labels.astype(float), "number": numbers})
    pairs = pairs.drop_duplicates().sort_values("label")
    if not (pairs["label"].is_unique and pairs["number"].is_unique):
        return False
    ordered = pairs["number"]
    return bool(ordered.is_monotonic_increasing or ordered.is_monotonic_decreasing)
