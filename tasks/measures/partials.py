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


def far(dtype: np.dtype[Any]) -> float | int:
    """What stands for "no such pair" in a block: above every squared distance of its dtype."""
    if dtype.kind == "f":
        return np.inf
    return 2**31 - 1 if dtype == np.int32 else 2**47  # both exact in float64, as the numbers below them are


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
        kept, kept_ids = self.squared[shell, rows], self.ids[shell, rows]
        k = kept.shape[1]
        limits = kept[:, -1]
        near = squared <= _as_entries(limits, squared.dtype)
        if np.count_nonzero(near) > 4 * near.shape[0] * k and k < near.shape[1]:
            # The first blocks of a shell: nothing beyond the block's own k nearest can stay.
            limits = np.minimum(limits, np.partition(squared, k - 1, axis=1)[:, k - 1])
            near = squared <= _as_entries(limits, squared.dtype)
        active, columns, values = _by_row(near, squared)
        if not len(active):
            return
        ids = np.where(np.isfinite(values), columns + column_start, -1)
        kept[active], kept_ids[active] = smallest(
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


def _as_entries(limits: FloatArray, dtype: np.dtype[Any]) -> Block:
    """Limits of a table as a column to compare a block with, below "no such pair"."""
    most = np.finfo(dtype).max if dtype.kind == "f" else far(dtype) - 1
    return np.minimum(limits, most).astype(dtype)[:, None]


def _by_row(chosen: npt.NDArray[np.bool_], squared: Block) -> tuple[IntArray, IntArray, FloatArray]:
    """Chosen entries as ``(rows that have some, columns, values)``, padded with infinity to equal lengths."""
    if chosen.strides[0] >= chosen.strides[1]:  # flatnonzero takes a tenth of the time of nonzero on two axes
        rows, columns = np.divmod(np.flatnonzero(chosen), chosen.shape[1])
    else:
        columns, rows = np.divmod(np.flatnonzero(chosen.T), chosen.shape[0])
        order = np.argsort(rows, kind="stable")
        rows, columns = rows[order], columns[order]
    active, first, counts = np.unique(rows, return_index=True, return_counts=True)
    place = np.arange(len(rows)) - np.repeat(first, counts)
    line = np.repeat(np.arange(len(active)), counts)
    padded_columns = np.zeros((len(active), counts.max(initial=0)), np.int64)
    padded = np.full(padded_columns.shape, np.inf)
    padded_columns[line, place] = columns
    padded[line, place] = squared[rows, columns]
    return active, padded_columns, padded
