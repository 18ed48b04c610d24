"""The correlation over all rows as if they were independent, and what it mixes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from orchestrator.analysis.grouped_tables.groups import Groups
from orchestrator.analysis.inference import Array, centred, t_p_values

MIN_ROWS = 3
"""Fewest rows of a group that has a correlation of its own."""


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


def pooled_correlation(name: str, y: Array, x: Array, groups: Groups) -> PooledCorrelation:
    """Correlate columns, ``(n,)``, of mean 0 and standard deviation 1."""
    num_rows = len(y)
    r = float(y @ x) / num_rows
    y_within, x_within = centred(np.column_stack([y, x]), groups.unit).T
    yy = np.bincount(groups.unit, y_within**2)
    xx = np.bincount(groups.unit, x_within**2)
    xy = np.bincount(groups.unit, x_within * y_within)
    has_r = (np.bincount(groups.unit) >= MIN_ROWS) & (yy > 0) & (xx > 0)
    correlations = xy[has_r] / np.sqrt(yy[has_r] * xx[has_r])
    names = np.array(groups.unit_names)[has_r].tolist()
    error = np.sqrt(max(1 - r**2, 1e-300) / (num_rows - 2))
    return PooledCorrelation(
        on=name,
        r=r,
        p_value=float(t_p_values(r, error, num_rows - 2)),
        shares=(_share_between(yy.sum(), num_rows), _share_between(xx.sum(), num_rows)),
        by_group=dict(zip(names, correlations.tolist(), strict=True)),
    )


def _share_between(squares_within: float, num_rows: int) -> float:
    """Return the share of a column's spread that lies between groups."""
    return max(0.0, 1 - squares_within / num_rows)
