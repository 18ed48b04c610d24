"""Extrapolate one learning curve: the score at N images, and the images that a target needs.

A curve is a loss that falls with N towards a floor,

    loss(N) = level · (floor + (1 − floor) · (N / N₀)^(−rate)),

where N₀ is the largest train size measured, ``level`` the loss there, and ``floor`` the share of it
that no number of images removes. The level is free. Rate and floor start from a prior that was
fitted to the learning curves of other datasets and ships with the package
(``learning_curve_prior.json``, written by ``benchmarks/learning_curve_prior.py``), so three train
sizes suffice. Networks that were trained on the same images are siblings: a part of their rate and
floor is the images' own, so each curve learns from the others. The posterior is a sum over a grid:
no sampling, the same answer every time.

Two plain fits of the curve itself, a power law and one with a floor, take a fixed share in the
expected score. Their errors differ from the posterior's, so the mean is closer than each.

Scores that rise (accuracy, AUROC) are extrapolated as 1 − score.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from orchestrator.analysis.simple_curves import floored_power_law, power_law
from search_spaces.errors import DataError, plural

Array = NDArray[np.float64]
Metric = Literal["loss", "error", "accuracy", "auroc"]

METRICS: tuple[Metric, ...] = ("loss", "error", "accuracy", "auroc")
RISING_METRICS: tuple[Metric, ...] = ("accuracy", "auroc")
"""Scores of which more is better. They are extrapolated as 1 − score."""
MIN_SIZES = 2
"""Train sizes that a curve needs. With two, the answer is mostly the prior's."""
MIN_SIZES_FOR_SIMPLE_FITS = 3
"""Train sizes from which the two plain fits take their share: through two sizes they are exact and
say nothing of noise."""
INTERVAL_LEVEL = 0.90
"""Share of cases that an interval is meant to hold."""
NORMAL_QUANTILE = 1.645
"""Standard deviations to either side that hold 90 % of a normal distribution."""
DEFAULT_ASSURANCE = 0.80
"""Probability with which a target is to be met (pmsims, arXiv 2603.23688)."""
MAX_EXTRAPOLATION = 32.0
"""Scores at train sizes beyond this multiple of the largest one measured get no number: the curves
that the prior was fitted to span a factor of up to 32."""
LARGEST_TRAIN_SIZE = 1e12
"""No dataset has so many images."""
LEAST_ERRORS = 1e-9
"""Share of errors that stands for none in a target."""
FLAT_GAIN = 0.05
"""A curve has flattened if twice the images would lower its loss by less than this share."""

PRIOR_DEGREES = 4
"""Degrees of freedom that the prior's scatter between seeds counts for beside the curve's own."""
STEEPEST_RISE = 60.0
"""Logarithm that stands for any larger rise of a loss towards small N, so that none overflows."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Points at which a posterior is summed, in standard deviations of the prior.

    Attributes:
        rate_steps: Steps of log(rate), ``(num_rates,)``.
        floor_steps: Steps of logit(floor), ``(num_floors,)``.
        scale_steps: Logarithms of factors on all errors of one curve, ``(num_scales,)``.
    """

    rate_steps: Array
    floor_steps: Array
    scale_steps: Array


FINE_GRID = Grid(np.linspace(-2.6, 2.6, 27), np.linspace(-2.6, 2.6, 23), np.linspace(-2.4, 1.6, 6))
COARSE_GRID = Grid(
    np.linspace(-2.4, 2.4, 13), np.linspace(-2.4, 2.4, 11), np.linspace(-2.4, 1.6, 6)
)
"""The grid with which priors are fitted: a fifth of the points, and nearly the same posterior."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """One or more trainings at one train size.

    Args:
        train_size: Number of training images.
        score: Mean score of the trainings: log loss in nat, or a share in [0, 1].
        num_trainings: How many trainings (seeds) the score is a mean of.
        num_test_images: Size of the test set. None leaves its noise to the prior.
        num_positives: Images of the class that an AUROC tells from the rest. None takes half of the
            test set.
    """

    train_size: float
    score: float
    num_trainings: int = 1
    num_test_images: int | None = None
    num_positives: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePrior:
    """Expectations of a new learning curve from those of other datasets.

    Attributes:
        log_rate_mean, log_rate_sd: Normal distribution of log(rate).
        logit_floor_mean, logit_floor_sd: Normal distribution of logit(floor).
        log_noise, noise_by_level: The standard deviation of log loss between seeds is
            exp(log_noise + noise_by_level · log loss): small losses scatter more.
        log_misfit: Logarithm of the standard deviation by which true curves leave the formula.
        log_drift: Logarithm of the standard deviation by which they leave it per e-fold of N.
        log_scale_sd: Standard deviation of the logarithm of a factor on all errors of one curve.
        rate_by_level, floor_by_level: How much log(rate) and logit(floor) rise per unit of the mean
            log loss of the measured points.
        rate_sharing, floor_sharing: Correlation of log(rate), and of logit(floor), between networks
            that were trained on the same images.
        test_sharing: Share of the test set's noise that all trainings have in common, since they
            are tried on the same images. It moves a whole curve, and none of its points alone.
        power_law_share, floored_share: Shares of the two plain fits in the expected score.
        widening: Factors on the half width of intervals, with which they hold 90 % of the curves of
            sets that the prior has not seen: for up to three train sizes, for four, for five, ….
        sources: The sets of curves that the prior was fitted to.
    """

    log_rate_mean: float
    log_rate_sd: float
    logit_floor_mean: float
    logit_floor_sd: float
    log_noise: float
    noise_by_level: float
    log_misfit: float
    log_drift: float = -20.0
    log_scale_sd: float = 1.0
    rate_by_level: float = 0.0
    floor_by_level: float = 0.0
    rate_sharing: float = 0.0
    floor_sharing: float = 0.0
    test_sharing: float = 0.0
    power_law_share: float = 0.0
    floored_share: float = 0.0
    widening: tuple[float, ...] = (1.0,)
    sources: tuple[str, ...] = ()

    def noise_variance(self, log_loss: float) -> float:
        """Return the variance of log loss between seeds at a level of log loss."""
        log_sd = self.log_noise + self.noise_by_level * log_loss
        return math.exp(2 * min(max(log_sd, -4.0), 0.7))

    def widening_of(self, num_sizes: int) -> float:
        """Return the factor on the half width of intervals for a number of train sizes."""
        place = max(0, num_sizes - MIN_SIZES_FOR_SIMPLE_FITS)
        return self.widening[min(place, len(self.widening) - 1)]

    def misfit_variance(self, log_ratios: Array) -> Array:
        """Return the variance of log loss by which curves leave the formula at log(N / N₀)."""
        return np.asarray(
            np.exp(2 * self.log_misfit) + np.exp(2 * self.log_drift) * np.abs(log_ratios)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A number with its 90 % interval. An end that the curve does not bound is infinite."""

    value: float
    low: float
    high: float


@cache
def shipped_prior(metric: Metric) -> CurvePrior:
    """Return the prior that ships with the package, for a loss or for shares of errors."""
    text = resources.files(__package__).joinpath("learning_curve_prior.json").read_text("utf-8")
    key = "loss" if metric == "loss" else "error"
    fields = json.loads(text)[key]
    for name in ("sources", "widening"):
        fields[name] = tuple(fields[name])
    return CurvePrior(**fields)


class CurveArrays:
    """Learning curves as arrays, one row per curve, with what does not depend on a prior.

    Attributes:
        points: The measured points of every curve, one per train size, rising.
        largest_sizes: N₀ of every curve, ``(num_curves,)``.
        log_ratios: log(N / N₀), ``(num_curves, num_sizes)``; 0 beyond a curve's own sizes.
        log_losses: ``(num_curves, num_sizes)``.
        is_measured: 1 at a curve's own sizes and 0 beyond, ``(num_curves, num_sizes)``.
        num_trainings: Trainings that a log loss is a mean of, ``(num_curves, num_sizes)``.
        test_variances: Variance of log loss by the finite test set, ``(num_curves, num_sizes)``.
        seed_squares, seed_degrees: Scatter of log loss between trainings of one size, and its
            degrees of freedom, ``(num_curves,)``.
    """

    def __init__(self, curves: Sequence[Sequence[CurvePoint]], metric: Metric) -> None:
        self.metric = metric
        self.points = [merged_by_size(points) for points in curves]
        shape = (len(curves), max(len(points) for points in self.points))
        self.log_ratios = np.zeros(shape)
        self.log_losses = np.zeros(shape)
        self.is_measured = np.zeros(shape)
        self.num_trainings = np.ones(shape)
        self.test_variances = np.zeros(shape)
        self.largest_sizes = np.array([points[-1].train_size for points in self.points])
        for row, points in enumerate(self.points):
            for column, point in enumerate(points):
                ratio = point.train_size / self.largest_sizes[row]
                self.log_ratios[row, column] = np.log(ratio)
                self.log_losses[row, column] = log_loss_of(point, metric)
                self.is_measured[row, column] = 1.0
                self.num_trainings[row, column] = point.num_trainings
                self.test_variances[row, column] = test_variance(point, metric)
        scatter = [_scatter_within_sizes(points, metric) for points in curves]
        self.seed_squares = np.array([squares.total for squares in scatter])
        self.seed_degrees = np.array([squares.degrees for squares in scatter])
        self.num_sizes = self.is_measured.sum(axis=1)
        self.levels = (self.log_losses * self.is_measured).sum(axis=1) / self.num_sizes


class GridFit:
    """The fit of every rate and floor of a grid to each of some curves.

    Attributes:
        rates: ``(num_curves, num_rates, 1)``.
        floors: Shares of the level at N₀, ``(num_curves, 1, num_floors)``.
        log_levels: Best level of every rate and floor, ``(num_curves, num_rates, num_floors)``.
        level_variances: Variance of a level, before the factor on all errors, ``(num_curves,)``.
        log_likelihood: ``(num_curves, num_rates, num_floors, num_scales)``; the level is integrated
            out, its prior being flat.
    """

    def __init__(self, curves: CurveArrays, prior: CurvePrior, grid: Grid = FINE_GRID) -> None:
        self.curves = curves
        self.prior = prior
        self.grid = grid
        log_rate_means = prior.log_rate_mean + prior.rate_by_level * curves.levels
        log_rates = log_rate_means[:, None] + prior.log_rate_sd * grid.rate_steps
        self.rates = np.exp(log_rates)[:, :, None]
        logit_means = prior.logit_floor_mean + prior.floor_by_level * curves.levels
        logits = logit_means[:, None] + prior.logit_floor_sd * grid.floor_steps
        self.floors = (1 / (1 + np.exp(-logits)))[:, None, :]
        noise = np.array(
            [self.noise_variance(curve, level) for curve, level in enumerate(curves.levels)]
        )
        variances = (
            noise[:, None] / curves.num_trainings
            + prior.misfit_variance(curves.log_ratios)
            + curves.test_variances * (1 - prior.test_sharing)
        )
        precisions = curves.is_measured / variances
        total_precisions = precisions.sum(axis=1)
        self.level_variances = 1 / total_precisions
        # One train size after the other: all at once would need much more memory.
        residuals = [
            curves.log_losses[:, column, None, None] - self.log_shapes(curves.log_ratios[:, column])
            for column in range(curves.log_ratios.shape[1])
        ]
        weighted = sum(
            precisions[:, column, None, None] * residual
            for column, residual in enumerate(residuals)
        )
        self.log_levels = weighted / total_precisions[:, None, None]
        misfits = sum(
            precisions[:, column, None, None] * (residual - self.log_levels) ** 2
            for column, residual in enumerate(residuals)
        )
        degrees = (curves.num_sizes - 1)[:, None, None, None]
        self.log_likelihood = (
            -misfits[..., None] / (2 * np.exp(2 * grid.scale_steps)) - degrees * grid.scale_steps
        )
        log_scales = -0.5 * (grid.scale_steps / prior.log_scale_sd) ** 2
        self.log_scale_weights = log_scales - np.log(np.exp(log_scales).sum())
        self._to_rates = _transitions(grid.rate_steps, prior.rate_sharing)
        self._to_floors = _transitions(grid.floor_steps, prior.floor_sharing)
        self._messages: dict[int, Array] = {}

    def log_shapes(self, log_ratios: Array) -> Array:
        """Return log(loss(N) / level) at log(N / N₀), a number per curve.

        Returns:
            ``(num_curves, num_rates, num_floors)``.
        """
        rises = np.minimum(-self.rates * log_ratios[:, None, None], STEEPEST_RISE)
        return np.asarray(np.log(self.floors + (1 - self.floors) * np.exp(rises)))

    def noise_variance(self, curve: int, log_loss: float) -> float:
        """Return the variance of log loss between seeds of one curve at a level of log loss.

        The scatter that the curve itself shows is weighed with the prior's, which counts as
        :data:`PRIOR_DEGREES` degrees of freedom.
        """
        expected = PRIOR_DEGREES * self.prior.noise_variance(log_loss)
        squares = expected + self.curves.seed_squares[curve]
        return float(squares / (PRIOR_DEGREES + self.curves.seed_degrees[curve]))

    def posterior(self, curve: int, siblings: Sequence[int] = ()) -> Array:
        """Return the weights of one curve's grid, ``(num_rates, num_floors, num_scales)``.

        Args:
            curve: Index of the curve.
            siblings: Indices of curves of other networks on the same images.
        """
        log_prior = self._log_prior(siblings)[..., None] + self.log_scale_weights
        log_weights = log_prior + self.log_likelihood[curve]
        weights = np.exp(log_weights - log_weights.max())
        return np.asarray(weights / weights.sum())

    def _log_prior(self, siblings: Sequence[int]) -> Array:
        """Return the log prior of rate and floor, ``(num_rates, num_floors)``, given siblings.

        A network's step of log(rate) is √ρ · u + √(1 − ρ) · e, where u is common to all networks of
        the same images and e its own; ρ is ``rate_sharing``. The same holds for the floor. The
        siblings' curves give u a posterior, which is carried over to this network.
        """
        rate_steps, floor_steps = self.grid.rate_steps, self.grid.floor_steps
        log_common = -0.5 * rate_steps[:, None] ** 2 - 0.5 * floor_steps[None, :] ** 2
        if not siblings:
            return np.asarray(log_common)
        for sibling in siblings:
            log_common = log_common + self._message(sibling)
        common = np.exp(log_common - log_common.max())
        return np.asarray(np.log(self._to_rates.T @ common @ self._to_floors + 1e-300))

    def _message(self, sibling: int) -> Array:
        """Return what one curve says of its images' own steps: ``(num_rates, num_floors)``."""
        if sibling not in self._messages:
            log_likelihood = self.log_likelihood[sibling]
            likelihood = np.exp(log_likelihood - log_likelihood.max())
            by_shape = likelihood @ np.exp(self.log_scale_weights)
            message = self._to_rates @ by_shape @ self._to_floors.T
            self._messages[sibling] = np.log(message + 1e-300)
        return self._messages[sibling]


class LearningCurve:
    """The posterior of one learning curve.

    Args:
        points: Finished trainings, at two train sizes or more. Points of one train size are
            averaged.
        metric: What the scores are.
        prior: The prior of rate and floor; None takes the shipped one.
        siblings: Points of other networks that were trained on the same images, a sequence per
            network. Those with fewer than two train sizes are left out.

    Raises:
        DataError: If there are fewer than two train sizes, a score is out of range, or a score is
            perfect and the size of its test set unknown.

    Example:
        >>> sizes, accuracies = (60, 120, 240), (0.71, 0.78, 0.83)
        >>> points = [
        ...     CurvePoint(train_size=n, score=score, num_test_images=200)
        ...     for n, score in zip(sizes, accuracies, strict=True)
        ... ]
        >>> curve = LearningCurve(points, "accuracy")
        >>> 0.83 < curve.score_at(480).value < 0.92
        True
    """

    def __init__(
        self,
        points: Sequence[CurvePoint],
        metric: Metric = "loss",
        prior: CurvePrior | None = None,
        siblings: Sequence[Sequence[CurvePoint]] = (),
    ) -> None:
        num_sizes = len({point.train_size for point in points})
        if num_sizes < MIN_SIZES:
            raise DataError(
                f"the learning curve has {plural(num_sizes, 'train size')}, and a fit needs at "
                f"least {MIN_SIZES}",
                hint=f"Train at {MIN_SIZES} sizes or more. Three sizes give a usable interval",
            )
        of_siblings = [
            sibling
            for sibling in siblings
            if len({point.train_size for point in sibling}) >= MIN_SIZES
        ]
        arrays = CurveArrays([points, *of_siblings], metric)
        fit = GridFit(arrays, prior or shipped_prior(metric))
        self._set(fit, 0, range(1, 1 + len(of_siblings)))

    @classmethod
    def of_fit(cls, fit: GridFit, curve: int, siblings: Sequence[int] = ()) -> LearningCurve:
        """Return the posterior of one curve of a fit of many.

        Args:
            fit: The fit, which :func:`GridFit` makes for many curves at once.
            curve: Index of the curve in it.
            siblings: Indices of curves of other networks on the same images.
        """
        posterior = cls.__new__(cls)
        posterior._set(fit, curve, siblings)
        return posterior

    def _set(self, fit: GridFit, curve: int, siblings: Sequence[int]) -> None:
        self.fit = fit
        self.prior = fit.prior
        self.metric = fit.curves.metric
        self.points = fit.curves.points[curve]
        self.largest_size = float(fit.curves.largest_sizes[curve])
        self._curve = curve
        self._weights = fit.posterior(curve, siblings)
        self._grid_weights = self._weights.sum(axis=-1)
        self._variance_factors = np.exp(2 * fit.grid.scale_steps)
        self._level_variance = float(fit.level_variances[curve])

    def score_at(self, train_size: float, *, num_test_images: int | None = None) -> Estimate:
        """Return the score that one more training at this train size would have.

        Args:
            train_size: Number of training images.
            num_test_images: Size of the test set; None leaves its noise to the prior.
        """
        logs = self.log_estimate_at(train_size, num_test_images=num_test_images)
        value, first, second = (self._as_score(loss) for loss in (logs.value, logs.low, logs.high))
        return Estimate(value=value, low=min(first, second), high=max(first, second))

    def log_estimate_at(self, train_size: float, *, num_test_images: int | None = None) -> Estimate:
        """Return the log loss that one more training would have, or the log of its errors.

        The value is the mean, which has the smallest squared error. Arguments as of
        :meth:`score_at`.
        """
        means, variances = self._predictive(train_size)
        expected = float((self._grid_weights * means).sum())
        tail = (1 - INTERVAL_LEVEL) / 2
        below = expected - self._quantile(means, variances, tail)
        above = self._quantile(means, variances, 1 - tail) - expected
        # The widening is for what is unknown of the curve. The test set's noise is known, and
        # counts in full: the answer is meant for all images, not for those of one test set.
        widening = self.prior.widening_of(len(self.points))
        noise = NORMAL_QUANTILE * np.sqrt(self.test_variance_at(expected, num_test_images))
        return Estimate(
            value=expected,
            low=expected - float(np.hypot(widening * below, noise)),
            high=expected + float(np.hypot(widening * above, noise)),
        )

    def test_variance_at(self, log_loss: float, num_test_images: int | None) -> float:
        """Return the variance of log loss, at a level of it, by a test set; 0 if its size is
        unknown.
        """
        if num_test_images is None or self.metric == "loss":
            return 0.0
        point = CurvePoint(
            train_size=self.largest_size,
            score=self._as_score(log_loss),
            num_test_images=num_test_images,
            num_positives=self.points[-1].num_positives,
        )
        return test_variance(point, self.metric)

    def log_density_at(self, point: CurvePoint) -> float:
        """Return the log density of a further point's log loss: how well the curve foretold it."""
        means, variances = self._predictive(point.train_size, point.num_trainings)
        expected = float((self._grid_weights * means).sum())
        test_variance = self.test_variance_at(expected, point.num_test_images)
        variances = variances + test_variance * (1 - self.prior.test_sharing)
        distances = log_loss_of(point, self.metric) - means
        densities = np.exp(-0.5 * distances[..., None] ** 2 / variances) / np.sqrt(
            2 * np.pi * variances
        )
        return float(np.log((self._weights * densities).sum() + 1e-300))

    def probability_met(self, target: float, train_size: float) -> float:
        """Return the probability that the curve, without noise, meets a target score at N."""
        means = self._means(train_size)
        # The drift is part of the curve; noise and misfit at N itself are not.
        distance = min(np.log(train_size / self.largest_size), np.log(MAX_EXTRAPOLATION))
        drift = np.exp(2 * self.prior.log_drift) * max(distance, 0.0)
        variances = (self._level_variance + drift) * self._variance_factors
        return self._mass_below(means, variances, log_of_score(target, self.metric))

    def size_for(
        self,
        target: float,
        *,
        assurance: float = DEFAULT_ASSURANCE,
        limit: float = MAX_EXTRAPOLATION,
    ) -> float:
        """Return the smallest N whose curve meets a target with a probability; inf if none does.

        Args:
            target: Score to reach.
            assurance: Probability with which it is to be reached, above 0 and below 1.
            limit: Largest N that is looked at, as a multiple of the largest train size.
        """
        low, high = self.points[0].train_size, 2 * self.largest_size
        if self.probability_met(target, low) >= assurance:
            return low
        largest = min(limit * self.largest_size, LARGEST_TRAIN_SIZE)
        while self.probability_met(target, high) < assurance:
            if high >= largest:
                return float("inf")
            low, high = high, min(4 * high, largest)
        while high / low > 1.005:
            middle = float(np.sqrt(low * high))
            if self.probability_met(target, middle) < assurance:
                low = middle
            else:
                high = middle
        return float(np.ceil(high))

    @property
    def rate(self) -> Estimate:
        """Local rate at N₀: the share by which the loss falls for one per cent more images."""
        floors = self.fit.floors[self._curve]
        local = ((1 - floors) * self.fit.rates[self._curve]).ravel()
        weights = self._grid_weights.ravel()
        order = np.argsort(local)
        shares = np.cumsum(weights[order])
        tail = (1 - INTERVAL_LEVEL) / 2
        places = np.searchsorted(shares, (0.5, tail, 1 - tail))
        places = np.minimum(places, len(order) - 1)
        value, low, high = local[order][places]
        return Estimate(value=float(value), low=float(low), high=float(high))

    @property
    def probability_flat(self) -> float:
        """Probability that twice the images would lower the loss by less than 5 %."""
        gains = 1 - np.exp(self._means(2 * self.largest_size) - self._means(self.largest_size))
        return float(self._grid_weights[gains < FLAT_GAIN].sum())

    def _log_shape(self, train_size: float) -> Array:
        """Return log(loss(N) / level), ``(num_rates, num_floors)``."""
        floors = self.fit.floors[self._curve]
        log_ratio = np.log(train_size / self.largest_size)
        rises = np.minimum(-self.fit.rates[self._curve] * log_ratio, STEEPEST_RISE)
        return np.asarray(np.log(floors + (1 - floors) * np.exp(rises)))

    def _means(self, train_size: float) -> Array:
        """Return log losses at N for every rate and floor, moved towards the two plain fits."""
        means = self.fit.log_levels[self._curve] + self._log_shape(train_size)
        if not (self.prior.power_law_share or self.prior.floored_share):
            return np.asarray(means)
        # Beyond the range the plain fits would fall for ever: their share stays as it is there.
        within = min(train_size, MAX_EXTRAPOLATION * self.largest_size)
        inside = self.fit.log_levels[self._curve] + self._log_shape(within)
        expected = float((self._grid_weights * inside).sum())
        return np.asarray(means + self._shift(within, expected))

    def _shift(self, train_size: float, expected: float) -> float:
        """Return by how much the plain fits move the expected log loss at a train size."""
        if len(self.points) < MIN_SIZES_FOR_SIMPLE_FITS:
            return 0.0
        sizes = np.array([point.train_size for point in self.points])
        log_losses = self.fit.curves.log_losses[self._curve, : len(sizes)]
        shift = 0.0
        if self.prior.power_law_share:
            straight = power_law(sizes, log_losses, train_size)
            shift += self.prior.power_law_share * (straight - expected)
        if self.prior.floored_share:
            floored = floored_power_law(sizes, log_losses, train_size)
            shift += self.prior.floored_share * (floored - expected)
        return shift

    def _predictive(self, train_size: float, num_trainings: int = 1) -> tuple[Array, Array]:
        """Return means ``(num_rates, num_floors)`` and variances ``(num_scales,)`` of log loss.

        They are those of trainings that an endless test set is tried on.
        """
        means = self._means(train_size)
        expected = float((self._grid_weights * means).sum())
        noise = self.fit.noise_variance(self._curve, expected)
        log_ratio = np.log(train_size / self.largest_size)
        variance = self._level_variance + noise / num_trainings
        variance += float(self.prior.misfit_variance(np.array(log_ratio)))
        return means, variance * self._variance_factors

    def _mass_below(self, means: Array, variances: Array, log_loss: float) -> float:
        distances = (log_loss - means)[..., None] / np.sqrt(variances)
        return float((self._weights * ndtr(distances)).sum())

    def _quantile(self, means: Array, variances: Array, share: float) -> float:
        """Return a quantile of the mixture of normal distributions, by bisection."""
        reach = 8 * float(np.sqrt(variances.max()))
        low, high = float(means.min()) - reach, float(means.max()) + reach
        for _ in range(50):
            middle = (low + high) / 2
            if self._mass_below(means, variances, middle) < share:
                low = middle
            else:
                high = middle
        return (low + high) / 2

    def _as_score(self, log_loss: float) -> float:
        loss = float(np.exp(log_loss))
        if self.metric == "loss":
            return loss
        loss = min(loss, 1.0)
        return 1 - loss if self.metric in RISING_METRICS else loss


def _transitions(steps: Array, sharing: float) -> Array:
    """Return the probability of a network's step (columns) given the images' own (rows)."""
    # A step of the grid is the sharpest distribution that the grid can show.
    own_sd = max(np.sqrt(1 - sharing), steps[1] - steps[0])
    distances = (steps[None, :] - np.sqrt(sharing) * steps[:, None]) / own_sd
    density = np.exp(-0.5 * distances**2)
    return np.asarray(density / density.sum(axis=1, keepdims=True))


def merged_by_size(points: Sequence[CurvePoint]) -> tuple[CurvePoint, ...]:
    """Return one point per train size, rising: the mean score of its trainings."""
    merged = []
    for size in sorted({point.train_size for point in points}):
        same = [point for point in points if point.train_size == size]
        num_trainings = sum(point.num_trainings for point in same)
        total = sum(point.score * point.num_trainings for point in same)
        tested = [point.num_test_images for point in same if point.num_test_images is not None]
        positives = [point.num_positives for point in same if point.num_positives is not None]
        merged.append(
            CurvePoint(
                train_size=size,
                score=total / num_trainings,
                num_trainings=num_trainings,
                num_test_images=min(tested, default=None),
                num_positives=min(positives, default=None),
            )
        )
    return tuple(merged)


@dataclass(frozen=True, slots=True)
class SumOfSquares:
    """A sum of squared deviations and its degrees of freedom."""

    total: float
    degrees: int


def _scatter_within_sizes(points: Sequence[CurvePoint], metric: Metric) -> SumOfSquares:
    """Return the squares of log losses around the mean of their train size."""
    total, degrees = 0.0, 0
    for size in {point.train_size for point in points}:
        logs = [log_loss_of(point, metric) for point in points if point.train_size == size]
        total += float(((np.array(logs) - np.mean(logs)) ** 2).sum())
        degrees += len(logs) - 1
    return SumOfSquares(total, degrees)


def log_of_score(score: float, metric: Metric) -> float:
    """Return the logarithm of a loss, or of the share of errors that a score leaves.

    Raises:
        DataError: If the score is out of its range.
    """
    if metric == "loss":
        if not score > 0:
            raise DataError(
                f"a training has the loss {score:g}, which is not above 0",
                hint="Leave this training out",
            )
        return float(np.log(score))
    if not 0 <= score <= 1:
        raise DataError(
            f"a training has the {metric} {score:g}, which is not a share from 0 to 1",
            hint="Write 70 % as 0.7",
        )
    return float(np.log(max(_errors_of(score, metric), LEAST_ERRORS)))


def _errors_of(score: float, metric: Metric) -> float:
    """Return the share of errors that a score leaves."""
    return 1 - score if metric in RISING_METRICS else score


def log_loss_of(point: CurvePoint, metric: Metric) -> float:
    """Return the logarithm of a point's loss; half an error stands in for none.

    Raises:
        DataError: If the score is out of its range, or perfect with an unknown test set.
    """
    if metric == "loss":
        return log_of_score(point.score, metric)
    if point.num_test_images is None:
        if _errors_of(point.score, metric) == 0:
            raise DataError(
                "a training has a perfect score on a test set of unknown size",
                hint="Give the number of test images with --test-size",
            )
        return log_of_score(point.score, metric)
    errors = np.exp(log_of_score(point.score, metric))
    num = point.num_test_images
    return float(np.log((errors * num + 0.5) / (num + 1)))


def test_variance(point: CurvePoint, metric: Metric) -> float:
    """Return the variance of log(errors) that a finite test set causes.

    All trainings share the test set, so more seeds do not make it smaller. For a share of errors e
    of n images it is (1 − e) / (n e), the binomial variance of log e. For AUROC it is the variance
    of Hanley & McNeil (1982), from the numbers of images in and outside the class.
    """
    if metric == "loss" or point.num_test_images is None:
        return 0.0
    errors = float(np.exp(log_loss_of(point, metric)))
    if metric == "auroc":
        return auroc_variance(1 - errors, point) / errors**2
    return (1 - errors) / (point.num_test_images * errors)


def auroc_variance(area: float, point: CurvePoint) -> float:
    """Return the variance of an AUROC over test sets of a point's size (Hanley & McNeil 1982).

    Args:
        area: The AUROC.
        point: Says how many test images there are, and how many of the class. If the latter is not
            known, it is taken to be half of them.
    """
    total = point.num_test_images or 2
    positives = max(1, min(point.num_positives or total // 2, total - 1))
    negatives = total - positives
    two_positives = area / (2 - area)
    two_negatives = 2 * area**2 / (1 + area)
    spread = (
        area * (1 - area)
        + (positives - 1) * (two_positives - area**2)
        + (negatives - 1) * (two_negatives - area**2)
    )
    return spread / (positives * negatives)
