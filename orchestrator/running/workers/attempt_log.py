"""The log of an attempt: the log messages, warnings and output of the worker's process."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import warnings
from collections.abc import Iterator
from typing import Any, TextIO

from orchestrator.planning.redaction import without_secrets

HEAD_CHARACTERS = 16_000
"""Number of characters that are stored from the beginning of a log. The beginning contains
versions, settings and the first error."""
TAIL_CHARACTERS = 48_000
"""Number of characters that are stored from the end of a log. The end shows why the attempt
ended."""


class AttemptLog(io.TextIOBase):
    """A stream that stores the beginning and the end of everything that an attempt writes."""

    def __init__(self) -> None:
        self._head = ""
        self._tail = ""
        self._num_left_out = 0

    def write(self, text: str) -> int:
        """Add text, and return its length."""
        room = HEAD_CHARACTERS - len(self._head)
        self._head += text[:room]
        self._tail += text[room:]
        surplus = len(self._tail) - TAIL_CHARACTERS
        # Shortening copies the text, so the text is not shortened at every write.
        if surplus > TAIL_CHARACTERS // 4:
            self._tail = self._tail[surplus:]
            self._num_left_out += surplus
        return len(text)

    def text(self) -> str:
        """Return the log without secrets. If its middle is left out, a line says how many
        characters are missing.
        """
        gap = ""
        if self._num_left_out:
            gap = f"\n… {self._num_left_out:,} characters are left out …\n"
        return without_secrets(self._head + gap + self._tail)


class _Tee(io.TextIOBase):
    """A stream that writes to the original stream and to an attempt's log.

    User code can use all methods of the original stream. Only bytes that are written to
    ``buffer`` or to the file descriptor are missing in the log.
    """

    def __init__(self, stream: TextIO, attempt_log: AttemptLog) -> None:
        self._stream = stream
        self._log = attempt_log

    def write(self, text: str) -> int:
        self._log.write(text)
        return self._stream.write(text)

    def flush(self) -> None:
        self._stream.flush()

    def fileno(self) -> int:
        return self._stream.fileno()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def writable(self) -> bool:
        return True

    @property
    def buffer(self) -> Any:
        return self._stream.buffer

    @property
    def encoding(self) -> str:  # type: ignore[override]  # typeshed has a plain attribute
        return self._stream.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]  # typeshed has a plain attribute
        return self._stream.errors


def _log_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Write a Python warning to the log."""
    text = warnings.formatwarning(message, category, filename, lineno, line)
    logging.getLogger("py.warnings").warning("%s", text)


@contextlib.contextmanager
def recorded() -> Iterator[AttemptLog]:
    """Record the log messages, warnings and output of this process during a ``with`` block."""
    attempt_log = AttemptLog()
    root = logging.getLogger()
    level = root.level
    handler = logging.StreamHandler(attempt_log)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root.addHandler(handler)
    root.setLevel(min(level, logging.INFO) if level else logging.INFO)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(_Tee(sys.stdout, attempt_log)),
            contextlib.redirect_stderr(_Tee(sys.stderr, attempt_log)),
        ):
            warnings.showwarning = _log_warning
            yield attempt_log
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
