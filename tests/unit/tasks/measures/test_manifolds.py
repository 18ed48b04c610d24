import numpy as np
import pytest

from search_spaces.errors import DataError
from tasks.measures.intrinsic_dimension import intrinsic_dimension
from tasks.measures.manifolds import MANIFOLDS, cosine_patterns, hypersphere, manifold_images, swiss_roll
from tasks.measures.measure import measure_array


@pytest.mark.parametrize("name", MANIFOLDS)
def test_points_are_finite_and_seeded(name):
    one, other = (MANIFOLDS[name](50, 3, np.random.default_rng(7)) for _ in range(2))
    assert one.shape[0] == 50
    assert np.isfinite(one).all()
    assert (one == other).all()


@pytest.mark.parametrize("name", MANIFOLDS)
def test_low_dimensions_are_found_by_the_estimator(name):
    points = MANIFOLDS[name](2000, 2, np.random.default_rng(0))
    assert intrinsic_dimension(points, estimators=["mle_k_minus_1"])["mle_k_minus_1"].value == pytest.approx(
        2, abs=0.3
    )


def test_spheres_have_radius_one():
    assert np.linalg.norm(hypersphere(20, 4, np.random.default_rng(0)), axis=1) == pytest.approx(np.ones(20))


def test_a_roll_needs_two_dimensions():
    with pytest.raises(DataError, match="dimension 2 or more; found: 1"):
        swiss_roll(10, 1, np.random.default_rng(0))


def test_images_have_the_dimension_and_sharpness_they_are_made_for():
    images, labels, bound = manifold_images(800, 3, side=32, gap=0.2)
    assert images.dtype == np.uint8
    assert images.shape == (800, 1, 32, 32)
    assert np.bincount(labels).tolist() == [400, 400]
    record = measure_array(images, labels)
    assert record.d_data["mle_k_minus_1"].value == pytest.approx(3, abs=0.3)
    assert 0.5 * bound < record.label_sharpness.value < 1.02 * bound


def test_patterns_are_orthogonal():
    patterns = cosine_patterns(9, 16).reshape(9, -1)
    gram = patterns @ patterns.T
    assert np.abs(gram - np.diag(gram.diagonal())).max() < 1e-9


def test_refuses_more_dimensions_than_patterns():
    with pytest.raises(DataError, match="A side of 3 pixels has 8 patterns; found: 9"):
        manifold_images(10, 9, side=3)
