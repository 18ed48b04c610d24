"""Replace a state file by something that is no file: a folder, a loop of links, a FIFO."""

import os
from pathlib import Path


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)
