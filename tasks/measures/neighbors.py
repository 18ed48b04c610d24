"""Exact nearest neighbours, and nearest rows with another label, for all nested train sizes in one
pass.

Train subsets are prefixes of one order of rows: size n means rows ``0 .. n-1``. A pair ``(i, j)``
belongs to every size above ``max(i, j)``, so it is filed once, under the smallest train size that
holds both (its *shell*); the table of a size is the merge of the shells up to it. Each block of
pairs is computed once and serves both sides. What it finds is merged by "keep the k smallest" and
"keep the minimum", of equal distances the one to the earlier row, so any division of the blocks
over workers gives the same tables.

Rows of bytes go the exact way: one large block of rows is held, and columns stream past it in
pieces, the next piece being read while one is multiplied. All else goes the float way, in square
blocks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from search_spaces.errors import DataError
from tasks.measures.distances import (
    BlockSource,
    ByteRows,
    FloatArray,
    IntArray,
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
from tasks.measures.products import Bytes, check_device, choose_product, in_threads
from tasks.remote import Executor, InlineExecutor

# The product of two such blocks hides all else, and the working set stays near 200 MB per worker.
BLOCK_ROWS = 2048
# Rows of one side of a tile, so that what a task sends back stays small; more for one worker.
TILE_ROWS, TILE_ROWS_OF_ONE = 16384, 1 << 18
# Tiles per worker at least, so that the last ones to finish keep nobody waiting for long.
TILES_PER_WORKER = 5
# Multiply-adds per worker from which it is worth sending rows to other nodes: a second or so.
SPREAD_WORK = 1e11
# What ``precision`` says of distances that were formed in whole numbers.
EXACT = "exact integer"
# Rows of bytes that pass by a block at a time, so that the diagonal costs little more than half and
# a block of distances stays in the cache while it is filed; and not more bytes than this, of which
# two pieces are held.
PIECE_ROWS, PIECE_BYTES = 256, 64 << 20
# Bytes held while others pass by.
HELD_BYTES = 320 << 20  # 2,048 rows of 3 x 224 x 224
# Share of a block's columns that are in a sample from which on the others are masked.
DENSE_SHARE = 0.25

Block = npt.NDArray[Any]  # squared distances, float32, float64, int32 or int64


def far(dtype: np.dtype[Any]) -> float | int:
    """What stands for "no such pair" in a block: above every squared distance of its dtype."""
    if dtype.kind == "f":
        return np.inf
    return (
        2**31 - 1 if dtype == np.int32 else 2**47
    )  # both exact in float64, as the numbers below them are


class Partial:
    """The best found so far for positions ``start`` to ``stop``: neighbours by shell,
    ``squared[shell]``, and nearest opposites by shell and, after these, by sample.
    """

    def __init__(
        self,
        start: int,
        stop: int,
        *,
        num_shells: int,
        num_neighbors: int,
        num_subsets: int,
        dtype: str,
    ) -> None:
        near, opposite = (
            (num_shells, stop - start, num_neighbors),
            (num_shells + num_subsets, stop - start),
        )
        self.start, self.stop, self.precision = start, stop, dtype
        self.squared, self.ids = np.full(near, np.inf), np.full(near, -1, np.int64)
        self.opposite, self.opposite_ids = (
            np.full(opposite, np.inf),
            np.full(opposite, -1, np.int64),
        )

    def merge(self, other: Partial) -> None:
        """Take over what ``other``, which covers a part of the same positions, found."""
        part = slice(other.start - self.start, other.stop - self.start)
        squared = np.concatenate([self.squared[:, part], other.squared], axis=-1)
        ids = np.concatenate([self.ids[:, part], other.ids], axis=-1)
        self.squared[:, part], self.ids[:, part] = smallest(squared, ids, self.squared.shape[-1])
        mine, mine_ids = self.opposite[:, part], self.opposite_ids[:, part]
        better = (other.opposite < mine) | (
            (other.opposite == mine) & (other.opposite_ids < mine_ids)
        )
        mine[better], mine_ids[better] = other.opposite[better], other.opposite_ids[better]
        self.precision = max(self.precision, other.precision)  # "float64" > "float32"

    def offer(self, shell: int, rows: slice, column_start: int, squared: Block) -> None:
        """Consider the distances from ``rows`` (local) to the positions from ``column_start``
        on.
        """
        kept, kept_ids = self.squared[shell, rows], self.ids[shell, rows]
        k = kept.shape[1]
        limits = kept[:, -1]
        near = squared <= _as_entries(limits, squared.dtype)
        if np.count_nonzero(near) > 4 * near.shape[0] * k and k < near.shape[1]:
            # The first blocks of a shell: nothing beyond the block's own k nearest can stay.
            limits = np.minimum(limits, np.partition(squared, k - 1, axis=1)[:, k - 1])
            near = squared <= _as_entries(limits, squared.dtype)
        active, columns, values = _by_row(near, squared)
        if not len(active):
            return
        ids = np.where(np.isfinite(values), columns + column_start, -1)
        kept[active], kept_ids[active] = smallest(
            np.concatenate([kept[active], values], axis=1),
            np.concatenate([kept_ids[active], ids], axis=1),
            k,
        )


def smallest(squared: FloatArray, ids: IntArray, k: int) -> tuple[FloatArray, IntArray]:
    """The ``k`` smallest along the last axis, ascending, ties by id so that the order of merging is
    moot.
    """
    order = np.lexsort((ids, squared), axis=-1)[..., :k]
    return np.take_along_axis(squared, order, axis=-1), np.take_along_axis(ids, order, axis=-1)


def improve(
    best: FloatArray, ids: IntArray, rows: IntArray, columns: IntArray, squared: Block
) -> None:
    """Lower ``best[rows]`` to smaller row minima of ``squared``, and note their columns."""
    found = squared.argmin(axis=1)
    nearest, found = squared[np.arange(len(found)), found], columns[found]
    better = (nearest < best[rows]) | ((nearest == best[rows]) & (found < ids[rows]))
    better &= nearest < far(squared.dtype)
    best[rows[better]] = nearest[better]
    ids[rows[better]] = found[better]


def _as_entries(limits: FloatArray, dtype: np.dtype[Any]) -> Block:
    """Limits of a table as a column to compare a block with, below "no such pair"."""
    most = np.finfo(dtype).max if dtype.kind == "f" else far(dtype) - 1
    return np.minimum(limits, most).astype(dtype)[:, None]


def _by_row(chosen: npt.NDArray[np.bool_], squared: Block) -> tuple[IntArray, IntArray, FloatArray]:
    """Chosen entries as ``(rows that have some, columns, values)``, padded with infinity to equal
    lengths.
    """
    if (
        chosen.strides[0] >= chosen.strides[1]
    ):  # flatnonzero takes a tenth of the time of nonzero on two axes
        rows, columns = np.divmod(np.flatnonzero(chosen), chosen.shape[1])
    else:
        columns, rows = np.divmod(np.flatnonzero(chosen.T), chosen.shape[0])
        order = np.argsort(rows, kind="stable")
        rows, columns = rows[order], columns[order]
    active, first, counts = np.unique(rows, return_index=True, return_counts=True)
    place = np.arange(len(rows)) - np.repeat(first, counts)
    line = np.repeat(np.arange(len(active)), counts)
    padded_columns = np.zeros((len(active), counts.max(initial=0)), np.int64)
    padded = np.full(padded_columns.shape, np.inf)
    padded_columns[line, place] = columns
    padded[line, place] = squared[rows, columns]
    return active, padded_columns, padded


Span = tuple[int, int]


@dataclass(frozen=True)
class Job:
    """What every block task needs to know besides its rows; shared once.

    Attributes:
        rows: Source row behind each position, ascending; dropped duplicates are absent.
        labels: ``(num_positions,)`` label codes, or None when only neighbours are wanted.
        shells: ``(num_positions,)`` index of the smallest train size that holds the position.
        subsets: ``(num_subsets, num_positions)`` bool, samples whose nearest opposites are wanted
            too.
        work: Multiply-adds that each worker does in all.
        byte_dtype: Type of rows that are bytes, to be measured in whole numbers; None for all
            others.
    """

    source: BlockSource
    rows: IntArray
    labels: IntArray | None
    shells: IntArray
    subsets: npt.NDArray[np.bool_]
    centre: FloatArray
    num_shells: int
    num_neighbors: int
    precision: Precision
    block_rows: int
    work: float
    byte_dtype: np.dtype[Any] | None = None

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Rows at positions ``start`` to ``stop``, flattened to ``(stop - start,
        num_features)``.
        """
        wanted = self.rows[start:stop]
        first = int(wanted[0])
        block = self.source.read(first, int(wanted[-1]) + 1)
        if self.byte_dtype is not None and block.dtype != self.byte_dtype:
            raise DataError(
                "All rows must be of one type",
                f"{self.byte_dtype} in row 0, {block.dtype} from row {first} on",
                "convert them to one",
            )
        return flatten(block if len(block) == len(wanted) else block[wanted - first])

    def stream(
        self, spans: Iterator[Span], pool: ThreadPoolExecutor
    ) -> Iterator[tuple[Span, Bytes]]:
        """Rows, span after span, of which the next is read meanwhile."""
        ahead = [(span, pool.submit(self.read, *span)) for span in islice(spans, 1)]
        while ahead:
            span, rows = ahead.pop()
            loaded = rows.result()
            ahead += [(later, pool.submit(self.read, *later)) for later in islice(spans, 1)]
            yield span, loaded

    def partial(self, start: int, stop: int) -> Partial:
        """An empty result for positions ``start`` to ``stop``."""
        shape = {"num_shells": self.num_shells, "num_neighbors": self.num_neighbors}
        dtype = EXACT if self.byte_dtype is not None else self.precision.dtype
        return Partial(start, stop, **shape, num_subsets=len(self.subsets), dtype=dtype)


def search_tile(
    job: Job, row_start: int, row_stop: int, column_start: int, column_stop: int
) -> list[Partial]:
    """Compute all blocks of one tile; returns what it found for its rows and its columns."""
    check_device(job.precision.device)
    rows, columns = (row_start, row_stop), (column_start, column_stop)
    mine = job.partial(*rows)
    theirs = mine if rows == columns else job.partial(*columns)
    blocks = _blocks_of_bytes if job.byte_dtype is not None else _blocks_of_floats
    for i, j, squared, precision in blocks(job, rows, columns):
        mine.precision = theirs.precision = precision
        if i == j:
            np.fill_diagonal(squared, far(squared.dtype))
        _file_block(job, mine, theirs, i, j, squared)
    return [mine] if rows == columns else [mine, theirs]


def _blocks_of_floats(
    job: Job, rows: Span, columns: Span
) -> Iterator[tuple[Span, Span, Block, str]]:
    """Yield rows, columns, squared distances, and the dtype that they needed so far."""
    precision = job.precision
    for i in _spans(*rows, job.block_rows):
        block_i = job.read(*i)
        for j in _spans(i[0] if rows == columns else columns[0], columns[1], job.block_rows):
            block_j = None if i == j else job.read(*j)
            squared, needed = squared_distances(block_i, block_j, job.centre, precision)
            precision = replace(precision, dtype=needed)
            yield i, j, squared, needed


def _blocks_of_bytes(
    job: Job, rows: Span, columns: Span
) -> Iterator[tuple[Span, Span, Block, str]]:
    """The same in whole numbers."""
    num_features = int(np.prod(job.source.row_shape))
    piece = min(PIECE_ROWS, job.block_rows, max(PIECE_BYTES // num_features, 1))
    held = min(job.block_rows, max(HELD_BYTES // num_features, 1))
    held = max(held // piece, 1) * piece
    product = choose_product(job.work, job.precision.device)
    norms: dict[Span, npt.NDArray[np.int64]] = {}  # of the pieces that pass by several times
    with ThreadPoolExecutor(1) as pool:
        for i in _spans(*rows, held):
            a = job.read(*i)
            if rows == columns:
                products = gram(a, a, product)
                norms_a = products.diagonal().astype(np.int64)
                yield from _blocks_within(products, norms_a, i, piece)
            else:
                norms_a = squared_norms(a, product)
            beside = _spans(i[1] if rows == columns else columns[0], columns[1], piece)
            for j, b in job.stream(beside, pool):
                if j not in norms:
                    norms[j] = squared_norms(b, product)
                yield i, j, expand(gram(a, b, product), norms_a, norms[j]), EXACT


def _blocks_within(
    products: IntArray, norms: npt.NDArray[np.int64], i: Span, piece: int
) -> Iterator[tuple[Span, Span, Block, str]]:
    """The distances of rows ``i`` to each other, whose ``products`` may miss what is below the
    diagonal.
    """
    for j in _spans(*i, piece):
        above, inside = slice(j[0] - i[0]), slice(j[0] - i[0], j[1] - i[0])
        if j[0] > i[0]:
            yield (
                (i[0], j[0]),
                j,
                expand(products[above, inside], norms[above], norms[inside]),
                EXACT,
            )
        own = np.triu(products[inside, inside])
        own += np.triu(own, 1).T
        yield j, j, expand(own, norms[inside], norms[inside]), EXACT


def _file_block(job: Job, mine: Partial, theirs: Partial, i: Span, j: Span, squared: Block) -> None:
    """File one block of squared distances under the shells of its pairs, for both sides."""
    sides = [(job, mine, i, j, squared)]
    if i != j:  # a block on the diagonal holds each pair twice already
        sides.append((job, theirs, j, i, squared.T))  # other rows, so that both are filed at once
    in_threads(lambda side: _file_side(*side), sides)


def _file_side(job: Job, side: Partial, own: Span, other: Span, block: Block) -> None:
    opposite = None
    if job.labels is not None:
        differ = job.labels[slice(*own), None] != job.labels[None, slice(*other)]
        opposite = np.where(differ, block, block.dtype.type(far(block.dtype)))
        _file_subsets(job, side, own, other, opposite)
    for a, a_stop in _segments(job.shells, *own):
        for b, b_stop in _segments(job.shells, *other):
            shell = int(max(job.shells[a], job.shells[b]))
            part = slice(a - own[0], a_stop - own[0]), slice(b - other[0], b_stop - other[0])
            rows = slice(a - side.start, a_stop - side.start)
            side.offer(shell, rows, b, block[part])
            if opposite is not None:
                best, ids = side.opposite[shell], side.opposite_ids[shell]
                improve(
                    best,
                    ids,
                    np.arange(rows.start, rows.stop),
                    np.arange(b, b_stop),
                    opposite[part],
                )


def _file_subsets(job: Job, side: Partial, own: Span, other: Span, opposite: Block) -> None:
    """File nearest opposites inside each sample."""
    for number, members in enumerate(job.subsets):
        rows, columns = np.flatnonzero(members[slice(*own)]), np.flatnonzero(members[slice(*other)])
        if not len(rows) or not len(columns):
            continue
        if (
            len(columns) > DENSE_SHARE * opposite.shape[1]
        ):  # masking many columns is faster than picking them
            bar = np.where(members[slice(*other)], 0, far(opposite.dtype)).astype(opposite.dtype)
            inside = opposite[rows]
            np.maximum(inside, bar, out=inside)
            columns = np.arange(opposite.shape[1])
        else:
            inside = opposite[rows][:, columns]
        best, ids = (
            side.opposite[job.num_shells + number],
            side.opposite_ids[job.num_shells + number],
        )
        improve(best, ids, rows + own[0] - side.start, columns + other[0], inside)


def _spans(start: int, stop: int, step: int) -> Iterator[Span]:
    """Cut a range into parts of ``step``."""
    for first in range(start, stop, step):
        yield first, min(first + step, stop)


def _segments(shells: IntArray, start: int, stop: int) -> Iterator[Span]:
    """Runs of equal shell between two positions."""
    cuts = np.flatnonzero(np.diff(shells[start:stop])) + start + 1
    return pairwise([start, *cuts.tolist(), stop])


@dataclass(frozen=True)
class NeighborTable:
    """Neighbours of the first ``num_points`` rows among themselves: ``(num_points, num_neighbors)``
    L2 distances, ascending, and their rows (inf and -1 where there are fewer); likewise
    ``(num_points,)`` of the nearest row with another label.
    """

    distances: FloatArray
    indices: IntArray
    opposite_distances: FloatArray
    opposite_indices: IntArray

    @property
    def num_points(self) -> int:
        """Number of rows."""
        return len(self.distances)


@dataclass(frozen=True)
class NeighborSearch:
    """All that one pass found: a table per train size, ``(num_subsets, num_rows)`` distances to the
    nearest row with another label inside each subset and that row (inf and -1 outside), and the
    dtype that the products needed at least once, or ``EXACT``.
    """

    tables: list[NeighborTable]
    subset_opposites: FloatArray
    subset_indices: IntArray
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
    subsets: npt.NDArray[np.bool_] | None = None,
) -> NeighborSearch:
    """Find the neighbours of every row within every prefix, exactly: distances of rows of bytes are
    roots of exact integers, others are off by 1e-5 at most in float32, 1e-7 in float64.

    Args:
        rows: ``(num_rows, ...)`` array or source, in nested order.
        labels: ``(num_rows,)`` integers, or None to skip the nearest opposites.
        train_sizes: Ascending prefix lengths, counted in positions of ``keep``.
        num_neighbors: Neighbours kept per row, at least 1.
        executor: Where block tasks run; in this process when None.
        precision: How products are formed.
        block_rows: Rows per block; memory grows with its square.
        keep: Source rows to use, ascending; all when None. Indices in the result are positions in
            it.
        subsets: ``(num_subsets, num_positions)`` masks, for nearest opposites inside samples.

    Raises:
        DataError: If a source's rows are bytes at first and of another type later.
    """
    executor = executor or InlineExecutor()
    precision = precision or Precision()
    source = as_bytes(as_source(rows)) if precision.exact_bytes else as_source(rows)
    positions = (np.arange(source.num_rows) if keep is None else np.asarray(keep))[
        : train_sizes[-1]
    ]
    num_rows = len(positions)
    dtype = source.read(0, 1).dtype
    exact = precision.exact_bytes and is_byte_dtype(dtype)
    codes = None
    if labels is not None:  # in the narrowest type, since they are compared for every pair
        classes, numbered = np.unique(labels, return_inverse=True)
        codes = numbered[positions].astype(np.min_scalar_type(len(classes)))
    job = Job(
        source=source,
        rows=positions,
        labels=codes,
        shells=np.searchsorted(np.asarray(train_sizes), np.arange(num_rows), side="right"),
        subsets=np.zeros((0, num_rows), bool) if subsets is None else subsets[:, :num_rows],
        centre=np.zeros(0) if exact else estimate_centre(source),
        num_shells=len(train_sizes),
        num_neighbors=num_neighbors,
        precision=precision,
        block_rows=block_rows,
        work=num_rows**2 / 2 * float(np.prod(source.row_shape)) / executor.num_workers,
        byte_dtype=dtype if exact else None,
    )
    total = _merged(job, executor)
    unit = source.unit if isinstance(source, ByteRows) else 1.0
    opposites, ids = np.sqrt(total.opposite) * unit, total.opposite_ids
    tables = _tables(total, train_sizes, unit)
    return NeighborSearch(tables, opposites[len(tables) :], ids[len(tables) :], total.precision)


def _merged(job: Job, executor: Executor) -> Partial:
    """Search all tiles and merge what they found."""
    num_rows, workers = len(job.rows), executor.num_workers
    shared = executor.share(job)
    tiles = [(shared, *tile) for tile in plan_tiles(num_rows, workers)]
    results = executor.map_unordered(search_tile, tiles, spread=job.work > SPREAD_WORK)
    partials = (partial for _, found in results for partial in found)
    total = next(partials) if len(tiles) == 1 else job.partial(0, num_rows)
    for partial in partials:
        total.merge(partial)
    return total


def plan_tiles(num_rows: int, num_workers: int) -> list[tuple[int, int, int, int]]:
    """Cut the upper triangle of pairs into tiles ``(row start, row stop, column start, column
    stop)``; those off the diagonal cost twice as much and come first, so that short ones fill the
    gaps at the end.
    """
    if num_workers == 1:
        sides = math.ceil(num_rows / TILE_ROWS_OF_ONE)
    else:
        at_least = math.ceil(math.sqrt(2 * TILES_PER_WORKER * num_workers))
        sides = max(math.ceil(num_rows / TILE_ROWS), at_least)
    edges = np.unique(
        np.linspace(0, num_rows, min(sides, max(num_rows, 1)) + 1).astype(int)
    ).tolist()
    ranges = list(pairwise(edges))
    pairs = [(a, b) for i, a in enumerate(ranges) for b in ranges[i:]]
    return [(*a, *b) for a, b in sorted(pairs, key=lambda pair: pair[0] == pair[1])]


def _tables(total: Partial, train_sizes: Sequence[int], unit: float) -> list[NeighborTable]:
    """Merge shells upwards: the table of a size holds the best of all shells up to it."""
    k = total.squared.shape[-1]
    squared, ids = total.squared[0], total.ids[0]
    opposite, opposite_ids = total.opposite[0], total.opposite_ids[0]
    tables = []
    for shell, size in enumerate(train_sizes):
        if shell:
            squared, ids = smallest(
                np.concatenate([squared, total.squared[shell]], axis=1),
                np.concatenate([ids, total.ids[shell]], axis=1),
                k,
            )
            better = total.opposite[shell] < opposite
            opposite = np.where(better, total.opposite[shell], opposite)
            opposite_ids = np.where(better, total.opposite_ids[shell], opposite_ids)
        found = np.sqrt(squared[:size]) * unit, ids[:size]
        tables.append(NeighborTable(*found, np.sqrt(opposite[:size]) * unit, opposite_ids[:size]))
    return tables
