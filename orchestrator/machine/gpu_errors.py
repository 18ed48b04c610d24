"""A table of the exceptions of PyTorch, CUDA and cuDNN: memory that ran out, or a device that
failed.

These libraries have few types of exceptions, so that only words tell some of them apart. This table
is the one place where words of theirs decide something.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from orchestrator.results.records import FailureKind


@dataclass(frozen=True)
class GpuError:
    """A row of the table.

    Attributes:
        type: name of the exception's class, or of a base class.
        words: part of its message; empty fits every message.
        kind: the failure that it stands for.
        ends_process: whether nothing can be believed that the process computes afterwards.
    """

    type: str
    words: str
    kind: FailureKind
    ends_process: bool


_MEMORY = FailureKind.OUT_OF_MEMORY
_DEVICE = FailureKind.DEVICE_ERROR
GPU_ERRORS = (
    # PyTorch's allocator.
    GpuError("OutOfMemoryError", "", _MEMORY, ends_process=False),
    # The machine's memory.
    GpuError("MemoryError", "", _MEMORY, ends_process=False),
    # No room for the workspace of any convolution: pytorch#108645.
    GpuError("RuntimeError", "unable to find an engine", _MEMORY, ends_process=False),
    # On a slice (MIG) NVML does not report who holds memory: pytorch#112377.
    GpuError("RuntimeError", "NVML_SUCCESS ==", _MEMORY, ends_process=False),
    # cuBLAS and cuDNN allocate by themselves; the second is cuDNN 9's.
    GpuError("RuntimeError", "STATUS_ALLOC_FAILED", _MEMORY, ends_process=False),
    GpuError("RuntimeError", "DEVICE_ALLOCATION_FAILED", _MEMORY, ends_process=False),
    # cublasCreate and cudnnCreate find no room.
    GpuError("RuntimeError", "CUBLAS_STATUS_NOT_INITIALIZED", _MEMORY, ends_process=True),
    GpuError("RuntimeError", "CUDNN_STATUS_NOT_INITIALIZED", _MEMORY, ends_process=True),
    # Modules that load, graphs that are made, pinned memory: not the allocator, which tries again.
    # cudaErrorMemoryAllocation; c10/cuda/driver_api.h; hipErrorOutOfMemory.
    GpuError("RuntimeError", "CUDA error: out of memory", _MEMORY, ends_process=True),
    GpuError("RuntimeError", "CUDA driver error: out of memory", _MEMORY, ends_process=True),
    GpuError("RuntimeError", "HIP error: out of memory", _MEMORY, ends_process=True),
    GpuError("DeferredCudaCallError", "", _DEVICE, ends_process=True),
    # The capture's memory is lost to the process: pytorch#190308.
    GpuError("CaptureError", "", _DEVICE, ends_process=True),
    # A CUDA error stays with its process.
    GpuError("AcceleratorError", "", _DEVICE, ends_process=True),
    # c10/cuda/CUDAFunctions.cpp: MPS is gone, the driver was exchanged.
    GpuError("RuntimeError", "cudaGetDeviceCount()", _DEVICE, ends_process=True),
    # torch.cuda._lazy_init; under Ray, whose node lost a GPU: ray#37225.
    GpuError("RuntimeError", "CUDA unknown error", _DEVICE, ends_process=True),
    GpuError("RuntimeError", "No CUDA GPUs are available", _DEVICE, ends_process=True),
    GpuError("RuntimeError", "NVIDIA driver on your system", _DEVICE, ends_process=True),
    GpuError("RuntimeError", "CUDA error", _DEVICE, ends_process=True),
    GpuError("RuntimeError", "CUDA driver error", _DEVICE, ends_process=True),
    GpuError("RuntimeError", "HIP error", _DEVICE, ends_process=True),
    GpuError("RuntimeError", "NCCL error", _DEVICE, ends_process=True),
    GpuError("RuntimeError", "cuDNN error", _DEVICE, ends_process=True),
    GpuError("RuntimeError", "CUBLAS_STATUS", _DEVICE, ends_process=True),
    GpuError("RuntimeError", "CUDNN_STATUS", _DEVICE, ends_process=True),
)
"""The first row that fits counts."""


def gpu_error(error: BaseException) -> GpuError | None:
    """Return the row for an exception; None if it is not about a GPU or memory."""
    class_names = {base.__name__ for base in type(error).__mro__}
    text = str(error)
    for row in GPU_ERRORS:
        if row.type in class_names and row.words in text:
            if row.type == "CaptureError" and _ran_out_of_memory(error):
                return replace(row, kind=_MEMORY)
            return row
    return None


def _ran_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out in a broken capture.

    Ending a capture that broke may raise an error of its own, whose context is what broke it.
    """
    cause = error.__cause__
    while cause is not None:
        row = gpu_error(cause)
        if row is not None and row.kind == _MEMORY:
            return True
        cause = cause.__cause__ or cause.__context__
    return False
