"""What distances tell of a set's shape, besides its dimension: the statistics that calibration corrects by.

Ratios of neighbours' distances fall short where most of a set is edge, and more so the higher its dimension.
The directions in which neighbours lie do not: for differences of neighbours, u = y1 - y2 and v = y3 - y4,
E (u·v)² / (E |u|²)² = tr C² / (tr C)² is one over the number of directions in which they spread, without bias
from how few they are. That number is too high on curved sets, where neighbours leave the tangent plane, and
too low where directions matter unequally. How both change with scale, and the next moment tr C³, tell one
from the other. Inner products of differences are sums of squared distances, so no coordinates are needed.
"""

from __future__ import annotations

import numpy as np

from tasks.measures.dimension import inverse_dimensions
from tasks.measures.distances import FloatArray
from tasks.measures.partials import IntArray

#: Neighbours that are looked at; a set needs twice as many points.
WIDTH = 40
ROWS, SETS, PAIR_ROWS = 500, 300, 400
NAMES = (
    "d2", "d5 - d2", "d20 - d2", "d40 - d20", "spread", "variation", "skewness", "nearest",
    "near20 - nearest", "directions10 - d2", "directions20 - 10", "directions40 - 10",
    "directions - 10", "directions4 - 10",
    "one-sidedness", "hubs", "skewness of hubs", "outside is sparse", "unequal20", "unequal40", "unequal",
    "size", "scatter of angles", "d2 + 2 variation",
)  # fmt: skip


def shape_statistics(squared: FloatArray, rng: np.random.Generator) -> FloatArray | None:
    """Statistics by the names of `NAMES`, the first of them TwoNN's ln d, or None where they have no meaning.

    Args:
        squared: ``(n, n)`` squared distances, n at least twice `WIDTH`.
        rng: Draws of points and of neighbours.
    """
    count = len(squared)
    away = squared + np.diag(np.full(count, np.inf))
    near = np.argpartition(away, WIDTH, axis=1)[:, :WIDTH]
    order = np.argsort(np.take_along_axis(away, near, 1), axis=1, kind="stable")
    near = np.take_along_axis(near, order, 1)
    nearest = np.take_along_axis(away, near, 1)
    if nearest.min() <= 0:
        return None
    logs = 0.5 * np.log(nearest)
    inverse = {k: float(inverse_dimensions(logs, k, 1).mean()) for k in (2, 5, 20, WIDTH)}
    if min(inverse.values()) <= 1e-9 or logs[:, 19].std() <= 1e-9:
        return None
    d2, d5, d20, d40 = (-np.log(value) for value in inverse.values())
    chosen = rng.choice(count, min(count, PAIR_ROWS), replace=False)
    pairs = np.sqrt(squared[np.ix_(chosen, chosen)][np.triu_indices(len(chosen), 1)])
    variation = np.log(pairs.std() / pairs.mean())
    skewness = ((pairs - pairs.mean()) ** 3).mean() / pairs.std() ** 3
    middle = np.log(pairs).mean()
    rows = rng.choice(count, min(count, ROWS), replace=False)
    local = {k: _directions(squared, near[rows, :k], rng) for k in (10, 20, WIDTH)}
    whole = np.stack([rng.choice(count, WIDTH, replace=False) for _ in range(SETS)])
    overall = _directions(squared, whole, rng)
    cosines = _cosines(squared, rows, near[rows, :20], rng)
    closest = _directions(squared, near[rows, :4], rng)
    degrees = np.bincount(near[:, :20].ravel(), minlength=count)
    centre = squared.mean(axis=1) - squared.mean() / 2
    outside = np.corrcoef(0.5 * np.log(np.maximum(centre, 1e-300)), logs[:, 19])[0, 1]
    found = [
        d2, d5 - d2, d20 - d2, d40 - d20,
        np.log(logs[:, 19].std() / inverse[20] * 20**0.5), variation, skewness,
        logs[:, 0].mean() - middle, (logs[:, 19] - logs[:, 0]).mean(),
        local[10] - d2, local[20] - local[10], local[40] - local[10],
        overall - local[10], closest - local[10],
        cosines.mean(), np.log(degrees.std() / 20**0.5), ((degrees - 20.0) ** 3).mean() / degrees.std() ** 3,
        outside, _unequal(squared, near[rows, :20], rng, 12),
        _unequal(squared, near[rows], rng, 8), _unequal(squared, whole, rng, 12), np.log(count),
        np.log(cosines.var()) + local[20], d2 + 2 * variation,
    ]  # fmt: skip
    statistics = np.array(found, float)
    return statistics if np.isfinite(statistics).all() else None


def _drawn(groups: IntArray, size: int, rng: np.random.Generator) -> list[IntArray]:
    """``size`` members at a time of every group, without repetition: arrays ``(num_groups, draws)``."""
    width = groups.shape[1] // size * size
    parts = rng.permuted(groups, axis=1)[:, :width].reshape(len(groups), -1, size)
    return [parts[..., i] for i in range(size)]


def _inner(squared: FloatArray, a: IntArray, b: IntArray, c: IntArray, d: IntArray) -> FloatArray:
    """Inner products ``(a - b)·(c - d)``."""
    product: FloatArray = 0.5 * (squared[a, d] + squared[b, c] - squared[a, c] - squared[b, d])
    return product


def _directions(squared: FloatArray, groups: IntArray, rng: np.random.Generator) -> float:
    """Log of (tr C)² / tr C², the number of directions in which the members of a group spread."""
    products, lengths = [], []
    for _ in range(3):
        a, b, c, d = _drawn(groups, 4, rng)
        for one, two, three, four in ((a, b, c, d), (a, c, b, d), (a, d, b, c)):
            products.append(_inner(squared, one, two, three, four) ** 2)
            lengths += [squared[one, two], squared[three, four]]
    size = np.concatenate(lengths, axis=1).mean(axis=1)
    return -float(np.log((np.concatenate(products, axis=1).mean(axis=1) / size**2).mean()))


def _unequal(squared: FloatArray, groups: IntArray, rng: np.random.Generator, rounds: int) -> float:
    """Log of tr C³ tr C / (tr C²)²: 0 where all directions matter alike; less than ln 1/2 is noise."""
    third, second, first = [], [], []
    for _ in range(rounds):
        a, b, c, d, e, f = _drawn(groups, 6, rng)
        one, two, three = (_inner(squared, *four) for four in ((a, b, c, d), (c, d, e, f), (e, f, a, b)))
        third.append(one * two * three)
        second.append((one**2 + two**2 + three**2) / 3)
        first.append((squared[a, b] + squared[c, d] + squared[e, f]) / 3)
    c3, c2, c1 = (np.concatenate(parts, axis=1).mean(axis=1) for parts in (third, second, first))
    return float(np.log(max((c3 / c1**3).mean() / (c2 / c1**2).mean() ** 2, 0.5)))


def _cosines(squared: FloatArray, rows: IntArray, near: IntArray, rng: np.random.Generator) -> FloatArray:
    """Cosines between the directions from a point to pairs of its neighbours."""
    other = rng.permuted(near, axis=1)
    one, two = squared[rows[:, None], near], squared[rows[:, None], other]
    cosines = (one + two - squared[near, other]) / (2 * np.sqrt(one * two))
    different: FloatArray = cosines[near != other]
    return different
