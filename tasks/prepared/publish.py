"""Write a prepared dataset. The folder of the dataset appears only when the dataset is
complete.
"""

from __future__ import annotations

import logging
import secrets
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import CorruptStoreError, DataError
from search_spaces.specs import PreparedSpec
from tasks.atomic import remove_folder, sync_folder
from tasks.prepared.parts import Image, digest, open_images
from tasks.prepared.reading import Reading
from tasks.prepared.record import PreparedRecord
from tasks.prepared.store import (
    MARKER,
    METADATA_ARRAYS,
    PreparedDataset,
    create_store,
    flush_and_hash,
    write_marker,
    write_rows,
)
from tasks.prepared.table import ImageTable

if TYPE_CHECKING:
    from tasks.remote import Executor

logger = logging.getLogger(__name__)
MAX_ATTEMPTS = 3
"""Number of attempts to move the store to a destination with a damaged store."""


def published_record(destination: Path, spec: PreparedSpec) -> PreparedRecord | None:
    """Return the record of a preparation that is finished.

    Returns:
        The record; None if the destination does not exist, or contains a damaged store.

    Raises:
        DataError: The destination contains other files, or another prepared dataset.
    """
    if not destination.exists():
        return None
    try:
        record = PreparedDataset.open(destination).record
    except CorruptStoreError as error:
        is_ours = (destination / MARKER).exists() or (destination / "zarr.json").exists()
        if not is_ours and any(destination.iterdir()):
            raise DataError(
                f"The folder {destination} contains files that isweep did not write",
                hint="Move these files away, or choose another --root",
            ) from error
        logger.warning(
            "prepared dataset %s is damaged, so it is prepared again: %s",
            destination.name,
            error.problem,
        )
        return None
    if record.prepared_id != spec.prepared_id:
        raise DataError(
            f"{destination.name} contains the prepared dataset {record.prepared_id}, but "
            f"{spec.prepared_id} is requested",
            hint="Choose another destination",
        )
    return record


def build_and_publish(
    record: PreparedRecord,
    reading: Reading,
    destination: Path,
    executor: Executor,
    started: float,
) -> PreparedRecord:
    """Write the store into a sibling folder, rename this folder, and remove the part files.

    Args:
        record: The record of the dataset. Its duration is not known yet.
        reading: The images to write, and the blocks whose part files contain them.
        destination: The folder of the store.
        executor: Executor that runs the writing tasks.
        started: Value of ``time.monotonic()`` when the preparation began.

    Returns:
        The record of the store at the destination.
    """
    folder = destination.parent / f".{destination.name}.{secrets.token_hex(4)}"
    stems = [block.stem for block in reading.blocks]
    try:
        _write_arrays(folder, record, reading.images, stems, executor)
        paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        file_digests = {}
        calls = [(path,) for path in paths]
        for path_index, file_digest in executor.map_unordered(flush_and_hash, calls):
            file_digests[paths[path_index].relative_to(folder).as_posix()] = file_digest
        seconds = round(time.monotonic() - started, 3)
        record = record.model_copy(update={"seconds": seconds})
        write_marker(folder, record, file_digests)
        record = _move_into_place(folder, destination, record)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    parts_folder = stems[0].parent
    shutil.rmtree(parts_folder, ignore_errors=True)
    if parts_folder.exists():
        logger.warning(
            "part files in %s could not be removed; you can delete this folder", parts_folder.name
        )
    return record


def _write_arrays(
    folder: Path,
    record: PreparedRecord,
    images: ImageTable,
    stems: Sequence[Path],
    executor: Executor,
) -> None:
    """Write all arrays of a store.

    Each shard of images is written by one task. Then this process writes the small arrays.
    """
    shard_rows = create_store(
        folder, num_images=record.num_images, image_shape=record.shape[1:], dtype=record.dtype
    )
    starts = range(0, record.num_images, shard_rows)
    calls = []
    for start in starts:
        rows = slice(start, start + shard_rows)
        calls.append((folder, stems, start, images.part_rows[rows], images.digests[rows]))
    num_written = sum(1 for _ in executor.map_unordered(write_shard, calls))
    if num_written < len(starts):
        raise RuntimeError("a shard is missing, so the store is not complete")
    for name in METADATA_ARRAYS:
        write_rows(folder, name, 0, getattr(images, name))


def write_shard(
    folder: Path,
    stems: Sequence[Path],
    start: int,
    part_rows: NDArray[np.int32],
    digests: NDArray[np.void],
) -> None:
    """Copy the images of one shard from the part files to the store.

    Args:
        folder: The folder of the store.
        stems: Paths of the part files without file extension.
        start: Row, in the store, of the first image of the shard.
        part_rows: ``(num_images, 2)`` index of the part that contains each image, and row of
            the image in this part.
        digests: ``(num_images,)`` SHA-256 of each image from the time when the image was read.

    Raises:
        CorruptStoreError: An image in a part file has changed since it was read.
    """
    rows: list[Image] = []
    opened_part = -1
    for (part, row), expected in zip(part_rows.tolist(), digests, strict=True):
        if part != opened_part:  # only one part is open at a time
            part_images = open_images(stems[part])
            opened_part = part
        rows.append(np.array(part_images[row]))
        if digest(rows[-1]) != expected.tobytes():
            raise CorruptStoreError(
                f"The temporary file of part {part} of the dataset has changed since isweep "
                "wrote it",
                hint=f"Delete the folder {stems[part].parent.name} and prepare the dataset again",
            )
    write_rows(folder, "images", start, np.stack(rows))


def _move_into_place(
    folder: Path,
    destination: Path,
    record: PreparedRecord,
) -> PreparedRecord:
    """Rename the folder of a store to its destination.

    If the destination already contains an undamaged store, this store is not replaced, because
    equal specs and files result in equal content.
    """
    for _ in range(MAX_ATTEMPTS):
        try:
            folder.rename(destination)
        except OSError:
            if not destination.exists():
                raise
        else:
            sync_folder(destination.parent)
            return record
        try:
            return PreparedDataset.open(destination).record
        except CorruptStoreError:
            remove_folder(destination)
    raise CorruptStoreError(
        f"The prepared dataset {destination.name} was damaged after each of {MAX_ATTEMPTS} "
        "attempts to write it",
        hint="Check the disk, and stop other programs that write to this folder",
    )
