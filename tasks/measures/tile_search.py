"""Search all pairs of a job, tile by tile, on one or many workers.

The matrix of all pairs is cut into tiles. Each task computes one tile. The rows of a tile are
one span of positions. The columns are the same span, or a later span. Distances are symmetric,
so each distance is computed once and used for both of its positions.
:mod:`tasks.measures.tile_blocks` computes the distances of a tile, and
:mod:`tasks.measures.tile_results` collects the nearest points.
"""

from __future__ import annotations

import math
from itertools import combinations, pairwise
from typing import cast

import numpy as np

from tasks.measures.products import check_device
from tasks.measures.tile_blocks import SearchJob, Span, blocks_of_tile, no_pair_value
from tasks.measures.tile_results import SpanResult, add_block
from tasks.remote import Executor

TILE_ROWS = 16384
"""Largest number of rows or columns of a tile. It limits the size of a task's result."""
TILE_ROWS_INLINE = 1 << 18
"""Largest number of rows or columns of a tile if there is only one worker. The result of a
task is then not sent to another process, so it may be larger."""
TILES_PER_WORKER = 5
"""Smallest number of tiles per worker. With fewer tiles, many workers would wait until the
last tiles are finished."""
MIN_MULTIPLY_ADDS_TO_SPREAD = 1e11
"""Number of multiply-adds per worker above which tasks are distributed over all nodes. With
fewer multiply-adds, sending the rows would take longer than computing the products. A worker
needs about one second for this number of multiply-adds."""


def search_all_tiles(job: SearchJob, executor: Executor) -> SpanResult:
    """Search all tiles, and return the merged result for all positions."""
    num_positions = len(job.source_rows)
    # Each task receives a reference to the job, which the executor replaces by the job. So
    # each worker receives the job only once.
    shared_job = executor.share(job)
    tiles = plan_tiles(num_positions, executor.num_workers)
    arguments = [(shared_job, row_span, column_span) for row_span, column_span in tiles]
    is_spread = job.multiply_adds_per_worker > MIN_MULTIPLY_ADDS_TO_SPREAD
    tile_results = executor.map_unordered(search_tile, arguments, spread=is_spread)
    if len(tiles) == 1:
        # The result of the only tile is the result for all positions, so nothing is merged.
        _, span_results = next(tile_results)
        return cast(SpanResult, span_results[0])  # executors return Any
    result = SpanResult(job, Span(0, num_positions))
    for _, span_results in tile_results:
        for span_result in span_results:
            result.merge(span_result)
    return result


def search_tile(job: SearchJob, row_span: Span, column_span: Span) -> list[SpanResult]:
    """Compute all blocks of one tile.

    Args:
        job: The search.
        row_span: Positions of the tile's rows.
        column_span: Positions of the tile's columns.

    Returns:
        The result for the rows and the result for the columns. A tile on the diagonal has only
        one result.
    """
    check_device(job.precision.device)
    row_result = SpanResult(job, row_span)
    column_result = row_result  # on the diagonal, rows and columns are the same span
    span_results = [row_result]
    if row_span != column_span:
        column_result = SpanResult(job, column_span)
        span_results.append(column_result)
    arithmetic = row_result.arithmetic
    for block in blocks_of_tile(job, row_span, column_span):
        arithmetic = block.arithmetic
        if block.rows == block.columns:  # a point is not its own neighbor
            np.fill_diagonal(block.squared, no_pair_value(block.squared.dtype))
        add_block(job, row_result, column_result, block)
    for result in span_results:
        # The arithmetic never becomes narrower within a tile, so the last block has the widest
        # arithmetic.
        result.arithmetic = arithmetic
        for pairs in result.pairs_by_size:
            pairs.prune()
    return span_results


def plan_tiles(num_positions: int, num_workers: int) -> list[tuple[Span, Span]]:
    """Cut the upper triangle of the matrix of all pairs into tiles.

    Returns:
        The row span and the column span of every tile. A tile that is not on the diagonal
        takes twice as long as a tile on it. The longer tiles come first, so that all workers
        finish at nearly the same time.
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
