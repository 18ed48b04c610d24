"""Plan the reading of a raw download, and hold the images that were read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from search_spaces.specs import PreparedSpec
from tasks.prepared.blocks import Block, cut_blocks, reading_order, restore_listed_order
from tasks.prepared.parts import PartMetadata
from tasks.prepared.preparation import Preparation
from tasks.prepared.table import (
    ImageTable,
    Rows,
    choose_images,
    join_parts,
    keep_per_class,
    number_groups,
)
from tasks.sources.base import Item


@dataclass(frozen=True)
class ReadingPlan:
    """The blocks of a dataset that must be read.

    Attributes:
        preparation: The common input of all reading tasks.
        raw_id: Hash of the raw files, computed before they are read, see
            :meth:`~tasks.prepared.preparation.Preparation.raw_id`.
        blocks: The blocks, in the order of reading.
        order: The order of reading, see :func:`~tasks.prepared.blocks.reading_order`; None for
            the order of the listing.
    """

    preparation: Preparation
    raw_id: str
    blocks: list[Block]
    order: Rows | None

    def add_parts(self, parts: Sequence[PartMetadata]) -> Reading:
        """Return the reading that consists of this plan and the images of these parts.

        Args:
            parts: The metadata of the parts, in the order of the blocks.
        """
        listed_images = restore_listed_order(join_parts(parts), parts, self.order)
        images = choose_images(listed_images, self.preparation.request.spec)
        return Reading(self.preparation, self.raw_id, self.blocks, parts, images)


@dataclass(frozen=True)
class Reading:
    """The images that were read from a raw download.

    Attributes:
        preparation: The common input of all reading tasks.
        raw_id: Hash of the raw files, computed before they were read.
        blocks: The blocks, in the order of reading.
        parts: The metadata of each block's images.
        images: The table of the images to use, in the order of the listing.
    """

    preparation: Preparation
    raw_id: str
    blocks: Sequence[Block]
    parts: Sequence[PartMetadata]
    images: ImageTable


def plan_reading(preparation: Preparation, raw_id: str, parts_folder: Path) -> ReadingPlan:
    """Choose the items to read, and divide them into blocks.

    Args:
        preparation: The dataset and its raw files.
        raw_id: Hash of the raw files.
        parts_folder: The folder of the part files.
    """
    items = _choose_items(preparation.listing.items, preparation.request.spec)
    order = reading_order(preparation.request, items)
    if order is not None:
        items = [items[index] for index in order]
    return ReadingPlan(preparation, raw_id, cut_blocks(preparation, items, parts_folder), order)


def _choose_items(items: Sequence[Item], spec: PreparedSpec) -> Sequence[Item]:
    """Return at most ``max_images_per_class`` items of each class.

    If the label of any item is not known before the item is read, all items are returned.
    """
    limit = spec.max_images_per_class
    if limit is None or any(item.label is None for item in items):
        return items
    labels = np.array([item.label for item in items])
    # An item without a group is a separate group. Its name begins with a null byte, so it
    # differs from the names of all other groups.
    groups = np.array([item.group or f"\0{item.locator}" for item in items])
    rows = keep_per_class(labels, number_groups(groups), spec, limit)
    return [items[row] for row in rows]
