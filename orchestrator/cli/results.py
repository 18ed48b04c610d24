"""Commands that show the results of sweeps: table, fits, report, comparisons and claims."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter
from cyclopts.validators import LimitedChoice

from orchestrator.cli.options import FromStore, Place, Sweep, ending, pairs
from orchestrator.cli.printing import (
    Shown,
    cell,
    emit,
    grid,
    report_tables,
    stdout,
    write_file,
)
from orchestrator.cli.stored_results import (
    read_fit_inputs,
    read_results,
    read_table,
)
from search_spaces.errors import ConfigError, did_you_mean, plural

if TYPE_CHECKING:
    import pandas as pd

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
"""Short names of columns. Tables show these names, and --where and --sort accept them."""
TRIAL_COLUMNS = ("model", "dataset", "class_pair", "train_size")
"""Columns that identify a trial, without the seed."""
NUMBER_COLUMNS = ("test_loss", "test_accuracy", "d_data_mle", "label_sharpness", "r_hat_pred")
"""Columns of numbers that a terminal shows. Files contain all columns."""
BEST_COLUMNS = (
    "dataset",
    "model",
    "train_size",
    "test_loss",
    "test_accuracy",
    "runner_up",
    "runner_up_loss",
)
"""Columns of the table that --best prints."""
SEARCH_COLUMNS = (
    "model",
    "dataset",
    "learning_rate",
    "weight_decay",
    "batch_size",
    "status",
    "epochs",
)
"""Columns of the table that --search prints."""
ROWS = Group("Rows", sort_key=1)
ONE_VIEW = Parameter(group=(ROWS, Group(validator=LimitedChoice(0, 1), show=False)))
OWN_TABLE = Group("Your own table, instead of a sweep", sort_key=2)


@Parameter(name="*", group=ROWS)
@dataclass(frozen=True, kw_only=True)
class RowOptions:
    """Options that select and sort rows.

    Attributes:
        where: Show only rows with this value, e.g. dataset=digits. Repeat the option for more
            columns.
        sort: Sort rows by this column, e.g. loss. The smallest value comes first.
        mean: Show means over seeds, one row for each model, dataset and train size.
        best: Show the best model and the runner-up by mean test loss, for each dataset and
            train size. In Python, `isweep.open('NAME').best(metric='auc')` ranks by another score.
        search: Show the trials of `isweep tune` instead of the trials of the sweep.
    """

    where: Annotated[tuple[str, ...], Parameter(metavar="COLUMN=VALUE")] = ()
    sort: Annotated[str | None, Parameter(metavar="COLUMN")] = None
    mean: Annotated[bool, ONE_VIEW] = False
    best: Annotated[bool, ONE_VIEW] = False
    search: Annotated[bool, ONE_VIEW] = False

    def wanted(self) -> dict[str, str]:
        """Return the value that --where requires in each column, by name of the column.

        Raises:
            ConfigError: A word does not have the form COLUMN=VALUE.
        """
        return pairs("--where", self.where, "COLUMN=VALUE", "dataset=digits")

    def select(self, table: pd.DataFrame) -> pd.DataFrame:
        """Return the selected rows of a table, sorted."""
        from orchestrator.analysis.result_rows import average_over_seeds, select_rows
        from orchestrator.analysis.tables.of_trials import best_models

        value_by_column = {}
        for name, value in self.wanted().items():
            value_by_column[_column(name, table)] = value
        table = select_rows(table, value_by_column)
        if self.best:
            table = best_models(table)
        elif self.mean:
            table = average_over_seeds(table)
        if self.sort:
            table = table.sort_values(_column(self.sort, table), kind="stable")
        return table

    def shown(self, rows: Sequence[Mapping[str, Any]]) -> Iterator[Shown]:
        """Yield a table of rows, and a line with the number of losses at chance level."""
        from orchestrator.analysis.results_tables.chance_level import is_at_chance_level

        if self.best:
            columns = list(BEST_COLUMNS)
        elif self.search:
            columns = [*SEARCH_COLUMNS, "validation_loss"]
        elif self.mean:
            columns = [*TRIAL_COLUMNS, "num_seeds", *NUMBER_COLUMNS]
        else:
            columns = [*TRIAL_COLUMNS, "seed", *NUMBER_COLUMNS]
        columns = [name for name in columns if any(row.get(name) not in (None, "") for row in rows)]
        num_text_columns = len([name for name in columns if name in TRIAL_COLUMNS[:3]])
        table = grid(*(SHORT.get(name, name) for name in columns), numeric_from=num_text_columns)
        for row in rows:
            table.add_row(*(cell(row.get(name)) for name in columns))
        yield table
        with_loss = [row for row in rows if row.get("test_loss") is not None]
        num_at_chance = 0
        for row in with_loss:
            num_at_chance += is_at_chance_level(
                row["test_loss"],
                row.get("num_classes"),
                accuracy=row.get("test_accuracy"),
                auc=row.get("auc"),
            )
        if num_at_chance:
            yield f"Losses at chance level: {num_at_chance} of {len(with_loss)}."


def _column(name: str, table: pd.DataFrame) -> str:
    """Return the column of a table with this name or short name."""
    columns = [str(column) for column in table.columns]
    if name in columns:
        return name
    for column in columns:
        if SHORT.get(column) == name:
            return column
    hint = did_you_mean(name, [*SHORT.values(), *columns])
    raise ConfigError(
        f"The table has no column {name!r}",
        hint=f"{hint}docs/results-columns.md lists all columns",
    )


def results(
    sweep: Sweep,
    /,
    *,
    chosen: RowOptions = RowOptions(),
    csv: Annotated[Path | None, ending(".csv")] = None,
    parquet: Annotated[Path | None, ending(".parquet")] = None,
    predictions: Annotated[Path | None, ending(".parquet")] = None,
    from_store: FromStore = False,
    place: Place = Place(),
) -> None:
    """Print or write the results table, one row per trial.

    Args:
        csv: Write all columns into this CSV file instead of printing rows.
        parquet: Write all columns into this Parquet file instead of printing rows.
        predictions: Instead of the results, write the logits of all networks on the test images
            into this Parquet file, one row per trial and image. The sweep file must contain
            `predictions: true`.
    """
    from orchestrator.analysis.results_tables.csv_files import write_csv
    from orchestrator.results.rows import json_rows

    if predictions is not None:
        _write_predictions(sweep, predictions, place)
        return
    # isweep reports a mistake in --where before it reads the results, because reading can take
    # long.
    chosen.wanted()
    if chosen.search:
        table = _search_table(sweep, place)
    else:
        table, _ = read_table(sweep, place, from_store=from_store)
    table = chosen.select(table)
    counted_rows = f"{plural(len(table), 'row')} to "
    if csv is not None:
        write_file(csv, lambda path: write_csv(table, path), counted_rows)
    if parquet is not None:
        write_file(parquet, lambda path: table.to_parquet(path, index=False), counted_rows)
    if (csv is not None or parquet is not None) and not place.json:
        return
    rows = json_rows(table)
    emit(place, rows, chosen.shown(rows))


def _write_predictions(sweep: str, file: Path, place: Place) -> None:
    """Write the logits of all networks on the test images into a Parquet file."""
    from orchestrator.results.rows import predictions_table
    from orchestrator.results.state import read_state
    from orchestrator.results.store import ResultStore

    workspace = place.open(sweep)
    records = read_state(workspace).records
    table = predictions_table(records, ResultStore(workspace.results_url))
    num_trials = table["trial_id"].nunique()
    counted = plural(len(table), "prediction")
    counted_rows = f"{counted} ({num_trials} of {plural(len(records), 'trial')}) to "
    write_file(file, lambda path: table.to_parquet(path, index=False), counted_rows)
    document = {"predictions": str(file), "rows": len(table), "trials": num_trials}
    emit(place, document, ())


def _search_table(sweep: str, place: Place) -> pd.DataFrame:
    """Return the trials of a search. Each trial is one row."""
    import pandas as pd

    from orchestrator.tuning.search_records import search_rows

    table = pd.DataFrame(search_rows(place.open(sweep)))
    if table.empty:
        raise ConfigError(
            f"`isweep tune` has stored no trial of the sweep {sweep} yet",
            hint=f"Run `{place.hint('tune', sweep)}`",
        )
    return table


@Parameter(name="*", group=OWN_TABLE)
@dataclass(frozen=True, kw_only=True)
class TableOptions:
    """Options for fitting a table of your own.

    Attributes:
        response: Column with the values of the response.
        on: Column with the values of a regressor. Repeat the option for more columns.
        groups: Column with the group of each row, e.g. dataset. Give the option twice for
            crossed groups, such as the two classes of a pair.
        within: Compare only rows with equal values in this column, e.g. model. Repeat the
            option for more columns.
        figure: Draw the fit into this file: .svg, .pdf or .png.
    """

    response: Annotated[str | None, Parameter(metavar="COLUMN")] = None
    on: Annotated[tuple[str, ...], Parameter(metavar="COLUMN")] = ()
    groups: Annotated[tuple[str, ...], Parameter(metavar="COLUMN")] = ()
    within: Annotated[tuple[str, ...], Parameter(metavar="COLUMN")] = ()
    figure: Annotated[Path | None, ending(".svg", ".pdf", ".png")] = None

    def fit(self, path: Path, place: Place) -> None:
        """Fit a table within and between its groups, and print the answers."""
        from orchestrator.analysis.grouped_tables.design import Design
        from orchestrator.analysis.grouped_tables.fit import fit_user_table
        from orchestrator.analysis.grouped_tables.user_table import read_user_table

        if path.name == str(path) and not path.suffix and not path.exists():
            raise ConfigError(
                f"There is no table {path}. The options --response, --on, --groups, --within and "
                "--figure are only for tables",
                hint=f"If {path} is a sweep, type `{place.hint('fit', str(path))}`. To fit the "
                "results of the sweep as your own table, write the results into a file with "
                f"`{place.hint('results', str(path))} --csv {path}.csv`. If {path} is a table, add "
                f"the ending of the file, for example {path}.csv",
            )
        if not self.response or not self.on or not self.groups:
            raise ConfigError(
                f"A fit of the table {path} needs --response, --on and --groups",
                hint=f"For example, type `isweep fit {path} --response loss --on d --groups "
                "dataset`",
            )
        design = Design(self.response, self.on, self.groups, self.within)
        table = read_user_table(path, design)
        grouped_fit = fit_user_table(table, design)
        emit(place, grouped_fit.to_json(), grouped_fit.lines())
        if self.figure:
            from orchestrator.analysis.figures.of_groups import draw_groups

            write_file(self.figure, draw_groups(table.rows, grouped_fit).savefig)


MAX_ANSWER_WIDTH = 80
"""Largest number of characters per line of an answer. Longer lines are hard to read."""


def fit(
    sweep: Sweep,
    /,
    *,
    user_table: TableOptions = TableOptions(),
    all_: Annotated[bool, Parameter(name="--all", negative=())] = False,
    from_store: FromStore = False,
    place: Place = Place(),
) -> None:
    """Fit the scaling laws of a sweep and print the answers, or fit your own table.

    Args:
        all_: Print the details of each answer, and every fit as a table.
    """
    from orchestrator.analysis.findings import summary
    from orchestrator.analysis.fits import fit_scaling_laws
    from orchestrator.analysis.grouped_tables.user_table import SUFFIXES
    from orchestrator.analysis.tables.of_fits import fit_tables, not_fitted
    from orchestrator.analysis.tables.of_trials import seen_table

    if user_table != TableOptions() or Path(sweep).suffix.lower() in SUFFIXES:
        user_table.fit(Path(sweep), place)
        return
    inputs = read_fit_inputs(sweep, place, from_store=from_store)
    fits = fit_scaling_laws(
        inputs.table,
        arms=inputs.arms,
        explore=all_,
        predictions=inputs.predictions,
        facts=inputs.facts,
    )
    document = fits.to_json()
    width = min(MAX_ANSWER_WIDTH, stdout.width)
    predict = place.hint("predict", sweep)
    show_all = f"{place.hint('fit', sweep)} --all"
    answers = summary(fits, predict=predict, show_all=show_all, width=width, with_details=all_)
    if all_:
        tables = report_tables(seen_table(fits), *fit_tables(fits))
        emit(place, document, answers, tables, not_fitted(fits))
    else:
        emit(place, document, answers)


def report(
    sweep: Sweep,
    /,
    *,
    from_store: FromStore = False,
    figures: tuple[Literal["pdf", "png"], ...] = (),
    place: Place = Place(),
) -> None:
    """Write the report with its figures, and print the path of the report.

    Args:
        figures: Also write the figures in this format. For both formats, repeat the option.
    """
    from orchestrator.analysis.report import write_sweep_report

    workspace, state = read_results(sweep, place, from_store=from_store)
    path = str(write_sweep_report(workspace, state, figures))
    emit(place, {"report": path}, path)


def compare(
    first: Sweep, second: str, /, *, from_store: FromStore = False, place: Place = Place()
) -> None:
    """Compare two sweeps on the trials that both sweeps have. Each dataset counts once.

    Args:
        second: The second sweep. Each ratio is a value of the second sweep divided by the same
            value of the first sweep.
    """
    from orchestrator.analysis.published import compare as compare_tables

    if first == second:
        raise ConfigError(
            f"The sweep {first} cannot be compared with itself",
            hint="Type the names of two different sweeps. `isweep status` lists the sweeps "
            "of the root",
        )
    first_table, _ = read_table(first, place, from_store=from_store)
    second_table, _ = read_table(second, place, from_store=from_store)
    comparison = compare_tables(first_table, second_table, names=(first, second))
    emit(place, asdict(comparison), report_tables(comparison.table()))


def claims(
    sweep: Sweep | None = None,
    /,
    *,
    published: bool = False,
    markdown: Annotated[Path | None, ending(".md")] = None,
    latex: Annotated[Path | None, ending(".tex")] = None,
    from_store: FromStore = False,
    place: Place = Place(),
) -> None:
    """Print a verdict on every claim of the study.

    Possible verdicts: supported, contradicted, suggested, undecided, described, not testable.

    Args:
        published: Use the study's published numbers instead of a sweep.
        markdown: Also write the claims as Markdown into this file, with a comparison of the
            sweep with every published quantity.
        latex: Also write the claims and the comparison as LaTeX into this file.
    """
    from orchestrator.analysis.claims import ledger
    from orchestrator.analysis.published import published_table
    from orchestrator.analysis.tables.latex import to_latex

    if (sweep is None) is not published:
        problem = "`isweep claims` needs a sweep or --published, but you gave neither"
        if sweep is not None:
            problem = f"The sweep {sweep} cannot be used together with --published"
        raise ConfigError(
            problem, hint="Type, for example, `isweep claims demo` or `isweep claims --published`"
        )
    if sweep is None:
        verdicts = ledger(published_table(), sweep="the published numbers", compare=False)
    else:
        inputs = read_fit_inputs(sweep, place, from_store=from_store)
        verdicts = ledger(inputs.table, sweep=sweep, arms=inputs.arms, facts=inputs.facts)
    emit(place, verdicts.to_json(), verdicts.lines())
    if markdown is not None:
        write_file(markdown, lambda path: path.write_text(verdicts.markdown(), encoding="utf-8"))
    if latex is not None:
        text = "\n".join(map(to_latex, verdicts.tables()))
        write_file(latex, lambda path: path.write_text(text, encoding="utf-8"))
