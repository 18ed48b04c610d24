"""Costs of a sweep besides training: of one trial, and of commands on many results."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from harness import Result, run

from orchestrator.machine.cluster import Cluster, Resources, connect
from orchestrator.planning.paths import RootPaths
from orchestrator.planning.plan import SweepPlan, plan_sweep
from orchestrator.planning.workspace import Workspace
from orchestrator.results.mlflow_connection import connect as connect_mlflow
from orchestrator.results.mlflow_pages import Page
from orchestrator.results.mlflow_runs import SweepRuns
from orchestrator.results.outlines import OutlineIndex
from orchestrator.results.records import Provenance, TrialRecord
from orchestrator.results.store import ResultStore
from orchestrator.results.stored_results import StoredResults
from orchestrator.results.tracking import Tracker
from orchestrator.running.progress import Progress
from orchestrator.running.trial_source import RunContext, SweepTrials
from orchestrator.running.trials import TrialLoop
from search_spaces.fingerprint import fingerprint
from search_spaces.specs import NetworkSpec, SubsetSpec
from search_spaces.sweeps import SweepSpec
from tasks.measures.estimators import IntrinsicDimension
from tasks.prepared.subsets import TrialData
from tasks.trials.records import AttackRecord, EpochRecord, NetworkScores, TrialResult, TrialStatus

TARGET_S = 0.1


def make_plan(num_trials: int, seed: int) -> SweepPlan:
    """Return a plan of trials without work."""
    fields = {
        "name": "overhead",
        "models": ("small_mlp",),
        "datasets": ({"name": "mri_lesion"},),
        "train_sizes": (40,),
        "test_size": 20,
        "image_size": 8,
        "seeds": tuple(range(seed, seed + num_trials)),
        "recipe": "smoke",
        "attacks": {"epsilons": (1.0,)},
    }
    plan = plan_sweep(SweepSpec.model_validate(fields))
    trials = tuple(
        trial.model_copy(update={"network": _untrained(trial.network)}) for trial in plan.trials
    )
    return SweepPlan(plan.sweep, trials, plan.measures, plan.datasets)


def _untrained(network: NetworkSpec) -> NetworkSpec:
    return network.model_copy(update={"recipe": network.recipe.model_copy(update={"epochs": 0})})


def load(subset: SubsetSpec, train_size: int) -> TrialData:
    """Return random images."""
    rng = np.random.default_rng(0)
    train, test = (rng.integers(0, 256, (n, 1, 8, 8), np.uint8) for n in (40, 20))
    return TrialData(train, np.arange(40) % 2, test, np.arange(20) % 2, 2, "benchmark")


class MemoryLog(Progress):
    """A monitor that stores the driver's resident memory after each trial."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: list[int] = []

    def trial_finished(self, trial_id: str, status: str) -> None:
        """Store the memory after a trial."""
        super().trial_finished(trial_id, status)
        self.bytes.append(psutil.Process().memory_info().rss)

    @property
    def growth(self) -> float:
        """Return the growth of memory in bytes per trial."""
        first = len(self.bytes) // 10
        return (self.bytes[-1] - self.bytes[first]) / max(1, len(self.bytes) - 1 - first)


def drive(
    plan: SweepPlan, cluster: Cluster, folder: Path, tracker: Tracker, monitor: Progress
) -> float:
    """Return the seconds of a sweep of trials without work."""
    paths, stored = RootPaths.at(folder).make(), StoredResults.read(str(folder / "store"))
    start = time.perf_counter()
    run = RunContext(plan, paths, cluster, Resources(1, 0), stored, tracker, monitor)
    TrialLoop(run, SweepTrials(run, plan.trials, load)).run()
    tracker.flush()
    return time.perf_counter() - start


def overhead(*, trials: int = 100, plain_trials: int = 10, dashboard: bool = False) -> Result:
    """Measure the cost of a trial besides training, against a plain Tune function trial.

    Ours are trials with ``epochs: 0`` in the product's own sweep on warm workers. Each result is
    written to the store and to MLflow (SQLite). Theirs is a Tune function trainable that reports
    once, with Tune's defaults. Both run on the same private cluster of two CPUs. The time is wall
    time divided by the number of trials. The trial's own work (network, two evaluations, d_repr,
    attacks) is subtracted. The growth of the driver's memory per trial is measured over the long
    sweep (``--trials 2000``), between the result after a tenth of the trials and the last. With
    ``dashboard``, the first tasks have names, and Ray stores series for each name.
    """
    with tempfile.TemporaryDirectory() as name, connect(num_cpus=2, dashboard=dashboard) as cluster:
        folder, num_few, memory = Path(name), max(8, trials // 8), MemoryLog()
        uri = f"sqlite:///{folder / 'mlflow.db'}"
        tracker = Tracker(lambda: SweepRuns(connect_mlflow(uri), Page("overhead"), None, None))
        drive(
            make_plan(num_few, 0), cluster, folder, tracker, Progress()
        )  # imports and first workers
        # The start of a Tune experiment and its workers is paid once per sweep, not per trial: the
        # slope.
        short = drive(make_plan(num_few, 1_000), cluster, folder, tracker, Progress())
        long = drive(make_plan(trials + num_few, 10_000), cluster, folder, tracker, memory)
        tracker.close("FINISHED")
        records = StoredResults.read(str(folder / "store")).trials.values()
        work = float(np.median([record.finished_at - record.started_at for record in records]))
        wall = (long - short) / trials
        plain = plain_tune(folder, plain_trials)
    ours = max(0.0, wall - work / 2)
    grown = {
        "wall_s": wall,
        "work_s": work,
        "overhead_s": ours,
        "driver_bytes_per_trial": memory.growth,
    }
    return {
        "ours": ours,
        "theirs": {"plain Tune function trial": plain},
        "ratio": ours / plain,
        "ours_detail": grown,
        "target_s": TARGET_S,
        "trials": trials,
        "dashboard": dashboard,
    }


def plain_tune(folder: Path, num_trials: int) -> float:
    """Return the seconds per trial of a plain Tune function trial."""
    from ray import tune

    def trial(config: dict[str, Any]) -> None:
        tune.report({"loss": 0.0})

    started = time.perf_counter()
    tune.Tuner(
        tune.with_resources(trial, {"cpu": 1}),
        param_space={"seed": tune.grid_search(list(range(num_trials)))},
        run_config=tune.RunConfig(storage_path=str(folder / "plain"), verbose=0),
    ).fit()
    return (time.perf_counter() - started) / num_trials


MEASURED = """
import json, resource, sys, time
began = time.perf_counter()
from orchestrator.cli import entry
try:
    entry()
except SystemExit as end:
    code = end.code
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
seconds = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time()}
print(json.dumps({"code": code, **seconds, "bytes": peak}), file=sys.stderr)
"""


def sweep_file(folder: Path, num_cells: int) -> str:
    """Write a sweep with ``num_cells`` trials, and return its path."""
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
    """Return a result with as many numbers as a trial of the paper's grid."""
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
    estimates = {
        name: IntrinsicDimension(name, 4.5, 0.25, 40, 20, "k-2") for name in ("mle", "twonn")
    }
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
        d_repr=estimates,
        attacks=tuple(attacks),
        history=tuple(history),
    )


def fill(sweep: str, root: Path) -> None:
    """Store a result for every trial."""
    workspace = Workspace.open(sweep, str(root))
    workspace.paths.make()
    workspace.write_sweep_file()
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
        plain = record.plain()
        path.write_text(
            json.dumps({"sha256": fingerprint(plain), "record": plain}), encoding="utf-8"
        )


def command(*words: str) -> dict[str, Any]:
    """Run an ``isweep`` command in its own process.

    Returns its seconds, peak bytes and exit code.
    """
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *words, "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    outcome: dict[str, Any] = json.loads(done.stderr.splitlines()[-1])
    if outcome["code"] != 0:
        raise RuntimeError(done.stderr)
    document = json.loads(done.stdout)
    outcome["done"] = document.get(
        "done", sum(row["status"] == "done" for row in document.get("trials", ()))
    )
    return outcome


def looks(*, cells: int = 50_000) -> Result:
    """Time `isweep status` and `isweep plan` over a store of many results.

    Both are timed with and without the index. The first command reads every record, as all commands
    did before there was an index. Later commands use the index. The records are as large as those
    of the paper's grid, and have checksums of the product.
    """
    with tempfile.TemporaryDirectory(prefix="isweep-look-") as folder:
        root, sweep = Path(folder, "root"), sweep_file(Path(folder), cells)
        index = root / "sweeps" / "many" / "index.sqlite"
        fill(sweep, root)
        index.unlink(missing_ok=True)
        places = (sweep, "--root", str(root))
        first = command("status", *places)
        later = {name: command(name, *places) for name in ("status", "plan")}
        began = time.perf_counter()
        num_known = len(OutlineIndex(index).read())
        return {
            "ours": later,
            "theirs": {"every record read": first},
            "ratio": first["seconds"] / later["status"]["seconds"],
            "cells": cells,
            "index_bytes": index.stat().st_size,
            "index_known": num_known,
            "index_seconds": time.perf_counter() - began,
        }


if __name__ == "__main__":
    run(overhead, looks)
