"""What came out of the interventions, and which of their losses another run repeats.

Reads a table of ``isweep results interventions --csv FILE``, as a rule the committed one, fits it as the
report does, and counts the losses that another table has within 0.1 %. ``--keep`` writes the columns that the
fit needs, rounded to five digits, and what it found, to ``benchmarks/results``.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from harness import Found, run

from orchestrator.analysis.interventions import fit_interventions
from orchestrator.analysis.report import arms_of
from orchestrator.analysis.table import read_csv
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


def interventions(*, table: Path = KEPT, against: Path | None = None, keep: bool = False) -> Found:
    """Fit a table; ``against`` compares it with that of another run, ``keep`` writes both to the results."""
    rows = read_csv(table)
    with tempfile.TemporaryDirectory() as root:
        workspace = Workspace.open("interventions", root)
    arms = arms_of(workspace)
    found: Found = {"trials": len(rows), "planned": len(workspace.plan.trials)}
    found |= json.loads(json.dumps(asdict(fit_interventions(rows, arms))))
    if against:
        found["repeated"] = repeated(rows, read_csv(against))
    if keep:
        moves = rows["dataset"].map({arm.dataset: arm.moves for arm in arms})
        kept = rows.assign(moves=moves)[COLUMNS].sort_values(CELL)
        kept.to_csv(KEPT, index=False, float_format="%.5g")
        text = json.dumps(found, indent=1, ensure_ascii=False)
        KEPT.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
    return found


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
    run(interventions)
