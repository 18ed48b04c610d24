"""Exact nearest neighbors, and nearest rows with another label, of all nested train sizes at once.

A *row* is an image or another point. Three kinds of index occur here and in the modules below:

- A *source row* is an index of the rows of the source.
- A *position* is an index of the rows that are measured, in the same order. A duplicate of an
  earlier row is not measured, so it has no position.
- A *size index* is an index of the train sizes, which are ascending. The training set of size n has
  the positions ``0 .. n-1``. The size index of a position, or of a pair of positions, is that of
  the smallest training set that contains it.

A pair with the size index i is *new* at the i-th train size: no smaller training set contains it.
Results are first collected for the new pairs of each train size. The table of a train size then
merges the results of the new pairs of this and all smaller sizes.

The matrix of all pairs is cut into tiles. One task computes one tile. The rows of a tile are one
span of positions. Its columns are the same span, or a later one.
:mod:`tasks.measures.tile_blocks` computes the distances of a tile, and
:mod:`tasks.measures.tile_results` collects the nearest rows. Distances are symmetric, so each
distance is computed once and used for both of its positions.
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
from tasks.measures.closest_pairs import ClosestPairs
from tasks.measures.distances import (
    BlockSource,
    ByteRows,
    Precision,
    as_bytes,
    as_source,
    estimate_center,
    is_byte_dtype,
)
from tasks.measures.products import check_device
from tasks.measures.tile_blocks import SearchJob, Span, blocks_of_tile, no_pair_value
from tasks.measures.tile_results import SpanResult, TileResults, add_block
from tasks.remote import Executor, InlineExecutor

BLOCK_ROWS = 2048
"""Number of rows in a block. At this size the matrix product takes most of the run time. A worker
needs about 200 MB of memory."""
TILE_ROWS = 16384
"""Largest number of rows or columns of a tile. It limits the size of a task's result."""
TILE_ROWS_INLINE = 1 << 18
"""Largest number of rows or columns of a tile with one worker. The result of a task is then not
transferred, so it may be larger."""
TILES_PER_WORKER = 5
"""Smallest number of tiles per worker. With fewer tiles, workers would wait for the last tile."""
MIN_MULTIPLY_ADDS_TO_SPREAD = 1e11
"""Number of multiply-adds per worker above which tasks also go to other nodes. With less work,
sending the rows takes longer than computing. A worker needs about one second for this number."""
PAIRS_PER_SAMPLE = 1024
"""Number of the collected closest pairs that lie inside one sample, on average. A *sample* is a
subset of the positions (see :func:`nested_neighbors`). Among these pairs,
:func:`tasks.measures.sharpness.permuted_sharpness` searches the closest pair with different labels,
after the labels were permuted at random. If 1 % of the images have another label than the rest, the
probability that none of 1,024 pairs has different labels is about 1e-9."""
MAX_CLOSEST_PAIRS = 1 << 20
"""Largest number of closest pairs to collect among the new pairs of a train size. They take
16 MiB."""


class PairList(NamedTuple):
    """The closest pairs of a train size, closest first.

    Every other pair of this train size is at least as far apart as the last pair in the list.

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
        labels: ``(num_source_rows,)`` integers, by source row; None to search neighbors only.
        train_sizes: Ascending train sizes, counted in positions.
        num_neighbors: Number of neighbors per row, at least 1.
        executor: Executor of the tiles; None computes them in this process.
        precision: Precision of the products of floats; None for float32.
        block_rows: Number of rows in a block. Memory grows with the square of this number.
        source_rows: ``(num_positions,)`` source rows to measure, ascending; None for all. All
            indices in the result are positions, that is, indices into this array (into the rows if
            it is None).
        samples: ``(num_samples, num_positions)`` masks, True for the positions in a sample. The
            nearest row with another label is also searched inside each sample.

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
    # The first train size that is larger than a position is the smallest one that contains it.
    positions = np.arange(num_positions)
    size_indices = np.searchsorted(np.asarray(train_sizes), positions, side="right")
    job = SearchJob(
        source=source,
        source_rows=source_rows,
        label_codes=label_codes,
        size_indices=size_indices,
        samples=samples,
        center=np.zeros(0) if is_exact else estimate_center(source),  # bytes are not centered
        num_sizes=len(train_sizes),
        num_neighbors=num_neighbors,
        precision=precision,
        block_rows=block_rows,
        multiply_adds_per_worker=multiply_adds / executor.num_workers,
        max_pairs_by_size=_max_pairs_by_size(samples, train_sizes),
        byte_dtype=dtype if is_exact else None,
    )
    result = _search_all_tiles(job, executor)
    return _neighbor_search(job, result, train_sizes)


def _label_codes(labels: IntArray) -> IntArray:
    """Return labels as numbers from 0, in the narrowest dtype, which is the fastest to compare."""
    classes, codes = np.unique(labels, return_inverse=True)
    return codes.astype(np.min_scalar_type(len(classes)))


def _max_pairs_by_size(samples: BoolArray, train_sizes: Sequence[int]) -> tuple[int, ...]:
    """Return the number of closest pairs to collect among the new pairs of each train size.

    A sample of M of n images contains both images of a pair with probability (M/n)². So if
    ``PAIRS_PER_SAMPLE`` * (n/M)² pairs are collected, ``PAIRS_PER_SAMPLE`` of them lie in a sample
    on average. The number is at most ``MAX_CLOSEST_PAIRS``.
    """
    if not len(samples):
        return ()
    sample_size = int(samples.sum(axis=1).max())
    max_pairs = []
    for size in train_sizes:
        ratio = max(1.0, size / sample_size)
        max_pairs.append(min(MAX_CLOSEST_PAIRS, int(PAIRS_PER_SAMPLE * ratio**2)))
    return tuple(max_pairs)


def _search_all_tiles(job: SearchJob, executor: Executor) -> SpanResult:
    """Search all tiles, and return the merged result for all positions."""
    num_positions = len(job.source_rows)
    # A worker receives the job once. The executor replaces this reference by the job.
    shared_job = executor.share(job)
    tiles = plan_tiles(num_positions, executor.num_workers)
    arguments = [(shared_job, row_span, column_span) for row_span, column_span in tiles]
    is_spread = job.multiply_adds_per_worker > MIN_MULTIPLY_ADDS_TO_SPREAD
    tile_results = executor.map_unordered(search_tile, arguments, spread=is_spread)
    if len(tiles) == 1:
        # The only tile already has the result for all positions. This saves a merge.
        _, only_results = next(tile_results)
        return cast(SpanResult, only_results[0])  # executors return Any
    result = SpanResult(job, Span(0, num_positions))
    for _, partial_results in tile_results:
        for partial in partial_results:
            result.merge(partial)
    return result


def search_tile(job: SearchJob, row_span: Span, column_span: Span) -> list[SpanResult]:
    """Compute all blocks of one tile.

    Args:
        job: The search.
        row_span: Positions of the tile's rows.
        column_span: Positions of the tile's columns.

    Returns:
        The result of the rows and the result of the columns. A tile on the diagonal has only one
        result.
    """
    check_device(job.precision.device)
    results = TileResults.empty(job, row_span, column_span)
    precision = results.rows.precision
    for block in blocks_of_tile(job, row_span, column_span):
        precision = block.precision
        if block.rows == block.columns:
            np.fill_diagonal(block.squared, no_pair_value(block.squared.dtype))
        add_block(job, results, block)
    span_results = results.as_list()
    for result in span_results:
        # The last block has the widest precision, because precision never narrows within a tile.
        result.precision = precision
        for pairs in result.closest_pairs:
            pairs.prune()
    return span_results


def plan_tiles(num_positions: int, num_workers: int) -> list[tuple[Span, Span]]:
    """Cut the upper triangle of the matrix of all pairs into tiles.

    Returns:
        Row span and column span of every tile. Tiles off the diagonal take twice as long, so they
        come first. The short tiles at the end then keep all workers busy.
    """
    if num_workers == 1:
        num_spans = math.ceil(num_positions / TILE_ROWS_INLINE)
    else:
        # n spans make about n²/2 tiles.
        min_spans = math.ceil(math.sqrt(2 * TILES_PER_WORKER * num_workers))
        num_spans = max(math.ceil(num_positions / TILE_ROWS), min_spans)
    num_spans = min(num_spans, num_positions)  # no span is empty
    edges = np.unique(np.linspace(0, num_positions, num_spans + 1).astype(int))
    spans = [Span(start, stop) for start, stop in pairwise(edges.tolist())]
    on_diagonal = [(span, span) for span in spans]
    return [*combinations(spans, 2), *on_diagonal]


def _neighbor_search(
    job: SearchJob,
    result: SpanResult,
    train_sizes: Sequence[int],
) -> NeighborSearch:
    """Return the tables of all train sizes, and the nearest rows inside all samples.

    Args:
        job: The search.
        result: The result for all positions.
        train_sizes: Ascending train sizes, counted in positions.
    """
    # ByteRows stores each value divided by its unit. So distances are multiplied by the unit.
    unit_length = job.source.unit if isinstance(job.source, ByteRows) else 1.0
    # Without samples, these arrays have the shape (0, num_positions).
    sample_squared = np.zeros(job.samples.shape)
    sample_positions = np.zeros(job.samples.shape, np.int64)
    for sample_index, nearest in enumerate(result.other_label_by_sample):
        sample_squared[sample_index] = nearest.squared[:, 0]
        sample_positions[sample_index] = nearest.positions[:, 0]
    return NeighborSearch(
        tables=_tables(result, train_sizes, unit_length),
        sample_other_label_distances=np.sqrt(sample_squared) * unit_length,
        sample_other_label_positions=sample_positions,
        precision=result.precision,
    )


def _tables(
    result: SpanResult,
    train_sizes: Sequence[int],
    unit_length: float,
) -> list[NeighborTable]:
    """Return the table of each train size: the nearest rows in pairs that are new up to this size.

    Args:
        result: The result for all positions.
        train_sizes: Ascending train sizes, counted in positions.
        unit_length: Factor from the distances of the search to those of the tables.
    """
    all_positions = slice(None)
    # Results are merged in place: after size i, these have all pairs of the i-th train size.
    neighbors = result.neighbors[0]
    other_label = result.other_label_by_size[0]
    tables = []
    for size_index, size in enumerate(train_sizes):
        if size_index > 0:
            neighbors.merge(result.neighbors[size_index], all_positions)
            other_label.merge(result.other_label_by_size[size_index], all_positions)
        tables.append(
            NeighborTable(
                distances=np.sqrt(neighbors.squared[:size]) * unit_length,
                # Later sizes change these positions in place.
                neighbor_positions=neighbors.positions[:size].copy(),
                other_label_distances=np.sqrt(other_label.squared[:size, 0]) * unit_length,
                other_label_positions=other_label.positions[:size, 0].copy(),
                closest_pairs=_pair_list(result.closest_pairs[: size_index + 1], unit_length),
            )
        )
    return tables


def _pair_list(pairs_by_size: Sequence[ClosestPairs], unit_length: float) -> PairList | None:
    """Return the closest pairs of one train size; None if no closest pairs were collected.

    Args:
        pairs_by_size: The closest of the new pairs of this and all smaller train sizes.
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
