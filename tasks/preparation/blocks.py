"""Blocks of items: what one task reads, here or on another node that sees the same files."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from stat import S_ISREG
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import DataError
from search_spaces.fingerprint import canonical_json
from tasks.preparation.parts import Part, load_part, read_block, read_part, save_part
from tasks.preparation.summary import stored_dtype
from tasks.sources.base import Item, Listing, RawRequest
from tasks.sources.raw import split_locator

if TYPE_CHECKING:
    from tasks.remote import Executor

logger = logging.getLogger(__name__)
Progress = Callable[[int, int], None]
"""Called with (items read, items in all)."""

BLOCK_BYTES = 64 << 20
"""Prepared images that one reading task holds at most, whatever the source would like."""
NAME_LENGTH = 32


def listing_id(request: RawRequest, listing: Listing, items: Sequence[Item]) -> str:
    """Hash items and all that decides what becomes of them, file sizes and times included.

    A file mended or replaced since gives another hash, so its part is read again. An item may need several
    files; those besides its own are named in its details.
    """
    base = "" if request.raw is None else str(request.base())

    @lru_cache(maxsize=1024)  # thousands of members share an archive
    def stamp(file: str) -> tuple[int, int] | None:
        return _stamp(os.path.join(base, file)) if base else None  # pathlib keeps every name

    total = hashlib.sha256(canonical_json([request.spec, list(listing.label_names), listing.dtype]).encode())
    total.update(repr(_stamp(request.raw)).encode())
    for item in items:
        known = (item.locator, item.label, item.group, item.split, item.details)
        files = [split_locator(name)[0] for name in (item.locator, *item.details) if isinstance(name, str)]
        total.update(repr((known, [stamp(file) for file in files])).encode("utf-8", "surrogateescape"))
    return total.hexdigest()


def _stamp(path: Path | str | None) -> tuple[int, int] | None:
    """Return size and time of a plain file, None of anything else (a locator need not be a file)."""
    try:
        status = os.stat(path) if path is not None else None
    except (OSError, ValueError):
        return None
    return (status.st_size, status.st_mtime_ns) if status and S_ISREG(status.st_mode) else None


@dataclass(frozen=True)
class Block:
    """Items that one task reads, and where its part goes: a name made of all that the part depends on."""

    items: Sequence[Item]
    stem: Path


def cut_blocks(
    request: RawRequest,
    listing: Listing,
    items: Sequence[Item],
    order: NDArray[np.intp] | None,
    destination: Path,
) -> list[Block]:
    """Cut items, in their reading order, into blocks whose size depends on the data alone."""
    spec, work = request.spec, destination.with_name(f".{destination.name}.parts")
    image_bytes = spec.channels * spec.image_size**2 * np.dtype(stored_dtype(request, listing)).itemsize
    size = max(1, min(listing.block_size, BLOCK_BYTES // image_bytes))
    items = items if order is None else [items[row] for row in order]
    cut = [items[start : start + size] for start in range(0, len(items), size)]
    return [Block(block, work / listing_id(request, listing, block)[:NAME_LENGTH]) for block in cut]


def read_blocks(
    request: RawRequest,
    listing: Listing,
    blocks: Sequence[Block],
    executor: Executor,
    readers: Executor | None,
    on_progress: Progress | None,
) -> list[Part]:
    """Read every block that has no part yet, and return the parts in order.

    Args:
        request: What is being prepared.
        listing: Of the whole raw download.
        blocks: All of them.
        executor: Runs tasks that see the raw download and write parts.
        readers: Runs tasks on nodes that may see the raw download: there a block is read only when its files
            are the listed ones, by name, size and time, and comes back to be written here. Blocks that such a
            node refuses are read by ``executor``. None leaves all to ``executor``.
        on_progress: Called after every block.
    """
    total = sum(len(block.items) for block in blocks)
    found = {index: load_part(block.stem) for index, block in enumerate(blocks)}
    parts = {index: part for index, part in found.items() if part is not None}
    read = sum(len(blocks[index].items) for index in parts)
    if on_progress:
        on_progress(read, total)

    def note(done: Iterator[tuple[int, Part]]) -> None:
        nonlocal read
        for index, part in done:
            parts[index] = part
            read += len(blocks[index].items)
            if on_progress:
                on_progress(read, total)

    def left() -> list[int]:
        return [index for index in range(len(blocks)) if index not in parts]

    if readers is not None:
        note(_read_elsewhere(request, listing, blocks, left(), readers))
        if refused := left():
            logger.warning("%d blocks are read on the driver's node: elsewhere files differ", len(refused))
    dtype = stored_dtype(request, listing)
    todo = left()
    arguments = ((request, blocks[index].items, blocks[index].stem, dtype) for index in todo)
    note((todo[place], part) for place, part in executor.map_unordered(read_part, arguments))
    return [parts[index] for index in range(len(blocks))]


def _read_elsewhere(
    request: RawRequest, listing: Listing, blocks: Sequence[Block], todo: Sequence[int], readers: Executor
) -> Iterator[tuple[int, Part]]:
    """Yield blocks that were read on other nodes, once their parts are written here."""
    if request.raw is not None:
        request = replace(request, raw=request.raw.absolute(), cache=None)
    bare, dtype = replace(listing, items=(), skipped=()), stored_dtype(request, listing)
    arguments = ((request, bare, blocks[index].items, blocks[index].stem.name, dtype) for index in todo)
    for place, found in readers.map_unordered(read_if_same, arguments, spread=True):
        if found is not None:
            part, images = found
            save_part(blocks[todo[place]].stem, images, part)
            yield todo[place], part


def read_if_same(
    request: RawRequest, listing: Listing, items: Sequence[Item], name: str, dtype: str
) -> tuple[Part, list[NDArray[np.generic]]] | None:
    """Read a block on a node whose files are those that were listed; None where they are not."""
    try:
        if listing_id(request, listing, items)[:NAME_LENGTH] != name:
            return None
    except (DataError, OSError):
        return None
    return read_block(request, items, dtype)
