"""How commands print: data on stdout, everything else on stderr."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TextIO

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from orchestrator.cli.options import Place
from search_spaces.errors import ConfigError

if TYPE_CHECKING:
    from orchestrator.analysis.tables import Table as Plain


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


def _width(stream: TextIO) -> int | None:
    return None if stream.isatty() or "COLUMNS" in os.environ else PIPE_WIDTH


_open_standard_streams()
stderr = _Messages(stderr=True, highlight=False, width=_width(sys.stderr))
stdout = _Data(highlight=False, width=_width(sys.stdout))


def emit(place: Place, document: object, show: Callable[[], None]) -> None:
    """Print a document as JSON with ``--json``, else as ``show`` does, for people."""
    if place.json:
        line(json.dumps(document, indent=1, allow_nan=False))
    else:
        show()


def line(text: str) -> None:
    """Print one line of data; not through rich, which would fold a long path at the terminal's width."""
    sys.stdout.write(f"{text}\n")


def cell(value: object) -> str:
    """Spell a value for a table: four digits of a number, nothing for None."""
    return f"{value:.4g}" if isinstance(value, float) else escape("" if value is None else str(value))


def grid(*names: str, numeric_from: int | None = None, title: str | None = None) -> Table:
    """Return a table that folds what a narrow terminal has no room for: half a number is another number.

    Args:
        names: Of the columns.
        numeric_from: Columns from here on hold numbers, which stand to the right.
        title: Above it.
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


def written(path: Path, write: Callable[[Path], object], what: str = "") -> None:
    """Write a file that the user named, and say so.

    Raises:
        ConfigError: when it cannot be written.
    """
    try:
        write(path)
    except OSError as error:
        raise ConfigError("The file must be one that can be written", f"{path}: {error}") from None
    stderr.print(f"wrote {what}{escape(str(path))}", soft_wrap=True)
