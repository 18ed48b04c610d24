"""Points: averages of trials over seeds, with the regressors of the law as further columns."""

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
"""Column with the logarithm of the ratio of the loss to the chance loss."""
AT_CHANCE_LEVEL = "at_chance_level"
"""Column that is 1 for a point at chance level, and 0 for any other point."""
LOG_TRAIN_SIZE = "log_train_size"
D_REFERENCE = "d_reference"
"""Column with d_data at the largest train size of the dataset and class pair. Estimates of
d_data grow with N, so one estimate is used for all train sizes."""
INVERSE_D = "inverse_d"
LOG_SHARPNESS = "log_sharpness"
IS_MEDICAL = "is_medical"
CELL = "cell"
"""Column with the number of a group of comparable points. Comparable points have the same
model, train size and data mode."""
CURVE = "curve"
"""Column with the number of a learning curve. The points of a curve have the same model,
dataset, class pair and data mode."""
WEIGHT = "weight"
"""Column with the weight of a point. The points of a model at one train size of a dataset have
a total weight of 1."""
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
"""Model name in a fit of all models together. Such a fit has an intercept for each model."""
ALL = "all"
"""Subset name in a fit of both domains together."""
SUBSET = [DATASET, CLASS_PAIR, DATA_MODE]
"""Columns that, together with the train size, identify the training images of a network."""
POINT = [MODEL, DATASET, DOMAIN, CLASS_PAIR, TRAIN_SIZE, DATA_MODE]
"""Columns that identify a point. The trials of a point differ only in their seed."""


def given(terms: Sequence[str], name: str) -> str:
    """Return the terms of a fit except ``name`` as text, such as ``, given 1/d``.

    The text is empty if there are no other terms.
    """
    held_equal = [WORDS[term].removeprefix("log ") for term in terms if term != name]
    if not held_equal:
        return ""
    return f", given {listing(held_equal)}"


def fitted_points(full: pd.DataFrame) -> tuple[pd.DataFrame, tuple[Exclusion, ...]]:
    """Average trials over seeds, and add the regressors of the fits.

    Args:
        full: A checked table with one row per trial.

    Returns:
        First, the points, with one row per model, dataset, class pair and train size. Losses
        are averaged as logarithms. Second, the number of trials without a usable loss, for
        each reason. If such a trial is finished and has a train size, the points use its other
        numbers.
    """
    unusable = {
        DIVERGED: full[STATUS] != DONE,
        "trials without a positive train size": ~(full[TRAIN_SIZE] > 0),
    }
    # Only these two reasons remove a trial. A trial without a loss is used for its measures.
    is_no_point = pd.DataFrame(unusable).any(axis=1)
    unusable["trials without a test loss"] = full[TEST_LOSS].isna()
    unusable["trials with a test loss of 0 or less, which has no logarithm"] = full[TEST_LOSS] <= 0
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
    # ``groupby`` returns texts as string columns, and each access to a string column calls
    # Arrow.
    texts = [name for name in POINT if name in TEXT_COLUMNS]
    points[texts] = points[texts].astype(object)
    return _with_regressors(points), tuple(exclusions)


def _with_regressors(points: pd.DataFrame) -> pd.DataFrame:
    """Add the columns that fits need: regressors, weights and the numbers of cells and curves."""
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
    # The copy is contiguous in memory, which makes later selections of rows faster.
    return points.assign(**added).copy()


def at_largest_size(points: pd.DataFrame, name: str, by: Sequence[str] = SUBSET) -> pd.Series:
    """Return a measure at the largest train size at which it is positive, for each point.

    Args:
        points: Rows with a train size.
        name: Column of the measure.
        by: Columns whose values identify the images that were measured.
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
    """Return the sums of each dataset from which the slope of ``column`` on −log N / d follows.

    The slope is estimated within curves.
    """
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
