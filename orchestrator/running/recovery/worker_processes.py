"""The CPU times of a private cluster's worker processes on this machine, read from ``/proc``."""

from __future__ import annotations

import os
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
WORKER_SCRIPT = b"default_worker.py"
"""File name in the command line of a Ray worker that is starting."""
WORKER_TITLE = b"ray::IsweepTrial"
"""Beginning of the process title of a worker that imports the modules of trials."""
PARENT, USER_TICKS, SYSTEM_TICKS = 1, 11, 12
"""Positions of fields in ``/proc/PID/stat``. They are counted after the command's name,
because this name may contain spaces."""


def worker_cpu_seconds(ancestor: int | None = None) -> dict[int, float]:
    """Return the CPU seconds of each worker process, by process id.

    Args:
        ancestor: process id whose child processes, direct or indirect, are searched. None
            means this process, the driver.
    """
    children: dict[int, list[int]] = defaultdict(list)
    cpu_seconds: dict[int, float] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, IndexError, ValueError):  # the process may have ended meanwhile
            fields = (folder / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            pid = int(folder.name)
            children[int(fields[PARENT])].append(pid)
            ticks = int(fields[USER_TICKS]) + int(fields[SYSTEM_TICKS])
            cpu_seconds[pid] = ticks / TICKS_PER_S
    descendants: list[int] = []
    waiting = [os.getpid() if ancestor is None else ancestor]
    while waiting:
        below = children[waiting.pop()]
        descendants += below
        waiting += below
    return {pid: cpu_seconds[pid] for pid in descendants if _is_worker(pid)}


def _is_worker(pid: int) -> bool:
    with suppress(OSError):
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        return WORKER_SCRIPT in command or command.startswith(WORKER_TITLE)
    return False
