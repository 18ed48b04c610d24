"""Prepared datasets on disk: a zarr 3 group, sharded, every inner chunk with a crc32c checksum.

Layout of the folder::

    zarr.json  images/  labels/  groups/  splits/    the arrays
    complete.json                                    written last: record, files' sizes and SHA-256

A folder without an undamaged ``complete.json``, the marker, is not a prepared dataset, whatever
else lies in it. Opening checks the marker's own hash and all file sizes. Reading checks the crc32c
of what is read. :meth:`PreparedDataset.verify` checks every byte.
"""

from __future__ import annotations

import hashlib
import json
import os
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import CorruptStoreError, DataError
from search_spaces.fingerprint import fingerprint
from tasks.atomic import sync_folder, write_atomic
from tasks.prepared.record import PreparedRecord

Array = NDArray[np.generic]
Rows = NDArray[np.int64] | range

STORE_SCHEMA = 1
MARKER = "complete.json"
CHUNK_BYTES = 8 << 20
"""Bytes of an inner chunk, the unit of checksums and of reading; the fastest of 1 to 40 MB."""
SHARD_BYTES = 64 << 20
"""Bytes of a file: network file systems and object stores are slow with many small files."""
METADATA_ARRAYS = {
    "labels": "int64",
    "groups": "int64",
    "splits": "int8",
}
"""Arrays besides the images, with one number per image."""
REMAKE = "Delete the folder and prepare the dataset again"
ABSENT = 2**64 - 1
"""Offset in a shard's index of a chunk of zeros, which is not stored."""
CRC_BYTES = 4
INDEX_ENTRY_BYTES = 16
"""Bytes of an (offset, length) pair in a shard's index."""


class FileStamp(NamedTuple):
    """Size in bytes and SHA-256 of a file."""

    size: int
    digest: str


@dataclass(frozen=True)
class ShardedRows:
    """The rows of a sharded, uncompressed zarr array, read straight into place and checked.

    zarr itself reads the same files at half the rate. The layout is that of the zarr 3 sharding
    codec: raw chunks of ``chunk_rows`` rows (the last one too), each followed by its crc32c, then
    an index of (offset, length) pairs with a crc32c of its own.

    Attributes:
        folder: The array's folder ``c``.
        num_rows: Number of rows.
        row_shape: Shape of a row.
        dtype: Type of the values, little endian.
        chunk_rows: Rows of a chunk.
        shard_rows: Rows of a file.
    """

    folder: Path
    num_rows: int
    row_shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    chunk_rows: int
    shard_rows: int

    def read_rows(self, indices: Rows) -> Array:
        """Return rows in the order of their indices.

        Args:
            indices: Indices of rows. A range, which must have step 1, avoids a copy.

        Raises:
            IndexError: There is no such row.
            ValueError: A chunk is damaged.
            OSError: A file is missing or cut.
        """
        if isinstance(indices, range):
            return self._read_range(indices)
        rows = self._empty(len(indices))
        chunk = self._empty(self.chunk_rows)
        order = np.argsort(indices, kind="stable")
        ordered = indices[order]
        for part in self._chunk_slices(ordered):
            _read_chunk(part.file, part.entry, chunk)
            in_part = slice(part.start, part.stop)
            rows[order[in_part]] = chunk[ordered[in_part] - part.first_row]
        return rows

    def _read_range(self, indices: range) -> Array:
        """Read rows that follow each other, straight into the result."""
        rows = self._empty(len(indices))
        unused = self._empty(self.chunk_rows)
        for part in self._chunk_slices(indices):
            num_before = indices[part.start] - part.first_row
            num_after = self.chunk_rows - num_before - (part.stop - part.start)
            _read_chunk(
                part.file,
                part.entry,
                unused[:num_before],
                rows[part.start : part.stop],
                unused[:num_after],
            )
        return rows

    def _empty(self, num_rows: int) -> Array:
        """Return an array for so many rows, not initialized."""
        return np.empty((num_rows, *self.row_shape), self.dtype)

    def _chunk_slices(self, ordered: Rows) -> Iterator[_ChunkSlice]:
        """Yield ascending row indices chunk by chunk. Each file is opened once."""
        if len(ordered) and not 0 <= ordered[0] <= ordered[-1] < self.num_rows:
            raise IndexError(f"rows must be in 0..{self.num_rows - 1}")
        start = 0
        while start < len(ordered):
            shard = int(ordered[start]) // self.shard_rows
            end_of_shard = bisect_left(ordered, (shard + 1) * self.shard_rows, start)
            with self._open(shard) as (file, index):
                while start < end_of_shard:
                    chunk = int(ordered[start]) // self.chunk_rows
                    first_row = chunk * self.chunk_rows
                    stop = bisect_left(ordered, first_row + self.chunk_rows, start)
                    entry = index[first_row % self.shard_rows // self.chunk_rows]
                    yield _ChunkSlice(file, entry, first_row, start, stop)
                    start = stop

    @contextmanager
    def _open(self, shard: int) -> Iterator[tuple[IO[bytes], NDArray[np.uint64]]]:
        """Open a shard; its index has the offset and length of every chunk."""
        path = self.folder.joinpath(str(shard), *("0" for _ in self.row_shape))
        with path.open("rb", buffering=0) as file:
            index_bytes = INDEX_ENTRY_BYTES * (self.shard_rows // self.chunk_rows)
            file.seek(-index_bytes - CRC_BYTES, os.SEEK_END)
            index = np.empty(index_bytes // 8, dtype="<u8")
            _fill_and_check(file, index)
            yield file, index.reshape(-1, 2)


class _ChunkSlice(NamedTuple):
    """The requested rows that lie in one chunk.

    Attributes:
        file: The opened shard.
        entry: Offset and length of the chunk in it.
        first_row: Index of the chunk's first row.
        start: Place of the first of these rows among all requested rows, in ascending order.
        stop: Place behind the last one.
    """

    file: IO[bytes]
    entry: NDArray[np.uint64]
    first_row: int
    start: int
    stop: int


def _read_chunk(file: IO[bytes], entry: NDArray[np.uint64], *targets: Array) -> None:
    """Read a chunk into arrays that follow each other in it."""
    offset, length = map(int, entry)
    if offset == ABSENT:
        for target in targets:
            target[...] = 0
        return
    if length != sum(target.nbytes for target in targets) + CRC_BYTES:
        raise ValueError("a chunk has another length")
    file.seek(offset)
    _fill_and_check(file, *targets)


def _fill_and_check(file: IO[bytes], *targets: Array) -> None:
    """Fill arrays one after another; the checksum that follows is that of all of them."""
    import google_crc32c

    checksum = 0
    for target in filter(len, targets):
        target_bytes = target.view(np.uint8).reshape(-1)
        unfilled = target_bytes.data
        while unfilled:
            count = file.readinto(unfilled)  # type: ignore[attr-defined]
            if not count:
                raise OSError("file ends early")
            unfilled = unfilled[count:]
        target_bytes.flags.writeable = False  # google_crc32c takes read-only buffers
        checksum = google_crc32c.extend(checksum, target_bytes)
    if checksum.to_bytes(CRC_BYTES, "little") != file.read(CRC_BYTES):
        raise ValueError("stored and computed checksum do not match")


def create_store(folder: Path, *, num_images: int, image_shape: tuple[int, ...], dtype: str) -> int:
    """Create the empty arrays of a store.

    Args:
        folder: Where to create them.
        num_images: Number of images.
        image_shape: ``(channels, height, width)``.
        dtype: Type of the pixels.

    Returns:
        The number of images in one shard. Tasks may fill different shards at the same time with
        :func:`write_rows`.
    """
    import zarr
    from zarr.codecs import Crc32cCodec

    group = zarr.create_group(str(folder), zarr_format=3)
    image_bytes = int(np.prod(image_shape)) * np.dtype(dtype).itemsize
    chunk_rows = max(1, min(CHUNK_BYTES // image_bytes, num_images))
    num_chunks = -(-num_images // chunk_rows)
    chunks_per_shard = max(1, min(SHARD_BYTES // (chunk_rows * image_bytes), num_chunks))
    shard_rows = chunk_rows * chunks_per_shard
    checked: dict[str, Any] = {
        "compressors": [Crc32cCodec()],
        "filters": None,
        "fill_value": 0,
    }
    group.create_array(
        "images",
        shape=(num_images, *image_shape),
        dtype=dtype,
        chunks=(chunk_rows, *image_shape),
        shards=(shard_rows, *image_shape),
        **checked,
    )
    for name, number_type in METADATA_ARRAYS.items():
        group.create_array(
            name,
            shape=(num_images,),
            dtype=number_type,
            chunks=(max(1, num_images),),
            **checked,
        )
    return shard_rows


def write_rows(folder: Path, name: str, start: int, values: Array) -> None:
    """Write rows ``start, start + 1, ...`` of array ``name``."""
    import zarr

    zarr.open_group(str(folder), mode="r+")[name][start : start + len(values)] = values


def stamp_file(path: Path) -> FileStamp:
    """Flush a file to the disk, and return its stamp."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    return FileStamp(path.stat().st_size, digest)


def write_marker(folder: Path, record: PreparedRecord, stamps: Mapping[str, FileStamp]) -> None:
    """Write the marker, after everything else has reached the disk.

    Args:
        folder: The store.
        record: Its record.
        stamps: The stamp of each file, by its name relative to the folder.
    """
    for path in folder.rglob("*"):
        if path.is_dir():
            sync_folder(path)
    body = {
        "schema": STORE_SCHEMA,
        "record": record.model_dump(mode="json"),
        "files": {name: list(stamp) for name, stamp in sorted(stamps.items())},
    }
    marker = body | {"sha256": fingerprint(body)}
    write_atomic(folder / MARKER, json.dumps(marker, indent=1, allow_nan=False).encode())


class PreparedDataset:
    """A complete prepared dataset, read lazily.

    It pickles as its path, so that tasks reopen it where they run.
    """

    def __init__(self, path: Path, record: PreparedRecord, files: Mapping[str, FileStamp]) -> None:
        self.path = path
        self.record = record
        self._files = files

    @classmethod
    def open(cls, path: Path | str) -> PreparedDataset:
        """Open a prepared dataset after checking its marker and the sizes of its files.

        Raises:
            DataError: There is no such folder.
            CorruptStoreError: The dataset is incomplete, damaged, or of another schema.
        """
        folder = Path(path)
        if not folder.exists():
            raise DataError(f"There is no prepared dataset {folder.name}", hint="Prepare it first")
        if not (folder / MARKER).is_file():
            raise CorruptStoreError(
                f"Prepared dataset {folder.name} is half written: it has no {MARKER}", hint=REMAKE
            )
        try:
            body = _marker_body(folder)
            files = {
                name: FileStamp(int(size), str(sha)) for name, (size, sha) in body["files"].items()
            }
            record = PreparedRecord.model_validate(body["record"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CorruptStoreError(
                f"{MARKER} of prepared dataset {folder.name} is damaged ({type(error).__name__})",
                hint=REMAKE,
            ) from error
        for name, stamp in files.items():
            _check_size(folder, name, stamp.size)
        return cls(folder, record, files)

    def __reduce__(self) -> tuple[Callable[[Path], PreparedDataset], tuple[Path]]:
        """Pickle as the path."""
        return PreparedDataset.open, (self.path,)

    @property
    def fingerprint(self) -> str:
        """Content hash, see :class:`PreparedRecord`."""
        return self.record.fingerprint

    @property
    def label_names(self) -> tuple[str, ...]:
        """One name per class index."""
        return self.record.label_names

    @property
    def num_images(self) -> int:
        """Number of images."""
        return self.record.num_images

    num_rows = num_images

    @property
    def row_shape(self) -> tuple[int, ...]:
        """``(channels, height, width)`` of an image."""
        return self.record.shape[1:]

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """``(num_images,)`` class indices."""
        return self._array("labels").astype(np.int64)

    @cached_property
    def groups(self) -> NDArray[np.int64]:
        """``(num_images,)`` keyed hashes, equal for images that a split must keep together."""
        return self._array("groups").astype(np.int64)

    @cached_property
    def splits(self) -> NDArray[np.int8]:
        """``(num_images,)`` 0 = ours to split, 1 = given as train, 2 = given as test."""
        return self._array("splits").astype(np.int8)

    def read(self, start: int, stop: int) -> Array:
        """Return images ``start`` to ``stop`` (exclusive); see :meth:`read_rows`."""
        return self.read_rows(range(start, stop))

    def read_rows(self, indices: Sequence[int] | NDArray[np.integer]) -> Array:
        """Return images, ``(len(indices), channels, height, width)`` in [0, 255].

        Args:
            indices: Which images, in the order of the result.

        Raises:
            CorruptStoreError: A file is missing, or its checksum differs; the error names it.
        """
        rows: Rows
        if isinstance(indices, range) and indices.step == 1:
            rows = indices
        else:
            rows = np.asarray(indices, dtype=np.int64)
        with self._naming_files("images", rows):
            return self._images.read_rows(rows)

    def verify(self) -> None:
        """Check every byte of every file.

        Raises:
            CorruptStoreError: A file differs from the marker.
        """
        for name in self._files:
            self._check_digest(name)

    def _check_digest(self, name: str) -> None:
        """Check every byte of one file."""
        with (self.path / name).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != self._files[name].digest:
            raise CorruptStoreError(
                f"{name} of prepared dataset {self.path.name} has changed since it was written",
                hint=REMAKE,
            )

    @cached_property
    def _group(self) -> Any:
        """The zarr group, opened after its metadata are checked: zarr itself would trust them."""
        import zarr

        for name in self._files:
            if name.endswith("zarr.json"):
                self._check_digest(name)
        return zarr.open_group(str(self.path), mode="r")

    @cached_property
    def _images(self) -> ShardedRows:
        """The array of images, opened once."""
        array = self._group["images"]
        return ShardedRows(
            self.path / "images" / "c",
            self.num_rows,
            self.row_shape,
            np.dtype(self.record.dtype).newbyteorder("<"),
            array.chunks[0],
            array.shards[0],
        )

    def _array(self, name: str) -> Array:
        """Return a small array as a whole. Raises CorruptStoreError if a file is damaged or
        missing.
        """
        all_rows = range(self.num_rows)
        with self._naming_files(name, all_rows):
            # zarr reads a missing file as zeros, so absence is checked here.
            for file in self._stored_files(name, all_rows):
                if not (self.path / file).is_file():
                    raise FileNotFoundError(file)
            values: Array = self._group[name][:]
        return values

    @contextmanager
    def _naming_files(self, name: str, rows: Rows) -> Iterator[None]:
        """Turn the errors of reading into one that names the files that were read."""
        try:
            yield
        except (ValueError, OSError, RuntimeError) as error:
            raise CorruptStoreError(
                f"Array {name} of prepared dataset {self.path.name} is damaged: "
                f"{type(error).__name__} in {', '.join(self._stored_files(name, rows))}",
                hint=REMAKE,
            ) from error

    def _stored_files(self, name: str, rows: Rows) -> list[str]:
        array = self._group[name]
        rows_per_file = (array.shards or array.chunks)[0]
        shards = np.unique(np.asarray(rows) // rows_per_file).tolist()
        names = [f"{name}/c/{shard}{'/0' * (array.ndim - 1)}" for shard in shards]
        # A chunk of zeros is not stored at all; the marker lists the files that there are.
        return [file for file in names if file in self._files]


def _marker_body(folder: Path) -> Any:
    """Return the marker's JSON value without its hash, after checking hash and schema."""
    body = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    is_unchanged = body.pop("sha256") == fingerprint(body)
    schema = body["schema"]
    if is_unchanged and schema == STORE_SCHEMA:
        return body
    problem = "has changed since it was written"
    if schema != STORE_SCHEMA:
        problem = f"is of schema {schema!r}, and only schema {STORE_SCHEMA} can be read"
    raise CorruptStoreError(f"{MARKER} of prepared dataset {folder.name} {problem}", hint=REMAKE)


def _check_size(folder: Path, name: str, expected: int) -> None:
    """Check that a file of the store has the size that its record states."""
    file = folder / name
    problem = "missing"
    if file.is_file():
        size = file.stat().st_size
        if size == expected:
            return
        problem = f"{size} bytes instead of {expected}"
    raise CorruptStoreError(f"{name} of prepared dataset {folder.name} is {problem}", hint=REMAKE)
