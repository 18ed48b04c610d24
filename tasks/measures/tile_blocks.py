"""Compute the squared distances of one tile of pairs, block by block.

A *tile* contains all pairs of a row and a column, from one span of rows and one span of
columns. Rows and columns are positions, which :mod:`tasks.measures.neighbors` defines. Each
task computes one tile. A *block* is the part of a tile whose distances are in memory at the
same time.

There are two kinds of blocks:

- Distances between rows of bytes are computed in integers. As many rows as possible are read
  into memory and stay there. These are the *held rows*. The columns are read in small
  *pieces*. While the held rows are multiplied with one piece, a thread reads the next piece. A
  block contains the distances from the held rows to one piece.
- Distances between rows of any other dtype are computed in floats, in square blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np

from search_spaces.errors import DataError
from tasks.array_types import AnyArray, BoolArray, Bytes, FloatArray, IntArray
from tasks.measures.byte_rows import row_products, squared_norms, to_squared_distances
from tasks.measures.distances import BlockSource, Precision, flatten, squared_distances
from tasks.measures.products import choose_product

EXACT = "exact integer"
"""The value of ``arithmetic`` for distances that were computed in integers."""
ARITHMETICS = (EXACT, "float32", "float64")
"""All values of ``arithmetic``, from the narrowest to the widest. If the blocks of a search
needed different arithmetics, the result contains the widest one."""
PIECE_ROWS = 256
"""Largest number of rows in a piece. With small pieces, a tile on the diagonal needs only a
little more than half of its products. A small block also stays in the processor's cache while
its distances are added to the results."""
PIECE_BYTES = 64 << 20
"""Largest size of a piece in bytes. Two pieces are in memory at a time."""
HELD_BYTES = 320 << 20
"""Largest size of the held rows in bytes. 2,048 rows of 3 x 224 x 224 bytes need 294 MiB."""

SquaredDistances = AnyArray
"""The squared distances of a block, ``(num_rows, num_columns)``, as float32, float64, int32 or
int64."""


def widest_arithmetic(first: str, second: str) -> str:
    """Return the wider of two values of ``ARITHMETICS``."""
    return max(first, second, key=ARITHMETICS.index)


class Span(NamedTuple):
    """The positions from ``start`` up to, but not including, ``stop``."""

    start: int
    stop: int

    @property
    def positions(self) -> slice:
        """The slice of this span in an array of all positions."""
        return slice(self.start, self.stop)

    def relative_to(self, outer: Span) -> slice:
        """Return the slice of this span in an array of the positions of ``outer``."""
        return slice(self.start - outer.start, self.stop - outer.start)


def no_pair_value(dtype: np.dtype[Any]) -> Any:
    """Return the number that marks "no pair" in a block of squared distances of this dtype.

    The number has this dtype, and is larger than every squared distance. Two bytes differ by
    at most 255, so ``2**47`` is large enough for rows of up to 2e9 features. float64
    represents these integers exactly.
    """
    if dtype.kind == "f":
        return dtype.type(np.inf)
    if dtype == np.int32:
        return dtype.type(2**31 - 1)
    return dtype.type(2**47)


def is_pair_within(squared_distances: SquaredDistances, limits: FloatArray | float) -> BoolArray:
    """Return a mask of the entries of a block that are pairs within a limit.

    Args:
        squared_distances: The squared distances of the block, ``(num_rows, num_columns)``.
        limits: One limit of the squared distance, or one limit per row, ``(num_rows, 1)``. A
            squared distance that equals its limit is within the limit. An infinite limit
            selects every pair, but not the entries that mark "no pair".
    """
    dtype = squared_distances.dtype
    largest = float(no_pair_value(dtype)) - 1
    if dtype.kind == "f":  # infinity minus 1 is infinity
        largest = float(np.finfo(dtype).max)
    finite_limits = np.minimum(limits, largest).astype(dtype)
    is_near: BoolArray = squared_distances <= finite_limits
    return is_near


@dataclass(frozen=True)
class SearchJob:
    """The description of a search, which all its tiles share. Each worker receives it only once.

    Attributes:
        source: The source of all rows.
        source_rows: ``(num_positions,)`` source row of every position, ascending.
        label_codes: ``(num_positions,)`` label of each position as a number; None to find only
            neighbors.
        train_sizes: Ascending train sizes, counted in positions.
        samples: ``(num_samples, num_positions)`` masks of the samples. The search also finds
            the nearest row with another label inside each sample.
        center: ``(num_features,)`` row that is subtracted from rows of floats.
        num_neighbors: Number of neighbors per position.
        precision: Precision and device of the products of floats.
        block_rows: Largest number of rows in a block.
        multiply_adds_per_worker: Number of multiply-adds of the whole search, divided by the
            number of workers. This number decides which library computes the products.
        max_pairs_by_size: Largest number of closest pairs to collect among the new pairs of
            each train size; empty if no closest pairs are collected.
        byte_dtype: Dtype of the rows if they are bytes; None if distances are computed in
            floats.
    """

    source: BlockSource
    source_rows: IntArray
    label_codes: IntArray | None
    train_sizes: tuple[int, ...]
    samples: BoolArray
    center: FloatArray
    num_neighbors: int
    precision: Precision
    block_rows: int
    multiply_adds_per_worker: float
    max_pairs_by_size: tuple[int, ...]
    byte_dtype: np.dtype[Any] | None

    @property
    def is_exact(self) -> bool:
        """True if rows are bytes. Distances are then computed in integers."""
        return self.byte_dtype is not None

    @cached_property
    def size_indices(self) -> IntArray:
        """The size index of each position, ``(num_positions,)``."""
        positions = np.arange(len(self.source_rows))
        # The training set of size n contains the positions that are smaller than n.
        return np.searchsorted(self.train_sizes, positions, side="right")

    def read(self, span: Span) -> AnyArray:
        """Return the rows of a span, ``(num_positions, num_features)``.

        Raises:
            DataError: The rows have another dtype than ``byte_dtype``.
        """
        source_rows = self.source_rows[span.positions]
        first = int(source_rows[0])
        rows = self.source.read(first, int(source_rows[-1]) + 1)
        if self.is_exact and rows.dtype != self.byte_dtype:
            raise DataError(
                f"Row 0 has the dtype {self.byte_dtype}, but the rows from row {first} on "
                f"have the dtype {rows.dtype}",
                hint="Convert all rows to the same dtype",
            )
        if len(rows) > len(source_rows):  # duplicates have no position, so they are skipped
            rows = rows[source_rows - first]
        return flatten(rows)

    def stream(
        self, spans: Sequence[Span], pool: ThreadPoolExecutor
    ) -> Iterator[tuple[Span, Bytes]]:
        """Yield each span with its rows. A thread of ``pool`` reads the next span at the same
        time.
        """
        if not spans:
            return
        reading: Future[Bytes] = pool.submit(self.read, spans[0])
        for span, next_span in zip_longest(spans, spans[1:]):
            rows = reading.result()
            if next_span is not None:
                reading = pool.submit(self.read, next_span)
            yield span, rows


class TileBlock(NamedTuple):
    """The squared distances between two spans, and the widest arithmetic of the tile so far."""

    rows: Span
    columns: Span
    squared: SquaredDistances
    arithmetic: str

    def transposed(self) -> TileBlock:
        """Return a block with the same distances, in which rows and columns are exchanged."""
        return TileBlock(self.columns, self.rows, self.squared.T, self.arithmetic)


def blocks_of_tile(job: SearchJob, rows: Span, columns: Span) -> Iterator[TileBlock]:
    """Yield all blocks of a tile. For a tile on the diagonal, yield only the upper triangle."""
    if job.is_exact:
        return _byte_blocks(job, rows, columns)
    return _float_blocks(job, rows, columns)


def _float_blocks(job: SearchJob, rows: Span, columns: Span) -> Iterator[TileBlock]:
    """Yield the blocks of a tile whose distances are computed in floats.

    If a block needs a wider dtype, all later blocks of the tile are computed in this dtype
    too.
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


def _byte_blocks(job: SearchJob, rows: Span, columns: Span) -> Iterator[TileBlock]:
    """Yield the blocks of a tile of bytes.

    The function multiplies the held rows with every piece of the columns. In a tile on the
    diagonal, it multiplies the held rows with themselves and with the columns after them.
    """
    num_features = int(np.prod(job.source.row_shape))
    most_piece_rows = max(PIECE_BYTES // num_features, 1)
    piece_rows = min(PIECE_ROWS, job.block_rows, most_piece_rows)
    most_held_rows = min(job.block_rows, HELD_BYTES // num_features)
    held_rows = max(most_held_rows // piece_rows, 1) * piece_rows  # whole pieces
    multiply = choose_product(job.multiply_adds_per_worker, job.precision.device)
    # Each piece is read again for every set of held rows. The norms of its rows are computed
    # only once.
    norms_by_piece: dict[Span, IntArray] = {}
    with ThreadPoolExecutor(1) as pool:
        for held_span in cut_span(rows, held_rows):
            held = job.read(held_span)
            if rows == columns:
                products = row_products(held, held, multiply)
                held_norms: IntArray = products.diagonal().astype(np.int64)
                yield from _blocks_within(products, held_norms, held_span, piece_rows)
                pieces = cut_span(Span(held_span.stop, columns.stop), piece_rows)
            else:
                held_norms = squared_norms(held, multiply)
                pieces = cut_span(columns, piece_rows)
            for piece, piece_bytes in job.stream(pieces, pool):
                if piece not in norms_by_piece:
                    norms_by_piece[piece] = squared_norms(piece_bytes, multiply)
                products = row_products(held, piece_bytes, multiply)
                squared = to_squared_distances(products, held_norms, norms_by_piece[piece])
                yield TileBlock(held_span, piece, squared, EXACT)


def _blocks_within(
    products: IntArray, norms: IntArray, held_span: Span, piece_rows: int
) -> Iterator[TileBlock]:
    """Yield blocks with the distances between the held rows.

    Args:
        products: ``(num_held, num_held)`` products of the held rows. The entries below the
            diagonal may be undefined.
        norms: ``(num_held,)`` squared norms of the held rows.
        held_span: Positions of the held rows.
        piece_rows: Number of columns of a block.
    """
    # The function overwrites the products. It needs no product twice, because blocks do not
    # overlap.
    for piece in cut_span(held_span, piece_rows):
        inside = piece.relative_to(held_span)
        if piece.start > held_span.start:
            earlier = Span(held_span.start, piece.start)
            above = earlier.relative_to(held_span)
            squared = to_squared_distances(products[above, inside], norms[above], norms[inside])
            yield TileBlock(earlier, piece, squared, EXACT)
        # The entries below the diagonal may be undefined, so the upper triangle is mirrored.
        symmetric = np.triu(products[inside, inside])
        symmetric += np.triu(symmetric, 1).T
        squared = to_squared_distances(symmetric, norms[inside], norms[inside])
        yield TileBlock(piece, piece, squared, EXACT)


def cut_span(span: Span, step: int) -> list[Span]:
    """Cut a span into parts of ``step`` positions; the last part may be shorter."""
    starts = range(span.start, span.stop, step)
    return [Span(start, min(start + step, span.stop)) for start in starts]
