"""Commands that run a sweep and say where it stands."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.markup import escape

from orchestrator.cli.cells import show_cell
from orchestrator.cli.listing import emit_sweeps, grouped_failures, running_lines, watch
from orchestrator.cli.options import (
    Changes,
    ClusterOptions,
    Place,
    Positive,
    RawFolders,
    ReadingOptions,
    raw_folders,
    run_options,
)
from orchestrator.cli.printing import emit, line, stderr, stdout
from orchestrator.cli.results import no_results
from search_spaces.errors import ConfigError, SweepError, collect

if TYPE_CHECKING:
    from orchestrator.planning.workspace import Workspace
    from orchestrator.running.pipeline import RunSummary


def run(
    preset: str,
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
    from orchestrator.planning.changes import read_changes
    from orchestrator.running.pipeline import run_sweep
    from orchestrator.running.progress import Progress

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
    preset: str | None = None,
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
    from orchestrator.planning.workspace import Workspace

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
        watch(lambda: _progress(workspace), interval)
    if not workspace.paths.exist:
        hint = f"There is no root {workspace.paths.root} yet; {_way_in(place, preset)}"
        stderr.print(escape(hint), soft_wrap=True)
    document = _progress(workspace)

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
    from orchestrator.planning.paths import RootPaths
    from orchestrator.planning.workspace import Workspace

    found, damaged = list[dict[str, Any]](), list[SweepError]()
    for name in RootPaths.at(place.root).sweep_names():
        try:
            one = Workspace.open(name, place.root, place.storage, as_run=True)
            found.append({"sweep": one.plan.sweep.name, **_progress(one)})
        except SweepError as error:
            # One sweep's damage hides no other sweep.
            damaged.append(error)
    emit_sweeps(place, found)
    collect(damaged, type(damaged[0]) if damaged else SweepError)
    return 0


def reconcile(preset: str, /, *, place: Place = Place()) -> int:
    """Replay the result store to MLflow, close ghosts.

    Args:
        preset: Name of a preset, or path of a sweep file.
        place: Where everything lies.
    """
    from orchestrator.planning.workspace import Workspace
    from orchestrator.results.state import StoredResults, judge
    from orchestrator.results.tracking.choice import make_tracker
    from orchestrator.results.tracking.run_pages import keep_run_pages
    from orchestrator.running.lock import locked

    workspace = Workspace.open(preset, place.root, place.storage, as_run=True)
    if not workspace.paths.exist and not StoredResults.read(workspace.results_url).trials:
        raise no_results(preset, workspace, place)
    workspace.paths.make()
    with locked(workspace, "isweep reconcile"):
        stored = StoredResults.read(workspace.results_url)
        state = judge(workspace, stored)
        tracker = make_tracker(workspace, stored.store, place.mlflow_uri, say=_say)
        try:
            counts = tracker.reconcile(state.flat_runs(), state.told_failures())
            keep_run_pages(workspace.sweep_paths.run_pages, tracker.pages())
        finally:
            tracker.close("KILLED" if len(state.results) < len(workspace.plan.trials) else "FINISHED")
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


def _progress(workspace: Workspace) -> dict[str, Any]:
    from orchestrator.planning.plan import CellStatus
    from orchestrator.planning.prices import read_prices
    from orchestrator.results.cost import cost_of
    from orchestrator.results.state import look_at_state
    from orchestrator.running.run_state import read_run
    from orchestrator.tuning.standing import search_standing
    from tasks.trials.result import TrialStatus

    # First what runs, then what is done: a trial that ends in between counts once, as done.
    run = read_run(workspace)
    trials = {} if run is None else {name: trial.model_dump() for name, trial in run.running.items()}
    state = look_at_state(workspace, trials)
    cost = cost_of(state, read_prices(workspace.paths.prices))
    search = search_standing(workspace)
    counts = Counter(state.status(trial_id) for trial_id in workspace.plan.trials_by_id)
    return {
        "planned": counts.total(),
        **{str(one): counts[one] for one in (CellStatus.DONE, CellStatus.FAILED, CellStatus.RUNNING)},
        "pending": counts[CellStatus.PENDING] + counts[CellStatus.STALE],
        "stale": counts[CellStatus.STALE],
        "diverged": sum(one.status == TrialStatus.DIVERGED for one in state.results.values()),
        "now": "" if run is None else run.now,
        "seconds_left": None if run is None else run.seconds_left,
        "running_trials": {name: trial for name, trial in trials.items() if name not in state.results},
        "failures": state.failure_rows(),
        "unreadable": [vars(item) for item in state.unreadable],
        "foreign": sorted(state.foreign),
        "cost": vars(cost) | {"text": cost.text()},
        "search": None if search is None else search.model_dump() | {"text": search.summary},
    }
