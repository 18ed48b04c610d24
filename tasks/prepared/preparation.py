"""The common input of all reading tasks of a preparation, and the hash that shows changed files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from stat import S_ISREG

from search_spaces.fingerprint import canonical_json
from tasks.prepared.parts import PixelType
from tasks.sources.base import Item, Listing, RawRequest
from tasks.sources.raw import split_locator

MAX_CACHED_STAMPS = 1024
"""Number of files whose size and time are cached. An archive can contain thousands of items."""


@dataclass(frozen=True)
class Preparation:
    """The common input of all reading tasks of a preparation.

    Attributes:
        request: The dataset and its raw files.
        listing: The raw listing. For tasks on other nodes it has no items.
        dtype: Type of the prepared pixels.
    """

    request: RawRequest
    listing: Listing
    dtype: PixelType

    def for_other_node(self) -> Preparation:
        """Return a copy with an absolute path of the raw files and without the items."""
        raw = self.request.raw
        return Preparation(
            replace(self.request, raw=raw and raw.absolute()),
            replace(self.listing, items=(), skipped=()),
            self.dtype,
        )

    def raw_id(self) -> str:
        """Return a hash of the items, the sizes and times of files, the flags and skipped items.

        Items do not contain the flags of the whole dataset, such as one for a column that is
        not read. So the flags and the skipped items are hashed too.
        """
        items_id = self.id_of(self.listing.items)
        flags = self.listing.flags
        skipped = list(self.listing.skipped)
        if not flags and not skipped:
            return items_id
        # If the text of a flag changes, a run reads all images of such a dataset again.
        text = repr((items_id, flags, skipped))
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()

    def part_name(self, items: Sequence[Item]) -> str:
        """Return the name of the part files of items.

        The name depends on the hash key. Parts that were made with another key have other
        hashes for the same groups, so they must not be used together.
        """
        key = self.request.key.encode()[: hashlib.blake2b.MAX_KEY_SIZE]
        name = hashlib.blake2b(self.id_of(items).encode(), key=key, digest_size=16)
        return name.hexdigest()

    def id_of(self, items: Sequence[Item]) -> str:
        """Return a hash of items and of all settings that change their prepared images.

        The hash includes sizes and times of files, so a replaced file is read again. An item
        may need several files. Its details contain the names of the other files.
        """
        request = self.request
        stamp = _file_stamps(None if request.raw is None else request.base())
        settings = [request.spec, list(self.listing.label_names), self.listing.dtype]
        total = hashlib.sha256(canonical_json(settings).encode())
        total.update(repr(request.raw and stamp(request.raw.name)).encode())
        for item in items:
            trait_texts = [text for trait in item.traits for text in trait]
            details = (*item.details, *trait_texts)
            facts = (item.locator, item.label, item.group, item.split, details)
            stamps = []
            for name in (item.locator, *details):
                if isinstance(name, str):
                    stamps.append(stamp(split_locator(name)[0]))
            # If this text changes, the hash of every finished preparation changes too.
            total.update(repr((facts, stamps)).encode("utf-8", "surrogateescape"))
        return total.hexdigest()


def _file_stamps(base: Path | None) -> Callable[[str], tuple[int, int] | None]:
    """Return a function that maps the name of a file below ``base`` to its size and time.

    If there is no such file, the function returns None. A detail of an item need not be a
    file.
    """

    @lru_cache(maxsize=MAX_CACHED_STAMPS)
    def stamp(name: str) -> tuple[int, int] | None:
        if base is None:
            return None
        try:
            status = os.stat(os.path.join(base, name))  # pathlib would intern every name
        except (OSError, ValueError):
            return None
        if not S_ISREG(status.st_mode):
            return None
        return status.st_size, status.st_mtime_ns

    return stamp
