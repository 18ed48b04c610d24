"""Time from tracked runs to table, fits, figures and report, and its growth with the runs."""

from __future__ import annotations

import math
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
from harness import Result, run

from orchestrator.analysis.fits import fit_scaling_laws
from orchestrator.analysis.report import write_report
from orchestrator.results.columns import COLUMNS
from orchestrator.results.flat_runs import FlatRun

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tables lie beside the tests
from tests.synthetic import synthetic_table

SIZES = (500, 750, 1000, 1250, 1500, 1750)
PAIRS = ("0-1", "2-3", "4-5", "6-7", "8-9")
TARGET_S = 5.0


def study_table(num_runs: int) -> pd.DataFrame:
    """Return synthetic trials with the shape of the study.

    There are 11 datasets, of which 4 have 5 class pairs, and 6 train sizes. That is 162 trials per
    model. There are as many models as ``num_runs`` needs.
    """
    models = tuple(f"model{k:02d}" for k in range(-(-num_runs // 162)))
    about = {"models": models, "train_sizes": SIZES, "dataset_std": 0.3, "trial_std": 0.3}
    paired = synthetic_table(num_natural=4, num_medical=0, class_pairs=PAIRS, **about)
    unpaired = synthetic_table(num_natural=0, num_medical=7, **about)
    return (
        pd.concat([paired, unpaired])
        .sort_values(["model", "trial_id"], ignore_index=True)
        .head(num_runs)
    )


def scale(*, runs: int = 1000) -> Result:
    """Time the way from 1,000 runs in an MLflow SQLite store to the report, and its growth.

    The growth is relative to half as many runs. Theirs is ``mlflow.search_runs`` for the same rows
    as a data frame, which only reads.
    """
    with tempfile.TemporaryDirectory() as name:
        steps(20, Path(name))  # imports, caches, fonts
        half, full = (steps(count, Path(name)) for count in (runs // 2, runs))
    return {
        "ours": full["total"],
        "theirs": {"mlflow.search_runs, reading alone": full["search_runs"]},
        "ratio": full["read"] / full["search_runs"],
        "ours_detail": full,
        "half as many": half,
        "growth_exponent": math.log2(full["total"] / half["total"]),
        "target_s": TARGET_S,
        "runs": runs,
    }


def steps(num_runs: int, folder: Path) -> dict[str, float]:
    """Return the seconds of each step for one sweep.

    The processor time is that of all steps except writing.
    """
    import mlflow

    from orchestrator.results.mlflow_connection import connect
    from orchestrator.results.mlflow_pages import Page
    from orchestrator.results.mlflow_runs import SweepRuns, read_rows
    from orchestrator.results.tracking import Tracker

    sweep, uri, table = (
        f"scale{num_runs}",
        f"sqlite:///{folder / 'mlflow.db'}",
        study_table(num_runs),
    )
    client, times = connect(uri), [time.perf_counter()]
    tracker = Tracker(lambda: SweepRuns(client, Page(sweep), None, None))
    for flat_run in flat_runs(table):
        tracker.finish(flat_run)
    tracker.flush()
    tracker.close("FINISHED")
    times.append(time.perf_counter())
    cpu = time.process_time()
    rows = pd.DataFrame(read_rows(client, sweep))
    times.append(time.perf_counter())
    assert len(rows) == num_runs
    fits = fit_scaling_laws(rows, explore=True)
    times.append(time.perf_counter())
    write_report(
        rows, fits, folder / sweep, sweep=sweep, summary={"planned": num_runs, "done": num_runs}
    )
    times.append(time.perf_counter())
    cpu = time.process_time() - cpu
    mlflow.set_tracking_uri(uri)
    mlflow.search_runs(experiment_names=[f"isweep/{sweep}"], max_results=num_runs + 1)
    times.append(time.perf_counter())
    names = ("write", "read", "fit", "report", "search_runs")
    result = {name: times[place + 1] - times[place] for place, name in enumerate(names)}
    return result | {"total": result["read"] + result["fit"] + result["report"], "cpu": cpu}


def flat_runs(table: pd.DataFrame) -> list[FlatRun]:
    """Return the rows of a results table as MLflow runs."""
    runs = []
    for row in table.to_dict("records"):
        names = [
            column.name for column in COLUMNS if column.kind != "number" and column.name in row
        ]
        tags = {name: str(row.pop(name)) for name in names} | {"attempt": "1"}
        numbers = {name: value for name, value in row.items() if isinstance(value, (int, float))}
        metrics = {name: float(value) for name, value in numbers.items() if value == value}
        name = tags["trial_id"]
        runs.append(FlatRun(name, tags, {}, metrics, (), 1000, 2000, 2000))
    return runs


if __name__ == "__main__":
    run(scale)
