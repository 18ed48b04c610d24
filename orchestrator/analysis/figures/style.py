"""Colors, panels and axes of all figures.

Color-blind readers can distinguish the colors. A domain has the same colors in every figure,
and every dataset has its own marker.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from itertools import cycle
from math import ceil
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import XAxis, YAxis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.scale import ScaleBase, SymmetricalLogScale
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    Locator,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
)

from orchestrator.analysis.number_formats import SMALL, number
from orchestrator.results.columns import MEDICAL, NATURAL

# Okabe & Ito (2008), without yellow, which is too faint on white.
BLUE = "#0072B2"
SKY = "#56B4E9"
GREEN = "#009E73"
VERMILLION = "#D55E00"
ORANGE = "#E69F00"
PURPLE = "#CC79A7"
BLACK = "#000000"
GREY = "#666666"
DOMAIN_COLORS = {NATURAL: BLUE, MEDICAL: VERMILLION}
DOMAIN_MARKERS = {NATURAL: "o", MEDICAL: "s"}
SHADES = {NATURAL: (BLUE, GREEN, SKY, BLACK), MEDICAL: (VERMILLION, PURPLE, ORANGE)}
"""Colors of the datasets of each domain. Two domains never share a color."""
MARKERS = "os^DvPX<>hp*"
"""Matplotlib's markers. Each character is one marker."""
MODEL_COLORS = ("#332288", "#999933", "#117733", "#AA4499", "#882255", "#44AA99", "#661100")
"""Colors of models, from Tol's muted scheme (2021). No model has a color of a domain."""
MAX_PANELS = 12
"""Largest number of panels of a figure. Data without a panel are in the tables."""
MAX_LINEAR_FACTOR = 30.0
"""Limit for the factor between the largest and the smallest value on a linear axis. If the
factor is larger, the axis is logarithmic."""
LEGEND_WIDTH = 1.5
"""Width of the legend beside the panels, in inches."""
SINGLE_PANEL_WIDTH = 1.5
"""Factor by which a single panel is wider than other panels. Without this factor, the panel
would be as small as its legend."""
SINGLE_PANEL_HEIGHT = 1.3
"""Factor by which a single panel is higher than other panels."""
MAX_LINEAR_TICKS = 5
"""Largest number of ticks on a linear axis. With more ticks, the long numbers of K_F would
overlap."""
MIN_GAP_OF_TICKS = 0.19
"""Smallest distance between two labeled train sizes on an axis, as a share of the axis
length."""
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "pdf.fonttype": 42,
    "svg.hashsalt": "isweep",
    "svg.fonttype": "none",
    # A name with dollar signs must be drawn as a name, not as a formula.
    "text.parse_math": False,
}
"""Matplotlib settings that isweep uses only while it draws figures."""
Mark = tuple[str, str]
"""Color and marker of one dataset or model."""
AnyAxis = XAxis | YAxis


def styled() -> AbstractContextManager[None]:
    """Return the context in which figures are drawn and saved."""
    return mpl.rc_context(STYLE)


def dataset_marks(domains: dict[str, str]) -> dict[str, Mark]:
    """Return a mark for each dataset. Each dataset has its own marker and a color of its domain.

    Args:
        domains: Domain of each dataset.
    """
    marks: dict[str, Mark] = {}
    shades = {domain: cycle(colors) for domain, colors in SHADES.items()}
    markers = cycle(MARKERS)
    by_domain = sorted((domain, dataset) for dataset, domain in domains.items())
    for domain, dataset in by_domain:
        color = next(shades[domain])
        marks[dataset] = (color, next(markers))
    return marks


def panels(
    num: int, *, width: float = 3.3, height: float = 2.9, most_columns: int = 3, share: bool = True
) -> tuple[Figure, list[Axes]]:
    """Return a figure with panels in rows.

    Args:
        num: Number of panels.
        width: Width of a panel in inches.
        height: Height of a panel in inches.
        most_columns: Largest number of panels in a row.
        share: True if all panels have the same axes.
    """
    num_columns = min(most_columns, max(1, num))
    num_rows = ceil(max(1, num) / num_columns)
    if num == 1:
        width *= SINGLE_PANEL_WIDTH
        height *= SINGLE_PANEL_HEIGHT
    size = (width * num_columns + LEGEND_WIDTH, height * num_rows)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(num_rows, num_columns, squeeze=False, sharex=share, sharey=share)
    axes = list(grid.flat)
    for unused in axes[num:]:
        unused.set_visible(False)
    for lowest in axes[max(0, num - num_columns) : num]:
        lowest.tick_params(labelbottom=True)
    return figure, axes[:num]


def frame(figure: Figure, x: str, y: str, handles: Sequence[Line2D]) -> None:
    """Label the axes of all panels once, and put the legend beside them.

    Args:
        figure: The figure.
        x: Quantity and unit of the x axes.
        y: Quantity and unit of the y axes.
        handles: Entries of the legend.
    """
    figure.supxlabel(x, fontsize=9)
    figure.supylabel(y, fontsize=9)
    figure.legend(handles=[*handles], loc="outside right upper", alignment="left", fontsize=8)


def mark_handles(
    marks: dict[str, Mark], present: Iterable[str], line: Literal["none", "-"] = "none"
) -> list[Line2D]:
    """Return legend entries for the marks whose names occur in the data."""
    present_names = set(present)
    marker_size = 6 if line == "none" else 3.5
    handles = []
    for name, (color, marker) in marks.items():
        if name not in present_names:
            continue
        handle = Line2D([], [], color=color, marker=marker, label=name)
        handle.set(linestyle=line, markersize=marker_size)
        handles.append(handle)
    return handles


def spans_much(values: pd.Series) -> bool:
    """Return whether values are positive and span a factor above :data:`MAX_LINEAR_FACTOR`."""
    finite = values.dropna()
    if finite.empty or not (finite > 0).all():
        return False
    return bool(finite.max() > MAX_LINEAR_FACTOR * finite.min())


def number_ticks(axis: AnyAxis, values: pd.Series) -> None:
    """Format an axis with plain numbers. If its values span a large factor, make it logarithmic.

    If some values are negative or 0, the logarithmic axis is symmetric around 0. The axis is
    linear up to the first quartile of the absolute values.
    """
    if spans_much(values):
        log_ticks(axis, values)
        return
    axis.set_major_locator(MaxNLocator(MAX_LINEAR_TICKS, steps=[1, 2, 5, 10]))
    sizes = values[values != 0].dropna().abs()
    has_no_logarithm = (values <= 0).any()
    if has_no_logarithm and not sizes.empty:
        linear_up_to = float(sizes.quantile(0.25))
        if sizes.max() > MAX_LINEAR_FACTOR * linear_up_to:
            scale = SymmetricalLogScale(axis, linthresh=linear_up_to, linscale=0.5)
            _set_scale(axis, scale)
            axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(_plain_number))


def _plain_number(value: float, _: int | None) -> str:
    """Return the number of a tick as text. Small numbers are written without a power of ten."""
    if 0 < abs(value) < SMALL:
        return np.format_float_positional(value, precision=3, fractional=False, trim="-")
    return number(value)


def log_ticks(axis: AnyAxis, values: pd.Series) -> None:
    """Make an axis logarithmic, with ticks at plain numbers.

    Args:
        axis: The axis.
        values: The plotted values. If they span fewer powers of ten, the axis has more ticks
            per power of ten.
    """
    positive = values[values > 0]
    decades = 1.0
    if len(positive):
        factor = positive.max() / positive.min()
        decades = float(np.log10(factor))
    steps: tuple[float, ...] = (1.0,)
    if decades < 1:
        steps = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)
    elif decades < 2.5:
        steps = (1.0, 2.0, 5.0)
    _ticks(axis, LogLocator(subs=steps, numticks=12))


def size_ticks(axes: Axes, sizes: Sequence[float]) -> None:
    """Set ticks at the train sizes on a logarithmic x axis.

    Labels that would overlap are left out.
    """
    span = np.log(sizes[-1] / sizes[0])
    ticks = [sizes[0]]
    for size in sizes[1:]:
        gap = np.log(size / ticks[-1])
        if gap > MIN_GAP_OF_TICKS * span:
            ticks.append(size)
    _ticks(axes.xaxis, FixedLocator(ticks))


def _ticks(axis: AnyAxis, locator: Locator) -> None:
    """Make an axis logarithmic, with ticks at the positions of a locator."""
    _set_scale(axis, "log")
    axis.set_major_locator(locator)
    axis.set_major_formatter(FuncFormatter(_plain_number))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def _set_scale(axis: AnyAxis, scale: str | ScaleBase) -> None:
    """Set the scale of an axis. The panel of the axis sets it, by name of the axis."""
    axis.axes.set(**{f"{axis.axis_name}scale": scale})
