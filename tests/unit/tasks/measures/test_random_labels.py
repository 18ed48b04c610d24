"""Test the remark on labels that look as if they had been drawn at random."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from tasks.measures.measure import measure_array


@pytest.fixture(scope="module")
def digits():
    """Return images of four digits with their labels, sorted by label."""
    data = load_digits(n_class=4)
    order = np.argsort(data.target, kind="stable")
    return (data.images[order] * 15.9).astype(np.uint8), data.target[order]


def remarks(images, labels):
    """Return the remarks on labels."""
    notes = measure_array(images, labels).notes
    return [note for note in notes if note.startswith("The labels look random")]


def test_permuted_labels_are_reported_with_the_range_of_random_labels(digits):
    images, labels = digits
    (remark,) = remarks(images, np.random.default_rng(5).permutation(labels))
    assert "of the 20 nearest neighbors of an image, on average 25.4% have the same label" in remark
    assert "With random labels, it would be 24.1% to 25.8% (95 % range). Check" in remark
    assert "whether the file of labels is in the right order" in remark


def test_real_labels_are_not_reported(digits):
    images, labels = digits
    assert remarks(images, labels) == []
    assert remarks(images, labels % 2) == []
    half_wrong = np.where(
        np.arange(len(labels)) % 2, labels, np.random.default_rng(0).permutation(labels)
    )
    assert remarks(images, half_wrong) == []


@pytest.mark.parametrize("num_images", [1000, 2000])
def test_difficult_images_without_similar_neighbors_are_not_reported(num_images):
    """No classifier can be right on more than about 70 % of these images."""
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 2, num_images)
    direction = rng.normal(size=1024)
    direction /= np.linalg.norm(direction)
    noise = rng.normal(size=(num_images, 1024))
    images = noise + np.outer(labels - 0.5, 1.05 * direction)
    assert remarks(images.reshape(-1, 32, 32), labels) == []


def test_few_images_and_huge_values_are_not_reported(digits):
    images, labels = digits
    wrong = np.random.default_rng(5).permutation(labels)
    assert remarks(images[::4], wrong[::4]) == []
    assert remarks(images, np.arange(len(images)) // 15) == []
    assert remarks(images * 1e200, labels) == []
