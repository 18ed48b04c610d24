"""Prepared datasets on disk: zarr 3 arrays in which every chunk has a crc32c checksum.

Layout of the folder::

    zarr.json  images/  labels/  groups/  splits/    the arrays
    complete.json                                    the record; sizes and SHA-256 of all files

``complete.json`` is the *marker*. It is written last. A folder without an undamaged marker is not a
prepared dataset.

- Opening a dataset checks the fingerprint of the marker and the sizes of all files.
- Reading rows checks the crc32c of their chunks.
- :meth:`PreparedDataset.verify` checks every byte.
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
RowIndices = NDArray[np.int64] | range
"""Indices of rows. A row is the data of one image in one array."""

STORE_SCHEMA = 1
MARKER = "complete.json"
CHUNK_BYTES = 8 << 20
"""Size in bytes of a chunk, the unit of checksums and of reading. We measured 1 to 40 MB; 8 MB was
fastest."""
SHARD_BYTES = 64 << 20
"""Size in bytes of a shard, which is a file. Network file systems and object stores are slow with
many small files."""
METADATA_ARRAYS = {
    "labels": "int64",
    "groups": "int64",
    "splits": "int8",
}
"""Data types of the arrays with one number per image, by name. The array ``labels`` has the class
index of each image."""
REMAKE_HINT = "Delete the folder of this dataset, and prepare the dataset again"
ABSENT = 2**64 - 1
"""This offset in the index of a shard means: the chunk has only zeros, and is not stored."""
CRC_BYTES = 4
"""Size in bytes of a crc32c checksum."""
INDEX_ENTRY_BYTES = 16
"""Size in bytes of a pair (offset, length) in the index of a shard."""


class FileDigest(NamedTuple):
    """The size of a file and the hash of its content.

    Attributes:
        size: Size in bytes.
        sha256: SHA-256 of the content, 64 hex digits.
    """

    size: int
    sha256: str


@dataclass(frozen=True)
class ShardedArrayReader:
    """A fast reader for the rows of a sharded, uncompressed zarr array.

    Rows are read directly into the result, and their checksums are verified. The zarr package reads
    the same files at half the rate.

    The layout of a shard is that of the zarr 3 sharding codec. First come chunks of ``chunk_rows``
    rows. The last chunk of the array is padded to this size. Each chunk is followed by its crc32c.
    At the end of the shard there is an index with a pair (offset, length) for each chunk, followed
    by the crc32c of the index.

    Attributes:
        folder: The folder ``c`` of the array.
        num_rows: Number of rows.
        row_shape: Shape of a row.
        dtype: Type of the values, little endian.
        chunk_rows: Number of rows in a chunk.
        shard_rows: Number of rows in a shard.
    """

    folder: Path
    num_rows: int
    row_shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    chunk_rows: int
    shard_rows: int

    def read_rows(self, indices: RowIndices) -> Array:
        """Return rows in the order of ``indices``.

        Args:
            indices: Indices of rows. With a range, rows are read without an extra copy. The step of
                a range must be 1.

        Raises:
            IndexError: An index is out of range.
            ValueError: A chunk is damaged, or ``indices`` is a range with another step.
            OSError: A file is missing or truncated.
        """
        if isinstance(indices, range):
            return self._read_range(indices)
        rows = self._empty(len(indices))
        chunk = self._empty(self.chunk_rows)
        order = np.argsort(indices, kind="stable")
        sorted_indices = indices[order]
        for requested in self._chunk_slices(sorted_indices):
            _read_chunk(requested.file, requested.offset_and_length, chunk)
            in_request = slice(requested.request_start, requested.request_stop)
            indices_in_chunk = sorted_indices[in_request] - requested.chunk_first_row
            rows[order[in_request]] = chunk[indices_in_chunk]
        return rows

    def _read_range(self, indices: range) -> Array:
        """Read consecutive rows directly into the result."""
        if indices.step != 1:
            raise ValueError(
                f"{indices} has the step {indices.step}, not 1. Convert it to an array first"
            )
        rows = self._empty(len(indices))
        # The checksum covers the whole chunk, so the rows before and after the requested ones are
        # read too. Both are read into scratch, because their values are not used.
        scratch = self._empty(self.chunk_rows)
        for requested in self._chunk_slices(indices):
            requested_rows = rows[requested.request_start : requested.request_stop]
            num_before = indices[requested.request_start] - requested.chunk_first_row
            num_after = self.chunk_rows - num_before - len(requested_rows)
            _read_chunk(
                requested.file,
                requested.offset_and_length,
                scratch[:num_before],
                requested_rows,
                scratch[:num_after],
            )
        return rows

    def _empty(self, num_rows: int) -> Array:
        """Return an uninitialized array for ``num_rows`` rows."""
        return np.empty((num_rows, *self.row_shape), self.dtype)

    def _chunk_slices(self, sorted_indices: RowIndices) -> Iterator[_ChunkSlice]:
        """Yield the requested rows, chunk by chunk.

        A file stays open between two slices of the same shard. So a slice must be read before the
        next one is requested.

        Args:
            sorted_indices: Indices of the requested rows, in ascending order.
        """
        num_requested = len(sorted_indices)
        if num_requested and not 0 <= sorted_indices[0] <= sorted_indices[-1] < self.num_rows:
            raise IndexError(f"a row is not in the range 0 to {self.num_rows - 1}")
        start = 0
        while start < num_requested:
            shard = int(sorted_indices[start]) // self.shard_rows
            shard_stop = bisect_left(sorted_indices, (shard + 1) * self.shard_rows, start)
            with self._open_shard(shard) as (file, chunk_index):
                while start < shard_stop:
                    chunk = int(sorted_indices[start]) // self.chunk_rows
                    first_row = chunk * self.chunk_rows
                    stop = bisect_left(sorted_indices, first_row + self.chunk_rows, start)
                    chunk_in_shard = chunk % self.chunks_per_shard
                    yield _ChunkSlice(file, chunk_index[chunk_in_shard], first_row, start, stop)
                    start = stop

    @property
    def chunks_per_shard(self) -> int:
        """Number of chunks in a shard."""
        return self.shard_rows // self.chunk_rows

    @contextmanager
    def _open_shard(self, shard: int) -> Iterator[tuple[IO[bytes], NDArray[np.uint64]]]:
        """Open the file of a shard, and read its index.

        Yields:
            The file, and ``(chunks_per_shard, 2)`` offset and length of each chunk in the file.
        """
        # The zarr package calls the file of shard 3 of a 4-d array c/3/0/0/0.
        path = self.folder.joinpath(str(shard), *("0" for _ in self.row_shape))
        with path.open("rb", buffering=0) as file:
            index_bytes = INDEX_ENTRY_BYTES * self.chunks_per_shard
            file.seek(-index_bytes - CRC_BYTES, os.SEEK_END)
            chunk_index = np.empty((self.chunks_per_shard, 2), dtype="<u8")
            _fill_and_check(file, chunk_index)
            yield file, chunk_index


class _ChunkSlice(NamedTuple):
    """The requested rows in one chunk.

    Attributes:
        file: The open file of the shard.
        offset_and_length: Offset and length of the chunk in the file.
        chunk_first_row: Index of the chunk's first row in the array.
        request_start: Position of the first of these rows in the sorted indices.
        request_stop: Position after the last of these rows in the sorted indices.
    """

    file: IO[bytes]
    offset_and_length: NDArray[np.uint64]
    chunk_first_row: int
    request_start: int
    request_stop: int


def _read_chunk(file: IO[bytes], offset_and_length: NDArray[np.uint64], *targets: Array) -> None:
    """Read a chunk into arrays. The arrays are consecutive parts of the chunk."""
    offset, length = map(int, offset_and_length)
    if offset == ABSENT:
        for target in targets:
            target[...] = 0
        return
    if length != sum(target.nbytes for target in targets) + CRC_BYTES:
        raise ValueError("a chunk has a wrong length")
    file.seek(offset)
    _fill_and_check(file, *targets)


def _fill_and_check(file: IO[bytes], *targets: Array) -> None:
    """Read bytes into arrays one after another, then check the checksum that follows them."""
    import google_crc32c

    checksum = 0
    for target in filter(len, targets):  # empty arrays have no bytes
        target_bytes = target.view(np.uint8).reshape(-1)
        unfilled = target_bytes.data
        while unfilled:
            # IO[bytes] declares no readinto, but every unbuffered file has it.
            count = file.readinto(unfilled)  # type: ignore[attr-defined]
            if not count:
                raise OSError("the file is truncated")
            unfilled = unfilled[count:]
        # google_crc32c needs a read-only buffer. This is a view, so the target stays writable.
        target_bytes.flags.writeable = False
        checksum = google_crc32c.extend(checksum, target_bytes)
    if checksum.to_bytes(CRC_BYTES, "little") != file.read(CRC_BYTES):
        raise ValueError("the stored checksum differs from the computed checksum")


def create_store(folder: Path, *, num_images: int, image_shape: tuple[int, ...], dtype: str) -> int:
    """Create the empty arrays of a store, and return the number of images in a shard.

    Several tasks may write at the same time with :func:`write_rows`, each to a different shard.

    Args:
        folder: The folder of the new store.
        num_images: Number of images.
        image_shape: ``(channels, height, width)``.
        dtype: Type of the pixels.
    """
    import zarr
    from zarr.codecs import Crc32cCodec

    group = zarr.create_group(str(folder), zarr_format=3)
    image_bytes = int(np.prod(image_shape)) * np.dtype(dtype).itemsize
    chunk_rows = max(1, min(CHUNK_BYTES // image_bytes, num_images))
    num_chunks = -(-num_images // chunk_rows)
    chunks_per_shard = max(1, min(SHARD_BYTES // (chunk_rows * image_bytes), num_chunks))
    shard_rows = chunk_rows * chunks_per_shard
    # There is no compression. In zarr, a checksum is a codec like a compressor.
    array_options: dict[str, Any] = {
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
        **array_options,
    )
    for name, number_type in METADATA_ARRAYS.items():
        group.create_array(
            name,
            shape=(num_images,),
            dtype=number_type,
            chunks=(max(1, num_images),),
            **array_options,
        )
    return shard_rows


def write_rows(folder: Path, name: str, start: int, values: Array) -> None:
    """Write ``values`` to consecutive rows of the array ``name``, from row ``start`` on."""
    import zarr

    zarr.open_group(str(folder), mode="r+")[name][start : start + len(values)] = values


def flush_and_hash(path: Path) -> FileDigest:
    """Flush a file to the disk, and return its size and SHA-256."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    return FileDigest(path.stat().st_size, sha256)


def write_marker(folder: Path, record: PreparedRecord, digests: Mapping[str, FileDigest]) -> None:
    """Write the marker, which makes a store complete. All folders are flushed to the disk first.

    Args:
        folder: The folder of the store.
        record: The record of the prepared dataset.
        digests: Size and SHA-256 of each file, by path relative to the folder.
    """
    for path in folder.rglob("*"):
        if path.is_dir():
            sync_folder(path)
    body = {
        "schema": STORE_SCHEMA,
        "record": record.model_dump(mode="json"),
        "files": {name: list(digest) for name, digest in sorted(digests.items())},
    }
    _write_body(folder, body)


def replace_record(folder: Path, record: PreparedRecord) -> None:
    """Write another record into the marker of a complete store."""
    body = _marker_body(folder)
    body["record"] = record.model_dump(mode="json")
    _write_body(folder, body)


def _write_body(folder: Path, body: dict[str, Any]) -> None:
    """Write the marker with a fingerprint of its content."""
    marker = body | {"sha256": fingerprint(body)}
    write_atomic(folder / MARKER, json.dumps(marker, indent=1, allow_nan=False).encode())


class PreparedDataset:
    """A complete prepared dataset. Arrays are read when they are used.

    The measures read blocks of rows from this object, which is a
    :class:`~tasks.measures.distances.BlockSource`. A row is an image. The pickle of this object
    contains only the path, so a task opens the dataset on its own node.
    """

    def __init__(self, path: Path, record: PreparedRecord, files: Mapping[str, FileDigest]) -> None:
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
            raise DataError(
                f"The prepared dataset {folder.name} does not exist",
                hint="Prepare the dataset first",
            )
        if not (folder / MARKER).is_file():
            raise CorruptStoreError(
                f"Prepared dataset {folder.name} is incomplete: it has no {MARKER}",
                hint=REMAKE_HINT,
            )
        try:
            body = _marker_body(folder)
            files = {
                name: FileDigest(int(size), str(sha256))
                for name, (size, sha256) in body["files"].items()
            }
            record = PreparedRecord.model_validate(body["record"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CorruptStoreError(
                f"The file {MARKER} of the prepared dataset {folder.name} is damaged "
                f"({type(error).__name__})",
                hint=f"Delete the folder {folder}, and prepare the dataset again",
            ) from error
        for name, digest in files.items():
            _check_size(folder, name, digest.size)
        return cls(folder, record, files)

    def __reduce__(self) -> tuple[Callable[[Path], PreparedDataset], tuple[Path]]:
        """Return what pickle stores: only the path."""
        return PreparedDataset.open, (self.path,)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the content, see :class:`PreparedRecord`."""
        return self.record.fingerprint

    @property
    def label_names(self) -> tuple[str, ...]:
        """Class names by class index."""
        return self.record.label_names

    @property
    def num_images(self) -> int:
        """Number of images."""
        return self.record.num_images

    num_rows = num_images  # BlockSource calls it num_rows

    @property
    def row_shape(self) -> tuple[int, ...]:
        """``(channels, height, width)`` of an image."""
        return self.record.shape[1:]

    @cached_property
    def classes(self) -> NDArray[np.int64]:
        """``(num_images,)`` class index of each image, from the stored array ``labels``."""
        return self._array("labels").astype(np.int64)

    @cached_property
    def groups(self) -> NDArray[np.int64]:
        """``(num_images,)`` keyed hash of each image's group id. Equal hashes mean the same group.

        See :func:`tasks.sources.base.hash_key`.
        """
        return self._array("groups").astype(np.int64)

    @cached_property
    def splits(self) -> NDArray[np.int8]:
        """``(num_images,)`` given splits, see :class:`~tasks.sources.own.splits.GivenSplit`."""
        return self._array("splits").astype(np.int8)

    def read(self, start: int, stop: int) -> Array:
        """Return the images from ``start`` to before ``stop``; see :meth:`read_rows`."""
        return self.read_rows(range(start, stop))

    def read_rows(self, indices: Sequence[int] | NDArray[np.integer]) -> Array:
        """Return images, ``(len(indices), channels, height, width)`` in [0, 255].

        Args:
            indices: Indices of the images, in the order of the result.

        Raises:
            CorruptStoreError: A file is missing, or its checksum is wrong.
        """
        rows: RowIndices
        if isinstance(indices, range) and indices.step == 1:
            rows = indices
        else:
            rows = np.asarray(indices, dtype=np.int64)
        with self._convert_read_errors("images", rows):
            return self._images.read_rows(rows)

    def verify(self) -> None:
        """Check every byte of every file.

        Raises:
            CorruptStoreError: The SHA-256 of a file differs from that in the marker.
        """
        for name in self._files:
            self._check_sha256(name)

    def _check_sha256(self, name: str) -> None:
        """Compare the SHA-256 of a file with that in the marker."""
        with (self.path / name).open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        if sha256 != self._files[name].sha256:
            raise CorruptStoreError(
                f"{name} of prepared dataset {self.path.name} has changed since it was written",
                hint=REMAKE_HINT,
            )

    @cached_property
    def _zarr_group(self) -> Any:
        """The zarr group. Its metadata are checked first, because zarr does not check them."""
        import zarr

        for name in self._files:
            if name.endswith("zarr.json"):
                self._check_sha256(name)
        return zarr.open_group(str(self.path), mode="r")

    @cached_property
    def _images(self) -> ShardedArrayReader:
        """The reader of the images."""
        array = self._zarr_group["images"]
        return ShardedArrayReader(
            folder=self.path / "images" / "c",
            num_rows=self.num_rows,
            row_shape=self.row_shape,
            dtype=np.dtype(self.record.dtype).newbyteorder("<"),
            chunk_rows=array.chunks[0],
            shard_rows=array.shards[0],
        )

    def _array(self, name: str) -> Array:
        """Return all values of a small array.

        Raises:
            CorruptStoreError: A file is damaged or missing.
        """
        all_rows = range(self.num_rows)
        with self._convert_read_errors(name, all_rows):
            # If a file is missing, zarr returns zeros. So missing files are detected here.
            for file in self._stored_files(name, all_rows):
                if not (self.path / file).is_file():
                    raise FileNotFoundError(file)
            values: Array = self._zarr_group[name][:]
        return values

    @contextmanager
    def _convert_read_errors(self, name: str, rows: RowIndices) -> Iterator[None]:
        """Convert an error of reading to a CorruptStoreError that lists the files."""
        try:
            yield
        except (ValueError, OSError, RuntimeError) as error:
            raise CorruptStoreError(
                f"Array {name} of prepared dataset {self.path.name} is damaged: "
                f"{type(error).__name__} in {', '.join(self._stored_files(name, rows))}",
                hint=REMAKE_HINT,
            ) from error

    def _stored_files(self, name: str, rows: RowIndices) -> list[str]:
        """Return the files that contain these rows of an array, relative to the folder."""
        array = self._zarr_group[name]
        rows_per_file = (array.shards or array.chunks)[0]
        shards = np.unique(np.asarray(rows) // rows_per_file).tolist()
        names = [f"{name}/c/{shard}{'/0' * (array.ndim - 1)}" for shard in shards]
        # A shard of zeros has no file. The marker lists the files that exist.
        return [file for file in names if file in self._files]


def _marker_body(folder: Path) -> Any:
    """Return the content of the marker after checking its schema and fingerprint."""
    body = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    stored_fingerprint = body.pop("sha256")
    marker_name = f"{MARKER} of prepared dataset {folder.name}"
    schema = body["schema"]
    if schema != STORE_SCHEMA:
        raise CorruptStoreError(
            f"{marker_name} has schema {schema!r}, but this version of isweep reads only schema "
            f"{STORE_SCHEMA}",
            hint=REMAKE_HINT,
        )
    if stored_fingerprint != fingerprint(body):
        raise CorruptStoreError(f"{marker_name} has changed since it was written", hint=REMAKE_HINT)
    return body


def _check_size(folder: Path, name: str, expected: int) -> None:
    """Check that a file of the store has the size that the marker lists."""
    file = folder / name
    problem = "missing"
    if file.is_file():
        size = file.stat().st_size
        if size == expected:
            return
        problem = f"{size} bytes long, but should be {expected} bytes long"
    raise CorruptStoreError(
        f"{name} of prepared dataset {folder.name} is {problem}", hint=REMAKE_HINT
    )
