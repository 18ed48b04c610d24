"""How much memory a training takes: predicted with tensors that hold no data, and measured.

Measured is what the resident memory of a fresh process grew by, at its peak, over building a network and two
training steps at the released batch size in the paper's precision. Predicted is the walk's peak of living
tensors times ``CPU_FACTOR``, and ``CPU_BYTES`` for libraries' scratch, both fitted to these six.
"""

from __future__ import annotations

import multiprocessing

import torch
from harness import Found, run

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


def memory_prediction(*, image_size: int = 224, models: tuple[str, ...] = tuple(PAPER_MODELS)) -> Found:
    """Bytes predicted and measured, model by model; the ratio is the first model's."""
    rows = []
    for model in models:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found = pool.apply(measured, (model, image_size))
        cost = network_cost(model_spec(model), recipe_of(model), channels=1, image_size=image_size)
        predicted = CPU_FACTOR * cost.step.peak_bytes + CPU_BYTES
        rows.append({"model": model, "ours": predicted, "measured": found, "ratio": predicted / found})
    first = rows[0]
    theirs = {"measured": first["measured"]}
    return {"ours": first["ours"], "theirs": theirs, "ratio": first["ratio"], "rows": rows}


if __name__ == "__main__":
    run(memory_prediction)
