"""Collect the closest pairs of points among the pairs that are new at one train size.

:func:`tasks.measures.sharpness.permuted_sharpness` needs these pairs. It permutes the labels
of a sample, and finds the closest pair of images in the sample with different labels.
:mod:`tasks.measures.neighbors` defines positions, train sizes and *new* pairs.

Each tile has one collection of pairs for each train size:

1. `max_pairs_by_size` decides how many pairs a collection should contain. This number is the
   *capacity* of the collection.
2. `ClosestPairs.update` adds the pairs of a block that may be among the closest pairs. After
   each block, a collection has at most twice as many pairs as its capacity. Each pair needs 16
   bytes.
3. `ClosestPairs.prune` reduces a collection to its capacity.
4. `ClosestPairs.merge` joins the collections of two tiles.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tasks.array_types import AnyArray, BoolArray
from tasks.measures.tile_blocks import SquaredDistances, is_pair_within, no_pair_value

PAIRS_PER_SAMPLE = 1024
"""Expected number of collected pairs inside one sample. With this number, nearly always at
least one of the pairs has different labels. For example, a label may occur in only 1 % of the
images. Even then, 1,024 random pairs all have equal labels only with the probability (0.99² +
0.01²)^1024, about 1e-9."""
MAX_CLOSEST_PAIRS = 1 << 20
"""Largest capacity of a collection. A collection of this size needs 16 MiB of memory."""
PAIR_DTYPE = np.dtype(
    [
        ("squared", np.float64),
        ("first", np.int32),
        ("second", np.int32),
    ]
)
"""Dtype of a pair. A pair consists of the squared distance and the positions of both points.
``first`` is the smaller position."""


def max_pairs_by_size(samples: BoolArray, train_sizes: Sequence[int]) -> tuple[int, ...]:
    """Return the number of closest pairs to collect among the new pairs of each train size.

    A sample has M of the n images, and contains both images of a pair with the probability
    (M/n)². So if ``PAIRS_PER_SAMPLE`` * (n/M)² pairs are collected, a sample contains
    ``PAIRS_PER_SAMPLE`` of them on average. The number of pairs to collect is at most
    ``MAX_CLOSEST_PAIRS``.

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
    """A collection of the closest pairs. Pairs are added block by block.

    The collection contains every added pair whose squared distance is below a limit. Until the
    next `prune`, it may also contain pairs whose squared distance equals the limit.

    Example: a collection with the capacity 2 contains pairs with the squared distances 1, 4, 4
    and 9. `prune` sets the limit to the third smallest number, which is 4. Only the pair with
    the squared distance 1 remains. Both pairs with the squared distance 4 are removed, because
    a choice between them would depend on the order of the blocks.

    Attributes:
        capacity: Largest number of pairs after `prune`.
        limit: The limit, a squared distance. It is infinite if the collection contains all
            pairs of the added blocks.
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
            squared_distances: The squared distances of the block, ``(num_rows, num_columns)``.
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
        """Return the limit for the first block, so that not all its pairs are added.

        The limit is the ``2 * capacity + 1``-th smallest squared distance of the block. So
        more than ``capacity`` pairs have this distance or a smaller one, even if the block is
        on the diagonal and contains each pair twice. If the block has fewer distances, the
        limit is infinite.
        """
        rank = 2 * self.capacity
        if squared_distances.size <= rank:
            return np.inf
        limit = np.partition(squared_distances, rank, axis=None)[rank]
        if limit == no_pair_value(squared_distances.dtype):  # fewer pairs than the rank
            return np.inf
        return float(limit)

    def prune(self) -> None:
        """Remove all pairs except the closest pairs. At most ``capacity`` pairs remain."""
        pairs = self.pairs
        squared = pairs["squared"]
        if len(squared) > self.capacity:
            new_limit = float(np.partition(squared, self.capacity)[self.capacity])
            self.limit = min(self.limit, new_limit)
        self._chunks = [pairs[squared < self.limit]]

    def merge(self, other: ClosestPairs) -> None:
        """Add the pairs of another collection, and remove all pairs except the closest ones."""
        self.limit = min(self.limit, other.limit)
        self._chunks.append(other.pairs)
        self.prune()
