"""Your own arrays in a file: images, labels and, if you have them, groups, splits and class names.

Layout: ``.npz`` as ``np.savez`` writes it and HDF5 as h5py's quick start does. Keys as in
PatchCamelyon, MedMNIST (``medmnist/dataset.py``) and Keras' ``mnist.npz``. Other arrays with one
entry per image are read by the usual names of a table's columns.

``images`` is ``(n, height, width)``, ``(n, height, width, 1 or 3)`` or ``(n, 1 or 3, height,
width)``. Pixels are uint8 as stored, other integers scaled by each image's own maximum, or floats
scaled as :mod:`tasks.sources.pixel_range` decides for the whole array.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

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
from tasks.sources.own.columns import TRAITS, JoinedFiles, find_columns
from tasks.sources.own.listing import own_listing
from tasks.sources.own.rows import Rows
from tasks.sources.own.splits import VALIDATION_LEFT_OUT, GivenSplit, parse_split
from tasks.sources.pictures import by_own_maximum, negative_flags
from tasks.sources.pixel_range import CUT, choose_pixel_range, rescale_to_255
from tasks.sources.tables import MAX_NAMED, label_text, unused_flags

KEYS = (
    ("images", "labels"),
    ("x", "y"),
    ("X", "y"),
    ("X", "Y"),
    ("data", "target"),
    ("data", "labels"),
)
"""Names of the arrays of images and labels, if the file has no splits."""


class SplitKeys(NamedTuple):
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
VALIDATION_NAMES_IN_KEYS = ("val", "valid")
SPLIT_NAMES_IN_KEYS = ("train", "test", *VALIDATION_NAMES_IN_KEYS)
"""Names of a split in the names of its arrays. Case matters here, as in the files themselves."""
LABEL_NAMES = "label_names"
"""Name of the array with the names of the classes."""
SAVE_AS = "Save it with np.savez(PATH, images=images, labels=labels)"
CHANNELS = (1, 3)
"""Number of channels of an image; the last axis goes before the first if both may be it."""
MAX_IMAGES = 10_000_000
"""Images in a file, at most. A damaged header could declare labels of many gigabytes. All of
ImageNet has 14 million images."""
MAX_TEXT_BYTES = 1 << 28
"""Bytes of an array of labels, groups or names, which is read as a whole."""
BLOCK_IMAGES = 4096
"""Images that one reading task takes: rows are small and cheap to read in order."""


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


class ArrayDetails(NamedTuple):
    """The first details of an item.

    Attributes:
        array: Name of the array that holds the image.
        black: The value that becomes 0; None as in :class:`Scale`.
        white: The value that becomes 255.
    """

    array: str
    black: float | None
    white: float | None


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
        raise request.error(
            f"the file has {num_images:,} images; at most {MAX_IMAGES:,} can be read"
        )
    our_names = ("label", "group", "split")
    columns = find_columns([*column_names], our_names, request, fixed={"label": "labels"})
    cells = []
    for array, header in zip(arrays, headers, strict=True):
        cells.append(_cells_of(file, array, header.shape[0], columns.name_in_data, request))
    files = JoinedFiles(cells)
    names = _class_names(file, files.cells["label"], request)
    scale = _choose_scale(file, arrays, headers, request)
    limits = scale.limits or (None, None)
    # If the raw path is a folder, items name the file in it: a change of the file must be noticed.
    is_in_folder = request.root().is_dir()
    file_name = (array_path(request).name,) if is_in_folder else ()

    def array_of(row: int) -> ImageArray:
        return arrays[files.file_of(row)]

    def named_first(labels: Iterable[str]) -> list[str]:
        return [*names, *sort_labels(set(labels).difference(names))]

    def locator(row: int) -> str:
        return row_locator(array_of(row).images, files.row_in_file(row))

    rows = Rows(
        cells=files.cells,
        locator=locator,
        name=lambda row: f"row {locator(row)}",
        file_split=lambda row: array_of(row).split,
        details=lambda row: (*ArrayDetails(array_of(row).images, *limits), *file_name),
    )
    draft = Listing(
        dtype="uint8" if scale.limits is None else "float32",
        block_size=BLOCK_IMAGES,
        intensity=scale.rule,
        excluded={VALIDATION_LEFT_OUT: num_validation},
    )
    flags = (*columns.flags, *_unused_flags(file, arrays))
    return own_listing(
        rows, request, dataset_flags=flags, class_names=names, order=named_first, draft=draft
    )


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
    pairs_to_check = []
    for keys in SPLIT_KEYS:
        arrays = []
        for split_name in SPLIT_NAMES_IN_KEYS:
            images = keys.images.format(split_name)
            labels = keys.labels.format(split_name)
            split = parse_split(split_name)
            if not {images, labels} <= names:
                pairs_to_check.append((images, labels))
            elif split is GivenSplit.VALIDATION:
                num_validation += file.header(images).shape[0]
            else:
                columns = _split_columns(names - {images, labels}, keys, split_name)
                arrays.append(ImageArray(images, labels, split, columns))
        if arrays:
            sets.append(arrays)
    if not sets:
        pairs_to_check += KEYS[1:4]  # x or X alone
    # Without this check, images without their labels would be dropped silently.
    for images, labels in pairs_to_check:
        if images in names:
            raise request.error(
                f"the file has {images}, but no {labels}",
                hint="Take the images out, or add their labels",
            )
    if len(sets) > 1:
        listed = ", ".join(array.images for arrays in sets for array in arrays)
        raise request.error(f"the file has several sets of images: {listed}", hint=SAVE_AS)
    if not sets:
        absent = "labels" if "images" in names else "images"
        raise request.error(
            f"the file has no array {absent}, only "
            f"{', '.join(sorted(names)[:MAX_NAMED]) or 'no array at all'}",
            hint=f"{SAVE_AS}. The names x and y, and those of MedMNIST and Keras, are known too",
        )
    return sets[0], num_validation


def _split_columns(names: set[str], keys: SplitKeys, split_name: str) -> dict[str, str]:
    """Return the further arrays of a split: usual name -> name in the file."""
    before = keys.before.format(split_name)
    after = keys.after.format(split_name)
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
        for split_name in VALIDATION_NAMES_IN_KEYS:
            used.update(_split_columns(names, keys, split_name).values())
    return unused_flags(sorted(names - used))


def _image_header(file: ArrayFile, name: str, request: RawRequest) -> ArrayHeader:
    """Return the header of an array of images.

    Raises:
        DataError: Its shape or dtype is not one of images.
    """
    header = file.header(name)
    shape = header.shape
    has_channels = len(shape) == 4 and not {shape[1], shape[3]}.isdisjoint(CHANNELS)
    if not (len(shape) == 3 or has_channels) or 0 in shape or header.dtype.kind not in "uif":
        raise request.error(
            f"{name} has the dtype and shape {header.dtype} {header.shape}, but images are "
            "numbers of shape (n, height, width), (n, height, width, 3) or (n, 3, height, width)",
            hint='Save images.astype("uint8") * 255' if header.dtype.kind == "b" else "",
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
    first_axis, other_axes = header.shape[:1], header.shape[1:]
    has_one_each = first_axis == (num_images,) and set(other_axes) <= {1}
    if not has_one_each or header.dtype.kind not in "uibfUSO":
        more = ". Several labels per image are no classes" if len(header.shape) == 2 else ""
        raise request.error(
            f"{name} has the dtype and shape {header.dtype} {header.shape}, but there must be one "
            f"number or text for each of {num_images} images{more}"
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
        raise request.error(f"{name} is too large: {header.dtype} {header.shape}")
    try:
        return file.load(name)
    except SkipItem as skip:
        raise request.error(f"array {name} cannot be read: {skip.reason}") from None


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
        details = _details_of(item)
        if details.array not in opened:
            opened[details.array] = file.rows(details.array)
        pixels = _channels_last(opened[details.array](_row_of(item)))
        if details.black is None or details.white is None:
            if pixels.dtype == np.uint8:
                return [Sample(pixels)]
            scaled, conversions = by_own_maximum(pixels)
            return [Sample(scaled, conversions=conversions, flags=negative_flags(pixels))]
        if not np.isfinite(pixels).all():
            raise SkipItem("values not finite")
        scaled, is_cut = rescale_to_255(pixels, (details.black, details.white))
        if is_cut.any():
            return [Sample(scaled, flags=(CUT,))]
        return [Sample(scaled)]

    return read


def _details_of(item: Item) -> ArrayDetails:
    """Return the details of an item; :func:`list_arrays` may put a file name behind them."""
    return ArrayDetails(*item.details[:3])  # type: ignore[arg-type]  # as list_arrays made them


def _row_of(item: Item) -> int:
    """Return the row of the array that an item is."""
    return int(item.locator.rsplit("/", 1)[-1])


def _channels_last(pixels: NDArray[np.generic]) -> NDArray[np.generic]:
    """Return an image as ``(height, width)`` or ``(height, width, 3)``."""
    if pixels.ndim == 2:
        return pixels
    if pixels.shape[2] not in CHANNELS:
        pixels = np.moveaxis(pixels, 0, 2)
    if pixels.shape[2] == 1:
        return pixels[..., 0]
    return pixels


def load_images(file: ArrayFile, listing: Listing) -> NDArray[np.generic]:
    """Return the images of a listing's items as one array, as stored.

    Raises:
        DataError: The arrays are damaged or have unequal shapes.
    """
    rows_by_array: dict[str, list[int]] = {}
    for item in listing.items:
        rows_by_array.setdefault(_details_of(item).array, []).append(_row_of(item))
    try:
        loaded = []
        for name, rows in rows_by_array.items():
            array = file.load(name)
            is_complete = rows == list(range(len(array)))
            loaded.append(array if is_complete else array[rows])
        return loaded[0] if len(loaded) == 1 else np.concatenate(loaded)
    except SkipItem as skip:
        raise DataError(f"The arrays cannot be read: {skip.reason}") from None
    except ValueError:
        shapes = ", ".join(str(file.header(name).shape) for name in rows_by_array)
        raise DataError(f"Images of training and test have different shapes: {shapes}") from None


class Scale(NamedTuple):
    """The rule by which stored values become pixels in [0, 255].

    Attributes:
        limits: The values that become 0 and 255. None if values stay as stored, or if each image is
            scaled by its own maximum.
        rule: The rule in words, for the record.
    """

    limits: tuple[float, float] | None
    rule: str


def _choose_scale(
    file: ArrayFile,
    arrays: Sequence[ImageArray],
    headers: Sequence[ArrayHeader],
    request: RawRequest,
) -> Scale:
    """Return the scale of all images. Images of floats are read to find their range.

    Raises:
        DataError: The arrays have several types, or :func:`choose_pixel_range` raises it.
    """
    pixel_range = request.dataset.pixel_range
    dtypes = {header.dtype.newbyteorder("=") for header in headers}
    kinds = {dtype.kind for dtype in dtypes}
    if len(dtypes) > 1 and kinds != {"f"}:
        raise request.error(
            f"images are stored as {', '.join(sorted(map(str, dtypes)))}, so their scales may "
            "differ",
            hint="Save all images as the same type",
        )
    if pixel_range is None and dtypes == {np.dtype(np.uint8)}:
        return Scale(None, "as stored, 8 bits")
    if pixel_range is None and "f" not in kinds:
        return Scale(None, "whole numbers, scaled by own maximum")
    try:
        images = (
            map(file.rows(array.images), range(header.shape[0]))
            for array, header in zip(arrays, headers, strict=True)
        )
        return Scale(*choose_pixel_range(request.dataset.name, images, pixel_range))
    except SkipItem as skip:
        raise request.error(f"the array of images cannot be read: {skip.reason}") from None


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
