"""What each trial asks of Ray: the sweep's wish, or the share of a card that it is predicted to need."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ray

from orchestrator.planning.estimate import Expectation, MeasuredTrial
from orchestrator.planning.predict import (
    Card,
    card_like,
    card_there,
    has_batch_norm,
    need_of,
    packing_pays,
    read_checks,
)
from orchestrator.results.records import FailureKind, TrialFailure
from orchestrator.running.cluster import Resources
from orchestrator.running.gpus import NodeGpus, is_logical
from search_spaces.errors import SweepError
from search_spaces.specs import TrialSpec
from search_spaces.sweeps import ResourceSpec
from tasks.trials.records import CAPTURE_FAILED

log = logging.getLogger(__name__)

PATIENCE = 4
"""Times that a trial on CPUs may run out of memory with nothing more to get: others may have used it up."""


@dataclass(frozen=True)
class Request:
    """What one attempt at a trial gets.

    Attributes:
        resources: for Ray.
        micro_batch: images that pass the network at once; None for whole batches.
    """

    resources: Resources
    micro_batch: int | None = None

    def for_worker(self) -> dict[str, Any]:
        """Return what a trial's process is told of it."""
        return {
            "num_threads": self.resources.num_threads,
            "num_gpus": self.resources.num_gpus,
            "fast": self.resources.fast,
            "micro_batch": self.micro_batch,
            "request": self.resources.as_ray(),
        }


@dataclass
class Requests:
    """The requests of a sweep, larger for trials that ran out of memory.

    Attributes:
        resources: what the sweep asks for every trial.
        expectation: the cluster's kind of card, where shares are to be predicted, and what was measured on
            it; without a card all get the same share.
        node_memory_bytes: what the largest node has: a trial that asks for more would never start.
        out_of_memory: how often each trial ran out of memory in this run.
        not_captured: trials whose steps could not be captured.
    """

    resources: Resources
    expectation: Expectation = field(default_factory=Expectation)
    node_memory_bytes: Callable[[], float] = lambda: math.inf
    out_of_memory: Counter[str] = field(default_factory=Counter)
    not_captured: set[str] = field(default_factory=set)

    def of(self, cell: TrialSpec) -> Request:
        """Return what the next attempt at ``cell`` gets.

        Every time out of memory doubles its share, up to a whole GPU; after that its batches pass in ever
        smaller parts, where they may.
        """
        resources, times = self.resources, self.out_of_memory[cell.trial_id]
        if resources.num_gpus and self.expectation.card is not None:
            resources = replace(resources, num_gpus=self._share(cell, self.expectation.card))
        if cell.trial_id in self.not_captured:
            resources = replace(resources, fast="off")
        halvings = max(0, times - self._doublings(resources.num_gpus))
        if times:
            share = resources.num_gpus
            resources = replace(
                resources,
                num_gpus=min(1.0, share * 2**times) if 0 < share <= 1 else share,
                memory_bytes=self._more_memory(resources.memory_bytes),
            )
        if not halvings or not self._may_be_cut(cell):
            return Request(resources)
        # Two at least: batch norm has no variance over one image.
        return Request(resources, micro_batch=max(2, cell.network.recipe.batch_size >> halvings))

    def failed(self, cell: TrialSpec, failure: TrialFailure) -> str:
        """Count a failure, so that the next attempt gets more.

        Returns:
            What the user may choose, where no attempt can get more; empty otherwise.
        """
        if CAPTURE_FAILED in failure.message:
            self.not_captured.add(cell.trial_id)
            return ""
        if failure.kind != FailureKind.OUT_OF_MEMORY:
            return ""
        before = self.of(cell)
        self.out_of_memory[cell.trial_id] += 1
        on_gpu = before.resources.num_gpus > 0
        if self.of(cell) != before or not (on_gpu or self.out_of_memory[cell.trial_id] > PATIENCE):
            return ""  # a machine's memory may have been used up by others
        name, batch = cell.network.model.name, cell.network.recipe.batch_size
        there = "a whole GPU has: choose a larger GPU" if on_gpu else "its machine gave: choose a larger one"
        cut = "; resources.micro_batches: on cuts batches, which changes what batch norm sees"
        return (
            f"{name} at batch {batch} needs more memory than {there} or a smaller recipe.batch_size"
            f"{'' if self._may_be_cut(cell) else cut}"
        )

    def _doublings(self, share: float) -> int:
        """Return how often a share can grow: up to a whole GPU; that of a machine's memory once."""
        if not share:
            return 1
        return max(0, math.ceil(math.log2(1 / share) - 1e-9))

    def _may_be_cut(self, cell: TrialSpec) -> bool:
        """Tell whether batches of a trial may pass in parts: with batch norm that changes its numbers."""
        if self.resources.micro_batches != "auto":
            return self.resources.micro_batches == "on"
        try:
            return not has_batch_norm(cell.network)
        except SweepError:
            return False

    def usual(self, cells: Collection[TrialSpec]) -> Resources:
        """Return what a trial of ``cells``, at least one, asks for on average."""
        shares = [self.of(cell).resources.num_gpus for cell in cells]
        return replace(self.resources, num_gpus=sum(shares) / len(shares))

    def _more_memory(self, num_bytes: int) -> int:
        """Return twice as much, or what the largest node has if that is less; 0 stays 0."""
        return max(num_bytes, int(min(2 * num_bytes, self.node_memory_bytes()))) if num_bytes else 0

    def _share(self, cell: TrialSpec, card: Card) -> float:
        if self.expectation.share is not None:
            return self.expectation.share
        try:
            return need_of(cell, card, self.expectation.corrections).share
        except SweepError as error:  # a network that cannot be walked may still be trained, or fail by itself
            log.warning("%s: share as resources.num_gpus says, %s", cell.trial_id, error)
            return self.resources.num_gpus


def node_memory_bytes() -> float:
    """Return the memory that Ray may hand out on the node of the connected cluster that has most."""
    return max(float(node["Resources"].get("memory", 0)) for node in ray.nodes() if node["Alive"])


def expected(
    nodes: Collection[NodeGpus],
    asked: ResourceSpec,
    measured: Collection[MeasuredTrial],
    folders: Iterable[Path] = (),
) -> Expectation:
    """Return what trials are expected to need of the connected cluster's GPUs.

    A GPU is shared where the sweep says so, where MPS runs on its node, or where ``isweep gpu-check`` found
    that a pair of trials pays; elsewhere each trial has one to itself.

    Args:
        nodes: from :func:`~orchestrator.running.gpus.survey`; none where there are no GPUs, or logical ones.
        asked: what the sweep asks for.
        measured: finished trials.
        folders: where records of ``isweep gpu-check`` lie.
    """
    if asked.num_gpus is not None or not (nodes or is_logical()):
        return Expectation.of(None, measured)
    if is_logical():
        prefix = "accelerator_type:"
        kinds = [name[len(prefix) :] for name in ray.cluster_resources() if name.startswith(prefix)]
        return Expectation.of(card_of(sorted(kinds)), measured)
    checks = read_checks(folders)
    gpus = [(gpu, node) for node in nodes for gpu in node.gpus]
    cards = [card_there(gpu.name, gpu.memory_gib, checks) for gpu, _ in gpus]
    shared = all(packing_pays(gpu.name, checks, mps=node.mps) and not gpu.mig for gpu, node in gpus)
    card = min(cards, key=lambda card: (card.memory_gib, card.half_tflops))
    return Expectation.of(card, measured, None if shared else 1.0)


def card_of(names: list[str]) -> Card | None:
    """Return the card of the table that Ray's accelerator types name, the one with least memory of several.

    None, with a warning, for a card that is not in the table.
    """
    found = {}
    for name in names:
        card = card_like(name)
        if card is None:
            log.warning("no data sheet for card %s: trials share it as resources.num_gpus says, or not", name)
            return None
        found[card.name] = card
    return min(found.values(), key=lambda card: card.memory_gib, default=None)
