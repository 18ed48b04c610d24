"""Check whether labels are related to the images, or look as if they had been drawn at random.

A file of labels may be sorted wrongly. Each image then has the label of another image. Two
statistics are compared with random permutations of the labels:

- the share of nearest neighbors that have the label of the image (Schilling 1986),
- the distances between the mean images of the classes.

Real labels of difficult images may be related to only one of them. So isweep reports labels
only if neither statistic differs from random labels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tasks.array_types import AnyArray, FloatArray, IntArray
from tasks.measures.distances import BlockSource, flatten
from tasks.measures.neighbor_tables import NeighborTable

MIN_IMAGES = 200
"""Smallest number of images for this check. With fewer images, many real labels cannot be
distinguished from random labels."""
MIN_IMAGES_PER_CLASS = 20
"""Smallest mean number of images per class for this check, for the same reason."""
NUM_PERMUTATIONS = 200
"""Number of random permutations of the labels."""
RANDOM_RANGE = (2.5, 97.5)
"""Percentiles of the range that contains 95 % of all random labels."""
MAX_IMAGES_IN_MEANS = 1000
MAX_PIXELS_IN_MEANS = 4096
"""Largest numbers of images and of pixels from which the mean images are computed. They limit
the memory to 32 MB."""


@dataclass(frozen=True)
class _Comparison:
    """A statistic of the labels, and its 95 % range for random labels."""

    value: float
    low: float
    high: float


def note_on_random_labels(
    source: BlockSource, source_rows: IntArray, labels: IntArray, table: NeighborTable
) -> str | None:
    """Return a sentence if the labels look random, otherwise None.

    Args:
        source: Source of all images.
        source_rows: ``(num_images,)`` source row of each distinct image.
        labels: ``(num_images,)`` label of each distinct image.
        table: Nearest neighbors of the distinct images.
    """
    num_images = len(labels)
    class_indices = np.unique(labels, return_inverse=True)[1]
    num_classes = int(class_indices.max(initial=0)) + 1
    if num_classes < 2 or num_images < max(MIN_IMAGES, MIN_IMAGES_PER_CLASS * num_classes):
        return None
    neighbors = table.neighbor_positions
    agreement = _compare(
        class_indices, lambda drawn: float((drawn[neighbors] == drawn[:, None]).mean())
    )
    if not agreement.low <= agreement.value <= agreement.high:
        return None
    products = _centered_products(source, source_rows)
    chosen = class_indices[_chosen_positions(num_images)]
    spread = _compare(chosen, lambda drawn: _spread_of_means(drawn, products))
    if spread.value > spread.high:
        return None
    return (
        f"The labels look random: of the {neighbors.shape[1]} nearest neighbors of "
        f"an image, on average {agreement.value:.1%} have the same label as the image. With "
        f"random labels, it would be {agreement.low:.1%} to {agreement.high:.1%} (95 % range). "
        "Check whether "
        "each image has its own label, for example whether the file of labels is in the right "
        "order. If the labels are right, distances between pixels hardly show the classes."
    )


def _compare(class_indices: IntArray, statistic: Callable[[IntArray], float]) -> _Comparison:
    """Compare a statistic of the labels with random permutations, drawn with a fixed seed."""
    rng = np.random.default_rng(0)
    random_values = [statistic(rng.permutation(class_indices)) for _ in range(NUM_PERMUTATIONS)]
    low, high = np.percentile(random_values, RANDOM_RANGE)
    return _Comparison(statistic(class_indices), float(low), float(high))


def _chosen_positions(num_images: int) -> IntArray:
    """Return the positions of the images from which the mean images are computed, ascending.

    They are drawn, because the images may be sorted by class.
    """
    rng = np.random.default_rng(0)
    size = min(num_images, MAX_IMAGES_IN_MEANS)
    return np.sort(rng.choice(num_images, size=size, replace=False))


def _centered_products(source: BlockSource, source_rows: IntArray) -> FloatArray:
    """Return the scalar products of the chosen images, after their mean was subtracted."""
    step = -(-int(np.prod(source.row_shape)) // MAX_PIXELS_IN_MEANS)
    rows: list[AnyArray] = []
    for row in source_rows[_chosen_positions(len(source_rows))].tolist():
        rows.append(flatten(source.read(row, row + 1))[0, ::step].astype(np.float64))
    pixels = np.stack(rows)
    # Without this step, the squares of large floats would overflow.
    pixels /= np.abs(pixels).max(initial=0.0) or 1.0
    pixels -= pixels.mean(axis=0)
    products: FloatArray = pixels @ pixels.T
    return products


def _spread_of_means(class_indices: IntArray, products: FloatArray) -> float:
    """Return the sum over classes of the number of images times the squared norm of their mean."""
    is_in_class = (class_indices[:, None] == np.arange(class_indices.max() + 1)).astype(float)
    num_per_class = np.maximum(is_in_class.sum(axis=0), 1)
    return float((((products @ is_in_class) * is_in_class).sum(axis=0) / num_per_class).sum())
