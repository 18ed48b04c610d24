"""The search of learning rates, replayed on stored trainings: how good its rates are, and what it costs.

``table`` makes the trainings (``tests/data/search_table.csv``), ``policy`` replays searches on them.
"""

from __future__ import annotations

import csv
import statistics
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast

import numpy as np
from harness import Found, run
from numpy.typing import NDArray
from optuna.samplers import BaseSampler, TPESampler

from orchestrator.planning.plan import Workspace, plan_sweep
from orchestrator.planning.sweep_file import load_sweep
from orchestrator.tuning import search as study
from orchestrator.tuning.cells import CellKey, TuningCell, tuning_cells
from orchestrator.tuning.outcome import CellOutcome
from search_spaces.specs import NetworkSpec, SubsetSpec, pair_name
from search_spaces.tuning import GRID_RATES, Sampler, TuneSpec, ValidationSpec, space_of

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the table's reader lies beside the tests
from tests.search_table import TabulatedCell, read_table, replay

TABLE = Path(__file__).parent.parent / "tests" / "data" / "search_table.csv"
SEEDS_OF_TABLE = 3
PLAIN: dict[str, tuple[bool, bool]] = {
    "tpe without constant liar": (True, False),
    "univariate tpe": (False, True),
}
"""Whether TPE is multivariate, and whether it counts what runs as bad: ``isweep tune`` has both."""
SAMPLERS = ("tpe", "tpe without constant liar", "univariate tpe", "gp", "random")
TWICE = 0.4
"""Budget at which samplers differ: at the default one the first four points of five are drawn at random."""


def cells_of(table: dict[CellKey, TabulatedCell], tune: TuneSpec) -> dict[CellKey, TuningCell]:
    """Return the cells of a table, on the demo's own recipe."""
    models = sorted({model for model, _ in table})
    plan = plan_sweep(load_sweep("demo", {"models": models, "tune": tune.model_dump(mode="json")}))
    return {cell.key: cell for cell in tuning_cells(plan) if cell.key in table}


@contextmanager
def told(options: tuple[bool, bool] | None) -> Iterator[None]:
    """Have searches use TPE with other options; None leaves them as they are."""
    ours = study.make_sampler

    def plain(name: Sampler, seed: int) -> BaseSampler:
        if options is None:
            return ours(name, seed)
        multivariate, liar = options
        startup = study.STARTUP_TRIALS
        return TPESampler(seed=seed, n_startup_trials=startup, multivariate=multivariate, constant_liar=liar)

    study.make_sampler = plain
    try:
        yield
    finally:
        study.make_sampler = ours


def search(
    table: dict[CellKey, TabulatedCell], sampler: str, budget: float, seed: int
) -> dict[CellKey, CellOutcome]:
    """Return what one search finds."""
    plain = PLAIN.get(sampler)
    # Weight decay and batch size are the recipe's: the table has rates alone, and three seeds.
    tune = TuneSpec(
        batch_size=(32,),
        budget=budget,
        seeds=SEEDS_OF_TABLE,
        sampler="tpe" if plain else cast("Sampler", sampler),
        seed=seed,
    )
    with told(plain):
        return replay(cells_of(table, tune), table, tune)


@dataclass
class Searches:
    """Searches on one table, each run once.

    Attributes:
        table: Trainings.
        seeds: Searches with one sampler; half as many at the larger budget.
        processes: Searches at the same time.
    """

    table: dict[CellKey, TabulatedCell]
    seeds: int
    processes: int = 2
    _found: dict[tuple[str, float], list[dict[CellKey, CellOutcome]]] = field(default_factory=dict)

    def run(self, sampler: str, budget: float) -> list[dict[CellKey, CellOutcome]]:
        """Return what was found, seed by seed."""
        if (sampler, budget) not in self._found:
            seeds = range(self.seeds if budget < TWICE else self.seeds // 2)
            # Forked anew: a worker has the table already.
            with get_context("fork").Pool(self.processes) as pool:
                found = pool.map(partial(search, self.table, sampler, budget), seeds, chunksize=1)
            self._found[sampler, budget] = found
        return self._found[sampler, budget]

    def regrets(self, found: list[dict[CellKey, CellOutcome]]) -> NDArray[np.float64]:
        """Return them, in nat: ``(num_seeds, num_cells)``."""
        return np.array([[self.table[key].regret(o) for key, o in one.items()] for one in found])


def measure(searches: Searches, samplers: Iterable[str], budget: float) -> list[dict[str, Any]]:
    """Return a row per sampler."""
    rows = []
    for name in samplers:
        found = searches.run(name, budget)
        regrets = searches.regrets(found)
        every = [outcome for one in found for outcome in one.values()]
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
                "whole_cost": statistics.fmean((o.spent + o.finalist_trainings) / whole for o in every),
                "by_cell": {
                    " on ".join(key): float(np.median(regrets[:, place]))
                    for place, key in enumerate(found[0])
                },
            }
        )
    return rows


QUESTIONS: dict[str, tuple[str, str, tuple[float, ...]]] = {
    "tpe_for_random": ("tpe", "random", (0.2, TWICE)),
    "gp_for_tpe": ("gp", "tpe", (TWICE,)),
    "constant_liar": ("tpe", "tpe without constant liar", (TWICE,)),
    "multivariate": ("tpe", "univariate tpe", (TWICE,)),
}
"""Whether something pays: with it, without it, and at which budgets."""


def answer(searches: Searches, question: str) -> list[dict[str, float]]:
    """Return mean regret with less mean regret without, paired by seed, by budget."""
    *samplers, budgets = QUESTIONS[question]
    rows = []
    for budget in budgets:
        means = [searches.regrets(searches.run(name, budget)).mean(axis=1) for name in samplers]
        changes = np.subtract(*means)
        rows.append(
            {
                "budget": budget,
                "mean_regret_with": float(means[0].mean()),
                "mean_regret_without": float(means[1].mean()),
                "change": float(changes.mean()),
                "std_error": float(changes.std(ddof=1) / np.sqrt(len(changes))),
            }
        )
    return rows


def policy(*, seeds: int = 20, processes: int = 2, table: Path = TABLE, budget: float = 0.2) -> Found:
    """Regret and cost of the search, against the grid and other searches.

    Regret is the validation loss of the chosen rate, mean over its seeds, less that of the best of 25 rates,
    in nat. Costs are shares: of the search, of one training at each rate; of everything, finalists included,
    of all trainings of the table. ``median_regret`` is the median over seeds of the median over cells. The
    best of 25 rates is itself the luckiest of 25 means of three trainings, so the means are too high where
    trainings of one rate differ much.
    """
    searches = Searches(read_table(table), seeds, processes)
    ours, *theirs = measure(searches, ("tpe", "random"), budget)
    return {
        "seeds": seeds,
        "ours": ours,
        "theirs": theirs,
        "ratio": {row["sampler"]: ours["mean_regret"] / row["mean_regret"] for row in theirs},
        "samplers": {"budget": TWICE, "seeds": seeds // 2, "rows": measure(searches, SAMPLERS, TWICE)},
        **{question: answer(searches, question) for question in QUESTIONS},
    }


MODELS = ["small_mlp", "small_cnn", "resnet_tiny"]
SEEDS = (0, 1, 2)
HEADER = ["model", "subset", "learning_rate", "seed", "chance_loss", "losses"]


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
            for rate in np.geomspace(*space.learning_rate, GRID_RATES):
                rate = float(f"{rate:.4g}")
                name = f"{network.recipe.name}+learning_rate={rate!r}"
                recipe = network.recipe.model_copy(update={"learning_rate": rate, "name": name})
                yield network.model_copy(update={"recipe": recipe, "seed": seed})


def subset_name(subset: SubsetSpec) -> str:
    return " ".join(filter(None, (subset.prepared.dataset, pair_name(subset.class_pair))))


def table(*, path: Path = TABLE, root: str = "isweep-root") -> Found:
    """Make the trainings: small networks x demo datasets x 25 learning rates x 3 seeds; 15 minutes of a core.

    Every row is one training of ``isweep tune``'s own kind (validation split of the training images, no test
    image): validation loss after each epoch, ``-`` from a divergence on. Goes on where it was stopped.
    ``root`` is where datasets are prepared.
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
    return {"table": str(path)}


if __name__ == "__main__":
    run(policy, parts=[table])
