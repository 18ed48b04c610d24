"""Test the claims of `isweep fit TABLE` for misleading tables.

Their columns cross the groups, their groups have few rows, or one group has most rows.
"""

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from scipy import stats

from orchestrator.analysis.grouped_tables.cluster_robust import (
    excess_variance,
    least_squares,
    wild_bootstrap,
)
from orchestrator.analysis.grouped_tables.crossing import crossing_columns
from orchestrator.analysis.grouped_tables.design import LEVELS, Design
from orchestrator.analysis.grouped_tables.fit import fit_groups, fit_user_table
from orchestrator.analysis.grouped_tables.user_table import read_user_table

BENCH = Design("score", ("dimension",), ("dataset",))


def bench_table(seed=0, shock=1.0, missing=0.1, num_names=37):
    """Return a table in the shape of the public torchgeo-bench: 11 datasets × up to 37 models.

    The score of a model and the dimension of its features depend on its quality, and on nothing
    else that they share.
    """
    rng = np.random.default_rng([seed, 11])
    dataset, name = (codes.ravel() for codes in np.indices((11, num_names)))
    is_measured = rng.random(len(dataset)) >= missing
    dataset, name = dataset[is_measured].repeat(2), name[is_measured].repeat(2)
    quality = shock * rng.normal(size=(2, num_names))
    heights = rng.normal(size=(2, 11))
    noise = rng.normal(size=(2, len(dataset)))
    table = pd.DataFrame(
        {
            "dataset": [f"bench-{code}" for code in dataset],
            "name": [f"tgeo_resnet{18 + code}_s2all_moco" for code in name],
            "layer": np.arange(len(dataset)) % 2,
            "params": (1_000_003 * (1 + name)).astype(int),
            "note": [f"run {row}" for row in range(len(dataset))],
        }
    )
    table["dimension"] = heights[0][dataset] + quality[0][name] + noise[0]
    table["score"] = heights[1][dataset] + quality[1][name] + noise[1]
    return table


def fit_csv(tmp_path, table, design=BENCH):
    table.to_csv(tmp_path / "bench.csv", index=False)
    return fit_user_table(read_user_table(tmp_path / "bench.csv", design), design)


def test_a_warning_names_columns_that_recur_over_groups_but_no_ids_and_no_copies(tmp_path):
    fit = fit_csv(tmp_path, bench_table())
    assert [remark.partition(":")[0] for remark in fit.remarks] == ["Beware"] * 2
    assert fit.remarks[0].startswith(
        "Beware: the values of name recur in 11 of 11 datasets. Add name to --groups or --within."
    )
    assert fit.remarks[1].startswith("Beware: the values of layer recur in 11 of 11 datasets")
    # "s2all" is no summary row; params follows from name; a note never recurs.
    remarks = " ".join(fit.remarks)
    for word in ("sums or means of other rows", "params", "note"):
        assert word not in remarks
    assert "Beware: the values of name recur in 11 of 11 datasets" in " ".join(fit.lines())


def test_a_column_that_the_design_names_gives_no_warning(tmp_path):
    table = bench_table().drop(columns=["layer", "params"])
    for design in (
        Design("score", ("dimension",), ("dataset",), ("name",)),
        Design("score", ("dimension",), ("dataset", "name")),
    ):
        assert fit_csv(tmp_path, table, design).remarks == ()


@pytest.mark.parametrize(
    ("column", "recurs"),
    [
        (lambda rng, group: rng.integers(0, 4, len(group)), True),  # seeds
        (lambda rng, group: np.arange(len(group)) % 20 + 2001, True),  # years
        (lambda rng, group: rng.integers(0, 10**6, len(group)), False),  # counts
        (lambda rng, group: rng.normal(size=len(group)).round(1), False),  # measurements
        (lambda rng, group: group % 2, False),  # a property of groups
        (lambda rng, group: np.zeros(len(group), int), False),  # the same everywhere
        (lambda rng, group: np.char.add("id", np.arange(len(group)).astype(str)), False),
    ],
)
def test_labels_recur_and_measurements_and_properties_of_groups_do_not(column, recurs):
    rng = np.random.default_rng(0)
    group = np.arange(8).repeat(20)
    rows = pd.DataFrame({"y": rng.normal(size=160), "x": rng.normal(size=160), "g": group})
    cells = rows.assign(extra=column(rng, group)).astype(str)
    crossing = [*crossing_columns(cells, rows, Design("y", ("x",), ("g",)))]
    assert [crossing_column.name for crossing_column in crossing] == ["extra"] * recurs


def test_train_sizes_beside_their_logarithm_are_no_crossing_column():
    group = np.arange(8).repeat(3)
    size = np.tile([100, 200, 400], 8)
    rows = pd.DataFrame({"y": np.random.default_rng(0).normal(size=24), "x": np.log(size)})
    rows = rows.assign(g=group)
    cells = rows.assign(train_size=size).astype(str)
    assert not [*crossing_columns(cells, rows, Design("y", ("x",), ("g",)))]


@pytest.mark.long
def test_shocks_of_models_are_seldom_taken_for_a_relation(tmp_path):
    """A correct test gives more than 8 claims in 60 such tables with a probability of 1/200.

    A fit that groups by dataset only makes a claim in half of the tables.
    """
    claims = 0
    claims_within_datasets = 0
    for seed in range(60):
        table = bench_table(seed, num_names=20).drop(columns=["layer", "params", "note"])
        fit = fit_csv(tmp_path, table)
        claims += any(slope.is_significant for slope in fit.slopes)
        claims_within_datasets += (
            fit_groups(table, BENCH).find("within", "dimension").is_significant
        )
    assert claims <= 8
    assert claims_within_datasets >= 15


def test_a_relation_is_still_detected_if_a_column_that_recurs_is_not_named(tmp_path):
    table = bench_table(shock=0.5)
    table["score"] += 0.5 * table["dimension"]
    fit = fit_csv(tmp_path, table.drop(columns=["layer", "params", "note"]))
    assert fit.find("within", "dimension").is_significant


def test_the_excess_of_a_crossing_column_is_that_of_two_way_clustering():
    """Compare with statsmodels: variance clustered by value less that by group and value.

    The factors for small samples differ, so they agree to 10 %.
    """
    rng = np.random.default_rng(4)
    group, value = (codes.ravel().repeat(2) for codes in np.indices((30, 40)))
    x = rng.normal(size=40)[value] + rng.normal(size=len(group))
    y = rng.normal(size=40)[value] + rng.normal(size=len(group))
    x, y = (v - pd.Series(v).groupby(group).transform("mean").to_numpy() for v in (x, y))
    fit = sm.OLS(y, x[:, None])
    group_and_value = group * 40 + value
    by_value, by_both = (
        fit.fit(cov_type="cluster", cov_kwds={"groups": codes}).cov_params()[0, 0]
        for codes in (value, group_and_value)
    )
    excess = excess_variance(least_squares(y, x[:, None], 0), value, group)
    assert excess.value == pytest.approx(by_value - by_both, rel=0.1)
    assert 20 < excess.degrees <= 39


def few_rows(seed, num_groups=30, size=3, between=0.0):
    """Return groups of few rows with a slope of 1 within, and ``between`` between true means."""
    rng = np.random.default_rng([seed, 3])
    group = np.arange(num_groups).repeat(size)
    mean, height = rng.normal(size=(2, num_groups))
    inside, error = rng.normal(size=(2, len(group)))
    y = between * mean[group] + 0.5 * height[group] + inside + 0.5 * error
    return pd.DataFrame({"y": y, "x": mean[group] + inside, "g": group})


def test_scatter_of_rows_in_the_means_of_groups_is_that_of_an_analysis_of_variance():
    table = few_rows(1, num_groups=40, size=5)
    fit = fit_groups(table, Design("y", ("x",), ("g",)))
    (scatter,) = fit.scatter
    means = table.groupby("g")[["x", "y"]].mean()
    within = table.groupby("g")[["x", "y"]].cov().groupby(level=1).mean()
    share = within.loc["x", "x"] / 5 / means["x"].var()
    assert scatter.share == pytest.approx(share, rel=1e-9)
    cov_between = means.cov().loc["x", "y"] - within.loc["x", "y"] / 5
    var_between = means["x"].var() - within.loc["x", "x"] / 5
    assert scatter.slope == pytest.approx(cov_between / var_between, rel=1e-9)
    scatter_sentence = (
        f"{share:.0%} of the variance of x between 40 groups comes from the scatter of rows"
    )
    assert scatter_sentence in fit.sentence("x")


@pytest.mark.long
def test_a_slope_within_groups_of_three_rows_is_no_claim_between_them():
    """A correct test gives more than 11 claims in 100 such tables with a probability of 1/200.

    Uncorrected means give a claim in 38 of these tables.
    """
    design = Design("y", ("x",), ("g",))
    claims = 0
    claims_of_means = 0
    for seed in range(100):
        table = few_rows(seed)
        claims += fit_groups(table, design).find("between", "x").is_significant
        means = table.groupby("g").mean()
        claims_of_means += stats.pearsonr(means["x"], means["y"]).pvalue <= 0.05
    assert claims <= 11
    assert claims_of_means >= 25


@pytest.mark.long
def test_a_slope_between_groups_of_three_rows_is_detected_without_bias():
    design = Design("y", ("x",), ("g",))
    fits = [fit_groups(few_rows(seed, between=-1.0), design) for seed in range(40)]
    assert sum(fit.find("between", "x").is_significant for fit in fits) >= 20
    assert np.median([fit.scatter[0].slope for fit in fits]) == pytest.approx(-1.0, abs=0.2)
    covered = [fit.scatter[0].interval[0] <= -1 <= fit.scatter[0].interval[1] for fit in fits]
    assert sum(covered) >= 34


def test_scatter_that_hides_all_differences_is_reported_and_nothing_is_claimed():
    table = few_rows(0, size=2)
    table["x"] -= table.groupby("g")["x"].transform("mean") * 0.98
    fit = fit_groups(table, Design("y", ("x",), ("g",)))
    assert fit.scatter[0].slope is None
    assert not fit.find("between", "x").is_significant
    assert "With so much scatter, no claim is made between groups" in fit.sentence("x")


def grunfeld_panel():
    table = sm.datasets.grunfeld.load_pandas().data
    return table[table["firm"] != "American Steel"]


def test_grunfelds_panel_has_the_slopes_of_the_textbook():
    """Compare with the slopes of a textbook (Baltagi, table 2.1) for 10 firms × 20 years.

    One firm of the ten has most of the variation.
    """
    design = Design("invest", ("value", "capital"), ("firm",))
    fit = fit_groups(grunfeld_panel(), design)
    value, capital = (fit.find("within", name) for name in design.on)
    assert (value.value, capital.value) == pytest.approx((0.1101, 0.3101), abs=5e-5)
    assert value.is_significant
    low, high = value.interval
    assert 0 < low < 0.075 < 0.145 < high < 0.25
    assert capital.p_value < 0.05
    slopes_between = {name: fit.find("between", name).value for name in design.on}
    assert (slopes_between["value"], slopes_between["capital"]) == pytest.approx(
        (0.1346, 0.0320), abs=5e-5
    )


def test_a_wild_bootstrap_of_two_columns_refits_the_second_for_every_pattern_of_signs():
    table = grunfeld_panel()[["invest", "value", "capital", "firm"]].copy()
    code = pd.factorize(table["firm"])[0]
    numbers = table[["invest", "value", "capital"]]
    centred = (numbers - numbers.groupby(code).transform("mean")).to_numpy()
    y = centred[:, 0]
    x = centred[:, 1:]
    remaining = x[:, 1:]
    restricted = y - remaining @ np.linalg.lstsq(remaining, y, rcond=None)[0]
    direction = x[:, 0] - remaining @ np.linalg.lstsq(remaining, x[:, 0], rcond=None)[0]

    def t_statistic(response):
        coefficients = np.linalg.lstsq(x, response, rcond=None)[0]
        scores = np.bincount(code, direction * (response - x @ coefficients))
        return abs(coefficients[0]) / np.linalg.norm(scores)

    signs = np.array(np.meshgrid(*[[-1.0, 1.0]] * 10)).reshape(10, -1).T
    drawn_statistics = np.array(
        [t_statistic(y - restricted + pattern[code] * restricted) for pattern in signs]
    )
    expected = np.mean(drawn_statistics >= t_statistic(y) * (1 - 1e-9))
    assert wild_bootstrap(least_squares(y, x, 0), code).p_value == expected


def test_a_slope_has_the_smallest_p_that_its_resampling_can_give():
    """Within eight groups: 2 of 256 sign patterns. Between five groups: 1 of 120 permutations."""
    rng = np.random.default_rng(0)
    for num_groups, level, smallest_p in ((8, "within", 2 / 256), (5, "between", 1 / 120)):
        group = np.arange(num_groups).repeat(6)
        x = rng.normal(size=len(group)) + group**1.5
        y = x + 1e-3 * rng.normal(size=len(group))
        fit = fit_groups(pd.DataFrame({"y": y, "x": x, "g": group}), Design("y", ("x",), ("g",)))
        slope = fit.find(level, "x")
        assert slope.test.smallest_p == slope.smallest_p == pytest.approx(smallest_p)
        assert slope.p_value == pytest.approx(smallest_p)


def test_a_slope_whose_permutations_cannot_reach_the_level_has_a_warning():
    """Four groups have 24 permutations, and two slopes need p = 0.025."""
    rng = np.random.default_rng(1)
    group = np.arange(4).repeat(6)
    table = pd.DataFrame({"y": rng.normal(size=24), "x": rng.normal(size=24), "g": group})
    sentence = fit_groups(table, Design("y", ("x",), ("g",))).sentence("x")
    assert (
        "On its own, this result cannot be significant: Holm's strictest level is 2.5 %, but "
        "resampling cannot give a p below 0.042. First, 1 other test of the family would have to be "
        "significant."
    ) in sentence


@pytest.mark.parametrize("num_groups", [5, pytest.param(10, marks=pytest.mark.long)])
def test_one_group_of_most_rows_neither_makes_nor_prevents_claims(num_groups):
    """Slopes about 0 give a claim in at most 8 of 80 tables; slopes about 1 in most tables."""
    sizes = np.array([300] + [10] * (num_groups - 1))
    group = np.arange(num_groups).repeat(sizes)
    design = Design("y", ("x",), ("g",))
    claims = {0.0: 0, 1.0: 0}
    for seed in range(80):
        rng = np.random.default_rng([seed, num_groups])
        x, error = rng.normal(size=(2, len(group)))
        slopes = rng.normal(size=num_groups)
        for slope in claims:
            spread = 1.0 if slope == 0 else 0.2
            slopes_of_groups = slope + spread * slopes
            table = pd.DataFrame({"y": slopes_of_groups[group] * x + error, "x": x, "g": group})
            claims[slope] += fit_groups(table, design).find(LEVELS[0], "x").is_significant
    assert claims[0.0] <= 8
    assert claims[1.0] >= 40
