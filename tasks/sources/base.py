"""What a source is: a cheap listing of items, and a reader that turns one item into images.

Listing happens once, in the driver; reading happens in parallel tasks. An item is one thing to open
(a file, a volume, a row of an array file), so that nothing is opened twice. Items and samples carry
*raw* locators and group ids; :mod:`tasks.prepared.prepare` replaces them by keyed hashes before
anything is stored, logged or raised: these and patient ids leave the reading code in that form
only.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import DataError, SetupError, nearest_path
from search_spaces.specs import DatasetSpec, PreparedSpec
from tasks.atomic import write_once

KEY_FILE = ".hash_key"
KEY_VARIABLE = "ISWEEP_HASH_KEY"
MIN_KEY_LENGTH = 16


def hash_key(folder: Path) -> str:
    """Return the key: ``ISWEEP_HASH_KEY``, or a random one made once in ``folder`` (mode 0600).

    With the key a lab can find the file behind a hash; without it ids cannot be guessed by hashing
    them all. One that is cut or cannot be read is a SetupError: ids hashed with a short one can be
    guessed.
    """
    key, where = os.environ.get(KEY_VARIABLE), KEY_VARIABLE
    if not key:
        path = folder / KEY_FILE
        if not path.exists():
            # If another process was first, its key holds.
            write_once(path, secrets.token_hex(32).encode(), mode=0o600)
        try:
            key, where = path.read_text(encoding="ascii").strip(), str(path)
        except (OSError, ValueError) as error:
            key, where = "", f"{path}: {error}"
    if len(key) >= MIN_KEY_LENGTH:
        return key
    raise SetupError(
        f"The key that hides patient ids must be whole, with {MIN_KEY_LENGTH} characters or more",
        f"{where}: {len(key)} characters",
        "restore it from a backup, since with another key no hash leads back to its file; "
        "without one, delete it and prepare the datasets again",
    )


def keyed_hash(key: str, value: str) -> int:
    """Return 63 bits of a keyed BLAKE2b of ``value``."""
    raw = value.encode("utf-8", "surrogateescape")
    digest = hashlib.blake2b(raw, key=key.encode()[:64], digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def spell(hashed: int) -> str:
    """Spell a keyed hash as in messages and records: 16 hex digits."""
    return f"{hashed:016x}"


Split = Literal["", "train", "test"]


@dataclass(frozen=True)
class RawRequest:
    """What to read: ``raw`` is the folder or file of the download, ``key`` that of the hashes."""

    dataset: DatasetSpec
    spec: PreparedSpec
    raw: Path | None = None
    key: str = "unkeyed"

    def hashed(self, value: str) -> str:
        """Spell a file name or id for messages: its keyed hash."""
        return spell(keyed_hash(self.key, value))

    def error(self, rule: str, found: str = "", way_out: str = "") -> DataError:
        """Return the error of this dataset for a rule that it breaks."""
        return DataError(f"{self.dataset.name}: {rule}", found, way_out)

    def root(self) -> Path:
        """Return the raw folder or file; a DataError says what the user named, and what is expected
        there.
        """
        name, layout = self.dataset.name, f"expected: {self.dataset.raw_layout}"
        if self.raw is None:
            raise DataError(f"{name} is read from its raw download", "no --raw folder", layout)
        try:
            mode = self.raw.stat().st_mode
        except FileNotFoundError:
            near = nearest_path(self.raw)
            way_out = f"{near}; {layout}" if near else layout
            raise DataError(
                f"The raw download of {name} must exist", f"no {self.raw}", way_out
            ) from None
        except (OSError, ValueError) as error:
            found = getattr(error, "strerror", None) or "a name that no file can have"
            raise DataError(f"The raw download of {name} must be readable", found) from None
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            rule = f"The raw download of {name} must be a folder or a plain file"
            raise DataError(rule, "a FIFO, socket or device", "save it as a file first")
        if not os.access(self.raw, os.R_OK):
            raise DataError(f"The raw download of {name} must be readable", "Permission denied")
        return self.raw

    def base(self) -> Path:
        """Return the folder that locators are relative to: the raw folder, or that of the raw
        file.
        """
        root = self.root()
        return root if root.is_dir() else root.parent

    def has_fault(self, fault: str) -> bool:
        """Tell whether a fault of the released code is switched on."""
        return fault in self.spec.faults


@dataclass(frozen=True)
class Item:
    """One thing to open.

    Attributes:
        locator: Where it is, as :mod:`tasks.sources.raw` spells it. Never logged as it stands.
        label: Class index, or None when only reading tells (slices of a volume).
        group: Patient or other id whose images must stay on one side of the split; empty for its
            own.
        split: A split given by the user, or empty.
        details: What the reader needs to know besides (JSON values only).
        traits: As those of :class:`Sample`, where a table says them.
    """

    locator: str
    label: int | None
    group: str = ""
    split: Split = ""
    details: tuple[str | int | float | None, ...] = ()
    traits: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Sample:
    """One image read from an item.

    Attributes:
        pixels: ``(height, width)`` or ``(height, width, 3)``; uint8, or float32 in [0, 255].
        label, group: Where only reading tells them; None and empty take the item's.
        conversions: Names of what was done to make it so (``"inverted_monochrome1"``), counted in
            the record.
        flags: Names of what is doubtful but kept, counted in the record.
        patient: The header's patient, whatever the group is; one in several groups is flagged.

    Mode and size of ``pixels`` are compared between the classes: where they tell the label, the set
    is flagged; so are ``traits``, pairs (name, value) such as ("manufacturer", "X"). Values are
    kept as keyed hashes only.
    """

    pixels: NDArray[np.generic]
    label: int | None = None
    group: str = ""
    conversions: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    traits: tuple[tuple[str, str], ...] = ()
    patient: str = ""


@dataclass(frozen=True)
class Listing:
    """What a source found, in its stored order.

    Attributes:
        items: In an order that depends on the raw files only, never on the file system's listing
            order.
        block_size: How many items one task should read.
        excluded: Items left out on purpose by the dataset's own rules, reason to count (not
            faults).
        skipped: Pairs (locator, reason) of items already known to be unreadable.
        intensity: How raw values become pixels in [0, 255].
        flags: Names of what is doubtful about the whole set, with counts.
        one_each: Every item is one image, so that they can be counted without being read.
    """

    items: Sequence[Item]
    label_names: tuple[str, ...]
    dtype: Literal["uint8", "float32"] = "uint8"
    block_size: int = 128
    excluded: dict[str, int] = field(default_factory=dict)
    skipped: Sequence[tuple[str, str]] = ()
    intensity: str = "as stored, 8 bits"
    flags: dict[str, int] = field(default_factory=dict)
    one_each: bool = True


def first_of(names: Iterable[str], most: int = 5) -> str:
    """Spell the first names, with dots where there are more."""
    found = list(names)
    return ", ".join(found[:most]) + (", ..." if len(found) > most else "")


def count_lines(**told: Mapping[str, int]) -> list[str]:
    """Say what is told of a set, as ``left_out={"validation split": 3}``, one line a reason."""
    return [
        f"  {what.replace('_', ' ')}: {reason}, {count:,}"
        for what, counts in told.items()
        for reason, count in counts.items()
        if count
    ]


class SkipItem(Exception):
    """An item that cannot be used; ``reason`` names no file, id or tag value."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


Reader = Callable[[Item], Iterable[Sample]]


@dataclass(frozen=True)
class Source:
    """One raw layout; another package's may be any object with these two.

    Attributes:
        list_items: Returns all items without reading pixels; a raw download that is not as expected
            is a DataError.
        reader: Returns a function that reads one item; called once per task, so it may open what
            items share.
    """

    list_items: Callable[[RawRequest], Listing]
    reader: Callable[[RawRequest], Reader]
