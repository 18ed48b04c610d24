"""Label sharpness K_F: how fast the label changes with the image.

``K_F = max over pairs with different labels of 1 / |x_i - x_j|₂`` (Konz & Mazurowski 2024). For two
classes the paper's factor |y_i - y_j| is 1 for exactly these pairs. With more classes we keep this:
the factor is 1 for every pair with different labels.

K_F has the unit 1/pixel value. It grows as pixel range, side and channels shrink, so a number
without its conventions means nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from search_spaces.errors import DataError
from tasks.measures.arrays import AnyArray, BoolArray, FloatArray, IntArray
from tasks.measures.neighbors import NeighborTable, PairList
from tasks.measures.plain_json import plain_json
from tasks.prepared.table import quotas_of

PERCENTILES = (99.9, 99.0, 95.0)
"""Percentiles of the images' 1/distance to the nearest image with another label."""
NUM_PERMUTATIONS = 100
"""Random rearrangements of the labels, in each sample."""
CLOSEST_PAIRS = 4096
"""Closest pairs, at most, that are searched for a pair with different labels."""
FIRST_PAIRS = 64
"""Closest pairs that are searched first: they nearly always hold a pair with different labels."""


@dataclass(frozen=True)
class SharpnessConvention:
    """The scale that a label sharpness was measured in.

    Attributes:
        pixel_range: Pixel values of black and white; None if unknown.
        side: Height and width in pixels; None for features that are no images.
        channels: Number of channels, or of features.
        sample: Size of a sample, in images; None for all images. Stored records call it so.
    """

    pixel_range: tuple[float, float] | None
    side: tuple[int, int] | None
    channels: int
    sample: int | None


@dataclass(frozen=True)
class LabelSharpness:
    """Label sharpness with its uncertainty and its conventions.

    Attributes:
        value: Mean of the samples' maxima, in 1/pixel value. None if undefined.
        convention: What it was measured in.
        num_pairs: Pairs with different labels in one sample.
        num_images: Images of one sample.
        pair: Rows of the two closest images with different labels, among all images of this size.
        pair_value: ``1/distance`` of that pair: the maximum over all images.
        sample_values: The maximum in each sample; one number if all images are used.
        percentiles: Percentiles of the images' 1/distance to the nearest image with another label,
            and the mean of 1/distance under the key ``"mean"``.
        permuted: Baseline: mean ``value`` over random permutations of the labels. None if it is
            not known.
        reason: Why ``value`` is None.
        mean_unlike_distance: Mean over the images of the distance to the nearest image with another
            label (the mean nearest-enemy distance, δ), in pixel values; inside each sample, and
            then the mean over the samples. Measures that were stored before it existed have None.
    """

    value: float | None
    convention: SharpnessConvention
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
        """Return plain JSON. The convention's fields stand beside the value."""
        fields = vars(self) | vars(self.convention) | {"interval": self.sample_range}
        del fields["convention"]
        return plain_json(fields, "permuted", "mean_unlike_distance", "reason")

    @property
    def sample_range(self) -> list[float] | None:
        """Lowest and highest sample value; None if there is only one sample."""
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
    """Draw the samples in which the largest label sharpness is taken.

    Each sample holds every class in the proportion it has among the images of its size (by largest
    remainder).

    Args:
        labels: ``(num_images,)``; None draws no samples.
        train_sizes: Ascending prefix lengths.
        sample_size: Images per sample; None draws no samples.
        seeds: One sample per seed and size.

    Returns:
        The masks of the samples of all sizes, ``(num_samples, num_images)``, and the slice of the
        masks for each size. It is empty for sizes up to ``sample_size``, where all images are used.
    """
    num_images = train_sizes[-1] if labels is None else len(labels)
    masks: list[BoolArray] = []
    slices = []
    for size in train_sizes:
        first = len(masks)
        if labels is not None and sample_size is not None and size > sample_size:
            class_numbers = np.unique(labels[:size], return_inverse=True)[1]
            quotas = quotas_of(np.bincount(class_numbers), sample_size, balanced=False)
            for seed in seeds:
                rng = np.random.default_rng([seed, size])
                mask = np.zeros(num_images, bool)
                for number, quota in enumerate(quotas):
                    members = np.flatnonzero(class_numbers == number)
                    mask[rng.choice(members, quota, replace=False)] = True
                masks.append(mask)
        slices.append(slice(first, len(masks)))
    return np.array(masks, bool).reshape(len(masks), num_images), slices


def count_pairs(labels: AnyArray) -> int:
    """Return the number of unordered pairs with different labels."""
    # Python integers: squares of counts may overflow int64.
    counts = np.unique(labels, return_counts=True)[1].tolist()
    num_like = sum(count**2 for count in counts)
    return int((sum(counts) ** 2 - num_like) // 2)


@dataclass(frozen=True)
class UnlikeDistances:
    """Distances to the nearest image with another label, of the images of one train size.

    Attributes:
        nearest: ``(num_images,)`` distances among all images.
        pair: Rows of the closest pair, or None if there is none.
        pair_distance: Its distance, accurate to 1e-6: the smallest of ``nearest``.
        in_samples: ``(num_samples, num_images)`` distances inside each sample, infinite for other
            images. No rows if all images are used.
        members: ``(num_samples, num_images)`` masks of the samples.
    """

    nearest: FloatArray
    pair: tuple[int, int] | None
    pair_distance: float
    in_samples: FloatArray
    members: BoolArray

    def by_sample(self) -> list[FloatArray]:
        """Return the distances of each sample's members; those of all images without samples."""
        if not len(self.in_samples):
            return [self.nearest]
        rows = zip(self.in_samples, self.members, strict=True)
        return [distances[is_member] for distances, is_member in rows]


def summarize(
    labels: AnyArray,
    unlike: UnlikeDistances,
    convention: SharpnessConvention,
) -> LabelSharpness:
    """Return the label sharpness of one train size.

    Args:
        labels: ``(num_images,)``.
        unlike: Distances to the nearest images with another label.
        convention: What the distances were measured in.

    Returns:
        The record, without the permuted baseline. Undefined with a reason if there is no pair with
        different labels, or its distance cannot be represented.
    """
    sampled_labels = labels
    if len(unlike.members):  # all samples have the same class counts, so the first one serves
        sampled_labels = labels[unlike.members[0]]
    num_pairs = count_pairs(sampled_labels)
    num_images = len(sampled_labels)
    reason = _why_undefined(labels, num_pairs, unlike.pair_distance)
    if reason is not None:
        return LabelSharpness(
            None, convention, num_pairs, num_images, pair=unlike.pair, reason=reason
        )
    distances_by_sample = unlike.by_sample()
    inverses_by_sample = [1 / distances for distances in distances_by_sample]
    percentiles = {}
    for percent in PERCENTILES:
        in_samples = [np.percentile(inverses, percent) for inverses in inverses_by_sample]
        percentiles[f"{percent:g}"] = float(np.mean(in_samples))
    percentiles["mean"] = float(np.mean([inverses.mean() for inverses in inverses_by_sample]))
    sample_values = [1 / float(distances.min()) for distances in distances_by_sample]
    mean_distances = [distances.mean() for distances in distances_by_sample]
    return LabelSharpness(
        value=float(np.mean(sample_values)),
        convention=convention,
        num_pairs=num_pairs,
        num_images=num_images,
        pair=unlike.pair,
        pair_value=1 / unlike.pair_distance,
        sample_values=tuple(sample_values),
        percentiles=percentiles,
        mean_unlike_distance=float(np.mean(mean_distances)),
    )


def permuted_sharpness(
    table: NeighborTable,
    labels: AnyArray,
    members: BoolArray,
) -> float | None:
    """Return the mean label sharpness of the same images over random permutations of the labels.

    In each permutation the closest pair with different labels is searched:

    - In samples, among the closest pairs of the size that lie in the sample. All closer pairs are
      known, so the result is exact.
    - Among all images, in the lists of nearest neighbors. The closest pair (a, b) is missed only
      if all listed neighbors of a have a's label, and those of b have b's.

    Args:
        table: Neighbors and closest pairs of this train size.
        labels: ``(num_images,)``.
        members: ``(num_samples, num_images)`` masks of samples; no rows for all images.

    Returns:
        The mean over permutations and samples, in 1/pixel value. None if one permutation has no
        pair with different labels among those searched.
    """
    rng = np.random.default_rng(0)
    pairs = table.closest_pairs
    masks = members
    if not len(members):
        pairs = None
        masks = np.ones((1, len(labels)), bool)
    if pairs is None:
        pairs = listed_pairs(table)
    is_positive = pairs.distances > 0
    values = []
    for is_member in masks:
        is_inside = is_positive & is_member[pairs.first] & is_member[pairs.second]
        inside = np.flatnonzero(is_inside)[:CLOSEST_PAIRS]
        number_in_sample = np.cumsum(is_member) - 1
        first = number_in_sample[pairs.first[inside]]
        second = number_in_sample[pairs.second[inside]]
        sample_labels = labels[is_member]
        for _ in range(NUM_PERMUTATIONS):
            closest = _first_unlike(rng.permutation(sample_labels), first, second)
            if closest is None:
                return None
            values.append(1 / float(pairs.distances[inside[closest]]))
    return float(np.mean(values))


def listed_pairs(table: NeighborTable) -> PairList:
    """Return the pairs in the lists of nearest neighbors, closest first; most are there twice."""
    num_points, num_neighbors = table.distances.shape
    first = np.repeat(np.arange(num_points), num_neighbors)
    second = table.indices.ravel()
    distances = table.distances.ravel()
    is_pair = np.isfinite(distances) & (second >= 0)
    order = np.argsort(distances, kind="stable")
    order = order[is_pair[order]]
    return PairList(distances[order], first[order], second[order])


def _first_unlike(
    labels: AnyArray,
    first: IntArray,
    second: IntArray,
) -> int | None:
    """Return the number of the first pair with different labels, or None."""
    for num_pairs in (FIRST_PAIRS, len(first)):
        is_unlike = labels[first[:num_pairs]] != labels[second[:num_pairs]]
        if is_unlike.any():
            return int(is_unlike.argmax())
    return None


def _why_undefined(
    labels: AnyArray,
    num_pairs: int,
    pair_distance: float,
) -> str | None:
    """Return why no finite label sharpness exists, or None if it does."""
    num_classes = len(np.unique(labels))
    if num_classes < 2:
        return f"needs two classes, these {len(labels)} distinct images have {num_classes}"
    if num_pairs == 0:
        return "the other class is too rare for a sample; use all images (sharpness_sample=None)"
    if pair_distance <= 0:
        return "two images with different labels differ by less than can be represented"
    if not np.isfinite(pair_distance):
        return "images with different labels differ by more than can be squared"
    return None


def conversion(source: SharpnessConvention, target: SharpnessConvention) -> float:
    """Return the factor that takes a label sharpness from convention ``source`` to ``target``.

    ``K ∝ 1/(range · √(height · width · channels))``. This is exact for the range and for repeated
    channels. For the side it neglects the blur of interpolation: a bilinear 28 → 224 shortens
    distances by about 8 %.

    Raises:
        DataError: If a side or range is missing, or the samples differ in size, for which no factor
            exists.
    """
    if source.sample != target.sample:
        raise DataError(
            f"Label sharpness of {source.sample} images cannot be converted to that of "
            f"{target.sample}",
            hint="Measure again with the same sharpness_sample",
        )
    return _largest_distance(source) / _largest_distance(target)


def _largest_distance(convention: SharpnessConvention) -> float:
    """Return the distance between an all-black and an all-white image."""
    if convention.pixel_range is None or convention.side is None:
        raise DataError(
            f"Label sharpness cannot be converted without pixel range and side: {convention}"
        )
    black, white = convention.pixel_range
    height, width = convention.side
    num_values = height * width * convention.channels
    return float((white - black) * np.sqrt(num_values))
