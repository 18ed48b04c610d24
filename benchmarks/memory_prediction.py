"""How much memory a training takes: predicted with tensors that hold no data, and measured.

Measured is what the resident memory of a fresh process grew by, at its peak, over building a network and two
training steps at the released batch size in the paper's precision. Predicted is the walk's peak of living
tensors times ``CPU_FACTOR``, and ``CPU_BYTES`` for libraries' scratch, both fitted to these six.

    python benchmarks/memory_prediction.py [--json] [--image-size 224] [--models resnet18 vgg13]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform

import torch

from orchestrator.planning.predict import network_cost
from search_spaces.models import PAPER_MODELS, model_spec
from search_spaces.recipes import recipe_spec
from search_spaces.specs import RecipeSpec
from tasks.trials.isolation import deterministic, keep_freed_memory, peak_bytes, reset_peak
from tasks.trials.models import build_model
from tasks.trials.training import train

CPU_FACTOR = 1.1
CPU_BYTES = 2**28


def recipe_of(model: str) -> RecipeSpec:
    return recipe_spec("paper", model, "mnist").model_copy(update={"epochs": 1})


def measured(model: str, image_size: int) -> int:
    """Return the growth of this process in bytes."""
    device, recipe = torch.device("cpu"), recipe_of(model)
    keep_freed_memory()
    torch.ones(8, 8) @ torch.ones(8, 8)
    reset_peak(device)
    before = peak_bytes(device)
    with deterministic("cpu", 1):
        network = build_model(
            model_spec(model),
            num_outputs=2,
            in_channels=1,
            input_scale=1.0,
            dropout=None,
            seed=0,
            image_size=image_size,
        )
        images = torch.zeros(2 * recipe.batch_size, 1, image_size, image_size, dtype=torch.uint8)
        train(network, images, torch.arange(len(images)) % 2, recipe, seed=0)
    return peak_bytes(device) - before


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--models", nargs="+", default=list(PAPER_MODELS))
    options = parser.parse_args()
    rows = []
    for model in options.models:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found = pool.apply(measured, (model, options.image_size))
        cost = network_cost(model_spec(model), recipe_of(model), channels=1, image_size=options.image_size)
        predicted = CPU_FACTOR * cost.step.peak_bytes + CPU_BYTES
        rows.append({"model": model, "ours": predicted, "measured": found, "ratio": predicted / found})
    result = {
        "name": "memory_prediction",
        "unit": "bytes",
        "image_size": options.image_size,
        "rows": rows,
        "ours": rows[0]["ours"],
        "theirs": {"measured": rows[0]["measured"]},
        "ratio": rows[0]["ratio"],
        "environment": {
            "cores": os.cpu_count(),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }
    if options.json:
        print(json.dumps(result, indent=1))
        return
    for row in rows:
        print(
            f"{row['model']:<10} predicted {row['ours'] / 2**30:.2f} GiB, "
            f"measured {row['measured'] / 2**30:.2f} GiB, ratio {row['ratio']:.2f}"
        )


if __name__ == "__main__":
    main()
