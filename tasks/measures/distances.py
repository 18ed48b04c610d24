"""Exact squared distances between two blocks of rows.

All distances come from one fast matrix product, by the expanded form
``|a-b|² = |a|² + |b|² - 2ab``. There are two methods.

**Bytes.** This method is used if every pixel value is a byte. Bytes are stored as uint8, as
whole numbers up to 255 of any dtype, or as such numbers divided by 255. All terms are then
integers, and nothing is rounded. So the result does not depend on block size, order, threads
or machine.

**Floats.** This method is used for all other rows. The expanded form loses digits if two rows
are much closer to each other than to the origin. Therefore the rows are centered first.
Products are summed in float32 inside a chunk of features, and in float64 over chunks. If the
squared distance of a pair is a small fraction of ``|a|² + |b|²``, the distance is computed
again from the differences, in float64. Some blocks have many such pairs, for example if the
data have few dimensions. The whole block is then computed again in float64 and checked by the
same rule.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from tasks.array_types import AnyArray, Bytes, FloatArray, IntArray
from tasks.measures.products import MAX_FEATURES, Product

CLOSE_FRACTION = {"float32": 0.02, "float64": 1e-8}
"""Fraction of ``|a|² + |b|²`` below which a squared distance is computed again, by dtype.
Below this fraction, the relative error of the expanded form may exceed 1e-5 (float32) or 1e-7
(float64). Both fractions were measured, and tests check them on difficult data."""
UNDERFLOW = {"float32": 1e-30, "float64": 1e-280}
"""Squared distance below which a product may have underflowed, by dtype."""
CLOSE_PAIRS_PER_ROW = 8
"""Number of close pairs per row above which the whole block is computed again in float64. With
more close pairs, this is faster than computing each of them again."""
DIRECT_BYTES = 32 << 20
"""Bytes of one batch of pairs whose distances are computed from their differences."""
SLICE_ROWS = 64
"""Number of rows in a slice. The center is estimated from a few slices."""
NUM_SLICES = 8
"""Number of slices from which the center is estimated."""


@runtime_checkable
class BlockSource(Protocol):
    """A source of rows, which are read block by block. It must be picklable."""

    @property
    def num_rows(self) -> int:
        """The number of images or points."""

    @property
    def row_shape(self) -> tuple[int, ...]:
        """The shape of one row; for images ``(channels, height, width)``."""

    def read(self, start: int, stop: int) -> AnyArray:
        """Return rows ``start`` to ``stop`` as an array ``(stop - start, *row_shape)``."""


@dataclass(frozen=True)
class ArraySource:
    """A source whose rows are in memory."""

    array: AnyArray

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return int(self.array.shape[0])

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of one row."""
        return tuple(self.array.shape[1:])

    def read(self, start: int, stop: int) -> AnyArray:
        """Return a view of rows ``start`` to ``stop``."""
        return self.array[start:stop]


def as_source(rows: BlockSource | npt.ArrayLike) -> BlockSource:
    """Return rows as a source. An array becomes an :class:`ArraySource`."""
    if isinstance(rows, BlockSource):
        return rows
    return ArraySource(np.asarray(rows))


@dataclass(frozen=True)
class Precision:
    """Precision and device of the matrix products. They change the speed, not the neighbors.

    Attributes:
        dtype: ``"float32"`` or ``"float64"``, for products within one chunk of features.
        device: ``"cpu"`` (numpy's BLAS) or a torch device such as ``"cuda"``.
        chunk_features: Number of features in a chunk. It bounds the memory of the centered
            copies.
        exact_bytes: True to measure rows of bytes in integers, for any ``dtype``.
    """

    dtype: str = "float32"
    device: str = "cpu"
    chunk_features: int = 8192
    exact_bytes: bool = True


def estimate_center(source: BlockSource) -> FloatArray:
    """Return an estimate of the mean row. Subtracting it makes products small.

    The estimate is the mean of a few slices of rows that are spread over the source.

    Returns:
        ``(num_features,)`` float64. For integer rows the mean is rounded to integers, because
        float32 represents integer differences exactly.
    """
    last_start = max(source.num_rows - SLICE_ROWS, 0)
    starts = np.unique(np.linspace(0, last_start, NUM_SLICES).astype(int))
    slices = []
    for start in starts.tolist():
        stop = min(start + SLICE_ROWS, source.num_rows)
        slices.append(flatten(source.read(start, stop)))
    means = [rows.mean(axis=0, dtype=np.float64) for rows in slices]
    center: FloatArray = np.mean(means, axis=0)
    if slices[0].dtype.kind in "biu":
        return np.rint(center)
    return center


def flatten(rows: AnyArray) -> AnyArray:
    """Return a view of rows of any shape, as ``(num_rows, num_features)``."""
    return rows.reshape(len(rows), -1)


def squared_distances(
    a: AnyArray,
    b: AnyArray | None,
    center: FloatArray,
    precision: Precision,
) -> tuple[FloatArray, str]:
    """Return the squared distances between the rows of two blocks of floats.

    Args:
        a: ``(num_a, num_features)``, any real dtype.
        b: ``(num_b, num_features)``. None computes the distances between the rows of ``a``, in
            half of the time.
        center: ``(num_features,)`` float64, subtracted from both blocks.
        precision: Precision of the products.

    Returns:
        Squared distances ``(num_a, num_b)``, and the dtype that was needed. The dtype is
        ``"float64"`` if too many pairs were too close for float32. If there are more blocks,
        the caller saves time by requesting this dtype for them.
    """
    squared, norms_a, norms_b = _expanded(a, b, center, precision)
    close_rows, close_columns = _close_pairs(squared, norms_a, norms_b, precision.dtype)
    if b is None:
        above_diagonal = close_rows < close_columns
        close_rows = close_rows[above_diagonal]
        close_columns = close_columns[above_diagonal]
        np.fill_diagonal(squared, 0.0)
    are_finite = np.isfinite(norms_a).all() and np.isfinite(norms_b).all()
    has_many_close = len(close_rows) > CLOSE_PAIRS_PER_ROW * max(squared.shape)
    if precision.dtype == "float32" and (has_many_close or not are_finite):
        return squared_distances(a, b, center, replace(precision, dtype="float64"))
    if len(close_rows):
        columns_of = a if b is None else b
        direct = direct_squared_distances(a, columns_of, close_rows, close_columns)
        squared[close_rows, close_columns] = direct
        if b is None:
            squared[close_columns, close_rows] = direct
    return squared, precision.dtype


def direct_squared_distances(
    a: AnyArray,
    b: AnyArray,
    rows: AnyArray,
    columns: AnyArray,
) -> FloatArray:
    """Return the squared distances of some pairs, computed from their differences in float64.

    Args:
        a: ``(num_a, num_features)``.
        b: ``(num_b, num_features)``.
        rows: ``(num_pairs,)`` index in ``a`` of the first row of each pair.
        columns: ``(num_pairs,)`` index in ``b`` of the second row of each pair.

    Returns:
        ``(num_pairs,)`` float64.
    """
    result = np.empty(len(rows))
    pair_bytes = 16 * max(a.shape[1], 1)
    batch = max(1, DIRECT_BYTES // pair_bytes)
    for start in range(0, len(rows), batch):
        pairs = slice(start, start + batch)
        difference = a[rows[pairs]].astype(np.float64)
        difference -= b[columns[pairs]]
        result[pairs] = np.einsum("ij,ij->i", difference, difference)
    return result


def _expanded(
    a: AnyArray,
    b: AnyArray | None,
    center: FloatArray,
    precision: Precision,
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return ``|a|² + |b|² - 2ab`` of centered rows, and the squared norms of both blocks."""
    dtype = np.dtype(precision.dtype)
    num_features = a.shape[1]
    width = min(precision.chunk_features, num_features)
    has_one_chunk = num_features == width
    num_b = len(a if b is None else b)
    sum_dtype = dtype if has_one_chunk else np.dtype(np.float64)
    gram_matrix = np.zeros((len(a), num_b), sum_dtype)
    norms_a = np.zeros(len(a))
    norms_b = np.zeros(num_b)
    # Buffers are allocated once: allocating memory for every chunk takes as long as filling
    # it.
    buffer_a = np.empty((len(a), width), dtype)
    buffer_b = np.empty((num_b, width), dtype)  # uses no memory until it is written
    product = gram_matrix if has_one_chunk else np.empty(gram_matrix.shape, dtype)
    # After an overflow, a norm is not finite. The caller checks the norms.
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, num_features, width):
            chunk = slice(start, start + width)
            chunk_a = _center_into(buffer_a, a[:, chunk], center[chunk])
            chunk_b = chunk_a
            if b is not None:
                chunk_b = _center_into(buffer_b, b[:, chunk], center[chunk])
                norms_a += np.square(chunk_a).sum(axis=1)
                norms_b += np.square(chunk_b).sum(axis=1)
            _product_into(product, chunk_a, chunk_b, precision.device)
            if not has_one_chunk:
                gram_matrix += product
        if b is None:
            norms_a = gram_matrix.diagonal().astype(np.float64)
            norms_b = norms_a
        gram_matrix *= -2
        gram_matrix += norms_a[:, None].astype(gram_matrix.dtype)
        gram_matrix += norms_b.astype(gram_matrix.dtype)
        return gram_matrix.astype(dtype, copy=False), norms_a, norms_b


EXACT_IN_FLOAT32 = (
    np.float32,
    np.float16,
    np.uint8,
    np.int8,
    np.uint16,
    np.int16,
    np.bool_,
)
"""Dtypes whose values float32 represents exactly."""


def _center_into(
    buffer: FloatArray,
    rows: AnyArray,
    center: FloatArray,
) -> FloatArray:
    """Write rows minus center into ``buffer``, and return the written part.

    The subtraction is in float64 if float32 does not represent all values of the rows exactly.
    """
    out = buffer[:, : rows.shape[1]]
    subtract_in: np.dtype[Any] = np.dtype(np.float64)
    if rows.dtype in EXACT_IN_FLOAT32:
        subtract_in = buffer.dtype
    np.subtract(rows, center.astype(subtract_in), out=out, dtype=subtract_in, casting="same_kind")
    return out


def _product_into(
    out: FloatArray,
    a: FloatArray,
    b: FloatArray,
    device: str,
) -> None:
    """Write ``a @ b.T`` into ``out``. If ``a is b``, BLAS computes one triangle only (syrk)."""
    if device == "cpu":
        np.matmul(a, b.T, out=out)
        return
    import torch

    # TF32 would round the factors to 10 bits. The distances would be too inaccurate.
    precision_before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        left = torch.from_numpy(a).to(device)
        right = left if a is b else torch.from_numpy(b).to(device)
        out[...] = (left @ right.T).cpu().numpy()
    finally:
        torch.set_float32_matmul_precision(precision_before)


def _close_pairs(
    squared: FloatArray,
    norms_a: FloatArray,
    norms_b: FloatArray,
    dtype: str,
) -> tuple[IntArray, IntArray]:
    """Return the rows and the columns of all pairs that are too close for the expanded form."""
    fraction = CLOSE_FRACTION[dtype]
    floor = UNDERFLOW[dtype]
    largest_norms = norms_a.max(initial=0.0) + norms_b.max(initial=0.0)
    # This quick check uses the largest possible limit, because most blocks have no close pair.
    # The comparisons are negated, so that NaN counts as close. An overflow causes NaN.
    candidates = np.flatnonzero(~(squared >= max(fraction * largest_norms, floor)))
    rows, columns = np.divmod(candidates, max(squared.shape[1], 1))
    sums = norms_a[rows] + norms_b[columns]
    limits = np.maximum(fraction * sums, floor)
    is_close = ~(squared[rows, columns] >= limits)
    return rows[is_close], columns[is_close]


UNITS = (1.0, 1 / 255)
"""Possible steps between two gray levels: 1 for levels from 0 to 255, 1/255 for levels from 0
to 1."""
INT32_FEATURES = (2**31 - 1) // 255**2
"""Largest number of features for which squared distances of bytes fit into int32. For longer
rows, squared distances are int64."""
NORM_ROWS = 64
"""Number of rows in a product whose diagonal contains the squared norms. Only the diagonal is
used. This is still faster than a sum of squares in integers."""
PIECE_VALUES = 1 << 15
"""Number of values that are converted to bytes at a time. All steps of a conversion then use
the processor's cache."""


def is_byte_dtype(dtype: np.dtype[Any]) -> bool:
    """Return whether all values of this dtype are bytes."""
    return dtype in (np.uint8, np.int8, np.bool_)


@dataclass(frozen=True)
class ByteRows:
    """A source that reads the values of another source as bytes.

    Attributes:
        source: Source whose values are all a byte times ``unit``.
        unit: One of ``UNITS``.
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
        """Return rows ``start`` to ``stop`` as bytes, ``(stop - start, *row_shape)``."""
        rows = self.source.read(start, stop)
        if is_byte_dtype(rows.dtype):
            return rows
        levels = np.empty(rows.shape, np.uint8)
        _fill_levels(levels, rows, self.unit)
        return levels


def as_bytes(source: BlockSource) -> BlockSource:
    """Return a source of bytes if a source is an array in memory that contains only bytes.

    The array may have any dtype. It is read once. Any other source is returned unchanged.
    """
    if not isinstance(source, ArraySource) or not source.array.size:
        return source
    if is_byte_dtype(source.array.dtype):
        return source
    levels = np.empty(source.array.shape, np.uint8)  # uses no memory until it is written
    for unit in _possible_units(source.array.dtype):
        if _fill_levels(levels, source.array, unit):
            return ByteRows(ArraySource(levels), unit)
    return source


def byte_units(rows: AnyArray) -> set[float]:
    """Return the units in which every value is a whole number.

    These are the ``UNITS`` for which each value of ``rows`` is k times the unit, with a whole
    number k from 0 to 255. For the unit 1/255, every value must be exactly the float that a
    division by 255 returns. float16 is too coarse for this unit.
    """
    if is_byte_dtype(rows.dtype):
        return {1.0}
    levels = np.empty(rows.shape, np.uint8)
    return {unit for unit in _possible_units(rows.dtype) if _fill_levels(levels, rows, unit)}


def _possible_units(dtype: np.dtype[Any]) -> tuple[float, ...]:
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        return ()
    if dtype.kind == "f" and dtype.itemsize >= 4:
        return UNITS
    return UNITS[:1]  # the unit 1/255 needs floats of 32 bits


def _fill_levels(
    out: IntArray,
    rows: AnyArray,
    unit: float,
) -> bool:
    """Convert ``rows`` to gray levels, and write them into ``out``.

    Returns:
        True if every value is a gray level. The conversion stops at the first piece that
        contains another value.
    """
    divisor = rows.dtype.type(255)
    row_values = int(np.prod(rows.shape[1:]))
    width = max(1, min(row_values, PIECE_VALUES))
    height = max(1, PIECE_VALUES // width)
    # Casting NaN or a large value has an undefined result, which never equals the value.
    with np.errstate(invalid="ignore", over="ignore"):
        for top in range(0, len(rows), height):
            # Only a few rows are flattened at a time: flatten copies rows that are not
            # contiguous.
            values_in = flatten(rows[top : top + height])
            levels_out = flatten(out[top : top + height])
            for left in range(0, row_values, width):
                values = values_in[:, left : left + width]
                if unit == 1:
                    levels = values.astype(np.uint8)
                    is_equal = levels == values
                else:
                    levels = np.rint(values * divisor).astype(np.uint8)
                    is_equal = levels.astype(rows.dtype) / divisor == values
                if not is_equal.all():
                    return False
                levels_out[:, left : left + width] = levels
    return True


def squared_norms(rows: Bytes, product: Product) -> IntArray:
    """Return ``|a|²`` of every row of bytes, ``(num_rows,)``."""
    norms = np.empty(len(rows), np.int64)
    for start in range(0, len(rows), NORM_ROWS):
        strip = rows[start : start + NORM_ROWS]
        norms[start : start + NORM_ROWS] = gram(strip, strip, product).diagonal()
    return norms


def gram(
    a: Bytes,
    b: Bytes,
    product: Product,
) -> IntArray:
    """Return the products of the rows of two blocks of bytes.

    Args:
        a: ``(num_a, num_features)``, at least one feature.
        b: ``(num_b, num_features)``. If ``b is a``, entries below the diagonal may be missing.
        product: Multiplies rows of at most ``MAX_FEATURES`` features.

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


def expand(
    products: IntArray,
    norms_a: IntArray,
    norms_b: IntArray,
) -> IntArray:
    """Convert products of rows to squared distances, in place.

    Args:
        products: ``(num_a, num_b)`` result of `gram`.
        norms_a: ``(num_a,)`` squared norms of the rows of a.
        norms_b: ``(num_b,)`` squared norms of the rows of b.

    Returns:
        ``products``, which now contains the squared distances.
    """
    products *= -2
    products += norms_a[:, None].astype(products.dtype)
    products += norms_b.astype(products.dtype)
    return products
