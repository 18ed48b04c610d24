"""Images that are made: two classes on a manifold of known dimension, where every length is known.

``manifold_d4``, ``manifold_d12``: the number is the intrinsic dimension d. An image is ``127.5 +
CONTRAST * sum_j sqrt(side) * (cos t_j, sin t_j) . (P_2j, P_2j+1)`` for angles ``t_j = pi * z_j``,
``z`` uniform in the d-dimensional unit cube and P orthonormal low-frequency cosine patterns: an
isometry up to one factor. The label is the sign of ``f(z) = sum_j cos(2 pi z_j) / sqrt(d)``; points
with ``|f| < MARGIN`` are never drawn. ``f`` has slope at most 2 pi, hence ``label_sharpness <= 2 pi
/ (2 * MARGIN * factor)``.

``generated`` turns label, gap and size one by one; its dials are in
:data:`search_spaces.interventions.PARAMETERS`. An image is ``127.5 + sum_j r (sin(a_j), cos(a_j) -
1) . (P_2j, P_2j+1)`` with angle ``a_j = p_j / r`` for the place ``p_j`` along coordinate j: lengths
along a coordinate are lengths in pixels, whatever the number of coordinates. Each of the first
``bits`` coordinates is cut into ``bands`` bands and each band into two halves. Halves of a band lie
``fine_gap`` apart, bands ``gap * contrast``; no image lies between. The label is the parity of the
bands over these coordinates; at ``frequency`` 2 that of the halves, on the same images to the last
bit.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import ConfigError
from search_spaces.fingerprint import derive_seed
from search_spaces.interventions import PARAMETERS
from tasks.sources.base import Item, Listing, RawRequest, Reader, Sample, Source
from tasks.sources.pictures import by_own_maximum

ROWS_PER_TASK = 8_000
"""Every task loads the whole array, once per worker process, so blocks are large; several, so
workers share."""
NUM_IMAGES = 3000
MARGIN = 0.1
CONTRAST = 100.0
LENGTH = 240.0
"""Of a coordinate without its gaps, and radius of its arc, in L2 of pixels 0..255 at 16x16."""
REFERENCE_SIDE = 16
INTENSITY = "generated in [0, 255], not rounded"


def dial(request: RawRequest, name: str) -> float:
    """Return where a dial of the request's dataset stands."""
    known = {str(kind): dials for kind, dials in PARAMETERS.items()}
    return dict(request.dataset.dials).get(name, known[request.dataset.source][name].default)


def flipped(labels: NDArray[np.int64], request: RawRequest) -> NDArray[np.int64]:
    """Exchange the labels (0 and 1) of a seeded choice of images; a larger share contains a smaller
    one.
    """
    num = round(dial(request, "flip_share") * len(labels)) + int(dial(request, "flipped"))
    chosen = np.random.default_rng(derive_seed("flipped labels", len(labels))).permutation(
        len(labels)
    )[:num]
    result = labels.copy()
    result[chosen] = 1 - result[chosen]
    return result


def scaled(images: NDArray[np.generic], request: RawRequest) -> NDArray[np.generic]:
    """Multiply pixels by the dial ``pixel_scale``; float32 then, else as they are."""
    factor = dial(request, "pixel_scale")
    return images if factor == 1 else images.astype(np.float32) * np.float32(factor)


def list_rows(
    labels: NDArray[np.integer],
    request: RawRequest,
    groups: Sequence[str] | None = None,
    **known: Any,
) -> Listing:
    """Return one item per row of an array, in stored order; without ``groups`` every row is its
    own.
    """
    of_rows = groups or [""] * len(labels)
    items = [Item(str(row), int(labels[row]), group) for row, group in enumerate(of_rows)]
    return Listing(items, request.dataset.label_names, block_size=ROWS_PER_TASK, **known)


def row_reader(images: NDArray[np.generic], *, own_maximum: bool = False) -> Reader:
    """Return a reader of rows of ``images`` ``(num_images, height, width[, 3])``.

    ``own_maximum`` scales each image by its own maximum, the study's rule for the datasets it used.
    """

    def read(item: Item) -> tuple[Sample]:
        row = np.asarray(images[int(item.locator)])
        pixels, note = by_own_maximum(row) if own_maximum else (row, ())
        return (Sample(pixels, conversions=note),)

    return read


manifold = Source(
    lambda request: list_rows(_points(request)[1], request, dtype="float32", intensity=INTENSITY),
    lambda request: row_reader(embed(_points(request)[0], request.spec.image_size)),
)
"""Generated at the prepared side, so that no resize bends the manifold."""


def _points(request: RawRequest) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    match = re.fullmatch(r"manifold_d(\d{1,2})", request.dataset.name)
    if match is None or int(match[1]) < 1:
        raise ConfigError(
            "A manifold dataset is named manifold_d<dimension>", repr(request.dataset.name)
        )
    return latent_points(int(match[1]), NUM_IMAGES)


@lru_cache(maxsize=4)
def latent_points(dimension: int, num_images: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Draw ``(num_images, dimension)`` points of the unit cube with ``|f| >= MARGIN``, and their
    labels.
    """
    rng = np.random.default_rng(derive_seed("manifold", dimension))
    kept: list[NDArray[np.float64]] = []
    while sum(map(len, kept)) < num_images:
        points = rng.random((num_images, dimension))
        kept.append(points[np.abs(_decision(points)) >= MARGIN])
    points = np.concatenate(kept)[:num_images]
    return points, (_decision(points) > 0).astype(np.int64)


def _decision(points: NDArray[np.float64]) -> NDArray[np.float64]:
    decision: NDArray[np.float64] = np.cos(2 * np.pi * points).sum(1) / np.sqrt(points.shape[1])
    return decision


def embed(latents: NDArray[np.float64], side: int) -> NDArray[np.float32]:
    """Map ``(num_images, d)`` latent points to ``(num_images, side, side)`` float32 images in [0,
    255].
    """
    dimension = latents.shape[1]
    angles = np.pi * latents
    curve = np.stack([np.cos(angles), np.sin(angles)], axis=2).reshape(len(latents), 2 * dimension)
    patterns = low_frequency_patterns(2 * dimension, side)
    # A pattern's entries are at most 2/side, a curve's coordinates at most 1, with d pairs of
    # length 1.
    amplitude = CONTRAST * side / (2 * np.sqrt(2) * dimension)
    images: NDArray[np.float64] = 127.5 + amplitude * np.tensordot(curve, patterns, axes=1)
    return images.astype(np.float32)


def low_frequency_patterns(count: int, side: int) -> NDArray[np.float64]:
    """Return the ``count`` lowest cosine patterns ``(count, side, side)`` but the constant,
    orthonormal.
    """
    if count >= side * side:
        raise ConfigError(
            f"{count} patterns need more than {count} pixels", f"{side}x{side}", "raise image_size"
        )
    grid = (np.arange(side) + 0.5) / side
    waves = np.cos(np.pi * np.outer(np.arange(side), grid)) * np.sqrt(2 / side)
    orders = sorted(
        ((u, v) for u in range(side) for v in range(side) if u + v > 0),
        key=lambda uv: (uv[0] + uv[1], uv),
    )[:count]
    patterns = np.stack([np.outer(waves[u], waves[v]) for u, v in orders])
    normed: NDArray[np.float64] = patterns / np.linalg.norm(patterns, axis=(1, 2), keepdims=True)
    return normed


generated = Source(
    lambda request: list_rows(
        flipped(_places(request)[1], request), request, dtype="float32", intensity=INTENSITY
    ),
    lambda request: row_reader(
        scaled(images_at(_places(request)[0], request.spec.image_size), request)
    ),
)


def _places(request: RawRequest) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    geometry = (
        "dimension",
        "nuisance",
        "bits",
        "bands",
        "gap",
        "fine_gap",
        "contrast",
        "frequency",
    )
    return places(tuple((name, dial(request, name)) for name in (*geometry, "num_images", "draw")))


@lru_cache(maxsize=4)
def places(dials: tuple[tuple[str, float], ...]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Draw places ``(num_images, coordinates)``, centred on 0, and labels ``(num_images,)``."""
    known = dict(dials)
    num, dimension, nuisance = (
        int(known[name]) for name in ("num_images", "dimension", "nuisance")
    )
    draw = int(known["draw"])
    # A stream of its own for nuisance, so that its dial leaves the other coordinates as they are.
    units = np.random.default_rng(derive_seed("generated", draw)).random((num, dimension))
    others = np.random.default_rng(derive_seed("generated nuisance", draw)).random((num, nuisance))
    found = (np.concatenate([units, others], axis=1) - 0.5) * LENGTH
    halves = 2 * int(known["bands"])
    parity: NDArray[np.int64] = np.zeros(num, dtype=np.int64)
    steps = np.where(
        np.arange(1, halves) % 2 == 1, known["fine_gap"], known["gap"] * known["contrast"]
    )
    offsets = np.concatenate([[0.0], np.cumsum(steps)]) - steps.sum() / 2
    for bit in range(int(known["bits"])):
        half = np.minimum((units[:, bit] * halves).astype(np.int64), halves - 1)
        found[:, bit] += offsets[half]
        parity += half if known["frequency"] == 2 else half // 2
    return found, parity % 2


def images_at(found: NDArray[np.float64], side: int) -> NDArray[np.float32]:
    """Map places ``(num_images, coordinates)`` to ``(num_images, side, side)`` float32 in [0,
    255].
    """
    angles = found / LENGTH
    curve = np.stack([np.sin(angles), np.cos(angles) - 1], axis=2).reshape(len(found), -1)
    patterns = low_frequency_patterns(curve.shape[1], side)
    amplitude = LENGTH * side / REFERENCE_SIDE
    images: NDArray[np.float64] = 127.5 + amplitude * np.tensordot(curve, patterns, axes=1)
    if images.min() < 0 or images.max() > 255:
        raise ConfigError(
            "The dials of a generated dataset must keep pixels within 0 and 255",
            f"{images.min():.0f} to {images.max():.0f}",
            "fewer coordinates or bands, or smaller gaps",
        )
    return images.astype(np.float32)
