"""Slopes within groups, from a fit with an intercept for each unit and each kind.

A kind is a combination of values of the ``within`` columns. Groups are the replicates. The
interval uses the CR2 variance and Satterthwaite's degrees of freedom. The p-value comes from
the restricted wild cluster bootstrap. If groups cross, a jackknife over groups (CR3) gives the
interval and the p-value.
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
    total_variance,
    wild_bootstrap,
)
from orchestrator.analysis.grouped_tables.rows import StandardRows, partial_slope
from orchestrator.analysis.grouped_tables.slopes import Slope
from orchestrator.analysis.inference import (
    MIN_DATASETS,
    MIN_RCOND,
    Array,
    centered,
    jackknife_error,
)
from orchestrator.analysis.number_formats import listing
from search_spaces.errors import plural

MIN_BOOTSTRAPPED = 6
"""Smallest number of groups for a wild bootstrap. With five groups its p-value is coarse,
because few draws differ."""
MAX_BOOTSTRAPPED = 200
"""Largest number of groups for a wild bootstrap. With more groups, the bootstrap takes
seconds, and its p-value agrees with the p-value of CR2."""
MIN_SHARE_CARRIED = 1e-12
"""Limit for a group's share of the regressor's variation. A smaller share is rounding
error."""


def within_slopes(data: StandardRows) -> Iterator[Slope]:
    """Estimate the slope within units on each column. All columns are standardized."""
    fit = WithinFit(data)
    for place, name in enumerate(data.design.on, 1):
        yield fit.slope(place, name)


class WithinFit:
    """A fit within groups. It stores sums of products for each group, from which refits are made.

    Attributes:
        table: Response, regressors and indicators of kinds, centered within units, ``(n, k)``.
    """

    def __init__(self, data: StandardRows) -> None:
        self.data = data
        self.groups = data.groups
        unit = data.groups.unit
        kinds = np.arange(1, data.kind.max() + 1)  # Kind 0 has the intercept of the unit.
        indicators = data.kind[:, None] == kinds
        columns = np.column_stack([data.values, indicators])
        self.table = centered(columns, unit)
        self._smallest = MIN_RCOND * len(unit)
        self._total = self.table.T @ self.table
        by_unit = np.argsort(unit, kind="stable")
        ends = np.cumsum(np.bincount(unit))
        parts = np.split(self.table[by_unit], ends[:-1])
        products = np.array([part.T @ part for part in parts])
        self._by_group = self.groups.sums(products)

    def slope(self, place: int, name: str) -> Slope:
        """Return the slope on one column, or the reason why it cannot be estimated.

        Args:
            place: Index of the column in ``table``. The first regressor has the index 1.
            name: Name of the column.
        """
        value, weights = partial_slope(self._total, place, self._smallest)
        if not np.isfinite(value):
            reason = self._why_none(place, name)
            return Slope("within", name, reason=reason)
        direction = self.table @ weights
        carried = self._carried(direction)
        refits = self._refits(place, carried)
        slope = Slope(
            level="within",
            on=name,
            value=value,
            num_groups=len(refits),
            left_out=refits,
        )
        if len(refits) < MIN_DATASETS:
            groups = plural(len(refits), "group")
            return slope.without_interval(
                f"no interval, because the column varies within {groups} only"
            )
        for group, refit in refits.items():
            if not np.isfinite(refit):
                return slope.without_interval(
                    f"no interval, because {group} alone decides the slope"
                )
        if self.groups.crossed:
            return self._judged_by_jackknife(slope, place, carried)
        return self._judged_by_clusters(slope, place)

    def _why_none(self, place: int, name: str) -> str:
        """Return the reason why a column has no slope within groups."""
        equal = ""
        if self.data.design.within:
            equal = f" at equal {listing(self.data.design.within)}"
        varies_alone = self._total[place, place] > self._smallest
        if varies_alone and len(self.data.design.on) > 1:
            return f"{name} varies only together with other columns within groups{equal}"
        return f"{name} does not vary within groups{equal}"

    def _carried(self, direction: Array) -> Array:
        """Return the sum of squares of the regressor that each group contributes, ``(G,)``."""
        by_unit = np.bincount(self.groups.unit, direction**2)
        return self.groups.sums(by_unit.astype(float))

    def _refits(self, place: int, carried: Array) -> dict[str, float]:
        """Refit the slope without each group that contributes to the regressor's variation."""
        is_carrying = carried > MIN_SHARE_CARRIED * carried.sum()
        refits = {}
        for group in np.flatnonzero(is_carrying):
            remaining = self._total - self._by_group[group]
            slope, _ = partial_slope(remaining, place, self._smallest)
            refits[str(self.groups.names[group])] = slope
        return refits

    def _judged_by_jackknife(
        self,
        slope: Slope,
        place: int,
        carried: Array,
    ) -> Slope:
        """Add the interval and p-value of a jackknife over crossed groups."""
        degrees = self.groups.degrees(carried)
        if degrees < 1:
            largest = self.groups.names[carried.argmax()]
            return slope.without_interval(f"no interval, because {largest} alone decides the slope")
        fitted = self._fitted(place)
        refits = np.array([*slope.left_out.values()])
        error = jackknife_error(fitted.value, refits)
        variance = Variance(error**2, degrees)
        return slope.with_variance(self._with_crossing(fitted, variance))

    def _judged_by_clusters(self, slope: Slope, place: int) -> Slope:
        """Add the CR2 interval and the bootstrap p-value to a slope. Groups must not cross."""
        unit = self.groups.unit
        fitted = self._fitted(place)
        by_group = cr2_variance(fitted, unit)
        variance = self._with_crossing(fitted, by_group)
        judged = slope.with_variance(variance)
        if not MIN_BOOTSTRAPPED <= slope.num_groups <= MAX_BOOTSTRAPPED:
            return judged
        bootstrap = wild_bootstrap(fitted, unit)
        p_value = bootstrap.p_value
        if variance is not by_group and judged.p_value is not None:
            # The bootstrap draws whole groups, so it ignores dependence through crossing
            # columns.
            p_value = max(p_value, judged.p_value)
        return replace(judged, p_value=p_value, smallest_p=bootstrap.smallest_p)

    def _fitted(self, place: int) -> Coefficient:
        """Regress the response on all columns, and return the coefficient of one column."""
        response = self.table[:, 0]
        columns = self.table[:, 1:]
        return least_squares(response, columns, place - 1)

    def _with_crossing(self, fitted: Coefficient, variance: Variance) -> Variance:
        """Add the variance that comes from dependence between rows with equal crossing values."""
        parts = [variance]
        for codes in self.data.crossing.values():
            excess = excess_variance(fitted, codes, self.groups.unit)
            if excess.value > 0:
                parts.append(excess)
        if len(parts) == 1:
            return variance
        return total_variance(parts)
