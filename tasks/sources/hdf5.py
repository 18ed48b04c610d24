"""Your own arrays in an HDF5 file (:mod:`tasks.sources.array_sets` says which), read row by row.

Layout: plain datasets in the root group, as h5py's quick start writes them and as PatchCamelyon's ``x`` and
``y``. External and virtual datasets, which read other files, are refused, and so are chunks too large to
hold.
"""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import DataError, SetupError
from tasks.sources.array_files import ArrayHeader, Rows
from tasks.sources.array_sets import array_reader, list_arrays
from tasks.sources.base import Listing, RawRequest, Reader, SkipItem

MAX_CHUNK_BYTES = 256 << 20


class Hdf5:
    """Images and labels in one HDF5 file."""

    def list_items(self, request: RawRequest) -> Listing:
        """Return one item per row, see :func:`tasks.sources.array_sets.list_arrays`."""
        return list_arrays(Hdf5File(request), request)

    def reader(self, request: RawRequest) -> Reader:
        """Return a reader of rows."""
        return array_reader(Hdf5File(request))


def open_hdf5(path: Path | IO[bytes], name: str) -> Any:
    """Open an HDF5 file for reading.

    Raises:
        DataError: when it is none.
        SetupError: when h5py is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise SetupError("HDF5 files need h5py", "not installed", "pip install 'isweep[formats]'") from error
    try:
        # A chunk that does not fit into the cache (1 MiB by default) is unpacked again for every row of it.
        return h5py.File(path, "r", rdcc_nbytes=MAX_CHUNK_BYTES)
    except (OSError, RuntimeError, ValueError):
        raise DataError(f"{name}: the file must be a whole HDF5 file", "damaged or another format") from None


class Hdf5File:
    """The datasets in the root group of an HDF5 file."""

    def __init__(self, request: RawRequest) -> None:
        self._request = request
        self._file = open_hdf5(request.root(), request.dataset.name)

    def names(self) -> list[str]:
        """Return the names in the root group."""
        import h5py

        try:
            kinds = {name: self._file.get(name, getlink=True) for name in self._file}
        except (OSError, RuntimeError, KeyError, ValueError):
            raise self._error("must be whole", "damaged") from None
        return [name for name, link in kinds.items() if isinstance(link, h5py.HardLink)]

    def header(self, name: str) -> ArrayHeader:
        """Return shape and dtype of a dataset."""
        return self._checked(name)[1]

    def _checked(self, name: str) -> tuple[Any, ArrayHeader]:
        import h5py

        try:
            data = self._file[name]
            if not isinstance(data, h5py.Dataset):
                raise self._error(f"{name} must be an array", "a group")
            if data.is_virtual or data.external:
                raise self._error(f"{name} must lie in the file itself", "a link to other files")
            chunk = int(np.prod(data.chunks or (0,), dtype=object)) * data.dtype.itemsize
            stored, declared = data.id.get_storage_size(), int(np.prod(data.shape, dtype=object))
            header = ArrayHeader(tuple(data.shape), data.dtype)
        except (OSError, RuntimeError, KeyError, ValueError, TypeError):
            raise self._error(f"{name} must be a whole array", "damaged") from None
        if chunk > MAX_CHUNK_BYTES:
            raise self._error(f"{name} must have chunks below 256 MiB", f"{chunk:,} bytes")
        # Chunks never written read as zeros: a header may declare terabytes of them.
        if declared and not stored:
            raise self._error(f"{name} must hold values", "none were written")
        return data, header

    def load(self, name: str) -> NDArray[np.generic]:
        """Return a whole dataset."""
        data, _ = self._checked(name)
        try:
            values = data.asstr()[...] if data.dtype.kind == "O" else data[...]
        except (OSError, RuntimeError, ValueError, TypeError, MemoryError):
            raise SkipItem("damaged array") from None
        return np.asarray(values)

    def rows(self, name: str) -> Rows:
        """Return a reader of rows."""
        return _Hdf5Rows(self._checked(name)[0])

    def _error(self, rule: str, found: str) -> DataError:
        return DataError(f"{self._request.dataset.name}: {rule}", found)


class _Hdf5Rows:
    def __init__(self, data: Any) -> None:
        self._data = data

    def row(self, index: int) -> NDArray[np.generic]:
        try:
            return np.asarray(self._data[index])
        except (OSError, RuntimeError, ValueError):
            raise SkipItem("damaged array") from None
