"""Where results and weights are kept: a local folder, or an object store by its URL.

Both are asked in the same words. A write is whole or not there: locally a flushed sibling is
renamed, and an object store's put is atomic by itself, and may be made to depend on what is there,
which a lease needs.
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
from dataclasses import dataclass
from datetime import timedelta
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

from search_spaces.errors import ConfigError, SetupError
from tasks.atomic import read_whole, remove_folder, write_atomic
from tasks.clock import SYSTEM, Clock

log = logging.getLogger(__name__)

T = TypeVar("T")

FIRST_PAUSE_S, LONGEST_PAUSE_S, REMIND_AFTER_S = 0.5, 10.0, 600.0
PASSING = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ETIMEDOUT}
PASSING |= {errno.EHOSTDOWN, errno.EHOSTUNREACH}
"""What an operating system says of a disk that may have room again, or of a file system that may be
back."""

LASTING = ("s3", "gs", "az", "abfs", "abfss")
"""Schemes of stores that keep what is written and let it be replaced."""
CONNECT_TIMEOUT_S, ANSWER_TIMEOUT_S = 5.0, 10.0
TRIES = 3
"""Of one request, by the client itself; what lasts longer pauses a sweep."""
READ_TOGETHER = 32

AGAIN = "then run the same command again: what is done is kept"
UNREADABLE = "The result store must be readable", f"mend the permissions or the connection, {AGAIN}"
UNWRITABLE = (
    "The result store must be writable",
    (
        "free space (keep_weights: none takes the least), mend the permissions or remove what is "
        "in "
        "the way, "
    )
    + AGAIN,
)

Content = bytes | OSError


class StorageAway(SetupError):
    """Storage that took nothing just now and may again: it is full, or does not answer."""


@dataclass
class Patience:
    """Repeats a write while storage is full or away, ``limit_s`` seconds at most: a sweep pauses,
    not ends.

    ``say`` is told when a pause begins, now and then while it lasts, and when it ends.
    """

    say: Callable[[str], None] = log.warning
    limit_s: float = math.inf
    clock: Clock = SYSTEM

    def until_done(self, write: Callable[[], T]) -> T:
        """Return what ``write`` returns as soon as storage takes it; raises what waiting does not
        mend.
        """
        began, said, pause = None, -math.inf, FIRST_PAUSE_S
        while True:
            try:
                done = write()
            except (StorageAway, OSError) as error:
                now = self.clock.monotonic()
                began = now if began is None else began
                waits = isinstance(error, StorageAway) or error.errno in PASSING
                if not waits or now - began > self.limit_s:
                    raise
                if now - said > REMIND_AFTER_S:
                    said, file = now, getattr(error, "filename", None) or "a file"
                    why = (
                        error.value
                        if isinstance(error, StorageAway)
                        else f"{file}: {error.strerror}"
                    )
                    self.say(
                        f"Paused: {why}. The sweep goes on by itself when there is room and an "
                        "answer; "
                        "Ctrl-C stops it, and what is done is kept"
                    )
                self.clock.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_S)
            else:
                if began is not None:
                    lasted = self.clock.monotonic() - began
                    self.say(f"Storage takes results again after {lasted:.0f} s; going on")
                return done


@dataclass(frozen=True)
class Found:
    """A file that is there; its ``stamp``, of size and time or tag, changes whenever it is
    replaced.
    """

    path: str
    stamp: str


def open_storage(url: str | Storage) -> Storage:
    """Open the store at ``url``, a local path or the URL of an object store; nothing is asked or
    made.

    One that is open is given back. ConfigError for a URL that is none, holds a password, or keeps
    nothing.
    """
    if isinstance(url, Folder | Bucket):
        return url
    scheme, mark, rest = url.partition("://")
    if not mark or scheme == "file":
        return Folder(os.path.abspath(rest if mark else os.path.expanduser(url)))
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
            (
                "give it in the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY), a file, or "
                "a "
                "role"
            ),
        )
    if not host or parts.query or parts.fragment:
        what = f"{scheme}://{host or ''}"
        raise ConfigError(
            "--storage must name a bucket or host, and no more than a path in it", what
        )
    return Bucket(_object_store(scheme, rest.partition("/")[0]), rest.rstrip("/"), f"{scheme}://")


def _object_store(scheme: str, bucket: str) -> Any:
    from obstore.exceptions import BaseError
    from obstore.store import from_url

    # As every program of AWS does, by environment, file or role; boto3 reads what obstore does not.
    address = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    waits = {
        "connect_timeout": f"{CONNECT_TIMEOUT_S:g} seconds",
        "timeout": f"{ANSWER_TIMEOUT_S:g} seconds",
    }
    again = {"max_retries": TRIES - 1, "retry_timeout": timedelta(seconds=TRIES * ANSWER_TIMEOUT_S)}
    client: dict[str, Any] = {**waits, "allow_http": address.startswith("http://")}
    settings: dict[str, Any] = {"client_options": client, "retry_config": again}
    if scheme == "s3" and "AWS_ACCESS_KEY_ID" not in os.environ and find_spec("boto3"):
        from obstore.auth.boto3 import Boto3CredentialProvider

        with contextlib.suppress(
            ValueError
        ):  # nobody's: the store may be open, or says who it wants
            settings["credential_provider"] = Boto3CredentialProvider()
    try:
        return from_url(f"{scheme}://{bucket}", **settings)
    except (BaseError, ValueError) as error:
        told = f"{scheme}://…: {str(error).splitlines()[0]}"
        raise ConfigError(
            "--storage must be a URL that can be opened", told, "see docs/cluster.md"
        ) from None


class Folder:
    """A local folder; methods raise StorageAway or SetupError where nothing else is said."""

    def __init__(self, base: str) -> None:
        self.base = base

    def read(self, path: str) -> bytes:
        """Return a file's content; raises FileNotFoundError, or OSError where it cannot be read."""
        return read_whole(path)

    def read_many(self, files: Iterable[Found]) -> Iterator[tuple[Found, Content]]:
        """Yield files with their content, in order; an error for a local one that cannot be
        read.
        """
        for found in files:
            try:
                yield found, self.read(found.path)
            except FileNotFoundError:
                continue  # removed since it was listed
            except OSError as error:
                yield found, error

    def write(self, path: str, data: bytes, *, durable: bool = True) -> str:
        """Replace a file, whole or not at all; returns its stamp. No power cut takes a ``durable``
        one.
        """
        try:
            if os.path.isdir(path):
                self.remove(path)
            write_atomic(path, data, durable=durable)
            return _file_stamp(path)
        except OSError as error:
            rule, hint = UNWRITABLE
            free = "free space unknown"
            for folder in reversed(Path(path).parents):
                with contextlib.suppress(OSError):
                    free = f"{shutil.disk_usage(folder).free:,} bytes free"
            told = f"{path} ({len(data):,} bytes needed): {error.strerror or error}; {free}"
            raise (StorageAway if error.errno in PASSING else SetupError)(
                rule, told, hint
            ) from error

    def remove(self, path: str) -> None:
        """Remove a file, or a folder in its place, if there is one."""
        if os.path.isdir(path) and not os.path.islink(path):
            log.warning("%s is a folder, where a file belongs: removed", path)
            remove_folder(Path(path))
        else:
            Path(path).unlink(missing_ok=True)

    def find(self, folder: str, name: str) -> Iterator[Found]:
        """Yield the files called ``name`` in the folders of ``folder``, ordered by path."""
        try:
            names = sorted(os.listdir(folder))
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            rule, hint = UNREADABLE
            raise SetupError(rule, f"{folder}: {error.strerror or error}", hint) from error
        for path in (f"{folder}/{entry}/{name}" for entry in names):
            try:
                yield Found(path, _file_stamp(path))
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError:
                yield Found(path, "")  # reading it says why


class Bucket:
    """An object store asked as a :class:`Folder` is: bucket and path are its ``base``, reads are
    parallel.
    """

    def __init__(self, store: Any, base: str, prefix: str) -> None:
        self._store, self.base, self._prefix = store, base, prefix

    def read(self, path: str) -> bytes:
        """Return a file's content; raises FileNotFoundError when there is none."""
        return self.read_tagged(path)[0]

    def read_tagged(self, path: str) -> tuple[bytes, str]:
        """Return a file's content, and the tag by which :meth:`put` knows it."""
        import obstore

        with self._told(path):
            found = obstore.get(self._store, _key(path))
            return bytes(found.bytes()), str(found.meta["e_tag"])

    def read_many(self, files: Iterable[Found]) -> Iterator[tuple[Found, Content]]:
        """Yield files with their content, in order."""

        def content(found: Found) -> list[tuple[Found, Content]]:
            with contextlib.suppress(FileNotFoundError):
                return [(found, self.read(found.path))]
            return []

        with ThreadPoolExecutor(READ_TOGETHER) as pool:
            yield from chain.from_iterable(pool.map(content, files))

    def write(self, path: str, data: bytes, *, durable: bool = True) -> str:
        """Replace a file; returns its stamp. What a store has taken is always durable."""
        return f"{len(data)}-{self.put(path, data, 'overwrite')}"

    def put(self, path: str, data: bytes, mode: str | dict[str, str]) -> str | None:
        """Write a file where ``mode`` lets it; returns its tag, None where it does not.

        ``"create"`` demands that there is none, ``{"e_tag": tag}`` that one, ``"overwrite"``
        nothing.
        """
        import obstore
        from obstore.exceptions import AlreadyExistsError, NotSupportedError, PreconditionError

        try:
            with self._told(path, UNWRITABLE):
                return str(
                    obstore.put(self._store, _key(path), data, mode=cast("Any", mode))["e_tag"]
                )
        except (AlreadyExistsError, PreconditionError):
            return None
        except NotSupportedError:
            raise unconditional(f"{self._prefix}{self.base}") from None
        except FileNotFoundError:
            if isinstance(mode, str):
                raise self._no_bucket() from None
            return None

    def remove(self, path: str) -> None:
        """Remove a file, if there is one."""
        import obstore

        with contextlib.suppress(FileNotFoundError), self._told(path):
            obstore.delete(self._store, _key(path))

    def find(self, folder: str, name: str) -> Iterator[Found]:
        """Yield the files called ``name`` in the folders of ``folder``, ordered by path."""
        import obstore

        bucket, depth = folder.partition("/")[0], folder.count("/") + 2
        try:
            with self._told(folder):
                listed = [one for part in obstore.list(self._store, _key(folder)) for one in part]
        except FileNotFoundError:
            raise self._no_bucket() from None
        for one in sorted(listed, key=lambda one: str(one["path"])):
            path = f"{bucket}/{one['path']}"
            if posixpath.basename(path) == name and path.count("/") == depth:
                yield Found(path, f"{one['size']}-{one['e_tag']}")

    def _no_bucket(self) -> SetupError:
        name = self.base.partition("/")[0]
        rule = "The bucket of the result store must exist"
        return SetupError(rule, f"{self._prefix}{name}", "make it, or correct --storage")

    @contextlib.contextmanager
    def _told(self, path: str, problem: tuple[str, str] = UNREADABLE) -> Iterator[None]:
        """Say in our words what the store says; whether it may answer again decides if a sweep
        waits.
        """
        from obstore import exceptions as of

        try:
            yield
        except (of.GenericError, of.PermissionDeniedError, of.UnauthenticatedError) as error:
            text = " ".join(str(error).partition("Debug source")[0].split())
            status = re.search(r"status code: (\d+)", text)
            code = int(status[1]) if status else 0
            if code == 404:
                raise FileNotFoundError(path) from error
            passing = isinstance(error, of.GenericError) and (
                not code or code in (408, 429) or code >= 500
            )
            kind = StorageAway if passing else SetupError
            raise kind(problem[0], f"{self._prefix}{path}: {text[:300]}", problem[1]) from error
        except (of.AlreadyExistsError, of.PreconditionError, of.NotSupportedError):
            raise
        except of.BaseError as error:
            raise SetupError(
                "The result store must do as asked", f"{self._prefix}{path}: {error}"
            ) from error


Storage = Folder | Bucket


def unconditional(url: str) -> SetupError:
    """Return the error for an object store whose writes cannot be made to depend on what is
    there.
    """
    return SetupError(
        "An object store must take conditional writes, by which one driver at a time holds it",
        f"{url}: it writes over what is there",
        "update the server (MinIO since 2024-10, Ceph since Tentacle), or use another --storage",
    )


def _file_stamp(path: str) -> str:
    about = os.stat(path)
    return f"{about.st_size}-{about.st_mtime_ns}-{about.st_ino}"


def _key(path: str) -> str:
    return path.partition("/")[2]
