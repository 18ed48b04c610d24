"""Exact nearest neighbours, and nearest rows with another label, for all nested train sizes in one pass.

Train subsets are prefixes of one order of rows: size n means rows ``0 .. n-1``. A pair ``(i, j)`` belongs
to every size above ``max(i, j)``, so it is enough to file it once, under the smallest train size that
holds both (its *shell*); the table of a size is the merge of the shells up to it. Distances are symmetric,
so each block of pairs is computed once and serves both sides. What a block finds is merged by "keep the k
smallest" and "keep the minimum", which are associative and commutative: any division of the blocks over
workers gives the same tables.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.measures.distances import (
    BlockSource,
    FloatArray,
    Precision,
    as_source,
    estimate_centre,
    flatten,
    squared_distances,
)
from tasks.measures.partials import IntArray, Partial, improve, smallest
from tasks.remote import Executor, InlineExecutor

# 2,048 rows: the product of two blocks of image rows takes long enough to hide all else, and the working
# set (products in float64 and float32, two chunks of centred features) stays near 200 MB per worker.
BLOCK_ROWS = 2048
# Rows of one side of a tile, so that what a task sends back stays small however many rows there are.
TILE_ROWS = 16384
# Tiles per worker at least, so that the last ones to finish keep nobody waiting for long.
TILES_PER_WORKER = 5


@dataclass(frozen=True)
class NeighborTable:
    """Neighbours of the first ``num_points`` rows among themselves.

    Attributes:
        distances: ``(num_points, num_neighbors)`` L2 distances, ascending; inf where there are fewer.
        indices: ``(num_points, num_neighbors)`` rows they belong to, -1 where there are fewer.
        opposite_distances: ``(num_points,)`` distance to the nearest row with another label, inf if none.
        opposite_indices: ``(num_points,)`` that row, -1 if none.
    """

    distances: FloatArray
    indices: IntArray
    opposite_distances: FloatArray
    opposite_indices: IntArray

    @property
    def num_points(self) -> int:
        """Number of rows."""
        return len(self.distances)

    @property
    def num_neighbors(self) -> int:
        """Neighbours kept per row."""
        return int(self.distances.shape[1])


@dataclass(frozen=True)
class NeighborSearch:
    """All that one pass found.

    Attributes:
        tables: One per train size.
        subset_opposites: ``(num_subsets, num_rows)`` distance to the nearest row with another label inside
            the subset, inf outside of it.
        subset_indices: ``(num_subsets, num_rows)`` that row, -1 outside of the subset.
        precision: The dtype that the products needed at least once.
    """

    tables: list[NeighborTable]
    subset_opposites: FloatArray
    subset_indices: IntArray
    precision: str


@dataclass(frozen=True)
class Job:
    """What every block task needs to know besides its rows; shared once.

    Attributes:
        source: Where rows are read.
        rows: Source row behind each position, ascending; dropped duplicates are absent.
        labels: ``(num_positions,)`` label codes, or None when only neighbours are wanted.
        shells: ``(num_positions,)`` index of the smallest train size that holds the position.
        subsets: ``(num_subsets, num_positions)`` bool, samples whose nearest opposites are wanted too.
        centre: ``(num_features,)``.
        num_shells: Number of train sizes.
        num_neighbors: Neighbours kept per row and shell.
        precision: How products are formed.
        block_rows: Rows per block.
    """

    source: BlockSource
    rows: IntArray
    labels: IntArray | None
    shells: IntArray
    subsets: npt.NDArray[np.bool_]
    centre: FloatArray
    num_shells: int
    num_neighbors: int
    precision: Precision
    block_rows: int

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Rows at positions ``start`` to ``stop``, flattened to ``(stop - start, num_features)``."""
        wanted = self.rows[start:stop]
        first = int(wanted[0])
        block = self.source.read(first, int(wanted[-1]) + 1)
        return flatten(block if len(block) == len(wanted) else block[wanted - first])

    def partial(self, start: int, stop: int) -> Partial:
        """An empty result for positions ``start`` to ``stop``."""
        return Partial(
            start,
            stop,
            num_shells=self.num_shells,
            num_neighbors=self.num_neighbors,
            num_subsets=len(self.subsets),
            dtype=self.precision.dtype,
        )


def nested_neighbors(
    rows: BlockSource | npt.ArrayLike,
    labels: IntArray | None,
    train_sizes: Sequence[int],
    num_neighbors: int,
    *,
    executor: Executor | None = None,
    precision: Precision | None = None,
    block_rows: int = BLOCK_ROWS,
    keep: IntArray | None = None,
    subsets: npt.NDArray[np.bool_] | None = None,
) -> NeighborSearch:
    """Find the neighbours of every row within every prefix, exactly.

    Args:
        rows: ``(num_rows, ...)`` array or source, in nested order.
        labels: ``(num_rows,)`` integers, or None to skip the nearest opposites.
        train_sizes: Ascending prefix lengths, counted in positions of ``keep``.
        num_neighbors: Neighbours kept per row, at least 1.
        executor: Where block tasks run; in this process when None.
        precision: How products are formed.
        block_rows: Rows per block; memory grows with its square.
        keep: Source rows to use, ascending; all when None. Indices in the result are positions in it.
        subsets: ``(num_subsets, num_positions)`` masks, for nearest opposites inside samples.

    Returns:
        Tables for every size; relative error of distances below 1e-5 in float32, 1e-7 in float64.
    """
    executor = executor or InlineExecutor()
    source = as_source(rows)
    positions = np.arange(source.num_rows) if keep is None else np.asarray(keep)
    positions = positions[: train_sizes[-1]]
    num_rows = len(positions)
    job = Job(
        source=source,
        rows=positions,
        labels=None
        if labels is None
        else np.unique(labels, return_inverse=True)[1][positions].astype(np.int32),
        shells=np.searchsorted(np.asarray(train_sizes), np.arange(num_rows), side="right"),
        subsets=np.zeros((0, num_rows), bool) if subsets is None else subsets[:, :num_rows],
        centre=estimate_centre(source),
        num_shells=len(train_sizes),
        num_neighbors=num_neighbors,
        precision=precision or Precision(),
        block_rows=block_rows,
    )
    shared = executor.share(job)
    total = job.partial(0, num_rows)
    tiles = [(shared, *tile) for tile in plan_tiles(num_rows, executor.num_workers, block_rows)]
    for _, partials in executor.map_unordered(search_tile, tiles):
        for partial in partials:
            total.merge(partial)
    tables = _tables(total, train_sizes)
    return NeighborSearch(tables, np.sqrt(total.subset_opposite), total.subset_ids, total.precision)


def plan_tiles(num_rows: int, num_workers: int, block_rows: int) -> list[tuple[int, int, int, int]]:
    """Cut the upper triangle of pairs into tiles ``(row start, row stop, column start, column stop)``.

    One worker gets one tile as long as its result is small. Tiles off the diagonal cost twice as much as
    those on it and come first, so that short ones fill the gaps at the end.
    """
    sides = math.ceil(num_rows / TILE_ROWS)
    if num_workers > 1:
        sides = max(sides, math.ceil(math.sqrt(2 * TILES_PER_WORKER * num_workers)))
    edges = np.unique(np.linspace(0, num_rows, min(sides, max(num_rows, 1)) + 1).astype(int)).tolist()
    ranges = list(pairwise(edges))
    pairs = [(a, b) for i, a in enumerate(ranges) for b in ranges[i:]]
    return [(*a, *b) for a, b in sorted(pairs, key=lambda pair: pair[0] == pair[1])]


def search_tile(
    job: Job, row_start: int, row_stop: int, column_start: int, column_stop: int
) -> list[Partial]:
    """Compute all blocks of one tile; returns what it found for its rows and its columns.

    Raises:
        DataError: From the source, when a shard cannot be read.
    """
    on_diagonal = row_start == column_start
    mine = job.partial(row_start, row_stop)
    theirs = mine if on_diagonal else job.partial(column_start, column_stop)
    precision = job.precision
    for i in range(row_start, row_stop, job.block_rows):
        i_stop = min(i + job.block_rows, row_stop)
        block_i = job.read(i, i_stop)
        for j in range(i if on_diagonal else column_start, column_stop, job.block_rows):
            j_stop = min(j + job.block_rows, column_stop)
            block_j = None if i == j else job.read(j, j_stop)
            squared, needed = squared_distances(block_i, block_j, job.centre, precision)
            precision = replace(precision, dtype=needed)
            if i == j:
                np.fill_diagonal(squared, np.inf)
            _file_block(job, mine, theirs, (i, i_stop), (j, j_stop), squared)
    mine.precision = theirs.precision = precision.dtype
    return [mine] if on_diagonal else [mine, theirs]


def _file_block(
    job: Job, mine: Partial, theirs: Partial, i: tuple[int, int], j: tuple[int, int], squared: FloatArray
) -> None:
    """File one block of squared distances under the shells of its pairs, for both sides."""
    opposite = None
    if job.labels is not None:
        differ = job.labels[slice(*i), None] != job.labels[None, slice(*j)]
        opposite = np.where(differ, squared, np.asarray(np.inf, squared.dtype))
        _file_subsets(job, mine, theirs, i, j, opposite)
    for a, a_stop in _segments(job.shells, *i):
        for b, b_stop in _segments(job.shells, *j):
            shell = int(max(job.shells[a], job.shells[b]))
            part = slice(a - i[0], a_stop - i[0]), slice(b - j[0], b_stop - j[0])
            rows = slice(a - mine.start, a_stop - mine.start)
            columns = slice(b - theirs.start, b_stop - theirs.start)
            mine.offer(shell, rows, b, squared[part])
            if opposite is not None:
                mine.offer_opposite(shell, rows, b, opposite[part])
            if i != j:  # a block on the diagonal holds each pair twice already
                theirs.offer(shell, columns, a, squared[part].T)
                if opposite is not None:
                    theirs.offer_opposite(shell, columns, a, opposite[part].T)


def _file_subsets(
    job: Job, mine: Partial, theirs: Partial, i: tuple[int, int], j: tuple[int, int], opposite: FloatArray
) -> None:
    """Nearest opposites inside each sample."""
    for number, members in enumerate(job.subsets):
        rows, columns = np.flatnonzero(members[slice(*i)]), np.flatnonzero(members[slice(*j)])
        if not len(rows) or not len(columns):
            continue
        inside = opposite[rows][:, columns]
        rows, columns = rows + i[0], columns + j[0]
        best, ids = mine.subset_opposite[number], mine.subset_ids[number]
        improve(best, ids, rows - mine.start, columns, inside)
        if i != j:
            best, ids = theirs.subset_opposite[number], theirs.subset_ids[number]
            improve(best, ids, columns - theirs.start, rows, inside.T)


def _tables(total: Partial, train_sizes: Sequence[int]) -> list[NeighborTable]:
    """Merge shells upwards: the table of a size holds the best of all shells up to it."""
    k = total.squared.shape[-1]
    squared, ids = total.squared[0], total.ids[0]
    opposite, opposite_ids = total.opposite[0], total.opposite_ids[0]
    tables = []
    for shell, size in enumerate(train_sizes):
        if shell:
            squared, ids = smallest(
                np.concatenate([squared, total.squared[shell]], axis=1),
                np.concatenate([ids, total.ids[shell]], axis=1),
                k,
            )
            better = total.opposite[shell] < opposite
            opposite = np.where(better, total.opposite[shell], opposite)
            opposite_ids = np.where(better, total.opposite_ids[shell], opposite_ids)
        tables.append(
            NeighborTable(np.sqrt(squared[:size]), ids[:size], np.sqrt(opposite[:size]), opposite_ids[:size])
        )
    return tables


def _segments(shells: IntArray, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Runs of equal shell between two positions."""
    cuts = np.flatnonzero(np.diff(shells[start:stop])) + start + 1
    edges = [start, *cuts.tolist(), stop]
    return pairwise(edges)
