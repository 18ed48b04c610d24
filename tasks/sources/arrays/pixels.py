"""Check the image arrays in an array file, choose their scale, and convert stored images.

An image array has the shape ``(n, height, width)``, ``(n, height, width, channels)`` or
``(n, channels, height, width)``, with 1 or 3 channels. A stored image becomes pixels in
[0, 255]. The rule depends on the dtype, and on the user's option ``pixel_range``:

==============  ===============  =============================================================
stored as       ``pixel_range``  rule
==============  ===============  =============================================================
uint8           not set          The values are used as stored. They must not be only 0 and 1.
other integers  not set          Each image is scaled by its own maximum.
floats          not set          All images get the same scale, which follows from the values of
                                 all images.
any number      set              All images are scaled by ``pixel_range``.
==============  ===============  =============================================================

:mod:`tasks.sources.pixel_range` chooses the scale for the last two rules.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import chain
from typing import NamedTuple

import numpy as np

from tasks.array_types import AnyArray
from tasks.sources.arrays.files import COPY_AGAIN, ArrayFile, ArrayHeader
from tasks.sources.arrays.names import ImageArray
from tasks.sources.base import RawRequest, Sample, SkipItem
from tasks.sources.pictures import negative_flags, scale_by_image_maximum
from tasks.sources.pixel_range import (
    CLIPPED,
    Limits,
    check_not_divided,
    choose_pixel_range,
    rescale_to_255,
)

CHANNELS = (1, 3)
"""Possible numbers of channels. If the last axis of an image has one of these lengths, it is
the channel axis. Otherwise the first axis is the channel axis."""


class Scale(NamedTuple):
    """The rule by which stored values become pixels in [0, 255].

    Attributes:
        limits: The stored values that become 0 and 255. None means no limits: uint8 stays as
            stored, and each image of other integers is scaled by its own maximum.
        rule: The rule in words, for the record of the prepared dataset.
    """

    limits: Limits | None
    rule: str


def image_header(file: ArrayFile, images_name: str) -> ArrayHeader:
    """Return the header of an image array.

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
    if 0 in shape:
        raise file.error(
            f"the array {images_name} is empty: its shape is {shape}", hint="Save images in it"
        )
    hint = (
        "Save numbers of shape (n, height, width), (n, height, width, 3) or (n, 3, height, width)"
    )
    if header.dtype.kind == "b":
        hint = 'Convert the values to numbers first: images.astype("uint8") * 255'
    raise file.error(
        f"the array {images_name} contains {header.dtype} values of shape {shape}, which are "
        "not images",
        hint=hint,
    )


def choose_scale(
    file: ArrayFile,
    arrays: Sequence[ImageArray],
    headers: Sequence[ArrayHeader],
    request: RawRequest,
) -> Scale:
    """Return the scale of all images. If the images are floats, all of them are read to find
    their range.

    Raises:
        DataError: The arrays have several types, the scale of their values is unclear, or all
            values of uint8 images are 0 or 1.
    """
    pixel_range = request.dataset.pixel_range
    dtypes = {header.dtype.newbyteorder("=") for header in headers}
    kinds = {dtype.kind for dtype in dtypes}
    if len(dtypes) > 1 and kinds != {"f"}:
        raise request.error(
            f"images have several types ({', '.join(sorted(map(str, dtypes)))}), so their scales "
            "may differ",
            hint="Save all images as the same type",
        )
    if pixel_range is None and dtypes == {np.dtype(np.uint8)}:
        all_images = chain.from_iterable(_images_by_array(file, arrays, headers))
        with suppress(SkipItem):  # the preparation reports damaged images later
            check_not_divided(request.dataset.name, all_images)
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
    """Yield one iterator per array. The iterator reads the images of the array one by one.

    Raises:
        SkipItem: An array cannot be opened. The iterators also raise this error if an image is
            damaged.
    """
    for array, header in zip(arrays, headers, strict=True):
        yield map(file.rows(array.images_name), range(header.shape[0]))


def to_sample(stored: AnyArray, limits: Limits | None) -> Sample:
    """Convert a stored image to pixels in [0, 255].

    Args:
        stored: One row of an image array.
        limits: The stored values that become 0 and 255; None as in :class:`Scale`.

    Raises:
        SkipItem: The image has infinite values or NaN.
    """
    pixels = _channels_last(stored)
    if limits is not None:
        return _scale_by_limits(pixels, limits)
    if pixels.dtype == np.uint8:
        return Sample(pixels)
    scaled, conversions = scale_by_image_maximum(pixels)
    return Sample(scaled, conversions=conversions, flags=negative_flags(pixels))


def _scale_by_limits(pixels: AnyArray, limits: Limits) -> Sample:
    """Scale an image so that its stored values ``limits`` become 0 and 255.

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
