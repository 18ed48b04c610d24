"""The environment variables that select the GPUs of a process.

``CUDA_VISIBLE_DEVICES`` lists numbers or UUIDs of GPUs. Two functions read the variable:

- :func:`visible_gpus` returns the GPUs that CUDA uses. If the first entry is wrong, or if an
  entry appears twice, CUDA uses no GPU.
- :func:`hides_all_gpus` returns whether the user has hidden all GPUs on purpose.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from itertools import takewhile
from pathlib import Path

LOGICAL_GPUS = "ISWEEP_LOGICAL_GPUS"
"""Environment variable for tests of GPU sharing. If it is 1 on every node, GPUs are simulated:
Ray assigns them, but trials run on CPUs."""
HIDING_VALUES = ("", "-1", "none", "void", "nodevfiles")
"""First entries of ``CUDA_VISIBLE_DEVICES`` with which people hide all GPUs."""


def gpus_are_simulated() -> bool:
    """Return whether GPUs are simulated for tests (:data:`LOGICAL_GPUS`)."""
    return os.environ.get(LOGICAL_GPUS) == "1"


def hides_all_gpus() -> bool:
    """Return whether the user has hidden all GPUs on purpose. Trials then run on CPUs."""
    value = os.environ.get("CUDA_VISIBLE_DEVICES")
    if value is None:
        return False
    return value.partition(",")[0].strip().lower() in HIDING_VALUES


def visible_gpus() -> list[str] | None:
    """Return the numbers or UUIDs of the GPUs in ``CUDA_VISIBLE_DEVICES`` that CUDA uses.
    Return None if the variable is not set.
    """
    value = os.environ.get("CUDA_VISIBLE_DEVICES")
    if value is None:
        return None
    return listed_gpus(value)


def listed_gpus(value: str) -> list[str]:
    """Return the numbers and UUIDs of GPUs in a value of ``CUDA_VISIBLE_DEVICES``, by CUDA's
    rules.

    CUDA reads the value up to the first invalid entry. If an entry appears twice, CUDA uses no
    GPU.
    """
    is_gpu_id = re.compile(r"\d+|(GPU|MIG)-\S+").fullmatch
    words = [word.strip() for word in value.split(",")]
    ids = list(takewhile(is_gpu_id, words))
    return ids if len(set(ids)) == len(ids) else []


def visible_at_start_of_parent() -> str | None:
    """Return the value of ``CUDA_VISIBLE_DEVICES`` with which the parent process was started.

    Returns:
        The value, or None if the parent process was started without the variable. With None
        the process uses all GPUs. With an empty value it uses no GPU.
    """
    prefix = b"CUDA_VISIBLE_DEVICES="
    with suppress(OSError):
        variables = Path(f"/proc/{os.getppid()}/environ").read_bytes().split(b"\0")
        for variable in variables:
            if variable.startswith(prefix):
                return variable.removeprefix(prefix).decode()
    return None
