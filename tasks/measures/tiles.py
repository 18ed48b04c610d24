"""One task of a neighbour search: all pairs of a tile of rows and columns, block by block.

Rows of bytes go the exact way: one large block of rows is held in int8, and columns stream past it in
pieces, the next piece being read and shifted while one is multiplied. All else goes the float way, in square
blocks. Filing what a block holds under the train sizes it belongs to is the same for both.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import cycle, islice, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from search_spaces.errors import DataError
from tasks.measures.byte_rows import (
    ByteRows,
    expand,
    gram,
    signed,
    squared_norms,
    whole_squared_distances,
)
from tasks.measures.distances import (
    ArraySource,
    BlockSource,
    FloatArray,
    Precision,
    flatten,
    squared_distances,
)
from tasks.measures.partials import Block, IntArray, Partial, far, improve
from tasks.measures.products import Product, SignedBytes, check_device, choose_product, num_threads

# What ``precision`` says of distances that were formed in whole numbers.
EXACT = "exact integer"
# Rows of bytes that pass by a block at a time: fine enough that the diagonal costs little more than half, and
# that a block of distances stays in the cache while it is filed.
PIECE_ROWS = 256
# And not more bytes than this, of which two pieces are in memory: images may have any number of pixels.
PIECE_BYTES = 64 << 20
# Bytes held while others pass by. Reading rows again is free where they are in memory.
HELD_BYTES = 256 << 20
HELD_BYTES_IN_MEMORY = 128 << 20
# Share of a block's columns that are in a sample from which on the others are masked.
DENSE_SHARE = 0.25

Span = tuple[int, int]


@dataclass(frozen=True)
class Job:
    """What every block task needs to know besides its rows; shared once.

    Attributes:
        source: Where rows are read.
        rows: Source row behind each position, ascending; dropped duplicates are absent.
        labels: ``(num_positions,)`` label codes, or None when only neighbours are wanted.
        shells: ``(num_positions,)`` index of the smallest train size that holds the position.
        subsets: ``(num_subsets, num_positions)`` bool, samples whose nearest opposites are wanted too.
        centre: ``(num_features,)``.
        num_shells: Number of train sizes.
        num_neighbors: Neighbours kept per row and shell.
        precision: How products are formed.
        block_rows: Rows per block, at most.
        work: Multiply-adds that each worker does in all.
        byte_dtype: Type of rows that are bytes, to be measured in whole numbers; None for all others.
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

    @property
    def exact(self) -> bool:
        """Whether distances are formed in whole numbers."""
        return self.byte_dtype is not None

    @property
    def held_bytes(self) -> int:
        """Memory for the rows that others pass by."""
        source = self.source.source if isinstance(self.source, ByteRows) else self.source
        return HELD_BYTES_IN_MEMORY if isinstance(source, ArraySource) else HELD_BYTES

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Rows at positions ``start`` to ``stop``, flattened to ``(stop - start, num_features)``.

        Raises:
            DataError: If rows were said to be bytes of one type, and these are of another.
        """
        wanted = self.rows[start:stop]
        first = int(wanted[0])
        block = self.source.read(first, int(wanted[-1]) + 1)
        if self.exact and block.dtype != self.byte_dtype:
            raise DataError(
                "All rows must be of one type",
                f"{self.byte_dtype} in row 0, {block.dtype} from row {first} on",
                "convert them to one",
            )
        return flatten(block if len(block) == len(wanted) else block[wanted - first])

    def seconds(self) -> float:
        """Rough time of the whole search on one core: to decide where work goes, never what comes out."""
        rate = 5e11 if self.exact else 5e10  # multiply-adds per second
        return len(self.rows) ** 2 / 2 * (float(np.prod(self.source.row_shape)) / rate + 5e-9)

    def hold(self, span: Span, piece: int, buffer: SignedBytes, pool: ThreadPoolExecutor) -> SignedBytes:
        """Rows of bytes in ``buffer``, read piece by piece: a source's own copy of all would double them."""
        held = buffer[: span[1] - span[0]]
        for start, stop in _spans(*span, piece):
            rows, out = self.read(start, stop), held[start - span[0] : stop - span[0]]
            strips = np.array_split(np.arange(len(rows)), num_threads())
            parts = [slice(strip[0], strip[-1] + 1) for strip in strips if len(strip)]
            list(pool.map(signed, [rows[part] for part in parts], [out[part] for part in parts]))
        return held

    def stream(
        self, spans: Iterator[Span], buffers: tuple[SignedBytes, SignedBytes], pool: ThreadPoolExecutor
    ) -> Iterator[tuple[Span, SignedBytes]]:
        """Rows of bytes, span after span; the next ones are read while the caller works on these.

        What is yielded lies in one of the buffers, and holds until the next is asked for.
        """
        free = cycle(buffers)

        def load(span: Span) -> tuple[Span, SignedBytes]:
            return span, signed(self.read(*span), next(free))

        ahead = [pool.submit(load, span) for span in islice(spans, 1)]
        while ahead:
            loaded = ahead.pop().result()
            ahead += [pool.submit(load, span) for span in islice(spans, 1)]
            yield loaded

    def partial(self, start: int, stop: int) -> Partial:
        """An empty result for positions ``start`` to ``stop``."""
        return Partial(
            start,
            stop,
            num_shells=self.num_shells,
            num_neighbors=self.num_neighbors,
            num_subsets=len(self.subsets),
            dtype=EXACT if self.exact else self.precision.dtype,
        )


def search_tile(
    job: Job, row_start: int, row_stop: int, column_start: int, column_stop: int
) -> list[Partial]:
    """Compute all blocks of one tile; returns what it found for its rows and its columns.

    Raises:
        CorruptStoreError: From the source, when a shard cannot be read.
        SetupError: If this node has no such device as the job asks for.
    """
    check_device(job.precision.device)
    rows, columns = (row_start, row_stop), (column_start, column_stop)
    mine = job.partial(*rows)
    theirs = mine if rows == columns else job.partial(*columns)
    blocks = _blocks_of_bytes if job.exact else _blocks_of_floats
    for i, j, squared, precision in blocks(job, rows, columns):
        mine.precision = theirs.precision = precision
        if i == j:
            np.fill_diagonal(squared, far(squared.dtype))
        _file_block(job, mine, theirs, i, j, squared)
    return [mine] if rows == columns else [mine, theirs]


def _blocks_of_floats(job: Job, rows: Span, columns: Span) -> Iterator[tuple[Span, Span, Block, str]]:
    """Yield rows, columns, squared distances, and the dtype that they needed so far."""
    precision = job.precision
    for i in _spans(*rows, job.block_rows):
        block_i = job.read(*i)
        for j in _spans(i[0] if rows == columns else columns[0], columns[1], job.block_rows):
            block_j = None if i == j else job.read(*j)
            squared, needed = squared_distances(block_i, block_j, job.centre, precision)
            precision = replace(precision, dtype=needed)
            yield i, j, squared, needed


def _blocks_of_bytes(job: Job, rows: Span, columns: Span) -> Iterator[tuple[Span, Span, Block, str]]:
    """The same in whole numbers; blocks lie beside the diagonal or, with equal rows and columns, on it."""
    num_features = int(np.prod(job.source.row_shape))
    piece = min(PIECE_ROWS, job.block_rows, max(PIECE_BYTES // num_features, 1))
    held = min(job.block_rows, max(job.held_bytes // num_features, 1))
    held = max(held // piece, 1) * piece
    product = choose_product(num_features, job.work, job.precision.device)
    norms: dict[Span, npt.NDArray[np.int64]] = {}  # of the pieces that pass by several times
    held_buffer = np.empty((min(held, rows[1] - rows[0]), num_features), np.int8)
    buffers = np.empty((2, min(piece, columns[1] - columns[0]), num_features), np.int8)
    with ThreadPoolExecutor(num_threads()) as pool:
        for i in _spans(*rows, held):
            a = job.hold(i, piece, held_buffer, pool)
            if rows == columns:
                norms_a = np.empty(len(a), np.int64)
                yield from _blocks_within(a, i, piece, norms_a, product)
            else:
                norms_a = squared_norms(a, product)
            beside = _spans(i[1] if rows == columns else columns[0], columns[1], piece)
            for j, b in job.stream(beside, (buffers[0], buffers[1]), pool):
                if j not in norms:
                    norms[j] = squared_norms(b, product)
                yield i, j, whole_squared_distances(a, b, norms_a, norms[j], product), EXACT


def _blocks_within(
    a: SignedBytes, i: Span, piece: int, norms: npt.NDArray[np.int64], product: Product
) -> Iterator[tuple[Span, Span, Block, str]]:
    """The distances of rows ``i`` to each other; their norms, seen on the way, are written to ``norms``."""
    for j in _spans(*i, piece):
        above, inside = slice(j[0] - i[0]), slice(j[0] - i[0], j[1] - i[0])
        b = a[inside]
        own = gram(b, b, product)
        norms[inside] = own.diagonal()
        if j[0] > i[0]:
            squared = whole_squared_distances(a[above], b, norms[above], norms[inside], product)
            yield (i[0], j[0]), j, squared, EXACT
        yield j, j, expand(own, norms[inside], norms[inside]), EXACT


def _file_block(job: Job, mine: Partial, theirs: Partial, i: Span, j: Span, squared: Block) -> None:
    """File one block of squared distances under the shells of its pairs, for both sides."""
    opposite = None
    if job.labels is not None:
        differ = job.labels[slice(*i), None] != job.labels[None, slice(*j)]
        opposite = np.where(differ, squared, squared.dtype.type(far(squared.dtype)))
        _file_subsets(job, mine, theirs, i, j, opposite)
    for a, a_stop in _segments(job.shells, *i):
        for b, b_stop in _segments(job.shells, *j):
            shell = int(max(job.shells[a], job.shells[b]))
            part = slice(a - i[0], a_stop - i[0]), slice(b - j[0], b_stop - j[0])
            rows = slice(a - mine.start, a_stop - mine.start)
            columns = slice(b - theirs.start, b_stop - theirs.start)
            mine.offer(shell, rows, b, squared[part])
            if opposite is not None:
                mine.offer_opposite(shell, rows, b, opposite[part])
            if i != j:  # a block on the diagonal holds each pair twice already
                theirs.offer(shell, columns, a, squared[part].T)
                if opposite is not None:
                    theirs.offer_opposite(shell, columns, a, opposite[part].T)


def _file_subsets(job: Job, mine: Partial, theirs: Partial, i: Span, j: Span, opposite: Block) -> None:
    """Nearest opposites inside each sample."""
    for number, members in enumerate(job.subsets):
        rows, columns = np.flatnonzero(members[slice(*i)]), np.flatnonzero(members[slice(*j)])
        if not len(rows) or not len(columns):
            continue
        if len(columns) > DENSE_SHARE * opposite.shape[1]:  # masking many columns is faster than picking them
            nothing = opposite.dtype.type(far(opposite.dtype))
            inside = np.where(members[slice(*j)], opposite[rows], nothing)
            columns = np.arange(opposite.shape[1])
        else:
            inside = opposite[rows][:, columns]
        rows, columns = rows + i[0], columns + j[0]
        best, ids = mine.subset_opposite[number], mine.subset_ids[number]
        improve(best, ids, rows - mine.start, columns, inside)
        if i != j:
            best, ids = theirs.subset_opposite[number], theirs.subset_ids[number]
            improve(best, ids, columns - theirs.start, rows, inside.T)


def _spans(start: int, stop: int, step: int) -> Iterator[Span]:
    """Cut a range into parts of ``step``."""
    for first in range(start, stop, step):
        yield first, min(first + step, stop)


def _segments(shells: IntArray, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Runs of equal shell between two positions."""
    cuts = np.flatnonzero(np.diff(shells[start:stop])) + start + 1
    edges = [start, *cuts.tolist(), stop]
    return pairwise(edges)
