"""One driver per root and per store: a lock that the operating system drops with its holder, or a
lease.
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
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

from orchestrator.machine.ending import Interrupt, Watch
from orchestrator.planning.workspace import Workspace
from orchestrator.results.storage import Bucket, Storage, open_storage, unconditional
from orchestrator.results.store import ResultStore
from search_spaces.errors import SetupError
from tasks.atomic import read_whole, write_atomic
from tasks.clock import SYSTEM, Clock

log = logging.getLogger(__name__)

FILE = "driver-lease.json"
BEAT_S = 10.0
EXPIRES_S = 60.0
LOOK_EVERY_S = 2.0
RULE = "Only one isweep command may work on a {} at a time"
PROBE_ATTEMPTS = 10
PROBE_PAUSE_S = 0.02
"""A look at the lock (:func:`is_held`) holds it, shared, for microseconds: no reason for a run to
give up."""


@contextlib.contextmanager
def locked(
    workspace: Workspace, purpose: str, say: Callable[[str], None] = log.warning
) -> Iterator[None]:
    """Hold the locks of a sweep's root and, since two roots may share one, of its result store."""
    store = ResultStore(workspace.results_url).lock
    with contextlib.ExitStack() as locks:
        locks.enter_context(exclusive(workspace.paths.lock, purpose))
        if store is not None:
            locks.enter_context(exclusive(store, purpose, "storage"))
        else:
            identity = workspace.paths.identity
            try:
                if not identity.exists():
                    write_atomic(str(identity), secrets.token_hex(8).encode())
                # What tells this root from every other one, copies on other hosts too.
                name = f"{socket.gethostname()}-{identity.read_text(encoding='ascii')[:16]}"
            except (OSError, ValueError) as error:
                rule, found = "A root's own id must be a file of 16 letters", f"{identity}: {error}"
                raise SetupError(rule, found, "delete it: the next run makes another") from None
            locks.enter_context(Lease(workspace.results_url, name, purpose, say))
        yield


@contextlib.contextmanager
def exclusive(path: Path, purpose: str, what: str = "root") -> Iterator[None]:
    """Hold the lock at ``path``, of a ``what``, during a ``with`` block."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+", encoding="utf-8", opener=_no_link)  # noqa: SIM115 (closed by the block below)
    except OSError as error:
        rule = "The lock of a root must be a file that can be written"
        found = f"{path}: {error.strerror or error}"
        raise SetupError(
            rule, found, "remove what is in its place or mend its permissions"
        ) from None
    with file:
        for _ in range(PROBE_ATTEMPTS):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(PROBE_PAUSE_S)
            except OSError as error:
                rule = "The file system must have locks, or two runs could work on one root"
                hint = (
                    "keep it on a local disk, or mount the file system with locks (NFS: no nolock)"
                )
                raise SetupError(rule, f"{path}: {error.strerror or error}", hint) from None
        else:
            found = f"{path.parent} is in use by {_holder(_said(path), 'another process')}"
            hint = f"wait for it, stop it with Ctrl-C, or use another --{what}"
            raise SetupError(RULE.format(what), found, hint)
        file.truncate(0)
        json.dump({"pid": os.getpid(), "purpose": purpose, "since": time.strftime("%F %T")}, file)
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def _no_link(path: str, flags: int) -> int:
    """Open a file for :func:`open`; a link is an error, or what it leads to would be emptied."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def is_held(path: Path) -> bool:
    """Tell whether some process holds the lock now."""
    with contextlib.suppress(OSError):  # no lock, or none that could be held
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(file)  # and so the lock goes
    return False


def holder_pid(path: Path) -> int | None:
    """Return the id of the process that holds the lock now; None when nobody does or it has not
    said yet.
    """
    pid = _said(path).get("pid") if is_held(path) else None
    return pid if isinstance(pid, int) else None


def _said(path: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError):
        return _parsed(read_whole(path))
    return {}


def _parsed(content: bytes) -> dict[str, Any]:
    """Return what a holder says; nothing where that cannot be read."""
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(content)
        return found if isinstance(found, dict) else {}
    return {}


def _holder(about: dict[str, Any], unknown: str) -> str:
    if not {"pid", "purpose", "since"} <= about.keys():
        return unknown
    host = f" of {about['host']}" if "host" in about else ""
    return f"process {about['pid']}{host} ({about['purpose']}, since {about['since']})"


class Lease:
    """One driver per object store, which has no locks: held during a ``with`` block.

    It is one file, written only over what is known to be there, so that of many that start at once
    exactly one has it. Whether its holder lives is told by the file changing, never by a clock: one
    that stays as it is for :data:`EXPIRES_S` belongs to a driver that is gone. An earlier lease of
    ``name``, of a root whose own lock is held, is dead. ``say`` is told of what is waited for,
    ``interrupt`` ends the main thread where the lease is lost.
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
        self._say, self._clock = say, clock
        self._files = cast("Bucket", open_storage(url))
        self._url = url if isinstance(url, str) else url.base
        self._path = posixpath.join(self._files.base, FILE)
        self._token, self._beats, self._tag = secrets.token_hex(8), 0, ""
        self._who = {
            "name": name,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "purpose": purpose,
        }
        self._who |= {"token": self._token, "since": time.strftime("%F %T")}
        self._writing, self._away_since = clock.condition(), 0.0
        self.watch = Watch("lease", BEAT_S, self._beat, clock, interrupt)

    def __enter__(self) -> Watch:
        """Take it."""
        while not (tag := self._files.put(self._path, self._content(), "create")):
            if tag := self._taken_over():
                break
        self._tag = tag
        if self._files.put(self._path, self._content(), "create") is not None:
            self._files.remove(self._path)
            raise unconditional(self._url)
        return self.watch.__enter__()

    def __exit__(self, *ended_by: Any) -> None:
        """Give it back."""
        with self._writing:
            self.watch.end()
        try:
            if self._read()[0].get("token") == self._token:
                self._files.remove(self._path)
        except (SetupError, OSError) as problem:
            log.warning(
                "the lease of %s stays, and expires in %g s: %s", self._url, EXPIRES_S, problem
            )
        self.watch.__exit__(*ended_by)

    def _taken_over(self) -> str | None:
        """Take the lease of a driver that is gone; None when it is another one, or none, by now."""
        try:
            found, tag = self._read()
            if found.get("name") != self._who["name"]:
                self._say(
                    f"{self._url} was or is in use by {_holder(found, 'another driver')}; looking "
                    "for up to "
                    f"{EXPIRES_S:g} s whether that driver lives"
                )
                until = self._clock.monotonic() + EXPIRES_S
                while self._clock.monotonic() < until:
                    self._clock.sleep(LOOK_EVERY_S)
                    later, other = self._read()
                    if other != tag:
                        told = f"{self._url} is in use by {_holder(later, 'another driver')}"
                        hint = "wait for it, stop it there, or use another --storage"
                        raise SetupError(RULE.format("storage"), told, hint)
        except FileNotFoundError:
            return None
        return self._files.put(self._path, self._content(), {"e_tag": tag})

    def _beat(self) -> SetupError | None:
        """Renew the lease; returns why the driver must end when another one has it."""
        try:
            renewed = self._renewed()
        except (SetupError, OSError) as error:
            # Who starts elsewhere cannot look now either.
            if not self._away_since:
                self._away_since = self._clock.monotonic()
                reason = error.value if isinstance(error, SetupError) else error
                self._say(f"The storage does not answer: {reason}. Trials that end wait for it")
            return None
        if self._away_since:
            self._say(
                "The storage answers again after "
                f"{self._clock.monotonic() - self._away_since:.0f} "
                "s"
            )
            self._away_since = 0.0
        if renewed:
            return None
        told = (
            f"{self._url}: another driver took it over; this one had not renewed it for "
            f"{EXPIRES_S:g} s"
        )
        return SetupError(RULE.format("storage"), told, "let that one end; what is done is kept")

    def _renewed(self) -> bool:
        """Renew the lease; False when it is another driver's."""
        with self._writing:
            if self.watch.ended.is_set():
                return True
            tag = self._files.put(self._path, self._content(), {"e_tag": self._tag})
            if tag is None:
                try:
                    found, there = self._read()
                except FileNotFoundError:  # whoever takes over leaves one: files were lost
                    tag = self._files.put(self._path, self._content(), "create")
                else:
                    tag = (
                        there if found.get("token") == self._token else None
                    )  # only the reply was lost
            self._tag = tag or self._tag
            return tag is not None

    def _content(self) -> bytes:
        self._beats += 1
        return json.dumps({"beat": self._beats, **self._who}).encode()

    def _read(self) -> tuple[dict[str, Any], str]:
        """Return what the lease says, and its tag."""
        content, tag = self._files.read_tagged(self._path)
        return _parsed(content), tag
