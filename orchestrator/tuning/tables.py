"""The outcome of a search as tables, for people, notebooks and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from orchestrator.analysis.tables import Table
from orchestrator.tuning.outcome import FLAT_WITHIN, Candidate, CellOutcome

if TYPE_CHECKING:
    from orchestrator.tuning.pipeline import TuneSummary

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
