"""Which images of a prepared dataset are trained and tested on: class pairs, group-wise split, nested sizes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class TrialData:
    """The arrays of one subset, shared read-only by all trials and measures of that subset.

    Attributes:
        train_images: ``(num_train, channels, height, width)``, uint8 or float32, pixels in [0, 255], in nested
            order: the training set of size N is the first N rows.
        train_labels: ``(num_train,)`` int64 in ``range(num_classes)``.
        test_images: ``(test_size, channels, height, width)``, same range.
        test_labels: ``(test_size,)`` int64.
        num_classes: number of classes of the task (2 for a class pair).
        data_fingerprint: fingerprint of the prepared dataset they come from.
    """

    train_images: NDArray[np.generic]
    train_labels: NDArray[np.int64]
    test_images: NDArray[np.generic]
    test_labels: NDArray[np.int64]
    num_classes: int
    data_fingerprint: str
