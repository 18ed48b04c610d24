"""How numbers, p-values, intervals and lists of names are written for people."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from orchestrator.analysis.inference import Interval


def listing(names: Sequence[str]) -> str:
    """Return ``a``, ``a and b``, ``a, b and c``."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def number(value: float | None, figures: int = 3) -> str:
    """Render a number to so many figures, or nothing when there is none."""
    if value is None or pd.isna(value):
        return ""
    small = value != 0 and abs(value) < 1e-4  # K_F of images lies above: one notation a column
    large = 1e3 <= abs(value) < 1e7
    text = (
        f"{value:,.0f}"
        if large
        else f"{value:.{figures - 1}e}"
        if small
        else f"{value:.{figures}g}"
    )
    return "0" if text == "-0" else text.replace("-", "−")


def p_value(value: float | None) -> str:
    """Render a p-value to two figures; a small one as a bound."""
    if value is None:
        return ""
    return "< 0.001" if value < 1e-3 else f"{value:.2g}"


def interval(bounds: Interval | None) -> str:
    """Render an interval, to the figures that tell its ends apart; a dash with too few datasets for
    one.
    """
    if bounds is None:
        return "–"
    ends = ([number(bound, figures) for bound in bounds] for figures in range(3, 9))
    apart = next((pair for pair in ends if pair[0] != pair[1]), None)
    return " to ".join(apart) if apart else f"{number(bounds[0])}, without scatter"
