"""Tables of trials: summaries of datasets and class pairs, and the best models."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np
import pandas as pd

from orchestrator.analysis.class_pairs import mean_accuracy_lost
from orchestrator.analysis.fits import ScalingFits
from orchestrator.analysis.number_formats import number
from orchestrator.analysis.results_tables.chance_level import (
    AT_CHANCE_SHARE,
    chance_limits_in_words,
    is_at_chance_level,
    is_over_confident,
)
from orchestrator.analysis.results_tables.checks import split_by_recipe
from orchestrator.analysis.results_tables.dataset_summaries import DatasetSummary
from orchestrator.analysis.results_tables.points import SEED_STD, WORDS
from orchestrator.analysis.sentences.of_class_pairs import attack_in_words
from orchestrator.analysis.tables.layout import Table, laid_out
from orchestrator.results.columns import (
    AUC,
    CALIBRATION_ERROR,
    CLASS_PAIR,
    D_DATA_MLE,
    DATASET,
    DONE,
    LABEL_SHARPNESS,
    MEAN_UNLIKE_DISTANCE,
    MODEL,
    NUM_CLASSES,
    R_HAT_PRED,
    R_HAT_PRED_PER_PIXEL,
    R_HAT_TRUE,
    SEED,
    STATUS,
    TEST_ACCURACY,
    TEST_LOSS,
    TRAIN_SIZE,
)
from search_spaces.errors import unknown_name

BEST_COLUMNS = (
    DATASET,
    TRAIN_SIZE,
    MODEL,
    TEST_LOSS,
    "runner_up",
    "runner_up_loss",
    SEED_STD,
    TEST_ACCURACY,
    "num_models",
    "num_compared",
    NUM_CLASSES,
)
"""Columns of :func:`best_models`."""


def loss_text(
    loss: float | None,
    num_classes: float | None,
    *,
    accuracy: float | None = None,
    auc: float | None = None,
) -> str:
    """Return a loss as text, marked if it is at chance level or over-confident."""
    if loss is None:
        return ""
    mark = _mark(loss, num_classes, accuracy=accuracy, auc=auc)
    return f"{number(loss)} ({mark})" if mark else number(loss)


def _mark(
    loss: float, num_classes: float | None, *, accuracy: float | None, auc: float | None
) -> str:
    """Return the mark for a loss at chance level or for an over-confident network; else no text."""
    if is_at_chance_level(loss, num_classes, accuracy=accuracy, auc=auc):
        return "at chance level"
    if is_over_confident(loss, num_classes, accuracy=accuracy, auc=auc):
        return "over-confident"
    return ""


def seen_table(fits: ScalingFits) -> Table:
    """Return the summary table of datasets: properties, losses and losses that attacks add."""
    attack = "attacks"
    losses = []
    has_gains = has_marked_losses = False
    for dataset in fits.datasets:
        has_gains |= dataset.loss_gain is not None
        if dataset.attack:
            attack = dataset.attack
        if dataset.loss is not None:
            scores = {"accuracy": dataset.accuracy, "auc": dataset.auc}
            has_marked_losses |= bool(_mark(dataset.loss, dataset.num_classes, **scores))
            losses.append((dataset.loss, f"{number(dataset.loss)} ({dataset.dataset})"))
    chance_limits = chance_limits_in_words(dataset.num_classes for dataset in fits.datasets)
    range_of_losses = ""
    if losses:
        losses.sort()
        ends = dict.fromkeys([losses[0][1], losses[-1][1]])
        range_of_losses = (
            "At the largest train size the geometric mean of the test loss is "
            f"{' to '.join(ends)}. "
        )
    of_gains = ""
    if has_gains:
        of_gains = "Losses gained by an attack are arithmetic means. "
    of_chance = ""
    if has_marked_losses:
        of_chance = (
            f"At chance level: the loss is at least {AT_CHANCE_SHARE:g} ln n for n classes "
            f"({chance_limits}), and accuracy and AUROC are not well above chance. "
            "Over-confident: the loss is as high, but accuracy or AUROC is well above chance. "
            "The loss is also larger than the loss of a network with the same accuracy whose "
            "confidence equals this accuracy."
        )
    return laid_out(
        "seen",
        "Summary of the data",
        f"{range_of_losses}d_data is the maximum likelihood estimate at the largest N. K_F (1 / L2 "
        "pixel distance) is averaged over N and class pairs. Losses are in nat: geometric means "
        f"over models and class pairs at the largest train size. {of_gains}{of_chance}",
        fits.datasets,
        {
            "dataset": "dataset",
            "domain": "domain",
            "d_data": "d_data",
            "K_F": "label_sharpness",
            "largest N": _largest_size,
            "loss at largest N": _loss_of_dataset,
            f"loss gained by {attack}": "loss_gain",
        },
        numeric_from=2,
    )


def pair_table(points: pd.DataFrame, fits: ScalingFits) -> Table | None:
    """Return a table of the class pairs of one dataset at the largest N.

    The closest pair comes first.

    Returns None if the fits have no class pairs.
    """
    if not fits.class_pairs:
        return None
    rows = points[points[TRAIN_SIZE] == points[TRAIN_SIZE].max()]
    rows = rows.assign(lost=100 * mean_accuracy_lost(rows))
    numbers = [D_DATA_MLE, LABEL_SHARPNESS, MEAN_UNLIKE_DISTANCE, TEST_LOSS, TEST_ACCURACY, "lost"]
    means = rows.groupby(CLASS_PAIR)[numbers].mean().sort_values(MEAN_UNLIKE_DISTANCE)
    return laid_out(
        "class-pairs",
        "Class pairs",
        "The numbers are means over networks at the largest train size, "
        f"N = {int(points[TRAIN_SIZE].max()):,}. δ is the mean distance of a training image "
        "to the nearest image of the other class. The closest pair comes first. Accuracy lost "
        "is in percentage points.",
        means.reset_index().to_dict("records"),
        {
            "pair": CLASS_PAIR,
            "δ": MEAN_UNLIKE_DISTANCE,
            f"accuracy lost to {attack_in_words(fits)}": "lost",
            "K_F": LABEL_SHARPNESS,
            "d_data": D_DATA_MLE,
            "test loss": TEST_LOSS,
            "accuracy": TEST_ACCURACY,
        },
    )


def _largest_size(dataset: DatasetSummary) -> str:
    if not dataset.train_sizes:
        return ""
    return f"{dataset.train_sizes[-1]:,}"


def _loss_of_dataset(dataset: DatasetSummary) -> str:
    return loss_text(dataset.loss, dataset.num_classes, accuracy=dataset.accuracy, auc=dataset.auc)


LOWER_IS_BETTER = ("loss", "loss_gain", "accuracy_drop", CALIBRATION_ERROR)
"""Ends of the column names of scores for which the smallest value is the best."""
HIGHER_IS_BETTER = ("accuracy", AUC, R_HAT_PRED, R_HAT_PRED_PER_PIXEL, R_HAT_TRUE)
"""Ends of the column names of scores for which the largest value is the best."""


def best_models(table: pd.DataFrame, score: str = TEST_LOSS) -> pd.DataFrame:
    """Return the best model and the runner-up for each dataset and train size.

    Means are over the class pairs and seeds that every model has. ``num_compared`` is the
    number of these class pairs and seeds. ``seed_std`` is the standard deviation over seeds.

    Args:
        table: A results table.
        score: Column by which models are ranked.

    Returns:
        One row per dataset and train size, with the columns :data:`BEST_COLUMNS`. The column
        ``score`` replaces the column of the loss.

    Raises:
        ConfigError: If the table has no score with the name ``score``.
    """
    numbers = table.select_dtypes("number").columns
    scores = [name for name in numbers if name.endswith((*LOWER_IS_BETTER, *HIGHER_IS_BETTER))]
    if score not in scores:
        raise unknown_name("score", score, scores)
    replaced = {TEST_LOSS: score, "runner_up_loss": _runner_up_column(score)}
    columns = [replaced.get(name, name) for name in BEST_COLUMNS]
    return _ranked(table, score)[list(dict.fromkeys(columns))]


def _runner_up_column(score: str) -> str:
    """Return the column with the score of the second best model."""
    return f"runner_up_{score.removeprefix('test_')}"


def _ranked(table: pd.DataFrame, score: str = TEST_LOSS) -> pd.DataFrame:
    """Return one row per dataset and train size, with the best model and its mean AUROC."""
    rows = split_by_recipe(table)
    needed = {*rows, CLASS_PAIR, SEED, STATUS, TEST_ACCURACY, AUC, NUM_CLASSES}
    rows = rows.reindex(columns=sorted(needed)).fillna({CLASS_PAIR: "", SEED: 0})
    rows = rows[rows[score].notna() & (rows[STATUS] == DONE)]
    best = []
    for (dataset, size), group in rows.groupby([DATASET, TRAIN_SIZE]):
        best.append({DATASET: dataset, TRAIN_SIZE: size, **_best_of(group, score)})
    columns = [*BEST_COLUMNS, AUC, score, _runner_up_column(score)]
    return pd.DataFrame(best, columns=list(dict.fromkeys(columns))).astype({TRAIN_SIZE: int})


def _best_of(group: pd.DataFrame, score: str) -> dict[Hashable, Any]:
    """Return the best model of one dataset and train size, and the runner-up."""
    key = [CLASS_PAIR, SEED]
    num_models = group[MODEL].nunique()
    shared = group[group.groupby(key)[MODEL].transform("nunique") == num_models]
    means = shared.groupby(MODEL)[score].mean()
    means = means.sort_values(kind="stable", ascending=score.endswith(LOWER_IS_BETTER))
    ranked = [*means.items(), (None, np.nan), (None, np.nan)]
    (model, best_score), (runner_up, runner_up_score), *_ = ranked
    of_best = shared[shared[MODEL] == model]
    return {
        **of_best[[TEST_ACCURACY, AUC, NUM_CLASSES]].mean(),
        MODEL: model,
        score: best_score,
        "runner_up": runner_up,
        _runner_up_column(score): runner_up_score,
        "num_models": num_models,
        "num_compared": shared.groupby(key).ngroups,
        SEED_STD: of_best.groupby(SEED)[score].mean().std(),
    }


def best_table(full: pd.DataFrame) -> Table:
    """Return the table of the models with the lowest mean test loss, by dataset and train size."""
    return laid_out(
        "best",
        "Best model per dataset and train size",
        "The best model has the lowest mean test loss over the class pairs and seeds that all "
        "models have. If there are several models, the best one was chosen on the test images, so "
        "its loss on new images is probably higher. Means are arithmetic here, and geometric in "
        "the summary of the data. Seed spread is the standard deviation over seeds. With one seed, "
        "or if models differ by less than the spread, a row does not show which model is better.",
        _ranked(full).to_dict("records"),
        {
            "dataset": DATASET,
            "model": _best_name,
            WORDS[TRAIN_SIZE]: TRAIN_SIZE,
            WORDS[TEST_LOSS]: _best_loss,
            WORDS[SEED_STD]: SEED_STD,
            WORDS[TEST_ACCURACY]: TEST_ACCURACY,
            "second-best model": _runner_up,
            "loss of the second": "runner_up_loss",
            "trials per model": "num_compared",
        },
        numeric_from=2,
    )


def _best_name(row: dict[str, Any]) -> str:
    if not row["num_compared"]:
        return "models share no class pair and seed"
    return str(row[MODEL])


def _best_loss(row: dict[str, Any]) -> str:
    return loss_text(row[TEST_LOSS], row[NUM_CLASSES], accuracy=row[TEST_ACCURACY], auc=row[AUC])


def _runner_up(row: dict[str, Any]) -> str:
    if pd.isna(row["runner_up"]):
        return ""
    return str(row["runner_up"])
