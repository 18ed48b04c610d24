"""How a driver ends: by a signal, for want of what it needs, or killed; and what it leaves then.

A request to stop is never lost, and signals stay this process's own, whatever a library does to
them.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.machine.signals import at_forced_end

if TYPE_CHECKING:
    from orchestrator.planning.paths import RootPaths

log = logging.getLogger(__name__)

ANSWER_TIMEOUT_S, NO_ANSWER = 60.0, "no answer"
"""Of a tool that is asked, and how its complaint begins when that is over."""
KILLED_WITHIN_S = 5.0
"""How long a process that was killed may take to end: one that waits in a driver never does."""

PREFIX = "isweep-ray-"
OWNER_FILE, RAYS = "owner", "r"
TITLE = b"ray::"


@contextlib.contextmanager
def private_folder() -> Iterator[str]:
    """Make a folder that only this user can enter, and yield one in it for Ray, which opens its to
    everybody.

    A run holds a lock on a file in it for as long as it lives. Process ids would not do: another
    container that shares the temporary folder has others.
    """
    with tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True) as made:
        folder = Path(made)
        (folder / RAYS).mkdir()
        with open(folder / OWNER_FILE, "w", encoding="utf-8") as owner:
            fcntl.flock(owner, fcntl.LOCK_EX)
            try:
                with at_forced_end(lambda: THIS_MACHINE.remove(folder)):
                    yield str(folder / RAYS)
            finally:
                # One that was just starting would make the folder again, open to everybody.
                THIS_MACHINE.remove(folder)


@contextlib.contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Set environment variables for the block, and for the processes that it starts."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


STUCK = set(filter(None, os.environ.get("ISWEEP_STUCK", "").split(os.pathsep)))
"""Programs that wait in the driver, as they would every time; those that are started are told."""


def answer_of(
    *command: str, visible: str = "", timeout: float = ANSWER_TIMEOUT_S
) -> tuple[str, str]:
    """Return what a command prints, and its complaint where it fails: then it has said nothing.

    It sees all GPUs, or those that ``visible`` names. One that hangs in the kernel, where no signal
    ends it, is left behind, and its program is not asked again.
    """
    if command[0] in STUCK:
        return "", "it does not answer"
    env = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    env |= {"CUDA_VISIBLE_DEVICES": visible} if visible else {}
    env["ISWEEP_STUCK"] = os.pathsep.join(STUCK)
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    try:
        process = subprocess.Popen(command, env=env, **pipes)
    except FileNotFoundError:
        return "", "it is not there"
    except OSError as error:
        return "", error.strerror or type(error).__name__
    try:
        said, complaint = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        if not end(process):
            STUCK.add(command[0])
        return "", f"{NO_ANSWER} in {timeout:g} s"
    except BaseException:  # a stop must not leave it behind
        end(process)
        raise
    if process.returncode == 0:
        return str(said).strip(), ""
    lines = (complaint.strip() or said.strip()).splitlines()
    return "", lines[-1][:300] if lines else f"exit code {process.returncode}"


def end(process: subprocess.Popen[str]) -> bool:
    """Kill a process, and tell whether it ended: nothing kills one that waits in the driver."""
    process.kill()
    try:
        process.wait(KILLED_WITHIN_S)
    except subprocess.TimeoutExpired:
        return False
    return True


def stopped_child() -> tuple[int, str]:
    """Return id and name of a child of this process that is stopped (SIGSTOP); 0 and "" where none
    is.
    """
    with contextlib.suppress(OSError):
        if found := os.waitid(os.P_ALL, 0, os.WSTOPPED | os.WNOHANG | os.WNOWAIT):
            return found.si_pid, Path(f"/proc/{found.si_pid}/comm").read_text(
                encoding="utf-8"
            ).strip()
    return 0, ""


def remove_orphans(paths: RootPaths) -> None:
    """Remove what killed runs left on this machine and below a root, whose lock is ours."""
    remove_leftovers()
    paths.token.unlink(missing_ok=True)
    shutil.rmtree(paths.tune, ignore_errors=True)
    for draft in (paths.root / "prepared").glob(".*.*"):
        if draft.suffix != ".parts":  # with which an interrupted preparation goes on
            shutil.rmtree(draft, ignore_errors=True)
    for draft in (*paths.root.glob(".*.tmp"), *paths.root.glob("sweeps/*/.*.tmp")):
        draft.unlink(missing_ok=True)


class Processes:
    """Folders of private clusters on this machine, and this user's processes out of each."""

    def folders(self) -> Iterable[Path]:
        """Return all of them, and perhaps others'."""
        return sorted(Path(tempfile.gettempdir()).glob(f"{PREFIX}*"))

    def is_abandoned(self, folder: Path) -> bool:
        """Tell whether a folder is ours and its run is gone, which would hold the lock."""
        with contextlib.suppress(OSError), open(folder / OWNER_FILE, encoding="utf-8") as owner:
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return os.fstat(owner.fileno()).st_uid == os.geteuid()
        return False

    def remove(self, folder: Path) -> None:
        """Kill what still runs out of a folder, and remove it.

        Processes of Ray name it in their command line, until they write a title of theirs over it:
        then their logs tell. A worker does not end with its raylet where process 1 leaves the dead
        one in its table, as in many containers.
        """
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has ended meanwhile
                command = (process / "cmdline").read_bytes()
                named = f"{folder}/".encode() in command
                is_ours = process.stat().st_uid == os.geteuid()
                if is_ours and (
                    named or (command.startswith(TITLE) and _has_open(process, folder))
                ):
                    os.kill(int(process.name), signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


THIS_MACHINE = Processes()


def remove_leftovers(processes: Processes = THIS_MACHINE) -> int:
    """End the processes and remove the folders of private clusters whose run was killed; returns
    how many.
    """
    abandoned = [folder for folder in processes.folders() if processes.is_abandoned(folder)]
    for folder in abandoned:
        processes.remove(folder)
        log.info("removed what a killed run left: %s", folder)
    return len(abandoned)


def _has_open(process: Path, folder: Path) -> bool:
    below = f"{folder.resolve()}/"
    for file in (process / "fd").iterdir():
        with contextlib.suppress(OSError):  # it was closed meanwhile
            if os.readlink(file).startswith(below):
                return True
    return False
