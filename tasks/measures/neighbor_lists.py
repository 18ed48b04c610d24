"""Collect the nearest points of each position, among one set of pairs.

A set consists of the pairs that are new at one train size, or of the pairs inside one sample.
:mod:`tasks.measures.neighbors` defines positions, train sizes and *new* pairs. If two points
have the same distance, the point with the smaller position comes first in a list. So if points
are rows of bytes, a list does not depend on the order of the blocks, or on the workers that
computed them. If points are rows of floats, equal distances may be rounded differently in
different blocks.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tasks.array_types import BoolArray, FloatArray, IntArray
from tasks.measures.tile_blocks import SquaredDistances, is_pair_within

MAX_CANDIDATES_PER_NEIGHBOR = 4
"""If a row of a block has on average more than this number times k candidates, only the k
nearest candidates of each row are used. With fewer candidates, finding the k nearest first
would take more time than it saves."""


class NeighborLists:
    """The lists of the k nearest points of each position in a span.

    Attributes:
        squared: ``(num_positions, k)`` squared distances, ascending in each row; infinite if
            there are fewer than k neighbors.
        positions: ``(num_positions, k)`` positions of the neighbors; -1 if there are fewer
            than k neighbors.
    """

    def __init__(self, num_positions: int, num_neighbors: int) -> None:
        shape = (num_positions, num_neighbors)
        self.squared = np.full(shape, np.inf)
        self.positions = np.full(shape, -1, np.int64)

    def merge(self, other: NeighborLists, part: slice) -> None:
        """Merge further lists for some of the positions into these lists, in place.

        Args:
            other: Lists for some of the positions of this object.
            part: The slice of this object's arrays that contains these positions.
        """
        nearest_new = other.squared[:, 0]
        kth_squared = self.squared[part, -1]
        may_change = np.isfinite(nearest_new) & (nearest_new <= kth_squared)
        rows = np.arange(len(self.squared))[part][may_change]
        self._merge_rows(rows, other.squared[may_change], other.positions[may_change])

    def update(
        self,
        result_rows: slice,
        first_column_position: int,
        squared_distances: SquaredDistances,
    ) -> None:
        """Add the pairs of a block, in place.

        Args:
            result_rows: The slice of this object's arrays that contains the block's rows.
            first_column_position: Position of the block's first column.
            squared_distances: The squared distances of the block, ``(num_rows, num_columns)``.
        """
        is_candidate = self._candidate_mask(result_rows, squared_distances)
        candidates = _gather_entries(is_candidate, squared_distances, first_column_position)
        if not len(candidates.rows):
            return
        candidate_rows = result_rows.start + candidates.rows
        self._merge_rows(candidate_rows, candidates.squared, candidates.positions)

    def _merge_rows(self, rows: IntArray, squared: FloatArray, positions: IntArray) -> None:
        """Add further neighbors to the lists of some rows, in place.

        Args:
            rows: ``(num_rows,)`` indices of these rows in the arrays of this object.
            squared: ``(num_rows, num_others)`` squared distances of the further neighbors.
            positions: ``(num_rows, num_others)`` positions of the further neighbors.
        """
        all_squared = np.concatenate([self.squared[rows], squared], axis=1)
        all_positions = np.concatenate([self.positions[rows], positions], axis=1)
        # Sort by distance. If distances are equal, sort by position.
        order = np.lexsort((all_positions, all_squared), axis=1)
        nearest = order[:, : self.squared.shape[1]]
        self.squared[rows] = np.take_along_axis(all_squared, nearest, axis=1)
        self.positions[rows] = np.take_along_axis(all_positions, nearest, axis=1)

    def _candidate_mask(
        self,
        result_rows: slice,
        squared_distances: SquaredDistances,
    ) -> BoolArray:
        """Return a mask of the entries of a block that may be among the k nearest of their row.

        These entries are the candidates. An entry whose distance equals the present k-th
        distance is a candidate too, because its position may be smaller.
        """
        kth_squared = self.squared[result_rows, -1]
        is_candidate = is_pair_within(squared_distances, kth_squared[:, None])
        num_rows, num_columns = squared_distances.shape
        k = self.squared.shape[1]
        has_many = np.count_nonzero(is_candidate) > MAX_CANDIDATES_PER_NEIGHBOR * num_rows * k
        if not has_many or k >= num_columns:
            return is_candidate
        # The first blocks of a train size have many candidates, because the lists are still
        # nearly empty.
        kth_squared_in_block = np.partition(squared_distances, k - 1, axis=1)[:, k - 1]
        limits = np.minimum(kth_squared, kth_squared_in_block)
        return is_pair_within(squared_distances, limits[:, None])


class PaddedEntries(NamedTuple):
    """The chosen entries of a block, row by row. All rows are padded to the same length.

    Attributes:
        rows: ``(num_chosen_rows,)`` indices of the block's rows that have at least one chosen
            entry, ascending.
        positions: ``(num_chosen_rows, longest)`` position of each entry's column; -1 for
            padding.
        squared: ``(num_chosen_rows, longest)`` the entries, squared distances as float64;
            infinite for padding.
    """

    rows: IntArray
    positions: IntArray
    squared: FloatArray


def _gather_entries(
    is_chosen: BoolArray, squared_distances: SquaredDistances, first_column_position: int
) -> PaddedEntries:
    """Return the entries of a block for which a mask, ``(num_rows, num_columns)``, is True.

    Example with the first column at position 7::

        is_chosen           squared_distances    rows  positions  squared
        [[F, F, F],         [[9, 9, 9],
         [T, F, T],          [4, 9, 1],          [1,   [[7,  9],  [[4, 1],
         [F, T, F]]          [9, 5, 9]]           2]    [8, -1]]   [5, inf]]
    """
    entry_rows, entry_columns = _chosen_by_row(is_chosen)
    rows, row_starts, counts = np.unique(entry_rows, return_index=True, return_counts=True)
    # The i-th chosen entry of a row is stored in column i of the result.
    padded_row = np.repeat(np.arange(len(rows)), counts)
    padded_column = np.arange(len(entry_rows)) - np.repeat(row_starts, counts)
    shape = (len(rows), counts.max(initial=0))
    positions = np.full(shape, -1, np.int64)
    squared = np.full(shape, np.inf)
    positions[padded_row, padded_column] = entry_columns + first_column_position
    squared[padded_row, padded_column] = squared_distances[entry_rows, entry_columns]
    return PaddedEntries(rows, positions, squared)


def _chosen_by_row(is_chosen: BoolArray) -> tuple[IntArray, IntArray]:
    """Return the row and the column of each true entry of a mask, sorted by row.

    The function reads the mask in the order of its memory. np.flatnonzero then takes only a
    tenth of the time of np.nonzero.
    """
    is_row_major = is_chosen.strides[0] >= is_chosen.strides[1]
    if is_row_major:
        rows, columns = np.divmod(np.flatnonzero(is_chosen), is_chosen.shape[1])
        return rows, columns
    columns, rows = np.divmod(np.flatnonzero(is_chosen.T), is_chosen.shape[0])
    order = np.argsort(rows, kind="stable")
    return rows[order], columns[order]
