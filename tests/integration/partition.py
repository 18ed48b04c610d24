"""Two hosts whose link goes down for a while during a sweep; run as root inside namespaces.

This host is the head. The other host is a network namespace behind a pair of virtual network cards,
and its card is switched off and on again. If Ray ends on the other host, this script starts it
again, as an operator's supervisor would. It prints one JSON object.

    unshare ... python -m tests.integration.partition ROOT SECONDS
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import ray

from orchestrator.machine.cluster import connect
from tests.integration.faults import STORE_BYTES, hold_all, outcome, run_trials, running_now
from tests.lab.hosts import run

HEAD_ADDRESS = "10.78.0.1"
OTHER_ADDRESS = "10.78.0.2"
PORT = 6390
HEAD_CARD = "near"
OTHER_CARD = "far"
NAMESPACE = "far"
TRIAL_S = 2.0
REJOIN_S = 400.0
"""Seconds after the link is back in which the other host must join the cluster again."""
RAY = (sys.executable, "-m", "ray.scripts.scripts", "start", "--num-cpus=1", "--block")
RAY += (f"--object-store-memory={STORE_BYTES}", "--disable-usage-stats")


def create_network() -> None:
    """Create the other host's network, and a link to it."""
    run("mount", "-t", "tmpfs", "none", "/run")
    run("ip", "netns", "add", NAMESPACE)
    run(
        "ip",
        "link",
        "add",
        HEAD_CARD,
        "type",
        "veth",
        "peer",
        "name",
        OTHER_CARD,
        "netns",
        NAMESPACE,
    )
    run("ip", "address", "add", f"{HEAD_ADDRESS}/24", "dev", HEAD_CARD)
    run("ip", "link", "set", HEAD_CARD, "up")
    run("ip", "-n", NAMESPACE, "address", "add", f"{OTHER_ADDRESS}/24", "dev", OTHER_CARD)
    for card in ("lo", OTHER_CARD):
        run("ip", "-n", NAMESPACE, "link", "set", card, "up")


def start_ray(log: Path, *, on_other_host: bool) -> subprocess.Popen[bytes]:
    """Start Ray's processes on a host."""
    head_command = (
        *RAY,
        "--head",
        f"--node-ip-address={HEAD_ADDRESS}",
        f"--port={PORT}",
        "--include-dashboard=false",
    )
    other_command = (
        "ip",
        "netns",
        "exec",
        NAMESPACE,
        *RAY,
        f"--address={HEAD_ADDRESS}:{PORT}",
        f"--node-ip-address={OTHER_ADDRESS}",
    )
    with log.open("ab") as file:
        return subprocess.Popen(
            other_command if on_other_host else head_command,
            stdout=file,
            stderr=file,
            stdin=subprocess.DEVNULL,
        )


def other_node_id() -> str:
    """Return the id of the other host's living node, or an empty text if there is none."""
    return next(
        (
            node["NodeID"]
            for node in ray.nodes()
            if node["Alive"] and node["NodeManagerAddress"] == OTHER_ADDRESS
        ),
        "",
    )


def wait_for_other_node() -> str:
    """Wait until the other host is in the cluster, and return its node's id."""
    deadline = time.monotonic() + REJOIN_S
    while not other_node_id() and time.monotonic() < deadline:
        time.sleep(0.5)
    return other_node_id()


def main(root: Path, seconds: float) -> dict[str, Any]:
    create_network()
    log = root / "ray.log"
    start_ray(log, on_other_host=False)
    # On a busy machine the port is open long before Ray answers.
    run("timeout", "400", "sh", "-c", f"until grep -q 'runtime started' {log}; do sleep 0.5; done")
    other_rays = [start_ray(log, on_other_host=True)]
    history = list[Any]()
    with connect(f"{HEAD_ADDRESS}:{PORT}") as cluster:
        first_node_id = wait_for_other_node()
        hold_all(TRIAL_S)
        num_trials = 12 + round(seconds / TRIAL_S)
        all_ended = threading.Event()
        trials, sweep = run_trials(cluster, root, range(10, 10 + 2 * num_trials, 2), "parted")

        def cut_link() -> None:
            while first_node_id not in running_now().values():
                if all_ended.wait(0.05):
                    return  # on a busy machine all trials may end before a worker there has started
            run("ip", "link", "set", HEAD_CARD, "down")
            history.append(["link down", time.time()])
            time.sleep(seconds)
            run("ip", "link", "set", HEAD_CARD, "up")
            history.append(["link up", time.time()])
            deadline = time.monotonic() + REJOIN_S
            while (
                other_node_id() == first_node_id
                and other_rays[-1].poll() is None
                and time.monotonic() < deadline
            ):
                time.sleep(1)
                if time.monotonic() > deadline - REJOIN_S + 30:
                    # Half a minute after the link is back the node is the same, so it survived.
                    return
            history.append(["the other host's Ray ended", other_rays[-1].poll(), time.time()])
            other_rays[-1].kill()
            other_rays.append(start_ray(log, on_other_host=True))
            history.append(["started again", wait_for_other_node() != "", time.time()])

        breaker = threading.Thread(target=cut_link)
        started = time.monotonic()
        breaker.start()
        sweep()
        all_ended.set()
        result = outcome(trials, history, started)
        breaker.join()
        return {
            **result,
            "same_node": other_node_id() == first_node_id,
            "there": other_node_id() != "",
        }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), float(sys.argv[2]))))
