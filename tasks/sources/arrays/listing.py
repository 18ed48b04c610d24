"""List and read the images of a user's ``.npz`` or HDF5 file.

An ``.npz`` has the format of ``np.savez``. An HDF5 file has all arrays in its root group.

:func:`list_arrays` makes one item per image:

1. :mod:`tasks.sources.arrays.names` finds the arrays of images, labels and columns by their
   names.
2. :mod:`tasks.sources.arrays.pixels` checks the shapes and dtypes of the image arrays.
3. :mod:`tasks.sources.arrays.cells` reads all labels, groups, splits and other columns as
   text. All of this text is in memory at once.
4. :mod:`tasks.sources.arrays.pixels` chooses the scale of the pixels. If the images are floats,
   this step reads all images, one at a time.
5. :func:`tasks.sources.own.listing.own_listing` makes the items. The *locator* of an image is
   the name of its array and its row.

:func:`array_reader` then reads the image of one item at a time. :func:`load_images` reads all
images at once, for `isweep measure`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np

from search_spaces.errors import DataError
from tasks.array_types import AnyArray
from tasks.sources.arrays.cells import read_cells, read_class_names
from tasks.sources.arrays.files import (
    COPY_AGAIN,
    ArrayFile,
    Hdf5File,
    NpzFile,
    array_path,
    row_locator,
    row_of_locator,
)
from tasks.sources.arrays.names import (
    LABEL_COLUMN,
    ImageArray,
    find_arrays,
    unused_array_flags,
)
from tasks.sources.arrays.pixels import choose_scale, image_header, to_sample
from tasks.sources.base import Item, Listing, RawRequest, Reader, Sample, SkipItem, Source
from tasks.sources.own.class_names import sort_labels
from tasks.sources.own.columns import JoinedTables
from tasks.sources.own.listing import own_listing
from tasks.sources.own.rows import Rows
from tasks.sources.own.splits import VALIDATION_LEFT_OUT, GivenSplit
from tasks.sources.pixel_range import Limits

MAX_IMAGES = 10_000_000
"""Largest number of images in a file. All labels are in memory at once, and a damaged header
could declare many gigabytes of labels."""
BLOCK_IMAGES = 4096
"""Number of images that one reading task reads. The number is large, because reading rows in
order is cheap."""


class ArrayDetails(NamedTuple):
    """The ``details`` of an item: the item's array, and the scale of its pixels.

    Attributes:
        images_name: Name of the array that contains the image.
        black: Stored value that becomes 0; None as in
        :class:`tasks.sources.arrays.pixels.Scale`.
        white: Stored value that becomes 255; None if ``black`` is None.
        file_name: Name of the array file if the raw path is a folder; else empty. If isweep
            uses another file in the folder, this name changes the items, so the images are
            read again.
    """

    images_name: str
    black: float | None
    white: float | None
    file_name: str = ""

    @classmethod
    def from_item(cls, item: Item) -> ArrayDetails:
        """Return the details of an item that :func:`list_arrays` made."""
        return cls(*cast("tuple[Any, ...]", item.details))

    @property
    def limits(self) -> Limits | None:
        """The values of black and white; None if the item has none."""
        return None if self.black is None or self.white is None else (self.black, self.white)


@dataclass(frozen=True)
class _ArrayImages:
    """The images of all arrays, numbered together. The images of the second array follow the
    images of the first array.

    Attributes:
        arrays: The image arrays.
        tables: Labels, groups, splits and traits of the images; one table per array.
        limits: The stored values that become 0 and 255; None as in
            :class:`tasks.sources.arrays.pixels.Scale`.
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
        """Return the :class:`ArrayDetails` of an image's item.

        If there is no file name, the tuple has only three entries. Earlier versions stored
        only these entries, and stored items must not change.
        """
        images_name = self.array_of(row).images_name
        black, white = self.limits or (None, None)
        if not self.file_name:
            return images_name, black, white
        return ArrayDetails(images_name, black, white, self.file_name)


def list_arrays(file: ArrayFile, request: RawRequest) -> Listing:
    """List the images of an array file, one item per image.

    Raises:
        DataError: An array is missing, has a wrong shape or is damaged. Or the scale of its
            values is unclear. Or labels, groups or splits break a rule of
            :mod:`tasks.sources.own`.
    """
    found_arrays = find_arrays(file)
    arrays = found_arrays.arrays
    headers = [image_header(file, array.images_name) for array in arrays]
    num_images = sum(header.shape[0] for header in headers)
    if num_images > MAX_IMAGES:
        raise request.error(
            f"the file has {num_images:,} images, but isweep can read at most {MAX_IMAGES:,}",
            hint="Save fewer images in the file",
        )
    cells = read_cells(file, arrays, request)
    labels = cells.used.cells[LABEL_COLUMN]
    class_names = read_class_names(file, found_arrays.class_names_array, labels, request)
    scale = choose_scale(file, arrays, headers, request)
    file_name = array_path(request).name if request.root().is_dir() else ""
    images = _ArrayImages(arrays, cells.used, scale.limits, file_name)

    def sort_classes(names: Iterable[str]) -> list[str]:
        # The listed class names keep their order. Other classes follow.
        return [*class_names, *sort_labels(set(names).difference(class_names))]

    rows = Rows(
        cells=cells.used.cells,
        locator=images.locator,
        name=images.name,
        file_split=images.split,
        details=images.details,
        columns=cells.columns,
        unused_cells=cells.unused,
        class_names=class_names,
    )
    base_listing = Listing(
        dtype="uint8" if scale.limits is None else "float32",
        block_size=BLOCK_IMAGES,
        intensity=scale.rule,
        excluded={VALIDATION_LEFT_OUT: found_arrays.num_validation},
        flags=dict.fromkeys(unused_array_flags(file, found_arrays), num_images),
    )
    return own_listing(rows, request, base_listing, sort_classes=sort_classes)


def array_reader(file: ArrayFile) -> Reader:
    """Return a reader of images. The reader is fast if items are read in ascending order."""
    row_readers = {}

    def read(item: Item) -> list[Sample]:
        details = ArrayDetails.from_item(item)
        if details.images_name not in row_readers:
            row_readers[details.images_name] = file.rows(details.images_name)
        read_row = row_readers[details.images_name]
        stored = read_row(row_of_locator(item.locator))
        return [to_sample(stored, details.limits)]

    return read


def load_images(file: ArrayFile, listing: Listing) -> AnyArray:
    """Return all images of a listing as one array of stored values.

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
            hint="Give the training and test images the same shape, and save them again",
        ) from None


def list_npz(request: RawRequest) -> Listing:
    """List the images of an ``.npz``, and check the checksums of all its arrays."""
    file = NpzFile(request)
    listing = list_arrays(file, request)
    file.verify_checksums()
    return listing


# tasks.sources.SOURCES refers to npz and hdf5 by these names.
npz = Source(list_npz, lambda request: array_reader(NpzFile(request)))
# An HDF5 file needs no such check: if a chunk has a checksum, h5py checks it on reading.
hdf5 = Source(
    lambda request: list_arrays(Hdf5File(request), request),
    lambda request: array_reader(Hdf5File(request)),
)
