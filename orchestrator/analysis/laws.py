"""The regressions of log test loss: on d_data, in the predicted form, and on d_repr, each beside baselines.

The law under study (Konz & Mazurowski 2024, Eq. 2): log L ≲ −(1/d_data) log N + log K_F + a. It is an upper
bound with a free constant; the slopes 1 and 1 are what its form would give, not something the theorem
promises.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from orchestrator.analysis import points as t
from orchestrator.analysis.fit_records import (
    ALL,
    POOLED,
    Coefficient,
    Comparison,
    FormScore,
    LawFit,
    PredictionBasis,
    SharpnessScale,
)
from orchestrator.analysis.regression import Array, Problem, Solution, solve
from orchestrator.analysis.sharpness import UNEQUAL_SCALES
from orchestrator.analysis.words import few_datasets
from orchestrator.results import columns as c

#: A regression needs this many points more than it has coefficients, or its residuals say nothing.
MIN_SPARE_POINTS = 3
#: With one dataset a slope over datasets does not exist.
MIN_DATASETS = 2


@dataclass(frozen=True, slots=True)
class Law:
    """A form of log L: its regressors, what theory says of each, and parts with slope fixed at 1."""

    name: str
    regressors: tuple[str, ...] = ()
    theory: tuple[float | None, ...] = ()
    fixed: tuple[str, ...] = ()
    subsets: tuple[str, ...] = (ALL,)

    @property
    def needs_sharpness(self) -> bool:
        """Whether K_F enters, so that unequal scales make the fit meaningless."""
        return t.LOG_SHARPNESS in (*self.regressors, *self.fixed)


PREDICTED_FORM = Law(
    "predicted_form", (t.SCALED_LOG_TRAIN_SIZE, t.LOG_SHARPNESS), (1.0, 1.0), subsets=(ALL, *c.DOMAINS)
)
DOMAIN_FORM = Law("domain_form", (t.SCALED_LOG_TRAIN_SIZE, t.IS_MEDICAL), (1.0, None))

LAWS = (
    Law("loss_on_d_data", (c.D_DATA_MLE,), (None,), subsets=c.DOMAINS),
    Law("loss_on_d_data_with_offset", (c.D_DATA_MLE, t.IS_MEDICAL), (None, None)),
    PREDICTED_FORM,
    DOMAIN_FORM,
    Law("loss_on_d_repr_mle", (c.D_REPR_MLE,), (None,), subsets=c.DOMAINS),
    Law("loss_on_d_repr_twonn", (c.D_REPR_TWONN,), (None,), subsets=c.DOMAINS),
)

#: Forms compared on the same points, from nothing to everything.
FORMS = (
    Law("constant"),
    Law("pure_power", (t.LOG_TRAIN_SIZE,)),
    Law("d_data_only", (t.SCALED_LOG_TRAIN_SIZE,)),
    Law("slopes_fixed_at_theory", fixed=(t.SCALED_LOG_TRAIN_SIZE, t.LOG_SHARPNESS)),
    PREDICTED_FORM,
    DOMAIN_FORM,
)


@dataclass(frozen=True, slots=True)
class Draws:
    """How the bootstrap draws: the seed of all fits, and the number of draws for each."""

    seed: int
    num: int


def select(points: pd.DataFrame, model: str, subset: str = ALL) -> pd.DataFrame:
    """Return the points of one model (or all of them, pooled) and one domain (or both)."""
    rows = points if model == POOLED else points[points[c.MODEL] == model]
    return rows if subset == ALL else rows[rows[c.DOMAIN] == subset]


def problem(points: pd.DataFrame, law: Law, response: str = t.LOG_LOSS) -> Problem:
    """Return the regression of ``response`` on the regressors of ``law``."""
    fixed = points[list(law.fixed)].sum(axis=1).to_numpy(dtype=float) if law.fixed else None
    return Problem(
        response=points[response].to_numpy(dtype=float),
        regressors=points[list(law.regressors)]
        .to_numpy(dtype=float)
        .reshape(len(points), len(law.regressors)),
        models=points[c.MODEL].to_numpy(dtype=str),
        groups=points[c.DATASET].to_numpy(dtype=str),
        strata=points[c.DOMAIN].to_numpy(dtype=str),
        weights=points[t.WEIGHT].to_numpy(dtype=float),
        offset=fixed,
    )


def shortage(points: pd.DataFrame, num_regressors: int) -> str:
    """Return why ``points`` are too few for that many regressors, or an empty text."""
    needed = points[c.MODEL].nunique() + num_regressors + MIN_SPARE_POINTS
    datasets = points[c.DATASET].nunique()
    if len(points) == 0:
        return "no point has all the numbers this fit needs"
    if datasets < MIN_DATASETS:
        only = points[c.DATASET].iloc[0]
        return f"only 1 dataset ({only}): a slope over datasets needs at least {MIN_DATASETS}"
    if len(points) < needed:
        return f"{len(points)} points, at least {needed} needed"
    return ""


def fit_law(
    points: pd.DataFrame,
    law: Law,
    *,
    model: str,
    subset: str,
    scale: SharpnessScale,
    draws: Draws,
) -> LawFit:
    """Fit one law to one model's points (or all models' together) in one domain (or both)."""
    rows, excluded = t.complete(select(points, model, subset), (t.LOG_LOSS, *law.regressors))
    blank = LawFit(
        law=law.name,
        model=model,
        subset=subset,
        status="not_enough_data",
        excluded=excluded,
        num_points=len(rows),
        num_datasets=int(rows[c.DATASET].nunique()),
        reason=shortage(rows, len(law.regressors)),
    )
    if law.needs_sharpness and not scale.comparable:
        return replace(blank, status="refused", reason=UNEQUAL_SCALES)
    if blank.reason:
        return blank
    task = problem(rows, law)
    solution = solve(task, num_bootstrap=draws.num, seed=draws.seed)
    if solution is None:
        return replace(blank, reason=_unidentified(rows, law))
    return replace(
        blank,
        status="ok",
        coefficients=coefficients(solution, law.regressors, law.theory),
        r_squared=solution.r_squared,
        residual_std=_residual_std(solution),
        aicc=solution.aicc,
        held_out_rmse=solution.held_out_rmse,
        num_bootstrap_failed=solution.num_degenerate,
        caveats=few_datasets(rows),
        basis=_basis(rows, task.regressors, task.weights, solution),
    )


def _unidentified(rows: pd.DataFrame, law: Law) -> str:
    if t.IS_MEDICAL in law.regressors and rows[c.DOMAIN].nunique() < 2:
        return f"only {rows[c.DOMAIN].iloc[0]} datasets: an offset between domains needs both"
    return f"{' and '.join(law.regressors)} do not vary enough, or only together, to tell coefficients apart"


def coefficients(
    solution: Solution, names: tuple[str, ...], theory: tuple[float | None, ...]
) -> tuple[Coefficient, ...]:
    """Turn a solution into records: the mean intercept first, then the regressors."""
    covariance = solution.covariance
    intervals = solution.intervals()
    bootstrap = solution.bootstrap_intervals()
    solution.bootstrap_intervals()

    def left_out(position: int) -> dict[str, float | None]:
        return {name: _number(values[position]) for name, values in sorted(solution.left_out.items())}

    return tuple(
        Coefficient(
            name=name,
            value=float(solution.coefficients[k]),
            theory=expected,
            left_out=left_out(k),
            std_error=None if covariance is None else float(np.sqrt(covariance[k, k])),
            interval=None if intervals is None else (float(intervals[k, 0]), float(intervals[k, 1])),
            bootstrap_interval=None
            if bootstrap is None
            else (float(bootstrap[k, 0]), float(bootstrap[k, 1])),
        )
        for k, (name, expected) in enumerate(zip(("intercept", *names), (None, *theory), strict=True))
    )


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _residual_std(solution: Solution) -> float:
    return float(np.sqrt(np.mean(solution.residuals**2)))


def _basis(rows: pd.DataFrame, regressors: Array, weights: Array, solution: Solution) -> PredictionBasis:
    covariance = solution.covariance
    ranges = {
        name: (float(rows[name].min()), float(rows[name].max()))
        for name in (c.TRAIN_SIZE, c.D_DATA_MLE, c.LABEL_SHARPNESS)
        if rows[name].notna().any()
    }
    return PredictionBasis(
        centre=tuple(float(v) for v in np.average(regressors, axis=0, weights=weights)),
        covariance=None if covariance is None else tuple(tuple(float(v) for v in row) for row in covariance),
        ranges=ranges,
    )


def compare_forms(points: pd.DataFrame, *, model: str, scale: SharpnessScale) -> Comparison:
    """Fit every form of :data:`FORMS` to the same points of one model (or pooled)."""
    forms = [form for form in FORMS if scale.comparable or not form.needs_sharpness]
    needed = sorted({t.LOG_LOSS} | {name for form in forms for name in (*form.regressors, *form.fixed)})
    rows, _ = t.complete(select(points, model), needed)
    blank = Comparison(
        model=model,
        status="not_enough_data",
        reason=shortage(rows, 2),
        num_points=len(rows),
        num_datasets=int(rows[c.DATASET].nunique()),
    )
    if blank.reason:
        return blank
    scores = []
    for form in forms:
        solution = solve(problem(rows, form))
        if solution is not None:
            scores.append(
                FormScore(
                    form=form.name,
                    num_coefficients=len(solution.coefficients),
                    r_squared=solution.r_squared,
                    aicc=solution.aicc,
                    held_out_rmse=solution.held_out_rmse,
                )
            )
    left = "" if scale.comparable else "forms with K_F are left out: " + UNEQUAL_SCALES
    correlation = _domain_correlation(rows)
    return replace(
        blank, status="ok", reason=left, scores=tuple(scores), sharpness_domain_correlation=correlation
    )


def _domain_correlation(rows: pd.DataFrame) -> float | None:
    """Correlation of log K_F with the domain over dataset means: near 1, no fit can tell them apart."""
    means = rows.groupby(c.DATASET)[[t.LOG_SHARPNESS, t.IS_MEDICAL]].mean().dropna()
    if len(means) < 3 or (means.std() == 0).any():
        return None
    return float(np.corrcoef(means[t.LOG_SHARPNESS], means[t.IS_MEDICAL])[0, 1])
