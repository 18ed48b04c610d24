"""What kinds of failure there are, and which are worth another attempt."""

from __future__ import annotations

import errno
import traceback
from dataclasses import asdict, dataclass
from typing import Any, Literal

from search_spaces.errors import SweepError

Kind = Literal["out_of_memory", "lost_node", "worker_crash", "bad_data", "disk_full", "code_error"]

RETRIES: dict[str, int | None] = {
    "lost_node": None,  # says nothing about the trial: retried without limit
    "worker_crash": 2,  # the third crash in a row is the trial's own doing
    "out_of_memory": 2,  # a neighbour may have taken the memory
    "disk_full": 0,
    "bad_data": 0,
    "code_error": 0,
}
"""Further attempts within one ``isweep run``; None is no limit. A new run tries every failed cell again."""

MAX_TRACEBACK = 8000


@dataclass(frozen=True)
class TrialFailure:
    """One failed attempt, as stored: its kind, one line for people, the traceback for developers."""

    kind: str
    message: str
    traceback: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON."""
        return asdict(self)


def classify(error: BaseException) -> TrialFailure:
    """Return the failure that an exception inside a trial stands for."""
    name = type(error).__name__
    message = (str(error).strip() or name).splitlines()[0][:500]
    if isinstance(error, MemoryError) or name == "OutOfMemoryError":
        kind: Kind = "out_of_memory"
    elif isinstance(error, SweepError):
        return TrialFailure("bad_data", str(error)[:1000])
    elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        kind = "disk_full"
    else:
        kind = "code_error"
        message = f"{name}: {message}"
    trace = "".join(traceback.format_exception(error))
    return TrialFailure(kind, message, trace[-MAX_TRACEBACK:])


def classify_lost_worker(error: BaseException | None) -> TrialFailure:
    """Return the failure for a trial whose process went away without a word, from Ray's error."""
    text = str(error or "the worker is gone")
    lower = text.lower()
    if type(error).__name__ == "OutOfMemoryError" or "out of memory" in lower or "memory pressure" in lower:
        kind: Kind = "out_of_memory"
    elif "node" in lower and any(
        word in lower
        for word in (
            "node died",
            "node has died",
            "node failure",
            "node is dead",
            "dead node",
            "node was terminated",
        )
    ):
        kind = "lost_node"
    else:
        kind = "worker_crash"
    line = next((line.strip() for line in text.splitlines() if line.strip()), "the worker is gone")
    return TrialFailure(kind, line[:500], text[-MAX_TRACEBACK:])


def may_retry(kind: str, attempts_this_run: int) -> bool:
    """Tell whether a cell that failed ``attempts_this_run`` times in this run gets another attempt."""
    limit = RETRIES.get(kind, 0)
    return limit is None or attempts_this_run <= limit
