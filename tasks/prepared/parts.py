"""Read blocks of items, and store the result of each block in part files.

If a preparation was interrupted, the next preparation reuses its part files. Each block has
two part files. ``<name>.npy`` contains the prepared images of the block, in the order of its
items. ``<name>.json`` contains the metadata of these images, with hashed ids. It is written
last, and atomically. Equal inputs result in equal part files. So two processes that prepare
the same data at the same time may overwrite each other's part files.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tasks.array_types import AnyArray
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

Image = AnyArray
"""A prepared image, ``(channels, height, width)`` with pixels in [0, 255]."""
PixelType = Literal["uint8", "float32"]
PIXEL_DTYPES = (np.uint8, np.float32)
"""Types that the pixels of a source may have."""
SPLIT_CODES: dict[Split, GivenSplit] = {split: code for code, split in ITEM_SPLITS.items()}
"""Codes of the given splits. The keys are the names of the splits in an item."""
METADATA_DTYPE = np.dtype(
    [
        ("item", "<i4"),
        ("label", "<i8"),
        ("group", "<i8"),
        ("patient", "<i8"),
        ("split", "i1"),
        ("digest", "V32"),
    ]
)
"""Dtype of the metadata of an image. ``item`` is the index of the item in the block. ``label``
is the class index. ``group`` is the keyed hash of the group. ``patient`` is the keyed hash of
the patient in the image header, or 0 if the header names no patient. ``split`` is the code of
the given split. ``digest`` is the SHA-256 of the prepared pixels.
"""
FORMAT_TRAIT = "mode, size or conversion of the raw image"
"""Name of a trait that every image has. Its value consists of the color mode, the size and the
conversions of the image."""
COLOR = "colour"
"""First word of the :data:`FORMAT_TRAIT` of a raw color image. Do not change its spelling,
because part files contain this word."""
GRAY = "grey"
"""First word of the :data:`FORMAT_TRAIT` of a raw gray image. Do not change its spelling
either."""


class Skip(NamedTuple):
    """An item that cannot be used.

    Attributes:
        locator_hash: Keyed hash of the item's locator, as text. The locator is the place of
            the item in the raw files.
        reason: The reason why the item cannot be used.
    """

    locator_hash: str
    reason: str


class TraitCount(NamedTuple):
    """The number of images of one class that have one value of a trait.

    A trait is a property of a raw image, such as its size, that a network could learn instead
    of the content of the image.

    Attributes:
        label: Class index.
        name: Name of the trait.
        value: Keyed hash of the value. For :data:`FORMAT_TRAIT`, it is the value itself.
        num_images: Number of images.
    """

    label: int
    name: str
    value: str
    num_images: int


@dataclass
class PartMetadata:
    """The metadata of the images of one block. The images are in a separate file.

    Attributes:
        num_items: Number of items in the block.
        rows: ``(num_images,)`` metadata of type :data:`METADATA_DTYPE`, in the order of the
            items.
        skipped: Items that cannot be used.
        conversions: Number of converted images for each conversion of pixels. The keys are the
            conversions in words.
        flags: Number of affected images for each possible problem. The keys are the problems
            in words.
        traits: Number of images for each class and each value of a trait. These numbers show
            whether a trait predicts the label.
    """

    num_items: int = 0
    rows: NDArray[np.void] = field(default_factory=lambda: np.zeros(0, METADATA_DTYPE))
    skipped: list[Skip] = field(default_factory=list)
    conversions: Counter[str] = field(default_factory=Counter)
    flags: Counter[str] = field(default_factory=Counter)
    traits: list[TraitCount] = field(default_factory=list)


def prepare_and_save_block(
    request: RawRequest,
    items: Sequence[Item],
    stem: Path,
    dtype: PixelType,
) -> PartMetadata:
    """Read one block of items, write its part files, and return the metadata.

    Args:
        request: The dataset and its raw files.
        items: The items of the block.
        stem: Path of the part files without file extension.
        dtype: Type of the prepared pixels.
    """
    part, images = prepare_block(request, items, dtype)
    save_part(stem, part, images)
    return part


def prepare_block(
    request: RawRequest, items: Sequence[Item], dtype: PixelType
) -> tuple[PartMetadata, list[Image]]:
    """Read one block of items. Return the metadata of its images, and the images themselves."""
    part = PartMetadata(num_items=len(items))
    images: list[Image] = []
    rows: list[tuple[int, int, int, int, int, bytes]] = []
    traits: Counter[tuple[int, str, str]] = Counter()
    reader = source_for(request.dataset.source).reader(request)
    for position, item in enumerate(items):
        locator_hash = keyed_hash(request.key, item.locator)
        try:
            prepared = _read_item(reader, item, request, dtype)
        except SkipItem as skip:
            part.skipped.append(Skip(hash_text(locator_hash), skip.reason))
            continue
        for image, label, sample in prepared:
            images.append(image)
            group = sample.group or item.group
            # If neither the sample nor the item has a group, the images of the item form one
            # group.
            group_hash = keyed_hash(request.key, group) if group else locator_hash
            patient_hash = keyed_hash(request.key, sample.patient) if sample.patient else 0
            split = SPLIT_CODES[item.split]
            rows.append((position, label, group_hash, patient_hash, split, digest(image)))
            part.conversions.update(sample.conversions)
            part.flags.update(sample.flags)
            for name, value in _traits(sample, item, request):
                traits[label, name, value] += 1
    part.rows = np.array(rows, METADATA_DTYPE)
    part.traits = [TraitCount(*trait, count) for trait, count in sorted(traits.items())]
    return part, images


class _PreparedImage(NamedTuple):
    image: Image
    label: int
    sample: Sample


def _read_item(
    reader: Reader, item: Item, request: RawRequest, dtype: PixelType
) -> list[_PreparedImage]:
    """Read all images of an item. If one of them cannot be used, the whole item is skipped.

    Raises:
        SkipItem: The item or one of its images cannot be used.
        DataError: The source returned an image without a label, or an object that is not a
            sample.
    """
    antialias = not request.has_fault("resize_without_antialias")
    prepared = []
    for sample in _samples(reader(item), request):
        label = item.label if sample.label is None else sample.label
        if label is None:
            raise request.error(
                f"the source {request.dataset.source} returned an image without a label",
                hint="Set `label` of each Item or Sample that the source returns",
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


def _samples(samples: object, request: RawRequest) -> Iterator[Sample]:
    """Yield the samples that a source returned for an item.

    Raises:
        DataError: The source returned an object that is not a sample, or a sample whose pixels
            are not valid.
    """
    source = f"the source {request.dataset.source}"
    if not isinstance(samples, Iterable):
        raise request.error(
            f"the reader of {source} returned {_kind(samples)} instead of samples",
            hint="Return a list of Sample",
        )
    for sample in samples:
        if not isinstance(sample, Sample):
            raise request.error(
                f"the reader of {source} returned {_kind(sample)} instead of a Sample",
                hint="Return a list of Sample",
            )
        shape = np.shape(sample.pixels)
        dtype = getattr(sample.pixels, "dtype", None)
        has_shape = len(shape) == 2 or (len(shape) == 3 and shape[2] == 3)
        if not has_shape or dtype not in PIXEL_DTYPES:
            raise request.error(
                f"the pixels from {source} are {_kind(sample.pixels)} with the shape {shape} and "
                f"the dtype {dtype}, which isweep cannot use",
                hint="Return an array of shape (height, width) or (height, width, 3) with uint8 "
                "or float32 values in [0, 255]",
            )
        yield sample


def _kind(value: object) -> str:
    return f"an object of type {type(value).__name__}"


def _traits(sample: Sample, item: Item, request: RawRequest) -> Iterator[tuple[str, str]]:
    """Yield the name and the value of every trait of an image.

    A trait is a property that a network could learn instead of the content of the image.
    """
    height, width = sample.pixels.shape[:2]
    mode = COLOR if sample.pixels.ndim == 3 else GRAY
    yield FORMAT_TRAIT, " ".join((mode, f"{height}x{width}", *sample.conversions))
    for name, value in (*sample.traits, *item.traits):
        yield name, request.hashed(value) if value else ""


def digest(image: Image) -> bytes:
    """Return the SHA-256 of an image's pixels, as little-endian bytes in C order."""
    little_endian = image.dtype.newbyteorder("<")
    values = np.ascontiguousarray(image, little_endian)
    return hashlib.sha256(values.data).digest()


def save_part(stem: Path, part: PartMetadata, images: Sequence[Image]) -> None:
    """Write the two part files of a block. The file of images is written first."""
    if images:
        with replacing(stem.with_suffix(".npy")) as file:
            np.save(file, np.stack(images), allow_pickle=False)
    metadata = vars(part) | {"rows": part.rows.tobytes().hex()}
    text = json.dumps(metadata, allow_nan=False)
    write_atomic(stem.with_suffix(".json"), text.encode())


def load_part(stem: Path) -> PartMetadata | None:
    """Return the metadata of a finished block; None if the block must be read again."""
    try:
        metadata = json.loads(stem.with_suffix(".json").read_text(encoding="utf-8"))
        metadata["rows"] = np.frombuffer(bytes.fromhex(metadata["rows"]), METADATA_DTYPE)
        metadata["skipped"] = [Skip(*fields) for fields in metadata["skipped"]]
        metadata["traits"] = [TraitCount(*fields) for fields in metadata["traits"]]
        part = PartMetadata(**metadata)
        has_all_images = not len(part.rows) or len(open_images(stem)) == len(part.rows)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return part if has_all_images else None


def open_images(stem: Path) -> Image:
    """Open the images of a block as a memory map, ``(num_images, channels, height, width)``."""
    images: Image = np.load(stem.with_suffix(".npy"), mmap_mode="r", allow_pickle=False)
    return images
