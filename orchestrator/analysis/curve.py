"""Log loss against N of one dataset: what the sweep says of its like, moved by its pilot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator.analysis import points as t
from orchestrator.analysis.distributions import t_quantile
from orchestrator.analysis.growth_records import EXPONENT, Growth
from orchestrator.analysis.regression import Array
from orchestrator.analysis.table_checks import LARGEST_VALUE
from orchestrator.analysis.words import listing
from orchestrator.results import columns as c
from search_spaces.errors import DataError

#: Train sizes beyond this are reported as "no size": no dataset has so many images.
LARGEST_TRAIN_SIZE = 1e15
LEVEL = 0.90
#: An interval of train sizes or losses wider than this factor is no answer.
WIDEST_ANSWER = 1e4
CANNOT_BE_TOLD = "cannot be told"
#: An interval that d_data and K_F make no shorter than this share is worth a pilot, of this many at most.
WORTH = 0.30
MOST_PILOT = 6


@dataclass(frozen=True, slots=True)
class PilotPoint:
    """A small training on the user's own data: its train size (images) and test loss (nat)."""

    train_size: float
    test_loss: float


class Curve:
    """Log loss against N of one dataset: the sweep's prior for its (d_data, K_F), moved by its pilot.

    Args:
        growth: the prior.
        d_data: of the dataset.
        label_sharpness: of the dataset.
        pilot: trainings on the dataset.
        informed: False for the prior that knows nothing of the dataset.
    """

    def __init__(
        self,
        growth: Growth,
        d_data: float,
        label_sharpness: float,
        pilot: Sequence[PilotPoint] = (),
        *,
        informed: bool = True,
    ) -> None:
        prior = growth.informed if informed else growth.plain
        if prior is None:
            raise DataError("A prediction needs a fitted prior", growth.reason, "fit again")
        self.growth, self.prior = growth, prior
        self.d_data, self.log_sharpness = d_data, float(np.log(label_sharpness))
        self.num_pilot = len(pilot)
        variances = [prior.height_variance, prior.slope_variance]
        size = len(prior.values)
        self.mean = np.concatenate([prior.values, [0.0, 0.0]])
        self.covariance = np.zeros((size + 2, size + 2))
        self.covariance[:size, :size] = prior.covariance
        self.covariance[size:, size:] = np.diag(variances)
        if pilot:
            self._learn(pilot)

    def _row(self, train_size: float) -> Array:
        log_size = float(np.log(train_size))
        known = {
            EXPONENT: -log_size / self.d_data,
            t.INVERSE_D: 1 / self.d_data,
            t.LOG_SHARPNESS: self.log_sharpness,
            t.LOG_TRAIN_SIZE: log_size,
        }
        return np.array(
            [1.0, *(known[name] for name in self.prior.terms), 1.0, log_size - self.growth.centre]
        )

    def _learn(self, pilot: Sequence[PilotPoint]) -> None:
        """Condition fixed and own effects on the pilot's log losses (the posterior of a linear Gaussian
        model).
        """
        design = np.array([self._row(point.train_size) for point in pilot])
        losses = np.log([point.test_loss for point in pilot])
        spread = design @ self.covariance @ design.T + np.eye(len(pilot)) * self.prior.residual_variance
        gain = self.covariance @ design.T @ np.linalg.pinv(spread, hermitian=True)
        self.mean = self.mean + gain @ (losses - design @ self.mean)
        self.covariance = self.covariance - gain @ design @ self.covariance

    def at(self, train_size: float) -> tuple[float, float | None]:
        """Return log loss and the half width of its interval for one training; None below three datasets."""
        log_loss, variance = self.moments(train_size)
        if self.growth.num_datasets < 3:
            return log_loss, None
        quantile = t_quantile(0.5 + LEVEL / 2, self.prior.degrees_of_freedom)
        stretch = self.prior.stretch[min(self.num_pilot, len(self.prior.stretch) - 1)]
        return log_loss, float(stretch * quantile * np.sqrt(variance))

    def moments(self, train_size: float) -> tuple[float, float]:
        """Return mean and variance of log loss of one training, as the prior has them."""
        row = self._row(train_size)
        variance = float(row @ self.covariance @ row) + self.prior.residual_variance
        return float(row @ self.mean), max(variance, 0.0)

    def shorter(self, train_size: float) -> float | None:
        """By which share the interval is shorter than one that knows nothing of the dataset."""
        plain = Curve(self.growth, self.d_data, float(np.exp(self.log_sharpness)), informed=False).at(
            train_size
        )[1]
        ours = self.at(train_size)[1]
        return None if not plain or ours is None else 1 - ours / plain

    def advice(self, train_size: float) -> list[str]:
        """Say which pilot would shorten an interval that knows hardly more than model and N.

        How much a pilot shortens it depends on its train sizes alone, not on the losses that it will find.
        """
        shorter = self.shorter(train_size)
        if self.num_pilot or shorter is None or shorter >= WORTH:
            return []
        how = f"{shorter:.0%} shorter" if shorter > 0 else "no shorter"
        poor = f"d_data and K_F make the interval {how} than one that knows nothing of the dataset"
        low, high = self.growth.ranges[c.TRAIN_SIZE]
        last = max(low, min(high, train_size / 2))
        for num in range(1, MOST_PILOT + 1):
            # Trainings of one size would share their images: a pilot has as many sizes as trainings.
            sizes = np.geomspace(low if num == 1 else min(low, last / 2), last, num)
            pilot = [PilotPoint(size, 1.0) for size in sizes]
            sharpness = float(np.exp(self.log_sharpness))
            better = Curve(self.growth, self.d_data, sharpness, pilot).shorter(train_size)
            if better is not None and better >= WORTH:
                named = listing([f"{size:.0f}" for size in sizes])
                return [f"{poor}; a pilot at {named} images would make it {better:.0%} shorter"]
        return [f"{poor}, and no pilot of up to {MOST_PILOT} trainings would by {WORTH:.0%}"]

    def loss_at(self, train_size: float) -> tuple[float | None, tuple[float, float] | None, list[str]]:
        """Return the loss of one training and its interval, or why neither can be told."""
        log_loss, reach = self.at(train_size)
        if abs(log_loss) > np.log(LARGEST_VALUE):
            power = log_loss / np.log(10)
            return None, None, [f"{CANNOT_BE_TOLD}: at these numbers the fit has a loss of 10^{power:.0f}"]
        if reach is None:
            return float(np.exp(log_loss)), None, []
        if 2 * reach > np.log(WIDEST_ANSWER):
            # Written by its exponents: the bounds themselves may lie beyond any number.
            low, high = ((log_loss + sign * reach) / np.log(10) for sign in (-1, 1))
            why = (
                f"{CANNOT_BE_TOLD}: the loss could lie between 10^{low:.0f} and 10^{high:.0f}, more than a "
                f"factor {WIDEST_ANSWER:.0e}; {self._pilot()} narrows it"
            )
            return None, None, [why]
        return float(np.exp(log_loss)), (float(np.exp(log_loss - reach)), float(np.exp(log_loss + reach))), []

    def size_for(self, target: float) -> tuple[float | None, tuple[float, float] | None, list[str]]:
        """Return the train size at which the loss reaches ``target`` and its interval, or why neither can
        be told.
        """
        sizes = np.geomspace(1, LARGEST_TRAIN_SIZE, 3001)
        values = np.array([self.at(size)[0] for size in sizes[[0, -1]]])
        slope = (values[1] - values[0]) / np.log(LARGEST_TRAIN_SIZE)
        if slope >= 0:
            return None, None, [f"{CANNOT_BE_TOLD}: in this fit the loss does not fall with N"]
        log_size = (np.log(target) - values[0]) / slope
        if log_size > np.log(LARGEST_TRAIN_SIZE):
            why = f"{CANNOT_BE_TOLD}: more than {LARGEST_TRAIN_SIZE:.0e} images would be needed"
            return None, None, [why]
        if log_size <= 0:
            smallest = self.growth.ranges[c.TRAIN_SIZE][0]
            why = (
                f"{CANNOT_BE_TOLD}: this fit has the loss at or below {target:.3g} at every size; "
                f"the smallest fitted is {smallest:.0f} images"
            )
            return None, None, [why]
        size = float(np.exp(log_size))
        if self.at(size)[1] is None:
            return size, None, []
        low, high = (self._first(sizes, sign, float(np.log(target))) for sign in (-1, 1))
        if low is None or high is None or high / low > WIDEST_ANSWER:
            return None, None, [self._why(target, low, high)]
        return size, (low, high), []

    def _first(self, sizes: Array, sign: int, target: float) -> float | None:
        bounds = [value + sign * (reach or 0.0) for value, reach in map(self.at, sizes.tolist())]
        reached = np.flatnonzero(np.array(bounds) <= target)
        return float(sizes[reached[0]]) if len(reached) else None

    def _why(self, target: float, low: float | None, high: float | None) -> str:
        at = "no bound" if high is None else f"{high:.2g}"
        return (
            f"{CANNOT_BE_TOLD}: between {'1' if low is None else f'{low:.2g}'} and {at} images could reach "
            "a loss of "
            f"{target:.3g}, more than a factor {WIDEST_ANSWER:.0e}; {self._pilot()} narrows it"
        )

    def _pilot(self) -> str:
        return "a larger pilot" if self.num_pilot else "a pilot of small trainings on the dataset itself"
