"""Two sweeps side by side: as released against corrected, one recipe against another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from orchestrator.analysis.fit_records import Interval, Table, interval, number, to_text
from orchestrator.analysis.inference import mean_interval
from orchestrator.analysis.laws import scales_of
from orchestrator.analysis.table import finished_trials, listing, split_by_recipe
from orchestrator.results import table as c
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
    """Changes of every quantity, how many cells only one of the two sweeps has, and what was left out."""

    first: str
    second: str
    changes: tuple[Change, ...]
    num_only_first: int
    num_only_second: int
    notes: tuple[str, ...] = ()

    def table(self) -> Table:
        """Return the comparison as a table of text."""
        rows = tuple(
            (x.quantity, number(x.ratio), interval(x.interval), str(x.num_datasets), str(x.num_cells))
            for x in self.changes
        )
        return Table(
            "comparison-of-sweeps",
            f"{self.second} against {self.first}",
            "Ratio of geometric means (difference of means for accuracies), over the seeds of a cell first, "
            f"each dataset counting once; 95 % intervals over datasets. {self.num_only_first} cells only in "
            f"{self.first}, {self.num_only_second} only in {self.second}."
            + "".join(f" {note}." for note in self.notes),
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
    kept, excluded = zip(*(finished_trials(table) for table in (first, second)), strict=True)
    notes = [f"Left out of {n}: {found}" for n, each in zip(names, excluded, strict=True) for found in each]
    scales = [scales_of(table) for table in kept]
    if scales[0] != scales[1] and all(scales):
        quantities = [name for name in quantities if name != c.LABEL_SHARPNESS]
        where = [f"{' and '.join(scale)} in {name}" for name, scale in zip(names, scales, strict=True)]
        notes.append(f"K_F is not compared: it was measured on {listing(where)}")
    one, two = (_cells(table, quantities) for table in kept)
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
        notes=tuple(notes),
    )


def _cells(table: pd.DataFrame, quantities: Sequence[str]) -> pd.DataFrame:
    """Average seeds: what is compared by its ratio as logarithms, as the fits do, and accuracies as they
    are.
    """
    known = [name for name in quantities if name in table]
    table = split_by_recipe(table.assign(**{c.CLASS_PAIR: table.get(c.CLASS_PAIR, "")}))
    ratios = [name for name in known if name != c.TEST_ACCURACY]
    table[ratios] = np.log(table[ratios].where(table[ratios] > 0))
    return table.groupby(list(CELL), dropna=False)[known].mean()


def _change(name: str, one: pd.DataFrame, two: pd.DataFrame) -> Change:
    moved = (two[name] - one[name]).dropna()
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
