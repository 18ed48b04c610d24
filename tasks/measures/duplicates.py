"""Rows that are the same, rows that are no numbers, rows that are bytes: found before any distance is.

Two equal images are at distance zero, where logarithms and inverses break. Policy: of rows with the same
bytes the first one stays and the later ones are left out of every measure, and counted; if their labels
differ they are conflicts, and listed.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from search_spaces.errors import DataError
from tasks.measures.byte_rows import UNITS, byte_units
from tasks.measures.distances import BlockSource, Precision, flatten
from tasks.remote import Executor, InlineExecutor

PROFILE_BYTES = 256 << 20  # rows are read in pieces of this size
KEY_VALUES = 1024  # values per row that make its key


@dataclass(frozen=True)
class RowProfile:
    """Which rows to measure.

    Attributes:
        keep: Rows that are the first of their kind, ascending.
        first_of: ``(num_rows,)`` the row that each row equals, itself when it is the first.
        conflicts: ``(row, earlier row)`` of identical images with different labels.
        byte_unit: What one grey level is, if every value of every row is a byte times that, and rows are
            of one type; else None.
    """

    keep: npt.NDArray[np.int64]
    first_of: npt.NDArray[np.int64]
    conflicts: list[tuple[int, int]]
    byte_unit: float | None = None

    @property
    def num_duplicates(self) -> int:
        """Rows left out because an earlier one is the same."""
        return len(self.first_of) - len(self.keep)

    def precision(self, asked: Precision) -> Precision:
        """What was asked for, in floats where rows are no bytes of one type."""
        return asked if self.byte_unit is not None else replace(asked, exact_bytes=False)


def profile_rows(
    source: BlockSource, labels: npt.NDArray[Any] | None, *, executor: Executor | None = None
) -> RowProfile:
    """Find duplicates and conflicts, and refuse rows that are not finite.

    Raises:
        DataError: If rows are no real numbers, hold no values, or are not finite.
    """
    executor = executor or InlineExecutor()
    num_rows = source.num_rows
    row_values = int(np.prod(source.row_shape))
    if num_rows == 0 or row_values == 0:
        raise DataError("There must be at least one row, with at least one value", f"{num_rows} rows")
    step = max(1, min(PROFILE_BYTES // (8 * row_values), -(-num_rows // executor.num_workers)))
    shared = executor.share(source)
    pieces = [(shared, start, min(start + step, num_rows)) for start in range(0, num_rows, step)]
    keys = np.empty(num_rows, np.uint64)
    not_finite: list[int] = []
    units, dtypes = set(UNITS), {source.read(0, 1).dtype.str}  # pieces of several types are read as one
    for index, (piece, bad, piece_units, dtype) in executor.map_unordered(row_keys, pieces):
        keys[pieces[index][1] : pieces[index][2]] = piece
        not_finite += bad
        units &= set(piece_units)
        dtypes.add(dtype)
    if not_finite:
        raise DataError(
            "All values must be finite",
            f"NaN or infinity in {len(not_finite)} of {num_rows} rows, first ones {sorted(not_finite)[:5]}",
            "remove or repair these rows",
        )
    first_of = _confirm(source, keys)
    keep = np.flatnonzero(first_of == np.arange(num_rows))
    conflicts = []
    if labels is not None:
        conflicts = [(int(i), int(first_of[i])) for i in np.flatnonzero(labels != labels[first_of])]
    return RowProfile(keep, first_of, conflicts, max(units, default=None) if len(dtypes) == 1 else None)


def row_keys(
    source: BlockSource, start: int, stop: int
) -> tuple[npt.NDArray[np.uint64], list[int], tuple[float, ...], str]:
    """Return a 64-bit key per row, equal for equal rows, the rows not finite, the `byte_units`, the dtype.

    The key comes from a fixed random choice of values, so it costs next to nothing, and equal rows can never
    be missed; that rows with equal keys are equal must be confirmed on all their values.

    Raises:
        DataError: If rows are no real numbers.
    """
    rows = flatten(source.read(start, stop))
    if rows.dtype.kind not in "biuf" or rows.itemsize > 8:
        raise DataError(
            "Images must be real numbers of at most 64 bits", f"dtype {rows.dtype}", "convert them"
        )
    rng = np.random.default_rng(20240501)
    columns = np.sort(rng.permutation(rows.shape[1])[:KEY_VALUES])
    # Adding zero turns -0.0 into 0.0, which is the same pixel in other bytes.
    values = np.ascontiguousarray(rows[:, columns]) + np.zeros((), rows.dtype)
    row_bytes = values.view(np.uint8).reshape(len(rows), -1)
    words = np.pad(row_bytes, ((0, 0), (0, -row_bytes.shape[1] % 8))).view(np.uint64)
    keys = words @ (rng.integers(0, 2**63, words.shape[1], dtype=np.uint64) * 2 + 1)
    units = byte_units(rows)
    bad = (_not_finite(rows) + start).tolist() if rows.dtype.kind == "f" and not units else []
    return keys, bad, units, rows.dtype.str


def _not_finite(rows: npt.NDArray[Any]) -> npt.NDArray[np.intp]:
    """Rows that hold NaN or infinity; a finite sum proves that a row holds neither."""
    with np.errstate(over="ignore", invalid="ignore"):
        suspects = np.flatnonzero(~np.isfinite(rows.sum(axis=1)))
    found: npt.NDArray[np.intp] = suspects[~np.isfinite(rows[suspects]).all(axis=1)]
    return found


def _confirm(source: BlockSource, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """First equal row of every row; rows with equal keys are told apart by digests of all their values.

    Pairs are not compared: images that differ in few pixels only may all have one key.
    """
    first_of = np.arange(len(keys))
    order = np.argsort(keys, kind="stable")
    edges = np.flatnonzero(np.diff(keys[order])) + 1
    for group in np.split(order, edges):
        if len(group) < 2:
            continue
        firsts: dict[bytes, int] = {}
        for row in np.sort(group).tolist():
            first_of[row] = firsts.setdefault(_digest(source.read(row, row + 1)), row)
    return first_of


def _digest(values: npt.NDArray[Any]) -> bytes:
    without_minus_zero = values + np.zeros((), values.dtype)
    return hashlib.blake2b(np.ascontiguousarray(without_minus_zero).data, digest_size=32).digest()
