"""Preparing a dataset from its raw download: list, read in parallel tasks, check, publish.

The store is built in a sibling folder of the destination and renamed. Part files lie in another
sibling, so that an interrupted preparation goes on. Two preparations of the same data do not harm
each other: the first to rename wins, and the other returns its result.
"""

from __future__ import annotations

import json
import logging
import math
import select
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from search_spaces.datasets import DATASETS
from search_spaces.errors import DataError, SweepError
from search_spaces.specs import DatasetSpec, PreparedSpec
from tasks.prepared.blocks import Progress, cut_blocks, listed_order, read_blocks, reading_order
from tasks.prepared.listings import Listings
from tasks.prepared.parts import Part, PixelType, Skip
from tasks.prepared.preparation import Preparation
from tasks.prepared.publish import build_and_publish, published_record
from tasks.prepared.record import PreparedRecord, make_record
from tasks.prepared.table import ImageTable, choose_images, gather, keep_per_class, number_groups
from tasks.sources.base import Item, Listing, RawRequest, hash_key

if TYPE_CHECKING:
    from tasks.remote import Executor

logger = logging.getLogger(__name__)
MAX_LISTED_SKIPS = 10
"""Skipped items that an error message names, at most."""
MAX_GROUP_SHARE = 0.5
"""Share of the images that one group may hold, so that a split by groups is possible."""


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
    """Prepare a dataset into a folder.

    A finished preparation is returned at once. Only your own data are first compared with the raw
    files. A damaged preparation is made again.

    Args:
        spec: Task, side, channels and faults.
        dataset: A row of the table, or of your own data.
        raw: Folder or file of the raw download; None for sources that need none.
        destination: Where the store goes. Its parent also holds the hash key, and the part files
            until the store is complete.
        executor: Runs the reading and writing tasks; must see ``raw`` and ``destination`` on all
            its nodes.
        max_skipped_share: Largest share of listed items that may be unusable; one always may,
            unless this is 0. For training on corrected data it is also the largest share of images
            that may equal an image with another label.
        for_training: Refuse data without a fair split. Measuring needs no split.
        on_progress: Called after every block of items.
        readers: Runs reading tasks on more nodes, which need not see ``destination``; see
            :func:`~tasks.prepared.blocks.read_blocks`.
        listings: Listings that the command has made already; None makes a new one.

    Returns:
        The record of the store at the destination.

    Raises:
        DataError: The raw download is not as expected, has too many unusable items, or changed
            since it was prepared.
    """
    finished = published_record(destination, spec)
    if finished is not None and (raw is None or dataset.name in DATASETS):
        return finished
    started = time.monotonic()
    request = RawRequest(dataset, spec, raw, hash_key(destination.parent))
    listing = (listings or Listings()).of(request)
    dtype: PixelType = listing.dtype
    if request.has_fault("resize_without_antialias"):
        dtype = "float32"  # the released code does not round after its resize
    preparation = Preparation(request, listing, dtype)
    raw_id = preparation.id_of(listing.items)
    if finished is not None:
        _check_unchanged(finished, raw_id)
        return finished
    items = _choose_items(listing.items, spec)
    order = reading_order(request, items)
    if order is not None:
        items = [items[index] for index in order]
    parts_folder = destination.with_name(f".{destination.name}.parts")
    blocks = cut_blocks(preparation, items, parts_folder)
    try:
        parts = read_blocks(preparation, blocks, executor, readers, on_progress)
        skipped = _collect_skips(request, listing, parts, max_skipped_share)
        images = choose_images(listed_order(gather(parts), parts, order), spec)
        _check_images(images, request, max_skipped_share, for_training=for_training)
        record = make_record(request, listing, dtype, images, parts, skipped, raw_id)
        stems = [block.stem for block in blocks]
        return build_and_publish(record, images, stems, destination, executor, started)
    except FileNotFoundError:
        # Another process published the same dataset and removed the parts.
        finished = published_record(destination, spec)
        if finished is None:
            raise
        return finished


def prepare_from_stdin() -> None:
    """Prepare the datasets that one line on stdin lists, until stdin is closed.

    The line is a JSON list: the folder of prepared datasets, the share of items that may be
    unusable, and pairs (preparation, dataset) of specs. The name of each dataset is printed before
    it is prepared. Errors are ignored here: the caller tries again and then sees the error.
    """
    from tasks.remote import InlineExecutor

    def end_if_closed() -> None:
        readable, _, _ = select.select([sys.stdin], [], [], 0)
        if readable:
            sys.exit()

    folder, max_skipped_share, specs = json.loads(sys.stdin.readline())
    for prepared_json, dataset_json in specs:
        spec = PreparedSpec.model_validate_json(prepared_json)
        dataset = DatasetSpec.model_validate_json(dataset_json)
        print(spec.dataset, flush=True)  # noqa: T201
        with suppress(SweepError):
            prepare_dataset(
                spec,
                dataset,
                raw=None,
                destination=Path(folder) / spec.prepared_id,
                executor=InlineExecutor(end_if_closed),
                max_skipped_share=max_skipped_share,
            )


def _check_unchanged(finished: PreparedRecord, raw_id: str) -> None:
    """Raise a DataError if the raw files are not those that a dataset was prepared from."""
    if finished.raw_id != raw_id:
        raise DataError(
            f"{finished.dataset}: the files or label_map have changed since the dataset was "
            "prepared",
            hint="Give the new data another name, or use another --root",
        )


def _choose_items(items: Sequence[Item], spec: PreparedSpec) -> Sequence[Item]:
    """Apply ``max_images_per_class`` before reading, if the listing has all labels."""
    limit = spec.max_images_per_class
    if limit is None or any(item.label is None for item in items):
        return items
    labels = np.array([item.label for item in items])
    # An image without a group is its own; the null byte keeps its name apart from every group's.
    groups = np.array([item.group or f"\0{item.locator}" for item in items])
    rows = keep_per_class(labels, number_groups(groups), spec, limit)
    return [items[row] for row in rows]


def _collect_skips(
    request: RawRequest, listing: Listing, parts: Sequence[Part], max_share: float
) -> list[Skip]:
    """Return all items that could not be used, of the listing and of the parts.

    Raises:
        DataError: There are too many.
    """
    skipped = [Skip(request.hashed(locator), reason) for locator, reason in listing.skipped]
    total = len(listing.skipped)
    for part in parts:
        skipped += part.skipped
        total += part.num_items
    if not skipped:
        return []
    reasons = Counter(skip.reason for skip in skipped)
    counts = ", ".join(f"{reason}: {count}" for reason, count in reasons.items())
    logger.warning(
        "%s: %d of %d items skipped: %s", request.dataset.name, len(skipped), total, counts
    )
    max_skipped = max(max_share * total, 1) if max_share else 0
    if len(skipped) <= max_skipped:
        return skipped
    listed = "; ".join(f"{locator} {reason}" for locator, reason in skipped[:MAX_LISTED_SKIPS])
    hint = "Find an item with isweep locate HASH --raw DIR, and mend it"
    raise request.error(
        f"{len(skipped)} of {total:,} items cannot be used ({counts}); at most {max_skipped:,.0f} "
        f"({max_share:.2%}) may be left out. First ones, by hashed name: {listed}",
        hint=hint + _option_to_allow(len(skipped), total),
    )


def _check_images(
    images: ImageTable, request: RawRequest, max_conflict_share: float, *, for_training: bool
) -> None:
    """Check that there are images, and for training that a fair split of them is possible.

    Raises:
        DataError: They cannot be used.
    """
    num_images = len(images.labels)
    num_conflicts = images.num_conflicts
    if num_images == 0:
        raise request.error("none of the images can be used")
    if num_conflicts:
        logger.warning(
            "%s: %d images have a twin with another label", request.dataset.name, num_conflicts
        )
    if not for_training:
        return
    _check_groups(images, request)
    # Released data repeat one frame under several labels, so conflicts are expected (F33 in
    # docs/faults.md).
    is_corrected = request.spec.data_mode == "corrected"
    if is_corrected and num_conflicts > max_conflict_share * num_images:
        hint = "Correct the labels, raise image_size"
        raise request.error(
            f"{num_conflicts} of {num_images} images equal an image with another label; at most "
            f"{max_conflict_share:.2%} may",
            hint=hint + _option_to_allow(num_conflicts, num_images),
        )


def _check_groups(images: ImageTable, request: RawRequest) -> None:
    """Raise a DataError if groups are too large, or are the classes."""
    num_images = len(images.labels)
    _, group_sizes = np.unique(images.groups, return_counts=True)
    # A group stays on one side of the split. One large group leaves the other side too few images.
    largest = int(group_sizes.max())
    if largest > MAX_GROUP_SHARE * num_images and num_images > 2:
        raise request.error(
            f"one group (patient) has {largest} of {num_images} images, too many for a split into "
            "training and test",
            hint="Give different ids to different patients",
        )
    # With one group per class, a class is on one side only. One image per class says nothing yet.
    labels = np.unique(images.labels)
    has_one_group = [len(np.unique(images.groups[images.labels == label])) == 1 for label in labels]
    if num_images > len(labels) > 1 and all(has_one_group):
        raise request.error(
            f"each of the {len(labels)} classes has one group (patient) only",
            hint="Let the group column or the subfolders name patients, not classes",
        )


def _option_to_allow(count: int, total: int) -> str:
    """Return which option would allow so many, or "" if they are half or more."""
    percent = math.ceil(1000 * count / total) / 10
    return f", or allow more: --max-skipped-share {percent:g}%" if percent < 50 else ""
