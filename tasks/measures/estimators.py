"""Intrinsic dimension from neighbour distances: MLE, TwoNN and Gride, with their standard errors.

T_j(x) is the distance from x to its j-th nearest other point. Every estimator works on a table of T
and returns a record; none returns a bare number, NaN or infinity.

Neighbourhoods overlap, so a bootstrap over single points would promise too much: disjoint blocks of
neighbouring points are drawn with replacement.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from search_spaces.errors import DataError, unknown_name
from tasks.measures.distances import FloatArray
from tasks.measures.neighbors import NeighborTable

# Distances are good to 1e-5, so smaller mean log ratios of distances are rounding.
EQUAL_LOG_RATIO = 1e-5
EQUALLY_FAR = "neighbours are equally far to within rounding, no finite dimension explains that"


@dataclass(frozen=True)
class IntrinsicDimension:
    """An estimate with what is needed to judge it.

    Attributes:
        value: The estimate, or None when it is undefined; ``reason`` then says why.
        std_error: Its standard error, by the way that ``convention`` names.
        num_points: Points that the value averages over, after duplicates and ties were left out.
        num_dropped: Points left out because their neighbour distances are zero.
        convention: The formula, in words.
        details: More of the same estimator, such as its curve over scales.
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
    def error(self) -> float | None:
        """The standard error to show: by resampling neighbourhoods, which overlap, where that was
        done.
        """
        bootstrap: float | None = self.details.get("std_error_bootstrap")
        return self.std_error if bootstrap is None else bootstrap

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; ``details`` stand beside the other keys, ``reason`` only where there is
        one.
        """
        record = {
            key: value for key, value in vars(self).items() if key not in ("details", "reason")
        }
        return record | ({"reason": self.reason} if self.reason else {}) | self.details


def inverse_dimensions(logs: FloatArray, num_neighbors: int, subtract: int) -> FloatArray:
    """``1/(k - subtract) · Σ_{j<k} ln(T_k / T_j)`` per point, from ``(num_points, >= k)`` log
    distances.
    """
    k = num_neighbors
    total: FloatArray = (k - 1) * logs[:, k - 1] - logs[:, : k - 1].sum(axis=1)
    return total / (k - subtract)


# Resamples as Efron & Tibshirani (1993) advise for standard errors, and most points per block.
NUM_RESAMPLES = 200
BLOCK_POINTS = 10


def neighborhood_blocks(
    indices: npt.NDArray[Any], good: npt.NDArray[np.bool_] | None = None
) -> npt.NDArray[np.int64]:
    """Divide points into disjoint blocks of neighbours ``(num_points, num_neighbors)``, greedily in
    the order of the points; returns the block of each that is ``good`` (num_points,), of all when
    None.
    """
    block = np.full(len(indices), -1, np.int64)
    number = 0
    for point, neighbors in enumerate(indices):
        if block[point] >= 0:
            continue
        free = neighbors[(neighbors >= 0) & (block[neighbors] < 0)]
        block[free[: BLOCK_POINTS - 1]] = number
        block[point] = number
        number += 1
    chosen = block if good is None else block[good]
    return np.unique(chosen, return_inverse=True)[1].astype(np.int64)


def block_std_error(
    statistic: Callable[[npt.NDArray[np.float64]], float | None],
    blocks: npt.NDArray[np.int64],
    *,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> float | None:
    """Standard deviation of a statistic, a function of multiplicities (num_points,) or None, over
    resamples of ``blocks`` (num_points,); None when fewer than two define it.
    """
    num_blocks = int(blocks.max(initial=-1)) + 1
    if num_blocks < 2:
        return None
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(num_resamples):
        drawn = np.bincount(rng.integers(0, num_blocks, num_blocks), minlength=num_blocks)
        with np.errstate(divide="ignore", invalid="ignore"):
            value = statistic(drawn[blocks].astype(np.float64))
        if value is not None and np.isfinite(value):
            values.append(value)
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


@dataclass(frozen=True)
class Neighborhoods:
    """What an estimator looks at: the distances (num_good, num_neighbors) of points that have all
    their neighbours, none at zero; the neighbours of all points, and which of them are those.
    """

    distances: FloatArray
    indices: npt.NDArray[Any]
    good: npt.NDArray[np.bool_]
    discard_fraction: float
    seed: int

    def std_error(
        self, statistic: Callable[[npt.NDArray[np.float64]], float | None]
    ) -> float | None:
        """Standard error of a statistic over resamples of blocks."""
        return block_std_error(
            statistic, neighborhood_blocks(self.indices, self.good), seed=self.seed
        )


Fit = tuple[float | None, float | None, dict[str, Any]]
"""Value, standard error and details; no value where points are equally far."""


def _mle(near: Neighborhoods) -> Fit:
    """Maximum-likelihood dimension (Levina & Bickel 2004, aggregated as MacKay & Ghahramani 2005).

    ``d = 1 / mean_x( 1/(k - 2) · Σ_{j<k} ln(T_k / T_j) )``

    k - 2 is the divisor of the study's code; k - 1, of ``value_k_minus_1``, is the unbiased one
    where inverses are averaged. The standard error is by the delta method, ``d² · sd(inverse) /
    √n``, which takes points as independent; ``std_error_bootstrap`` resamples blocks of
    neighbouring points. ``curve`` has both values for every smaller k.
    """
    logs, k = np.log(near.distances), near.distances.shape[1]
    inverses = inverse_dimensions(logs, k, 2)
    mean = inverses.mean()
    if mean <= EQUAL_LOG_RATIO:
        return None, None, {}
    curve = [
        {
            "num_neighbors": smaller,
            "value": _inverse(inverse_dimensions(logs, smaller, 2).mean()),
            "value_k_minus_1": _inverse(inverse_dimensions(logs, smaller, 1).mean()),
        }
        for smaller in range(3, k + 1)
    ]
    details = {
        "std_error_bootstrap": near.std_error(
            lambda weights: weights.sum() / (weights * inverses).sum()
        ),
        "value_k_minus_1": curve[-1]["value_k_minus_1"],
        "curve": curve,
    }
    return float(1 / mean), float(inverses.std(ddof=1) / mean**2 / np.sqrt(len(inverses))), details


def _inverse(mean: float) -> float | None:
    return float(1 / mean) if mean > 0 else None


def _twonn(near: Neighborhoods) -> Fit:
    """Two-nearest-neighbour dimension (Facco et al. 2017): slope of ``-ln(1 - F(μ))`` on ``ln μ``.

    μ = T_2/T_1, F its empirical distribution ``i/n``; least squares through the origin. The share
    ``discard_fraction`` of the largest μ is left out, 0.1 as in Facco et al.; 0 drops the last
    point only (where F = 1), as the code of Konz & Mazurowski does. The standard error is the
    likelihood's, ``d/√n``.
    """
    log_ratios = np.log(near.distances[:, 1] / near.distances[:, 0])
    order, discarded = np.argsort(log_ratios, kind="stable"), near.discard_fraction
    value = _twonn_slope(log_ratios[order], np.ones(len(order)), discarded)
    if value is None or value >= 1 / EQUAL_LOG_RATIO:
        return None, None, {}
    error = near.std_error(
        lambda weights: _twonn_slope(log_ratios[order], weights[order], discarded)
    )
    details = {"std_error_bootstrap": error, "discard_fraction": discarded}
    return value, float(value / np.sqrt(len(order))), details


def _twonn_slope(
    log_ratios: FloatArray, weights: FloatArray, discard_fraction: float
) -> float | None:
    """Slope for ascending ``log_ratios``; ``weights`` are multiplicities, all one for the sample
    itself.
    """
    share = np.cumsum(weights) / weights.sum()
    # The tolerance keeps i/n <= 1 - f on the side that exact arithmetic would put it.
    num_kept = int(np.searchsorted(share, 1 - discard_fraction + 1e-12, side="right"))
    num_kept = min(num_kept, int(np.searchsorted(share, 1 - 1e-12)))  # F = 1 has no logarithm
    x, w = log_ratios[:num_kept], weights[:num_kept]
    # Not by products of vectors: BLAS shares long ones out over threads, whose number would show
    # here.
    norm = float((w * x * x).sum())
    return float((w * x * -np.log1p(-share[:num_kept])).sum() / norm) if norm > 0 else None


def _gride(near: Neighborhoods) -> Fit:
    """Generalised ratios (Denti et al. 2022): likelihood of ``T_{2n}/T_n`` for n = 1, 2, 4, ...

    For points of locally constant density the ratio μ = T_{n2}/T_{n1} has the density ``d (μ^d -
    1)^(n2-n1-1) / (μ^((n2-1)d+1) B(n2-n1, n1))``. The value is that of the largest scale; ``curve``
    has every scale with its standard error from the observed information, and its mean distance.
    """
    curve = []
    for n1 in [2**j for j in range(20) if 2 ** (j + 1) <= near.distances.shape[1]]:
        closer, farther = near.distances[:, n1 - 1], near.distances[:, 2 * n1 - 1]
        value, error = _gride_fit(np.log(farther / closer), n1, 2 * n1)
        scale = {"n1": n1, "n2": 2 * n1, "distance": float(farther.mean())}
        curve.append({**scale, "value": value, "std_error": error})
    return value, error, {"curve": curve}


def _gride_fit(log_ratios: FloatArray, n1: int, n2: int) -> tuple[float | None, float | None]:
    """Maximise Gride's likelihood in d; returns value and standard error."""
    # A ratio of exactly one has probability zero but occurs on lattices and at coinciding
    # roundings.
    between = n2 - n1 - 1
    logs = log_ratios[log_ratios > 0] if between else log_ratios
    num_points, total = len(logs), logs.sum()
    if num_points < 2 or total <= EQUAL_LOG_RATIO * num_points:
        return None, None
    if not between:  # n1 = 1: the equation is linear
        return float(num_points / total), float(np.sqrt(num_points) / total)

    def slope(dimension: float) -> float:
        # μ^d / (μ^d - 1) = 1 / (1 - μ^-d), in the form that cannot overflow
        growth = (logs / -np.expm1(-dimension * logs)).sum()
        return float(num_points / dimension + between * growth - (n2 - 1) * total)

    def information(dimension: float) -> float:
        curvature = (logs**2 / (4 * np.sinh(np.minimum(dimension * logs / 2, 300)) ** 2)).sum()
        return float(num_points / dimension**2 + between * curvature)

    # Newton's steps: the slope falls and is convex in d, so that from below they cannot go too far.
    value, step = float(num_points / total), math.inf
    for _ in range(100):
        if abs(step) <= 1e-12 * value:
            break
        step = max(slope(value) / information(value), -value / 2)
        value += step
    return value, 1 / math.sqrt(information(value))


ESTIMATORS: dict[str, tuple[Callable[[Neighborhoods], Fit], Callable[[int], int], str]] = {
    "mle": (
        _mle,
        lambda num_neighbors: num_neighbors,
        "Levina-Bickel with the MacKay-Ghahramani mean of inverses, inner sum divided by k-2 as in "
        "the code "
        "of Konz & Mazurowski 2024; value_k_minus_1: divided by k-1 as printed there, which is "
        "unbiased "
        "where inverses are averaged; std_error by the delta method",
    ),
    "twonn": (
        _twonn,
        lambda num_neighbors: 2,
        "Facco et al. 2017, fit through the origin, {discard_fraction:g} of the largest ratios "
        "discarded "
        "(0: only the last point); std_error d/sqrt(n)",
    ),
    "gride": (
        _gride,
        lambda num_neighbors: 2 ** int(math.log2(num_neighbors)),
        (
            "Denti et al. 2022, n2 = 2 n1, largest n2 within num_neighbors; std_error by the "
            "information"
        ),
    ),
}
"""By name: the estimator, the neighbours it needs where that many are asked for, and its
convention."""


def table_width(estimators: Iterable[str], num_neighbors: int) -> int:
    """Neighbours that a table must hold for these estimators.

    Raises:
        ConfigError: If an estimator is not known.
    """
    for name in estimators:
        if name not in ESTIMATORS:
            raise unknown_name("estimator", name, ESTIMATORS)
    return max([ESTIMATORS[name][1](num_neighbors) for name in estimators], default=num_neighbors)


def estimate(
    table: NeighborTable,
    *,
    num_neighbors: int = 20,
    estimators: Sequence[str],
    discard_fraction: float = 0.1,
    seed: int = 0,
) -> dict[str, IntrinsicDimension]:
    """Run several estimators on one table of neighbours, as wide as `table_width` says.

    Raises:
        DataError: If ``num_neighbors`` leaves nothing to divide by, or ``discard_fraction`` is not
            in [0, 1).
    """
    if num_neighbors <= 2:
        raise DataError("num_neighbors must be above 2", str(num_neighbors))
    if not 0 <= discard_fraction < 1:
        raise DataError("discard_fraction must be in [0, 1)", str(discard_fraction))
    records = {}
    for name in estimators:
        fit, width_of, convention = ESTIMATORS[name]
        k, convention = (
            width_of(num_neighbors),
            convention.format(discard_fraction=discard_fraction),
        )
        distances, indices = table.distances[:, :k], table.indices[:, :k]
        good = (distances[:, 0] > 0) & np.isfinite(distances[:, -1])
        reason, value = EQUALLY_FAR, None
        if table.num_points < k + 1 or distances.shape[1] < k:
            reason = (
                f"needs at least {k + 1} distinct points for {k} neighbours, has {table.num_points}"
            )
        elif good.sum() < 2:
            reason = "all neighbour distances are zero"
        else:
            near = Neighborhoods(distances[good], indices, good, discard_fraction, seed)
            value, error, details = fit(near)
        record = IntrinsicDimension(
            name, None, None, table.num_points, k, convention, reason=reason
        )
        if value is not None:
            record = replace(record, value=value, std_error=error, details=details, reason=None)
            record = replace(record, num_points=int(good.sum()), num_dropped=int((~good).sum()))
        records[name] = record
    return records
