"""Checks of a results table that may come from anybody, and its values made numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from orchestrator.analysis.number_formats import listing
from orchestrator.results.table import (
    CLASS_PAIR,
    COLUMNS,
    DATA_MODE,
    DATASET,
    DOMAIN,
    DOMAINS,
    DONE,
    MODEL,
    RECIPE,
    REQUIRED,
    SEED,
    STATUS,
    TEST_ACCURACY,
    TEXT_COLUMNS,
    TRAIN_SIZE,
    TRIAL_ID,
    describe,
)
from search_spaces.errors import DataError, plural
from tasks.trials.records import TrialStatus

#: MLflow keeps 1.797e308 for infinity; nothing measured comes near this bound, whose square is a
#: number.
LARGEST_VALUE = 1e50
DIVERGED = "diverged (loss stopped being a finite number)"
#: Measures that are positive by what they mean, and texts that stand for a missing number.
_ABOVE_ZERO, _MISSING = ("d_data_", "label_sharpness"), ("", "nan", "none")


@dataclass(frozen=True, slots=True)
class Exclusion:
    """How many rows (or stored values) were left out, and why."""

    reason: str
    count: int

    def __str__(self) -> str:
        """Say it in a line."""
        return f"{self.reason}: {self.count:,}"


def check_values(table: pd.DataFrame) -> None:
    """Refuse rows without a name, of a status that is none, or with a part of an image."""
    nameless = [repr(name) for name in table.columns if not isinstance(name, str)]
    _refuse("The columns of a results table have names", ", ".join(nameless[:5]), "name them")
    for name in (TRIAL_ID, MODEL, DATASET):
        blank = sum(map(_is_blank, table[name])) if name in table else 0
        found = f"{plural(blank, 'row')} without" if blank else ""
        _refuse(f"Every row of a results table has a {name}", found, "name them")
    known = [str(status) for status in TrialStatus]
    said = table.get(STATUS, pd.Series(dtype=object))
    unknown = sorted({str(value) for value in said if not _is_blank(value)} - set(known))
    way_out = "correct it, or leave it blank for trials that are done"
    _refuse(
        f"The status of a trial is {' or '.join(known)}", listing([*map(repr, unknown)]), way_out
    )
    sizes = table.get(TRAIN_SIZE, pd.Series(dtype=float))
    numbers = pd.to_numeric(sizes, errors="coerce").astype(float)
    wrong = sizes[(np.isfinite(numbers) & (numbers != np.floor(numbers))) | _truth_values(sizes)]
    found = f"{wrong.iloc[0]}, {plural(len(wrong), 'row')} in all" if len(wrong) else ""
    _refuse("A train size is a whole number of images", found, "count images in ones")


def normalise(table: pd.DataFrame) -> tuple[pd.DataFrame, tuple[Exclusion, ...]]:
    """Check the table, add columns it lacks, and make stored infinities missing; return it sorted
    by ``trial_id``, and the number of unusable values per column.
    """
    missing = [name for name in REQUIRED if name not in table]
    rule, found = f"A results table needs the columns {', '.join(REQUIRED)}", ", ".join(missing)
    _refuse(rule, f"without {found}" if found else "", "see docs/results-columns.md")
    repeated = sorted({str(name) for name in table.columns[table.columns.duplicated()]})
    found = f"{', '.join(repeated)} repeated" if repeated else ""
    _refuse("A results table has every column once", found, "keep one")
    check_values(table)
    twice = table[TRIAL_ID][table[TRIAL_ID].duplicated()]
    found = f"{len(twice)} repeated, such as {twice.iloc[0]!r}" if len(twice) else ""
    _refuse("A results table has one row per trial", found, "keep the last attempt of each trial")
    unknown = sorted({str(value) for value in table[DOMAIN]} - set(DOMAINS))
    _refuse(
        "A domain is natural or medical",
        ", ".join(map(repr, unknown)),
        "correct the dataset's spec",
    )
    shares = pd.to_numeric(
        table.get(TEST_ACCURACY, pd.Series(np.nan, table.index)), errors="coerce"
    )
    wrong = shares[(shares < 0) | ((shares > 1) & (shares < LARGEST_VALUE))]
    first = table.loc[wrong.index, TRIAL_ID].head(1).to_list()
    found = f"{wrong.iloc[0]:g} at trial {first[0]!r}, {len(wrong)} in all" if first else ""
    _refuse("An accuracy is a share from 0 to 1", found, "divide percentages by 100")
    domains = table.groupby(DATASET)[DOMAIN].nunique()
    found = f"{domains.idxmax()!r} has two" if (domains > 1).any() else ""
    _refuse("A dataset has one domain", found, "correct the dataset's spec")
    full, exclusions = _with_numbers(split_by_recipe(table).copy())
    absent = {n.name: "" if n.kind == "text" else np.nan for n in COLUMNS if n.name not in full}
    full = full.assign(**absent)
    texts = [name for name in full.columns if name in TEXT_COLUMNS]
    # As objects: a look at one of pandas' own string columns is a call into Arrow, and fits take
    # thousands.
    full[texts] = (
        full[texts].astype(object).where(full[texts].notna(), "").astype(str).astype(object)
    )
    full.loc[full[STATUS] == "", STATUS] = DONE
    return full.sort_values(TRIAL_ID, kind="stable").reset_index(drop=True), exclusions


def finished_trials(table: pd.DataFrame) -> tuple[pd.DataFrame, tuple[Exclusion, ...]]:
    """Return the trials that did not diverge, and how many trials and unusable values that left
    out.
    """
    check_values(table)
    done = table.get(STATUS, pd.Series("", table.index)).fillna("").isin([DONE, ""])
    kept, unusable = _with_numbers(table[done].copy())
    diverged = int((~done).sum())
    return kept, (*([Exclusion(DIVERGED, diverged)] if diverged else []), *unusable)


def split_by_recipe(table: pd.DataFrame) -> pd.DataFrame:
    """Tell models apart by what their recipes vary within one cell, ``vgg13
    (learning_rate=0.0003)``.
    """
    if RECIPE not in table:
        return table
    texts = [f"recipe={text}".split("+") for text in table[RECIPE].fillna("")]
    changes = [dict(change.split("=", 1) for change in text if "=" in change) for text in texts]
    parts = pd.Series(changes, index=table.index)
    keys = [n for n in (MODEL, DATASET, CLASS_PAIR, TRAIN_SIZE, SEED, DATA_MODE) if n in table]
    axes = set()
    for _, cell in parts.groupby([table[key].fillna("") for key in keys]):
        names = {name for changes in cell for name in changes}
        axes |= {name for name in names if len({changes.get(name) for changes in cell}) > 1}
    if not axes:
        return table
    labels = parts.map(
        lambda own: ", ".join(f"{name}={own.get(name, 'as given')}" for name in sorted(axes))
    )
    return table.assign(**{MODEL: table[MODEL].astype(str) + " (" + labels + ")"})


def _with_numbers(full: pd.DataFrame) -> tuple[pd.DataFrame, tuple[Exclusion, ...]]:
    """Make every measured column one of numbers, and what is none or stands for none missing and
    counted.
    """
    exclusions = []
    measured = [n for n in full.columns if n not in TEXT_COLUMNS]
    for name in [
        n for n in measured if describe([n])[0].meaning != "not part of the standard table"
    ]:
        values = pd.to_numeric(full[name].mask(_truth_values(full[name])), errors="coerce").astype(
            float
        )
        lost = (values.isna() & full[name].notna()).to_numpy(copy=True)
        lost[lost] = [
            str(v).strip().lower() not in _MISSING for v in full[name].to_numpy(dtype=object)[lost]
        ]
        unusable = {
            "not a number": pd.Series(lost, index=values.index),
            "stored infinity": values.abs() >= LARGEST_VALUE,
        }
        if name.startswith(_ABOVE_ZERO) and not name.endswith("_std_error"):
            unusable["not above zero"] = values <= 0
            unusable["next to zero"] = (values > 0) & (values < 1 / LARGEST_VALUE)
        for what, affected in unusable.items():
            if affected.any():
                exclusions.append(
                    Exclusion(f"{name}: {what}, treated as missing", int(affected.sum()))
                )
            values = values.mask(affected)
        full[name] = values
    return full, tuple(exclusions)


def _refuse(rule: str, found: str, way_out: str) -> None:
    """Raise what breaks a rule, if something was found."""
    if found:
        raise DataError(rule, found, way_out)


def _truth_values(values: pd.Series) -> pd.Series:
    """Tell True and False, which pandas takes for 1 and 0, from numbers."""
    if values.dtype != object and not pd.api.types.is_bool_dtype(values):
        return pd.Series(False, index=values.index)
    return values.map(lambda value: isinstance(value, (bool, np.bool_))).astype(bool)


def _is_blank(value: Any) -> bool:
    return not value.strip() if isinstance(value, str) else bool(pd.isna(value))
