"""Correlations over grouped points: what an attack gains against K_F, and d_repr against d_data."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from orchestrator.analysis import points as t
from orchestrator.analysis.clusters import (
    MOST_EXACT,
    dataset_effects,
    max_correlation_test,
    mean_interval,
    permutation_test,
)
from orchestrator.analysis.distributions import normal_quantile, t_quantile
from orchestrator.analysis.fit_records import (
    Association,
    AttackFit,
    Interval,
    RepresentationFit,
    SharpnessScale,
)
from orchestrator.analysis.law_records import AttackFamily
from orchestrator.analysis.laws import Law, coefficients, problem, refused_without, select, shortage
from orchestrator.analysis.regression import Array, leave_one_out_weights, solve
from orchestrator.analysis.sharpness import UNEQUAL_SCALES
from orchestrator.analysis.words import few_datasets
from orchestrator.results import columns as c

#: d_repr and d_data by the same estimator, so that the comparison is not one of estimators.
ESTIMATORS = {"mle": (c.D_DATA_MLE, c.D_REPR_MLE), "twonn": (c.D_DATA_TWONN, c.D_REPR_TWONN)}
#: Of the family of attacks; the usual one.
LEVEL = 0.05


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


def associate(points: pd.DataFrame, x: str, y: str, *, model: str, seed: int = 0) -> Association:
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
    solution = solve(task)
    names, without = leave_one_out_weights(task.groups, task.weights)
    xs, ys = task.regressors[:, 0], task.response
    pearson = float(weighted_pearson(xs, ys, task.weights[None, :])[0])
    left = weighted_pearson(xs, ys, without)
    refused = refused_without(rows, 1)
    equal = _at_equal_size(rows, x, y, seed)
    means = rows.groupby([c.DOMAIN, c.DATASET])[[x, y]].mean()
    return replace(
        blank,
        status="ok",
        pearson=pearson,
        pearson_interval=None if refused else _fisher_interval(pearson, left),
        pearson_left_out={
            n: float(v) if np.isfinite(v) and n not in refused else None
            for n, v in zip(names, left, strict=True)
        },
        **equal,
        pearson_dataset_means=_correlation(means[x], means[y]),
        pearson_by_domain={
            str(domain): _correlation(part[x], part[y]) for domain, part in means.groupby(level=0)
        },
        spearman=_correlation(rows[x].rank(), rows[y].rank()),
        spearman_dataset_means=_correlation(means[x].rank(), means[y].rank()),
        slope=coefficients(solution, (x,), (None,), refused)[1] if solution else None,
        caveats=few_datasets(rows),
    )


def _at_equal_size(rows: pd.DataFrame, x: str, y: str, seed: int) -> dict[str, Any]:
    """R over dataset effects at equal model and train size, its interval by Fisher's z and its permutation
    p.
    """
    reduced = dataset_effects(
        rows[[x, y]].to_numpy(dtype=float),
        rows[t.CELL].to_numpy(dtype=str),
        rows[c.DATASET].to_numpy(dtype=str),
        rows[t.WEIGHT].to_numpy(dtype=float),
    )
    if reduced is None or len(reduced[0]) < 3:
        return {}
    first, second = reduced[1].T
    r = _correlation(pd.Series(first), pd.Series(second))
    if r is None:
        return {}
    num = len(first)
    bounds = None
    if num > 3 and abs(r) < 1:
        reach = float(normal_quantile(0.975) / np.sqrt(num - 3))
        bounds = (float(np.tanh(np.arctanh(r) - reach)), float(np.tanh(np.arctanh(r) + reach)))
    found = permutation_test(second, first, np.empty((num, 0)), [""] * num, seed=seed)
    return {
        "pearson_at_equal_size": r,
        "interval_at_equal_size": bounds,
        "permutation_p": None if found is None else found.p_value,
    }


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
    reach = t_quantile(0.975, len(left) - 1) * std_error
    return float(np.tanh(np.arctanh(pearson) - reach)), float(np.tanh(np.arctanh(pearson) + reach))


def fit_attacks(
    points: pd.DataFrame, *, model: str, scale: SharpnessScale, seed: int = 0
) -> tuple[AttackFit, ...]:
    """Relate every attack's loss gain to K_F (Theorem 3: harder attacks need smaller K_F) and to d_data."""
    fits = []
    for name, attack, epsilon in c.attack_columns(points.columns):
        if points[name].notna().sum() == 0:
            continue
        on_sharpness = (
            associate(points, c.LABEL_SHARPNESS, name, model=model, seed=seed)
            if scale.comparable
            else Association(
                x=c.LABEL_SHARPNESS, y=name, model=model, status="refused", reason=UNEQUAL_SCALES
            )
        )
        on_d_data = associate(points, c.D_DATA_MLE, name, model=model, seed=seed)
        fits.append(
            AttackFit(
                attack=attack, epsilon=epsilon, model=model, on_sharpness=on_sharpness, on_d_data=on_d_data
            )
        )
    return tuple(fits)


def fit_representation(
    points: pd.DataFrame, *, estimator: str, model: str, seed: int = 0
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
    shares = np.array([below[part.index].mean() for _, part in rows.groupby(c.DATASET)], dtype=float)
    of_datasets, bounds = mean_interval(shares)
    return replace(
        blank,
        status="ok",
        reason="",
        num_below=int(below.sum()),
        share_below=float(np.average(below, weights=weights)),
        share_of_datasets=of_datasets,
        share_interval=None if bounds is None else (max(0.0, bounds[0]), min(1.0, bounds[1])),
        share_by_domain={
            str(domain): float(np.average(below[part.index], weights=part[t.WEIGHT]))
            for domain, part in rows.groupby(c.DOMAIN)
        },
        violations={
            str(name): (int(row["sum"]), int(row["size"]))
            for name, row in by_dataset.iterrows()
            if row["sum"]
        },
        association=associate(points, d_data, d_repr, model=model, seed=seed),
    )


def fit_attack_family(
    points: pd.DataFrame, fits: tuple[AttackFit, ...], *, scale: SharpnessScale, seed: int
) -> AttackFamily:
    """Adjust the correlations with K_F of all attacks, epsilons and models (not pooled) for their number."""
    if not fits:
        return AttackFamily(status="not_enough_data", reason="no attack was run")
    if not scale.comparable:
        return AttackFamily(status="refused", reason=UNEQUAL_SCALES)
    keys, effects = _attack_effects(points)
    few = effects.index.nunique()
    if not keys or few < 4:
        reason = f"{few} dataset{'' if few == 1 else 's'} with K_F and attacks at equal N, at least 4 needed"
        return AttackFamily(status="not_enough_data", reason=reason, num_datasets=few)
    sharpness = effects.pop(c.LABEL_SHARPNESS).to_numpy(dtype=float)
    values = effects.to_numpy(dtype=float)
    found = max_correlation_test(values, sharpness, [""] * len(sharpness), seed=seed)
    if found is None:
        return AttackFamily(
            status="not_enough_data", reason="K_F or every gain has the same value everywhere"
        )
    adjusted, test = found
    rows = []
    for k, key in enumerate(keys):
        has = np.isfinite(values[:, k])
        r = _correlation(pd.Series(values[has, k]), pd.Series(sharpness[has]))
        if r is not None and np.isfinite(adjusted[k]):
            rows.append((*key, r, float(adjusted[k])))
    return AttackFamily(
        status="ok",
        num_datasets=len(sharpness),
        num_permutations=test.num,
        exact=test.exact and test.num <= MOST_EXACT,
        adjusted=tuple(rows),
        num_established=sum(p <= LEVEL for *_, p in rows),
    )


def _attack_effects(points: pd.DataFrame) -> tuple[list[tuple[str, float, str]], pd.DataFrame]:
    """Dataset effects at equal train size of every attack's gain for every model, and K_F: datasets by
    columns.
    """
    keys, columns = [], []
    for attack in c.attack_columns(points.columns):
        for model, rows in points.groupby(c.MODEL):
            used, _ = t.complete(rows, (attack.name, c.LABEL_SHARPNESS))
            if used[c.DATASET].nunique() < 3:
                continue
            reduced = dataset_effects(
                used[[attack.name]].to_numpy(dtype=float),
                used[t.CELL].to_numpy(dtype=str),
                used[c.DATASET].to_numpy(dtype=str),
                used[t.WEIGHT].to_numpy(dtype=float),
            )
            if reduced is None:
                continue
            key = (attack.attack, attack.epsilon, str(model))
            keys.append(key)
            columns.append(pd.Series(reduced[1][:, 0], index=reduced[0], name=str(key)))
    if not columns:
        return [], pd.DataFrame()
    table = pd.concat(columns, axis=1).sort_index()
    sharpness = points.dropna(subset=[c.LABEL_SHARPNESS]).groupby(c.DATASET)[c.LABEL_SHARPNESS].mean()
    return keys, pd.concat([table, sharpness.reindex(table.index)], axis=1)
