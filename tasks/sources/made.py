"""Generated images: two classes on a manifold of known dimension, where every length is known.

An image is a point on the manifold. Each of the point's coordinates has two patterns of its own,
``A_j`` and ``B_j``: orthonormal cosine patterns of low frequency, ``(side, side)``. A coordinate
moves the image along a circle in the plane of its two patterns.

**Source manifold**: the datasets ``manifold_d4`` and ``manifold_d12``; the number is the intrinsic
dimension d. A point ``z`` is uniform in the d-dimensional unit cube. With angles ``t_j = pi * z_j``
its image is::

    127.5 + amplitude * sum over j of (cos(t_j) * A_j + sin(t_j) * B_j)
    amplitude = CONTRAST * side / (2 * sqrt(2) * d)

So a distance along the manifold is the distance of the points times ``pi * amplitude``. The label
is the sign of ``f(z) = sum_j cos(2 pi z_j) / sqrt(d)``. Points with ``|f| < MARGIN`` are not drawn.
Two points with different labels differ by at least ``2 * MARGIN`` in f. The slope of f is at most
``2 pi``, so they differ by at least ``2 * MARGIN / (2 pi)`` in z, and their images by that times
``pi * amplitude``. So ``label_sharpness <= 2 pi / (2 * MARGIN * pi * amplitude)``. (Images are as
far apart as the chord of an arc. At this distance the chord is shorter by less than 0.05 %.)

**Source generated**: its parameters change the label, the gap between classes and the number of
images one by one. A point has ``dimension`` and ``nuisance`` coordinates ``x_j``, each on an
interval of :data:`LENGTH`. With angles ``a_j = x_j / RADIUS`` its image is::

    127.5 + RADIUS * side / REFERENCE_SIDE * sum over j of (sin(a_j) * A_j + (cos(a_j) - 1) * B_j)

So a length along a coordinate is a distance between images, however many coordinates there are.
The interval of a label-deciding coordinate is cut into bands with gaps between them. With
``bands`` = 2::

    [ half 0 ] fine_gap [ half 1 ]   gap * contrast   [ half 2 ] fine_gap [ half 3 ]
    `--------- band 0 ----------'                     `--------- band 1 ----------'

- The first ``bits`` <= ``dimension`` coordinates decide the label. The other coordinates, and all
  ``nuisance`` coordinates, never do.
- ``bands`` is the number of bands. Each consists of two halves.
- ``gap`` and ``contrast`` set the distance between bands, ``fine_gap`` that between halves. No
  image lies in a gap.
- ``frequency`` 1: the label is the parity of the point's band numbers, added over the coordinates.
  ``frequency`` 2: it is the parity of the numbers of the halves. The images are the same.
- ``num_images`` and ``draw`` are the number of images and the seed of the points.
"""

from __future__ import annotations

import re
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

Images = NDArray[np.generic]
Points = NDArray[np.float64]
"""Coordinates of points on a manifold, ``(num_images, num_coordinates)``."""
Labels = NDArray[np.int64]
"""Class indices, ``(num_images,)``."""
ITEMS_PER_BLOCK = 8_000
"""Items of a block. A block is what one task reads. Blocks are large because every worker process
loads the whole array. A dataset still has several blocks, so that several workers can read it."""
PARAMETERS_BY_SOURCE = {str(kind): parameters for kind, parameters in PARAMETERS.items()}
"""Name of a source -> its parameters."""
NUM_IMAGES = 3000
"""Images of a manifold dataset."""
MARGIN = 0.1
"""Smallest ``|f|`` of an image of a manifold dataset."""
CONTRAST = 100.0
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
    """Return a parameter of the request's dataset, or its default."""
    default = PARAMETERS_BY_SOURCE[request.dataset.source][name].default
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
        own_maximum: Scale each image by its own maximum, as the study does (MNIST, CIFAR-10,
            SVHN).
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
    _, labels = _manifold_points(request)
    return list_rows(labels, request, dtype="float32", intensity=INTENSITY)


def read_manifold(request: RawRequest) -> Reader:
    """Return a reader of a manifold's images, which are made at the prepared size: a resize would
    change distances.
    """
    points, _ = _manifold_points(request)
    return row_reader(embed(points, request.spec.image_size))


manifold = Source(list_manifold, read_manifold)


def _manifold_points(request: RawRequest) -> tuple[Points, Labels]:
    """Return the points and labels of a manifold dataset, whose name holds the dimension."""
    match = re.fullmatch(r"manifold_d(\d{1,2})", request.dataset.name)
    if match is None or int(match[1]) < 1:
        raise ConfigError(
            "A manifold dataset is named manifold_d<dimension>", repr(request.dataset.name)
        )
    return latent_points(int(match[1]), NUM_IMAGES)


@lru_cache(maxsize=4)
def latent_points(dimension: int, num_images: int) -> tuple[Points, Labels]:
    """Draw points of a manifold dataset, all with ``|f| >= MARGIN``.

    Args:
        dimension: Number of coordinates.
        num_images: Number of points.

    Returns:
        The points ``(num_images, dimension)`` and their labels.
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


def _label_function(points: Points) -> Points:
    """Return f of each point, ``(num_images,)``. Its sign is the label."""
    dimension = points.shape[1]
    decision: NDArray[np.float64] = np.cos(2 * np.pi * points).sum(1) / np.sqrt(dimension)
    return decision


def embed(latents: Points, side: int) -> NDArray[np.float32]:
    """Map latent points ``(num_images, d)`` to images ``(num_images, side, side)`` in [0, 255]."""
    dimension = latents.shape[1]
    angles = np.pi * latents
    curve = np.stack([np.cos(angles), np.sin(angles)], axis=2)
    curve = curve.reshape(len(latents), 2 * dimension)
    patterns = low_frequency_patterns(2 * dimension, side)
    # An entry of a pattern is at most 2 / side, and |cos| + |sin| at most sqrt(2). So the d
    # coordinates change a pixel by at most CONTRAST.
    amplitude = CONTRAST * side / (2 * np.sqrt(2) * dimension)
    images: Points = GRAY + amplitude * np.tensordot(curve, patterns, axes=1)
    return images.astype(np.float32)


def low_frequency_patterns(count: int, side: int) -> NDArray[np.float64]:
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
            f"{count} patterns need more than {count} pixels", f"{side}x{side}", "Raise image_size"
        )
    frequencies = np.arange(side)
    centers = (np.arange(side) + 0.5) / side
    waves = np.cos(np.pi * np.outer(frequencies, centers)) * np.sqrt(2 / side)
    orders = sorted(np.ndindex(side, side), key=lambda order: (sum(order), order))
    pairs = orders[1 : count + 1]  # the first is the constant
    patterns = np.stack([np.outer(waves[row], waves[column]) for row, column in pairs])
    norms = np.linalg.norm(patterns, axis=(1, 2), keepdims=True)
    normed: NDArray[np.float64] = patterns / norms
    return normed


class Geometry(NamedTuple):
    """The parameters of ``generated`` that decide the points and labels.

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
    _, labels = draw_points(_geometry(request))
    return list_rows(flip_labels(labels, request), request, dtype="float32", intensity=INTENSITY)


def read_generated(request: RawRequest) -> Reader:
    """Return a reader of the generated images, which are made at the prepared size."""
    points, _ = draw_points(_geometry(request))
    images = images_of(points, request.spec.image_size)
    return row_reader(scale_pixels(images, request))


generated = Source(list_generated, read_generated)


def _geometry(request: RawRequest) -> Geometry:
    """Return the geometry that the parameters of the request's dataset describe."""
    values: dict[str, Any] = {}
    for name, description in PARAMETERS_BY_SOURCE["generated"].items():
        if name in Geometry._fields:
            value = parameter(request, name)
            values[name] = int(value) if description.whole else value
    return Geometry(**values)


@lru_cache(maxsize=4)
def draw_points(geometry: Geometry) -> tuple[Points, Labels]:
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
    parity: Labels = np.zeros(num_images, dtype=np.int64)
    for bit in range(geometry.bits):
        # A unit is below 1, and its product rounds to less than num_halves.
        half = (units[:, bit] * num_halves).astype(np.int64)
        points[:, bit] += offsets[half]
        parity += half if geometry.frequency == 2 else half // 2
    return points, parity % 2


def images_of(points: Points, side: int) -> NDArray[np.float32]:
    """Return the images of points of ``generated``, ``(num_images, side, side)`` in [0, 255].

    Raises:
        ConfigError: Pixels would be outside that range.
    """
    angles = points / RADIUS
    curve = np.stack([np.sin(angles), np.cos(angles) - 1], axis=2)
    curve = curve.reshape(len(points), -1)
    patterns = low_frequency_patterns(curve.shape[1], side)
    amplitude = RADIUS * side / REFERENCE_SIDE
    images: Points = GRAY + amplitude * np.tensordot(curve, patterns, axes=1)
    if images.min() < 0 or images.max() > 255:
        raise ConfigError(
            "The parameters of a generated dataset must keep pixels within 0 and 255",
            f"{images.min():.0f} to {images.max():.0f}",
            "Fewer coordinates or bands, or smaller gaps",
        )
    return images.astype(np.float32)
