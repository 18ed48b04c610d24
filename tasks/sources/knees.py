"""Knees in a bilateral radiograph: resample to 0.2 mm, find the joints, crop 13.4 cm around them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tasks.sources.base import SkipItem

PIXEL_MM, CROP_PIXELS = 0.2, 672
MAX_SIDE = 8_000


def resampled(pixels: NDArray[np.uint8], zoom: tuple[float, float]) -> NDArray[np.uint8]:
    """Return an image with its sides ``zoom`` times as long, bicubic as in the study.

    Raises:
        SkipItem: when a side would be longer than any film (1.6 m).
    """
    from PIL import Image

    height, width = (max(1, round(size * factor)) for size, factor in zip(pixels.shape, zoom, strict=True))
    if max(height, width) > MAX_SIDE:
        raise SkipItem("pixel spacing out of range")
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))


def find_centers(pixels: NDArray[np.uint8]) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return (row, column) of the left and the right knee of a bilateral radiograph, by image content.

    In each half: the column is the middle of the leg, the centre of mass of the columns' brightness above its
    median; the row is where brightness changes most from row to row near that column, in the middle half of
    the height: the joint's bony edges. A rule of thumb, made on drawn legs; check crops before relying on it.
    """
    from scipy.ndimage import gaussian_filter1d

    values = pixels.astype(np.float32)
    height, width = values.shape
    centers = []
    for start, stop in ((0, width // 2), (width // 2, width)):
        half = values[:, start:stop]
        profile = half.mean(axis=0)
        weight = np.clip(profile - np.median(profile), 0, None) + 1e-6
        column = float((weight * np.arange(len(weight))).sum() / weight.sum())
        reach = max(2, width // 12)
        band = half[:, max(0, int(column) - reach) : int(column) + reach]
        change = gaussian_filter1d(np.abs(np.diff(band, axis=0)).mean(axis=1), max(1.0, height / 60))
        quarter = height // 4
        row = quarter + int(np.argmax(change[quarter : height - quarter]))
        centers.append((float(row), start + column))
    return centers[0], centers[1]


def crop_around(pixels: NDArray[np.uint8], center: tuple[float, float]) -> NDArray[np.uint8]:
    """Cut ``CROP_PIXELS`` squared around the centre, moved inside the image where it would leave it."""
    sizes = [min(CROP_PIXELS, size) for size in pixels.shape]
    starts = [
        int(np.clip(round(place) - size // 2, 0, full - size))
        for place, size, full in zip(center, sizes, pixels.shape, strict=True)
    ]
    return pixels[starts[0] : starts[0] + sizes[0], starts[1] : starts[1] + sizes[1]]
