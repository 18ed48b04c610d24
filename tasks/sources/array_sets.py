"""Your own arrays, whatever file holds them: images, labels and, if you have them, groups, splits and names.

Layout: MedMNIST's and Keras' own loaders, as named below.

Keys: ``images`` and ``labels``, or ``x`` and ``y`` (``X``/``Y``, ``data``/``target``); with splits in the
keys, ``train_images`` and ``test_images`` as MedMNIST writes them (https://medmnist.com,
``medmnist/dataset.py``: ``{split}_images``, ``{split}_labels`` of shape ``(n, 1)``), or ``x_train`` and
``x_test`` as Keras' ``mnist.npz``. ``val`` beside them is left out and counted.

``images`` is ``(n, height, width)``, ``(n, height, width, 1 or 3)`` or ``(n, 1 or 3, height, width)``.
uint8 is taken as it is; other integers are scaled by each image's own maximum. Floats must lie in [0, 1] or
reach into the upper half of [0, 255], over the whole array; anything else needs ``pixel_range``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import DataError
from tasks.sources.array_files import (
    ArrayFile,
    ArrayHeader,
    Part,
    Rows,
    find_parts,
    image_header,
    unused_arrays,
)
from tasks.sources.array_labels import check_groups, name_labels, read_labels, read_splits, texts
from tasks.sources.base import Item, Listing, RawRequest, Reader, Sample, SkipItem, Split
from tasks.sources.groups import check_group_sides
from tasks.sources.image_files import by_own_maximum, negative_flags
from tasks.sources.splits import VALIDATION_LEFT_OUT

MAX_IMAGES = 10_000_000
"""More are a file that would like to take gigabytes for its labels: ImageNet has 14 million in all."""


class RowItems(Sequence[Item]):
    """Items of array rows, made when asked for: millions of small images need no list."""

    def __init__(self, columns: Sequence[_Column], start: int = 0, stop: int | None = None) -> None:
        self._columns = columns
        self._ends = np.cumsum([0, *(len(column.labels) for column in columns)])
        self._range = range(start, int(self._ends[-1]) if stop is None else stop)

    def __len__(self) -> int:
        return len(self._range)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | Sequence[Item]:
        if isinstance(index, slice):
            found = self._range[index]
            return (
                RowItems(self._columns, found.start, found.stop)
                if found.step == 1
                else [self[i] for i in range(len(self))[index]]
            )
        place = self._range[index]
        part = int(np.searchsorted(self._ends, place, side="right")) - 1
        return self._columns[part].item(place - int(self._ends[part]))

    def __reduce__(self) -> tuple[type[list[Item]], tuple[list[Item]]]:
        """Travel as a plain list: a block must not carry the columns of all the others to its task."""
        return list, (list(self),)

    def __iter__(self) -> Iterator[Item]:
        return (self[index] for index in range(len(self)))


@dataclass(frozen=True)
class _Column:
    """What is known of the rows of one part."""

    part: Part
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    groups: list[str] | None
    splits: list[Split] | None
    low: float | None
    high: float | None

    def sides(self) -> Iterator[tuple[str, Split]]:
        """Yield group and split of every row that has a group."""
        if self.groups is not None:
            for row in self.rows:
                yield self.groups[row], self.splits[row] if self.splits else self.part.split

    def item(self, place: int) -> Item:
        row = int(self.rows[place])
        group = self.groups[row] if self.groups else ""
        split = self.splits[row] if self.splits else self.part.split
        details = (self.part.images, self.low, self.high)
        return Item(row_locator(self.part.images, row), int(self.labels[place]), group, split, details)


def row_locator(array: str, row: int) -> str:
    """Return the locator of an image: its row, after its array's name unless that is ``images``."""
    return str(row) if array == "images" else f"{array}/{row}"


def list_arrays(file: ArrayFile, request: RawRequest) -> Listing:
    """Return one item per row.

    Raises:
        DataError: for missing or misshapen arrays, labels that are no classes, or images in no known range.
    """
    parts, left_out = find_parts(file, request)
    headers = [image_header(file, part.images, request) for part in parts]
    num_images = sum(head.shape[0] for head in headers)
    if num_images > MAX_IMAGES:
        raise DataError(f"{request.dataset.name}: at most {MAX_IMAGES:,} images", f"{num_images:,}")
    written = [
        read_labels(file, part.labels, head.shape[0], request)
        for part, head in zip(parts, headers, strict=True)
    ]
    names = name_labels(file, written, request)
    index = {name: label for label, name in enumerate(names)}
    shown, rule = _range(file, parts, headers, request)
    columns = []
    for part, head, labels in zip(parts, headers, written, strict=True):
        groups = texts(file, part.prefix.format("groups"), head.shape[0], request)
        splits, kept = read_splits(file, part, head.shape[0], request)
        left_out += head.shape[0] - len(kept)
        codes = np.array([index[labels[row]] for row in kept], np.int64)
        columns.append(_Column(part, kept, codes, groups, splits, *shown))
    check_groups([column.groups for column in columns], request)
    check_group_sides((pair for column in columns for pair in column.sides()), request)
    is_float = any(head.dtype.kind == "f" for head in headers) or request.dataset.pixel_range is not None
    return Listing(
        RowItems(columns),
        names,
        "float32" if is_float else "uint8",
        block_size=4096,
        excluded={VALIDATION_LEFT_OUT: left_out} if left_out else {},
        intensity=rule,
        flags=dict.fromkeys((f"array not used: {name}" for name in unused_arrays(file, parts)), 1),
    )


def array_reader(file: ArrayFile) -> Reader:
    """Return a reader of rows; rows are cheapest in rising order."""
    opened: dict[str, Rows] = {}

    def read(item: Item) -> tuple[Sample]:
        name, low, high = item.details
        rows = opened.setdefault(str(name), file.rows(str(name))) if name not in opened else opened[str(name)]
        row = _channels_last(rows.row(int(item.locator.rsplit("/", 1)[-1])))
        if low is None or high is None:
            if row.dtype == np.uint8:
                return (Sample(row),)
            pixels, note = by_own_maximum(row)
            return (Sample(pixels, conversions=(note,), flags=negative_flags(row)),)
        values = row.astype(np.float32)
        if not np.isfinite(values).all():
            raise SkipItem("values not finite")
        scaled = (values - np.float32(low)) * np.float32(255 / (float(high) - float(low)))
        outside = bool(scaled.min() < 0 or scaled.max() > 255)
        clipped = np.clip(scaled, 0, 255)
        return (Sample(clipped, flags=("values outside pixel_range cut",) if outside else ()),)

    return read


def load_images(file: ArrayFile, listing: Listing) -> NDArray[np.generic]:
    """Return the images of a listing's items as one array, as they are stored.

    Raises:
        DataError: when the parts have unequal shapes.
    """
    wanted: dict[str, list[int]] = {}
    for item in listing.items:
        wanted.setdefault(str(item.details[0]), []).append(int(item.locator.rsplit("/", 1)[-1]))
    try:
        found = []
        for name, rows in wanted.items():
            whole = file.load(name)
            found.append(whole if rows == list(range(len(whole))) else whole[rows])
        return found[0] if len(found) == 1 else np.concatenate(found)
    except SkipItem as skip:
        raise DataError("The arrays must be whole", skip.reason) from None
    except ValueError:
        shapes = ", ".join(str(file.header(name).shape) for name in wanted)
        raise DataError("Images of training and test must have one shape", shapes) from None


def _channels_last(row: NDArray[np.generic]) -> NDArray[np.generic]:
    if row.ndim == 3 and row.shape[0] in (1, 3) and row.shape[2] not in (1, 3):
        row = np.moveaxis(row, 0, 2)
    return row[..., 0] if row.ndim == 3 and row.shape[2] == 1 else row


def _range(
    file: ArrayFile, parts: Sequence[Part], headers: Sequence[ArrayHeader], request: RawRequest
) -> tuple[tuple[float | None, float | None], str]:
    """Return the values that are black and white (None: as stored or by own maximum), and what that means."""
    given = request.dataset.pixel_range
    if given is not None:
        return given, f"[{given[0]:g}, {given[1]:g}] (pixel_range) to [0, 255], cut there"
    kinds = {head.dtype for head in headers}
    if kinds == {np.dtype(np.uint8)}:
        return (None, None), "as stored, 8 bits"
    if all(dtype.kind in "ui" for dtype in kinds):
        return (None, None), "whole numbers, scaled by own maximum"
    low, high = np.inf, -np.inf
    for part, head in zip(parts, headers, strict=True):
        rows = file.rows(part.images)
        for index in range(head.shape[0]):
            finite = _scanned(rows, index, request)
            if finite.size:
                low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    if low >= 0 and high <= 1:
        return (0.0, 1.0), "floats in [0, 1], times 255"
    if low >= 0 and 127.5 < high <= 255:
        return (0.0, 255.0), "floats in [0, 255] as stored"
    rule = f"{request.dataset.name}: float images must lie in [0, 1] or [0, 255], and which must be plain"
    way_out = "say which values are black and white: pixel_range: [-1, 1], or --pixel-range -1 1 to measure"
    raise DataError(rule, f"[{low:.9g}, {high:.9g}]", way_out)


def _scanned(rows: Rows, index: int, request: RawRequest) -> NDArray[np.float32]:
    try:
        values = rows.row(index).astype(np.float32)
    except SkipItem as skip:
        raise DataError(f"{request.dataset.name}: the images must be a whole array", skip.reason) from None
    return values[np.isfinite(values)]
