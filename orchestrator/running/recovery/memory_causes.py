"""Causes of a memory failure: the trial itself, other processes, or a missing kernel."""

from __future__ import annotations

from contextlib import suppress
from enum import Enum, auto

from orchestrator.machine.gpu_problems import MAX_SHARE_OF_OTHERS_ON_GPU
from orchestrator.planning.costs.gpu_models import GpuModel
from orchestrator.planning.costs.memory import peak_bytes
from orchestrator.results.records import TrialFailure
from search_spaces.errors import SweepError
from search_spaces.specs import TrialSpec

MAX_SHARE_OF_OTHERS_ON_MACHINE = 0.5
"""Share of a machine's memory, from 0 to 1. If other processes used more than this share, they
caused the memory failure. Otherwise the killed trial caused it."""


class MemoryCause(Enum):
    """The cause of a memory failure."""

    TRIAL = auto()
    """The trial needs more memory than it requested."""
    OTHER_PROCESSES = auto()
    """Other processes use memory that the trial needs."""
    UNKNOWN = auto()
    """The cause is unknown: the trial had a whole GPU, but the memory use of other processes
    was not measured."""
    NO_KERNEL = auto()
    """The memory is large enough, but cuDNN has no kernel for the network on this GPU."""


def cause_on_machine(failure: TrialFailure) -> MemoryCause:
    """Return why the memory of a machine ran out."""
    share_of_others = failure.held_by_others
    if share_of_others is not None and share_of_others > MAX_SHARE_OF_OTHERS_ON_MACHINE:
        return MemoryCause.OTHER_PROCESSES
    return MemoryCause.TRIAL


def cause_on_gpu(
    trial: TrialSpec, failure: TrialFailure, num_gpus: float, gpu: GpuModel | None
) -> MemoryCause:
    """Return why the memory of a GPU ran out.

    Args:
        trial: the trial that failed.
        failure: description of the failed attempt.
        num_gpus: number of GPUs that the trial requested, for example 0.5 for half a GPU.
        gpu: the smallest GPU of the cluster, or None if it is unknown.
    """
    share_of_others = failure.held_by_others
    if share_of_others is not None and share_of_others > MAX_SHARE_OF_OTHERS_ON_GPU:
        return MemoryCause.OTHER_PROCESSES
    if num_gpus == 1 and _needs_less_than_half(trial, gpu):
        # The trial alone fits on the GPU. cuDNN reports a missing kernel and missing memory
        # with the same error. If the share of other processes was measured and is small, the
        # kernel is missing.
        if failure.no_engine and share_of_others is not None:
            return MemoryCause.NO_KERNEL
        # Other processes may have used the memory and freed it before it was measured.
        return MemoryCause.OTHER_PROCESSES
    if num_gpus >= 1 and share_of_others is None:
        return MemoryCause.UNKNOWN
    # A trial with less than one GPU has a memory limit, so other processes are not the cause.
    return MemoryCause.TRIAL


def _needs_less_than_half(trial: TrialSpec, gpu: GpuModel | None) -> bool:
    """Return whether a trial surely needs less than half of a GPU's memory. Return False if
    the need is unknown.
    """
    if gpu is None:
        return False
    with suppress(SweepError):
        return 2 * peak_bytes(trial.network) < gpu.memory_gib * 2**30
    return False
