"""The closest pairs of images among the pairs that are new at one train size.

:mod:`tasks.measures.neighbors` defines positions, train sizes and *new* pairs.
"""

from __future__ import annotations

import numpy as np

from tasks.measures.arrays import AnyArray
from tasks.measures.tile_blocks import SquaredDistances, is_at_most

PAIR_DTYPE = np.dtype(
    [
        ("squared", np.float64),
        ("first", np.int32),
        ("second", np.int32),
    ]
)
"""Dtype of a pair: the squared distance, and the positions of both rows, the smaller one first."""


class ClosestPairs:
    """A collection of the closest pairs, to which the pairs of blocks are added.

    The collection contains all added pairs that are closer than `exclusive_limit`. It may contain
    some farther pairs until `prune` removes them. `prune` also lowers the limit to the distance of
    the ``capacity + 1``-th closest pair, if there are so many pairs.

    If several pairs have exactly the distance of the limit, all of them are removed. A choice among
    them would depend on the order of the blocks. So fewer than ``capacity`` pairs may remain.

    Attributes:
        capacity: Largest number of pairs after `prune`.
        exclusive_limit: Squared distance below which the collection is complete; infinite if no
            pair was removed.
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
        limit = self.exclusive_limit
        if np.isinf(limit):
            limit = self._block_limit(squared_distances)
        # Pairs at exactly the limit are added too. One of them may be the (capacity + 1)-th closest
        # pair, from which `prune` computes the next limit.
        is_close = is_at_most(squared_distances, limit)
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
        """Return the (2 * capacity + 1)-th smallest entry of a block; infinity if there are fewer.

        A block contains each pair at most twice. So at least ``capacity`` pairs of the block are no
        farther apart, and a pair that is farther apart cannot be among the closest pairs.
        """
        num_entries = 2 * self.capacity
        if squared_distances.size <= num_entries:
            return np.inf
        return float(np.partition(squared_distances, num_entries, axis=None)[num_entries])

    def merge(self, other: ClosestPairs) -> None:
        """Add the pairs of another collection, and prune.

        The other collection must be pruned, because it must be complete below its own limit.
        """
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
