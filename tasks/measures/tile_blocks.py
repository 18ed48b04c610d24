"""The squared distances of one tile of pairs, block by block.

A *tile* is a range of rows times a range of columns, both of positions (see
:mod:`tasks.measures.neighbors`). One task computes one tile. A *block* is the part of a tile whose
distances are in memory at once: those of its *held rows* to some columns.

Rows of bytes are measured in integers. Many of them are held in memory, and the other rows are read
in small pieces; the next piece is read while one is multiplied. Other dtypes use square blocks of
floats.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from search_spaces.errors import DataError
from tasks.measures.arrays import AnyArray, BoolArray, Bytes, FloatArray, IntArray
from tasks.measures.distances import (
    BlockSource,
    Precision,
    expand,
    flatten,
    gram,
    squared_distances,
    squared_norms,
)
from tasks.measures.products import choose_product

EXACT = "exact integer"
"""The ``precision`` of distances that were computed in integers."""
PIECE_ROWS = 256
"""Rows of a streamed piece of bytes, at most. A tile on the diagonal then costs little more than
half as much as a full square, and a block stays in the cache while it is added to the results."""
PIECE_BYTES = 64 << 20
"""Bytes of a streamed piece, at most. Two pieces are in memory."""
HELD_BYTES = 320 << 20
"""Bytes of the rows that are held while pieces are streamed: 2,048 rows of 3 x 224 x 224."""

SquaredDistances = AnyArray
"""Squared distances of a block, ``(num_rows, num_columns)``, float32, float64, int32 or int64."""


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

    The values for integers are exact in float64, as all smaller integers are. Bytes differ by at
    most 255. So ``2**47`` is above every squared distance of rows of up to 2e9 features.
    """
    if dtype.kind == "f":
        return np.inf
    if dtype == np.int32:
        return 2**31 - 1
    return 2**47


@dataclass(frozen=True)
class SearchJob:
    """Everything a task needs besides its tile. Shared with all workers once.

    Attributes:
        source: Where rows are read.
        source_rows: ``(num_positions,)`` source row of every position, ascending.
        label_codes: ``(num_positions,)`` numbers of labels, or None if only neighbors are wanted.
        first_shells: ``(num_positions,)`` shell of the smallest train size that holds the position.
        samples: ``(num_samples, num_positions)`` masks of samples in which the nearest row with
            another label is wanted too.
        center: ``(num_features,)`` subtracted from rows of floats.
        num_shells: Number of train sizes.
        num_neighbors: Neighbors per position.
        precision: How products of floats are computed.
        block_rows: Rows of a block, at most.
        multiply_adds_per_worker: Multiply-adds, total per worker.
        pair_capacities: Closest pairs to keep, per shell; empty for none.
        byte_dtype: Dtype of rows of bytes. None if rows are measured as floats.
    """

    source: BlockSource
    source_rows: IntArray
    label_codes: IntArray | None
    first_shells: IntArray
    samples: BoolArray
    center: FloatArray
    num_shells: int
    num_neighbors: int
    precision: Precision
    block_rows: int
    multiply_adds_per_worker: float
    pair_capacities: tuple[int, ...] = ()
    byte_dtype: np.dtype[Any] | None = None

    @property
    def is_exact(self) -> bool:
        """True if rows are bytes, which are measured in integers."""
        return self.byte_dtype is not None

    def read(self, span: Span) -> AnyArray:
        """Return the rows of a span, ``(num_positions, num_features)``.

        Raises:
            DataError: If rows were bytes at first and have another dtype here.
        """
        source_rows = self.source_rows[span.positions]
        first = int(source_rows[0])
        rows = self.source.read(first, int(source_rows[-1]) + 1)
        if self.is_exact and rows.dtype != self.byte_dtype:
            raise DataError(
                f"Row 0 is of dtype {self.byte_dtype}, but rows from {first} on are {rows.dtype}",
                hint="Convert all rows to one dtype",
            )
        if len(rows) > len(source_rows):  # duplicates in between were left out
            rows = rows[source_rows - first]
        return flatten(rows)

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


class TileBlock(NamedTuple):
    """Squared distances between two spans, and the precision that a tile has needed so far."""

    rows: Span
    columns: Span
    squared: SquaredDistances
    precision: str

    def transposed(self) -> TileBlock:
        """Return the same distances from columns to rows."""
        return TileBlock(self.columns, self.rows, self.squared.T, self.precision)


def blocks_of_tile(job: SearchJob, rows: Span, columns: Span) -> Iterator[TileBlock]:
    """Yield all blocks of a tile; of a tile on the diagonal, those of the upper triangle."""
    if job.is_exact:
        return _byte_blocks(job, rows, columns)
    return _float_blocks(job, rows, columns)


def _float_blocks(
    job: SearchJob,
    rows: Span,
    columns: Span,
) -> Iterator[TileBlock]:
    """Yield a tile of floats in square blocks; of a tile on the diagonal, the upper triangle.

    From the first block on that needs a wider dtype, all blocks are computed in that dtype.
    """
    precision = job.precision
    for row_span in cut_span(rows, job.block_rows):
        a = job.read(row_span)
        first_column = max(row_span.start, columns.start)  # nothing below the diagonal
        for column_span in cut_span(Span(first_column, columns.stop), job.block_rows):
            b = None if row_span == column_span else job.read(column_span)
            squared, needed = squared_distances(a, b, job.center, precision)
            precision = replace(precision, dtype=needed)
            yield TileBlock(row_span, column_span, squared, needed)


def _byte_blocks(
    job: SearchJob,
    rows: Span,
    columns: Span,
) -> Iterator[TileBlock]:
    """Yield a tile of bytes: the held rows against the pieces of the columns.

    Of a tile on the diagonal, the upper triangle is computed: the held rows against themselves and
    the columns after them.
    """
    num_features = int(np.prod(job.source.row_shape))
    piece_rows = min(PIECE_ROWS, job.block_rows, max(PIECE_BYTES // num_features, 1))
    held_rows = min(job.block_rows, max(HELD_BYTES // num_features, 1))
    held_rows = max(held_rows // piece_rows, 1) * piece_rows
    product = choose_product(job.multiply_adds_per_worker, job.precision.device)
    # Each piece is read again for every set of held rows; its norms are cached.
    norms: dict[Span, IntArray] = {}
    with ThreadPoolExecutor(1) as pool:
        for held_span in cut_span(rows, held_rows):
            a = job.read(held_span)
            later_columns = columns
            if rows == columns:
                later_columns = Span(held_span.stop, columns.stop)
                products = gram(a, a, product)
                norms_a: IntArray = products.diagonal().astype(np.int64)
                yield from _blocks_within(products, norms_a, held_span, piece_rows)
            else:
                norms_a = squared_norms(a, product)
            for piece, b in job.stream(cut_span(later_columns, piece_rows), pool):
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
    # `expand` overwrites products in place. Blocks do not overlap, so each product is used once.
    for piece in cut_span(held_span, piece_rows):
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


def cut_span(span: Span, step: int) -> Iterator[Span]:
    """Cut a span into parts of ``step`` positions."""
    for start in range(span.start, span.stop, step):
        yield Span(start, min(start + step, span.stop))
