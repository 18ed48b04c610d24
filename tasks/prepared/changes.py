"""Compare raw files that may have changed with the dataset that was prepared from them.

A copy, a checkout or a restored backup changes the times of files, but not the images. So a
prepared dataset is refused only if its images, labels, groups or splits are different.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from search_spaces.errors import plural
from tasks.prepared.blocks import Block
from tasks.prepared.parts import Part, digest
from tasks.prepared.preparation import Preparation
from tasks.prepared.record import PreparedRecord, fingerprint_of
from tasks.prepared.store import PreparedDataset, replace_record
from tasks.prepared.table import ImageTable

logger = logging.getLogger(__name__)
ROWS_AT_ONCE = 256
"""Number of prepared images that are read at the same time. With 224 pixels and 3 channels, float32
images need 150 MB of memory."""


def check_same_content(
    finished: PreparedRecord,
    destination: Path,
    preparation: Preparation,
    images: ImageTable,
    parts: Sequence[Part],
    blocks: Sequence[Block],
) -> None:
    """Check that the raw files still contain the prepared dataset.

    Args:
        finished: The record of the prepared dataset.
        destination: The folder of the prepared dataset.
        preparation: The dataset and its raw files as they are now.
        images: The images that were read from the raw files now.
        parts: Metadata of the images, by block.
        blocks: The items of each part.

    Raises:
        DataError: The content is different. The message contains the number of changed items.
        CorruptStoreError: The prepared dataset is damaged.
    """
    request = preparation.request
    if fingerprint_of(request, preparation.listing, preparation.dtype, images) == (
        finished.fingerprint
    ):
        return
    num_left_by_digest = Counter(_stored_digests(destination))
    new_locators: dict[str, None] = {}
    for image_digest, (part, row) in zip(images.digests, images.part_rows.tolist(), strict=True):
        if num_left_by_digest[image_digest.tobytes()]:
            num_left_by_digest[image_digest.tobytes()] -= 1
        else:
            item = blocks[part].items[parts[part].rows[row]["item"]]
            new_locators[item.locator] = None
    changes = []
    if new_locators:
        first = request.hashed(next(iter(new_locators)))
        changes.append(f"{plural(len(new_locators), 'new or changed file')}, the first is {first}")
    num_missing = num_left_by_digest.total()
    if num_missing:
        changes.append(f"{plural(num_missing, 'prepared image')} not found in the files")
    if not changes:
        changes.append("the images are equal, but their labels, order, groups or splits differ")
    raise request.error(
        "the files or label_map have changed since the dataset was prepared "
        f"({'; '.join(changes)})",
        hint="Restore the old files, or choose another name for the new data, or another --root. "
        f"To replace the prepared data, delete the folder {destination}. All trials of this "
        "dataset are then trained again",
    )


def remember_raw_id(finished: PreparedRecord, destination: Path, raw_id: str) -> PreparedRecord:
    """Store the hash of the present files, so that they are not compared again.

    Args:
        finished: The record of the prepared dataset, whose content is equal.
        destination: The folder of the prepared dataset.
        raw_id: Hash of the present listing with sizes and times of files.

    Returns:
        The record with ``raw_id``.
    """
    record = finished.model_copy(update={"raw_id": raw_id})
    try:
        replace_record(destination, record)
    except OSError as error:
        logger.warning(
            "%s: the new times of files cannot be stored, so the next start reads all images "
            "again: %s",
            finished.dataset,
            error.strerror,
        )
    return record


def _stored_digests(destination: Path) -> Iterator[bytes]:
    """Yield the SHA-256 of each prepared image."""
    dataset = PreparedDataset.open(destination)
    for start in range(0, dataset.num_images, ROWS_AT_ONCE):
        stop = min(start + ROWS_AT_ONCE, dataset.num_images)
        for image in dataset.read(start, stop):
            yield digest(image)
