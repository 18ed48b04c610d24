"""Prepare a dataset from its raw download: list, read in parallel tasks, check and publish.

The store is written to a sibling folder of the destination, and then renamed. Part files are in
another sibling folder. An interrupted preparation continues from them. Two processes may prepare
the same data at the same time: the first one renames its store, and the other returns that store.
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
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from search_spaces.datasets import DATASETS
from search_spaces.errors import SweepError
from search_spaces.specs import DatasetSpec, PreparedSpec
from tasks.prepared.blocks import (
    Block,
    Progress,
    cut_blocks,
    read_again,
    read_blocks,
    reading_order,
    restore_listed_order,
)
from tasks.prepared.changes import check_same_content, update_record
from tasks.prepared.listings import Listings
from tasks.prepared.parts import Part, PixelType, Skip
from tasks.prepared.preparation import Preparation
from tasks.prepared.publish import build_and_publish, published_record
from tasks.prepared.record import PreparedRecord, make_record
from tasks.prepared.table import (
    ImageTable,
    Rows,
    choose_images,
    gather,
    keep_per_class,
    number_groups,
)
from tasks.remote import Executor, InlineExecutor
from tasks.sources.base import Item, Listing, RawRequest, hash_key

logger = logging.getLogger(__name__)
MAX_LISTED_SKIPS = 10
"""Largest number of skipped items in an error message."""
MAX_GROUP_SHARE = 0.5
"""Largest share of the images in one group. With a larger group, no split by groups is possible."""


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
    other_nodes: Executor | None = None,
    listings: Listings | None = None,
) -> PreparedRecord:
    """Prepare a dataset into a folder.

    If the destination has a finished preparation, its record is returned at once. For user data,
    the raw files are first checked for changes. If the listing, sizes or times of files differ, all
    images are read again and compared. If they are equal, only the record is written again,
    because its flags and skipped items may have changed. A damaged preparation is prepared
    again.

    Args:
        spec: Task, image size, channels and faults.
        dataset: The row of the dataset, from the table or for user data.
        raw: Folder or file of the raw download; None for sources that need no download.
        destination: Folder of the store. The parent folder also contains the hash key, and the part
            files until the store is complete.
        executor: Runs the reading and writing tasks. ``raw`` and ``destination`` must exist on all
            its nodes.
        max_skipped_share: Limit for two shares. The first is the share of listed items that
            are unusable. Unless the limit is 0, one unusable item is always allowed. The
            second is the share of images that equal an image with another label. It is limited
            only if corrected data are prepared for training.
        for_training: True to raise an error if the images cannot be split into training and test
            images. For example, one group (patient) has most images, each class has only one group,
            or too many equal images have different labels. Measuring needs no split.
        on_progress: Function that is called after every block of items.
        other_nodes: Runs reading tasks on more nodes, on which ``destination`` need not exist;
            see :func:`~tasks.prepared.blocks.read_blocks`.
        listings: Listings that the command has already created; None if there are none.

    Returns:
        The record of the store at the destination.

    Raises:
        DataError: The raw download is not as expected, has too many unusable items, or has changed
            since the preparation.
    """
    finished = published_record(destination, spec)
    if finished is not None and (raw is None or dataset.name in DATASETS):
        return finished
    started = time.monotonic()
    request = RawRequest(dataset, spec, raw, hash_key(destination.parent))
    listing = (listings or Listings()).of(request)
    dtype: PixelType = listing.dtype
    if request.has_fault("resize_without_antialias"):
        dtype = "float32"  # the released code does not round resized pixels
    preparation = Preparation(request, listing, dtype)
    raw_id = preparation.raw_id()
    if finished is not None and finished.raw_id == raw_id:
        return finished
    items = _choose_items(listing.items, spec)
    order = reading_order(request, items)
    if order is not None:
        items = [items[index] for index in order]
    parts_folder = destination.with_name(f".{destination.name}.parts")
    blocks = cut_blocks(preparation, items, parts_folder)
    reading = _Reading(preparation, raw_id, blocks, order)
    if finished is not None:
        # Every image is read again, however long it takes. Otherwise changed data would be
        # used silently.
        parts = read_again(preparation, blocks, on_progress)
        return _update_if_unchanged(reading, parts, finished, destination, max_skipped_share)
    try:
        parts = read_blocks(preparation, blocks, executor, other_nodes, on_progress)
        skipped = _collect_skips(request, listing, parts, max_skipped_share)
        images = reading.images(parts)
        _check_images(images, request, max_skipped_share, for_training=for_training)
        record = reading.record(images, parts, skipped)
        stems = [block.stem for block in blocks]
        return build_and_publish(record, images, stems, destination, executor, started)
    except FileNotFoundError:
        # Another process published the same dataset and removed the parts.
        published = published_record(destination, spec)
        if published is None:
            raise
        return published


@dataclass(frozen=True)
class _Reading:
    """The blocks that a preparation reads, and their order.

    Attributes:
        preparation: The common input of all reading tasks.
        raw_id: Hash of the raw files, see
            :meth:`~tasks.prepared.preparation.Preparation.raw_id`.
        blocks: The blocks, in the order of reading.
        order: The order of reading, see :func:`~tasks.prepared.blocks.reading_order`.
    """

    preparation: Preparation
    raw_id: str
    blocks: list[Block]
    order: Rows | None

    def images(self, parts: Sequence[Part]) -> ImageTable:
        """Return the images to use, in the order of the listing."""
        listed_images = restore_listed_order(gather(parts), parts, self.order)
        return choose_images(listed_images, self.preparation.request.spec)

    def record(
        self, images: ImageTable, parts: Sequence[Part], skipped: list[Skip]
    ) -> PreparedRecord:
        """Return the record of the prepared dataset."""
        preparation = self.preparation
        return make_record(
            preparation.request,
            preparation.listing,
            preparation.dtype,
            images,
            parts,
            skipped,
            self.raw_id,
        )


def _update_if_unchanged(
    reading: _Reading,
    parts: Sequence[Part],
    finished: PreparedRecord,
    destination: Path,
    max_skipped_share: float,
) -> PreparedRecord:
    """Check that the raw files still have the prepared images, and write the record again.

    Raises:
        DataError: The images have changed since the preparation.
    """
    preparation = reading.preparation
    listing = preparation.listing
    images = reading.images(parts)
    check_same_content(finished, destination, preparation, images, parts, reading.blocks)
    num_skipped = len(listing.skipped) + sum(len(part.skipped) for part in parts)
    # The preparation has already allowed as many items as it skipped.
    allowed_share = 1.0 if num_skipped <= finished.num_skipped else max_skipped_share
    skipped = _collect_skips(preparation.request, listing, parts, allowed_share)
    record = reading.record(images, parts, skipped)
    return update_record(destination, record.model_copy(update={"seconds": finished.seconds}))


def prepare_from_stdin() -> None:
    """Prepare the datasets that are listed in one line on stdin. Stop if stdin is closed.

    ``isweep run`` starts this function in a second process, to prepare datasets while it starts.

    The line is a JSON list with three items: the folder of prepared datasets, the share of items
    that may be unusable, and pairs of specs (preparation, dataset). The name of each dataset is
    printed before its preparation. Errors are ignored here, because the caller will prepare the
    dataset again and report the error.
    """

    def end_if_closed() -> None:
        # The caller writes only one line. So if stdin is readable again, it has been closed.
        is_readable, _, _ = select.select([sys.stdin], [], [], 0)
        if is_readable:
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


def _choose_items(items: Sequence[Item], spec: PreparedSpec) -> Sequence[Item]:
    """Return at most ``max_images_per_class`` items of each class.

    If an item has no label before it is read, all items are returned.
    """
    limit = spec.max_images_per_class
    if limit is None or any(item.label is None for item in items):
        return items
    labels = np.array([item.label for item in items])
    # An image without a group is its own group. No other group name begins with a null byte.
    groups = np.array([item.group or f"\0{item.locator}" for item in items])
    rows = keep_per_class(labels, number_groups(groups), spec, limit)
    return [items[row] for row in rows]


def _collect_skips(
    request: RawRequest, listing: Listing, parts: Sequence[Part], max_share: float
) -> list[Skip]:
    """Return all items that could not be used, from the listing and from the parts.

    Raises:
        DataError: There are too many such items.
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
        "%s: %d of %d items are skipped: %s", request.dataset.name, len(skipped), total, counts
    )
    max_skipped = max(max_share * total, 1) if max_share else 0
    if len(skipped) <= max_skipped:
        return skipped
    listed = "; ".join(f"{locator} {reason}" for locator, reason in skipped[:MAX_LISTED_SKIPS])
    hint = "Find the file of a hash with `isweep locate HASH --raw DIR`, and repair or remove it"
    raise request.error(
        f"{len(skipped)} of {total:,} items cannot be used ({counts}), but at most "
        f"{max_skipped:,.0f} ({max_share:.2%}) may be left out. The first items, by hash: "
        f"{listed}",
        hint=hint + _option_to_allow(len(skipped), total),
    )


def _check_images(
    images: ImageTable, request: RawRequest, max_conflict_share: float, *, for_training: bool
) -> None:
    """Check that there are images, and that a fair split is possible if they are for training.

    Raises:
        DataError: The images cannot be used.
    """
    num_images = len(images.labels)
    num_conflicts = images.num_conflicts
    if num_images == 0:
        raise request.error(
            "no image can be used", hint="See the log for the reason why each item was skipped"
        )
    if num_conflicts:
        logger.warning(
            "%s: %d images are equal to an image with another label",
            request.dataset.name,
            num_conflicts,
        )
    if not for_training:
        return
    _check_groups(images, request)
    # With the faults of the released code, one frame has several labels (F33 in docs/faults.md), so
    # equal images with different labels are expected.
    is_corrected = request.spec.data_mode == "corrected"
    if is_corrected and num_conflicts > max_conflict_share * num_images:
        hint = "Correct the labels, or raise image_size"
        raise request.error(
            f"{num_conflicts} of {num_images} images are equal to an image with another "
            f"label, but the limit is {max_conflict_share:.2%} of the images",
            hint=hint + _option_to_allow(num_conflicts, num_images),
        )


def _check_groups(images: ImageTable, request: RawRequest) -> None:
    """Raise a DataError if a group is too large, or if groups and classes are the same."""
    num_images = len(images.labels)
    _, group_sizes = np.unique(images.groups, return_counts=True)
    # A group is only in one set of the split. With a large group, the other set has too few images.
    largest = int(group_sizes.max())
    if largest > MAX_GROUP_SHARE * num_images and num_images > 2:
        raise request.error(
            f"one group (patient) has {largest} of {num_images} images, so the images cannot "
            "be split into a training and a test set",
            hint="Use a different group id for every patient",
        )
    # With one group per class, every class is in only one set. One image per class is allowed.
    labels = np.unique(images.labels)
    has_one_group = [len(np.unique(images.groups[images.labels == label])) == 1 for label in labels]
    if num_images > len(labels) > 1 and all(has_one_group):
        raise request.error(
            f"each of the {len(labels)} classes has only one group (patient)",
            hint="Write ids of patients, not of classes, in the group column or as subfolder names",
        )


def _option_to_allow(count: int, total: int) -> str:
    """Return a hint with the option that allows ``count`` of ``total``; empty if the share is 50 %
    or more.
    """
    percent = math.ceil(1000 * count / total) / 10
    return f". To allow as many, set --max-skipped-share {percent:g}%" if percent < 50 else ""
