"""What every registered estimator of intrinsic dimension promises; a row in the table gets it
tested."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tasks.measures.calibration import MANIFOLDS
from tasks.measures.estimators import ESTIMATORS
from tasks.measures.measure import intrinsic_dimension


def points_on_sphere(dimension: int, num_points: int = 800, seed: int = 0) -> np.ndarray:
    """Points of known dimension, turned into 20 dimensions: distances are those on the sphere."""
    rng = np.random.default_rng(seed)
    sphere = MANIFOLDS["hypersphere"](num_points, dimension, rng)
    turn, _ = np.linalg.qr(rng.normal(size=(20, dimension + 1)))
    return sphere @ turn.T


def measure(name: str, points: np.ndarray, **options):
    return intrinsic_dimension(points, estimators=(name,), **options)[name]


@pytest.mark.parametrize("name", ESTIMATORS)
class TestEstimator:
    @pytest.mark.parametrize("dimension", [2, 4])
    def test_it_finds_a_known_dimension(self, name, dimension):
        record = measure(name, points_on_sphere(dimension))
        assert record.value == pytest.approx(dimension, rel=0.25)
        assert record.reason is None
        assert record.num_points > 0

    def test_more_dimensions_give_more(self, name):
        values = [measure(name, points_on_sphere(dimension)).value for dimension in (1, 3, 6)]
        assert values == sorted(values)

    def test_unit_and_order_do_not_matter(self, name):
        points = points_on_sphere(3)
        expected = measure(name, points).value
        assert measure(name, points * 1000).value == pytest.approx(expected, rel=1e-4)
        assert measure(name, points[::-1]).value == pytest.approx(expected, rel=1e-4)

    def test_the_record_is_named_reproducible_and_finite_json(self, name):
        points = points_on_sphere(2, 300)
        record = measure(name, points, seed=3)
        assert record.estimator == name
        assert record.convention
        assert record.std_error is None or 0 < record.std_error < np.inf
        assert json.dumps(record.to_json(), allow_nan=False)
        assert measure(name, points, seed=3) == record

    @pytest.mark.parametrize("num_points", [1, 2])
    def test_too_few_points_are_undefined_with_a_reason(self, name, num_points):
        record = measure(name, points_on_sphere(2, num_points))
        assert record.value is None
        assert record.reason
        assert json.dumps(record.to_json(), allow_nan=False)
