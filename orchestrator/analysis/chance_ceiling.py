"""Detection of a ceiling of losses at chance level, and selection of points below the ceiling.

A network that learned nothing has the chance loss, whatever N, d and K_F are. Curves are flat
at this loss, so slopes over such curves are too small by an unknown amount. The chance loss is
not always a ceiling: an over-fitted network can have a larger loss.
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
"""Limit for the share of points at chance level. If the share is larger, chance level is a
ceiling of the losses."""
WELL_BEYOND = 1.05
"""Smallest loss of a point beyond the ceiling, as a share of the chance loss."""
MIN_POINTS_AT_CEILING = 2
"""Smallest number of points at chance level for a ceiling. A single point may be one failed
training."""
CLEAR_SHARE = 1 / 3
"""A curve is clear of the ceiling if the geometric mean of its losses is at most this share of
the chance loss. If losses saturate like tanh x, the slope is 7 % too small at this share. If
losses saturate like 1 − exp(−x), the slope is 19 % too small."""


def has_ceiling(rows: pd.DataFrame) -> bool:
    """Return whether chance level is a ceiling of the losses.

    It is a ceiling if the losses of many points are at this level.
    """
    # If many losses are well above the chance loss, the chance loss is not a ceiling. A few
    # flat curves do not change this.
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
    """Return a text that slopes are too small because losses are at chance level.

    The text is empty if chance level does not change the slopes.
    """
    if not has_ceiling(rows):
        return ""
    num_at_chance = int(rows[AT_CHANCE_LEVEL].sum())
    num_points = plural(int(rows[LOG_LOSS].count()), "point")
    return (
        f"the losses of {num_at_chance} of {num_points} are at chance level, which flattens "
        "slopes by an unknown amount"
    )


def why_constant(rows: pd.DataFrame, within: str = "") -> str:
    """Return a text that the losses do not vary; empty if they vary.

    Args:
        rows: Points with log losses.
        within: Column of groups. Losses are compared within each group. If ``within`` is
            empty, the losses of all points are compared.
    """
    values = rows[LOG_LOSS]
    keys = rows[within] if within else pd.Series(0, index=rows.index)
    center = values.groupby(keys).transform("mean")
    if not (values - center).abs().max() <= 1e-12 * values.abs().max():
        return ""
    return f"the losses are the same {'at every N' if within else 'everywhere'}"


def clear_of_ceiling(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the points of curves that are clear of the ceiling; all points if there is none.

    Curves are selected by the mean of their log losses over N, because the error of this mean
    is independent of the error of the slope. If a selected curve has points at chance level,
    only its points at larger N are returned.
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
    """Return the points at train sizes at which networks learned something.

    A curve is flat while its loss is at chance level. Two rules remove train sizes. First, for
    each dataset and class pair, the largest N is determined at which the mean loss over models
    is at chance level. This N and all smaller N are removed. Second, if a trial of a curve
    diverged, its N and all smaller N are removed from this curve. A rule removes all points of
    a train size. If it removed only points with high losses, the remaining curves would be
    flatter.

    Args:
        points: One row per point, as ``fitted_points`` returns them.
        full: All trials, including diverged ones.
    """
    loss_is_high = reaches(points[OF_CHANCE_LOSS])
    is_over_confident = loss_is_high & ~(points[AT_CHANCE_LEVEL] > 0)
    shares = points[OF_CHANCE_LOSS].mask(is_over_confident)
    keys = [points[name] for name in SUBSET]
    means = shares.groupby([*keys, points[TRAIN_SIZE]]).transform("mean")
    last_at_chance = points[TRAIN_SIZE].where(reaches(means)).groupby(keys).transform("max")
    curve = [MODEL, *SUBSET]
    diverged = full[full[STATUS] != DONE].groupby(curve)[TRAIN_SIZE].max()
    curve_of_point = pd.MultiIndex.from_frame(points[curve])
    last_diverged = diverged.reindex(curve_of_point).to_numpy(dtype=float)
    # A comparison with a missing size is False, so curves without such a size lose no point.
    is_too_small = (points[TRAIN_SIZE] <= last_at_chance) | (points[TRAIN_SIZE] <= last_diverged)
    return points[~is_too_small]
