"""What a results table must be to be analysed at all; what single numbers cannot be is counted elsewhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from orchestrator.analysis.words import listing, plural
from orchestrator.results import columns as c
from search_spaces.errors import DataError
from tasks.trials.result import TrialStatus

#: MLflow cannot store infinity and keeps 1.797e308 in its place; nothing measured here comes near this bound
#: or its inverse, and products of squares of what lies between them still are numbers.
LARGEST_VALUE = 1e50


def check_table(table: pd.DataFrame) -> None:
    """Refuse a table without its columns, or one that contradicts itself.

    Raises:
        DataError: with what is wrong, in how many rows, and the first of them.
    """
    missing = [name for name in c.REQUIRED if name not in table]
    if missing:
        raise DataError(
            "A results table needs the columns " + ", ".join(c.REQUIRED),
            f"without {', '.join(missing)}",
            "see docs/results-columns.md",
        )
    if not table.columns.is_unique:
        repeated = sorted({str(name) for name in table.columns[table.columns.duplicated()]})
        raise DataError(
            "A results table has every column once", f"{', '.join(repeated)} repeated", "keep one"
        )
    check_values(table)
    twice = table[c.TRIAL_ID][table[c.TRIAL_ID].duplicated()]
    if len(twice):
        raise DataError(
            "A results table has one row per trial",
            f"{len(twice)} repeated, such as {twice.iloc[0]!r}",
            "keep the last attempt of each trial",
        )
    unknown = sorted({str(value) for value in table[c.DOMAIN]} - set(c.DOMAINS))
    if unknown:
        raise DataError(
            "A domain is natural or medical", ", ".join(map(repr, unknown)), "correct the dataset's spec"
        )
    _check_accuracies(table)
    domains = table.groupby(c.DATASET)[c.DOMAIN].nunique()
    if (domains > 1).any():
        raise DataError(
            "A dataset has one domain", f"{domains.idxmax()!r} has two", "correct the dataset's spec"
        )


def check_values(table: pd.DataFrame) -> None:
    """Refuse rows without a name, of a status that is none, or with a part of an image.

    Raises:
        DataError: with what was found.
    """
    for name in (c.TRIAL_ID, c.MODEL, c.DATASET):
        blank = sum(map(_is_blank, table[name])) if name in table else 0
        if blank:
            raise DataError(
                f"Every row of a results table has a {name}", f"{plural(blank, 'row')} without", "name them"
            )
    if c.STATUS in table:
        known = [str(status) for status in TrialStatus]
        unknown = sorted({str(value) for value in table[c.STATUS] if not _is_blank(value)} - set(known))
        if unknown:
            raise DataError(
                f"The status of a trial is {' or '.join(known)}", listing([repr(text) for text in unknown]),
                "correct it, or leave it blank for trials that are done",
            )  # fmt: skip
    if c.TRAIN_SIZE in table:
        _check_sizes(table[c.TRAIN_SIZE])


def _check_sizes(sizes: pd.Series) -> None:
    numbers = pd.to_numeric(sizes, errors="coerce").astype(float)
    partial = np.isfinite(numbers) & (numbers != np.floor(numbers))
    wrong = sizes[partial | truth_values(sizes)]
    if len(wrong):
        raise DataError(
            "A train size is a whole number of images",
            f"{wrong.iloc[0]}, {plural(len(wrong), 'row')} in all",
            "count images in ones",
        )


def truth_values(values: pd.Series) -> pd.Series:
    """Tell True and False, which pandas takes for 1 and 0, from numbers."""
    if values.dtype != object and not pd.api.types.is_bool_dtype(values):
        return pd.Series(False, index=values.index)
    return values.map(lambda value: isinstance(value, (bool, np.bool_))).astype(bool)


def _is_blank(value: Any) -> bool:
    return not value.strip() if isinstance(value, str) else bool(pd.isna(value))


def _check_accuracies(table: pd.DataFrame) -> None:
    if c.TEST_ACCURACY not in table:
        return
    shares = pd.to_numeric(table[c.TEST_ACCURACY], errors="coerce")
    wrong = shares[(shares < 0) | ((shares > 1) & (shares < LARGEST_VALUE))]
    if len(wrong):
        raise DataError(
            "An accuracy is a share from 0 to 1",
            f"{wrong.iloc[0]:g} at trial {table.loc[wrong.index, c.TRIAL_ID].iloc[0]!r}, {len(wrong)} in all",
            "divide percentages by 100",
        )
