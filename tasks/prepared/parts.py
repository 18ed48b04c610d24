"""Part files: what one reading task leaves behind, so that an interrupted preparation goes on where
it was.

A part is ``<n>.npy`` (images of one block of items, in order) and ``<n>.json`` (what is known of
them, ids hashed), the second written last and atomically. Equal inputs give equal parts, so two
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

from tasks.atomic import replacing, write_atomic
from tasks.sources import source_for
from tasks.sources.base import Item, RawRequest, Reader, Sample, SkipItem, hash_text, keyed_hash
from tasks.sources.pictures import to_prepared

SPLIT_CODES = {"": 0, "train": 1, "test": 2}
IMAGE = np.dtype(
    [
        *(("item", "<i4"), ("label", "<i8"), ("group", "<i8")),
        *(("patient", "<i8"), ("split", "i1"), ("digest", "V32")),
    ]
)
"""What is kept of an image: place of its item in the block, class index, keyed hashes of its group
and of its header's patient (0: none known), code of its split, SHA-256 of its prepared bytes."""
FORM = "mode, size or conversion of the raw image"
"""Name of the trait that every image has."""


@dataclass
class Part:
    """What is known of the images of one block of items; a preparation holds the parts of all
    blocks.

    Attributes:
        rows: ``(num_images,)`` of :data:`IMAGE`, in item order.
        skipped: Pairs (keyed hash of the locator, reason).
        conversions: Conversion name to number of images.
        flags: Flag name to number of images.
        traits: Tuples (label, name, keyed hash of the value, number of images) of what must not
            tell the label. Mode, size and conversion of the raw image are one of them, as they are.
    """

    num_items: int = 0
    rows: NDArray[np.void] = field(default_factory=lambda: np.zeros(0, IMAGE))
    skipped: list[tuple[str, str]] = field(default_factory=list)
    conversions: Counter[str] = field(default_factory=Counter)
    flags: Counter[str] = field(default_factory=Counter)
    traits: list[tuple[int, str, str, int]] = field(default_factory=list)


def read_part(request: RawRequest, items: Sequence[Item], stem: Path, dtype: str) -> Part:
    """Read one block of items, write its part files ``stem.*``, and return what is known of its
    images.
    """
    part, images = read_block(request, items, dtype)
    save_part(stem, part, images)
    return part


def read_block(
    request: RawRequest, items: Sequence[Item], dtype: str
) -> tuple[Part, list[NDArray[np.generic]]]:
    """Read one block of items; returns what is known of its images, and these in order."""
    part = Part(num_items=len(items))
    rows: list[tuple[int, int, int, int, int, bytes]] = []
    images: list[NDArray[np.generic]] = []
    traits: Counter[tuple[int, str, str]] = Counter()
    reader = source_for(request.dataset.source).reader(request)
    for place, item in enumerate(items):
        locator = keyed_hash(request.key, item.locator)
        group = keyed_hash(request.key, item.group) if item.group else locator
        try:
            found = _read_item(reader, item, request, dtype)
        except SkipItem as skip:
            part.skipped.append((hash_text(locator), skip.reason))
            continue
        for image, label, sample in found:
            images.append(image)
            own_group = keyed_hash(request.key, sample.group) if sample.group else group
            patient = keyed_hash(request.key, sample.patient) if sample.patient else 0
            rows.append((place, label, own_group, patient, SPLIT_CODES[item.split], digest(image)))
            part.conversions.update(sample.conversions)
            part.flags.update(sample.flags)
            # What a network could tell apart besides content: grey or colour, size, conversions.
            height, width = sample.pixels.shape[:2]
            colour = "colour" if sample.pixels.ndim == 3 else "grey"
            traits[label, FORM, " ".join((colour, f"{height}x{width}", *sample.conversions))] += 1
            said = (*sample.traits, *item.traits)
            hidden = ((name, request.hashed(value) if value else "") for name, value in said)
            traits.update((label, *trait) for trait in hidden)
    part.rows = np.array(rows, IMAGE)
    part.traits = [(*trait, count) for trait, count in sorted(traits.items())]
    return part, images


def _read_item(
    reader: Reader, item: Item, request: RawRequest, dtype: str
) -> list[tuple[NDArray[np.generic], int, Sample]]:
    """Read an item wholly before any of its images is kept, so that a skip leaves nothing
    behind.
    """
    spec = request.spec
    found = []
    for sample in reader(item):
        label = item.label if sample.label is None else sample.label
        if label is None:
            raise request.error(
                "its source must give each image a label",
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


def save_part(stem: Path, part: Part, images: list[NDArray[np.generic]]) -> None:
    """Write a part's files, its images first."""
    if images:
        with replacing(stem.with_suffix(".npy")) as file:
            np.save(file, np.stack(images), allow_pickle=False)
    known = vars(part) | {"rows": part.rows.tobytes().hex()}
    write_atomic(stem.with_suffix(".json"), json.dumps(known, allow_nan=False).encode())


def load_part(stem: Path) -> Part | None:
    """Return a finished part, or None when it has to be read (again)."""
    try:
        known = json.loads(stem.with_suffix(".json").read_text(encoding="utf-8"))
        part = Part(**known | {"rows": np.frombuffer(bytes.fromhex(known["rows"]), IMAGE)})
        if len(part.rows) and len(open_images(stem)) != len(part.rows):
            return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    part.skipped = [(locator, reason) for locator, reason in part.skipped]
    part.traits = [(label, name, value, count) for label, name, value, count in part.traits]
    return part


def open_images(stem: Path) -> NDArray[np.generic]:
    """Return a part's images ``(num_images, channels, height, width)``, mapped, not read."""
    images: NDArray[np.generic] = np.load(
        stem.with_suffix(".npy"), mmap_mode="r", allow_pickle=False
    )
    return images
