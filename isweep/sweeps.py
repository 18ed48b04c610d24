"""A sweep as one object: its plan, its results and its fits."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pandas as pd

from isweep.display import Displayed, PrintedTable
from isweep.measuring import root_text
from orchestrator.planning.plan import PlannedStatus
from orchestrator.planning.sweep_file import SweepSource
from orchestrator.planning.workspace import Workspace
from search_spaces.errors import DataError, plural
from search_spaces.errors import SweepError as SweepError
from search_spaces.sweeps import SweepSpec as SweepSpec

if TYPE_CHECKING:
    from orchestrator.analysis.experiments.records import Arm
    from orchestrator.analysis.fits import ScalingFits
    from orchestrator.results.state import State


@dataclass(repr=False)
class Sweep(Displayed):
    """A sweep and its results below one root.

    The results are read only once. To read newer results, open the sweep again.

    Attributes:
        workspace: The plan of the sweep, and the paths of its results.
    """

    workspace: Workspace

    @property
    def name(self) -> str:
        """Name of the sweep."""
        return self.workspace.plan.sweep.name

    @cached_property
    def state(self) -> State:
        """Records in the result store."""
        from orchestrator.results.state import read_state

        return read_state(self.workspace)

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row per trial with a result. ``docs/results-columns.md`` explains the columns.

        If the sweep has no results, the table is empty, and isweep prints a warning.
        """
        from orchestrator import results_table

        table = results_table(self.workspace, state=self.state)
        if table.empty:
            warnings.warn(self._no_results, stacklevel=3)
        return table

    @cached_property
    def predictions(self) -> pd.DataFrame:
        """One row per trial and test image: ``image``, ``label``, ``logit_0``, ``logit_1``, …."""
        from orchestrator.results.rows import predictions_table
        from orchestrator.results.store import ResultStore

        return predictions_table(self.state.records, ResultStore(self.workspace.results_url))

    @property
    def failures(self) -> pd.DataFrame:
        """One row per failed trial: ``trial_id``, ``kind``, ``message``."""
        rows = self.state.failure_rows()
        if not rows:
            return pd.DataFrame(columns=["trial_id", "kind", "message"])
        return pd.DataFrame(rows)

    def best(
        self,
        *,
        dataset: str | None = None,
        train_size: int | None = None,
        model: str | None = None,
        metric: str = "test_loss",
    ) -> pd.DataFrame:
        """Return the best model and the runner-up for each dataset and train size.

        Means are over the class pairs and seeds for which all models have a result.

        Args:
            dataset: Use only this dataset.
            train_size: Use only this number of training images.
            model: Use only this model. The result then has no runner-up.
            metric: Column to rank by: ``test_loss`` (nat), ``test_accuracy``, ``auc`` or
                another score of the table. For a loss, a calibration error or a fall of the
                accuracy, the lowest value is the best. Otherwise, the highest value is the
                best.

        Returns:
            One row per dataset and train size. ``runner_up`` is the second best model.

        Raises:
            SweepError: There is no result, no row has the given dataset, size or model, or
                ``metric`` is not a score of the table.

        Example:
            >>> import isweep
            >>> best = isweep.open("smoke").best(dataset="manifold_d4", metric="test_accuracy")
            >>> best.columns[:4].tolist()
            ['dataset', 'train_size', 'model', 'test_accuracy']
        """
        from orchestrator.analysis.result_rows import select_rows
        from orchestrator.analysis.tables.of_trials import best_models

        filters = {"dataset": dataset, "train_size": train_size, "model": model}
        filters = {name: value for name, value in filters.items() if value is not None}
        return PrintedTable(best_models(select_rows(self.results(), filters), metric))

    @cached_property
    def fits(self) -> Fits:
        """All fits of the scaling laws, each with its uncertainty."""
        from orchestrator import fit_scaling_laws
        from orchestrator.analysis.report import arms_of, facts_of, stored_predictions

        table = self.results()
        arms = arms_of(self.workspace)
        predictions = stored_predictions(self.workspace, self.state, table)
        fits = fit_scaling_laws(
            table,
            arms=arms,
            explore=True,
            predictions=predictions,
            facts=facts_of(self.workspace),
        )
        return Fits(fits, table, arms)

    @property
    def report(self) -> Path:
        """Path of ``report.html``.

        Each use of this property writes the report, its figures and fits again.
        """
        from orchestrator.analysis.report import write_sweep_report

        self.results()
        return cast(Path, write_sweep_report(self.workspace, self.state))

    def results(self) -> pd.DataFrame:
        """Return the table of results. It has at least one row.

        Raises:
            SweepError: If no trial has a result yet.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            table = self.table
        if table.empty:
            raise DataError(
                f"Sweep {self.name!r} has no results yet",
                hint=f"Run the sweep, for example with isweep.run({self.name!r})",
            )
        return table

    @property
    def _no_results(self) -> str:
        return (
            f"Sweep {self.name!r} has no results yet. Run the sweep, for example with "
            f"isweep.run({self.name!r})."
        )

    @property
    def counts(self) -> dict[str, int]:
        """Numbers of trials that are planned, done, failed and left."""
        planned = len(self.workspace.plan.trials)
        done = len(self.state.results)
        failed = len(self.state.failures)
        return {"planned": planned, "done": done, "failed": failed, "left": planned - done - failed}

    def __repr__(self) -> str:
        counts = ", ".join(f"{count} {name}" for name, count in self.counts.items())
        return f"Sweep {self.name!r}. Trials: {counts}. Root: {self.workspace.paths.root}"

    def displayed(self) -> pd.DataFrame | None:
        """Return the best models, or None if there are no results."""
        if not (self.state.results or self.state.partial):
            return None
        return self.best()


@dataclass(frozen=True, repr=False)
class Fits(Displayed):
    """The scaling-law fits of one sweep.

    Attributes:
        records: All fits, as :func:`orchestrator.fit_scaling_laws` returns them.
        table: The fitted results.
        arms: Conditions of an experiment; empty for other sweeps.
    """

    records: ScalingFits
    table: pd.DataFrame = field(repr=False)
    arms: tuple[Arm, ...] = ()

    def to_frame(self) -> pd.DataFrame:
        """Return one row per number of every fit, with its 95 % interval.

        A fit that could not be made has one row with its reason.
        """
        rows = []
        for fit in self.records.fits:
            described = {
                "fit": fit.kind,
                "response": fit.response,
                "model": fit.model,
                "subset": fit.subset,
                "variant": fit.variant,
            }
            basis = {
                "num_points": fit.num_points,
                "num_datasets": fit.num_datasets,
                "reason": fit.reason,
            }
            if not fit.estimates:
                blank = dict.fromkeys(("coefficient", "value", "low", "high"))
                rows.append({**described, **blank, **basis})
            for estimate in fit.estimates:
                low, high = estimate.interval or (None, None)
                numbers = {
                    "coefficient": estimate.name,
                    "value": estimate.value,
                    "low": low,
                    "high": high,
                }
                rows.append({**described, **numbers, **basis})
        return pd.DataFrame(rows)

    def displayed(self) -> pd.DataFrame:
        """Return the rows of all models together."""
        return self.to_frame().query("model == 'pooled'")

    def __repr__(self) -> str:
        fits = self.records
        points = plural(fits.num_points, "point")
        models = plural(len(fits.models), "model")
        datasets = plural(len(fits.datasets), "dataset")
        return f"Fits of {points} of {models} and {datasets}"


@dataclass(frozen=True, repr=False)
class Plan(Displayed):
    """The grid of a sweep, and the estimated cost of the trials without a result.

    Attributes:
        table: One row per trial, with its ``status``.
        estimate: Estimated time, memory and disk. ``estimate["text"]`` is a sentence on them.
    """

    table: pd.DataFrame
    estimate: dict[str, Any]

    def summary(self) -> pd.DataFrame:
        """Return one row per model and dataset: the numbers of planned and done trials."""
        rows = self.table.assign(done=self.table["status"] == PlannedStatus.DONE)
        groups = rows.groupby(["model", "dataset"], sort=False, as_index=False)
        return groups.agg(trials=("done", "size"), done=("done", "sum"))

    displayed = summary

    def __repr__(self) -> str:
        return f"Plan of {plural(len(self.table), 'trial')}. {self.estimate['text']}"


def open(
    source: SweepSource, *, root: str | Path | None = None, storage: str | None = None
) -> Sweep:
    """Open a sweep and its results, without running or writing anything.

    Args:
        source: Name of a preset or of a sweep of the root, path of a sweep file, or its
            content. A preset that has run is opened as it last ran.
        root: Folder of all results; None for ``$ISWEEP_ROOT`` or ``./isweep-root``.
        storage: Folder or URL of the result store, if it is not below the root.

    Returns:
        The sweep with its stored results.

    Raises:
        SweepError: If there is no such sweep.

    Example:
        >>> import isweep
        >>> isweep.open("smoke").name
        'smoke'
    """
    return Sweep(Workspace.open(source, root_text(root), storage, prefer_root=True))


def plan(
    source: SweepSource,
    *,
    root: str | Path | None = None,
    storage: str | None = None,
    changes: Mapping[str, object] | None = None,
) -> Plan:
    """Return the grid of a sweep, its done trials and the cost of the others, without a run.

    Args:
        source: Name of a preset or of a sweep of the root, path of a sweep file, or its
            content.
        root: Folder of all results; None for ``$ISWEEP_ROOT`` or ``./isweep-root``.
        storage: Folder or URL of the result store, if it is not below the root.
        changes: Values that replace those of the source, by dotted key:
            ``{"recipe.epochs": 3}``.

    Returns:
        The plan.

    Raises:
        SweepError: If the sweep is invalid, or could not run on this machine.

    Example:
        >>> import isweep
        >>> plan = isweep.plan("smoke", changes={"seeds": [0, 1, 2, 3]})
        >>> set(plan.summary()["trials"])
        {8}
    """
    from orchestrator.running.run_plan import plan_run

    workspace = Workspace.open(source, root_text(root), storage, changes=changes)
    grid = plan_run(workspace)
    return Plan(pd.DataFrame(grid.rows), grid.cost)
