"""Two sweeps side by side: as released against corrected, one recipe against another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from orchestrator.analysis.clusters import mean_interval
from orchestrator.analysis.formats import Table, interval, number
from orchestrator.analysis.law_records import Interval
from orchestrator.analysis.points import finished_trials
from orchestrator.analysis.text import to_text
from orchestrator.results import columns as c
from search_spaces.errors import DataError

#: What makes two trials of different sweeps the same cell; seeds are averaged.
CELL = (c.MODEL, c.DATASET, c.CLASS_PAIR, c.TRAIN_SIZE)
QUANTITIES = (c.TEST_LOSS, c.TEST_ACCURACY, c.D_DATA_MLE, c.LABEL_SHARPNESS, c.D_REPR_MLE, c.D_REPR_TWONN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """How one quantity differs between two sweeps on the cells that both have, datasets being the replicates.

    ``ratio`` is the geometric mean of second over first, each dataset counting once, with its 95 % t
    interval over datasets; for an accuracy it is the difference in place of the ratio.
    """

    quantity: str
    num_cells: int
    num_datasets: int
    ratio: float | None
    interval: Interval | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepComparison:
    """Changes of every quantity, and how many cells only one of the two sweeps has."""

    first: str
    second: str
    changes: tuple[Change, ...]
    num_only_first: int
    num_only_second: int

    def table(self) -> Table:
        """Return the comparison as a table of text."""
        rows = tuple(
            (x.quantity, number(x.ratio), interval(x.interval), str(x.num_datasets), str(x.num_cells))
            for x in self.changes
        )
        return Table(
            "comparison-of-sweeps",
            f"{self.second} against {self.first}",
            f"Ratio of geometric means (difference for accuracies), each dataset counting once; 95 % "
            "intervals over "
            f"datasets. {self.num_only_first} cells only in {self.first}, {self.num_only_second} only in "
            f"{self.second}.",
            ("quantity", "ratio", "interval", "datasets", "cells"),
            rows,
        )

    def to_text(self) -> str:
        """Return the comparison as plain text."""
        return to_text(self.table())


def compare(
    first: pd.DataFrame,
    second: pd.DataFrame,
    *,
    names: tuple[str, str] = ("first", "second"),
    quantities: Sequence[str] = QUANTITIES,
) -> SweepComparison:
    """Compare two results tables on the cells (model, dataset, class pair, train size) that both have.

    Raises:
        DataError: if they share no cell.
    """
    one, two = (_cells(table, quantities) for table in (first, second))
    shared = one.index.intersection(two.index).sort_values()
    if len(shared) == 0:
        raise DataError(
            "Two sweeps can be compared on cells that both have",
            f"none of {len(one)} and {len(two)} is shared",
            "compare sweeps with equal models, datasets, class pairs and train sizes",
        )
    return SweepComparison(
        first=names[0],
        second=names[1],
        changes=tuple(
            _change(name, one.loc[shared], two.loc[shared])
            for name in quantities
            if name in one and name in two
        ),
        num_only_first=len(one) - len(shared),
        num_only_second=len(two) - len(shared),
    )


def _cells(table: pd.DataFrame, quantities: Sequence[str]) -> pd.DataFrame:
    table = finished_trials(table)
    known = [name for name in quantities if name in table]
    keys = table.assign(**{c.CLASS_PAIR: table.get(c.CLASS_PAIR, "")})
    return keys.groupby(list(CELL), dropna=False)[known].mean()


def _change(name: str, one: pd.DataFrame, two: pd.DataFrame) -> Change:
    if name == c.TEST_ACCURACY:
        moved = two[name] - one[name]
    else:
        moved = np.log(two[name].where(two[name] > 0)) - np.log(one[name].where(one[name] > 0))
    moved = moved.dropna()
    by_dataset = moved.groupby(level=c.DATASET).mean().to_numpy(dtype=float)
    if len(by_dataset) == 0:
        return Change(quantity=name, num_cells=0, num_datasets=0, ratio=None, interval=None)
    mean, bounds = mean_interval(by_dataset)
    if name != c.TEST_ACCURACY:
        mean = float(np.exp(mean))
        bounds = None if bounds is None else (float(np.exp(bounds[0])), float(np.exp(bounds[1])))
    return Change(
        quantity=name, num_cells=len(moved), num_datasets=len(by_dataset), ratio=mean, interval=bounds
    )
