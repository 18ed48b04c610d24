"""Prediction for a new dataset from a sweep of other datasets: loss at N, or N for a target loss.

A prediction uses the fits of :mod:`orchestrator.analysis.loss_growth` and, if there is one, a
pilot. A pilot consists of a few trainings with few images of the new dataset. A prediction is
reported with its interval, if the interval is known. If the ends of the interval of a loss
differ by more than a factor of 10,000, no value is reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from orchestrator.analysis.inference import Interval
from orchestrator.analysis.loss_growth import LEVEL, MAX_PILOT_POINTS, Growth, GrowthCurve
from orchestrator.analysis.number_formats import listing, number
from orchestrator.analysis.prediction_inputs import PilotPoint, check_numbers
from orchestrator.analysis.results_tables.chance_level import is_at_chance_level
from orchestrator.analysis.results_tables.checks import LARGEST_VALUE
from orchestrator.analysis.results_tables.points import WORDS
from orchestrator.results.columns import D_DATA_MLE, LABEL_SHARPNESS, TRAIN_SIZE

LARGEST_TRAIN_SIZE = 1e15
"""Upper limit for a predicted train size. No dataset has so many images."""
SIZE_STEPS = 3001
"""Number of train sizes at which an interval is computed. They range from 1 to the largest
train size, in steps of 1.2 %.
"""
WIDEST_ANSWER = 1e4
"""Largest factor between the ends of the interval of a loss. If the factor is larger, no loss
is reported."""
WORTHWHILE_GAIN = 0.30
"""Share by which d_data and K_F should shorten an interval. If they shorten it less, isweep
recommends a pilot.
"""
MAX_EXPONENT = 4
"""Largest exponent of ten of a loss that is written as a plain number."""
FAR_FACTOR = 2.0
"""Largest factor by which the N of a pilot may lie outside the range of the sweep's train
sizes. If N lies farther outside, isweep prints a warning."""

OpenInterval = tuple[float | None, float | None]
"""An interval. If it has no bound on one side, this end is None."""


class NoPredictionError(Exception):
    """The error if no prediction is possible with a fit. The message contains the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """A predicted loss (nat) or needed train size (images) with a 90 % interval.

    Attributes:
        quantity: ``loss`` or ``train_size``.
        value: The prediction; None if no prediction is possible.
        interval: 90 % interval. An end without a bound is None. The whole field is None if no
            interval is known.
        extrapolating: True if N, d_data or K_F lies outside the range of the sweep.
        warning: Warnings, separated by semicolons and without a full stop.
        shorter: Share by which d_data, K_F and the pilot shorten the interval of log loss.
            None if the interval is unknown or has no bound on one side.
        num_pilot: Number of pilot points.
    """

    quantity: str
    value: float | None
    interval: OpenInterval | None
    extrapolating: bool
    warning: str
    shorter: float | None = None
    num_pilot: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the fields as a dict. The key of the value is the name of its quantity."""
        fields = asdict(self)
        if self.interval is not None:
            fields["interval"] = list(self.interval)
        return {fields.pop("quantity"): fields.pop("value"), **fields}

    def lines(self) -> list[str]:
        """Return the prediction and its warnings as lines of text."""
        name, unit = "number of images", "images"
        if self.quantity == "loss":
            name, unit = "test loss", "nat"
        answer = f"no {name}" if self.value is None else f"{name} {number(self.value)} {unit}"
        lines = [f"{answer}, {self._interval_words()}."]
        if self.shorter is not None:
            comparison = "shorter" if self.shorter >= 0 else "longer"
            change = f"{abs(self.shorter):.0%}"
            if change == "0%":
                change = "no"
                comparison = "shorter"
            lines.append(
                f"The interval is {change} {comparison} than without d_data, K_F and a pilot."
            )
        if self.warning:
            lines.append(f"Beware: {self.warning}.")
        return lines

    def _interval_words(self) -> str:
        low, high = self.interval or (None, None)
        if low is not None and high is not None:
            return f"{LEVEL:.0%} interval {number(low)} to {number(high)}"
        if low is not None:
            return f"{LEVEL:.0%} interval from {number(low)} on"
        if high is not None:
            return f"{LEVEL:.0%} interval up to {number(high)}"
        return "no interval"

    def __repr__(self) -> str:
        return f"Prediction: {' '.join(self.lines())}"


def predict(
    growth: Growth,
    *,
    d_data: float | None,
    label_sharpness: float | None,
    train_size: float | None = None,
    target_loss: float | None = None,
    pilot: Sequence[PilotPoint] = (),
    measures_are_comparable: bool = True,
) -> Prediction:
    """Predict the loss at a train size, or the number of images for a target loss.

    Exactly one of ``train_size`` and ``target_loss`` must be given.

    Args:
        growth: The fits of a sweep.
        d_data: Intrinsic dimension of the dataset (maximum likelihood).
        label_sharpness: K_F of the dataset, on the scale of the fit. If d_data or K_F is None,
            neither is used.
        train_size: N at which the loss is predicted.
        target_loss: Test loss in nat for which N is predicted.
        pilot: Trainings with few images of the new dataset.
        measures_are_comparable: False if d_data was measured at a much smaller N than in the
            sweep. Estimates of d increase with N, so d_data and K_F are not used in this case.

    Raises:
        ConfigError: If a number is out of range, or if not exactly one of train size and
            target loss is given.
    """
    check_numbers(d_data, label_sharpness, train_size, target_loss, pilot)
    points = _merged(pilot)
    informed = None if measures_are_comparable else False
    curve = GrowthCurve(growth, d_data, label_sharpness, points, informed=informed)
    reasons, value, interval = [], None, None
    try:
        if train_size is None:
            value, interval = size_for(curve, float(target_loss or 0.0))
        else:
            value, interval = loss_at(curve, train_size)
    except NoPredictionError as error:
        reasons.append(f"no prediction: {error}")
    size = value if train_size is None else train_size
    outside = _outside(growth, size, d_data, label_sharpness, curve.is_informed)
    advice_size = growth.ranges[TRAIN_SIZE][1] if size is None else size
    warnings = [
        *reasons,
        *growth.doubts,
        *_measures_doubt(growth, curve, measures_are_comparable),
        *_pilot_doubts(growth, points),
        *outside,
        *advice(curve, advice_size),
    ]
    shorter = None
    if interval is not None and None not in interval and size is not None:
        shorter = curve.shorter(size)
    return Prediction(
        quantity="train_size" if train_size is None else "loss",
        value=value,
        interval=interval,
        extrapolating=bool(outside) or size is None,
        warning="; ".join(warnings),
        shorter=shorter,
        num_pilot=len(points),
    )


def _merged(pilot: Sequence[PilotPoint]) -> list[PilotPoint]:
    """Return one point per train size, with the geometric mean of the losses."""
    log_losses: dict[float, list[float]] = {}
    for point in pilot:
        log_losses.setdefault(point.train_size, []).append(float(np.log(point.test_loss)))
    return [
        PilotPoint(size, float(np.exp(np.mean(logs)))) for size, logs in sorted(log_losses.items())
    ]


def loss_at(curve: GrowthCurve, train_size: float) -> tuple[float, Interval | None]:
    """Return the predicted loss of one training, and the interval of the prediction.

    Raises:
        NoPredictionError: If the loss is too large or too small for a float, or if its
            interval is too wide.
    """
    log_loss, half_width = curve.at(train_size)
    if abs(log_loss) > np.log(LARGEST_VALUE):
        exponent = log_loss / np.log(10)
        raise NoPredictionError(f"with these numbers, the fit gives a loss of 10^{exponent:.0f}")
    if half_width is None:
        return float(np.exp(log_loss)), None
    low, high = log_loss - half_width, log_loss + half_width
    if 2 * half_width > np.log(WIDEST_ANSWER):
        ends = f"{_loss_text(low)} and {_loss_text(high)}"
        reason = f"the loss could lie between {ends}, {_too_wide(curve, train_size)}"
        raise NoPredictionError(reason)
    return float(np.exp(log_loss)), (float(np.exp(low)), float(np.exp(high)))


def _loss_text(log_loss: float) -> str:
    """Return a loss as text. A loss below 1e-4 or above 1e4 is written as a power of ten."""
    exponent = log_loss / np.log(10)
    if abs(exponent) <= MAX_EXPONENT:
        return number(float(np.exp(log_loss)))
    return f"10^{exponent:.0f}"


def size_for(curve: GrowthCurve, target: float) -> tuple[float, OpenInterval | None]:
    """Return the train size at which the loss reaches a target, and its interval.

    The ends of the interval are the train sizes at which the bounds of the loss reach the
    target. If a bound never reaches the target, the end is None.

    Raises:
        NoPredictionError: If the loss does not fall with N, if it does not reach the target,
            or if it is below the target at every N.
    """
    # The expected log loss is linear in log N, so it is known at all sizes if it is known at
    # two.
    first, last = (curve.at(size)[0] for size in (1.0, LARGEST_TRAIN_SIZE))
    slope = (last - first) / np.log(LARGEST_TRAIN_SIZE)
    if slope >= 0:
        raise NoPredictionError("in this fit the loss does not fall with N")
    log_size = (np.log(target) - first) / slope
    if log_size > np.log(LARGEST_TRAIN_SIZE):
        raise NoPredictionError(f"more than {LARGEST_TRAIN_SIZE:,.0f} images would be needed")
    if log_size <= 0:
        smallest = f"the smallest fitted train size is {curve.growth.ranges[TRAIN_SIZE][0]:.0f}"
        raise NoPredictionError(
            f"the loss is at or below {number(target)} at every train size in this fit; {smallest}"
        )
    value = float(np.exp(log_size))
    if curve.at(1.0)[1] is None:
        return value, None
    sizes = np.geomspace(1, LARGEST_TRAIN_SIZE, SIZE_STEPS).tolist()
    lows, highs = [], []
    for size in sizes:
        log_loss, half_width = curve.at(size)
        lows.append(log_loss - (half_width or 0.0))
        highs.append(log_loss + (half_width or 0.0))
    # The lower ends of the losses reach the target at a smaller N, so they give the lower
    # bound of N.
    return value, (_first_below(sizes, lows, target), _first_below(sizes, highs, target))


def _first_below(
    sizes: Sequence[float], log_losses: Sequence[float], target: float
) -> float | None:
    """Return the first train size at which the loss is at most the target, by interpolation.

    Returns None if the loss is above the target at every train size, or if it is already at
    most the target at the first one.
    """
    above = np.array(log_losses) - np.log(target)
    is_reached = above <= 0
    if not is_reached.any() or is_reached[0]:
        return None
    after = int(is_reached.argmax())
    before = after - 1
    # Linear interpolation of log loss over log N.
    share = above[before] / (above[before] - above[after])
    return float(sizes[before] * (sizes[after] / sizes[before]) ** share)


def advice(curve: GrowthCurve, train_size: float) -> list[str]:
    """Return a sentence on the smallest pilot that would shorten the interval enough.

    If even the largest pilot would not shorten the interval enough, the sentence states this.
    If there is already a pilot, or if the interval is short enough, the text is empty. The
    width of an interval depends on the train sizes of the pilot, and not on its losses.
    """
    shorter = curve.shorter(train_size)
    if curve.num_pilot or shorter is None or shorter >= WORTHWHILE_GAIN:
        return []
    gain = f"only {shorter:.0%} shorter" if shorter > 0 else "no shorter"
    lead = f"d_data and K_F make the interval {gain}"
    smallest, largest = curve.growth.ranges[TRAIN_SIZE]
    last = max(smallest, min(largest, train_size / 2))
    for num_points in range(1, MAX_PILOT_POINTS + 1):
        # All trainings have different sizes, because trainings of the same size would use the
        # same images.
        first = smallest if num_points == 1 else min(smallest, last / 2)
        sizes = np.geomspace(first, last, num_points)
        # The width of the interval does not depend on the loss of the pilot, so any loss can
        # be used.
        pilot = [PilotPoint(size, 1.0) for size in sizes]
        better = GrowthCurve(curve.growth, curve.d_data, curve.label_sharpness, pilot)
        gained = better.shorter(train_size)
        if gained is not None and gained >= WORTHWHILE_GAIN:
            names = listing([f"{size:.0f}" for size in sizes])
            return [f"{lead}; a pilot at {names} images would make it {gained:.0%} shorter"]
    return [
        f"{lead}; a pilot of up to {MAX_PILOT_POINTS} trainings would make the interval "
        f"less than {WORTHWHILE_GAIN:.0%} shorter"
    ]


def _too_wide(curve: GrowthCurve, train_size: float) -> str:
    reason = f"which differ by more than a factor of {WIDEST_ANSWER:,.0f}"
    if advice(curve, train_size):
        return reason
    pilot = "a pilot of small trainings on the dataset itself"
    if curve.num_pilot:
        pilot = "a larger pilot"
    return f"{reason}; {pilot} may narrow this interval"


def _measures_doubt(growth: Growth, curve: GrowthCurve, are_comparable: bool) -> list[str]:
    """Return the reason why d_data and K_F are not used; empty if they are used."""
    if curve.is_informed:
        return []
    if curve.d_data is None or curve.label_sharpness is None:
        return ["d_data and K_F are not both known, so they are not used"]
    if not are_comparable:
        return [
            "the pilot's d_data comes from far fewer images than the sweep's d_data and is "
            "therefore too low, so d_data and K_F are not used"
        ]
    if not growth.plain.log_scores:
        return [
            "there are too few datasets to test whether d_data and K_F improve predictions, "
            "so neither is used"
        ]
    return [
        "d_data and K_F do not improve the predictions for left-out datasets, so they are not used"
    ]


def _outside(
    growth: Growth,
    size: float | None,
    d_data: float | None,
    label_sharpness: float | None,
    is_informed: bool,
) -> list[str]:
    """Return a sentence for each input that lies outside the range of the fit."""
    values = {TRAIN_SIZE: size}
    if is_informed:
        values |= {D_DATA_MLE: d_data, LABEL_SHARPNESS: label_sharpness}
    sentences = []
    for name, (low, high) in growth.ranges.items():
        value = values.get(name)
        if value is not None and not low * (1 - 1e-9) <= value <= high * (1 + 1e-9):
            fitted = f"the fitted range {number(low, 4)} to {number(high, 4)}"
            sentences.append(f"{WORDS[name]} {number(value, 4)} lies outside {fitted}")
    return sentences


def _pilot_doubts(growth: Growth, points: Sequence[PilotPoint]) -> list[str]:
    """Return the warnings on a pilot."""
    low, high = growth.ranges[TRAIN_SIZE]
    far_sizes, at_chance = [], []
    for point in points:
        if not low / FAR_FACTOR <= point.train_size <= high * FAR_FACTOR:
            far_sizes.append(number(point.train_size))
        if is_at_chance_level(point.test_loss, growth.num_classes):
            at_chance.append(number(point.test_loss))
    doubts = []
    if far_sizes:
        sizes = ", ".join(far_sizes)
        doubts.append(
            f"the pilot's train size {sizes} is far from the sweep's train sizes {number(low)} "
            f"to {number(high)}"
        )
    if at_chance:
        losses = ", ".join(at_chance)
        doubts.append(
            f"the pilot's test loss {losses} is at chance level or above, so it hardly "
            "improves the prediction"
        )
    if points and points[-1].test_loss > points[0].test_loss:
        doubts.append("the pilot's test loss rises with its train size")
    return doubts
