"""Slope of log loss on log N for each dataset, and the number of datasets whose loss falls."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
from scipy import special

from orchestrator.analysis.inference import curve_sums, mean_interval, t_p_values
from orchestrator.analysis.law_fits.estimates import Estimate
from orchestrator.analysis.law_fits.records import FallFit
from orchestrator.analysis.law_fits.rows import complete_rows
from orchestrator.analysis.results_tables.chance_level import is_unfitted
from orchestrator.analysis.results_tables.points import (
    ALL,
    CURVE,
    LOG_LOSS,
    LOG_TRAIN_SIZE,
    POOLED,
    WEIGHT,
)
from orchestrator.results.columns import (
    DATASET,
    MODEL,
    NUM_CLASSES,
    TRAIN_ACCURACY,
    TRAIN_SIZE,
)


def fit_fall(points: pd.DataFrame) -> FallFit:
    """Estimate the slope of log loss on log N for each dataset, and test the signs of the slopes.

    All curves with at least two train sizes are used, also curves at chance level and curves
    without d_data. The mean slope gives every dataset the same weight, whatever its number of
    class pairs is.
    """
    rows = complete_rows(points, POOLED, ALL, (LOG_LOSS, LOG_TRAIN_SIZE))
    rows = rows[rows.groupby(CURVE)[TRAIN_SIZE].transform("nunique") > 1]
    if rows.empty:
        return FallFit(reason="no curve has two train sizes")
    # The mean and the sign test give every dataset the same weight. The pooled exponent b
    # gives more weight to datasets with a low d or many curves.
    slopes = _slopes(rows, by=DATASET)
    values = np.array([*slopes.values()])
    value, error, interval = mean_interval(values)
    estimate = Estimate(name="slope on log N", value=value, std_error=error, interval=interval)
    if error is not None:
        p_value = float(t_p_values(value, error, len(values) - 1))
        estimate = replace(estimate, p_value=p_value)
    slopes_of_curves = _slopes(rows, by=CURVE)
    at_smallest = points.loc[rows.index[rows[TRAIN_SIZE] == rows[TRAIN_SIZE].min()]]
    unfitted = is_unfitted(at_smallest[TRAIN_ACCURACY], at_smallest[NUM_CLASSES])
    is_fitted = ~is_unfitted(points[TRAIN_ACCURACY], points[NUM_CLASSES])
    return FallFit(
        status="ok",
        num_points=len(rows),
        num_datasets=len(slopes),
        num_needed=1,
        estimates=(estimate,),
        train_sizes=(int(rows[TRAIN_SIZE].min()), int(rows[TRAIN_SIZE].max())),
        num_models=rows[MODEL].nunique(),
        num_curves=len(slopes_of_curves),
        num_falling_curves=sum(slope < 0 for slope in slopes_of_curves.values()),
        num_at_smallest=len(at_smallest),
        num_unfitted=int(unfitted.sum()),
        sign_p=sign_test_p(values),
        by_dataset=slopes,
        by_model=_mean_slopes_of_models(rows),
        of_fitted=_slope_of_fitted(rows[is_fitted[rows.index]]),
    )


def _slope_of_fitted(rows: pd.DataFrame) -> Estimate | None:
    """Return the mean slope from networks that fit their training images.

    Returns None if no curve of such networks has two train sizes.

    Args:
        rows: Points of networks that fit their training images.
    """
    rows = rows[rows.groupby(CURVE)[TRAIN_SIZE].transform("nunique") > 1]
    if rows.empty:
        return None
    slopes = np.array([*_slopes(rows, by=DATASET).values()])
    value, error, interval = mean_interval(slopes)
    return Estimate(name="slope of fitted", value=value, std_error=error, interval=interval)


def _mean_slopes_of_models(rows: pd.DataFrame) -> dict[str, float]:
    """Return the mean slope over datasets of each network, by name of the network."""
    means = {}
    for model, of_model in rows.groupby(MODEL):
        means[str(model)] = float(np.mean([*_slopes(of_model, by=DATASET).values()]))
    return means


def _slopes(rows: pd.DataFrame, by: str) -> dict[str, float]:
    """Return slopes of log loss on log N within curves, one slope per dataset or per curve.

    Args:
        rows: Points with log loss and log N.
        by: Column of the dataset or of the curve. Each value of this column gets one slope.
    """
    names, xx, xy = curve_sums(
        rows[LOG_LOSS].to_numpy(dtype=float),
        rows[LOG_TRAIN_SIZE].to_numpy(dtype=float),
        rows[CURVE].to_numpy(),
        rows[by].to_numpy(dtype=str),
        rows[WEIGHT].to_numpy(dtype=float),
    )
    slopes = xy / xx
    return dict(zip(names, slopes.tolist(), strict=True))


def sign_test_p(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float | None:
    """Return the p-value of an exact two-sided sign test, with a median of 0 as null hypothesis.

    Values of exactly 0 have no sign and are left out. Returns None if all values are 0.
    """
    num_below = int((values < 0).sum())
    num_signed = num_below + int((values > 0).sum())
    if num_signed == 0:
        return None
    # Under the null hypothesis, the number of negative signs is binomial with probability 1/2.
    fewer = min(num_below, num_signed - num_below)
    return min(1.0, 2 * float(special.bdtr(fewer, num_signed, 0.5)))
