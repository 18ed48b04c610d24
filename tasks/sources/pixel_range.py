"""Choose which values of an array of floats are black and white, and scale the others between.

Arrays of floats do not say on which scale their pixels are. The scale is decided once for all
images of a dataset, from their values or by the user's ``pixel_range``, and refused if in doubt.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import DataError

Limits = tuple[float, float]
"""The values of black and of white."""
CUT = "values outside pixel_range cut"
"""Flag of an image."""
MAX_CUT_SHARE = 0.9
"""Share of all values that may lie outside ``pixel_range``. It is large because a CT window leaves
out most values, those of air and of the table."""
MIN_FILLED_SHARE = 1e-4
"""Share of ``pixel_range`` that the values must span."""


def rescale_to_255(
    values: NDArray[np.generic], limits: Limits
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
        """A ``pixel_range`` that holds all values, as the user can type it."""
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


def _range_of(
    arrays: Iterable[Iterable[NDArray[np.generic]]], pixel_range: Limits | None
) -> _ValueRange:
    """Read all images, one by one, and return the range of their values."""
    values = _ValueRange(np.inf, [], 0, 0)
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
                _, is_cut = rescale_to_255(finite, pixel_range)
                values.num_cut += int(is_cut.sum())
        values.highs.append(high)
    return values


@np.errstate(over="ignore", invalid="ignore")  # for limits beyond float32
def choose_pixel_range(
    name: str,
    arrays: Iterable[Iterable[NDArray[np.generic]]],
    pixel_range: Limits | None,
) -> tuple[Limits, str]:
    """Choose the values of black and white for all images.

    Args:
        name: Name of the dataset, for messages.
        arrays: Arrays of images, such as those of training and of test, read one by one.
        pixel_range: The user's choice; None to choose by the values.

    Returns:
        The values that become 0 and 255, and the rule in words.

    Raises:
        DataError: The values allow several scales, the arrays seem to have different scales, or
            hardly any value lies within ``pixel_range``.
    """
    values = _range_of(arrays, pixel_range)
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
            f"{name}: training and test images have different scales: some of the arrays lie in "
            f"[0, 1], but all together lie in {values.text}",
            hint=f"Save them on the same scale, or give {values.suggested_pixel_range}",
        )
    if is_8_bit:
        return (0.0, 255.0), "floats in [0, 255] as stored"
    raise DataError(
        f"{name}: float images have values in {values.text}, so it is unclear which value is white",
        hint="Give the values of black and white. All values lie in "
        f"{values.suggested_pixel_range}",
    )


def _check_pixel_range(name: str, values: _ValueRange, pixel_range: Limits) -> None:
    """Check that the user's range is not far wider than the values, or far from them."""
    low, high = pixel_range
    hint = f"All values lie in {values.suggested_pixel_range}"
    if values.num_cut > MAX_CUT_SHARE * values.num_values:
        share = values.num_cut / values.num_values
        raise DataError(
            f"{name}: pixel_range [{low:g}, {high:g}] cuts {share:.1%} of the values, which lie "
            f"in {values.text}",
            hint=hint,
        )
    if 0 < values.high - values.low < MIN_FILLED_SHARE * (high - low):
        raise DataError(
            f"{name}: values in {values.text} fill less than {MIN_FILLED_SHARE:.2%} of "
            f"pixel_range [{low:g}, {high:g}]",
            hint=hint,
        )
