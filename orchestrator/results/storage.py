"""Storage of results and weights: a local folder or an object store.

The classes Folder and Bucket have the same methods. Both write a file completely or not at
all. Folder writes a temporary file, flushes it and renames it. Bucket relies on the object
store, in which every put is atomic. The lock of a bucket also needs conditional puts.
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
"""Pause before the second attempt to write, seconds. Each later pause is twice as long as the
pause before it."""
LONGEST_PAUSE_S = 10.0
"""Longest pause between two attempts to write, seconds."""
REMIND_AFTER_S = 600.0
"""Seconds between two messages about the same pause of a sweep."""

TEMPORARY_ERRORS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EIO,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
}
"""Error numbers of full disks and unreachable file systems. A later attempt to write may
succeed."""

SCHEMES = ("s3", "gs", "az", "abfs", "abfss")
"""URL schemes that isweep supports. In these object stores, a file is permanent and can be
replaced."""
CONNECT_TIMEOUT_S = 5.0
"""Seconds until an attempt to connect to an object store fails."""
ANSWER_TIMEOUT_S = 10.0
"""Seconds until a request to an object store fails."""
TRIES = 3
"""Number of times that the client tries one request. If the last attempt fails, the sweep
pauses."""
PARALLEL_READS = 32
"""Number of files that isweep reads from an object store at the same time."""
MAX_REASON_LENGTH = 300
"""Largest number of characters that a message quotes from an object store's error."""

Content = bytes | OSError
"""Content of a file, or the error because of which the file cannot be read."""


@dataclass(frozen=True)
class _Problem:
    """A problem of a file or store: the predicate of a sentence, and the hint."""

    problem: str
    hint: str


AGAIN = "and run the same command again. Finished trials are kept"
UNREADABLE = _Problem("cannot be read", f"Correct the permissions or the connection, {AGAIN}")
UNWRITABLE = _Problem(
    "cannot be written",
    "Free some space (`keep_weights: none` in the sweep file needs the least space), correct the "
    f"permissions, {AGAIN}",
)


class StorageAway(SetupError):
    """Raised if the storage is full or does not answer. A later attempt to write may succeed."""


@dataclass
class RetryWithBackoff:
    """Repeated attempts to write while the storage is full or does not answer.

    The sweep pauses until an attempt succeeds.

    Attributes:
        say: Function that prints a message. It is called at the start of a pause, every ten
            minutes during the pause, and at the end of the pause.
        limit_s: Longest pause, seconds.
        clock: Clock for the pauses.
    """

    say: Callable[[str], None] = log.warning
    limit_s: float = math.inf
    clock: Clock = SYSTEM

    def until_done(self, write: Callable[[], T]) -> T:
        """Call ``write`` until it succeeds, and return its result.

        Raises:
            StorageAway, OSError: The error is not temporary, or the pause is longer than
                ``limit_s``.
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
                        f"Paused: {_reason(error)}. The sweep continues as soon as the storage "
                        "accepts results again. To stop the sweep, press Ctrl-C. Finished trials "
                        "are kept"
                    )
                self.clock.sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            else:
                if paused_since is not None:
                    paused_s = self.clock.monotonic() - paused_since
                    self.say(
                        f"The storage accepts results again after {paused_s:.0f} s. The sweep "
                        "continues"
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
    """A file in the storage. Its ``stamp`` changes whenever the file is replaced."""

    path: str
    stamp: str


def open_storage(url: str | Storage) -> Storage:
    """Open the storage at ``url`` without a request and without creating anything.

    Args:
        url: A local path, or the URL of an object store. If it is an open storage, return this
            storage.

    Raises:
        ConfigError: The URL is not valid, has a password, or has an unknown scheme.
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
            f"isweep does not support the kind of storage in `--storage {scheme}://…`",
            hint=f"Use a path, or a URL that begins with one of these: {', '.join(SCHEMES)}",
        )
    _check_url(url, scheme)
    bucket_name = address.partition("/")[0]
    return Bucket(_object_store(scheme, bucket_name), address.rstrip("/"), f"{scheme}://")


def _check_url(url: str, scheme: str) -> None:
    """Raise an error if a URL has a password, no bucket, or more than a bucket and a path."""
    try:
        parts = urlsplit(url)
        password = parts.password
        host = parts.hostname
    except ValueError:
        password = None
        host = None
    if password:
        raise ConfigError(
            f"--storage {scheme}://…@{host} contains a password. Every user of this machine can "
            "read the options of a command",
            hint="Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment, or use a "
            "credentials file or a role",
        )
    problem = ""
    if not host:
        problem = f"--storage {scheme}://… has no bucket or host"
    elif parts.query or parts.fragment:
        problem = f"--storage {scheme}://{host}/… has a query or a fragment (? or #) after the path"
    if problem:
        raise ConfigError(problem, hint=f"Write the URL as {scheme}://BUCKET/FOLDER")


def _object_store(scheme: str, bucket: str) -> Any:
    """Return obstore's client of a bucket.

    Credentials come from the environment, files or a role.
    """
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

        # If there are no credentials, try without them. The store may be public. If it is not,
        # its error says which credentials it needs.
        with contextlib.suppress(ValueError):
            settings["credential_provider"] = Boto3CredentialProvider()
    try:
        return from_url(f"{scheme}://{bucket}", **settings)
    except (BaseError, ValueError) as error:
        raise ConfigError(
            f"--storage {scheme}://… cannot be opened: {str(error).splitlines()[0]}",
            hint=f"Read in docs/cluster.md which settings a storage of the kind {scheme} needs",
        ) from None


class Folder:
    """Storage in a local folder with the absolute path ``base``."""

    def __init__(self, base: str) -> None:
        self.base = base

    def read(self, path: str) -> bytes:
        """Return a file's content.

        Raises:
            FileNotFoundError: The file does not exist.
            OSError: The file cannot be read, or the file is a link to a file that does not
                exist.
        """
        try:
            return read_whole(path)
        except FileNotFoundError:
            if os.path.islink(path):
                reason = "it is a link to a file that does not exist"
                raise OSError(errno.ENOLINK, reason, path) from None
            raise

    def read_many(self, files: Iterable[StoredFile]) -> Iterator[tuple[StoredFile, Content]]:
        """Yield each file with its content, in order.

        If it cannot be read, yield it with the error.

        A file that was removed after it was listed is not yielded.
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
            path: The file.
            data: The new content.
            durable: If True, wait until the file is on the disk. If False, a power failure may
                delete the file.

        Raises:
            StorageAway: The disk is full or does not answer.
            SetupError: The file cannot be written for another reason.
        """
        try:
            if os.path.isdir(path):
                self.remove(path)
            write_atomic(path, data, durable=durable)
            return _file_stamp(path)
        except OSError as error:
            blocking = _file_above(path)
            if blocking is not None:
                raise SetupError(
                    f"{path} cannot be written, because {blocking} is not a folder",
                    hint=f"Remove or rename {blocking}, {AGAIN}",
                ) from error
            kind = StorageAway if error.errno in TEMPORARY_ERRORS else SetupError
            reason = error.strerror or error
            sizes = f"{len(data):,} bytes needed, {_free_space(path)}"
            problem = f"{path} {UNWRITABLE.problem}: {reason} ({sizes})"
            raise kind(problem, hint=UNWRITABLE.hint) from error

    def remove(self, path: str) -> None:
        """Delete a file, or a folder with this path, if it exists."""
        if os.path.isdir(path) and not os.path.islink(path):
            log.warning(
                "Deleted the folder %s, because a file with this path must be written", path
            )
            remove_folder(Path(path))
        else:
            Path(path).unlink(missing_ok=True)

    def find(self, folder: str, name: str) -> Iterator[StoredFile]:
        """Yield the files with the name ``name`` in subfolders of ``folder``, sorted by path."""
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
                if os.path.islink(path):
                    yield StoredFile(path, "")
            except OSError:
                yield StoredFile(path, "")  # reading the file raises the error


class Bucket:
    """Storage in a bucket of an object store. ``base`` is its name, followed by a path in it."""

    def __init__(self, store: Any, base: str, prefix: str) -> None:
        self.base = base
        self._store = store
        self._prefix = prefix

    def read(self, path: str) -> bytes:
        """Return a file's content.

        Raises:
            FileNotFoundError: The file does not exist.
            StorageAway, SetupError: The store does not answer or refuses the request.
        """
        return self.read_tagged(path)[0]

    def read_tagged(self, path: str) -> tuple[bytes, str]:
        """Return a file's content, and the tag of its version for :meth:`put`."""
        import obstore

        with self._translated_errors(path):
            response = obstore.get(self._store, _key(path))
            return bytes(response.bytes()), str(response.meta["e_tag"])

    def read_many(self, files: Iterable[StoredFile]) -> Iterator[tuple[StoredFile, Content]]:
        """Yield files in order with their content. The reads are parallel."""

        def read_one(file: StoredFile) -> list[tuple[StoredFile, Content]]:
            with contextlib.suppress(FileNotFoundError):
                return [(file, self.read(file.path))]
            return []

        with ThreadPoolExecutor(PARALLEL_READS) as pool:
            yield from chain.from_iterable(pool.map(read_one, files))

    def write(self, path: str, data: bytes, *, durable: bool = True) -> str:
        """Replace a file and return its stamp. A file in a bucket is always durable."""
        return f"{len(data)}-{self.put(path, data, 'overwrite')}"

    def put(self, path: str, data: bytes, mode: str | dict[str, str]) -> str | None:
        """Write a file if ``mode`` allows it.

        Args:
            path: The file.
            data: The new content.
            mode: Condition for the write. ``"create"``: the file does not exist. ``{"e_tag":
                tag}``: the file still has this version. ``"overwrite"``: no condition.

        Returns:
            The tag of the new version. None if the condition was not met, so nothing was
            written.
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
        """Delete a file if it exists."""
        import obstore

        with contextlib.suppress(FileNotFoundError), self._translated_errors(path):
            obstore.delete(self._store, _key(path))

    def find(self, folder: str, name: str) -> Iterator[StoredFile]:
        """Yield the files with the name ``name`` in subfolders of ``folder``, sorted by path."""
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
        """Convert temporary errors of obstore to StorageAway, and others to SetupError."""
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
            message = f"The object store refused a request for {self._prefix}{path}: {error}"
            raise SetupError(message, hint=UNREADABLE.hint) from error


Storage = Folder | Bucket


def no_conditional_writes(url: str) -> SetupError:
    """Return the error for an object store without conditional writes."""
    return SetupError(
        f"The object store of {url} does not support conditional writes. Without conditional "
        "writes, two runs could overwrite each other's results",
        hint="Update the server: MinIO supports conditional writes since 2024-10, and Ceph "
        "since Tentacle. Or use another `--storage`",
    )


def _may_answer_later(status_code: int) -> bool:
    """Return whether a failed request may succeed later."""
    return not status_code or status_code in (408, 429) or status_code >= 500


def _file_stamp(path: str) -> str:
    status = os.stat(path)
    return f"{status.st_size}-{status.st_mtime_ns}-{status.st_ino}"


def _file_above(path: str) -> Path | None:
    """Return the file that stands where ``path`` needs a folder. None if there is no such file."""
    for parent in Path(path).parents:
        if os.path.lexists(parent):
            return None if parent.is_dir() else parent
    return None


def _free_space(path: str) -> str:
    """Return the free space of the disk that contains ``path``, as text."""
    for folder in Path(path).parents:
        with contextlib.suppress(OSError):
            return f"{shutil.disk_usage(folder).free:,} bytes free"
    return "free space unknown"


def _key(path: str) -> str:
    """Return the key of a path in its bucket."""
    return path.partition("/")[2]
