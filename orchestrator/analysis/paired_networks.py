"""Two networks compared on the same test images: accuracy by McNemar's test, loss by the bootstrap.

A sweep with ``predictions: true`` stores every network's logits of each test image. Both networks
then see the same images, so what is common to an image cancels, and a much smaller test set tells
them apart than if each had its own.
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
"""Level and power of the comparison that a test set is sized for: 8 of 10 studies detect it."""
BOOTSTRAPS = 2000
"""Resamples of the test images; the ends of a 95 % interval then move by some 2 % of its width."""
LABEL_COLUMN, IMAGE_COLUMN, LOGIT_PREFIX = "label", "image", "logit_"


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedComparison:
    """How two networks differ on the same test images, at one train size.

    Attributes:
        num_images: Test images that both networks have predictions of.
        num_seeds: Trainings of each network that are paired by seed.
        only_first_right, only_second_right: Pairs of predictions, over images and seeds, where only
            one network is right.
        accuracy_difference: Accuracy of the first network minus that of the second.
        p_value: McNemar's exact p-value over images. With several seeds, an image counts once, for
            the network that is right more often.
        loss_difference: Mean test loss of the second network minus that of the first, in nat.
        loss_interval: Its 95 % bootstrap interval over test images, for these very trainings.
        images_needed: Size of a test set that tells the accuracies apart in 8 of 10 studies. None
            if they are equal.
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
    """Scores of one network per training and test image, ``(num_seeds, num_images)``."""

    is_right: Array
    losses: Array


def paired_comparison(
    first: pd.DataFrame, second: pd.DataFrame, *, seed_column: str = "seed"
) -> PairedComparison | None:
    """Return how two networks differ on the images and seeds that both have predictions of.

    Args:
        first: Predictions of the first network at one train size: a row per seed and test image
            with ``seed``, ``image``, ``label`` and a ``logit_0``, … per class.
        second: Those of the second network.
        seed_column: Name of the column of seeds.

    Returns:
        The comparison, or None if they share no seed or no image.
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
    by_image = np.sign(wins.sum(axis=0))
    num_first, num_second = int((by_image > 0).sum()), int((by_image < 0).sum())
    loss_differences = (theirs.losses - ours.losses).mean(axis=0)
    difference = float(wins.mean())
    return PairedComparison(
        num_images=len(images),
        num_seeds=len(seeds),
        only_first_right=int((wins > 0).sum()),
        only_second_right=int((wins < 0).sum()),
        accuracy_difference=difference,
        p_value=mcnemar_p(num_first, num_second),
        loss_difference=float(loss_differences.mean()),
        loss_interval=bootstrap_interval(loss_differences),
        images_needed=paired_test_size(float((wins != 0).mean()), difference),
    )


def _image_scores(
    predictions: pd.DataFrame, seeds: list[object], images: list[object], seed_column: str
) -> ImageScores | None:
    """Return a network's scores by seed and image; None if a training lacks an image."""
    logit_columns = [name for name in predictions if str(name).startswith(LOGIT_PREFIX)]
    logits = predictions[logit_columns].dropna(axis=1, how="all").to_numpy(dtype=float)
    labels = predictions[LABEL_COLUMN].to_numpy(dtype=int)
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
    num_discordant = only_first_right + only_second_right
    if num_discordant == 0:
        return 1.0
    return float(binomtest(only_first_right, num_discordant, 0.5).pvalue)


def bootstrap_interval(differences: Array) -> Interval:
    """Return the 95 % percentile interval of a mean over images, by a fixed stream of draws."""
    generator = np.random.default_rng(0)
    num = len(differences)
    means = [differences[generator.integers(0, num, num)].mean() for _ in range(BOOTSTRAPS)]
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def paired_test_size(discordant_share: float, difference: float) -> int | None:
    """Return how many test images McNemar's test needs to detect a difference of accuracies.

    n = (z₁₋α⸝₂ √ψ + z_power √(ψ − δ²))² / δ², where ψ is the share of images on which only one
    network is right and δ the difference (Connor 1987).

    Returns:
        The number of images, or None if the difference is 0.
    """
    if difference == 0:
        return None
    spread = np.sqrt(max(discordant_share - difference**2, 0.0))
    reach = norm.ppf(1 - ALPHA / 2) * np.sqrt(discordant_share) + norm.ppf(POWER) * spread
    return int(np.ceil(reach**2 / difference**2))


def independent_test_size(first: float, second: float) -> int | None:
    """Return how many test images tell two accuracies apart if networks err independently.

    n = (z₁₋α⸝₂ + z_power)² (p₁ (1 − p₁) + p₂ (1 − p₂)) / (p₁ − p₂)², the usual size for two
    independent proportions. Both networks see the same images, whose errors usually go together, so
    McNemar's test needs no more.

    Returns:
        The number of images, or None if an accuracy is missing or both are equal.
    """
    if pd.isna(first) or pd.isna(second) or first == second:
        return None
    quantiles = norm.ppf(1 - ALPHA / 2) + norm.ppf(POWER)
    variance = first * (1 - first) + second * (1 - second)
    return int(np.ceil(quantiles**2 * variance / (first - second) ** 2))
