"""Choose the values of black and white for images of floats, and scale images to [0, 255].

A file of floats does not state the scale of its pixels. One scale is chosen for all images of
a dataset: the user's ``pixel_range``, or a scale that follows from the values of the images.
If the values do not decide the scale, an error asks the user for ``pixel_range``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from search_spaces.errors import DataError
from tasks.array_types import AnyArray

Limits = tuple[float, float]
"""The values of black and of white."""
CLIPPED = "values outside pixel_range clipped"
"""Flag of an image with values outside ``pixel_range``."""
MAX_CLIPPED_SHARE = 0.9
"""Largest share of values that may lie outside ``pixel_range``. The share is large, because a
CT window clips air and the patient table, which cover most of a CT image."""
MAX_DIM_SHARE = 0.05
"""If some images have values up to 255, at most this share of the images may have no value
above 1. If the share is larger, these images were probably saved on the scale of 0 to 1. A few
almost black images are usual, such as the first slices of a volume."""
MIN_FILLED_SHARE = 1e-4
"""Smallest share of ``pixel_range`` that the values must span."""


def rescale_to_255(values: AnyArray, limits: Limits) -> tuple[AnyArray, AnyArray]:
    """Scale values linearly so that ``limits`` become 0 and 255, and clip them to this range.

    Args:
        values: Finite values of any shape.
        limits: The values of black and white.

    Returns:
        The values as float32 in [0, 255], and a boolean array of the same shape that is True
        for clipped values.
    """
    low = np.float32(limits[0])
    high = np.float32(limits[1])
    values = values.astype(np.float32)
    scaled = (values - low) * np.float32(255 / (limits[1] - limits[0]))
    is_clipped = (values < low) | (values > high)
    return np.clip(scaled, 0, 255), is_clipped


@dataclass
class _ValueRange:
    """The finite values of several image arrays.

    Attributes:
        low: Smallest value.
        highs: Largest value of each array; ``-inf`` for an array without finite values.
        num_images: Number of images with finite values that are not all 0.
        num_dim: Number of these images without a value above 1.
        num_values: Number of finite values.
        num_clipped: Number of values outside ``pixel_range``; 0 without a ``pixel_range``.
    """

    low: float = np.inf
    highs: list[float] = field(default_factory=list)
    num_images: int = 0
    num_dim: int = 0
    num_values: int = 0
    num_clipped: int = 0

    @property
    def high(self) -> float:
        """Largest value."""
        return max(self.highs)

    @property
    def text(self) -> str:
        """The range in brackets, for messages."""
        return f"[{self.low:.9g}, {self.high:.9g}]"

    @property
    def suggested_pixel_range(self) -> str:
        """A ``pixel_range`` that contains all values, as the user can type it."""
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
        return (
            f"`pixel_range: [{black}, {white}]` (for isweep measure: --pixel-range {black} {white})"
        )


def _range_of(arrays: Iterable[Iterable[AnyArray]], pixel_range: Limits | None) -> _ValueRange:
    """Return the range of the values of all images. The images are read one by one."""
    values = _ValueRange()
    for images in arrays:
        high = -np.inf
        for image in images:
            finite = image[np.isfinite(image)].astype(np.float32)
            if not finite.size:
                continue
            values.low = min(values.low, float(finite.min()))
            image_high = float(finite.max())
            high = max(high, image_high)
            if finite.any():
                values.num_images += 1
                values.num_dim += image_high <= 1
            values.num_values += finite.size
            if pixel_range is not None:
                _, is_clipped = rescale_to_255(finite, pixel_range)
                values.num_clipped += int(is_clipped.sum())
        values.highs.append(high)
    return values


@np.errstate(over="ignore", invalid="ignore")  # limits may be too large for float32
def choose_pixel_range(
    name: str,
    arrays: Iterable[Iterable[AnyArray]],
    pixel_range: Limits | None,
) -> tuple[Limits, str]:
    """Choose the values of black and white for all images.

    Args:
        name: Name of the dataset, for messages.
        arrays: Arrays of images, such as training and test images. They are read one by one.
        pixel_range: The user's values of black and white; None if the user gave none.

    Returns:
        The values that become 0 and 255, and the rule in words.

    Raises:
        DataError: The values do not decide the scale, the arrays seem to have different
            scales, or ``pixel_range`` does not fit the values.
    """
    values = _range_of(arrays, pixel_range)
    if pixel_range is not None:
        _check_pixel_range(name, values, pixel_range)
        low, high = pixel_range
        return pixel_range, f"[{low:g}, {high:g}] (pixel_range) to [0, 255], clipped"
    if values.low >= 0 and values.high <= 1:
        return (0.0, 1.0), "floats in [0, 1], times 255"
    # Images with 8 bits have values above 127.5. If all values are smaller, the scale is
    # unclear.
    is_8_bit = values.low >= 0 and 127.5 < values.high <= 255
    if not is_8_bit:
        raise DataError(
            f"{name}: float images have values in {values.text}, so it is unclear which value "
            "is white",
            hint="Set the values of black and white. A range that contains all values is "
            f"{values.suggested_pixel_range}",
        )
    if any(-np.inf < high <= 1 for high in values.highs):
        raise DataError(
            f"{name}: training and test images seem to have different scales. In one of the "
            "two sets, no value is above 1. In both together, the values are in "
            f"{values.text}",
            hint="Save both sets on the same scale. If they already have the same scale, set "
            f"{values.suggested_pixel_range}",
        )
    if values.num_dim > MAX_DIM_SHARE * values.num_images:
        raise DataError(
            f"{name}: the images seem to have different scales. In {values.num_dim:,} of "
            f"{values.num_images:,} images, no value is above 1, but in other images values "
            f"are as large as {values.high:.9g}",
            hint="Save all images on the same scale. If they already have the same scale, set "
            f"{values.suggested_pixel_range}",
        )
    return (0.0, 255.0), "floats in [0, 255] as stored"


def check_not_divided(name: str, images: Iterable[AnyArray]) -> None:
    """Check that the values of uint8 images are not all 0 or 1.

    Args:
        name: Name of the dataset, for messages.
        images: The images. They are read until one has a value above 1.

    Raises:
        DataError: All values are 0 or 1, so white is 1 instead of 255.
    """
    high = 0
    for image in images:
        high = max(high, int(image.max(initial=0)))
        if high > 1:
            return
    if high == 1:
        raise DataError(
            f"{name}: all values of the images are 0 or 1. The images were probably divided "
            "by 255 and then stored as whole numbers",
            hint="If so, save the images before the division, or as floats. If every "
            "pixel is really black or white, without grays, multiply the images by 255",
        )


def _check_pixel_range(name: str, values: _ValueRange, pixel_range: Limits) -> None:
    """Check that the user's range does not clip too many values, and is not far wider than
    they are.

    Raises:
        DataError: The range clips too many values, or the values span too little of the range.
    """
    low, high = pixel_range
    hint = f"Set another range. One that contains all values is {values.suggested_pixel_range}"
    if values.num_clipped > MAX_CLIPPED_SHARE * values.num_values:
        share = values.num_clipped / values.num_values
        raise DataError(
            f"{name}: {share:.1%} of the values lie outside pixel_range [{low:g}, {high:g}]; "
            f"all values lie in {values.text}",
            hint=hint,
        )
    if 0 < values.high - values.low < MIN_FILLED_SHARE * (high - low):
        raise DataError(
            f"{name}: the values lie in {values.text}, which is less than "
            f"{MIN_FILLED_SHARE:.2%} of pixel_range [{low:g}, {high:g}]",
            hint=hint,
        )
