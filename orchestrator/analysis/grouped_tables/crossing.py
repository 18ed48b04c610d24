"""Detection of crossing columns: columns outside the design with the same values in many groups.

Consider a table of datasets × models, fitted with ``--groups dataset`` alone. Such a fit
assumes that the rows of one model are independent. They are dependent: a model that is good on
one dataset is good on most datasets. We simulated tables with this dependence and no other
effect. Of 100 fits with only datasets as groups, 22 to 53 made a false claim
(``benchmarks/results/grouped_tables.json``).
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
    """A column outside the design whose values recur in most groups.

    Attributes:
        name: Name of the column.
        num_recurring: Number of groups in which at least half of the rows have a recurring
            value.
        num_groups: Number of all groups.
    """

    name: str
    num_recurring: int
    num_groups: int

    def warning(self, design: Design) -> str:
        """Return a warning: the column, its effect on claims, and what the user can do."""
        groups = plural(self.num_groups, listing(design.groups))
        if len(design.groups) > 1:
            groups = f"{self.num_groups:,} combinations of {listing(design.groups)}"
        return (
            f"Beware: the values of {self.name} recur in {self.num_recurring:,} of {groups}. Add "
            f"{self.name} to --groups or --within. If you do not add {self.name}, a claim must "
            f"also hold if rows with the same {self.name} depend on each other. If {self.name} is "
            "a measurement, drop the column."
        )


def crossing_columns(
    cells: pd.DataFrame,
    rows: pd.DataFrame,
    design: Design,
) -> Iterator[CrossingColumn]:
    """Yield the columns whose values recur in most groups and vary within most groups.

    A text recurs if at least two groups contain it. A whole number recurs if more than half of
    the groups contain it: in fewer groups, equal whole numbers also occur by chance. Other
    numbers are assumed to be measurements, which never recur.

    Args:
        cells: The fitted rows with all columns of the table, as text.
        rows: The same rows with the columns of the design. Numbers are float64.
        design: Columns of the fit.
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
    """Return whether every cell is empty or contains a whole number."""
    filled = labels[labels != ""]
    return all(_WHOLE_NUMBER.fullmatch(text) for text in filled.unique())


def _num_recurring_groups(labels: pd.Series, units: pd.Series) -> int:
    """Return the number of groups in which at least half of the rows have a recurring value."""
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
    """Return whether more than half of the groups have at least two different values."""
    num_values = labels.groupby(units).nunique()
    share_varying = (num_values > 1).mean()
    return bool(share_varying > 0.5)


def _is_function_of(labels: pd.Series, keys: pd.Series) -> bool:
    """Return whether rows with the same key always have the same label."""
    num_values = labels.groupby(keys).nunique()
    return bool((num_values <= 1).all())


def _is_monotone_copy(labels: pd.Series, numbers: pd.Series) -> bool:
    """Return whether labels are a strictly monotone function of numbers, for example N of log N."""
    if not _is_whole_number(labels) or (labels == "").any():
        return False
    pairs = pd.DataFrame({"label": labels.astype(float), "number": numbers})
    pairs = pairs.drop_duplicates().sort_values("label")
    if not (pairs["label"].is_unique and pairs["number"].is_unique):
        return False
    ordered = pairs["number"]
    return bool(ordered.is_monotonic_increasing or ordered.is_monotonic_decreasing)
