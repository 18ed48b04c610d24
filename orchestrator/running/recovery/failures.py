"""Classification of failed attempts: the kind of each failure, and facts for the next attempt.

A worker classifies the exception that a trial raises (:func:`classify`). If a worker's process
has died, the driver classifies Ray's message about it (:func:`classify_lost_worker`). Errors
of isweep, and most errors of Ray, are classified by their type. Errors of CUDA and cuDNN are
recognized by their text, because their types are too general. If Ray kills a worker, this too
is recognized only by a text. The texts are in
:data:`~orchestrator.machine.gpu_errors.LIBRARY_ERRORS`.
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
from orchestrator.running.workers.trial_device import UnusableGpuError
from search_spaces.errors import ConfigError, SetupError, SweepError

MAX_MESSAGE = 500
"""Largest number of characters of a library's message that a failure contains."""
MAX_USER_MESSAGE = 1000
"""Largest number of characters of isweep's message that a failure contains. Such a message
ends with a hint."""
MAX_TRACEBACK = 8000
"""Largest number of characters of a traceback that a failure contains. The end of the
traceback is stored."""
WORKER_GONE = "the worker process has died"
"""Message for a lost worker if Ray gives no reason."""


class OtherCodeError(SetupError):
    """Error that a worker raises if its source code differs from the driver's. No result of
    other source code is then stored.
    """


KINDS_BY_TYPE: tuple[tuple[type[BaseException], FailureKind], ...] = (
    (OtherCodeError, FailureKind.OTHER_CODE),
    (ConfigError, FailureKind.BAD_CONFIG),
    (SetupError, FailureKind.SETUP),
    (SweepError, FailureKind.BAD_DATA),
    (ray.exceptions.OutOfMemoryError, FailureKind.OUT_OF_MEMORY),
    (ray.exceptions.OutOfDiskError, FailureKind.DISK_FULL),
    (ray.exceptions.ObjectStoreFullError, FailureKind.OUT_OF_MEMORY),
    (ray.exceptions.NodeDiedError, FailureKind.LOST_NODE),
    (ray.exceptions.RayTaskError, FailureKind.CODE_ERROR),  # an exception in the task's own code
    (RayError, FailureKind.CLUSTER_ERROR),  # every other error of Ray
)
"""Failure kind for each type of exception. If several rows match, the first row is used."""


def classify(error: BaseException) -> TrialFailure:
    """Return the failure for an exception that a trial raised."""
    known_error = library_error(error)
    kind = _kind_of(error) if known_error is None else known_error.kind
    facts: dict[str, Any] = {}
    if known_error is not None:
        facts["ends_process"] = known_error.ends_process
        facts["memory"] = known_error.memory
        facts["device_lost"] = known_error.device_lost
        facts["capture_failed"] = known_error.capture_failed
        facts["no_engine"] = known_error.no_engine
    if isinstance(error, UnusableGpuError):
        facts["unfit_node"] = True
        facts["gpu"] = error.gpu
        facts["device_lost"] = error.device_lost
    if isinstance(error, SweepError):
        return TrialFailure(kind=kind, message=str(error)[:MAX_USER_MESSAGE], **facts)
    name = type(error).__name__
    message = _first_line(str(error)) or name
    if kind in (FailureKind.CODE_ERROR, FailureKind.CLUSTER_ERROR):
        message = f"{name}: {message}"
    trace = "".join(traceback.format_exception(error))
    return TrialFailure(kind=kind, message=message, traceback=trace[-MAX_TRACEBACK:], **facts)


def _kind_of(error: BaseException) -> FailureKind:
    """Return the failure kind that belongs to the type of an exception."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return FailureKind.DISK_FULL
    if isinstance(error, RayActorError) and error.preempted:
        return FailureKind.LOST_NODE
    for error_type, kind in KINDS_BY_TYPE:
        if isinstance(error, error_type):
            return kind
    return FailureKind.CODE_ERROR


def _first_line(text: str) -> str:
    """Return the first line that is not blank, shortened to :data:`MAX_MESSAGE` characters."""
    for line in text.splitlines():
        if line.strip():
            return line.strip()[:MAX_MESSAGE]
    return ""


def classify_lost_worker(
    error: BaseException | None, text: str = "", *, dead_ids: Collection[str] = (), pid: int = 0
) -> TrialFailure:
    """Return the failure of a trial whose worker died before it sent a report.

    Args:
        error: Ray's exception, or None if Tune did not store it.
        text: Tune's text about the failure.
        dead_ids: Ray's ids of dead nodes, and of actors that ran on dead nodes.
        pid: process id of the worker on its node, or 0 if it is unknown.
    """
    text = text or str(error or WORKER_GONE)
    is_memory_kill = matching_row({LOST_WORKER}, text) is not None
    if is_memory_kill or isinstance(error, ray.exceptions.OutOfMemoryError):
        return _killed_for_memory(text, pid)
    kind = FailureKind.WORKER_CRASH if error is None else _kind_of(error)
    if any(dead_id in text for dead_id in dead_ids):
        kind = FailureKind.LOST_NODE
    elif kind in (FailureKind.CLUSTER_ERROR, FailureKind.CODE_ERROR):
        kind = FailureKind.WORKER_CRASH
    message = _first_line(text) or WORKER_GONE
    return TrialFailure(kind=kind, message=message, traceback=text[-MAX_TRACEBACK:])


MEMORY_OF_NODE = re.compile(r"was ([\d.]+)GB used / ([\d.]+)GB limit")
"""Pattern that finds a node's used memory and memory limit, in GB, in the message of Ray 2.60
about a killed worker."""
MEMORY_OF_PROCESS = re.compile(r"^(\d+)\t([\d.]+)\t", re.MULTILINE)
"""Pattern that finds a process id and the memory of this process in GB. It matches each row of
the table in Ray's message about a killed worker. The table lists the ten largest processes."""


def _killed_for_memory(text: str, pid: int) -> TrialFailure:
    """Return the failure of a worker that Ray killed because the machine's memory ran out.

    Ray's message lists the ten largest processes. If the worker is not in this list, it used
    at most as much memory as the smallest process in the list.
    """
    message = _first_line(text)
    share = None
    node = MEMORY_OF_NODE.search(text)
    gb_by_pid = {int(row[0]): float(row[1]) for row in MEMORY_OF_PROCESS.findall(text)}
    if node is not None and pid and gb_by_pid:
        used_gb = float(node[1])
        limit_gb = float(node[2])
        own_gb = gb_by_pid.get(pid, min(gb_by_pid.values()))
        # The other trials of the sweep count as other processes.
        share = min(1.0, max(0.0, used_gb - own_gb) / limit_gb)
        message = (
            f"the machine ran out of memory: {used_gb:.1f} of {limit_gb:.1f} GB were in use. "
            f"The trial itself used at most {own_gb:.1f} GB"
        )
    return TrialFailure(
        kind=FailureKind.OUT_OF_MEMORY,
        message=message,
        traceback=text[-MAX_TRACEBACK:],
        memory="machine",
        held_by_others=share,
    )


def classify_broken_loop(error: BaseException) -> TrialFailure:
    """Return the failure of the trials that were running when Tune's loop raised an exception.

    If an exception of Ray caused the exception of the loop, classify the exception of Ray.
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
