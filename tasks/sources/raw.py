"""Read files and archive members below the raw folder, with a limit on memory.

A *locator* is the path of a file relative to the raw folder. The locator of an archive member
is ``archive!/member``. For an archive in an archive (ILSVRC has a tar of tars), ``!/`` is
repeated.

isweep never unpacks an archive to disk. Every process keeps an archive open after its first
use. A compressed tar can only be read from its start to its end. Reading its members is
therefore fast only in stored order.

Archives may be damaged or hostile. Declared sizes and names are checked before an archive is
read. These archives are refused:

- archives with links, repeated names, encryption, or names that lead out of the archive;
- archives with members that declare more bytes than their compressed data can contain.

Archives are zips (APPNOTE.TXT 6.3) and tars (POSIX.1-2001 and GNU), as :mod:`zipfile` and
:mod:`tarfile` read them. Compressed data are gzip (RFC 1952), bzip2 or XZ 1.1, as :mod:`gzip`,
:mod:`bz2` and :mod:`lzma` read them.
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
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from tasks.atomic import without_waiting
from tasks.sources.base import RawRequest, SkipItem

MARK = "!/"
"""Text that separates an archive from its member in a locator."""
GZIP = (".tar.gz", ".tgz")
BZIP2 = (".tar.bz2", ".tbz2", ".tbz")
XZ = (".tar.xz", ".txz")
PACKED_TARS = GZIP + BZIP2 + XZ
"""File name extensions of compressed tars. These can only be read from their start to their
end."""
TARS = (".tar", *PACKED_TARS)
ARCHIVES = (".zip", *TARS)
FILE_MANAGER_NAMES = frozenset({"__MACOSX", "Thumbs.db", "desktop.ini"})
"""Names of files and folders that the file managers of macOS and Windows create."""
GONE = "file is gone or unreadable"
"""Reason of a :class:`SkipItem` or :class:`RefusedArchive` error for a file that does not
exist or cannot be read."""
MAX_FILE_BYTES = 384 << 20
"""Largest size in bytes of a file or archive member that isweep reads. isweep reads the whole
file into memory. An ultrasound video of 300 frames has about 100 MiB. A computed radiograph
has 30 MiB. A task that reads and decodes such files needs less than 1 GiB of memory."""
MAX_DEPTH = 3
"""Largest depth of nested archives. A tar in a tar in a zip has the depth 3."""
MAX_RATIO = 1040
"""Largest ratio of unpacked size to compressed size. The method deflate reaches at most 1032.
An archive that declares a larger ratio is therefore damaged or hostile."""
MAX_MEMBERS = 5_000_000
"""Largest number of members of an archive."""
MAX_XZ_MEMORY = 256 << 20
"""Largest memory in bytes for unpacking an XZ file. The strongest preset of ``xz`` (-9) needs
65 MiB. A damaged header may request 4 GiB."""
PLAIN_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""Supported compression methods of a zip. For other methods, :mod:`zipfile` has no limit on
memory. With bzip2, a chunk may be unpacked to 45,000 times its size. With LZMA, the header of
a member decides how much memory is reserved."""
DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    OSError,
    RuntimeError,
    ValueError,
    KeyError,
    NotImplementedError,
)
"""Exceptions that the standard library raises for damaged or unusual archives."""


class RefusedArchive(SkipItem):
    """An archive that is damaged, encrypted, or not safe to unpack.

    The ``reason`` contains no name of a member.
    """


class DamagedArchive(RefusedArchive):
    """An archive whose bytes do not match the format of its file extension."""

    def __init__(self, reason: str = "damaged archive") -> None:  # unpickling passes the reason
        super().__init__(reason)


def is_archive_name(name: str) -> bool:
    """Return whether a file has the extension of an archive that can be read."""
    return name.lower().endswith(ARCHIVES)


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is hidden, or was created by a file manager.

    Args:
        name: Name of the file or folder, without the folders above it.
    """
    return name.startswith(".") or name in FILE_MANAGER_NAMES


def read_locator(base: Path, locator: str) -> bytes:
    """Return the bytes of a plain file or archive member.

    Args:
        base: Folder that the locator is relative to.
        locator: Locator of a file or member.

    Raises:
        SkipItem: The file or member is missing, empty, damaged, or larger than
            :data:`MAX_FILE_BYTES`.
        RefusedArchive: The archive is damaged, encrypted, or not safe to unpack.
    """
    file, *members = split_locator(locator)
    if not members:
        return read_plain(base / file)
    archive = open_archive(base / file, tuple(members[:-1]))
    body = archive.read(members[-1], MAX_FILE_BYTES)
    if not body:
        raise SkipItem("empty file")
    return body


def split_locator(locator: str) -> list[str]:
    """Split a locator at each ``!/`` that follows an archive or a Parquet file.

    The first part is the path of the file on the disk.
    """
    file, *names = locator.split(MARK)
    parts = [file]
    for part in names:
        if parts[-1].lower().endswith((*ARCHIVES, ".parquet")):
            parts.append(part)
        else:  # this ! ends the name of a folder, not of an archive
            parts[-1] += MARK + part
    return parts


def read_plain(path: Path, max_bytes: int = MAX_FILE_BYTES, *, cut: bool = False) -> bytes:
    """Return the bytes of a plain file. Folders, FIFOs, sockets and device files are never read.

    Args:
        path: The file.
        max_bytes: Largest number of bytes to return.
        cut: True to return the first bytes of a larger file; False to raise an error.

    Raises:
        SkipItem: The file is missing, empty, too large or not a plain file.
    """
    try:
        # A FIFO may have replaced the file, so this opener does not wait for data.
        with open(path, "rb", opener=without_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise SkipItem("not a plain file")
            if status.st_size == 0:
                raise SkipItem("empty file")
            if status.st_size > max_bytes and not cut:
                raise SkipItem("file too large")
            # Without min(), read would reserve max_bytes of memory even for a small file.
            return file.read(min(status.st_size, max_bytes))
    except IsADirectoryError:
        raise SkipItem("not a plain file") from None
    except (OSError, ValueError):
        raise SkipItem(GONE) from None


def gunzip(body: bytes, max_bytes: int) -> bytes:
    """Unpack gzip data, and return other data unchanged.

    Args:
        body: The data.
        max_bytes: Largest number of unpacked bytes to return.

    Raises:
        SkipItem: The gzip data are damaged.
    """
    if body[:2] != b"\x1f\x8b":
        return body
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(body)) as file:
            return file.read(max_bytes)
    except DAMAGE:
        raise SkipItem("damaged gzip file") from None


@dataclass(frozen=True)
class FolderContent:
    """The names of everything below a folder.

    Names are relative to the folder, with ``/`` as separator. They are sorted by their parts,
    so all files of a folder are next to each other.

    Attributes:
        files: Names of all files, including links and special files.
        folders: Names of all folders.
        hidden: Names of hidden files and folders, and of files and folders that file managers
            leave behind. These names, and everything in such folders, are not in ``files`` or
            ``folders``. Names of hidden folders end with a slash.
        special: The names in ``files`` that are links or special files.
    """

    files: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    special: list[str] = field(default_factory=list)


def search_folder(root: Path, request: RawRequest, *, strict: bool = True) -> FolderContent:
    """Return the names of everything below a folder.

    Args:
        root: The folder.
        request: The request. Its method ``error`` makes the errors.
        strict: True to raise an error for links that lead out of the folder, for special
            files, and for folders that cannot be listed. False to return the names of such
            links and files, and to treat such folders as empty.

    Raises:
        DataError: ``strict`` is True, and the folder contains one of these: a link to a
            folder, a link that leads out of the folder, a FIFO, a socket, a device file, or a
            folder that cannot be listed.
    """
    base = root.resolve()
    content = FolderContent()
    pending = _list_folder(base, "", request, strict)
    while pending:
        name, entry = pending.pop()
        is_folder = entry.is_dir(follow_symlinks=False)
        if is_hidden(entry.name):
            content.hidden.append(f"{name}/" if is_folder else name)
            continue
        if is_folder:
            content.folders.append(name)
            pending += _list_folder(Path(entry.path), f"{name}/", request, strict)
            continue
        content.files.append(name)
        if not entry.is_file(follow_symlinks=False):
            content.special.append(name)
            if strict:
                check_inside(base, Path(entry.path), request.hashed(name), request)
    return content


def raw_content(request: RawRequest) -> FolderContent:
    """Return the names of everything in the raw folder.

    If the raw data are one file, the result contains only the name of this file.
    """
    root = request.root()
    if root.is_file():
        return FolderContent(files=[root.name])
    return search_folder(root, request)


def _list_folder(
    folder: Path, prefix: str, request: RawRequest, strict: bool
) -> list[tuple[str, os.DirEntry[str]]]:
    """Return the entries of a folder as pairs: path below the root, entry.

    The pairs are in reverse order, because the caller takes them from the end with ``pop``.

    Raises:
        DataError: ``strict`` is True, and the names in the folder cannot be read.
    """
    try:
        with os.scandir(folder) as scan:
            entries = sorted(scan, key=lambda entry: entry.name, reverse=True)
    except OSError as error:
        if not strict:
            return []
        folder_text = request.hashed(prefix.rstrip("/")) if prefix else "the raw folder itself"
        raise request.error(
            f"{folder_text} cannot be read: {error.strerror}",
            hint="Change the permissions of this folder, or move it elsewhere",
        ) from None
    return [(prefix + entry.name, entry) for entry in entries]


def check_inside(base: Path, path: Path, path_text: str, request: RawRequest) -> None:
    """Check that a path is a link to a file in the folder ``base``.

    Args:
        base: The folder, as an absolute path without links.
        path: A path in the folder that is neither a plain file nor a folder.
        path_text: Keyed hash of the path, for messages.
        request: The request. Its method ``error`` makes the errors.

    Raises:
        DataError: The path is a FIFO, a socket or a device file, or a link that does not lead
            to a file in ``base``.
    """
    if not path.is_symlink():
        raise request.error(
            f"the file {path_text} is a FIFO, socket or device file, not a plain file",
            hint="Remove it from the raw folder",
        )
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError):  # RuntimeError: the link leads to itself
        raise request.error(
            f"the file {path_text} is a link to a file that does not exist", hint="Remove the link"
        ) from None
    if not target.is_relative_to(base) or not target.is_file():
        raise request.error(
            f"the file {path_text} is a link to a folder, or to a file outside the raw folder",
            hint="Replace the link by the file or folder itself",
        )


def plain_name(name: str) -> str | None:
    """Return a relative path with ``/`` as separator.

    If the path leads out of the folder, return None.
    """
    parts = name.replace("\\", "/").split("/")
    has_drive = ":" in parts[0][:2] or parts[0].endswith(":")  # also true for a URL
    if name.startswith(("/", "\\")) or ".." in parts or "\0" in name or has_drive:
        return None
    return "/".join(part for part in parts if part not in ("", "."))


def _member_name(stored_name: str) -> str:
    """Return a member's name as :func:`plain_name` writes it.

    Raises:
        RefusedArchive: The name leads out of the archive.
    """
    name = plain_name(stored_name)
    if name is None:
        raise RefusedArchive("an archive with names that lead out of it")
    return name


def _hidden_part(name: str) -> str:
    """Return the hidden part of a member's name; an empty text if no part is hidden.

    If a folder in the path is hidden, the result is the path up to this folder, with a final
    slash. If only the file is hidden, the result is the whole name.
    """
    parts = name.split("/")
    for depth, part in enumerate(parts, 1):
        if is_hidden(part):
            hidden = "/".join(parts[:depth])
            return f"{hidden}/" if depth < len(parts) else hidden
    return ""


def open_zip(file: Path | IO[bytes], max_members: int = MAX_MEMBERS) -> zipfile.ZipFile:
    """Open a zip (an archive, an ``.npz`` or an ``.xlsx``) after checking its list of members.

    Args:
        file: Path or stream of the zip.
        max_members: Largest number of members.

    Raises:
        RefusedArchive: The zip is damaged or encrypted, or a member is not safe to unpack.
    """
    try:
        archive = zipfile.ZipFile(file)
        size = file.stat().st_size if isinstance(file, Path) else file.seek(0, io.SEEK_END)
    except DAMAGE:
        raise DamagedArchive() from None
    members = archive.infolist()
    if sum(info.compress_size for info in members) > size:
        raise RefusedArchive("an archive whose members overlap")
    if len(members) > max_members:
        raise RefusedArchive(f"an archive with more than {max_members:,} members")
    if len(set(archive.namelist())) < len(members):
        raise RefusedArchive("an archive with repeated names")
    for info in members:
        # The high 16 bits are the mode of the file if the zip was made on Unix.
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise RefusedArchive("an archive with links or device files")
        if info.flag_bits & 1:  # encrypted, APPNOTE 4.4.4
            raise RefusedArchive("an encrypted archive; unpack it with its password first")
        if info.file_size > MAX_RATIO * (info.compress_size + 1):
            raise RefusedArchive("an archive that declares more than its packed size can hold")
        if info.compress_type not in PLAIN_METHODS:
            raise RefusedArchive("an archive packed by another method than deflate")
    return archive


class ZipArchive:
    """A zip whose members can be read in any order.

    Attributes:
        hidden: A dict whose keys are the names of hidden files and folders, in stored order.
            Names of folders end with a slash. All values are None.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._archive = open_zip(file)
        self._members: dict[str, zipfile.ZipInfo] = {}
        self.hidden: dict[str, None] = {}
        for info in self._archive.infolist():
            name = _member_name(info.filename)
            hidden = _hidden_part(name)
            if name in self._members:  # a//b and a\\b are the same name
                raise RefusedArchive("an archive with repeated names")
            if hidden:
                self.hidden[hidden] = None
            elif name and not info.is_dir():
                self._members[name] = info

    def members(self) -> list[str]:
        """Return the names of all plain files in the zip, in stored order."""
        return list(self._members)

    def read(self, member: str, max_bytes: int) -> bytes:
        """Return a member's bytes.

        Raises:
            SkipItem: The member is missing, damaged or larger than ``max_bytes``.
        """
        info = self._members.get(member)
        if info is None:
            raise SkipItem(GONE)
        if info.file_size > max_bytes:
            raise SkipItem("file too large")
        try:
            with self._archive.open(info) as file:
                # If no size is given, zipfile unpacks the whole member before it checks the
                # size.
                return file.read(info.file_size)
        except (*DAMAGE, MemoryError):
            raise SkipItem("damaged archive member") from None

    def open(self, member: str) -> IO[bytes]:
        """Return a seekable stream of a member that is an archive itself."""
        return io.BytesIO(self.read(member, MAX_FILE_BYTES))


class TarArchive:
    """A plain or compressed tar. It is read from its start until the needed member is found.

    Attributes:
        hidden: A dict whose keys are the names of the hidden files and folders that were read
            so far. Names of folders end with a slash. All values are None.
    """

    def __init__(self, file: IO[bytes], name: str) -> None:
        self._packed = name.lower().endswith(PACKED_TARS)
        # Number of bytes that the remaining members may declare in total.
        self._bytes_left = MAX_RATIO * (file.seek(0, io.SEEK_END) + 1)
        file.seek(0)
        self._file = _unpacking_stream(file, name)
        self._archive = tarfile.open(fileobj=self._file, mode="r:")  # noqa: SIM115
        self._members: dict[str, tarfile.TarInfo] = {}
        self.hidden: dict[str, None] = {}
        self._is_complete = False
        self._lock = threading.RLock()

    def _read_header(self) -> None:
        """Read the header of the next member, or check the end of the archive.

        Raises:
            RefusedArchive: The member is not safe to read.
        """
        info = self._archive.next()
        if info is None:
            self._check_end()
            self._is_complete = True
            return
        name = _member_name(info.name)
        if info.size < 0:  # with this size, tarfile might never stop
            raise RefusedArchive("an archive with a negative size")
        if len(self._archive.members) > MAX_MEMBERS:  # type: ignore[attr-defined]
            raise RefusedArchive(f"an archive with more than {MAX_MEMBERS:,} members")
        if info.isdir():
            return
        self._bytes_left -= info.size
        if self._bytes_left < 0:
            raise RefusedArchive("an archive that declares more than its packed size can hold")
        if not info.isreg() or info.issparse():
            raise RefusedArchive("an archive with links, device files or sparse files")
        if name in self._members:
            raise RefusedArchive("an archive with repeated names")
        hidden = _hidden_part(name)
        if hidden:
            self.hidden[hidden] = None
        elif name:
            self._members[name] = info

    def _check_end(self) -> None:
        """Check that the archive ends with zeros.

        If the zeros are missing, the archive is damaged or truncated. :mod:`tarfile` does not
        report this.

        Raises:
            RefusedArchive: The archive does not end with zeros.
        """
        self._file.seek(self._archive.offset)
        end = self._file.read(tarfile.BLOCKSIZE)
        if not end:
            raise RefusedArchive("a truncated archive, without its end")
        if end.strip(b"\0"):
            raise DamagedArchive()

    def members(self) -> list[str]:
        """Return the names of all plain files in the tar, in stored order.

        Raises:
            RefusedArchive: The tar is damaged, or a member is not safe to read.
        """
        try:
            with self._lock:
                while not self._is_complete:
                    self._read_header()
        except (RefusedArchive, *DAMAGE) as error:
            # A second call on this object would continue after the rejected member, and would
            # not raise the error. The next call must therefore open the archive again.
            _open_cached.cache_clear()
            if isinstance(error, RefusedArchive):
                raise
            raise DamagedArchive() from None
        return list(self._members)

    def _find(self, member: str) -> tarfile.TarInfo:
        """Read the tar up to a member, and return the header of this member.

        Raises:
            SkipItem: The tar has no member of this name.
        """
        while member not in self._members and not self._is_complete:
            self._read_header()
        if member not in self._members:
            raise SkipItem(GONE)
        return self._members[member]

    def read(self, member: str, max_bytes: int) -> bytes:
        """Return a member's bytes.

        Raises:
            SkipItem: The member is missing, damaged or larger than ``max_bytes``.
        """
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
        """Return a seekable stream of a member that is an archive itself."""
        if self._packed:
            return io.BytesIO(self.read(member, MAX_FILE_BYTES))
        with self._lock:
            stream = self._archive.extractfile(self._find(member))
        if stream is None:
            raise SkipItem("not a plain file")
        return stream


def _unpacking_stream(file: IO[bytes], name: str) -> Any:
    """Return a seekable stream of the unpacked tar.

    The extension in ``name`` decides how the file is unpacked.
    """
    lower_name = name.lower()
    if lower_name.endswith(GZIP):
        return gzip.GzipFile(fileobj=file)
    if lower_name.endswith(BZIP2):
        return bz2.BZ2File(file)
    if lower_name.endswith(XZ):
        # LZMAFile has no limit on memory. A decompressor with a limit therefore unpacks one
        # byte first, and raises an error if the header asks for more.
        probe = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_XZ_MEMORY)
        probe.decompress(file.read(1 << 16), 1)
        file.seek(0)
        return lzma.LZMAFile(file)
    return file


Archive = ZipArchive | TarArchive


def open_archive(path: Path, inner: tuple[str, ...] = ()) -> Archive:
    """Open an archive, or an archive inside it.

    Each process keeps the last 16 archives open. If the file of an archive has changed, the
    archive is opened again.

    Args:
        path: The outermost archive.
        inner: Path of nested archives: a member of ``path`` that is an archive, then a member
            of that archive, and so on.

    Raises:
        RefusedArchive: The archive is missing, damaged or not safe to read.
    """
    try:
        status = path.stat()
    except (OSError, ValueError):
        raise RefusedArchive("archive is gone or unreadable") from None
    if not stat.S_ISREG(status.st_mode):
        raise RefusedArchive("not a plain file")
    return _open_cached(str(path), inner, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=16)
def _open_cached(path: str, inner: tuple[str, ...], size: int, time_ns: int) -> Archive:
    name = inner[-1] if inner else path
    try:
        if inner:
            stream = _open_cached(path, inner[:-1], size, time_ns).open(name)
        else:
            stream = Path(path).open("rb")  # noqa: SIM115
        if name.lower().endswith(".zip"):
            return ZipArchive(stream)
        return TarArchive(stream, name)
    except SkipItem as skip:
        raise RefusedArchive(skip.reason) from None
    except PermissionError:
        raise RefusedArchive(GONE) from None
    except DAMAGE:
        raise DamagedArchive() from None


@dataclass(frozen=True)
class _ArchivePath:
    """The path of an archive that :class:`RawTree` opens.

    Attributes:
        file: Name of the outermost archive.
        inner: Path of nested archives, as in :func:`open_archive`.
        name: Path that the archive would have below the raw folder if all outer archives were
            unpacked in place.
    """

    file: str
    inner: tuple[str, ...]
    name: str

    @property
    def locator(self) -> str:
        """The locator of the archive."""
        return MARK.join((self.file, *self.inner))


class RawTree:
    """The names of all files below a raw folder or archive, as if archives were unpacked in place.

    The folder is searched once. If a file on the disk and a member of an archive have the same
    name, the file on the disk is used. Archives in a raw folder are opened only if
    ``is_wanted`` accepts them. A download often contains archives that isweep does not need.

    If two archives contain the same name, the name belongs to the file of the first archive.
    The file of the second archive is listed under its locator, which contains :data:`MARK`.
    Archives on the disk come before archives inside other archives.

    Attributes:
        folders: Names of all folders on the disk, including empty folders.
        hidden: Names of hidden files and folders, which are not in the tree.
        archives: Names of all archives on the disk.
    """

    def __init__(
        self,
        request: RawRequest,
        is_wanted: Callable[[str], bool] | None = None,
    ) -> None:
        """List the files of the raw folder or archive.

        Args:
            request: The request, with the raw folder or archive.
            is_wanted: Function that returns whether to open the archive with the given name.
                None opens all archives if the raw data are one archive, and no archive if the
                raw data are a folder.

        Raises:
            DataError: A file or archive is not safe to read, see :func:`search_folder` and
                :func:`open_archive`.
        """
        is_archive = request.root().is_file()

        def opens(name: str) -> bool:
            return is_archive if is_wanted is None else is_wanted(name)

        content = raw_content(request)
        self.folders = content.folders
        self.hidden = content.hidden
        self._request = request
        self._locators: dict[str, str] = {}
        self.archives = content.files
        if not is_archive:
            self._locators = {name: name for name in content.files}
            self.archives = list(filter(is_archive_name, content.files))
        archives = [_ArchivePath(name, (), name) for name in self.archives if opens(name)]
        # Archives are opened level by level. If two archives contain the same name, the file
        # in the less deeply nested archive therefore keeps this name.
        while archives:
            inner_archives = []
            for archive in archives:
                inner_archives += self._add_members(archive, opens)
            archives = inner_archives
        self._names = sorted(self._locators, key=lambda name: name.split("/"))

    def __iter__(self) -> Iterator[str]:
        """Yield all names in sorted order."""
        return iter(self._names)

    def locator(self, name: str) -> str:
        """Return the locator of a file, by its name in this tree."""
        return self._locators[name]

    def _add_members(
        self, archive: _ArchivePath, opens: Callable[[str], bool]
    ) -> list[_ArchivePath]:
        """Add the members of an archive, and return the inner archives that must also be opened.

        Raises:
            DataError: The archive cannot be read.
        """
        inner_archives = []
        folder = archive.name.rpartition("/")[0]
        for member in self._member_names(archive):
            name = f"{folder}/{member}" if folder else member
            can_open = is_archive_name(member) and len(archive.inner) + 1 < MAX_DEPTH
            if can_open and opens(name):
                inner_archives.append(_ArchivePath(archive.file, (*archive.inner, member), name))
                continue
            locator = f"{archive.locator}{MARK}{member}"
            if MARK in self._locators.get(name, ""):
                # Two archives contain the same name. For example, every series of OAI has a
                # file 001.
                self._locators[locator] = locator
            else:
                self._locators.setdefault(name, locator)
        return inner_archives

    def _member_names(self, path: _ArchivePath) -> list[str]:
        """Return the names of an archive's members.

        Raises:
            DataError: The archive cannot be read.
        """
        request = self._request
        try:
            archive = open_archive(request.base() / path.file, path.inner)
            names = archive.members()
        except RefusedArchive as refused:
            hint = "Download the archive again, or unpack it and remove the archive"
            if isinstance(refused, DamagedArchive):
                hint += ". Its file extension must match its format"
            raise request.error(
                f"archive {request.hashed(path.locator)} cannot be read: {refused.reason}",
                hint=hint,
            ) from None
        self.hidden += archive.hidden
        return names
