"""Where guessing holds losses down: near it a loss says less than any law asks of it.

A network that learned nothing has the loss of guessing, whatever N, d and K_F are, so that curves are flat
there and slopes over datasets too small, by an amount that nothing in the table tells. Over-fitted networks
pass that loss freely, and there it holds nothing down; what tells the two apart is whether losses pile up
under guessing with few beyond.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from orchestrator.analysis import table as t
from orchestrator.analysis.inference import Array
from orchestrator.analysis.table import plural
from orchestrator.results import table as c

#: What a response is called in reasons.
_WORDS = {t.LOG_LOSS: "losses", t.LOG_ERROR: "errors"}
#: Means of equal numbers differ in their last digits.
_ROUNDING = 1e-12
#: Log of the response that guessing between two classes gives.
GUESSING = {t.LOG_LOSS: float(np.log(t.CHANCE_LOSS)), t.LOG_ERROR: float(np.log(0.5))}
#: What counts as lying at guessing, as a share of it, and the share of points there from which on it counts.
CLOSE = (0.8, 1.05)
MOST_CLOSE = 0.10
#: A curve whose geometric mean is below this share of guessing is clear of it: a loss that bends towards
#: guessing as x → tanh x, or 1 − exp(−x), has lost 7 or 19 % of its slope there.
CLEAR = 1 / 3


def share_at_guessing(rows: pd.DataFrame, response: str) -> float:
    """Return the share of points at guessing if that holds the others down, else 0.

    Args:
        rows: fitted points.
        response: ``log_loss`` or ``log_error``; another one knows no guessing.
    """
    known = rows[rows[response].notna()] if response in GUESSING else rows.iloc[:0]
    if known.empty:
        return 0.0
    level = _level(known, response)
    weights = known[t.WEIGHT].to_numpy(dtype=float) / float(known[t.WEIGHT].sum())
    close = float(weights[(level > CLOSE[0]) & (level < CLOSE[1])].sum())
    beyond = float(weights[level >= CLOSE[1]].sum())
    return close if close > MOST_CLOSE and beyond < close else 0.0


def _level(rows: pd.DataFrame, response: str) -> Array:
    return np.asarray(np.exp(rows[response].to_numpy(dtype=float) - GUESSING[response]))


def flattened(rows: pd.DataFrame, response: str = t.LOG_LOSS) -> str:
    """Return why slopes over these points would be too small, or an empty text."""
    share = share_at_guessing(rows, response)
    if not share:
        return ""
    level = _level(rows[rows[response].notna()], response)
    close = ((level > CLOSE[0]) & (level < CLOSE[1])).sum()
    weighted = f"{share:.0%}"
    beside = "" if weighted == f"{close / len(level):.0%}" else f" ({weighted}, each dataset's pairs as one)"
    where = f"{close} of {plural(len(level), 'point')} lie at guessing{beside}"
    return f"the {_WORDS[response]} of {where}, which flattens slopes by an unknown amount"


def unvaried(rows: pd.DataFrame, response: str = t.LOG_LOSS, within: str = "") -> str:
    """Return that a response is the same at all points, or at those of every group ``within`` which slopes
    are taken; an empty text where it is not. A slope of rounding errors would have an interval of its own.
    """
    values = rows[response]
    around = values.groupby(rows[within]).transform("mean") if within else values.mean()
    if not (values - around).abs().max() <= _ROUNDING * values.abs().max():
        return ""
    return f"the {_WORDS.get(response, 'values')} are the same " + ("at every N" if within else "everywhere")


def clear_of_guessing(rows: pd.DataFrame, response: str = t.LOG_LOSS) -> pd.DataFrame:
    """Return the points of curves that are clear of guessing where it holds losses down, else all.

    Curves are chosen by their mean over N, which says nothing of the error in their slope. Of these, the N
    up to the last one at guessing go as well: a curve that leaves it late is flat before.
    """
    if not share_at_guessing(rows, response):
        return rows
    level = rows[response] - GUESSING[response]
    means = level.groupby(rows[t.CURVE]).transform("mean")
    last = rows[c.TRAIN_SIZE].where(level > np.log(CLOSE[0])).groupby(rows[t.CURVE]).transform("max")
    clear: pd.DataFrame = rows[(means < np.log(CLEAR)) & ~(rows[c.TRAIN_SIZE] <= last)]
    return clear
