"""Compute classification scores from logits, and store logits as predictions."""

from __future__ import annotations

import io
import math

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from search_spaces.errors import CorruptStoreError
from tasks.array_types import BoolArray, Float32Array, Float64Array, Int64Array
from tasks.trials.records import ClassificationScores

NUM_BINS = 15
"""Number of bins of the calibration error, as in Guo et al. (ICML 2017). All bins have the
same width."""


def classification_scores(
    logits: Float32Array | Float64Array, labels: Int64Array, num_classes: int
) -> ClassificationScores:
    """Compute the classification scores of a network from its logits.

    Args:
        logits: The logits of the network, ``(num_images, num_outputs)``. A network may have
            more outputs than classes. If the largest logit is an output that is no class, the
            prediction is wrong.
        labels: The true labels, ``(num_images,)``, from 0 to ``num_classes - 1``.
        num_classes: Number of classes of the dataset or class pair.
    """
    logits = np.asarray(logits, np.float64)
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    is_correct = logits.argmax(axis=1) == labels
    accuracies: list[float | None] = []
    for label in range(num_classes):
        of_class = is_correct[labels == label]
        accuracies.append(float(of_class.mean()) if len(of_class) else None)
    return ClassificationScores(
        balanced_accuracy=float(np.mean([value for value in accuracies if value is not None])),
        auc=_auc(logits, labels, num_classes),
        per_class_accuracy=tuple(accuracies),
        calibration_error=calibration_error(probabilities.max(axis=1), is_correct),
    )


def area_under_curve(scores: NDArray[np.floating], positive: BoolArray) -> float | None:
    """Return the area under the ROC curve.

    All pairs of a positive and a negative image are compared. The area is the share of pairs
    in which the positive image has the higher score. A pair with equal scores counts half.

    Args:
        scores: Score of each image for the positive class, ``(num_images,)``.
        positive: Mask of the images of the positive class, ``(num_images,)``.

    Returns:
        The area; None if there is no positive or no negative image.
    """
    num_positive = int(positive.sum())
    num_negative = len(positive) - num_positive
    if num_positive == 0 or num_negative == 0:
        return None
    # The area is the Mann-Whitney U statistic, divided by the number of pairs. Each of several
    # equal scores gets the mean of their ranks. scipy.stats has this function too, but
    # importing it takes a second in each worker.
    _, value_index, counts = np.unique(scores, return_inverse=True, return_counts=True)
    mean_ranks = counts.cumsum() - (counts - 1) / 2
    rank_sum = float(mean_ranks[value_index][positive].sum())
    return (rank_sum - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative)


def calibration_error(confidences: NDArray[np.floating], is_correct: BoolArray) -> float:
    """Return the expected calibration error (ECE).

    The images are divided into bins by their confidence. The error is the mean, over bins, of
    the absolute difference between mean confidence and accuracy. Each bin is weighted by its
    number of images.

    Args:
        confidences: ``(num_images,)`` largest probability of each image.
        is_correct: Mask of the correctly classified images, ``(num_images,)``.
    """
    bins = np.minimum((confidences * NUM_BINS).astype(int), NUM_BINS - 1)
    error = 0.0
    for bin_index in np.unique(bins):
        in_bin = bins == bin_index
        gap = abs(confidences[in_bin].mean() - is_correct[in_bin].mean())
        error += float(gap * in_bin.mean())
    return error


def _auc(logits: Float64Array, labels: Int64Array, num_classes: int) -> float | None:
    """Return the area under the ROC curve.

    For more than two classes, each class has one curve, which separates its images from all
    other images. The function then returns the mean area.

    Returns:
        The area; None if a logit is not finite, or if fewer than two classes have images.
    """
    if not np.isfinite(logits).all():
        return None
    if num_classes == 2:
        return area_under_curve(logits[:, 1] - logits[:, 0], labels == 1)
    # The score that separates a class from all other classes is its log probability.
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    areas: list[float] = []
    for label in range(num_classes):
        area = area_under_curve(log_probabilities[:, label], labels == label)
        if area is not None:
            areas.append(area)
    if not areas:
        return None
    return math.fsum(areas) / len(areas)


def to_parquet(logits: Float32Array, labels: Int64Array, rows: Int64Array | None) -> bytes:
    """Return the content of a Parquet file with the predictions, one row per test image.

    The columns are ``image``, ``label``, and one float32 column for each output (``logit_0``,
    ``logit_1`` and so on). The logits are not rounded.

    Args:
        logits: The logits of the network, ``(num_images, num_outputs)``.
        labels: The true labels, ``(num_images,)``.
        rows: ``(num_images,)`` row of each image in the prepared dataset. The column ``image``
            contains these rows. If ``rows`` is None, the column contains the indices in the
            test set.
    """
    images = np.arange(len(labels)) if rows is None else rows
    table = pd.DataFrame({"image": images, "label": labels})
    names = [f"logit_{output}" for output in range(logits.shape[1])]
    outputs = pd.DataFrame(logits, columns=names)
    file = io.BytesIO()
    pd.concat([table, outputs], axis=1).to_parquet(file, index=False, compression="zstd")
    return file.getvalue()


def from_parquet(data: bytes) -> pd.DataFrame:
    """Return the table of predictions from the content of a file of :func:`to_parquet`.

    Raises:
        CorruptStoreError: ``data`` is not a Parquet file.
    """
    try:
        return pd.read_parquet(io.BytesIO(data))
    except (OSError, ValueError) as error:  # all errors of pyarrow have one of these types
        reason = str(error).splitlines()[0]
        raise CorruptStoreError(
            f"The stored predictions are not a Parquet file: {reason}",
            hint="Delete the file of predictions, and run the sweep again. isweep then "
            "computes the predictions again",
        ) from error
