"""The correlation over all rows of a table, computed as if the rows were independent."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from orchestrator.analysis.grouped_tables.rows import StandardRows
from orchestrator.analysis.inference import Array, centered, t_p_values

MIN_ROWS = 3
"""Smallest number of rows for a correlation: two points always lie on a line."""
SMALLEST_SQUARE = 1e-300
"""Smallest unexplained share 1 − r². It keeps the t value finite if the correlation is
perfect."""


@dataclass(frozen=True, slots=True)
class PooledCorrelation:
    """A correlation over all rows that counts each row as a replicate.

    Attributes:
        on: The column.
        r: Pearson's correlation over all rows.
        p_value: p-value of r under the assumption that rows are independent.
        shares: Two shares of variance that lie between groups: of the response, then of the
            column.
        by_group: Correlation within each group, by name of the group. A group is missing if
            its correlation is not defined.
    """

    on: str
    r: float
    p_value: float
    shares: tuple[float, float]
    by_group: dict[str, float]


def pooled_correlations(data: StandardRows) -> Iterator[PooledCorrelation]:
    """Yield the correlation over all rows between the response and each column."""
    if len(data.response) < MIN_ROWS:
        return
    for place, name in enumerate(data.design.on):
        yield _pooled_correlation(data, name, data.columns[:, place])


def _pooled_correlation(data: StandardRows, name: str, column: Array) -> PooledCorrelation:
    """Return the correlation of the response with a standardized column, ``(n,)``."""
    unit = data.groups.unit
    num_rows = len(column)
    r = float(data.response @ column) / num_rows
    unexplained = max(1 - r**2, SMALLEST_SQUARE)
    error = float(np.sqrt(unexplained / (num_rows - 2)))
    pair = np.column_stack([data.response, column])
    response_within, column_within = centered(pair, unit).T
    response_squares = np.bincount(unit, response_within**2)
    column_squares = np.bincount(unit, column_within**2)
    products = np.bincount(unit, response_within * column_within)
    sizes = np.bincount(unit)
    by_group = {}
    for group, group_name in enumerate(data.groups.unit_names):
        square = response_squares[group] * column_squares[group]
        if sizes[group] < MIN_ROWS or square <= 0:
            continue
        correlation = products[group] / np.sqrt(square)
        by_group[group_name] = float(correlation)
    response_share = 1 - float(response_squares.sum()) / num_rows
    column_share = 1 - float(column_squares.sum()) / num_rows
    return PooledCorrelation(
        on=name,
        r=r,
        p_value=float(t_p_values(r, error, num_rows - 2)),
        shares=(max(0.0, response_share), max(0.0, column_share)),
        by_group=by_group,
    )
