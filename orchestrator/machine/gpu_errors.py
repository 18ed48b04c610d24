"""Errors of PyTorch, CUDA, cuDNN and Ray that isweep recognizes by their messages.

These libraries have few types of exceptions, so only the message distinguishes some errors. No
other module compares the messages of libraries.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal

from orchestrator.results.records import FailureKind


@dataclass(frozen=True)
class LibraryError:
    """An error of a library, and the failure for which it counts.

    Attributes:
        type_name: name of the exception's class, or of one of its base classes.
        words: text that the message contains, or an empty text if the name of the class is enough.
        kind: cause of the failure.
        ends_process: True if the process must end, because later results of it may be wrong.
        memory: the kind of memory that ran out, or an empty text if no memory ran out.
        device_lost: True if the GPU failed, and probably not because of the trial's code.
        capture_failed: True if a step could not be captured as a CUDA graph.
        no_engine: True if cuDNN has no engine for an operation. Either the memory for the
            operation was missing, or cuDNN has no kernel for the operation on this GPU.
    """

    type_name: str
    words: str
    kind: FailureKind
    ends_process: bool = False
    memory: Literal["", "gpu", "machine"] = ""
    device_lost: bool = False
    capture_failed: bool = False
    no_engine: bool = False


LOST_WORKER = "lost worker"
"""Type name in rows about dead workers, for which Tune stores only Ray's text and no class."""


def _gpu_memory(type_name: str, words: str, *, ends_process: bool) -> LibraryError:
    """Return the row of an error that means that GPU memory ran out."""
    return LibraryError(type_name, words, FailureKind.OUT_OF_MEMORY, ends_process, memory="gpu")


def _lost_device(type_name: str, words: str) -> LibraryError:
    """Return the row of an error that means that the GPU failed."""
    return LibraryError(
        type_name, words, FailureKind.DEVICE_ERROR, ends_process=True, device_lost=True
    )


LIBRARY_ERRORS = (
    # isweep's own error about a failed capture. The graph's memory is never freed, so the process
    # must end (pytorch#190308). If memory ran out, library_error() changes the kind.
    LibraryError(
        "CaptureError", "", FailureKind.DEVICE_ERROR, ends_process=True, capture_failed=True
    ),
    # The machine's memory ran out.
    LibraryError("MemoryError", "", FailureKind.OUT_OF_MEMORY, memory="machine"),
    # Ray kills a worker if memory is short.
    LibraryError(LOST_WORKER, "running low on memory", FailureKind.OUT_OF_MEMORY, memory="machine"),
    # A GPU's memory ran out, and the process can continue.
    _gpu_memory("OutOfMemoryError", "", ends_process=False),  # PyTorch's allocator
    # Usually, there is no room for cuDNN's workspace: pytorch#108645.
    LibraryError(
        "RuntimeError",
        "unable to find an engine",
        FailureKind.OUT_OF_MEMORY,
        memory="gpu",
        no_engine=True,
    ),
    # On slices (MIG), NVML does not list the processes: pytorch#112377.
    _gpu_memory("RuntimeError", "NVML_SUCCESS ==", ends_process=False),
    # cuBLAS and cuDNN allocate memory without PyTorch's allocator.
    _gpu_memory("RuntimeError", "STATUS_ALLOC_FAILED", ends_process=False),
    _gpu_memory("RuntimeError", "DEVICE_ALLOCATION_FAILED", ends_process=False),  # cuDNN 9
    # A GPU's memory ran out, and the process is unusable. These errors come from loading modules,
    # capturing graphs and pinned memory. These do not use PyTorch's allocator, which would try
    # again.
    # cublasCreate gets no memory.
    _gpu_memory("RuntimeError", "CUBLAS_STATUS_NOT_INITIALIZED", ends_process=True),
    # cudnnCreate gets no memory.
    _gpu_memory("RuntimeError", "CUDNN_STATUS_NOT_INITIALIZED", ends_process=True),
    # cudaErrorMemoryAllocation
    _gpu_memory("RuntimeError", "CUDA error: out of memory", ends_process=True),
    # c10/cuda/driver_api.h
    _gpu_memory("RuntimeError", "CUDA driver error: out of memory", ends_process=True),
    # hipErrorOutOfMemory
    _gpu_memory("RuntimeError", "HIP error: out of memory", ends_process=True),
    # The GPU failed.
    _lost_device("DeferredCudaCallError", ""),
    # The trial's own code may be the cause, for example with a label outside the classes.
    LibraryError("RuntimeError", "device-side assert", FailureKind.DEVICE_ERROR, ends_process=True),
    _lost_device("AcceleratorError", ""),  # CUDA repeats this error until the process ends
    _lost_device("RuntimeError", "cudaGetDeviceCount()"),  # torch.cuda._lazy_init
    _lost_device("RuntimeError", "CUDA unknown error"),  # c10/cuda/CUDAFunctions.cpp
    _lost_device("RuntimeError", "No CUDA GPUs are available"),  # a node lost one: ray#37225
    _lost_device("RuntimeError", "NVIDIA driver on your system"),  # the driver was updated
    _lost_device("RuntimeError", "CUDA error"),
    _lost_device("RuntimeError", "CUDA driver error"),
    _lost_device("RuntimeError", "HIP error"),
    _lost_device("RuntimeError", "NCCL error"),
    _lost_device("RuntimeError", "cuDNN error"),
    _lost_device("RuntimeError", "CUBLAS_STATUS"),
    _lost_device("RuntimeError", "CUDNN_STATUS"),
)
"""Errors of libraries. If several rows match an error, the first row is used."""


def library_error(error: BaseException) -> LibraryError | None:
    """Return the row of :data:`LIBRARY_ERRORS` that an exception matches, or None if there is
    none.
    """
    if type(error).__module__.startswith("ray."):
        # Ray's errors are classified by type. One of them also has the name OutOfMemoryError.
        return None
    type_names = {base.__name__ for base in type(error).__mro__}
    row = matching_row(type_names, str(error))
    if row is not None and row.capture_failed and _memory_ran_out(error.__cause__):
        return replace(row, kind=FailureKind.OUT_OF_MEMORY, memory="gpu")
    return row


def matching_row(type_names: Collection[str], message: str) -> LibraryError | None:
    """Return the first row for classes of these names and a message, or None if there is none."""
    for row in LIBRARY_ERRORS:
        if row.type_name in type_names and row.words in message:
            return row
    return None


def _memory_ran_out(error: BaseException | None) -> bool:
    """Return whether memory ran out, according to an exception or its causes and contexts.

    The end of a failed capture may raise a second error. The context of the second error is the
    error that made the capture fail.
    """
    while error is not None:
        row = library_error(error)
        if row is not None and row.kind == FailureKind.OUT_OF_MEMORY:
            return True
        error = error.__cause__ or error.__context__
    return False
