"""Write a prepared store beside its destination, seal it, and rename it into place."""

from __future__ import annotations

import logging
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from search_spaces.errors import CorruptStoreError
from tasks.atomic import sync_folder
from tasks.preparation.image_table import ImageTable
from tasks.preparation.parts import digest, open_images
from tasks.prepared.dataset import (
    PreparedDataset,
    PreparedRecord,
    create_store,
    seal,
    stamp_file,
    stored_files,
    write_rows,
)

if TYPE_CHECKING:
    from tasks.remote import Executor

logger = logging.getLogger(__name__)


def build_and_publish(
    record: PreparedRecord,
    images: ImageTable,
    stems: Sequence[Path],
    destination: Path,
    executor: Executor,
    started: float,
) -> PreparedRecord:
    """Write the store in a sibling folder of our own, seal it, rename it, clear the part files."""
    folder = destination.parent / f".{destination.name}.{secrets.token_hex(4)}"
    try:
        shard = create_store(
            folder, num_images=record.num_images, image_shape=record.shape[1:], dtype=record.dtype
        )
        starts = range(0, record.num_images, shard)
        shards = (
            (
                folder,
                stems,
                start,
                images.places[start : start + shard],
                images.digests[start : start + shard],
            )
            for start in starts
        )
        _results(executor, write_shard, shards, len(starts))
        for name in ("labels", "groups", "splits"):
            write_rows(folder, name, 0, getattr(images, name))
        files = stored_files(folder)
        found = _results(executor, stamp_file, ((path,) for path in files), len(files))
        names = (path.relative_to(folder).as_posix() for path in files)
        stamps = dict(zip(names, found, strict=True))
        record = replace(record, seconds=round(time.monotonic() - started, 3))
        seal(folder, record, stamps)
        record = _move_into_place(folder, destination, record)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    _clear(stems[0].parent)
    return record


def _results(
    executor: Executor,
    function: Callable[..., Any],
    argument_tuples: Iterable[Sequence[Any]],
    num_calls: int,
) -> list[Any]:
    """Make all calls and return their results in order; a store may only be sealed when none is missing."""
    found = dict(executor.map_unordered(function, argument_tuples))
    if found.keys() != set(range(num_calls)):
        raise RuntimeError(f"{function.__name__}: {len(found)} results came back of {num_calls} calls")
    return [found[index] for index in range(num_calls)]


def write_shard(
    folder: Path, stems: Sequence[Path], start: int, places: np.ndarray, digests: np.ndarray
) -> None:
    """Copy one shard's images from their parts, checking that they are those that were read.

    Raises:
        CorruptStoreError: when a part file has changed since.
    """
    opened: dict[int, np.ndarray] = {}
    rows = []
    for (part, row), expected in zip(places.tolist(), digests, strict=True):
        if part not in opened:
            opened = {part: open_images(stems[part])}  # one mapped part at a time
        rows.append(np.array(opened[part][row]))
        if digest(rows[-1]) != expected.tobytes():
            way_out = f"delete folder {stems[part].parent.name} and prepare again"
            raise CorruptStoreError(f"Part {part} must be as it was written", "another checksum", way_out)
    write_rows(folder, "images", start, np.stack(rows))


def _move_into_place(folder: Path, destination: Path, record: PreparedRecord) -> PreparedRecord:
    """Rename; when a whole store is already there it wins, since equal specs and files give equal content."""
    for _ in range(3):
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
            debris = destination.with_name(f".{destination.name}.damaged-{secrets.token_hex(4)}")
            destination.rename(debris)
            shutil.rmtree(debris, ignore_errors=True)
    raise CorruptStoreError(
        f"{destination.name} must stay whole while it is published", "damaged three times"
    )


def _clear(folder: Path) -> None:
    """Remove part files that are no longer needed; what cannot be removed is only wasted disk."""
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        pass  # another process that prepared the same data was faster
    except OSError as error:
        logger.warning("part files in %s could not be removed: %s", folder.name, error.strerror)
