"""The folder of a private cluster, which nobody else can enter, and the removal of those left by killed runs.

A run holds a lock on a file in its folder for as long as it lives; the operating system drops it with the
process. Process ids would not do: another container that shares the folder for temporary files has others.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

log = logging.getLogger(__name__)

PREFIX = "isweep-ray-"
OWNER_FILE = "owner"


@contextlib.contextmanager
def private_folder() -> Iterator[str]:
    """Make a folder that only this user can enter, for as long as the block lasts.

    Yields:
        A folder in it for Ray, which opens whatever folder it is given to everybody.
    """
    with tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True) as folder:
        inner = Path(folder) / "r"
        inner.mkdir()
        with open(Path(folder) / OWNER_FILE, "w", encoding="utf-8") as owner:
            fcntl.flock(owner, fcntl.LOCK_EX)
            yield str(inner)


def remove_leftovers(base: Path | None = None) -> int:
    """End the processes and remove the folders of private clusters whose run was killed; returns how many.

    Args:
        base: Where to look; None takes the folder for temporary files.
    """
    removed = 0
    for folder in sorted((base or Path(tempfile.gettempdir())).glob(f"{PREFIX}*")):
        if _abandoned(folder):
            _end_processes(folder)
            shutil.rmtree(folder, ignore_errors=True)
            removed += 1
            log.info("removed what a killed run left: %s", folder)
    return removed


def _abandoned(folder: Path) -> bool:
    """Tell whether a folder is ours and its run is gone; one without an owner file is another program's."""
    try:
        with open(folder / OWNER_FILE, encoding="utf-8") as owner:
            if os.fstat(owner.fileno()).st_uid != os.geteuid():
                return False
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except OSError:
        return False


def _end_processes(folder: Path) -> None:
    """Kill what still runs out of a folder: Ray's agents and idle workers name it in their command line."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            mine = process.stat().st_uid == os.geteuid()
            if mine and f"{folder}/".encode() in (process / "cmdline").read_bytes():
                os.kill(int(process.name), signal.SIGKILL)
        except OSError:
            continue  # it has ended meanwhile
