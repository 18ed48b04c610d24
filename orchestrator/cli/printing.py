"""Output of commands: they print data on stdout and everything else on stderr."""

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
"""A piece of output for people: a line, a table of rich, or a text of rich."""


class _Data(Console):
    """The console of stdout."""

    def on_broken_pipe(self) -> NoReturn:
        """Raise an error that ``main`` catches, because a closed pipe is not a failure.

        By default, rich would end the process with exit code 1.
        """
        raise BrokenPipeError


class _Messages(Console):
    """The console of stderr."""

    def on_broken_pipe(self) -> None:
        """Print no further messages. A closed pipe must not end a run of several days."""
        log.warning(
            "The program that read stderr has ended. Important messages of isweep are in this log."
        )
        self.quiet = True
        # If another library writes to the closed stream, the run must not end either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


PIPE_WIDTH = 200
"""Number of characters per line in a pipe or file. It is large, so that no line is wrapped."""
USUAL_WIDTH = 80
"""Number of characters per line if the environment variable COLUMNS has no usable value."""
MIN_WIDTH = 20
"""Smallest value of COLUMNS that isweep uses. Some programs set COLUMNS to 0."""


def _open_standard_streams() -> None:
    """If the caller closed a standard stream (`>&-`), open it on the null device.

    Otherwise the next file that isweep opens, for example a database, would get the stream's
    number. Ray's processes would then print into this file.
    """
    while (free := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(free, True)
    os.close(free)
    sys.stdout = sys.stdout or os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", encoding="utf-8", closefd=False)
    for stream in (sys.stdout, sys.stderr):
        # If cron runs isweep, the encoding of a stream may be ASCII. But messages contain
        # characters such as ±.
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _width(stream: TextIO) -> int | None:
    """Return the number of characters per line of a stream.

    None for a terminal: rich reads its width.
    """
    columns = os.environ.get("COLUMNS")
    if columns is None:
        return None if stream.isatty() else PIPE_WIDTH
    if not columns.isdecimal() or int(columns) < MIN_WIDTH:
        return USUAL_WIDTH
    return int(columns)


_open_standard_streams()
stderr = _Messages(stderr=True, highlight=False, emoji=False, width=_width(sys.stderr))
stdout = _Data(highlight=False, emoji=False, width=_width(sys.stdout))


def emit(place: Place, document: object, *outputs: Shown | Iterable[Shown]) -> None:
    """Print a document as JSON if the user gave ``--json``. Otherwise print the output for people.

    Args:
        place: The options of the command.
        document: The data for ``--json``.
        outputs: Output for people, in this order. An iterable is consumed only if it is
            printed.
    """
    end_waiting()
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
"""Number of characters per line with which isweep measures the width that a table needs."""


def _print_part(part: Shown) -> None:
    """Print one piece of output. Words and numbers are not broken."""
    if isinstance(part, str):
        # Rich would break long paths, so isweep prints lines without rich.
        sys.stdout.write(f"{_wrapped(part)}\n")
    elif isinstance(part, Text):
        stdout.print(Text(_wrapped(part.plain), spans=part.spans), soft_wrap=True)
    elif Measurement.get(stdout, stdout.options.update_width(WIDE), part).minimum <= stdout.width:
        stdout.print(part)
    else:
        rows = "\n".join(_rows_as_lines(part))
        sys.stdout.write(f"{_wrapped(rows)}\n")


def _rows_as_lines(table: Table) -> Iterator[str]:
    """Yield the rows of a table as lines. Before each value is the name of its column."""
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
"""Pattern of text that people copy: a path, or a command in backquotes or after a colon."""


def _wrapped(text: str) -> str:
    """Wrap lines at the width of the terminal, but not inside paths and commands."""
    if stdout.width == PIPE_WIDTH:
        return text
    wrapper = TextWrapper(stdout.width, break_long_words=False, break_on_hyphens=False)
    lines = []
    for line in text.splitlines():
        indent = len(line) - len(line.lstrip())
        wrapper.subsequent_indent = " " * (2 + indent)
        # In text that people copy, zero bytes replace the spaces for a moment, so that the
        # text is not wrapped.
        unbroken = COPIED.sub(lambda match: match[0].replace(" ", "\0"), line)
        lines.append(wrapper.fill(unbroken).replace("\0", " "))
    return "\n".join(lines)


_waits: list[Progress] = []


@contextmanager
def waiting(text: str, *, slow: bool) -> Iterator[None]:
    """Show a text and the elapsed time on a terminal until the block ends or prints output.

    If the output is a pipe or file, print one line if the command is ``slow``.
    """
    if slow and not stderr.is_terminal:
        print_message(f"{text} …")
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
        end_waiting()


def end_waiting() -> None:
    """End the display of :func:`waiting`. This must happen before output is printed."""
    while _waits:
        _waits.pop().stop()


def progress(work: Work) -> RunProgress:
    """Return the display of a run's progress. If the user gave ``--quiet``, it prints nothing."""
    from orchestrator.running.progress import Progress as RunProgress

    end_waiting()  # the run has a display of its own
    if work.quiet:
        return RunProgress(console=None)
    return RunProgress(console=stderr)


def print_message(text: str) -> None:
    """Print one line on stderr."""
    stderr.print(escape(text), soft_wrap=True)


def cell(value: object) -> str:
    """Return a value as text for a table. A number has four digits, and None is empty."""
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
    """Yield tables of the report in a layout for a terminal. Each table is followed by its note."""
    for table in tables:
        header = map(escape, table.header)
        layout = grid(*header, numeric_from=table.numeric_from, title=escape(table.title))
        for row in table.rows:
            layout.add_row(*map(escape, row))
        yield layout
        if table.note:
            yield table.note


def write_file(path: Path, write: Callable[[Path], object], counted: str = "") -> None:
    """Write a file whose path is an option of the command, and print the path."""
    write(path)
    print_message(f"wrote {counted}{path}")
