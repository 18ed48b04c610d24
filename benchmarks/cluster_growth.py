"""What grows with nodes and trials: the driver's memory and time, arrays over the network, joining, looking.

Nodes are Ray nodes of one CPU on one machine, with their own object stores; trials are no-ops through the
product's own sweep (as in ``trial_overhead.py``), so that what is timed is the driver's and Ray's work. Each
case runs in a process of its own. On one machine all nodes share its CPUs and join one after the other, which
a cluster's do not, so times at many nodes are upper bounds. What one more trial costs the driver is read
from ``results/trial_overhead.json``, where 2,000 trials were looked at.
From these constants comes what 64 nodes and 10,000 trials of the ``paper`` grid would cost.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import secrets
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

CASES = (1, 4)
"""Numbers of nodes; the first is what the others are compared with."""
TRIALS_PER_NODE = 20
PLANS = (100, 1_000, 10_000)
STORE_BYTES = 80_000_000
ARRAY_BYTES = 16_000_000
NODES, TRIALS = 64, 10_000
OVERHEAD = Path(__file__).parent / "results" / "trial_overhead.json"
RESULT = OVERHEAD.with_name("cluster_growth.json")
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
    seconds = round(time.perf_counter() - started, 2)
    return {"trials": ids, "seconds": seconds, "mib": round(rss_mib() - before, 1)}


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
    from orchestrator.results.tracking import NoopTracker
    from orchestrator.running.cluster import Resources, connect
    from orchestrator.running.doctor import look_at_nodes
    from orchestrator.running.progress import Progress
    from orchestrator.running.trials import GridWork, Run, Trials

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
            run = Run(
                plan=plan,
                cluster=cluster,
                resources=Resources(1, 0),
                paths=paths,
                stored=StoredResults.read(str(paths.sweep(plan.sweep.name).folder)),
                tracker=NoopTracker(),
                monitor=Progress(),
            )
            begun = time.perf_counter()
            Trials(run, GridWork(run, plan.trials, load)).run()
            return time.perf_counter() - begun

        found["first_s"] = round(sweep(10_000, num_nodes), 1)  # workers start and import torch
        found["trials_s"] = round(sweep(20_000, num_trials), 1)
        found |= {"driver_mib": rss_mib(), **array_traffic()}
    ray.shutdown()
    nodes.shutdown()
    return found


def projected(plans: list[dict[str, Any]], cases: list[dict[str, Any]]) -> dict[str, Any]:
    """Compute a large cluster from what was measured: the last plan, the widest case, and a trial."""
    overhead = json.loads(OVERHEAD.read_text(encoding="utf-8"))["ours_detail"]
    bytes_per_trial, seconds_per_trial = overhead["driver_bytes_per_trial"], overhead["wall_s"]
    widest = cases[-1]
    copies = widest["array_copies_sent"] / (widest["nodes"] - 1)
    join = widest["join_s"] / widest["nodes"]
    first = max(case["first_s"] for case in cases)  # on CPUs of their own, nodes start workers side by side
    constants = {
        "driver_mib_at_start": widest["driver_mib"],
        "driver_kb_per_trial": bytes_per_trial / 1e3,
        "seconds_per_trial": seconds_per_trial,
        "array_copies_per_other_node": copies,
        "join_s_per_node": join,
        "first_worker_s": first,
    }
    grown = TRIALS * bytes_per_trial / 2**20
    return {
        "constants": {name: round(value, 4) for name, value in constants.items()},
        "nodes": NODES,
        "trials": TRIALS,
        "plan_s": plans[-1]["seconds"],
        "plan_mib": plans[-1]["mib"],
        "driver_mib": round(widest["driver_mib"] + plans[-1]["mib"] + grown),
        "driver_hours": round(TRIALS * seconds_per_trial / 3600, 2),
        "arrays_gb": round(SUBSETS * SUBSET_BYTES * copies * (NODES - 1) / 1e9),
        "start_s_at_most": round(NODES * join + first),
    }


def in_a_process(*words: str) -> dict[str, Any]:
    """Run a case alone, so that memory is its own."""
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(Path(__file__).parents[1])}
    environment["RAY_raylet_start_wait_time_s"] = "300"  # on a busy machine
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
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
    parser.add_argument(
        "--again", action="store_true", help="measure nothing; compute from the committed cases"
    )
    parser.add_argument("--plan", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--nodes", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.plan:
        print(json.dumps(plan_case(options.plan)))
        return
    if options.nodes:
        print(json.dumps(nodes_case(*options.nodes)))
        return
    document = json.loads(RESULT.read_text(encoding="utf-8")) if options.again else measured()
    document["projected"] = projected(document["plans"], document["cases"])
    if options.json:
        print(json.dumps(document, indent=1))
        return
    computed = dict(document["projected"])
    for row in (*document["plans"], *document["cases"], computed.pop("constants"), computed):
        print("  ".join(f"{name} {value:g}" for name, value in row.items()))


def measured() -> dict[str, Any]:
    """Run all cases."""
    load_before = os.getloadavg()[0]
    plans = [in_a_process("--plan", str(number)) for number in PLANS]
    cases = [in_a_process("--nodes", str(nodes), str(nodes * TRIALS_PER_NODE)) for nodes in CASES]
    return {
        "name": "cluster_growth",
        "plans": plans,
        "cases": cases,
        "environment": {
            "cpus": os.cpu_count(),
            "load_before": round(load_before, 1),
            "load_after": round(os.getloadavg()[0], 1),
            "python": platform.python_version(),
            "ray": metadata.version("ray"),
        },
    }


if __name__ == "__main__":
    main()
