"""Read rows of a sharded, uncompressed zarr array straight into place, checking every chunk's crc32c.

zarr itself reads the same files; going through it costs two extra copies of every byte, which halves the
rate. The layout is the zarr 3 sharding codec's: raw chunks, each followed by its crc32c, then an index of
(offset, length) pairs with a crc32c of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

ABSENT = 2**64 - 1
"""How the index spells a chunk of zeros, which is not stored."""
CRC_BYTES = 4


@dataclass(frozen=True)
class ShardedRows:
    """Where the rows of one array are.

    Attributes:
        folder: The array's ``c`` folder.
        num_rows: Rows of the array.
        row_shape: Shape of one row.
        dtype: Little-endian dtype of the stored rows.
        chunk_rows: Rows of one inner chunk, stored whole also where the array ends before it does.
        shard_rows: Rows of one shard, a multiple of ``chunk_rows``.
    """

    folder: Path
    num_rows: int
    row_shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    chunk_rows: int
    shard_rows: int

    def shard_file(self, shard: int) -> Path:
        """Return the file of a shard."""
        return self.folder.joinpath(str(shard), *("0" for _ in self.row_shape))

    def read_into(self, rows: NDArray[np.generic], start: int) -> None:
        """Fill ``rows`` with the array's rows from ``start`` on.

        Raises:
            ValueError: when a checksum is wrong.
            OSError: when a shard is missing or ends early.
        """
        buffer = self._buffer()
        for first, chunk, file, index in self._chunks(start, start + len(rows)):
            place, stop = first - start, min(first + self.chunk_rows, start + len(rows)) - start
            if place >= 0 and stop - place == self.chunk_rows:
                self._read_chunk(file, index[chunk], rows[place:stop])
            else:
                self._read_chunk(file, index[chunk], buffer)
                low = max(place, 0)
                rows[low:stop] = buffer[low - place : stop - place]

    def read_scattered(self, rows: NDArray[np.generic], wanted: NDArray[np.int64]) -> None:
        """Fill ``rows[i]`` with row ``wanted[i]`` of the array, opening every chunk once.

        Raises:
            ValueError: when a checksum is wrong.
            OSError: when a shard is missing or ends early.
        """
        order = np.argsort(wanted, kind="stable")
        ordered, buffer, done = wanted[order], self._buffer(), 0
        while done < len(ordered):
            shard = ordered[done] // self.shard_rows
            with self._open(shard) as (file, index):
                while done < len(ordered) and ordered[done] // self.shard_rows == shard:
                    first = ordered[done] // self.chunk_rows * self.chunk_rows
                    self._read_chunk(file, index[first % self.shard_rows // self.chunk_rows], buffer)
                    stop = int(np.searchsorted(ordered, first + self.chunk_rows))
                    rows[order[done:stop]] = buffer[ordered[done:stop] - first]
                    done = stop

    def _buffer(self) -> NDArray[np.generic]:
        return np.empty((self.chunk_rows, *self.row_shape), dtype=self.dtype)

    def _chunks(self, start: int, stop: int) -> Iterator[tuple[int, int, IO[bytes], NDArray[np.uint64]]]:
        """Yield (first row, number in its shard, open file, index) of every chunk with rows in the range."""
        first = start // self.chunk_rows * self.chunk_rows
        while first < stop:
            shard = first // self.shard_rows
            with self._open(shard) as (file, index):
                end = min((shard + 1) * self.shard_rows, stop)
                while first < end:
                    yield first, first % self.shard_rows // self.chunk_rows, file, index
                    first += self.chunk_rows

    @contextmanager
    def _open(self, shard: int) -> Iterator[tuple[IO[bytes], NDArray[np.uint64]]]:
        with self.shard_file(shard).open("rb", buffering=0) as file:
            size = 16 * (self.shard_rows // self.chunk_rows)
            file.seek(-size - CRC_BYTES, 2)
            index = np.empty(size // 8, dtype="<u8")
            self._fill_and_check(file, index)
            yield file, index.reshape(-1, 2)

    def _read_chunk(self, file: IO[bytes], entry: NDArray[np.uint64], into: NDArray[np.generic]) -> None:
        offset, length = map(int, entry)
        if offset == ABSENT:
            into[...] = 0
        elif length != into.nbytes + CRC_BYTES:
            raise ValueError("a chunk has another length")
        else:
            file.seek(offset)
            self._fill_and_check(file, into)

    @staticmethod
    def _fill_and_check(file: IO[bytes], into: NDArray[np.generic]) -> None:
        import google_crc32c

        view = into.view(np.uint8).reshape(-1).data
        done = 0
        while done < len(view):
            count = file.readinto(view[done:])  # type: ignore[attr-defined]
            if not count:
                raise OSError("file ends early")
            done += count
        checked = into.view(np.uint8).reshape(-1)
        checked.flags.writeable = False
        if google_crc32c.value(checked).to_bytes(CRC_BYTES, "little") != file.read(CRC_BYTES):
            raise ValueError("stored and computed checksum do not match")
