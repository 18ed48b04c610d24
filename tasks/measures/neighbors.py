"""Find exact nearest neighbors, and nearest points with another label, at all train sizes.

A *point* is an image, or another array of numbers. This module, and the modules that it uses,
have three kinds of index:

- A *source row* is an index of the points of the source.
- A *position* is an index of the measured points. These are the chosen source rows, in the
  same order. Callers do not choose duplicates of earlier points.
- A *size index* i stands for the i-th train size, from 0. The train sizes are ascending. The
  training set of size n has the positions ``0 .. n-1``. The size index of a point or of a pair
  belongs to the first train size whose training set contains the point or the pair.

A pair with the size index i is *new* at the i-th train size, because no smaller training set
contains the pair. Example: the train sizes are 2 and 4. The pair of the positions 0 and 1 has
the size index zero. All other pairs of the positions 0 to 3 have the size index one.

The search has five steps:

1. :func:`nested_neighbors` chooses the points, and describes the search in a
   :class:`~tasks.measures.tile_blocks.SearchJob`.
2. :mod:`tasks.measures.tile_search` cuts the matrix of all pairs into *tiles*, one for each
   task.
3. :mod:`tasks.measures.tile_blocks` computes the squared distances of a tile, block by block.
4. :mod:`tasks.measures.tile_results` adds the distances of each block to the results of the
   train size at which their pairs are new. It also merges the results of all tiles.
5. :mod:`tasks.measures.neighbor_tables` merges the results of each train size with the results
   of all smaller train sizes.

The whole matrix of distances is never in memory. A tile has two spans, its rows and its
columns. A span has at most 16,384 positions, or 262,144 if there is only one worker. For
bytes, the columns are read in *pieces* of at most 256 rows, see
:mod:`tasks.measures.tile_blocks`. A process that computes a tile needs memory mainly for these
arrays. The table lists the largest size of each array:

============================  ====================  ================================================
array                         shape                 size
============================  ====================  ================================================
bytes: rows                   (2048, num_features)  320 MiB
bytes: two pieces of columns  (256, num_features)   64 MiB each
bytes: products on diagonal   (2048, 2048)          16 MiB in int32, 32 MiB in int64
bytes: distances of a block   (2048, 256)           2 MiB in int32, 4 MiB in int64
floats: rows and columns      (2048, num_features)  two arrays in the dtype of the source
floats: two centered copies   (2048, 8192)          64 MiB each in float32, 128 MiB in float64
floats: distances of a block  (2048, 2048)          16 MiB in float32, 32 MiB in float64
results: neighbors            (span, k)             16 bytes per entry, for each train size
results: other label, size    (span, 1)             16 bytes per entry, for each train size
results: other label, sample  (span, 1)             16 bytes per entry, for each sample
results: closest pairs        (num_pairs,)          32 MiB, for each train size; only with samples
============================  ====================  ================================================

If the source is an array without duplicates, rows and columns are views, which need no memory.
The process that merges the tiles needs memory for the results of all positions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tasks.array_types import BoolArray, FloatArray, IntArray
from tasks.measures.byte_rows import as_bytes, is_byte_dtype
from tasks.measures.closest_pairs import max_pairs_by_size
from tasks.measures.distances import BlockSource, Precision, as_source, estimate_center
from tasks.measures.neighbor_tables import NestedNeighbors, make_tables
from tasks.measures.tile_blocks import SearchJob
from tasks.measures.tile_search import search_all_tiles
from tasks.remote import Executor, InlineExecutor

BLOCK_ROWS = 2048
"""Number of rows in a block. With this number, the matrix products take most of the run
time."""


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
    """Find, for each train size, the nearest neighbors of its points inside the training set.

    If the points are rows of bytes, squared distances are exact integers. Otherwise, distances
    have a relative error of at most 1e-5 in float32, and at most 1e-7 in float64.

    Args:
        points: Array ``(num_source_rows, ...)``, or a source. The training set of size n
            contains the first n chosen points.
        labels: ``(num_source_rows,)`` integer label of each source row; None to find only
            neighbors.
        train_sizes: Ascending train sizes, counted in positions.
        num_neighbors: Number of neighbors per point, at least 1.
        executor: Executor of the tiles; None computes them in this process.
        precision: Options of the matrix products. With None, distances between bytes are
            computed in integers, and all other distances in float32.
        block_rows: Number of rows in a block. Memory grows with the square of this number.
        source_rows: ``(num_positions,)`` source rows to measure, ascending; None for all
            source rows. All indices in the result are positions. A position is an index into
            this array.
        samples: ``(num_samples, num_positions)`` masks, True for the positions in a sample.
            The search also finds the nearest point with another label inside each sample.

    Raises:
        DataError: The first row of a source has a dtype of bytes, but a later row has another
            dtype.
        ValueError: The number of labels differs from the number of source rows. Or the length
            of a mask differs from the number of positions.
    """
    executor = executor or InlineExecutor()
    precision = precision or Precision()
    # Choose the arithmetic: distances between bytes are computed in integers, all others in
    # floats.
    source = as_source(points)
    if precision.exact_bytes:
        source = as_bytes(source)
    dtype = source.read(0, 1).dtype
    byte_dtype = dtype if precision.exact_bytes and is_byte_dtype(dtype) else None
    center: FloatArray = np.zeros(0)  # bytes are not centered
    if byte_dtype is None:
        center = estimate_center(source)
    # Choose the positions, with their labels and samples.
    if source_rows is None:
        source_rows = np.arange(source.num_rows)
    source_rows = np.asarray(source_rows)[: train_sizes[-1]]
    num_positions = len(source_rows)
    label_codes = None
    if labels is not None:
        if len(labels) != source.num_rows:
            raise ValueError(f"there are {len(labels)} labels, but {source.num_rows} source rows")
        label_codes = _label_codes(labels)[source_rows]
    if samples is None:
        samples = np.zeros((0, num_positions), bool)
    if samples.shape[1] != num_positions:
        raise ValueError(
            f"masks have {samples.shape[1]} entries, but there are {num_positions} positions"
        )
    # Every unordered pair costs one multiply-add per feature.
    multiply_adds = num_positions**2 / 2 * float(np.prod(source.row_shape))
    job = SearchJob(
        source=source,
        source_rows=source_rows,
        label_codes=label_codes,
        train_sizes=tuple(train_sizes),
        samples=samples,
        center=center,
        num_neighbors=num_neighbors,
        precision=precision,
        block_rows=block_rows,
        multiply_adds_per_worker=multiply_adds / executor.num_workers,
        max_pairs_by_size=max_pairs_by_size(samples, train_sizes),
        byte_dtype=byte_dtype,
    )
    result = search_all_tiles(job, executor)
    return make_tables(job, result)


def _label_codes(labels: IntArray) -> IntArray:
    """Convert labels to numbers from 0. Their dtype is as narrow as possible, for fast
    comparisons.
    """
    classes, codes = np.unique(labels, return_inverse=True)
    return codes.astype(np.min_scalar_type(len(classes)))
