"""Results of a search: the k nearest rows, the nearest row with another label, the closest pairs.

Every block of squared distances updates the results. The results of tiles are merged. If two
rows are equally near, the row at the smaller position counts as the nearer one. So a result depends
neither on the order of the blocks nor on how the blocks were divided over workers.
:mod:`tasks.measures.neighbors` defines positions, size indices and *new* pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from tasks.measures.arrays import AnyArray, BoolArray, FloatArray, IntArray
from tasks.measures.products import in_threads
from tasks.measures.tile_blocks import (
    EXACT,
    SearchJob,
    Span,
    SquaredDistances,
    TileBlock,
    no_pair,
    widest_precision,
)

MANY_CANDIDATES = 4
"""A block has many candidates if it has more than 4 times as many as its rows have list entries.
Then the candidates are first reduced to the k nearest of each row, because no other entry of the
block can enter a list. With fewer candidates, finding the k nearest takes longer than it saves."""
DENSE_FRACTION = 0.25
"""Share of a block's columns that belong to a sample. Above this share, masking the other columns
is faster than copying the columns of the sample."""


PAIR_DTYPE = np.dtype(
    [
        ("squared", np.float64),
        ("first", np.int32),
        ("second", np.int32),
    ]
)
"""Dtype of a pair of positions and its squared distance."""


def _cap_limits(limits: FloatArray, dtype: np.dtype[Any]) -> SquaredDistances:
    """Return limits in the dtype of a block, each below the value of :func:`no_pair`.

    An infinite limit would otherwise also admit the entries that mark "no pair".
    """
    if dtype.kind == "f":
        return np.minimum(limits, float(np.finfo(dtype).max)).astype(dtype)
    return np.minimum(limits, no_pair(dtype) - 1).astype(dtype)


def _candidate_mask(squared_distances: SquaredDistances, limits: FloatArray) -> BoolArray:
    """Return True for each entry of a block that is at most the limit of its row."""
    is_candidate: BoolArray = (
        squared_distances <= _cap_limits(limits, squared_distances.dtype)[:, None]
    )
    return is_candidate


class ClosestPairs:
    """The closest of the pairs that are new at one train size.

    `prune` keeps the ``capacity`` closest pairs, except those that tie with the next pair, the
    ``capacity + 1``-th. All pairs of this tie are removed, because a choice among them would depend
    on the order of adding and merging. So fewer than ``capacity`` pairs may remain. Before the next
    `prune`, there may be more.

    Attributes:
        capacity: Largest number of pairs after `prune`.
        limit: Squared distance of the closest pair that `prune` has removed; infinite before the
            first removal. After `prune`, all pairs below the limit are in the collection.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.limit = np.inf
        self._parts = [np.zeros(0, PAIR_DTYPE)]

    @property
    def pairs(self) -> AnyArray:
        """The pairs, ``(num_pairs,)`` of dtype ``PAIR_DTYPE``, in no particular order."""
        return np.concatenate(self._parts)

    def update(
        self,
        squared_distances: SquaredDistances,
        first_row_position: int,
        first_column_position: int,
    ) -> None:
        """Add the pairs of a block.

        A block on the diagonal contains each pair twice. Only the entry with the smaller position
        first is added.

        Args:
            squared_distances: ``(num_rows, num_columns)``.
            first_row_position: Position of the block's first row.
            first_column_position: Position of the block's first column.
        """
        highest_useful = self.limit
        if np.isinf(highest_useful):
            highest_useful = self._highest_useful_distance(squared_distances)
        # Pairs at this distance are added as well: one of them may be the (capacity + 1)-th pair,
        # from which `prune` computes its limit.
        highest = _cap_limits(np.array(highest_useful), squared_distances.dtype)
        is_close = squared_distances <= highest
        rows, columns = np.divmod(np.flatnonzero(is_close), is_close.shape[1])
        pairs = np.empty(len(rows), PAIR_DTYPE)
        pairs["squared"] = squared_distances[rows, columns]
        pairs["first"] = rows + first_row_position
        pairs["second"] = columns + first_column_position
        self._parts.append(pairs[pairs["first"] < pairs["second"]])
        if sum(map(len, self._parts)) > 2 * self.capacity:
            self.prune()

    def _highest_useful_distance(self, squared_distances: SquaredDistances) -> float:
        """Return the squared distance above which no pair of a block can be among the closest.

        It is infinite if the block has too few entries.
        """
        # A block on the diagonal contains each pair twice. For other blocks half of this number
        # would be enough; with more pairs, the result is the same.
        num_entries = 2 * self.capacity
        if squared_distances.size <= num_entries:
            return np.inf
        return float(np.partition(squared_distances, num_entries, axis=None)[num_entries])

    def merge(self, part: ClosestPairs) -> None:
        """Add the pairs of another collection, and prune.

        Call `prune` on ``part`` before, because only its pairs below its limit are complete.
        """
        self.limit = min(self.limit, part.limit)
        self._parts += part._parts
        self.prune()

    def prune(self) -> None:
        """Lower the limit until at most ``capacity`` pairs are below it. Remove all other pairs."""
        pairs = self.pairs
        squared = pairs["squared"]
        if len(squared) > self.capacity:
            limit = np.partition(squared, self.capacity)[self.capacity]
            self.limit = min(self.limit, float(limit))
        self._parts = [pairs[squared < self.limit]]


@dataclass(frozen=True)
class NearestOtherLabel:
    """The nearest row with another label for each position, among all blocks added so far.

    The nearest row is searched in several sets of pairs: in the new pairs of each train size, or in
    the pairs of each sample.

    Attributes:
        squared: ``(num_sets, num_positions)`` squared distances, infinite where there is no row
            with another label.
        positions: ``(num_sets, num_positions)`` positions of the nearest rows, -1 where there is
            no row with another label.
    """

    squared: FloatArray
    positions: IntArray

    @classmethod
    def empty(cls, num_sets: int, num_positions: int) -> NearestOtherLabel:
        """Return a result without any row."""
        shape = (num_sets, num_positions)
        return cls(np.full(shape, np.inf), np.full(shape, -1, np.int64))

    def merge(self, part: NearestOtherLabel, covered: slice) -> None:
        """Merge the result for a part of the positions into this one, in place.

        Args:
            part: Result for the same sets of pairs.
            covered: Slice of the positions of this object that ``part`` covers.
        """
        squared = self.squared[:, covered]
        positions = self.positions[:, covered]
        wins_tie = (part.squared == squared) & (part.positions < positions)
        is_better = wins_tie | (part.squared < squared)
        self.squared[:, covered] = np.where(is_better, part.squared, squared)
        self.positions[:, covered] = np.where(is_better, part.positions, positions)

    def update(
        self,
        set_index: int,
        local_rows: IntArray,
        column_positions: IntArray,
        squared_distances: SquaredDistances,
    ) -> None:
        """Lower the minima of one set of pairs, in place, where a block has smaller distances.

        Args:
            set_index: Index of the set of pairs.
            local_rows: ``(num_rows,)`` the block's rows, as indices of the arrays of this object.
            column_positions: ``(num_columns,)`` positions of the block's columns.
            squared_distances: ``(num_rows, num_columns)``.
        """
        nearest_column = squared_distances.argmin(axis=1)
        squared = squared_distances[np.arange(len(local_rows)), nearest_column]
        nearest = column_positions[nearest_column]
        minima = self.squared[set_index, local_rows]
        wins_tie = (squared == minima) & (nearest < self.positions[set_index, local_rows])
        is_better = wins_tie | (squared < minima)
        is_better &= squared < no_pair(squared_distances.dtype)
        better_rows = local_rows[is_better]
        self.squared[set_index, better_rows] = squared[is_better]
        self.positions[set_index, better_rows] = nearest[is_better]


class NearestOfSpan:
    """The result for a span of positions: the rows or columns of a tile, or all positions.

    Attributes:
        span: The positions whose nearest rows are searched.
        neighbor_squared: ``(num_sizes, num_positions, num_neighbors)`` squared distances to the
            nearest neighbors in the new pairs of each train size, ascending, infinite where there
            are fewer neighbors.
        neighbor_positions: Positions of the neighbors, -1 where there are fewer neighbors.
        other_label_by_size: The nearest row with another label in the new pairs of each train size.
        other_label_by_sample: The nearest row with another label in the pairs of each sample.
        closest_pairs: The closest of the new pairs of each train size; empty if no closest pairs
            are requested.
        precision: The widest precision that a product has needed.
    """

    def __init__(self, job: SearchJob, span: Span) -> None:
        num_positions = span.stop - span.start
        shape = (job.num_sizes, num_positions, job.num_neighbors)
        self.span = span
        self.neighbor_squared = np.full(shape, np.inf)
        self.neighbor_positions = np.full(shape, -1, np.int64)
        self.other_label_by_size = NearestOtherLabel.empty(job.num_sizes, num_positions)
        self.other_label_by_sample = NearestOtherLabel.empty(len(job.samples), num_positions)
        self.closest_pairs = [ClosestPairs(capacity) for capacity in job.pair_capacities]
        self.precision = EXACT if job.is_exact else job.precision.dtype

    def merge(self, part: NearestOfSpan) -> None:
        """Merge a result for a part of the same positions into this one."""
        covered = part.span.within(self.span)
        self.neighbor_squared[:, covered], self.neighbor_positions[:, covered] = merge_nearest(
            self.neighbor_squared[:, covered],
            self.neighbor_positions[:, covered],
            part.neighbor_squared,
            part.neighbor_positions,
        )
        self.other_label_by_size.merge(part.other_label_by_size, covered)
        self.other_label_by_sample.merge(part.other_label_by_sample, covered)
        for pairs, other_pairs in zip(self.closest_pairs, part.closest_pairs, strict=True):
            pairs.merge(other_pairs)
        self.precision = widest_precision(self.precision, part.precision)

    def update_neighbors(
        self,
        size_index: int,
        local_rows: slice,
        first_column_position: int,
        squared_distances: SquaredDistances,
    ) -> None:
        """Merge a block of pairs that are new at one train size into the nearest neighbors.

        Args:
            size_index: The size index of all pairs of the block.
            local_rows: The block's rows, as an index of the arrays of this object.
            first_column_position: Position of the block's first column.
            squared_distances: ``(num_rows, num_columns)``.
        """
        kth_nearest = self.neighbor_squared[size_index, local_rows, -1]
        num_rows, num_columns = squared_distances.shape
        k = self.neighbor_squared.shape[-1]
        is_candidate = _candidate_mask(squared_distances, kth_nearest)
        has_many = np.count_nonzero(is_candidate) > MANY_CANDIDATES * num_rows * k
        if has_many and k < num_columns:
            # This happens in the first blocks of a train size, while the lists are nearly empty.
            kth_in_block = np.partition(squared_distances, k - 1, axis=1)[:, k - 1]
            is_candidate = _candidate_mask(squared_distances, np.minimum(kth_nearest, kth_in_block))
        candidates = _pad_chosen(is_candidate, squared_distances)
        if not len(candidates.rows):
            return
        is_padding = np.isinf(candidates.squared)
        candidate_positions = np.where(is_padding, -1, candidates.columns + first_column_position)
        changed = local_rows.start + candidates.rows
        squared, positions = merge_nearest(
            self.neighbor_squared[size_index, changed],
            self.neighbor_positions[size_index, changed],
            candidates.squared,
            candidate_positions,
        )
        self.neighbor_squared[size_index, changed] = squared
        self.neighbor_positions[size_index, changed] = positions


def merge_nearest(
    squared: FloatArray,
    positions: IntArray,
    other_squared: FloatArray,
    other_positions: IntArray,
) -> tuple[FloatArray, IntArray]:
    """Merge two sets of lists of nearest neighbors.

    Args:
        squared: ``(..., num_neighbors)`` squared distances.
        positions: ``(..., num_neighbors)`` positions at these distances.
        other_squared: ``(..., num_others)`` further squared distances.
        other_positions: ``(..., num_others)`` positions at the further distances.

    Returns:
        The ``num_neighbors`` smallest distances, ascending, and their positions. Of two equal
        distances, the one with the smaller position comes first, so the result does not depend on
        the order of merging.
    """
    all_squared = np.concatenate([squared, other_squared], axis=-1)
    all_positions = np.concatenate([positions, other_positions], axis=-1)
    num_neighbors = squared.shape[-1]
    order = np.lexsort((all_positions, all_squared), axis=-1)[..., :num_neighbors]
    return (
        np.take_along_axis(all_squared, order, axis=-1),
        np.take_along_axis(all_positions, order, axis=-1),
    )


class PaddedEntries(NamedTuple):
    """Chosen entries of a block, row by row, padded to the longest row.

    Attributes:
        rows: ``(num_active,)`` the block's rows with at least one chosen entry, ascending.
        columns: ``(num_active, longest)`` the block's columns of the entries, 0 for padding.
        squared: ``(num_active, longest)`` the entries as float64, infinite for padding.
    """

    rows: IntArray
    columns: IntArray
    squared: FloatArray


def _pad_chosen(is_chosen: BoolArray, squared_distances: SquaredDistances) -> PaddedEntries:
    """Return the entries of a block at which a mask, ``(num_rows, num_columns)``, is True.

    Example::

        is_chosen           squared_distances    rows  columns  squared
        [[F, F, F],         [[9, 9, 9],
         [T, F, T],          [4, 9, 1],          [1,   [[0, 2],  [[4, 1],
         [F, T, F]]          [9, 5, 9]]           2]    [1, 0]]   [5, inf]]
    """
    entry_rows, entry_columns = _chosen_by_row(is_chosen)
    rows, row_starts, counts = np.unique(entry_rows, return_index=True, return_counts=True)
    # The place of each entry in the result: the i-th entry of a row goes to column i.
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

    The search runs in memory order: np.flatnonzero then takes a tenth of the time of np.nonzero.
    """
    is_row_major = is_chosen.strides[0] >= is_chosen.strides[1]
    if is_row_major:
        rows, columns = np.divmod(np.flatnonzero(is_chosen), is_chosen.shape[1])
        return rows, columns
    columns, rows = np.divmod(np.flatnonzero(is_chosen.T), is_chosen.shape[0])
    order = np.argsort(rows, kind="stable")
    return rows[order], columns[order]


class TileResults(NamedTuple):
    """The results of one tile.

    Attributes:
        rows: The result of the tile's rows.
        columns: The result of the tile's columns; the same object as ``rows`` for a tile on the
            diagonal.
    """

    rows: NearestOfSpan
    columns: NearestOfSpan

    @classmethod
    def empty(cls, job: SearchJob, rows: Span, columns: Span) -> TileResults:
        """Return the results of a tile before its first block."""
        row_result = NearestOfSpan(job, rows)
        if rows == columns:
            return cls(row_result, row_result)
        return cls(row_result, NearestOfSpan(job, columns))

    def distinct(self) -> list[NearestOfSpan]:
        """Return the result of the rows and, if it is another object, that of the columns."""
        return [self.rows] if self.columns is self.rows else [self.rows, self.columns]


def add_block(
    job: SearchJob,
    results: TileResults,
    block: TileBlock,
) -> None:
    """Add the distances of a block to the results of its rows and of its columns."""
    sides = [(results.rows, block)]
    if block.rows != block.columns:  # a block on the diagonal already contains each pair twice
        sides.append((results.columns, block.transposed()))

    def add_side(side: tuple[NearestOfSpan, TileBlock]) -> None:
        result, side_block = side
        _add_rows(job, result, side_block)

    # The rows and the columns are different positions, so both can be updated at the same time. The
    # threads are those of the matrix products, which are idle now.
    in_threads(add_side, sides)


def _add_rows(
    job: SearchJob,
    result: NearestOfSpan,
    block: TileBlock,
) -> None:
    """Add the distances from a block's rows to its columns to the result of the rows."""
    other_label_squared = None
    if job.label_codes is not None:
        row_labels = job.label_codes[block.rows.positions]
        column_labels = job.label_codes[block.columns.positions]
        is_other_label = row_labels[:, None] != column_labels
        no_pair_value = block.squared.dtype.type(no_pair(block.squared.dtype))
        other_label_squared = np.where(is_other_label, block.squared, no_pair_value)
        _add_samples(job, result, block, other_label_squared)
    for rows in _spans_of_one_size(job.size_indices, block.rows):
        for columns in _spans_of_one_size(job.size_indices, block.columns):
            _add_pairs_of_one_size(job, result, block, other_label_squared, rows, columns)


def _add_pairs_of_one_size(
    job: SearchJob,
    result: NearestOfSpan,
    block: TileBlock,
    other_label_squared: SquaredDistances | None,
    rows: Span,
    columns: Span,
) -> None:
    """Add the part of a block whose pairs are all new at the same train size.

    Args:
        job: The search.
        result: The result of the block's rows.
        block: The block.
        other_label_squared: The block's squared distances, replaced by the value of
            :func:`no_pair` where two labels are equal; None if there are no labels.
        rows: Positions of the part's rows, which have one size index.
        columns: Positions of the part's columns, which have one size index.
    """
    size_index = int(max(job.size_indices[rows.start], job.size_indices[columns.start]))
    in_block = (rows.within(block.rows), columns.within(block.columns))
    local_rows = rows.within(result.span)
    squared = block.squared[in_block]
    result.update_neighbors(size_index, local_rows, columns.start, squared)
    # Each pair is added once. Where rows come after columns, the block is transposed, or the part
    # lies below the diagonal, so its pairs are those of another part.
    if result.closest_pairs and rows.start <= columns.start:
        result.closest_pairs[size_index].update(squared, rows.start, columns.start)
    if other_label_squared is not None:
        result.other_label_by_size.update(
            size_index,
            np.arange(local_rows.start, local_rows.stop),
            np.arange(*columns),
            other_label_squared[in_block],
        )


def _add_samples(
    job: SearchJob,
    result: NearestOfSpan,
    block: TileBlock,
    other_label_squared: SquaredDistances,
) -> None:
    """Add the nearest rows with another label inside each sample.

    Args:
        job: The search.
        result: The result of the block's rows.
        block: The block.
        other_label_squared: The block's squared distances, replaced by the value of
            :func:`no_pair` where two labels are equal.
    """
    for sample_index, is_member in enumerate(job.samples):
        is_member_column = is_member[block.columns.positions]
        rows = np.flatnonzero(is_member[block.rows.positions])
        columns = np.flatnonzero(is_member_column)
        if not len(rows) or not len(columns):
            continue
        inside = other_label_squared[rows]
        if len(columns) > DENSE_FRACTION * len(is_member_column):
            # Replacing the other columns by no_pair is faster than copying the columns of the
            # sample. The maximum with 0 changes nothing, and the maximum with no_pair is no_pair.
            dtype = other_label_squared.dtype
            lower_bounds = np.where(is_member_column, 0, no_pair(dtype)).astype(dtype)
            np.maximum(inside, lower_bounds, out=inside)
            columns = np.arange(len(is_member_column))
        else:
            inside = inside[:, columns]
        result.other_label_by_sample.update(
            sample_index,
            rows + block.rows.start - result.span.start,
            columns + block.columns.start,
            inside,
        )


def _spans_of_one_size(size_indices: IntArray, span: Span) -> list[Span]:
    """Cut a span of positions where their size index changes."""
    steps = np.diff(size_indices[span.positions])
    changes = np.flatnonzero(steps) + span.start + 1
    edges = [span.start, *changes.tolist(), span.stop]
    return [Span(start, stop) for start, stop in pairwise(edges)]
