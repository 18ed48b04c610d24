"""Exact nearest neighbors, and nearest rows with another label, of all nested train sizes at once.

Three kinds of index occur here, in :mod:`tasks.measures.tile_blocks` and in
:mod:`tasks.measures.nearest`:

- A *source row* is an index of the rows of the source.
- A *position* is an index of the rows that are measured, in the same order. A duplicate of an
  earlier row is not measured, so it has no position.
- A *shell* is the index of a train size. Train sizes are ascending. The training set of size n has
  the positions ``0 .. n-1``. The shell of a pair is that of the smallest training set that contains
  both positions.

In names, *unlike* means "with another label".

Each pair is added once, to its shell. The table of a train size then merges all shells up to this
size.

The matrix of all pairs is cut into tiles, and one task computes one tile.
:mod:`tasks.measures.tile_blocks` computes the distances of a tile. :mod:`tasks.measures.nearest`
collects the nearest rows. Distances are symmetric, so each distance is computed once and used for
both of its positions.
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
from tasks.measures.nearest import (
    ClosestPairs,
    NearestOfSpan,
    TileResults,
    add_block,
    merge_nearest,
)
from tasks.measures.products import check_device
from tasks.measures.tile_blocks import SearchJob, Span, blocks_of_tile, no_pair
from tasks.remote import Executor, InlineExecutor

BLOCK_ROWS = 2048
"""Number of rows in a block. At this size the matrix product dominates the run time. A worker needs
about 200 MB."""
TILE_ROWS = 16384
"""Largest number of rows or columns of a tile. It bounds the size of a task's result."""
TILE_ROWS_INLINE = 1 << 18
"""Largest number of rows or columns of a tile with one worker. The result of a task is then not
transferred, so it may be larger."""
TILES_PER_WORKER = 5
"""Smallest number of tiles per worker. With fewer, workers would wait for the last tile."""
SPREAD_WORK = 1e11
"""Multiply-adds per worker above which tasks are sent to other nodes. They take about a second;
for less work, sending the rows takes longer."""
PAIRS_PER_SAMPLE = 1024
"""Number of closest pairs to collect for an average sample. If 1 % of the labels differ from the
rest, the chance that 1,024 random pairs all have equal labels is about 1e-9."""
MAX_CLOSEST_PAIRS = 1 << 20
"""Largest number of closest pairs to collect per shell; they take 16 MiB."""


class PairList(NamedTuple):
    """The closest pairs of a train size, closest first.

    No pair of this train size outside the list is closer than the last pair in it.

    Attributes:
        distances: ``(num_pairs,)`` distances, ascending.
        first: ``(num_pairs,)`` position of one row of each pair.
        second: ``(num_pairs,)`` position of the other row.
    """

    distances: FloatArray
    first: IntArray
    second: IntArray


@dataclass(frozen=True)
class NeighborTable:
    """The neighbors of the first ``num_positions`` positions among themselves.

    Attributes:
        distances: ``(num_positions, num_neighbors)`` L2 distances, ascending, infinite where there
            are fewer neighbors.
        indices: Positions of the neighbors, -1 where there are fewer neighbors.
        unlike_distances: ``(num_positions,)`` distances to the nearest row with another label,
            infinite where there is no such row.
        unlike_indices: ``(num_positions,)`` positions of the rows at ``unlike_distances``, -1 where
            there is no such row.
        closest_pairs: The closest pairs; None if no samples were searched.
    """

    distances: FloatArray
    indices: IntArray
    unlike_distances: FloatArray
    unlike_indices: IntArray
    closest_pairs: PairList | None = None

    @property
    def num_positions(self) -> int:
        """Number of positions in the table."""
        return len(self.distances)


@dataclass(frozen=True)
class NeighborSearch:
    """The result of one pass over all pairs.

    Attributes:
        tables: One table per train size, ascending.
        sample_unlike_distances: ``(num_samples, num_positions)`` distances to the nearest row of
            the same sample with another label, infinite for positions outside the sample.
        sample_unlike_indices: Positions of these rows, -1 for positions outside the sample.
        precision: ``EXACT`` for bytes. For floats, the widest dtype that a product needed.
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
    """Return the nearest neighbors of every row among the rows of every train size.

    The distances of rows of bytes are square roots of exact integers. Other distances have a
    relative error of at most 1e-5 in float32 and 1e-7 in float64.

    Args:
        rows: ``(num_rows, ...)`` array, or a source. The rows of a smaller train size come first.
        labels: ``(num_rows,)`` integers, or None to skip the nearest rows with another label.
        train_sizes: Ascending train sizes, counted in positions.
        num_neighbors: Number of neighbors per row, at least 1.
        executor: Executor of the tiles; None computes them in this process.
        precision: Precision of the products of floats; None for float32.
        block_rows: Number of rows in a block. Memory grows with the square of this number.
        source_rows: Source rows to measure, ascending; None for all. All indices in the result are
            positions, which count these rows only.
        samples: ``(num_samples, num_positions)`` masks. The nearest row with another label is also
            searched inside each of these samples.

    Raises:
        DataError: If the first row of a source is bytes, and a later row has another dtype.
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
    label_codes = None
    if labels is not None:
        label_codes = _label_codes(labels)[source_rows]
    num_pairs = num_positions**2 / 2
    multiply_adds = num_pairs * float(np.prod(source.row_shape))
    positions = np.arange(num_positions)
    job = SearchJob(
        source=source,
        source_rows=source_rows,
        label_codes=label_codes,
        first_shells=np.searchsorted(np.asarray(train_sizes), positions, side="right"),
        samples=samples[:, :num_positions],
        center=np.zeros(0) if is_exact else estimate_center(source),
        num_shells=len(train_sizes),
        num_neighbors=num_neighbors,
        precision=precision,
        block_rows=block_rows,
        multiply_adds_per_worker=multiply_adds / executor.num_workers,
        pair_capacities=_pair_capacities(samples, train_sizes),
        byte_dtype=dtype if is_exact else None,
    )
    total = _search_all_tiles(job, executor)
    unit_length = source.unit if isinstance(source, ByteRows) else 1.0
    return NeighborSearch(
        tables=_tables(total, train_sizes, unit_length),
        sample_unlike_distances=np.sqrt(total.unlike_by_sample.squared) * unit_length,
        sample_unlike_indices=total.unlike_by_sample.positions,
        precision=total.precision,
    )


def _label_codes(labels: IntArray) -> IntArray:
    """Return labels as numbers of the narrowest dtype, which is the fastest to compare."""
    classes, codes = np.unique(labels, return_inverse=True)
    return codes.astype(np.min_scalar_type(len(classes)))


def _pair_capacities(samples: BoolArray, train_sizes: Sequence[int]) -> tuple[int, ...]:
    """Return the number of closest pairs to collect for each shell.

    A sample of M of n images contains both images of a pair with probability (M/n)². So among
    ``PAIRS_PER_SAMPLE`` * (n/M)² pairs, ``PAIRS_PER_SAMPLE`` lie in a sample on average. The number
    is at most ``MAX_CLOSEST_PAIRS``.
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
    tile_results = executor.map_unordered(search_tile, arguments, spread=is_spread)
    if len(tiles) == 1:
        # The only tile is on the diagonal, so it has one result for all positions.
        _, results = next(tile_results)
        return cast(NearestOfSpan, results[0])
    total = NearestOfSpan(job, Span(0, num_positions))
    for _, results in tile_results:
        for result in results:
            total.merge(result)
    return total


def search_tile(job: SearchJob, rows: Span, columns: Span) -> list[NearestOfSpan]:
    """Compute all blocks of one tile.

    Args:
        job: The search.
        rows: Positions of the tile's rows.
        columns: Positions of the tile's columns.

    Returns:
        The result of the rows and the result of the columns. A tile on the diagonal has only one
        result.
    """
    check_device(job.precision.device)
    results = TileResults.empty(job, rows, columns)
    for block in blocks_of_tile(job, rows, columns):
        # The last block has the widest precision, because the precision of a tile only widens.
        for result in results:
            result.precision = block.precision
        if block.rows == block.columns:
            np.fill_diagonal(block.squared, no_pair(block.squared.dtype))
        add_block(job, results, block)
    return results.distinct()


def plan_tiles(num_positions: int, num_workers: int) -> list[tuple[Span, Span]]:
    """Cut the upper triangle of the matrix of all pairs into tiles.

    Returns:
        Rows and columns of every tile. Tiles off the diagonal take twice as long, so they come
        first. The short tiles at the end then keep all workers busy.
    """
    if num_workers == 1:
        num_spans = math.ceil(num_positions / TILE_ROWS_INLINE)
    else:
        least_spans = math.ceil(math.sqrt(2 * TILES_PER_WORKER * num_workers))
        num_spans = max(math.ceil(num_positions / TILE_ROWS), least_spans)
    num_edges = min(num_spans, max(num_positions, 1)) + 1
    edges = np.unique(np.linspace(0, num_positions, num_edges).astype(int))
    spans = [Span(start, stop) for start, stop in pairwise(edges.tolist())]
    on_diagonal = [(span, span) for span in spans]
    return [*combinations(spans, 2), *on_diagonal]


def _tables(
    total: NearestOfSpan,
    train_sizes: Sequence[int],
    unit_length: float,
) -> list[NeighborTable]:
    """Return the table of each train size: the nearest rows of all shells up to this size."""
    squared = total.neighbor_squared[0]
    positions = total.neighbor_positions[0]
    unlike = total.unlike_by_shell
    unlike_squared = unlike.squared[0]
    unlike_positions = unlike.positions[0]
    tables = []
    for shell, size in enumerate(train_sizes):
        if shell > 0:
            squared, positions = merge_nearest(
                squared,
                positions,
                total.neighbor_squared[shell],
                total.neighbor_positions[shell],
            )
            # In a tie the earlier shell wins, because its positions are smaller.
            is_better = unlike.squared[shell] < unlike_squared
            unlike_squared = np.where(is_better, unlike.squared[shell], unlike_squared)
            unlike_positions = np.where(is_better, unlike.positions[shell], unlike_positions)
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
    """Return the closest pairs of all shells of one train size; None if there are no shells."""
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
