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
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from tasks.measures.byte_rows import ByteRows, as_bytes, is_byte_dtype
from tasks.measures.distances import BlockSource, FloatArray, Precision, as_source, estimate_centre
from tasks.measures.partials import IntArray, Partial, smallest
from tasks.measures.tiles import Job, search_tile
from tasks.remote import Executor, InlineExecutor

# 2,048 rows: the product of two blocks of image rows takes long enough to hide all else, and the working
# set (products in float64 and float32, two chunks of centred features) stays near 200 MB per worker.
BLOCK_ROWS = 2048
# Rows of one side of a tile, so that what a task sends back stays small however many rows there are.
TILE_ROWS = 16384
# The same for one worker, whose one result is the whole.
TILE_ROWS_OF_ONE = 1 << 18
# Tiles per worker at least, so that the last ones to finish keep nobody waiting for long.
TILES_PER_WORKER = 5
# Seconds of work per worker from which it is worth sending rows to other nodes.
SPREAD_SECONDS = 1.0


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
        precision: The dtype that the products needed at least once, or ``EXACT``.
    """

    tables: list[NeighborTable]
    subset_opposites: FloatArray
    subset_indices: IntArray
    precision: str


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
        Tables for every size. Rows of bytes (uint8, int8, bool, arrays of other types that hold bytes, and
        `tasks.measures.byte_rows.ByteRows`) are measured in whole numbers: distances are roots of exact
        integers, and the tables are the same bits for any blocks, workers and machine. Otherwise the
        relative error of distances is below 1e-5 in float32, 1e-7 in float64.

    Raises:
        DataError: If a source's rows are bytes at first and of another type later.
    """
    executor = executor or InlineExecutor()
    precision = precision or Precision()
    source = as_source(rows)
    if precision.exact_bytes:
        source = as_bytes(source)
    positions = (np.arange(source.num_rows) if keep is None else np.asarray(keep))[: train_sizes[-1]]
    num_rows = len(positions)
    dtype = source.read(0, 1).dtype
    exact = precision.exact_bytes and is_byte_dtype(dtype)
    job = Job(
        source=source,
        rows=positions,
        labels=None if labels is None else _codes(labels)[positions],
        shells=np.searchsorted(np.asarray(train_sizes), np.arange(num_rows), side="right"),
        subsets=np.zeros((0, num_rows), bool) if subsets is None else subsets[:, :num_rows],
        centre=np.zeros(0) if exact else estimate_centre(source),
        num_shells=len(train_sizes),
        num_neighbors=num_neighbors,
        precision=precision,
        block_rows=block_rows,
        work=num_rows**2 / 2 * float(np.prod(source.row_shape)) / executor.num_workers,
        byte_dtype=dtype if exact else None,
    )
    total = _merged(job, executor)
    return _found(total, train_sizes, source.unit if isinstance(source, ByteRows) else 1.0)


def _merged(job: Job, executor: Executor) -> Partial:
    """Search all tiles, wherever the executor does so, and merge what they found."""
    num_rows = len(job.rows)
    shared = executor.share(job)
    tiles = [(shared, *tile) for tile in plan_tiles(num_rows, executor.num_workers)]
    spread = job.seconds() / executor.num_workers > SPREAD_SECONDS
    results = executor.map_unordered(search_tile, tiles, spread=spread)
    partials = (partial for _, found in results for partial in found)
    total = next(partials) if len(tiles) == 1 else job.partial(0, num_rows)
    for partial in partials:
        total.merge(partial)
    return total


def _found(total: Partial, train_sizes: Sequence[int], unit: float) -> NeighborSearch:
    tables = _tables(total, train_sizes, unit)
    return NeighborSearch(tables, _distances(total.subset_opposite, unit), total.subset_ids, total.precision)


def _distances(squared: FloatArray, unit: float) -> FloatArray:
    roots = np.sqrt(squared)
    roots *= unit
    return roots


def _codes(labels: IntArray) -> IntArray:
    """Labels numbered from 0, in the narrowest type, since they are compared for every pair."""
    classes, codes = np.unique(labels, return_inverse=True)
    return codes.astype(np.min_scalar_type(len(classes)))


def plan_tiles(num_rows: int, num_workers: int) -> list[tuple[int, int, int, int]]:
    """Cut the upper triangle of pairs into tiles ``(row start, row stop, column start, column stop)``.

    One worker gets one tile as long as its result is small. Tiles off the diagonal cost twice as much as
    those on it and come first, so that short ones fill the gaps at the end.
    """
    if num_workers == 1:
        sides = math.ceil(num_rows / TILE_ROWS_OF_ONE)
    else:
        at_least = math.ceil(math.sqrt(2 * TILES_PER_WORKER * num_workers))
        sides = max(math.ceil(num_rows / TILE_ROWS), at_least)
    edges = np.unique(np.linspace(0, num_rows, min(sides, max(num_rows, 1)) + 1).astype(int)).tolist()
    ranges = list(pairwise(edges))
    pairs = [(a, b) for i, a in enumerate(ranges) for b in ranges[i:]]
    return [(*a, *b) for a, b in sorted(pairs, key=lambda pair: pair[0] == pair[1])]


def _tables(total: Partial, train_sizes: Sequence[int], unit: float) -> list[NeighborTable]:
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
            NeighborTable(
                _distances(squared[:size], unit),
                ids[:size],
                _distances(opposite[:size], unit),
                opposite_ids[:size],
            )
        )
    return tables
