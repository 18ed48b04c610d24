"""Commands that read what a sweep found: table, fits, report."""

from __future__ import annotations

import difflib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Group, Parameter

from orchestrator.cli.options import FromStore, Place, Sweep, ending, pairs, whole
from orchestrator.cli.printing import cell, emit, grid, line, show_tables, stdout, tell, written
from orchestrator.commands import Mirror
from search_spaces.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    import pandas as pd

    from orchestrator.analysis.interventions import Arm
    from orchestrator.planning.plan import Workspace


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
    "r_hat_pred": "R̂",
}
"""Columns that ``isweep results`` prints for people, with their short names."""
WHERE_MEASURED = ("r_hat_pred",)
"""Of these, those that stand there only where some row has them."""
SEARCH_SHOWN = {
    "model": "model",
    "dataset": "dataset",
    "learning_rate": "rate",
    "weight_decay": "decay",
    "batch_size": "batch",
    "status": "status",
    "epochs": "epochs",
    "validation_loss": "loss",
}
BEST_SHOWN = {
    "dataset": "dataset",
    "model": "model",
    "train_size": "N",
    "test_loss": "loss",
    "test_accuracy": "accuracy",
    "runner_up": "next",
    "runner_up_loss": "its loss",
}
ROWS = Group("Rows", sort_key=1)
SHORT = {words: name for name, words in {**SEARCH_SHOWN, **SHOWN}.items()}


@Parameter(name="*", group=ROWS)
@dataclass(frozen=True, kw_only=True)
class RowOptions:
    """Which rows, in which order.

    Attributes:
        where: Only rows with this value, e.g. dataset=digits; may be given for several columns.
        sort: In the order of this column, e.g. loss; smallest first.
        descending: Largest first.
        mean: One row per cell: means over its seeds.
        best: One row per dataset and N: the model of lowest mean test loss, and the next.
    """

    where: Annotated[tuple[str, ...], Parameter(metavar="COLUMN=VALUE")] = ()
    sort: Annotated[str | None, Parameter(metavar="COLUMN")] = None
    descending: bool = False
    mean: bool = False
    best: bool = False

    def of(self, table: pd.DataFrame) -> pd.DataFrame:
        """Return the rows that are asked for."""
        if self.best and self.mean:
            raise ConfigError("--best compares means over seeds already", "--mean", "leave one out")
        if self.descending and not self.sort:
            raise ConfigError("--descending turns an order round", "no --sort", "say by which column")
        for name, value in pairs("--where", self.where, "COLUMN=VALUE", "dataset=digits").items():
            values = table[_column(name, table)].map(_text)
            if value not in set(values):
                raise unknown_name(f"{name} of these results", value, sorted(set(values)))
            table = table[values == value]
        if self.best:
            from orchestrator.analysis.tables import best_models

            table = best_models(table)
        elif self.mean:
            table = mean_over_seeds(table)
        if self.sort:
            by = _column(self.sort, table)
            table = table.sort_values(by, ascending=not self.descending, kind="stable")
        return table

    @property
    def shown(self) -> dict[str, str]:
        """The columns that people see, with their short names."""
        if self.best:
            return BEST_SHOWN
        if not self.mean:
            return SHOWN
        return {**{name: text for name, text in SHOWN.items() if name != "seed"}, "num_seeds": "seeds"}


def mean_over_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """Return one row per cell of a sweep: means over its seeds, and how many there are (``num_seeds``)."""
    from pandas.api.types import is_float_dtype

    known = ("model", "recipe", "dataset", "domain", "class_pair", "train_size")
    cells = [name for name in known if name in table]
    numbers = [name for name in table if is_float_dtype(table[name]) and name not in cells]
    groups = table.groupby(cells, sort=False, dropna=False)
    return groups[numbers].mean().assign(num_seeds=groups.size()).reset_index()


def _column(name: str, table: pd.DataFrame) -> str:
    found = name if name in table else SHORT.get(name, name)
    if found not in table:
        near = difflib.get_close_matches(name, [*SHORT, *map(str, table.columns)], n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError("Unknown column", repr(name), f"{hint}docs/results-columns.md has all of them")
    return found


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def results(
    sweep: Sweep,
    /,
    *,
    chosen: RowOptions = RowOptions(),
    csv: Annotated[Path | None, ending(".csv")] = None,
    parquet: Annotated[Path | None, ending(".parquet")] = None,
    predictions: Annotated[Path | None, ending(".parquet")] = None,
    from_store: FromStore = False,
    search: bool = False,
    place: Place = Place(),
) -> None:
    """Print or write the tidy table, one row per trial.

    Args:
        csv: Write it as CSV.
        parquet: Write it as Parquet.
        predictions: Write every network's logits of the test images as Parquet instead, one row per trial and
            image; the sweep needs predictions: true.
        search: The trials of isweep tune instead.
    """
    from orchestrator.analysis import write_csv

    if search and (chosen.mean or chosen.best):
        raise ConfigError("--mean and --best are for trials of a sweep", "--search", "leave one out")
    if predictions:
        return write_predictions(sweep, predictions, place)
    table = read_search(sweep, place) if search else read_table(sweep, place, from_store=from_store)
    table = chosen.of(table)
    names, first_number = (SEARCH_SHOWN, "learning_rate") if search else (chosen.shown, "train_size")
    what = f"{len(table)} rows to "
    if csv:
        written(csv, lambda path: write_csv(table, path), what)
    if parquet:
        written(parquet, lambda path: table.to_parquet(path, index=False), what)
    if (csv or parquet) and not place.json:
        return None
    rows = json.loads(table.to_json(orient="records", double_precision=15))

    def show() -> None:
        shown = {
            name: words
            for name, words in names.items()
            if name not in WHERE_MEASURED or any(row.get(name) is not None for row in rows)
        }
        lines = grid(*shown.values(), numeric_from=[*shown].index(first_number))
        for row in rows:
            lines.add_row(*(cell(row.get(name)) for name in shown))
        stdout.print(lines)
        from orchestrator.analysis.guessing import is_guessing

        losses = [loss for row in rows if (loss := row.get("test_loss")) is not None]
        if guessed := sum(is_guessing(loss) for loss in losses):
            line(f"{guessed} of {len(losses)} losses lie at guessing between two classes, or beyond.")

    return emit(place, rows, show)


def write_predictions(sweep: str, path: Path, place: Place) -> None:
    """Write every network's logits of the test images as one Parquet file."""
    from orchestrator.results.rows import predictions_table
    from orchestrator.results.state import read_state
    from orchestrator.results.store import ResultStore

    workspace = place.open(sweep)
    results = read_state(workspace).records
    table = predictions_table(results, ResultStore(workspace.results_url))
    num_trials = table["trial_id"].nunique()
    what = f"{len(table):,} predictions of {num_trials} of {len(results)} trials to "
    written(path, lambda path: table.to_parquet(path, index=False), what)
    if place.json:
        emit(place, {"predictions": str(path), "rows": len(table), "trials": num_trials}, lambda: None)


OWN_TABLE = Group("A table of your own, in place of a sweep", sort_key=2)


@Parameter(name="*", group=OWN_TABLE)
@dataclass(frozen=True, kw_only=True)
class TableOptions:
    """What is asked of a table of one's own.

    Attributes:
        response: Column of numbers that is explained.
        on: Column of numbers that explains it; may be given several times.
        groups: Column that says which rows belong together, e.g. dataset.
        within: Column that must be equal for rows to be compared, e.g. model; may be given several times.
        figure: Draw it into this file: .svg, .pdf or .png.
    """

    response: Annotated[str | None, Parameter(metavar="COLUMN")] = None
    on: Annotated[tuple[str, ...], Parameter(metavar="COLUMN")] = ()
    groups: Annotated[str | None, Parameter(metavar="COLUMN")] = None
    within: Annotated[tuple[str, ...], Parameter(metavar="COLUMN")] = ()
    figure: Annotated[Path | None, ending(".svg", ".pdf", ".png")] = None

    def fit(self, path: Path, place: Place) -> None:
        """Fit a table within and between its groups, and print what it says."""
        from orchestrator.analysis import grouped

        if not self.response or not self.on or not self.groups:
            rule = "A table needs --response, --on and --groups"
            raise ConfigError(rule, way_out=f"e.g. isweep fit {path} --response loss --on d --groups dataset")
        design = grouped.Design(self.response, self.on, self.groups, self.within)
        table = grouped.read_own_table(path, design)
        found = grouped.fit_groups(table, design)

        def show() -> None:
            line(*found.lines())
            show_tables(found.table())

        emit(place, found.to_json(), show)
        if self.figure:
            written(self.figure, grouped.draw(table, found).savefig)


def fit(
    sweep: Sweep,
    /,
    *,
    own: TableOptions = TableOptions(),
    all_: Annotated[bool, Parameter(name="--all", negative=())] = False,
    from_store: FromStore = False,
    place: Place = Place(),
) -> None:
    """Fit the scaling laws and say what they answer; or fit any table within and between its groups.

    Args:
        all_: Fit and print what no answer rests on as well, as tables.
    """
    from orchestrator.analysis.grouped import SUFFIXES

    if own != TableOptions() or Path(sweep).suffix.lower() in SUFFIXES:
        return own.fit(Path(sweep), place)
    from orchestrator.analysis import fit_scaling_laws
    from orchestrator.analysis.findings import summary
    from orchestrator.analysis.tables import fit_tables, not_fitted, seen_table

    table = read_table(sweep, place, from_store=from_store)
    fits = fit_scaling_laws(table, arms=arms(sweep, place), explore=all_)

    def show() -> None:
        line(*summary(fits, width=min(80, stdout.width)))
        if not all_:
            return line(f"Every number: {place.hint('fit', sweep)} --all")
        show_tables(seen_table(fits), *fit_tables(fits))
        return line(not_fitted(fits), *fits.caveats, *(f"Left out: {found}." for found in fits.excluded))

    return emit(place, fits.to_json(), show)


def report(
    sweep: Sweep | None = None,
    /,
    *,
    from_store: FromStore = False,
    published: bool = False,
    figures: tuple[Literal["pdf", "png"], ...] = (),
    place: Place = Place(),
) -> None:
    """Write the report with its figures and print its path.

    Args:
        figures: Write the figures in this format too; may be given twice.
        published: Print the study's own regressions redone on its published numbers, and how this sweep
            agrees with every published quantity; needs no SWEEP.
    """
    if published:
        return _published(None if sweep is None else read_table(sweep, place, from_store=from_store), place)
    if sweep is None:
        raise ConfigError("A report needs a sweep", way_out="name one, or ask for --published")
    from orchestrator.analysis.report import report_can_be_written, report_sweep
    from orchestrator.commands import compare_with_mlflow, say_what_is_absent
    from orchestrator.results.state import read_state

    workspace = place.open(sweep)
    state = read_state(workspace)
    with report_can_be_written():
        path = report_sweep(workspace, state, figures)
    if path is None:
        raise no_results(sweep, workspace, place)
    say_what_is_absent(workspace, state, place.hint("run", sweep), tell)
    if not from_store:
        compare_with_mlflow(workspace, state, _mirror(sweep, place), tell)
    return emit(place, {"report": str(path)}, lambda: line(str(path)))


def _published(table: pd.DataFrame | None, place: Place) -> None:
    """Print the study's regressions on its published numbers, and the scorecard of a sweep's table."""
    from orchestrator.analysis import published_report, scorecard
    from orchestrator.analysis.findings import summary
    from orchestrator.analysis.published import score_table
    from orchestrator.analysis.table import finished_trials

    redone = published_report()
    scores = () if table is None else scorecard(table)
    left_out = [] if table is None else [str(exclusion) for exclusion in finished_trials(table)[1]]

    def show() -> None:
        line(*summary(redone.fits))
        show_tables(redone.table(), *([] if table is None else [score_table(scores)]))
        line(*(f"Left out: {text}" for text in left_out))

    found = {
        "claims": [asdict(claim) for claim in redone.fits.claims],
        "regressions": [*redone.regressions],
        "scorecard": [asdict(score) for score in scores],
        "left_out": left_out,
    }
    emit(place, found, show)


def read_table(sweep: str, place: Place, *, from_store: bool) -> pd.DataFrame:
    """Return the tidy table of a sweep, one row at least; see `orchestrator.commands.results_of`."""
    from orchestrator.commands import results_of

    workspace = place.open(sweep)
    table = results_of(
        workspace, None if from_store else _mirror(sweep, place), place.hint("run", sweep), tell
    )
    if table.empty:
        raise no_results(sweep, workspace, place)
    return table


def _mirror(sweep: str, place: Place) -> Mirror:
    return Mirror(place.mlflow_uri, place.hint("reconcile", sweep))


def read_search(sweep: str, place: Place) -> pd.DataFrame:
    """Return the stored trials of a sweep's search, one at least."""
    import pandas as pd

    from orchestrator.tuning.cells import search_rows

    rows = search_rows(place.open(sweep))
    if not rows:
        way_out = f"run: {place.hint('tune', sweep)}"
        raise ConfigError("Results of a search need one", f"{sweep}: none stored", way_out)
    return pd.DataFrame(rows)


def arms(sweep: str, place: Place) -> tuple[Arm, ...]:
    """Return the datasets of a sweep's experiment; none where it has no worlds."""
    from orchestrator.analysis.report import arms_of

    return arms_of(place.open(sweep))


def no_results(sweep: str, workspace: Workspace, place: Place) -> ConfigError:
    """Say that a sweep has no results yet, and whether a run works on it or where one would put them."""
    from orchestrator.running.progress import read_run

    if read_run(workspace) is not None:
        way_out = f"a run works on it; see: {place.hint('status', sweep)}"
    else:
        absent = "" if workspace.paths.exist else f"; there is no root {workspace.paths.root} yet"
        way_out = f"run it: {place.hint('run', sweep)}{absent}"
    return ConfigError(f"Sweep {sweep!r} has no results yet", way_out=way_out)


# Commands that weigh sweeps: what a design could detect, and how two sweeps differ.


def power(
    sweep: Sweep,
    /,
    *,
    effect: Literal["law", "sharpness", "exponent", "d_data"] = "law",
    num_tables: Annotated[int, whole(20), Parameter(metavar="N")] = 200,
    seed: Annotated[int, whole(0)] = 0,
    place: Place = Place(),
) -> None:
    """Simulate how often a sweep's own analysis would settle its questions, before anything is trained.

    Args:
        effect: What is true in the simulated world: the whole law (default), or a part of it alone.
        num_tables: Simulated sweeps (default 200); shares are good to 0.5 / √N.
        seed: Seed of the simulation (default 0).
    """
    from orchestrator.analysis.power import planned_power

    plan = place.open(sweep, as_run=False).plan
    found = planned_power(plan, effect=effect, num_tables=num_tables, seed=seed)

    def show() -> None:
        show_tables(found.table())
        line(*found.lines())

    emit(place, found.to_json(), show)


def compare(first: str, second: str, /, *, from_store: FromStore = False, place: Place = Place()) -> None:
    """Compare two sweeps on the cells that both have, datasets being the replicates.

    Args:
        first: A preset's or sweep's name, or the path of a sweep file.
        second: The other; ratios are of it over the first.
    """
    from orchestrator.analysis import compare as compare_tables

    if first == second:
        way_out = "name another one; isweep status lists those of the root"
        raise ConfigError("compare needs two sweeps", f"{first} twice", way_out)
    tables = [read_table(name, place, from_store=from_store) for name in (first, second)]
    found = compare_tables(tables[0], tables[1], names=(first, second))
    emit(place, asdict(found), lambda: show_tables(found.table()))


def claims(
    sweep: Sweep | None = None,
    /,
    *,
    published: bool = False,
    markdown: Annotated[Path | None, Parameter(metavar="FILE")] = None,
    latex: Annotated[Path | None, Parameter(metavar="FILE")] = None,
    from_store: FromStore = False,
    place: Place = Place(),
) -> None:
    """Decide every claim of the study: reproduced, refuted, or cannot be told, and why.

    Args:
        published: From the study's own published numbers, in place of a sweep's.
        markdown: Write the ledger as Markdown too, with how the sweep agrees with every published quantity.
        latex: Write it as LaTeX too.
    """
    from orchestrator.analysis import claims as c
    from orchestrator.analysis.tables import to_latex

    if (sweep is None) is not published:
        raise ConfigError("claims needs one source", way_out="name a sweep, or ask for --published")
    if sweep is None:
        found = c.published_ledger()
    else:
        found = c.ledger(read_table(sweep, place, from_store=from_store), sweep=sweep)

    def show() -> None:
        for text in (c.describe(found), *found.lines()):
            line(text)

    emit(place, found.to_json(), show)
    if markdown:
        written(markdown, lambda path: path.write_text(found.markdown(), encoding="utf-8"))
    if latex:
        text = "\n".join(map(to_latex, found.tables()))
        written(latex, lambda path: path.write_text(text, encoding="utf-8"))
