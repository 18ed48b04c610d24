"""Intrinsic dimension from neighbor distances: MLE, TwoNN and Gride, with standard errors.

T_j(x) is the distance from x to its j-th nearest other point. Every estimator reads a table of T
and returns a record. If no finite dimension fits, the value is None with a reason, never NaN or
infinity.

An estimator is one function and one row of `ESTIMATORS`. The neighborhoods of near points overlap,
so resampling single points would underestimate the standard error. The bootstrap therefore draws
disjoint blocks of neighboring points. Gride has no bootstrap: its standard error is by the observed
information.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from search_spaces.errors import unknown_name
from tasks.measures.arrays import AnyArray, BoolArray, FloatArray, IntArray
from tasks.measures.neighbors import NeighborTable
from tasks.measures.plain_json import plain_json

EQUAL_LOG_RATIO = 1e-5
"""Mean log ratio of distances that counts as zero: distances are accurate to 1e-5."""
EQUALLY_FAR = "neighbors are equally far to within rounding, no finite dimension explains that"
FEW_POINTS = 20
"""Points below which a value gets a remark: with 20 points one standard error of TwoNN is about a
quarter of its value."""
NUM_RESAMPLES = 200
"""Bootstrap resamples, as Efron & Tibshirani (1993) advise for standard errors."""
BLOCK_POINTS = 10
"""Points of a block, at most. Blocks of 21 and of 42 points give the same standard errors to within
a few percent (docs/measures.md)."""

DrawCounts = FloatArray
"""Counts of a resample: how often it drew each point, ``(num_points,)``."""
Statistic = Callable[[DrawCounts], float | None]
"""A number of a resample, or None if the resample does not define it."""


@dataclass(frozen=True)
class IntrinsicDimension:
    """An estimate with its standard error, or the reason why there is none.

    Attributes:
        estimator: Name of the row in `ESTIMATORS`.
        value: The estimate, or None if it is undefined.
        std_error: Standard error by a formula, which ``convention`` names.
        num_points: Points used. For TwoNN this includes the discarded ratios, since they enter the
            empirical distribution.
        num_neighbors: Neighbors per point.
        convention: The formula, in words.
        num_dropped: Points left out: they have a neighbor at distance zero, or the two distances
            that Gride compares are equal.
        reason: Why ``value`` is None.
        details: Further output of this estimator, such as the estimate at each scale. It includes
            the estimator's parameters, and a ``remark`` for readers if there is one.
    """

    estimator: str
    value: float | None
    std_error: float | None
    num_points: int
    num_neighbors: int
    convention: str
    num_dropped: int = 0
    reason: str | None = None
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def reported_std_error(self) -> float | None:
        """The block-bootstrap standard error if there is one, else ``std_error``."""
        bootstrap: float | None = self.details.get("std_error_bootstrap")
        return self.std_error if bootstrap is None else bootstrap

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON. ``details`` are merged in; ``reason`` is left out if it is None."""
        fields = dict(vars(self))
        details = fields.pop("details")
        return plain_json(fields | details, "reason")


@dataclass(frozen=True)
class Neighborhoods:
    """The input of an estimator: distances of the points that can be used.

    ``distances`` has a row for each usable point only. ``indices`` and ``is_usable`` have one for
    every point, and the values of ``indices`` count all points too.

    Attributes:
        distances: ``(num_usable, num_neighbors)``, ascending. All are positive and finite.
        indices: ``(num_points, num_neighbors)`` neighbors of all points, -1 where there are fewer.
        is_usable: ``(num_points,)`` mask of the points that have a row in ``distances``.
        parameters: The estimator's own parameters, by name.
        seed: Seed of the bootstrap.
    """

    distances: FloatArray
    indices: AnyArray
    is_usable: BoolArray
    parameters: Mapping[str, float]
    seed: int

    def bootstrap_std_error(self, statistic: Statistic) -> float | None:
        """Return the block-bootstrap standard error of a statistic of the usable points."""
        blocks = neighborhood_blocks(self.indices)[self.is_usable]
        return block_std_error(statistic, blocks, seed=self.seed)


@dataclass(frozen=True)
class Fit:
    """The output of an estimator.

    Attributes:
        value: The dimension. None if neighbors are equally far, which no finite dimension explains.
        std_error: Standard error by a formula.
        num_ties: Usable points that were left out because of equal distances.
        details: Further output, plain JSON.
    """

    value: float | None = None
    std_error: float | None = None
    num_ties: int = 0
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Estimator:
    """A row of `ESTIMATORS`. Its parameters are part of what its name means.

    Attributes:
        fit: Estimates the dimension from neighborhoods.
        required_neighbors: Returns the neighbors to read when ``num_neighbors`` are requested.
        convention: The formula in words; parameters are filled in by name.
        parameters: The method's own parameters and their values. Register another set of values
            as a row with another name: results are stored under the name.
    """

    fit: Callable[[Neighborhoods], Fit]
    required_neighbors: Callable[[int], int]
    convention: str
    parameters: Mapping[str, float] = field(default_factory=dict)


def inverse_dimensions(
    log_distances: FloatArray,
    num_neighbors: int,
    divisor_offset: int,
) -> FloatArray:
    """Return ``1/(k - divisor_offset) · Σ_{j<k} ln(T_k / T_j)`` of every point.

    Args:
        log_distances: ``(num_points, k or more)`` logarithms of ascending distances.
        num_neighbors: k.
        divisor_offset: What is subtracted from k in the divisor.

    Returns:
        ``(num_points,)`` inverse dimensions.
    """
    last = num_neighbors - 1
    farthest = log_distances[:, last]
    nearer_sum = log_distances[:, :last].sum(axis=1)
    total: FloatArray = last * farthest - nearer_sum
    return total / (num_neighbors - divisor_offset)


def neighborhood_blocks(indices: AnyArray) -> IntArray:
    """Divide points into disjoint blocks of at most ``BLOCK_POINTS`` neighboring points.

    Each point that has no block yet takes its free neighbors, in the order of the points.

    Args:
        indices: ``(num_points, num_neighbors)`` neighbors, -1 where there are fewer.

    Returns:
        ``(num_points,)`` block numbers.
    """
    blocks = np.full(len(indices), -1, np.int64)
    next_block = 0
    for point, neighbors in enumerate(indices):
        if blocks[point] < 0:
            is_free = (neighbors >= 0) & (blocks[neighbors] < 0)
            blocks[neighbors[is_free][: BLOCK_POINTS - 1]] = next_block
            blocks[point] = next_block
            next_block += 1
    return blocks


def block_std_error(
    statistic: Statistic,
    blocks: IntArray,
    *,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> float | None:
    """Return the block-bootstrap standard error of a statistic.

    Args:
        statistic: Maps how often each point was drawn, ``(num_points,)``, to a value or None.
        blocks: ``(num_points,)`` block of every point; any integers.
        seed: Seed of the resamples.
        num_resamples: Number of resamples.

    Returns:
        The standard deviation over resamples. None if there are fewer than two blocks, or fewer
        than two resamples gave a finite value.
    """
    distinct_blocks, block_of_point = np.unique(blocks, return_inverse=True)
    num_blocks = len(distinct_blocks)
    if num_blocks < 2:
        return None
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(num_resamples):
        counts = np.bincount(rng.integers(0, num_blocks, num_blocks), minlength=num_blocks)
        with np.errstate(divide="ignore", invalid="ignore"):
            value = statistic(counts[block_of_point].astype(np.float64))
        if value is not None and np.isfinite(value):
            values.append(value)
    if len(values) < 2:
        return None
    return float(np.std(values, ddof=1))


def fit_mle(neighborhoods: Neighborhoods) -> Fit:
    """Estimate by maximum likelihood (Levina & Bickel 2004; MacKay & Ghahramani 2005).

    ``d = 1 / mean_x( 1/(k - 2) · Σ_{j<k} ln(T_k / T_j) )``

    ``value`` divides by k - 2, as the code of Konz & Mazurowski does. ``value_k_minus_1`` divides
    by k - 1: with it the mean inverse is unbiased for 1/d. ``curve`` has both for every smaller k.

    The standard error is by the delta method, ``d² · sd(inverse) / √n``. It takes points as
    independent, and is about a quarter too small. ``std_error_bootstrap`` corrects this.
    """
    log_distances = np.log(neighborhoods.distances)
    num_points, k = log_distances.shape
    inverses = inverse_dimensions(log_distances, k, 2)
    mean = inverses.mean()
    if mean <= EQUAL_LOG_RATIO:
        return Fit()
    curve = [
        {
            "num_neighbors": smaller_k,
            "value": _inverse(inverse_dimensions(log_distances, smaller_k, 2).mean()),
            "value_k_minus_1": _inverse(inverse_dimensions(log_distances, smaller_k, 1).mean()),
        }
        for smaller_k in range(3, k + 1)
    ]

    def value_of_resample(weights: DrawCounts) -> float:
        return float(weights.sum() / (weights * inverses).sum())

    spread = inverses.std(ddof=1)
    return Fit(
        value=float(1 / mean),
        std_error=float(spread / mean**2 / np.sqrt(num_points)),
        details={
            "std_error_bootstrap": neighborhoods.bootstrap_std_error(value_of_resample),
            "value_k_minus_1": curve[-1]["value_k_minus_1"],
            "curve": curve,
        },
    )


def _inverse(mean: float) -> float | None:
    """Return the dimension to a mean of inverse dimensions, or None if that is zero."""
    return float(1 / mean) if mean > 0 else None


def fit_twonn(neighborhoods: Neighborhoods) -> Fit:
    """Estimate by the ratio of two neighbors: slope of ``-ln(1 - F(μ))`` on ``ln μ`` (Facco 2017).

    μ is ``T_2/T_1`` and F its empirical distribution ``i/n``. The slope is fitted by least squares
    through the origin, without the fraction ``discard_fraction`` of the largest μ. That is 0.1 in
    Facco et al. With 0 only the last point is left out (F = 1 there), as in the code of Konz &
    Mazurowski.

    The standard error ``d/√n`` is that of the likelihood for independent ratios. It is about a
    quarter too small for this slope. ``std_error_bootstrap`` corrects this.
    """
    discard_fraction = neighborhoods.parameters["discard_fraction"]
    distances = neighborhoods.distances
    log_ratios = np.log(distances[:, 1] / distances[:, 0])
    order = np.argsort(log_ratios, kind="stable")
    ascending = log_ratios[order]
    value = _twonn_slope(ascending, np.ones(len(order)), discard_fraction)
    if value is None or value >= 1 / EQUAL_LOG_RATIO:
        return Fit()
    bootstrap_std_error = neighborhoods.bootstrap_std_error(
        lambda weights: _twonn_slope(ascending, weights[order], discard_fraction)
    )
    return Fit(
        value=value,
        std_error=float(value / np.sqrt(len(order))),
        details={"std_error_bootstrap": bootstrap_std_error},
    )


def _twonn_slope(
    log_ratios: FloatArray,
    weights: FloatArray,
    discard_fraction: float,
) -> float | None:
    """Return TwoNN's slope, or None if no positive ratio is left.

    Args:
        log_ratios: ``(num_points,)`` ln μ, ascending.
        weights: ``(num_points,)`` how often each point counts; all one for the sample itself.
        discard_fraction: Fraction of the largest ratios that is left out.
    """
    distribution = np.cumsum(weights) / weights.sum()
    # The tolerance puts i/n <= 1 - f on the side where exact arithmetic would put it.
    num_below = np.searchsorted(distribution, 1 - discard_fraction + 1e-12, side="right")
    num_below_one = np.searchsorted(distribution, 1 - 1e-12)  # F = 1 has no logarithm
    num_fitted = int(min(num_below, num_below_one))
    x = log_ratios[:num_fitted]
    y = -np.log1p(-distribution[:num_fitted])
    weight = weights[:num_fitted]
    # No dot products: BLAS divides long ones over threads, whose number would change the sum.
    sum_xx = float((weight * x * x).sum())
    if sum_xx <= 0:
        return None
    return float((weight * x * y).sum() / sum_xx)


def fit_gride(neighborhoods: Neighborhoods) -> Fit:
    """Estimate by generalized ratios: likelihood of ``T_{2n}/T_n``, n = 1, 2, 4, ... (Denti 2022).

    Let n1 = n, n2 = 2n, and μ = T_{n2}/T_{n1}. If points have a locally constant density in d
    dimensions, the density of μ is

    ``d · (μ^d - 1)^(n2-n1-1) / (μ^((n2-1)d+1) · B(n2-n1, n1))``

    with the beta function B. The value is that of the largest scale. ``curve`` has every scale,
    with its mean distance and its standard error by the observed information.
    """
    distances = neighborhoods.distances
    curve = []
    fit = Fit()
    n1 = 1
    while 2 * n1 <= distances.shape[1]:
        nearer = distances[:, n1 - 1]
        farther = distances[:, 2 * n1 - 1]
        fit = gride_at_scale(np.log(farther / nearer), n1, 2 * n1)
        curve.append(
            {
                "n1": n1,
                "n2": 2 * n1,
                "distance": float(farther.mean()),
                "value": fit.value,
                "std_error": fit.std_error,
            }
        )
        n1 *= 2
    return Fit(fit.value, fit.std_error, fit.num_ties, {"curve": curve})


def gride_at_scale(
    log_ratios: FloatArray,
    n1: int,
    n2: int,
) -> Fit:
    """Maximize Gride's likelihood of ``(num_points,)`` log ratios ``ln(T_{n2}/T_{n1})`` in d."""
    power = n2 - n1 - 1  # exponent of (μ^d - 1) in the density
    # A ratio of exactly one has probability zero, but occurs on lattices and through rounding.
    logs = log_ratios
    if power > 0:
        logs = log_ratios[log_ratios > 0]
    num_ties = len(log_ratios) - len(logs)
    num_points = len(logs)
    total = float(logs.sum())
    if num_points < 2 or total <= EQUAL_LOG_RATIO * num_points:
        return Fit(num_ties=num_ties)
    if power == 0:  # n1 = 1: the equation is linear
        return Fit(num_points / total, math.sqrt(num_points) / total)

    def score(dimension: float) -> float:
        # μ^d / (μ^d - 1) = 1 / (1 - μ^-d), in the form that cannot overflow
        growth = (logs / -np.expm1(-dimension * logs)).sum()
        return float(num_points / dimension + power * growth - (n2 - 1) * total)

    def information(dimension: float) -> float:
        half = np.minimum(dimension * logs / 2, 300)  # sinh overflows above 710
        curvature = (logs**2 / (4 * np.sinh(half) ** 2)).sum()
        return float(num_points / dimension**2 + power * curvature)

    # The score falls and is convex in d. So a Newton step from either side ends below the root, and
    # steps from below approach it without passing it. The start, about d / ln 2, is above the root.
    # Newton from above may jump below zero. So limit each step to half the value.
    value = num_points / total
    for _ in range(100):
        step = max(score(value) / information(value), -value / 2)
        value += step
        if abs(step) <= 1e-12 * value:
            break
    return Fit(value, 1 / math.sqrt(information(value)), num_ties)


ESTIMATORS: dict[str, Estimator] = {
    "mle": Estimator(
        fit=fit_mle,
        required_neighbors=lambda num_neighbors: num_neighbors,
        convention=(
            "Levina-Bickel with the MacKay-Ghahramani mean of inverses, inner sum divided by k-2 "
            "as in the code of Konz & Mazurowski 2024; value_k_minus_1: divided by k-1 as printed "
            "there, which is unbiased where inverses are averaged; std_error by the delta method"
        ),
    ),
    "twonn": Estimator(
        fit=fit_twonn,
        required_neighbors=lambda num_neighbors: 2,
        convention=(
            "Facco et al. 2017, fit through the origin, {discard_fraction:g} of the largest ratios "
            "discarded (0: only the last point); std_error d/sqrt(n)"
        ),
        parameters={"discard_fraction": 0.1},
    ),
    "gride": Estimator(
        fit=fit_gride,
        required_neighbors=lambda num_neighbors: 2 ** int(math.log2(num_neighbors)),
        convention=(
            "Denti et al. 2022, n2 = 2 n1, largest n2 within num_neighbors; std_error by the "
            "information"
        ),
    ),
}
"""The estimators of intrinsic dimension, by the name that users give."""


def find_estimator(name: str) -> Estimator:
    """Return an estimator's row.

    Raises:
        ConfigError: If there is no estimator of this name.
    """
    if name not in ESTIMATORS:
        raise unknown_name("estimator", name, ESTIMATORS)
    return ESTIMATORS[name]


def table_width(estimators: Iterable[str], num_neighbors: int) -> int:
    """Return how many neighbors a table must hold for these estimators.

    Raises:
        ConfigError: If an estimator is not known.
    """
    widths = [find_estimator(name).required_neighbors(num_neighbors) for name in estimators]
    return max(widths, default=num_neighbors)


def estimate(
    table: NeighborTable,
    *,
    num_neighbors: int = 20,
    estimators: Sequence[str],
    parameters: Mapping[str, float] | None = None,
    seed: int = 0,
) -> dict[str, IntrinsicDimension]:
    """Run several estimators on one table of neighbors.

    Args:
        table: As wide as `table_width` returns.
        num_neighbors: k of the MLE, 3 or more. It bounds Gride's scales; TwoNN uses 2.
        estimators: Names of rows.
        parameters: Values that replace those of the rows, by the parameter's name. Names that no
            row of ``estimators`` has are ignored.
        seed: Seed of the bootstrap.

    Returns:
        One record per name, in the order of ``estimators``.
    """
    replaced = parameters or {}
    records = {}
    for name in estimators:
        estimator = find_estimator(name)
        values = {key: replaced.get(key, value) for key, value in estimator.parameters.items()}
        records[name] = _estimate_one(table, name, estimator, num_neighbors, values, seed)
    return records


def _estimate_one(
    table: NeighborTable,
    name: str,
    estimator: Estimator,
    num_neighbors: int,
    parameters: Mapping[str, float],
    seed: int,
) -> IntrinsicDimension:
    """Run one estimator. The record has a reason if the points do not allow a dimension."""
    k = estimator.required_neighbors(num_neighbors)
    num_points = table.num_positions
    distances = table.distances[:, :k]
    record = IntrinsicDimension(
        estimator=name,
        value=None,
        std_error=None,
        num_points=num_points,
        num_neighbors=k,
        convention=estimator.convention.format(**parameters),
    )
    if num_points < k + 1 or distances.shape[1] < k:
        rule = f"needs at least {k + 1} distinct points for {k} neighbors"
        return replace(record, reason=f"{rule}, has {num_points}")
    is_usable = (distances[:, 0] > 0) & np.isfinite(distances[:, -1])
    num_usable = int(is_usable.sum())
    record = replace(record, num_points=num_usable, num_dropped=num_points - num_usable)
    if num_usable < 2:
        rule = f"needs two points whose {k} neighbor distances are positive and finite"
        return replace(record, reason=f"{rule}, has {num_usable} of {num_points}")
    indices = table.indices[:, :k]
    fit = estimator.fit(Neighborhoods(distances[is_usable], indices, is_usable, parameters, seed))
    num_fitted = num_usable - fit.num_ties
    record = replace(record, num_points=num_fitted, num_dropped=num_points - num_fitted)
    if fit.value is None:
        return replace(record, reason=EQUALLY_FAR)
    details = fit.details | dict(parameters)
    if num_fitted < FEW_POINTS:
        details["remark"] = (
            f"rests on {num_fitted} points; below {FEW_POINTS} a dimension is hardly known"
        )
    return replace(record, value=fit.value, std_error=fit.std_error, details=details)
