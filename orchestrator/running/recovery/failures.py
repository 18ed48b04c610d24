"""Causes of failed attempts: which exception stands for which failure, and what is known of it.

A worker classifies what a trial raises (:func:`classify`). The driver classifies what Ray says
about a worker that is gone (:func:`classify_lost_worker`). Our own errors, and most of Ray's, are
known by their type. CUDA, cuDNN and Ray's memory killer only have words: these stand in
:data:`~orchestrator.machine.gpu_errors.LIBRARY_ERRORS` and nowhere else.
"""

from __future__ import annotations

import errno
import re
import traceback
from collections.abc import Collection
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from orchestrator.machine.gpu_errors import LOST_WORKER, library_error, matching_row
from orchestrator.results.records import FailureKind, TrialFailure
from orchestrator.running.trial_device import UnusableGpuError
from search_spaces.errors import ConfigError, SetupError, SweepError

MAX_MESSAGE = 500
"""Characters of a library's message that a failure keeps."""
MAX_USER_MESSAGE = 1000
"""Characters of a message of ours, which names the fix at its end."""
MAX_TRACEBACK = 8000
"""Characters of a traceback that a failure keeps, from its end."""
WORKER_GONE = "the worker process has died"
"""Message of a lost worker of which nothing else is known."""


class OtherCodeError(SetupError):
    """A worker's source differs from the driver's, so its results must not be stored."""


KINDS_BY_TYPE: tuple[tuple[type[BaseException], FailureKind], ...] = (
    (OtherCodeError, FailureKind.OTHER_CODE),
    (ConfigError, FailureKind.BAD_CONFIG),
    (SetupError, FailureKind.SETUP),
    (SweepError, FailureKind.BAD_DATA),
    (ray.exceptions.OutOfMemoryError, FailureKind.OUT_OF_MEMORY),
    (ray.exceptions.OutOfDiskError, FailureKind.DISK_FULL),
    (ray.exceptions.ObjectStoreFullError, FailureKind.OUT_OF_MEMORY),
    (ray.exceptions.NodeDiedError, FailureKind.LOST_NODE),
    (ray.exceptions.RayTaskError, FailureKind.CODE_ERROR),  # an exception of the task's own
    (RayError, FailureKind.CLUSTER_ERROR),  # every other error of Ray
)
"""Failure by class of the exception; the first match counts."""


def classify(error: BaseException) -> TrialFailure:
    """Return the failure that an exception inside a trial stands for."""
    row = library_error(error)
    kind = _kind_of(error) if row is None else row.kind
    facts: dict[str, Any] = {}
    if row is not None:
        facts["ends_process"] = row.ends_process
        facts["memory"] = row.memory
        facts["device_lost"] = row.device_lost
        facts["capture_failed"] = row.capture_failed
    if isinstance(error, UnusableGpuError):
        facts["unfit_node"] = True
        facts["gpu"] = error.gpu
    if isinstance(error, SweepError):
        return TrialFailure(kind=kind, message=str(error)[:MAX_USER_MESSAGE], **facts)
    name = type(error).__name__
    message = _first_line(str(error)) or name
    if kind in (FailureKind.CODE_ERROR, FailureKind.CLUSTER_ERROR):
        message = f"{name}: {message}"
    trace = "".join(traceback.format_exception(error))
    return TrialFailure(kind=kind, message=message, traceback=trace[-MAX_TRACEBACK:], **facts)


def _kind_of(error: BaseException) -> FailureKind:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return FailureKind.DISK_FULL
    if isinstance(error, RayActorError) and error.preempted:
        return FailureKind.LOST_NODE
    for error_type, kind in KINDS_BY_TYPE:
        if isinstance(error, error_type):
            return kind
    return FailureKind.CODE_ERROR


def _first_line(text: str) -> str:
    for line in text.splitlines():
        if line.strip():
            return line.strip()[:MAX_MESSAGE]
    return ""


def classify_lost_worker(
    error: BaseException | None, text: str = "", *, dead_ids: Collection[str] = (), pid: int = 0
) -> TrialFailure:
    """Return the failure of a trial whose worker is gone and gave no report.

    Args:
        error: Ray's exception, if Tune kept it.
        text: what Tune wrote about it.
        dead_ids: Ray's ids of nodes that are gone, and of actors that were on them.
        pid: the worker's process on its node; 0 if unknown.
    """
    text = text or str(error or WORKER_GONE)
    memory_row = matching_row({LOST_WORKER}, text)
    if memory_row is not None or isinstance(error, ray.exceptions.OutOfMemoryError):
        return _killed_for_memory(text, pid)
    kind = FailureKind.WORKER_CRASH if error is None else _kind_of(error)
    if any(dead_id in text for dead_id in dead_ids):
        kind = FailureKind.LOST_NODE
    elif kind in (FailureKind.CLUSTER_ERROR, FailureKind.CODE_ERROR):
        kind = FailureKind.WORKER_CRASH
    message = _first_line(text) or WORKER_GONE
    return TrialFailure(kind=kind, message=message, traceback=text[-MAX_TRACEBACK:])


MEMORY_OF_NODE = re.compile(r"was ([\d.]+)GB used / ([\d.]+)GB limit")
"""Ray's words for a node's memory when it killed a worker (Ray 2.60)."""
MEMORY_OF_PROCESS = re.compile(r"^(\d+)\t([\d.]+)\t", re.MULTILINE)
"""A row of the table of the ten largest processes in the same text: process id and GB."""


def _killed_for_memory(text: str, pid: int) -> TrialFailure:
    """Return the failure of a worker that Ray killed because the machine's memory ran out.

    Ray names the ten largest processes. A worker that is not among them held no more than the
    smallest of these. What other trials of the sweep hold counts as held by others, too.
    """
    message = _first_line(text)
    share = None
    node = MEMORY_OF_NODE.search(text)
    held_by_process = {int(row[0]): float(row[1]) for row in MEMORY_OF_PROCESS.findall(text)}
    if node is not None and pid and held_by_process:
        used_gb = float(node[1])
        limit_gb = float(node[2])
        own_gb = held_by_process.get(pid, min(held_by_process.values()))
        share = min(1.0, max(0.0, used_gb - own_gb) / limit_gb)
        message = (
            f"the machine ran out of memory: {used_gb:.1f} of {limit_gb:.1f} GB were in use; this "
            f"trial held at most {own_gb:.1f} GB"
        )
    return TrialFailure(
        kind=FailureKind.OUT_OF_MEMORY,
        message=message,
        traceback=text[-MAX_TRACEBACK:],
        memory="machine",
        held_by_others=share,
    )


def classify_broken_loop(error: BaseException) -> TrialFailure:
    """Return the failure of the trials that ran when Tune's loop raised an exception.

    The exception may wrap one of Ray's, which then counts.
    """
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, RayError):
        cause = cause.__cause__
    failure = classify(cause or error)
    if failure.kind == FailureKind.CODE_ERROR:
        return failure.model_copy(update={"kind": FailureKind.CLUSTER_ERROR})
    if isinstance(cause, ray.exceptions.OutOfMemoryError):
        return failure.model_copy(update={"memory": "machine"})
    return failure
