"""Selection of the points of a fit, and their reduction to one effect per dataset."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import pandas as pd

from orchestrator.analysis.inference import dataset_effects
from orchestrator.analysis.results_tables.points import (
    AT_CHANCE_LEVEL,
    CELL,
    CURVE,
    OF_CHANCE_LOSS,
    WEIGHT,
    select,
)
from orchestrator.results.columns import DATASET, DOMAIN, MODEL, TRAIN_SIZE

KEYS = (MODEL, DATASET, DOMAIN, TRAIN_SIZE, CELL, CURVE, WEIGHT, OF_CHANCE_LOSS, AT_CHANCE_LEVEL)
"""Columns that every fit needs in addition to its own."""


def complete_rows(
    points: pd.DataFrame, model: str, subset: str, columns: Collection[str]
) -> pd.DataFrame:
    """Return the points of a model and domain without missing values in ``columns``."""
    names = list(dict.fromkeys([*KEYS, *columns]))
    return select(points[names], model, subset).dropna(subset=[*columns])


def effects_of(rows: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame | None:
    """Return the dataset effects of columns at equal model and N, with one row per dataset.

    Returns None if datasets share no model and train size, directly or through other datasets.
    """
    effects = dataset_effects(
        rows[[*columns]].to_numpy(dtype=float),
        rows[CELL].to_numpy(),
        rows[DATASET].to_numpy(dtype=str),
        rows[WEIGHT].to_numpy(dtype=float),
    )
    if effects is None:
        return None
    names, values = effects
    return pd.DataFrame(np.asarray(values), names, [*columns])
