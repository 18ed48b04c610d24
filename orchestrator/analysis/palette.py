"""Look of all figures: the Okabe-Ito palette (safe for colour-blind readers), one marker per dataset."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from orchestrator.results import columns as c

# Okabe & Ito (2008), without yellow, which is too faint on white.
BLUE, SKY, GREEN = "#0072B2", "#56B4E9", "#009E73"
VERMILLION, ORANGE, PURPLE, BLACK = "#D55E00", "#E69F00", "#CC79A7", "#000000"
GREY = "#666666"

DOMAIN_COLOURS = {c.NATURAL: BLUE, c.MEDICAL: VERMILLION}
#: Shades by domain, so that a dataset's colour still tells its domain.
_SHADES = {c.NATURAL: (BLUE, GREEN, SKY, BLACK), c.MEDICAL: (VERMILLION, PURPLE, ORANGE)}
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h", "p", "*")
#: Of models, from Tol's muted scheme (2021), so that no model wears the colour of a domain.
MODEL_COLOURS = ("#332288", "#999933", "#117733", "#AA4499", "#882255", "#44AA99", "#661100")

#: More panels than this are unreadable; the rest is in the tables.
MAX_PANELS = 12

#: Applied while drawing only, through a context, so that no global setting is touched.
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
}


@dataclass(frozen=True, slots=True)
class Mark:
    """Colour and marker of one dataset."""

    colour: str
    marker: str


def tell(points: PathCollection, rows: pd.DataFrame) -> None:
    """Give every drawn point an address that says what it is: the page shows it, and leads to the trials."""
    points.set_urls([f"#point:{quote(_told(row))}" for row in rows.to_dict("records")])


def _told(row: dict[Any, Any]) -> str:
    """Words that find the point's trials in their table, a bar, and what it shows."""
    names = (row[c.MODEL], row[c.DATASET], row.get(c.CLASS_PAIR) or "", f"{row[c.TRAIN_SIZE]:g}")
    shown = (("d_data", c.D_DATA_MLE), ("K_F", c.LABEL_SHARPNESS), ("loss", c.TEST_LOSS))
    values = [f"{title} {row[name]:.3g}" for title, name in shown if pd.notna(row.get(name))]
    return " ".join(filter(None, map(str, names))) + "|" + ", ".join(values)


def model_marks(models: Sequence[str]) -> dict[str, Mark]:
    """Return a mark per model: colours and markers differ."""
    return {
        model: Mark(MODEL_COLOURS[k % len(MODEL_COLOURS)], _MARKERS[k % len(_MARKERS)])
        for k, model in enumerate(models)
    }


def dataset_marks(domains: dict[str, str]) -> dict[str, Mark]:
    """Return a mark per dataset: markers differ throughout, colours by domain.

    Args:
        domains: dataset → domain.
    """
    marks = {}
    seen = dict.fromkeys(_SHADES, 0)
    for position, (dataset, domain) in enumerate(
        sorted(domains.items(), key=lambda item: (item[1], item[0]))
    ):
        shades = _SHADES[domain]
        marks[dataset] = Mark(shades[seen[domain] % len(shades)], _MARKERS[position % len(_MARKERS)])
        seen[domain] += 1
    return marks


def panels(
    num: int, *, width: float = 3.3, height: float = 2.9, most_columns: int = 3, share: bool = True
) -> tuple[Figure, list[Axes]]:
    """Return a figure with ``num`` panels in rows of at most ``most_columns``; sizes in inches per panel."""
    num_columns = min(most_columns, max(1, num))
    num_rows = -(-max(1, num) // num_columns)
    # A lone panel is drawn wider, or its legend would be as large as the plot.
    scale = 1.5 if num == 1 else 1.0
    figure = Figure(
        figsize=(width * num_columns * scale + 1.5, height * num_rows * min(scale, 1.3)), layout="constrained"
    )
    grid = figure.subplots(num_rows, num_columns, squeeze=False, sharex=share, sharey=share)
    axes = list(grid.flat)
    for spare in axes[num:]:
        spare.set_visible(False)
    for above in axes[max(0, num - num_columns) : num]:
        above.tick_params(labelbottom=True)
    return figure, axes[:num]


def label_outer(figure: Figure, x: str, y: str) -> None:
    """Label the axes of all panels once."""
    figure.supxlabel(x, fontsize=9)
    figure.supylabel(y, fontsize=9)


def legend(figure: Figure, handles: Sequence[Line2D], title: str | None = None) -> None:
    """Put the legend beside the panels, where it can cover nothing."""
    figure.legend(handles=list(handles), loc="outside right upper", title=title, alignment="left", fontsize=8)


def mark_handles(marks: dict[str, Mark], present: Iterable[str]) -> list[Line2D]:
    """Return legend entries for the datasets that are drawn."""
    names = set(present)
    return [
        Line2D([], [], color=mark.colour, marker=mark.marker, linestyle="none", markersize=6, label=name)
        for name, mark in marks.items()
        if name in names
    ]


def log_ticks(axes: Axes, which: str, values: pd.Series) -> None:
    """Make an axis logarithmic with plain numbers, and enough of them when it spans less than a decade."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    finite = values[values > 0]
    decades = float(np.log10(finite.max() / finite.min())) if len(finite) else 1.0
    subs = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0) if decades < 1 else (1.0, 2.0, 5.0) if decades < 2.5 else (1.0,)
    axis.set_major_locator(LogLocator(subs=subs, numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def size_ticks(axes: Axes, sizes: Sequence[float]) -> None:
    """Put the train sizes themselves on a logarithmic x axis, leaving out those that would collide."""
    axes.set_xscale("log")
    kept: list[float] = []
    span = np.log(sizes[-1] / sizes[0]) or 1.0
    for size in sizes:
        if not kept or np.log(size / kept[-1]) > 0.16 * span:
            kept.append(size)
    axes.xaxis.set_major_locator(FixedLocator(kept))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())


def styled() -> AbstractContextManager[None]:
    """Return the context in which figures are drawn and saved."""
    return mpl.rc_context(STYLE)
