"""Read the labels and the other columns of an array file as text.

:mod:`tasks.sources.arrays.names` defines columns and roles. A *cell* is the value of one image
in a column.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain

from search_spaces.datasets import DATASETS
from search_spaces.errors import DataError
from tasks.array_types import AnyArray
from tasks.measures.input_checks import has_images_on_last_axis
from tasks.sources.arrays.files import COPY_AGAIN, ArrayFile
from tasks.sources.arrays.names import LABEL_COLUMN, ImageArray
from tasks.sources.base import RawRequest, SkipItem
from tasks.sources.own.columns import Columns, JoinedTables, find_columns
from tasks.sources.tables import label_text

MAX_SMALL_ARRAY_BYTES = 1 << 28
"""Largest size in bytes of an array of labels, groups or names. isweep reads such an array as
a whole into memory."""


@dataclass(frozen=True)
class ArrayCells:
    """The columns of an array file.

    The cells of all arrays are joined: the cells of the second array follow those of the
    first.

    Attributes:
        columns: Names and roles of the columns that are read, and names of the unused columns.
        used: Cells of the columns that are read.
        unused: Name of an unused column -> its cells. Only columns with one value per image
            are in this dict.
    """

    columns: Columns
    used: JoinedTables
    unused: dict[str, list[str]]


def read_cells(
    file: ArrayFile,
    arrays: Sequence[ImageArray],
    request: RawRequest,
) -> ArrayCells:
    """Find the columns of all arrays of images, and read their cells.

    Raises:
        DataError: A needed column is missing, has another shape or dtype, or cannot be read.
    """
    # dict.fromkeys removes repeated names and keeps the order.
    column_names = list(dict.fromkeys(chain(*(array.array_name_by_column for array in arrays))))
    columns = find_columns(column_names, (LABEL_COLUMN, "group", "split"), request)
    tables = []
    unused_tables = []
    for array in arrays:
        num_images = file.header(array.images_name).shape[0]
        tables.append(_used_cells(file, array, columns, num_images))
        unused_tables.append(_unused_cells(file, array, columns, num_images))
    joined = JoinedTables(tables)
    return ArrayCells(columns, joined, joined.join(unused_tables))


def _used_cells(
    file: ArrayFile, array: ImageArray, columns: Columns, num_images: int
) -> dict[str, list[str]]:
    """Return the cells of the columns that are read, by role, for one image array.

    Raises:
        DataError: A column has another shape or dtype, or cannot be read.
    """
    cells = {}
    for role, column in columns.name_by_role.items():
        if column in array.array_name_by_column:
            array_name = array.array_name_by_column[column]
            if role == LABEL_COLUMN:
                _check_first_axis(file, array.images_name, array_name)
            cells[role] = _text_cells(file, array_name, num_images)
    return cells


def _unused_cells(
    file: ArrayFile, array: ImageArray, columns: Columns, num_images: int
) -> dict[str, list[str]]:
    """Return the cells of the unused columns, by column name, for one image array.

    Columns that do not have one value per image are left out.
    """
    cells = {}
    for column in columns.unused:
        if column in array.array_name_by_column:
            # An unused array may be damaged, or have another shape or dtype. This is no error.
            with suppress(DataError):
                array_name = array.array_name_by_column[column]
                cells[column] = _text_cells(file, array_name, num_images)
    return cells


def _check_first_axis(file: ArrayFile, images_name: str, array_name: str) -> None:
    """Check that the last axis of an image array does not count the images.

    Raises:
        DataError: The last axis has as many entries as there are labels, and the first axis
            has fewer.
    """
    images_shape = file.header(images_name).shape
    labels_shape = file.header(array_name).shape
    if has_images_on_last_axis(images_shape, labels_shape):
        raise file.error(
            f"the array {images_name} has the shape {images_shape}, and the array "
            f"{array_name} has {labels_shape[0]} values, so the last axis of {images_name} "
            "seems to count the images",
            hint=f"Make it the first axis, with numpy.moveaxis({images_name}, -1, 0)",
        )


def _text_cells(file: ArrayFile, array_name: str, num_images: int) -> list[str]:
    """Return the entries of an array as text. The array must have one entry per image.

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
            hint += ". isweep cannot use several values per image"
        raise file.error(
            f"the array {array_name} contains {header.dtype} values of shape {header.shape}, "
            f"not one number or text for each of the {num_images} images",
            hint=hint,
        )
    values = _small_array(file, array_name).reshape(-1).tolist()
    # There may be millions of images. To save memory, equal values share one text.
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
            f"{header.shape}), but isweep can read at most {MAX_SMALL_ARRAY_BYTES:,} bytes",
            hint="Save shorter text or smaller numbers",
        )
    try:
        return file.load(array_name)
    except SkipItem as skip:  # the array file raises this error for every damaged array
        raise file.error(
            f"the array {array_name!r} cannot be read: {skip.reason}", hint=COPY_AGAIN
        ) from None


def read_class_names(
    file: ArrayFile, class_names_array: str | None, labels: Sequence[str], request: RawRequest
) -> tuple[str, ...]:
    """Return the class names in the order of the labels 0, 1, 2 and so on.

    The names come from an array such as ``label_names``. If the file has no such array, the
    names come from the table :data:`search_spaces.datasets.DATASETS`. If the table does not
    contain the dataset, or if a label is not a number, the result is empty.
    """
    if class_names_array is not None:
        stored = _small_array(file, class_names_array).reshape(-1)
        return tuple(map(label_text, stored.tolist()))
    row = DATASETS.get(request.dataset.name)
    if row is not None and all(map(str.isdecimal, labels)):
        return row.label_names
    return ()
