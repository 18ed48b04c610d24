"""Slopes within groups: an intercept per unit and per kind of ``within``, inference over groups.

The interval is by CR2 with Satterthwaite's degrees of freedom, the p-value by the restricted wild
cluster bootstrap. Crossed groups have neither, and are left out one by one (jackknife, CR3).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from orchestrator.analysis.grouped_tables.cluster_robust import (
    Coefficient,
    Variance,
    cr2_variance,
    excess_variance,
    least_squares,
    total,
)
from orchestrator.analysis.grouped_tables.rows import StandardRows, partial_slope
from orchestrator.analysis.grouped_tables.slopes import Slope
from orchestrator.analysis.inference import (
    MIN_DATASETS,
    MIN_RCOND,
    Array,
    centred,
    jackknife_error,
    wild_cluster_p,
)
from orchestrator.analysis.table import listing, plural

MIN_BOOTSTRAPPED = 6
"""Fewest groups of a wild bootstrap: with five, few of its draws differ and its p is coarse."""
MAX_BOOTSTRAPPED = 200
"""Most groups of a wild bootstrap: with more of them it agrees with CR2 and takes seconds."""
MIN_SHARE_CARRIED = 1e-12
"""A group with a smaller share of the regressor's variation than this has rounding only."""


def within_slopes(data: StandardRows) -> Iterator[Slope]:
    """Estimate the slope on each column within units, in standard units."""
    kinds = np.arange(1, data.kind.max() + 1)  # the unit's intercept is that of kind 0
    indicators = data.kind[:, None] == kinds
    table = centred(np.column_stack([data.values, indicators]), data.groups.unit)
    fit = _WithinFit(data, table)
    for place, name in enumerate(data.design.on, 1):
        yield fit.slope(place, name)


class _WithinFit:
    """Products of all columns by group, from which a slope is refitted without any group."""

    def __init__(self, data: StandardRows, table: Array) -> None:
        self.data = data
        self.groups = data.groups
        self.table = table
        """Response, columns and indicators of kinds, centred within units."""
        self.smallest = MIN_RCOND * len(table)
        unit = self.groups.unit
        by_unit = np.argsort(unit, kind="stable")
        parts = np.split(table[by_unit], np.cumsum(np.bincount(unit))[:-1])
        self.total = table.T @ table
        self.by_group = self.groups.sums(np.array([part.T @ part for part in parts]))

    def slope(self, place: int, name: str) -> Slope:
        """Estimate the slope on one column, or say why there is none."""
        value, weights = partial_slope(self.total, place, self.smallest)
        if not np.isfinite(value):
            return Slope("within", name, reason=self._why_none(place, name))
        direction = self.table @ weights
        by_unit = np.bincount(self.groups.unit, direction**2).astype(float)
        carried = self.groups.sums(by_unit)
        carrying = np.flatnonzero(carried > MIN_SHARE_CARRIED * carried.sum()).tolist()
        left_out = {
            str(self.groups.names[group]): self._without(group, place) for group in carrying
        }
        slope = Slope("within", name, value, num_groups=len(left_out), left_out=left_out)
        undefined = [group for group, refit in left_out.items() if not np.isfinite(refit)]
        if len(left_out) < MIN_DATASETS:
            groups = plural(len(left_out), "group")
            return slope.without_interval(f"no interval: it varies within {groups} only")
        if undefined:
            return slope.without_interval(f"no interval: it hangs on {undefined[0]} alone")
        if self.groups.crossed:
            return self._judged_by_jackknife(slope, place, carried)
        return self._judged_by_clusters(slope, place, carrying)

    def _why_none(self, place: int, name: str) -> str:
        """Say why a column has no slope within groups."""
        what = "does not vary"
        if self.total[place, place] > self.smallest and len(self.data.design.on) > 1:
            what = "varies only together with the others"
        within = self.data.design.within
        equal = f" at equal {listing(within)}" if within else ""
        return f"{name} {what} within groups{equal}"

    def _without(self, group: int, place: int) -> float:
        """Refit a slope without one group."""
        return partial_slope(self.total - self.by_group[group], place, self.smallest)[0]

    def _judged_by_jackknife(self, slope: Slope, place: int, carried: Array) -> Slope:
        """Return a slope within units of crossed groups with interval and p-value."""
        degrees = self.groups.degrees(carried)
        if degrees < 1:
            largest = self.groups.names[carried.argmax()]
            return slope.without_interval(f"no interval: it hangs on {largest} alone")
        fitted = least_squares(self.table[:, 0], self.table[:, 1:], place - 1)
        error = jackknife_error(fitted.value, np.array([*slope.left_out.values()]))
        variance = Variance(error**2, degrees)
        return slope.with_variance(self._with_crossing(fitted, variance))

    def _judged_by_clusters(self, slope: Slope, place: int, carrying: list[int]) -> Slope:
        """Return a slope within the groups of one column with interval and p-value."""
        fitted = least_squares(self.table[:, 0], self.table[:, 1:], place - 1)
        by_group = cr2_variance(fitted, self.groups.unit)
        variance = self._with_crossing(fitted, by_group)
        judged = slope.with_variance(variance)
        if not MIN_BOOTSTRAPPED <= len(carrying) <= MAX_BOOTSTRAPPED:
            return judged
        p_value = self._bootstrapped(fitted, carrying)
        if variance is not by_group and judged.p_value is not None:
            # The bootstrap knows of groups only.
            p_value = max(p_value, judged.p_value)
        return replace(judged, p_value=p_value)

    def _with_crossing(self, fitted: Coefficient, variance: Variance) -> Variance:
        """Add what unnamed columns that recur over groups add to a variance."""
        unit = self.groups.unit
        added = [excess_variance(fitted, codes, unit) for codes in self.data.crossing.values()]
        if not any(part.value > 0 for part in added):
            return variance
        return total([variance, *added])

    def _bootstrapped(self, fitted: Coefficient, carrying: list[int]) -> float:
        """Return the p-value of a slope of 0 by the restricted wild cluster bootstrap."""
        unit = self.groups.unit
        restricted = fitted.residuals + fitted.value * fitted.direction
        weights = np.bincount(unit, fitted.direction**2)
        scores = np.bincount(unit, fitted.direction * restricted)
        names = [str(self.groups.names[group]) for group in carrying]
        return wild_cluster_p((names, weights[carrying], scores[carrying]))
