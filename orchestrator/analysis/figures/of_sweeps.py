"""The figures of a sweep, like the figures of the study.

Each function draws one figure from points and fits. It returns None if the data for the figure
are missing. The first sentence of a caption states the message of the figure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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

from orchestrator.analysis.class_pairs import mean_accuracy_lost
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
from orchestrator.analysis.headline import strongest_attack
from orchestrator.analysis.number_formats import interval, listing, number
from orchestrator.analysis.results_tables.dataset_summaries import DatasetSummary
from orchestrator.analysis.results_tables.points import D_REFERENCE, LOG_LOSS, LOG_TRAIN_SIZE
from orchestrator.analysis.sentences.of_class_pairs import attack_in_words
from orchestrator.results.columns import (
    CLASS_PAIR,
    D_DATA_MLE,
    DATASET,
    DOMAIN,
    LABEL_SHARPNESS,
    MEAN_UNLIKE_DISTANCE,
    MODEL,
    TEST_LOSS,
    TRAIN_SIZE,
    attack_columns,
)

SHARPNESS_LABEL = "label sharpness K_F (1 / L2 pixel distance)"
DIMENSION_LABEL = "intrinsic dimension d_data (directions)"
DELTA_LABEL = "δ: mean distance to the nearest image of the other class (L2, pixels)"
LOSS_LABEL = "test loss (nat)"
SIZE_LABEL = "train size N (images)"
SMALLEST_LOSS_RANGE = 4.0
"""Smallest factor between the ends of a loss axis. On such an axis, scatter of a few per cent
does not look large."""
MAX_COLORBAR_TICKS = 6
"""Largest number of ticks on a color bar."""
MAX_NAMED_PAIRS = 60
"""Largest number of class pairs with labeled dots. More labels would overlap."""
ACCURACY_LOST = "accuracy_lost"
"""Name of the column with the accuracy that attacks cost, in percentage points."""
PAIRS_SHARE = "Pairs share classes, so dots are not independent."
"""Sentence in the captions of figures whose dots are class pairs."""
GAIN_OF_PAIRS = (
    "The answers on attacks are about accuracy lost, not about this loss. There is one dot per "
    "class pair, network and N."
)
"""Sentences in the caption of the figure of added losses of class pairs. No test uses these
losses."""
OF_CORRELATION = (
    "The figure shows the points of all networks. The number r is the correlation over datasets, "
    "at equal train size and within domains. Each panel has the r of the network with the largest "
    "r for this attack. The 95 % intervals hold for all networks and attacks together. The verdict "
    "is on the largest r of all attacks and networks."
)
"""Sentences in the caption of the figure of added losses if a correlation was computed."""
ADDRESS_TITLES = {
    D_DATA_MLE: "d_data",
    LABEL_SHARPNESS: "K_F",
    TEST_LOSS: "loss",
}
"""Title of each column that appears in the link of a drawn point."""
ADDRESS_COLUMNS = [MODEL, DATASET, CLASS_PAIR, TRAIN_SIZE, *ADDRESS_TITLES]
"""Columns that appear in the link of a drawn point."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """A figure with its caption.

    Attributes:
        figure: The figure.
        caption: Sentences on the message of the figure, followed by sentences on how to read
            it.
    """

    figure: Figure
    caption: str


def set_addresses(scatter: PathCollection, rows: pd.DataFrame) -> None:
    """Set the link of each drawn point. With this link, the page shows the trials of the point."""
    addresses = []
    for row in rows.reindex(columns=ADDRESS_COLUMNS).itertuples(index=False):
        address = dict(zip(ADDRESS_COLUMNS, row, strict=True))
        names = [address[column] for column in (MODEL, DATASET, CLASS_PAIR)]
        words = [name for name in names if isinstance(name, str) and name]
        words.append(f"{address[TRAIN_SIZE]:g}")
        numbers = []
        for column, title in ADDRESS_TITLES.items():
            if pd.notna(address[column]):
                numbers.append(f"{title} {address[column]:.3g}")
        text = f"{' '.join(words)}|{', '.join(numbers)}"
        addresses.append(f"#point:{quote(text)}")
    scatter.set_urls(addresses)


def dataset_properties(points: pd.DataFrame, fits: ScalingFits) -> Drawn | None:
    """Draw bars of d_data and K_F for each dataset, sorted within domains.

    Returns None if there is only one dataset.
    """
    cells = points.drop_duplicates([DATASET, CLASS_PAIR, TRAIN_SIZE])
    properties = {
        D_DATA_MLE: (DIMENSION_LABEL, _d_data_of),
        LABEL_SHARPNESS: (SHARPNESS_LABEL, _sharpness_of),
    }
    measured = [name for name in properties if cells[name].notna().any()]
    num_datasets = cells[DATASET].nunique()
    if not measured or num_datasets < 2:
        return None
    width = 4.4 * len(measured)
    height = 1.2 + 0.34 * num_datasets
    figure = Figure(figsize=(width, height), layout="constrained")
    all_axes = figure.subplots(1, len(measured), squeeze=False)[0]
    for axes, name in zip(all_axes, measured, strict=True):
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
        "Intrinsic dimension and label sharpness of the datasets. Bars show the numbers of "
        "the summary. Error bars show the range over train sizes and class pairs.",
    )


def _d_data_of(dataset: DatasetSummary) -> float | None:
    return dataset.d_data


def _sharpness_of(dataset: DatasetSummary) -> float | None:
    return dataset.label_sharpness


def _bars(axes: Axes, cells: pd.DataFrame, name: str, means: dict[str, float | None]) -> None:
    """Draw a bar per dataset, with the range as error bar.

    Natural datasets are above medical ones.
    """
    values = cells.groupby([DOMAIN, DATASET])[name]
    ranges = values.agg(["min", "max"])
    rows = ranges.reset_index()
    rows["mean"] = rows[DATASET].map(means)
    rows = rows.sort_values([DOMAIN, "mean"], ascending=[False, False], ignore_index=True)
    is_second_domain = rows[DOMAIN] != rows[DOMAIN].iloc[0]
    gap = 0.6 * is_second_domain.to_numpy()
    places = rows.index.to_numpy() + gap
    # Because of rounding, the mean of equal values can lie outside their range.
    below = rows["mean"] - rows["min"]
    above = rows["max"] - rows["mean"]
    reach = np.maximum([below, above], 0.0)
    colors = [DOMAIN_COLORS[domain] for domain in rows[DOMAIN]]
    axes.barh(places, rows["mean"], color=colors, height=0.7)
    axes.errorbar(
        rows["mean"], places, xerr=reach, fmt="none", ecolor=BLACK, elinewidth=1, capsize=2.5
    )
    number_ticks(axes.xaxis, rows["mean"])
    axes.set_yticks(places, rows[DATASET].tolist())
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)


def loss_on_d_data(points: pd.DataFrame, fits: ScalingFits) -> Drawn | None:
    """Draw test loss against d_data, with one panel per model and one color per N.

    Returns None if all points have the same d_data.
    """
    rows = points.dropna(subset=[LOG_LOSS, D_DATA_MLE])
    models = sorted(rows[MODEL].unique())[:MAX_PANELS]
    if rows[D_DATA_MLE].nunique() < 2:
        return None
    figure, axes_of_models = panels(len(models))
    sizes = sorted(rows[TRAIN_SIZE].unique())
    norm: Normalize = Normalize(sizes[0] - 1, sizes[0] + 1)
    if len(sizes) > 1:
        norm = LogNorm(sizes[0], sizes[-1])
    for axes, model in zip(axes_of_models, models, strict=True):
        of_model = rows[rows[MODEL] == model]
        for domain, group in of_model.groupby(DOMAIN):
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
        log_ticks(axes.yaxis, rows[TEST_LOSS])
        axes.set_title(model)
    tick_step = max(1, len(sizes) // MAX_COLORBAR_TICKS)
    figure.colorbar(
        ScalarMappable(norm, "viridis_r"),
        ax=axes_of_models,
        label=SIZE_LABEL,
        fraction=0.05,
        ticks=sizes[::tick_step],
        format="{x:,.0f}",
    ).minorticks_off()
    marks = {}
    for domain, color in DOMAIN_COLORS.items():
        marks[domain] = (color, DOMAIN_MARKERS[domain])
    handles = mark_handles(marks, rows[DOMAIN], "-")
    for handle in handles:
        handle.set_markerfacecolor("white")
    frame(figure, DIMENSION_LABEL, LOSS_LABEL, handles)
    return Drawn(
        figure,
        "Test loss by intrinsic dimension, at each train size. Loss and d_data both change "
        "with N, so compare only points of the same color.",
    )


def loss_on_train_size(points: pd.DataFrame, fits: ScalingFits) -> Drawn | None:
    """Draw test loss against N, with one panel per dataset and one line per model.

    Returns None if there is only one train size.
    """
    rows = points.dropna(subset=[LOG_LOSS])
    pairs = rows[[DOMAIN, DATASET]].drop_duplicates()
    in_order = pairs.sort_values([DOMAIN, DATASET])
    datasets = in_order[DATASET].tolist()[:MAX_PANELS]
    sizes = sorted(rows[TRAIN_SIZE].unique())
    if len(sizes) < 2:
        return None
    columns = 4 if len(datasets) > 4 else 3
    figure, axes_of_datasets = panels(
        len(datasets), width=2.9, height=2.4, most_columns=columns, share=False
    )
    models = sorted(rows[MODEL].unique())
    looks = zip(cycle(MODEL_COLORS), cycle(MARKERS), strict=False)
    marks = dict(zip(models, looks, strict=False))
    by_size = rows.groupby([DATASET, MODEL, TRAIN_SIZE])
    mean_log_losses = by_size[LOG_LOSS].mean()
    mean_losses = np.exp(mean_log_losses)
    curves = mean_losses.reset_index(name=TEST_LOSS)
    has_slope = False
    for axes, dataset in zip(axes_of_datasets, datasets, strict=True):
        of_dataset = rows[rows[DATASET] == dataset]
        domain = of_dataset[DOMAIN].iloc[0]
        _curves(axes, curves[curves[DATASET] == dataset], marks)
        has_slope |= _predicted_slope(axes, of_dataset)
        size_ticks(axes, sizes)
        _loss_axis(axes, of_dataset[TEST_LOSS])
        axes.set_title(str(dataset), color=DOMAIN_COLORS[domain])
    handles = mark_handles(marks, marks, "-")
    caption = "Test loss by the number of training images."
    if rows[DOMAIN].nunique() > 1:
        caption += " Medical datasets have orange titles, and natural datasets have blue titles."
    if has_slope:
        label = "slope of the law's\nbound, −1/d_data"
        handles.append(Line2D([], [], color=BLACK, linestyle="--", label=label))
        caption += (
            " A dashed line has the slope −1/d_data of the law's bound. The law does not "
            "predict its height."
        )
    frame(figure, SIZE_LABEL, LOSS_LABEL, handles)
    return Drawn(figure, f"{caption} Points are means over class pairs and seeds.")


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
    """Draw a line with the slope of the law's bound through the mean of the points.

    Nothing is drawn if d_data is unknown.
    """
    d_data = rows[D_REFERENCE].mean()
    if not d_data > 0:
        return False
    smallest = rows[TRAIN_SIZE].min()
    largest = rows[TRAIN_SIZE].max()
    ends = np.array([smallest, largest])
    middle = rows[LOG_LOSS].mean() + rows[LOG_TRAIN_SIZE].mean() / d_data
    log_losses = middle - np.log(ends) / d_data
    axes.plot(ends, np.exp(log_losses), color=BLACK, linestyle="--", linewidth=1.2)
    return True


def _loss_axis(axes: Axes, losses: pd.Series) -> None:
    """Make the loss axis logarithmic. Its range is at least :data:`SMALLEST_LOSS_RANGE`."""
    log_ticks(axes.yaxis, losses)
    low, high = axes.get_ylim()
    if high / low < SMALLEST_LOSS_RANGE:
        middle = np.sqrt(low * high)
        half = np.sqrt(SMALLEST_LOSS_RANGE)
        lowest = middle / half
        highest = middle * half
        axes.set_ylim(lowest, highest)
        log_ticks(axes.yaxis, pd.Series([lowest, highest]))


def accuracy_lost_on_delta(points: pd.DataFrame, fits: ScalingFits) -> Drawn | None:
    """Draw accuracy lost to attacks against δ, for class pairs."""
    of_delta = "by the distance δ between two classes"
    return _accuracy_lost(points, fits, MEAN_UNLIKE_DISTANCE, DELTA_LABEL, of_delta)


def accuracy_lost_on_sharpness(points: pd.DataFrame, fits: ScalingFits) -> Drawn | None:
    """Draw accuracy lost to attacks against K_F, for class pairs."""
    of_sharpness = "by the label sharpness K_F of two classes"
    return _accuracy_lost(points, fits, LABEL_SHARPNESS, SHARPNESS_LABEL, of_sharpness)


def _accuracy_lost(
    points: pd.DataFrame, fits: ScalingFits, column: str, label: str, by_column: str
) -> Drawn | None:
    """Draw accuracy lost to attacks at the largest N, with one dot per class pair and network.

    Args:
        points: The points of the table.
        fits: All fits.
        column: Column of the horizontal axis.
        label: Label of the horizontal axis.
        by_column: Words on the horizontal axis, for the caption.

    Returns:
        The figure. None if the table does not contain class pairs of one dataset.
    """
    if not fits.class_pairs:
        return None
    lost = mean_accuracy_lost(points)
    rows = points.assign(**{ACCURACY_LOST: 100 * lost})
    rows = rows[rows[TRAIN_SIZE] == rows[TRAIN_SIZE].max()]
    rows = rows.dropna(subset=[ACCURACY_LOST, column])
    if rows[column].nunique() < 2:
        return None
    figure, (axes,) = panels(1)
    models = sorted(rows[MODEL].unique())
    looks = zip(cycle(MODEL_COLORS), cycle(MARKERS), strict=False)
    marks = dict(zip(models, looks, strict=False))
    for model, of_model in rows.groupby(MODEL):
        color, marker = marks[str(model)]
        scatter = axes.scatter(
            of_model[column],
            of_model[ACCURACY_LOST],
            color=color,
            marker=marker,
            s=22,
        )
        set_addresses(scatter, of_model)
    of_pairs = rows.groupby(CLASS_PAIR)[[column, ACCURACY_LOST]].mean()
    if len(of_pairs) <= MAX_NAMED_PAIRS:
        for name, (value, percentage) in zip(of_pairs.index, of_pairs.to_numpy(), strict=True):
            axes.annotate(
                str(name), (value, percentage), (3, 2), textcoords="offset points", fontsize=6
            )
    frame(figure, label, "accuracy lost (percentage points)", mark_handles(marks, models))
    size = int(rows[TRAIN_SIZE].iloc[0])
    return Drawn(
        figure,
        f"Accuracy lost to {attack_in_words(fits)}, {by_column}. There is one dot per class pair "
        f"and network, at N = {size:,}. {PAIRS_SHARE}",
    )


def loss_gain_on_sharpness(points: pd.DataFrame, fits: ScalingFits) -> Drawn | None:
    """Draw the loss that each attack adds against K_F, with one panel per attack and epsilon.

    If K_F is the same at all points of an attack, the attack has no panel.
    """
    has_sharpness = points[LABEL_SHARPNESS].notna()
    points_with_sharpness = points[has_sharpness]
    attacks = []
    for attack in attack_columns(points.columns):
        is_attacked = points_with_sharpness[attack.name].notna()
        attacked = points_with_sharpness[is_attacked]
        if attacked[LABEL_SHARPNESS].nunique() > 1:
            attacks.append(attack)
    attacks = attacks[:MAX_PANELS]
    if not attacks:
        return None
    domains = dict(zip(points[DATASET], points[DOMAIN], strict=True))
    marks = dataset_marks(domains)
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
        title = attack.words
        # The verdict is on the largest correlation, so each panel shows its largest
        # correlation.
        strongest = strongest_attack(fit for fit in fits.attacks if fit.response == attack.name)
        r = strongest.estimate("r") if strongest else None
        if strongest is not None and r is not None and r.interval is not None:
            title += f"\n{strongest.model}: r = {number(r.value)} ({interval(r.interval)})"
            has_correlation = True
        axes.set_title(title)
        number_ticks(axes.xaxis, rows[LABEL_SHARPNESS])
        number_ticks(axes.yaxis, rows[attack.name])
        if not spans_much(rows[attack.name]):
            axes.axhline(0, color=GREY, linewidth=0.8)
    handles = mark_handles(marks, points[DATASET])
    frame(figure, SHARPNESS_LABEL, "loss gained by the attack (nat)", handles)
    caption = "Loss gained by an attack, by label sharpness."
    if fits.class_pairs:
        caption += f" {GAIN_OF_PAIRS} {PAIRS_SHARE}"
    elif points_with_sharpness[DATASET].nunique() == 1:
        caption += (
            " There is only one dataset, so K_F differs only because N differs. A trend shows the "
            "effect of N."
        )
    if has_correlation:
        caption += f" {OF_CORRELATION}"
        caption += _on_logarithmic_axes(axes_of_attacks)
    return Drawn(figure, caption)


def _on_logarithmic_axes(all_axes: Sequence[Axes]) -> str:
    """Return a sentence on the logarithmic axes of the figure of added losses; empty if none is."""
    names = []
    if any("log" in axes.get_xscale() for axes in all_axes):
        names.append("K_F axes")
    if any("log" in axes.get_yscale() for axes in all_axes):
        names.append("loss axes")
    if not names:
        return ""
    return f" r is computed without logarithms, although some {listing(names)} are logarithmic."


DRAWINGS: dict[str, Callable[[pd.DataFrame, ScalingFits], Drawn | None]] = {
    "accuracy_lost_on_delta": accuracy_lost_on_delta,
    "accuracy_lost_on_sharpness": accuracy_lost_on_sharpness,
    "loss_on_train_size": loss_on_train_size,
    "loss_gain_on_sharpness": loss_gain_on_sharpness,
    "loss_on_d_data": loss_on_d_data,
    "dataset_properties": dataset_properties,
}
"""Drawing function of each figure, by file stem and in the order of the report. When the page
opens, only the first two figures are visible."""
