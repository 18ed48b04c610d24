"""The closest pairs of points among the pairs that are new at one train size.

:mod:`tasks.measures.neighbors` defines positions, train sizes and *new* pairs.
"""

from __future__ import annotations

import numpy as np

from tasks.array_types import AnyArray
from tasks.measures.tile_blocks import SquaredDistances, is_at_most, no_pair_value

PAIR_DTYPE = np.dtype(
    [
        ("squared", np.float64),
        ("first", np.int32),
        ("second", np.int32),
    ]
)
"""Dtype of a pair: squared distance, and the positions of both points, the smaller one first."""


class ClosestPairs:
    """A collection of the closest pairs, to which the pairs of blocks are added.

    The collection is complete below a limit: it contains all added pairs whose squared distance is
    smaller than ``complete_below``.

    `prune` sets the limit to the squared distance of the ``capacity + 1``-th closest pair. It then
    removes all pairs that are not below the limit. Pairs that are tied with this pair are all
    removed, because a choice among them would depend on the order of the blocks.

    Attributes:
        capacity: Largest number of pairs after `prune`.
        complete_below: Squared distance below which the collection is complete; infinite if no
            pair is missing.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.complete_below = np.inf
        self._chunks = [np.zeros(0, PAIR_DTYPE)]

    @property
    def pairs(self) -> AnyArray:
        """The pairs, ``(num_pairs,)`` of dtype ``PAIR_DTYPE``, in no particular order."""
        return np.concatenate(self._chunks)

    def update(
        self,
        squared_distances: SquaredDistances,
        first_row_position: int,
        first_column_position: int,
    ) -> None:
        """Add the closest pairs of a block.

        A block on the diagonal contains each pair twice. Only the entry whose row comes before its
        column is added.

        Args:
            squared_distances: ``(num_rows, num_columns)``.
            first_row_position: Position of the block's first row.
            first_column_position: Position of the block's first column.
        """
        if np.isinf(self.complete_below):
            self.complete_below = self._block_limit(squared_distances)
        # Pairs at exactly the limit are added too. One of them may be the (capacity + 1)-th closest
        # pair, from which `prune` computes the next limit.
        is_close = is_at_most(squared_distances, self.complete_below)
        rows, columns = np.divmod(np.flatnonzero(is_close), is_close.shape[1])
        pairs = np.empty(len(rows), PAIR_DTYPE)
        pairs["squared"] = squared_distances[rows, columns]
        pairs["first"] = rows + first_row_position
        pairs["second"] = columns + first_column_position
        self._chunks.append(pairs[pairs["first"] < pairs["second"]])
        num_pairs = sum(len(chunk) for chunk in self._chunks)
        if num_pairs > 2 * self.capacity:
            self.prune()

    def _block_limit(self, squared_distances: SquaredDistances) -> float:
        """Return a limit with at least ``capacity + 1`` pairs of the block at or below it.

        The block contains each pair at most twice. So the limit is the squared distance of the
        ``2 * capacity + 1``-th closest entry. If the block has fewer entries, the limit is
        infinite.
        """
        rank = 2 * self.capacity
        if squared_distances.size <= rank:
            return np.inf
        limit = np.partition(squared_distances, rank, axis=None)[rank]
        if limit == no_pair_value(squared_distances.dtype):
            return np.inf
        return float(limit)

    def merge(self, other: ClosestPairs) -> None:
        """Add the pairs of another collection, and prune."""
        self.complete_below = min(self.complete_below, other.complete_below)
        self._chunks.append(other.pairs)
        self.prune()

    def prune(self) -> None:
        """Lower the limit so that at most ``capacity`` pairs are below it. Remove all others."""
        pairs = self.pairs
        squared = pairs["squared"]
        if len(squared) > self.capacity:
            next_closest = float(np.partition(squared, self.capacity)[self.capacity])
            self.complete_below = min(self.complete_below, next_closest)
        self._chunks = [pairs[squared < self.complete_below]]
