"""What a launch file needs for one's own machines: names, numbers, the version of the autoscaler."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

from orchestrator.running.launch_nodes import UNFILLED, Problem, installs


def own_machines(config: dict[str, Any]) -> Iterator[Problem]:
    """Look at the names of the machines, at their numbers and at the version of the autoscaler."""
    provider = config["provider"]
    if "coordinator_address" in provider:
        told = "a coordinator hands out machines of its own, and isweep's files know none"
        yield Problem("provider.coordinator_address", told, "name head_ip and worker_ips instead")
        return
    yield from installs(config)
    workers, head = provider.get("worker_ips") or [], provider.get("head_ip", "")
    for name in ("min_workers", "max_workers"):
        if config.get(name) != len(workers):
            told = f"{config.get(name)}, and worker_ips names {len(workers)}"
            yield Problem(name, told, f"say {len(workers)}: others would be left out without a word")
    if not config.get("auth", {}).get("ssh_private_key"):
        told = "the head needs a key to start the workers"
        yield Problem("auth.ssh_private_key", told, "name one made for this cluster")
    if len({head, *workers}) <= len(workers):
        yield Problem("provider", "a machine is named twice", "name each once, the head apart")
    starts = [one for one in config.get("head_start_ray_commands", ()) if "ray start" in one]
    if starts and not any("RAY_enable_autoscaler_v2=0" in one for one in starts):
        told = "version 2 of Ray's autoscaler, its default, leaves the last of one's own machines out"
        yield Problem("head_start_ray_commands", told, "put RAY_enable_autoscaler_v2=0 before `ray start`")
    for name in (head, *workers):
        if not UNFILLED.search(name) and not _known(name):
            told = f"{name}: this machine does not know the name"
            yield Problem("provider", told, "correct it, or give the address")


def _known(host: str) -> bool:
    try:
        return bool(socket.getaddrinfo(host, 22))
    except OSError:
        return False
