"""Checks of a results table, and conversion of its values to numbers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from orchestrator.analysis.number_formats import listing
from orchestrator.results.columns import (
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

LARGEST_VALUE = 1e50
"""Limit above which a stored value means infinity: MLflow stores infinity as 1.797e308. No
measured value is near this limit. The square of the limit is still a finite number."""
DIVERGED = "trials that diverged because their loss was no longer a finite number"
"""Reason for the exclusion of a diverged trial."""
POSITIVE_MEASURES = ("d_data_", "label_sharpness")
"""Prefixes of the column names of measures that are positive by definition."""
MISSING_TEXTS = ("", "nan", "none")
"""Cell texts, in lower case, that mean that the number is missing."""
CELL_COLUMNS = (MODEL, DATASET, CLASS_PAIR, TRAIN_SIZE, SEED, DATA_MODE)
"""Columns that identify a trial if all trials have the same recipe."""
MAX_NAMED = 5
"""Largest number of names that a message lists."""


@dataclass(frozen=True, slots=True)
class Exclusion:
    """The reason for an exclusion, and the number of rows or values that were excluded."""

    reason: str
    count: int

    def __str__(self) -> str:
        """Return the reason and the number as text."""
        return f"{self.reason} ({self.count:,})"


def check_values(table: pd.DataFrame) -> None:
    """Check the names, statuses and train sizes of a results table.

    Raises:
        DataError: If a row has no name, an unknown status or a fractional train size.
    """
    _check_names(table)
    _check_statuses(table)
    _check_train_sizes(table)


def _check_names(table: pd.DataFrame) -> None:
    nameless = [repr(name) for name in table.columns if not isinstance(name, str)]
    if nameless:
        names = ", ".join(nameless[:MAX_NAMED])
        raise DataError(
            f"The results table has columns whose names are not text: {names}",
            hint="Rename these columns",
        )
    for name in (TRIAL_ID, MODEL, DATASET):
        if name not in table:
            continue
        num_blank = sum(map(_is_blank, table[name]))
        if num_blank:
            raise DataError(
                f"The results table has {plural(num_blank, 'row')} without a {name}",
                hint=f"Fill in the {name} of every row",
            )


def _check_statuses(table: pd.DataFrame) -> None:
    known_statuses = [str(status) for status in TrialStatus]
    unknown = set()
    for value in table.get(STATUS, pd.Series(dtype=object)):
        if not _is_blank(value) and str(value) not in known_statuses:
            unknown.add(repr(str(value)))
    if unknown:
        raise DataError(
            f"The results table has the unknown status {listing(sorted(unknown))}",
            hint=f"Write {' or '.join(known_statuses)}, or leave the status blank for trials "
            "that are done",
        )


def _check_train_sizes(table: pd.DataFrame) -> None:
    sizes = table.get(TRAIN_SIZE, pd.Series(dtype=float))
    numbers = pd.to_numeric(sizes, errors="coerce").astype(float)
    is_fraction = np.isfinite(numbers) & (numbers != np.floor(numbers))
    wrong = sizes[is_fraction | _is_boolean(sizes)]
    if len(wrong):
        raise DataError(
            f"In {plural(len(wrong), 'row')} of the results table, the train size is not a "
            f"whole number of images, for example {wrong.iloc[0]}",
            hint="Give train sizes as numbers of images, such as 500",
        )


def _is_boolean(values: pd.Series) -> pd.Series:
    """Return a mask of the values True and False. pandas would treat them as 1 and 0."""
    may_be = values.dtype == object or pd.api.types.is_bool_dtype(values)
    if not may_be:
        return pd.Series(False, index=values.index)
    return values.map(type).isin([bool, np.bool_])


def _is_blank(value: Any) -> bool:
    """Return whether a value is missing, or is a text that contains only spaces."""
    if isinstance(value, str):
        return not value.strip()
    return bool(pd.isna(value))


def normalise(table: pd.DataFrame) -> tuple[pd.DataFrame, tuple[Exclusion, ...]]:
    """Check a table, add its missing columns, and replace stored infinities by NaN.

    Returns:
        The table, sorted by ``trial_id``, and one exclusion for each column and reason that
        makes values unusable.

    Raises:
        DataError: If a required column is missing, or if rows contradict each other.
    """
    _check_columns(table)
    check_values(table)
    _check_trials(table)
    _check_domains(table)
    _check_accuracies(table)
    full, exclusions = _with_numbers(split_by_recipe(table).copy())
    absent = [column.name for column in COLUMNS if column.name not in full]
    full = full.reindex(columns=[*full.columns, *absent])
    texts = [name for name in full.columns if name in TEXT_COLUMNS]
    # Texts are stored as objects, because fits access these columns thousands of times. With a
    # pandas string column, each access would call Arrow.
    filled = full[texts].astype(object).where(full[texts].notna(), "")
    full[texts] = filled.astype(str).astype(object)
    full.loc[full[STATUS] == "", STATUS] = DONE
    return full.sort_values(TRIAL_ID, kind="stable").reset_index(drop=True), exclusions


def _check_columns(table: pd.DataFrame) -> None:
    missing = [name for name in REQUIRED if name not in table]
    if missing:
        raise DataError(
            f"The results table has no column {', '.join(missing)}",
            hint="Add the missing columns. docs/results-columns.md describes them",
        )
    repeated = sorted(set(map(str, table.columns[table.columns.duplicated()])))
    if repeated:
        raise DataError(
            f"In the results table, these column names are repeated: {', '.join(repeated)}",
            hint="Keep one column of each name",
        )


def _check_trials(table: pd.DataFrame) -> None:
    repeated = table[TRIAL_ID][table[TRIAL_ID].duplicated()]
    if len(repeated):
        raise DataError(
            f"The results table has {plural(len(repeated), 'repeated trial id')}, such as "
            f"{repeated.iloc[0]!r}",
            hint="Keep only the row of the last attempt of each trial",
        )


def _check_domains(table: pd.DataFrame) -> None:
    unknown = sorted(set(table[DOMAIN].astype(str)) - set(DOMAINS))
    if unknown:
        raise DataError(
            f"The results table has the unknown domain {', '.join(map(repr, unknown))}",
            hint="Write natural or medical in the column domain",
        )
    num_domains = table.groupby(DATASET)[DOMAIN].nunique()
    if (num_domains > 1).any():
        raise DataError(
            f"The dataset {num_domains.idxmax()!r} has two domains in the results table",
            hint="Write the same domain in all rows of this dataset",
        )


def _check_accuracies(table: pd.DataFrame) -> None:
    unknown = pd.Series(np.nan, table.index)
    shares = pd.to_numeric(table.get(TEST_ACCURACY, unknown), errors="coerce")
    is_wrong = (shares < 0) | ((shares > 1) & (shares < LARGEST_VALUE))
    wrong = shares[is_wrong]
    if len(wrong):
        trial_id = table.loc[wrong.index[0], TRIAL_ID]
        raise DataError(
            f"Trial {trial_id!r} has the accuracy {wrong.iloc[0]:g}, which is not a share "
            f"from 0 to 1 ({plural(len(wrong), 'row')} in all)",
            hint="Divide percentages by 100",
        )


def finished_trials(table: pd.DataFrame) -> tuple[pd.DataFrame, tuple[Exclusion, ...]]:
    """Return the trials that did not diverge, and the exclusions of trials and values."""
    check_values(table)
    statuses = table.get(STATUS, pd.Series("", table.index)).fillna("")
    is_done = statuses.isin([DONE, ""])
    finished, unusable = _with_numbers(table[is_done].copy())
    num_diverged = int((~is_done).sum())
    if not num_diverged:
        return finished, unusable
    return finished, (Exclusion(DIVERGED, num_diverged), *unusable)


def split_by_recipe(table: pd.DataFrame) -> pd.DataFrame:
    """Add recipe settings that vary to model names, as in ``vgg13 (learning_rate=0.0003)``."""
    if RECIPE not in table:
        return table
    changes = [_changes_of(recipe) for recipe in table[RECIPE].fillna("")]
    by_row = pd.Series(changes, index=table.index)
    present = [name for name in CELL_COLUMNS if name in table]
    keys = [table[name].fillna("") for name in present]
    varied: set[str] = set()
    for _, cell in by_row.groupby(keys):
        varied |= _varied(cell)
    if not varied:
        return table
    labels = by_row.map(lambda changes: _label(changes, sorted(varied)))
    return table.assign(**{MODEL: table[MODEL].astype(str) + " (" + labels + ")"})


def _changes_of(recipe: str) -> dict[str, str]:
    """Return the settings in the name of a recipe. The base recipe has the key ``recipe``."""
    changes = {}
    for text in f"recipe={recipe}".split("+"):
        if "=" in text:
            name, value = text.split("=", 1)
            changes[name] = value
    return changes


def _varied(recipes: Iterable[dict[str, str]]) -> set[str]:
    """Return the settings whose values differ between recipes."""
    of_cell = list(recipes)
    names = {name for changes in of_cell for name in changes}
    varied = set()
    for name in names:
        values = {changes.get(name) for changes in of_cell}
        if len(values) > 1:
            varied.add(name)
    return varied


def _label(changes: dict[str, str], names: Iterable[str]) -> str:
    """Return the settings in ``names`` as text, such as ``learning_rate=0.0003``."""
    return ", ".join(f"{name}={changes.get(name, 'as given')}" for name in names)


def _with_numbers(full: pd.DataFrame) -> tuple[pd.DataFrame, tuple[Exclusion, ...]]:
    """Convert measured columns to numbers. Unusable values become NaN and are counted."""
    exclusions = []
    for name in full.columns:
        (column,) = describe([name])
        is_own = column.meaning == "not part of the standard table"
        if name in TEXT_COLUMNS or is_own:
            continue
        values, unusable = _numbers(full[name])
        for kind, is_affected in unusable.items():
            if is_affected.any():
                reason = f"values of {name} that are {kind}"
                exclusions.append(Exclusion(reason, int(is_affected.sum())))
                values = values.mask(is_affected)
        full[name] = values
    return full, tuple(exclusions)


def _numbers(cells: pd.Series) -> tuple[pd.Series, dict[str, NDArray[np.bool_]]]:
    """Return a column as float64, and a mask for each kind of unusable values."""
    name = str(cells.name)
    if isinstance(cells.dtype, np.dtype) and cells.dtype.kind in "fiu":
        values = cells.astype(float)
        is_no_number = np.zeros(len(cells), dtype=bool)
    else:
        values = pd.to_numeric(cells.mask(_is_boolean(cells)), errors="coerce").astype(float)
        is_no_number = (values.isna() & cells.notna()).to_numpy(copy=True)
        texts = cells.to_numpy(dtype=object)[is_no_number]
        is_text = [str(text).strip().lower() not in MISSING_TEXTS for text in texts]
        is_no_number[is_no_number] = is_text
    numbers = values.to_numpy()
    unusable = {
        "not a number": is_no_number,
        "infinite": np.abs(numbers) >= LARGEST_VALUE,
    }
    if name.startswith(POSITIVE_MEASURES) and not name.endswith("_std_error"):
        unusable["not above zero"] = numbers <= 0
        unusable["too close to zero"] = (numbers > 0) & (numbers < 1 / LARGEST_VALUE)
    return values, unusable
