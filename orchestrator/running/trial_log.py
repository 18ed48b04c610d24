"""What one attempt logs, warns of and prints, so that it can be read when its process and node are gone."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
from collections.abc import Iterator
from typing import TextIO

from orchestrator.planning.redaction import without_secrets

HEAD_CHARACTERS = 16_000
TAIL_CHARACTERS = 48_000


class TrialLog:
    """The first and last lines of what was said; what lies between is counted."""

    def __init__(self) -> None:
        self._head, self._tail, self._left_out = "", "", 0

    def add(self, text: str) -> None:
        """Take more."""
        room = HEAD_CHARACTERS - len(self._head)
        self._head += text[:room]
        self._tail += text[room:] if room > 0 else text
        surplus = len(self._tail) - TAIL_CHARACTERS
        if surplus > TAIL_CHARACTERS // 4:
            self._tail = self._tail[surplus:]
            self._left_out += surplus

    def text(self) -> str:
        """Return it, without secrets."""
        gap = f"\n… {self._left_out:,} characters are left out …\n" if self._left_out else ""
        return without_secrets(self._head + gap + self._tail)


@contextlib.contextmanager
def recorded() -> Iterator[TrialLog]:
    """Copy what this process logs, warns of and prints while the block lasts."""
    found, root = TrialLog(), logging.getLogger()
    handler = logging.StreamHandler(_Copy(found))
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    level = root.level
    root.addHandler(handler)
    root.setLevel(min(level, logging.INFO) if level else logging.INFO)
    logging.captureWarnings(True)
    try:
        with (
            contextlib.redirect_stdout(_Copy(found, sys.stdout)),
            contextlib.redirect_stderr(_Copy(found, sys.stderr)),
        ):
            yield found
    finally:
        logging.captureWarnings(False)
        root.removeHandler(handler)
        root.setLevel(level)


class _Copy(io.TextIOBase):
    """A stream that also goes into a log."""

    def __init__(self, found: TrialLog, stream: TextIO | None = None) -> None:
        self._found, self._stream = found, stream

    def write(self, text: str) -> int:
        self._found.add(text)
        return len(text) if self._stream is None else self._stream.write(text)

    def flush(self) -> None:
        if self._stream is not None:
            self._stream.flush()
