"""Check the rows of a source before they are measured: equal rows, values and dtypes.

A *duplicate* is a row that equals an earlier row. If the labels of the two rows differ, the
two rows are a *conflict*. Equal rows are found in two steps. In the first step, all rows are
read once, in *pieces* that fit into memory. A hash key is computed from some values of each
row. In the second step, rows with equal keys are read again and compared by the digests of all
their values.

The first step also checks that all values are finite. If every value is a byte times one unit,
the rows are measured as bytes, see :mod:`tasks.measures.byte_rows`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from search_spaces.errors import DataError
from tasks.array_types import AnyArray, IntArray
from tasks.measures.byte_rows import UNITS, ByteRows, as_bytes, byte_units, is_byte_dtype
from tasks.measures.distances import BlockSource, flatten
from tasks.remote import Executor, InlineExecutor

PIECE_BYTES = 256 << 20
"""Largest size of a piece in bytes, if its values are float64."""
KEY_VALUES = 512
"""Largest number of values of a row from which its hash key is computed."""
KEY_SEED = 20240501
"""Seed of the random choice of these values. The number is arbitrary."""


@dataclass(frozen=True)
class RowCheck:
    """The result of checking all rows of a source.

    Attributes:
        source: Source of the rows. If all rows have one dtype and every value is a byte times
            one unit, it returns bytes.
        first_equal_rows: ``(num_rows,)`` for each source row, the first row that equals it.
            For a row without an earlier equal row, it is the row itself.
        conflicts: Pairs ``(row, earlier row)`` of equal images with different labels.
        is_exact: True if ``source`` returns bytes.
    """

    source: BlockSource
    first_equal_rows: IntArray
    conflicts: list[tuple[int, int]]
    is_exact: bool

    def distinct_rows(self) -> IntArray:
        """Return the source rows that do not equal any earlier row, ascending."""
        return np.flatnonzero(self.first_equal_rows == np.arange(len(self.first_equal_rows)))

    def num_contradictory(self, num_rows: int) -> int:
        """Return the number of the first ``num_rows`` rows that equal a row with another label.

        The number includes the earlier row of each conflict, and every row that equals this
        earlier row.
        """
        earlier_rows = [earlier for row, earlier in self.conflicts if row < num_rows]
        return int(np.isin(self.first_equal_rows[:num_rows], earlier_rows).sum())


@dataclass(frozen=True)
class PieceCheck:
    """The result of checking one piece of rows.

    Attributes:
        keys: ``(num_rows,)`` 64-bit hash keys of the rows. Equal rows have equal keys.
        rows_not_finite: Indices of the source rows that contain NaN or infinity.
        units: The units for which every value is a byte times the unit, see `byte_units`.
        dtype: Dtype of the values as text, with its byte order.
    """

    keys: IntArray
    rows_not_finite: list[int]
    units: set[float]
    dtype: str


def check_rows(
    source: BlockSource,
    labels: AnyArray | None,
    *,
    executor: Executor | None = None,
) -> RowCheck:
    """Find duplicates and conflicts, and check that all values are finite.

    Args:
        source: Source of at least one row, of any real dtype.
        labels: ``(num_rows,)``; None if there are no labels. Without labels, no conflicts are
            found.
        executor: Executor that hashes the rows; None hashes them in this process.

    Raises:
        DataError: The rows contain values that are not real numbers, or not finite.
    """
    executor = executor or InlineExecutor()
    source = as_bytes(source)
    num_rows = source.num_rows
    dtype = source.read(0, 1).dtype
    keys = np.empty(num_rows, np.uint64)
    rows_not_finite: list[int] = []
    units = set(UNITS)
    # All rows of a piece have one dtype. It may differ from the dtype of the first row.
    dtypes = {dtype.str}
    for start, piece in _check_pieces(source, executor):
        keys[start : start + len(piece.keys)] = piece.keys
        rows_not_finite += piece.rows_not_finite
        units &= piece.units
        dtypes.add(piece.dtype)
    _check_finite(rows_not_finite, num_rows)
    first_equal_rows = _first_equal_rows(source, keys)
    conflicts = [] if labels is None else _find_conflicts(labels, first_equal_rows)
    is_exact = len(units) > 0 and len(dtypes) == 1
    if is_exact and not is_byte_dtype(dtype):
        # If all values are 0 or 1, both units are possible. The values are then read with the
        # unit 1.
        source = ByteRows(source, max(units))
    return RowCheck(source, first_equal_rows, conflicts, is_exact)


def _check_pieces(source: BlockSource, executor: Executor) -> Iterator[tuple[int, PieceCheck]]:
    """Check all rows, in pieces that fit into memory.

    Yields:
        The first row of each piece, and the result for this piece.
    """
    num_rows = source.num_rows
    rows_in_memory = PIECE_BYTES // (8 * int(np.prod(source.row_shape)))
    rows_per_worker = math.ceil(num_rows / executor.num_workers)
    step = max(1, min(rows_in_memory, rows_per_worker))
    shared = executor.share(source)
    starts = range(0, num_rows, step)
    pieces = [(shared, start, min(start + step, num_rows)) for start in starts]
    for index, piece in executor.map_unordered(check_piece, pieces):
        yield starts[index], piece


def _check_finite(rows_not_finite: list[int], num_rows: int) -> None:
    """Raise a DataError if any row contains NaN or infinity."""
    if rows_not_finite:
        first_rows = ", ".join(map(str, sorted(rows_not_finite)[:5]))
        raise DataError(
            f"{len(rows_not_finite)} of {num_rows} rows have values that are NaN or infinite, "
            f"for example row {first_rows}",
            hint="Remove these rows, or correct their values",
        )


def _find_conflicts(labels: AnyArray, first_equal_rows: IntArray) -> list[tuple[int, int]]:
    """Return the pairs ``(row, first equal row)`` of equal rows with different labels."""
    rows = np.flatnonzero(labels != labels[first_equal_rows])
    earlier_rows = first_equal_rows[rows].tolist()
    return list(zip(rows.tolist(), earlier_rows, strict=True))


def check_piece(source: BlockSource, start: int, stop: int) -> PieceCheck:
    """Hash and check the rows from ``start`` up to, but not including, ``stop``.

    Raises:
        DataError: The rows contain values that are not real numbers.
    """
    rows = flatten(source.read(start, stop))
    if rows.dtype.kind not in "biuf" or rows.itemsize > 8:
        raise DataError(
            f"Images have the dtype {rows.dtype}, but must be real numbers of at most 64 bits",
            hint="Convert the images, for example with .astype(float)",
        )
    units = byte_units(rows)
    rows_not_finite: list[int] = []
    if rows.dtype.kind == "f" and not units:
        # If the sum of a row is finite, all its values are finite. The values of other rows
        # are checked one by one.
        with np.errstate(over="ignore", invalid="ignore"):
            sums = rows.sum(axis=1)
            suspects = np.flatnonzero(~np.isfinite(sums))
        is_bad = ~np.isfinite(rows[suspects]).all(axis=1)
        rows_not_finite = (suspects[is_bad] + start).tolist()
    return PieceCheck(_hash_keys(rows), rows_not_finite, units, rows.dtype.str)


def _hash_keys(rows: AnyArray) -> IntArray:
    """Return a 64-bit key of every row, ``(num_rows,)``.

    The key is a linear hash: the sum of some values of the row, each multiplied by a random
    number. The same values are chosen in all rows, and multiplied by the same random numbers.
    So equal rows have equal keys. Different rows rarely have equal keys, unless all their
    chosen values are equal.
    """
    rng = np.random.default_rng(KEY_SEED)
    num_features = rows.shape[1]
    columns = np.unique(rng.integers(0, num_features, KEY_VALUES))
    values = _without_minus_zero(rows[:, columns])
    row_bytes = values.view(np.uint8).reshape(len(rows), -1)
    num_padding_bytes = -row_bytes.shape[1] % 8
    words = np.pad(row_bytes, ((0, 0), (0, num_padding_bytes))).view(np.uint64)
    multipliers = rng.integers(0, 2**63, words.shape[1], dtype=np.uint64)
    multipliers = multipliers * 2 + 1  # multiplying by an odd number loses no bit
    keys: IntArray = words @ multipliers
    return keys


def _without_minus_zero(values: AnyArray) -> AnyArray:
    """Return a contiguous copy in which -0.0 is replaced by 0.0.

    The two zeros are the same pixel value, but their bytes differ.
    """
    return np.ascontiguousarray(values + np.zeros((), values.dtype))


def _first_equal_rows(source: BlockSource, keys: IntArray) -> IntArray:
    """Return, for every row, the first row that equals it, ``(num_rows,)``.

    Two rows with equal keys are equal if the digests of all their values are equal.
    """
    first_equal_rows = np.arange(len(keys))
    order = np.argsort(keys, kind="stable")
    edges = np.flatnonzero(np.diff(keys[order])) + 1
    for group in np.split(order, edges):
        if len(group) < 2:
            continue
        first_by_digest: dict[bytes, int] = {}
        for row in np.sort(group).tolist():
            values = _without_minus_zero(source.read(row, row + 1))
            digest = hashlib.blake2b(values.data, digest_size=32).digest()
            first_equal_rows[row] = first_by_digest.setdefault(digest, row)
    return first_equal_rows
