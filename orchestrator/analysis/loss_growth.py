"""A mixed model of log loss that describes how losses fall with N in the datasets of a sweep.

    log L = a_model + b₁ (−(log N − center) / d) + b₂ / d + b₃ log K_F + h + s (log
    N − center) + e

Here L is the loss, a_model is the intercept of a model, b₁ to b₃ are fixed effects, and e is
an error. Each dataset has a random height h and a random slope s. log N is centered, so the
unit of N does not matter. The variances are estimated by restricted maximum likelihood
(Patterson & Thompson 1971). This model gives the informed prior. Another model gives the plain
prior: it has one term in log N instead of the three terms in d and K_F. isweep uses the prior
that predicts left-out datasets better. It makes this choice separately for each number of
pilot points.

Letters in the shapes of arrays: n points, p fixed effects, G datasets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from orchestrator.analysis.chance_ceiling import why_constant, why_flattened
from orchestrator.analysis.experiments.records import Arm
from orchestrator.analysis.fits import prepare
from orchestrator.analysis.inference import Array, Interval, t_quantile
from orchestrator.analysis.limits import MIN_CONVINCING_DATASETS, few_of_domain
from orchestrator.analysis.prediction_inputs import PilotPoint
from orchestrator.analysis.results_tables.points import (
    ALL,
    CURVE,
    D_REFERENCE,
    INVERSE_D,
    LOG_LOSS,
    LOG_SHARPNESS,
    LOG_TRAIN_SIZE,
    POOLED,
    select,
)
from orchestrator.analysis.results_tables.sharpness_scale import SharpnessScale
from orchestrator.results.columns import (
    D_DATA_MLE,
    DATA_MODE,
    DATASET,
    DOMAINS,
    LABEL_SHARPNESS,
    MODEL,
    NUM_CLASSES,
    TRAIN_SIZE,
)
from search_spaces.errors import DataError, plural, unknown_name

EXPONENT, SLOPE = "exponent", "slope"
"""Names of the terms −(log N − center) / d (informed prior) and log N − center (plain
prior)."""
HEIGHT_TERMS: Mapping[str, str] = {INVERSE_D: "d_data", LOG_SHARPNESS: "K_F"}
"""Names in sentences of the regressors of the height, by column."""
MIN_DATASETS_FOR_HEIGHT = 5
"""Smallest number of datasets for a regression of the height on d_data and K_F. Each regressor
costs one degree of freedom."""
MIN_DATASETS_FOR_INTERVAL = 3
"""Smallest number of datasets for an interval. The scatter between only two datasets cannot be
estimated."""
LEVEL = 0.90
"""Probability that an interval contains the true loss."""
MIN_SPARE_POINTS = 3
"""Smallest number of points of a sweep, in addition to one point for each model and one point
for the slope on log N."""
MAX_PILOT_POINTS = 6
"""Largest number of pilot points for which the two priors are compared. For a pilot with more
points, isweep uses the prior that is better for this number of points."""
MAX_CURVES = 30
"""Largest number of curves of a left-out dataset that are predicted. If a dataset has 45 class
pairs, every second pair is used."""
MAX_CONDITION = 1e7
"""Largest condition number of a design matrix whose terms count as identified."""
LOG_RATIO_RANGE = (-14.0, 9.0)
"""Range in which the logarithm of a ratio of variances is searched. The lower end counts as a
ratio of 0."""
RATIO_STEPS, RATIO_ROUNDS = 13, 4
"""Number of points per axis of a grid of ratios, and number of grids. Each grid after the
first lies around the best point of the previous grid."""


@dataclass(frozen=True, slots=True, eq=False)
class Prior:
    """A prior for the losses of a new dataset, fitted to the datasets of a sweep.

    Attributes:
        terms: Names of the fixed effects after the mean intercept.
        values: Fixed effects, with the mean intercept first, ``(1 + num_terms,)``.
        covariance: Covariance of the fixed effects, ``(1 + num_terms, 1 + num_terms)``.
        residual_variance: Variance of the log loss of one point.
        height_variance, slope_variance: Variances of the random height and of the random slope
            of a dataset.
        degrees_of_freedom: Degrees of freedom of the variances between datasets.
        stretch: Factors by which the half width of an interval is multiplied, by number of
            pilot points from 0. They are computed from the errors of predictions for left-out
            datasets.
        log_scores: Mean log density of the losses of left-out datasets, by number of pilot
            points from 0. Higher is better. Empty if no dataset could be left out.
    """

    terms: tuple[str, ...]
    values: Array
    covariance: Array
    residual_variance: float
    height_variance: float
    slope_variance: float
    degrees_of_freedom: int
    stretch: tuple[float, ...] = (1.0,)
    log_scores: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Growth:
    """The two priors that were fitted to the losses of a sweep.

    Attributes:
        num_datasets: Number of datasets of the fit.
        center: Mean of log N, which is subtracted from log N.
        informed: The prior with terms in d_data and K_F.
        plain: The prior without d_data and K_F.
        scale: The image scales on which K_F was measured, and whether K_F may be compared over
            datasets.
        ranges: Smallest and largest value of N, d_data and K_F in the fit, by column.
        num_classes: Largest number of classes, from which chance level is computed.
        doubts: Warnings: sentences without a full stop.
    """

    num_datasets: int
    center: float
    informed: Prior
    plain: Prior
    scale: SharpnessScale
    ranges: dict[str, Interval] = field(default_factory=dict)
    num_classes: float = 2.0
    doubts: tuple[str, ...] = ()

    def measures_help(self, num_pilot: int) -> bool:
        """Return whether d_data and K_F improve the predictions for left-out datasets.

        Args:
            num_pilot: Number of pilot points of the new dataset.
        """
        last = min(len(self.informed.log_scores), len(self.plain.log_scores)) - 1
        if last < 0:
            return False
        size = min(num_pilot, last)
        return self.informed.log_scores[size] > self.plain.log_scores[size]


class GrowthCurve:
    """The posterior of log loss as a function of N for one dataset, after a pilot.

    Args:
        growth: The fits of a sweep.
        d_data: Intrinsic dimension of the dataset.
        label_sharpness: K_F of the dataset, on the scale of the sweep. If one of d_data and
            K_F is None, neither is used.
        pilot: Trainings with few images of the dataset.
        informed: True if d_data and K_F are used. If None, they are used if they improve the
            predictions for left-out datasets.
    """

    def __init__(
        self,
        growth: Growth,
        d_data: float | None,
        label_sharpness: float | None,
        pilot: Sequence[PilotPoint] = (),
        *,
        informed: bool | None = None,
    ) -> None:
        self.growth = growth
        self.d_data = d_data
        self.label_sharpness = label_sharpness
        self.num_pilot = len(pilot)
        if informed is None:
            informed = growth.measures_help(len(pilot))
        self.is_informed = informed and None not in (d_data, label_sharpness)
        self.prior = growth.informed if self.is_informed else growth.plain
        num_effects = len(self.prior.values)
        self.mean = np.concatenate([self.prior.values, [0.0, 0.0]])
        self.covariance = np.zeros((num_effects + 2, num_effects + 2))
        self.covariance[:num_effects, :num_effects] = self.prior.covariance
        own_variances = [self.prior.height_variance, self.prior.slope_variance]
        self.covariance[num_effects:, num_effects:] = np.diag(own_variances)
        if pilot:
            self._condition_on(pilot)

    def _condition_on(self, pilot: Sequence[PilotPoint]) -> None:
        """Replace the prior by the posterior after the pilot, in a linear Gaussian model."""
        design = np.array([self.design_row(point.train_size) for point in pilot])
        log_losses = np.log([point.test_loss for point in pilot])
        noise = np.eye(len(pilot)) * self.prior.residual_variance
        # This is the Kalman update. The gain is the weight of the pilot relative to the prior.
        spread = design @ self.covariance @ design.T + noise
        gain = self.covariance @ design.T @ np.linalg.pinv(spread, hermitian=True)
        self.mean = self.mean + gain @ (log_losses - design @ self.mean)
        self.covariance = self.covariance - gain @ design @ self.covariance

    def design_row(self, train_size: float) -> Array:
        """Return the regressors at a train size: of fixed effects, then of random effects."""
        log_size = float(np.log(train_size)) - self.growth.center
        regressors = {SLOPE: log_size}
        if self.d_data is not None and self.label_sharpness is not None:
            regressors[EXPONENT] = -log_size / self.d_data
            regressors[INVERSE_D] = 1 / self.d_data
            regressors[LOG_SHARPNESS] = float(np.log(self.label_sharpness))
        return np.array([1.0, *(regressors[name] for name in self.prior.terms), 1.0, log_size])

    def moments(self, train_size: float) -> tuple[float, float]:
        """Return the mean and the variance of the log loss of one training, before the stretch."""
        row = self.design_row(train_size)
        variance = float(row @ self.covariance @ row) + self.prior.residual_variance
        return float(row @ self.mean), max(variance, 0.0)

    def at(self, train_size: float) -> tuple[float, float | None]:
        """Return the predicted log loss of one training, and the half width of its interval.

        The half width is None if the fit has fewer than three datasets.
        """
        log_loss, variance = self.moments(train_size)
        if self.growth.num_datasets < MIN_DATASETS_FOR_INTERVAL:
            return log_loss, None
        # The interval uses a t distribution, because the variance between few datasets is
        # uncertain.
        quantile = t_quantile(0.5 + LEVEL / 2, self.prior.degrees_of_freedom)
        stretch = self.prior.stretch[min(self.num_pilot, len(self.prior.stretch) - 1)]
        return log_loss, float(stretch * quantile * np.sqrt(variance))

    def shorter(self, train_size: float) -> float | None:
        """Return the share by which d_data, K_F and the pilot shorten the interval.

        A negative share means a longer interval. Returns None if there is no interval.
        """
        plain = GrowthCurve(self.growth, self.d_data, self.label_sharpness, informed=False)
        plain_half_width = plain.at(train_size)[1]
        half_width = self.at(train_size)[1]
        if not plain_half_width or half_width is None:
            return None
        return 1 - half_width / plain_half_width


def fit_growth(
    table: pd.DataFrame,
    *,
    model: str = POOLED,
    domain: str | None = None,
    arms: Sequence[Arm] = (),
) -> Growth:
    """Fit how losses fall with N in a sweep. The result is a prior for predictions.

    Args:
        table: Results of a sweep.
        model: Name of one model of the sweep; ``pooled`` for all models together.
        domain: ``natural`` or ``medical``. If no fit is possible with the datasets of this
            domain, all datasets are used and a warning is added.
        arms: Datasets of an experiment. Changed copies of base datasets are left out.

    Raises:
        ConfigError: If the model or domain is unknown.
        DataError: If the sweep has too few results for a fit.
    """
    if domain is not None and domain not in DOMAINS:
        raise unknown_name("domain", domain, DOMAINS)
    ready = prepare(table, arms=arms)
    models = sorted(ready.points[MODEL].unique())
    if model not in (*models, POOLED):
        raise unknown_name("fitted model", model, (*models, POOLED))
    doubts = []
    if model == POOLED and len(models) > 1:
        doubts.append("the fit uses the losses of all models together, and models differ")
    reason = ""
    for subset in (*([domain] if domain else []), ALL):
        growth = growth_of(select(ready.points, model, subset), ready.scale)
        if isinstance(growth, Growth):
            if subset != ALL and growth.num_datasets < MIN_CONVINCING_DATASETS:
                doubts.append(few_of_domain(subset, growth.num_datasets).rstrip("."))
            return replace(growth, doubts=(*doubts, *growth.doubts))
        reason = growth
        doubts.append(f"no fit for {subset} datasets ({reason}), so all datasets are used")
    raise DataError(
        f"No prediction can be computed from this sweep: {reason}",
        hint="Add datasets (`isweep datasets` lists them) and train sizes to the sweep. Or "
        "use another sweep that has several datasets and train sizes, such as demo",
    )


def growth_of(points: pd.DataFrame, scale: SharpnessScale) -> Growth | str:
    """Return the priors that were fitted to points, or the reason why they cannot be fitted.

    Args:
        points: Points of one model, or of several models together.
        scale: The scales of K_F. If there are several scales, K_F is not used.
    """
    measures = [LOG_SHARPNESS, LABEL_SHARPNESS] if scale.comparable else []
    rows = points.dropna(subset=[LOG_LOSS, D_REFERENCE, *measures])
    reason = why_no_growth(rows)
    if reason:
        return reason
    # Class pairs of one dataset are averaged, because they are not independent datasets.
    columns = [
        LOG_LOSS,
        D_REFERENCE,
        LOG_TRAIN_SIZE,
        *HEIGHT_TERMS,
        D_DATA_MLE,
        LABEL_SHARPNESS,
    ]
    means = rows.groupby([MODEL, DATASET, DATA_MODE, TRAIN_SIZE])[columns].mean().reset_index()
    num_datasets = means[DATASET].nunique()
    fitted: Growth | None = None
    height: list[str] = []
    for height in _height_choices(num_datasets, scale):
        fitted = _fit_both(means, height, scale)
        if fitted is not None:
            break
    if fitted is None:
        return "models and train sizes change only together, so their effects cannot be separated"
    datasets = means[DATASET]
    # The informed prior is used only if it predicts datasets better to which it was not
    # fitted.
    refits = {}
    for name in datasets.unique():
        refits[str(name)] = _fit_both(means[datasets != name], height, scale)
    trials = _left_out_trials(rows, refits)
    growth = replace(
        fitted,
        ranges={
            name: (float(means[name].min()), float(means[name].max()))
            for name in (TRAIN_SIZE, D_DATA_MLE, *measures[1:])
        },
        informed=_scored(fitted.informed, trials[trials["is_informed"]]),
        plain=_scored(fitted.plain, trials[~trials["is_informed"]]),
        num_classes=float(rows[NUM_CLASSES].fillna(2.0).max()),
    )
    return replace(growth, doubts=_doubts(rows, height, num_datasets))


def why_no_growth(rows: pd.DataFrame) -> str:
    """Return the reason why no fit to these points is possible; empty if a fit is possible."""
    num_datasets, num_models = rows[DATASET].nunique(), rows[MODEL].nunique()
    if num_datasets < 2:
        verb = "has" if num_datasets == 1 else "have"
        counted = plural(num_datasets, "dataset")
        return f"{counted} {verb} losses, d_data and K_F, but a fit needs at least 2"
    num_needed = num_models + 1 + MIN_SPARE_POINTS
    if len(rows) < num_needed:
        return f"there are only {plural(len(rows), 'point')}, and a fit needs {num_needed}"
    reason = why_constant(rows)
    if reason:
        return reason
    if rows[TRAIN_SIZE].nunique() < 2:
        return "there is only one train size, which does not show how losses fall with N"
    return ""


def _height_choices(num_datasets: int, scale: SharpnessScale) -> list[list[str]]:
    """Return the sets of regressors of the height, in the order in which they are tried.

    The effects of a set may not be identified, because a regressor is constant or depends on
    the other regressor. Then the next set is tried.
    """
    if num_datasets < MIN_DATASETS_FOR_HEIGHT:
        return [[]]
    terms = list(HEIGHT_TERMS) if scale.comparable else [INVERSE_D]
    return [terms, *([name] for name in terms), []]


def _doubts(rows: pd.DataFrame, height: Sequence[str], num_datasets: int) -> tuple[str, ...]:
    doubts = []
    ceiling = why_flattened(rows)
    if ceiling:
        doubts.append(ceiling)
    missing = [words for name, words in HEIGHT_TERMS.items() if name not in height]
    if missing:
        names = " and ".join(missing)
        doubts.append(f"the effect of {names} on the height of the loss could not be estimated")
    if num_datasets < MIN_DATASETS_FOR_INTERVAL:
        doubts.append(f"with {plural(num_datasets, 'dataset')} no interval can be given")
    return tuple(doubts)


def _fit_both(means: pd.DataFrame, height: Sequence[str], scale: SharpnessScale) -> Growth | None:
    """Fit the informed and the plain prior. Returns None if a term is not identified."""
    num_datasets, center = means[DATASET].nunique(), float(means[LOG_TRAIN_SIZE].mean())
    if num_datasets < 2 or means[TRAIN_SIZE].nunique() < 2:
        return None
    informed = _fit_prior(means, (EXPONENT, *height), center)
    plain = _fit_prior(means, (SLOPE,), center)
    if informed is None or plain is None:
        return None
    return Growth(
        num_datasets=num_datasets, center=center, informed=informed, plain=plain, scale=scale
    )


def _fit_prior(rows: pd.DataFrame, terms: tuple[str, ...], center: float) -> Prior | None:
    """Fit the fixed effects and variances of one prior.

    Args:
        rows: Points, averaged over class pairs.
        terms: Names of the fixed effects after the mean intercept.
        center: Mean of log N.

    Returns:
        The prior; None if the terms are not identified.
    """
    log_sizes = rows[LOG_TRAIN_SIZE].to_numpy(dtype=float) - center
    by_size = {
        EXPONENT: -log_sizes / rows[D_REFERENCE].to_numpy(dtype=float),
        SLOPE: log_sizes,
    }
    models, codes = np.unique(rows[MODEL].to_numpy(dtype=str), return_inverse=True)
    # The columns of models are contrasts, so the first column is the mean intercept of all
    # models.
    contrasts = np.vstack([np.eye(len(models) - 1), -np.ones(len(models) - 1)])[codes]
    columns = []
    for name in terms:
        columns.append(by_size[name] if name in by_size else rows[name].to_numpy(dtype=float))
    x = np.column_stack([np.ones(len(rows)), *columns, contrasts])
    sizes = np.sqrt((x**2).mean(axis=0))
    # A column of zeros cannot be scaled. Such a column is log K_F if K_F is 1 everywhere.
    if (sizes == 0).any() or np.linalg.cond(x / sizes) > MAX_CONDITION:
        return None
    _, groups = np.unique(rows[DATASET].to_numpy(dtype=str), return_inverse=True)
    y = rows[LOG_LOSS].to_numpy(dtype=float)
    z = np.column_stack([np.ones(len(rows)), log_sizes])
    estimates = restricted_likelihood(x, y, z, groups)
    # The height is estimated between datasets, so the number of datasets determines its
    # degrees of freedom.
    num_effects = 1 + len(terms)
    num_free = int(groups.max()) - sum(name in HEIGHT_TERMS for name in terms)
    height_variance, slope_variance = (estimates.ratios * estimates.residual_variance).tolist()
    return Prior(
        terms=terms,
        values=estimates.values[:num_effects],
        covariance=estimates.covariance[:num_effects, :num_effects],
        residual_variance=estimates.residual_variance,
        height_variance=height_variance,
        slope_variance=slope_variance,
        degrees_of_freedom=max(1, num_free),
    )


@dataclass(frozen=True, slots=True, eq=False)
class MixedEstimates:
    """Estimates of a mixed model by restricted maximum likelihood.

    Attributes:
        values: Fixed effects, ``(p,)``.
        covariance: Covariance of the fixed effects, ``(p, p)``.
        residual_variance: Variance of one point.
        ratios: Variances of height and slope, divided by the residual variance, ``(2,)``.
    """

    values: Array
    covariance: Array
    residual_variance: float
    ratios: Array


def restricted_likelihood(x: Array, y: Array, z: Array, groups: NDArray[np.intp]) -> MixedEstimates:
    """Estimate a mixed model of y on x, with random effects z for each group.

    The two ratios of variances come from a search over grids of their logarithms. Each grid is
    finer than the previous grid, and lies around its best point.

    Args:
        x: Fixed regressors, ``(n, p)``.
        y: Response, ``(n,)``.
        z: Regressors of the random height and of the random slope, ``(n, 2)``.
        groups: Index of each point's dataset, ``(n,)``.
    """
    num_groups, p = int(groups.max()) + 1, x.shape[1]
    zz = np.zeros((num_groups, 2, 2))
    zx = np.zeros((num_groups, 2, p))
    zy = np.zeros((num_groups, 2))
    np.add.at(zz, groups, z[:, :, None] * z[:, None, :])
    np.add.at(zx, groups, z[:, :, None] * x[:, None, :])
    np.add.at(zy, groups, z * y[:, None])
    flat, spare = zx.reshape(-1, p), len(y) - p
    smallest_residual = 1e-14 * max(float(y @ y) / len(y), 1e-300)

    def criterion(log_ratios: Array) -> tuple[Array, Array, Array, Array]:
        """Return estimates for each of B pairs of ratios.

        The estimates are −2 log likelihood, fixed effects, (X'WX)⁻¹ and the residual variance.
        """
        # The covariance of a dataset is I + z R z'. By Woodbury's identity, its inverse needs
        # only the 2 × 2 matrix I + √R z'z √R. R may be singular, so its root is used and not
        # R⁻¹.
        root = np.exp(log_ratios / 2)[:, None, :]
        inner = np.eye(2) + root[..., None] * zz * root[:, :, None, :]
        middle = root[..., None] * np.linalg.inv(inner) * root[:, :, None, :]
        half = (middle @ zx).reshape(len(log_ratios), *flat.shape)
        xx, xy = x.T @ x - flat.T @ half, x.T @ y - zy.reshape(-1) @ half
        yy = y @ y - np.einsum("gi,bgij,gj->b", zy, middle, zy)
        inverse = np.linalg.pinv(xx, hermitian=True)
        values = (inverse @ xy[:, :, None])[:, :, 0]
        residual = np.maximum((yy - (values * xy).sum(axis=1)) / spare, smallest_residual)
        # The term log |X'WX| makes the likelihood restricted. It corrects the variances for
        # the estimation of the fixed effects.
        determinants = np.linalg.slogdet(inner)[1].sum(axis=1) + np.linalg.slogdet(xx)[1]
        return spare * np.log(residual) + determinants, values, inverse, residual

    smallest, largest = LOG_RATIO_RANGE
    low, high = np.full(2, smallest), np.full(2, largest)
    best = low
    for _ in range(RATIO_ROUNDS):
        axes = np.linspace(low, high, RATIO_STEPS).T
        grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)
        # The criterion is −2 log likelihood plus a constant, so the estimate is at its
        # minimum.
        best = grid[int(np.argmin(criterion(grid)[0]))]
        step = (high - low) / (RATIO_STEPS - 1)
        low, high = np.maximum(best - step, smallest), np.minimum(best + step, largest)
    _, values, inverse, residual = (part[0] for part in criterion(best[None, :]))
    # A ratio at the lower end of the range means that the data show no variance between
    # datasets.
    ratios = np.where(best <= smallest + 1e-6, 0.0, np.exp(best))
    return MixedEstimates(values, inverse * residual, float(residual), ratios)


def _left_out_trials(rows: pd.DataFrame, refits: Mapping[str, Growth | None]) -> pd.DataFrame:
    """Return the errors of both priors for datasets to which they were not fitted.

    The loss at the largest N of a curve is predicted. The pilot contains the points with the
    smallest N of this curve.

    Args:
        rows: Points of all datasets.
        refits: The priors fitted without one dataset, by name of this dataset.

    Returns:
        One row for each curve, number of pilot points and prior. The columns are ``dataset``,
        ``is_informed``, ``size`` (number of pilot points), ``square`` (squared error, divided
        by its predicted variance) and ``log_variance`` (log of the predicted variance).
    """
    trials = []
    columns = [TRAIN_SIZE, LOG_LOSS, D_REFERENCE, LABEL_SHARPNESS]
    for name, of_dataset in rows.groupby(DATASET):
        growth = refits[str(name)]
        if growth is None:
            continue
        curves = [part for _, part in of_dataset.groupby(CURVE) if len(part) > 1]
        # Round the step up, so that at most MAX_CURVES curves remain.
        step = max(1, -(-len(curves) // MAX_CURVES))
        for curve in curves[::step]:
            by_size = curve.sort_values(TRAIN_SIZE, kind="stable")
            ordered = by_size[columns].to_numpy(dtype=float)
            *earlier, (last_size, last_log_loss, d_data, sharpness) = ordered
            points = [PilotPoint(row[0], float(np.exp(row[1]))) for row in earlier]
            for size in range(min(MAX_PILOT_POINTS, len(points)) + 1):
                for is_informed in (True, False):
                    posterior = GrowthCurve(
                        growth, d_data, sharpness, points[:size], informed=is_informed
                    )
                    log_loss, variance = posterior.moments(last_size)
                    if variance > 0:
                        square = (log_loss - last_log_loss) ** 2 / variance
                        trials.append((name, is_informed, size, square, np.log(variance)))
    names = ["dataset", "is_informed", "size", "square", "log_variance"]
    return pd.DataFrame(trials, columns=names).astype({"is_informed": bool})


def _scored(prior: Prior, trials: pd.DataFrame) -> Prior:
    """Return a prior with a stretch and a score for each number of pilot points.

    The stretch is the root mean square of the ratio of the error to the predicted standard
    error, but at least 1. The score is the mean log density of the losses after the stretch.
    All datasets have the same weight.
    """
    if trials.empty:
        return prior
    means = trials.groupby(["size", "dataset"])[["square", "log_variance"]].mean()
    by_size = means.groupby("size").mean().astype(float)
    # If errors are larger than predicted, intervals become wider. If errors are smaller than
    # predicted, intervals stay the same.
    stretch = np.maximum(np.sqrt(by_size["square"]), 1.0)
    # This is the log density of a normal error whose standard deviation is stretched.
    log_density = -np.log(stretch) - by_size["log_variance"] / 2
    log_density -= by_size["square"] / (2 * stretch**2)
    return replace(
        prior,
        stretch=tuple(stretch.tolist()),
        log_scores=tuple(log_density.tolist()),
    )
