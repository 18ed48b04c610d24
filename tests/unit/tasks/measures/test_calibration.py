from dataclasses import replace

import numpy as np
import pytest

from tasks.measures import calibration
from tasks.measures.calibration import calibrate, dimension_grid, simulate, simulate_one
from tasks.measures.dimension_posterior import posterior
from tasks.measures.manifolds import MANIFOLDS
from tasks.measures.measure import intrinsic_dimension
from tasks.remote import InlineExecutor

FLAT = ("hypersphere", "hypercube", "gaussian", "ball", "curled")


def embedded(points, num_columns=100, seed=1):
    """Return the points in more columns. All distances stay the same."""
    basis = np.linalg.qr(np.random.default_rng(seed).normal(size=(num_columns, points.shape[1])))[0]
    return points @ basis.T


@pytest.mark.parametrize(
    ("make", "dimension"),
    [
        ("hypersphere", 10),
        pytest.param("hypercube", 16, marks=pytest.mark.long),
        pytest.param("gaussian", 6, marks=pytest.mark.long),
        pytest.param("hypercube", 30, marks=pytest.mark.long),
    ],
)
def test_the_corrected_estimate_is_closer_to_the_true_dimension(make, dimension):
    record = calibrate(
        embedded(MANIFOLDS[make](600, dimension, np.random.default_rng(0))), families=FLAT
    )
    assert abs(record.value - dimension) < abs(record.uncorrected - dimension)
    assert record.value == pytest.approx(dimension, rel=0.12)


@pytest.fixture(scope="module")
def trials():
    """Return simulations for 400 points, and new samples at dimensions between the simulated ones."""
    grid = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48]
    simulations = simulate(400, 20, grid, tuple(MANIFOLDS), executor=InlineExecutor())
    fresh = [
        (family, dimension, simulate_one(family, dimension, 400, 20, [seed, 99]))
        for family in MANIFOLDS
        for dimension in (2, 5, 10, 20)
        for seed in range(5)
    ]
    return simulations, fresh


def coverage(trials, families_of):
    """Return the share of fresh samples whose interval, widened by 1 %, has the true dimension."""
    simulations, fresh = trials
    covered = []
    for family, dimension, observed in fresh:
        chosen = [i for i, name in enumerate(simulations.families) if name in families_of(family)]
        family_simulations = replace(
            simulations,
            families=tuple(simulations.families[i] for i in chosen),
            statistics=simulations.statistics[chosen],
        )
        low, high = posterior(observed, family_simulations, 1000).interval
        covered.append(low * 0.99 <= dimension <= high * 1.01)
    return np.mean(covered)


@pytest.mark.long
def test_intervals_cover_fresh_samples_at_least_at_their_nominal_rate(trials):
    assert coverage(trials, lambda family: MANIFOLDS) >= 0.9


@pytest.mark.long
def test_intervals_cover_most_shapes_that_were_not_simulated(trials):
    # The hardest case: a family that is left out resembles none of the others.
    assert coverage(trials, lambda family: [name for name in MANIFOLDS if name != family]) >= 0.88


@pytest.mark.long
def test_a_high_dimension_is_noted_as_resting_on_the_simulated_shapes():
    low, high = (
        calibrate(MANIFOLDS["hypercube"](300, d, np.random.default_rng(0)), families=FLAT).notes
        for d in (5, 30)
    )
    assert not any("Above 16 dimensions" in note for note in low)
    assert any(
        "Above 16 dimensions, the correction depends on the simulated shapes" in note
        for note in high
    )


@pytest.mark.long
def test_does_not_depend_on_unit_or_embedding():
    points = MANIFOLDS["hypersphere"](300, 5, np.random.default_rng(0))
    estimate = calibrate(embedded(points, 50, seed=1), families=FLAT)
    rescaled_estimate = calibrate(embedded(1000 * points + 3, 200, seed=2), families=FLAT)
    assert rescaled_estimate.value == pytest.approx(estimate.value, rel=1e-3)
    assert rescaled_estimate.interval == pytest.approx(estimate.interval, rel=1e-3)


@pytest.mark.long
def test_is_seeded_and_json():
    points = embedded(MANIFOLDS["hypersphere"](200, 4, np.random.default_rng(0)))
    first, again = (calibrate(points, families=FLAT, seed=5) for _ in range(2))
    assert first == again
    assert first.to_json()["interval"] == list(first.interval)
    assert sum(first.families.values()) == pytest.approx(1)
    assert max(first.families, key=first.families.get) == "hypersphere"


@pytest.mark.long
def test_large_data_are_subsampled(monkeypatch):
    monkeypatch.setattr(calibration, "MAX_POINTS", 300)
    record = calibrate(
        embedded(MANIFOLDS["hypersphere"](500, 3, np.random.default_rng(0))), families=FLAT
    )
    assert record.num_points == 300
    assert record.value == pytest.approx(3, rel=0.1)


def test_never_above_the_number_of_columns():
    record = calibrate(MANIFOLDS["hypercube"](200, 3, np.random.default_rng(0)), families=FLAT)
    assert record.interval[1] <= 3 + 1e-6


@pytest.mark.parametrize(
    ("points", "reason"),
    [
        (
            np.random.default_rng(0).random((79, 3)),
            "the correction needs at least 80 distinct points, but there are 79",
        ),
        (np.eye(100), "all neighbor distances are zero or equal"),
    ],
)
def test_an_undefined_correction_has_a_reason(points, reason):
    record = calibrate(points, families=FLAT)
    assert record.value is None
    assert reason in record.to_json()["reason"]


@pytest.mark.long
def test_shapes_unlike_all_families_are_noted():
    rng = np.random.default_rng(0)
    clusters = rng.normal(size=(300, 30)) * 10.0 ** rng.uniform(-4, 4, (300, 1))
    assert (
        "do not resemble those of any simulated family"
        in calibrate(clusters, families=FLAT).notes[0]
    )


def test_grid_reaches_below_and_far_above_the_raw_estimate():
    assert dimension_grid(1.0, 1000)[0] == 1
    assert dimension_grid(0.3, 1000) == [1, 2]
    assert dimension_grid(34, 1000)[0] <= 16
    assert dimension_grid(34, 1000)[-1] >= 96
    assert (
        max(dimension_grid(34, 64)) == 96
    )  # one beyond the number of columns, to interpolate towards


@pytest.mark.parametrize("name", MANIFOLDS)
def test_manifolds_are_seeded_and_have_the_dimension_they_are_made_for(name):
    points, again = (MANIFOLDS[name](2000, 2, np.random.default_rng(0)) for _ in range(2))
    assert (points == again).all()
    assert intrinsic_dimension(points)["mle"].details["value_k_minus_1"] == pytest.approx(
        2, abs=0.3
    )
