"""Sets of known dimension that the calibration was fitted to: ``shape(num, dimension, rng)`` gives points.

Each draws its own parameters (spectrum, density, bandwidth, depth, gain): a family is many shapes. None
is of a family of `dimension_blind.py`: no convolutions, no warped pictures, no sinusoids of linear maps.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Points = np.ndarray
Random = np.random.Generator


def latent(num: int, d: int, rng: Random) -> Points:
    """Normal, even, skewed or ball-shaped, about one per coordinate."""
    kind = rng.integers(4)
    if kind == 1:
        return rng.uniform(-1, 1, size=(num, d)) * 3**0.5
    if kind == 3:
        return ball(num, d, rng) * d**0.5
    z = rng.normal(size=(num, d))
    return z if kind == 0 else z * np.geomspace(1, rng.uniform(0.2, 1), d)


def mixed(x: Points, columns: int, rng: Random) -> Points:
    return x @ rng.normal(size=(x.shape[1], columns)) / x.shape[1] ** 0.5


def between(low: float, high: float, rng: Random) -> float:
    """Even in the logarithm."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def hypercube(num: int, d: int, rng: Random) -> Points:
    return rng.random((num, d))


def gaussian(num: int, d: int, rng: Random) -> Points:
    return rng.normal(size=(num, d))


def ball(num: int, d: int, rng: Random) -> Points:
    z = rng.normal(size=(num, d))
    return z / np.linalg.norm(z, axis=1, keepdims=True) * rng.random((num, 1)) ** (rng.uniform(0.5, 3) / d)


def skewed(num: int, d: int, rng: Random) -> Points:
    low = between(0.1, 1, rng)
    even = rng.random() < 0.5
    spread = np.geomspace(1, low, d) if even else (1 + np.arange(d)) ** -rng.uniform(0, 1)
    return rng.normal(size=(num, d)) * spread


def skewed_box(num: int, d: int, rng: Random) -> Points:
    return rng.random((num, d)) * np.exp(rng.uniform(-1.5, 0, d))


def beta(num: int, d: int, rng: Random) -> Points:
    return rng.beta(np.exp(rng.uniform(-1, 2.5)), np.exp(rng.uniform(-1, 2.5)), size=(num, d))


def heavy(num: int, d: int, rng: Random) -> Points:
    freedom = between(3, 30, rng)
    return rng.normal(size=(num, d)) / np.sqrt(rng.chisquare(freedom, size=(num, 1)) / freedom)


def clusters(num: int, d: int, rng: Random) -> Points:
    number = int(rng.integers(2, 9))
    centres = rng.normal(size=(number, d + 3)) * rng.uniform(0.3, 2.5)
    which = rng.integers(number, size=num)
    points = np.empty((num, d + 3))
    for j in range(number):
        plane, mine = np.linalg.qr(rng.normal(size=(d + 3, d)))[0], which == j
        points[mine] = centres[j] + rng.normal(size=(mine.sum(), d)) @ plane.T * rng.uniform(0.5, 1.5)
    return points


def dirichlet(num: int, d: int, rng: Random) -> Points:
    return rng.dirichlet(np.full(d + 1, np.exp(rng.uniform(-0.7, 2))), size=num)


def sphere(num: int, d: int, rng: Random) -> Points:
    z = rng.normal(size=(num, d + 1))
    kind = rng.integers(3)
    if kind == 1:
        z = z * np.geomspace(1, rng.uniform(0.3, 1), d + 1)
    if kind == 2:
        z[:, 0] += rng.uniform(0, 1.5) * (d + 1) ** 0.5
    return z / np.linalg.norm(z, axis=1, keepdims=True)


def torus(num: int, d: int, rng: Random) -> Points:
    even = rng.random() < 0.5
    angles = (
        rng.uniform(0, 2 * np.pi, size=(num, d))
        if even
        else rng.vonmises(0, np.exp(rng.uniform(-1, 1.5)), size=(num, d))
    )
    radii = np.exp(rng.uniform(-rng.uniform(0, 1), 0, d))
    return np.concatenate([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def spheres(num: int, d: int, rng: Random) -> Points:
    parts = []
    while d:
        m = int(min(d, rng.integers(1, 6)))
        parts.append(sphere(num, m, rng) * np.exp(rng.uniform(-0.7, 0.3)))
        d -= m
    return np.concatenate(parts, axis=1)


def curled(num: int, d: int, rng: Random) -> Points:
    angles = 2 * np.pi * rng.random((num, d))
    radii = np.roll(angles, -1, axis=1)
    return np.concatenate([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def swiss(num: int, d: int, rng: Random) -> Points:
    """Of dimension 2 or more."""
    angle = 1.5 * np.pi * (1 + rng.uniform(0.5, 2) * rng.random((num, 1)))
    flat = rng.uniform(5, 21) * rng.random((num, d - 1))
    return np.concatenate([angle * np.cos(angle), angle * np.sin(angle), flat], axis=1)


def network(
    num: int, d: int, rng: Random, bend: Callable[[Points], Points], low: float, high: float
) -> Points:
    """Fully connected, 1 to 4 hidden layers, random weights."""
    x, depth = latent(num, d, rng), int(rng.integers(1, 5))
    width = int(rng.integers(2, 5)) * max(d, 16)
    gain, bias = between(low, high, rng), rng.uniform(0, 0.5)
    for _ in range(depth):
        x = bend(gain * mixed(x, width, rng) + bias * rng.normal(size=width))
    return mixed(x, int(rng.integers(64, 300)) + d, rng)


def mlp_tanh(num: int, d: int, rng: Random) -> Points:
    return network(num, d, rng, np.tanh, 0.5, 2.5)


def mlp_relu(num: int, d: int, rng: Random) -> Points:
    slope = rng.choice([0, 0.1, 0.3])
    return network(num, d, rng, lambda x: np.where(x > 0, x, slope * x), 1, 2)


def abs_fold(num: int, d: int, rng: Random) -> Points:
    """Absolute values of random maps, one to three times."""
    x = latent(num, d, rng)
    for _ in range(int(rng.integers(1, 4))):
        x = np.abs(mixed(x, 3 * d + 10, rng) + rng.normal(size=3 * d + 10) * rng.uniform(0.2, 1))
    return x


def logistic(num: int, d: int, rng: Random) -> Points:
    x = mixed(latent(num, d, rng), 2 * d + 20, rng) * rng.uniform(0.5, 4)
    return 1 / (1 + np.exp(-x + rng.normal(size=x.shape[1])))


def softmax(num: int, d: int, rng: Random) -> Points:
    x = mixed(latent(num, d, rng), 3 * d + 10, rng) * np.exp(rng.uniform(-0.7, 0.9))
    raised = np.exp(x - x.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)


def quadratic(num: int, d: int, rng: Random) -> Points:
    x, columns = latent(num, d, rng), 2 * d + int(rng.integers(8, 80))
    bent = mixed(x, columns, rng) * mixed(x, columns, rng)
    bent *= rng.uniform(0.1, 1.5)
    beside = rng.random() < 0.5
    return (
        np.concatenate([x * rng.uniform(0.3, 1), bent], axis=1) if beside else bent + mixed(x, columns, rng)
    )


def low_rank(num: int, d: int, rng: Random) -> Points:
    """Matrices of rank one: m and d + 1 - m factors."""
    m = int(rng.integers(1, d + 1))
    left = rng.normal(size=(num, m)) + rng.uniform(0, 2)
    right = rng.normal(size=(num, d + 1 - m)) + rng.uniform(0, 2)
    return (left[:, :, None] * right[:, None, :]).reshape(num, -1)


def bumps(num: int, d: int, rng: Random) -> Points:
    """Nearness to random centres."""
    x = latent(num, d, rng)
    centres = latent(4 * d + int(rng.integers(20, 100)), d, rng)
    squared = (x**2).sum(axis=1)[:, None] + (centres**2).sum(axis=1) - 2 * x @ centres.T
    return np.exp(-squared / (2 * between(0.7, 3, rng) * d))


def signals(num: int, d: int, rng: Random) -> Points:
    """Sums of d bumps along a line, of varying height or place, wide enough to be no more than neighbours."""
    line = np.linspace(0, 1, max(256, 8 * d))
    width, heights = between(0.3, 1, rng) / max(d, 4), rng.uniform(0, 1)
    found = np.zeros((num, len(line)))
    for j in range(d):
        place = (j + rng.random()) / d
        if rng.random() < heights:
            found += rng.uniform(0.3, 1, size=(num, 1)) * np.exp(-(((line - place) / width) ** 2) / 2)
        else:
            moved = place + rng.uniform(-1, 1, size=(num, 1)) * width * 1.5
            found += np.exp(-(((line - moved) / width) ** 2) / 2)
    return found


#: Groups of kin: intervals come from errors on groups left out whole.
GROUPS: dict[str, tuple[Callable[[int, int, Random], Points], ...]] = {
    "boxes": (hypercube, skewed_box, beta, dirichlet),
    "clouds": (gaussian, skewed, heavy, clusters, ball),
    "round": (sphere, torus, spheres, curled, swiss),
    "networks": (mlp_tanh, mlp_relu, abs_fold, logistic, softmax),
    "products": (quadratic, low_rank),
    "bumps": (bumps, signals),
}
