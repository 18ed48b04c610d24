"""Points: trials averaged over seeds, with the regressors of the law as columns."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from orchestrator.analysis.inference import Sums, curve_sums
from orchestrator.analysis.number_formats import listing
from orchestrator.analysis.results_tables.checks import DIVERGED, Exclusion
from orchestrator.results.table import (
    AUC,
    CLASS_PAIR,
    D_DATA_MLE,
    DATA_MODE,
    DATASET,
    DOMAIN,
    DONE,
    LABEL_SHARPNESS,
    MEDICAL,
    MODEL,
    NUM_CLASSES,
    RECIPE,
    SEED,
    STATUS,
    TEST_ACCURACY,
    TEST_LOSS,
    TEXT_COLUMNS,
    TRAIN_SIZE,
    WALL_TIME_S,
)

LOG_LOSS, LOG_ERROR = "log_loss", "log_error"
#: Logarithm of the share that a loss has of guessing's own, ln of the number of classes (not told:
#: two).
OF_GUESSING = "of_guessing"
LOG_TRAIN_SIZE = "log_train_size"
#: d_data at the largest train size of the dataset and class pair, since the estimate itself grows
#: with N.
D_REFERENCE, INVERSE_D = "d_reference", "inverse_d"
LOG_SHARPNESS = "log_sharpness"
IS_MEDICAL = "is_medical"
#: What has to be equal for two points to be compared at equal N, and what one curve over N is:
#: codes.
CELL, CURVE = "cell", "curve"
WEIGHT, SEED_STD = "weight", "seed_std"

WORDS = {
    MODEL: "model",
    RECIPE: "recipe",
    DATASET: "dataset",
    CLASS_PAIR: "pair",
    STATUS: "status",
    TRAIN_SIZE: "N",
    SEED: "seed",
    TEST_LOSS: "test loss",
    TEST_ACCURACY: "accuracy",
    AUC: "AUC",
    SEED_STD: "seed spread",
    D_DATA_MLE: "d_data",
    LABEL_SHARPNESS: "K_F",
    WALL_TIME_S: "time (s)",
    D_REFERENCE: "d_data",
    INVERSE_D: "1/d",
    LOG_SHARPNESS: "log K_F",
    IS_MEDICAL: "the domain label",
}
#: All models together, each with its own intercept; both domains together.
POOLED, ALL = "pooled", "all"
SUBSET = [DATASET, CLASS_PAIR, DATA_MODE]
_POINT = [MODEL, DATASET, DOMAIN, CLASS_PAIR, TRAIN_SIZE, DATA_MODE]


def given(terms: Sequence[str], name: str) -> str:
    """Say which other terms a coefficient holds equal, if any."""
    others = [WORDS[one].removeprefix("log ") for one in terms if one != name]
    return f", given {listing(others)}" if others else ""


def fitted_points(full: pd.DataFrame) -> tuple[pd.DataFrame, tuple[Exclusion, ...]]:
    """Average trials over seeds and add the regressors: a row per model, dataset, class pair and
    train size.

    Losses are averaged as logarithms; ``weight`` makes the class pairs of a dataset count together
    as one. Also returned is how many trials have no loss to fit, each under its first reason; they
    stay for others.
    """
    no_trial = {
        DIVERGED: full[STATUS] != DONE,
        "no positive train size": ~(full[TRAIN_SIZE] > 0),
    }
    reasons = no_trial | {
        "no test loss": full[TEST_LOSS].isna(),
        "test loss not above zero, so it has no logarithm": full[TEST_LOSS] <= 0,
    }
    usable, exclusions = pd.Series(True, index=full.index), []
    for reason, affected in reasons.items():
        if count := int((usable & affected).sum()):
            exclusions.append(Exclusion(reason, count))
        usable &= ~affected
    trials = full.assign(**{LOG_LOSS: np.log(full[TEST_LOSS].where(usable))})
    trials = trials[~pd.DataFrame(no_trial).any(axis=1)]
    names = [n for n in trials.columns if n not in TEXT_COLUMNS and n not in _POINT]
    numbers = [name for name in names if pd.api.types.is_numeric_dtype(trials[name])]
    points = trials.groupby(_POINT, sort=True)[numbers].mean().reset_index()
    pairs = points.groupby([MODEL, DATASET, TRAIN_SIZE])[CLASS_PAIR].transform("size")

    sharpness, errors = points[LABEL_SHARPNESS], 1.0 - points[TEST_ACCURACY]
    reference = at_largest_size(points, D_DATA_MLE)
    added = {
        WEIGHT: 1.0 / pairs,
        TEST_LOSS: np.exp(points[LOG_LOSS]),
        OF_GUESSING: points[LOG_LOSS] - np.log(np.log(points[NUM_CLASSES].fillna(2.0))),
        LOG_ERROR: np.log(errors.where(errors > 0)),
        LOG_TRAIN_SIZE: np.log(points[TRAIN_SIZE].astype(float)),
        LOG_SHARPNESS: np.log(sharpness.where(sharpness > 0)),
        IS_MEDICAL: (points[DOMAIN] == MEDICAL).astype(float),
        CELL: points.groupby([MODEL, TRAIN_SIZE, DATA_MODE]).ngroup(),
        CURVE: points.groupby([MODEL, *SUBSET]).ngroup(),
        D_REFERENCE: reference,
        INVERSE_D: 1.0 / reference,
    }
    # Copied, since columns added lie apart in memory, and every selection of rows would pay for it.
    return points.assign(**added).copy(), tuple(exclusions)


def at_largest_size(points: pd.DataFrame, name: str, by: Sequence[str] = SUBSET) -> pd.Series:
    """The positive value of a measure at the largest train size that has one, for each of
    ``by``.
    """
    known = points[points[name] > 0]
    last = known.groupby([*by])[TRAIN_SIZE].transform("max") == known[TRAIN_SIZE]
    reference = known[last].groupby([*by])[name].mean()
    keys = pd.MultiIndex.from_frame(points[[*by]])
    return pd.Series(reference.reindex(keys).to_numpy(dtype=float), index=points.index)


def select(points: pd.DataFrame, model: str, subset: str = ALL) -> pd.DataFrame:
    """Return the points of one model (or all of them, pooled) and one domain (or both)."""
    rows = points if model == POOLED else points[points[MODEL] == model]
    return rows if subset == ALL else rows[rows[DOMAIN] == subset]


def sums_of(points: pd.DataFrame, column: str) -> Sums:
    """Reduce points to sums per dataset for the slope of ``column`` on −log N / d within curves."""
    y, size, d = (
        points[name].to_numpy(dtype=float) for name in (column, LOG_TRAIN_SIZE, D_REFERENCE)
    )
    groups, weights = points[DATASET].to_numpy(dtype=str), points[WEIGHT].to_numpy(dtype=float)
    return curve_sums(y, -size / d, points[CURVE].to_numpy(), groups, weights)
