"""Correct the bias of the intrinsic dimension by simulating manifolds of known dimension.

If the dimension is high and there are few points, estimates from neighbor distances are too
low. This bias also depends on the shape of the data. Data of different shapes differ in other
statistics of the distances too, so the correction uses these statistics. The correction has
three steps:

1. Compute four statistics of the data (:func:`shape_statistics`). T_k is the distance to the
   k-th nearest neighbor.

   - ``ln d`` by MLE.
   - The change of ``ln d`` from k/2 to k neighbors.
   - ``ln`` of a ratio. Its numerator is the standard deviation of ``ln T_k`` over points. Its
     denominator is the same number for points with a uniform density.
   - ``ln`` of the coefficient of variation of the distances between random pairs.

2. Simulate the same statistics for each family of manifolds in :mod:`tasks.measures.manifolds`
   (:func:`simulate`). Each simulated sample has as many points as the data. The simulated
   dimensions form a grid. Between two dimensions of the grid, interpolate the statistics
   linearly in ln d.
3. Compute a posterior distribution of d by Bayes' rule
   (:mod:`tasks.measures.dimension_posterior`), with a uniform prior over families and ln d.
   The covariance of the likelihood is a sum. One term is the random noise of the simulated
   statistics. Another term is the covariance of the statistics between families at this
   dimension, times a factor. This term is added because real data belong to none of the
   families. The posterior is computed twice. The value is the exponential of the mean of ln d
   in the posterior with the factor `VALUE_SPREAD`. The interval is the central interval of the
   posterior with the larger factor `INTERVAL_SPREAD`.
"""

from __future__ import annotations

import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.array_types import FloatArray, IntArray
from tasks.measures.dimension_posterior import (
    LEVEL,
    NUM_STATISTICS,
    Posterior,
    Simulations,
    posterior,
)
from tasks.measures.distances import (
    BlockSource,
    Precision,
    as_source,
    flatten,
    squared_distances,
)
from tasks.measures.estimators import inverse_dimensions
from tasks.measures.manifolds import FROM_DIMENSION_2, MANIFOLDS
from tasks.measures.neighbor_tables import NeighborTable
from tasks.measures.neighbors import nested_neighbors
from tasks.measures.plain_json import plain_json
from tasks.remote import Executor, InlineExecutor

DIMENSIONS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""All dimensions that the correction can simulate."""
NUM_REPEATS = 3
"""Number of simulated samples for each family and dimension."""
MAX_POINTS = 2500
"""Largest number of points in a simulation. If the data have more points, this number of
points is drawn from them at random. More points would take minutes. The correction is also
less important for more points, because their bias is smaller."""
PAIR_ROWS = 256
"""Approximate number of points between which all distances are computed, for the coefficient
of variation. The points form slices of consecutive rows."""
PAIR_SLICE = 32
"""Number of consecutive rows in one of these slices."""
HIGH_DIMENSION = 16
"""Dimension above which the result contains a note. If the data belong to none of the
families, intervals above this dimension miss the true dimension more often than `LEVEL`
allows."""
MAX_MISFIT = 13.28
"""Misfit above which the result contains a note. The number is the 99 % quantile of the
chi-square distribution with four degrees of freedom."""


@dataclass(frozen=True)
class CalibratedDimension:
    """A bias-corrected estimate of the intrinsic dimension.

    Attributes:
        value: The dimension; None if it is undefined.
        interval: Central interval that contains the dimension with the probability ``level``;
            None if it is undefined.
        uncorrected: The MLE without correction, with the divisor k - 1, from the same points;
            None if it is undefined.
        num_points: Number of points that are used from the data. Each simulated sample has as
            many points.
        num_neighbors: Number of neighbors k of the MLE.
        level: Probability with which the interval contains the dimension.
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
        """Return plain JSON. If ``reason`` is None, the JSON does not contain it."""
        return plain_json(vars(self), left_out_if_none=("reason",))


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
    """Estimate the intrinsic dimension by MLE, and correct its bias at this number of points.

    Args:
        rows: Array of points, ``(num_rows, ...)``, or a source.
        num_neighbors: Number of neighbors k of the MLE.
        source_rows: Indices of the rows to use, ascending; None for all rows. No two of these
            rows may be equal. If there are more than ``MAX_POINTS`` rows, ``MAX_POINTS`` of
            them are drawn at random.
        families: Names of the families to simulate.
        executor: Executor of the simulations; None runs them in this process.
        precision: Precision of the products; None for float32.
        seed: Seed for drawing rows and for the simulations.
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
    min_points = 4 * num_neighbors
    if num_points < min_points:
        reason = (
            f"the correction needs at least {min_points} distinct points, but there are "
            f"{num_points}"
        )
        return _undefined(num_points, num_neighbors, reason)
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
    observed = shape_statistics(search.tables[0], pair_distances, num_neighbors)
    if observed is None:
        reason = "all neighbor distances are zero or equal"
        return _undefined(num_points, num_neighbors, reason)
    num_columns = int(np.prod(source.row_shape))
    uncorrected = float(np.exp(observed[0]))
    dimensions = dimension_grid(uncorrected, num_columns)
    simulations = simulate(
        num_points, num_neighbors, dimensions, families, executor=executor, seed=seed
    )
    result = posterior(observed, simulations, num_columns)
    return CalibratedDimension(
        value=result.value,
        interval=result.interval,
        uncorrected=uncorrected,
        num_points=num_points,
        num_neighbors=num_neighbors,
        level=LEVEL,
        families=result.family_probabilities,
        notes=_notes(result),
    )


def _undefined(num_points: int, num_neighbors: int, reason: str) -> CalibratedDimension:
    """Return a record without a value. ``reason`` explains why the dimension is undefined."""
    return CalibratedDimension(
        value=None,
        interval=None,
        uncorrected=None,
        num_points=num_points,
        num_neighbors=num_neighbors,
        level=LEVEL,
        families={},
        reason=reason,
    )


def _notes(result: Posterior) -> tuple[str, ...]:
    """Return the notes on a corrected dimension."""
    notes = []
    if result.misfit > MAX_MISFIT:
        notes.append(
            "The distances do not resemble those of any simulated family, so the corrected "
            "dimension may be wrong."
        )
    if result.value > HIGH_DIMENSION:
        notes.append(
            f"Above {HIGH_DIMENSION} dimensions, the correction depends on the simulated shapes. "
            "In our tests, the corrected dimension was too low for images of known dimension, and "
            "too high for curved sheets."
        )
    if result.may_be_higher:
        notes.append(
            "The interval includes the largest simulated dimension, so the true dimension may "
            "be higher."
        )
    return tuple(notes)


def shape_statistics(
    table: NeighborTable,
    pair_distances: FloatArray,
    num_neighbors: int,
) -> FloatArray | None:
    """Return the four statistics of step 1 in the module's docstring, in the same order.

    Args:
        table: Neighbors of all points.
        pair_distances: ``(num_pairs,)`` distances of random pairs.
        num_neighbors: Number of neighbors k of the MLE.

    Returns:
        The statistics, ``(NUM_STATISTICS,)``. None if fewer than two points have only positive
        neighbor distances, or if all distances are equal.
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
    """Simulate ``NUM_REPEATS`` samples of every family and dimension, and return their
    statistics.
    """
    grid_shape = len(families), len(dimensions), NUM_REPEATS
    statistics = np.full((*grid_shape, NUM_STATISTICS), np.nan)
    grid_indices = []
    arguments = []
    for family_index, dimension_index, repeat in np.ndindex(grid_shape):
        family = families[family_index]
        dimension = dimensions[dimension_index]
        if dimension >= 2 or family not in FROM_DIMENSION_2:
            grid_indices.append((family_index, dimension_index, repeat))
            arguments.append((family, dimension, num_points, num_neighbors, [seed, repeat]))
    for index, values in executor.map_unordered(simulate_one, arguments):
        if values is not None:
            statistics[grid_indices[index]] = values
    log_dimensions = np.log(np.asarray(dimensions, float))
    return Simulations(tuple(families), log_dimensions, statistics)


def simulate_one(
    family: str,
    dimension: int,
    num_points: int,
    num_neighbors: int,
    seed: Sequence[int],
) -> FloatArray | None:
    """Simulate one sample, and return its statistics.

    The random numbers of a sample do not depend on the other samples.
    """
    family_key = zlib.crc32(family.encode())
    rng = np.random.default_rng([*seed, dimension, family_key])
    source = as_source(MANIFOLDS[family](num_points, dimension, rng))
    table = nested_neighbors(source, None, [num_points], num_neighbors).tables[0]
    return shape_statistics(table, _pair_distances(source, np.arange(num_points)), num_neighbors)


def _pair_distances(source: BlockSource, chosen_rows: IntArray) -> FloatArray:
    """Return the distances of all pairs of about ``PAIR_ROWS`` chosen rows, ``(num_pairs,)``.

    The rows form slices of `PAIR_SLICE` consecutive rows. The slices are evenly distributed
    over ``chosen_rows``.
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


def dimension_grid(uncorrected: float, num_columns: int) -> list[int]:
    """Return the dimensions to simulate.

    The grid contains all dimensions that may be the true dimension, and one more dimension on
    each side. The uncorrected dimension is too low by a factor that increases with the
    dimension. This factor is about 2 at dimension 32, and 3 at dimension 70. The grid also
    allows for a larger factor.

    Args:
        uncorrected: The uncorrected dimension, by MLE.
        num_columns: Number of columns of the data. The dimension cannot be larger.
    """
    low = uncorrected / 2
    high = max(3 * uncorrected + 0.05 * uncorrected**2, 1)
    stop = bisect_right(DIMENSIONS, min(high, num_columns))
    start = min(bisect_left(DIMENSIONS, low), stop)
    return list(DIMENSIONS[max(start - 1, 0) : stop + 1])
