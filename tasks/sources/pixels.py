"""One image: resize and change channels. Pixels stay in [0, 255] throughout."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
"""ITU-R BT.601, as in Pillow's conversion to grey."""
STRIP_ROWS = 2048
"""Rows that become grey at once; below it nothing is cut."""


def to_prepared(
    pixels: NDArray[np.generic],
    *,
    image_size: int,
    channels: int,
    dtype: Literal["uint8", "float32"] = "uint8",
    antialias: bool = True,
) -> NDArray[np.generic]:
    """Return ``(channels, image_size, image_size)`` from ``(height, width)`` or ``(height, width, 3)``.

    The aspect ratio is not kept, as in the study. Grey becomes three equal channels; colour becomes luma.
    uint8 results are rounded. ``antialias=False`` is the released code's plain bilinear resize (F15).
    """
    planes = _luma(pixels) if channels == 1 and pixels.ndim == 3 else np.asarray(pixels)
    planes = planes[..., None] if planes.ndim == 2 else planes
    # One float plane at a time: a large image takes four times its bytes as floats.
    resized = [
        _resize(np.asarray(planes[..., index], np.float32), image_size, antialias=antialias)
        for index in range(planes.shape[2])
    ]
    stacked = np.stack(resized * (channels // len(resized)))
    return np.rint(np.clip(stacked, 0, 255)).astype(np.uint8) if dtype == "uint8" else stacked


def _luma(pixels: NDArray[np.generic]) -> NDArray[np.float32]:
    grey = np.empty(pixels.shape[:2], np.float32)
    for top in range(0, len(pixels), STRIP_ROWS):
        grey[top : top + STRIP_ROWS] = np.asarray(pixels[top : top + STRIP_ROWS], np.float32) @ LUMA
    return grey


def _resize(plane: NDArray[np.float32], side: int, *, antialias: bool) -> NDArray[np.float32]:
    if plane.shape == (side, side):
        return plane
    if antialias:
        from PIL import Image

        # Pillow widens the filter when it shrinks, which is the antialiasing.
        image = Image.fromarray(np.ascontiguousarray(plane)).resize((side, side), Image.Resampling.BILINEAR)
        return np.asarray(image, dtype=np.float32)
    return _bilinear(_bilinear(plane, side).T, side).T


def _bilinear(plane: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """Resize the rows by two-point interpolation at half-pixel centres, as torch does without antialias."""
    scale = np.float32(plane.shape[0] / size)
    place = np.maximum((np.arange(size, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5), 0)
    low = np.minimum(place.astype(np.int64), plane.shape[0] - 1)
    high = np.minimum(low + 1, plane.shape[0] - 1)
    weight = (place - low.astype(np.float32))[:, None]
    mixed: NDArray[np.float32] = plane[low] * (1 - weight) + plane[high] * weight
    return mixed
