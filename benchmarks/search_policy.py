"""How good the rates are that a search finds, and what it costs, against the grid and other searches.

All of them are replayed on the committed table of trainings (``benchmarks/search_table.py``): validation loss
of the chosen rate, mean over its seeds, less that of the best of 25 rates (regret, in nat). Costs are shares:
of the search, of one training at each rate; of everything, finalists included, of all trainings of the table.
``median_regret`` is the median over seeds of the median over cells. The best of 25 rates is itself the
luckiest of 25 means of three trainings, so the means are too high where trainings of one rate differ much.

    python benchmarks/search_policy.py [--json] [--seeds 20]
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.planning.plan import plan_sweep
from orchestrator.planning.sweep_file import load_sweep
from orchestrator.tuning.cells import CellKey, TuningCell, tuning_cells
from orchestrator.tuning.neighbours import Likeness
from orchestrator.tuning.outcome import CellOutcome
from orchestrator.tuning.replay import TabulatedCell, read_table, replay
from orchestrator.tuning.rungs import REDUCTION
from search_spaces.tuning import GRID_RATES, TuneSpec

TABLE = Path(__file__).parent.parent / "tests" / "data" / "search_table.csv"
# d_data and K_F of the demo's largest training sets, as `isweep run demo` measures them.
KNOWN = {
    "mnist5k": Likeness.of("natural", 240, 8.5, 0.30),
    "digits": Likeness.of("natural", 240, 8.0, 0.30),
    "mri_lesion": Likeness.of("medical", 240, 9.0, 0.60),
}
WARM, COLD = {"sampler": "tpe"}, {"sampler": "tpe", "warm_start": False}
ALL_TO_THE_END = 1
Policy = tuple[dict[str, Any], int]
POLICIES: dict[str, Policy] = {
    "tpe, stops, warm start": (WARM, REDUCTION),
    "tpe, stops": (COLD, REDUCTION),
    "gp, stops, warm start": ({"sampler": "gp"}, REDUCTION),
    "gp, stops": ({"sampler": "gp", "warm_start": False}, REDUCTION),
    "random, stops": ({"sampler": "random", "warm_start": False}, REDUCTION),
    "random, stops, warm start": ({"sampler": "random"}, REDUCTION),
    "tpe, worse half stops, warm start": (WARM, 2),
    "tpe, all to the end, warm start": (WARM, ALL_TO_THE_END),
    "tpe, all to the end": (COLD, ALL_TO_THE_END),
    "random, all to the end": ({"sampler": "random", "warm_start": False}, ALL_TO_THE_END),
}
"""Settings and the reduction of the rungs."""


def cells_of(table: dict[CellKey, TabulatedCell], tune: TuneSpec) -> dict[CellKey, TuningCell]:
    """Return the cells of a table, on the demo's own recipe."""
    models = sorted({model for model, _ in table})
    plan = plan_sweep(load_sweep("demo", {"models": models, "tune": tune.model_dump(mode="json")}))
    return {cell.key: cell for cell in tuning_cells(plan) if cell.key in table}


@dataclass
class Searches:
    """Searches on one table, each run once.

    Attributes:
        table: Trainings.
        seeds: Searches of one policy.
    """

    table: dict[CellKey, TabulatedCell]
    seeds: int
    _found: dict[str, list[dict[CellKey, CellOutcome]]] = field(default_factory=dict)

    def run(
        self, settings: dict[str, Any], reduction: int, budget: float
    ) -> list[dict[CellKey, CellOutcome]]:
        """Return what was found, seed by seed."""
        # Weight decay and batch size are the recipe's: the table has rates alone.
        tune = TuneSpec.model_validate({"batch_size": (32,), "budget": budget, **settings})
        key = f"{tune.model_dump_json()} {reduction}"
        if key not in self._found:
            cells = cells_of(self.table, tune)
            seeded = (tune.model_copy(update={"seed": seed}) for seed in range(self.seeds))
            self._found[key] = [
                replay(cells, self.table, t, known=KNOWN, reduction=reduction) for t in seeded
            ]
        return self._found[key]

    def regrets(self, found: list[dict[CellKey, CellOutcome]]) -> NDArray[np.float64]:
        """Return them, in nat: ``(num_seeds, num_cells)``."""
        return np.array([[self.table[key].regret(o) for key, o in one.items()] for one in found])


def measure(searches: Searches, budget: float) -> list[dict[str, Any]]:
    """Return a row per policy."""
    rows = []
    for name, (settings, reduction) in POLICIES.items():
        found = searches.run(settings, reduction, budget)
        regrets = searches.regrets(found)
        every = [outcome for one in found for outcome in one.values()]
        costs = [outcome.spent / GRID_RATES for outcome in every]
        whole = GRID_RATES * TuneSpec().seeds
        rows.append(
            {
                "policy": name,
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


QUESTIONS: dict[str, tuple[Policy, Policy, tuple[float, ...]]] = {
    "warm_start": ((WARM, REDUCTION), (COLD, REDUCTION), (0.08, 0.12, 0.2, 0.4)),
    "warm_start_all_to_the_end": ((WARM, ALL_TO_THE_END), (COLD, ALL_TO_THE_END), (0.2, 0.4)),
    "stopping": ((COLD, REDUCTION), (COLD, ALL_TO_THE_END), (0.2, 0.4)),
    "tpe_for_random": (POLICIES["tpe, all to the end"], POLICIES["random, all to the end"], (0.2, 0.4)),
}
"""Whether something pays: with it, without it, and at which budgets."""


def answer(searches: Searches, question: str) -> list[dict[str, float]]:
    """Return mean regret with less mean regret without, paired by seed, by budget."""
    *policies, budgets = QUESTIONS[question]
    rows = []
    for budget in budgets:
        means = [searches.regrets(searches.run(*policy, budget)).mean(axis=1) for policy in policies]
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--budget", type=float, default=0.2)
    options = parser.parse_args()
    searches = Searches(read_table(options.table), options.seeds)
    rows = measure(searches, options.budget)
    if options.json:
        ours, *theirs = rows
        document = {"name": "search_policy", "seeds": options.seeds, "ours": ours, "theirs": theirs}
        document |= {
            "ratio": {row["policy"]: ours["mean_regret"] / row["mean_regret"] for row in theirs},
            **{question: answer(searches, question) for question in QUESTIONS},
            "environment": {name: metadata.version(name) for name in ("optuna", "torch")},
        }
        print(json.dumps(document, indent=1))
        return
    shown = [key for key in rows[0] if key != "by_cell"]
    print(" | ".join(shown))
    for row in rows:
        print(" | ".join(f"{v:.4f}" if isinstance(v := row[key], float) else str(v) for key in shown))


if __name__ == "__main__":
    main()
