"""The resource policy: what each trial asks Ray for, at first and after it ran out of memory."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from orchestrator.machine.cluster import Resources
from orchestrator.machine.gpu_problems import MOST_HELD
from orchestrator.machine.gpus import NodeGpus
from orchestrator.planning.costs.gpu_checks import packing_pays, read_checks
from orchestrator.planning.costs.gpu_models import GpuModel
from orchestrator.planning.costs.memory import peak_bytes
from orchestrator.planning.costs.needs import need_of
from orchestrator.planning.costs.networks import has_batch_norm
from orchestrator.planning.runtimes import MeasuredTrial, RuntimeModel, corrections_for
from orchestrator.results.records import FailureKind, TrialFailure
from search_spaces.errors import SweepError
from search_spaces.specs import TrialSpec
from search_spaces.sweeps import ResourceSpec

log = logging.getLogger(__name__)

MAX_UNCHANGED = 4
"""Retries of a trial, or of the trials of a network, with the same request, if other processes may
hold the memory that was missing."""
MOST_OF_MACHINE = 0.5
"""Share of a machine's memory from which on others, not the killed trial, are said to have used it.
"""
MIN_MICRO_BATCH = 2
"""Images per pass: batch norm has no variance over one."""


@dataclass
class ResourcePolicy:
    """The requests of a run's trials.

    A trial that ran out of GPU memory gets twice the share, up to a whole GPU. Then it takes plain
    steps, since graphs keep memory of their own. Then its batches pass in ever smaller parts, if
    they may. What one trial of a network needed, the others get at once. Where other processes
    hold the memory, a trial first waits.

    Attributes:
        resources: what the sweep asks for every trial.
        expectation: predicts each trial's share; without its GPU all trials get the same share.
        node_memory_bytes: returns the memory of the largest node; no trial may ask for more.
        num_increases: increases that each trial, and each network, gets from the start.
        granted: increases that each trial's last attempt had.
        num_waits: how often each trial found its memory held by others, and each network in a row.
        pressed: increases that trials of a network get while others hold memory.
        not_captured: networks whose steps cannot be captured as graphs.
    """

    resources: Resources
    expectation: RuntimeModel = field(default_factory=RuntimeModel)
    node_memory_bytes: Callable[[], float] = lambda: math.inf
    num_increases: Counter[Hashable] = field(default_factory=Counter)
    granted: dict[str, int] = field(default_factory=dict)
    num_waits: Counter[Hashable] = field(default_factory=Counter)
    pressed: Counter[Hashable] = field(default_factory=Counter)
    not_captured: set[Hashable] = field(default_factory=set)

    def request_for(self, trial: TrialSpec) -> Resources:
        """Return what the next attempt at a trial asks for."""
        network = network_key(trial)
        num_increases = max(self.num_increases[trial.trial_id], self.num_increases[network])
        if self.num_waits[network] > MAX_UNCHANGED:
            num_increases = max(num_increases, self.pressed[network])
        self.granted[trial.trial_id] = num_increases
        return self._request(trial, num_increases)

    def mean_request(self, trials: Collection[TrialSpec]) -> Resources:
        """Return what a trial of ``trials``, at least one, asks for on average."""
        shares = [self.request_for(trial).num_gpus for trial in trials]
        return replace(self.resources, num_gpus=sum(shares) / len(shares))

    def finished(self, trial: TrialSpec) -> None:
        """Learn from a result: what was enough for a trial is enough for its network."""
        network = network_key(trial)
        granted = self.granted.pop(trial.trial_id, 0)
        self.num_increases[network] = min(granted, self.num_increases[network])
        if 0 < self.pressed[network] <= granted:
            self.num_waits[network] = MAX_UNCHANGED  # the next trial tries less
        else:
            self.num_waits[network] = self.pressed[network] = 0

    def failed(self, trial: TrialSpec, failure: TrialFailure) -> str:
        """Learn from a failure.

        Returns:
            A hint to the user if no attempt can get more memory; empty otherwise.
        """
        if failure.kind != FailureKind.OUT_OF_MEMORY:
            if failure.capture_failed:
                self.not_captured.add(network_key(trial))
            return ""
        granted = self.granted.pop(trial.trial_id, self.num_increases[trial.trial_id])
        if failure.memory == "machine":
            return self._machine_failed(trial, failure, granted)
        return self._gpu_failed(trial, failure, granted)

    def _machine_failed(self, trial: TrialSpec, failure: TrialFailure, granted: int) -> str:
        """Learn that the memory of a trial's machine ran out.

        If others hold it, the trial waits, and then tries with less; it is never hopeless, because
        others may give the memory back. ``Retries`` gives it up in the end.
        """
        share = failure.held_by_others
        is_held_by_others = share is not None and share > MOST_OF_MACHINE
        if is_held_by_others:
            self.num_waits[trial.trial_id] += 1
            if self.num_waits[trial.trial_id] <= MAX_UNCHANGED:
                return ""
        self.num_increases[trial.trial_id] = granted + 1
        is_changed = self._request(trial, granted + 1) != self._request(trial, granted)
        if is_held_by_others or is_changed or granted < MAX_UNCHANGED:
            return ""
        return self._hint(trial, "the machine gave", "Choose a larger machine")

    def _gpu_failed(self, trial: TrialSpec, failure: TrialFailure, granted: int) -> str:
        """Learn that memory ran out on a trial's GPU, or on a machine of which no more is known."""
        network = network_key(trial)
        before = self._request(trial, granted)
        after = self._request(trial, granted + 1)
        is_on_gpu = before.num_gpus > 0
        share = failure.held_by_others
        is_held_by_others = share is not None and share > MOST_HELD
        if self._needs_less_than_half(trial, before.num_gpus):
            is_held_by_others = True
        if is_held_by_others and before.num_gpus >= 1:  # the trial's own need is not too large
            self.num_waits.update((trial.trial_id, network))
            if self.num_waits[network] > MAX_UNCHANGED and after != before:
                self.pressed[network] = max(self.pressed[network], granted + 1)
            if self.num_waits[trial.trial_id] <= MAX_UNCHANGED:
                return ""
        self.num_increases[trial.trial_id] = granted + 1
        # On a whole GPU, if nobody could say what others hold, they may hold the memory.
        is_own_need = share is not None or before.num_gpus < 1
        if is_on_gpu and not is_held_by_others and is_own_need:
            self.num_increases[network] = max(self.num_increases[network], granted + 1)
        if after != before or (not is_on_gpu and granted < MAX_UNCHANGED):
            return ""
        if not is_on_gpu:
            return self._hint(trial, "the machine gave", "Choose a larger machine")
        if is_held_by_others:
            return self._hint(
                trial,
                "other processes leave on the GPU",
                "End the other processes, choose another GPU",
            )
        return self._hint(trial, "a whole GPU has", "Choose a larger GPU")

    def _hint(self, trial: TrialSpec, memory: str, fix: str) -> str:
        """Return why no attempt at a trial can succeed, and what to do."""
        hint = (
            f"{trial.network.model.name} at batch size {trial.network.recipe.batch_size} needs "
            f"more memory than {memory}. {fix}, or lower recipe.batch_size"
        )
        if self._may_be_split(trial):
            return hint
        return (
            f"{hint}. Or set resources.micro_batches: on, which splits batches and changes what "
            "batch norm sees"
        )

    def _request(self, trial: TrialSpec, num_increases: int) -> Resources:
        resources = self.resources
        if resources.num_gpus and self.expectation.gpu is not None:
            share = self._expected_share(trial, self.expectation.gpu)
            resources = replace(resources, num_gpus=share)
        if network_key(trial) in self.not_captured:
            resources = replace(resources, fast="off")
        if not num_increases:
            return resources
        share = resources.num_gpus
        num_doublings = 1  # without a GPU: of the machine's memory, once
        if share:
            num_doublings = max(0, math.ceil(math.log2(1 / share) - 1e-9))
        resources = self._doubled(resources, num_increases)
        num_left = num_increases - num_doublings
        is_custom = trial.network.model.library == "own"
        is_plain = resources.fast == "off" or (is_custom and resources.fast == "auto")
        if num_left > 0 and share and not is_plain:
            resources = replace(resources, fast="off")
            num_left -= 1
        if num_left <= 0 or not self._may_be_split(trial):
            return resources
        part = max(MIN_MICRO_BATCH, trial.network.recipe.batch_size >> num_left)
        return replace(resources, micro_batch=part)

    def _doubled(self, resources: Resources, num_increases: int) -> Resources:
        share = resources.num_gpus
        if 0 < share <= 1:  # whole GPUs are not doubled
            share = min(1.0, share * 2**num_increases)
        memory_bytes = resources.memory_bytes
        if memory_bytes:
            twice = int(min(2 * memory_bytes, self.node_memory_bytes()))
            memory_bytes = max(memory_bytes, twice)
        return replace(resources, num_gpus=share, memory_bytes=memory_bytes)

    def _may_be_split(self, trial: TrialSpec) -> bool:
        """Return whether a trial's batches may pass in parts; batch norm sees the difference."""
        if self.resources.micro_batches != "auto":
            return self.resources.micro_batches == "on"
        with suppress(SweepError):
            return not has_batch_norm(trial.network)
        return False

    def _needs_less_than_half(self, trial: TrialSpec, share: float) -> bool:
        """Return whether a trial needs less than half of its whole GPU: others hold the rest."""
        gpu = self.expectation.gpu
        if gpu is None or share != 1:
            return False
        with suppress(SweepError):
            return 2 * peak_bytes(trial.network) < gpu.memory_gib * 2**30
        return False

    def _expected_share(self, trial: TrialSpec, gpu: GpuModel) -> float:
        if self.expectation.share is not None:
            return self.expectation.share
        try:
            return need_of(trial, gpu, self.expectation.corrections).share
        except SweepError as error:
            # It may train all the same, or fail by itself with its own message.
            log.warning("%s: share as resources.num_gpus says, %s", trial.trial_id, error)
            return self.resources.num_gpus


def network_key(trial: TrialSpec) -> Hashable:
    """Return what trials share that need the same memory, and that graphs capture alike."""
    prepared = trial.network.subset.prepared
    return trial.network.model, trial.network.recipe, prepared.image_size, prepared.channels


def expectation_for(
    nodes: Collection[NodeGpus],
    resources: ResourceSpec,
    measured: Collection[MeasuredTrial],
    folders: Iterable[Path] = (),
) -> RuntimeModel:
    """Return what trials are expected to need of the connected cluster's GPUs.

    Trials share a GPU if the sweep says so, if MPS runs on its node, or if ``isweep gpu-check``
    found that a pair of trials pays. Otherwise each trial has one to itself.

    Args:
        nodes: the cluster's nodes with GPUs; none if trials run on CPUs.
        resources: what the sweep asks for.
        measured: trials that have run, from which predictions are corrected.
        folders: records of ``isweep gpu-check``.
    """
    if resources.num_gpus == 0 or not nodes:
        return RuntimeModel(None, corrections_for(None, measured))
    checks = read_checks(folders)
    models = [gpu.model(checks) for node in nodes for gpu in node.gpus]
    smallest = min(models, key=lambda model: (model.memory_gib, model.half_tflops))
    share = resources.num_gpus
    if not share and not all(_is_shared(node, checks) for node in nodes):
        share = 1.0
    return RuntimeModel(smallest, corrections_for(smallest, measured), share or None)


def _is_shared(node: NodeGpus, checks: Mapping[str, Mapping[str, Any]]) -> bool:
    """Return whether trials may share each GPU of a node."""
    return all(
        (node.mps or "Exclusive" not in gpu.compute_mode)
        and not gpu.mig
        and packing_pays(gpu.name, checks, mps=node.mps)
        for gpu in node.gpus
    )
