"""What commands about sweeps list for people: grids, sweeps of a root, failures by reason."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.live import Live
from rich.markup import escape
from rich.text import Text

from orchestrator.cli.options import Place
from orchestrator.cli.printing import cell, emit, grid, stderr, stdout

COUNTS = ("planned", "done", "failed", "running", "pending")
MAX_NAMED = 3
"""Trials of one failure that are named; the others are counted."""


def emit_grid(rows: Sequence[Mapping[str, Any]], *, all_: bool) -> None:
    """Print a plan: a line per model and dataset, or one per trial."""
    from orchestrator.planning.plan import CellStatus

    if all_:
        names = ("model", "dataset", "class_pair", "train_size", "seed", "recipe", "status")
        table = grid(*names)
        for row in rows:
            table.add_row(*(cell(row[name]) for name in names))
    else:
        table = grid("model", "dataset", "class pairs", "train sizes", "seeds", "trials", "done")
        groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
        for row in rows:
            groups.setdefault((row["model"], row["dataset"]), []).append(row)
        for (model, dataset), group in groups.items():
            done = sum(row["status"] == CellStatus.DONE for row in group)
            spans = (_span(row[name] for row in group) for name in ("class_pair", "train_size", "seed"))
            table.add_row(cell(model), cell(dataset), *map(escape, spans), str(len(group)), str(done))
    stdout.print(table)


def _span(values: Iterable[Any]) -> str:
    """Spell the distinct values: all where they are few, else how many from where to where."""
    distinct = list(dict.fromkeys(values))
    if len(distinct) <= MAX_NAMED:
        return ", ".join(map(str, distinct))
    return f"{len(distinct)}: {distinct[0]} to {distinct[-1]}"


def emit_sweeps(place: Place, documents: list[dict[str, Any]]) -> None:
    """Print the sweeps of a root, a line each."""

    def show() -> None:
        if not documents:
            start = f"no sweep ran below this root yet; start with: {place.hint('run', 'demo')}"
            stdout.print(escape(start), soft_wrap=True)
            return
        table = grid("sweep", *COUNTS)
        for document in documents:
            table.add_row(cell(document["sweep"]), *(str(document[name]) for name in COUNTS))
        stdout.print(table)
        for document in documents:
            if document["now"]:
                stdout.print(escape(f"{document['sweep']}: {document['now']}"), soft_wrap=True)

    emit(place, documents, show)


def grouped_failures(failures: Iterable[Mapping[str, str]]) -> Iterator[str]:
    """Yield a line per kind and message of failure, with the trials it befell: the commonest first."""
    groups: dict[tuple[str, str], list[str]] = {}
    for failure in failures:
        groups.setdefault((failure["kind"], failure["message"]), []).append(failure["trial_id"])
    for (kind, message), trials in sorted(groups.items(), key=lambda item: -len(item[1])):
        named = ", ".join(trials[:MAX_NAMED])
        more = f" and {len(trials) - MAX_NAMED} more" if len(trials) > MAX_NAMED else ""
        yield f"failed ({kind}) {len(trials)} ×: {message}  [{named}{more}]"


def running_lines(document: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a run does now, and a line per trial that runs."""
    from orchestrator.running.run_state import RunningTrial, spelled

    if document["now"]:
        yield f"now: {document['now']}"
    for name, said in document["running_trials"].items():
        trial = RunningTrial.model_validate(said)
        yield f"running {name}  {trial.text(spelled(time.time() - trial.started_at))}"


def watch(look: Callable[[], Mapping[str, Any]], interval: float) -> None:
    """Show counts and running trials anew every ``interval`` seconds, until no run works on the sweep.

    Raises:
        KeyboardInterrupt: when it is stopped, which stops no run.
    """
    try:
        _watch_terminal(look, interval) if stdout.is_terminal else _watch_lines(look, interval)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("Nothing but the watching: the run goes on.") from None


def _watch_terminal(look: Callable[[], Mapping[str, Any]], interval: float) -> None:
    document = look()
    with Live(_watched(document), console=stdout, transient=True, auto_refresh=False) as live:
        while document["now"]:
            live.update(_watched(document), refresh=True)
            time.sleep(interval)
            document = look()


def _watch_lines(look: Callable[[], Mapping[str, Any]], interval: float) -> None:
    """Say in a line where the sweep stands whenever that has changed; on stderr, since stdout is for data."""
    said = ""
    while (document := look())["now"] and not stderr.quiet:  # as it is once nobody reads it any more
        line = f"{_counted(document)}  {document['now']}"
        if line != said:
            stderr.print(escape(line), soft_wrap=True)
        said = line
        time.sleep(interval)


def _counted(document: Mapping[str, Any]) -> str:
    return "  ".join(f"{name} {document[name]}" for name in COUNTS)


def _watched(document: Mapping[str, Any]) -> Text:
    # Folded, not cut: the time that is left stands at the end.
    return Text("\n".join([_counted(document), *running_lines(document)]))
