"""The nearest row with another label, for each position.

Entries between rows with equal labels are masked first: they are replaced by the value of
:func:`~tasks.measures.tile_blocks.no_pair_value`. Entries outside a sample are masked in the same
way. The smallest entry of a row then belongs to the nearest row with another label.
:mod:`tasks.measures.neighbors` defines positions.
"""

from __future__ import annotations

import numpy as np

from tasks.measures.arrays import BoolArray, IntArray
from tasks.measures.tile_blocks import SquaredDistances, TileBlock, no_pair_value

DENSE_FRACTION = 0.25
"""Share of a block's columns that are in a sample. Above this share, masking the other columns is
faster than copying the columns of the sample."""


class NearestOtherLabel:
    """The nearest row with another label for each position in a span, among one set of pairs.

    The set consists of the new pairs of one train size, or of the pairs inside one sample. If two
    rows are equally near, the row at the smaller position counts as the nearer one.

    Attributes:
        squared: ``(num_positions,)`` squared distances, infinite where there is no row with another
            label.
        positions: ``(num_positions,)`` positions of the nearest rows, -1 where there is no row with
            another label.
    """

    def __init__(self, num_positions: int) -> None:
        self.squared = np.full(num_positions, np.inf)
        self.positions = np.full(num_positions, -1, np.int64)

    def merge(self, partial: NearestOtherLabel, covered: slice) -> None:
        """Merge the result for a part of the positions into this result, in place.

        Args:
            partial: Result for the covered positions.
            covered: Slice of the positions of this object that ``partial`` covers.
        """
        squared = self.squared[covered]
        positions = self.positions[covered]
        wins_tie = (partial.squared == squared) & (partial.positions < positions)
        is_better = wins_tie | (partial.squared < squared)
        self.squared[covered] = np.where(is_better, partial.squared, squared)
        self.positions[covered] = np.where(is_better, partial.positions, positions)

    def update(
        self,
        result_rows: IntArray,
        column_positions: IntArray,
        squared_distances: SquaredDistances,
    ) -> None:
        """Lower the distances, in place, where a block has smaller distances.

        Args:
            result_rows: ``(num_rows,)`` the block's rows, as indices of the arrays of this object.
            column_positions: ``(num_columns,)`` positions of the block's columns, ascending.
            squared_distances: ``(num_rows, num_columns)``, masked as described in this module.
        """
        nearest_columns = squared_distances.argmin(axis=1)
        squared = squared_distances[np.arange(len(result_rows)), nearest_columns]
        positions = column_positions[nearest_columns]
        old_squared = self.squared[result_rows]
        wins_tie = (squared == old_squared) & (positions < self.positions[result_rows])
        is_better = wins_tie | (squared < old_squared)
        is_better &= squared < no_pair_value(squared_distances.dtype)
        better_rows = result_rows[is_better]
        self.squared[better_rows] = squared[is_better]
        self.positions[better_rows] = positions[is_better]


def mask_equal_labels(label_codes: IntArray, block: TileBlock) -> SquaredDistances:
    """Return a copy of a block's squared distances, masked where two labels are equal.

    Args:
        label_codes: ``(num_positions,)`` label of every position, as a number.
        block: The block.
    """
    row_labels = label_codes[block.rows.positions]
    column_labels = label_codes[block.columns.positions]
    is_other_label = row_labels[:, None] != column_labels
    return np.where(is_other_label, block.squared, no_pair_value(block.squared.dtype))


def _mask_columns(squared_distances: SquaredDistances, is_masked: BoolArray) -> None:
    """Replace all entries of some columns by the value that marks "no pair", in place.

    The maximum of a distance and this value is this value. The maximum of a distance and 0 is the
    distance. np.maximum takes a tenth of the time of an assignment to the masked columns.
    """
    dtype = squared_distances.dtype
    least_entries = np.where(is_masked, no_pair_value(dtype), dtype.type(0))
    np.maximum(squared_distances, least_entries, out=squared_distances)


def add_sample(
    nearest: NearestOtherLabel,
    is_member: BoolArray,
    block: TileBlock,
    other_label_squared: SquaredDistances,
    first_position: int,
) -> None:
    """Add the part of a block that lies inside one sample.

    Args:
        nearest: Result of the sample, which is updated in place.
        is_member: ``(num_positions,)`` True for the positions in the sample.
        block: The block.
        other_label_squared: The block's squared distances, masked where two labels are equal.
        first_position: First position of ``nearest``.
    """
    is_member_column = is_member[block.columns.positions]
    rows = np.flatnonzero(is_member[block.rows.positions])
    columns = np.flatnonzero(is_member_column)
    if not len(rows) or not len(columns):
        return
    inside = other_label_squared[rows]
    if len(columns) > DENSE_FRACTION * len(is_member_column):
        _mask_columns(inside, ~is_member_column)
        columns = np.arange(len(is_member_column))
    else:
        inside = inside[:, columns]
    nearest.update(
        rows + block.rows.start - first_position,
        columns + block.columns.start,
        inside,
    )
