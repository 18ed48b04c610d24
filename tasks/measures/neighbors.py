"""Exact nearest neighbors, and nearest points with another label, for all nested train sizes.

A *point* is an image, or another array of numbers. Three kinds of index occur here and in the
modules below:

- A *source row* is an index of the points of the source.
- A *position* is an index of the points that are measured, in the same order. It does not count
  duplicates of earlier points, because these are not measured.
- A *size index* i stands for the i-th train size, from 0. The train sizes are ascending. The
  training set of size n has the positions ``0 .. n-1``. A point or a pair has the size index of
  the first train size whose training set contains it.

A pair with the size index i is *new* at the i-th train size: no smaller training set contains it.
Example with the train sizes 2 and 4: the pair of the positions 0 and 1 has the size index 0. All
other pairs of the positions 0 to 3 have the size index 1.

:mod:`tasks.measures.tile_search` first collects results for the new pairs of each train size.
:mod:`tasks.measures.neighbor_tables` then merges the results of this and all smaller train sizes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tasks.array_types import BoolArray, IntArray
from tasks.measures.distances import (
    BlockSource,
    Precision,
    as_bytes,
    as_source,
    estimate_center,
    is_byte_dtype,
)
from tasks.measures.neighbor_tables import NestedNeighbors, make_tables
from tasks.measures.tile_blocks import SearchJob
from tasks.measures.tile_search import search_all_tiles
from tasks.remote import Executor, InlineExecutor

BLOCK_ROWS = 2048
"""Number of rows in a block. At this size the matrix product takes most of the run time. A worker
needs about 200 MB of memory."""
PAIRS_PER_SAMPLE = 1024
"""Expected number of collected closest pairs inside one sample, which is a subset of the positions.
:func:`tasks.measures.sharpness.permuted_sharpness` permutes the labels at random, and needs a pair
with different labels. Of 1,024 pairs, all have equal labels with a probability of about 1e-9, even
if only 1 % of the images have another label than the rest."""
MAX_CLOSEST_PAIRS = 1 << 20
"""Largest number of closest pairs to collect among the new pairs of a train size. They take
16 MiB."""


def nested_neighbors(
    points: BlockSource | npt.ArrayLike,
    labels: IntArray | None,
    train_sizes: Sequence[int],
    num_neighbors: int,
    *,
    executor: Executor | None = None,
    precision: Precision | None = None,
    block_rows: int = BLOCK_ROWS,
    source_rows: IntArray | None = None,
    samples: BoolArray | None = None,
) -> NestedNeighbors:
    """Return for each train size the nearest neighbors of its points inside the training set.

    The distances of points of bytes are square roots of exact integers. Other distances have a
    relative error of at most 1e-5 in float32 and 1e-7 in float64.

    Args:
        points: ``(num_source_rows, ...)`` array, or a source. The points of a smaller train size
            come first.
        labels: ``(num_source_rows,)`` integers, by source row; None to search neighbors only.
        train_sizes: Ascending train sizes, counted in positions.
        num_neighbors: Number of neighbors per point, at least 1.
        executor: Executor of the tiles; None computes them in this process.
        precision: Precision of the products. None computes bytes in integers, and other numbers in
            float32.
        block_rows: Number of rows in a block. Memory grows with the square of this number.
        source_rows: ``(num_positions,)`` source rows to measure, ascending; None for all. All
            indices in the result are positions, which are indices into this array.
        samples: ``(num_samples, num_positions)`` masks, True for the positions in a sample. The
            nearest point with another label is also searched inside each sample.

    Raises:
        DataError: If the first row of a source is bytes, and a later row has another dtype.
        ValueError: If there is not one label per source row, or not one entry of a mask per
            position.
    """
    executor = executor or InlineExecutor()
    precision = precision or Precision()
    source = as_source(points)
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
    # The training set of size n contains a position if n is larger than the position.
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
    result = search_all_tiles(job, executor)
    return make_tables(job, result, train_sizes)


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
