"""Both measures of a dataset, for all its train sizes, with everything needed to judge them.

From top to bottom: the doors (`measure_nested`, `measure_array`, `intrinsic_dimension`), what they
put together, and which rows are measured at all.

Two equal images are at distance zero, where logarithms and inverses break. Policy: of rows with the same
bytes the first one stays and the later ones are left out of every measure, and counted; if their labels
differ they are conflicts, and listed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from search_spaces.errors import DataError
from tasks.measures.calibration import calibrate
from tasks.measures.distances import (
    UNITS,
    BlockSource,
    ByteRows,
    FloatArray,
    Precision,
    as_bytes,
    as_source,
    byte_units,
    direct_squared_distances,
    flatten,
    is_byte_dtype,
)
from tasks.measures.estimators import IntrinsicDimension, estimate, table_width
from tasks.measures.neighbors import BLOCK_ROWS, EXACT, NeighborSearch, nested_neighbors
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
    permuted_sharpness,
    stratified_subsets,
    summarise,
)
from tasks.prepared.subsets import stratified_order
from tasks.remote import Executor, InlineExecutor

MAX_LISTED_CONFLICTS = 10
# Distances from the product are good to 1e-5, so the closest pair is among those within twice that of it.
_NEAR_MINIMUM = 1 + 4e-5
_MAX_CANDIDATES = 64
PROFILE_BYTES = 256 << 20  # rows are read in pieces of this size
KEY_VALUES = 1024  # values per row that make its key


def measure_nested(
    images: BlockSource | npt.ArrayLike,
    labels: npt.ArrayLike | None,
    train_sizes: Sequence[int],
    *,
    executor: Executor | None = None,
    settings: MeasureSettings | None = None,
) -> MeasureResult:
    """Measure prefixes of rows that are already in nested order.

    Args:
        images: ``(num_images, channels, height, width)`` or ``(num_images, ...)``, uint8 or any real dtype,
            in the pixel range that shall be measured; or a source that reads such blocks.
        labels: ``(num_images,)`` integers; None measures intrinsic dimension only.
        train_sizes: Prefix lengths, any order.
        executor: Where block tasks run; in this process when None.
        settings: How to measure.

    Returns:
        Record with one entry per size. Pairs in it are row numbers of ``images``.

    Raises:
        DataError: If images, labels or sizes cannot be used.
        ConfigError: If an estimator is not known.
        CorruptStoreError: From the source, when a shard fails its checksum.
    """
    settings = settings or MeasureSettings()
    width = table_width(settings.estimators, settings.num_neighbors)
    executor = executor or InlineExecutor()
    source = checked_source(images)
    codes = None if labels is None else check_labels(labels, source.num_rows)
    sizes = check_train_sizes(train_sizes, source.num_rows)
    rows = as_bytes(source)
    profile = profile_rows(rows, codes, executor=executor)
    rows = profile.rows(rows)
    precision = profile.precision(Precision(dtype=settings.dtype, device=settings.device))
    found = _one_pass(rows, codes, sizes, profile, executor, settings, precision, width)
    convention = _convention(source, settings)
    records = [_size_record(found, number, size, settings, convention) for number, size in enumerate(sizes)]
    calibration = None
    if settings.calibrate:
        calibration = calibrate(
            rows,
            num_neighbors=settings.num_neighbors,
            keep=profile.keep[: found.positions[-1]],
            executor=executor,
            precision=precision,
            seed=settings.seed,
        )
    return MeasureResult(
        sizes=tuple(records),
        conflict_pairs=tuple(profile.conflicts[:MAX_LISTED_CONFLICTS]),
        settings=settings,
        precision=found.search.precision,
        notes=_notes(records[-1], convention),
        calibration=calibration,
    )


def measure_array(
    images: npt.ArrayLike,
    labels: npt.ArrayLike | None,
    *,
    train_sizes: Sequence[int] | None = None,
    num_neighbors: int | None = None,
    seed: int | None = None,
    executor: Executor | None = None,
    settings: MeasureSettings | None = None,
) -> MeasureResult:
    """Measure your own images: intrinsic dimension and label sharpness, without training anything.

    Args:
        images: ``(num_images, channels, height, width)``, ``(num_images, height, width, channels)``,
            ``(num_images, height, width)`` or ``(num_images, num_features)``; uint8 or any real dtype.
        labels: ``(num_images,)`` integers; None measures intrinsic dimension only.
        train_sizes: Sizes of nested, stratified subsets to measure beside all images; None for all only.
        num_neighbors: k of the MLE; None for the one of ``settings``, which is 20 unless given.
        seed: Of the order that subsets are prefixes of, of bootstraps; None for the one of
            ``settings``, which is 0 unless given.
        executor: Where block tasks run; in this process, without Ray, when None.
        settings: All settings; the two above are short for setting them here.

    Returns:
        Record whose ``to_json()`` is what ``isweep measure --json`` prints. Pairs in it are row numbers of
        ``images`` as given.

    Raises:
        DataError: If images, labels or sizes cannot be used.
        ConfigError: If a setting measures nothing.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> record = measure_array(rng.integers(0, 256, (60, 8, 8), dtype=np.uint8), np.arange(60) % 2)
        >>> record.label_sharpness.num_pairs
        900
    """
    given = {"num_neighbors": num_neighbors, "seed": seed}
    asked: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    settings = replace(settings or MeasureSettings(), **asked)
    table_width(settings.estimators, settings.num_neighbors)
    array = as_channels_first(as_array(images))
    checked_source(array)
    codes = None if labels is None else check_labels(labels, len(array))
    if train_sizes is None:
        return measure_nested(array, codes, [len(array)], executor=executor, settings=settings)
    sizes = sorted({*check_train_sizes(train_sizes, len(array)), len(array)})
    order = _nested_order(codes, len(array), settings.seed)
    record = measure_nested(
        array[order],
        None if codes is None else codes[order],
        sizes,
        executor=executor,
        settings=settings,
    )
    return record.renumbered(order)


def intrinsic_dimension(
    features: npt.ArrayLike | BlockSource,
    *,
    num_neighbors: int = 20,
    estimators: Sequence[str] = ("mle", "twonn"),
    discard_fraction: float = 0.1,
    executor: Executor | None = None,
    precision: Precision | None = None,
    seed: int = 0,
    block_rows: int = BLOCK_ROWS,
) -> dict[str, IntrinsicDimension]:
    """Intrinsic dimension of any array of points, for example of a network's last hidden layer (d_repr).

    Args:
        features: ``(num_points, ...)`` real numbers, in any order.
        num_neighbors: k of the MLE.
        estimators: Names from `estimator_table`.
        discard_fraction: Of TwoNN; 0 as in the code of Konz & Mazurowski.
        executor: Where block tasks run; in this process when None.
        precision: How products are formed.
        seed: Of bootstraps; no value depends on it.
        block_rows: Rows per block.

    Returns:
        One record per estimator. Exact duplicates count once; ``num_duplicates`` says how many.

    Raises:
        DataError: If the features are no numbers, or not finite.
        ConfigError: If an estimator is not known.

    Example:
        >>> points = np.random.default_rng(0).normal(size=(500, 3)) @ np.ones((3, 40))
        >>> 0.9 < intrinsic_dimension(points)["mle"].value < 1.1
        True
    """
    source = as_bytes(features if isinstance(features, BlockSource) else as_source(as_array(features)))
    profile = profile_rows(source, None, executor=executor)
    source = profile.rows(source)
    size = len(profile.keep)
    table = nested_neighbors(
        source,
        None,
        [size],
        max(1, min(table_width(estimators, num_neighbors), size - 1)),
        executor=executor,
        precision=profile.precision(precision or Precision()),
        keep=profile.keep,
        block_rows=block_rows,
    ).tables[0]
    records = estimate(
        table,
        num_neighbors=num_neighbors,
        estimators=estimators,
        discard_fraction=discard_fraction,
        seed=seed,
    )
    extra = {"num_duplicates": profile.num_duplicates}
    return {name: replace(record, details=record.details | extra) for name, record in records.items()}


def _nested_order(codes: npt.NDArray[np.int64] | None, num_images: int, seed: int) -> npt.NDArray[np.int64]:
    """Random order whose every prefix holds each class in proportion."""
    targets = np.zeros(num_images, np.int64)
    if codes is not None:
        targets = np.unique(codes, return_inverse=True)[1].astype(np.int64)
    rng = np.random.default_rng(seed)
    return stratified_order(targets, np.arange(num_images), rng, balanced=False)


def _convention(source: BlockSource, settings: MeasureSettings) -> SharpnessConvention:
    shape = source.row_shape
    side = (shape[-2], shape[-1]) if len(shape) == 3 else None
    channels = shape[0] if len(shape) == 3 else int(np.prod(shape))
    pixel_range = settings.pixel_range
    dtype = source.read(0, 1).dtype
    if pixel_range is None and dtype.kind in "bu":
        pixel_range = (0.0, 1.0 if dtype.kind == "b" else float(np.iinfo(dtype).max))
    return SharpnessConvention(pixel_range, side, channels, settings.sharpness_sample)


@dataclass(frozen=True)
class _Pass:
    """What one pass over the rows found, and what it was about.

    Attributes:
        source: Where rows are read, as bytes where they are bytes.
        profile: Duplicates and conflicts.
        labels: ``(num_distinct,)`` labels of the distinct images, or None.
        positions: Distinct images below each train size.
        samples: ``(num_samples, num_positions)`` masks of the samples of all sizes.
        parts: Which of them belong to each size.
        search: Neighbours.
    """

    source: BlockSource
    profile: RowProfile
    labels: npt.NDArray[np.int64] | None
    positions: list[int]
    samples: npt.NDArray[np.bool_]
    parts: list[slice]
    search: NeighborSearch


def _one_pass(
    source: BlockSource,
    codes: npt.NDArray[np.int64] | None,
    sizes: list[int],
    profile: RowProfile,
    executor: Executor,
    settings: MeasureSettings,
    precision: Precision,
    width: int,
) -> _Pass:
    """Draw the samples and find all neighbours."""
    positions = np.searchsorted(profile.keep, sizes).tolist()
    labels = None if codes is None else codes[profile.keep]
    samples, parts = np.zeros((0, positions[-1]), bool), [slice(0, 0)] * len(sizes)
    if labels is not None:
        how = settings.sharpness_sample, settings.sharpness_seeds
        samples, parts = stratified_subsets(labels[: positions[-1]], positions, *how)
    search = nested_neighbors(
        source,
        codes,
        positions,
        max(1, min(width, positions[-1] - 1)),
        executor=executor,
        precision=precision,
        block_rows=settings.block_rows,
        keep=profile.keep,
        subsets=samples,
    )
    return _Pass(source, profile, labels, positions, samples, parts, search)


def _size_record(
    found: _Pass, number: int, size: int, settings: MeasureSettings, convention: SharpnessConvention
) -> SizeRecord:
    """The record of one train size."""
    return SizeRecord(
        train_size=size,
        num_duplicates=size - found.positions[number],
        num_conflicts=sum(row < size for row, _ in found.profile.conflicts),
        d_data=estimate(
            found.search.tables[number],
            num_neighbors=settings.num_neighbors,
            estimators=settings.estimators,
            discard_fraction=settings.discard_fraction,
            seed=settings.seed,
        ),
        label_sharpness=None if found.labels is None else _sharpness(found, found.labels, number, convention),
    )


def _sharpness(
    found: _Pass, labels: npt.NDArray[np.int64], number: int, convention: SharpnessConvention
) -> LabelSharpness:
    """Label sharpness of one size, the attaining pairs of rounded distances recomputed directly."""
    table, rows, part = found.search.tables[number], found.profile.keep, found.parts[number]
    size = table.num_points
    nearest = table.opposite_distances.copy()
    inside = found.search.subset_opposites[part, :size].copy()
    if found.search.precision != EXACT:
        _refine_minimum(found.source, rows, nearest, table.opposite_indices)
        for line, ids in zip(inside, found.search.subset_indices[part, :size], strict=True):
            _refine_minimum(found.source, rows, line, ids)
    pair, closest = None, float(nearest.min(initial=np.inf))
    if np.isfinite(closest):
        one = int(nearest.argmin())
        ends = int(rows[one]), int(rows[table.opposite_indices[one]])
        pair = min(ends), max(ends)
    members = found.samples[part, :size]
    record = summarise(labels[:size], nearest, pair, closest, convention, inside, members)
    if record.value is None:
        return record
    permuted = permuted_sharpness(table.distances, table.indices, labels[:size], members)
    return replace(record, permuted=permuted)


def _refine_minimum(
    source: BlockSource, rows: npt.NDArray[Any], nearest: FloatArray, ids: npt.NDArray[Any]
) -> None:
    """Recompute in place the distances that could be the smallest."""
    if not np.isfinite(nearest.min(initial=np.inf)):
        return
    candidates = np.flatnonzero(nearest <= nearest.min() * _NEAR_MINIMUM)[:_MAX_CANDIDATES]
    one = np.zeros(1, np.intp)
    for i in candidates.tolist():
        a, b = (flatten(source.read(int(rows[k]), int(rows[k]) + 1)) for k in (i, ids[i]))
        nearest[i] = np.sqrt(direct_squared_distances(a, b, one, one)[0])


def _notes(record: SizeRecord, convention: SharpnessConvention) -> tuple[str, ...]:
    """What a reader should know about the largest size."""
    notes = []
    if record.num_duplicates:
        notes.append(
            f"{record.num_duplicates} of {record.train_size} images equal an earlier one and were left out "
            "of all measures; neighbour distances of zero have no logarithm"
        )
    if record.num_conflicts:
        notes.append(
            f"{record.num_conflicts} of these carry another label than the earlier image: their label "
            "sharpness is infinite, and the values here hold for the other pairs; look at conflict_pairs"
        )
    if record.label_sharpness is not None and convention.pixel_range is None:
        notes.append(
            "the pixel range of floating-point images is not known; give it to compare label sharpness"
        )
    return tuple(notes)


@dataclass(frozen=True)
class RowProfile:
    """Which rows to measure.

    Attributes:
        keep: Rows that are the first of their kind, ascending.
        first_of: ``(num_rows,)`` the row that each row equals, itself when it is the first.
        conflicts: ``(row, earlier row)`` of identical images with different labels.
        byte_unit: What one grey level is, if every value is a byte times that, and all rows are of one type.
    """

    keep: npt.NDArray[np.int64]
    first_of: npt.NDArray[np.int64]
    conflicts: list[tuple[int, int]]
    byte_unit: float | None = None

    @property
    def num_duplicates(self) -> int:
        """Rows left out because an earlier one is the same."""
        return len(self.first_of) - len(self.keep)

    def precision(self, asked: Precision) -> Precision:
        """What was asked for, in floats where rows are no bytes of one type."""
        return asked if self.byte_unit is not None else replace(asked, exact_bytes=False)

    def rows(self, source: BlockSource) -> BlockSource:
        """What was looked at, read as bytes where it holds bytes."""
        if self.byte_unit is None or is_byte_dtype(source.read(0, 1).dtype):
            return source
        return ByteRows(source, self.byte_unit)


def profile_rows(
    source: BlockSource, labels: npt.NDArray[Any] | None, *, executor: Executor | None = None
) -> RowProfile:
    """Find duplicates and conflicts, and refuse rows that are not finite.

    Raises:
        DataError: If rows are no real numbers, hold no values, or are not finite.
    """
    executor = executor or InlineExecutor()
    num_rows = source.num_rows
    row_values = int(np.prod(source.row_shape))
    if num_rows == 0 or row_values == 0:
        raise DataError("There must be at least one row, with at least one value", f"{num_rows} rows")
    step = max(1, min(PROFILE_BYTES // (8 * row_values), -(-num_rows // executor.num_workers)))
    shared = executor.share(source)
    pieces = [(shared, start, min(start + step, num_rows)) for start in range(0, num_rows, step)]
    keys = np.empty(num_rows, np.uint64)
    not_finite: list[int] = []
    units, dtypes = set(UNITS), {source.read(0, 1).dtype.str}  # pieces of several types are read as one
    for index, (piece, bad, piece_units, dtype) in executor.map_unordered(row_keys, pieces):
        keys[pieces[index][1] : pieces[index][2]] = piece
        not_finite += bad
        units &= piece_units
        dtypes.add(dtype)
    if not_finite:
        raise DataError(
            "All values must be finite",
            f"NaN or infinity in {len(not_finite)} of {num_rows} rows, first ones {sorted(not_finite)[:5]}",
            "remove or repair these rows",
        )
    first_of = _confirm(source, keys)
    keep = np.flatnonzero(first_of == np.arange(num_rows))
    conflicts = []
    if labels is not None:
        conflicts = [(int(i), int(first_of[i])) for i in np.flatnonzero(labels != labels[first_of])]
    return RowProfile(keep, first_of, conflicts, max(units, default=None) if len(dtypes) == 1 else None)


Piece = tuple[npt.NDArray[np.uint64], list[int], set[float], str]


def row_keys(source: BlockSource, start: int, stop: int) -> Piece:
    """Return a 64-bit key per row, equal for equal rows, the rows not finite, the `byte_units`, the dtype.

    The key comes from a fixed random choice of values, so it costs next to nothing, and equal rows can never
    be missed; that rows with equal keys are equal must be confirmed on all their values.

    Raises:
        DataError: If rows are no real numbers.
    """
    rows = flatten(source.read(start, stop))
    if rows.dtype.kind not in "biuf" or rows.itemsize > 8:
        raise DataError(
            "Images must be real numbers of at most 64 bits", f"dtype {rows.dtype}", "convert them"
        )
    rng = np.random.default_rng(20240501)
    columns = np.sort(rng.permutation(rows.shape[1])[:KEY_VALUES])
    # Adding zero turns -0.0 into 0.0, which is the same pixel in other bytes.
    values = np.ascontiguousarray(rows[:, columns]) + np.zeros((), rows.dtype)
    row_bytes = values.view(np.uint8).reshape(len(rows), -1)
    words = np.pad(row_bytes, ((0, 0), (0, -row_bytes.shape[1] % 8))).view(np.uint64)
    keys = words @ (rng.integers(0, 2**63, words.shape[1], dtype=np.uint64) * 2 + 1)
    units = byte_units(rows)
    bad = (_not_finite(rows) + start).tolist() if rows.dtype.kind == "f" and not units else []
    return keys, bad, units, rows.dtype.str


def _not_finite(rows: npt.NDArray[Any]) -> npt.NDArray[np.intp]:
    """Rows that hold NaN or infinity; a finite sum proves that a row holds neither."""
    with np.errstate(over="ignore", invalid="ignore"):
        suspects = np.flatnonzero(~np.isfinite(rows.sum(axis=1)))
    found: npt.NDArray[np.intp] = suspects[~np.isfinite(rows[suspects]).all(axis=1)]
    return found


def _confirm(source: BlockSource, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """First equal row of every row; rows with equal keys are told apart by digests of all their values.

    Pairs are not compared: images that differ in few pixels only may all have one key.
    """
    first_of = np.arange(len(keys))
    order = np.argsort(keys, kind="stable")
    edges = np.flatnonzero(np.diff(keys[order])) + 1
    for group in np.split(order, edges):
        if len(group) < 2:
            continue
        firsts: dict[bytes, int] = {}
        for row in np.sort(group).tolist():
            first_of[row] = firsts.setdefault(_digest(source.read(row, row + 1)), row)
    return first_of


def _digest(values: npt.NDArray[Any]) -> bytes:
    without_minus_zero = values + np.zeros((), values.dtype)
    return hashlib.blake2b(np.ascontiguousarray(without_minus_zero).data, digest_size=32).digest()
