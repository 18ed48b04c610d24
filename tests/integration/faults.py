"""Real faults while trials run: killed workers, a killed raylet, a memory hog; run in namespaces.

Each case runs trials that sleep, breaks something by a seeded schedule, and lets the sweep end. It
prints one JSON object: the history of faults, every reported failure, and the stored results.

    unshare ... python -m tests.integration.faults CASE ROOT ['{"argument": value}']
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import psutil
import ray
import torch
from ray.experimental.internal_kv import (
    _internal_kv_del,
    _internal_kv_get,
    _internal_kv_list,
    _internal_kv_put,
)

from orchestrator.machine.cluster import Cluster, Resources, connect
from orchestrator.planning.paths import RootPaths
from orchestrator.planning.plan import plan_sweep
from orchestrator.results.stored_results import StoredResults
from orchestrator.running.backend import TuneBackend
from orchestrator.running.messages import TrialReport
from orchestrator.running.progress import Progress
from orchestrator.running.trial_source import RunContext, SweepTrials
from orchestrator.running.trials import TrialLoop
from orchestrator.running.workers import trial_device
from orchestrator.running.workers.worker import TrialTrainable
from search_spaces.specs import SubsetSpec
from search_spaces.sweeps import SweepSpec
from tasks.prepared.subsets import TrialData
from tasks.trials.records import NetworkScores, TrialResult, TrialStatus
from tests.recorded_tracker import RecordedTracker

STORE_BYTES = 100 * 2**20
SCORES = NetworkScores(
    num_parameters=1, train_loss=0.5, train_accuracy=1.0, test_loss=0.5, test_accuracy=1.0
)
HOG_ID = "-n12-"
"""Part of the id of the trial whose first attempt takes memory until it is killed."""
THRESHOLD_HEADROOM = 0.18
HOG_MARGIN = 0.05
HOG_BYTES = 256 * 2**20


class Sleeper(TrialTrainable):
    """A trial that records where it runs, sleeps, and reports a result that depends on its id alone."""

    seconds = 1.0

    def _run(self, started_at: float) -> TrialReport:
        trial_id = self.assignment.trial_id
        is_first_attempt = not _internal_kv_put(f"seen {trial_id}", b"1", overwrite=False)
        node = ray.get_runtime_context().get_node_id()
        _internal_kv_put(f"pid {trial_id}", f"{os.getpid()} {node}".encode())
        if HOG_ID in trial_id and is_first_attempt and (threshold := os.environ.get("FAULTS_HOG")):
            pieces = []
            deadline = time.monotonic() + 180
            while time.monotonic() < deadline:
                # Other processes may free memory, and a busy machine is slow to provide pages.
                used_share = psutil.virtual_memory().percent / 100
                _internal_kv_put("hog", f"{len(pieces)} pieces, {used_share:.3f} used".encode())
                if used_share < float(threshold) + HOG_MARGIN:
                    pieces.append(np.ones(HOG_BYTES, np.uint8))
                time.sleep(0.1)
        time.sleep(float(_internal_kv_get(f"hold {node}") or self.seconds))
        _internal_kv_put(f"pid {trial_id}", b"")
        result = TrialResult(
            status=TrialStatus.DONE,
            reason=f"found {trial_id}",
            seed=0,
            device="cpu",
            num_threads=1,
            scores=SCORES,
        )
        return TrialReport(started_at=started_at, finished_at=time.time(), outcome=result)


def running_now() -> dict[int, str]:
    """Return the process ids and nodes that the running trials recorded."""
    places = [(_internal_kv_get(key) or b"").decode().split() for key in _internal_kv_list("pid ")]
    return {
        int(place[0]): place[1] for place in places if place and psutil.pid_exists(int(place[0]))
    }


def hold_all(seconds: float) -> None:
    """Let trials take this many seconds on every node that the cluster has now."""
    for node in ray.nodes():
        _internal_kv_put(f"hold {node['NodeID']}", str(seconds).encode())


def run_trials(
    cluster: Cluster,
    root: Path,
    sizes: range,
    name: str,
    trainable: type[TrialTrainable] = Sleeper,
    resources: Resources = Resources(1, 0),  # noqa: B008 (frozen)
) -> tuple[RunContext, Callable[[], None]]:
    """Return a sweep with a trial for each train size, and a function that runs the sweep."""
    for key in (*_internal_kv_list("seen "), *_internal_kv_list("pid ")):
        _internal_kv_del(key)
    sweep = SweepSpec.model_validate(
        {
            "name": name,
            "models": ("small_mlp",),
            "datasets": ({"name": "mri_lesion"},),
            "train_sizes": tuple(sizes),
            "test_size": 4,
            "image_size": 8,
            "recipe": "smoke",
        }
    )
    plan = plan_sweep(sweep)
    paths = RootPaths.at(root).make()
    images = np.zeros((200, 1, 8, 8), np.uint8)
    labels = np.arange(200, dtype=np.int64) % 2
    run = RunContext(
        plan=plan,
        cluster=cluster,
        resources=resources,
        paths=paths,
        stored=StoredResults.read(str(paths.sweep(name).folder)),
        tracker=RecordedTracker(),
        monitor=Progress(),
    )

    def load(subset: SubsetSpec, size: int) -> TrialData:
        return TrialData(images, labels, images[:4], labels[:4], 2, "f")

    source = SweepTrials(run, plan.trials, load)
    return run, lambda: TrialLoop(run, source, TuneBackend(run, source, trainable)).run()


def outcome(trials: RunContext, history: list[Any], started: float) -> dict[str, Any]:
    """Read the store again after the sweep, and return the case's report."""
    reread = StoredResults.read(trials.stored.store.url)
    assert isinstance(trials.tracker, RecordedTracker)
    return {
        "planned": sorted(trials.plan.trials_by_id),
        "results": {key: record.result.reason for key, record in sorted(reread.trials.items())},
        "failures_left": sorted(reread.failures),
        "told": [
            [failure.trial_id, str(failure.failure.kind), failure.attempt, failure.failure.message]
            for failure in trials.tracker.failures
        ],
        "statuses": sorted(set(trials.tracker.statuses.values())),
        "history": history,
        "seconds": time.monotonic() - started,
    }


def killed_workers(
    root: Path,
    num_trials: int = 10,
    every_s: float = 2.5,
    kills: int = 5,
    trial_s: float = 1.0,
    compare: bool = False,
) -> dict[str, Any]:
    """Kill a random worker every ``every_s`` seconds.

    With ``compare`` the same trials run undisturbed before.
    """
    random_choice = random.Random(13)
    history = list[Any]()
    undisturbed_s = None
    sizes = range(10, 10 + 2 * num_trials, 2)
    with connect(num_cpus=2, dashboard=False) as cluster:
        hold_all(trial_s)
        if compare:
            _, run = run_trials(cluster, root, sizes, "undisturbed")
            started = time.monotonic()
            run()
            undisturbed_s = time.monotonic() - started
        trials, run = run_trials(cluster, root, sizes, "killed")
        all_ended = threading.Event()

        def kill() -> None:
            while not all_ended.wait(every_s) and len(history) < kills:
                pids = sorted(running_now())
                if pids:
                    pid = random_choice.choice(pids)
                    os.kill(pid, signal.SIGKILL)
                    history.append(["SIGKILL", pid, time.time()])

        killer = threading.Thread(target=kill)
        started = time.monotonic()
        killer.start()
        run()
        all_ended.set()
        killer.join()
        return {**outcome(trials, history, started), "undisturbed_s": undisturbed_s}


def killed_raylet(root: Path) -> dict[str, Any]:
    """Kill the raylet of one of two nodes while a trial runs there, and let another node join."""
    from ray.cluster_utils import Cluster as RayCluster

    # Workers outlive their raylet until Ray's health check has failed: 14 s by default.
    os.environ.update(RAY_health_check_period_ms="500", RAY_health_check_failure_threshold="3")
    nodes = RayCluster(
        initialize_head=True,
        shutdown_at_exit=False,
        head_node_args={
            "num_cpus": 0,
            "object_store_memory": STORE_BYTES,
            "include_dashboard": False,
        },
    )
    workers = [nodes.add_node(num_cpus=1, object_store_memory=STORE_BYTES) for _ in range(2)]
    history: list[Any] = []
    with connect(nodes.address) as cluster:
        trials, run = run_trials(cluster, root, range(10, 22, 2), "raylet")
        # The first node's trial must still run at the kill. Slow trials on the other node leave
        # trials for the first node.
        _internal_kv_put(f"hold {workers[0].node_id}", b"60")
        _internal_kv_put(f"hold {workers[1].node_id}", b"10")

        def kill() -> None:
            while workers[0].node_id not in running_now().values():
                time.sleep(0.05)
            (raylet,) = workers[0].all_processes["raylet"]
            os.kill(raylet.process.pid, signal.SIGKILL)
            history.append(["SIGKILL raylet", raylet.process.pid, time.time()])
            _internal_kv_put(f"hold {workers[1].node_id}", b"1")
            time.sleep(2)
            nodes.add_node(num_cpus=1, object_store_memory=STORE_BYTES)
            history.append(["node added", time.time()])

        killer = threading.Thread(target=kill)
        started = time.monotonic()
        killer.start()
        run()
        killer.join()
        return outcome(trials, history, started)


def memory_hog(root: Path, sizes: range = range(10, 18, 2)) -> dict[str, Any]:
    """Let one of several trials take memory until Ray's memory monitor kills it."""
    threshold = psutil.virtual_memory().percent / 100 + THRESHOLD_HEADROOM
    os.environ.update(
        RAY_memory_usage_threshold=f"{threshold:.3f}",
        RAY_memory_monitor_refresh_ms="250",
        FAULTS_HOG=f"{threshold:.3f}",
    )
    with connect(num_cpus=2, dashboard=False) as cluster:
        trials, run = run_trials(cluster, root, sizes, "hog")
        started = time.monotonic()
        run()
        return outcome(
            trials, [["threshold", threshold, (_internal_kv_get("hog") or b"").decode()]], started
        )


class OnDeadGpu(Sleeper):
    """A trial that dies on the node's first GPU."""

    seconds = 0.1

    def _run(self, started_at: float) -> TrialReport:
        if os.environ["CUDA_VISIBLE_DEVICES"] == "0":
            trial_device.FIRST_QUARANTINE_S = 0.1
            self._gpu_uuid = "GPU-0"
            raise torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered")
        return super()._run(started_at)


def dead_gpu(root: Path) -> dict[str, Any]:
    """Run a single trial, to which Ray would always give the free GPU of the lowest number.

    This GPU is the dead one, so the product must quarantine it.
    """
    cluster_of_two = mock.patch("orchestrator.machine.cluster.gpus_here", return_value=[None, None])
    with cluster_of_two, connect(num_cpus=2, dashboard=False) as cluster:
        trials, run = run_trials(
            cluster, root, range(10, 12, 2), "dead", OnDeadGpu, Resources(1, 1.0)
        )
        started = time.monotonic()
        run()
        return outcome(trials, [], started)


def memory_hog_alone(root: Path) -> dict[str, Any]:
    """Run :func:`memory_hog` with a single trial, as the first trial after a restart."""
    return memory_hog(root, range(12, 14, 2))


CASES = {
    "killed_workers": killed_workers,
    "killed_raylet": killed_raylet,
    "memory_hog": memory_hog,
    "memory_hog_alone": memory_hog_alone,
    "dead_gpu": dead_gpu,
}

if __name__ == "__main__":
    print(
        json.dumps(
            CASES[sys.argv[1]](Path(sys.argv[2]), **json.loads("".join(sys.argv[3:]) or "{}"))
        )
    )
