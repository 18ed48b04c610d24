"""Estimators that look at several scales, on the same table of neighbours: Gride, MST and GeoMLE."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.measures.dimension import (
    EQUAL_LOG_RATIO,
    EQUALLY_FAR,
    IntrinsicDimension,
    inverse_dimensions,
    undefined,
    usable,
)
from tasks.measures.distances import FloatArray
from tasks.measures.neighbors import NeighborTable

# GeoMLE as in the code of Konz & Mazurowski: k from 25 to 55, 20 bootstraps, ridge of degree 2, alpha 5e-3.
GEOMLE_NEIGHBORS = (25, 55)
GEOMLE_BOOTSTRAPS = 20
GEOMLE_ALPHA = 5e-3
# A bootstrap holds 63 % of the points on average, so 55 surviving neighbours need 87 in the table on
# average; with 120 fewer than one row in a million has too few.
GEOMLE_TABLE_WIDTH = 120

MST_SHARES = (0.5, 0.6, 0.7, 0.8, 0.9)
MST_DRAWS = 8


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
    from scipy.optimize import brentq

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

    low, high = 1e-3, 1.0
    while slope(high) > 0 and high < 1e9:
        high *= 2
    value = brentq(slope, low, high, xtol=1e-10, rtol=1e-12)
    curvature = (logs**2 / (4 * np.sinh(np.minimum(value * logs / 2, 300)) ** 2)).sum()
    information = num_points / value**2 + between * curvature
    return float(value), float(1 / np.sqrt(information))


def mst(table: NeighborTable, *, num_neighbors: int = 20, seed: int = 0) -> IntrinsicDimension:
    """Growth of the minimal spanning tree (Costa & Hero 2004): mean edge length falls as ``n^(-1/d)``.

    The tree is that of the neighbour graph; thinning the points thins the table, so smaller samples cost
    no new distances. Where the thinned graph falls apart the forest's mean edge is used, and counted.

    Args:
        table: Neighbours of the points.
        num_neighbors: Neighbours per point that make the graph.
        seed: Of the thinnings.

    Returns:
        Record whose standard error is the spread over thinnings of this one sample, hence a lower bound.
    """
    convention = (
        f"Costa & Hero 2004, mean edge of the neighbour graph's spanning tree, {MST_DRAWS} thinnings to "
        f"{MST_SHARES[0]:g}..1 of the points; std_error is the spread over thinnings"
    )
    _, good, problem = usable(table, num_neighbors)
    if problem or table.num_points < 4 * num_neighbors:
        reason = problem or f"needs at least {4 * num_neighbors} distinct points, has {table.num_points}"
        return undefined("mst", table, num_neighbors, convention, reason)
    rng = np.random.default_rng(seed)
    full_edge, full_components = _mean_tree_edge(table, num_neighbors, np.ones(table.num_points, bool))
    slopes, components = [], [full_components]
    for _ in range(MST_DRAWS):
        rank = rng.permutation(table.num_points)
        sizes, edges = [float(table.num_points)], [full_edge]
        for share in MST_SHARES:
            size = round(share * table.num_points)
            edge, count = _mean_tree_edge(table, num_neighbors, rank < size)
            sizes, edges, components = [*sizes, float(size)], [*edges, edge], [*components, count]
        slopes.append(np.polyfit(np.log(sizes), np.log(edges), 1)[0])
    mean = float(np.mean(slopes))
    details = {"num_components_max": max(components), "num_thinnings": MST_DRAWS}
    if mean >= 0:
        reason = "edges do not shrink with more points, no finite dimension explains that"
        return undefined("mst", table, num_neighbors, convention, reason)
    return IntrinsicDimension(
        "mst",
        -1 / mean,
        float(np.std(slopes, ddof=1) / mean**2),
        int(good.sum()),
        num_neighbors,
        convention,
        num_dropped=int((~good).sum()),
        details=details,
    )


def _mean_tree_edge(
    table: NeighborTable, num_neighbors: int, members: npt.NDArray[np.bool_]
) -> tuple[float, int]:
    """Mean edge of the spanning forest of the neighbour graph on ``members``, and its number of trees."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import minimum_spanning_tree

    distances, ids = table.distances[:, :num_neighbors], table.indices[:, :num_neighbors]
    rows, places = np.nonzero(np.isfinite(distances) & (distances > 0) & members[:, None] & members[ids])
    columns = ids[rows, places]
    low, high = np.minimum(rows, columns), np.maximum(rows, columns)
    # Both ends may list the same edge: keep it once, for sparse matrices would add the two.
    _, once = np.unique(low * len(members) + high, return_index=True)
    graph = coo_array(
        (distances[rows, places][once], (low[once], high[once])), shape=(len(members),) * 2
    ).tocsr()
    edges = minimum_spanning_tree(graph).data
    return float(edges.mean()), int(members.sum()) - len(edges)


def geomle(table: NeighborTable, *, seed: int = 0) -> IntrinsicDimension:
    """MLE extrapolated to radius zero (Gomtsyan et al. 2019), with the settings of Konz & Mazurowski.

    For each point and each k from 25 to 55 the estimate (normalised by k-1) and the radius are averaged
    over bootstraps of the points; a ridge regression of the estimate on radius and squared radius,
    weighted by 1/spread, gives the point's value at radius zero; the values are averaged.

    Args:
        table: Neighbours of the points, `GEOMLE_TABLE_WIDTH` wide so that bootstraps can thin it.
        seed: Of the bootstraps.

    Returns:
        Record with ``sd/√n`` of the points' values as standard error. Radii are divided by their mean
        before the regression, so that the penalty does not depend on the unit of the pixels.
    """
    convention = (
        f"Gomtsyan et al. 2019, k {GEOMLE_NEIGHBORS[0]}..{GEOMLE_NEIGHBORS[1]}, {GEOMLE_BOOTSTRAPS} "
        f"bootstraps, ridge degree 2, alpha {GEOMLE_ALPHA:g}, radii over their mean; std_error sd/sqrt(n)"
    )
    highest = GEOMLE_NEIGHBORS[1]
    distances, good, problem = usable(table, GEOMLE_TABLE_WIDTH)
    if problem:
        return undefined("geomle", table, highest, convention, problem)
    rng = np.random.default_rng(seed)
    estimates, radii = [], []
    for _ in range(GEOMLE_BOOTSTRAPS):
        present = np.zeros(table.num_points, bool)
        present[rng.integers(0, table.num_points, table.num_points)] = True
        logs = np.log(_surviving(distances[good], table.indices[good, :GEOMLE_TABLE_WIDTH], present, highest))
        ks = range(GEOMLE_NEIGHBORS[0], highest + 1)
        with np.errstate(divide="ignore", invalid="ignore"):
            estimates.append(np.stack([1 / inverse_dimensions(logs, k, 1) for k in ks], axis=1))
        radii.append(np.exp(logs[:, GEOMLE_NEIGHBORS[0] - 1 :]))
    values = _extrapolate(np.stack(estimates), np.stack(radii))
    kept = np.isfinite(values)
    if kept.sum() < 2:
        return undefined("geomle", table, highest, convention, "no point has enough unequal neighbours")
    details: dict[str, Any] = {"num_bootstraps": GEOMLE_BOOTSTRAPS}
    return IntrinsicDimension(
        "geomle",
        float(values[kept].mean()),
        float(values[kept].std(ddof=1) / np.sqrt(kept.sum())),
        int(kept.sum()),
        highest,
        convention,
        num_dropped=int(len(good) - kept.sum()),
        details=details,
    )


def _surviving(
    distances: FloatArray, ids: npt.NDArray[Any], present: npt.NDArray[np.bool_], count: int
) -> FloatArray:
    """Distances to the ``count`` nearest neighbours that are present; NaN rows where there are fewer."""
    alive = present[ids]
    order = np.argsort(~alive, axis=1, kind="stable")[:, :count]  # stable: the present ones stay ascending
    kept = np.take_along_axis(distances, order, axis=1)
    kept[alive.sum(axis=1) < count] = np.nan
    return kept


def _extrapolate(estimates: FloatArray, radii: FloatArray) -> FloatArray:
    """Weighted ridge on radius and its square, per point; the intercept (not penalised) is the result.

    Args:
        estimates: ``(num_bootstraps, num_points, num_ks)``.
        radii: The same shape.

    Returns:
        ``(num_points,)``, NaN where a point has no usable estimates.
    """
    mean, spread, radius = estimates.mean(axis=0), estimates.std(axis=0, ddof=1), radii.mean(axis=0)
    usable_rows = np.isfinite(mean).all(axis=1) & (spread > 0).all(axis=1)
    values = np.full(len(mean), np.nan)
    y, w = mean[usable_rows], 1 / spread[usable_rows]
    if not len(y):
        return values
    w = w / w.sum(axis=1, keepdims=True) * w.shape[1]
    r = radius[usable_rows] / radius[usable_rows].mean()
    x = np.stack([r, r**2], axis=-1)
    x_mean = (w[..., None] * x).sum(axis=1) / w.sum(axis=1)[:, None]
    y_mean = (w * y).sum(axis=1) / w.sum(axis=1)
    xc, yc = x - x_mean[:, None], y - y_mean[:, None]
    gram = np.einsum("nk,nki,nkj->nij", w, xc, xc) + GEOMLE_ALPHA * np.eye(2)
    slope = np.linalg.solve(gram, np.einsum("nk,nki,nk->ni", w, xc, yc)[..., None])[..., 0]
    values[usable_rows] = y_mean - (slope * x_mean).sum(axis=1)
    return values
