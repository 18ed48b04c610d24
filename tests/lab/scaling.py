"""The node types of ``cluster.yaml`` under Ray's own autoscaler, with processes in place of
instances.

    python -m tests.lab.scaling --result tests/lab/scaling.json

A head without GPUs, a sweep whose trials ask for shares of one: workers must come by themselves, up
to the file's limits, and go when they are idle. Says how many nodes there were when. What it stands
in for: the provider (Ray's ``fake_multinode``), the size of nodes and of the limits, and an idle
time-out of seconds."""

from __future__ import annotations

import argparse
import json
import os
import secrets
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from tests.integration.sweeps import command
from tests.isolation import isolated

REPOSITORY = Path(__file__).parents[2]
PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
COMMANDS = (
    "setup",
    "head_setup",
    "worker_setup",
    "initialization",
    "head_start_ray",
    "worker_start_ray",
)
MOST_WORKERS, IDLE_S, STORE_BYTES, PORT = 3, 15, 100_000_000, 6379
WORKER = {"CPU": 2, "GPU": 1, "object_store_memory": STORE_BYTES}
NUM_TRIALS = 12
SWEEP = """
name: scaling
models: [small_mlp, small_cnn]
datasets: [manifold_d4]
train_sizes: [80, 160]
test_size: 40
image_size: 16
channels: 1
seeds: [0, 1, 2]
recipe: {from: smoke, epochs: 300}
num_neighbors: 10
resources: {num_cpus: 1, num_gpus: 0.5}
"""


def launch_file() -> dict[str, Any]:
    """Return ``cluster.yaml`` with a provider that starts processes, and small nodes."""
    made: dict[str, Any] = yaml.safe_load((REPOSITORY / "cluster.yaml").read_text(encoding="utf-8"))
    head = made["head_node_type"]
    types = {
        name: {
            "resources": {"CPU": 1} if name == head else dict(WORKER),
            "node_config": {},
            "min_workers": kind.get("min_workers", 0),
            "max_workers": min(kind.get("max_workers", 0), MOST_WORKERS),
        }
        for name, kind in made["available_node_types"].items()
    }
    types["ray.head.default"] = types.pop(head)  # the name that this provider gives its head
    return {
        "cluster_name": made["cluster_name"],
        "max_workers": MOST_WORKERS,
        "upscaling_speed": made["upscaling_speed"],
        "idle_timeout_minutes": IDLE_S / 60,
        "provider": {
            # Not `fake_multinode`: Ray's wheel lacks the file of that name with its defaults.
            "type": "external",
            "module": PROVIDER,
            "launch_multiple": True,
        },
        "available_node_types": types,
        "head_node_type": "ray.head.default",
        **{f"{who}_commands": [] for who in COMMANDS},
        **{name: {} for name in ("auth", "file_mounts")},
        "cluster_synced_files": [],
    }


def start_head(folder: Path) -> None:
    """Start the head with the autoscaler, as the file's own command does."""
    from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

    made = launch_file()
    made["provider"]["head_node_id"] = FAKE_HEAD_NODE_ID
    path = folder / "launch.yaml"
    path.write_text(json.dumps(made), encoding="utf-8")
    environment = {
        **os.environ,
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    }
    words = ("start", "--head", f"--port={PORT}", "--num-cpus=1", "--include-dashboard=false")
    words += (f"--object-store-memory={STORE_BYTES}", f"--autoscaling-config={path}")
    subprocess.run(
        [sys.executable, "-m", "ray.scripts.scripts", *words], check=True, env=environment
    )


def watch(folder: Path) -> dict[str, Any]:
    """Run the sweep, and count nodes until only the head is left."""
    import ray

    address, sweep = f"127.0.0.1:{PORT}", folder / "scaling.yaml"
    sweep.write_text(SWEEP, encoding="utf-8")
    ray.init(address, log_to_driver=False, logging_level="ERROR")
    started, counted = time.monotonic(), [(0.0, 1)]

    def count() -> int:
        alive = sum(node["Alive"] for node in ray.nodes())
        if alive != counted[-1][1]:
            counted.append((round(time.monotonic() - started, 1), alive))
            print(counted[-1], file=sys.stderr, flush=True)
        return alive

    words = command(
        "run", str(sweep), "--address", address, "--device", "gpu", "--root", str(folder / "root")
    )
    with open(folder / "run.txt", "wb") as log:
        run = subprocess.Popen(words, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    while run.poll() is None:
        count()
        time.sleep(0.5)
    ended = round(time.monotonic() - started, 1)
    patience = time.monotonic() + 120
    while count() > 1 and time.monotonic() < patience:
        time.sleep(0.5)
    done = list((folder / "root/sweeps/scaling/trials").glob("*/result.json"))
    return {"exit": run.returncode, "trials": len(done), "ended_s": ended, "nodes": counted}


def main() -> int:
    """Go into namespaces of our own, scale, and hold what came of it to the file's limits."""
    parser = argparse.ArgumentParser(prog="python -m tests.lab.scaling")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help="where to write what is printed")
    options = parser.parse_args()
    if options.inside is None:
        words = [sys.executable, "-m", "tests.lab.scaling", "--inside", "/tmp/isweep-scaling"]
        words += ["--result", str(options.result.absolute())] if options.result else []
        tokens = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        os.environ.update({**tokens, "ISWEEP_LOGICAL_GPUS": "1", "RAY_USAGE_STATS_ENABLED": "0"})
        os.execvp("unshare", isolated(*words))
    subprocess.run(["mount", "-t", "tmpfs", "none", "/tmp"], check=True)
    options.inside.mkdir()
    start_head(options.inside)
    found = watch(options.inside)
    numbers = [number for _, number in found["nodes"]]
    holds = {
        "the sweep is done": (found["exit"], found["trials"]) == (0, NUM_TRIALS),
        "it began with the head alone": numbers[0] == 1,
        "workers came up to the limit and not above": max(numbers) == 1 + MOST_WORKERS,
        "they went when they were idle": numbers[-1] == 1,
    }
    document = {
        "name": "scaling",
        **found,
        "idle_timeout_s": IDLE_S,
        "most_workers": MOST_WORKERS,
        "holds": holds,
        "environment": {"cpus": os.cpu_count(), "ray": metadata.version("ray")},
    }
    text = json.dumps(document, indent=2) + "\n"
    print(text, end="")
    if not all(holds.values()):
        print(
            (options.inside / "run.txt").read_text(encoding="utf-8", errors="replace"),
            file=sys.stderr,
        )
        return 1
    if options.result:
        options.result.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
