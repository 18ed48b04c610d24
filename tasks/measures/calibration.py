"""Bias-corrected intrinsic dimension, by a regression fitted to simulated sets of known dimension.

Neighbour-based estimators fall short when dimension is high for the number of points: 20 neighbours among
1,000 points in 24 dimensions are not close, and half of a cube of that dimension is edge. How far they fall
short depends on the shape as well: at the same dimension and size a sphere, a cube, a Gaussian cloud and a
curled-up sheet give different values. But they also differ in other statistics of the same distances
(`tasks.measures.shape`). So ln d - ln d2, by how much TwoNN falls short, is taken for a polynomial of second
degree in those statistics. ``benchmarks/calibration_fit.py`` fitted it once, to shapes and random maps of 1
to 128 dimensions with 80 to 2,500 points, and wrote it to ``calibration.json``. The interval is as wide as
errors on groups of families that were left out of the fit, and wider where dimension is high and the
statistics disagree.

The embedding does not matter beyond bounding d: statistics of distances do not change when points are moved
isometrically into more pixels.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.measures.dimension import inverse_dimensions
from tasks.measures.distances import (
    BlockSource,
    FloatArray,
    Precision,
    as_source,
    estimate_centre,
    flatten,
    squared_distances,
)
from tasks.measures.shape import NAMES, WIDTH, shape_statistics

# More points than this cost minutes and correct ever less; larger data are thinned to it.
MAX_POINTS = 2500
BLOCK_ROWS = 512
# Above this, values of sets unlike those of the fit are off more often than the level says.
HIGH_DIMENSION = 16
# The most that any set of the fit has.
MOST_DIMENSIONS = 128
# Statistics further than this from their mean over the fitted sets count as no further, and as strange when
# twice as far.
FAR = 3.0
# Errors in ln d are no smaller than this, however well the statistics agree: else some intervals of families
# left out are a few percent wide, and hold two thirds.
LEAST_ERROR = 0.05


@dataclass(frozen=True)
class CalibratedDimension:
    """A bias-corrected estimate.

    Attributes:
        value: Corrected dimension, or None when undefined.
        interval: Central interval of probability ``level``.
        uncorrected: MLE normalised by k-1 on the same points.
        num_points: Points that the correction looked at.
        num_neighbors: k of the uncorrected value.
        level: Probability of the interval.
        families: Weight of each simulated family in records older than the regression, else empty.
        num_simulations: Simulated sets that the correction was fitted to.
        notes: What a reader should know.
        reason: Why ``value`` is None.
    """

    value: float | None
    interval: tuple[float, float] | None
    uncorrected: float | None
    num_points: int
    num_neighbors: int
    level: float
    families: dict[str, float] = field(default_factory=dict)
    num_simulations: int = 0
    notes: tuple[str, ...] = ()
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        record = {key: value for key, value in vars(self).items() if key != "reason"}
        record |= {
            "interval": None if self.interval is None else list(self.interval),
            "notes": list(self.notes),
        }
        return record | ({"reason": self.reason} if self.reason else {})


@dataclass(frozen=True)
class Correction:
    """The fitted regression.

    Attributes:
        mean, deviation: Of each statistic over the fitted sets.
        intercept, coefficients: Of ln d - ln d2 on the standardised statistics, then on products ``i <= j``.
        error: By how much the size of errors in ln d grows with what `disagreement` looks at.
        quantiles: Errors over their size, at even probabilities from 0 to 1.
        num_sets: Sets of the fit.
    """

    mean: FloatArray
    deviation: FloatArray
    intercept: float
    coefficients: FloatArray
    error: FloatArray
    quantiles: FloatArray
    num_sets: int

    def log_dimension(self, statistics: FloatArray) -> FloatArray:
        """Logarithm of d for rows of statistics."""
        corrected: FloatArray = (
            statistics[:, 0] + self.intercept + terms(self.standardised(statistics)) @ self.coefficients
        )
        return corrected

    def standardised(self, statistics: FloatArray) -> FloatArray:
        """Statistics in units of their spread over the fitted sets."""
        return (statistics - self.mean) / self.deviation

    def range(self, statistics: FloatArray, level: float) -> tuple[FloatArray, FloatArray]:
        """Central interval of ln d for rows of statistics."""
        middle = self.log_dimension(statistics)
        size = LEAST_ERROR + disagreement(statistics, middle) @ self.error
        tails = ((1 - level) / 2, (1 + level) / 2)
        low, high = np.interp(tails, np.linspace(0, 1, len(self.quantiles)), self.quantiles)
        return middle + low * size, middle + high * size


def terms(standardised: FloatArray) -> FloatArray:
    """Statistics, none further than `FAR` from the mean, and their products."""
    near = np.clip(standardised, -FAR, FAR)
    one, other = np.triu_indices(near.shape[1])
    return np.concatenate([near, near[:, one] * near[:, other]], axis=1)


def disagreement(statistics: FloatArray, log_dimension: FloatArray) -> FloatArray:
    """What the size of an error may grow with: dimension, and disagreement of the statistics."""
    directions, overall, unequal = (
        statistics[:, NAMES.index(name)] for name in ("directions10 - d2", "directions - 10", "unequal40")
    )
    parts = [np.clip(log_dimension, 0, 5), abs(directions), abs(overall), np.maximum(unequal, 0)]
    return np.stack(parts, axis=1)


@functools.cache
def correction() -> Correction:
    """The regression in ``calibration.json``."""
    text = resources.files("tasks.measures").joinpath("calibration.json").read_text(encoding="utf-8")
    fitted = json.loads(text)
    names = ("mean", "deviation", "coefficients", "error", "quantiles")
    arrays: dict[str, FloatArray] = {name: np.array(fitted[name], float) for name in names}
    return Correction(**arrays, intercept=float(fitted["intercept"]), num_sets=int(fitted["num_sets"]))


def calibrate(
    rows: BlockSource | npt.ArrayLike,
    *,
    num_neighbors: int = 20,
    keep: npt.NDArray[Any] | None = None,
    max_points: int = MAX_POINTS,
    level: float = 0.9,
    precision: Precision | None = None,
    seed: int = 0,
) -> CalibratedDimension:
    """Correct the bias that estimates have on this many points.

    Args:
        rows: ``(num_points, ...)`` array or source, without duplicates among ``keep``.
        num_neighbors: k of the uncorrected MLE that stands beside.
        keep: Rows to use, ascending; all when None.
        max_points: More points than this are thinned at random to it.
        level: Probability of the interval, 90 % as usual for such intervals.
        precision: How products are formed.
        seed: Of thinning and of the draws of the statistics.

    Returns:
        The corrected value. ``docs/measures.md`` has the errors, and how often the interval covers the true
        dimension, on families left out of the fit, on benchmark manifolds and on blind sets. Shapes far from
        every family are covered less often than ``level`` says.
    """
    source = as_source(rows)
    kept = np.arange(source.num_rows) if keep is None else np.asarray(keep)
    rng = np.random.default_rng(seed)
    if len(kept) > max_points:
        kept = np.sort(rng.choice(kept, max_points, replace=False))
    count, least = len(kept), max(4 * num_neighbors, 2 * WIDTH)

    def undefined(reason: str) -> CalibratedDimension:
        return CalibratedDimension(None, None, None, count, num_neighbors, level, reason=reason)

    if count < least:
        return undefined(f"needs at least {least} distinct points, has {count}")
    squared = _all_squared_distances(source, kept, precision or Precision())
    statistics = shape_statistics(squared, rng)
    if statistics is None:
        return undefined("neighbour distances are zero or all equal")
    nearest = np.sort(squared + np.diag(np.full(count, np.inf)), axis=1)[:, :num_neighbors]
    uncorrected = float(1 / inverse_dimensions(0.5 * np.log(nearest), num_neighbors, 1).mean())
    ambient = int(np.prod(source.row_shape))
    fitted = correction()
    logs = [fitted.log_dimension(statistics[None]), *fitted.range(statistics[None], level)]
    # Clipped, not cut off before: data may well fill all their columns.
    value, low, high = (min(float(np.exp(part[0])), float(ambient)) for part in logs)
    return CalibratedDimension(
        value=value,
        interval=(min(low, value), max(high, value)),
        uncorrected=uncorrected,
        num_points=count,
        num_neighbors=num_neighbors,
        level=level,
        num_simulations=fitted.num_sets,
        notes=_notes(value, float(abs(fitted.standardised(statistics[None])).max())),
    )


def _notes(value: float, strangeness: float) -> tuple[str, ...]:
    notes = []
    if strangeness > 2 * FAR:
        notes.append(
            "the distances are unlike those of every simulated family; take the correction with care"
        )
    if value > HIGH_DIMENSION:
        notes.append(
            f"above {HIGH_DIMENSION} dimensions the correction rests on the simulated shapes; "
            "take the interval, not the value"
        )
    if value > MOST_DIMENSIONS:
        notes.append(
            f"no simulated set has more than {MOST_DIMENSIONS} dimensions; how many more, nobody tried"
        )
    return tuple(notes)


def _all_squared_distances(source: BlockSource, kept: npt.NDArray[Any], precision: Precision) -> FloatArray:
    """``(n, n)`` squared distances among the kept rows, a pair of blocks at a time."""
    centre = estimate_centre(source)
    starts = range(0, len(kept), BLOCK_ROWS)
    squared = np.zeros((len(kept), len(kept)))

    def block(start: int) -> npt.NDArray[Any]:
        chosen = kept[start : start + BLOCK_ROWS]
        return np.concatenate([flatten(source.read(int(i), int(i) + 1)) for i in chosen])

    for start in starts:
        ours = block(start)
        inside = slice(start, start + len(ours))
        squared[inside, inside] = squared_distances(ours, None, centre, precision)[0]
        for other in starts:
            if other > start:
                theirs = block(other)
                beside = slice(other, other + len(theirs))
                squared[inside, beside] = squared_distances(ours, theirs, centre, precision)[0]
                squared[beside, inside] = squared[inside, beside].T
    return squared
