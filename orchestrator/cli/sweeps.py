"""Commands that plan, run and tune sweeps."""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.markup import escape

from orchestrator.cli.options import Changes, Place, Sweep, SweepWork, whole
from orchestrator.cli.printing import (
    Shown,
    cell,
    emit,
    grid,
    print_message,
    progress,
    report_tables,
)
from orchestrator.cli.status import grouped_failures
from orchestrator.cli.stored_results import no_results
from search_spaces.errors import ConfigError, SweepError, plural

if TYPE_CHECKING:
    from orchestrator.planning.workspace import Workspace
    from orchestrator.running.run_plan import RunPlan


def run(sweep: Sweep, /, *, work: SweepWork = SweepWork()) -> int:
    """Run the trials that have no result yet, and print the path of the report."""
    from orchestrator.planning.sweep_changes import read_changes
    from orchestrator.running.run import run_sweep

    display = progress(work)
    again = work.again("run", sweep)
    _warn_about_changed_file(sweep, work, "run")
    changes = read_changes(work.changes)
    try:
        summary = run_sweep(sweep, work.run_options, progress=display, changes=changes)
    except KeyboardInterrupt:
        stored = "All stored results are kept"
        if display.planned:
            stored = f"The results of {display.done} of {plural(display.planned, 'trial')} are kept"
        raise KeyboardInterrupt(f"{stored}. Continue with `{again}`.") from None
    for line in grouped_failures(summary.failures):
        print_message(line)
    _print_missing_updates(summary.num_unsent_updates, work.hint("reconcile", sweep))
    planned = plural(summary.planned, "trial")
    print_message(
        f"{summary.done} of {planned} done, {summary.failed} failed, {summary.pending} left."
    )
    document: dict[str, object] = {
        "planned": summary.planned,
        "done": summary.done,
        "failed": summary.failed,
        "pending": summary.pending,
        "failures": summary.failures,
        "running": 0,
        "report": None,
    }
    last_line = "There is no report, because no trial has a result."
    if summary.report:
        last_line = str(summary.report)
        document["report"] = last_line
    emit(work, document, last_line)
    return summary.exit_code


def tune(sweep: Sweep, /, *, work: SweepWork = SweepWork()) -> int:
    """Search for a good learning rate, weight decay and batch size, and write a recipe file."""
    from orchestrator.planning.sweep_changes import read_changes
    from orchestrator.tuning.search_report import BRIEF, outcome_table
    from orchestrator.tuning.tune_sweep import tune_sweep

    options = work.run_options
    again = work.again("tune", sweep)
    _warn_about_changed_file(sweep, work, "tune")
    changes = read_changes(work.changes)
    try:
        summary = tune_sweep(sweep, options, progress=progress(work), changes=changes)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"Finished trials are kept. Continue with `{again}`.") from None
    for problem in summary.problems:
        print_message(problem)
    _print_missing_updates(summary.num_unsent_updates, again)
    paths = [str(path) for path in (summary.report, summary.recipe) if path is not None]
    emit(work, summary.document(), report_tables(outcome_table(summary.combinations, BRIEF)), paths)
    return summary.exit_code


def _warn_about_changed_file(sweep: str, work: SweepWork, command: str) -> None:
    """Warn the user if the sweep as it last ran differs from the file ./NAME.yaml."""
    from orchestrator.planning.sweep_file import load_sweep
    from orchestrator.planning.written_files import preset_names

    file = f"{sweep}.yaml"
    if "/" in sweep or not os.path.isfile(file) or sweep in preset_names():
        return
    with suppress(ConfigError):
        as_run = load_sweep(work.paths.sweep(sweep).sweep_file)
        if as_run != load_sweep(file, recipes=work.paths.recipes):
            hint = work.again(command, f"./{file}")
            print_message(
                f"isweep uses the sweep {sweep} as it last ran, but the file ./{file} is "
                f"different. To use the file, run `{hint}`."
            )


def _print_missing_updates(num_updates: int, command: str) -> None:
    """Print the number of updates that MLflow lacks, and the command that sends them."""
    if num_updates:
        print_message(
            f"MLflow lacks {plural(num_updates, 'update')}. To send all updates, run `{command}`."
        )


def reconcile(sweep: Sweep, /, *, place: Place = Place()) -> None:
    """Send missing results to MLflow, and close the runs in MLflow that have ended."""
    from orchestrator.results.stored_results import StoredResults
    from orchestrator.running.reconcile import reconcile_sweep

    workspace = place.open(sweep)
    if not workspace.paths.root.is_dir() and not StoredResults.read(workspace.results_url).trials:
        raise no_results(sweep, workspace, place)
    counts = reconcile_sweep(workspace, place.mlflow_uri, print_message)
    emit(place, counts, "  ".join(f"{name} {count}" for name, count in counts.items()))


MAX_GPUS = 100_000
"""Largest number of GPUs of a plan. No sweep has more trials than this number."""
MAX_UNPREPARED = 5
"""Largest number of unprepared datasets that a message lists. If there are more, the list ends
with the number of further datasets."""
MAX_DISTINCT = 3
"""Largest number of distinct values that isweep prints one by one. If there are more values,
isweep prints their range."""


def plan(
    sweep: Sweep,
    /,
    *,
    all_: Annotated[bool, Parameter(name="--all")] = False,
    gpu: str | None = None,
    gpus: Annotated[int | None, whole(1, MAX_GPUS + 1)] = None,
    changes: Changes = (),
    place: Place = Place(),
) -> None:
    """Show the trials of a sweep, the number of done trials, and the cost of the other trials.

    Args:
        all_: Print one line per trial instead of one line per dataset.
        gpu: GPU model to plan for (default: the GPUs of this machine, if any).
        gpus: Number of GPUs to plan for (default: the number of GPUs of this machine, or the
            number that one trial needs).
    """
    from orchestrator.planning.sweep_changes import read_changes
    from orchestrator.running.run_plan import describe_power, plan_run

    workspace = place.open(sweep, prefer_root=False, changes=read_changes(changes))
    run_plan = plan_run(workspace, gpu=gpu, num_gpus=gpus)
    power, power_lines = describe_power(workspace)
    document = {
        "sweep": workspace.plan.sweep.name,
        "trials": run_plan.rows,
        "measures": run_plan.measures,
        "not_prepared": run_plan.not_prepared,
        "estimate": run_plan.cost,
        "power": power,
    }
    table = _trial_table(run_plan)
    if not all_:
        table = _count_table(run_plan)
    obstacles = _obstacles(workspace, run_plan)
    costs = [run_plan.cost["text"], run_plan.extra_costs, *power_lines]
    emit(place, document, table, _summary_lines(run_plan), obstacles, costs)


def _num_done(rows: Iterable[Mapping[str, Any]]) -> int:
    """Return the number of trials or measures that are done."""
    from orchestrator.planning.plan import PlannedStatus

    return sum(row["status"] == PlannedStatus.DONE for row in rows)


def _trial_table(run_plan: RunPlan) -> Shown:
    """Return a table with one row per trial."""
    names = ("model", "dataset", "class_pair", "train_size", "seed", "recipe", "status")
    table = grid(*names)
    for row in run_plan.rows:
        table.add_row(*(cell(row[name]) for name in names))
    return table


def _count_table(run_plan: RunPlan) -> Shown:
    """Return a table of done and planned trials, with datasets as rows and models as columns."""
    from orchestrator.planning.plan import PlannedStatus

    num_planned: Counter[tuple[str | int, str | int]] = Counter()
    num_done: Counter[tuple[str | int, str | int]] = Counter()
    for row in run_plan.rows:
        combination = (row["dataset"], row["model"])
        num_planned[combination] += 1
        num_done[combination] += row["status"] == PlannedStatus.DONE
    datasets = list(dict.fromkeys(dataset for dataset, _ in num_planned))
    models = list(dict.fromkeys(model for _, model in num_planned))
    table = grid("done/planned", *(escape(str(model)) for model in models), numeric_from=1)
    for dataset in datasets:
        counts = []
        for model in models:
            combination = (dataset, model)
            count = ""
            if num_planned[combination]:
                count = f"{num_done[combination]}/{num_planned[combination]}"
            counts.append(count)
        table.add_row(escape(str(dataset)), *counts)
    return table


def _summary_lines(run_plan: RunPlan) -> Iterator[str]:
    """Yield the range of each axis of the grid, and the numbers of done trials and measures."""
    columns = {"N": "train_size", "seed": "seed", "recipe": "recipe", "pair": "class_pair"}
    ranges = []
    for title, name in columns.items():
        values = _range_text([row[name] for row in run_plan.rows])
        if values:
            ranges.append(f"{title}: {values}")
    yield "; ".join(ranges)
    counts = []
    for noun, rows in (("trial", run_plan.rows), ("measure", run_plan.measures)):
        counts.append(f"{plural(len(rows), noun)}: {_num_done(rows)} done")
    yield "; ".join(counts)


def _range_text(values: Sequence[object]) -> str:
    """Return the distinct values of a column as text. If there are many, return their range."""
    distinct = [value for value in dict.fromkeys(values) if value != ""]
    if len(distinct) <= MAX_DISTINCT:
        return ", ".join(map(str, distinct))
    return f"{distinct[0]} to {distinct[-1]} ({len(distinct)} values)"


def _obstacles(workspace: Workspace, run_plan: RunPlan) -> Iterator[str]:
    """Yield lines about the obstacles to a run on this machine."""
    from orchestrator.machine.cluster import cpu_cluster_here, trial_resources
    from orchestrator.planning.checks import (
        learning_rate_notes,
        num_sizes_notes,
        small_size_notes,
    )
    from tasks.sources.base import format_counts

    try:
        workspace.paths.check_writable()
    except SweepError as error:
        yield f"`isweep run` would fail: {error}"
    try:
        trial_resources(workspace.plan.sweep.resources, cpu_cluster_here(), "cpu")
    except ConfigError as error:
        yield f"This machine cannot run the sweep: {error}"
    if run_plan.removed:
        yield f"{run_plan.removed}."
    for name, listing in run_plan.changed.items():
        yield (
            f"The files of {name} have other names, sizes or times than the files from which "
            f"{name} was prepared in this root. `isweep run` reads the {len(listing.items):,} "
            "files again, and stops if images, labels or groups are different. If the files "
            "contain other data, give the dataset another name, or use another --root."
        )
        yield from format_counts(left_out=listing.excluded, doubtful=listing.flags)
    yield from small_size_notes(workspace.plan)
    yield from num_sizes_notes(workspace.plan)
    yield from learning_rate_notes(workspace.plan)
    known_datasets = []
    for item in run_plan.not_prepared:
        if not item["own"]:
            known_datasets.append(item["dataset"])
            continue
        measure = shlex.join(["isweep", "measure", item["own"]])
        num_files = f"{item['unopened']:,}"
        yield (
            f"The dataset {item['dataset']} is not prepared in this root, so `isweep run` first "
            f"opens {num_files} files. To check the files before the run, use `{measure}`."
        )
        yield from format_counts(left_out=item["left_out"], doubtful=item["doubtful"])
    if known_datasets:
        named = ", ".join(known_datasets[:MAX_UNPREPARED])
        if len(known_datasets) > MAX_UNPREPARED:
            named += f" and {len(known_datasets) - MAX_UNPREPARED} more"
        yield (
            f"Datasets that are not prepared: {named}. See what a dataset needs with `isweep "
            "datasets NAME`."
        )
