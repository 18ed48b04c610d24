"""Define sources of rows, and compute squared distances between rows of floats.

One fast matrix product gives all distances of a block, by the expanded form ``|a-b|² = |a|² +
|b|² - 2ab``. This form loses digits if two rows are much closer to each other than to the
origin. Therefore the rows are centered first. A product is summed in float32 within a chunk of
features, and in float64 over chunks. If the squared distance of a pair is a small fraction of
``|a|² + |b|²``, it is computed again in float64 from the differences of the two rows. A block
may have many such pairs, for example if the data have few dimensions. The whole block is then
computed again in float64 and checked by the same rule.

Distances between rows of bytes are exact, see :mod:`tasks.measures.byte_rows`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from tasks.array_types import AnyArray, FloatArray, IntArray

CLOSE_FRACTION = {"float32": 0.02, "float64": 1e-8}
"""Fraction of ``|a|² + |b|²`` below which a squared distance is computed again, for each
dtype. Below this fraction, the relative error of the expanded form may be above 1e-5 (float32)
or 1e-7 (float64). We measured both fractions, and tests check them on difficult data."""
UNDERFLOW = {"float32": 1e-30, "float64": 1e-280}
"""Squared distance below which a product may have underflowed, for each dtype."""
CLOSE_PAIRS_PER_ROW = 8
"""Number of close pairs per row above which the whole block is computed again in float64. With
so many close pairs, this is faster than computing the distance of each close pair again."""
DIRECT_BYTES = 32 << 20
"""Memory in bytes for one batch of pairs whose distances are computed from differences."""
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
SLICE_ROWS = 64
"""Number of consecutive rows in a slice. The center is estimated from a few slices."""
NUM_SLICES = 8
"""Number of slices from which the center is estimated."""


@runtime_checkable
class BlockSource(Protocol):
    """A source of rows that are read block by block. The source must be picklable."""

    @property
    def num_rows(self) -> int:
        """The number of images or points."""

    @property
    def row_shape(self) -> tuple[int, ...]:
        """The shape of one row; for images ``(channels, height, width)``."""

    def read(self, start: int, stop: int) -> AnyArray:
        """Return the rows from ``start`` to before ``stop``, ``(stop - start, *row_shape)``."""


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
        """Return a view of the rows from ``start`` to before ``stop``."""
        return self.array[start:stop]


def as_source(rows: BlockSource | npt.ArrayLike) -> BlockSource:
    """Convert an array to an :class:`ArraySource`. A source is returned unchanged."""
    if isinstance(rows, BlockSource):
        return rows
    return ArraySource(np.asarray(rows))


@dataclass(frozen=True)
class Precision:
    """The precision and device of matrix products. They change the speed and rounding errors.

    Attributes:
        dtype: Dtype of the products within one chunk of features: ``"float32"`` or
            ``"float64"``.
        device: ``"cpu"`` (numpy's BLAS) or a torch device such as ``"cuda"``.
        chunk_features: Number of features in a chunk. It limits the memory of the centered
            copies.
        exact_bytes: True to compute distances between rows of bytes in integers. ``dtype``
            then has no effect on them.
    """

    dtype: str = "float32"
    device: str = "cpu"
    chunk_features: int = 8192
    exact_bytes: bool = True


def estimate_center(source: BlockSource) -> FloatArray:
    """Estimate the mean row, which is then subtracted from all rows to reduce rounding errors.

    The estimate is the mean of a few slices of rows, which are evenly distributed over the
    source.

    Returns:
        ``(num_features,)`` float64. If the rows are integers, the mean is rounded to integers,
        because float32 represents small integer differences exactly.
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
    """Reshape rows to ``(num_rows, num_features)``. The result is a view if possible."""
    return rows.reshape(len(rows), -1)


def squared_distances(
    a: AnyArray,
    b: AnyArray | None,
    center: FloatArray,
    precision: Precision,
) -> tuple[FloatArray, str]:
    """Return the squared distances between the rows of two blocks of floats.

    Args:
        a: First block of rows, ``(num_a, num_features)``, of any real dtype.
        b: Second block of rows, ``(num_b, num_features)``. With None, the distances between
            the rows of ``a`` are computed, in half of the time.
        center: ``(num_features,)`` float64. It is subtracted from the rows of both blocks.
        precision: Precision of the products.

    Returns:
        The squared distances ``(num_a, num_b)``, and the dtype that the block needed. The
        dtype is ``"float64"`` if too many pairs were too close for float32. Later blocks will
        then probably need float64 too. The caller saves time if it requests float64 for them
        at once.
    """
    squared, norms_a, norms_b = _expanded_form(a, b, center, precision)
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
    """Return the squared distances of some pairs, computed in float64 from their differences.

    Args:
        a: First block of rows, ``(num_a, num_features)``.
        b: Second block of rows, ``(num_b, num_features)``.
        rows: ``(num_pairs,)`` for each pair, the index of its first row in ``a``.
        columns: ``(num_pairs,)`` for each pair, the index of its second row in ``b``.

    Returns:
        The squared distances, ``(num_pairs,)`` float64.
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


def _expanded_form(
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
    # Buffers are allocated only once, because allocating memory for a chunk takes as long as
    # filling it.
    buffer_a = np.empty((len(a), width), dtype)
    buffer_b = np.empty((num_b, width), dtype)  # uses no memory until it is written
    product = gram_matrix if has_one_chunk else np.empty(gram_matrix.shape, dtype)
    # If a number overflows, a norm is not finite. The caller checks the norms.
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


def _center_into(
    buffer: FloatArray,
    rows: AnyArray,
    center: FloatArray,
) -> FloatArray:
    """Write the centered rows into ``buffer``, and return the part of the buffer that contains
    them.

    If float32 does not represent all values of the rows exactly, the subtraction is computed
    in float64.
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
    """Write ``a @ b.T`` into ``out``.

    If ``a is b``, BLAS computes only one triangle of the product (syrk).
    """
    if device == "cpu":
        np.matmul(a, b.T, out=out)
        return
    import torch

    # TF32 is switched off, because it rounds the factors to 10 bits. The distances would be
    # too inaccurate.
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
    # Most blocks have no close pair. So this quick check first compares all distances with the
    # largest possible limit. The comparisons are negated, so that NaN, which an overflow
    # causes, counts as close.
    candidates = np.flatnonzero(~(squared >= max(fraction * largest_norms, floor)))
    rows, columns = np.divmod(candidates, max(squared.shape[1], 1))
    sums = norms_a[rows] + norms_b[columns]
    limits = np.maximum(fraction * sums, floor)
    is_close = ~(squared[rows, columns] >= limits)
    return rows[is_close], columns[is_close]
