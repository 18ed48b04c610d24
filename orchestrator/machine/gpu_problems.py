"""Problems with a cluster's GPUs that prevent trials, reported before anything starts.

A GPU that also drives a screen can be used if its free memory suffices for the largest trial.
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
"""Share of a GPU's memory. If other processes use more, they are the cause of a memory failure."""
NODE_TIMEOUT_S = 120.0
"""Seconds that a node may take to describe its GPUs."""


@dataclass(frozen=True)
class Problem:
    """A problem with a node.

    Attributes:
        text: what is wrong, and where.
        hint: what the user can do.
    """

    text: str
    hint: str


def survey(num_gpus: float, *, is_private: bool) -> list[NodeGpus]:
    """Return the GPUs of every node with GPUs; empty if GPUs are only for scheduling.

    Args:
        num_gpus: number of GPUs that Ray assigns on a private cluster.
        is_private: whether the cluster is private, so that this machine is its only node.
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
    for reference, node in ask_nodes(torch_gpus.describe_node, _offers_gpus).items():
        with suppress(ray.exceptions.RayError):  # `isweep doctor` reports nodes without an answer
            described = ray.get(reference, timeout=NODE_TIMEOUT_S)
            nodes.append(replace(described, num_ray_gpus=node["Resources"]["GPU"]))
    return [node for node in nodes if not node.logical]


def _offers_gpus(node: dict[str, Any]) -> bool:
    return bool(node["Resources"].get("GPU", 0) > 0)


def ask_nodes(
    question: Callable[[], object],
    is_asked: Callable[[dict[str, Any]], bool] = lambda node: True,
) -> dict[Any, dict[str, Any]]:
    """Start a task on every live node of the connected cluster, or on some of them.

    Args:
        question: function that runs on each node.
        is_asked: returns whether a node gets the task, from Ray's record of the node.

    Returns:
        Ray's record of each node, by the reference of the task's result.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, max_retries=0)(question)
    nodes = {}
    for node in ray.nodes():
        if node["Alive"] and is_asked(node):
            on_node = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            nodes[task.options(scheduling_strategy=on_node).remote()] = node
    return nodes


def refuse(
    nodes: Iterable[NodeGpus], trials: Collection[TrialSpec], *, share: float, alone: bool
) -> None:
    """Raise an error if the trials of a sweep cannot run on these GPUs.

    Args:
        nodes: nodes with their GPUs.
        trials: trials of the sweep.
        share: largest share of a GPU that a trial gets.
        alone: whether no trials of isweep run there yet, so that all used memory belongs to others.

    Raises:
        SetupError: a GPU cannot be used, or has too little free memory.
        ConfigError: a GPU does not support the precision of a recipe.
    """
    nodes = list(nodes)
    needed = largest_peak(trials) if alone else 0.0
    texts: dict[str, None] = {}
    hints: dict[str, None] = {}
    for node in nodes:
        for problem in gpu_problems(node, share=share, needed=needed):
            texts[problem.text] = None
            hints[problem.hint] = None
    if texts:
        raise SetupError(
            "; ".join(texts),
            hint=f"{'. '.join(hints)}. Use --device cpu to run on CPUs instead",
        )
    _refuse_without_bfloat16(nodes, trials)


def largest_peak(trials: Iterable[TrialSpec]) -> float:
    """Return the predicted peak memory of the largest trial in bytes, with a margin.

    Trials are ignored if the memory of their network cannot be predicted.
    """
    peaks = [0.0]
    for trial in trials:
        with suppress(SweepError):
            peaks.append(peak_bytes(trial.network))
    return MEMORY_MARGIN * max(peaks)


def _refuse_without_bfloat16(nodes: list[NodeGpus], trials: Iterable[TrialSpec]) -> None:
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
            hint += f", or hide this GPU with CUDA_VISIBLE_DEVICES={_uuids(usable)}"
        raise ConfigError(
            f"The recipe {min(recipes)} computes in bfloat16, but the {old[0].name} of node "
            f"{node.node} (compute capability {old[0].capability}) has no bfloat16 units. In "
            "bfloat16, this GPU is slower than in float32",
            hint=hint,
        )


def _uuids(chosen: Iterable[Gpu]) -> str:
    return ",".join(gpu.uuid for gpu in chosen)


def gpu_problems(node: NodeGpus, *, share: float = 1.0, needed: float = 0.0) -> Iterator[Problem]:
    """Yield the problems that prevent trials on a node's GPUs.

    Args:
        node: the node and its GPUs.
        share: largest share of a GPU that a trial gets.
        needed: bytes of free memory that a trial with a whole GPU needs; 0 checks no memory.
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
    problems_by_gpu = [(gpu, [*_problems_of(gpu, node, share, needed)]) for gpu in node.gpus]
    usable = [gpu for gpu, problems in problems_by_gpu if not problems]
    hide = ""
    if usable:
        hide = f". Or hide this GPU with CUDA_VISIBLE_DEVICES={_uuids(usable)}"
    for gpu, problems in problems_by_gpu:
        for problem in problems:
            text = f"{prefix}: {gpu.name} {gpu.uuid}{problem.text}"
            yield Problem(text, problem.hint + hide)


def _slices_hint(slices: tuple[str, ...]) -> str:
    """Return how to use the slices (MIG) of a node, with the UUIDs ready to paste."""
    value = ",".join(slices)
    number = str(len(slices))
    hint = ""
    if not slices:
        hint = "List the slices with `nvidia-smi -L`. "
        value = "MIG-...,MIG-..."
        number = "NUMBER"
    return (
        f"{hint}Before you start isweep on that node, type `export "
        f"CUDA_VISIBLE_DEVICES={value}`. If you start Ray there yourself, type this line "
        f"before `ray start`, and add `--num-gpus={number}`. Set `resources.num_gpus: 1`"
    )


def _unreached(node: NodeGpus) -> Problem:
    """Return the problem of a node on which torch reaches fewer GPUs than Ray assigns."""
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


def _needed_on(gpu: Gpu, needed: float) -> float:
    """Return the bytes of free memory that a GPU must have.

    A trial that does not even fit an empty GPU gets plain steps or smaller batches later.
    """
    return min(needed, (1 - MAX_SHARE_OF_OTHERS_ON_GPU) * gpu.memory_bytes)


def _has_room(gpu: Gpu, needed: float) -> bool:
    return gpu.memory_bytes - gpu.held_bytes >= _needed_on(gpu, needed)


def _problems_of(gpu: Gpu, node: NodeGpus, share: float, needed: float) -> Iterator[Problem]:
    if not gpu.has_kernels:
        yield Problem(
            f" has the compute capability {gpu.capability}, which torch {node.torch} does not "
            "support",
            torch_hint(gpu.capability),
        )
    is_shared = share < 1 and not node.mps
    if gpu.compute_mode == "Prohibited":
        yield Problem(
            " has the compute mode Prohibited, so no trial can use it",
            "Run `nvidia-smi --compute-mode=0` on that node",
        )
    elif "Exclusive" in gpu.compute_mode and is_shared:
        yield Problem(
            f" cannot be shared in the compute mode {gpu.compute_mode}, but each trial requests "
            f"only {share:g} GPU",
            "Run `nvidia-smi --compute-mode=0` on that node, start MPS there, or set "
            "`resources.num_gpus: 1`",
        )
    if not _has_room(gpu, needed):
        end_others = "End the processes that `nvidia-smi` lists on that node"
        if node.is_wsl:
            # nvidia-smi in Linux counts the memory of Windows, but does not list its programs.
            end_others = (
                "Close programs in Windows that use the GPU: the Task Manager shows them on "
                "the tab Details in the column `Dedicated GPU memory`, which you may have to add"
            )
        yield Problem(
            f": other processes use {gpu.held_bytes / 2**30:.1f} of {gpu.memory_gib:.1f} GiB, "
            f"but the largest trial needs up to {_needed_on(gpu, needed) / 2**30:.1f} GiB",
            end_others,
        )
