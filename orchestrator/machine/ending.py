"""How a driver ends: by a signal, for want of what it needs, or killed; and what it leaves then.

A request to stop is never lost, and signals stay this process's own, whatever a library does to
them.
"""

from __future__ import annotations

import _thread
import contextlib
import fcntl
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

from search_spaces.errors import SetupError
from tasks.clock import SYSTEM, Clock

if TYPE_CHECKING:
    from orchestrator.planning.paths import RootPaths

log = logging.getLogger(__name__)

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
END_WITHIN_S = 5.0
"""How long the driver's main thread may take to end by itself; it may hang in a call of Ray's."""

ANSWER_TIMEOUT_S, NO_ANSWER = 60.0, "no answer"
"""Of a tool that is asked, and how its complaint begins when that is over."""
KILLED_WITHIN_S = 5.0
"""How long a process that was killed may take to end: one that waits in a driver never does."""

PREFIX = "isweep-ray-"
OWNER_FILE, RAYS = "owner", "r"
TITLE = b"ray::"

Interrupt = Callable[[SetupError, threading.Event], None]

_asked = threading.Event()
_at_forced_end: list[Callable[[], object]] = []


def stop_on_signals() -> None:
    """Answer Ctrl-C, ``kill`` and a closed terminal with :class:`KeyboardInterrupt` from now on.

    In a finaliser or a callback from C Python prints and forgets it; :func:`raise_if_asked` then
    raises it again, until :func:`stop_heard`.
    """

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        _asked.set()
        raise KeyboardInterrupt

    _asked.clear()
    if threading.current_thread() is threading.main_thread():
        for number in STOPS:
            # `nohup` has one ignored, a shell's background jobs another, and it stays so.
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, stop)


def raise_if_asked() -> None:
    """Raise ``KeyboardInterrupt`` when somebody has asked to stop and nobody has heard."""
    if _asked.is_set():
        raise KeyboardInterrupt


def stop_heard() -> None:
    """Say that the stop has arrived where it is answered."""
    _asked.clear()


def is_stop(error: BaseException | None) -> bool:
    """Tell whether an error came up while a stop was on its way out, and so is a part of it.

    Also where code in C lost the stop and told an error of its own in its place.
    """
    if _asked.is_set():
        return True
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextlib.contextmanager
def stop_held() -> Iterator[None]:
    """Let a stop wait for the end of the block: an import that is cut off leaves half a module
    behind.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked: list[int] = []
    before = {number: handler for number in STOPS if callable(handler := signal.getsignal(number))}
    for number in before:
        signal.signal(number, lambda number, frame: asked.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if asked:
        signal.raise_signal(asked[0])


@contextlib.contextmanager
def own_signals(undo: Callable[[], object]) -> Iterator[None]:
    """Keep this process's signals: Ray's subreaper setting ignores SIGCHLD, and its start takes
    SIGTERM.

    With the first ignored, every ``subprocess`` of a driver would seem to end with 0; with the
    second taken, a polite request to stop would abort the process. ``undo`` ends what a stop left
    half started, which blocks the next start.
    """
    before = {
        number: signal.getsignal(number)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        undo()
        raise KeyboardInterrupt from None
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextlib.contextmanager
def at_forced_end(tidy: Callable[[], object]) -> Iterator[None]:
    """Have ``tidy`` called if the process has to be ended while the block lasts."""
    _at_forced_end.append(tidy)
    try:
        yield
    finally:
        _at_forced_end.remove(tidy)


class Watch:
    """Looks from a thread, during a ``with`` block, whether what the block needs is there, and else
    ends it.

    ``look`` returns why the block must end, which is then ``lost``, and None while it need not.
    """

    def __init__(
        self,
        name: str,
        every_s: float,
        look: Callable[[], SetupError | None],
        clock: Clock = SYSTEM,
        interrupt: Interrupt | None = None,
    ) -> None:
        self.lost: SetupError | None = None
        self.ended = threading.Event()
        self._every_s, self._look, self._changed = every_s, look, clock.condition()
        self._interrupt = interrupt or end_main_thread
        self._thread = clock.thread(self._watch, name)

    def __enter__(self) -> Watch:
        """Begin to look."""
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End looking; raise ``lost`` in place of whatever ended the block then."""
        self.end()
        if self.lost is not None and error is not None:
            raise self.lost from error

    def end(self) -> None:
        """Look no more."""
        self.ended.set()
        with self._changed:
            self._changed.notify_all()

    def _watch(self) -> None:
        while True:
            with self._changed:
                if self._changed.wait_for(self.ended.is_set, self._every_s):
                    return
            lost = self._look()
            if lost is not None and not self.ended.is_set():
                self.lost = lost
                log.error("%s", lost)
                self._interrupt(lost, self.ended)
                return


def end_main_thread(error: SetupError, ended: threading.Event) -> None:
    """Interrupt the main thread from another one, and end the process with ``error`` unless it has
    heard.
    """
    _thread.interrupt_main()
    if not ended.wait(END_WITHIN_S):
        for tidy in reversed(_at_forced_end):
            with contextlib.suppress(Exception):
                tidy()
        print(f"isweep: {error}", file=sys.stderr, flush=True)  # noqa: T201  # the last word
        os._exit(error.exit_code)


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
