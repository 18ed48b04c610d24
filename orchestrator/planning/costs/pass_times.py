"""Predict the time of one pass of a network on a GPU, kernel by kernel.

A kernel takes as long as its arithmetic or its memory traffic, whichever takes longer. It
takes at least the interval between the starts of two kernels.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from orchestrator.planning.costs.gpu_models import GpuModel
from orchestrator.planning.costs.kernels import PassCost

STREAM_EFFICIENCY = 0.85
"""Share of the memory bandwidth that long sequential reads and writes reach, for example in an
optimizer."""
EAGER_INTERVAL_S = 10e-6
"""Seconds between the starts of two kernels if Python starts them. This number is assumed, not
measured."""
GRAPH_INTERVAL_S = 3e-6
"""Seconds between the starts of two kernels in a CUDA graph. This number is assumed, not
measured."""
SINGLE_EFFICIENCY = 0.7
"""Smallest share of the float32 rate that training reaches, by assumption. Float32 units come
closer than tensor cores to the rate in the data sheet."""


class PassTime(NamedTuple):
    """Predicted time of a pass on a GPU on which nothing else runs.

    Attributes:
        seconds: Seconds of the pass.
        busy: Seconds of the pass during which the GPU computes.
    """

    seconds: float
    busy: float


@lru_cache(maxsize=1024)
def pass_time(cost: PassCost, gpu: GpuModel, *, interval: float, half: bool = True) -> PassTime:
    """Predict the time of one pass.

    Args:
        cost: The kernels of the pass.
        gpu: The GPU, on which nothing else runs.
        interval: Smallest number of seconds between the starts of two kernels.
        half: True if matrix products are in 16 bits, False if they are in float32 without
            TensorFloat-32.
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
