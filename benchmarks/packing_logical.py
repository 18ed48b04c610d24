"""Whether trials run beside each other as the plan says: predicted shares on logical GPUs of several nodes.

A cluster of a head without cards and nodes with one and two logical GPUs gets trials of several networks,
each with the share that it is predicted to need of a small card. Trials compute nothing: the first ones wait
for all that the plan has begun at once, then each lasts as long as predicted, shrunk. Seen is where and when
each ran; the plan is the replay of the same trials on as many cards.

    python benchmarks/packing_logical.py [--json] [--seconds 20]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.cluster_utils import Cluster as RayCluster
from ray.experimental.internal_kv import _internal_kv_list, _internal_kv_put

from orchestrator.planning.cards import CARDS
from orchestrator.planning.measured import Expectation
from orchestrator.planning.order import order_trials
from orchestrator.planning.packing import jobs_on
from orchestrator.planning.paths import RootPaths
from orchestrator.planning.plan import SweepPlan, plan_sweep
from orchestrator.planning.simulate import Job, Replay, replay
from orchestrator.results.records import CellReport, TrialRecord
from orchestrator.results.state import StoredResults
from orchestrator.results.tracking.tracker import NoopTracker
from orchestrator.running.cluster import Resources, connect
from orchestrator.running.devices import LOGICAL_GPUS
from orchestrator.running.progress import Progress
from orchestrator.running.sweep import TrialSweep
from orchestrator.running.trainable import TrialTrainable
from search_spaces.sweeps import SweepSpec
from tasks.prepared.subsets import TrialData
from tasks.trials.result import NetworkScores, TrialResult, TrialStatus

CARD = replace(CARDS["h100"], memory_gib=12)
"""So small that memory, not work, decides the share of a VGG."""
CARDS_OF_NODES = (1, 2, 1)
BARRIER_S = 90
MODELS = ("small_cnn", "resnet18", "resnet50", "vgg13", "vgg19")
SCORES = NetworkScores(num_parameters=1, train_loss=0.5, train_accuracy=1.0, test_loss=0.5, test_accuracy=1.0)
WAIT_FOR, LASTS = "PACKING_WAIT_FOR", "PACKING_LASTS"


class Idle(TrialTrainable):
    """Notes node and cards, waits for those beside it, and lasts as long as its network is told to."""

    def _run(self, started_at: float) -> CellReport:
        _internal_kv_put(f"packing-{self._cell['trial_id']}", b"1")
        patience = time.monotonic() + BARRIER_S
        while len(_internal_kv_list("packing-")) < int(os.environ[WAIT_FOR]) and time.monotonic() < patience:
            time.sleep(0.05)
        begun = time.time()
        time.sleep(json.loads(os.environ[LASTS])[self._cell["trial_id"]])
        context = ray.get_runtime_context()
        where = json.dumps([context.get_node_id(), context.get_accelerator_ids()["GPU"]])
        result = TrialResult(
            status=TrialStatus.DONE, reason=where, seed=0, device="cpu", num_threads=1, scores=SCORES
        )
        return CellReport(
            started_at=begun, finished_at=time.time(), outcome=result, gpu_share=self._cell["num_gpus"]
        )


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


def run(plan: SweepPlan, address: str, root: Path) -> list[TrialRecord]:
    images, labels = np.zeros((2000, 1, 2, 2), np.uint8), np.arange(2000, dtype=np.int64) % 2
    with connect(address) as cluster:
        sweep = TrialSweep(
            plan=plan,
            cluster=cluster,
            resources=Resources(1, 0.25),
            paths=RootPaths.create(root),
            stored=StoredResults.read(str(root / "store")),
            tracker=NoopTracker(),
            monitor=Progress(),
            measures={},
            load=lambda subset, size: TrialData(images, labels, images, labels, 2, "f"),
            expectation=Expectation(CARD),
            trainable=Idle,
        )
        sweep.run(plan.trials, {})
        return list(sweep.stored.trials.values())


def most_at_once(records: list[TrialRecord]) -> int:
    moments = sorted((t, step) for r in records for t, step in ((r.started_at, 1), (r.finished_at, -1)))
    running = most = 0
    for _, step in moments:
        running += step
        most = max(most, running)
    return most


def fullest_card(records: list[TrialRecord]) -> float:
    """Return the largest sum of shares that any one card was given at any time."""
    most = 0.0
    for record in records:
        card, now = record.result.reason, record.started_at
        beside = (r for r in records if r.result.reason == card and r.started_at <= now < r.finished_at)
        most = max(most, sum(r.gpu_share for r in beside))
    return most


def judge(records: list[TrialRecord], planned: Replay, jobs: list[Job]) -> dict[str, Any]:
    first = min(record.finished_at for record in records)
    begun = {record.trial_id for record in records if record.started_at < first}
    makespan = max(r.finished_at for r in records) - min(r.started_at for r in records)
    return {
        "trials": len(records),
        "shares": dict(sorted(Counter(job.share for job in jobs).items())),
        "most_at_once": {"planned": planned.most_at_once, "seen": most_at_once(records)},
        "first_together": {
            "planned": sum(start == 0 for start in planned.starts.values()),
            "seen": len(begun),
            "the_same": begun == {name for name, start in planned.starts.items() if start == 0},
        },
        "cards_of_a_trial": max(len(json.loads(record.result.reason)[1]) for record in records),
        "fullest_card": fullest_card(records),
        "makespan_s": {"planned": planned.makespan, "seen": makespan},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seconds", type=float, default=20.0, help="that the plan shall take, shrunk")
    options = parser.parse_args()
    plan = make_plan()
    jobs = jobs_on(order_trials(plan, plan.trials, 1e12, Expectation(CARD)), CARD)
    num_cards = sum(CARDS_OF_NODES)
    factor = options.seconds / replay(jobs, num_cards).makespan
    jobs = [Job(job.name, job.seconds * factor, job.share) for job in jobs]
    planned = replay(jobs, num_cards)
    os.environ[LOGICAL_GPUS] = "1"
    os.environ[WAIT_FOR] = str(sum(start == 0 for start in planned.starts.values()))
    os.environ[LASTS] = json.dumps({job.name: job.seconds for job in jobs})
    small = {"object_store_memory": 100 * 2**20}
    nodes = RayCluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, **small}
    )
    try:
        for cards in CARDS_OF_NODES:
            nodes.add_node(num_cpus=8 * cards, num_gpus=cards, **small)
        with tempfile.TemporaryDirectory() as root:
            found = judge(run(plan, nodes.address, Path(root)), planned, jobs)
    finally:
        nodes.shutdown()
    seconds = found["makespan_s"]
    result = {
        "name": "packing_logical",
        "ours": seconds["seen"],
        "theirs": {"replayed plan": seconds["planned"]},
        "ratio": seconds["seen"] / seconds["planned"],
        "cards_of_nodes": CARDS_OF_NODES,
        **found,
        "environment": {
            "cores": os.cpu_count(),
            "load_average": os.getloadavg()[0],
            "python": platform.python_version(),
            "ray": ray.__version__,
        },
    }
    if options.json:
        print(json.dumps(result, indent=1))
        return
    for key, value in result.items():
        print(f"{key:<18} {value}")


if __name__ == "__main__":
    main()
