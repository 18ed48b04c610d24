"""The choice whether a private cluster starts NVIDIA's multi-process service (MPS).

A failure under MPS affects several trials. So MPS is started only if it saves time.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from orchestrator.machine import gpus
from orchestrator.machine.gpus import Gpu, NodeGpus
from orchestrator.machine.mps import CONTROL
from orchestrator.planning.costs.gpu_checks import PACKING_PAYS
from orchestrator.planning.costs.gpu_models import GpuModel
from orchestrator.planning.costs.needs import need_of
from search_spaces.errors import SweepError
from search_spaces.specs import TrialSpec
from search_spaces.sweeps import ResourceSpec

VOLTA = 7.0
"""Oldest compute capability with which each process under MPS has its own address space."""
MIN_SAVED_S = 120.0
"""Fewest predicted seconds that MPS must save. The start of MPS takes 5 to 20 s."""


@dataclass(frozen=True)
class SharingGain:
    """Predicted GPU time of trials without and with MPS.

    Attributes:
        alone_s: seconds on one GPU with one trial at a time.
        shared_s: seconds on one GPU if trials share it under MPS.
    """

    alone_s: float
    shared_s: float

    @property
    def ratio(self) -> float:
        """Time without MPS divided by time with MPS; 1 if no time was predicted."""
        return self.alone_s / self.shared_s if self.shared_s else 1.0


def sharing_gain(trials: Iterable[TrialSpec], gpu: GpuModel) -> SharingGain:
    """Predict the GPU time of trials without and with MPS.

    Trials of networks whose operations cannot be counted are ignored.
    """
    alone_s = 0.0
    shared_s = 0.0
    for trial in trials:
        with suppress(SweepError):
            alone_s += need_of(trial, gpu, given=1.0).seconds
            shared_s += need_of(trial, gpu).gpu_seconds
    return SharingGain(alone_s, shared_s)


def why_no_mps(
    nodes: Collection[NodeGpus],
    resources: ResourceSpec,
    trials: Collection[TrialSpec],
    checks: Mapping[str, Mapping[str, Any]],
) -> str:
    """Return why a private cluster must not start MPS; empty if it should.

    Args:
        nodes: this machine with its GPUs; empty if trials run on CPUs.
        resources: resources that the sweep requests.
        trials: trials of the sweep.
        checks: summaries of ``isweep gpu-check`` by the driver's name of the GPU.
    """
    num_gpus = sum(len(node.gpus) for node in nodes)
    if not num_gpus:
        return "trials run on CPUs"
    if resources.mps == "never":
        return "resources.mps is never"
    share = resources.num_gpus
    if share is not None and not 0 < share < 1:
        return f"resources.num_gpus is {share:g}, so no trials share a GPU"
    if len(trials) <= num_gpus:
        return "each trial can have a whole GPU"
    if shutil.which(CONTROL) is None:
        return f"no folder on PATH contains {CONTROL}"
    if (gpus.WSL / "libcuda.so.1").exists():
        return "Linux runs inside Windows (WSL)"
    for node in nodes:
        if node.mps:
            return "MPS runs already"
        for gpu in node.gpus:
            reason = _why_not_on(gpu)
            if not reason and share is None:
                reason = _why_no_gain(gpu, trials, checks, num_gpus)
            if reason:
                return f"{gpu.name}: {reason}"
    return ""


def _why_not_on(gpu: Gpu) -> str:
    """Return why MPS must not be started for a GPU; empty if it may be started."""
    if gpu.mig:
        return "the GPU is divided into slices (MIG)"
    if gpu.compute_mode != "Default":
        # After the end of MPS, trials could not share such a GPU any more.
        return f"the compute mode is {gpu.compute_mode}"
    if gpu.capability < VOLTA:
        return f"compute capability {gpu.capability} is below {VOLTA}"
    return ""


def _why_no_gain(
    gpu: Gpu,
    trials: Collection[TrialSpec],
    checks: Mapping[str, Mapping[str, Any]],
    num_gpus: int,
) -> str:
    """Return why MPS does not save enough time on a GPU; empty if it does.

    Only a gain that ``isweep gpu-check`` measured counts: the predicted gain rests on few published
    numbers, and MPS is a service that can fail.
    """
    summary = checks.get(gpu.name) or {}
    measured = summary.get("pair_gain_mps")
    model = gpu.model(checks)
    if measured is None:
        return "the gain by MPS is unknown; `isweep gpu-check` measures it"
    ratio = float(measured)
    if ratio < PACKING_PAYS:
        return f"MPS would make the trials only {ratio:.2f} times as fast"
    saved_s = sharing_gain(trials, model).alone_s * (1 - 1 / ratio) / num_gpus
    if model.timed and saved_s < MIN_SAVED_S:
        return f"MPS would save only {saved_s:.0f} s"
    return ""
