"""The share of points with d_repr ≤ d_data. Theorem 5 states this as an approximate bound."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from orchestrator.analysis.inference import mean_interval
from orchestrator.analysis.law_fits.estimates import Estimate
from orchestrator.analysis.law_fits.records import RepresentationFit
from orchestrator.analysis.law_fits.rows import complete_rows
from orchestrator.analysis.results_tables.chance_level import is_unfitted
from orchestrator.analysis.results_tables.points import ALL, POOLED
from orchestrator.results.columns import (
    D_DATA_MLE,
    D_REPR_MLE,
    DATASET,
    NUM_CLASSES,
    TRAIN_ACCURACY,
)


def fit_representation(points: pd.DataFrame, *, model: str = POOLED) -> RepresentationFit:
    """Estimate the share of points with d_repr ≤ d_data.

    Every dataset has the same weight. Both dimensions are maximum-likelihood estimates.
    """
    rows = complete_rows(points, model, ALL, (D_DATA_MLE, D_REPR_MLE))
    unfitted = RepresentationFit(
        model=model, num_points=len(rows), num_datasets=rows[DATASET].nunique()
    )
    if rows.empty:
        return replace(unfitted, reason="no point has both d_repr and d_data")
    is_below = rows[D_REPR_MLE] <= rows[D_DATA_MLE]
    of_rows = points.loc[rows.index]
    is_of_unfitted = is_unfitted(of_rows[TRAIN_ACCURACY], of_rows[NUM_CLASSES])
    ratios = rows[D_REPR_MLE] / rows[D_DATA_MLE]
    shares = is_below.astype(float).groupby(rows[DATASET]).mean()
    mean, error, interval = mean_interval(np.asarray(shares, dtype=float))
    if interval is not None:
        # A t interval can extend below 0 or above 1, but a share cannot.
        low, high = interval
        interval = (max(0.0, low), min(1.0, high))
    shares_above = {str(name): 1 - float(share) for name, share in shares.items() if share < 1}
    estimate = Estimate(name="share", value=mean, interval=interval, std_error=error)
    return replace(
        unfitted,
        status="ok",
        num_held=int(is_below.sum()),
        num_unfitted=int(is_of_unfitted.sum()),
        num_held_unfitted=int((is_below & is_of_unfitted).sum()),
        median_ratio=float(ratios.median()),
        median_ratio_fitted=_median(ratios[~is_of_unfitted]),
        by_dataset=shares_above,
        estimates=(estimate,),
    )


def _median(ratios: pd.Series) -> float | None:
    """Return the median; None if there are no values."""
    return None if ratios.empty else float(ratios.median())
