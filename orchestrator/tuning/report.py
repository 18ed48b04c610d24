"""The page of a search: what was chosen and why, beside what the sweep's own recipe gives."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from orchestrator.analysis.inference import mean_interval
from orchestrator.analysis.table import interval, number, write_csv
from orchestrator.analysis.tables import Table
from orchestrator.planning.workspace import Workspace
from orchestrator.tuning.figures import draw_all, trial_table
from orchestrator.tuning.importance import FEWEST_FOR_IMPORTANCE
from orchestrator.tuning.outcome import CellOutcome
from orchestrator.tuning.search import Search
from orchestrator.tuning.tables import outcome_table
from search_spaces.errors import SweepError
from tasks.atomic import write_atomic


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
            *(text for one in found for text in _spelled(one.get(key))),
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


def _spelled(coefficient: Any) -> tuple[str, str]:
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
