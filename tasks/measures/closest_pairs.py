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

    Every added pair that is closer than `exclusive_limit` is in the collection. Pairs at or beyond
    the limit may be missing.

    `prune` lowers the limit to the distance of the ``capacity + 1``-th closest pair, and removes
    all pairs at or beyond the limit. So at most ``capacity`` pairs remain. If several pairs have
    exactly this distance, fewer pairs remain: a choice among them would depend on the order of the
    blocks.

    Attributes:
        capacity: Largest number of pairs after `prune`.
        exclusive_limit: Squared distance below which the collection is complete; infinite if no
            pair is missing.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.exclusive_limit = np.inf
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
        if np.isinf(self.exclusive_limit):
            self.exclusive_limit = self._block_limit(squared_distances)
        # Pairs at exactly the limit are added too. One of them may be the (capacity + 1)-th closest
        # pair, from which `prune` computes the next limit.
        is_close = is_at_most(squared_distances, self.exclusive_limit)
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
        """Return a squared distance that at least ``capacity + 1`` pairs of a block do not exceed.

        The block contains each pair at most twice. So the result is the distance of the
        ``2 * capacity + 1``-th closest entry. If the block has fewer pairs, it is infinite.
        """
        num_closer = 2 * self.capacity
        if squared_distances.size <= num_closer:
            return np.inf
        limit = np.partition(squared_distances, num_closer, axis=None)[num_closer]
        if limit == no_pair_value(squared_distances.dtype):
            return np.inf
        return float(limit)

    def merge(self, other: ClosestPairs) -> None:
        """Add the pairs of another collection, and prune."""
        self.exclusive_limit = min(self.exclusive_limit, other.exclusive_limit)
        self._chunks.append(other.pairs)
        self.prune()

    def prune(self) -> None:
        """Lower the limit until at most ``capacity`` pairs are below it. Remove all other pairs."""
        pairs = self.pairs
        squared = pairs["squared"]
        if len(squared) > self.capacity:
            next_closest = float(np.partition(squared, self.capacity)[self.capacity])
            self.exclusive_limit = min(self.exclusive_limit, next_closest)
        self._chunks = [pairs[squared < self.exclusive_limit]]
