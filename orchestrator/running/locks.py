"""One driver per root and per store: a lock that the operating system drops with the process that held it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import posixpath
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import IO

from orchestrator.planning.paths import RootPaths
from orchestrator.planning.plan import Workspace
from orchestrator.results.storage import open_storage
from orchestrator.results.store import ResultStore
from orchestrator.running.signals import end_main_thread
from search_spaces.errors import SetupError
from tasks.atomic import read_whole, write_atomic

# One driver per object store, which has no locks: a lease that its holder renews and a starter looks for.
#
# Whoever starts writes a lease of its own first and looks for others then, so of two at least one sees the
# other. Whether another one lives is told by its lease changing, never by a clock: one that stays as it is
# for :data:`EXPIRES_S` belongs to a driver that is gone. Needs of a store only that what was written is
# seen, as S3, Google's and Azure's promise.

log = logging.getLogger(__name__)

FOLDER, FILE = "drivers", "lease.json"
BEAT_S = 10.0
EXPIRES_S = 60.0
LOOK_EVERY_S = 2.0
RULE = "Only one isweep command may work on a storage at a time"


class Lease:
    """Held during a ``with`` block.

    Args:
        url: Of the store.
        name: Of the holder's root, whose own lock is held: an earlier lease of that name is dead.
        purpose: What the holder does, for messages.
        say: Is told when another lease is there and it is not known yet whether its driver lives, and when
            the store does not answer and answers again: workers wait for it too, and say nothing.
    """

    def __init__(self, url: str, name: str, purpose: str, say: Callable[[str], None] = log.warning) -> None:
        self.lost: SetupError | None = None
        self._url, self._name, self._say = url, name, say
        self._files = open_storage(url)
        self._path = posixpath.join(self._files.base, FOLDER, name, FILE)
        self._token, self._beats, self._holds = secrets.token_hex(8), 0, False
        self._who = {"host": socket.gethostname(), "pid": os.getpid(), "purpose": purpose}
        self._since = time.strftime("%F %T")
        self._writing, self._ended = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)

    def __enter__(self) -> Lease:
        """Take it.

        Raises:
            SetupError: when another driver lives, naming its host, process and purpose; or where the store
                cannot be read or written.
        """
        self._write()
        self._thread.start()
        try:
            self._wait_for_others()
            self._holds = True
            self._write()
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give it back.

        Raises:
            SetupError: in place of whatever ended the block, when the lease was lost.
        """
        self._release()
        if self.lost is not None and error is not None:
            raise self.lost from error

    def _wait_for_others(self) -> None:
        """Return when no other lease is left: those of dead drivers are removed."""
        seen: dict[str, tuple[bytes, float]] = {}
        while True:
            others, now = self._others(), time.monotonic()
            if not others:
                return
            if not seen:
                self._say(
                    f"{self._url} was or is in use by {_holder(next(iter(others.values())))}; looking for "
                    f"up to {EXPIRES_S:g} s whether that driver lives"
                )
            for path, content in others.items():
                before, since = seen.get(path, (content, now))
                seen[path] = (content, since if content == before else now)
                if content != before and self._yields_to(path, content):
                    way_out = "wait for it, stop it there, or use another --storage"
                    raise SetupError(RULE, f"{self._url} is in use by {_holder(content)}", way_out)
                if now - since > EXPIRES_S and content == before:
                    self._files.remove(path)
            time.sleep(LOOK_EVERY_S)

    def _others(self) -> dict[str, bytes]:
        """Return the content of every other lease by its path."""
        folder = posixpath.join(self._files.base, FOLDER)
        found = [file for file in self._files.find(folder, FILE) if file.path != self._path]
        return {
            file.path: content for file, content in self._files.read_many(found) if isinstance(content, bytes)
        }

    def _yields_to(self, path: str, content: bytes) -> bool:
        """Whether a living driver goes first: it holds, or of two that start at once its name does."""
        return bool(_parsed(content).get("holds")) or path < self._path

    def _write(self) -> None:
        with self._writing:
            if self._ended.is_set():
                return
            self._beats += 1
            content = {"token": self._token, "beat": self._beats, "holds": self._holds, "since": self._since}
            self._files.write(self._path, json.dumps({**content, **self._who}).encode())

    def _beat(self) -> None:
        away_since = None
        while not self._ended.wait(BEAT_S):
            try:
                # Whoever takes over writes a lease first: where there is none at all, files were lost.
                if self._is_ours() or not self._others():
                    self._write()
                    if away_since is not None:
                        self._say(f"The storage answers again after {time.monotonic() - away_since:.0f} s")
                        away_since = None
                    continue
            except (SetupError, OSError) as error:
                # Who starts elsewhere cannot look now either.
                if away_since is None:
                    away_since = time.monotonic()
                    reason = error.value if isinstance(error, SetupError) else error
                    self._say(f"The storage does not answer: {reason}. Trials that end wait for it")
                continue
            if not self._ended.is_set():
                self._give_up()
            return

    def _is_ours(self) -> bool:
        try:
            return _parsed(self._files.read(self._path)).get("token") == self._token
        except FileNotFoundError:
            return False

    def _give_up(self) -> None:
        self.lost = SetupError(
            RULE,
            f"{self._url}: another driver took it over; this one had not renewed it for {EXPIRES_S:g} s",
            "let that one end; what is done is kept",
        )
        log.error("%s", self.lost)
        end_main_thread(self.lost, self._ended)

    def _release(self) -> None:
        with self._writing:
            self._ended.set()
        try:
            if self._is_ours():
                self._files.remove(self._path)
        except (SetupError, OSError) as error:
            log.warning("the lease of %s stays, and expires in %g s: %s", self._url, EXPIRES_S, error)


def _parsed(content: bytes) -> dict[str, object]:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _holder(content: bytes) -> str:
    about = _parsed(content)
    if not {"host", "pid", "purpose", "since"} <= about.keys():
        return "another driver"
    return f"process {about['pid']} of {about['host']} ({about['purpose']}, since {about['since']})"


PROBE_ATTEMPTS = 10
PROBE_PAUSE_S = 0.02
"""A look at the lock (:func:`is_held`) holds it, shared, for microseconds: no reason for a run to give up."""


@contextlib.contextmanager
def exclusive(path: Path, purpose: str, what: str = "root") -> Iterator[None]:
    """Hold the lock at ``path``, of a ``what``, during a ``with`` block.

    Raises:
        SetupError: when another process holds it, naming its id, what it does and since when; or where it
            cannot be taken at all, because of permissions or a file system without locks.
    """
    with _opened(path) as file:
        if not _acquire(file):
            raise SetupError(
                f"Only one isweep command may work on a {what} at a time",
                f"{path.parent} is in use by {_lock_holder(path)}",
                f"wait for it, stop it with Ctrl-C, or use another --{what}",
            )
        file.truncate(0)
        json.dump({"pid": os.getpid(), "purpose": purpose, "since": time.strftime("%F %T")}, file)
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


@contextlib.contextmanager
def locked(workspace: Workspace, purpose: str, say: Callable[[str], None] = log.warning) -> Iterator[None]:
    """Hold the locks of a sweep's root and, since two roots may share one, of its result store.

    Args:
        workspace: Of the sweep.
        purpose: What the holder does, for messages.
        say: See :class:`.lease.Lease`.

    Raises:
        SetupError: see :func:`exclusive` and, for an object store, :class:`.lease.Lease`.
    """
    store = ResultStore(workspace.results_url).lock
    with contextlib.ExitStack() as locks:
        locks.enter_context(exclusive(workspace.paths.lock, purpose))
        if store is not None:
            locks.enter_context(exclusive(store, purpose, "storage"))
        else:
            locks.enter_context(Lease(workspace.results_url, _name_of(workspace.paths), purpose, say))
        yield


def _name_of(root: RootPaths) -> str:
    """Return what tells this root from every other one, copies on other hosts too."""
    try:
        if not root.identity.exists():
            write_atomic(str(root.identity), secrets.token_hex(8).encode())
        return f"{socket.gethostname()}-{root.identity.read_text(encoding='ascii')[:16]}"
    except (OSError, ValueError) as error:
        raise SetupError(
            "A root's own id must be a file of 16 letters",
            f"{root.identity}: {error}",
            "delete it: the next run makes a new one",
        ) from None


def is_held(path: Path) -> bool:
    """Tell whether some process holds the lock now."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        finally:
            os.close(file)  # and so the lock goes
    except BlockingIOError:
        return True
    except OSError:
        return False  # no lock, or none that could be held
    return False


def holder_pid(path: Path) -> int | None:
    """Return the id of the process that holds the lock now; None when nobody does or it has not said yet."""
    if not is_held(path):
        return None
    try:
        return int(json.loads(read_whole(path))["pid"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _acquire(file: IO[str]) -> bool:
    """Take the lock, trying again for as long as :func:`is_held` in another process could be looking."""
    for attempt in range(PROBE_ATTEMPTS):
        if attempt:
            time.sleep(PROBE_PAUSE_S)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        except OSError as error:
            raise _no_locks(Path(file.name), error) from None
        return True
    return False


def _opened(path: Path) -> IO[str]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return open(path, "a+", encoding="utf-8")
    except OSError as error:
        raise SetupError(
            "The lock of a root must be a file that can be written",
            f"{path}: {error.strerror or error}",
            "remove what is in its place or mend its permissions",
        ) from None


def _no_locks(path: Path, error: OSError) -> SetupError:
    return SetupError(
        "The file system must have locks, or two runs could work on one root",
        f"{path}: {error.strerror or error}",
        "keep the root on a local disk, or mount the file system with locks (NFS: without nolock)",
    )


def _lock_holder(path: Path) -> str:
    try:
        held = json.loads(read_whole(path))
        return f"process {held['pid']} ({held['purpose']}, since {held['since']})"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "another process"
