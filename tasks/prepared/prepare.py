"""From a raw download to a prepared dataset: list, read in parallel tasks, write shards, publish at
once.

Nothing under the destination's name exists until it is whole: the store is built in a sibling
folder and renamed. Reading tasks leave part files (:mod:`tasks.prepared.parts`) in another sibling,
so an interrupted preparation goes on, and two preparations of the same data meet without harm: the
first to rename wins, the other finds its result there.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import secrets
import select as waiting
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from stat import S_ISREG
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from search_spaces.datasets import DATASETS
from search_spaces.errors import CorruptStoreError, DataError, SweepError
from search_spaces.fingerprint import canonical_json
from search_spaces.specs import DatasetSpec, PreparedSpec
from tasks.atomic import remove_folder, sync_folder
from tasks.prepared.listings import Listings
from tasks.prepared.parts import (
    Part,
    digest,
    load_part,
    open_images,
    read_block,
    read_part,
    save_part,
)
from tasks.prepared.record import PreparedRecord, make_record
from tasks.prepared.store import MARKER, PreparedDataset, create_store, seal, stamp_file, write_rows
from tasks.prepared.table import ImageTable, gather, keep_per_class, number_groups, select
from tasks.sources.base import Item, Listing, RawRequest, hash_key
from tasks.sources.raw import PACKED_TARS, RefusedArchive, open_archive, split_locator

if TYPE_CHECKING:
    from tasks.remote import Executor

logger = logging.getLogger(__name__)
Progress = Callable[[int, int], None]
"""Called with (items read, items in all)."""

BLOCK_BYTES = 64 << 20
"""Prepared images that one reading task holds at most, whatever the source would like."""
NAME_LENGTH = 32
MAX_MONTAGE_SIDE, PER_LABEL = 128, 8
MAX_TOLD_SKIPS = 10
MAX_GROUP_SHARE = 0.5


def prepare_dataset(
    spec: PreparedSpec,
    dataset: DatasetSpec,
    *,
    raw: Path | None,
    destination: Path,
    executor: Executor,
    max_skipped_share: float = 0.001,
    for_training: bool = True,
    on_progress: Progress = lambda read, total: None,
    readers: Executor | None = None,
    listings: Listings | None = None,
) -> PreparedRecord:
    """Prepare ``dataset`` as ``spec`` says into folder ``destination`` and return its record.

    A whole destination is returned at once; a damaged one is made again. A raw download that is not
    as expected, or has too many items that cannot be used, is a DataError.

    Args:
        spec: Task, side, channels and faults.
        dataset: A row of the table, or of own data.
        raw: Folder or file of the raw download; None for sources that bring their own.
        destination: Where the store goes; its parent also holds the part files and the hash key
            meanwhile.
        executor: Runs the reading and writing tasks; must see ``raw`` and ``destination`` on all
            its nodes.
        max_skipped_share: Largest share of listed items that may be unusable; one always may,
            unless it is 0.
        for_training: Refuse data without a fair split; measuring, which needs none, counts what is
            wrong.
        on_progress: Called after every block of items.
        readers: Runs reading tasks on more nodes, which need not see ``destination``; see
            ``read_blocks``.
        listings: Listings that the command has made already; None makes a new one.
    """
    done = _published(destination, spec)
    if done is not None and (raw is None or dataset.name in DATASETS):
        return done
    started = time.monotonic()
    request = RawRequest(dataset, spec, raw, hash_key(destination.parent))
    listing = (listings or Listings()).of(request)
    raw_id = listing_id(request, listing, listing.items)
    if done is not None and done.raw_id == raw_id:
        return done
    if done is not None:
        way_out = "give the new data another name, or use another --root"
        rule = f"{done.dataset}: the files must be those it was prepared from"
        raise DataError(rule, "files changed since, or label_map did", way_out)
    items = _choose_items(listing.items, spec)
    # The released code does not round after its resize.
    dtype = "float32" if request.has_fault("resize_without_antialias") else listing.dtype
    order = reading_order(request, items)
    items = items if order is None else [items[row] for row in order]
    blocks = cut_blocks(request, listing, items, dtype, destination)
    try:
        parts = read_blocks(request, listing, blocks, dtype, executor, readers, on_progress)
        skipped = _counted_skips(request, listing, parts, max_skipped_share)
        images = _checked(
            listed_order(gather(parts), parts, order), request, max_skipped_share, for_training
        )
        record = make_record(request, listing, dtype, images, parts, skipped, raw_id)
        return build_and_publish(
            record, images, [stem for _, stem in blocks], destination, executor, started
        )
    except FileNotFoundError:
        # Another process published the same dataset and cleared the parts under us.
        if (done := _published(destination, spec)) is None:
            raise
        return done


def prepare_asked() -> None:
    """Prepare what a line on stdin asks for, and say what, until stdin is closed; what fails is
    left.
    """
    from tasks.remote import InlineExecutor

    def go_on() -> None:
        if waiting.select([sys.stdin], [], [], 0)[0]:
            sys.exit()

    folder, share, asked = json.loads(sys.stdin.readline())
    how: dict[str, Any] = {
        "raw": None,
        "executor": InlineExecutor(go_on),
        "max_skipped_share": share,
    }
    for specs in asked:
        spec, dataset = (
            PreparedSpec.model_validate_json(specs[0]),
            DatasetSpec.model_validate_json(specs[1]),
        )
        print(spec.dataset, flush=True)  # noqa: T201
        with suppress(SweepError):
            prepare_dataset(spec, dataset, destination=Path(folder) / spec.prepared_id, **how)


def listing_id(request: RawRequest, listing: Listing, items: Sequence[Item]) -> str:
    """Hash items and all that decides what becomes of them, file sizes and times included.

    A file mended or replaced since gives another hash, so its part is read again. An item may need
    several files; those besides its own are named in its details.
    """
    base = None if request.raw is None else str(request.base())

    @lru_cache(maxsize=1024)  # thousands of members share an archive
    def stamp(name: str) -> tuple[int, int] | None:
        """Return size and time of a plain file, None of anything else: a locator need not be a
        file.
        """
        try:  # pathlib would keep every name
            status = None if base is None else os.stat(os.path.join(base, name))
        except (OSError, ValueError):
            return None
        return (status.st_size, status.st_mtime_ns) if status and S_ISREG(status.st_mode) else None

    total = hashlib.sha256(
        canonical_json([request.spec, list(listing.label_names), listing.dtype]).encode()
    )
    total.update(repr(request.raw and stamp(request.raw.name)).encode())
    for item in items:
        details = (*item.details, *(text for trait in item.traits for text in trait))
        known = (item.locator, item.label, item.group, item.split, details)
        files = [
            split_locator(name)[0] for name in (item.locator, *details) if isinstance(name, str)
        ]
        total.update(
            repr((known, [stamp(file) for file in files])).encode("utf-8", "surrogateescape")
        )
    return total.hexdigest()


class Block(NamedTuple):
    """Items that one task reads, and where its part goes: a name made of all that the part depends
    on.
    """

    items: Sequence[Item]
    stem: Path


def cut_blocks(
    request: RawRequest, listing: Listing, items: Sequence[Item], dtype: str, destination: Path
) -> list[Block]:
    """Cut items, in their reading order, into blocks whose size depends on the data alone."""
    spec, work = request.spec, destination.with_name(f".{destination.name}.parts")
    image_bytes = spec.channels * spec.image_size**2 * np.dtype(dtype).itemsize
    size = max(1, min(listing.block_size, BLOCK_BYTES // image_bytes))
    cut = [items[start : start + size] for start in range(0, len(items), size)]
    return [Block(block, work / listing_id(request, listing, block)[:NAME_LENGTH]) for block in cut]


def read_blocks(
    request: RawRequest,
    listing: Listing,
    blocks: Sequence[Block],
    dtype: str,
    executor: Executor,
    readers: Executor | None,
    on_progress: Progress,
) -> list[Part]:
    """Read every block that has no part yet, and return the parts in order.

    ``readers`` runs tasks on nodes that may see the raw download: there a block is read only when
    its files are the listed ones, by name, size and time, and comes back to be written here. Blocks
    that such a node refuses are read by ``executor``, whose tasks see the raw download and write
    parts.
    """
    total, read, parts = sum(len(block.items) for block in blocks), 0, dict[int, Part]()

    def note(done: Iterable[tuple[int, Part | None]]) -> list[int]:
        """Keep parts and return the places of blocks that have none."""
        nonlocal read
        for index, part in done:
            if part is not None:
                parts[index] = part
                read += len(blocks[index].items)
                on_progress(read, total)
        return [index for index in range(len(blocks)) if index not in parts]

    on_progress(0, total)
    todo = note((index, load_part(block.stem)) for index, block in enumerate(blocks))
    if readers is not None and request.raw is not None:
        away = (
            replace(request, raw=request.raw.absolute()),
            replace(listing, items=(), skipped=()),
            dtype,
        )
        calls = ((*away, blocks[index].items, blocks[index].stem.name) for index in todo)
        for place, found in readers.map_unordered(read_if_same, calls, spread=True):
            if found is not None:
                save_part(blocks[todo[place]].stem, *found)
                note([(todo[place], found[0])])
        if todo := note(()):
            logger.warning(
                "%d blocks are read on the driver's node: elsewhere files differ", len(todo)
            )
    arguments = ((request, *blocks[index], dtype) for index in todo)
    note((todo[place], part) for place, part in executor.map_unordered(read_part, arguments))
    return [parts[index] for index in range(len(blocks))]


def read_if_same(
    request: RawRequest, listing: Listing, dtype: str, items: Sequence[Item], name: str
) -> tuple[Part, list[NDArray[np.generic]]] | None:
    """Read a block on a node whose files are those that were listed; None where they are not."""
    try:
        same = listing_id(request, listing, items)[:NAME_LENGTH] == name
    except (DataError, OSError):
        return None
    return read_block(request, items, dtype) if same else None


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
        spans = [slice(start, start + shard) for start in range(0, record.num_images, shard)]
        shards = (
            (folder, stems, span.start, images.places[span], images.digests[span]) for span in spans
        )
        if len(list(executor.map_unordered(write_shard, shards))) < len(spans):
            raise RuntimeError("a store may only be sealed when no shard is missing")
        for name in ("labels", "groups", "splits"):
            write_rows(folder, name, 0, getattr(images, name))
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        found = dict(executor.map_unordered(stamp_file, ((path,) for path in files)))
        stamps = {
            path.relative_to(folder).as_posix(): found[place] for place, path in enumerate(files)
        }
        record = record.model_copy(update={"seconds": round(time.monotonic() - started, 3)})
        seal(folder, record, stamps)
        record = _move_into_place(folder, destination, record)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    parts = stems[0].parent
    shutil.rmtree(parts, ignore_errors=True)
    if parts.exists():
        logger.warning("part files in %s could not be removed", parts.name)
    return record


def write_shard(
    folder: Path, stems: Sequence[Path], start: int, places: np.ndarray, digests: np.ndarray
) -> None:
    """Copy one shard's images from their parts; one that changed since it was read is a
    CorruptStoreError.
    """
    opened: dict[int, np.ndarray] = {}
    rows = []
    for (part, row), expected in zip(places.tolist(), digests, strict=True):
        if part not in opened:
            opened = {part: open_images(stems[part])}  # one mapped part at a time
        rows.append(np.array(opened[part][row]))
        if digest(rows[-1]) != expected.tobytes():
            way_out = f"delete folder {stems[part].parent.name} and prepare again"
            raise CorruptStoreError(
                f"Part {part} must be as it was written", "another checksum", way_out
            )
    write_rows(folder, "images", start, np.stack(rows))


def _move_into_place(folder: Path, destination: Path, record: PreparedRecord) -> PreparedRecord:
    """Rename; when a whole store is already there it wins, since equal specs and files give equal
    content.
    """
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
            remove_folder(destination)
    raise CorruptStoreError(
        f"{destination.name} must stay whole while it is published", "damaged thrice"
    )


def save_montage(prepared: PreparedDataset, path: Path) -> None:
    """Write a PNG with one row per label of up to eight seeded examples: pictures of patients are
    private.
    """
    from PIL import Image

    rng = np.random.default_rng(0)
    side = prepared.row_shape[1]
    step = max(1, side // MAX_MONTAGE_SIDE)
    rows = []
    for label in range(len(prepared.label_names)):
        members = np.flatnonzero(prepared.labels == label)
        chosen = rng.permutation(members)[:PER_LABEL]
        shown = prepared.read_rows(chosen)[:, :, ::step, ::step].astype(np.uint8)
        strip = np.zeros((PER_LABEL, *shown.shape[1:]), np.uint8)
        strip[: len(shown)] = shown
        rows.append(np.concatenate(list(strip), axis=2))
    sheet = np.concatenate(rows, axis=1).transpose(1, 2, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet[..., 0] if sheet.shape[2] == 1 else sheet).save(path, format="PNG")


def reading_order(request: RawRequest, items: Sequence[Item]) -> NDArray[np.intp] | None:
    """Return the places of items in the order in which packed tars, read forward only, store them.

    None when every order costs the same: no such archive, or none with several items in it.
    """
    chains = [tuple(split_locator(item.locator)[:-1]) for item in items]
    chains = [
        chain if chain and chain[-1].lower().endswith(PACKED_TARS) else () for chain in chains
    ]
    stored: dict[tuple[str, ...], dict[str, int]] = {}
    for chain, count in sorted(Counter(chains).items()):
        if chain and count > 1:
            with suppress(RefusedArchive):
                members = open_archive(request.base() / chain[0], chain[1:]).members()
                stored[chain] = {name: position for position, name in enumerate(members)}
    if not stored:
        return None
    keys: list[tuple[tuple[str, ...], int, int]] = []
    for place, (chain, item) in enumerate(zip(chains, items, strict=True)):
        known = chain in stored
        position = stored[chain].get(split_locator(item.locator)[-1], 0) if known else place
        keys.append((chain if known else (), position, place))
    return np.array([place for _, _, place in sorted(keys)], dtype=np.intp)


def listed_order(
    images: ImageTable, parts: Sequence[Part], order: NDArray[np.intp] | None
) -> ImageTable:
    """Return images in the order of their listed items, however they were read."""
    if order is None:
        return images
    starts = np.cumsum([0, *(part.num_items for part in parts)])
    read = np.concatenate(
        [start + part.rows["item"] for start, part in zip(starts, parts, strict=False)]
    )
    return images.take(np.argsort(order[read], kind="stable"))


def _checked(
    images: ImageTable, request: RawRequest, allowed: float, for_training: bool
) -> ImageTable:
    """Keep the images that the spec asks for; there must be some, and to train on, a fair split of
    them.
    """
    name = request.dataset.name
    images = select(images, request.spec)
    num_images = len(images.labels)
    if not num_images:
        raise request.error("preparation must keep at least one image", "none was usable")
    if images.num_conflicts:
        logger.warning("%s: %d images have a twin with another label", name, images.num_conflicts)
    if not for_training:
        return images
    largest = int(np.unique(images.groups, return_counts=True)[1].max())
    if largest > MAX_GROUP_SHARE * num_images and num_images > 2:
        raise request.error(
            "groups (patients) must be small enough to split the images between training and test",
            f"one group holds {largest} of {num_images} images",
            "give ids that tell patients apart",
        )
    groups_of = [
        np.unique(images.groups[images.labels == label]) for label in np.unique(images.labels)
    ]
    if num_images > len(groups_of) > 1 and all(len(groups) == 1 for groups in groups_of):
        raise request.error(
            "a class must have images of several groups (patients)",
            f"one group for each of the {len(groups_of)} classes",
            "the group column or the subfolders must tell patients, not classes",
        )
    # The released extraction gives one frame several labels (F33); that is part of what it shows.
    if images.num_conflicts > allowed * num_images and request.spec.data_mode == "corrected":
        raise request.error(
            f"at most {allowed:.2%} of the images may equal an image with another label",
            f"{images.num_conflicts} of {num_images}",
            f"correct the labels, raise image_size{_allowing(images.num_conflicts, num_images)}",
        )
    return images


def _allowing(found: int, total: int) -> str:
    """Say which option would let it pass, unless most of them are concerned."""
    share = math.ceil(1000 * found / total) / 10
    return f", or allow more: --max-skipped-share {share:g}%" if share < 50 else ""


def _published(destination: Path, spec: PreparedSpec) -> PreparedRecord | None:
    """Return the record of a whole destination; None when there is nothing or only debris of
    ours.
    """
    if not destination.exists():
        return None
    try:
        record = PreparedDataset.open(destination).record
    except CorruptStoreError as error:
        ours = destination.is_dir() and any(
            (destination / name).exists() for name in (MARKER, "zarr.json")
        )
        if not ours and any(destination.iterdir()):
            rule = f"{destination.name} must be a prepared dataset or not exist"
            raise DataError(rule, "other files", "choose another --root") from error
        logger.warning(
            "prepared dataset %s is damaged and is made again: %s", destination.name, error
        )
        return None
    if record.prepared_id != spec.prepared_id:
        rule = f"{destination.name} must hold prepared dataset {spec.prepared_id}"
        raise DataError(rule, record.prepared_id, "choose another destination")
    return record


def _choose_items(items: Sequence[Item], spec: PreparedSpec) -> Sequence[Item]:
    """Keep ``max_images_per_class`` before reading, where labels are known from the listing."""
    limit = spec.max_images_per_class
    if limit is None or any(item.label is None for item in items):
        return items
    labels = np.array([item.label for item in items])
    # An image without a group is its own; the mark keeps its name apart from every group's.
    names = np.array([item.group or f"\0{item.locator}" for item in items])
    return [items[row] for row in keep_per_class(labels, number_groups(names), spec, limit)]


def _counted_skips(
    request: RawRequest, listing: Listing, parts: Sequence[Part], allowed: float
) -> list[tuple[str, str]]:
    """Return pairs (keyed hash of the locator, reason) of what could not be used, if it is not too
    much.
    """
    skipped = [(request.hashed(locator), reason) for locator, reason in listing.skipped]
    skipped += [pair for part in parts for pair in part.skipped]
    if not skipped:
        return []
    name, total = request.dataset.name, len(listing.skipped) + sum(part.num_items for part in parts)
    reasons = Counter(reason for _, reason in skipped)
    counts = ", ".join(f"{reason}: {count}" for reason, count in reasons.items())
    logger.warning("%s: %d of %d items skipped: %s", name, len(skipped), total, counts)
    most = max(allowed * total, 1) if allowed else 0
    if len(skipped) > most:
        listed = "; ".join(f"{locator} {reason}" for locator, reason in skipped[:MAX_TOLD_SKIPS])
        raise request.error(
            f"at most {most:,.0f} of {total:,} items ({allowed:.2%}) may be unusable",
            f"{len(skipped)} ({counts}), first (hashed names): {listed}",
            f"isweep locate HASH --raw DIR finds one; mend them{_allowing(len(skipped), total)}",
        )
    return skipped
