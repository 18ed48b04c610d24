"""A sweep beside others: the published study's numbers, how a sweep agrees with them, and two
sweeps.

A quantity agrees where ours lies within a factor of the published one: what the published value can
be read to, plus what repeats of the study itself vary by. Data modes are scored apart
(docs/faults.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

import search_spaces.published
from orchestrator.analysis import inference as i
from orchestrator.analysis import table as t
from orchestrator.analysis.tables import Table, laid_out
from orchestrator.results import columns as c
from search_spaces.errors import DataError

#: Of the published loss gains under attack; the epsilon is taken to be 2/255.
GAIN = "fgsm_2_loss_gain"
_KEY, _RUN = (c.DATASET, c.TRAIN_SIZE), (c.MODEL, c.DATASET, c.TRAIN_SIZE)


def published_table() -> pd.DataFrame:
    """Return one row per published (model, dataset, train size), in the form of a results table.

    A loss that cannot be read from the figures is missing. ``d_repr_mle`` is from Fig. 5,
    ``d_repr_twonn`` from Fig. 4; of natural datasets d_data is the mean over models. Eleven rows
    hold the FGSM loss gains, of an unstated model and N. K_F is taken to be of three channels for
    CIFAR-10, SVHN and ImageNet.
    """
    return t.read_csv(Path(str(files(search_spaces.published) / "results.csv")))


class Quantity(NamedTuple):
    """A published column, by which key its cells are named, and by which factor ours may differ."""

    name: str
    column: str
    key: tuple[str, ...]
    factor: float


QUANTITIES = (
    Quantity("d_data", c.D_DATA_MLE, _KEY, 1.10),
    Quantity("K_F", c.LABEL_SHARPNESS, (c.DATASET,), 1.25),
    Quantity("test loss", c.TEST_LOSS, _RUN, 1.5),
    Quantity("d_repr (MLE)", c.D_REPR_MLE, _RUN, 1.25),
    Quantity("d_repr (TwoNN)", c.D_REPR_TWONN, _RUN, 1.25),
    Quantity("FGSM loss gain at 2/255", GAIN, (c.DATASET,), 2.0),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How many published cells of one quantity a sweep in one data mode has, and how many agree to
    the factor ``tolerance``; ``median_ratio`` is ours over theirs, ``apart`` names the others.
    """

    quantity: str
    data_mode: str
    num_published: int
    num_compared: int
    num_agreeing: int
    tolerance: float
    median_ratio: float | None
    apart: tuple[str, ...] = ()


def scorecard(table: pd.DataFrame) -> tuple[Score, ...]:
    """Score a results table (a partial one too) against every published quantity, by data mode."""
    table, theirs = t.finished_trials(table)[0], published_table()
    table = table.assign(**{c.DATA_MODE: table.get(c.DATA_MODE, "")})
    return tuple(
        _score(ours, theirs, quantity, str(mode))
        for mode, ours in table.groupby(c.DATA_MODE)
        for quantity in QUANTITIES
    )


def _score(ours: pd.DataFrame, theirs: pd.DataFrame, quantity: Quantity, mode: str) -> Score:
    def means(table: pd.DataFrame) -> pd.Series:
        """Geometric mean of the positive values of every cell; empty where the table lacks the
        column.
        """
        values = table.reindex(columns=[quantity.column])[quantity.column].astype(float)
        logs = pd.Series(np.log(values.where(values > 0))).dropna()
        return pd.Series(
            np.exp(logs.groupby([table.loc[logs.index, name] for name in quantity.key]).mean())
        )

    published = means(theirs)
    ratio = (means(ours) / published).dropna()
    off = np.abs(np.log(ratio.to_numpy(dtype=float))) > np.log(quantity.factor) * (1 + 1e-9)
    keys = [key if isinstance(key, tuple) else (key,) for key in ratio.index[off]]
    return Score(
        quantity=quantity.name,
        data_mode=mode,
        num_published=len(published),
        num_compared=len(ratio),
        num_agreeing=int((~off).sum()),
        tolerance=quantity.factor,
        median_ratio=float(ratio.median()) if len(ratio) else None,
        apart=tuple(
            "-".join(f"{v:.15g}" if isinstance(v, float) else str(v) for v in key) for key in keys
        ),
    )


def score_table(scores: Sequence[Score]) -> Table:
    """Return a scorecard as a table of text."""
    return laid_out(
        "scorecard",
        "Against every published quantity",
        "A cell agrees where ours is within the factor of the published value; cells not in this "
        "sweep are "
        "not counted.",
        scores,
        {
            "data mode": "data_mode",
            "quantity": "quantity",
            "agree": lambda s: f"{s.num_agreeing} of {s.num_compared}",
            "compared": lambda s: f"{s.num_compared} of {s.num_published}",
            "factor": lambda s: f"{s.tolerance:g}",
            "median ratio": "median_ratio",
            "apart": lambda s: (
                ", ".join(s.apart[:5]) + (f" and {len(s.apart) - 5} more") * (len(s.apart) > 5)
            ),
        },
        numeric_from=2,
    )


@dataclass(frozen=True, slots=True)
class Change:
    """Of one quantity, second over first, datasets counting once; of an accuracy the difference."""

    quantity: str
    num_cells: int
    num_datasets: int
    ratio: float | None
    interval: i.Interval | None


@dataclass(frozen=True, slots=True)
class SweepComparison:
    """Changes of every quantity, how many cells only one of the two sweeps has, and what was left
    out.
    """

    first: str
    second: str
    changes: tuple[Change, ...]
    num_only_first: int
    num_only_second: int
    notes: tuple[str, ...] = ()

    def table(self) -> Table:
        """Return the comparison as a table of text."""
        return laid_out(
            "comparison-of-sweeps",
            f"{self.second} against {self.first}",
            "Ratio of geometric means (difference of means for accuracies), over the seeds of a "
            "cell first, "
            f"each dataset counting once; 95 % intervals over datasets. {self.num_only_first} "
            "cells only in "
            f"{self.first}, {self.num_only_second} only in {self.second}."
            + "".join(f" {note}." for note in self.notes),
            self.changes,
            {
                "quantity": "quantity",
                "ratio": "ratio",
                "interval": "interval",
                "datasets": "num_datasets",
                "cells": "num_cells",
            },
        )


def compare(
    first: pd.DataFrame, second: pd.DataFrame, *, names: tuple[str, str] = ("first", "second")
) -> SweepComparison:
    """Compare two tables on the cells (model, dataset, pair, train size) of both; DataError if
    none.
    """
    kept, excluded = zip(*(t.finished_trials(table) for table in (first, second)), strict=True)
    notes = [
        f"Left out of {n}: {found}"
        for n, each in zip(names, excluded, strict=True)
        for found in each
    ]
    quantities = [
        c.TEST_LOSS,
        c.TEST_ACCURACY,
        c.D_DATA_MLE,
        c.LABEL_SHARPNESS,
        c.D_REPR_MLE,
        c.D_REPR_TWONN,
    ]
    measured = [t.sharpness_scale(table, "ignore").scales for table in kept]
    scales = [[scale for scale, _ in found if t.UNRECORDED not in scale] for found in measured]
    if scales[0] != scales[1] and all(scales):
        quantities.remove(c.LABEL_SHARPNESS)
        where = [
            f"{' and '.join(scale)} in {name}" for name, scale in zip(names, scales, strict=True)
        ]
        notes.append(f"K_F is not compared: it was measured on {t.listing(where)}")
    one, two = (_cells(table, quantities) for table in kept)
    shared = one.index.intersection(two.index).sort_values()
    if len(shared) == 0:
        rule, found = (
            "compared on cells that both have",
            f"none of {len(one)} and {len(two)} is shared",
        )
        hint = "compare sweeps with equal models, datasets, class pairs and train sizes"
        raise DataError(f"Two sweeps can be {rule}", found, hint)
    changes = []
    for name in (name for name in quantities if name in one and name in two):
        moved = (two.loc[shared, name] - one.loc[shared, name]).dropna()
        values = moved.groupby(level=c.DATASET).mean().to_numpy(dtype=float)
        mean, _, bounds = i.mean_interval(values) if len(values) else (None, None, None)
        if name != c.TEST_ACCURACY and mean is not None:
            mean = float(np.exp(mean))
            bounds = bounds and (float(np.exp(bounds[0])), float(np.exp(bounds[1])))
        changes.append(Change(name, len(moved), len(values), mean, bounds))
    only = len(one) - len(shared), len(two) - len(shared)
    return SweepComparison(*names, tuple(changes), *only, tuple(notes))


def _cells(table: pd.DataFrame, quantities: Sequence[str]) -> pd.DataFrame:
    """Average seeds: what is compared by its ratio as logarithms, accuracies as they are."""
    known = [name for name in quantities if name in table]
    table = t.split_by_recipe(table.assign(**{c.CLASS_PAIR: table.get(c.CLASS_PAIR, "")}))
    ratios = [name for name in known if name != c.TEST_ACCURACY]
    table[ratios] = np.log(table[ratios].where(table[ratios] > 0))
    return table.groupby([c.MODEL, c.DATASET, c.CLASS_PAIR, c.TRAIN_SIZE], dropna=False)[
        known
    ].mean()
