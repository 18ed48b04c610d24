"""From a raw download to a prepared dataset: list, read in parallel tasks, write shards, publish at once.

Nothing under the destination's name exists until it is whole: the store is built in a sibling folder and
renamed. Reading tasks leave part files (:mod:`tasks.parts`) in another sibling, so an interrupted
preparation goes on, and two preparations of the same data meet without harm: the first to rename wins, the
other finds its result there.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from search_spaces.errors import CorruptStoreError, DataError
from search_spaces.fingerprint import canonical_json
from search_spaces.specs import DatasetSpec, PreparedSpec
from tasks.arrays import MARKER, PreparedDataset, PreparedRecord, create_store, seal, write_rows
from tasks.image_table import ImageTable, content_fingerprint, dense, gather, keep_per_class, select
from tasks.parts import Part, digest, load_part, open_images, read_block
from tasks.privacy import hash_key, keyed_hash, spell
from tasks.sources import source_for
from tasks.sources.base import Item, Listing, RawRequest

if TYPE_CHECKING:
    from tasks.remote import Executor

__all__ = ["PreparedRecord", "Progress", "prepare_dataset"]

logger = logging.getLogger(__name__)
Progress = Callable[[int, int], None]
"""Called with (items read, items in all)."""

BLOCK_BYTES = 64 << 20
"""Prepared images that one reading task holds at most, whatever the source would like."""
MAX_LISTED_SKIPS = 50
MAX_LOGGED_SKIPS = 5


def prepare_dataset(
    spec: PreparedSpec,
    dataset: DatasetSpec,
    *,
    raw: Path | None,
    destination: Path,
    executor: Executor,
    max_skipped_share: float = 0.001,
    on_progress: Progress | None = None,
) -> PreparedRecord:
    """Prepare ``dataset`` as ``spec`` says into folder ``destination`` and return its record.

    A whole destination is returned at once; a damaged one is made again.

    Args:
        spec: Task, side, channels and faults.
        dataset: The table's row, or one from ``own_dataset_spec``.
        raw: Folder or file of the raw download; None for sources that bring their own.
        destination: Where the store goes; its parent also holds the part files and the hash key meanwhile.
        executor: Runs the reading and writing tasks; must see ``raw`` and ``destination`` on all its nodes.
        max_skipped_share: Largest share of listed items that may be unusable.
        on_progress: Called after every block of items.

    Raises:
        DataError: when the raw download is not as expected, or too many items cannot be used.
    """
    done = _published(destination, spec)
    if done is not None:
        return done
    started = time.monotonic()
    request = RawRequest(dataset, spec, raw)
    key = hash_key(destination.parent)
    listing = source_for(dataset.source).list_items(request)
    if not listing.items:
        raise DataError(f"{dataset.name}: the raw download must hold images", "none", dataset.raw_layout)
    dtype = "float32" if request.has_fault("resize_without_antialias") else listing.dtype
    items = _choose_items(listing.items, spec)
    work = destination.parent / f".{destination.name}.parts-{_listing_id(spec, listing, items, key)}"
    blocks = _blocks(items, listing.block_size, spec, dtype)
    try:
        parts = _read_parts(request, blocks, work, key, dtype, executor, on_progress)
        images = gather(parts)
        early = [(spell(keyed_hash(key, locator)), reason) for locator, reason in listing.skipped]
        skipped = early + [pair for part in parts for pair in part.skipped]
        _check_skips(dataset.name, skipped, len(items) + len(early), max_skipped_share)
        images = select(images, spec)
        if not len(images.labels):
            raise DataError(f"{dataset.name}: preparation must keep at least one image", "none was usable")
        record = _record(request, listing, images, parts, skipped, dtype)
        return _build_and_publish(record, images, work, destination, executor, started)
    except FileNotFoundError:
        # Another process published the same dataset and cleared the parts under us.
        finished = _published(destination, spec)
        if finished is None:
            raise
        return finished


def _published(destination: Path, spec: PreparedSpec) -> PreparedRecord | None:
    """Return the record of a whole destination; None when there is nothing or only debris of ours."""
    if not destination.exists():
        return None
    try:
        record = PreparedDataset.open(destination).record
    except CorruptStoreError as error:
        ours = destination.is_dir() and any((destination / name).exists() for name in (MARKER, "zarr.json"))
        if not ours and any(destination.iterdir()):
            rule = f"{destination.name} must be a prepared dataset or not exist"
            raise DataError(rule, "other files", "choose another --root") from error
        logger.warning("prepared dataset %s is damaged and is made again: %s", destination.name, error)
        return None
    if record.prepared_id != spec.prepared_id:
        rule = f"{destination.name} must hold prepared dataset {spec.prepared_id}"
        raise DataError(rule, record.prepared_id, "choose another destination")
    return record


def _listing_id(spec: PreparedSpec, listing: Listing, items: Sequence[Item], key: str) -> str:
    """Name the part files after everything they depend on, hashed with the key since locators may name
    people.
    """
    total = hashlib.blake2b(key=key.encode()[:64], digest_size=8)
    total.update(canonical_json([spec, list(listing.label_names), listing.dtype]).encode())
    for item in items:
        total.update(
            repr((item.locator, item.label, item.group, item.split, item.details)).encode("utf-8", "replace")
        )
    return total.hexdigest()


def _choose_items(items: Sequence[Item], spec: PreparedSpec) -> Sequence[Item]:
    """Keep ``max_images_per_class`` before reading, where labels are known from the listing."""
    if spec.max_images_per_class is None or any(item.label is None for item in items):
        return items
    labels = np.array([item.label for item in items])
    names = [item.group or f"{item.locator}\0" for item in items]
    return [items[row] for row in keep_per_class(labels, np.array(dense(names)), spec)]


def _blocks(items: Sequence[Item], wanted: int, spec: PreparedSpec, dtype: str) -> list[Sequence[Item]]:
    """Cut items into blocks whose size depends on the data only, never on the number of workers."""
    image_bytes = spec.channels * spec.image_size**2 * np.dtype(dtype).itemsize
    size = max(1, min(wanted, BLOCK_BYTES // image_bytes))
    return [items[start : start + size] for start in range(0, len(items), size)]


def part_stem(work: Path, index: int) -> Path:
    """Return the path of a part's files without their ending."""
    return work / f"{index:07d}"


def _read_parts(
    request: RawRequest,
    blocks: Sequence[Sequence[Item]],
    work: Path,
    key: str,
    dtype: str,
    executor: Executor,
    on_progress: Progress | None,
) -> list[Part]:
    total = sum(map(len, blocks))
    parts: dict[int, Part] = {}
    for index in range(len(blocks)):
        part = load_part(part_stem(work, index))
        if part is not None:
            parts[index] = part
    todo = [index for index in range(len(blocks)) if index not in parts]
    read = sum(len(blocks[index]) for index in parts)
    arguments: Iterator[tuple[object, ...]] = (
        (request, blocks[index], part_stem(work, index), key, dtype) for index in todo
    )
    if on_progress:
        on_progress(read, total)
    for place, part in executor.map_unordered(read_block, arguments):
        parts[todo[place]] = part
        read += len(blocks[todo[place]])
        if on_progress:
            on_progress(read, total)
    return [parts[index] for index in range(len(blocks))]


def _check_skips(name: str, skipped: Sequence[tuple[str, str]], total: int, allowed: float) -> None:
    if not skipped:
        return
    reasons = Counter(reason for _, reason in skipped)
    logger.warning("%s: %d of %d items skipped: %s", name, len(skipped), total, dict(reasons))
    if len(skipped) > allowed * total:
        listed = "; ".join(f"{locator} {reason}" for locator, reason in skipped[:MAX_LISTED_SKIPS])
        raise DataError(
            f"{name}: at most {allowed:.2%} of the items may be unusable",
            f"{len(skipped)} of {total}, by reason {dict(reasons)}, first (hashed names): {listed}",
            "mend the files, or raise the allowed share (max_skipped_share)",
        )


def _record(
    request: RawRequest,
    listing: Listing,
    images: ImageTable,
    parts: Sequence[Part],
    skipped: Sequence[tuple[str, str]],
    dtype: str,
) -> PreparedRecord:
    spec, dataset = request.spec, request.dataset
    names = tuple(listing.label_names)
    shape = (len(images.labels), spec.channels, spec.image_size, spec.image_size)
    header: dict[str, object] = {"dtype": dtype, "shape": shape, "label_names": names}
    groups_of = [np.unique(images.groups[images.labels == label]) for label in range(len(names))]
    return PreparedRecord(
        fingerprint=content_fingerprint(images, header),
        prepared_id=spec.prepared_id,
        dataset=dataset.name,
        source=dataset.source,
        title=dataset.title,
        modality=dataset.modality,
        domain=dataset.domain,
        task=spec.task,
        data_mode=spec.data_mode,
        faults=tuple(spec.faults),
        label_names=names,
        num_images=shape[0],
        num_groups=len(np.unique(images.groups)),
        num_images_per_label={name: int((images.labels == label).sum()) for label, name in enumerate(names)},
        num_groups_per_label={name: len(groups_of[label]) for label, name in enumerate(names)},
        num_listed=len(listing.items) + len(listing.skipped),
        num_skipped=len(skipped),
        excluded=dict(listing.excluded),
        skipped=dict(Counter(reason for _, reason in skipped)),
        skipped_items=tuple(skipped[:MAX_LISTED_SKIPS]),
        conversions=dict(sum((Counter(part.conversions) for part in parts), Counter())),
        flags=dict(sum((Counter(part.flags) for part in parts), Counter(listing.flags))),
        num_duplicates=images.num_duplicates,
        num_conflicts=images.num_conflicts,
        intensity=listing.intensity,
        pixel_range=(0.0, 255.0),
        dtype=dtype,
        shape=shape,
        seconds=0.0,
    )


def _build_and_publish(
    record: PreparedRecord,
    images: ImageTable,
    work: Path,
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
        written = executor.map_unordered(
            write_shard,
            (
                (
                    folder,
                    work,
                    start,
                    images.places[start : start + shard],
                    images.digests[start : start + shard],
                )
                for start in starts
            ),
        )
        assert sum(1 for _ in written) == len(starts), "the executor must return every result"
        for name in ("labels", "groups", "splits"):
            write_rows(folder, name, 0, getattr(images, name))
        record = replace(record, seconds=round(time.monotonic() - started, 3))
        seal(folder, record)
        record = _move_into_place(folder, destination, record)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    _clear(work)
    return record


def write_shard(folder: Path, work: Path, start: int, places: np.ndarray, digests: np.ndarray) -> None:
    """Copy one shard's images from their parts, checking that they are those that were read.

    Raises:
        CorruptStoreError: when a part file has changed since.
    """
    opened: dict[int, np.ndarray] = {}
    rows = []
    for (part, row), expected in zip(places.tolist(), digests.tolist(), strict=True):
        if part not in opened:
            opened = {part: open_images(part_stem(work, part))}  # one mapped part at a time
        rows.append(np.array(opened[part][row]))
        if digest(rows[-1]) != expected:
            way_out = f"delete folder {work.name} and prepare again"
            raise CorruptStoreError(f"Part {part} must be as it was written", "another checksum", way_out)
    write_rows(folder, "images", start, np.stack(rows))


def _move_into_place(folder: Path, destination: Path, record: PreparedRecord) -> PreparedRecord:
    """Rename; when a whole store is already there it wins, since equal specs and files give equal content."""
    for _ in range(3):
        try:
            folder.rename(destination)
            return record
        except OSError:
            if not destination.exists():
                raise
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
