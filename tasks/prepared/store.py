"""Prepared datasets on disk: a zarr 3 group, sharded, every inner chunk under a crc32c checksum.

Layout of the folder::

    zarr.json  images/  labels/  groups/  splits/     the arrays complete.json
    written last: record, every file's size and SHA-256

A folder without a whole ``complete.json`` is not a prepared dataset, whatever else lies in it.
Opening checks the marker's own hash and all file sizes; reading checks the crc32c of what is read;
:meth:`PreparedDataset.verify` checks every byte.
"""

from __future__ import annotations

import hashlib
import json
import os
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import CorruptStoreError, DataError
from search_spaces.fingerprint import fingerprint
from tasks.atomic import sync_folder, write_atomic
from tasks.prepared.record import PreparedRecord

ABSENT = 2**64 - 1
"""How a shard's index spells a chunk of zeros, which is not stored."""
CRC_BYTES = 4


@dataclass(frozen=True)
class ShardedRows:
    """Rows of a sharded, uncompressed zarr array, read straight into place, every chunk's crc32c
    checked.

    zarr itself reads the same files, at half the rate. The layout is the zarr 3 sharding codec's:
    raw chunks of ``chunk_rows`` (also where the array ends before), each followed by its crc32c,
    then an index of (offset, length) pairs with a crc32c of its own. ``folder`` is the array's
    ``c``.
    """

    folder: Path
    num_rows: int
    row_shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    chunk_rows: int
    shard_rows: int

    def read_rows(self, wanted: NDArray[np.int64] | range) -> NDArray[np.generic]:
        """Return the rows of ``wanted``, in that order; a range, which must have step 1, is copied
        less.

        Damage is a ValueError or an OSError, a row that is not there an IndexError.
        """
        rows: NDArray[np.generic] = np.empty((len(wanted), *self.row_shape), self.dtype)
        buffer = np.empty((self.chunk_rows, *self.row_shape), self.dtype)
        order = None if isinstance(wanted, range) else np.argsort(wanted, kind="stable")
        ordered, done = wanted if isinstance(wanted, range) else wanted[order], 0
        if len(ordered) and not 0 <= ordered[0] <= ordered[-1] < self.num_rows:
            raise IndexError(f"rows must be in 0..{self.num_rows - 1}")
        while done < len(ordered):
            shard = int(ordered[done]) // self.shard_rows
            with self._open(shard) as (file, index):
                while done < len(ordered) and ordered[done] // self.shard_rows == shard:
                    first = int(ordered[done]) // self.chunk_rows * self.chunk_rows
                    entry = index[first % self.shard_rows // self.chunk_rows]
                    stop = bisect_left(ordered, first + self.chunk_rows, done)
                    if order is None:
                        before = ordered[done] - first
                        after = self.chunk_rows - before - (stop - done)
                        self._read_chunk(
                            file, entry, buffer[:before], rows[done:stop], buffer[:after]
                        )
                    else:
                        self._read_chunk(file, entry, buffer)
                        rows[order[done:stop]] = buffer[np.asarray(ordered[done:stop]) - first]
                    done = stop
        return rows

    @contextmanager
    def _open(self, shard: int) -> Iterator[tuple[IO[bytes], NDArray[np.uint64]]]:
        path = self.folder.joinpath(str(shard), *("0" for _ in self.row_shape))
        with path.open("rb", buffering=0) as file:
            size = 16 * (self.shard_rows // self.chunk_rows)
            file.seek(-size - CRC_BYTES, 2)
            index = np.empty(size // 8, dtype="<u8")
            _fill_and_check(file, index)
            yield file, index.reshape(-1, 2)

    @staticmethod
    def _read_chunk(file: IO[bytes], entry: NDArray[np.uint64], *into: NDArray[np.generic]) -> None:
        offset, length = map(int, entry)
        if offset == ABSENT:
            for part in into:
                part[...] = 0
        elif length != sum(part.nbytes for part in into) + CRC_BYTES:
            raise ValueError("a chunk has another length")
        else:
            file.seek(offset)
            _fill_and_check(file, *into)


def _fill_and_check(file: IO[bytes], *into: NDArray[np.generic]) -> None:
    """Fill arrays one after another with what they share a checksum with."""
    import google_crc32c

    checksum = 0
    for part in filter(len, into):
        checked = part.view(np.uint8).reshape(-1)
        view, done = checked.data, 0
        while done < len(view):
            count = file.readinto(view[done:])  # type: ignore[attr-defined]
            if not count:
                raise OSError("file ends early")
            done += count
        checked.flags.writeable = False
        checksum = google_crc32c.extend(checksum, checked)
    if checksum.to_bytes(CRC_BYTES, "little") != file.read(CRC_BYTES):
        raise ValueError("stored and computed checksum do not match")


STORE_SCHEMA = 1
MARKER = "complete.json"
CHUNK_BYTES = 8 << 20
"""Inner chunk: the unit of checksum and of reading. Measured best of 1 to 40 MB."""
SHARD_BYTES = 64 << 20
"""One file. A few files per dataset keep network file systems and object stores happy."""
REMAKE = "delete the folder and prepare the dataset again"


def create_store(folder: Path, *, num_images: int, image_shape: tuple[int, ...], dtype: str) -> int:
    """Create the empty arrays in ``folder`` and return how many rows of ``images`` make one shard.

    Tasks may then fill different shards at the same time with :func:`write_rows`.
    """
    import zarr
    from zarr.codecs import Crc32cCodec

    group = zarr.create_group(str(folder), zarr_format=3)
    image_bytes = int(np.prod(image_shape)) * np.dtype(dtype).itemsize
    chunk = max(1, min(CHUNK_BYTES // image_bytes, num_images))
    shard = chunk * max(1, min(SHARD_BYTES // (chunk * image_bytes), -(-num_images // chunk)))
    checked: dict[str, Any] = {"compressors": [Crc32cCodec()], "filters": None, "fill_value": 0}
    group.create_array(
        "images",
        shape=(num_images, *image_shape),
        dtype=dtype,
        chunks=(chunk, *image_shape),
        shards=(shard, *image_shape),
        **checked,
    )
    for name, kind in (("labels", "int64"), ("groups", "int64"), ("splits", "int8")):
        group.create_array(
            name, shape=(num_images,), dtype=kind, chunks=(max(1, num_images),), **checked
        )
    return shard


def write_rows(folder: Path, name: str, start: int, values: NDArray[np.generic]) -> None:
    """Write rows ``start, start + 1, ...`` of array ``name``."""
    import zarr

    zarr.open_group(str(folder), mode="r+")[name][start : start + len(values)] = values


def stamp_file(path: Path) -> tuple[int, str]:
    """Bring a file to the disk and return its size and SHA-256."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
        return path.stat().st_size, digest


def seal(folder: Path, record: PreparedRecord, stamps: dict[str, tuple[int, str]]) -> None:
    """Write the completion marker, after everything else (``stamps``: its files) has reached the
    disk.
    """
    files = {name: list(stamp) for name, stamp in sorted(stamps.items())}
    body = {"schema": STORE_SCHEMA, "record": record.model_dump(mode="json"), "files": files}
    for inner in (path for path in folder.rglob("*") if path.is_dir()):
        sync_folder(inner)
    sealed = {**body, "sha256": fingerprint(body)}
    write_atomic(folder / MARKER, json.dumps(sealed, indent=1, allow_nan=False).encode())


class PreparedDataset:
    """A whole prepared dataset, read lazily. Pickles as its path, so tasks reopen it where they
    run.
    """

    def __init__(
        self, path: Path, record: PreparedRecord, files: dict[str, tuple[int, str]]
    ) -> None:
        self.path = path
        self.record = record
        self._files = files

    @classmethod
    def open(cls, path: Path | str) -> PreparedDataset:
        """Open a prepared dataset; half written, damaged or of another schema is a
        CorruptStoreError.
        """
        folder = Path(path)
        if not folder.exists():
            raise DataError(
                "A prepared dataset must exist", f"no folder {folder.name}", "prepare it first"
            )
        if not (folder / MARKER).is_file():
            rule = f"Prepared dataset {folder.name} must have its {MARKER}"
            raise CorruptStoreError(rule, "half written", REMAKE)
        try:
            body = json.loads((folder / MARKER).read_text(encoding="utf-8"))
            is_whole, schema = body.pop("sha256") == fingerprint(body), body["schema"]
            if not is_whole or schema != STORE_SCHEMA:
                what = f"schema {schema!r}" if schema != STORE_SCHEMA else "another checksum"
                rule = (
                    f"{MARKER} of prepared dataset {folder.name} must be of schema {STORE_SCHEMA}"
                )
                raise CorruptStoreError(f"{rule} and unchanged", what, REMAKE)
            files = {name: (int(size), str(sha)) for name, (size, sha) in body["files"].items()}
            record = PreparedRecord.model_validate(body["record"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            rule = f"{MARKER} of prepared dataset {folder.name} must be whole"
            raise CorruptStoreError(rule, type(error).__name__, REMAKE) from error
        for name, (size, _) in files.items():
            file = folder / name
            found = file.stat().st_size if file.is_file() else None
            if found != size:
                what = "missing" if found is None else f"{found} bytes instead of {size}"
                rule = f"{name} of prepared dataset {folder.name} must be whole"
                raise CorruptStoreError(rule, what, REMAKE)
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
        """``(num_images,)`` int64 class indices."""
        return self._array("labels").astype(np.int64)

    @cached_property
    def groups(self) -> NDArray[np.int64]:
        """``(num_images,)`` int64 keyed hashes; equal for images that must stay on one side of a
        split.
        """
        return self._array("groups").astype(np.int64)

    @cached_property
    def splits(self) -> NDArray[np.int8]:
        """``(num_images,)`` 0 = ours to split, 1 = given as train, 2 = given as test."""
        return self._array("splits").astype(np.int8)

    def read(self, start: int, stop: int) -> NDArray[np.generic]:
        """Return images ``start`` to ``stop`` (exclusive); see :meth:`read_rows`."""
        return self.read_rows(range(start, stop))

    def read_rows(self, indices: Sequence[int] | NDArray[np.integer]) -> NDArray[np.generic]:
        """Return the images of ``indices``, ``(len(indices), channels, height, width)``, in that
        order.

        A wrong checksum is a CorruptStoreError that names the shard.
        """
        if isinstance(indices, range) and indices.step == 1:
            wanted: NDArray[np.int64] | range = indices
        else:
            wanted = np.asarray(indices, dtype=np.int64)
        with self._naming_files("images", wanted):
            return self._images.read_rows(wanted)

    def verify(self) -> None:
        """Check every byte of every file against the marker; one that differs is a
        CorruptStoreError.
        """
        for name, (_, digest) in self._files.items():
            with (self.path / name).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                    rule = f"{name} of prepared dataset {self.path.name} must have its checksum"
                    raise CorruptStoreError(rule, "another", REMAKE)

    @cached_property
    def _group(self) -> Any:
        import zarr

        return zarr.open_group(str(self.path), mode="r")

    @cached_property
    def _images(self) -> ShardedRows:
        array, dtype = self._group["images"], np.dtype(self.record.dtype).newbyteorder("<")
        folder = self.path / "images" / "c"
        return ShardedRows(
            folder, self.num_rows, self.row_shape, dtype, array.chunks[0], array.shards[0]
        )

    def _array(self, name: str) -> NDArray[np.generic]:
        everything = range(self.num_rows)
        with self._naming_files(name, everything):
            # zarr reads a missing file as zeros, so absence is checked here.
            for file in self._stored_files(name, everything):
                if not (self.path / file).is_file():
                    raise FileNotFoundError(file)
            values: NDArray[np.generic] = self._group[name][:]
        return values

    @contextmanager
    def _naming_files(self, name: str, rows: NDArray[np.int64] | range) -> Iterator[None]:
        """Turn what reading may raise into the error that names the files read."""
        try:
            yield
        except (ValueError, OSError, RuntimeError) as error:
            raise CorruptStoreError(
                f"Array {name} of prepared dataset {self.path.name} must be whole",
                f"{type(error).__name__} in {', '.join(self._stored_files(name, rows))}",
                REMAKE,
            ) from error

    def _stored_files(self, name: str, rows: NDArray[np.int64] | range) -> list[str]:
        array = self._group[name]
        shards = np.unique(np.asarray(rows) // (array.shards or array.chunks)[0]).tolist()
        names = [f"{name}/c/{shard}{'/0' * (array.ndim - 1)}" for shard in shards]
        # A chunk of zeros only is not stored at all; the marker knows which files there are.
        return [file for file in names if file in self._files]
