"""Commands that run a sweep and say where it stands."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from orchestrator.cli.options import Changes, Place, Positive, Sweep, SweepWork, whole
from orchestrator.cli.printing import (
    COUNTS,
    cell,
    emit,
    grid,
    grouped_failures,
    line,
    plan_table,
    running_lines,
    show_cell,
    stderr,
    stdout,
    tell,
    text_table,
    watch,
)
from orchestrator.cli.results import no_results
from search_spaces.errors import ConfigError, SweepError, collect

if TYPE_CHECKING:
    from orchestrator.planning.plan import Workspace


def run(sweep: Sweep, /, *, work: SweepWork = SweepWork()) -> int:
    """Do what is left: prepare, measure, train, report; prints the report's path last."""
    from orchestrator.planning.sweep_file import read_changes
    from orchestrator.running.progress import Progress
    from orchestrator.running.run import run_sweep

    progress = Progress(console=None if work.quiet else stderr)
    options = work.options(work.raw_folders())
    try:
        summary = run_sweep(sweep, options, progress=progress, changes=read_changes(work.changes))
    except KeyboardInterrupt:
        kept = f"{progress.done} of {progress.planned} trials are kept" * bool(progress.planned)
        again = work.again("run", sweep)
        raise KeyboardInterrupt(f"{kept or 'Nothing was lost'}; continue with: {again}") from None
    for text in grouped_failures(summary.failures):
        tell(text)
    _say_behind(summary.num_behind, work.hint("reconcile", sweep))
    tell(f"{summary.done} of {summary.planned} trials done, {summary.failed} failed, {summary.pending} left.")
    names = ("planned", "done", "failed", "pending", "failures")
    document = {name: getattr(summary, name) for name in names} | {"running": 0}
    document["report"] = str(summary.report) if summary.report else None
    emit(work, document, lambda: line(document["report"] or "no report: no trial has a result"))
    return summary.exit_code


def tune(sweep: Sweep, /, *, work: SweepWork = SweepWork()) -> int:
    """Search learning rates, weight decays and batch sizes; prints the path of the recipe last."""
    from orchestrator.planning.sweep_file import read_changes
    from orchestrator.running.progress import Progress
    from orchestrator.tuning.outcome import brief_table
    from orchestrator.tuning.run import tune_sweep

    progress, again = Progress(console=None if work.quiet else stderr), work.again("tune", sweep)
    options = work.options(work.raw_folders())
    try:
        summary = tune_sweep(sweep, options, progress=progress, changes=read_changes(work.changes))
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"Finished trials are kept; continue with: {again}") from None
    for problem in summary.problems:
        tell(problem)
    _say_behind(summary.num_behind, again)

    def show() -> None:
        stdout.print(text_table(brief_table(summary.cells)))
        line(*(str(path) for path in (summary.report, summary.recipe) if path is not None))

    emit(work, summary.document(), show)
    return summary.exit_code


def _say_behind(num: int, command: str) -> None:
    if num:
        tell(f"MLflow misses {num} updates; send them with: {command}")


def status(
    sweep: Sweep | None = None,
    /,
    *,
    watch_: Annotated[bool, Parameter(name="--watch")] = False,
    interval: Annotated[Positive, Parameter(metavar="SECONDS")] = 2,
    cell: Annotated[str | None, Parameter(metavar="ID")] = None,
    place: Place = Place(),
) -> None:
    """Show progress, and failures with their reasons; without a name, the sweeps of the root.

    Args:
        watch_: Show it anew until nothing runs any more.
        interval: Seconds between two looks (default 2).
        cell: Tell the story of one cell: attempts, nodes, failures, logs.
    """
    from orchestrator.commands import progress_of

    if sweep is None:
        for asked, flag, more in ((cell is not None, "--cell", " ID"), (watch_, "--watch", "")):
            if asked:
                raise ConfigError(f"{flag} needs a sweep", "none", f"e.g. isweep status paper {flag}{more}")
        return _status_of_all(place)
    workspace = place.open(sweep)
    if cell is not None:
        return show_cell(workspace, cell, place)
    if watch_:
        watch(lambda: progress_of(workspace), interval)
    if not workspace.paths.exist:
        way_in = f"start with: {place.hint('run', sweep)}, or name the right one with --root or ISWEEP_ROOT"
        tell(f"There is no root {workspace.paths.root} yet; {way_in}")
    document = progress_of(workspace)

    def show() -> None:
        line("  ".join(f"{name} {document[name]}" for name in (*COUNTS, "diverged")))
        line(*running_lines(document), *grouped_failures(document["failures"]))
        if document["stale"]:
            line(f"{document['stale']} results were made from other data and will be made anew")
        line(*(f"not believed: {item['path']}: {item['reason']}" for item in document["unreadable"]))
        if document["foreign"]:
            line(f"{len(document['foreign'])} results belong to no planned trial; kept, not used")
        if document["done"]:
            line(document["cost"]["text"])
        if document["search"] is not None:
            line(document["search"]["text"])

    return emit(place, document, show)


def _status_of_all(place: Place) -> None:
    from orchestrator.commands import progress_of

    found, damaged = list[dict[str, Any]](), list[SweepError]()
    for name in place.paths.sweep_names():
        try:
            one = place.open(name)
            found.append({"sweep": one.plan.sweep.name, **progress_of(one)})
        except SweepError as error:
            # One sweep's damage hides no other sweep.
            damaged.append(error)

    def show() -> None:
        if not found:
            line(f"no sweep ran below this root yet; start with: {place.hint('run', 'demo')}")
            return
        table = grid("sweep", *COUNTS)
        for row in found:
            table.add_row(cell(row["sweep"]), *(str(row[name]) for name in COUNTS))
        stdout.print(table)
        line(*(f"{row['sweep']}: {row['now']}" for row in found if row["now"]))

    emit(place, found, show)
    collect(damaged, type(damaged[0]) if damaged else SweepError)


def reconcile(sweep: Sweep, /, *, place: Place = Place()) -> None:
    """Replay the result store to MLflow, close ghosts."""
    from orchestrator.commands import reconciled
    from orchestrator.results.state import StoredResults

    workspace = place.open(sweep)
    if not workspace.paths.exist and not StoredResults.read(workspace.results_url).trials:
        raise no_results(sweep, workspace, place)
    counts = reconciled(workspace, place.mlflow_uri, tell)
    emit(place, counts, lambda: line("  ".join(f"{name} {count}" for name, count in counts.items())))


MOST_CARDS = 100_000
"""To plan for: more would only take memory, since no sweep has as many trials."""


def plan(
    sweep: Sweep,
    /,
    *,
    all_: Annotated[bool, Parameter(name="--all")] = False,
    card: str | None = None,
    gpus: Annotated[int | None, whole(1, MOST_CARDS + 1, f"from 1 to {MOST_CARDS:,}")] = None,
    changes: Changes = (),
    place: Place = Place(),
) -> None:
    """Show the grid, what is done and what it will cost; refuse what cannot run.

    Args:
        all_: Print a line per trial; else one per model and dataset.
        card: Kind of graphics card to plan for (default: those that are here, if any).
        gpus: How many of them (default: 1, or as many as a trial asks for).
    """
    from orchestrator.commands import planned, settled_by
    from orchestrator.planning.sweep_file import read_changes
    from orchestrator.tuning.cells import most_trainings

    workspace = place.open(sweep, as_run=False, changes=read_changes(changes))
    found = planned(workspace, card=card, num_cards=gpus)
    trainings, search = most_trainings(workspace)
    settled, settled_lines = settled_by(workspace)

    def show() -> None:
        stdout.print(plan_table(found.rows, all_=all_))
        line(f"{_counted('trials', found.rows)}; {_counted('measures', found.measures)}")
        line(*_lacks(workspace, found.not_prepared))
        line(*filter(None, (found.cost["text"], found.beside, search, *settled_lines)))

    document: dict[str, object] = {"sweep": workspace.plan.sweep.name, "trials": found.rows}
    document |= {"measures": found.measures, "not_prepared": found.not_prepared, "estimate": found.cost}
    emit(place, document | {"search": {"most_trainings": trainings}, "power": settled}, show)


def _lacks(workspace: Workspace, missing: list[dict[str, Any]]) -> list[str]:
    """Return what stands in the way of a run here and now, as lines."""
    from orchestrator.running.cluster import this_machine, trial_resources

    lines = []
    try:
        trial_resources(workspace.plan.sweep.resources, this_machine(), "cpu")
    except ConfigError as error:
        lines.append(f"not on this machine: {error}")
    for item in missing:
        hint = f"see: isweep datasets {item['dataset']}"
        if item["own"]:
            opening = shlex.join(["isweep", "measure", item["own"]])
            hint = f"{item['unopened']:,} files listed, none opened: {opening} opens them, or isweep run"
        lines.append(f"not prepared: {item['dataset']} ({hint})")
    return lines


def _counted(what: str, rows: Sequence[Mapping[str, Any]]) -> str:
    from orchestrator.planning.plan import CellStatus

    return f"{len(rows)} {what}: {sum(row['status'] == CellStatus.DONE for row in rows)} done"
