"""Actors of the driver's own: on its node, so that no other node takes one along when it goes."""

from __future__ import annotations

from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


def start_beside_driver(kind: type, *arguments: Any, **options: Any) -> Any:
    """Start an actor on this driver's node and return its handle.

    It asks for no CPU, since it must answer while trials have all of them. Left to Ray it would lie on
    any node, and every trial that asks it would fail once that node is lost. Its calls are kept out of Ray's
    list of tasks, where people look for trials.

    Args:
        kind: Class of the actor.
        arguments: Of its constructor.
        options: Further ones of Ray's, e.g. ``max_restarts``.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"num_cpus": 0, "enable_task_events": False, "scheduling_strategy": here, **options}
    return ray.remote(**options)(kind).remote(*arguments)
