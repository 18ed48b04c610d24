"""Correlations over grouped points: what an attack gains against K_F, and d_repr against d_data."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
from scipy import stats

from orchestrator.analysis import points as t
from orchestrator.analysis.fit_records import (
    Association,
    AttackFit,
    Interval,
    RepresentationFit,
    SharpnessScale,
)
from orchestrator.analysis.laws import Draws, Law, coefficients, problem, select, shortage
from orchestrator.analysis.regression import Array, bootstrap_weights, leave_one_out_weights, solve
from orchestrator.analysis.sharpness import UNEQUAL_SCALES
from orchestrator.analysis.words import few_datasets
from orchestrator.results import columns as c

#: d_repr and d_data by the same estimator, so that the comparison is not one of estimators.
ESTIMATORS = {"mle": (c.D_DATA_MLE, c.D_REPR_MLE), "twonn": (c.D_DATA_TWONN, c.D_REPR_TWONN)}


def weighted_pearson(x: Array, y: Array, weights: Array) -> Array:
    """Pearson's r for every row of ``weights`` (B, n); NaN where x or y does not vary."""
    x, y = _standardised(x), _standardised(y)
    total = weights.sum(axis=1)
    total = np.where(total > 0, total, np.nan)
    moments = weights @ np.column_stack([x, y, x * x, y * y, x * y]) / total[:, None]
    mean_x, mean_y, xx, yy, xy = moments.T
    spread = (xx - mean_x**2) * (yy - mean_y**2)
    # A sum of squares of rounding errors is not a spread: x and y are standardised, so 1e-12 is nothing.
    return np.asarray(
        np.where(spread > 1e-12, (xy - mean_x * mean_y) / np.sqrt(np.maximum(spread, 1e-12)), np.nan)
    )


def _standardised(values: Array) -> Array:
    spread = values.std()
    return np.asarray((values - values.mean()) / (spread if spread > 0 else 1.0))


def associate(points: pd.DataFrame, x: str, y: str, *, model: str, draws: Draws) -> Association:
    """Measure how ``y`` goes with ``x`` over the points of one model (or pooled), respecting datasets."""
    rows, _ = t.complete(select(points, model), (x, y))
    law = Law("association", (x,), (None,))
    reason = shortage(rows, 1)
    if not reason and min(rows[x].nunique(), rows[y].nunique()) < 2:
        reason = f"{x} or {y} has the same value everywhere"
    blank = Association(
        x=x,
        y=y,
        model=model,
        status="not_enough_data",
        reason=reason,
        num_points=len(rows),
        num_datasets=int(rows[c.DATASET].nunique()),
    )
    if reason:
        return blank
    task = problem(rows, law, response=y)
    solution = solve(task, num_bootstrap=draws.num, seed=draws.seed)
    names, without = leave_one_out_weights(task.groups, task.weights)
    xs, ys = task.regressors[:, 0], task.response
    pearson = float(weighted_pearson(xs, ys, task.weights[None, :])[0])
    left = weighted_pearson(xs, ys, without)
    drawn = weighted_pearson(xs, ys, bootstrap_weights(task, draws.num, draws.seed))
    means = rows.groupby([c.DOMAIN, c.DATASET])[[x, y]].mean()
    return replace(
        blank,
        status="ok",
        pearson=pearson,
        pearson_interval=_fisher_interval(pearson, left),
        pearson_bootstrap_interval=_quantiles(drawn),
        pearson_left_out={n: float(v) if np.isfinite(v) else None for n, v in zip(names, left, strict=True)},
        pearson_dataset_means=_correlation(means[x], means[y]),
        pearson_by_domain={
            str(domain): _correlation(part[x], part[y]) for domain, part in means.groupby(level=0)
        },
        spearman=_correlation(rows[x].rank(), rows[y].rank()),
        spearman_dataset_means=_correlation(means[x].rank(), means[y].rank()),
        slope=coefficients(solution, (x,), (None,))[1] if solution else None,
        caveats=few_datasets(rows),
    )


def _correlation(x: pd.Series, y: pd.Series) -> float | None:
    """Pearson's r; None below three values (two always lie on a line) or where one does not vary."""
    if len(x) < 3 or x.std() == 0 or y.std() == 0:
        return None
    return float(np.corrcoef(x, y)[0, 1])


def _fisher_interval(pearson: float, left: Array) -> Interval | None:
    """Jackknife-t interval over datasets on z = artanh r, whose spread hardly depends on r (Fisher 1921)."""
    if len(left) < 3 or not np.isfinite(left).all() or abs(pearson) >= 1 or (np.abs(left) >= 1).any():
        return None
    moves = np.arctanh(left) - np.arctanh(pearson)
    std_error = np.sqrt((len(left) - 1) / len(left) * float(moves @ moves))
    reach = stats.t.ppf(0.975, len(left) - 1) * std_error
    return float(np.tanh(np.arctanh(pearson) - reach)), float(np.tanh(np.arctanh(pearson) + reach))


def _quantiles(values: Array) -> Interval | None:
    good = values[np.isfinite(values)]
    if len(good) == 0 or 2 * len(good) < len(values):
        return None
    low, high = np.quantile(good, [0.025, 0.975])
    return float(low), float(high)


def fit_attacks(
    points: pd.DataFrame, *, model: str, scale: SharpnessScale, draws: Draws
) -> tuple[AttackFit, ...]:
    """Relate every attack's loss gain to K_F (Theorem 3: harder attacks need smaller K_F) and to d_data."""
    fits = []
    for name, attack, epsilon in c.attack_columns(points.columns):
        if points[name].notna().sum() == 0:
            continue
        on_sharpness = (
            associate(points, c.LABEL_SHARPNESS, name, model=model, draws=draws)
            if scale.comparable
            else Association(
                x=c.LABEL_SHARPNESS, y=name, model=model, status="refused", reason=UNEQUAL_SCALES
            )
        )
        on_d_data = associate(points, c.D_DATA_MLE, name, model=model, draws=draws)
        fits.append(
            AttackFit(
                attack=attack, epsilon=epsilon, model=model, on_sharpness=on_sharpness, on_d_data=on_d_data
            )
        )
    return tuple(fits)


def fit_representation(
    points: pd.DataFrame, *, estimator: str, model: str, draws: Draws
) -> RepresentationFit:
    """Count how often d_repr ≤ d_data, overall and by dataset, and how the two go together."""
    d_data, d_repr = ESTIMATORS[estimator]
    rows, _ = t.complete(select(points, model), (d_data, d_repr))
    blank = RepresentationFit(
        estimator=estimator,
        model=model,
        status="not_enough_data",
        reason="no point has both dimensions by this estimator",
        num_points=len(rows),
        num_datasets=int(rows[c.DATASET].nunique()),
    )
    if len(rows) == 0:
        return blank
    below = rows[d_repr] <= rows[d_data]
    weights = rows[t.WEIGHT].to_numpy(dtype=float)
    by_dataset = (~below).groupby(rows[c.DATASET]).agg(["sum", "size"])
    task = problem(rows, Law("share"), response=d_repr)
    drawn = bootstrap_weights(task, draws.num, draws.seed)
    return replace(
        blank,
        status="ok",
        reason="",
        share_below=float(np.average(below, weights=weights)),
        share_interval=_share_interval(np.asarray(below, dtype=float), drawn)
        if blank.num_datasets > 1
        else None,
        share_by_domain={
            str(domain): float(np.average(below[part.index], weights=part[t.WEIGHT]))
            for domain, part in rows.groupby(c.DOMAIN)
        },
        violations={
            str(name): (int(row["sum"]), int(row["size"]))
            for name, row in by_dataset.iterrows()
            if row["sum"]
        },
        association=associate(points, d_data, d_repr, model=model, draws=draws),
    )


def _share_interval(below: Array, drawn: Array) -> Interval | None:
    return _quantiles(drawn @ below / drawn.sum(axis=1)) if len(drawn) else None
