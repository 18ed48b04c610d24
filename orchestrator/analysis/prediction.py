"""From a sweep to a dataset not yet seen: the loss at N images, and the images that a target loss
needs.

A mixed model of log loss, log L = a_model + b₁ (−(log N − centre) / d) + b₂ / d + b₃ log K_F + h +
s (log N − centre) + error, with a height h and a slope s of each dataset's own; log N is centred,
so that no unit matters. Variances by restricted maximum likelihood (Patterson & Thompson 1971). A
pilot, a few small trainings on the dataset itself, moves this prior. Shape letters: n points, p
fixed effects, G datasets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from orchestrator.analysis import guessing as g
from orchestrator.analysis import table as t
from orchestrator.analysis.fits import prepare
from orchestrator.analysis.inference import Array, Interval, t_quantile
from orchestrator.analysis.interventions import Arm
from orchestrator.analysis.prediction_inputs import PilotPoint, check_numbers
from orchestrator.results import columns as c
from search_spaces.errors import DataError, unknown_name

#: The term −(log N − centre) / d of a prior, and the plain one's log N − centre.
EXPONENT, SLOPE = "exponent", "slope"
#: What d_data and K_F say of the height: they cost a dataset each, and need some to spare.
HEIGHT, MIN_DATASETS_FOR_HEIGHT = {t.INVERSE_D: "d_data", t.LOG_SHARPNESS: "K_F"}, 5
LEVEL = 0.90
#: Train sizes beyond this are reported as "no size": no dataset has so many images.
LARGEST_TRAIN_SIZE = 1e15
MIN_SPARE_POINTS = 3
WIDEST_ANSWER = 1e4
#: An interval that d_data and K_F shorten by less than this share is worth a pilot, of this many at
#: most.
WORTH, MOST_PILOT = 0.30, 6
FAR = 2.0
MOST_CURVES = 30


class CannotBeTold(Exception):
    """A fit does not allow an answer, for the reason given."""


@dataclass(frozen=True, slots=True, eq=False)
class Prior:
    """Fixed effects (p,) and (p, p) of (mean intercept, ``terms``...), variances of points and of a
    dataset's own height and slope in log N; ``stretch``, by pilot size, is how much further off
    datasets left out were.
    """

    terms: tuple[str, ...]
    values: Array
    covariance: Array
    residual_variance: float
    height_variance: float
    slope_variance: float
    degrees_of_freedom: int
    stretch: tuple[float, ...] = (1.0,)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Growth:
    """How losses of a sweep grow: a prior that knows d_data and K_F, a plain one, and what to
    doubt.
    """

    num_datasets: int
    centre: float
    informed: Prior
    plain: Prior
    scale: t.SharpnessScale
    ranges: dict[str, Interval] = field(default_factory=dict)
    num_classes: float = 2.0
    doubts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """A predicted loss (nat) or needed train size (images) with a 90 % interval; None where that is
    not told. ``shorter``: by which share the interval, of log loss, is shorter than one that
    ignores the dataset.
    """

    quantity: str
    value: float | None
    interval: Interval | None
    extrapolating: bool
    warning: str
    shorter: float | None = None
    num_pilot: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the prediction with its value under the name of its quantity."""
        found = asdict(self) | {"interval": self.interval and [*self.interval]}
        return {found.pop("quantity"): found.pop("value"), **found}

    def lines(self) -> list[str]:
        """Return the answer in words, and what a reader should know of it."""
        what, unit = (
            ("test loss", "nat") if self.quantity == "loss" else ("number of images", "images")
        )
        said = f"no {what}" if self.value is None else f"{what} {t.number(self.value)} {unit}"
        bounds = " to ".join(map(t.number, self.interval or ()))
        lines = [f"{said}, {f'{LEVEL:.0%} interval {bounds}' if bounds else 'no interval'}"]
        if self.shorter is not None:
            how = f"{abs(self.shorter):.0%} {'shorter' if self.shorter >= 0 else 'longer'}"
            lines.append(f"The interval is {how} than one that knows nothing of the dataset.")
        return lines + [f"Beware: {self.warning}."] * bool(self.warning)

    def __repr__(self) -> str:
        return f"Prediction: {' '.join(self.lines())}"


def fit_growth(
    table: pd.DataFrame,
    *,
    model: str = t.POOLED,
    domain: str | None = None,
    arms: Sequence[Arm] = (),
) -> Growth:
    """Fit what predictions start from: losses of one model in a sweep (or of all), of one
    ``domain`` where that can be fitted, else of all, with a doubt. ConfigError for an unknown name;
    DataError of too little.
    """
    if domain is not None and domain not in c.DOMAINS:
        raise unknown_name("domain", domain, c.DOMAINS)
    ready = prepare(table, arms=arms)
    models = sorted(ready.points[c.MODEL].unique())
    if model not in (*models, t.POOLED):
        raise unknown_name("fitted model", model, (*models, t.POOLED))
    together = model == t.POOLED and len(models) > 1
    doubts = ["losses are of all models together, which differ"] if together else []
    reason = ""
    for subset in (*([domain] if domain else []), t.ALL):
        found = growth_of(t.select(ready.points, model, subset), ready.scale)
        if isinstance(found, Growth):
            if subset != t.ALL and found.num_datasets < g.MIN_CONVINCING_DATASETS:
                doubts.append(g.few_of_domain(subset, found.num_datasets).rstrip("."))
            return replace(found, doubts=(*doubts, *found.doubts))
        reason = found
        doubts.append(f"no fit for {subset} datasets ({reason}), so all datasets are used")
    hint = "add datasets (isweep datasets) and train sizes, or ask a sweep with both, as demo"
    raise DataError("A prediction needs a fit of how losses grow", reason, hint)


def growth_of(points: pd.DataFrame, scale: t.SharpnessScale) -> Growth | str:
    """Fit the priors of these points, or say why that cannot be."""
    known = [t.LOG_SHARPNESS, c.LABEL_SHARPNESS] if scale.comparable else []
    rows = points.dropna(subset=[t.LOG_LOSS, t.D_REFERENCE, *known])
    num, num_models = rows[c.DATASET].nunique(), rows[c.MODEL].nunique()
    if num < 2:
        return f"{t.plural(num, 'dataset')} with losses and measures, at least 2 needed"
    if len(rows) < (needed := num_models + 1 + MIN_SPARE_POINTS):
        return f"{len(rows)} points, at least {needed} needed"
    if reason := g.unvaried(rows):
        return reason
    if rows[c.TRAIN_SIZE].nunique() < 2:
        return "only one train size, so nothing is known of how losses fall with N"
    # The class pairs of a dataset are averaged: the height of a pair is no second dataset.
    names = [t.LOG_LOSS, t.D_REFERENCE, t.LOG_TRAIN_SIZE, *HEIGHT, c.D_DATA_MLE, c.LABEL_SHARPNESS]
    means = (
        rows.groupby([c.MODEL, c.DATASET, c.DATA_MODE, c.TRAIN_SIZE])[names].mean().reset_index()
    )
    wanted = [*HEIGHT][: 2 if scale.comparable else 1]
    # What is the same for all datasets, or goes only with the other, says nothing of the height.
    choices = [wanted, *([name] for name in wanted), []] if num >= MIN_DATASETS_FOR_HEIGHT else [[]]
    fitted = ((height, _fitted(means, height, scale)) for height in choices)
    height, found = next(((height, growth) for height, growth in fitted if growth), ([], None))
    if found is None:
        return "models and train sizes go only together, so neither can be told apart"
    datasets = means[c.DATASET]
    refits = {name: _fitted(means[datasets != name], height, scale) for name in datasets.unique()}
    missing = [words for name, words in HEIGHT.items() if name not in height]
    doubts = [reason] if (reason := g.flattened(rows)) else []
    doubts += (
        [f"{' and '.join(missing)} could not be related to the height of the loss"]
        if missing
        else []
    )
    doubts += [f"with {num} datasets no interval can be given"] if num < 3 else []
    spans = [c.TRAIN_SIZE, c.D_DATA_MLE, *known[1:]]
    return replace(
        found,
        ranges={name: (float(means[name].min()), float(means[name].max())) for name in spans},
        informed=replace(found.informed, stretch=_stretch(rows, refits, informed=True)),
        plain=replace(found.plain, stretch=_stretch(rows, refits, informed=False)),
        num_classes=float(rows[c.NUM_CLASSES].fillna(2.0).max()),
        doubts=tuple(doubts),
    )


def _fitted(means: pd.DataFrame, height: Sequence[str], scale: t.SharpnessScale) -> Growth | None:
    """Fit both priors; None where their terms are not identified."""
    num, centre = means[c.DATASET].nunique(), float(means[t.LOG_TRAIN_SIZE].mean())
    if num < 2 or means[c.TRAIN_SIZE].nunique() < 2:
        return None
    informed, plain = (_prior(means, terms, centre) for terms in ((EXPONENT, *height), (SLOPE,)))
    if informed is None or plain is None:
        return None
    return Growth(num_datasets=num, centre=centre, informed=informed, plain=plain, scale=scale)


def _prior(rows: pd.DataFrame, terms: tuple[str, ...], centre: float) -> Prior | None:
    """Fit fixed effects (mean intercept, then terms) and variances; None where terms are not
    identified.
    """
    size = rows[t.LOG_TRAIN_SIZE].to_numpy(dtype=float) - centre
    known = {EXPONENT: -size / rows[t.D_REFERENCE].to_numpy(dtype=float), SLOPE: size}
    models, codes = np.unique(rows[c.MODEL].to_numpy(dtype=str), return_inverse=True)
    # Contrasts of models, so that the first column is their mean.
    contrasts = np.vstack([np.eye(len(models) - 1), -np.ones(len(models) - 1)])[codes]
    columns = [known[name] if name in known else rows[name].to_numpy(dtype=float) for name in terms]
    x = np.column_stack([np.ones(len(rows)), *columns, contrasts])
    if np.linalg.cond(x / np.sqrt((x**2).mean(axis=0))) > 1e7:
        return None
    _, groups = np.unique(rows[c.DATASET].to_numpy(dtype=str), return_inverse=True)
    y, z = rows[t.LOG_LOSS].to_numpy(dtype=float), np.column_stack([np.ones(len(rows)), size])
    values, covariance, residual, ratios = _restricted(x, y, z, groups)
    keep, free = 1 + len(terms), int(groups.max()) - sum(name in HEIGHT for name in terms)
    height, slope = (ratios * residual).tolist()
    return Prior(
        terms, values[:keep], covariance[:keep, :keep], residual, height, slope, max(1, free)
    )


def _restricted(
    x: Array, y: Array, z: Array, groups: NDArray[np.intp]
) -> tuple[Array, Array, float, Array]:
    """Fixed effects of y (n,) on x (n, p), their covariance, the residual variance, and the ratios
    to it of those of height and slope, whose terms z (n, 2) are: the best of a grid of logarithms
    that closes in.
    """
    num, p = int(groups.max()) + 1, x.shape[1]
    zz, zx, zy = np.zeros((num, 2, 2)), np.zeros((num, 2, p)), np.zeros((num, 2))
    np.add.at(zz, groups, z[:, :, None] * z[:, None, :])
    np.add.at(zx, groups, z[:, :, None] * x[:, None, :])
    np.add.at(zy, groups, z * y[:, None])
    flat, spare = zx.reshape(-1, p), len(y) - p
    smallest_residual = 1e-14 * max(float(y @ y) / len(y), 1e-300)

    def criterion(log_ratios: Array) -> tuple[Array, Array, Array, Array]:
        """−2 log likelihood of B pairs of ratios, with fixed effects, (X'WX)⁻¹ and residual
        variance.
        """
        root = np.exp(log_ratios / 2)[:, None, :]
        inner = np.eye(2) + root[..., None] * zz * root[:, :, None, :]
        middle = root[..., None] * np.linalg.inv(inner) * root[:, :, None, :]
        half = (middle @ zx).reshape(len(log_ratios), *flat.shape)
        xx, xy = x.T @ x - flat.T @ half, x.T @ y - zy.reshape(-1) @ half
        yy = y @ y - np.einsum("gi,bgij,gj->b", zy, middle, zy)
        inverse = np.linalg.pinv(xx, hermitian=True)
        values = (inverse @ xy[:, :, None])[:, :, 0]
        residual = np.maximum((yy - (values * xy).sum(axis=1)) / spare, smallest_residual)
        determinants = np.linalg.slogdet(inner)[1].sum(axis=1) + np.linalg.slogdet(xx)[1]
        return spare * np.log(residual) + determinants, values, inverse, residual

    smallest, largest, steps = -14.0, 9.0, 13
    low, high = np.full(2, smallest), np.full(2, largest)
    for _ in range(4):
        axes = np.linspace(low, high, steps).T
        grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)
        best = grid[int(np.argmin(criterion(grid)[0]))]
        step = (high - low) / (steps - 1)
        low, high = np.maximum(best - step, smallest), np.minimum(best + step, largest)
    _, values, inverse, residual = (found[0] for found in criterion(best[None, :]))
    ratios = np.where(best <= smallest + 1e-6, 0.0, np.exp(best))
    return values, inverse * residual, float(residual), ratios


def _stretch(
    rows: pd.DataFrame, refits: Mapping[str, Growth | None], *, informed: bool
) -> tuple[float, ...]:
    """Return how much longer intervals have to be, by size of pilot from 0 on (0 alone, if not
    informed).

    Errors are not as a prior takes them, so the curves (``rows``) of every dataset are predicted
    without it (``refits``) from their smallest sizes: RMS of error over predicted standard error at
    the largest N.
    """
    squares = []
    names = [c.TRAIN_SIZE, t.LOG_LOSS, t.D_REFERENCE, c.LABEL_SHARPNESS]
    for name, mine in rows.groupby(c.DATASET):
        if (growth := refits[str(name)]) is None:
            continue
        curves = [part for _, part in mine.groupby(t.CURVE) if len(part) > 1]
        for part in curves[:: max(1, -(-len(curves) // MOST_CURVES))]:
            *first, last = part.sort_values(c.TRAIN_SIZE, kind="stable")[names].itertuples(
                index=False
            )
            for size in range(min(MOST_PILOT, len(first)) + 1 if informed else 1):
                pilot = [PilotPoint(row[0], float(np.exp(row[1]))) for row in first[:size]]
                value, variance = Curve(growth, last[2], last[3], pilot, informed=informed).moments(
                    last[0]
                )
                if variance > 0:
                    squares.append((size, name, (value - last[1]) ** 2 / variance))
    by_dataset = pd.DataFrame(squares, columns=["size", "dataset", "square"]).groupby(
        ["size", "dataset"]
    )
    means = by_dataset["square"].mean().groupby("size").mean().astype(float)
    return tuple(np.maximum(np.sqrt(means.to_numpy()), 1.0).tolist()) or (1.0,)


class Curve:
    """Log loss against N of one dataset: the sweep's prior, informed or plain, moved by its
    pilot.
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
        self.growth, self.prior = growth, prior
        self.d_data, self.label_sharpness, self.num_pilot = d_data, label_sharpness, len(pilot)
        size = len(prior.values)
        self.mean = np.concatenate([prior.values, [0.0, 0.0]])
        self.covariance = np.zeros((size + 2, size + 2))
        self.covariance[:size, :size] = prior.covariance
        self.covariance[size:, size:] = np.diag([prior.height_variance, prior.slope_variance])
        if pilot:
            # The posterior of a linear Gaussian model.
            design = np.array([self._row(point.train_size) for point in pilot])
            losses = np.log([point.test_loss for point in pilot])
            spread = (
                design @ self.covariance @ design.T + np.eye(len(pilot)) * prior.residual_variance
            )
            gain = self.covariance @ design.T @ np.linalg.pinv(spread, hermitian=True)
            self.mean = self.mean + gain @ (losses - design @ self.mean)
            self.covariance = self.covariance - gain @ design @ self.covariance

    def _row(self, train_size: float) -> Array:
        size = float(np.log(train_size)) - self.growth.centre
        known = {
            EXPONENT: -size / self.d_data,
            SLOPE: size,
            t.INVERSE_D: 1 / self.d_data,
            t.LOG_SHARPNESS: float(np.log(self.label_sharpness)),
        }
        return np.array([1.0, *(known[name] for name in self.prior.terms), 1.0, size])

    def moments(self, train_size: float) -> tuple[float, float]:
        """Return mean and variance of log loss of one training, as the prior has them."""
        row = self._row(train_size)
        variance = float(row @ self.covariance @ row) + self.prior.residual_variance
        return float(row @ self.mean), max(variance, 0.0)

    def at(self, train_size: float) -> tuple[float, float | None]:
        """Return log loss and the half width of its interval for one training; None below three
        datasets.
        """
        log_loss, variance = self.moments(train_size)
        if self.growth.num_datasets < 3:
            return log_loss, None
        quantile = t_quantile(0.5 + LEVEL / 2, self.prior.degrees_of_freedom)
        stretch = self.prior.stretch[min(self.num_pilot, len(self.prior.stretch) - 1)]
        return log_loss, float(stretch * quantile * np.sqrt(variance))

    def shorter(self, train_size: float) -> float | None:
        """By which share the interval is shorter than one that knows nothing of the dataset."""
        plain = Curve(self.growth, self.d_data, self.label_sharpness, informed=False).at(
            train_size
        )[1]
        ours = self.at(train_size)[1]
        return None if not plain or ours is None else 1 - ours / plain

    def advice(self, train_size: float) -> list[str]:
        """Say which pilot would shorten an interval: that depends on its train sizes alone."""
        shorter = self.shorter(train_size)
        if self.num_pilot or shorter is None or shorter >= WORTH:
            return []
        how = f"{shorter:.0%} shorter" if shorter > 0 else "no shorter"
        poor = f"d_data and K_F make the interval {how} than one that knows nothing of the dataset"
        low, high = self.growth.ranges[c.TRAIN_SIZE]
        last = max(low, min(high, train_size / 2))
        for num in range(1, MOST_PILOT + 1):
            # Trainings of one size would share their images: a pilot has as many sizes as
            # trainings.
            sizes = np.geomspace(low if num == 1 else min(low, last / 2), last, num)
            pilot = [PilotPoint(size, 1.0) for size in sizes]
            better = Curve(self.growth, self.d_data, self.label_sharpness, pilot).shorter(
                train_size
            )
            if better is not None and better >= WORTH:
                named = t.listing([f"{size:.0f}" for size in sizes])
                return [f"{poor}; a pilot at {named} images would make it {better:.0%} shorter"]
        return [
            f"{poor}; nor would a pilot of up to {MOST_PILOT} trainings make it {WORTH:.0%} shorter"
        ]

    def loss_at(self, train_size: float) -> tuple[float, Interval | None]:
        """Return the loss of one training and its interval, or raise why they cannot be told."""
        log_loss, half_width = self.at(train_size)
        if abs(log_loss) > np.log(t.LARGEST_VALUE):
            raise CannotBeTold(
                f"at these numbers the fit has a loss of 10^{log_loss / np.log(10):.0f}"
            )
        if half_width is None:
            return float(np.exp(log_loss)), None
        low, high = log_loss - half_width, log_loss + half_width
        if 2 * half_width > np.log(WIDEST_ANSWER):
            # Written by its exponents: the bounds themselves may lie beyond any number.
            ends = " and ".join(f"10^{end / np.log(10):.1f}" for end in (low, high))
            raise CannotBeTold(f"the loss could lie between {ends}, {self._too_wide(train_size)}")
        return float(np.exp(log_loss)), (float(np.exp(low)), float(np.exp(high)))

    def size_for(self, target: float) -> tuple[float, Interval | None]:
        """Return the train size at which the loss reaches a target and its interval, or raise why
        neither.
        """
        first, last = (self.at(size)[0] for size in (1.0, LARGEST_TRAIN_SIZE))
        slope = (last - first) / np.log(LARGEST_TRAIN_SIZE)
        if slope >= 0:
            raise CannotBeTold("in this fit the loss does not fall with N")
        log_size = (np.log(target) - first) / slope
        if log_size > np.log(LARGEST_TRAIN_SIZE):
            raise CannotBeTold(f"more than {LARGEST_TRAIN_SIZE:.0e} images would be needed")
        if log_size <= 0:
            smallest = f"the smallest fitted is {self.growth.ranges[c.TRAIN_SIZE][0]:.0f} images"
            raise CannotBeTold(
                f"this fit has the loss at or below {target:.3g} at every size; {smallest}"
            )
        sizes = np.geomspace(1, LARGEST_TRAIN_SIZE, 3001).tolist()
        ends = [self.at(size) for size in sizes]
        if ends[0][1] is None:
            return float(np.exp(log_size)), None
        bounds = np.array([[value - (half or 0.0), value + (half or 0.0)] for value, half in ends])
        reached = bounds <= np.log(target)
        low, high = (sizes[int(one.argmax())] if one.any() else None for one in reached.T)
        if low is None or high is None or high / low > WIDEST_ANSWER:
            least = "1" if low is None else f"{low:.2g}"
            span = f"from {least} on" if high is None else f"between {least} and {high:.2g}"
            reach = f"a loss of {target:.3g} could need any number of images {span}"
            raise CannotBeTold(f"{reach}, {self._too_wide(self.growth.ranges[c.TRAIN_SIZE][1])}")
        return float(np.exp(log_size)), (low, high)

    def _too_wide(self, train_size: float) -> str:
        pilot = (
            "a larger pilot"
            if self.num_pilot
            else "a pilot of small trainings on the dataset itself"
        )
        hint = "" if self.advice(train_size) else f"; {pilot} may narrow it"
        return f"more than a factor {WIDEST_ANSWER:,.0f}{hint}"


def predict(
    growth: Growth,
    *,
    d_data: float,
    label_sharpness: float,
    train_size: float | None = None,
    target_loss: float | None = None,
    pilot: Sequence[PilotPoint] = (),
) -> Prediction:
    """Predict the loss at ``train_size`` images, or the images that ``target_loss`` (nat) needs,
    for a dataset of this d_data (maximum likelihood) and K_F (on the fitted scale), from a sweep
    and a pilot on the dataset itself. ConfigError where a number is out of its range, or not one of
    the two is asked.
    """
    check_numbers(d_data, label_sharpness, train_size, target_loss, pilot)
    losses: dict[float, list[float]] = {}
    for point in pilot:
        losses.setdefault(point.train_size, []).append(float(np.log(point.test_loss)))
    pilot = [
        PilotPoint(size, float(np.exp(np.mean(found)))) for size, found in sorted(losses.items())
    ]
    curve = Curve(growth, d_data, label_sharpness, pilot)
    why, value, bounds = [], None, None
    try:
        found = (
            curve.size_for(float(target_loss or 0.0))
            if train_size is None
            else curve.loss_at(train_size)
        )
        value, bounds = found
    except CannotBeTold as error:
        why = [f"cannot be told: {error}"]
    size = value if train_size is None else train_size
    asked = {c.TRAIN_SIZE: size, c.D_DATA_MLE: d_data, c.LABEL_SHARPNESS: label_sharpness}
    outside = [
        f"{t.WORDS[name]} {asked_for:.4g} lies outside the fitted range {low:.4g} to {high:.4g}"
        for name, (low, high) in growth.ranges.items()
        if (asked_for := asked[name]) is not None
        and not low * (1 - 1e-9) <= asked_for <= high * (1 + 1e-9)
    ]
    low, high = growth.ranges[c.TRAIN_SIZE]
    far = [
        f"{point.train_size:.4g}"
        for point in pilot
        if not low / FAR <= point.train_size <= high * FAR
    ]
    guessed = [
        f"{p.test_loss:.3g}" for p in pilot if g.is_guessing(p.test_loss, growth.num_classes)
    ]
    doubts = {
        (
            f"the pilot's train size {', '.join(far)} is far from the sweep's {low:.4g} to "
            f"{high:.4g}"
        ): far,
        (
            f"the pilot's test loss {', '.join(guessed)} is that of guessing or more, which says "
            "little"
        ): guessed,
        "the pilot's test loss rises with its train size": pilot
        and pilot[-1].test_loss > pilot[0].test_loss,
    }
    of_pilot = [text for text, holds in doubts.items() if holds]
    advice = curve.advice(growth.ranges[c.TRAIN_SIZE][1] if size is None else size)
    return Prediction(
        quantity="train_size" if train_size is None else "loss",
        value=value,
        interval=bounds,
        extrapolating=bool(outside) or size is None,
        warning="; ".join([*why, *growth.doubts, *of_pilot, *outside, *advice]),
        shorter=None if bounds is None or size is None else curve.shorter(size),
        num_pilot=len(pilot),
    )
