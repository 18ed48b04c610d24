"""Part files: the result of one reading task, so that an interrupted preparation can go on.

A part is ``<name>.npy`` (the prepared images of one block of items, in order) and ``<name>.json``
(their metadata, ids hashed). The second is written last, and atomically. Equal inputs give equal
parts, so two processes that prepare the same data at once may overwrite each other's parts.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tasks.atomic import replacing, write_atomic
from tasks.sources import source_for
from tasks.sources.base import (
    Item,
    RawRequest,
    Reader,
    Sample,
    SkipItem,
    Split,
    hash_text,
    keyed_hash,
)
from tasks.sources.own.splits import ITEM_SPLITS, GivenSplit
from tasks.sources.pictures import to_prepared

Image = NDArray[np.generic]
"""A prepared image, ``(channels, height, width)`` with pixels in [0, 255]."""
PixelType = Literal["uint8", "float32"]
SPLIT_CODES: dict[Split, GivenSplit] = {split: code for code, split in ITEM_SPLITS.items()}
"""Code of a given split by the word that an item has for it."""
IMAGE = np.dtype(
    [
        ("item", "<i4"),
        ("label", "<i8"),
        ("group", "<i8"),
        ("patient", "<i8"),
        ("split", "i1"),
        ("digest", "V32"),
    ]
)
"""Metadata of an image: the index of its item in the block, its class, keyed hashes of its group
and of its header's patient (0 if unknown), the code of its split, SHA-256 of its prepared bytes.
"""
FORM = "mode, size or conversion of the raw image"
"""Name of the trait that every image has."""


class Skip(NamedTuple):
    """An item that cannot be used: the keyed hash of its locator, and why."""

    locator: str
    reason: str


class TraitCount(NamedTuple):
    """The number of images of a class for which a trait has one value.

    The value is a keyed hash, or, for the trait :data:`FORM`, the value itself.
    """

    label: int
    name: str
    value: str
    num_images: int


@dataclass
class Part:
    """Metadata of the images of one block of items. A preparation holds those of all blocks.

    Attributes:
        num_items: Number of items in the block.
        rows: ``(num_images,)`` of :data:`IMAGE`, in the order of the items.
        skipped: Items that cannot be used.
        conversions: Number of images by conversion.
        flags: Number of images by doubt.
        traits: Counts of the traits, from which the label must not be predictable.
    """

    num_items: int = 0
    rows: NDArray[np.void] = field(default_factory=lambda: np.zeros(0, IMAGE))
    skipped: list[Skip] = field(default_factory=list)
    conversions: Counter[str] = field(default_factory=Counter)
    flags: Counter[str] = field(default_factory=Counter)
    traits: list[TraitCount] = field(default_factory=list)


def read_part(request: RawRequest, items: Sequence[Item], stem: Path, dtype: PixelType) -> Part:
    """Read one block of items, write its part files, and return the metadata.

    Args:
        request: What is being prepared.
        items: The block.
        stem: Path of the part files without their ending.
        dtype: Type of the prepared pixels.
    """
    part, images = read_block(request, items, dtype)
    save_part(stem, part, images)
    return part


def read_block(
    request: RawRequest, items: Sequence[Item], dtype: PixelType
) -> tuple[Part, list[Image]]:
    """Read one block of items; return the metadata of its images, and the images in order."""
    part = Part(num_items=len(items))
    images: list[Image] = []
    rows: list[tuple[int, int, int, int, int, bytes]] = []
    traits: Counter[tuple[int, str, str]] = Counter()
    reader = source_for(request.dataset.source).reader(request)
    for position, item in enumerate(items):
        locator = keyed_hash(request.key, item.locator)
        try:
            prepared = _read_item(reader, item, request, dtype)
        except SkipItem as skip:
            part.skipped.append(Skip(hash_text(locator), skip.reason))
            continue
        for image, label, sample in prepared:
            images.append(image)
            group = locator  # an image without a group is a group of its own
            if sample.group or item.group:
                group = keyed_hash(request.key, sample.group or item.group)
            patient = 0
            if sample.patient:
                patient = keyed_hash(request.key, sample.patient)
            split = SPLIT_CODES[item.split]
            rows.append((position, label, group, patient, split, digest(image)))
            part.conversions.update(sample.conversions)
            part.flags.update(sample.flags)
            for name, value in _traits(sample, item, request):
                traits[label, name, value] += 1
    part.rows = np.array(rows, IMAGE)
    part.traits = [TraitCount(*trait, count) for trait, count in sorted(traits.items())]
    return part, images


class _PreparedImage(NamedTuple):
    image: Image
    label: int
    sample: Sample


def _read_item(
    reader: Reader, item: Item, request: RawRequest, dtype: PixelType
) -> list[_PreparedImage]:
    """Read all images of an item before any is kept, so that a skipped item leaves nothing.

    Raises:
        SkipItem: The item or one of its images cannot be used.
        DataError: The source gives no label.
    """
    antialias = not request.has_fault("resize_without_antialias")
    prepared = []
    for sample in reader(item):
        label = item.label if sample.label is None else sample.label
        if label is None:
            raise request.error(
                f"the source {request.dataset.source} gave an image no label",
                hint="Set label in its Item or in its Sample",
            )
        image = to_prepared(
            sample.pixels,
            image_size=request.spec.image_size,
            channels=request.spec.channels,
            dtype=dtype,
            antialias=antialias,
        )
        if image.min() == image.max():
            raise SkipItem("constant image")
        prepared.append(_PreparedImage(image, label, sample))
    return prepared


def _traits(sample: Sample, item: Item, request: RawRequest) -> Iterator[tuple[str, str]]:
    """Yield (name, value) of all that a network could learn instead of the content."""
    height, width = sample.pixels.shape[:2]
    mode = "colour" if sample.pixels.ndim == 3 else "grey"
    yield FORM, " ".join((mode, f"{height}x{width}", *sample.conversions))
    for name, value in (*sample.traits, *item.traits):
        yield name, request.hashed(value) if value else ""


def digest(image: Image) -> bytes:
    """Return the SHA-256 of an image's bytes in C order, little endian."""
    little_endian = image.dtype.newbyteorder("<")
    values = np.ascontiguousarray(image, little_endian)
    return hashlib.sha256(values.data).digest()


def save_part(stem: Path, part: Part, images: Sequence[Image]) -> None:
    """Write a part's files, the images first."""
    if images:
        with replacing(stem.with_suffix(".npy")) as file:
            np.save(file, np.stack(images), allow_pickle=False)
    metadata = vars(part) | {"rows": part.rows.tobytes().hex()}
    text = json.dumps(metadata, allow_nan=False)
    write_atomic(stem.with_suffix(".json"), text.encode())


def load_part(stem: Path) -> Part | None:
    """Return the metadata of a finished part, or None if it has to be read (again)."""
    try:
        metadata = json.loads(stem.with_suffix(".json").read_text(encoding="utf-8"))
        metadata["rows"] = np.frombuffer(bytes.fromhex(metadata["rows"]), IMAGE)
        metadata["skipped"] = [Skip(*fields) for fields in metadata["skipped"]]
        metadata["traits"] = [TraitCount(*fields) for fields in metadata["traits"]]
        part = Part(**metadata)
        has_all_images = not len(part.rows) or len(open_images(stem)) == len(part.rows)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return part if has_all_images else None


def open_images(stem: Path) -> Image:
    """Return a part's images ``(num_images, channels, height, width)``, mapped, not read."""
    images: Image = np.load(stem.with_suffix(".npy"), mmap_mode="r", allow_pickle=False)
    return images
