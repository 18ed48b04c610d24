"""Facts that torch reports about the GPUs of this node.

Only torch knows which GPUs a trial can use. :func:`describe` runs torch in a separate process.
The calling process therefore uses no GPU memory.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any, NamedTuple

from orchestrator.machine.gpus import nvidia_smi
from orchestrator.machine.gpus.records import Gpu, GpuInUse, NodeGpus
from orchestrator.machine.gpus.visible import (
    gpus_are_simulated,
    listed_gpus,
    visible_at_start_of_parent,
    visible_gpus,
)
from orchestrator.machine.mps_daemon import mps_runs
from orchestrator.machine.processes import run_program

IMPORT_TIMEOUT_S = 300.0
"""Seconds that a process may take to import torch. The import is slow on a network file
system."""


class _GpuState(NamedTuple):
    """A row of the output of ``nvidia-smi``. The default values are for a GPU that is not
    listed.

    Attributes:
        uuid: UUID of the GPU, for example ``GPU-1a2b...``.
        compute_mode: ``Default``, or a mode that restricts which processes may use the GPU.
        mig_mode: ``Enabled`` if the GPU is divided into MIG slices.
        used_mib: memory that all processes use, in MiB. If it is unknown, this text is not a
            number.
    """

    uuid: str
    compute_mode: str = "Default"
    mig_mode: str = ""
    used_mib: str = ""


def describe_node() -> NodeGpus:
    """Return the GPUs that Ray uses on this node. A Ray task calls this function.

    Ray hides all GPUs from a task that has no share of a GPU. The value of
    ``CUDA_VISIBLE_DEVICES`` is therefore read from the task's parent process, the raylet.
    """
    return describe(visible_at_start_of_parent())


def describe(visible: str | None) -> NodeGpus:
    """Return this node's GPUs as torch describes them in a separate process.

    Args:
        visible: value of ``CUDA_VISIBLE_DEVICES`` for that process. None leaves the variable
            unset, so all GPUs are visible. An empty value hides all GPUs.
    """
    ids = listed_gpus(visible or "")
    if len(ids) > 1 and any(gpu_id.startswith("MIG-") for gpu_id in ids):
        return replace(_describe_slices(ids), visible=str(visible))
    program = run_program(
        sys.executable,
        # The user's working folder may contain a file tasks.py, which Python would import
        # instead.
        "-P",
        "-c",
        "from orchestrator.machine.gpus.torch_gpus import print_gpus; print_gpus()",
        visible=visible,
        timeout_s=IMPORT_TIMEOUT_S,
    )
    node = NodeGpus(
        socket.gethostname(),
        mps=mps_runs(),
        visible=visible or "",
        logical=gpus_are_simulated(),
    )
    # A library may print other lines before and after the description.
    descriptions = [line for line in program.output.splitlines() if line.startswith('{"')]
    if not descriptions:
        return replace(node, error=program.error or "the process printed no description of GPUs")
    fields: dict[str, Any] = json.loads(descriptions[-1])
    gpus = tuple(Gpu(**gpu) for gpu in fields.pop("gpus"))
    slices = tuple(fields.pop("slices", ()))
    return replace(node, gpus=gpus, slices=slices, **fields)


def _describe_slices(ids: list[str]) -> NodeGpus:
    """Return the MIG slices with these UUIDs. A separate process describes each slice, because
    CUDA shows a process only one slice.
    """
    with ThreadPoolExecutor() as pool:
        # Each of these descriptions is for one slice.
        nodes = list(pool.map(describe, ids))
    # The first slice with an error stands for the node.
    failing = (node for node in nodes if node.error or node.torch_message)
    reported = next(failing, nodes[0])
    gpus: list[Gpu] = []
    for node in nodes:
        gpus += node.gpus
    return replace(reported, gpus=tuple(gpus))


def print_gpus() -> None:
    """Print as JSON what torch, NVML and ``nvidia-smi`` report about this node's GPUs.

    :func:`describe` runs this function in a separate process.
    """
    rows = nvidia_smi.query("uuid,compute_mode,mig.mode.current,memory.used")
    rows_by_uuid = {row[0]: _GpuState(*row) for row in rows}
    # The memory is measured now, before this process itself uses GPU memory.
    bytes_held_in_slice = _held_in_slice()
    import torch

    torch_message = why_no_gpu()
    # why_no_gpu() has started CUDA, so torch counts the GPUs that CUDA can use. Before that,
    # torch counts the GPUs that NVML lists.
    num_gpus = 0 if torch_message else torch.cuda.device_count()
    gpus = []
    has_slices = False
    for index in range(num_gpus):
        properties = torch.cuda.get_device_properties(index)
        uuid = _uuid(properties)
        state = rows_by_uuid.get(uuid, _GpuState(uuid))
        is_slice = "MIG" in properties.name or state.mig_mode == "Enabled"
        has_slices = has_slices or is_slice
        held_bytes = bytes_held_in_slice
        if state.used_mib.isdigit() and not is_slice:
            held_bytes = int(state.used_mib) * nvidia_smi.MIB
        capability = (10 * properties.major + properties.minor) / 10
        gpu = Gpu(
            name=properties.name,
            uuid=uuid,
            memory_bytes=properties.total_memory,
            held_bytes=held_bytes,
            capability=capability,
            processors=properties.multi_processor_count,
            compute_mode=state.compute_mode,
            mig=is_slice,
            has_kernels=_has_kernels(capability, torch.cuda.get_arch_list()),
        )
        gpus.append(asdict(gpu))
    slices = nvidia_smi.slices_and_whole_gpus() if has_slices else []
    fields = {
        "gpus": gpus,
        "slices": slices,
        "is_wsl": nvidia_smi.is_wsl_with_gpu(),
        "driver": nvidia_smi.driver_version(),
        "torch_message": torch_message,
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "",
    }
    print(json.dumps(fields))  # noqa: T201


def _held_in_slice() -> int:
    """Return how many bytes of memory are used in this process's MIG slice, or 0 if it is
    unknown.
    """
    from tasks.trials.isolation import NvmlGpu

    first = (visible_gpus() or [""])[0]
    if first.startswith("MIG-"):
        # These errors mean that NVML is missing or too old.
        with suppress(OSError, AttributeError):
            return NvmlGpu(first).held_bytes()
    return 0


def why_no_gpu() -> str:
    """Return torch's message that says why it can use no GPU. It is empty if torch can use a
    GPU.
    """
    import torch

    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError, torch.cuda.DeferredCudaCallError) as error:
        return (str(error).strip().splitlines() or [""])[0][:300]
    return ""


def _has_kernels(capability: float, built_for: Collection[str]) -> bool:
    """Return whether torch has kernels for a GPU.

    Args:
        capability: compute capability of the GPU.
        built_for: architectures of torch's kernels, such as ``sm_90`` and ``compute_90``. An
            ``sm`` kernel runs on GPUs with the same major version and an equal or higher minor
            version. The driver can compile a ``compute`` kernel for every newer GPU.
    """
    for name in built_for:
        kind, _, number = name.partition("_")
        digits = "".join(filter(str.isdigit, number)) or "0"
        built_capability = int(digits) / 10
        is_same_major = int(built_capability) == int(capability)
        if built_capability <= capability and (kind == "compute" or is_same_major):
            return True
    return not built_for  # An empty list means that the kernels are unknown.


def compute_capability() -> float:
    """Return the compute capability of this process's GPU."""
    import torch

    major, minor = torch.cuda.get_device_capability()
    return (10 * major + minor) / 10


def gpu_in_use() -> GpuInUse:
    """Return the GPU on which this process computes."""
    import torch

    properties = torch.cuda.get_device_properties()
    return GpuInUse(str(properties.name), _uuid(properties))


def _uuid(properties: Any) -> str:
    """Return the UUID of a GPU or MIG slice in the form for ``CUDA_VISIBLE_DEVICES``."""
    # Torch does not report the UUID of a slice in the form that CUDA needs.
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "").partition(",")[0]
    if first.startswith("MIG-"):
        return first
    return f"GPU-{str(properties.uuid).removeprefix('GPU-')}"
