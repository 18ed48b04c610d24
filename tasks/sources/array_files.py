"""A file with named arrays, and which of its arrays are images and labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import DataError
from tasks.sources.base import RawRequest, Split
from tasks.sources.splits import split_of

KEYS = (("images", "labels"), ("x", "y"), ("X", "y"), ("X", "Y"), ("data", "target"), ("data", "labels"))
SPLIT_KEYS = (
    ("{}_images", "{}_labels", "{}_{{}}"),
    ("x_{}", "y_{}", "{{}}_{}"),
    ("X_{}", "y_{}", "{{}}_{}"),
)
"""Names of images and labels of a split, and of its other arrays (``train_groups``, ``groups_train``)."""
_PAIRS = [pattern for images, labels, others in SPLIT_KEYS for pattern in (images, labels, others)]
MAX_NAMED = 10
WAY_OUT = "np.savez(PATH, images=images, labels=labels)"


@dataclass(frozen=True)
class ArrayHeader:
    """Shape and dtype of a stored array."""

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]


class ArrayFile(Protocol):
    """One file with named arrays. Reading raises SkipItem for damage, headers raise DataError."""

    def names(self) -> list[str]:
        """Return the names of the arrays."""
        ...

    def header(self, name: str) -> ArrayHeader:
        """Return shape and dtype, checked against what the file can hold."""
        ...

    def load(self, name: str) -> NDArray[np.generic]:
        """Return a whole (small) array."""
        ...

    def rows(self, name: str) -> Rows:
        """Return a reader of an array's rows, cheapest in rising order."""
        ...


class Rows(Protocol):
    """Rows of one array."""

    def row(self, index: int) -> NDArray[np.generic]:
        """Return one row."""
        ...


@dataclass(frozen=True)
class Part:
    """Images of one split: names of their arrays."""

    images: str
    labels: str
    split: Split
    prefix: str = "{}"
    """How the other arrays of this split are called: ``{}`` is ``groups`` or ``splits``."""


def find_parts(file: ArrayFile, request: RawRequest) -> tuple[list[Part], int]:
    """Return the arrays to read, and how many validation images are left out.

    Raises:
        DataError: when no known pair of names is there, or several.
    """
    names = set(file.names())
    found = [[Part(images, labels, "")] for images, labels in KEYS if {images, labels} <= names]
    left_out = 0
    for images, labels, others in SPLIT_KEYS:
        parts = []
        for word in ("train", "test", "val", "valid"):
            pair = images.format(word), labels.format(word)
            if not set(pair) <= names:
                _check_no_half(pair, names, request)
                continue
            split = split_of(word)
            if split is None:
                left_out += file.header(pair[0]).shape[0]
            else:
                parts.append(Part(*pair, split or "", others.format(word)))
        if parts:
            found.append(parts)
    if len(found) > 1:
        listed = "; ".join(", ".join(part.images for part in parts) for parts in found)
        raise DataError(f"{request.dataset.name}: one set of images must be in the file", listed, WAY_OUT)
    if not found:
        for images, labels in KEYS:
            if images in ("x", "X"):
                _check_no_half((images, labels), names, request)
        for name in ("images", "labels"):
            if name not in names:
                shown = ", ".join(sorted(names)[:10]) or "no array"
                raise DataError(
                    f"{request.dataset.name}: array {name} must be in the .npz or HDF5 file",
                    f"it is not; the file has {shown}",
                    f"{WAY_OUT}; x and y, and MedMNIST's and Keras' keys are known too",
                )
    return found[0], left_out


def _check_no_half(pair: tuple[str, str], names: set[str], request: RawRequest) -> None:
    """Refuse images of a split without their labels, which would be dropped without a word."""
    if pair[0] in names:
        rule = f"{request.dataset.name}: {pair[0]} and {pair[1]} must both be in the file"
        raise DataError(rule, f"no {pair[1]}", "take the images out, or put their labels in")


def unused_arrays(file: ArrayFile, parts: list[Part]) -> list[str]:
    """Return the arrays that nobody reads, such as patients under a name that is not known."""
    used = {name for part in parts for name in (part.images, part.labels)} | {"label_names"}
    used |= {part.prefix.format(name) for part in parts for name in ("groups", "splits")}
    of_validation = {name.format(word).format("groups") for name in _PAIRS for word in ("val", "valid")}
    return sorted(set(file.names()) - used - of_validation)[:MAX_NAMED]


def image_header(file: ArrayFile, name: str, request: RawRequest) -> ArrayHeader:
    """Return the header of an array of images.

    Raises:
        DataError: for another shape or dtype.
    """
    header = file.header(name)
    shape = header.shape
    colour = len(shape) == 4 and (shape[1] in (1, 3) or shape[3] in (1, 3))
    if not (len(shape) == 3 or colour) or 0 in shape or header.dtype.kind not in "uif":
        raise DataError(
            f"{request.dataset.name}: {name} must be numbers of shape (n, height, width), "
            "(n, height, width, 3) or (n, 3, height, width)",
            f"{header.dtype} {shape}",
        )
    return header
