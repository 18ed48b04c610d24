"""The capacity of the connected Ray cluster: its nodes, and the number of trials that run at
once.
"""

from __future__ import annotations

from typing import NamedTuple

import ray

from orchestrator.machine.cluster import Resources
from search_spaces.errors import plural

ROUNDING_ERROR = 1e-9
"""Number that is added to a number of trials before it is rounded down. Without it, a rounding
error could cost one trial: the mean of equal requests may be slightly larger than each
request."""


class Slots(NamedTuple):
    """The number of trials that a cluster runs at once.

    Attributes:
        num_trials: number of trials, at least 1.
        note: a note to the user if the nodes have too few CPUs to use all GPUs, otherwise an
            empty text.
    """

    num_trials: int
    note: str


def live_nodes() -> list[dict[str, float]]:
    """Return the resources of each live node of the connected cluster, by the resource's name."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def node_memory_bytes() -> float:
    """Return the bytes of memory that Ray may assign on the connected cluster's largest node."""
    return max(float(node.get("memory", 0)) for node in live_nodes())


def slots_for(resources: Resources) -> Slots:
    """Return how many trials with these resources the connected cluster runs at once."""
    num_cpus = resources.num_cpus
    num_gpus = resources.num_gpus
    nodes = live_nodes()
    slots_by_cpus = [_num_slots(node.get("CPU", 0), num_cpus) for node in nodes]
    slots_by_gpus = slots_by_cpus
    if num_gpus:
        slots_by_gpus = [_num_slots(node.get("GPU", 0), num_gpus) for node in nodes]
    num_trials = sum(map(min, zip(slots_by_cpus, slots_by_gpus, strict=True)))
    num_with_all_gpus = sum(slots_by_gpus)
    note = ""
    if num_trials < num_with_all_gpus:
        note = (
            f"The cluster's GPUs could run {plural(num_with_all_gpus, 'trial')} at once, but with "
            f"`resources.num_cpus: {num_cpus:g}` the cluster's CPUs are enough for only "
            f"{num_trials}. To use all GPUs, lower `resources.num_cpus`, or use nodes with "
            f"{plural(num_with_all_gpus * num_cpus, 'CPU')} in total"
        )
    return Slots(max(1, num_trials), note)


def _num_slots(available: float, requested: float) -> int:
    """Return how many trials fit on a node if each requests this amount of a resource."""
    return int(available / requested + ROUNDING_ERROR)
