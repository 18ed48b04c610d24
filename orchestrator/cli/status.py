"""The command ``isweep status``: progress of sweeps, and the history of one trial."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.live import Live
from rich.text import Text

from orchestrator.cli.options import Place, Sweep
from orchestrator.cli.printing import cell, emit, end_waiting, grid, print_message, stderr, stdout
from search_spaces.errors import ConfigError, SweepError, did_you_mean, plural, raise_all

if TYPE_CHECKING:
    from orchestrator.planning.workspace import Workspace

COUNTS = ("planned", "done", "failed", "running", "waiting", "pending")
MAX_NAMED = 3
"""Largest number of trials that a line about a failure lists. If there are more, the line ends
with the number of further trials."""
MAX_LOG_LINES = 20
"""Largest number of printed lines of the last attempt's log. ``--json`` prints the path of the
log."""
WATCH_INTERVAL_S = 2
"""Seconds between two updates of `isweep status --watch`."""


def status(
    sweep: Sweep | None = None,
    /,
    *,
    watch: bool = False,
    trial: Annotated[str | None, Parameter(metavar="ID")] = None,
    place: Place = Place(),
) -> None:
    """Show progress and failures of a sweep, or of all sweeps of the root.

    Args:
        watch: Print the progress again every two seconds until the run ends.
        trial: Show the history of one trial: attempts, nodes, failures, logs.
    """
    from orchestrator.cli.sweep_status import sweep_status, trial_history

    if sweep is None:
        _check_sweep_is_named(trial, watch)
        _print_all(place)
        return
    workspace = place.open(sweep)
    if trial is not None:
        history, last_log = trial_history(workspace, _full_id(workspace, trial))
        emit(place, history, _history_lines(history, last_log))
        return
    if watch:
        _watch(lambda: sweep_status(workspace))
    if not workspace.paths.root.is_dir():
        start = place.hint("run", sweep)
        print_message(
            f"The root {workspace.paths.root} does not exist. Start with `{start}`, or choose "
            "another root with --root or ISWEEP_ROOT."
        )
    document = sweep_status(workspace)
    emit(place, document, _status_lines(document, place.hint("status", sweep)))


def _check_sweep_is_named(trial_id: str | None, watch: bool) -> None:
    """Raise an error if the user gives an option that needs the name of a sweep."""
    if trial_id is not None:
        raise ConfigError(
            "--trial needs the name of a sweep",
            hint="Type the name before the option, for example `isweep status demo --trial "
            f"{trial_id}`",
        )
    if watch:
        raise ConfigError(
            "--watch needs the name of a sweep",
            hint="Type the name before the option, for example `isweep status demo --watch`",
        )


def _status_lines(document: Mapping[str, Any], command: str) -> Iterator[str]:
    """Yield lines about the state of one sweep."""
    yield _counts_text(document, (*COUNTS, "diverged"))
    yield from running_lines(document)
    yield from grouped_failures(document["failures"])
    if document["failures"]:
        trial_id = document["failures"][0]["trial_id"]
        yield f"Traceback and log of one failed trial: {command} --trial {trial_id}"
    if document["stale"]:
        num_outdated = plural(document["stale"], "result")
        yield f"The next run replaces {num_outdated} that used outdated data."
    for item in document["unreadable"]:
        yield f"isweep does not use the file {item['path']}: {item['reason']}"
    if document["foreign"]:
        yield (
            f"isweep keeps {plural(len(document['foreign']), 'result')} of trials that are "
            "not in the plan, but does not use these results."
        )
    if document["done"]:
        yield document["cost"]["text"]
    if document["search"] is not None:
        yield document["search"]["text"]


def _print_all(place: Place) -> None:
    """Print one line for each sweep of the root."""
    from orchestrator.cli.sweep_status import sweep_status

    documents: list[dict[str, Any]] = []
    errors: list[SweepError] = []
    for name in place.paths.sweep_names():
        try:
            workspace = place.open(name)
            documents.append({"sweep": workspace.plan.sweep.name, **sweep_status(workspace)})
        except SweepError as error:
            # If one sweep is damaged, isweep still prints the other sweeps.
            errors.append(error)
    table = grid("sweep", *COUNTS)
    active = []
    for document in documents:
        table.add_row(*(cell(document[name]) for name in ("sweep", *COUNTS)))
        if document["now"]:
            active.append(f"{document['sweep']}: {document['now']}")
    if documents:
        emit(place, documents, table, active)
    else:
        start = place.hint("run", "demo")
        emit(
            place,
            documents,
            f"No sweep has run in the root {place.paths.root}. Start with `{start}`.",
        )
    if errors:
        raise_all(errors, type(errors[0]))


def grouped_failures(failures: Iterable[Mapping[str, str]]) -> Iterator[str]:
    """Yield one line for each kind and message of failure, with its trials.

    The most frequent is first.
    """
    rows = ((row["trial_id"], row["kind"], row["message"]) for row in failures)
    for text, _ in _grouped(rows):
        yield f"failed {text}"


def _grouped(rows: Iterable[tuple[str, str, str]]) -> Iterator[tuple[str, list[str]]]:
    """Yield a text and the trials of each kind and message of failure. The most frequent is first.

    Args:
        rows: Id, kind of failure and message of each trial.
    """
    groups: dict[tuple[str, str], list[str]] = {}
    for trial_id, kind, message in rows:
        groups.setdefault((kind, message), []).append(trial_id)
    for (kind, message), trials in sorted(groups.items(), key=lambda item: -len(item[1])):
        names = ", ".join(trials[:MAX_NAMED])
        if len(trials) > MAX_NAMED:
            names += f" and {len(trials) - MAX_NAMED} more"
        yield f"({kind}) {len(trials)} ×: {message}  [{names}]", trials


def running_lines(document: Mapping[str, Any]) -> Iterator[str]:
    """Yield the stage of a run, one line per running trial, and lines about waiting trials."""
    from orchestrator.running.progress import RunningTrial, format_duration, next_attempt

    if document["now"]:
        yield f"now: {document['now']}"
    for name, fields in document["running_trials"].items():
        trial = RunningTrial.model_validate(fields)
        duration = format_duration(time.time() - trial.started_at)
        yield f"running {name}  {trial.text(duration)}"
    waiting = document["waiting_trials"]
    rows = ((name, fields["kind"], fields["message"]) for name, fields in waiting.items())
    for text, trials in _grouped(rows):
        retry_at = min(waiting[name]["retry_at"] for name in trials)
        yield f"waiting {text}  {next_attempt(retry_at)}"


def _watch(read_status: Callable[[], Mapping[str, Any]]) -> None:
    """Show counts and running trials until the run of the sweep ends.

    If stderr is a pipe or file, print a line on stderr after each change. stdout is only for
    data.
    """
    end_waiting()  # ends the display of the command
    display = Live(console=stdout, transient=True, auto_refresh=False)
    last_line = ""
    try:
        with display if stdout.is_terminal else nullcontext():
            while True:
                document = read_status()
                # If the reader of stderr has ended, nothing is printed on stderr any more.
                if not document["now"] or stderr.quiet:
                    return
                line = f"{_counts_text(document, COUNTS)}  {document['now']}"
                if stdout.is_terminal:
                    display.update(run_display(document), refresh=True)
                elif line != last_line:
                    print_message(line)
                last_line = line
                time.sleep(WATCH_INTERVAL_S)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("The display has ended, but the run continues.") from None


def run_display(document: Mapping[str, Any]) -> Text:
    """Return the display of a run. Its lines are wrapped, so the remaining time is not cut off."""
    return Text("\n".join([_counts_text(document, COUNTS), *running_lines(document)]))


def _counts_text(document: Mapping[str, Any], names: Sequence[str]) -> str:
    """Return counts of trials by state on one line."""
    return "  ".join(f"{name} {document[name]}" for name in names)


def _history_lines(history: Mapping[str, Any], last_log: str) -> Iterator[str]:
    """Yield lines about one trial: attempts, nodes, failures, and the end of its log."""
    from orchestrator.running.progress import next_attempt

    status_text = history["status"]
    if history["retry_at"] is not None:
        status_text = f"{status_text}, {next_attempt(history['retry_at'])}"
    yield f"{history['trial_id']}: {status_text}"
    if not history["events"]:
        yield history["unreadable"] or "isweep has recorded no attempt at this trial."
    for event in history["events"]:
        when = time.strftime("%F %T", time.localtime(event["at"]))
        line = f"{when}  attempt {event['attempt']} {event['what']}"
        if event.get("node"):
            line += f" on {event['node']}"
        if event.get("said"):
            line += f": {event['said']}"
        yield line
    for attempt, path in history["logs"].items():
        yield f"log of attempt {attempt}: {path}"
    for text in last_log.splitlines()[-MAX_LOG_LINES:]:
        yield f"  {text}"
    if history["failure"] and not history["logs"]:
        yield history["failure"]["traceback"] or ""


def _full_id(workspace: Workspace, text: str) -> str:
    """Return the id of the trial whose id begins or ends with a text.

    Raises:
        ConfigError: No trial id begins or ends with the text, or several trial ids do.
    """
    trial_ids = workspace.plan.trials_by_id
    if text in trial_ids:
        return text
    matches = [name for name in trial_ids if name.startswith(text) or name.endswith(text)]
    if len(matches) == 1:
        return matches[0]
    if not matches:
        hint = f"{did_you_mean(text, trial_ids)}List the ids with `isweep plan SWEEP --all`"
        raise ConfigError(f"No trial id of the sweep begins or ends with {text!r}", hint=hint)
    listed = ", ".join(matches[:3])
    if len(matches) > 3:
        listed += " and others"
    raise ConfigError(
        f"--trial {text} is the beginning or end of {len(matches)} trial ids: {listed}",
        hint="Type more characters of the id",
    )
