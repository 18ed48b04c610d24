"""Test fits of a user's table within and between its groups.

Oracles are statsmodels, calculations by hand, and tables without any relation.
"""

import re
from functools import partial
from itertools import combinations, permutations, product

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from scipy import stats

from orchestrator.analysis.figures.of_groups import draw_groups
from orchestrator.analysis.grouped_tables.design import LEVELS, Design
from orchestrator.analysis.grouped_tables.fit import fit_groups, fit_user_table
from orchestrator.analysis.grouped_tables.sentences import answer
from orchestrator.analysis.grouped_tables.slopes import Slope
from orchestrator.analysis.grouped_tables.user_table import read_user_table
from search_spaces.errors import ConfigError

PLAIN = Design("loss", ("d",), ("dataset",))


def grouped_table(num_groups=6, seed=0, slope_within=-0.3, slope_between=2.0):
    """Return a table of groups of unequal size and three models: the two slopes differ in sign."""
    rng = np.random.default_rng(seed)
    parts = []
    for g in range(num_groups):
        size = int(rng.integers(12, 40))
        d = g + rng.normal(size=size)
        model = rng.integers(0, 3, size)
        loss = slope_between * g + slope_within * (d - g) + model + rng.normal(size=size)
        part = {
            "loss": loss,
            "d": d,
            "k": rng.normal(size=size),
            "dataset": f"s{g}",
            "model": model,
        }
        parts.append(pd.DataFrame(part))
    return pd.concat(parts, ignore_index=True).astype({"model": str})


@pytest.mark.parametrize(
    ("column", "value", "warning"),
    [
        (
            "loss",
            -999,
            "loss is -999 in 3 rows. The fit uses -999 as a number",
        ),
        ("d", -9999, "d is -9999 in 3 rows"),
        ("d", 999, "d is 999 in 3 rows"),
        ("d", 99, "d is 99 in 3 rows"),
        ("d", -9, "d is -9 in 3 rows"),
        ("loss", -88, "loss is -88 in 3 rows"),
        ("d", -32768, "d is -32768 in 3 rows"),
        ("d", 9.96921e36, "d is 9.96921e+36 in 3 rows"),
        ("d", 9.969209968386869e36, "d is 9.96921e+36 in 3 rows"),
        ("d", -99.9, "d is -99.9 in 3 rows"),
        ("loss", 65535, "loss is 65535 in 3 rows"),
        (
            "dataset",
            "Total",
            "dataset is Total in 3 rows. The fit uses these rows like all other rows",
        ),
        ("dataset", "all", "dataset is all in 3 rows"),
        ("model", "Mean", "model is Mean in 3 rows"),
        ("model", "Total2", "model is Total2 in 3 rows"),
        ("dataset", "mean ± std", "dataset is mean ± std in 3 rows"),
        ("dataset", "macro-average", "dataset is macro-average in 3 rows"),
        ("dataset", "mean_of_all", "dataset is mean_of_all in 3 rows"),
        ("dataset", "S1", "dataset contains S1 and s1, which differ only in spelling"),
        ("model", "1.0", "model contains 1 and 1.0, which differ only in spelling"),
    ],
)
def test_codes_for_missing_values_and_summary_rows_are_fitted_with_a_warning(
    tmp_path, column, value, warning
):
    table = grouped_table()
    table[column] = table[column].astype(object)
    table.loc[[3, 40, 70], column] = value
    table.to_csv(tmp_path / "own.csv", index=False)
    design = Design("loss", ("d",), ("dataset",), ("model",))
    user_table = read_user_table(tmp_path / "own.csv", design)
    assert len(user_table.rows) == len(table)
    fit = fit_user_table(user_table, design)
    assert [remark for remark in fit.remarks if warning in remark] == list(fit.remarks)
    assert f"Beware: {warning}" in " ".join(fit.lines())


@pytest.mark.parametrize(
    "losses", [np.linspace(0, 1, 90), np.arange(90) % 7, np.linspace(-500, 500, 90)]
)
def test_a_missing_value_code_is_recognized_far_from_other_values_or_alone_below_zero(
    tmp_path, losses
):
    code = -999 if losses.min() < 0 else -1
    table = grouped_table()[:90].assign(loss=np.where(np.arange(90) % 40, losses, code))
    table = table.drop(columns="model")
    table.to_csv(tmp_path / "own.csv", index=False)
    (remark,) = read_user_table(tmp_path / "own.csv", PLAIN).remarks
    assert remark.startswith(f"Beware: loss is {code} in 3 rows")


@pytest.mark.parametrize(
    "d",
    [
        np.linspace(0, 999, 90).round(),
        np.arange(90) % 2 * 2 - 1,
        np.arange(90) % 3 - 1,
        -np.arange(90) - 1,
        np.array([500, 750, 1000, 10_000])[np.arange(90) % 4],
    ],
)
def test_numbers_that_only_look_like_codes_give_no_warning(tmp_path, d):
    table = grouped_table()[:90].drop(columns="model")
    table = table.assign(d=d + 0.0, loss=table["loss"] - 99)
    table.to_csv(tmp_path / "own.csv", index=False)
    assert fit_user_table(read_user_table(tmp_path / "own.csv", PLAIN), PLAIN).remarks == ()


@pytest.mark.parametrize("num_missing", [3, 60])
def test_a_level_that_counts_as_missing_is_reported(tmp_path, num_missing):
    table = grouped_table()
    table["dataset"] = table["dataset"].where(table.index >= num_missing, "None")
    table.to_csv(tmp_path / "own.csv", index=False)
    message = (
        rf"{num_missing} rows without dataset, because 'None' counts as missing \(rows 1, 2, 3"
    )
    if num_missing > 3:
        with pytest.raises(
            ConfigError, match=rf"{message}, ….*\. .*If the name of a group counts as missing"
        ):
            read_user_table(tmp_path / "own.csv", PLAIN)
    else:
        assert re.search(message, read_user_table(tmp_path / "own.csv", PLAIN).remarks[0])


def dummy_columns(table, *names):
    return pd.get_dummies(table[list(names)], drop_first=True, dtype=float)


@pytest.mark.parametrize("within", [(), ("model",)])
@pytest.mark.parametrize("on", [("d",), ("d", "k")])
def test_slopes_within_groups_are_those_of_indicators_and_refits_without_each_group(within, on):
    table = grouped_table()
    fit = fit_groups(table, Design("loss", on, ("dataset",), within))

    def fit_by_hand(part):
        regressors = pd.concat([part[list(on)], dummy_columns(part, "dataset", *within)], axis=1)
        x = sm.add_constant(regressors)
        return sm.OLS(part["loss"], x).fit().params[list(on)]

    names = sorted(table["dataset"].unique())
    without = pd.DataFrame({name: fit_by_hand(table[table["dataset"] != name]) for name in names})
    regressors = pd.concat([table[list(on)], dummy_columns(table, "dataset", *within)], axis=1)
    x = sm.add_constant(regressors)
    for name in on:
        slope = fit.find("within", name)
        value = fit_by_hand(table)[name]
        error, degrees = slow_cr2(table["loss"], x, table["dataset"], name)
        assert slope.value == pytest.approx(value, rel=1e-9)
        assert slope.left_out == pytest.approx(dict(without.loc[name]), rel=1e-9)
        assert slope.interval == pytest.approx(
            stats.t.interval(0.95, degrees, value, error), rel=1e-8
        )


def slow_cr2(y, x, clusters, name):
    """Return the CR2 standard error of a slope and its degrees of freedom.

    The formulas are those of Bell & McCaffrey (2002) and Imbens & Kolesár (2016, section 3), with
    every matrix in full and the intercepts of groups as columns.
    """
    column = list(x.columns).index(name)
    x = x.to_numpy(float)
    y = y.to_numpy(float)
    inverse = np.linalg.pinv(x.T @ x)
    annihilator = np.eye(len(y)) - x @ inverse @ x.T
    residuals = annihilator @ y
    variance = 0.0
    forms = []
    for cluster in sorted(set(clusters)):
        places = np.flatnonzero(clusters == cluster)
        values, vectors = np.linalg.eigh(annihilator[np.ix_(places, places)])
        roots = np.where(values > 1e-9, 1 / np.sqrt(np.maximum(values, 1e-9)), 0.0)
        adjustment = vectors @ np.diag(roots) @ vectors.T
        weights = adjustment @ x[places] @ inverse[column]
        variance += (weights @ residuals[places]) ** 2
        forms.append(annihilator[:, places] @ weights)
    covariances = np.array(forms) @ np.array(forms).T
    eigenvalues = np.linalg.eigvalsh(covariances)
    return np.sqrt(variance), eigenvalues.sum() ** 2 / (eigenvalues**2).sum()


def test_p_within_groups_is_that_of_a_wild_bootstrap_refitted_for_every_pattern_of_signs():
    table = grouped_table(num_groups=8, slope_within=-0.12)
    slope = fit_groups(table, PLAIN).find("within", "d")
    indicators = pd.get_dummies(table["dataset"], dtype=float).to_numpy()
    x = np.column_stack([table["d"], indicators])
    code = pd.factorize(table["dataset"])[0]
    losses = table["loss"].to_numpy()
    d_data = table["d"].to_numpy()
    fitted = indicators @ np.linalg.lstsq(indicators, losses, rcond=None)[0]
    restricted = losses - fitted
    within = d_data - indicators @ np.linalg.lstsq(indicators, d_data, rcond=None)[0]

    def t_statistic(response):
        coefficients = np.linalg.lstsq(x, response, rcond=None)[0]
        scores = np.bincount(code, within * (response - x @ coefficients))
        return abs(coefficients[0]) / np.sqrt((scores**2).sum())

    observed = t_statistic(losses)
    patterns = [np.array(signs) for signs in product((-1, 1), repeat=8)]
    drawn_statistics = [t_statistic(fitted + signs[code] * restricted) for signs in patterns]
    assert 0.005 < slope.p_value < 0.9
    assert slope.p_value == np.mean(np.array(drawn_statistics) >= observed * (1 - 1e-9))


def test_slopes_between_groups_are_those_of_their_means_and_all_permutations():
    table = grouped_table()
    table["d"] = table.groupby("dataset")["d"].transform("mean")  # no scatter in the means
    slope = fit_groups(table, PLAIN).find("between", "d")
    means = table.groupby("dataset")[["loss", "d"]].mean()

    def fit_by_hand(part):
        return sm.OLS(part["loss"], sm.add_constant(part["d"])).fit()

    value = fit_by_hand(means).params["d"]
    without = {name: fit_by_hand(means.drop(name)).params["d"] for name in means.index}
    error, degrees = slow_cr2(
        means["loss"], sm.add_constant(means["d"]), pd.Series(range(6), means.index), "d"
    )
    assert error == pytest.approx(fit_by_hand(means).HC2_se["d"], rel=1e-9)
    # The interval of plain least squares and that of CR2: the fit has the wider one.
    ends = [*fit_by_hand(means).conf_int().loc["d"], *stats.t.interval(0.95, degrees, value, error)]
    x = means["d"].to_numpy()
    y = means["loss"].to_numpy()
    observed = abs(np.corrcoef(x, y)[0, 1])
    permuted = [abs(np.corrcoef(x, y[list(order)])[0, 1]) for order in permutations(range(6))]
    exact = np.mean(np.array(permuted) >= observed - 1e-12)
    assert slope.value == pytest.approx(value, rel=1e-9)
    assert slope.left_out == pytest.approx(without, rel=1e-9)
    assert slope.interval == pytest.approx((min(ends), max(ends)), rel=1e-9)
    p_of_t_test = 2 * stats.t.sf(abs(value) / error, degrees)
    assert slope.p_value == pytest.approx(max(exact, p_of_t_test), rel=1e-8)


def test_the_pooled_correlation_is_shown_with_the_reason_why_it_misleads():
    table = grouped_table()
    fit = fit_groups(table, PLAIN)
    pooled = fit.pooled[0]
    by_hand = stats.pearsonr(table["d"], table["loss"])
    assert (pooled.r, pooled.p_value) == pytest.approx(
        (by_hand.statistic, by_hand.pvalue), rel=1e-8
    )
    by_group = {
        name: np.corrcoef(part["d"], part["loss"])[0, 1] for name, part in table.groupby("dataset")
    }
    assert pooled.by_group == pytest.approx(by_group, rel=1e-9)
    groups = table.groupby("dataset")
    squares_within = groups["loss"].var(ddof=0) @ groups.size()
    share_between = 1 - squares_within / (table["loss"].var(ddof=0) * len(table))
    assert pooled.shares[0] == pytest.approx(share_between, rel=1e-9)
    assert f"{len(table)} rows of 6 groups as independent" in fit.why_pooled_misleads(pooled)
    fit_of_two_rows = fit_groups(table.drop_duplicates("dataset").head(2), PLAIN)
    assert fit_of_two_rows.pooled == ()  # two rows lie on a line


def test_the_sentence_has_a_claim_for_each_level():
    fit = fit_groups(grouped_table(num_groups=9), Design("loss", ("d",), ("dataset",), ("model",)))
    sentence = fit.sentence("d")
    assert sentence.startswith("At equal model, within one dataset, loss falls with d (slope −0.")
    assert " At equal model, between 9 groups, loss rises with d (slope " in sentence


@pytest.mark.parametrize(
    ("p_value", "bounds", "words"),
    [
        (0.02, (0.1, 0.9), "it is not adjusted for the number of tests. The adjusted p decides."),
        (0.08, (0.1, 0.9), "a second analysis gives p = 0.08."),
        (0.08, (-0.1, 0.9), ""),
    ],
)
def test_an_undecided_slope_says_why_its_interval_may_exclude_zero(p_value, bounds, words):
    slope = Slope(
        value=0.5,
        interval=bounds,
        p_value=p_value,
        adjusted_p=4 * p_value,
        num_tests=4,
        level="within",
        on="d",
    )
    design = Design("loss", ("d",), ("dataset",))
    sentence = answer(design, 9, slope, slope, None)
    assert ("This interval excludes 0" in sentence) == bool(words)
    assert words in sentence


def groups_of_scattered_slopes(rng, num_groups):
    """Return groups whose slopes scatter about zero; few groups have most of the variance."""
    parts = []
    for g, size in enumerate(rng.integers(4, 60, num_groups)):
        mean_of_group = rng.normal() * 2
        d = mean_of_group + rng.normal(size=size) * rng.exponential()
        loss = rng.normal() * 2 + rng.normal() * (d - mean_of_group) + rng.standard_t(3, size=size)
        parts.append(pd.DataFrame({"loss": loss, "d": d, "dataset": f"s{g}"}))
    return pd.concat(parts)


def groups_of_growing_error(rng):
    """Return groups whose error grows with the column.

    Least squares and a permutation test alone would make a claim for one of four such tables.
    """
    d = np.exp(rng.normal(size=9))
    code = np.arange(9).repeat(8)
    loss = (rng.normal(size=9) * d)[code] + rng.normal(size=72)
    return pd.DataFrame({"loss": loss, "d": d[code], "dataset": code})


def patients_of_hospitals(rng, nested):
    """Return rows whose intercepts and slopes scatter over three hospitals.

    Each hospital has its own twenty patients (``nested``), or all have the same twenty.
    """
    hospital, patient = (codes.ravel() for codes in np.indices((3, 20)).repeat(3, axis=1))
    within = rng.normal(size=len(hospital))
    x, y, slopes = rng.normal(size=(3, 3))
    loss = y[hospital] + slopes[hospital] * within + rng.normal(size=len(within))
    table = pd.DataFrame({"loss": loss, "d": x[hospital] + within, "hospital": hospital})
    return table.assign(patient=10 + patient + 20 * nested * hospital)


def folds_and_runs(rng):
    """Return rows of folds and runs with the same names, where (1, 2) and (2, 1) are two groups."""
    fold, run = (codes.repeat(3) for codes in np.indices((8, 8)))
    d, loss = rng.normal(size=(2, len(fold))) + rng.normal(size=8)[fold]
    return pd.DataFrame({"d": d, "loss": loss, "fold": fold, "run": run})


@pytest.mark.long
@pytest.mark.parametrize(
    ("draw", "groups"),
    [
        (partial(groups_of_scattered_slopes, num_groups=3), ("dataset",)),
        (partial(groups_of_scattered_slopes, num_groups=6), ("dataset",)),
        (groups_of_growing_error, ("dataset",)),
        (partial(patients_of_hospitals, nested=False), ("hospital", "patient")),
        (partial(patients_of_hospitals, nested=True), ("hospital", "patient")),
        (folds_and_runs, ("fold", "run")),
    ],
)
def test_tables_without_a_relation_seldom_give_a_claim(draw, groups):
    """A correct test gives more than 12 claims in 120 such tables with a probability of 1/50."""
    design = Design("loss", ("d",), groups)
    fits = [fit_groups(draw(np.random.default_rng([seed, 20])), design) for seed in range(120)]
    num_levels = 1 if draw is folds_and_runs else 2
    levels = LEVELS[:num_levels]
    has_claim = [any(fit.find(level, "d").is_significant for level in levels) for fit in fits]
    assert sum(has_claim) <= 12
    remark_on_names = "8 names in both fold and run are read as different groups"
    assert all(remark_on_names in " ".join(fit.remarks) for fit in fits) == (draw is folds_and_runs)


def test_a_column_that_does_not_vary_within_groups_changes_no_other_slope():
    table = grouped_table()
    table["level"] = table["dataset"].str[1:].astype(float)
    fit_of_two = fit_groups(table, Design("loss", ("d", "level"), ("dataset",)))
    slope_of_d_alone = fit_groups(table, PLAIN).find("within", "d")
    assert fit_of_two.find("within", "d").value == pytest.approx(slope_of_d_alone.value)
    assert fit_of_two.find("within", "d").interval == pytest.approx(slope_of_d_alone.interval)
    assert fit_of_two.find("within", "level").reason == "level does not vary within groups"
    fit_with_multiple = fit_groups(
        table.assign(k=2 * table["d"]), Design("loss", ("d", "k"), ("dataset",))
    )
    reason = fit_with_multiple.find("within", "d").reason
    assert reason == "d varies only together with other columns within groups"


@pytest.mark.parametrize(("shift", "unit"), [(2459000.0, 1.0), (0.0, 1e-60), (0.0, 1e60)])
def test_p_values_and_slopes_do_not_depend_on_units(shift, unit):
    table = grouped_table()
    in_other_units = table.assign(d=shift + unit * table["d"], loss=unit * table["loss"])
    fit = fit_groups(in_other_units, PLAIN)
    for level in ("within", "between"):
        slope = fit.find(level, "d")
        expected = fit_groups(table, PLAIN).find(level, "d")
        assert slope.value / (unit if shift else 1.0) == pytest.approx(expected.value, rel=1e-6)
        assert slope.p_value == pytest.approx(expected.p_value, rel=1e-4)


@pytest.mark.parametrize(
    ("change", "level", "message"),
    [
        (
            lambda t: t.assign(d=t["dataset"].str[1:].astype(float)),
            "within",
            "d does not vary within groups",
        ),
        (
            lambda t: t.assign(d=t["d"].where(t["dataset"] < "s2", 0.0)),
            "within",
            "within 2 groups only",
        ),
        (lambda t: t[t["dataset"] < "s2"], "between", "a slope needs 3 groups that differ in d"),
        # Means of a column that was centred within groups are rounding, of which there is no slope.
        (
            lambda t: t.assign(d=t["d"] - t.groupby("dataset")["d"].transform("mean")),
            "between",
            "a slope needs 3 groups that differ in d",
        ),
        (lambda t: t[t["dataset"] < "s3"], "between", "too few groups for a p-value of 0.05"),
    ],
)
def test_a_slope_that_cannot_be_estimated_has_a_reason_and_no_claim(change, level, message):
    fit = fit_groups(change(grouped_table()), PLAIN)
    slope = fit.find(level, "d")
    assert message in slope.reason
    assert not slope.is_significant
    assert slope.reason in fit.sentence("d")


def test_columns_that_vary_only_together_between_groups_are_named():
    table = grouped_table()
    table["e"] = 3 * table["d"]
    fit = fit_groups(table, Design("loss", ("d", "e"), ("dataset",)))
    assert fit.find("between", "e").reason == "d and e vary only together between groups"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda t: t.assign(d=t["dataset"].str[1:].astype(float)),
            "100% of the variance of d lie between groups, so r shows almost only",
        ),
        (
            lambda t: t.assign(d=t["d"] - t.groupby("dataset")["d"].transform("mean")),
            "0% of the variance of d lie between groups, so r shows almost only the relation "
            "within groups.",
        ),
        (
            lambda t: t.assign(loss=2 * t["d"]),
            "so r mixes the relations within and between groups. Within each group, r is 1.",
        ),
    ],
)
def test_the_reason_why_a_pooled_correlation_misleads_fits_its_shares(change, words):
    fit = fit_groups(change(grouped_table()), PLAIN)
    assert words in fit.why_pooled_misleads(fit.pooled[0])


def test_groups_that_share_no_model_cannot_be_compared():
    table = grouped_table()
    table["model"] = table["dataset"]
    slope = fit_groups(table, Design("loss", ("d",), ("dataset",), ("model",))).find("between", "d")
    assert (slope.value, slope.reason) == (None, "groups share no model")


def write_table(tmp_path, table, name="t.csv"):
    path = tmp_path / name
    table.to_csv(path, index=False)
    return path


@pytest.mark.parametrize(
    ("change", "messages"),
    [
        (
            lambda t: t.assign(d="0,5"),
            ["Column d has 116 cells without a usable number", "between 1e-100 and 1e+100"],
        ),
        (lambda t: t.assign(d=1.0), ["Column d varies too little for a slope"]),
        (
            lambda t: t.assign(d=2**60 + 3 * t.index),
            ["Column d varies too little for a slope"],
        ),
        (
            lambda t: t.assign(dataset="a"),
            ["Column dataset has only 1 group, but a fit needs at least 2"],
        ),
        (
            lambda t: pd.concat([t, t]),
            ["The fit would leave out 50% of the rows", "116 rows equal to an earlier row"],
        ),
        (
            lambda t: t.assign(loss=t["loss"].where(t.index > 20)),
            [("21 rows without loss (rows 1, 2, 3, …)")],
        ),
        (lambda t: t.assign(loss=t["loss"] * 1e-300), ["Column loss has 116 cells"]),
        (
            lambda t: t.assign(loss=np.inf, d="x"),
            ["Column loss has 116 cells", "Column d has 116 cells"],
        ),
        (lambda t: t.drop(columns="d"), ["Unknown column 'd' of t.csv"]),
    ],
)
def test_all_problems_of_a_table_are_in_one_message(tmp_path, change, messages):
    table = grouped_table().head(116)
    with pytest.raises(ConfigError, match=re.escape(messages[0])) as raised:
        read_user_table(write_table(tmp_path, change(table)), PLAIN)
    for message in messages:
        assert message in str(raised.value)
    # A column without numbers gets no second complaint that it does not vary.
    assert str(raised.value).count("Column loss ") <= 1


@pytest.mark.parametrize(
    ("name", "body", "message"),
    [
        (
            "t.csv",
            b"",
            "t.csv is empty. Save the table as CSV in UTF-8 with one line of column names",
        ),
        (
            "t.csv",
            b"loss,d,dataset\n1,2\n1,2,3,4\n",
            "t.csv has 2 rows with more or fewer cells than the header, which has 3 cells",
        ),
        (
            "t.csv",
            "loss,d,dataset\n1,2,ä\n".encode("latin-1"),
            r"t\.csv is not UTF-8 text\. Save it as \.csv in UTF-8",
        ),
        (
            "t.csv",
            b"loss,d,dataset\n1,2,a,\n",
            "t.csv has 1 row with more or fewer cells than the header, which has 3 cells",
        ),
        (
            "t.csv",
            b"loss,d,d,dataset\n1,2,3,4\n",
            "t.csv has more than one column with the name d",
        ),
        ("t.parquet", b"PAR1", r"t\.parquet cannot be read as a .*Parquet file"),
        ("t.doc", b"x", "t.doc does not have the file extension of a table that isweep can read"),
    ],
)
def test_a_file_that_is_no_table_is_refused(tmp_path, name, body, message):
    (tmp_path / name).write_bytes(body)
    with pytest.raises(ConfigError, match=message):
        read_user_table(tmp_path / name, PLAIN)


@pytest.mark.parametrize(
    "name", ["t.csv", "t.tsv", "semicolons.csv", "t.parquet", "index.parquet", "t.xlsx"]
)
def test_every_file_format_gives_the_same_numbers(tmp_path, name):
    table = grouped_table()
    path = tmp_path / name
    ending = name.rpartition(".")[2]
    if ending in ("csv", "tsv"):
        separator = {"t.csv": ",", "t.tsv": "\t"}.get(name, ";")
        encoding = "utf-8-sig" if ending == "tsv" else "utf-8"
        table.to_csv(path, index=False, sep=separator, encoding=encoding)
    elif ending == "xlsx":
        table.to_excel(path, index=False)
    elif name.startswith("index"):
        table.set_index("dataset").to_parquet(path)
    else:
        table.to_parquet(path)
    rows_of_file = read_user_table(path, PLAIN).rows
    np.testing.assert_allclose(rows_of_file["loss"], table["loss"], rtol=1e-15)
    assert rows_of_file["dataset"].tolist() == table["dataset"].tolist()


def test_rows_without_a_value_and_repeated_rows_are_left_out_and_counted(tmp_path):
    table = grouped_table().drop(columns="model")
    table.loc[[3, 7], "d"] = np.nan
    path = write_table(tmp_path, pd.concat([table, table[:1]]))
    fit = fit_user_table(read_user_table(path, PLAIN), PLAIN)
    assert fit.num_rows == len(table) - 2
    assert fit.remarks == (
        "Left out: 2 rows without d (rows 4, 8).",
        f"Left out: 1 row equal to an earlier row in every column (row {len(table) + 1}).",
    )


def test_the_figure_has_a_panel_per_column():
    table = grouped_table()
    design = Design("loss", ("d", "k"), ("dataset",))
    figure = draw_groups(table, fit_groups(table, design))
    assert [ax.get_xlabel() for ax in figure.axes] == ["d", "k"]
    legend = figure.axes[0].get_legend()
    assert {text.get_text() for text in legend.get_texts()} == {
        "mean of a group",
        "slope within groups",
        "slope between groups",
    }


def test_a_pair_does_not_depend_on_the_order_of_its_groups():
    rng = np.random.default_rng(3)
    pairs = [pair for pair in combinations("abcdef", 2) for _ in range(4)]
    table = pd.DataFrame(pairs, columns=["first", "second"]).assign(
        x=rng.normal(size=len(pairs)), y=rng.normal(size=len(pairs))
    )
    swapped = table.copy()
    swapped.loc[::2, ["first", "second"]] = table.loc[::2, ["second", "first"]].to_numpy()
    design = Design("y", ("x",), ("first", "second"))
    with pytest.raises(
        ConfigError, match=r"first and second contain a pair in both orders: . and ., . and ."
    ):
        fit_groups(swapped, design)
    fit = fit_groups(table, design)
    fit_of_swapped = fit_groups(swapped, design, pairs=True)
    assert (fit.num_groups, fit_of_swapped.num_groups) == (15, 15)
    for level in ("within", "between"):
        assert fit_of_swapped.find(level, "x").interval == pytest.approx(
            fit.find(level, "x").interval, rel=1e-9
        )


@pytest.mark.parametrize(
    ("sites", "scanners", "num_shared"),
    [
        (["A", "B", "other"], ["other", *(f"s{k}" for k in range(19))], 1),
        pytest.param(list("012"), list(map(str, range(12))), 3, marks=pytest.mark.long),
    ],
)
def test_a_name_in_two_columns_adds_no_degrees_of_freedom(sites, scanners, num_shared):
    """Slopes scatter over three sites; the names of scanners must not add degrees of freedom."""
    num_claims = 0
    for seed in range(100):
        rng = np.random.default_rng([seed, len(scanners)])
        site, scanner = (
            codes.ravel() for codes in np.indices((3, len(scanners))).repeat(3, axis=1)
        )
        x = rng.normal(size=len(site))
        table = pd.DataFrame({"y": rng.normal(size=3)[site] * x + rng.normal(size=len(x)), "x": x})
        table = table.assign(site=np.array(sites)[site], scanner=np.array(scanners)[scanner])
        design = Design("y", ("x",), ("site", "scanner"))
        fit = fit_groups(table, design)
        num_claims += any(slope.is_significant for slope in fit.slopes)
        if seed == 0:
            fit_of_renamed = fit_groups(table.assign(site="of " + table["site"]), design)
            for level in ("within", "between"):
                slope = fit.find(level, "x")
                expected = fit_of_renamed.find(level, "x")
                assert (slope.value, slope.p_value) == pytest.approx(
                    (expected.value, expected.p_value)
                )
            names = "1 name" if num_shared == 1 else f"{num_shared} names"
            assert f"{names} in both site and scanner are read as diff" in fit.remarks[0]
    assert num_claims <= 5


def test_a_name_in_two_of_three_columns_is_reported_and_means_two_groups():
    codes = np.indices((3, 3, 5)).reshape(3, -1).repeat(3, axis=1)
    rng = np.random.default_rng(0)
    table = pd.DataFrame(codes.T, columns=["site", "seed", "fold"])
    table = table.assign(site=table["site"].map("ABC".__getitem__), x=rng.normal(size=len(table)))
    table["y"] = table["x"] + rng.normal(size=len(table))
    fit = fit_groups(table, Design("y", ("x",), ("site", "seed", "fold")))
    assert {"seed 0", "fold 0", "3", "A"} < set(fit.find("within", "x").left_out)
    assert [remark.partition(" are read")[0] for remark in fit.remarks] == [
        "3 names in both seed and fold"
    ]
    assert "Between 45 combinations of site, seed and fold, " in fit.sentence("x")


@pytest.mark.parametrize(
    "groups", [("dataset", "other"), pytest.param(("dataset",), marks=pytest.mark.long)]
)
def test_thousands_of_groups_are_fitted_as_by_hand(groups):
    """5,000 patients of three rows, alone or crossed: no matrix of 5,000 × 5,000 is stored."""
    rng = np.random.default_rng(5)
    codes = np.arange(5_000).repeat(3)
    d_data = rng.normal(size=5_000)[codes] + rng.normal(size=len(codes))
    table = pd.DataFrame({"d": d_data, "dataset": codes})
    table["loss"] = 0.1 * table["d"] + rng.normal(size=len(codes))
    table["other"] = rng.integers(-9, 0, len(codes))
    fit = fit_groups(table, Design("loss", ("d",), groups))
    means = table.groupby(list(groups))[["loss", "d"]].mean()
    by_hand = sm.OLS(means["loss"], sm.add_constant(means["d"])).fit().params["d"]
    without = means.drop(index=17, level=0) if len(groups) > 1 else means.drop(17)
    refit = sm.OLS(without["loss"], sm.add_constant(without["d"])).fit().params["d"]
    slope = fit.find("between", "d")
    assert slope.value == pytest.approx(by_hand, rel=1e-9)
    assert slope.left_out["17"] == pytest.approx(refit, rel=1e-9)
    assert slope.is_significant
