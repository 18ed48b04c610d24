"""Estimators of intrinsic dimension, compared with formulas, loops and other libraries."""

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from search_spaces.errors import ConfigError
from tasks.measures.estimators import (
    BLOCK_POINTS,
    ESTIMATORS,
    FEW_POINTS,
    block_std_error,
    estimate,
    gride_at_scale,
    neighborhood_blocks,
    table_width,
)
from tasks.measures.manifolds import MANIFOLDS
from tasks.measures.measure import intrinsic_dimension, measure_array
from tasks.measures.neighbor_tables import NeighborTable
from tasks.measures.neighbors import nested_neighbors
from tests import reference

hypersphere = MANIFOLDS["hypersphere"]


def estimate_one(name, table, **options):
    return estimate(table, estimators=[name], **options)[name]


def table_of(points, num_neighbors=20):
    return nested_neighbors(points, None, [len(points)], num_neighbors).tables[0]


def table_from(distances):
    """Return a neighbor table with the given distances, random neighbors and no labels."""
    num_points, num_neighbors = distances.shape
    indices = np.random.default_rng(0).integers(0, num_points, (num_points, num_neighbors))
    without_labels = np.full(num_points, np.inf), np.full(num_points, -1)
    return NeighborTable(distances, indices, *without_labels)


@pytest.fixture(scope="module")
def points():
    return hypersphere(400, 5, np.random.default_rng(0))


class TestMle:
    def test_the_curve_ends_at_the_value_and_has_the_values_of_smaller_k(self, points):
        record = estimate_one("mle", table_of(points))
        curve = {row["num_neighbors"]: row["value"] for row in record.details["curve"]}
        with_7_neighbors = estimate_one("mle", table_of(points), num_neighbors=7)
        assert curve[20] == pytest.approx(record.value)
        assert curve[7] == pytest.approx(with_7_neighbors.value)

    def test_the_divisor_k_minus_1_is_unbiased_when_inverses_are_averaged(self):
        """Each neighborhood is drawn separately from a uniform density, so none has an edge."""
        dimension, k = 5, 5
        radii = np.random.default_rng(0).random((20_000, k)) ** (1 / dimension)
        record = estimate_one("mle", table_from(np.sort(radii, axis=1)), num_neighbors=k)
        assert record.details["value_k_minus_1"] == pytest.approx(dimension, rel=0.02)
        assert record.value == pytest.approx(dimension * (k - 2) / (k - 1), rel=0.02)


class TestTwoNN:
    @pytest.mark.parametrize("discard_fraction", [0, 0.1, 0.5])
    def test_it_is_the_slope_of_the_loops(self, points, discard_fraction):
        parameters = {"twonn": {"discard_fraction": discard_fraction}}
        record = estimate_one("twonn", table_of(points), parameters=parameters)
        assert record.value == pytest.approx(reference.twonn(points, discard_fraction), rel=1e-5)
        assert record.details["discard_fraction"] == discard_fraction
        assert f"{discard_fraction:g} of the largest ratios" in record.convention

    def test_the_row_has_the_fraction_of_facco(self, points):
        record = estimate_one("twonn", table_of(points))
        assert record.value == pytest.approx(reference.twonn(points, 0.1), rel=1e-5)


class TestGride:
    def test_every_scale_has_the_largest_likelihood(self, points):
        from scipy.optimize import minimize_scalar

        table = table_of(points)
        for scale in estimate_one("gride", table).details["curve"]:
            n1, n2 = scale["n1"], scale["n2"]
            mu = table.distances[:, n2 - 1] / table.distances[:, n1 - 1]

            def loss(d, mu=mu, n1=n1, n2=n2):
                growth = (n2 - n1 - 1) * np.log(mu**d - 1) if n2 - n1 > 1 else 0
                return -(np.log(d) + growth - ((n2 - 1) * d + 1) * np.log(mu)).sum()

            best = minimize_scalar(
                loss, bounds=(0.5, 30), method="bounded", options={"xatol": 1e-8}
            )
            assert scale["value"] == pytest.approx(best.x, rel=1e-5)
            assert 0 < scale["std_error"] < scale["value"]

    @pytest.mark.parametrize("n1", [2, 8, 64])
    @pytest.mark.parametrize("log_ratio", [1e-4, 1.0, 50.0])
    def test_newton_finds_the_root_from_a_start_above_it(self, n1, log_ratio):
        fit = gride_at_scale(np.full(10, log_ratio), n1, 2 * n1)
        # Score per point: 1/d + (n1 - 1) L / (1 - e^(-dL)) - (2 n1 - 1) L = 0.
        score = 1 / fit.value + (n1 - 1) * log_ratio / -np.expm1(-fit.value * log_ratio)
        assert score == pytest.approx((2 * n1 - 1) * log_ratio, rel=1e-9)

    def test_points_with_equal_distances_are_left_out_and_not_counted(self):
        distances = np.sort(np.random.default_rng(0).random((50, 4)) + 0.5, axis=1)
        distances[:10, 3] = distances[:10, 1]  # ties at the largest scale, T_4 = T_2
        record = estimate_one("gride", table_from(distances), num_neighbors=4)
        without_ties = estimate_one("gride", table_from(distances[10:]), num_neighbors=4)
        assert record.value == without_ties.value
        assert (record.num_points, record.num_dropped) == (40, 10)


@pytest.mark.parametrize("name", ["hypersphere", "hypercube", "swiss_roll", "curled", "beta_cloud"])
def test_estimators_agree_with_scikit_dimension(name):
    import skdim  # imports numba, which takes a second of every process that collects tests

    points = MANIFOLDS[name](500, 4, np.random.default_rng(0))
    records = estimate(table_of(points), estimators=["mle", "twonn"])
    mle = skdim.id.MLE(neighborhood_based=True).fit(points, n_neighbors=20, comb="mle")
    twonn = skdim.id.TwoNN().fit(points)
    assert records["mle"].details["value_k_minus_1"] == pytest.approx(mle.dimension_, rel=1e-5)
    # scikit-dimension counts F from 0/n, the paper from 1/n.
    assert records["twonn"].value == pytest.approx(twonn.dimension_, rel=0.02)


class TestStandardErrors:
    @pytest.fixture(scope="class")
    def records(self):
        """Return estimates of 30 samples of one distribution."""
        samples = [MANIFOLDS["gaussian"](500, 5, np.random.default_rng(seed)) for seed in range(30)]
        return [estimate(table_of(points), estimators=["mle", "twonn"]) for points in samples]

    @pytest.mark.long
    @pytest.mark.parametrize("name", ["mle", "twonn"])
    def test_the_bootstrap_matches_the_spread_over_samples(self, records, name):
        spread = np.std([record[name].value for record in records], ddof=1)
        bootstrap = np.mean([record[name].details["std_error_bootstrap"] for record in records])
        assert 0.7 < bootstrap / spread < 1.4

    @pytest.mark.parametrize("name", ["mle", "twonn"])
    def test_the_formulas_take_points_as_independent_and_are_smaller(self, records, name):
        formula = np.mean([record[name].std_error for record in records])
        bootstrap = np.mean([record[name].details["std_error_bootstrap"] for record in records])
        assert 0.6 < formula / bootstrap < 1

    def test_larger_blocks_give_the_same_error(self, monkeypatch):
        """The blocks are smaller than the neighborhoods of 20 points that make points dependent."""
        errors = {}
        for block_points in (BLOCK_POINTS, 2 * BLOCK_POINTS + 1, 4 * BLOCK_POINTS):
            monkeypatch.setattr("tasks.measures.estimators.BLOCK_POINTS", block_points)
            for seed in range(6):
                table = table_of(hypersphere(500, 5, np.random.default_rng(seed)), 40)
                inverses = np.log(table.distances[:, 19:20] / table.distances[:, :19]).mean(axis=1)
                error = block_std_error(
                    lambda weights, inverses=inverses: weights.sum() / (weights * inverses).sum(),
                    neighborhood_blocks(table.neighbor_positions),
                )
                errors.setdefault(block_points, []).append(error)
        means = [np.mean(values) for values in errors.values()]
        assert means[1:] == pytest.approx([means[0]] * 2, rel=0.15)

    def test_blocks_are_disjoint_neighborhoods_of_bounded_size(self, points):
        table = table_of(points)
        blocks = neighborhood_blocks(table.neighbor_positions)
        members = [np.flatnonzero(blocks == block) for block in np.unique(blocks)]
        assert len(blocks) == len(points)
        assert max(map(len, members)) <= BLOCK_POINTS
        assert len(members) < len(points) / 2
        for block in members:
            assert any(
                set(block) <= {point, *table.neighbor_positions[point].tolist()} for point in block
            )

    def test_the_error_of_a_mean_is_its_standard_error(self):
        values = np.random.default_rng(0).normal(size=400)
        error = block_std_error(
            lambda weights: (weights @ values) / weights.sum(), np.arange(400), num_resamples=1000
        )
        assert error == pytest.approx(values.std(ddof=1) / 20, rel=0.1)

    def test_one_block_has_no_error(self):
        assert block_std_error(lambda weights: 1.0, np.zeros(5, np.int64)) is None

    def test_the_reported_error_is_the_bootstrap_if_there_is_one(self):
        images = np.random.default_rng(0).integers(0, 256, (120, 25), dtype=np.uint8)
        dimensions = measure_array(images, None).d_data
        for name in ("mle", "twonn"):
            bootstrap = dimensions[name].details["std_error_bootstrap"]
            assert dimensions[name].reported_std_error == bootstrap
        assert dimensions["gride"].reported_std_error == dimensions["gride"].std_error


def test_duplicates_count_once_and_are_reported():
    rows = MANIFOLDS["hypercube"](200, 3, np.random.default_rng(0))
    plain = intrinsic_dimension(rows)
    doubled = intrinsic_dimension(np.concatenate([rows, rows[:50]]))
    assert doubled["mle"].value == pytest.approx(plain["mle"].value, rel=1e-6)
    assert doubled["mle"].num_points == 200
    assert doubled["mle"].details["num_duplicates"] == 50


class TestUndefined:
    def test_equally_far_points_have_no_finite_dimension(self):
        records = intrinsic_dimension(np.eye(50), estimators=tuple(ESTIMATORS))
        assert {record.value for record in records.values()} == {None}
        assert all(
            "all neighbor distances are equal after rounding" in record.reason
            for record in records.values()
        )

    @pytest.mark.parametrize(("num_usable", "reason"), [(0, "only 0 of 30"), (1, "only 1 of 30")])
    def test_points_at_distance_zero_are_counted_in_the_reason(self, num_usable, reason):
        distances = np.zeros((30, 5))
        distances[:num_usable] = [1, 2, 3, 4, 5]
        record = estimate_one("mle", table_from(distances), num_neighbors=5)
        assert record.value is None
        assert record.reason == (
            f"{reason} points have 5 neighbor distances that are positive and finite, but at "
            "least two points are needed"
        )
        assert (record.num_points, record.num_dropped) == (num_usable, 30 - num_usable)


class TestFewPoints:
    @pytest.mark.parametrize(
        ("num_points", "has_remark"), [(5, True), (FEW_POINTS - 1, True), (FEW_POINTS, False)]
    )
    def test_a_value_of_few_points_has_a_remark(self, num_points, has_remark):
        points = hypersphere(num_points, 3, np.random.default_rng(0))
        record = intrinsic_dimension(points)["twonn"]
        assert record.value > 0
        assert ("remark" in record.to_json()) == has_remark
        if has_remark:
            assert f"is based on {num_points} points. Below 20 points" in record.details["remark"]

    def test_the_remark_is_among_the_notes_of_a_measure(self):
        points = hypersphere(5, 3, np.random.default_rng(0))
        notes = measure_array(points, None).notes
        assert notes == (
            "The twonn estimate at 5 images is based on 5 points. Below 20 points, the dimension "
            "is very uncertain.",
        )


def test_sums_that_overflow_are_still_finite_values():
    points = np.random.default_rng(0).random((30, 4)).astype(np.float32) * 3e38
    assert intrinsic_dimension(points)["twonn"].value > 0


@pytest.mark.parametrize("names", [["pca"], ["mle", "mlee"]])
def test_refuses_an_estimator_that_is_not_known(names):
    with pytest.raises(ConfigError, match=f"Unknown estimator '{names[-1]}'"):
        table_width(names, 20)


@pytest.mark.long
def test_values_do_not_depend_on_the_number_of_threads():
    num_points = 60_000  # BLAS divides products of this length over threads
    distances = np.sort(np.random.default_rng(0).random((num_points, 4)) + 0.5, axis=1)
    table = table_from(distances)
    results = []
    for num_threads in (1, 2, 8):
        with threadpool_limits(num_threads):
            records = estimate(table, num_neighbors=4, estimators=("mle", "twonn"))
        results.append({name: record.to_json() for name, record in records.items()})
    assert results[0] == results[1] == results[2]
