"""The study's figures: each function turns fitted points into one matplotlib figure, or None without data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from orchestrator.analysis import palette as p
from orchestrator.analysis.fit_records import POOLED, ScalingFits
from orchestrator.analysis.formats import interval, number
from orchestrator.analysis.loss_figures import (
    draws_domain_lines,
    draws_left_out_interval,
    draws_predicted_slope,
    left_out,
    loss_on_d_data,
    loss_on_train_size,
    residuals,
)
from orchestrator.results import columns as c


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


def loss_gain_on_sharpness(points: pd.DataFrame, fits: ScalingFits) -> Figure | None:
    """Loss gain under each attack against K_F, one panel per attack and epsilon; r is over dataset effects
    at equal N.
    """
    attacks = [
        a
        for a in c.attack_columns(points.columns)
        if points[[a.name, c.LABEL_SHARPNESS]].notna().all(axis=1).any()
    ][: p.MAX_PANELS]
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
        fit = found[attack.attack, attack.epsilon]
        r, bounds = fit.pearson_at_equal_size, fit.interval_at_equal_size
        known = f"\nr = {number(r)} ({interval(bounds)})" if r is not None and bounds is not None else ""
        axes.set_title(f"{attack.attack.upper()}, ε = {attack.epsilon:g}/255{known}")
        axes.ticklabel_format(axis="x", scilimits=(-2, 4), useMathText=True)
        axes.axhline(0, color=p.GREY, linewidth=0.8)
    p.label_outer(figure, "label sharpness K_F (1 / L2 pixel distance)", "loss gain under attack (nat)")
    p.legend(figure, p.mark_handles(marks, points[c.DATASET]))
    return figure


def _scatter(axes: Axes, rows: pd.DataFrame, x: str, y: str, marks: dict[str, p.Mark]) -> None:
    for dataset, group in rows.groupby(c.DATASET):
        mark = marks[str(dataset)]
        drawn = axes.scatter(
            group[x], group[y], color=mark.colour, marker=mark.marker, s=26, alpha=0.8, linewidth=0
        )
        p.tell(drawn, group)


def d_repr_on_d_data(points: pd.DataFrame, fits: ScalingFits) -> Figure | None:
    """d_repr against d_data, one panel per model, with the line of equality: Theorem 5's bound."""
    rows = points.dropna(subset=[c.D_DATA_MLE, c.D_REPR_MLE])
    models = sorted(rows[c.MODEL].unique())[: p.MAX_PANELS]
    if not models:
        return None
    marks = p.dataset_marks(dict(zip(points[c.DATASET], points[c.DOMAIN], strict=True)))
    figure, panels = p.panels(len(models))
    shares = {f.model: (f.num_below, f.num_points) for f in fits.representations if f.estimator == "mle"}
    top = float(rows[[c.D_DATA_MLE, c.D_REPR_MLE]].max().max()) * 1.05
    for axes, model in zip(panels, models, strict=True):
        axes.plot([0, top], [0, top], color=p.GREY, linestyle="--", linewidth=1)
        _scatter(axes, rows[rows[c.MODEL] == model], c.D_DATA_MLE, c.D_REPR_MLE, marks)
        below, total = shares.get(model, (0, 0))
        axes.set_title(model + (f"   {below} of {total} at or below" if total else ""))
        axes.set_xlim(0, float(rows[c.D_DATA_MLE].max()) * 1.08)
        axes.set_ylim(0, top)
    p.label_outer(figure, "dimension d_data", "dimension d_repr")
    equality = Line2D([], [], color=p.GREY, linestyle="--", label="d_repr = d_data")
    p.legend(figure, [equality, *p.mark_handles(marks, rows[c.DATASET])])
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
