"""What lies at guessing, and where guessing holds losses down: near it a loss says less than any law asks of
it.

A network that learned nothing has the loss of guessing, whatever N, d and K_F are, so that curves are flat
there and slopes over datasets too small, by an amount that nothing in the table tells. Over-fitted networks
pass that loss freely, and there it holds nothing down; what tells the two apart is whether losses pile up
under guessing with few beyond. Every count, refusal and warning about guessing uses the level of this module.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from orchestrator.analysis import table as t
from orchestrator.results import table as c

#: Loss of guessing between two classes, in nat.
CHANCE_LOSS = float(np.log(2))
#: A loss (or an error) lies at guessing from this share of guessing's own on.
AT_GUESSING = 0.8
#: Where more than this share of points lie there and fewer lie well beyond (5 %), guessing holds losses down.
MOST_THERE, WELL_BEYOND = 0.10, 1.05
#: A curve whose geometric mean is below this share of guessing is clear of it: a loss that bends towards
#: guessing as x → tanh x, or 1 − exp(−x), has lost 7 or 19 % of its slope there.
CLEAR = 1 / 3

_LOG_GUESSING = {t.LOG_LOSS: float(np.log(CHANCE_LOSS)), t.LOG_ERROR: float(np.log(0.5))}
_WORDS = {t.LOG_LOSS: "losses", t.LOG_ERROR: "errors"}


@dataclass(frozen=True, slots=True, kw_only=True)
class GuessingCount:
    """How many points' losses lie at guessing, of how many; by dataset where there are any."""

    num_points: int
    num_at_guessing: int
    by_dataset: dict[str, tuple[int, int]] = field(default_factory=dict)
    left_out: bool = False


def is_guessing(loss: float) -> bool:
    """Tell whether a test loss (nat) lies at guessing between two classes, or beyond."""
    return loss >= AT_GUESSING * CHANCE_LOSS


def at_guessing(rows: pd.DataFrame, response: str = t.LOG_LOSS) -> pd.Series:
    """Tell which points lie at guessing or beyond; a response that knows no guessing never does."""
    level = _LOG_GUESSING.get(response, np.inf) + np.log(AT_GUESSING)
    return pd.Series(rows[response] >= level)


def count_at_guessing(points: pd.DataFrame, *, left_out: bool = False) -> GuessingCount:
    """Count the points that have a loss and those of them at guessing."""
    known = points[points[t.LOG_LOSS].notna()]
    counts = at_guessing(known).groupby(known[c.DATASET]).agg(["sum", "size"])
    rows = {str(name): (int(row["sum"]), int(row["size"])) for name, row in counts.iterrows() if row["sum"]}
    num = sum(found for found, _ in rows.values())
    return GuessingCount(num_points=len(known), num_at_guessing=num, by_dataset=rows, left_out=left_out)


def without_guessing(trials: pd.DataFrame) -> tuple[pd.DataFrame, tuple[t.Exclusion, ...]]:
    """Take the losses at guessing from the trials, and count them."""
    there = at_guessing(trials)
    reason = f"test loss at guessing (from {AT_GUESSING:g} ln 2 on), left out on request"
    excluded = (t.Exclusion(reason, int(there.sum())),) if there.any() else ()
    return trials.assign(**{t.LOG_LOSS: trials[t.LOG_LOSS].mask(there)}), excluded


def holds_down(rows: pd.DataFrame, response: str = t.LOG_LOSS) -> bool:
    """Tell whether so many points pile up at guessing that it holds the others down."""
    known = rows[rows[response].notna()]
    if known.empty or response not in _LOG_GUESSING:
        return False
    weights = known[t.WEIGHT] / known[t.WEIGHT].sum()
    beyond = float(weights[known[response] >= _LOG_GUESSING[response] + np.log(WELL_BEYOND)].sum())
    close = float(weights[at_guessing(known, response)].sum()) - beyond
    return close > MOST_THERE and beyond < close


def flattened(rows: pd.DataFrame, response: str = t.LOG_LOSS) -> str:
    """Return why slopes over these points would be too small, or an empty text."""
    if not holds_down(rows, response):
        return ""
    there = at_guessing(rows[rows[response].notna()], response)
    where = f"{there.sum()} of {t.plural(len(there), 'point')} lie at guessing"
    return f"the {_WORDS[response]} of {where}, which flattens slopes by an unknown amount"


def unvaried(rows: pd.DataFrame, response: str = t.LOG_LOSS, within: str = "") -> str:
    """Return that a response is the same at all points, or at those of every group ``within`` which slopes
    are taken; an empty text where it is not. A slope of rounding errors would have an interval of its own.
    """
    values = rows[response]
    around = values.groupby(rows[within]).transform("mean") if within else values.mean()
    if not (values - around).abs().max() <= 1e-12 * values.abs().max():
        return ""
    return f"the {_WORDS.get(response, 'values')} are the same " + ("at every N" if within else "everywhere")


def clear_of_guessing(rows: pd.DataFrame, response: str = t.LOG_LOSS) -> pd.DataFrame:
    """Return the points of curves that are clear of guessing where it holds losses down, else all.

    Curves are chosen by their mean over N, which says nothing of the error in their slope. Of these, the N up
    to the last one at guessing go as well: a curve that leaves it late is flat before.
    """
    if not holds_down(rows, response):
        return rows
    means = rows[response].groupby(rows[t.CURVE]).transform("mean") - _LOG_GUESSING[response]
    last = rows[c.TRAIN_SIZE].where(at_guessing(rows, response)).groupby(rows[t.CURVE]).transform("max")
    clear: pd.DataFrame = rows[(means < np.log(CLEAR)) & ~(rows[c.TRAIN_SIZE] <= last)]
    return clear


def past_guessing(points: pd.DataFrame, full: pd.DataFrame) -> pd.DataFrame:
    """Leave out, of every dataset and class pair, all N up to the last at which its models guess on the
    whole, and of every curve all N up to the last at which a trial diverged.

    A loss cannot stay far above guessing, so a curve starts flat there, whatever its law. Whole N go, by
    their mean over models, since dropping single high losses would flatten what is left; and so does losing
    them to divergence.

    Args:
        points: fitted points.
        full: all trials, diverged ones too.
    """
    means = points.assign(
        **{t.LOG_LOSS: points.groupby([*t.SUBSET, c.TRAIN_SIZE])[t.LOG_LOSS].transform("mean")}
    )
    last = points[c.TRAIN_SIZE].where(at_guessing(means)).groupby([points[name] for name in t.SUBSET])
    curve = [c.MODEL, *t.SUBSET]
    diverged = full[full[c.STATUS] != c.DONE].groupby(curve)[c.TRAIN_SIZE].max()
    lost = diverged.reindex(pd.MultiIndex.from_frame(points[curve])).to_numpy(dtype=float)
    return points[~(points[c.TRAIN_SIZE] <= last.transform("max")) & ~(points[c.TRAIN_SIZE] <= lost)]
