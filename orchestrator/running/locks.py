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
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, cast

from orchestrator.planning.paths import RootPaths
from orchestrator.planning.plan import Workspace
from orchestrator.results.storage import Bucket, open_storage, unconditional
from orchestrator.results.store import ResultStore
from orchestrator.running.signals import end_main_thread
from search_spaces.errors import SetupError
from tasks.atomic import read_whole, write_atomic

# One driver per object store, which has no locks: a lease in one file, written only over what is known to be
# there, so that of many that start at once exactly one has it. Whether its holder lives is told by the lease
# changing, never by a clock: one that stays as it is for :data:`EXPIRES_S` belongs to a driver that is gone.

log = logging.getLogger(__name__)

FILE = "driver-lease.json"
BEAT_S = 10.0
EXPIRES_S = 60.0
LOOK_EVERY_S = 2.0
RULE = "Only one isweep command may work on a storage at a time"


class Lease:
    """Held during a ``with`` block.

    Args:
        url: Of the object store.
        name: Of the holder's root, whose own lock is held: an earlier lease of that name is dead.
        purpose: What the holder does, for messages.
        say: Is told when another lease is there and it is not known yet whether its driver lives, and when
            the store does not answer and answers again: workers wait for it too, and say nothing.
    """

    def __init__(self, url: str, name: str, purpose: str, say: Callable[[str], None] = log.warning) -> None:
        self.lost: SetupError | None = None
        self._url, self._say = url, say
        self._files = cast("Bucket", open_storage(url))
        self._path = posixpath.join(self._files.base, FILE)
        self._token, self._beats, self._tag = secrets.token_hex(8), 0, ""
        self._who = {"name": name, "host": socket.gethostname(), "pid": os.getpid(), "purpose": purpose}
        self._since = time.strftime("%F %T")
        self._writing, self._ended = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)

    def __enter__(self) -> Lease:
        """Take it.

        Raises:
            SetupError: when another driver lives, naming its host, process and purpose; or where the store
                cannot be read or written, or does not take conditional writes.
        """
        while not (tag := self._files.put(self._path, self._content(), "create")):
            if tag := self._taken_over():
                break
        self._tag = tag
        if self._files.put(self._path, self._content(), "create") is not None:
            self._files.remove(self._path)
            raise unconditional(self._url)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give it back.

        Raises:
            SetupError: in place of whatever ended the block, when the lease was lost.
        """
        with self._writing:
            self._ended.set()
        try:
            if self._read()[0].get("token") == self._token:
                self._files.remove(self._path)
        except (SetupError, OSError) as problem:
            log.warning("the lease of %s stays, and expires in %g s: %s", self._url, EXPIRES_S, problem)
        if self.lost is not None and error is not None:
            raise self.lost from error

    def _taken_over(self) -> str | None:
        """Take the lease of a driver that is gone; None when it is another one, or none, by now.

        Raises:
            SetupError: when its driver lives.
        """
        try:
            found, tag = self._read()
            if found.get("name") != self._who["name"]:
                self._say(
                    f"{self._url} was or is in use by {_holder(found)}; looking for up to {EXPIRES_S:g} s "
                    "whether that driver lives"
                )
                until = time.monotonic() + EXPIRES_S
                while time.monotonic() < until:
                    time.sleep(LOOK_EVERY_S)
                    later, other = self._read()
                    if other != tag:
                        way_out = "wait for it, stop it there, or use another --storage"
                        raise SetupError(RULE, f"{self._url} is in use by {_holder(later)}", way_out)
        except FileNotFoundError:
            return None
        return self._files.put(self._path, self._content(), {"e_tag": tag})

    def _beat(self) -> None:
        away_since = None
        while not self._ended.wait(BEAT_S):
            try:
                renewed = self._renewed()
            except (SetupError, OSError) as error:
                # Who starts elsewhere cannot look now either.
                if away_since is None:
                    away_since = time.monotonic()
                    reason = error.value if isinstance(error, SetupError) else error
                    self._say(f"The storage does not answer: {reason}. Trials that end wait for it")
                continue
            if away_since is not None:
                self._say(f"The storage answers again after {time.monotonic() - away_since:.0f} s")
                away_since = None
            if not renewed and not self._ended.is_set():
                self._give_up()
                return

    def _renewed(self) -> bool:
        """Renew the lease; False when it is another driver's."""
        with self._writing:
            if self._ended.is_set():
                return True
            tag = self._files.put(self._path, self._content(), {"e_tag": self._tag})
            if tag is None:
                try:
                    found, there = self._read()
                except FileNotFoundError:  # whoever takes over leaves one: files were lost
                    tag = self._files.put(self._path, self._content(), "create")
                else:
                    tag = there if found.get("token") == self._token else None  # only the reply was lost
            self._tag = tag or self._tag
            return tag is not None

    def _give_up(self) -> None:
        self.lost = SetupError(
            RULE,
            f"{self._url}: another driver took it over; this one had not renewed it for {EXPIRES_S:g} s",
            "let that one end; what is done is kept",
        )
        log.error("%s", self.lost)
        end_main_thread(self.lost, self._ended)

    def _content(self) -> bytes:
        self._beats += 1
        content = {"token": self._token, "beat": self._beats, "since": self._since}
        return json.dumps({**content, **self._who}).encode()

    def _read(self) -> tuple[dict[str, object], str]:
        """Return what the lease says, nothing where that cannot be read, and its tag."""
        content, tag = self._files.read_tagged(self._path)
        try:
            found = json.loads(content)
        except (ValueError, RecursionError):
            found = None
        return (found if isinstance(found, dict) else {}), tag


def _holder(about: Mapping[str, object]) -> str:
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
