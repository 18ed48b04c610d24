"""The errors of PyTorch, CUDA, cuDNN and Ray that isweep recognizes by their messages.

These libraries have few types of exceptions, so some errors differ only in their message. Only
this module compares the messages of libraries.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal

from orchestrator.results.records import FailureKind


@dataclass(frozen=True)
class LibraryError:
    """An error of a library, and the kind of failure that it means.

    Attributes:
        type_name: name of the exception's class, or of one of its base classes.
        words: text that the message must contain. It is empty if the name of the class is
            enough.
        kind: failure kind of a trial with this error.
        ends_process: True if the process must end, because its later results may be wrong.
        memory: the memory that ran out, ``gpu`` or ``machine``. It is empty if no memory ran
            out.
        device_lost: True if the GPU failed and the trial's code is probably not the cause.
        capture_failed: True if a step could not be captured as a CUDA graph.
        no_engine: True if cuDNN has no engine for an operation. There are two possible causes:
            too little memory is free for the operation, or cuDNN has no kernel for it on this
            GPU.
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
"""Value of ``type_name`` in rows about dead workers. For a dead worker, Tune stores only Ray's
text, and no class of an exception."""


def _gpu_memory(type_name: str, words: str, *, ends_process: bool) -> LibraryError:
    """Return the row of an error that shows that GPU memory ran out."""
    return LibraryError(type_name, words, FailureKind.OUT_OF_MEMORY, ends_process, memory="gpu")


def _lost_device(type_name: str, words: str) -> LibraryError:
    """Return the row of an error that shows that the GPU failed."""
    return LibraryError(
        type_name, words, FailureKind.DEVICE_ERROR, ends_process=True, device_lost=True
    )


LIBRARY_ERRORS = (
    # isweep's own error about a failed capture. The graph's memory is never freed, so the
    # process must end (pytorch#190308). If memory ran out, library_error() changes the kind.
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
    # A GPU's memory ran out, and the process is unusable. These errors come from loading
    # modules, capturing graphs and pinned memory. These do not use PyTorch's allocator, which
    # would try again. cublasCreate gets no memory.
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
    """Return the row of :data:`LIBRARY_ERRORS` that an exception matches, or None if no row
    matches.
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
    """Return the first row that matches a message and one of these class names, or None if no
    row matches.
    """
    for row in LIBRARY_ERRORS:
        if row.type_name in type_names and row.words in message:
            return row
    return None


def _memory_ran_out(error: BaseException | None) -> bool:
    """Return whether an exception, or an exception that led to it, shows that memory ran out.

    If a capture fails, the end of the capture may raise a second error. The first error is
    then the context of the second error.
    """
    while error is not None:
        row = library_error(error)
        if row is not None and row.kind == FailureKind.OUT_OF_MEMORY:
            return True
        error = error.__cause__ or error.__context__
    return False
