"""Within one domain: all pairs of one set's classes, judged by what happens when a class is left out.

Two pairs that share a class share its images, so 45 pairs of 10 classes are not 45 replicates. Every number
is a function of pairs, computed anew without each class (delete-one-class jackknife, t with classes − 1
degrees of freedom).

Shape letters: p pairs, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from orchestrator.analysis import inference as i
from orchestrator.analysis import table as t
from orchestrator.analysis.inference import Array, Interval
from orchestrator.results import table as c
from search_spaces.errors import DataError

COMMON = "one slope for all pairs"
SMOOTHNESS = 4.5
"""s of the rival s / d."""
EXPONENT, EXPONENT_LAW = "exponent b in N^(-b/d)", "exponent b against the law's 1"
SHARPER_LOSS, SHARPER_R_HAT, SHARPER_ATTACKED = (
    f"slope of {what} on log K_F at equal 1/d"
    for what in ("log loss", "log R̂", "accuracy lost to the attack")
)
MIN_CLASSES = 5
LOG_R_HAT, DROP = "log_r_hat", "accuracy_drop"
HEIGHTS = {SHARPER_LOSS: t.LOG_LOSS, SHARPER_R_HAT: LOG_R_HAT, SHARPER_ATTACKED: DROP}


Places = NDArray[np.intp]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One number: its 95 % interval, its p-value against ``null``, and Holm's over its family."""

    question: str
    null: float
    value: float
    interval: Interval | None
    p_value: float
    adjusted_p: float = 1.0

    @property
    def established(self) -> bool:
        """Whether the number differs from the null."""
        low, high = self.interval or (self.null, self.null)
        return self.adjusted_p <= i.LEVEL and not low <= self.null <= high


@dataclass(frozen=True, slots=True, kw_only=True)
class PairsFit:
    """What the pairs of one set say.

    ``shares``: of every rule for the slope of log loss on −log N, the squared error of centred curves of
    pairs whose classes it has not seen, over that of flat curves; ``rivals``: the same less that of one
    slope for all pairs, which knows nothing of d.
    """

    dataset: str
    num_pairs: int
    num_points: int
    answers: tuple[Answer, ...]
    shares: dict[str, float]
    rivals: tuple[Answer, ...]
    excluded: tuple[str, ...]

    def find(self, question: str) -> Answer:
        """Return one answer."""
        return next(answer for answer in (*self.answers, *self.rivals) if answer.question == question)


@dataclass(frozen=True)
class Pairs:
    """One row per pair, sorted: its classes (p, 2); Σx², Σxy and Σy² (p,) of log loss on −log N, centred in
    every curve; heights of the responses at equal network and N (p,), by question; 1/d and log K_F at the
    largest N (p,); and α of the spectrum's tail (p,), NaN where it is not given.
    """

    classes: NDArray[np.str_]
    xx: Array
    xy: Array
    yy: Array
    heights: Mapping[str, Array]
    inverse_d: Array
    log_sharpness: Array
    tail: Array

    @cached_property
    def names(self) -> list[str]:
        """The classes."""
        return [str(name) for name in np.unique(self.classes)]

    @cached_property
    def apart(self) -> NDArray[np.bool_]:
        """Which pairs share no class (p, p)."""
        shared = self.classes[:, None, :, None] == self.classes[None, :, None, :]
        return np.asarray(~shared.any(axis=(2, 3)), dtype=bool)


def fit_pairs(table: pd.DataFrame, tail: Mapping[str, float] | None = None) -> PairsFit:
    """Answer the questions about the class pairs of the one dataset of a results table.

    Args:
        table: results table; class pairs are spelled ``"3-8"``.
        tail: of every pair, the exponent α of the tail of its images' covariance spectrum, whose eigenvalue k
            falls as k^-(1 + α): a rival that says that losses fall as N^-α.

    Raises:
        DataError: when there are several datasets, or pairs of fewer than five classes.
    """
    full, _ = t.normalise(table)
    trials, excluded = t.usable_trials(full)
    points = t.complete(t.fitted_points(trials), (t.LOG_LOSS, t.D_REFERENCE))
    datasets = points[c.DATASET].unique().tolist()
    if len(datasets) != 1:
        raise DataError("Pairs are fitted of one dataset", t.listing(datasets) or "none", "select one")
    pairs = pairs_of(points, tail or {})
    if len(pairs.names) < MIN_CLASSES:
        raise DataError(f"Pairs of {MIN_CLASSES} classes are needed", f"{len(pairs.names)}", "add pairs")
    shares, rivals = rivals_of(pairs)
    return PairsFit(
        dataset=datasets[0], num_pairs=len(pairs.classes), num_points=len(points),
        answers=_adjusted(answers_of(pairs)), shares=shares, rivals=_adjusted(rivals),
        excluded=tuple(map(str, excluded)),
    )  # fmt: skip


def _adjusted(answers: Iterable[Answer]) -> tuple[Answer, ...]:
    known = {one.question: one for one in answers}
    adjusted = i.holm({question: one.p_value for question, one in known.items()})
    return tuple(replace(one, adjusted_p=adjusted[question]) for question, one in known.items())


def pairs_of(points: pd.DataFrame, tail: Mapping[str, float]) -> Pairs:
    """Reduce points to pairs."""
    of = points[c.CLASS_PAIR].to_numpy(dtype=str)
    loss = points[t.LOG_LOSS].to_numpy()
    curves, ones = points[t.CURVE].to_numpy(), np.ones(len(points))
    names, xx, xy = i.curve_sums(loss, -points[t.LOG_TRAIN_SIZE].to_numpy(), curves, of, ones)
    centred = points[t.LOG_LOSS] - points.groupby(t.CURVE)[t.LOG_LOSS].transform("mean")
    first = (
        points.assign(sharpness=np.log(t.at_largest_size(points, c.LABEL_SHARPNESS)), yy=centred**2)
        .groupby(of)
        .agg({t.INVERSE_D: "first", "sharpness": "first", "yy": "sum"})
        .loc[names]
    )
    drops = [name for name in points if str(name).endswith(DROP)]
    points = points.assign(**{DROP: points[drops].mean(axis=1)}) if drops else points
    if c.R_HAT_PRED in points:
        points = points.assign(**{LOG_R_HAT: np.log(points[c.R_HAT_PRED].where(points[c.R_HAT_PRED] > 0))})
    heights = {}
    for question, column in HEIGHTS.items():
        if column not in points:
            continue
        own = t.complete(points, (column,))
        pair = own[c.CLASS_PAIR].to_numpy(dtype=str)
        found = i.dataset_effects(own[[column]].to_numpy(), own[t.CELL].to_numpy(), pair, np.ones(len(own)))
        if found is not None and found[0] == names:
            heights[question] = found[1][:, 0]
    return Pairs(
        classes=np.array([name.split("-") for name in names]), xx=xx, xy=xy, yy=first["yy"].to_numpy(),
        heights=heights, inverse_d=first[t.INVERSE_D].to_numpy(), log_sharpness=first["sharpness"].to_numpy(),
        tail=np.array([tail.get(name, np.nan) for name in names]),
    )  # fmt: skip


def over_classes(pairs: Pairs, question: str, null: float, of: Callable[[Places], float]) -> Answer:
    """Return a function of some pairs, for all, with its jackknife over classes."""
    left_out = np.array([of(np.flatnonzero((pairs.classes != n).all(axis=1))) for n in pairs.names])
    found = i.jackknife(of(np.arange(len(pairs.classes))), left_out)
    distance, error = np.array([found.value - null]), np.array([found.std_error])
    p = float(i.t_p_values(distance, error, len(left_out) - 1)[0])
    return Answer(question=question, null=null, value=found.value, interval=found.interval(), p_value=p)


def answers_of(pairs: Pairs) -> Iterator[Answer]:
    """Answer every question, each by itself."""
    for question, null in ((EXPONENT, 0.0), (EXPONENT_LAW, 1.0)):
        yield over_classes(pairs, question, null, lambda at: _fitted(pairs, pairs.inverse_d, at))
    for question, height in pairs.heights.items():
        yield over_classes(pairs, question, 0.0, lambda at, y=height: _on_sharpness(pairs, y, at))  # type: ignore[misc]


def _fitted(pairs: Pairs, rule: Array, at: Places) -> float:
    """Least squares of log loss on −rule · log N within the curves of some pairs."""
    return float((rule * pairs.xy)[at].sum() / (rule**2 * pairs.xx)[at].sum())


def _on_sharpness(pairs: Pairs, height: Array, at: Places) -> float:
    found = i.ols(height[at], np.column_stack([pairs.log_sharpness, pairs.inverse_d])[at])
    return float("nan") if found is None else float(found.values[0])


def rivals_of(pairs: Pairs) -> tuple[dict[str, float], list[Answer]]:
    """Score the rules; what is fitted is fitted on pairs that share no class with the one that is told."""
    ones, d = np.ones(len(pairs.classes)), pairs.inverse_d
    rules = {
        COMMON: (ones, True), "no fall": (0 * ones, False), "1/d": (d, False), "4/d": (4 * d, False),
        f"s/d, s = {SMOOTHNESS:g}": (SMOOTHNESS * d, False), "b/d, b fitted": (d, True),
        "tail of the spectrum": (pairs.tail, False), "tail of the spectrum, scaled": (pairs.tail, True),
    }  # fmt: skip

    def share(name: str, at: Places) -> float:
        rule, is_fitted = rules[name]
        slope = rule[at]
        if is_fitted:
            apart = pairs.apart[np.ix_(at, at)]
            slope = slope * (apart @ (rule * pairs.xy)[at]) / (apart @ (rule**2 * pairs.xx)[at])
        errors = pairs.yy[at] - 2 * slope * pairs.xy[at] + slope**2 * pairs.xx[at]
        return float(errors.sum() / pairs.yy[at].sum())

    known = [name for name, (rule, _) in rules.items() if np.isfinite(rule).all()]
    shares = {name: share(name, np.arange(len(ones))) for name in known}
    worse = [
        over_classes(pairs, name, 0.0, lambda at, n=name: share(n, at) - share(COMMON, at))  # type: ignore[misc]
        for name in known
        if name != COMMON
    ]
    return shares, worse
