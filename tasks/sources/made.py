"""Generated images: two classes on a manifold of known dimension, where every length is known.

``manifold_d4``, ``manifold_d12``: the number is the intrinsic dimension d. A point ``z`` is uniform
in the d-dimensional unit cube, with angles ``t_j = pi * z_j``. Its image is

    127.5 + amplitude * sum_j (cos(t_j) * P_2j + sin(t_j) * P_2j+1)

with ``amplitude = CONTRAST * side / (2 * sqrt(2) * d)`` and P orthonormal low-frequency cosine
patterns, ``(side, side)``. So distances along the manifold are those of ``z`` times one constant,
``factor = pi * amplitude``. The label is the sign of ``f(z) = sum_j cos(2 pi z_j) / sqrt(d)``.
Points with ``|f| < MARGIN`` are never drawn. ``f`` has slope at most 2 pi, hence
``label_sharpness <= 2 pi / (2 * MARGIN * factor)``.

``generated`` changes label, gap and size one by one; its parameters are in
:data:`search_spaces.interventions.PARAMETERS`. An image is ``127.5 + sum_j r (sin(a_j), cos(a_j) -
1) . (P_2j, P_2j+1)`` with angle ``a_j = p_j / r`` for the place ``p_j`` along coordinate j. Lengths
along a coordinate are lengths in pixels, whatever the number of coordinates. Each of the first
``bits`` coordinates is cut into ``bands`` bands and each band into two halves. Halves of a band are
``fine_gap`` apart, bands ``gap * contrast``; no image lies between. The label is the parity of the
bands over these coordinates; at ``frequency`` 2 it is that of the halves, on the same images to the
last bit.
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
"""``(num_images, coordinates)``."""
Labels = NDArray[np.int64]
ROWS_PER_TASK = 8_000
"""Items of a reading task. Every task loads the whole array, once per worker process, so blocks are
large; there are several, so that workers share them.
"""
PARAMETERS_BY_SOURCE = {str(kind): parameters for kind, parameters in PARAMETERS.items()}
NUM_IMAGES = 3000
"""Images of a manifold dataset."""
MARGIN = 0.1
"""Least ``|f|`` of an image of a manifold dataset."""
CONTRAST = 100.0
LENGTH = 240.0
"""Length of a coordinate without its gaps, and radius of its arc, in L2 of pixels 0..255 at 16 x
16.
"""
REFERENCE_SIDE = 16
"""Side in pixels at which lengths are stated."""
GRAY = 127.5
"""Grey value around which patterns are added."""
INTENSITY = "generated in [0, 255], not rounded"


def parameter(request: RawRequest, name: str) -> float:
    """Return a parameter of the request's dataset, or its default."""
    default = PARAMETERS_BY_SOURCE[request.dataset.source][name].default
    return dict(request.dataset.dials).get(name, default)


def flipped(labels: Labels, request: RawRequest) -> Labels:
    """Return labels of which a seeded choice is flipped (0 and 1), as the parameters say.

    A larger share contains a smaller one.
    """
    num_flipped = round(parameter(request, "flip_share") * len(labels))
    num_flipped += int(parameter(request, "flipped"))
    rng = np.random.default_rng(derive_seed("flipped labels", len(labels)))
    rows = rng.permutation(len(labels))[:num_flipped]
    result = labels.copy()
    result[rows] = 1 - result[rows]
    return result


def scaled(images: Images, request: RawRequest) -> Images:
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
        request: What is being prepared.
        groups: Group of each row; None if each row is its own.
        fields: Further fields of the listing.
    """
    items = []
    for row, label in enumerate(labels.tolist()):
        group = groups[row] if groups else ""
        items.append(Item(str(row), label, group))
    return Listing(items, request.dataset.label_names, block_size=ROWS_PER_TASK, **fields)


def row_reader(images: Images, *, own_maximum: bool = False) -> Reader:
    """Return a reader of the rows of an array.

    Args:
        images: ``(num_images, height, width[, 3])`` in [0, 255].
        own_maximum: Scale each image by its own maximum, the study's rule for its datasets.
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
    """Return a reader of a manifold's images at the prepared side: no resize bends them."""
    points, _ = _manifold_points(request)
    return row_reader(embed(points, request.spec.image_size))


manifold = Source(list_manifold, read_manifold)


def _manifold_points(request: RawRequest) -> tuple[Points, Labels]:
    match = re.fullmatch(r"manifold_d(\d{1,2})", request.dataset.name)
    if match is None or int(match[1]) < 1:
        raise ConfigError(
            "A manifold dataset is named manifold_d<dimension>", repr(request.dataset.name)
        )
    return latent_points(int(match[1]), NUM_IMAGES)


@lru_cache(maxsize=4)
def latent_points(dimension: int, num_images: int) -> tuple[Points, Labels]:
    """Draw points of the unit cube with ``|f| >= MARGIN``.

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
        is_far = np.abs(_decision(points)) >= MARGIN
        batches.append(points[is_far])
    points = np.concatenate(batches)[:num_images]
    labels = _decision(points) > 0
    return points, labels.astype(np.int64)


def _decision(points: Points) -> Points:
    """Return f of each point, ``(num_images,)``."""
    dimension = points.shape[1]
    decision: Points = np.cos(2 * np.pi * points).sum(1) / np.sqrt(dimension)
    return decision


def embed(latents: Points, side: int) -> NDArray[np.float32]:
    """Map latent points ``(num_images, d)`` to images ``(num_images, side, side)`` in [0, 255]."""
    dimension = latents.shape[1]
    angles = np.pi * latents
    curve = np.stack([np.cos(angles), np.sin(angles)], axis=2)
    curve = curve.reshape(len(latents), 2 * dimension)
    patterns = low_frequency_patterns(2 * dimension, side)
    # A pattern's entries are at most 2/side, and a curve has d pairs of coordinates of length 1.
    amplitude = CONTRAST * side / (2 * np.sqrt(2) * dimension)
    images: Points = GRAY + amplitude * np.tensordot(curve, patterns, axes=1)
    return images.astype(np.float32)


def low_frequency_patterns(count: int, side: int) -> NDArray[np.float64]:
    """Return the lowest orthonormal cosine patterns except the constant one.

    Args:
        count: Number of patterns.
        side: Their side in pixels.

    Returns:
        ``(count, side, side)``.

    Raises:
        ConfigError: An image of that side does not have so many.
    """
    if count >= side * side:
        raise ConfigError(
            f"{count} patterns need more than {count} pixels", f"{side}x{side}", "raise image_size"
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
    """The parameters of ``generated`` that decide where its images lie.

    They are described in :data:`search_spaces.interventions.PARAMETERS`.
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
    _, labels = places(_geometry(request))
    return list_rows(flipped(labels, request), request, dtype="float32", intensity=INTENSITY)


def read_generated(request: RawRequest) -> Reader:
    """Return a reader of these images, generated at the prepared side."""
    points, _ = places(_geometry(request))
    images = images_at(points, request.spec.image_size)
    return row_reader(scaled(images, request))


generated = Source(list_generated, read_generated)


def _geometry(request: RawRequest) -> Geometry:
    values: dict[str, Any] = {}
    for name, description in PARAMETERS_BY_SOURCE["generated"].items():
        if name in Geometry._fields:
            value = parameter(request, name)
            values[name] = int(value) if description.whole else value
    return Geometry(**values)


@lru_cache(maxsize=4)
def places(geometry: Geometry) -> tuple[Points, Labels]:
    """Draw the images' places, centered on 0, and their labels."""
    num_images = geometry.num_images
    # Nuisance has a random stream of its own: its number does not change the other coordinates.
    rng = np.random.default_rng(derive_seed("generated", geometry.draw))
    nuisance_rng = np.random.default_rng(derive_seed("generated nuisance", geometry.draw))
    units = rng.random((num_images, geometry.dimension))
    nuisance = nuisance_rng.random((num_images, geometry.nuisance))
    coordinates = np.concatenate([units, nuisance], axis=1)
    points = (coordinates - 0.5) * LENGTH
    num_halves = 2 * geometry.bands
    # Gaps before half 1, 2, ...: odd halves end a band.
    is_inside_band = np.arange(1, num_halves) % 2 == 1
    gaps = np.where(is_inside_band, geometry.fine_gap, geometry.gap * geometry.contrast)
    starts = np.concatenate([[0.0], np.cumsum(gaps)])
    offsets = starts - gaps.sum() / 2
    parity: Labels = np.zeros(num_images, dtype=np.int64)
    for bit in range(geometry.bits):
        half = (units[:, bit] * num_halves).astype(np.int64)
        half = np.minimum(half, num_halves - 1)
        points[:, bit] += offsets[half]
        parity += half if geometry.frequency == 2 else half // 2
    return points, parity % 2


def images_at(points: Points, side: int) -> NDArray[np.float32]:
    """Map places to images ``(num_images, side, side)`` in [0, 255].

    Raises:
        ConfigError: A place is so far out that its image would leave that range.
    """
    angles = points / LENGTH
    curve = np.stack([np.sin(angles), np.cos(angles) - 1], axis=2)
    curve = curve.reshape(len(points), -1)
    patterns = low_frequency_patterns(curve.shape[1], side)
    amplitude = LENGTH * side / REFERENCE_SIDE
    images: Points = GRAY + amplitude * np.tensordot(curve, patterns, axes=1)
    if images.min() < 0 or images.max() > 255:
        raise ConfigError(
            "The parameters of a generated dataset must keep pixels within 0 and 255",
            f"{images.min():.0f} to {images.max():.0f}",
            "fewer coordinates or bands, or smaller gaps",
        )
    return images.astype(np.float32)
