"""Label sharpness K_F: how fast the label changes with the image.

``K_F = max over pairs with different labels of 1 / |x_i - x_j|₂`` (Konz & Mazurowski 2024; for two
classes |y_i - y_j| is 1 exactly there, for more classes the indicator of different labels takes its
place). It has the unit 1/pixel value, and grows as pixel range, side and channels shrink, so a
number without its conventions means nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from search_spaces.errors import DataError
from tasks.measures.distances import FloatArray
from tasks.prepared.table import quotas_of

PERCENTILES = (99.9, 99.0, 95.0)
# Rearrangements of the labels, and how many of the closest pairs are looked through for one of
# unlike labels.
NUM_PERMUTATIONS = 100
CLOSEST_PAIRS, FIRST_PAIRS = 4096, 64


@dataclass(frozen=True)
class SharpnessConvention:
    """What a label sharpness is measured in: black and white, height and width in pixels (None for
    features that are no images, whose number is then ``channels``), images per sample (None for
    all).
    """

    pixel_range: tuple[float, float] | None
    side: tuple[int, int] | None
    channels: int
    sample: int | None


@dataclass(frozen=True)
class LabelSharpness:
    """Label sharpness with its uncertainty and its conventions.

    Attributes:
        value: Mean over the samples of each sample's maximum, or None when undefined, for
            ``reason``.
        num_pairs, num_images: Pairs with different labels in one sample, and its images.
        pair: Rows of the two differently labelled images that are closest, among all images of this
            size.
        pair_value: ``1/distance`` of that pair: the maximum over all images.
        sample_values: The maximum in each sample; one number when all images are used.
        percentiles: Of the images' ``1/distance to the nearest image with another label``, and
            their mean.
        permuted: What ``value`` would be, on average, if the same labels had nothing to do with the
            images.
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
        """Plain JSON; the convention's fields stand beside the value."""
        optional = ("permuted", "mean_unlike_distance")
        missing = [name for name in optional if getattr(self, name) is None]
        apart = ["convention", "reason", *missing]
        record = {key: value for key, value in vars(self).items() if key not in apart}
        record |= asdict(self.convention) | {"interval": self.interval}
        for key in ("pair", "pixel_range", "side", "sample_values"):
            record[key] = None if record[key] is None else list(record[key])
        return record | ({"reason": self.reason} if self.reason else {})

    @property
    def interval(self) -> list[float] | None:
        """Lowest and highest sample value, or None when there is one sample only."""
        values = self.sample_values
        return [min(values), max(values)] if len(values) > 1 else None


def stratified_subsets(
    labels: npt.NDArray[Any] | None,
    train_sizes: Sequence[int],
    sample: int | None,
    seeds: Sequence[int],
) -> tuple[npt.NDArray[np.bool_], list[slice]]:
    """Draw the samples in which the maximum is taken.

    Every sample of a size, one per seed, holds each class of ``labels`` (num_images,) in the
    proportion it has among the images of that size (by largest remainder).

    Returns:
        ``(num_subsets, num_images)`` masks, and for each size its slice of them; empty for sizes
        that are no larger than ``sample``, where all images are used.
    """
    num_images = train_sizes[-1] if labels is None else len(labels)
    masks: list[npt.NDArray[np.bool_]] = []
    slices = []
    for size in train_sizes:
        first = len(masks)
        if labels is not None and sample is not None and size > sample:
            members = np.unique(labels[:size], return_inverse=True)[1]
            counts = quotas_of(np.bincount(members), sample, balanced=False)
            for seed in seeds:
                rng, mask = np.random.default_rng([seed, size]), np.zeros(num_images, bool)
                for number, count in enumerate(counts):
                    mask[rng.choice(np.flatnonzero(members == number), count, replace=False)] = True
                masks.append(mask)
        slices.append(slice(first, len(masks)))
    return np.array(masks, bool).reshape(len(masks), num_images), slices


def count_pairs(labels: npt.NDArray[Any]) -> int:
    """Unordered pairs with different labels."""
    counts = np.unique(labels, return_counts=True)[1].astype(object)  # Python integers: no overflow
    return int((sum(counts) ** 2 - sum(counts**2)) // 2)


def summarise(
    labels: npt.NDArray[Any],
    nearest: FloatArray,
    pair: tuple[int, int] | None,
    pair_distance: float,
    convention: SharpnessConvention,
    samples: FloatArray,
    sample_members: npt.NDArray[np.bool_],
) -> LabelSharpness:
    """Turn the distances of each image to the nearest with another label into a record.

    Args:
        labels: ``(num_images,)`` of one size.
        nearest: ``(num_images,)`` distances among all of them.
        pair: The rows at ``pair_distance``, the smallest of ``nearest``.
        pair_distance: Recomputed directly, so that it holds to 1e-6.
        convention: What the distances are measured in.
        samples: ``(num_samples, num_images)`` distances inside each sample; no rows for all images.
        sample_members: ``(num_samples, num_images)`` members of each sample.
    """
    members = sample_members[0] if len(samples) else np.ones(len(labels), bool)
    num_pairs, num_images = count_pairs(labels[members]), int(members.sum())
    reason = _why_undefined(labels, num_pairs, pair_distance)
    if reason:
        return LabelSharpness(None, convention, num_pairs, num_images, pair=pair, reason=reason)
    if len(samples):
        values = [1 / float(line.min()) for line in samples]
        unlike = [line[chosen] for line, chosen in zip(samples, sample_members, strict=True)]
    else:
        values, unlike = [1 / pair_distance], [nearest]
    lines = [1 / distances for distances in unlike]
    percentiles = {
        f"{p:g}": float(np.mean([np.percentile(line, p) for line in lines])) for p in PERCENTILES
    } | {"mean": float(np.mean([line.mean() for line in lines]))}
    return LabelSharpness(
        value=float(np.mean(values)),
        convention=convention,
        num_pairs=num_pairs,
        num_images=num_images,
        pair=pair,
        pair_value=1 / pair_distance,
        sample_values=tuple(values),
        percentiles=percentiles,
        mean_unlike_distance=float(np.mean([distances.mean() for distances in unlike])),
    )


def permuted_sharpness(
    distances: FloatArray,
    indices: npt.NDArray[np.integer[Any]],
    labels: npt.NDArray[Any],
    members: npt.NDArray[np.bool_],
    *,
    seed: int = 0,
) -> float | None:
    """Label sharpness of the same images with their labels exchanged at random: mean over
    permutations.

    The closest pair with unlike labels is looked for among nearest neighbours, ``(num_images,
    num_neighbors)``, which misses it only where all neighbours of both its images have their own
    label; in each sample of ``members`` (num_samples, num_images), or in all. None where a
    permutation leaves none.
    """
    rng = np.random.default_rng(seed)
    first = np.repeat(np.arange(len(labels)), distances.shape[1])
    second, apart = indices.ravel(), distances.ravel()
    order = np.argsort(apart, kind="stable")
    order = order[np.isfinite(apart[order]) & (apart[order] > 0) & (second[order] >= 0)]
    found = []
    for mask in members if len(members) else [np.ones(len(labels), bool)]:
        close = order[mask[first[order]] & mask[second[order]]][:CLOSEST_PAIRS]
        own, place = labels[mask], np.cumsum(mask) - 1
        one, other = place[first[close]], place[second[close]]
        looked_through = [(one[few], other[few]) for few in (slice(FIRST_PAIRS), slice(None))]
        for _ in range(NUM_PERMUTATIONS):
            shuffled = rng.permutation(own)
            for left, right in looked_through:
                unlike = np.flatnonzero(shuffled[left] != shuffled[right])
                if len(unlike):
                    found.append(1 / float(apart[close[unlike[0]]]))
                    break
            else:
                return None
    return float(np.mean(found))


def _why_undefined(labels: npt.NDArray[Any], num_pairs: int, pair_distance: float) -> str | None:
    """Why no finite label sharpness exists, or None."""
    num_classes = len(np.unique(labels))
    reasons = {
        f"needs two classes, these {len(labels)} distinct images have {num_classes}": num_classes
        < 2,
        (
            "the other class is too rare for a sample; use all images (sharpness_sample=None)"
        ): num_pairs == 0,
        "two images with different labels differ by less than can be represented": pair_distance
        <= 0,
        "images with different labels differ by more than can be squared": not np.isfinite(
            pair_distance
        ),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def conversion(have: SharpnessConvention, to: SharpnessConvention) -> float:
    """Factor that takes a label sharpness from one pixel range, side and channel count to another.

    ``K ∝ 1/(range · √(height · width · channels))``: exact for the range and for repeated channels;
    for the side it neglects the blur of interpolation (a bilinear 28 → 224 shortens distances by
    about 8 %).

    Raises:
        DataError: If a side or range is missing, or the sample differs, which no factor makes up
            for.
    """
    if have.sample != to.sample:
        rule = "Label sharpness can only be converted between samples of equal size"
        found = f"{have.sample} and {to.sample} images"
        raise DataError(rule, found, "measure again with the same sharpness_sample")
    units = []
    for one in (have, to):
        if one.pixel_range is None or one.side is None:
            raise DataError("Converting label sharpness needs pixel range and side", str(one))
        (black, white), (height, width) = one.pixel_range, one.side
        units.append(
            (white - black) * np.sqrt(height * width * one.channels)
        )  # the largest distance
    return float(units[0] / units[1])
