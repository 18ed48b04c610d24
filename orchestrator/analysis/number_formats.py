"""Formats of numbers, p-values, intervals and lists of names in sentences."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from orchestrator.analysis.inference import Interval
from search_spaces.errors import plural

LARGE = 1e3
"""Numbers of at least this size are written without decimals and with commas: 1,234."""
EXACT = 1e7
"""Numbers of at least this size are rounded to significant figures: 62,500,000."""
HUGE = 1e15
"""Numbers of at least this size are written with a power of ten."""
SMALL = 1e-4
"""Numbers below this limit are written with a power of ten. All values of K_F are above the
limit, so a table column of K_F uses only one notation."""
SMALLEST_P = 1e-3
"""Limit for p-values. A smaller p-value is written as ``< 0.001``."""
MAX_FIGURES = 8
"""Largest number of significant figures with which an end of an interval is written."""


def listing(names: Sequence[str], conjunction: str = "and") -> str:
    """Return a list of names as text, such as ``a, b and c``."""
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} {conjunction} {names[-1]}"


def number(value: float | None, figures: int = 3) -> str:
    """Return a number with ``figures`` significant figures.

    For None and NaN, return an empty text.
    """
    if value is None or pd.isna(value):
        return ""
    # With two figures, 110 would be written as 1.1e+02, and 99.6 as 1e+02.
    has_no_decimals = abs(value) + 0.5 >= min(LARGE, 10.0**figures)
    if has_no_decimals and abs(value) < EXACT:
        text = f"{value:,.0f}"
    elif EXACT <= abs(value) < HUGE:
        text = f"{float(f'{value:.{figures - 1}e}'):,.0f}"
    elif value != 0 and abs(value) < SMALL:
        text = f"{value:.{figures - 1}e}"
    else:
        text = f"{value:.{figures}g}"
    if text == "-0":
        return "0"
    return text.replace("-", "−")


def p_value(value: float | None) -> str:
    """Return a p-value with two significant figures, or ``< 0.001``.

    For None, return an empty text.
    """
    if value is None:
        return ""
    if value < SMALLEST_P:
        return "< 0.001"
    return f"{value:.2g}"


def p_equals(value: float) -> str:
    """Return a p-value in words, such as ``p = 0.02`` or ``p < 0.001``."""
    text = p_value(value)
    return f"p {text}" if text.startswith("<") else f"p = {text}"


ADJUSTED_P_DECIDES = "is not adjusted for the number of tests. The adjusted p decides."
"""End of the sentences on an interval that excludes the null value although there is no
claim."""


def adjusted_p_equals(value: float, num_tests: int) -> str:
    """Return a Holm-adjusted p-value in words: ``adjusted p = 0.02 over 5 tests``."""
    return f"adjusted {p_equals(value)} over {plural(num_tests, 'test')}"


def per_cent_of(level: float) -> str:
    """Return a significance level in per cent with two significant figures, such as ``0.56 %``."""
    return f"{number(100 * level, 2)} %"


def interval(bounds: Interval | None, null: float | None = None) -> str:
    """Return an interval as text, such as ``0.5 to 1.2``. For None, return a dash.

    Each end has at least three significant figures. It has more if they are needed to make it
    differ from the other end and from the null value.
    """
    if bounds is None:
        return "–"
    low, high = bounds
    low_text = _distinct_number(low, (high, null))
    high_text = _distinct_number(high, (low, null))
    if not low_text or not high_text:
        return f"{number(low)}, without scatter"
    return f"{low_text} to {high_text}"


def _distinct_number(value: float, others: Sequence[float | None]) -> str:
    """Return a number with so many figures that its text differs from the texts of ``others``.

    Returns an empty text if this is impossible.
    """
    for figures in range(3, MAX_FIGURES + 1):
        text = number(value, figures)
        if text not in {number(other, figures) for other in others}:
            return text
    return ""


def percent(share: float) -> str:
    """Return a share in whole per cent, such as ``6%``."""
    return f"{share:.0%}"


def in_hundred(share: float) -> str:
    """Return a share as a count in 100, such as ``6 of 100`` or ``fewer than 1 of 100``."""
    count = round(100 * share)
    if count == 0:
        return "fewer than 1 of 100"
    return f"{count} of 100"
