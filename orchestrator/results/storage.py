"""Where results and weights are kept: a local folder, or an object store by its URL.

Both are asked in the same words. A write is whole or not there: locally a flushed sibling is renamed, and an
object store's put is atomic by itself, and may be made to depend on what is there (:mod:`.locks` needs it).
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import posixpath
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

from search_spaces.errors import ConfigError, SetupError
from tasks.atomic import read_whole, write_atomic
from tasks.clock import SYSTEM, Clock

# Storage that is full or away pauses a sweep instead of ending it: the write is tried until it is taken.

log = logging.getLogger(__name__)
T = TypeVar("T")

FULL = frozenset((errno.ENOSPC, errno.EDQUOT))
PASSING = FULL | {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH}
"""What an operating system says of a disk that may have room again, or of a file system that may be back."""

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 10.0
REMIND_AFTER_S = 600.0


class StorageAway(SetupError):
    """Storage that took nothing just now and may again: it is full, or does not answer."""


@dataclass
class Patience:
    """Repeats a write for as long as storage is full or away.

    Attributes:
        say: Is told once when a pause begins, now and then while it lasts, and when it ends.
        limit_s: Seconds after which the error is raised after all.
        clock: What it waits by.
    """

    say: Callable[[str], None] = log.warning
    limit_s: float = math.inf
    clock: Clock = SYSTEM

    def until_done(self, write: Callable[[], T]) -> T:
        """Return what ``write`` returns as soon as storage takes it.

        Args:
            write: May be called any number of times.

        Raises:
            SweepError: of ``write``, for whatever waiting does not mend, or has not in ``limit_s``.
            OSError: likewise.
        """
        began = said = None
        pause = FIRST_PAUSE_S
        while True:
            try:
                done = write()
            except (StorageAway, OSError) as error:
                now = self.clock.monotonic()
                reason = _reason(error)
                began = now if began is None else began
                if reason is None or now - began > self.limit_s:
                    raise
                if said is None or now - said > REMIND_AFTER_S:
                    said = now
                    self.say(
                        f"Paused: {reason}. The sweep goes on by itself when there is room and an answer; "
                        "Ctrl-C stops it, and what is done is kept"
                    )
                self.clock.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_S)
                continue
            if began is not None:
                lasted = self.clock.monotonic() - began
                self.say(f"Storage takes results again after {lasted:.0f} s; going on")
            return done


def _reason(error: Exception) -> str | None:
    """Say what is wrong, with path and room; None where waiting would not mend it."""
    if isinstance(error, StorageAway):
        return error.value
    if isinstance(error, OSError) and error.errno in PASSING:
        return f"{error.filename or 'a file'}: {error.strerror}"
    return None


LASTING = ("s3", "gs", "az", "abfs", "abfss")
"""Schemes of stores that keep what is written and let it be replaced."""

CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 10.0
TRIES = 3
"""Of one request, by the client itself; what lasts longer pauses a sweep (:mod:`.patience`)."""

READ_TOGETHER = 32

Content = bytes | OSError
RULE = "The result store must be writable"
WAY_OUT = "free space or fix the permissions, then run the same command again: what is done is kept"


@dataclass(frozen=True)
class Found:
    """A file that is there.

    Attributes:
        path: Where.
        stamp: Changes whenever the file is replaced: its size and time, and its number where it has one.
    """

    path: str
    stamp: str


class Storage(Protocol):
    """A place for whole files; methods raise StorageAway or SetupError where nothing else is said."""

    base: str

    def read(self, path: str) -> bytes:
        """Return a file's content.

        Raises:
            FileNotFoundError: when there is none.
            OSError: when a local one cannot be read.
        """

    def read_many(self, files: Iterable[Found]) -> Iterator[tuple[Found, Content]]:
        """Yield files with their content, in order; an error for a local one that cannot be read."""

    def write(
        self, path: str, data: bytes, rule: str = RULE, way_out: str = WAY_OUT, *, durable: bool = True
    ) -> None:
        """Replace a file, whole or not at all.

        Args:
            path: Which.
            data: Its new content.
            rule: For the message when it fails.
            way_out: Likewise.
            durable: Whether a power cut must not take it.
        """

    def remove(self, path: str) -> None:
        """Remove a file, if there is one."""

    def stamp(self, path: str) -> str:
        """Return a file's stamp; empty where there is none, or none can be had now."""

    def find(self, folder: str, name: str) -> Iterator[Found]:
        """Yield the files called ``name`` in the folders of ``folder``, ordered by path."""


def open_storage(url: str | Storage) -> Storage:
    """Open the store at ``url``, a local path or the URL of an object store; nothing is asked or made.

    One that is open already is given back.

    Raises:
        ConfigError: for a URL that is none, holds a password, or belongs to a store that keeps nothing.
    """
    if not isinstance(url, str):
        return url
    scheme, mark, _ = url.partition("://")
    if not mark:
        return Folder(os.path.abspath(os.path.expanduser(url)))
    if scheme in ("file", "local"):
        return Folder(os.path.abspath(url.removeprefix(f"{scheme}://")))
    if scheme not in LASTING:
        raise ConfigError(
            "--storage must be a folder or a store that keeps results when the command has ended",
            f"{scheme}://…",
            f"use a path, or a URL of {', '.join(LASTING)}",
        )
    try:
        parts = urlsplit(url)
        secret, host = parts.password, parts.hostname
    except ValueError:
        secret, host = None, None
    if secret:
        raise ConfigError(
            "--storage must hold no password: every user of the machine can read a command line",
            f"{scheme}://…@{host}",
            "give it in the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY), a file, or a role",
        )
    if not host or parts.query or parts.fragment:
        what = f"{scheme}://{host or ''}"
        raise ConfigError("--storage must name a bucket or host, and no more than a path in it", what)
    return _opened(scheme, url)


def _opened(scheme: str, url: str) -> Bucket:
    from obstore.exceptions import BaseError
    from obstore.store import from_url

    # As every program of AWS does, by environment, file or role; boto3 reads what obstore does not.
    address = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    settings: dict[str, Any] = {
        "client_options": {
            "connect_timeout": f"{CONNECT_TIMEOUT_S:g} seconds",
            "timeout": f"{ANSWER_TIMEOUT_S:g} seconds",
            "allow_http": address.startswith("http://"),
        },
        "retry_config": {
            "max_retries": TRIES - 1,
            "retry_timeout": timedelta(seconds=TRIES * ANSWER_TIMEOUT_S),
        },
    }
    if scheme == "s3" and "AWS_ACCESS_KEY_ID" not in os.environ and find_spec("boto3"):
        from obstore.auth.boto3 import Boto3CredentialProvider

        with contextlib.suppress(ValueError):  # nobody's: the store may be open, or says who it wants
            settings["credential_provider"] = Boto3CredentialProvider()
    base = url.partition("://")[2].rstrip("/")
    try:
        store = from_url(f"{scheme}://{base.partition('/')[0]}", **settings)
    except (BaseError, ValueError) as error:
        told = f"{scheme}://…: {str(error).splitlines()[0]}"
        raise ConfigError("--storage must be a URL that can be opened", told, "see docs/cluster.md") from None
    return Bucket(store, base, f"{scheme}://")


class Folder:
    """A local folder."""

    def __init__(self, base: str) -> None:
        self.base = base

    def read(self, path: str) -> bytes:
        """See :class:`Storage`."""
        return read_whole(path)

    def read_many(self, files: Iterable[Found]) -> Iterator[tuple[Found, Content]]:
        """See :class:`Storage`."""
        for found in files:
            try:
                yield found, self.read(found.path)
            except FileNotFoundError:
                continue  # removed since it was listed
            except OSError as error:
                yield found, error

    def write(
        self, path: str, data: bytes, rule: str = RULE, way_out: str = WAY_OUT, *, durable: bool = True
    ) -> None:
        """See :class:`Storage`."""
        try:
            write_atomic(path, data, durable=durable)
        except OSError as error:
            room = free_space(posixpath.dirname(path))
            found = f"{path} ({len(data):,} bytes needed): {error.strerror or error}; {room}"
            raise (StorageAway if error.errno in PASSING else SetupError)(rule, found, way_out) from error

    def remove(self, path: str) -> None:
        """See :class:`Storage`."""
        Path(path).unlink(missing_ok=True)

    def stamp(self, path: str) -> str:
        """See :class:`Storage`."""
        try:
            return _stamp(path)
        except OSError:
            return ""

    def find(self, folder: str, name: str) -> Iterator[Found]:
        """See :class:`Storage`."""
        try:
            names = sorted(os.listdir(folder))
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise _unreadable(folder, error) from error
        for entry in names:
            path = f"{folder}/{entry}/{name}"
            try:
                yield Found(path, _stamp(path))
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError:
                yield Found(path, "")  # reading it says why


class Bucket:
    """An object store behind a URL; requests that it lets alone are tried again, files are read in parallel.

    Args:
        store: Of obstore, at the bucket's root.
        base: The bucket, and the path in it.
        prefix: What a URL has before such a path.
    """

    def __init__(self, store: Any, base: str, prefix: str) -> None:
        self._store, self.base, self._prefix = store, base, prefix

    def read(self, path: str) -> bytes:
        """See :class:`Storage`."""
        return self.read_tagged(path)[0]

    def read_tagged(self, path: str) -> tuple[bytes, str]:
        """Return a file's content, and the tag by which :meth:`replace` knows it.

        Raises:
            FileNotFoundError: when there is none.
            StorageAway: likewise.
            SetupError: as all methods.
        """
        import obstore

        with self._told(path):
            found = obstore.get(self._store, self._key(path))
            return bytes(found.bytes()), str(found.meta["e_tag"])

    def read_many(self, files: Iterable[Found]) -> Iterator[tuple[Found, Content]]:
        """See :class:`Storage`."""
        listed = list(files)
        with ThreadPoolExecutor(READ_TOGETHER) as pool:
            for found, content in zip(listed, pool.map(self._read_if_there, listed), strict=True):
                if content is not None:
                    yield found, content

    def _read_if_there(self, found: Found) -> bytes | None:
        try:
            return self.read(found.path)
        except FileNotFoundError:
            return None

    def write(
        self, path: str, data: bytes, rule: str = RULE, way_out: str = WAY_OUT, *, durable: bool = True
    ) -> None:
        """See :class:`Storage`."""
        import obstore

        try:
            with self._told(path, rule, way_out):
                obstore.put(self._store, self._key(path), data)
        except FileNotFoundError:
            raise self._no_bucket() from None

    def create(self, path: str, data: bytes) -> str | None:
        """Write a file unless there is one; returns its tag, None when there was."""
        return self._put(path, data, "create")

    def replace(self, path: str, data: bytes, tag: str) -> str | None:
        """Replace a file that still has this tag; returns its new one, None when it is another file."""
        return self._put(path, data, {"e_tag": tag})

    def _put(self, path: str, data: bytes, mode: Any) -> str | None:
        import obstore
        from obstore.exceptions import AlreadyExistsError, NotSupportedError, PreconditionError

        try:
            with self._told(path):
                return str(obstore.put(self._store, self._key(path), data, mode=mode)["e_tag"])
        except (AlreadyExistsError, PreconditionError):
            return None
        except NotSupportedError:
            raise unconditional(f"{self._prefix}{self.base}") from None
        except FileNotFoundError:
            if mode == "create":
                raise self._no_bucket() from None
            return None

    def remove(self, path: str) -> None:
        """See :class:`Storage`."""
        import obstore

        with contextlib.suppress(FileNotFoundError), self._told(path):
            obstore.delete(self._store, self._key(path))

    def stamp(self, path: str) -> str:
        """See :class:`Storage`."""
        import obstore

        try:
            with self._told(path):
                return self._stamp(obstore.head(self._store, self._key(path)))
        except (SetupError, FileNotFoundError):
            return ""

    def find(self, folder: str, name: str) -> Iterator[Found]:
        """See :class:`Storage`."""
        import obstore

        bucket = folder.partition("/")[0]
        try:
            with self._told(folder):
                listed = [one for part in obstore.list(self._store, self._key(folder)) for one in part]
        except FileNotFoundError:
            raise self._no_bucket() from None
        depth = folder.count("/") + 2
        for one in sorted(listed, key=lambda one: str(one["path"])):
            path = f"{bucket}/{one['path']}"
            if path.rpartition("/")[2] == name and path.count("/") == depth:
                yield Found(path, self._stamp(one))

    def _key(self, path: str) -> str:
        return path.partition("/")[2]

    @staticmethod
    def _stamp(about: Any) -> str:
        return f"{about['size']}-{about['last_modified'].timestamp():.0f}-{about['e_tag']}"

    def _no_bucket(self) -> SetupError:
        name = self.base.partition("/")[0]
        return SetupError(
            "The bucket of the result store must exist",
            f"{self._prefix}{name}",
            "make it, or correct --storage",
        )

    @contextmanager
    def _told(self, path: str, rule: str = "", way_out: str = "") -> Iterator[None]:
        """Say in our words what the store says; whether it may answer again decides if a sweep waits."""
        from obstore.exceptions import BaseError, GenericError, PermissionDeniedError, UnauthenticatedError

        try:
            yield
        except (GenericError, PermissionDeniedError, UnauthenticatedError) as error:
            text = " ".join(str(error).partition("Debug source")[0].split())
            status = re.search(r"status code: (\d+)", text)
            code = int(status[1]) if status else 0
            if code == 404:
                raise FileNotFoundError(path) from error
            passing = isinstance(error, GenericError) and (not code or code in (408, 429) or code >= 500)
            raise (StorageAway if passing else SetupError)(
                rule or "The result store must be readable",
                f"{self._prefix}{path}: {text[:300]}",
                way_out or "mend the permissions or the connection, then run the same command again",
            ) from error
        except BaseError as error:
            if type(error).__name__ in ("AlreadyExistsError", "PreconditionError", "NotSupportedError"):
                raise
            rule = "The result store must do as asked"
            raise SetupError(rule, f"{self._prefix}{path}: {error}") from error


def unconditional(url: str) -> SetupError:
    """Return the error for an object store whose writes cannot be made to depend on what is there."""
    return SetupError(
        "An object store must take conditional writes, by which one driver at a time holds it",
        f"{url}: it writes over what is there",
        "update the server (MinIO since 2024-10, Ceph since Tentacle), or use another --storage",
    )


def _stamp(path: str) -> str:
    about = os.stat(path)
    return f"{about.st_size}-{about.st_mtime_ns}-{about.st_ino}"


def _unreadable(path: str, error: OSError) -> SetupError:
    return SetupError(
        "The result store must be readable",
        f"{path}: {error.strerror or error}",
        "mend the permissions or the connection, then run the same command again",
    )


def free_space(path: str) -> str:
    """Say how many bytes are free where ``path`` lies or would lie, for messages."""
    for folder in (Path(path), *Path(path).parents):
        try:
            return f"{shutil.disk_usage(folder).free:,} bytes free"
        except OSError:
            continue
    return "free space unknown"
