"""Nearest rows so far: the k nearest, the nearest with another label, the closest pairs.

Blocks of squared distances are merged by "keep the k smallest" and "keep the minimum". If two rows
are equally near, the one at the smaller position is kept. So a result depends neither on the order
of blocks nor on how they were divided over workers. :mod:`tasks.measures.neighbors` explains
positions and shells.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from tasks.measures.arrays import AnyArray, BoolArray, FloatArray, IntArray
from tasks.measures.products import in_threads
from tasks.measures.tile_blocks import EXACT, SearchJob, Span, SquaredDistances, TileBlock, no_pair

MANY_CANDIDATES = 4
"""Candidates for the lists of nearest neighbors, per place in these lists. If a block has more, it
is first searched for its own k nearest, because no other entry of it can enter a list."""
DENSE_FRACTION = 0.25
"""Share of a block's columns that are in a sample. Above it, masking the other columns is faster
than copying those of the sample."""


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
    """The closest pairs of one shell, ``capacity`` at most.

    `prune` keeps the pairs below a limit: the ``capacity + 1``-th smallest squared distance of all
    pairs that were added. So the pairs that are kept do not depend on the order of adding and
    merging. Between two prunes there may be more pairs.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.limit = np.inf
        self._parts = [np.zeros(0, PAIR)]

    @property
    def pairs(self) -> AnyArray:
        """The pairs, ``(num_pairs,)`` of dtype ``PAIR``, in no order."""
        return np.concatenate(self._parts)

    def update(
        self,
        squared_distances: SquaredDistances,
        first_row: int,
        first_column: int,
    ) -> None:
        """Add the pairs of a block.

        Only pairs with the smaller position first are added: a block on the diagonal has both.

        Args:
            squared_distances: ``(num_rows, num_columns)``.
            first_row: Position of the block's first row.
            first_column: Position of the block's first column.
        """
        limit = self.limit
        num_kept = 2 * self.capacity  # a block on the diagonal has each pair twice
        if np.isinf(limit) and squared_distances.size > num_kept:
            # First block of a shell: only its own closest pairs can be among the closest.
            limit = float(np.partition(squared_distances, num_kept, axis=None)[num_kept])
        # Pairs at the limit are added: `prune` needs the (capacity + 1)-th pair to set its limit.
        is_close = squared_distances <= _limits_as(np.array(limit), squared_distances.dtype)
        rows, columns = np.divmod(np.flatnonzero(is_close), is_close.shape[1])
        pairs = np.empty(len(rows), PAIR)
        pairs["squared"] = squared_distances[rows, columns]
        pairs["first"] = rows + first_row
        pairs["second"] = columns + first_column
        self._parts.append(pairs[pairs["first"] < pairs["second"]])
        if sum(map(len, self._parts)) > 2 * self.capacity:
            self.prune()

    def merge(self, more: ClosestPairs) -> None:
        """Add a collection of further pairs of the same shell."""
        self.limit = min(self.limit, more.limit)
        self._parts += more._parts
        self.prune()

    def prune(self) -> None:
        """Lower the limit until at most ``capacity`` pairs are below it, and drop the others."""
        pairs = self.pairs
        squared = pairs["squared"]
        if len(squared) > self.capacity:
            limit = np.partition(squared, self.capacity)[self.capacity]
            self.limit = min(self.limit, float(limit))
        # Drop all pairs at the limit: which of several equal ones fit would depend on the order.
        self._parts = [pairs[squared < self.limit]]


class NearestOfSpan:
    """The nearest rows so far of a span of positions: one side of a tile, or all positions.

    Attributes:
        span: The positions whose nearest rows are kept.
        neighbor_squared: ``(num_shells, num_positions, num_neighbors)`` squared distances to the
            nearest neighbors, ascending, infinite where there are fewer.
        neighbor_positions: Positions of the neighbors, -1 where there are fewer.
        unlike_squared: ``(num_shells + num_samples, num_positions)`` squared distances to the
            nearest row with another label, of each shell and then inside each sample.
        unlike_positions: Their positions, -1 where there is none.
        closest_pairs: The closest pairs of each shell; empty if none are wanted.
        precision: The dtype that the products needed, or ``EXACT``.
    """

    def __init__(self, job: SearchJob, span: Span) -> None:
        num_positions = span.stop - span.start
        num_lists = job.num_shells + len(job.samples)
        self.span = span
        shape = (job.num_shells, num_positions, job.num_neighbors)
        self.neighbor_squared = np.full(shape, np.inf)
        self.neighbor_positions = np.full(shape, -1, np.int64)
        self.unlike_squared = np.full((num_lists, num_positions), np.inf)
        self.unlike_positions = np.full(self.unlike_squared.shape, -1, np.int64)
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
        # Views: assigning to them changes this result.
        squared = self.unlike_squared[:, covered]
        positions = self.unlike_positions[:, covered]
        is_tie = part.unlike_squared == squared
        wins_tie = is_tie & (part.unlike_positions < positions)
        is_better = wins_tie | (part.unlike_squared < squared)
        squared[is_better] = part.unlike_squared[is_better]
        positions[is_better] = part.unlike_positions[is_better]
        for pairs, more_pairs in zip(self.closest_pairs, part.closest_pairs, strict=True):
            pairs.merge(more_pairs)
        if part.precision == "float64":  # the wider dtype was needed at least once
            self.precision = part.precision

    def update_neighbors(
        self,
        shell: int,
        rows: slice,
        first_column: int,
        squared_distances: SquaredDistances,
    ) -> None:
        """Merge a block into the neighbors of one shell.

        Args:
            shell: The shell of the block's pairs.
            rows: The block's rows, as an index of this result's positions.
            first_column: Position of the block's first column.
            squared_distances: ``(num_rows, num_columns)``.
        """
        best_squared = self.neighbor_squared[shell, rows]
        best_positions = self.neighbor_positions[shell, rows]
        num_rows, k = best_squared.shape
        limits = best_squared[:, -1]
        dtype = squared_distances.dtype
        is_candidate = squared_distances <= _limits_as(limits, dtype)[:, None]
        has_many = np.count_nonzero(is_candidate) > MANY_CANDIDATES * num_rows * k
        if has_many and k < squared_distances.shape[1]:
            # First blocks of a shell: only the block's own k nearest can enter the table.
            kth_smallest = np.partition(squared_distances, k - 1, axis=1)[:, k - 1]
            limits = np.minimum(limits, kth_smallest)
            is_candidate = squared_distances <= _limits_as(limits, dtype)[:, None]
        active, columns, squared = _pad_chosen_rows(is_candidate, squared_distances)
        if len(active):
            positions = np.where(np.isfinite(squared), columns + first_column, -1)
            best_squared[active], best_positions[active] = merge_nearest(
                best_squared[active], best_positions[active], squared, positions
            )


def merge_nearest(
    squared: FloatArray,
    positions: IntArray,
    more_squared: FloatArray,
    more_positions: IntArray,
) -> tuple[FloatArray, IntArray]:
    """Merge two sets of lists of nearest neighbors.

    Args:
        squared: ``(..., num_neighbors)`` squared distances.
        positions: Their positions.
        more_squared: ``(..., any number)`` further squared distances.
        more_positions: Their positions.

    Returns:
        The ``num_neighbors`` smallest distances, ascending, and their positions. Ties are broken by
        position, so the result does not depend on the order of merging.
    """
    all_squared = np.concatenate([squared, more_squared], axis=-1)
    all_positions = np.concatenate([positions, more_positions], axis=-1)
    num_neighbors = squared.shape[-1]
    order = np.lexsort((all_positions, all_squared), axis=-1)[..., :num_neighbors]
    return (
        np.take_along_axis(all_squared, order, axis=-1),
        np.take_along_axis(all_positions, order, axis=-1),
    )


def update_minima(
    minima: FloatArray,
    positions: IntArray,
    rows: IntArray,
    columns: IntArray,
    squared_distances: SquaredDistances,
) -> None:
    """Lower minima in place where a block has smaller distances.

    Args:
        minima: ``(num_positions,)`` smallest squared distances so far.
        positions: ``(num_positions,)`` positions at that distance.
        rows: ``(num_rows,)`` indices into ``minima`` of the block's rows.
        columns: ``(num_columns,)`` positions of the block's columns.
        squared_distances: ``(num_rows, num_columns)``.
    """
    nearest_column = squared_distances.argmin(axis=1)
    squared = squared_distances[np.arange(len(rows)), nearest_column]
    nearest = columns[nearest_column]
    best = minima[rows]
    wins_tie = (squared == best) & (nearest < positions[rows])
    is_better = wins_tie | (squared < best)
    is_better &= squared < no_pair(squared_distances.dtype)
    minima[rows[is_better]] = squared[is_better]
    positions[rows[is_better]] = nearest[is_better]


def _pad_chosen_rows(
    is_chosen: BoolArray, squared_distances: SquaredDistances
) -> tuple[IntArray, IntArray, FloatArray]:
    """Return the chosen entries of a block row by row, padded to the longest row.

    Returns:
        The rows that have chosen entries, ``(num_active,)``. The entries' columns, 0 for padding,
        and the entries as float64, infinite for padding; both ``(num_active, most)``.
    """
    # np.flatnonzero takes a tenth of the time of np.nonzero on two axes, if it follows the memory.
    if is_chosen.strides[0] >= is_chosen.strides[1]:
        entries = np.flatnonzero(is_chosen)
        rows, columns = np.divmod(entries, is_chosen.shape[1])
    else:
        entries = np.flatnonzero(is_chosen.T)
        columns, rows = np.divmod(entries, is_chosen.shape[0])
        order = np.argsort(rows, kind="stable")
        rows = rows[order]
        columns = columns[order]
    active, first, counts = np.unique(rows, return_index=True, return_counts=True)
    padded_row = np.repeat(np.arange(len(active)), counts)
    padded_column = np.arange(len(rows)) - np.repeat(first, counts)
    longest = counts.max(initial=0)
    padded_columns = np.zeros((len(active), longest), np.int64)
    padded_squared = np.full(padded_columns.shape, np.inf)
    padded_columns[padded_row, padded_column] = columns
    padded_squared[padded_row, padded_column] = squared_distances[rows, columns]
    return active, padded_columns, padded_squared


def add_block(
    job: SearchJob,
    results: list[NearestOfSpan],
    block: TileBlock,
) -> None:
    """Add the distances of a block to the shells of its pairs, for its rows and its columns."""
    sides = [(results[0], block)]
    if block.rows != block.columns:  # a block on the diagonal holds each pair twice already
        sides.append((results[-1], block.transposed()))
    # The sides have different positions, so they can be added at the same time.
    in_threads(lambda side: _add_side(job, *side), sides)


def _add_side(
    job: SearchJob,
    result: NearestOfSpan,
    block: TileBlock,
) -> None:
    """Add the distances from a block's rows to its columns to the result of its rows."""
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
            in_block = row_run.within(block.rows), column_run.within(block.columns)
            squared = block.squared[in_block]
            result.update_neighbors(shell, rows, column_run.start, squared)
            if result.closest_pairs and row_run.start <= column_run.start:
                result.closest_pairs[shell].update(squared, row_run.start, column_run.start)
            if unlike is not None:
                update_minima(
                    result.unlike_squared[shell],
                    result.unlike_positions[shell],
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

    ``unlike`` has the block's squared distances, and the value of :func:`no_pair` where the labels
    are equal.
    """
    for sample_index, members in enumerate(job.samples):
        is_member_column = members[block.columns.positions]
        rows = np.flatnonzero(members[block.rows.positions])
        columns = np.flatnonzero(is_member_column)
        if not len(rows) or not len(columns):
            continue
        inside = unlike[rows]
        if len(columns) > DENSE_FRACTION * len(is_member_column):
            # The maximum with the floor: members keep their distance, other columns become no pair.
            no_pair_value = no_pair(unlike.dtype)
            floor = np.where(is_member_column, 0, no_pair_value).astype(unlike.dtype)
            np.maximum(inside, floor, out=inside)
            columns = np.arange(len(is_member_column))
        else:
            inside = inside[:, columns]
        update_minima(
            result.unlike_squared[job.num_shells + sample_index],
            result.unlike_positions[job.num_shells + sample_index],
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
