"""Generated images of two classes, whose dimension and lengths are known.

There are two sources, ``manifold`` and ``generated``. In both, an image is made from a point: the
point's coordinates decide image and label. Each coordinate has two patterns of its own, ``A_j`` and
``B_j``: orthonormal cosine patterns of low frequency, ``(side, side)``. A coordinate moves the
image along a circle in the plane of its two patterns.

**Source manifold** makes the datasets ``manifold_d4`` and ``manifold_d12``; the number is the
intrinsic dimension d. A point ``z`` is uniform in the d-dimensional unit cube. With angles
``t_j = pi * z_j`` its image is::

    127.5 + amplitude * sum over j of (cos(t_j) * A_j + sin(t_j) * B_j)
    amplitude = MAX_DEVIATION * side / (2 * sqrt(2) * d)

So a distance along the manifold is the distance of the points times ``pi * amplitude``. The label
is the sign of ``f(z) = sum_j cos(2 pi z_j) / sqrt(d)``. Points with ``|f| < MARGIN`` are not drawn.
Two points with different labels differ by at least ``2 * MARGIN`` in f. The slope of f is at most
``2 pi``, so they differ by at least ``2 * MARGIN / (2 pi)`` in z, and their images by that times
``pi * amplitude``. So ``label_sharpness <= 2 pi / (2 * MARGIN * pi * amplitude)``. (Images are as
far apart as the chord of an arc. At this distance the chord is shorter by less than 0.05 %.)

**Source generated** makes base datasets of experiments. Its parameters change the label, the
distance between classes and the number of images one by one. A point has ``dimension`` and
``nuisance`` coordinates ``x_j``, each on an interval of :data:`LENGTH`. With angles
``a_j = x_j / RADIUS`` its image is::

    127.5 + RADIUS * side / REFERENCE_SIDE * sum over j of (sin(a_j) * A_j + (cos(a_j) - 1) * B_j)

So a length along a coordinate is a distance between images, however many coordinates there are.
The interval of a label-deciding coordinate is cut into bands with gaps between them. With
``bands`` = 2::

    [ half 0 ] fine_gap [ half 1 ]   gap * contrast   [ half 2 ] fine_gap [ half 3 ]
    `--------- band 0 ----------'                     `--------- band 1 ----------'

- The first ``bits`` <= ``dimension`` coordinates decide the label. The other coordinates, and all
  ``nuisance`` coordinates, never do.
- ``bands`` is the number of bands. Each consists of two halves.
- ``gap`` times ``contrast`` is the distance between bands, ``fine_gap`` that between halves. No
  image lies in a gap.
- ``frequency`` 1: the label is 1 if the point's band numbers, added over the label-deciding
  coordinates, are odd. ``frequency`` 2: the same with the numbers of the halves. The images stay.
- ``num_images`` and ``draw`` are the number of images and the seed of the points.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import ConfigError
from search_spaces.fingerprint import derive_seed
from search_spaces.interventions import PARAMETERS
from tasks.sources.base import Item, Listing, RawRequest, Reader, Sample, Source
from tasks.sources.pictures import by_own_maximum

Floats = NDArray[np.float64]
Images = NDArray[np.generic]
Points = NDArray[np.float64]
"""Coordinates of points on a manifold, ``(num_images, num_coordinates)``."""
Labels = NDArray[np.int64]
"""Class indices, ``(num_images,)``."""
ITEMS_PER_BLOCK = 8_000
"""Items of a block. A block is what one task reads. Blocks are large because every worker process
loads the whole array. A dataset still has several blocks, so that several workers can read it."""
NUM_IMAGES = 3000
"""Images of a manifold dataset."""
MARGIN = 0.1
"""Smallest ``|f|`` of an image of a manifold dataset."""
MAX_DEVIATION = 100.0
"""Largest difference from gray in an image of a manifold dataset, in pixel values."""
LENGTH = 240.0
"""Length of a coordinate of ``generated`` without its gaps: an L2 distance of images with pixels in
[0, 255], of 16 x 16 pixels."""
RADIUS = LENGTH
"""Radius of the circle on which a coordinate of ``generated`` moves an image, in the same unit. A
coordinate without gaps then turns by one radian."""
REFERENCE_SIDE = 16
"""Side of an image, in pixels, for which lengths are stated."""
GRAY = 127.5
"""Gray value around which patterns are added."""
INTENSITY = "generated in [0, 255], not rounded"


def parameter(request: RawRequest, name: str) -> float:
    """Return the value of a parameter of the request's dataset."""
    default = PARAMETERS[request.dataset.source][name].default
    return dict(request.dataset.dials).get(name, default)


def flip_labels(labels: Labels, request: RawRequest) -> Labels:
    """Exchange 0 and 1 in some labels: ``flip_share`` of them, and ``flipped`` more.

    The choice is seeded. The order in which labels are flipped depends on ``len(labels)`` only, so
    larger shares contain smaller ones.
    """
    num_flipped = round(parameter(request, "flip_share") * len(labels))
    num_flipped += int(parameter(request, "flipped"))
    rng = np.random.default_rng(derive_seed("flipped labels", len(labels)))
    rows = rng.permutation(len(labels))[:num_flipped]
    result = labels.copy()
    result[rows] = 1 - result[rows]
    return result


def scale_pixels(images: Images, request: RawRequest) -> Images:
    """Multiply pixels by the parameter ``pixel_scale``; the result is float32 if that is not 1."""
    factor = parameter(request, "pixel_scale")
    if factor == 1:
        return images
    return images.astype(np.float32) * np.float32(factor)


def list_rows(
    labels: NDArray[np.integer],
    request: RawRequest,
    groups: Sequence[str] | None = None,
    **fields: Any,
) -> Listing:
    """Return one item per row of an array, in stored order.

    Args:
        labels: ``(num_images,)`` class indices.
        request: The dataset and its preparation.
        groups: Group of each row; None if each row is a group of its own.
        fields: Further fields of the listing.
    """
    items = []
    for row, label in enumerate(labels.tolist()):
        group = groups[row] if groups else ""
        items.append(Item(str(row), label, group))
    return Listing(items, request.dataset.label_names, block_size=ITEMS_PER_BLOCK, **fields)


def row_reader(images: Images, *, own_maximum: bool = False) -> Reader:
    """Return a reader of the rows of an array.

    Args:
        images: ``(num_images, height, width[, 3])`` in [0, 255].
        own_maximum: Scale each image by its own maximum, as the study does for MNIST, CIFAR-10 and
            SVHN.
    """

    def read(item: Item) -> tuple[Sample]:
        pixels = np.asarray(images[int(item.locator)])
        if not own_maximum:
            return (Sample(pixels),)
        stretched, scaling = by_own_maximum(pixels)
        return (Sample(stretched, conversions=scaling),)

    return read


def list_manifold(request: RawRequest) -> Listing:
    """Return one item per point of a manifold."""
    _, labels = _points_of_manifold(request)
    return list_rows(labels, request, dtype="float32", intensity=INTENSITY)


def read_manifold(request: RawRequest) -> Reader:
    """Return a reader of a manifold's images.

    They are made at the prepared size: a resize would change distances.
    """
    points, _ = _points_of_manifold(request)
    return row_reader(manifold_images(points, request.spec.image_size))


manifold = Source(list_manifold, read_manifold)


def _points_of_manifold(request: RawRequest) -> tuple[Points, Labels]:
    """Return the points and labels of a manifold dataset, whose name ends with the dimension."""
    _, _, dimension = request.dataset.name.rpartition("_d")
    return manifold_points(int(dimension), NUM_IMAGES)


@lru_cache(maxsize=4)
def manifold_points(dimension: int, num_images: int) -> tuple[Points, Labels]:
    """Draw points of a manifold dataset, all with ``|f| >= MARGIN``, and their labels.

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


def _label_function(points: Points) -> Floats:
    """Return f of each point, ``(num_images,)``. Its sign is the label."""
    dimension = points.shape[1]
    values: Floats = np.cos(2 * np.pi * points).sum(1) / np.sqrt(dimension)
    return values


def manifold_images(points: Points, side: int) -> NDArray[np.float32]:
    """Return the images of points of ``manifold``, ``(num_images, side, side)`` in [0, 255]."""
    angles = np.pi * points
    # An entry of a pattern is at most 2 / side, and |cos| + |sin| at most sqrt(2). So the d
    # coordinates change a pixel by at most MAX_DEVIATION.
    amplitude = MAX_DEVIATION * side / (2 * np.sqrt(2) * points.shape[1])
    images = _add_patterns(np.cos(angles), np.sin(angles), amplitude, side)
    return images.astype(np.float32)


def _add_patterns(weights_a: Floats, weights_b: Floats, amplitude: float, side: int) -> Floats:
    """Return gray images with weighted patterns added, ``(num_images, side, side)``.

    Args:
        weights_a: ``(num_images, num_coordinates)`` weights of the patterns ``A_j``.
        weights_b: ``(num_images, num_coordinates)`` weights of the patterns ``B_j``.
        amplitude: Factor on all weights.
        side: Side of the images in pixels.
    """
    weights = np.stack([weights_a, weights_b], axis=2).reshape(len(weights_a), -1)
    patterns = low_frequency_patterns(weights.shape[1], side)
    images: Floats = GRAY + amplitude * np.tensordot(weights, patterns, axes=1)
    return images


def low_frequency_patterns(count: int, side: int) -> Floats:
    """Return the orthonormal cosine patterns of lowest frequency, without the constant one.

    Args:
        count: Number of patterns.
        side: Their side in pixels.

    Returns:
        ``(count, side, side)``.

    Raises:
        ConfigError: An image of this side has fewer such patterns.
    """
    if count >= side * side:
        raise ConfigError(
            f"{count} patterns need more than {count} pixels, but images have {side}x{side}",
            hint="Raise image_size",
        )
    frequencies = np.arange(side)
    centers = (np.arange(side) + 0.5) / side
    waves = np.cos(np.pi * np.outer(frequencies, centers)) * np.sqrt(2 / side)
    orders = sorted(np.ndindex(side, side), key=lambda order: (sum(order), order))
    pairs = orders[1 : count + 1]  # the first is the constant
    patterns = np.stack([np.outer(waves[row], waves[column]) for row, column in pairs])
    norms = np.linalg.norm(patterns, axis=(1, 2), keepdims=True)
    normed: Floats = patterns / norms
    return normed


class Geometry(NamedTuple):
    """The parameters of the source ``generated`` that decide points and labels.

    The module's docstring and :data:`search_spaces.interventions.PARAMETERS` explain them.
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
    """Return one item per generated image."""
    _, labels = generated_points(_geometry(request))
    return list_rows(flip_labels(labels, request), request, dtype="float32", intensity=INTENSITY)


def read_generated(request: RawRequest) -> Reader:
    """Return a reader of the generated images, which are made at the prepared size."""
    points, _ = generated_points(_geometry(request))
    images = generated_images(points, request.spec.image_size)
    return row_reader(scale_pixels(images, request))


generated = Source(list_generated, read_generated)


def _geometry(request: RawRequest) -> Geometry:
    """Return the geometry that the parameters of the request's dataset describe."""
    values: dict[str, Any] = {}
    for name, description in PARAMETERS["generated"].items():
        if name in Geometry._fields:
            value = parameter(request, name)
            values[name] = int(value) if description.is_integer else value
    return Geometry(**values)


@lru_cache(maxsize=4)
def generated_points(geometry: Geometry) -> tuple[Points, Labels]:
    """Draw the points of ``generated``, with coordinates centered on 0, and their labels."""
    num_images = geometry.num_images
    # A random stream of its own: the number of nuisance coordinates must not change the others.
    rng = np.random.default_rng(derive_seed("generated", geometry.draw))
    nuisance_rng = np.random.default_rng(derive_seed("generated nuisance", geometry.draw))
    units = rng.random((num_images, geometry.dimension))
    nuisance = nuisance_rng.random((num_images, geometry.nuisance))
    coordinates = np.concatenate([units, nuisance], axis=1)
    points = (coordinates - 0.5) * LENGTH
    num_halves = 2 * geometry.bands
    # Gaps before halves 1, 2, 3, ...: the gap before an odd one is inside a band.
    is_inside_band = np.arange(1, num_halves) % 2 == 1
    gaps = np.where(is_inside_band, geometry.fine_gap, geometry.gap * geometry.contrast)
    gaps_before = np.concatenate([[0.0], np.cumsum(gaps)])
    offsets = gaps_before - gaps.sum() / 2
    index_sum: Labels = np.zeros(num_images, dtype=np.int64)
    for bit in range(geometry.bits):
        # A unit is below 1, and its product rounds to less than num_halves.
        half = (units[:, bit] * num_halves).astype(np.int64)
        points[:, bit] += offsets[half]
        index_sum += half if geometry.frequency == 2 else half // 2
    return points, index_sum % 2


def generated_images(points: Points, side: int) -> NDArray[np.float32]:
    """Return the images of points of ``generated``, ``(num_images, side, side)`` in [0, 255].

    Raises:
        ConfigError: Pixels would be outside that range.
    """
    angles = points / RADIUS
    amplitude = RADIUS * side / REFERENCE_SIDE
    images = _add_patterns(np.sin(angles), np.cos(angles) - 1, amplitude, side)
    if images.min() < 0 or images.max() > 255:
        raise ConfigError(
            f"The parameters of the generated dataset give pixels from {images.min():.0f} to "
            f"{images.max():.0f}, not within 0 to 255",
            hint="Use fewer coordinates or bands, or smaller gaps",
        )
    return images.astype(np.float32)
