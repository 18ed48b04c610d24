"""What a killed run leaves, and its removal: above all a private cluster, in a folder of this user alone.

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
import time
from collections.abc import Iterator
from pathlib import Path

from orchestrator.planning.paths import RootPaths
from orchestrator.running.signals import at_forced_end

log = logging.getLogger(__name__)

PREFIX = "isweep-ray-"
OWNER_FILE, RAYS = "owner", "r"
TITLE = b"ray::"
REMNANT_AGE_S = 60.0
"""A folder without an owner file may be one that a run is just making."""


@contextlib.contextmanager
def private_folder() -> Iterator[str]:
    """Make a folder that only this user can enter, for as long as the block lasts.

    Yields:
        A folder in it for Ray, which opens whatever folder it is given to everybody.
    """
    with tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True) as folder:
        inner = Path(folder) / RAYS
        inner.mkdir()
        with open(Path(folder) / OWNER_FILE, "w", encoding="utf-8") as owner:
            fcntl.flock(owner, fcntl.LOCK_EX)
            try:
                with at_forced_end(lambda: _remove(Path(folder))):
                    yield str(inner)
            finally:
                # One that was just starting would make the folder again, open to everybody.
                _end_processes(Path(folder))


@contextlib.contextmanager
def temporary_files_in(folder: str) -> Iterator[None]:
    """Let what is started in the block, and its children, put files for a while into a folder that will go.

    Ray's dashboard and its workers are killed at the end, and would leave theirs for ever.
    """
    tempfile.gettempdir()  # this process keeps its own, which it looks up once
    before = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = folder
    try:
        yield
    finally:
        if before is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = before


def remove_orphans(paths: RootPaths) -> None:
    """Remove what killed runs left on this machine and below a root, whose lock is ours.

    Processes and folders of private clusters, the token, Tune's scratch, drafts of prepared data and files.
    """
    remove_leftovers()
    paths.token.unlink(missing_ok=True)
    shutil.rmtree(paths.tune, ignore_errors=True)
    for draft in (paths.root / "prepared").glob(".*.*"):
        shutil.rmtree(draft, ignore_errors=True)
    for draft in (*paths.root.glob(".*.tmp"), *paths.root.glob("sweeps/*/.*.tmp")):
        draft.unlink(missing_ok=True)


def remove_leftovers(base: Path | None = None) -> int:
    """End the processes and remove the folders of private clusters whose run was killed; returns how many.

    Args:
        base: Where to look; None takes the folder for temporary files.
    """
    removed = 0
    for folder in sorted((base or Path(tempfile.gettempdir())).glob(f"{PREFIX}*")):
        if _abandoned(folder) or _nobodys(folder):
            _remove(folder)
            removed += 1
            log.info("removed what a killed run left: %s", folder)
    return removed


def _abandoned(folder: Path) -> bool:
    """Tell whether a folder is ours and its run is gone."""
    try:
        with open(folder / OWNER_FILE, encoding="utf-8") as owner:
            if os.fstat(owner.fileno()).st_uid != os.geteuid():
                return False
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except OSError:
        return False


def _nobodys(folder: Path) -> bool:
    """Tell whether a folder is ours and a remnant: made again by a process of Ray after its run removed it.

    Without an owner file may also be a live run, after a cleaner of old files: its processes are there.
    """
    try:
        about = folder.lstat()
        old = time.time() - about.st_mtime > REMNANT_AGE_S and about.st_uid == os.geteuid()
        remnant = (folder / RAYS).is_dir() and not (folder / OWNER_FILE).exists()
        return old and remnant and not any(_processes(folder))
    except OSError:
        return False


def _remove(folder: Path) -> None:
    _end_processes(folder)
    shutil.rmtree(folder, ignore_errors=True)


def _end_processes(folder: Path) -> None:
    """Kill what still runs out of a folder."""
    for process in _processes(folder):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            os.kill(process, signal.SIGKILL)


def _processes(folder: Path) -> Iterator[int]:
    """Yield this user's processes out of a folder.

    Those of Ray name it in their command line, until they write a title of theirs over it: then their logs
    tell. A worker with a title ends by itself when its raylet does, but not where process 1 leaves the dead
    raylet in the table of processes, as in many containers.
    """
    below = f"{folder}/"
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if process.stat().st_uid != os.geteuid():
                continue
            command = (process / "cmdline").read_bytes()
        except OSError:
            continue  # it has ended meanwhile
        if below.encode() in command or (command.startswith(TITLE) and _has_open_below(process, folder)):
            yield int(process.name)


def _has_open_below(process: Path, folder: Path) -> bool:
    below = f"{folder.resolve()}/"
    with contextlib.suppress(OSError):  # it has ended meanwhile
        for file in (process / "fd").iterdir():
            with contextlib.suppress(OSError):  # it was closed meanwhile
                if os.readlink(file).startswith(below):
                    return True
    return False
