"""Check that enough items could be read, and that their images can be used for training."""

from __future__ import annotations

import logging
import math
from collections import Counter

import numpy as np

from tasks.prepared.parts import Skip
from tasks.prepared.reading import Reading
from tasks.prepared.table import ImageTable, count_groups
from tasks.sources.base import RawRequest

logger = logging.getLogger(__name__)
MAX_LISTED_SKIPS = 10
"""Largest number of skipped items that an error message lists."""
MAX_GROUP_SHARE = 0.5
"""Largest share of the images that may be in one group. If a group is larger, the images
cannot be split by groups."""
MAX_EXAMPLE_IMAGES = 2
"""Largest number of images for which one group may contain all images, so that tiny examples
work."""


def count_skips(reading: Reading) -> int:
    """Return the number of items that could not be listed or read."""
    num_unread = sum(len(part.skipped) for part in reading.parts)
    return len(reading.preparation.listing.skipped) + num_unread


def collect_skips(reading: Reading, max_share: float) -> list[Skip]:
    """Return the items that could not be listed or read, and log them.

    Args:
        reading: The listing and its parts.
        max_share: Largest allowed share of such items. Unless the share is 0, one such item is
            always allowed.

    Raises:
        DataError: There are too many such items.
    """
    request = reading.preparation.request
    listing = reading.preparation.listing
    skipped = [Skip(request.hashed(locator), reason) for locator, reason in listing.skipped]
    total = len(listing.skipped)
    for part in reading.parts:
        skipped += part.skipped
        total += part.num_items
    if not skipped:
        return []
    reasons = Counter(skip.reason for skip in skipped)
    counts = ", ".join(f"{reason}: {count}" for reason, count in reasons.items())
    logger.warning(
        "%s: %d of %d items cannot be used and are skipped (%s)",
        request.dataset.name,
        len(skipped),
        total,
        counts,
    )
    max_skipped = max(max_share * total, 1) if max_share else 0
    if len(skipped) <= max_skipped:
        return skipped
    listed = "; ".join(f"{skip.locator_hash} {skip.reason}" for skip in skipped[:MAX_LISTED_SKIPS])
    hint = "Find the file of a hash with `isweep locate HASH --raw DIR`. Repair or remove the file"
    raise request.error(
        f"{len(skipped)} of {total:,} items cannot be used ({counts}), but at most "
        f"{max_skipped:,.0f} ({max_share:.2%}) may be left out. The first of these items, by "
        f"hash: {listed}",
        hint=hint + _option_to_allow(len(skipped), total),
    )


def check_images(
    images: ImageTable, request: RawRequest, max_conflict_share: float, *, for_training: bool
) -> None:
    """Check that there are images, and that images for training can be split by groups.

    Args:
        images: The images to use.
        request: The dataset.
        max_conflict_share: Largest allowed share of images that equal an image with another
            label. It is checked only if corrected data are prepared for training.
        for_training: True if the images will be split into training and test images.

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
    # With the faults of the released code, the same prostate frame may have several labels
    # (F33 in docs/faults.md). So equal images with different labels are expected.
    is_corrected = request.spec.data_mode == "corrected"
    if is_corrected and num_conflicts > max_conflict_share * num_images:
        hint = "Correct the labels, or raise image_size"
        raise request.error(
            f"{num_conflicts} of {num_images} images are equal to an image with another "
            f"label, but the limit is {max_conflict_share:.2%} of the images",
            hint=hint + _option_to_allow(num_conflicts, num_images),
        )


def _check_groups(images: ImageTable, request: RawRequest) -> None:
    """Raise a DataError if one group is too large, or if each class has only one group."""
    num_images = len(images.labels)
    _, group_sizes = np.unique(images.groups, return_counts=True)
    # All images of a group must be in the same set of the split. So if one group is very
    # large, the other set has too few images.
    largest = int(group_sizes.max())
    if largest > MAX_GROUP_SHARE * num_images and num_images > MAX_EXAMPLE_IMAGES:
        raise request.error(
            f"one group (patient) has {largest} of {num_images} images, so the images cannot "
            "be split into a training and a test set",
            hint="Use a different group id for every patient",
        )
    # If each class has only one group, all images of a class are in the same set.
    labels = np.unique(images.labels)
    groups_per_class = count_groups(images.labels, images.groups, int(labels[-1]) + 1)
    is_example = num_images == len(labels)  # one image per class, as in a tiny example
    if len(labels) > 1 and groups_per_class.max() == 1 and not is_example:
        raise request.error(
            f"each of the {len(labels)} classes has only one group (patient)",
            hint="Write ids of patients, not of classes, in the group column or as subfolder names",
        )


def _option_to_allow(count: int, total: int) -> str:
    """Return a hint with the option that allows ``count`` unusable items of ``total`` items.

    If the share of these items is 50 % or more, the hint is empty.
    """
    percent = math.ceil(1000 * count / total) / 10
    if percent >= 50:
        return ""
    return f". To allow {count:,} of {total:,}, set `--max-skipped-share {percent:g}%`"
