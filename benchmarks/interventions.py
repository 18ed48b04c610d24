"""What came out of the interventions, and which of their losses another run repeats.

Reads a table of ``isweep results interventions --csv FILE``, as a rule the committed one, fits it as the
report does, and counts the losses that another table has within 0.1 %. ``--keep`` writes the columns that the
fit needs, rounded to five digits, and what it found, to ``benchmarks/results``.

Usage: python benchmarks/interventions.py [--json] [--table FILE] [--against FILE] [--keep]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from orchestrator.analysis import read_csv
from orchestrator.analysis.interventions import fit_interventions
from orchestrator.analysis.report import arms_of
from orchestrator.planning.plan import Workspace

RESULTS = Path(__file__).with_name("results")
KEPT = RESULTS / "interventions.csv"
CELL = ["dataset", "model", "train_size"]
COLUMNS = [
    *("trial_id", "domain", "class_pair", "moves", *CELL, "status"),
    *("test_loss", "test_accuracy", "r_hat_pred", "d_data_mle"),
    *("label_sharpness", "label_sharpness_mean", "label_sharpness_permuted"),
]
EQUAL = 1e-3


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--table", type=Path, default=KEPT)
    parser.add_argument("--against", type=Path, help="table of another run")
    parser.add_argument("--keep", action="store_true", help="write to benchmarks/results")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    table = read_csv(arguments.table)
    with tempfile.TemporaryDirectory() as root:
        workspace = Workspace.open("interventions", root)
    arms = arms_of(workspace)
    found: dict[str, Any] = {
        "name": "interventions",
        "trials": len(table),
        "planned": len(workspace.plan.trials),
        **json.loads(json.dumps(asdict(fit_interventions(table, arms)))),
    }
    if arguments.against:
        found["repeated"] = repeated(table, read_csv(arguments.against))
    if arguments.keep:
        moves = table["dataset"].map({arm.dataset: arm.moves for arm in arms})
        rows = table.assign(moves=moves)[COLUMNS].sort_values(CELL)
        rows.to_csv(KEPT, index=False, float_format="%.5g")
        text = json.dumps(found, indent=1, ensure_ascii=False)
        KEPT.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
    if arguments.json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
        return
    print(found["answer"])
    for effect in found["effects"]:
        low, high = effect["interval"] or (np.nan, np.nan)
        print(f"{effect['estimand']} {effect['arm']}: {effect['value']:.2f} ({low:.2f} to {high:.2f})")
    print(found.get("repeated", ""))


def repeated(one: pd.DataFrame, two: pd.DataFrame) -> dict[str, Any]:
    """Return how many cells both tables have, and of how many losses differ, by network and train size."""
    both = one.merge(two, on=CELL, suffixes=("", "_again"))
    factor = np.exp(np.abs(np.log(both["test_loss"] / both["test_loss_again"])))
    differ = both[factor > 1 + EQUAL]
    return {
        "cells": len(both),
        "equal": len(both) - len(differ),
        "differ": {
            f"{model}, N = {size}": len(part)
            for (model, size), part in differ.groupby(["model", "train_size"])
        },
        "largest_factor": float(factor.max()),
        "measures_within": {
            name: float(np.exp(np.abs(np.log(both[name] / both[f"{name}_again"]))).max() - 1)
            for name in ("d_data_mle", "label_sharpness")
        },
    }


if __name__ == "__main__":
    main()
