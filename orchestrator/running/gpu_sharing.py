"""Decide whether trials share the cluster's GPUs, and predict how long trials run there."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from orchestrator.machine.gpus.records import NodeGpus
from orchestrator.planning.costs.gpu_checks import packing_pays, read_checks
from orchestrator.planning.runtimes import MeasuredTrial, RuntimeModel, corrections_for
from search_spaces.sweeps import ResourceSpec


def runtime_model_for(
    nodes: Collection[NodeGpus],
    resources: ResourceSpec,
    measured: Collection[MeasuredTrial],
    folders: Iterable[Path] = (),
) -> RuntimeModel:
    """Return the model that predicts each trial's time and GPU share on the connected cluster.

    Trials share a GPU in three cases: the sweep requests a share, MPS runs on the node, or
    ``isweep gpu-check`` measured that two trials together are faster. Otherwise each trial
    gets a whole GPU. If the cluster has several kinds of GPU, the model predicts for the kind
    with the least memory.

    Args:
        nodes: the cluster's nodes with GPUs, or an empty list if trials run on CPUs.
        resources: resources that the sweep requests.
        measured: finished trials, whose times correct the predictions.
        folders: folders with records of ``isweep gpu-check``.
    """
    if resources.num_gpus == 0 or not nodes:
        return RuntimeModel(None, corrections_for(None, measured))
    checks = read_checks(folders)
    models = [gpu.model(checks) for node in nodes for gpu in node.gpus]
    smallest = min(models, key=lambda model: (model.memory_gib, model.half_tflops))
    without_mps = [replace(node, mps=False) for node in nodes]
    return RuntimeModel(
        smallest,
        corrections_for(smallest, measured),
        share=_share_of_all(nodes, resources, checks),
        share_without_mps=_share_of_all(without_mps, resources, checks),
    )


def names_of_small_gpus(nodes: Iterable[NodeGpus]) -> frozenset[str]:
    """Return the names of the GPUs that have less memory than the largest GPU of all nodes."""
    gpus = [gpu for node in nodes for gpu in node.gpus]
    most_bytes = max((gpu.memory_bytes for gpu in gpus), default=0)
    large = {gpu.name for gpu in gpus if gpu.memory_bytes == most_bytes}
    return frozenset(gpu.name for gpu in gpus) - large


def _share_of_all(
    nodes: Iterable[NodeGpus],
    resources: ResourceSpec,
    checks: Mapping[str, Mapping[str, Any]],
) -> float | None:
    """Return the share of a GPU that every trial gets. None means that each trial gets the
    share that the runtime model predicts for it.
    """
    if resources.num_gpus:
        return resources.num_gpus
    if all(_may_be_shared(node, checks) for node in nodes):
        return None
    return 1.0


def _may_be_shared(node: NodeGpus, checks: Mapping[str, Mapping[str, Any]]) -> bool:
    """Return whether trials may share each GPU of a node."""
    return all(
        (node.mps or "Exclusive" not in gpu.compute_mode)
        and not gpu.mig
        and packing_pays(gpu.name, checks, mps=node.mps)
        for gpu in node.gpus
    )
