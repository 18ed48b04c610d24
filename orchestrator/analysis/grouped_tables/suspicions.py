"""Warnings on suspicious values of a table: missing-value codes, sums and misspelled names.

A fit nevertheless uses the rows with such values.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import pandas as pd

from orchestrator.analysis.grouped_tables.design import Design
from orchestrator.analysis.number_formats import listing
from search_spaces.errors import plural

_NINES = (999.0, 9_999.0, 99_999.0, 999_999.0)
MISSING_CODES = (
    *(-1.0, -9.0, -8.0, -88.0, -99.0, -99.9, 99.0),
    *(-32768.0, 65535.0),
    *(9.96921e36, 1e20),
    *_NINES,
    *(-nines for nines in _NINES),
)
"""Numbers that often mean a missing value: survey codes, integer limits, netCDF's fill
values."""
SUMMARY_WORDS = frozenset(
    {
        *("all", "average", "avg", "gesamt", "mean", "median"),
        *("overall", "pooled", "subtotal", "sum", "total"),
    }
)
"""Words that mark a row as the sum or mean of other rows."""
MAX_SHOWN = 6
"""Largest number of spellings that a message lists."""
_WORD = re.compile(r"[^\W_]+")
"""A word of letters and digits: "s2all" is one word and does not contain the word "all"."""


def suspicions(rows: pd.DataFrame, design: Design) -> Iterator[str]:
    """Yield warnings on codes for missing values, rows of sums or means, and similar names."""
    for name in design.numeric:
        yield from _missing_codes(rows[name])
    for name in design.labels:
        yield from _summary_rows(rows[name])
        yield from _equal_but_for_spelling(rows[name])


def row_numbers(mask: pd.Series) -> str:
    """Return the numbers of the first three marked rows. Row 1 is the row below the header."""
    numbers = np.flatnonzero(mask) + 1
    texts = [str(number) for number in numbers[:3]]
    if len(numbers) > 3:
        texts.append("…")
    noun = "row" if len(numbers) == 1 else "rows"
    return f"{noun} {', '.join(texts)}"


def _missing_codes(values: pd.Series) -> Iterator[str]:
    """Yield a warning for each missing-value code that lies apart from the rest of its column.

    A code lies apart in two cases. Its distance to every other number exceeds the standard
    deviation of the other numbers, or it is the only negative number.
    """
    for code in MISSING_CODES:
        is_code = np.isclose(values, code, rtol=1e-6, atol=0)
        remaining = values[~is_code]
        if not is_code.any() or remaining.nunique() <= 2:
            continue
        distances = (remaining - code).abs()
        is_distant = distances.min() > remaining.std()
        is_only_negative = code < 0 <= remaining.min()
        if is_distant or is_only_negative:
            yield (
                f"Beware: {values.name} is {code:g} in {plural(int(is_code.sum()), 'row')}. "
                f"The fit uses {code:g} as a number. If {code:g} means that the value is missing, "
                "leave the cell empty."
            )


def _summary_rows(labels: pd.Series) -> Iterator[str]:
    """Yield a warning for each label with a word for a sum or mean, for example ``total``."""
    for label, num_rows in labels.value_counts().items():
        words = set()
        for word in _WORD.findall(str(label).casefold()):
            words.add(word.rstrip("0123456789"))
        if words & SUMMARY_WORDS:
            rows = plural(int(num_rows), "row")
            yield (
                f"Beware: {labels.name} is {label} in {rows}. The fit uses these rows like "
                "all other rows. If they are sums or means of other rows, remove them."
            )


def _equal_but_for_spelling(labels: pd.Series) -> Iterator[str]:
    """Yield a warning if labels differ only in case, or are the same number in two spellings."""
    spellings_by_key: dict[object, list[str]] = {}
    for label in sorted(labels.unique()):
        number = pd.to_numeric(label, errors="coerce")
        key: object = float(number)
        if pd.isna(number):
            key = label.casefold()
        spellings_by_key.setdefault(key, []).append(label)
    similar: list[str] = []
    for spellings in spellings_by_key.values():
        if len(spellings) > 1:
            similar += spellings
    if similar:
        names = listing(sorted(similar)[:MAX_SHOWN])
        yield (
            f"Beware: {labels.name} contains {names}, which differ only in spelling. If "
            "these names mean the same, write only one of them."
        )
