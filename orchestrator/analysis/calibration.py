"""How far off predictions were for datasets left out of a prior: what its intervals are widened by.

A prior takes errors to be Gaussian, equally large in every dataset and independent along N. Losses of single
trainings are none of this: datasets are noisier and quieter, neighbouring N are alike, curves bend. So every
dataset is left out in turn, its curves are predicted from their own smallest sizes as a user's pilot would
be, and the interval is stretched by how much further off that was than the prior said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from orchestrator.analysis import points as t
from orchestrator.analysis.curve import MOST_PILOT, Curve, PilotPoint
from orchestrator.analysis.growth_records import Growth
from orchestrator.results import columns as c

#: Curves of one dataset that are predicted; more of them say little more of a dataset.
MOST_CURVES = 30


def stretched(
    rows: pd.DataFrame, refit: Callable[[str], Growth | None], *, informed: bool
) -> tuple[float, ...]:
    """Return by which factor intervals have to be longer, for a pilot of 0, 1, 2, ... trainings.

    The root mean square, over datasets left out, of error over predicted standard error at the largest N of
    their curves; at least 1, since an interval does not become surer than the prior by a few lucky datasets.

    Args:
        rows: points of single class pairs with log loss, d_data and K_F, as a user's data would be.
        refit: returns the prior without one dataset; None where there is none.
        informed: False for the prior that knows nothing of the dataset, which takes no pilot.
    """
    found: dict[int, list[float]] = {}
    for name, mine in rows.groupby(c.DATASET):
        without = refit(str(name))
        if without is None:
            continue
        for size, squares in _squares(without, mine, informed=informed).items():
            found.setdefault(size, []).append(float(np.mean(squares)))
    factors = [max(1.0, float(np.sqrt(np.mean(found[size])))) for size in sorted(found)]
    return tuple(factors) or (1.0,)


def _squares(growth: Growth, mine: pd.DataFrame, *, informed: bool) -> Mapping[int, list[float]]:
    """Squared error over predicted variance of one dataset's curves, by the number of pilot trainings."""
    squares: dict[int, list[float]] = {}
    for curve in _curves(mine):
        last = curve[-1]
        for size in range(min(MOST_PILOT, len(curve) - 1) + 1 if informed else 1):
            pilot = [PilotPoint(row["train_size"], float(np.exp(row["log_loss"]))) for row in curve[:size]]
            at = Curve(growth, last["d_reference"], last["label_sharpness"], pilot, informed=informed)
            value, variance = at.moments(last["train_size"])
            if variance > 0:
                squares.setdefault(size, []).append((value - last["log_loss"]) ** 2 / variance)
    return squares


def _curves(mine: pd.DataFrame) -> Iterator[list[dict[Any, float]]]:
    """Curves of at least two sizes, from the smallest N to the largest; some of them where there are many."""
    names = [c.TRAIN_SIZE, t.LOG_LOSS, t.D_REFERENCE, c.LABEL_SHARPNESS]
    curves = [part for _, part in mine.groupby(t.CURVE) if len(part) > 1]
    step = max(1, -(-len(curves) // MOST_CURVES))
    for part in curves[::step]:
        yield part.sort_values(c.TRAIN_SIZE, kind="stable")[names].to_dict("records")
