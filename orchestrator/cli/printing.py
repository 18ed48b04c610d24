"""How commands print: data on stdout, everything else on stderr."""

from __future__ import annotations

import difflib
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from orchestrator.cli.options import Place
from search_spaces.errors import ConfigError, CorruptStoreError

if TYPE_CHECKING:
    from orchestrator.analysis.tables import Table as Plain
    from orchestrator.planning.plan import Workspace


log = logging.getLogger(__name__)


class _Data(Console):
    def on_broken_pipe(self) -> NoReturn:
        """Leave it to ``main``, for which a reader that went away is no failure; rich exits with 1."""
        raise BrokenPipeError


class _Messages(Console):
    def on_broken_pipe(self) -> None:
        """Fall silent: a run of days must not end because nobody reads its messages any more."""
        log.warning("nobody reads the messages any more; those that matter are in this log")
        self.quiet = True
        # What others write there must not end it either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


PIPE_WIDTH = 200
"""Of what another program reads or a file keeps: no terminal, whose width would cut or fold it, is there."""


def _open_standard_streams() -> None:
    """Lead those of 0, 1 and 2 that are closed (`>&-`) to nowhere.

    The next file that is opened, a database among them, would have the number, and get what Ray's processes
    print.
    """
    while (free := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(free, True)
    os.close(free)
    sys.stdout = sys.stdout or os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", encoding="utf-8", closefd=False)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # under cron it may be ASCII, and a message has a ± in it
            stream.reconfigure(errors="backslashreplace")


def _width(stream: TextIO) -> int | None:
    return None if stream.isatty() or "COLUMNS" in os.environ else PIPE_WIDTH


_open_standard_streams()
stderr = _Messages(stderr=True, highlight=False, width=_width(sys.stderr))
stdout = _Data(highlight=False, width=_width(sys.stdout))


def emit(place: Place, document: object, show: Callable[[], None]) -> None:
    """Print a document as JSON with ``--json``, else as ``show`` does, for people."""
    waited()
    if place.json:
        line(json.dumps(document, indent=1, allow_nan=False))
    else:
        show()


_waits: list[Progress] = []


@contextmanager
def waiting(text: str) -> Iterator[None]:
    """Say on a terminal what is waited for, with a clock that moves, until the block ends or :func:`emit`.

    Nothing of it goes to a pipe or file.
    """
    columns = (SpinnerColumn("line"), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    shown = Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal)
    shown.add_task(f"{text} …", total=None)
    _waits.append(shown)
    shown.start()
    try:
        yield
    finally:
        waited()


def waited() -> None:
    """End what :func:`waiting` shows: there is something to read."""
    while _waits:
        _waits.pop().stop()


def line(*texts: str) -> None:
    """Print lines of data; not through rich, which would fold a long path at the terminal's width."""
    for text in texts:
        sys.stdout.write(f"{text}\n")


def tell(text: str) -> None:
    """Print one line that is no data."""
    stderr.print(escape(text), soft_wrap=True)


def cell(value: object) -> str:
    """Spell a value for a table: four digits of a number, nothing for None."""
    return f"{value:.4g}" if isinstance(value, float) else escape("" if value is None else str(value))


def grid(*names: str, numeric_from: int | None = None, title: str | None = None) -> Table:
    """Return a table that folds what a narrow terminal has no room for: half a number is another number.

    Columns from ``numeric_from`` on hold numbers, which stand to the right.
    """
    table = Table(title=title, title_justify="left")
    for place, name in enumerate(names):
        is_number = numeric_from is not None and place >= numeric_from
        table.add_column(name, justify="right" if is_number else "left", overflow="fold")
    return table


def text_table(table: Plain) -> Table:
    """Lay out a table of the report for a terminal."""
    shown = grid(*map(escape, table.header), numeric_from=table.numeric_from, title=escape(table.title))
    for row in table.rows:
        shown.add_row(*map(escape, row))
    return shown


def show_tables(*tables: Plain) -> None:
    """Print tables of the report, each with its note."""
    for table in tables:
        stdout.print(text_table(table))
        line(table.note)


def written(path: Path, write: Callable[[Path], object], what: str = "") -> None:
    """Write a file that the user named, and say so."""
    try:
        write(path)
    except OSError as error:
        raise ConfigError("The file must be one that can be written", f"{path}: {error}") from None
    tell(f"wrote {what}{path}")


# The story of one cell, as `isweep status PRESET --cell ID` tells it.

LOG_LINES = 20
"""Of the last attempt's log, for people; the document has the path."""


def show_cell(workspace: Workspace, asked: str, place: Place) -> None:
    """Print what happened to one cell: its attempts, where they ran, how they ended, where their logs lie."""
    from orchestrator.results.state import read_state
    from orchestrator.results.store import ResultStore
    from orchestrator.running.progress import running_trials

    trial_id = _named(workspace, asked)
    state = read_state(workspace, running_trials(workspace), look=True)
    store, problem = ResultStore(workspace.results_url), ""
    try:
        story = store.story(trial_id)
    except CorruptStoreError as error:
        story, problem = [], str(error)
    said = {number: store.log(trial_id, number) for number in sorted({event.attempt for event in story})}
    logs = {number: store.log_path(trial_id, number) for number, text in said.items() if text is not None}
    failure = state.failures.get(trial_id)
    document: dict[str, Any] = {
        "trial_id": trial_id,
        "status": str(state.status(trial_id)),
        "events": [event.plain() for event in story],
        "logs": {str(number): path for number, path in logs.items()},
        "failure": None if failure is None else failure.row() | {"traceback": failure.failure.traceback},
        "unreadable": problem,
    }

    def show() -> None:
        line(f"{trial_id}: {document['status']}", *filter(None, [problem]))
        if not story and not problem:
            line("no attempt at it is recorded")
        for event in story:
            where, said_then = f" on {event.node}" * bool(event.node), f": {event.said}" * bool(event.said)
            when = time.strftime("%F %T", time.localtime(event.at))
            line(f"{when}  attempt {event.attempt} {event.what}{where}{said_then}")
        line(*(f"log of attempt {number}: {path}" for number, path in logs.items()))
        if logs:
            line(*(f"  {text}" for text in (said[max(logs)] or "").splitlines()[-LOG_LINES:]))
        elif failure is not None and failure.failure.traceback:
            line(failure.failure.traceback)

    emit(place, document, show)


def _named(workspace: Workspace, asked: str) -> str:
    """Return the id that is meant: in full, or as much of its beginning or end as only it has."""
    planned = workspace.plan.trials_by_id
    if asked in planned:
        return asked
    matching = [one for one in planned if one.startswith(asked) or one.endswith(asked)]
    if len(matching) == 1:
        return matching[0]
    if matching:
        found = f"{asked}: {', '.join(matching[:3])}{' …' * (len(matching) > 3)}"
        raise ConfigError(f"--cell must name one cell, not {len(matching)}", found, "write more of the id")
    near = difflib.get_close_matches(asked, planned, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ConfigError(
        "--cell must name a cell of the sweep", repr(asked), f"{hint}isweep plan --all lists them"
    )


# What commands about sweeps list for people: grids, sweeps of a root, failures by reason.

COUNTS = ("planned", "done", "failed", "running", "pending")
MAX_NAMED = 3
"""Trials of one failure that are named; the others are counted."""


def plan_table(rows: Sequence[Mapping[str, Any]], *, all_: bool) -> Table:
    """Lay out a plan: a line per model and dataset, or one per trial."""
    from orchestrator.planning.plan import CellStatus

    if all_:
        names = ("model", "dataset", "class_pair", "train_size", "seed", "recipe", "status")
        table = grid(*names)
        for row in rows:
            table.add_row(*(cell(row[name]) for name in names))
        return table
    table = grid("model", "dataset", "class pairs", "train sizes", "seeds", "trials", "done")
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["model"], row["dataset"]), []).append(row)
    for (model, dataset), group in groups.items():
        done = sum(row["status"] == CellStatus.DONE for row in group)
        spans = (_span(row[name] for row in group) for name in ("class_pair", "train_size", "seed"))
        table.add_row(cell(model), cell(dataset), *map(escape, spans), str(len(group)), str(done))
    return table


def _span(values: Iterable[Any]) -> str:
    """Spell the distinct values: all where they are few, else how many from where to where."""
    distinct = list(dict.fromkeys(values))
    if len(distinct) <= MAX_NAMED:
        return ", ".join(map(str, distinct))
    return f"{len(distinct)}: {distinct[0]} to {distinct[-1]}"


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
    from orchestrator.running.progress import RunningTrial, spelled

    if document["now"]:
        yield f"now: {document['now']}"
    for name, said in document["running_trials"].items():
        trial = RunningTrial.model_validate(said)
        yield f"running {name}  {trial.text(spelled(time.time() - trial.started_at))}"


def watch(look: Callable[[], Mapping[str, Any]], interval: float) -> None:
    """Show counts and running trials anew every ``interval`` seconds, until no run works on the sweep.

    Into a pipe or file, a line whenever they have changed; on stderr, since stdout is for data.

    Raises:
        KeyboardInterrupt: when it is stopped, which stops no run.
    """
    said, shown = "", Live(console=stdout, transient=True, auto_refresh=False)
    try:
        with shown if stdout.is_terminal else nullcontext():
            while (document := look())["now"] and not stderr.quiet:  # as once nobody reads it any more
                now = f"{_counted(document)}  {document['now']}"
                if stdout.is_terminal:
                    shown.update(_watched(document), refresh=True)
                elif now != said:
                    tell(now)
                said = now
                time.sleep(interval)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("Nothing but the watching: the run goes on.") from None


def _counted(document: Mapping[str, Any]) -> str:
    return "  ".join(f"{name} {document[name]}" for name in COUNTS)


def _watched(document: Mapping[str, Any]) -> Text:
    # Folded, not cut: the time that is left stands at the end.
    return Text("\n".join([_counted(document), *running_lines(document)]))
