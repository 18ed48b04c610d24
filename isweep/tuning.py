"""A search for learning rates, weight decays and batch sizes, from a notebook."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from isweep.options import run_options, shown_progress
from isweep.sweeps import Report
from orchestrator.planning.sweep_file import SweepSource

__all__ = ["Tuned", "tune"]


@dataclass(frozen=True)
class Tuned:
    """What a search found.

    Attributes:
        table: One row per model and dataset: the chosen values, their validation loss in nat with its
            standard error, that of the sweep's own recipe, how flat the optimum is, what it cost.
        recipe: The recipe file; a sweep uses it with ``changes={"recipe": found.recipe}``.
        report: The page; None where nothing was tried.
        problems: Why a model and dataset have no recipe, in a sentence each.
    """

    table: pd.DataFrame
    recipe: str
    report: Report | None
    problems: tuple[str, ...] = ()

    def __repr__(self) -> str:
        tuned = int(self.table["learning_rate"].notna().sum())
        return f"Recipe of {tuned} of {len(self.table)} models on datasets: {self.recipe}"

    def _repr_html_(self) -> str:
        shown = self.table[["model", "dataset", "learning_rate", "weight_decay", "batch_size", "gain"]]
        head = f"<p>{html.escape(repr(self))}</p>"
        return head + shown.to_html(index=False, float_format="{:.3g}".format)


def tune(
    source: SweepSource,
    *,
    root: str | Path | None = None,
    changes: Mapping[str, object] | None = None,
    progress: bool = True,
    **options: object,
) -> Tuned:
    """Search what is left of a sweep's learning rates; again resumes or extends.

    Args:
        source: See :func:`isweep.run`, likewise the rest.
        root: Folder of everything.
        changes: Values by dotted key that hold over the source's: ``{"tune.budget": 0.4}``.
        progress: Show what happens.
        options: See :class:`orchestrator.RunOptions`.

    Raises:
        SweepError: for a mistake that can be mended; whatever finished is kept.
    """
    from orchestrator.tuning.pipeline import tune_sweep
    from orchestrator.tuning.tables import outcome_rows

    given = run_options(root, options)
    shown = shown_progress(progress)
    summary = tune_sweep(source, given, progress=shown, changes=changes)
    return Tuned(
        table=pd.DataFrame(outcome_rows(summary.cells)),
        recipe=str(summary.recipe),
        report=None if summary.report is None else Report(summary.report),
        problems=summary.problems,
    )
