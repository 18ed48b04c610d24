"""Compare raw files with the dataset that was prepared from them.

If a user copies files, checks them out or restores a backup, the times of the files change,
but not the images. So isweep refuses a prepared dataset only if the images, labels, groups or
splits of the files are different now. Otherwise it only updates the record of the dataset.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from search_spaces.errors import DataError, plural
from tasks.prepared.parts import digest
from tasks.prepared.reading import Reading
from tasks.prepared.record import PreparedRecord, fingerprint_of
from tasks.prepared.store import PreparedDataset, replace_record
from tasks.sources.base import RawRequest

logger = logging.getLogger(__name__)
ROWS_AT_ONCE = 256
"""Number of prepared images that are read at the same time. If they have 224 x 224 pixels and
3 channels in float32, they need 150 MB of memory."""


def check_same_content(finished: PreparedRecord, destination: Path, reading: Reading) -> None:
    """Check that the raw files still have the content of the prepared dataset.

    Args:
        finished: The record of the prepared dataset.
        destination: The folder of the prepared dataset.
        reading: The images that have just been read from the raw files.

    Raises:
        DataError: The content of the raw files is different. The message contains the number
            of changed images.
        CorruptStoreError: The prepared dataset is damaged.
    """
    request = reading.preparation.request
    images = reading.images
    if fingerprint_of(reading.preparation, images) == finished.fingerprint:
        return
    num_left_by_digest = Counter(_stored_digests(destination))
    new_locators = []
    for image_digest, (part, row) in zip(images.digests, images.part_rows.tolist(), strict=True):
        if num_left_by_digest[image_digest.tobytes()]:
            num_left_by_digest[image_digest.tobytes()] -= 1
        else:
            item_index = reading.parts[part].rows[row]["item"]
            new_locators.append(reading.blocks[part].items[item_index].locator)
    changes = []
    if new_locators:
        first = request.hashed(new_locators[0])
        changes.append(f"{plural(len(new_locators), 'new or changed image')}, the first in {first}")
    num_missing = num_left_by_digest.total()
    if num_missing:
        changes.append(f"{plural(num_missing, 'prepared image')} not found in the files")
    new_skips = []
    for part_read in reading.parts:
        new_skips += [skip for skip in part_read.skipped if skip not in finished.skipped_items]
    if new_skips:
        first_skip = f"{new_skips[0].locator_hash} ({new_skips[0].reason})"
        changes.append(
            f"{plural(len(new_skips), 'item')} cannot be used, the first is {first_skip}"
        )
    if not changes:
        changes.append("the images are equal, but their labels, order, groups or splits differ")
    hints = []
    if request.spec.max_images_per_class is not None:
        hints.append(
            "With max_images_per_class, isweep chooses other images if you add or remove a file"
        )
    if new_locators or new_skips:
        hints.append("To find the file of a hash, run `isweep locate HASH --raw DIR`")
    raise changed_data_error(request, "; ".join(changes), destination, hints)


def changed_data_error(
    request: RawRequest, changes: str, destination: Path, further_hints: Sequence[str] = ()
) -> DataError:
    """Return the error for a dataset whose files have changed since its preparation.

    Args:
        request: The dataset and its raw files as they are now.
        changes: The differences in words, for the message.
        destination: The folder of the prepared dataset.
        further_hints: Sentences that are added to the hint.
    """
    hint = (
        "Restore the old files, or choose another name for the new data, or another --root. "
        f"To replace the prepared data, delete the folder {destination}. All trials of this "
        "dataset are then trained again"
    )
    return request.error(
        f"the files or label_map have changed since the dataset was prepared ({changes})",
        hint=". ".join([hint, *further_hints]),
    )


def update_record(destination: Path, record: PreparedRecord) -> PreparedRecord:
    """Replace the record of a prepared dataset, and return the new record.

    Call this function only if the content of the dataset has not changed. The new record
    contains the hash of the present files, so the next start does not compare the images
    again. It also contains the flags of these files. If the record cannot be written, the
    function logs a warning.
    """
    try:
        replace_record(destination, record)
    except OSError as error:
        logger.warning(
            "%s: the new modification times of the files cannot be stored, so the next start "
            "reads all images again: %s",
            record.dataset,
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
