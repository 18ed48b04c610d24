"""How commands print: data on stdout, everything else on stderr."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from textwrap import TextWrapper
from typing import TYPE_CHECKING, NoReturn, TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from orchestrator.cli.options import Place, Work

if TYPE_CHECKING:
    from orchestrator.analysis.tables.layout import Table as ReportTable
    from orchestrator.running.progress import Progress as RunProgress

log = logging.getLogger(__name__)

Shown = str | Table | Text
"""What people see: a line, or what rich lays out."""


class _Data(Console):
    def on_broken_pipe(self) -> NoReturn:
        """Leave it to ``main``, for which a reader that went away is no failure; rich exits with
        1.
        """
        raise BrokenPipeError


class _Messages(Console):
    def on_broken_pipe(self) -> None:
        """Fall silent: a run of days must not end because nobody reads its messages any more."""
        log.warning("nobody reads the messages any more; those that matter are in this log")
        self.quiet = True
        # What others write there must not end it either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


PIPE_WIDTH = 200
"""Of what another program reads or a file keeps: no terminal, whose width would cut or fold it, is
there."""


def _open_standard_streams() -> None:
    """Lead those of 0, 1 and 2 that are closed (`>&-`) to nowhere.

    The next file opened, such as a database, would have the number and get what Ray's processes
    print.
    """
    while (free := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(free, True)
    os.close(free)
    sys.stdout = sys.stdout or os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", encoding="utf-8", closefd=False)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(
            stream, TextIOWrapper
        ):  # under cron it may be ASCII, and a message has a ± in it
            stream.reconfigure(errors="backslashreplace")


def _width(stream: TextIO) -> int | None:
    return None if stream.isatty() or "COLUMNS" in os.environ else PIPE_WIDTH


_open_standard_streams()
stderr = _Messages(stderr=True, highlight=False, emoji=False, width=_width(sys.stderr))
stdout = _Data(highlight=False, emoji=False, width=_width(sys.stdout))


def emit(place: Place, document: object, *shown: Shown | Iterable[Shown]) -> None:
    """Print a document as JSON with ``--json``, else what people see of it, which is only then
    made.
    """
    waited()
    if place.json:
        sys.stdout.write(f"{json.dumps(document, indent=1, allow_nan=False)}\n")
        return
    for one in shown:
        for part in (one,) if isinstance(one, Shown) else one:
            if isinstance(part, str):
                sys.stdout.write(
                    f"{_folded(part)}\n"
                )  # not through rich, which would fold a long path
            elif isinstance(part, Text):  # its style is that of the first words
                stdout.print(Text(_folded(part.plain), spans=part.spans), soft_wrap=True)
            elif (
                Measurement.get(stdout, stdout.options.update_width(10_000), part).minimum
                <= stdout.width
            ):
                stdout.print(part)
            else:  # a word or number would fold in the middle
                sys.stdout.write(_folded("\n".join(_in_words(part))) + "\n")


def _in_words(table: Table) -> Iterator[str]:
    """Yield the rows of a table that a terminal is too narrow for, each value behind its column's
    name.
    """
    yield from filter(None, [table.title and str(table.title)])
    for row in zip(*(column.cells for column in table.columns), strict=True):
        pairs = zip((column.header for column in table.columns), row, strict=True)
        yield Text.from_markup(
            "  ".join(f"{name} {value}".strip() for name, value in pairs if value)
        ).plain


COPIED = re.compile("^[./].*|(?<=: )isweep [^;,)]*")
"""A path, or a command behind a colon."""


def _folded(text: str) -> str:
    """Break lines between words at a terminal's width, but none of what is copied from them."""
    if stdout.width == PIPE_WIDTH:
        return text
    fold, folded = (
        TextWrapper(stdout.width, break_long_words=False, break_on_hyphens=False),
        list[str](),
    )
    for one in text.splitlines():
        fold.subsequent_indent = " " * (2 + len(one) - len(one.lstrip()))
        kept = COPIED.sub(lambda found: found[0].replace(" ", "\0"), one)
        folded.append(fold.fill(kept).replace("\0", " "))
    return "\n".join(folded)


_waits: list[Progress] = []


@contextmanager
def waiting(text: str, *, slow: bool) -> Iterator[None]:
    """Say on a terminal what is waited for, with a clock that moves, until the block ends or
    :func:`emit`.

    Into a pipe or file goes a line where it is ``slow``, and nothing else.
    """
    if slow and not stderr.is_terminal:
        tell(f"{text} …")
    columns = (
        SpinnerColumn("line"),
        TextColumn("{task.description}", markup=False),
        TimeElapsedColumn(),
    )
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


def progress(work: Work) -> RunProgress:
    """Return what shows how far a run is."""
    from orchestrator.running.progress import Progress as RunProgress

    waited()  # it has a display of its own
    return RunProgress(console=None if work.quiet else stderr)


def tell(text: str) -> None:
    """Print one line that is no data."""
    stderr.print(escape(text), soft_wrap=True)


def cell(value: object) -> str:
    """Spell a value for a table: four digits of a number, nothing for None."""
    return (
        f"{value:.4g}" if isinstance(value, float) else escape("" if value is None else str(value))
    )


def grid(*names: str, numeric_from: int = 99, title: str | None = None) -> Table:
    """Return a table; :func:`emit` shows it as words where a terminal has no room: half a number is
    another.

    Columns from ``numeric_from`` on hold numbers, which stand to the right.
    """
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=0, pad_edge=False)
    for place, name in enumerate(names):
        table.add_column(
            name, justify="right" if place >= numeric_from else "left", overflow="fold"
        )
    return table


def report_tables(*tables: ReportTable) -> Iterator[Shown]:
    """Lay out tables of the report for a terminal, each with its note."""
    for table in tables:
        shown = grid(
            *map(escape, table.header), numeric_from=table.numeric_from, title=escape(table.title)
        )
        for row in table.rows:
            shown.add_row(*map(escape, row))
        yield shown
        yield from filter(None, [table.note])


def written(path: Path, write: Callable[[Path], object], what: str = "") -> None:
    """Write a file that the user named, and say so."""
    write(path)
    tell(f"wrote {what}{path}")
