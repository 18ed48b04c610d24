"""The device of a trial in its worker: the GPU that it was given, or a CPU.

A trial that was given a GPU computes on it or fails; it never falls back to a CPU silently. Before
its first step the GPU must be reached by torch, have the recipe's precision, and pass the self-test
for the trial's network.
"""

from __future__ import annotations

import logging
import os
import socket
from contextlib import suppress
from dataclasses import dataclass, replace

from orchestrator.machine import gpus, self_test_verdict
from orchestrator.machine.cluster import Resources
from orchestrator.machine.gpu_errors import library_error
from orchestrator.machine.self_test_case import Case
from orchestrator.planning.costs.gpu_models import BFLOAT16_FROM
from search_spaces.errors import SetupError
from search_spaces.specs import NetworkSpec
from tasks.trials.records import CONTEXT_BYTES, ComputeOptions

log = logging.getLogger(__name__)

REST_S = 120.0
"""Seconds before a process that has finished no trial reports a failure of its GPU. A GPU that
fails at once would otherwise be free first and get every trial of the sweep."""


class UnusableGpuError(SetupError):
    """A trial was given a GPU on which it cannot compute; ``gpu`` names the GPU and its node."""

    gpu = ""

    @classmethod
    def of(cls, gpu: str, reason: str, hint: str) -> UnusableGpuError:
        """Return the error for a GPU, why it cannot be used, and the fix."""
        error = cls(f"A trial cannot compute on {gpu}: {reason}", hint=hint)
        error.gpu = gpu
        return error


@dataclass(frozen=True)
class HeldMemory:
    """GPU memory that other processes hold; ``total_bytes`` is 0 if the GPU could not be asked."""

    held_bytes: float
    total_bytes: float

    @property
    def share(self) -> float:
        """Share of the GPU's memory; 1 if this process could not even begin on the GPU."""
        return self.held_bytes / self.total_bytes if self.total_bytes else 1.0

    def __str__(self) -> str:
        """Return the amounts for people."""
        if not self.total_bytes:
            return "other processes hold all memory of the GPU"
        held_gib = self.held_bytes / 2**30
        total_gib = self.total_bytes / 2**30
        return f"other processes hold {held_gib:.1f} of {total_gib:.1f} GiB of the GPU"


@dataclass(frozen=True)
class TrialDevice(ComputeOptions):
    """The device that a trial computes on, and how it computes there.

    Attributes:
        note: why the GPU takes plain steps; empty if it takes graphs, or if none were requested.
    """

    note: str = ""


def device_for(resources: Resources, network: NetworkSpec) -> TrialDevice:
    """Return where and how a trial of a network computes, with these resources.

    Raises:
        UnusableGpuError: the trial cannot compute on the GPU that it was given.
    """
    device = TrialDevice(num_threads=resources.num_threads, micro_batch=resources.micro_batch)
    if not resources.num_gpus or gpus.is_logical():
        return device
    check_gpu(network.recipe.precision)
    # Before this process computes: a GPU in exclusive mode takes no self-test beside it.
    plain_because = check_numbers(network)
    check_computes()
    gpu_fraction = None
    if resources.num_gpus < 1:
        # A whole GPU needs no limit: nobody else is there.
        gpu_fraction = resources.num_gpus
    device = replace(device, device="cuda", gpu_fraction=gpu_fraction)
    if resources.fast == "on":
        return replace(device, graphs=True)
    if resources.fast == "off" or network.model.library == "own":
        # The code of a user's network need not replay as a graph.
        return device
    return replace(device, graphs=not plain_because, note=plain_because)


def check_numbers(network: NetworkSpec) -> str:
    """Check with the self-test that this process's GPU computes a network's numbers rightly.

    Returns:
        Why trials of the network take plain steps on this GPU; empty if they take graphs.

    Raises:
        UnusableGpuError: the GPU computes wrongly, so no trial may use it.
    """
    gpu = gpus.gpu_in_use()
    verdict = self_test_verdict.verdict_of(gpu.uuid, Case.of_network(network))
    if verdict.wrong:
        raise UnusableGpuError.of(
            gpu_and_node(gpu.uuid),
            f"{gpu.name} computes wrongly: {verdict.wrong}",
            "Use another GPU, driver or torch version, or hide this GPU with "
            f"CUDA_VISIBLE_DEVICES. To test the GPU again, delete {verdict.file}",
        )
    if not verdict.plain_because:
        return ""
    note = (
        f"{gpu.uuid} ({gpu.name}) of node {socket.gethostname()} takes plain steps instead of "
        f"captured graphs: {verdict.plain_because}"
    )
    log.warning("%s", note)
    return note


def check_computes() -> None:
    """Check that the GPU computes at all. If it is dead, the trial is not to blame.

    Raises:
        UnusableGpuError: the GPU is dead.
        torch.AcceleratorError: it is out of memory.
    """
    import torch

    try:
        torch.ones(1, device="cuda").item()
    except torch.AcceleratorError as error:
        library_row = library_error(error)
        if library_row is not None and library_row.memory == "gpu":
            raise
        raise UnusableGpuError.of(
            gpu_and_node(gpus.gpu_in_use().uuid),
            str(error).splitlines()[0],
            "Reset the GPU, or hide it with CUDA_VISIBLE_DEVICES. `nvidia-smi` says more",
        ) from error


def check_gpu(precision: str) -> None:
    """Check that torch reaches a GPU here that has the recipe's precision.

    Nodes that join a running cluster were not checked before.

    Raises:
        UnusableGpuError: torch reaches no GPU, or the GPU lacks bfloat16 and the recipe needs it.
    """
    import torch

    if not torch.cuda.is_available():
        driver = gpus.driver_version()
        reason = gpus.why_no_gpu()
        cuda = torch.version.cuda
        hint = gpus.driver_hint(driver, cuda, reason)
        explanation = f" ({reason})" if reason else ""
        raise UnusableGpuError.of(
            gpu_and_node(),
            f"the NVIDIA driver is {driver or 'absent'}, and torch {torch.__version__} was built "
            f"for CUDA {cuda or 'none'}{explanation}",
            f"{hint}, or run with --device cpu",
        )
    if precision != "bfloat16":
        return
    capability = gpus.compute_capability()
    if capability < BFLOAT16_FROM:
        gpu = gpus.gpu_in_use()
        raise UnusableGpuError.of(
            gpu_and_node(gpu.uuid),
            f"the recipe needs bfloat16, which {gpu.name} with compute capability {capability} "
            "does not have",
            "Take such nodes out of the cluster, or choose a recipe with precision: float32",
        )


def held_by_others() -> HeldMemory | None:
    """Return what other processes hold of this process's GPU; None if that is unknown."""
    import torch

    if gpus.is_logical():
        return None
    reserved = torch.cuda.memory_reserved()  # 0 before this process has a context
    with suppress(RuntimeError, AssertionError):
        free, total = torch.cuda.mem_get_info()
        return HeldMemory(max(0, total - free - reserved - CONTEXT_BYTES), total)
    return None if reserved else HeldMemory(0, 0)


def gpu_and_node(uuid: str = "") -> str:
    """Return the words by which failures name this process's GPU: its UUID, or else its number."""
    number = os.environ.get("CUDA_VISIBLE_DEVICES") or "of no number"
    return f"{uuid or f'GPU {number}'} of node {socket.gethostname()}"
