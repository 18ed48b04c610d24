"""The device on which a worker runs a trial: the GPU that Ray assigned, or a CPU.

If Ray assigned a GPU, the trial uses this GPU or fails. It never uses a CPU instead. Before
the first training step, the worker checks three things: torch can use the GPU, the GPU
supports the recipe's precision, and the GPU passes the self-test with the trial's network.
"""

from __future__ import annotations

import logging
import os
import socket
from contextlib import suppress
from dataclasses import dataclass, replace

from orchestrator.machine.cluster import Resources
from orchestrator.machine.gpu_errors import library_error
from orchestrator.machine.gpus import nvidia_smi, torch_gpus
from orchestrator.machine.gpus.driver_hints import driver_hint
from orchestrator.machine.gpus.records import GpuInUse
from orchestrator.machine.gpus.visible import gpus_are_simulated
from orchestrator.machine.mps_worker import avoid_abandoned_mps
from orchestrator.machine.self_test import stored_verdicts
from orchestrator.machine.self_test.case import Case
from orchestrator.machine.self_test.stored_verdicts import StoredVerdict
from orchestrator.planning.costs.gpu_models import BFLOAT16_FROM
from search_spaces.errors import SetupError
from search_spaces.specs import NetworkSpec
from tasks.trials.records import CONTEXT_BYTES, ComputeOptions

log = logging.getLogger(__name__)

FIRST_QUARANTINE_S = 120.0
"""Seconds of a GPU's first quarantine. If the first trial of a worker fails because of the
GPU, the worker waits for the same time before it reports the failure. Without this pause, a
GPU on which trials fail at once would get every trial of the sweep."""


class UnusableGpuError(SetupError):
    """Error that is raised if a trial cannot compute on its GPU.

    Attributes:
        gpu: GPU and node as text, for example ``GPU 0 of node gpu-1``.
        device_lost: True if the GPU, or the process that tested it, failed. False if the GPU
            works but computes wrong numbers or does not support bfloat16.
    """

    gpu = ""
    device_lost = True

    @classmethod
    def of(cls, gpu: str, reason: str, hint: str, *, device_lost: bool = True) -> UnusableGpuError:
        """Return the error for a GPU, with the reason and a hint."""
        error = cls(f"A trial cannot compute on {gpu}: {reason}", hint=hint)
        error.gpu = gpu
        error.device_lost = device_lost
        return error


@dataclass(frozen=True)
class HeldMemory:
    """The memory of a GPU that other processes use.

    Attributes:
        held_bytes: memory that other processes use, in bytes.
        total_bytes: total memory of the GPU in bytes, or 0 if this process could not start to
            use the GPU.
    """

    held_bytes: float
    total_bytes: float

    @property
    def share(self) -> float:
        """Share of the GPU's memory that other processes use, from 0 to 1. It is 1 if
        ``total_bytes`` is 0.
        """
        return self.held_bytes / self.total_bytes if self.total_bytes else 1.0

    def __str__(self) -> str:
        """Return the amounts as text for people."""
        if not self.total_bytes:
            return "other processes use all memory of the GPU"
        held_gib = self.held_bytes / 2**30
        total_gib = self.total_bytes / 2**30
        return f"other processes use {held_gib:.1f} of the GPU's {total_gib:.1f} GiB"


@dataclass(frozen=True)
class TrialDevice(ComputeOptions):
    """The device of a trial, with the settings for computing on it.

    Attributes:
        note: text that says why the trial uses no CUDA graphs. It is empty if the trial uses
            graphs, or if the sweep does not request graphs.
    """

    note: str = ""


def device_for(resources: Resources, network: NetworkSpec) -> TrialDevice:
    """Return the device on which a trial of a network computes with these resources.

    Raises:
        UnusableGpuError: the trial cannot compute on the GPU that Ray assigned.
    """
    device = TrialDevice(num_threads=resources.num_threads, micro_batch=resources.micro_batch)
    if not resources.num_gpus or gpus_are_simulated():
        return device
    avoid_abandoned_mps()
    check_gpu(network.recipe.precision)
    # The self-test runs first: a GPU in exclusive mode accepts one process at a time.
    reason_for_plain_steps = check_numbers(network, resources.num_threads)
    check_computes()
    gpu_fraction = None
    if resources.num_gpus < 1:
        # A trial with a whole GPU needs no memory limit: no other trial uses that GPU.
        gpu_fraction = resources.num_gpus
    device = replace(
        device,
        device="cuda",
        gpu_fraction=gpu_fraction,
        context_bytes=resources.context_bytes,
    )
    if resources.fast == "on":
        return replace(device, graphs=True)
    if resources.fast == "off" or network.model.library == "own":
        # A user's network may contain code that a CUDA graph does not repeat.
        return device
    return replace(device, graphs=not reason_for_plain_steps, note=reason_for_plain_steps)


def check_numbers(network: NetworkSpec, num_threads: int) -> str:
    """Check by the self-test that the GPU of this process computes a network correctly.

    Args:
        network: the trial's network.
        num_threads: number of CPU threads that the self-test may use.

    Returns:
        Text that says why trials of this network use plain steps on this GPU. It is empty if
        they use captured graphs.

    Raises:
        UnusableGpuError: the GPU computes wrong numbers, or the self-test could not decide
            whether it does. In both cases no trial may use the GPU.
    """
    gpu = torch_gpus.gpu_in_use()
    verdict = stored_verdicts.read_or_run_self_test(gpu.uuid, Case.of_network(network, num_threads))
    if verdict.gpu_problem:
        raise _wrong_gpu(gpu, verdict)
    if verdict.comparison_error:
        raise UnusableGpuError.of(
            gpu_and_node(gpu.uuid),
            f"it is unknown whether {gpu.name} computes correctly: {verdict.comparison_error}",
            "The next trial on this GPU repeats the self-test. If the self-test takes too "
            "long, end other programs, or raise `resources.num_cpus`. If the self-test fails, run "
            "`isweep gpu-check`",
        )
    if not verdict.reason_for_plain_steps:
        return ""
    note = (
        f"Trials on {gpu.uuid} ({gpu.name}) of node {socket.gethostname()} use plain steps "
        f"instead of captured graphs: {verdict.reason_for_plain_steps}"
    )
    log.warning("%s", note)
    return note


def _wrong_gpu(gpu: GpuInUse, verdict: StoredVerdict) -> UnusableGpuError:
    """Return the error for a GPU whose numbers differed from the CPU's in one or two
    comparisons.
    """
    reason = f"{gpu.name} computes wrongly: {verdict.gpu_problem}"
    hint = "Use another GPU, driver or torch version"
    if verdict.reason_for_doubt:
        reason = (
            f"{gpu.name} computed wrongly once: {verdict.gpu_problem}. However, "
            f"{verdict.reason_for_doubt}"
        )
        hint = (
            "isweep does not use a GPU that computed wrongly even once. Heat, overclocking or "
            "a defect may be the cause: check the GPU's temperature, remove overclocking, and "
            "restart the machine"
        )
    return UnusableGpuError.of(
        gpu_and_node(gpu.uuid),
        reason,
        f"{hint}, or hide this GPU with CUDA_VISIBLE_DEVICES. To test the GPU again, delete "
        f"{verdict.file}",
        device_lost=False,
    )


def check_computes() -> None:
    """Check that the GPU computes at all. Without this check, the trial would count as the
    cause of a later failure.

    Raises:
        UnusableGpuError: the GPU does not compute.
        torch.AcceleratorError: the GPU has no free memory.
    """
    import torch

    try:
        torch.ones(1, device="cuda").item()
    except torch.AcceleratorError as error:
        library_row = library_error(error)
        if library_row is not None and library_row.memory == "gpu":
            raise
        raise UnusableGpuError.of(
            gpu_and_node(torch_gpus.gpu_in_use().uuid),
            str(error).splitlines()[0],
            "Run `nvidia-smi` on that node to see the state of the GPU. Reset the GPU, or hide "
            "the GPU with CUDA_VISIBLE_DEVICES",
        ) from error


def check_gpu(precision: str) -> None:
    """Check that torch can use the assigned GPU, and that this GPU supports the recipe's
    precision.

    This check is repeated in each worker, because nodes may join the cluster after the check
    before the run.

    Raises:
        UnusableGpuError: torch cannot use a GPU, or the recipe needs bfloat16 and the GPU does
            not support it.
    """
    import torch

    if not torch.cuda.is_available():
        driver = nvidia_smi.driver_version()
        reason = torch_gpus.why_no_gpu()
        cuda = torch.version.cuda
        hint = driver_hint(driver, cuda, reason, is_wsl=nvidia_smi.is_wsl_with_gpu())
        explanation = f" ({reason})" if reason else ""
        raise UnusableGpuError.of(
            gpu_and_node(),
            f"the NVIDIA driver is {driver or 'absent'}, and torch {torch.__version__} was "
            f"built for CUDA {cuda or 'none'}{explanation}",
            f"{hint}, or run with `--device cpu`",
        )
    if precision != "bfloat16":
        return
    capability = torch_gpus.compute_capability()
    if capability < BFLOAT16_FROM:
        gpu = torch_gpus.gpu_in_use()
        raise UnusableGpuError.of(
            gpu_and_node(gpu.uuid),
            f"the recipe trains in bfloat16, but {gpu.name} with compute capability "
            f"{capability} does not support bfloat16",
            f"Remove nodes with a {gpu.name} from the cluster, or choose a recipe with "
            "`precision: float32`",
            device_lost=False,
        )


def held_by_others() -> HeldMemory | None:
    """Return how much memory of this process's GPU other processes use, or None if it is
    unknown.
    """
    import torch

    if gpus_are_simulated():
        return None
    reserved = torch.cuda.memory_reserved()  # 0 before this process has a context
    with suppress(RuntimeError, AssertionError):
        free, total = torch.cuda.mem_get_info()
        return HeldMemory(max(0, total - free - reserved - CONTEXT_BYTES), total)
    return None if reserved else HeldMemory(0, 0)


def gpu_and_node(uuid: str = "") -> str:
    """Return a text that names this process's GPU and node. If the UUID is unknown, the text
    contains the GPU's number.
    """
    gpu = uuid
    if not gpu:
        number = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpu = f"GPU {number}" if number else "an unknown GPU"
    return f"{gpu} of node {socket.gethostname()}"
