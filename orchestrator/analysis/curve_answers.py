"""What one dataset's learning curves answer, in sentences: how good at N, and how many images.

The curves come from a sweep of one dataset or from a user's CSV file. One answer per network (and
class pair): the curve so far, whether it flattens, what twice the images would bring, and the N at
which a target is met with a stated probability.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
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
    RISING_METRICS,
    CurvePoint,
    Estimate,
    LearningCurve,
    Metric,
)
from orchestrator.analysis.prediction_inputs import read_separated
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
STATUS_COLUMN = "status"
MIXED_COLUMNS = ("dataset", "image_size", "channels", "data_mode")
"""Columns of which one learning curve has one value: others make it another experiment."""
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
        if self.metric not in METRICS:
            raise unknown_name("metric", self.metric, METRICS)
        for name in ("assurance", "target"):
            value = getattr(self, name)
            if value is not None and not _is_number(value):
                raise ConfigError(f"{name} is a number", repr(value), "e.g. 0.8")
        if self.train_size is not None and not (
            _is_number(self.train_size) and self.train_size >= 1
        ):
            raise ConfigError(
                "A train size is a number of images", repr(self.train_size), "e.g. 500"
            )
        if self.test_size is not None and not (_is_number(self.test_size) and self.test_size >= 2):
            raise ConfigError("A test set has 2 images or more", repr(self.test_size), "e.g. 200")
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
        first, last = self.points[0].score, self.points[-1].score
        rises = self.question.metric in RISING_METRICS
        if (last <= first) if rises else (last >= first):
            return (
                "The score has not improved with N so far: that it will is the expectation of "
                "other datasets' curves, not of yours."
            )
        share = f"probability {_percent(self.probability_flat)}"
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
        sure = f"with a probability of {_percent(question.assurance)}"
        if self.needed <= self.points[0].train_size:
            return f"For {goal}: your smallest size, {number(self.needed)}, reaches it {sure}."
        limit = self.largest_size * MAX_EXTRAPOLATION
        reachable = self.probability_reachable or 0.0
        likely = ""
        if reachable >= 0.5 and self.likely_needed <= limit:
            likely = f" {number(self.likely_needed)} is the middle guess."
        never = f" No number of images reaches it with a probability of {_percent(1 - reachable)}."
        if np.isfinite(self.needed):
            return f"For {goal}: {number(self.needed)} images reach it {sure}.{likely}{never}"
        there = _percent(self.probability_at_limit or 0.0)
        return (
            f"For {goal}: no number of images up to {number(limit)} reaches it {sure} (there "
            f"{there}).{likely}{never} Train with {number(2 * self.largest_size)} images next, and "
            "ask again."
        )


@dataclass(frozen=True, slots=True)
class CurveReport:
    """The answers of a table of results, and what was left out or doubtful on the way."""

    curves: tuple[CurveAnswer, ...]
    remarks: tuple[str, ...] = ()


def answer(points: Sequence[CurvePoint], name: str, question: CurveQuestion) -> CurveAnswer:
    """Return what one learning curve answers.

    Raises:
        DataError: If there are fewer than two train sizes, or a score is out of range.
    """
    try:
        curve = LearningCurve(points, question.metric)
    except DataError as error:
        rule = f"The learning curve of {name} cannot be fitted"
        raise DataError(rule, " ".join([error.rule, error.value]).strip(), error.hint) from None
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


def answers(table: pd.DataFrame, question: CurveQuestion) -> CurveReport:
    """Return an answer per network and class pair of a table, one row per training.

    Args:
        table: Columns of train size and score, optionally model, class pair, seed and test size.
        question: What is asked.

    Raises:
        DataError: If the table has no such columns, a value that is no number or out of range, no
            finished training, or no curve of two train sizes.
    """
    rows, remarks = checked_rows(table, question)
    names = [name for name in (MODEL_COLUMN, PAIR_COLUMN) if _varies(rows, name)]
    parts = [(_only(rows, MODEL_COLUMN) or "curve", rows)]
    if names:
        filled = rows.assign(**{name: rows[name].fillna("(no name)") for name in names})
        grouped = filled.groupby(names, sort=True)
        parts = [(" ".join(map(str, key)), part) for key, part in grouped]
    curves, failures = [], []
    for name, part in parts:
        try:
            curves.append(answer(_points(part), name, question))
        except DataError as error:
            failures.append(error)
    if not curves:
        raise failures[0]
    return CurveReport(tuple(curves), (*remarks, *(f"{error}" for error in failures)))


def checked_rows(
    table: pd.DataFrame, question: CurveQuestion
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Return the usable rows with the columns ``size``, ``score`` and ``tested``, and remarks.

    Raises:
        DataError: If a value is no number or out of range, or rows of unlike trainings are mixed.
    """
    size_column = _column(table, SIZE_COLUMNS, "train size")
    scores = _scores(table, question.metric)
    is_done = pd.Series(True, index=table.index)
    if STATUS_COLUMN in table:
        is_done = table[STATUS_COLUMN].fillna("done").eq("done")
    usable = is_done & scores.notna()
    remarks = []
    if num_left_out := int((~usable).sum()):
        what = WORDS[question.metric]
        remarks.append(f"Left out: {num_left_out} of {len(table)} rows, which have no {what}.")
    if not usable.any():
        rule = f"A learning curve needs trainings with {_article(question.metric)}"
        raise DataError(rule, f"{len(table)} rows, none of them with one", "fill in the scores")
    rows = table[usable].copy()
    rows["size"] = _numbers(rows[size_column], size_column, "a whole number of images", _is_size)
    if rows["size"].isna().any():
        line = int(rows.index[rows["size"].isna()][0]) + 2
        rule = f"Each row with a score has a {size_column}"
        raise DataError(rule, f"an empty cell in line {line} of the table", "fill it in")
    rows["score"] = scores[usable]
    tested = next((name for name in TEST_SIZE_COLUMNS if name in rows), None)
    rows["tested"] = float(question.test_size) if question.test_size else np.nan
    if tested is not None and question.test_size is None:
        is_test_size = _numbers(rows[tested], tested, "2 images or more", lambda value: value >= 2)
        rows["tested"] = is_test_size
    for name in MIXED_COLUMNS:
        if _varies(rows, name):
            values = sorted(map(str, rows[name].unique()))[:5]
            rule = f"Rows of one learning curve have one {name}"
            raise DataError(rule, ", ".join(values), f"keep the rows of one {name}")
    if num_repeated := int(table[usable].duplicated().sum()):
        remarks.append(f"{num_repeated} rows repeat another one; each counts as a training.")
    return rows, tuple(remarks)


def _scores(table: pd.DataFrame, metric: Metric) -> pd.Series:
    """Return a score per row, NaN if its cell is empty; errors are 1 − accuracy, and back."""
    complement: dict[Metric, Metric] = {"accuracy": "error", "error": "accuracy"}
    names = [name for name in SCORE_COLUMNS[metric] if name in table]
    other = complement.get(metric)
    if not names and other is not None:
        others = [name for name in SCORE_COLUMNS[other] if name in table]
        if others:
            return 1 - _checked_scores(table[others[0]], others[0], other)
    column = _column(table, SCORE_COLUMNS[metric], WORDS[metric])
    return _checked_scores(table[column], column, metric)


def _checked_scores(cells: pd.Series, column: str, metric: Metric) -> pd.Series:
    if metric == "loss":
        return _numbers(cells, column, "a finite loss above 0", lambda value: 0 < value < np.inf)
    rule = "a share from 0 to 1: write 70 % as 0.7"
    return _numbers(cells, column, rule, lambda value: 0 <= value <= 1)


def _numbers(
    cells: pd.Series, column: str, rule: str, is_allowed: Callable[[float], bool]
) -> pd.Series:
    """Return cells as numbers, NaN where they are empty.

    Raises:
        DataError: If a cell is no number, or not allowed; it names the line of the file.
    """
    is_empty = cells.isna() | cells.astype(str).str.strip().eq("")
    numbers = pd.to_numeric(cells, errors="coerce")
    for place, (value, empty) in enumerate(zip(numbers, is_empty, strict=True)):
        if not empty and (pd.isna(value) or not is_allowed(float(value))):
            where = f"line {int(cells.index[place]) + 2} of the table, column {column}"
            shown = repr(cells.iloc[place]) if pd.isna(value) else f"{value:g}"
            raise DataError(f"Each {column} is {rule}", f"{shown} in {where}", "correct it")
    return numbers.astype(float)


def _is_size(value: float) -> bool:
    return 1 <= value < LARGEST_TRAIN_SIZE and value == int(value)


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    return bool(np.isfinite(float(value)))


def _percent(share: float) -> str:
    """Return a probability in per cent; none that is possible or uncertain rounds to 0 or 100."""
    if share > 0.995:
        return "over 99%"
    return "under 1%" if share < 0.005 else f"{share:.0%}"


def _article(metric: Metric) -> str:
    return f"{'a' if metric == 'loss' else 'an'} {WORDS[metric]}"


def of_model(table: pd.DataFrame, model: str) -> pd.DataFrame:
    """Return the rows of one network; ConfigError if the table holds none of that name."""
    models = sorted({str(name) for name in table.get(MODEL_COLUMN, ())})
    if model not in models:
        raise unknown_name("model", model, models)
    return table[table[MODEL_COLUMN] == model]


def read_curve(path: Path) -> pd.DataFrame:
    """Read a CSV file of results, with commas, tabs, or a spreadsheet's semicolons and 0,5.

    Returns:
        The table; names of columns are stripped and in lower case.

    Raises:
        ConfigError: If the file cannot be read as a table.
    """
    hint = (
        "give a CSV file in UTF-8 with the columns train_size and test_loss (or test_accuracy, auc)"
    )
    rule = "A learning curve must be a CSV file"
    if path.is_dir():
        raise ConfigError(rule, f"{path}: a folder", hint)
    try:
        table = read_separated(path)
    except UnicodeDecodeError:
        raise ConfigError(rule, f"{path}: not in UTF-8", hint) from None
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(rule, f"{path}: {reason}", hint) from None
    names = [name.strip().lower() for name in map(str, table.columns)]
    if len(set(names)) < len(names):
        raise ConfigError("A table names each column once", ", ".join(names), "rename one")
    return table.set_axis(names, axis=1)


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


def _points(rows: pd.DataFrame) -> list[CurvePoint]:
    """Return a point per row of :func:`checked_rows`."""
    return [
        CurvePoint(
            train_size=size,
            score=score,
            num_test_images=None if np.isnan(tested) else int(tested),
        )
        for size, score, tested in zip(rows["size"], rows["score"], rows["tested"], strict=True)
    ]


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
