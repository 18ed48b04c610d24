"""Archives read where they lie: members of ``.zip``, ``.tar``, ``.tar.gz`` by name, nothing unpacked to disk.

A member's locator is ``archive!/member``; archives in archives (ILSVRC's tar of tars) repeat the mark.
Opened archives are kept per process, so a directory is read once, and a ``.tar.gz`` goes forward only as
long as its members are asked for in stored order.

What an archive declares is checked before it is believed: names that lead elsewhere, links, devices,
repeated names, encryption and members that would unpack to more than their packed size can hold are
refused. Formats: APPNOTE.TXT 6.3 (zip) as read by :mod:`zipfile`, POSIX.1-2001 and GNU tar as read by
:mod:`tarfile`.
"""

from __future__ import annotations

import gzip
import io
import lzma
import stat
import struct
import tarfile
import threading
import zipfile
import zlib
from functools import lru_cache
from pathlib import Path
from typing import IO, Protocol, Self

from tasks.sources.base import SkipItem
from tasks.sources.files import MAX_FILE_BYTES, is_noise, open_plain

MARK = "!/"
ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz")
MAX_RATIO = 1040
"""Deflate cannot do better than 1032 to 1; more is a lie."""
MAX_MEMBERS = 5_000_000
MAX_DEPTH = 3
MAX_TAR_HEADER = 1 << 20
DAMAGE = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, struct.error),
    *(EOFError, OSError, RuntimeError, ValueError, KeyError, NotImplementedError),
)
"""What the standard library's readers raise on damaged or odd archives."""


class RefusedArchive(Exception):
    """An archive that must not be read; ``reason`` names no member."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Archive(Protocol):
    """One opened archive."""

    def members(self) -> list[str]:
        """Return the names of all plain files in it, in stored order.

        Raises:
            RefusedArchive: for damage, or anything that must not be followed.
        """
        ...

    def read(self, member: str, max_bytes: int) -> bytes:
        """Return a member's bytes.

        Raises:
            SkipItem: when it is gone, damaged, or larger than ``max_bytes``.
        """
        ...

    def open(self, member: str) -> IO[bytes]:
        """Return a seekable stream of a member, for an archive in this one."""
        ...


def is_archive_name(name: str) -> bool:
    """Tell by a file's ending whether it is an archive that we read."""
    return name.lower().endswith(ENDINGS)


def split_locator(locator: str) -> list[str]:
    """Return the file, and then the member in it, the member in that one ..."""
    parts = locator.split(MARK)
    found = [parts[0]]
    for part in parts[1:]:
        if is_archive_name(found[-1]):
            found.append(part)
        else:  # a folder whose name ends in "!"
            found[-1] += MARK + part
    return found


def read_locator(base: Path, locator: str, max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """Return the bytes of a plain file or archive member below ``base``.

    Raises:
        SkipItem: when it is gone, unreadable, damaged, empty, too large or no plain file.
    """
    parts = split_locator(locator)
    if len(parts) == 1:
        return open_plain(base / locator, max_bytes)
    try:
        body = open_archive(base / parts[0], tuple(parts[1:-1])).read(parts[-1], max_bytes)
    except RefusedArchive as refused:
        raise SkipItem(refused.reason) from None
    if not body:
        raise SkipItem("empty file")
    return body


def open_archive(path: Path, inner: tuple[str, ...] = ()) -> Archive:
    """Return an opened archive, or the one inside it; kept until its file changes.

    Raises:
        RefusedArchive: when it is damaged, unreadable or no plain file.
    """
    try:
        status = path.stat()
    except OSError:
        raise RefusedArchive("archive is gone or unreadable") from None
    if not stat.S_ISREG(status.st_mode):
        raise RefusedArchive("no plain file")
    return _opened(str(path), inner, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=16)
def _opened(path: str, inner: tuple[str, ...], size: int, time_ns: int) -> Archive:
    name = inner[-1] if inner else path
    try:
        outer = _opened(path, inner[:-1], size, time_ns) if inner else None
        stream = outer.open(inner[-1]) if outer is not None else Path(path).open("rb")  # noqa: SIM115
        return _Zip(stream) if name.lower().endswith(".zip") else _Tar(stream, name)
    except SkipItem as skip:
        raise RefusedArchive(skip.reason) from None
    except DAMAGE:
        raise RefusedArchive("damaged archive") from None


def checked_member(name: str) -> str | None:
    """Return a member's name in ``/``-separated normal form; None for what file managers leave behind.

    Raises:
        RefusedArchive: for an absolute name, a drive, ``..`` or a zero byte.
    """
    parts = name.replace("\\", "/").split("/")
    if name.startswith(("/", "\\")) or ".." in parts or "\0" in name or parts[0][1:2] == ":":
        raise RefusedArchive("an archive with names that lead elsewhere")
    kept = [part for part in parts if part not in ("", ".")]
    return None if not kept or any(map(is_noise, kept)) else "/".join(kept)


class _Zip:
    def __init__(self, file: IO[bytes]) -> None:
        self._archive = zipfile.ZipFile(file)
        self._members: dict[str, zipfile.ZipInfo] = {}
        seen: set[str] = set()
        for info in self._archive.infolist():
            name = checked_member(info.filename)
            if info.is_dir():
                continue
            self._check(info, seen)
            if name is not None:
                self._members[name] = info

    @staticmethod
    def _check(info: zipfile.ZipInfo, seen: set[str]) -> None:
        if info.filename in seen:
            raise RefusedArchive("an archive with repeated names")
        seen.add(info.filename)
        if len(seen) > MAX_MEMBERS:
            raise RefusedArchive(f"an archive with more than {MAX_MEMBERS:,} members")
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG):
            raise RefusedArchive("an archive with links or devices")
        if info.flag_bits & 1:
            raise RefusedArchive("an encrypted archive; unpack it with its password first")
        if info.file_size > MAX_RATIO * info.compress_size + MAX_RATIO:
            raise RefusedArchive("an archive that declares more than its packed size can hold")

    def members(self) -> list[str]:
        return list(self._members)

    def read(self, member: str, max_bytes: int) -> bytes:
        info = self._members.get(member)
        if info is None:
            raise SkipItem("file is gone or unreadable")
        if info.file_size > max_bytes:
            raise SkipItem("file too large")
        try:
            with self._archive.open(info) as file:
                return file.read()
        except (*DAMAGE, MemoryError):
            raise SkipItem("damaged archive member") from None

    def open(self, member: str) -> IO[bytes]:
        return io.BytesIO(self.read(member, MAX_FILE_BYTES))


class _BoundedInfo(tarfile.TarInfo):
    """A tar header that refuses to announce a name of gigabytes."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        info = super().frombuf(buf, encoding, errors)
        plain = (*tarfile.REGULAR_TYPES, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE)
        if info.type not in plain and info.size > MAX_TAR_HEADER:
            raise RefusedArchive("an archive with a huge header")
        return info


class _Tar:
    """A tar, plain or gzipped, whose members become known as it is read forward."""

    def __init__(self, file: IO[bytes], name: str) -> None:
        self._packed = name.lower().endswith((".gz", ".tgz"))
        self._file: IO[bytes] = gzip.GzipFile(fileobj=file) if self._packed else file  # type: ignore[assignment]
        self._archive = tarfile.open(fileobj=self._file, mode="r:", tarinfo=_BoundedInfo)  # noqa: SIM115
        self._members: dict[str, tarfile.TarInfo] = {}
        self._whole = False
        self._lock = threading.RLock()

    def _next(self) -> bool:
        """Read one more header; False at the end."""
        info = self._archive.next()
        if info is None:
            # tarfile takes a damaged header for the end; a real end is zeros or nothing.
            self._file.seek(self._archive.offset)
            if self._file.read(tarfile.BLOCKSIZE).strip(b"\0"):
                raise RefusedArchive("damaged archive")
            self._whole = True
            return False
        name = checked_member(info.name)
        if info.isdir():
            return True
        if not info.isreg() or info.issparse():
            raise RefusedArchive("an archive with links, devices or sparse files")
        if name is not None:
            if name in self._members:
                raise RefusedArchive("an archive with repeated names")
            self._members[name] = info
            if len(self._members) > MAX_MEMBERS:
                raise RefusedArchive(f"an archive with more than {MAX_MEMBERS:,} members")
        return True

    def members(self) -> list[str]:
        with self._lock:
            try:
                while not self._whole and self._next():
                    pass
            except DAMAGE:
                raise RefusedArchive("damaged archive") from None
            return list(self._members)

    def _find(self, member: str) -> tarfile.TarInfo:
        while member not in self._members and not self._whole and self._next():
            pass
        if member not in self._members:
            raise SkipItem("file is gone or unreadable")
        return self._members[member]

    def read(self, member: str, max_bytes: int) -> bytes:
        with self._lock:
            try:
                info = self._find(member)
                if info.size > max_bytes:
                    raise SkipItem("file too large")
                self._file.seek(info.offset_data)
                body = self._file.read(info.size)
            except (*DAMAGE, MemoryError):
                raise SkipItem("damaged archive member") from None
            if len(body) != info.size:
                raise SkipItem("damaged archive member")
            return body

    def open(self, member: str) -> IO[bytes]:
        if self._packed:
            return io.BytesIO(self.read(member, MAX_FILE_BYTES))
        with self._lock:
            stream = self._archive.extractfile(self._find(member))
        if stream is None:
            raise SkipItem("no plain file")
        return stream
