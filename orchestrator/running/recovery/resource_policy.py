"""The resource policy: the requests of a trial's attempts, which change after memory ran out."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import Enum, auto

from orchestrator.machine.cluster import Resources
from orchestrator.machine.gpu_problems import MAX_SHARE_OF_OTHERS_ON_GPU
from orchestrator.planning.costs.memory import peak_bytes
from orchestrator.planning.runtimes import RuntimeModel
from orchestrator.results.records import FailureKind, TrialFailure
from orchestrator.running.recovery.memory_levels import (
    MIN_SPLIT_BATCH,
    MemoryLevels,
    network_key,
)
from search_spaces.errors import SweepError
from search_spaces.specs import TrialSpec

MAX_SHARE_OF_OTHERS_ON_MACHINE = 0.5
"""Share of a machine's memory. If other processes used more, they are the cause of a memory
failure, not the trial that was killed."""
MAX_SAME_REQUESTS = 4
"""Number of memory failures because of other processes after which the next request changes. Until
then the trial repeats its request, because the other processes may end. The failures are counted
for each trial, and for each network since its last result."""
MIN_FINAL_LEVEL = 4
"""Lowest memory level at which a failure for lack of the machine's memory may be final. At a lower
level an unchanged request may still succeed, when other trials of the machine need less."""


class MemoryCause(Enum):
    """Cause of a memory failure on a GPU."""

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
    """The memory level of one trial; see :mod:`~orchestrator.running.recovery.memory_levels`.

    Attributes:
        level: lowest level of the trial's next request.
        level_in_use: level of the request of the running attempt; None if no attempt runs.
        num_failures_by_other_processes: number of memory failures that other processes caused.
    """

    level: int = 0
    level_in_use: int | None = None
    num_failures_by_other_processes: int = 0


class MemoryPressure(Enum):
    """Pressure of other processes on the GPU memory of a network's trials."""

    NONE = auto()
    """Trials start at the network's own level."""
    HIGH = auto()
    """Trials start at a higher level, at which they fit although other processes use memory."""
    RECHECK = auto()
    """Trials start at the network's own level again. If one of them finishes at this level, the
    other processes have ended. If other processes make it fail, the pressure is high again."""


@dataclass
class NetworkMemory:
    """The memory level of all trials of one network.

    Attributes:
        level: the network's own level, which one of its trials needed.
        pressure: pressure of other processes on the memory.
        level_under_pressure: level at which trials start under high pressure; 0 if unknown.
        num_failures_by_other_processes: number of memory failures that other processes caused since
            the last result of the network.
    """

    level: int = 0
    pressure: MemoryPressure = MemoryPressure.NONE
    level_under_pressure: int = 0
    num_failures_by_other_processes: int = 0

    @property
    def start_level(self) -> int:
        """Lowest level of a request for a trial of this network."""
        if self.pressure == MemoryPressure.HIGH:
            return max(self.level, self.level_under_pressure)
        return self.level

    def finished(self, level: int) -> None:
        """Process a result of a trial that made a request of this level."""
        self.level = min(self.level, level)
        if 0 < self.level_under_pressure <= level:
            # The trial may have fitted only because it needed less memory.
            self.pressure = MemoryPressure.RECHECK
        else:
            self.pressure = MemoryPressure.NONE
            self.level_under_pressure = 0
            self.num_failures_by_other_processes = 0

    def failed_by_other_processes(self, next_level: int | None) -> None:
        """Count a failure that other processes caused on a whole GPU.

        Args:
            next_level: next level of the failed trial; None if this level changes no request.
        """
        self.num_failures_by_other_processes += 1
        is_recheck = self.pressure == MemoryPressure.RECHECK
        if self.num_failures_by_other_processes > MAX_SAME_REQUESTS or is_recheck:
            self.pressure = MemoryPressure.HIGH
            if next_level is not None:
                self.level_under_pressure = max(self.level_under_pressure, next_level)


@dataclass
class ResourcePolicy:
    """The resource requests of a run's trials.

    The memory level of a trial rises by 1 if the trial runs out of memory. The other trials of the
    same network start at the level that one of them needed. If other processes use the memory, the
    trial first repeats its attempt at the same level.

    Attributes:
        resources: resources that the sweep requests for every trial.
        runtime_model: predicts the share of each trial. If it has no GPU, all trials get one share.
        node_memory_bytes: returns the memory of the largest node, the most that a trial requests.
        small_gpus: driver's names of the GPUs that have less memory than the cluster's largest GPU.
            A failure on such a GPU changes no other trial, because Ray may run it on a larger one.
        trials: memory level of each trial, by trial id.
        networks: memory level of each network, by :func:`network_key`.
        without_graphs: networks whose steps cannot be captured as CUDA graphs, by
            :func:`network_key`.
    """

    resources: Resources
    runtime_model: RuntimeModel = field(default_factory=RuntimeModel)
    node_memory_bytes: Callable[[], float] = lambda: math.inf
    small_gpus: frozenset[str] = frozenset()
    trials: dict[str, TrialMemory] = field(default_factory=lambda: defaultdict(TrialMemory))
    networks: dict[Hashable, NetworkMemory] = field(
        default_factory=lambda: defaultdict(NetworkMemory)
    )
    without_graphs: set[Hashable] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._levels = MemoryLevels(
            self.resources, self.runtime_model, self.node_memory_bytes, self.without_graphs
        )

    def start_attempt(self, trial: TrialSpec) -> Resources:
        """Return the resources of an attempt that starts now, and store its memory level."""
        level = self._next_level(trial)
        self.trials[trial.trial_id].level_in_use = level
        return self._levels.request(trial, level)

    def leave_mps(self) -> str:
        """Request the shares that pay without NVIDIA's MPS, for all attempts that start later.

        Returns:
            A sentence for the user about the shares.
        """
        model = self.runtime_model
        self.runtime_model = replace(model, share=model.share_without_mps)
        self._levels = replace(self._levels, runtime_model=self.runtime_model)
        if self.runtime_model.share == 1:
            return "New trials have a whole GPU each"
        return "Trials share a GPU as before, but they compute in turn"

    def mean_request(self, trials: Collection[TrialSpec]) -> Resources:
        """Return the mean of the next requests of ``trials``, which must not be empty."""
        requests = [self._levels.request(trial, self._next_level(trial)) for trial in trials]
        mean_share = sum(request.num_gpus for request in requests) / len(requests)
        return replace(self.resources, num_gpus=mean_share)

    def finished(self, trial: TrialSpec) -> None:
        """Process a result, which shows that the trial's memory level suffices for its network."""
        trial_memory = self.trials[trial.trial_id]
        level = trial_memory.level_in_use or 0
        trial_memory.level_in_use = None
        self.networks[network_key(trial)].finished(level)

    def failed(self, trial: TrialSpec, failure: TrialFailure, gpu_name: str = "") -> MemoryVerdict:
        """Process a failure, after which the trial or its network may need other requests.

        Args:
            trial: the trial that failed.
            failure: why it failed.
            gpu_name: the driver's name of the GPU on which it failed; empty if unknown.

        Returns:
            Whether a further attempt can succeed. If it cannot, the verdict has a hint.
        """
        if failure.kind != FailureKind.OUT_OF_MEMORY:
            if failure.capture_failed:
                self.without_graphs.add(network_key(trial))
            return MAY_RETRY
        trial_memory = self.trials[trial.trial_id]
        level = trial_memory.level_in_use
        if level is None:
            level = trial_memory.level
        trial_memory.level_in_use = None
        if failure.memory == "machine" or not self.resources.num_gpus:
            return self._machine_failed(trial, failure, level)
        return self._gpu_failed(trial, failure, level, gpu_name)

    def _next_level(self, trial: TrialSpec) -> int:
        """Return the memory level of the next attempt at a trial."""
        network_memory = self.networks[network_key(trial)]
        return max(self.trials[trial.trial_id].level, network_memory.start_level)

    def _machine_failed(self, trial: TrialSpec, failure: TrialFailure, level: int) -> MemoryVerdict:
        """Process a failure for lack of the machine's memory, at this memory level.

        If other processes use the memory, the verdict is never final, because the processes may
        end. ``Retries`` limits the number of attempts.
        """
        trial_memory = self.trials[trial.trial_id]
        share_of_others = failure.held_by_others
        is_by_others = (
            share_of_others is not None and share_of_others > MAX_SHARE_OF_OTHERS_ON_MACHINE
        )
        if is_by_others:
            trial_memory.num_failures_by_other_processes += 1
            if trial_memory.num_failures_by_other_processes <= MAX_SAME_REQUESTS:
                return MAY_RETRY
        trial_memory.level = level + 1
        if is_by_others or self._levels.has_next(trial, level) or level < MIN_FINAL_LEVEL:
            return MAY_RETRY
        return self._too_little_memory(trial, "the machine gave", "Choose a larger machine")

    def _gpu_failed(
        self, trial: TrialSpec, failure: TrialFailure, level: int, gpu_name: str
    ) -> MemoryVerdict:
        """Process a failure for lack of GPU memory, at this memory level."""
        trial_memory = self.trials[trial.trial_id]
        network_memory = self.networks[network_key(trial)]
        num_gpus = self._levels.request(trial, level).num_gpus
        has_next = self._levels.has_next(trial, level)
        cause = self._cause(trial, failure, num_gpus)
        if cause == MemoryCause.NO_KERNEL:
            return self._no_kernel(trial)
        if cause == MemoryCause.OTHER_PROCESSES and num_gpus >= 1:
            network_memory.failed_by_other_processes(level + 1 if has_next else None)
            trial_memory.num_failures_by_other_processes += 1
            if trial_memory.num_failures_by_other_processes <= MAX_SAME_REQUESTS:
                return MAY_RETRY
        trial_memory.level = level + 1
        # Trials that Ray runs on a larger GPU may fit there with an unchanged request.
        if cause == MemoryCause.TRIAL and gpu_name not in self.small_gpus:
            network_memory.level = max(network_memory.level, level + 1)
        if has_next:
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
        if share_of_others is not None and share_of_others > MAX_SHARE_OF_OTHERS_ON_GPU:
            return MemoryCause.OTHER_PROCESSES
        if self._needs_less_than_half(trial, num_gpus):
            # The trial alone fits on the GPU. cuDNN reports a missing kernel and missing memory
            # with the same error. If no other process used memory, the kernel is missing.
            if failure.no_engine and share_of_others is not None:
                return MemoryCause.NO_KERNEL
            # Other processes may have used the memory and freed it before it was measured.
            return MemoryCause.OTHER_PROCESSES
        if share_of_others is None and num_gpus >= 1:
            return MemoryCause.UNKNOWN
        # A trial with less than one GPU has a memory limit, so other processes are not the cause.
        return MemoryCause.TRIAL

    def _needs_less_than_half(self, trial: TrialSpec, num_gpus: float) -> bool:
        """Return whether a trial has a whole GPU and needs less than half of its memory."""
        gpu = self.runtime_model.gpu
        if gpu is None or num_gpus != 1:
            return False
        with suppress(SweepError):
            return 2 * peak_bytes(trial.network) < gpu.memory_gib * 2**30
        return False

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
        is_large_enough = trial.network.recipe.batch_size >= MIN_SPLIT_BATCH
        if is_large_enough and not self._levels.may_split_batches(trial):
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
