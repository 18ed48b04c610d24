"""The exponent of N within datasets, times d: the part of the law that no unit and no dataset's height can
touch.

Every curve (model, dataset, class pair) keeps its own height, and d is one number per dataset and class
pair, so the regression of log loss on −log N / d sees only how losses fall with N. A change of the unit of
N, of the pixels' scale or of the loss's base moves heights alone. Datasets are the replicates.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from orchestrator.analysis import points as t
from orchestrator.analysis.clusters import mean_interval, wild_cluster_p
from orchestrator.analysis.distributions import t_quantile, t_tail
from orchestrator.analysis.guessing import clear_of_guessing, unvaried
from orchestrator.analysis.law_records import ALL, POOLED, Difference, ExponentFit, ExponentRival
from orchestrator.analysis.laws import select
from orchestrator.analysis.regression import Array
from orchestrator.analysis.words import plural
from orchestrator.results import columns as c

RESPONSES = {"test_loss": t.LOG_LOSS, "test_error": t.LOG_ERROR}
#: Fewer datasets have no spread that an interval could rest on.
MIN_DATASETS = 3
#: Share of a value below which its distance from the curve's mean is rounding.
NEGLIGIBLE = 1e-13
#: Exponents of rivals, in units of 1/d: none; the law's; Sharma & Kaplan (JMLR 23(9), 2022), for smooth
#: regression.
FIXED = {"none": 0.0, "1/d": 1.0, "4/d": 4.0}
#: The choice of points that the claim of a slower fall must hold for too.
PAST_GUESSING = "N past guessing"
#: The same estimator with the divisor k − 1 of the printed formula instead of k − 2, at k = 20.
PRINTED_CONVENTION = 19 / 18


@dataclass(frozen=True, slots=True)
class Sums:
    """What one regression needs of each dataset: names (G) and Σxx, Σxy, Σyy (G,), centred within curves.

    ``power_xx`` and ``power_xy`` are the same with −log N itself as x.
    """

    names: list[str]
    xx: Array
    xy: Array
    yy: Array
    power_xx: Array
    power_xy: Array
    num: Array


def dataset_sums(rows: pd.DataFrame, response: str, dimension: Array) -> Sums:
    """Reduce points to sums of squares and products per dataset, centred within every curve."""
    weights = rows[t.WEIGHT].to_numpy(dtype=float)
    _, curve = np.unique(rows[t.CURVE].to_numpy(dtype=str), return_inverse=True)
    names, group = np.unique(rows[c.DATASET].to_numpy(dtype=str), return_inverse=True)
    power = -rows[t.LOG_TRAIN_SIZE].to_numpy(dtype=float)
    values = np.column_stack([power / dimension, power, rows[response].to_numpy(dtype=float)])
    total = np.bincount(curve, weights)
    for k in range(values.shape[1]):
        rounding = NEGLIGIBLE * float(np.abs(values[:, k]).max())
        values[:, k] -= (np.bincount(curve, weights * values[:, k]) / total)[curve]
        values[np.abs(values[:, k]) <= rounding, k] = 0.0
    x, power, y = values.T

    def summed(products: Array) -> Array:
        return np.asarray(np.bincount(group, weights * products))

    return Sums(
        names=[str(name) for name in names],
        xx=summed(x * x), xy=summed(x * y), yy=summed(y * y),
        power_xx=summed(power * power), power_xy=summed(power * y),
        num=np.bincount(group, weights).astype(float),
    )  # fmt: skip


def fit_exponent(
    points: pd.DataFrame,
    *,
    model: str = POOLED,
    subset: str = ALL,
    response: str = "test_loss",
    dimension: str = t.D_REFERENCE,
    factor: float = 1.0,
    label: str = c.D_DATA_MLE,
) -> ExponentFit:
    """Fit the within-dataset exponent times d of one model (or all together) over one domain (or both).

    Args:
        points: fitted points.
        model: a model, or ``pooled``.
        subset: a domain, or ``all``.
        response: ``test_loss`` or ``test_error``.
        dimension: the column that holds one d per dataset and class pair.
        factor: what to multiply d by, to see what its bias would do.
        label: how to call this choice of d.
    """
    column = RESPONSES[response]
    rows, _ = t.complete(select(points, model, subset), (column, dimension))
    rows = rows[rows.groupby(t.CURVE)[c.TRAIN_SIZE].transform("nunique") > 1]
    num_curves = rows[t.CURVE].nunique()
    rows = clear_of_guessing(rows, column)
    rows = rows[rows.groupby(t.CURVE)[c.TRAIN_SIZE].transform("nunique") > 1]
    blank = ExponentFit(
        response=response, dimension=label, model=model, subset=subset, status="not_enough_data",
        num_datasets=int(rows[c.DATASET].nunique()), num_points=len(rows),
        num_curves=num_curves, num_at_guessing=num_curves - rows[t.CURVE].nunique(),
    )  # fmt: skip
    if blank.num_datasets < MIN_DATASETS:
        return replace(blank, reason=_too_few(blank))
    if same := unvaried(rows, column, within=t.CURVE):
        return replace(blank, reason=same)
    sums = dataset_sums(rows, column, rows[dimension].to_numpy(dtype=float) * factor)
    span = float(rows[c.TRAIN_SIZE].max() / rows[c.TRAIN_SIZE].min())
    return summarise(replace(blank, size_span=span), sums)


def _too_few(blank: ExponentFit) -> str:
    clear = " whose losses are clear of guessing" if blank.num_at_guessing else ""
    return (
        f"{plural(blank.num_datasets, 'dataset')} with two train sizes and d_data{clear}, at least "
        f"{MIN_DATASETS} needed"
    )


def summarise(blank: ExponentFit, sums: Sums) -> ExponentFit:
    """Turn sums of datasets into the pooled value, its interval and tests, and the rivals' scores."""
    value = float(sums.xy.sum() / sums.xx.sum())
    rest = sums.xx.sum() - sums.xx
    left = (sums.xy.sum() - sums.xy) / rest
    num = len(left)
    std_error = float(np.sqrt((num - 1) / num * ((left - value) ** 2).sum()))
    reach = t_quantile(0.975, num - 1) * std_error
    interval = (value - reach, value + reach) if std_error > 0 else None
    p_value = 2 * t_tail(abs(value) / std_error, num - 1) if std_error > 0 else None
    return replace(
        blank,
        status="ok",
        value=value,
        std_error=std_error,
        interval=interval,
        p_value=p_value,
        wild_p=wild_cluster_p(sums.xy, sums.xx),
        wild_p_predicted=wild_cluster_p(sums.xy - sums.xx, sums.xx),
        left_out={name: float(v) for name, v in zip(sums.names, left, strict=True)},
        by_dataset={
            name: float(xy / xx) for name, xy, xx in zip(sums.names, sums.xy, sums.xx, strict=True) if xx > 0
        },
        rivals=_rivals(sums, left),
        verdict=verdict(interval),
    )


def verdict(interval: tuple[float, float] | None) -> str:
    """Say what an interval of exponent · d means for the law, which is an upper bound."""
    if interval is None:
        return "no interval, so nothing can be said"
    low, high = interval
    if high < 1:
        none = "" if low > 0 else ", if at all"
        return f"slower than the law's bound allows{none}: this contradicts it"
    if low > 1:
        return "faster than the law's bound asks: this does not contradict it"
    if low <= 0:
        return "cannot tell the law's exponent from none"
    return "falls with N, and agrees with the law's exponent"


def _rivals(sums: Sums, left: Array) -> tuple[ExponentRival, ...]:
    """Mean squared distance from the curves of each dataset, whose exponent was fitted on the others."""
    power_left = (sums.power_xy.sum() - sums.power_xy) / (sums.power_xx.sum() - sums.power_xx)
    squares = {name: sums.yy - 2 * b * sums.xy + b * b * sums.xx for name, b in FIXED.items()}
    squares["power"] = sums.yy - 2 * power_left * sums.power_xy + power_left**2 * sums.power_xx
    squares["b/d"] = sums.yy - 2 * left * sums.xy + left**2 * sums.xx
    means = {name: values / sums.num for name, values in squares.items()}
    rivals = []
    for name, values in means.items():
        gap, bounds = mean_interval(values - means["none"])
        rivals.append(
            ExponentRival(
                form=name,
                num_coefficients=int(name not in FIXED),
                rmse=float(np.sqrt(max(values.mean(), 0.0))),
                versus_none=None
                if name == "none"
                else Difference(against="none", value=gap, interval=bounds),
            )
        )
    return tuple(rivals)


def fit_exponents(points: pd.DataFrame, *, model: str) -> tuple[ExponentFit, ...]:
    """Return the exponent over both domains and each, for log loss and, where there is one, log error."""
    return tuple(
        fit_exponent(points, model=model, subset=subset, response=response)
        for response, column in RESPONSES.items()
        if points[column].notna().any()
        for subset in (ALL, *c.DOMAINS)
    )


def fit_sensitivity(points: pd.DataFrame, full: pd.DataFrame) -> tuple[ExponentFit, ...]:
    """Return the pooled exponent under other choices of d and of N, and how K_F itself grows with N.

    ``full`` are all trials, diverged ones too.
    """
    variants = (
        ("TwoNN", t.TWONN_REFERENCE, 1.0),
        *((f"{k} neighbours", name, 1.0) for name, k in t.NEIGHBOR_REFERENCES.items()),
        ("divisor k − 1", t.D_REFERENCE, PRINTED_CONVENTION),
        ("d 20 % too low", t.D_REFERENCE, 1.2),
        ("d 20 % too high", t.D_REFERENCE, 0.8),
    )
    found = [
        fit_exponent(points, dimension=column, factor=factor, label=label)
        for label, column, factor in variants
    ]
    past = t.past_guessing(clear_of_guessing(points), full)
    found.append(fit_exponent(past, label=PAST_GUESSING))
    return (*found, sharpness_growth(points))


def sharpness_growth(points: pd.DataFrame) -> ExponentFit:
    """Fit log K_F on log N / d: 2 where unlike labels lie mixed (nearest pairs shrink as N^(−2/d)), 0
    where apart.
    """
    blank = ExponentFit(
        response=c.LABEL_SHARPNESS, dimension=c.D_DATA_MLE, model=POOLED, subset=ALL, status="not_enough_data"
    )
    rows, _ = t.complete(points, (t.LOG_SHARPNESS, t.D_REFERENCE))
    rows = rows.drop_duplicates([c.DATASET, c.CLASS_PAIR, c.DATA_MODE, c.TRAIN_SIZE])
    # A measure belongs to a subset, whichever model was trained on it.
    rows = rows.assign(**{t.CURVE: t.joined(rows, t.SUBSET)}).assign(**{t.WEIGHT: 1.0})
    rows = rows[rows.groupby(t.CURVE)[t.LOG_SHARPNESS].transform("nunique") > 1]
    num = int(rows[c.DATASET].nunique())
    if num < MIN_DATASETS:
        return replace(
            blank, num_datasets=num, reason=f"K_F was measured at several N for {num} datasets only"
        )
    sums = dataset_sums(rows, t.LOG_SHARPNESS, -rows[t.D_REFERENCE].to_numpy(dtype=float))
    found = summarise(replace(blank, num_datasets=num, num_points=len(rows)), sums)
    return replace(found, rivals=(), verdict="", wild_p_predicted=None)
