"""Scatter of rows in the means of their groups, and the slope between groups without it.

The mean of n rows carries their covariance within the group, divided by n. With 3 rows a group, a
slope within groups alone gave a false claim between 30 groups in 38 of 100 drawn tables. Taking
the scatter out of the products of the means leaves the slope between the groups' true means
(moment estimator of errors in variables; Fuller 1987, chapter 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from orchestrator.analysis.grouped_tables.rows import StandardRows, partial_slope
from orchestrator.analysis.inference import Array, Interval, centred, jackknife_error

MAX_SHARE_OF_SCATTER = 0.9
"""Largest share of scatter at which a slope without it is computed: beyond, it is noise."""
MIN_SHARE_OF_SCATTER = 1e-9
"""A smaller share of scatter is rounding."""


@dataclass(frozen=True, slots=True)
class MeanScatter:
    """The part of the spread between groups that is the scatter of rows within them.

    Attributes:
        on: The column.
        share: Share of the variance of the groups' means of this column that rows of one group
            explain: their variance within groups, divided by their number.
        slope: Slope between groups without the scatter; None if there is too much of it.
        interval: 95 % interval of that slope.
        p_value: Two-sided p of that slope against 0; 1 without a slope.
    """

    on: str
    share: float
    slope: float | None = None
    interval: Interval | None = None
    p_value: float = 1.0

    def times(self, factor: float) -> MeanScatter:
        """Return the slope in other units."""
        if self.slope is None or self.interval is None:
            return self
        low, high = self.interval
        bounds = (low * factor, high * factor)
        return replace(self, slope=self.slope * factor, interval=bounds)


@dataclass(frozen=True, slots=True)
class CorrectedSlope:
    """A slope between groups without scatter, and its standard error by a jackknife."""

    slope: float
    error: float


def scatter_of_means(data: StandardRows) -> Array:
    """Return the products that scatter of rows adds to each unit's effects, ``(U, q + 2, q + 2)``.

    The last row and column are the intercept's, which has none. A unit's covariance is its own;
    units of one row take that of all rows.
    """
    unit = data.groups.unit
    num_units = len(data.groups.unit_names)
    num_values = data.values.shape[1]
    scatter = np.zeros((num_units, num_values + 1, num_values + 1))
    degrees = len(unit) - num_units
    num_kinds = int(data.kind.max())
    if degrees <= num_kinds:
        return scatter

    residuals = _residuals_within(data)
    squares = residuals[:, :, None] * residuals[:, None, :]
    by_unit = np.zeros((num_units, num_values, num_values))
    np.add.at(by_unit, unit, squares)
    by_unit *= degrees / (degrees - num_kinds)  # intercepts of kinds took a part of the scatter
    sizes = np.bincount(unit).astype(float)
    degrees_by_unit = np.maximum(sizes - 1, 1)
    covariances = by_unit / degrees_by_unit[:, None, None]
    covariances[sizes == 1] = by_unit.sum(axis=0) / degrees
    of_means = covariances / sizes[:, None, None]
    of_means *= 1 - 1 / num_units  # effects are taken from their mean
    scatter[:, :-1, :-1] = of_means
    return scatter


def _residuals_within(data: StandardRows) -> Array:
    """Return response and columns less their means by unit and by kind, ``(n, 1 + q)``."""
    unit = data.groups.unit
    residuals = centred(data.values, unit)
    kinds = np.arange(1, data.kind.max() + 1)
    if len(kinds) == 0:
        return residuals
    is_kind = (data.kind[:, None] == kinds).astype(float)
    indicators = centred(is_kind, unit)
    means = np.linalg.lstsq(indicators, residuals, rcond=None)[0]
    return residuals - indicators @ means


def slope_without_scatter(
    products: Sequence[Array],
    scatter: Sequence[Array],
    place: int,
) -> CorrectedSlope | None:
    """Estimate the slope from products of effects less the scatter in them.

    Args:
        products: Sums of products of response, columns and intercept: over all groups first, then
            without each group.
        scatter: The part of them that is scatter, likewise.
        place: Column whose slope is estimated, from 1.

    Returns:
        The slope and its jackknife error; None if scatter is all that varies of the column.
    """
    _, weights = partial_slope(products[0], place, 0.0)
    variation = float(weights @ products[0][:, place])
    smallest = (1 - MAX_SHARE_OF_SCATTER) * variation
    slope, _ = partial_slope(products[0] - scatter[0], place, smallest)
    refits = []
    for group in range(1, len(products)):
        without_group = products[group] - scatter[group]
        refit, _ = partial_slope(without_group, place, 0.0)
        refits.append(refit)
    if not np.isfinite([slope, *refits]).all():
        return None
    return CorrectedSlope(slope, jackknife_error(slope, np.array(refits)))
