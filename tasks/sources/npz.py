"""Your own arrays in an ``.npz`` (:mod:`tasks.sources.array_sets` says which).

Layout: NEP 1 (``numpy.lib.format``) in a zip. Nothing is unpickled, declared sizes are checked against the
packed ones before anything is read, the checksum of the images is checked before any is believed, and
images stream, so the archive may be larger than memory.
"""

from __future__ import annotations

import zipfile
from functools import lru_cache
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import DataError
from tasks.sources.archive_rules import DAMAGE, MAX_RATIO, PLAIN_METHODS
from tasks.sources.array_files import ArrayHeader, Rows
from tasks.sources.array_sets import array_reader, list_arrays
from tasks.sources.base import Listing, RawRequest, Reader, SkipItem

MAX_BYTES = 256 << 30
MAX_WHOLE_BYTES = 512 << 20
MAX_MEMBERS = 1000
MAX_HEADER = 1 << 16
CHUNK = 1 << 22


class Npz:
    """Images and labels in one archive."""

    def list_items(self, request: RawRequest) -> Listing:
        """Return one item per row, see :func:`tasks.sources.array_sets.list_arrays`."""
        file = NpzFile(request)
        listing = list_arrays(file, request)
        file.check_sums()
        return listing

    def reader(self, request: RawRequest) -> Reader:
        """Return a reader of rows that streams through the archive."""
        return array_reader(NpzFile(request))


class NpzFile:
    """The arrays of an ``.npz``."""

    def __init__(self, request: RawRequest) -> None:
        self._request = request
        self._path = request.root()
        self._members = _checked_members(self._path, request)
        self._headers: dict[str, tuple[ArrayHeader, bool]] = {}

    def names(self) -> list[str]:
        """Return the names of the arrays."""
        return list(self._members)

    def header(self, name: str) -> ArrayHeader:
        """Return an array's shape and dtype, read once."""
        return self._header(name)[0]

    def _header(self, name: str) -> tuple[ArrayHeader, bool]:
        if name not in self._headers:
            self._headers[name] = self._read_header(name)
        return self._headers[name]

    def _read_header(self, name: str) -> tuple[ArrayHeader, bool]:
        where = f"{self._request.dataset.name}: array {name}"
        try:
            with zipfile.ZipFile(self._path) as archive, archive.open(self._members[name]) as file:
                header, fortran = _npy_header(file)
        except DAMAGE:
            raise DataError(f"{where} must be a whole .npy", "damaged") from None
        if header.dtype.hasobject:
            raise DataError(f"{where} must hold numbers or text", "Python objects, which are never unpickled")
        if int(np.prod(header.shape, dtype=object)) * header.dtype.itemsize > self._members[name].file_size:
            raise DataError(f"{where} must be whole", f"shape {header.shape} is more than the member holds")
        return header, fortran

    def load(self, name: str) -> NDArray[np.generic]:
        """Return a whole array."""
        try:
            with zipfile.ZipFile(self._path) as archive, archive.open(self._members[name]) as file:
                array: NDArray[np.generic] = np.lib.format.read_array(file, allow_pickle=False)
        except (*DAMAGE, MemoryError):
            raise SkipItem("damaged array") from None
        return array

    def rows(self, name: str) -> Rows:
        """Return a reader of rows, cheap in rising order."""
        header, fortran = self._header(name)
        if fortran and int(np.prod(header.shape, dtype=object)) * header.dtype.itemsize > MAX_WHOLE_BYTES:
            rule = f"{self._request.dataset.name}: a large array must be in C order, which has rows to read"
            raise DataError(rule, f"Fortran order, {header.shape}", "np.ascontiguousarray before np.savez")
        if fortran:
            return _Whole(self.load(name))
        try:
            status = self._path.stat()
        except OSError:
            raise SkipItem("file is gone or unreadable") from None
        return _stream(self._path, self._members[name].filename, status.st_size, status.st_mtime_ns)

    def check_sums(self) -> None:
        """Read every member to its end, which compares its checksum.

        Raises:
            DataError: for a flipped byte, or one that is missing.
        """
        try:
            with zipfile.ZipFile(self._path) as archive:
                for member in self._members.values():
                    with archive.open(member) as file:
                        while file.read(CHUNK):
                            pass
        except DAMAGE:
            rule = f"{self._request.dataset.name}: the .npz must be a whole archive"
            raise DataError(rule, "a damaged array", "copy or download it again") from None


@lru_cache(maxsize=4)
def _stream(path: Path, member: str, size: int, time_ns: int) -> _Stream:
    """Return a member's stream, kept until its file changes.

    A process reads blocks in rising order, so the next one goes on where the last one ended; from the start,
    each would unpack all that lies before it.
    """
    return _Stream(path, member)


class _Whole:
    """Rows of an array in Fortran order, which has no rows on the disk."""

    def __init__(self, values: NDArray[np.generic]) -> None:
        self._values = values

    def row(self, index: int) -> NDArray[np.generic]:
        found: NDArray[np.generic] = self._values[index]
        return found


class _Stream:
    """Rows one after another, without holding them all."""

    def __init__(self, path: Path, member: str) -> None:
        try:
            self._archive = zipfile.ZipFile(path)
            self._file = self._archive.open(member)
            self._header, _ = _npy_header(self._file)
            self._start = self._file.tell()
        except DAMAGE:
            raise SkipItem("damaged array") from None
        self._row_bytes = int(np.prod(self._header.shape[1:])) * self._header.dtype.itemsize

    def row(self, index: int) -> NDArray[np.generic]:
        try:
            self._file.seek(self._start + index * self._row_bytes)
            body = self._file.read(self._row_bytes)
        except DAMAGE:
            raise SkipItem("damaged array") from None
        if len(body) != self._row_bytes:
            raise SkipItem("array ends early")
        return np.frombuffer(body, self._header.dtype).reshape(self._header.shape[1:])


def _npy_header(file: IO[bytes]) -> tuple[ArrayHeader, bool]:
    version = np.lib.format.read_magic(file)
    place = file.tell()
    # numpy reads as much of a header as it says it has before it finds it too long.
    if int.from_bytes(file.read(2 if version == (1, 0) else 4), "little") > MAX_HEADER:
        raise ValueError("a huge header")
    file.seek(place)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    return ArrayHeader(shape, dtype), fortran


def _checked_members(path: Path, request: RawRequest) -> dict[str, zipfile.ZipInfo]:
    """Return the arrays of an archive by name.

    Raises:
        DataError: for damage, encryption, repeated, absolute or ``..`` names, and declared sizes above the
            limit or above what the packed bytes can hold.
    """
    rule = f"{request.dataset.name}: the .npz"
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except PermissionError:
        raise DataError(f"{rule} must be readable", "permission denied") from None
    except DAMAGE:
        raise DataError(f"{rule} must be a whole archive", "damaged", "copy or download it again") from None
    names = [member.filename for member in members]
    if len(set(names)) < len(names):
        raise DataError(f"{rule} must have each member once", "repeated names")
    if any(member.flag_bits & 1 for member in members):
        raise DataError(f"{rule} must not be encrypted", "encrypted members")
    if any(member.compress_type not in PLAIN_METHODS for member in members):
        raise DataError(
            f"{rule} must be packed as numpy does", "another method than deflate", "save it again"
        )
    if any(name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/") for name in names):
        raise DataError(f"{rule} must hold plain names", "names that lead elsewhere")
    too_dense = any(member.file_size > MAX_RATIO * (member.compress_size + 1) for member in members)
    if len(names) > MAX_MEMBERS or sum(member.file_size for member in members) > MAX_BYTES or too_dense:
        raise DataError(f"{rule} must unpack to less than {MAX_BYTES:,} bytes", "more, by its own account")
    return {member.filename.removesuffix(".npy"): member for member in members}
