"""Quarantine of GPUs. After a GPU has failed, no trial uses it for some minutes.

Ray always assigns the first free GPU, so Ray would assign the failed GPU again and again. To
prevent this, a sleeping Ray task occupies the failed GPU.
"""

from __future__ import annotations

import os
import time
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.running.messages import WorkerLocation
from orchestrator.running.workers.trial_device import FIRST_QUARANTINE_S

MAX_QUARANTINE_S = FIRST_QUARANTINE_S * 2.0**3
"""Length of the longest quarantine in seconds. In this time a GPU can cool down, or a person
can reset it."""
TRY_AGAIN_AFTER_S = 0.1
"""Seconds between two attempts to get the failed GPU from Ray."""


class GpuQuarantine:
    """The quarantined GPUs of a cluster.

    Args:
        num_gpus: number of GPUs of the cluster. The last usable GPU is never quarantined.
    """

    def __init__(self, num_gpus: float) -> None:
        self._num_gpus = num_gpus
        self._gpu_by_task: dict[Any, tuple[str, str]] = {}

    def add(self, location: WorkerLocation, seconds: float) -> None:
        """Quarantine the share of a GPU that a failed trial used, for a number of seconds."""
        self._remove_ended_tasks()
        gpu = (location.node, location.gpus)
        quarantined = list(self._gpu_by_task.values())
        is_last = len({gpu, *quarantined}) >= self._num_gpus
        occupied_share = quarantined.count(gpu) * location.num_gpus
        if not is_last and occupied_share + location.num_gpus <= 1:
            self._gpu_by_task[occupy(location, seconds)] = gpu

    def _remove_ended_tasks(self) -> None:
        tasks = list(self._gpu_by_task)
        if not tasks:
            return
        ended, _ = ray.wait(tasks, num_returns=len(tasks), timeout=0)
        for task in ended:
            del self._gpu_by_task[task]


def occupy(location: WorkerLocation, seconds: float) -> Any:
    """Occupy the share of a GPU that a failed trial used. Return the reference of the sleeping
    Ray task.

    If the failed process still runs, Ray assigns another GPU to the task. The task then tries
    again. If another trial gets the failed GPU first and keeps it, the GPU is not quarantined.
    """
    on_node = NodeAffinitySchedulingStrategy(location.node_id, soft=False)
    task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=on_node)(_occupy)
    return task.remote(location, seconds)


def _occupy(location: WorkerLocation, seconds: float) -> None:
    deadline = time.time() + MAX_QUARANTINE_S
    task = ray.remote(
        num_cpus=0,
        num_gpus=location.num_gpus,
        max_calls=0,
        max_retries=0,
        scheduling_strategy=NodeAffinitySchedulingStrategy(location.node_id, soft=False),
    )(_sleep_on_gpu)
    while time.time() < deadline:
        if ray.get(task.remote(location.gpus, seconds, deadline)):
            return
        time.sleep(TRY_AGAIN_AFTER_S)


def _sleep_on_gpu(gpus: str, seconds: float, deadline: float) -> bool:
    """Sleep if Ray assigned the failed GPU to this task. Return whether Ray did so."""
    is_on_gpu = os.environ.get("CUDA_VISIBLE_DEVICES") == gpus and time.time() < deadline
    if is_on_gpu:
        time.sleep(seconds)
    return is_on_gpu
