"""The log of all commands, below the root: the terminal is for the user, the file for whoever digs."""

from __future__ import annotations

import logging
import logging.handlers
import shlex
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from io import TextIOWrapper
from pathlib import Path

from orchestrator.planning.paths import RootPaths
from orchestrator.planning.redaction import without_secrets
from search_spaces.errors import SweepError
from tasks.atomic import without_waiting

log = logging.getLogger(__name__)

MAX_BYTES = 5_000_000
MAX_WAITING = 1000


@dataclass
class Ending:
    """How a command ended; None for a bug, whose traceback is in the log."""

    exit_code: int | None = None


@contextmanager
def command_log(root: str | None, words: Sequence[str]) -> Iterator[Ending]:
    """Send all logs and warnings of a command to the root's log, with its start and how it ended.

    A root that does not exist is not made; when the command makes it, what was logged before is kept.
    """
    handler = _handler(root)
    handler.setFormatter(_Discreet("%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s"))
    top, fonts = logging.getLogger(), logging.getLogger("fontTools")
    levels = (top.level, fonts.level)
    top.addHandler(handler)
    top.setLevel(logging.INFO)
    fonts.setLevel(logging.WARNING)
    logging.captureWarnings(True)
    ending = Ending()
    try:
        log.info("isweep %s starts: %s", metadata.version("isweep"), shlex.join(["isweep", *words]))
        yield ending
    except BaseException:
        log.exception("ends with a bug")
        raise
    finally:
        if ending.exit_code is not None:
            log.info("ends with exit code %d", ending.exit_code)
        logging.captureWarnings(False)
        top.removeHandler(handler)
        handler.close()
        top.setLevel(levels[0])
        fonts.setLevel(levels[1])


def _handler(root: str | None) -> logging.Handler:
    try:
        return _RootLog(RootPaths.at(root).log)
    except SweepError:
        return logging.NullHandler()  # The command says what is wrong with the root.


class _Discreet(logging.Formatter):
    """Leaves secrets out of every line, tracebacks included."""

    def format(self, record: logging.LogRecord) -> str:
        return without_secrets(super().format(record))


class _RootLog(logging.handlers.RotatingFileHandler):
    """Writes once its folder exists; a log that cannot be written stops no command."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, maxBytes=MAX_BYTES, backupCount=3, delay=True, encoding="utf-8")
        self.folder = path.parent
        self.waiting: deque[logging.LogRecord] = deque(maxlen=MAX_WAITING)

    def emit(self, record: logging.LogRecord) -> None:
        self.waiting.append(record)
        while self.waiting and self.folder.is_dir():
            super().emit(self.waiting.popleft())

    def _open(self) -> TextIOWrapper:
        """Open the file; a pipe in its place is an error, where opening it would wait for a reader."""
        return open(self.baseFilename, "a", encoding=self.encoding, opener=without_waiting)

    def handleError(self, record: logging.LogRecord) -> None:
        """Stay silent: the file is on a full disk or another's, and the terminal is for the user."""
