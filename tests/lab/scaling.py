"""The node types of ``cluster.yaml`` under Ray's autoscaler, with processes in place of instances.

    python -m tests.lab.scaling --result tests/lab/scaling.json

The head has no GPU, and the sweep's trials request shares of a GPU. Ray must start workers up to the
file's limits, and stop them when they are idle. The script prints the number of nodes over time. It
replaces four things: the provider (by Ray's ``fake_multinode``), the size of the nodes, the limits,
and the idle time-out (by seconds)."""

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
MAX_WORKERS = 3
IDLE_S = 15
STORE_BYTES = 100_000_000
PORT = 6379
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
    text = (REPOSITORY / "cluster.yaml").read_text(encoding="utf-8")
    launch: dict[str, Any] = yaml.safe_load(text)
    head = launch["head_node_type"]
    node_types = {
        name: {
            "resources": {"CPU": 1} if name == head else dict(WORKER),
            "node_config": {},
            "min_workers": node_type.get("min_workers", 0),
            "max_workers": min(node_type.get("max_workers", 0), MAX_WORKERS),
        }
        for name, node_type in launch["available_node_types"].items()
    }
    # This provider needs this name for the head.
    node_types["ray.head.default"] = node_types.pop(head)
    return {
        "cluster_name": launch["cluster_name"],
        "max_workers": MAX_WORKERS,
        "upscaling_speed": launch["upscaling_speed"],
        "idle_timeout_minutes": IDLE_S / 60,
        "provider": {
            # Not `fake_multinode`: Ray's wheel lacks the file of that name with its defaults.
            "type": "external",
            "module": PROVIDER,
            "launch_multiple": True,
        },
        "available_node_types": node_types,
        "head_node_type": "ray.head.default",
        **{f"{step}_commands": [] for step in COMMANDS},
        **{name: {} for name in ("auth", "file_mounts")},
        "cluster_synced_files": [],
    }


def start_head(folder: Path) -> None:
    """Start the head with the autoscaler, as the command of the launch file does."""
    from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

    launch = launch_file()
    launch["provider"]["head_node_id"] = FAKE_HEAD_NODE_ID
    path = folder / "launch.yaml"
    path.write_text(json.dumps(launch), encoding="utf-8")
    environment = {
        **os.environ,
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    }
    arguments = ("start", "--head", f"--port={PORT}", "--num-cpus=1", "--include-dashboard=false")
    arguments += (f"--object-store-memory={STORE_BYTES}", f"--autoscaling-config={path}")
    subprocess.run(
        [sys.executable, "-m", "ray.scripts.scripts", *arguments], check=True, env=environment
    )


def watch(folder: Path) -> dict[str, Any]:
    """Run the sweep, and count nodes until only the head is left."""
    import ray

    address = f"127.0.0.1:{PORT}"
    sweep = folder / "scaling.yaml"
    sweep.write_text(SWEEP, encoding="utf-8")
    ray.init(address, log_to_driver=False, logging_level="ERROR")
    started = time.monotonic()
    node_counts = [(0.0, 1)]

    def count() -> int:
        alive = sum(node["Alive"] for node in ray.nodes())
        if alive != node_counts[-1][1]:
            node_counts.append((round(time.monotonic() - started, 1), alive))
            print(node_counts[-1], file=sys.stderr, flush=True)
        return alive

    arguments = command(
        "run", str(sweep), "--address", address, "--device", "gpu", "--root", str(folder / "root")
    )
    with open(folder / "run.txt", "wb") as log:
        sweep_process = subprocess.Popen(
            arguments, stdout=log, stderr=log, stdin=subprocess.DEVNULL
        )
    while sweep_process.poll() is None:
        count()
        time.sleep(0.5)
    ended_s = round(time.monotonic() - started, 1)
    deadline = time.monotonic() + 120
    while count() > 1 and time.monotonic() < deadline:
        time.sleep(0.5)
    results = list((folder / "root/sweeps/scaling/trials").glob("*/result.json"))
    return {
        "exit": sweep_process.returncode,
        "trials": len(results),
        "ended_s": ended_s,
        "nodes": node_counts,
    }


def main() -> int:
    """Enter new namespaces, run the sweep there, and check the numbers of nodes."""
    parser = argparse.ArgumentParser(prog="python -m tests.lab.scaling")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help="where to write what is printed")
    options = parser.parse_args()
    if options.inside is None:
        arguments = [sys.executable, "-m", "tests.lab.scaling", "--inside", "/tmp/isweep-scaling"]
        arguments += ["--result", str(options.result.absolute())] if options.result else []
        tokens = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        os.environ.update({**tokens, "ISWEEP_LOGICAL_GPUS": "1", "RAY_USAGE_STATS_ENABLED": "0"})
        os.execvp("unshare", isolated(*arguments))
    subprocess.run(["mount", "-t", "tmpfs", "none", "/tmp"], check=True)
    options.inside.mkdir()
    start_head(options.inside)
    report = watch(options.inside)
    numbers = [number for _, number in report["nodes"]]
    holds = {
        "the sweep is done": (report["exit"], report["trials"]) == (0, NUM_TRIALS),
        "it began with the head alone": numbers[0] == 1,
        "workers came up to the limit and not above": max(numbers) == 1 + MAX_WORKERS,
        "they went when they were idle": numbers[-1] == 1,
    }
    document = {
        "name": "scaling",
        **report,
        "idle_timeout_s": IDLE_S,
        "most_workers": MAX_WORKERS,
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
