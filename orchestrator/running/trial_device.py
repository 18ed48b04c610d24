"""What a worker may compute a trial on: its GPU, or a CPU."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from typing import Any

from orchestrator.machine import gpus, self_test_verdict
from orchestrator.planning import predict
from search_spaces.errors import SetupError
from tasks.trials.records import CONTEXT_BYTES

log = logging.getLogger(__name__)

NO_GPU = "A trial that is given a GPU must be able to compute on it"
"""How the failure of a trial begins that cannot."""

REST_S = 120.0
"""Before a failure is told in a process that has finished no trial: a GPU that fails at once would
be free first, be given, and fail, every cell of a sweep while the sound ones compute."""


def trial_options(cell: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Return on what a trial computes, as :func:`tasks.trials.trial.run_trial` takes it; why no
    graphs.
    """
    share, fast, note = float(cell["num_gpus"]), cell["fast"], ""
    options = {
        "device": "cpu",
        "num_threads": cell["num_threads"],
        "gpu_fraction": None,
        "graphs": False,
    }
    if share and not gpus.is_logical():
        check_gpu(cell["precision"])
        # By every process's first trial: an exclusive GPU takes no self-test beside this process.
        off = graphs_off() if fast == "auto" else ""
        is_asked = (
            fast == "auto" and not cell["own_network"]
        )  # whose code need not replay as a graph
        note, graphs = off if is_asked else "", fast == "on" or (is_asked and not off)
        # A whole GPU needs no limit: nobody else is there.
        options |= {
            "device": "cuda",
            "gpu_fraction": share if share < 1 else None,
            "graphs": graphs,
        }
        check_computes()
    return options, note


def check_computes() -> None:
    """See that the GPU computes at all: of a dead one it is not the trial that is to blame."""
    import torch

    try:
        torch.ones(1, device="cuda").item()
    except torch.AcceleratorError as error:
        if "out of memory" in str(error):
            raise
        found = f"{named(gpus.gpu_in_use()[1])}: {str(error).splitlines()[0]}"
        raise SetupError(NO_GPU, found, "reset or hide it: nvidia-smi says more") from error


def check_gpu(precision: str) -> None:
    """See that torch reaches a GPU here, which has bfloat16 where that is asked for: a node may
    come late.
    """
    import torch

    if not torch.cuda.is_available():
        driver, complaint = gpus.driver_version(), gpus.no_gpu()
        raise SetupError(
            f"{NO_GPU}, and never computes on CPUs instead",
            f"{named()}: NVIDIA driver {driver or 'absent'}, "
            f"torch {torch.__version__} built for CUDA {torch.version.cuda or 'none'}: {complaint}",
            gpus.driver_way_out(driver, torch.version.cuda, complaint)
            + ", or run with --device cpu",
        )
    if precision == "bfloat16" and (its := gpus.capability()) < predict.BFLOAT16_FROM:
        name, uuid = gpus.gpu_in_use()
        raise SetupError(
            f"{NO_GPU}, in bfloat16 where its recipe says so",
            f"{named(uuid)}: {name}, of compute capability {its}",
            "take such nodes out of the cluster, or choose a recipe with precision: float32",
        )


def held_by_others() -> str:
    """Say what other processes hold of this process's GPU: all where it could not begin; empty if
    unknown.
    """
    import torch

    if gpus.is_logical():
        return ""
    held = torch.cuda.memory_reserved()  # 0 before it begins
    with suppress(RuntimeError, AssertionError):
        free, total = torch.cuda.mem_get_info()
        others = max(0, total - free - held - CONTEXT_BYTES) / 2**30
        return f"others hold {others:.1f} of {total / 2**30:.1f} GiB: "
    return "" if held else "others hold 1 of 1 GiB: "


def named(uuid: str = "") -> str:
    """Return this process's GPU as failures name it: by its UUID, or its number where it has told
    none.
    """
    known = uuid or f"GPU {os.environ.get('CUDA_VISIBLE_DEVICES') or 'of no number'}"
    return f"{known} of node {socket.gethostname()}"


@cache
def graphs_off() -> str:
    """Return why this process's GPU takes plain steps, by its self-test; empty where it captures
    graphs.

    The test runs at first contact, once per GPU, driver, torch and version of the code; processes
    of one node wait for each other, and its verdict is kept on the node.
    """
    name, uuid = gpus.gpu_in_use()
    verdict = self_test_verdict.self_test(uuid)
    off = (
        f"{uuid} ({name}) of node {socket.gethostname()}: captured graphs off, plain steps are "
        "taken"
    )
    said = "" if verdict["graphs"] else f"{off}: {verdict['reason']}"
    if said:
        log.warning("%s", said)
    return said
