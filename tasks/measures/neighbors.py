"""Exact nearest neighbors, and nearest rows with another label, of all nested train sizes at once.

Three kinds of index occur here, in :mod:`tasks.measures.tile_blocks` and in
:mod:`tasks.measures.nearest`:

- A *source row* is an index of the rows of the source.
- A *position* is an index of the rows that are measured, in the same order. A duplicate of an
  earlier row is not measured, so it has no position.
- A *size index* is an index of the train sizes, which are ascending. The training set of size n has
  the positions ``0 .. n-1``. The size index of a position, or of a pair of positions, is that of
  the smallest training set that contains it.

A pair with the size index i is *new* at train size i: no smaller training set contains it. Results
are first collected for the new pairs of each train size. The table of a train size then merges the
results of the new pairs of this and all smaller sizes.

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
MIN_WORK_TO_SPREAD = 1e11
"""Number of multiply-adds per worker, about one second of work. Tasks are also sent to other nodes
if a worker has more. For less work, sending the rows takes longer than computing."""
PAIRS_PER_SAMPLE = 1024
"""Number of closest pairs that lie in an average sample. With so many, a permutation of the labels
nearly always has a pair with different labels among them: if 1 % of the images have another label
than the rest, the chance of no such pair is about 1e-9."""
MAX_CLOSEST_PAIRS = 1 << 20
"""Largest number of closest pairs to collect among the new pairs of a train size. They take
16 MiB."""


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
        neighbor_positions: Positions of the neighbors, -1 where there are fewer neighbors.
        other_label_distances: ``(num_positions,)`` distances to the nearest row with another label,
            infinite where there is no such row.
        other_label_positions: ``(num_positions,)`` positions of the rows at
            ``other_label_distances``, -1 where there is no such row.
        closest_pairs: The closest pairs; None if no samples were searched.
    """

    distances: FloatArray
    neighbor_positions: IntArray
    other_label_distances: FloatArray
    other_label_positions: IntArray
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
        sample_other_label_distances: ``(num_samples, num_positions)`` distances to the nearest row
            of the same sample with another label, infinite for positions outside the sample.
        sample_other_label_positions: Positions of these rows, -1 for positions outside the sample.
        precision: ``EXACT`` for bytes. For floats, the widest dtype that a product needed.
    """

    tables: list[NeighborTable]
    sample_other_label_distances: FloatArray
    sample_other_label_positions: IntArray
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
    """Return the nearest neighbors of every position in the training set of every size.

    The distances of rows of bytes are square roots of exact integers. Other distances have a
    relative error of at most 1e-5 in float32 and 1e-7 in float64.

    Args:
        rows: ``(num_source_rows, ...)`` array, or a source. The rows of a smaller train size come
            first.
        labels: ``(num_source_rows,)`` integers, by source row; None to skip the nearest rows with
            another label.
        train_sizes: Ascending train sizes, counted in positions.
        num_neighbors: Number of neighbors per row, at least 1.
        executor: Executor of the tiles; None computes them in this process.
        precision: Precision of the products of floats; None for float32.
        block_rows: Number of rows in a block. Memory grows with the square of this number.
        source_rows: ``(num_positions,)`` source rows to measure, ascending; None for all. All
            indices in the result are positions, which count these rows only.
        samples: ``(num_samples, num_positions)`` masks by position. The nearest row with another
            label is also searched inside each of these samples.

    Raises:
        DataError: If the first row of a source is bytes, and a later row has another dtype.
        ValueError: If there is not one label per source row, or not one entry of a mask per
            position.
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
    if samples.shape[1] != num_positions:
        raise ValueError(f"masks have {samples.shape[1]} entries for {num_positions} positions")
    label_codes = None
    if labels is not None:
        if len(labels) != source.num_rows:
            raise ValueError(f"{len(labels)} labels for {source.num_rows} source rows")
        label_codes = _label_codes(labels)[source_rows]
    # Every unordered pair costs one multiply-add per feature.
    multiply_adds = num_positions**2 / 2 * float(np.prod(source.row_shape))
    positions = np.arange(num_positions)
    job = SearchJob(
        source=source,
        source_rows=source_rows,
        label_codes=label_codes,
        size_indices=np.searchsorted(np.asarray(train_sizes), positions, side="right"),
        samples=samples,
        center=np.zeros(0) if is_exact else estimate_center(source),
        num_sizes=len(train_sizes),
        num_neighbors=num_neighbors,
        precision=precision,
        block_rows=block_rows,
        multiply_adds_per_worker=multiply_adds / executor.num_workers,
        pair_capacities=_pair_capacities(samples, train_sizes),
        byte_dtype=dtype if is_exact else None,
    )
    nearest = _search_all_tiles(job, executor)
    # The bytes of ByteRows are the original values, divided by its unit.
    unit_length = source.unit if isinstance(source, ByteRows) else 1.0
    by_sample = nearest.other_label_by_sample
    return NeighborSearch(
        tables=_tables(nearest, train_sizes, unit_length),
        sample_other_label_distances=np.sqrt(by_sample.squared) * unit_length,
        sample_other_label_positions=by_sample.positions,
        precision=nearest.precision,
    )


def _label_codes(labels: IntArray) -> IntArray:
    """Return labels as numbers of the narrowest dtype, which is the fastest to compare."""
    classes, codes = np.unique(labels, return_inverse=True)
    return codes.astype(np.min_scalar_type(len(classes)))


def _pair_capacities(samples: BoolArray, train_sizes: Sequence[int]) -> tuple[int, ...]:
    """Return the number of closest pairs to collect among the new pairs of each train size.

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
    # A worker receives the job once. `search_tile` gets the job itself in place of this reference.
    shared_job = executor.share(job)
    tiles = plan_tiles(num_positions, executor.num_workers)
    arguments = [(shared_job, rows, columns) for rows, columns in tiles]
    is_spread = job.multiply_adds_per_worker > MIN_WORK_TO_SPREAD
    tile_results = executor.map_unordered(search_tile, arguments, spread=is_spread)
    if len(tiles) == 1:
        # The only tile is on the diagonal, so it has one result for all positions.
        _, results = next(tile_results)
        return cast(NearestOfSpan, results[0])  # executors return Any
    nearest = NearestOfSpan(job, Span(0, num_positions))
    for _, results in tile_results:
        for result in results:
            nearest.merge(result)
    return nearest


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
    precision = results.rows.precision
    for block in blocks_of_tile(job, rows, columns):
        precision = block.precision
        if block.rows == block.columns:
            np.fill_diagonal(block.squared, no_pair(block.squared.dtype))
        add_block(job, results, block)
    distinct_results = results.distinct()
    for result in distinct_results:
        # The last block has the widest precision, because the precision of a tile only widens.
        result.precision = precision
        for pairs in result.closest_pairs:
            pairs.prune()
    return distinct_results


def plan_tiles(num_positions: int, num_workers: int) -> list[tuple[Span, Span]]:
    """Cut the upper triangle of the matrix of all pairs into tiles.

    Returns:
        Rows and columns of every tile. Tiles off the diagonal take twice as long, so they come
        first. The short tiles at the end then keep all workers busy.
    """
    if num_workers == 1:
        num_spans = math.ceil(num_positions / TILE_ROWS_INLINE)
    else:
        # n spans make about n²/2 tiles.
        min_spans = math.ceil(math.sqrt(2 * TILES_PER_WORKER * num_workers))
        num_spans = max(math.ceil(num_positions / TILE_ROWS), min_spans)
    num_edges = min(num_spans, max(num_positions, 1)) + 1
    edges = np.unique(np.linspace(0, num_positions, num_edges).astype(int))
    spans = [Span(start, stop) for start, stop in pairwise(edges.tolist())]
    on_diagonal = [(span, span) for span in spans]
    return [*combinations(spans, 2), *on_diagonal]


def _tables(
    nearest: NearestOfSpan,
    train_sizes: Sequence[int],
    unit_length: float,
) -> list[NeighborTable]:
    """Return the table of each train size: the nearest rows in pairs that are new up to this size.

    Args:
        nearest: The result for all positions.
        train_sizes: Ascending train sizes, counted in positions.
        unit_length: Factor from the distances of the search to those of the tables.
    """
    by_size = nearest.other_label_by_size
    neighbor_squared = nearest.neighbor_squared[0]
    neighbor_positions = nearest.neighbor_positions[0]
    other_label_squared = by_size.squared[0]
    other_label_positions = by_size.positions[0]
    tables = []
    for size_index, size in enumerate(train_sizes):
        if size_index > 0:
            neighbor_squared, neighbor_positions = merge_nearest(
                neighbor_squared,
                neighbor_positions,
                nearest.neighbor_squared[size_index],
                nearest.neighbor_positions[size_index],
            )
            # In a tie the smaller size wins, because its positions are smaller.
            new_squared = by_size.squared[size_index]
            new_positions = by_size.positions[size_index]
            is_closer = new_squared < other_label_squared
            other_label_squared = np.where(is_closer, new_squared, other_label_squared)
            other_label_positions = np.where(is_closer, new_positions, other_label_positions)
        tables.append(
            NeighborTable(
                distances=np.sqrt(neighbor_squared[:size]) * unit_length,
                neighbor_positions=neighbor_positions[:size],
                other_label_distances=np.sqrt(other_label_squared[:size]) * unit_length,
                other_label_positions=other_label_positions[:size],
                closest_pairs=_pair_list(nearest.closest_pairs[: size_index + 1], unit_length),
            )
        )
    return tables


def _pair_list(pairs_by_size: Sequence[ClosestPairs], unit_length: float) -> PairList | None:
    """Return the closest pairs of one train size; None if no closest pairs were collected.

    Args:
        pairs_by_size: The closest of the new pairs, for this and all smaller train sizes.
        unit_length: Factor from the distances of the search to those of the list.
    """
    if not pairs_by_size:
        return None
    closest = ClosestPairs(sum(new_pairs.capacity for new_pairs in pairs_by_size))
    for new_pairs in pairs_by_size:
        closest.merge(new_pairs)
    order = np.argsort(closest.pairs["squared"])
    pairs = closest.pairs[order]
    distances = np.sqrt(pairs["squared"]) * unit_length
    return PairList(distances, pairs["first"], pairs["second"])
