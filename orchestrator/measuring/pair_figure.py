"""Draw the closest pair of images with different labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from orchestrator.measuring.request import Images, Measured
from search_spaces.errors import DataError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_pair(figure: Figure, measured: Measured) -> None:
    """Draw the closest pair side by side. Each image is scaled to its own range of values.

    Raises:
        DataError: There is no such pair, or the data are not images.
    """
    sharpness = measured.record.label_sharpness
    if not sharpness or not sharpness.pair or not measured.pair_images or not measured.pair_labels:
        raise DataError(
            "No pair can be drawn, because isweep measured no two images with different labels",
            hint="Measure images of at least two classes, with their labels",
        )
    panels = zip(
        figure.subplots(1, 2),
        sharpness.pair,
        measured.pair_images,
        measured.pair_labels,
        strict=True,
    )
    for axes, row, image, label in panels:
        axes.imshow(_stretched(image), cmap="gray", interpolation="nearest")
        axes.set_title(f"image {row}: {label}")
        axes.set_axis_off()


def _stretched(image: Images) -> Images:
    """Return an image with its channels last, scaled to values from 0 to 1."""
    pixels = np.asarray(image)
    if pixels.ndim == 3 and pixels.shape[0] in (1, 3):
        pixels = pixels.transpose(1, 2, 0)
    pixels = pixels.squeeze()
    if pixels.ndim < 2:
        raise DataError(
            f"The pair cannot be drawn, because the data are rows of {pixels.size} numbers, "
            "not images",
            hint="Remove --show-pair",
        )
    low = float(pixels.min())
    high = float(pixels.max())
    return (pixels - low) / ((high - low) or 1.0)
