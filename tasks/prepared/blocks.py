"""Divide listed items into blocks, and read the blocks in parallel tasks.

The images of a block are stored in part files. If a preparation was interrupted, the next
preparation reuses its part files. A node with another disk may read a block if the same raw
files are on that disk.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from search_spaces.errors import DataError
from tasks.prepared.parts import (
    Image,
    PartMetadata,
    load_part,
    prepare_and_save_block,
    prepare_block,
    save_part,
)
from tasks.prepared.preparation import Preparation
from tasks.prepared.table import ImageTable, Rows
from tasks.sources.base import Item, RawRequest
from tasks.sources.raw import PACKED_TARS, RefusedArchive, open_archive, split_locator

if TYPE_CHECKING:
    from tasks.remote import Executor

logger = logging.getLogger(__name__)
Progress = Callable[[int, int], None]
"""Function that receives the number of items read so far and the total number of items."""

BLOCK_BYTES = 64 << 20
"""Largest number of bytes of prepared images in one block. This limit applies to every
source."""


class Block(NamedTuple):
    """A block of items, which one task reads.

    Attributes:
        items: The items.
        stem: Path of the part files without file extension. The file name is a hash of
            everything that changes the content of these files.
    """

    items: Sequence[Item]
    stem: Path


def cut_blocks(preparation: Preparation, items: Sequence[Item], folder: Path) -> list[Block]:
    """Divide items into blocks.

    The size of a block does not depend on the cluster, so a later preparation has the same
    blocks.

    Args:
        preparation: The dataset and its raw files.
        items: The items in the order of reading.
        folder: The folder of the part files.
    """
    spec = preparation.request.spec
    image_bytes = spec.channels * spec.image_size**2 * np.dtype(preparation.dtype).itemsize
    size = max(1, min(preparation.listing.block_size, BLOCK_BYTES // image_bytes))
    blocks = []
    for start in range(0, len(items), size):
        block_items = items[start : start + size]
        name = preparation.part_name(block_items)
        blocks.append(Block(block_items, folder / name))
    return blocks


class _Parts:
    """The metadata of the parts of all blocks. A part contains the images of one block."""

    def __init__(self, blocks: Sequence[Block], on_progress: Progress) -> None:
        self._blocks = blocks
        self._on_progress = on_progress
        self._by_stem: dict[Path, PartMetadata] = {}
        self._num_items = sum(len(block.items) for block in blocks)
        self._num_read = 0
        on_progress(0, self._num_items)

    def add(self, block: Block, part: PartMetadata) -> None:
        """Add the metadata of a block's part."""
        self._by_stem[block.stem] = part
        self._num_read += len(block.items)
        self._on_progress(self._num_read, self._num_items)

    def missing_blocks(self) -> list[Block]:
        """Return the blocks that have no part yet."""
        return [block for block in self._blocks if block.stem not in self._by_stem]

    def in_order(self) -> list[PartMetadata]:
        """Return the metadata of the parts, in the order of the blocks."""
        return [self._by_stem[block.stem] for block in self._blocks]


def read_blocks(
    preparation: Preparation,
    blocks: Sequence[Block],
    executor: Executor,
    other_nodes: Executor | None,
    on_progress: Progress,
) -> list[PartMetadata]:
    """Read every block that has no part files yet.

    Args:
        preparation: The dataset and its raw files.
        blocks: The blocks.
        executor: Executor that runs tasks on nodes with access to the raw download and to the
            folder of the part files.
        other_nodes: Executor that runs tasks on nodes that may have a copy of the raw files;
            None if there are no such nodes. A task on such a node reads a block only if the
            files of the node have the listed names, sizes and times. This process then writes
            the part files. ``executor`` reads the blocks that no other node could read.
        on_progress: Function that is called after every block.

    Returns:
        The metadata of the parts, in the order of the blocks.
    """
    parts = _Parts(blocks, on_progress)
    for block in blocks:
        part = load_part(block.stem)
        if part is not None:
            parts.add(block, part)
    if other_nodes is not None and preparation.request.raw is not None:
        _read_on_other_nodes(preparation, parts, other_nodes)
    missing = parts.missing_blocks()
    calls = ((preparation.request, block.items, block.stem, preparation.dtype) for block in missing)
    for index, part in executor.map_unordered(prepare_and_save_block, calls):
        parts.add(missing[index], part)
    return parts.in_order()


def read_again(
    preparation: Preparation, blocks: Sequence[Block], on_progress: Progress
) -> list[PartMetadata]:
    """Read every block in this process, and return only the metadata.

    No part files are read or written.

    Args:
        preparation: The dataset and its raw files.
        blocks: The blocks.
        on_progress: Function that is called after every block.
    """
    parts = _Parts(blocks, on_progress)
    for block in blocks:
        part, _ = prepare_block(preparation.request, block.items, preparation.dtype)
        parts.add(block, part)
    return parts.in_order()


def _read_on_other_nodes(preparation: Preparation, parts: _Parts, other_nodes: Executor) -> None:
    """Read missing blocks on nodes with the same raw files, and write their parts in this
    process.
    """
    missing = parts.missing_blocks()
    portable = preparation.for_other_node()
    calls = [(portable, block.items, block.stem.name) for block in missing]
    results = other_nodes.map_unordered(prepare_block_if_files_match, calls, spread=True)
    for index, result in results:
        if result is not None:
            part, images = result
            save_part(missing[index].stem, part, images)
            parts.add(missing[index], part)
    num_missing = len(parts.missing_blocks())
    if num_missing:
        logger.warning(
            "%d blocks of images could not be read on other nodes, because these nodes do not "
            "have the same raw files",
            num_missing,
        )


def prepare_block_if_files_match(
    preparation: Preparation, items: Sequence[Item], name: str
) -> tuple[PartMetadata, list[Image]] | None:
    """Read a block if this node has the listed files. Otherwise return None.

    The name of a part is a hash of its items, and of the sizes and times of their files. So if
    the name that this node computes equals ``name``, this node has the same files.
    """
    try:
        if preparation.part_name(items) != name:
            return None
    except (DataError, OSError):
        return None
    return prepare_block(preparation.request, items, preparation.dtype)


def reading_order(request: RawRequest, items: Sequence[Item]) -> Rows | None:
    """Return an order of reading that follows the order of the members in each compressed tar.

    Args:
        request: The dataset and its raw files.
        items: The listed items.

    Returns:
        The indices of the items in the new order. The items of compressed tars come last, in
        the order in which each tar contains them. All other items come first, in the order of
        the listing. None if no compressed tar contains several items.
    """
    # A tar may be inside other archives. The key of a tar contains the names of these
    # archives, beginning with the outermost archive. The last name is the name of the tar.
    items_by_tar: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
    member_of_item: dict[int, str] = {}
    for index, item in enumerate(items):
        *archives, member = split_locator(item.locator)
        if archives and archives[-1].lower().endswith(PACKED_TARS):
            items_by_tar[tuple(archives)].append(index)
            member_of_item[index] = member
    tar_items: list[int] = []
    for archives_of_tar, item_indices in sorted(items_by_tar.items()):
        if len(item_indices) == 1:
            continue
        outermost, *inner_archives = archives_of_tar
        with suppress(RefusedArchive):
            tar = open_archive(request.base() / outermost, tuple(inner_archives))
            positions = {member: position for position, member in enumerate(tar.members())}
            item_indices.sort(key=lambda index: positions.get(member_of_item[index], 0))
            tar_items += item_indices
    if not tar_items:
        return None
    other_items = np.setdiff1d(np.arange(len(items)), tar_items)
    return np.concatenate([other_items, tar_items])


def restore_listed_order(
    images: ImageTable, parts: Sequence[PartMetadata], order: Rows | None
) -> ImageTable:
    """Return the images in the order of the listing.

    Args:
        images: The table of the images, in the order of reading.
        parts: The metadata of the parts that contain the images.
        order: The order of reading, see :func:`reading_order`.
    """
    if order is None:
        return images
    # For each image, `read_items` contains the index of its item in the order of reading, and
    # `listed_items` its index in the listing.
    read_items = []
    start = 0
    for part in parts:
        read_items.append(start + part.rows["item"])
        start += part.num_items
    listed_items = order[np.concatenate(read_items)]
    return images.take(np.argsort(listed_items, kind="stable"))
