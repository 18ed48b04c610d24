"""Records that describe GPUs and the nodes that have GPUs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from orchestrator.planning.costs.gpu_models import GpuModel, gpu_model_from_driver


@dataclass(frozen=True)
class Gpu:
    """A GPU as its node describes it.

    Attributes:
        name: name of the GPU as NVIDIA's driver reports it, for example ``NVIDIA
            A100-SXM4-40GB``.
        uuid: UUID in the form for ``CUDA_VISIBLE_DEVICES``. It begins with ``GPU-``, or with
            ``MIG-`` for a slice.
        memory_bytes: total memory of the GPU in bytes.
        held_bytes: memory in bytes that processes used when this record was made.
        capability: CUDA compute capability, for example 8.0.
        processors: number of streaming multiprocessors, or 0 if it is unknown.
        compute_mode: ``Default``, or a mode that restricts which processes may use the GPU.
        mig: True if the GPU is divided into MIG slices, or is a MIG slice.
        has_kernels: True if the installed torch has kernels for the GPU.
    """

    name: str
    uuid: str
    memory_bytes: int
    held_bytes: int = 0
    capability: float = 8.0
    processors: int = 0
    compute_mode: str = "Default"
    mig: bool = False
    has_kernels: bool = True

    @property
    def memory_gib(self) -> float:
        """Total memory of the GPU in GiB."""
        return self.memory_bytes / 2**30

    def model(self, checks: Mapping[str, Mapping[str, Any]] | None = None) -> GpuModel:
        """Return the model with which plans predict the speed and memory of this GPU.

        Args:
            checks: measurements of ``isweep gpu-check`` by name of the GPU, as
                :func:`read_checks` returns them.
        """
        return gpu_model_from_driver(
            self.name, self.memory_gib, self.capability, self.processors, checks
        )


@dataclass(frozen=True)
class NodeGpus:
    """The GPUs of a node as the node describes them.

    Attributes:
        node: host name of the node.
        gpus: the GPUs that torch can use.
        driver: version of NVIDIA's driver, or an empty text if there is no driver.
        torch: version of torch.
        cuda: version of CUDA for which torch was built. It is empty for a build without CUDA.
        mps: True if NVIDIA's multi-process service (MPS) runs on the node. With MPS, trials
            that share a GPU compute at the same time.
        visible: value of ``CUDA_VISIBLE_DEVICES`` with which Ray was started on the node. It
            is empty if the variable was empty or not set.
        slices: UUIDs of all MIG slices and of all undivided GPUs. It is empty if torch can use
            no slice.
        is_wsl: True if Linux runs inside Windows (WSL). The GPUs then use the driver of
            Windows.
        num_ray_gpus: number of GPUs that Ray assigns on the node.
        logical: True if the node's GPUs are simulated for tests (``ISWEEP_LOGICAL_GPUS``).
        torch_message: message of torch that says why it can use no GPU. It is empty if torch
            can use a GPU.
        error: text that says why the process that ran torch failed. It is empty if the process
            succeeded.
    """

    node: str
    gpus: tuple[Gpu, ...] = ()
    driver: str = ""
    torch: str = ""
    cuda: str = ""
    mps: bool = False
    visible: str = ""
    slices: tuple[str, ...] = ()
    is_wsl: bool = False
    num_ray_gpus: float = 0.0
    logical: bool = False
    torch_message: str = ""
    error: str = ""


class GpuInUse(NamedTuple):
    """The GPU on which this process computes.

    Attributes:
        name: name of the GPU as NVIDIA's driver reports it.
        uuid: UUID of the GPU or MIG slice.
    """

    name: str
    uuid: str
