"""Exact nearest neighbours, and nearest rows with another label, of all nested train sizes at once.

Three kinds of index occur:

- A *source row* is an index of the rows of the source.
- A *position* is an index of the rows that are measured, in the same order. Duplicates have none.
- A *shell* is the index of a train size, ascending. The shell of a pair is that of the smallest
  size that contains it.

Train subsets are prefixes: size n means positions ``0 .. n-1``. A pair ``(i, j)`` belongs to every
size above ``max(i, j)``, but it is added only once, to its shell. The table of a size is the merge
of the shells up to it.

Distances are symmetric, so each block is computed once and used for its rows and its columns.
Blocks are merged by "keep the k smallest" and "keep the minimum". Ties go to the smaller position,
so the result does not depend on how blocks are divided over workers.

Rows of bytes are measured in integers. One large block stays in memory; the other rows are read in
small pieces. The next piece is read while one is multiplied. Other dtypes use square blocks of
floats.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from search_spaces.errors import DataError
from tasks.measures.arrays import AnyArray, BoolArray, Bytes, FloatArray, IntArray
from tasks.measures.distances import (
    BlockSource,
    ByteRows,
    Precision,
    as_bytes,
    as_source,
    estimate_centre,
    expand,
    flatten,
    gram,
    is_byte_dtype,
    squared_distances,
    squared_norms,
)
from tasks.measures.products import check_device, choose_product, in_threads
from tasks.remote import Executor, InlineExecutor

BLOCK_ROWS = 2048
"""Rows of a block. At this size the matrix product dominates the run time, and a worker needs about
200 MB."""
TILE_ROWS = 16384
"""Rows of one side of a tile, at most, so that what a task returns stays small."""
TILE_ROWS_INLINE = 1 << 18
"""The same if there is one worker, which returns everything in any case."""
TILES_PER_WORKER = 5
"""Tiles per worker, at least, for load balancing."""
SPREAD_WORK = 1e11
"""Multiply-adds per worker, about a second, above which sending rows to other nodes pays."""
EXACT = "exact integer"
"""The ``precision`` of distances that were computed in integers."""
PIECE_ROWS = 256
"""Rows of a streamed piece of bytes, at most. The diagonal then costs little more than half, and a
block of distances stays in the cache while it is added to the results."""
PIECE_BYTES = 64 << 20
"""Bytes of a streamed piece, at most. Two pieces are in memory."""
HELD_BYTES = 320 << 20
"""Bytes of the block that is held while pieces stream past: 2,048 rows of 3 x 224 x 224."""
DENSE_FRACTION = 0.25
"""If a sample has more than this share of a block's columns, mask the other columns instead of
copying those of the sample. Masking is faster then."""
PAIRS_PER_SAMPLE = 1024
"""Closest pairs to know of an average sample. If 1 % of the labels differ from the rest, the chance
that 1,024 random pairs all have equal labels is about 1e-9."""
MAX_CLOSEST_PAIRS = 1 << 20
"""Closest pairs to keep per shell, at most; they take 16 MiB."""

Block = AnyArray
"""Squared distances, float32, float64, int32 or int64."""


class Span(NamedTuple):
    """Positions ``start`` to ``stop``."""

    start: int
    stop: int

    @property
    def positions(self) -> slice:
        """The span as an index of arrays of all positions."""
        return slice(self.start, self.stop)

    def within(self, outer: Span) -> slice:
        """The span as an index of arrays of the positions of ``outer``."""
        return slice(self.start - outer.start, self.stop - outer.start)


def no_pair(dtype: np.dtype[Any]) -> float | int:
    """Return the value that marks "no pair" in a block: above every squared distance of its dtype.

    The values for integers are exact in float64, as all smaller integers are.
    """
    if dtype.kind == "f":
        return np.inf
    if dtype == np.int32:
        return 2**31 - 1
    return 2**47


def _limits_as(limits: FloatArray, dtype: np.dtype[Any]) -> Block:
    """Return limits in the dtype of a block, below "no pair"."""
    largest = no_pair(dtype) - 1
    if dtype.kind == "f":
        largest = float(np.finfo(dtype).max)
    return np.minimum(limits, largest).astype(dtype)


PAIR = np.dtype(
    [
        ("squared", np.float64),
        ("first", np.int32),
        ("second", np.int32),
    ]
)
"""Dtype of a pair of positions and its squared distance."""


class ClosestPairs:
    """All pairs with a squared distance below a limit, which falls as pairs are added.

    After `prune` the limit is the ``capacity + 1``-th smallest squared distance of all pairs that
    were added. So it does not depend on the order of adding and merging.
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
        block: Block,
        first_row: int,
        first_column: int,
    ) -> None:
        """Add the pairs of a block.

        Only pairs with the smaller position first are added: a block on the diagonal has both.

        Args:
            block: ``(num_rows, num_columns)`` squared distances.
            first_row: Position of the block's first row.
            first_column: Position of the block's first column.
        """
        limit = self.limit
        num_enough = 2 * self.capacity  # a block on the diagonal has each pair twice
        if np.isinf(limit) and block.size > num_enough:
            # First block of a shell: only its own closest pairs can be among the closest.
            limit = float(np.partition(block, num_enough, axis=None)[num_enough])
        # Pairs at the limit are added: `prune` needs the (capacity + 1)-th pair to set its limit.
        entries = np.flatnonzero(block <= _limits_as(np.array(limit), block.dtype))
        rows, columns = np.divmod(entries, block.shape[1])
        pairs = np.empty(len(rows), PAIR)
        pairs["squared"] = block[rows, columns]
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
        """Lower the limit, so that at most ``capacity`` pairs remain."""
        pairs = self.pairs
        squared = pairs["squared"]
        if len(squared) > self.capacity:
            limit = np.partition(squared, self.capacity)[self.capacity]
            self.limit = min(self.limit, float(limit))
        # Drop all pairs at the limit: which of several equal ones fit would depend on the order.
        self._parts = [pairs[squared < self.limit]]


class TileResult:
    """The nearest rows found so far of the positions of one side of a tile.

    Attributes:
        span: The positions.
        squared: ``(num_shells, num_positions, num_neighbors)`` squared distances to the nearest
            neighbours, ascending, infinite where there are fewer.
        ids: Their positions, -1 where there are fewer.
        unlike_squared: ``(num_shells + num_samples, num_positions)`` squared distances to the
            nearest row with another label, of each shell and then inside each sample.
        unlike_ids: Their positions, -1 where there is none.
        closest_pairs: The closest pairs of each shell; empty if none are wanted.
        precision: The dtype that the products needed, or ``EXACT``.
    """

    def __init__(self, job: SearchJob, span: Span) -> None:
        num_positions = span.stop - span.start
        num_lists = job.num_shells + len(job.samples)
        self.span = span
        self.squared = np.full((job.num_shells, num_positions, job.num_neighbors), np.inf)
        self.ids = np.full(self.squared.shape, -1, np.int64)
        self.unlike_squared = np.full((num_lists, num_positions), np.inf)
        self.unlike_ids = np.full(self.unlike_squared.shape, -1, np.int64)
        self.closest_pairs = [ClosestPairs(capacity) for capacity in job.pair_capacities]
        self.precision = EXACT if job.is_exact else job.precision.dtype

    def merge(self, part: TileResult) -> None:
        """Merge a result for a part of the same positions into this one."""
        positions = part.span.within(self.span)
        self.squared[:, positions], self.ids[:, positions] = merge_nearest(
            self.squared[:, positions], self.ids[:, positions], part.squared, part.ids
        )
        # Views: assigning to them changes this result.
        squared = self.unlike_squared[:, positions]
        ids = self.unlike_ids[:, positions]
        is_tie = part.unlike_squared == squared
        wins_tie = is_tie & (part.unlike_ids < ids)
        is_better = wins_tie | (part.unlike_squared < squared)
        squared[is_better] = part.unlike_squared[is_better]
        ids[is_better] = part.unlike_ids[is_better]
        for pairs, more_pairs in zip(self.closest_pairs, part.closest_pairs, strict=True):
            pairs.merge(more_pairs)
        if part.precision == "float64":  # the wider dtype was needed at least once
            self.precision = part.precision

    def update_neighbors(
        self,
        shell: int,
        rows: slice,
        first_column: int,
        block: Block,
    ) -> None:
        """Merge a block of squared distances into the neighbours of one shell.

        Args:
            shell: The shell of the block's pairs.
            rows: The block's rows, as an index of this result's positions.
            first_column: Position of the block's first column.
            block: ``(num_rows, num_columns)`` squared distances.
        """
        best_squared = self.squared[shell, rows]
        best_ids = self.ids[shell, rows]
        num_rows, k = best_squared.shape
        limits = best_squared[:, -1]
        is_candidate = block <= _limits_as(limits, block.dtype)[:, None]
        has_many = np.count_nonzero(is_candidate) > 4 * num_rows * k
        if has_many and k < block.shape[1]:
            # First blocks of a shell: only the block's own k nearest can enter the table.
            kth_smallest = np.partition(block, k - 1, axis=1)[:, k - 1]
            limits = np.minimum(limits, kth_smallest)
            is_candidate = block <= _limits_as(limits, block.dtype)[:, None]
        active, columns, squared = _by_row(is_candidate, block)
        if len(active):
            ids = np.where(np.isfinite(squared), columns + first_column, -1)
            best_squared[active], best_ids[active] = merge_nearest(
                best_squared[active], best_ids[active], squared, ids
            )


def merge_nearest(
    squared: FloatArray,
    ids: IntArray,
    more_squared: FloatArray,
    more_ids: IntArray,
) -> tuple[FloatArray, IntArray]:
    """Merge two sets of lists of nearest neighbours.

    Args:
        squared: ``(..., num_neighbors)`` squared distances.
        ids: Their positions.
        more_squared: ``(..., any number)`` further squared distances.
        more_ids: Their positions.

    Returns:
        The ``num_neighbors`` smallest distances, ascending, and their positions. Ties are broken by
        position, so the result does not depend on the order of merging.
    """
    all_squared = np.concatenate([squared, more_squared], axis=-1)
    all_ids = np.concatenate([ids, more_ids], axis=-1)
    num_neighbors = squared.shape[-1]
    order = np.lexsort((all_ids, all_squared), axis=-1)[..., :num_neighbors]
    return (
        np.take_along_axis(all_squared, order, axis=-1),
        np.take_along_axis(all_ids, order, axis=-1),
    )


def update_minima(
    minima: FloatArray,
    ids: IntArray,
    rows: IntArray,
    columns: IntArray,
    block: Block,
) -> None:
    """Lower minima in place where a block has smaller distances.

    Args:
        minima: ``(num_positions,)`` smallest squared distances so far.
        ids: ``(num_positions,)`` positions at that distance.
        rows: ``(num_rows,)`` entries of ``minima`` that the block's rows belong to.
        columns: ``(num_columns,)`` positions of the block's columns.
        block: ``(num_rows, num_columns)`` squared distances.
    """
    nearest_column = block.argmin(axis=1)
    squared = block[np.arange(len(block)), nearest_column]
    nearest = columns[nearest_column]
    best = minima[rows]
    wins_tie = (squared == best) & (nearest < ids[rows])
    is_better = wins_tie | (squared < best)
    is_better &= squared < no_pair(block.dtype)
    minima[rows[is_better]] = squared[is_better]
    ids[rows[is_better]] = nearest[is_better]


def _by_row(is_chosen: BoolArray, block: Block) -> tuple[IntArray, IntArray, FloatArray]:
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
    padded_squared[padded_row, padded_column] = block[rows, columns]
    return active, padded_columns, padded_squared


@dataclass(frozen=True)
class SearchJob:
    """Everything a task needs besides its tile. Shared with all workers once.

    Attributes:
        source: Where rows are read.
        source_rows: ``(num_positions,)`` source row of every position, ascending.
        label_codes: ``(num_positions,)`` numbers of labels, or None if only neighbours are wanted.
        shells: ``(num_positions,)`` shell of the smallest train size that holds the position.
        samples: ``(num_samples, num_positions)`` masks of samples in which the nearest row with
            another label is wanted too.
        centre: ``(num_features,)`` subtracted from rows of floats.
        num_shells: Number of train sizes.
        num_neighbors: Neighbours per position.
        precision: How products of floats are computed.
        block_rows: Rows of a block.
        work: Multiply-adds of each worker in all.
        pair_capacities: Closest pairs to keep, per shell; empty for none.
        byte_dtype: Dtype of rows of bytes. None if rows are measured as floats.
    """

    source: BlockSource
    source_rows: IntArray
    label_codes: IntArray | None
    shells: IntArray
    samples: BoolArray
    centre: FloatArray
    num_shells: int
    num_neighbors: int
    precision: Precision
    block_rows: int
    work: float
    pair_capacities: tuple[int, ...] = ()
    byte_dtype: np.dtype[Any] | None = None

    @property
    def is_exact(self) -> bool:
        """Whether rows are bytes, which are measured in integers."""
        return self.byte_dtype is not None

    def read(self, span: Span) -> AnyArray:
        """Return the rows of a span, ``(num_positions, num_features)``.

        Raises:
            DataError: If rows were bytes at first and have another dtype here.
        """
        source_rows = self.source_rows[span.positions]
        first = int(source_rows[0])
        block = self.source.read(first, int(source_rows[-1]) + 1)
        if self.is_exact and block.dtype != self.byte_dtype:
            raise DataError(
                "All rows must be of one type",
                f"{self.byte_dtype} in row 0, {block.dtype} from row {first} on",
                "convert them to one",
            )
        if len(block) > len(source_rows):  # duplicates in between were left out
            block = block[source_rows - first]
        return flatten(block)

    def stream(
        self, spans: Iterator[Span], pool: ThreadPoolExecutor
    ) -> Iterator[tuple[Span, Bytes]]:
        """Yield span after span with its rows. The next span is read in the meantime."""
        current: tuple[Span, Future[Bytes]] | None = None
        for span in spans:
            following = span, pool.submit(self.read, span)
            if current is not None:
                yield current[0], current[1].result()
            current = following
        if current is not None:
            yield current[0], current[1].result()


def search_tile(
    job: SearchJob,
    rows: Span,
    columns: Span,
) -> list[TileResult]:
    """Compute all blocks of one tile.

    Returns:
        The result of its rows and that of its columns; one result for a tile on the diagonal.
    """
    check_device(job.precision.device)
    sides = [rows] if rows == columns else [rows, columns]
    results = [TileResult(job, span) for span in sides]
    blocks = _blocks_of_bytes if job.is_exact else _blocks_of_floats
    for block in blocks(job, rows, columns):
        for result in results:
            result.precision = block.precision
        if block.rows == block.columns:
            np.fill_diagonal(block.squared, no_pair(block.squared.dtype))
        _add_block(job, results, block)
    return results


class TileBlock(NamedTuple):
    """Squared distances from positions to positions, and the dtype they have needed so far."""

    rows: Span
    columns: Span
    squared: Block
    precision: str

    def transposed(self) -> TileBlock:
        """Return the same distances from columns to rows."""
        return TileBlock(self.columns, self.rows, self.squared.T, self.precision)


def _blocks_of_floats(
    job: SearchJob,
    rows: Span,
    columns: Span,
) -> Iterator[TileBlock]:
    """Yield a tile of floats in square blocks; of a tile on the diagonal, the upper triangle.

    From the first block on that needs a wider dtype, all blocks are computed in that dtype.
    """
    precision = job.precision
    for row_span in _spans(rows, job.block_rows):
        a = job.read(row_span)
        first_column = max(row_span.start, columns.start)  # nothing below the diagonal
        for column_span in _spans(Span(first_column, columns.stop), job.block_rows):
            b = None if row_span == column_span else job.read(column_span)
            squared, needed = squared_distances(a, b, job.centre, precision)
            precision = replace(precision, dtype=needed)
            yield TileBlock(row_span, column_span, squared, needed)


def _blocks_of_bytes(
    job: SearchJob,
    rows: Span,
    columns: Span,
) -> Iterator[TileBlock]:
    """Yield a tile of bytes: each held block of rows against the pieces of the columns.

    Of a tile on the diagonal, the upper triangle is computed: each held block against itself and
    the columns after it.
    """
    num_features = int(np.prod(job.source.row_shape))
    piece_rows = min(PIECE_ROWS, job.block_rows, max(PIECE_BYTES // num_features, 1))
    held_rows = min(job.block_rows, max(HELD_BYTES // num_features, 1))
    held_rows = max(held_rows // piece_rows, 1) * piece_rows
    product = choose_product(job.work, job.precision.device)
    # Pieces pass once for every held block, so their norms are kept.
    norms: dict[Span, IntArray] = {}
    with ThreadPoolExecutor(1) as pool:
        for held_span in _spans(rows, held_rows):
            a = job.read(held_span)
            later_columns = columns
            if rows == columns:
                later_columns = Span(held_span.stop, columns.stop)
                products = gram(a, a, product)
                norms_a: IntArray = products.diagonal().astype(np.int64)
                yield from _blocks_within(products, norms_a, held_span, piece_rows)
            else:
                norms_a = squared_norms(a, product)
            for piece, b in job.stream(_spans(later_columns, piece_rows), pool):
                if piece not in norms:
                    norms[piece] = squared_norms(b, product)
                squared = expand(gram(a, b, product), norms_a, norms[piece])
                yield TileBlock(held_span, piece, squared, EXACT)


def _blocks_within(
    products: IntArray,
    norms: IntArray,
    held_span: Span,
    piece_rows: int,
) -> Iterator[TileBlock]:
    """Yield the distances of the held rows to each other.

    Args:
        products: ``(num_held, num_held)``, guaranteed on and above the diagonal only.
        norms: ``(num_held,)`` squared norms.
        held_span: The held positions.
        piece_rows: Columns of a block.
    """
    for piece in _spans(held_span, piece_rows):
        inside = piece.within(held_span)
        if piece.start > held_span.start:
            earlier = Span(held_span.start, piece.start)
            above = earlier.within(held_span)
            squared = expand(products[above, inside], norms[above], norms[inside])
            yield TileBlock(earlier, piece, squared, EXACT)
        symmetric = np.triu(products[inside, inside])
        symmetric += np.triu(symmetric, 1).T
        squared = expand(symmetric, norms[inside], norms[inside])
        yield TileBlock(piece, piece, squared, EXACT)


def _add_block(
    job: SearchJob,
    results: list[TileResult],
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
    result: TileResult,
    block: TileBlock,
) -> None:
    """Add the distances from a block's rows to its columns to the result of its rows."""
    unlike = None
    if job.label_codes is not None:
        row_labels = job.label_codes[block.rows.positions]
        column_labels = job.label_codes[block.columns.positions]
        is_unlike = row_labels[:, None] != column_labels
        sentinel = block.squared.dtype.type(no_pair(block.squared.dtype))
        unlike = np.where(is_unlike, block.squared, sentinel)
        _add_samples(job, result, block, unlike)
    for row_run in _runs_of_one_shell(job.shells, block.rows):
        rows = row_run.within(result.span)
        for column_run in _runs_of_one_shell(job.shells, block.columns):
            row_shell = job.shells[row_run.start]
            column_shell = job.shells[column_run.start]
            shell = int(max(row_shell, column_shell))
            in_block = row_run.within(block.rows), column_run.within(block.columns)
            squared = block.squared[in_block]
            result.update_neighbors(shell, rows, column_run.start, squared)
            if result.closest_pairs and row_run.start <= column_run.start:
                result.closest_pairs[shell].update(squared, row_run.start, column_run.start)
            if unlike is not None:
                update_minima(
                    result.unlike_squared[shell],
                    result.unlike_ids[shell],
                    np.arange(rows.start, rows.stop),
                    np.arange(*column_run),
                    unlike[in_block],
                )


def _add_samples(
    job: SearchJob,
    result: TileResult,
    block: TileBlock,
    unlike: Block,
) -> None:
    """Add the nearest rows with another label inside each sample.

    ``unlike`` has the block's squared distances, and "no pair" where the labels are equal.
    """
    for sample_index, members in enumerate(job.samples):
        is_column = members[block.columns.positions]
        rows = np.flatnonzero(members[block.rows.positions])
        columns = np.flatnonzero(is_column)
        if not len(rows) or not len(columns):
            continue
        inside = unlike[rows]
        if len(columns) > DENSE_FRACTION * len(is_column):
            # The maximum with 0 changes nothing; that with the sentinel leaves "no pair".
            sentinel = no_pair(unlike.dtype)
            floor = np.where(is_column, 0, sentinel).astype(unlike.dtype)
            np.maximum(inside, floor, out=inside)
            columns = np.arange(len(is_column))
        else:
            inside = inside[:, columns]
        update_minima(
            result.unlike_squared[job.num_shells + sample_index],
            result.unlike_ids[job.num_shells + sample_index],
            rows + block.rows.start - result.span.start,
            columns + block.columns.start,
            inside,
        )


def _spans(span: Span, step: int) -> Iterator[Span]:
    """Cut a span into parts of ``step`` positions."""
    for start in range(span.start, span.stop, step):
        yield Span(start, min(start + step, span.stop))


def _runs_of_one_shell(shells: IntArray, span: Span) -> list[Span]:
    """Cut a span where the shell changes."""
    steps = np.diff(shells[span.positions])
    changes = np.flatnonzero(steps) + span.start + 1
    edges = [span.start, *changes.tolist(), span.stop]
    return [Span(start, stop) for start, stop in pairwise(edges)]


class PairList(NamedTuple):
    """The closest pairs of a train size: ``(num_pairs,)`` distances, ascending, and positions.

    Every pair of the size that is not listed is at least as far as the last listed pair.
    """

    distances: FloatArray
    first: IntArray
    second: IntArray


@dataclass(frozen=True)
class NeighborTable:
    """Neighbours of the first ``num_points`` positions among themselves.

    Attributes:
        distances: ``(num_points, num_neighbors)`` L2 distances, ascending, infinite where there are
            fewer neighbours.
        indices: Positions of the neighbours, -1 where there are fewer.
        unlike_distances: ``(num_points,)`` distances to the nearest row with another label.
        unlike_indices: ``(num_points,)`` positions of those rows, -1 where there is none.
        closest_pairs: The closest pairs, if samples were searched.
    """

    distances: FloatArray
    indices: IntArray
    unlike_distances: FloatArray
    unlike_indices: IntArray
    closest_pairs: PairList | None = None

    @property
    def num_points(self) -> int:
        """Number of rows."""
        return len(self.distances)


@dataclass(frozen=True)
class NeighborSearch:
    """The result of one pass over all pairs.

    Attributes:
        tables: One per train size, ascending.
        sample_unlike_distances: ``(num_samples, num_positions)`` distances to the nearest row with
            another label inside each sample, infinite outside.
        sample_unlike_indices: Positions of those rows, -1 outside.
        precision: The dtype that the products needed at least once, or ``EXACT``.
    """

    tables: list[NeighborTable]
    sample_unlike_distances: FloatArray
    sample_unlike_indices: IntArray
    precision: str


def nested_neighbors(
    rows: BlockSource | npt.ArrayLike,
    labels: IntArray | None,
    train_sizes: Sequence[int],
    num_neighbors: int,
    *,
    executor: Executor | None = None,
    precision: Precision | None = None,
    block_rows: int = BLOCK_ROWS,
    keep: IntArray | None = None,
    samples: BoolArray | None = None,
) -> NeighborSearch:
    """Find the neighbours of every row within every prefix, exactly.

    Distances of rows of bytes are roots of exact integers. Others are off by at most 1e-5 in
    float32 and 1e-7 in float64, relative.

    Args:
        rows: ``(num_rows, ...)`` array or source, in nested order.
        labels: ``(num_rows,)`` integers, or None to skip the nearest rows with another label.
        train_sizes: Ascending prefix lengths, counted in positions.
        num_neighbors: Neighbours per row, at least 1.
        executor: Where blocks are computed; None for this process.
        precision: How products are computed.
        block_rows: Rows per block. Memory grows with its square.
        keep: Source rows to measure, ascending; None for all. All indices in the result are
            positions, that is, they count these rows.
        samples: ``(num_samples, num_positions)`` masks, to find the nearest row with another label
            inside each sample too.

    Raises:
        DataError: If the rows of a source are bytes at first and have another dtype later.
    """
    executor = executor or InlineExecutor()
    precision = precision or Precision()
    source = as_source(rows)
    if precision.exact_bytes:
        source = as_bytes(source)
    source_rows = np.arange(source.num_rows) if keep is None else np.asarray(keep)
    source_rows = source_rows[: train_sizes[-1]]
    num_positions = len(source_rows)
    dtype = source.read(0, 1).dtype
    is_exact = precision.exact_bytes and is_byte_dtype(dtype)
    if samples is None:
        samples = np.zeros((0, num_positions), bool)
    values_per_row = float(np.prod(source.row_shape))
    positions = np.arange(num_positions)
    job = SearchJob(
        source=source,
        source_rows=source_rows,
        label_codes=None if labels is None else _label_codes(labels)[source_rows],
        shells=np.searchsorted(np.asarray(train_sizes), positions, side="right"),
        samples=samples[:, :num_positions],
        centre=np.zeros(0) if is_exact else estimate_centre(source),
        num_shells=len(train_sizes),
        num_neighbors=num_neighbors,
        precision=precision,
        block_rows=block_rows,
        work=num_positions**2 / 2 * values_per_row / executor.num_workers,
        pair_capacities=_pair_capacities(samples, train_sizes),
        byte_dtype=dtype if is_exact else None,
    )
    total = _search_all_tiles(job, executor)
    unit = source.unit if isinstance(source, ByteRows) else 1.0
    num_shells = job.num_shells
    return NeighborSearch(
        tables=_tables(total, train_sizes, unit),
        sample_unlike_distances=np.sqrt(total.unlike_squared[num_shells:]) * unit,
        sample_unlike_indices=total.unlike_ids[num_shells:],
        precision=total.precision,
    )


def _label_codes(labels: IntArray) -> IntArray:
    """Return labels as numbers of the narrowest dtype: they are compared for every pair."""
    classes, numbered = np.unique(labels, return_inverse=True)
    return numbered.astype(np.min_scalar_type(len(classes)))


def _pair_capacities(samples: BoolArray, train_sizes: Sequence[int]) -> tuple[int, ...]:
    """Return how many closest pairs of each shell to keep, so that samples hold enough of them.

    A sample of M among n images holds a pair with probability (M/n)². So (n/M)² times as many pairs
    are kept as an average sample needs.
    """
    if not len(samples):
        return ()
    sample_size = int(samples.sum(axis=1).max())
    capacities = []
    for size in train_sizes:
        ratio = max(1.0, size / sample_size)
        capacities.append(min(MAX_CLOSEST_PAIRS, int(PAIRS_PER_SAMPLE * ratio**2)))
    return tuple(capacities)


def _search_all_tiles(job: SearchJob, executor: Executor) -> TileResult:
    """Search all tiles and merge their results."""
    num_positions = len(job.source_rows)
    total: TileResult
    shared = executor.share(job)
    tiles = plan_tiles(num_positions, executor.num_workers)
    arguments = [(shared, rows, columns) for rows, columns in tiles]
    answers = executor.map_unordered(search_tile, arguments, spread=job.work > SPREAD_WORK)
    if len(tiles) == 1:
        # One tile is on the diagonal, so it has one result, of all positions.
        _, (total,) = next(answers)
        return total
    total = TileResult(job, Span(0, num_positions))
    for _, results in answers:
        for result in results:
            total.merge(result)
    return total


def plan_tiles(num_rows: int, num_workers: int) -> list[tuple[Span, Span]]:
    """Cut the upper triangle of pairs into tiles.

    Returns:
        Rows and columns of every tile. Tiles off the diagonal cost twice as much and come first, so
        that short ones fill the gaps at the end.
    """
    if num_workers == 1:
        num_sides = math.ceil(num_rows / TILE_ROWS_INLINE)
    else:
        least_sides = math.ceil(math.sqrt(2 * TILES_PER_WORKER * num_workers))
        num_sides = max(math.ceil(num_rows / TILE_ROWS), least_sides)
    num_edges = min(num_sides, max(num_rows, 1)) + 1
    edges = np.unique(np.linspace(0, num_rows, num_edges).astype(int))
    spans = [Span(start, stop) for start, stop in pairwise(edges.tolist())]
    on_diagonal = [(span, span) for span in spans]
    return [*combinations(spans, 2), *on_diagonal]


def _tables(
    total: TileResult,
    train_sizes: Sequence[int],
    unit: float,
) -> list[NeighborTable]:
    """Merge shells upwards: the table of a size holds the nearest of all shells up to it."""
    squared = total.squared[0]
    ids = total.ids[0]
    unlike_squared = total.unlike_squared[0]
    unlike_ids = total.unlike_ids[0]
    tables = []
    for shell, size in enumerate(train_sizes):
        if shell > 0:
            squared, ids = merge_nearest(squared, ids, total.squared[shell], total.ids[shell])
            # A tie goes to the earlier shell, whose positions are smaller.
            is_better = total.unlike_squared[shell] < unlike_squared
            unlike_squared = np.where(is_better, total.unlike_squared[shell], unlike_squared)
            unlike_ids = np.where(is_better, total.unlike_ids[shell], unlike_ids)
        tables.append(
            NeighborTable(
                distances=np.sqrt(squared[:size]) * unit,
                indices=ids[:size],
                unlike_distances=np.sqrt(unlike_squared[:size]) * unit,
                unlike_indices=unlike_ids[:size],
                closest_pairs=_pair_list(total.closest_pairs[: shell + 1], unit),
            )
        )
    return tables


def _pair_list(shells: Sequence[ClosestPairs], unit: float) -> PairList | None:
    """Return the closest pairs of the shells of one size; None if none were wanted."""
    if not shells:
        return None
    total = ClosestPairs(sum(shell.capacity for shell in shells))
    for shell in shells:
        shell.prune()
        total.merge(shell)
    order = np.argsort(total.pairs["squared"])
    pairs = total.pairs[order]
    distances = np.sqrt(pairs["squared"]) * unit
    return PairList(distances, pairs["first"], pairs["second"])
