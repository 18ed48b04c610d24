"""The ceiling that chance level puts on losses, and which points are clear of it.

A network that learned nothing has the chance loss, whatever N, d and K_F are: curves are flat
there, and slopes too small by an unknown amount. Over-fitted networks pass that loss freely.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from orchestrator.analysis.results_tables.chance_level import reaches
from orchestrator.analysis.results_tables.points import (
    AT_CHANCE_LEVEL,
    CURVE,
    LOG_LOSS,
    OF_CHANCE_LOSS,
    SUBSET,
    WEIGHT,
)
from orchestrator.results.columns import DONE, MODEL, STATUS, TRAIN_SIZE
from search_spaces.errors import plural

MAX_SHARE_AT_CEILING = 0.10
"""Largest share of the points that may lie at chance level before it is a ceiling."""
WELL_BEYOND = 1.05
"""Share of the chance loss from which on a loss has passed the ceiling."""
MIN_POINTS_AT_CEILING = 2
"""Points that make a ceiling: one alone may be one training that failed."""
CLEAR_SHARE = 1 / 3
"""A curve whose geometric mean is below this share of the chance loss is clear of the ceiling. A
loss that bends towards it as x → tanh x, or 1 − exp(−x), has lost 7 or 19 % of its slope there."""


def has_ceiling(rows: pd.DataFrame) -> bool:
    """Return whether points pile up at chance level, so that it holds the others down."""
    rows_with_loss = rows[rows[LOG_LOSS].notna()]
    weights = rows_with_loss[WEIGHT]
    is_beyond = reaches(rows_with_loss[OF_CHANCE_LOSS], WELL_BEYOND)
    is_at_ceiling = (rows_with_loss[AT_CHANCE_LEVEL] > 0) & ~is_beyond
    at_ceiling = float(weights[is_at_ceiling].sum())
    beyond = float(weights[is_beyond].sum())
    return (
        int(is_at_ceiling.sum()) >= MIN_POINTS_AT_CEILING
        and at_ceiling > MAX_SHARE_AT_CEILING * float(weights.sum())
        and beyond < at_ceiling
    )


def why_flattened(rows: pd.DataFrame) -> str:
    """Return why slopes over these points would be too small, or an empty text."""
    if not has_ceiling(rows):
        return ""
    num_at_chance = int(rows[AT_CHANCE_LEVEL].sum())
    num_points = plural(int(rows[LOG_LOSS].count()), "point")
    return (
        f"the losses of {num_at_chance} of {num_points} are at chance level, which flattens slopes "
        "by an unknown amount"
    )


def why_constant(rows: pd.DataFrame, within: str = "") -> str:
    """Return that losses are the same everywhere, or in every group ``within``; else an empty
    text.
    """
    values = rows[LOG_LOSS]
    keys = rows[within] if within else pd.Series(0, index=rows.index)
    center = values.groupby(keys).transform("mean")
    if not (values - center).abs().max() <= 1e-12 * values.abs().max():
        return ""
    return f"the losses are the same {'at every N' if within else 'everywhere'}"


def clear_of_ceiling(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the points of curves that are clear of the ceiling if there is one, else all.

    Curves are chosen by their mean over N, which says nothing of errors in their slope. Of each the
    points after its last one at chance level stay.
    """
    if not has_ceiling(rows):
        return rows
    curve_means = rows[OF_CHANCE_LOSS].groupby(rows[CURVE]).transform("mean")
    sizes_at_chance = rows[TRAIN_SIZE].where(rows[AT_CHANCE_LEVEL] > 0)
    last_at_chance = sizes_at_chance.groupby(rows[CURVE]).transform("max")
    is_clear = (curve_means < np.log(CLEAR_SHARE)) & ~(rows[TRAIN_SIZE] <= last_at_chance)
    clear: pd.DataFrame = rows[is_clear]
    return clear


def above_chance(points: pd.DataFrame, full: pd.DataFrame) -> pd.DataFrame:
    """Return the points at train sizes above chance level.

    Left out are, of every dataset and class pair, all N up to the last at which its models are at
    chance level on average; and of every curve all N up to the last diverged trial. A loss cannot
    stay far above chance level, so a curve starts flat there. Whole N go, by means over models:
    dropping single high losses would flatten the rest.

    Args:
        points: The points.
        full: All trials, diverged ones too.
    """
    loss_is_high = reaches(points[OF_CHANCE_LOSS])
    is_over_confident = loss_is_high & ~(points[AT_CHANCE_LEVEL] > 0)
    shares = points[OF_CHANCE_LOSS].mask(is_over_confident)
    keys = [points[name] for name in SUBSET]
    means = shares.groupby([*keys, points[TRAIN_SIZE]]).transform("mean")
    last_at_chance = points[TRAIN_SIZE].where(reaches(means)).groupby(keys).transform("max")
    curve = [MODEL, *SUBSET]
    diverged = full[full[STATUS] != DONE].groupby(curve)[TRAIN_SIZE].max()
    last_diverged = diverged.reindex(pd.MultiIndex.from_frame(points[curve])).to_numpy(dtype=float)
    is_too_small = (points[TRAIN_SIZE] <= last_at_chance) | (points[TRAIN_SIZE] <= last_diverged)
    return points[~is_too_small]
