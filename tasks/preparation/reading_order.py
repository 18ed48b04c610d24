"""In which order items are read: a packed tar can only be read forward, and items are listed by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tasks.preparation.image_table import ImageTable
from tasks.preparation.parts import Part
from tasks.sources.base import Item, RawRequest
from tasks.sources.raw import MARK, PACKED_TARS, RefusedArchive, open_archive, split_locator


def reading_order(request: RawRequest, items: Sequence[Item]) -> NDArray[np.intp] | None:
    """Return the places of items in the order in which packed archives store them.

    None when every order costs the same: no such archive, or none with several items in it.
    """
    chains = [_packed_chain(item.locator) for item in items if MARK in item.locator]
    several = {chain for chain, count in Counter(chains).items() if chain and count > 1}
    if not several:
        return None
    stored = {chain: _positions(request, chain) for chain in sorted(several)}
    keys = []
    for place, item in enumerate(items):
        chain = _packed_chain(item.locator) if MARK in item.locator else ()
        position = stored[chain].get(split_locator(item.locator)[-1], 0) if chain in stored else place
        keys.append((chain if chain in stored else (), position, place))
    return np.array([place for _, _, place in sorted(keys)], dtype=np.intp)


def listed_order(images: ImageTable, parts: Sequence[Part], order: NDArray[np.intp] | None) -> ImageTable:
    """Return images in the order of their listed items, however they were read."""
    if order is None:
        return images
    starts = np.cumsum([0, *(part.num_items for part in parts)])
    read = np.concatenate([start + part.items for start, part in zip(starts, parts, strict=False)])
    return images.take(np.argsort(order[read], kind="stable"))


def _packed_chain(locator: str) -> tuple[str, ...]:
    """Return the archives that lead to a member of a packed tar, or nothing."""
    chain = tuple(split_locator(locator)[:-1])
    return chain if chain and chain[-1].lower().endswith(PACKED_TARS) else ()


def _positions(request: RawRequest, chain: tuple[str, ...]) -> dict[str, int]:
    try:
        members = open_archive(request.base() / chain[0], chain[1:]).members()
    except RefusedArchive:
        return {}
    return {name: position for position, name in enumerate(members)}
