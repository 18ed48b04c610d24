"""What a trial asks for beside what the cluster has, in words: Ray itself waits without one."""

from __future__ import annotations

import ray

from orchestrator.running.cluster import Resources


def what_is_missing(resources: Resources, seconds: float) -> str:
    """Say what each trial asks for and the cluster lacks, when none could start for ``seconds``."""
    there, free = ray.cluster_resources(), ray.available_resources()
    asked = ", ".join(
        f"{amount:g} {name} (the cluster has {there.get(_ray_name(name), 0):g}, "
        f"{free.get(_ray_name(name), 0):g} free)"
        for name, amount in resources.as_ray().items()
    )
    return f"No trial could start for {seconds:g} s: each asks for {asked}. Waiting for nodes."


def _ray_name(name: str) -> str:
    return name if name == "memory" else name.upper()
