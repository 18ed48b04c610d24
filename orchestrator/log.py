"""The log of all commands, below the root: the terminal is for the user, the file for whoever digs."""

from __future__ import annotations

import logging
import logging.handlers
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path

from orchestrator.planning.paths import RootPaths, without_secrets
from search_spaces.errors import SweepError
from tasks.atomic import without_waiting

MAX_BYTES, MAX_WAITING = 5_000_000, 1000


@contextmanager
def root_log(root: str | None) -> Iterator[None]:
    """Send all logs and warnings of a block to the root's log, once there is a root."""
    handler: logging.Handler = logging.NullHandler()
    with suppress(SweepError):  # the command says what is wrong with the root
        handler = _RootLog(RootPaths.at(root).log)
    handler.setFormatter(_Discreet("%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s"))
    top, fonts = logging.getLogger(), logging.getLogger("fontTools")
    levels = {top: top.level, fonts: fonts.level}
    top.addHandler(handler)
    top.setLevel(logging.INFO)
    fonts.setLevel(logging.WARNING)
    logging.captureWarnings(True)
    try:
        yield
    except BaseException:
        top.exception("ends with a bug")
        raise
    finally:
        logging.captureWarnings(False)
        top.removeHandler(handler)
        handler.close()
        for logger, level in levels.items():
            logger.setLevel(level)


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
