"""Whether any node can still give a trial a card: where none can, a sweep ends and says so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import ray

from orchestrator.results.records import TrialFailure
from orchestrator.running.devices import NO_CARD
from search_spaces.errors import SetupError

MOST_IN_VAIN = 4
"""Trials of a node in a row that reached no card, with no result in between: then it counts as without."""


def nodes_with_cards() -> set[str]:
    """Return the addresses of the live nodes that offer GPUs."""
    alive = (node for node in ray.nodes() if node["Alive"])
    return {node["NodeManagerAddress"] for node in alive if node["Resources"].get("GPU", 0) > 0}


class CardWatch:
    """Counts, by node, trials that were given a card and could not reach it.

    Args:
        offered: Returns the addresses of the nodes that offer cards.
    """

    def __init__(self, offered: Callable[[], set[str]] = nodes_with_cards) -> None:
        self._offered = offered
        self._in_vain: Counter[str] = Counter()

    def worked(self, node: str) -> None:
        """A trial on this node has its result."""
        self._in_vain[node] = 0

    def failed(self, node: str, failure: TrialFailure) -> None:
        """A trial on this node has failed.

        Raises:
            SetupError: when none of the nodes that offer cards gives trials any.
        """
        if not failure.message.startswith(NO_CARD):
            return
        self._in_vain[node] += 1
        offered = self._offered()
        if offered and all(self._in_vain[other] >= MOST_IN_VAIN for other in offered):
            last = (failure.message.partition("; found: ")[2] or failure.message).rstrip(".")
            raise SetupError(
                "Some node must give trials a card that they can reach",
                f"on each of {len(offered)} nodes with GPUs the last {MOST_IN_VAIN} trials or more "
                f"reached none; the last one: {last}",
                "mend a node and run the same command again: what is done is kept. "
                "isweep doctor --address ADDRESS looks at every node; --device cpu needs no card",
            )
