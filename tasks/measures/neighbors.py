"""Exact nearest neighbors, and nearest rows with another label, of all nested train sizes at once.

Three kinds of index occur here and in the two modules below:

- A *source row* is an index of the rows of the source.
- A *position* is an index of the rows that are measured, in the same order. A duplicate of an
  earlier row is not measured, so it has no position.
- A *shell* is the index of a train size, ascending. The training set of size n has the positions
  ``0 .. n-1``. The shell of a pair of positions is that of the smallest training set with both.

*Unlike* means: with another label.

Every pair is added once, to its shell. The table of a train size is then the merge of all shells up
to it.

The square of all pairs is cut into tiles, and a task computes one tile.
:mod:`tasks.measures.tile_blocks` computes the distances of a tile, and
:mod:`tasks.measures.nearest` keeps the nearest. Distances are symmetric, so each is computed once
and used for its row and its column.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt

from tasks.measures.arrays import BoolArray, FloatArray, IntArray
from tasks.measures.distances import (
    BlockSource,
    ByteRows,
    Precision,
    as_bytes,
    as_source,
    estimate_center,
    is_byte_dtype,
)
from tasks.measures.nearest import ClosestPairs, NearestOfSpan, add_block, merge_nearest
from tasks.measures.products import check_device
from tasks.measures.tile_blocks import SearchJob, Span, blocks_of_tile, no_pair
from tasks.remote import Executor, InlineExecutor

BLOCK_ROWS = 2048
"""Rows of a block. At this size the matrix product dominates the run time, and a worker needs about
200 MB."""
TILE_ROWS = 16384
"""Rows of one side of a tile, at most, so that what a task returns stays small."""
TILE_ROWS_INLINE = 1 << 18
"""The same with one worker. Nothing is transferred then, so tiles may be larger."""
TILES_PER_WORKER = 5
"""Tiles per worker, at least, for load balancing."""
SPREAD_WORK = 1e11
"""Multiply-adds per worker, about a second, above which sending rows to other nodes pays."""
PAIRS_PER_SAMPLE = 1024
"""Closest pairs to keep for an average sample. If 1 % of the labels differ from the rest, the
chance that 1,024 random pairs all have equal labels is about 1e-9."""
MAX_CLOSEST_PAIRS = 1 << 20
"""Closest pairs to keep per shell, at most; they take 16 MiB."""


class PairList(NamedTuple):
    """The closest pairs of a train size: ``(num_pairs,)`` distances, ascending, and positions.

    Every pair of the size that is not listed is at least as far as the last listed pair.
    """

    distances: FloatArray
    first: IntArray
    second: IntArray


@dataclass(frozen=True)
class NeighborTable:
    """Neighbors of the first ``num_positions`` positions among themselves.

    Attributes:
        distances: ``(num_positions, num_neighbors)`` L2 distances, ascending, infinite where there
            are fewer neighbors.
        indices: Positions of the neighbors, -1 where there are fewer.
        unlike_distances: ``(num_positions,)`` distances to the nearest row with another label.
        unlike_indices: ``(num_positions,)`` positions of those rows, -1 where there is none.
        closest_pairs: The closest pairs, if samples were searched.
    """

    distances: FloatArray
    indices: IntArray
    unlike_distances: FloatArray
    unlike_indices: IntArray
    closest_pairs: PairList | None = None

    @property
    def num_positions(self) -> int:
        """Number of positions that were measured."""
        return len(self.distances)


@dataclass(frozen=True)
class NeighborSearch:
    """The result of one pass over all pairs.

    Attributes:
        tables: One per train size, ascending.
        sample_unlike_distances: ``(num_samples, num_positions)`` distances to the nearest row with
            another label inside each sample, infinite outside.
        sample_unlike_indices: Positions of those rows, -1 outside.
        precision: The dtype that the products needed at least once, or ``EXACT``.
    """

    tables: list[NeighborTable]
    sample_unlike_distances: FloatArray
    sample_unlike_indices: IntArray
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
    source_rows: IntArray | None = None,
    samples: BoolArray | None = None,
) -> NeighborSearch:
    """Find the neighbors of every row within every prefix, exactly.

    Distances of rows of bytes are roots of exact integers. Others are off by at most 1e-5 in
    float32 and 1e-7 in float64, relative.

    Args:
        rows: ``(num_rows, ...)`` array or source, in nested order.
        labels: ``(num_rows,)`` integers, or None to skip the nearest rows with another label.
        train_sizes: Ascending prefix lengths, counted in positions.
        num_neighbors: Neighbors per row, at least 1.
        executor: Where blocks are computed; None for this process.
        precision: How products are computed.
        block_rows: Rows per block. Memory grows with its square.
        source_rows: Source rows to measure, ascending; None for all. All indices in the result are
            positions, that is, they count these rows.
        samples: Sharpness samples, ``(num_samples, num_positions)`` masks, to find the nearest row
            with another label inside each sample too.

    Raises:
        DataError: If the rows of a source are bytes at first and have another dtype later.
    """
    executor = executor or InlineExecutor()
    precision = precision or Precision()
    source = as_source(rows)
    if precision.exact_bytes:
        source = as_bytes(source)
    if source_rows is None:
        source_rows = np.arange(source.num_rows)
    source_rows = np.asarray(source_rows)[: train_sizes[-1]]
    num_positions = len(source_rows)
    dtype = source.read(0, 1).dtype
    is_exact = precision.exact_bytes and is_byte_dtype(dtype)
    if samples is None:
        samples = np.zeros((0, num_positions), bool)
    values_per_row = float(np.prod(source.row_shape))
    positions = np.arange(num_positions)
    job = SearchJob(
        source=source,
        source_rows=source_rows,
        label_codes=None if labels is None else _label_codes(labels)[source_rows],
        first_shells=np.searchsorted(np.asarray(train_sizes), positions, side="right"),
        samples=samples[:, :num_positions],
        center=np.zeros(0) if is_exact else estimate_center(source),
        num_shells=len(train_sizes),
        num_neighbors=num_neighbors,
        precision=precision,
        block_rows=block_rows,
        multiply_adds_per_worker=num_positions**2 / 2 * values_per_row / executor.num_workers,
        pair_capacities=_pair_capacities(samples, train_sizes),
        byte_dtype=dtype if is_exact else None,
    )
    total = _search_all_tiles(job, executor)
    unit_length = source.unit if isinstance(source, ByteRows) else 1.0
    num_shells = job.num_shells
    return NeighborSearch(
        tables=_tables(total, train_sizes, unit_length),
        sample_unlike_distances=np.sqrt(total.unlike_squared[num_shells:]) * unit_length,
        sample_unlike_indices=total.unlike_positions[num_shells:],
        precision=total.precision,
    )


def _label_codes(labels: IntArray) -> IntArray:
    """Return labels as numbers of the narrowest dtype: they are compared for every pair."""
    classes, numbered = np.unique(labels, return_inverse=True)
    return numbered.astype(np.min_scalar_type(len(classes)))


def _pair_capacities(samples: BoolArray, train_sizes: Sequence[int]) -> tuple[int, ...]:
    """Return how many closest pairs of each shell to keep, so that samples hold enough of them.

    A sample of M among n images holds a pair with probability (M/n)². Kept pairs are
    ``PAIRS_PER_SAMPLE`` * (n/M)², so that a sample holds ``PAIRS_PER_SAMPLE`` on average. There are
    at most ``MAX_CLOSEST_PAIRS``.
    """
    if not len(samples):
        return ()
    sample_size = int(samples.sum(axis=1).max())
    capacities = []
    for size in train_sizes:
        ratio = max(1.0, size / sample_size)
        capacities.append(min(MAX_CLOSEST_PAIRS, int(PAIRS_PER_SAMPLE * ratio**2)))
    return tuple(capacities)


def _search_all_tiles(job: SearchJob, executor: Executor) -> NearestOfSpan:
    """Search all tiles and merge their results."""
    num_positions = len(job.source_rows)
    shared = executor.share(job)
    tiles = plan_tiles(num_positions, executor.num_workers)
    arguments = [(shared, rows, columns) for rows, columns in tiles]
    is_spread = job.multiply_adds_per_worker > SPREAD_WORK
    answers = executor.map_unordered(search_tile, arguments, spread=is_spread)
    if len(tiles) == 1:
        # One tile is on the diagonal, so it has one result, of all positions.
        _, results = next(answers)
        return cast(NearestOfSpan, results[0])
    total = NearestOfSpan(job, Span(0, num_positions))
    for _, results in answers:
        for result in results:
            total.merge(result)
    return total


def search_tile(job: SearchJob, rows: Span, columns: Span) -> list[NearestOfSpan]:
    """Compute all blocks of one tile.

    Returns:
        The result of its rows and that of its columns; one result for a tile on the diagonal.
    """
    check_device(job.precision.device)
    sides = [rows] if rows == columns else [rows, columns]
    results = [NearestOfSpan(job, span) for span in sides]
    for block in blocks_of_tile(job, rows, columns):
        for result in results:
            result.precision = block.precision
        if block.rows == block.columns:
            np.fill_diagonal(block.squared, no_pair(block.squared.dtype))
        add_block(job, results, block)
    return results


def plan_tiles(num_rows: int, num_workers: int) -> list[tuple[Span, Span]]:
    """Cut the upper triangle of pairs into tiles.

    Returns:
        Rows and columns of every tile. Tiles off the diagonal cost twice as much and come first, so
        that short ones fill the gaps at the end.
    """
    if num_workers == 1:
        num_sides = math.ceil(num_rows / TILE_ROWS_INLINE)
    else:
        least_sides = math.ceil(math.sqrt(2 * TILES_PER_WORKER * num_workers))
        num_sides = max(math.ceil(num_rows / TILE_ROWS), least_sides)
    num_edges = min(num_sides, max(num_rows, 1)) + 1
    edges = np.unique(np.linspace(0, num_rows, num_edges).astype(int))
    spans = [Span(start, stop) for start, stop in pairwise(edges.tolist())]
    on_diagonal = [(span, span) for span in spans]
    return [*combinations(spans, 2), *on_diagonal]


def _tables(
    total: NearestOfSpan,
    train_sizes: Sequence[int],
    unit_length: float,
) -> list[NeighborTable]:
    """Merge shells upwards: the table of a size holds the nearest of all shells up to it."""
    squared = total.neighbor_squared[0]
    positions = total.neighbor_positions[0]
    unlike_squared = total.unlike_squared[0]
    unlike_positions = total.unlike_positions[0]
    tables = []
    for shell, size in enumerate(train_sizes):
        if shell > 0:
            squared, positions = merge_nearest(
                squared,
                positions,
                total.neighbor_squared[shell],
                total.neighbor_positions[shell],
            )
            # A tie goes to the earlier shell, whose positions are smaller.
            is_better = total.unlike_squared[shell] < unlike_squared
            unlike_squared = np.where(is_better, total.unlike_squared[shell], unlike_squared)
            unlike_positions = np.where(is_better, total.unlike_positions[shell], unlike_positions)
        tables.append(
            NeighborTable(
                distances=np.sqrt(squared[:size]) * unit_length,
                indices=positions[:size],
                unlike_distances=np.sqrt(unlike_squared[:size]) * unit_length,
                unlike_indices=unlike_positions[:size],
                closest_pairs=_pair_list(total.closest_pairs[: shell + 1], unit_length),
            )
        )
    return tables


def _pair_list(shells: Sequence[ClosestPairs], unit_length: float) -> PairList | None:
    """Return the closest pairs of the shells of one size; None if none were wanted."""
    if not shells:
        return None
    total = ClosestPairs(sum(shell.capacity for shell in shells))
    for shell in shells:
        shell.prune()
        total.merge(shell)
    order = np.argsort(total.pairs["squared"])
    pairs = total.pairs[order]
    distances = np.sqrt(pairs["squared"]) * unit_length
    return PairList(distances, pairs["first"], pairs["second"])
