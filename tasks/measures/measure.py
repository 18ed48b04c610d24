"""Intrinsic dimension and label sharpness of a dataset, at each train size.

The distance of two equal images is zero, and the logarithm and the inverse of zero are undefined.
So all measures exclude each image that equals an earlier image, a *duplicate*. Duplicates are
counted. If a duplicate has another label than the earlier image, the two are a *conflict*, which is
also listed.

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
    OtherLabelDistances,
    SharpnessScale,
    permuted_sharpness,
    stratified_samples,
    summarize,
)
from tasks.measures.tile_blocks import EXACT, widest_precision
from tasks.prepared.group_split import stratified_order
from tasks.remote import Executor, InlineExecutor

MAX_LISTED_CONFLICTS = 10
"""Largest number of conflicts that a result lists."""
NEAR_MINIMUM = 1 + 4e-5
"""Distances up to this factor times the smallest one are computed again in float64, because one of
them may be the true minimum. Each distance has a relative error of up to 1e-5. The factor leaves a
margin of two for both."""
PROFILE_BYTES = 256 << 20
"""Bytes of the rows that are read at a time in the search for duplicates, counted as float64."""
KEY_VALUES = 512
"""Number of values of a row from which its hash key is computed."""
KEY_SEED = 20240501
"""Seed of the random choice of the values of a hash key. The number is arbitrary."""


def measure_nested(
    images: BlockSource | npt.ArrayLike,
    labels: npt.ArrayLike | None,
    train_sizes: Sequence[int],
    *,
    executor: Executor | None = None,
    settings: MeasureSettings | None = None,
) -> MeasureResult:
    """Return the measures of nested training sets: the first n images for each train size n.

    Args:
        images: ``(num_images, ...)`` uint8 or any real dtype, in the pixel range to measure in; or
            a source of such rows.
        labels: ``(num_images,)`` integers. None measures intrinsic dimension only.
        train_sizes: Train sizes, in any order.
        executor: Executor of the search for neighbors; None computes in this process.
        settings: Settings of the measure; None for the defaults.

    Returns:
        The measures at each train size. Pairs in the result are rows of ``images``.

    Raises:
        DataError: If the images, labels or train sizes cannot be used.
        CorruptStoreError: If a shard of the source does not match its checksum.
    """
    settings = settings or MeasureSettings()
    source = checked_source(images)
    codes = None if labels is None else check_labels(labels, source.num_rows)
    sizes = check_train_sizes(train_sizes, source.num_rows)
    profile = profile_rows(source, codes, executor=executor)
    precision = Precision(settings.dtype, settings.device, exact_bytes=profile.is_exact)
    distinct_images = _find_neighbors(profile, codes, sizes, precision, settings, executor)
    scale = _scale(source, settings)
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
                label_sharpness=distinct_images.sharpness(size_index, scale),
            )
        )
    calibration = None
    if settings.calibrate:
        calibration = calibrate(
            profile.source,
            num_neighbors=settings.num_neighbors,
            source_rows=distinct_images.source_rows,
            executor=executor,
            precision=precision,
            seed=settings.seed,
        )
    return MeasureResult(
        sizes=tuple(records),
        conflict_pairs=tuple(profile.conflicts[:MAX_LISTED_CONFLICTS]),
        settings=settings,
        precision=distinct_images.neighbors.precision,
        notes=_notes(records[-1], scale),
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
    """Return the neighbors of all distinct images at each train size.

    ``labels`` has one entry per source row, and ``sizes`` are numbers of source rows. All indices
    in the result are positions.
    """
    # Number of distinct images among the first n source rows, for each size n.
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
        labels,  # one label per source row
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
    """Measure the intrinsic dimension and the label sharpness of your images, without training.

    Args:
        images: ``(num_images, channels, height, width)``, ``(num_images, height, width,
            channels)``, ``(num_images, height, width)`` or ``(num_images, num_features)``; uint8 or
            any real dtype.
        labels: ``(num_images,)`` integers. None measures intrinsic dimension only.
        train_sizes: Sizes of nested, stratified subsets to measure, besides all images. They do not
            change the measures of all images. None measures all images only.
        executor: Executor of the search for neighbors; None computes in this process, without Ray.
        settings: Settings of the measure; None for the defaults. The seed of the settings also
            determines the images of the subsets.

    Returns:
        The measures at each size. ``isweep measure --json`` prints their ``to_json()``. Pairs in
        the result are rows of ``images``.

    Raises:
        DataError: If the images, labels or train sizes cannot be used.

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
    smaller_sizes: list[int] = []
    if train_sizes is not None:
        sizes = check_train_sizes(train_sizes, num_images)
        smaller_sizes = [size for size in sizes if size < num_images]
    result = measure_nested(array, codes, [num_images], executor=executor, settings=settings)
    if not smaller_sizes:
        return result
    # The subsets are measured in a second pass, because their images must come first. The samples
    # for label sharpness and the blocks of the bootstrap depend on the order of the images, so one
    # pass would change the measures of all images.
    subsets = _measure_subsets(array, codes, smaller_sizes, settings, executor)
    return result.model_copy(
        update={
            "sizes": (*subsets.sizes, *result.sizes),
            "precision": widest_precision(subsets.precision, result.precision),
        }
    )


def _measure_subsets(
    array: AnyArray,
    codes: IntArray | None,
    sizes: Sequence[int],
    settings: MeasureSettings,
    executor: Executor | None,
) -> MeasureResult:
    """Return the measures of nested, stratified subsets. Pairs are rows of ``array``.

    Args:
        array: ``(num_images, ...)`` all images.
        codes: ``(num_images,)`` labels; None if there are no labels.
        sizes: Sizes of the subsets, ascending, below the number of images.
        settings: Settings of the measure. The seed determines the images of the subsets.
        executor: Executor of the search for neighbors; None computes in this process.
    """
    num_images = len(array)
    classes = np.zeros(num_images, np.int64)
    if codes is not None:
        _, numbered = np.unique(codes, return_inverse=True)
        classes = numbered.astype(np.int64)
    rng = np.random.default_rng(settings.seed)
    order = stratified_order(classes, np.arange(num_images), rng, balanced=False)
    ordered_codes = None if codes is None else codes[order]
    uncalibrated = replace(settings, calibrate=False)  # only all images are calibrated
    subsets = measure_nested(
        array[order], ordered_codes, sizes, executor=executor, settings=uncalibrated
    )
    return subsets.renumbered(order)


def intrinsic_dimension(
    features: npt.ArrayLike | BlockSource,
    **settings: Any,
) -> dict[str, IntrinsicDimension]:
    """Estimate the intrinsic dimension of any array of points.

    For example, the points are the activations of a network's last hidden layer. Their intrinsic
    dimension is d_repr.

    Args:
        features: ``(num_points, ...)`` real numbers, in any order.
        settings: Fields of `MeasureSettings`.

    Returns:
        One record per estimator. Points that equal an earlier point are excluded. Their number is
        ``num_duplicates`` in the details.

    Raises:
        DataError: If the features are not real numbers, or not finite.
        ConfigError: If there is no estimator with one of the names.

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


def _scale(source: BlockSource, settings: MeasureSettings) -> SharpnessScale:
    """Return the scale of the images: pixel range, side, channels and sample size.

    If the settings have no pixel range, it follows from the dtype: [0, 1] for booleans, and from 0
    to the largest number for unsigned integers. For other dtypes it is unknown.
    """
    shape = source.row_shape
    pixel_range = settings.pixel_range
    dtype = source.read(0, 1).dtype
    if pixel_range is None and dtype.kind == "b":
        pixel_range = (0.0, 1.0)
    elif pixel_range is None and dtype.kind == "u":
        pixel_range = (0.0, float(np.iinfo(dtype).max))
    if len(shape) == 3:
        return SharpnessScale(pixel_range, shape[1:], shape[0], settings.sharpness_sample)
    return SharpnessScale(pixel_range, None, int(np.prod(shape)), settings.sharpness_sample)


@dataclass(frozen=True)
class SearchedImages:
    """The distinct images of all sizes, and their nearest neighbors.

    Attributes:
        source: Source of the images.
        source_rows: ``(num_distinct,)`` source row of each position.
        labels: ``(num_distinct,)`` label of each position; None if there are no labels.
        neighbors: Nearest neighbors of each position.
        samples: ``(num_samples, num_distinct)`` masks of the samples of all train sizes.
        sample_slices: Slice of ``samples`` for each train size.
    """

    source: BlockSource
    source_rows: IntArray
    labels: IntArray | None
    neighbors: NeighborSearch
    samples: BoolArray
    sample_slices: list[slice]

    def sharpness(self, size_index: int, scale: SharpnessScale) -> LabelSharpness | None:
        """Return the label sharpness at one train size, or None if there are no labels."""
        if self.labels is None:
            return None
        table = self.neighbors.tables[size_index]
        labels = self.labels[: table.num_positions]
        nearest = self._other_label_distances(table, self.sample_slices[size_index])
        record = summarize(labels, nearest, scale)
        if record.value is None:
            return record
        return replace(record, permuted=permuted_sharpness(table, labels, nearest.sample_masks))

    def _other_label_distances(
        self, table: NeighborTable, sample_slice: slice
    ) -> OtherLabelDistances:
        """Return the distances to the nearest images with another label, at one train size.

        The smallest distances are computed again in float64.
        """
        positions = slice(table.num_positions)
        nearest = table.other_label_distances.copy()
        search = self.neighbors
        sample_distances = search.sample_other_label_distances[sample_slice, positions].copy()
        if search.precision != EXACT:
            self._refine_minimum(nearest, table.other_label_positions)
            sample_positions = search.sample_other_label_positions[sample_slice, positions]
            for distances, nearest_positions in zip(
                sample_distances, sample_positions, strict=True
            ):
                self._refine_minimum(distances, nearest_positions)
        pair_distance = float(nearest.min(initial=np.inf))
        pair = None
        if np.isfinite(pair_distance):
            closest = int(nearest.argmin())
            first = int(self.source_rows[closest])
            second = int(self.source_rows[table.other_label_positions[closest]])
            pair = min(first, second), max(first, second)
        return OtherLabelDistances(
            distances=nearest,
            pair=pair,
            pair_distance=pair_distance,
            sample_distances=sample_distances,
            sample_masks=self.samples[sample_slice, positions],
        )

    def _refine_minimum(self, distances: FloatArray, nearest_positions: AnyArray) -> None:
        """Compute all distances that may be the smallest again in float64, in place.

        Args:
            distances: ``(num_positions,)``, infinite where there is no other image.
            nearest_positions: ``(num_positions,)`` positions of the other images.
        """
        limit = distances.min(initial=np.inf) * NEAR_MINIMUM
        candidates = np.flatnonzero(np.isfinite(distances) & (distances <= limit))
        refined: dict[tuple[int, int], float] = {}  # most pairs occur twice
        for position in candidates.tolist():
            nearest = int(nearest_positions[position])
            pair = min(position, nearest), max(position, nearest)
            if pair not in refined:
                a, b = (self._read(end) for end in pair)
                first_row = np.zeros(1, np.intp)  # a and b have one row each
                squared = direct_squared_distances(a, b, first_row, first_row)
                refined[pair] = float(np.sqrt(squared[0]))
            distances[position] = refined[pair]

    def _read(self, position: int) -> AnyArray:
        """Return the image at a position, as ``(1, num_features)``."""
        row = int(self.source_rows[position])
        return flatten(self.source.read(row, row + 1))


def _notes(record: SizeRecord, scale: SharpnessScale) -> tuple[str, ...]:
    """Return the remarks on the largest train size."""
    notes = []
    if record.num_duplicates:
        notes.append(
            f"{record.num_duplicates} of {record.train_size} images are equal to an earlier image. "
            "All measures exclude them, because a distance of zero has no logarithm."
        )
    if record.num_conflicts:
        notes.append(
            f"{record.num_conflicts} of these have another label than the earlier image. For "
            "such a pair, label sharpness is infinite. The printed K_F excludes these pairs. The "
            f"field conflict_pairs of the JSON lists at most {MAX_LISTED_CONFLICTS} of them."
        )
    if record.label_sharpness is not None and scale.pixel_range is None:
        notes.append(
            "The pixel range of these images is not known, so K_F cannot be compared with other "
            "datasets. Set the pixel range with --pixel-range (in Python: pixel_range)."
        )
    for name, dimension in record.d_data.items():
        if "remark" in dimension.details:
            remark = dimension.details["remark"]
            notes.append(f"The {name} estimate at {record.train_size} images {remark}")
    return tuple(notes)


@dataclass(frozen=True)
class RowProfile:
    """The rows of a source that are measured.

    Attributes:
        source: Source of the rows. It reads bytes if all values are bytes of one dtype.
        distinct_rows: Source rows that equal no earlier row, ascending.
        conflicts: Pairs ``(row, earlier row)`` of equal images with different labels.
        is_exact: True if ``source`` reads bytes.
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
        labels: ``(num_rows,)``; None for no labels, and so no conflicts.
        executor: Executor that hashes the rows; None hashes them in this process.

    Raises:
        DataError: If rows are not real numbers, or not finite.
    """
    executor = executor or InlineExecutor()
    source = as_bytes(source)
    num_rows = source.num_rows
    dtype = source.read(0, 1).dtype
    keys = np.empty(num_rows, np.uint64)
    rows_not_finite: list[int] = []
    units = set(UNITS)
    # A piece is read as one dtype. It may differ from the dtype of the first row.
    dtypes = {dtype.str}
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
        # Rows of zeros and ones fit both units. They are then read as whole numbers.
        source = ByteRows(source, max(units))
    distinct_rows = np.flatnonzero(first_equal_row == np.arange(num_rows))
    return RowProfile(source, distinct_rows, conflicts, is_exact)


def _profile_pieces(source: BlockSource, executor: Executor) -> Iterator[tuple[int, PieceProfile]]:
    """Hash all rows, in pieces that fit into memory.

    Yields:
        The first row of a piece, and the profile of the piece.
    """
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
        first_rows = ", ".join(map(str, sorted(rows_not_finite)[:5]))
        raise DataError(
            f"{len(rows_not_finite)} of {num_rows} rows have values that are NaN or infinite, for "
            f"example row {first_rows}",
            hint="Remove these rows, or correct their values",
        )


def _find_conflicts(labels: AnyArray, first_equal_row: IntArray) -> list[tuple[int, int]]:
    """Return the pairs ``(row, first equal row)`` of equal rows with different labels."""
    rows = np.flatnonzero(labels != labels[first_equal_row])
    earlier_rows = first_equal_row[rows].tolist()
    return list(zip(rows.tolist(), earlier_rows, strict=True))


@dataclass(frozen=True)
class PieceProfile:
    """The hash keys and properties of a piece of rows.

    Attributes:
        keys: ``(num_rows,)`` 64-bit keys. Equal rows have equal keys.
        rows_not_finite: Source rows that contain NaN or infinity.
        units: Result of `byte_units`; empty if not all values are bytes.
        dtype: Dtype as text, with its byte order.
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
    """Return the profile of rows ``start`` to ``stop`` of a source.

    The hash key of a row is computed from a fixed random choice of its values.

    Raises:
        DataError: If the rows are not real numbers.
    """
    rows = flatten(source.read(start, stop))
    if rows.dtype.kind not in "biuf" or rows.itemsize > 8:
        raise DataError(
            f"Images have the dtype {rows.dtype}, but must be real numbers of at most 64 bits",
            hint="Convert the images, for example with .astype(float)",
        )
    rng = np.random.default_rng(KEY_SEED)
    num_features = rows.shape[1]
    columns = np.unique(rng.integers(0, num_features, KEY_VALUES))
    values = _without_minus_zero(rows[:, columns])
    row_bytes = values.view(np.uint8).reshape(len(rows), -1)
    num_padding_bytes = -row_bytes.shape[1] % 8
    words = np.pad(row_bytes, ((0, 0), (0, num_padding_bytes))).view(np.uint64)
    multipliers = rng.integers(0, 2**63, words.shape[1], dtype=np.uint64)
    multipliers = multipliers * 2 + 1  # multiplying by an odd number loses no bit
    units = byte_units(rows)
    rows_not_finite: list[int] = []
    if rows.dtype.kind == "f" and not units:
        # If the sum of a row is finite, all its values are finite. The values of other rows are
        # checked one by one.
        with np.errstate(over="ignore", invalid="ignore"):
            sums = rows.sum(axis=1)
            suspects = np.flatnonzero(~np.isfinite(sums))
        is_bad = ~np.isfinite(rows[suspects]).all(axis=1)
        rows_not_finite = (suspects[is_bad] + start).tolist()
    return PieceProfile(words @ multipliers, rows_not_finite, units, rows.dtype.str)


def _without_minus_zero(values: AnyArray) -> AnyArray:
    """Return a contiguous copy in which -0.0 is replaced by 0.0.

    Both are the same pixel value, but their bytes differ.
    """
    return np.ascontiguousarray(values + np.zeros((), values.dtype))


def _first_equal_rows(source: BlockSource, keys: IntArray) -> IntArray:
    """Return the first equal row of every row, ``(num_rows,)``.

    Two rows with equal keys are equal if the digests of all their values are equal.
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
