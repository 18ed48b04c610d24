"""How long do fits, figures and the report take for 1,000 and 2,000 runs, and does that grow linearly?

Measures this project's analysis only (reading MLflow is timed elsewhere), on synthetic tables of the study's
shape: 11 datasets, of which 4 have 5 class pairs, in 6 train sizes are 162 runs per model; models are added
until there are enough. No other tool makes these fits, so the other side of the ratio is twice the time of
the smaller
table: a ratio above 1 is growth worse than linear. One run of each size in one process, after a small warm-up
that pays for imports and fonts; wall-clock and processor seconds, because a busy machine decides the former.

Usage: python benchmarks/analysis_scale.py [--json] [--runs 1000]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import pandas as pd

from orchestrator.analysis import fit_scaling_laws
from orchestrator.analysis.report import write_report
from tests.synthetic import synthetic_table

SIZES = (500, 750, 1000, 1250, 1500, 1750)
PAIRS = ("0-1", "2-3", "4-5", "6-7", "8-9")
TARGET_S = 12.0


def study_table(num_runs: int) -> pd.DataFrame:
    """Return ``num_runs`` synthetic trials of the study's shape, with as many models as that takes."""
    models = tuple(f"model{k:02d}" for k in range(-(-num_runs // 162)))
    about = {"models": models, "train_sizes": SIZES, "dataset_std": 0.3, "trial_std": 0.3}
    paired = synthetic_table(num_natural=4, num_medical=0, class_pairs=PAIRS, **about)
    whole = synthetic_table(num_natural=0, num_medical=7, **about)
    return pd.concat([paired, whole]).sort_values(["model", "trial_id"], ignore_index=True).head(num_runs)


def measure(num_runs: int, folder: Path) -> dict[str, float]:
    """Return the seconds that fits and report take for that many runs."""
    table = study_table(num_runs)
    start, cpu = time.perf_counter(), time.process_time()
    fits = fit_scaling_laws(table)
    fitted = time.perf_counter()
    write_report(table, fits, folder, sweep="benchmark", summary={})
    end = time.perf_counter()
    return {
        "fits_s": fitted - start, "report_s": end - fitted, "total_s": end - start,
        "cpu_s": time.process_time() - cpu,
    }  # fmt: skip


def environment() -> dict[str, object]:
    """Return what the timings depend on."""
    packages = {name: version(name) for name in ("numpy", "pandas", "scipy", "matplotlib")}
    return {
        "python": platform.python_version(), "num_cpus": os.cpu_count(),
        "load_average": os.getloadavg()[0], **packages,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=1000, help="size of the smaller table")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(60, Path(folder))
        ours = {n: measure(n, Path(folder)) for n in (arguments.runs, 2 * arguments.runs)}
    small, large = (seconds["total_s"] for seconds in ours.values())
    result = {
        "name": "analysis_scale",
        "ours": {f"{n}_runs": seconds for n, seconds in ours.items()},
        "theirs": {"twice_the_smaller_s": 2 * small, "target_s": TARGET_S},
        "ratio": large / (2 * small),
        "environment": environment(),
    }
    if arguments.json:
        print(json.dumps(result))
        return
    for num_runs, seconds in ours.items():
        print(
            f"{num_runs:>6,} runs: fits {seconds['fits_s']:5.1f} s, report {seconds['report_s']:5.1f} s, "
            f"processor {seconds['cpu_s']:5.1f} s"
        )
    print(
        f"target for 1,000 runs: {TARGET_S:.0f} s; growth against linear: {result['ratio']:.2f} (1 = linear)"
    )


if __name__ == "__main__":
    main()
