"""Storage that is full or away pauses a sweep instead of ending it: the write is tried until it is taken."""

from __future__ import annotations

import errno
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from search_spaces.errors import SetupError

log = logging.getLogger(__name__)
T = TypeVar("T")

FULL = frozenset((errno.ENOSPC, errno.EDQUOT))
PASSING = FULL | {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH}
"""What an operating system says of a disk that may have room again, or of a file system that may be back."""

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 10.0
REMIND_AFTER_S = 600.0


class StorageAway(SetupError):
    """Storage that took nothing just now and may again: it is full, or does not answer."""


@dataclass
class Patience:
    """Repeats a write for as long as storage is full or away.

    Attributes:
        say: Is told once when a pause begins, now and then while it lasts, and when it ends.
        limit_s: Seconds after which the error is raised after all.
    """

    say: Callable[[str], None] = log.warning
    limit_s: float = math.inf

    def until_done(self, write: Callable[[], T]) -> T:
        """Return what ``write`` returns as soon as storage takes it.

        Args:
            write: May be called any number of times.

        Raises:
            SweepError: of ``write``, for whatever waiting does not mend, or has not in ``limit_s``.
            OSError: likewise.
        """
        began = said = None
        pause = FIRST_PAUSE_S
        while True:
            try:
                done = write()
            except (StorageAway, OSError) as error:
                now = time.monotonic()
                reason = _reason(error)
                began = now if began is None else began
                if reason is None or now - began > self.limit_s:
                    raise
                if said is None or now - said > REMIND_AFTER_S:
                    said = now
                    self.say(
                        f"Paused: {reason}. The sweep goes on by itself when there is room and an answer; "
                        "Ctrl-C stops it, and what is done is kept"
                    )
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_S)
                continue
            if began is not None:
                self.say(f"Storage takes results again after {time.monotonic() - began:.0f} s; going on")
            return done


def _reason(error: Exception) -> str | None:
    """Say what is wrong, with path and room; None where waiting would not mend it."""
    if isinstance(error, StorageAway):
        return error.value
    if isinstance(error, OSError) and error.errno in PASSING:
        return f"{error.filename or 'a file'}: {error.strerror}"
    return None
