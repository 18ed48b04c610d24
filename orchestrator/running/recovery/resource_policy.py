"""The resource policy: the resources that each attempt at a trial requests.

The requests change after memory ran out.

Requests are numbered by *memory levels*. Level 0 is the planned request. Each further level
requests more memory, or trains in a way that needs less memory. The module
:mod:`~orchestrator.running.recovery.memory_levels` explains the levels.

An attempt starts at the *start level* of its trial or at that of its network, whichever is higher.
If memory runs out at level L, the cause decides who starts at the next level, L + 1:

===============  =============  ==================================================================
cause            memory of      start at level L + 1
===============  =============  ==================================================================
the trial        a GPU          all trials of its network
the trial        a small GPU    this trial
the trial        the machine    this trial
unknown          a whole GPU    this trial
other processes  part of a GPU  this trial
other processes  the machine    this trial, from its 5th such failure on
other processes  a whole GPU    this trial, from its 5th such failure on; and all trials of its
                                network, from the network's 5th such failure on, until a result
                                shows that these processes have ended
no cuDNN kernel  a GPU          nothing: the verdict is final
===============  =============  ==================================================================

A small GPU is one with less memory than the cluster's largest GPU.

The failures of a trial by other processes are counted for the whole run. Those of a network are
counted since its last result at its own level. Both counts go on after a level was raised.

If no higher level changes the request, the trial gets a final verdict. For the memory of the
machine, a verdict is final only from level 4 (:data:`MIN_FINAL_LEVEL`) on, and only if no other
processes use this memory.
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

MAX_REPEATS_AFTER_OTHERS = 4
"""After each of the first 4 memory failures by other processes, the same request is repeated,
because these processes may end. Each later failure raises the level."""
MIN_FINAL_LEVEL = 4
"""Lowest memory level at which a failure for lack of the machine's memory may be final. At a lower
level an unchanged request may still succeed, when other trials of the machine need less."""


@dataclass(frozen=True)
class RequestedMemory:
    """The memory that the last attempt at a trial requested.

    Attributes:
        level: memory level of the request.
        request: the request. The same level may request something else later in the run.
    """

    level: int
    request: Resources


@dataclass
class TrialMemory:
    """The memory level of one trial.

    Attributes:
        start_level: lowest level at which the trial's next attempt may start.
        num_failures_by_others: number of memory failures that other processes caused.
    """

    start_level: int = 0
    num_failures_by_others: int = 0

    @property
    def gets_same_request(self) -> bool:
        """True if the last failure by other processes does not change the next request."""
        return self.num_failures_by_others <= MAX_REPEATS_AFTER_OTHERS


@dataclass
class NetworkMemory:
    """The memory level of all trials of one network.

    While other processes use the memory of whole GPUs, new attempts start at the raised level.
    After a result at the raised level, new attempts start at the own level again: this is a
    *recheck*. A result at the own level shows that the other processes have ended, so it removes
    the raised level. A failure by other processes ends the recheck.

    Attributes:
        own_level: level that one of the network's trials needed, without other processes.
        raised_level: level at which attempts start while other processes use the memory; 0 if they
            do not, or if no higher level is known.
        rechecks_own_level: True if attempts start at the own level in spite of a raised level.
        num_failures_by_others: number of memory failures that other processes caused since the last
            result at the own level.
    """

    own_level: int = 0
    raised_level: int = 0
    rechecks_own_level: bool = False
    num_failures_by_others: int = 0

    @property
    def start_level(self) -> int:
        """Lowest level at which the next attempt at a trial of this network may start."""
        if self.rechecks_own_level:
            return self.own_level
        return max(self.own_level, self.raised_level)

    def finished(self, level: int) -> None:
        """Process the result of an attempt that started at this level."""
        # The level is below the own level if the attempt started before the own level was raised.
        self.own_level = min(self.own_level, level)
        if self.own_level < self.raised_level <= level:
            # The result says nothing about the own level: at the raised level the trial needed less
            # memory.
            self.rechecks_own_level = True
        else:
            self.raised_level = 0
            self.rechecks_own_level = False
            self.num_failures_by_others = 0

    def failed_by_others(self, next_level: int | None) -> None:
        """Count a failure that other processes caused on a whole GPU.

        Args:
            next_level: next level of the failed trial; None if no level changes its request.
        """
        self.num_failures_by_others += 1
        if self.num_failures_by_others <= MAX_REPEATS_AFTER_OTHERS:
            return
        self.rechecks_own_level = False
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
        requested: request of each trial's last attempt, by trial id.
        networks: memory level of each network, by :func:`network_key`.
        without_graphs: networks whose steps cannot be captured as CUDA graphs, by
            :func:`network_key`.
    """

    resources: Resources
    runtime_model: RuntimeModel = field(default_factory=RuntimeModel)
    node_memory_bytes: Callable[[], float] = lambda: math.inf
    small_gpus: frozenset[str] = frozenset()
    trials: dict[str, TrialMemory] = field(default_factory=lambda: defaultdict(TrialMemory))
    requested: dict[str, RequestedMemory] = field(default_factory=dict)
    networks: dict[Hashable, NetworkMemory] = field(
        default_factory=lambda: defaultdict(NetworkMemory)
    )
    without_graphs: set[Hashable] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._levels = MemoryLevels(
            self.resources, self.runtime_model, self.node_memory_bytes, self.without_graphs
        )

    def start_attempt(self, trial: TrialSpec) -> Resources:
        """Return the resources of an attempt that starts now, and store them for its outcome."""
        level = self._start_level(trial)
        request = self._levels.request(trial, level)
        self.requested[trial.trial_id] = RequestedMemory(level, request)
        return request

    def use_shares_without_mps(self) -> str:
        """Let all attempts that start later request the shares that pay without NVIDIA's MPS.

        Returns:
            A sentence for the user about the shares.
        """
        share = self.runtime_model.share_without_mps
        if share is not None:
            self._levels = replace(self._levels, min_share=share)
        if share == 1:
            return "New trials have a whole GPU each"
        return "Trials share a GPU as before, but they compute in turn"

    def mean_request(self, trials: Collection[TrialSpec]) -> Resources:
        """Return the mean of the next requests of ``trials``, which must not be empty."""
        requests = [self._levels.request(trial, self._start_level(trial)) for trial in trials]
        mean_share = sum(request.num_gpus for request in requests) / len(requests)
        return replace(self.resources, num_gpus=mean_share)

    def finished(self, trial: TrialSpec) -> None:
        """Process a result, which shows that the trial's memory level suffices for its network."""
        level = self.requested[trial.trial_id].level
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

    def _start_level(self, trial: TrialSpec) -> int:
        """Return the memory level at which the next attempt at a trial starts."""
        network_memory = self.networks[network_key(trial)]
        return max(self.trials[trial.trial_id].start_level, network_memory.start_level)

    def _next_level(self, trial: TrialSpec) -> int | None:
        """Return the next level that changes a trial's last request; None if there is none."""
        last = self.requested[trial.trial_id]
        return self._levels.next_level(trial, last.level, last.request)

    def _machine_failed(self, trial: TrialSpec, failure: TrialFailure) -> MemoryVerdict:
        """Process a failure for lack of the machine's memory.

        If other processes use the memory, the verdict is never final, because the processes may
        end. ``Retries`` limits the number of attempts.
        """
        trial_memory = self.trials[trial.trial_id]
        level = self.requested[trial.trial_id].level
        is_by_others = cause_on_machine(failure) == MemoryCause.OTHER_PROCESSES
        if is_by_others:
            trial_memory.num_failures_by_others += 1
            if trial_memory.gets_same_request:
                return MAY_RETRY
        # The next level may have the same request. The trial may still fit later, when other trials
        # need less memory.
        trial_memory.start_level = level + 1
        has_next = self._next_level(trial) is not None
        if is_by_others or has_next or level < MIN_FINAL_LEVEL:
            return MAY_RETRY
        return self._too_little_memory(trial, MACHINE)

    def _gpu_failed(self, trial: TrialSpec, failure: TrialFailure, gpu_name: str) -> MemoryVerdict:
        """Process a failure for lack of GPU memory."""
        trial_memory = self.trials[trial.trial_id]
        network_memory = self.networks[network_key(trial)]
        next_level = self._next_level(trial)
        num_gpus = self.requested[trial.trial_id].request.num_gpus
        cause = cause_on_gpu(trial, failure, num_gpus, self.runtime_model.gpu)
        if cause == MemoryCause.NO_KERNEL:
            return no_kernel(trial)
        is_by_others = cause == MemoryCause.OTHER_PROCESSES
        if is_by_others and num_gpus >= 1:
            network_memory.failed_by_others(next_level)
            trial_memory.num_failures_by_others += 1
            if trial_memory.gets_same_request:
                return MAY_RETRY
        if next_level is not None:
            trial_memory.start_level = next_level
            # On a small GPU only this trial goes up: others may run on a larger GPU.
            if cause == MemoryCause.TRIAL and gpu_name not in self.small_gpus:
                network_memory.own_level = max(network_memory.own_level, next_level)
            return MAY_RETRY
        return self._too_little_memory(trial, SHARED_GPU if is_by_others else WHOLE_GPU)

    def _too_little_memory(self, trial: TrialSpec, limit: MemoryLimit) -> MemoryVerdict:
        """Return the final verdict on a trial that needs too much memory at its highest level."""
        can_split = trial.network.recipe.batch_size >= MIN_SPLIT_BATCH
        suggest_splitting = can_split and not self._levels.may_split_batches(trial)
        return too_little_memory(trial, limit, suggest_splitting=suggest_splitting)
