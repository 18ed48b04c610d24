"""The resource policy: the resources that a trial requests, first and after memory ran out."""

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
"""Retries with an unchanged request if other processes may use the missing memory. The limit holds
for each trial, and for all trials of a network in a row."""
MOST_OF_MACHINE = 0.5
"""Share of a machine's memory. If other processes used more, they count as the cause of a memory
failure, not the trial that was killed."""
MIN_MICRO_BATCH = 2
"""Least number of images in a forward pass: batch norm has no variance over one image."""


@dataclass
class ResourcePolicy:
    """The resource requests of a run's trials.

    If a trial runs out of GPU memory, its next attempt gets twice the share, up to a whole GPU. The
    attempt after that trains with plain steps, because CUDA graphs occupy memory of their own.
    Later attempts split each batch into smaller and smaller parts, if the network allows this. The
    other trials of the same network start with what one of them needed. If other processes use the
    memory, the trial first waits.

    Attributes:
        resources: resources that the sweep requests for every trial.
        expectation: predicts the share of each trial. If it has no GPU, all trials get one share.
        node_memory_bytes: returns the memory of the largest node, the most that a trial requests.
        small_gpus: driver's names of the GPUs that have less memory than the cluster's largest GPU.
            A failure on such a GPU changes no other trial, because Ray may run it on a larger one.
        num_increases: number of increases in the next request, by trial id and by network.
        granted: number of increases in the last request of each trial.
        num_waits: number of memory failures caused by other processes, by trial id and by network.
            A result of a network resets the network's number.
        pressed: increases for the trials of a network while other processes use the memory.
        not_captured: networks whose steps cannot be captured as CUDA graphs.
    """

    resources: Resources
    expectation: RuntimeModel = field(default_factory=RuntimeModel)
    node_memory_bytes: Callable[[], float] = lambda: math.inf
    small_gpus: frozenset[str] = frozenset()
    num_increases: Counter[Hashable] = field(default_factory=Counter)
    granted: dict[str, int] = field(default_factory=dict)
    num_waits: Counter[Hashable] = field(default_factory=Counter)
    pressed: Counter[Hashable] = field(default_factory=Counter)
    not_captured: set[Hashable] = field(default_factory=set)

    def request_for(self, trial: TrialSpec) -> Resources:
        """Return the resources that the next attempt at a trial requests."""
        network = network_key(trial)
        num_increases = max(self.num_increases[trial.trial_id], self.num_increases[network])
        if self.num_waits[network] > MAX_UNCHANGED:
            num_increases = max(num_increases, self.pressed[network])
        self.granted[trial.trial_id] = num_increases
        return self._request(trial, num_increases)

    def mean_request(self, trials: Collection[TrialSpec]) -> Resources:
        """Return the mean request of ``trials``, which must not be empty."""
        shares = [self.request_for(trial).num_gpus for trial in trials]
        return replace(self.resources, num_gpus=sum(shares) / len(shares))

    def finished(self, trial: TrialSpec) -> None:
        """Update the requests after a result: the trial's resources suffice for its network."""
        network = network_key(trial)
        granted = self.granted.pop(trial.trial_id, 0)
        self.num_increases[network] = min(granted, self.num_increases[network])
        if 0 < self.pressed[network] <= granted:
            self.num_waits[network] = MAX_UNCHANGED  # the next trial gets the normal request
        else:
            self.num_waits[network] = self.pressed[network] = 0

    def failed(self, trial: TrialSpec, failure: TrialFailure, gpu_name: str = "") -> str:
        """Update the requests after a failure.

        Args:
            trial: the trial that failed.
            failure: why it failed.
            gpu_name: the driver's name of the GPU on which it failed; empty if unknown.

        Returns:
            A hint to the user if every further attempt would fail as well; empty otherwise.
        """
        if failure.kind != FailureKind.OUT_OF_MEMORY:
            if failure.capture_failed:
                self.not_captured.add(network_key(trial))
            return ""
        granted = self.granted.pop(trial.trial_id, self.num_increases[trial.trial_id])
        if failure.memory == "machine":
            return self._machine_failed(trial, failure, granted)
        return self._gpu_failed(trial, failure, granted, gpu_name)

    def _machine_failed(self, trial: TrialSpec, failure: TrialFailure, granted: int) -> str:
        """Update the requests after the memory of a trial's machine ran out.

        If other processes use the memory, the trial waits, and later splits its batches. Such a
        trial gets no final hint, because the others may free the memory. ``Retries`` limits the
        number of attempts.
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
        return self._memory_hint(trial, "the machine gave", "Choose a larger machine")

    def _gpu_failed(
        self, trial: TrialSpec, failure: TrialFailure, granted: int, gpu_name: str
    ) -> str:
        """Update the requests after memory ran out on a GPU, or somewhere unknown."""
        network = network_key(trial)
        before = self._request(trial, granted)
        after = self._request(trial, granted + 1)
        is_on_gpu = before.num_gpus > 0
        share = failure.held_by_others
        is_held_by_others = share is not None and share > MOST_HELD
        if self._needs_less_than_half(trial, before.num_gpus):
            if failure.no_engine and share is not None and not is_held_by_others:
                return self._no_kernel_hint(trial)
            is_held_by_others = True
        if is_held_by_others and before.num_gpus >= 1:  # the trial alone would fit
            self.num_waits.update((trial.trial_id, network))
            if self.num_waits[network] > MAX_UNCHANGED and after != before:
                self.pressed[network] = max(self.pressed[network], granted + 1)
            if self.num_waits[trial.trial_id] <= MAX_UNCHANGED:
                return ""
        self.num_increases[trial.trial_id] = granted + 1
        # If the memory of other processes on a whole GPU is unknown, they may be the cause.
        is_own_need = share is not None or before.num_gpus < 1
        # Trials that Ray runs on a larger GPU may fit there with an unchanged request.
        is_for_all = is_own_need and gpu_name not in self.small_gpus
        if is_on_gpu and not is_held_by_others and is_for_all:
            self.num_increases[network] = max(self.num_increases[network], granted + 1)
        if after != before or (not is_on_gpu and granted < MAX_UNCHANGED):
            return ""
        if not is_on_gpu:
            return self._memory_hint(trial, "the machine gave", "Choose a larger machine")
        if is_held_by_others:
            return self._memory_hint(
                trial,
                "other processes leave on the GPU",
                "End the other processes, choose another GPU",
            )
        return self._memory_hint(trial, "a whole GPU has", "Choose a larger GPU")

    def _memory_hint(self, trial: TrialSpec, memory: str, fix: str) -> str:
        """Return why a trial cannot get enough memory, and what the user can do."""
        hint = (
            f"{trial.network.model.name} at batch size {trial.network.recipe.batch_size} needs "
            f"more memory than {memory}. {fix}, or lower recipe.batch_size"
        )
        if self._may_be_split(trial):
            return hint
        return (
            f"{hint}. Or set resources.micro_batches: on. isweep then splits batches, and batch "
            "norm uses the statistics of smaller batches"
        )

    def _no_kernel_hint(self, trial: TrialSpec) -> str:
        """Return the hint for a trial that failed in cuDNN while its GPU had enough free memory."""
        network = trial.network
        return (
            f"cuDNN has no kernel for {network.model.name} at batch size "
            f"{network.recipe.batch_size} in {network.recipe.precision} on this GPU, which has "
            "enough free memory. Install another torch, choose another GPU, or change "
            "recipe.batch_size or recipe.precision"
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
        """Return whether a trial's batches may be split; splitting changes batch norm's results."""
        if self.resources.micro_batches != "auto":
            return self.resources.micro_batches == "on"
        with suppress(SweepError):
            return not has_batch_norm(trial.network)
        return False

    def _needs_less_than_half(self, trial: TrialSpec, share: float) -> bool:
        """Return whether a trial has a whole GPU and needs less than half of its memory."""
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
            # The trial may still train; otherwise it fails with its own message.
            log.warning(
                "%s gets the GPU share of resources.num_gpus, because its need is unknown: %s",
                trial.trial_id,
                error,
            )
            return self.resources.num_gpus


def network_key(trial: TrialSpec) -> Hashable:
    """Return the key of all trials that need the same memory and that graphs capture alike."""
    prepared = trial.network.subset.prepared
    return trial.network.model, trial.network.recipe, prepared.image_size, prepared.channels


def expectation_for(
    nodes: Collection[NodeGpus],
    resources: ResourceSpec,
    measured: Collection[MeasuredTrial],
    folders: Iterable[Path] = (),
) -> RuntimeModel:
    """Return the model that predicts time and GPU share of trials on the connected cluster.

    Trials share a GPU in three cases: the sweep requests a share, MPS runs on the node, or
    ``isweep gpu-check`` measured that two trials together are faster. Otherwise each trial gets a
    whole GPU. If the cluster has several kinds of GPU, the prediction is for the smallest.

    Args:
        nodes: the cluster's nodes with GPUs; empty if trials run on CPUs.
        resources: resources that the sweep requests.
        measured: finished trials, which correct the predictions.
        folders: folders with records of ``isweep gpu-check``.
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


def names_of_small_gpus(nodes: Iterable[NodeGpus]) -> frozenset[str]:
    """Return the driver's names of the GPUs that have less memory than the largest of all nodes."""
    gpus = [gpu for node in nodes for gpu in node.gpus]
    most_bytes = max((gpu.memory_bytes for gpu in gpus), default=0)
    large = {gpu.name for gpu in gpus if gpu.memory_bytes == most_bytes}
    return frozenset(gpu.name for gpu in gpus) - large


def _is_shared(node: NodeGpus, checks: Mapping[str, Mapping[str, Any]]) -> bool:
    """Return whether trials may share each GPU of a node."""
    return all(
        (node.mps or "Exclusive" not in gpu.compute_mode)
        and not gpu.mig
        and packing_pays(gpu.name, checks, mps=node.mps)
        for gpu in node.gpus
    )
