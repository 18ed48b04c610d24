"""Trials beside each other on GPUs: what an order costs, and whether they run as planned."""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import ray
from harness import Found, run
from ray.cluster_utils import Cluster as RayCluster
from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put

from orchestrator.planning.estimate import (
    LOOK_AHEAD,
    Expectation,
    Job,
    Replay,
    expected_seconds,
    longest_first,
    on_gpus,
    order_trials,
    replay,
)
from orchestrator.planning.paths import RootPaths
from orchestrator.planning.plan import SweepPlan, plan_sweep
from orchestrator.planning.predict import EAGER_INTERVAL_S, GPU_MODELS, GpuModel, gpu_model, need_of
from orchestrator.planning.sweep_file import load_sweep
from orchestrator.results.state import StoredResults
from orchestrator.results.store import CellReport
from orchestrator.results.tracking import Tracker
from orchestrator.running.cluster import Resources, connect
from orchestrator.running.gpus import LOGICAL_GPUS
from orchestrator.running.progress import Progress
from orchestrator.running.queue import TuneExecution
from orchestrator.running.trials import GridWork, Run, Trials
from orchestrator.running.worker import TrialTrainable
from search_spaces.specs import TrialSpec
from search_spaces.sweeps import SweepSpec
from tasks.prepared.subsets import TrialData
from tasks.trials.records import NetworkScores, TrialResult, TrialStatus

NUM_GPUS = (1, 8, 64, 512)
NUM_WAVES = 6


def order(*, preset: str = "paper", gpu: str = "h100") -> Found:
    """How long a grid takes, in replayed minutes: longest first against the order of the plan and waves.

    All orders are replayed on the same predicted costs and shares, so what differs is the order alone; the
    lower bound is what no order can beat. Waves: groups of whole datasets, each waiting for the last trial of
    the one before. Then the hours of the whole grid on one GPU of each model that has bfloat16. No GPU was
    measured.
    """
    rows = replayed(preset, gpu)
    study = next(row for row in rows if row["num_gpus"] == 64)
    sides = {name: study[name] for name in ("ours", "theirs", "ratio")}
    return {**sides, "preset": preset, "gpu": gpu, "rows": rows, "hours": hours(preset)}


def replayed(preset: str, kind: str) -> list[dict[str, Any]]:
    gpu, trials = gpu_model(kind), plan_sweep(load_sweep(preset)).trials
    jobs = jobs_on(trials, gpu)
    size = -(-len(jobs) // NUM_WAVES)
    waves = [jobs[start : start + size] for start in range(0, len(jobs), size)]
    rows = []
    for number in NUM_GPUS:
        ours, planned = replay(longest_first(jobs), number), replay(jobs, number)
        in_waves = sum(replay(wave, number).makespan for wave in waves)
        hours = number * ours.makespan / 3600
        rows.append(
            {
                "num_gpus": number,
                "ours": ours.makespan / 60,
                "theirs": {"order of the plan": planned.makespan / 60, "six waves": in_waves / 60},
                "lower_bound": ours.lower_bound / 60,
                "ratio": planned.makespan / ours.makespan,
                "over_lower_bound": ours.makespan / ours.lower_bound,
                "utilisation": ours.utilisation,
                "dollars": hours * gpu.price,
                "kilowatt_hours": hours * gpu.watts / 1000,
            }
        )
    return rows


def hours(preset: str) -> list[dict[str, Any]]:
    """Predict the grid's hours on one GPU: one trial at a time, sharing it, and by plain steps."""
    trials = plan_sweep(load_sweep(preset)).trials
    rows = []
    for gpu in (gpu for gpu in GPU_MODELS.values() if gpu.bfloat16):
        row: dict[str, Any] = {"gpu": gpu.name, "one at a time": on_gpus(trials, gpu, 1, share=1.0)["hours"]}
        row["sharing, under MPS"] = on_gpus(trials, gpu, 1)["hours"]
        with mock.patch("orchestrator.planning.predict.GRAPH_INTERVAL_S", EAGER_INTERVAL_S):
            row["plain steps, one at a time"] = on_gpus(trials, gpu, 1, share=1.0)["hours"]
        rows.append(row)
    return rows


def jobs_on(trials: Iterable[TrialSpec], gpu: GpuModel) -> list[Job]:
    needs = [(trial.trial_id, need_of(trial, gpu)) for trial in trials]
    return [Job(trial_id, need.seconds, need.share) for trial_id, need in needs]


SMALL_GPU = replace(GPU_MODELS["h100"], memory_gib=12)
"""So small that memory, not work, decides the share of a VGG."""
GPUS_OF_NODES = (1, 2, 1)
PATIENCE_S = 120
MODELS = ("small_cnn", "resnet18", "resnet50", "vgg13", "vgg19")
SCORES = NetworkScores(num_parameters=1, train_loss=0.5, train_accuracy=1.0, test_loss=0.5, test_accuracy=1.0)
GpuPlace = tuple[str, str]
"""A node's id and the GPU's number on it."""


class Idle(TrialTrainable):
    """Tells node and GPUs, and lasts until the clock says that it ends."""

    def _run(self, started_at: float) -> CellReport:
        name, context = self.cell["trial_id"], ray.get_runtime_context()
        where = [context.get_node_id(), context.get_accelerator_ids()["GPU"]]
        _internal_kv_put(f"begun {name}", json.dumps(where).encode())
        while not _internal_kv_get(f"ends {name}"):
            time.sleep(0.05)
        result = TrialResult(status=TrialStatus.DONE, seed=0, device="cpu", num_threads=1, scores=SCORES)
        return CellReport(
            started_at=started_at, finished_at=time.time(), outcome=result, gpu_share=self.cell["num_gpus"]
        )


class Clock(threading.Thread):
    """Time that passes only when nothing that is offered could begin.

    Attributes:
        now: seconds of the plan.
        starts: when each trial began.
        most_at_once: trials that ran together.
        fullest_gpu: largest sum of shares on one GPU.
        most_gpus: of one trial.
        lost: what should have begun and did not, in words.
    """

    def __init__(self, jobs: list[Job], num_gpus: int) -> None:
        super().__init__(daemon=True)
        self._waiting, self._num_gpus = list(jobs), num_gpus
        self._running: dict[str, tuple[Job, GpuPlace]] = {}
        self.now = self.fullest_gpu = 0.0
        self.starts: dict[str, float] = {}
        self.most_at_once = self.most_gpus = 0
        self.lost: list[str] = []

    def run(self) -> None:
        """Go on until all trials have ended."""
        while self._waiting or self._running:
            self._settle()
            self._advance()

    def _settle(self) -> None:
        # Before the first trial, Ray itself starts.
        patience = time.monotonic() + PATIENCE_S * (1 if self.starts else 5)
        while job := self._could_begin():
            if self._look():
                patience = time.monotonic() + PATIENCE_S
            elif time.monotonic() > patience:
                self.lost.append(f"{job.name} with share {job.share:g} at {self.now:.2f} s")
                break
            time.sleep(0.1)
        self.most_at_once = max(self.most_at_once, len(self._running))

    def _could_begin(self) -> Job | None:
        used: dict[GpuPlace, float] = {}
        for job, gpu in self._running.values():
            used[gpu] = used.get(gpu, 0.0) + job.share
        self.fullest_gpu = max(self.fullest_gpu, *used.values(), 0.0)
        room = 1.0 if len(used) < self._num_gpus else 1.0 - min(used.values())
        return next((job for job in self._waiting[:LOOK_AHEAD] if job.share <= room + 1e-9), None)

    def _look(self) -> bool:
        """Note what has begun since the last look."""
        begun = {}
        for job in self._waiting:
            told = _internal_kv_get(f"begun {job.name}")
            if told:
                node, gpus = json.loads(told)
                self.most_gpus = max(self.most_gpus, len(gpus))
                begun[job.name] = (job, (node, gpus[0]))
        self.starts |= dict.fromkeys(begun, self.now)
        self._running |= begun
        self._waiting = [job for job in self._waiting if job.name not in begun]
        return bool(begun)

    def _advance(self) -> None:
        """Go to the next end."""
        ends = {name: self.starts[name] + job.seconds for name, (job, _) in self._running.items()}
        if not ends:
            return
        self.now = min(ends.values())
        for name in [name for name, end in ends.items() if end <= self.now + 1e-9]:
            del self._running[name]
            _internal_kv_put(f"ends {name}", b"1")


def make_plan() -> SweepPlan:
    fields = {
        "name": "packing",
        "models": MODELS,
        "datasets": ({"name": "mri_lesion"},),
        "train_sizes": (500, 1750),
        "seeds": (0, 1, 2),
        "test_size": 100,
        "image_size": 224,
        "recipe": "paper",
    }
    return plan_sweep(SweepSpec.model_validate(fields))


def run_beside(plan: SweepPlan, address: str, root: Path, clock: Clock) -> None:
    images, labels = np.zeros((2000, 1, 2, 2), np.uint8), np.arange(2000, dtype=np.int64) % 2
    with connect(address) as cluster:
        clock.start()
        run = Run(
            plan=plan,
            cluster=cluster,
            resources=Resources(1, 0.25),
            paths=RootPaths.create(root),
            stored=StoredResults.read(str(root / "store")),
            tracker=Tracker(),
            monitor=Progress(),
            expectation=Expectation(SMALL_GPU),
        )
        data = TrialData(images, labels, images, labels, 2, "f")
        work = GridWork(run, plan.trials, lambda subset, size: data)
        Trials(run, work, TuneExecution(run, work, Idle)).run()
        clock.join(PATIENCE_S)


def judge(clock: Clock, planned: Replay, jobs: list[Job]) -> dict[str, Any]:
    first, expected = (
        {n for n, at in starts.items() if at == 0} for starts in (clock.starts, planned.starts)
    )
    as_planned = sum(abs(clock.starts[name] - at) < 1e-6 for name, at in planned.starts.items())
    return {
        "trials": len(clock.starts),
        "shares": dict(sorted(Counter(job.share for job in jobs).items())),
        "most_at_once": {"planned": planned.most_at_once, "seen": clock.most_at_once},
        "first_together": {"planned": len(expected), "seen": len(first), "the_same": first == expected},
        "begun_as_planned": as_planned,
        "lost_slots": clock.lost,
        "gpus_of_a_trial": clock.most_gpus,
        "fullest_gpu": clock.fullest_gpu,
        "makespan_s": {"planned": planned.makespan, "seen": clock.now},
    }


def logical() -> Found:
    """Whether trials run beside each other as planned: predicted shares on logical GPUs of several nodes.

    A cluster of a head without GPUs and nodes with one and two logical ones gets trials of several networks,
    each with the share that it is predicted to need of a small GPU. Trials compute nothing: each lasts as
    long as predicted by a clock that stands still while anything that is offered could still begin, so that
    starting processes takes no time. What should fit and does not begin within two minutes is a lost slot.
    Seen is where and when each ran; theirs is the replay of the same trials on as many GPUs.
    """
    plan = make_plan()
    expected = expected_seconds(plan.trials, Expectation(SMALL_GPU))
    jobs = jobs_on(order_trials(plan, plan.trials, 1e12, expected), SMALL_GPU)
    num_gpus = sum(GPUS_OF_NODES)
    planned, clock = replay(jobs, num_gpus), Clock(jobs, num_gpus)
    os.environ[LOGICAL_GPUS] = "1"
    small = {"object_store_memory": 100 * 2**20}
    nodes = RayCluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, **small}
    )
    try:
        for gpus in GPUS_OF_NODES:
            nodes.add_node(num_cpus=8 * gpus, num_gpus=gpus, **small)
        with tempfile.TemporaryDirectory() as root:
            started = time.monotonic()
            run_beside(plan, nodes.address, Path(root), clock)
            found = judge(clock, planned, jobs) | {"wall_s": time.monotonic() - started}
    finally:
        nodes.shutdown()
    seconds = found["makespan_s"]
    sides = {"ours": seconds["seen"], "theirs": {"replayed plan": seconds["planned"]}}
    return {**sides, "ratio": seconds["seen"] / seconds["planned"], "gpus_of_nodes": GPUS_OF_NODES, **found}


if __name__ == "__main__":
    run(order, logical)
