"""The memory levels of a trial. Each time that a trial runs out of memory, it moves to a
higher level and requests other resources.

Each level changes the request of the previous level:

- Level 0 requests the share of a GPU that the trial probably needs.
- The next levels double the share, until the trial has a whole GPU.
- One further level switches CUDA graphs off, because graphs occupy memory. A trial that uses
  no graphs has no such level.
- If the batches may be split, the last levels halve the micro-batch. A micro-batch is the
  images of one forward pass. Batches of fewer than 4 images are never split.

If the sweep requests an amount of the machine's memory, every level from 1 on requests twice
this amount, but at most the memory of the largest node. If a trial has no GPU, or if nothing
else can change after level 0, level 1 changes only the machine's memory.

Three events during a run change the requests of some levels: a network cannot be captured as a
CUDA graph, the run abandons NVIDIA's MPS, or the memory of the largest node changes. The
number of levels stays the same. Two levels may then have the same request, so ``next_level``
skips levels that change nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Hashable
from contextlib import suppress
from dataclasses import dataclass, replace

from orchestrator.machine.cluster import Resources
from orchestrator.planning.costs.gpu_models import GpuModel
from orchestrator.planning.costs.needs import need_of
from orchestrator.planning.costs.networks import has_batch_norm
from orchestrator.planning.runtimes import RuntimeModel
from search_spaces.errors import SweepError
from search_spaces.specs import TrialSpec

log = logging.getLogger(__name__)

MIN_MICRO_BATCH = 2
"""Smallest number of images in a forward pass. Batch norm cannot compute a variance from one
image."""
MIN_SPLIT_BATCH = 2 * MIN_MICRO_BATCH
"""Smallest batch size that can be split into two forward passes of MIN_MICRO_BATCH images."""
ROUNDING_ERROR = 1e-9
"""Largest rounding error of a GPU share. :func:`is_whole_gpu` tolerates it."""


def network_key(trial: TrialSpec) -> Hashable:
    """Return a key. Trials with equal keys need the same GPU memory and use the same CUDA
    graphs.
    """
    prepared = trial.network.subset.prepared
    return trial.network.model, trial.network.recipe, prepared.image_size, prepared.channels


def is_whole_gpu(resources: Resources) -> bool:
    """Return whether a trial has at least one whole GPU."""
    return resources.num_gpus >= 1 - ROUNDING_ERROR


@dataclass(frozen=True)
class MemoryLevels:
    """The requests of a run's trials, by memory level. The module's docstring explains the
    levels.

    Attributes:
        resources: resources that the sweep requests for every trial.
        runtime_model: model that predicts the share of a GPU that each trial needs. If the
            model's ``gpu`` is None, every trial requests ``resources`` at level 0.
        node_memory_bytes: function that returns the memory of the largest node in bytes. No
            trial requests more.
        networks_without_graphs: keys of the networks whose steps cannot be captured as CUDA
            graphs (:func:`network_key`). The caller may add keys later.
        min_share: smallest share of a GPU that a trial on a GPU requests. It is 0 until the
            run abandons NVIDIA's MPS.
    """

    resources: Resources
    runtime_model: RuntimeModel
    node_memory_bytes: Callable[[], float]
    networks_without_graphs: Collection[Hashable]
    min_share: float = 0.0

    def request(self, trial: TrialSpec, level: int) -> Resources:
        """Return the request of a trial at a memory level.

        If ``level`` is above the last level, return the request of the last level.
        """
        requests = self._requests(trial)
        return requests[min(level, len(requests) - 1)]

    def next_level(self, trial: TrialSpec, level: int, tried: Resources) -> int | None:
        """Return the next memory level at which a trial requests something else.

        Args:
            trial: the trial.
            level: level of the trial's last attempt.
            tried: request of the trial's last attempt.

        Returns:
            The lowest level above ``level`` whose request differs from ``tried``, or None if
            there is no such level. If the request of the last level has changed since the
            attempt, the result may be a level above the last level. Such a level has the
            request of the last level.
        """
        requests = self._requests(trial)
        last_level = len(requests) - 1
        if level >= last_level:
            # An event may have changed the request of the last level since the attempt.
            return level + 1 if requests[last_level] != tried else None
        for higher_level in range(level + 1, len(requests)):
            if requests[higher_level] != tried:
                return higher_level
        return None

    def may_split_batches(self, trial: TrialSpec) -> bool:
        """Return whether a trial's batches may be split. By default they may be split only if
        the network has no batch norm, because splitting changes the results of batch norm.
        """
        if self.resources.micro_batch_policy != "auto":
            return self.resources.micro_batch_policy == "on"
        with suppress(SweepError):
            return not has_batch_norm(trial.network)
        return False

    def _requests(self, trial: TrialSpec) -> list[Resources]:
        """Return the present requests of a trial at all levels, beginning with level 0."""
        planned = self._planned_request(trial)
        memory_bytes = self._twice_the_memory(planned.memory_bytes)
        with_more_memory = replace(planned, memory_bytes=memory_bytes)
        next_request = self._next_request(trial, with_more_memory)
        requests = [planned]
        if not planned.num_gpus or next_request is None:
            # Level 1 requests only more of the machine's memory.
            requests.append(with_more_memory)
        while next_request is not None:
            requests.append(next_request)
            next_request = self._next_request(trial, next_request)
        return [self._with_later_changes(trial, request) for request in requests]

    def _next_request(self, trial: TrialSpec, request: Resources) -> Resources | None:
        """Return the request that follows ``request``, or None if there is no further level."""
        if request.num_gpus and not is_whole_gpu(request):
            return replace(request, num_gpus=min(1.0, 2 * request.num_gpus))
        if request.num_gpus and _uses_graphs(trial, request):
            return replace(request, fast="off")
        can_split = trial.network.recipe.batch_size >= MIN_SPLIT_BATCH
        is_smallest = request.micro_batch == MIN_MICRO_BATCH
        if can_split and not is_smallest and self.may_split_batches(trial):
            num_images = request.micro_batch or trial.network.recipe.batch_size
            return replace(request, micro_batch=max(MIN_MICRO_BATCH, num_images // 2))
        return None

    def _with_later_changes(self, trial: TrialSpec, request: Resources) -> Resources:
        """Return a request, changed by events of the run: no CUDA graphs, or a smallest GPU
        share.
        """
        if network_key(trial) in self.networks_without_graphs:
            request = replace(request, fast="off")
        if request.num_gpus:
            request = replace(request, num_gpus=max(request.num_gpus, self.min_share))
        return request

    def _planned_request(self, trial: TrialSpec) -> Resources:
        """Return the request of a trial at level 0, as it was planned before the run."""
        gpu = self.runtime_model.gpu
        if not self.resources.num_gpus or gpu is None:
            return self.resources
        share = self._expected_share(trial, gpu)
        return replace(self.resources, num_gpus=share, context_bytes=gpu.context_bytes)

    def _expected_share(self, trial: TrialSpec, gpu: GpuModel) -> float:
        """Return the share of a GPU that a trial probably needs."""
        if self.runtime_model.share is not None:
            return self.runtime_model.share
        try:
            return need_of(trial, gpu, self.runtime_model.corrections).share
        except SweepError as error:
            # The trial may still train. If it cannot, its own failure has a message.
            log.warning(
                "Trial %s uses the GPU share in resources.num_gpus, because isweep cannot "
                "predict how much memory the trial needs: %s",
                trial.trial_id,
                error,
            )
            return self.resources.num_gpus

    def _twice_the_memory(self, memory_bytes: int) -> int:
        """Return twice an amount of memory, but at most the memory of the largest node."""
        if not memory_bytes:
            return 0
        twice = int(min(2 * memory_bytes, self.node_memory_bytes()))
        return max(memory_bytes, twice)


def _uses_graphs(trial: TrialSpec, request: Resources) -> bool:
    """Return whether a trial's steps are captured as CUDA graphs."""
    if trial.network.model.library == "own":
        # The steps of a user's network are captured only if the sweep demands graphs.
        return request.fast == "on"
    return request.fast != "off"
