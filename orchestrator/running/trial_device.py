"""What a worker computes a trial on: the GPU that it was given, or a CPU.

A trial that was given a GPU computes on it or fails; it never falls back to a CPU silently. Before
its first step the GPU must be reached by torch, have the recipe's precision, and pass the self-test
for the trial's network.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from orchestrator.machine import gpus, self_test_verdict
from orchestrator.machine.self_test_case import Case
from orchestrator.planning.costs.gpu_models import BFLOAT16_FROM
from search_spaces.errors import SetupError
from search_spaces.specs import NetworkSpec, TrialSpec
from tasks.trials.records import CONTEXT_BYTES

log = logging.getLogger(__name__)

NO_GPU = "A trial that is given a GPU must be able to compute on it"
"""Rule of the error of a trial whose GPU does not work."""
REST_S = 120.0
"""Seconds before a process that has finished no trial reports a failure of its GPU. A GPU that
fails at once would otherwise be free first and get every trial of the sweep."""


def trial_options(cell: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Return where and how a trial computes.

    Returns:
        Arguments of :func:`tasks.trials.trial.run_trial`, and why its GPU takes plain steps (empty
        if it takes graphs, or if graphs were not asked for).

    Raises:
        SetupError: the GPU cannot be used; see :data:`NO_GPU`.
    """
    share = float(cell["num_gpus"])
    options = {
        "device": "cpu",
        "num_threads": cell["num_threads"],
        "gpu_fraction": None,
        "graphs": False,
    }
    if not share or gpus.is_logical():
        return options, ""
    check_gpu(cell["precision"])
    # Before this process computes: a GPU in exclusive mode takes no self-test beside it.
    plain_because = check_numbers(network_of(cell))
    check_computes()
    options["device"] = "cuda"
    if share < 1:
        # A whole GPU needs no limit: nobody else is there.
        options["gpu_fraction"] = share
    if cell["fast"] == "on":
        return options | {"graphs": True}, ""
    if cell["fast"] == "off" or cell["own_network"]:
        # The code of a user's network need not replay as a graph.
        return options, ""
    return options | {"graphs": not plain_because}, plain_because


def network_of(cell: Mapping[str, Any]) -> NetworkSpec:
    """Return the network of a worker's trial, of a grid or of a search."""
    if "network" in cell:
        return NetworkSpec.model_validate_json(cell["network"])
    return TrialSpec.model_validate_json(cell["spec"]).network


def check_numbers(network: NetworkSpec) -> str:
    """Check with the self-test that this process's GPU computes a network's numbers rightly.

    Returns:
        Why trials of the network take plain steps on this GPU; empty if they take graphs.

    Raises:
        SetupError: the GPU computes wrongly, so no trial may use it.
    """
    gpu = gpus.gpu_in_use()
    verdict = self_test_verdict.verdict_of(gpu.uuid, Case.of_network(network))
    if verdict.wrong:
        raise SetupError(
            f"{NO_GPU}, and its numbers must be right",
            f"{gpu_and_node(gpu.uuid)}: {gpu.name} computes wrongly: {verdict.wrong}",
            "use another GPU, driver or torch, or hide this one with CUDA_VISIBLE_DEVICES; "
            f"to test it again delete {verdict.file}",
        )
    if not verdict.plain_because:
        return ""
    note = (
        f"{gpu.uuid} ({gpu.name}) of node {socket.gethostname()}: captured graphs off, plain "
        f"steps are taken: {verdict.plain_because}"
    )
    log.warning("%s", note)
    return note


def check_computes() -> None:
    """Check that the GPU computes at all. If it is dead, the trial is not to blame.

    Raises:
        SetupError: the GPU is dead.
        torch.AcceleratorError: it is out of memory.
    """
    import torch

    try:
        torch.ones(1, device="cuda").item()
    except torch.AcceleratorError as error:
        if "out of memory" in str(error):
            raise
        where = gpu_and_node(gpus.gpu_in_use().uuid)
        raise SetupError(
            NO_GPU,
            f"{where}: {str(error).splitlines()[0]}",
            "reset or hide it: nvidia-smi says more",
        ) from error


def check_gpu(precision: str) -> None:
    """Check that torch reaches a GPU here that has the recipe's precision.

    Nodes that join a running cluster were not checked before.

    Raises:
        SetupError: torch reaches no GPU, or the GPU lacks bfloat16 and the recipe needs it.
    """
    import torch

    if not torch.cuda.is_available():
        driver = gpus.driver_version()
        reason = gpus.why_no_gpu()
        cuda = torch.version.cuda
        hint = gpus.driver_hint(driver, cuda, reason)
        raise SetupError(
            f"{NO_GPU}, and never computes on CPUs instead",
            f"{gpu_and_node()}: NVIDIA driver {driver or 'absent'}, torch {torch.__version__} "
            f"built for CUDA {cuda or 'none'}: {reason}",
            f"{hint}, or run with --device cpu",
        )
    if precision != "bfloat16":
        return
    capability = gpus.compute_capability()
    if capability < BFLOAT16_FROM:
        gpu = gpus.gpu_in_use()
        raise SetupError(
            f"{NO_GPU}, in bfloat16 where its recipe says so",
            f"{gpu_and_node(gpu.uuid)}: {gpu.name}, of compute capability {capability}",
            "take such nodes out of the cluster, or choose a recipe with precision: float32",
        )


def held_by_others() -> str:
    """Return a sentence about the memory of this process's GPU that other processes hold.

    If not even this process's context found room, others hold all of it. Empty if unknown.
    """
    import torch

    if gpus.is_logical():
        return ""
    reserved = torch.cuda.memory_reserved()  # 0 before this process has a context
    with suppress(RuntimeError, AssertionError):
        free, total = torch.cuda.mem_get_info()
        others = max(0, total - free - reserved - CONTEXT_BYTES) / 2**30
        return f"others hold {others:.1f} of {total / 2**30:.1f} GiB: "
    return "" if reserved else "others hold 1 of 1 GiB: "


def gpu_and_node(uuid: str = "") -> str:
    """Return the words by which failures name this process's GPU: its UUID, or else its number."""
    number = os.environ.get("CUDA_VISIBLE_DEVICES") or "of no number"
    return f"{uuid or f'GPU {number}'} of node {socket.gethostname()}"
