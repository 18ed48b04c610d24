"""Slopes between groups: one effect per unit at equal kinds, and least squares over the effects.

The interval is the wider one of least squares and HC2 (CR2 of single effects), the p-value the
larger one of a permutation of groups and of HC2. Over pairs of classes the interval is that of a
jackknife over classes, and the p-value the larger one of it and of a permutation of classes.
Effects are means of few rows: they carry a part of the rows' own scatter, and with it of the slope
within groups. A claim must hold without it.
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
from orchestrator.analysis.grouped_tables.slopes import Slope
from orchestrator.analysis.inference import (
    LEVEL,
    MIN_RCOND,
    Array,
    Codes,
    Interval,
    centred,
    class_permutation_p,
    dataset_effects,
    jackknife_error,
    ols,
    permutation_test,
    t_interval,
)
from orchestrator.analysis.table import listing

MAX_PERMUTED = 1_000
"""Most groups of a permutation test: with more of them it says what t says, and takes 1 GB."""
MAX_SHARE_OF_SCATTER = 0.9
"""Largest share of scatter at which a slope without it is computed: beyond, it is noise."""
MIN_SHARE_OF_SCATTER = 1e-9
"""A smaller share of scatter is rounding."""


@dataclass(frozen=True, slots=True)
class MeanScatter:
    """How much of the spread between groups is the scatter of rows within them.

    Attributes:
        on: The column.
        share: Share of the variance of the groups' means of this column that rows of one group
            explain: their variance within groups, divided by their number.
        slope: Slope between groups without the scatter; None if it cannot be computed.
        interval: 95 % interval of that slope.
        p_value: Two-sided p of that slope against 0.
    """

    on: str
    share: float
    slope: float | None = None
    interval: Interval | None = None
    p_value: float | None = None

    def times(self, factor: float) -> MeanScatter:
        """Return the slope in other units."""
        if self.slope is None or self.interval is None:
            return self
        low, high = self.interval
        return replace(self, slope=self.slope * factor, interval=(low * factor, high * factor))


@dataclass(frozen=True, slots=True)
class BetweenSlope:
    """A slope between groups, with the scatter in the groups' means; None if rows show none."""

    slope: Slope
    scatter: MeanScatter | None = None


def between_slopes(data: StandardRows) -> Iterator[BetweenSlope]:
    """Estimate the slope on each column between units, in standard units."""
    effects = unit_effects(data, data.kind)
    estimates = _EffectsFit.of(data, effects)
    if estimates is None:
        reason = _why_none(data, effects)
        num_units = len(data.groups.unit_names)
        for name in data.design.on:
            yield BetweenSlope(Slope("between", name, num_groups=num_units, reason=reason))
        return
    at_equal_crossing = [_fit_at_equal(data, codes) for codes in data.crossing.values()]
    for place, name in enumerate(data.design.on, 1):
        between = estimates.slope(place, name)
        checks = [
            None if other is None else other.slope(place, name).slope for other in at_equal_crossing
        ]
        yield replace(between, slope=_confirmed(between.slope, checks))


def unit_effects(data: StandardRows, kind: Codes) -> Array | None:
    """Return one effect per unit of response and columns, ``(U, 1 + q)``, at equal kinds.

    Returns None if units share no kinds, directly or through other units.
    """
    weights = np.ones(len(data.response))
    reduced = dataset_effects(data.values, kind, data.groups.unit, weights)
    return None if reduced is None else reduced[1]


def _why_none(data: StandardRows, effects: Array | None) -> str:
    """Say why there is no slope between groups."""
    names = listing(data.design.on)
    if effects is None:
        return f"groups share no {listing(data.design.within)}"
    num_terms = len(data.design.on) + 1
    if len(effects) > num_terms and effects[:, 1:].any(axis=0).all():
        return f"{names} vary only together between groups"
    return f"it needs {num_terms + 1} groups that differ in {names}"


def _fit_at_equal(data: StandardRows, codes: Codes) -> _EffectsFit | None:
    """Fit effects at equal values of a column that the design does not name."""
    kind = np.unique(np.column_stack([data.kind, codes]), axis=0, return_inverse=True)[1]
    return _EffectsFit.of(data, unit_effects(data, kind.reshape(-1)))


def _confirmed(slope: Slope, checks: list[Slope | None]) -> Slope:
    """Return a slope with the largest p of itself and of the checks; 1 if a check disagrees."""
    p_value = slope.p_value
    if p_value is None or slope.value is None:
        return slope
    for check in checks:
        agrees = check is not None and check.value is not None and check.value * slope.value > 0
        if check is None or check.p_value is None or not agrees:
            p_value = 1.0
        else:
            p_value = max(p_value, check.p_value)
    return replace(slope, p_value=p_value)


class _EffectsFit:
    """Least squares over one effect per unit, and its refits without each group."""

    def __init__(
        self, data: StandardRows, effects: Array, estimates: tuple[Array, Array, int]
    ) -> None:
        self.design = data.design
        self.groups = data.groups
        self.response = effects[:, 0]
        self.columns = effects[:, 1:]
        self.values, self.errors, self.degrees = estimates
        self.table = np.column_stack([effects, np.ones(len(effects))])
        """Response, columns and intercept, one row per unit."""
        products = self.table[:, :, None] * self.table[:, None, :]
        self.total = products.sum(axis=0)
        self.by_group = self.groups.sums(products)
        self.scatter = _scatter_of_means(data)
        """Products that scatter of rows adds to those of each unit, ``(U, 1 + q, 1 + q)``."""

    @classmethod
    def of(cls, data: StandardRows, effects: Array | None) -> _EffectsFit | None:
        """Fit effects; None if there are none or the slopes are not identified."""
        if effects is None:
            return None
        estimates = ols(effects[:, 0], effects[:, 1:])
        return None if estimates is None else cls(data, effects, estimates)

    def slope(self, place: int, name: str) -> BetweenSlope:
        """Estimate the slope on one column, or say why nothing can be concluded from it."""
        num_units = len(self.response)
        value = float(self.values[place - 1])
        bounds = t_interval(value, float(self.errors[place - 1]), self.degrees)
        left_out = self._left_out(place)
        slope = Slope("between", name, value, bounds, num_groups=num_units, left_out=left_out)
        p_permuted = self._classes_permuted(place)
        if not self.groups.crossed and num_units <= MAX_PERMUTED:
            p_permuted = self._permuted(place)
            if p_permuted is None:
                reason = f"too few groups for a p-value of {LEVEL:g}"
                return BetweenSlope(replace(slope, reason=reason))
        if len(left_out) < len(self.groups.names):
            reason = "it hangs on one group alone"
            return BetweenSlope(replace(slope, interval=None, reason=reason))
        variance = self._variance(place, left_out)
        judged = replace(slope, num_groups=len(left_out)).with_variance(variance)
        if not self.groups.crossed and judged.interval is not None:
            ends = (*bounds, *judged.interval)
            judged = replace(judged, interval=(min(ends), max(ends)))
        p_values = [judged.p_value, p_permuted]
        scatter = self._without_scatter(place, name, left_out, variance)
        if scatter is not None:
            p_values.append(1.0 if scatter.p_value is None else scatter.p_value)
        p_value = max(p for p in p_values if p is not None)
        return BetweenSlope(replace(judged, p_value=p_value), scatter)

    def _left_out(self, place: int) -> dict[str, float]:
        """Refit the slope without each group, as far as it is then defined."""
        refits = {}
        for group, products in zip(self.groups.names, self.by_group, strict=True):
            remaining = self.total - products
            num_units = remaining[-1, -1]
            if num_units > len(self.design.on) + 1.5:
                refits[str(group)] = partial_slope(remaining, place, self._smallest(place))[0]
        return {group: refit for group, refit in refits.items() if np.isfinite(refit)}

    def _smallest(self, place: int) -> float:
        """Return the sum of squares of a column below which its variation is rounding."""
        return MIN_RCOND * float(self.total[place, place])

    def _permuted(self, place: int) -> float | None:
        """Return the p-value of a permutation of groups; None if it can never reach 0.05."""
        x = self.columns[:, place - 1]
        held_equal = np.delete(self.columns, place - 1, axis=1)
        test = permutation_test(self.response, x, held_equal, [""] * len(x))
        if test is None or test[1] < 1 / LEVEL:
            return None
        return test[0]

    def _classes_permuted(self, place: int) -> float | None:
        """Return the p-value of a permutation of classes; None if units are no pairs of classes."""
        classes = self.groups.classes_of_pairs
        if classes is None or len(self.response) > MAX_PERMUTED:
            return None
        x = self.columns[:, place - 1]
        held_equal = np.delete(self.columns, place - 1, axis=1)
        return class_permutation_p(self.response, x, held_equal, classes)

    def _variance(self, place: int, left_out: dict[str, float]) -> Variance:
        """Return the variance over groups: HC2, or a jackknife where groups cross."""
        fitted = least_squares(self.response, self.table[:, 1:], place - 1)
        if not self.groups.crossed:
            return cr2_variance(fitted, np.arange(len(self.response)))
        _, weights = partial_slope(self.total, place, self._smallest(place))
        carried = self.groups.sums((self.table @ weights) ** 2)
        error = jackknife_error(fitted.value, np.array([*left_out.values()]))
        return Variance(error**2, max(1.0, self.groups.degrees(carried)))

    def _without_scatter(
        self, place: int, name: str, left_out: dict[str, float], variance: Variance
    ) -> MeanScatter | None:
        """Estimate the slope between groups from products less those of the rows' scatter.

        A jackknife over groups says by which factor the correction widens the standard error.
        """
        scatter = np.zeros((len(self.response), *self.total.shape))
        scatter[:, :-1, :-1] = self.scatter
        column = self.columns[:, place - 1]
        share = float(scatter[:, place, place].sum() / ((column - column.mean()) ** 2).sum())
        if share < MIN_SHARE_OF_SCATTER:
            return None
        if share > MAX_SHARE_OF_SCATTER:
            return MeanScatter(name, min(1.0, share))
        _, weights = partial_slope(self.total, place, self._smallest(place))
        varies = float(weights @ self.total[:, place])
        products = self.total - scatter.sum(axis=0)
        corrected = partial_slope(products, place, (1 - MAX_SHARE_OF_SCATTER) * varies)[0]
        refits = np.array(
            [
                partial_slope(products - own, place, 0.0)[0]
                for own in self.by_group - self.groups.sums(scatter)
            ]
        )
        plain = jackknife_error(float(self.values[place - 1]), np.array([*left_out.values()]))
        if not np.isfinite([corrected, *refits]).all() or plain == 0:
            return MeanScatter(name, share)
        widening = jackknife_error(corrected, refits) / plain
        judged = Slope("between", name, corrected).with_variance(
            Variance(variance.value * widening**2, variance.degrees)
        )
        return MeanScatter(name, share, corrected, judged.interval, judged.p_value)


def _scatter_of_means(data: StandardRows) -> Array:
    """Return the products that scatter of rows adds to the effects of each unit.

    An effect is about the mean of a unit's n rows, so it carries their covariance divided by n.
    The covariance is each unit's own; units of one row take that of all rows.
    """
    unit, num_units = data.groups.unit, len(data.groups.unit_names)
    sizes = np.bincount(unit).astype(float)
    num_values = data.values.shape[1]
    residuals = centred(data.values, unit)
    kinds = np.arange(1, data.kind.max() + 1)
    num_kinds = len(kinds)
    if num_kinds:
        indicators = centred((data.kind[:, None] == kinds).astype(float), unit)
        residuals = residuals - indicators @ np.linalg.lstsq(indicators, residuals, rcond=None)[0]
    degrees = len(unit) - num_units
    if degrees - num_kinds <= 0:
        return np.zeros((num_units, num_values, num_values))
    squares = residuals[:, :, None] * residuals[:, None, :]
    by_unit = np.zeros((num_units, num_values, num_values))
    np.add.at(by_unit, unit, squares)
    by_unit *= degrees / (degrees - num_kinds)
    pooled = by_unit.sum(axis=0) / degrees
    covariance = by_unit / np.maximum(sizes - 1, 1)[:, None, None]
    covariance[sizes == 1] = pooled
    return np.asarray((1 - 1 / num_units) * covariance / sizes[:, None, None])
