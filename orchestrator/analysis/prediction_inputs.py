"""Inputs of a prediction: the losses of a pilot, and d_data and K_F from a record."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from orchestrator.analysis.number_formats import listing
from orchestrator.analysis.results_tables.checks import LARGEST_VALUE, check_values, finished_trials
from orchestrator.analysis.results_tables.points import POOLED
from orchestrator.analysis.results_tables.sharpness_scale import (
    UNRECORDED,
    SharpnessScale,
    spell_scale,
)
from orchestrator.results.columns import (
    D_DATA_MLE,
    DATASET,
    LABEL_SHARPNESS,
    MODEL,
    TEST_LOSS,
    TRAIN_SIZE,
)
from search_spaces.errors import ConfigError, plural, unknown_name

PILOT_HINT = (
    "Give a CSV file with the columns `train_size` and `test_loss`, for example a file that "
    "`isweep results --csv` wrote"
)
TABLE_SUFFIXES = (".csv", ".tsv")
"""File extensions of tables. A file with such an extension is not a record of a
measurement."""
RECORD_HINT = "Write a record with `isweep measure SOURCE --json > record.json`"


@dataclass(frozen=True, slots=True)
class PilotPoint:
    """One training of a pilot, with its train size (number of images) and its test loss (nat)."""

    train_size: float
    test_loss: float


@dataclass(frozen=True, slots=True)
class Pilot:
    """A pilot: trainings with few images of the new dataset.

    Attributes:
        points: One point per train size, with the mean loss, sorted by train size.
        d_data, label_sharpness: d_data and K_F at the largest train size at which they were
            measured.
        notes: Notes on the trainings that were left out. They do not end with a full stop.
        d_data_size: Train size at which d_data was measured; None if it is unknown.
    """

    points: tuple[PilotPoint, ...]
    d_data: float | None = None
    label_sharpness: float | None = None
    notes: tuple[str, ...] = ()
    d_data_size: float | None = None

    def measures_suit(self, largest_size: float) -> bool:
        """Return whether d_data was measured at half the sweep's largest train size or more.

        Estimates of d increase with N. With an estimate from far fewer images, the predicted
        loss would fall too steeply with N.

        Args:
            largest_size: Largest N of the sweep. The sweep's d_data is measured at this N.
        """
        return self.d_data_size is None or self.d_data_size >= largest_size / 2


def is_pilot_table(path: Path) -> bool:
    """Return whether a file is a CSV file with a column ``train_size`` or ``test_loss``."""
    if path.suffix.lower() != ".csv" or not path.is_file():
        return False
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        names = re.split("[,;\t]", file.readline().strip())
    return not {TRAIN_SIZE, TEST_LOSS}.isdisjoint(name.strip(' "') for name in names)


def separator_of(path: Path) -> str:
    """Return the separator of a CSV file: a comma, a semicolon or a tab.

    Raises:
        OSError: If the file cannot be opened.
        UnicodeDecodeError: If the file is not in UTF-8.
    """
    with path.open(encoding="utf-8-sig") as file:
        return max(",;\t", key=file.readline().count)


def read_separated(path: Path) -> pd.DataFrame:
    """Read a table whose cells are separated by commas, tabs or semicolons.

    If cells are separated by semicolons, numbers may have decimal commas (0,5).

    Raises:
        OSError: If the file cannot be opened.
        ValueError: If the file is not a table, or is not in UTF-8.
    """
    separator = separator_of(path)
    decimal = "," if separator == ";" else "."
    return pd.read_csv(path, sep=separator, decimal=decimal, skipinitialspace=True)


def read_pilot(path: Path, model: str) -> Pilot:
    """Read a pilot from a CSV file of results. Commas, tabs or semicolons separate its cells.

    Raises:
        ConfigError: If the file cannot be read, or has no usable training of this model.
    """
    try:
        table = read_separated(path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(
            f"The pilot {path} cannot be read as a CSV file: {reason}", hint=PILOT_HINT
        ) from None
    return pilot_of(table, model, where=str(path))


def pilot_of(table: pd.DataFrame, model: str, *, where: str) -> Pilot:
    """Return the pilot of a model in a results table.

    Args:
        table: One row per training.
        model: Name of the model for which losses are predicted. If it is ``pooled``, the table
            must contain only one model.
        where: Name of the table in error messages.

    Raises:
        ConfigError: If columns or the model are missing, if the pilot has several models or
            datasets, or if it has no finite loss above 0.
        DataError: If a value of the table is not valid.
    """
    missing = [name for name in (TRAIN_SIZE, TEST_LOSS) if name not in table]
    if missing:
        raise ConfigError(
            f"The pilot {where} lacks {plural(len(missing), 'column')}: {listing(missing)}",
            hint=PILOT_HINT,
        )
    check_values(table)
    rows, notes = table, []
    if MODEL in table and model != POOLED:
        rows = table[table[MODEL] == model]
        if rows.empty:
            models = sorted(map(str, table[MODEL].unique()))
            raise unknown_name("model", model, models, of=f"the pilot {where}")
        num_others = len(table) - len(rows)
        if num_others:
            notes.append(f"Left out of the pilot: {plural(num_others, 'training')} of other models")
    for name in (MODEL, DATASET):
        if name in rows and rows[name].nunique() > 1:
            values = listing(sorted(map(str, rows[name].unique())))
            raise ConfigError(
                f"The pilot {where} has more than one {name}: {values}",
                hint=f"Keep only the rows of one {name}",
            )
    num_rows = len(rows)
    rows, _ = finished_trials(rows)
    rows = rows[(rows[TRAIN_SIZE] > 0) & (rows[TEST_LOSS] > 0)]
    if rows.empty:
        raise ConfigError(
            f"The pilot {where} has no training with a finite loss above 0",
            hint="Check the column test_loss. If trainings diverged, train again with a "
            "smaller learning rate",
        )
    num_lost = num_rows - len(rows)
    if num_lost:
        lost = plural(num_lost, "training")
        notes.append(f"Left out of the pilot: {lost} without a usable train size and loss")
    means = np.exp(np.log(rows[TEST_LOSS]).groupby(rows[TRAIN_SIZE]).mean())
    return Pilot(
        points=tuple(PilotPoint(float(size), float(loss)) for size, loss in means.items()),
        d_data=_at_largest_size(rows, D_DATA_MLE),
        label_sharpness=_at_largest_size(rows, LABEL_SHARPNESS),
        notes=tuple(notes),
        d_data_size=_largest_size(rows, D_DATA_MLE),
    )


def _largest_size(rows: pd.DataFrame, name: str) -> float | None:
    """Return the largest train size with a value in column ``name``; None if there is no value."""
    if name not in rows or rows[name].isna().all():
        return None
    return float(rows.loc[rows[name].notna(), TRAIN_SIZE].max())


def _at_largest_size(rows: pd.DataFrame, name: str) -> float | None:
    """Return the mean of column ``name`` at the largest train size with a value."""
    size = _largest_size(rows, name)
    if size is None:
        return None
    return float(rows.loc[rows[TRAIN_SIZE] == size, name].mean())


def read_record(path: Path) -> dict[str, Any]:
    """Read a record from a JSON file written by ``isweep measure --json``.

    Raises:
        ConfigError: If the file cannot be read, or has no d_data.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        hint = RECORD_HINT
        if not path.suffix:
            hint = f"{RECORD_HINT}. If {path} is a sweep, write sweep='{path}'"
        if path.suffix.lower() in TABLE_SUFFIXES and isinstance(error, ValueError):
            raise ConfigError(
                f"{path} is a table, not the record of a measurement",
                hint="If the columns of the table are train sizes and scores, use `isweep predict "
                f"--curve {path}` (in Python: isweep.learning_curves('{path}')). {RECORD_HINT}",
            ) from None
        raise ConfigError(f"The record {path} cannot be read: {reason}", hint=hint) from None
    if not isinstance(record, dict) or "d_data" not in record:
        raise ConfigError(f"The record {path} has no d_data", hint=RECORD_HINT)
    return record


def values_of(record: Mapping[str, Any]) -> dict[str, float]:
    """Return the usable values of ``d_data`` (maximum likelihood) and ``label_sharpness``."""
    d_data = record.get("d_data")
    sharpness = record.get("label_sharpness")
    numbers = {
        "d_data": d_data.get("mle") if isinstance(d_data, Mapping) else d_data,
        "label_sharpness": sharpness,
    }
    values = {}
    for name, number in numbers.items():
        if isinstance(number, Mapping):
            number = number.get("value")
        # In Python, a boolean is also an integer. An integer in JSON can be larger than any
        # float.
        if not isinstance(number, (int, float)) or isinstance(number, bool):
            continue
        if abs(number) < LARGEST_VALUE:
            values[name] = float(number)
    return values


def check_scale(record: Mapping[str, Any], scale: SharpnessScale) -> None:
    """Check that the K_F of a record has the same scale as the K_F of a sweep.

    Nothing is checked if the record contains K_F without a scale, if the sweep has several
    scales, or if the scale of the sweep is unknown.

    Raises:
        ConfigError: If the scales differ.
    """
    sharpness = record.get("label_sharpness")
    if not isinstance(sharpness, Mapping) or len(scale.scales) != 1:
        return
    of_sweep = scale.scales[0][0]
    try:
        low, high = sharpness["pixel_range"]
        height, width = sharpness["side"]
        of_record = spell_scale((high - low, np.sqrt(height * width), sharpness["channels"]))
    except (KeyError, TypeError, ValueError):
        of_record = f"{UNRECORDED} scale"
    if UNRECORDED in of_sweep or of_record == of_sweep:
        return
    side, channels = re.findall(r"(?:^|, )(\d+)", of_sweep)[:2]
    raise ConfigError(
        f"K_F of the record has another scale ({of_record}) than K_F of the sweep ({of_sweep})",
        hint=f"Measure again with `isweep measure SOURCE --image-size {side} --channels {channels} "
        "--json > record.json`",
    )


def check_numbers(
    d_data: float | None,
    label_sharpness: float | None,
    train_size: float | None,
    target_loss: float | None,
    pilot: Sequence[PilotPoint],
) -> None:
    """Check the inputs of a prediction. d_data and K_F may be None.

    Raises:
        ConfigError: If there is not exactly one of train size and target loss, or if a number
            is out of range.
    """
    if (train_size is None) == (target_loss is None):
        problem = "The prediction has both a train size and a target loss"
        if train_size is None:
            problem = "The prediction has neither a train size nor a target loss"
        raise ConfigError(problem, hint="Give either a train size or a target loss")
    for name, measure in (("d_data", d_data), ("label_sharpness", label_sharpness)):
        if measure is not None:
            _check_number(name, measure, "Measure the dataset with `isweep measure SOURCE`")
    for point in pilot:
        hint = "Give the number of training images"
        _check_number("pilot train size", point.train_size, hint)
        hint = "Give the test loss of a finished training"
        _check_number("pilot loss", point.test_loss, hint)
    if target_loss is None:
        _check_number("train_size", train_size, "Give a number of images, such as 1000")
    else:
        _check_number("target_loss", target_loss, "Give a test loss in nat, such as 0.3")


def _check_number(name: str, value: Any, hint: str) -> None:
    """Check that a value is a number in its range. A train size must also be a whole number."""
    least, most = 1 / LARGEST_VALUE, LARGEST_VALUE
    is_number = isinstance(value, Real) and not isinstance(value, (bool, np.bool_))
    if not is_number or not least < value < most:
        raise ConfigError(
            f"{name} is {value!r}, which is not a number between {least:g} and {most:g}", hint=hint
        )
    if name.endswith("size") and value % 1:
        raise ConfigError(
            f"{name} is {value!r}, which is not a whole number of images", hint=f"Round {name}"
        )
