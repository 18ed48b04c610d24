"""Bias-corrected intrinsic dimension, by simulating manifolds of known dimension at the user's
sample size.

Neighbour-based estimators fall short when dimension is high for the number of points, by how much
depends on the shape as well; but shapes also differ in other statistics of the same distances. So:

1. Four statistics are taken from the data: ``ln d`` by MLE, its change from k/2 to k neighbours,
   the spread of ``ln T_k`` over points in units of what even density would give, and the
   coefficient of variation of distances between random pairs.
2. The same statistics are simulated for each family of manifolds over a grid of dimensions, with as
   many points; between grid values they are interpolated in ln d.
3. Bayes' rule with even prior over families and ln d gives a distribution over d. Its covariance
   holds the noise of simulated statistics plus a part of their spread between families at that
   dimension, because real data are in none of the families: `VALUE_SPREAD` of it for the value, the
   distribution's mean in ln d, and the more cautious `INTERVAL_SPREAD` for the interval, its
   central part.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.measures.distances import (
    BlockSource,
    FloatArray,
    Precision,
    as_source,
    flatten,
    squared_distances,
)
from tasks.measures.estimators import inverse_dimensions
from tasks.measures.neighbors import NeighborTable, nested_neighbors
from tasks.remote import Executor, InlineExecutor

Points = npt.NDArray[np.float64]


def _on_sphere(num_points: int, dimension: int, rng: np.random.Generator) -> Points:
    points = rng.normal(size=(num_points, dimension + 1))
    on_sphere: Points = points / np.linalg.norm(points, axis=1, keepdims=True)
    return on_sphere


def _curled(num_points: int, dimension: int, rng: np.random.Generator) -> Points:
    angles = 2 * np.pi * rng.random((num_points, dimension))
    radii = np.roll(angles, -1, axis=1)
    return np.concatenate([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def _swiss_roll(num_points: int, dimension: int, rng: np.random.Generator) -> Points:
    angle = 1.5 * np.pi * (1 + 2 * rng.random((num_points, 1)))
    flat = 21 * rng.random((num_points, dimension - 1))
    return np.concatenate([angle * np.cos(angle), angle * np.sin(angle), flat], axis=1)


MANIFOLDS: dict[str, Callable[[int, int, np.random.Generator], Points]] = {
    # No edge, constant curvature: the unit sphere of that dimension.
    "hypersphere": _on_sphere,
    # Flat, and in high dimension nearly all of it is edge.
    "hypercube": lambda num_points, dimension, rng: rng.random((num_points, dimension)),
    # Flat, dense in the middle.
    "gaussian": lambda num_points, dimension, rng: rng.normal(size=(num_points, dimension)),
    # Flat, one smooth edge.
    "ball": lambda num_points, dimension, rng: (
        _on_sphere(num_points, dimension - 1, rng) * rng.random((num_points, 1)) ** (1 / dimension)
    ),
    # Standard deviations falling from 1 to 1/4: directions that matter more than others.
    "skewed_gaussian": lambda num_points, dimension, rng: (
        rng.normal(size=(num_points, dimension)) * np.geomspace(1, 0.25, dimension)
    ),
    # Beta(10, 1/2) coordinates, as in Hein & Audibert's benchmark: strongly uneven density.
    "beta_cloud": lambda num_points, dimension, rng: rng.beta(
        10, 0.5, size=(num_points, dimension)
    ),
    # A curved cube, coordinates wound around each other, as in Hein & Audibert (2005).
    "curled": _curled,
    # A rolled-up sheet; above dimension 2 with further flat directions of the sheet's width.
    "swiss_roll": _swiss_roll,
}
"""Generators of float64 points of known dimension, in as many columns as the shape needs."""
FROM_DIMENSION_2 = ("swiss_roll", "ball")

DIMENSIONS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
NUM_REPEATS = 3
# Probability of the interval.
LEVEL = 0.9
# Chosen on simulated families left out one at a time and on the benchmark manifolds, see
# docs/measures.md: a small part makes the best values, but intervals that are too sure of shapes
# they have not seen.
VALUE_SPREAD = 0.3
INTERVAL_SPREAD = 6.0
# Of interpolation between grid dimensions.
INTERPOLATION_ERROR = 0.01
# Larger data are thinned to this: simulating more points costs minutes and corrects ever less.
MAX_POINTS = 2500
NUM_PAIR_ROWS = 256
# Above this, values and intervals of sets outside all families are off more often than the level
# says.
HIGH_DIMENSION = 16
# 99 % point of chi-square with four degrees of freedom.
MISFIT = 13.28


@dataclass(frozen=True)
class CalibratedDimension:
    """A bias-corrected estimate, None where undefined for ``reason``.

    Attributes:
        interval: Central interval of probability ``level``.
        uncorrected: MLE normalised by k-1 on the same points.
        num_points: Points that the correction looked at, and that each simulation had.
        families: Weight of each family of manifolds.
        notes: What a reader should know.
    """

    value: float | None
    interval: tuple[float, float] | None
    uncorrected: float | None
    num_points: int
    num_neighbors: int
    level: float
    families: dict[str, float]
    notes: tuple[str, ...] = ()
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        record = {key: value for key, value in vars(self).items() if key != "reason"}
        interval = None if self.interval is None else list(self.interval)
        record |= {"interval": interval, "notes": list(self.notes)}
        return record | ({"reason": self.reason} if self.reason else {})


@dataclass(frozen=True)
class Simulations:
    """Statistics of simulated manifolds, ``(num_families, num_dimensions, num_repeats, 4)``, over a
    grid of ln d (num_dimensions,); NaN where a family has no such dimension.
    """

    families: tuple[str, ...]
    log_dimensions: FloatArray
    statistics: FloatArray


def calibrate(
    rows: BlockSource | npt.ArrayLike,
    *,
    num_neighbors: int = 20,
    keep: npt.NDArray[Any] | None = None,
    families: Sequence[str] = tuple(MANIFOLDS),
    executor: Executor | None = None,
    precision: Precision | None = None,
    seed: int = 0,
) -> CalibratedDimension:
    """Correct the MLE for the bias it has on this many points.

    Args:
        rows: ``(num_points, ...)`` array or source, without duplicates among ``keep``.
        num_neighbors: k of the MLE.
        keep: Rows to use, ascending; all when None. More than ``MAX_POINTS`` are thinned at random
            to it.
        families: Of ``MANIFOLDS``, to simulate.
        executor: Where simulations run; in this process when None.
        precision: How products are formed.
        seed: Of thinning and simulations.
    """
    source = as_source(rows)
    kept = np.arange(source.num_rows) if keep is None else np.asarray(keep)
    if len(kept) > MAX_POINTS:
        kept = np.sort(np.random.default_rng(seed).choice(kept, MAX_POINTS, replace=False))
    num_points = len(kept)
    undefined = CalibratedDimension(None, None, None, num_points, num_neighbors, LEVEL, {})
    if num_points < 4 * num_neighbors:
        reason = f"needs at least {4 * num_neighbors} distinct points, has {num_points}"
        return replace(undefined, reason=reason)
    executor, how_many = executor or InlineExecutor(), (num_points, num_neighbors)
    how: dict[str, Any] = {"executor": executor, "precision": precision, "keep": kept}
    search = nested_neighbors(source, None, [num_points], num_neighbors, **how)
    observed = statistics(search.tables[0], _pair_distances(source, kept), num_neighbors)
    if observed is None:
        return replace(undefined, reason="neighbour distances are zero or all equal")
    ambient = int(np.prod(source.row_shape))
    grid = dimension_grid(np.exp(observed[0]), ambient)
    simulations = simulate(*how_many, grid, families, executor=executor, seed=seed)
    return posterior(observed, simulations, *how_many, ambient)


def statistics(
    table: NeighborTable, pair_distances: FloatArray, num_neighbors: int
) -> FloatArray | None:
    """The four statistics of step 1, or None where a distance is zero or all are equal."""
    good = table.distances[:, 0] > 0
    logs = np.log(table.distances[good, :num_neighbors])
    if len(logs) < 2:
        return None
    near, far = (inverse_dimensions(logs, k, 1).mean() for k in (num_neighbors // 2, num_neighbors))
    spread, variation = logs[:, -1].std(), pair_distances.std() / pair_distances.mean()
    if min(near, far, spread, variation) <= 0:
        return None
    evenness = np.log(spread / far * np.sqrt(num_neighbors))
    return np.array([-np.log(far), np.log(near / far), evenness, np.log(variation)])


def simulate(
    num_points: int,
    num_neighbors: int,
    dimensions: Sequence[int],
    families: Sequence[str],
    *,
    executor: Executor,
    seed: int = 0,
) -> Simulations:
    """Statistics of every family at every dimension, ``NUM_REPEATS`` samples each."""
    cells = [
        (f, d, r)
        for f, family in enumerate(families)
        for d, dimension in enumerate(dimensions)
        for r in range(NUM_REPEATS)
        if dimension >= 2 or family not in FROM_DIMENSION_2
    ]
    arguments = [
        (families[f], dimensions[d], num_points, num_neighbors, [seed, r]) for f, d, r in cells
    ]
    result = np.full((len(families), len(dimensions), NUM_REPEATS, 4), np.nan)
    for index, values in executor.map_unordered(simulate_one, arguments):
        if values is not None:
            result[cells[index]] = values
    return Simulations(tuple(families), np.log(np.asarray(dimensions, float)), result)


def simulate_one(
    family: str, dimension: int, num_points: int, num_neighbors: int, seed: Sequence[int]
) -> FloatArray | None:
    """Statistics of one simulated sample; each has its own stream, whatever else is simulated
    beside it.
    """
    rng = np.random.default_rng([*seed, dimension, zlib.crc32(family.encode())])
    source = as_source(MANIFOLDS[family](num_points, dimension, rng))
    table = nested_neighbors(source, None, [num_points], num_neighbors).tables[0]
    return statistics(table, _pair_distances(source, np.arange(num_points)), num_neighbors)


def _pair_distances(source: BlockSource, kept: npt.NDArray[Any]) -> FloatArray:
    """All distances among a few rows, read as slices spread over the data."""
    starts = np.unique(np.linspace(0, max(len(kept) - 32, 0), NUM_PAIR_ROWS // 32).astype(int))
    chosen = np.unique(np.concatenate([np.arange(s, min(s + 32, len(kept))) for s in starts]))
    rows = np.concatenate([flatten(source.read(int(kept[i]), int(kept[i]) + 1)) for i in chosen])
    squared, _ = squared_distances(rows, None, rows.mean(axis=0, dtype=np.float64), Precision())
    return np.sqrt(squared[np.triu_indices(len(rows), 1)])


def dimension_grid(estimate: float, ambient: int) -> list[int]:
    """Dimensions worth simulating: from well below the raw estimate to where it could have come
    from.
    """
    # The raw value falls short by up to a factor that grows with dimension (2 at 32, 3 at 70).
    low, high = estimate / 2, 3 * estimate + 0.05 * estimate**2
    inside = [d for d in DIMENSIONS if low <= d <= high and d <= ambient]
    below = [d for d in DIMENSIONS if d < min([*inside, ambient + 1])][-1:]
    above = [d for d in DIMENSIONS if d > max([*inside, *below])][:1]
    return [*below, *inside, *above]


def posterior(
    observed: FloatArray,
    simulations: Simulations,
    num_points: int,
    num_neighbors: int,
    ambient: int,
) -> CalibratedDimension:
    """Step 3: distribution over families and ln d given the observed statistics."""
    grid = np.linspace(simulations.log_dimensions[0], simulations.log_dimensions[-1], 400)
    curves, noise = _curves(simulations, grid)
    weight, misfit = _weights(observed, curves, noise, VALUE_SPREAD)
    value = min(float(np.exp(weight.sum(axis=0) @ grid)), ambient)
    density = _weights(observed, curves, noise, INTERVAL_SPREAD)[0].sum(axis=0)
    tail = (1 - LEVEL) / 2
    # Clipped, not cut off before: data may well fill all their columns.
    low, high = np.minimum(np.exp(np.interp([tail, 1 - tail], density.cumsum(), grid)), ambient)
    notes = []
    if misfit > MISFIT:
        notes.append("the distances are unlike those of every simulated family: take it with care")
    if value > HIGH_DIMENSION:
        notes.append(
            f"above {HIGH_DIMENSION} dimensions the correction rests on the simulated shapes: on "
            "images of "
            "known dimension it was too low, on curved sheets too high"
        )
    if density[-4:].sum() > tail and grid[-1] < np.log(ambient):
        notes.append(
            "the interval reaches the largest simulated dimension; the true one may be higher"
        )
    return CalibratedDimension(
        value=value,
        interval=(min(float(low), value), max(float(high), value)),
        uncorrected=float(np.exp(observed[0])),
        num_points=num_points,
        num_neighbors=num_neighbors,
        level=LEVEL,
        families=dict(zip(simulations.families, weight.sum(axis=1).tolist(), strict=True)),
        notes=tuple(notes),
    )


def _weights(
    observed: FloatArray, curves: FloatArray, noise: FloatArray, spread: float
) -> tuple[FloatArray, float]:
    """Probability of each family and grid value, ``(num_families, len(grid))``, and the smallest
    misfit.
    """
    missing: npt.NDArray[np.bool_] = np.asarray(np.isnan(curves).any(axis=2))
    centred = np.where(missing[..., None], 0, curves)
    centred -= centred.sum(axis=0) / np.maximum((~missing).sum(axis=0), 1)[:, None]
    centred[missing] = 0
    between = np.einsum("fgi,fgj->gij", centred, centred) / len(curves)
    covariance = noise + spread * between + INTERPOLATION_ERROR**2 * np.eye(4)
    residual = np.where(missing[..., None], 0, observed - curves)
    misfit = np.einsum("fgi,gij,fgj->fg", residual, np.linalg.inv(covariance), residual)
    misfit[missing] = np.inf
    log_weight = -0.5 * misfit - 0.5 * np.linalg.slogdet(covariance)[1]
    weight = np.exp(log_weight - log_weight.max())
    return weight / weight.sum(), float(misfit.min())


def _curves(simulations: Simulations, grid: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Mean statistics of each family along the grid, ``(num_families, len(grid), 4)``, and their
    noise.
    """
    values = simulations.statistics
    means = values.mean(axis=2)
    deviations = (values - means[:, :, None]).reshape(-1, values.shape[2], 4)
    deviations = deviations[np.isfinite(deviations).all(axis=(1, 2))]
    repeats = values.shape[2]
    # What is compared is one observation with a mean of `repeats`: both are noisy.
    noise = np.einsum("nri,nrj->ij", deviations, deviations) / max(
        len(deviations) * (repeats - 1), 1
    )
    noise *= 1 + 1 / repeats
    curves = np.full((len(values), len(grid), 4), np.nan)
    for family, mean in enumerate(means):
        known = np.isfinite(mean).all(axis=1)
        for column in range(4):
            curves[family, :, column] = np.interp(
                grid,
                simulations.log_dimensions[known],
                mean[known, column],
                left=np.nan,
                right=np.nan,
            )
    return curves, noise
