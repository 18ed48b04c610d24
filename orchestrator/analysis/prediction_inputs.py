"""What a pilot says: losses of a few small trainings of one model on one dataset, out of a results table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from orchestrator.analysis.fit_records import POOLED, SharpnessScale
from orchestrator.analysis.laws import UNRECORDED, spell_scale
from orchestrator.analysis.prediction import PilotPoint
from orchestrator.analysis.table import LARGEST_VALUE, check_values, listing, plural
from orchestrator.results import table as c
from search_spaces.errors import ConfigError, unknown_name

_WAY_OUT = "columns train_size and test_loss, as isweep results --csv writes them"
#: What parts columns, with its decimal sign: spreadsheets write semicolons where numbers have commas.
_SEPARATORS = {",": ".", ";": ",", "\t": "."}
_WHOSE = (c.MODEL, c.DATASET)


@dataclass(frozen=True, slots=True)
class Pilot:
    """Losses of small trainings, and what was measured on the largest of their training sets.

    Attributes:
        points: one per train size: the geometric mean over seeds and class pairs, as in the sweep's fit.
        d_data, label_sharpness: at the largest train size that has them; None where nothing has.
        notes: what was left out, with counts.
    """

    points: tuple[PilotPoint, ...]
    d_data: float | None = None
    label_sharpness: float | None = None
    notes: tuple[str, ...] = ()


def is_pilot_table(path: Path) -> bool:
    """Tell a CSV file of results from a table of images: its first line names train_size or test_loss."""
    return path.suffix.lower() == ".csv" and path.is_file() and _separator(path) is not None


def _separator(path: Path) -> str | None:
    """Return what parts the columns of results; None where the first line names neither of the two."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        first = file.readline()
    for separator in _SEPARATORS:
        if {c.TRAIN_SIZE, c.TEST_LOSS} & {name.strip().strip('"') for name in first.split(separator)}:
            return separator
    return None


def read_pilot(path: Path, model: str) -> Pilot:
    """Read a pilot from a CSV file of results.

    Raises:
        ConfigError: when it is none, holds no usable loss, or is of several datasets.
    """
    try:
        separator = _separator(path) or ","
        table = pd.read_csv(path, sep=separator, decimal=_SEPARATORS[separator], skipinitialspace=True)
    except (OSError, ValueError) as error:
        raise ConfigError("A pilot must be a readable CSV file", f"{path}: {error}", _WAY_OUT) from None
    return pilot_of(table, model, where=str(path))


def pilot_of(table: pd.DataFrame, model: str, *, where: str) -> Pilot:
    """Take a pilot out of a results table.

    Args:
        table: one row per training.
        model: the model that the prediction is for; trainings of others are left out. ``pooled`` takes one
            model's, if the table holds no other's.
        where: what messages call the table.

    Raises:
        ConfigError: where nothing usable is left, or what is left is of several models or datasets.
        DataError: if a name is blank, a status unknown, or a train size no whole number.
    """
    missing = [name for name in (c.TRAIN_SIZE, c.TEST_LOSS) if name not in table]
    if missing:
        raise ConfigError("A pilot must have its columns", f"{where} lacks {listing(missing)}", _WAY_OUT)
    check_values(table)
    rows, notes = _of_model(table, model, where)
    for name in _WHOSE:
        if name in rows and rows[name].nunique() > 1:
            found = listing(sorted(map(str, rows[name].unique())))
            raise ConfigError(f"A pilot must be of one {name}", f"{where} has {found}", "keep one of them")
    size, loss = (pd.to_numeric(rows[name], errors="coerce") for name in (c.TRAIN_SIZE, c.TEST_LOSS))
    rows = rows.assign(**{c.TRAIN_SIZE: size})
    usable = (size > 0) & (loss > 0) & (loss < LARGEST_VALUE)
    if c.STATUS in rows:
        usable &= rows[c.STATUS].fillna(c.DONE).isin([c.DONE, ""])
    if not usable.any():
        raise ConfigError("A pilot must hold a finite loss above 0", f"{where} has none", "train it longer")
    if not usable.all():
        lost = plural(int((~usable).sum()), "training")
        notes.append(f"{lost} of the pilot without a usable train size and loss left out")
    means = np.exp(np.log(loss[usable]).groupby(size[usable]).mean())
    rows = rows[usable]
    return Pilot(
        points=tuple(PilotPoint(float(n), float(value)) for n, value in means.items()),
        d_data=_at_largest(rows, c.D_DATA_MLE),
        label_sharpness=_at_largest(rows, c.LABEL_SHARPNESS),
        notes=tuple(notes),
    )


def _of_model(table: pd.DataFrame, model: str, where: str) -> tuple[pd.DataFrame, list[str]]:
    if c.MODEL not in table or model == POOLED:
        return table, []
    rows = table[table[c.MODEL] == model]
    if rows.empty:
        raise unknown_name(f"model of the pilot {where}", model, sorted(map(str, table[c.MODEL].unique())))
    others = len(table) - len(rows)
    return rows, [f"{plural(others, 'training')} of other models in the pilot left out"] if others else []


def _at_largest(rows: pd.DataFrame, name: str) -> float | None:
    """Mean over class pairs of a measure at the largest train size that has it."""
    if name not in rows:
        return None
    values = pd.to_numeric(rows[name], errors="coerce")
    known = rows.assign(**{name: values})[(values > 0) & (values < LARGEST_VALUE)]
    if known.empty:
        return None
    return float(known.loc[known[c.TRAIN_SIZE] == known[c.TRAIN_SIZE].max(), name].mean())


# The two numbers that a prediction needs, out of a record that ``isweep measure --json`` wrote.

_MEASURED_VALUES_WAY_OUT = "write one with: isweep measure SOURCE --json > record.json"


def read_record(path: Path) -> dict[str, Any]:
    """Read the JSON that ``isweep measure --json`` wrote.

    Raises:
        ConfigError: when the file is none.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(
            "A measured record must be a readable JSON file", f"{path}: {error}", _MEASURED_VALUES_WAY_OUT
        ) from None
    if not isinstance(record, dict) or "d_data" not in record:
        raise ConfigError("A measured record must hold d_data", str(path), _MEASURED_VALUES_WAY_OUT)
    return record


def values_of(record: Mapping[str, Any]) -> dict[str, float]:
    """Return ``d_data`` (maximum likelihood) and ``label_sharpness`` of a record, as far as it has them."""
    dimension = record.get("d_data")
    values = {
        "d_data": dimension.get("mle") if isinstance(dimension, Mapping) else dimension,
        "label_sharpness": record.get("label_sharpness"),
    }
    plain = {name: v.get("value") if isinstance(v, Mapping) else v for name, v in values.items()}
    # A boolean passes for an integer, and whole numbers of JSON have no largest one.
    return {
        name: float(v)
        for name, v in plain.items()
        if isinstance(v, (int, float)) and not isinstance(v, bool) and abs(v) < LARGEST_VALUE
    }


def check_scale(record: Mapping[str, Any], scale: SharpnessScale) -> None:
    """Refuse a K_F that was measured on another scale than those of a sweep, where both say theirs.

    Args:
        record: what ``isweep measure --json`` wrote.
        scale: of the sweep's fits; with several scales in one sweep that is its fits' matter.

    Raises:
        ConfigError: with both scales.
    """
    sharpness = record.get("label_sharpness")
    if not isinstance(sharpness, Mapping) or len(scale.scales) != 1:
        return
    theirs = scale.scales[0][0]
    try:
        (low, high), (height, width) = sharpness["pixel_range"], sharpness["side"]
        ours = spell_scale((high - low, np.sqrt(height * width), sharpness["channels"]))
    except (KeyError, TypeError, ValueError):
        return
    if UNRECORDED not in ours + theirs and ours != theirs:
        raise ConfigError(
            "K_F must be measured on the sweep's scale",
            f"{ours} beside the sweep's {theirs}",
            "measure at the sweep's side (--image-size), channels (--channels) and pixel range",
        )
