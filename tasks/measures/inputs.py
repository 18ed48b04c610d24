"""Checks of what a user hands in, once, at the door."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt

from search_spaces.errors import DataError
from tasks.measures.distances import BlockSource, as_source


def check_labels(labels: npt.ArrayLike, num_images: int) -> npt.NDArray[np.int64]:
    """Labels as int64.

    Raises:
        DataError: If they are no whole numbers, or not one per image.
    """
    array = np.asarray(labels)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1 or len(array) != num_images:
        raise DataError(
            "There must be one label per image", f"labels of shape {array.shape} for {num_images} images"
        )
    if array.dtype.kind not in "biuf":
        raise DataError(
            "Labels must be whole numbers", f"dtype {array.dtype}", "number the classes 0, 1, ..."
        )
    if array.dtype.kind == "f" and len(bad := np.flatnonzero(~_is_int64(array))):
        raise DataError(
            "Labels must be whole numbers", f"{array[bad[0]]} at row {bad[0]}", "number the classes"
        )
    return array.astype(np.int64)


def _is_int64(values: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.bool_]:
    """Floats that are whole numbers which int64 holds; NaN and infinity are not."""
    whole: npt.NDArray[np.bool_] = (values == np.rint(values)) & (np.abs(values) < 2.0**63)
    return whole


def as_sizes(train_sizes: Sequence[int]) -> tuple[int, ...]:
    """Sizes as given, of plain whole numbers.

    Raises:
        DataError: If they are one number or text, or one is not whole.
    """
    if isinstance(train_sizes, str) or not isinstance(train_sizes, Iterable):
        raise DataError("train_sizes must be several sizes", repr(train_sizes), "e.g. [500, 1000]")
    if any(not isinstance(size, Real) or size % 1 for size in train_sizes):
        raise DataError("train_sizes must be whole numbers", str(list(train_sizes)), "round them")
    return tuple(int(size) for size in train_sizes)


def check_train_sizes(train_sizes: Sequence[int], num_images: int) -> list[int]:
    """Sizes ascending and once each.

    Raises:
        DataError: If there are none, or one is not whole or does not fit the number of images.
    """
    sizes = sorted(set(as_sizes(train_sizes)))
    if not sizes or sizes[0] < 1 or sizes[-1] > num_images:
        raise DataError(
            f"train_sizes must be between 1 and the number of images, {num_images}",
            str(list(train_sizes)),
            "choose smaller sizes or add images",
        )
    return sizes


def as_array(images: npt.ArrayLike) -> npt.NDArray[Any]:
    """Images as one array.

    Raises:
        DataError: If they have several shapes, are no numbers, are a single number, or some are masked.
    """
    if isinstance(images, np.ma.MaskedArray) and np.ma.is_masked(images):
        rule = "No value of an image may be masked"
        raise DataError(rule, f"{np.ma.getmaskarray(images).sum()} masked values", "fill or remove them")
    try:
        array = np.asarray(images)
    except ValueError as error:  # numpy's word for ragged nested sequences
        raise DataError("All images must have one size and channel count", str(error)) from None
    if array.dtype == object:
        shapes = sorted({np.shape(image) for image in array.ravel()[:1000]})
        if shapes == [()]:
            raise DataError("Images must be real numbers", "dtype object", "convert them")
        raise DataError(
            "All images must have one size and channel count", f"shapes {shapes[:5]}", "resize them"
        )
    if array.ndim == 0:
        raise DataError("Images must have an axis for their number", f"one value, {array}")
    return array


def checked_source(images: BlockSource | npt.ArrayLike) -> BlockSource:
    """Images as a source of rows that have at least one axis.

    Raises:
        DataError: If they have none, no rows, no pixels, or several shapes.
    """
    source = images if isinstance(images, BlockSource) else as_source(as_array(images))
    if len(source.row_shape) == 0:
        raise DataError(
            "Images must have at least one axis besides their number", f"shape ({source.num_rows},)"
        )
    if source.num_rows == 0 or 0 in source.row_shape:
        raise DataError(
            "There must be at least one image, with at least one pixel",
            f"{source.num_rows} rows of shape {source.row_shape}",
        )
    return source


def as_channels_first(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """View ``(n, h, w)`` and ``(n, h, w, c)`` as ``(n, c, h, w)``; distances do not depend on it."""
    if array.ndim == 3:
        return array[:, None]
    if array.ndim == 4 and array.shape[1] not in (1, 3, 4) and array.shape[3] in (1, 3, 4):
        return np.ascontiguousarray(np.moveaxis(array, 3, 1))
    return array
