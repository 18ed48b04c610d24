"""The study's figures: each function turns fitted points and fits into one figure and its caption,
or None without data. Colours are safe for colour-blind readers, with one marker per dataset.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from itertools import cycle
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import matplotlib as mpl
import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PathCollection
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, Locator, LogLocator, NullLocator

from orchestrator.analysis import table as t
from orchestrator.analysis.fits import ScalingFits
from orchestrator.analysis.grouped_tables.design import LEVELS
from orchestrator.analysis.grouped_tables.fit import GroupedFit
from orchestrator.analysis.table import interval, number
from orchestrator.results import columns as c
from tasks.atomic import write_atomic

# Okabe & Ito (2008), without yellow, which is too faint on white.
BLUE, SKY, GREEN = "#0072B2", "#56B4E9", "#009E73"
VERMILLION, ORANGE, PURPLE, BLACK = "#D55E00", "#E69F00", "#CC79A7", "#000000"
GREY = "#666666"

DOMAIN_COLOURS = {c.NATURAL: BLUE, c.MEDICAL: VERMILLION}
_DOMAIN_MARKERS = {c.NATURAL: "o", c.MEDICAL: "s"}
_SHADES = {c.NATURAL: (BLUE, GREEN, SKY, BLACK), c.MEDICAL: (VERMILLION, PURPLE, ORANGE)}
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h", "p", "*")
#: Of models, from Tol's muted scheme (2021), so that no model wears the colour of a domain.
MODEL_COLOURS = ("#332288", "#999933", "#117733", "#AA4499", "#882255", "#44AA99", "#661100")

#: More panels than this are unreadable; the rest is in the tables.
MAX_PANELS = 12

#: Applied while drawing only. A name with dollars is a name, not a formula.
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
    "text.parse_math": False,
}


Mark = tuple[str, str]
"""Colour and marker of one dataset or model."""
_TOLD = [
    c.MODEL,
    c.DATASET,
    c.CLASS_PAIR,
    c.TRAIN_SIZE,
    c.D_DATA_MLE,
    c.LABEL_SHARPNESS,
    c.TEST_LOSS,
]


def tell(points: PathCollection, rows: pd.DataFrame) -> None:
    """Give drawn points addresses: words that find their trials in the table, a bar, and what they
    show.
    """
    urls = []
    for *names, size, d_data, sharpness, loss in rows.reindex(columns=_TOLD).itertuples(
        index=False
    ):
        words = [*(name for name in names if isinstance(name, str) and name), f"{size:g}"]
        shown = {"d_data": d_data, "K_F": sharpness, "loss": loss}
        values = ", ".join(
            f"{title} {value:.3g}" for title, value in shown.items() if pd.notna(value)
        )
        urls.append(f"#point:{quote(' '.join(words) + '|' + values)}")
    points.set_urls(urls)


def dataset_marks(domains: dict[str, str]) -> dict[str, Mark]:
    """Return a mark per dataset (dataset → domain): markers differ throughout, colours by
    domain.
    """
    marks: dict[str, Mark] = {}
    shades = {domain: cycle(colours) for domain, colours in _SHADES.items()}
    for k, (dataset, domain) in enumerate(sorted(domains.items(), key=itemgetter(1, 0))):
        marks[dataset] = next(shades[domain]), _MARKERS[k % len(_MARKERS)]
    return marks


def panels(
    num: int, *, width: float = 3.3, height: float = 2.9, most_columns: int = 3, share: bool = True
) -> tuple[Figure, list[Axes]]:
    """Return a figure with ``num`` panels in rows of at most ``most_columns``; sizes in inches per
    panel.
    """
    num_columns = min(most_columns, max(1, num))
    num_rows = -(-max(1, num) // num_columns)
    # A lone panel is drawn wider, or its legend would be as large as the plot.
    scale = 1.5 if num == 1 else 1.0
    size = (width * num_columns * scale + 1.5, height * num_rows * min(scale, 1.3))
    figure = Figure(figsize=size, layout="constrained")
    axes = list(
        figure.subplots(num_rows, num_columns, squeeze=False, sharex=share, sharey=share).flat
    )
    for spare in axes[num:]:
        spare.set_visible(False)
    for above in axes[max(0, num - num_columns) : num]:
        above.tick_params(labelbottom=True)
    return figure, axes[:num]


def frame(figure: Figure, x: str, y: str, handles: Sequence[Line2D]) -> None:
    """Label the axes of all panels once, and put the legend beside them, where it can cover
    nothing.
    """
    figure.supxlabel(x, fontsize=9)
    figure.supylabel(y, fontsize=9)
    figure.legend(handles=[*handles], loc="outside right upper", alignment="left", fontsize=8)


def mark_handles(
    marks: dict[str, Mark], present: Iterable[str], line: Literal["none", "-"] = "none"
) -> list[Line2D]:
    """Return legend entries for what is drawn."""
    about: dict[str, Any] = {"linestyle": line, "markersize": 6 if line == "none" else 3.5}
    drawn = set(present)
    return [
        Line2D([], [], color=colour, marker=marker, label=name, **about)
        for name, (colour, marker) in marks.items()
        if name in drawn
    ]


def log_ticks(axes: Axes, which: Literal["x", "y"], values: pd.Series) -> None:
    """Make an axis logarithmic with plain numbers, and enough of them when it spans less than a
    decade.
    """
    finite = values[values > 0]
    decades = float(np.log10(finite.max() / finite.min())) if len(finite) else 1.0
    subs = (
        (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)
        if decades < 1
        else (1.0, 2.0, 5.0)
        if decades < 2.5
        else (1.0,)
    )
    _ticks(axes, which, LogLocator(subs=subs, numticks=12), "{:g}")


def size_ticks(axes: Axes, sizes: Sequence[float]) -> None:
    """Put the train sizes themselves on a logarithmic x axis, leaving out those that would
    collide.
    """
    kept, span = [sizes[0]], np.log(sizes[-1] / sizes[0]) or 1.0
    for size in sizes[1:]:
        if np.log(size / kept[-1]) > 0.16 * span:
            kept.append(size)
    _ticks(axes, "x", FixedLocator(kept), "{:,.0f}")


def _ticks(axes: Axes, which: Literal["x", "y"], locator: Locator, spelled: str) -> None:
    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(locator)
    axis.set_major_formatter(FuncFormatter(lambda value, _: spelled.format(value)))
    axis.set_minor_locator(NullLocator())


def styled() -> AbstractContextManager[None]:
    """Return the context in which figures are drawn and saved."""
    return mpl.rc_context(STYLE)


Drawn = tuple[Figure, str]
#: Loss axes span at least this factor, so that scatter of a few per cent does not fill a panel.
SMALLEST_LOSS_RANGE = 4.0


def dataset_properties(points: pd.DataFrame, fits: ScalingFits) -> Drawn | None:
    """Bars of d_data and K_F by dataset, sorted within domain; error bars: range over sizes and
    pairs.
    """
    cells = points.drop_duplicates([c.DATASET, c.CLASS_PAIR, c.TRAIN_SIZE])
    labels = {
        c.D_DATA_MLE: "intrinsic dimension d_data",
        c.LABEL_SHARPNESS: "label sharpness K_F (1 / L2 pixel distance)",
    }
    shown = [name for name in labels if cells[name].notna().any()]
    if not shown:
        return None
    size = (4.4 * len(shown), 1.2 + 0.34 * cells[c.DATASET].nunique())
    figure = Figure(figsize=size, layout="constrained")
    for axes, name in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        grouped = cells.dropna(subset=[name]).groupby([c.DOMAIN, c.DATASET])[name]
        rows = grouped.agg(["min", "max"]).reset_index()
        field = "d_data" if name == c.D_DATA_MLE else "label_sharpness"
        rows["mean"] = rows[c.DATASET].map({d.dataset: getattr(d, field) for d in fits.datasets})
        rows = rows.sort_values([c.DOMAIN, "mean"], ascending=[False, False], ignore_index=True)
        place = rows.index.to_numpy() + 0.6 * (rows[c.DOMAIN] != rows[c.DOMAIN].iloc[0]).to_numpy()
        reach = np.maximum(
            [rows["mean"] - rows["min"], rows["max"] - rows["mean"]], 0
        )  # against rounding
        axes.barh(
            place, rows["mean"], color=[DOMAIN_COLOURS[d] for d in rows[c.DOMAIN]], height=0.7
        )
        axes.errorbar(
            rows["mean"], place, xerr=reach, fmt="none", ecolor=BLACK, elinewidth=1, capsize=2.5
        )
        axes.set_yticks(place, rows[c.DATASET].tolist())
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.ticklabel_format(axis="x", scilimits=(-2, 4))
        # The power of ten stands at the right end of this line, so the label starts at the left.
        axes.set_xlabel(labels[name], loc="left")
    present = set(cells[c.DOMAIN])
    handles = [
        Patch(color=colour, label=name)
        for name, colour in DOMAIN_COLOURS.items()
        if name in present
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=2, fontsize=8)
    return figure, (
        "Intrinsic dimension and label sharpness of each dataset, as in the table of what was "
        "seen; error "
        "bars: the range over train sizes and class pairs."
    )


def loss_on_d_data(points: pd.DataFrame, fits: ScalingFits) -> Drawn | None:
    """Test loss against d_data, one panel per model, coloured by N."""
    rows = points.dropna(subset=[t.LOG_LOSS, c.D_DATA_MLE])
    models = sorted(rows[c.MODEL].unique())[:MAX_PANELS]
    if not models:
        return None
    figure, axes_of = panels(len(models))
    sizes = sorted(rows[c.TRAIN_SIZE].unique())
    norm = LogNorm(sizes[0], sizes[-1]) if len(sizes) > 1 else Normalize(sizes[0] - 1, sizes[0] + 1)
    for axes, model in zip(axes_of, models, strict=True):
        for domain, group in rows[rows[c.MODEL] == model].groupby(c.DOMAIN):
            colour, marker = DOMAIN_COLOURS[str(domain)], _DOMAIN_MARKERS[str(domain)]
            drawn = axes.scatter(
                group[c.D_DATA_MLE],
                group[c.TEST_LOSS],
                c=group[c.TRAIN_SIZE],
                norm=norm,
                cmap="viridis_r",
                marker=marker,
                s=30,
                edgecolor=colour,
                linewidth=0.9,
            )
            tell(drawn, group)
        log_ticks(axes, "y", rows[c.TEST_LOSS])
        axes.set_title(model)
    figure.colorbar(
        ScalarMappable(norm, "viridis_r"),
        ax=axes_of,
        label="train size N (images)",
        fraction=0.05,
        ticks=sizes[:: max(1, len(sizes) // 6)],
        format="{x:,.0f}",
    ).minorticks_off()
    marks = {domain: (colour, _DOMAIN_MARKERS[domain]) for domain, colour in DOMAIN_COLOURS.items()}
    handles = mark_handles(marks, rows[c.DOMAIN], "-")
    for handle in handles:
        handle.set_markerfacecolor("white")
    frame(figure, "intrinsic dimension d_data", "test loss (nat)", handles)
    return figure, (
        "Test loss against intrinsic dimension, coloured by train size. Both change with N: "
        "compare points "
        "of one colour."
    )


def loss_on_train_size(points: pd.DataFrame, fits: ScalingFits) -> Drawn | None:
    """Test loss against N, one panel per dataset, one line per model, beside the predicted
    slope.
    """
    rows = points.dropna(subset=[t.LOG_LOSS])
    order = rows[[c.DOMAIN, c.DATASET]].drop_duplicates().sort_values([c.DOMAIN, c.DATASET])
    datasets = order[c.DATASET].tolist()[:MAX_PANELS]
    if not datasets:
        return None
    columns = 4 if len(datasets) > 4 else 3
    figure, axes_of = panels(
        len(datasets), width=2.9, height=2.4, most_columns=columns, share=False
    )
    kinds = zip(cycle(MODEL_COLOURS), cycle(_MARKERS), strict=False)
    marks = dict(zip(sorted(rows[c.MODEL].unique()), kinds, strict=False))
    means = rows.groupby([c.DATASET, c.MODEL, c.TRAIN_SIZE])[t.LOG_LOSS].mean()
    curves = np.exp(means).reset_index(name=c.TEST_LOSS)
    with_slope = False
    for axes, dataset in zip(axes_of, datasets, strict=True):
        for model, curve in curves[curves[c.DATASET] == dataset].groupby(c.MODEL):
            (colour, marker), (x, y) = marks[str(model)], (curve[c.TRAIN_SIZE], curve[c.TEST_LOSS])
            axes.plot(x, y, color=colour, linewidth=1.1)
            tell(axes.scatter(x, y, color=colour, marker=marker, s=14), curve)
        part = rows[rows[c.DATASET] == dataset]
        d_data = part[t.D_REFERENCE].mean()
        if d_data > 0:
            ends = np.array([part[c.TRAIN_SIZE].min(), part[c.TRAIN_SIZE].max()])
            # Only the slope is predicted; the height is set to pass through the middle of the
            # points.
            middle = part[t.LOG_LOSS].mean() + part[t.LOG_TRAIN_SIZE].mean() / d_data
            predicted = np.exp(middle - np.log(ends) / d_data)
            axes.plot(ends, predicted, color=BLACK, linestyle="--", linewidth=1.2)
            with_slope = True
        size_ticks(axes, sorted(rows[c.TRAIN_SIZE].unique()))
        log_ticks(axes, "y", part[c.TEST_LOSS])
        low, high = axes.get_ylim()
        if high / low < SMALLEST_LOSS_RANGE:
            middle, half = np.sqrt(low * high), np.sqrt(SMALLEST_LOSS_RANGE)
            axes.set_ylim(middle / half, middle * half)
        axes.set_title(str(dataset), color=DOMAIN_COLOURS[part[c.DOMAIN].iloc[0]])
    handles, caption = mark_handles(marks, marks, "-"), "Test loss against train size."
    if with_slope:
        label = "predicted slope\n−1/d_data"
        handles.append(Line2D([], [], color=BLACK, linestyle="--", label=label))
        caption += " Dashed: the slope −1/d_data of the law's bound; its height is not predicted."
    frame(figure, "train size N (images)", "test loss (nat)", handles)
    return figure, f"{caption} Class pairs and seeds are averaged."


def loss_gain_on_sharpness(points: pd.DataFrame, fits: ScalingFits) -> Drawn | None:
    """Loss gain under each attack against K_F, one panel per attack and epsilon."""
    known = points[points[c.LABEL_SHARPNESS].notna()]
    attacks = [a for a in c.attack_columns(points.columns) if known[a.name].notna().any()][
        :MAX_PANELS
    ]
    if not attacks:
        return None
    marks = dataset_marks(dict(zip(points[c.DATASET], points[c.DOMAIN], strict=True)))
    figure, axes_of = panels(
        len(attacks), most_columns=2 if len(attacks) in (2, 4) else 3, share=False
    )
    caption = "How much an attack raises the loss, against label sharpness."
    named = (
        " r is over dataset effects at equal model and train size, within domains, all models, "
        "with its "
        "95 % interval (exploratory; adjusted for their number in the table)."
    )
    for axes, attack in zip(axes_of, attacks, strict=True):
        for dataset, group in known.dropna(subset=[attack.name]).groupby(c.DATASET):
            colour, marker = marks[str(dataset)]
            x, y = group[c.LABEL_SHARPNESS], group[attack.name]
            tell(
                axes.scatter(x, y, color=colour, marker=marker, s=26, alpha=0.8, linewidth=0), group
            )
        r = fits.find("attack", model=t.POOLED, response=attack.name).estimate("r")
        axes.set_title(attack.words)
        if r is not None and r.interval is not None:
            axes.set_title(f"{attack.words}\nr = {number(r.value)} ({interval(r.interval)})")
            caption = caption.removesuffix(named) + named
        axes.ticklabel_format(axis="x", scilimits=(-2, 4))
        axes.axhline(0, color=GREY, linewidth=0.8)
    handles = mark_handles(marks, points[c.DATASET])
    frame(
        figure,
        "label sharpness K_F (1 / L2 pixel distance)",
        "loss gain under attack (nat)",
        handles,
    )
    return figure, caption


def draw_groups(table: pd.DataFrame, fit: GroupedFit) -> Figure:
    """Draw the response over each column: rows coloured by group, the slope within each, and
    between them.
    """
    design = fit.design
    codes = table.groupby(list(design.groups)).ngroup()
    with styled():
        figure, axes = panels(len(design.on), width=4.0, height=3.4)
        for ax, name in zip(axes, design.on, strict=True):
            x, y = table[name], table[design.response]
            ax.scatter(
                x,
                y,
                c=codes,
                cmap="viridis",
                s=8,
                alpha=0.5,
                linewidths=0,
                rasterized=len(y) > 2_000,
            )
            own = pd.DataFrame({"x": x, "y": y}).groupby(codes)
            centres, low, high = own.mean(), own["x"].min(), own["x"].max()
            ax.plot(
                centres["x"], centres["y"], "s", color=BLACK, markersize=4, label="mean of a group"
            )
            within, between = (fit.find(level, name) for level in LEVELS)
            if within.value is not None:
                ends = np.array([low, high])
                heights = centres["y"].to_numpy() + within.value * (ends - centres["x"].to_numpy())
                lines = ax.plot(ends, heights, color=BLACK, lw=0.8)
                lines[0].set_label("slope within groups")
            if between.value is not None:
                ends = np.array([x.min(), x.max()])
                heights = centres["y"].mean() + between.value * (ends - centres["x"].mean())
                ax.plot(ends, heights, "--", color=VERMILLION, label="slope between groups")
            ax.set(xlabel=name, ylabel=design.response)
            ax.legend(fontsize=7)
    return figure


#: By file stem, in the order of the report; the first two are the key ones.
DRAWINGS: dict[str, Callable[[pd.DataFrame, ScalingFits], Drawn | None]] = {
    "loss_on_train_size": loss_on_train_size,
    "loss_gain_on_sharpness": loss_gain_on_sharpness,
    "loss_on_d_data": loss_on_d_data,
    "dataset_properties": dataset_properties,
}

#: More points than this make SVG too large to open at once; the figure is then a picture.
MAX_SVG_POINTS = 2000
PNG_DPI = 150


def write_figures(
    points: pd.DataFrame, fits: ScalingFits, folder: Path, formats: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Draw every figure that has data, and remove earlier ones; return what a page shows of
    them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shown: list[dict[str, Any]] = []
    embedded = "svg" if len(points) <= MAX_SVG_POINTS else "png"
    written = set()
    with styled():
        for name, draw in DRAWINGS.items():
            if (found := draw(points, fits)) is None:
                continue
            drawn = {kind: rendered(found[0], kind) for kind in dict.fromkeys((embedded, *formats))}
            for kind, data in drawn.items():
                write_atomic(folder / f"{name}.{kind}", data, durable=False)
                written.add(f"{name}.{kind}")
            drawing = _embedded(drawn[embedded], embedded, name)
            shown.append({"file": f"{name}.{embedded}", "caption": found[1], "drawing": drawing})
    for path in folder.iterdir():
        if path.stem in (*DRAWINGS, "d_repr_on_d_data") and path.name not in written:
            path.unlink()
    return shown


#: Without dates or versions equal figures are equal bytes.
_NAMELESS: dict[str, dict[str, None]] = {
    "png": dict.fromkeys(("Software",)),
    "pdf": dict.fromkeys(("CreationDate", "Producer", "Creator")),
    "svg": dict.fromkeys(("Date", "Creator", "Format", "Type")),
}


def rendered(figure: Figure, kind: str) -> bytes:
    """Return a figure as a file of ``kind``."""
    # Laid out once, by hand: every save would do it again, and change nothing.
    if (engine := figure.get_layout_engine()) is not None:
        engine.execute(figure)
    figure.set_layout_engine(None)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=PNG_DPI, metadata=_NAMELESS[kind])
    return buffer.getvalue()


def _embedded(data: bytes, kind: str, name: str) -> Markup:
    """What the page embeds: SVG, whose points tell what they are, or a PNG."""
    if kind == "png":
        return Markup(
            f'<img alt="" src="data:image/png;base64,{base64.b64encode(data).decode("ascii")}">'
        )
    text = data.decode("utf-8")
    # All figures share one page, and matplotlib counts its ids from 1 in each.
    ids = r'(id=")(figure|axes|patch|line2d|text|matplotlib|xtick|ytick)'
    return Markup(re.sub(ids, rf"\1{name}-\2", text[text.index("<svg") :]))
