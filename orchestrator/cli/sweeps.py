"""Commands that run a sweep and say where it stands."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.markup import escape

from orchestrator.cli.options import (
    Changes,
    ClusterOptions,
    Place,
    Positive,
    RawFolders,
    ReadingOptions,
    Sweep,
    raw_folders,
    run_options,
    whole,
)
from orchestrator.cli.printing import (
    emit,
    emit_grid,
    emit_sweeps,
    grouped_failures,
    line,
    running_lines,
    show_cell,
    stderr,
    stdout,
    text_table,
    watch,
)
from orchestrator.cli.results import no_results
from search_spaces.errors import ConfigError, SweepError, collect

if TYPE_CHECKING:
    from orchestrator.planning.plan import Workspace
    from orchestrator.running.run import RunSummary


def run(
    preset: Sweep,
    /,
    *,
    raw: RawFolders = (),
    changes: Changes = (),
    reading: ReadingOptions = ReadingOptions(),
    cluster: ClusterOptions = ClusterOptions(),
    place: Place = Place(),
) -> int:
    """Do what is left: prepare, measure, train, report; prints the report's path last.

    Args:
        preset: Name of a preset or of a sweep of the root, or path of a sweep file.
        raw: Raw download of a dataset; may be given for several.
        changes: Change one value for this run, e.g. recipe.epochs=3; may be given for several.
        reading: How to read raw files.
        cluster: Where to compute.
        place: Where everything lies.
    """
    from orchestrator.planning.sweep_file import read_changes
    from orchestrator.running.progress import Progress
    from orchestrator.running.run import run_sweep

    progress = Progress(console=None if cluster.quiet else stderr)
    options = run_options(place, cluster, reading, raw_folders(raw))
    try:
        summary = run_sweep(preset, options, progress=progress, changes=read_changes(changes))
    except KeyboardInterrupt:
        kept = (
            f"{progress.done} of {progress.planned} trials are kept"
            if progress.planned
            else "Nothing was lost"
        )
        again = place.hint("run", preset, *(word for change in changes for word in ("--set", change)))
        raise KeyboardInterrupt(f"{kept}; continue with: {again}") from None
    _say_how_it_ended(summary, place.hint("reconcile", preset))
    report = str(summary.report) if summary.report else None
    document = {
        "planned": summary.planned,
        "done": summary.done,
        "failed": summary.failed,
        "running": 0,
        "pending": summary.pending,
        "failures": summary.failures,
        "report": report,
    }
    emit(place, document, lambda: line(report or "no report: no trial has a result"))
    return summary.exit_code


def status(
    preset: Sweep | None = None,
    /,
    *,
    watch_: Annotated[bool, Parameter(name="--watch")] = False,
    interval: Annotated[Positive, Parameter(metavar="SECONDS")] = 2,
    cell: Annotated[str | None, Parameter(metavar="ID")] = None,
    place: Place = Place(),
) -> int:
    """Show progress, and failures with their reasons; without a name, the sweeps of the root.

    Args:
        preset: Name of a preset or of a sweep of the root, or path of a sweep file.
        watch_: Show it anew until nothing runs any more.
        interval: Seconds between two looks (default 2).
        cell: Tell the story of one cell: attempts, nodes, failures, logs.
        place: Where everything lies.
    """
    from orchestrator.commands import progress_of
    from orchestrator.planning.plan import Workspace

    if preset is None:
        if cell is not None:
            raise ConfigError("--cell needs a sweep", "none", "e.g. isweep status paper --cell ID")
        if watch_:
            raise ConfigError("--watch needs a sweep", "none", "e.g. isweep status paper --watch")
        return _status_of_all(place)
    workspace = Workspace.open(preset, place.root, place.storage, as_run=True)
    if cell is not None:
        show_cell(workspace, cell, place)
        return 0
    if watch_:
        watch(lambda: progress_of(workspace), interval)
    if not workspace.paths.exist:
        hint = f"There is no root {workspace.paths.root} yet; {_way_in(place, preset)}"
        stderr.print(escape(hint), soft_wrap=True)
    document = progress_of(workspace)

    def show() -> None:
        names = ("planned", "done", "failed", "running", "pending", "diverged")
        stdout.print("  ".join(f"{name} {document[name]}" for name in names))
        for text in running_lines(document):
            stdout.print(escape(text), soft_wrap=True)
        for text in grouped_failures(document["failures"]):
            stdout.print(escape(text), soft_wrap=True)
        if document["stale"]:
            stdout.print(f"{document['stale']} results were made from other data and will be made anew")
        for item in document["unreadable"]:
            stdout.print(escape(f"not believed: {item['path']}: {item['reason']}"))
        if document["foreign"]:
            stdout.print(f"{len(document['foreign'])} results belong to no planned trial; kept, not used")
        if document["done"]:
            stdout.print(escape(document["cost"]["text"]), soft_wrap=True)
        if document["search"] is not None:
            stdout.print(escape(document["search"]["text"]), soft_wrap=True)

    emit(place, document, show)
    return 0


def _status_of_all(place: Place) -> int:
    from orchestrator.commands import progress_of
    from orchestrator.planning.paths import RootPaths
    from orchestrator.planning.plan import Workspace

    found, damaged = list[dict[str, Any]](), list[SweepError]()
    for name in RootPaths.at(place.root).sweep_names():
        try:
            one = Workspace.open(name, place.root, place.storage, as_run=True)
            found.append({"sweep": one.plan.sweep.name, **progress_of(one)})
        except SweepError as error:
            # One sweep's damage hides no other sweep.
            damaged.append(error)
    emit_sweeps(place, found)
    collect(damaged, type(damaged[0]) if damaged else SweepError)
    return 0


def reconcile(preset: Sweep, /, *, place: Place = Place()) -> int:
    """Replay the result store to MLflow, close ghosts.

    Args:
        preset: Name of a preset or of a sweep of the root, or path of a sweep file.
        place: Where everything lies.
    """
    from orchestrator.commands import reconciled
    from orchestrator.planning.plan import Workspace
    from orchestrator.results.state import StoredResults

    workspace = Workspace.open(preset, place.root, place.storage, as_run=True)
    if not workspace.paths.exist and not StoredResults.read(workspace.results_url).trials:
        raise no_results(preset, workspace, place)
    counts = reconciled(workspace, place.mlflow_uri, _say)
    emit(place, counts, lambda: stdout.print("  ".join(f"{name} {count}" for name, count in counts.items())))
    return 0


def _say(text: str) -> None:
    stderr.print(escape(text), soft_wrap=True)


def _say_how_it_ended(summary: RunSummary, reconcile: str) -> None:
    for text in grouped_failures(summary.failures):
        stderr.print(escape(text), soft_wrap=True)
    if summary.num_behind:
        stderr.print(
            escape(f"MLflow misses {summary.num_behind} updates; send them with: {reconcile}"), soft_wrap=True
        )
    stderr.print(
        f"{summary.done} of {summary.planned} trials done, {summary.failed} failed, {summary.pending} left."
    )


def _way_in(place: Place, preset: str) -> str:
    return f"start with: {place.hint('run', preset)}, or name the right one with --root or ISWEEP_ROOT"


def tune(
    preset: Sweep,
    /,
    *,
    raw: RawFolders = (),
    changes: Changes = (),
    reading: ReadingOptions = ReadingOptions(),
    cluster: ClusterOptions = ClusterOptions(),
    place: Place = Place(),
) -> int:
    """Search learning rates, weight decays and batch sizes; prints the path of the recipe last.

    Args:
        preset: Name of a preset or of a sweep of the root, or path of a sweep file.
        raw: Raw download of a dataset; may be given for several.
        changes: Change one value for this run, e.g. tune.budget=0.4; may be given for several.
        reading: How to read raw files.
        cluster: Where to compute.
        place: Where everything lies.
    """
    from orchestrator.planning.sweep_file import read_changes
    from orchestrator.running.progress import Progress
    from orchestrator.tuning.outcome import brief_table
    from orchestrator.tuning.run import tune_sweep

    progress = Progress(console=None if cluster.quiet else stderr)
    options = run_options(place, cluster, reading, raw_folders(raw))
    again = place.hint("tune", preset, *(word for change in changes for word in ("--set", change)))
    try:
        summary = tune_sweep(preset, options, progress=progress, changes=read_changes(changes))
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"Finished trials are kept; continue with: {again}") from None
    for problem in summary.problems:
        stderr.print(escape(problem), soft_wrap=True)
    if summary.num_behind:
        behind = f"MLflow misses {summary.num_behind} updates; send them with: {again}"
        stderr.print(escape(behind), soft_wrap=True)
    found: dict[str, Any] = summary.document()

    def show() -> None:
        stdout.print(text_table(brief_table(summary.cells)))
        if summary.report is not None:
            line(str(summary.report))
        line(str(summary.recipe))

    emit(place, found, show)
    return summary.exit_code


MOST_CARDS = 100_000
"""To plan for: more would only take memory, since no sweep has as many trials."""


def plan(
    preset: Sweep,
    /,
    *,
    all_: Annotated[bool, Parameter(name="--all")] = False,
    card: str | None = None,
    gpus: Annotated[int | None, whole(1, MOST_CARDS + 1, f"from 1 to {MOST_CARDS:,}")] = None,
    changes: Changes = (),
    place: Place = Place(),
) -> int:
    """Show the grid, what is done and what it will cost; refuse what cannot run.

    Args:
        preset: Name of a preset or of a sweep of the root, or path of a sweep file.
        all_: Print a line per trial; else one per model and dataset.
        changes: Change one value, e.g. recipe.epochs=3; may be given for several.
        card: Kind of graphics card to plan for (default: what the root's prices.yaml names, else h100).
        gpus: How many of them (default: 1, or as many as a trial asks for).
        place: Where everything lies.
    """
    from orchestrator.commands import planned, settled_by
    from orchestrator.planning.plan import Workspace
    from orchestrator.planning.sweep_file import read_changes
    from orchestrator.tuning.cells import most_trainings

    workspace = Workspace.open(preset, place.root, place.storage, changes=read_changes(changes))
    found = planned(workspace, card=card, num_cards=gpus)
    trainings, search = most_trainings(workspace)
    settled, settled_lines = settled_by(workspace)

    def show() -> None:
        emit_grid(found.rows, all_=all_)
        stdout.print(f"{_counted('trials', found.rows)}; {_counted('measures', found.measures)}")
        _say_what_is_missing(workspace, found.not_prepared)
        for text in filter(None, (found.cost["text"], found.beside, search, *settled_lines)):
            stdout.print(escape(text))

    document: dict[str, object] = {"sweep": workspace.plan.sweep.name, "trials": found.rows}
    document |= {"measures": found.measures, "not_prepared": found.not_prepared, "estimate": found.cost}
    emit(place, document | {"search": {"most_trainings": trainings}, "power": settled}, show)
    return 0


def _say_what_is_missing(workspace: Workspace, missing: list[dict[str, Any]]) -> None:
    from orchestrator.running.cluster import this_machine, trial_resources

    try:
        trial_resources(workspace.plan.sweep.resources, this_machine(), "cpu")
    except ConfigError as error:
        stdout.print(escape(f"not on this machine: {error}"), soft_wrap=True)
    for item in missing:
        hint = f"see: isweep datasets {item['dataset']}"
        if item["own"]:
            opening = shlex.join(["isweep", "measure", item["own"]])
            hint = f"{item['unopened']:,} files listed, none opened: {opening} opens them, or isweep run"
        stdout.print(escape(f"not prepared: {item['dataset']} ({hint})"), soft_wrap=True)


def _counted(what: str, rows: Sequence[Mapping[str, Any]]) -> str:
    from orchestrator.planning.plan import CellStatus

    return f"{len(rows)} {what}: {sum(row['status'] == CellStatus.DONE for row in rows)} done"
