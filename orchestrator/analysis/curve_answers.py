"""Answers from learning curves, in sentences: the expected score at N, and the N for a target
score.

The curves come from a sweep of one dataset or from a user's CSV file. There is one answer for
each network and class pair. The answer contains the measured curve, the expected score with
more images, and whether the curve has flattened. If the user gives a target score, the answer
also contains the number of images that reaches the target with a given probability. A
prediction also uses the curves of other networks that were trained on the same images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd

from orchestrator.analysis.curve_tables import (
    METRIC_WORDS,
    MODEL_COLUMN,
    PAIR_COLUMN,
    SCORE_COLUMNS,
    checked_table,
    curve_points,
    varies,
    with_article,
)
from orchestrator.analysis.learning_curves import (
    DEFAULT_ASSURANCE,
    FLAT_GAIN,
    INTERVAL_LEVEL,
    LARGEST_TRAIN_SIZE,
    MAX_EXTRAPOLATION,
    METRICS,
    RISING_METRICS,
    CurvePoint,
    Estimate,
    LearningCurve,
    Metric,
)
from orchestrator.analysis.number_formats import listing, number
from search_spaces.errors import ConfigError, DataError, plural, unknown_name

USABLE_SIZES = 3
"""Smallest number of train sizes that gives a usable interval."""
LIKELY, UNLIKELY = 0.9, 0.1
"""Limits of the probability that a curve has flattened. If the probability is at least
``LIKELY``, isweep prints that the curve has flattened. If the probability is at most
``UNLIKELY``, isweep prints that the score probably still improves."""
MIN_STEEPENING = 2.0
"""Limit for the ratio of the predicted rate of improvement to the measured rate. Above this
limit, the prior decides the prediction: learning curves flatten, so measured scores alone
cannot predict a higher rate. The value 2 was chosen by judgment. It only decides whether
``PRIOR_DECIDES`` is printed."""
PRIOR_DECIDES = "The following prediction rests on the curves of other datasets."
LEAST_SIZE_ASSURANCE = 0.1
"""Probability with which ``least_train_size`` in the JSON document reaches the target."""
MAX_DECIMALS = 6
"""Largest number of decimals of a printed score."""
TAIL = (1 - INTERVAL_LEVEL) / 2
"""Probability on each side of the interval of the needed N."""
LIKELY_REACHABLE = 0.5
"""Smallest probability of reaching a target for which the answer begins with the number of
images. With a smaller probability, it begins with the probability that no number suffices."""
LEAST_REACHABLE = 2 * TAIL
"""Smallest probability of reaching a target for which a median N is printed. The median is
computed over the curves that reach the target. With a smaller probability, the median can lie
outside the interval."""
CHANCE_MARGIN = 0.05
"""Smallest distance from chance level of a score that is clearly better, if the size of the
test set is unknown. The distance is a share of the loss or error rate at chance level."""
MEASURED_ASSURANCE = {3: 44, 4: 57, 5: 71}
"""Percentage of cases in which the predicted number of images was large enough, by number of
train sizes. The predictions were made for a probability of 80 %, from 489 learning curves of
losses (``benchmarks/prediction_rivals.py``)."""
CHANCE_STANDARD_ERRORS = 2.0
"""Smallest distance from chance level of a score that is clearly better, in standard errors of
the test set."""


@dataclass(frozen=True, slots=True)
class CurveQuestion:
    """A user's question about learning curves.

    Args:
        metric: The score to extrapolate.
        train_size: N at which the score is predicted. If None, this is twice the largest train
            size.
        target: Score to reach. If None, no number of images is predicted.
        assurance: Probability with which the target should be reached, above 0 and below 1.
        test_size: Number of test images. If None, the column of the table is used, if there is
            one.
    """

    metric: Metric = "loss"
    train_size: int | None = None
    target: float | None = None
    assurance: float = DEFAULT_ASSURANCE
    test_size: int | None = None

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise unknown_name("metric", self.metric, METRICS)
        for name, value in (("assurance", self.assurance), ("target", self.target)):
            if value is not None and not _is_number(value):
                raise ConfigError(
                    f"{name} is {value!r}, which is not a number",
                    hint="Give a number, such as 0.8",
                )
        if self.train_size is not None and not (
            _is_number(self.train_size) and self.train_size >= 1
        ):
            raise ConfigError(
                f"train_size is {self.train_size!r}, which is not a number of images",
                hint="Give a number of at least 1, such as 500",
            )
        if self.test_size is not None and not (_is_number(self.test_size) and self.test_size >= 2):
            raise ConfigError(
                f"test_size is {self.test_size!r}, but a test set has at least 2 images",
                hint="Give the number of test images, such as 200",
            )
        if not 0 < self.assurance < 1:
            raise ConfigError(
                f"assurance is {self.assurance:g}, but it must be above 0 and below 1",
                hint="Give a probability, such as 0.8",
            )
        if self.target is None:
            return
        if self.metric == "loss" and not self.target > 0:
            raise ConfigError(
                f"The target loss is {self.target:g}, but every loss is above 0",
                hint="Give a loss that a network can reach, such as 0.3",
            )
        if self.metric != "loss" and not 0 < self.target < 1:
            raise ConfigError(
                f"The target {METRIC_WORDS[self.metric]} is {self.target:g}, but it must be "
                "above 0 and below 1",
                hint="Give a share: write 90 % as 0.9",
            )


@dataclass(frozen=True, slots=True)
class ChanceLevel:
    """The score of a network that has learned nothing.

    Attributes:
        score: The score at chance level.
        num_classes: Number of classes.
        is_assumed: True if the number of classes is unknown, so two classes are assumed.
        better_metric: Another metric of the same trainings that is better than chance level;
            None if there is none.
    """

    score: float
    num_classes: int
    is_assumed: bool
    better_metric: Metric | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NeededImages:
    """The number of images that are needed to reach a target score.

    Attributes:
        assured: Smallest N that reaches the target with the requested probability. It is inf
            if this N is beyond the range of extrapolation.
        middle: Median of the smallest N that reaches the target. The median is over the
            plausible curves that reach the target; inf if no curve reaches it.
        low, high: 90 % interval of the smallest N that reaches the target. ``low`` is at least
            the smallest measured train size. ``high`` is inf if there is no upper bound.
        least: Smallest N that reaches the target with a probability of 10 %.
        probability_at_smallest: Probability that the smallest measured train size reaches the
            target.
        probability_reachable: Probability that some number of images reaches the target.
        probability_at_limit: Probability that the largest N of the range of extrapolation
            reaches the target.
    """

    assured: float
    middle: float
    low: float
    high: float
    least: float
    probability_at_smallest: float
    probability_reachable: float
    probability_at_limit: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CurveAnswer:
    """The answer for the learning curve of one network.

    Attributes:
        name: The network, with its class pair if there are several pairs.
        question: The question.
        points: The measured points, one per train size, sorted by train size.
        asked_size: N at which the score is predicted.
        score: The predicted score at ``asked_size``, with its interval.
        rate: Percentage by which the loss decreases with 1 % more images at the largest train
            size, with its interval.
        probability_flat: Probability that twice the images lower the loss by less than 5 %.
        images: Number of images that the target needs. None if there is no target, or if the
            curve is at chance level.
        chance: Chance level if no score is clearly better than chance level; else None.
        num_siblings: Number of curves of other networks on the same images.
        prior_sources: Names of the sets of curves to which the prior was fitted.
        caution: Sentences that are printed before the prediction; empty if there are none.
    """

    name: str
    question: CurveQuestion
    points: tuple[CurvePoint, ...]
    asked_size: float
    score: Estimate
    rate: Estimate
    probability_flat: float
    images: NeededImages | None
    chance: ChanceLevel | None
    num_siblings: int
    prior_sources: tuple[str, ...]
    caution: str = ""

    @property
    def smallest_size(self) -> float:
        """The smallest measured train size."""
        return self.points[0].train_size

    @property
    def largest_size(self) -> float:
        """The largest measured train size."""
        return self.points[-1].train_size

    @property
    def limit(self) -> float:
        """The largest train size of a prediction."""
        return self.largest_size * MAX_EXTRAPOLATION

    @property
    def needed_interval(self) -> tuple[float | None, float | None]:
        """The 90 % interval of the needed number of images; None for an end without a bound.

        If the lower end is the smallest measured train size, it is None, because fewer images
        may suffice. If hardly any plausible curve reaches the target, both ends are None.
        """
        images = self.images
        if images is None:
            return None, None
        low = _finite(images.low) if self._has_low(images) else None
        return low, _finite(images.high)

    def to_json(self) -> dict[str, Any]:
        """Return the answer for JSON.

        A number of images beyond the range of extrapolation is None.
        """
        images = self.images
        return {
            "name": self.name,
            "metric": self.question.metric,
            "points": [[point.train_size, point.score] for point in self.points],
            "train_size": self.asked_size,
            "score": _as_json(self.score),
            "rate": _as_json(self.rate),
            "probability_flat": self.probability_flat,
            "at_chance_level": self.chance is not None,
            "target": self.question.target,
            "assurance": self.question.assurance,
            "needed_train_size": _finite(images.assured) if images else None,
            "likely_train_size": _finite(images.middle) if images else None,
            "least_train_size": _finite(images.least) if images else None,
            "needed_interval": list(self.needed_interval) if images else None,
            "smallest_train_size_may_suffice": images is not None and not self._has_low(images),
            "probability_reachable": images.probability_reachable if images else None,
            "extrapolated_up_to": self.limit,
            "sibling_curves": self.num_siblings,
            "prior": list(self.prior_sources),
        }

    def lines(self) -> list[str]:
        """Return the answer as lines of text. A line contains one or more sentences."""
        lines = [f"{self.name}: {self.measured_line}"]
        if self.caution:
            lines.append(f"  {self.caution}")
        lines.append(f"  {self.expected_line}")
        if self.images_line:
            lines.append(f"  {self.images_line}")
        return lines

    @property
    def measured_line(self) -> str:
        """A sentence with the measured score at each train size."""
        scores = ", ".join(map(self._point_text, self.points))
        return f"{METRIC_WORDS[self.question.metric]} {scores} images."

    def _point_text(self, point: CurvePoint) -> str:
        """Return a measured score with its train size, such as ``0.74 at 840``."""
        return f"{score_text(point.score, self.question.metric)} at {number(point.train_size)}"

    @property
    def expected_line(self) -> str:
        """Sentences on the expected score.

        For a curve at chance level, sentences on chance level.
        """
        if self.chance is not None:
            return self._at_chance(self.chance)
        if not self._has_improved():
            return f"{self._fall()} {PRIOR_DECIDES} {self._score()}"
        if self._prior_decides():
            first, last = self._point_text(self.points[0]), self._point_text(self.points[-1])
            measured = f"Your {METRIC_WORDS[self.question.metric]} improves from {first} to {last}"
            return f"{measured} images. {PRIOR_DECIDES} {self._score()} {self._shape()}"
        return f"{self._score()} {self._shape()}"

    @property
    def images_line(self) -> str:
        """Sentences on the needed number of images; empty if ``images`` is None."""
        return "" if self.images is None else self._images(self.images)

    def _at_chance(self, chance: ChanceLevel) -> str:
        word = METRIC_WORDS[self.question.metric]
        num_classes, doubt = str(chance.num_classes), ""
        if chance.is_assumed:
            num_classes = "two"
            doubt = " If your dataset has more classes, add a column num_classes."
        at_chance = (
            f"Chance level for {num_classes} classes is {number(chance.score)}. No measured "
            f"{word} is clearly better."
        )
        if chance.better_metric is not None:
            better = METRIC_WORDS[chance.better_metric]
            return (
                f"{at_chance} The {better} is better than chance level, so the network has "
                f"learned something. Predict the {better} instead: use "
                f"--target-{chance.better_metric} (in Python: metric={chance.better_metric!r})."
            )
        if self.question.metric == "auroc" and all(
            point.score < chance.score for point in self.points
        ):
            doubt = " An AUROC below 0.5 often means that the classes are exchanged."
        return (
            f"{at_chance} The network has learned nothing yet, and these results "
            f"cannot show whether more images would help.{doubt} Train with "
            f"{number(2 * self.largest_size)} images next. If the score stays at chance "
            "level, check the labels and the recipe."
        )

    def _score(self) -> str:
        metric = self.question.metric
        value, low, high = (
            score_text(score, metric)
            for score in (self.score.value, self.score.low, self.score.high)
        )
        return (
            f"With {number(self.asked_size)} training images expect {with_article(metric)} of "
            f"{value} ({INTERVAL_LEVEL:.0%} interval {low} to {high})."
        )

    def _has_improved(self) -> bool:
        """Return whether the score at the largest train size is better than at the smallest one."""
        first, last = self.points[0].score, self.points[-1].score
        if self.question.metric in RISING_METRICS:
            return last > first
        return last < first

    def _prior_decides(self) -> bool:
        """Return whether the predicted rate of improvement is much higher than the measured rate.

        A rate is the decrease of the log loss, or log error rate, per unit of log N.
        """
        metric = self.question.metric
        first, last = self.points[0], self.points[-1]
        scores = (first.score, last.score, self.score.value)
        errors = [_errors(score, metric) for score in scores]
        if self.asked_size <= last.train_size or min(errors) <= 0:
            return False
        first_log, last_log, predicted_log = np.log(errors)
        measured = (first_log - last_log) / np.log(last.train_size / first.train_size)
        predicted = (last_log - predicted_log) / np.log(self.asked_size / last.train_size)
        return bool(predicted > MIN_STEEPENING * measured)

    def _fall(self) -> str:
        """Return sentences on a score that has not improved with more images."""
        first, last = self.points[0], self.points[-1]
        change = "stays the same"
        if last.score != first.score:
            change = "gets worse"
        return (
            f"Your {METRIC_WORDS[self.question.metric]} {change} with more images: "
            f"{self._point_text(first)}, {self._point_text(last)} images. Check the labels "
            "and the recipe, or train more seeds."
        )

    def _shape(self) -> str:
        """Return sentences on the best score so far, and on whether the curve has flattened."""
        score = METRIC_WORDS[self.question.metric]
        best = min(self.points, key=lambda point: _errors(point.score, self.question.metric))
        best_so_far = ""
        if best is not self.points[-1]:
            best_so_far = f"The best {score} so far is {self._point_text(best)} images. "
        return best_so_far + self._flatness(score)

    def _flatness(self, score: str) -> str:
        """Return a sentence on the probability that the curve has flattened."""
        errors = "loss" if self.question.metric == "loss" else "errors"
        small_gain = f"twice the images would remove less than {FLAT_GAIN:.0%} of the {errors}"
        probability = f"with a probability of {_percent(self.probability_flat)}"
        if self.probability_flat >= LIKELY:
            return f"The {score} has flattened: {small_gain} {probability}."
        if self.probability_flat <= UNLIKELY:
            probability = _percent(1 - self.probability_flat)
            return f"The {score} probably still improves with more images ({probability})."
        return f"It is undecided whether the {score} has flattened: {small_gain} {probability}."

    def _images(self, images: NeededImages) -> str:
        question = self.question
        goal = f"{with_article(question.metric)} of {number(question.target)}"
        sure = f"with a probability of {_percent(question.assurance)}"
        smallest = self.smallest_size
        if images.assured <= smallest:
            probability = _percent(images.probability_at_smallest)
            return (
                f"For {goal}: at most {number(smallest)} images are needed, with a "
                f"probability of {probability}. This is your smallest train size. To see "
                f"whether fewer images suffice, train with {number(max(1, smallest // 2))} "
                "images."
            )
        met = self._met()
        estimate = self._median_and_interval(images)
        never = (
            f"With a probability of {_percent(1 - images.probability_reachable)}, no number of "
            "images reaches it."
        )
        is_likely = images.probability_reachable >= LIKELY_REACHABLE
        about_target = [*estimate, never] if is_likely else [never, *estimate]
        if np.isfinite(images.assured):
            assured = f"{_rounded_up(images.assured)} images reach it {sure}."
            sentences = [assured, *met, *about_target]
        else:
            # No train size is a plan here, so the answer begins with what is known.
            at_limit = (
                f"Even {number(self.limit)} images reach it only with a probability of "
                f"{_percent(images.probability_at_limit)}."
            )
            advice = f"Train with {number(2 * self.largest_size)} images, and predict again."
            if not is_likely:
                advice = (
                    "Choose an easier target or another network, or train with "
                    f"{number(2 * self.largest_size)} images and predict again."
                )
            sentences = [*met, *about_target, at_limit, advice]
        return f"For {goal}: {' '.join(sentences)}"

    def _met(self) -> list[str]:
        """Return sentences on a measured score that meets the target; empty if none does."""
        metric = self.question.metric
        if self.question.target is None:
            return []
        allowed = _errors(self.question.target, metric)
        for point in self.points:
            if _errors(point.score, metric) <= allowed:
                return [
                    f"Your {METRIC_WORDS[metric]} of {self._point_text(point)} images meets the "
                    "target already.",
                    "A new training with as many images may miss the target.",
                ]
        return []

    def _median_and_interval(self, images: NeededImages) -> list[str]:
        """Return sentences on the median N and its interval.

        If hardly any plausible curve reaches the target, the list is empty.
        """
        if images.probability_reachable < LEAST_REACHABLE:
            return []
        median = f"about {_two_figures(images.middle, round)} images"
        if images.middle <= self.smallest_size:
            median = f"at most {number(self.smallest_size)} images, your smallest train size"
        elif images.middle > self.limit:
            median += ", far beyond your train sizes"
        # The median is over the curves that reach the target. The interval is over all curves.
        return [
            f"If the target is reached at all, the median estimate is {median}.",
            f"Over all plausible curves, the {self._bounds(images)}.",
        ]

    def _has_low(self, images: NeededImages) -> bool:
        """Return whether more images than the smallest measured train size are needed."""
        return images.low > self.smallest_size

    def _bounds(self, images: NeededImages) -> str:
        """Return the 90 % interval of the needed N in words.

        It may have a bound on only one side.
        """
        interval = f"{INTERVAL_LEVEL:.0%} interval"
        has_low = self._has_low(images)
        has_high = np.isfinite(images.high)
        if has_low and has_high:
            return f"{interval} is {_rounded_down(images.low)} to {_rounded_up(images.high)}"
        if has_low:
            return f"{interval} begins at {_rounded_down(images.low)} and has no upper bound"
        if has_high:
            return f"{interval} ends at {_rounded_up(images.high)}"
        return f"{interval} has no bounds"


def _rounded_up(size: float) -> str:
    """Return a number of images as text, rounded up to two significant figures."""
    return _two_figures(size, math.ceil)


def _rounded_down(size: float) -> str:
    """Return a number of images as text, rounded down to two significant figures."""
    return _two_figures(size, math.floor)


def _two_figures(size: float, rounded: Callable[[float], int]) -> str:
    """Return a number of images with two significant figures.

    The prediction is not more precise.
    """
    unit = max(1, 10 ** (math.floor(math.log10(size)) - 1))
    return number(rounded(size / unit) * unit)


@dataclass(frozen=True, slots=True)
class CurveReport:
    """The answers from a table of results, with remarks on doubtful or omitted rows."""

    curves: tuple[CurveAnswer, ...]
    remarks: tuple[str, ...] = ()

    def example_target(self) -> float | None:
        """Return the best expected score, rounded to two figures, as an example of a target.

        Returns None if this score is not better than all measured scores.
        """
        metric = self.curves[0].question.metric
        expected = [_errors(curve.score.value, metric) for curve in self.curves]
        measured = [_errors(point.score, metric) for curve in self.curves for point in curve.points]
        errors = float(f"{min(expected):.1e}")
        if not 0 < errors < min(measured):
            return None
        return round(_errors(errors, metric), 12)


def answer(
    points: Sequence[CurvePoint],
    name: str,
    question: CurveQuestion,
    *,
    siblings: Sequence[Sequence[CurvePoint]] = (),
    chance: ChanceLevel | None = None,
    caution: str = "",
) -> CurveAnswer:
    """Return the answer for one learning curve.

    Args:
        points: One point per training.
        name: Name of the curve in sentences.
        question: The question.
        siblings: Points of other networks on the same images, one sequence per network.
        chance: Chance level if no point is clearly better than chance level; else None.
        caution: Sentences that are printed before the prediction.

    Raises:
        DataError: If there are fewer than two train sizes, or a score is out of range.
        ConfigError: If the question's train size is beyond the range of extrapolation.
    """
    try:
        curve = LearningCurve(points, question.metric, siblings=siblings)
    except DataError as error:
        raise DataError(f"{name}: {error.problem}", hint=error.hint) from None
    asked_size = float(question.train_size or 2 * curve.largest_size)
    limit = curve.largest_size * MAX_EXTRAPOLATION
    if asked_size > limit:
        raise ConfigError(
            f"{name}: the requested train size of {number(asked_size)} is too far from your "
            f"largest train size of {number(curve.largest_size)}",
            hint=f"Give a train size of at most {number(limit)} ({MAX_EXTRAPOLATION:g} times "
            "your largest train size)",
        )
    num_test_images = question.test_size or curve.points[-1].num_test_images
    score = curve.score_at(asked_size, num_test_images=num_test_images)
    images = None
    if chance is not None:
        score = _without_gain(score, curve.points)
    elif question.target is not None:
        images = _needed_images(curve, question.target, question.assurance)
    return CurveAnswer(
        name=name,
        question=question,
        points=curve.points,
        asked_size=asked_size,
        score=score,
        rate=curve.rate,
        probability_flat=curve.probability_flat,
        images=images,
        chance=chance,
        num_siblings=len(siblings),
        prior_sources=curve.prior.sources,
        caution=caution,
    )


def _needed_images(curve: LearningCurve, target: float, assurance: float) -> NeededImages:
    reachable = curve.probability_met(target, LARGEST_TRAIN_SIZE)
    return NeededImages(
        assured=curve.size_for(target, assurance=assurance),
        # The median is over only those curves that reach the target at some N.
        middle=curve.size_for(target, assurance=reachable / 2, limit=np.inf),
        low=curve.size_for(target, assurance=TAIL, limit=np.inf),
        high=curve.size_for(target, assurance=1 - TAIL, limit=np.inf),
        least=curve.size_for(target, assurance=LEAST_SIZE_ASSURANCE, limit=np.inf),
        probability_at_smallest=curve.probability_met(target, curve.points[0].train_size),
        probability_reachable=reachable,
        probability_at_limit=curve.probability_met(target, curve.largest_size * MAX_EXTRAPOLATION),
    )


def _without_gain(score: Estimate, points: Sequence[CurvePoint]) -> Estimate:
    """Return the mean of the measured scores, with an interval extended to contain this mean."""
    mean = float(np.mean([point.score for point in points]))
    return Estimate(value=mean, low=min(score.low, mean), high=max(score.high, mean))


def _check_model(model: str, table: pd.DataFrame) -> None:
    """Check that a table has a network of this name.

    Raises:
        ConfigError: If the table has no network of this name, or no column of networks.
    """
    if MODEL_COLUMN not in table:
        raise ConfigError(
            f"The table has no column {MODEL_COLUMN}, so the model {model} cannot be selected",
            hint=f"Add the column {MODEL_COLUMN} to the table, or select no model",
        )
    models = sorted({str(name) for name in table[MODEL_COLUMN]})
    if model not in models:
        raise unknown_name("model", model, models)


def answers(table: pd.DataFrame, question: CurveQuestion, model: str | None = None) -> CurveReport:
    """Return an answer for each network and class pair of a table.

    Args:
        table: A table with one row per training, and with columns of train size and score.
            Columns of model, class pair, seed, number of classes and test size are optional.
        question: The question.
        model: Name of one network. If given, the report contains only the answer for this
            network. This answer also uses the curves of the other networks.

    Raises:
        ConfigError: If the table has no network of this name, or no column of networks.
        DataError: If a column is missing, if a value is not a number or out of range, if no
            training is finished, if a curve has rows with different numbers of classes, or if
            no curve has two train sizes.
    """
    if model is not None:
        _check_model(model, table)
    checked = checked_table(table, question.metric, question.test_size)
    parts = _curves_of(checked.rows)
    curves, failures = [], []
    remarks = [
        *_below_chance(checked.rows, question),
        *_below_sizes(checked.rows, question),
        *_exact_scores(checked.rows, question),
        *checked.remarks,
    ]
    for part in parts:
        if model is not None and part.rows[MODEL_COLUMN].iloc[0] != model:
            continue
        siblings = [
            curve_points(sibling.rows)
            for sibling in parts
            if sibling is not part and sibling.images == part.images
        ]
        _check_classes(part)
        chance = chance_level(part.rows, question.metric)
        caution = ""
        if chance is not None:
            better_metrics = _better_than_chance(part.rows, question.metric)
            if better_metrics and question.metric == "loss":
                # The loss of an over-confident network also shows how much more images improve
                # it.
                remarks.append(_overconfident(part.name, better_metrics))
                chance = None
            elif better_metrics:
                chance = replace(chance, better_metric=better_metrics[0])
        elif _is_chance_unknown(part.rows, question.metric):
            caution = _unknown_chance(question.metric)
        points = curve_points(part.rows)
        try:
            curves.append(
                answer(
                    points,
                    part.name,
                    question,
                    siblings=siblings,
                    chance=chance,
                    caution=caution,
                )
            )
        except DataError as error:
            failures.append(error)
    if not curves and failures:
        raise failures[0]
    if not curves:
        raise DataError(
            f"No training of {model} has {with_article(question.metric)}",
            hint="Fill in the scores of the trainings",
        )
    remarks += measured_assurance(curves)
    remarks += _few_sizes(curves)
    return CurveReport(tuple(curves), (*remarks, *(f"{error}" for error in failures)))


@dataclass(frozen=True, slots=True)
class _CurveRows:
    """The rows of one learning curve, its name, and the class pair of its images."""

    name: str
    images: str
    rows: pd.DataFrame


def _curves_of(rows: pd.DataFrame) -> list[_CurveRows]:
    """Split rows by network and class pair, and return the rows of each learning curve."""
    names = [name for name in (MODEL_COLUMN, PAIR_COLUMN) if varies(rows, name)]
    if not names:
        only = str(rows[MODEL_COLUMN].iloc[0]) if MODEL_COLUMN in rows else ""
        return [_CurveRows(only or "curve", "", rows)]
    filled = rows.assign(**{name: rows[name].fillna("(no name)") for name in names})
    parts = []
    for key, part in filled.groupby(names, sort=True):
        values = dict(zip(names, map(str, key), strict=True))
        pair = values.get(PAIR_COLUMN, "")
        name = f"class pair {pair}" if names == [PAIR_COLUMN] else " ".join(values.values())
        parts.append(_CurveRows(name, pair, part))
    return parts


def _check_classes(curve: _CurveRows) -> None:
    """Check that a curve does not have rows with different numbers of classes."""
    class_counts = curve.rows["classes"].dropna().drop_duplicates()
    if len(class_counts) > 1:
        raise DataError(
            f"{curve.name}: the learning curve has rows with different numbers of classes: "
            f"{listing([number(count) for count in sorted(class_counts)])}",
            hint="Keep only the rows with one of these numbers, or correct the column num_classes",
        )


def chance_level(rows: pd.DataFrame, metric: Metric) -> ChanceLevel | None:
    """Return chance level if no train size has a clearly better score; else None.

    If the number of classes is unknown, two are assumed. Then None is also returned if a score
    is clearly worse than chance level for two classes, because there may be more classes. For
    example, the scores of a curve of ten classes may cross the chance level of two classes.

    Args:
        rows: Rows of one learning curve, as :func:`checked_table` returns them.
        metric: The metric of the scores.
    """
    class_counts = rows["classes"].dropna()
    is_assumed = class_counts.empty and metric != "auroc"
    num_classes = int(class_counts.max()) if len(class_counts) else 2
    level = score_of_guessing(metric, num_classes)
    for gain, margin in _gains_over_guessing(rows, metric, level):
        # If a score is clearly worse than chance level for the two assumed classes, there are
        # probably more classes. Then the chance level of two classes does not apply.
        if gain > margin or (is_assumed and abs(gain) > margin):
            return None
    return ChanceLevel(level, num_classes, is_assumed)


def _gains_over_guessing(
    rows: pd.DataFrame, metric: Metric, level: float
) -> Iterator[tuple[float, float]]:
    """Yield, for each train size, the gain of the mean score over chance level, and a margin.

    A gain above the margin means that the score is clearly better than chance level.
    """
    for _, at_size in rows.groupby("size"):
        gain = float(at_size["score"].mean()) - level
        if metric not in RISING_METRICS:
            gain = -gain
        yield gain, _chance_margin(level, metric, at_size["tested"])


def _is_chance_unknown(rows: pd.DataFrame, metric: Metric) -> bool:
    """Return whether a curve may be at chance level because its number of classes is unknown.

    A score that is clearly better than chance level for two classes is also better than chance
    level for more classes.
    """
    if metric == "auroc" or rows["classes"].notna().any():
        return False
    level = score_of_guessing(metric, 2)
    gains = _gains_over_guessing(rows, metric, level)
    return all(gain <= margin for gain, margin in gains)


def _unknown_chance(metric: Metric) -> str:
    """Return the caution for a curve for which :func:`_is_chance_unknown` returns True."""
    return (
        f"Chance level for two classes is {number(score_of_guessing(metric, 2))}. No measured "
        f"{METRIC_WORDS[metric]} is clearly better. If your dataset has two "
        "classes, the network has learned nothing yet, and the following numbers mean nothing. "
        "If it has more classes, add a column num_classes."
    )


def score_of_guessing(metric: Metric, num_classes: int) -> float:
    """Return the score of a network that guesses among equally frequent classes."""
    levels = {
        "loss": float(np.log(num_classes)),
        "error": 1 - 1 / num_classes,
        "accuracy": 1 / num_classes,
        "auroc": 0.5,
    }
    return levels[metric]


def _below_chance(rows: pd.DataFrame, question: CurveQuestion) -> list[str]:
    """Return a remark if a network reaches the target by guessing; else an empty list.

    If the number of classes is unknown, only a target AUROC can get a remark.
    """
    target, metric = question.target, question.metric
    class_counts = rows["classes"].dropna()
    if target is None or (class_counts.empty and metric != "auroc"):
        return []
    num_classes = int(class_counts.max()) if len(class_counts) else 2
    level = score_of_guessing(metric, num_classes)
    is_rising = metric in RISING_METRICS
    if target > level if is_rising else target < level:
        return []
    better = "above" if is_rising else "below"
    word = METRIC_WORDS[metric]
    chance = f"{number(level)} for {plural(num_classes, 'class')}"
    return [
        f"A network that guesses reaches the target {word} of {number(target)}, because "
        f"chance level is {chance}. Choose a target {better} {number(level)}."
    ]


def _below_sizes(rows: pd.DataFrame, question: CurveQuestion) -> list[str]:
    """Return a remark if the requested train size is below all measured train sizes.

    Otherwise the list is empty.
    """
    smallest = float(rows["size"].min())
    if question.train_size is None or question.train_size >= smallest:
        return []
    requested = number(question.train_size)
    return [
        f"The requested train size of {requested} is below your smallest train size of "
        f"{number(smallest)}. Below the smallest train size, the prediction is less reliable. "
        f"Train with {requested} images to measure the score."
    ]


def _exact_scores(rows: pd.DataFrame, question: CurveQuestion) -> list[str]:
    """Return a remark if the size of the test set of some scores is unknown.

    For test losses, the list is empty.
    """
    num_unknown = int(rows["tested"].isna().sum())
    if question.metric == "loss" or not num_unknown:
        return []
    return [
        f"The size of the test set is unknown for {num_unknown} of {plural(len(rows), 'row')}. "
        "isweep treats these scores as exact, so the intervals do not include the noise of "
        "the test set. Give the number of test images with --test-size, or in a column test_size."
    ]


def measured_assurance(curves: Sequence[CurveAnswer]) -> list[str]:
    """Return a remark on how often numbers of images from few train sizes were large enough."""
    sizes = []
    advice = "The probabilities of reaching the target may be too high."
    for curve in curves:
        # The benchmark contains only predicted numbers above the largest train size.
        images = curve.images
        if images is None or images.assured <= curve.largest_size:
            continue
        if images.assured < np.inf:
            advice = "Plan only the next step with these numbers of images."
        elif images.probability_at_limit < TAIL:
            continue
        sizes.append(len(curve.points))
    # If a curve has fewer train sizes than all curves of the benchmark, the value of the
    # shortest benchmark curves is used.
    num_sizes = max(min(sizes, default=max(MEASURED_ASSURANCE) + 1), min(MEASURED_ASSURANCE))
    if num_sizes not in MEASURED_ASSURANCE:
        return []
    return [
        f"{advice} In a benchmark with {num_sizes} train sizes, the numbers of images for a "
        f"probability of 80% were large enough in {MEASURED_ASSURANCE[num_sizes]} of 100 cases."
    ]


def _few_sizes(curves: Sequence[CurveAnswer]) -> list[str]:
    """Return a remark on curves with fewer train sizes than a usable interval needs."""
    names = []
    for curve in curves:
        if curve.chance is None and len(curve.points) < USABLE_SIZES:
            names.append(curve.name)
    if not names:
        return []
    return [
        f"{listing(names)}: the prediction rests on only 2 train sizes. Train with one more "
        "train size: three sizes give a usable interval."
    ]


def _chance_margin(level: float, metric: Metric, tested: Iterable[float]) -> float:
    """Return the smallest distance from chance level of a network that has learned something."""
    num_test_images = float(np.min(list(tested)))
    if metric == "loss" or np.isnan(num_test_images):
        return CHANCE_MARGIN * (1 - level if metric in RISING_METRICS else level)
    # At chance level an AUROC of balanced classes has a variance of about 1/(3 n).
    variance = 1 / (3 * num_test_images) if metric == "auroc" else (1 - level) * level
    if metric != "auroc":
        # The accuracy of guessing is a mean of independent images.
        variance /= num_test_images
    return float(CHANCE_STANDARD_ERRORS * np.sqrt(variance))


def _better_than_chance(rows: pd.DataFrame, metric: Metric) -> list[Metric]:
    """Return other metrics of a curve that are better than chance level.

    Args:
        rows: Rows of one learning curve, as :func:`checked_table` returns them.
        metric: A metric at chance level. If it is the AUROC, no other metric is better.
    """
    candidates: dict[Metric, tuple[Metric, ...]] = {
        "loss": ("accuracy", "auroc"),
        "error": ("auroc",),
        "accuracy": ("auroc",),
        # A network that always chooses the most frequent class also has an accuracy above 1 /
        # num_classes. An accuracy above chance level therefore does not show that the network
        # has learned something.
        "auroc": (),
    }
    better = []
    for candidate in candidates[metric]:
        for name in SCORE_COLUMNS[candidate]:
            if name not in rows or candidate in better:
                continue
            scores = pd.to_numeric(rows[name], errors="coerce")
            with_score = rows.assign(score=scores).dropna(subset=["score"])
            if len(with_score) and chance_level(with_score, candidate) is None:
                better.append(candidate)
    return better


def _overconfident(name: str, better_metrics: Sequence[Metric]) -> str:
    """Return the remark on a network that has learned despite losses at chance level."""
    words = [METRIC_WORDS[metric] for metric in better_metrics]
    verb = "is" if len(words) == 1 else "are"
    return (
        f"{name}: the losses are at chance level or higher, but the {listing(words)} {verb} "
        "better than chance level. The network gives wrong probabilities. Predict the "
        f"{listing(words, 'or')} instead of the loss."
    )


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    return bool(np.isfinite(float(value)))


def _errors(score: float, metric: Metric) -> float:
    """Return 1 − score for an accuracy or AUROC. Return a loss or error rate unchanged."""
    return 1 - score if metric in RISING_METRICS else score


def score_text(score: float, metric: Metric) -> str:
    """Return a score with three figures.

    If an imperfect score would be printed as 1, it gets more figures.
    """
    text = number(score)
    if metric in RISING_METRICS and text == "1" and score < 1:
        # 0.99996 needs five decimals, because four would print 1.0000.
        num_decimals = math.ceil(-math.log10(1 - score))
        if num_decimals <= MAX_DECIMALS:
            return f"{score:.{num_decimals}f}"
    return text


def _percent(share: float) -> str:
    """Return a probability in per cent.

    Below 0.5 %, return ``under 1%``. Above 99.5 %, return ``over 99%``.
    """
    if share > 0.995:
        return "over 99%"
    return "under 1%" if share < 0.005 else f"{share:.0%}"


def _as_json(estimate: Estimate) -> dict[str, float]:
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high}


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
