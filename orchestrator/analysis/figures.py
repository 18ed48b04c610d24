"""The study's figures: each function turns fitted points into one matplotlib figure, or None without data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from orchestrator.analysis import columns as c
from orchestrator.analysis import palette as p
from orchestrator.analysis import table as t
from orchestrator.analysis.laws import PREDICTED_FORM
from orchestrator.analysis.records import POOLED, ScalingFits

#: More panels than this are unreadable; the rest is in the tables.
MAX_PANELS = 12


@dataclass(frozen=True, slots=True)
class Drawing:
    """A figure's file stem, its caption, and how it is drawn."""

    name: str
    caption: str
    draw: Callable[[pd.DataFrame, ScalingFits], Figure | None]


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
        axes.set_xlabel(label)
    handles = [
        Patch(color=colour, label=domain)
        for domain, colour in p.DOMAIN_COLOURS.items()
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
    axes.barh(place, rows["mean"], color=[p.DOMAIN_COLOURS[d] for d in rows[c.DOMAIN]], height=0.7)
    axes.errorbar(
        rows["mean"],
        place,
        xerr=reach,
        fmt="none",
        ecolor=p.BLACK,
        elinewidth=1,
        capsize=2.5,
    )
    axes.set_yticks(place, rows[c.DATASET].tolist())
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.ticklabel_format(axis="x", scilimits=(-2, 4), useMathText=True)


def loss_on_d_data(points: pd.DataFrame, fits: ScalingFits) -> Figure | None:
    """Test loss against d_data, one panel per model, coloured by N, with one line per domain where fitted."""
    rows = points.dropna(subset=[t.LOG_LOSS, c.D_DATA_MLE])
    models = sorted(rows[c.MODEL].unique())[:MAX_PANELS]
    if not models:
        return None
    figure, panels = p.panels(len(models))
    low, high = rows[c.TRAIN_SIZE].min(), rows[c.TRAIN_SIZE].max()
    norm = LogNorm(low, high) if high > low else Normalize(low - 1, low + 1)
    for axes, model in zip(panels, models, strict=True):
        part = rows[rows[c.MODEL] == model]
        for domain, group in part.groupby(c.DOMAIN):
            axes.scatter(
                group[c.D_DATA_MLE],
                group[c.TEST_LOSS],
                c=group[c.TRAIN_SIZE],
                norm=norm,
                cmap="viridis_r",
                marker=_domain_marker(str(domain)),
                s=30,
                edgecolor=p.DOMAIN_COLOURS[str(domain)],
                linewidth=0.9,
            )
            _domain_line(axes, fits, model, str(domain), group[c.D_DATA_MLE])
        p.log_ticks(axes, "y", rows[c.TEST_LOSS])
        axes.set_title(model)
    _label_outer(figure, "intrinsic dimension d_data", "test loss (nat)")
    figure.colorbar(
        ScalarMappable(norm, "viridis_r"),
        ax=panels,
        label="train size N (images)",
        fraction=0.05,
        ticks=sorted(rows[c.TRAIN_SIZE].unique())[:: max(1, rows[c.TRAIN_SIZE].nunique() // 6)],
        format="{x:,.0f}",
    ).minorticks_off()
    p.legend(
        figure,
        [
            Line2D([], [], color=colour, marker=_domain_marker(d), markerfacecolor="white", label=d)
            for d, colour in p.DOMAIN_COLOURS.items()
            if d in set(rows[c.DOMAIN])
        ],
    )
    return figure


def _domain_marker(domain: str) -> str:
    return "o" if domain == c.NATURAL else "s"


def _domain_line(axes: Axes, fits: ScalingFits, model: str, domain: str, x: pd.Series) -> None:
    fit = fits.law("loss_on_d_data", model=model, subset=domain)
    if fit.status != "ok":
        return
    ends = np.array([x.min(), x.max()])
    intercept, slope = (k.value for k in fit.coefficients)
    axes.plot(ends, np.exp(intercept + slope * ends), color=p.DOMAIN_COLOURS[domain], linewidth=1.4)


def _label_outer(figure: Figure, x: str, y: str) -> None:
    figure.supxlabel(x, fontsize=9)
    figure.supylabel(y, fontsize=9)


def loss_gain_on_sharpness(points: pd.DataFrame, fits: ScalingFits) -> Figure | None:
    """Loss gain under each attack against K_F, one panel per attack and epsilon; r is over all points."""
    attacks = [
        a
        for a in c.attack_columns(points.columns)
        if points[[a.name, c.LABEL_SHARPNESS]].notna().all(axis=1).any()
    ][:MAX_PANELS]
    if not attacks:
        return None
    marks = p.dataset_marks(dict(zip(points[c.DATASET], points[c.DOMAIN], strict=True)))
    figure, panels = p.panels(len(attacks), most_columns=2 if len(attacks) in (2, 4) else 3, share=False)
    found = {(f.attack, f.epsilon): f.on_sharpness for f in fits.attacks if f.model == POOLED}
    for axes, attack in zip(panels, attacks, strict=True):
        _scatter(
            axes,
            points.dropna(subset=[attack.name, c.LABEL_SHARPNESS]),
            c.LABEL_SHARPNESS,
            attack.name,
            marks,
        )
        r = found[attack.attack, attack.epsilon].pearson
        title = f"{attack.attack.upper()}, ε = {attack.epsilon:g}/255"
        axes.set_title(title + (f"   r = {r:.2f}" if r is not None else ""))
        axes.ticklabel_format(axis="x", scilimits=(-2, 4), useMathText=True)
        axes.axhline(0, color=p.GREY, linewidth=0.8)
    _label_outer(figure, "label sharpness K_F (1 / L2 pixel distance)", "loss gain under attack (nat)")
    p.legend(figure, p.mark_handles(marks, points[c.DATASET]))
    return figure


def _scatter(axes: Axes, rows: pd.DataFrame, x: str, y: str, marks: dict[str, p.Mark]) -> None:
    for dataset, group in rows.groupby(c.DATASET):
        mark = marks[str(dataset)]
        axes.scatter(group[x], group[y], color=mark.colour, marker=mark.marker, s=26, alpha=0.8, linewidth=0)


def d_repr_on_d_data(points: pd.DataFrame, fits: ScalingFits) -> Figure | None:
    """d_repr against d_data, one panel per model, with the line of equality: Theorem 5's bound."""
    rows = points.dropna(subset=[c.D_DATA_MLE, c.D_REPR_MLE])
    models = sorted(rows[c.MODEL].unique())[:MAX_PANELS]
    if not models:
        return None
    marks = p.dataset_marks(dict(zip(points[c.DATASET], points[c.DOMAIN], strict=True)))
    figure, panels = p.panels(len(models))
    shares = {f.model: f.share_below for f in fits.representations if f.estimator == "mle"}
    top = float(rows[[c.D_DATA_MLE, c.D_REPR_MLE]].max().max()) * 1.05
    for axes, model in zip(panels, models, strict=True):
        axes.plot([0, top], [0, top], color=p.GREY, linestyle="--", linewidth=1)
        _scatter(axes, rows[rows[c.MODEL] == model], c.D_DATA_MLE, c.D_REPR_MLE, marks)
        share = shares.get(model)
        axes.set_title(model + (f"   {share:.0%} at or below" if share is not None else ""))
        axes.set_xlim(0, float(rows[c.D_DATA_MLE].max()) * 1.08)
        axes.set_ylim(0, top)
    _label_outer(figure, "intrinsic dimension of the data, d_data", "of the representation, d_repr")
    equality = Line2D([], [], color=p.GREY, linestyle="--", label="d_repr = d_data")
    p.legend(figure, [equality, *p.mark_handles(marks, rows[c.DATASET])])
    return figure


def loss_on_train_size(points: pd.DataFrame, fits: ScalingFits) -> Figure | None:
    """Test loss against N, one panel per dataset, one line per model, beside the predicted slope."""
    rows = points.dropna(subset=[t.LOG_LOSS])
    order = rows[[c.DOMAIN, c.DATASET]].drop_duplicates().sort_values([c.DOMAIN, c.DATASET])
    datasets = order[c.DATASET].tolist()[:MAX_PANELS]
    if len(datasets) == 0:
        return None
    figure, panels = p.panels(
        len(datasets), width=2.9, height=2.4, most_columns=4 if len(datasets) > 4 else 3
    )
    models = sorted(rows[c.MODEL].unique())
    colours = {model: p.MODEL_COLOURS[k % len(p.MODEL_COLOURS)] for k, model in enumerate(models)}
    curves = rows.groupby([c.DATASET, c.MODEL, c.TRAIN_SIZE])[t.LOG_LOSS].mean()
    for axes, dataset in zip(panels, datasets, strict=True):
        part = rows[rows[c.DATASET] == dataset]
        for model in sorted(part[c.MODEL].unique()):
            curve = curves[dataset, model]
            axes.plot(
                curve.index, np.exp(curve), color=colours[model], marker="o", markersize=3.5, linewidth=1.1
            )
        _predicted_slope(axes, part)
        p.size_ticks(axes, sorted(rows[c.TRAIN_SIZE].unique()))
        p.log_ticks(axes, "y", rows[c.TEST_LOSS])
        axes.set_title(str(dataset), color=p.DOMAIN_COLOURS[part[c.DOMAIN].iloc[0]])
    _label_outer(figure, "train size N (images)", "test loss (nat)")
    lines = [Line2D([], [], color=colours[m], marker="o", markersize=3.5, label=m) for m in models]
    p.legend(
        figure, [*lines, Line2D([], [], color=p.BLACK, linestyle="--", label="predicted slope\n−1/d_data")]
    )
    return figure


def _predicted_slope(axes: Axes, part: pd.DataFrame) -> None:
    d_data = part[c.D_DATA_MLE].mean()
    if not d_data > 0:
        return
    sizes = np.array([part[c.TRAIN_SIZE].min(), part[c.TRAIN_SIZE].max()])
    # Only the slope is predicted; the height is set to pass through the middle of the points.
    middle = part[t.LOG_LOSS].mean() + part[t.LOG_TRAIN_SIZE].mean() / d_data
    axes.plot(sizes, np.exp(middle - np.log(sizes) / d_data), color=p.BLACK, linestyle="--", linewidth=1.2)


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
        axes.scatter(
            values,
            place + jitter.uniform(-0.18, 0.18, len(values)),
            s=10,
            alpha=0.6,
            linewidth=0,
            color=p.DOMAIN_COLOURS[domain],
        )
        axes.plot([mean, mean], [place - 0.34, place + 0.34], color=p.BLACK, linewidth=2)
    axes.set_yticks(range(len(order)), order[c.DATASET].tolist())
    axes.invert_yaxis()
    axes.axvline(0, color=p.GREY, linewidth=1)
    axes.set_xlabel("log test loss, observed minus fitted (bar: mean of the dataset)")
    return figure


def left_out(points: pd.DataFrame, fits: ScalingFits) -> Figure | None:
    """Slope of log loss on d_data (pooled over models) with all datasets and without each, per domain."""
    shown = [
        (domain, fit.coefficients[1])
        for domain in c.DOMAINS
        if (fit := fits.law("loss_on_d_data", subset=domain)).status == "ok"
        and sum(v is not None for v in fit.coefficients[1].left_out.values()) > 1
    ]
    if not shown:
        return None
    tallest = max(len(slope.left_out) for _, slope in shown) + 1
    figure = Figure(figsize=(4.2 * len(shown), 1.0 + 0.32 * tallest), layout="constrained")
    for axes, (domain, slope) in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        known = [(f"without {name}", value) for name, value in slope.left_out.items() if value is not None]
        labels, values = zip(("all datasets", slope.value), *known, strict=True)
        axes.axvline(0, color=p.GREY, linewidth=1)
        axes.axvline(slope.value, color=p.DOMAIN_COLOURS[domain], linewidth=1, linestyle=":")
        axes.plot(values, range(len(values)), "o", color=p.DOMAIN_COLOURS[domain], markersize=6)
        if slope.interval is not None:
            axes.plot(slope.interval, [0, 0], color=p.DOMAIN_COLOURS[domain], linewidth=1.6)
        axes.set_yticks(range(len(labels)), labels)
        axes.set_ylim(len(labels) - 0.5, -0.5)
        axes.set_title(domain)
    figure.supxlabel("slope of log test loss per unit of d_data", fontsize=9)
    return figure


DRAWINGS = (
    Drawing(
        "dataset_properties",
        "Intrinsic dimension and label sharpness of each dataset. Bars are means, error "
        "bars the range over train sizes and class pairs.",
        dataset_properties,
    ),
    Drawing(
        "loss_on_d_data",
        "Test loss against intrinsic dimension, coloured by train size. Lines are fits within "
        "a domain, drawn only where it has at least two datasets.",
        loss_on_d_data,
    ),
    Drawing(
        "left_out",
        "How the slope of log loss on d_data changes when each dataset is left out (all models). "
        "A slope that moves across zero rests on that dataset. The bar on top is the 95 % interval.",
        left_out,
    ),
    Drawing(
        "residuals",
        "What the predicted form leaves unexplained, by dataset (all models). A dataset that "
        "lies on one side as a whole has something that N, d_data and K_F do not tell.",
        residuals,
    ),
    Drawing(
        "loss_on_train_size",
        "Test loss against train size. The dashed line has the predicted slope −1/d_data; "
        "only its slope is predicted, not its height. Class pairs and seeds are averaged.",
        loss_on_train_size,
    ),
    Drawing(
        "loss_gain_on_sharpness",
        "How much an attack raises the loss, against label sharpness.",
        loss_gain_on_sharpness,
    ),
    Drawing(
        "d_repr_on_d_data",
        "Intrinsic dimension of the last hidden layer against that of the data, both by "
        "maximum likelihood. Points above the dashed line violate the approximate bound.",
        d_repr_on_d_data,
    ),
)
