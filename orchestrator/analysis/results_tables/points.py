"""Points: trials averaged over seeds, with the regressors of the law as columns."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from orchestrator.analysis.inference import Sums, curve_sums
from orchestrator.analysis.number_formats import listing
from orchestrator.analysis.results_tables.chance_level import chance_loss, has_learned, reaches
from orchestrator.analysis.results_tables.checks import DIVERGED, Exclusion
from orchestrator.results.columns import (
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

LOG_LOSS = "log_loss"
LOG_ERROR = "log_error"
OF_CHANCE_LOSS = "of_chance_loss"
"""Logarithm of the loss divided by the chance loss."""
AT_CHANCE_LEVEL = "at_chance_level"
"""1 for a point at chance level, else 0."""
LOG_TRAIN_SIZE = "log_train_size"
D_REFERENCE = "d_reference"
"""d_data at the largest train size of the dataset and class pair; estimates grow with N."""
INVERSE_D = "inverse_d"
LOG_SHARPNESS = "log_sharpness"
IS_MEDICAL = "is_medical"
CELL = "cell"
"""Number of a group of comparable points: equal model, train size and data mode."""
CURVE = "curve"
"""Number of a curve over N: one model on one dataset and class pair."""
WEIGHT = "weight"
"""Weight of a point; the weights of a dataset's class pairs add to one."""
SEED_STD = "seed_std"

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
"""Name of each column in sentences."""
POOLED = "pooled"
"""Name of a fit to all models together, with an intercept for each model."""
ALL = "all"
"""Name of a fit to both domains together."""
SUBSET = [DATASET, CLASS_PAIR, DATA_MODE]
"""Columns that identify the training images of a network."""
POINT = [MODEL, DATASET, DOMAIN, CLASS_PAIR, TRAIN_SIZE, DATA_MODE]
"""Columns that identify a point; its trials differ only in their seed."""


def given(terms: Sequence[str], name: str) -> str:
    """Return the other terms of a fit as ``, given 1/d``; empty if there are none."""
    held_equal = [WORDS[term].removeprefix("log ") for term in terms if term != name]
    if not held_equal:
        return ""
    return f", given {listing(held_equal)}"


def fitted_points(full: pd.DataFrame) -> tuple[pd.DataFrame, tuple[Exclusion, ...]]:
    """Average trials over seeds and add the regressors.

    Args:
        full: A checked table, one row per trial.

    Returns:
        First, a row per model, dataset, class pair and train size, with losses averaged as
        logarithms. Second, the numbers of trials without a usable loss, by their first reason.
        If such a trial is finished, it stays in the table for its other numbers.
    """
    unusable = {
        DIVERGED: full[STATUS] != DONE,
        "no positive train size": ~(full[TRAIN_SIZE] > 0),
    }
    # Only these two reasons remove a trial. A trial without a loss stays, because it has measures.
    is_no_point = pd.DataFrame(unusable).any(axis=1)
    unusable["no test loss"] = full[TEST_LOSS].isna()
    unusable["test loss not above zero, so it has no logarithm"] = full[TEST_LOSS] <= 0
    is_usable = pd.Series(True, index=full.index)
    exclusions = []
    # Each trial is counted once, under the first reason that applies to it.
    for reason, is_affected in unusable.items():
        count = int((is_usable & is_affected).sum())
        if count:
            exclusions.append(Exclusion(reason, count))
        is_usable &= ~is_affected

    usable_losses = full[TEST_LOSS].where(is_usable)
    # The mean over seeds is taken of logarithms, because the law is about log loss.
    trials = full.assign(**{LOG_LOSS: np.log(usable_losses)})
    trials = trials[~is_no_point]
    numbers = []
    for name in trials.columns:
        if name in TEXT_COLUMNS or name in POINT:
            continue
        if pd.api.types.is_numeric_dtype(trials[name]):
            numbers.append(name)
    points = trials.groupby(POINT, sort=True)[numbers].mean().reset_index()
    # Grouping makes string columns of texts, and each access to these calls Arrow.
    texts = [name for name in POINT if name in TEXT_COLUMNS]
    points[texts] = points[texts].astype(object)
    return _with_regressors(points), tuple(exclusions)


def _with_regressors(points: pd.DataFrame) -> pd.DataFrame:
    """Add the regressors of the fits, and the numbers of comparable groups and curves."""
    num_pairs = points.groupby([MODEL, DATASET, TRAIN_SIZE])[CLASS_PAIR].transform("size")
    sharpness = points[LABEL_SHARPNESS]
    errors = 1.0 - points[TEST_ACCURACY]
    reference = at_largest_size(points, D_DATA_MLE)
    of_chance_loss = points[LOG_LOSS] - np.log(chance_loss(points[NUM_CLASSES]))
    learned = has_learned(points[TEST_ACCURACY], points[AUC], points[NUM_CLASSES])
    added = {
        # A dataset with 45 class pairs must not weigh 45 times as much as one without pairs.
        WEIGHT: 1.0 / num_pairs,
        TEST_LOSS: np.exp(points[LOG_LOSS]),
        OF_CHANCE_LOSS: of_chance_loss,
        AT_CHANCE_LEVEL: (reaches(of_chance_loss) & ~learned).astype(float),
        LOG_ERROR: np.log(errors.where(errors > 0)),
        LOG_TRAIN_SIZE: np.log(points[TRAIN_SIZE].astype(float)),
        LOG_SHARPNESS: np.log(sharpness.where(sharpness > 0)),
        IS_MEDICAL: (points[DOMAIN] == MEDICAL).astype(float),
        CELL: points.groupby([MODEL, TRAIN_SIZE, DATA_MODE]).ngroup(),
        CURVE: points.groupby([MODEL, *SUBSET]).ngroup(),
        D_REFERENCE: reference,
        INVERSE_D: 1.0 / reference,
    }
    # Copying makes the added columns contiguous in memory, which speeds up selecting rows.
    return points.assign(**added).copy()


def at_largest_size(points: pd.DataFrame, name: str, by: Sequence[str] = SUBSET) -> pd.Series:
    """Return the positive value of a measure at the largest train size that has one.

    Args:
        points: Rows with a train size.
        name: Column of the measure.
        by: Columns that identify the measured images.
    """
    keys = list(by)
    measured = points[points[name] > 0]
    largest = measured.groupby(keys)[TRAIN_SIZE].transform("max")
    at_largest = measured[measured[TRAIN_SIZE] == largest]
    means = at_largest.groupby(keys)[name].mean()
    keys_of_points = pd.MultiIndex.from_frame(points[keys])
    values = means.reindex(keys_of_points).to_numpy(dtype=float)
    return pd.Series(values, index=points.index)


def select(points: pd.DataFrame, model: str, subset: str = ALL) -> pd.DataFrame:
    """Return the points of one model or all models, and of one domain or both domains."""
    rows = points
    if model != POOLED:
        rows = rows[rows[MODEL] == model]
    if subset != ALL:
        rows = rows[rows[DOMAIN] == subset]
    return rows


def sums_of(points: pd.DataFrame, column: str) -> Sums:
    """Return sums per dataset for the slope of ``column`` on −log N / d within curves."""
    log_size = points[LOG_TRAIN_SIZE].to_numpy(dtype=float)
    d_data = points[D_REFERENCE].to_numpy(dtype=float)
    fall = -log_size / d_data
    return curve_sums(
        points[column].to_numpy(dtype=float),
        fall,
        points[CURVE].to_numpy(),
        points[DATASET].to_numpy(dtype=str),
        points[WEIGHT].to_numpy(dtype=float),
    )
