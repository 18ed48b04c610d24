"""The page of a search: what was chosen and why, beside what the sweep's own recipe gives."""

from __future__ import annotations

import base64
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from orchestrator.analysis import figures as palette
from orchestrator.analysis.inference import mean_interval
from orchestrator.analysis.table import interval, number, write_csv
from orchestrator.analysis.tables import Table
from orchestrator.planning.plan import Workspace
from orchestrator.tuning.outcome import (
    ERROR,
    FEWEST_FOR_IMPORTANCE,
    FLAT_WITHIN,
    PARAMETERS,
    Candidate,
    CellOutcome,
    importance_table,
)
from orchestrator.tuning.search import CellSearch, Search
from search_spaces.errors import SweepError
from tasks.atomic import write_atomic
from tasks.trials.records import SearchStatus, capped

if TYPE_CHECKING:
    from orchestrator.tuning.outcome import TuneSummary


# The outcome of a search as tables, for people, notebooks and JSON.

Row = dict[str, str | int | float | None]
HEADER = (
    "model",
    "dataset",
    "learning rate",
    "weight decay",
    "batch",
    "validation loss",
    "own recipe",
    "gain",
    "flat",
    "trials",
    "pruned",
    "diverged",
    "trainings",
)
BRIEF = (0, 1, 2, 3, 4, 5, 7)
"""Columns of ``HEADER`` that fit a terminal."""


def outcome_rows(cells: Sequence[CellOutcome]) -> list[Row]:
    """Return one row per model and dataset; losses are of the validation images, in nat."""
    return [_row(cell) for cell in cells]


def _row(cell: CellOutcome) -> Row:
    chosen, flat = cell.chosen, cell.flat or (None, None)
    return {
        "model": cell.model,
        "dataset": cell.dataset,
        "learning_rate": None if chosen is None else chosen.point.learning_rate,
        "weight_decay": None if chosen is None else chosen.point.weight_decay,
        "batch_size": None if chosen is None else chosen.point.batch_size,
        **_losses("", chosen),
        **_losses("own_", cell.own),
        "gain": cell.gain,
        "gain_std_error": cell.gain_std_error,
        "flat_from": flat[0],
        "flat_to": flat[1],
        "num_trials": cell.num_trials,
        "num_pruned": cell.num_pruned,
        "divergence_rate": cell.divergence_rate,
        "trainings": cell.spent,
        "finalist_trainings": cell.finalist_trainings,
        "budget": cell.budget,
    }


def _losses(prefix: str, candidate: Candidate | None) -> Row:
    return {
        f"{prefix}validation_loss": None if candidate is None else candidate.mean,
        f"{prefix}std_error": None if candidate is None else candidate.std_error,
    }


def outcome_table(cells: Sequence[CellOutcome]) -> Table:
    """Return the table for people."""
    return Table(
        key="tuned",
        title="Searched recipes",
        note="Validation loss in nat, mean ± standard error over runs of one finalist; gain: how much lower "
        "than with the sweep's own recipe, in the same runs (own kept: nothing was better by more than an "
        "error); flat: rates "
        f"tried within {FLAT_WITHIN:g} nat of the best; trainings: of the search + of finalists.",
        header=HEADER,
        rows=tuple(_cells(cell) for cell in cells),
        numeric_from=2,
    )


def brief_table(cells: Sequence[CellOutcome]) -> Table:
    """Return what of the table fits a terminal; the page has it all."""
    whole = outcome_table(cells)
    return replace(
        whole,
        header=tuple(whole.header[place] for place in BRIEF),
        rows=tuple(tuple(row[place] for place in BRIEF) for row in whole.rows),
    )


def _cells(cell: CellOutcome) -> tuple[str, ...]:
    flat = cell.flat
    point = None if cell.chosen is None else cell.chosen.point
    return (
        cell.model,
        cell.dataset,
        "none" if point is None else f"{point.learning_rate:.3g}",
        "" if point is None else f"{point.weight_decay:.2g}",
        "" if point is None else str(point.batch_size),
        _loss(cell.chosen),
        _loss(cell.own),
        "own kept" if cell.keeps_own else _spelled(cell.gain, cell.gain_std_error),
        "" if flat is None else f"{flat[0]:.2g} to {flat[1]:.2g}",
        str(cell.num_trials),
        str(cell.num_pruned),
        f"{cell.divergence_rate:.0%}",
        f"{cell.spent:.2g} of {cell.budget:g} + {cell.finalist_trainings:.2g}",
    )


def _loss(candidate: Candidate | None) -> str:
    return "–" if candidate is None else _spelled(candidate.mean, candidate.std_error)


def _spelled(value: float | None, std_error: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" + ("" if std_error is None else f" ± {std_error:.3f}")


def document(summary: TuneSummary) -> dict[str, Any]:
    """Return what ``isweep tune --json`` prints."""
    return {
        "table": outcome_rows(summary.cells),
        "recipe": str(summary.recipe),
        "report": None if summary.report is None else str(summary.report),
        "new_trials": summary.num_new,
    }


# Figures of a search: loss against rate, all parameters at once, and which of them matter.

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


def write_report(workspace: Workspace, search: Search, cells: Sequence[CellOutcome]) -> Path | None:
    """Write the page and ``trials.csv``; None where nothing was tried.

    Args:
        workspace: The sweep that was tuned.
        search: Its search.
        cells: What was found.

    Raises:
        OSError: when the folder cannot be written.
    """
    states, sweep = list(search.cells.values()), workspace.plan.sweep
    trials = trial_table(states)
    if trials.empty:
        return None
    folder = workspace.sweep_paths.search_report
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(trials, folder / "trials.csv")
    chosen = {
        (cell.model, cell.dataset): cell.chosen.point.learning_rate
        for cell in cells
        if cell.chosen is not None
    }
    domains = {name: spec.domain or "natural" for name, spec in workspace.plan.datasets.items()}
    compared = comparison(workspace)
    figures = draw_all(states, chosen, domains)
    page = _template().render(
        sweep=sweep.name,
        tuned_name=tuned_name(sweep.name),
        settings=_settings(search),
        gains=gains(cells),
        problems=[cell.problem for cell in cells if cell.problem],
        tables=[outcome_table(cells), *compared],
        compared=bool(compared),
        figures=figures,
        fewest=None if any(one.name == "importance" for one in figures) else FEWEST_FOR_IMPORTANCE,
        journal=f"sweeps/{sweep.name}/search/{workspace.sweep_paths.search_journal.name}",
    )
    path = folder / "search.html"
    write_atomic(path, page.encode())
    return path


def gains(cells: Sequence[CellOutcome]) -> str:
    """Say how much lower validation loss is than with the sweep's own recipe, with an interval."""
    by_dataset: dict[str, list[float]] = {}
    for cell in cells:
        if cell.gain is not None:
            by_dataset.setdefault(cell.dataset, []).append(cell.gain)
    if not by_dataset:
        return "No cell has both a chosen recipe and its own to compare."
    mean, bounds = mean_interval(np.array([statistics.fmean(values) for values in by_dataset.values()]))
    return (
        f"Validation loss is {number(mean)} nat lower than with the sweep's own recipe, mean over "
        f"{len(by_dataset)} datasets (95 % interval {interval(bounds)}), in trainings that both had. The "
        "chosen recipe is the best of several in these very trainings, so its own loss is a little too low; "
        "the test images know nothing of the choice."
    )


def tuned_name(sweep: str) -> str:
    """Return the name under which the tuned sweep is looked for, to compare."""
    return f"{sweep}-tuned"


def comparison(workspace: Workspace) -> list[Table]:
    """Compare the sweep with the one that uses its searched recipe, where both have results."""
    from orchestrator.analysis import compare, fit_scaling_laws
    from orchestrator.analysis.report import results_table

    names = (workspace.plan.sweep.name, tuned_name(workspace.plan.sweep.name))
    tables: list[pd.DataFrame] = []
    for name in names:
        if name not in workspace.paths.sweep_names():
            return []
        opened = Workspace.open(name, str(workspace.paths.root), workspace.storage, as_run=True)
        tables.append(results_table(opened))
        if tables[-1].empty:
            return []
    try:
        found = compare(tables[0], tables[1], names=names)
        return [found.table(), _laws(names, [fit_scaling_laws(table) for table in tables])]
    except SweepError:
        return []  # they share no cell


def _laws(names: tuple[str, str], fits: Sequence[Any]) -> Table:
    """Set the pooled coefficients of both sweeps side by side."""
    found: list[dict[tuple[str, str, str], Any]] = [
        {
            (fit.kind, fit.variant or fit.subset, coefficient.name): coefficient
            for fit in one.fits
            if fit.model == "pooled" and fit.kind in ("headline", "exponent")
            for coefficient in fit.estimates
        }
        for one in fits
    ]
    rows = tuple(
        (
            *key,
            *(text for one in found for text in _report_spelled(one.get(key))),
            _apart(*(one.get(key) for one in found)),
        )
        for key in found[0]
    )
    return Table(
        key="conclusions",
        title="The study's conclusions with both recipes",
        note="Coefficients of the pooled fits with 95 % intervals over datasets; apart: whether the "
        "intervals share no value.",
        header=("fit", "over", "coefficient", names[0], "interval", names[1], "interval", "apart"),
        rows=rows,
        numeric_from=3,
    )


def _report_spelled(coefficient: Any) -> tuple[str, str]:
    return ("", "") if coefficient is None else (number(coefficient.value), interval(coefficient.interval))


def _apart(first: Any, second: Any) -> str:
    if first is None or second is None or first.interval is None or second.interval is None:
        return "–"
    apart = first.interval[1] < second.interval[0] or second.interval[1] < first.interval[0]
    return "yes" if apart else "no"


def _settings(search: Search) -> str:
    tune = search.tune
    any_cell = next(iter(search.cells.values())).cell
    return (
        f"{tune.sampler} sampler, seed {tune.seed}{', warm start' if tune.warm_start else ''}; "
        f"{tune.num_trainings:g} whole "
        f"trainings per model and dataset; {any_cell.train_size} training images, "
        f"{tune.validation_share:.0%} of them, in whole groups, to validate on; {tune.finalists} finalists "
        f"and the sweep's own recipe trained {tune.seeds} times. No test image was read."
    )


def _template() -> Any:
    environment = Environment(
        loader=PackageLoader("orchestrator.tuning", package_path=""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html")
