"""Scratch folders of ``isweep measure``, which prepares images, measures them and removes them."""

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
"""Beginning of the names of scratch folders: they are no prepared datasets."""
NAMED_BY_PROCESS = re.compile(rf"\.*{re.escape(PREFIX)}(\d+)\b")
"""Scratch folders of versions up to November 2026, which carry a process id and have no lock."""


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """Yield the path of a scratch folder, and remove it and its parts afterwards.

    Folders that killed processes left are removed first. A process holds a lock on a file beside
    its folder, so that a folder whose lock is free belongs to nobody.

    Args:
        parent: Folder of the prepared datasets. The key lies there by which hashed names of files
            are found again.
    """
    parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(parent)
    # The letter tells it from names of earlier versions, which are numbers.
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
    """Remove the scratch folders of processes that were killed."""
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
    """Remove a scratch folder, and those that preparing makes beside it."""
    for path in folder.parent.glob(f".*{folder.name.lstrip('.')}*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
