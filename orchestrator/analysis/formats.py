"""Numbers as the report and its sentences show them, and the layout-free form of a table."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from orchestrator.analysis.fit_records import Interval


@dataclass(frozen=True, slots=True)
class Table:
    """Heading, what it shows, column names and cells; ``key`` is its anchor on the page; ``folded`` opens on
    a click.
    """

    key: str
    title: str
    note: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric_from: int = 1
    folded: bool = False


def number(value: float | None) -> str:
    """Render a number to three figures with a true minus sign, or nothing when there is none."""
    if value is None or pd.isna(value):
        return ""
    small = value != 0 and abs(value) < 1e-4  # K_F of images lies above: one notation a column
    large = 1e3 <= abs(value) < 1e7
    text = f"{value:,.0f}" if large else f"{value:.2e}" if small else f"{value:.3g}"
    return "0" if text == "-0" else text.replace("-", "−")


def p_value(value: float | None) -> str:
    """Render a p-value to two figures; a small one as a bound."""
    if value is None:
        return ""
    return "< 0.001" if value < 1e-3 else f"{value:.2g}"


def p_said(value: float) -> str:
    """Say a p-value in a sentence: ``p = 0.013`` or ``p < 0.001``."""
    return f"p {p_value(value)}" if value < 1e-3 else f"p = {p_value(value)}"


def interval(bounds: Interval | None) -> str:
    """Render an interval, or a dash when there are too few datasets for one."""
    return "–" if bounds is None else f"{number(bounds[0])} to {number(bounds[1])}"


def with_range(value: float | None, bounds: Interval | None) -> str:
    """Render a mean with its range, where it has one."""
    if bounds is None or bounds[0] == bounds[1]:
        return number(value)
    return f"{number(value)} ({interval(bounds)})"
