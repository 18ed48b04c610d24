"""The resource policy: what each attempt at a trial requests, which changes after memory ran out.

A request belongs to a memory level; :mod:`~orchestrator.running.recovery.memory_levels` explains
the levels. After a memory failure at level L, its cause decides about the next requests:

===============================  =================================================================
cause                            next requests
===============================  =================================================================
the trial, on a GPU              all trials of its network start at level L + 1; on a small GPU only
                                 this trial
the trial, on the machine        the trial starts at level L + 1
unknown                          the trial starts at level L + 1
other processes, part of a GPU   the trial starts at level L + 1
other processes, on the machine  the trial repeats level L up to 4 times, then starts at level L + 1
other processes, whole GPU       the same; after 4 such failures of its network, all trials of the
                                 network start at level L + 1 until the other processes have ended
no cuDNN kernel                  none: the verdict is final
===============================  =================================================================

If level L + 1 requests the same as level L, the trial gets a final verdict. There are two
exceptions for the memory of the machine: no verdict is final while other processes use this memory,
or below level 4 (:data:`MIN_FINAL_LEVEL`).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass, field, replace

from orchestrator.machine.cluster import Resources
from orchestrator.planning.runtimes import RuntimeModel
from orchestrator.results.records import FailureKind, TrialFailure
from orchestrator.running.recovery.memory_causes import MemoryCause, cause_on_gpu, cause_on_machine
from orchestrator.running.recovery.memory_levels import (
    MIN_SPLIT_BATCH,
    MemoryLevels,
    network_key,
)
from orchestrator.running.recovery.memory_verdicts import (
    MACHINE,
    MAY_RETRY,
    SHARED_GPU,
    WHOLE_GPU,
    MemoryLimit,
    MemoryVerdict,
    no_kernel,
    too_little_memory,
)
from search_spaces.specs import TrialSpec

MAX_SAME_REQUESTS = 4
"""Number of memory failures because of other processes after which the next request changes. Until
then the request is repeated, because the other processes may end. The failures are counted for each
trial, and for each network since its last result."""
MIN_FINAL_LEVEL = 4
"""Lowest memory level at which a failure for lack of the machine's memory may be final. At a lower
level an unchanged request may still succeed, when other trials of the machine need less."""


@dataclass
class TrialMemory:
    """The memory level of one trial.

    Attributes:
        min_level: lowest level of the trial's next request.
        attempt_level: level of the request of the trial's last attempt.
        num_failures_by_others: number of memory failures that other processes caused.
    """

    min_level: int = 0
    attempt_level: int = 0
    num_failures_by_others: int = 0

    def repeats_request(self) -> bool:
        """Count a failure that other processes caused; return whether the request is repeated."""
        self.num_failures_by_others += 1
        return self.num_failures_by_others <= MAX_SAME_REQUESTS

    def raise_level(self) -> None:
        """Let the next attempt start one level above the last attempt."""
        self.min_level = self.attempt_level + 1


@dataclass
class NetworkMemory:
    """The memory level of all trials of one network.

    While other processes use the memory of whole GPUs, the trials start at a raised level. After a
    result at the raised level, the next trials recheck the network's own level. A result at the own
    level shows that the other processes have ended. A failure because of them ends the recheck.

    Attributes:
        own_level: level that one of the network's trials needed, without other processes.
        raised_level: level at which trials start while other processes use the memory; 0 if they do
            not, or if no higher level is known.
        is_recheck: True if trials start at their own level although there is a raised level.
        num_failures_by_others: number of memory failures that other processes caused since the last
            result at the own level.
    """

    own_level: int = 0
    raised_level: int = 0
    is_recheck: bool = False
    num_failures_by_others: int = 0

    @property
    def min_level(self) -> int:
        """Lowest level of a request for a trial of this network."""
        if self.is_recheck:
            return self.own_level
        return max(self.own_level, self.raised_level)

    def finished(self, level: int) -> None:
        """Process a result of a trial that made a request of this level."""
        self.own_level = min(self.own_level, level)
        if 0 < self.raised_level <= level:
            # The trial may have fitted only because it needed less memory.
            self.is_recheck = True
        else:
            self.raised_level = 0
            self.is_recheck = False
            self.num_failures_by_others = 0

    def failed_by_others(self, next_level: int | None) -> None:
        """Count a failure that other processes caused on a whole GPU.

        Args:
            next_level: next level of the failed trial; None if this level changes no request.
        """
        self.num_failures_by_others += 1
        if self.num_failures_by_others <= MAX_SAME_REQUESTS:
            return
        self.is_recheck = False
        if next_level is not None:
            self.raised_level = max(self.raised_level, next_level)


@dataclass
class ResourcePolicy:
    """The resource requests of a run's trials.

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
        self.trials[trial.trial_id].attempt_level = level
        return self._levels.request(trial, level)

    def use_shares_without_mps(self) -> str:
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
        level = self.trials[trial.trial_id].attempt_level
        self.networks[network_key(trial)].finished(level)

    def failed(self, trial: TrialSpec, failure: TrialFailure, gpu_name: str = "") -> MemoryVerdict:
        """Process a failure of a started attempt, after which the next requests may change.

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
        if failure.memory == "machine" or not self.resources.num_gpus:
            return self._machine_failed(trial, failure)
        return self._gpu_failed(trial, failure, gpu_name)

    def _next_level(self, trial: TrialSpec) -> int:
        """Return the memory level of the next attempt at a trial."""
        network_memory = self.networks[network_key(trial)]
        return max(self.trials[trial.trial_id].min_level, network_memory.min_level)

    def _machine_failed(self, trial: TrialSpec, failure: TrialFailure) -> MemoryVerdict:
        """Process a failure for lack of the machine's memory.

        If other processes use the memory, the verdict is never final, because the processes may
        end. ``Retries`` limits the number of attempts.
        """
        trial_memory = self.trials[trial.trial_id]
        level = trial_memory.attempt_level
        is_by_others = cause_on_machine(failure) == MemoryCause.OTHER_PROCESSES
        if is_by_others and trial_memory.repeats_request():
            return MAY_RETRY
        trial_memory.raise_level()
        if is_by_others or self._levels.has_next(trial, level) or level < MIN_FINAL_LEVEL:
            return MAY_RETRY
        return self._too_little_memory(trial, MACHINE)

    def _gpu_failed(self, trial: TrialSpec, failure: TrialFailure, gpu_name: str) -> MemoryVerdict:
        """Process a failure for lack of GPU memory."""
        trial_memory = self.trials[trial.trial_id]
        network_memory = self.networks[network_key(trial)]
        level = trial_memory.attempt_level
        has_next = self._levels.has_next(trial, level)
        num_gpus = self._levels.request(trial, level).num_gpus
        cause = cause_on_gpu(trial, failure, num_gpus, self.runtime_model.gpu)
        if cause == MemoryCause.NO_KERNEL:
            return no_kernel(trial)
        if cause == MemoryCause.OTHER_PROCESSES and num_gpus >= 1:
            network_memory.failed_by_others(level + 1 if has_next else None)
            if trial_memory.repeats_request():
                return MAY_RETRY
        trial_memory.raise_level()
        # Trials that Ray runs on a larger GPU may fit there with an unchanged request.
        if cause == MemoryCause.TRIAL and gpu_name not in self.small_gpus:
            network_memory.own_level = max(network_memory.own_level, level + 1)
        if has_next:
            return MAY_RETRY
        is_by_others = cause == MemoryCause.OTHER_PROCESSES
        return self._too_little_memory(trial, SHARED_GPU if is_by_others else WHOLE_GPU)

    def _too_little_memory(self, trial: TrialSpec, limit: MemoryLimit) -> MemoryVerdict:
        """Return the final verdict on a trial that needs too much memory at its highest level."""
        can_split = trial.network.recipe.batch_size >= MIN_SPLIT_BATCH
        suggest_splitting = can_split and not self._levels.may_split_batches(trial)
        return too_little_memory(trial, limit, suggest_splitting=suggest_splitting)
