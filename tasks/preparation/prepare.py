"""From a raw download to a prepared dataset: list, read in parallel tasks, write shards, publish at once.

Nothing under the destination's name exists until it is whole: the store is built in a sibling folder and
renamed. Reading tasks leave part files (:mod:`tasks.preparation.parts`) in another sibling, so an
interrupted preparation goes on, and two preparations of the same data meet without harm: the first to
rename wins, the other finds its result there.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from search_spaces.datasets import DATASETS
from search_spaces.errors import CorruptStoreError, DataError
from search_spaces.specs import DatasetSpec, PreparedSpec
from tasks.preparation.blocks import Progress, cut_blocks, listing_id, read_blocks
from tasks.preparation.image_table import ImageTable, gather, keep_per_class, select
from tasks.preparation.publish import build_and_publish
from tasks.preparation.reading_order import listed_order, reading_order
from tasks.preparation.summary import make_record
from tasks.prepared.dataset import MARKER, PreparedDataset
from tasks.prepared.record import PreparedRecord
from tasks.prepared.stratify import number_groups
from tasks.sources import check_own_options, source_for
from tasks.sources.base import Item, Listing, RawRequest
from tasks.sources.privacy import hash_key

if TYPE_CHECKING:
    from tasks.remote import Executor

__all__ = ["PreparedRecord", "Progress", "prepare_dataset"]

logger = logging.getLogger(__name__)

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
    on_progress: Progress | None = None,
    readers: Executor | None = None,
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
        for_training: Refuse data that no fair split exists for (one group holds most of them, or too many
            images equal one with another label). Measuring does not split; there both are only counted.
        on_progress: Called after every block of items.
        readers: Runs reading tasks on more nodes, which need not see ``destination``; see ``read_blocks``.

    Raises:
        DataError: when the raw download is not as expected, or too many items cannot be used.
    """
    done = _published(destination, spec)
    if done is not None and (raw is None or dataset.name in DATASETS):
        return done
    started = time.monotonic()
    request = RawRequest(dataset, spec, raw, hash_key(destination.parent), destination.parent)
    listing = _listed(request)
    raw_id = listing_id(request, listing, listing.items)
    if done is not None:
        return _unchanged(done, raw_id)
    items = _choose_items(listing.items, spec)
    order = reading_order(request, items)
    blocks = cut_blocks(request, listing, items, order, destination)
    try:
        parts = read_blocks(request, listing, blocks, executor, readers, on_progress)
        images, stems = listed_order(gather(parts), parts, order), [block.stem for block in blocks]
        early = [(request.hashed(locator), reason) for locator, reason in listing.skipped]
        skipped = early + [pair for part in parts for pair in part.skipped]
        _check_skips(dataset.name, skipped, len(items) + len(early), max_skipped_share)
        images = _selected(images, request)
        if for_training:
            _check_split(request, images, max_skipped_share)
        record = make_record(request, listing, images, parts, skipped, raw_id)
        return build_and_publish(record, images, stems, destination, executor, started)
    except FileNotFoundError:
        # Another process published the same dataset and cleared the parts under us.
        finished = _published(destination, spec)
        if finished is None:
            raise
        return finished


def _listed(request: RawRequest) -> Listing:
    """List the raw download; one without items is an error, with the reasons why each was left out."""
    dataset = request.dataset
    check_own_options(dataset)
    listing = source_for(dataset.source).list_items(request)
    if listing.items:
        return listing
    reasons = Counter(reason for _, reason in listing.skipped) + Counter(listing.excluded)
    found = ", ".join(f"{reason}: {count:,}" for reason, count in reasons.items()) or "none"
    expected = f"expected: {dataset.raw_layout}"
    raise DataError(f"{dataset.name}: the raw download must hold images", found, expected)


def _selected(images: ImageTable, request: RawRequest) -> ImageTable:
    """Keep the images that the spec asks for; there must be some, and copies under two labels are told."""
    name = request.dataset.name
    images = select(images, request.spec)
    if not len(images.labels):
        raise DataError(f"{name}: preparation must keep at least one image", "none was usable")
    if images.num_conflicts:
        logger.warning("%s: %d images have a twin with another label", name, images.num_conflicts)
    return images


def _unchanged(done: PreparedRecord, raw_id: str) -> PreparedRecord:
    """Return the record of your own data when the files are those it was prepared from.

    Raises:
        DataError: when files came, went or changed: results under the old name would be taken for new ones.
    """
    if done.raw_id != raw_id:
        rule = f"{done.dataset}: the files must be those it was prepared from"
        raise DataError(
            rule,
            "files changed since, or label_map did",
            "give the new data another name, or use another --root",
        )
    return done


def _check_split(request: RawRequest, images: ImageTable, allowed: float) -> None:
    name, num_images = request.dataset.name, len(images.labels)
    largest = int(np.unique(images.groups, return_counts=True)[1].max())
    if largest > MAX_GROUP_SHARE * num_images and num_images > 2:
        raise DataError(
            f"{name}: groups (patients) must be small enough to split the images between training and test",
            f"one group holds {largest} of {num_images} images",
            "give ids that tell patients apart",
        )
    groups_of = [np.unique(images.groups[images.labels == label]) for label in np.unique(images.labels)]
    if num_images > len(groups_of) > 1 and all(len(groups) == 1 for groups in groups_of):
        raise DataError(
            f"{name}: a class must have images of several groups (patients)",
            f"one group for each of the {len(groups_of)} classes",
            "the group column or the subfolders must tell patients, not classes",
        )
    # The released extraction gives one frame several labels (F33); that is part of what it shows.
    if images.num_conflicts > allowed * num_images and request.spec.data_mode == "corrected":
        raise DataError(
            f"{name}: at most {allowed:.2%} of the images may equal an image with another label",
            f"{images.num_conflicts} of {num_images}",
            "correct the labels, raise image_size, or raise the allowed share (max_skipped_share)",
        )


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


def _choose_items(items: Sequence[Item], spec: PreparedSpec) -> Sequence[Item]:
    """Keep ``max_images_per_class`` before reading, where labels are known from the listing."""
    limit = spec.max_images_per_class
    if limit is None or any(item.label is None for item in items):
        return items
    labels = np.array([item.label for item in items])
    # An image without a group is its own; the mark keeps its name apart from every group's.
    names = np.array([item.group or f"\0{item.locator}" for item in items])
    return [items[row] for row in keep_per_class(labels, number_groups(names), spec, limit)]


def _check_skips(name: str, skipped: Sequence[tuple[str, str]], total: int, allowed: float) -> None:
    if not skipped:
        return
    reasons = Counter(reason for _, reason in skipped)
    logger.warning("%s: %d of %d items skipped: %s", name, len(skipped), total, dict(reasons))
    if len(skipped) > allowed * total:
        listed = "; ".join(f"{locator} {reason}" for locator, reason in skipped[:MAX_TOLD_SKIPS])
        raise DataError(
            f"{name}: at most {allowed:.2%} of the items may be unusable",
            f"{len(skipped)} of {total}, by reason {dict(reasons)}, first (hashed names): {listed}",
            "isweep locate HASH --raw DIR finds one; mend them, or raise max_skipped_share",
        )
