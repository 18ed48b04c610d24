"""What each dataset brought to the fits: its measures, its losses, and what attacks add."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from orchestrator.analysis.results_tables.points import INVERSE_D, LOG_LOSS
from orchestrator.results.table import (
    CHANNELS,
    CLASS_PAIR,
    DATASET,
    DOMAIN,
    IMAGE_SIZE,
    LABEL_SHARPNESS,
    NUM_CLASSES,
    TRAIN_SIZE,
    attack_columns,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetSummary:
    """What one dataset brought to the fits. K_F is a mean over train sizes and class pairs; at the
    largest size 1 / d_data, log ``loss`` (over models too) and ``loss_gain`` by the strongest
    ``attack`` up to 8/255. ``image_size``, ``channels`` and ``num_classes`` are 0 where it has
    several, None where none is recorded.
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
    loss_gain: float | None = None
    attack: str = ""


def summaries_of(full: pd.DataFrame, points: pd.DataFrame) -> tuple[DatasetSummary, ...]:
    """Return what each dataset brought, from all trials and the fitted points."""
    tried = [
        a for a in attack_columns(points.columns) if a.epsilon <= 8 and points[a.name].notna().any()
    ]
    attack = max(tried, key=lambda a: (a.attack == "fgsm", a.epsilon), default=None)
    last = points[points[TRAIN_SIZE] == points.groupby(DATASET)[TRAIN_SIZE].transform("max")]
    losses = np.exp(last.groupby(DATASET)[LOG_LOSS].mean())
    inverse_d = points.groupby(DATASET)[INVERSE_D].mean()
    cells = points.drop_duplicates([DATASET, CLASS_PAIR, TRAIN_SIZE]).groupby(DATASET)
    sharpness = cells[LABEL_SHARPNESS].mean()
    gains = losses.iloc[:0] if attack is None else last.groupby(DATASET)[attack.name].mean()

    def known(value: float) -> float | None:
        return None if np.isnan(value) else float(value)

    def only(values: pd.Series) -> int | None:
        return None if values.isna().all() else int(values.max()) * (values.nunique() == 1)

    return tuple(
        DatasetSummary(
            dataset=str(name),
            domain=str(rows[DOMAIN].iloc[0]),
            num_trials=len(rows),
            train_sizes=tuple(sorted(int(n) for n in rows[TRAIN_SIZE].dropna().unique())),
            d_data=known(1 / inverse_d.get(name, np.nan)),
            label_sharpness=known(sharpness.get(name, np.nan)),
            image_size=only(rows[IMAGE_SIZE]),
            channels=only(rows[CHANNELS]),
            num_classes=only(rows[NUM_CLASSES]),
            loss=known(losses.get(name, np.nan)),
            loss_gain=known(gains.get(name, np.nan)),
            attack="" if attack is None else attack.words,
        )
        for name, rows in full.groupby(DATASET)
    )
