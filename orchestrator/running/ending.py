"""How a driver ends: by a signal, for want of what it needs, or killed; and what it leaves then.

A request to stop is never lost, and signals stay this process's own, whatever a library does to them.
"""

from __future__ import annotations

import _thread
import contextlib
import fcntl
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, NoReturn

from search_spaces.errors import SetupError
from tasks.clock import SYSTEM, Clock

if TYPE_CHECKING:
    from orchestrator.planning.paths import RootPaths

log = logging.getLogger(__name__)

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
END_WITHIN_S = 5.0
"""How long the driver's main thread may take to end by itself; it may hang in a call of Ray's."""

PREFIX = "isweep-ray-"
OWNER_FILE, RAYS = "owner", "r"
TITLE = b"ray::"
REMNANT_AGE_S = 60.0
"""A folder without an owner file may be one that a run is just making."""

Interrupt = Callable[[SetupError, threading.Event], None]

_asked = threading.Event()
_at_forced_end: list[Callable[[], object]] = []


def stop_on_signals() -> None:
    """Answer Ctrl-C, ``kill`` and a closed terminal with :class:`KeyboardInterrupt` from now on.

    Python raises it wherever the main thread is. In a finaliser or a callback from C it is printed and
    forgotten; :func:`raise_if_asked` then raises it again, until :func:`stop_heard`.
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
    """Stop if that was asked for and got lost.

    Raises:
        KeyboardInterrupt: when somebody has asked and nobody has heard.
    """
    if _asked.is_set():
        raise KeyboardInterrupt


def stop_heard() -> None:
    """Say that the stop has arrived where it is answered: what follows must run."""
    _asked.clear()


def is_stop(error: BaseException | None) -> bool:
    """Tell whether an error came up while a stop was on its way out, and so is a part of it."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextlib.contextmanager
def stop_held() -> Iterator[None]:
    """Let a stop wait for the end of the block: an import that is cut off leaves half a module behind.

    Raises:
        KeyboardInterrupt: at the end, when a stop was asked for meanwhile.
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
    """Keep this process's signals: Ray's subreaper setting ignores SIGCHLD, and its start takes SIGTERM.

    With the first ignored, every ``subprocess`` of a driver would seem to end with 0; with the second taken,
    a polite request to stop would abort the process.

    Args:
        undo: Ends what a stop left half started, which blocks the next start and can crash the process.

    Raises:
        KeyboardInterrupt: when a stop was asked for, also where Ray's own answer to SIGTERM came through.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP)}
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
    """Have ``tidy`` called if the process has to be ended while the block lasts, which then never ends."""
    _at_forced_end.append(tidy)
    try:
        yield
    finally:
        _at_forced_end.remove(tidy)


class Watch:
    """Looks from a thread, during a ``with`` block, whether what the block needs is there, and else ends it.

    ``look`` returns why the block must end, which is then ``lost``, and None while it need not; ``ended`` is
    set when the block is over.
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
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End looking.

        Raises:
            SetupError: why the block had to end, in place of whatever ended it then.
        """
        self.end()
        if self.lost is not None and error is not None:
            raise self.lost from error

    def end(self) -> None:
        """Look no more."""
        self.ended.set()
        with self._changed:
            self._changed.notify_all()

    def _waited(self) -> bool:
        """Wait for the next look; False when there is none."""
        with self._changed:
            return not self._changed.wait_for(self.ended.is_set, self._every_s)

    def _watch(self) -> None:
        while self._waited():
            lost = self._look()
            if lost is not None and not self.ended.is_set():
                self.lost = lost
                log.error("%s", lost)
                self._interrupt(lost, self.ended)
                return


def end_main_thread(error: SetupError, ended: threading.Event) -> None:
    """Interrupt the main thread from another one, and end the process when that does not help.

    ``error`` is the last word when the main thread has none; ``ended`` is set when it has heard.
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
    """Make a folder that only this user can enter, for as long as the block lasts.

    A run holds a lock on a file in it for as long as it lives; the operating system drops it with the
    process. Process ids would not do: another container that shares the temporary folder has others.

    Yields:
        A folder in it for Ray, which opens whatever folder it is given to everybody.
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
                _end_processes(folder)


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


class Processes:
    """Folders of private clusters on this machine, and this user's processes out of each.

    Methods raise OSError for a folder of another user, or one that is gone meanwhile.
    """

    def folders(self) -> Iterable[Path]:
        """Return all of them, and perhaps others'."""
        return sorted(Path(tempfile.gettempdir()).glob(f"{PREFIX}*"))

    def owner_lives(self, folder: Path) -> bool | None:
        """Tell whether the run of a folder does; None where it has no owner file."""
        if not (folder / OWNER_FILE).exists():
            return None
        with open(folder / OWNER_FILE, encoding="utf-8") as owner:
            if os.fstat(owner.fileno()).st_uid != os.geteuid():
                raise PermissionError(folder)
            try:
                fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False

    def age_s(self, folder: Path) -> float:
        """Return how long ago something was last made in it; OSError also for another program's."""
        about = folder.lstat()
        if about.st_uid != os.geteuid() or not (folder / RAYS).is_dir():
            raise PermissionError(folder)
        return time.time() - about.st_mtime

    def are_there(self, folder: Path) -> bool:
        """Tell whether any process runs out of it."""
        return any(_processes(folder))

    def remove(self, folder: Path) -> None:
        """Kill what still runs out of a folder, and remove it."""
        _end_processes(folder)
        shutil.rmtree(folder, ignore_errors=True)


THIS_MACHINE = Processes()


def remove_leftovers(processes: Processes = THIS_MACHINE) -> int:
    """End the processes and remove the folders of private clusters whose run was killed; returns how many.

    One without an owner file was made again by a process of Ray after its run removed it, or is being made,
    or a cleaner of old files went through the folder of a live run: its processes are there.
    """
    removed = 0
    for folder in processes.folders():
        with contextlib.suppress(OSError):
            lives = processes.owner_lives(folder)
            old = lives is None and processes.age_s(folder) > REMNANT_AGE_S
            if lives is False or (old and not processes.are_there(folder)):
                processes.remove(folder)
                removed += 1
                log.info("removed what a killed run left: %s", folder)
    return removed


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
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            command = (process / "cmdline").read_bytes()
            if process.stat().st_uid == os.geteuid() and (
                f"{folder}/".encode() in command or (command.startswith(TITLE) and _has_open(process, folder))
            ):
                yield int(process.name)


def _has_open(process: Path, folder: Path) -> bool:
    below = f"{folder.resolve()}/"
    for file in (process / "fd").iterdir():
        with contextlib.suppress(OSError):  # it was closed meanwhile
            if os.readlink(file).startswith(below):
                return True
    return False
