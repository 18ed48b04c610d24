"""Where results and weights are kept: a local folder, or an object store by its URL.

Both are asked in the same words. A write is whole or not there: locally a flushed sibling is renamed, and an
object store's put is atomic by itself. Object stores are reached through ``pyarrow.fs``, never through
fsspec's own listing, which answers "nothing" when the store does not answer at all.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import posixpath
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

from search_spaces.errors import ConfigError, SetupError
from tasks.atomic import read_whole, write_atomic

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
    """

    say: Callable[[str], None] = log.warning
    limit_s: float = math.inf

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
                now = time.monotonic()
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
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_S)
                continue
            if began is not None:
                self.say(f"Storage takes results again after {time.monotonic() - began:.0f} s; going on")
            return done


def _reason(error: Exception) -> str | None:
    """Say what is wrong, with path and room; None where waiting would not mend it."""
    if isinstance(error, StorageAway):
        return error.value
    if isinstance(error, OSError) and error.errno in PASSING:
        return f"{error.filename or 'a file'}: {error.strerror}"
    return None


LASTING = ("s3", "gs", "gcs", "abfs", "abfss", "az", "hdfs", "sftp", "smb")
"""Schemes of stores that keep what is written and let it be replaced."""

CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 10.0
TRIES = 3
"""Of one request, by the client itself; what lasts longer pauses a sweep (:mod:`.patience`)."""

READ_TOGETHER = 32
_PASSING = re.compile(
    r"NETWORK_CONNECTION|SLOW_DOWN|THROTTLING|SERVICE_UNAVAILABLE|INTERNAL_FAILURE|REQUEST_TIMEOUT"
    r"|HTTP status (429|5\d\d)"
)

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


def open_storage(url: str) -> Storage:
    """Open the store at ``url``, a local path or the URL of an object store; nothing is asked or made.

    Raises:
        ConfigError: for a URL that is none, holds a password, or belongs to a store that keeps nothing.
    """
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
    return Bucket(*_opened(scheme, url))


def _opened(scheme: str, url: str) -> tuple[Any, str, str]:
    """Return a ``pyarrow.fs`` file system, the place in it, and what stands before it in messages."""
    from pyarrow import fs

    path = url.partition("://")[2].rstrip("/")
    if scheme == "s3":
        # Arrow reads keys, roles and regions as every program of AWS does, but not the address of a stand-in.
        address = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        system = fs.S3FileSystem(
            endpoint_override=address,
            connect_timeout=CONNECT_TIMEOUT_S,
            request_timeout=ANSWER_TIMEOUT_S,
            retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=TRIES),
            allow_delayed_open=True,  # small files in one request instead of three
        )
        return system, path, "s3://"
    import fsspec

    try:
        other, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ConfigError(
            "--storage must be a URL that fsspec can open",
            f"{scheme}://…: {str(error).splitlines()[0]}",
            "install the package it names, or use a path",
        ) from None
    other.use_listings_cache = False
    return fs.PyFileSystem(fs.FSSpecHandler(other)), path, f"{scheme}://"


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
    """A store behind a URL; requests that it lets alone are tried again, and files are read in parallel.

    Args:
        system: A ``pyarrow.fs`` file system.
        base: Path in it.
        prefix: What a URL has before such a path.
    """

    def __init__(self, system: Any, base: str, prefix: str) -> None:
        self._system, self.base, self._prefix = system, base, prefix

    def read(self, path: str) -> bytes:
        """See :class:`Storage`."""
        try:
            with self._system.open_input_stream(path) as file:
                return bytes(file.read())
        except OSError as error:
            if isinstance(error, FileNotFoundError):
                raise
            raise self._away(path, error) from error

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
        try:
            with self._system.open_output_stream(path) as file:
                file.write(data)
        except OSError as error:
            raise self._away(path, error, rule, way_out) from error

    def remove(self, path: str) -> None:
        """See :class:`Storage`."""
        try:
            self._system.delete_file(path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._away(path, error) from error

    def stamp(self, path: str) -> str:
        """See :class:`Storage`."""
        try:
            return self._stamp(self._system.get_file_info(path))
        except OSError:
            return ""

    def find(self, folder: str, name: str) -> Iterator[Found]:
        """See :class:`Storage`."""
        from pyarrow.fs import FileSelector, FileType

        try:
            listed = self._system.get_file_info(FileSelector(folder, recursive=True, allow_not_found=True))
        except OSError as error:
            raise self._away(folder, error) from error
        if not listed:
            self._check_bucket(folder.partition("/")[0])
        depth = folder.count("/") + 2
        for info in sorted(listed, key=lambda info: str(info.path)):
            at_its_place = info.base_name == name and info.path.count("/") == depth
            if at_its_place and info.type == FileType.File:
                yield Found(str(info.path), self._stamp(info))

    def _check_bucket(self, name: str) -> None:
        """Tell a bucket that is not there from an empty one, which lists as little."""
        from pyarrow.fs import FileType

        try:
            there = self._prefix != "s3://" or self._system.get_file_info(name).type != FileType.NotFound
        except OSError:
            return  # rights may end at a path within it
        if not there:
            rule, way_out = "The bucket of the result store must exist", "make it, or correct --storage"
            raise SetupError(rule, f"s3://{name}", way_out)

    @staticmethod
    def _stamp(info: Any) -> str:
        return "" if info.size is None else f"{info.size}-{info.mtime_ns}"

    def _away(self, path: str, error: OSError, rule: str = "", way_out: str = "") -> SetupError:
        """Return what to raise: whether the store may answer again decides if a sweep waits for it."""
        text = " ".join(str(error).split())
        # Arrow says what it did, to what, and only then why.
        reason = (re.search(r"AWS Error .*", text) or re.search(r".*", text))[0][:300]  # type: ignore[index]
        kind = StorageAway if error.errno in PASSING or _PASSING.search(text) else SetupError
        return kind(
            rule or "The result store must be readable",
            f"{self._prefix}{path}: {reason}",
            way_out or "mend the permissions or the connection, then run the same command again",
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
