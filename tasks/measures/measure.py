"""Intrinsic dimension and label sharpness of a dataset, at each train size.

The distance of two equal images is zero, and the logarithm and the inverse of zero are undefined.
So all measures exclude each image that equals an earlier image, a *duplicate*. Duplicates are
counted. If a duplicate has another label than the earlier image, the two are a *conflict*, which is
also listed.

Two kinds of index occur, as in `tasks.measures.neighbors`. A source row is an index of all images.
A position is an index of the distinct images only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.measures.arrays import AnyArray, BoolArray, FloatArray, IntArray
from tasks.measures.calibration import calibrate
from tasks.measures.distances import (
    BlockSource,
    Precision,
    direct_squared_distances,
    flatten,
)
from tasks.measures.duplicates import RowCheck, check_rows
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
from tasks.remote import Executor

MAX_LISTED_CONFLICTS = 10
"""Largest number of conflicts that a result lists."""
NEAR_MINIMUM = 1 + 4e-5
"""Distances up to this factor times the smallest one are computed again in float64, because one of
them may be the true minimum. Each distance has a relative error of up to 1e-5. The factor leaves a
margin of two for both."""


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
    row_check = check_rows(source, codes, executor=executor)
    precision = Precision(settings.dtype, settings.device, exact_bytes=row_check.is_exact)
    searched = _find_neighbors(row_check, codes, sizes, precision, settings, executor)
    scale = _scale(source, settings)
    records = []
    for size_index, size in enumerate(sizes):
        table = searched.neighbors.tables[size_index]
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
                num_conflicts=sum(row < size for row, _ in row_check.conflicts),
                d_data=dimensions,
                label_sharpness=searched.sharpness(size_index, scale),
            )
        )
    calibration = None
    if settings.calibrate:
        calibration = calibrate(
            row_check.source,
            num_neighbors=settings.num_neighbors,
            source_rows=searched.source_rows,
            executor=executor,
            precision=precision,
            seed=settings.seed,
        )
    return MeasureResult(
        sizes=tuple(records),
        conflict_pairs=tuple(row_check.conflicts[:MAX_LISTED_CONFLICTS]),
        settings=settings,
        precision=searched.neighbors.precision,
        notes=_notes(records[-1], scale),
        calibration=calibration,
    )


def _find_neighbors(
    row_check: RowCheck,
    row_labels: IntArray | None,
    sizes: Sequence[int],
    precision: Precision,
    settings: MeasureSettings,
    executor: Executor | None,
) -> SearchedImages:
    """Return the neighbors of all distinct images at each train size.

    Args:
        row_check: The distinct images.
        row_labels: ``(num_source_rows,)`` label of each source row; None if there are no labels.
        sizes: Train sizes, counted in source rows.
        precision: Precision of the products of floats.
        settings: Settings of the measure.
        executor: Executor of the search; None computes in this process.

    Returns:
        The neighbors. All indices are positions, and all sizes are numbers of distinct images.
    """
    # Number of distinct images among the first n source rows, for each size n.
    num_distinct = np.searchsorted(row_check.distinct_rows, sizes).tolist()
    source_rows = row_check.distinct_rows[: num_distinct[-1]]
    position_labels = None if row_labels is None else row_labels[source_rows]
    samples, sample_slices = stratified_samples(
        position_labels, num_distinct, settings.sharpness_sample, settings.sharpness_seeds
    )
    width = table_width(settings.estimators, settings.num_neighbors)
    width = min(width, len(source_rows) - 1)
    neighbors = nested_neighbors(
        row_check.source,
        row_labels,
        num_distinct,
        max(width, 1),
        executor=executor,
        precision=precision,
        block_rows=settings.block_rows,
        source_rows=source_rows,
        samples=samples,
    )
    return SearchedImages(
        source=row_check.source,
        source_rows=source_rows,
        labels=position_labels,
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
        other_label = self._other_label_distances(table, self.sample_slices[size_index])
        record = summarize(labels, other_label, scale)
        if record.value is None:
            return record
        permuted = permuted_sharpness(table, labels, other_label.sample_masks)
        return replace(record, permuted=permuted)

    def _other_label_distances(
        self, table: NeighborTable, sample_slice: slice
    ) -> OtherLabelDistances:
        """Return the distances to the nearest images with another label, at one train size.

        The smallest distances are computed again in float64.
        """
        positions = slice(table.num_positions)
        distances = table.other_label_distances.copy()
        search = self.neighbors
        sample_distances = search.sample_other_label_distances[sample_slice, positions].copy()
        if search.precision != EXACT:
            self._refine_minimum(distances, table.other_label_positions)
            sample_partners = search.sample_other_label_positions[sample_slice, positions]
            for of_sample, partners in zip(sample_distances, sample_partners, strict=True):
                self._refine_minimum(of_sample, partners)
        pair_distance = float(distances.min(initial=np.inf))
        pair = None
        if np.isfinite(pair_distance):
            closest = int(distances.argmin())
            first = int(self.source_rows[closest])
            second = int(self.source_rows[table.other_label_positions[closest]])
            pair = min(first, second), max(first, second)
        return OtherLabelDistances(
            distances=distances,
            pair=pair,
            pair_distance=pair_distance,
            sample_distances=sample_distances,
            sample_masks=self.samples[sample_slice, positions],
        )

    def _refine_minimum(self, distances: FloatArray, partners: AnyArray) -> None:
        """Compute all distances that may be the smallest again in float64, in place.

        Args:
            distances: ``(num_positions,)``, infinite where there is no other image.
            partners: ``(num_positions,)`` positions of the other images.
        """
        limit = distances.min(initial=np.inf) * NEAR_MINIMUM
        candidates = np.flatnonzero(np.isfinite(distances) & (distances <= limit))
        refined: dict[tuple[int, int], float] = {}  # most pairs occur twice
        for position in candidates.tolist():
            partner = int(partners[position])
            pair = min(position, partner), max(position, partner)
            if pair not in refined:
                first_image = self._read(pair[0])
                second_image = self._read(pair[1])
                only_row = np.zeros(1, np.intp)
                squared = direct_squared_distances(first_image, second_image, only_row, only_row)
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
