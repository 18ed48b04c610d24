"""Table of GPUs: rates and memory from data sheets, and the shares that training reaches.

The shares of the rates are fitted to published training throughput with images of 224 x 224
pixels, or are assumed. The column ``origin`` of ``gpu_models.csv`` states the source of each
row. ``isweep gpu-check`` measures the shares on your own GPU.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from search_spaces.errors import unknown_name
from tasks.trials.records import CONTEXT_BYTES

BFLOAT16_FROM = 8.0
"""Lowest CUDA compute capability that computes in bfloat16."""
MODEL_OF_OLDER_GPUS = "v100"
"""GPU of the table whose rates isweep uses for every GPU that is older than all GPUs of the
table."""
WORDS_OF_SMALLER_GPUS = frozenset({"mig", "laptop", "max", "d"})
"""Words in the name of a GPU that show that it is a smaller variant: a MIG slice, Laptop,
Max-Q or D. The name comes from the GPU's driver. The table contains only the full GPU with the
same model number."""


@dataclass(frozen=True)
class GpuModel:
    """A kind of GPU.

    Attributes:
        name: Name of the GPU on the command line.
        capability: CUDA compute capability.
        processors: Number of streaming multiprocessors.
        half_tflops: Dense rate in bfloat16, 1e12 operations per second. If the GPU has no
            bfloat16, it is the rate in float16.
        single_tflops: Rate in float32 without TensorFloat-32, 1e12 operations per second.
        bandwidth: Bandwidth of the memory, GB/s.
        memory_gib: Size of the memory, GiB.
        compute_efficiency: Share of the arithmetic rates that training reaches.
        bandwidth_efficiency: Share of the bandwidth that training reaches.
        origin: Text about the source of these numbers.
        timed: False if the time of a trial on this GPU cannot be predicted.
        network_factors: Measured time divided by predicted time of a network's trials, by the
            name of the network. These factors exist only after ``isweep gpu-check``.
        context_gib: Memory that a process needs besides its tensors, GiB. ``isweep gpu-check``
            replaces this value if it measures a larger one.
    """

    name: str
    capability: float
    processors: int
    half_tflops: float
    single_tflops: float
    bandwidth: float
    memory_gib: float
    compute_efficiency: float
    bandwidth_efficiency: float
    origin: str = "data sheet; shares fitted to published training"
    timed: bool = True
    network_factors: tuple[tuple[str, float], ...] = ()
    context_gib: float = CONTEXT_BYTES / 2**30

    @property
    def context_bytes(self) -> int:
        """Memory that a process needs besides its tensors, in bytes."""
        return round(self.context_gib * 2**30)

    def time_factor(self, network: str) -> float:
        """Return measured time divided by predicted time of a network, or 1 if unmeasured."""
        return dict(self.network_factors).get(network, 1.0)

    @property
    def bfloat16(self) -> bool:
        """True if the GPU computes in bfloat16.

        PyTorch only emulates bfloat16 on older GPUs.
        """
        return self.capability >= BFLOAT16_FROM


def _read_table() -> dict[str, GpuModel]:
    path = Path(__file__).with_suffix(".csv")
    models = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            models[row["name"]] = GpuModel(
                name=row["name"],
                capability=float(row["capability"]),
                processors=int(row["processors"]),
                half_tflops=float(row["half_tflops"]),
                single_tflops=float(row["single_tflops"]),
                bandwidth=float(row["bandwidth"]),
                memory_gib=float(row["memory_gib"]),
                compute_efficiency=float(row["compute_efficiency"]),
                bandwidth_efficiency=float(row["bandwidth_efficiency"]),
                origin=row["origin"],
            )
    return models


GPU_MODELS = _read_table()
"""All GPUs of the table by name, in the order of the file."""


def gpu_model(name: str) -> GpuModel:
    """Return a GPU of the table by its name, in upper or lower case.

    Raises:
        ConfigError: The table has no such GPU.
    """
    if name.lower() not in GPU_MODELS:
        raise unknown_name("GPU", name, GPU_MODELS)
    return GPU_MODELS[name.lower()]


def listed_gpu_model(name: str) -> GpuModel | None:
    """Return the GPU of the table that has the name from a driver or from Ray, or None.

    If several GPUs fit, return the one with the least memory. MIG slices and smaller variants
    of a GPU are not in the table.
    """
    words = re.split("[-_ ]+", name.lower())
    words += [first + second for first, second in pairwise(words)]  # "RTX 3090" is rtx3090
    if WORDS_OF_SMALLER_GPUS.intersection(words):
        return None
    fitting = [gpu for key, gpu in GPU_MODELS.items() if key.partition("-")[0] in words]
    # Ray uses one name for both sizes of an A100. A driver reports NVIDIA A100-SXM4-80GB.
    size = re.search(r"\b(\d+)\s?g", name.lower())
    if size:
        fitting = [gpu for gpu in fitting if gpu.memory_gib == int(size[1])] or fitting
    is_pcie = "pcie" in words
    fitting = [gpu for gpu in fitting if ("pcie" in gpu.name) == is_pcie] or fitting
    return min(fitting, key=lambda gpu: gpu.memory_gib, default=None)


def gpu_model_from_driver(
    name: str,
    memory_gib: float,
    capability: float,
    processors: int,
    checks: Mapping[str, Mapping[str, Any]] | None = None,
) -> GpuModel:
    """Return the kind of a GPU from the data that its driver reports.

    If the table lacks the GPU, for example because it is a MIG slice, isweep uses the rates
    per processor of another GPU: the slowest GPU of the table with the same compute
    capability. If the table has no GPU with this capability, isweep uses the next lower
    capability in the table.

    Args:
        name: Name of the GPU, as the driver reports it.
        memory_gib: Memory that the driver reports, GiB.
        capability: CUDA compute capability.
        processors: Number of streaming multiprocessors, or 0 if it is unknown.
        checks: Measured rates by the name that the driver reports, see
            :func:`orchestrator.planning.costs.gpu_checks.read_checks`. A measured rate
            replaces the rate of the table.
    """
    gpu = listed_gpu_model(name) or _unlisted(name, capability, processors)
    row = (checks or {}).get(name, {}).get("row", {})
    measured: dict[str, Any] = {}
    for field in fields(GpuModel):
        if field.name in row:
            measured[field.name] = row[field.name]
    measured.update(name=gpu.name, memory_gib=memory_gib)
    # JSON contains lists, but a GpuModel must be hashable, because caches use it as a key.
    factors = measured.get("network_factors", ())
    measured["network_factors"] = tuple((str(name), float(factor)) for name, factor in factors)
    return replace(gpu, **measured)


def _unlisted(name: str, capability: float, processors: int) -> GpuModel:
    """Return a GPU that is not in the table, with the rates per processor of a GPU in the table."""
    older = [gpu for gpu in GPU_MODELS.values() if gpu.capability <= capability]
    similar = max(
        older or [GPU_MODELS[MODEL_OF_OLDER_GPUS]],
        key=lambda gpu: (gpu.capability, -gpu.half_tflops / gpu.processors),
    )
    part = processors / similar.processors if processors else 1.0
    return replace(
        similar,
        name=name,
        capability=capability,
        processors=processors,
        half_tflops=part * similar.half_tflops,
        single_tflops=part * similar.single_tflops,
        bandwidth=part * similar.bandwidth,
        timed=False,
        origin=f"not in isweep's table of GPUs; speed per processor as of {similar.name}",
    )
