"""Make the tables of nearest neighbors of all train sizes from the result of a search.

:mod:`tasks.measures.neighbors` defines positions, size indices and *new* pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tasks.array_types import FloatArray, IntArray
from tasks.measures.byte_rows import ByteRows
from tasks.measures.closest_pairs import ClosestPairs
from tasks.measures.tile_blocks import SearchJob
from tasks.measures.tile_results import SpanResult


class PairList(NamedTuple):
    """The closest pairs of a train size, closest first.

    The points of every other pair are at least as far apart as the points of the last pair in
    the list.

    Attributes:
        distances: ``(num_pairs,)`` distances, ascending.
        first: ``(num_pairs,)`` position of one point of each pair.
        second: ``(num_pairs,)`` position of the other point.
    """

    distances: FloatArray
    first: IntArray
    second: IntArray


@dataclass(frozen=True)
class NeighborTable:
    """A table of nearest neighbors at one train size.

    Attributes:
        distances: ``(num_positions, num_neighbors)`` L2 distances to the nearest neighbors,
            ascending in each row; infinite if there are fewer neighbors.
        neighbor_positions: ``(num_positions, num_neighbors)`` positions of these neighbors; -1
            if there are fewer neighbors.
        other_label_distances: ``(num_positions,)`` distance to the nearest point with another
            label; infinite if there is no such point.
        other_label_positions: ``(num_positions,)`` position of this nearest point with another
            label; -1 if there is no such point.
        closest_pairs: The closest pairs of points; None if the search had no samples.
    """

    distances: FloatArray
    neighbor_positions: IntArray
    other_label_distances: FloatArray
    other_label_positions: IntArray
    closest_pairs: PairList | None = None

    @property
    def num_positions(self) -> int:
        """Number of positions in the table: the number of points in the training set."""
        return len(self.distances)


@dataclass(frozen=True)
class NestedNeighbors:
    """The result of a search over all pairs of points.

    Attributes:
        tables: One table per train size, ascending.
        sample_other_label_distances: ``(num_samples, num_positions)`` distance to the nearest
            point with another label inside the same sample. It is infinite if the position is
            not in the sample, or if the sample contains no point with another label.
        sample_other_label_positions: ``(num_samples, num_positions)`` position of this point;
            -1 if there is no such point.
        arithmetic: ``EXACT`` if distances were computed in integers. Otherwise, the widest
            dtype that a block of distances needed.
    """

    tables: list[NeighborTable]
    sample_other_label_distances: FloatArray
    sample_other_label_positions: IntArray
    arithmetic: str


def make_tables(job: SearchJob, result: SpanResult) -> NestedNeighbors:
    """Make the tables of all train sizes, and collect the nearest points inside all samples.

    Args:
        job: The search.
        result: The result of the search for all positions. This function changes ``result``,
            so do not use it again.
    """
    # If the unit of the bytes is 1/255, a byte stands for a fraction: 51 stands for 0.2.
    # Distances are then multiplied by the unit.
    unit_length = job.source.unit if isinstance(job.source, ByteRows) else 1.0
    # Without samples, these arrays have the shape (0, num_positions).
    sample_squared = np.zeros(job.samples.shape)
    sample_positions = np.zeros(job.samples.shape, np.int64)
    for sample_index, nearest in enumerate(result.other_label_by_sample):
        sample_squared[sample_index] = nearest.squared[:, 0]
        sample_positions[sample_index] = nearest.positions[:, 0]
    return NestedNeighbors(
        tables=_tables(result, job.train_sizes, unit_length),
        sample_other_label_distances=np.sqrt(sample_squared) * unit_length,
        sample_other_label_positions=sample_positions,
        arithmetic=result.arithmetic,
    )


def _tables(
    result: SpanResult,
    train_sizes: Sequence[int],
    unit_length: float,
) -> list[NeighborTable]:
    """Make the table of each train size from the new pairs of this and all smaller sizes.

    Args:
        result: The result of the search for all positions. This function changes it.
        train_sizes: Ascending train sizes, counted in positions.
        unit_length: Factor that converts distances of the search to distances of the tables.
    """
    all_positions = slice(None)
    # These lists are merged in place. After step i of the loop, they contain the neighbors at
    # the i-th train size.
    merged_neighbors = result.neighbors_by_size[0]
    merged_other_label = result.other_label_by_size[0]
    tables = []
    for size_index, size in enumerate(train_sizes):
        if size_index > 0:
            merged_neighbors.merge(result.neighbors_by_size[size_index], all_positions)
            merged_other_label.merge(result.other_label_by_size[size_index], all_positions)
        tables.append(
            NeighborTable(
                distances=np.sqrt(merged_neighbors.squared[:size]) * unit_length,
                # Positions are copied, because the next steps of the loop change them in
                # place. The distances are new arrays already.
                neighbor_positions=merged_neighbors.positions[:size].copy(),
                other_label_distances=np.sqrt(merged_other_label.squared[:size, 0]) * unit_length,
                other_label_positions=merged_other_label.positions[:size, 0].copy(),
                closest_pairs=_pair_list(result.pairs_by_size[: size_index + 1], unit_length),
            )
        )
    return tables


def _pair_list(pairs_by_size: Sequence[ClosestPairs], unit_length: float) -> PairList | None:
    """Return the closest pairs of one train size; None if no closest pairs were collected.

    Args:
        pairs_by_size: The closest new pairs of this train size and of each smaller train size.
        unit_length: Factor that converts distances of the search to distances of the list.
    """
    if not pairs_by_size:
        return None
    closest = ClosestPairs(sum(new_pairs.capacity for new_pairs in pairs_by_size))
    for new_pairs in pairs_by_size:
        closest.merge(new_pairs)
    pairs = closest.pairs
    pairs = pairs[np.argsort(pairs["squared"])]
    distances = np.sqrt(pairs["squared"]) * unit_length
    return PairList(distances, pairs["first"], pairs["second"])
