"""The GPU that a trial was given, and what stands in its way: no trial falls back to CPUs in silence."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Mapping
from typing import Any

from search_spaces.errors import SetupError

LOGICAL_GPUS = "ISWEEP_LOGICAL_GPUS"
"""Set to 1 on every node, GPU shares are for scheduling only and trials run on CPUs: for tests of packing."""

NO_CARD = "A trial that is given a GPU must reach it, and never computes on CPUs instead"
"""How the failure of a trial begins that has no GPU."""

REST_S = 120.0
"""Before a trial fails for its GPU in a process that has not finished one: a GPU that fails at once would be
free first, be given, and fail, every cell of a sweep while the sound ones compute."""

NEEDS_DRIVER = {13: 580, 12: 525, 11: 450}
"""The oldest branch of NVIDIA's driver by major version of CUDA, within which minor versions are compatible
(NVIDIA, "CUDA Compatibility", table 1)."""


def trial_options(cell: Mapping[str, Any], *, own_network: bool) -> dict[str, Any]:
    """Return what a trial computes on, as :func:`tasks.trials.trial.run_trial` takes it.

    Args:
        cell: what the trial's process was told, see :class:`~orchestrator.running.requests.Request`.
        own_network: whether the network is somebody's own, whose code need not replay as a graph: it is
            captured only where ``resources.fast`` is ``on``.

    Raises:
        SetupError: naming node, driver and torch's CUDA when torch cannot reach the GPU.
    """
    share, fast = float(cell["num_gpus"]), cell["fast"]
    on_gpu = bool(share) and not is_logical()
    options = {"device": "cpu", "num_threads": cell["num_threads"], "gpu_fraction": None, "graphs": False}
    if on_gpu:
        check_card()
        graphs = fast == "on" or (fast == "auto" and not own_network and graphs_pay())
        options |= {"device": "cuda", "gpu_fraction": share, "graphs": graphs}
    return options


def graphs_pay() -> bool:
    """Tell whether the self-test of this process's GPU found captured graphs right and faster."""
    return False


def is_logical() -> bool:
    """Tell whether GPUs are logical ones."""
    return os.environ.get(LOGICAL_GPUS) == "1"


def rest(num_finished: int) -> None:
    """Wait before a GPU's failure is told, in a process that has not finished a trial on it."""
    if not num_finished:
        time.sleep(REST_S)


def check_card() -> None:
    """See that torch reaches a GPU of this machine, unless they are logical ones.

    Raises:
        SetupError: naming node, driver and torch's CUDA when it does not.
    """
    if is_logical():
        return
    import torch

    if not torch.cuda.is_available():
        driver = driver_version()
        raise SetupError(
            NO_CARD,
            f"{named()}: NVIDIA driver {driver or 'absent'}, "
            f"torch {torch.__version__} built for CUDA {torch.version.cuda or 'none'}",
            f"{driver_way_out(driver, torch.version.cuda)}, or run with --device cpu",
        )


def driver_way_out(driver: str, cuda: str | None) -> str:
    """Return how a driver and a torch that was built for ``cuda`` are brought together."""
    if not driver:
        return "install NVIDIA's driver"
    if not cuda:
        return "install a torch with CUDA (pip install torch)"
    branch, needed = int(driver.partition(".")[0]), NEEDS_DRIVER.get(int(cuda.partition(".")[0]), 0)
    if branch >= needed:
        return "see what nvidia-smi says: the driver is new enough"
    older = ", or a torch of PyTorch's cu126 wheels (up to 2.14), which takes it" if branch >= 525 else ""
    return f"CUDA {cuda} needs a driver of branch {needed} or later, this is {driver}: install one{older}"


def gpu_in_use() -> tuple[str, str]:
    """Return the driver's name of the GPU that this process computes on, and its UUID."""
    import torch

    about = torch.cuda.get_device_properties()
    uuid = str(about.uuid)
    return str(about.name), uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"


def named(uuid: str = "") -> str:
    """Return this process's GPU as failures name it: by its UUID, or its number where it has told none."""
    known = uuid or f"GPU {os.environ.get('CUDA_VISIBLE_DEVICES') or 'of no number'}"
    return f"{known} of node {socket.gethostname()}"


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
