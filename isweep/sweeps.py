"""A sweep as one object: what was planned, what was found, what it means, and what it predicts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Real
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, cast

import pandas as pd
from pydantic import TypeAdapter, ValidationError

from isweep.measuring import Measurement, Shown, root_text
from orchestrator.planning.plan import CellStatus
from orchestrator.planning.sweep_file import SweepSource
from orchestrator.planning.workspace import Workspace
from search_spaces.errors import ConfigError, DataError, invalid, plural, unknown_name
from search_spaces.errors import SweepError as SweepError
from search_spaces.sweeps import SweepSpec as SweepSpec

if TYPE_CHECKING:
    from orchestrator import RunOptions
    from orchestrator.analysis.experiments.records import Arm
    from orchestrator.analysis.fits import ScalingFits
    from orchestrator.analysis.loss_growth import Growth
    from orchestrator.analysis.prediction import Prediction
    from orchestrator.analysis.prediction_inputs import Pilot
    from orchestrator.results.state import State
    from orchestrator.running.progress import Progress


@dataclass(repr=False)
class Sweep(Shown):
    """A sweep below one root: ``workspace`` plans it. What is read is kept: open it again to look
    anew.
    """

    workspace: Workspace

    @property
    def name(self) -> str:
        """The sweep's name."""
        return self.workspace.plan.sweep.name

    @cached_property
    def state(self) -> State:
        """What the result store holds."""
        from orchestrator.results.state import read_state

        return read_state(self.workspace)

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row per trial with a result; ``docs/results-columns.md`` explains the columns."""
        from orchestrator import results_table

        return results_table(self.workspace, state=self.state)

    @cached_property
    def predictions(self) -> pd.DataFrame:
        """One row per trial and test image: what the trial is, ``image``, ``label``, ``logit_0``,
        ….
        """
        from orchestrator.results.rows import predictions_table
        from orchestrator.results.store import ResultStore

        return predictions_table(self.state.records, ResultStore(self.workspace.results_url))

    @property
    def failures(self) -> pd.DataFrame:
        """One row per failed trial: ``trial_id``, ``kind``, ``message``."""
        rows = self.state.failure_rows()
        return pd.DataFrame(rows, columns=None if rows else ["trial_id", "kind", "message"])

    def best(
        self, *, dataset: str | None = None, train_size: int | None = None, model: str | None = None
    ) -> pd.DataFrame:
        """Return the model of lowest mean test loss and the next, one row per dataset and train
        size.

        Means are over the class pairs and seeds that all models have. The arguments keep one
        dataset, size or model; of one model it is that model's numbers.
        """
        from orchestrator.analysis.result_rows import select_rows
        from orchestrator.analysis.tables.of_trials import best_models

        wanted = {"dataset": dataset, "train_size": train_size, "model": model}
        rows = select_rows(
            self._with_results(), {name: it for name, it in wanted.items() if it is not None}
        )
        return best_models(rows)

    @cached_property
    def fits(self) -> Fits:
        """The scaling-law fits, with uncertainty."""
        from orchestrator import fit_scaling_laws
        from orchestrator.analysis.report import arms_of, stored_predictions

        table, arms = self._with_results(), arms_of(self.workspace)
        predictions = stored_predictions(self.workspace, self.state, table)
        fits = fit_scaling_laws(table, arms=arms, explore=True, predictions=predictions)
        return Fits(fits, table, arms)

    @property
    def report(self) -> Path:
        """``report.html``, written anew; figures, results and fits lie beside it."""
        from orchestrator.analysis.report import write_sweep_report

        self._with_results()
        return cast(Path, write_sweep_report(self.workspace, self.state))

    def _with_results(self) -> pd.DataFrame:
        if self.table.empty:
            raise DataError(
                f"Sweep {self.name!r} has no results yet", hint="run it: isweep.run(...)"
            )
        return self.table

    @property
    def counts(self) -> dict[str, int]:
        """How many trials are planned, done, failed and left."""
        plan, state = self.workspace.plan, self.state
        planned, done, failed = map(len, (plan.trials, state.results, state.failures))
        return {
            "planned": planned,
            "done": done,
            "failed": failed,
            "left": planned - done - failed,
        }

    def __repr__(self) -> str:
        counts = ", ".join(f"{count} {name}" for name, count in self.counts.items())
        return f"Sweep {self.name!r}: {counts}; below {self.workspace.paths.root}"

    def shown(self) -> pd.DataFrame | None:
        """Return the best models, where there are results."""
        return self.best() if len(self.table) else None


@dataclass(frozen=True, repr=False)
class Fits(Shown):
    """The fits of a sweep: ``records`` is what :func:`orchestrator.fit_scaling_laws` returned."""

    records: ScalingFits
    table: pd.DataFrame = field(repr=False)
    arms: tuple[Arm, ...] = ()

    def to_frame(self) -> pd.DataFrame:
        """Return a row per number of every fit, with its 95 % interval; of a refused fit, its
        reason.
        """
        return pd.DataFrame(
            [
                {
                    "fit": fit.kind,
                    **{
                        name: getattr(fit, name)
                        for name in ("response", "model", "subset", "variant")
                    },
                    "coefficient": None if estimate is None else estimate.name,
                    "value": None if estimate is None else estimate.value,
                    "low": None if interval is None else interval[0],
                    "high": None if interval is None else interval[1],
                    **{
                        name: getattr(fit, name)
                        for name in ("num_points", "num_datasets", "reason")
                    },
                }
                for fit in self.records.fits
                for estimate in fit.estimates or (None,)
                for interval in (None if estimate is None else estimate.interval,)
            ]
        )

    def shown(self) -> pd.DataFrame:
        """Return the rows of all models together."""
        return self.to_frame().query("model == 'pooled'")

    def __repr__(self) -> str:
        fits = self.records
        sizes = {"point": fits.num_points, "model": len(fits.models), "dataset": len(fits.datasets)}
        points, *others = (plural(count, noun) for noun, count in sizes.items())
        return f"Fits of {points}: {', '.join(others)}"


@dataclass(frozen=True, repr=False)
class Plan(Shown):
    """The grid of a sweep: a row per trial with its status, and an estimate of what the rest will
    cost.
    """

    table: pd.DataFrame
    estimate: dict[str, Any]

    def summary(self) -> pd.DataFrame:
        """Return one row per model and dataset: trials, and how many are done."""
        rows = self.table.assign(done=self.table["status"] == CellStatus.DONE)
        groups = rows.groupby(["model", "dataset"], sort=False, as_index=False)
        return groups.agg(trials=("done", "size"), done=("done", "sum"))

    shown = summary

    def __repr__(self) -> str:
        return f"Plan of {plural(len(self.table), 'trial')}; {self.estimate['text']}"


def run(
    source: SweepSource,
    *,
    root: str | Path | None = None,
    changes: Mapping[str, object] | None = None,
    progress: bool = True,
    **options: Any,
) -> Sweep:
    """Do what is left of a sweep and return it; again resumes, extends or repairs.

    Args:
        source: A preset's name, a sweep file's path or content, or the name of a sweep of the root.
        root: Folder of everything; None takes ``$ISWEEP_ROOT`` or ``./isweep-root``.
        changes: Values by dotted key that hold over the source's: ``{"recipe.epochs": 3}``.
        progress: Show what happens.
        options: See :class:`orchestrator.RunOptions`: ``address``, ``num_cpus``, ``tracking``, ...
    """
    from orchestrator import run_sweep

    given = _run_options(root, options)
    run_sweep(source, given, progress=_progress(progress), changes=changes)
    return Sweep(Workspace.open(source, given.root, given.storage, changes=changes))


def open(
    source: SweepSource, *, root: str | Path | None = None, storage: str | None = None
) -> Sweep:
    """Return a sweep as it stands, a preset as it ran; nothing is run or made. See :func:`run`."""
    return Sweep(Workspace.open(source, root_text(root), storage, as_run=True))


def plan(
    source: SweepSource,
    *,
    root: str | Path | None = None,
    storage: str | None = None,
    changes: Mapping[str, object] | None = None,
) -> Plan:
    """Return the grid of a sweep, what is done and what the rest will cost; see :func:`run`."""
    from orchestrator.running.run_plan import plan_run

    found = plan_run(Workspace.open(source, root_text(root), storage, changes=changes))
    return Plan(pd.DataFrame(found.rows), found.cost)


@dataclass(frozen=True, repr=False)
class Tuned(Shown):
    """What a search found: a row per model and dataset, the recipe file, the page, and what went
    wrong.

    A sweep takes the recipe with ``changes={"recipe": found.recipe}``. There is no page of no
    trial.
    """

    table: pd.DataFrame
    recipe: str
    report: Path | None
    problems: tuple[str, ...] = ()

    def __repr__(self) -> str:
        tuned = int(self.table["learning_rate"].notna().sum())
        return f"Recipe of {tuned} of {len(self.table)} models on datasets: {self.recipe}"

    def shown(self) -> pd.DataFrame:
        """Return the chosen values."""
        return self.table[
            ["model", "dataset", "learning_rate", "weight_decay", "batch_size", "gain"]
        ]


def tune(
    source: SweepSource,
    *,
    root: str | Path | None = None,
    changes: Mapping[str, object] | None = None,
    progress: bool = True,
    **options: object,
) -> Tuned:
    """Search what is left of a sweep's learning rates; again resumes or extends. See
    :func:`run`.
    """
    from orchestrator.tuning.outcome import outcome_rows
    from orchestrator.tuning.tune_sweep import tune_sweep

    given = _run_options(root, options)
    summary = tune_sweep(source, given, progress=_progress(progress), changes=changes)
    return Tuned(
        table=pd.DataFrame(outcome_rows(summary.combinations)),
        recipe=str(summary.recipe),
        report=summary.report,
        problems=summary.problems,
    )


def _run_options(root: str | Path | None, options: Mapping[str, Any]) -> RunOptions:
    """Return the options that a caller names by keyword, checked as the command line checks its
    own.
    """
    from orchestrator import RunOptions

    known = set(RunOptions.__dataclass_fields__) - {"root"}
    for name in options:
        if name not in known:
            raise unknown_name("option", name, known)
    given = {
        name: str(value) if isinstance(value, Path) else value for name, value in options.items()
    }
    try:
        return TypeAdapter(RunOptions).validate_python({**given, "root": root_text(root)})
    except ValidationError as error:
        raise invalid(error) from None


def _progress(progress: bool) -> Progress:
    """Return what shows how far a run is, or what shows nothing."""
    if not isinstance(progress, bool):
        raise ConfigError("progress must be True or False", repr(progress))
    from rich.console import Console

    from orchestrator.running.progress import Progress

    return Progress(console=Console() if progress else None)


def predict(
    measured: Measurement | dict[str, Any] | str | Path | None = None,
    sweep: Sweep | Fits | str = "demo",
    *,
    model: str = "pooled",
    domain: str | None = None,
    d_data: float | None = None,
    label_sharpness: float | None = None,
    train_size: float | None = None,
    target_loss: float | None = None,
    pilot: Sequence[tuple[float, float]] | str | Path = (),
    root: str | Path | None = None,
) -> Prediction:
    """Predict from a sweep's fits; exactly one of ``train_size`` and ``target_loss`` is the
    question.

    Args:
        measured: A measurement of images on the sweep's scale, its JSON record or the path of that;
            None where the two numbers are given.
        sweep: Whose fits to use: a sweep, its fits, or what :func:`isweep.open` takes.
        model: A model of the sweep; ``pooled`` for all of them together.
        domain: ``natural`` or ``medical``; None for all datasets.
        d_data: Intrinsic dimension, in place of the measured one.
        label_sharpness: K_F, in place of the measured one, on the scale of the sweep.
        train_size: Images to train on: what will the loss be?
        target_loss: Test loss in nat to reach: how many images are needed?
        pilot: Small trainings of ``model`` on the dataset: pairs of train size and test loss, or a
            CSV file.
        root: See :func:`isweep.run`.
    """
    from orchestrator.analysis.loss_growth import fit_growth
    from orchestrator.analysis.predict_sweep import predict_sweep
    from orchestrator.analysis.prediction_inputs import read_record
    from orchestrator.analysis.report import arms_of

    asked = {"d_data": d_data, "label_sharpness": label_sharpness}
    asked |= {"train_size": train_size, "target_loss": target_loss}
    for name, value in asked.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, Real)):
            raise ConfigError(f"{name} must be a number", repr(value), "give a plain one")

    def growth() -> Growth:
        whose = sweep if isinstance(sweep, (Sweep, Fits)) else open(sweep, root=root)
        table = whose.table if isinstance(whose, Fits) else whose._with_results()
        arms = whose.arms if isinstance(whose, Fits) else arms_of(whose.workspace)
        return fit_growth(table, model=model, domain=domain, arms=arms)

    if isinstance(measured, (str, Path)):
        measured = read_record(Path(measured))
    elif isinstance(measured, Measurement):
        measured = measured.to_json()
    elif not isinstance(measured, (dict, NoneType)):
        rule = "measured must be a measurement, a record or the path of one"
        raise ConfigError(rule, type(measured).__name__, "isweep.measure(images, labels) makes one")
    return predict_sweep(measured or {}, growth, _pilot(pilot, model), **asked)[0]


def _pilot(
    pilot: Sequence[tuple[float, float]] | str | Path, model: str
) -> Callable[[], Pilot] | None:
    from orchestrator.analysis.prediction_inputs import Pilot, PilotPoint, read_pilot

    if isinstance(pilot, (str, Path)):
        return lambda: read_pilot(Path(pilot), model)
    try:
        points = tuple(PilotPoint(float(size), float(loss)) for size, loss in pilot)
    except (TypeError, ValueError):
        rule = "pilot must be pairs of train size and test loss, or a file of them"
        raise ConfigError(rule, repr(pilot)[:200], "e.g. [(50, 0.6), (100, 0.5)]") from None
    return (lambda: Pilot(points)) if points else None
