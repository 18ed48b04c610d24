"""Comparison of two networks on the same test images, by McNemar's test and the bootstrap.

McNemar's test compares the accuracies. The bootstrap gives an interval of the difference of
losses. A sweep with ``predictions: true`` stores each network's logits for each test image. If
both networks are tested on the same images, differences between images cancel. Such a
comparison therefore needs a much smaller test set than a comparison on different images.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import logsumexp
from scipy.stats import binomtest, norm

from orchestrator.analysis.inference import Interval

Array = NDArray[np.float64]

ALPHA, POWER = 0.05, 0.80
"""Significance level and power for which the size of a test set is computed. With this power,
8 of 10 studies detect the difference."""
BOOTSTRAPS = 2000
"""Number of resamples of the test images. The ends of a 95 % interval then have an error of
about 2 % of the width of the interval."""
LABEL_COLUMN, IMAGE_COLUMN, LOGIT_PREFIX = "label", "image", "logit_"


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedComparison:
    """The differences between two networks on the same test images, at one train size.

    Attributes:
        num_images: Number of test images with predictions of both networks.
        num_seeds: Number of seeds with trainings of both networks.
        only_first_right, only_second_right: Number of test images on which only the first, or
            only the second, network is right. If there are several seeds, number of test
            images on which this network is right more often than the other one.
        accuracy_difference: Accuracy of the first network minus accuracy of the second
            network.
        p_value: McNemar's exact p-value for ``only_first_right`` and ``only_second_right``.
        loss_difference: Mean test loss of the second network minus mean test loss of the first
            one, in nat.
        loss_interval: 95 % bootstrap interval of ``loss_difference`` over test images. It does
            not include the variation between trainings.
        images_needed: Number of test images with which 8 of 10 studies with as many seeds
            would detect the difference by McNemar's test. None if ``only_first_right`` and
            ``only_second_right`` are equal.
    """

    num_images: int
    num_seeds: int
    only_first_right: int
    only_second_right: int
    accuracy_difference: float
    p_value: float
    loss_difference: float
    loss_interval: Interval
    images_needed: int | None


@dataclass(frozen=True, slots=True)
class ImageScores:
    """Scores of one network for each training and test image.

    Attributes:
        is_right: 1 if the prediction is right, else 0, ``(num_seeds, num_images)``.
        losses: Loss in nat, ``(num_seeds, num_images)``.
    """

    is_right: Array
    losses: Array


def paired_comparison(
    first: pd.DataFrame, second: pd.DataFrame, *, seed_column: str = "seed"
) -> PairedComparison | None:
    """Compare two networks on the images and seeds for which both networks have predictions.

    Args:
        first: Predictions of the first network at one train size, with one row per seed and
            test image. The columns are ``seed``, ``image``, ``label`` and ``logit_0``, …, one
            per class.
        second: Predictions of the second network, with the same columns.
        seed_column: Name of the column of seeds.

    Returns:
        The comparison. None if the networks have no common seed or image, or if a training has
        no prediction of a common image.
    """
    seeds = sorted(set(first[seed_column]) & set(second[seed_column]))
    images = sorted(set(first[IMAGE_COLUMN]) & set(second[IMAGE_COLUMN]))
    if not seeds or not images:
        return None
    ours, theirs = (
        _image_scores(predictions, seeds, images, seed_column) for predictions in (first, second)
    )
    if ours is None or theirs is None:
        return None
    wins = ours.is_right - theirs.is_right
    # An image is one observation, whatever the number of seeds is.
    by_image = np.sign(wins.sum(axis=0))
    num_first, num_second = int((by_image > 0).sum()), int((by_image < 0).sum())
    loss_differences = (theirs.losses - ours.losses).mean(axis=0)
    difference = (num_first - num_second) / len(images)
    return PairedComparison(
        num_images=len(images),
        num_seeds=len(seeds),
        only_first_right=num_first,
        only_second_right=num_second,
        accuracy_difference=float(wins.mean()),
        p_value=mcnemar_p(num_first, num_second),
        loss_difference=float(loss_differences.mean()),
        loss_interval=bootstrap_interval(loss_differences),
        images_needed=paired_test_size((num_first + num_second) / len(images), difference),
    )


def _image_scores(
    predictions: pd.DataFrame, seeds: list[object], images: list[object], seed_column: str
) -> ImageScores | None:
    """Return the scores of a network for each seed and image; None if a prediction is missing."""
    logit_columns = [name for name in predictions if str(name).startswith(LOGIT_PREFIX)]
    logits = predictions[logit_columns].dropna(axis=1, how="all").to_numpy(dtype=float)
    labels = predictions[LABEL_COLUMN].to_numpy(dtype=int)
    # Cross-entropy is logsumexp(logits) − logit of the label.
    of_label = np.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    scores = pd.DataFrame(
        {
            seed_column: predictions[seed_column].to_numpy(),
            IMAGE_COLUMN: predictions[IMAGE_COLUMN].to_numpy(),
            "is_right": (logits.argmax(axis=1) == labels).astype(float),
            "loss": logsumexp(logits, axis=1) - of_label,
        }
    )
    by_place = scores.groupby([seed_column, IMAGE_COLUMN])[["is_right", "loss"]].mean()
    right = by_place["is_right"].unstack().reindex(index=seeds, columns=images)
    losses = by_place["loss"].unstack().reindex(index=seeds, columns=images)
    if right.isna().to_numpy().any():
        return None
    return ImageScores(right.to_numpy(dtype=float), losses.to_numpy(dtype=float))


def mcnemar_p(only_first_right: int, only_second_right: int) -> float:
    """Return McNemar's exact two-sided p-value; 1 if the networks agree on every image."""
    # Images on which both networks are right, or both are wrong, do not show a difference.
    num_discordant = only_first_right + only_second_right
    if num_discordant == 0:
        return 1.0
    return float(binomtest(only_first_right, num_discordant, 0.5).pvalue)


def bootstrap_interval(differences: Array) -> Interval:
    """Return the 95 % percentile bootstrap interval of a mean over images, with a fixed seed."""
    generator = np.random.default_rng(0)
    num = len(differences)
    # Each resample draws images with replacement, as many as there are images.
    means = [differences[generator.integers(0, num, num)].mean() for _ in range(BOOTSTRAPS)]
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def paired_test_size(discordant_share: float, difference: float) -> int | None:
    """Return the number of test images with which McNemar's test detects a difference.

    The number is n = (z₁₋α⸝₂ √ψ + z_power √(ψ − δ²))² / δ² (Connor 1987).

    Args:
        discordant_share: Share ψ of images on which only one network is right.
        difference: Difference δ of the accuracies.

    Returns:
        The number of images; None if the difference is 0.
    """
    if difference == 0:
        return None
    spread = np.sqrt(max(discordant_share - difference**2, 0.0))
    reach = norm.ppf(1 - ALPHA / 2) * np.sqrt(discordant_share) + norm.ppf(POWER) * spread
    return int(np.ceil(reach**2 / difference**2))


def independent_test_size(first: float, second: float) -> int | None:
    """Return the number of test images that detects a difference of two accuracies.

    The errors of the two networks are assumed to be independent: n = (z₁₋α⸝₂ + z_power)² (p₁
    (1 − p₁) + p₂ (1 − p₂)) / (p₁ − p₂)². If networks are tested on the same images, their
    errors are usually positively correlated. McNemar's test then needs fewer images.

    Returns:
        The number of images; None if an accuracy is missing or both accuracies are equal.
    """
    if pd.isna(first) or pd.isna(second) or first == second:
        return None
    quantiles = norm.ppf(1 - ALPHA / 2) + norm.ppf(POWER)
    variance = first * (1 - first) + second * (1 - second)
    return int(np.ceil(quantiles**2 * variance / (first - second) ** 2))
