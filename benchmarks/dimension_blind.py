"""Accuracy of estimates of dimension on sets that were not used for tuning.

The sets are images of random decoders, deformed digits and curved sheets. The calibration's
families and constants are older than these sets (tasks/measures/calibration.py, frozen), except the
width of the interval. The width was enlarged after a first result, to the width that left-out
simulated families need. Therefore `--fresh` makes the sets again with other seeds, and adds two
families that are newer than both: DCGAN generators with initial weights, and rendered balls.

- Decoders: N(0, 1) latents, a linear layer to 4 × 4, upsampling and 3 × 3 convolutions with random
  weights and leaky ReLU. They give gray images of 32 and 64 pixels, as bytes.
- Deformations: real 8 × 8 digits, enlarged and moved along random smooth displacement fields.
- Sheets: x_j = sin(w_j · u + b_j) with uniform u, curved everywhere. Tangled sheets are three
  sheets in one space that intersect.

The goals are a mean relative error of at most 0.10, and 90 % intervals that contain the truth in 85
to 95 % of the sets.

For comparison, L2N2 is written here from its paper (Ong, Bobrowski, Reinert & Skraba 2026, in its
plain form: E ln ln(T2/T1) = −γ − ln d).

Usage: python benchmarks/dimension_blind.py blind [--json] [--draws 2] [--num-points 500 1750]
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from blind_tables import share
from harness import Result, run
from scipy import ndimage

from tasks.measures import calibration
from tasks.measures.measure import intrinsic_dimension
from tasks.measures.neighbors import nested_neighbors

OURS = ("mle", "twonn", "gride")
LATENTS, SIDES = (4, 8, 16, 32), (32, 64)
DEFORMATIONS, SHEETS, TANGLED = (4, 8, 16), (5, 10, 30, 100), (5, 20)
#: Younger than the calibration and its interval's width, for fresh runs alone.
NEW = ("generator", "rendered balls")


def decoder_images(num: int, latent: int, side: int, rng: np.random.Generator) -> np.ndarray:
    """Return uint8 images ``(num, side, side)`` of one random decoder."""
    import torch
    from torch.nn import functional as f

    torch.manual_seed(int(rng.integers(2**31)))
    width = 32
    with torch.no_grad():
        x = torch.randn(num, latent) @ torch.randn(latent, width * 16) / latent**0.5
        x = x.reshape(num, width, 4, 4)
        while x.shape[-1] < side:
            x = f.interpolate(f.leaky_relu(x, 0.2), scale_factor=2, mode="bilinear")
            x = f.conv2d(x, torch.randn(width, width, 3, 3) * (2 / (9 * width)) ** 0.5, padding=1)
        x = (x * torch.randn(1, width, 1, 1)).sum(dim=1)
        x = torch.sigmoid(1.5 * (x - x.mean()) / x.std())
        return (255 * x).round().to(torch.uint8).numpy()


def deformed_digits(num: int, dimension: int, rng: np.random.Generator) -> np.ndarray:
    """Return uint8 images ``(num, 32, 32)`` of one real digit, deformed.

    The digit is moved along ``dimension`` smooth displacement fields.
    """
    from sklearn.datasets import load_digits

    template = load_digits().images[int(rng.integers(1000))]
    template = np.clip(ndimage.zoom(np.pad(template, 2) / 16, 32 / 12, order=3), 0, 1)
    fields = ndimage.gaussian_filter(
        rng.normal(size=(dimension, 2, 32, 32)), (0, 0, 4, 4), mode="wrap"
    )
    fields *= 3 / fields.std()
    grid = np.stack(np.meshgrid(np.arange(32), np.arange(32), indexing="ij")).astype(float)
    amounts = rng.uniform(-1, 1, size=(num, dimension)) / dimension**0.5
    deformed = [
        ndimage.map_coordinates(
            template, grid + np.tensordot(row, fields, 1), order=3, mode="nearest"
        )
        for row in amounts
    ]
    return np.round(255 * np.clip(np.stack(deformed), 0, 1)).astype(np.uint8)


def sheets(num: int, dimension: int, rng: np.random.Generator, *, number: int = 1) -> np.ndarray:
    """Return float64 points ``(num, 4 d + 10)`` on ``number`` curved sheets in one space."""
    columns, parts = 4 * dimension + 10, []
    for part in np.array_split(np.arange(num), number):
        turns = rng.normal(size=(dimension, columns)) * 2.5 / dimension**0.5
        inside = rng.uniform(-1, 1, size=(len(part), dimension)) @ turns
        parts.append(np.sin(inside + (rng.uniform(0, 2 * np.pi, columns) if number == 1 else 0)))
    return np.concatenate(parts)


def generator_images(num: int, latent: int, rng: np.random.Generator) -> np.ndarray:
    """Return uint8 images ``(num, 32, 32)`` of a DCGAN generator with initial weights.

    The generator consists of transposed convolutions and batch norm.
    """
    import torch
    from torch import nn

    torch.manual_seed(int(rng.integers(2**31)))
    layers: list[nn.Module] = [nn.ConvTranspose2d(latent, 128, 4, 1, 0, bias=False)]
    for before, after in ((128, 64), (64, 32)):
        layers += [
            nn.BatchNorm2d(before),
            nn.ReLU(),
            nn.ConvTranspose2d(before, after, 4, 2, 1, bias=False),
        ]
    layers += [nn.BatchNorm2d(32), nn.ReLU(), nn.ConvTranspose2d(32, 1, 4, 2, 1, bias=False)]
    layers += [nn.BatchNorm2d(1), nn.Tanh()]
    for layer in layers:
        if isinstance(layer, nn.ConvTranspose2d):
            nn.init.normal_(layer.weight, 0, 0.02)
    with torch.no_grad():
        x = nn.Sequential(*layers)(torch.randn(num, latent, 1, 1))[:, 0]
    return (127.5 * (x + 1)).round().to(torch.uint8).numpy()


def rendered_balls(num: int, dimension: int, rng: np.random.Generator) -> np.ndarray:
    """Return uint8 images ``(num, 48, 48)`` of shaded balls.

    There is one ball for every four dimensions: place (2), size and brightness. The light comes
    from a corner, later balls hide earlier ones, and edges are smooth over one or two pixels.
    """
    side = 48
    rows, columns = np.meshgrid(np.arange(side), np.arange(side), indexing="ij")
    number = dimension // 4
    homes = rng.uniform(0.2, 0.8, size=(number, 2)) * side
    radii = rng.uniform(0.5, 1, size=number) * side / (2 * number**0.5)
    images = np.zeros((num, side, side))
    for home, radius in zip(homes, radii, strict=True):
        places = home + rng.uniform(-1, 1, size=(num, 2)) * radius
        sizes = radius * rng.uniform(0.6, 1.4, size=(num, 1, 1))
        light = rng.uniform(0.4, 1, size=(num, 1, 1))
        y, x = (
            (grid[None] - places[:, i, None, None]) / sizes
            for i, grid in enumerate((rows, columns))
        )
        outside = np.sqrt(x**2 + y**2)
        height = np.sqrt(np.maximum(1 - outside**2, 0))
        shade = light * (0.3 + 0.7 * np.maximum((height - 0.5 * x - 0.5 * y) / 1.5**0.5, 0))
        cover = 1 / (1 + np.exp(np.clip((outside - 1) * sizes / 0.6, -30, 30)))
        images = images * (1 - cover) + shade * cover
    return np.round(255 * np.clip(images, 0, 1)).astype(np.uint8)


def sets(num: int, draws: int, *, fresh: bool = False) -> Iterator[tuple[str, int, np.ndarray]]:
    """Yield the name, the true dimension and the points of every set."""
    for draw in range(draws):
        rng = np.random.default_rng([20261127 if fresh else 20261126, num, draw])
        for side in SIDES:
            for latent in LATENTS:
                yield f"decoder {side} px", latent, decoder_images(num, latent, side, rng)
        for d in DEFORMATIONS:
            yield "deformed digits", d, deformed_digits(num, d, rng)
        for d in SHEETS:
            yield "curved sheet", d, sheets(num, d, rng)
        for d in TANGLED:
            yield "tangled sheets", d, sheets(num, d, rng, number=3)
        for d in LATENTS if fresh else ():
            yield "generator", d, generator_images(num, d, rng)
            yield "rendered balls", d, rendered_balls(num, d, rng)


def l2n2(distances: np.ndarray) -> float:
    """Return the estimate of L2N2.

    Args:
        distances: Sorted distances to the nearest neighbors, ``(num, k)``.
    """
    return float(np.exp(-np.euler_gamma - np.log(np.log(distances[:, 1] / distances[:, 0])).mean()))


def estimates(points: np.ndarray) -> dict[str, Any]:
    ours = {
        name: record.value for name, record in intrinsic_dimension(points, estimators=OURS).items()
    }
    corrected = calibration.calibrate(points)
    table = nested_neighbors(points, None, [len(points)], 2).tables[0]
    calibrated = {
        "calibrated": corrected.value,
        "interval": corrected.interval,
        "notes": corrected.notes,
    }
    return calibrated | ours | {"L2N2": l2n2(table.distances)}


def judged(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the mean relative error of each estimator, and the coverage of the interval."""
    names = [
        name for name in rows[0] if name not in ("set", "num_points", "true", "interval", "notes")
    ]
    errors = {
        name: float(np.mean([abs(row[name] / row["true"] - 1) for row in rows])) for name in names
    }
    is_covered = [row["interval"][0] <= row["true"] <= row["interval"][1] for row in rows]
    bounds = share(sum(is_covered), len(is_covered))
    warned = sum(bool(row["notes"]) for row in rows)
    missed = sum(not ok and not row["notes"] for ok, row in zip(is_covered, rows, strict=True))
    return {
        "sets": len(rows),
        "coverage": bounds["share"],
        "low": bounds["low"],
        "high": bounds["high"],
        "warned": warned,
        "missed without a warning": missed,
        "mean relative error": {name: round(value, 4) for name, value in errors.items()},
    }


def blind(
    *, draws: int = 2, num_points: tuple[int, ...] = (500, 1750), fresh: bool = False
) -> Result:
    """Measure the relative error of each estimator on these sets.

    ``fresh`` uses other seeds and adds two families.
    """
    # Simulations hang on their arguments alone, and are the same for all sets of one size.
    keep = functools.cache(calibration.simulate_one)
    calibration.simulate_one = lambda f, d, n, k, seed: keep(f, d, n, k, tuple(seed))
    rows: list[dict[str, Any]] = []
    for num in num_points:
        for name, true, points in sets(num, draws if num <= 500 else 1, fresh=fresh):
            rows.append({"set": name, "num_points": num, "true": true, **estimates(points)})
            print(rows[-1], file=sys.stderr, flush=True)
    families = ("decoder", "decoder 32", "decoder 64", "deformed", "curved", "tangled", *NEW)
    groups = {"all": rows} | {
        name: [r for r in rows if r["set"].startswith(name)] for name in families
    }
    groups["new families"] = [row for row in rows if row["set"] in NEW]
    groups |= {
        f"decoder, latent {d}": [r for r in groups["decoder"] if r["true"] == d] for d in LATENTS
    }
    groups |= {
        f"N = {num}": [row for row in rows if row["num_points"] == num] for num in num_points
    }
    result = {name: judged(part) for name, part in groups.items() if part}
    errors = result["all"]["mean relative error"]
    ours = errors.pop("calibrated")
    return {
        "ours": ours,
        "theirs": errors,
        "ratio": {name: ours / value for name, value in errors.items()},
        "goal": {"mean relative error": 0.10, "coverage": [0.85, 0.95]},
        "groups": result,
        "rows": rows,
    }


if __name__ == "__main__":
    run(blind)
