"""Bias-corrected intrinsic dimension, by simulating manifolds of known dimension.

If the dimension is high for the number of points, estimates from neighbor distances are too low.
This bias also depends on the shape of the data. Data of different shapes also differ in other
statistics of the distances, so the correction uses these statistics. It has three steps:

1. Compute four statistics of the data. T_k is the distance to the k-th nearest neighbor.

   - ``ln d`` by MLE.
   - The change of ``ln d`` from k/2 to k neighbors.
   - ``ln`` of the spread of ``ln T_k`` over points, relative to its spread at uniform density.
   - ``ln`` of the coefficient of variation of the distances between random pairs.

2. Simulate the same statistics for each family of manifolds, with the same number of points, over a
   grid of dimensions. Between the dimensions of the grid, interpolate the statistics in ln d.
3. Compute a posterior distribution of d by Bayes' rule, with a uniform prior over families and
   ln d. The covariance of the likelihood is the noise of the simulated statistics, plus a factor
   times their spread between families at this dimension. The spread is added because real data
   belong to none of the families. The value is the posterior mean of ln d with the factor
   `VALUE_SPREAD`. The interval is the central part of the posterior with the larger factor
   `INTERVAL_SPREAD`.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.array_types import FloatArray, IntArray
from tasks.measures.distances import (
    BlockSource,
    Precision,
    as_source,
    flatten,
    squared_distances,
)
from tasks.measures.estimators import inverse_dimensions
from tasks.measures.neighbor_tables import NeighborTable
from tasks.measures.neighbors import nested_neighbors
from tasks.measures.plain_json import plain_json
from tasks.remote import Executor, InlineExecutor

Manifold = Callable[[int, int, np.random.Generator], FloatArray]
"""Function that draws points from a number of points, a dimension and a random generator. It
returns ``(num_points, num_columns)``; the shape determines the number of columns."""


def _on_sphere(
    num_points: int,
    dimension: int,
    rng: np.random.Generator,
) -> FloatArray:
    points = rng.normal(size=(num_points, dimension + 1))
    on_sphere: FloatArray = points / np.linalg.norm(points, axis=1, keepdims=True)
    return on_sphere


def _curled(
    num_points: int,
    dimension: int,
    rng: np.random.Generator,
) -> FloatArray:
    angles = 2 * np.pi * rng.random((num_points, dimension))
    radii = np.roll(angles, -1, axis=1)
    return np.concatenate([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def _swiss_roll(
    num_points: int,
    dimension: int,
    rng: np.random.Generator,
) -> FloatArray:
    angle = 1.5 * np.pi * (1 + 2 * rng.random((num_points, 1)))
    flat = 21 * rng.random((num_points, dimension - 1))
    return np.concatenate([angle * np.cos(angle), angle * np.sin(angle), flat], axis=1)


MANIFOLDS: dict[str, Manifold] = {
    # The unit sphere: no edge, constant curvature.
    "hypersphere": _on_sphere,
    # The unit cube: flat. In a high dimension, nearly all points are near an edge.
    "hypercube": lambda num_points, dimension, rng: rng.random((num_points, dimension)),
    # A normal distribution: flat, and dense in the middle.
    "gaussian": lambda num_points, dimension, rng: rng.normal(size=(num_points, dimension)),
    # The unit ball: flat, with one smooth edge.
    "ball": lambda num_points, dimension, rng: (
        _on_sphere(num_points, dimension - 1, rng) * rng.random((num_points, 1)) ** (1 / dimension)
    ),
    # A normal distribution whose standard deviations decrease from 1 to 1/4 over the directions.
    "skewed_gaussian": lambda num_points, dimension, rng: (
        rng.normal(size=(num_points, dimension)) * np.geomspace(1, 0.25, dimension)
    ),
    # Beta(10, 1/2) coordinates, as in Hein & Audibert's benchmark: the density is very uneven.
    "beta_cloud": lambda num_points, dimension, rng: rng.beta(
        10, 0.5, size=(num_points, dimension)
    ),
    # A curved cube whose coordinates are wound around each other, as in Hein & Audibert (2005).
    "curled": _curled,
    # A rolled-up sheet. Above dimension 2 it has further flat directions as wide as the sheet.
    "swiss_roll": _swiss_roll,
}
"""The simulated families, by name."""
FROM_DIMENSION_2 = ("swiss_roll", "ball")
"""Families that do not exist in dimension 1."""

DIMENSIONS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Dimensions that can be simulated."""
NUM_REPEATS = 3
"""Number of simulated samples for each family and dimension."""
LEVEL = 0.9
"""Probability that the interval contains the dimension."""
VALUE_SPREAD = 0.3
"""Factor on the spread between families, for the value. With a small factor the values are best,
but intervals are too narrow for data outside all families. Both factors were chosen on simulated
families that were left out one at a time, and on the benchmark manifolds (docs/measures.md)."""
INTERVAL_SPREAD = 6.0
"""Factor on the spread between families, for the interval."""
INTERPOLATION_ERROR = 0.01
"""Standard deviation of the error of interpolation between grid dimensions, for each statistic."""
MAX_POINTS = 2500
"""Largest number of points to simulate. If the data have more points, this number of them is drawn
at random. More points would take minutes, and the bias is smaller for more points."""
PAIR_ROWS = 256
"""Number of points whose pairwise distances determine the coefficient of variation."""
PAIR_SLICE = 32
"""Number of points that are read at a time for these distances."""
HIGH_DIMENSION = 16
"""Dimension above which a note is added. For data outside all families, intervals above this
dimension miss the true dimension more often than `LEVEL` allows."""
MAX_MISFIT = 13.28
"""Misfit above which a note is added: the 99 % quantile of the chi-square distribution with four
degrees of freedom."""


@dataclass(frozen=True)
class CalibratedDimension:
    """A bias-corrected estimate of the intrinsic dimension.

    Attributes:
        value: The dimension; None if it is undefined.
        interval: Central interval with the probability ``level``.
        uncorrected: The MLE with the divisor k - 1 on the same points.
        num_points: Number of points, in the data and in each simulation.
        num_neighbors: k of the MLE.
        level: Probability of the interval.
        families: Posterior probability of each family of manifolds.
        notes: Remarks for readers.
        reason: Reason why ``value`` is None.
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
        """Return plain JSON; ``reason`` is left out if it is None."""
        return plain_json(vars(self), left_out_if_none=("reason",))


@dataclass(frozen=True)
class Simulations:
    """The statistics of simulated manifolds.

    Attributes:
        families: Names of the families.
        log_dimensions: ``(num_dimensions,)`` grid of ln d.
        statistics: ``(num_families, num_dimensions, num_repeats, 4)``, NaN where a family does not
            exist in a dimension.
    """

    families: tuple[str, ...]
    log_dimensions: FloatArray
    statistics: FloatArray


def calibrate(
    rows: BlockSource | npt.ArrayLike,
    *,
    num_neighbors: int = 20,
    source_rows: IntArray | None = None,
    families: Sequence[str] = tuple(MANIFOLDS),
    executor: Executor | None = None,
    precision: Precision | None = None,
    seed: int = 0,
) -> CalibratedDimension:
    """Return the intrinsic dimension, corrected for the bias of the MLE at this number of points.

    Args:
        rows: ``(num_rows, ...)`` array, or a source.
        num_neighbors: k of the MLE.
        source_rows: Rows to use, ascending, without duplicates; None for all. If there are more
            than ``MAX_POINTS``, this number of rows is drawn at random.
        families: Names of the families to simulate.
        executor: Executor of the simulations; None runs them in this process.
        precision: Precision of the products; None for float32.
        seed: Seed of the random rows and of the simulations.
    """
    executor = executor or InlineExecutor()
    source = as_source(rows)
    if source_rows is None:
        source_rows = np.arange(source.num_rows)
    chosen_rows = np.asarray(source_rows)
    if len(chosen_rows) > MAX_POINTS:
        rng = np.random.default_rng(seed)
        chosen_rows = np.sort(rng.choice(chosen_rows, MAX_POINTS, replace=False))
    num_points = len(chosen_rows)
    undefined = CalibratedDimension(None, None, None, num_points, num_neighbors, LEVEL, {})
    min_points = 4 * num_neighbors
    if num_points < min_points:
        reason = (
            f"the correction needs at least {min_points} distinct points, but there are "
            f"{num_points}"
        )
        return replace(undefined, reason=reason)
    search = nested_neighbors(
        source,
        None,
        [num_points],
        num_neighbors,
        executor=executor,
        precision=precision,
        source_rows=chosen_rows,
    )
    pair_distances = _pair_distances(source, chosen_rows)
    observed = statistics(search.tables[0], pair_distances, num_neighbors)
    if observed is None:
        return replace(undefined, reason="all neighbor distances are zero or equal")
    ambient = int(np.prod(source.row_shape))
    grid = dimension_grid(np.exp(observed[0]), ambient)
    simulations = simulate(num_points, num_neighbors, grid, families, executor=executor, seed=seed)
    return posterior(observed, simulations, num_points, num_neighbors, ambient)


def statistics(
    table: NeighborTable,
    pair_distances: FloatArray,
    num_neighbors: int,
) -> FloatArray | None:
    """Return the four statistics of step 1, ``(4,)``.

    Args:
        table: Neighbors of all points.
        pair_distances: ``(num_pairs,)`` distances of random pairs.
        num_neighbors: k of the MLE.

    Returns:
        None if fewer than two points have only positive distances, or if all distances are equal.
    """
    is_positive = table.distances[:, 0] > 0
    log_distances = np.log(table.distances[is_positive, :num_neighbors])
    if len(log_distances) < 2:
        return None
    inverse_at_half = inverse_dimensions(log_distances, num_neighbors // 2, 1).mean()
    inverse = inverse_dimensions(log_distances, num_neighbors, 1).mean()
    spread = log_distances[:, -1].std()
    variation = pair_distances.std() / pair_distances.mean()
    if min(inverse_at_half, inverse, spread, variation) <= 0:
        return None
    # At uniform density, the standard deviation of ln T_k is about 1 / (d * sqrt(k)).
    # `inverse` is 1 / d.
    relative_spread = spread / inverse * np.sqrt(num_neighbors)
    return np.array(
        [
            -np.log(inverse),
            np.log(inverse_at_half / inverse),
            np.log(relative_spread),
            np.log(variation),
        ]
    )


def simulate(
    num_points: int,
    num_neighbors: int,
    dimensions: Sequence[int],
    families: Sequence[str],
    *,
    executor: Executor,
    seed: int = 0,
) -> Simulations:
    """Simulate the statistics of ``NUM_REPEATS`` samples for every family and dimension."""
    shape = len(families), len(dimensions), NUM_REPEATS
    result = np.full((*shape, 4), np.nan)
    grid_indices = []
    arguments = []
    for grid_index in product(*map(range, shape)):
        family = families[grid_index[0]]
        dimension = dimensions[grid_index[1]]
        if dimension >= 2 or family not in FROM_DIMENSION_2:
            grid_indices.append(grid_index)
            arguments.append((family, dimension, num_points, num_neighbors, [seed, grid_index[2]]))
    for index, values in executor.map_unordered(simulate_one, arguments):
        if values is not None:
            result[grid_indices[index]] = values
    log_dimensions = np.log(np.asarray(dimensions, float))
    return Simulations(tuple(families), log_dimensions, result)


def simulate_one(
    family: str,
    dimension: int,
    num_points: int,
    num_neighbors: int,
    seed: Sequence[int],
) -> FloatArray | None:
    """Return the statistics of one simulated sample.

    The random numbers of a sample do not depend on the other samples.
    """
    family_key = zlib.crc32(family.encode())
    rng = np.random.default_rng([*seed, dimension, family_key])
    source = as_source(MANIFOLDS[family](num_points, dimension, rng))
    table = nested_neighbors(source, None, [num_points], num_neighbors).tables[0]
    return statistics(table, _pair_distances(source, np.arange(num_points)), num_neighbors)


def _pair_distances(source: BlockSource, chosen_rows: IntArray) -> FloatArray:
    """Return all distances between about ``PAIR_ROWS`` of the chosen rows, ``(num_pairs,)``.

    The rows are in slices that are spread over all chosen rows.
    """
    last_start = max(len(chosen_rows) - PAIR_SLICE, 0)
    num_slices = PAIR_ROWS // PAIR_SLICE
    starts = np.unique(np.linspace(0, last_start, num_slices).astype(int))
    slices = [chosen_rows[start : start + PAIR_SLICE] for start in starts]
    source_rows = np.unique(np.concatenate(slices)).tolist()
    single_rows = [source.read(row, row + 1) for row in source_rows]
    rows = flatten(np.concatenate(single_rows))
    center = rows.mean(axis=0, dtype=np.float64)
    squared, _ = squared_distances(rows, None, center, Precision())
    return np.sqrt(squared[np.triu_indices(len(rows), 1)])


def dimension_grid(estimate: float, ambient: int) -> list[int]:
    """Return the dimensions to simulate.

    They range from about half of the raw estimate to the highest dimension that can have this raw
    estimate. The raw estimate is too low by a factor that increases with the dimension (2 at 32, 3
    at 70).

    Args:
        estimate: The raw MLE.
        ambient: Number of columns. The dimension cannot exceed it.
    """
    low = estimate / 2
    high = 3 * estimate + 0.05 * estimate**2
    inside = [dimension for dimension in DIMENSIONS if low <= dimension <= min(high, ambient)]
    lowest = min([*inside, ambient + 1])
    below = [dimension for dimension in DIMENSIONS if dimension < lowest][-1:]
    highest = max([*below, *inside])
    above = [dimension for dimension in DIMENSIONS if dimension > highest][:1]
    return [*below, *inside, *above]


def posterior(
    observed: FloatArray,
    simulations: Simulations,
    num_points: int,
    num_neighbors: int,
    num_columns: int,
) -> CalibratedDimension:
    """Return the corrected dimension for the statistics of the data (step 3).

    Args:
        observed: ``(4,)`` statistics of the data.
        simulations: Statistics of simulated manifolds.
        num_points: Number of points of the data, for the record.
        num_neighbors: k of the MLE, for the record.
        num_columns: Number of columns, which is the upper limit of the value and the interval.
    """
    log_dimensions = simulations.log_dimensions
    grid = np.linspace(log_dimensions[0], log_dimensions[-1], 400)
    curves, noise = _curves(simulations, grid)
    weights, misfit = _weights(observed, curves, noise, VALUE_SPREAD)
    log_value = weights.sum(axis=0) @ grid
    value = min(float(np.exp(log_value)), num_columns)
    interval_weights, _ = _weights(observed, curves, noise, INTERVAL_SPREAD)
    density = interval_weights.sum(axis=0)
    tail = (1 - LEVEL) / 2
    last_percent = density[-4:]  # the last 1 % of the grid
    # The limits are clipped at the end. A grid that stops at ``num_columns`` would be wrong
    # for data that fill all their columns.
    log_ends = np.interp([tail, 1 - tail], density.cumsum(), grid)
    low, high = np.minimum(np.exp(log_ends), num_columns).tolist()
    notes = []
    if misfit > MAX_MISFIT:
        notes.append(
            "The distances do not resemble those of any simulated family, so the corrected "
            "dimension may be wrong."
        )
    if value > HIGH_DIMENSION:
        notes.append(
            f"Above {HIGH_DIMENSION} dimensions, the correction depends on the simulated "
            "shapes. It was too low for images of known dimension, and too high for curved "
            "sheets."
        )
    if last_percent.sum() > tail and grid[-1] < np.log(num_columns):
        notes.append(
            "The interval includes the largest simulated dimension, so the true dimension may "
            "be higher."
        )
    family_weights = weights.sum(axis=1).tolist()
    return CalibratedDimension(
        value=value,
        interval=(min(low, value), max(high, value)),
        uncorrected=float(np.exp(observed[0])),
        num_points=num_points,
        num_neighbors=num_neighbors,
        level=LEVEL,
        families=dict(zip(simulations.families, family_weights, strict=True)),
        notes=tuple(notes),
    )


def _weights(
    observed: FloatArray,
    curves: FloatArray,
    noise: FloatArray,
    spread: float,
) -> tuple[FloatArray, float]:
    """Return the posterior probability of each family and grid value, and the smallest misfit.

    Args:
        observed: ``(4,)`` statistics of the data.
        curves: ``(num_families, num_grid, 4)`` statistics of the families, NaN where a family was
            not simulated.
        noise: ``(4, 4)`` covariance of the statistics of one family.
        spread: Factor on the covariance between families.

    Returns:
        ``(num_families, num_grid)`` probabilities, and the smallest misfit, a chi-square value.
    """
    is_missing = np.asarray(np.isnan(curves).any(axis=2))
    num_present = np.maximum((~is_missing).sum(axis=0), 1)
    centered = np.where(is_missing[..., None], 0, curves)
    centered -= centered.sum(axis=0) / num_present[:, None]
    centered[is_missing] = 0
    # A missing family counts as a family without deviation: the sum is divided by the number
    # of all families.
    between = np.einsum("fgi,fgj->gij", centered, centered) / len(curves)
    covariance = noise + spread * between + INTERPOLATION_ERROR**2 * np.eye(4)
    residual = np.where(is_missing[..., None], 0, observed - curves)
    misfit = np.einsum("fgi,gij,fgj->fg", residual, np.linalg.inv(covariance), residual)
    misfit[is_missing] = np.inf
    log_weights = -0.5 * misfit - 0.5 * np.linalg.slogdet(covariance)[1]
    weights = np.exp(log_weights - log_weights.max())
    return weights / weights.sum(), float(misfit.min())


def _curves(simulations: Simulations, grid: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the mean statistics of each family along the grid, and their noise.

    Args:
        simulations: Statistics over the simulated dimensions.
        grid: ``(num_grid,)`` values of ln d.

    Returns:
        ``(num_families, num_grid, 4)`` means, NaN outside the dimensions of a family, and the
        ``(4, 4)`` covariance of the difference between an observation and a mean.
    """
    samples = simulations.statistics
    num_families, _, num_repeats, _ = samples.shape
    means = samples.mean(axis=2)
    deviations = (samples - means[:, :, None]).reshape(-1, num_repeats, 4)
    is_finite = np.isfinite(deviations).all(axis=(1, 2))
    deviations = deviations[is_finite]
    degrees_of_freedom = max(len(deviations) * (num_repeats - 1), 1)
    noise = np.einsum("nri,nrj->ij", deviations, deviations) / degrees_of_freedom
    # One observation is compared with the mean of all repeats. Both are noisy.
    noise *= 1 + 1 / num_repeats
    curves = np.full((num_families, len(grid), 4), np.nan)
    for curve, mean in zip(curves, means, strict=True):
        is_present = np.isfinite(mean).all(axis=1)
        present_at = simulations.log_dimensions[is_present]
        for column in range(4):
            values = mean[is_present, column]
            curve[:, column] = np.interp(grid, present_at, values, left=np.nan, right=np.nan)
    return curves, noise
