"""The tables and the page that tell people what a search found."""

from __future__ import annotations

import base64
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.lines import Line2D

from orchestrator.analysis import figures as palette
from orchestrator.analysis.inference import mean_interval
from orchestrator.analysis.table import interval, number, write_csv
from orchestrator.analysis.tables import Table, laid_out
from orchestrator.planning.workspace import Workspace
from orchestrator.tuning.outcome import Candidate, CellOutcome
from orchestrator.tuning.search import CellSearch, Search
from search_spaces.specs import DatasetSpec
from tasks.atomic import write_atomic
from tasks.trials.records import SearchStatus, capped


def _spelled(value: float | None, std_error: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" + ("" if std_error is None else f" ± {std_error:.3f}")


def _loss(candidate: Candidate | None) -> str:
    return "–" if candidate is None else _spelled(candidate.mean, candidate.std_error)


COLUMNS: dict[str, Callable[[CellOutcome], str]] = {
    "model": lambda cell: cell.model,
    "dataset": lambda cell: cell.dataset,
    "learning rate": lambda cell: (
        f"{cell.chosen.point.learning_rate:.3g}" if cell.chosen else "none"
    ),
    "weight decay": lambda cell: f"{cell.chosen.point.weight_decay:.2g}" if cell.chosen else "",
    "batch": lambda cell: str(cell.chosen.point.batch_size) if cell.chosen else "",
    "validation loss": lambda cell: _loss(cell.chosen),
    "own recipe": lambda cell: _loss(cell.own),
    "gain": lambda cell: "own kept" if cell.keeps_own else _spelled(cell.gain, cell.gain_std_error),
    "trials": lambda cell: str(cell.num_trials),
    "diverged": lambda cell: f"{cell.divergence_rate:.0%}",
    "trainings": lambda cell: (
        f"{cell.spent:.2g} of {cell.budget:g} + {cell.finalist_trainings:.2g}"
    ),
}

BRIEF = ("model", "dataset", "learning rate", "weight decay", "batch", "validation loss", "gain")
"""What of the table fits a terminal; the page has it all."""


def outcome_table(cells: Iterable[CellOutcome], names: Iterable[str] = COLUMNS) -> Table:
    """Return the table for people, of the columns ``names``."""
    note = (
        "Validation loss in nat, mean ± standard error over runs of one finalist; gain: how much "
        "lower than "
        "with the sweep's own recipe, in the same runs (own kept: nothing was better by more than "
        "an error); "
        "trainings: of the search + of finalists."
    )
    columns = {name: COLUMNS[name] for name in names}
    return laid_out("tuned", "Searched recipes", note, cells, columns, numeric_from=2)


def gains(cells: Iterable[CellOutcome]) -> str:
    """Say how much lower validation loss is than with the sweep's own recipe, with an interval."""
    by_dataset: dict[str, list[float]] = {}
    for cell in cells:
        if cell.gain is not None:
            by_dataset.setdefault(cell.dataset, []).append(cell.gain)
    if not by_dataset:
        return "No cell has both a chosen recipe and its own to compare."
    mean, _, bounds = mean_interval(
        np.array([statistics.fmean(values) for values in by_dataset.values()])
    )
    return (
        f"Validation loss is {number(mean)} nat lower than with the sweep's own recipe, mean over "
        f"{len(by_dataset)} datasets (95 % interval {interval(bounds)}), in trainings that both "
        "had. The "
        "chosen recipe is the best of several in these very trainings, so its own loss is a little "
        "too low; "
        "the test images know nothing of the choice."
    )


def trial_table(cells: Iterable[CellSearch]) -> pd.DataFrame:
    """Return one row per point tried: where, how it ended, and its capped validation loss then."""
    rows = [
        {
            "model": search.cell.key[0],
            "dataset": search.cell.dataset,
            **point.model_dump(),
            "status": str(result.status),
            "epochs": result.epochs,
            "loss": result.curve[-1].loss if result.curve else None,
            "shown": capped(result.loss, result.chance_loss),
            "chance_loss": result.chance_loss,
        }
        for search in cells
        for (point, run), result in search.results.items()
        if run == 0
    ]
    return pd.DataFrame(rows)


def write_report(workspace: Workspace, search: Search, cells: Sequence[CellOutcome]) -> Path | None:
    """Write the page and ``trials.csv`` of what a search found; None where nothing was tried."""
    states, sweep, tune = list(search.cells.values()), workspace.plan.sweep, search.tune
    trials = trial_table(states)
    if trials.empty:
        return None
    folder = workspace.sweep_paths.search_report
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(trials, folder / "trials.csv")
    loader = PackageLoader("orchestrator.tuning", package_path="")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    environment.trim_blocks = environment.lstrip_blocks = True
    page = environment.get_template("report.html").render(
        sweep=sweep.name,
        settings=f"{tune.sampler} sampler, seed {tune.seed}; {tune.num_trainings:g} whole "
        "trainings per "
        f"model and dataset; {states[0].cell.train_size} training images, "
        f"{tune.validation_share:.0%} of "
        f"them, in whole groups, to validate on; {tune.finalists} finalists and the sweep's own "
        "recipe "
        f"trained {tune.seeds} times. No test image was read.",
        gains=gains(cells),
        problems=[cell.problem for cell in cells if cell.problem],
        table=outcome_table(cells),
        caption=CAPTION,
        figure=loss_against_rate(states, trials, cells, workspace.plan.datasets),
    )
    path = folder / "search.html"
    write_atomic(path, page.encode())
    return path


CAPTION = (
    "Validation loss against learning rate. Weight decay and batch size differ from point to "
    "point; a loss "
    "of more than twice that of guessing, or of a diverged trial, is drawn at twice that."
)


def loss_against_rate(
    cells: Sequence[CellSearch],
    table: pd.DataFrame,
    found: Iterable[CellOutcome],
    datasets: Mapping[str, DatasetSpec],
) -> str:
    """Draw loss against rate of a :func:`trial_table`, a panel per model; returns SVG in base64."""
    models = list(dict.fromkeys(table["model"]))
    chosen = {
        (one.model, one.dataset): one.chosen.point.learning_rate for one in found if one.chosen
    }
    marks = palette.dataset_marks(
        {one: datasets[one].domain or "natural" for one in set(table["dataset"])}
    )
    with palette.styled():
        figure, axes = palette.panels(len(models), share=False)
        for panel, model in zip(axes, models, strict=True):
            panel.set_title(model)
            for search in (one for one in cells if one.cell.key[0] == model):
                colour, marker = marks[search.cell.dataset]
                rows = table[(table["model"] == model) & (table["dataset"] == search.cell.dataset)]
                for status, shape in (
                    (SearchStatus.COMPLETE, marker),
                    (SearchStatus.DIVERGED, "x"),
                ):
                    some = rows[rows["status"] == str(status)]
                    x, y = some["learning_rate"], some["shown"]
                    drawn = panel.scatter(x, y, s=22, linewidths=1, marker=shape)
                    drawn.set(edgecolor=colour, facecolor=colour)
                panel.axvline(
                    search.cell.own.learning_rate, color=palette.GREY, linestyle=":", linewidth=1
                )
                rate = chosen.get(search.cell.key)
                best = rows[rows["learning_rate"] == rate]["shown"]
                if rate is not None:
                    star: dict[str, Any] = {"markersize": 13, "markeredgecolor": "black"}
                    panel.plot([rate], [best.min()], "*", color=colour, **star)
            palette.log_ticks(panel, "x", table["learning_rate"])
            panel.set_yscale("log")
        grey: dict[str, Any] = {"color": palette.GREY}
        no_line: dict[str, Any] = {"linestyle": "none", "markersize": 4}
        extra = [
            Line2D([], [], linestyle=":", label="the sweep's own rate", **grey),
            Line2D(
                [],
                [],
                color="white",
                marker="*",
                markeredgecolor="black",
                markersize=11,
                label="chosen",
            ),
            Line2D([], [], marker="o", label="to the end", **grey, **no_line),
            Line2D([], [], marker="x", label="diverged", **grey, **no_line),
        ]
        handles = palette.mark_handles(marks, table["dataset"]) + extra
        palette.frame(figure, "learning rate", "validation loss (nat)", handles)
        return base64.b64encode(palette.rendered(figure, "svg")).decode("ascii")
