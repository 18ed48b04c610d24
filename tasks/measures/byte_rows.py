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

from tasks.measures.distances import ArraySource, BlockSource, flatten
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
    """Rows whose every value is a byte times ``unit``, read as those bytes.

    Attributes:
        source: Where rows are read, as those bytes or as the values.
        unit: One grey level in the values, one of ``UNITS``.
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

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Return rows ``start`` to ``stop`` as bytes, ``(stop - start, *row_shape)``."""
        rows = self.source.read(start, stop)
        if is_byte_dtype(rows.dtype):
            return rows
        levels = np.empty(rows.shape, np.uint8)
        _fill_levels(levels, rows, self.unit)
        return levels


def as_bytes(source: BlockSource) -> BlockSource:
    """Rows in memory as bytes, where they are bytes in a wider type; anything else as it is.

    A quarter of the memory of float32 is spent once, so that the wide rows are looked at once only, and so
    that it is bytes that are sent to other processes.
    """
    if not isinstance(source, ArraySource) or is_byte_dtype(source.array.dtype):
        return source
    if source.array.size == 0:
        return source
    levels = np.empty(source.array.shape, np.uint8)  # no memory is taken before it is written
    for unit in _possible_units(source.array.dtype):
        if _fill_levels(levels, source.array, unit):
            return ByteRows(ArraySource(levels), unit)
    return source


def with_unit(source: BlockSource, unit: float | None) -> BlockSource:
    """A source that reads bytes, if ``unit`` says that all its rows are bytes; else the source itself."""
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
    return tuple(unit for unit in _possible_units(rows.dtype) if _fill_levels(None, rows, unit))


def _possible_units(dtype: np.dtype[Any]) -> tuple[float, ...]:
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        return ()
    return UNITS if dtype.kind == "f" and dtype.itemsize >= 4 else UNITS[:1]


def _fill_levels(out: npt.NDArray[np.uint8] | None, rows: npt.NDArray[Any], unit: float) -> bool:
    """Write the grey levels of ``rows`` to ``out``; stops and returns False at a value without one."""
    divisor = rows.dtype.type(255)
    with np.errstate(invalid="ignore", over="ignore"):  # casts of NaN and large values are found unequal
        for top, part, values in _pieces(rows):
            if unit == 1:
                levels = values.astype(np.uint8)
                equal = levels == values
            else:
                levels = np.rint(values * divisor).astype(np.uint8)
                equal = levels.astype(rows.dtype) / divisor == values
            if not equal.all():
                return False
            if out is not None:
                flatten(out[top : top + len(values)])[:, part] = levels
    return True


def _pieces(rows: npt.NDArray[Any]) -> Iterator[tuple[int, slice, npt.NDArray[Any]]]:
    """Yield first row, features and values of pieces small enough for the cache.

    Rows are flattened few at a time, since that copies those that do not lie one after another.
    """
    num_features = int(np.prod(rows.shape[1:]))
    width = max(1, min(num_features, _PIECE_VALUES))
    height = max(1, _PIECE_VALUES // width)
    for top in range(0, len(rows), height):
        values = flatten(rows[top : top + height])
        for left in range(0, num_features, width):
            yield top, slice(left, left + width), values[:, left : left + width]


def signed(rows: npt.NDArray[Any], buffer: SignedBytes | None = None) -> SignedBytes:
    """Rows of bytes shifted into int8; differences between rows stay the same.

    Args:
        rows: ``(num_rows, num_features)`` of a byte dtype; left as they are.
        buffer: ``(at least num_rows, num_features)`` to write to: filling fresh memory takes twice as long.

    Returns:
        ``(num_rows, num_features)``, a part of ``buffer`` if there is one.
    """
    out = np.empty(rows.shape, np.int8) if buffer is None else buffer[: len(rows)]
    if rows.dtype == np.uint8:
        np.bitwise_xor(rows, 128, out=out.view(np.uint8))  # x - 128 in two's complement
    else:
        out[...] = rows
    return out


def squared_norms(rows: SignedBytes, product: Product) -> npt.NDArray[np.int64]:
    """``|a|²`` of every row."""
    norms = np.zeros(len(rows), np.int64)
    for part in _feature_parts(rows.shape[1]):
        for start in range(0, len(rows), _NORM_ROWS):
            strip = rows[start : start + _NORM_ROWS, part]
            norms[start : start + _NORM_ROWS] += product(strip, strip).diagonal()
    return norms


def gram(a: SignedBytes, b: SignedBytes, product: Product) -> IntArray:
    """Products of the rows of two blocks, ``(num_a, num_b)``; that of a block with itself holds its norms.

    Returns:
        int32 up to ``INT32_FEATURES`` features, else int64.
    """
    dtype = np.int32 if a.shape[1] <= INT32_FEATURES else np.int64
    total: IntArray | None = None
    for part in _feature_parts(a.shape[1]):
        left = a[:, part]
        found = product(left, left if a is b else b[:, part])
        total = found.astype(dtype, copy=False) if total is None else np.add(total, found, out=total)
    if total is None:
        raise ValueError("rows need at least one feature")
    return total


def expand(products: IntArray, norms_a: npt.NDArray[np.int64], norms_b: npt.NDArray[np.int64]) -> IntArray:
    """Turn products of rows into squared distances, in place: ``|a|² + |b|² - 2ab``."""
    products *= -2
    products += norms_a[:, None].astype(products.dtype)
    products += norms_b.astype(products.dtype)
    return products


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
    return expand(gram(a, b, product), norms_a, norms_b)


def _feature_parts(num_features: int) -> list[slice]:
    """Equal parts of features, none so long that a product could overflow."""
    num_parts = max(1, -(-num_features // MAX_FEATURES))
    edges = [num_features * part // num_parts for part in range(num_parts + 1)]
    return [slice(start, stop) for start, stop in pairwise(edges)]
