"""The interface of a dataset source: a cheap listing of items, and a reader of one item's images.

The main process lists items once; worker tasks read them. An item is one thing to open (a file, a
volume, a row of an array file), so that nothing is opened twice.

Items and samples carry raw locators and group ids, which may name patients. They leave the reading
code only as keyed hashes: :mod:`tasks.prepared.parts` hashes them before anything is stored, logged
or raised.
"""

from __future__ import annotations

import hashlib
import os
import re
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
"""File that holds the key, in the folder of the prepared datasets."""
KEY_VARIABLE = "ISWEEP_HASH_KEY"
"""Environment variable that holds a lab's own key. It goes before the file."""
UNKEYED = "unkeyed"
"""The key if there is no folder of prepared datasets. Everybody knows it, so hashes made with it
hide nothing, and messages must not show them."""
MIN_KEY_LENGTH = 16
"""Characters of a key. A shorter one could be found by trying all keys, and then every id."""

Split = Literal["", "train", "test"]
"""The split that the data give an image; empty if they give none."""


def hash_key(folder: Path) -> str:
    """Return the key that hides file names and patient ids.

    The key is the value of :data:`KEY_VARIABLE`, or a random key that is written once to ``folder``
    (mode 0600). Anyone with the key can find the file behind a hash. Without it, no id can be
    found by hashing all possible ids.

    Args:
        folder: The folder of the prepared datasets.

    Returns:
        The key, at least :data:`MIN_KEY_LENGTH` characters.

    Raises:
        SetupError: The key is too short or cannot be read.
    """
    key = os.environ.get(KEY_VARIABLE)
    origin = KEY_VARIABLE
    hint = "Set a longer value"
    if not key:
        path = folder / KEY_FILE
        if not path.exists():
            # If another process was first, its key is used.
            write_once(path, secrets.token_hex(32).encode(), mode=0o600)
        origin = str(path)
        hint = (
            "Restore it from a backup, since with another key no hash leads back to its file. "
            "Without a backup, delete it and prepare the datasets again"
        )
        try:
            key = path.read_text(encoding="ascii").strip()
        except (OSError, ValueError) as error:
            raise SetupError(
                f"The key that hides patient ids cannot be read: {path}: {error}", hint=hint
            ) from None
    if len(key) >= MIN_KEY_LENGTH:
        return key
    raise SetupError(
        f"The key that hides patient ids is too short: {origin} has {len(key)} characters, and "
        f"{MIN_KEY_LENGTH} are needed",
        hint=hint,
    )


def keyed_hash(key: str, value: str) -> int:
    """Return 63 bits of a keyed BLAKE2b hash of ``value``."""
    # File names need not be UTF-8; Python keeps their odd bytes as surrogates.
    raw = value.encode("utf-8", "surrogateescape")
    # BLAKE2b takes at most 64 bytes of key.
    digest = hashlib.blake2b(raw, key=key.encode()[:64], digest_size=8).digest()
    # 63 bits fit into the signed 64-bit integers of the prepared store.
    return int.from_bytes(digest, "big") >> 1


HASH_PATTERN = re.compile(r"\b[0-9a-f]{16}\b")
"""A keyed hash in a message."""


def hash_text(hashed: int) -> str:
    """Format a keyed hash as messages and records show it: 16 hex digits."""
    return f"{hashed:016x}"


@dataclass(frozen=True)
class RawRequest:
    """The arguments of a source: the dataset, its preparation, and the place of the raw files.

    Attributes:
        dataset: Row of the table of datasets, or a row made for a user's own data.
        spec: The preparation for which the data are read. A few sources depend on its task or
            faults.
        raw: Folder or file of the download; None if the user named none.
        key: Key of the hashes in messages, see :func:`hash_key`.
    """

    dataset: DatasetSpec
    spec: PreparedSpec
    raw: Path | None = None
    key: str = UNKEYED

    def hashed(self, value: str) -> str:
        """Return the keyed hash of a file name or id, as messages show it."""
        return hash_text(keyed_hash(self.key, value))

    def error(self, problem: str, *, hint: str = "") -> DataError:
        """Return an error that names this dataset.

        Args:
            problem: What is wrong; it must not name a file or patient.
            hint: What to do.
        """
        return DataError(f"{self.dataset.name}: {problem}", hint=hint)

    def root(self) -> Path:
        """Return the raw folder or file after checking that it can be read.

        Raises:
            DataError: No path was given, or it is missing, unreadable, or neither a folder nor a
                plain file.
        """
        name = self.dataset.name
        layout = f"The download needs this layout: {self.dataset.raw_layout}"
        if self.raw is None:
            raise DataError(
                f"{name} is read from its raw download, but no --raw folder was given",
                hint=f"{layout}. To prepare it for a sweep: isweep prepare {name} --raw DIR "
                "--sweep SWEEP",
            )
        try:
            mode = self.raw.stat().st_mode
        except FileNotFoundError:
            raise DataError(
                f"The raw download {self.raw} of {name} was not found",
                hint=f"{nearest_path(self.raw)} {layout}".lstrip(),
            ) from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "a name that no file can have"
            raise DataError(f"The raw download of {name} cannot be read: {reason}") from None
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise DataError(
                f"The raw download of {name} is a FIFO, socket or device",
                hint="Save it as a file first",
            )
        if not os.access(self.raw, os.R_OK):
            raise DataError(f"The raw download of {name} cannot be read: Permission denied")
        return self.raw

    def base(self) -> Path:
        """Return the folder that locators are relative to: the raw folder, or the raw file's."""
        root = self.root()
        return root if root.is_dir() else root.parent

    def has_fault(self, fault: str) -> bool:
        """Return whether this preparation repeats a fault of the released code."""
        return fault in self.spec.faults


@dataclass(frozen=True)
class Item:
    """One thing to open: a file, an archive member, a volume or a row of an array file.

    Attributes:
        locator: Where it is below the raw folder, see :mod:`tasks.sources.raw`. It is only logged
            as a hash.
        label: Class index; None if it is known only after reading (slices of a volume).
        group: Id of a patient, or of another group of images that a split must not divide; empty
            if the item is a group of its own.
        split: The split that the data give, or empty.
        details: Further values that the reader needs (JSON values only).
        traits: Pairs (name, value) as in :class:`Sample`, if a table gives them.
    """

    locator: str
    label: int | None
    group: str = ""
    split: Split = ""
    details: tuple[str | int | float | None, ...] = ()
    traits: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Sample:
    """One image that was read from an item.

    Mode and size of ``pixels`` and all ``traits`` are compared between the classes. If the label
    can be predicted from one of them, the dataset is flagged. Values of traits are stored as keyed
    hashes only.

    Attributes:
        pixels: ``(height, width)`` or ``(height, width, 3)``; uint8, or float32 in [0, 255].
        label: Class index, if it is known only after reading; None for the item's.
        group: Group id, if it is known only after reading; empty for the item's.
        conversions: Names of the changes to the stored values, such as
            ``"MONOCHROME1 inverted"``; counted in the record.
        flags: Names of doubts about an image that is used anyway; counted in the record.
        traits: Pairs (name, value), such as ``("manufacturer", "X")``, from which the label must
            not be predictable.
        patient: Patient id in the file's header. If a patient is in several groups, the dataset is
            flagged.
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
    """All items of a raw download, in the order in which they are stored.

    Attributes:
        items: All items. Their order depends on the raw files only, not on the file system.
        label_names: Names of the classes; a label is an index into them.
        dtype: Type of the prepared pixels.
        block_size: Number of items that one reading task takes.
        excluded: Reason -> number of items that the rules of the dataset leave out. Expected, not
            errors.
        skipped: Pairs (locator, reason) of items that are already known to be unusable.
        intensity: The rule by which raw values become pixels in [0, 255], in words.
        flags: Doubt about the dataset as a whole -> number of items that it concerns.
        one_image_per_item: Whether every item is one image, so that images can be counted without
            reading them.
    """

    items: Sequence[Item] = ()
    label_names: tuple[str, ...] = ()
    dtype: Literal["uint8", "float32"] = "uint8"
    block_size: int = 128
    excluded: dict[str, int] = field(default_factory=dict)
    skipped: Sequence[tuple[str, str]] = ()
    intensity: str = "as stored, 8 bits"
    flags: dict[str, int] = field(default_factory=dict)
    one_image_per_item: bool = True


class SkipItem(Exception):
    """An item that cannot be used.

    Attributes:
        reason: The reason in words; it names no file, id or value of a header.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


Reader = Callable[[Item], Iterable[Sample]]
"""A function that reads the images of one item; raises :class:`SkipItem` if there are none."""


@dataclass(frozen=True)
class Source:
    """A raw layout, as two functions. Another package may use any object with these attributes.

    Attributes:
        list_items: Lists all items without reading pixels. Raises DataError if the download is not
            as expected.
        reader: Makes the :data:`Reader` of a request. It is called once per task, so it may open
            files that several items share.
    """

    list_items: Callable[[RawRequest], Listing]
    reader: Callable[[RawRequest], Reader]


def first_of(names: Iterable[str], limit: int = 5) -> str:
    """Join the first names by commas, with dots if there are more than ``limit``."""
    listed = list(names)
    if len(listed) > limit:
        listed[limit:] = ["..."]
    return ", ".join(listed)


def format_counts(**counts_by_kind: Mapping[str, int]) -> list[str]:
    """Format counts by reason, one line each, such as ``left_out={"validation split": 3}``."""
    lines = []
    for kind, counts in counts_by_kind.items():
        for reason, count in counts.items():
            if count:
                lines.append(f"  {kind.replace('_', ' ')}: {reason}, {count:,}")
    return lines
