"""Part files: what one reading task leaves behind, so that an interrupted preparation goes on where it was.

A part is ``<n>.npy`` (images of one block of items, in order) and ``<n>.json`` (labels, hashed groups,
digests in one text, skips), the second written last and atomically. Equal inputs give equal parts, so two
processes that prepare the same data at the same time may overwrite each other's parts without harm.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import DataError
from tasks.atomic import replacing, write_atomic
from tasks.sources import source_for
from tasks.sources.base import Item, RawRequest, Reader, Sample, SkipItem, keyed_hash, spell
from tasks.sources.pictures import to_prepared

SPLIT_CODES = {"": 0, "train": 1, "test": 2}
DIGEST = np.dtype("V32")
"""A SHA-256 as an array's element: 32 bytes, where its hexadecimal text would take 256."""
IDS = dict.fromkeys(("labels", "groups", "patients"), np.int64)
PER_IMAGE = {"items": np.int32, **IDS, "splits": np.int8}
"""Columns of a part besides the digests."""
FORM = "mode, size or conversion of the raw image"
"""Name of the trait that every image has."""


@dataclass
class Part:
    """What is known of the images of one block; rows are in item order.

    A preparation holds the parts of all blocks, so what is kept per image are 61 bytes in arrays.

    Attributes:
        num_items: Items of the block.
        items: Place in the block of each image's item.
        labels: Class index of each image.
        groups: Keyed hash of each image's group.
        patients: Keyed hash of each image's patient in its header, 0 where none is known.
        splits: 0, 1 (train) or 2 (test) of each image.
        digests: SHA-256 of each prepared image's bytes, :data:`DIGEST`.
        skipped: Pairs (keyed hash of the locator, reason).
        conversions: Conversion name to number of images.
        flags: Flag name to number of images.
        traits: Tuples (label, name, keyed hash of the value, number of images) of what must not tell the
            label. Mode, size and conversion of the raw image are one of them, as they are.
    """

    num_items: int = 0
    items: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    labels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    groups: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    patients: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    splits: NDArray[np.int8] = field(default_factory=lambda: np.zeros(0, np.int8))
    digests: NDArray[np.void] = field(default_factory=lambda: np.zeros(0, DIGEST))
    skipped: list[tuple[str, str]] = field(default_factory=list)
    conversions: dict[str, int] = field(default_factory=dict)
    flags: dict[str, int] = field(default_factory=dict)
    traits: list[tuple[int, str, str, int]] = field(default_factory=list)


def read_part(request: RawRequest, items: Sequence[Item], stem: Path, dtype: str) -> Part:
    """Read one block of items, write its part files ``stem.*``, and return what is known of its images."""
    part, images = read_block(request, items, dtype)
    save_part(stem, images, part)
    return part


def read_block(
    request: RawRequest, items: Sequence[Item], dtype: str
) -> tuple[Part, list[NDArray[np.generic]]]:
    """Read one block of items; returns what is known of its images, and these in order."""
    part = Part(num_items=len(items))
    rows: list[tuple[int, int, int, int, int]] = []
    digests: list[bytes] = []
    images: list[NDArray[np.generic]] = []
    conversions: Counter[str] = Counter()
    flags: Counter[str] = Counter()
    traits: Counter[tuple[int, str, str]] = Counter()
    reader = source_for(request.dataset.source).reader(request)
    for place, item in enumerate(items):
        locator = keyed_hash(request.key, item.locator)
        group = keyed_hash(request.key, item.group) if item.group else locator
        try:
            found = _read_item(reader, item, request, dtype)
        except SkipItem as skip:
            part.skipped.append((spell(locator), skip.reason))
            continue
        for image, label, sample in found:
            images.append(image)
            own_group = keyed_hash(request.key, sample.group) if sample.group else group
            patient = keyed_hash(request.key, sample.patient) if sample.patient else 0
            rows.append((place, label, own_group, patient, SPLIT_CODES[item.split]))
            digests.append(digest(image))
            conversions.update(sample.conversions)
            flags.update(sample.flags)
            # What a network could tell apart besides content: grey or colour, size, conversions.
            height, width = sample.pixels.shape[:2]
            colour = "colour" if sample.pixels.ndim == 3 else "grey"
            traits[label, FORM, " ".join((colour, f"{height}x{width}", *sample.conversions))] += 1
            hidden = ((name, request.hashed(value) if value else "") for name, value in sample.traits)
            traits.update((label, *trait) for trait in hidden)
    for (name, dtype_of), column in zip(PER_IMAGE.items(), zip(*rows, strict=True), strict=False):
        setattr(part, name, np.array(column, dtype_of))
    part.digests = np.frombuffer(b"".join(digests), DIGEST)
    part.conversions, part.flags = dict(conversions), dict(flags)
    part.traits = [(*trait, count) for trait, count in sorted(traits.items())]
    return part, images


def _read_item(
    reader: Reader, item: Item, request: RawRequest, dtype: str
) -> list[tuple[NDArray[np.generic], int, Sample]]:
    """Read an item wholly before any of its images is kept, so that a skip leaves nothing behind."""
    spec = request.spec
    found = []
    for sample in reader(item):
        label = item.label if sample.label is None else sample.label
        if label is None:
            raise DataError(
                "A source must give each image a label",
                f"none from {request.dataset.source}",
                "set label in its Item or in its Sample",
            )
        image = to_prepared(
            sample.pixels,
            image_size=spec.image_size,
            channels=spec.channels,
            dtype="float32" if dtype == "float32" else "uint8",
            antialias=not request.has_fault("resize_without_antialias"),
        )
        if image.min() == image.max():
            raise SkipItem("constant image")
        found.append((image, label, sample))
    return found


def digest(image: NDArray[np.generic]) -> bytes:
    """Return the SHA-256 of an image's bytes in C order, little endian."""
    return hashlib.sha256(np.ascontiguousarray(image, image.dtype.newbyteorder("<")).data).digest()


def save_part(stem: Path, images: list[NDArray[np.generic]], part: Part) -> None:
    """Write a part's files, its images first."""
    if images:
        with replacing(stem.with_suffix(".npy")) as file:
            np.save(file, np.stack(images), allow_pickle=False)
    known = {name: getattr(part, name).tolist() for name in PER_IMAGE} | {
        "digests": part.digests.tobytes().hex()
    }
    write_atomic(stem.with_suffix(".json"), json.dumps(vars(part) | known, allow_nan=False).encode())


def load_part(stem: Path) -> Part | None:
    """Return a finished part, or None when it has to be read (again)."""
    try:
        known = json.loads(stem.with_suffix(".json").read_text(encoding="utf-8"))
        known |= {name: np.array(known[name], dtype) for name, dtype in PER_IMAGE.items()}
        part = Part(**known | {"digests": np.frombuffer(bytes.fromhex(known["digests"]), DIGEST)})
        if len({len(getattr(part, name)) for name in (*PER_IMAGE, "digests")}) > 1:
            return None
        if len(part.labels) and len(open_images(stem)) != len(part.labels):
            return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    part.skipped = [(locator, reason) for locator, reason in part.skipped]
    part.traits = [(label, name, value, count) for label, name, value, count in part.traits]
    return part


def open_images(stem: Path) -> NDArray[np.generic]:
    """Return a part's images ``(num_images, channels, height, width)``, mapped, not read."""
    images: NDArray[np.generic] = np.load(stem.with_suffix(".npy"), mmap_mode="r", allow_pickle=False)
    return images
