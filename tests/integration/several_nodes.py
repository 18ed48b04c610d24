"""A Ray cluster of several nodes on one machine without a shared folder; run inside namespaces.

The head has only CPUs; two workers have one and two logical GPUs. In place of the sweep's root each
worker's processes see an empty file system. Cluster and drivers take mode and token from the
environment. The script prints one JSON object: the end of ``isweep run``, the files that the workers
left, the place and time of probing trials with GPU shares, and the errors of drivers without the
token."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.cluster_utils import Cluster as RayCluster
from ray.experimental.internal_kv import _internal_kv_list, _internal_kv_put

from orchestrator.machine.cluster import Cluster, Resources, connect
from orchestrator.machine.gpus.visible import LOGICAL_GPUS
from orchestrator.planning.paths import RootPaths
from orchestrator.planning.plan import plan_sweep
from orchestrator.results.stored_results import StoredResults
from orchestrator.results.tracking import Tracker
from orchestrator.running.actors import IsweepArrays, start_beside_driver
from orchestrator.running.backend import TuneBackend
from orchestrator.running.messages import TrialReport
from orchestrator.running.progress import Progress
from orchestrator.running.trial_source import RunContext, SweepTrials
from orchestrator.running.trials import TrialLoop
from orchestrator.running.workers.worker import TrialTrainable
from search_spaces.sweeps import SweepSpec
from tasks.prepared.subsets import TrialData
from tasks.remote import RayExecutor, nodes_that_see
from tasks.trials.records import NetworkScores, TrialResult, TrialStatus
from tests.integration.sweeps import command, stored

STORE_BYTES = 100 * 2**20
SCORES = NetworkScores(
    num_parameters=1, train_loss=0.5, train_accuracy=1.0, test_loss=0.5, test_accuracy=1.0
)
WORKERS = {"one_gpu": 1, "two_gpus": 2}
SHARE = 0.4
"""GPU share of a trial."""
NUM_AT_ONCE = 6
"""Trials with this share that three GPUs can run. A seventh trial would need parts of two GPUs."""
NUM_TASKS = 8  # twice the CPUs of all nodes
NUM_ACTORS = 5
"""Actors that are started. If Ray placed them at random on three nodes, all of them would run on the
driver's node once in 3^5 = 243 times."""
RAY_ROOT = Path("/tmp/ray")

CLONE_NEWNS = 0x20000
MS_REC = 0x4000
MS_PRIVATE = 1 << 18
_libc = ctypes.CDLL(None, use_errno=True)


class Probe(TrialTrainable):
    """A trial that reports its node and GPUs, and ends only when all planned trials have run with it."""

    def _run(self, started_at: float) -> TrialReport:
        _internal_kv_put(f"probe-{self.assignment.trial_id}", b"1")
        while len(_internal_kv_list("probe-")) < NUM_AT_ONCE:
            time.sleep(0.05)
        context = ray.get_runtime_context()
        placement = json.dumps([context.get_node_id(), context.get_accelerator_ids()["GPU"]])
        result = TrialResult(
            status=TrialStatus.DONE,
            reason=placement,
            seed=0,
            device="cpu",
            num_threads=1,
            scores=SCORES,
        )
        return TrialReport(started_at=started_at, finished_at=time.time(), outcome=result)


def _libc_call(name: str, *arguments: Any) -> None:
    if getattr(_libc, name)(*arguments) != 0:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")


def mount_empty(folder: Path) -> None:
    """Mount an empty file system in memory on ``folder`` in this thread's mount namespace."""
    _libc_call("mount", b"none", str(folder).encode(), b"tmpfs", 0, None)


def with_own_folder(folder: Path, start: Callable[[], Any]) -> Any:
    """Call ``start`` in a thread. For its child processes ``folder`` is a new, empty folder."""
    result: list[Any] = []

    def run() -> None:
        # The mount namespace belongs to the thread; processes it starts inherit it.
        _libc_call("unshare", CLONE_NEWNS)
        _libc_call("mount", None, b"/", None, MS_REC | MS_PRIVATE, None)
        mount_empty(folder)
        result.append(start())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return result[0]


def files_seen_by(node: Any, folder: Path) -> list[str]:
    """Return the files below ``folder`` as the processes of ``node`` see them."""
    (raylet,) = node.all_processes["raylet"]
    visible_root = Path(f"/proc/{raylet.process.pid}/root{folder}")
    return sorted(
        str(path.relative_to(visible_root)) for path in visible_root.rglob("*") if path.is_file()
    )


def probe(cluster: Cluster, root: Path) -> list[dict[str, Any]]:
    """Run one trial more than can run at the same time. Return the place and time of each."""
    sweep = SweepSpec.model_validate(
        {
            "name": "probe",
            "models": ("small_mlp",),
            "datasets": ({"name": "mri_lesion"},),
            "train_sizes": (10,),
            "seeds": tuple(range(NUM_AT_ONCE + 1)),
            "test_size": 4,
            "image_size": 8,
            "recipe": "smoke",
        }
    )
    plan = plan_sweep(sweep)
    paths = RootPaths.at(root).make()
    images = np.zeros((14, 1, 8, 8), np.uint8)
    labels = np.arange(14, dtype=np.int64) % 2
    run = RunContext(
        plan=plan,
        cluster=cluster,
        resources=Resources(0.25, SHARE),
        paths=paths,
        stored=StoredResults.read(str(paths.sweep(sweep.name).folder)),
        tracker=Tracker(),
        monitor=Progress(),
    )
    data = TrialData(images, labels, images[:4], labels[:4], 2, "f")
    work = SweepTrials(run, plan.trials, lambda subset, size: data)
    TrialLoop(run, work, TuneBackend(run, work, Probe)).run()
    return [
        {
            "node": json.loads(record.result.reason)[0],
            "gpus": json.loads(record.result.reason)[1],
            "start": record.started_at,
            "end": record.finished_at,
        }
        for record in run.stored.trials.values()
    ]


def nodes_of_tasks(executor: RayExecutor) -> list[str]:
    """Return the nodes on which an executor runs tasks. There are enough tasks for every node."""
    return sorted({node for _, node in executor.map_unordered(_my_node, [(0.5,)] * NUM_TASKS)})


def nodes_of_actors() -> list[str]:
    """Return the nodes of actors that every trial asks. Ray alone would place some on other nodes."""
    actors = [start_beside_driver(IsweepArrays) for _ in range(NUM_ACTORS)]
    for actor in actors:
        ray.get(actor.put.remote("", []))
    ids = [actor._actor_id.hex() for actor in actors]
    nodes = sorted({ray._private.state.actors(actor)["Address"]["NodeID"] for actor in ids})
    for actor in actors:
        ray.kill(actor)
    return nodes


def _my_node(seconds: float) -> str:
    time.sleep(seconds)
    return str(ray.get_runtime_context().get_node_id())


def environment(token: str) -> dict[str, str]:
    """Return the environment with which this script must be started. Ray reads it on import."""
    settings = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        "COLUMNS": "200",
        LOGICAL_GPUS: "1",
    }
    return {**os.environ, **settings}


def run_command(*arguments: str, **environment: str) -> dict[str, Any]:
    """Run ``isweep`` as a user does, and return its exit code and output."""
    process = subprocess.run(
        command(*arguments),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
    return {"exit": process.returncode, "stdout": process.stdout, "stderr": process.stderr}


def main(sweep: str, folder: str) -> None:
    root = Path(folder)
    # Ray stores the machine's last cluster in its temporary root. Drivers outside must not take this
    # cluster for theirs.
    RAY_ROOT.mkdir(exist_ok=True)
    mount_empty(RAY_ROOT)
    nodes = RayCluster(
        initialize_head=True,
        # The handler would need the main thread. The end of the namespace ends all processes.
        shutdown_at_exit=False,
        head_node_args={
            "num_cpus": 1,
            "object_store_memory": STORE_BYTES,
            "include_dashboard": False,
        },
    )
    workers = {}
    for name, gpus in WORKERS.items():
        add = partial(nodes.add_node, num_cpus=gpus, num_gpus=gpus, object_store_memory=STORE_BYTES)
        workers[name] = with_own_folder(root, add)
    cluster_options = ("--root", folder, "--address", nodes.address)
    run = run_command("run", sweep, *cluster_options, "--device", "gpu")
    results = {key: record["result"]["scores"] for key, record in stored(root).items()}
    with connect(nodes.address) as cluster:
        report = {
            "run": run,
            "results": results,
            "left_on_workers": {name: files_seen_by(node, root) for name, node in workers.items()},
            "probes": probe(cluster, root),
            "head": nodes.head_node.node_id,
            "workers": {name: node.node_id for name, node in workers.items()},
            "file_task_nodes": nodes_of_tasks(RayExecutor(driver_node_only=True)),
            "block_task_nodes": nodes_of_tasks(RayExecutor()),
            "see_root": nodes_that_see(root / "prepared"),
            "see_python": sorted(nodes_that_see(Path(sys.executable))),
        }
        report["actor_nodes"] = nodes_of_actors()
        report["reading_nodes"] = nodes_of_tasks(
            RayExecutor(nodes=list(report["workers"].values()))
        )
    images = root / "images.npy"
    np.save(images, np.zeros((4, 1, 2, 2), np.uint8))
    measurements = {
        "measured": (("manifold_d4", "--image-size", "16", "--json"), {}),
        "other_token": ((str(images),), {"RAY_AUTH_TOKEN": "0" * 64}),
        "other_mode": ((str(images),), {"RAY_AUTH_MODE": "disabled"}),
    }
    with ThreadPoolExecutor() as executor:
        futures = [
            executor.submit(run_command, "measure", *arguments, *cluster_options, **changes)
            for arguments, changes in measurements.values()
        ]
        report |= {
            name: future.result() for name, future in zip(measurements, futures, strict=True)
        }
    print(json.dumps(report))
    nodes.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
