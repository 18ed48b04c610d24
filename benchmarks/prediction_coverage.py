"""Do the 90 % intervals of predictions hold datasets that were left out, and how much does a pilot shorten
them?

Published numbers: every dataset left out of the prior in turn, its loss at the largest N predicted, for
every model with readable losses; without and with a pilot (its losses at the smaller sizes). Simulated
tables of the study's shape: the same for the last dataset. The other side is the interval that knows
nothing of the dataset (model and N alone).

Usage: python benchmarks/prediction_coverage.py [--json] [--tables 60]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from importlib.metadata import version

import numpy as np
import pandas as pd

from orchestrator.analysis.fit_records import SharpnessScale
from orchestrator.analysis.growth import fit_growth
from orchestrator.analysis.points import fitted_points, normalise, usable_trials
from orchestrator.analysis.prediction import Curve, PilotPoint
from orchestrator.analysis.published import published_table
from orchestrator.analysis.synthetic import synthetic_table

SCALE = SharpnessScale(comparable=True, policy="ignore", note="")
KINDS = {"without a pilot": 0, "pilot of 3": 3, "pilot of 5": 5}


def points_of(table: pd.DataFrame) -> pd.DataFrame:
    return fitted_points(usable_trials(normalise(table)[0])[0])


def left_out(points: pd.DataFrame, dataset: str) -> dict[str, tuple[bool, float]]:
    """For each kind of pilot: whether the interval holds the loss at the largest N, and by how much it is
    shorter.
    """
    mine = points[points["dataset"] == dataset].dropna(subset=["log_loss"]).sort_values("train_size")
    if len(mine) < 2:
        return {}
    growth = fit_growth(points[points["dataset"] != dataset], model="pooled", subset="all", scale=SCALE)
    last = mine.iloc[-1]
    found = {}
    for kind, size in KINDS.items():
        if growth.status != "ok" or len(mine) <= max(size, 1):
            continue
        pilot = [
            PilotPoint(row["train_size"], row["test_loss"]) for _, row in mine.iloc[:-1].head(size).iterrows()
        ]
        curve = Curve(growth, last["d_reference"], last["label_sharpness"], pilot)
        value, reach = curve.at(last["train_size"])
        found[kind] = (abs(value - last["log_loss"]) <= reach, curve.shorter(last["train_size"]))
    return found


def summary(found: list[dict[str, tuple[bool, float]]]) -> dict[str, dict[str, float]]:
    result = {}
    for kind in KINDS:
        hits = [row[kind] for row in found if kind in row]
        result[kind] = {
            "coverage": float(np.mean([hit for hit, _ in hits])),
            "shorter (median)": float(np.median([shorter for _, shorter in hits])),
            "predictions": len(hits),
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tables", type=int, default=60, help="simulated tables")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    published = []
    for _, table in published_table().groupby("model"):
        points = points_of(table)
        published += [left_out(points, dataset) for dataset in sorted(points["dataset"].unique())]
    simulated = []
    for seed in range(arguments.tables):
        table = synthetic_table(
            num_natural=4, num_medical=7, dataset_std=0.8, trial_std=0.3, seed=seed,
            train_sizes=(500, 750, 1000, 1250, 1500, 1750),
        )  # fmt: skip
        simulated.append(left_out(points_of(table), "medical6"))
    result = {
        "name": "prediction_coverage",
        "ours": {"published, datasets left out": summary(published), "simulated": summary(simulated)},
        "theirs": {"interval that knows nothing of the dataset": 1.0, "goal": "0.85 to 0.95, 0.30 shorter"},
        "ratio": 1 - summary(published)["pilot of 5"]["shorter (median)"],
        "environment": {
            "python": platform.python_version(), "num_cpus": os.cpu_count(), "numpy": version("numpy"),
        },
    }  # fmt: skip
    if arguments.json:
        print(json.dumps(result, indent=1))
        return
    for name, kinds in result["ours"].items():
        for kind, row in kinds.items():
            print(f"{name:>30}, {kind}: " + ", ".join(f"{key} {value:.2f}" for key, value in row.items()))


if __name__ == "__main__":
    main()
