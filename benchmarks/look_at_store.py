"""How long `isweep status` and `isweep plan` take over a store of many results, with and without its index.

Both sides in one run: a first look that reads every record, as every look did before there was an index, and
the looks after it. The records are as large as those of the paper's grid, and are sealed by the product.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measure_common import environment

from orchestrator.planning.plan import Workspace
from orchestrator.results.index import Index
from orchestrator.results.records import Provenance, TrialRecord
from orchestrator.results.store import ResultStore
from tasks.measures.estimators import IntrinsicDimension
from tasks.trials.records import AttackRecord, EpochRecord, NetworkScores, TrialResult, TrialStatus

MEASURED = """
import json, resource, sys, time
began = time.perf_counter()
from orchestrator.cli.app import entry
try:
    entry()
except SystemExit as end:
    code = end.code
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
seconds = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time()}
print(json.dumps({"code": code, **seconds, "bytes": peak}), file=sys.stderr)
"""


def sweep_file(folder: Path, num_cells: int) -> str:
    """Write a sweep of ``num_cells`` cells; returns its path."""
    document = {
        "name": "many",
        "models": ["small_mlp", "resnet18"],
        "datasets": ["manifold_d4"],
        "train_sizes": [40, 60, 80, 100, 120],
        "seeds": list(range(num_cells // 10)),
        "test_size": 40,
        "image_size": 16,
        "recipe": "smoke",
    }
    path = folder / "many.yaml"
    path.write_text(json.dumps(document), encoding="utf-8")
    return str(path)


def result(seed: int) -> TrialResult:
    """Return a result with as many numbers as a trial of the paper's grid has."""
    attacks = [
        AttackRecord(
            method="fgsm",
            epsilon=epsilon,
            loss=1.5,
            loss_gain=1.0,
            accuracy=0.5,
            accuracy_drop=0.25,
            robust_accuracy=0.5,
            num_unchanged=0,
        )
        for epsilon in (1.0, 2.0, 4.0, 8.0)
    ]
    found = {name: IntrinsicDimension(name, 4.5, 0.25, 40, 20, "k-2") for name in ("mle", "twonn")}
    scores = NetworkScores(
        num_parameters=10, train_loss=0.25, train_accuracy=0.875, test_loss=0.5, test_accuracy=0.75
    )
    history = [EpochRecord(epoch, 0.5, 0.75, 0.1) for epoch in range(1, 21)]
    return TrialResult(
        status=TrialStatus.DONE,
        seed=seed,
        device="cpu",
        num_threads=1,
        scores=scores,
        d_repr=found,
        attacks=tuple(attacks),
        history=tuple(history),
    )


def fill(sweep: str, root: Path) -> None:
    """Store a result for every cell."""
    workspace = Workspace.open(sweep, str(root))
    workspace.paths.make()
    workspace.record()
    store = ResultStore(workspace.results_url)
    for trial_id, spec in workspace.plan.trials_by_id.items():
        record = TrialRecord(
            trial_id=trial_id,
            sweep="many",
            spec=spec,
            domain="natural",
            data_fingerprint="f",
            attempt=1,
            started_at=1000.0,
            finished_at=1002.5,
            provenance=Provenance(packages={"torch": "2", "ray": "2"}),
            result=result(spec.network.seed),
        )
        path = Path(store._path(record.folder, trial_id, record.file))
        path.parent.mkdir(parents=True)
        # As the store seals it, without waiting for the disk 50,000 times.
        path.write_bytes(store.sealed(record))


def command(*words: str) -> dict[str, Any]:
    """Run a command of ``isweep`` in a process of its own; returns its seconds, peak bytes and exit code."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *words, "--json"], capture_output=True, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stderr.splitlines()[-1])
    if found["code"] != 0:
        raise RuntimeError(done.stderr)
    document = json.loads(done.stdout)
    found["done"] = document.get("done", sum(row["status"] == "done" for row in document.get("trials", ())))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=50_000)
    parser.add_argument("--filled", type=Path, help="folder of a store; filled where it is empty, and kept")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    folder = arguments.filled or Path(tempfile.mkdtemp(prefix="isweep-look-"))
    folder.mkdir(exist_ok=True)
    try:
        root, sweep = folder / "root", sweep_file(folder, arguments.cells)
        index = root / "sweeps" / "many" / "index.sqlite"
        if not root.exists():
            fill(sweep, root)
        index.unlink(missing_ok=True)
        places = (sweep, "--root", str(root))
        first = command("status", *places)
        looks = {name: command(name, *places) for name in ("status", "plan")}
        began = time.perf_counter()
        known = len(Index(index).read())
        document = {
            "name": "look_at_store",
            "cells": arguments.cells,
            "index_bytes": index.stat().st_size,
            "index_known": known,
            "index_seconds": time.perf_counter() - began,
            "ours": looks,
            "theirs": {"every record read": first},
            "ratio": first["seconds"] / looks["status"]["seconds"],
            "load": os.getloadavg()[0],
            "environment": environment(),
        }
    finally:
        if arguments.filled is None:
            shutil.rmtree(folder)
    if arguments.json:
        print(json.dumps(document, indent=1))
        return
    for name, found in (("first status", first), *looks.items()):
        used = (
            f"{found['seconds']:7.2f} s ({found['cpu_seconds']:.2f} s CPU)  {found['bytes'] / 2**20:.0f} MiB"
        )
        print(f"{name:14} {used}  {found['done']} done")


if __name__ == "__main__":
    main()
