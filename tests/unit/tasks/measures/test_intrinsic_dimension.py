import numpy as np
import pytest
import skdim
from threadpoolctl import threadpool_limits

from search_spaces.errors import DataError
from tasks.measures.calibration import MANIFOLDS
from tasks.measures.estimators import ESTIMATORS, block_std_error, estimate, neighborhood_blocks
from tasks.measures.measure import intrinsic_dimension
from tasks.measures.neighbors import NeighborTable, nested_neighbors
from tests import reference

hypersphere = MANIFOLDS["hypersphere"]


def estimate_one(name, table, **how):
    return estimate(table, estimators=[name], **how)[name]


def table_of(points, num_neighbors=20):
    return nested_neighbors(points, None, [len(points)], num_neighbors).tables[0]


@pytest.fixture(scope="module")
def points():
    return hypersphere(400, 5, np.random.default_rng(0))


def test_mle_curve_ends_at_the_value_and_matches_smaller_k(points):
    record = estimate_one("mle", table_of(points))
    curve = {row["num_neighbors"]: row["value"] for row in record.details["curve"]}
    assert curve[20] == pytest.approx(record.value)
    assert curve[7] == pytest.approx(estimate_one("mle", table_of(points), num_neighbors=7).value)


def test_the_divisor_k_minus_1_is_unbiased_where_inverses_are_averaged():
    """On neighbourhoods drawn one by one, each from even density: no edge, nothing shared."""
    rng, dimension, k = np.random.default_rng(0), 5, 5
    radii = np.sort(rng.random((20_000, k)) ** (1 / dimension), axis=1)
    nothing = np.full(len(radii), np.inf), np.full(len(radii), -1)
    ids = rng.integers(0, len(radii), radii.shape)
    record = estimate_one("mle", NeighborTable(radii, ids, *nothing), num_neighbors=k)
    assert record.details["value_k_minus_1"] == pytest.approx(dimension, rel=0.02)
    assert record.value == pytest.approx(dimension * 3 / 4, rel=0.02)


@pytest.mark.parametrize("discard_fraction", [0, 0.1, 0.5])
def test_twonn_matches_the_loops(points, discard_fraction):
    value = estimate_one("twonn", table_of(points), discard_fraction=discard_fraction).value
    assert value == pytest.approx(reference.twonn(points, discard_fraction), rel=1e-5)


@pytest.mark.parametrize("name", ["hypersphere", "hypercube", "swiss_roll", "curled", "beta_cloud"])
def test_estimators_agree_with_scikit_dimension(name):
    points = MANIFOLDS[name](500, 4, np.random.default_rng(0))
    table = table_of(points)
    theirs = skdim.id.MLE(neighborhood_based=True).fit(points, n_neighbors=20, comb="mle")
    assert estimate_one("mle", table).details["value_k_minus_1"] == pytest.approx(
        theirs.dimension_, rel=1e-5
    )
    # scikit-dimension counts F from 0/n, we and the paper from 1/n.
    assert estimate_one("twonn", table).value == pytest.approx(
        skdim.id.TwoNN().fit(points).dimension_, rel=0.02
    )


def test_gride_agrees_with_a_search_for_the_largest_likelihood(points):
    from scipy.optimize import minimize_scalar

    table = table_of(points)
    for scale in estimate(table, num_neighbors=20, estimators=["gride"])["gride"].details["curve"]:
        n1, n2 = scale["n1"], scale["n2"]
        mu = table.distances[:, n2 - 1] / table.distances[:, n1 - 1]

        def loss(d, mu=mu, n1=n1, n2=n2):
            growth = (n2 - n1 - 1) * np.log(mu**d - 1) if n2 - n1 > 1 else 0
            return -(np.log(d) + growth - ((n2 - 1) * d + 1) * np.log(mu)).sum()

        best = minimize_scalar(loss, bounds=(0.5, 30), method="bounded", options={"xatol": 1e-8}).x
        assert scale["value"] == pytest.approx(best, rel=1e-5)
        assert 0 < scale["std_error"] < scale["value"]


def test_delta_method_and_bootstrap_agree_and_match_the_spread_over_samples():
    records = [
        estimate_one("mle", table_of(MANIFOLDS["gaussian"](500, 5, np.random.default_rng(seed))))
        for seed in range(30)
    ]
    spread = np.std([record.value for record in records], ddof=1)
    delta = np.mean([record.std_error for record in records])
    bootstrap = np.mean([record.details["std_error_bootstrap"] for record in records])
    assert (
        0.6 < delta / bootstrap < 1.2
    )  # overlapping neighbourhoods: independence promises a little too much
    assert 0.6 < bootstrap / spread < 1.5


def test_blocks_are_disjoint_neighborhoods_of_bounded_size(points):
    table = table_of(points)
    blocks = neighborhood_blocks(table.indices)
    assert len(blocks) == len(points)
    assert np.bincount(blocks).max() <= 10
    assert np.bincount(blocks).min() >= 1
    assert blocks.max() < len(points) / 2


def test_bootstrap_of_a_mean_is_its_standard_error():
    values = np.random.default_rng(0).normal(size=400)
    error = block_std_error(lambda w: (w @ values) / w.sum(), np.arange(400), num_resamples=1000)
    assert error == pytest.approx(values.std(ddof=1) / 20, rel=0.1)
    assert block_std_error(lambda w: 1.0, np.zeros(5, np.int64)) is None


def test_duplicates_count_once_and_are_reported():
    rows = MANIFOLDS["hypercube"](200, 3, np.random.default_rng(0))
    plain = intrinsic_dimension(rows)
    doubled = intrinsic_dimension(np.concatenate([rows, rows[:50]]))
    assert doubled["mle"].value == pytest.approx(plain["mle"].value, rel=1e-6)
    assert doubled["mle"].num_points == 200
    assert doubled["mle"].details["num_duplicates"] == 50


def test_equally_far_points_have_no_finite_dimension():
    records = intrinsic_dimension(np.eye(50), estimators=tuple(ESTIMATORS))
    assert [record.value for record in records.values()] == [None] * 3
    assert all("equally far to within rounding" in record.reason for record in records.values())


def test_sums_that_overflow_are_still_finite_values():
    assert intrinsic_dimension(np.random.default_rng(0).random((30, 4)).astype(np.float32) * 3e38)[
        "twonn"
    ].value


def test_refuses_parameters_that_leave_nothing(points):
    with pytest.raises(DataError, match="num_neighbors must be above 2; found: 2"):
        estimate_one("mle", table_of(points), num_neighbors=2)
    with pytest.raises(DataError, match=r"discard_fraction must be in \[0, 1\); found: 1"):
        estimate_one("twonn", table_of(points), discard_fraction=1)


def test_values_do_not_depend_on_the_number_of_threads():
    rng = np.random.default_rng(0)
    num_points = 60_000  # BLAS shares products of this length out
    distances = np.sort(rng.random((num_points, 4)) + 0.5, axis=1)
    table = NeighborTable(
        distances,
        rng.integers(0, num_points, (num_points, 4)),
        np.full(num_points, np.inf),
        np.full(num_points, -1),
    )
    found = []
    for num_threads in (1, 2, 8):
        with threadpool_limits(num_threads):
            records = estimate(table, num_neighbors=4, estimators=("mle", "twonn"))
            found.append({name: record.to_json() for name, record in records.items()})
    assert found[0] == found[1] == found[2]
