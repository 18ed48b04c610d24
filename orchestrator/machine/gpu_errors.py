"""What an exception of PyTorch, CUDA or cuDNN stands for: memory that ran out, or a device that
failed.
"""

from __future__ import annotations

from typing import NamedTuple

from orchestrator.results.store import FailureKind


class GpuError(NamedTuple):
    """What an error of a GPU, or of memory, is taken for, by its class's name, and words of its
    message.

    ``ends_process`` tells that nothing that the process computes afterwards can be believed.
    """

    type: str
    words: str
    kind: FailureKind
    ends_process: bool


MEMORY, DEVICE = FailureKind.OUT_OF_MEMORY, FailureKind.DEVICE_ERROR
GPU_ERRORS = (
    GpuError("OutOfMemoryError", "", MEMORY, False),  # PyTorch's allocator
    GpuError("MemoryError", "", MEMORY, False),  # the machine's memory
    GpuError(
        "RuntimeError", "unable to find an engine", MEMORY, False
    ),  # no workspace: pytorch#108645
    # Of slices (MIG), where NVML does not say who holds it: pytorch#112377.
    GpuError("RuntimeError", "NVML_SUCCESS ==", MEMORY, False),
    # cuBLAS and cuDNN allocate by themselves.
    GpuError("RuntimeError", "STATUS_ALLOC_FAILED", MEMORY, False),
    GpuError("RuntimeError", "DEVICE_ALLOCATION_FAILED", MEMORY, False),  # cuDNN 9
    GpuError(
        "RuntimeError", "CUBLAS_STATUS_NOT_INITIALIZED", MEMORY, True
    ),  # cublasCreate finds no room
    GpuError("RuntimeError", "CUDNN_STATUS_NOT_INITIALIZED", MEMORY, True),  # nor cudnnCreate
    # Of modules that load, graphs that are made, pinned memory: not of the allocator, which tries
    # again.
    GpuError(
        "RuntimeError", "CUDA error: out of memory", MEMORY, True
    ),  # cudaErrorMemoryAllocation
    GpuError(
        "RuntimeError", "CUDA driver error: out of memory", MEMORY, True
    ),  # c10/cuda/driver_api.h
    GpuError("RuntimeError", "HIP error: out of memory", MEMORY, True),  # hipErrorOutOfMemory
    GpuError("DeferredCudaCallError", "", DEVICE, True),
    GpuError("CaptureError", "", DEVICE, True),  # its memory is lost to the process: pytorch#190308
    # A CUDA error stays with its process.
    GpuError("AcceleratorError", "", DEVICE, True),
    *(
        GpuError("RuntimeError", words, DEVICE, True)
        for words in (
            # torch.cuda._lazy_init; under Ray, whose node lost a GPU: ray#37225.
            # c10/cuda/CUDAFunctions.cpp: MPS is gone, the driver was exchanged
            "cudaGetDeviceCount()",
            *("CUDA unknown error", "No CUDA GPUs are available", "NVIDIA driver on your system"),
            *("CUDA error", "CUDA driver error", "HIP error", "NCCL error"),
            *("cuDNN error", "CUBLAS_STATUS", "CUDNN_STATUS"),
        )
    ),
)
"""The first that fits counts. Beside a row stands what raises it, or where its reading comes
from."""


def gpu_error(error: BaseException) -> GpuError | None:
    """Return what an exception is by the table; None for one that is not of a GPU or of memory."""
    types = {kind.__name__ for kind in type(error).__mro__}
    found = next((row for row in GPU_ERRORS if row.type in types and row.words in str(error)), None)
    if found is not None and found.type == "CaptureError":
        # Ending a capture that broke may raise an error of its own, whose context is what broke it.
        cause = error.__cause__
        while cause is not None:
            row = gpu_error(cause)
            if row is not None and row.kind == MEMORY:
                return found._replace(kind=MEMORY)
            cause = cause.__cause__ or cause.__context__
    return found
