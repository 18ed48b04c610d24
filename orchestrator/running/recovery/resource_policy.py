"""The resource policy, which chooses the resources that each attempt at a trial requests.

If memory runs out, the next attempt requests other resources. Each possible request of a trial
has a *memory level*. Level 0 is the planned request. Each higher level requests more memory,
or trains in a way that needs less memory
(:mod:`~orchestrator.running.recovery.memory_levels`).

A trial has a *start level*, and its network has a start level. The next attempt starts at the
higher of these two levels (:mod:`~orchestrator.running.recovery.start_levels`). If memory runs
out, the cause decides which of these start levels rise to the next level:

===============  =============  ===========================================================
cause            memory of      start levels that rise
===============  =============  ===========================================================
no cuDNN kernel  a GPU          none: the trial is given up
other processes  a whole GPU    the trial's, from its 5th such failure on; the failure also
                                counts for the network
unknown          a whole GPU    the trial's
the trial        a small GPU    the trial's: other trials may run on a larger GPU
the trial        another GPU    the trial's and the network's
other processes  the machine    the trial's, from its 5th such failure on
the trial        the machine    the trial's
===============  =============  ===========================================================

A small GPU has less memory than the cluster's largest GPU. A trial that shares a GPU has a
fixed memory limit, so its cause is never "other processes". For the machine's memory, the
other trials of the sweep also count as other processes.

The first 4 failures of a trial that other processes cause do not change its start level,
because these processes may end. Such failures on whole GPUs and on the machine are counted
together. The trial's request may still change, if the start level of its network rises.

If no higher level changes the request, the trial gets no further attempt. There are three
exceptions:

- A trial that failed on a small GPU is tried again, because Ray may run it on a larger GPU.
- A trial is tried again after each of the first 4 failures that other processes cause. If the
  machine's memory ran out, it is tried again after every such failure.
- If the machine's memory ran out, the trial is tried again until an attempt at level 4
  (:data:`MIN_FINAL_MACHINE_LEVEL`) or above has failed.
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
from orchestrator.running.recovery.memory_levels import MIN_SPLIT_BATCH, MemoryLevels, network_key
from orchestrator.running.recovery.memory_verdicts import (
    MACHINE,
    MAY_RETRY,
    OCCUPIED_GPU,
    WHOLE_GPU,
    MemoryLimit,
    TrialVerdict,
    no_kernel_verdict,
    too_little_memory,
)
from orchestrator.running.recovery.start_levels import NetworkLevels, TrialLevels
from search_spaces.specs import TrialSpec

MIN_FINAL_MACHINE_LEVEL = 4
"""Lowest memory level at which the verdict may be final after the machine's memory ran out.
Below this level, the same request is tried again, because other trials on the machine may need
less memory by then."""


@dataclass(frozen=True)
class LastRequest:
    """The request of the last attempt at a trial.

    Attributes:
        level: memory level of the request.
        resources: the requested resources. Later in the run, the same level may request other
            resources.
    """

    level: int
    resources: Resources


@dataclass
class ResourcePolicy:
    """The resource requests of a run's trials.

    Attributes:
        resources: resources that the sweep requests for every trial.
        runtime_model: model that predicts the share of a GPU that each trial needs. If the
            model's ``gpu`` is None, every trial requests ``resources`` unchanged.
        node_memory_bytes: function that returns the memory of the largest node in bytes. No
            trial requests more.
        small_gpus: names of the GPUs that have less memory than the cluster's largest GPU. A
            failure on a small GPU does not change the requests of other trials, because Ray
            may run them on a larger GPU.
        last_requests: request of each trial's last attempt, by trial id.
        trial_levels: start level of each trial, by trial id. Each value also contains the
            number of the trial's memory failures that other processes caused.
        network_levels: start level of each network, by :func:`network_key`.
        networks_without_graphs: keys of the networks whose steps cannot be captured as CUDA
            graphs (:func:`network_key`).
    """

    resources: Resources
    runtime_model: RuntimeModel = field(default_factory=RuntimeModel)
    node_memory_bytes: Callable[[], float] = lambda: math.inf
    small_gpus: frozenset[str] = frozenset()
    last_requests: dict[str, LastRequest] = field(default_factory=dict)
    trial_levels: dict[str, TrialLevels] = field(default_factory=lambda: defaultdict(TrialLevels))
    network_levels: dict[Hashable, NetworkLevels] = field(
        default_factory=lambda: defaultdict(NetworkLevels)
    )
    networks_without_graphs: set[Hashable] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._levels = MemoryLevels(
            self.resources, self.runtime_model, self.node_memory_bytes, self.networks_without_graphs
        )

    def start_attempt(self, trial: TrialSpec) -> Resources:
        """Return the resources of an attempt that starts now. Store them for :meth:`finished`
        and :meth:`failed`.
        """
        level = self._start_level(trial)
        resources = self._levels.request(trial, level)
        self.last_requests[trial.trial_id] = LastRequest(level, resources)
        return resources

    def use_shares_without_mps(self) -> None:
        """Let later attempts request the GPU shares that are planned for running without
        NVIDIA's MPS.
        """
        share = self.runtime_model.share_without_mps
        if share is not None:
            self._levels = replace(self._levels, min_share=share)

    @property
    def shares_without_mps_text(self) -> str:
        """A sentence for the user that says whether trials share a GPU without NVIDIA's MPS."""
        if self.runtime_model.share_without_mps == 1:
            return "Each new trial has a whole GPU"
        return "Trials still share a GPU, but they compute in turn"

    def request_with_mean_share(self, trials: Collection[TrialSpec]) -> Resources:
        """Return the sweep's request. Its GPU share is the mean over the next requests of
        these trials.

        Args:
            trials: one trial or more.
        """
        requests = [self._levels.request(trial, self._start_level(trial)) for trial in trials]
        mean_share = sum(request.num_gpus for request in requests) / len(requests)
        return replace(self.resources, num_gpus=mean_share)

    def finished(self, trial: TrialSpec) -> None:
        """Process a result. It shows that the attempt's level is enough for the trial's
        network.
        """
        level = self.last_requests[trial.trial_id].level
        self._network(trial).finished(level)

    def failed(self, trial: TrialSpec, failure: TrialFailure, gpu_name: str = "") -> TrialVerdict:
        """Process a failure of a started attempt. It may change the next requests of several
        trials.

        Args:
            trial: the trial that failed.
            failure: description of the failed attempt.
            gpu_name: name of the GPU on which the attempt failed, or an empty text if the name
                is unknown.

        Returns:
            The verdict. It says whether a further attempt can succeed. If not, it contains a
            hint.
        """
        if failure.kind != FailureKind.OUT_OF_MEMORY:
            if failure.capture_failed:
                self.networks_without_graphs.add(network_key(trial))
            return MAY_RETRY
        # Without a GPU only the machine's memory can run out, even if the failure does not say
        # so.
        if failure.memory == "machine" or not self.resources.num_gpus:
            return self._machine_failed(trial, failure)
        return self._gpu_failed(trial, failure, gpu_name)

    def _network(self, trial: TrialSpec) -> NetworkLevels:
        """Return the object with the start level of a trial's network."""
        return self.network_levels[network_key(trial)]

    def _start_level(self, trial: TrialSpec) -> int:
        """Return the memory level at which the next attempt at a trial starts."""
        own_level = self.trial_levels[trial.trial_id].start_level
        return max(own_level, self._network(trial).start_level)

    def _next_level(self, trial: TrialSpec) -> int | None:
        """Return the next level whose request differs from the trial's last request, or None."""
        last = self.last_requests[trial.trial_id]
        return self._levels.next_level(trial, last.level, last.resources)

    def _gpu_failed(self, trial: TrialSpec, failure: TrialFailure, gpu_name: str) -> TrialVerdict:
        """Process a failure because a GPU's memory ran out (rows 1 to 5 of the module's table)."""
        share = self.last_requests[trial.trial_id].resources.num_gpus
        cause = cause_on_gpu(trial, failure, share, self.runtime_model.gpu)
        if cause == MemoryCause.NO_KERNEL:
            return no_kernel_verdict(trial)
        levels = self.trial_levels[trial.trial_id]
        next_level = self._next_level(trial)
        is_on_small_gpu = gpu_name in self.small_gpus
        is_by_others = cause == MemoryCause.OTHER_PROCESSES
        if is_by_others:
            self._network(trial).failed_by_others(next_level)
            levels.num_failures_by_others += 1
            if levels.ignores_failures_by_others:
                return MAY_RETRY
        if next_level is None:
            if is_on_small_gpu:
                return MAY_RETRY  # ``Retries`` limits the number of attempts.
            return self._too_little_memory(trial, OCCUPIED_GPU if is_by_others else WHOLE_GPU)
        levels.start_level = next_level
        if cause == MemoryCause.TRIAL and not is_on_small_gpu:
            self._network(trial).raise_needed_level(next_level)
        return MAY_RETRY

    def _machine_failed(self, trial: TrialSpec, failure: TrialFailure) -> TrialVerdict:
        """Process a failure because the machine's memory ran out (rows 6 and 7 of the module's
        table).

        If other processes use the memory, the verdict is never final, because the processes
        may end. ``Retries`` limits the number of attempts.
        """
        levels = self.trial_levels[trial.trial_id]
        level = self.last_requests[trial.trial_id].level
        is_by_others = cause_on_machine(failure) == MemoryCause.OTHER_PROCESSES
        if is_by_others:
            levels.num_failures_by_others += 1
            if levels.ignores_failures_by_others:
                return MAY_RETRY
        # Each failure raises the level by one, even if the request stays the same: the trial
        # may fit later, when other trials need less memory. MIN_FINAL_MACHINE_LEVEL limits the
        # number of these attempts.
        levels.start_level = level + 1
        has_next = self._next_level(trial) is not None
        if is_by_others or has_next or level < MIN_FINAL_MACHINE_LEVEL:
            return MAY_RETRY
        return self._too_little_memory(trial, MACHINE)

    def _too_little_memory(self, trial: TrialSpec, limit: MemoryLimit) -> TrialVerdict:
        """Return the final verdict on a trial that needs too much memory even at its highest
        level.
        """
        can_split = trial.network.recipe.batch_size >= MIN_SPLIT_BATCH
        suggest_splitting = can_split and not self._levels.may_split_batches(trial)
        return too_little_memory(trial, limit, suggest_splitting=suggest_splitting)
