"""Temporary folders of private Ray clusters, and what a killed run leaves in them.

Each private cluster has a folder of its own, which a run locks for as long as it lives. A folder
whose lock is free belongs to a run that was killed: its processes are ended and it is removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import signal
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from orchestrator.machine.signals import at_forced_end
from orchestrator.planning.paths import RootPaths

log = logging.getLogger(__name__)

PREFIX = "isweep-ray-"
OWNER_FILE = "owner"
"""File in the folder whose lock the run holds."""
SESSIONS = "r"
"""Folder for Ray's sessions; short, because paths of sockets have at most 107 characters."""
RAY_TITLE = b"ray::"
"""Beginning of the title of a Ray worker, which hides its command line."""


@contextlib.contextmanager
def private_folder() -> Iterator[str]:
    """Make a folder that only this user can enter, and yield a folder in it for Ray.

    Ray opens its own folder to everybody. The run holds a lock on a file in the outer one. Process
    ids would not do: another container that shares the temporary folder has others.
    """
    with tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / SESSIONS).mkdir()
        with open(folder / OWNER_FILE, "w", encoding="utf-8") as owner:
            fcntl.flock(owner, fcntl.LOCK_EX)
            try:
                with at_forced_end(lambda: THIS_MACHINE.remove(folder)):
                    yield str(folder / SESSIONS)
            finally:
                # A process of Ray that is just starting would make the folder again, open to all.
                THIS_MACHINE.remove(folder)


class RayFolders:
    """The folders of private clusters on this machine, and this user's processes in each."""

    def folders(self) -> Iterable[Path]:
        """Return all folders, perhaps other users' too."""
        return sorted(Path(tempfile.gettempdir()).glob(f"{PREFIX}*"))

    def is_abandoned(self, folder: Path) -> bool:
        """Return whether a folder is this user's and no run holds its lock."""
        with contextlib.suppress(OSError), open(folder / OWNER_FILE, encoding="utf-8") as owner:
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return os.fstat(owner.fileno()).st_uid == os.geteuid()
        return False

    def remove(self, folder: Path) -> None:
        """Kill what still runs in a folder, then remove it.

        Ray's processes name the folder in their command line. Workers write a title over it, so
        they are known by their open log files. A worker does not end with its raylet if process 1
        leaves the dead raylet in its table, as in many containers.
        """
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has ended by now
                if _belongs_to(process, folder):
                    os.kill(int(process.name), signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


THIS_MACHINE = RayFolders()


def _belongs_to(process: Path, folder: Path) -> bool:
    """Return whether a process is this user's and runs in a folder."""
    if process.stat().st_uid != os.geteuid():
        return False
    command = (process / "cmdline").read_bytes()
    if f"{folder}/".encode() in command:
        return True
    return command.startswith(RAY_TITLE) and _has_open_file(process, folder)


def _has_open_file(process: Path, folder: Path) -> bool:
    prefix = f"{folder.resolve()}/"
    for file in (process / "fd").iterdir():
        with contextlib.suppress(OSError):  # it was closed by now
            if os.readlink(file).startswith(prefix):
                return True
    return False


def remove_leftovers(machine: RayFolders = THIS_MACHINE) -> int:
    """End the clusters of killed runs on this machine; return how many there were."""
    abandoned = [folder for folder in machine.folders() if machine.is_abandoned(folder)]
    for folder in abandoned:
        machine.remove(folder)
        log.info("Removed the folder that a killed run left: %s", folder)
    return len(abandoned)


def remove_orphans(paths: RootPaths) -> None:
    """Remove what killed runs left on this machine and below a root whose lock this run holds."""
    remove_leftovers()
    paths.token.unlink(missing_ok=True)
    shutil.rmtree(paths.tune, ignore_errors=True)
    for draft in (paths.root / "prepared").glob(".*.*"):
        # An interrupted preparation continues with its .parts.
        if draft.suffix != ".parts":
            shutil.rmtree(draft, ignore_errors=True)
    for draft in (*paths.root.glob(".*.tmp"), *paths.root.glob("sweeps/*/.*.tmp")):
        draft.unlink(missing_ok=True)
