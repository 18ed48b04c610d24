"""Results of a search: the k nearest rows, the nearest row with another label, the closest pairs.

Every block of squared distances updates the results. The results of tiles are merged. If two
rows are equally near, the row at the smaller position counts as the nearer one. So a result depends
neither on the order of the blocks nor on how the blocks were divided over workers.
:mod:`tasks.measures.neighbors` defines positions, shells and *unlike*.
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
"""Candidates per entry of the lists of nearest neighbors. A block with more candidates is first
reduced to the k nearest of each row, because no other entry of the block can enter a list."""
DENSE_FRACTION = 0.25
"""Share of a block's columns that belong to a sample. Above this share, masking the other columns
is faster than copying the columns of the sample."""


def _limits_as(limits: FloatArray, dtype: np.dtype[Any]) -> SquaredDistances:
    """Cap limits just below :func:`no_pair`, and cast them to the dtype of a block."""
    if dtype.kind == "f":
        return np.minimum(limits, float(np.finfo(dtype).max)).astype(dtype)
    return np.minimum(limits, no_pair(dtype) - 1).astype(dtype)


PAIR = np.dtype(
    [
        ("squared", np.float64),
        ("first", np.int32),
        ("second", np.int32),
    ]
)
"""Dtype of a pair of positions and its squared distance."""


class ClosestPairs:
    """The closest pairs of one shell.

    `prune` removes all pairs that are not below a limit. The limit is the ``capacity + 1``-th
    smallest squared distance of all pairs that were added. So the remaining pairs do not depend on
    the order of adding and merging, and there are at most ``capacity``. Before the next `prune`
    there may be more pairs.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.limit = np.inf
        self._parts = [np.zeros(0, PAIR)]

    @property
    def pairs(self) -> AnyArray:
        """The pairs, ``(num_pairs,)`` of dtype ``PAIR``, in no particular order."""
        return np.concatenate(self._parts)

    def update(
        self,
        squared_distances: SquaredDistances,
        first_row: int,
        first_column: int,
    ) -> None:
        """Add the pairs of a block.

        A block on the diagonal contains each pair twice. Only the entry with the smaller position
        first is added.

        Args:
            squared_distances: ``(num_rows, num_columns)``.
            first_row: Position of the block's first row.
            first_column: Position of the block's first column.
        """
        limit = self.limit
        if np.isinf(limit):
            limit = self._limit_of_block(squared_distances)
        # Pairs at the limit are added as well: `prune` computes its limit from the
        # (capacity + 1)-th pair.
        is_close = squared_distances <= _limits_as(np.array(limit), squared_distances.dtype)
        rows, columns = np.divmod(np.flatnonzero(is_close), is_close.shape[1])
        pairs = np.empty(len(rows), PAIR)
        pairs["squared"] = squared_distances[rows, columns]
        pairs["first"] = rows + first_row
        pairs["second"] = columns + first_column
        self._parts.append(pairs[pairs["first"] < pairs["second"]])
        if sum(map(len, self._parts)) > 2 * self.capacity:
            self.prune()

    def _limit_of_block(self, squared_distances: SquaredDistances) -> float:
        """Return a limit above which no pair of this block can be among the closest.

        The limit is infinite if the block has too few entries.
        """
        num_entries = 2 * self.capacity  # a block on the diagonal has each pair twice
        if squared_distances.size <= num_entries:
            return np.inf
        return float(np.partition(squared_distances, num_entries, axis=None)[num_entries])

    def merge(self, part: ClosestPairs) -> None:
        """Add the pairs of another collection of the same shell."""
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
        # All pairs at the limit are removed: choosing some of several equal pairs would depend on
        # the order in which they were added.
        self._parts = [pairs[squared < self.limit]]


@dataclass(frozen=True)
class UnlikeMinima:
    """The nearest row with another label for each position, among all blocks added so far.

    There are several lists of positions: one list per shell, or one list per sample.

    Attributes:
        squared: ``(num_lists, num_positions)`` squared distances, infinite where there is no row
            with another label.
        positions: ``(num_lists, num_positions)`` positions of the nearest rows, -1 where there is
            no row with another label.
    """

    squared: FloatArray
    positions: IntArray

    @classmethod
    def empty(cls, num_lists: int, num_positions: int) -> UnlikeMinima:
        """Return lists without any row."""
        shape = (num_lists, num_positions)
        return cls(np.full(shape, np.inf), np.full(shape, -1, np.int64))

    def merge(self, part: UnlikeMinima, covered: slice) -> None:
        """Merge the minima of a part of the positions into these, in place.

        Args:
            part: Minima of the same lists.
            covered: The positions of ``part``, as an index of these positions.
        """
        squared = self.squared[:, covered]
        positions = self.positions[:, covered]
        wins_tie = (part.squared == squared) & (part.positions < positions)
        is_better = wins_tie | (part.squared < squared)
        self.squared[:, covered] = np.where(is_better, part.squared, squared)
        self.positions[:, covered] = np.where(is_better, part.positions, positions)

    def update(
        self,
        list_index: int,
        rows: IntArray,
        columns: IntArray,
        squared_distances: SquaredDistances,
    ) -> None:
        """Lower the minima of one list, in place, where a block has smaller distances.

        Args:
            list_index: Index of the list.
            rows: ``(num_rows,)`` the block's rows, as indices of these positions.
            columns: ``(num_columns,)`` positions of the block's columns.
            squared_distances: ``(num_rows, num_columns)``.
        """
        nearest_column = squared_distances.argmin(axis=1)
        squared = squared_distances[np.arange(len(rows)), nearest_column]
        nearest = columns[nearest_column]
        minima = self.squared[list_index, rows]
        wins_tie = (squared == minima) & (nearest < self.positions[list_index, rows])
        is_better = wins_tie | (squared < minima)
        is_better &= squared < no_pair(squared_distances.dtype)
        better_rows = rows[is_better]
        self.squared[list_index, better_rows] = squared[is_better]
        self.positions[list_index, better_rows] = nearest[is_better]


class NearestOfSpan:
    """The result for a span of positions: the rows or columns of a tile, or all positions.

    Attributes:
        span: The positions whose nearest rows are searched.
        neighbor_squared: ``(num_shells, num_positions, num_neighbors)`` squared distances to the
            nearest neighbors, ascending, infinite where there are fewer neighbors.
        neighbor_positions: Positions of the neighbors, -1 where there are fewer neighbors.
        unlike_by_shell: The nearest row with another label, one list per shell.
        unlike_by_sample: The nearest row with another label in the same sample, one list per
            sample.
        closest_pairs: The closest pairs of each shell; empty if no closest pairs are requested.
        precision: The widest precision that a product has needed.
    """

    def __init__(self, job: SearchJob, span: Span) -> None:
        num_positions = span.stop - span.start
        shape = (job.num_shells, num_positions, job.num_neighbors)
        self.span = span
        self.neighbor_squared = np.full(shape, np.inf)
        self.neighbor_positions = np.full(shape, -1, np.int64)
        self.unlike_by_shell = UnlikeMinima.empty(job.num_shells, num_positions)
        self.unlike_by_sample = UnlikeMinima.empty(len(job.samples), num_positions)
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
        self.unlike_by_shell.merge(part.unlike_by_shell, covered)
        self.unlike_by_sample.merge(part.unlike_by_sample, covered)
        for pairs, other_pairs in zip(self.closest_pairs, part.closest_pairs, strict=True):
            pairs.merge(other_pairs)
        self.precision = widest_precision(self.precision, part.precision)

    def update_neighbors(
        self,
        shell: int,
        rows: slice,
        first_column: int,
        squared_distances: SquaredDistances,
    ) -> None:
        """Merge a block into the nearest neighbors of one shell, in place.

        Args:
            shell: The shell of the block's pairs.
            rows: The block's rows, as an index of this result's positions.
            first_column: Position of the block's first column.
            squared_distances: ``(num_rows, num_columns)``.
        """
        limits = self.neighbor_squared[shell, rows, -1]  # the k-th nearest so far
        k = self.neighbor_squared.shape[-1]
        dtype = squared_distances.dtype
        is_candidate = squared_distances <= _limits_as(limits, dtype)[:, None]
        has_many = np.count_nonzero(is_candidate) > MANY_CANDIDATES * len(limits) * k
        if has_many and k < squared_distances.shape[1]:
            # The first blocks of a shell: only the block's own k nearest can enter the lists.
            kth_smallest = np.partition(squared_distances, k - 1, axis=1)[:, k - 1]
            limits = np.minimum(limits, kth_smallest)
            is_candidate = squared_distances <= _limits_as(limits, dtype)[:, None]
        candidates = _pad_chosen(is_candidate, squared_distances)
        if not len(candidates.rows):
            return
        positions = np.where(np.isfinite(candidates.squared), candidates.columns + first_column, -1)
        changed = rows.start + candidates.rows
        squared, positions = merge_nearest(
            self.neighbor_squared[shell, changed],
            self.neighbor_positions[shell, changed],
            candidates.squared,
            positions,
        )
        self.neighbor_squared[shell, changed] = squared
        self.neighbor_positions[shell, changed] = positions


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
    """Return the entries of a block at which a mask, ``(num_rows, num_columns)``, is True."""
    entry_rows, entry_columns = _chosen_by_row(is_chosen)
    rows, row_starts, counts = np.unique(entry_rows, return_index=True, return_counts=True)
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
    """Add the distances of a block to the shells of its pairs, for its rows and its columns."""
    sides = [(results.rows, block)]
    if block.rows != block.columns:  # a block on the diagonal already contains each pair twice
        sides.append((results.columns, block.transposed()))

    def add_side(side: tuple[NearestOfSpan, TileBlock]) -> None:
        result, side_block = side
        _add_rows(job, result, side_block)

    # The rows and the columns are different positions, so both can be updated at the same time.
    in_threads(add_side, sides)


def _add_rows(
    job: SearchJob,
    result: NearestOfSpan,
    block: TileBlock,
) -> None:
    """Add the distances from a block's rows to its columns to the result of the rows."""
    unlike = None
    if job.label_codes is not None:
        row_labels = job.label_codes[block.rows.positions]
        column_labels = job.label_codes[block.columns.positions]
        is_unlike = row_labels[:, None] != column_labels
        no_pair_value = block.squared.dtype.type(no_pair(block.squared.dtype))
        unlike = np.where(is_unlike, block.squared, no_pair_value)
        _add_samples(job, result, block, unlike)
    for row_run in _runs_of_one_shell(job.first_shells, block.rows):
        rows = row_run.within(result.span)
        for column_run in _runs_of_one_shell(job.first_shells, block.columns):
            row_shell = job.first_shells[row_run.start]
            column_shell = job.first_shells[column_run.start]
            shell = int(max(row_shell, column_shell))
            in_block = (row_run.within(block.rows), column_run.within(block.columns))
            squared = block.squared[in_block]
            result.update_neighbors(shell, rows, column_run.start, squared)
            if result.closest_pairs and row_run.start <= column_run.start:
                result.closest_pairs[shell].update(squared, row_run.start, column_run.start)
            if unlike is not None:
                result.unlike_by_shell.update(
                    shell,
                    np.arange(rows.start, rows.stop),
                    np.arange(*column_run),
                    unlike[in_block],
                )


def _add_samples(
    job: SearchJob,
    result: NearestOfSpan,
    block: TileBlock,
    unlike: SquaredDistances,
) -> None:
    """Add the nearest rows with another label inside each sample.

    Args:
        job: The search.
        result: The result of the block's rows.
        block: The block.
        unlike: The block's squared distances, replaced by the value of :func:`no_pair` where two
            labels are equal.
    """
    for sample_index, members in enumerate(job.samples):
        is_member_column = members[block.columns.positions]
        rows = np.flatnonzero(members[block.rows.positions])
        columns = np.flatnonzero(is_member_column)
        if not len(rows) or not len(columns):
            continue
        inside = unlike[rows]
        if len(columns) > DENSE_FRACTION * len(is_member_column):
            # The maximum with 0 changes no distance, so members keep theirs. The maximum with
            # no_pair excludes the other columns.
            excluded = np.where(is_member_column, 0, no_pair(unlike.dtype)).astype(unlike.dtype)
            np.maximum(inside, excluded, out=inside)
            columns = np.arange(len(is_member_column))
        else:
            inside = inside[:, columns]
        result.unlike_by_sample.update(
            sample_index,
            rows + block.rows.start - result.span.start,
            columns + block.columns.start,
            inside,
        )


def _runs_of_one_shell(shells: IntArray, span: Span) -> list[Span]:
    """Cut a span where the shell changes."""
    steps = np.diff(shells[span.positions])
    changes = np.flatnonzero(steps) + span.start + 1
    edges = [span.start, *changes.tolist(), span.stop]
    return [Span(start, stop) for start, stop in pairwise(edges)]
