"""How long a grid takes in which order: longest first against the order of the plan, with and without waves.

All orders are replayed on the same predicted costs and shares (``orchestrator/planning/predict.py``), so what
differs is the order alone; the lower bound is what no order can beat. Waves are what the project did before:
groups of whole datasets, each waiting for the last trial of the one before.

Then the hours of the whole grid on one card of each kind, at the preset's batches and at 32: as trained now,
with weights cast in every step, and without the test images that pass between epochs.

    python benchmarks/grid_order.py [--json] [--preset paper] [--card h100]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from itertools import product
from typing import Any
from unittest import mock

from orchestrator.planning.plan import plan_sweep
from orchestrator.planning.predict import EAGER_INTERVAL_S, card_named, jobs_on, longest_first, replay
from orchestrator.planning.sweep_file import load_sweep
from search_spaces.specs import TrialSpec

NUM_CARDS = (1, 8, 64, 512)
NUM_WAVES = 6
KINDS = ("a100", "h100", "h200")
STUDY_BATCH = 32


def measure(preset: str, kind: str) -> list[dict[str, Any]]:
    card, trials = card_named(kind), plan_sweep(load_sweep(preset)).trials
    jobs = jobs_on(trials, card)
    size = -(-len(jobs) // NUM_WAVES)
    waves = [jobs[start : start + size] for start in range(0, len(jobs), size)]
    rows = []
    for number in NUM_CARDS:
        ours, planned = replay(longest_first(jobs), number), replay(jobs, number)
        in_waves = sum(replay(wave, number).makespan for wave in waves)
        hours = number * ours.makespan / 3600
        rows.append(
            {
                "num_cards": number,
                "ours": ours.makespan / 60,
                "theirs": {"order of the plan": planned.makespan / 60, "six waves": in_waves / 60},
                "lower_bound": ours.lower_bound / 60,
                "ratio": planned.makespan / ours.makespan,
                "over_lower_bound": ours.makespan / ours.lower_bound,
                "utilisation": ours.utilisation,
                "dollars": hours * card.price,
                "kilowatt_hours": hours * card.watts / 1000,
            }
        )
    return rows


def hours(preset: str) -> list[dict[str, Any]]:
    """Predict the grid's hours on one card, and what they would be without two of its parts."""
    sweep = load_sweep(preset)
    rows = []
    for kind, batch in product(KINDS, (None, STUDY_BATCH)):
        trials = [_at_batch(trial, batch) for trial in plan_sweep(sweep).trials]
        row: dict[str, Any] = {"card": kind, "batch": batch or "of the preset", "hours": _hours(trials, kind)}
        with mock.patch("orchestrator.planning.predict.GRAPH_INTERVAL_S", EAGER_INTERVAL_S):
            row["Python starts every kernel"] = _hours(trials, kind)
        with mock.patch("orchestrator.planning.predict.epochs_to_look_at", return_value=()):
            row["no test images between epochs"] = _hours(trials, kind)
        rows.append(row)
    return rows


def _hours(trials: Iterable[TrialSpec], kind: str) -> float:
    return replay(longest_first(jobs_on(trials, card_named(kind))), 1).makespan / 3600


def _at_batch(trial: TrialSpec, batch: int | None) -> TrialSpec:
    if batch is None:
        return trial
    recipe = trial.network.recipe.model_copy(update={"batch_size": batch})
    return trial.model_copy(update={"network": trial.network.model_copy(update={"recipe": recipe})})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--preset", default="paper")
    parser.add_argument("--card", default="h100")
    options = parser.parse_args()
    rows = measure(options.preset, options.card)
    grid = hours(options.preset)
    study = next(row for row in rows if row["num_cards"] == 64)
    result = {
        "name": "grid_order",
        "unit": "minutes, replayed",
        "preset": options.preset,
        "card": options.card,
        "ours": study["ours"],
        "theirs": study["theirs"],
        "ratio": study["ratio"],
        "rows": rows,
        "hours": grid,
        "environment": {"costs": "predicted, no card was measured"},
    }
    if options.json:
        print(json.dumps(result, indent=1))
        return
    for row in rows:
        theirs = row["theirs"]
        print(
            f"{row['num_cards']:>4} {options.card}: longest first {row['ours']:>7.1f} min, "
            f"plan's order {theirs['order of the plan']:>7.1f}, "
            f"six waves {theirs['six waves']:>7.1f}, bound {row['lower_bound']:>7.1f}"
        )
    for row in grid:
        print(
            ", ".join(f"{name} {v:.1f}" if isinstance(v, float) else f"{name} {v}" for name, v in row.items())
        )


if __name__ == "__main__":
    main()
