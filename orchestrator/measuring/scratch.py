"""Temporary folders in which ``isweep measure`` prepares images before it measures them."""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX = ".measure-"
"""Prefix of the names of temporary folders. It distinguishes them from prepared datasets."""
NAMED_BY_PROCESS = re.compile(rf"\.*{re.escape(PREFIX)}(\d+)\b")
"""Pattern of the names of temporary folders from versions before December 2026. These names
contain a process id, and the folders have no lock."""


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """Yield the path of a temporary folder, and delete the folder and its parts afterwards.

    First, delete folders of killed processes. Each process locks a file next to its folder. If
    the lock is free, the process has ended.

    Args:
        parent: Folder of the prepared datasets. It also contains the key with which file names
            are hashed.
    """
    parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(parent)
    # The letter x distinguishes the name from the names of earlier versions, which contain
    # numbers.
    folder = parent / f"{PREFIX}x{secrets.token_hex(6)}"
    lock_file = folder.with_suffix(".lock")
    with lock_file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield folder
        finally:
            _remove(folder)
            lock_file.unlink(missing_ok=True)


def _remove_abandoned(parent: Path) -> None:
    """Delete the temporary folders of processes that were killed."""
    for lock_file in parent.glob(f"{PREFIX}*.lock"):
        try:
            with lock_file.open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(lock_file.with_suffix(""))
                lock_file.unlink(missing_ok=True)
        except OSError:
            continue  # its process still runs, or the file belongs to another user
    for folder in parent.glob(f".*{PREFIX.lstrip('.')}*"):
        named = NAMED_BY_PROCESS.fullmatch(folder.name.removesuffix(".parts"))
        if named and not os.path.exists(f"/proc/{named[1]}"):
            shutil.rmtree(folder, ignore_errors=True)


def _remove(folder: Path) -> None:
    """Delete a temporary folder, and the folders that the preparation creates next to it."""
    for path in folder.parent.glob(f".*{folder.name.lstrip('.')}*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
