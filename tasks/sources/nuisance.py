"""Nuisance factors: what varies from image to image and carries no information on the label.

A picture of a digit has an intrinsic dimension of about 7. These factors raise it while the label
rule stays as it is: the label is still which digit is shown. Every factor is continuous, and its
values are drawn per image from a seed, without the labels. If the parameter ``factors`` is ``n``,
the first ``n`` factors of :data:`FACTORS` are in force. An image has the same values of a factor at
every number of factors, so level 4 is level 2 with two factors more.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tasks.sources.made import low_frequency_patterns

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float64]
FACTORS = ("shift", "rotation", "contrast", "coarse background", "blur", "fine background")
"""Factors in the order in which they are switched on."""
MAX_SHIFT = 0.09
"""Largest shift along either axis, as a share of the image's side; 2.5 of 28 pixels."""
MAX_TURN = np.radians(25)
"""Largest rotation in radians, either way: a 6 turned by 25 degrees is not yet a 9."""
MIN_CONTRAST = 0.75
"""Smallest factor on the pixels of the picture; the largest is 1."""
MIN_BLUR = 0.4 / 28
MAX_BLUR = 1.2 / 28
"""Standard deviation of the Gaussian blur, as a share of the image's side; less changes no byte."""
NUM_COARSE = 10
NUM_FINE = 80
"""Smooth waves whose weights are drawn: a background has as many dimensions as it has waves."""
FIRST_FINE = 30
"""The lowest fine wave, counted from the lowest of all. The waves between look like strokes of
digits and would make the task harder without raising its dimension more.
"""
BACKGROUND_LIGHT = 0.6
"""Lightest background, as a share of white: digits stay the brightest part of most images."""
COARSE_WEIGHT = 0.08
FINE_WEIGHT = 0.13
"""Standard deviation of a wave's weight, before the background is squashed into its range. With
these weights, pairs of MNIST's digits at 10 x 10 pixels have about 3 times the dimension.
"""


@dataclass(frozen=True)
class FactorValues:
    """One drawn value of every factor for each of ``num_images`` images."""

    shift: Floats
    """Down and to the right, as a share of the side; ``(num_images, 2)``."""
    turn: Floats
    """Radians; ``(num_images,)``."""
    contrast: Floats
    """Factor on pixels; ``(num_images,)``."""
    blur: Floats
    """Standard deviation as a share of the side; ``(num_images,)``."""
    coarse: Floats
    """Weights of the background's coarse waves; ``(num_images, NUM_COARSE)``."""
    fine: Floats
    """Weights of its fine waves; ``(num_images, NUM_FINE)``."""


def draw_factors(num_images: int, seed: int) -> FactorValues:
    """Draw all factors of ``num_images`` images, also those that are not in force."""
    rng = np.random.default_rng(seed)
    unit_std = np.sqrt(3)
    return FactorValues(
        shift=rng.uniform(-MAX_SHIFT, MAX_SHIFT, (num_images, 2)),
        turn=rng.uniform(-MAX_TURN, MAX_TURN, num_images),
        contrast=rng.uniform(MIN_CONTRAST, 1, num_images),
        blur=rng.uniform(MIN_BLUR, MAX_BLUR, num_images),
        coarse=COARSE_WEIGHT * rng.uniform(-unit_std, unit_std, (num_images, NUM_COARSE)),
        fine=FINE_WEIGHT * rng.uniform(-unit_std, unit_std, (num_images, NUM_FINE)),
    )


def vary(images: Pixels, num_factors: int, seed: int) -> Pixels:
    """Return ``(num_images, side, side)`` images with the first ``num_factors`` factors varied.

    Without factors these are the images themselves, byte for byte.
    """
    if num_factors == 0:
        return images
    values = draw_factors(len(images), seed)
    in_force = FACTORS[:num_factors]
    turn = values.turn if "rotation" in in_force else np.zeros(len(images))
    varied = move(images.astype(np.float64), turn, values.shift)
    if "contrast" in in_force:
        varied = varied * values.contrast[:, None, None]
    if "blur" in in_force:
        varied = blur(varied, values.blur)
    if "coarse background" in in_force:
        fine = values.fine if "fine background" in in_force else None
        varied = add_background(varied, values.coarse, fine)
    return np.rint(varied).astype(np.uint8)


def move(images: Floats, turn: Floats, shift: Floats) -> Floats:
    """Rotate images about their center, then shift them, by linear interpolation; 0 outside."""
    side = images.shape[1]
    center = (side - 1) / 2
    row, column = np.mgrid[:side, :side] - center
    down = row - side * shift[:, 0, None, None]
    right = column - side * shift[:, 1, None, None]
    cosine = np.cos(turn)[:, None, None]
    sine = np.sin(turn)[:, None, None]
    # Places in images with a border of one pixel, so that all four neighbors exist.
    from_row = np.clip(cosine * down - sine * right + center + 1, 0, side + 1)
    from_column = np.clip(sine * down + cosine * right + center + 1, 0, side + 1)
    upper = np.minimum(from_row.astype(np.intp), side)
    left = np.minimum(from_column.astype(np.intp), side)
    down_share = from_row - upper
    right_share = from_column - left
    framed = np.pad(images, ((0, 0), (1, 1), (1, 1)))
    image = np.arange(len(images))[:, None, None]
    above = (1 - right_share) * framed[image, upper, left]
    above += right_share * framed[image, upper, left + 1]
    below = (1 - right_share) * framed[image, upper + 1, left]
    below += right_share * framed[image, upper + 1, left + 1]
    interpolated: Floats = (1 - down_share) * above + down_share * below
    return interpolated


def blur(images: Floats, widths: Floats) -> Floats:
    """Blur each image with a Gaussian of its own width; weights sum to 1 at the border too."""
    side = images.shape[1]
    place = np.arange(side)
    squared_distance = (place[:, None] - place) ** 2
    # A width near 0 leaves the image as it is and must not divide by 0.
    variance = np.maximum(side * widths, 1e-3)[:, None, None] ** 2
    weights = np.exp(-squared_distance / (2 * variance))
    weights /= weights.sum(axis=2, keepdims=True)
    blurred: Floats = weights @ images @ weights.transpose(0, 2, 1)
    return blurred


def add_background(images: Floats, coarse: Floats, fine: Floats | None = None) -> Floats:
    """Lay images over a smooth background as two lights add up: ``1 - (1 - a)(1 - b)``.

    Nothing is clipped, so a change of any weight changes the image.
    """
    side = images.shape[1]
    # A small image has fewer waves than are drawn.
    num_waves = min(FIRST_FINE + NUM_FINE, side * side - 1)
    waves = side * low_frequency_patterns(num_waves, side)
    height = np.tensordot(coarse, waves[:NUM_COARSE], axes=1)
    if fine is not None:
        fine_waves = waves[FIRST_FINE:]
        height += np.tensordot(fine[:, : len(fine_waves)], fine_waves, axes=1)
    light = BACKGROUND_LIGHT * (1 + np.tanh(height)) / 2
    lit: Floats = 255 - (255 - images) * (1 - light)
    return lit
