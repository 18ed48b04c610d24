"""What grows with nodes and trials: the driver's memory and time, arrays over the network, joining, looking.

Nodes are Ray nodes of one CPU on one machine, with their own object stores; trials are no-ops through the
product's own sweep (as in ``trial_overhead.py``), so that what is timed is the driver's and Ray's work. Each
case runs in a process of its own. The slope between two numbers of trials is what one more trial costs; on
one machine many nodes share its CPUs, which a cluster's do not, so times at many nodes are upper bounds.
From these constants comes what 64 nodes and 10,000 trials of the ``paper`` grid would cost.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

CASES = ((1, 40), (1, 300), (4, 60))
PLANS = (100, 1_000, 10_000)
STORE_BYTES = 80_000_000
ARRAY_BYTES = 16_000_000
NODES, TRIALS = 64, 10_000
SUBSETS, SUBSET_BYTES = 27, 125_000_000
"""Of the ``paper`` grid: 2,500 grey images of 224x224 each, what its trials need for training and test."""


def rss_mib() -> float:
    """Return this process's resident memory."""
    return round(psutil.Process().memory_info().rss / 2**20, 1)


def plan_case(num_trials: int) -> dict[str, Any]:
    """Plan so many trials, and write and read the plan's state."""
    from orchestrator.planning.plan import plan_sweep
    from search_spaces.sweeps import SweepSpec

    before, started = rss_mib(), time.perf_counter()
    plan = plan_sweep(
        SweepSpec.model_validate(
            {
                "name": "growth",
                "models": ("small_mlp", "small_cnn"),
                "datasets": ({"name": "mri_lesion"},),
                "train_sizes": (20, 40, 60, 80, 100),
                "test_size": 20,
                "image_size": 8,
                "seeds": tuple(range(num_trials // 10)),
                "recipe": "smoke",
            }
        )
    )
    ids = len(plan.trials_by_id)
    return {"trials": ids, "seconds": round(time.perf_counter() - started, 2), "mib": rss_mib() - before}


def stored_bytes() -> list[int]:
    """Return what the object store of each node holds, the head's first."""
    import ray
    from ray._private.internal_api import node_stats

    nodes = sorted(ray.nodes(), key=lambda node: "node:__internal_head__" not in node["Resources"])
    stats = (node_stats(node["NodeManagerAddress"], node["NodeManagerPort"], False) for node in nodes)
    return [node.store_stats.object_store_bytes_used for node in stats]


def array_traffic() -> dict[str, Any]:
    """Put one array on the head, let every node read it twice, and count what other nodes then hold."""
    import numpy as np
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    before, started = stored_bytes(), time.perf_counter()
    array = ray.put(np.zeros(ARRAY_BYTES, np.uint8))
    read = ray.remote(num_cpus=0)(lambda images: int(images.sum()))
    nodes = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in ray.nodes()]
    ray.get([read.options(scheduling_strategy=node).remote(array) for node in nodes for _ in range(2)])
    seconds = time.perf_counter() - started
    sent = sum(stored_bytes()[1:]) - sum(before[1:])
    return {"array_copies_sent": round(sent / ARRAY_BYTES, 2), "array_s": round(seconds, 1)}


def nodes_case(num_nodes: int, num_trials: int) -> dict[str, Any]:
    """Start nodes, look at each, and drive no-op trials on them."""
    import ray
    from ray.cluster_utils import Cluster

    from benchmarks.trial_overhead import load, make_plan
    from orchestrator.planning.paths import RootPaths
    from orchestrator.results.state import StoredResults
    from orchestrator.results.tracking.tracker import NoopTracker
    from orchestrator.running.cluster import Resources, connect
    from orchestrator.running.nodes import look_at_nodes
    from orchestrator.running.progress import Progress
    from orchestrator.running.sweep import TrialSweep

    options = {"num_cpus": 1, "object_store_memory": STORE_BYTES}
    started = time.perf_counter()
    nodes = Cluster(
        initialize_head=True, head_node_args={**options, "num_cpus": 1, "include_dashboard": False}
    )
    for _ in range(num_nodes - 1):
        nodes.add_node(**options)
    nodes.wait_for_nodes()
    found: dict[str, Any] = {"nodes": num_nodes, "trials": num_trials}
    found["join_s"] = round(time.perf_counter() - started, 1)
    with tempfile.TemporaryDirectory() as folder, connect(nodes.address) as cluster:
        started = time.perf_counter()
        reports = look_at_nodes(Path(folder))
        found["doctor_s"] = round(time.perf_counter() - started, 1)
        assert len(reports) == num_nodes
        paths = RootPaths.create(folder)

        def sweep(seed: int, count: int) -> float:
            plan = make_plan(count, seed)
            drive = TrialSweep(
                plan=plan,
                cluster=cluster,
                resources=Resources(1, 0),
                paths=paths,
                stored=StoredResults.read(str(paths.sweep(plan.sweep.name).folder)),
                tracker=NoopTracker(),
                monitor=Progress(),
                measures={},
                load=load,
            )
            begun = time.perf_counter()
            drive.run(plan.trials, {})
            return time.perf_counter() - begun

        found["first_s"] = round(sweep(10_000, num_nodes), 1)  # workers start and import torch
        before = rss_mib()
        seconds = sweep(20_000, num_trials)
        found |= {"seconds": round(seconds, 1), "seconds_per_trial": round(seconds / num_trials, 3)}
        found |= {"driver_mib": rss_mib(), "growth_mib": round(rss_mib() - before, 1)}
        found |= array_traffic()
    ray.shutdown()
    nodes.shutdown()
    return found


def projected(plans: list[dict[str, Any]], cases: list[dict[str, Any]]) -> dict[str, Any]:
    """Compute a large cluster from what was measured: the last plan, slopes over trials and over nodes."""
    few, many = cases[:2]
    alone, widest = many, cases[-1]
    more_trials, more_nodes = many["trials"] - few["trials"], widest["nodes"] - alone["nodes"]
    mib = (many["growth_mib"] - few["growth_mib"]) / more_trials
    per_trial = (many["seconds"] - few["seconds"]) / more_trials
    copies = widest["array_copies_sent"] / more_nodes
    per_node = {name: (widest[name] - alone[name]) / more_nodes for name in ("join_s", "first_s", "doctor_s")}
    constants = {"mib_per_trial": mib, "seconds_per_trial": per_trial, "array_copies_per_node": copies}
    return {
        "constants": {name: round(value, 4) for name, value in (constants | per_node).items()},
        "nodes": NODES,
        "trials": TRIALS,
        "plan_s": plans[-1]["seconds"],
        "plan_mib": plans[-1]["mib"],
        "driver_mib": round(few["driver_mib"] + plans[-1]["mib"] + TRIALS * mib),
        "driver_hours": round(TRIALS * per_trial / 3600, 2),
        "arrays_gb": round(SUBSETS * SUBSET_BYTES * copies * (NODES - 1) / 1e9),
        "start_s_at_most": round(sum((NODES - 1) * per_node[name] for name in ("join_s", "first_s"))),
    }


def in_a_process(*words: str) -> dict[str, Any]:
    """Run a case alone, so that memory is its own."""
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(Path(__file__).parents[1])}
    environment["RAY_raylet_start_wait_time_s"] = "300"  # on a busy machine
    done = subprocess.run(
        [sys.executable, __file__, *words], capture_output=True, text=True, check=False, env=environment
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(found, file=sys.stderr, flush=True)
    return found


def main() -> None:
    """Run all cases, and print a table or, with ``--json``, one object."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--plan", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--nodes", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.plan:
        print(json.dumps(plan_case(options.plan)))
        return
    if options.nodes:
        print(json.dumps(nodes_case(*options.nodes)))
        return
    load_before = os.getloadavg()[0]
    plans = [in_a_process("--plan", str(number)) for number in PLANS]
    cases = [in_a_process("--nodes", str(nodes), str(trials)) for nodes, trials in CASES]
    document = {
        "name": "cluster_growth",
        "plans": plans,
        "cases": cases,
        "projected": projected(plans, cases),
        "environment": {
            "cpus": os.cpu_count(),
            "load_before": round(load_before, 1),
            "load_after": round(os.getloadavg()[0], 1),
            "python": platform.python_version(),
            "ray": metadata.version("ray"),
        },
    }
    if options.json:
        print(json.dumps(document, indent=1))
        return
    computed = projected(plans, cases)
    for row in (*plans, *cases, computed.pop("constants"), computed):
        print("  ".join(f"{name} {value:g}" for name, value in row.items()))


if __name__ == "__main__":
    main()
