"""Kills a search's driver by SIGKILL at moments given, each time begun again; run in namespaces of
its own.

Prints one JSON object: what was stored and tracked after each start, and what a search asked for
and chose that nobody killed, in a root beside.

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
    """Return when each stored trial began, read without the product's own reader."""
    folder = root / "sweeps" / "searched" / "search" / "trials"
    return {
        path.parent.name: json.loads(path.read_text(encoding="utf-8"))["record"]["started_at"]
        for path in folder.glob("*/search.json")
    }


def asked(root: Path) -> list[list[Any]]:
    """Return the trials that were asked for, in order, each with why and its point."""
    folder = root / "sweeps" / "searched" / "search" / "trials"
    found = [
        json.loads(path.read_text(encoding="utf-8"))["record"]
        for path in folder.glob("*/asked.json")
    ]
    names = ("learning_rate", "weight_decay", "batch_size")
    return [
        [one["trial_id"], one["role"], *(one["spec"]["network"]["recipe"][name] for name in names)]
        for one in sorted(found, key=lambda one: one["number"])
    ]


def recipe(root: Path) -> str:
    """Return the recipe that was written."""
    return (root / "recipes" / "tuned-searched.yaml").read_text(encoding="utf-8")


def search(sweep: str, root: Path, cpus: str, until: int | None = None) -> dict[str, Any]:
    """Search until ``until`` trials are stored, then kill the recorded process; None lets it
    end."""
    driver = subprocess.Popen(
        command("tune", sweep, "--root", str(root), "--no-dashboard", "--num-cpus", cpus),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    if until is not None:
        while driver.poll() is None and len(stored(root)) < until:
            time.sleep(0.005)
        os.kill(driver.pid, signal.SIGKILL)
    out, err = driver.communicate()
    return {
        "exit": driver.returncode,
        "stdout": out,
        "stderr": err[-2000:],
        "stored": stored(root),
        "asked": asked(root),
    }


def tracked(root: Path) -> dict[str, Any]:
    """Return the states of each trial's MLflow runs, and those of the search's own."""
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
    beside = root.with_name(f"{root.name}-unbroken")
    starts = [search(sweep, root, cpus, until) for until in (*map(int, moments), None)]
    found = {"starts": starts, "tracked": tracked(root), "recipe": recipe(root)}
    unbroken = search(sweep, beside, cpus)
    print(json.dumps({**found, "unbroken": {**unbroken, "recipe": recipe(beside)}}))


if __name__ == "__main__":
    main(*sys.argv[1:])
