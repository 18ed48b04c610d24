"""How good the rates are that a search finds, and what it costs, against the grid and other searches.

All of them are replayed on the committed table of trainings (``benchmarks/search_table.py``): validation loss
of the chosen rate, mean over its seeds, less that of the best of 25 rates (regret, in nat). Costs are shares:
of the search, of one training at each rate; of everything, finalists included, of all trainings of the table.

    python benchmarks/search_policy.py [--json] [--seeds 20]
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.planning.plan import plan_sweep
from orchestrator.planning.sweep_file import load_sweep
from orchestrator.tuning.cells import CellKey, TuningCell, tuning_cells
from orchestrator.tuning.neighbours import Likeness
from orchestrator.tuning.replay import TabulatedCell, read_table, replay
from search_spaces.tuning import GRID_RATES, TuneSpec

TABLE = Path(__file__).parent.parent / "tests" / "data" / "search_table.csv"
# d_data and K_F of the demo's largest training sets, as `isweep run demo` measures them.
KNOWN = {
    "mnist5k": Likeness.of("natural", 240, 8.5, 0.30),
    "digits": Likeness.of("natural", 240, 8.0, 0.30),
    "mri_lesion": Likeness.of("medical", 240, 9.0, 0.60),
}
POLICIES: dict[str, tuple[dict[str, Any], int]] = {
    "tpe, stops, warm start": ({"sampler": "tpe"}, 3),
    "tpe, stops": ({"sampler": "tpe", "warm_start": False}, 3),
    "gp, stops, warm start": ({"sampler": "gp"}, 3),
    "gp, stops": ({"sampler": "gp", "warm_start": False}, 3),
    "random, stops": ({"sampler": "random", "warm_start": False}, 3),
    "random, all to the end": ({"sampler": "random", "warm_start": False}, 1),
    "tpe, all to the end": ({"sampler": "tpe", "warm_start": False}, 1),
}
"""Settings and the reduction of the rungs; 1 stops no trial."""


def cells_of(table: dict[CellKey, TabulatedCell], tune: TuneSpec) -> dict[CellKey, TuningCell]:
    """Return the cells of a table, on the demo's own recipe."""
    models = sorted({model for model, _ in table})
    plan = plan_sweep(load_sweep("demo", {"models": models, "tune": tune.model_dump(mode="json")}))
    return {cell.key: cell for cell in tuning_cells(plan) if cell.key in table}


def measure(seeds: int, table_path: Path = TABLE, budget: float = 0.2) -> list[dict[str, Any]]:
    table = read_table(table_path)
    rows = []
    for name, (settings, reduction) in POLICIES.items():
        # Weight decay and batch size are the recipe's: the table has rates alone.
        tune = TuneSpec.model_validate({"batch_size": (32,), "budget": budget, **settings})
        cells = cells_of(table, tune)
        regrets: dict[CellKey, list[float]] = {key: [] for key in cells}
        costs, totals = [], []
        for seed in range(seeds):
            found = replay(cells, table, tune, seed=seed, known=KNOWN, reduction=reduction)
            for key, outcome in found.items():
                regrets[key].append(table[key].regret(outcome))
                costs.append(outcome.spent / GRID_RATES)
                totals.append((outcome.spent + outcome.finalist_trainings) / (GRID_RATES * tune.seeds))
        by_seed = np.array(list(regrets.values()))  # (num_cells, num_seeds)
        rows.append(
            {
                "policy": name,
                "median_regret": float(np.median(by_seed.mean(axis=0))),
                "median_over_all": float(np.median(by_seed)),
                "upper_quartile": float(np.quantile(by_seed, 0.75)),
                "worst_cell_median": float(np.median(by_seed, axis=1).max()),
                "within_0.01": float((by_seed <= 0.01).mean()),
                "search_cost": statistics.fmean(costs),
                "largest_search_cost": max(costs),
                "whole_cost": statistics.fmean(totals),
                "by_cell": {" on ".join(key): float(np.median(v)) for key, v in regrets.items()},
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
    rows = measure(options.seeds, options.table, options.budget)
    if options.json:
        print(json.dumps({"name": "search_policy", "rows": rows}, indent=1))
        return
    shown = [key for key in rows[0] if key != "by_cell"]
    print(" | ".join(shown))
    for row in rows:
        print(" | ".join(f"{v:.4f}" if isinstance(v := row[key], float) else str(v) for key in shown))


if __name__ == "__main__":
    main()
