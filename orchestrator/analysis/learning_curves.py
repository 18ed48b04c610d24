"""Extrapolation of one learning curve: the score at N images, and the images for a target score.

A learning curve is a loss that decreases with N towards a floor,

    loss(N) = level · (floor + (1 − floor) · (N / N₀)^(−rate)).

N₀ is the largest measured train size, and ``level`` is the loss at N₀. ``floor`` is the share
of the level that remains for any number of images. The level has a flat prior. The rate and
the floor have a prior that was fitted to learning curves of other datasets, so three train
sizes suffice. The package contains the prior as ``learning_curve_prior.json``, which
``benchmarks/learning_curve_prior.py`` wrote.

The curves of networks that were trained on the same images are siblings. Siblings have
correlated rates and floors, so the fit of each curve also uses its siblings. The posterior is
computed on a fixed grid, without random draws, so the same points always give the same answer.

The expected score is a weighted mean of three fits: this posterior, a power law, and a power
law with a floor. The three fits have different errors, so their mean is more accurate than
each single fit.

Scores that increase with N (accuracy, AUROC) are extrapolated as 1 − score.
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
"""Scores for which higher is better. They are extrapolated as 1 − score."""
MIN_SIZES = 2
"""Smallest number of train sizes of a curve. With two sizes, the prior determines most of the
fit.
"""
MIN_SIZES_FOR_SIMPLE_FITS = 3
"""Smallest number of train sizes for the two plain fits: the power law, and the power law with
a floor. With two sizes, both fit the points exactly, and noise cannot be estimated."""
INTERVAL_LEVEL = 0.90
"""Probability that an interval contains the true value."""
NORMAL_QUANTILE = 1.645
"""Half width of the interval that contains the central 90 % of a normal distribution, in
standard deviations."""
DEFAULT_ASSURANCE = 0.80
"""Default probability with which a target should be met, as in pmsims (arXiv 2603.23688)."""
MAX_EXTRAPOLATION = 32.0
"""Largest train size with a prediction, as a multiple of the largest measured train size. In
the curves behind the prior, the largest train size is up to 32 times the smallest one."""
LARGEST_TRAIN_SIZE = 1e12
"""Upper limit for a number of images. No dataset has so many images."""
LEAST_ERRORS = 1e-9
"""Error rate that replaces an error rate of 0, because the logarithm of 0 is infinite."""
FLAT_GAIN = 0.05
"""Limit for a flat curve, as a share of the loss. A curve is flat if twice the images would
lower the loss by less than this share."""

PRIOR_DEGREES = 4
"""Weight of the variance between seeds that the prior expects, in degrees of freedom."""
STEEPEST_RISE = 60.0
"""Upper limit for the logarithm of (N / N₀)^(−rate). It keeps the exponential finite at small
N."""


@dataclass(frozen=True, slots=True)
class Grid:
    """The grid points on which a posterior is computed.

    Attributes:
        rate_steps: Steps of log(rate), in standard deviations of the prior, ``(num_rates,)``.
        floor_steps: Steps of logit(floor), in standard deviations of the prior,
            ``(num_floors,)``.
        scale_steps: Logarithms of the factors by which all errors of one curve may be scaled,
            ``(num_scales,)``.
    """

    rate_steps: Array
    floor_steps: Array
    scale_steps: Array


FINE_GRID = Grid(
    rate_steps=np.linspace(-2.6, 2.6, 27),
    floor_steps=np.linspace(-2.6, 2.6, 23),
    scale_steps=np.linspace(-2.4, 1.6, 6),
)
COARSE_GRID = Grid(
    rate_steps=np.linspace(-2.4, 2.4, 13),
    floor_steps=np.linspace(-2.4, 2.4, 11),
    scale_steps=np.linspace(-2.4, 1.6, 6),
)
"""The grid with which priors are fitted. It has about a quarter of the points of
:data:`FINE_GRID`, and nearly the same posterior results from it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """The mean score of one or more trainings at one train size.

    Args:
        train_size: Number of training images.
        score: Mean score of the trainings: a loss in nat, or an error rate, an accuracy or an
            AUROC in [0, 1].
        num_trainings: Number of trainings (seeds) behind the mean.
        num_test_images: Size of the test set. If None, the noise of the test set is left out.
        num_positives: Number of test images of the positive class of an AUROC. If None, half
            of the test images count as positive.
    """

    train_size: float
    score: float
    num_trainings: int = 1
    num_test_images: int | None = None
    num_positives: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePrior:
    """The prior of a new learning curve, fitted to learning curves of other datasets.

    Attributes:
        log_rate_mean, log_rate_sd: Mean and standard deviation of the normal prior of
            log(rate).
        logit_floor_mean, logit_floor_sd: Mean and standard deviation of the normal prior of
            logit(floor).
        log_noise, noise_by_level: Coefficients of the standard deviation of log loss between
            seeds. This standard deviation is exp(log_noise + noise_by_level · log loss).
        log_misfit: Logarithm of the misfit. The misfit is the standard deviation of the
            difference between a true curve and the formula.
        log_drift: Logarithm of the standard deviation whose square is added to the variance of
            the misfit for each factor of e between N and N₀.
        log_scale_sd: Standard deviation of the logarithm of the factor that scales all errors
            of one curve.
        rate_by_level, floor_by_level: Slopes of log(rate) and logit(floor) on the mean log
            loss of the measured points.
        rate_sharing, floor_sharing: Correlations of log(rate) and of logit(floor) between
            networks that were trained on the same images.
        test_sharing: Share of the variance from the test set that all trainings have in
            common, because they use the same test images. This common noise moves the whole
            curve up or down.
        power_law_share, floored_share: Weights of the two plain fits in the expected score.
        widening: Factors by which the half width of an interval is multiplied. The first
            factor is for up to three train sizes, the second one for four train sizes, and so
            on. With these factors, intervals contain 90 % of the true values on sets of curves
            that the prior was not fitted to.
        sources: Names of the sets of curves behind the prior.
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
        """Return the variance of log loss between seeds that the prior expects at a log loss."""
        log_sd = self.log_noise + self.noise_by_level * log_loss
        return math.exp(2 * min(max(log_sd, -4.0), 0.7))

    def widening_of(self, num_sizes: int) -> float:
        """Return the factor for the half width of intervals from a given number of train sizes."""
        place = max(0, num_sizes - MIN_SIZES_FOR_SIMPLE_FITS)
        return self.widening[min(place, len(self.widening) - 1)]

    def misfit_variance(self, log_ratios: Array) -> Array:
        """Return the variance of true log losses around the formula, at the given log(N / N₀)."""
        return np.asarray(
            np.exp(2 * self.log_misfit) + np.exp(2 * self.log_drift) * np.abs(log_ratios)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """An estimate with its 90 % interval.

    If the interval has no bound on one side, this end is infinite.
    """

    value: float
    low: float
    high: float


@cache
def shipped_prior(metric: Metric) -> CurvePrior:
    """Return the prior that the package contains for a metric.

    There is one prior for losses, and one prior for all other metrics.
    """
    file = resources.files(__package__).joinpath("learning_curve_prior.json")
    text = file.read_text("utf-8")
    key = "loss" if metric == "loss" else "error"
    fields = json.loads(text)[key]
    for name in ("sources", "widening"):
        fields[name] = tuple(fields[name])
    return CurvePrior(**fields)


class CurveArrays:
    """Measured learning curves as arrays, with one row per curve.

    ``num_sizes`` is the number of train sizes of the longest curve. The arrays of shorter
    curves are padded.

    Attributes:
        points: The points of each curve, one per train size, sorted by train size.
        largest_sizes: N₀ of each curve, ``(num_curves,)``.
        log_ratios: log(N / N₀) of each point, ``(num_curves, num_sizes)``. The padding is 0.
        log_losses: Log loss of each point, ``(num_curves, num_sizes)``.
        is_measured: 1 for measured points and 0 for padding, ``(num_curves, num_sizes)``.
        num_trainings: Number of trainings behind each log loss, ``(num_curves, num_sizes)``.
        test_variances: Variance of each log loss that comes from the finite test set,
            ``(num_curves, num_sizes)``.
        seed_squares, seed_degrees: Sum of squared deviations of log losses from the mean of
            their train size, and its degrees of freedom, ``(num_curves,)``.
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
    """The fit of every rate and floor of a grid to each of several curves.

    Attributes:
        rates: Rates of the grid, ``(num_curves, num_rates, 1)``.
        floors: Floors of the grid, as shares of the level, ``(num_curves, 1, num_floors)``.
        log_levels: Logarithm of the level that fits best for each rate and floor,
            ``(num_curves, num_rates, num_floors)``.
        level_variances: Variance of the logarithm of the level, before it is multiplied by the
            factor for all errors, ``(num_curves,)``.
        log_likelihood: Log likelihood with the level integrated out under its flat prior,
            ``(num_curves, num_rates, num_floors, num_scales)``.
    """

    def __init__(self, curves: CurveArrays, prior: CurvePrior, grid: Grid = FINE_GRID) -> None:
        self.curves = curves
        self.prior = prior
        self.grid = grid
        # Rates and floors depend on the mean log loss of the curve, so each curve has its own
        # center of the grid.
        log_rate_means = prior.log_rate_mean + prior.rate_by_level * curves.levels
        log_rates = log_rate_means[:, None] + prior.log_rate_sd * grid.rate_steps
        self.rates = np.exp(log_rates)[:, :, None]
        logit_means = prior.logit_floor_mean + prior.floor_by_level * curves.levels
        logits = logit_means[:, None] + prior.logit_floor_sd * grid.floor_steps
        self.floors = (1 / (1 + np.exp(-logits)))[:, None, :]
        noise = np.array(
            [self.noise_variance(curve, level) for curve, level in enumerate(curves.levels)]
        )
        # The noise that all trainings have in common moves the whole curve, so it belongs to
        # the level and is left out here.
        variances = (
            noise[:, None] / curves.num_trainings
            + prior.misfit_variance(curves.log_ratios)
            + curves.test_variances * (1 - prior.test_sharing)
        )
        # For a given rate and floor, a log loss is the sum of the log level, the log shape and
        # an error. The best log level is therefore a weighted mean.
        precisions = curves.is_measured / variances
        total_precisions = precisions.sum(axis=1)
        self.level_variances = 1 / total_precisions
        # The loop computes one train size after the other. All train sizes at once would need
        # much more memory.
        residuals = []
        for column in range(curves.log_ratios.shape[1]):
            log_shapes = self.log_shapes(curves.log_ratios[:, column])
            residuals.append(curves.log_losses[:, column, None, None] - log_shapes)
        weighted = sum(
            precisions[:, column, None, None] * residual
            for column, residual in enumerate(residuals)
        )
        self.log_levels = weighted / total_precisions[:, None, None]
        misfits = sum(
            precisions[:, column, None, None] * (residual - self.log_levels) ** 2
            for column, residual in enumerate(residuals)
        )
        # The integral over the level with its flat prior costs one degree of freedom.
        degrees = (curves.num_sizes - 1)[:, None, None, None]
        variance_factors = np.exp(2 * grid.scale_steps)
        self.log_likelihood = (
            -misfits[..., None] / (2 * variance_factors) - degrees * grid.scale_steps
        )
        log_scales = -0.5 * (grid.scale_steps / prior.log_scale_sd) ** 2
        self.log_scale_weights = log_scales - np.log(np.exp(log_scales).sum())
        self._to_rates = _transitions(grid.rate_steps, prior.rate_sharing)
        self._to_floors = _transitions(grid.floor_steps, prior.floor_sharing)
        self._messages: dict[int, Array] = {}

    def log_shapes(self, log_ratios: Array) -> Array:
        """Return log(loss(N) / level) for each curve, rate and floor.

        Args:
            log_ratios: log(N / N₀) of each curve, ``(num_curves,)``.

        Returns:
            An array ``(num_curves, num_rates, num_floors)``.
        """
        rises = np.minimum(-self.rates * log_ratios[:, None, None], STEEPEST_RISE)
        return np.asarray(np.log(self.floors + (1 - self.floors) * np.exp(rises)))

    def noise_variance(self, curve: int, log_loss: float) -> float:
        """Return the variance of log loss between seeds of one curve at a given log loss.

        The result is a weighted mean of two variances. One is the variance between the seeds
        of this curve, the other one is the variance that the prior expects. The weights are
        the degrees of freedom: those of this curve, and :data:`PRIOR_DEGREES` for the prior.
        """
        expected = PRIOR_DEGREES * self.prior.noise_variance(log_loss)
        # A curve with one seed has no deviations, so the prior counts as PRIOR_DEGREES
        # deviations.
        squares = expected + self.curves.seed_squares[curve]
        return float(squares / (PRIOR_DEGREES + self.curves.seed_degrees[curve]))

    def posterior(self, curve: int, siblings: Sequence[int] = ()) -> Array:
        """Return the posterior weight of each grid point, ``(num_rates, num_floors, num_scales)``.

        Args:
            curve: Index of the curve.
            siblings: Indices of curves of other networks on the same images.
        """
        log_prior = self._log_prior(siblings)[..., None] + self.log_scale_weights
        log_weights = log_prior + self.log_likelihood[curve]
        # Subtracting the maximum prevents an underflow of every weight to 0.
        weights = np.exp(log_weights - log_weights.max())
        return np.asarray(weights / weights.sum())

    def _log_prior(self, siblings: Sequence[int]) -> Array:
        """Return the log prior of rate and floor, updated by siblings, ``(num_rates, num_floors)``.

        A step is a distance on the grid from the mean of the prior, in standard deviations. A
        network's step of log(rate) is √ρ · u + √(1 − ρ) · e, with ρ = ``rate_sharing``. The
        step u is common to all networks on the same images, and the step e belongs to one
        network. The floor has the same model. The curves of the siblings give a posterior of
        u. This posterior becomes a part of the prior of this network.
        """
        rate_steps, floor_steps = self.grid.rate_steps, self.grid.floor_steps
        log_common = -0.5 * rate_steps[:, None] ** 2 - 0.5 * floor_steps[None, :] ** 2
        if not siblings:
            return np.asarray(log_common)
        for sibling in siblings:
            log_common = log_common + self._message(sibling)
        common = np.exp(log_common - log_common.max())
        # Convert the common steps to steps of this network. 1e-300 keeps the logarithm finite.
        return np.asarray(np.log(self._to_rates.T @ common @ self._to_floors + 1e-300))

    def _message(self, sibling: int) -> Array:
        """Return a sibling's log likelihood of the common steps, ``(num_rates, num_floors)``."""
        if sibling not in self._messages:
            log_likelihood = self.log_likelihood[sibling]
            likelihood = np.exp(log_likelihood - log_likelihood.max())
            # The factor for all errors belongs to one curve, so the likelihood is first summed
            # over this factor.
            by_shape = likelihood @ np.exp(self.log_scale_weights)
            message = self._to_rates @ by_shape @ self._to_floors.T
            self._messages[sibling] = np.log(message + 1e-300)
        return self._messages[sibling]


class LearningCurve:
    """The posterior of one learning curve.

    Args:
        points: Finished trainings at two or more train sizes. Points of one train size are
            averaged.
        metric: The metric of the scores.
        prior: The prior of rate and floor. If None, the prior that the package contains.
        siblings: Points of other networks that were trained on the same images, one sequence
            per network. Networks with fewer than two train sizes are left out.

    Raises:
        DataError: If there are fewer than two train sizes, if a score is out of range, or if a
            score is perfect and the size of its test set is unknown.

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
                f"The learning curve has {plural(num_sizes, 'train size')}, but a fit needs "
                f"at least {MIN_SIZES}",
                hint=f"Train at {MIN_SIZES} or more train sizes. With fewer than three, the "
                "interval of the prediction is too wide to be useful",
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
        """Return the posterior of one curve from a fit of many curves.

        Args:
            fit: The fit of all curves.
            curve: Index of the curve in the fit.
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
        """Predict the score of one more training at a train size.

        Args:
            train_size: Number of training images.
            num_test_images: Size of the test set. If None, the noise of the test set is left
            out.
        """
        logs = self.log_estimate_at(train_size, num_test_images=num_test_images)
        value, first, second = (self._as_score(loss) for loss in (logs.value, logs.low, logs.high))
        return Estimate(value=value, low=min(first, second), high=max(first, second))

    def log_estimate_at(self, train_size: float, *, num_test_images: int | None = None) -> Estimate:
        """Predict the log loss, or the log error rate, of one more training at a train size.

        The value is the posterior mean, because it has the smallest expected squared error.

        Args:
            train_size: Number of training images.
            num_test_images: Size of the test set. If None, the noise of the test set is left
            out.
        """
        means, variances = self._predictive(train_size)
        expected = float((self._grid_weights * means).sum())
        tail = (1 - INTERVAL_LEVEL) / 2
        below = expected - self._quantile(means, variances, tail)
        above = self._quantile(means, variances, 1 - tail) - expected
        # The widening corrects the uncertainty of the curve. The noise of the test set is
        # known, so it is not widened. The whole noise is added, also the common part.
        widening = self.prior.widening_of(len(self.points))
        noise = NORMAL_QUANTILE * np.sqrt(self.test_variance_at(expected, num_test_images))
        return Estimate(
            value=expected,
            low=expected - float(np.hypot(widening * below, noise)),
            high=expected + float(np.hypot(widening * above, noise)),
        )

    def test_variance_at(self, log_loss: float, num_test_images: int | None) -> float:
        """Return the variance that a finite test set adds to a given log loss.

        The variance is 0 if the score is a loss, or if the size of the test set is unknown.
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
        """Return the log density that the posterior predicts at the log loss of a new point."""
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
        """Return the probability that the curve without noise meets a target at a train size."""
        means = self._means(train_size)
        # The drift is a part of the curve. Noise and misfit at N are not, so they are left
        # out.
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
        """Return the smallest N at which the curve meets a target with a given probability.

        Args:
            target: Score to reach.
            assurance: Probability with which the target should be met, above 0 and below 1.
            limit: Largest N of the search, as a multiple of the largest measured train size.

        Returns:
            The number of images; inf if the target is not met up to the limit.
        """
        low, high = self.points[0].train_size, 2 * self.largest_size
        if self.probability_met(target, low) >= assurance:
            return low
        largest = min(limit * self.largest_size, LARGEST_TRAIN_SIZE)
        while self.probability_met(target, high) < assurance:
            if high >= largest:
                return float("inf")
            low, high = high, min(4 * high, largest)
        # The search ends when N is known to 0.5 %, which is far below its uncertainty. N can
        # vary by powers of ten, so the search uses geometric means.
        while high / low > 1.005:
            middle = float(np.sqrt(low * high))
            if self.probability_met(target, middle) < assurance:
                low = middle
            else:
                high = middle
        return float(np.ceil(high))

    @property
    def rate(self) -> Estimate:
        """Local rate at N₀: the percentage by which the loss decreases with 1 % more images."""
        floors = self.fit.floors[self._curve]
        # At N₀ the derivative of −log loss by log N is (1 − floor) · rate.
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
        """Return the log loss at N for each rate and floor, shifted towards the two plain fits."""
        means = self.fit.log_levels[self._curve] + self._log_shape(train_size)
        if not (self.prior.power_law_share or self.prior.floored_share):
            return np.asarray(means)
        # Beyond the range of extrapolation, the plain fits decrease without a limit. There,
        # the shift at the end of the range is used.
        within = min(train_size, MAX_EXTRAPOLATION * self.largest_size)
        inside = self.fit.log_levels[self._curve] + self._log_shape(within)
        expected = float((self._grid_weights * inside).sum())
        return np.asarray(means + self._shift(within, expected))

    def _shift(self, train_size: float, expected: float) -> float:
        """Return the amount by which the plain fits shift the expected log loss at a train size."""
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
        """Return the means and variances of the log loss of a new point.

        The means have the shape ``(num_rates, num_floors)``, the variances ``(num_scales,)``.
        Both are for an infinitely large test set.
        """
        means = self._means(train_size)
        expected = float((self._grid_weights * means).sum())
        noise = self.fit.noise_variance(self._curve, expected)
        log_ratio = np.log(train_size / self.largest_size)
        # Level, seeds and misfit are independent, so their variances add.
        variance = self._level_variance + noise / num_trainings
        variance += float(self.prior.misfit_variance(np.array(log_ratio)))
        return means, variance * self._variance_factors

    def _mass_below(self, means: Array, variances: Array, log_loss: float) -> float:
        distances = (log_loss - means)[..., None] / np.sqrt(variances)
        return float((self._weights * ndtr(distances)).sum())

    def _quantile(self, means: Array, variances: Array, share: float) -> float:
        """Return a quantile of the mixture of normal distributions, by bisection."""
        # Every quantile lies at most eight standard deviations beyond the smallest or largest
        # mean.
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
    """Return the probability of each step of a network (columns) for each common step (rows)."""
    # The grid cannot represent a distribution that is narrower than one step.
    own_sd = max(np.sqrt(1 - sharing), steps[1] - steps[0])
    distances = (steps[None, :] - np.sqrt(sharing) * steps[:, None]) / own_sd
    density = np.exp(-0.5 * distances**2)
    return np.asarray(density / density.sum(axis=1, keepdims=True))


def merged_by_size(points: Sequence[CurvePoint]) -> tuple[CurvePoint, ...]:
    """Return one point per train size, with the mean score of its trainings, sorted by size."""
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
    """Return the sum of squared deviations of log losses from the mean of their train size."""
    total, degrees = 0.0, 0
    for size in {point.train_size for point in points}:
        logs = [log_loss_of(point, metric) for point in points if point.train_size == size]
        total += float(((np.array(logs) - np.mean(logs)) ** 2).sum())
        degrees += len(logs) - 1
    return SumOfSquares(total, degrees)


def log_of_score(score: float, metric: Metric) -> float:
    """Return the logarithm of a loss, or of the error rate for other scores.

    Raises:
        DataError: If the score is out of its range.
    """
    if metric == "loss":
        if not score > 0:
            raise DataError(
                f"One training has the loss {score:g}, which is not above 0",
                hint="Remove this training from the table",
            )
        return float(np.log(score))
    if not 0 <= score <= 1:
        raise DataError(
            f"One training has the {metric} {score:g}, which is not a share from 0 to 1",
            hint="Write 70 % as 0.7",
        )
    return float(np.log(max(_errors_of(score, metric), LEAST_ERRORS)))


def _errors_of(score: float, metric: Metric) -> float:
    """Return 1 − score for an accuracy or AUROC. Return an error rate unchanged."""
    return 1 - score if metric in RISING_METRICS else score


def log_loss_of(point: CurvePoint, metric: Metric) -> float:
    """Return the logarithm of a point's loss, or of its error rate for other scores.

    If the size of the test set is known, the error rate is computed as (errors + 0.5) /
    (images + 1). Its logarithm is then finite even if there are no errors.

    Raises:
        DataError: If the score is out of its range, or if it is perfect and the size of the
            test set is unknown.
    """
    if metric == "loss":
        return log_of_score(point.score, metric)
    if point.num_test_images is None:
        if _errors_of(point.score, metric) == 0:
            raise DataError(
                "One training has a perfect score on its test set, so isweep needs the number of "
                "test images",
                hint="Give the number of test images with --test-size",
            )
        return log_of_score(point.score, metric)
    errors = np.exp(log_of_score(point.score, metric))
    num = point.num_test_images
    # Half an error is added, so the logarithm of a perfect score is finite.
    return float(np.log((errors * num + 0.5) / (num + 1)))


def test_variance(point: CurvePoint, metric: Metric) -> float:
    """Return the variance of the log error rate that comes from a finite test set.

    All trainings share the test set, so more seeds do not reduce this variance. For an error
    rate e on n images, the variance is (1 − e) / (n e). This is the variance of log e if the
    number of errors is binomial. For an AUROC, the variance of Hanley & McNeil (1982) is
    divided by (1 − AUROC)².
    """
    if metric == "loss" or point.num_test_images is None:
        return 0.0
    errors = float(np.exp(log_loss_of(point, metric)))
    if metric == "auroc":
        return auroc_variance(1 - errors, point) / errors**2
    return (1 - errors) / (point.num_test_images * errors)


def auroc_variance(area: float, point: CurvePoint) -> float:
    """Return the variance of an AUROC that comes from a finite test set (Hanley & McNeil 1982).

    Args:
        area: The AUROC.
        point: A point with the number of all test images, and the number of test images of the
            positive class. If the second number is unknown, half of the test images count as
            positive.
    """
    total = point.num_test_images or 2
    positives = max(1, min(point.num_positives or total // 2, total - 1))
    negatives = total - positives
    # These are Q₁ and Q₂ of Hanley & McNeil. They are the probabilities that two images of one
    # class are both on the correct side of one image of the other class.
    two_positives = area / (2 - area)
    two_negatives = 2 * area**2 / (1 + area)
    spread = (
        area * (1 - area)
        + (positives - 1) * (two_positives - area**2)
        + (negatives - 1) * (two_negatives - area**2)
    )
    return spread / (positives * negatives)
