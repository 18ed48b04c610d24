"""Read rows as bytes, and compute exact squared distances between rows of bytes.

Rows of the dtypes uint8, int8 and bool are bytes. Rows of another dtype are measured as bytes
if every value is a whole number from 0 to 255 times a *unit*, which is 1 or 1/255.

Squared distances are computed as ``|a-b|² = |a|² + |b|² - 2ab``, the expanded form. All terms
are integers, and nothing is rounded. So the distances do not depend on the block size, the
order, the number of threads or the machine. The caller multiplies the distances by the unit.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from tasks.array_types import AnyArray, Bytes, IntArray
from tasks.measures.distances import ArraySource, BlockSource, flatten
from tasks.measures.products import MAX_FEATURES, Product

UNITS = (1.0, 1 / 255)
"""All possible units of bytes."""
INT32_FEATURES = (2**31 - 1) // 255**2
"""Largest number of features for which the squared distances of bytes fit into int32. Rows
with more features have squared distances in int64."""
NORM_ROWS = 64
"""Number of rows in one matrix product of :func:`squared_norms`."""
PIECE_VALUES = 1 << 15
"""Number of values that are converted to bytes at a time. This number of values stays in the
processor's cache during all steps of a conversion."""


def is_byte_dtype(dtype: np.dtype[Any]) -> bool:
    """Return whether all values of this dtype are bytes."""
    return dtype in (np.uint8, np.int8, np.bool_)


@dataclass(frozen=True)
class ByteRows:
    """A source that reads the values of another source as bytes.

    Attributes:
        source: The other source. Each of its values is a byte times ``unit``.
        unit: The unit of the bytes, one of ``UNITS``.
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

    def read(self, start: int, stop: int) -> AnyArray:
        """Return the rows from ``start`` to before ``stop`` as bytes, ``(num_rows,
        *row_shape)``.
        """
        rows = self.source.read(start, stop)
        if is_byte_dtype(rows.dtype):
            return rows
        converted = np.empty(rows.shape, np.uint8)
        _write_bytes(converted, rows, self.unit)
        return converted


def as_bytes(source: BlockSource) -> BlockSource:
    """Convert a source to a source of bytes, if it is an array in memory with only bytes.

    The array may have any dtype: every value must be a byte times one unit. The array is read
    once. Any other source is returned unchanged.
    """
    if not isinstance(source, ArraySource) or not source.array.size:
        return source
    if is_byte_dtype(source.array.dtype):
        return source
    converted = np.empty(source.array.shape, np.uint8)  # uses no memory until it is written
    for unit in _possible_units(source.array.dtype):
        if _write_bytes(converted, source.array, unit):
            return ByteRows(ArraySource(converted), unit)
    return source


def byte_units(rows: AnyArray) -> set[float]:
    """Return the units for which every value of ``rows`` is a byte times the unit.

    With the unit 1/255, every value must be exactly the float that is the result of a byte
    divided by 255.
    """
    if is_byte_dtype(rows.dtype):
        return {1.0}
    converted = np.empty(rows.shape, np.uint8)
    return {unit for unit in _possible_units(rows.dtype) if _write_bytes(converted, rows, unit)}


def _possible_units(dtype: np.dtype[Any]) -> tuple[float, ...]:
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        return ()
    if dtype.kind == "f" and dtype.itemsize >= 4:
        return UNITS
    return UNITS[:1]  # float16 is too coarse for the unit 1/255


def _write_bytes(out: IntArray, rows: AnyArray, unit: float) -> bool:
    """Convert ``rows`` to bytes, and write them into ``out``.

    Returns:
        True if every value is a byte times ``unit``. If a value is not, the conversion stops,
        and ``out`` is incomplete.
    """
    divisor = rows.dtype.type(255)
    row_values = int(np.prod(rows.shape[1:]))
    width = max(1, min(row_values, PIECE_VALUES))
    height = max(1, PIECE_VALUES // width)
    # If NaN or a large value is converted to a byte, the result is undefined, but never equals
    # the original value.
    with np.errstate(invalid="ignore", over="ignore"):
        for top in range(0, len(rows), height):
            # Only a few rows are flattened at a time, because `flatten` copies rows that are
            # not contiguous.
            values_in = flatten(rows[top : top + height])
            bytes_out = flatten(out[top : top + height])
            for left in range(0, row_values, width):
                values = values_in[:, left : left + width]
                if unit == 1:
                    converted = values.astype(np.uint8)
                    is_equal = converted == values
                else:
                    converted = np.rint(values * divisor).astype(np.uint8)
                    is_equal = converted.astype(rows.dtype) / divisor == values
                if not is_equal.all():
                    return False
                bytes_out[:, left : left + width] = converted
    return True


def squared_norms(rows: Bytes, product: Product) -> IntArray:
    """Return ``|a|²`` of every row of bytes, ``(num_rows,)``.

    The function multiplies a few rows with themselves at a time. The diagonal of each product
    contains the norms. This is faster than a sum of squares in integers, although the other
    entries of the product are not used.
    """
    norms = np.empty(len(rows), np.int64)
    for start in range(0, len(rows), NORM_ROWS):
        strip = rows[start : start + NORM_ROWS]
        norms[start : start + NORM_ROWS] = row_products(strip, strip, product).diagonal()
    return norms


def row_products(a: Bytes, b: Bytes, product: Product) -> IntArray:
    """Return the scalar products of the rows of two blocks of bytes.

    Args:
        a: First block of rows, ``(num_a, num_features)``, with at least one feature.
        b: Second block of rows, ``(num_b, num_features)``. If ``b is a``, the entries of the
            result below the diagonal may be undefined.
        product: Function that multiplies rows of at most ``MAX_FEATURES`` features.

    Returns:
        ``(num_a, num_b)``, int32 for at most ``INT32_FEATURES`` features, otherwise int64.
    """
    num_features = a.shape[1]
    dtype = np.int32 if num_features <= INT32_FEATURES else np.int64
    num_parts = -(-num_features // MAX_FEATURES)
    edges = (np.arange(num_parts + 1) * num_features // num_parts).tolist()
    total: IntArray = np.zeros((0, 0), dtype)
    for start, stop in pairwise(edges):
        left = a[:, start:stop]
        right = left if a is b else b[:, start:stop]
        part = product(left, right)
        if start == 0:
            total = part.astype(dtype, copy=False)
        else:
            np.add(total, part, out=total)
    return total


def to_squared_distances(products: IntArray, norms_a: IntArray, norms_b: IntArray) -> IntArray:
    """Convert scalar products of rows to squared distances, in place.

    Args:
        products: ``(num_a, num_b)`` result of `row_products`.
        norms_a: ``(num_a,)`` squared norms of the rows of a.
        norms_b: ``(num_b,)`` squared norms of the rows of b.

    Returns:
        ``products``, which now contains the squared distances.
    """
    products *= -2
    products += norms_a[:, None].astype(products.dtype)
    products += norms_b.astype(products.dtype)
    return products
