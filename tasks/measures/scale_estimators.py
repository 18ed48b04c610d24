"""Gride, an estimator that looks at several scales, on the same table of neighbours."""

from __future__ import annotations

import math

import numpy as np

from tasks.measures.dimension import (
    EQUAL_LOG_RATIO,
    EQUALLY_FAR,
    IntrinsicDimension,
    undefined,
    usable,
)
from tasks.measures.distances import FloatArray
from tasks.measures.neighbors import NeighborTable


def gride(table: NeighborTable, *, num_neighbors: int = 20) -> IntrinsicDimension:
    """Generalised ratios (Denti et al. 2022): likelihood of ``T_{2n}/T_n`` for n = 1, 2, 4, ...

    For points of locally constant density the ratio μ = T_{n2}/T_{n1} has the density
    ``d (μ^d - 1)^(n2-n1-1) / (μ^((n2-1)d+1) B(n2-n1, n1))``; d maximises the likelihood.

    Args:
        table: Neighbours of the points.
        num_neighbors: The largest n2 is the largest power of two not above it.

    Returns:
        The value at the largest scale (least variance); ``curve`` has every scale with its standard error
        from the observed information, and the mean distance at which it looks.
    """
    convention = "Denti et al. 2022, n2 = 2 n1, largest n2 within num_neighbors; std_error by the information"
    scales = [2**j for j in range(20) if 2 ** (j + 1) <= num_neighbors]
    if not scales:
        return undefined("gride", table, num_neighbors, convention, "needs at least 2 neighbours")
    distances, good, problem = usable(table, 2 * scales[-1])
    if problem:
        return undefined("gride", table, 2 * scales[-1], convention, problem)
    curve = []
    for n1 in scales:
        near, far = distances[good, n1 - 1], distances[good, 2 * n1 - 1]
        value, error = _gride_fit(np.log(far / near), n1, 2 * n1)
        curve.append(
            {"n1": n1, "n2": 2 * n1, "value": value, "std_error": error, "distance": float(far.mean())}
        )
    reason = None if curve[-1]["value"] is not None else EQUALLY_FAR
    return IntrinsicDimension(
        "gride",
        curve[-1]["value"],
        curve[-1]["std_error"],
        int(good.sum()),
        2 * scales[-1],
        convention,
        num_dropped=int((~good).sum()),
        reason=reason,
        details={"curve": curve},
    )


def _gride_fit(log_ratios: FloatArray, n1: int, n2: int) -> tuple[float | None, float | None]:
    """Maximise Gride's likelihood in d; returns value and standard error."""
    # A ratio of exactly one has probability zero but occurs on lattices and at coinciding roundings.
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
