"""Comparison of a sweep with the published study, and with a second sweep.

A value agrees with the published value if the two values differ at most by a given factor. The
factor allows for two errors: the error of reading values from figures, and the variation
between repeats of the study. Each data mode has its own scores (docs/faults.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
import pandas as pd

import search_spaces.published
from orchestrator.analysis.inference import Array, Interval, mean_interval
from orchestrator.analysis.number_formats import listing
from orchestrator.analysis.results_tables.checks import finished_trials, split_by_recipe
from orchestrator.analysis.results_tables.csv_files import read_csv
from orchestrator.analysis.results_tables.sharpness_scale import UNRECORDED, sharpness_scale
from orchestrator.analysis.tables.layout import Table, laid_out
from orchestrator.results.columns import (
    CLASS_PAIR,
    D_DATA_MLE,
    D_REPR_MLE,
    D_REPR_TWONN,
    DATA_MODE,
    DATASET,
    LABEL_SHARPNESS,
    MODEL,
    TEST_ACCURACY,
    TEST_LOSS,
    TRAIN_SIZE,
)
from search_spaces.errors import DataError

GAIN = "fgsm_2_loss_gain"
"""Column for the published loss that attacks add. We assume that the published attacks used an
epsilon of 2/255."""
OF_SUBSET = (DATASET, TRAIN_SIZE)
OF_TRAINING = (MODEL, DATASET, TRAIN_SIZE)
CELL = [MODEL, DATASET, CLASS_PAIR, TRAIN_SIZE]
"""Columns that identify a cell. A cell is one model, dataset, class pair and train size. Two
sweeps are compared on the cells that both sweeps contain."""
MAX_NAMED = 5
"""Largest number of cells without agreement that a table lists by name."""


def published_table() -> pd.DataFrame:
    """Return the published results as a table with a row per model, dataset and train size.

    If a loss cannot be read from the figures, it is missing. ``d_repr_mle`` comes from Fig. 5,
    and ``d_repr_twonn`` from Fig. 4. For natural datasets, d_data is the mean over models.
    Eleven rows contain the loss that FGSM adds. The study does not state the model and N of
    these rows. We assume that K_F was measured on three channels for CIFAR-10, SVHN and
    ImageNet.
    """
    return read_csv(Path(str(files(search_spaces.published) / "results.csv")))


@dataclass(frozen=True, slots=True)
class Quantity:
    """A published quantity.

    Attributes:
        name: Name of the quantity in tables.
        column: Column of the quantity.
        key: Columns that identify the cells of the quantity.
        factor: Largest ratio between our value and the published value that counts as
            agreement.
    """

    name: str
    column: str
    key: tuple[str, ...]
    factor: float


QUANTITIES = (
    Quantity("d_data", D_DATA_MLE, OF_SUBSET, 1.10),
    Quantity("K_F", LABEL_SHARPNESS, (DATASET,), 1.25),
    Quantity("test loss", TEST_LOSS, OF_TRAINING, 1.5),
    Quantity("d_repr (MLE)", D_REPR_MLE, OF_TRAINING, 1.25),
    Quantity("d_repr (TwoNN)", D_REPR_TWONN, OF_TRAINING, 1.25),
    Quantity("FGSM loss gain at 2/255", GAIN, (DATASET,), 2.0),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """The agreement of a sweep in one data mode with one published quantity.

    Attributes:
        quantity: Name of the quantity.
        data_mode: Data mode of the trials.
        num_published: Number of published cells.
        num_compared: Number of published cells that the sweep also contains.
        num_agreeing: Number of compared cells that agree.
        tolerance: Largest ratio that counts as agreement.
        median_ratio: Median over cells of our value divided by the published value. None if no
            cell is compared.
        apart: Names of the cells that do not agree.
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
    """Compare a results table with every published quantity, for each data mode.

    The table may lack some of the published cells.
    """
    finished, _ = finished_trials(table)
    published = published_table()
    finished = finished.assign(**{DATA_MODE: finished.get(DATA_MODE, "")})
    scores = []
    for mode, rows in finished.groupby(DATA_MODE):
        for quantity in QUANTITIES:
            scores.append(_score(rows, published, quantity, str(mode)))
    return tuple(scores)


def _score(rows: pd.DataFrame, published: pd.DataFrame, quantity: Quantity, mode: str) -> Score:
    """Compare one quantity of one data mode with the published values."""
    published_means = _geometric_means(published, quantity)
    ratios = (_geometric_means(rows, quantity) / published_means).dropna()
    log_ratios = np.abs(np.log(ratios.to_numpy(dtype=float)))
    is_apart = log_ratios > np.log(quantity.factor) * (1 + 1e-9)
    return Score(
        quantity=quantity.name,
        data_mode=mode,
        num_published=len(published_means),
        num_compared=len(ratios),
        num_agreeing=int((~is_apart).sum()),
        tolerance=quantity.factor,
        median_ratio=float(ratios.median()) if len(ratios) else None,
        apart=tuple(_cell_name(key) for key in ratios.index[is_apart]),
    )


def _geometric_means(table: pd.DataFrame, quantity: Quantity) -> pd.Series:
    """Return the geometric mean of the positive values of each cell."""
    values = table.reindex(columns=[quantity.column])[quantity.column].astype(float)
    logs = pd.Series(np.log(values.where(values > 0))).dropna()
    keys = [table.loc[logs.index, name] for name in quantity.key]
    return pd.Series(np.exp(logs.groupby(keys).mean()))


def _cell_name(key: object) -> str:
    """Return the name of a cell, for example ``vgg13-mnist-500``."""
    parts = key if isinstance(key, tuple) else (key,)
    texts = [f"{part:.15g}" if isinstance(part, float) else str(part) for part in parts]
    return "-".join(texts)


def score_table(scores: Sequence[Score]) -> Table:
    """Return a scorecard as a table of text."""
    return laid_out(
        "scorecard",
        "Against every published quantity",
        "A published value agrees if the value of this sweep differs from it by at most the "
        "factor in the column “factor”. Only published values that this sweep also contains "
        "are compared.",
        scores,
        {
            "data mode": "data_mode",
            "quantity": "quantity",
            "agree": lambda score: f"{score.num_agreeing} of {score.num_compared}",
            "compared": lambda score: f"{score.num_compared} of {score.num_published}",
            "factor": lambda score: f"{score.tolerance:g}",
            "median ratio": "median_ratio",
            "apart": _apart,
        },
        numeric_from=2,
    )


def _apart(score: Score) -> str:
    """Return the names of the first cells that do not agree, and how many more there are."""
    text = ", ".join(score.apart[:MAX_NAMED])
    num_others = len(score.apart) - MAX_NAMED
    if num_others > 0:
        text += f" and {num_others} more"
    return text


@dataclass(frozen=True, slots=True)
class Change:
    """The change of one quantity between two sweeps. Each dataset has the same weight.

    Attributes:
        quantity: Column of the quantity.
        num_cells: Number of cells that both sweeps contain.
        num_datasets: Number of datasets to which these cells belong.
        ratio: Value of the second sweep divided by the value of the first sweep. For an
            accuracy, the difference of the two values instead.
        interval: 95 % interval over datasets.
    """

    quantity: str
    num_cells: int
    num_datasets: int
    ratio: float | None
    interval: Interval | None


@dataclass(frozen=True, slots=True)
class SweepComparison:
    """A comparison of two sweeps on the cells that both sweeps contain.

    Attributes:
        first: Name of the first sweep.
        second: Name of the second sweep.
        changes: The change of each quantity.
        num_only_first: Number of cells that only the first sweep contains.
        num_only_second: Number of cells that only the second sweep contains.
        notes: Sentences without a full stop on trials and quantities that were left out.
    """

    first: str
    second: str
    changes: tuple[Change, ...]
    num_only_first: int
    num_only_second: int
    notes: tuple[str, ...] = ()

    def table(self) -> Table:
        """Return the comparison as a table of text."""
        sentences = [
            "The table shows ratios of geometric means, and for accuracies differences of "
            "means. A cell is one combination of model, dataset, class pair and train size. "
            "Means are over the seeds of a cell, then over the cells of a dataset, "
            "then over datasets. The replicates of the 95 % intervals are the datasets.",
            f"{self.num_only_first} cells are only in {self.first}, and {self.num_only_second} "
            f"only in {self.second}.",
        ]
        sentences += [f"{note}." for note in self.notes]
        return laid_out(
            "comparison-of-sweeps",
            f"{self.second} against {self.first}",
            " ".join(sentences),
            self.changes,
            {
                "quantity": "quantity",
                "ratio": "ratio",
                "interval": "interval",
                "datasets": "num_datasets",
                "cells": "num_cells",
            },
        )


COMPARED = (TEST_LOSS, TEST_ACCURACY, D_DATA_MLE, LABEL_SHARPNESS, D_REPR_MLE, D_REPR_TWONN)
"""Columns of the quantities that are compared between two sweeps."""


def compare(
    first: pd.DataFrame, second: pd.DataFrame, *, names: tuple[str, str] = ("first", "second")
) -> SweepComparison:
    """Compare two tables on the cells that both contain: model, dataset, class pair, train size.

    Args:
        first: Results of the first sweep, with one row per trial.
        second: Results of the second sweep, with one row per trial.
        names: Names of the two sweeps.

    Raises:
        DataError: If the tables have no cell in common.
    """
    notes = []
    finished = []
    for name, table in zip(names, (first, second), strict=True):
        rows, excluded = finished_trials(table)
        finished.append(rows)
        notes += [f"Left out of {name}: {exclusion}" for exclusion in excluded]
    quantities = list(COMPARED)
    scales = [_scales_of(rows) for rows in finished]
    if scales[0] != scales[1] and all(scales):
        quantities.remove(LABEL_SHARPNESS)
        scales_by_sweep = []
        for name, sweep_scales in zip(names, scales, strict=True):
            scales_by_sweep.append(f"{' and '.join(sweep_scales)} in {name}")
        notes.append(f"K_F is not compared, because its scale is {listing(scales_by_sweep)}")
    cells_of_first, cells_of_second = (_cells(rows, quantities) for rows in finished)
    shared = cells_of_first.index.intersection(cells_of_second.index).sort_values()
    if len(shared) == 0:
        raise DataError(
            "No combination of model, dataset, class pair and train size is in both sweeps "
            f"({names[0]} has {len(cells_of_first)} combinations, {names[1]} has "
            f"{len(cells_of_second)})",
            hint="Compare sweeps that share models, datasets, class pairs and train sizes",
        )
    changes = []
    for name in quantities:
        if name in cells_of_first and name in cells_of_second:
            differences = cells_of_second.loc[shared, name] - cells_of_first.loc[shared, name]
            changes.append(_change(name, differences.dropna()))
    return SweepComparison(
        first=names[0],
        second=names[1],
        changes=tuple(changes),
        num_only_first=len(cells_of_first) - len(shared),
        num_only_second=len(cells_of_second) - len(shared),
        notes=tuple(notes),
    )


def _scales_of(rows: pd.DataFrame) -> list[str]:
    """Return the names of the recorded scales of K_F."""
    scales = sharpness_scale(rows, "ignore").scales
    return [scale for scale, _ in scales if UNRECORDED not in scale]


def _change(quantity: str, differences: pd.Series) -> Change:
    """Return the mean difference between two sweeps.

    The mean is first over the cells of a dataset, and then over datasets.
    """
    by_dataset: Array = differences.groupby(level=DATASET).mean().to_numpy(dtype=float)
    if len(by_dataset) == 0:
        return Change(quantity, 0, 0, None, None)
    mean, _, interval = mean_interval(by_dataset)
    if quantity != TEST_ACCURACY:
        mean = float(np.exp(mean))
        if interval is not None:
            low, high = interval
            interval = (float(np.exp(low)), float(np.exp(high)))
    return Change(quantity, len(differences), len(by_dataset), mean, interval)


def _cells(table: pd.DataFrame, quantities: Sequence[str]) -> pd.DataFrame:
    """Return the mean over seeds for each cell.

    Columns other than accuracies are averaged as logs.
    """
    columns = [name for name in quantities if name in table]
    rows = split_by_recipe(table.assign(**{CLASS_PAIR: table.get(CLASS_PAIR, "")}))
    compared_by_ratio = [name for name in columns if name != TEST_ACCURACY]
    rows[compared_by_ratio] = np.log(rows[compared_by_ratio].where(rows[compared_by_ratio] > 0))
    return rows.groupby(CELL, dropna=False)[columns].mean()
