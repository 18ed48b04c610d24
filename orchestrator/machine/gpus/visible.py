"""Environment variables that choose the GPUs of a process.

``CUDA_VISIBLE_DEVICES`` lists numbers or UUIDs of GPUs. Two functions read the variable:

- :func:`visible_gpus` returns the GPUs that CUDA uses. The list is also empty after a typing error.
- :func:`hides_all_gpus` returns whether the user hid all GPUs on purpose.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from itertools import takewhile
from pathlib import Path

LOGICAL_GPUS = "ISWEEP_LOGICAL_GPUS"
"""Environment variable for tests of GPU sharing. If it is 1 on every node, GPUs are only numbers
for Ray's scheduling, and trials run on CPUs."""
HIDING_VALUES = ("", "-1", "none", "void", "nodevfiles")
"""Values of ``CUDA_VISIBLE_DEVICES`` with which people hide all GPUs."""


def is_logical() -> bool:
    """Return whether GPUs are for scheduling only; see :data:`LOGICAL_GPUS`."""
    return os.environ.get(LOGICAL_GPUS) == "1"


def hides_all_gpus() -> bool:
    """Return whether the user hid all GPUs on purpose, so that trials run on CPUs."""
    value = os.environ.get("CUDA_VISIBLE_DEVICES")
    if value is None:
        return False
    return value.partition(",")[0].strip().lower() in HIDING_VALUES


def visible_gpus() -> list[str] | None:
    """Return the GPUs that ``CUDA_VISIBLE_DEVICES`` lists; None if the variable is not set.

    CUDA reads the list up to the first invalid entry. If an entry appears twice, CUDA uses no GPU.
    """
    value = os.environ.get("CUDA_VISIBLE_DEVICES")
    if value is None:
        return None
    is_gpu_name = re.compile(r"\d+|(GPU|MIG)-\S+").fullmatch
    words = [word.strip() for word in value.split(",")]
    names = list(takewhile(is_gpu_name, words))
    return names if len(set(names)) == len(names) else []


def visible_at_start_of_parent() -> str:
    """Return the value of ``CUDA_VISIBLE_DEVICES`` with which the parent process was started.

    The value is empty if the parent process was started without the variable.
    """
    prefix = b"CUDA_VISIBLE_DEVICES="
    with suppress(OSError):
        variables = Path(f"/proc/{os.getppid()}/environ").read_bytes().split(b"\0")
        for variable in variables:
            if variable.startswith(prefix):
                return variable.removeprefix(prefix).decode()
    return ""
