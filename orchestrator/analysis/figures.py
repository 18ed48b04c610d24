"""The study's figures: each function turns fitted points into one matplotlib figure, or None without data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PathCollection
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from orchestrator.analysis import table as t
from orchestrator.analysis.fit_records import POOLED, Coefficient, LawFit, ScalingFits, interval, number
from orchestrator.analysis.laws import AT_EQUAL_SIZE, PREDICTED_FORM
from orchestrator.results import table as c

# Look of all figures: the Okabe-Ito palette (safe for colour-blind readers), one marker per dataset.

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


def panel_grid(
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


# Figures of the test loss: against d_data, against N, and what the fits leave unexplained.

#: Loss axes span at least this factor, so that scatter of a few per cent does not fill a panel.
SMALLEST_LOSS_RANGE = 4.0


def loss_on_d_data(points: pd.DataFrame, fits: ScalingFits) -> Figure | None:
    """Test loss against d_data, one panel per model, coloured by N, with one line per domain where fitted."""
    rows = points.dropna(subset=[t.LOG_LOSS, c.D_DATA_MLE])
    models = sorted(rows[c.MODEL].unique())[:MAX_PANELS]
    if not models:
        return None
    figure, panels = panel_grid(len(models))
    low, high = rows[c.TRAIN_SIZE].min(), rows[c.TRAIN_SIZE].max()
    norm = LogNorm(low, high) if high > low else Normalize(low - 1, low + 1)
    for axes, model in zip(panels, models, strict=True):
        part = rows[rows[c.MODEL] == model]
        for domain, group in part.groupby(c.DOMAIN):
            drawn = axes.scatter(
                group[c.D_DATA_MLE],
                group[c.TEST_LOSS],
                c=group[c.TRAIN_SIZE],
                norm=norm,
                cmap="viridis_r",
                marker=_domain_marker(str(domain)),
                s=30,
                edgecolor=DOMAIN_COLOURS[str(domain)],
                linewidth=0.9,
            )
            tell(drawn, group)
            _domain_line(axes, fits, model, str(domain), group[c.D_DATA_MLE])
        log_ticks(axes, "y", rows[c.TEST_LOSS])
        axes.set_title(model)
    label_outer(figure, "intrinsic dimension d_data", "test loss (nat)")
    figure.colorbar(
        ScalarMappable(norm, "viridis_r"),
        ax=panels,
        label="train size N (images)",
        fraction=0.05,
        ticks=sorted(rows[c.TRAIN_SIZE].unique())[:: max(1, rows[c.TRAIN_SIZE].nunique() // 6)],
        format="{x:,.0f}",
    ).minorticks_off()
    legend(
        figure,
        [
            Line2D([], [], color=colour, marker=_domain_marker(d), markerfacecolor="white", label=d)
            for d, colour in DOMAIN_COLOURS.items()
            if d in set(rows[c.DOMAIN])
        ],
    )
    return figure


def _domain_marker(domain: str) -> str:
    return "o" if domain == c.NATURAL else "s"


def _domain_line(axes: Axes, fits: ScalingFits, model: str, domain: str, x: pd.Series) -> None:
    fit = fits.law(AT_EQUAL_SIZE.name, model=model, subset=domain)
    if not _is_shown(fit):
        return
    ends = np.array([x.min(), x.max()])
    intercept, slope = (k.value for k in fit.coefficients)
    axes.plot(ends, np.exp(intercept + slope * ends), color=DOMAIN_COLOURS[domain], linewidth=1.4)


def loss_on_train_size(points: pd.DataFrame, fits: ScalingFits) -> Figure | None:
    """Test loss against N, one panel per dataset, one line per model, beside the predicted slope."""
    rows = points.dropna(subset=[t.LOG_LOSS])
    order = rows[[c.DOMAIN, c.DATASET]].drop_duplicates().sort_values([c.DOMAIN, c.DATASET])
    datasets = order[c.DATASET].tolist()[:MAX_PANELS]
    if len(datasets) == 0:
        return None
    figure, panels = panel_grid(
        len(datasets), width=2.9, height=2.4, most_columns=4 if len(datasets) > 4 else 3, share=False
    )
    models = sorted(rows[c.MODEL].unique())
    marks = model_marks(models)
    curves = rows.groupby([c.DATASET, c.MODEL, c.TRAIN_SIZE])[t.LOG_LOSS].mean()
    for axes, dataset in zip(panels, datasets, strict=True):
        part = rows[rows[c.DATASET] == dataset]
        for model in sorted(part[c.MODEL].unique()):
            curve = curves[dataset, model]
            mark = marks[model]
            axes.plot(curve.index, np.exp(curve), color=mark.colour, linewidth=1.1)
            shown = pd.DataFrame({c.TRAIN_SIZE: curve.index, c.TEST_LOSS: np.exp(curve.to_numpy())})
            drawn = axes.scatter(
                shown[c.TRAIN_SIZE], shown[c.TEST_LOSS], color=mark.colour, marker=mark.marker, s=14
            )
            tell(drawn, shown.assign(**{c.MODEL: model, c.DATASET: dataset}))
        _predicted_slope(axes, part)
        size_ticks(axes, sorted(rows[c.TRAIN_SIZE].unique()))
        log_ticks(axes, "y", part[c.TEST_LOSS])
        _at_least(axes, SMALLEST_LOSS_RANGE)
        axes.set_title(str(dataset), color=DOMAIN_COLOURS[part[c.DOMAIN].iloc[0]])
    label_outer(figure, "train size N (images)", "test loss (nat)")
    lines = [
        Line2D([], [], color=mark.colour, marker=mark.marker, markersize=3.5, label=model)
        for model, mark in marks.items()
    ]
    legend(figure, [*lines, Line2D([], [], color=BLACK, linestyle="--", label="predicted slope\n−1/d_data")])
    return figure


def _at_least(axes: Axes, factor: float) -> None:
    """Widen a logarithmic y axis to a factor, so that a nearly flat curve looks flat."""
    low, high = axes.get_ylim()
    if high / low < factor:
        middle = np.sqrt(low * high)
        axes.set_ylim(middle / np.sqrt(factor), middle * np.sqrt(factor))


def _predicted_slope(axes: Axes, part: pd.DataFrame) -> None:
    d_data = part[t.D_REFERENCE].mean()
    if not d_data > 0:
        return
    sizes = np.array([part[c.TRAIN_SIZE].min(), part[c.TRAIN_SIZE].max()])
    # Only the slope is predicted; the height is set to pass through the middle of the points.
    middle = part[t.LOG_LOSS].mean() + part[t.LOG_TRAIN_SIZE].mean() / d_data
    axes.plot(sizes, np.exp(middle - np.log(sizes) / d_data), color=BLACK, linestyle="--", linewidth=1.2)


def residuals(points: pd.DataFrame, fits: ScalingFits) -> Figure | None:
    """Residuals of the predicted form (pooled over models) by dataset: what the law leaves unexplained."""
    fit = fits.law(PREDICTED_FORM.name)
    rows, _ = t.complete(points, (t.LOG_LOSS, *PREDICTED_FORM.regressors))
    if fit.status != "ok":
        return None
    fitted = sum(k.value * rows[k.name] for k in fit.coefficients[1:])
    raw = rows[t.LOG_LOSS] - fitted
    # Each model has its own intercept in the pooled fit; least squares makes it the mean of what is left.
    rest = raw - (raw * rows[t.WEIGHT]).groupby(rows[c.MODEL]).transform("sum") / rows[t.WEIGHT].groupby(
        rows[c.MODEL]
    ).transform("sum")
    order = rest.groupby([rows[c.DOMAIN], rows[c.DATASET]]).mean().sort_index().reset_index()
    figure = Figure(figsize=(6.2, 1.2 + 0.34 * len(order)), layout="constrained")
    axes = figure.subplots()
    jitter = np.random.default_rng(0)
    for place, (domain, dataset, mean) in enumerate(order.itertuples(index=False)):
        values = rest[rows[c.DATASET] == dataset]
        drawn = axes.scatter(
            values,
            place + jitter.uniform(-0.18, 0.18, len(values)),
            s=10,
            alpha=0.6,
            linewidth=0,
            color=DOMAIN_COLOURS[domain],
        )
        tell(drawn, rows[rows[c.DATASET] == dataset])
        axes.plot([mean, mean], [place - 0.34, place + 0.34], color=BLACK, linewidth=2)
    axes.set_yticks(range(len(order)), order[c.DATASET].tolist())
    axes.invert_yaxis()
    axes.axvline(0, color=GREY, linewidth=1)
    axes.set_xlabel("log test loss, observed minus fitted (bar: mean of the dataset)")
    return figure


def draws_domain_lines(points: pd.DataFrame, fits: ScalingFits) -> bool:
    """Whether :func:`loss_on_d_data` drew a line."""
    return any(f.law == AT_EQUAL_SIZE.name and f.model in fits.models and _is_shown(f) for f in fits.laws)


def _is_shown(fit: LawFit) -> bool:
    """Whether a line is drawn: a slope without an interval, as of two datasets, is supported by nothing."""
    return fit.status == "ok" and fit.coefficients[1].interval is not None


def draws_predicted_slope(points: pd.DataFrame, fits: ScalingFits) -> bool:
    """Whether :func:`loss_on_train_size` drew the law's slope."""
    rows = points.dropna(subset=[t.LOG_LOSS])
    return bool((rows[t.D_REFERENCE] > 0).any())


def draws_left_out_interval(points: pd.DataFrame, fits: ScalingFits) -> bool:
    """Whether :func:`left_out` drew the interval of any slope."""
    return any(slope.interval is not None for _, slope in _shown_left_out(fits))


def _shown_left_out(fits: ScalingFits) -> list[tuple[str, Coefficient]]:
    return [
        (domain, fit.coefficients[1])
        for domain in c.DOMAINS
        if (fit := fits.law(AT_EQUAL_SIZE.name, subset=domain)).status == "ok"
        and sum(v is not None for v in fit.coefficients[1].left_out.values()) > 1
    ]


def left_out(points: pd.DataFrame, fits: ScalingFits) -> Figure | None:
    """Slope of log loss on d_data (pooled over models) with all datasets and without each, per domain."""
    shown = _shown_left_out(fits)
    if not shown:
        return None
    tallest = max(len(slope.left_out) for _, slope in shown) + 1
    figure = Figure(figsize=(4.2 * len(shown), 1.0 + 0.32 * tallest), layout="constrained")
    for axes, (domain, slope) in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        known = [(f"without {name}", value) for name, value in slope.left_out.items() if value is not None]
        labels, values = zip(("all datasets", slope.value), *known, strict=True)
        axes.axvline(0, color=GREY, linewidth=1)
        axes.axvline(slope.value, color=DOMAIN_COLOURS[domain], linewidth=1, linestyle=":")
        axes.plot(values, range(len(values)), "o", color=DOMAIN_COLOURS[domain], markersize=6)
        if slope.interval is not None:
            axes.plot(slope.interval, [0, 0], color=DOMAIN_COLOURS[domain], linewidth=1.6)
        axes.set_yticks(range(len(labels)), labels)
        axes.set_ylim(len(labels) - 0.5, -0.5)
        axes.set_title(domain)
    figure.supxlabel("slope of log test loss per unit of d_data, at equal N", fontsize=9)
    return figure


@dataclass(frozen=True, slots=True)
class Drawing:
    """A figure's file stem, its caption, and how it is drawn.

    ``drawn_if`` adds sentences to the caption where what they name was drawn.
    """

    name: str
    caption: str
    draw: Callable[[pd.DataFrame, ScalingFits], Figure | None]
    drawn_if: tuple[tuple[Callable[[pd.DataFrame, ScalingFits], bool], str], ...] = ()

    def describe(self, points: pd.DataFrame, fits: ScalingFits) -> str:
        """Return the caption of the figure as it was drawn for these points and fits."""
        return " ".join([self.caption, *(words for drawn, words in self.drawn_if if drawn(points, fits))])


def dataset_properties(points: pd.DataFrame, fits: ScalingFits) -> Figure | None:
    """Bars of d_data and K_F by dataset, sorted within domain; error bars: range over sizes and pairs."""
    cells = points.drop_duplicates([c.DATASET, c.CLASS_PAIR, c.TRAIN_SIZE])
    shown = [
        (name, label)
        for name, label in (
            (c.D_DATA_MLE, "intrinsic dimension d_data"),
            (c.LABEL_SHARPNESS, "label sharpness K_F (1 / L2 pixel distance)"),
        )
        if cells[name].notna().any()
    ]
    if not shown:
        return None
    num_datasets = cells[c.DATASET].nunique()
    figure = Figure(figsize=(4.4 * len(shown), 1.2 + 0.34 * num_datasets), layout="constrained")
    for axes, (name, label) in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        _bars(axes, cells, name)
        # The power of ten stands at the right end of this line, so the label starts at the left.
        axes.set_xlabel(label, loc="left")
    handles = [
        Patch(color=colour, label=domain)
        for domain, colour in DOMAIN_COLOURS.items()
        if domain in set(cells[c.DOMAIN])
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=2, fontsize=8)
    return figure


def _bars(axes: Axes, cells: pd.DataFrame, name: str) -> None:
    rows = (
        cells.dropna(subset=[name])
        .groupby([c.DOMAIN, c.DATASET])[name]
        .agg(["mean", "min", "max"])
        .reset_index()
    )
    rows = rows.sort_values([c.DOMAIN, "mean"], ascending=[False, False], ignore_index=True)
    gap = (rows[c.DOMAIN] != rows[c.DOMAIN].shift()).cumsum() - 1
    place = rows.index.to_numpy() + 0.6 * gap.to_numpy()
    # A mean may differ from equal values by rounding, and a negative error bar is refused.
    reach = np.maximum([rows["mean"] - rows["min"], rows["max"] - rows["mean"]], 0)
    axes.barh(place, rows["mean"], color=[DOMAIN_COLOURS[d] for d in rows[c.DOMAIN]], height=0.7)
    axes.errorbar(
        rows["mean"],
        place,
        xerr=reach,
        fmt="none",
        ecolor=BLACK,
        elinewidth=1,
        capsize=2.5,
    )
    axes.set_yticks(place, rows[c.DATASET].tolist())
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.ticklabel_format(axis="x", scilimits=(-2, 4), useMathText=True)


def loss_gain_on_sharpness(points: pd.DataFrame, fits: ScalingFits) -> Figure | None:
    """Loss gain under each attack against K_F, one panel per attack and epsilon; r is over dataset effects
    at equal N.
    """
    attacks = [
        a
        for a in c.attack_columns(points.columns)
        if points[[a.name, c.LABEL_SHARPNESS]].notna().all(axis=1).any()
    ][:MAX_PANELS]
    if not attacks:
        return None
    marks = dataset_marks(dict(zip(points[c.DATASET], points[c.DOMAIN], strict=True)))
    figure, panels = panel_grid(len(attacks), most_columns=2 if len(attacks) in (2, 4) else 3, share=False)
    found = {(f.attack, f.epsilon): f.on_sharpness for f in fits.attacks if f.model == POOLED}
    for axes, attack in zip(panels, attacks, strict=True):
        _scatter(
            axes,
            points.dropna(subset=[attack.name, c.LABEL_SHARPNESS]),
            c.LABEL_SHARPNESS,
            attack.name,
            marks,
        )
        fit = found[attack.attack, attack.epsilon]
        r, bounds = fit.pearson_at_equal_size, fit.interval_at_equal_size
        known = f"\nr = {number(r)} ({interval(bounds)})" if r is not None and bounds is not None else ""
        axes.set_title(f"{attack.attack.upper()}, ε = {attack.epsilon:g}/255{known}")
        axes.ticklabel_format(axis="x", scilimits=(-2, 4), useMathText=True)
        axes.axhline(0, color=GREY, linewidth=0.8)
    label_outer(figure, "label sharpness K_F (1 / L2 pixel distance)", "loss gain under attack (nat)")
    legend(figure, mark_handles(marks, points[c.DATASET]))
    return figure


def _scatter(axes: Axes, rows: pd.DataFrame, x: str, y: str, marks: dict[str, Mark]) -> None:
    for dataset, group in rows.groupby(c.DATASET):
        mark = marks[str(dataset)]
        drawn = axes.scatter(
            group[x], group[y], color=mark.colour, marker=mark.marker, s=26, alpha=0.8, linewidth=0
        )
        tell(drawn, group)


def d_repr_on_d_data(points: pd.DataFrame, fits: ScalingFits) -> Figure | None:
    """d_repr against d_data, one panel per model, with the line of equality: Theorem 5's bound."""
    rows = points.dropna(subset=[c.D_DATA_MLE, c.D_REPR_MLE])
    models = sorted(rows[c.MODEL].unique())[:MAX_PANELS]
    if not models:
        return None
    marks = dataset_marks(dict(zip(points[c.DATASET], points[c.DOMAIN], strict=True)))
    figure, panels = panel_grid(len(models))
    shares = {f.model: (f.num_below, f.num_points) for f in fits.representations if f.estimator == "mle"}
    top = float(rows[[c.D_DATA_MLE, c.D_REPR_MLE]].max().max()) * 1.05
    for axes, model in zip(panels, models, strict=True):
        axes.plot([0, top], [0, top], color=GREY, linestyle="--", linewidth=1)
        _scatter(axes, rows[rows[c.MODEL] == model], c.D_DATA_MLE, c.D_REPR_MLE, marks)
        below, total = shares.get(model, (0, 0))
        axes.set_title(model + (f"   {below} of {total} at or below" if total else ""))
        axes.set_xlim(0, float(rows[c.D_DATA_MLE].max()) * 1.08)
        axes.set_ylim(0, top)
    label_outer(figure, "dimension d_data", "dimension d_repr")
    equality = Line2D([], [], color=GREY, linestyle="--", label="d_repr = d_data")
    legend(figure, [equality, *mark_handles(marks, rows[c.DATASET])])
    return figure


def draws_attack_intervals(points: pd.DataFrame, fits: ScalingFits) -> bool:
    """Whether any panel names an r with its interval."""
    return any(f.model == POOLED and f.on_sharpness.interval_at_equal_size is not None for f in fits.attacks)


DRAWINGS = (
    Drawing(
        "dataset_properties",
        "Intrinsic dimension and label sharpness of each dataset. Bars are means, error "
        "bars the range over train sizes and class pairs.",
        dataset_properties,
    ),
    Drawing(
        "loss_on_d_data",
        "Test loss against intrinsic dimension, coloured by train size.",
        loss_on_d_data,
        (
            (
                draws_domain_lines,
                "Lines are fits within a domain that compare points of equal train size: d_data's estimate "
                "grows with "
                "N while the loss falls, so a line through all points would mix the two.",
            ),
        ),
    ),
    Drawing(
        "left_out",
        "How the slope of log loss on d_data, at equal train size, changes when each dataset is left out "
        "(all models). "
        "A slope that moves across zero rests on that dataset.",
        left_out,
        ((draws_left_out_interval, "The bar on top is the 95 % interval."),),
    ),
    Drawing(
        "residuals",
        "What the predicted form leaves unexplained, by dataset (all models). A dataset that "
        "lies on one side as a whole has something that N, d_data and K_F do not tell.",
        residuals,
    ),
    Drawing(
        "loss_on_train_size",
        "Test loss against train size. Class pairs and seeds are averaged.",
        loss_on_train_size,
        (
            (
                draws_predicted_slope,
                "The dashed line has the slope −1/d_data of the law's bound; only its slope is predicted, "
                "not its height.",
            ),
        ),
    ),
    Drawing(
        "loss_gain_on_sharpness",
        "How much an attack raises the loss, against label sharpness.",
        loss_gain_on_sharpness,
        (
            (
                draws_attack_intervals,
                "r is over dataset effects at equal model and train size, all models, with its 95 % interval "
                "(exploratory; adjusted for their number in the table).",
            ),
        ),
    ),
    Drawing(
        "d_repr_on_d_data",
        "Intrinsic dimension of the last hidden layer against that of the data, both by "
        "maximum likelihood. Points above the dashed line violate the approximate bound.",
        d_repr_on_d_data,
    ),
)
