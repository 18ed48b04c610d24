"""What a block of distances contributes to the tables of neighbours, and how contributions merge.

All merging is "keep the k smallest" and "keep the minimum"; both are associative and commutative, so the
order in which blocks are computed and workers report does not matter. Of equal distances the one to the
earlier row counts as smaller, so that this holds for the rows found, too.

Blocks are floats, or whole numbers below ``far`` of their dtype; tables are float64, which holds both.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.measures.distances import FloatArray

IntArray = npt.NDArray[np.integer[Any]]
Block = npt.NDArray[Any]  # squared distances, float32, float64, int32 or int64


# Squared distances below 2⁴⁷ times places below this fit int64, so that one direct sort orders both.
MAX_KEYED = 1 << 16


def far(dtype: np.dtype[Any]) -> float | int:
    """What stands for "no such pair" in a block: above every squared distance of its dtype."""
    if dtype.kind == "f":
        return np.inf
    # In int64, 2⁴⁷ leaves room for the product with a number of columns, see `MAX_KEYED`.
    return 2**31 - 1 if dtype == np.int32 else 2**47


def _as_table(values: Block) -> FloatArray:
    """Entries of a block as a table holds them, "no such pair" being infinity."""
    if values.dtype.kind == "f":
        return values
    return np.where(values == far(values.dtype), np.inf, values)


class Partial:
    """The best found so far for positions ``start`` to ``stop``, by shell; merges associatively."""

    def __init__(
        self, start: int, stop: int, *, num_shells: int, num_neighbors: int, num_subsets: int, dtype: str
    ) -> None:
        shape = (num_shells, stop - start)
        self.start, self.stop = start, stop
        self.precision = dtype
        self.squared = np.full((*shape, num_neighbors), np.inf)
        self.ids = np.full((*shape, num_neighbors), -1, np.int64)
        self.opposite = np.full(shape, np.inf)
        self.opposite_ids = np.full(shape, -1, np.int64)
        self.subset_opposite = np.full((num_subsets, stop - start), np.inf)
        self.subset_ids = np.full((num_subsets, stop - start), -1, np.int64)

    def merge(self, other: Partial) -> None:
        """Take over what ``other``, which covers a part of the same positions, found."""
        part = slice(other.start - self.start, other.stop - self.start)
        squared = np.concatenate([self.squared[:, part], other.squared], axis=-1)
        ids = np.concatenate([self.ids[:, part], other.ids], axis=-1)
        self.squared[:, part], self.ids[:, part] = smallest(squared, ids, self.squared.shape[-1])
        for best, ids, theirs, their_ids in (
            (self.opposite, self.opposite_ids, other.opposite, other.opposite_ids),
            (self.subset_opposite, self.subset_ids, other.subset_opposite, other.subset_ids),
        ):
            mine = best[:, part]
            better = (theirs < mine) | ((theirs == mine) & (their_ids < ids[:, part]))
            best[:, part][better] = theirs[better]
            ids[:, part][better] = their_ids[better]
        self.precision = max(self.precision, other.precision)  # "float64" > "float32"

    def offer(self, shell: int, rows: slice, column_start: int, squared: Block) -> None:
        """Consider the distances from ``rows`` (local) to the positions from ``column_start`` on."""
        k = self.squared.shape[-1]
        kept, kept_ids = self.squared[shell, rows], self.ids[shell, rows]
        limits = kept[:, -1]
        first = not np.isfinite(limits).all()
        if first:
            limits = np.minimum(limits, _limits(squared, k))
        found = None
        # Blocks mostly come in the order of rows; then an equal distance is never better than one kept.
        in_order = squared.dtype.kind == "i" and column_start > kept_ids.max(initial=-1)
        in_order = in_order and k + squared.shape[1] < MAX_KEYED
        if np.isfinite(limits).all():
            found = _below(squared, limits, ties=first or not in_order)
            if not len(found[0]):
                return
        if found is not None and len(found[0]) <= 4 * k * len(kept):
            active, columns, values = _pad_by_row(*found, squared)
        else:
            active, columns = np.arange(len(squared)), _nearest_columns(squared, min(k, squared.shape[1]))
            values = _as_table(np.take_along_axis(squared, columns, axis=1))
        ids = np.where(np.isfinite(values), columns + column_start, -1)
        pick = smallest_in_order if in_order else smallest
        kept[active], kept_ids[active] = pick(
            np.concatenate([kept[active], values], axis=1), np.concatenate([kept_ids[active], ids], axis=1), k
        )

    def offer_opposite(self, shell: int, rows: slice, column_start: int, squared: Block) -> None:
        """The same for the nearest row with another label; ``squared`` is ``far`` where labels agree."""
        columns = np.arange(column_start, column_start + squared.shape[1])
        improve(
            self.opposite[shell], self.opposite_ids[shell], np.arange(rows.start, rows.stop), columns, squared
        )


def smallest(squared: FloatArray, ids: IntArray, k: int) -> tuple[FloatArray, IntArray]:
    """The ``k`` smallest along the last axis, ascending, ties by id so that the order of merging is moot."""
    order = np.lexsort((ids, squared), axis=-1)[..., :k]
    return np.take_along_axis(squared, order, axis=-1), np.take_along_axis(ids, order, axis=-1)


def smallest_in_order(squared: FloatArray, ids: IntArray, k: int) -> tuple[FloatArray, IntArray]:
    """The same for whole numbers whose ids ascend wherever they are equal: one sort, and a direct one."""
    width, nothing = squared.shape[1], far(np.dtype(np.int64))
    keys = np.minimum(squared, nothing).astype(np.int64) * width + np.arange(width)
    values, places = np.divmod(np.sort(keys, axis=1)[:, :k], width)
    return np.where(values == nothing, np.inf, values), np.take_along_axis(ids, places, axis=1)


def improve(best: FloatArray, ids: IntArray, rows: IntArray, columns: IntArray, squared: Block) -> None:
    """Lower ``best[rows]`` to the row minima of ``squared`` where those are smaller, and note the column."""
    nearest = _as_table(squared.min(axis=1))
    near = np.flatnonzero((nearest <= best[rows]) & np.isfinite(nearest))
    if not len(near):
        return
    nearest, rows, found = nearest[near], rows[near], columns[squared[near].argmin(axis=1)]
    better = (nearest < best[rows]) | (found < ids[rows])
    best[rows[better]] = nearest[better]
    ids[rows[better]] = found[better]


def _nearest_columns(squared: Block, count: int) -> IntArray:
    """Columns of the ``count`` smallest of each row; whole numbers ascending, of equal ones the first."""
    num_columns = squared.shape[1]
    if squared.dtype.kind == "f":
        near: IntArray = np.argpartition(squared, count - 1, axis=1)[:, :count]
        return near
    # Rows one after another in memory, also where the block is a transpose: scattered ones sort slowly.
    keys = np.multiply(squared, num_columns, dtype=np.int64, order="C") + np.arange(num_columns)
    columns: IntArray = np.sort(np.partition(keys, count - 1, axis=1)[:, :count], axis=1) % num_columns
    return columns


def _limits(squared: Block, k: int) -> FloatArray:
    """At least the ``k``-th smallest of each row, and close to it; infinity where rows are shorter.

    Each of the k groups with the smallest minima holds an entry no larger than the largest of those.
    """
    num_rows, num_columns = squared.shape
    num_groups = min(4 * k, num_columns)
    if num_groups < k:
        return np.full(num_rows, np.inf)
    depth = num_columns // num_groups
    minima = squared[:, : depth * num_groups].reshape(num_rows, depth, num_groups).min(axis=1)
    return _as_table(np.partition(minima, k - 1, axis=1)[:, k - 1])


def _below(squared: Block, limits: FloatArray, *, ties: bool) -> tuple[IntArray, IntArray]:
    """Entries below their row's limit, or at it, ordered by row; scans memory in its own order."""
    limits = limits.astype(squared.dtype)
    compare = np.less_equal if ties else np.less
    # flatnonzero takes a tenth of the time of nonzero on two axes.
    if squared.strides[0] >= squared.strides[1]:
        rows, columns = np.divmod(np.flatnonzero(compare(squared, limits[:, None])), squared.shape[1])
        return rows, columns
    columns, rows = np.divmod(np.flatnonzero(compare(squared.T, limits)), squared.shape[0])
    order = np.argsort(rows, kind="stable")
    return rows[order], columns[order]


def _pad_by_row(rows: IntArray, columns: IntArray, squared: Block) -> tuple[IntArray, IntArray, FloatArray]:
    """Entries grouped by row as ``(active rows, padded columns, padded values)``, padding is inf."""
    active, first, counts = np.unique(rows, return_index=True, return_counts=True)
    place = np.arange(len(rows)) - np.repeat(first, counts)
    line = np.repeat(np.arange(len(active)), counts)
    padded_columns = np.zeros((len(active), counts.max()), np.int64)
    padded = np.full(padded_columns.shape, np.inf)
    padded_columns[line, place] = columns
    padded[line, place] = squared[rows, columns]
    return active, padded_columns, padded
