"""Both measures of a dataset, for all its train sizes, with everything needed to judge them.

Two equal images are at distance zero, where logarithms and inverses break: the first one stays and
the later ones are left out of every measure, and counted; if their labels differ they are
conflicts, and listed.
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
    byte_units,
    direct_squared_distances,
    flatten,
    is_byte_dtype,
)
from tasks.measures.estimators import IntrinsicDimension, estimate, table_width
from tasks.measures.neighbors import EXACT, NeighborSearch, NeighborTable, nested_neighbors
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
# Distances from the product are good to 1e-5, so the closest pair is among those within twice that
# of it.
_NEAR_MINIMUM = 1 + 4e-5
_MAX_CANDIDATES = 64
PROFILE_BYTES = 256 << 20  # rows are read in pieces of this size
KEY_VALUES = 512  # values per row, at most, that make its key


def measure_nested(
    images: BlockSource | npt.ArrayLike,
    labels: npt.ArrayLike | None,
    train_sizes: Sequence[int],
    *,
    executor: Executor | None = None,
    settings: MeasureSettings | None = None,
) -> MeasureResult:
    """Measure prefixes of rows that are already in nested order; pairs found are row numbers of
    ``images``.

    Args:
        images: ``(num_images, ...)``, uint8 or any real dtype, in the pixel range that shall be
            measured; or a source that reads such blocks.
        labels: ``(num_images,)`` integers; None measures intrinsic dimension only.
        train_sizes: Prefix lengths, any order.
        executor: Where block tasks run; in this process when None.
        settings: How to measure.

    Raises:
        DataError: If images, labels or sizes cannot be used.
        CorruptStoreError: From the source, when a shard fails its checksum.
    """
    settings, source = settings or MeasureSettings(), checked_source(images)
    codes = None if labels is None else check_labels(labels, source.num_rows)
    sizes = check_train_sizes(train_sizes, source.num_rows)
    profile = profile_rows(source, codes, executor=executor)
    positions = np.searchsorted(profile.keep, sizes).tolist()
    keep = profile.keep[: positions[-1]]
    labels_of_kept = None if codes is None else codes[keep]
    how = settings.sharpness_sample, settings.sharpness_seeds
    samples, parts = stratified_subsets(labels_of_kept, positions, *how)
    width = max(1, min(table_width(settings.estimators, settings.num_neighbors), len(keep) - 1))
    precision = profile.precision(Precision(dtype=settings.dtype, device=settings.device))
    search: dict[str, Any] = {"executor": executor, "precision": precision, "keep": keep}
    found = nested_neighbors(
        profile.source,
        codes,
        positions,
        width,
        block_rows=settings.block_rows,
        subsets=samples,
        **search,
    )
    convention = _convention(source, settings)
    asked: dict[str, Any] = {"num_neighbors": settings.num_neighbors, "seed": settings.seed}
    names = settings.estimators
    records = [
        SizeRecord(
            train_size=size,
            num_duplicates=size - table.num_points,
            num_conflicts=sum(row < size for row, _ in profile.conflicts),
            d_data=estimate(
                table, estimators=names, discard_fraction=settings.discard_fraction, **asked
            ),
            label_sharpness=_sharpness(
                profile, labels_of_kept, found, table, samples, part, convention
            ),
        )
        for size, table, part in zip(sizes, found.tables, parts, strict=True)
    ]
    calibration = calibrate(profile.source, **asked, **search) if settings.calibrate else None
    return MeasureResult(
        sizes=tuple(records),
        conflict_pairs=tuple(profile.conflicts[:MAX_LISTED_CONFLICTS]),
        settings=settings,
        precision=found.precision,
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
        images: ``(num_images, channels, height, width)``, ``(num_images, height, width,
            channels)``, ``(num_images, height, width)`` or ``(num_images, num_features)``; uint8 or
            any real dtype.
        labels: ``(num_images,)`` integers; None measures intrinsic dimension only.
        train_sizes: Sizes of nested, stratified subsets to measure beside all images; None for all
            only.
        num_neighbors: k of the MLE; None for that of ``settings``, 20 unless given.
        seed: Of the order that subsets are prefixes of, and of bootstraps; likewise, 0 unless
            given.
        executor: Where block tasks run; in this process, without Ray, when None.
        settings: All others.

    Returns:
        Record whose ``to_json()`` is what ``isweep measure --json`` prints. Pairs in it are row
        numbers of ``images`` as given.

    Raises:
        DataError: If images, labels or sizes cannot be used.
        ConfigError: If a setting measures nothing.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> images = rng.integers(0, 256, (60, 8, 8), dtype=np.uint8)
        >>> record = measure_array(images, np.arange(60) % 2)
        >>> record.label_sharpness.num_pairs
        900
    """
    given = {"num_neighbors": num_neighbors, "seed": seed}
    asked: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    settings = replace(settings or MeasureSettings(), **asked)
    array = as_channels_first(as_array(images))
    checked_source(array)
    codes = None if labels is None else check_labels(labels, len(array))
    if train_sizes is None:
        return measure_nested(array, codes, [len(array)], executor=executor, settings=settings)
    sizes = sorted({*check_train_sizes(train_sizes, len(array)), len(array)})
    targets = (
        np.zeros(len(array), np.int64)
        if codes is None
        else np.unique(codes, return_inverse=True)[1]
    )
    rng = np.random.default_rng(settings.seed)
    order = stratified_order(targets.astype(np.int64), np.arange(len(array)), rng, balanced=False)
    codes = None if codes is None else codes[order]
    record = measure_nested(array[order], codes, sizes, executor=executor, settings=settings)
    return record.renumbered(order)


def intrinsic_dimension(
    features: npt.ArrayLike | BlockSource, *, executor: Executor | None = None, **settings: Any
) -> dict[str, IntrinsicDimension]:
    """Intrinsic dimension of any array of points, for example of a network's last hidden layer
    (d_repr).

    Args:
        features: ``(num_points, ...)`` real numbers, in any order.
        executor: Where block tasks run; in this process when None.
        settings: Of `MeasureSettings`.

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
    chosen, source = MeasureSettings(**settings), checked_source(features)
    found = measure_nested(
        source, None, [source.num_rows], executor=executor, settings=chosen
    ).sizes[0]
    extra = {"num_duplicates": found.num_duplicates}
    return {
        name: replace(record, details=record.details | extra)
        for name, record in found.d_data.items()
    }


def _convention(source: BlockSource, settings: MeasureSettings) -> SharpnessConvention:
    shape = source.row_shape
    side = (shape[-2], shape[-1]) if len(shape) == 3 else None
    channels = shape[0] if len(shape) == 3 else int(np.prod(shape))
    pixel_range = settings.pixel_range
    if pixel_range is None and (dtype := source.read(0, 1).dtype).kind in "bu":
        pixel_range = (0.0, 1.0 if dtype.kind == "b" else float(np.iinfo(dtype).max))
    return SharpnessConvention(pixel_range, side, channels, settings.sharpness_sample)


def _sharpness(
    profile: RowProfile,
    labels: npt.NDArray[np.int64] | None,
    search: NeighborSearch,
    table: NeighborTable,
    samples: npt.NDArray[np.bool_],
    part: slice,
    convention: SharpnessConvention,
) -> LabelSharpness | None:
    """Label sharpness of one size, the attaining pairs of rounded distances recomputed directly;
    ``part`` are the size's of the samples of all sizes, ``(num_samples, num_kept)``.
    """
    if labels is None:
        return None
    size, rows = table.num_points, profile.keep
    nearest = table.opposite_distances.copy()
    inside, members = search.subset_opposites[part, :size].copy(), samples[part, :size]
    if search.precision != EXACT:
        _refine_minimum(profile.source, rows, nearest, table.opposite_indices)
        for line, ids in zip(inside, search.subset_indices[part, :size], strict=True):
            _refine_minimum(profile.source, rows, line, ids)
    pair, closest = None, float(nearest.min(initial=np.inf))
    if np.isfinite(closest):
        one = int(nearest.argmin())
        ends = int(rows[one]), int(rows[table.opposite_indices[one]])
        pair = min(ends), max(ends)
    record = summarise(labels[:size], nearest, pair, closest, convention, inside, members)
    if record.value is None:
        return record
    permuted = permuted_sharpness(table.distances, table.indices, labels[:size], members)
    return replace(record, permuted=permuted)


def _refine_minimum(
    source: BlockSource, rows: npt.NDArray[Any], nearest: FloatArray, ids: npt.NDArray[Any]
) -> None:
    """Recompute in place the distances that could be the smallest."""
    near = np.isfinite(nearest) & (nearest <= nearest.min(initial=np.inf) * _NEAR_MINIMUM)
    candidates = np.flatnonzero(near)[:_MAX_CANDIDATES]
    one = np.zeros(1, np.intp)
    for i in candidates.tolist():
        a, b = (flatten(source.read(int(rows[k]), int(rows[k]) + 1)) for k in (i, ids[i]))
        nearest[i] = np.sqrt(direct_squared_distances(a, b, one, one)[0])


def _notes(record: SizeRecord, convention: SharpnessConvention) -> tuple[str, ...]:
    """What a reader should know about the largest size."""
    notes = []
    if record.num_duplicates:
        notes.append(
            f"{record.num_duplicates} of {record.train_size} images equal an earlier one and were "
            "left out "
            "of all measures; neighbour distances of zero have no logarithm"
        )
    if record.num_conflicts:
        notes.append(
            f"{record.num_conflicts} of these carry another label than the earlier image: their "
            "label "
            "sharpness is infinite, and the values here hold for the other pairs; look at "
            "conflict_pairs"
        )
    if record.label_sharpness is not None and convention.pixel_range is None:
        notes.append(
            "the pixel range of these images is not known: --pixel-range makes K_F comparable"
        )
    return tuple(notes)


@dataclass(frozen=True)
class RowProfile:
    """Which rows to measure.

    Attributes:
        source: Where to read them, as bytes where all of them hold bytes and are of one type.
        keep: Rows that are the first of their kind, ascending.
        conflicts: ``(row, earlier row)`` of identical images with different labels.
        exact: Whether they are read as bytes.
    """

    source: BlockSource
    keep: npt.NDArray[np.int64]
    conflicts: list[tuple[int, int]]
    exact: bool

    def precision(self, asked: Precision) -> Precision:
        """What was asked for, in floats where rows are no bytes of one type."""
        return asked if self.exact else replace(asked, exact_bytes=False)


def profile_rows(
    source: BlockSource, labels: npt.NDArray[Any] | None, *, executor: Executor | None = None
) -> RowProfile:
    """Find duplicates and conflicts, and refuse rows that are not finite.

    Raises:
        DataError: If rows are no real numbers, hold no values, or are not finite.
    """
    executor, source = executor or InlineExecutor(), as_bytes(source)
    num_rows = source.num_rows
    row_values = int(np.prod(source.row_shape))
    if num_rows == 0 or row_values == 0:
        raise DataError(
            "There must be at least one row, with at least one value", f"{num_rows} rows"
        )
    step = max(1, min(PROFILE_BYTES // (8 * row_values), -(-num_rows // executor.num_workers)))
    shared = executor.share(source)
    pieces = [(shared, start, min(start + step, num_rows)) for start in range(0, num_rows, step)]
    keys = np.empty(num_rows, np.uint64)
    not_finite: list[int] = []
    dtype = source.read(0, 1).dtype
    units, dtypes = set(UNITS), {dtype.str}  # pieces of several types are read as one
    for index, (piece, bad, piece_units, piece_dtype) in executor.map_unordered(row_keys, pieces):
        keys[pieces[index][1] : pieces[index][2]] = piece
        not_finite += bad
        units &= piece_units
        dtypes.add(piece_dtype)
    if not_finite:
        raise DataError(
            "All values must be finite",
            (
                f"NaN or infinity in {len(not_finite)} of {num_rows} rows, first ones "
                f"{sorted(not_finite)[:5]}"
            ),
            "remove or repair these rows",
        )
    first_of = _confirm(source, keys)
    conflicts = []
    if labels is not None:
        conflicts = [(int(i), int(first_of[i])) for i in np.flatnonzero(labels != labels[first_of])]
    exact = bool(units) and len(dtypes) == 1
    if exact and not is_byte_dtype(dtype):
        source = ByteRows(source, max(units))
    return RowProfile(source, np.flatnonzero(first_of == np.arange(num_rows)), conflicts, exact)


def row_keys(
    source: BlockSource, start: int, stop: int
) -> tuple[npt.NDArray[np.uint64], list[int], set[float], str]:
    """Return a 64-bit key per row, from a fixed random choice of its values, so that equal rows
    have equal keys; the rows not finite, the `byte_units`, the dtype.

    Raises:
        DataError: If rows are no real numbers.
    """
    rows = flatten(source.read(start, stop))
    if rows.dtype.kind not in "biuf" or rows.itemsize > 8:
        rule = "Images must be real numbers of at most 64 bits"
        raise DataError(rule, f"dtype {rows.dtype}", "convert them")
    rng = np.random.default_rng(20240501)
    columns = np.unique(rng.integers(0, rows.shape[1], KEY_VALUES))
    # Adding zero turns -0.0 into 0.0, which is the same pixel in other bytes.
    values = np.ascontiguousarray(rows[:, columns]) + np.zeros((), rows.dtype)
    row_bytes = values.view(np.uint8).reshape(len(rows), -1)
    words = np.pad(row_bytes, ((0, 0), (0, -row_bytes.shape[1] % 8))).view(np.uint64)
    keys = words @ (rng.integers(0, 2**63, words.shape[1], dtype=np.uint64) * 2 + 1)
    units = byte_units(rows)
    bad: list[int] = []
    if rows.dtype.kind == "f" and not units:
        with np.errstate(
            over="ignore", invalid="ignore"
        ):  # a finite sum proves that a row is finite
            suspects = np.flatnonzero(~np.isfinite(rows.sum(axis=1)))
        bad = (suspects[~np.isfinite(rows[suspects]).all(axis=1)] + start).tolist()
    return keys, bad, units, rows.dtype.str


def _confirm(source: BlockSource, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """First equal row of every row; rows with equal keys are told apart by digests of all their
    values.
    """
    first_of = np.arange(len(keys))
    order = np.argsort(keys, kind="stable")
    edges = np.flatnonzero(np.diff(keys[order])) + 1
    for group in np.split(order, edges):
        firsts: dict[bytes, int] = {}
        for row in np.sort(group).tolist() if len(group) > 1 else ():
            values = source.read(row, row + 1)
            without_minus_zero = np.ascontiguousarray(values + np.zeros((), values.dtype))
            digest = hashlib.blake2b(without_minus_zero.data, digest_size=32).digest()
            first_of[row] = firsts.setdefault(digest, row)
    return first_of
