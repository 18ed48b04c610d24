"""The resource policy: the resources that a trial requests, first and after memory ran out."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import Enum, auto
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
"""Retries with an unchanged request, for each trial and for all trials of a network in a row. They
are for failures after which more memory may become free without a smaller request."""
MAX_OTHERS_ON_MACHINE = 0.5
"""Share of a machine's memory. If other processes used more, they count as the cause of a memory
failure, not the trial that was killed."""
MIN_MICRO_BATCH = 2
"""Least number of images in a forward pass: batch norm has no variance over one image."""


class MemoryCause(Enum):
    """Cause of a failure for lack of memory on a GPU."""

    TRIAL = auto()
    """The trial needs more memory than it requested."""
    OTHER_PROCESSES = auto()
    """Other processes use memory that the trial needs."""
    UNKNOWN = auto()
    """The trial had a whole GPU, and it is unknown how much memory other processes used."""
    NO_KERNEL = auto()
    """The memory suffices, but cuDNN has no kernel for the network on this GPU."""


@dataclass(frozen=True)
class MemoryVerdict:
    """The decision of the resource policy about a failed trial.

    Attributes:
        is_final: True if every further attempt would fail as well.
        hint: what the user can do; empty if the trial may be tried again.
    """

    is_final: bool = False
    hint: str = ""


MAY_RETRY = MemoryVerdict()
"""Verdict on a trial that may succeed with its next request."""


@dataclass
class TrialMemory:
    """Memory level of one trial; :class:`ResourcePolicy` explains the levels.

    Attributes:
        level: level of the trial's next request.
        level_in_use: level of the request of the running attempt; None if no attempt runs.
        num_failures_by_others: number of memory failures that other processes caused.
    """

    level: int = 0
    level_in_use: int | None = None
    num_failures_by_others: int = 0


class GpuSharing(Enum):
    """How the trials of a network adapt to other processes that use GPU memory."""

    NORMAL = auto()
    """Trials start at the network's normal level."""
    REDUCED = auto()
    """Trials start at the level at which they fit beside the other processes."""
    PROBING = auto()
    """Trials start at the normal level again. If one of them finishes at this level, the other
    processes have ended; if it fails, the state becomes ``REDUCED`` again."""


@dataclass
class NetworkMemory:
    """Memory level of all trials of one network.

    Attributes:
        level: level at which the network's trials start, because one of them needed it.
        sharing: how the trials adapt to other processes.
        reduced_level: level at which trials start in the state ``REDUCED``; 0 if unknown.
        num_failures_by_others: number of memory failures that other processes caused since the
            last result of the network.
    """

    level: int = 0
    sharing: GpuSharing = GpuSharing.NORMAL
    reduced_level: int = 0
    num_failures_by_others: int = 0

    @property
    def start_level(self) -> int:
        """Lowest level of a request for a trial of this network."""
        if self.sharing == GpuSharing.REDUCED:
            return max(self.level, self.reduced_level)
        return self.level

    def finished(self, level: int) -> None:
        """Update the levels after a result of a trial with a request of this level."""
        self.level = min(self.level, level)
        if 0 < self.reduced_level <= level:
            # The trial may have fitted only because of its reduced request.
            self.sharing = GpuSharing.PROBING
        else:
            self.sharing = GpuSharing.NORMAL
            self.reduced_level = 0
            self.num_failures_by_others = 0

    def failed_by_others(self, next_level: int | None) -> None:
        """Count a failure that other processes caused on a whole GPU.

        Args:
            next_level: next level of the failed trial; None if this level changes no request.
        """
        self.num_failures_by_others += 1
        is_probing = self.sharing == GpuSharing.PROBING
        if self.num_failures_by_others > MAX_UNCHANGED or is_probing:
            self.sharing = GpuSharing.REDUCED
            if next_level is not None:
                self.reduced_level = max(self.reduced_level, next_level)


@dataclass
class ResourcePolicy:
    """The resource requests of a run's trials.

    Each request has a memory level. It rises by 1 if the trial runs out of memory. With a GPU:

    1. Level 0 is the share of a GPU that the trial is expected to need.
    2. Each further level doubles the share, until the trial has a whole GPU. Level 1 also doubles
       the machine's memory, if the sweep requests an amount of it.
    3. The next level trains with plain steps, because CUDA graphs occupy memory of their own. A
       trial that already uses plain steps skips this level.
    4. Each further level halves the images of a forward pass, if the batches may be split.

    Without a GPU, level 1 doubles the machine's memory, and each further level halves the images.

    The other trials of the same network start at the level that one of them needed. If other
    processes use the memory, the trial first repeats its attempt at the same level.

    Attributes:
        resources: resources that the sweep requests for every trial.
        expectation: predicts the share of each trial. If it has no GPU, all trials get one share.
        node_memory_bytes: returns the memory of the largest node, the most that a trial requests.
        small_gpus: driver's names of the GPUs that have less memory than the cluster's largest GPU.
            A failure on such a GPU changes no other trial, because Ray may run it on a larger one.
        trials: memory level of each trial, by trial id.
        networks: memory level of each network, by :func:`network_key`.
        not_captured: networks whose steps cannot be captured as CUDA graphs.
    """

    resources: Resources
    expectation: RuntimeModel = field(default_factory=RuntimeModel)
    node_memory_bytes: Callable[[], float] = lambda: math.inf
    small_gpus: frozenset[str] = frozenset()
    trials: dict[str, TrialMemory] = field(default_factory=lambda: defaultdict(TrialMemory))
    networks: dict[Hashable, NetworkMemory] = field(
        default_factory=lambda: defaultdict(NetworkMemory)
    )
    not_captured: set[Hashable] = field(default_factory=set)

    def request_for(self, trial: TrialSpec) -> Resources:
        """Return the resources that the next attempt at a trial requests."""
        trial_memory = self.trials[trial.trial_id]
        level = max(trial_memory.level, self.networks[network_key(trial)].start_level)
        trial_memory.level_in_use = level
        return self._request(trial, level)

    def mean_request(self, trials: Collection[TrialSpec]) -> Resources:
        """Return the mean request of ``trials``, which must not be empty."""
        shares = [self.request_for(trial).num_gpus for trial in trials]
        return replace(self.resources, num_gpus=sum(shares) / len(shares))

    def finished(self, trial: TrialSpec) -> None:
        """Update the requests after a result: the trial's resources suffice for its network."""
        trial_memory = self.trials[trial.trial_id]
        level = trial_memory.level_in_use or 0
        trial_memory.level_in_use = None
        self.networks[network_key(trial)].finished(level)

    def failed(self, trial: TrialSpec, failure: TrialFailure, gpu_name: str = "") -> MemoryVerdict:
        """Update the requests after a failure.

        Args:
            trial: the trial that failed.
            failure: why it failed.
            gpu_name: the driver's name of the GPU on which it failed; empty if unknown.

        Returns:
            Whether a further attempt can succeed; if not, with a hint to the user.
        """
        if failure.kind != FailureKind.OUT_OF_MEMORY:
            if failure.capture_failed:
                self.not_captured.add(network_key(trial))
            return MAY_RETRY
        trial_memory = self.trials[trial.trial_id]
        level = trial_memory.level_in_use
        if level is None:
            level = trial_memory.level
        trial_memory.level_in_use = None
        if failure.memory == "machine" or not self.resources.num_gpus:
            return self._machine_failed(trial, failure, level)
        return self._gpu_failed(trial, failure, level, gpu_name)

    def _machine_failed(self, trial: TrialSpec, failure: TrialFailure, level: int) -> MemoryVerdict:
        """Update the requests after the memory of a trial's machine ran out at a level.

        If other processes use the memory, the trial repeats its attempt, and later splits its
        batches. The verdict on such a trial is never final, because the other processes may free
        the memory. ``Retries`` limits the number of attempts.
        """
        trial_memory = self.trials[trial.trial_id]
        share_of_others = failure.held_by_others
        is_by_others = share_of_others is not None and share_of_others > MAX_OTHERS_ON_MACHINE
        if is_by_others:
            trial_memory.num_failures_by_others += 1
            if trial_memory.num_failures_by_others <= MAX_UNCHANGED:
                return MAY_RETRY
        trial_memory.level = level + 1
        is_changed = self._request(trial, level + 1) != self._request(trial, level)
        # An unchanged request may succeed later, when the other trials of the machine need less.
        if is_by_others or is_changed or level < MAX_UNCHANGED:
            return MAY_RETRY
        return self._too_little_memory(trial, "the machine gave", "Choose a larger machine")

    def _gpu_failed(
        self, trial: TrialSpec, failure: TrialFailure, level: int, gpu_name: str
    ) -> MemoryVerdict:
        """Update the requests after the memory of a trial's GPU ran out at a level."""
        trial_memory = self.trials[trial.trial_id]
        network_memory = self.networks[network_key(trial)]
        request = self._request(trial, level)
        is_changed = self._request(trial, level + 1) != request
        cause = self._cause(trial, failure, request.num_gpus)
        if cause == MemoryCause.NO_KERNEL:
            return self._no_kernel(trial)
        if cause == MemoryCause.OTHER_PROCESSES and request.num_gpus >= 1:
            network_memory.failed_by_others(level + 1 if is_changed else None)
            trial_memory.num_failures_by_others += 1
            if trial_memory.num_failures_by_others <= MAX_UNCHANGED:
                return MAY_RETRY
        trial_memory.level = level + 1
        # Trials that Ray runs on a larger GPU may fit there with an unchanged request.
        if cause == MemoryCause.TRIAL and gpu_name not in self.small_gpus:
            network_memory.level = max(network_memory.level, level + 1)
        if is_changed:
            return MAY_RETRY
        if cause == MemoryCause.OTHER_PROCESSES:
            return self._too_little_memory(
                trial,
                "other processes leave on the GPU",
                "End the other processes, choose another GPU",
            )
        return self._too_little_memory(trial, "a whole GPU has", "Choose a larger GPU")

    def _cause(self, trial: TrialSpec, failure: TrialFailure, num_gpus: float) -> MemoryCause:
        """Return why memory ran out on the GPU of a trial that had this share of a GPU."""
        share_of_others = failure.held_by_others
        if share_of_others is not None and share_of_others > MOST_HELD:
            return MemoryCause.OTHER_PROCESSES
        if self._needs_less_than_half(trial, num_gpus):
            # The trial alone fits on the GPU. cuDNN reports a missing kernel and missing memory
            # with the same error, so it lacks the kernel if nobody else uses the memory.
            if failure.no_engine and share_of_others is not None:
                return MemoryCause.NO_KERNEL
            # The other processes may have freed the memory before it was measured.
            return MemoryCause.OTHER_PROCESSES
        if share_of_others is None and num_gpus >= 1:
            return MemoryCause.UNKNOWN
        # A trial with less than one GPU has a memory limit, so other processes are not the cause.
        return MemoryCause.TRIAL

    def _too_little_memory(self, trial: TrialSpec, memory: str, fix: str) -> MemoryVerdict:
        """Return the final verdict on a trial that cannot get enough memory.

        Args:
            trial: the trial.
            memory: text for the memory that is too little, such as "a whole GPU has".
            fix: what the user can do.
        """
        hint = (
            f"{trial.network.model.name} at batch size {trial.network.recipe.batch_size} needs "
            f"more memory than {memory}. {fix}, or lower recipe.batch_size"
        )
        if not self._may_be_split(trial):
            hint = (
                f"{hint}. Or set `resources.micro_batches: on`. isweep then splits each batch. "
                "Batch norm then uses the statistics of smaller batches"
            )
        return MemoryVerdict(is_final=True, hint=hint)

    def _no_kernel(self, trial: TrialSpec) -> MemoryVerdict:
        """Return the final verdict on a trial for which cuDNN has no kernel on its GPU."""
        network = trial.network
        hint = (
            f"cuDNN has no kernel for {network.model.name} at batch size "
            f"{network.recipe.batch_size} in {network.recipe.precision} on this GPU, which has "
            "enough free memory. Install another torch, choose another GPU, or change "
            "recipe.batch_size or recipe.precision"
        )
        return MemoryVerdict(is_final=True, hint=hint)

    def _request(self, trial: TrialSpec, level: int) -> Resources:
        """Return the request of a trial at a memory level; the class explains the levels."""
        resources = self._first_request(trial)
        if level == 0:
            return resources
        num_doublings = 1  # Without a GPU, only the machine's memory is doubled, and only once.
        has_gpu = resources.num_gpus > 0
        if has_gpu:
            num_doublings = _doublings_to_whole_gpu(resources.num_gpus)
        resources = self._doubled(resources, level)
        num_levels_left = level - num_doublings
        # Steps of a user's network are captured only if the sweep demands it (fast: on).
        is_custom = trial.network.model.library == "own"
        is_plain = resources.fast == "off" or (is_custom and resources.fast == "auto")
        if num_levels_left > 0 and has_gpu and not is_plain:
            resources = replace(resources, fast="off")
            num_levels_left -= 1
        if num_levels_left <= 0 or not self._may_be_split(trial):
            return resources
        num_images = trial.network.recipe.batch_size // 2**num_levels_left
        return replace(resources, micro_batch=max(MIN_MICRO_BATCH, num_images))

    def _first_request(self, trial: TrialSpec) -> Resources:
        """Return the request of a trial at memory level 0."""
        resources = self.resources
        if resources.num_gpus and self.expectation.gpu is not None:
            share = self._expected_share(trial, self.expectation.gpu)
            resources = replace(resources, num_gpus=share)
        if network_key(trial) in self.not_captured:
            resources = replace(resources, fast="off")
        return resources

    def _doubled(self, resources: Resources, level: int) -> Resources:
        """Return a request with the GPU share doubled ``level`` times, and twice the memory.

        The share ends at a whole GPU. The machine's memory is doubled only once, because a trial
        that needs even more must split its batches.
        """
        share = resources.num_gpus
        if 0 < share <= 1:  # whole GPUs are not doubled
            share = min(1.0, share * 2**level)
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


def _doublings_to_whole_gpu(share: float) -> int:
    """Return how often a share of a GPU must be doubled until it is a whole GPU."""
    num_doublings = math.log2(1 / share)
    # The small number prevents that a rounding error of the logarithm adds a doubling.
    return max(0, math.ceil(num_doublings - 1e-9))


def network_key(trial: TrialSpec) -> Hashable:
    """Return the key of all trials whose steps use the same memory and are captured alike."""
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
