"""What each trial asks of Ray: the sweep's wish, or the share of a card that it is predicted to need."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace

import ray

from orchestrator.planning.gpus import Card, card_like
from orchestrator.planning.predict import Expectation, need_of
from orchestrator.running.cluster import Resources
from search_spaces.errors import SweepError
from search_spaces.specs import TrialSpec

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """What one attempt at a trial gets.

    Attributes:
        resources: for Ray.
        micro_batch: images that pass the network at once; None for whole batches.
    """

    resources: Resources
    micro_batch: int | None = None


@dataclass
class Requests:
    """The requests of a sweep, larger for trials that ran out of memory.

    Attributes:
        resources: what the sweep asks for every trial.
        expectation: the cluster's kind of card, where shares are to be predicted, and what was measured on
            it; without a card all get the same share.
        node_memory_bytes: what the largest node has: a trial that asks for more would never start.
        out_of_memory: how often each trial ran out of memory in this run.
    """

    resources: Resources
    expectation: Expectation = field(default_factory=Expectation)
    node_memory_bytes: Callable[[], float] = lambda: math.inf
    out_of_memory: Counter[str] = field(default_factory=Counter)

    def of(self, cell: TrialSpec) -> Request:
        """Return what the next attempt at ``cell`` gets.

        The first time out of memory doubles its share, unless it had a whole card; after that its batches
        pass in ever smaller parts.
        """
        resources = self.resources
        card = self.expectation.card
        if card is not None and resources.num_gpus:
            resources = replace(resources, num_gpus=self._share(cell, card))
        times = self.out_of_memory[cell.trial_id]
        if not times:
            return Request(resources)
        share = resources.num_gpus
        larger = replace(
            resources,
            num_gpus=min(1.0, 2 * share) if 0 < share <= 1 else share,
            memory_bytes=self._more_memory(resources.memory_bytes),
        )
        # A whole card cannot grow. A machine's memory may have been used up by others: the same may do there.
        halvings = times if share >= 1 else times - 1
        if not halvings:
            return Request(larger)
        # Two at least: batch norm has no variance over one image.
        return Request(larger, micro_batch=max(2, cell.network.recipe.batch_size >> halvings))

    def usual(self, cells: Collection[TrialSpec]) -> Resources:
        """Return what a trial of ``cells``, at least one, asks for on average."""
        shares = [self.of(cell).resources.num_gpus for cell in cells]
        return replace(self.resources, num_gpus=sum(shares) / len(shares))

    def _more_memory(self, num_bytes: int) -> int:
        """Return twice as much, or what the largest node has if that is less; 0 stays 0."""
        return max(num_bytes, int(min(2 * num_bytes, self.node_memory_bytes()))) if num_bytes else 0

    def _share(self, cell: TrialSpec, card: Card) -> float:
        try:
            return need_of(cell, card, self.expectation.corrections).share
        except SweepError as error:  # a network that cannot be walked may still be trained, or fail by itself
            log.warning("%s: share as resources.num_gpus says, %s", cell.trial_id, error)
            return self.resources.num_gpus


def node_memory_bytes() -> float:
    """Return the memory that Ray may hand out on the node of the connected cluster that has most."""
    return max(float(node["Resources"].get("memory", 0)) for node in ray.nodes() if node["Alive"])


def card_names() -> list[str]:
    """Return Ray's names of the kinds of cards in the connected cluster."""
    prefix = "accelerator_type:"
    return sorted(name[len(prefix) :] for name in ray.cluster_resources() if name.startswith(prefix))


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
