"""What a trial costs besides training: ours, stored and tracked, beside a plain Tune function trial.

Ours: cells with ``epochs: 0`` through the product's own Tune sweep on warm workers, each result written to
the store and to MLflow (SQLite). Theirs: a Tune function trainable that reports once, with Tune's defaults.
Both on the same private two-CPU cluster in one run; the time is wall time over trials, so that what both
sides share (two trials at once) is in both figures. The no-op trial's own work (building the network, two
evaluations, d_repr, attacks) is printed too and taken off, since it is not overhead. What the driver's
resident memory grows by per trial is seen over the long sweep (``--trials 2000``), between the result a tenth
of the way and the last. With ``--dashboard`` the first tasks have names, for each of which Ray keeps series.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from orchestrator.planning.paths import RootPaths
from orchestrator.planning.plan import SweepPlan, plan_sweep
from orchestrator.results.mlflow_pages import Page
from orchestrator.results.mlflow_tracker import MLflowTracker, connector
from orchestrator.results.state import StoredResults
from orchestrator.running.cluster import Cluster, Resources, connect
from orchestrator.running.progress import Progress
from search_spaces.specs import NetworkSpec, SubsetSpec
from search_spaces.sweeps import SweepSpec
from tasks.prepared.subsets import TrialData

TARGET_S = 0.1


def make_plan(num_trials: int, seed: int) -> SweepPlan:
    """Return a plan of no-op trials."""
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
    trials = tuple(trial.model_copy(update={"network": _untrained(trial.network)}) for trial in plan.trials)
    return SweepPlan(plan.sweep, trials, plan.measures, plan.datasets)


def _untrained(network: NetworkSpec) -> NetworkSpec:
    return network.model_copy(update={"recipe": network.recipe.model_copy(update={"epochs": 0})})


def load(subset: SubsetSpec, train_size: int) -> TrialData:
    """Return random images."""
    rng = np.random.default_rng(0)
    train, test = (rng.integers(0, 256, (n, 1, 8, 8), np.uint8) for n in (40, 20))
    return TrialData(train, np.arange(40) % 2, test, np.arange(20) % 2, 2, "benchmark")


class MemoryLog(Progress):
    """Notes the driver's resident memory whenever a trial is done."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: list[int] = []

    def trial_finished(self, trial_id: str, status: str) -> None:
        """A trial has its result."""
        super().trial_finished(trial_id, status)
        self.bytes.append(psutil.Process().memory_info().rss)

    @property
    def growth(self) -> float:
        """Bytes per trial."""
        first = len(self.bytes) // 10
        return (self.bytes[-1] - self.bytes[first]) / max(1, len(self.bytes) - 1 - first)


def ours(cluster: Cluster, folder: Path, num_trials: int) -> dict[str, float]:
    """Return seconds per trial through the product, what of it the trial itself worked, and memory."""
    from orchestrator.running.trials import GridWork, Run, Trials

    paths = RootPaths.create(folder)
    stored = StoredResults.read(str(folder / "store"))
    tracker = MLflowTracker(connector(f"sqlite:///{folder / 'mlflow.db'}"), Page("overhead"))

    def sweep(seed: int, count: int, monitor: Progress) -> float:
        plan = make_plan(count, seed)
        started = time.perf_counter()
        run = Run(plan, paths, cluster, Resources(1, 0), stored, tracker, monitor)
        Trials(run, GridWork(run, plan.trials, load)).run()
        tracker.flush()
        return time.perf_counter() - started

    few = max(8, num_trials // 8)
    sweep(0, few, Progress())  # imports and first workers
    # The start of a Tune experiment and its workers is paid once per sweep, not per trial: take the slope.
    memory = MemoryLog()
    short, long = sweep(1_000, few, Progress()), sweep(10_000, num_trials + few, memory)
    tracker.close("FINISHED")
    records = stored.trials.values()
    work = float(np.median([record.finished_at - record.started_at for record in records]))
    wall = (long - short) / num_trials
    return {
        "wall_s": wall,
        "work_s": work,
        "overhead_s": max(0.0, wall - work / cluster.num_cpus),
        "driver_bytes_per_trial": memory.growth,
    }


def theirs(folder: Path, num_trials: int) -> float:
    """Return seconds per trial of a plain Tune function trial."""
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


def main() -> None:
    """Run both sides and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--plain-trials", type=int, default=10)
    parser.add_argument("--dashboard", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, connect(num_cpus=2, dashboard=options.dashboard) as cluster:
        folder = Path(name)
        mine = ours(cluster, folder, options.trials)
        plain = theirs(folder, options.plain_trials)
    result = {
        "name": "trial_overhead",
        "ours": mine["overhead_s"],
        "ours_detail": mine,
        "theirs": {"plain Tune function trial": plain},
        "ratio": mine["overhead_s"] / plain,
        "target_s": TARGET_S,
        "trials": options.trials,
        "dashboard": options.dashboard,
        "environment": {
            "cpus": os.cpu_count(),
            "load_average": os.getloadavg()[0],
            "machine": platform.machine(),
            "python": platform.python_version(),
        },
    }
    if options.json:
        print(json.dumps(result))
        return
    print(f"ours, per trial:   {mine['overhead_s']:.3f} s overhead (target {TARGET_S} s)")
    print(f"  wall {mine['wall_s']:.3f} s with 2 trials at once, a no-op trial works {mine['work_s']:.3f} s")
    print(f"driver's memory:   {mine['driver_bytes_per_trial'] / 1e3:.1f} kB per trial (target 20)")
    print(f"plain Tune trial:  {plain:.3f} s")
    print(f"ratio:             {result['ratio']:.3f}")


if __name__ == "__main__":
    main()
