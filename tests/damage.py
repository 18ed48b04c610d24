"""Replace a state file by something that is no file: a folder, a loop of links, a FIFO."""

import os
from pathlib import Path


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def dangle(path: Path) -> None:
    """Replace a file by a link to a file that does not exist."""
    path.unlink(missing_ok=True)
    path.symlink_to(path.parent / "missing" / path.name)


def endless(path: Path) -> None:
    """Replace a file by a link to a device file that has no end."""
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)
