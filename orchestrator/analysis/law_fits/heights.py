"""Regression of heights on properties of the datasets.

The height of a dataset is its effect on log loss, compared at equal model and train size N.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import pandas as pd

from orchestrator.analysis.chance_ceiling import why_flattened
from orchestrator.analysis.inference import MIN_DATASETS, Array, ols
from orchestrator.analysis.law_fits.estimates import Estimate, slope_estimates
from orchestrator.analysis.law_fits.records import HeightFit
from orchestrator.analysis.law_fits.rows import complete_rows, effects_of, effects_without_each
from orchestrator.analysis.number_formats import listing
from orchestrator.analysis.results_tables.points import (
    ALL,
    INVERSE_D,
    IS_MEDICAL,
    LOG_LOSS,
    LOG_SHARPNESS,
    POOLED,
    WORDS,
)
from orchestrator.analysis.results_tables.sharpness_scale import SharpnessScale
from orchestrator.results.columns import DATASET, DOMAIN

MAX_NAMES_LENGTH = 60
"""Largest number of characters of a list of dataset names in a reason. A reason omits a longer
list."""


def fit_headline(points: pd.DataFrame, scale: SharpnessScale, *, model: str = POOLED) -> HeightFit:
    """Regress heights on 1/d, log K_F and the domain.

    If K_F is constant or was measured on several scales, log K_F is left out. If all datasets
    have the same domain, the domain is left out.
    """
    terms = dataset_properties(points, scale)
    rows = complete_rows(points, model, ALL, (LOG_LOSS, *terms))
    if rows[DOMAIN].nunique() > 1:
        terms += (IS_MEDICAL,)
    return fit_height(points, scale, terms, model=model, kind="headline")


def dataset_properties(points: pd.DataFrame, scale: SharpnessScale) -> tuple[str, ...]:
    """Return the names of the columns of 1/d and, if K_F varies and has one scale, of log K_F."""
    if scale.comparable and points[LOG_SHARPNESS].nunique() > 1:
        return (INVERSE_D, LOG_SHARPNESS)
    return (INVERSE_D,)


def fit_height(
    points: pd.DataFrame,
    scale: SharpnessScale,
    terms: tuple[str, ...],
    *,
    model: str = POOLED,
    kind: Literal["headline", "height"] = "height",
) -> HeightFit:
    """Regress heights on columns of the points.

    The headline fit of all models also has permutation tests and refits without each dataset.
    All fits use the same points: the points that have all numbers of the headline fit.

    Args:
        points: The points.
        scale: Scales of K_F.
        terms: Columns of the regressors.
        model: Name of one network, or ``pooled`` for all networks.
        kind: ``headline`` for the fit that answers the headline questions; else ``height``.
    """
    properties = dataset_properties(points, scale)
    columns = list(dict.fromkeys((LOG_LOSS, *terms, IS_MEDICAL, *properties)))
    rows = complete_rows(points, model, ALL, columns)
    unfitted = HeightFit(
        kind=kind,
        model=model,
        terms=terms,
        num_points=len(rows),
        num_datasets=rows[DATASET].nunique(),
        num_needed=max(MIN_DATASETS, len(terms) + 2),
    )
    if unfitted.num_datasets < unfitted.num_needed:
        return replace(unfitted, reason=_too_few(rows, unfitted))
    reason = why_flattened(rows)
    if reason:
        return replace(unfitted, status="refused", reason=reason)
    # Datasets are compared at the same models, train sizes and data modes. Otherwise a dataset
    # without trials at a large N would get a higher loss and a lower d_data only for this
    # reason.
    effects = effects_of(rows, columns)
    if effects is None:
        reason = (
            "the datasets share no model, train size and data mode, so none can be compared "
            "at equal N"
        )
        return replace(unfitted, reason=reason)
    if not effects[LOG_LOSS].any():
        return replace(unfitted, reason="the losses are the same for all datasets")

    domains = rows.groupby(DATASET)[DOMAIN].first()[effects.index].tolist()
    # Permutation tests are slow, so only slopes that answer a question get one.
    is_headline = kind == "headline" and model == POOLED
    tested = set()
    if is_headline:
        tested = set(terms) - {IS_MEDICAL}
    elif kind == "height":
        tested = {IS_MEDICAL}
    estimates = slope_estimates(
        effects[LOG_LOSS].to_numpy(),
        effects[[*terms]].to_numpy(),
        terms,
        domains,
        tested=tested,
    )
    if estimates is None:
        return replace(unfitted, reason=_not_identified(terms, domains))
    if is_headline:
        slopes_without = _slopes_without_each(rows, terms)
        estimates = tuple(_with_left_out(estimates, slopes_without))
    return replace(unfitted, status="ok", estimates=estimates)


def _slopes_without_each(rows: pd.DataFrame, terms: Sequence[str]) -> dict[str, Array]:
    """Return the slopes without each dataset, by name of the dataset.

    A dataset is missing if the slopes without it are not identified.
    """
    slopes_without: dict[str, Array] = {}
    for dataset, effects in effects_without_each(rows, (LOG_LOSS, *terms)):
        slopes = ols(effects[:, 0], effects[:, 1:])
        if slopes is not None:
            slopes_without[dataset] = slopes[0]
    return slopes_without


def _with_left_out(
    estimates: Sequence[Estimate], slopes_without: dict[str, Array]
) -> list[Estimate]:
    """Add the refits without each dataset to every estimate."""
    completed = []
    for k, estimate in enumerate(estimates):
        values_without = {name: float(slopes[k]) for name, slopes in slopes_without.items()}
        completed.append(replace(estimate, left_out=values_without))
    return completed


def _too_few(rows: pd.DataFrame, unfitted: HeightFit) -> str:
    """Return a text that there are too few datasets, with their names if the list is short."""
    if unfitted.num_datasets == 0:
        return "no point has all the numbers that this fit needs"
    names = listing(sorted(map(str, rows[DATASET].unique())))
    text = unfitted.too_few_datasets("with all its numbers")
    if len(names) + len(" ()") < MAX_NAMES_LENGTH:
        text += f" ({names})"
    return text


def _not_identified(terms: Sequence[str], domains: Sequence[str]) -> str:
    """Return the reason why the coefficients are not identified."""
    names = listing([WORDS[name] for name in terms])
    if IS_MEDICAL in terms and len(set(domains)) < 2:
        return (
            f"all datasets are {domains[0]}, but an offset between domains needs datasets of both "
            "domains"
        )
    if len(terms) == 1:
        return f"{names} does not vary enough over these datasets"
    return f"{names} vary too little, or only together, so their slopes are not identified"
