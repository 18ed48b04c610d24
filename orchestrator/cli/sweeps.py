"""Commands that run a sweep and say where it stands."""

from __future__ import annotations

import os
import shlex
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.live import Live
from rich.markup import escape
from rich.text import Text

from orchestrator.cli.options import Changes, Place, Sweep, SweepWork, whole
from orchestrator.cli.printing import (
    Shown,
    cell,
    emit,
    grid,
    progress,
    report_tables,
    stderr,
    stdout,
    tell,
    waited,
)
from orchestrator.cli.results import no_results
from search_spaces.errors import ConfigError, SweepError, collect, nearest, plural

if TYPE_CHECKING:
    from orchestrator.planning.workspace import Workspace
    from orchestrator.running.run_plan import RunPlan


def run(sweep: Sweep, /, *, work: SweepWork = SweepWork()) -> int:
    """Do what is left: prepare, measure, train, report; prints the report's path last."""
    from orchestrator.planning.sweep_changes import read_changes
    from orchestrator.running.run import run_sweep

    shown, again = progress(work), work.again("run", sweep)
    _tell_which(sweep, work, "run")
    try:
        summary = run_sweep(
            sweep, work.run_options, progress=shown, changes=read_changes(work.changes)
        )
    except KeyboardInterrupt:
        kept = f"{shown.done} of {plural(shown.planned, 'trial')} are kept" if shown.planned else ""
        raise KeyboardInterrupt(f"{kept or 'Nothing was lost'}; continue with: {again}") from None
    for text in grouped_failures(summary.failures):
        tell(text)
    _tell_behind(summary.num_behind, work.hint("reconcile", sweep))
    planned = plural(summary.planned, "trial")
    tell(f"{summary.done} of {planned} done, {summary.failed} failed, {summary.pending} left.")
    names = ("planned", "done", "failed", "pending", "failures")
    document = {name: getattr(summary, name) for name in names} | {"running": 0}
    document["report"] = str(summary.report) if summary.report else None
    emit(work, document, document["report"] or "no report: no trial has a result")
    return summary.exit_code


def tune(sweep: Sweep, /, *, work: SweepWork = SweepWork()) -> int:
    """Search learning rates, weight decays and batch sizes; prints the path of the recipe last."""
    from orchestrator.planning.sweep_changes import read_changes
    from orchestrator.tuning.search_report import BRIEF, outcome_table
    from orchestrator.tuning.tune_sweep import tune_sweep

    options, again = work.run_options, work.again("tune", sweep)
    _tell_which(sweep, work, "tune")
    try:
        summary = tune_sweep(
            sweep, options, progress=progress(work), changes=read_changes(work.changes)
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"Finished trials are kept; continue with: {again}") from None
    for problem in summary.problems:
        tell(problem)
    _tell_behind(summary.num_behind, again)
    paths = (str(path) for path in (summary.report, summary.recipe) if path is not None)
    emit(work, summary.document(), report_tables(outcome_table(summary.combinations, BRIEF)), paths)
    return summary.exit_code


def _tell_which(sweep: str, work: SweepWork, command: str) -> None:
    """Say that a sweep's name means what ran, where a file here of that name says otherwise."""
    from orchestrator.planning.sweep_file import load_sweep
    from orchestrator.planning.written_files import preset_names

    if "/" in sweep or not os.path.isfile(file := f"{sweep}.yaml") or sweep in preset_names():
        return
    with suppress(ConfigError):
        if load_sweep(work.paths.sweep(sweep).sweep_file) != load_sweep(
            file, recipes=work.paths.recipes
        ):
            way = work.again(command, f"./{file}")
            tell(
                f"{sweep} is the sweep as it last ran; ./{file} says otherwise, and is run by: "
                f"{way}"
            )


def _tell_behind(num: int, command: str) -> None:
    if num:
        tell(f"MLflow misses {plural(num, 'update')}; send them with: {command}")


def reconcile(sweep: Sweep, /, *, place: Place = Place()) -> None:
    """Replay the result store to MLflow, close ghosts."""
    from orchestrator.results.stored_results import StoredResults
    from orchestrator.running.reconcile import reconcile_sweep

    workspace = place.open(sweep)
    if not workspace.paths.root.is_dir() and not StoredResults.read(workspace.results_url).trials:
        raise no_results(sweep, workspace, place)
    counts = reconcile_sweep(workspace, place.mlflow_uri, tell)
    emit(place, counts, "  ".join(f"{name} {count}" for name, count in counts.items()))


MOST_GPUS = 100_000
"""To plan for: more would only take memory, since no sweep has as many trials."""
MAX_LACKING = 5


def plan(
    sweep: Sweep,
    /,
    *,
    all_: Annotated[bool, Parameter(name="--all")] = False,
    gpu: str | None = None,
    gpus: Annotated[int | None, whole(1, MOST_GPUS + 1)] = None,
    changes: Changes = (),
    place: Place = Place(),
) -> None:
    """Show the grid, what is done and what it will cost; refuse what cannot run.

    Args:
        all_: Print a line per trial; else one per model and dataset.
        gpu: Model to plan for (default: those that are here, if any).
        gpus: How many of them (default: those that are here, else as many as a trial asks for).
    """
    from orchestrator.planning.sweep_changes import read_changes
    from orchestrator.running.run_plan import describe_power, plan_run

    workspace = place.open(sweep, as_run=False, changes=read_changes(changes))
    found = plan_run(workspace, gpu=gpu, num_gpus=gpus)
    settled, settled_lines = describe_power(workspace)
    document: dict[str, object] = {"sweep": workspace.plan.sweep.name, "trials": found.rows}
    document |= {
        "measures": found.measures,
        "not_prepared": found.not_prepared,
        "estimate": found.cost,
    }
    document["power"] = settled
    costs = (found.cost["text"], found.beside, *settled_lines)
    emit(place, document, _grid_of(found, all_), _lacks(workspace, found.not_prepared), costs)


def _grid_of(found: RunPlan, all_: bool) -> Iterator[Shown]:
    """Yield a plan: done and planned trials of every model on every dataset, or a row per trial."""
    from orchestrator.planning.plan import CellStatus

    def done(rows: Iterable[Mapping[str, Any]]) -> int:
        return sum(row["status"] == CellStatus.DONE for row in rows)

    if all_:
        names = ("model", "dataset", "class_pair", "train_size", "seed", "recipe", "status")
        table = grid(*names)
        for row in found.rows:
            table.add_row(*(cell(row[name]) for name in names))
    else:
        planned = Counter((row["dataset"], row["model"]) for row in found.rows)
        ended = Counter((row["dataset"], row["model"]) for row in found.rows if done([row]))
        datasets, models = (list(dict.fromkeys(names)) for names in zip(*planned, strict=True))
        table = grid("done/planned", *map(escape, models), numeric_from=1)
        for name in datasets:
            counts = ((ended[name, model], planned[name, model]) for model in models)
            table.add_row(escape(name), *(f"{of[0]}/{of[1]}" if of[1] else "" for of in counts))
    yield table
    columns = {"N": "train_size", "seed": "seed", "recipe": "recipe", "pair": "class_pair"}
    spans = {words: _span(row[name] for row in found.rows) for words, name in columns.items()}
    yield "; ".join(f"{words}: {span}" for words, span in spans.items() if span)
    counted = {"trial": found.rows, "measure": found.measures}
    some = (f"{plural(len(rows), what)}: {done(rows)} done" for what, rows in counted.items())
    yield "; ".join(some)


def _span(values: Iterable[Any]) -> str:
    """Spell the distinct values: all where they are few, else from where to where and how many."""
    distinct = [value for value in dict.fromkeys(values) if value != ""]
    if len(distinct) <= MAX_NAMED:
        return ", ".join(map(str, distinct))
    return f"{distinct[0]} to {distinct[-1]} ({len(distinct)})"


def _lacks(workspace: Workspace, missing: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Yield what stands in the way of a run here and now."""
    from orchestrator.machine.cluster import this_machine, trial_resources
    from tasks.sources.base import format_counts

    try:
        trial_resources(workspace.plan.sweep.resources, this_machine(), "cpu")
    except ConfigError as error:
        yield f"not on this machine: {error}"
    for item in filter(lambda item: item["own"], missing):
        opening = shlex.join(["isweep", "measure", item["own"]])
        files = (
            f"{item['unopened']:,} files listed, none opened: {opening} opens them, or isweep run"
        )
        yield f"not prepared: {item['dataset']} ({files})"
        yield from format_counts(left_out=item["left_out"], doubtful=item["doubtful"])
    if known := [item["dataset"] for item in missing if not item["own"]]:
        more = f" and {len(known) - MAX_LACKING} more" if len(known) > MAX_LACKING else ""
        yield (
            f"not prepared: {', '.join(known[:MAX_LACKING])}{more} (what each needs: isweep "
            "datasets NAME)"
        )


COUNTS = ("planned", "done", "failed", "running", "pending")
MAX_NAMED = 3
"""Trials of one failure that are named; the others are counted."""


def status(
    sweep: Sweep | None = None,
    /,
    *,
    watch: bool = False,
    cell: Annotated[str | None, Parameter(metavar="ID")] = None,
    place: Place = Place(),
) -> None:
    """Show progress, and failures with their reasons; without a name, the sweeps of the root.

    Args:
        watch: Show it anew until nothing runs any more.
        cell: Tell the story of one cell: attempts, nodes, failures, logs.
    """
    from orchestrator.cli.sweep_status import sweep_status, trial_history

    if sweep is None:
        for asked, flag, more in ((cell is not None, "--cell", " ID"), (watch, "--watch", "")):
            if asked:
                raise ConfigError(
                    f"{flag} needs a sweep", "none", f"e.g. isweep status paper {flag}{more}"
                )
        return _status_of_all(place)
    workspace = place.open(sweep)
    if cell is not None:
        story, last_words = trial_history(workspace, _cell_named(workspace, cell))
        return emit(place, story, _told(story, last_words))
    if watch:
        _watch(lambda: sweep_status(workspace))
    if not workspace.paths.root.is_dir():
        way_in = (
            f"start with: {place.hint('run', sweep)}, or name the right one with --root or "
            "ISWEEP_ROOT"
        )
        tell(f"There is no root {workspace.paths.root} yet; {way_in}")
    document = sweep_status(workspace)
    return emit(place, document, _standing(document))


def _standing(document: Mapping[str, Any]) -> Iterator[str]:
    yield _counted(document, (*COUNTS, "diverged"))
    yield from running_lines(document)
    yield from grouped_failures(document["failures"])
    if document["stale"]:
        yield f"{plural(document['stale'], 'result')} made from other data will be made anew"
    yield from (
        f"not believed: {item['path']}: {item['reason']}" for item in document["unreadable"]
    )
    if document["foreign"]:
        yield f"{plural(len(document['foreign']), 'result')} of no planned trial: kept, not used"
    if document["done"]:
        yield document["cost"]["text"]
    if document["search"] is not None:
        yield document["search"]["text"]


def _status_of_all(place: Place) -> None:
    from orchestrator.cli.sweep_status import sweep_status

    found, damaged = list[dict[str, Any]](), list[SweepError]()
    for name in place.paths.sweep_names():
        try:
            one = place.open(name)
            found.append({"sweep": one.plan.sweep.name, **sweep_status(one)})
        except SweepError as error:
            # One sweep's damage hides no other sweep.
            damaged.append(error)
    table = grid("sweep", *COUNTS)
    for row in found:
        table.add_row(*(cell(row[name]) for name in ("sweep", *COUNTS)))
    if found:
        emit(place, found, table, (f"{row['sweep']}: {row['now']}" for row in found if row["now"]))
    else:
        emit(
            place,
            found,
            f"no sweep ran below this root yet; start with: {place.hint('run', 'demo')}",
        )
    collect(damaged, type(damaged[0]) if damaged else SweepError)


def grouped_failures(failures: Iterable[Mapping[str, str]]) -> Iterator[str]:
    """Yield a line per kind and message of failure, with the trials it befell: the commonest
    first.
    """
    groups: dict[tuple[str, str], list[str]] = {}
    for failure in failures:
        groups.setdefault((failure["kind"], failure["message"]), []).append(failure["trial_id"])
    for (kind, message), trials in sorted(groups.items(), key=lambda item: -len(item[1])):
        named = ", ".join(trials[:MAX_NAMED])
        more = f" and {len(trials) - MAX_NAMED} more" if len(trials) > MAX_NAMED else ""
        yield f"failed ({kind}) {len(trials)} ×: {message}  [{named}{more}]"


def running_lines(document: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a run does now, and a line per trial that runs."""
    from orchestrator.running.progress import RunningTrial, format_duration

    if document["now"]:
        yield f"now: {document['now']}"
    for name, said in document["running_trials"].items():
        trial = RunningTrial.model_validate(said)
        yield f"running {name}  {trial.text(format_duration(time.time() - trial.started_at))}"


def _watch(look: Callable[[], Mapping[str, Any]]) -> None:
    """Show counts and running trials anew every two seconds, until no run works on the sweep.

    Into a pipe or file, a line whenever they have changed; on stderr, since stdout is for data.
    """
    waited()  # it has a display of its own
    said, shown = "", Live(console=stdout, transient=True, auto_refresh=False)
    try:
        with shown if stdout.is_terminal else nullcontext():
            while (document := look())[
                "now"
            ] and not stderr.quiet:  # as once nobody reads it any more
                now = f"{_counted(document, COUNTS)}  {document['now']}"
                if stdout.is_terminal:
                    shown.update(watched(document), refresh=True)
                elif now != said:
                    tell(now)
                said = now
                time.sleep(2)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("Nothing but the watching: the run goes on.") from None


def watched(document: Mapping[str, Any]) -> Text:
    """Lay out what is watched: folded, not cut, since the time that is left stands at the end."""
    return Text("\n".join([_counted(document, COUNTS), *running_lines(document)]))


def _counted(document: Mapping[str, Any], names: Sequence[str]) -> str:
    return "  ".join(f"{name} {document[name]}" for name in names)


LOG_LINES = 20
"""Of the last attempt's log, for people; the document has the path."""


def _told(story: Mapping[str, Any], last_words: str) -> Iterator[str]:
    """Yield what happened to one cell: its attempts, where they ran, how they ended, where their
    logs lie.
    """
    yield f"{story['trial_id']}: {story['status']}"
    if not story["events"]:
        yield story["unreadable"] or "no attempt at it is recorded"
    for event in story["events"]:
        where, said = (
            f"{mark}{event[key]}" * bool(event.get(key))
            for mark, key in ((" on ", "node"), (": ", "said"))
        )
        when = time.strftime("%F %T", time.localtime(event["at"]))
        yield f"{when}  attempt {event['attempt']} {event['what']}{where}{said}"
    yield from (f"log of attempt {number}: {path}" for number, path in story["logs"].items())
    yield from (f"  {text}" for text in last_words.splitlines()[-LOG_LINES:])
    if story["failure"] and not story["logs"]:
        yield story["failure"]["traceback"] or ""


def _cell_named(workspace: Workspace, asked: str) -> str:
    """Return the id that is meant: in full, or as much of its beginning or end as only it has."""
    planned = workspace.plan.trials_by_id
    matching = [one for one in planned if one.startswith(asked) or one.endswith(asked)]
    if asked in planned or len(matching) == 1:
        return asked if asked in planned else matching[0]
    if matching:
        found = f"{asked}: {', '.join(matching[:3])}{' …' * (len(matching) > 3)}"
        raise ConfigError(
            f"--cell must name one cell, not {len(matching)}", found, "write more of the id"
        )
    hint = f"{nearest(asked, planned)}isweep plan --all lists them"
    raise ConfigError("--cell must name a cell of the sweep", repr(asked), hint)
