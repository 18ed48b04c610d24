"""From a name below the raw folder to bytes, never more than a bound: folders, zip, tar, one in
another.

Formats: APPNOTE.TXT 6.3, POSIX.1-2001 and GNU tar, as read by :mod:`zipfile` and :mod:`tarfile`;
RFC 1952, bzip2 and XZ 1.1, as read by :mod:`gzip`, :mod:`bz2` and :mod:`lzma`.

A *locator* is a name relative to the raw folder; a member of an archive is ``archive!/member``, and
archives in archives (ILSVRC's tar of tars) repeat the mark. Nothing is unpacked to disk. Opened
archives are kept per process; a packed tar goes forward only as long as its members are asked for
in stored order. What an archive declares is checked here, before it is believed, and nowhere else:
names that lead elsewhere, links, repeated names, encryption, and members that would unpack to more
than their packed size can hold are refused.
"""

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
from typing import IO, Any

from tasks.atomic import without_waiting
from tasks.sources.base import RawRequest, SkipItem

MARK = "!/"
GZIP, BZIP2, XZ = (".tar.gz", ".tgz"), (".tar.bz2", ".tbz2", ".tbz"), (".tar.xz", ".txz")
PACKED_TARS = GZIP + BZIP2 + XZ
"""Endings of tars that can only be read forward."""
TARS = (".tar", *PACKED_TARS)
ARCHIVES = (".zip", *TARS)
NOISE = frozenset({"__MACOSX", "Thumbs.db", "desktop.ini"})
GONE = "file is gone or unreadable"
MAX_FILE_BYTES = 384 << 20
"""Largest single file or archive member, held whole. A multi-frame ultrasound has about 100 MiB, a
computed radiograph 30; with what decoding needs besides, a reading task stays below a GiB."""
MAX_DEPTH = 3
MAX_RATIO = 1040
"""Deflate cannot do better than 1032 to 1; more is a lie."""
MAX_MEMBERS = 5_000_000
MAX_XZ_MEMORY = 256 << 20
"""The strongest preset of ``xz`` (-9) asks for 65 MiB, a header may ask for 4 GiB."""
PLAIN_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""How members of a zip may be packed. zipfile reads others without any bound: bzip2 unpacks a chunk
of a member at once, 45,000 to 1, and LZMA takes as much memory as a member asks for."""
DAMAGE = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, struct.error),
    *(EOFError, OSError, RuntimeError, ValueError, KeyError, NotImplementedError),
)
"""What the standard library's readers raise on damaged or odd archives."""


class RefusedArchive(SkipItem):
    """An archive that must not be read; ``reason`` names no member."""


def is_archive_name(name: str) -> bool:
    """Tell by a file's ending whether it is an archive that we read."""
    return name.lower().endswith(ARCHIVES)


def is_noise(name: str) -> bool:
    """Tell whether one part of a name is hidden or a file manager's."""
    return name.startswith(".") or name in NOISE


def read_locator(base: Path, locator: str) -> bytes:
    """Return the bytes of a plain file or archive member below ``base``; a SkipItem says why
    not.
    """
    file, *inner = split_locator(locator)
    if not inner:
        return read_plain(base / file)
    body = open_archive(base / file, tuple(inner[:-1])).read(inner[-1], MAX_FILE_BYTES)
    if not body:
        raise SkipItem("empty file")
    return body


def split_locator(locator: str) -> list[str]:
    """Return the file, and then the member (or row) in it, the member in that one ..."""
    first, *parts = locator.split(MARK)
    found = [first]
    for part in parts:
        if found[-1].lower().endswith((*ARCHIVES, ".parquet")):
            found.append(part)
        else:  # a folder whose name ends in "!"
            found[-1] += MARK + part
    return found


def read_plain(path: Path, max_bytes: int = MAX_FILE_BYTES, *, cut: bool = False) -> bytes:
    """Return the bytes of a plain file, or (``cut``) the first of them; what is none is never
    opened.
    """
    try:
        with open(
            path, "rb", opener=without_waiting
        ) as file:  # it may be swapped for a FIFO after listing
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise SkipItem("no plain file")
            if status.st_size == 0:
                raise SkipItem("empty file")
            if status.st_size > max_bytes and not cut:
                raise SkipItem("file too large")
            return file.read(
                min(status.st_size, max_bytes)
            )  # memory is taken for what is asked for
    except IsADirectoryError:
        raise SkipItem("no plain file") from None
    except (OSError, ValueError):
        raise SkipItem(GONE) from None


def gunzipped(body: bytes, max_bytes: int) -> bytes:
    """Unpack what is gzip by its first bytes, no further than ``max_bytes``; return others as they
    are.
    """
    if body[:2] != b"\x1f\x8b":
        return body
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(body)) as file:
            return file.read(max_bytes)
    except DAMAGE:
        raise SkipItem("damaged gzip file") from None


def walk(
    root: Path,
    request: RawRequest,
    folders: list[str] | None = None,
    hidden: list[str] | None = None,
    *,
    strict: bool = True,
) -> Iterator[str]:
    """Yield all plain files below ``root`` as ``/``-separated relative names, in sorted order.

    Hidden files and folders, and what file managers leave behind, are left out. The order is that
    of the names' parts, so a folder's files lie together whatever characters its name has.
    ``folders`` gets the names of all folders met, empty ones too, and ``hidden`` of what is left
    out, folders with ``/``. A link that leaves the root, a linked folder, a FIFO, socket or device,
    or a folder that cannot be listed is a DataError; where not ``strict``, it is named, too.
    """
    base = root.resolve()
    todo = _entries(base, "", request, strict)
    while todo:
        name, entry = todo.pop()
        is_folder = entry.is_dir(follow_symlinks=False)
        if is_noise(entry.name):
            if hidden is not None:
                hidden.append(f"{name}/" if is_folder else name)
            continue
        if strict and not is_folder and not entry.is_file(follow_symlinks=False):
            _check_inside(base, Path(entry.path), request.hashed(name), request)
        if not is_folder:
            yield name
            continue
        if folders is not None:
            folders.append(name)
        todo += _entries(Path(entry.path), f"{name}/", request, strict)


def _entries(
    folder: Path, prefix: str, request: RawRequest, strict: bool
) -> list[tuple[str, os.DirEntry[str]]]:
    """Return what lies in a folder, the first name last."""
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name, reverse=True)
    except OSError as error:
        if not strict:
            return []
        rule = "every folder of the raw download must be readable"
        where = request.hashed(prefix.rstrip("/")) if prefix else "the raw folder itself"
        raise request.error(
            rule, f"{where}: {error.strerror}", "mend its permissions or move it"
        ) from None
    return [(prefix + entry.name, entry) for entry in found]


def _check_inside(base: Path, path: Path, where: str, request: RawRequest) -> None:
    """Refuse what could lead a reader elsewhere or make it wait for ever."""
    if not path.is_symlink():
        raise request.error(
            f"{where} must be a plain file", "a FIFO, socket or device", "remove it"
        )
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError):  # a dangling link, or a loop
        raise request.error(f"{where} must be a file", "a link to nothing", "remove it") from None
    if not target.is_relative_to(base) or not target.is_file():
        what = "a link to a folder or out of the raw folder"
        raise request.error(
            f"{where} must stay inside the raw folder", what, "replace it by the file itself"
        )


def plain_name(name: str) -> str | None:
    """Return a name of a table or an archive in ``/``-separated normal form; None if it leads
    elsewhere.
    """
    parts = name.replace("\\", "/").split("/")
    drive = ":" in parts[0][:2] or parts[0].endswith(":")  # or the scheme of a URL
    if name.startswith(("/", "\\")) or ".." in parts or "\0" in name or drive:
        return None
    return "/".join(part for part in parts if part not in ("", "."))


def _checked_member(name: str) -> tuple[str, str]:
    """Return a member's name in normal form, and what of it :func:`walk` would call hidden, or
    nothing.
    """
    found = plain_name(name)
    if found is None:
        raise RefusedArchive("an archive with names that lead elsewhere")
    parts = found.split("/")
    for place, part in enumerate(parts, 1):
        if is_noise(part):
            return found, "/".join(parts[:place]) + "/" * (place < len(parts))
    return found, ""


def open_zip(file: Path | IO[bytes], max_members: int = MAX_MEMBERS) -> zipfile.ZipFile:
    """Open any zip (an archive, an ``.npz``, an ``.xlsx``) once what it says of its members was
    checked.
    """
    try:
        archive = zipfile.ZipFile(file)
        size = file.stat().st_size if isinstance(file, Path) else file.seek(0, io.SEEK_END)
    except DAMAGE:
        raise RefusedArchive("damaged archive") from None
    members = archive.infolist()
    if sum(info.compress_size for info in members) > size:
        raise RefusedArchive("an archive whose members overlap")
    if len(members) > max_members:
        raise RefusedArchive(f"an archive with more than {max_members:,} members")
    if len({info.filename for info in members}) < len(members):
        raise RefusedArchive("an archive with repeated names")
    for info in members:
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise RefusedArchive("an archive with links or devices")
        if info.flag_bits & 1:
            raise RefusedArchive("an encrypted archive; unpack it with its password first")
        if info.file_size > MAX_RATIO * (info.compress_size + 1):
            raise RefusedArchive("an archive that declares more than its packed size can hold")
        if info.compress_type not in PLAIN_METHODS:
            raise RefusedArchive("an archive packed by another method than deflate")
    return archive


class ZipArchive:
    """Members of a zip, by name, in any order."""

    def __init__(self, file: IO[bytes]) -> None:
        self._archive = open_zip(file)
        self._members: dict[str, zipfile.ZipInfo] = {}
        self.hidden: dict[str, None] = {}
        for info in self._archive.infolist():
            name, hidden = _checked_member(info.filename)
            if name in self._members:  # a//b and a\\b are one place, too
                raise RefusedArchive("an archive with repeated names")
            if hidden:
                self.hidden[hidden] = None
            elif name and not info.is_dir():
                self._members[name] = info

    def members(self) -> list[str]:
        """Return the names of all plain files in it, in stored order."""
        return list(self._members)

    def read(self, member: str, max_bytes: int) -> bytes:
        """Return a member's bytes; one that is gone, damaged or larger is a SkipItem."""
        info = self._members.get(member)
        if info is None:
            raise SkipItem(GONE)
        if info.file_size > max_bytes:
            raise SkipItem("file too large")
        try:
            with self._archive.open(info) as file:
                # Asked for all, zipfile unpacks whatever there is before it looks at the declared
                # size.
                return file.read(info.file_size)
        except (*DAMAGE, MemoryError):
            raise SkipItem("damaged archive member") from None

    def open(self, member: str) -> IO[bytes]:
        """Return a seekable stream of a member, for an archive in this one."""
        return io.BytesIO(self.read(member, MAX_FILE_BYTES))


class TarArchive:
    """A tar, plain or packed, whose members become known as it is read forward."""

    def __init__(self, file: IO[bytes], name: str) -> None:
        self._packed = name.lower().endswith(PACKED_TARS)
        self._left = MAX_RATIO * (file.seek(0, io.SEEK_END) + 1)
        file.seek(0)
        self._file: Any = file
        if name.lower().endswith(GZIP):
            self._file = gzip.GzipFile(fileobj=file)
        elif name.lower().endswith(BZIP2):
            self._file = bz2.BZ2File(file)
        elif self._packed:
            # LZMAFile cannot be told how much memory a header may ask for: ask for one byte with a
            # limit.
            lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_XZ_MEMORY).decompress(
                file.read(1 << 16), 1
            )
            file.seek(0)
            self._file = lzma.LZMAFile(file)  # noqa: SIM115
        self._archive = tarfile.open(fileobj=self._file, mode="r:")  # noqa: SIM115
        self._members: dict[str, tarfile.TarInfo] = {}
        self.hidden: dict[str, None] = {}
        self._whole = False
        self._lock = threading.RLock()

    def _next(self) -> bool:
        """Read one more header; False at the end."""
        info = self._archive.next()
        if info is None:
            # tarfile takes a damaged header for the end, and a cut between two members; a real end
            # is zeros.
            self._file.seek(self._archive.offset)
            end = self._file.read(tarfile.BLOCKSIZE)
            if not end or end.strip(b"\0"):
                raise RefusedArchive(
                    "damaged archive" if end else "an archive without its end, as if cut"
                )
            self._whole = True
            return False
        name, hidden = _checked_member(info.name)
        if info.size < 0:  # tarfile would read to the end, or go round in circles
            raise RefusedArchive("an archive with a negative size")
        if len(self._archive.members) > MAX_MEMBERS:  # type: ignore[attr-defined]
            raise RefusedArchive(f"an archive with more than {MAX_MEMBERS:,} members")
        if info.isdir():
            return True
        self._left -= info.size
        if self._left < 0:
            raise RefusedArchive("an archive that declares more than its packed size can hold")
        if not info.isreg() or info.issparse():
            raise RefusedArchive("an archive with links, devices or sparse files")
        if name in self._members:
            raise RefusedArchive("an archive with repeated names")
        if hidden:
            self.hidden[hidden] = None
        elif name:
            self._members[name] = info
        return True

    def members(self) -> list[str]:
        """Return the names of all plain files in it, in stored order."""
        try:
            with self._lock:
                while not self._whole and self._next():
                    pass
        except (RefusedArchive, *DAMAGE) as error:
            # Else who asks again gets the members behind the one that was refused.
            _opened.cache_clear()
            refused = isinstance(error, RefusedArchive)
            raise error if refused else RefusedArchive("damaged archive") from None
        return list(self._members)

    def _find(self, member: str) -> tarfile.TarInfo:
        while member not in self._members and not self._whole and self._next():
            pass
        if member not in self._members:
            raise SkipItem(GONE)
        return self._members[member]

    def read(self, member: str, max_bytes: int) -> bytes:
        """Return a member's bytes; one that is gone, damaged or larger is a SkipItem."""
        try:
            with self._lock:
                info = self._find(member)
                if info.size > max_bytes:
                    raise SkipItem("file too large")
                self._file.seek(info.offset_data)
                body = self._file.read(info.size)
        except (*DAMAGE, MemoryError):
            raise SkipItem("damaged archive member") from None
        if len(body) != info.size:
            raise SkipItem("damaged archive member")
        return bytes(body)

    def open(self, member: str) -> IO[bytes]:
        """Return a seekable stream of a member, for an archive in this one."""
        if self._packed:
            return io.BytesIO(self.read(member, MAX_FILE_BYTES))
        with self._lock:
            stream = self._archive.extractfile(self._find(member))
        if stream is None:
            raise SkipItem("no plain file")
        return stream


Archive = ZipArchive | TarArchive


def open_archive(path: Path, inner: tuple[str, ...] = ()) -> Archive:
    """Return an opened archive, or the one inside it, kept until its file changes."""
    try:
        status = path.stat()
    except (OSError, ValueError):
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
        return ZipArchive(stream) if name.lower().endswith(".zip") else TarArchive(stream, name)
    except SkipItem as skip:
        raise RefusedArchive(skip.reason) from None
    except PermissionError:
        raise RefusedArchive(GONE) from None
    except DAMAGE:
        raise RefusedArchive("damaged archive") from None


class RawTree:
    """Names below a raw folder or in a raw archive, those in its archives as if these were unpacked
    in place.

    Walked once. A file that lies there unpacked goes before the same name in an archive. Archives
    below a folder are opened only when asked for (``archives``), those whose names as if unpacked
    are ``wanted``, so a download that is unpacked pays nothing for what was left beside it. What
    must not be read is a DataError.
    """

    def __init__(
        self,
        request: RawRequest,
        *,
        archives: bool = False,
        wanted: Callable[[str], bool] = lambda _: True,
    ) -> None:
        root = request.root()
        self.folders: list[str] = []
        self.hidden: list[str] = []
        self._locators: dict[str, str] = {}
        if root.is_dir():
            self._locators = {name: name for name in walk(root, request, self.folders, self.hidden)}
            self.archives = [name for name in self._locators if is_archive_name(name)]
        else:
            self.archives = [root.name]
        for name in self.archives if archives or not root.is_dir() else ():
            place = name.rpartition("/")[0] if root.is_dir() else ""
            for virtual, locator in (
                self._members(request, name, (), place, wanted) if wanted(name) else ()
            ):
                before = self._locators.get(virtual)
                if before is None or MARK not in before:
                    self._locators.setdefault(virtual, locator)
                else:  # one name in two archives: OAI's series all hold a file 001
                    self._locators[locator] = locator
        self._names = sorted(self._locators, key=lambda name: name.split("/"))

    def __iter__(self) -> Iterator[str]:
        """Yield all names in sorted order."""
        return iter(self._names)

    def locator(self, name: str) -> str:
        """Return where a file of this tree is, as an item's locator."""
        return self._locators[name]

    def _members(
        self,
        request: RawRequest,
        file: str,
        inner: tuple[str, ...],
        place: str,
        wanted: Callable[[str], bool],
    ) -> Iterator[tuple[str, str]]:
        """Yield (name as if unpacked, locator) of an archive's members, of inner archives too."""
        try:
            archive = open_archive(request.base() / file, inner)
            names = archive.members()
        except RefusedArchive as refused:
            rule = "archives of the raw download must be whole and safe"
            where = request.hashed(MARK.join((file, *inner)))
            way_out = "download it again, or unpack it beside the others and take it away"
            way_out += "; its name must end as its format does" * (
                refused.reason == "damaged archive"
            )
            raise request.error(rule, f"{where}: {refused.reason}", way_out) from None
        self.hidden += archive.hidden
        for name in names:
            virtual = f"{place}/{name}" if place else name
            if is_archive_name(name) and len(inner) + 1 < MAX_DEPTH:
                if wanted(virtual):
                    yield from self._members(
                        request, file, (*inner, name), virtual.rpartition("/")[0], wanted
                    )
            else:
                yield virtual, MARK.join((file, *inner, name))
