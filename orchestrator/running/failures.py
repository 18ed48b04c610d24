"""Of what a trial died, and how many further attempts each kind of failure is worth."""

from __future__ import annotations

import errno
import traceback
from collections.abc import Collection

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
    FailureKind.OUT_OF_MEMORY: 4,  # with a larger share, then with ever smaller parts of a batch
    FailureKind.CLUSTER_ERROR: 5,  # follows lost nodes, but may also be a cluster that never works
    FailureKind.DEVICE_ERROR: 3,  # in another process, as a rule on another device
    FailureKind.HUNG: 1,
    FailureKind.SETUP: 3,  # another node may be set up well
    FailureKind.OTHER_CODE: 3,  # another node may run the driver's
    FailureKind.DISK_FULL: 0,
    FailureKind.BAD_CONFIG: 0,
    FailureKind.BAD_DATA: 0,
    FailureKind.CODE_ERROR: 0,
}
"""Further attempts within one ``isweep run`` of a cell that fails alone (see
:mod:`orchestrator.running.retries`); None is no limit. A new run tries every failed cell again."""

MAX_TRACEBACK = 8000


class OtherCodeError(SetupError):
    """A worker whose code is not the driver's: what it would find must not be sealed as the driver's."""


class DeviceError(Exception):
    """A process whose device failed: it must not be used again, so this ends it."""


# What torch and Triton call them; every later call of the process fails likewise.
_DEVICE_FAULTS = (
    *("CUDA error", "HIP error", "cuDNN error", "CUBLAS_STATUS", "CUDNN_STATUS", "NCCL error"),
    *("Triton Error [CUDA]", "Triton Error [HIP]"),
)


def spoils_process(error: BaseException) -> bool:
    """Tell whether a process that met ``error`` must not be used again."""
    if isinstance(error, DeviceError) or type(error).__name__ == "AcceleratorError":
        return True
    known = isinstance(error, RuntimeError) and any(fault in str(error) for fault in _DEVICE_FAULTS)
    return known and not _out_of_memory(error)


def _out_of_memory(error: BaseException) -> bool:
    # torch.OutOfMemoryError goes by its name: importing torch costs the driver seconds. cuBLAS, cuDNN and
    # Triton allocate for themselves and have no type for it.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    known = ("STATUS_ALLOC_FAILED", "Triton Error [CUDA]: out of memory", "Triton Error [HIP]: out of memory")
    return isinstance(error, RuntimeError) and any(words in str(error) for words in known)


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
    if spoils_process(error):
        return FailureKind.DEVICE_ERROR
    if _out_of_memory(error):
        return FailureKind.OUT_OF_MEMORY
    if isinstance(error, OtherCodeError):
        return FailureKind.OTHER_CODE
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
        fault = text.strip().splitlines()[-1].partition("DeviceError:")[2].strip() or "the device failed"
        return TrialFailure(
            kind=FailureKind.DEVICE_ERROR, message=fault[:500], traceback=text[-MAX_TRACEBACK:]
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
