"""Read the rows of a sharded zarr array faster than the zarr package reads them."""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tasks.array_types import AnyArray, Int64Array

RowIndices = Int64Array | range
"""Indices of rows of an array. A row contains the data of one image."""

ABSENT = 2**64 - 1
"""Offset that the index of a shard contains for a chunk of zeros. Such a chunk is not
stored."""
CRC_BYTES = 4
"""Size in bytes of a crc32c checksum."""
INDEX_ENTRY_BYTES = 16
"""Size in bytes of an entry (offset, length) in the index of a shard."""


@dataclass(frozen=True)
class ShardedArrayReader:
    """A fast reader for the rows of a sharded, uncompressed zarr array.

    The reader reads rows directly into the result, and verifies their checksums. The zarr
    package needs twice as long for the same files.

    The files have the layout of the sharding codec of zarr 3::

        shard 0:  chunk 0, crc | chunk 1, crc | ... | (offset, length) of each chunk, crc
        shard 1:  chunk k, crc | ...

    Each chunk has ``chunk_rows`` rows. The last chunk of the array is padded to this size. The
    pairs at the end of a shard are its *index*. ``crc`` is the crc32c checksum of the chunk or
    index before it.

    Attributes:
        folder: The folder ``c`` of the array, which contains the files of the shards.
        num_rows: Number of rows.
        row_shape: Shape of a row.
        dtype: Type of the values, in little-endian byte order.
        chunk_rows: Number of rows in a chunk.
        shard_rows: Number of rows in a shard.
    """

    folder: Path
    num_rows: int
    row_shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    chunk_rows: int
    shard_rows: int

    def read_rows(self, indices: RowIndices) -> AnyArray:
        """Return rows in the order of ``indices``.

        Args:
            indices: Indices of rows. If it is a range, its step must be 1. The rows of a range
                are read without an extra copy.

        Raises:
            IndexError: An index is not the index of a row.
            ValueError: A chunk is damaged, or ``indices`` is a range whose step is not 1.
            OSError: A file is missing or truncated.
        """
        if isinstance(indices, range):
            return self._read_range(indices)
        rows = self._allocate(len(indices))
        chunk_buffer = self._allocate(self.chunk_rows)
        order = np.argsort(indices, kind="stable")
        sorted_indices = indices[order]
        for request in self._chunk_requests(sorted_indices):
            request.read(chunk_buffer)
            indices_in_chunk = sorted_indices[request.part] - request.first_row
            rows[order[request.part]] = chunk_buffer[indices_in_chunk]
        return rows

    def _read_range(self, indices: range) -> AnyArray:
        """Read consecutive rows directly into the result."""
        if indices.step != 1:
            raise ValueError(
                f"{indices} has the step {indices.step}, not 1. Convert it to an array first"
            )
        rows = self._allocate(len(indices))
        # A checksum belongs to a whole chunk. So the rows before and after the requested rows
        # must be read too. Their values are not used, so all of them are written to the same
        # scratch memory.
        scratch = self._allocate(self.chunk_rows)
        for request in self._chunk_requests(indices):
            requested_rows = rows[request.part]
            num_before = indices[request.part][0] - request.first_row
            num_after = self.chunk_rows - num_before - len(requested_rows)
            request.read(scratch[:num_before], requested_rows, scratch[:num_after])
        return rows

    def _allocate(self, num_rows: int) -> AnyArray:
        """Return an uninitialized array for ``num_rows`` rows."""
        return np.empty((num_rows, *self.row_shape), self.dtype)

    def _chunk_requests(self, sorted_indices: RowIndices) -> Iterator[_ChunkRequest]:
        """Yield one request for each chunk that contains requested rows.

        For example, if a chunk has 4 rows, the sorted indices 3, 5, 6 and 13 need three
        requests:

        =====  =========  ====  ==========
        chunk  first row  part  row indices
        =====  =========  ====  ==========
        0      0          0:1   3
        1      4          1:3   5, 6
        3      12         3:4   13
        =====  =========  ====  ==========

        The caller must read the chunk of a request before it takes the next request. The file
        of a shard is closed after the last request for this shard.

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
                    offset, length = map(int, chunk_index[chunk % self.chunks_per_shard])
                    yield _ChunkRequest(file, offset, length, first_row, slice(start, stop))
                    start = stop

    @property
    def chunks_per_shard(self) -> int:
        """Number of chunks in a shard."""
        return self.shard_rows // self.chunk_rows

    @contextmanager
    def _open_shard(self, shard: int) -> Iterator[tuple[IO[bytes], NDArray[np.uint64]]]:
        """Open the file of a shard, and read its index.

        Yields:
            The file, and an array ``(chunks_per_shard, 2)`` with the offset and the length of
            each chunk in the file.
        """
        # The zarr package gives the file of shard 3 of a 4-d array the path c/3/0/0/0.
        path = self.folder.joinpath(str(shard), *("0" for _ in self.row_shape))
        with path.open("rb", buffering=0) as file:
            index_bytes = INDEX_ENTRY_BYTES * self.chunks_per_shard
            file.seek(-index_bytes - CRC_BYTES, os.SEEK_END)
            chunk_index = np.empty((self.chunks_per_shard, 2), dtype="<u8")
            _fill_and_check(file, chunk_index)
            yield file, chunk_index


class _ChunkRequest(NamedTuple):
    """The requested rows in one chunk.

    Attributes:
        file: The open file of the shard.
        offset: Offset of the chunk in the file.
        length: Length of the chunk in bytes, including its checksum.
        first_row: Index of the chunk's first row in the array.
        part: Slice of the sorted indices. The rows with these indices are in this chunk.
    """

    file: IO[bytes]
    offset: int
    length: int
    first_row: int
    part: slice

    def read(self, *targets: AnyArray) -> None:
        """Read the whole chunk into one or more arrays.

        Each array receives the next part of the chunk.

        Raises:
            ValueError: The length or the checksum of the chunk is wrong.
            OSError: The file is truncated.
        """
        if self.offset == ABSENT:
            for target in targets:
                target[...] = 0
            return
        if self.length != sum(target.nbytes for target in targets) + CRC_BYTES:
            raise ValueError("a chunk has a wrong length")
        self.file.seek(self.offset)
        _fill_and_check(self.file, *targets)


def _fill_and_check(file: IO[bytes], *targets: AnyArray) -> None:
    """Fill arrays one after another from a file, and verify the checksum that follows.

    Raises:
        ValueError: The checksum is wrong.
        OSError: The file is truncated.
    """
    import google_crc32c

    checksum = 0
    # Each target is hashed before the next target is filled, because two targets may share
    # memory.
    for target in filter(len, targets):  # empty arrays have no bytes
        target_bytes = target.view(np.uint8).reshape(-1)
        unfilled = target_bytes.data
        while unfilled:
            # The type IO[bytes] has no method readinto, but every unbuffered file has it.
            count = file.readinto(unfilled)  # type: ignore[attr-defined]
            if not count:
                raise OSError("the file is truncated")
            unfilled = unfilled[count:]
        # google_crc32c needs a read-only buffer. Only this view becomes read-only, and the
        # target itself stays writable.
        target_bytes.flags.writeable = False
        checksum = google_crc32c.extend(checksum, target_bytes)
    if checksum.to_bytes(CRC_BYTES, "little") != file.read(CRC_BYTES):
        raise ValueError("the stored checksum differs from the computed checksum")
