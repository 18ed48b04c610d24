"""How well a network's outputs tell the classes apart, from its logits on the test images."""

from __future__ import annotations

import io
import math

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from search_spaces.errors import CorruptStoreError
from tasks.trials.records import ClassificationScores

NUM_BINS = 15
"""Bins of equal width of the calibration error, as Guo et al. (ICML 2017)."""


def classification_scores(
    logits: NDArray[np.float32] | NDArray[np.float64], labels: NDArray[np.int64], num_classes: int
) -> ClassificationScores:
    """Score logits ``(num_images, num_outputs)`` against labels ``(num_images,)``.

    Outputs beyond the classes count as answers, always wrong.
    """
    logits = np.asarray(logits, np.float64)
    scores = np.exp(logits - logits.max(axis=1, keepdims=True))
    scores /= scores.sum(axis=1, keepdims=True)
    answers = logits.argmax(axis=1)
    hits = answers == labels
    per_class = tuple(
        float(hits[labels == label].mean()) if (labels == label).any() else None
        for label in range(num_classes)
    )
    present = [value for value in per_class if value is not None]
    return ClassificationScores(
        balanced_accuracy=float(np.mean(present)),
        auc=_auc(logits, labels, num_classes),
        per_class_accuracy=per_class,
        calibration_error=calibration_error(scores.max(axis=1), hits),
    )


def area_under_curve(scores: NDArray[np.floating], positive: NDArray[np.bool_]) -> float | None:
    """Return the area under the ROC curve: how often a positive scores above a negative, ties half.

    None where one of the two classes is missing.
    """
    num_positive, num_negative = int(positive.sum()), int((~positive).sum())
    if not num_positive or not num_negative:
        return None
    # Ranks from 1, the mean of their places for ties; scipy.stats would cost each worker a second
    # to import.
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = float((counts.cumsum() - (counts - 1) / 2)[place][positive].sum())
    return (ranks - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative)


def calibration_error(confidences: NDArray[np.floating], hits: NDArray[np.bool_]) -> float:
    """Return the expected calibration error: mean gap of confidence and accuracy over bins of
    confidence.
    """
    bins = np.minimum((confidences * NUM_BINS).astype(int), NUM_BINS - 1)
    gaps = (
        abs(confidences[bins == b].mean() - hits[bins == b].mean()) * (bins == b).mean()
        for b in np.unique(bins)
    )
    return float(sum(gaps))


def _auc(logits: NDArray[np.float64], labels: NDArray[np.int64], num_classes: int) -> float | None:
    if not np.isfinite(logits).all():
        return None
    if num_classes == 2:
        return area_under_curve(logits[:, 1] - logits[:, 0], labels == 1)
    # One class against the rest by its probability, averaged over the classes that there are.
    shifted = logits - logits.max(axis=1, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    areas = [area_under_curve(logs[:, label], labels == label) for label in range(num_classes)]
    found = [area for area in areas if area is not None]
    return math.fsum(found) / len(found) if found else None


def to_parquet(
    logits: NDArray[np.float32], labels: NDArray[np.int64], rows: NDArray[np.int64] | None
) -> bytes:
    """Return predictions as a Parquet file, one row per test image.

    Its columns are ``image`` (its row in the prepared dataset, or its place in the test set where
    that is not known), ``label``, and one float32 ``logit_0``, … per output, bit by bit as the
    network gave them.
    """
    images = np.arange(len(labels)) if rows is None else rows
    table = pd.DataFrame({"image": images, "label": labels})
    outputs = pd.DataFrame(logits, columns=[f"logit_{place}" for place in range(logits.shape[1])])
    file = io.BytesIO()
    pd.concat([table, outputs], axis=1).to_parquet(file, index=False, compression="zstd")
    return file.getvalue()


def from_parquet(data: bytes) -> pd.DataFrame:
    """Return the table that :func:`to_parquet` wrote.

    Raises:
        CorruptStoreError: when it is none.
    """
    try:
        return pd.read_parquet(io.BytesIO(data))
    except (OSError, ValueError) as error:  # pyarrow's errors are both
        first = str(error).splitlines()[0]
        raise CorruptStoreError("Kept predictions must be a Parquet file", first) from error
