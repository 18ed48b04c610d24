"""Compute label sharpness K_F, which measures how fast the label changes between images.

``K_F = max over pairs with different labels of 1 / |x_i - x_j|₂`` (Konz & Mazurowski 2024).
x_i is an image, and y_i is its label. F is the function that maps an image to its label. The
paper has the numerator |y_i - y_j|. For two classes, this numerator is 1 for every pair with
different labels. We use the numerator 1 for more than two classes too.

The *nearest other-label distance* of an image is its distance to the nearest image with
another label. So K_F is one over the smallest nearest other-label distance.

K_F has the unit 1/pixel value. If images have a smaller pixel range, fewer pixels or fewer
channels, K_F is larger. So compare two values of K_F only if they were measured on the same
scale (pixel range, side, channels and sample size).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from search_spaces.errors import DataError, plural
from tasks.array_types import AnyArray, BoolArray, FloatArray, IntArray
from tasks.measures.neighbor_tables import NeighborTable, PairList
from tasks.measures.plain_json import plain_json
from tasks.prepared.table import class_counts_for

PERCENTILES = (99.9, 99.0, 95.0)
"""The percentiles, over images, of 1 / nearest other-label distance that a record contains."""
NUM_PERMUTATIONS = 100
"""Number of random permutations of the labels for each sample."""
MAX_SEARCHED_PAIRS = 4096
"""Largest number of pairs among which one permutation looks for a pair with different labels.
The number limits the time of a permutation."""
FIRST_PAIRS = 64
"""Number of closest pairs that a permutation searches first, for speed. Nearly always, one of
them has different labels."""


@dataclass(frozen=True)
class SharpnessScale:
    """The scale of a label sharpness. Its fields are the properties of the images and samples
    that change the value of K_F.

    Attributes:
        pixel_range: Pixel values of black and of white; None if they are unknown.
        side: Height and width of an image in pixels; None if the rows are not images.
        channels: Number of channels of an image. If the rows are not images, it is the number
            of features.
        sample: Number of images in a sample; None if all images are used. Do not rename this
            field, because stored records contain its name.
    """

    pixel_range: tuple[float, float] | None
    side: tuple[int, int] | None
    channels: int
    sample: int | None


@dataclass(frozen=True)
class LabelSharpness:
    """A label sharpness, with its range over samples and its scale.

    The maximum of 1/distance, over pairs with different labels, is computed in each of several
    samples. If the number of images is at most the sample size, the only sample consists of
    all images. Do not rename the fields, because stored records contain their names.

    Attributes:
        value: K_F: the mean, over samples, of the maximum of 1/distance. Unit: 1/pixel value.
            None if K_F is undefined.
        convention: The scale on which K_F was measured.
        num_pairs: Number of pairs with different labels in one sample.
        num_images: Number of images in one sample.
        pair: Source rows of the two closest images with different labels in the training set;
            None if there is no such pair.
        pair_value: 1/distance of ``pair``, which is the maximum over all images; None if it is
            undefined.
        sample_values: The maximum of 1/distance in each sample.
        percentiles: Percentiles over images of 1 / nearest other-label distance, averaged over
            the samples. The keys are the percentages, for example ``"99.9"``. The key
            ``"mean"`` contains the mean over images.
        permuted: Baseline for ``value``: its mean over random permutations of the labels; None
            if this mean is unknown.
        reason: Reason why ``value`` is None.
        mean_unlike_distance: δ: the nearest other-label distance, averaged over the images of
            each sample and then over the samples. Unit: pixel values. None if ``value`` is
            None, and in old records, which do not have this field.
    """

    value: float | None
    convention: SharpnessScale
    num_pairs: int
    num_images: int
    pair: tuple[int, int] | None = None
    pair_value: float | None = None
    sample_values: tuple[float, ...] = ()
    percentiles: dict[str, float] | None = None
    permuted: float | None = None
    reason: str | None = None
    mean_unlike_distance: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON. The fields of ``convention`` become fields of the record.

        The JSON also contains `sample_range` under the key ``interval``.
        """
        fields = vars(self) | vars(self.convention) | {"interval": self.sample_range}
        del fields["convention"]
        optional = ("permuted", "mean_unlike_distance", "reason")
        return plain_json(fields, left_out_if_none=optional)

    @property
    def sample_range(self) -> list[float] | None:
        """The lowest and the highest of ``sample_values``; None if there are fewer than two
        samples.
        """
        values = self.sample_values
        if len(values) < 2:
            return None
        return [min(values), max(values)]


def stratified_samples(
    labels: AnyArray | None,
    train_sizes: Sequence[int],
    sample_size: int | None,
    seeds: Sequence[int],
) -> tuple[BoolArray, list[slice]]:
    """Draw the samples in which the maximum of 1/distance is computed.

    In each sample, the classes have the same proportions as in the training set of this size.
    The numbers of images per class are rounded by the method of the largest remainder.

    Args:
        labels: ``(num_images,)`` labels of all images. With None, no samples are drawn.
        train_sizes: Ascending train sizes.
        sample_size: Number of images in a sample. With None, no samples are drawn.
        seeds: Seeds of the samples. Each train size has one sample per seed.

    Returns:
        - The masks of the samples of all sizes, ``(num_samples, num_images)``.
        - For each train size, the slice of the masks that belong to it. For sizes up to
          ``sample_size``, the slice is empty, because all images are used.
    """
    num_images = train_sizes[-1] if labels is None else len(labels)
    masks: list[BoolArray] = []
    slices = []
    for size in train_sizes:
        num_masks_before = len(masks)
        if labels is not None and sample_size is not None and size > sample_size:
            for seed in seeds:
                mask = np.zeros(num_images, bool)
                mask[_draw_sample(labels[:size], sample_size, seed)] = True
                masks.append(mask)
        slices.append(slice(num_masks_before, len(masks)))
    return np.array(masks, bool).reshape(len(masks), num_images), slices


def _draw_sample(labels: AnyArray, sample_size: int, seed: int) -> IntArray:
    """Return the indices of one stratified sample of the images with these labels."""
    class_indices = np.unique(labels, return_inverse=True)[1]
    quotas = class_counts_for(np.bincount(class_indices), sample_size, balanced=False)
    rng = np.random.default_rng([seed, len(labels)])
    chosen = []
    for class_index, quota in enumerate(quotas):
        members = np.flatnonzero(class_indices == class_index)
        chosen.append(rng.choice(members, quota, replace=False))
    return np.concatenate(chosen)


def count_pairs(labels: AnyArray) -> int:
    """Return the number of unordered pairs of images with different labels."""
    # The counts are converted to Python integers, because their squares may overflow int64.
    counts = np.unique(labels, return_counts=True)[1].tolist()
    num_like = sum(count**2 for count in counts)
    return int((sum(counts) ** 2 - num_like) // 2)


@dataclass(frozen=True)
class OtherLabelDistances:
    """The nearest other-label distances of the images of one train size.

    Attributes:
        distances: ``(num_images,)`` nearest other-label distance of each image, among all
            images.
        pair: Source rows of the closest pair with different labels; None if no such pair has a
            finite distance.
        pair_distance: Distance of ``pair``, which is the smallest of ``distances``. Its
            relative error is at most 1e-6.
        sample_distances: ``(num_samples, num_images)`` nearest other-label distances inside
            each sample; infinite for images outside the sample. ``num_samples`` is 0 if all
            images are used.
        sample_masks: ``(num_samples, num_images)`` masks of the samples, one row per sample.
    """

    distances: FloatArray
    pair: tuple[int, int] | None
    pair_distance: float
    sample_distances: FloatArray
    sample_masks: BoolArray

    def distances_by_sample(self) -> list[FloatArray]:
        """Return the distances inside each sample, one array ``(sample_size,)`` per sample.

        If there are no samples, the only array contains the distances among all images.
        """
        if not len(self.sample_distances):
            return [self.distances]
        samples = zip(self.sample_distances, self.sample_masks, strict=True)
        return [distances[is_member] for distances, is_member in samples]


def summarize(
    labels: AnyArray,
    nearest: OtherLabelDistances,
    scale: SharpnessScale,
) -> LabelSharpness:
    """Return the label sharpness of one train size.

    Args:
        labels: ``(num_images,)`` label of each image.
        nearest: Nearest other-label distances.
        scale: Scale of the distances.

    Returns:
        The record, without the permuted baseline. Its value is None if no pair in a sample has
        different labels. The value is also None if the distance of the closest pair with
        different labels is zero or infinite. The record then contains a reason. ``pair_value``
        may be defined even if the value is None.
    """
    sampled_labels = labels
    if len(nearest.sample_masks):
        # All samples have the same number of images of each class.
        sampled_labels = labels[nearest.sample_masks[0]]
    num_pairs = count_pairs(sampled_labels)
    num_images = len(sampled_labels)
    reason = _undefined_reason(labels, num_pairs, nearest.pair_distance)
    pair_value = None
    if 0 < nearest.pair_distance < np.inf:
        pair_value = 1 / nearest.pair_distance
    if reason is not None:
        return LabelSharpness(
            value=None,
            convention=scale,
            num_pairs=num_pairs,
            num_images=num_images,
            pair=nearest.pair,
            pair_value=pair_value,
            reason=reason,
        )
    distances_by_sample = nearest.distances_by_sample()
    inverses_by_sample = [1 / distances for distances in distances_by_sample]
    percentiles = {}
    for percent in PERCENTILES:
        by_sample = [np.percentile(inverses, percent) for inverses in inverses_by_sample]
        percentiles[f"{percent:g}"] = float(np.mean(by_sample))
    percentiles["mean"] = float(np.mean([inverses.mean() for inverses in inverses_by_sample]))
    sample_values = [1 / float(distances.min()) for distances in distances_by_sample]
    mean_distances = [distances.mean() for distances in distances_by_sample]
    return LabelSharpness(
        value=float(np.mean(sample_values)),
        convention=scale,
        num_pairs=num_pairs,
        num_images=num_images,
        pair=nearest.pair,
        pair_value=pair_value,
        sample_values=tuple(sample_values),
        percentiles=percentiles,
        mean_unlike_distance=float(np.mean(mean_distances)),
    )


def permuted_sharpness(
    table: NeighborTable,
    labels: AnyArray,
    sample_masks: BoolArray,
) -> float | None:
    """Return the mean of label sharpness over random permutations of the labels.

    For permuted labels, K_F is one over the distance of the closest pair with different
    labels. A search of all pairs for each permutation would be slow. So each permutation
    searches only some pairs, in ascending order of distance:

    - Inside a sample, it searches among the closest pairs of the table. All other pairs are
      farther apart, so the first pair with different labels is the closest pair.
    - Among all images, it searches among the pairs in the lists of nearest neighbors. It
      misses the closest pair (a, b) only if a is not in the list of b, and b is not in the
      list of a.

    The permutations are drawn with a fixed seed.

    Args:
        table: Neighbors and closest pairs of this train size.
        labels: ``(num_images,)`` label of each image.
        sample_masks: ``(num_samples, num_images)`` masks of the samples, one row per sample.
            If ``num_samples`` is 0, all images are used.

    Returns:
        The mean over permutations and samples. Unit: 1/pixel value. None if all searched pairs
        have equal labels in at least one permutation.
    """
    rng = np.random.default_rng(0)
    if len(sample_masks):
        masks = sample_masks
        # A search with samples always collects the closest pairs.
        pairs = cast(PairList, table.closest_pairs)
    else:
        masks = np.ones((1, len(labels)), bool)
        pairs = listed_pairs(table)
    values = []
    for is_member in masks:
        sample_pairs = _pairs_inside_sample(pairs, is_member)
        sample_labels = labels[is_member]
        for _ in range(NUM_PERMUTATIONS):
            closest = _first_with_different_labels(rng.permutation(sample_labels), sample_pairs)
            if closest is None:
                return None
            values.append(1 / float(sample_pairs.distances[closest]))
    return float(np.mean(values))


def _pairs_inside_sample(pairs: PairList, is_member: BoolArray) -> PairList:
    """Return at most `MAX_SEARCHED_PAIRS` pairs inside a sample, closest first.

    In the result, the images of a pair are indices into the images of the sample. A pair with
    the distance 0 is skipped, because 1/0 is infinite. Equal images were excluded before, so
    the distance 0 is a rounding error.
    """
    is_inside = (pairs.distances > 0) & is_member[pairs.first] & is_member[pairs.second]
    searched = np.flatnonzero(is_inside)[:MAX_SEARCHED_PAIRS]
    index_in_sample = np.cumsum(is_member) - 1
    first = index_in_sample[pairs.first[searched]]
    second = index_in_sample[pairs.second[searched]]
    return PairList(pairs.distances[searched], first, second)


def listed_pairs(table: NeighborTable) -> PairList:
    """Return the pairs in the lists of nearest neighbors, closest first.

    If each point of a pair is a neighbor of the other point, the result contains the pair
    twice.
    """
    num_points, num_neighbors = table.distances.shape
    first = np.repeat(np.arange(num_points), num_neighbors)
    second = table.neighbor_positions.ravel()
    distances = table.distances.ravel()
    is_pair = np.isfinite(distances) & (second >= 0)
    order = np.argsort(distances, kind="stable")
    order = order[is_pair[order]]
    return PairList(distances[order], first[order], second[order])


def _first_with_different_labels(labels: AnyArray, pairs: PairList) -> int | None:
    """Return the index of the first pair with different labels; None if there is none."""
    # For speed, search a few pairs first. If all of these pairs have equal labels, search all
    # pairs.
    for num_pairs in (FIRST_PAIRS, len(pairs.first)):
        is_different = labels[pairs.first[:num_pairs]] != labels[pairs.second[:num_pairs]]
        if is_different.any():
            return int(is_different.argmax())
    return None


def _undefined_reason(
    labels: AnyArray,
    num_pairs: int,
    pair_distance: float,
) -> str | None:
    """Return the reason why the label sharpness is undefined, or None if it is defined."""
    num_classes = len(np.unique(labels))
    if num_classes < 2:
        return (
            "label sharpness needs images of at least two classes, but there is only "
            f"{plural(num_classes, 'class')} in {plural(len(labels), 'distinct image')}"
        )
    if num_pairs == 0:
        return (
            "a sample contains images of one class only, because the other classes are too "
            "rare. Use all images (`--sharpness-sample 0`, in Python sharpness_sample=None)"
        )
    if pair_distance <= 0:
        return "two images with different labels have the distance 0 after rounding"
    if not np.isfinite(pair_distance):
        return "the squared distance between images with different labels is too large for a float"
    return None


def conversion_factor(source: SharpnessScale, target: SharpnessScale) -> float:
    """Return the factor that converts a label sharpness from one scale to another.

    The factor follows from ``K_F ∝ 1/(range · √(height · width · channels))``. It is exact for
    another pixel range, and for repeated channels. For another side, the factor neglects the
    blur of interpolation. For example, bilinear resizing from 28 to 224 pixels shortens
    distances by about 8 %.

    Args:
        source: Scale on which the label sharpness was measured.
        target: Scale to which the label sharpness is converted.

    Raises:
        DataError: A side or a pixel range is unknown, or the sample sizes differ. A label
            sharpness cannot be converted between different sample sizes.
    """
    if source.sample != target.sample:
        raise DataError(
            f"A label sharpness from samples of {_sample_text(source.sample)} cannot be "
            f"converted to samples of {_sample_text(target.sample)}",
            hint="Measure both datasets again with the same sharpness_sample",
        )
    return _largest_distance(source) / _largest_distance(target)


def _sample_text(sample: int | None) -> str:
    """Return the text for a sample size in a message."""
    return "all images" if sample is None else f"{sample} images"


def _largest_distance(scale: SharpnessScale) -> float:
    """Return the distance between an all-black and an all-white image."""
    if scale.pixel_range is None or scale.side is None:
        raise DataError(
            "Label sharpness can be converted only if pixel_range and side are known, but "
            f"pixel_range is {scale.pixel_range} and side is {scale.side}",
            hint="Set pixel_range, pass the images with the shape (num_images, channels, "
            "height, width), and measure again",
        )
    black, white = scale.pixel_range
    height, width = scale.side
    num_values = height * width * scale.channels
    return float((white - black) * np.sqrt(num_values))
