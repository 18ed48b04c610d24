"""Read the names, shapes and rows of arrays in ``.npz`` and HDF5 files.

An ``.npz`` is a zip of arrays in the format NEP 1 (``numpy.lib.format``). h5py reads HDF5
files.

A file may be damaged or hostile, so nothing is unpickled. Declared sizes are checked before
values are read, and images are read one by one. Links and external or virtual datasets of HDF5
are rejected, because they may read other files.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import IO, Any

import numpy as np

from search_spaces.errors import DataError, SetupError
from tasks.array_types import AnyArray
from tasks.sources.base import RawRequest, SkipItem
from tasks.sources.raw import DAMAGE, GONE, RefusedArchive, open_zip

MAX_WHOLE_BYTES = 512 << 20
"""Largest size in bytes of an array in Fortran order. Such an array can only be read as a
whole."""
MAX_MEMBERS = 1000
"""Largest number of arrays in an ``.npz``."""
MAX_CHUNK_BYTES = 256 << 20
"""Largest size in bytes of an HDF5 chunk. To read one row, the whole chunk is unpacked."""
COPY_AGAIN = "Save or copy the file again"


@dataclass(frozen=True)
class ArrayHeader:
    """The shape, dtype and memory order of a stored array.

    Attributes:
        shape: Shape of the array.
        dtype: Type of its values.
        fortran: True if the values are stored in Fortran order.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    fortran: bool = False

    @property
    def num_bytes(self) -> int:
        """Number of bytes that the header declares, as a Python integer that cannot overflow."""
        return int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize

    @property
    def has_plain_values(self) -> bool:
        """True if each value is one number or one text.

        In HDF5, a value can also be, for example, a list or a reference.
        """
        if self.dtype.kind == "O":  # only HDF5: an .npz with this dtype is an error
            import h5py

            return h5py.check_string_dtype(self.dtype) is not None
        return self.dtype.kind in "uibfUS"


ReadRow = Callable[[int], AnyArray]
"""A function that reads one row of an array by its index. For a damaged row, the function
raises :class:`SkipItem`."""


def array_path(request: RawRequest) -> Path:
    """Return the path of the array file: the raw file, or a file in the raw folder.

    In a folder, the file has the name of the dataset and an extension in :data:`ARRAY_FILES`.

    Raises:
        DataError: The raw folder has no such file.
    """
    root = request.root()
    if not root.is_dir():
        return root
    for extension in ARRAY_FILES:
        path = root / f"{request.dataset.name}{extension}"
        if path.is_file():
            return path
    raise request.error(
        "the path is a folder, not a file of arrays",
        hint="Use the path of the file instead of the folder",
    )


class NpzFile:
    """An ``.npz`` file of arrays.

    Attributes:
        error: Function that makes an error whose message begins with the name of the dataset.
    """

    def __init__(self, request: RawRequest) -> None:
        self.error = request.error
        self._path = array_path(request)
        try:
            with open_zip(self._path, MAX_MEMBERS) as archive:
                members = archive.infolist()
        except RefusedArchive as refused:
            raise self.error(
                f"the .npz file cannot be read: {refused.reason}", hint=COPY_AGAIN
            ) from None
        self._members = {member.filename.removesuffix(".npy"): member for member in members}
        self._headers: dict[str, ArrayHeader] = {}

    def names(self) -> list[str]:
        """Return the names of the arrays."""
        return list(self._members)

    def header(self, name: str) -> ArrayHeader:
        """Return the header of an array. Each header is read only once.

        Raises:
            DataError: The array is damaged, contains Python objects, or has fewer values than
                its header declares.
        """
        if name in self._headers:
            return self._headers[name]
        try:
            with zipfile.ZipFile(self._path) as archive, archive.open(self._members[name]) as file:
                header = _npy_header(file)
        except DAMAGE:
            raise self.error(f"the array {name!r} is damaged", hint=COPY_AGAIN) from None
        if header.dtype.hasobject:
            raise self.error(
                f"the array {name!r} contains pickled Python objects, which isweep does not "
                "load, because they could run code from the file",
                hint="Save numbers or text instead",
            )
        if header.num_bytes > self._members[name].file_size:
            raise self.error(
                f"the array {name!r} has fewer values than the shape {header.shape}, which "
                "its header declares",
                hint=COPY_AGAIN,
            )
        self._headers[name] = header
        return header

    def load(self, name: str) -> AnyArray:
        """Return a whole array.

        Raises:
            SkipItem: The array is damaged.
        """
        try:
            with zipfile.ZipFile(self._path) as archive, archive.open(self._members[name]) as file:
                return np.asarray(np.lib.format.read_array(file, allow_pickle=False))
        except (*DAMAGE, MemoryError):
            raise SkipItem("damaged array") from None

    def rows(self, name: str) -> ReadRow:
        """Return a function that reads a row of an array. Reading in ascending order is fast.

        Raises:
            DataError: The array is in Fortran order and too large to be read as a whole.
        """
        header = self.header(name)
        if header.fortran and header.num_bytes > MAX_WHOLE_BYTES:
            raise self.error(
                f"the array {name!r} of shape {header.shape} is in Fortran order. isweep can "
                "read such an array only as a whole, and this one is too large",
                hint="Save np.ascontiguousarray(array) instead",
            )
        if header.fortran:
            return self.load(name).__getitem__  # rows are not contiguous in the file
        try:
            status = self._path.stat()
        except OSError:
            raise SkipItem(GONE) from None
        member = self._members[name].filename
        return _npy_rows(self._path, member, status.st_size, status.st_mtime_ns)

    def verify_checksums(self) -> None:
        """Check the checksum of every array. The check reads the whole file.

        Raises:
            DataError: The content of an array does not match its stored checksum.
        """
        try:
            with zipfile.ZipFile(self._path) as archive:
                is_intact = archive.testzip() is None
        except DAMAGE:
            is_intact = False
        if not is_intact:
            raise self.error(
                "an array of the .npz file is damaged: its content does not match its checksum",
                hint=COPY_AGAIN,
            )


@lru_cache(maxsize=4)
def _npy_rows(path: Path, member: str, size: int, time_ns: int) -> ReadRow:
    """Return a function that reads a row of a member. It holds one row in memory at a time.

    The function is cached until the file's size or time changes. A process reads blocks of
    rows in ascending order, and the cached function continues after the last block. A new
    function would have to unpack all earlier rows again.
    """
    try:
        file = zipfile.ZipFile(path).open(member)  # noqa: SIM115
        header = _npy_header(file)
        start = file.tell()
    except DAMAGE:
        raise SkipItem("damaged array") from None
    row_shape = header.shape[1:]
    row_bytes = int(np.prod(row_shape)) * header.dtype.itemsize

    def read_row(index: int) -> AnyArray:
        """Return one row of the array."""
        try:
            file.seek(start + index * row_bytes)
            body = file.read(row_bytes)
        except DAMAGE:
            raise SkipItem("damaged array") from None
        if len(body) != row_bytes:
            raise SkipItem("array ends early")
        return np.frombuffer(body, header.dtype).reshape(row_shape)

    return read_row


def _npy_header(file: IO[bytes]) -> ArrayHeader:
    version = np.lib.format.read_magic(file)
    # Versions 2 and 3 differ only in the encoding of field names, and arrays of plain numbers
    # have no field names.
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    else:
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
    return ArrayHeader(shape, dtype, fortran)


def open_hdf5(file: Path | IO[bytes], name: str) -> Any:
    """Open an HDF5 file for reading.

    Args:
        file: A path or a seekable stream.
        name: Name of the dataset, for messages.

    Returns:
        An ``h5py.File``.

    Raises:
        SetupError: h5py is not installed.
        DataError: The file is damaged, or not an HDF5 file.
    """
    try:
        import h5py
    except ImportError as error:
        raise SetupError(
            "h5py, which reads HDF5 files, is not installed",
            hint="Run `pip install 'isweep[formats]'`",
        ) from error
    try:
        # If a chunk does not fit into this cache, h5py unpacks it again for each row. By
        # default, the cache has 1 MiB.
        return h5py.File(file, "r", rdcc_nbytes=MAX_CHUNK_BYTES)
    except (OSError, RuntimeError, ValueError):
        raise DataError(
            f"{name}: the file is damaged, or not an HDF5 file", hint=COPY_AGAIN
        ) from None


class Hdf5File:
    """An HDF5 file whose arrays are the datasets in its root group."""

    def __init__(self, request: RawRequest) -> None:
        self.error = request.error
        self._file = open_hdf5(array_path(request), request.dataset.name)

    def names(self) -> list[str]:
        """Return the names in the root group.

        Raises:
            DataError: The file is damaged.
        """
        try:
            return list(self._file)
        except (OSError, RuntimeError, KeyError, ValueError):
            raise self.error("the HDF5 file is damaged", hint=COPY_AGAIN) from None

    def header(self, name: str) -> ArrayHeader:
        """Return the shape and dtype of a dataset.

        Raises:
            DataError: The dataset is damaged, is not an array, is stored in another file, or
                contains no values.
        """
        import h5py

        try:
            # A soft link is rejected too, because it may lead to an external link.
            link = self._file.get(name, getlink=True)
            data = self._file[name] if isinstance(link, h5py.HardLink) else None
            is_view = isinstance(data, h5py.Dataset) and (data.is_virtual or data.external)
            if data is None or is_view:
                raise self.error(
                    f"the array {name!r} is a link, or a view of other files",
                    hint=f"Store the array itself: file[{name!r}] = array",
                )
            if not isinstance(data, h5py.Dataset):
                raise self.error(
                    f"{name!r} is a group, not an array",
                    hint="Copy the arrays of this group into the root group of a new file",
                )
            chunk_bytes = ArrayHeader(data.chunks or (0,), data.dtype).num_bytes
            stored_bytes = data.id.get_storage_size()
            header = ArrayHeader(tuple(data.shape), data.dtype)
        except (OSError, RuntimeError, KeyError, ValueError, TypeError):
            raise self.error(f"the array {name!r} is damaged", hint=COPY_AGAIN) from None
        if chunk_bytes > MAX_CHUNK_BYTES:
            raise self.error(
                f"the array {name!r} has chunks of {chunk_bytes:,} bytes, more than 256 MiB",
                hint="Save the array with smaller chunks",
            )
        # HDF5 returns zeros for chunks that were never written. A header may declare terabytes
        # of such chunks.
        if 0 not in header.shape and not stored_bytes:
            raise self.error(
                f"the array {name!r} is empty: no values were written into it",
                hint="Write the values, and save the file again",
            )
        return header

    def load(self, name: str) -> AnyArray:
        """Return a whole dataset. Text of variable length is returned as bytes.

        Raises:
            SkipItem: The dataset is damaged.
        """
        return _hdf5_values(self._file[name], ...)

    def rows(self, name: str) -> ReadRow:
        """Return a function that reads a row of a dataset.

        Raises:
            DataError: The dataset cannot be used, see :meth:`header`.
        """
        self.header(name)
        return partial(_hdf5_values, self._file[name])


def _hdf5_values(data: Any, index: Any) -> AnyArray:
    try:
        return np.asarray(data[index])
    except (OSError, RuntimeError, ValueError, TypeError, MemoryError):
        raise SkipItem("damaged array") from None


ArrayFile = NpzFile | Hdf5File
ARRAY_FILES: dict[str, Callable[[RawRequest], ArrayFile]] = {
    ".npz": NpzFile,
    ".h5": Hdf5File,
    ".hdf5": Hdf5File,
}
"""File extension in lower case -> the class that reads the arrays."""


def row_locator(array: str, row: int) -> str:
    """Return the locator of an image. Examples: ``7`` for the array ``images``, else ``NAME/7``."""
    return str(row) if array == "images" else f"{array}/{row}"


def row_of_locator(locator: str) -> int:
    """Return the row in a locator from :func:`row_locator`."""
    return int(locator.rpartition("/")[2])
