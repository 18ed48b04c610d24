"""Nuisance factors: properties that vary between images and contain no information on the label.

Pictures of a digit have an intrinsic dimension of about 7. Nuisance factors raise the
dimension. They do not change the label: the picture still shows the same digit. Every factor
has continuous values. The values are drawn per image from a seed, independently of the labels.
If the parameter ``factors`` is ``n``, the first ``n`` factors of :data:`FACTORS` are applied.
The values of a factor are the same for every ``n``. For example, ``factors: 4`` applies the
same two factors as ``factors: 2``, and then two more.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tasks.array_types import Float64Array, Uint8Array
from tasks.sources.generated import low_frequency_patterns

FACTORS = ("shift", "rotation", "contrast", "coarse background", "blur", "fine background")
"""The factors, in the order in which they are applied."""
MAX_SHIFT = 0.09
"""Largest shift along either axis, as a share of the image's side: 2.5 of 28 pixels."""
MAX_TURN = np.radians(25)
"""Largest rotation in radians, in both directions. A 6 rotated by 25 degrees does not look
like a 9."""
MIN_CONTRAST = 0.75
"""Smallest factor on the pixels. The largest factor is 1."""
MIN_BLUR = 0.4 / 28
MAX_BLUR = 1.2 / 28
"""Range of the standard deviation of the Gaussian blur, as a share of the image's side. A
weaker blur would not change an 8-bit image."""
NUM_COARSE = 10
NUM_FINE = 80
"""Number of smooth waves in a background. The dimension of a background is its number of
waves."""
FIRST_FINE = 30
"""Number of waves with a lower frequency than all fine waves. Waves between the coarse and the
fine waves are not used: they look like strokes of digits, so they would make the task
harder."""
BACKGROUND_LIGHT = 0.6
"""Largest brightness of a background, as a share of white. In most images, the digit is
brighter."""
COARSE_WEIGHT = 0.08
FINE_WEIGHT = 0.13
"""Standard deviation of a wave's weight. These values raise the intrinsic dimension of class
pairs of MNIST at 10 x 10 pixels to about 3 times its value without nuisance factors."""


@dataclass(frozen=True)
class FactorValues:
    """The values of all factors for each of ``num_images`` images.

    Attributes:
        shift: Shift down and to the right, as a share of the side, ``(num_images, 2)``.
        turn: Rotation in radians, ``(num_images,)``.
        contrast: Factor by which pixels are multiplied, ``(num_images,)``.
        blur: Standard deviation of the blur as a share of the side, ``(num_images,)``.
        coarse: Weights of the background's coarse waves, ``(num_images, NUM_COARSE)``.
        fine: Weights of the background's fine waves, ``(num_images, NUM_FINE)``.
    """

    shift: Float64Array
    turn: Float64Array
    contrast: Float64Array
    blur: Float64Array
    coarse: Float64Array
    fine: Float64Array


def draw_factors(num_images: int, seed: int) -> FactorValues:
    """Draw the values of all factors for ``num_images`` images, even if few factors are applied."""
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


def vary(images: Uint8Array, num_factors: int, seed: int) -> Uint8Array:
    """Apply the first ``num_factors`` factors to images.

    Args:
        images: ``(num_images, side, side)`` in [0, 255].
        num_factors: Number of factors. For 0, the images are returned unchanged.
        seed: Seed of the values of the factors.

    Returns:
        The changed images, with the same shape.
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


def move(images: Float64Array, turn: Float64Array, shift: Float64Array) -> Float64Array:
    """Rotate images about their center, then shift them, by linear interpolation.

    Pixels from outside an image are 0.

    Args:
        images: ``(num_images, side, side)``.
        turn: Rotation in radians, ``(num_images,)``.
        shift: Shift down and to the right, as a share of the side, ``(num_images, 2)``.
    """
    side = images.shape[1]
    center = (side - 1) / 2
    row, column = np.mgrid[:side, :side] - center
    down = row - side * shift[:, 0, None, None]
    right = column - side * shift[:, 1, None, None]
    cosine = np.cos(turn)[:, None, None]
    sine = np.sin(turn)[:, None, None]
    # The images get a border of one pixel, so that all four neighbors of a position exist.
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
    interpolated: Float64Array = (1 - down_share) * above + down_share * below
    return interpolated


def blur(images: Float64Array, widths: Float64Array) -> Float64Array:
    """Blur each image with a Gaussian. The weights sum to 1, also at the border.

    Args:
        images: ``(num_images, side, side)``.
        widths: Standard deviation as a share of the side, ``(num_images,)``.
    """
    side = images.shape[1]
    position = np.arange(side)
    squared_distance = (position[:, None] - position) ** 2
    # The lower limit avoids a division by 0. A Gaussian of this width does not change the
    # image.
    variance = np.maximum(side * widths, 1e-3)[:, None, None] ** 2
    weights = np.exp(-squared_distance / (2 * variance))
    weights /= weights.sum(axis=2, keepdims=True)
    blurred: Float64Array = weights @ images @ weights.transpose(0, 2, 1)
    return blurred


def add_background(
    images: Float64Array, coarse: Float64Array, fine: Float64Array | None = None
) -> Float64Array:
    """Add a smooth background to images.

    A pixel of brightness a on a background of brightness b gets ``1 - (1 - a)(1 - b)``. This
    formula clips no values. A change of any weight therefore changes the image.

    Args:
        images: ``(num_images, side, side)`` in [0, 255].
        coarse: Weights of the coarse waves, ``(num_images, NUM_COARSE)``.
        fine: Weights of the fine waves, ``(num_images, NUM_FINE)``; None for no fine waves.
    """
    side = images.shape[1]
    # A small image has fewer waves than there are weights.
    num_waves = min(FIRST_FINE + NUM_FINE, side * side - 1)
    waves = side * low_frequency_patterns(num_waves, side)
    height = np.tensordot(coarse, waves[:NUM_COARSE], axes=1)
    if fine is not None:
        fine_waves = waves[FIRST_FINE:]
        height += np.tensordot(fine[:, : len(fine_waves)], fine_waves, axes=1)
    light = BACKGROUND_LIGHT * (1 + np.tanh(height)) / 2
    lit: Float64Array = 255 - (255 - images) * (1 - light)
    return lit
