"""Selection of the points of a fit, and reduction of these points to one effect per dataset."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np
import pandas as pd

from orchestrator.analysis.inference import Array, Codes, dataset_effects
from orchestrator.analysis.results_tables.points import (
    ALL,
    AT_CHANCE_LEVEL,
    CELL,
    CURVE,
    OF_CHANCE_LOSS,
    POOLED,
    WEIGHT,
)
from orchestrator.results.columns import DATASET, DOMAIN, MODEL, TRAIN_SIZE

KEYS = (
    MODEL,
    DATASET,
    DOMAIN,
    TRAIN_SIZE,
    CELL,
    CURVE,
    WEIGHT,
    OF_CHANCE_LOSS,
    AT_CHANCE_LEVEL,
)
"""Columns that every fit needs, in addition to its response and regressors."""


def complete_rows(
    points: pd.DataFrame, model: str, subset: str, columns: Collection[str]
) -> pd.DataFrame:
    """Return the points of a model and domain without missing values in ``columns``."""
    # Select rows and columns at once. This takes 60 % of the time of two selections.
    is_used = np.ones(len(points), dtype=bool)
    for name in columns:
        is_used &= points[name].notna().to_numpy()
    if model != POOLED:
        is_used &= (points[MODEL] == model).to_numpy()
    if subset != ALL:
        is_used &= (points[DOMAIN] == subset).to_numpy()
    names = list(dict.fromkeys([*KEYS, *columns]))
    return points.loc[is_used, names]


def effects_of(rows: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame | None:
    """Return the dataset effects of columns, with one row per dataset.

    Datasets are compared at equal model and train size. Returns None if some datasets cannot
    be compared. Two datasets can be compared if they share a model and train size, or if other
    datasets connect them.
    """
    effects = dataset_effects(*_arrays_of(rows, columns))
    if effects is None:
        return None
    names, values = effects
    return pd.DataFrame(values, names, [*columns])


def effects_without_each(rows: pd.DataFrame, columns: Sequence[str]) -> Iterator[tuple[str, Array]]:
    """Yield the name of each dataset, and the effects of the remaining datasets.

    The effects are estimated again each time. A dataset is skipped if the remaining datasets
    share no model and train size.

    Yields:
        The name of the dataset that is left out, and the effects ``(G - 1, k)`` of the
        remaining datasets, sorted by name.
    """
    values, cells, datasets, weights = _arrays_of(rows, columns)
    names, codes = np.unique(datasets, return_inverse=True)
    for code, name in enumerate(names):
        is_kept = codes != code
        reduced = dataset_effects(values[is_kept], cells[is_kept], codes[is_kept], weights[is_kept])
        if reduced is not None:
            _, effects = reduced
            # Make the columns contiguous in memory, as in a table, because the rounding of
            # BLAS depends on the layout.
            yield str(name), np.asfortranarray(effects)


def effects_without(
    rows: pd.DataFrame, columns: Sequence[str], left_out: str
) -> tuple[list[str], Array] | None:
    """Return the effects of all datasets except ``left_out``.

    The rows need not contain the dataset ``left_out``.

    Returns:
        Sorted names of the remaining datasets, and their effects ``(G, k)``. None if the
        remaining datasets share no model and train size.
    """
    values, cells, datasets, weights = _arrays_of(rows, columns)
    is_kept = datasets != left_out
    return dataset_effects(values[is_kept], cells[is_kept], datasets[is_kept], weights[is_kept])


def _arrays_of(rows: pd.DataFrame, columns: Sequence[str]) -> tuple[Array, Codes, Codes, Array]:
    """Return columns, cells, datasets and weights: the arguments of ``dataset_effects``."""
    values = np.array([rows[name].to_numpy(dtype=float) for name in columns])
    return (
        values.T,
        pd.factorize(rows[CELL], sort=True)[0],
        rows[DATASET].to_numpy(dtype=str),
        rows[WEIGHT].to_numpy(dtype=float),
    )
