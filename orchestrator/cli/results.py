"""Commands that read what sweeps found (table, fits, report, claims) and look ahead from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter
from cyclopts.validators import LimitedChoice

from orchestrator.cli import options as o
from orchestrator.cli.printing import (
    Shown,
    cell,
    emit,
    grid,
    progress,
    report_tables,
    stdout,
    tell,
    written,
)
from search_spaces.errors import ConfigError, CorruptStoreError, SetupError, nearest, plural

if TYPE_CHECKING:
    import pandas as pd

    from orchestrator.analysis.curve_answers import CurveQuestion
    from orchestrator.analysis.experiments.records import Arm
    from orchestrator.analysis.learning_curves import Metric
    from orchestrator.analysis.loss_growth import Growth
    from orchestrator.analysis.prediction_inputs import Pilot
    from orchestrator.planning.workspace import Workspace
    from orchestrator.results.state import State
    from search_spaces.specs import Domain

SHORT = {
    "class_pair": "pair",
    "train_size": "N",
    "test_loss": "loss",
    "test_accuracy": "accuracy",
    "d_data_mle": "d_data",
    "label_sharpness": "K_F",
    "r_hat_pred": "R̂",
    "num_seeds": "seeds",
    "runner_up": "next",
    "runner_up_loss": "its loss",
    "learning_rate": "rate",
    "weight_decay": "decay",
    "batch_size": "batch",
    "validation_loss": "loss",
}
"""Short names of columns, which people see and may give to --where and --sort."""
CELL = ("model", "dataset", "class_pair", "train_size")
NUMBERS = ("test_loss", "test_accuracy", "d_data_mle", "label_sharpness", "r_hat_pred")
BEST = (
    "dataset",
    "model",
    "train_size",
    "test_loss",
    "test_accuracy",
    "runner_up",
    "runner_up_loss",
)
SEARCH = ("model", "dataset", "learning_rate", "weight_decay", "batch_size", "status", "epochs")
ROWS = Group("Rows", sort_key=1)
ONE_VIEW = Parameter(group=(ROWS, Group(validator=LimitedChoice(0, 1), show=False)))
OWN_TABLE = Group("A table of your own, in place of a sweep", sort_key=2)


@Parameter(name="*", group=ROWS)
@dataclass(frozen=True, kw_only=True)
class RowOptions:
    """Which rows, in which order.

    Attributes:
        where: Only rows with this value, e.g. dataset=digits; may be given for several columns.
        sort: In the order of this column, e.g. loss; smallest first.
        mean: One row per cell: means over its seeds.
        best: One row per dataset and N: the model of lowest mean test loss, and the next.
        search: The trials of isweep tune instead.
    """

    where: Annotated[tuple[str, ...], Parameter(metavar="COLUMN=VALUE")] = ()
    sort: Annotated[str | None, Parameter(metavar="COLUMN")] = None
    mean: Annotated[bool, ONE_VIEW] = False
    best: Annotated[bool, ONE_VIEW] = False
    search: Annotated[bool, ONE_VIEW] = False

    def of(self, table: pd.DataFrame) -> pd.DataFrame:
        """Return the rows that are asked for."""
        from orchestrator.analysis.result_rows import average_over_seeds, select_rows
        from orchestrator.analysis.tables.of_trials import best_models

        wanted = o.pairs("--where", self.where, "COLUMN=VALUE", "dataset=digits")
        table = select_rows(table, {_column(name, table): value for name, value in wanted.items()})
        if self.best:
            table = best_models(table)
        elif self.mean:
            table = average_over_seeds(table)
        if self.sort:
            table = table.sort_values(_column(self.sort, table), kind="stable")
        return table

    def shown(self, rows: Sequence[Mapping[str, Any]]) -> Iterator[Shown]:
        """Lay rows out for people, and count the losses that mean nothing was learnt."""
        from orchestrator.analysis.results_tables.chance_level import is_at_chance_level

        columns = [*CELL, "num_seeds" if self.mean else "seed", *NUMBERS]
        if self.best or self.search:
            columns = [*BEST] if self.best else [*SEARCH, "validation_loss"]
        columns = [name for name in columns if any(row.get(name) not in (None, "") for row in rows)]
        first_number = next(place for place, name in enumerate(columns) if name not in CELL[:3])
        table = grid(*(SHORT.get(name, name) for name in columns), numeric_from=first_number)
        for row in rows:
            table.add_row(*(cell(row.get(name)) for name in columns))
        yield table
        known = [row for row in rows if row.get("test_loss") is not None]
        num_at_chance = 0
        for row in known:
            num_at_chance += is_at_chance_level(
                row["test_loss"],
                row.get("num_classes"),
                accuracy=row.get("test_accuracy"),
                auc=row.get("auc"),
            )
        if num_at_chance:
            yield f"At chance level: {num_at_chance} of {plural(len(known), 'loss')}."


def _column(asked: str, table: pd.DataFrame) -> str:
    names = [*map(str, table.columns)]
    meant = [name for name in names if asked in (name, SHORT.get(name))]
    if not meant:
        hint = nearest(asked, [*SHORT.values(), *names])
        raise ConfigError(
            "Unknown column", repr(asked), f"{hint}docs/results-columns.md has all of them"
        )
    return asked if asked in meant else meant[0]


def results(
    sweep: o.Sweep,
    /,
    *,
    chosen: RowOptions = RowOptions(),
    csv: Annotated[Path | None, o.ending(".csv")] = None,
    parquet: Annotated[Path | None, o.ending(".parquet")] = None,
    predictions: Annotated[Path | None, o.ending(".parquet")] = None,
    from_store: o.FromStore = False,
    place: o.Place = o.Place(),
) -> None:
    """Print or write the tidy table, one row per trial.

    Args:
        csv: Write it as CSV.
        parquet: Write it as Parquet.
        predictions: Write every network's logits of the test images as Parquet instead, one row per
            trial and image; the sweep needs predictions: true.
    """
    from orchestrator.analysis.results_tables.csv_files import write_csv
    from orchestrator.results.rows import json_rows

    if predictions:
        from orchestrator.results.rows import predictions_table
        from orchestrator.results.state import read_state
        from orchestrator.results.store import ResultStore

        workspace = place.open(sweep)
        records = read_state(workspace).records
        table = predictions_table(records, ResultStore(workspace.results_url))
        trials = table["trial_id"].nunique()
        what = (
            f"{plural(len(table), 'prediction')} of {trials} of {plural(len(records), 'trial')} to "
        )
        written(predictions, lambda path: table.to_parquet(path, index=False), what)
        return emit(
            place, {"predictions": str(predictions), "rows": len(table), "trials": trials}, ()
        )
    if chosen.search:
        import pandas as pd

        from orchestrator.tuning.search_records import search_rows

        table = pd.DataFrame(search_rows(place.open(sweep)))
        if table.empty:
            hint = f"run: {place.hint('tune', sweep)}"
            raise ConfigError("Results of a search need one", f"{sweep}: none stored", hint)
    else:
        table, _ = read_table(sweep, place, from_store=from_store)
    table = chosen.of(table)
    what = f"{plural(len(table), 'row')} to "
    if csv:
        written(csv, lambda path: write_csv(table, path), what)
    if parquet:
        written(parquet, lambda path: table.to_parquet(path, index=False), what)
    if (csv or parquet) and not place.json:
        return None
    rows = json_rows(table)
    return emit(place, rows, chosen.shown(rows))


@Parameter(name="*", group=OWN_TABLE)
@dataclass(frozen=True, kw_only=True)
class TableOptions:
    """What is asked of a table of one's own.

    Attributes:
        response: Column of numbers that is explained.
        on: Column of numbers that explains it; may be given several times.
        groups: Column that says which rows belong together, e.g. dataset; two are crossed, as pairs
            of classes are.
        within: Column that must be equal for rows to be compared, e.g. model; may be given several
            times.
        figure: Draw it into this file: .svg, .pdf or .png.
    """

    response: Annotated[str | None, Parameter(metavar="COLUMN")] = None
    on: Annotated[tuple[str, ...], Parameter(metavar="COLUMN")] = ()
    groups: Annotated[tuple[str, ...], Parameter(metavar="COLUMN")] = ()
    within: Annotated[tuple[str, ...], Parameter(metavar="COLUMN")] = ()
    figure: Annotated[Path | None, o.ending(".svg", ".pdf", ".png")] = None

    def fit(self, path: Path, place: o.Place) -> None:
        """Fit a table within and between its groups, and print what it says."""
        from orchestrator.analysis.grouped_tables.design import Design
        from orchestrator.analysis.grouped_tables.fit import fit_user_table
        from orchestrator.analysis.grouped_tables.user_table import read_user_table

        if not self.response or not self.on or not self.groups:
            rule = "A table needs --response, --on and --groups"
            raise ConfigError(
                rule, hint=f"e.g. isweep fit {path} --response loss --on d --groups dataset"
            )
        design = Design(self.response, self.on, self.groups, self.within)
        table = read_user_table(path, design)
        grouped_fit = fit_user_table(table, design)
        emit(place, grouped_fit.to_json(), grouped_fit.lines())
        if self.figure:
            from orchestrator.analysis.figures.of_groups import draw_groups

            written(self.figure, draw_groups(table.rows, grouped_fit).savefig)


def fit(
    sweep: o.Sweep,
    /,
    *,
    own: TableOptions = TableOptions(),
    all_: Annotated[bool, Parameter(name="--all", negative=())] = False,
    from_store: o.FromStore = False,
    place: o.Place = o.Place(),
) -> None:
    """Fit the scaling laws and say what they answer; or fit any table within and between its
    groups.

    Args:
        all_: Fit and print what no answer rests on as well, as tables.
    """
    from orchestrator.analysis.findings import summary
    from orchestrator.analysis.fits import fit_scaling_laws
    from orchestrator.analysis.grouped_tables.user_table import SUFFIXES
    from orchestrator.analysis.tables.of_fits import fit_tables, not_fitted
    from orchestrator.analysis.tables.of_trials import seen_table

    if own != TableOptions() or Path(sweep).suffix.lower() in SUFFIXES:
        return own.fit(Path(sweep), place)
    inputs = read_fit_inputs(sweep, place, from_store=from_store)
    fits = fit_scaling_laws(
        inputs.table, arms=inputs.arms, explore=all_, predictions=inputs.predictions
    )
    answers, document = summary(fits, width=min(80, stdout.width)), fits.to_json()
    if not all_:
        return emit(place, document, answers, f"Every number: {place.hint('fit', sweep)} --all")
    left_out = (f"Left out: {found}." for found in fits.excluded)
    tables = report_tables(seen_table(fits), *fit_tables(fits))
    return emit(place, document, answers, tables, not_fitted(fits), fits.caveats, left_out)


def report(
    sweep: o.Sweep,
    /,
    *,
    from_store: o.FromStore = False,
    figures: tuple[Literal["pdf", "png"], ...] = (),
    place: o.Place = o.Place(),
) -> None:
    """Write the report with its figures and print its path.

    Args:
        figures: Write the figures in this format too; may be given twice.
    """
    from orchestrator.analysis.report import write_sweep_report

    path = str(write_sweep_report(*read_results(sweep, place, from_store=from_store), figures))
    emit(place, {"report": path}, path)


def compare(
    first: o.Sweep, second: str, /, *, from_store: o.FromStore = False, place: o.Place = o.Place()
) -> None:
    """Compare two sweeps on the cells that both have, datasets being the replicates.

    Args:
        second: The other; ratios are of it over the first.
    """
    from orchestrator.analysis.published import compare as compare_tables

    if first == second:
        hint = "name another one; isweep status lists those of the root"
        raise ConfigError("compare needs two sweeps", f"{first} twice", hint)
    tables = [read_table(name, place, from_store=from_store)[0] for name in (first, second)]
    found = compare_tables(tables[0], tables[1], names=(first, second))
    emit(place, asdict(found), report_tables(found.table()))


def claims(
    sweep: o.Sweep | None = None,
    /,
    *,
    published: bool = False,
    markdown: Annotated[Path | None, o.ending(".md")] = None,
    latex: Annotated[Path | None, o.ending(".tex")] = None,
    from_store: o.FromStore = False,
    place: o.Place = o.Place(),
) -> None:
    """Answer every claim of the study: supported, contradicted, undecided or not testable.

    Args:
        published: From the study's own published numbers, in place of a sweep's.
        markdown: Write the ledger as Markdown too, with how the sweep agrees with every published
            quantity.
        latex: Write it as LaTeX too.
    """
    from orchestrator.analysis.claims import ledger
    from orchestrator.analysis.published import published_table
    from orchestrator.analysis.tables.latex import to_latex

    if (sweep is None) is not published:
        raise ConfigError("claims needs one source", hint="name a sweep, or ask for --published")
    if sweep is None:
        found = ledger(published_table(), sweep="the published numbers", compare=False)
    else:
        table, arms = read_table(sweep, place, from_store=from_store)
        found = ledger(table, sweep=sweep, arms=arms)
    emit(place, found.to_json(), found.lines())
    if markdown:
        written(markdown, lambda path: path.write_text(found.markdown(), encoding="utf-8"))
    if latex:
        text = "\n".join(map(to_latex, found.tables()))
        written(latex, lambda path: path.write_text(text, encoding="utf-8"))


Finite = Annotated[float, o.real()]
PILOT = Group("Pilot", sort_key=2)
GOAL = Group("Goal", sort_key=1)
CURVES = Group("One dataset alone", sort_key=3)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class PilotOptions:
    """A few small trainings on the data that the prediction is for.

    Attributes:
        pilot: Your images (a folder, a file or a dataset's name), on which --model is trained now
            as the sweep trains; or a CSV file of results that are there (columns train_size and
            test_loss).
        pilot_sizes: Train sizes of the pilot (default: the sweep's smallest three).
        pilot_test_size: Images that the pilot is tested on (default: the sweep's).
    """

    pilot: Annotated[str | None, o.NAMED, Parameter(group=PILOT, metavar="SOURCE")] = None
    pilot_sizes: Annotated[o.Sizes, o.whole(2), Parameter(group=PILOT)] = ()
    pilot_test_size: Annotated[int | None, o.whole(2), Parameter(group=PILOT, metavar="N")] = None


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class CurveOptions:
    """What is asked of the learning curves of one dataset.

    Attributes:
        curve: A CSV file of your own results, one row per training: train_size and a score
            (test_loss, test_error, test_accuracy or auc), optionally model, seed and test_size.
            Needs no sweep.
        target_error: Error rate to reach, between 0 and 1.
        target_accuracy: Accuracy to reach, between 0 and 1.
        target_auroc: AUROC to reach, between 0 and 1.
        assurance: Probability with which the target is to be reached.
        test_size: Images of your test set, for the noise of its scores.
    """

    curve: Annotated[o.File, Parameter(group=CURVES)] = None
    target_error: Annotated[Finite | None, Parameter(group=CURVES)] = None
    target_accuracy: Annotated[Finite | None, Parameter(group=CURVES)] = None
    target_auroc: Annotated[Finite | None, Parameter(group=CURVES)] = None
    assurance: Annotated[Finite, Parameter(group=CURVES)] = 0.8
    test_size: Annotated[int | None, o.whole(2), Parameter(group=CURVES, metavar="N")] = None


def predict(
    sweep: o.Sweep = "",
    /,
    *,
    model: str = "pooled",
    domain: Literal["natural", "medical"] | None = None,
    d_data: Finite | None = None,
    label_sharpness: Finite | None = None,
    measured: Annotated[str | None, o.NAMED, Parameter(metavar="SOURCE")] = None,
    train_size: Annotated[o.Positive | None, Parameter(group=GOAL, metavar="N")] = None,
    target_loss: Annotated[Finite | None, Parameter(group=GOAL)] = None,
    from_store: o.FromStore = False,
    trained: PilotOptions = PilotOptions(),
    alone: CurveOptions = CurveOptions(),
    work: o.Work = o.Work(),
) -> None:
    """Print the score to expect at a size, and the size that a target needs.

    A sweep of one dataset, or a CSV file of results (--curve), answers from its own learning
    curves. A sweep of several datasets answers for a dataset that it does not hold, from that
    dataset's d_data and K_F, or from a pilot.

    Args:
        model: A model of the sweep; pooled (default) for all of them together.
        domain: Domain of your training set.
        d_data: Intrinsic dimension of your training set.
        label_sharpness: K_F of your training set.
        measured: Take both from a record that isweep measure --json wrote, or measure these images
            now.
        train_size: How many images you train on.
        target_loss: Test loss to reach.
    """
    from orchestrator.analysis.curve_tables import read_curve
    from orchestrator.analysis.loss_growth import fit_growth
    from orchestrator.analysis.number_formats import number
    from orchestrator.analysis.predict_sweep import predict_sweep

    @cache
    def growth() -> Growth:
        table, arms = read_table(sweep, work, from_store=from_store)
        return fit_growth(table, model=model, domain=domain, arms=arms)

    is_of_new_dataset = (d_data, label_sharpness, measured, trained.pilot) != (None,) * 4
    if alone.curve is not None:
        if sweep or is_of_new_dataset or domain is not None:
            beside = sweep or "--domain, --d-data, --label-sharpness, --measured or --pilot"
            raise ConfigError("--curve answers by itself", f"{beside} beside it", "leave one out")
        table = read_curve(alone.curve)
        _print_curves(table, alone, (train_size, target_loss), str(alone.curve), model, work)
        return
    if not sweep:
        hint = "name a sweep, or a file of results: --curve results.csv"
        raise ConfigError("A prediction needs a sweep or a learning curve", hint=hint)
    if is_of_new_dataset and (train_size is None) == (target_loss is None):
        rule = "A prediction for a new dataset needs one of --train-size and --target-loss"
        raise ConfigError(rule, "neither" if train_size is None else "both")
    if not is_of_new_dataset:
        table, _ = read_table(sweep, work, from_store=from_store)
        if table["dataset"].nunique() == 1:
            source = f"sweep {sweep}"
            _print_curves(table, alone, (train_size, target_loss), source, model, work)
            return
    if alone != CurveOptions():
        rule = "Only learning curves of one dataset have these options"
        hint = (
            "leave out --target-error, --target-accuracy, --target-auroc, --assurance, --test-size"
        )
        raise ConfigError(rule, "a prediction for a new dataset", hint)
    if measured is not None and not measured.endswith(".json"):
        growth()  # a wrong name is told before anything is measured
    record = {} if measured is None else _record(measured, (d_data, label_sharpness), sweep, work)
    found, pilot = predict_sweep(
        record,
        growth,
        _pilot(sweep, trained, model, domain, work),
        d_data=d_data,
        label_sharpness=label_sharpness,
        train_size=train_size,
        target_loss=target_loss,
    )
    points = () if pilot is None else pilot.points
    losses = ", ".join(f"{number(p.test_loss)} at {number(p.train_size)}" for p in points)
    tried = f"Pilot: test loss {losses} images." if points else ()
    whose = f"By {model} on {domain or 'all'} datasets of {sweep}:"
    emit(work, {**found.to_json(), "pilot": [*map(asdict, points)]}, whose, found.lines(), tried)


def _curve_question(
    asked: CurveOptions, goal: tuple[int | None, float | None], table: pd.DataFrame
) -> CurveQuestion:
    """Return what was asked of learning curves; the target decides which score is extrapolated."""
    from orchestrator.analysis.curve_answers import CurveQuestion
    from orchestrator.analysis.curve_tables import metric_of

    train_size, target_loss = goal
    targets: dict[Metric, float | None] = {
        "loss": target_loss,
        "error": asked.target_error,
        "accuracy": asked.target_accuracy,
        "auroc": asked.target_auroc,
    }
    given = {metric: target for metric, target in targets.items() if target is not None}
    if len(given) > 1:
        names = " and ".join(f"--target-{metric}" for metric in given)
        raise ConfigError("One target can be asked for at a time", names, "leave one out")
    if given:
        ((metric, target),) = given.items()
        return CurveQuestion(metric, train_size, target, asked.assurance, asked.test_size)
    return CurveQuestion(metric_of(table), train_size, None, asked.assurance, asked.test_size)


def _print_curves(
    table: pd.DataFrame,
    asked: CurveOptions,
    goal: tuple[int | None, float | None],
    source: str,
    model: str,
    work: o.Work,
) -> None:
    """Print what the learning curves of one dataset answer, one network after the other."""
    from orchestrator.analysis.curve_answers import answers

    question = _curve_question(asked, goal, table)
    report = answers(table, question, None if model == "pooled" else model)
    lines = [line for curve in report.curves for line in curve.lines()]
    sources = ", ".join(report.curves[0].prior_sources)
    prior = f"Prior of rates and floors: the learning curves of {sources}."
    document = {
        "curves": [curve.to_json() for curve in report.curves],
        "remarks": list(report.remarks),
    }
    emit(work, document, [f"Learning curves of {source}:", *lines, *report.remarks, prior])


def _pilot(
    sweep: str, trained: PilotOptions, model: str, domain: Domain | None, work: o.Work
) -> Callable[[], Pilot] | None:
    """Return what reads or trains the pilot that was asked for."""
    from orchestrator.analysis.prediction_inputs import is_pilot_table, read_pilot

    if trained.pilot is None:
        if trained.pilot_sizes or trained.pilot_test_size:
            flag = "--pilot-sizes" if trained.pilot_sizes else "--pilot-test-size"
            raise ConfigError(
                f"{flag} is for a pilot", "no --pilot", "say on which images: --pilot SOURCE"
            )
        return None
    source, path = trained.pilot, Path(trained.pilot).expanduser()
    if is_pilot_table(path):
        return lambda: read_pilot(path, model)

    def train() -> Pilot:
        from orchestrator.running.pilot import run_pilot

        asked = {
            "train_sizes": trained.pilot_sizes,
            "test_size": trained.pilot_test_size,
            "domain": domain,
        }
        opened = work.open(sweep).plan.sweep
        return run_pilot(opened, source, model, work.options({}), progress(work), **asked)

    return train


def _record(
    source: str, given: tuple[float | None, float | None], sweep: str, work: o.Work
) -> Mapping[str, Any]:
    """Return the record that was named, or that of images measured now at the sweep's side and
    channels.
    """
    from orchestrator.analysis.prediction_inputs import read_record
    from orchestrator.measuring.request import MeasureRequest
    from orchestrator.measuring.sources import measure_source
    from tasks.remote import InlineExecutor

    if None not in given:
        found = f"--d-data and --label-sharpness beside --measured {source}"
        raise ConfigError("--measured is for numbers that are not given", found, "leave one out")
    if source.endswith(".json"):
        return read_record(Path(source))
    spec = work.open(sweep).plan.sweep
    request = MeasureRequest(source=source, image_size=spec.image_size, channels=spec.channels or 1)
    return measure_source(request, InlineExecutor(), work.paths).record.to_json()


def power(
    sweep: o.Sweep,
    /,
    *,
    effect: Literal["law", "sharpness", "exponent", "d_data"] = "law",
    num_tables: Annotated[int, o.whole(20), Parameter(metavar="N")] = 200,
    seed: Annotated[int, o.whole(0)] = 0,
    place: o.Place = o.Place(),
) -> None:
    """Simulate how often a sweep's own analysis would settle its questions, before anything is
    trained.

    Args:
        effect: What is true in the simulated world: the whole law (default), or a part of it alone.
        num_tables: Simulated sweeps (default 200); shares are good to 0.5 / √N.
        seed: Seed of the simulation (default 0).
    """
    from orchestrator.analysis.power import planned_power

    plan = place.open(sweep, as_run=False).plan
    found = planned_power(plan, effect=effect, num_tables=num_tables, seed=seed)
    emit(place, asdict(found), report_tables(found.table()), found.lines())


def read_table(
    sweep: str, place: o.Place, *, from_store: bool
) -> tuple[pd.DataFrame, tuple[Arm, ...]]:
    """Return the tidy table of a sweep, one row at least, and its arms; see
    :func:`read_results`.
    """
    from orchestrator.analysis.report import arms_of, results_table

    workspace, state = read_results(sweep, place, from_store=from_store)
    return results_table(workspace, state=state), arms_of(workspace)


@dataclass(frozen=True)
class FitInputs:
    """A sweep's results table, its arms, and the predictions of each test image if stored."""

    table: pd.DataFrame
    arms: tuple[Arm, ...]
    predictions: pd.DataFrame | None = None


def read_fit_inputs(sweep: str, place: o.Place, *, from_store: bool) -> FitInputs:
    """Return what a sweep's fits need, with one result at least; see :func:`read_results`."""
    from orchestrator.analysis.report import arms_of, results_table, stored_predictions

    workspace, state = read_results(sweep, place, from_store=from_store)
    table = results_table(workspace, state=state)
    return FitInputs(table, arms_of(workspace), stored_predictions(workspace, state, table))


def read_results(sweep: str, place: o.Place, *, from_store: bool) -> tuple[Workspace, State]:
    """Return a sweep and what its store holds, one result at least; told where MLflow differs, if
    asked.
    """
    from orchestrator.results.state import read_state

    workspace = place.open(sweep)
    state = read_state(workspace)
    tell_what_is_absent(sweep, workspace, state, place)
    if not (state.results or state.partial):
        raise no_results(sweep, workspace, place)
    if not from_store:
        compare_with_mlflow(sweep, workspace, state, place)
    return workspace, state


def tell_what_is_absent(sweep: str, workspace: Workspace, state: State, place: o.Place) -> None:
    """Say what no row shows: results that are not believed, why d_data is blank, how many trials
    are left.
    """
    for item in state.unreadable:
        tell(f"not believed: {item.path}: {item.reason}")
    measured = [
        (size, size.d_data.get("mle")) for m in state.measures.values() for size in m.result.sizes
    ]
    blank = {(size.train_size, one.reason) for size, one in measured if one and one.value is None}
    for train_size, reason in sorted(blank):
        tell(f"no d_data at N = {train_size}: {reason}")
    planned, done = len(workspace.plan.trials), len(state.results)
    if done < planned and (done or state.partial):
        run = place.hint("run", sweep)
        tell(f"{done} of {planned} trials are done; {planned - done} are left: {run}")


def compare_with_mlflow(sweep: str, workspace: Workspace, state: State, place: o.Place) -> None:
    """Say where MLflow shows something else than the store; the store's numbers are used either
    way.
    """
    from orchestrator.results.mlflow_differences import differences, tracked_rows
    from orchestrator.results.store import ResultStore

    try:
        storage = ResultStore(workspace.results_url).store_id()
        tracked = tracked_rows(workspace, place.mlflow_uri, storage)
    except (SetupError, CorruptStoreError) as error:
        tell(f"Not compared with MLflow: {error} The numbers are the result store's.")
        return
    for sentence in differences(state.rows(), tracked, place.hint("reconcile", sweep)):
        tell(sentence)


def no_results(sweep: str, workspace: Workspace, place: o.Place) -> ConfigError:
    """Say that a sweep has no results yet, and whether a run works on it or where one would put
    them.
    """
    from orchestrator.running.progress import read_run

    hint = f"run it: {place.hint('run', sweep)}"
    if read_run(workspace) is not None:
        hint = f"a run works on it; see: {place.hint('status', sweep)}"
    elif not workspace.paths.root.is_dir():
        hint += f"; there is no root {workspace.paths.root} yet"
    return ConfigError(f"Sweep {sweep!r} has no results yet", hint=hint)
