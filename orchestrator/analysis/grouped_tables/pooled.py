"""The correlation over all rows as if they were independent, and what it mixes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from orchestrator.analysis.grouped_tables.rows import StandardRows
from orchestrator.analysis.inference import Array, centred, t_p_values

MIN_ROWS = 3
"""Fewest rows that have a correlation: two lie on a line."""
SMALLEST_SQUARE = 1e-300
"""Unexplained share of a perfect correlation, so that its t is a number."""


@dataclass(frozen=True, slots=True)
class PooledCorrelation:
    """Correlation over all rows as if independent, which counts every row as a replicate.

    Attributes:
        on: The column.
        r: Pearson's correlation over all rows.
        p_value: Its p-value if rows were independent.
        shares: Shares of the spread of response and column that lie between groups.
        by_group: Correlation within each group that has one.
    """

    on: str
    r: float
    p_value: float
    shares: tuple[float, float]
    by_group: dict[str, float]


def pooled_correlations(data: StandardRows) -> Iterator[PooledCorrelation]:
    """Correlate the response with each column over all rows."""
    if len(data.response) < MIN_ROWS:
        return
    for place, name in enumerate(data.design.on):
        yield _pooled_correlation(data, name, data.columns[:, place])


def _pooled_correlation(data: StandardRows, name: str, column: Array) -> PooledCorrelation:
    """Correlate the response with one column, ``(n,)``, both of mean 0 and deviation 1."""
    unit = data.groups.unit
    num_rows = len(column)
    r = float(data.response @ column) / num_rows
    unexplained = max(1 - r**2, SMALLEST_SQUARE)
    error = float(np.sqrt(unexplained / (num_rows - 2)))
    pair = np.column_stack([data.response, column])
    response_within, column_within = centred(pair, unit).T
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
