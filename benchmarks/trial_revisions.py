"""Trials of this checkout against trials of another revision: equal numbers and equal speed.

``python benchmarks/trial_revisions.py numbers CHECKOUT`` runs both sides in turns, on one thread of
a CPU.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from harness import Result, run

TRIALS = """
import hashlib, inspect, json, sys
sys.path.insert(0, sys.argv[1])
import numpy as np
from orchestrator.planning.plan import plan_sweep
from orchestrator.planning.sweep_file import parse_sweep
from tasks.prepared.subsets import TrialData
from tasks.trials.trial import run_trial
SWEEP = '''
name: revisions
models: [{models}]
datasets: [manifold_d4]
train_sizes: [45]
test_size: 40
image_size: {side}
recipe: {recipe}
attacks: {{methods: [fgsm], epsilons: [2]}}
robustness: {{num_images: 4, num_steps: 5}}
'''
found = {}
for side, models, recipe in (
    (16, "small_cnn", "{from: demo, epochs: 3, batch_size: 8}"),
    (32, "resnet18, resnet50, vgg13", "{from: paper, epochs: 2, batch_size: 20}"),
    (32, "resnet18", "{from: paper, epochs: 2, batch_size: 20, precision: float32, optimizer: sgd}"),
):
    plan = plan_sweep(parse_sweep(SWEEP.format(models=models, side=side, recipe=recipe), origin="x.yaml"))
    for trial in plan.trials:
        prepared, draw = trial.network.subset.prepared, np.random.default_rng(1)
        shape = (85, prepared.channels, side, side)
        labels = np.arange(85) % 2
        images = draw.integers(0, 128, shape, np.uint8) + (60 * labels).astype(np.uint8)[:, None, None, None]
        data = TrialData(images[:45], labels[:45], images[45:], labels[45:], 2, "revisions")
        kept = []
        # Older revisions call the argument `keep`.
        store = "store_weights" if "store_weights" in inspect.signature(run_trial).parameters else "keep"
        result = run_trial(trial, data, **{store: lambda weights: kept.append(weights) or "not kept"})
        got, name = result.model_dump(mode="json"), f"{trial.network.model.name} {recipe}"
        found[name] = {
            "weights": hashlib.sha256(kept[0]).hexdigest(),
            "training": [[epoch["train_loss"], epoch["train_accuracy"]] for epoch in got["history"]],
            "evaluation": {key: got["scores"][key] for key in ("train_loss", "test_loss", "test_accuracy")},
            "d_repr": {name: one["value"] for name, one in got["d_repr"].items()},
            "fgsm": got["attacks"],
            "robustness": got["robustness"]["radii"],
        }
print(json.dumps(found))
"""

TURNS = """
import sys, time
sys.path.insert(0, sys.argv[1])
import torch
from search_spaces.models import model_spec
from search_spaces.specs import RecipeSpec
from tasks.trials.models import build_model
from tasks.trials.training import train
try:
    from tasks.trials.isolation import deterministic, keep_freed_memory
except ImportError:  # the rooms of earlier revisions
    from tasks.trials.memory import keep_freed_memory
    from tasks.trials.seeding import deterministic
keep_freed_memory()
model, side, number, batch, epochs, precision = sys.argv[2], *map(int, sys.argv[3:7]), sys.argv[7]
images = torch.randint(0, 256, (number, 1, side, side), dtype=torch.uint8)
labels = torch.arange(number) % 2
more = {"num_outputs": 2, "in_channels": 1, "input_scale": 1 / 255, "dropout": None, "seed": 0}
network = build_model(model_spec(model), image_size=side, **more)
recipe = RecipeSpec(
    name="revisions", batch_size=batch, epochs=epochs, precision=precision, learning_rate=1e-4
)
with deterministic("cpu", 1):
    for _ in sys.stdin:
        start = time.process_time()
        train(network, images, labels, recipe, seed=0)
        print(time.process_time() - start, flush=True)
"""
SETTINGS = (
    ("resnet18", 224, 40, 40, 1, "bfloat16"),
    ("vgg13", 224, 12, 6, 1, "bfloat16"),
    ("resnet18", 64, 80, 40, 2, "bfloat16"),
    ("vgg13", 64, 24, 6, 2, "bfloat16"),
    ("small_cnn", 32, 320, 32, 8, "float32"),
)
"""Network, side in pixels, images, batch, epochs, precision: the released batch sizes."""
HERE = Path(__file__).resolve().parents[1]


def numbers(other: Path) -> Result:
    """Compare weights, losses, d_repr and attacks of both sides bit by bit.

    If they differ, the largest difference is reported. There are five trainings on seeded images.
    The ratio is the share of equal numbers. PGD was changed on purpose and is left out.
    """
    ours, theirs = (
        json.loads(_output(side, sys.executable, "-c", TRIALS, str(side)))
        for side in (HERE, other.resolve())
    )
    rows = [
        {"trial": name, "what": what, "largest_difference": difference(mine, theirs[name][what])}
        for name, parts in ours.items()
        for what, mine in parts.items()
    ]
    equal = sum(row["largest_difference"] == 0 for row in rows)
    ratio = equal / len(rows)
    return {
        "ours": equal,
        "theirs": len(rows),
        "ratio": ratio,
        "other": _revision(other),
        "rows": rows,
    }


def difference(ours: Any, theirs: Any) -> float:
    """Return the largest relative difference between corresponding numbers.

    It is infinite if texts differ.
    """
    if isinstance(ours, Mapping):
        return max((difference(ours[key], theirs.get(key)) for key in ours), default=0.0)
    if isinstance(ours, list):
        return max((difference(*pair) for pair in zip(ours, theirs, strict=True)), default=0.0)
    if ours == theirs:
        return 0.0
    if isinstance(ours, float | int) and isinstance(theirs, float | int):
        return abs(ours - theirs) / max(abs(ours), abs(theirs))
    return math.inf


def throughput(other: Path, *, turns: int = 5) -> Result:
    """Measure images trained per CPU second, in turns.

    The ratio is that of the worst setting. Target: 0.97.
    """
    rows = []
    for setting in SETTINGS:
        with ExitStack() as stack:
            command, pipes = (
                [sys.executable, "-c", TURNS],
                {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE},
            )
            sides = [
                stack.enter_context(
                    subprocess.Popen(
                        [*command, str(at), *map(str, setting)], cwd=at, text=True, **pipes
                    )
                )
                for at in (HERE, other.resolve())
            ]
            seconds = [[_turn(side) for side in sides] for _ in range(turns + 1)][
                1:
            ]  # the first sets up
            for side in sides:
                side.stdin.close()  # type: ignore[union-attr]
        seen = setting[2] * setting[4]
        mine, theirs = (seen / median(turn) for turn in zip(*seconds, strict=True))
        ratio = median(theirs / mine for mine, theirs in seconds)
        name = "{0}, {1} px, batch {3}, {5}".format(*setting)
        rows.append({"setting": name, "ours": mine, "theirs": theirs, "ratio": ratio})
    worst = min(rows, key=lambda row: float(row["ratio"]))
    sides = {"theirs": {"other": worst["theirs"]}, "other": _revision(other)}
    return {**worst, **sides, "settings": rows, "turns": turns}


def _revision(checkout: Path) -> str:
    return _output(checkout, "git", "rev-parse", "--short", "HEAD").strip()


def _output(folder: Path, *command: str) -> str:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


def _turn(side: subprocess.Popen[str]) -> float:
    side.stdin.write("go\n")  # type: ignore[union-attr]
    side.stdin.flush()  # type: ignore[union-attr]
    return float(side.stdout.readline())  # type: ignore[union-attr]


if __name__ == "__main__":
    run(parts=[numbers, throughput])
