"""Estimate the intrinsic dimension from neighbor distances by MLE, TwoNN and Gride.

T_j(x) is the distance from a point x to its j-th nearest other point. Every estimator reads a
table of these distances and returns a record. If no finite dimension fits the distances, the
value in the record is None, and the record contains the reason. A value is never NaN or
infinite.

Each estimator has one function in this module and one row in `ESTIMATORS`. MLE and TwoNN have
a standard error from a bootstrap. The neighborhoods of close points overlap, so a bootstrap of
single points would underestimate the standard error. The bootstrap therefore draws disjoint
blocks of neighboring points. Gride has no bootstrap. Its standard error comes from the
observed information.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from string import Formatter
from typing import Any

import numpy as np

from search_spaces.errors import ConfigError, plural, unknown_name
from search_spaces.row_parameters import RowParameters
from tasks.array_types import AnyArray, BoolArray, FloatArray, IntArray
from tasks.measures.neighbor_tables import NeighborTable
from tasks.measures.plain_json import plain_json

EQUAL_LOG_RATIO = 1e-5
"""Largest mean log ratio of distances that counts as zero, because distances have a relative
error of up to 1e-5."""
EQUALLY_FAR = (
    "for each point, all neighbor distances are equal after rounding, so no finite dimension "
    "fits them"
)
FEW_POINTS = 20
"""Number of points below which a record contains a remark about uncertainty. With 20 points,
the standard error of TwoNN is about a quarter of its value."""
NUM_RESAMPLES = 200
"""Number of bootstrap resamples. Efron & Tibshirani (1993) recommend 200 for standard
errors."""
BLOCK_POINTS = 10
"""Largest number of points in a block of the bootstrap. With blocks of 21 or 42 points,
standard errors change by a few percent (docs/measures.md)."""

DrawCounts = FloatArray
"""An array with the number of times that a resample contains each point, ``(num_points,)``."""
Statistic = Callable[[DrawCounts], float | None]
"""Function that computes a number from a resample, or returns None if it is undefined."""


@dataclass(frozen=True)
class IntrinsicDimension:
    """An estimate of the intrinsic dimension with its standard error.

    Attributes:
        estimator: Name of the estimator, a key of `ESTIMATORS`.
        value: The estimate; None if it is undefined.
        std_error: Standard error by the formula in ``convention``; None if it is undefined.
        num_points: Number of points from which the value is estimated. For TwoNN, this number
            includes the points whose ratios are discarded, because these points are part of
            the empirical distribution.
        num_neighbors: Number of neighbors per point that the estimator uses.
        convention: The formula, in words.
        num_dropped: Number of points from which the value is not estimated. Such a point has a
            neighbor at distance zero, or too few neighbors, or two equal distances that Gride
            compares.
        reason: Reason why ``value`` is None.
        details: Further output of this estimator, such as the estimate at each scale. It also
            contains the estimator's parameters, and a ``remark`` for readers if there are few
            points.
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

    def __post_init__(self) -> None:
        clashing = sorted(self.details.keys() & {entry.name for entry in fields(self)})
        if clashing:
            raise ConfigError(
                f"The estimator {self.estimator!r} has parameters or details with the names "
                f"{', '.join(clashing)}, which are fields of its record",
                hint="Choose other names",
            )

    @property
    def reported_std_error(self) -> float | None:
        """The block-bootstrap standard error. For an estimator without a bootstrap,
        ``std_error``.
        """
        bootstrap: float | None = self.details.get("std_error_bootstrap")
        return self.std_error if bootstrap is None else bootstrap

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON. The entries of ``details`` become fields of the record.

        If ``reason`` is None, the JSON does not contain it.
        """
        record = dict(vars(self))
        details = record.pop("details")
        return plain_json(record | details, left_out_if_none=("reason",))


@dataclass(frozen=True)
class Neighborhoods:
    """The input of an estimator.

    A point is *usable* if all its neighbor distances are positive and finite. ``distances``
    has one row for each usable point. ``indices`` has one row for every point. Its values are
    indices of its own rows.

    Attributes:
        distances: ``(num_usable, num_neighbors)`` neighbor distances of the usable points,
            ascending in each row. All are positive and finite.
        indices: ``(num_points, num_neighbors)`` indices of the neighbors of all points; -1 if
            a point has fewer neighbors.
        is_usable: ``(num_points,)`` mask of the points that have a row in ``distances``.
        parameters: The estimator's parameters, by name. Reading a parameter of another name
            raises a ConfigError.
        seed: Seed of the bootstrap.
    """

    distances: FloatArray
    indices: AnyArray
    is_usable: BoolArray
    parameters: RowParameters
    seed: int

    def bootstrap_std_error(self, statistic: Statistic) -> float | None:
        """Return the block-bootstrap standard error of a statistic over the usable points."""
        blocks = neighborhood_blocks(self.indices)[self.is_usable]
        return block_std_error(statistic, blocks, seed=self.seed)


@dataclass(frozen=True)
class Fit:
    """The output of an estimator.

    Attributes:
        value: The dimension; None if it is undefined.
        std_error: Standard error by a formula; None if there is no formula.
        num_ties: Number of usable points from which the value is not estimated, because two of
            their distances are equal.
        details: Further output of the estimator, as plain JSON.
        reason: Reason why ``value`` is None; otherwise empty.
    """

    value: float | None = None
    std_error: float | None = None
    num_ties: int = 0
    details: dict[str, Any] = field(default_factory=dict)
    reason: str = ""

    def __post_init__(self) -> None:
        if self.value is None and not self.reason:
            raise ValueError("A Fit without a value needs a reason, as in Fit(reason=...)")


@dataclass(frozen=True)
class Estimator:
    """A row of `ESTIMATORS`.

    Attributes:
        fit: Function that estimates the dimension from neighborhoods.
        required_neighbors: Function that receives the setting ``num_neighbors``, and returns
            the number of neighbors that the estimator uses.
        convention: The formula in words. The names of parameters are in braces.
        parameters: The estimator's parameters and their values. Results are stored under the
            name of the row. So if you need other values, add a row with another name.
    """

    fit: Callable[[Neighborhoods], Fit]
    required_neighbors: Callable[[int], int]
    convention: str
    parameters: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        parts = Formatter().parse(self.convention)
        in_braces = {name for _, name, _, _ in parts if name is not None}
        if in_braces != self.parameters.keys():
            raise ValueError(
                f"a row of ESTIMATORS has the parameters {sorted(self.parameters)}, but its "
                f"convention has {sorted(in_braces)} in braces. Write each parameter in both places"
            )


def inverse_dimensions(
    log_distances: FloatArray,
    num_neighbors: int,
    divisor_offset: int,
) -> FloatArray:
    """Return ``1/(k - divisor_offset) · Σ_{j<k} ln(T_k / T_j)`` of every point.

    Args:
        log_distances: Logarithms of the distances to the nearest neighbors, ascending in each
            row, ``(num_points, k or more)``.
        num_neighbors: Number of neighbors k.
        divisor_offset: Number that is subtracted from k in the divisor, 1 or 2.

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

    The function visits the points in order. If a point is in no block yet, the point starts a
    new block. Those of its nearest neighbors that are in no block yet are added to this block.

    Args:
        indices: ``(num_points, num_neighbors)`` indices of the neighbors; -1 if a point has
            fewer neighbors.

    Returns:
        ``(num_points,)`` number of each point's block, from 0.
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
        statistic: Function that computes a value, or None, from the number of times that a
            resample contains each point.
        blocks: ``(num_points,)`` number of each point's block. The numbers may be any
            integers.
        seed: Seed of the resamples.
        num_resamples: Number of resamples.

    Returns:
        The standard deviation of the statistic over resamples. None if there are fewer than
        two blocks, or if the statistic is finite in fewer than two resamples.
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
    """Estimate the dimension by maximum likelihood.

    The estimator is described in Levina & Bickel (2004) and MacKay & Ghahramani (2005).

    ``d = 1 / mean_x( 1/(k - 2) · Σ_{j<k} ln(T_k / T_j) )``

    k is the number of neighbors. ``value`` divides the sum by k - 2, as the code of Konz &
    Mazurowski does. ``value_k_minus_1`` divides it by k - 1. With k - 1, the mean over x is an
    unbiased estimate of 1/d. ``curve`` lists both values for every number of neighbors from 3
    to k.

    ``std_error`` comes from the delta method: ``d² · sd(inverse) / √n`` for n points. The
    method assumes independent points, so this standard error is about a quarter too small.
    ``std_error_bootstrap`` does not have this error.
    """
    log_distances = np.log(neighborhoods.distances)
    num_points, k = log_distances.shape
    inverses = inverse_dimensions(log_distances, k, 2)
    mean = inverses.mean()
    if mean <= EQUAL_LOG_RATIO:
        return Fit(reason=EQUALLY_FAR)
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
    """Return the inverse of a mean, or None if the mean is zero."""
    return float(1 / mean) if mean > 0 else None


def fit_twonn(neighborhoods: Neighborhoods) -> Fit:
    """Estimate the dimension by TwoNN, from the ratio of two neighbor distances (Facco 2017).

    The ratio is ``μ = T_2/T_1``. F is its empirical distribution, ``i/n`` for the i-th
    smallest of n ratios. The estimate is the slope of a least-squares regression of ``-ln(1 -
    F(μ))`` on ``ln μ`` through the origin. The regression leaves out the largest ratios;
    ``discard_fraction`` is their share, 0.1 in Facco et al. If the share is 0, the regression
    leaves out only the largest ratio, where F = 1, as in the code of Konz & Mazurowski.

    ``std_error`` is ``d/√n``, the standard error of a maximum-likelihood estimate from
    independent ratios. It is about a quarter too small for this slope. ``std_error_bootstrap``
    does not have this error.
    """
    discard_fraction = neighborhoods.parameters["discard_fraction"]
    distances = neighborhoods.distances
    log_ratios = np.log(distances[:, 1] / distances[:, 0])
    order = np.argsort(log_ratios, kind="stable")
    ascending = log_ratios[order]
    value = _twonn_slope(ascending, np.ones(len(order)), discard_fraction)
    if value is None or value >= 1 / EQUAL_LOG_RATIO:
        return Fit(reason=EQUALLY_FAR)
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
    """Return TwoNN's slope, or None if all fitted log ratios are zero.

    Args:
        log_ratios: ``(num_points,)`` logarithms of the ratios μ, ascending.
        weights: ``(num_points,)`` weight of each point: its number of occurrences in a
            resample, or 1 for the original sample.
        discard_fraction: Share of the ratios that the regression leaves out. It leaves out the
            largest ratios.
    """
    distribution = np.cumsum(weights) / weights.sum()
    # f is the discarded fraction. Because of the tolerance 1e-12, the comparison i/n <= 1 - f
    # has the same result as in exact arithmetic.
    num_below = np.searchsorted(distribution, 1 - discard_fraction + 1e-12, side="right")
    # A ratio with F = 1 is left out, because -ln(1 - F) would be infinite.
    num_below_one = np.searchsorted(distribution, 1 - 1e-12)
    num_fitted = int(min(num_below, num_below_one))
    x = log_ratios[:num_fitted]
    y = -np.log1p(-distribution[:num_fitted])
    weight = weights[:num_fitted]
    # The sums below are not computed as dot products, because the last digits of a long dot
    # product in BLAS depend on the number of threads.
    sum_xx = float((weight * x * x).sum())
    if sum_xx <= 0:
        return None
    return float((weight * x * y).sum() / sum_xx)


def fit_gride(neighborhoods: Neighborhoods) -> Fit:
    """Estimate the dimension by Gride, from ratios of neighbor distances (Denti 2022).

    Each n = 1, 2, 4, and so on is one *scale*, with the ratios ``T_{2n}/T_n`` of all points.

    Let n1 = n, n2 = 2n, and μ = T_{n2}/T_{n1}. If the points have a locally constant density
    in d dimensions, the density of μ is

    ``d · (μ^d - 1)^(n2-n1-1) / (μ^((n2-1)d+1) · B(n2-n1, n1))``

    B is the beta function. ``value`` is the estimate at the largest scale. ``curve`` lists the
    estimates at all scales. Each entry also contains the mean of T_{n2} and the standard error
    from the observed information.
    """
    distances = neighborhoods.distances
    curve = []
    fit = Fit(reason=EQUALLY_FAR)
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
    return replace(fit, details={"curve": curve})


def gride_at_scale(
    log_ratios: FloatArray,
    n1: int,
    n2: int,
) -> Fit:
    """Return the dimension that maximizes Gride's likelihood at one scale.

    Args:
        log_ratios: ``(num_points,)`` log ratios ``ln(T_{n2}/T_{n1})``.
        n1: Index of the nearer neighbor, from 1.
        n2: Index of the farther neighbor.
    """
    power = n2 - n1 - 1  # exponent of (μ^d - 1) in the density
    # In theory, a ratio is exactly one with the probability zero. In practice, such ratios
    # occur on lattices and after rounding, so they are left out.
    logs = log_ratios
    if power > 0:
        logs = log_ratios[log_ratios > 0]
    num_ties = len(log_ratios) - len(logs)
    num_points = len(logs)
    total = float(logs.sum())
    if num_points < 2 or total <= EQUAL_LOG_RATIO * num_points:
        return Fit(num_ties=num_ties, reason=EQUALLY_FAR)
    if power == 0:  # n1 = 1: the equation is linear
        return Fit(num_points / total, math.sqrt(num_points) / total)

    def score(dimension: float) -> float:
        # This is μ^d / (μ^d - 1), written as 1 / (1 - μ^-d), which cannot overflow.
        growth = (logs / -np.expm1(-dimension * logs)).sum()
        return float(num_points / dimension + power * growth - (n2 - 1) * total)

    def information(dimension: float) -> float:
        half = np.minimum(dimension * logs / 2, 300)  # sinh overflows above 710
        curvature = (logs**2 / (4 * np.sinh(half) ** 2)).sum()
        return float(num_points / dimension**2 + power * curvature)

    # Newton's method finds the root of the score, which is decreasing and convex in d. It
    # starts above the root, at about d / ln 2. The first step ends below the root, and may end
    # below zero. So each step is limited to half of the value. From below, the steps converge
    # to the root.
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
            "Levina-Bickel with the MacKay-Ghahramani mean of inverses, inner sum divided by "
            "k-2 as in the code of Konz & Mazurowski 2024; value_k_minus_1: divided by k-1 as "
            "printed there, which is unbiased where inverses are averaged; std_error by the "
            "delta method"
        ),
    ),
    "twonn": Estimator(
        fit=fit_twonn,
        required_neighbors=lambda num_neighbors: 2,
        convention=(
            "Facco et al. 2017, fit through the origin, {discard_fraction:g} of the largest "
            "ratios discarded (0: only the last point); std_error d/sqrt(n)"
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
"""The estimators of intrinsic dimension. The keys are the names that users write in sweep
files."""


def find_estimator(name: str) -> Estimator:
    """Return the row of an estimator.

    Raises:
        ConfigError: There is no estimator with this name.
    """
    if name not in ESTIMATORS:
        raise unknown_name("estimator", name, ESTIMATORS)
    return ESTIMATORS[name]


def table_width(estimators: Iterable[str], num_neighbors: int) -> int:
    """Return the number of neighbors per point that a table for these estimators needs.

    Raises:
        ConfigError: One of the names is not the name of an estimator.
    """
    widths = [find_estimator(name).required_neighbors(num_neighbors) for name in estimators]
    return max(widths, default=num_neighbors)


def estimate(
    table: NeighborTable,
    *,
    num_neighbors: int = 20,
    estimators: Sequence[str],
    parameters: Mapping[str, Mapping[str, float]] | None = None,
    seed: int = 0,
) -> dict[str, IntrinsicDimension]:
    """Compute the estimates of several estimators from one table of neighbors.

    Args:
        table: Table with as many neighbors per point as :func:`table_width` returns.
        num_neighbors: Number of neighbors k of the MLE, 3 or more. Gride uses the largest
            power of two up to k. TwoNN always uses 2 neighbors.
        estimators: Names in `ESTIMATORS`.
        parameters: Values that replace parameters in `ESTIMATORS`. The outer keys are the
            names of estimators, and the inner keys are the names of their parameters. Two
            estimators may have a parameter of the same name.
        seed: Seed of the bootstrap.

    Returns:
        One record per estimator, by name, in the order of ``estimators``.
    """
    records = {}
    for name in estimators:
        estimator = find_estimator(name)
        values = {**estimator.parameters, **(parameters or {}).get(name, {})}
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
    """Return the record of one estimator. If there is no estimate, the record has a reason."""
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
        reason = f"{k} neighbors need at least {k + 1} distinct points, but there are {num_points}"
        return replace(record, reason=reason)
    is_usable = (distances[:, 0] > 0) & np.isfinite(distances[:, -1])
    num_usable = int(is_usable.sum())
    record = replace(record, num_points=num_usable, num_dropped=num_points - num_usable)
    if num_usable < 2:
        reason = (
            f"only {num_usable} of {num_points} points have {k} neighbor distances that are "
            "positive and finite, but at least two points are needed"
        )
        return replace(record, reason=reason)
    indices = table.neighbor_positions[:, :k]
    values = RowParameters(f"row {name!r} of ESTIMATORS", parameters)
    fit = estimator.fit(Neighborhoods(distances[is_usable], indices, is_usable, values, seed))
    if not isinstance(fit, Fit):
        raise ConfigError(
            f"tasks/measures/estimators.py, ESTIMATORS, row {name!r}: the function `fit` returned "
            f"{type(fit).__name__} instead of Fit",
            hint="Return Fit(value=...), or Fit(reason=...) if the dimension is undefined",
        )
    num_fitted = num_usable - fit.num_ties
    record = replace(record, num_points=num_fitted, num_dropped=num_points - num_fitted)
    if fit.value is None:
        return replace(record, reason=fit.reason)
    details = fit.details | dict(parameters)
    if num_fitted < FEW_POINTS:
        details["remark"] = (
            f"is based on {plural(num_fitted, 'point')}. Below {FEW_POINTS} points, the "
            "dimension is very uncertain."
        )
    return replace(record, value=fit.value, std_error=fit.std_error, details=details)
