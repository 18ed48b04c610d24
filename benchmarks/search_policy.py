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
from importlib import metadata
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
    "random, stops, warm start": ({"sampler": "random"}, 3),
    "random, all to the end": ({"sampler": "random", "warm_start": False}, 1),
    "tpe, all to the end": ({"sampler": "tpe", "warm_start": False}, 1),
}
"""Settings and the reduction of the rungs; 1 stops no trial."""


def cells_of(table: dict[CellKey, TabulatedCell], tune: TuneSpec) -> dict[CellKey, TuningCell]:
    """Return the cells of a table, on the demo's own recipe."""
    models = sorted({model for model, _ in table})
    plan = plan_sweep(load_sweep("demo", {"models": models, "tune": tune.model_dump(mode="json")}))
    return {cell.key: cell for cell in tuning_cells(plan) if cell.key in table}


def seeded(tune: TuneSpec, seed: int) -> TuneSpec:
    return tune.model_copy(update={"seed": seed})


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
            found = replay(cells, table, seeded(tune, seed), known=KNOWN, reduction=reduction)
            for key, outcome in found.items():
                regrets[key].append(table[key].regret(outcome))
                costs.append(outcome.spent / GRID_RATES)
                totals.append((outcome.spent + outcome.finalist_trainings) / (GRID_RATES * tune.seeds))
        by_seed = np.array(list(regrets.values()))  # (num_cells, num_seeds)
        rows.append(
            {
                "policy": name,
                "median_regret": float(np.median(np.median(by_seed, axis=0))),
                "mean_regret": float(by_seed.mean()),
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


def warm_start(seeds: int, table_path: Path = TABLE) -> list[dict[str, float]]:
    """Return what warm start changes: mean regret with less mean regret without, seed by seed, by budget."""
    found = []
    table = read_table(table_path)
    for budget in (0.08, 0.12, 0.2, 0.4):
        means = []
        for warm in (True, False):
            tune = TuneSpec.model_validate({"batch_size": (32,), "budget": budget, "warm_start": warm})
            cells = cells_of(table, tune)
            runs = [replay(cells, table, seeded(tune, seed), known=KNOWN) for seed in range(seeds)]
            means.append([statistics.fmean(table[key].regret(o) for key, o in run.items()) for run in runs])
        changes = np.subtract(*means)
        found.append(
            {
                "budget": budget,
                "mean_regret_with": float(np.mean(means[0])),
                "mean_regret_without": float(np.mean(means[1])),
                "change": float(changes.mean()),
                "std_error": float(changes.std(ddof=1) / np.sqrt(seeds)),
            }
        )
    return found


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
        ours, *theirs = rows
        document = {"name": "search_policy", "seeds": options.seeds, "ours": ours, "theirs": theirs}
        document |= {
            "ratio": {row["policy"]: ours["mean_regret"] / row["mean_regret"] for row in theirs},
            "warm_start": warm_start(options.seeds, options.table),
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
