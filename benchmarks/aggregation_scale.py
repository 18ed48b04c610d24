"""From 1,000 tracked runs to table, fits, figures and report: seconds, and how they grow.

Ours: runs of a synthetic sweep in an MLflow SQLite store, read by the product's own reader, fitted and
reported. Theirs: ``mlflow.search_runs`` for the same rows as a data frame, which is reading alone. Target:
20 s for 1,000 runs all in all, growth linear (doubling the runs at most doubles the time).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd

from orchestrator.analysis import fit_scaling_laws
from orchestrator.analysis.report import write_report
from orchestrator.analysis.synthetic import synthetic_table
from orchestrator.results.mlflow_pages import Page
from orchestrator.results.mlflow_tracker import MLflowTracker, connect, read_rows
from orchestrator.results.table import INTEGER_COLUMNS, TEXT_COLUMNS, FlatRun
from search_spaces.models import PAPER_MODELS

TARGET_S = 20.0


def flat_runs(table: pd.DataFrame) -> list[FlatRun]:
    """Return the rows of a results table as the runs that MLflow would hold."""
    runs = []
    for row in table.to_dict("records"):
        names = [name for name in (*TEXT_COLUMNS, *INTEGER_COLUMNS) if name in row]
        tags = {name: str(row.pop(name)) for name in names}
        metrics = {
            name: float(value)
            for name, value in row.items()
            if isinstance(value, (int, float)) and value == value
        }
        tags["attempt"] = "1"
        runs.append(
            FlatRun(tags["trial_id"], "trial", tags, {}, metrics, (), 1000, 2000, 2000, tags["trial_id"])
        )
    return runs


def measure(num_runs: int, folder: Path) -> dict[str, float]:
    """Return seconds of each step for one sweep of ``num_runs`` runs."""
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    sweep = f"scale{num_runs}"
    client = connect(uri)
    tracker = MLflowTracker(lambda: client, Page(sweep))
    grid = synthetic_table(
        models=PAPER_MODELS,
        train_sizes=(500, 750, 1000, 1250, 1500, 1750),
        num_seeds=math.ceil(num_runs / 432),
        dataset_std=0.3,
        trial_std=0.3,
    )
    table = grid.sample(num_runs, random_state=0)
    started = time.perf_counter()
    for run in flat_runs(table):
        tracker.finish(run)
    tracker.flush()
    tracker.close("FINISHED")
    seconds = {"write": time.perf_counter() - started}

    started = time.perf_counter()
    rows = pd.DataFrame(read_rows(client, sweep))
    seconds["read"] = time.perf_counter() - started
    assert len(rows) == num_runs, (len(rows), num_runs)
    started = time.perf_counter()
    fits = fit_scaling_laws(rows)
    seconds["fit"] = time.perf_counter() - started
    started = time.perf_counter()
    write_report(rows, fits, folder / sweep, sweep=sweep, summary={"planned": num_runs, "done": num_runs})
    seconds["report"] = time.perf_counter() - started
    seconds["total"] = seconds["read"] + seconds["fit"] + seconds["report"]

    mlflow.set_tracking_uri(uri)
    started = time.perf_counter()
    mlflow.search_runs(experiment_names=[f"isweep/{sweep}"], max_results=num_runs + 1)
    seconds["search_runs"] = time.perf_counter() - started
    return seconds


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        measure(20, Path(name))  # imports and caches
        half, full = (measure(count, Path(name)) for count in (options.runs // 2, options.runs))
    growth = math.log2(full["total"] / half["total"])
    result: dict[str, Any] = {
        "name": "aggregation_scale",
        "runs": options.runs,
        "ours": full["total"],
        "ours_detail": full,
        "theirs": {"mlflow.search_runs, reading alone": full["search_runs"]},
        "ratio": full["read"] / full["search_runs"],
        "growth_exponent": growth,
        "target_s": TARGET_S,
        "environment": {
            "cpus": os.cpu_count(),
            "machine": platform.machine(),
            "python": platform.python_version(),
        },
    }
    if options.json:
        print(json.dumps(result))
        return
    for step in ("write", "read", "fit", "report", "total"):
        print(f"{step:>7}: {full[step]:6.2f} s for {options.runs} runs ({half[step]:.2f} s for half)")
    print(f"target {TARGET_S:g} s in all; growth exponent {growth:.2f} (1 is linear)")
    print(
        f"mlflow.search_runs alone: {full['search_runs']:.2f} s; our reading / theirs {result['ratio']:.2f}"
    )


if __name__ == "__main__":
    main()
