"""Exact squared distances between two blocks of rows: fast where rounding is harmless, direct where
not.

``|a-b|² = |a|² + |b|² - 2ab`` turns distances into a matrix product, which is fast, but it loses
digits when two rows are much closer to each other than to the origin. Rows are therefore centred
first; products are summed over chunks of features, in float32 inside a chunk and in float64 across
chunks; and every pair whose squared distance is a small share of ``|a|² + |b|²`` is recomputed
directly from the differences in float64. When many pairs of a block are that close (data on a thin,
curved or low-dimensional set), the whole block is redone in float64 instead, by the same rule.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from tasks.measures.products import MAX_FEATURES, Bytes, Product

FloatArray = npt.NDArray[np.floating[Any]]

# Share of |a|²+|b|² under which the expanded form may be off by more than 1e-5 (float32) or 1e-7
# (float64) of the distance; measured, and held by tests on data made to break it.
CLOSE_SHARE = {"float32": 0.02, "float64": 1e-8}

# Squared distances under which products may have underflowed.
UNDERFLOW = {"float32": 1e-30, "float64": 1e-280}

# Above this many close pairs per row a float64 product is cheaper than recomputing pair by pair.
CLOSE_PAIRS_PER_ROW = 8

_DIRECT_BYTES = 32 << 20  # memory for one batch of directly recomputed pairs


@runtime_checkable
class BlockSource(Protocol):
    """Rows that can be read a block at a time; picklable."""

    @property
    def num_rows(self) -> int:
        """Number of images or points."""

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of one row, for images ``(channels, height, width)``."""

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Return rows ``start`` to ``stop`` as an array ``(stop - start, *row_shape)``."""


@dataclass(frozen=True)
class ArraySource:
    """A source whose rows are in memory."""

    array: npt.NDArray[Any]

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return int(self.array.shape[0])

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of one row."""
        return tuple(self.array.shape[1:])

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Return a view of rows ``start`` to ``stop``."""
        return self.array[start:stop]


def as_source(rows: BlockSource | npt.ArrayLike) -> BlockSource:
    """Wrap an array as a source; leave a source as it is."""
    return rows if isinstance(rows, BlockSource) else ArraySource(np.asarray(rows))


@dataclass(frozen=True)
class Precision:
    """How products are formed; never changes which neighbours are found, only how fast.

    Attributes:
        dtype: ``"float32"`` or ``"float64"``, of products within one chunk of features.
        chunk_features: Features per chunk; bounds the memory of the centred copies.
        device: ``"cpu"`` (numpy's BLAS) or a torch device such as ``"cuda"``.
        exact_bytes: Measure rows of bytes in whole numbers, whatever ``dtype`` says.
    """

    dtype: str = "float32"
    chunk_features: int = 8192
    device: str = "cpu"
    exact_bytes: bool = True


def estimate_centre(source: BlockSource, num_rows: int = 512) -> FloatArray:
    """Mean of a few slices spread over the rows, float64 ``(num_features,)``, which keeps the
    products small; of integer rows a whole number, so that centred pixels stay exact in float32.
    """
    total = source.num_rows
    starts = np.unique(np.linspace(0, max(total - 64, 0), max(num_rows // 64, 1)).astype(int))
    parts = [flatten(source.read(int(start), min(int(start) + 64, total))) for start in starts]
    integral = np.issubdtype(parts[0].dtype, np.integer) or parts[0].dtype == np.bool_
    centre: FloatArray = np.mean([part.mean(axis=0, dtype=np.float64) for part in parts], axis=0)
    return np.rint(centre) if integral else centre


def flatten(rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """View rows of any shape as ``(num_rows, num_features)``."""
    return rows.reshape(len(rows), -1)


def squared_distances(
    a: npt.NDArray[Any], b: npt.NDArray[Any] | None, centre: FloatArray, precision: Precision
) -> tuple[FloatArray, str]:
    """Squared distances between the rows of two blocks, or within one block, which costs half.

    Args:
        a: ``(num_a, num_features)``, any real dtype.
        b: ``(num_b, num_features)``, or None for the distances of ``a`` to itself.
        centre: ``(num_features,)`` float64, subtracted from both.
        precision: How the products are formed.

    Returns:
        ``(num_a, num_b)`` squared distances, and the dtype that was needed: ``"float64"`` when too
        many pairs were too close for float32; a caller with more blocks saves time by asking for it
        from then on.
    """
    squared, norms_a, norms_b = _expanded(a, b, centre, precision)
    close = _close_pairs(squared, norms_a, norms_b, precision.dtype)
    if b is None:
        upper = close[0] < close[1]
        close = close[0][upper], close[1][upper]
        np.fill_diagonal(squared, 0.0)
    overflow = not (np.isfinite(norms_a).all() and np.isfinite(norms_b).all())
    trouble = overflow or len(close[0]) > CLOSE_PAIRS_PER_ROW * max(squared.shape)
    if trouble and precision.dtype == "float32":
        return squared_distances(a, b, centre, replace(precision, dtype="float64"))
    if len(close[0]):
        direct = direct_squared_distances(a, a if b is None else b, *close)
        squared[close] = direct
        if b is None:
            squared[close[::-1]] = direct
    return squared, precision.dtype


def direct_squared_distances(
    a: npt.NDArray[Any], b: npt.NDArray[Any], rows: npt.NDArray[Any], columns: npt.NDArray[Any]
) -> FloatArray:
    """Squared distances of ``(a[rows], b[columns])`` from their differences, in float64."""
    result = np.empty(len(rows))
    step = max(1, _DIRECT_BYTES // (16 * max(a.shape[1], 1)))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        difference = a[rows[part]].astype(np.float64)
        difference -= b[columns[part]]
        result[part] = np.einsum("ij,ij->i", difference, difference)
    return result


def _expanded(
    a: npt.NDArray[Any], b: npt.NDArray[Any] | None, centre: FloatArray, precision: Precision
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """``|a|² + |b|² - 2ab`` of centred rows, summed over chunks of features, and both sides'
    ``|a|²``.
    """
    dtype = np.dtype(precision.dtype)
    num_features = a.shape[1]
    width = min(precision.chunk_features, num_features)
    one_chunk = num_features == width
    gram = np.zeros((len(a), len(a if b is None else b)), dtype if one_chunk else np.float64)
    norms_a, norms_b = np.zeros(len(gram)), np.zeros(gram.shape[1])
    # Buffers are made once: fresh memory for every chunk would cost as much as filling it.
    buffer_a = np.empty((len(a), width), dtype)
    buffer_b = buffer_a if b is None else np.empty((len(b), width), dtype)
    product = gram if one_chunk else np.empty(gram.shape, dtype)
    with np.errstate(
        over="ignore", invalid="ignore"
    ):  # overflow is caught by the caller, see `trouble`
        for start in range(0, num_features, width):
            part = slice(start, start + width)
            chunk_a = _centre_into(buffer_a, a[:, part], centre[part])
            chunk_b = chunk_a if b is None else _centre_into(buffer_b, b[:, part], centre[part])
            _product_into(product, chunk_a, chunk_b, precision.device)
            if not one_chunk:
                gram += product
            if b is not None:
                norms_a += np.square(chunk_a).sum(axis=1)
                norms_b += np.square(chunk_b).sum(axis=1)
        if b is None:
            norms_a = norms_b = gram.diagonal().astype(np.float64)
        gram *= -2
        gram += norms_a[:, None].astype(gram.dtype)
        gram += norms_b.astype(gram.dtype)
        return gram.astype(dtype, copy=False), norms_a, norms_b


def _centre_into(buffer: FloatArray, rows: npt.NDArray[Any], centre: FloatArray) -> FloatArray:
    """Rows minus centre in ``buffer``, subtracting in float64 when the rows hold more than float32
    does.
    """
    out = buffer[:, : rows.shape[1]]
    narrow = rows.dtype in (
        np.float32,
        np.float16,
        np.uint8,
        np.int8,
        np.uint16,
        np.int16,
        np.bool_,
    )
    subtract_in = buffer.dtype if narrow else np.dtype(np.float64)
    np.subtract(rows, centre.astype(subtract_in), out=out, dtype=subtract_in, casting="same_kind")
    return out


def _product_into(out: FloatArray, a: FloatArray, b: FloatArray, device: str) -> None:
    """``a @ b.T``; for ``a is b`` numpy's BLAS computes one triangle only (syrk)."""
    if device == "cpu":
        np.matmul(a, b.T, out=out)
        return
    import torch

    # TF32 keeps 10 bits of the factors, which would break the promise on distances.
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        left = torch.from_numpy(a).to(device)
        right = left if a is b else torch.from_numpy(b).to(device)
        out[...] = (left @ right.T).cpu().numpy()
    finally:
        torch.set_float32_matmul_precision(before)


def _close_pairs(
    squared: FloatArray, norms_a: FloatArray, norms_b: FloatArray, dtype: str
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Pairs whose distance is too small a share of their norms for the expanded form."""
    share, floor = CLOSE_SHARE[dtype], UNDERFLOW[dtype]
    ceiling = max(share * (norms_a.max(initial=0.0) + norms_b.max(initial=0.0)), floor)
    # Comparing against one number first: most blocks have no such pair, and stop here. The
    # comparison is negated so that NaN, which an overflow leaves behind, counts as close.
    rows, columns = np.divmod(np.flatnonzero(~(squared >= ceiling)), max(squared.shape[1], 1))
    keep = ~(
        squared[rows, columns] >= np.maximum(share * (norms_a[rows] + norms_b[columns]), floor)
    )
    return rows[keep], columns[keep]


# Images are bytes: as uint8, or as floats that are whole numbers up to 255, or such numbers divided
# by 255. Then ``|a-b|² = |a|² + |b|² - 2ab`` can be formed in integers: nothing is rounded, so
# nothing depends on block size, order, threads or machine.

IntArray = npt.NDArray[np.integer[Any]]

# What one grey level may be in the array: whole numbers, or 255 levels between 0 and 1.
UNITS = (1.0, 1 / 255)
# Squared distances fit int32 up to this many features, and int64 beyond.
INT32_FEATURES = (2**31 - 1) // 255**2

_NORM_ROWS = (
    64  # rows per product whose diagonal are the norms: wasteful, and still faster than summing
)
_PIECE_VALUES = 1 << 15  # so that all steps of a conversion find them in the cache


def is_byte_dtype(dtype: np.dtype[Any]) -> bool:
    """Whether rows of this dtype need no look at their values."""
    return dtype in (np.uint8, np.int8, np.bool_)


@dataclass(frozen=True)
class ByteRows:
    """Rows whose every value is a byte times ``unit``, one of ``UNITS``, read as those bytes."""

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
    """Rows in memory as bytes, where they are bytes in a wider type, which is then looked at once;
    anything else as it is.
    """
    if (
        not isinstance(source, ArraySource)
        or is_byte_dtype(source.array.dtype)
        or not source.array.size
    ):
        return source
    levels = np.empty(source.array.shape, np.uint8)  # no memory is taken before it is written
    for unit in _possible_units(source.array.dtype):
        if _fill_levels(levels, source.array, unit):
            return ByteRows(ArraySource(levels), unit)
    return source


def byte_units(rows: npt.NDArray[Any]) -> set[float]:
    """Those of ``UNITS`` of which every value is a whole multiple from 0 to 255: the very float
    that dividing by 255 gives, for which half-precision floats are too coarse.
    """
    if is_byte_dtype(rows.dtype):
        return {1.0}
    levels = np.empty(rows.shape, np.uint8)
    return {unit for unit in _possible_units(rows.dtype) if _fill_levels(levels, rows, unit)}


def _possible_units(dtype: np.dtype[Any]) -> tuple[float, ...]:
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        return ()
    return UNITS if dtype.kind == "f" and dtype.itemsize >= 4 else UNITS[:1]


def _fill_levels(out: npt.NDArray[np.uint8], rows: npt.NDArray[Any], unit: float) -> bool:
    """Write the grey levels of ``rows`` to ``out``; stops and returns False at a value without
    one.
    """
    divisor = rows.dtype.type(255)
    width = max(1, min(int(np.prod(rows.shape[1:])), _PIECE_VALUES))
    height = max(1, _PIECE_VALUES // width)
    with np.errstate(
        invalid="ignore", over="ignore"
    ):  # casts of NaN and large values are found unequal
        for top in range(0, len(rows), height):
            # Few at a time, since flattening copies rows that do not lie one after another.
            few, levels_of_few = flatten(rows[top : top + height]), flatten(out[top : top + height])
            for left in range(0, few.shape[1], width):
                values = few[:, left : left + width]
                if unit == 1:
                    levels = values.astype(np.uint8)
                    equal = levels == values
                else:
                    levels = np.rint(values * divisor).astype(np.uint8)
                    equal = levels.astype(rows.dtype) / divisor == values
                if not equal.all():
                    return False
                levels_of_few[:, left : left + width] = levels
    return True


def squared_norms(rows: Bytes, product: Product) -> npt.NDArray[np.int64]:
    """``|a|²`` of every row."""
    strips = [rows[start : start + _NORM_ROWS] for start in range(0, len(rows), _NORM_ROWS)]
    return np.concatenate(
        [gram(strip, strip, product).diagonal() for strip in strips], dtype=np.int64
    )


def gram(a: Bytes, b: Bytes, product: Product) -> IntArray:
    """Products of the rows of two blocks ``(num_a, num_b)``: int32 up to ``INT32_FEATURES``, else
    int64.
    """
    dtype = np.int32 if a.shape[1] <= INT32_FEATURES else np.int64
    total: IntArray | None = None
    num_parts = -(-a.shape[1] // MAX_FEATURES)  # equal ones, of which none may overflow
    edges = np.arange(num_parts + 1) * a.shape[1] // max(num_parts, 1)
    for part in map(slice, edges[:-1], edges[1:]):
        left = a[:, part]
        found = product(left, left if a is b else b[:, part])
        total = (
            found.astype(dtype, copy=False) if total is None else np.add(total, found, out=total)
        )
    if total is None:
        raise ValueError("rows need at least one feature")
    return total


def expand(
    products: IntArray, norms_a: npt.NDArray[np.int64], norms_b: npt.NDArray[np.int64]
) -> IntArray:
    """Turn products of rows into squared distances, in place and in the dtype of `gram`."""
    products *= -2
    products += norms_a[:, None].astype(products.dtype)
    products += norms_b.astype(products.dtype)
    return products
