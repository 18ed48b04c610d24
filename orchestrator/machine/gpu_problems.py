"""Problems with a cluster's GPUs that prevent trials. They are reported before a run starts.

A GPU that also drives a screen can be used if its free memory is enough for the largest trial.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from orchestrator.machine.gpus import torch_gpus
from orchestrator.machine.gpus.driver_hints import driver_hint, torch_hint
from orchestrator.machine.gpus.records import Gpu, NodeGpus
from orchestrator.machine.gpus.visible import gpus_are_simulated
from orchestrator.planning.costs.gpu_models import BFLOAT16_FROM
from orchestrator.planning.costs.memory import peak_bytes
from orchestrator.planning.costs.needs import MEMORY_MARGIN
from search_spaces.errors import ConfigError, SetupError, SweepError, plural
from search_spaces.specs import TrialSpec

MAX_SHARE_OF_OTHERS_ON_GPU = 0.1
"""Share of a GPU's memory, from 0 to 1. If other processes use more than this share, they
count as the cause of a memory failure."""
NODE_TIMEOUT_S = 120.0
"""Seconds that a node may take to describe its GPUs."""


@dataclass(frozen=True)
class Problem:
    """A problem with a node.

    Attributes:
        text: description of the problem, with the node and the GPU.
        hint: advice for the user.
    """

    text: str
    hint: str


def describe_gpus(num_gpus: float, *, is_private: bool) -> list[NodeGpus]:
    """Return the GPUs of each node that has GPUs. Return an empty list if the GPUs are
    simulated.

    Args:
        num_gpus: number of GPUs that Ray assigns on a private cluster.
        is_private: True if the cluster is private. This machine is then its only node.
    """
    if gpus_are_simulated():
        return []
    if is_private:
        if not num_gpus:
            return []
        this_node = torch_gpus.describe(os.environ.get("CUDA_VISIBLE_DEVICES"))
        return [replace(this_node, num_ray_gpus=num_gpus)]
    import ray

    nodes = []
    for reference, node in run_on_nodes(torch_gpus.describe_node, _offers_gpus).items():
        with suppress(ray.exceptions.RayError):  # `isweep doctor` reports nodes without an answer
            described = ray.get(reference, timeout=NODE_TIMEOUT_S)
            nodes.append(replace(described, num_ray_gpus=node["Resources"]["GPU"]))
    return [node for node in nodes if not node.logical]


def _offers_gpus(node: dict[str, Any]) -> bool:
    return bool(node["Resources"].get("GPU", 0) > 0)


def run_on_nodes(
    function: Callable[[], object],
    is_wanted: Callable[[dict[str, Any]], bool] = lambda node: True,
) -> dict[Any, dict[str, Any]]:
    """Start a Ray task on every live node of the connected cluster, or on some of these nodes.

    Args:
        function: function that each task runs.
        is_wanted: function that returns whether a node gets a task. Its argument is Ray's
            record of the node.

    Returns:
        Ray's record of each node that got a task, by the reference of the task's result.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, max_retries=0)(function)
    nodes = {}
    for node in ray.nodes():
        if node["Alive"] and is_wanted(node):
            on_node = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            nodes[task.options(scheduling_strategy=on_node).remote()] = node
    return nodes


def check_gpus_fit(
    nodes: Iterable[NodeGpus], trials: Collection[TrialSpec], *, share: float, alone: bool
) -> None:
    """Check that the trials of a sweep can run on these GPUs.

    Args:
        nodes: the nodes, with their GPUs.
        trials: trials of the sweep.
        share: largest share of a GPU that one trial gets.
        alone: True if no trial of isweep uses these GPUs yet. All used memory then belongs to
            other processes.

    Raises:
        SetupError: a GPU cannot be used, or has too little free memory.
        ConfigError: a GPU does not support the precision of a recipe.
    """
    nodes = list(nodes)
    needed_bytes = largest_peak(trials) if alone else 0.0
    texts: dict[str, None] = {}
    hints: dict[str, None] = {}
    for node in nodes:
        for problem in gpu_problems(node, share=share, needed_bytes=needed_bytes):
            texts[problem.text] = None
            hints[problem.hint] = None
    if texts:
        raise SetupError(
            "; ".join(texts),
            hint=f"{'. '.join(hints)}. To run on CPUs instead, use `--device cpu`",
        )
    _check_bfloat16(nodes, trials)


def largest_peak(trials: Iterable[TrialSpec]) -> float:
    """Return the predicted peak memory of the largest trial in bytes, with a margin.

    If the memory of a network cannot be predicted, its trials are ignored.
    """
    peaks = [0.0]
    for trial in trials:
        with suppress(SweepError):
            peaks.append(peak_bytes(trial.network))
    return MEMORY_MARGIN * max(peaks)


def _check_bfloat16(nodes: list[NodeGpus], trials: Iterable[TrialSpec]) -> None:
    """Raise a ConfigError if a recipe computes in bfloat16 and a GPU has no units for bfloat16."""
    recipes = set()
    for trial in trials:
        recipe = trial.network.recipe
        if recipe.precision == "bfloat16":
            recipes.add(recipe.name)
    if not recipes:
        return
    for node in nodes:
        old = [gpu for gpu in node.gpus if gpu.capability < BFLOAT16_FROM]
        if not old:
            continue
        hint = "Use `--set recipe.precision=float32`, or another GPU"
        usable = [gpu for gpu in node.gpus if gpu not in old]
        if usable:
            hint += f", or hide the {old[0].name} with CUDA_VISIBLE_DEVICES={_uuids(usable)}"
        raise ConfigError(
            f"The recipe {min(recipes)} computes in bfloat16, but the {old[0].name} of node "
            f"{node.node} (compute capability {old[0].capability}) has no bfloat16 units. "
            "Without these units, a GPU is slower in bfloat16 than in float32",
            hint=hint,
        )


def _uuids(chosen: Iterable[Gpu]) -> str:
    return ",".join(gpu.uuid for gpu in chosen)


def gpu_problems(
    node: NodeGpus, *, share: float = 1.0, needed_bytes: float = 0.0
) -> Iterator[Problem]:
    """Yield the problems that prevent trials on a node's GPUs.

    Args:
        node: the node and its GPUs.
        share: largest share of a GPU that a trial gets.
        needed_bytes: free memory in bytes that a trial with a whole GPU needs. 0 means that
            the memory is not checked.
    """
    prefix = f"node {node.node}"
    if node.error:
        yield Problem(
            f"{prefix}: torch did not list the GPUs: {node.error}",
            f"Run `{Path(sys.executable).name} -c 'import torch; torch.cuda.init()'` on that "
            "node, and correct the error that it prints",
        )
        return
    if any(gpu.mig for gpu in node.gpus) and "MIG-" not in node.visible:
        yield Problem(
            f"{prefix}: a GPU is divided into slices (MIG), but Ray counts it as one GPU",
            _slices_hint(node.slices),
        )
        return
    if len(node.gpus) < node.num_ray_gpus:
        yield _unreached(node)
    usable = []
    problems: list[Problem] = []
    for gpu in node.gpus:
        problems_of_gpu = list(_problems_of_gpu(gpu, node, share, needed_bytes))
        problems += problems_of_gpu
        if not problems_of_gpu:
            usable.append(gpu)
    hide = ""
    if usable:
        hide = f". Or hide this GPU with CUDA_VISIBLE_DEVICES={_uuids(usable)}"
    for problem in problems:
        yield Problem(problem.text, problem.hint + hide)


def _slices_hint(slices: tuple[str, ...]) -> str:
    """Return a hint that says how to use the MIG slices of a node. Users can paste the UUIDs
    of the slices from this hint.
    """
    uuids = ",".join(slices)
    num_gpus = str(len(slices))
    list_slices = ""
    if not slices:
        uuids = "MIG-...,MIG-..."
        num_gpus = "NUMBER"
        list_slices = "List the slices with `nvidia-smi -L`. "
    return (
        f"{list_slices}Before you start isweep on that node, type `export "
        f"CUDA_VISIBLE_DEVICES={uuids}`. If you start Ray on that node yourself, type the export "
        f"before `ray start`, and add `--num-gpus={num_gpus}` to `ray start`. In the sweep file, "
        "set `resources.num_gpus: 1`"
    )


def _unreached(node: NodeGpus) -> Problem:
    """Return the problem of a node on which torch can use fewer GPUs than Ray assigns."""
    build = f"built for CUDA {node.cuda}" if node.cuda else "built without CUDA"
    driver = f"with the NVIDIA driver {node.driver}" if node.driver else "without an NVIDIA driver"
    text = (
        f"node {node.node}: Ray offers {plural(int(node.num_ray_gpus), 'GPU')}, but torch "
        f"{node.torch}, {build}, can use {len(node.gpus)} {driver}"
    )
    if node.torch_message:
        text += f": {node.torch_message}"
    hint = driver_hint(node.driver, node.cuda, node.torch_message, is_wsl=node.is_wsl)
    if node.gpus:
        hint = f"Start isweep, or Ray on that node, with CUDA_VISIBLE_DEVICES={_uuids(node.gpus)}"
    return Problem(text, hint)


def _problems_of_gpu(
    gpu: Gpu, node: NodeGpus, share: float, needed_bytes: float
) -> Iterator[Problem]:
    """Yield the problems of one GPU. The arguments are those of :func:`gpu_problems`."""
    subject = f"node {node.node}: {gpu.name} {gpu.uuid}"
    if not gpu.has_kernels:
        yield Problem(
            f"{subject} has the compute capability {gpu.capability}, which torch {node.torch} "
            "does not support",
            torch_hint(gpu.capability),
        )
    is_shared = share < 1 and not node.mps
    if gpu.compute_mode == "Prohibited":
        yield Problem(
            f"{subject} has the compute mode Prohibited, so no trial can use it",
            "Run `nvidia-smi --compute-mode=0` on that node",
        )
    elif "Exclusive" in gpu.compute_mode and is_shared:
        yield Problem(
            f"{subject} has the compute mode {gpu.compute_mode}, so only one trial can use this "
            f"GPU at a time, but each trial requests only {share:g} GPU",
            "Run `nvidia-smi --compute-mode=0` on that node, start MPS on that node, or set "
            "`resources.num_gpus: 1` in the sweep file",
        )
    # A trial may need more memory than an empty GPU has. Such a trial gets plain steps or
    # smaller batches later.
    needed_bytes = min(needed_bytes, (1 - MAX_SHARE_OF_OTHERS_ON_GPU) * gpu.memory_bytes)
    if gpu.memory_bytes - gpu.held_bytes < needed_bytes:
        end_others = "End the processes that `nvidia-smi` lists on that node"
        if node.is_wsl:
            # nvidia-smi in Linux counts the memory of Windows, but does not list its programs.
            end_others = (
                "Close programs in Windows that use the GPU. To find these programs, open the "
                "tab Details of the Task Manager, and add the column `Dedicated GPU memory`"
            )
        yield Problem(
            f"{subject}: other processes use {gpu.held_bytes / 2**30:.1f} of "
            f"{gpu.memory_gib:.1f} GiB, but the largest trial needs up to "
            f"{needed_bytes / 2**30:.1f} GiB",
            end_others,
        )
