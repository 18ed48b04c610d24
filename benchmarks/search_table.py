"""The replay table of the search policy: small networks x demo datasets x 25 learning rates x 3 seeds.

Every row is one training of ``isweep tune``'s own kind (validation split of the training images, no test
image): validation loss after each epoch, ``-`` from a divergence on. With it a search policy is tested in
seconds, without training: see ``benchmarks/search_policy.py``.

    python -m benchmarks.search_table            # 15 minutes of one core; goes on where it was stopped
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from orchestrator.planning.plan import Workspace, plan_sweep
from orchestrator.planning.sweep_file import load_sweep
from search_spaces.specs import NetworkSpec, SubsetSpec, pair_name
from search_spaces.tuning import GRID_RATES, TuneSpec, ValidationSpec, space_of

TABLE = Path(__file__).parent.parent / "tests" / "data" / "search_table.csv"
MODELS = ["small_mlp", "small_cnn", "resnet_tiny"]
SEEDS = (0, 1, 2)
HEADER = ["model", "subset", "learning_rate", "seed", "chance_loss", "losses"]


def rates(low: float, high: float) -> list[float]:
    return [float(f"{rate:.4g}") for rate in np.geomspace(low, high, GRID_RATES)]


def networks() -> Iterator[NetworkSpec]:
    """Every training of the table: seed by seed, so that a table cut short is a whole one of fewer seeds."""
    plan = plan_sweep(load_sweep("demo", {"models": MODELS}))
    cells = [trial.network for trial in plan.trials if trial.network.train_size == plan.largest_size]
    # One class pair of each dataset.
    pairs = {network.subset.prepared.dataset: network.subset for network in reversed(cells)}
    cells = [network for network in cells if network.subset in pairs.values()]
    for seed in SEEDS:
        for network in cells:
            space = space_of(network.model, network.recipe.optimizer, TuneSpec(), 180)
            for rate in rates(*space.learning_rate):
                name = f"{network.recipe.name}+learning_rate={rate!r}"
                recipe = network.recipe.model_copy(update={"learning_rate": rate, "name": name})
                yield network.model_copy(update={"recipe": recipe, "seed": seed})


def subset_name(subset: SubsetSpec) -> str:
    return " ".join(filter(None, (subset.prepared.dataset, pair_name(subset.class_pair))))


def make(path: Path, root: str) -> None:
    from tasks.prepared.prepare import prepare_dataset
    from tasks.prepared.subsets import load_validation
    from tasks.remote import InlineExecutor
    from tasks.trials.trial import run_search_trial

    workspace = Workspace.open("demo", root)
    for spec in workspace.plan.prepared:
        if spec.prepared_id not in workspace.prepared:
            dataset, folder = workspace.plan.datasets[spec.dataset], workspace.paths.prepared(spec)
            prepare_dataset(spec, dataset, raw=None, destination=folder, executor=InlineExecutor())
    workspace.look_again()
    validation = ValidationSpec(share=TuneSpec().validation_share)
    done = set()
    if path.exists():
        with path.open(encoding="utf-8") as file:
            done = {(r["model"], r["subset"], r["learning_rate"], r["seed"]) for r in csv.DictReader(file)}
    else:
        path.write_text(",".join(HEADER) + "\n", encoding="utf-8")
    data = {}
    for network in networks():
        subset, recipe = network.subset, network.recipe
        key = (network.model.name, subset_name(subset), f"{recipe.learning_rate:g}", str(network.seed))
        if key in done:
            continue
        if subset.subset_id not in data:
            prepared = workspace.prepared[subset.prepared.prepared_id]
            data[subset.subset_id] = load_validation(prepared, subset, network.train_size, validation)
        found = run_search_trial(network, data[subset.subset_id])
        losses = [f"{score.loss:.4f}" for score in found.curve]
        losses += [""] * (recipe.epochs - len(losses))
        with path.open("a", encoding="utf-8", newline="") as file:
            row = [*key, f"{found.chance_loss:.4f}", " ".join(loss or "-" for loss in losses)]
            csv.writer(file, lineterminator="\n").writerow(row)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--path", type=Path, default=TABLE)
    parser.add_argument("--root", default="isweep-root", help="where datasets are prepared")
    given = parser.parse_args()
    make(given.path, given.root)
