"""Descriptions of GPUs and of the nodes that have them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from orchestrator.planning.costs.gpu_models import GpuModel, gpu_model_from_driver


@dataclass(frozen=True)
class Gpu:
    """A GPU as its node describes it.

    Attributes:
        name: the driver's name of the GPU.
        uuid: GPU-..., or MIG-... for a slice, in the form for ``CUDA_VISIBLE_DEVICES``.
        memory_bytes: total memory of the GPU.
        held_bytes: bytes of memory that processes used when the GPU was described.
        capability: CUDA compute capability.
        processors: number of streaming multiprocessors, or 0 if it is unknown.
        compute_mode: ``Default``, or a mode that restricts which processes may use the GPU.
        mig: True if the GPU is divided into slices (MIG), or is a slice.
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
        """Return the kind of GPU for plans.

        Args:
            checks: measurements by the driver's name of the GPU, see :func:`read_checks`.
        """
        return gpu_model_from_driver(
            self.name, self.memory_gib, self.capability, self.processors, checks
        )


@dataclass(frozen=True)
class NodeGpus:
    """The GPUs of a node, as the node describes them.

    Attributes:
        node: host name.
        gpus: the GPUs that torch can use.
        driver: version of NVIDIA's driver, or an empty text if there is no driver.
        torch: version of torch.
        cuda: the CUDA version that torch was built for, or an empty text for a build without CUDA.
        mps: True if NVIDIA's multi-process service (MPS) runs. With MPS, trials that share a GPU
            compute at the same time.
        visible: the value of ``CUDA_VISIBLE_DEVICES`` with which Ray was started on the node, or an
            empty text if the variable was empty or not set.
        slices: UUIDs of all slices (MIG) and undivided GPUs. The list is empty if torch reaches no
            slice.
        is_wsl: True if Linux runs inside Windows (WSL), whose driver the GPUs use.
        num_ray_gpus: number of GPUs that Ray assigns on the node.
        logical: True if the node's GPUs are for scheduling only (for tests, see
            ``ISWEEP_LOGICAL_GPUS``).
        torch_message: torch's message if torch can use no GPU, otherwise an empty text.
        error: reason why the process with torch failed, or an empty text if it succeeded.
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
    """The GPU that this process computes on.

    Attributes:
        name: the driver's name of the GPU.
        uuid: UUID of the GPU or slice.
    """

    name: str
    uuid: str
