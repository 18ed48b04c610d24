"""Points and images of known intrinsic dimension: for calibration, for tests, and for trying things out.

Every point generator takes ``(num_points, dimension, rng)`` and returns float64 points whose number of
columns is whatever the shape needs. An isometric embedding into more columns changes no distance, so none
is made: an estimator that sees distances only cannot tell.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from search_spaces.errors import DataError

Points = npt.NDArray[np.float64]
Generator = Callable[[int, int, np.random.Generator], Points]


def hypersphere(num_points: int, dimension: int, rng: np.random.Generator) -> Points:
    """Uniform on the unit sphere of that dimension: no edge, constant curvature."""
    points = rng.normal(size=(num_points, dimension + 1))
    on_sphere: Points = points / np.linalg.norm(points, axis=1, keepdims=True)
    return on_sphere


def hypercube(num_points: int, dimension: int, rng: np.random.Generator) -> Points:
    """Uniform in the unit cube: flat, and in high dimension nearly all of it is edge."""
    return rng.random((num_points, dimension))


def gaussian(num_points: int, dimension: int, rng: np.random.Generator) -> Points:
    """Normal in all directions alike: flat, dense in the middle."""
    return rng.normal(size=(num_points, dimension))


def ball(num_points: int, dimension: int, rng: np.random.Generator) -> Points:
    """Uniform in the unit ball: flat, one smooth edge."""
    return hypersphere(num_points, dimension - 1, rng) * rng.random((num_points, 1)) ** (1 / dimension)


def skewed_gaussian(num_points: int, dimension: int, rng: np.random.Generator) -> Points:
    """Normal with standard deviations falling from 1 to 1/4: directions that matter more than others."""
    return rng.normal(size=(num_points, dimension)) * np.geomspace(1, 0.25, dimension)


def beta_cloud(num_points: int, dimension: int, rng: np.random.Generator) -> Points:
    """Beta(10, 1/2) coordinates, as in Hein & Audibert's benchmark: strongly uneven density."""
    return rng.beta(10, 0.5, size=(num_points, dimension))


def curled(num_points: int, dimension: int, rng: np.random.Generator) -> Points:
    """Cube whose coordinates are wound around each other: curved, with two columns per dimension.

    Coordinate i sets the radius ``u_{i+1}`` and the angle ``2π u_i`` of a circle, as in the nonlinear
    manifolds of Hein & Audibert (2005).
    """
    angles = 2 * np.pi * rng.random((num_points, dimension))
    radii = np.roll(angles, -1, axis=1)
    return np.concatenate([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def swiss_roll(num_points: int, dimension: int, rng: np.random.Generator) -> Points:
    """Rolled-up sheet; above dimension 2 with further flat directions of the sheet's width."""
    if dimension < 2:
        raise DataError("A Swiss roll has dimension 2 or more", str(dimension))
    angle = 1.5 * np.pi * (1 + 2 * rng.random((num_points, 1)))
    flat = 21 * rng.random((num_points, dimension - 1))
    return np.concatenate([angle * np.cos(angle), angle * np.sin(angle), flat], axis=1)


MANIFOLDS: dict[str, Generator] = {
    "hypersphere": hypersphere,
    "hypercube": hypercube,
    "gaussian": gaussian,
    "ball": ball,
    "skewed_gaussian": skewed_gaussian,
    "beta_cloud": beta_cloud,
    "curled": curled,
    "swiss_roll": swiss_roll,
}


def cosine_patterns(num_patterns: int, side: int) -> npt.NDArray[np.float64]:
    """Orthogonal ``(num_patterns, side, side)`` cosines of rising frequency, values in [-1, 1].

    Raises:
        DataError: If the side holds fewer patterns.
    """
    if not 1 <= num_patterns < side * side:
        raise DataError(f"A side of {side} pixels has {side * side - 1} patterns", str(num_patterns))
    grid = (np.arange(side) + 0.5) * np.pi / side
    order: list[Any] = sorted(
        ((u, v) for u in range(side) for v in range(side) if u or v),
        key=lambda uv: (uv[0] ** 2 + uv[1] ** 2, uv),
    )
    return np.stack([np.outer(np.cos(u * grid), np.cos(v * grid)) for u, v in order[:num_patterns]])
