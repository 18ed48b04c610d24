"""Printing of commands: data on stdout, everything else on stderr."""

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
"""A piece of output for people: a line, or something that rich lays out."""


class _Data(Console):
    """The console of data."""

    def on_broken_pipe(self) -> NoReturn:
        """Raise for ``main``, which does not count a reader that went away as a failure.

        Rich would exit with 1.
        """
        raise BrokenPipeError


class _Messages(Console):
    """The console of messages."""

    def on_broken_pipe(self) -> None:
        """Fall silent: a run of days must not end because nobody reads its messages."""
        log.warning("nobody reads the messages any more; those that matter are in this log")
        self.quiet = True
        # Other libraries that write to the closed stream must not end the run either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


PIPE_WIDTH = 200
"""Characters per line in a pipe or file, where no terminal would cut or fold a line."""


def _open_standard_streams() -> None:
    """Open standard streams that the caller closed (`>&-`) on the null device.

    Otherwise the next file that is opened, such as a database, gets the number of the stream and
    whatever Ray's processes print.
    """
    while (free := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(free, True)
    os.close(free)
    sys.stdout = sys.stdout or os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", encoding="utf-8", closefd=False)
    for stream in (sys.stdout, sys.stderr):
        # Under cron a stream may be ASCII, and messages have signs such as ±.
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _width(stream: TextIO) -> int | None:
    """Return the width of a stream that is no terminal; None lets rich find a terminal's."""
    if stream.isatty() or "COLUMNS" in os.environ:
        return None
    return PIPE_WIDTH


_open_standard_streams()
stderr = _Messages(stderr=True, highlight=False, emoji=False, width=_width(sys.stderr))
stdout = _Data(highlight=False, emoji=False, width=_width(sys.stdout))


def emit(place: Place, document: object, *outputs: Shown | Iterable[Shown]) -> None:
    """Print a document as JSON with ``--json``, else its form for people.

    Args:
        place: The options of the command.
        document: What ``--json`` prints.
        outputs: Output for people, printed in this order. Iterables are read only if shown.
    """
    waited()
    if place.json:
        sys.stdout.write(f"{json.dumps(document, indent=1, allow_nan=False)}\n")
        return
    for output in outputs:
        if isinstance(output, Shown):
            _print_part(output)
        else:
            for part in output:
                _print_part(part)


WIDE = 10_000
"""Characters of a terminal wide enough for any table, to find the width that a table needs."""


def _print_part(part: Shown) -> None:
    """Print one piece of output so that no word or number is broken."""
    if isinstance(part, str):
        # Not through rich, which would fold a long path.
        sys.stdout.write(f"{_folded(part)}\n")
    elif isinstance(part, Text):
        stdout.print(Text(_folded(part.plain), spans=part.spans), soft_wrap=True)
    elif Measurement.get(stdout, stdout.options.update_width(WIDE), part).minimum <= stdout.width:
        stdout.print(part)
    else:
        rows = "\n".join(_in_words(part))
        sys.stdout.write(f"{_folded(rows)}\n")


def _in_words(table: Table) -> Iterator[str]:
    """Yield the rows of a table that is too wide, with each value after its column's name."""
    if table.title:
        yield str(table.title)
    headers = [str(column.header) for column in table.columns]
    for row in zip(*(column.cells for column in table.columns), strict=True):
        words = []
        for header, value in zip(headers, row, strict=True):
            if value:
                words.append(f"{header} {value}".strip())
        yield Text.from_markup("  ".join(words)).plain


COPIED = re.compile("^[./].*|`[^`]*`|(?<=: )isweep [^;,)]*")
"""A path, or a command in backquotes or after a colon: text that people copy."""


def _folded(text: str) -> str:
    """Break lines between words at a terminal's width, but not inside what people copy."""
    if stdout.width == PIPE_WIDTH:
        return text
    wrapper = TextWrapper(stdout.width, break_long_words=False, break_on_hyphens=False)
    lines = []
    for line in text.splitlines():
        indent = len(line) - len(line.lstrip())
        wrapper.subsequent_indent = " " * (2 + indent)
        # A zero byte holds the words of copied text together.
        unbroken = COPIED.sub(lambda match: match[0].replace(" ", "\0"), line)
        lines.append(wrapper.fill(unbroken).replace("\0", " "))
    return "\n".join(lines)


_waits: list[Progress] = []


@contextmanager
def waiting(text: str, *, slow: bool) -> Iterator[None]:
    """Show on a terminal what the user waits for, with a clock, until the block or :func:`emit`.

    A pipe or file gets one line if the command is ``slow``, and nothing else.
    """
    if slow and not stderr.is_terminal:
        tell(f"{text} …")
    columns = (
        SpinnerColumn("line"),
        TextColumn("{task.description}", markup=False),
        TimeElapsedColumn(),
    )
    display = Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal)
    display.add_task(f"{text} …", total=None)
    _waits.append(display)
    display.start()
    try:
        yield
    finally:
        waited()


def waited() -> None:
    """End the display of :func:`waiting`, because there is something to read."""
    while _waits:
        _waits.pop().stop()


def progress(work: Work) -> RunProgress:
    """Return the display of a run's progress, which prints nothing with ``--quiet``."""
    from orchestrator.running.progress import Progress as RunProgress

    waited()  # the run has a display of its own
    if work.quiet:
        return RunProgress(console=None)
    return RunProgress(console=stderr)


def tell(text: str) -> None:
    """Print one line on stderr."""
    stderr.print(escape(text), soft_wrap=True)


def cell(value: object) -> str:
    """Format a value for a table: four digits of a number, nothing for None."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    return escape(str(value))


def grid(*names: str, numeric_from: int = 99, title: str | None = None) -> Table:
    """Return an empty table.

    Args:
        names: Headings of the columns.
        numeric_from: Index of the first column of numbers, which are right-aligned.
        title: Heading of the table.
    """
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=0, pad_edge=False)
    for name in names[:numeric_from]:
        table.add_column(name, justify="left", overflow="fold")
    for name in names[numeric_from:]:
        table.add_column(name, justify="right", overflow="fold")
    return table


def report_tables(*tables: ReportTable) -> Iterator[Shown]:
    """Yield tables of the report laid out for a terminal, each followed by its note."""
    for table in tables:
        header = map(escape, table.header)
        layout = grid(*header, numeric_from=table.numeric_from, title=escape(table.title))
        for row in table.rows:
            layout.add_row(*map(escape, row))
        yield layout
        if table.note:
            yield table.note


def written(path: Path, write: Callable[[Path], object], counted: str = "") -> None:
    """Write a file that the user named, and print its path."""
    write(path)
    tell(f"wrote {counted}{path}")
