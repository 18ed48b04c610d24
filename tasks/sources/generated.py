"""Generated images of two classes, whose intrinsic dimension and distances are known.

There are two sources, ``manifold`` and ``generated``. Both make each image from a point. The
coordinates of the point decide the image and the label. Coordinate j has two patterns, ``A_j``
and ``B_j``: orthonormal cosine patterns of low frequency, ``(side, side)``. If the coordinate
changes, the image moves along a circle in the plane of these two patterns.

**Source manifold** makes the datasets ``manifold_d4`` and ``manifold_d12``. The number in the
name is the intrinsic dimension d. A point ``z`` is drawn uniformly from the d-dimensional unit
cube. With angles ``t_j = pi * z_j``, its image is::

    127.5 + amplitude * sum over j of (cos(t_j) * A_j + sin(t_j) * B_j)
    amplitude = MAX_DEVIATION * side / (2 * sqrt(2) * d)

The label is the sign of ``f(z) = sum_j cos(2 pi z_j) / sqrt(d)``. Points with ``|f| < MARGIN``
are not drawn. The label sharpness is therefore at most ``1 / (MARGIN * amplitude)``:

1. Two points with different labels differ by at least ``2 * MARGIN`` in f.
2. The slope of f is at most ``2 pi``. The two points therefore differ by at least
   ``MARGIN / pi`` in z.
3. The distance between two images along the manifold is the distance between their points times
   ``pi * amplitude``. For points with different labels, the distance between the images is
   therefore at least ``MARGIN * amplitude``.

The L2 distance between two images is the chord of an arc along the manifold. For distances of
this size, the chord is shorter than the arc by less than 0.05 %.

**Source generated** makes base datasets of experiments. Its parameters set the intrinsic
dimension, the labels, the distance between classes and the number of images. A point has
``dimension`` plus ``nuisance`` coordinates ``x_j``. Without gaps, each coordinate lies in an
interval of length :data:`LENGTH`. With angles
``a_j = x_j / RADIUS``, its image is::

    127.5 + RADIUS * side / REFERENCE_SIDE * sum over j of (sin(a_j) * A_j + (cos(a_j) - 1) *
    B_j)

If a coordinate changes by x, an image of 16 x 16 pixels moves along an arc of length x. The
length of the arc does not depend on the number of coordinates. If a coordinate decides the
label, its interval is divided into bands with gaps between them. The interval looks like this
for ``bands`` = 2::

    [ half 0 ] fine_gap [ half 1 ]   gap * contrast   [ half 2 ] fine_gap [ half 3 ]
    `--------- band 0 ----------'                     `--------- band 1 ----------'

- The first ``bits`` coordinates decide the label, and ``bits`` is at most ``dimension``. The other
  coordinates, and all ``nuisance`` coordinates, have no influence on the label.
- ``bands`` is the number of bands of a coordinate. Each band consists of two halves.
- ``gap`` times ``contrast`` is the distance between bands. ``fine_gap`` is the distance between
  the halves of a band. No image lies in a gap.
- ``frequency`` 1: the label is 0 if the sum of the point's band numbers is even, else 1. The sum
  runs over the coordinates that decide the label. ``frequency`` 2: the sum contains the
  numbers of the halves instead. The images are the same for both values.
- ``num_images`` is the number of images. ``draw`` is the seed of the points.

Other sources of images in memory also use the functions at the end of this module.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from search_spaces.errors import ConfigError
from search_spaces.fingerprint import derive_seed
from search_spaces.interventions import PARAMETERS
from tasks.array_types import AnyArray, Float32Array, Float64Array, Int64Array, IntArray
from tasks.sources.base import Item, Listing, RawRequest, Reader, Sample, Source
from tasks.sources.pictures import scale_by_image_maximum

Images = AnyArray
Points = Float64Array
"""Coordinates of points, ``(num_images, num_coordinates)``."""
Labels = Int64Array
"""Class indices, ``(num_images,)``."""
ITEMS_PER_BLOCK = 8_000
"""Number of items that one task reads. The number is large, because every worker process loads
the whole array. A large dataset such as MNIST still has several blocks for several workers."""
DIMENSIONS = {"manifold_d4": 4, "manifold_d12": 12}
"""Name of a manifold dataset -> its intrinsic dimension."""
NUM_IMAGES = 3000
"""Number of images of a manifold dataset."""
MARGIN = 0.1
"""Smallest ``|f|`` of a point of a manifold dataset. The docstring of this module defines
f."""
MAX_DEVIATION = 100.0
"""Largest difference from gray in an image of a manifold dataset, in pixel values."""
LENGTH = 240.0
"""Length of a coordinate's interval in ``generated``, without gaps. The unit is the L2
distance between images of 16 x 16 pixels in [0, 255]."""
RADIUS = LENGTH
"""Radius of the circle on which a coordinate of ``generated`` moves an image, in the unit of
:data:`LENGTH`. With this radius, an interval without gaps is an angle of one radian."""
REFERENCE_SIDE = 16
"""Side in pixels of the images for which :data:`LENGTH` is an L2 distance."""
GRAY = 127.5
"""Gray value of an image before patterns are added."""
INTENSITY = "generated in [0, 255], not rounded"


def list_manifold(request: RawRequest) -> Listing:
    """List the images of a manifold dataset, one item per point."""
    _, labels = _points_of_manifold(request)
    return list_rows(labels, request, dtype="float32", intensity=INTENSITY)


def read_manifold(request: RawRequest) -> Reader:
    """Return a reader of a manifold's images.

    The images are made at the prepared size, because a resize would change distances.
    """
    points, _ = _points_of_manifold(request)
    return row_reader(manifold_images(points, request.spec.image_size))


def _points_of_manifold(request: RawRequest) -> tuple[Points, Labels]:
    """Return the points and labels of a manifold dataset."""
    return manifold_points(DIMENSIONS[request.dataset.name], NUM_IMAGES)


@lru_cache(maxsize=4)
def manifold_points(dimension: int, num_images: int) -> tuple[Points, Labels]:
    """Draw the points of a manifold dataset, and return the points and their labels.

    All points have ``|f| >= MARGIN``.

    Args:
        dimension: Number of coordinates.
        num_images: Number of points.
    """
    rng = np.random.default_rng(derive_seed("manifold", dimension))
    batches: list[Points] = []
    while sum(map(len, batches)) < num_images:
        points = rng.random((num_images, dimension))
        is_far = np.abs(_label_function(points)) >= MARGIN
        batches.append(points[is_far])
    points = np.concatenate(batches)[:num_images]
    labels = _label_function(points) > 0
    return points, labels.astype(np.int64)


def _label_function(points: Points) -> Float64Array:
    """Return the value of f for each point, ``(num_images,)``. The sign of f is the label."""
    dimension = points.shape[1]
    values: Float64Array = np.cos(2 * np.pi * points).sum(1) / np.sqrt(dimension)
    return values


def manifold_images(points: Points, side: int) -> Float32Array:
    """Return the images of points of ``manifold``.

    Args:
        points: The points, from :func:`manifold_points`.
        side: Side of the images in pixels.

    Returns:
        ``(num_images, side, side)`` in [0, 255].
    """
    angles = np.pi * points
    # An entry of a pattern is at most 2 / side, and |cos| + |sin| is at most sqrt(2). With
    # this amplitude, all coordinates together change a pixel by at most MAX_DEVIATION.
    amplitude = MAX_DEVIATION * side / (2 * np.sqrt(2) * points.shape[1])
    images = _add_patterns(np.cos(angles), np.sin(angles), amplitude, side)
    return images.astype(np.float32)


def _add_patterns(
    weights_a: Float64Array, weights_b: Float64Array, amplitude: float, side: int
) -> Float64Array:
    """Add weighted patterns to gray images.

    Args:
        weights_a: Weights of the patterns ``A_j``, ``(num_images, num_coordinates)``.
        weights_b: Weights of the patterns ``B_j``, ``(num_images, num_coordinates)``.
        amplitude: Factor by which all weights are multiplied.
        side: Side of the images in pixels.

    Returns:
        ``(num_images, side, side)``.
    """
    weights = np.stack([weights_a, weights_b], axis=2).reshape(len(weights_a), -1)
    patterns = low_frequency_patterns(weights.shape[1], side)
    images: Float64Array = GRAY + amplitude * np.tensordot(weights, patterns, axes=1)
    return images


def low_frequency_patterns(count: int, side: int) -> Float64Array:
    """Return the orthonormal cosine patterns of lowest frequency, without the constant pattern.

    Args:
        count: Number of patterns.
        side: Side of the patterns in pixels.

    Returns:
        ``(count, side, side)``.

    Raises:
        ConfigError: Images with this side have fewer such patterns.
    """
    if count >= side * side:
        raise ConfigError(
            f"image_size is {side}, which gives {side * side} pixels, but the dataset needs "
            f"images of more than {count} pixels",
            hint="Choose a larger image_size, or data with a smaller dimension",
        )
    frequencies = np.arange(side)
    centers = (np.arange(side) + 0.5) / side
    waves = np.cos(np.pi * np.outer(frequencies, centers)) * np.sqrt(2 / side)
    orders = sorted(np.ndindex(side, side), key=lambda order: (sum(order), order))
    pairs = orders[1 : count + 1]  # without the first pair, which is the constant pattern
    patterns = np.stack([np.outer(waves[row], waves[column]) for row, column in pairs])
    norms = np.linalg.norm(patterns, axis=(1, 2), keepdims=True)
    normed: Float64Array = patterns / norms
    return normed


class Geometry(NamedTuple):
    """The parameters of the source ``generated`` that decide the points and labels.

    The docstring of this module and :data:`search_spaces.interventions.PARAMETERS` explain the
    parameters.
    """

    dimension: int
    nuisance: int
    bits: int
    bands: int
    gap: float
    fine_gap: float
    contrast: float
    frequency: int
    num_images: int
    draw: int


def list_generated(request: RawRequest) -> Listing:
    """List the images of a ``generated`` dataset, one item per image."""
    _, labels = generated_points(_geometry(request))
    return list_rows(flip_labels(labels, request), request, dtype="float32", intensity=INTENSITY)


def read_generated(request: RawRequest) -> Reader:
    """Return a reader that generates the images at the prepared size."""
    points, _ = generated_points(_geometry(request))
    images = generated_images(points, request.spec.image_size)
    return row_reader(scale_pixels(images, request))


def _geometry(request: RawRequest) -> Geometry:
    """Return the values of the parameters for the request's dataset."""
    values: dict[str, Any] = {}
    for name, description in PARAMETERS["generated"].items():
        if name in Geometry._fields:
            value = parameter_value(request, name)
            values[name] = int(value) if description.is_integer else value
    return Geometry(**values)


@lru_cache(maxsize=4)
def generated_points(geometry: Geometry) -> tuple[Points, Labels]:
    """Draw the points of ``generated``, and return the points and their labels.

    The interval of each coordinate is centered on 0.
    """
    num_images = geometry.num_images
    # Nuisance coordinates have their own random generator. So their number does not change the
    # other coordinates.
    rng = np.random.default_rng(derive_seed("generated", geometry.draw))
    nuisance_rng = np.random.default_rng(derive_seed("generated nuisance", geometry.draw))
    unit_coordinates = rng.random((num_images, geometry.dimension))
    nuisance = nuisance_rng.random((num_images, geometry.nuisance))
    points = (np.concatenate([unit_coordinates, nuisance], axis=1) - 0.5) * LENGTH
    num_halves = 2 * geometry.bands
    # The array ``gaps`` contains the gaps before the halves 1, 2, 3, and so on. The gap before
    # a half with an odd number is inside a band.
    is_inside_band = np.arange(1, num_halves) % 2 == 1
    gaps = np.where(is_inside_band, geometry.fine_gap, geometry.gap * geometry.contrast)
    gaps_before = np.concatenate([[0.0], np.cumsum(gaps)])
    offsets = gaps_before - gaps.sum() / 2
    number_sum: Labels = np.zeros(num_images, dtype=np.int64)
    for coordinate in range(geometry.bits):
        # A unit coordinate is below 1, so the number of a half is below num_halves.
        halves = (unit_coordinates[:, coordinate] * num_halves).astype(np.int64)
        points[:, coordinate] += offsets[halves]
        bands = halves // 2
        number_sum += halves if geometry.frequency == 2 else bands
    return points, number_sum % 2


def generated_images(points: Points, side: int) -> Float32Array:
    """Return the images of points of ``generated``.

    Args:
        points: The points, from :func:`generated_points`.
        side: Side of the images in pixels.

    Returns:
        ``(num_images, side, side)`` in [0, 255].

    Raises:
        ConfigError: Pixels would be outside this range.
    """
    angles = points / RADIUS
    amplitude = RADIUS * side / REFERENCE_SIDE
    images = _add_patterns(np.sin(angles), np.cos(angles) - 1, amplitude, side)
    if images.min() < 0 or images.max() > 255:
        raise ConfigError(
            "With these parameters, the generated images have pixel values from "
            f"{images.min():.0f} to {images.max():.0f}, but pixel values must be between 0 "
            "and 255",
            hint="Use fewer coordinates or bands, or smaller gaps",
        )
    return images.astype(np.float32)


def parameter_value(request: RawRequest, name: str) -> float:
    """Return the value of a parameter of the request's dataset."""
    default = PARAMETERS[request.dataset.source][name].default
    return dict(request.dataset.dials).get(name, default)


def flip_labels(labels: Labels, request: RawRequest) -> Labels:
    """Flip some labels: change 0 to 1, and 1 to 0.

    The parameters of the dataset set the number of flipped labels: the share ``flip_share`` of
    all labels, plus the number ``flipped``. The function flips the first labels in a random
    order. The order depends only on the number of labels. A larger share therefore flips all
    labels that a smaller share flips.
    """
    num_flipped = round(parameter_value(request, "flip_share") * len(labels))
    num_flipped += int(parameter_value(request, "flipped"))
    rng = np.random.default_rng(derive_seed("flipped labels", len(labels)))
    rows = rng.permutation(len(labels))[:num_flipped]
    result = labels.copy()
    result[rows] = 1 - result[rows]
    return result


def scale_pixels(images: Images, request: RawRequest) -> Images:
    """Multiply pixels by the parameter ``pixel_scale``.

    If ``pixel_scale`` is not 1, the result has the type float32.
    """
    factor = parameter_value(request, "pixel_scale")
    if factor == 1:
        return images
    return images.astype(np.float32) * np.float32(factor)


def list_rows(
    labels: IntArray,
    request: RawRequest,
    groups: Sequence[str] | None = None,
    **fields: Any,
) -> Listing:
    """List the rows of an array, one item per row, in stored order.

    Args:
        labels: ``(num_images,)`` class indices.
        request: The request. The listing gets the class names of its dataset.
        groups: Group of each row; None if each row is a separate group.
        fields: Values of further fields of :class:`Listing`.
    """
    items = []
    for row, label in enumerate(labels.tolist()):
        group = groups[row] if groups else ""
        items.append(Item(str(row), label, group))
    return Listing(items, request.dataset.label_names, block_size=ITEMS_PER_BLOCK, **fields)


def row_reader(images: Images, *, by_image_maximum: bool = False) -> Reader:
    """Return a reader of the rows of an array.

    Args:
        images: ``(num_images, height, width[, 3])`` in [0, 255].
        by_image_maximum: True to scale each image by its own maximum, as in the study for
            MNIST, CIFAR-10 and SVHN.
    """

    def read(item: Item) -> tuple[Sample]:
        pixels = np.asarray(images[int(item.locator)])
        if not by_image_maximum:
            return (Sample(pixels),)
        scaled, conversions = scale_by_image_maximum(pixels)
        return (Sample(scaled, conversions=conversions),)

    return read


# The table of sources refers to these two sources by their names.
manifold = Source(list_manifold, read_manifold)
generated = Source(list_generated, read_generated)
