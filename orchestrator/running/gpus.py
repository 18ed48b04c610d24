"""The card that a trial was given, and what stands in its way: no trial falls back to CPUs in silence."""

from __future__ import annotations

import os
import socket
import subprocess
import time

from search_spaces.errors import SetupError

LOGICAL_GPUS = "ISWEEP_LOGICAL_GPUS"
"""Set to 1 on every node, GPU shares are for scheduling only and trials run on CPUs: for tests of packing."""

NO_CARD = "A trial that is given a card must reach it, and never computes on CPUs instead"
"""How the failure of a trial begins that has no card."""

PAUSE_S = 20.0
"""Before a trial fails for want of a card: a node that failed at once would be given, and fail, every cell of
a sweep before a sound node has finished its first."""


def computes_on_gpu(num_gpus: float) -> bool:
    """Tell whether a trial with this share of a card computes on it.

    Raises:
        SetupError: naming node, driver and torch's CUDA when torch cannot reach the card.
    """
    if not num_gpus or os.environ.get(LOGICAL_GPUS) == "1":
        return False
    try:
        check_card()
    except SetupError:
        time.sleep(PAUSE_S)
        raise
    return True


def check_card() -> None:
    """See that torch reaches a card of this machine, unless cards are logical ones.

    Raises:
        SetupError: naming node, driver and torch's CUDA when it does not.
    """
    if os.environ.get(LOGICAL_GPUS) == "1":
        return
    import torch

    if not torch.cuda.is_available():
        raise SetupError(
            NO_CARD,
            f"node {socket.gethostname()}: NVIDIA driver {driver_version() or 'absent'}, "
            f"torch {torch.__version__} built for CUDA {torch.version.cuda or 'none'}",
            "install a driver for that CUDA or the torch of constraints-cuda.txt, or run with --device cpu",
        )


def card_in_use() -> str:
    """Return the driver's name of the card that this process computes on."""
    import torch

    return str(torch.cuda.get_device_name())


def driver_version() -> str:
    """Return the version of this machine's NVIDIA driver; empty where there is none."""
    command = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return output_of(*command).partition("\n")[0]


def output_of(*command: str) -> str:
    """Return what a command prints, all cards visible to it; nothing when it is absent or fails."""
    visible = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=visible, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
