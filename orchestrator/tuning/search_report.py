"""Tables and the HTML page with the results of a search."""

from __future__ import annotations

import base64
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from orchestrator.analysis.figures.files import rendered
from orchestrator.analysis.figures.style import (
    GREY,
    dataset_marks,
    frame,
    log_ticks,
    mark_handles,
    panels,
    styled,
)
from orchestrator.analysis.inference import mean_interval
from orchestrator.analysis.number_formats import interval, number
from orchestrator.analysis.results_tables.csv_files import write_csv
from orchestrator.analysis.tables.layout import Table, laid_out
from orchestrator.planning.workspace import Workspace
from orchestrator.tuning.outcome import Candidate, CombinationOutcome
from orchestrator.tuning.search import CombinationSearch, Search
from search_spaces.specs import DatasetSpec
from tasks.atomic import write_atomic
from tasks.trials.records import SearchStatus, capped


def _with_error(value: float | None, std_error: float | None) -> str:
    if value is None:
        return "–"
    if std_error is None:
        return f"{value:.3f}"
    return f"{value:.3f} ± {std_error:.3f}"


def _loss(candidate: Candidate | None) -> str:
    if candidate is None:
        return "–"
    return _with_error(candidate.mean, candidate.std_error)


def _learning_rate(outcome: CombinationOutcome) -> str:
    if outcome.chosen is None:
        return "none"
    return f"{outcome.chosen.point.learning_rate:.3g}"


def _weight_decay(outcome: CombinationOutcome) -> str:
    if outcome.chosen is None:
        return ""
    return f"{outcome.chosen.point.weight_decay:.2g}"


def _batch_size(outcome: CombinationOutcome) -> str:
    if outcome.chosen is None:
        return ""
    return str(outcome.chosen.point.batch_size)


def _gain(outcome: CombinationOutcome) -> str:
    if outcome.keeps_sweep_recipe:
        return "sweep's recipe kept"
    return _with_error(outcome.gain, outcome.gain_std_error)


def _trainings(outcome: CombinationOutcome) -> str:
    return f"{outcome.spent:.2g} of {outcome.budget:g} + {outcome.finalist_trainings:.2g}"


COLUMNS: dict[str, Callable[[CombinationOutcome], str]] = {
    "model": lambda outcome: outcome.model,
    "dataset": lambda outcome: outcome.dataset,
    "learning rate": _learning_rate,
    "weight decay": _weight_decay,
    "batch": _batch_size,
    "validation loss": lambda outcome: _loss(outcome.chosen),
    "sweep's recipe": lambda outcome: _loss(outcome.sweep_recipe),
    "gain": _gain,
    "trials": lambda outcome: str(outcome.num_trials),
    "diverged": lambda outcome: f"{outcome.divergence_rate:.0%}",
    "trainings": _trainings,
}
"""Columns of the table on the page. Each column has a function that formats its cells."""
BRIEF = ("model", "dataset", "learning rate", "weight decay", "batch", "validation loss", "gain")
"""Columns of the table that isweep prints in a terminal."""
TABLE_NOTE = (
    "The validation loss is the mean ± standard error over the runs of one finalist, in nat. "
    "The gain is the loss of the sweep's recipe minus the loss of the chosen recipe, with the "
    "same seeds and splits. If no recipe was better than the sweep's recipe by more than one "
    "standard error, isweep keeps the sweep's recipe. "
    'In the column "trainings", for example, 7 of 10 + 3 means that the search used 7 of at most '
    "10 trainings, and that finalists were trained 3 more times."
)
CAPTION = (
    "The figure shows the validation loss against the learning rate. Weight decay and batch "
    "size differ between points. Diverged trials and losses above twice the chance loss are "
    "drawn at twice the chance loss."
)


def outcome_table(outcomes: Iterable[CombinationOutcome], names: Iterable[str] = COLUMNS) -> Table:
    """Return a formatted table with the columns ``names``."""
    columns = {name: COLUMNS[name] for name in names}
    return laid_out("tuned", "Tuned recipes", TABLE_NOTE, outcomes, columns, numeric_from=2)


def gain_sentence(outcomes: Iterable[CombinationOutcome]) -> str:
    """Return a sentence about the mean gain in validation loss over the sweep's recipe."""
    gains_by_dataset: defaultdict[str, list[float]] = defaultdict(list)
    for outcome in outcomes:
        if outcome.gain is not None:
            gains_by_dataset[outcome.dataset].append(outcome.gain)
    if not gains_by_dataset:
        return "No combination has both a chosen recipe and a result of the sweep's recipe."
    dataset_means = list(map(statistics.fmean, gains_by_dataset.values()))
    mean, _, bounds = mean_interval(np.array(dataset_means))
    return (
        f"The validation loss is {number(mean)} nat lower than with the sweep's recipe (mean "
        f"over {len(gains_by_dataset)} datasets, 95 % interval {interval(bounds)}). Both "
        "recipes were trained with the same seeds and splits. The chosen recipe is the best "
        "of several on these splits, so its loss is slightly underestimated. No test image "
        "was used."
    )


def trial_table(searches: Iterable[CombinationSearch]) -> pd.DataFrame:
    """Return one row for each tried point, with its status and loss.

    ``shown`` is the capped loss.
    """
    rows = []
    for search in searches:
        model, dataset = search.combination.key
        for training, result in search.results.items():
            if not training.is_of_sampling:
                continue
            rows.append(
                {
                    "model": model,
                    "dataset": dataset,
                    **training.point.model_dump(),
                    "status": str(result.status),
                    "epochs": result.epochs,
                    "loss": result.curve[-1].loss if result.curve else None,
                    "shown": capped(result.loss, result.chance_loss),
                    "chance_loss": result.chance_loss,
                }
            )
    return pd.DataFrame(rows)


def write_report(
    workspace: Workspace, search: Search, outcomes: Sequence[CombinationOutcome]
) -> Path | None:
    """Write the page of a search, and ``trials.csv`` in the same folder.

    Returns:
        The path of the page. None if no point was tried.
    """
    searches = list(search.searches.values())
    trials = trial_table(searches)
    if trials.empty:
        return None
    folder = workspace.sweep_paths.search_report
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(trials, folder / "trials.csv")
    loader = PackageLoader("orchestrator.tuning", package_path="")
    environment = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html").render(
        sweep=workspace.plan.sweep.name,
        settings=_settings_sentence(search),
        gains=gain_sentence(outcomes),
        problems=[outcome.problem for outcome in outcomes if outcome.problem],
        table=outcome_table(outcomes),
        caption=CAPTION,
        figure=loss_against_rate(searches, trials, outcomes, workspace.plan.datasets),
    )
    path = folder / "search.html"
    write_atomic(path, page.encode())
    return path


def _settings_sentence(search: Search) -> str:
    tune = search.tune
    train_size = next(iter(search.searches.values())).combination.train_size
    return (
        f"The search used the {tune.sampler} sampler with seed {tune.seed} and a budget of "
        f"{tune.num_trainings:g} whole trainings per model and dataset. Of {train_size} "
        f"training images, {tune.validation_share:.0%} were used for validation. All images of a "
        f"group are on the same side of the split. {tune.finalists} finalists and the sweep's "
        f"recipe were trained {tune.seeds} "
        "times each. No test image was used."
    )


def loss_against_rate(
    searches: Sequence[CombinationSearch],
    trials: pd.DataFrame,
    outcomes: Iterable[CombinationOutcome],
    datasets: Mapping[str, DatasetSpec],
) -> str:
    """Draw validation loss against learning rate, with one panel per model.

    Args:
        searches: Searches of all combinations.
        trials: Result of :func:`trial_table`.
        outcomes: Outcomes of all combinations, with the chosen points.
        datasets: Datasets by name.

    Returns:
        An SVG image in base64.
    """
    chosen_rates = {
        (outcome.model, outcome.dataset): outcome.chosen.point.learning_rate
        for outcome in outcomes
        if outcome.chosen
    }
    domains: dict[str, str] = {
        name: datasets[name].domain or "natural" for name in set(trials["dataset"])
    }
    marks = dataset_marks(domains)
    models = list(dict.fromkeys(trials["model"]))
    with styled():
        figure, axes = panels(len(models), share=False)
        for panel, model in zip(axes, models, strict=True):
            panel.set_title(model)
            for search in searches:
                combination = search.combination
                if combination.key[0] != model:
                    continue
                is_shown = (trials["model"] == model) & (trials["dataset"] == combination.dataset)
                color, marker = marks[combination.dataset]
                _draw_points(panel, trials[is_shown], color, marker)
                panel.axvline(
                    combination.sweep_point.learning_rate,
                    color=GREY,
                    linestyle=":",
                    linewidth=1,
                )
                if combination.key in chosen_rates:
                    rate = chosen_rates[combination.key]
                    _draw_chosen(panel, trials[is_shown], rate, color)
            log_ticks(panel.xaxis, trials["learning_rate"])
            panel.set_yscale("log")
        handles = mark_handles(marks, trials["dataset"]) + _legend_handles()
        frame(figure, "learning rate", "validation loss (nat)", handles)
        return base64.b64encode(rendered(figure, "svg")).decode("ascii")


def _draw_points(panel: Axes, rows: pd.DataFrame, color: str, marker: str) -> None:
    """Draw the points of one combination. A cross is a diverged trial."""
    for status, shape in ((SearchStatus.COMPLETE, marker), (SearchStatus.DIVERGED, "x")):
        points = rows[rows["status"] == str(status)]
        markers = panel.scatter(
            points["learning_rate"], points["shown"], s=22, linewidths=1, marker=shape
        )
        markers.set(edgecolor=color, facecolor=color)


def _draw_chosen(panel: Axes, rows: pd.DataFrame, rate: float, color: str) -> None:
    """Draw a star at the chosen learning rate."""
    losses = rows[rows["learning_rate"] == rate]["shown"]
    panel.plot([rate], [losses.min()], "*", color=color, markersize=13, markeredgecolor="black")


def _legend_handles() -> list[Line2D]:
    """Return legend entries for the marks that mean something else than a dataset."""
    grey: dict[str, Any] = {"color": GREY}
    mark_alone: dict[str, Any] = {"linestyle": "none", "markersize": 4}
    star: dict[str, Any] = {"marker": "*", "markeredgecolor": "black", "markersize": 11}
    return [
        Line2D([], [], linestyle=":", label="sweep's recipe", **grey),
        Line2D([], [], color="white", label="chosen", **star),
        Line2D([], [], marker="o", label="finished", **grey, **mark_alone),
        Line2D([], [], marker="x", label="diverged", **grey, **mark_alone),
    ]
