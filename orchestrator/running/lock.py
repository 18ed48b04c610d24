"""One driver per root: a lock that the operating system drops with the process that held it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from search_spaces.errors import SetupError

PROBE_ATTEMPTS = 10
PROBE_PAUSE_S = 0.02
"""A look at the lock (:func:`is_held`) holds it, shared, for microseconds: no reason for a run to give up."""


@contextlib.contextmanager
def exclusive(path: Path, purpose: str) -> Iterator[None]:
    """Hold the lock at ``path`` during a ``with`` block.

    Raises:
        SetupError: when another process holds it, naming its id, what it does and since when.
    """
    with open(path, "a+", encoding="utf-8") as file:
        if not _acquire(file):
            raise SetupError(
                "Only one isweep command may work on a root at a time",
                f"{path.parent} is in use by {_holder(path)}",
                "wait for it, stop it with Ctrl-C, or use another --root",
            )
        file.truncate(0)
        json.dump({"pid": os.getpid(), "purpose": purpose, "since": time.strftime("%F %T")}, file)
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def is_held(path: Path) -> bool:
    """Tell whether some process holds the lock now."""
    if not path.exists():
        return False
    with open(path, encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        fcntl.flock(file, fcntl.LOCK_UN)
        return False


def holder_pid(path: Path) -> int | None:
    """Return the id of the process that holds the lock now; None when nobody does or it has not said yet."""
    if not is_held(path):
        return None
    try:
        return int(json.loads(path.read_text(encoding="utf-8"))["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _acquire(file: IO[str]) -> bool:
    """Take the lock, trying again for as long as :func:`is_held` in another process could be looking."""
    for attempt in range(PROBE_ATTEMPTS):
        if attempt:
            time.sleep(PROBE_PAUSE_S)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue
        return True
    return False


def _holder(path: Path) -> str:
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        return f"process {held['pid']} ({held['purpose']}, since {held['since']})"
    except (OSError, ValueError, KeyError):
        return "another process"
