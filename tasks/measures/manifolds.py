"""Draw points from manifolds of known dimension, for :mod:`tasks.measures.calibration`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tasks.array_types import FloatArray

Manifold = Callable[[int, int, np.random.Generator], FloatArray]
"""Function that draws points. Its arguments are the number of points, the dimension and a
random generator. It returns ``(num_points, num_columns)``. Each family has its own number of
columns."""


def _on_sphere(num_points: int, dimension: int, rng: np.random.Generator) -> FloatArray:
    points = rng.normal(size=(num_points, dimension + 1))
    on_sphere: FloatArray = points / np.linalg.norm(points, axis=1, keepdims=True)
    return on_sphere


def _curled(num_points: int, dimension: int, rng: np.random.Generator) -> FloatArray:
    angles = 2 * np.pi * rng.random((num_points, dimension))
    radii = np.roll(angles, -1, axis=1)
    return np.concatenate([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def _swiss_roll(num_points: int, dimension: int, rng: np.random.Generator) -> FloatArray:
    angle = 1.5 * np.pi * (1 + 2 * rng.random((num_points, 1)))
    flat = 21 * rng.random((num_points, dimension - 1))
    return np.concatenate([angle * np.cos(angle), angle * np.sin(angle), flat], axis=1)


MANIFOLDS: dict[str, Manifold] = {
    # The unit sphere. It has no edge, and its curvature is constant.
    "hypersphere": _on_sphere,
    # The unit cube, which is flat. In a high dimension, nearly all points are near an edge.
    "hypercube": lambda num_points, dimension, rng: rng.random((num_points, dimension)),
    # A normal distribution, which is flat. Its density is highest in the middle.
    "gaussian": lambda num_points, dimension, rng: rng.normal(size=(num_points, dimension)),
    # The unit ball is flat and has one smooth edge.
    "ball": lambda num_points, dimension, rng: (
        _on_sphere(num_points, dimension - 1, rng) * rng.random((num_points, 1)) ** (1 / dimension)
    ),
    # A normal distribution whose standard deviations decrease from 1 to 1/4 over the
    # directions.
    "skewed_gaussian": lambda num_points, dimension, rng: (
        rng.normal(size=(num_points, dimension)) * np.geomspace(1, 0.25, dimension)
    ),
    # Coordinates with a Beta(10, 1/2) distribution, as in Hein & Audibert's benchmark. The
    # density varies strongly.
    "beta_cloud": lambda num_points, dimension, rng: rng.beta(
        10, 0.5, size=(num_points, dimension)
    ),
    # A strongly curved cube in twice as many dimensions, as in Hein & Audibert (2005).
    "curled": _curled,
    # A rolled-up sheet. Above dimension 2, it also has flat directions, which are as wide as
    # the sheet.
    "swiss_roll": _swiss_roll,
}
"""The simulated families of manifolds, by name."""
FROM_DIMENSION_2 = ("swiss_roll", "ball")
"""Names of the families that exist only from dimension 2 on."""
