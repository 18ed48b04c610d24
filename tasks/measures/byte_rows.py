"""Rows that hold bytes, in whatever type they come, and the exact distances between them.

Images are bytes before they are anything else. As uint8, as floats that are whole numbers up to 255, or as
floats that are such numbers divided by 255, their differences are whole numbers of one unit, and
``|a-b|² = |a|² + |b|² - 2ab`` can be formed in integers: nothing is rounded, so nothing depends on block
size, order, number of threads or machine. Bytes are shifted by 128, which changes no difference, so that
they fit the signed 8-bit products of `tasks.measures.products`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.measures.distances import BlockSource, flatten
from tasks.measures.products import MAX_FEATURES, Product, SignedBytes

IntArray = npt.NDArray[np.integer[Any]]

# What one grey level may be in the array: whole numbers, or 255 levels between 0 and 1.
UNITS = (1.0, 1 / 255)
# Squared distances below 255² per feature fit int32 up to this many features, and int64 beyond.
INT32_FEATURES = (2**31 - 1) // 255**2

_NORM_ROWS = 64  # rows per product whose diagonal are the norms: wasteful, and still faster than summing
_PIECE_VALUES = (
    1 << 15
)  # values at a time, so that all steps of a check or a conversion find them in the cache


def is_byte_dtype(dtype: np.dtype[Any]) -> bool:
    """Whether rows of this dtype need no look at their values."""
    return dtype in (np.uint8, np.int8, np.bool_)


@dataclass(frozen=True)
class ByteRows:
    """Rows of a source whose every value is a byte times ``unit``, read as those bytes.

    Attributes:
        source: Where rows are read.
        unit: One grey level in the values of ``source``, one of ``UNITS``.
    """

    source: BlockSource
    unit: float

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return self.source.num_rows

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of one row."""
        return self.source.row_shape

    def read(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """Return rows ``start`` to ``stop`` as bytes, ``(stop - start, *row_shape)``."""
        rows = self.source.read(start, stop)
        out = np.empty(rows.shape, np.uint8)
        flat, flat_out = flatten(rows), flatten(out)
        for piece in _pieces(flat):
            flat_out[piece] = _levels(flat[piece], self.unit)
        return out


def as_byte_rows(source: BlockSource, unit: float | None) -> BlockSource:
    """The source as bytes of ``unit``, as `byte_units` found it; the source itself where it needs no help."""
    if unit is None or is_byte_dtype(source.read(0, 1).dtype):
        return source
    return ByteRows(source, unit)


def byte_units(rows: npt.NDArray[Any]) -> tuple[float, ...]:
    """Those of ``UNITS`` of which every value is a whole multiple from 0 to 255, to the last bit.

    Bytes divided by 255 have been rounded to their dtype; a value counts as such a quotient if it is the
    very float that the division gives. Half-precision floats are too coarse for that, their quotients count
    as floats.

    Args:
        rows: ``(num_rows, num_features)``, any real dtype; NaN and infinity are multiples of nothing.

    Returns:
        The units; for dtypes that hold bytes only, 1 without a look.
    """
    if is_byte_dtype(rows.dtype):
        return (1.0,)
    quotients = rows.dtype in (np.float32, np.float64)
    return tuple(unit for unit in UNITS if (unit == 1 or quotients) and _all_multiples(rows, unit))


def _all_multiples(rows: npt.NDArray[Any], unit: float) -> bool:
    divisor = rows.dtype.type(255)
    with np.errstate(
        invalid="ignore", over="ignore"
    ):  # casts of NaN and of large values, found unequal below
        for piece in _pieces(rows):
            levels = _levels(rows[piece], unit)
            back = levels if unit == 1 else levels.astype(rows.dtype) / divisor
            if not (back == rows[piece]).all():
                return False
    return True


def _pieces(rows: npt.NDArray[Any]) -> Iterator[tuple[slice, slice]]:
    """Cut rows into pieces small enough for the cache."""
    num_rows, num_features = rows.shape
    width = min(num_features, _PIECE_VALUES)
    height = max(1, _PIECE_VALUES // max(width, 1))
    for top in range(0, num_rows, height):
        for left in range(0, num_features, width):
            yield slice(top, top + height), slice(left, left + width)


def _levels(values: npt.NDArray[Any], unit: float) -> npt.NDArray[np.uint8]:
    """Grey levels of values that are bytes times ``unit``."""
    if unit == 1:
        return values.astype(np.uint8)
    return np.rint(values * values.dtype.type(255)).astype(np.uint8)


def signed(rows: npt.NDArray[Any]) -> SignedBytes:
    """Rows of bytes shifted into int8, in memory of their own; differences between rows stay the same."""
    if rows.dtype == np.uint8:
        return np.bitwise_xor(rows, 128, dtype=np.uint8).view(np.int8)  # x - 128 in two's complement
    return rows.astype(np.int8)


def squared_norms(rows: SignedBytes, product: Product) -> npt.NDArray[np.int64]:
    """``|a|²`` of every row."""
    norms = np.zeros(len(rows), np.int64)
    for part in _feature_parts(rows.shape[1]):
        for start in range(0, len(rows), _NORM_ROWS):
            strip = rows[start : start + _NORM_ROWS, part]
            norms[start : start + _NORM_ROWS] += product(strip, strip).diagonal()
    return norms


def whole_squared_distances(
    a: SignedBytes,
    b: SignedBytes,
    norms_a: npt.NDArray[np.int64],
    norms_b: npt.NDArray[np.int64],
    product: Product,
) -> IntArray:
    """Squared distances between the rows of two blocks, without any rounding.

    Args:
        a: ``(num_a, num_features)``.
        b: ``(num_b, num_features)``; may be ``a``.
        norms_a: ``(num_a,)`` from `squared_norms`.
        norms_b: ``(num_b,)``.
        product: From `tasks.measures.products.choose_product`.

    Returns:
        ``(num_a, num_b)``, int32 up to ``INT32_FEATURES`` features, where no step can leave it, else int64;
        always below `tasks.measures.partials.far` of that dtype.
    """
    num_features = a.shape[1]
    dtype = np.int32 if num_features <= INT32_FEATURES else np.int64
    squared: IntArray | None = None
    for part in _feature_parts(num_features):
        left = a[:, part]
        gram = product(left, left if a is b else b[:, part])
        squared = gram.astype(dtype, copy=False) if squared is None else np.add(squared, gram, out=squared)
    if squared is None:
        raise ValueError("rows need at least one feature")
    squared *= -2
    squared += norms_a[:, None].astype(dtype)
    squared += norms_b.astype(dtype)
    return squared


def _feature_parts(num_features: int) -> list[slice]:
    """Equal parts of features, none so long that a product could overflow."""
    num_parts = max(1, -(-num_features // MAX_FEATURES))
    edges = [num_features * part // num_parts for part in range(num_parts + 1)]
    return [slice(start, stop) for start, stop in pairwise(edges)]
