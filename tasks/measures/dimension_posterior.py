"""Compute the posterior distribution of an intrinsic dimension from simulated statistics.

This module is step 3 of :mod:`tasks.measures.calibration`. For every family of manifolds, it
computes the posterior probability of each value of ln d on a fine grid:

1. :func:`_interpolate` computes the mean statistics of each family at each value of the grid.
2. :func:`_probabilities` compares these means with the statistics of the data by a normal
   likelihood. The prior is uniform over families and ln d, so the posterior probabilities are
   proportional to the likelihoods.
3. :func:`posterior` summarizes the posterior distribution by a value and an interval.

In the einsum expressions, ``f`` is the axis of families, ``g`` the axis of grid values, ``r``
the axis of repeats, and ``n`` the axis of pairs of a family and a dimension. ``i`` and ``j``
are axes of statistics.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tasks.array_types import BoolArray, FloatArray

NUM_STATISTICS = 4
"""Number of statistics of a dataset, see
:func:`tasks.measures.calibration.shape_statistics`."""
NUM_GRID = 400
"""Number of values of ln d at which the posterior distribution is computed."""
NUM_END = 4
"""Number of values at the upper end of the grid, 1 % of :data:`NUM_GRID`. If these values have
too much posterior probability, the dimension may be above the grid."""
LEVEL = 0.9
"""Probability that the interval contains the dimension."""
VALUE_SPREAD = 0.3
"""Factor on the covariance between families when the value is computed. With a small factor,
values are most accurate, but intervals would be too narrow for data that belong to none of the
families. This factor and `INTERVAL_SPREAD` were chosen with simulated families that were left
out one at a time, and with the benchmark manifolds (docs/measures.md)."""
INTERVAL_SPREAD = 6.0
"""Factor on the covariance between families when the interval is computed."""
INTERPOLATION_ERROR = 0.01
"""Standard deviation of the interpolation error between two simulated dimensions, for each
statistic."""


@dataclass(frozen=True)
class Simulations:
    """The statistics of simulated manifolds.

    Attributes:
        families: Names of the families.
        log_dimensions: ``(num_dimensions,)`` logarithms of the simulated dimensions.
        statistics: ``(num_families, num_dimensions, num_repeats, NUM_STATISTICS)`` statistics
            of each sample; NaN if a family does not exist in a dimension.
    """

    families: tuple[str, ...]
    log_dimensions: FloatArray
    statistics: FloatArray


@dataclass(frozen=True)
class Posterior:
    """The posterior distribution of an intrinsic dimension.

    Attributes:
        value: Exponential of the posterior mean of ln d. It is at most the number of columns
            of the data.
        interval: Central interval that contains the dimension with the probability ``LEVEL``.
            The interval always includes ``value``.
        family_probabilities: Posterior probability of each family. The keys are the names of
            the families.
        misfit: Smallest difference between the data and any family at any dimension, as a
            chi-square value.
        may_be_higher: True if the interval reaches the largest simulated dimension and the
            data have more columns than this dimension.
    """

    value: float
    interval: tuple[float, float]
    family_probabilities: dict[str, float]
    misfit: float
    may_be_higher: bool


def posterior(observed: FloatArray, simulations: Simulations, num_columns: int) -> Posterior:
    """Return the posterior distribution of the dimension, given the statistics of the data.

    Args:
        observed: ``(NUM_STATISTICS,)`` statistics of the data.
        simulations: Statistics of simulated manifolds.
        num_columns: Number of columns of the data. The value and the interval are at most this
            number.
    """
    log_dimensions = simulations.log_dimensions
    grid = np.linspace(log_dimensions[0], log_dimensions[-1], NUM_GRID)
    curves = _interpolate(simulations, grid)
    noise = _noise(simulations)
    value_probabilities, misfit = _probabilities(observed, curves, noise, VALUE_SPREAD)
    mean_log_dimension = value_probabilities.sum(axis=0) @ grid
    value = min(float(np.exp(mean_log_dimension)), num_columns)
    interval_probabilities, _ = _probabilities(observed, curves, noise, INTERVAL_SPREAD)
    density = interval_probabilities.sum(axis=0)
    tail = (1 - LEVEL) / 2
    # The limits of the interval are clipped here. The grid does not end at ``num_columns``,
    # because this would be wrong for data whose dimension is their number of columns.
    log_limits = np.interp([tail, 1 - tail], density.cumsum(), grid)
    low, high = np.minimum(np.exp(log_limits), num_columns).tolist()
    is_cut_off = density[-NUM_END:].sum() > tail
    family_probabilities = value_probabilities.sum(axis=1).tolist()
    return Posterior(
        value=value,
        interval=(min(low, value), max(high, value)),
        family_probabilities=dict(zip(simulations.families, family_probabilities, strict=True)),
        misfit=misfit,
        may_be_higher=bool(is_cut_off and grid[-1] < np.log(num_columns)),
    )


def _probabilities(
    observed: FloatArray, curves: FloatArray, noise: FloatArray, spread_factor: float
) -> tuple[FloatArray, float]:
    """Return the posterior probability of each family and grid value, and the smallest misfit.

    Args:
        observed: ``(NUM_STATISTICS,)`` statistics of the data.
        curves: ``(num_families, NUM_GRID, NUM_STATISTICS)`` means of the families; NaN at
            values at which a family was not simulated.
        noise: ``(NUM_STATISTICS, NUM_STATISTICS)`` covariance, see :func:`_noise`.
        spread_factor: Factor on the covariance between families.

    Returns:
        ``(num_families, NUM_GRID)`` probabilities, and the smallest misfit as a chi-square
        value.
    """
    is_missing = np.asarray(np.isnan(curves).any(axis=2))
    between = _covariance_between_families(curves, is_missing)
    interpolation = INTERPOLATION_ERROR**2 * np.eye(NUM_STATISTICS)
    covariance = noise + spread_factor * between + interpolation
    residual = np.where(is_missing[..., None], 0, observed - curves)
    misfit = np.einsum("fgi,gij,fgj->fg", residual, np.linalg.inv(covariance), residual)
    misfit[is_missing] = np.inf
    # This is the logarithm of a normal density without its constant.
    log_likelihood = -0.5 * misfit - 0.5 * np.linalg.slogdet(covariance)[1]
    likelihood = np.exp(log_likelihood - log_likelihood.max())
    return likelihood / likelihood.sum(), float(misfit.min())


def _covariance_between_families(curves: FloatArray, is_missing: BoolArray) -> FloatArray:
    """Return the covariance of the families' means at each grid value.

    Args:
        curves: ``(num_families, NUM_GRID, NUM_STATISTICS)`` means of the families.
        is_missing: ``(num_families, NUM_GRID)``, True if a family was not simulated at a grid
            value.

    Returns:
        ``(NUM_GRID, NUM_STATISTICS, NUM_STATISTICS)`` covariances.
    """
    num_present = np.maximum((~is_missing).sum(axis=0), 1)
    deviations = np.where(is_missing[..., None], 0, curves)
    deviations -= deviations.sum(axis=0) / num_present[:, None]
    deviations[is_missing] = 0
    # A missing family counts as a family whose statistics are the mean, so the divisor is the
    # number of all families.
    covariances: FloatArray = np.einsum("fgi,fgj->gij", deviations, deviations) / len(curves)
    return covariances


def _interpolate(simulations: Simulations, grid: FloatArray) -> FloatArray:
    """Return the mean statistics of each family, interpolated in ln d.

    Args:
        simulations: Statistics at the simulated dimensions.
        grid: ``(NUM_GRID,)`` values of ln d.

    Returns:
        ``(num_families, NUM_GRID, NUM_STATISTICS)`` means; NaN outside the range of dimensions
        in which a family exists.
    """
    means = simulations.statistics.mean(axis=2)
    curves = np.full((len(means), len(grid), NUM_STATISTICS), np.nan)
    for curve, mean in zip(curves, means, strict=True):
        is_present = np.isfinite(mean).all(axis=1)
        present_at = simulations.log_dimensions[is_present]
        for column in range(NUM_STATISTICS):
            values = mean[is_present, column]
            curve[:, column] = np.interp(grid, present_at, values, left=np.nan, right=np.nan)
    return curves


def _noise(simulations: Simulations) -> FloatArray:
    """Return the noise covariance of the difference between the data and a simulated mean.

    The covariance ``(NUM_STATISTICS, NUM_STATISTICS)`` is estimated from the differences
    between repeats, pooled over all families and dimensions.
    """
    samples = simulations.statistics
    num_repeats = samples.shape[2]
    means = samples.mean(axis=2, keepdims=True)
    deviations = (samples - means).reshape(-1, num_repeats, NUM_STATISTICS)
    is_simulated = np.isfinite(deviations).all(axis=(1, 2))
    deviations = deviations[is_simulated]
    degrees_of_freedom = max(len(deviations) * (num_repeats - 1), 1)
    covariance = np.einsum("nri,nrj->ij", deviations, deviations) / degrees_of_freedom
    # The statistics of the data are compared with the mean of all repeats. Both are noisy, so
    # their variances are added.
    noise: FloatArray = covariance * (1 + 1 / num_repeats)
    return noise
