"""Collect the results of one tile of pairs, and merge them into the results of a search.

A search has three kinds of results:

- the k nearest neighbors of each position (:mod:`tasks.measures.neighbor_lists`),
- the nearest point with another label of each position (:mod:`tasks.measures.other_label`),
- the closest pairs of all positions (:mod:`tasks.measures.closest_pairs`).

Each train size has separate results, which come from the pairs that are new at this size. So a
block of distances is first cut into *sub-blocks*. All pairs of a sub-block are new at the same
train size, and are added to the results of this size. At the end, the results of all tiles are
merged.

Example: with the train sizes 2 and 4, the block of the positions 0 to 3 is cut into four
sub-blocks. The numbers are the size indices of the pairs::

                columns
                0  1 | 2  3
    rows   0    -  0 | 1  1
           1    0  - | 1  1
               ------+-----
           2    1  1 | -  1
           3    1  1 | 1  -

:mod:`tasks.measures.neighbors` defines positions, size indices and *new* pairs.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from tasks.array_types import IntArray
from tasks.measures.closest_pairs import ClosestPairs
from tasks.measures.neighbor_lists import NeighborLists
from tasks.measures.other_label import mask_equal_labels, update_inside_sample, update_nearest
from tasks.measures.products import in_threads
from tasks.measures.tile_blocks import (
    EXACT,
    SearchJob,
    Span,
    SquaredDistances,
    TileBlock,
    widest_arithmetic,
)


class SpanResult:
    """The result for a span of positions: the rows or the columns of a tile, or all positions.

    Attributes:
        span: The positions for which nearest points are stored. The closest pairs do not
            belong to single positions.
        neighbors_by_size: For each train size, the nearest neighbors of each position among
            the pairs that are new at this size.
        other_label_by_size: For each train size, the nearest point with another label among
            the pairs that are new at this size, as lists with one neighbor.
        other_label_by_sample: For each sample, the nearest point with another label inside the
            sample, as lists with one neighbor.
        pairs_by_size: For each train size, the closest pairs among the pairs that are new at
            this size; empty if no closest pairs are requested.
        arithmetic: The widest arithmetic that a block has needed.
    """

    def __init__(self, job: SearchJob, span: Span) -> None:
        num_positions = span.stop - span.start
        sizes = range(len(job.train_sizes))
        self.span = span
        self.neighbors_by_size = [NeighborLists(num_positions, job.num_neighbors) for _ in sizes]
        self.other_label_by_size = [NeighborLists(num_positions, 1) for _ in sizes]
        self.other_label_by_sample = [NeighborLists(num_positions, 1) for _ in job.samples]
        self.pairs_by_size = [ClosestPairs(max_pairs) for max_pairs in job.max_pairs_by_size]
        self.arithmetic = EXACT if job.is_exact else job.precision.dtype

    def merge(self, other: SpanResult) -> None:
        """Merge the result for a part of this span into this result, in place."""
        part = other.span.relative_to(self.span)
        for lists, other_lists in zip(self._all_lists(), other._all_lists(), strict=True):
            lists.merge(other_lists, part)
        for pairs, other_pairs in zip(self.pairs_by_size, other.pairs_by_size, strict=True):
            pairs.merge(other_pairs)
        self.arithmetic = widest_arithmetic(self.arithmetic, other.arithmetic)

    def _all_lists(self) -> list[NeighborLists]:
        return [*self.neighbors_by_size, *self.other_label_by_size, *self.other_label_by_sample]


def add_block(
    job: SearchJob, row_result: SpanResult, column_result: SpanResult, block: TileBlock
) -> None:
    """Add the distances of a block to the results of its rows and of its columns.

    Args:
        job: The search.
        row_result: The result for the tile's rows.
        column_result: The result for the tile's columns. For a tile on the diagonal, it is the
            same object as ``row_result``.
        block: A block of the tile.
    """
    sides = [(row_result, block)]
    if block.rows != block.columns:  # a block on the diagonal already contains each pair twice
        sides.append((column_result, block.transposed()))
    # Two threads can add both sides at the same time, because they change the results of
    # different positions. Closest pairs are added only for the block above the diagonal, and
    # not for the transposed block, see `_add_sub_block`. The threads of the matrix products do
    # this work, because they are idle now.
    in_threads(lambda side: _add_side(job, *side), sides)


def _add_side(
    job: SearchJob,
    result: SpanResult,
    block: TileBlock,
) -> None:
    """Add the distances from a block's rows to its columns to the result for the rows."""
    masked_squared = None
    if job.label_codes is not None:
        masked_squared = mask_equal_labels(job.label_codes, block)
        first_position = result.span.start
        for nearest, is_member in zip(result.other_label_by_sample, job.samples, strict=True):
            update_inside_sample(nearest, is_member, block, masked_squared, first_position)
    for rows in _spans_of_one_size(job.size_indices, block.rows):
        for columns in _spans_of_one_size(job.size_indices, block.columns):
            _add_sub_block(job, result, block, masked_squared, rows, columns)


def _add_sub_block(
    job: SearchJob,
    result: SpanResult,
    block: TileBlock,
    masked_squared: SquaredDistances | None,
    rows: Span,
    columns: Span,
) -> None:
    """Add the distances of a sub-block, whose pairs are all new at the same train size.

    Args:
        job: The search.
        result: The result for the block's rows.
        block: The block.
        masked_squared: The block's squared distances, in which pairs with equal labels are
            masked; None if there are no labels.
        rows: Positions of the sub-block's rows, which all have the same size index.
        columns: Positions of the sub-block's columns, which all have the same size index.
    """
    size_index = int(max(job.size_indices[rows.start], job.size_indices[columns.start]))
    sub_block = (rows.relative_to(block.rows), columns.relative_to(block.columns))
    result_rows = rows.relative_to(result.span)
    squared = block.squared[sub_block]
    result.neighbors_by_size[size_index].update(result_rows, columns.start, squared)
    # Each pair occurs twice, above and below the diagonal. So closest pairs are added only
    # from sub-blocks on and above the diagonal.
    if result.pairs_by_size and rows.start <= columns.start:
        result.pairs_by_size[size_index].update(squared, rows.start, columns.start)
    if masked_squared is not None:
        update_nearest(
            result.other_label_by_size[size_index],
            np.arange(result_rows.start, result_rows.stop),
            np.arange(columns.start, columns.stop),
            masked_squared[sub_block],
        )


def _spans_of_one_size(size_indices: IntArray, span: Span) -> list[Span]:
    """Cut a span into spans whose positions all have the same size index."""
    steps = np.diff(size_indices[span.positions])
    changes = np.flatnonzero(steps) + span.start + 1
    edges = [span.start, *changes.tolist(), span.stop]
    return [Span(start, stop) for start, stop in pairwise(edges)]
