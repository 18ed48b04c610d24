"""Quality and cost of the search of learning rates, replayed on stored trainings.

``table`` makes the trainings (``tests/data/search_table.csv``), and ``policy`` replays searches on
them.
"""

from __future__ import annotations

import csv
import statistics
import sys
from collections.abc import Iterable, Iterator
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from harness import Result, run

from orchestrator.planning.plan import plan_sweep
from orchestrator.planning.sweep_file import load_sweep
from orchestrator.planning.workspace import Workspace
from orchestrator.tuning.combinations import Combination, CombinationKey, combinations_to_tune
from orchestrator.tuning.outcome import CombinationOutcome
from search_spaces.specs import NetworkSpec, SubsetSpec, pair_name
from search_spaces.tuning import GRID_RATES, Sampler, TuneSpec, ValidationSpec, space_of

sys.path.insert(
    0, str(Path(__file__).resolve().parents[1])
)  # the table's reader lies beside the tests
from tests.search_table import TabulatedCombination, read_table, replay

TABLE = Path(__file__).parent.parent / "tests" / "data" / "search_table.csv"
SEEDS_OF_TABLE = 3
Table = dict[CombinationKey, TabulatedCombination]
SAMPLERS: tuple[Sampler, ...] = ("tpe", "gp", "random")
TWICE = 0.4
"""Budget at which samplers differ: at the default one the first four points of five are drawn at
random."""


def cells_of(table: Table, tune: TuneSpec) -> dict[CombinationKey, Combination]:
    """Return the cells of a table, with the demo's own recipe."""
    models = sorted({model for model, _ in table})
    plan = plan_sweep(load_sweep("demo", {"models": models, "tune": tune.model_dump(mode="json")}))
    return {cell.key: cell for cell in combinations_to_tune(plan) if cell.key in table}


def search(
    table: Table, sampler: Sampler, budget: float, seed: int
) -> dict[CombinationKey, CombinationOutcome]:
    """Return the result of one search."""
    # Weight decay and batch size are the recipe's: the table has rates alone, and three seeds.
    tune = TuneSpec(
        batch_size=(32,), budget=budget, seeds=SEEDS_OF_TABLE, sampler=sampler, seed=seed
    )
    return replay(cells_of(table, tune), table, tune)


def measure(
    table: dict[CombinationKey, TabulatedCombination],
    samplers: Iterable[Sampler],
    budget: float,
    seeds: int,
    processes: int,
) -> list[dict[str, Any]]:
    """Return one row per sampler, from ``seeds`` searches.

    ``processes`` searches run at the same time.
    """
    rows = []
    for name in samplers:
        # Forked anew: a worker has the table already.
        with get_context("fork").Pool(processes) as pool:
            result = pool.map(partial(search, table, name, budget), range(seeds), chunksize=1)
        regrets = np.array(
            [[table[key].regret(outcome) for key, outcome in one.items()] for one in result]
        )
        every = [outcome for one in result for outcome in one.values()]
        costs = [outcome.spent / GRID_RATES for outcome in every]
        whole = GRID_RATES * SEEDS_OF_TABLE
        rows.append(
            {
                "sampler": name,
                "median_regret": float(np.median(np.median(regrets, axis=1))),
                "mean_regret": float(regrets.mean()),
                "std_error": float(regrets.mean(axis=1).std(ddof=1) / np.sqrt(len(regrets))),
                "upper_quartile": float(np.quantile(regrets, 0.75)),
                "worst_cell_median": float(np.median(regrets, axis=0).max()),
                "within_0.01": float((regrets <= 0.01).mean()),
                "search_cost": statistics.fmean(costs),
                "largest_search_cost": max(costs),
                "whole_cost": statistics.fmean(
                    (o.spent + o.finalist_trainings) / whole for o in every
                ),
                "by_cell": {
                    " on ".join(key): float(np.median(regrets[:, place]))
                    for place, key in enumerate(result[0])
                },
            }
        )
    return rows


def policy(
    *, seeds: int = 20, processes: int = 2, table: Path = TABLE, budget: float = 0.2
) -> Result:
    """Measure the regret and the cost of the search, against the grid and other searches.

    Regret is the validation loss of the chosen rate, averaged over its seeds, minus that of the
    best of 25 rates, in nat. Costs are shares: the search as a share of one training at each rate,
    and everything, including finalists, as a share of all trainings of the table. ``median_regret``
    is the median over seeds of the median over cells. The best of 25 rates is selected by chance as
    well, from 25 means of three trainings. The mean regret is therefore too high where trainings of
    one rate differ much.
    """
    known = read_table(table)
    ours, *theirs = measure(known, ("tpe", "random"), budget, seeds, processes)
    at_twice = measure(known, SAMPLERS, TWICE, seeds // 2, processes)
    return {
        "seeds": seeds,
        "ours": ours,
        "theirs": theirs,
        "ratio": {row["sampler"]: ours["mean_regret"] / row["mean_regret"] for row in theirs},
        "samplers": {"budget": TWICE, "seeds": seeds // 2, "rows": at_twice},
    }


MODELS = ["small_mlp", "small_cnn", "resnet_tiny"]
SEEDS = (0, 1, 2)
HEADER = ["model", "subset", "learning_rate", "seed", "chance_loss", "losses"]


def networks() -> Iterator[NetworkSpec]:
    """Return all trainings of the table, seed by seed.

    In this order, an incomplete table is a complete table of fewer seeds.
    """
    plan = plan_sweep(load_sweep("demo", {"models": MODELS}))
    cells = [
        trial.network for trial in plan.trials if trial.network.train_size == plan.largest_size
    ]
    # One class pair of each dataset.
    pairs = {network.subset.prepared.dataset: network.subset for network in reversed(cells)}
    cells = [network for network in cells if network.subset in pairs.values()]
    for seed in SEEDS:
        for network in cells:
            space = space_of(network.model, network.recipe.optimizer, TuneSpec(), 180)
            for rate in np.geomspace(*space.learning_rate, GRID_RATES):
                rate = float(f"{rate:.4g}")
                name = f"{network.recipe.name}+learning_rate={rate!r}"
                recipe = network.recipe.model_copy(update={"learning_rate": rate, "name": name})
                yield network.model_copy(update={"recipe": recipe, "seed": seed})


def subset_name(subset: SubsetSpec) -> str:
    return " ".join(filter(None, (subset.prepared.dataset, pair_name(subset.class_pair))))


def table(*, path: Path = TABLE, root: str = "isweep-root") -> Result:
    """Make the trainings: small networks x demo datasets x 25 learning rates x 3 seeds.

    This takes 15 minutes on one core. Each row is one training as in ``isweep tune``, with a
    validation split of the training images and no test image. It has the validation loss after each
    epoch, and ``-`` after a divergence. An interrupted run continues where it stopped. ``root`` is
    the root of prepared datasets.
    """
    from tasks.prepared.prepare import prepare_dataset
    from tasks.prepared.subsets import load_validation
    from tasks.remote import InlineExecutor
    from tasks.trials.trial import run_search_trial

    workspace = Workspace.open("demo", root)
    for spec in workspace.plan.prepared:
        if spec.prepared_id not in workspace.prepared:
            dataset, folder = workspace.plan.datasets[spec.dataset], workspace.paths.prepared(spec)
            prepare_dataset(spec, dataset, raw=None, destination=folder, executor=InlineExecutor())
    workspace.forget_prepared()
    validation = ValidationSpec(share=TuneSpec().validation_share)
    done = set()
    if path.exists():
        with path.open(encoding="utf-8") as file:
            done = {
                (r["model"], r["subset"], r["learning_rate"], r["seed"])
                for r in csv.DictReader(file)
            }
    else:
        path.write_text(",".join(HEADER) + "\n", encoding="utf-8")
    data = {}
    for network in networks():
        subset, recipe = network.subset, network.recipe
        key = (
            network.model.name,
            subset_name(subset),
            f"{recipe.learning_rate:g}",
            str(network.seed),
        )
        if key in done:
            continue
        if subset.subset_id not in data:
            prepared = workspace.prepared[subset.prepared.prepared_id]
            data[subset.subset_id] = load_validation(
                prepared, subset, network.train_size, validation
            )
        result = run_search_trial(network, data[subset.subset_id])
        losses = [f"{score.loss:.4f}" for score in result.curve]
        losses += [""] * (recipe.epochs - len(losses))
        with path.open("a", encoding="utf-8", newline="") as file:
            row = [*key, f"{result.chance_loss:.4f}", " ".join(loss or "-" for loss in losses)]
            csv.writer(file, lineterminator="\n").writerow(row)
    return {"table": str(path)}


if __name__ == "__main__":
    run(policy, parts=[table])
