"""Hold the common input of all reading tasks, and compute hashes that show changed files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path
from stat import S_ISREG

from search_spaces.fingerprint import canonical_json
from tasks.prepared.parts import PixelType
from tasks.sources.base import Item, Listing, RawRequest
from tasks.sources.raw import split_locator

MAX_CACHED_STAMPS = 1024
"""Largest number of files whose sizes and times are cached. The cache saves time if thousands
of items are in one archive."""


@dataclass(frozen=True)
class Preparation:
    """The common input of all reading tasks of a preparation.

    Attributes:
        request: The dataset and its raw files.
        listing: The listing of the raw files. For tasks on other nodes, the listing has no
            items.
        dtype: Type of the prepared pixels.
    """

    request: RawRequest
    listing: Listing
    dtype: PixelType

    def for_other_node(self) -> Preparation:
        """Return a copy for tasks on other nodes.

        The path of the raw files is absolute in the copy, and its listing has no items.
        """
        request = self.request
        if request.raw is not None:
            request = replace(request, raw=request.raw.absolute())
        return Preparation(request, replace(self.listing, items=(), skipped=()), self.dtype)

    def id_of(self, items: Sequence[Item]) -> str:
        """Return a hash of the items, and of all settings that change their prepared images.

        The hash includes the sizes and times of the files. So if a file was replaced, its
        items are read again. If an item needs several files, its details contain the names of
        the other files.
        """
        request = self.request
        settings = [request.spec, list(self.listing.label_names), self.listing.dtype]
        digest = hashlib.sha256(canonical_json(settings).encode())
        base = None if request.raw is None else request.base()
        # Each hash uses a new cache. So if a file changes later, the next hash contains its
        # new size and time.
        stamp = lru_cache(maxsize=MAX_CACHED_STAMPS)(partial(_stamp, base))
        raw_stamp = None if request.raw is None else stamp(request.raw.name)
        digest.update(repr(raw_stamp).encode())
        for item in items:
            details = (*item.details, *chain(*item.traits))
            fields = (item.locator, item.label, item.group, item.split, details)
            # Every text in the details may be the locator of a file, so the size and time are
            # read for each text.
            locators = [text for text in (item.locator, *details) if isinstance(text, str)]
            stamps = [stamp(split_locator(locator)[0]) for locator in locators]
            # Do not change the form of this text: the hashes of all finished preparations
            # would change.
            digest.update(repr((fields, stamps)).encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def raw_id(self) -> str:
        """Return a hash of the items, their files' sizes and times, the flags and the skipped
        items.

        Some flags belong to the whole dataset and not to an item, for example the flag for a
        column that is not read. So the flags and the skipped items are part of the hash.
        """
        items_id = self.id_of(self.listing.items)
        flags = self.listing.flags
        skipped = list(self.listing.skipped)
        if not flags and not skipped:
            return items_id
        # If isweep changes the text of a flag, the next run reads all images of a dataset with
        # this flag again.
        text = repr((items_id, flags, skipped))
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()

    def part_name(self, items: Sequence[Item]) -> str:
        """Return the name of the part files of these items.

        The name also depends on the hash key, because the hashes of groups depend on this key.
        So parts that were made with different keys are never used together.
        """
        key = self.request.key.encode()[: hashlib.blake2b.MAX_KEY_SIZE]
        name = hashlib.blake2b(self.id_of(items).encode(), key=key, digest_size=16)
        return name.hexdigest()


def _stamp(base: Path | None, name: str) -> tuple[int, int] | None:
    """Return the size and modification time of a file below ``base``; None if it does not
    exist.
    """
    if base is None:
        return None
    try:
        status = os.stat(os.path.join(base, name))  # pathlib would keep every name in memory
    except (OSError, ValueError):
        return None
    return (status.st_size, status.st_mtime_ns) if S_ISREG(status.st_mode) else None
