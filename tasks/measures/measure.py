"""Intrinsic dimension and label sharpness of a dataset, for all its train sizes.

Two equal images are at distance zero, where logarithms and inverses are undefined. The first one is
kept. Later ones are left out of every measure and counted. If their labels differ they are
conflicts, and listed.

Two kinds of index occur, as in `tasks.measures.neighbors`. A source row is an index of all images.
A position is an index of the distinct images only.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from search_spaces.errors import DataError
from tasks.measures.arrays import AnyArray, BoolArray, FloatArray, IntArray
from tasks.measures.calibration import calibrate
from tasks.measures.distances import (
    UNITS,
    BlockSource,
    ByteRows,
    Precision,
    as_bytes,
    byte_units,
    direct_squared_distances,
    flatten,
    is_byte_dtype,
)
from tasks.measures.estimators import IntrinsicDimension, estimate, table_width
from tasks.measures.neighbors import NeighborSearch, NeighborTable, nested_neighbors
from tasks.measures.records import (
    MeasureResult,
    MeasureSettings,
    SizeRecord,
    as_array,
    as_channels_first,
    check_labels,
    check_train_sizes,
    checked_source,
)
from tasks.measures.sharpness import (
    LabelSharpness,
    SharpnessConvention,
    UnlikeDistances,
    permuted_sharpness,
    stratified_samples,
    summarize,
)
from tasks.measures.tile_blocks import EXACT
from tasks.prepared.subsets import stratified_order
from tasks.remote import Executor, InlineExecutor

MAX_LISTED_CONFLICTS = 10
"""Pairs of equal images with different labels that a result lists, at most."""
NEAR_MINIMUM = 1 + 4e-5
"""Recompute every distance within this factor of the minimum: one of them may be the true minimum.
Either may be off by 1e-5, and we double that."""
PROFILE_BYTES = 256 << 20
"""Memory for a piece of rows, as float64, when duplicates are looked for."""
KEY_VALUES = 512
"""Values per row that are hashed into its key."""
KEY_SEED = 20240501
"""Seed of the choice of these values; any number."""


def measure_nested(
    images: BlockSource | npt.ArrayLike,
    labels: npt.ArrayLike | None,
    train_sizes: Sequence[int],
    *,
    executor: Executor | None = None,
    settings: MeasureSettings | None = None,
) -> MeasureResult:
    """Measure prefixes of images that are already in nested order.

    Args:
        images: ``(num_images, ...)``, uint8 or any real dtype, in the pixel range to measure in; or
            a source that reads such blocks.
        labels: ``(num_images,)`` integers. None measures intrinsic dimension only.
        train_sizes: Prefix lengths, in any order.
        executor: Where blocks are computed; None for this process.
        settings: How to measure.

    Returns:
        The measures by train size. Pairs in it are row numbers of ``images``.

    Raises:
        DataError: If images, labels or sizes cannot be used.
        CorruptStoreError: From the source, if a shard fails its checksum.
    """
    settings = settings or MeasureSettings()
    source = checked_source(images)
    codes = None if labels is None else check_labels(labels, source.num_rows)
    sizes = check_train_sizes(train_sizes, source.num_rows)
    profile = profile_rows(source, codes, executor=executor)
    precision = Precision(settings.dtype, settings.device, exact_bytes=profile.is_exact)
    distinct_images = _find_neighbors(profile, codes, sizes, precision, settings, executor)
    convention = _convention(source, settings)
    records = []
    for size_index, size in enumerate(sizes):
        table = distinct_images.neighbors.tables[size_index]
        dimensions = estimate(
            table,
            num_neighbors=settings.num_neighbors,
            estimators=settings.estimators,
            parameters={"discard_fraction": settings.discard_fraction},
            seed=settings.seed,
        )
        records.append(
            SizeRecord(
                train_size=size,
                num_duplicates=size - table.num_positions,
                num_conflicts=sum(row < size for row, _ in profile.conflicts),
                d_data=dimensions,
                label_sharpness=distinct_images.sharpness(size_index, convention),
            )
        )
    calibration = None
    if settings.calibrate:
        calibration = calibrate(
            profile.source,
            num_neighbors=settings.num_neighbors,
            keep=distinct_images.source_rows,
            executor=executor,
            precision=precision,
            seed=settings.seed,
        )
    return MeasureResult(
        sizes=tuple(records),
        conflict_pairs=tuple(profile.conflicts[:MAX_LISTED_CONFLICTS]),
        settings=settings,
        precision=distinct_images.neighbors.precision,
        notes=_notes(records[-1], convention),
        calibration=calibration,
    )


def _find_neighbors(
    profile: RowProfile,
    labels: IntArray | None,
    sizes: Sequence[int],
    precision: Precision,
    settings: MeasureSettings,
    executor: Executor | None,
) -> SearchedImages:
    """Find the neighbors of all distinct images, within every train size.

    ``labels`` and ``sizes`` count source rows; the result counts positions.
    """
    # Distinct images among the first n source rows, for each size n.
    distinct_sizes = np.searchsorted(profile.distinct_rows, sizes).tolist()
    source_rows = profile.distinct_rows[: distinct_sizes[-1]]
    distinct_labels = None if labels is None else labels[source_rows]
    samples, sample_slices = stratified_samples(
        distinct_labels, distinct_sizes, settings.sharpness_sample, settings.sharpness_seeds
    )
    width = table_width(settings.estimators, settings.num_neighbors)
    width = min(width, len(source_rows) - 1)
    neighbors = nested_neighbors(
        profile.source,
        labels,  # by source row, as nested_neighbors reads them
        distinct_sizes,
        max(width, 1),
        executor=executor,
        precision=precision,
        block_rows=settings.block_rows,
        source_rows=source_rows,
        samples=samples,
    )
    return SearchedImages(
        source=profile.source,
        source_rows=source_rows,
        labels=distinct_labels,
        neighbors=neighbors,
        samples=samples,
        sample_slices=sample_slices,
    )


def measure_array(
    images: npt.ArrayLike,
    labels: npt.ArrayLike | None,
    *,
    train_sizes: Sequence[int] | None = None,
    executor: Executor | None = None,
    settings: MeasureSettings | None = None,
) -> MeasureResult:
    """Measure your own images: intrinsic dimension and label sharpness, without training anything.

    Args:
        images: ``(num_images, channels, height, width)``, ``(num_images, height, width,
            channels)``, ``(num_images, height, width)`` or ``(num_images, num_features)``; uint8 or
            any real dtype.
        labels: ``(num_images,)`` integers. None measures intrinsic dimension only.
        train_sizes: Sizes of nested, stratified subsets to measure besides all images. None
            measures all images only.
        executor: Where blocks are computed; None for this process, without Ray.
        settings: How to measure. Its seed also gives the order that subsets are prefixes of.

    Returns:
        Record whose ``to_json()`` is what ``isweep measure --json`` prints. Pairs in it are row
        numbers of ``images`` as given.

    Raises:
        DataError: If images, labels or sizes cannot be used.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> images = rng.integers(0, 256, (60, 8, 8), dtype=np.uint8)
        >>> record = measure_array(images, np.arange(60) % 2)
        >>> record.label_sharpness.num_pairs
        900
    """
    settings = settings or MeasureSettings()
    array = as_channels_first(as_array(images))
    codes = None if labels is None else check_labels(labels, len(array))
    num_images = len(array)
    if train_sizes is None:
        return measure_nested(array, codes, [num_images], executor=executor, settings=settings)
    sizes = [*check_train_sizes(train_sizes, num_images), num_images]
    classes = np.zeros(num_images, np.int64)
    if codes is not None:
        _, numbered = np.unique(codes, return_inverse=True)
        classes = numbered.astype(np.int64)
    rng = np.random.default_rng(settings.seed)
    order = stratified_order(classes, np.arange(num_images), rng, balanced=False)
    ordered_codes = None if codes is None else codes[order]
    result = measure_nested(
        array[order], ordered_codes, sizes, executor=executor, settings=settings
    )
    return result.renumbered(order)


def intrinsic_dimension(
    features: npt.ArrayLike | BlockSource,
    **settings: Any,
) -> dict[str, IntrinsicDimension]:
    """Estimate the intrinsic dimension of any array of points.

    The points may be the activations of a network's last hidden layer, for example (d_repr).

    Args:
        features: ``(num_points, ...)`` real numbers, in any order.
        settings: Fields of `MeasureSettings`.

    Returns:
        One record per estimator. Exact duplicates count once; ``num_duplicates`` in the details is
        their number.

    Raises:
        DataError: If the features are no numbers, or not finite.
        ConfigError: If an estimator is not known.

    Example:
        >>> points = np.random.default_rng(0).normal(size=(500, 3)) @ np.ones((3, 40))
        >>> 0.9 < intrinsic_dimension(points)["mle"].value < 1.1
        True
    """
    source = checked_source(features)
    chosen = MeasureSettings(**settings)
    result = measure_nested(source, None, [source.num_rows], settings=chosen)
    num_duplicates = result.sizes[0].num_duplicates
    return {
        name: replace(record, details=record.details | {"num_duplicates": num_duplicates})
        for name, record in result.d_data.items()
    }


def _convention(source: BlockSource, settings: MeasureSettings) -> SharpnessConvention:
    """Return the scale of the images: pixel range, side, channels and sample size.

    A pixel range that is not given follows from the dtype: [0, 1] for booleans, from 0 to the
    largest number for unsigned integers. For other dtypes it is unknown.
    """
    shape = source.row_shape
    pixel_range = settings.pixel_range
    dtype = source.read(0, 1).dtype
    if pixel_range is None and dtype.kind == "b":
        pixel_range = (0.0, 1.0)
    elif pixel_range is None and dtype.kind == "u":
        pixel_range = (0.0, float(np.iinfo(dtype).max))
    if len(shape) == 3:
        return SharpnessConvention(pixel_range, shape[1:], shape[0], settings.sharpness_sample)
    return SharpnessConvention(pixel_range, None, int(np.prod(shape)), settings.sharpness_sample)


@dataclass(frozen=True)
class SearchedImages:
    """The distinct images of all sizes, and their nearest neighbors.

    Attributes:
        source: Where images are read.
        source_rows: ``(num_distinct,)`` source row of each position.
        labels: ``(num_distinct,)`` label of each position, or None.
        neighbors: Neighbors, by position.
        samples: ``(num_samples, num_distinct)`` masks of the samples of all sizes.
        sample_slices: The slice of ``samples`` that each size has.
    """

    source: BlockSource
    source_rows: IntArray
    labels: IntArray | None
    neighbors: NeighborSearch
    samples: BoolArray
    sample_slices: list[slice]

    def sharpness(self, size_index: int, convention: SharpnessConvention) -> LabelSharpness | None:
        """Return the label sharpness of one train size, or None without labels."""
        if self.labels is None:
            return None
        table = self.neighbors.tables[size_index]
        labels = self.labels[: table.num_positions]
        unlike = self._unlike_distances(table, self.sample_slices[size_index])
        record = summarize(labels, unlike, convention)
        if record.value is None:
            return record
        return replace(record, permuted=permuted_sharpness(table, labels, unlike.members))

    def _unlike_distances(self, table: NeighborTable, sample_slice: slice) -> UnlikeDistances:
        """Return distances to the nearest images with another label, the smallest ones refined."""
        positions = slice(table.num_positions)
        nearest = table.unlike_distances.copy()
        in_samples = self.neighbors.sample_unlike_distances[sample_slice, positions].copy()
        if self.neighbors.precision != EXACT:
            self._refine_minimum(nearest, table.unlike_indices)
            sample_indices = self.neighbors.sample_unlike_indices[sample_slice, positions]
            for distances, indices in zip(in_samples, sample_indices, strict=True):
                self._refine_minimum(distances, indices)
        pair_distance = float(nearest.min(initial=np.inf))
        pair = None
        if np.isfinite(pair_distance):
            closest = int(nearest.argmin())
            first = int(self.source_rows[closest])
            second = int(self.source_rows[table.unlike_indices[closest]])
            pair = min(first, second), max(first, second)
        return UnlikeDistances(
            nearest=nearest,
            pair=pair,
            pair_distance=pair_distance,
            in_samples=in_samples,
            members=self.samples[sample_slice, positions],
        )

    def _refine_minimum(self, distances: FloatArray, indices: AnyArray) -> None:
        """Recompute in float64, in place, all distances that could be the smallest.

        Args:
            distances: ``(num_positions,)``, infinite where there is no pair.
            indices: ``(num_positions,)`` positions at these distances.
        """
        limit = distances.min(initial=np.inf) * NEAR_MINIMUM
        candidates = np.flatnonzero(np.isfinite(distances) & (distances <= limit))
        refined: dict[tuple[int, int], float] = {}  # most pairs are there from both ends
        for position in candidates.tolist():
            nearest = int(indices[position])
            pair = min(position, nearest), max(position, nearest)
            if pair not in refined:
                a, b = (self._read(end) for end in pair)
                first_row = np.zeros(1, np.intp)  # a and b have one row each
                squared = direct_squared_distances(a, b, first_row, first_row)
                refined[pair] = float(np.sqrt(squared[0]))
            distances[position] = refined[pair]

    def _read(self, position: int) -> AnyArray:
        """Return the image at a position, ``(1, num_features)``."""
        row = int(self.source_rows[position])
        return flatten(self.source.read(row, row + 1))


def _notes(record: SizeRecord, convention: SharpnessConvention) -> tuple[str, ...]:
    """Return the remarks on the largest size."""
    notes = []
    if record.num_duplicates:
        notes.append(
            f"{record.num_duplicates} of {record.train_size} images equal an earlier one and were "
            "left out of all measures; neighbor distances of zero have no logarithm"
        )
    if record.num_conflicts:
        notes.append(
            f"{record.num_conflicts} of these carry another label than the earlier image: their "
            "label sharpness is infinite, and the values here hold for the other pairs; look at "
            "conflict_pairs"
        )
    if record.label_sharpness is not None and convention.pixel_range is None:
        notes.append(
            "the pixel range of these images is not known: --pixel-range makes K_F comparable"
        )
    for name, dimension in record.d_data.items():
        if "remark" in dimension.details:
            notes.append(f"{name} at {record.train_size} images {dimension.details['remark']}")
    return tuple(notes)


@dataclass(frozen=True)
class RowProfile:
    """The rows of a source that are measured.

    Attributes:
        source: Where to read them; as bytes if all rows hold bytes and have one dtype.
        distinct_rows: Source rows that equal no earlier one, ascending.
        conflicts: ``(row, earlier row)`` of equal images with different labels.
        is_exact: Whether ``source`` reads bytes.
    """

    source: BlockSource
    distinct_rows: IntArray
    conflicts: list[tuple[int, int]]
    is_exact: bool


def profile_rows(
    source: BlockSource,
    labels: AnyArray | None,
    *,
    executor: Executor | None = None,
) -> RowProfile:
    """Find duplicates and conflicts, and check that all values are finite.

    Args:
        source: Rows of any real dtype, at least one.
        labels: ``(num_rows,)``, or None to find no conflicts.
        executor: Where rows are hashed; None for this process.

    Raises:
        DataError: If rows are no real numbers, or not finite.
    """
    executor = executor or InlineExecutor()
    source = as_bytes(source)
    num_rows = source.num_rows
    dtype = source.read(0, 1).dtype
    keys = np.empty(num_rows, np.uint64)
    rows_not_finite: list[int] = []
    units = set(UNITS)
    dtypes = {dtype.str}  # a piece of several dtypes is read as one, which can differ from this
    for start, piece in _profile_pieces(source, executor):
        keys[start : start + len(piece.keys)] = piece.keys
        rows_not_finite += piece.rows_not_finite
        units &= piece.units
        dtypes.add(piece.dtype)
    _check_finite(rows_not_finite, num_rows)
    first_equal_row = _first_equal_rows(source, keys)
    conflicts = [] if labels is None else _find_conflicts(labels, first_equal_row)
    is_exact = len(units) > 0 and len(dtypes) == 1
    if is_exact and not is_byte_dtype(dtype):
        # Rows of zeros and ones fit both units. Whole numbers are then the natural reading.
        source = ByteRows(source, max(units))
    distinct_rows = np.flatnonzero(first_equal_row == np.arange(num_rows))
    return RowProfile(source, distinct_rows, conflicts, is_exact)


def _profile_pieces(source: BlockSource, executor: Executor) -> Iterator[tuple[int, PieceProfile]]:
    """Hash all rows in pieces that fit in memory. Yield the first row and profile of each."""
    num_rows = source.num_rows
    rows_in_memory = PROFILE_BYTES // (8 * int(np.prod(source.row_shape)))
    rows_per_worker = math.ceil(num_rows / executor.num_workers)
    step = max(1, min(rows_in_memory, rows_per_worker))
    shared = executor.share(source)
    starts = range(0, num_rows, step)
    pieces = [(shared, start, min(start + step, num_rows)) for start in starts]
    for index, piece in executor.map_unordered(profile_piece, pieces):
        yield starts[index], piece


def _check_finite(rows_not_finite: list[int], num_rows: int) -> None:
    """Raise a DataError if there are rows with NaN or infinity."""
    if rows_not_finite:
        first_ones = ", ".join(map(str, sorted(rows_not_finite)[:5]))
        raise DataError(
            f"NaN or infinity in {len(rows_not_finite)} of {num_rows} rows (first rows: "
            f"{first_ones})",
            hint="Remove or repair these rows",
        )


def _find_conflicts(labels: AnyArray, first_equal_row: IntArray) -> list[tuple[int, int]]:
    """Return ``(row, first equal row)`` of equal rows with different labels."""
    rows = np.flatnonzero(labels != labels[first_equal_row])
    earlier_rows = first_equal_row[rows].tolist()
    return list(zip(rows.tolist(), earlier_rows, strict=True))


@dataclass(frozen=True)
class PieceProfile:
    """A piece of rows, hashed.

    Attributes:
        keys: ``(num_rows,)`` 64-bit keys: equal rows have equal keys.
        rows_not_finite: Source rows that hold NaN or infinity.
        units: See `byte_units`; empty if the rows hold no bytes.
        dtype: The dtype as text, with its byte order.
    """

    keys: IntArray
    rows_not_finite: list[int]
    units: set[float]
    dtype: str


def profile_piece(
    source: BlockSource,
    start: int,
    stop: int,
) -> PieceProfile:
    """Hash the rows ``start`` to ``stop`` of a source by a fixed random choice of their values.

    Raises:
        DataError: If rows are no real numbers.
    """
    rows = flatten(source.read(start, stop))
    if rows.dtype.kind not in "biuf" or rows.itemsize > 8:
        raise DataError(
            f"Images are of dtype {rows.dtype}, not real numbers of at most 64 bits",
            hint="Convert the images",
        )
    rng = np.random.default_rng(KEY_SEED)
    num_features = rows.shape[1]
    columns = np.unique(rng.integers(0, num_features, KEY_VALUES))
    values = _without_minus_zero(rows[:, columns])
    row_bytes = values.view(np.uint8).reshape(len(rows), -1)
    num_padding_bytes = -row_bytes.shape[1] % 8
    words = np.pad(row_bytes, ((0, 0), (0, num_padding_bytes))).view(np.uint64)
    multipliers = rng.integers(0, 2**63, words.shape[1], dtype=np.uint64)
    multipliers = multipliers * 2 + 1  # odd numbers lose no bit of a word
    units = byte_units(rows)
    rows_not_finite: list[int] = []
    if rows.dtype.kind == "f" and not units:
        # A finite sum proves that a row is finite. Only the other rows are read value by value.
        with np.errstate(over="ignore", invalid="ignore"):
            sums = rows.sum(axis=1)
            suspects = np.flatnonzero(~np.isfinite(sums))
        is_bad = ~np.isfinite(rows[suspects]).all(axis=1)
        rows_not_finite = (suspects[is_bad] + start).tolist()
    return PieceProfile(words @ multipliers, rows_not_finite, units, rows.dtype.str)


def _without_minus_zero(values: AnyArray) -> AnyArray:
    """Return a contiguous copy with 0.0 for -0.0: the same pixel, stored as other bytes."""
    return np.ascontiguousarray(values + np.zeros((), values.dtype))


def _first_equal_rows(source: BlockSource, keys: IntArray) -> IntArray:
    """Return the first equal row of every row, ``(num_rows,)``.

    Rows with equal keys are compared by digests of all their values.
    """
    first_equal_row = np.arange(len(keys))
    order = np.argsort(keys, kind="stable")
    edges = np.flatnonzero(np.diff(keys[order])) + 1
    for group in np.split(order, edges):
        if len(group) < 2:
            continue
        first_by_digest: dict[bytes, int] = {}
        for row in np.sort(group).tolist():
            values = _without_minus_zero(source.read(row, row + 1))
            digest = hashlib.blake2b(values.data, digest_size=32).digest()
            first_equal_row[row] = first_by_digest.setdefault(digest, row)
    return first_equal_row
