"""Commands that read what a sweep found: table, fits, report, predictions."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import ArgumentCollection, Group, Parameter
from rich.markup import escape

from orchestrator.cli.options import Place, Positive, real
from orchestrator.cli.printing import cell, emit, grid, line, stderr, stdout, text_table, written
from search_spaces.errors import ConfigError, SetupError

if TYPE_CHECKING:
    import pandas as pd

    from orchestrator.analysis import Prediction
    from orchestrator.analysis.intervention_records import Arm
    from orchestrator.planning.workspace import Workspace
    from orchestrator.results.state import State

Finite = Annotated[float, real()]
SHOWN = {
    "model": "model",
    "dataset": "dataset",
    "class_pair": "pair",
    "train_size": "N",
    "seed": "seed",
    "test_loss": "loss",
    "test_accuracy": "accuracy",
    "d_data_mle": "d_data",
    "label_sharpness": "K_F",
}
"""Columns that ``isweep results`` prints for people, with their short names."""


def results(
    preset: str,
    /,
    *,
    csv: Annotated[Path | None, Parameter(metavar="FILE")] = None,
    parquet: Annotated[Path | None, Parameter(metavar="FILE")] = None,
    from_store: bool = False,
    place: Place = Place(),
) -> int:
    """Print or write the tidy table, one row per trial.

    Args:
        preset: Name of a preset or of a sweep of the root, or path of a sweep file.
        csv: Write it as CSV.
        parquet: Write it as Parquet.
        from_store: Do not compare with MLflow.
        place: Where everything lies.
    """
    from orchestrator.analysis import write_csv

    table = read_table(preset, place, from_store=from_store)
    what = f"{len(table)} rows to "
    if csv:
        written(csv, lambda path: write_csv(table, path), what)
    if parquet:
        written(parquet, lambda path: table.to_parquet(path, index=False), what)
    if (csv or parquet) and not place.json:
        return 0
    rows = json.loads(table.to_json(orient="records", double_precision=15))

    def show() -> None:
        shown = grid(*SHOWN.values(), numeric_from=[*SHOWN].index("train_size"))
        for row in rows:
            shown.add_row(*(cell(row.get(name)) for name in SHOWN))
        stdout.print(shown)

    emit(place, rows, show)
    return 0


def fit(preset: str, /, *, from_store: bool = False, place: Place = Place()) -> int:
    """Fit the scaling laws.

    Args:
        preset: Name of a preset or of a sweep of the root, or path of a sweep file.
        from_store: Do not compare with MLflow.
        place: Where everything lies.
    """
    from orchestrator.analysis import fit_scaling_laws
    from orchestrator.analysis.fit_tables import fit_tables

    table = read_table(preset, place, from_store=from_store)
    fits = fit_scaling_laws(table, arms=_arms(preset, place))

    def show() -> None:
        for table in fit_tables(fits):
            if table.rows and not table.folded:
                stdout.print(text_table(table))
        for caveat in fits.caveats:
            stdout.print(escape(caveat), soft_wrap=True)

    emit(place, fits.to_json(), show)
    return 0


def report(
    preset: str, /, *, from_store: bool = False, published: bool = False, place: Place = Place()
) -> int:
    """Write the report with its figures and print its path.

    Args:
        preset: Name of a preset or of a sweep of the root, or path of a sweep file.
        from_store: Do not compare with MLflow.
        published: Print the study's own regressions redone on its published numbers, and how this sweep
            agrees with every published quantity.
        place: Where everything lies.
    """
    if published:
        return _published(read_table(preset, place, from_store=from_store), place)
    from orchestrator.analysis.reporting import report_sweep
    from orchestrator.planning.workspace import Workspace
    from orchestrator.results.state import read_state

    workspace = Workspace.open(preset, place.root, place.storage, as_run=True)
    state = read_state(workspace)
    written = report_sweep(workspace, state)
    if written is None:
        raise _no_results(preset, workspace, place)
    path = written.path
    if not from_store:
        _compare_with_mlflow(preset, workspace, place, state)
    emit(place, {"report": str(path)}, lambda: line(str(path)))
    return 0


def _published(table: pd.DataFrame, place: Place) -> int:
    from orchestrator.analysis import published_report, scorecard
    from orchestrator.analysis.scorecard import score_table

    scores, redone = scorecard(table), published_report()

    def show() -> None:
        for shown in (*redone.tables(), score_table(scores)):
            stdout.print(text_table(shown))
            line(shown.note)

    emit(place, {"scorecard": [asdict(score) for score in scores]}, show)
    return 0


def _one_goal(arguments: ArgumentCollection) -> None:
    given = [argument.name for argument in arguments if argument.tokens]
    if len(given) > 1:
        raise ValueError(f"argument {given[1]}: not allowed with argument {given[0]}")
    if not given:
        raise ValueError("one of the arguments --train-size --target-loss is required")


GOAL = Group("Goal (one of the two)", validator=_one_goal, sort_key=1)


def predict(
    preset: str,
    /,
    *,
    model: str = "pooled",
    domain: Literal["natural", "medical"] | None = None,
    d_data: Finite | None = None,
    label_sharpness: Finite | None = None,
    measured: Annotated[str | None, Parameter(metavar="SOURCE")] = None,
    train_size: Annotated[Positive | None, Parameter(group=GOAL, metavar="N")] = None,
    target_loss: Annotated[Finite | None, Parameter(group=GOAL)] = None,
    from_store: bool = False,
    place: Place = Place(),
) -> int:
    """Print the loss to expect at a size, or the size for a loss, from a sweep's fits.

    Args:
        preset: Name of a preset or of a sweep of the root, or path of a sweep file.
        model: A model of the sweep; pooled (default) for all of them together.
        domain: Domain of your training set.
        d_data: Intrinsic dimension of your training set.
        label_sharpness: K_F of your training set.
        measured: Take both from a record that isweep measure --json wrote, or measure these images now.
        train_size: How many images you train on.
        target_loss: Test loss to reach.
        from_store: Do not compare with MLflow.
        place: Where everything lies.
    """
    from orchestrator.analysis import fit_scaling_laws
    from orchestrator.analysis import predict as prediction

    given = {"d_data": d_data, "label_sharpness": label_sharpness}
    numbers = _with_measured(given, measured, preset, place)
    found = prediction(
        fit_scaling_laws(read_table(preset, place, from_store=from_store), arms=_arms(preset, place)),
        model=model,
        domain=domain,
        d_data=numbers["d_data"],
        label_sharpness=numbers["label_sharpness"],
        train_size=train_size,
        target_loss=target_loss,
    )
    emit(place, found.to_json(), lambda: _show_prediction(found, model, domain))
    return 0


def _show_prediction(found: Prediction, model: str, domain: str | None) -> None:
    from orchestrator.analysis.formats import number
    from orchestrator.analysis.prediction import LEVEL

    table = grid(found.quantity.replace("_", " "), f"{LEVEL:.0%} interval", "model", "domain")
    low, high = found.interval or (None, None)
    bounds = "none" if found.interval is None else f"{number(low) or '–'} to {number(high) or '–'}"
    table.add_row(number(found.value) or "none", bounds, escape(model), domain or "all")
    stdout.print(table)
    if found.warning:
        stdout.print(escape(f"Beware: {found.warning}."), soft_wrap=True)


def _with_measured(
    given: dict[str, float | None], measured: str | None, preset: str, place: Place
) -> dict[str, float]:
    """Fill in what was not given from what was measured.

    Raises:
        ConfigError: when a number is neither given nor measured.
    """
    numbers = {name: value for name, value in given.items() if value is not None}
    if len(numbers) == len(given):
        return numbers
    if measured is not None:
        return {**_measured_values(measured, preset, place), **numbers}
    missing = ", ".join(f"--{name.replace('_', '-')}" for name in given if name not in numbers)
    raise ConfigError(
        f"the following arguments are required: {missing}",
        way_out="give them, or --measured with a folder of images or a record of isweep measure --json",
    )


def _measured_values(source: str, preset: str, place: Place) -> dict[str, float]:
    """Return d_data and K_F of a record, or of images measured now at the sweep's side and channels."""
    from orchestrator.analysis.measured_values import read_record, values_of

    if source.endswith(".json"):
        record = read_record(Path(source))
    else:
        from orchestrator.planning.paths import RootPaths
        from orchestrator.planning.workspace import Workspace
        from orchestrator.running.own_data import MeasureRequest, measure_source
        from tasks.remote import InlineExecutor

        sweep = Workspace.open(preset, place.root, place.storage, as_run=True).plan.sweep
        channels = sweep.channels or 1
        request = MeasureRequest(source=source, image_size=sweep.image_size, channels=channels)
        record = measure_source(request, InlineExecutor(), RootPaths.at(place.root)).to_json()
    values = values_of(record)
    missing = {"d_data", "label_sharpness"} - set(values)
    if missing:
        raise ConfigError(
            "--measured must give both numbers",
            f"no {' and no '.join(sorted(missing))} in {source}",
            "measure with labels",
        )
    return values


def read_table(preset: str, place: Place, *, from_store: bool) -> pd.DataFrame:
    """Return the tidy table of a sweep from its result store, compared with MLflow unless ``from_store``.

    Where the store cannot be reached and MLflow can, the table is MLflow's, and that is said.

    Raises:
        ConfigError: when it has no row yet.
        SetupError: when neither can be reached.
    """
    from orchestrator.analysis.reporting import results_table
    from orchestrator.planning.workspace import Workspace
    from orchestrator.results.state import read_state

    workspace = Workspace.open(preset, place.root, place.storage, as_run=True)
    try:
        state = read_state(workspace)
    except SetupError as error:
        if from_store:
            raise
        return _mlflow_table(workspace, place, error)
    table = results_table(workspace, state=state)
    if table.empty:
        raise _no_results(preset, workspace, place)
    if not from_store:
        _compare_with_mlflow(preset, workspace, place, state)
    return table


def _arms(preset: str, place: Place) -> tuple[Arm, ...]:
    from orchestrator.analysis.reporting import arms_of
    from orchestrator.planning.workspace import Workspace

    return arms_of(Workspace.open(preset, place.root, place.storage, as_run=True))


def _mlflow_table(workspace: Workspace, place: Place, why: SetupError) -> pd.DataFrame:
    from orchestrator.analysis.reporting import results_table
    from orchestrator.results.tracking.choice import tracked_rows

    table = results_table(workspace, tracked_rows(workspace, place.mlflow_uri, None))
    if table.empty:
        raise why
    _say(f"These numbers are MLflow's, and nothing vouches for them: the result store cannot be read ({why})")
    return table


def _compare_with_mlflow(preset: str, workspace: Workspace, place: Place, state: State) -> None:
    """Say where MLflow shows something else than the store; the store's numbers are used either way."""
    from orchestrator.results.store import ResultStore
    from orchestrator.results.tracking.choice import tracked_rows
    from orchestrator.results.tracking.comparison import compare

    try:
        storage = ResultStore(workspace.results_url).identity()
        tracked = tracked_rows(workspace, place.mlflow_uri, storage)
    except SetupError as error:
        _say(f"Not compared with MLflow: {error} The numbers are the result store's.")
        return
    for sentence in compare(state.rows(), tracked).sentences(place.hint("reconcile", preset)):
        _say(sentence)


def _say(text: str) -> None:
    stderr.print(text, markup=False, soft_wrap=True)


def _no_results(preset: str, workspace: Workspace, place: Place) -> ConfigError:
    absent = "" if workspace.paths.exist else f"; there is no root {workspace.paths.root} yet"
    return ConfigError(
        f"Sweep {preset!r} has no results yet", way_out=f"run it: {place.hint('run', preset)}{absent}"
    )
