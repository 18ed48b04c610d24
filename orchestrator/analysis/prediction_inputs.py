"""What a prediction starts from: a pilot's losses, and the two numbers of a measured record."""

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

from orchestrator.analysis import table as t
from orchestrator.results import columns as c
from search_spaces.errors import ConfigError, unknown_name

_HINT = "columns train_size and test_loss, as isweep results --csv writes them"
_MEASURED_HINT = "write one with: isweep measure SOURCE --json > record.json"


@dataclass(frozen=True, slots=True)
class PilotPoint:
    """A small training on the user's own data: its train size (images) and test loss (nat)."""

    train_size: float
    test_loss: float


@dataclass(frozen=True, slots=True)
class Pilot:
    """Mean losses by train size, d_data and K_F at the largest that has them, and what was left
    out.
    """

    points: tuple[PilotPoint, ...]
    d_data: float | None = None
    label_sharpness: float | None = None
    notes: tuple[str, ...] = ()


def is_pilot_table(path: Path) -> bool:
    """Tell a CSV file of results from a table of images: its first line names train_size or
    test_loss.
    """
    if path.suffix.lower() != ".csv" or not path.is_file():
        return False
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        names = re.split("[,;\t]", file.readline().strip())
    return not {c.TRAIN_SIZE, c.TEST_LOSS}.isdisjoint(name.strip(' "') for name in names)


def read_separated(path: Path) -> pd.DataFrame:
    """Read a table with commas, tabs, or a spreadsheet's semicolons and 0,5.

    Raises:
        OSError: If the file cannot be opened.
        ValueError: If it is no table, or not in UTF-8.
    """
    with path.open(encoding="utf-8-sig") as file:
        separator = max(",;\t", key=file.readline().count)
    decimal = "," if separator == ";" else "."
    return pd.read_csv(path, sep=separator, decimal=decimal, skipinitialspace=True)


def read_pilot(path: Path, model: str) -> Pilot:
    """Read a pilot from a CSV file of results, with commas, tabs or a spreadsheet's semicolons and
    0,5.
    """
    try:
        table = read_separated(path)
    except (OSError, ValueError) as error:
        raise ConfigError(
            "A pilot must be a readable CSV file", f"{path}: {error}", _HINT
        ) from None
    return pilot_of(table, model, where=str(path))


def pilot_of(table: pd.DataFrame, model: str, *, where: str) -> Pilot:
    """Take a pilot of the predicted model (``pooled``: of the only one) out of a results table
    called ``where``. ConfigError, or DataError, where that is none, or of several models or
    datasets.
    """
    missing = [name for name in (c.TRAIN_SIZE, c.TEST_LOSS) if name not in table]
    if missing:
        raise ConfigError(
            "A pilot must have its columns", f"{where} lacks {t.listing(missing)}", _HINT
        )
    t.check_values(table)
    rows, notes = table, []
    if c.MODEL in table and model != t.POOLED:
        rows = table[table[c.MODEL] == model]
        if rows.empty:
            known = sorted(map(str, table[c.MODEL].unique()))
            raise unknown_name(f"model of the pilot {where}", model, known)
        if others := len(table) - len(rows):
            notes.append(f"{t.plural(others, 'training')} of other models in the pilot left out")
    for name in (c.MODEL, c.DATASET):
        if name in rows and rows[name].nunique() > 1:
            found = t.listing(sorted(map(str, rows[name].unique())))
            raise ConfigError(
                f"A pilot must be of one {name}", f"{where} has {found}", "keep one of them"
            )
    num, (rows, _) = len(rows), t.finished_trials(rows)
    rows = rows[(rows[c.TRAIN_SIZE] > 0) & (rows[c.TEST_LOSS] > 0)]
    if rows.empty:
        raise ConfigError(
            "A pilot must hold a finite loss above 0", f"{where} has none", "train it longer"
        )
    if lost := num - len(rows):
        what = "of the pilot without a usable train size and loss left out"
        notes.append(f"{t.plural(lost, 'training')} {what}")
    means = np.exp(np.log(rows[c.TEST_LOSS]).groupby(rows[c.TRAIN_SIZE]).mean())
    return Pilot(
        points=tuple(PilotPoint(float(n), float(value)) for n, value in means.items()),
        d_data=_at_largest(rows, c.D_DATA_MLE),
        label_sharpness=_at_largest(rows, c.LABEL_SHARPNESS),
        notes=tuple(notes),
    )


def _at_largest(rows: pd.DataFrame, name: str) -> float | None:
    """Mean over class pairs of a measure at the largest train size that has it."""
    known = rows[rows.get(name, pd.Series(np.nan, rows.index)).notna()]
    last = known[known[c.TRAIN_SIZE] == known[c.TRAIN_SIZE].max()]
    return None if last.empty else float(last[name].mean())


def read_record(path: Path) -> dict[str, Any]:
    """Read the JSON that ``isweep measure --json`` wrote."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        rule = "A measured record must be a readable JSON file"
        why = error.strerror if isinstance(error, OSError) else error
        named = "" if path.suffix else f"; a sweep is named so: sweep='{path}'"
        raise ConfigError(rule, f"{path}: {why}", _MEASURED_HINT + named) from None
    if not isinstance(record, dict) or "d_data" not in record:
        raise ConfigError("A measured record must hold d_data", str(path), _MEASURED_HINT)
    return record


def values_of(record: Mapping[str, Any]) -> dict[str, float]:
    """Return ``d_data`` (maximum likelihood) and ``label_sharpness`` of a record, as far as it has
    them.
    """
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
        if isinstance(v, (int, float)) and not isinstance(v, bool) and abs(v) < t.LARGEST_VALUE
    }


def check_scale(record: Mapping[str, Any], scale: t.SharpnessScale) -> None:
    """Refuse a K_F on another scale than a sweep's one, or on none that is recorded; plain numbers
    pass.
    """
    sharpness = record.get("label_sharpness")
    if not isinstance(sharpness, Mapping) or len(scale.scales) != 1:
        return
    theirs = scale.scales[0][0]
    try:
        (low, high), (height, width) = sharpness["pixel_range"], sharpness["side"]
        ours = t.spell_scale((high - low, np.sqrt(height * width), sharpness["channels"]))
    except (KeyError, TypeError, ValueError):
        ours = f"{t.UNRECORDED} scale"
    if t.UNRECORDED not in theirs and ours != theirs:
        found = f"{ours} beside the sweep's {theirs}"
        (side, channels), as_json = re.findall(r"(?:^|, )(\d+)", theirs)[:2], "--json > record.json"
        hint = (
            f"isweep measure SOURCE --image-size {side} --channels {channels} {as_json} is "
            "on its scale"
        )
        raise ConfigError("K_F must be measured on the sweep's scale", found, hint)


def check_numbers(
    d_data: float,
    label_sharpness: float,
    train_size: float | None,
    target_loss: float | None,
    pilot: Sequence[PilotPoint],
) -> None:
    """Refuse a question that is none, and numbers that cannot be."""
    if (train_size is None) == (target_loss is None):
        found = "neither" if train_size is None else "both"
        rule = "A prediction needs either a train size or a target loss"
        raise ConfigError(rule, found, "give exactly one of them")
    least, most, measured = 1 / t.LARGEST_VALUE, t.LARGEST_VALUE, "measure the dataset first"
    asked: list[tuple[str, Any, str]] = [
        ("d_data", d_data, measured),
        ("label_sharpness", label_sharpness, measured),
        *(("pilot train size", point.train_size, "give what was trained") for point in pilot),
        *(
            ("pilot loss", point.test_loss, "give the test loss of a finished training")
            for point in pilot
        ),
    ]
    if target_loss is None:
        asked.append(("train_size", train_size, "give a number of images, e.g. 1000"))
    else:
        asked.append(("target_loss", target_loss, "give a test loss in nat, e.g. 0.3"))
    for name, given, hint in asked:
        is_number = isinstance(given, Real) and not isinstance(given, (bool, np.bool_))
        if not is_number or not least < given < most:
            rule = f"{name} must be a number between {least:g} and {most:g}"
            raise ConfigError(rule, repr(given), hint)
        if name.endswith("size") and given % 1:
            raise ConfigError(f"{name} must be a whole number of images", repr(given), "round it")
