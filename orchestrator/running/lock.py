"""One driver per root and per store: a lock that the operating system drops with the process that held it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from orchestrator.planning.paths import RootPaths
from orchestrator.planning.workspace import Workspace
from orchestrator.results.store import ResultStore
from orchestrator.running.lease import Lease
from search_spaces.errors import SetupError
from tasks.atomic import read_whole, write_atomic

log = logging.getLogger(__name__)

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
                f"{path.parent} is in use by {_holder(path)}",
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


def _holder(path: Path) -> str:
    try:
        held = json.loads(read_whole(path))
        return f"process {held['pid']} ({held['purpose']}, since {held['since']})"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "another process"
