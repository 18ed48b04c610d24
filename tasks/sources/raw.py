"""Finding files below a raw root without ever leaving it or opening what is not a plain file."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import stat
import struct
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, Protocol, Self

from search_spaces.errors import DataError
from tasks.sources.base import RawRequest, SkipItem

MAX_FILE_BYTES = 384 << 20
"""Largest single file or archive member that is held whole. A multi-frame ultrasound has about 100 MiB, a
computed radiograph 30; with what decoding needs besides, a reading task stays below a GiB."""

NOISE = frozenset({"__MACOSX", "Thumbs.db", "desktop.ini"})


def walk(root: Path, request: RawRequest, folders: list[str] | None = None) -> Iterator[str]:
    """Yield all plain files below ``root`` as ``/``-separated relative names, in sorted order.

    Hidden files and folders, and what file managers leave behind, are left out. The order is that of the
    names' parts, so a folder's files lie together whatever characters its name has.

    Args:
        root: Where to start; may itself be a link.
        request: For messages.
        folders: Gets the names of all folders met, empty ones too, when given.

    Raises:
        DataError: for a link that leaves the root, a linked folder, a FIFO, socket or device, or a folder
            that cannot be listed.
    """
    base = root.resolve()
    stack = [iter(_entries(base, "", request))]
    prefixes = [""]
    while stack:
        entry = next(stack[-1], None)
        if entry is None:
            stack.pop()
            prefixes.pop()
            continue
        name = prefixes[-1] + entry.name
        if entry.is_symlink() or not (
            entry.is_dir(follow_symlinks=False) or entry.is_file(follow_symlinks=False)
        ):
            check_inside(base, Path(entry.path), name, request)
        if entry.is_dir(follow_symlinks=False):
            if folders is not None:
                folders.append(name)
            stack.append(iter(_entries(Path(entry.path), name, request)))
            prefixes.append(name + "/")
        else:
            yield name


def _entries(folder: Path, name: str, request: RawRequest) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        rule = f"{request.dataset.name}: every folder of the raw download must be readable"
        where = request.hashed(name) if name else "the raw folder itself"
        raise DataError(rule, f"{where}: {error.strerror}", "mend its permissions or move it") from None
    return [entry for entry in found if not is_noise(entry.name)]


def is_noise(name: str) -> bool:
    """Tell whether one part of a name is hidden or a file manager's."""
    return name.startswith(".") or name in NOISE


def check_inside(base: Path, path: Path, name: str, request: RawRequest) -> None:
    """Refuse what could lead a reader elsewhere or make it wait for ever.

    Raises:
        DataError: see :func:`walk`.
    """
    mode = path.lstat().st_mode
    where = f"{request.dataset.name}: {request.hashed(name)}"
    if stat.S_ISLNK(mode):
        try:
            target = path.resolve(strict=True)
        except (OSError, RuntimeError):  # a dangling link, or a loop
            raise DataError(f"{where} must be a file", "a link to nothing", "remove it") from None
        if not target.is_relative_to(base) or not target.is_file():
            what = "a link to a folder or out of the raw folder"
            raise DataError(f"{where} must stay inside the raw folder", what, "replace it by the file itself")
    elif not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise DataError(f"{where} must be a plain file", "a FIFO, socket or device", "remove it")


def checked_name(name: str, request: RawRequest) -> str:
    """Return a table's file name in ``/``-separated normal form.

    Raises:
        DataError: for an absolute name, or one with ``..``.
    """
    parts = name.replace("\\", "/").split("/")
    if name.startswith(("/", "\\")) or ".." in parts or "\0" in name or ":" in parts[0]:
        rule = f"{request.dataset.name}: names in a table must stay inside the raw folder"
        raise DataError(rule, request.hashed(name), "use names relative to the table's folder")
    return "/".join(part for part in parts if part not in ("", "."))


def resolve_name(root: Path, name: str, request: RawRequest) -> Path:
    """Return the file that a table names, which must lie below ``root``.

    Raises:
        DataError: for an absolute name, one with ``..``, or a link out.
    """
    path = root / checked_name(name, request)
    if path.is_symlink():
        check_inside(root.resolve(), path, name, request)
    return path


def open_plain(path: Path, max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """Return the bytes of a plain file.

    Raises:
        SkipItem: when it is gone, unreadable, empty, too large, or no plain file (never opened then).
    """
    try:
        # O_NONBLOCK: a file swapped for a FIFO after listing must not make us wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        raise SkipItem("file is gone or unreadable") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise SkipItem("no plain file")
        if status.st_size == 0:
            raise SkipItem("empty file")
        if status.st_size > max_bytes:
            raise SkipItem("file too large")
        with os.fdopen(os.dup(descriptor), "rb") as file:
            return file.read()
    except OSError:
        raise SkipItem("file is gone or unreadable") from None
    finally:
        os.close(descriptor)


# What no archive may be or hold, whatever its format.

MAX_RATIO = 1040
"""Deflate cannot do better than 1032 to 1; more is a lie."""
PLAIN_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""How members of a zip may be packed. zipfile reads others without any bound: bzip2 unpacks a chunk of a
member at once, 45,000 to 1, and LZMA takes as much memory as a member asks for."""
MAX_MEMBERS = 5_000_000
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


# Streams of ``.gz``, ``.bz2`` and ``.xz`` files, read forward; going back starts again.
#
# Formats: RFC 1952, bzip2 and the XZ file format 1.1, as read by the standard library. Its own ``LZMAFile``
# cannot be told how much memory a header may ask for, which is up to 4 GiB; hence the class here.

READ_BYTES = 1 << 16
MAX_XZ_MEMORY = 256 << 20
"""The strongest preset of ``xz`` (-9) asks for 65 MiB."""
GZIP, BZIP2, XZ = (".tar.gz", ".tgz"), (".tar.bz2", ".tbz2", ".tbz"), (".tar.xz", ".txz")
PACKED_TARS = GZIP + BZIP2 + XZ
"""Endings of tars that can only be read forward."""


def open_packed(file: IO[bytes], name: str) -> IO[bytes]:
    """Return the unpacked stream of a packed tar, by its name's ending."""
    lower = name.lower()
    if lower.endswith(GZIP):
        return gzip.GzipFile(fileobj=file)  # type: ignore[return-value]
    make: Callable[[], Any] = bz2.BZ2Decompressor if lower.endswith(BZIP2) else _xz
    return io.BufferedReader(_Unpacked(file, make), READ_BYTES)


def _xz() -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_XZ_MEMORY)


class _Unpacked(io.RawIOBase):
    """What one or several packed streams one after another unpack to."""

    def __init__(self, file: IO[bytes], make: Callable[[], Any]) -> None:
        self._file, self._make = file, make
        self._rewind()

    def _rewind(self) -> None:
        self._file.seek(0)
        self._unpacker, self._place, self._ended = self._make(), 0, False

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place counted from the start, or from here."""
        if whence == io.SEEK_END:
            raise io.UnsupportedOperation("the end is known only once it was read")
        offset += self._place if whence == io.SEEK_CUR else 0
        if offset < self._place:
            self._rewind()
        while self._place < offset and self._next(min(READ_BYTES, offset - self._place)):
            pass
        return self._place

    def readinto(self, buffer: Any) -> int:
        found = self._next(len(buffer))
        buffer[: len(found)] = found
        return len(found)

    def _next(self, size: int) -> bytes:
        while not self._ended:
            packed = b""
            if self._unpacker.eof:
                packed = self._unpacker.unused_data.lstrip(b"\0") or self._file.read(READ_BYTES).lstrip(b"\0")
                if not packed:
                    self._ended = True
                    break
                self._unpacker = self._make()
            elif self._unpacker.needs_input:
                packed = self._file.read(READ_BYTES)
                if not packed:
                    raise EOFError("a packed stream ends early")
            found: bytes = self._unpacker.decompress(packed, size)
            if found:
                self._place += len(found)
                return found
        return b""


# Members of a ``.zip`` (APPNOTE.TXT 6.3, as read by :mod:`zipfile`).


class ZipMembers:
    """Members of a zip, by name, in any order."""

    def __init__(self, file: IO[bytes]) -> None:
        self._archive = zipfile.ZipFile(file)
        size = file.seek(0, io.SEEK_END)
        if sum(info.compress_size for info in self._archive.infolist()) > size:
            raise RefusedArchive("an archive whose members overlap")
        self._members: dict[str, zipfile.ZipInfo] = {}
        for info in self._archive.infolist():
            name = checked_member(info.filename)
            if info.is_dir():
                continue
            self._check(info)
            if name is None:
                continue
            if name in self._members:  # a//b and a\\b are one place, too
                raise RefusedArchive("an archive with repeated names")
            self._members[name] = info
            if len(self._members) > MAX_MEMBERS:
                raise RefusedArchive(f"an archive with more than {MAX_MEMBERS:,} members")

    @staticmethod
    def _check(info: zipfile.ZipInfo) -> None:
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG):
            raise RefusedArchive("an archive with links or devices")
        if info.flag_bits & 1:
            raise RefusedArchive("an encrypted archive; unpack it with its password first")
        if info.file_size > MAX_RATIO * info.compress_size + MAX_RATIO:
            raise RefusedArchive("an archive that declares more than its packed size can hold")
        if info.compress_type not in PLAIN_METHODS:
            raise RefusedArchive("an archive packed by another method than deflate")

    def members(self) -> list[str]:
        """Return the names of all plain files, in stored order."""
        return list(self._members)

    def read(self, member: str, max_bytes: int) -> bytes:
        """Return a member's bytes, of at most ``max_bytes``."""
        info = self._members.get(member)
        if info is None:
            raise SkipItem("file is gone or unreadable")
        if info.file_size > max_bytes:
            raise SkipItem("file too large")
        try:
            with self._archive.open(info) as file:
                # Asked for all, zipfile unpacks whatever there is before it looks at the declared size.
                return file.read(info.file_size)
        except (*DAMAGE, MemoryError):
            raise SkipItem("damaged archive member") from None

    def open(self, member: str) -> IO[bytes]:
        """Return a seekable stream of a member, for an archive in this one."""
        return io.BytesIO(self.read(member, MAX_FILE_BYTES))


# Members of a ``.tar``, plain or packed (POSIX.1-2001 and GNU tar, as read by :mod:`tarfile`).

MAX_TAR_HEADER = 1 << 20


class _BoundedInfo(tarfile.TarInfo):
    """A tar header that refuses to announce a name of gigabytes."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        info = super().frombuf(buf, encoding, errors)
        plain = (*tarfile.REGULAR_TYPES, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE)
        if info.type not in plain and info.size > MAX_TAR_HEADER:
            raise RefusedArchive("an archive with a huge header")
        if info.size < 0:  # tarfile would read to the end, or go round in circles
            raise RefusedArchive("an archive with a negative size")
        return info


class TarMembers:
    """A tar, plain or packed, whose members become known as it is read forward."""

    def __init__(self, file: IO[bytes], name: str) -> None:
        self._packed = name.lower().endswith(PACKED_TARS)
        self._left = MAX_RATIO * (file.seek(0, io.SEEK_END) + 1)
        file.seek(0)
        self._file = open_packed(file, name) if self._packed else file
        self._archive = tarfile.open(fileobj=self._file, mode="r:", tarinfo=_BoundedInfo)  # noqa: SIM115
        self._members: dict[str, tarfile.TarInfo] = {}
        self._whole = False
        self._refused: RefusedArchive | None = None
        self._lock = threading.RLock()

    def _next(self) -> bool:
        """Read one more header; False at the end. What was refused once stays refused: an opened archive is
        kept, and who asks again must not get the members after the one that was refused.
        """
        if self._refused is None:
            try:
                return self._read_header()
            except RefusedArchive as refused:
                self._refused = refused
        raise RefusedArchive(self._refused.reason)

    def _read_header(self) -> bool:
        info = self._archive.next()
        if info is None:
            # tarfile takes a damaged header for the end; a real end is zeros or nothing.
            self._file.seek(self._archive.offset)
            if self._file.read(tarfile.BLOCKSIZE).strip(b"\0"):
                raise RefusedArchive("damaged archive")
            self._whole = True
            return False
        name = checked_member(info.name)
        if info.size < 0:  # by an extended header
            raise RefusedArchive("an archive with a negative size")
        if info.isdir():
            return True
        self._left -= info.size
        if self._left < 0:
            raise RefusedArchive("an archive that declares more than its packed size can hold")
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
        """Return the names of all plain files, in stored order."""
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
        """Return a member's bytes, of at most ``max_bytes``."""
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
        """Return a seekable stream of a member, for an archive in this one."""
        if self._packed:
            return io.BytesIO(self.read(member, MAX_FILE_BYTES))
        with self._lock:
            stream = self._archive.extractfile(self._find(member))
        if stream is None:
            raise SkipItem("no plain file")
        return stream


# Archives read where they lie: members of a ``.zip`` or a tar, plain or packed, nothing unpacked to disk.
#
# A member's locator is ``archive!/member``; archives in archives (ILSVRC's tar of tars) repeat the mark.
# Opened archives are kept per process, so a directory is read once, and a packed tar goes forward only as
# long as its members are asked for in stored order.
#
# What an archive declares is checked before it is believed: names that lead elsewhere, links, devices,
# repeated names, encryption and members that would unpack to more than their packed size can hold are
# refused (:mod:`tasks.sources.raw`).

MARK = "!/"
ENDINGS = (".zip", ".tar", *PACKED_TARS)
MAX_DEPTH = 3


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
    # A folder may be called "x.zip!".
    if len(parts) == 1 or os.path.isfile(base / locator):  # no error for a long name
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
        return ZipMembers(stream) if name.lower().endswith(".zip") else TarMembers(stream, name)
    except SkipItem as skip:
        raise RefusedArchive(skip.reason) from None
    except DAMAGE:
        raise RefusedArchive("damaged archive") from None


# All files of a raw download by name, those in its archives included, as if these were unpacked in place.
#
# A file that lies there unpacked goes before the same name in an archive. Archives are opened only when
# asked for, so a download that is unpacked pays nothing for the archives that were left beside it.


class RawTree:
    """Names below a raw folder or in a raw archive, found without regard to case; walked once.

    Args:
        request: What is read; its raw path may be a folder, or an archive.
        archives: Look into the archives below the folder, too.
        wanted: Which archives to look into, by name as if unpacked; all by default.

    Raises:
        DataError: for links out, FIFOs, unreadable folders, and archives that must not be read.
    """

    def __init__(
        self, request: RawRequest, *, archives: bool = False, wanted: Callable[[str], bool] = lambda _: True
    ) -> None:
        root = request.root()
        self.folders: list[str] = []
        self._locators: dict[str, str] = {}
        self.archives: list[str] = []
        if root.is_dir():
            for name in walk(root, request, self.folders):
                self._locators[name] = name
                if is_archive_name(name):
                    self.archives.append(name)
            todo = self.archives if archives else []
        else:
            todo = [root.name]
            self.archives = [root.name]
        for name in todo:
            place = name.rpartition("/")[0] if root.is_dir() else ""
            for virtual, locator in _members(request, name, (), place, wanted) if wanted(name) else ():
                before = self._locators.get(virtual)
                if before is None or MARK not in before:
                    self._locators.setdefault(virtual, locator)
                else:  # one name in two archives: OAI's series all hold a file 001
                    self._locators[locator] = locator
        self.names = sorted(self._locators, key=lambda name: name.split("/"))
        self._by_case = {name.casefold(): name for name in reversed(self.names)}

    def __iter__(self) -> Iterator[str]:
        """Yield all names in sorted order."""
        return iter(self.names)

    def locator(self, name: str) -> str:
        """Return where a file of this tree is, as an item's locator."""
        return self._locators[name]

    def get(self, name: str) -> str | None:
        """Return the locator of a name in whatever case, or None."""
        found = self._by_case.get(name.casefold())
        return None if found is None else self._locators[found]


def _members(
    request: RawRequest, file: str, inner: tuple[str, ...], place: str, wanted: Callable[[str], bool]
) -> Iterator[tuple[str, str]]:
    """Yield (name as if unpacked, locator) of an archive's members, of inner archives too."""
    try:
        names = open_archive(request.base() / file, inner).members()
    except RefusedArchive as refused:
        rule = f"{request.dataset.name}: archives of the raw download must be whole and safe"
        where = request.hashed(MARK.join((file, *inner)))
        way_out = "download it again, or unpack it beside the others and take it away"
        raise DataError(rule, f"{where}: {refused.reason}", way_out) from None
    for name in names:
        virtual = f"{place}/{name}" if place else name
        if is_archive_name(name) and len(inner) + 1 < MAX_DEPTH:
            if wanted(virtual):
                yield from _members(request, file, (*inner, name), virtual.rpartition("/")[0], wanted)
        else:
            yield virtual, MARK.join((file, *inner, name))


def outer_file(locator: str) -> str:
    """Return the plain file that a locator leads into."""
    return split_locator(locator)[0]
