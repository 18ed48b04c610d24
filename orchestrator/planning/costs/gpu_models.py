"""Table of GPUs: rates and memory by data sheet, and the shares of them that training reaches."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any

from search_spaces.errors import unknown_name

BFLOAT16_FROM = 8.0
"""Compute capability."""


@dataclass(frozen=True)
class GpuModel:
    """One model of GPU, by its name on the command line.

    ``capability`` is CUDA's, ``processors`` are the streaming ones. In 1e12 operations per second
    are ``half_tflops`` (dense bfloat16, else float16) and ``single_tflops`` (float32 without
    TensorFloat-32), in GB/s the memory's ``bandwidth``; efficiencies are the shares of these that
    training reaches. ``price`` is an assumed hour's in US dollars, November 2026. Where it is not
    ``timed``, its hours are unknown.
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
    watts: float
    price: float
    origin: str = "data sheet; shares fitted to published training"
    timed: bool = True

    @property
    def bfloat16(self) -> bool:
        """Whether it computes in bfloat16: PyTorch tells older GPUs to as well, and emulates it."""
        return self.capability >= BFLOAT16_FROM


LIKE = "data sheet; shares as those of "
GPU_MODELS = {
    gpu.name: gpu
    for gpu in (
        GpuModel("rtx3090", 8.6, 82, 71, 35.6, 936, 24, 0.90, 0.65, 350, 0.4),
        GpuModel("a100-40", 8.0, 108, 312, 19.5, 1555, 40, 0.34, 0.65, 400, 1.5),
        GpuModel("a100", 8.0, 108, 312, 19.5, 2039, 80, 0.34, 0.65, 400, 1.8),
        GpuModel("h100-pcie", 9.0, 114, 756, 51, 2000, 80, 0.50, 0.38, 350, 2.5),
        GpuModel("h100", 9.0, 132, 989, 67, 3350, 80, 0.50, 0.38, 700, 3.0),
        GpuModel("h200", 9.0, 132, 989, 67, 4800, 141, 0.50, 0.38, 700, 3.8),
        GpuModel(
            "rtx4090",
            8.9,
            128,
            165,
            82.6,
            1008,
            24,
            0.65,
            0.65,
            450,
            0.6,
            LIKE + "a 3090 and an H100",
        ),
        GpuModel(
            "l4", 8.9, 58, 121, 30.3, 300, 24, 0.50, 0.65, 72, 0.8, LIKE + "an A100 and an H100"
        ),
        GpuModel("l40s", 8.9, 142, 362, 91.6, 864, 48, 0.34, 0.65, 350, 1.5, LIKE + "an A100"),
        GpuModel(
            "a10g", 8.6, 80, 70, 31.5, 600, 24, 0.65, 0.65, 300, 1.0, LIKE + "a 3090 and an A100"
        ),
        GpuModel(
            "a6000", 8.6, 84, 155, 38.7, 768, 48, 0.41, 0.65, 300, 0.8, LIKE + "a 3090, its chip"
        ),
        GpuModel("t4", 7.5, 40, 65, 8.1, 320, 16, 0.34, 0.65, 70, 0.4, LIKE + "an A100"),
        GpuModel("v100", 7.0, 80, 125, 15.7, 900, 16, 0.34, 0.65, 300, 1.0, LIKE + "an A100"),
        GpuModel("v100-32", 7.0, 80, 125, 15.7, 900, 32, 0.34, 0.65, 300, 1.2, LIKE + "an A100"),
        GpuModel("rtx5090", 12.0, 170, 209, 105, 1792, 32, 0.65, 0.65, 575, 0.9, LIKE + "a 4090"),
        GpuModel("b200", 10.0, 148, 2250, 75, 8000, 180, 0.50, 0.38, 1000, 5.0, LIKE + "an H100"),
    )
}


def gpu_model(name: str) -> GpuModel:
    """Return the GPU of the table; a name that is not in it is a :class:`ConfigError`."""
    if name.lower() not in GPU_MODELS:
        raise unknown_name("GPU", name, GPU_MODELS)
    return GPU_MODELS[name.lower()]


def gpu_model_like(name: str) -> GpuModel | None:
    """Return the GPU of the table that a driver or Ray names, of several that with least memory, or
    None.

    A slice of one (MIG) is none, nor are smaller ones of its name: Laptop, Max-Q, D.
    """
    words = re.split("[-_ ]+", name.lower())
    words += [first + second for first, second in pairwise(words)]  # RTX 3090
    if {"mig", "laptop", "max", "d"} & set(words):
        return None
    fit = [gpu for key, gpu in GPU_MODELS.items() if key.partition("-")[0] in words]
    size = re.search(r"\b(\d+)\s?g", name.lower())  # NVIDIA A100-SXM4-80GB; Ray calls both A100
    fit = [gpu for gpu in fit if size and gpu.memory_gib == int(size[1])] or fit
    fit = [gpu for gpu in fit if ("pcie" in gpu.name) == ("pcie" in words)] or fit
    return min(fit, key=lambda gpu: gpu.memory_gib, default=None)


def gpu_model_there(
    name: str,
    memory_gib: float,
    capability: float,
    processors: int,
    checks: Mapping[str, Mapping[str, Any]] | None = None,
) -> GpuModel:
    """Return the GPU that a node's driver describes so; ``checks`` of :func:`read_checks`.

    One that the table lacks, as a slice (MIG), has the rates per processor of the slowest GPU of
    the table of its capability, or of the last before it.
    """
    gpu = gpu_model_like(name)
    if gpu is None:
        older = [gpu for gpu in GPU_MODELS.values() if gpu.capability <= capability] or [
            GPU_MODELS["v100"]
        ]
        like = max(older, key=lambda gpu: (gpu.capability, -gpu.half_tflops / gpu.processors))
        part = processors / like.processors if processors else 1.0
        rates = {
            rate: part * getattr(like, rate)
            for rate in ("half_tflops", "single_tflops", "bandwidth")
        }
        gpu = replace(
            like, **rates, name=name, capability=capability, processors=processors, timed=False
        )
        gpu = replace(gpu, origin=f"unknown: no hours; per processor as {like.name}")
    found = (checks or {}).get(name, {}).get("row", {})
    measured = {field.name: found[field.name] for field in fields(GpuModel) if field.name in found}
    return replace(gpu, **{**measured, "name": gpu.name, "memory_gib": memory_gib})
