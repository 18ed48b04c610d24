"""Generated images that lie on a manifold of known dimension, with two classes kept a known distance apart.

An image is ``127.5 + CONTRAST * sum_j sqrt(side) * (cos t_j, sin t_j) . (P_2j, P_2j+1)`` for angles ``t_j =
pi * z_j``, ``z`` uniform in the d-dimensional unit cube and P orthonormal low-frequency cosine patterns:
the map from z is an isometry up to one factor, so the intrinsic dimension is exactly d, and pixels stay in
[0, 255]. The label is the sign of ``f(z) = sum_j cos(2 pi z_j) / sqrt(d)``; points with ``|f| < MARGIN``
are never drawn. ``f`` has slope at most 2 pi, hence ``label_sharpness <= 2 pi / (2 * MARGIN * factor)``.
"""

from __future__ import annotations

import re
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import ConfigError
from search_spaces.fingerprint import derive_seed
from tasks.sources.base import Listing, RawRequest, Reader
from tasks.sources.in_memory import ROWS_PER_TASK, row_items, row_reader

NUM_IMAGES = 3000
MARGIN = 0.1
CONTRAST = 100.0


class Manifold:
    """``manifold_d4``, ``manifold_d12``: the number in the name is the intrinsic dimension."""

    def list_items(self, request: RawRequest) -> Listing:
        """Return the rows; labels come from the latent points alone."""
        _, labels = latent_points(_dimension(request), NUM_IMAGES)
        return Listing(
            row_items(labels),
            request.dataset.label_names,
            dtype="float32",
            block_size=ROWS_PER_TASK,
            intensity="generated in [0, 255], not rounded",
        )

    def reader(self, request: RawRequest) -> Reader:
        """Return a reader of rows, generated at the prepared side so that no resize bends the manifold."""
        latents, _ = latent_points(_dimension(request), NUM_IMAGES)
        return row_reader(embed(latents, request.spec.image_size))


def _dimension(request: RawRequest) -> int:
    match = re.fullmatch(r"manifold_d(\d{1,2})", request.dataset.name)
    if match is None or int(match[1]) < 1:
        raise ConfigError("A manifold dataset is named manifold_d<dimension>", repr(request.dataset.name))
    return int(match[1])


@lru_cache(maxsize=4)
def latent_points(dimension: int, num_images: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Draw ``(num_images, dimension)`` points of the unit cube with ``|f| >= MARGIN``, and their labels."""
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
    """Map ``(num_images, d)`` latent points to ``(num_images, side, side)`` float32 images in [0, 255].

    Raises:
        ConfigError: when the image has too few pixels for 2 d patterns.
    """
    dimension = latents.shape[1]
    angles = np.pi * latents
    curve = np.stack([np.cos(angles), np.sin(angles)], axis=2).reshape(len(latents), 2 * dimension)
    patterns = low_frequency_patterns(2 * dimension, side)
    # A pattern's entries are at most 2/side, a curve's coordinates at most 1, with d pairs of length 1.
    amplitude = CONTRAST * side / (2 * np.sqrt(2) * dimension)
    images: NDArray[np.float64] = 127.5 + amplitude * np.tensordot(curve, patterns, axes=1)
    return images.astype(np.float32)


def low_frequency_patterns(count: int, side: int) -> NDArray[np.float64]:
    """Return the ``count`` lowest cosine patterns ``(count, side, side)`` beside the constant, orthonormal.

    Raises:
        ConfigError: when the image has too few pixels for them.
    """
    if count >= side * side:
        raise ConfigError(
            f"{count} patterns need more than {count} pixels", f"{side}x{side}", "raise image_size"
        )
    grid = (np.arange(side) + 0.5) / side
    waves = np.cos(np.pi * np.outer(np.arange(side), grid)) * np.sqrt(2 / side)
    orders = sorted(
        ((u, v) for u in range(side) for v in range(side) if u + v > 0), key=lambda uv: (uv[0] + uv[1], uv)
    )[:count]
    patterns = np.stack([np.outer(waves[u], waves[v]) for u, v in orders])
    normed: NDArray[np.float64] = patterns / np.linalg.norm(patterns, axis=(1, 2), keepdims=True)
    return normed
