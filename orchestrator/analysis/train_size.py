"""Log loss on log N within one dataset: the exponent that the theorem says is −1/d_data."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from orchestrator.analysis import points as t
from orchestrator.analysis.distributions import t_quantile
from orchestrator.analysis.fit_records import TrainSizeFit
from orchestrator.analysis.guessing import flattened, unvaried
from orchestrator.analysis.laws import select
from orchestrator.analysis.regression import Array, aicc
from orchestrator.results import columns as c

#: Below three sizes a power law passes through every point and shows nothing.
MIN_SIZES = 3
#: A power law is commonly asked to hold over a decade before its exponent is believed.
CONVINCING_SPAN = 10.0


def fit_train_size(points: pd.DataFrame, *, model: str, dataset: str) -> TrainSizeFit:
    """Fit one exponent to one model on one dataset, class pairs having their own coefficients.

    The published sizes (500 to 1,750) span a factor 3.5, over which −1/d_data changes the loss by a few per
    cent; the verdict therefore says whether the data can tell the predicted exponent from none at all.
    """
    rows = select(points, model)
    rows, _ = t.complete(rows[rows[c.DATASET] == dataset], (t.LOG_LOSS,))
    num_points = len(rows)
    sizes = sorted(rows[c.TRAIN_SIZE].unique())
    # Models share the training subset of a class pair and size, and with it its peculiarities: the subset,
    # not the point, is what repeats.
    held = flattened(rows)
    rows = _averaged_over_models(rows)
    curves = rows[t.CURVE]
    spare = len(rows) - curves.nunique() - 1
    blank = TrainSizeFit(
        model=model,
        dataset=dataset,
        status="not_enough_data",
        num_points=num_points,
        num_sizes=len(sizes),
        reason=f"{len(sizes)} train sizes and {num_points} points, at least {MIN_SIZES} sizes needed",
    )
    if len(sizes) < MIN_SIZES or spare < 1:
        return blank
    if same := unvaried(rows, within=t.CURVE):
        return replace(blank, reason=same)
    if held:
        return replace(blank, status="refused", reason=held)
    x = _within(rows[t.LOG_TRAIN_SIZE], curves)
    y = _within(rows[t.LOG_LOSS], curves)
    exponent = float(x @ y / (x @ x))
    squares = float(((y - exponent * x) ** 2).sum())
    reach = float(t_quantile(0.975, spare) * np.sqrt(squares / spare / float(x @ x)))
    interval = (exponent - reach, exponent + reach) if reach > 0 else None
    d_data = rows[t.D_REFERENCE].mean()
    predicted = float(-1 / d_data) if d_data > 0 else None
    span = float(sizes[-1] / sizes[0])
    return replace(
        blank,
        status="ok",
        reason="",
        exponent=exponent,
        interval=interval,
        predicted=predicted,
        size_span=span,
        aicc_power=aicc(squares, len(rows), int(curves.nunique()) + 2),
        aicc_constant=aicc(float(y @ y), len(rows), int(curves.nunique()) + 1),
        verdict=_verdict(interval, predicted, span),
    )


def _averaged_over_models(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per class pair, data mode and train size: the mean over models of what their own heights
    leave.
    """
    heights = rows.groupby(t.CURVE)[t.LOG_LOSS].transform("mean")
    key = [*t.SUBSET, c.TRAIN_SIZE]
    level = rows.assign(**{t.LOG_LOSS: rows[t.LOG_LOSS] - heights})
    means = level.groupby(key)[[t.LOG_LOSS, t.LOG_TRAIN_SIZE, t.D_REFERENCE]].mean().reset_index()
    return means.assign(**{t.CURVE: t.joined(means, t.SUBSET)})


def _within(values: pd.Series, curves: pd.Series) -> Array:
    return np.asarray((values - values.groupby(curves).transform("mean")).to_numpy(dtype=float))


def _verdict(interval: tuple[float, float] | None, predicted: float | None, span: float) -> str:
    if interval is None:
        return "no scatter to judge by"
    low, high = interval
    short = "" if span >= CONVINCING_SPAN else f" (N spans only a factor {span:.1f})"
    if predicted is None:
        return f"no d_data, so no prediction{short}"
    has_predicted, has_zero = low <= predicted <= high, low <= 0 <= high
    if has_predicted and has_zero:
        return f"cannot tell the predicted exponent from none{short}"
    if has_predicted:
        return f"agrees with the prediction{short}"
    if high < predicted:
        return f"loss falls faster with N than the bound asks, which does not contradict it{short}"
    return f"loss falls more slowly with N than the bound allows, or rises: this contradicts it{short}"
