import numpy as np
import pytest

from tasks.calibration import MODEL_SPREAD, _grid, calibrate
from tasks.manifolds import MANIFOLDS, gaussian, hypercube, hypersphere

FLAT = ("hypersphere", "hypercube", "gaussian", "ball", "curled")


def embedded(points, num_columns=100, seed=1):
    """Points moved isometrically into more columns."""
    basis = np.linalg.qr(np.random.default_rng(seed).normal(size=(num_columns, points.shape[1])))[0]
    return points @ basis.T


@pytest.mark.parametrize(
    ("make", "dimension"), [(hypersphere, 10), (hypercube, 16), (gaussian, 6), (hypercube, 30)]
)
def test_corrects_what_the_raw_estimate_misses(make, dimension):
    record = calibrate(embedded(make(600, dimension, np.random.default_rng(0))), families=FLAT)
    assert abs(record.value - dimension) < abs(record.uncorrected - dimension)
    assert record.value == pytest.approx(dimension, rel=0.12)


def test_intervals_cover_fresh_samples_as_often_as_they_say():
    # Dimensions between those of the grid, so that interpolation is on trial too.
    covered, widths = [], []
    for name in ("hypersphere", "hypercube", "gaussian", "curled"):
        for dimension in (2, 5, 10, 20):
            points = embedded(MANIFOLDS[name](400, dimension, np.random.default_rng(dimension + 1000)))
            low, high = calibrate(points, families=FLAT).interval
            covered.append(low - 0.02 <= dimension <= high + 0.02)
            widths.append(np.log(high / low))
    assert np.mean(covered) >= 0.85
    assert np.mean(widths) < 0.6


def test_does_not_depend_on_unit_or_embedding():
    points = hypersphere(300, 5, np.random.default_rng(0))
    one = calibrate(embedded(points, 50, seed=1), families=FLAT)
    other = calibrate(embedded(1000 * points + 3, 200, seed=2), families=FLAT)
    assert other.value == pytest.approx(one.value, rel=1e-3)
    assert other.interval == pytest.approx(one.interval, rel=1e-3)


def test_is_seeded_and_json():
    points = embedded(hypersphere(200, 4, np.random.default_rng(0)))
    first, again = (calibrate(points, families=FLAT, seed=5) for _ in range(2))
    assert first == again
    assert first.to_json()["interval"] == list(first.interval)
    assert sum(first.families.values()) == pytest.approx(1)
    assert max(first.families, key=first.families.get) == "hypersphere"


def test_larger_data_are_thinned():
    record = calibrate(embedded(hypersphere(500, 3, np.random.default_rng(0))), max_points=300, families=FLAT)
    assert record.num_points == 300
    assert record.value == pytest.approx(3, rel=0.1)


def test_never_above_the_number_of_columns():
    record = calibrate(hypercube(200, 3, np.random.default_rng(0)), families=FLAT)
    assert record.interval[1] <= 3 + 1e-6


@pytest.mark.parametrize(
    ("points", "reason"),
    [
        (np.random.default_rng(0).random((79, 3)), "needs at least 80 distinct points, has 79"),
        (np.eye(100), "zero or all equal"),
    ],
)
def test_undefined_corrections_say_why(points, reason):
    record = calibrate(points, families=FLAT)
    assert record.value is None
    assert reason in record.to_json()["reason"]


def test_shapes_unlike_all_families_are_noted():
    rng = np.random.default_rng(0)
    clusters = rng.normal(size=(300, 30)) * 10.0 ** rng.uniform(-4, 4, (300, 1))
    assert "unlike those of every simulated family" in calibrate(clusters, families=FLAT).notes[0]


def test_grid_reaches_below_and_far_above_the_raw_estimate():
    assert _grid(1.0, 1000)[0] == 1
    assert _grid(34, 1000)[0] <= 16
    assert _grid(34, 1000)[-1] >= 96
    assert max(_grid(34, 64)) == 96  # one beyond the number of columns, to interpolate towards
    assert 0 < MODEL_SPREAD < 1
