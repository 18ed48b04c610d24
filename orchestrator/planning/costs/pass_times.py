"""Predicted time of one pass of a network on a GPU, kernel by kernel.

A kernel takes as long as its arithmetic or its traffic, whichever is longer, and never less than
the time between two kernels.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from orchestrator.planning.costs.gpu_models import GpuModel
from orchestrator.planning.costs.kernels import PassCost

STREAM_EFFICIENCY = 0.85
"""Share of the bandwidth that long reads and writes in order reach: optimizer, casts of weights."""
EAGER_INTERVAL_S = 10e-6
"""Seconds between two kernels that Python starts; assumed, not measured yet."""
GRAPH_INTERVAL_S = 3e-6
"""Seconds between two kernels of a captured CUDA graph; assumed, not measured yet."""
SINGLE_EFFICIENCY = 0.7
"""Least share of the float32 rate that training reaches: the float32 units come closer to their
data sheet than tensor cores."""


class PassTime(NamedTuple):
    """Seconds that a pass takes alone on a GPU, and the seconds of them in which the GPU works."""

    seconds: float
    busy: float


@lru_cache(maxsize=1024)
def pass_time(cost: PassCost, gpu: GpuModel, *, interval: float, half: bool = True) -> PassTime:
    """Predict the time of one pass.

    Args:
        cost: The kernels of the pass.
        gpu: The GPU that computes it alone.
        interval: Least seconds between two kernels.
        half: True for products in 16 bits; False for float32 without TensorFloat-32.
    """
    if half:
        flops_per_s = 1e12 * gpu.half_tflops * gpu.compute_efficiency
    else:
        efficiency = max(SINGLE_EFFICIENCY, gpu.compute_efficiency)
        flops_per_s = 1e12 * gpu.single_tflops * efficiency
    bytes_per_s = 1e9 * gpu.bandwidth
    seconds = 0.0
    busy = 0.0
    for kernel in cost.kernels:
        efficiency = STREAM_EFFICIENCY if kernel.streams else gpu.bandwidth_efficiency
        work = max(kernel.flops / flops_per_s, kernel.num_bytes / (bytes_per_s * efficiency))
        busy += work
        seconds += max(work, kernel.num_launches * interval)
    return PassTime(seconds, busy)
