"""Locks, which ensure that only one command at a time uses a root or a result store.

The command that has a lock is the *holder* of the lock. A root has a lock file. When the
holder ends, the operating system unlocks this file. A bucket has no locks. There the holder
has a lease: a file that the holder renews regularly.
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

from orchestrator.machine.watch import Interrupt, Watch
from orchestrator.planning.workspace import Workspace
from orchestrator.results.storage import Bucket, Storage, no_conditional_writes, open_storage
from orchestrator.results.store import ResultStore
from search_spaces.errors import SetupError
from tasks.atomic import read_whole, write_atomic
from tasks.clock import SYSTEM, Clock

log = logging.getLogger(__name__)

LEASE_FILE = "driver-lease.json"
"""Name of the file of a lease in the store."""
RENEW_EVERY_S = 10.0
"""Seconds between two renewals of a lease."""
EXPIRES_S = 60.0
"""Seconds without a renewal after which the holder of a lease counts as dead."""
CHECK_EVERY_S = 0.5
"""Seconds between two checks that a lock file is still at its path. In this time, a run whose
root was moved may make a few files at the old path."""
READ_LEASE_EVERY_S = 2.0
"""Seconds between two reads of the lease of another driver."""
LOCK_ATTEMPTS = 10
"""Largest number of attempts to lock a file."""
LOCK_PAUSE_S = 0.02
"""Seconds between two attempts to lock a file. The first attempt may fail even if there is no
holder, because :func:`is_locked` locks the file for microseconds."""


class InUseError(SetupError):
    """Error that is raised if another command uses the root or the result store."""


@contextlib.contextmanager
def lock_root_and_store(
    workspace: Workspace, purpose: str, print_note: Callable[[str], None] = log.warning
) -> Iterator[None]:
    """Lock a sweep's root and its result store during a ``with`` block.

    The store needs a separate lock, because two roots may use the same store.

    Args:
        workspace: the sweep's root and store.
        purpose: name of this command for people, for example ``isweep run paper``. If another
            command needs the lock, the message of that command contains this name.
        print_note: function that prints a message for the user during a wait.

    Raises:
        SetupError: another command has locked the root or the store.
    """
    store_lock = ResultStore(workspace.results_url).lock
    with contextlib.ExitStack() as locks:
        locks.enter_context(lock_file(workspace.paths.lock, purpose))
        if store_lock is not None:
            locks.enter_context(lock_file(store_lock, purpose, "storage"))
        else:
            name = _root_name(workspace.paths.identity)
            locks.enter_context(Lease(workspace.results_url, name, purpose, print_note))
        yield


def _root_name(identity: Path) -> str:
    """Return a name that identifies a root. It contains the host and an id that is stored in
    the root.

    If the root is copied to another host, the copy has another name.
    """
    try:
        if not identity.exists():
            write_atomic(str(identity), secrets.token_hex(8).encode())
        return f"{socket.gethostname()}-{identity.read_text(encoding='ascii')[:16]}"
    except (OSError, ValueError) as error:
        raise SetupError(
            f"The id of the root cannot be read from or written to {identity}: {error}",
            hint=f"Delete {identity}, and run the same command again. isweep then makes a new id",
        ) from None


@contextlib.contextmanager
def lock_file(path: Path, purpose: str, kind: str = "root") -> Iterator[None]:
    """Lock a file during a ``with`` block.

    If somebody deletes the file meanwhile, a second command could create and lock a new file.
    To prevent this, a thread checks that the file is still at its path. If the file was
    deleted, the thread creates and locks a new file. If the file was moved, for example
    because its folder was renamed, the thread ends the block.

    Args:
        path: the lock file.
        purpose: name of this command for people, for example ``isweep run paper``. If another
            command needs the lock, the message of that command contains this name.
        kind: ``root`` or ``storage``. The option with this name sets the path.

    Raises:
        SetupError: another process has locked the file, the file cannot be locked, or it was
            moved.
    """
    lock = _LockFile(path, purpose, kind)
    try:
        lock.take()
        with Watch("lock", CHECK_EVERY_S, lock.take_again):
            yield
    finally:
        lock.release()


class _LockFile:
    """A lock file, and deleted lock files that this process still has open."""

    def __init__(self, path: Path, purpose: str, kind: str) -> None:
        self._path = path
        self._kind = kind
        self._holder = {"pid": os.getpid(), "purpose": purpose, "since": time.strftime("%F %T")}
        self._open_files: list[TextIO] = []
        """The deleted lock files, followed by the locked file. Two threads use this list."""
        self._mutex = threading.Lock()
        """Lock of the list. A thread holds it while it adds a file or closes all files."""

    def take(self) -> None:
        """Lock the file at the path.

        Raises:
            SetupError: another process has locked the file, or the file cannot be locked.
        """
        file = self._open()
        self._open_files.append(file)
        if not self._lock(file):
            self._open_files.remove(file)
            file.close()
            holder = _holder_text(_read_holder(self._path))
            raise InUseError(
                f"{self._path.parent} is in use by {holder}",
                hint=f"Wait until that command ends, stop it with Ctrl-C, or use another "
                f"--{self._kind}",
            )
        file.truncate(0)
        json.dump(self._holder, file)
        file.flush()

    def take_again(self) -> SetupError | None:
        """Lock a new file if the locked file was deleted.

        Returns:
            An error if the locked file was moved, or if the new file cannot be locked, for
            example because another command has locked it. Otherwise None.
        """
        with self._mutex:
            if not self._open_files or self._is_at_path():
                return None
            if os.fstat(self._open_files[-1].fileno()).st_nlink > 0:
                return self._error_about_move()
            try:
                self.take()
            except SetupError as error:
                return error
            log.warning("The lock file %s was deleted. isweep made and locked it again", self._path)
            return None

    def _error_about_move(self) -> SetupError:
        """Return the error for a locked file that exists, but not at its path."""
        path_now = os.readlink(f"/proc/self/fd/{self._open_files[-1].fileno()}")
        return SetupError(
            f"{self._path.parent} was moved to {Path(path_now).parent} while this command used it",
            hint=f"Give its new path as --{self._kind}, and run the same command again. "
            "Finished trials are kept",
        )

    def release(self) -> None:
        """Unlock all files."""
        with self._mutex:
            for file in self._open_files:
                file.truncate(0)
                file.close()
            self._open_files.clear()

    def _is_at_path(self) -> bool:
        """Return whether the locked file is still at its path. Somebody may have deleted it."""
        try:
            file_at_path = os.stat(self._path)
        except OSError:
            return False
        return os.path.samestat(os.fstat(self._open_files[-1].fileno()), file_at_path)

    def _open(self) -> TextIO:
        """Return the open lock file. If it does not exist, create it."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            return open(self._path, "a+", encoding="utf-8", opener=_open_no_link)
        except OSError as error:
            for folder in self._path.parents:
                if folder.exists() and not folder.is_dir():
                    raise SetupError(
                        f"{folder} is a file, but should be a folder",
                        hint=f"Move or delete the file, or use another --{self._kind}",
                    ) from None
            raise SetupError(
                f"The lock file {self._path} cannot be opened: {error.strerror or error}",
                hint=f"Delete {self._path}, or correct the permissions of its folder",
            ) from None

    def _lock(self, file: TextIO) -> bool:
        """Lock an open file. Return False if another process has locked it."""
        for _ in range(LOCK_ATTEMPTS):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(LOCK_PAUSE_S)
            except OSError as error:
                raise SetupError(
                    f"{self._path} cannot be locked, so two commands could change the same "
                    f"files: {error.strerror or error}",
                    hint="Use a folder on a local disk, or mount the file system with locks "
                    "(NFS: without the option nolock)",
                ) from None
            else:
                return True
        return False


def _open_no_link(path: str, flags: int) -> int:
    """Open a file for :func:`open`. Refuse a symbolic link, because its target would be
    emptied.
    """
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def is_locked(path: Path) -> bool:
    """Return whether a process has locked the file now."""
    # The errors mean that there is no lock file, or that it cannot be locked.
    with contextlib.suppress(OSError):
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(file)  # unlocks the file
    return False


def holder_pid(path: Path) -> int | None:
    """Return the process id of a lock file's holder. Return None if there is no holder, or if
    its id is unknown.
    """
    if not is_locked(path):
        return None
    pid = _read_holder(path).get("pid")
    return pid if isinstance(pid, int) else None


def _read_holder(path: Path) -> dict[str, Any]:
    """Return the facts about the holder that a lock file contains. Return an empty dict if the
    file cannot be read.
    """
    with contextlib.suppress(OSError):
        return _parse_holder(read_whole(path))
    return {}


def _parse_holder(content: bytes) -> dict[str, Any]:
    """Return the facts that a holder wrote about itself. Return an empty dict if they cannot
    be parsed.
    """
    with contextlib.suppress(ValueError, RecursionError):
        fields = json.loads(content)
        return fields if isinstance(fields, dict) else {}
    return {}


def _holder_text(fields: dict[str, Any]) -> str:
    """Return a text about the holder for a message. Some facts may be missing."""
    if not {"pid", "purpose", "since"} <= fields.keys():
        return "another command"
    host = f" of {fields['host']}" if "host" in fields else ""
    return f"process {fields['pid']}{host} ({fields['purpose']}, since {fields['since']})"


@dataclass(frozen=True)
class _LeaseFile:
    """One version of the file of a lease.

    Attributes:
        fields: facts that the holder wrote about itself, or an empty dict if they cannot be
            parsed.
        tag: tag with which the store identifies this version.
    """

    fields: dict[str, Any]
    tag: str


class Lease:
    """The lease with which a driver uses a bucket alone during a ``with`` block.

    The lease is one file. The store gives each version of the file a new tag. A driver writes
    the file only on a condition: there is no file, or the file still has the tag that the
    driver knows. If the condition holds, the store writes the file and returns the new tag.
    Otherwise it returns None. If several drivers start at once, exactly one of them therefore
    gets the lease.

    If a lease does not change for :data:`EXPIRES_S` seconds, its holder counts as dead. This
    time is measured with the clock of this machine only. If an earlier lease has the same
    ``name``, it belongs to a dead driver, because this process has locked the same root.

    Args:
        url: folder or URL of the store.
        name: name of the root, as :func:`_root_name` returns it.
        purpose: name of this command for people, for example ``isweep run paper``. If another
            command needs the lock, the message of that command contains this name.
        print_note: function that prints a message for the user during a wait.
        clock: source of the time for waits and renewals.
        interrupt: function that ends the main thread if the lease is lost.
    """

    def __init__(
        self,
        url: str | Storage,
        name: str,
        purpose: str,
        print_note: Callable[[str], None] = log.warning,
        clock: Clock = SYSTEM,
        interrupt: Interrupt | None = None,
    ) -> None:
        self._print_note = print_note
        self._clock = clock
        self._files = cast("Bucket", open_storage(url))
        self._url = url if isinstance(url, str) else url.base
        self._path = posixpath.join(self._files.base, LEASE_FILE)
        self._token = secrets.token_hex(8)
        """Random text that identifies this driver in the lease's file."""
        self._num_writes = 0
        self._tag = ""
        """Tag of the last version that this driver wrote."""
        self._holder = {
            "name": name,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "purpose": purpose,
            "token": self._token,
            "since": time.strftime("%F %T"),
        }
        self._write_lock = clock.condition()
        """Lock that a thread holds during a renewal. It prevents a renewal while the lease is
        deleted."""
        self._silent_since: float | None = None
        """Monotonic time of the first renewal that the storage did not answer. It is None
        while the storage answers."""
        self.watch = Watch("lease", RENEW_EVERY_S, self._renew, clock, interrupt)

    def __enter__(self) -> Watch:
        """Get the lease. Start the thread that renews the lease."""
        tag = None
        while tag is None:
            tag = self._files.put(self._path, self._content(), "create") or self._take_over()
        self._tag = tag
        # The file exists now. A store that creates it again would give two drivers the lease.
        if self._files.put(self._path, self._content(), "create") is not None:
            self._files.remove(self._path)
            raise no_conditional_writes(self._url)
        return self.watch.__enter__()

    def __exit__(self, *exception: Any) -> None:
        """Stop the renewals, and delete the lease."""
        with self._write_lock:
            self.watch.end()  # no renewal starts after this
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
        """Replace the lease of a dead holder. Return the new tag.

        Return None if another driver was faster, or if there is no lease.

        Raises:
            InUseError: the holder is alive.
        """
        try:
            lease = self._read()
            if lease.fields.get("name") != self._holder["name"]:
                self._wait_until_expired(lease)
        except FileNotFoundError:
            return None
        return self._files.put(self._path, self._content(), {"e_tag": lease.tag})

    def _wait_until_expired(self, lease: _LeaseFile) -> None:
        """Wait until a lease has expired.

        Raises:
            InUseError: the lease has changed, so its holder is alive.
        """
        holder = _holder_text(lease.fields)
        self._print_note(
            f"{self._url} is or was in use by {holder}. isweep waits up to {EXPIRES_S:,.0f} s "
            "to see whether that command is still running"
        )
        deadline = self._clock.monotonic() + EXPIRES_S
        while self._clock.monotonic() < deadline:
            self._clock.sleep(READ_LEASE_EVERY_S)
            later = self._read()
            if later.tag != lease.tag:
                raise InUseError(
                    f"{self._url} is in use by {_holder_text(later.fields)}",
                    hint="Wait until that command ends, stop that command, or use another "
                    "--storage",
                )

    def _renew(self) -> SetupError | None:
        """Renew the lease. Return an error if another driver has taken over the lease."""
        try:
            is_ours = self._write_again()
        except (SetupError, OSError) as error:
            # No other driver can get the lease while the storage does not answer.
            if self._silent_since is None:
                self._silent_since = self._clock.monotonic()
                reason = error.problem if isinstance(error, SetupError) else error
                self._print_note(
                    f"The storage does not answer: {reason}. isweep stores the results of "
                    "finished trials when the storage answers again"
                )
            return None
        if self._silent_since is not None:
            seconds = self._clock.monotonic() - self._silent_since
            self._print_note(f"The storage answers again after {seconds:.0f} s")
            self._silent_since = None
        if is_ours:
            return None
        return InUseError(
            f"Another command now uses {self._url}, because this command did not renew its "
            f"lock for {EXPIRES_S:g} s",
            hint="Wait until the other command ends, then run this command again. Finished "
            "trials are kept",
        )

    def _write_again(self) -> bool:
        """Write a new version of the lease. Return whether the lease still belongs to this
        driver.
        """
        with self._write_lock:
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
        """Return the tag of this driver's lease after the store refused a renewal. Return None
        if the lease is lost.
        """
        try:
            lease = self._read()
        except FileNotFoundError:
            # Another driver would have written a new lease, so somebody deleted the file.
            return self._files.put(self._path, self._content(), "create")
        # An earlier renewal may have succeeded although its reply was lost.
        if lease.fields.get("token") == self._token:
            return lease.tag
        return None

    def _content(self) -> bytes:
        """Return new content for the file of the lease. A number makes each version different."""
        self._num_writes += 1
        return json.dumps({"beat": self._num_writes, **self._holder}).encode()

    def _read(self) -> _LeaseFile:
        content, tag = self._files.read_tagged(self._path)
        return _LeaseFile(_parse_holder(content), tag)
