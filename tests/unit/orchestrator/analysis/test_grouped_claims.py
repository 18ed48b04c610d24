"""What `isweep fit TABLE` claims of tables that deceive: crossing columns, few rows, one big group."""

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


def bench(seed=0, shock=1.0, missing=0.1, num_names=37):
    """A table of the public torchgeo-bench's shape: 11 datasets × up to 37 models, layers of each.

    A model's score and the dimension of its features share its quality, and no more.
    """
    rng = np.random.default_rng([seed, 11])
    dataset, name = (codes.ravel() for codes in np.indices((11, num_names)))
    is_there = rng.random(len(dataset)) >= missing
    dataset, name = dataset[is_there].repeat(2), name[is_there].repeat(2)
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


def fitted(tmp_path, table, design=BENCH):
    table.to_csv(tmp_path / "bench.csv", index=False)
    return fit_user_table(read_user_table(tmp_path / "bench.csv", design), design)


def test_an_unnamed_column_that_recurs_over_groups_is_named_and_ids_and_copies_are_not(tmp_path):
    fit = fitted(tmp_path, bench())
    assert [remark.partition(":")[0] for remark in fit.remarks] == ["Beware"] * 2
    assert fit.remarks[0].startswith(
        "Beware: name recurs in 11 of 11 datasets. Add name to --groups or --within."
    )
    assert fit.remarks[1].startswith("Beware: layer recurs in 11 of 11 datasets")
    # "s2all" is a word that holds no "all"; params follows from name; notes never recur.
    assert not any(
        word in " ".join(fit.remarks) for word in ("sums or means of other rows", "params", "note")
    )
    assert "Beware: name recurs in 11 of 11 datasets" in " ".join(fit.lines())


def test_a_column_that_is_named_is_not_warned_of(tmp_path):
    table = bench().drop(columns=["layer", "params"])
    for design in (
        Design("score", ("dimension",), ("dataset",), ("name",)),
        Design("score", ("dimension",), ("dataset", "name")),
    ):
        assert fitted(tmp_path, table, design).remarks == ()


@pytest.mark.parametrize(
    ("column", "is_found"),
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
def test_labels_recur_and_measurements_and_properties_of_groups_do_not(column, is_found):
    rng, group = np.random.default_rng(0), np.arange(8).repeat(20)
    rows = pd.DataFrame({"y": rng.normal(size=160), "x": rng.normal(size=160), "g": group})
    cells = rows.assign(extra=column(rng, group)).astype(str)
    found = [*crossing_columns(cells, rows, Design("y", ("x",), ("g",)))]
    assert [one.name for one in found] == ["extra"] * is_found


def test_train_sizes_beside_their_logarithm_are_no_crossing_column():
    group, size = np.arange(8).repeat(3), np.tile([100, 200, 400], 8)
    rows = pd.DataFrame({"y": np.random.default_rng(0).normal(size=24), "x": np.log(size)})
    rows = rows.assign(g=group)
    cells = rows.assign(train_size=size).astype(str)
    assert not [*crossing_columns(cells, rows, Design("y", ("x",), ("g",)))]


@pytest.mark.long
def test_shocks_of_models_are_seldom_taken_for_a_relation(tmp_path):
    """Of 60 tables at 5 %, more than 8 with a claim happen once in 200 times; counting datasets
    alone claims in half of them."""
    claims, unaware = 0, 0
    for seed in range(60):
        table = bench(seed, num_names=20).drop(columns=["layer", "params", "note"])
        fit = fitted(tmp_path, table)
        claims += any(slope.is_significant for slope in fit.slopes)
        unaware += fit_groups(table, BENCH).find("within", "dimension").is_significant
    assert claims <= 8
    assert unaware >= 15


def test_a_relation_beside_an_unnamed_column_is_still_found(tmp_path):
    table = bench(shock=0.5).assign(score=lambda own: own["score"] + 0.5 * own["dimension"])
    fit = fitted(tmp_path, table.drop(columns=["layer", "params", "note"]))
    assert fit.find("within", "dimension").is_significant


def test_the_excess_of_a_crossing_column_is_that_of_two_way_clustering():
    """Without stretching, it is the variance by value less the variance by group and value of
    statsmodels, at its own small-sample factors."""
    rng = np.random.default_rng(4)
    group, value = (codes.ravel().repeat(2) for codes in np.indices((30, 40)))
    x = rng.normal(size=40)[value] + rng.normal(size=len(group))
    y = rng.normal(size=40)[value] + rng.normal(size=len(group))
    x, y = (v - pd.Series(v).groupby(group).transform("mean").to_numpy() for v in (x, y))
    fit = sm.OLS(y, x[:, None])
    both = group * 40 + value
    by_value, by_both = (
        fit.fit(cov_type="cluster", cov_kwds={"groups": codes}).cov_params()[0, 0]
        for codes in (value, both)
    )
    excess = excess_variance(least_squares(y, x[:, None], 0), value, group)
    assert excess.value == pytest.approx(by_value - by_both, rel=0.1)
    assert 20 < excess.degrees <= 39


def few_rows(seed, num_groups=30, size=3, between=0.0):
    """Groups of few rows: a slope of 1 within them, and ``between`` between their true means."""
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
    said = fit.sentence("x")
    assert (
        f"Of the variance of x between 40 groups, {share:.0%} comes from the scatter of rows"
        in said
    )


@pytest.mark.long
def test_a_slope_within_groups_of_three_rows_is_no_claim_between_them():
    """Of 100 tables at 5 %, more than 11 with a claim happen once in 200 times; means taken as
    they are claim in 38."""
    design = Design("y", ("x",), ("g",))
    claims, naive = 0, 0
    for seed in range(100):
        table = few_rows(seed)
        claims += fit_groups(table, design).find("between", "x").is_significant
        means = table.groupby("g").mean()
        naive += stats.pearsonr(means["x"], means["y"]).pvalue <= 0.05
    assert claims <= 11
    assert naive >= 25


def test_a_slope_between_groups_of_three_rows_is_found_and_unbiased():
    design = Design("y", ("x",), ("g",))
    fits = [fit_groups(few_rows(seed, between=-1.0), design) for seed in range(40)]
    assert sum(fit.find("between", "x").is_significant for fit in fits) >= 20
    assert np.median([fit.scatter[0].slope for fit in fits]) == pytest.approx(-1.0, abs=0.2)
    covered = [fit.scatter[0].interval[0] <= -1 <= fit.scatter[0].interval[1] for fit in fits]
    assert sum(covered) >= 34


def test_scatter_that_hides_all_is_said_and_nothing_is_claimed():
    table = few_rows(0, size=2)
    table["x"] -= table.groupby("g")["x"].transform("mean") * 0.98
    fit = fit_groups(table, Design("y", ("x",), ("g",)))
    assert fit.scatter[0].slope is None
    assert not fit.find("between", "x").is_significant
    assert "With so much scatter, no claim is made between groups" in fit.sentence("x")


def grunfeld():
    table = sm.datasets.grunfeld.load_pandas().data
    return table[table["firm"] != "American Steel"]


def test_grunfelds_panel_is_answered():
    """10 firms × 20 years: the slopes are the textbook's (Baltagi, table 2.1), and one firm of ten
    carries most of the variation."""
    design = Design("invest", ("value", "capital"), ("firm",))
    fit = fit_groups(grunfeld(), design)
    value, capital = (fit.find("within", name) for name in design.on)
    assert (value.value, capital.value) == pytest.approx((0.1101, 0.3101), abs=5e-5)
    assert value.is_significant
    low, high = value.interval
    assert 0 < low < 0.075 < 0.145 < high < 0.25
    assert capital.p_value < 0.05
    by_hand = {name: fit.find("between", name).value for name in design.on}
    assert (by_hand["value"], by_hand["capital"]) == pytest.approx((0.1346, 0.0320), abs=5e-5)


def test_a_wild_bootstrap_of_two_columns_refits_the_other_one_for_every_pattern_of_signs():
    table = grunfeld()[["invest", "value", "capital", "firm"]].copy()
    code = pd.factorize(table["firm"])[0]
    numbers = table[["invest", "value", "capital"]]
    centred = (numbers - numbers.groupby(code).transform("mean")).to_numpy()
    y, x = centred[:, 0], centred[:, 1:]
    remaining = x[:, 1:]
    restricted = y - remaining @ np.linalg.lstsq(remaining, y, rcond=None)[0]
    direction = x[:, 0] - remaining @ np.linalg.lstsq(remaining, x[:, 0], rcond=None)[0]

    def t(response):
        coefficients = np.linalg.lstsq(x, response, rcond=None)[0]
        scores = np.bincount(code, direction * (response - x @ coefficients))
        return abs(coefficients[0]) / np.linalg.norm(scores)

    signs = np.array(np.meshgrid(*[[-1.0, 1.0]] * 10)).reshape(10, -1).T
    drawn = np.array([t(y - restricted + pattern[code] * restricted) for pattern in signs])
    expected = np.mean(drawn >= t(y) * (1 - 1e-9))
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


def test_a_slope_whose_permutations_cannot_reach_the_level_says_so():
    """Four groups have 24 permutations, and two slopes need p = 0.025."""
    rng = np.random.default_rng(1)
    group = np.arange(4).repeat(6)
    table = pd.DataFrame({"y": rng.normal(size=24), "x": rng.normal(size=24), "g": group})
    sentence = fit_groups(table, Design("y", ("x",), ("g",))).sentence("x")
    assert (
        "At a significance level of 2.5 %, this table can detect no effect: resampling cannot give "
        "a p below 0.042."
    ) in sentence


@pytest.mark.parametrize("num_groups", [5, pytest.param(10, marks=pytest.mark.long)])
def test_one_group_of_most_rows_makes_no_claims_and_no_silence(num_groups):
    """Slopes that differ: at most 8 of 80 null tables claim. One slope: most tables claim it."""
    sizes = np.array([300] + [10] * (num_groups - 1))
    group = np.arange(num_groups).repeat(sizes)
    design = Design("y", ("x",), ("g",))
    claims = {0.0: 0, 1.0: 0}
    for seed in range(80):
        rng = np.random.default_rng([seed, num_groups])
        x, error = rng.normal(size=(2, len(group)))
        slopes = rng.normal(size=num_groups)
        for slope in claims:
            own = slope + (slopes if slope == 0 else 0.2 * slopes)
            table = pd.DataFrame({"y": own[group] * x + error, "x": x, "g": group})
            claims[slope] += fit_groups(table, design).find(LEVELS[0], "x").is_significant
    assert claims[0.0] <= 8
    assert claims[1.0] >= 40
