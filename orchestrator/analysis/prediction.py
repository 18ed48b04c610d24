"""From fitted laws to answers: what loss to expect at N images, and how many images a target loss needs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from orchestrator.analysis import table as t
from orchestrator.analysis.fit_records import (
    ALL,
    EXPONENT,
    POOLED,
    Growth,
    Interval,
    Prior,
    ScalingFits,
    SharpnessScale,
)
from orchestrator.analysis.guessing import flattened, unvaried
from orchestrator.analysis.inference import Array, t_quantile
from orchestrator.analysis.laws import MIN_DATASETS, select, shortage
from orchestrator.analysis.table import LARGEST_VALUE, few_domain_datasets, listing
from orchestrator.results import table as c
from search_spaces.errors import ConfigError, DataError, unknown_name

# Log loss against N of one dataset: what the sweep says of its like, moved by its pilot.

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


# How far off predictions were for datasets left out of a prior: what its intervals are widened by.
#
# A prior takes errors to be Gaussian, equally large in every dataset and independent along N. Losses of
# single trainings are none of this: datasets are noisier and quieter, neighbouring N are alike, curves
# bend. So every dataset is left out in turn, its curves are predicted from their own smallest sizes as a
# user's pilot would be, and the interval is stretched by how much further off that was than the prior said.

#: Curves of one dataset that are predicted; more of them say little more of a dataset.
MOST_CURVES = 30


def stretched(
    rows: pd.DataFrame, refit: Callable[[str], Growth | None], *, informed: bool
) -> tuple[float, ...]:
    """Return by which factor intervals have to be longer, for a pilot of 0, 1, 2, ... trainings.

    The root mean square, over datasets left out, of error over predicted standard error at the largest N of
    their curves; at least 1, since an interval does not become surer than the prior by a few lucky datasets.

    Args:
        rows: points of single class pairs with log loss, d_data and K_F, as a user's data would be.
        refit: returns the prior without one dataset; None where there is none.
        informed: False for the prior that knows nothing of the dataset, which takes no pilot.
    """
    found: dict[int, list[float]] = {}
    for name, mine in rows.groupby(c.DATASET):
        without = refit(str(name))
        if without is None:
            continue
        for size, squares in _squares(without, mine, informed=informed).items():
            found.setdefault(size, []).append(float(np.mean(squares)))
    factors = [max(1.0, float(np.sqrt(np.mean(found[size])))) for size in sorted(found)]
    return tuple(factors) or (1.0,)


def _squares(growth: Growth, mine: pd.DataFrame, *, informed: bool) -> Mapping[int, list[float]]:
    """Squared error over predicted variance of one dataset's curves, by the number of pilot trainings."""
    squares: dict[int, list[float]] = {}
    for curve in _curves(mine):
        last = curve[-1]
        for size in range(min(MOST_PILOT, len(curve) - 1) + 1 if informed else 1):
            pilot = [PilotPoint(row["train_size"], float(np.exp(row["log_loss"]))) for row in curve[:size]]
            at = Curve(growth, last["d_reference"], last["label_sharpness"], pilot, informed=informed)
            value, variance = at.moments(last["train_size"])
            if variance > 0:
                squares.setdefault(size, []).append((value - last["log_loss"]) ** 2 / variance)
    return squares


def _curves(mine: pd.DataFrame) -> Iterator[list[dict[Any, float]]]:
    """Curves of at least two sizes, from the smallest N to the largest; some of them where there are many."""
    names = [c.TRAIN_SIZE, t.LOG_LOSS, t.D_REFERENCE, c.LABEL_SHARPNESS]
    curves = [part for _, part in mine.groupby(t.CURVE) if len(part) > 1]
    step = max(1, -(-len(curves) // MOST_CURVES))
    for part in curves[::step]:
        yield part.sort_values(c.TRAIN_SIZE, kind="stable")[names].to_dict("records")


# How losses of datasets grow out of their properties and N, as a prior for a dataset not yet seen.
#
# A mixed model of log loss: log L = a_model + b₁ (−log N / d) + b₂ / d + b₃ log K_F + h + s (log N −
# centre) + error, with a height h and a slope s of each dataset's own. Only b₁ to b₃ are common, so the
# unit of N, of pixels and of the loss do not matter. Variances by restricted maximum likelihood (Patterson
# & Thompson 1971); the class pairs of a dataset are averaged first. No floor is fitted: curves of a few
# sizes cannot tell one.
#
# Shape letters: n points, p fixed effects, G datasets.

#: Between datasets: what d_data and K_F say of the height. They cost a dataset each, and need some to spare.
HEIGHT = (t.INVERSE_D, t.LOG_SHARPNESS)
MIN_DATASETS_FOR_HEIGHT = 5
_SMALLEST, _LARGEST = -14.0, 9.0
_GRID, _ZOOMS = 13, 4


@dataclass(frozen=True, slots=True)
class _Sums:
    """What the likelihood needs of each dataset: products of random (G, 2), fixed (p) and response."""

    zz: Array
    zx: Array
    zy: Array
    xx: Array
    xy: Array
    yy: float
    num: int


def fit_growth(points: pd.DataFrame, *, model: str, subset: str, scale: SharpnessScale) -> Growth:
    """Fit the prior of one model (or pooled) over one domain (or both), and the one that knows no
    properties.
    """
    names = [t.LOG_LOSS, t.D_REFERENCE, *([t.LOG_SHARPNESS] if scale.comparable else [])]
    rows, _ = t.complete(select(points, model, subset), names)
    blank = Growth(
        model=model, subset=subset, status="not_enough_data",
        reason=shortage(rows, 1) or unvaried(rows), doubt=flattened(rows),
        num_datasets=int(rows[c.DATASET].nunique()),
    )  # fmt: skip
    if blank.reason:
        return blank
    if rows[c.TRAIN_SIZE].nunique() < 2:
        return replace(blank, reason="only one train size, so nothing is known of how losses fall with N")
    single, rows = rows, _averaged(rows)
    wanted = HEIGHT if scale.comparable else HEIGHT[:1]
    # What is the same for all datasets, or goes only with the other, says nothing of the height.
    choices = [wanted, *((name,) for name in wanted), ()]
    for height in choices if blank.num_datasets >= MIN_DATASETS_FOR_HEIGHT else [()]:
        found = _fitted(blank, rows, height)
        if found is not None:
            break
    if found is None or found.informed is None or found.plain is None:
        return replace(blank, reason="models and train sizes go only together, so neither can be told apart")

    @cache
    def without(name: str) -> Growth | None:
        return _fitted(blank, rows[rows[c.DATASET] != name], height)

    informed, plain = (stretched(single, without, informed=known) for known in (True, False))
    return replace(
        found, ranges=_ranges(rows, scale),
        informed=replace(found.informed, stretch=informed), plain=replace(found.plain, stretch=plain),
    )  # fmt: skip


def _fitted(blank: Growth, rows: pd.DataFrame, height: tuple[str, ...]) -> Growth | None:
    """Fit both priors; None where their terms are not identified."""
    if rows[c.DATASET].nunique() < MIN_DATASETS or rows[c.TRAIN_SIZE].nunique() < 2:
        return None
    informed, plain = _prior(rows, (EXPONENT, *height)), _prior(rows, (t.LOG_TRAIN_SIZE,))
    if informed is None or plain is None:
        return None
    centre = float(rows[t.LOG_TRAIN_SIZE].mean())
    return replace(blank, status="ok", centre=centre, informed=informed, plain=plain)


def _averaged(rows: pd.DataFrame) -> pd.DataFrame:
    """Average the class pairs of a dataset: the height of a pair is no second dataset."""
    names = [t.LOG_LOSS, t.D_REFERENCE, t.LOG_SHARPNESS, t.LOG_TRAIN_SIZE, t.INVERSE_D, c.D_DATA_MLE]
    keys = [c.MODEL, c.DATASET, c.DATA_MODE, c.TRAIN_SIZE]
    return rows.groupby(keys)[[*names, c.LABEL_SHARPNESS]].mean().reset_index()


def _ranges(rows: pd.DataFrame, scale: SharpnessScale) -> dict[str, Interval]:
    names = [c.TRAIN_SIZE, c.D_DATA_MLE, *([c.LABEL_SHARPNESS] if scale.comparable else [])]
    return {
        name: (float(rows[name].min()), float(rows[name].max())) for name in names if rows[name].notna().any()
    }


def _prior(rows: pd.DataFrame, terms: tuple[str, ...]) -> Prior | None:
    """Fit the fixed effects (mean intercept, then terms) and the variances; None where terms are not
    identified.
    """
    exponent = -rows[t.LOG_TRAIN_SIZE] / rows[t.D_REFERENCE]
    columns = [exponent if name == EXPONENT else rows[name] for name in terms]
    models, codes = np.unique(rows[c.MODEL].to_numpy(dtype=str), return_inverse=True)
    # Contrasts of models, so that the first column is their mean.
    contrasts = np.vstack([np.eye(len(models) - 1), -np.ones(len(models) - 1)])[codes]
    x = np.column_stack([np.ones(len(rows)), *(v.to_numpy(dtype=float) for v in columns), contrasts])
    if np.linalg.cond(x / np.sqrt((x**2).mean(axis=0))) > 1e7:
        return None
    y = rows[t.LOG_LOSS].to_numpy(dtype=float)
    size = rows[t.LOG_TRAIN_SIZE].to_numpy(dtype=float)
    _, groups = np.unique(rows[c.DATASET].to_numpy(dtype=str), return_inverse=True)
    z = np.column_stack([np.ones(len(rows)), size - size.mean()])
    sums = _sums(x, y, z, groups)
    values, covariance, residual, height, slope = _restricted(sums)
    keep = 1 + len(terms)
    return Prior(
        terms=terms,
        values=tuple(float(v) for v in values[:keep]),
        covariance=tuple(tuple(float(v) for v in row[:keep]) for row in covariance[:keep]),
        height_variance=height,
        slope_variance=slope,
        residual_variance=residual,
        degrees_of_freedom=max(1, int(groups.max()) + 1 - 1 - sum(name in HEIGHT for name in terms)),
    )


def _sums(x: Array, y: Array, z: Array, groups: NDArray[np.intp]) -> _Sums:
    num = int(groups.max()) + 1
    zz, zx, zy = np.zeros((num, 2, 2)), np.zeros((num, 2, x.shape[1])), np.zeros((num, 2))
    np.add.at(zz, groups, z[:, :, None] * z[:, None, :])
    np.add.at(zx, groups, z[:, :, None] * x[:, None, :])
    np.add.at(zy, groups, z * y[:, None])
    return _Sums(zz, zx, zy, x.T @ x, x.T @ y, float(y @ y), len(y))


def _restricted(sums: _Sums) -> tuple[Array, Array, float, float, float]:
    """Fixed effects, their covariance, and the variances of residual, height and slope.

    The two ratios of variances are found on a grid that closes in on the best: no start decides the answer.
    """
    low, high = np.full(2, _SMALLEST), np.full(2, _LARGEST)
    best = low
    for _ in range(_ZOOMS):
        axes = [np.linspace(a, b, _GRID) for a, b in zip(low, high, strict=True)]
        grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)
        best = grid[int(np.argmin(_criterion(sums, grid)[0]))]
        step = (high - low) / (_GRID - 1)
        low, high = np.maximum(best - step, _SMALLEST), np.minimum(best + step, _LARGEST)
    _, values, inverse, residual = (found[0] for found in _criterion(sums, best[None, :]))
    ratio = np.where(best <= _SMALLEST + 1e-6, 0.0, np.exp(best))
    return values, inverse * residual, float(residual), float(ratio[0] * residual), float(ratio[1] * residual)


def _criterion(sums: _Sums, log_ratios: Array) -> tuple[Array, Array, Array, Array]:
    """−2 log restricted likelihood for each of B pairs of ratios, with fixed effects, (X'WX)⁻¹ and
    residual variance.
    """
    root = np.exp(log_ratios / 2)[:, None, :]
    inner = np.eye(2) + root[..., None] * sums.zz * root[:, :, None, :]
    middle = root[..., None] * np.linalg.inv(inner) * root[:, :, None, :]
    flat = sums.zx.reshape(-1, sums.zx.shape[2])
    half = (middle @ sums.zx).reshape(len(log_ratios), *flat.shape)
    xx = sums.xx - flat.T @ half
    xy = sums.xy - sums.zy.reshape(-1) @ half
    yy = sums.yy - np.einsum("gi,bgij,gj->b", sums.zy, middle, sums.zy)
    inverse = np.linalg.pinv(xx, hermitian=True)
    values = (inverse @ xy[:, :, None])[:, :, 0]
    spare = sums.num - values.shape[1]
    smallest = 1e-14 * max(sums.yy / sums.num, 1e-300)
    residual = np.maximum((yy - (values * xy).sum(axis=1)) / spare, smallest)
    determinants = np.linalg.slogdet(inner)[1].sum(axis=1) + np.linalg.slogdet(xx)[1]
    return spare * np.log(residual) + determinants, values, inverse, residual


WAYS_OUT = {
    "d_data": "measure the dataset first",
    "label_sharpness": "measure the dataset first",
    "train_size": "give a number of images, e.g. 1000",
    "target_loss": "give a test loss in nat, e.g. 0.3",
    "pilot train size": "give what was trained",
    "pilot loss": "give the test loss of a finished training",
}
SIZES = ("train_size", "pilot train size")

FAR = 2.0
"""A pilot's train size beyond the sweep's by more than this factor is said to be far from them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """A predicted loss (nat) or a needed train size (images), with a 90 % interval for a dataset not yet
    seen.

    Attributes:
        value: None where it cannot be told, with the reason in ``warning``.
        interval: None where the fit has too few datasets for one, or where it would be no answer.
        shorter: by which share the interval (in log loss) is shorter than one that knows nothing of the
        dataset;
            None without an interval.
    """

    quantity: str
    value: float | None
    interval: tuple[float, float] | None
    extrapolating: bool
    warning: str
    shorter: float | None = None
    num_pilot: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the prediction with its value under the name of its quantity."""
        return {
            self.quantity: self.value,
            "interval": None if self.interval is None else list(self.interval),
            "extrapolating": self.extrapolating,
            "warning": self.warning,
            "shorter": self.shorter,
            "num_pilot": self.num_pilot,
        }


def predict(
    fits: ScalingFits,
    *,
    model: str,
    domain: str | None,
    d_data: float,
    label_sharpness: float,
    train_size: float | None = None,
    target_loss: float | None = None,
    pilot: Sequence[PilotPoint] = (),
) -> Prediction:
    """Predict from how losses grew in a sweep, and from a pilot where there is one.

    Args:
        fits: fits of a sweep.
        model: a fitted model, or ``pooled``.
        domain: use the fit of this domain alone where there is one (else all datasets, with a warning); None
            for all datasets.
        d_data: intrinsic dimension of the dataset, maximum-likelihood estimate.
        label_sharpness: K_F of the dataset, on the scale of the fitted ones.
        train_size: number of images to predict the loss for; or
        target_loss: loss in nat to predict the needed number of images for.
        pilot: losses of small trainings of this model on the dataset itself; those of one size are averaged.

    Raises:
        ConfigError: if an argument is out of its range, or not exactly one of the last two is given.
        DataError: if the sweep had too little data for this fit, with the reason.
    """
    _check(domain, d_data, label_sharpness, train_size, target_loss, pilot)
    growth, warnings = usable_growth(fits, model, domain)
    pilot = _one_per_size(pilot)
    curve = Curve(growth, d_data, label_sharpness, pilot)
    asked = {c.D_DATA_MLE: d_data, c.LABEL_SHARPNESS: label_sharpness}
    warnings += [*_doubts(growth, domain), *_doubts_of_pilot(growth, pilot)]
    if train_size is not None:
        return _loss(curve, train_size, warnings + _outside(growth, {**asked, c.TRAIN_SIZE: train_size}))
    return _size(curve, float(target_loss or 0.0), growth, asked, warnings)


def _loss(curve: Curve, train_size: float, warnings: list[str]) -> Prediction:
    value, bounds, why = curve.loss_at(train_size)
    warnings = [*why, *warnings, *curve.advice(train_size)]
    return Prediction(
        quantity="loss",
        value=value,
        interval=bounds,
        extrapolating=_is_outside(warnings),
        warning="; ".join(warnings),
        shorter=None if bounds is None else curve.shorter(train_size),
        num_pilot=curve.num_pilot,
    )


def _size(
    curve: Curve, target: float, growth: Growth, asked: dict[str, float], warnings: list[str]
) -> Prediction:
    size, bounds, why = curve.size_for(target)
    why = [*why, *curve.advice(curve.growth.ranges[c.TRAIN_SIZE][1] if size is None else size)]
    outside = _outside(growth, {**asked, **({} if size is None else {c.TRAIN_SIZE: size})})
    return Prediction(
        quantity="train_size",
        value=size,
        interval=bounds,
        extrapolating=bool(outside) or size is None,
        warning="; ".join([*why, *warnings, *outside]),
        shorter=None if size is None else curve.shorter(size),
        num_pilot=curve.num_pilot,
    )


def _check(
    domain: str | None,
    d_data: float,
    label_sharpness: float,
    train_size: float | None,
    target_loss: float | None,
    pilot: Sequence[PilotPoint],
) -> None:
    if domain is not None and domain not in c.DOMAINS:
        raise unknown_name("domain", domain, c.DOMAINS)
    if (train_size is None) == (target_loss is None):
        raise ConfigError(
            "A prediction needs either a train size or a target loss",
            "both" if train_size is not None else "neither",
            "give exactly one of them",
        )
    numbers = [
        ("d_data", d_data),
        ("label_sharpness", label_sharpness),
        ("train_size", train_size),
        ("target_loss", target_loss),
        *(("pilot train size", point.train_size) for point in pilot),
        *(("pilot loss", point.test_loss) for point in pilot),
    ]
    for name, value in numbers:
        if value is not None:
            _check_number(name, value)


def _check_number(name: str, value: Any) -> None:
    is_number = isinstance(value, Real) and not isinstance(value, (bool, np.bool_))
    number: Any = value if is_number else float("nan")
    if not 0 < number <= sys.float_info.max:
        raise ConfigError(f"{name} must be a positive finite number", repr(value), WAYS_OUT[name])
    if not 1 / LARGEST_VALUE < number < LARGEST_VALUE:
        limits = f"{1 / LARGEST_VALUE:g} and {LARGEST_VALUE:g}"
        raise ConfigError(f"{name} must lie between {limits}", repr(value), WAYS_OUT[name])
    if name in SIZES and number % 1:
        raise ConfigError(f"{name} must be a whole number of images", repr(value), "round it")


def _one_per_size(pilot: Sequence[PilotPoint]) -> list[PilotPoint]:
    """Average trainings of one size, as logarithms: they share their images, and are no two."""
    losses: dict[float, list[float]] = {}
    for point in pilot:
        losses.setdefault(point.train_size, []).append(float(np.log(point.test_loss)))
    return [PilotPoint(size, float(np.exp(np.mean(found)))) for size, found in sorted(losses.items())]


def usable_growth(fits: ScalingFits, model: str, domain: str | None) -> tuple[Growth, list[str]]:
    """Return the narrowest usable prior and what had to be given up for it.

    Raises:
        ConfigError: for a model that was not fitted.
        DataError: if the sweep had too little data, with the reason.
    """
    if model not in (*fits.models, POOLED):
        raise unknown_name("fitted model", model, (*fits.models, POOLED))
    warnings: list[str] = []
    for subset in ([domain] if domain else []) + [ALL]:
        found = fits.growth_of(model=model, subset=subset)
        if found.status == "ok":
            return found, warnings
        warnings.append(f"no fit for {subset} datasets ({found.reason}), so all datasets are used")
    raise DataError(
        "A prediction needs a fit of how losses grow",
        found.reason,
        "run a sweep with more datasets and train sizes",
    )


def _doubts_of_pilot(growth: Growth, pilot: Sequence[PilotPoint]) -> list[str]:
    """Return why a pilot is not to be believed as its own trainings would have it."""
    low, high = growth.ranges[c.TRAIN_SIZE]
    far = [f"{point.train_size:.4g}" for point in pilot if not low / FAR <= point.train_size <= high * FAR]
    guessed = [f"{point.test_loss:.3g}" for point in pilot if point.test_loss > t.NEAR_CHANCE * t.CHANCE_LOSS]
    doubts = []
    if far:
        doubts.append(
            f"the pilot's train size {', '.join(far)} is far from the sweep's {low:.4g} to {high:.4g}"
        )
    if guessed:
        doubts.append(
            f"the pilot's test loss {', '.join(guessed)} is that of guessing or more, which says little"
        )
    ordered = sorted(pilot, key=lambda point: point.train_size)
    if len(ordered) > 1 and ordered[-1].test_loss > ordered[0].test_loss:
        doubts.append("the pilot's test loss rises with its train size")
    return doubts


def _outside(growth: Growth, asked: dict[str, float]) -> list[str]:
    words = {c.TRAIN_SIZE: "train size", c.D_DATA_MLE: "d_data", c.LABEL_SHARPNESS: "label sharpness"}
    return [
        f"{words[name]} {asked[name]:.4g} lies outside the fitted range {low:.4g} to {high:.4g}"
        for name, (low, high) in growth.ranges.items()
        if name in asked and not low * (1 - 1e-9) <= asked[name] <= high * (1 + 1e-9)
    ]


def _is_outside(warnings: list[str]) -> bool:
    return any("lies outside the fitted range" in text for text in warnings)


def _doubts(growth: Growth, domain: str | None) -> list[str]:
    doubts = [growth.doubt] if growth.doubt else []
    if domain is not None and growth.subset == domain:
        doubts += [text.rstrip(".") for text in few_domain_datasets(domain, growth.num_datasets)]
    missing = [name for name in HEIGHT if growth.informed and name not in growth.informed.terms]
    if missing:
        words = {t.INVERSE_D: "d_data", t.LOG_SHARPNESS: "K_F"}
        doubts.append(
            f"{' and '.join(words[name] for name in missing)} could not be related to the height of the loss"
        )
    if growth.num_datasets < 3:
        doubts.append(f"with {growth.num_datasets} datasets no interval can be given")
    return doubts
