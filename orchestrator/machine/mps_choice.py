"""The decision whether a private cluster starts NVIDIA's multi-process service (MPS).

With MPS, one failure affects several trials. MPS is therefore started only if it saves time.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from typing import Any

from orchestrator.machine.gpus import nvidia_smi
from orchestrator.machine.gpus.records import Gpu, NodeGpus
from orchestrator.machine.mps_daemon import CONTROL
from orchestrator.planning.costs.gpu_checks import MIN_SHARING_GAIN
from orchestrator.planning.costs.gpu_models import GpuModel
from orchestrator.planning.costs.needs import need_of
from search_spaces.errors import SweepError
from search_spaces.specs import TrialSpec
from search_spaces.sweeps import ResourceSpec

VOLTA = 7.0
"""Lowest compute capability with which each MPS process has a separate address space."""
MIN_SAVED_S = 120.0
"""Predicted seconds that MPS must save at least. If it saves less, it is not started, because
its start takes 5 to 20 s."""


def seconds_in_sequence(trials: Iterable[TrialSpec], gpu: GpuModel) -> float:
    """Return the predicted seconds of trials that run on one GPU, one after the other.

    If the operations of a network cannot be counted, its trials are ignored.
    """
    seconds = 0.0
    for trial in trials:
        with suppress(SweepError):
            seconds += need_of(trial, gpu, fixed_share=1.0).seconds
    return seconds


def why_no_mps(
    nodes: Collection[NodeGpus],
    resources: ResourceSpec,
    trials: Collection[TrialSpec],
    checks: Mapping[str, Mapping[str, Any]],
) -> str:
    """Return the reason why a private cluster must not start MPS, or an empty text if it may
    start MPS.

    Args:
        nodes: this machine with its GPUs, in a list. The list is empty if trials run on CPUs.
        resources: resources that the sweep requests.
        trials: trials of the sweep.
        checks: summaries of ``isweep gpu-check``, by name of the GPU.
    """
    num_gpus = sum(len(node.gpus) for node in nodes)
    if not num_gpus:
        return "trials run on CPUs"
    if resources.mps == "never":
        return "resources.mps is never"
    share = resources.num_gpus
    if share is not None and not 0 < share < 1:
        return f"resources.num_gpus is {share:g}, so trials do not share a GPU"
    if len(trials) <= num_gpus:
        return "each trial can have a whole GPU"
    if shutil.which(CONTROL) is None:
        return f"no folder on PATH contains the program {CONTROL}"
    if nvidia_smi.is_wsl_with_gpu():
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
    """Return the reason why MPS must not be started for a GPU, or an empty text if there is
    none.
    """
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
    """Return the reason why MPS does not save enough time on a GPU, or an empty text if there
    is none.

    Only a gain that ``isweep gpu-check`` has measured counts. A predicted gain would be based
    on few published numbers, and MPS can fail.
    """
    summary = checks.get(gpu.name) or {}
    measured = summary.get("pair_gain_mps")
    model = gpu.model(checks)
    if measured is None:
        return "the gain from MPS is unknown; to measure the gain, run `isweep gpu-check`"
    gain = float(measured)
    if gain < MIN_SHARING_GAIN:
        return f"with MPS, the trials would be only {gain:.2f} times as fast"
    saved_s = seconds_in_sequence(trials, model) * (1 - 1 / gain) / num_gpus
    if model.timed and saved_s < MIN_SAVED_S:
        return f"MPS would save only {saved_s:.0f} s"
    return ""
