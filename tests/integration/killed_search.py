"""Kill a search's driver at given moments, and start the search again each time; run in namespaces.

The script prints one JSON object: the stored and tracked trials after each start, and the requests
and the recipe of a search in another root that is not killed.

    unshare ... python -m tests.integration.killed_search SWEEP ROOT CPUS 2 5 9
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.integration.sweeps import command

SEARCHED = """
name: searched
models: [small_mlp, small_cnn]
datasets: [manifold_d4]
train_sizes: [40, 80]
test_size: 40
image_size: 16
recipe: {from: smoke, epochs: 9}
resources: {num_cpus: 1, num_gpus: 0}
tune: {budget: 0.16, finalists: 1, seeds: 2}
"""


def stored(root: Path) -> dict[str, float]:
    """Return the start time of each stored trial, read without the product's reader."""
    folder = root / "sweeps" / "searched" / "search" / "trials"
    return {
        path.parent.name: json.loads(path.read_text(encoding="utf-8"))["record"]["started_at"]
        for path in folder.glob("*/search.json")
    }


def requested_trials(root: Path) -> list[list[Any]]:
    """Return the requested trials in order, each with its role and its point."""
    folder = root / "sweeps" / "searched" / "search" / "trials"
    records = [
        json.loads(path.read_text(encoding="utf-8"))["record"]
        for path in folder.glob("*/asked.json")
    ]
    names = ("learning_rate", "weight_decay", "batch_size")
    return [
        [
            record["trial_id"],
            record["role"],
            *(record["spec"]["network"]["recipe"][name] for name in names),
        ]
        for record in sorted(records, key=lambda record: record["number"])
    ]


def read_recipe(root: Path) -> str:
    """Return the text of the recipe that the search wrote."""
    return (root / "recipes" / "tuned-searched.yaml").read_text(encoding="utf-8")


def search(sweep: str, root: Path, cpus: str, num_trials: int | None = None) -> dict[str, Any]:
    """Search until ``num_trials`` trials are stored, then kill the driver.

    If ``num_trials`` is None, the search runs to its end.
    """
    driver = subprocess.Popen(
        command("tune", sweep, "--root", str(root), "--no-dashboard", "--num-cpus", cpus),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    if num_trials is not None:
        while driver.poll() is None and len(stored(root)) < num_trials:
            time.sleep(0.005)
        os.kill(driver.pid, signal.SIGKILL)
    stdout, stderr = driver.communicate()
    return {
        "exit": driver.returncode,
        "stdout": stdout,
        "stderr": stderr[-2000:],
        "stored": stored(root),
        "asked": requested_trials(root),
    }


def tracked(root: Path) -> dict[str, Any]:
    """Return the statuses of each trial's MLflow runs, and those of the search's own run."""
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{root / 'mlflow.db'}")
    runs = mlflow.search_runs(experiment_names=["isweep/searched-search"])
    trials = runs[runs["tags.kind"] == "trial"]
    return {
        "trials": trials.groupby("tags.trial_id")["status"].agg(list).to_dict(),
        "tags": sorted(trials["tags.status"].unique()),
        "sweep": runs[runs["tags.kind"] == "sweep"]["status"].tolist(),
    }


def main(sweep: str, folder: str, cpus: str, *moments: str) -> None:
    root = Path(folder)
    unbroken_root = root.with_name(f"{root.name}-unbroken")
    starts = [search(sweep, root, cpus, until) for until in (*map(int, moments), None)]
    report = {"starts": starts, "tracked": tracked(root), "recipe": read_recipe(root)}
    unbroken = search(sweep, unbroken_root, cpus)
    print(json.dumps({**report, "unbroken": {**unbroken, "recipe": read_recipe(unbroken_root)}}))


if __name__ == "__main__":
    main(*sys.argv[1:])
