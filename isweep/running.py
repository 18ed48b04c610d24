"""Run sweeps and searches for learning rates from Python."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from pydantic import TypeAdapter, ValidationError

from isweep.display import Displayed
from isweep.measuring import root_text
from isweep.sweeps import Sweep
from orchestrator.planning.sweep_file import SweepSource
from orchestrator.planning.workspace import Workspace
from search_spaces.errors import ConfigError, pydantic_error, unknown_name

if TYPE_CHECKING:
    from orchestrator import RunOptions
    from orchestrator.running.progress import Progress


def run(
    source: SweepSource,
    *,
    root: str | Path | None = None,
    changes: Mapping[str, object] | None = None,
    progress: bool = True,
    **options: Any,
) -> Sweep:
    """Run the trials of a sweep that have no result yet, then write the report.

    The same call continues a stopped run, runs the new trials of a changed sweep, and repairs
    damaged results.

    Args:
        source: Name of a preset or of a sweep of the root, path of a sweep file, or its
            content.
        root: Folder of all results; None for ``$ISWEEP_ROOT`` or ``./isweep-root``.
        changes: Values that replace those of the source, by dotted key:
            ``{"recipe.epochs": 3}``.
        progress: If True, print the progress of the run.
        **options: Fields of :class:`orchestrator.RunOptions`, such as ``num_cpus`` (cores of
            this machine), ``address`` (of a running Ray cluster), ``device`` (``"auto"``,
            ``"cpu"`` or ``"gpu"``) and ``tracking`` (False to run without MLflow).

    Returns:
        The sweep with its results. Failed trials are in ``failures`` and raise no error.

    Raises:
        SweepError: If the sweep is invalid, or the machine, the data or the cluster cannot be
            used.

    Example:
        >>> import isweep
        >>> sweep = isweep.run("smoke", progress=False)
        >>> sweep.counts["left"], sweep.report.name
        (0, 'report.html')
    """
    from orchestrator import run_sweep

    run_options = _run_options(root, options)
    run_sweep(source, run_options, progress=_progress(progress), changes=changes)
    workspace = Workspace.open(source, run_options.root, run_options.storage, changes=changes)
    return Sweep(workspace)


@dataclass(frozen=True, repr=False)
class Tuned(Displayed):
    """The result of a search for learning rates: the chosen recipe.

    Use the recipe in a sweep with ``changes={"recipe": tuned.recipe}``.

    Attributes:
        table: One row per model and dataset, with the chosen values.
        recipe: Path of the recipe file.
        report: Path of the page about the search. None if no trial has a result.
        problems: Problems of the search. Each problem is one sentence.
    """

    table: pd.DataFrame
    recipe: str
    report: Path | None
    problems: tuple[str, ...] = ()

    def __repr__(self) -> str:
        num_tuned = int(self.table["learning_rate"].notna().sum())
        return (
            f"The search chose values for {num_tuned} of {len(self.table)} combinations of model "
            f"and dataset. Recipe file: {self.recipe}"
        )

    def displayed(self) -> pd.DataFrame:
        """Return the chosen values."""
        columns = ["model", "dataset", "learning_rate", "weight_decay", "batch_size", "gain"]
        return self.table[columns]


def tune(
    source: SweepSource,
    *,
    root: str | Path | None = None,
    changes: Mapping[str, object] | None = None,
    progress: bool = True,
    **options: Any,
) -> Tuned:
    """Search for a good learning rate, weight decay and batch size of each model and dataset.

    The search uses a validation split of the training images. It uses no test images. The same
    call continues a stopped search, or a search whose budget is now larger.

    Args:
        source: Name of a preset or of a sweep of the root, path of a sweep file, or its
            content.
        root: Folder of all results; None for ``$ISWEEP_ROOT`` or ``./isweep-root``.
        changes: New values by dotted key, for example ``{"tune.budget": 0.5}``. They replace
            values of the source.
        progress: If True, print the progress of the search.
        **options: Fields of :class:`orchestrator.RunOptions`, as for :func:`isweep.run`.

    Returns:
        The chosen values, the recipe file and the page about the search.

    Raises:
        SweepError: If the sweep is invalid, or the machine, the data or the cluster cannot be
            used.

    Example:
        >>> import isweep
        >>> search = {"budget": 0.04, "finalists": 1, "seeds": 2, "sampler": "random"}
        >>> one = {"models": ["small_mlp"], "datasets": ["manifold_d4"], "tune": search}
        >>> tuned = isweep.tune("smoke", changes=one, progress=False)
        >>> tuned.table["model"].tolist()
        ['small_mlp']
    """
    from orchestrator.tuning.outcome import outcome_rows
    from orchestrator.tuning.tune_sweep import tune_sweep

    run_options = _run_options(root, options)
    summary = tune_sweep(source, run_options, progress=_progress(progress), changes=changes)
    return Tuned(
        table=pd.DataFrame(outcome_rows(summary.combinations)),
        recipe=str(summary.recipe),
        report=summary.report,
        problems=summary.problems,
    )


def _run_options(root: str | Path | None, options: Mapping[str, Any]) -> RunOptions:
    """Check that the options follow the rules of the command line, and return them."""
    from orchestrator import RunOptions

    known_options = set(RunOptions.__dataclass_fields__) - {"root"}
    values: dict[str, Any] = {"root": root_text(root)}
    for name, value in options.items():
        if name not in known_options:
            raise unknown_name("option", name, known_options)
        values[name] = value
        if isinstance(value, Path):
            values[name] = str(value)
    try:
        return TypeAdapter(RunOptions).validate_python(values)
    except ValidationError as error:
        raise pydantic_error(error) from None


def _progress(is_printed: bool) -> Progress:
    """Return a display of a run's progress, or a display that prints nothing."""
    if not isinstance(is_printed, bool):
        raise ConfigError(
            f"`progress` is {is_printed!r}, but must be True or False",
            hint="Pass progress=True or progress=False",
        )
    from rich.console import Console

    from orchestrator.running.progress import Progress

    if not is_printed:
        return Progress(console=None)
    return Progress(console=Console())
