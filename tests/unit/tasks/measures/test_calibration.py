import zlib

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from tasks.measures import calibration
from tasks.measures.calibration import calibrate
from tasks.measures.distances import Precision, as_source
from tasks.measures.manifolds import MANIFOLDS, gaussian, hypercube, hypersphere
from tasks.measures.shape import NAMES, shape_statistics


def embedded(points, num_columns=100, seed=1):
    """Points moved isometrically into more columns."""
    basis = np.linalg.qr(np.random.default_rng(seed).normal(size=(num_columns, points.shape[1])))[0]
    return points @ basis.T


@pytest.mark.parametrize(
    ("make", "dimension"), [(hypersphere, 10), (hypercube, 16), (gaussian, 20), (hypercube, 30)]
)
def test_corrects_what_the_raw_estimate_misses(make, dimension):
    record = calibrate(embedded(make(600, dimension, np.random.default_rng(0))))
    assert abs(record.value - dimension) < abs(record.uncorrected - dimension)
    assert record.value == pytest.approx(dimension, rel=0.12)


@pytest.fixture(scope="module")
def fresh():
    """True dimension, value and interval on fresh samples of shapes, ours and not by the fit's code."""
    found = []
    for family, make in MANIFOLDS.items():
        for dimension in (2, 5, 10, 20):
            rng = np.random.default_rng([dimension, zlib.crc32(family.encode())])
            record = calibrate(embedded(make(400, dimension, rng)))
            found.append((family, dimension, record.value, *record.interval))
    return found


def test_intervals_cover_fresh_samples_about_as_often_as_they_say(fresh):
    assert np.mean([low * 0.99 <= d <= high * 1.01 for _, d, _, low, high in fresh]) >= 0.85


def test_errors_on_fresh_samples_are_those_that_the_documents_say(fresh):
    assert np.mean([abs(value / d - 1) for _, d, value, _, _ in fresh]) <= 0.12


def test_statistics_of_directions_are_exact_for_even_clouds():
    """Moments of a normal cloud with covariance C: (tr C)² / tr C² and tr C³ tr C / (tr C²)²."""
    rng = np.random.default_rng(0)
    scales = np.array([3.0, 2.0, 1.0, 1.0, 0.5])
    points = rng.normal(size=(2000, 5)) * scales
    squared = cdist(points, points, "sqeuclidean")
    found = dict(zip(NAMES, shape_statistics(squared, rng), strict=True))
    first, second, third = ((scales ** (2 * power)).sum() for power in (1, 2, 3))
    overall = found["directions - 10"] + found["directions10 - d2"] + found["d2"]
    assert np.exp(overall) == pytest.approx(first**2 / second, rel=0.05)
    assert np.exp(found["unequal"]) == pytest.approx(third * first / second**2, rel=0.1)


def test_neighbours_directions_do_not_fall_short_where_their_distances_do():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(500, 40))
    found = dict(zip(NAMES, shape_statistics(cdist(points, points, "sqeuclidean"), rng), strict=True))
    assert np.exp(found["d2"]) < 30
    assert np.exp(found["directions10 - d2"] + found["d2"]) == pytest.approx(40, rel=0.05)


def test_distances_are_those_of_all_pairs_whatever_the_blocks(monkeypatch):
    points = np.random.default_rng(0).normal(size=(130, 7))
    kept = np.arange(0, 130, 2)
    for rows in (512, 16):
        monkeypatch.setattr(calibration, "BLOCK_ROWS", rows)
        squared = calibration._all_squared_distances(as_source(points), kept, Precision(dtype="float64"))
        np.testing.assert_allclose(squared, cdist(points[kept], points[kept], "sqeuclidean"), atol=1e-10)


def test_a_high_dimension_is_noted_as_resting_on_the_simulated_shapes():
    low, high = (calibrate(hypercube(300, d, np.random.default_rng(0))).notes for d in (5, 30))
    assert not any("above 16 dimensions" in note for note in low)
    assert any("above 16 dimensions the correction rests on the simulated shapes" in note for note in high)


def test_more_dimensions_than_any_simulated_set_are_noted():
    assert "more than 128 dimensions" in calibrate(gaussian(200, 600, np.random.default_rng(0))).notes[-1]


def test_does_not_depend_on_unit_or_embedding():
    points = hypersphere(300, 5, np.random.default_rng(0))
    one = calibrate(embedded(points, 50, seed=1))
    other = calibrate(embedded(1000 * points + 3, 200, seed=2))
    assert other.value == pytest.approx(one.value, rel=1e-3)
    assert other.interval == pytest.approx(one.interval, rel=1e-3)


def test_is_seeded_and_json():
    points = embedded(hypersphere(200, 4, np.random.default_rng(0)))
    first, again = (calibrate(points, seed=5) for _ in range(2))
    assert first == again
    assert first.to_json()["interval"] == list(first.interval)
    assert (first.families, first.num_simulations) == ({}, 2185)


def test_larger_data_are_thinned():
    record = calibrate(embedded(hypersphere(500, 3, np.random.default_rng(0))), max_points=300)
    assert record.num_points == 300
    assert record.value == pytest.approx(3, rel=0.1)


def test_never_above_the_number_of_columns():
    record = calibrate(hypercube(200, 3, np.random.default_rng(0)))
    assert record.interval[1] <= 3 + 1e-6


@pytest.mark.parametrize(
    ("points", "reason"),
    [
        (np.random.default_rng(0).random((79, 3)), "needs at least 80 distinct points, has 79"),
        (np.eye(100), "zero or all equal"),
    ],
)
def test_undefined_corrections_say_why(points, reason):
    record = calibrate(points)
    assert record.value is None
    assert reason in record.to_json()["reason"]


def test_shapes_unlike_all_families_are_noted():
    rng = np.random.default_rng(0)
    clusters = rng.normal(size=(300, 30)) * 10.0 ** rng.uniform(-4, 4, (300, 1))
    assert "unlike those of every simulated family" in calibrate(clusters).notes[0]
