"""The regressions of log test loss: on d_data, in the predicted form, and on d_repr, each beside baselines.

The law under study (Konz & Mazurowski 2024, Eq. 2): log L ≲ −(1/d_data) log N + log K_F + a. It is an upper
bound with a free constant; the slopes 1 and 1 are what its form would give, not something the theorem
promises.
"""

from __future__ import annotations

from collections.abc import Collection
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
    SharpnessScale,
)
from orchestrator.analysis.guessing import flattened, unvaried
from orchestrator.analysis.regression import Problem, Solution, solve
from orchestrator.analysis.sharpness import UNEQUAL_SCALES
from orchestrator.analysis.words import few_datasets
from orchestrator.results import columns as c

#: A regression needs this many points more than it has coefficients, or its residuals say nothing.
MIN_SPARE_POINTS = 3
#: With one dataset a slope over datasets does not exist.
MIN_DATASETS = 2


@dataclass(frozen=True, slots=True)
class Law:
    """A form of log L: its regressors, what theory says of each, and parts with slope fixed at 1.

    ``at_equal_size`` gives every model and train size its own intercept, so that only points of equal N
    are compared.
    """

    name: str
    regressors: tuple[str, ...] = ()
    theory: tuple[float | None, ...] = ()
    fixed: tuple[str, ...] = ()
    subsets: tuple[str, ...] = (ALL,)
    at_equal_size: bool = False

    @property
    def needs_sharpness(self) -> bool:
        """Whether K_F enters, so that unequal scales make the fit meaningless."""
        return t.LOG_SHARPNESS in (*self.regressors, *self.fixed)


PREDICTED_FORM = Law(
    "predicted_form", (t.SCALED_LOG_TRAIN_SIZE, t.LOG_SHARPNESS), (1.0, 1.0), subsets=(ALL, *c.DOMAINS)
)
DOMAIN_FORM = Law("domain_form", (t.SCALED_LOG_TRAIN_SIZE, t.IS_MEDICAL), (1.0, None))

#: The study's own regression pools over N, although d_data's estimate grows with N while the loss falls,
#: which gives the slope a wrong sign; it stays for comparison, and what is said and drawn is the one at
#: equal N.
AT_EQUAL_SIZE = Law(
    "loss_on_d_data_at_equal_size", (c.D_DATA_MLE,), (None,), subsets=c.DOMAINS, at_equal_size=True
)

PUBLISHED_SLOPE = Law("loss_on_d_data", (c.D_DATA_MLE,), (None,), subsets=c.DOMAINS)

LAWS = (
    AT_EQUAL_SIZE,
    PUBLISHED_SLOPE,
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
        intercepts=points[_intercept(law)].to_numpy(dtype=str),
        groups=points[c.DATASET].to_numpy(dtype=str),
        weights=points[t.WEIGHT].to_numpy(dtype=float),
        offset=fixed,
    )


def shortage(points: pd.DataFrame, num_regressors: int, intercept: str = c.MODEL) -> str:
    """Return why ``points`` are too few for that many regressors, or an empty text."""
    needed = points[intercept].nunique() + num_regressors + MIN_SPARE_POINTS
    datasets = points[c.DATASET].nunique()
    if len(points) == 0:
        return "no point has all the numbers this fit needs"
    if datasets < MIN_DATASETS:
        only = points[c.DATASET].iloc[0]
        return f"only 1 dataset ({only}): a slope over datasets needs at least {MIN_DATASETS}"
    if len(points) < needed:
        return f"{len(points)} points, at least {needed} needed"
    return ""


def refused_without(points: pd.DataFrame, num_regressors: int, intercept: str = c.MODEL) -> set[str]:
    """Return the datasets without which the fit would itself be refused by :func:`shortage`."""
    names = points[c.DATASET].to_numpy(dtype=str)
    keys = points[intercept].to_numpy(dtype=str)
    refused = set()
    for name in np.unique(names):
        kept = names != name
        needed = len(np.unique(keys[kept])) + num_regressors + MIN_SPARE_POINTS
        if len(np.unique(names[kept])) < MIN_DATASETS or kept.sum() < needed:
            refused.add(str(name))
    return refused


def fit_law(
    points: pd.DataFrame,
    law: Law,
    *,
    model: str,
    subset: str,
    scale: SharpnessScale,
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
        reason=_shortage(rows, law) or unvaried(rows),
    )
    if law.needs_sharpness and not scale.comparable:
        return replace(blank, status="refused", reason=UNEQUAL_SCALES)
    if blank.reason:
        return blank
    if reason := flattened(rows):
        return replace(blank, status="refused", reason=reason)
    solution = solve(problem(rows, law))
    if solution is None:
        return replace(blank, reason=_unidentified(rows, law))
    refused = refused_without(rows, len(law.regressors), _intercept(law))
    return replace(
        blank,
        status="ok",
        coefficients=coefficients(solution, law.regressors, law.theory, refused),
        r_squared=solution.r_squared,
        residual_std=_residual_std(solution),
        aicc=solution.aicc,
        held_out_rmse=solution.held_out_rmse,
        caveats=few_datasets(rows),
    )


def _shortage(rows: pd.DataFrame, law: Law) -> str:
    return shortage(rows, len(law.regressors), _intercept(law))


def _intercept(law: Law) -> str:
    return t.CELL if law.at_equal_size else c.MODEL


def _unidentified(rows: pd.DataFrame, law: Law) -> str:
    if t.IS_MEDICAL in law.regressors and rows[c.DOMAIN].nunique() < 2:
        return f"only {rows[c.DOMAIN].iloc[0]} datasets: an offset between domains needs both"
    return f"{' and '.join(law.regressors)} do not vary enough, or only together, to tell coefficients apart"


def coefficients(
    solution: Solution,
    names: tuple[str, ...],
    theory: tuple[float | None, ...],
    refused: Collection[str] = (),
) -> tuple[Coefficient, ...]:
    """Turn a solution into records: the mean intercept first, then the regressors.

    ``refused`` are datasets without which the fit would itself be refused, so that its value then says
    nothing.
    """
    # An interval made of refits that are refused one by one is no better than they are.
    covariance = None if refused else solution.covariance
    intervals = None if refused else solution.intervals()

    def left_out(position: int) -> dict[str, float | None]:
        return {
            name: None if name in refused else _number(values[position])
            for name, values in sorted(solution.left_out.items())
        }

    return tuple(
        Coefficient(
            name=name,
            value=float(solution.coefficients[k]),
            theory=expected,
            left_out=left_out(k),
            std_error=None if covariance is None else float(np.sqrt(covariance[k, k])),
            interval=None if intervals is None else (float(intervals[k, 0]), float(intervals[k, 1])),
        )
        for k, (name, expected) in enumerate(zip(("intercept", *names), (None, *theory), strict=True))
    )


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _residual_std(solution: Solution) -> float:
    return float(np.sqrt(np.mean(solution.residuals**2)))


def compare_forms(points: pd.DataFrame, *, model: str, scale: SharpnessScale) -> Comparison:
    """Fit every form of :data:`FORMS` to the same points of one model (or pooled)."""
    forms = [form for form in FORMS if scale.comparable or not form.needs_sharpness]
    needed = sorted({t.LOG_LOSS} | {name for form in forms for name in (*form.regressors, *form.fixed)})
    rows, _ = t.complete(select(points, model), needed)
    blank = Comparison(
        model=model,
        status="not_enough_data",
        reason=shortage(rows, 2) or unvaried(rows),
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
