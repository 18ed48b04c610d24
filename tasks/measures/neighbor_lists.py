"""The k nearest neighbors of each position, among the pairs that are new at one train size.

:mod:`tasks.measures.neighbors` defines positions, train sizes and *new* pairs. If two neighbors are
equally near, the neighbor at the smaller position comes first. So a list depends neither on the
order of the blocks nor on how the blocks were divided over workers.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tasks.measures.arrays import BoolArray, FloatArray, IntArray
from tasks.measures.tile_blocks import SquaredDistances, is_within

MANY_CANDIDATES = 4
"""Number of candidates per list entry above which a block is reduced to the k nearest of each row.
No other entry of the block can enter a list. With fewer candidates, the reduction takes longer than
it saves."""


class NeighborLists:
    """The k nearest neighbors of each position in a span of positions.

    Attributes:
        squared: ``(num_positions, k)`` squared distances, ascending, infinite where there are fewer
            than k neighbors.
        positions: ``(num_positions, k)`` positions of the neighbors, -1 where there are fewer than
            k neighbors.
    """

    def __init__(self, num_positions: int, num_neighbors: int) -> None:
        shape = (num_positions, num_neighbors)
        self.squared = np.full(shape, np.inf)
        self.positions = np.full(shape, -1, np.int64)

    def merge(self, partial: NeighborLists, covered: slice) -> None:
        """Merge the lists of a part of the positions into these lists, in place.

        Args:
            partial: Lists of the covered positions.
            covered: Slice of the positions of this object that ``partial`` covers.
        """
        squared, positions = merge_lists(
            self.squared[covered],
            self.positions[covered],
            partial.squared,
            partial.positions,
        )
        self.squared[covered] = squared
        self.positions[covered] = positions

    def update(
        self,
        result_rows: slice,
        first_column_position: int,
        squared_distances: SquaredDistances,
    ) -> None:
        """Add the pairs of a block, in place.

        Args:
            result_rows: The block's rows, as an index of the arrays of this object.
            first_column_position: Position of the block's first column.
            squared_distances: ``(num_rows, num_columns)``.
        """
        is_candidate = self._candidate_mask(result_rows, squared_distances)
        candidates = _pad_rows(is_candidate, squared_distances)
        if not len(candidates.rows):
            return
        is_padding = np.isinf(candidates.squared)
        candidate_positions = np.where(is_padding, -1, candidates.columns + first_column_position)
        changed_rows = result_rows.start + candidates.rows
        squared, positions = merge_lists(
            self.squared[changed_rows],
            self.positions[changed_rows],
            candidates.squared,
            candidate_positions,
        )
        self.squared[changed_rows] = squared
        self.positions[changed_rows] = positions

    def _candidate_mask(self, result_rows: slice, squared_distances: SquaredDistances) -> BoolArray:
        """Return True for each entry of a block that may be one of the k nearest of its row.

        An entry at exactly the k-th distance is a candidate too, because its position may be
        smaller.
        """
        kth_nearest = self.squared[result_rows, -1]
        is_candidate = is_within(squared_distances, kth_nearest[:, None])
        num_rows, num_columns = squared_distances.shape
        k = self.squared.shape[1]
        has_many = np.count_nonzero(is_candidate) > MANY_CANDIDATES * num_rows * k
        if not has_many or k >= num_columns:
            return is_candidate
        # This happens in the first blocks of a train size, while the lists are nearly empty.
        kth_in_block = np.partition(squared_distances, k - 1, axis=1)[:, k - 1]
        limits = np.minimum(kth_nearest, kth_in_block)
        return is_within(squared_distances, limits[:, None])


def merge_lists(
    squared: FloatArray,
    positions: IntArray,
    other_squared: FloatArray,
    other_positions: IntArray,
) -> tuple[FloatArray, IntArray]:
    """Merge two sets of lists of nearest neighbors.

    Args:
        squared: ``(num_positions, k)`` squared distances.
        positions: ``(num_positions, k)`` positions at these distances.
        other_squared: ``(num_positions, num_others)`` squared distances of the other lists.
        other_positions: ``(num_positions, num_others)`` positions at these distances.

    Returns:
        The k smallest distances of each row, ascending, and their positions. Of two equal
        distances, the distance with the smaller position comes first.
    """
    all_squared = np.concatenate([squared, other_squared], axis=1)
    all_positions = np.concatenate([positions, other_positions], axis=1)
    k = squared.shape[1]
    order = np.lexsort((all_positions, all_squared), axis=1)[:, :k]
    nearest_squared = np.take_along_axis(all_squared, order, axis=1)
    nearest_positions = np.take_along_axis(all_positions, order, axis=1)
    return nearest_squared, nearest_positions


class PaddedEntries(NamedTuple):
    """Chosen entries of a block, row by row. All rows are padded to the length of the longest row.

    Attributes:
        rows: ``(num_active,)`` the block's rows with at least one chosen entry, ascending.
        columns: ``(num_active, longest)`` the block's columns of the entries, 0 for padding.
        squared: ``(num_active, longest)`` the entries as float64, infinite for padding.
    """

    rows: IntArray
    columns: IntArray
    squared: FloatArray


def _pad_rows(is_chosen: BoolArray, squared_distances: SquaredDistances) -> PaddedEntries:
    """Return the entries of a block at which a mask, ``(num_rows, num_columns)``, is True.

    Example::

        is_chosen           squared_distances    rows  columns  squared
        [[F, F, F],         [[9, 9, 9],
         [T, F, T],          [4, 9, 1],          [1,   [[0, 2],  [[4, 1],
         [F, T, F]]          [9, 5, 9]]           2]    [1, 0]]   [5, inf]]
    """
    entry_rows, entry_columns = _chosen_by_row(is_chosen)
    rows, row_starts, counts = np.unique(entry_rows, return_index=True, return_counts=True)
    # The i-th entry of a row goes to column i of the result.
    padded_row = np.repeat(np.arange(len(rows)), counts)
    padded_column = np.arange(len(entry_rows)) - np.repeat(row_starts, counts)
    longest = counts.max(initial=0)
    columns = np.zeros((len(rows), longest), np.int64)
    squared = np.full(columns.shape, np.inf)
    columns[padded_row, padded_column] = entry_columns
    squared[padded_row, padded_column] = squared_distances[entry_rows, entry_columns]
    return PaddedEntries(rows, columns, squared)


def _chosen_by_row(is_chosen: BoolArray) -> tuple[IntArray, IntArray]:
    """Return the rows and the columns of a mask's true entries, row by row.

    The mask is searched in the order of its memory, because np.flatnonzero then takes a tenth of
    the time of np.nonzero.
    """
    is_row_major = is_chosen.strides[0] >= is_chosen.strides[1]
    if is_row_major:
        rows, columns = np.divmod(np.flatnonzero(is_chosen), is_chosen.shape[1])
        return rows, columns
    columns, rows = np.divmod(np.flatnonzero(is_chosen.T), is_chosen.shape[0])
    order = np.argsort(rows, kind="stable")
    return rows[order], columns[order]
