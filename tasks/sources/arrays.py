"""List and read the images of a user's ``.npz`` or HDF5 file.

An ``.npz`` has the format of ``np.savez``. An HDF5 file has all arrays in its root group.
:mod:`tasks.sources.array_names` finds the arrays of images, labels and columns by their names.
The *locator* of an image is the name of its array and its row.

The shape of an array of images is ``(n, height, width)``, ``(n, height, width, 1 or 3)`` or
``(n, 1 or 3, height, width)``. Images of uint8 stay as stored. Each image of other integers is
scaled by its own maximum. All images of floats are scaled in the same way, as
:mod:`tasks.sources.pixel_range` decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np

from search_spaces.datasets import DATASETS
from search_spaces.errors import DataError
from tasks.array_types import AnyArray
from tasks.sources.array_files import (
    COPY_AGAIN,
    ArrayFile,
    ArrayHeader,
    Hdf5File,
    NpzFile,
    array_path,
    row_locator,
    row_of_locator,
)
from tasks.sources.array_names import (
    LABEL_COLUMN,
    ImageArray,
    find_arrays,
    unused_array_flags,
)
from tasks.sources.base import Item, Listing, RawRequest, Reader, Sample, SkipItem, Source
from tasks.sources.own.class_names import sort_labels
from tasks.sources.own.columns import Columns, JoinedTables, find_columns
from tasks.sources.own.listing import own_listing
from tasks.sources.own.rows import Rows
from tasks.sources.own.splits import VALIDATION_LEFT_OUT, GivenSplit
from tasks.sources.pictures import negative_flags, scale_by_image_maximum
from tasks.sources.pixel_range import CLIPPED, Limits, choose_pixel_range, rescale_to_255
from tasks.sources.tables import label_text

CHANNELS = (1, 3)
"""Possible numbers of channels. The channels are the last axis of an image, unless its length
is neither 1 nor 3. Then they are the first axis."""
MAX_IMAGES = 10_000_000
"""Largest number of images in a file. All labels are in memory at once. A damaged header could
declare many gigabytes of labels."""
MAX_SMALL_ARRAY_BYTES = 1 << 28
"""Largest size in bytes of an array of labels, groups or names, which is read as a whole."""
BLOCK_IMAGES = 4096
"""Number of images that one reading task reads. The number is large, because reading rows in
order is cheap."""


class Scale(NamedTuple):
    """The rule by which stored values become pixels in [0, 255].

    Attributes:
        limits: The stored values that become 0 and 255. None means no limits: uint8 stays as
            stored, and each image of other integers is scaled by its own maximum.
        rule: The rule in words, for the record of the prepared dataset.
    """

    limits: Limits | None
    rule: str


@dataclass(frozen=True)
class ArrayDetails:
    """What the reader of an item needs: the item's array, and the scale of its pixels.

    Attributes:
        images_name: Array name of the image's array.
        limits: The stored values that become 0 and 255; None as in :class:`Scale`.
        file_name: Name of the array file if the raw path is a folder; else empty. The name is
            part of the item. So items of another file in the same folder are different, and
            their images are read again.
    """

    images_name: str
    limits: Limits | None
    file_name: str = ""

    @classmethod
    def from_item(cls, item: Item) -> ArrayDetails:
        """Return the details of an item that :func:`list_arrays` made."""
        images_name, black, white, *file_names = cast("tuple[Any, ...]", item.details)
        limits = None if black is None else (black, white)
        file_name = file_names[0] if file_names else ""
        return cls(images_name, limits, file_name)

    def to_tuple(self) -> tuple[str | float | None, ...]:
        """Return the details as an item stores them: array name, black, white, file name.

        Without a file name, the tuple has only three entries. Earlier versions stored these
        three entries, and stored items must not change.
        """
        black, white = self.limits or (None, None)
        if self.file_name:
            return self.images_name, black, white, self.file_name
        return self.images_name, black, white


@dataclass(frozen=True)
class _ArrayRows:
    """The images of all arrays in one numbering: the second array's images follow the first's.

    Attributes:
        arrays: The arrays of images.
        tables: Labels, groups, splits and traits of the images; one table per array.
        limits: The stored values that become 0 and 255; None as in :class:`Scale`.
        file_name: Name of the array file, as in :class:`ArrayDetails`.
    """

    arrays: Sequence[ImageArray]
    tables: JoinedTables
    limits: Limits | None
    file_name: str

    def array_of(self, row: int) -> ImageArray:
        """Return the array that contains an image."""
        return self.arrays[self.tables.table_of(row)]

    def locator(self, row: int) -> str:
        """Return the locator of an image."""
        return row_locator(self.array_of(row).images_name, self.tables.row_in_table(row))

    def name(self, row: int) -> str:
        """Return the name of an image in messages."""
        return f"row {self.locator(row)}"

    def split(self, row: int) -> GivenSplit:
        """Return the split in the name of an image's array."""
        return self.array_of(row).split

    def details(self, row: int) -> tuple[str | float | None, ...]:
        """Return the details of an image's item."""
        images_name = self.array_of(row).images_name
        return ArrayDetails(images_name, self.limits, self.file_name).to_tuple()


def list_arrays(file: ArrayFile, request: RawRequest) -> Listing:
    """List the images of an array file, one item per image.

    Raises:
        DataError: An array is missing, has a wrong shape or is damaged; the scale of its
            values is unclear; or labels, groups or splits break a rule of
            :mod:`tasks.sources.own`.
    """
    found_arrays = find_arrays(file)
    arrays = found_arrays.arrays
    headers = [_image_header(file, array.images_name) for array in arrays]
    num_images = sum(header.shape[0] for header in headers)
    if num_images > MAX_IMAGES:
        raise request.error(
            f"the file has {num_images:,} images, but isweep can read at most {MAX_IMAGES:,}",
            hint="Save fewer images in the file",
        )
    # The keys are the names of the columns. A dict keeps their order.
    column_names: dict[str, None] = {}
    for array in arrays:
        column_names |= dict.fromkeys(array.array_name_by_column)
    columns = find_columns(list(column_names), (LABEL_COLUMN, "group", "split"), request)
    tables = []
    unused_tables = []
    for array, header in zip(arrays, headers, strict=True):
        num_rows = header.shape[0]
        tables.append(_used_cells(file, array, columns, num_rows))
        unused_tables.append(_unused_cells(file, array, columns, num_rows))
    joined = JoinedTables(tables)
    labels = joined.cells[LABEL_COLUMN]
    class_names = _class_names(file, found_arrays.class_names_array, labels, request)
    scale = _choose_scale(file, arrays, headers, request)
    file_name = array_path(request).name if request.root().is_dir() else ""
    images = _ArrayRows(arrays, joined, scale.limits, file_name)

    def sort_classes(labels: Iterable[str]) -> list[str]:
        # Class names that the file lists are in its order. Other classes follow.
        return [*class_names, *sort_labels(set(labels).difference(class_names))]

    rows = Rows(
        cells=joined.cells,
        locator=images.locator,
        name=images.name,
        file_split=images.split,
        details=images.details,
    )
    base_listing = Listing(
        dtype="uint8" if scale.limits is None else "float32",
        block_size=BLOCK_IMAGES,
        intensity=scale.rule,
        excluded={VALIDATION_LEFT_OUT: found_arrays.num_validation},
    )
    return own_listing(
        rows,
        request,
        columns=columns,
        unused_cells=joined.join(unused_tables),
        dataset_flags=unused_array_flags(file, found_arrays),
        class_names=class_names,
        sort_classes=sort_classes,
        base_listing=base_listing,
    )


def _used_cells(
    file: ArrayFile, array: ImageArray, columns: Columns, num_images: int
) -> dict[str, list[str]]:
    """Return the columns that are read, as text: role -> cells.

    Raises:
        DataError: A column has another shape or dtype, or cannot be read.
    """
    cells = {}
    for role, column in columns.name_by_role.items():
        if column in array.array_name_by_column:
            array_name = array.array_name_by_column[column]
            cells[role] = _text_cells(file, array_name, num_images)
    return cells


def _unused_cells(
    file: ArrayFile, array: ImageArray, columns: Columns, num_images: int
) -> dict[str, list[str]]:
    """Return the unused columns that have one value per image, as text: column -> cells."""
    cells = {}
    for column in columns.unused:
        array_name = array.array_name_by_column.get(column)
        if array_name is None:
            continue
        # An array that is not used may be damaged, or have another shape or dtype.
        with suppress(DataError):
            cells[column] = _text_cells(file, array_name, num_images)
    return cells


def _image_header(file: ArrayFile, images_name: str) -> ArrayHeader:
    """Return the header of an array of images.

    Raises:
        DataError: The array has a shape or dtype that images do not have.
    """
    header = file.header(images_name)
    shape = header.shape
    has_channels = len(shape) == 4 and (shape[1] in CHANNELS or shape[3] in CHANNELS)
    is_image_shape = (len(shape) == 3 or has_channels) and 0 not in shape
    is_number = header.dtype.kind in "uif"
    if is_image_shape and is_number:
        return header
    hint = (
        "Save numbers of shape (n, height, width), (n, height, width, 3) or (n, 3, height, width)"
    )
    if header.dtype.kind == "b":
        hint = 'Convert the values to numbers first: images.astype("uint8") * 255'
    raise file.error(
        f"the array {images_name} contains {header.dtype} values of shape {shape}, which are not "
        "images",
        hint=hint,
    )


def _text_cells(file: ArrayFile, array_name: str, num_images: int) -> list[str]:
    """Return an array with one entry per image as text.

    Raises:
        DataError: The array has another shape or dtype, or cannot be read.
    """
    header = file.header(array_name)
    first_length = header.shape[:1]
    other_lengths = header.shape[1:]
    has_one_each = first_length == (num_images,) and set(other_lengths) <= {1}
    if not (has_one_each and header.has_plain_values):
        hint = "Save one value per image"
        if len(header.shape) == 2:
            hint += ". Images with several values each cannot be used"
        raise file.error(
            f"the array {array_name} contains {header.dtype} values of shape {header.shape}, not "
            f"one number or text for each of the {num_images} images",
            hint=hint,
        )
    values = _small_array(file, array_name).reshape(-1).tolist()
    # Equal values share one text in memory, because there may be millions of images.
    texts: dict[object, str] = {}
    return [texts.setdefault(value, label_text(value)) for value in values]


def _small_array(file: ArrayFile, array_name: str) -> AnyArray:
    """Return all values of an array.

    Raises:
        DataError: The array has more than :data:`MAX_SMALL_ARRAY_BYTES` bytes, or is damaged.
    """
    header = file.header(array_name)
    if header.num_bytes > MAX_SMALL_ARRAY_BYTES:
        raise file.error(
            f"the array {array_name!r} has {header.num_bytes:,} bytes ({header.dtype} "
            f"{header.shape}), more than the {MAX_SMALL_ARRAY_BYTES:,} that can be read",
            hint="Save shorter text or smaller numbers",
        )
    try:
        return file.load(array_name)
    except SkipItem as skip:  # the array file raises this error for every damaged array
        raise file.error(
            f"the array {array_name!r} cannot be read: {skip.reason}", hint=COPY_AGAIN
        ) from None


def _class_names(
    file: ArrayFile, class_names_array: str | None, labels: Sequence[str], request: RawRequest
) -> tuple[str, ...]:
    """Return the class names by label 0, 1, ...; empty if there are none.

    The names come from an array such as ``label_names``. Without such an array, they come from
    :data:`search_spaces.datasets.DATASETS`, if it has the dataset and all labels are numbers.
    """
    if class_names_array is not None:
        stored = _small_array(file, class_names_array).reshape(-1)
        return tuple(map(label_text, stored.tolist()))
    row = DATASETS.get(request.dataset.name)
    if row is not None and all(map(str.isdecimal, labels)):
        return row.label_names
    return ()


def array_reader(file: ArrayFile) -> Reader:
    """Return a reader of images. The reader is fast if items are read in ascending order."""
    row_readers = {}

    def read(item: Item) -> list[Sample]:
        details = ArrayDetails.from_item(item)
        if details.images_name not in row_readers:
            row_readers[details.images_name] = file.rows(details.images_name)
        read_row = row_readers[details.images_name]
        pixels = _channels_last(read_row(row_of_locator(item.locator)))
        if details.limits is not None:
            return [_scale_by_limits(pixels, details.limits)]
        if pixels.dtype == np.uint8:
            return [Sample(pixels)]
        scaled, conversions = scale_by_image_maximum(pixels)
        return [Sample(scaled, conversions=conversions, flags=negative_flags(pixels))]

    return read


def _scale_by_limits(pixels: AnyArray, limits: Limits) -> Sample:
    """Return an image after scaling ``limits`` to [0, 255].

    Raises:
        SkipItem: The image has infinite values or NaN.
    """
    if not np.isfinite(pixels).all():
        raise SkipItem("values not finite")
    scaled, is_clipped = rescale_to_255(pixels, limits)
    if is_clipped.any():
        return Sample(scaled, flags=(CLIPPED,))
    return Sample(scaled)


def _channels_last(pixels: AnyArray) -> AnyArray:
    """Return an image as ``(height, width)`` or ``(height, width, 3)``."""
    if pixels.ndim == 2:
        return pixels
    if pixels.shape[2] not in CHANNELS:
        pixels = np.moveaxis(pixels, 0, 2)
    if pixels.shape[2] == 1:
        return pixels[..., 0]
    return pixels


def load_images(file: ArrayFile, listing: Listing) -> AnyArray:
    """Return the images of a listing's items as one array, as stored.

    Raises:
        DataError: The arrays are damaged or have unequal shapes.
    """
    rows_by_array: dict[str, list[int]] = {}
    for item in listing.items:
        rows = rows_by_array.setdefault(ArrayDetails.from_item(item).images_name, [])
        rows.append(row_of_locator(item.locator))
    loaded = []
    try:
        for name, rows in rows_by_array.items():
            array = file.load(name)
            is_whole_array = rows == list(range(len(array)))
            loaded.append(array if is_whole_array else array[rows])
    except SkipItem as skip:
        raise DataError(f"The arrays cannot be read: {skip.reason}", hint=COPY_AGAIN) from None
    if len(loaded) == 1:
        return loaded[0]
    try:
        return np.concatenate(loaded)
    except ValueError:  # the shapes differ
        shapes = ", ".join(str(file.header(name).shape) for name in rows_by_array)
        raise DataError(
            f"Training and test images have different shapes: {shapes}",
            hint="Save all images with the same shape",
        ) from None


def _choose_scale(
    file: ArrayFile,
    arrays: Sequence[ImageArray],
    headers: Sequence[ArrayHeader],
    request: RawRequest,
) -> Scale:
    """Return the scale of all images. Images of floats are read to find their range.

    Raises:
        DataError: The arrays have several types, or the scale of their values is unclear.
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
        images = _images_by_array(file, arrays, headers)
        return Scale(*choose_pixel_range(request.dataset.name, images, pixel_range))
    except SkipItem as skip:
        raise request.error(
            f"the array of images cannot be read: {skip.reason}", hint=COPY_AGAIN
        ) from None


def _images_by_array(
    file: ArrayFile, arrays: Sequence[ImageArray], headers: Sequence[ArrayHeader]
) -> Iterator[Iterator[AnyArray]]:
    """Yield for each array an iterator that reads its images one by one.

    Raises:
        SkipItem: An array cannot be opened. The iterators raise it too, for a damaged image.
    """
    for array, header in zip(arrays, headers, strict=True):
        yield map(file.rows(array.images_name), range(header.shape[0]))


def list_npz(request: RawRequest) -> Listing:
    """List the images of an ``.npz``, and check the checksums of all its arrays."""
    file = NpzFile(request)
    listing = list_arrays(file, request)
    file.verify_checksums()
    return listing


# tasks.sources.SOURCES refers to npz and hdf5 by these names.
npz = Source(list_npz, lambda request: array_reader(NpzFile(request)))
# HDF5 compares the checksum of a chunk, if there is one, when the chunk is read.
hdf5 = Source(
    lambda request: list_arrays(Hdf5File(request), request),
    lambda request: array_reader(Hdf5File(request)),
)
