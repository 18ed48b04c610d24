"""Storage of results and weights: a local folder, or an object store by its URL.

Both have the same methods. A write is complete or absent. Locally a flushed temporary file is
renamed. An object store's put is atomic by itself; a lease also needs puts that depend on what is
there.
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

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 10.0
"""Seconds between two attempts to write; each pause is twice as long as the one before."""
REMIND_AFTER_S = 600.0
"""Seconds between two messages that the sweep is paused."""

TEMPORARY_ERRORS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EIO,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
}
"""Errors of a disk that may have room again, or of a file system that may come back."""

SCHEMES = ("s3", "gs", "az", "abfs", "abfss")
"""URL schemes of stores that keep what is written and let it be replaced."""
CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 10.0
TRIES = 3
"""Attempts of one request by the client itself. An outage that lasts longer pauses the sweep."""
PARALLEL_READS = 32
"""Files that are read from an object store at the same time."""
MAX_REASON_LENGTH = 300
"""Characters of an object store's error that a message quotes."""

Content = bytes | OSError
"""The content of a file, or why it cannot be read."""


@dataclass(frozen=True)
class _Problem:
    """A kind of error of the storage: what a file cannot be, and the fix."""

    problem: str
    hint: str


AGAIN = "and run the same command again. Finished trials are kept"
UNREADABLE = _Problem("cannot be read", f"Correct the permissions or the connection, {AGAIN}")
UNWRITABLE = _Problem(
    "cannot be written",
    "Free some space (keep_weights: none takes the least), correct the permissions, or remove "
    f"what is in the way, {AGAIN}",
)


class StorageAway(SetupError):
    """Storage that is full or does not answer now, and may take a write later."""


@dataclass
class RetryWithBackoff:
    """Repeats a write while the storage is full or away: the sweep pauses instead of ending.

    Attributes:
        say: prints when a pause begins, every ten minutes while it lasts, and when it ends.
        limit_s: longest pause, in seconds.
        clock: of the pauses.
    """

    say: Callable[[str], None] = log.warning
    limit_s: float = math.inf
    clock: Clock = SYSTEM

    def until_done(self, write: Callable[[], T]) -> T:
        """Return what ``write`` returns as soon as the storage takes it.

        Raises:
            StorageAway, OSError: waiting does not help, or ``limit_s`` is over.
        """
        paused_since: float | None = None
        reminded_at = -math.inf
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                result = write()
            except (StorageAway, OSError) as error:
                now = self.clock.monotonic()
                if paused_since is None:
                    paused_since = now
                if not _is_temporary(error) or now - paused_since > self.limit_s:
                    raise
                if now - reminded_at > REMIND_AFTER_S:
                    reminded_at = now
                    self.say(
                        f"Paused: {_reason(error)}. The sweep goes on by itself as soon as the "
                        "storage takes results again. Ctrl-C stops the sweep; finished trials "
                        "are kept"
                    )
                self.clock.sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            else:
                if paused_since is not None:
                    paused_s = self.clock.monotonic() - paused_since
                    self.say(
                        f"The storage takes results again after {paused_s:.0f} s. The sweep goes on"
                    )
                return result


def _is_temporary(error: StorageAway | OSError) -> bool:
    return isinstance(error, StorageAway) or error.errno in TEMPORARY_ERRORS


def _reason(error: StorageAway | OSError) -> str:
    if isinstance(error, StorageAway):
        return error.problem
    return f"{error.filename or 'a file'}: {error.strerror}"


@dataclass(frozen=True)
class StoredFile:
    """A file in the storage; its ``stamp`` changes whenever the file is replaced."""

    path: str
    stamp: str


def open_storage(url: str | Storage) -> Storage:
    """Open the store at ``url``; nothing is requested or created.

    Args:
        url: a local path, or the URL of an object store. A store that is open is returned.

    Raises:
        ConfigError: the URL is none, holds a password, or is of a store that keeps nothing.
    """
    if isinstance(url, Folder | Bucket):
        return url
    scheme, mark, address = url.partition("://")
    if not mark:
        return Folder(os.path.abspath(os.path.expanduser(url)))
    if scheme == "file":
        return Folder(os.path.abspath(address))
    if scheme not in SCHEMES:
        raise ConfigError(
            f"--storage {scheme}://… is not a kind of store that keeps results",
            hint=f"Use a path, or a URL of {', '.join(SCHEMES)}",
        )
    _check_url(url, scheme)
    bucket_name = address.partition("/")[0]
    return Bucket(_object_store(scheme, bucket_name), address.rstrip("/"), f"{scheme}://")


def _check_url(url: str, scheme: str) -> None:
    """Refuse the URL of an object store that holds a password or more than a bucket and a path."""
    try:
        parts = urlsplit(url)
        password = parts.password
        host = parts.hostname
    except ValueError:
        password = None
        host = None
    if password:
        raise ConfigError(
            f"--storage {scheme}://…@{host} holds a password, which every user of the machine can "
            "read",
            hint="Give the password in the environment (AWS_ACCESS_KEY_ID, "
            "AWS_SECRET_ACCESS_KEY), in a file, or by a role",
        )
    problem = ""
    if not host:
        problem = f"--storage {scheme}://… names no bucket or host"
    elif parts.query or parts.fragment:
        problem = f"--storage {scheme}://{host}/… has more than a path after the bucket"
    if problem:
        raise ConfigError(problem, hint=f"Write the URL as {scheme}://BUCKET/FOLDER")


def _object_store(scheme: str, bucket: str) -> Any:
    """Return obstore's client of a bucket, set up by the environment, files or a role."""
    from obstore.exceptions import BaseError
    from obstore.store import from_url

    address = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    client_options: dict[str, Any] = {
        "connect_timeout": f"{CONNECT_TIMEOUT_S:g} seconds",
        "timeout": f"{ANSWER_TIMEOUT_S:g} seconds",
        "allow_http": address.startswith("http://"),
    }
    settings: dict[str, Any] = {
        "client_options": client_options,
        "retry_config": {
            "max_retries": TRIES - 1,
            "retry_timeout": timedelta(seconds=TRIES * ANSWER_TIMEOUT_S),
        },
    }
    # boto3 reads AWS's configuration files and roles, which obstore does not.
    if scheme == "s3" and "AWS_ACCESS_KEY_ID" not in os.environ and find_spec("boto3"):
        from obstore.auth.boto3 import Boto3CredentialProvider

        # Without credentials the store may still be open, or say which ones it wants.
        with contextlib.suppress(ValueError):
            settings["credential_provider"] = Boto3CredentialProvider()
    try:
        return from_url(f"{scheme}://{bucket}", **settings)
    except (BaseError, ValueError) as error:
        raise ConfigError(
            f"--storage {scheme}://… cannot be opened: {str(error).splitlines()[0]}",
            hint="See docs/cluster.md for what each kind of store needs",
        ) from None


class Folder:
    """A local folder as storage, at the absolute path ``base``."""

    def __init__(self, base: str) -> None:
        self.base = base

    def read(self, path: str) -> bytes:
        """Return a file's content.

        Raises:
            FileNotFoundError: there is no such file.
            OSError: it cannot be read.
        """
        return read_whole(path)

    def read_many(self, files: Iterable[StoredFile]) -> Iterator[tuple[StoredFile, Content]]:
        """Yield files with their content, in order; an error in place of an unreadable content.

        A file that was removed since it was listed is left out.
        """
        for file in files:
            try:
                yield file, self.read(file.path)
            except FileNotFoundError:
                continue
            except OSError as error:
                yield file, error

    def write(self, path: str, data: bytes, *, durable: bool = True) -> str:
        """Replace a file completely or not at all, and return its stamp.

        Args:
            path: the file.
            data: its new content.
            durable: wait until the disk has the file. False is for files that a power cut may lose.

        Raises:
            StorageAway: the disk is full or away.
            SetupError: the file cannot be written for another reason.
        """
        try:
            if os.path.isdir(path):
                self.remove(path)
            write_atomic(path, data, durable=durable)
            return _file_stamp(path)
        except OSError as error:
            kind = StorageAway if error.errno in TEMPORARY_ERRORS else SetupError
            reason = error.strerror or error
            sizes = f"{len(data):,} bytes needed, {_free_space(path)}"
            problem = f"{path} {UNWRITABLE.problem}: {reason} ({sizes})"
            raise kind(problem, hint=UNWRITABLE.hint) from error

    def remove(self, path: str) -> None:
        """Remove a file, or a folder in its place, if there is one."""
        if os.path.isdir(path) and not os.path.islink(path):
            log.warning("%s is a folder, where a file belongs: removed", path)
            remove_folder(Path(path))
        else:
            Path(path).unlink(missing_ok=True)

    def find(self, folder: str, name: str) -> Iterator[StoredFile]:
        """Yield the files called ``name`` in the folders of ``folder``, ordered by path."""
        try:
            entries = sorted(os.listdir(folder))
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            problem = f"{folder} {UNREADABLE.problem}: {error.strerror or error}"
            raise SetupError(problem, hint=UNREADABLE.hint) from error
        for entry in entries:
            path = f"{folder}/{entry}/{name}"
            try:
                yield StoredFile(path, _file_stamp(path))
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError:
                yield StoredFile(path, "")  # Reading it raises an error with the reason.


class Bucket:
    """A bucket of an object store as storage; ``base`` is the bucket and a path in it."""

    def __init__(self, store: Any, base: str, prefix: str) -> None:
        self.base = base
        self._store = store
        self._prefix = prefix

    def read(self, path: str) -> bytes:
        """Return a file's content.

        Raises:
            FileNotFoundError: there is no such file.
            StorageAway, SetupError: the store does not give it.
        """
        return self.read_tagged(path)[0]

    def read_tagged(self, path: str) -> tuple[bytes, str]:
        """Return a file's content, and the tag of this version for :meth:`put`."""
        import obstore

        with self._translated_errors(path):
            response = obstore.get(self._store, _key(path))
            return bytes(response.bytes()), str(response.meta["e_tag"])

    def read_many(self, files: Iterable[StoredFile]) -> Iterator[tuple[StoredFile, Content]]:
        """Yield files with their content, in order; reads are parallel."""

        def read_one(file: StoredFile) -> list[tuple[StoredFile, Content]]:
            with contextlib.suppress(FileNotFoundError):
                return [(file, self.read(file.path))]
            return []

        with ThreadPoolExecutor(PARALLEL_READS) as pool:
            yield from chain.from_iterable(pool.map(read_one, files))

    def write(self, path: str, data: bytes, *, durable: bool = True) -> str:
        """Replace a file and return its stamp; a store's files are always durable."""
        return f"{len(data)}-{self.put(path, data, 'overwrite')}"

    def put(self, path: str, data: bytes, mode: str | dict[str, str]) -> str | None:
        """Write a file if ``mode`` allows it.

        Args:
            path: the file.
            data: its content.
            mode: ``"create"`` requires that there is no file, ``{"e_tag": tag}`` that the file is
                still this version; ``"overwrite"`` requires nothing.

        Returns:
            The tag of the new version; None if the file was not as required.
        """
        import obstore
        from obstore.exceptions import AlreadyExistsError, NotSupportedError, PreconditionError

        try:
            with self._translated_errors(path, UNWRITABLE):
                written = obstore.put(self._store, _key(path), data, mode=cast("Any", mode))
                return str(written["e_tag"])
        except (AlreadyExistsError, PreconditionError):
            return None
        except NotSupportedError:
            raise no_conditional_writes(f"{self._prefix}{self.base}") from None
        except FileNotFoundError:
            if isinstance(mode, str):
                raise self._no_bucket() from None
            return None

    def remove(self, path: str) -> None:
        """Remove a file, if there is one."""
        import obstore

        with contextlib.suppress(FileNotFoundError), self._translated_errors(path):
            obstore.delete(self._store, _key(path))

    def find(self, folder: str, name: str) -> Iterator[StoredFile]:
        """Yield the files called ``name`` in the folders of ``folder``, ordered by path."""
        import obstore

        bucket = folder.partition("/")[0]
        depth = folder.count("/") + 2
        try:
            with self._translated_errors(folder):
                pages = obstore.list(self._store, _key(folder))
                objects = list(chain.from_iterable(pages))
        except FileNotFoundError:
            raise self._no_bucket() from None
        for item in sorted(objects, key=lambda item: str(item["path"])):
            path = f"{bucket}/{item['path']}"
            if posixpath.basename(path) == name and path.count("/") == depth:
                yield StoredFile(path, f"{item['size']}-{item['e_tag']}")

    def _no_bucket(self) -> SetupError:
        name = self.base.partition("/")[0]
        return SetupError(
            f"The bucket {self._prefix}{name} does not exist",
            hint="Create the bucket, or correct --storage",
        )

    @contextlib.contextmanager
    def _translated_errors(self, path: str, problem: _Problem = UNREADABLE) -> Iterator[None]:
        """Translate errors of the store into ours, by whether it may answer again later."""
        from obstore import exceptions

        try:
            yield
        except (
            exceptions.GenericError,
            exceptions.PermissionDeniedError,
            exceptions.UnauthenticatedError,
        ) as error:
            text = " ".join(str(error).partition("Debug source")[0].split())
            status = re.search(r"status code: (\d+)", text)
            code = 0
            if status:
                code = int(status[1])
            if code == 404:
                raise FileNotFoundError(path) from error
            kind = SetupError
            if isinstance(error, exceptions.GenericError) and _may_answer_later(code):
                kind = StorageAway
            reason = text[:MAX_REASON_LENGTH]
            message = f"{self._prefix}{path} {problem.problem}: {reason}"
            raise kind(message, hint=problem.hint) from error
        except (
            exceptions.AlreadyExistsError,
            exceptions.PreconditionError,
            exceptions.NotSupportedError,
        ):
            raise
        except exceptions.BaseError as error:
            message = f"The result store refused {self._prefix}{path}: {error}"
            raise SetupError(message) from error


Storage = Folder | Bucket


def no_conditional_writes(url: str) -> SetupError:
    """Return the error for an object store whose writes cannot depend on what is there."""
    return SetupError(
        f"{url} has no conditional writes, without which two runs could overwrite each other",
        hint="Update the server (MinIO since 2024-10, Ceph since Tentacle), or use another "
        "--storage",
    )


def _may_answer_later(status_code: int) -> bool:
    """Return whether an HTTP status, 0 if there is none, may be another one later."""
    return not status_code or status_code in (408, 429) or status_code >= 500


def _file_stamp(path: str) -> str:
    status = os.stat(path)
    return f"{status.st_size}-{status.st_mtime_ns}-{status.st_ino}"


def _free_space(path: str) -> str:
    """Return the free space of the disk of ``path``, in words."""
    for folder in Path(path).parents:
        with contextlib.suppress(OSError):
            return f"{shutil.disk_usage(folder).free:,} bytes free"
    return "free space unknown"


def _key(path: str) -> str:
    """Return the key of a path in its bucket."""
    return path.partition("/")[2]
