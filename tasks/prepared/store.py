"""Store prepared datasets as zarr 3 arrays in which every chunk has a crc32c checksum.

Layout of the folder::

    zarr.json  images/  labels/  groups/  splits/    the arrays
    complete.json                                    the record; sizes and SHA-256 of all files

``complete.json`` is the *marker*. It is written last. If the marker of a folder is missing or
damaged, the folder is not a prepared dataset.

- When a dataset is opened, the fingerprint of the marker and the sizes of all files are
  checked.
- When images are read, the crc32c of their chunks is checked.
- When labels, groups or splits are read, the SHA-256 of their files is checked.
- :meth:`PreparedDataset.verify` checks every byte.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from search_spaces.errors import CorruptStoreError, DataError
from search_spaces.fingerprint import fingerprint
from tasks.array_types import AnyArray, Int8Array, Int64Array, IntArray
from tasks.atomic import sync_folder, write_atomic
from tasks.prepared.record import PreparedRecord
from tasks.prepared.sharded_array import RowIndices, ShardedArrayReader

STORE_SCHEMA = 1
MARKER = "complete.json"
CHUNK_BYTES = 8 << 20
"""Size in bytes of a chunk. A chunk is always read as a whole, and has one checksum. We
measured sizes from 1 to 40 MB. Reading was fastest with 8 MB."""
SHARD_BYTES = 64 << 20
"""Size in bytes of a shard. Each shard is one file. Shards are large, because network file
systems and object stores are slow with many small files."""
METADATA_ARRAYS = {
    "labels": "int64",
    "groups": "int64",
    "splits": "int8",
}
"""Data types of the arrays that have one number per image. The keys are the names of the
arrays. The array ``labels`` contains the class index of each image."""


class FileDigest(NamedTuple):
    """The size of a file and the hash of its content.

    Attributes:
        size: Size in bytes.
        sha256: SHA-256 of the content, 64 hex digits.
    """

    size: int
    sha256: str


def create_store(
    folder: Path,
    *,
    num_images: int,
    image_shape: tuple[int, ...],
    dtype: str,
) -> int:
    """Create the empty arrays of a store, and return the number of images in a shard.

    Several tasks may then call :func:`write_rows` at the same time if each task writes to
    another shard.

    Args:
        folder: The folder of the new store.
        num_images: Number of images.
        image_shape: Shape of an image, ``(channels, height, width)``.
        dtype: Type of the pixels, ``uint8`` or ``float32``.
    """
    import zarr
    from zarr.codecs import Crc32cCodec

    group = zarr.create_group(str(folder), zarr_format=3)
    image_bytes = int(np.prod(image_shape)) * np.dtype(dtype).itemsize
    chunk_rows = max(1, min(CHUNK_BYTES // image_bytes, num_images))
    num_chunks = -(-num_images // chunk_rows)
    chunks_per_shard = max(1, min(SHARD_BYTES // (chunk_rows * image_bytes), num_chunks))
    shard_rows = chunk_rows * chunks_per_shard
    # The arrays are not compressed. The checksum is in this list, because zarr treats it as a
    # compressor.
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


def write_rows(folder: Path, name: str, start: int, values: AnyArray) -> None:
    """Write ``values`` to consecutive rows of the array ``name``, from row ``start`` on."""
    import zarr

    zarr.open_group(str(folder), mode="r+")[name][start : start + len(values)] = values


def flush_and_hash(path: Path) -> FileDigest:
    """Flush a file to the disk, and return its size and SHA-256."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    return FileDigest(path.stat().st_size, sha256)


def write_marker(
    folder: Path,
    record: PreparedRecord,
    digests: Mapping[str, FileDigest],
) -> None:
    """Write the marker, which makes a store complete.

    Before the marker is written, all folders of the store are flushed to the disk.

    Args:
        folder: The folder of the store.
        record: The record of the prepared dataset.
        digests: Size and SHA-256 of each file. The keys are paths relative to the folder.
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
    """Replace the record in the marker of a complete store."""
    body = _marker_body(folder)
    body["record"] = record.model_dump(mode="json")
    _write_body(folder, body)


def _write_body(folder: Path, body: dict[str, Any]) -> None:
    """Write the marker with a fingerprint of its content."""
    marker = body | {"sha256": fingerprint(body)}
    write_atomic(folder / MARKER, json.dumps(marker, indent=1, allow_nan=False).encode())


class PreparedDataset:
    """A complete prepared dataset. Each array is read when it is used.

    This object follows the protocol :class:`~tasks.measures.distances.BlockSource`, so the
    measures can read blocks of rows from it. A row is an image. A pickle of this object
    contains only the path of the dataset. So a task on another node opens the dataset again.
    """

    def __init__(
        self,
        path: Path,
        record: PreparedRecord,
        files: Mapping[str, FileDigest],
    ) -> None:
        self.path = path
        self.record = record
        self._files = files

    @classmethod
    def open(cls, path: Path | str) -> PreparedDataset:
        """Check the marker and the file sizes of a prepared dataset, and open it.

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
            raise _damage_error(folder, MARKER, "is missing, so the preparation did not end")
        try:
            body = _marker_body(folder)
            files = {
                name: FileDigest(int(size), str(sha256))
                for name, (size, sha256) in body["files"].items()
            }
            record = PreparedRecord.model_validate(body["record"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise _damage_error(folder, MARKER, f"is damaged ({type(error).__name__})") from error
        _check_names_and_sizes(folder, files)
        return cls(folder, record, files)

    def __reduce__(self) -> tuple[Callable[[Path], PreparedDataset], tuple[Path]]:
        """Return the data that pickle stores, which are only the path of the dataset."""
        return PreparedDataset.open, (self.path,)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the content, see :class:`PreparedRecord`."""
        return self.record.fingerprint

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their class indices."""
        return self.record.label_names

    @property
    def num_images(self) -> int:
        """Number of images."""
        return self.record.num_images

    num_rows = num_images  # this is the name in the protocol BlockSource

    @property
    def row_shape(self) -> tuple[int, ...]:
        """The shape of an image, ``(channels, height, width)``."""
        return self.record.shape[1:]

    @cached_property
    def classes(self) -> Int64Array:
        """The class index of each image, ``(num_images,)``, from the stored array ``labels``."""
        return self._array("labels").astype(np.int64)

    @cached_property
    def groups(self) -> Int64Array:
        """The keyed hash of each image's group id, ``(num_images,)``.

        Images with equal hashes are in the same group. See
        :func:`tasks.sources.base.hash_key`.
        """
        return self._array("groups").astype(np.int64)

    @cached_property
    def splits(self) -> Int8Array:
        """The given split of each image, ``(num_images,)``, see
        :class:`~tasks.sources.own.splits.GivenSplit`.
        """
        return self._array("splits").astype(np.int8)

    def read(self, start: int, stop: int) -> AnyArray:
        """Return the images from ``start`` to before ``stop``; see :meth:`read_rows`."""
        return self.read_rows(range(start, stop))

    def read_rows(self, indices: Sequence[int] | IntArray) -> AnyArray:
        """Return images with pixels in [0, 255], ``(len(indices), channels, height, width)``.

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
            CorruptStoreError: A file was added or is missing, or its SHA-256 differs from the
                SHA-256 in the marker.
        """
        _check_names_and_sizes(self.path, self._files)
        for name in self._files:
            self._check_sha256(name)

    def _check_sha256(self, name: str) -> None:
        """Check that the marker lists a file, and that the SHA-256 of the file is correct."""
        with (self.path / name).open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        if name not in self._files or sha256 != self._files[name].sha256:
            raise _damage_error(self.path, name, "has changed since it was written")

    @cached_property
    def _zarr_group(self) -> Any:
        """The zarr group of the arrays. Its metadata files are checked, because zarr does not
        check them.
        """
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

    def _array(self, name: str) -> AnyArray:
        """Return all values of a small array, after checking every byte of its files.

        Raises:
            CorruptStoreError: A file is damaged or missing.
        """
        all_rows = range(self.num_rows)
        with self._convert_read_errors(name, all_rows):
            # zarr does not read the marker. If a file is missing, zarr returns zeros. If a
            # file was replaced by another valid file, zarr returns the wrong values.
            for file in self._stored_files(name, all_rows):
                self._check_sha256(file)
            values: AnyArray = self._zarr_group[name][:]
        return values

    @contextmanager
    def _convert_read_errors(self, name: str, rows: RowIndices) -> Iterator[None]:
        """Convert an error in a ``with`` block to a CorruptStoreError whose message lists the
        files.
        """
        try:
            yield
        except (ValueError, OSError, RuntimeError) as error:
            files = ", ".join(self._stored_files(name, rows))
            problem = f"is damaged: {type(error).__name__} in {files}"
            raise _damage_error(self.path, f"Array {name}", problem) from error

    def _stored_files(self, name: str, rows: RowIndices) -> list[str]:
        """Return the files that contain these rows of an array, relative to the folder."""
        array = self._zarr_group[name]
        rows_per_file = (array.shards or array.chunks)[0]
        shards = np.unique(np.asarray(rows) // rows_per_file).tolist()
        names = [f"{name}/c/{shard}{'/0' * (array.ndim - 1)}" for shard in shards]
        # zarr writes no file for a shard of zeros. If a file exists that the marker does not
        # list, it was added later.
        return [file for file in names if file in self._files or os.path.exists(self.path / file)]


def _marker_body(folder: Path) -> Any:
    """Return the content of the marker after checking its schema and fingerprint."""
    body = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    stored_fingerprint = body.pop("sha256")
    schema = body["schema"]
    if schema != STORE_SCHEMA:
        problem = (
            f"has schema {schema!r}, but this version of isweep reads only schema {STORE_SCHEMA}"
        )
        raise _damage_error(folder, MARKER, problem)
    if stored_fingerprint != fingerprint(body):
        raise _damage_error(folder, MARKER, "has changed since it was written")
    return body


def _check_names_and_sizes(folder: Path, files: Mapping[str, FileDigest]) -> None:
    """Check that the arrays have exactly the files and sizes that the marker lists."""
    for name, digest in files.items():
        file = folder / name
        if not file.is_file():
            raise _damage_error(folder, name, "is missing")
        size = file.stat().st_size
        if size != digest.size:
            problem = f"is {size} bytes long, but should be {digest.size} bytes long"
            raise _damage_error(folder, name, problem)
    # zarr writes no file for a shard of zeros. If somebody adds such a file, zarr reads it.
    # The names of these files are numbers.
    for file in folder.glob("*/c/**/[0-9]*"):
        name = file.relative_to(folder).as_posix()
        if file.is_file() and name not in files:
            raise _damage_error(folder, name, "was added after the preparation")


def _damage_error(folder: Path, part: str, problem: str) -> CorruptStoreError:
    """Return the error for a damaged file or array of a store.

    The hint of the error explains how to repair the store.
    """
    return CorruptStoreError(
        f"{part} of prepared dataset {folder.name} {problem}",
        hint=f"Delete the folder {folder}, and prepare the dataset again, for example with "
        "`isweep run`",
    )
