"""What one dataset's learning curves answer, in sentences: how good at N, and how many images.

The curves come from a sweep of one dataset or from a user's CSV file. One answer per network (and
class pair): the curve so far, whether it flattens, what twice the images would bring, and the N at
which a target is met with a stated probability.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from orchestrator.analysis.learning_curves import (
    DEFAULT_ASSURANCE,
    INTERVAL_LEVEL,
    LARGEST_TRAIN_SIZE,
    MAX_EXTRAPOLATION,
    METRICS,
    MIN_SIZES,
    CurvePoint,
    Estimate,
    LearningCurve,
    Metric,
)
from orchestrator.analysis.table import number
from search_spaces.errors import ConfigError, DataError, nearest, unknown_name

SCORE_COLUMNS: Mapping[Metric, tuple[str, ...]] = {
    "loss": ("test_loss", "log_loss", "loss"),
    "error": ("test_error", "error", "error_rate"),
    "accuracy": ("test_accuracy", "accuracy"),
    "auroc": ("auc", "auroc", "test_auc"),
}
"""Names under which a table may hold each score, the sweep's own first."""
SIZE_COLUMNS = ("train_size", "N", "n")
TEST_SIZE_COLUMNS = ("test_size", "num_test_images")
SEED_COLUMN, MODEL_COLUMN, PAIR_COLUMN = "seed", "model", "class_pair"
LIKELY, UNLIKELY = 0.9, 0.1
"""Probabilities from which a curve is said to have flattened, or to go on falling."""
WORDS: Mapping[Metric, str] = {
    "loss": "test loss",
    "error": "error rate",
    "accuracy": "accuracy",
    "auroc": "AUROC",
}


@dataclass(frozen=True, slots=True)
class CurveQuestion:
    """What is asked of learning curves.

    Args:
        metric: The score that is extrapolated.
        train_size: N whose score is asked; None asks for twice the largest train size.
        target: Score to reach; None asks for no number of images.
        assurance: Probability with which the target is to be met.
        test_size: Images of the test set; None leaves its noise to the prior.
    """

    metric: Metric = "loss"
    train_size: int | None = None
    target: float | None = None
    assurance: float = DEFAULT_ASSURANCE
    test_size: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.assurance < 1:
            hint = "give a share, e.g. 0.8"
            raise ConfigError("An assurance lies between 0 and 1", f"{self.assurance:g}", hint)
        if self.target is None:
            return
        if self.metric == "loss" and not self.target > 0:
            raise ConfigError("A target loss is above 0", f"{self.target:g}", "e.g. 0.3")
        if self.metric != "loss" and not 0 < self.target < 1:
            rule = f"A target {WORDS[self.metric]} lies between 0 and 1"
            raise ConfigError(rule, f"{self.target:g}", "write 90 % as 0.9")


@dataclass(frozen=True, slots=True, kw_only=True)
class CurveAnswer:
    """What the learning curve of one network answers.

    Attributes:
        name: The network, with its class pair where there are several.
        points: The measured points, one per train size, rising.
        asked_size: N of ``score``.
        score: The score at ``asked_size``, with its interval.
        rate: Local rate at the largest train size, with its interval.
        probability_flat: Probability that twice the images lower the loss by less than 5 %.
        needed: N at which the target is met with the assurance; inf if that lies beyond the range
            that is extrapolated to; None without a target.
        likely_needed: Median N of the curves that reach the target at all.
        probability_reachable: Probability that some number of images reaches the target.
        probability_at_limit: Probability that the target is met at the end of that range.
        prior_sources: The sets of curves that the prior was fitted to.
    """

    name: str
    question: CurveQuestion
    points: tuple[CurvePoint, ...]
    asked_size: float
    score: Estimate
    rate: Estimate
    probability_flat: float
    needed: float | None
    likely_needed: float | None
    probability_reachable: float | None
    probability_at_limit: float | None
    prior_sources: tuple[str, ...]

    @property
    def largest_size(self) -> float:
        """The largest train size measured."""
        return self.points[-1].train_size

    def to_json(self) -> dict[str, Any]:
        """Return the answer as JSON; a number of images beyond the range is null."""
        return {
            "name": self.name,
            "metric": self.question.metric,
            "points": [[point.train_size, point.score] for point in self.points],
            "train_size": self.asked_size,
            "score": _as_json(self.score),
            "rate": _as_json(self.rate),
            "probability_flat": self.probability_flat,
            "target": self.question.target,
            "assurance": self.question.assurance,
            "needed_train_size": _finite(self.needed),
            "likely_train_size": _finite(self.likely_needed),
            "probability_reachable": self.probability_reachable,
            "extrapolated_up_to": self.largest_size * MAX_EXTRAPOLATION,
            "prior": list(self.prior_sources),
        }

    def lines(self) -> list[str]:
        """Return the answer in sentences."""
        lines = [f"{self.name}: {self._measured()}", f"  {self._score()} {self._shape()}"]
        if self.question.target is not None:
            lines.append(f"  {self._images()}")
        return lines

    def _measured(self) -> str:
        scores = ", ".join(
            f"{number(point.score)} at {number(point.train_size)}" for point in self.points
        )
        return f"{WORDS[self.question.metric]} {scores} images."

    def _score(self) -> str:
        bounds = f"{number(self.score.low)} to {number(self.score.high)}"
        return (
            f"With {number(self.asked_size)} images expect {number(self.score.value)} "
            f"({INTERVAL_LEVEL:.0%} interval {bounds})."
        )

    def _shape(self) -> str:
        share = f"probability {self.probability_flat:.0%}"
        if self.probability_flat >= LIKELY:
            return f"The curve has flattened: twice the images would hardly help ({share})."
        if self.probability_flat <= UNLIKELY:
            return "The curve still improves with more images."
        return f"Whether the curve has flattened is undecided ({share})."

    def _images(self) -> str:
        question = self.question
        article = "a" if question.metric == "loss" else "an"
        goal = f"{article} {WORDS[question.metric]} of {number(question.target)}"
        if self.needed is None or self.likely_needed is None:
            return ""
        out_of_reach = 1 - (self.probability_reachable or 0.0)
        likely = (
            f"{number(self.likely_needed)} is the middle guess. No number reaches it with a "
            f"probability of {out_of_reach:.0%}."
        )
        if np.isfinite(self.needed):
            return (
                f"For {goal}: {number(self.needed)} images reach it with a probability of "
                f"{question.assurance:.0%}. {likely}"
            )
        limit = number(self.largest_size * MAX_EXTRAPOLATION)
        return (
            f"For {goal}: no number of images up to {limit} reaches it with a probability of "
            f"{question.assurance:.0%} (there {self.probability_at_limit or 0:.0%}). {likely} "
            f"Train with {number(2 * self.largest_size)} images next, and ask again."
        )


def answer(points: Sequence[CurvePoint], name: str, question: CurveQuestion) -> CurveAnswer:
    """Return what one learning curve answers.

    Raises:
        DataError: If there are fewer than two train sizes, or a score is out of range.
    """
    try:
        curve = LearningCurve(points, question.metric)
    except ValueError as error:
        hint = f"train at {MIN_SIZES} sizes or more; three give a usable interval"
        raise DataError(
            f"The learning curve of {name} cannot be fitted", str(error), hint
        ) from None
    asked_size = float(question.train_size or 2 * curve.largest_size)
    limit = curve.largest_size * MAX_EXTRAPOLATION
    if asked_size > limit:
        raise ConfigError(
            f"A learning curve is extrapolated to {MAX_EXTRAPOLATION:g} times its largest train "
            f"size, here {number(limit)}",
            number(asked_size),
            f"train with {number(max(2 * curve.largest_size, asked_size / 16))} images first",
        )
    needed = likely = reachable = at_limit = None
    if question.target is not None:
        needed = curve.size_for(question.target, assurance=question.assurance)
        reachable = curve.probability_met(question.target, LARGEST_TRAIN_SIZE)
        likely = curve.size_for(question.target, assurance=reachable / 2, limit=np.inf)
        at_limit = curve.probability_met(question.target, limit)
    return CurveAnswer(
        name=name,
        question=question,
        points=curve.points,
        asked_size=asked_size,
        score=curve.score_at(asked_size, num_test_images=question.test_size),
        rate=curve.rate,
        probability_flat=curve.probability_flat,
        needed=needed,
        likely_needed=likely,
        probability_reachable=reachable,
        probability_at_limit=at_limit,
        prior_sources=curve.prior.sources,
    )


def answers(table: pd.DataFrame, question: CurveQuestion) -> list[CurveAnswer]:
    """Return an answer per network and class pair of a table, one row per training.

    Args:
        table: Columns of train size and score, optionally model, class pair, seed and test size.
        question: What is asked.

    Raises:
        DataError: If the table has no such columns, no finished training, or too few train sizes.
    """
    size = _column(table, SIZE_COLUMNS, "train size")
    score = _column(table, SCORE_COLUMNS[question.metric], WORDS[question.metric])
    rows = table[pd.to_numeric(table[score], errors="coerce").notna()]
    if rows.empty:
        rule = f"A learning curve needs trainings with a {WORDS[question.metric]}"
        raise DataError(rule, f"{len(table)} rows, none of them with one", "run the sweep first")
    names = [name for name in (MODEL_COLUMN, PAIR_COLUMN) if _varies(rows, name)]
    curves: list[tuple[str, pd.DataFrame]]
    if names:
        curves = [(" ".join(map(str, key)), part) for key, part in rows.groupby(names, sort=True)]
    else:
        curves = [(_only(rows, MODEL_COLUMN) or "curve", rows)]
    tested = next((name for name in TEST_SIZE_COLUMNS if name in rows), None)
    return [
        answer(_points(part, size, score, tested, question), name, question)
        for name, part in curves
    ]


def of_model(table: pd.DataFrame, model: str) -> pd.DataFrame:
    """Return the rows of one network; ConfigError if the table holds none of that name."""
    models = sorted({str(name) for name in table.get(MODEL_COLUMN, ())})
    if model not in models:
        raise unknown_name("model", model, models)
    return table[table[MODEL_COLUMN] == model]


def read_curve(path: Path) -> pd.DataFrame:
    """Read a CSV file of results, with commas, tabs, or a spreadsheet's semicolons and 0,5.

    Raises:
        ConfigError: If the file cannot be read as a table.
    """
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            separator = max(",;\t", key=file.readline().count)
        decimal = "," if separator == ";" else "."
        return pd.read_csv(path, sep=separator, decimal=decimal, skipinitialspace=True)
    except (OSError, ValueError) as error:
        hint = "a CSV file with the columns train_size and test_loss (or test_accuracy, auc)"
        raise ConfigError("A learning curve must be a CSV file", f"{path}: {error}", hint) from None


def metric_of(table: pd.DataFrame) -> Metric:
    """Return the first score that a table holds: loss, error, accuracy or AUROC.

    Raises:
        DataError: If it holds none.
    """
    for metric in METRICS:
        if any(name in table for name in SCORE_COLUMNS[metric]):
            return metric
    known = ", ".join(names[0] for names in SCORE_COLUMNS.values())
    hint = f"name the column of scores {known}"
    found = ", ".join(map(str, table.columns[:12]))
    raise DataError("A table of results needs a column of scores", f"columns {found}", hint)


def _points(
    rows: pd.DataFrame, size: str, score: str, tested: str | None, question: CurveQuestion
) -> list[CurvePoint]:
    points = []
    for row in rows.to_dict("records"):
        num_test_images = question.test_size
        if num_test_images is None and tested is not None and pd.notna(row[tested]):
            num_test_images = int(row[tested])
        points.append(
            CurvePoint(
                train_size=float(row[size]),
                score=float(row[score]),
                num_test_images=num_test_images,
            )
        )
    return points


def _column(table: pd.DataFrame, names: Sequence[str], what: str) -> str:
    for name in names:
        if name in table:
            return name
    columns = [str(column) for column in table.columns]
    hint = f"{nearest(names[0], columns)}call it {names[0]}"
    found = ", ".join(columns[:12])
    raise DataError(f"A learning curve needs a column of the {what}", f"columns {found}", hint)


def _varies(rows: pd.DataFrame, name: str) -> bool:
    return name in rows and rows[name].nunique(dropna=False) > 1


def _only(rows: pd.DataFrame, name: str) -> str:
    return str(rows[name].iloc[0]) if name in rows else ""


def _as_json(estimate: Estimate) -> dict[str, float]:
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high}


def _finite(value: float | None) -> float | None:
    return value if value is not None and np.isfinite(value) else None
