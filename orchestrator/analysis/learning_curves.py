"""Extrapolate one learning curve: the score at N images, and the images that a target needs.

A curve is a loss that falls with N towards a floor,

    loss(N) = level · (floor + (1 − floor) · (N / N₀)^(−rate)),

where N₀ is the largest train size measured, ``level`` the loss there, and ``floor`` the share of it
that no number of images removes. The level is free. Rate and floor start from a prior that was
fitted to the learning curves of other datasets and ships with the package
(``learning_curve_prior.json``, written by ``benchmarks/learning_curve_prior.py``), so three train
sizes suffice. The posterior is a sum over a grid: no sampling, the same answer every time.

Scores that rise (accuracy, AUROC) are extrapolated as 1 − score.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from search_spaces.errors import DataError

Array = NDArray[np.float64]
Metric = Literal["loss", "error", "accuracy", "auroc"]

METRICS: tuple[Metric, ...] = ("loss", "error", "accuracy", "auroc")
RISING_METRICS: tuple[Metric, ...] = ("accuracy", "auroc")
"""Scores of which more is better. They are extrapolated as 1 − score."""
MIN_SIZES = 2
"""Train sizes that a curve needs. With two, the answer is mostly the prior's."""
INTERVAL_LEVEL = 0.90
"""Share of cases that an interval is meant to hold."""
DEFAULT_ASSURANCE = 0.80
"""Probability with which a target is to be met (pmsims, arXiv 2603.23688)."""
MAX_EXTRAPOLATION = 32.0
"""Train sizes beyond this multiple of the largest one measured get no number: the curves
that the prior was fitted to span a factor of up to 32."""
PRIOR_DEGREES = 4
"""Degrees of freedom that the prior's scatter between seeds counts for beside the curve's own."""
LARGEST_TRAIN_SIZE = 1e12
"""No dataset has so many images."""
LEAST_ERRORS = 1e-9
"""Share of errors that stands for none in a target."""
FLAT_GAIN = 0.05
"""A curve has flattened if twice the images would lower its loss by less than this share."""

_RATE_STEPS = np.linspace(-3.0, 3.0, 41)
_FLOOR_STEPS = np.linspace(-2.6, 2.6, 35)
"""Points of the grid, in standard deviations of the prior."""
_SCALE_STEPS = np.array([-1.8, -1.2, -0.6, 0.0, 0.6])
"""Logarithms of factors on all errors, whose prior has a standard deviation of 0.6."""
_SCALE_SD = 0.6


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """One or more trainings at one train size.

    Args:
        train_size: Number of training images.
        score: Mean score of the trainings: log loss in nat, or a share in [0, 1].
        num_trainings: How many trainings (seeds) the score is a mean of.
        num_test_images: Size of the test set; for AUROC the size of its smaller class. None leaves
            the noise of the test set to the prior.
    """

    train_size: float
    score: float
    num_trainings: int = 1
    num_test_images: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePrior:
    """What the learning curves of other datasets say of a new one, before it is trained.

    Attributes:
        log_rate_mean, log_rate_sd: Normal distribution of log(rate).
        logit_floor_mean, logit_floor_sd: Normal distribution of logit(floor).
        log_noise, noise_by_level: The standard deviation of log loss between seeds is
            exp(log_noise + noise_by_level · log loss): small losses scatter more.
        log_misfit: Logarithm of the standard deviation by which true curves leave the formula.
        widening: Factor on the predictive standard deviation, by which datasets of a kind that the
            prior has not seen are further off.
        sources: The sets of curves that the prior was fitted to.
    """

    log_rate_mean: float
    log_rate_sd: float
    logit_floor_mean: float
    logit_floor_sd: float
    log_noise: float
    noise_by_level: float
    log_misfit: float
    widening: float = 1.0
    sources: tuple[str, ...] = ()

    @property
    def rates(self) -> Array:
        """Rates of the grid, ``(num_rates, 1)``."""
        return np.exp(self.log_rate_mean + self.log_rate_sd * _RATE_STEPS)[:, None]

    @property
    def floors(self) -> Array:
        """Floors of the grid, as shares of the level at N₀, ``(1, num_floors)``."""
        logits = self.logit_floor_mean + self.logit_floor_sd * _FLOOR_STEPS
        return (1 / (1 + np.exp(-logits)))[None, :]

    def log_shape(self, size_ratio: float) -> Array:
        """Return log(loss(N) / level) for N = ``size_ratio`` · N₀, ``(num_rates, num_floors)``."""
        floors = self.floors
        return np.asarray(np.log(floors + (1 - floors) * size_ratio**-self.rates))

    def noise_variance(self, log_loss: float) -> float:
        """Return the variance of log loss between seeds at this level of log loss."""
        log_sd = float(np.clip(self.log_noise + self.noise_by_level * log_loss, -4.0, 0.7))
        return float(np.exp(2 * log_sd))

    @property
    def misfit_variance(self) -> float:
        """Variance of log loss by which true curves leave the formula."""
        return float(np.exp(2 * self.log_misfit))


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
    return CurvePrior(**{**fields, "sources": tuple(fields["sources"])})


class LearningCurve:
    """The posterior of one learning curve.

    Args:
        points: Finished trainings, at two train sizes or more. Points of one train size are
            averaged.
        metric: What the scores are.
        prior: The prior of rate and floor; None takes the shipped one.

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
        self, points: Sequence[CurvePoint], metric: Metric = "loss", prior: CurvePrior | None = None
    ) -> None:
        self.metric = metric
        self.prior = prior or shipped_prior(metric)
        self.points = merged_by_size(points)
        if len(self.points) < MIN_SIZES:
            rule = f"a learning curve needs {MIN_SIZES} train sizes"
            hint = f"train at {MIN_SIZES} sizes or more; three give a usable interval"
            raise DataError(rule, hint=hint)
        self._seed_squares, self._seed_degrees = _scatter_within_sizes(points, metric)
        self.largest_size = self.points[-1].train_size
        log_losses = np.array([_log_loss(point, metric) for point in self.points])
        variances = np.array([self._variance(point, log_losses.mean()) for point in self.points])
        ratios = [point.train_size / self.largest_size for point in self.points]
        shapes = np.stack([self.prior.log_shape(ratio) for ratio in ratios], axis=-1)
        self._fit(log_losses, variances, shapes)

    def _variance(self, point: CurvePoint, mean_log_loss: float) -> float:
        squares = PRIOR_DEGREES * self.prior.noise_variance(mean_log_loss) + self._seed_squares
        noise = squares / (PRIOR_DEGREES + self._seed_degrees) / point.num_trainings
        return noise + self.prior.misfit_variance + _test_variance(point, self.metric)

    def _fit(self, log_losses: Array, variances: Array, shapes: Array) -> None:
        """Weigh the grid by its likelihood; the level is integrated out, its prior being flat."""
        precisions = 1 / variances
        residuals = log_losses - shapes
        self._log_levels = (residuals * precisions).sum(axis=-1) / precisions.sum()
        deviations = residuals - self._log_levels[..., None]
        squares = (deviations**2 * precisions).sum(axis=-1)
        self._variance_factors = np.exp(2 * _SCALE_STEPS)
        log_weights = (
            norm.logpdf(_RATE_STEPS)[:, None, None]
            + norm.logpdf(_FLOOR_STEPS)[None, :, None]
            + norm.logpdf(_SCALE_STEPS / _SCALE_SD)
            - squares[..., None] / (2 * self._variance_factors)
            - (len(log_losses) - 1) * _SCALE_STEPS
        )
        weights = np.exp(log_weights - log_weights.max())
        self._weights = weights / weights.sum()
        self._level_variance = 1 / precisions.sum()

    def score_at(self, train_size: float, *, num_test_images: int | None = None) -> Estimate:
        """Return the score that one more training at this train size would have.

        Args:
            train_size: Number of training images.
            num_test_images: Size of the test set; None leaves its noise to the prior.
        """
        means, variances = self._predictive(train_size, num_test_images)
        tail = (1 - INTERVAL_LEVEL) / 2
        losses = [self._quantile(means, variances, share) for share in (0.5, tail, 1 - tail)]
        median, low, high = (self._as_score(loss) for loss in losses)
        return Estimate(value=median, low=min(low, high), high=max(low, high))

    def log_density_at(self, point: CurvePoint) -> float:
        """Return the log density of a further point's log loss: how well the curve foretold it."""
        means, variances = self._predictive(
            point.train_size, point.num_test_images, point.num_trainings
        )
        distances = _log_loss(point, self.metric) - means
        densities = norm.pdf(distances[..., None], scale=np.sqrt(variances))
        return float(np.log((self._weights * densities).sum() + 1e-300))

    def probability_met(self, target: float, train_size: float) -> float:
        """Return the probability that the curve, without noise, meets a target score at N."""
        log_target = _log_of_score(target, self.metric)
        means = self._log_levels + self.prior.log_shape(train_size / self.largest_size)
        variances = self._level_variance * self._variance_factors * self.prior.widening**2
        return self._mass_below(means, variances, log_target)

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
        floors = self.prior.floors
        local = (1 - floors) * self.prior.rates
        weights = self._weights.sum(axis=-1).ravel()
        order = np.argsort(local.ravel())
        shares = np.cumsum(weights[order])
        tail = (1 - INTERVAL_LEVEL) / 2
        places = np.searchsorted(shares, (0.5, tail, 1 - tail))
        places = np.minimum(places, len(order) - 1)
        value, low, high = local.ravel()[order][places]
        return Estimate(value=float(value), low=float(low), high=float(high))

    @property
    def probability_flat(self) -> float:
        """Probability that twice the images would lower the loss by less than 5 %."""
        gains = 1 - np.exp(self.prior.log_shape(2.0))
        return float(self._weights.sum(axis=-1)[gains < FLAT_GAIN].sum())

    def _predictive(
        self, train_size: float, num_test_images: int | None, num_trainings: int = 1
    ) -> tuple[Array, Array]:
        """Return means ``(num_rates, num_floors)`` and variances ``(num_scales,)`` of log loss."""
        means = self._log_levels + self.prior.log_shape(train_size / self.largest_size)
        expected = float((self._weights.sum(axis=-1) * means).sum())
        point = CurvePoint(
            train_size=train_size,
            score=self._as_score(expected),
            num_trainings=num_trainings,
            num_test_images=num_test_images,
        )
        variance = self._level_variance + self._variance(point, expected)
        return means, variance * self._variance_factors * self.prior.widening**2

    def _mass_below(self, means: Array, variances: Array, log_loss: float) -> float:
        distances = (log_loss - means)[..., None] / np.sqrt(variances)
        return float((self._weights * norm.cdf(distances)).sum())

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


def merged_by_size(points: Sequence[CurvePoint]) -> tuple[CurvePoint, ...]:
    """Return one point per train size, rising: the mean score of its trainings."""
    merged = []
    for size in sorted({point.train_size for point in points}):
        same = [point for point in points if point.train_size == size]
        num_trainings = sum(point.num_trainings for point in same)
        total = sum(point.score * point.num_trainings for point in same)
        tested = [point.num_test_images for point in same if point.num_test_images is not None]
        merged.append(
            CurvePoint(
                train_size=size,
                score=total / num_trainings,
                num_trainings=num_trainings,
                num_test_images=min(tested) if tested else None,
            )
        )
    return tuple(merged)


def _scatter_within_sizes(points: Sequence[CurvePoint], metric: Metric) -> tuple[float, int]:
    """Return the sum of squares of log losses around the mean of their size, and its degrees."""
    squares, degrees = 0.0, 0
    for size in {point.train_size for point in points}:
        logs = [_log_loss(point, metric) for point in points if point.train_size == size]
        squares += float(((np.array(logs) - np.mean(logs)) ** 2).sum())
        degrees += len(logs) - 1
    return squares, degrees


def _log_of_score(score: float, metric: Metric) -> float:
    """Return the logarithm of a loss, or of the share of errors that a score leaves."""
    if metric == "loss":
        if not score > 0:
            raise DataError("a loss is above 0", f"{score:g}", "leave that training out")
        return float(np.log(score))
    if not 0 <= score <= 1:
        raise DataError(f"{metric} is a share in [0, 1]", f"{score:g}", "write 70 % as 0.7")
    errors = 1 - score if metric in RISING_METRICS else score
    return float(np.log(max(errors, LEAST_ERRORS)))


def _log_loss(point: CurvePoint, metric: Metric) -> float:
    """Return the logarithm of a point's loss; half an error stands in for none."""
    if metric != "loss" and point.num_test_images is None:
        errors = 1 - point.score if metric in RISING_METRICS else point.score
        if errors == 0:
            rule = "a perfect score says nothing without the size of its test set"
            hint = "say how many test images it was measured on: --test-size"
            raise DataError(rule, hint=hint)
    if metric != "loss" and point.num_test_images:
        errors = np.exp(_log_of_score(point.score, metric))
        num = point.num_test_images
        return float(np.log((errors * num + 0.5) / (num + 1)))
    return _log_of_score(point.score, metric)


def _test_variance(point: CurvePoint, metric: Metric) -> float:
    """Return the variance of log(errors) that a finite test set causes.

    All trainings share the test set, so more seeds do not make it smaller. For a share of errors e
    of n images it is (1 − e) / (n e), the binomial variance of log e. For AUROC the same with n the
    smaller class is an upper bound of its variance (Birnbaum & Klose 1957).
    """
    if metric == "loss" or point.num_test_images is None:
        return 0.0
    num = point.num_test_images
    errors = float(np.exp(_log_loss(point, metric)))
    return (1 - errors) / (num * errors)
