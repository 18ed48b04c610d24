"""The study's figures: each function draws one from points and fits, or returns None without data.

A caption begins with what the figure shows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from urllib.parse import quote

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PathCollection
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from orchestrator.analysis.figures.style import (
    BLACK,
    DOMAIN_COLORS,
    DOMAIN_MARKERS,
    GREY,
    MARKERS,
    MAX_PANELS,
    MODEL_COLORS,
    Mark,
    dataset_marks,
    frame,
    log_ticks,
    mark_handles,
    number_ticks,
    panels,
    size_ticks,
    spans_much,
)
from orchestrator.analysis.fits import ScalingFits
from orchestrator.analysis.number_formats import interval, number
from orchestrator.analysis.results_tables.dataset_summaries import DatasetSummary
from orchestrator.analysis.results_tables.points import D_REFERENCE, LOG_LOSS, LOG_TRAIN_SIZE
from orchestrator.results.columns import (
    CLASS_PAIR,
    D_DATA_MLE,
    DATASET,
    DOMAIN,
    LABEL_SHARPNESS,
    MODEL,
    TEST_LOSS,
    TRAIN_SIZE,
    attack_columns,
)

SHARPNESS_LABEL = "label sharpness K_F (1 / L2 pixel distance)"
DIMENSION_LABEL = "intrinsic dimension d_data (directions)"
LOSS_LABEL = "test loss (nat)"
SIZE_LABEL = "train size N (images)"
SMALLEST_LOSS_RANGE = 4.0
"""Loss axes span at least this factor, so that scatter of a few per cent does not fill a panel."""
MAX_COLORBAR_TICKS = 6
ADDRESS_COLUMNS = [
    MODEL,
    DATASET,
    CLASS_PAIR,
    TRAIN_SIZE,
    D_DATA_MLE,
    LABEL_SHARPNESS,
    TEST_LOSS,
]
"""Columns that the address of a drawn point is made of."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """A figure with its caption.

    Attributes:
        figure: The figure.
        caption: Its message first, then how to read it.
    """

    figure: Figure
    caption: str


def set_addresses(scatter: PathCollection, rows: pd.DataFrame) -> None:
    """Give drawn points addresses, by which the page finds their trials and says what they are."""
    addresses = []
    for row in rows.reindex(columns=ADDRESS_COLUMNS).itertuples(index=False):
        model, dataset, class_pair, size, d_data, sharpness, loss = row
        words = [name for name in (model, dataset, class_pair) if isinstance(name, str) and name]
        words.append(f"{size:g}")
        numbers = []
        for title, value in (("d_data", d_data), ("K_F", sharpness), ("loss", loss)):
            if pd.notna(value):
                numbers.append(f"{title} {value:.3g}")
        addresses.append(f"#point:{quote(' '.join(words) + '|' + ', '.join(numbers))}")
    scatter.set_urls(addresses)


def dataset_properties(points: pd.DataFrame, fits: ScalingFits) -> Drawn | None:
    """Draw bars of d_data and K_F by dataset, sorted within domain."""
    cells = points.drop_duplicates([DATASET, CLASS_PAIR, TRAIN_SIZE])
    properties = {
        D_DATA_MLE: (DIMENSION_LABEL, _d_data_of),
        LABEL_SHARPNESS: (SHARPNESS_LABEL, _sharpness_of),
    }
    shown = [name for name in properties if cells[name].notna().any()]
    if not shown:
        return None
    size = (4.4 * len(shown), 1.2 + 0.34 * cells[DATASET].nunique())
    figure = Figure(figsize=size, layout="constrained")
    for axes, name in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        label, value_of = properties[name]
        means = {dataset.dataset: value_of(dataset) for dataset in fits.datasets}
        _bars(axes, cells.dropna(subset=[name]), name, means)
        axes.set_xlabel(label)
    domains = set(cells[DOMAIN])
    handles = []
    for domain, color in DOMAIN_COLORS.items():
        if domain in domains:
            handles.append(Patch(color=color, label=domain))
    figure.legend(handles=handles, loc="outside upper center", ncols=2, fontsize=8)
    return Drawn(
        figure,
        "How the datasets differ in intrinsic dimension and label sharpness. Bars are the numbers "
        "of the summary; error bars run over train sizes and class pairs.",
    )


def _d_data_of(dataset: DatasetSummary) -> float | None:
    return dataset.d_data


def _sharpness_of(dataset: DatasetSummary) -> float | None:
    return dataset.label_sharpness


def _bars(axes: Axes, cells: pd.DataFrame, name: str, means: dict[str, float | None]) -> None:
    """Draw a bar per dataset, natural ones above medical ones, with the range as error bar."""
    rows = cells.groupby([DOMAIN, DATASET])[name].agg(["min", "max"]).reset_index()
    rows["mean"] = rows[DATASET].map(means)
    rows = rows.sort_values([DOMAIN, "mean"], ascending=[False, False], ignore_index=True)
    is_second_domain = rows[DOMAIN] != rows[DOMAIN].iloc[0]
    places = rows.index.to_numpy() + 0.6 * is_second_domain.to_numpy()
    # Rounding may put a mean of equal values outside their range.
    reach = np.maximum([rows["mean"] - rows["min"], rows["max"] - rows["mean"]], 0)
    colors = [DOMAIN_COLORS[domain] for domain in rows[DOMAIN]]
    axes.barh(places, rows["mean"], color=colors, height=0.7)
    axes.errorbar(
        rows["mean"], places, xerr=reach, fmt="none", ecolor=BLACK, elinewidth=1, capsize=2.5
    )
    number_ticks(axes, "x", rows["mean"])
    axes.set_yticks(places, rows[DATASET].tolist())
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)


def loss_on_d_data(points: pd.DataFrame, fits: ScalingFits) -> Drawn | None:
    """Draw test loss against d_data, one panel per model, colored by N."""
    rows = points.dropna(subset=[LOG_LOSS, D_DATA_MLE])
    models = sorted(rows[MODEL].unique())[:MAX_PANELS]
    if not models:
        return None
    figure, axes_of_models = panels(len(models))
    sizes = sorted(rows[TRAIN_SIZE].unique())
    norm: Normalize = Normalize(sizes[0] - 1, sizes[0] + 1)
    if len(sizes) > 1:
        norm = LogNorm(sizes[0], sizes[-1])
    for axes, model in zip(axes_of_models, models, strict=True):
        for domain, group in rows[rows[MODEL] == model].groupby(DOMAIN):
            scatter = axes.scatter(
                group[D_DATA_MLE],
                group[TEST_LOSS],
                c=group[TRAIN_SIZE],
                norm=norm,
                cmap="viridis_r",
                marker=DOMAIN_MARKERS[str(domain)],
                s=30,
                edgecolor=DOMAIN_COLORS[str(domain)],
                linewidth=0.9,
            )
            set_addresses(scatter, group)
        log_ticks(axes, "y", rows[TEST_LOSS])
        axes.set_title(model)
    figure.colorbar(
        ScalarMappable(norm, "viridis_r"),
        ax=axes_of_models,
        label=SIZE_LABEL,
        fraction=0.05,
        ticks=sizes[:: max(1, len(sizes) // MAX_COLORBAR_TICKS)],
        format="{x:,.0f}",
    ).minorticks_off()
    marks = {domain: (color, DOMAIN_MARKERS[domain]) for domain, color in DOMAIN_COLORS.items()}
    handles = mark_handles(marks, rows[DOMAIN], "-")
    for handle in handles:
        handle.set_markerfacecolor("white")
    frame(figure, DIMENSION_LABEL, LOSS_LABEL, handles)
    return Drawn(
        figure,
        "How the loss goes with intrinsic dimension at each train size. Both change with N: "
        "compare points of one color.",
    )


def loss_on_train_size(points: pd.DataFrame, fits: ScalingFits) -> Drawn | None:
    """Draw test loss against N, one panel per dataset and one line per model."""
    rows = points.dropna(subset=[LOG_LOSS])
    order = rows[[DOMAIN, DATASET]].drop_duplicates().sort_values([DOMAIN, DATASET])
    datasets = order[DATASET].tolist()[:MAX_PANELS]
    if not datasets:
        return None
    columns = 4 if len(datasets) > 4 else 3
    figure, axes_of_datasets = panels(
        len(datasets), width=2.9, height=2.4, most_columns=columns, share=False
    )
    looks = zip(cycle(MODEL_COLORS), cycle(MARKERS), strict=False)
    marks = dict(zip(sorted(rows[MODEL].unique()), looks, strict=False))
    means = rows.groupby([DATASET, MODEL, TRAIN_SIZE])[LOG_LOSS].mean()
    curves = np.exp(means).reset_index(name=TEST_LOSS)
    sizes = sorted(rows[TRAIN_SIZE].unique())
    has_slope = False
    for axes, dataset in zip(axes_of_datasets, datasets, strict=True):
        of_dataset = rows[rows[DATASET] == dataset]
        _curves(axes, curves[curves[DATASET] == dataset], marks)
        has_slope |= _predicted_slope(axes, of_dataset)
        size_ticks(axes, sizes)
        _loss_axis(axes, of_dataset[TEST_LOSS])
        axes.set_title(str(dataset), color=DOMAIN_COLORS[of_dataset[DOMAIN].iloc[0]])
    handles = mark_handles(marks, marks, "-")
    caption = "How the loss falls with the number of training images."
    if has_slope:
        label = "predicted slope\n−1/d_data"
        handles.append(Line2D([], [], color=BLACK, linestyle="--", label=label))
        caption += (
            " A dashed line has the slope −1/d_data of the law's bound; its height is not "
            "predicted."
        )
    frame(figure, SIZE_LABEL, LOSS_LABEL, handles)
    return Drawn(figure, f"{caption} Class pairs and seeds are averaged.")


def _curves(axes: Axes, curves: pd.DataFrame, marks: dict[str, Mark]) -> None:
    """Draw the curve of every model on one dataset."""
    for model, curve in curves.groupby(MODEL):
        color, marker = marks[str(model)]
        axes.plot(curve[TRAIN_SIZE], curve[TEST_LOSS], color=color, linewidth=1.1)
        scatter = axes.scatter(
            curve[TRAIN_SIZE], curve[TEST_LOSS], color=color, marker=marker, s=14
        )
        set_addresses(scatter, curve)


def _predicted_slope(axes: Axes, rows: pd.DataFrame) -> bool:
    """Draw the slope of the law's bound through the middle of the points, if d_data is known."""
    d_data = rows[D_REFERENCE].mean()
    if not d_data > 0:
        return False
    ends = np.array([rows[TRAIN_SIZE].min(), rows[TRAIN_SIZE].max()])
    middle = rows[LOG_LOSS].mean() + rows[LOG_TRAIN_SIZE].mean() / d_data
    predicted = np.exp(middle - np.log(ends) / d_data)
    axes.plot(ends, predicted, color=BLACK, linestyle="--", linewidth=1.2)
    return True


def _loss_axis(axes: Axes, losses: pd.Series) -> None:
    """Make the loss axis logarithmic, over at least :data:`SMALLEST_LOSS_RANGE`."""
    log_ticks(axes, "y", losses)
    low, high = axes.get_ylim()
    if high / low < SMALLEST_LOSS_RANGE:
        middle = np.sqrt(low * high)
        half = np.sqrt(SMALLEST_LOSS_RANGE)
        axes.set_ylim(middle / half, middle * half)
        log_ticks(axes, "y", pd.Series([middle / half, middle * half]))


def loss_gain_on_sharpness(points: pd.DataFrame, fits: ScalingFits) -> Drawn | None:
    """Draw the loss gained by each attack against K_F, one panel per attack and epsilon."""
    points_with_sharpness = points[points[LABEL_SHARPNESS].notna()]
    attacks = []
    for attack in attack_columns(points.columns):
        if points_with_sharpness[attack.name].notna().any():
            attacks.append(attack)
    attacks = attacks[:MAX_PANELS]
    if not attacks:
        return None
    marks = dataset_marks(dict(zip(points[DATASET], points[DOMAIN], strict=True)))
    most_columns = 2 if len(attacks) in (2, 4) else 3
    figure, axes_of_attacks = panels(len(attacks), most_columns=most_columns, share=False)
    has_correlation = False
    for axes, attack in zip(axes_of_attacks, attacks, strict=True):
        rows = points_with_sharpness.dropna(subset=[attack.name])
        for dataset, group in rows.groupby(DATASET):
            color, marker = marks[str(dataset)]
            scatter = axes.scatter(
                group[LABEL_SHARPNESS],
                group[attack.name],
                color=color,
                marker=marker,
                s=26,
                alpha=0.8,
                linewidth=0,
            )
            set_addresses(scatter, group)
        r = fits.attack(attack.name).estimate("r")
        axes.set_title(attack.words)
        if r is not None and r.interval is not None:
            axes.set_title(f"{attack.words}\nr = {number(r.value)} ({interval(r.interval)})")
            has_correlation = True
        number_ticks(axes, "x", rows[LABEL_SHARPNESS])
        number_ticks(axes, "y", rows[attack.name])
        if not spans_much(rows[attack.name]):
            axes.axhline(0, color=GREY, linewidth=0.8)
    handles = mark_handles(marks, points[DATASET])
    frame(figure, SHARPNESS_LABEL, "loss gained by the attack (nat)", handles)
    caption = "How much an attack raises the loss, by label sharpness."
    if points_with_sharpness[DATASET].nunique() == 1:
        caption += " One dataset: K_F differs only through N, so a trend shows N and not K_F."
    if has_correlation:
        caption += (
            " r is over dataset effects at equal model and train size, within domains, of all "
            "models, with its 95 % interval. It is exploratory."
        )
    return Drawn(figure, caption)


DRAWINGS: dict[str, Callable[[pd.DataFrame, ScalingFits], Drawn | None]] = {
    "loss_on_train_size": loss_on_train_size,
    "loss_gain_on_sharpness": loss_gain_on_sharpness,
    "loss_on_d_data": loss_on_d_data,
    "dataset_properties": dataset_properties,
}
"""File stem -> drawing, in the order of the report; the first two are the key ones."""
