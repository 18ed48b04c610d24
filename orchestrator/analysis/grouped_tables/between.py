"""Slopes between groups, by least squares over one effect per unit.

A unit is a group, or a combination of crossed groups. The effect of a unit on a column is the
unit's mean of this column, adjusted for differences between kinds. A kind is a combination of
values of the ``within`` columns.

Each slope has two intervals, and the wider one is reported. One interval uses the standard
error of least squares, the other one the robust standard error HC2. HC2 equals CR2 if each
effect is a cluster of its own. Each slope also has two p-values, and the larger one is
reported. One p-value comes from a permutation of groups, the other one from HC2. If units are
pairs of classes, the interval comes from a jackknife over classes. The two p-values then come
from this jackknife and from a permutation of classes.

Effects are means of few rows, so the scatter of rows within groups does not average out
completely. A slope within groups therefore also changes the slope between groups. isweep
subtracts this scatter, and a claim must also hold for the corrected slope.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from orchestrator.analysis.grouped_tables.cluster_robust import (
    Variance,
    cr2_variance,
    least_squares,
)
from orchestrator.analysis.grouped_tables.rows import StandardRows, partial_slope
from orchestrator.analysis.grouped_tables.scatter import (
    MIN_SHARE_OF_SCATTER,
    MeanScatter,
    scatter_of_means,
    slope_without_scatter,
)
from orchestrator.analysis.grouped_tables.slopes import Slope
from orchestrator.analysis.inference import (
    LEVEL,
    MIN_RCOND,
    Array,
    Codes,
    Interval,
    Permutation,
    class_permutation_p,
    dataset_effects,
    jackknife_error,
    ols,
    permutation_test,
    smallest_class_p,
    t_interval,
)
from orchestrator.analysis.number_formats import listing

MAX_PERMUTED = 1_000
"""Largest number of groups for which a permutation test is made. With more groups, the test
would need 1 GB of memory, and its p-value agrees with the p-value of the t test."""


@dataclass(frozen=True, slots=True)
class BetweenSlope:
    """A slope between groups, and the scatter of rows that the groups' means contain.

    Attributes:
        slope: The slope between standardized columns.
        scatter: The part of the variance of the groups' means that comes from scatter of rows.
            None if the column does not vary within groups.
    """

    slope: Slope
    scatter: MeanScatter | None = None


def between_slopes(data: StandardRows) -> Iterator[BetweenSlope]:
    """Estimate the slope between units on each column. All columns are standardized."""
    effects = unit_effects(data, data.kind)
    fit = EffectsFit.of(data, effects)
    if fit is None:
        reason = _why_none(data, effects)
        num_units = len(data.groups.unit_names)
        for name in data.design.on:
            slope = Slope("between", name, num_groups=num_units, reason=reason)
            yield BetweenSlope(slope)
        return
    checks = []
    for codes in data.crossing.values():
        kind = _combined(data.kind, codes)
        checks.append(EffectsFit.of(data, unit_effects(data, kind)))
    for place, name in enumerate(data.design.on, 1):
        between = fit.slope(place, name)
        slope = between.slope
        for check in checks:
            slope = _confirmed(slope, check, place)
        yield replace(between, slope=slope)


def unit_effects(data: StandardRows, kind: Codes) -> Array | None:
    """Return the effects of units on the response and the columns, ``(U, 1 + q)``.

    The effects are adjusted for differences between kinds. Returns None if the units cannot be
    compared. Two units can be compared if they share a kind, or if other units connect them by
    shared kinds.
    """
    weights = np.ones(len(data.response))
    reduced = dataset_effects(data.values, kind, data.groups.unit, weights)
    if reduced is None:
        return None
    _, effects = reduced
    return effects


def _combined(kind: Codes, codes: Codes) -> Codes:
    """Return a code for each row, ``(n,)``. Rows with the same two codes get the same code."""
    combinations = np.column_stack([kind, codes])
    _, combined = np.unique(combinations, axis=0, return_inverse=True)
    return combined.reshape(-1)


def _why_none(data: StandardRows, effects: Array | None) -> str:
    """Return the reason why no slope between groups can be estimated."""
    design = data.design
    if effects is None:
        return f"groups share no {listing(design.within)}"
    num_terms = len(design.on) + 1
    columns = effects[:, 1:]
    all_vary = columns.any(axis=0).all()
    if len(effects) > num_terms and all_vary:
        return f"{listing(design.on)} vary only together between groups"
    return f"a slope needs {num_terms + 1} groups that differ in {listing(design.on)}"


def _confirmed(
    slope: Slope,
    check: EffectsFit | None,
    place: int,
) -> Slope:
    """Return a slope with the larger one of two p-values: from its own fit and from a check.

    The check is a fit that compares only rows with equal values in a crossing column. If the
    check gives no p-value, or a slope of the other sign, the p-value is 1.
    """
    if slope.p_value is None or slope.value is None:
        return slope
    if check is None:
        return replace(slope, p_value=1.0)
    at_equal = check.slope(place, slope.on).slope
    if at_equal.p_value is None or at_equal.value is None:
        return replace(slope, p_value=1.0)
    if at_equal.value * slope.value <= 0:
        return replace(slope, p_value=1.0)
    return replace(slope, p_value=max(slope.p_value, at_equal.p_value))


class EffectsFit:
    """A least-squares fit over one effect per unit, with a refit without each group.

    Attributes:
        table: Columns of response, regressors and intercept, with one row per unit,
            ``(U, q + 2)``.
        values: Slopes, ``(q,)``.
        errors: Standard errors of the slopes by least squares, ``(q,)``.
        degrees: Degrees of freedom of the t tests with these standard errors.
    """

    def __init__(
        self,
        data: StandardRows,
        effects: Array,
        estimates: tuple[Array, Array, int],
    ) -> None:
        self.data = data
        self.groups = data.groups
        self.values, self.errors, self.degrees = estimates
        intercept = np.ones(len(effects))
        self.table = np.column_stack([effects, intercept])
        products = self.table[:, :, None] * self.table[:, None, :]
        self._total = products.sum(axis=0)
        self._by_group = self.groups.sums(products)
        scatter = scatter_of_means(data)
        self._scatter_by_group = self.groups.sums(scatter)
        self._scatter = scatter.sum(axis=0)

    @classmethod
    def of(cls, data: StandardRows, effects: Array | None) -> EffectsFit | None:
        """Fit effects. Returns None if ``effects`` is None or if the slopes are not identified."""
        if effects is None:
            return None
        response = effects[:, 0]
        columns = effects[:, 1:]
        estimates = ols(response, columns)
        if estimates is None:
            return None
        return cls(data, effects, estimates)

    def slope(self, place: int, name: str) -> BetweenSlope:
        """Estimate the slope on one column, with its interval and p-value if they exist.

        Args:
            place: Index of the column in ``table``. The first regressor has the index 1.
            name: Name of the column.
        """
        num_units = len(self.table)
        value = float(self.values[place - 1])
        error = float(self.errors[place - 1])
        bounds = t_interval(value, error, self.degrees)
        refits = self._refits(place)
        slope = Slope(
            level="between",
            on=name,
            value=value,
            interval=bounds,
            num_groups=num_units,
            left_out=refits,
        )
        p_permuted = self._classes_permuted(place)
        if p_permuted is not None:
            slope = replace(slope, smallest_p=smallest_class_p(len(self.groups.names)))
        if not self.groups.crossed and num_units <= MAX_PERMUTED:
            test = self._permuted(place)
            if test is None:
                reason = f"too few groups for a p-value of {LEVEL:g}"
                return BetweenSlope(replace(slope, reason=reason))
            p_permuted = test.p_value
            slope = replace(slope, smallest_p=test.smallest_p)
        if len(refits) < len(self.groups.names):
            reason = "one group alone decides the slope"
            return BetweenSlope(replace(slope, interval=None, reason=reason))

        variance = self._variance(place, refits)
        judged = replace(slope, num_groups=len(refits)).with_variance(variance)
        if not self.groups.crossed:
            judged = replace(judged, interval=_wider(bounds, judged.interval))
        scatter = self._without_scatter(place, judged, variance)
        p_values = [p_permuted, judged.p_value]
        if scatter is not None:
            p_values.append(scatter.p_value)
        # A claim must hold in every test, so the largest p is used.
        largest = max(p for p in p_values if p is not None)
        return BetweenSlope(replace(judged, p_value=largest), scatter)

    def _refits(self, place: int) -> dict[str, float]:
        """Return the slope without each group, by name of the group.

        Refits that are not identified are missing.
        """
        num_terms = len(self.values) + 1
        refits = {}
        for group, products in zip(self.groups.names, self._by_group, strict=True):
            remaining = self._total - products
            num_units = round(remaining[-1, -1])
            # With as many coefficients as units, a refit would pass through every unit.
            if num_units <= num_terms:
                continue
            slope, _ = partial_slope(remaining, place, self._smallest(place))
            if np.isfinite(slope):
                refits[str(group)] = slope
        return refits

    def _smallest(self, place: int) -> float:
        """Return the limit of a column's sum of squares, below which it is rounding error."""
        return MIN_RCOND * float(self._total[place, place])

    def _permuted(self, place: int) -> Permutation | None:
        """Test a slope by permutation of groups. Returns None if p cannot be as small as 0.05."""
        response = self.table[:, 0]
        columns = self.table[:, 1:-1]
        remaining = np.delete(columns, place - 1, axis=1)
        one_block = [""] * len(response)
        test = permutation_test(response, columns[:, place - 1], remaining, one_block)
        if test is None or test.smallest_p > LEVEL:
            return None
        return test

    def _classes_permuted(self, place: int) -> float | None:
        """Return the p-value of a permutation of classes.

        Returns None if units are not class pairs.
        """
        classes = self.groups.classes_of_pairs
        if classes is None or len(self.table) > MAX_PERMUTED:
            return None
        columns = self.table[:, 1:-1]
        remaining = np.delete(columns, place - 1, axis=1)
        return class_permutation_p(self.table[:, 0], columns[:, place - 1], remaining, classes)

    def _variance(self, place: int, refits: dict[str, float]) -> Variance:
        """Return the HC2 variance of a slope.

        If groups cross, return a jackknife variance instead.
        """
        response = self.table[:, 0]
        fitted = least_squares(response, self.table[:, 1:], place - 1)
        if not self.groups.crossed:
            each_unit = np.arange(len(response))
            return cr2_variance(fitted, each_unit)
        _, weights = partial_slope(self._total, place, self._smallest(place))
        direction = self.table @ weights
        carried = self.groups.sums(direction**2)
        degrees = max(1.0, self.groups.degrees(carried))
        refitted = np.array([*refits.values()])
        error = jackknife_error(fitted.value, refitted)
        return Variance(error**2, degrees)

    def _without_scatter(
        self,
        place: int,
        slope: Slope,
        variance: Variance,
    ) -> MeanScatter | None:
        """Return the scatter in the groups' means.

        Returns None if the column is constant in groups.
        """
        column = self.table[:, place]
        spread = len(column) * float(column.var())
        # The expected share of the variance between means that comes from scatter of rows.
        share = float(self._scatter[place, place]) / spread
        if share < MIN_SHARE_OF_SCATTER:
            return None
        products = [self._total, *(self._total - self._by_group)]
        scatter = [self._scatter, *(self._scatter - self._scatter_by_group)]
        estimate = slope_without_scatter(products, scatter, place)
        if estimate is None:
            return MeanScatter(slope.on, min(1.0, share))
        refits = np.array([*slope.left_out.values()])
        plain_error = jackknife_error(float(self.values[place - 1]), refits)
        corrected_variance = estimate.error**2
        if plain_error > 0:
            # A jackknife error tends to be too large, so only a ratio of two jackknife errors
            # is used: the error of the corrected slope divided by the error of the uncorrected
            # slope. The usual variance is multiplied by the square of this ratio.
            corrected_variance *= variance.value / plain_error**2
        corrected = Slope("between", slope.on, value=estimate.slope)
        corrected = corrected.with_variance(Variance(corrected_variance, variance.degrees))
        p_value = 1.0 if corrected.p_value is None else corrected.p_value
        return MeanScatter(
            on=slope.on,
            share=share,
            slope=corrected.value,
            interval=corrected.interval,
            p_value=p_value,
        )


def _wider(first: Interval, second: Interval | None) -> Interval:
    """Return the smallest interval that contains two intervals."""
    if second is None:
        return first
    low = min(first[0], second[0])
    high = max(first[1], second[1])
    return low, high
