"""What the nodes of a cluster have of GPUs, and what stands in the way of trials there."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from orchestrator.machine import gpus
from orchestrator.machine.gpus import NodeGpus
from orchestrator.planning import predict
from search_spaces.errors import ConfigError, SetupError
from search_spaces.specs import TrialSpec

MOST_HELD = 0.1
"""Of a GPU's memory, by others, before a sweep starts."""


def survey(num_gpus: float, *, local: bool) -> list[NodeGpus]:
    """Ask every node that offers GPUs what they are; empty where they are logical ones, or none is
    offered.

    Of a private cluster this machine is asked alone, which hands out ``num_gpus``.
    """
    if gpus.is_logical():
        return []
    if local:
        here = gpus.describe(os.environ.get("CUDA_VISIBLE_DEVICES", "")) if num_gpus else None
        return [replace(here, offered=num_gpus)] if here else []
    import ray

    found = []
    for reference, node in asked_of_nodes(
        gpus.describe, lambda node: node["Resources"].get("GPU", 0) > 0
    ).items():
        with suppress(ray.exceptions.RayError):  # one that does not answer is for isweep doctor
            found.append(replace(ray.get(reference, timeout=120), offered=node["Resources"]["GPU"]))
    return [said for said in found if not said.logical]


def asked_of_nodes(
    look: Callable[[], object], of: Callable[[dict[str, Any]], bool] = lambda node: True
) -> dict[Any, dict[str, Any]]:
    """Start a task on every live node of the connected cluster; returns nodes by their answer's
    reference.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    asked, task = {}, ray.remote(num_cpus=0, max_retries=0)(look)
    for node in ray.nodes():
        if node["Alive"] and of(node):
            where = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            asked[task.options(scheduling_strategy=where).remote()] = node
    return asked


def refuse(
    nodes: Iterable[NodeGpus], trials: Iterable[TrialSpec], *, share: float, alone: bool
) -> None:
    """Refuse what none of ``trials`` could do on these GPUs, of which each gets a ``share`` at
    most.

    Where none of ours run yet, ``alone``, what is held of a GPU is somebody else's.
    """
    problems = [
        problem for node in nodes for problem in gpu_problems(node, share=share, alone=alone)
    ]
    if problems:
        what, way_out = ("; ".join(dict.fromkeys(texts)) for texts in zip(*problems, strict=True))
        raise SetupError(
            "Every GPU that is offered must be free to run trials",
            what,
            f"{way_out}, or run with --device cpu",
        )
    without = [
        (node, gpu) for node in nodes for gpu in node.gpus if gpu.capability < predict.BFLOAT16_FROM
    ]
    recipes = {
        trial.network.recipe.name
        for trial in trials
        if trial.network.recipe.precision == "bfloat16"
    }
    if without and recipes:
        node, gpu = without[0]
        name = sorted(recipes)[0]
        raise ConfigError(
            "A recipe in bfloat16 needs a GPU that has it, of compute capability 8.0 or later",
            f"{name} on {gpu.name} of node {node.node}, whose is {gpu.capability}: it would be "
            "emulated, "
            "slower than float32",
            "--set recipe.precision=float32, or another GPU; beside others hide this one with "
            "CUDA_VISIBLE_DEVICES",
        )


def gpu_problems(
    node: NodeGpus, *, share: float = 1.0, alone: bool = False
) -> Iterator[tuple[str, str]]:
    """Yield what stands in the way of trials on a node's GPUs, with the way out; see
    :func:`refuse`.
    """
    where = f"node {node.node}"
    if node.error:
        way_out = f"see what {Path(sys.executable).name} -c 'import torch' says there"
        yield f"{where}: torch cannot be asked of its GPUs: {node.error}", way_out
        return
    if any(gpu.mig for gpu in node.gpus) and "MIG-" not in node.visible:
        yield (
            (
                f"{where}: its GPU is cut into slices (MIG), which Ray counts as one and cannot "
                "tell "
                "apart"
            ),
            "list the slices with nvidia-smi -L, start Ray there with "
            "CUDA_VISIBLE_DEVICES=MIG-...,MIG-... "
            "and --num-gpus as many, and set resources.num_gpus: 1",
        )
        return
    if len(node.gpus) < node.offered:
        reached = ",".join(gpu.uuid for gpu in node.gpus)
        yield (
            f"{where}: offers {node.offered:g} GPUs, torch {node.torch} built for CUDA "
            f"{node.cuda or 'none'} "
            f"reaches {len(node.gpus)} with NVIDIA driver {node.driver or 'absent'}"
            + (f": {node.complaint}" if node.complaint else ""),
            f"run, or start Ray there, with CUDA_VISIBLE_DEVICES={reached}"
            if reached
            else gpus.driver_way_out(node.driver, node.cuda, node.complaint),
        )
    for gpu in node.gpus:
        its = f"{where}: {gpu.name} {gpu.uuid}"
        if not gpu.has_kernels:
            yield (
                f"{its}: torch {node.torch} has no kernels for compute capability {gpu.capability}",
                (
                    "install a torch of PyTorch's cu126 wheels (up to 2.14), the last for GPUs "
                    "before "
                    "Turing"
                ),
            )
        shared = share < 1 and not node.mps
        if gpu.compute_mode == "Prohibited" or ("Exclusive" in gpu.compute_mode and shared):
            yield (
                f"{its}: its compute mode is {gpu.compute_mode}, for shares of {share:g}",
                "nvidia-smi --compute-mode=0, or start MPS there, or set resources.num_gpus: 1",
            )
        if alone and gpu.held_bytes > MOST_HELD * gpu.memory_bytes:
            yield (
                f"{its}: others hold {gpu.held_bytes / 2**30:.1f} of {gpu.memory_gib:.1f} GiB",
                (
                    "end what runs there (nvidia-smi lists it), or hide the GPU with "
                    "CUDA_VISIBLE_DEVICES"
                ),
            )
