"""Test the statistics of the fits against statsmodels, scipy, enumeration by hand, and their level
under the null hypothesis."""

from itertools import combinations, permutations, product

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import integrate, stats
from statsmodels.stats.multitest import multipletests

from orchestrator.analysis.inference import (
    WEBB,
    curve_sums,
    dataset_effects,
    holm,
    max_correlation_test,
    mean_interval,
    ols,
    permutation_test,
    rearrangements,
    smallest_wild_p,
    t_interval,
    t_p_values,
    wild_cluster_p,
)
from orchestrator.analysis.law_fits.detection import LargestCorrelation, TTest, t_power
from orchestrator.analysis.law_fits.estimates import correlation_interval, slope_estimates
from orchestrator.analysis.law_fits.exponents import with_exponent
from orchestrator.analysis.law_fits.records import ExponentFit


def draw_sample(num_rows, num_regressors, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(0, 1, num_rows), rng.normal(0, 1, (num_rows, num_regressors))


@pytest.mark.parametrize("num_regressors", [1, 2, 3])
def test_slopes_errors_intervals_and_p_values_are_those_of_statsmodels(num_regressors):
    y, x = draw_sample(11, num_regressors)
    expected = sm.OLS(y, sm.add_constant(x)).fit()
    values, errors, degrees = ols(y, x)
    assert values == pytest.approx(expected.params[1:])
    assert errors == pytest.approx(expected.bse[1:])
    assert t_p_values(values, errors, degrees) == pytest.approx(expected.pvalues[1:])
    intervals = [
        t_interval(value, error, degrees) for value, error in zip(values, errors, strict=True)
    ]
    assert intervals == [pytest.approx(tuple(row)) for row in expected.conf_int()[1:]]


def test_slopes_that_are_not_identified_are_none():
    y, x = draw_sample(6, 1)
    assert ols(y, np.column_stack([x, 2 * x])) is None
    assert ols(y, np.ones((6, 1))) is None
    assert ols(y[:2], x[:2]) is None


def test_effects_of_an_incomplete_table_are_those_of_two_way_regression():
    rng = np.random.default_rng(1)
    cells = np.repeat(list("abcd"), 5)
    groups = np.tile(list("vwxyz"), 4)
    values = rng.normal(0, 1, (20, 2))
    weights = rng.uniform(0.5, 2, 20)
    is_kept = np.arange(20) != 3
    _, effects = dataset_effects(values[is_kept], cells[is_kept], groups[is_kept], weights[is_kept])
    design = np.column_stack(
        [cells[:, None] == np.array(list("abcd")), groups[:, None] == np.array(list("wxyz"))]
    )
    fit = sm.WLS(values[is_kept, 0], design[is_kept].astype(float), weights[is_kept]).fit()
    assert effects[1:, 0] - effects[0, 0] == pytest.approx(fit.params[4:])


def test_the_permutation_test_is_enumeration_and_agrees_with_scipy():
    y, x = draw_sample(6, 1)
    result = permutation_test(y, x[:, 0], np.empty((6, 0)), ["a"] * 6)
    observed = abs(np.corrcoef(x[:, 0], y)[0, 1])
    reaches_observed = [
        abs(np.corrcoef(x[:, 0], y[list(order)])[0, 1]) >= observed - 1e-12
        for order in permutations(range(6))
    ]
    assert result == (pytest.approx(np.mean(reaches_observed)), 720, True, 1 / 720)
    scipy_result = stats.permutation_test(
        (y,),
        lambda v: abs(stats.pearsonr(v, x[:, 0]).statistic),
        permutation_type="pairings",
        alternative="greater",
        n_resamples=np.inf,
    )
    assert result[0] == pytest.approx(scipy_result.pvalue, abs=1e-3)


def test_the_permutations_of_a_label_are_the_choices_of_its_datasets():
    y, _ = draw_sample(10, 1, seed=3)
    label = np.array([1.0] * 6 + [0.0] * 4)
    result = permutation_test(y, label, np.empty((10, 0)), [""] * 10)
    gap = abs(y[:6].mean() - y[6:].mean())
    reaches_gap = [
        abs(y[list(chosen)].mean() - np.delete(y, chosen).mean()) >= gap - 1e-12
        for chosen in combinations(range(10), 6)
    ]
    assert result == (pytest.approx(np.mean(reaches_gap)), 210, True, 1 / 210)


@pytest.mark.parametrize(("num_medical", "smallest_p"), [(3, 2 / 20), (2, 1 / 15)])
def test_the_smallest_p_of_a_label_counts_the_mirror_image_of_two_halves(num_medical, smallest_p):
    label = np.array([1.0] * num_medical + [0.0] * (6 - num_medical))
    y = label + 1e-3 * np.arange(6)
    result = permutation_test(y, label, np.empty((6, 0)), [""] * 6)
    assert result.p_value == result.smallest_p == pytest.approx(smallest_p)


def test_permutations_stay_within_blocks():
    y, x = draw_sample(7, 1, seed=4)
    label = np.array([1.0] * 4 + [0.0] * 3)[:, None]
    result = permutation_test(y, x[:, 0], label, ["m"] * 4 + ["n"] * 3)
    assert result[1] == 24 * 6
    within = [
        values - np.concatenate([np.full(4, values[:4].mean()), np.full(3, values[4:].mean())])
        for values in (x[:, 0], y)
    ]
    observed = abs(within[0] @ within[1])
    reaches_observed = [
        abs(within[0] @ within[1][[*a, *b]]) >= observed - 1e-12
        for a in permutations(range(4))
        for b in permutations(range(4, 7))
    ]
    assert result[0] == pytest.approx(np.mean(reaches_observed))


def test_with_many_datasets_permutations_are_drawn_and_repeatable():
    y, x = draw_sample(16, 1, seed=5)
    result = permutation_test(y, x[:, 0], np.empty((16, 0)), [""] * 16)
    assert result[1:] == (10_000, False, 1e-4)
    rearrangements.cache_clear()
    assert permutation_test(y, x[:, 0], np.empty((16, 0)), [""] * 16) == result
    assert result[0] == pytest.approx(stats.pearsonr(x[:, 0], y).pvalue, abs=0.02)


@pytest.mark.long
def test_the_largest_of_many_correlations_is_adjusted_for_their_number():
    rng = np.random.default_rng(0)
    num_adjusted = 0
    num_unadjusted = 0
    for _ in range(200):
        x, y = rng.normal(0, 1, 7), rng.normal(0, 1, (7, 20))
        adjusted = max_correlation_test(y, x, [""] * 7, range(20))[1]
        num_adjusted += np.min(adjusted) <= 0.05
        unadjusted = [stats.pearsonr(x, y[:, k], alternative="greater").pvalue for k in range(20)]
        num_unadjusted += min(unadjusted) <= 0.05
    # At 5 %, more than 20 of 200 tables have a probability of 1/1,000. Without adjustment, most
    # tables show a relation.
    assert num_adjusted <= 20
    assert num_unadjusted >= 100


@pytest.mark.long
def test_the_interval_of_the_largest_of_many_correlations_is_adjusted_for_its_selection():
    rng = np.random.default_rng(1)
    num_adjusted = 0
    num_unadjusted = 0
    for _ in range(200):
        x, y = rng.normal(0, 1, 8), rng.normal(0, 1, (8, 10))
        result = max_correlation_test(y, x, [""] * 8, range(10))
        largest = float(result.r.max())
        num_unadjusted += correlation_interval(largest, 8, 0)[0] > 0
        num_adjusted += correlation_interval(largest, 8, 0, critical=result.critical)[0] > 0
    # 2.5 % of intervals lie above 0: more than 12 of 200 have a probability of 1/1,000.
    assert num_adjusted <= 12
    assert num_unadjusted >= 25


def test_a_correlation_within_blocks_is_partial_given_the_label_and_one_sided():
    y, x = draw_sample(7, 1, seed=6)
    label = np.array([1.0] * 4 + [0.0] * 3)
    blocks = ["m"] * 4 + ["n"] * 3
    label_and_constant = sm.add_constant(label)
    residuals = [sm.OLS(values, label_and_constant).fit().resid for values in (y, x[:, 0])]
    (r,), adjusted, num_permutations, critical, _ = max_correlation_test(
        y[:, None], x[:, 0], blocks, [0]
    )
    assert critical == pytest.approx(stats.norm.ppf(0.975))
    assert r == pytest.approx(np.corrcoef(*residuals)[0, 1])
    reaches_r = [
        np.corrcoef(residuals[0], residuals[1][[*a, *b]])[0, 1] >= r - 1e-12
        for a in permutations(range(4))
        for b in permutations(range(4, 7))
    ]
    # Four datasets of one domain have 24 permutations, three of the other 6.
    assert num_permutations == 24 * 6
    assert adjusted[0] == pytest.approx(np.mean(reaches_r))
    opposite_p = max_correlation_test(-y[:, None], x[:, 0], blocks, [0])[1][0]
    assert adjusted[0] + opposite_p == pytest.approx(1 + 1 / num_permutations)
    # A difference between the blocks alone is no correlation.
    assert np.isnan(max_correlation_test(label[:, None] * 5, x[:, 0], blocks, [0])[0][0])
    lacking = [np.where(np.arange(7) < num_missing, np.nan, y) for num_missing in (1, 2)]
    p_values = max_correlation_test(np.column_stack([y, *lacking]), x[:, 0], blocks, range(3))[1]
    assert np.isfinite(p_values).tolist() == [True, True, False]
    tested_first = max_correlation_test(np.column_stack([y, -y]), x[:, 0], blocks, [0])
    assert (tested_first[1][0], tested_first[0][1]) == (adjusted[0], pytest.approx(-r))
    assert np.isnan(tested_first[1][1])


def test_the_interval_of_a_correlation_is_fishers():
    assert correlation_interval(0.6, 11, 1) == pytest.approx(correlation_interval(0.6, 10, 0))
    assert correlation_interval(0.9, 5, 0) is None
    one_swap = np.array([0, 2, 1, 4, 3, 5])
    r, _ = stats.pearsonr(np.arange(6), one_swap)
    assert stats.pearsonr(np.arange(6), one_swap).confidence_interval() == pytest.approx(
        correlation_interval(r, 6, 0)
    )


@pytest.mark.parametrize("true_r", [0.0, 0.5, 0.9])
def test_the_interval_of_a_correlation_over_six_datasets_has_its_confidence(true_r):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4_000, 6))
    y = true_r * x + np.sqrt(1 - true_r**2) * rng.normal(size=(4_000, 6))
    num_covering = 0
    for x_of_table, y_of_table in zip(x, y, strict=True):
        r = np.corrcoef(x_of_table, y_of_table)[0, 1]
        low, high = correlation_interval(r, 6, 0)
        num_covering += low <= true_r <= high
    # Four standard errors of 4,000 draws.
    assert num_covering / 4_000 == pytest.approx(0.95, abs=0.014)


@pytest.mark.parametrize("num_datasets", [4, 7, 11])
def test_the_wild_bootstrap_holds_its_level(num_datasets):
    rng = np.random.default_rng(num_datasets)
    p_values = []
    for _ in range(400):
        weights = rng.uniform(0.5, 1.5, num_datasets)
        p_values.append(wild_cluster_p(([], weights, rng.normal(0, np.sqrt(weights)))))
    assert np.mean(np.array(p_values) <= 0.05) <= 0.09


def test_the_wild_bootstrap_equals_refitting_drawn_responses():
    rng = np.random.default_rng(3)
    group = np.repeat(np.arange(9), 5)
    x = rng.normal(0, 1, 45)
    x -= np.array([x[group == g].mean() for g in range(9)])[group]
    y = 0.4 * x + rng.normal(0, 1, 45)
    y -= np.array([y[group == g].mean() for g in range(9)])[group]

    def t_statistic(values):
        b = x @ values / (x @ x)
        scores = np.bincount(group, x * (values - b * x))
        return abs(b) / np.sqrt((scores**2).sum())

    signs = np.array(np.meshgrid(*[[-1, 1]] * 9)).reshape(9, -1).T
    p_by_hand = np.mean([t_statistic(y * s[group]) >= t_statistic(y) * (1 - 1e-9) for s in signs])
    sums = curve_sums(y, x, group, group, np.ones(45))
    assert wild_cluster_p(sums) == pytest.approx(p_by_hand)
    # A test against another null is a test of the response less that null.
    assert wild_cluster_p(sums, null=0.3) == wild_cluster_p(
        curve_sums(y - 0.3 * x, x, group, group, np.ones(45))
    )


def test_values_that_do_not_vary_have_no_interval():
    assert mean_interval(np.zeros(5)) == (0.0, None, None)
    assert mean_interval(np.array([1.0, 2.0]))[2] is None
    values = np.array([1.0, 2.0, 4.0])
    low, high = stats.t.interval(0.95, 2, values.mean(), stats.sem(values))
    assert mean_interval(values)[2] == pytest.approx((low, high))


@pytest.mark.parametrize(("num_groups", "num_cells"), [(3, 1), (12, 3), (39, 6)])
def test_effects_of_a_full_table_are_its_means_for_any_offset(num_groups, num_cells):
    # A pseudo-inverse of the singular system was wrong by 0.03 for 12 groups in 3 cells.
    groups = np.repeat([f"g{number:02}" for number in range(num_groups)], num_cells)
    cells = np.tile([f"c{number}" for number in range(num_cells)], num_groups)
    values = np.random.default_rng(0).normal(size=(len(groups), 1))
    means = values.reshape(num_groups, num_cells).mean(axis=1)
    for offset in (0.0, 1000.0):
        _, effects = dataset_effects(values + offset, cells, groups, np.ones(len(groups)))
        np.testing.assert_allclose(effects[:, 0], means - means.mean(), atol=1e-10)


def test_holms_adjustment_is_that_of_statsmodels():
    random = np.random.default_rng(0)
    for size in (1, 2, 5, 9):
        p = random.choice([0.001, 0.01, 0.02, 0.4, 1.0], size).tolist()
        assert holm(p) == pytest.approx(multipletests(p, method="holm")[1])
        *adjusted, untested = holm([*p, None])
        assert (adjusted, untested) == (holm(p), None)


@pytest.mark.parametrize(("effect", "degrees"), [(1.0, 7), (2.5, 10), (40.0, 5)])
def test_the_power_of_a_t_test_agrees_with_simulated_tests(effect, degrees):
    rng = np.random.default_rng(0)
    t = (rng.normal(effect, 1, 40_000)) / np.sqrt(rng.chisquare(degrees, 40_000) / degrees)
    share_detected = np.mean(np.abs(t) > stats.t.ppf(0.975, degrees))
    assert t_power(effect, 1.0, degrees) == pytest.approx(share_detected, abs=0.01)


def power_by_integration(shift, degrees, level):
    """Return the power of a two-sided t test, integrated over the error of the standard error."""
    bound = stats.t.isf(level / 2, degrees)
    ratio = stats.chi(degrees, scale=degrees**-0.5)

    def density(s):
        detected = stats.norm.sf(bound * s - shift) + stats.norm.cdf(-bound * s - shift)
        return detected * ratio.pdf(s)

    return integrate.quad(density, 0, 10, points=[min(shift / bound, 9.0)], limit=200)[0]


@pytest.mark.parametrize("degrees", [1, 2, 3, 9])
@pytest.mark.parametrize("level", [0.05, pytest.param(0.01, marks=pytest.mark.long), 0.05 / 9])
@pytest.mark.parametrize("shift", [0.5, 8.0, 29.0, 31.0])
def test_the_power_of_a_t_test_is_right_for_few_datasets_and_large_effects(shift, degrees, level):
    """scipy's noncentral t is NaN there: with 1 degree, 8 standard errors are detected in 47 %."""
    expected = power_by_integration(shift, degrees, level)
    assert t_power(shift, 1.0, degrees, level) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("degrees", [1, 2, 9])
@pytest.mark.parametrize("num_tests", [1, 9])
def test_the_detectable_effect_has_a_power_of_80_percent_however_few_the_datasets(
    degrees, num_tests
):
    effect = TTest(std_error=2.0, degrees=degrees).detectable(num_tests)
    power = power_by_integration(effect / 2.0, degrees, 0.05 / num_tests)
    assert power == pytest.approx(0.8, abs=1e-6)


def test_three_and_three_datasets_detect_nothing_at_1_percent_however_clear_the_effect():
    """36 permutations within domains: the smallest p is 1/36, whatever the p of the t test is."""
    x = np.array([0.0, 1.0, 3.0, 0.0, 1.0, 3.0])
    label = np.repeat([0.0, 1.0], 3)
    y = 2 * x + label + np.array([0.0, 1e-3, 0.0, 1e-3, 0.0, 0.0])
    terms = ("inverse_d", "is_medical")
    regressors = np.column_stack([x, label])
    blocks = ["natural"] * 3 + ["medical"] * 3
    slope, _ = slope_estimates(y, regressors, terms, blocks, tested={"inverse_d"})
    assert slope.p_value < 1e-6
    assert slope.resampled_p == slope.smallest_p == pytest.approx(1 / 36)
    test = TTest(std_error=1.0, degrees=3, smallest_p=slope.smallest_p)
    assert test.power(1000.0, num_tests=5) == 0
    assert test.detectable(num_tests=5) is None
    assert test.power(1000.0, num_tests=1) == pytest.approx(1)


@pytest.mark.parametrize(("num_natural", "num_medical", "level"), [(3, 4, 0.01), (4, 4, 0.05)])
def test_the_power_of_the_t_test_bounds_that_of_the_verdict(num_natural, num_medical, level):
    """Drawn regressions: the larger of both p-values is small less often than the t test's."""
    rng = np.random.default_rng(2)
    num = num_natural + num_medical
    label = np.repeat([0.0, 1.0], [num_natural, num_medical])
    blocks = ["natural"] * num_natural + ["medical"] * num_medical
    by_t, by_both = [], []
    for _ in range(400):
        x = np.column_stack([rng.normal(size=(num, 2)), label])
        design = np.column_stack([np.ones(num), x])
        std_error = np.sqrt(np.linalg.inv(design.T @ design)[2, 2])
        y = 8 * std_error * x[:, 1] + rng.normal(size=num)
        terms = ("inverse_d", "log_sharpness", "is_medical")
        slope = slope_estimates(y, x, terms, blocks, tested={"log_sharpness"})[1]
        by_t.append(slope.p_value <= level)
        by_both.append(slope.p <= level)
    power = t_power(8.0, 1.0, num - 4, level)
    # Four standard errors of 400 draws.
    assert np.mean(by_t) == pytest.approx(power, abs=0.08)
    assert np.mean(by_both) <= min(power, np.mean(by_t))


@pytest.mark.parametrize("num", [3, 4, 8, 12])
def test_the_smallest_p_of_the_wild_bootstrap_is_the_share_of_draws_with_one_weight(num):
    weights = [-1.0, 1.0] if num >= 8 else WEBB
    share = np.mean([len(set(draw)) == 1 for draw in product(weights, repeat=num)])
    assert smallest_wild_p(num) == pytest.approx(share, abs=3e-3)
    scores = 1 + 1e-3 * np.arange(num)
    assert wild_cluster_p(([], np.ones(num), scores)) == pytest.approx(smallest_wild_p(num))


def test_a_correlation_over_three_and_three_datasets_is_never_detected_as_one_of_two_tests():
    """36 permutations within domains: the smallest p is 1/36, above 0.05 / 2."""
    rng = np.random.default_rng(0)
    domains = ["natural"] * 3 + ["medical"] * 3
    test = max_correlation_test(rng.normal(size=(6, 2)), rng.normal(size=6), domains, [0, 1])
    assert len(test.criticals) == 1
    correlation = LargestCorrelation(
        num_correlations=2,
        degrees=2,
        interval_critical=test.critical,
        criticals=test.criticals,
    )
    assert correlation.power(0.95, num_tests=1) > 0
    assert correlation.power(0.95, num_tests=2) == 0


def test_the_jackknife_of_a_slope_is_its_refits_and_its_interval_has_its_confidence():
    num_covering = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        group = np.repeat(np.arange(11), 6)
        x = rng.normal(0, 1, 66)
        y = (
            rng.normal(0, 1, 11)[group]
            + rng.normal(1.5, 0.5, 11)[group] * x
            + rng.normal(0, 0.3, 66)
        )
        fit = with_exponent(ExponentFit(), curve_sums(y, x, group, group, np.ones(66)))
        slope = fit.estimates[0]
        low, high = slope.interval
        num_covering += low <= 1.5 <= high
    # A 95 % interval covers less than 90 % of 200 repeats with a probability of 1/1,000.
    assert num_covering / 200 >= 0.90
    is_kept = group != 3
    design = np.column_stack([x, group[:, None] == np.unique(group)]).astype(float)
    refit = sm.OLS(y[is_kept], np.delete(design[is_kept], 4, axis=1)).fit().params[0]
    assert slope.left_out["3"] == pytest.approx(refit)
    squares = sum((value - slope.value) ** 2 for value in slope.left_out.values())
    assert high - slope.value == pytest.approx(stats.t.ppf(0.975, 10) * np.sqrt(10 / 11 * squares))
