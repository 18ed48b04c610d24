"""The exponent b of the decrease N^(−b/d) of the loss. By the law's bound, b is at least 1."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from orchestrator.analysis.chance_ceiling import above_chance, clear_of_ceiling, why_constant
from orchestrator.analysis.inference import (
    MIN_DATASETS,
    Sums,
    jackknife_error,
    smallest_wild_p,
    t_interval,
    t_p_values,
    wild_cluster_p,
    wild_draws,
)
from orchestrator.analysis.law_fits.estimates import Estimate
from orchestrator.analysis.law_fits.records import ExponentFit
from orchestrator.analysis.law_fits.rows import complete_rows
from orchestrator.analysis.results_tables.points import (
    ALL,
    CURVE,
    D_REFERENCE,
    LOG_LOSS,
    LOG_TRAIN_SIZE,
    POOLED,
    SUBSET,
    at_largest_size,
    sums_of,
)
from orchestrator.results.columns import (
    D_DATA_MLE,
    D_DATA_TWONN,
    DATASET,
    MODEL,
    OTHER_NUM_NEIGHBORS,
    TRAIN_SIZE,
    d_data_at,
)

ABOVE_CHANCE = "N above chance level"
"""Name of the variant of the exponent that uses only train sizes above chance level."""
TWONN = "TwoNN"
"""Name of the variant of the exponent with d estimated by TwoNN. TwoNN uses the distances from
an image to its two nearest neighbors."""
OTHER_D = {TWONN: D_DATA_TWONN, **{f"{k} neighbours": d_data_at(k) for k in OTHER_NUM_NEIGHBORS}}
"""Column of d for each variant of the exponent that uses another estimate of d, by name of the
variant."""


def fit_exponents(
    points: pd.DataFrame, full: pd.DataFrame, dimension: str = ""
) -> tuple[ExponentFit, ExponentFit]:
    """Fit the exponent to all train sizes, and again to train sizes above chance level.

    At chance level every curve is flat, so a flat curve there does not contradict the law.
    isweep therefore claims that the loss falls more slowly than the bound only if the second
    fit shows it too.

    Args:
        points: The points of the fit.
        full: All rows of the table. They determine which train sizes are above chance level.
        dimension: Column of d; the maximum-likelihood estimate if empty.
    """
    is_above = above_chance(clear_of_ceiling(points), full)
    return (
        fit_exponent(points, dimension=dimension),
        fit_exponent(is_above, dimension=dimension, variant=ABOVE_CHANCE),
    )


def fit_exponent(
    points: pd.DataFrame,
    *,
    model: str = POOLED,
    subset: str = ALL,
    dimension: str = "",
    variant: str = "",
) -> ExponentFit:
    """Regress log loss on −log N / d, with an intercept for each curve.

    Args:
        points: The points.
        model: Name of one network, or ``pooled`` for all networks.
        subset: Name of one domain, or ``all`` for both domains.
        dimension: Column of d, read at the largest N; the maximum-likelihood estimate if
            empty.
        variant: Name of the choice of d or of points.
    """
    if dimension:
        # Estimates of d grow with N, so all points of a dataset get the estimate at its
        # largest N.
        reference = at_largest_size(points, dimension, (*SUBSET, MODEL))
        points = points.assign(**{D_REFERENCE: reference})
    columns = (LOG_LOSS, D_REFERENCE, LOG_TRAIN_SIZE)
    all_curves = _with_two_sizes(complete_rows(points, model, subset, columns))
    rows = _with_two_sizes(clear_of_ceiling(all_curves))
    num_curves = all_curves[CURVE].nunique()
    unfitted = ExponentFit(
        model=model,
        subset=subset,
        variant=variant,
        num_points=len(rows),
        num_datasets=rows[DATASET].nunique(),
        num_needed=MIN_DATASETS,
        num_curves=num_curves,
        num_at_chance=num_curves - rows[CURVE].nunique(),
    )
    if unfitted.num_datasets < MIN_DATASETS:
        return replace(unfitted, reason=_too_few(unfitted, dimension))
    reason = why_constant(rows, within=CURVE)
    if reason:
        return replace(unfitted, reason=reason)
    return with_exponent(unfitted, sums_of(rows, LOG_LOSS))


def _with_two_sizes(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the curves that have at least two train sizes."""
    return rows[rows.groupby(CURVE)[TRAIN_SIZE].transform("nunique") > 1]


def _too_few(unfitted: ExponentFit, dimension: str) -> str:
    """Return a text that too few datasets have the numbers that an exponent needs."""
    name = "_".join((dimension or D_DATA_MLE).split("_")[:2])
    if unfitted.variant in OTHER_D:
        name += f" by {unfitted.variant}"
    clear = " whose losses are clear of chance level" if unfitted.num_at_chance else ""
    return unfitted.too_few_datasets(f"with two train sizes and {name}{clear}")


def with_exponent(unfitted: ExponentFit, sums: Sums) -> ExponentFit:
    """Return a fit with the exponent computed from the sums of its datasets.

    The standard error comes from a jackknife over datasets, and the interval from a t
    distribution. One p-value comes from the t test, and a second one from a wild cluster
    bootstrap. A verdict uses the larger p-value.
    """
    names, xx, xy = sums
    value = float(xy.sum() / xx.sum())
    degrees = len(names) - 1
    # The slope is a ratio of sums over datasets, so a refit only subtracts the sums of one
    # dataset. Datasets are weighted by 1/d², so one dataset with a low d can have half of the
    # total weight. A plain cluster-robust error would then be much too small; a jackknife
    # error is not.
    without_each = (xy.sum() - xy) / (xx.sum() - xx)
    error = jackknife_error(value, without_each)
    p_of_zero, p_of_bound = t_p_values(value - np.array([0.0, 1.0]), error, degrees).tolist()
    estimate = Estimate(
        name="exponent",
        value=value,
        std_error=error,
        interval=t_interval(value, error, degrees),
        p_value=p_of_zero,
        resampled_p=wild_cluster_p(sums),
        num_resamples=len(wild_draws(len(names))),
        smallest_p=smallest_wild_p(len(names)),
        left_out=dict(zip(names, without_each.tolist(), strict=True)),
        weights=dict(zip(names, (xx / xx.sum()).tolist(), strict=True)),
    )
    by_dataset = {}
    for name, x_squares, products in zip(*sums, strict=True):
        if x_squares > 0:
            by_dataset[name] = float(products / x_squares)
    return replace(
        unfitted,
        status="ok",
        estimates=(estimate,),
        by_dataset=by_dataset,
        # The bootstrap assumes that its null hypothesis is true, so the test of the bound
        # needs a second bootstrap.
        bound_p=max(p_of_bound, wild_cluster_p(sums, null=1.0)),
    )
