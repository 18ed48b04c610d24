"""The closest pairs of points among the pairs that are new at one train size.

:func:`tasks.measures.sharpness.permuted_sharpness` needs these pairs. It permutes the labels
of a sample, and looks for the closest pair inside the sample that has different labels.
:mod:`tasks.measures.neighbors` defines positions, train sizes and *new* pairs.

Each tile has one collection of pairs for each train size:

1. `max_pairs_by_size` decides how many pairs to collect, the *capacity* of a collection.
2. `ClosestPairs.update` adds the pairs of a block that may be among the closest. Between two
   blocks, a collection has at most twice its capacity, with 16 bytes for each pair.
3. `ClosestPairs.prune` reduces a collection to its capacity.
4. `ClosestPairs.merge` joins the collections of two tiles.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tasks.array_types import AnyArray, BoolArray
from tasks.measures.tile_blocks import SquaredDistances, is_pair_within, no_pair_value

PAIRS_PER_SAMPLE = 1024
"""Expected number of collected pairs inside one sample, so that one of them nearly always has
different labels. Even if only 1 % of the images have another label than the rest, 1,024 random
pairs all have equal labels with probability (0.99² + 0.01²)^1024, about 1e-9."""
MAX_CLOSEST_PAIRS = 1 << 20
"""Largest capacity of a collection. This number of pairs takes 16 MiB."""
PAIR_DTYPE = np.dtype(
    [
        ("squared", np.float64),
        ("first", np.int32),
        ("second", np.int32),
    ]
)
"""Dtype of a pair: the squared distance, and the positions of both points. The smaller position
comes first."""


def max_pairs_by_size(samples: BoolArray, train_sizes: Sequence[int]) -> tuple[int, ...]:
    """Return the number of closest pairs to collect among the new pairs of each train size.

    A sample of M of n images contains both images of a pair with probability (M/n)². So if
    ``PAIRS_PER_SAMPLE`` * (n/M)² pairs are collected, ``PAIRS_PER_SAMPLE`` of them lie in a
    sample on average. The number is at most ``MAX_CLOSEST_PAIRS``.

    Args:
        samples: ``(num_samples, num_positions)`` masks of the samples.
        train_sizes: Train sizes, counted in positions.

    Returns:
        One number for each train size; empty if there are no samples.
    """
    if not len(samples):
        return ()
    sample_size = int(samples.sum(axis=1).max())
    max_pairs = []
    for size in train_sizes:
        ratio = max(1.0, size / sample_size)
        max_pairs.append(min(MAX_CLOSEST_PAIRS, int(PAIRS_PER_SAMPLE * ratio**2)))
    return tuple(max_pairs)


class ClosestPairs:
    """A collection of the closest pairs, to which the pairs of blocks are added.

    The collection contains every added pair below a limit. Pairs at the limit may be present
    until the next `prune`.

    Example with a capacity of 2: after pairs with the squared distances 1, 4, 4 and 9 are
    added, `prune` sets the limit to the third smallest number, 4, and keeps the pair with 1.
    It removes both pairs with 4, because a choice between them would depend on the order of
    the blocks.

    Attributes:
        capacity: Largest number of pairs after `prune`.
        limit: The limit, a squared distance; infinite if no pair is missing.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.limit = np.inf
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

        A block on the diagonal contains each pair twice. Only the entry whose row comes before
        its column is added.

        Args:
            squared_distances: ``(num_rows, num_columns)``.
            first_row_position: Position of the block's first row.
            first_column_position: Position of the block's first column.
        """
        if np.isinf(self.limit):
            self.limit = self._block_limit(squared_distances)
        is_close = is_pair_within(squared_distances, self.limit)
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
        """Return a first limit, so that not all pairs of the first block are added.

        The limit is the ``2 * capacity + 1``-th smallest squared distance of the block. So
        more than ``capacity`` pairs are at or below it, even if the block is on the diagonal
        and contains each pair twice. If the block has fewer pairs, the limit is infinite.
        """
        rank = 2 * self.capacity
        if squared_distances.size <= rank:
            return np.inf
        limit = np.partition(squared_distances, rank, axis=None)[rank]
        if limit == no_pair_value(squared_distances.dtype):  # fewer pairs than the rank
            return np.inf
        return float(limit)

    def prune(self) -> None:
        """Remove all pairs except the closest ones. At most ``capacity`` pairs stay."""
        pairs = self.pairs
        squared = pairs["squared"]
        if len(squared) > self.capacity:
            new_limit = float(np.partition(squared, self.capacity)[self.capacity])
            self.limit = min(self.limit, new_limit)
        self._chunks = [pairs[squared < self.limit]]

    def merge(self, other: ClosestPairs) -> None:
        """Add the pairs of another collection, and prune."""
        self.limit = min(self.limit, other.limit)
        self._chunks.append(other.pairs)
        self.prune()
