"""How losses of datasets grow out of their properties and N, as a prior for a dataset not yet seen.

A mixed model of log loss: log L = a_model + b₁ (−log N / d) + b₂ / d + b₃ log K_F + h + s (log N − centre)
+ error, with a height h and a slope s of each dataset's own. Only b₁ to b₃ are common, so the unit of N,
of pixels and of the loss do not matter. Variances by restricted maximum likelihood (Patterson & Thompson
1971); the class pairs of a dataset are averaged first. No floor is fitted: curves of a few sizes cannot
tell one.

Shape letters: n points, p fixed effects, G datasets.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from orchestrator.analysis import points as t
from orchestrator.analysis.calibration import stretched
from orchestrator.analysis.fit_records import SharpnessScale
from orchestrator.analysis.growth_records import EXPONENT, Growth, Prior
from orchestrator.analysis.guessing import flattened, unvaried
from orchestrator.analysis.law_records import Interval
from orchestrator.analysis.laws import MIN_DATASETS, select, shortage
from orchestrator.analysis.regression import Array
from orchestrator.results import columns as c

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
