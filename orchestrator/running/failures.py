"""Of what a trial died, and how many further attempts each kind of failure is worth."""

from __future__ import annotations

import errno
import re
import traceback
from collections.abc import Collection
from dataclasses import dataclass, replace

from ray.exceptions import (
    NodeDiedError,
    ObjectStoreFullError,
    OutOfDiskError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
)

from orchestrator.results.records import FailureKind, TrialFailure
from search_spaces.errors import ConfigError, SetupError, SweepError

RETRIES: dict[FailureKind, int | None] = {
    FailureKind.LOST_NODE: None,  # says nothing about the trial: retried without limit
    FailureKind.WORKER_CRASH: 2,  # the third crash in a row is the trial's own doing
    FailureKind.OUT_OF_MEMORY: 7,  # with twice the share up to a whole GPU, then with a batch in parts
    FailureKind.CLUSTER_ERROR: 5,  # follows lost nodes, but may also be a cluster that never works
    FailureKind.DEVICE_ERROR: 3,  # in another process, as a rule on another device
    FailureKind.HUNG: 1,
    FailureKind.SETUP: 3,  # another node may be set up well
    FailureKind.DISK_FULL: 0,
    FailureKind.BAD_CONFIG: 0,
    FailureKind.BAD_DATA: 0,
    FailureKind.CODE_ERROR: 0,
}
"""Further attempts within one ``isweep run`` of a cell that fails alone (see
:mod:`orchestrator.running.retries`); None is no limit. A new run tries every failed cell again."""

MAX_TRACEBACK = 8000


class DeviceError(Exception):
    """What a process dies of that must not be used again: ``kind: message``."""


@dataclass(frozen=True)
class GpuError:
    """What an error of a GPU is taken for.

    Attributes:
        type: Name of the exception's class, so that the driver need not import torch; ``RuntimeError`` takes
            every subclass.
        words: What its message has; empty takes any.
        kind: What the attempt died of.
        ends_process: Whether nothing that the process computes afterwards can be believed, or its memory is
            lost to it.
        source: Where the reading of it comes from.
    """

    type: str
    words: str
    kind: FailureKind
    ends_process: bool
    source: str


MEMORY, DEVICE = FailureKind.OUT_OF_MEMORY, FailureKind.DEVICE_ERROR
GPU_ERRORS = (
    GpuError("OutOfMemoryError", "", MEMORY, False, "PyTorch's allocator"),
    GpuError("MemoryError", "", MEMORY, False, "the machine's memory"),
    GpuError("RuntimeError", "unable to find an engine", MEMORY, False, "no workspace: pytorch#108645"),
    GpuError("RuntimeError", "STATUS_ALLOC_FAILED", MEMORY, False, "cuBLAS and cuDNN allocate by themselves"),
    GpuError("RuntimeError", "DEVICE_ALLOCATION_FAILED", MEMORY, False, "cuDNN 9"),
    GpuError("RuntimeError", "CUBLAS_STATUS_NOT_INITIALIZED", MEMORY, True, "cublasCreate finds no room"),
    # Of modules that load, graphs that are made, pinned memory: not of the allocator, which tries again.
    GpuError("RuntimeError", "CUDA error: out of memory", MEMORY, True, "cudaErrorMemoryAllocation"),
    GpuError("RuntimeError", "HIP error: out of memory", MEMORY, True, "hipErrorOutOfMemory"),
    GpuError("RuntimeError", "CUDA unknown error", DEVICE, True, "torch.cuda._lazy_init"),
    GpuError("CaptureError", "", DEVICE, True, "its memory is lost to the process: pytorch#190308"),
    GpuError("AcceleratorError", "", DEVICE, True, "a CUDA error stays with its process"),
    *(
        GpuError("RuntimeError", words, DEVICE, True, "a CUDA error stays with its process")
        for words in ("CUDA error", "HIP error", "cuDNN error", "CUBLAS_STATUS", "CUDNN_STATUS", "NCCL error")
    ),
)
"""The first that fits counts."""


GPU_NAMED = re.compile(r"(GPU|MIG)[- ]\S+ of node [^\s)]+")


def gpu_error(error: BaseException) -> GpuError | None:
    """Return what an exception is by the table; None for one that is not of a GPU or of memory.

    A step that could not be captured for want of memory is a matter of memory.
    """
    types = {kind.__name__ for kind in type(error).__mro__}
    found = next((row for row in GPU_ERRORS if row.type in types and row.words in str(error)), None)
    if found is not None and found.type == "CaptureError" and error.__cause__ is not None:
        cause = gpu_error(error.__cause__)
        return replace(found, kind=cause.kind) if cause is not None else found
    return found


def gpu_named(message: str) -> str:
    """Return the GPU that a failure names, by its UUID and node; empty where it names none."""
    found = GPU_NAMED.search(message)
    return found[0] if found else ""


def ends_process(error: BaseException) -> bool:
    """Tell whether a process that met ``error`` must not be used again."""
    found = gpu_error(error)
    return isinstance(error, DeviceError) or (found is not None and found.ends_process)


def classify(error: BaseException) -> TrialFailure:
    """Return the failure that an exception inside a trial stands for."""
    kind = _kind(error)
    if isinstance(error, SweepError):
        return TrialFailure(kind=kind, message=str(error)[:1000])
    name = type(error).__name__
    message = (str(error).strip() or name).splitlines()[0][:500]
    if kind in (FailureKind.CODE_ERROR, FailureKind.CLUSTER_ERROR):
        message = f"{name}: {message}"
    trace = "".join(traceback.format_exception(error))
    return TrialFailure(kind=kind, message=message, traceback=trace[-MAX_TRACEBACK:])


def _kind(error: BaseException) -> FailureKind:
    found = gpu_error(error)
    if found is not None:
        return found.kind
    if isinstance(error, ConfigError):
        return FailureKind.BAD_CONFIG
    if isinstance(error, SetupError):
        return FailureKind.SETUP
    if isinstance(error, SweepError):
        return FailureKind.BAD_DATA
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return FailureKind.DISK_FULL
    return _ray_kind(error)


def _ray_kind(error: BaseException) -> FailureKind:
    if isinstance(error, OutOfDiskError):
        return FailureKind.DISK_FULL
    if isinstance(error, ObjectStoreFullError):
        return FailureKind.OUT_OF_MEMORY
    if isinstance(error, NodeDiedError) or (isinstance(error, RayActorError) and error.preempted):
        return FailureKind.LOST_NODE
    # A task's own exception arrives wrapped in RayTaskError; all others are Ray's.
    if isinstance(error, RayError) and not isinstance(error, RayTaskError):
        return FailureKind.CLUSTER_ERROR
    return FailureKind.CODE_ERROR


def classify_lost_worker(
    error: BaseException | None, text: str = "", dead_nodes: Collection[str] = ()
) -> TrialFailure:
    """Return the failure for a trial whose process went away without a word.

    Args:
        error: Ray's error, where Tune kept it.
        text: What Tune wrote about it; Tune keeps no object for errors that are not of an actor or task.
        dead_nodes: Ids of nodes that are gone, and of the actor when its node is. Ray sets ``preempted`` only
            where it was told before; of a node that just went away, the actor's error bears its id.
    """
    text = text or str(error or "the worker is gone")
    if "DeviceError" in text:
        said = text.strip().splitlines()[-1].partition("DeviceError:")[2].strip()
        name, _, fault = said.partition(": ")
        known = name in set(FailureKind)
        return TrialFailure(
            kind=FailureKind(name) if known else FailureKind.DEVICE_ERROR,
            message=((fault if known else said) or "the device failed")[:500],
            traceback=text[-MAX_TRACEBACK:],
        )
    line = next((line.strip() for line in text.splitlines() if line.strip()), "the worker is gone")
    kind = FailureKind.WORKER_CRASH if error is None else _ray_kind(error)
    if isinstance(error, OutOfMemoryError) or "memory pressure" in text or "running low on memory" in text:
        kind = FailureKind.OUT_OF_MEMORY
    elif any(node in text for node in dead_nodes):
        kind = FailureKind.LOST_NODE
    elif kind in (FailureKind.CLUSTER_ERROR, FailureKind.CODE_ERROR):
        kind = FailureKind.WORKER_CRASH
    return TrialFailure(kind=kind, message=line[:500], traceback=text[-MAX_TRACEBACK:])


def classify_broken_fit(error: BaseException) -> TrialFailure:
    """Return the failure of the trials that ran when Tune's own loop raised ``error``.

    Tune wraps errors of Ray that it does not know, the memory killer's among them, in one of its own.
    """
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, RayError):
        cause = cause.__cause__
    failure = classify(cause or error)
    if failure.kind != FailureKind.CODE_ERROR:
        return failure
    return failure.model_copy(update={"kind": FailureKind.CLUSTER_ERROR})
