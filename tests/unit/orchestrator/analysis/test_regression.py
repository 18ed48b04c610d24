"""The group-aware least squares against statsmodels, against refits by hand, and against the truth."""

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats

from orchestrator.analysis.inference import Problem, refit, solve


def grouped(num_groups, *, slope=1.5, group_std=0.5, noise_std=0.3, size=6, seed=0, models=1):
    """Points whose regressor and error both belong mostly to their group."""
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(num_groups), size)
    x = rng.normal(0, 1, num_groups)[group] + rng.normal(0, 0.2, len(group))
    error = rng.normal(0, group_std, num_groups)[group] + rng.normal(0, noise_std, len(group))
    model = np.arange(len(group)) % models
    return Problem(
        response=2 + slope * x + 0.7 * model + error,
        regressors=x[:, None],
        intercepts=np.array([f"m{k}" for k in model]),
        groups=np.array([f"g{k:02d}" for k in group]),
        weights=rng.uniform(0.5, 1.5, len(group)),
    )


def unit_weights(problem):
    return Problem(
        problem.response, problem.regressors, problem.intercepts, problem.groups,
        np.ones(len(problem.response)),
    )  # fmt: skip


def test_coefficients_and_r_squared_are_those_of_statsmodels():
    task = grouped(8)
    theirs = sm.WLS(task.response, sm.add_constant(task.regressors), task.weights).fit()
    ours = solve(task)
    assert ours.coefficients == pytest.approx(theirs.params)
    assert ours.r_squared == pytest.approx(theirs.rsquared)
    assert ours.residuals == pytest.approx(theirs.resid)


def test_aicc_differs_from_statsmodels_by_a_constant_only():
    task = unit_weights(grouped(8))
    null = Problem(task.response, task.regressors[:, :0], task.intercepts, task.groups, task.weights)
    n = len(task.response)

    def theirs(design):
        fit = sm.OLS(task.response, design).fit()
        k = design.shape[1] + 1
        return -2 * fit.llf + 2 * k + 2 * k * (k + 1) / (n - k - 1)

    ours = solve(task).aicc - solve(null).aicc
    assert ours == pytest.approx(theirs(sm.add_constant(task.regressors)) - theirs(np.ones((n, 1))))


def test_models_get_their_own_intercept_and_the_mean_is_reported():
    task = grouped(8, models=3)
    indicators = np.column_stack([task.intercepts == m for m in ("m0", "m1", "m2")]).astype(float)
    theirs = sm.WLS(task.response, np.column_stack([indicators, task.regressors]), task.weights).fit()
    ours = solve(task)
    share = task.weights @ indicators / task.weights.sum()
    assert ours.coefficients == pytest.approx([theirs.params[:3] @ share, theirs.params[3]])


def test_leaving_out_a_group_is_refitting_without_its_points():
    task = grouped(5)
    solution = solve(task)
    for name, coefficients in solution.left_out.items():
        kept = task.groups != name
        refit = sm.WLS(task.response[kept], sm.add_constant(task.regressors[kept]), task.weights[kept]).fit()
        assert coefficients == pytest.approx(refit.params)


def test_the_held_out_error_is_that_of_predicting_each_group_from_the_others():
    task = unit_weights(grouped(5))
    squares = []
    for name in np.unique(task.groups):
        out = task.groups == name
        refit = sm.OLS(task.response[~out], sm.add_constant(task.regressors[~out])).fit()
        squares.append(
            np.mean((task.response[out] - refit.predict(sm.add_constant(task.regressors[out]))) ** 2)
        )
    assert solve(task).held_out_rmse == pytest.approx(np.sqrt(np.mean(squares)))


def test_the_jackknife_error_approaches_the_cluster_robust_one_with_many_groups():
    task = unit_weights(grouped(200))
    codes = np.unique(task.groups, return_inverse=True)[1]
    theirs = sm.OLS(task.response, sm.add_constant(task.regressors)).fit(
        cov_type="cluster", cov_kwds={"groups": codes}
    )
    ours = np.sqrt(np.diag(solve(task).covariance))
    assert ours == pytest.approx(theirs.bse, rel=0.05)


def test_the_slope_agrees_with_a_mixed_model_within_its_interval():
    task = unit_weights(grouped(12, seed=3))
    mixed = sm.MixedLM(task.response, sm.add_constant(task.regressors), groups=task.groups).fit()
    low, high = solve(task).intervals()[1]
    assert low < mixed.fe_params[1] < high


@pytest.mark.parametrize("num_groups", [5, 11])
def test_intervals_hold_the_truth_as_often_as_they_say_where_plain_ones_do_not(num_groups):
    ours = plain = 0
    repeats = 200
    for seed in range(repeats):
        task = unit_weights(grouped(num_groups, seed=seed))
        solution = solve(task)
        low, high = solution.intervals()[1]
        ours += low <= 1.5 <= high
        low, high = sm.OLS(task.response, sm.add_constant(task.regressors)).fit().conf_int()[1]
        plain += low <= 1.5 <= high
    # 200 repeats of a 95 % interval fall below 0.90 once in a thousand times.
    assert ours / repeats >= 0.90
    assert plain / repeats < 0.80


def test_fixed_parts_have_slope_one():
    task = grouped(6)
    with_offset = Problem(
        task.response, np.empty((len(task.response), 0)), task.intercepts, task.groups,
        np.ones(len(task.response)), offset=task.regressors[:, 0],
    )  # fmt: skip
    assert solve(with_offset).coefficients == pytest.approx([np.mean(task.response - task.regressors[:, 0])])


def test_what_the_data_do_not_identify_is_no_solution():
    task = grouped(4)
    twice = np.column_stack([task.regressors, 2 * task.regressors])
    assert solve(Problem(task.response, twice, task.intercepts, task.groups, task.weights)) is None


def test_without_a_spread_over_groups_there_is_no_interval():
    two = solve(grouped(2))
    assert two.covariance is None
    assert two.intervals() is None


def test_a_coefficient_that_hangs_on_one_group_has_no_interval():
    task = unit_weights(grouped(5))
    only_first = (task.groups == "g00").astype(float)[:, None]
    solution = solve(Problem(task.response, only_first, task.intercepts, task.groups, task.weights))
    assert np.isnan(solution.left_out["g00"]).all()
    assert solution.intervals() is None


def test_many_weightings_at_once_equal_one_by_one():
    task = grouped(5, models=3)
    codes = np.unique(task.intercepts, return_inverse=True)[1]
    indicators = (codes[:, None] == np.arange(3)).astype(float)
    weights = np.random.default_rng(2).uniform(0, 1, (7, len(task.response)))
    together = refit(task.regressors, task.response, codes, weights)
    for b, row in enumerate(weights):
        theirs = sm.WLS(task.response, np.column_stack([indicators, task.regressors]), row).fit().params
        assert together.intercepts[b] == pytest.approx(theirs[:3])
        assert together.slopes[b] == pytest.approx(theirs[3:])


def test_an_intercept_without_weight_hides_nothing_else():
    task = unit_weights(grouped(6, models=2))
    codes = np.unique(task.intercepts, return_inverse=True)[1]
    only_first = (codes == 0).astype(float)
    found = refit(task.regressors, task.response, codes, only_first[None, :])
    theirs = sm.OLS(task.response[codes == 0], sm.add_constant(task.regressors[codes == 0])).fit().params
    assert found.slopes[0] == pytest.approx(theirs[1:])
    assert np.isnan(found.intercepts[0, 1])
    assert found.mean_intercept[0] == pytest.approx(theirs[0])


def test_the_quantile_of_the_interval_is_that_of_t_with_groups_less_one():
    solution = solve(grouped(6))
    low, high = solution.intervals()[1]
    std_error = np.sqrt(solution.covariance[1, 1])
    assert (high - low) / 2 == pytest.approx(stats.t.ppf(0.975, 5) * std_error)
