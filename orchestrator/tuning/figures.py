"""Figures of a search: loss against rate, all parameters at once, and which of them matter."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from orchestrator.analysis import figures as palette
from orchestrator.tuning.importance import ERROR, PARAMETERS, importance_table
from orchestrator.tuning.search import CellSearch
from tasks.trials.search_result import SearchStatus, capped

IMPORTANCE_NOTE = (
    "Share of the spread of losses after a third of the training that lies between the lowest, middle and "
    "highest third of a parameter, or between batch sizes; over a model's datasets, by rank within each. "
    "Grey: what the shares stay below when losses are shuffled, all three at once in "
    f"{1 - ERROR:.0%} of shuffles. A dot in the grey says nothing; more points, by a larger tune.budget, "
    "say more."
)


@dataclass(frozen=True)
class Drawn:
    """A figure for the page.

    Attributes:
        name: Of its file.
        caption: What it shows.
        image: SVG, base64.
    """

    name: str
    caption: str
    image: str


def trial_table(cells: Sequence[CellSearch]) -> pd.DataFrame:
    """Return one row per point tried: where, how it ended, and its capped validation loss then."""
    rows = [
        {
            "model": search.cell.key[0],
            "dataset": search.cell.dataset,
            **point.model_dump(),
            "role": str(search.roles.get(point, "")),
            "status": str(result.status),
            "epochs": result.epochs,
            "loss": result.curve[-1].loss if result.curve else None,
            "shown": capped(result.curve[-1].loss if result.loss is not None else None, result.chance_loss),
            "chance_loss": result.chance_loss,
        }
        for search in cells
        for (point, run), result in search.results.items()
        if run == 0
    ]
    return pd.DataFrame(rows)


def draw_all(
    cells: Sequence[CellSearch], chosen: Mapping[tuple[str, str], float], domains: Mapping[str, str]
) -> list[Drawn]:
    """Draw every figure that has data.

    Args:
        cells: The search's cells.
        chosen: Chosen learning rate by model and dataset.
        domains: Domain of each dataset.
    """
    table = trial_table(cells)
    if table.empty:
        return []
    importance = importance_table(cells)
    with palette.styled():
        drawn = [_rates(cells, table, chosen, domains), _parallel(table)]
        if not importance.empty:
            drawn.append(_importances(importance))
    return drawn


def _rates(
    cells: Sequence[CellSearch],
    table: pd.DataFrame,
    chosen: Mapping[tuple[str, str], float],
    domains: Mapping[str, str],
) -> Drawn:
    models = list(dict.fromkeys(table["model"]))
    marks = palette.dataset_marks({name: domains[name] for name in table["dataset"].unique()})
    figure, axes = palette.panels(len(models), share=False)
    for panel, model in zip(axes, models, strict=True):
        panel.set_title(model)
        for search in (one for one in cells if one.cell.key[0] == model):
            mark = marks[search.cell.dataset]
            rows = table[(table["model"] == model) & (table["dataset"] == search.cell.dataset)]
            _points(panel, rows, mark.colour, mark.marker)
            panel.axvline(search.cell.own.learning_rate, color=palette.GREY, linestyle=":", linewidth=1)
            rate = chosen.get(search.cell.key)
            if rate is not None:
                best = rows[rows["learning_rate"] == rate]["shown"]
                panel.plot(
                    [rate], [best.min()], "*", color=mark.colour, markersize=13, markeredgecolor="black"
                )
        palette.log_ticks(panel, "x", table["learning_rate"])
        panel.set_yscale("log")
    palette.label_outer(figure, "learning rate", "validation loss (nat)")
    extra = [
        Line2D([], [], color=palette.GREY, linestyle=":", label="the sweep's own rate"),
        Line2D([], [], color="white", marker="*", markeredgecolor="black", markersize=11, label="chosen"),
        Line2D([], [], color=palette.GREY, marker="o", linestyle="none", markersize=4, label="to the end"),
        Line2D(
            [], [], color=palette.GREY, marker="o", linestyle="none", fillstyle="none", label="stopped early"
        ),
        Line2D([], [], color=palette.GREY, marker="x", linestyle="none", label="diverged"),
    ]
    palette.legend(figure, palette.mark_handles(marks, table["dataset"]) + extra)
    return Drawn(
        "loss_against_rate",
        "Validation loss against learning rate. Weight decay and batch size differ from point to point; a "
        "loss of more than twice that of guessing, or of a diverged trial, is drawn at twice that.",
        _svg(figure),
    )


def _points(panel: Axes, rows: pd.DataFrame, colour: str, marker: str) -> None:
    for status, shape, face in (
        (SearchStatus.COMPLETE, marker, colour),
        (SearchStatus.PRUNED, marker, "none"),
        (SearchStatus.DIVERGED, "x", colour),
    ):
        some = rows[rows["status"] == str(status)]
        drawn = panel.scatter(some["learning_rate"], some["shown"], s=22, linewidths=1, marker=shape)
        drawn.set_edgecolor(colour)
        drawn.set_facecolor(face)


def _parallel(table: pd.DataFrame) -> Drawn:
    models = list(dict.fromkeys(table["model"]))
    figure, axes = palette.panels(len(models), share=False)
    scaled = pd.DataFrame(
        {name: _between_0_and_1(_logarithm(table[name])) for name in (*PARAMETERS, "shown")}
    ).assign(model=table["model"])
    # Of one cell the losses are compared: another dataset is another scale.
    rank = table.groupby(["model", "dataset"])["shown"].rank(pct=True)
    for panel, model in zip(axes, models, strict=True):
        panel.set_title(model)
        for index in scaled.index[scaled["model"] == model]:
            colour = palette.BLUE if rank[index] <= 0.25 else "#bbbbbb"
            values = scaled.loc[index, [*PARAMETERS, "shown"]].to_numpy(dtype=float)
            panel.plot(values, color=colour, linewidth=1, alpha=0.8, zorder=3 - rank[index])
        panel.set_xticks(range(4), ["rate", "decay", "batch", "loss"])
        panel.set_yticks([0, 1], ["least", "most"])
    palette.label_outer(figure, "", "logarithm, from least to most tried")
    handles = [
        Line2D([], [], color=palette.BLUE, label="best quarter of a cell"),
        Line2D([], [], color="#bbbbbb", label="others"),
    ]
    palette.legend(figure, handles)
    return Drawn(
        "parallel_coordinates",
        "Every point tried, one line each, over learning rate, weight decay, batch size and loss.",
        _svg(figure),
    )


def _logarithm(values: pd.Series) -> pd.Series:
    """Return it with zeros, of a recipe without weight decay, at the least that is none."""
    positive = values[values > 0]
    return np.log(values.clip(lower=positive.min())) if len(positive) else values * 0


def _between_0_and_1(values: pd.Series) -> pd.Series:
    span = values.max() - values.min()
    return (values - values.min()) / span if span > 0 else values * 0 + 0.5


def _importances(table: pd.DataFrame) -> Drawn:
    models = list(dict.fromkeys(table["model"]))
    figure, axes = palette.panels(len(models))
    for panel, model in zip(axes, models, strict=True):
        panel.set_title(model)
        rows = table[table["model"] == model].set_index("parameter").loc[list(PARAMETERS)]
        panel.bar(range(3), rows["by_chance"], width=0.5, color="#dddddd")
        panel.plot(range(3), rows["share"], "o", color=palette.BLUE)
        panel.set_xticks(range(3), ["rate", "decay", "batch"])
        panel.set_ylim(0, 1.03)
    palette.label_outer(figure, "", "share explained")
    handles = [
        Line2D([], [], color=palette.BLUE, marker="o", linestyle="none", label="of the points tried"),
        Line2D([], [], color="#dddddd", linewidth=8, label="by chance"),
    ]
    palette.legend(figure, handles)
    return Drawn("importance", f"{_told(table)} {IMPORTANCE_NOTE}", _svg(figure))


def _told(table: pd.DataFrame) -> str:
    """Say what the importances tell."""
    names = dict(zip(PARAMETERS, ("learning rate", "weight decay", "batch size"), strict=True))
    sentences = []
    for model, rows in table.groupby("model", sort=False):
        told = [names[name] for name in rows[rows["share"] > rows["by_chance"]]["parameter"]]
        what = " and ".join(told) or "nothing"
        sentences.append(f"{model} ({rows['num_points'].iloc[0]} points): {what} told from chance.")
    return " ".join(sentences)


def _svg(figure: Figure) -> str:
    text = io.BytesIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return base64.b64encode(text.getvalue()).decode("ascii")
