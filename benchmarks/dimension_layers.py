"""Do estimates of dimension track the true dimension of a network's representations?

Schulte & Rügamer (2026, arXiv 2604.20276) prove that the dimension cannot rise along the layers of a
Lipschitz network, and report that common estimators do not track it. Here the dimension of every
layer is known: points are made from d independent latent variables, and the dimension of a layer
is the rank of the Jacobian of its activations with respect to these variables.

Networks: a perceptron of six hidden layers on a curved sheet in 64 dimensions, one of them with a
bottleneck of three units, and a small convolutional network on 16 x 16 images of a random smooth
decoder. Each is measured with its initial weights, and again after it was trained to classify a
curved boundary in the first two latent variables.

Usage: python benchmarks/dimension_layers.py layers [--json] [--num-points 1000] [--seeds 2]
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from harness import Result, run
from torch import Tensor, nn

from tasks.measures.measure import intrinsic_dimension

ESTIMATORS = ("mle", "twonn", "gride")
DIMENSIONS = (2, 4, 8, 16)
RANK_TOLERANCE = 1e-6
"""Singular values of a Jacobian count as zero below this fraction of the largest one."""
SPREAD_TOLERANCE = 0.1
"""Directions that are stretched less than this fraction of the widest one are called thin: at 1,000
points their extent is about the distance to the nearest neighbours."""
JACOBIAN_POINTS = 32
TRAINING_STEPS = 400
BATCH_SIZE = 250


def sheet(dimension: int, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    """Map latent variables to a curved sheet in 64 dimensions, by sines of random directions."""
    frequencies = torch.randn(dimension, 64, generator=generator, dtype=torch.float64)
    phases = 2 * np.pi * torch.rand(64, generator=generator, dtype=torch.float64)
    return lambda latent: torch.sin(latent @ frequencies / dimension**0.5 + phases)


def decoder(dimension: int, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    """Map latent variables to ``(1, 16, 16)`` images, by a random smooth decoder."""

    def weights(*shape: int, fan_in: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64) / fan_in**0.5

    first = weights(dimension, 16 * 4 * 4, fan_in=dimension)
    kernels = [weights(16, 16, 3, 3, fan_in=144), weights(1, 16, 3, 3, fan_in=144)]

    def images(latent: Tensor) -> Tensor:
        batch = torch.tanh(2 * latent @ first).reshape(-1, 16, 4, 4)
        for kernel in kernels:
            batch = nn.functional.interpolate(batch, scale_factor=2, mode="bilinear")
            batch = torch.tanh(nn.functional.conv2d(batch, kernel, padding=1))
        return batch.reshape(*latent.shape[:-1], 1, 16, 16)

    return images


def perceptron(widths: tuple[int, ...], activation: type[nn.Module]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width_in, width_out in zip((64, *widths), widths, strict=False):
        layers.append(nn.Sequential(nn.Linear(width_in, width_out), activation()))
    return nn.Sequential(*layers, nn.Linear(widths[-1], 2))


def convolutional() -> nn.Sequential:
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU()),
        nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU()),
        nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU()),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        nn.Linear(64, 2),
    )


NETWORKS: dict[str, tuple[Callable[..., Any], Callable[[], nn.Sequential]]] = {
    "perceptron, ReLU": (sheet, lambda: perceptron((128,) * 6, nn.ReLU)),
    "perceptron, tanh": (sheet, lambda: perceptron((128,) * 6, nn.Tanh)),
    "bottleneck of 3, ReLU": (sheet, lambda: perceptron((128, 128, 3, 128, 128), nn.ReLU)),
    "convolutional": (decoder, convolutional),
}
"""Name of a case -> function that draws its points, and function that builds its network."""


def train(network: nn.Sequential, inputs: Tensor, labels: Tensor) -> float:
    """Train on random batches, and return the accuracy on all points."""
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    for _ in range(TRAINING_STEPS):
        batch = torch.randint(len(inputs), (BATCH_SIZE,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(inputs[batch]), labels[batch]).backward()
        optimizer.step()
    with torch.no_grad():
        return float((network(inputs).argmax(dim=1) == labels).double().mean())


def ranks(function: Callable[[Tensor], Tensor], latent: Tensor) -> tuple[float, float]:
    """Return two means over points: the rank of the Jacobian, and its rank without thin directions."""

    def flat(point: Tensor) -> Tensor:
        return function(point[None]).flatten()

    # Singular values from the small Gram matrix of d x d.
    jacobians = torch.func.vmap(torch.func.jacfwd(flat))(latent)
    gram = jacobians.mT @ jacobians
    scales = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    relative = scales / scales[:, -1:].clamp(min=1e-300)
    return (
        float((relative > RANK_TOLERANCE).sum(dim=1).double().mean()),
        float((relative > SPREAD_TOLERANCE).sum(dim=1).double().mean()),
    )


def measure_layers(
    make: Callable[[Tensor], Tensor], network: nn.Sequential, latent: Tensor
) -> list[Result]:
    """Return the rank and the estimates of dimension of the input and of each layer."""
    rows = []
    for depth in range(len(network) + 1):
        head = network[:depth]

        def activations(points: Tensor, head: nn.Sequential = head) -> Tensor:
            return head(make(points))

        with torch.no_grad():
            features = activations(latent).flatten(1).numpy()
        rank, wide = ranks(activations, latent[:JACOBIAN_POINTS])
        records = intrinsic_dimension(features, estimators=ESTIMATORS)
        row: Result = {"layer": depth, "width": features.shape[1], "rank": rank, "wide": wide}
        row |= {name: record.value for name, record in records.items()}
        row["mle_k_minus_1"] = records["mle"].details.get("value_k_minus_1")
        rows.append(row)
    return rows


def layers(*, num_points: int = 1000, seeds: int = 2) -> Result:
    """Measure the rank of the Jacobian and the estimates of dimension of each layer."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    rows: list[Result] = []
    for seed in range(seeds):
        for name, (maker, build) in NETWORKS.items():
            for dimension in DIMENSIONS:
                generator = torch.Generator().manual_seed(1000 * seed + dimension)
                torch.manual_seed(1000 * seed + dimension)
                make = maker(dimension, generator)
                latent = 2 * torch.rand(num_points, dimension, generator=generator) - 1
                labels = (torch.sin(3 * latent[:, 0]) > latent[:, 1]).long()
                network = build()
                for state in ("random", "trained"):
                    about: Result = {"network": name, "state": state, "seed": seed, "d": dimension}
                    if state == "trained":
                        with torch.no_grad():
                            inputs = make(latent)
                        about["accuracy"] = round(train(network, inputs, labels), 3)
                    rows += [about | row for row in measure_layers(make, network, latent)]
                print(about, file=sys.stderr, flush=True)
    rows = rounded(rows)
    return {"ours": summary(rows), "theirs": {}, "ratio": None, "rows": rows}


def rounded(rows: list[Result]) -> list[Result]:
    return [
        {key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()}
        for row in rows
    ]


def summary(rows: list[Result]) -> Result:
    """Return the errors of the estimates, and how often they change along layers without the rank.

    A layer counts if its rank is the same at all points. The rank may differ between points because
    of dead units of the bottleneck. The rows contain such layers, too.
    """
    of_one_rank = [row for row in rows if row["rank"] == int(row["rank"])]
    groups: dict[str, list[Result]] = {}
    for state in ("random", "trained"):
        groups[state] = [row for row in of_one_rank if row["state"] == state]
        for dimension in DIMENSIONS:
            key = f"{state}, d = {dimension}"
            groups[key] = [row for row in groups[state] if row["d"] == dimension]
        # The last hidden layer is where d_repr is measured.
        last = [
            row
            for row, following in pairwise(rows)
            if following["width"] == 2 and row["width"] > 2 and row in groups[state]
        ]
        groups[f"{state}, last hidden layer"] = last
    return {name: group_summary(group) for name, group in groups.items()}


def group_summary(rows: list[Result]) -> Result:
    result: Result = {"layers": len(rows)}
    for name in (*ESTIMATORS, "mle_k_minus_1"):
        defined = [row for row in rows if row[name] is not None]
        ratios = np.log([row[name] / row["rank"] for row in defined])
        wide_ratios = np.log([row[name] / max(row["wide"], 1) for row in defined])
        steps = [
            (later[name] / earlier[name], later["rank"] == earlier["rank"])
            for earlier, later in pairwise(rows)
            if later["layer"] == earlier["layer"] + 1
            and later[name] is not None
            and earlier[name] is not None
        ]
        at_equal_rank = [ratio for ratio, is_equal in steps if is_equal]
        result[name] = {
            "undefined": len(rows) - len(defined),
            "median over rank": round(float(np.exp(np.median(ratios))), 3),
            "within 25 % of the rank": round(float(np.mean(np.abs(ratios) < np.log(1.25))), 3),
            "median over rank without thin directions": round(
                float(np.exp(np.median(wide_ratios))), 3
            ),
            "steps of equal rank": len(at_equal_rank),
            "of them falls by more than 20 %": _fraction(at_equal_rank, lambda r: r < 0.8),
            "of them rises by more than 20 %": _fraction(at_equal_rank, lambda r: r > 1.2),
        }
    return result


def _fraction(ratios: list[float], is_counted: Callable[[float], bool]) -> float | None:
    return round(float(np.mean([is_counted(ratio) for ratio in ratios])), 3) if ratios else None


if __name__ == "__main__":
    run(layers)
