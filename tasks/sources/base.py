"""The interface of a dataset source. A source lists items, and reads the images of each item.

The main process lists the items once. Worker tasks read the items. An item is the data that a
reader reads at once, such as a file, a volume or a row of an array file. No file is therefore
opened twice.

Items and samples contain raw locators and group ids, which may name patients. Before isweep
stores, logs or prints a locator or id, :mod:`tasks.prepared.parts` replaces it by a keyed
hash.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from search_spaces.errors import DataError, SetupError, missing_path_hint
from search_spaces.specs import DatasetSpec, PreparedSpec
from tasks.array_types import AnyArray
from tasks.atomic import read_whole, write_once

logger = logging.getLogger(__name__)
KEY_FILE = ".hash_key"
"""Name of the file with the hash key, in the folder of the prepared datasets."""
KEY_VARIABLE = "ISWEEP_HASH_KEY"
"""Environment variable for a user's hash key. If it is set, the key in the file is not used."""
UNKEYED = "unkeyed"
"""The key if there is no folder of prepared datasets. This key is public, so hashes with it do
not hide ids. Messages must therefore not show such hashes."""
MIN_KEY_LENGTH = 16
"""Smallest number of characters of a key. A shorter key could be found by trying all keys.
Everybody who has the key can find the ids behind the hashes."""

KEY_BYTES = 32
"""Number of random bytes of a new key. The file contains the key as two hex digits per
byte."""
CHECKSUM_LENGTH = 16
"""Number of hex digits of the checksum in the key file."""
PREPARED_RECORDS = "*/complete.json"
"""Pattern that finds the records of prepared datasets in their folder. The records contain
hashes."""

Split = Literal["", "train", "test"]
"""The split of an image according to the raw data; an empty text if the raw data name no
split."""


def hash_key(folder: Path, *, create: bool = True) -> str:
    """Return the key of the hashes that replace file names and patient ids.

    The key is the value of :data:`KEY_VARIABLE`. If this variable is not set, the key comes
    from a file in ``folder``. isweep writes this file once (mode 0600), with a random key and
    its checksum. With the key, a person can find the id behind a hash by hashing all possible
    ids. Without the key, this is impossible.

    Args:
        folder: The folder of the prepared datasets.
        create: True to write a missing file with a new key; False to raise an error if the
            file is missing.

    Returns:
        The key, at least :data:`MIN_KEY_LENGTH` characters.

    Raises:
        SetupError: The key is too short, missing or damaged, or cannot be read or written.
    """
    key = os.environ.get(KEY_VARIABLE)
    if not key:
        path = folder / KEY_FILE
        try:
            return _key_in_file(path, create=create)
        except PermissionError:
            raise SetupError(
                "isweep replaces patient ids by hashes, but has no permission to use the file "
                f"{path} with the key for these hashes",
                hint=f"Change the permissions of the folder {folder} and of this file, or "
                "choose another --root. Do not delete the file, because other users may "
                "need its key",
            ) from None
    length = len(key.strip())
    if length < MIN_KEY_LENGTH:
        raise SetupError(
            f"The key with which isweep hashes patient ids is too short: {KEY_VARIABLE} has "
            f"{length} characters, not counting spaces at its start and end, but it needs at least "
            f"{MIN_KEY_LENGTH}",
            hint=f"Set {KEY_VARIABLE} to a longer text",
        )
    try:
        key.encode()
    except UnicodeEncodeError:
        raise SetupError(
            f"The key in {KEY_VARIABLE} contains bytes that are not UTF-8",
            hint=f"Set {KEY_VARIABLE} to letters and digits",
        ) from None
    return key


def _key_in_file(path: Path, *, create: bool) -> str:
    """Return the key in a file.

    The file contains the key, a space and the checksum of the key. Files of older versions
    contain only the key.

    Raises:
        SetupError: The file is missing or damaged, or cannot be read.
        PermissionError: isweep has no permission to read or write the file.
    """
    restore = f"Restore {path} from a backup. If the key was in {KEY_VARIABLE}, set this variable"
    hint = (
        f"{restore}. If there is no backup, delete the file. isweep then writes a new key, and "
        "`isweep locate` no longer finds files for hashes that were made with the old key"
    )
    if not path.exists():
        if not create:
            raise SetupError(
                f"The file {path} with the key for hashes of patient ids is missing",
                hint=restore,
            )
        if any(path.parent.glob(PREPARED_RECORDS)):
            logger.warning(
                "The file %s with the key for hashes of patient ids is missing, so isweep writes "
                "a new key. With the new key, `isweep locate` finds no file for hashes in older "
                "messages and records. To use the old key, restore this file from a backup, or "
                "set %s",
                path,
                KEY_VARIABLE,
            )
        new_key = secrets.token_hex(KEY_BYTES)
        # If another process wrote the file first, its key is used.
        write_once(path, f"{new_key} {_checksum(new_key)}\n".encode(), mode=0o600)
    try:
        key, *checksums = read_whole(path).decode("ascii").split() or [""]
    except PermissionError:
        raise
    except (OSError, ValueError) as error:
        raise SetupError(
            "isweep replaces patient ids by hashes, but cannot read the file with the key for "
            f"these hashes: {error}",
            hint=hint,
        ) from None
    num_digits = 2 * KEY_BYTES
    if len(key) != num_digits:
        raise SetupError(
            f"The key for hashes of patient ids is damaged: {path} has {len(key)} characters "
            f"instead of {num_digits}",
            hint=hint,
        )
    if checksums not in ([], [_checksum(key)]):
        raise SetupError(
            "The key for hashes of patient ids is damaged: it does not have the checksum that "
            f"{path} contains",
            hint=hint,
        )
    return key


def _checksum(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:CHECKSUM_LENGTH]


def keyed_hash(key: str, value: str) -> int:
    """Return 63 bits of a keyed BLAKE2b hash of ``value``."""
    # A file name may contain bytes that are not UTF-8, which Python represents as surrogates.
    raw = value.encode("utf-8", "surrogateescape")
    # BLAKE2b accepts a key of at most 64 bytes.
    digest = hashlib.blake2b(raw, key=key.encode()[:64], digest_size=8).digest()
    # The prepared store has signed 64-bit integers, which hold 63 bits without the sign.
    return int.from_bytes(digest, "big") >> 1


HASH_PATTERN = re.compile(r"\b[0-9a-f]{16}\b")
"""Pattern of a keyed hash in a message."""


def hash_text(hashed: int) -> str:
    """Format a keyed hash as 16 hex digits, for messages and records."""
    return f"{hashed:016x}"


@dataclass(frozen=True)
class RawRequest:
    """The arguments of a source: the dataset, its preparation, and the path of the raw files.

    Attributes:
        dataset: Row of the table of datasets, or a row that isweep made for user data.
        spec: The preparation for which the data are read. A few sources read its fields
            ``task`` and ``faults``.
        raw: Folder or file of the download; None if the user gave no path.
        key: Key of the hashes in messages, see :func:`hash_key`.
    """

    dataset: DatasetSpec
    spec: PreparedSpec
    raw: Path | None = None
    key: str = UNKEYED

    def hashed(self, value: str) -> str:
        """Return the keyed hash of a file name or id, in the form that messages contain."""
        return hash_text(keyed_hash(self.key, value))

    def error(self, problem: str, *, hint: str = "") -> DataError:
        """Return an error whose message begins with the name of this dataset.

        Args:
            problem: The problem in words, without the name of a file or patient.
            hint: The action that fixes the problem.
        """
        return DataError(f"{self.dataset.name}: {problem}", hint=hint)

    def root(self) -> Path:
        """Check that the raw folder or file can be read, and return its path.

        Raises:
            DataError: The user gave no path, or the path does not exist, cannot be read, or is
                neither a folder nor a plain file.
        """
        name = self.dataset.name
        layout = f"The download needs this layout: {self.dataset.raw_layout}"
        if self.raw is None:
            raise DataError(
                f"isweep reads {name} from its raw download, but --raw is not set",
                hint=f"Set --raw to the folder of the download. {layout}. To prepare {name} "
                f"for a sweep, run `isweep prepare {name} --raw DIR --sweep SWEEP`",
            )
        try:
            mode = self.raw.stat().st_mode
        except FileNotFoundError:
            raise DataError(
                f"The raw download {self.raw} of {name} was not found",
                hint=f"{missing_path_hint(self.raw)} {layout}".lstrip(),
            ) from None
        except (OSError, ValueError) as error:
            reason = (
                getattr(error, "strerror", None)
                or "the path contains a character that is not allowed"
            )
            raise DataError(
                f"The raw download of {name} cannot be read: {reason}",
                hint="Check the path and its permissions",
            ) from None
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise DataError(
                f"The raw download of {name} is a FIFO, socket or device file",
                hint="Save its content as a file, and set --raw to this file",
            )
        if not os.access(self.raw, os.R_OK):
            raise DataError(
                f"The raw download of {name} cannot be read: Permission denied",
                hint="Change its permissions, for example with chmod u+r",
            )
        return self.raw

    def base(self) -> Path:
        """Return the raw folder, or the folder of the raw file. Locators are relative to it."""
        root = self.root()
        return root if root.is_dir() else root.parent

    def has_fault(self, fault: str) -> bool:
        """Return whether this preparation repeats a fault of the released code."""
        return fault in self.spec.faults


@dataclass(frozen=True)
class Item:
    """The data that a reader reads at once: a file, an archive member, a volume or an array's row.

    Attributes:
        locator: Path of the item below the raw folder, see :mod:`tasks.sources.raw`. isweep
            logs only the hash of the path. Two items without a group must have different
            locators. Otherwise their images would form one group.
        label: Class index; None if only the images show the label, as for slices of a volume.
        group: Id of a patient, or of another group of images that a split must not separate.
            If the id is empty, the images of this item form a separate group.
        split: The split according to the raw data; empty if the raw data name no split.
        details: Further values that the reader needs. Only JSON values are allowed.
        traits: Pairs (name, value) as in :class:`Sample`, from columns of a table.
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

    isweep compares the color mode and the size of ``pixels``, and all ``traits``, between the
    classes. If one of these predicts the label, the record of the dataset gets a flag. isweep
    stores the values of traits as keyed hashes.

    Attributes:
        pixels: ``(height, width)`` or ``(height, width, 3)``; uint8, or float32 in [0, 255].
        label: Class index; None if the field ``label`` of the item contains it.
        group: Group id; empty if the field ``group`` of the item decides the group.
        conversions: Changes to the stored values in words, such as ``"MONOCHROME1 inverted"``.
            The record of the dataset counts them.
        flags: Possible problems of the image, in words. The record of the dataset counts them.
        traits: Pairs (name, value), such as ``("manufacturer", "X")``.
        patient: Patient id in the file's header; empty if the header has none. If a patient is
            in several groups, the record of the dataset gets a flag.
    """

    pixels: AnyArray
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
        items: All items. Their order depends only on the raw files, not on the order in which
            the file system lists them.
        label_names: Names of the classes. A label is an index into this tuple.
        dtype: Type of the prepared pixels.
        block_size: Number of items that one reading task reads.
        excluded: Reason -> number of items that the rules of the dataset leave out. Excluded
            items are not errors.
        skipped: Pairs (locator, reason) of items that cannot be used.
        intensity: Text that describes how raw values become pixels in [0, 255].
        flags: Possible problem of the dataset, in words -> number of affected items.
        one_image_per_item: True if every item is one image. The number of images is then known
            before isweep reads an image.
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
    """Error for an item that cannot be used.

    Attributes:
        reason: The reason in words, without the name of a file, an id or the value of a tag.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


Reader = Callable[[Item], Iterable[Sample]]
"""A function that reads the images of one item. For an item without images, the function
raises :class:`SkipItem`."""


@dataclass(frozen=True)
class Source:
    """A source of images: a function that lists items, and a function that returns their reader.

    A source of another package may be any object with these two attributes.

    Attributes:
        list_items: Function that lists all items without reading pixels. If the download does
            not have the expected layout, the function raises DataError.
        reader: Function that returns the :data:`Reader` of a request. isweep calls this
            function once per task, so it may open files that several items share.
    """

    list_items: Callable[[RawRequest], Listing]
    reader: Callable[[RawRequest], Reader]


def first_of(names: Iterable[str], limit: int = 5) -> str:
    """Join the first ``limit`` names by commas. If there are more names, add dots."""
    listed = list(names)
    if len(listed) > limit:
        listed[limit:] = ["..."]
    return ", ".join(listed)


def format_counts(**counts_by_kind: Mapping[str, int]) -> list[str]:
    """Format the numbers of items by reason, one line per reason.

    Args:
        counts_by_kind: Kind -> reason -> count, such as ``left_out={"validation split": 3}``.
    """
    lines = []
    for kind, counts in counts_by_kind.items():
        for reason, count in counts.items():
            if count:
                lines.append(f"  {kind.replace('_', ' ')}: {reason}, {count:,}")
    return lines
