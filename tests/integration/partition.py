"""Two hosts whose link goes down for a while under a running sweep; run as root inside namespaces
of its own.

The head is here; the other host is a network namespace behind a pair of virtual cards, its card is
taken down and up again. What an operator's supervisor does is done here too: Ray is started again
on the other host when it ended there. Prints one JSON object.

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

HERE, THERE, PORT = "10.78.0.1", "10.78.0.2", 6390
CARD, PEER, SPACE = "near", "far", "far"
TRIAL_S = 2.0
PATIENCE_S = 400.0
"""How long after the link is back the other host may take to be of the cluster again."""
RAY = (sys.executable, "-m", "ray.scripts.scripts", "start", "--num-cpus=1", "--block")
RAY += (f"--object-store-memory={STORE_BYTES}", "--disable-usage-stats")


def plug_in() -> None:
    """Make the other host's network, and a link to it."""
    run("mount", "-t", "tmpfs", "none", "/run")
    run("ip", "netns", "add", SPACE)
    run("ip", "link", "add", CARD, "type", "veth", "peer", "name", PEER, "netns", SPACE)
    run("ip", "address", "add", f"{HERE}/24", "dev", CARD)
    run("ip", "link", "set", CARD, "up")
    run("ip", "-n", SPACE, "address", "add", f"{THERE}/24", "dev", PEER)
    for card in ("lo", PEER):
        run("ip", "-n", SPACE, "link", "set", card, "up")


def start_ray(log: Path, *, there: bool) -> subprocess.Popen[bytes]:
    """Start Ray's processes on a host."""
    head = (
        *RAY,
        "--head",
        f"--node-ip-address={HERE}",
        f"--port={PORT}",
        "--include-dashboard=false",
    )
    other = (
        "ip",
        "netns",
        "exec",
        SPACE,
        *RAY,
        f"--address={HERE}:{PORT}",
        f"--node-ip-address={THERE}",
    )
    with log.open("ab") as file:
        return subprocess.Popen(
            other if there else head, stdout=file, stderr=file, stdin=subprocess.DEVNULL
        )


def node_there() -> str:
    """Return the id of the other host's living node; empty where there is none."""
    return next(
        (n["NodeID"] for n in ray.nodes() if n["Alive"] and n["NodeManagerAddress"] == THERE), ""
    )


def wait_for_node() -> str:
    """Wait until the other host is of the cluster."""
    end = time.monotonic() + PATIENCE_S
    while not node_there() and time.monotonic() < end:
        time.sleep(0.5)
    return node_there()


def main(root: Path, seconds: float) -> dict[str, Any]:
    plug_in()
    log = root / "ray.log"
    start_ray(log, there=False)
    # Its port is there long before it answers on a busy machine.
    run("timeout", "400", "sh", "-c", f"until grep -q 'runtime started' {log}; do sleep 0.5; done")
    other, history = [start_ray(log, there=True)], list[Any]()
    with connect(f"{HERE}:{PORT}") as cluster:
        first = wait_for_node()
        hold_all(TRIAL_S)
        num_trials = 12 + round(seconds / TRIAL_S)
        ended = threading.Event()
        trials, sweep = run_trials(cluster, root, range(10, 10 + 2 * num_trials, 2), "parted")

        def part() -> None:
            while first not in running_now().values():
                if ended.wait(0.05):
                    return  # on a busy machine all trials may end before a worker there has started
            run("ip", "link", "set", CARD, "down")
            history.append(["link down", time.time()])
            time.sleep(seconds)
            run("ip", "link", "set", CARD, "up")
            history.append(["link up", time.time()])
            end = time.monotonic() + PATIENCE_S
            while node_there() == first and other[-1].poll() is None and time.monotonic() < end:
                time.sleep(1)
                if time.monotonic() > end - PATIENCE_S + 30:
                    # half a minute after the link is back it is still the same node: it lives
                    return
            history.append(["the other host's Ray ended", other[-1].poll(), time.time()])
            other[-1].kill()
            other.append(start_ray(log, there=True))
            history.append(["started again", wait_for_node() != "", time.time()])

        breaker = threading.Thread(target=part)
        started = time.monotonic()
        breaker.start()
        sweep()
        ended.set()
        found = outcome(trials, history, started)
        breaker.join()
        return {**found, "same_node": node_there() == first, "there": node_there() != ""}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), float(sys.argv[2]))))
