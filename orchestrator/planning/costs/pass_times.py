"""Predicted time of one pass of a network on a GPU, kernel by kernel."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from orchestrator.planning.costs.gpu_models import GpuModel
from orchestrator.planning.costs.kernels import PassCost

STREAM_EFFICIENCY = 0.85
"""Share of the bandwidth that long reads and writes in order reach: optimiser, casts of weights."""
EAGER_INTERVAL_S, GRAPH_INTERVAL_S = 10e-6, 3e-6
"""Time between two kernels that Python starts, and within a captured graph: assumed, not measured
yet."""


class PassTime(NamedTuple):
    """How many seconds a pass takes alone on a GPU, and for how many of them it is busy."""

    seconds: float
    busy: float


@lru_cache(maxsize=1024)
def pass_time(cost: PassCost, gpu: GpuModel, *, interval: float, half: bool = True) -> PassTime:
    """Predict one pass, with at least ``interval`` seconds between two kernels.

    Products run in 16 bits where ``half`` says so, else in float32 without TensorFloat-32.
    """
    rate = 1e12 * (gpu.half_tflops if half else gpu.single_tflops)
    # Data sheets of float32 units are reached more easily than those of tensor cores.
    arithmetic = rate * (gpu.compute_efficiency if half else max(0.7, gpu.compute_efficiency))
    traffic = 1e9 * gpu.bandwidth
    seconds = busy = 0.0
    for kernel in cost.kernels:
        reached = STREAM_EFFICIENCY if kernel.streams else gpu.bandwidth_efficiency
        work = max(kernel.flops / arithmetic, kernel.num_bytes / (traffic * reached))
        busy += work
        seconds += max(work, kernel.num_launches * interval)
    return PassTime(seconds, busy)
