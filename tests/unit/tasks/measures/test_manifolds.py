import numpy as np
import pytest

from search_spaces.errors import DataError
from tasks.measures.calibration import MANIFOLDS, cosine_patterns, hypersphere, swiss_roll
from tasks.measures.measure import intrinsic_dimension, measure_array


@pytest.mark.parametrize("name", MANIFOLDS)
def test_points_are_finite_and_seeded(name):
    one, other = (MANIFOLDS[name](50, 3, np.random.default_rng(7)) for _ in range(2))
    assert one.shape[0] == 50
    assert np.isfinite(one).all()
    assert (one == other).all()


@pytest.mark.parametrize("name", MANIFOLDS)
def test_low_dimensions_are_found_by_the_estimator(name):
    points = MANIFOLDS[name](2000, 2, np.random.default_rng(0))
    assert intrinsic_dimension(points)["mle"].details["value_k_minus_1"] == pytest.approx(2, abs=0.3)


def test_spheres_have_radius_one():
    assert np.linalg.norm(hypersphere(20, 4, np.random.default_rng(0)), axis=1) == pytest.approx(np.ones(20))


def test_a_roll_needs_two_dimensions():
    with pytest.raises(DataError, match="dimension 2 or more; found: 1"):
        swiss_roll(10, 1, np.random.default_rng(0))


def manifold_images(num_images: int, dimension: int, side: int, gap: float):
    """Images on a flat manifold of the dimension, labelled by the sign of the first weight, and K_F's bound.

    The bound is 1 / (2 gap · norm of the first pattern), up to the rounding of pixels.
    """
    patterns = cosine_patterns(dimension, side) * (127 / dimension)
    rng = np.random.default_rng(0)
    labels = np.arange(num_images) % 2
    weights = rng.uniform(-1, 1, (num_images, dimension))
    weights[:, 0] = rng.uniform(gap, 1, num_images) * np.where(labels == 1, 1, -1)
    images = np.rint(127.5 + weights @ patterns.reshape(dimension, -1)).astype(np.uint8)
    return images.reshape(-1, 1, side, side), labels, 1 / (2 * gap * np.linalg.norm(patterns[0]))


def test_images_have_the_dimension_and_sharpness_they_are_made_for():
    images, labels, bound = manifold_images(800, 3, 32, 0.2)
    assert images.dtype == np.uint8
    assert images.shape == (800, 1, 32, 32)
    assert np.bincount(labels).tolist() == [400, 400]
    record = measure_array(images, labels)
    assert record.d_data["mle"].details["value_k_minus_1"] == pytest.approx(3, abs=0.3)
    assert 0.5 * bound < record.label_sharpness.value < 1.02 * bound


def test_patterns_are_orthogonal():
    patterns = cosine_patterns(9, 16).reshape(9, -1)
    gram = patterns @ patterns.T
    assert np.abs(gram - np.diag(gram.diagonal())).max() < 1e-9


def test_refuses_more_dimensions_than_patterns():
    with pytest.raises(DataError, match="A side of 3 pixels has 8 patterns; found: 9"):
        cosine_patterns(9, 3)
