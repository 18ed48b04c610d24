"""Check the images, labels and train sizes that a user passes to a measure.

A function with the name ``checked_...`` returns its argument in the type that the measures
need. If the argument cannot be used, the function raises a DataError with a hint.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Real
from pathlib import PurePath
from typing import Any

import numpy as np
import numpy.typing as npt

from search_spaces.errors import DataError
from tasks.array_types import AnyArray, IntArray
from tasks.measures.distances import BlockSource, as_source


def checked_labels(labels: npt.ArrayLike, num_images: int) -> IntArray:
    """Return labels as ``(num_images,)`` int64.

    Args:
        labels: ``(num_images,)`` or ``(num_images, 1)`` whole numbers of any real dtype.
        num_images: Number of images. There must be as many labels.

    Raises:
        DataError: The number of labels differs from ``num_images``, or a label is not a whole
            number.
    """
    array = np.asarray(labels)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1 or len(array) != num_images:
        raise DataError(
            f"Labels have the shape {array.shape}, but there are {num_images} images",
            hint="Pass one label per image",
        )
    if array.dtype.kind not in "biuf":
        raise DataError(
            f"Labels have the dtype {array.dtype}, but must be whole numbers",
            hint="Number the classes 0, 1, 2 and so on",
        )
    if array.dtype.kind == "f":
        # NaN and infinity are not whole numbers. Numbers from 2**63 on do not fit into int64.
        fits_int64 = np.abs(array) < 2.0**63
        is_whole = fits_int64 & (array == np.rint(array))
        if not is_whole.all():
            row = int(np.argmin(is_whole))
            raise DataError(
                f"The label of row {row} is {array[row]}, which is not a whole number",
                hint="Number the classes 0, 1, 2 and so on",
            )
    return array.astype(np.int64)


def whole_train_sizes(train_sizes: Sequence[int]) -> tuple[int, ...]:
    """Return train sizes as plain integers, in the same order.

    Raises:
        DataError: The train sizes are not a list of whole numbers.
    """
    if isinstance(train_sizes, str) or not isinstance(train_sizes, Iterable):
        raise DataError(
            f"train_sizes is {train_sizes!r}, which is not a list",
            hint="Pass a list of sizes, for example [500, 1000]",
        )
    if any(not isinstance(size, Real) or size % 1 for size in train_sizes):
        raise DataError(
            f"train_sizes is {list(train_sizes)}, but not all of these are whole numbers",
            hint="Pass whole numbers only",
        )
    return tuple(int(size) for size in train_sizes)


def checked_train_sizes(train_sizes: Sequence[int], num_images: int) -> list[int]:
    """Return the train sizes in ascending order, without repetition.

    Raises:
        DataError: There is no train size, or a train size is not between 1 and ``num_images``.
    """
    sizes = sorted(set(whole_train_sizes(train_sizes)))
    if not sizes or sizes[0] < 1 or sizes[-1] > num_images:
        raise DataError(
            f"train_sizes is {list(train_sizes)}, but there are {num_images} images",
            hint=f"Choose train sizes from 1 to {num_images}, or add images",
        )
    return sizes


def checked_array(name: str, values: Any) -> AnyArray:
    """Return values as one array.

    Args:
        name: Name of the values in messages, with a capital letter: "Images" or "Labels".
        values: An array, or a list of arrays or numbers.

    Raises:
        DataError: A value is masked, the shapes differ, or ``values`` is a single number.
    """
    _check_unmasked(name, values)
    try:
        array = np.asarray(values)
    except ValueError:  # nested sequences of different lengths
        raise DataError(
            f"{name} have different shapes, so they do not form one array",
            hint=f"Convert all {name.lower()} to the same shape",
        ) from None
    if array.ndim == 0:
        raise DataError(
            f"{name} cannot be converted to an array: {array}",
            hint="Pass an array, or a list with one entry for each image",
        )
    return array


def _check_unmasked(name: str, values: Any) -> None:
    if not isinstance(values, (list, tuple)):
        values = [values]
    for part in values:
        # The attribute is checked instead of the type, because importing numpy.ma takes long.
        mask = getattr(part, "mask", None)
        if isinstance(mask, (np.ndarray, np.bool_)) and mask.any():
            hint = "Replace the masked values with `.filled(VALUE)`, or leave out masked images"
            raise DataError(f"{name} contain masked values", hint=hint)


def checked_images(images: npt.ArrayLike) -> AnyArray:
    """Return images as one array.

    Raises:
        DataError: The shapes differ, a value is masked, or a value is not a number.
    """
    array = checked_array("Images", images)
    first_values = array.flat[:1000]  # ravel() would copy a transposed array.
    if any(isinstance(value, (str, PurePath)) for value in first_values):
        raise DataError(
            "Images contain texts or paths, but must be pixel values",
            hint="For image files, pass the path of their folder, or the path of a CSV file with "
            "the columns `path` and `label`. If the texts are numbers, convert them with "
            "`.astype(float)`",
        )
    if array.dtype == object:
        shapes = sorted({np.shape(value) for value in first_values})
        if shapes == [()]:
            raise DataError(
                "Images have the dtype object, but must be real numbers",
                hint="Convert the images, for example with .astype(float)",
            )
        raise DataError(
            f"Images have different shapes: {shapes[:5]}",
            hint="Resize all images to the same shape",
        )
    return array


_SHAPE_HINT = "Pass an array of shape (num_images, height, width) or (num_images, num_features)"


def checked_source(images: BlockSource | npt.ArrayLike) -> BlockSource:
    """Return images as a source of rows.

    Raises:
        DataError: There is no image, the images have no pixels, or the array has only one
            axis.
    """
    source = images if isinstance(images, BlockSource) else as_source(checked_images(images))
    if len(source.row_shape) == 0:
        raise DataError(
            f"Images have the shape ({source.num_rows},), but an axis for the pixels is missing",
            hint=_SHAPE_HINT,
        )
    shape = (source.num_rows, *source.row_shape)
    if source.num_rows == 0:
        raise DataError(
            f"The array of shape {shape} contains no images", hint="Pass at least one image"
        )
    if 0 in shape:
        raise DataError(
            f"The array of shape {shape} contains images without pixels", hint=_SHAPE_HINT
        )
    return source


CHANNELS = (1, 3, 4)
"""Possible numbers of channels: 1 (gray), 3 (RGB), and 4 (RGB with transparency)."""


def as_channels_first(array: AnyArray) -> AnyArray:
    """Return images of shape ``(n, h, w)`` or ``(n, h, w, c)`` as ``(n, c, h, w)``.

    If an array has four axes, the function compares the lengths of the last and the second
    axis. The last axis is assumed to contain the channels if its length is 1, 3 or 4, and the
    length of the second axis is none of these. Any other array with two or four axes is
    returned unchanged. The order of the axes does not change any distance.
    """
    if array.ndim == 3:
        return array[:, None]
    if array.ndim == 4:
        _, second, _, last = array.shape
        if last in CHANNELS and second not in CHANNELS:
            return np.ascontiguousarray(np.moveaxis(array, 3, 1))
    return array


def has_images_on_last_axis(images_shape: tuple[int, ...], labels_shape: tuple[int, ...]) -> bool:
    """Return whether the last axis is probably the axis of the images, as in MATLAB files.

    The result is True if two conditions hold. The length of the last axis equals the number of
    labels. This length is also larger than the length of the first axis, and larger than any
    number of channels. If the first axis is longer, the order of the axes is probably right,
    and labels are missing.
    """
    has_one_label_each = set(labels_shape[1:]) <= {1}
    if not has_one_label_each or len(images_shape) < 3:
        return False
    length = images_shape[-1]
    return labels_shape[:1] == (length,) and length > max(images_shape[0], *CHANNELS)
