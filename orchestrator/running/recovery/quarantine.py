"""Quarantine of GPUs: a GPU on which a trial failed is kept away from trials for a while.

Ray hands out the first free GPU, so it would hand out the failed one again and again. A sleeping
task of ours therefore occupies it.
"""

from __future__ import annotations

import os
import time
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.running.messages import WorkerLocation
from orchestrator.running.trial_device import REST_S

MAX_QUARANTINE_S = REST_S * 2.0**3
"""Seconds of the longest quarantine. A GPU that was too hot, or was reset by hand, is back by then.
"""
TRY_AGAIN_AFTER_S = 0.1
"""Seconds between two attempts to be given the failed GPU."""


class GpuQuarantine:
    """The GPUs of a cluster that are kept away from trials.

    Args:
        num_gpus: GPUs of the cluster; the last one that is left is never quarantined.
    """

    def __init__(self, num_gpus: float) -> None:
        self._num_gpus = num_gpus
        self._gpu_by_task: dict[Any, tuple[str, str]] = {}

    def add(self, location: WorkerLocation, seconds: float) -> None:
        """Quarantine the share of a GPU that a failed trial had."""
        self._forget_ended()
        gpu = (location.node, location.gpus)
        quarantined = list(self._gpu_by_task.values())
        is_last = len({gpu, *quarantined}) >= self._num_gpus
        occupied_share = quarantined.count(gpu) * location.num_gpus
        if not is_last and occupied_share + location.num_gpus <= 1:
            self._gpu_by_task[occupy(location, seconds)] = gpu

    def _forget_ended(self) -> None:
        tasks = list(self._gpu_by_task)
        if not tasks:
            return
        ended, _ = ray.wait(tasks, num_returns=len(tasks), timeout=0)
        for task in ended:
            del self._gpu_by_task[task]


def occupy(location: WorkerLocation, seconds: float) -> Any:
    """Occupy a failed share of a GPU with a sleeping task; return the reference of its end.

    Until the failed process has ended, Ray gives the task another GPU, and the task asks again. If
    another trial gets the failed GPU first and stays on it, nothing is occupied.
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
    """Sleep if this task was given the GPU; return whether it was."""
    is_on_gpu = os.environ.get("CUDA_VISIBLE_DEVICES") == gpus and time.time() < deadline
    if is_on_gpu:
        time.sleep(seconds)
    return is_on_gpu
