"""Measure the intrinsic dimension and label sharpness of a dataset at each train size.

An image that equals an earlier image is a *duplicate*. The distance between two equal images
is zero, and the logarithm and the inverse of zero are undefined. So all measures exclude
duplicates, and the result contains their number. If a duplicate has another label than the
earlier image, the two images are a *conflict*. The result also lists conflicts.

A measure has these steps, each in a module of this package:

1. `duplicates` checks the images and finds the duplicates.
2. `searched_images` finds the nearest neighbors of all other images, for all train sizes.
3. `estimators` and `sharpness` compute the measures of each train size from the distances.
4. If the settings request it, `calibration` corrects the bias of the dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.array_types import AnyArray, IntArray
from tasks.measures.calibration import calibrate
from tasks.measures.distances import (
    BlockSource,
    Precision,
)
from tasks.measures.duplicates import check_rows
from tasks.measures.estimators import IntrinsicDimension, estimate
from tasks.measures.input_checks import (
    as_channels_first,
    checked_images,
    checked_labels,
    checked_source,
    checked_train_sizes,
)
from tasks.measures.random_labels import note_on_random_labels
from tasks.measures.records import MeasureResult, MeasureSettings, SizeRecord
from tasks.measures.searched_images import SearchedImages, search_images
from tasks.measures.sharpness import (
    LabelSharpness,
    SharpnessScale,
    permuted_sharpness,
    summarize,
)
from tasks.measures.tile_blocks import widest_arithmetic
from tasks.prepared.group_split import stratified_order
from tasks.remote import Executor

MAX_LISTED_CONFLICTS = 10
"""Largest number of conflicts in the list of a result."""


def measure_nested(
    images: BlockSource | npt.ArrayLike,
    labels: npt.ArrayLike | None,
    train_sizes: Sequence[int],
    *,
    executor: Executor | None = None,
    settings: MeasureSettings | None = None,
) -> MeasureResult:
    """Measure nested training sets. The training set of size n has the first n images.

    Args:
        images: Array ``(num_images, ...)`` of uint8 or any other real dtype, or a source of
            such rows. The pixel values are not scaled.
        labels: ``(num_images,)`` integers. With None, only the intrinsic dimension is
            measured.
        train_sizes: Train sizes, in any order.
        executor: Executor of the search for neighbors; None computes in this process.
        settings: Settings of the measure; None for the defaults.

    Returns:
        The measures at each train size. A pair in the result consists of two row numbers of
        ``images``.

    Raises:
        DataError: The images, labels or train sizes cannot be used.
        CorruptStoreError: A shard of the source does not match its checksum.
    """
    settings = settings or MeasureSettings()
    source = checked_source(images)
    image_labels = None if labels is None else checked_labels(labels, source.num_rows)
    sizes = checked_train_sizes(train_sizes, source.num_rows)
    row_check = check_rows(source, image_labels, executor=executor)
    precision = Precision(settings.dtype, settings.device, exact_bytes=row_check.is_exact)
    searched = search_images(row_check, image_labels, sizes, precision, settings, executor)
    scale = _sharpness_scale(source, settings)
    records = []
    for size_index, size in enumerate(sizes):
        table = searched.neighbors.tables[size_index]
        dimensions = estimate(
            table,
            num_neighbors=settings.num_neighbors,
            estimators=settings.estimators,
            parameters={"twonn": {"discard_fraction": settings.discard_fraction}},
            seed=settings.seed,
        )
        records.append(
            SizeRecord(
                train_size=size,
                num_duplicates=size - table.num_positions,  # positions are distinct images
                num_conflicts=sum(row < size for row, _ in row_check.conflicts),
                d_data=dimensions,
                label_sharpness=_label_sharpness(searched, size_index, scale),
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
        precision=searched.neighbors.arithmetic,
        notes=(
            *_notes(records[-1], row_check.num_contradictory(sizes[-1]), scale),
            *_label_notes(searched),
        ),
        calibration=calibration,
    )


def _label_sharpness(
    searched: SearchedImages, size_index: int, scale: SharpnessScale
) -> LabelSharpness | None:
    """Return the label sharpness at one train size, or None if there are no labels."""
    if searched.labels is None:
        return None
    table = searched.neighbors.tables[size_index]
    labels = searched.labels[: table.num_positions]
    other_label = searched.other_label_distances(size_index)
    sharpness = summarize(labels, other_label, scale)
    if sharpness.value is None:
        return sharpness
    permuted = permuted_sharpness(table, labels, other_label.sample_masks)
    return replace(sharpness, permuted=permuted)


def _label_notes(searched: SearchedImages) -> tuple[str, ...]:
    """Return a remark if the labels at the largest train size look random."""
    if searched.labels is None:
        return ()
    table = searched.neighbors.tables[-1]
    num_images = table.num_positions
    note = note_on_random_labels(
        searched.source, searched.source_rows[:num_images], searched.labels[:num_images], table
    )
    return () if note is None else (note,)


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
        images: Array of uint8 or any other real dtype. Its shape is ``(num_images, channels,
            height, width)``, ``(num_images, height, width, channels)``, ``(num_images, height,
            width)`` or ``(num_images, num_features)``.
        labels: ``(num_images,)`` integers. With None, only the intrinsic dimension is
            measured.
        train_sizes: Sizes of nested, stratified subsets of the images. These subsets are
            measured in addition to all images, and do not change the measures of all images.
            With None, only all images are measured.
        executor: Executor of the search for neighbors; None computes in this process, without
            Ray.
        settings: Settings of the measure; None for the defaults. The seed of the settings also
            determines the images of the subsets.

    Returns:
        The measures at each size. ``isweep measure --json`` prints their ``to_json()``. A pair
        in the result consists of two row numbers of ``images``.

    Raises:
        DataError: The images, labels or train sizes cannot be used.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> images = rng.integers(0, 256, (60, 8, 8), dtype=np.uint8)
        >>> record = measure_array(images, np.arange(60) % 2)
        >>> record.label_sharpness.num_pairs
        900
    """
    settings = settings or MeasureSettings()
    array = as_channels_first(checked_images(images))
    num_images = len(array)
    image_labels = None if labels is None else checked_labels(labels, num_images)
    smaller_sizes: list[int] = []
    if train_sizes is not None:
        sizes = checked_train_sizes(train_sizes, num_images)
        smaller_sizes = [size for size in sizes if size < num_images]
    result = measure_nested(array, image_labels, [num_images], executor=executor, settings=settings)
    if not smaller_sizes:
        return result
    # The subsets need another order of the images, in which the images of the smallest subset
    # come first. In that order, the samples for label sharpness and the blocks of the
    # bootstrap would differ, and the measures of all images would change. So the subsets are
    # measured in a second pass.
    subsets = _measure_subsets(array, image_labels, smaller_sizes, settings, executor)
    return result.model_copy(
        update={
            "sizes": (*subsets.sizes, *result.sizes),
            "precision": widest_arithmetic(subsets.precision, result.precision),
        }
    )


def _measure_subsets(
    array: AnyArray,
    image_labels: IntArray | None,
    sizes: Sequence[int],
    settings: MeasureSettings,
    executor: Executor | None,
) -> MeasureResult:
    """Measure nested, stratified subsets of the images.

    A pair in the result consists of two row numbers of ``array``.

    Args:
        array: All images, ``(num_images, ...)``.
        image_labels: ``(num_images,)`` labels; None if there are no labels.
        sizes: Sizes of the subsets, ascending, below the number of images.
        settings: Settings of the measure. The seed determines the images of the subsets.
        executor: Executor of the search for neighbors; None computes in this process.
    """
    num_images = len(array)
    class_indices = np.zeros(num_images, np.int64)  # without labels, all images are one class
    if image_labels is not None:
        class_indices = np.unique(image_labels, return_inverse=True)[1].astype(np.int64)
    rng = np.random.default_rng(settings.seed)
    order = stratified_order(class_indices, np.arange(num_images), rng, balanced=False)
    ordered_labels = None if image_labels is None else image_labels[order]
    uncalibrated = replace(settings, calibrate=False)  # only all images are calibrated
    subsets = measure_nested(
        array[order], ordered_labels, sizes, executor=executor, settings=uncalibrated
    )
    return subsets.renumber(order)


def intrinsic_dimension(
    features: npt.ArrayLike | BlockSource,
    **settings: Any,
) -> dict[str, IntrinsicDimension]:
    """Estimate the intrinsic dimension of a set of points.

    For example, the points may be the activations of a network's last hidden layer. Their
    intrinsic dimension is d_repr.

    Args:
        features: ``(num_points, ...)`` real numbers, in any order.
        settings: Fields of `MeasureSettings`.

    Returns:
        One record per estimator, by the estimator's name. Points that equal an earlier point
        are excluded. The field ``details`` of each record contains their number under the key
        ``num_duplicates``.

    Raises:
        DataError: The features contain values that are not real numbers, or not finite.
        ConfigError: A setting is not valid, for example the name of an estimator.

    Example:
        >>> points = np.random.default_rng(0).normal(size=(500, 3)) @ np.ones((3, 40))
        >>> 0.9 < intrinsic_dimension(points)["mle"].value < 1.1
        True
    """
    source = checked_source(features)
    result = measure_nested(source, None, [source.num_rows], settings=MeasureSettings(**settings))
    num_duplicates = result.sizes[0].num_duplicates
    return {
        name: replace(record, details=record.details | {"num_duplicates": num_duplicates})
        for name, record in result.d_data.items()
    }


def _sharpness_scale(source: BlockSource, settings: MeasureSettings) -> SharpnessScale:
    """Return the scale of label sharpness for these images and settings.

    If the settings contain no pixel range, the dtype determines it. For booleans, the range is
    [0, 1]. For unsigned integers, it is from 0 to the largest number of the dtype. For any
    other dtype, the range is unknown.
    """
    shape = source.row_shape
    pixel_range = settings.pixel_range
    dtype = source.read(0, 1).dtype
    if pixel_range is None and dtype.kind == "b":
        pixel_range = (0.0, 1.0)
    elif pixel_range is None and dtype.kind == "u":
        pixel_range = (0.0, float(np.iinfo(dtype).max))
    is_image = len(shape) == 3
    return SharpnessScale(
        pixel_range=pixel_range,
        side=(shape[1], shape[2]) if is_image else None,
        channels=shape[0] if is_image else int(np.prod(shape)),
        sample=settings.sharpness_sample,
    )


def _notes(
    record: SizeRecord,
    num_contradictory: int,
    scale: SharpnessScale,
) -> tuple[str, ...]:
    """Return remarks for readers about the measures at the largest train size.

    Args:
        record: The measures of this train size.
        num_contradictory: Number of images of this training set that equal an image with
            another label.
        scale: Scale of label sharpness.
    """
    notes = []
    if record.num_duplicates:
        notes.append(
            f"{record.num_duplicates} of {record.train_size} images are equal to an earlier "
            "image. All measures exclude them, because a distance of zero has no logarithm."
        )
    if num_contradictory:
        notes.append(
            f"{num_contradictory} of {record.train_size} images are equal to an image with "
            "another label. For two equal images with different labels, label sharpness is "
            "infinite, so the printed K_F excludes these pairs. The field `conflict_pairs` of the "
            f"JSON lists at most {MAX_LISTED_CONFLICTS} pairs. If more than 0.1 % of all images "
            "are in these pairs, `isweep run` refuses the images, unless you set "
            "`--max-skipped-share`."
        )
    if record.label_sharpness is not None and scale.pixel_range is None:
        notes.append(
            "The pixel range of these images is not known, so K_F cannot be compared with "
            "other datasets. Set the pixel range with `--pixel-range` (in Python: `pixel_range`)."
        )
    for name, dimension in record.d_data.items():
        if "remark" in dimension.details:
            remark = dimension.details["remark"]
            notes.append(f"The {name} estimate at {record.train_size} images {remark}")
    return tuple(notes)
