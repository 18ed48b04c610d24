"""Your own arrays in a file: images, labels and, if you have them, groups, splits and class names.

Layout: ``.npz`` as ``np.savez`` writes it and HDF5 as h5py's quick start does. Keys as in
PatchCamelyon, MedMNIST (``medmnist/dataset.py``) and Keras' ``mnist.npz``. Other arrays with one
entry per image are read by the usual names of a table's columns.

``images`` is ``(n, height, width)``, ``(n, height, width, 1 or 3)`` or ``(n, 1 or 3, height,
width)``. Pixels are uint8 as stored, other integers scaled by each image's own maximum, or floats
scaled as :func:`pixel_scale` decides for the whole array.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search_spaces.datasets import DATASETS
from search_spaces.errors import DataError
from tasks.sources.array_files import (
    ArrayFile,
    ArrayHeader,
    Hdf5File,
    NpzFile,
    array_path,
    row_locator,
)
from tasks.sources.base import Item, Listing, RawRequest, Reader, Sample, SkipItem, Source
from tasks.sources.own.class_names import sort_labels
from tasks.sources.own.columns import MAX_NAMED, TRAITS, JoinedFiles, find_columns
from tasks.sources.own.listing import own_listing
from tasks.sources.own.rows import Rows
from tasks.sources.own.splits import VALIDATION_LEFT_OUT, GivenSplit, parse_split
from tasks.sources.pictures import by_own_maximum, negative_flags
from tasks.sources.tables import label_text, unused_flags

KEYS = (
    ("images", "labels"),
    ("x", "y"),
    ("X", "y"),
    ("X", "Y"),
    ("data", "target"),
    ("data", "labels"),
)
"""Names of the arrays of images and labels, if the file has no splits."""


@dataclass(frozen=True)
class SplitKeys:
    """The names of a split's arrays; ``{}`` stands for the split.

    Attributes:
        images: Name of the images.
        labels: Name of the labels.
        before: Text before the usual name in the name of any other array of the split.
        after: Text after it.
    """

    images: str
    labels: str
    before: str
    after: str


SPLIT_KEYS = (
    SplitKeys("{}_images", "{}_labels", before="{}_", after=""),
    SplitKeys("x_{}", "y_{}", before="", after="_{}"),
    SplitKeys("X_{}", "y_{}", before="", after="_{}"),
)
SPLIT_WORDS = ("train", "test", "val", "valid")
LABEL_NAMES = "label_names"
SAVE_AS = "np.savez(PATH, images=images, labels=labels)"
MAX_IMAGES = 10_000_000
"""Images in a file, at most. A damaged header could declare labels of many gigabytes. All of
ImageNet has 14 million images."""
MAX_TEXT_BYTES = 1 << 28
"""Bytes of an array of labels, groups or names, which is read as a whole."""
BLOCK_IMAGES = 4096
"""Images that one reading task takes: rows are small and cheap to read in order."""
CUT = "values outside pixel_range cut"
MAX_CUT_SHARE = 0.9
"""Share of all values that may lie outside ``pixel_range``. It is large because a CT window leaves
out most values, those of air and of the table."""
MIN_FILLED_SHARE = 1e-4
"""Share of ``pixel_range`` that the values must span."""


@dataclass(frozen=True)
class ImageArray:
    """An array of images and the arrays that describe them.

    Attributes:
        images: Name of the array of images.
        labels: Name of the array of labels.
        split: Split of its images.
        columns: Usual name of any other array, without the split's mark -> its name in the file.
    """

    images: str
    labels: str
    split: GivenSplit
    columns: dict[str, str]


def list_arrays(file: ArrayFile, request: RawRequest) -> Listing:
    """List the images of an array file, one item per row.

    Raises:
        DataError: An array is missing, misshapen or damaged, its values are in no known range, or
            labels, groups or splits break a rule of :mod:`tasks.sources.own`.
    """
    arrays, num_validation = _find_arrays(file, request)
    headers = []
    num_images = 0
    column_names: dict[str, None] = {}
    for array in arrays:
        header = _image_header(file, array.images, request)
        headers.append(header)
        num_images += header.shape[0]
        column_names |= dict.fromkeys(array.columns)
    if num_images > MAX_IMAGES:
        raise request.error(f"at most {MAX_IMAGES:,} images", f"{num_images:,}")
    our_names = ("label", "group", "split")
    columns = find_columns([*column_names], our_names, request, fixed={"label": "labels"})
    files = JoinedFiles(
        [
            _cells_of(file, array, header.shape[0], columns.name_in_data, request)
            for array, header in zip(arrays, headers, strict=True)
        ]
    )
    names = _class_names(file, files.cells["label"], request)
    scale = _scale_of(file, arrays, headers, request)
    # If the raw path is a folder, items name the file in it: a change of the file must be noticed.
    is_in_folder = request.root().is_dir()
    file_name = (array_path(request).name,) if is_in_folder else ()

    def array_of(row: int) -> ImageArray:
        return arrays[files.file_of(row)]

    def locator(row: int) -> str:
        return row_locator(array_of(row).images, files.row_in_file(row))

    rows = Rows(
        cells=files.cells,
        locator=locator,
        name=lambda row: f"row {locator(row)}",
        file_split=lambda row: array_of(row).split,
        details=lambda row: (array_of(row).images, scale.low, scale.high, *file_name),
    )
    draft = Listing(
        dtype="uint8" if scale.low is None else "float32",
        block_size=BLOCK_IMAGES,
        intensity=scale.rule,
        excluded={VALIDATION_LEFT_OUT: num_validation},
    )
    flags = (*columns.flags, *_unused_flags(file, arrays))
    named_first = _NamedFirst(names)
    return own_listing(
        rows, request, dataset_flags=flags, class_names=names, order=named_first, draft=draft
    )


@dataclass(frozen=True)
class _NamedFirst:
    """The order of classes: first those with a name, by number, then the others, sorted."""

    names: tuple[str, ...]

    def __call__(self, labels: Iterable[str]) -> tuple[str, ...]:
        return (*self.names, *sort_labels(set(labels) - set(self.names)))


def _find_arrays(file: ArrayFile, request: RawRequest) -> tuple[list[ImageArray], int]:
    """Find the arrays of images to read.

    Returns:
        The arrays, and the number of images in validation splits, which are left out.

    Raises:
        DataError: There are no arrays of images, or several sets of them, or images without labels.
    """
    names = set(file.names())
    sets = []
    for images, labels in KEYS:
        if {images, labels} <= names:
            columns = {name: name for name in sorted(names - {images, labels, LABEL_NAMES})}
            sets.append([ImageArray(images, labels, GivenSplit.NONE, columns)])
    num_validation = 0
    unpaired = []
    for keys in SPLIT_KEYS:
        arrays = []
        for word in SPLIT_WORDS:
            images = keys.images.format(word)
            labels = keys.labels.format(word)
            split = parse_split(word)
            if not {images, labels} <= names:
                unpaired.append((images, labels))
            elif split is GivenSplit.VALIDATION:
                num_validation += file.header(images).shape[0]
            else:
                columns = _split_columns(names - {images, labels}, keys, word)
                arrays.append(ImageArray(images, labels, split, columns))
        if arrays:
            sets.append(arrays)
    # Without this check, images without their labels would be dropped silently. If there is no
    # complete set at all, this is also the clearest message for x or X alone.
    for images, labels in unpaired if sets else (*unpaired, *KEYS[1:4]):
        if images in names:
            raise request.error(
                f"{images} and {labels} must both be in the file",
                f"no {labels}",
                "take the images out, or add their labels",
            )
    if len(sets) > 1:
        listed = ", ".join(array.images for arrays in sets for array in arrays)
        raise request.error("one set of images must be in the file", listed, SAVE_AS)
    if not sets:
        absent = "labels" if "images" in names else "images"
        raise request.error(
            f"array {absent} must be in the .npz or HDF5 file",
            f"it is not; the file has {', '.join(sorted(names)[:10]) or 'no array'}",
            f"{SAVE_AS}; x and y, and MedMNIST's and Keras' keys are known too",
        )
    return sets[0], num_validation


def _split_columns(names: set[str], keys: SplitKeys, word: str) -> dict[str, str]:
    """Return the arrays that carry a split's mark: usual name -> name in the file."""
    before = keys.before.format(word)
    after = keys.after.format(word)
    columns = {}
    for name in sorted(names):
        if name.startswith(before) and name.endswith(after):
            usual_name = name.removeprefix(before).removesuffix(after)
            if usual_name:
                columns[usual_name] = name
    return columns


def _unused_flags(file: ArrayFile, arrays: Sequence[ImageArray]) -> list[str]:
    """Return flags that name the arrays that are not read; no flag if all are."""
    names = set(file.names())
    used = {LABEL_NAMES}
    for array in arrays:
        used |= {array.images, array.labels, *array.columns.values()}
    for keys in SPLIT_KEYS:
        for word in ("val", "valid"):
            used |= set(_split_columns(names, keys, word).values())
    return unused_flags(sorted(names - used), MAX_NAMED)


def _image_header(file: ArrayFile, name: str, request: RawRequest) -> ArrayHeader:
    """Return the header of an array of images.

    Raises:
        DataError: Its shape or dtype is not one of images.
    """
    header = file.header(name)
    shape = header.shape
    has_channels = len(shape) == 4 and (shape[1] in (1, 3) or shape[3] in (1, 3))
    if not (len(shape) == 3 or has_channels) or 0 in shape or header.dtype.kind not in "uif":
        raise request.error(
            f"{name} must be numbers of shape (n, height, width), "
            "(n, height, width, 3) or (n, 3, height, width)",
            f"{header.dtype} {header.shape}",
            'images.astype("uint8") * 255' if header.dtype.kind == "b" else "",
        )
    return header


def _cells_of(
    file: ArrayFile,
    array: ImageArray,
    num_images: int,
    names_in_file: dict[str, str],
    request: RawRequest,
) -> dict[str, list[str]]:
    """Return the labels, groups, splits and traits of an array's images as text."""
    cells = {"label": _text_cells(file, array.labels, num_images, request)}
    for column, usual_name in names_in_file.items():
        if column in ("group", "split", *TRAITS) and usual_name in array.columns:
            name = array.columns[usual_name]
            cells[column] = _text_cells(file, name, num_images, request)
    return cells


def _text_cells(file: ArrayFile, name: str, num_images: int, request: RawRequest) -> list[str]:
    """Return an array with one entry per image as text.

    Raises:
        DataError: The array has another shape or dtype, or cannot be read.
    """
    header = file.header(name)
    has_one_each = header.shape[:1] == (num_images,) and set(header.shape[1:]) <= {1}
    if not has_one_each or header.dtype.kind not in "uibfUSO":
        more = "; several labels per image are no classes" if len(header.shape) == 2 else ""
        raise request.error(
            f"{name} must be {num_images} numbers or texts, one per image",
            f"{header.dtype} {header.shape}{more}",
        )
    values = _small_array(file, name, request).reshape(-1).tolist()
    # One text per class instead of one per image: there may be millions of images.
    texts: dict[object, str] = {}
    return [texts.setdefault(value, label_text(value)) for value in values]


def _small_array(file: ArrayFile, name: str, request: RawRequest) -> NDArray[np.generic]:
    """Return an array as a whole.

    Raises:
        DataError: It has more than :data:`MAX_TEXT_BYTES` bytes, or is damaged.
    """
    header = file.header(name)
    if header.num_bytes > MAX_TEXT_BYTES:
        raise request.error(f"{name} must be small", f"{header.dtype} {header.shape}")
    try:
        return file.load(name)
    except SkipItem as skip:
        raise request.error(f"array {name} must be readable", skip.reason) from None


def _class_names(file: ArrayFile, labels: Sequence[str], request: RawRequest) -> tuple[str, ...]:
    """Return the names of labels 0, 1, ... in the file or in the table of datasets, if any."""
    if LABEL_NAMES in file.names():
        stored = _small_array(file, LABEL_NAMES, request).reshape(-1)
        return tuple(map(label_text, stored.tolist()))
    row = DATASETS.get(request.dataset.name)
    if row is not None and all(map(str.isdecimal, labels)):
        return row.label_names
    return ()


def array_reader(file: ArrayFile) -> Reader:
    """Return a reader of rows. It is fast if items are read in ascending order."""
    opened = {}

    def read(item: Item) -> list[Sample]:
        array, low, high = item.details[:3]  # a file name may follow, see list_arrays
        name = str(array)
        if name not in opened:
            opened[name] = file.rows(name)
        pixels = _channels_last(opened[name](_row_of(item)))
        if low is None or high is None:
            if pixels.dtype == np.uint8:
                return [Sample(pixels)]
            scaled, conversions = by_own_maximum(pixels)
            return [Sample(scaled, conversions=conversions, flags=negative_flags(pixels))]
        if not np.isfinite(pixels).all():
            raise SkipItem("values not finite")
        scaled, is_cut = to_scale(pixels, (float(low), float(high)))
        if is_cut.any():
            return [Sample(scaled, flags=(CUT,))]
        return [Sample(scaled)]

    return read


def _row_of(item: Item) -> int:
    """Return the row of the array that an item is."""
    return int(item.locator.rsplit("/", 1)[-1])


def _channels_last(pixels: NDArray[np.generic]) -> NDArray[np.generic]:
    """Return an image as ``(height, width)`` or ``(height, width, 3)``."""
    if pixels.ndim == 3 and pixels.shape[0] in (1, 3) and pixels.shape[2] not in (1, 3):
        pixels = np.moveaxis(pixels, 0, 2)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    return pixels


def to_scale(
    values: NDArray[np.generic], limits: tuple[float, float]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Map finite values linearly so that ``limits`` become 0 and 255, and clip them there.

    Returns:
        The values as float32 in [0, 255], and a boolean array of the same shape that marks the
        clipped ones.
    """
    low = np.float32(limits[0])
    high = np.float32(limits[1])
    plain = values.astype(np.float32)
    scaled = (plain - low) * np.float32(255 / (limits[1] - limits[0]))
    return np.clip(scaled, 0, 255), (plain < low) | (plain > high)


def load_images(file: ArrayFile, listing: Listing) -> NDArray[np.generic]:
    """Return the images of a listing's items as one array, as stored.

    Raises:
        DataError: The arrays are damaged or have unequal shapes.
    """
    rows_by_array: dict[str, list[int]] = {}
    for item in listing.items:
        rows_by_array.setdefault(str(item.details[0]), []).append(_row_of(item))
    try:
        loaded = []
        for name, rows in rows_by_array.items():
            array = file.load(name)
            is_complete = rows == list(range(len(array)))
            loaded.append(array if is_complete else array[rows])
        return loaded[0] if len(loaded) == 1 else np.concatenate(loaded)
    except SkipItem as skip:
        raise DataError("The arrays must be readable", skip.reason) from None
    except ValueError:
        shapes = ", ".join(str(file.header(name).shape) for name in rows_by_array)
        raise DataError("Images of training and test must have one shape", shapes) from None


@dataclass(frozen=True)
class Scale:
    """The rule by which stored values become pixels in [0, 255].

    Attributes:
        low: The value that becomes 0. None if values stay as stored, or if each image is scaled by
            its own maximum.
        high: The value that becomes 255; None as ``low``.
        rule: The rule in words, for the record.
    """

    low: float | None
    high: float | None
    rule: str


def _scale_of(
    file: ArrayFile,
    arrays: Sequence[ImageArray],
    headers: Sequence[ArrayHeader],
    request: RawRequest,
) -> Scale:
    """Return the scale of all images. Images of floats are read to find their range.

    Raises:
        DataError: The arrays have several types, or :func:`pixel_scale` raises it.
    """
    pixel_range = request.dataset.pixel_range
    dtypes = {header.dtype.newbyteorder("=") for header in headers}
    kinds = {dtype.kind for dtype in dtypes}
    if len(dtypes) > 1 and kinds != {"f"}:
        raise request.error(
            "all images must be stored as one type, or their scales may differ",
            ", ".join(sorted(map(str, dtypes))),
            "save all as the same type",
        )
    if pixel_range is None and dtypes == {np.dtype(np.uint8)}:
        return Scale(None, None, "as stored, 8 bits")
    if pixel_range is None and "f" not in kinds:
        return Scale(None, None, "whole numbers, scaled by own maximum")
    try:
        images = (
            map(file.rows(array.images), range(header.shape[0]))
            for array, header in zip(arrays, headers, strict=True)
        )
        limits, rule = pixel_scale(request.dataset.name, images, pixel_range)
    except SkipItem as skip:
        raise request.error("the array of images must be readable", skip.reason) from None
    return Scale(*limits, rule)


@dataclass
class _ValueRange:
    """The finite values of several arrays of images.

    Attributes:
        low: Smallest value.
        highs: Largest value of each array; ``-inf`` if it has no finite one.
        num_values: Number of values.
        num_cut: Number of values outside ``pixel_range``, if one was given.
    """

    low: float
    highs: list[float]
    num_values: int
    num_cut: int

    @classmethod
    def of(
        cls,
        arrays: Iterable[Iterable[NDArray[np.generic]]],
        pixel_range: tuple[float, float] | None,
    ) -> _ValueRange:
        values = cls(np.inf, [], 0, 0)
        for images in arrays:
            high = -np.inf
            for image in images:
                finite = image[np.isfinite(image)].astype(np.float32)
                if not finite.size:
                    continue
                values.low = min(values.low, float(finite.min()))
                high = max(high, float(finite.max()))
                values.num_values += finite.size
                if pixel_range is not None:
                    _, is_cut = to_scale(finite, pixel_range)
                    values.num_cut += int(is_cut.sum())
            values.highs.append(high)
        return values

    @property
    def high(self) -> float:
        """Largest value."""
        return max(self.highs)

    @property
    def text(self) -> str:
        """The range in brackets, for messages."""
        return f"[{self.low:.9g}, {self.high:.9g}]"

    @property
    def option(self) -> str:
        """A ``pixel_range`` that all values lie in, as the user can type it."""
        low = self.low
        high = self.high
        if low == high:
            low = min(low, 0.0)
            high = max(high, 0.0)
        elif -1 <= low < -0.5 and high <= 1:
            low = -1.0
            high = 1.0
        black = f"{low:.9g}"
        white = f"{high:.9g}"
        return f"pixel_range: [{black}, {white}], or --pixel-range {black} {white} to measure"


@np.errstate(over="ignore", invalid="ignore")  # for limits beyond float32
def pixel_scale(
    name: str,
    arrays: Iterable[Iterable[NDArray[np.generic]]],
    pixel_range: tuple[float, float] | None,
) -> tuple[tuple[float, float], str]:
    """Decide which values are black and white, from the values of all images.

    Args:
        name: Name of the dataset, for messages.
        arrays: Arrays of images, such as those of training and of test, read one by one.
        pixel_range: The user's choice; None to decide by the values.

    Returns:
        The values that become 0 and 255, and the rule in words.

    Raises:
        DataError: The values allow several scales, the arrays seem to have different scales, or
            hardly any value lies within ``pixel_range``.
    """
    values = _ValueRange.of(arrays, pixel_range)
    if pixel_range is not None:
        _check_pixel_range(name, values, pixel_range)
        low, high = pixel_range
        return pixel_range, f"[{low:g}, {high:g}] (pixel_range) to [0, 255], cut there"
    if values.low >= 0 and values.high <= 1:
        return (0.0, 1.0), "floats in [0, 1], times 255"
    # 8-bit values of a real dataset reach the upper half. If all are below, the scale is unknown.
    is_8_bit = values.low >= 0 and 127.5 < values.high <= 255
    if is_8_bit and any(-np.inf < high <= 1 for high in values.highs):
        raise DataError(
            f"{name}: training and test images must be stored on one scale",
            f"one of them in [0, 1], all in {values.text}",
            f"save them on the same scale, or give {values.option}",
        )
    if is_8_bit:
        return (0.0, 255.0), "floats in [0, 255] as stored"
    raise DataError(
        f"{name}: float images must lie in [0, 1] or [0, 255], and it must be clear which",
        values.text,
        f"give the values of black and white; all values lie in {values.option}",
    )


def _check_pixel_range(name: str, values: _ValueRange, pixel_range: tuple[float, float]) -> None:
    """Check that the user's range is not far wider than the values, or far from them."""
    low, high = pixel_range
    hint = f"all values lie in {values.option}"
    if values.num_cut > MAX_CUT_SHARE * values.num_values:
        rule = f"{name}: images must have values between the black and white of pixel_range"
        share = values.num_cut / values.num_values
        raise DataError(
            rule, f"[{low:g}, {high:g}], which cuts {share:.1%} of values in {values.text}", hint
        )
    if 0 < values.high - values.low < MIN_FILLED_SHARE * (high - low):
        raise DataError(
            f"{name}: images must fill at least {MIN_FILLED_SHARE:.2%} of pixel_range",
            f"{values.text} of [{low:g}, {high:g}]",
            hint,
        )


def list_npz(request: RawRequest) -> Listing:
    """List an ``.npz``, after comparing the checksums of all its arrays."""
    file = NpzFile(request)
    listing = list_arrays(file, request)
    file.check_sums()
    return listing


npz = Source(list_npz, lambda request: array_reader(NpzFile(request)))
hdf5 = Source(
    lambda request: list_arrays(Hdf5File(request), request),
    lambda request: array_reader(Hdf5File(request)),
)
"""A chunk's checksum, if it has one, is compared when the chunk is read."""
