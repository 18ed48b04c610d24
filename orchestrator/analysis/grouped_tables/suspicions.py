"""Values that are fitted as they stand and may be no measurement or no group of their own."""

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
"""Numbers that often stand for a missing value: survey codes, integer limits, netCDF's fills."""
SUMMARY_WORDS = frozenset(
    {
        *("all", "average", "avg", "gesamt", "mean", "median"),
        *("overall", "pooled", "subtotal", "sum", "total"),
    }
)
"""Words in the name of a row that sums up other rows."""
MAX_SHOWN = 6
"""Largest number of spellings in a message."""
_WORD = re.compile(r"[^\W_]+")
"""Letters and digits together: "s2all" is one word that holds no "all"."""


def suspicions(rows: pd.DataFrame, design: Design) -> Iterator[str]:
    """Warn of codes for missing values, rows that sum up others, and names that look alike."""
    for name in design.numeric:
        yield from _missing_codes(rows[name])
    for name in design.labels:
        yield from _summary_rows(rows[name])
        yield from _equal_but_for_spelling(rows[name])


def row_numbers(mask: pd.Series) -> str:
    """Name the first three marked rows by their numbers; the first below the header is row 1."""
    numbers = np.flatnonzero(mask) + 1
    texts = [str(number) for number in numbers[:3]]
    if len(numbers) > 3:
        texts.append("…")
    noun = "row" if len(numbers) == 1 else "rows"
    return f"{noun} {', '.join(texts)}"


def _missing_codes(values: pd.Series) -> Iterator[str]:
    """Warn of a code that lies apart from all other numbers of a column.

    Apart is further than their standard deviation from every other number, or alone below zero.
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
                f"Beware: {values.name} is {code:g} in {plural(int(is_code.sum()), 'row')} "
                f"and is fitted as a number. Leave the cell empty if {code:g} means that the value "
                "is missing."
            )


def _summary_rows(labels: pd.Series) -> Iterator[str]:
    """Warn of labels that read like a sum or mean over other rows."""
    for label, num_rows in labels.value_counts().items():
        words = set()
        for word in _WORD.findall(str(label).casefold()):
            words.add(word.rstrip("0123456789"))
        if words & SUMMARY_WORDS:
            rows = plural(int(num_rows), "row")
            yield (
                f"Beware: {labels.name} is {label} in {rows}, and is fitted like any other. Leave "
                "these rows out if they sum up the rest."
            )


def _equal_but_for_spelling(labels: pd.Series) -> Iterator[str]:
    """Warn of labels that differ in case only, or are one number written in two ways."""
    spellings: dict[object, list[str]] = {}
    for label in sorted(labels.unique()):
        number = pd.to_numeric(label, errors="coerce")
        key: object = float(number)
        if pd.isna(number):
            key = label.casefold()
        spellings.setdefault(key, []).append(label)
    alike: list[str] = []
    for same in spellings.values():
        if len(same) > 1:
            alike += same
    if alike:
        names = listing(sorted(alike)[:MAX_SHOWN])
        yield f"Beware: {labels.name} holds {names}, which differ only in spelling."
