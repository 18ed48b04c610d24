"""One driver per root and per result store.

A root has a lock file, which the operating system unlocks when its holder ends. An object store has
no locks; there a driver holds a lease, a file that it renews.
"""

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, cast

from orchestrator.machine.signals import Interrupt, Watch
from orchestrator.planning.workspace import Workspace
from orchestrator.results.storage import Bucket, Storage, no_conditional_writes, open_storage
from orchestrator.results.store import ResultStore
from search_spaces.errors import SetupError
from tasks.atomic import read_whole, write_atomic
from tasks.clock import SYSTEM, Clock

log = logging.getLogger(__name__)

LEASE_FILE = "driver-lease.json"
RENEW_EVERY_S = 10.0
EXPIRES_S = 60.0
"""Seconds without a renewal after which a lease belongs to a driver that is gone."""
LOOK_EVERY_S = 2.0
LOCK_ATTEMPTS = 10
LOCK_PAUSE_S = 0.02
"""Seconds between two attempts: :func:`is_held` holds the lock for microseconds, which is no reason
to give up."""


class InUseError(SetupError):
    """Another command works on the root or the result store."""


@contextlib.contextmanager
def locked(
    workspace: Workspace, purpose: str, say: Callable[[str], None] = log.warning
) -> Iterator[None]:
    """Hold the locks of a sweep's root and of its result store, which two roots may share.

    Args:
        workspace: the sweep's root and store.
        purpose: what the holder does, for those who find the lock taken.
        say: prints what is waited for.

    Raises:
        SetupError: another command holds one of them.
    """
    store_lock = ResultStore(workspace.results_url).lock
    with contextlib.ExitStack() as locks:
        locks.enter_context(exclusive(workspace.paths.lock, purpose))
        if store_lock is not None:
            locks.enter_context(exclusive(store_lock, purpose, "storage"))
        else:
            name = _root_name(workspace.paths.identity)
            locks.enter_context(Lease(workspace.results_url, name, purpose, say))
        yield


def _root_name(identity: Path) -> str:
    """Return what tells a root from every other one, also from its copies on other hosts."""
    try:
        if not identity.exists():
            write_atomic(str(identity), secrets.token_hex(8).encode())
        return f"{socket.gethostname()}-{identity.read_text(encoding='ascii')[:16]}"
    except (OSError, ValueError) as error:
        raise SetupError(
            f"The id of the root cannot be read from or written to {identity}: {error}",
            hint="Delete the file, and run the same command again: a new id is made",
        ) from None


@contextlib.contextmanager
def exclusive(path: Path, purpose: str, kind: str = "root") -> Iterator[None]:
    """Hold a lock file during a block.

    Somebody may delete the file meanwhile, and a second command would make and lock another one.
    So a thread looks whether the file is still there, and takes a new one at once.

    Args:
        path: the lock file.
        purpose: what the holder does.
        kind: what the lock is of, ``root`` or ``storage``.

    Raises:
        SetupError: another process holds it, or it cannot be locked.
    """
    lock = _LockFile(path, purpose, kind)
    try:
        lock.take()
        with Watch("lock", LOOK_EVERY_S, lock.take_again):
            yield
    finally:
        lock.release()


class _LockFile:
    """A lock file that this process holds; several files if some were deleted meanwhile."""

    def __init__(self, path: Path, purpose: str, kind: str) -> None:
        self._path = path
        self._kind = kind
        self._about = {"pid": os.getpid(), "purpose": purpose, "since": time.strftime("%F %T")}
        self._files: list[TextIO] = []
        self._mutex = threading.Lock()
        """Held while files change: one thread looks at them, another one releases them."""

    def take(self) -> None:
        """Lock the file at the path, or raise a SetupError."""
        file = self._open()
        self._files.append(file)
        if not self._lock(file):
            self._files.remove(file)
            file.close()
            holder = _holder_text(_read_holder(self._path), "another command")
            raise InUseError(
                f"{self._path.parent} is in use by {holder}",
                hint=f"Wait until that command ends, stop it with Ctrl-C, or use another "
                f"--{self._kind}",
            )
        file.truncate(0)
        json.dump(self._about, file)
        file.flush()

    def take_again(self) -> SetupError | None:
        """Lock a new file if the locked one was deleted; return an error if another one did."""
        with self._mutex:
            if not self._files or self._is_at_path():
                return None
            try:
                self.take()
            except SetupError as error:
                return error
            log.warning("The lock file %s was deleted; a new one is made and locked", self._path)
            return None

    def release(self) -> None:
        """Unlock all files."""
        with self._mutex:
            for file in self._files:
                file.truncate(0)
                file.close()
            self._files.clear()

    def _is_at_path(self) -> bool:
        """Return whether the file locked last is the one at the path."""
        try:
            at_path = os.stat(self._path)
        except OSError:
            return False
        return os.path.samestat(os.fstat(self._files[-1].fileno()), at_path)

    def _open(self) -> TextIO:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            return open(self._path, "a+", encoding="utf-8", opener=_open_no_link)
        except OSError as error:
            raise SetupError(
                f"The lock file {self._path} cannot be opened: {error.strerror or error}",
                hint=f"Delete {self._path}, or correct the permissions",
            ) from None

    def _lock(self, file: TextIO) -> bool:
        """Lock an open file, and return whether it succeeded."""
        for _ in range(LOCK_ATTEMPTS):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(LOCK_PAUSE_S)
            except OSError as error:
                raise SetupError(
                    f"{self._path} cannot be locked, so two commands could change the same files: "
                    f"{error.strerror or error}",
                    hint="Use a folder on a local disk, or mount the file system with locks (NFS: "
                    "without the option nolock)",
                ) from None
            else:
                return True
        return False


def _open_no_link(path: str, flags: int) -> int:
    """Open a file for :func:`open`. A link is an error: what it leads to would be emptied."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def is_held(path: Path) -> bool:
    """Return whether some process holds the lock now."""
    with contextlib.suppress(OSError):  # no lock, or none that could be held
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(file)  # which unlocks it
    return False


def holder_pid(path: Path) -> int | None:
    """Return the id of the process that holds the lock; None if nobody does or it is unknown."""
    if not is_held(path):
        return None
    pid = _read_holder(path).get("pid")
    return pid if isinstance(pid, int) else None


def _read_holder(path: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError):
        return _parse_holder(read_whole(path))
    return {}


def _parse_holder(content: bytes) -> dict[str, Any]:
    """Return what a holder wrote about itself; empty if that cannot be read."""
    with contextlib.suppress(ValueError, RecursionError):
        fields = json.loads(content)
        return fields if isinstance(fields, dict) else {}
    return {}


def _holder_text(fields: dict[str, Any], unknown: str) -> str:
    if not {"pid", "purpose", "since"} <= fields.keys():
        return unknown
    host = f" of {fields['host']}" if "host" in fields else ""
    return f"process {fields['pid']}{host} ({fields['purpose']}, since {fields['since']})"


@dataclass(frozen=True)
class _LeaseFile:
    """A lease as it lies in the store: its fields, and the store's tag of this version."""

    fields: dict[str, Any]
    tag: str


class Lease:
    """A driver's lease of an object store, held during a ``with`` block.

    It is one file, which is only written over a version that is known to be there. So of many
    drivers that start at once exactly one gets it. Whether its holder lives is seen from the file
    changing, never from a clock: a lease that stays as it is for :data:`EXPIRES_S` belongs to a
    driver that is gone. An earlier lease of the same ``name`` is dead, because the lock of its root
    is held.

    Args:
        url: the store.
        name: identity of the root.
        purpose: what the holder does.
        say: prints what is waited for.
        clock: of waits and renewals.
        interrupt: ends the main thread if the lease is lost.
    """

    def __init__(
        self,
        url: str | Storage,
        name: str,
        purpose: str,
        say: Callable[[str], None] = log.warning,
        clock: Clock = SYSTEM,
        interrupt: Interrupt | None = None,
    ) -> None:
        self._say = say
        self._clock = clock
        self._files = cast("Bucket", open_storage(url))
        self._url = url if isinstance(url, str) else url.base
        self._path = posixpath.join(self._files.base, LEASE_FILE)
        self._token = secrets.token_hex(8)
        self._beats = 0
        self._tag = ""
        self._owner = {
            "name": name,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "purpose": purpose,
            "token": self._token,
            "since": time.strftime("%F %T"),
        }
        self._writing = clock.condition()
        self._away_since = 0.0
        self.watch = Watch("lease", RENEW_EVERY_S, self._renew_or_say_why, clock, interrupt)

    def __enter__(self) -> Watch:
        """Take the lease and start to renew it."""
        tag = None
        while tag is None:
            tag = self._files.put(self._path, self._content(), "create") or self._take_over()
        self._tag = tag
        # A store that ignores conditions would give two drivers the lease.
        if self._files.put(self._path, self._content(), "create") is not None:
            self._files.remove(self._path)
            raise no_conditional_writes(self._url)
        return self.watch.__enter__()

    def __exit__(self, *exception: Any) -> None:
        """Give the lease back."""
        with self._writing:
            self.watch.end()
        try:
            if self._read().fields.get("token") == self._token:
                self._files.remove(self._path)
        except (SetupError, OSError) as error:
            log.warning(
                "The lease of %s could not be deleted and expires in %g s: %s",
                self._url,
                EXPIRES_S,
                error,
            )
        self.watch.__exit__(*exception)

    def _take_over(self) -> str | None:
        """Take the lease of a driver that is gone and return its tag.

        Returns None if the lease is another driver's by now, or there is none.

        Raises:
            SetupError: the other driver lives.
        """
        try:
            lease = self._read()
            if lease.fields.get("name") != self._owner["name"]:
                self._wait_until_expired(lease)
        except FileNotFoundError:
            return None
        return self._files.put(self._path, self._content(), {"e_tag": lease.tag})

    def _wait_until_expired(self, lease: _LeaseFile) -> None:
        holder = _holder_text(lease.fields, "another command")
        self._say(
            f"{self._url} is or was in use by {holder}. Waiting up to {EXPIRES_S:g} s to see "
            "whether that command still runs"
        )
        deadline = self._clock.monotonic() + EXPIRES_S
        while self._clock.monotonic() < deadline:
            self._clock.sleep(LOOK_EVERY_S)
            later = self._read()
            if later.tag != lease.tag:
                raise InUseError(
                    f"{self._url} is in use by {_holder_text(later.fields, 'another command')}",
                    hint="Wait until that command ends, stop it there, or use another --storage",
                )

    def _renew_or_say_why(self) -> SetupError | None:
        """Renew the lease; return why the driver must end if another one has it."""
        try:
            is_ours = self._renew()
        except (SetupError, OSError) as error:
            # A driver that starts elsewhere cannot look now either.
            if not self._away_since:
                self._away_since = self._clock.monotonic()
                reason = error.problem if isinstance(error, SetupError) else error
                self._say(
                    f"The storage does not answer: {reason}. Results of finished trials wait "
                    "until the storage answers"
                )
            return None
        if self._away_since:
            seconds = self._clock.monotonic() - self._away_since
            self._say(f"The storage answers again after {seconds:.0f} s")
            self._away_since = 0.0
        if is_ours:
            return None
        return InUseError(
            f"Another command took over {self._url}, because this one had not renewed its lease "
            f"for {EXPIRES_S:g} s",
            hint="Wait until the other command ends, then run this one again; finished trials are "
            "kept",
        )

    def _renew(self) -> bool:
        """Renew the lease and return whether it is still this driver's."""
        with self._writing:
            if self.watch.ended.is_set():
                return True
            tag = self._files.put(self._path, self._content(), {"e_tag": self._tag})
            if tag is None:
                tag = self._tag_after_refusal()
            if tag is None:
                return False
            self._tag = tag
            return True

    def _tag_after_refusal(self) -> str | None:
        """Return the lease's tag if it is this driver's although a renewal was refused."""
        try:
            lease = self._read()
        except FileNotFoundError:
            # Whoever takes a lease over leaves one: files were lost.
            return self._files.put(self._path, self._content(), "create")
        # Perhaps only the reply to an earlier renewal was lost.
        if lease.fields.get("token") == self._token:
            return lease.tag
        return None

    def _content(self) -> bytes:
        self._beats += 1
        return json.dumps({"beat": self._beats, **self._owner}).encode()

    def _read(self) -> _LeaseFile:
        content, tag = self._files.read_tagged(self._path)
        return _LeaseFile(_parse_holder(content), tag)
