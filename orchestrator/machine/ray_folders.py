"""The temporary folders of private Ray clusters, and their removal after a run was killed.

Each private cluster has a separate folder. Its run locks a file in this folder as long as the
run lasts. If this file is not locked, the run was killed. The next run then kills the
remaining processes of the killed run, and removes the folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from orchestrator.machine.signals import delay_stop
from orchestrator.machine.watch import at_forced_end
from orchestrator.planning.paths import RootPaths

log = logging.getLogger(__name__)

PREFIX = "isweep-ray-"
OWNER_FILE = "owner"
"""Name of the file in the outer folder that the run locks."""
SESSIONS = "r"
"""Name of the folder for Ray's sessions. It is short, because the path of a socket can have at
most 107 characters."""
SHORT_PARENT = Path("/tmp")
"""Folder for private clusters if the path of the temporary folder is too long for Ray's
sockets."""
MAX_SOCKET_PATH = 103 if sys.platform == "darwin" else 107
"""Largest number of bytes in the path of a socket."""
LONGEST_SOCKET = (
    f"/{PREFIX}12345678/{SESSIONS}/session_2026-12-31_23-59-59_999999_{os.getpid()}"
    "/sockets/dash_MetricsHead"
)
"""A path as long as that of Ray's longest socket, below the temporary folder."""
MAX_PARENT_BYTES = MAX_SOCKET_PATH - len(LONGEST_SOCKET)
"""Longest path of a temporary folder in which Ray can make its sockets, in bytes."""
MPS = "mps"
"""Name of the folder for the socket and the logs of NVIDIA's MPS."""
MPS_PROGRAM = b"nvidia-cuda-mps"
"""Beginning of the names of MPS's programs. These programs mention their folder only in their
environment variables."""
RAY_TITLE = b"ray::"
"""Beginning of the process title of a Ray worker. The title replaces the worker's command
line."""
KILL_WITHIN_S = 10.0
"""Largest number of seconds that the search for processes of a cluster takes. A process that waits
for a disk or a GPU ends only after its wait."""
SEARCH_AGAIN_AFTER_S = 0.01
"""Seconds between two searches for these processes."""


def parent_folder() -> Path:
    """Return the folder for private clusters: the temporary folder, or ``/tmp``.

    Batch systems and macOS set TMPDIR to long paths. Ray then fails after a minute without a
    reason that mentions TMPDIR.
    """
    folder = tempfile.gettempdir()
    if len(os.fsencode(folder)) > MAX_PARENT_BYTES:
        return SHORT_PARENT
    return Path(folder)


class RayFolders:
    """The folders of private clusters on this machine, with this user's processes that belong
    to them.
    """

    def folders(self) -> Iterable[Path]:
        """Return all folders of private clusters, including those of other users."""
        parents = {Path(tempfile.gettempdir()), SHORT_PARENT}
        return sorted(folder for parent in parents for folder in parent.glob(f"{PREFIX}*"))

    def is_abandoned(self, folder: Path) -> bool:
        """Return whether a folder belongs to this user and is not locked by a run."""
        with contextlib.suppress(OSError), open(folder / OWNER_FILE, encoding="utf-8") as owner:
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return os.fstat(owner.fileno()).st_uid == os.geteuid()
        return False

    def remove_folder(self, folder: Path) -> None:
        """Kill the processes that belong to a folder. Then remove the folder.

        The owner file is removed last, because the removal may be incomplete: it may be
        interrupted, or a dying process may write a file again. The next run then still
        recognizes the abandoned folder and removes the remaining files.
        """
        self.end_ray_processes(folder)
        # MPS ends after the workers, which use it.
        _kill_processes(folder, _belongs_to_mps)
        parts = [folder / SESSIONS, folder / MPS]
        for part in 2 * parts:  # a process that was just killed may still finish a write
            shutil.rmtree(part, ignore_errors=True)
        if not any(part.exists() for part in parts):
            shutil.rmtree(folder, ignore_errors=True)

    def end_ray_processes(self, folder: Path) -> None:
        """Kill Ray's processes that belong to a folder.

        Workers must be killed too. In many containers, process 1 does not remove a dead raylet
        from the table of processes. The raylet's workers then continue to run.
        """
        _kill_processes(folder, _belongs_to_ray)


THIS_MACHINE = RayFolders()
"""The folders of private clusters on this machine."""


@contextlib.contextmanager
def private_folder() -> Iterator[str]:
    """Create an outer folder that only this user can enter. Yield an inner folder for Ray.

    Two folders are needed, because Ray makes the inner folder readable for everybody. The run
    locks a file in the outer folder. A file with a process id would not be enough: another
    container, with other process ids, may use the same temporary folder.
    """
    with contextlib.ExitStack() as stack:
        with delay_stop():
            folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent_folder()))
            owner = stack.enter_context(open(folder / OWNER_FILE, "w", encoding="utf-8"))
            fcntl.flock(owner, fcntl.LOCK_EX)
            # The folder is removed after its processes were killed. A Ray process that is just
            # starting would make the folder again, readable for everybody.
            stack.callback(_remove_folder_completely, folder)
            (folder / SESSIONS).mkdir()
        with at_forced_end(lambda: THIS_MACHINE.remove_folder(folder)):
            yield str(folder / SESSIONS)


def _remove_folder_completely(folder: Path) -> None:
    """Remove the folder of this run's cluster. A second Ctrl-C does not interrupt the
    removal.
    """
    with delay_stop():
        THIS_MACHINE.remove_folder(folder)


def _kill_processes(folder: Path, belongs_to: Callable[[Path, Path], bool]) -> None:
    """Kill this user's processes that belong to a private cluster's folder, until there are
    none.

    One search may miss a process: a Ray process may start a worker after the search has passed
    the worker's number. This worker would make the folder again after its removal.

    Args:
        folder: outer folder of the cluster.
        belongs_to: function that returns whether a process belongs to the folder. Its
            arguments are the folder of the process in ``/proc``, and ``folder``.
    """
    give_up_at = time.monotonic() + KILL_WITHIN_S
    while time.monotonic() < give_up_at:
        num_killed = 0
        for process in Path("/proc").glob("[0-9]*"):
            # An error means that the process has ended meanwhile.
            with contextlib.suppress(OSError):
                if process.stat().st_uid == os.geteuid() and belongs_to(process, folder):
                    os.kill(int(process.name), signal.SIGKILL)
                    num_killed += 1
        if num_killed == 0:
            return
        time.sleep(SEARCH_AGAIN_AFTER_S)


def _belongs_to_ray(process: Path, folder: Path) -> bool:
    """Return whether a process is a Ray process that belongs to a private cluster's folder.

    The command lines of Ray's processes contain the folder. Workers replace their command line
    by a title, so their open log files are checked instead.
    """
    command = (process / "cmdline").read_bytes()
    if f"{folder}/".encode() in command:
        return True
    return command.startswith(RAY_TITLE) and _has_open_file(process, folder)


def _belongs_to_mps(process: Path, folder: Path) -> bool:
    """Return whether a process is a program of NVIDIA's MPS that belongs to a private
    cluster's folder.

    These programs mention the folder only in their environment variables.
    """
    command = (process / "cmdline").read_bytes()
    program = command.partition(b"\0")[0].rpartition(b"/")[2]
    if not program.startswith(MPS_PROGRAM):
        return False
    return f"={folder}/{MPS}/".encode() in (process / "environ").read_bytes()


def _has_open_file(process: Path, folder: Path) -> bool:
    """Return whether a process has a file below a folder open."""
    prefix = f"{folder.resolve()}/"
    for file in (process / "fd").iterdir():
        # An error means that the file was closed meanwhile.
        with contextlib.suppress(OSError):
            if os.readlink(file).startswith(prefix):
                return True
    return False


def remove_abandoned_folders(machine: RayFolders = THIS_MACHINE) -> int:
    """End the private clusters of killed runs on this machine. Return the number of these
    clusters.
    """
    abandoned = [folder for folder in machine.folders() if machine.is_abandoned(folder)]
    for folder in abandoned:
        machine.remove_folder(folder)
        log.info("Removed the folder that a killed run left: %s", folder)
    return len(abandoned)


def remove_files_of_killed_runs(paths: RootPaths) -> None:
    """Remove the files that killed runs have left on this machine and below a root. This run
    must have locked the root.
    """
    remove_abandoned_folders()
    paths.token.unlink(missing_ok=True)
    shutil.rmtree(paths.tune, ignore_errors=True)
    for draft in (paths.root / "prepared").glob(".*.*"):
        # An interrupted preparation continues with the folder .parts.
        if draft.suffix != ".parts":
            shutil.rmtree(draft, ignore_errors=True)
    for draft in (*paths.root.glob(".*.tmp"), *paths.root.glob("sweeps/*/.*.tmp")):
        draft.unlink(missing_ok=True)
