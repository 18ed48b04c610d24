"""What a card does with the paper's six networks: probes of 40 seconds, and the grid's hours from them.

Each probe trains one network at its released batch size on resident images, as a trial does, and counts
images per second. VGGs, which take bfloat16 weights there, are probed for half as long without them too. The
grid's hours follow from the measured rates, one trial at a time; beside them stand what the planner
predicted, and the floor: training's arithmetic and weights' traffic at the data sheet's full rates, and
nothing else. Writes ``benchmarks/results/gpu-<card>.json``.

    python benchmarks/gpu_check.py [--seconds 40] [--card h100]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import re
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from orchestrator.planning.estimate import on_cards
from orchestrator.planning.gpus import Card, card_like, card_named
from orchestrator.planning.plan import plan_sweep
from orchestrator.planning.predict import cost_of
from orchestrator.planning.sweep_file import load_sweep
from search_spaces.models import PAPER_MODELS, model_spec
from search_spaces.recipes import recipe_spec
from search_spaces.specs import TrialSpec
from tasks.trials.isolation import deterministic, peak_bytes, trial_memory
from tasks.trials.models import build_model
from tasks.trials.training import train, update_of

RESULTS = Path(__file__).parent / "results"
NUM_IMAGES = 1750


def probe(model: str, seconds: float) -> dict[str, Any]:
    """Train one network until the time is over; the first epoch, with its captures, is not counted.

    ``step_note`` says why bfloat16 weights were not taken; without them the rate is ``with_casts``.
    """
    device = torch.device("cuda")
    recipe = recipe_spec("paper", model, "mnist")
    ends: list[float] = []

    class Over(Exception):
        pass

    def epoch_ended(record: Any) -> None:
        ends.append(time.perf_counter())
        if len(ends) > 1 and ends[-1] - ends[0] > seconds:
            raise Over

    with trial_memory(device), deterministic(device):
        network = build_model(
            model_spec(model),
            num_outputs=2,
            in_channels=1,
            input_scale=1.0,
            dropout=None,
            seed=0,
            image_size=224,
        )
        images = torch.randint(0, 256, (NUM_IMAGES, 1, 224, 224), dtype=torch.uint8)
        labels = torch.arange(NUM_IMAGES) % 2

        def rate() -> float:
            ends.clear()
            with contextlib.suppress(Over):
                train(network, images, labels, recipe, seed=0, device=device, on_epoch=epoch_ended)
            return NUM_IMAGES * (len(ends) - 1) / (ends[-1] - ends[0])

        update, note = update_of(network, recipe, device)
        row = {"model": model, "batch_size": recipe.batch_size, "step_note": note}
        row |= {"images_per_second": rate(), "peak_bytes": peak_bytes(device)}
        if update is not None:
            seconds /= 2
            with patch("tasks.trials.training.takes_half_weights", return_value=False):
                row["with_casts"] = rate()
    return row


def floor_hours(trials: Iterable[TrialSpec], card: Card) -> float:
    """Return the hours of training if no kernel waited: products, and weights read and written."""
    seconds = 0.0
    for trial in trials:
        recipe, step = trial.network.recipe, cost_of(trial.network).card_step
        moved = sum(kernel.num_bytes for kernel in step.kernels if kernel.name.startswith("_fused_adam"))
        of_step = step.flops / (1e12 * card.half_tflops) + moved / (1e9 * card.bandwidth)
        seconds += recipe.epochs * math.ceil(trial.network.train_size / recipe.batch_size) * of_step
    return seconds / 3600


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--card", help="kind of card, where its name does not tell")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("There is no CUDA card here; benchmarks/results/gpu.md says what is not measured yet.")
    name = torch.cuda.get_device_name()
    card = card_named(options.card) if options.card else card_like(name)
    rows = [probe(model, options.seconds) for model in PAPER_MODELS]
    rates = {row["model"]: row["images_per_second"] for row in rows}
    trials = plan_sweep(load_sweep("paper")).trials
    passes = [(t.network.model.name, t.network.recipe.epochs * t.network.train_size) for t in trials]
    result = {
        "name": "gpu_check",
        "rows": rows,
        "grid_hours_one_at_a_time": sum(images / rates[model] for model, images in passes) / 3600,
        "predicted": on_cards(trials, card, 1) if card else None,
        "floor_hours": floor_hours(trials, card) if card else None,
        "environment": {"card": name, "torch": torch.__version__, "cuda": torch.version.cuda},
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"gpu-{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
