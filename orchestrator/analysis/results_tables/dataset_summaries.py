"""A summary of each fitted dataset: its measures, its test loss, and the loss that attacks add."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from orchestrator.analysis.results_tables.points import INVERSE_D, LOG_LOSS
from orchestrator.results.columns import (
    AUC,
    CHANNELS,
    CLASS_PAIR,
    DATASET,
    DOMAIN,
    IMAGE_SIZE,
    LABEL_SHARPNESS,
    NUM_CLASSES,
    TEST_ACCURACY,
    TRAIN_SIZE,
    attack_columns,
)

LARGEST_EPSILON = 8
"""Largest strength of an attack in a summary, in 1/255 of the pixel range."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetSummary:
    """A summary of one dataset.

    Attributes:
        dataset: Name of the dataset.
        domain: ``natural`` or ``medical``.
        num_trials: Number of trials.
        train_sizes: Train sizes of the trials.
        d_data: Intrinsic dimension at the largest N; None if it is unknown.
        label_sharpness: Mean of K_F over train sizes and class pairs.
        image_size: Side of the images in pixels; 0 if the images have several sizes, None if
            the size is unknown.
        channels: Number of channels; 0 if the images have several numbers, None if it is
            unknown.
        num_classes: Number of classes; 0 if the trials have several numbers, None if it is
            unknown.
        loss: Geometric mean of the test loss over models at the largest N, in nat.
        accuracy: Mean test accuracy at the largest N, as a share.
        auc: Mean AUROC at the largest N.
        loss_gain: Mean increase of the test loss under ``attack`` at the largest N, in nat.
        attack: Name of the strongest attack up to 8/255, FGSM if it was measured. The name is
            empty if no attack was measured.
    """

    dataset: str
    domain: str
    num_trials: int
    train_sizes: tuple[int, ...]
    d_data: float | None
    label_sharpness: float | None
    image_size: int | None
    channels: int | None
    num_classes: int | None = None
    loss: float | None = None
    accuracy: float | None = None
    auc: float | None = None
    loss_gain: float | None = None
    attack: str = ""


def summaries_of(full: pd.DataFrame, points: pd.DataFrame) -> tuple[DatasetSummary, ...]:
    """Compute the summary of each dataset from all trials and the fitted points."""
    attack = _strongest_attack(points)
    largest = points.groupby(DATASET)[TRAIN_SIZE].transform("max")
    last = points[points[TRAIN_SIZE] == largest].groupby(DATASET)
    cells = points.drop_duplicates([DATASET, CLASS_PAIR, TRAIN_SIZE]).groupby(DATASET)
    log_losses = last[LOG_LOSS].mean()
    losses = np.exp(log_losses)
    accuracies = last[TEST_ACCURACY].mean()
    aucs = last[AUC].mean()
    inverse_d = points.groupby(DATASET)[INVERSE_D].mean()
    d_data = 1 / inverse_d
    sharpness = cells[LABEL_SHARPNESS].mean()
    gains = losses.iloc[:0]
    attack_in_words = ""
    if attack is not None:
        gains = last[attack.name].mean()
        attack_in_words = attack.words
    summaries = []
    for name, rows in full.groupby(DATASET):
        sizes = sorted(int(size) for size in rows[TRAIN_SIZE].dropna().unique())
        summaries.append(
            DatasetSummary(
                dataset=str(name),
                domain=str(rows[DOMAIN].iloc[0]),
                num_trials=len(rows),
                train_sizes=tuple(sizes),
                d_data=_number_of(d_data, name),
                label_sharpness=_number_of(sharpness, name),
                image_size=_single(rows[IMAGE_SIZE]),
                channels=_single(rows[CHANNELS]),
                num_classes=_single(rows[NUM_CLASSES]),
                loss=_number_of(losses, name),
                accuracy=_number_of(accuracies, name),
                auc=_number_of(aucs, name),
                loss_gain=_number_of(gains, name),
                attack=attack_in_words,
            )
        )
    return tuple(summaries)


def _strongest_attack(points: pd.DataFrame) -> Any:
    """Return the column of the strongest attack up to 8/255.

    FGSM is preferred to all other attacks. Returns None if no attack was measured.
    """
    measured = []
    for attack in attack_columns(points.columns):
        if attack.epsilon <= LARGEST_EPSILON and points[attack.name].notna().any():
            measured.append(attack)
    return max(measured, key=lambda attack: (attack.attack == "fgsm", attack.epsilon), default=None)


def _number_of(numbers: pd.Series, dataset: Any) -> float | None:
    """Return the number of one dataset; None if this number is missing or NaN."""
    value = numbers.get(dataset, np.nan)
    if np.isnan(value):
        return None
    return float(value)


def _single(values: pd.Series) -> int | None:
    """Return the value that all rows share; 0 if the values differ, None if there is no value."""
    if values.isna().all():
        return None
    if values.nunique() > 1:
        return 0
    return int(values.max())
