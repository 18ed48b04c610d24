"""Any table, fitted within and between its groups: against statsmodels, by hand, and with nothing
to find."""

import re
from functools import partial
from itertools import permutations, product

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from scipy import stats

from orchestrator.analysis.figures.of_groups import draw_groups
from orchestrator.analysis.grouped_tables.design import LEVELS, Design
from orchestrator.analysis.grouped_tables.fit import fit_groups, fit_user_table
from orchestrator.analysis.grouped_tables.user_table import read_user_table
from search_spaces.errors import ConfigError

PLAIN = Design("loss", ("d",), ("dataset",))


def rows(num_groups=6, seed=0, slope_within=-0.3, slope_between=2.0):
    """Rows of uneven groups and three models, in which both slopes differ in sign."""
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
    ("column", "value", "said"),
    [
        (
            "loss",
            -999,
            "loss is -999 in 3 rows. The fit uses it as a number",
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
            "dataset is Total in 3 rows. The fit uses them like other rows",
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
def test_codes_for_no_value_and_rows_that_sum_up_are_fitted_and_told(tmp_path, column, value, said):
    table = rows()
    table[column] = table[column].astype(object)
    table.loc[[3, 40, 70], column] = value
    table.to_csv(tmp_path / "own.csv", index=False)
    design = Design("loss", ("d",), ("dataset",), ("model",))
    read = read_user_table(tmp_path / "own.csv", design)
    assert len(read.rows) == len(table)
    found = fit_user_table(read, design)
    assert [remark for remark in found.remarks if said in remark] == list(found.remarks)
    assert f"Beware: {said}" in " ".join(found.lines())


@pytest.mark.parametrize(
    "others", [np.linspace(0, 1, 90), np.arange(90) % 7, np.linspace(-500, 500, 90)]
)
def test_a_code_is_told_by_how_far_it_lies_from_the_others_or_alone_below_zero(tmp_path, others):
    code = -999 if others.min() < 0 else -1
    table = rows()[:90].assign(loss=np.where(np.arange(90) % 40, others, code))
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
def test_numbers_that_only_look_like_codes_are_not_told(tmp_path, d):
    table = rows()[:90].assign(d=d + 0.0, loss=lambda own: own["loss"] - 99)
    table = table.drop(columns="model")
    table.to_csv(tmp_path / "own.csv", index=False)
    assert fit_user_table(read_user_table(tmp_path / "own.csv", PLAIN), PLAIN).remarks == ()


@pytest.mark.parametrize("num", [3, 60])
def test_a_level_that_reads_as_missing_is_told(tmp_path, num):
    table = rows().assign(dataset=lambda own: own["dataset"].where(own.index >= num, "None"))
    table.to_csv(tmp_path / "own.csv", index=False)
    message = rf"{num} rows without dataset, because 'None' counts as missing \(rows 1, 2, 3"
    if num > 3:
        with pytest.raises(
            ConfigError, match=rf"{message}, ….*\. .*If the name of a group counts as missing"
        ):
            read_user_table(tmp_path / "own.csv", PLAIN)
    else:
        assert re.search(message, read_user_table(tmp_path / "own.csv", PLAIN).remarks[0])


def dummies(table, *names):
    return pd.get_dummies(table[list(names)], drop_first=True, dtype=float)


@pytest.mark.parametrize("within", [(), ("model",)])
@pytest.mark.parametrize("on", [("d",), ("d", "k")])
def test_slopes_within_groups_are_those_of_indicators_and_refits_without_each_group(within, on):
    table = rows()
    fit = fit_groups(table, Design("loss", on, ("dataset",), within))

    def by_hand(part):
        x = sm.add_constant(pd.concat([part[list(on)], dummies(part, "dataset", *within)], axis=1))
        return sm.OLS(part["loss"], x).fit().params[list(on)]

    names = sorted(table["dataset"].unique())
    without = pd.DataFrame({name: by_hand(table[table["dataset"] != name]) for name in names})
    for name in on:
        slope = fit.find("within", name)
        value = by_hand(table)[name]
        x = sm.add_constant(
            pd.concat([table[list(on)], dummies(table, "dataset", *within)], axis=1)
        )
        error, degrees = slow_cr2(table["loss"], x, table["dataset"], name)
        assert slope.value == pytest.approx(value, rel=1e-9)
        assert slope.left_out == pytest.approx(dict(without.loc[name]), rel=1e-9)
        assert slope.interval == pytest.approx(
            stats.t.interval(0.95, degrees, value, error), rel=1e-8
        )


def slow_cr2(y, x, clusters, name):
    """Standard error and degrees of freedom as Bell & McCaffrey (2002) and Imbens & Kolesár (2016,
    section 3) write them: every matrix in full, intercepts of groups as columns."""
    x, y, place = x.to_numpy(float), y.to_numpy(float), list(x.columns).index(name)
    inverse = np.linalg.pinv(x.T @ x)
    annihilator = np.eye(len(y)) - x @ inverse @ x.T
    residuals = annihilator @ y
    variance, forms = 0.0, []
    for cluster in sorted(set(clusters)):
        rows = np.flatnonzero(clusters == cluster)
        values, vectors = np.linalg.eigh(annihilator[np.ix_(rows, rows)])
        roots = np.where(values > 1e-9, 1 / np.sqrt(np.maximum(values, 1e-9)), 0.0)
        adjustment = vectors @ np.diag(roots) @ vectors.T
        weights = adjustment @ x[rows] @ inverse[place]
        variance += (weights @ residuals[rows]) ** 2
        forms.append(annihilator[:, rows] @ weights)
    covariances = np.array(forms) @ np.array(forms).T
    eigenvalues = np.linalg.eigvalsh(covariances)
    return np.sqrt(variance), eigenvalues.sum() ** 2 / (eigenvalues**2).sum()


def test_p_within_groups_is_that_of_a_wild_bootstrap_refitted_for_every_pattern_of_signs():
    table = rows(num_groups=8, slope_within=-0.12)
    slope = fit_groups(table, PLAIN).find("within", "d")
    indicators = pd.get_dummies(table["dataset"], dtype=float).to_numpy()
    x = np.column_stack([table["d"], indicators])
    code = pd.factorize(table["dataset"])[0]
    fitted = indicators @ np.linalg.lstsq(indicators, table["loss"].to_numpy(), rcond=None)[0]
    restricted = table["loss"].to_numpy() - fitted
    within = (
        table["d"].to_numpy()
        - indicators @ (np.linalg.lstsq(indicators, table["d"].to_numpy(), rcond=None)[0])
    )

    def t(y):
        coefficients = np.linalg.lstsq(x, y, rcond=None)[0]
        scores = np.bincount(code, within * (y - x @ coefficients))
        return abs(coefficients[0]) / np.sqrt((scores**2).sum())

    observed = t(table["loss"].to_numpy())
    drawn = [t(fitted + np.array(signs)[code] * restricted) for signs in product((-1, 1), repeat=8)]
    assert 0.005 < slope.p_value < 0.9
    assert slope.p_value == np.mean(np.array(drawn) >= observed * (1 - 1e-9))


def test_slopes_between_groups_are_those_of_their_means_and_all_permutations():
    table = rows()
    table["d"] = table.groupby("dataset")["d"].transform("mean")  # no scatter in the means
    slope = fit_groups(table, PLAIN).find("between", "d")
    means = table.groupby("dataset")[["loss", "d"]].mean()

    def by_hand(part):
        return sm.OLS(part["loss"], sm.add_constant(part["d"])).fit()

    value = by_hand(means).params["d"]
    without = {name: by_hand(means.drop(name)).params["d"] for name in means.index}
    error, degrees = slow_cr2(
        means["loss"], sm.add_constant(means["d"]), pd.Series(range(6), means.index), "d"
    )
    assert error == pytest.approx(by_hand(means).HC2_se["d"], rel=1e-9)
    ends = [*by_hand(means).conf_int().loc["d"], *stats.t.interval(0.95, degrees, value, error)]
    x, y = means["d"].to_numpy(), means["loss"].to_numpy()
    found = abs(np.corrcoef(x, y)[0, 1])
    drawn = [abs(np.corrcoef(x, y[list(order)])[0, 1]) for order in permutations(range(6))]
    exact = np.mean(np.array(drawn) >= found - 1e-12)
    assert slope.value == pytest.approx(value, rel=1e-9)
    assert slope.left_out == pytest.approx(without, rel=1e-9)
    assert slope.interval == pytest.approx((min(ends), max(ends)), rel=1e-9)
    assert slope.p_value == pytest.approx(
        max(exact, 2 * stats.t.sf(abs(value) / error, degrees)), rel=1e-8
    )


def test_the_pooled_number_stands_beside_and_says_what_it_mixes():
    table = rows()
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
    between = 1 - table.groupby("dataset")["loss"].var(ddof=0) @ table.groupby("dataset").size() / (
        table["loss"].var(ddof=0) * len(table)
    )
    assert pooled.shares[0] == pytest.approx(between, rel=1e-9)
    assert f"{len(table)} rows of 6 groups as independent" in fit.why_pooled_misleads(pooled)
    two = fit_groups(table.drop_duplicates("dataset").head(2), PLAIN)
    assert two.pooled == ()  # two rows lie on a line


def test_the_sentence_claims_each_level_for_itself():
    fit = fit_groups(rows(num_groups=9), Design("loss", ("d",), ("dataset",), ("model",)))
    sentence = fit.sentence("d")
    assert sentence.startswith("At equal model, within one dataset, loss falls with d (slope −0.")
    assert " At equal model, between 9 groups, loss rises with d (slope " in sentence


def scattered(rng, num_groups):
    """Slopes of groups scatter about zero, and few groups carry most of what varies."""
    parts = []
    for g, size in enumerate(rng.integers(4, 60, num_groups)):
        own = rng.normal() * 2
        d = own + rng.normal(size=size) * rng.exponential()
        loss = rng.normal() * 2 + rng.normal() * (d - own) + rng.standard_t(3, size=size)
        parts.append(pd.DataFrame({"loss": loss, "d": d, "dataset": f"s{g}"}))
    return pd.concat(parts)


def spread(rng):
    """Groups' own error grows with the column: least squares and permutation alone claim in one of
    four."""
    d, code = np.exp(rng.normal(size=9)), np.arange(9).repeat(8)
    loss = (rng.normal(size=9) * d)[code] + rng.normal(size=72)
    return pd.DataFrame({"loss": loss, "d": d[code], "dataset": code})


def hospitals(rng, nested):
    """Heights and slopes scatter over three hospitals; patients are twenty of each, or of all of
    them."""
    hospital, patient = (codes.ravel() for codes in np.indices((3, 20)).repeat(3, axis=1))
    own, (x, y, slopes) = rng.normal(size=len(hospital)), rng.normal(size=(3, 3))
    loss = y[hospital] + slopes[hospital] * own + rng.normal(size=len(own))
    table = pd.DataFrame({"loss": loss, "d": x[hospital] + own, "hospital": hospital})
    return table.assign(patient=10 + patient + 20 * nested * hospital)


def folds(rng):
    """Folds and seeds have the same names; (1, 2) and (2, 1) are no one thing, whose effect would
    be lost."""
    fold, run = (codes.repeat(3) for codes in np.indices((8, 8)))
    d, loss = rng.normal(size=(2, len(fold))) + rng.normal(size=8)[fold]
    return pd.DataFrame({"d": d, "loss": loss, "fold": fold, "run": run})


@pytest.mark.long
@pytest.mark.parametrize(
    ("drawn", "groups"),
    [
        (partial(scattered, num_groups=3), ("dataset",)),
        (partial(scattered, num_groups=6), ("dataset",)),
        (spread, ("dataset",)),
        (partial(hospitals, nested=False), ("hospital", "patient")),
        (partial(hospitals, nested=True), ("hospital", "patient")),
        (folds, ("fold", "run")),
    ],
)
def test_nothing_to_find_is_found_in_few_tables(drawn, groups):
    """Of 120 tables at 5 %, more than 12 with a claim happen once in fifty times."""
    design = Design("loss", ("d",), groups)
    fits = [fit_groups(drawn(np.random.default_rng([seed, 20])), design) for seed in range(120)]
    levels = LEVELS[: 1 if drawn is folds else 2]
    assert sum(any(fit.find(level, "d").is_significant for level in levels) for fit in fits) <= 12
    shared = "8 names in both fold and run are read as different groups"
    assert all(shared in " ".join(fit.remarks) for fit in fits) == (drawn is folds)


def test_a_column_that_does_not_vary_within_groups_leaves_the_others_alone():
    table = rows().assign(level=lambda t: t["dataset"].str[1:].astype(float))
    both = fit_groups(table, Design("loss", ("d", "level"), ("dataset",)))
    alone = fit_groups(table, PLAIN).find("within", "d")
    assert both.find("within", "d").value == pytest.approx(alone.value)
    assert both.find("within", "d").interval == pytest.approx(alone.interval)
    assert both.find("within", "level").reason == "level does not vary within groups"
    doubled = fit_groups(table.assign(k=2 * table["d"]), Design("loss", ("d", "k"), ("dataset",)))
    assert (
        doubled.find("within", "d").reason == "d varies only together with the others within groups"
    )


@pytest.mark.parametrize(("shift", "unit"), [(2459000.0, 1.0), (0.0, 1e-60), (0.0, 1e60)])
def test_units_change_nothing(shift, unit):
    table = rows()
    moved = fit_groups(table.assign(d=shift + unit * table["d"], loss=unit * table["loss"]), PLAIN)
    for level in ("within", "between"):
        slope, plain = moved.find(level, "d"), fit_groups(table, PLAIN).find(level, "d")
        assert slope.value / (unit if shift else 1.0) == pytest.approx(plain.value, rel=1e-6)
        assert slope.p_value == pytest.approx(plain.p_value, rel=1e-4)


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
        (lambda t: t[t["dataset"] < "s2"], "between", "it needs 3 groups that differ in d"),
        # Means of a column that was centred within groups are rounding, of which there is no slope.
        (
            lambda t: t.assign(d=t["d"] - t.groupby("dataset")["d"].transform("mean")),
            "between",
            "it needs 3 groups that differ in d",
        ),
        (lambda t: t[t["dataset"] < "s3"], "between", "too few groups for a p-value of 0.05"),
    ],
)
def test_what_cannot_be_told_says_why_and_claims_nothing(change, level, message):
    fit = fit_groups(change(rows()), PLAIN)
    slope = fit.find(level, "d")
    assert message in slope.reason
    assert not slope.is_significant
    assert slope.reason in fit.sentence("d")


def test_columns_that_vary_only_together_between_groups_are_named():
    slope = fit_groups(
        rows().assign(e=lambda t: 3 * t["d"]), Design("loss", ("d", "e"), ("dataset",))
    )
    assert slope.find("between", "e").reason == "d and e vary only together between groups"


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
def test_the_pooled_number_is_said_to_mix_only_what_it_mixes(change, words):
    fit = fit_groups(change(rows()), PLAIN)
    assert words in fit.why_pooled_misleads(fit.pooled[0])


def test_groups_that_share_no_kind_cannot_be_compared():
    table = rows().assign(model=lambda t: t["dataset"])
    slope = fit_groups(table, Design("loss", ("d",), ("dataset",), ("model",))).find("between", "d")
    assert (slope.value, slope.reason) == (None, "groups share no model")


def written(tmp_path, table, name="t.csv"):
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
            ["50% of the rows would be left out", "116 rows equal to an earlier row"],
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
        (lambda t: t.drop(columns="d"), ["column of t.csv", "'d'"]),
    ],
)
def test_a_table_that_cannot_be_used_is_told_in_one_message(tmp_path, change, messages):
    table = rows().head(116)
    with pytest.raises(ConfigError, match=re.escape(messages[0])) as told:
        read_user_table(written(tmp_path, change(table)), PLAIN)
    for message in messages:
        assert message in str(told.value)
    # What is no number is not said not to vary as well.
    assert str(told.value).count("Column loss ") <= 1


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
def test_a_file_that_is_no_table_is_a_message(tmp_path, name, body, message):
    (tmp_path / name).write_bytes(body)
    with pytest.raises(ConfigError, match=message):
        read_user_table(tmp_path / name, PLAIN)


@pytest.mark.parametrize(
    "name", ["t.csv", "t.tsv", "semicolons.csv", "t.parquet", "index.parquet", "t.xlsx"]
)
def test_every_kind_of_file_holds_the_same_numbers(tmp_path, name):
    table, path, ending = rows(), tmp_path / name, name.rpartition(".")[2]
    if ending in ("csv", "tsv"):
        parted = {"t.csv": ",", "t.tsv": "\t"}.get(name, ";")
        table.to_csv(
            path, index=False, sep=parted, encoding="utf-8-sig" if ending == "tsv" else "utf-8"
        )
    elif ending == "xlsx":
        table.to_excel(path, index=False)
    else:
        (table.set_index("dataset") if name.startswith("index") else table).to_parquet(path)
    read = read_user_table(path, PLAIN).rows
    np.testing.assert_allclose(read["loss"], table["loss"], rtol=1e-15)
    assert read["dataset"].tolist() == table["dataset"].tolist()


def test_few_rows_without_a_value_or_twice_are_left_out_and_counted(tmp_path):
    table = rows().drop(columns="model")
    table.loc[[3, 7], "d"] = np.nan
    fit = fit_user_table(
        read_user_table(written(tmp_path, pd.concat([table, table[:1]])), PLAIN), PLAIN
    )
    assert fit.num_rows == len(table) - 2
    assert fit.remarks == (
        "Left out: 2 rows without d (rows 4, 8).",
        f"Left out: 1 row equal to an earlier row in every column (row {len(table) + 1}).",
    )


def test_the_figure_has_a_panel_per_column():
    table = rows()
    design = Design("loss", ("d", "k"), ("dataset",))
    figure = draw_groups(table, fit_groups(table, design))
    assert [ax.get_xlabel() for ax in figure.axes] == ["d", "k"]
    assert {text.get_text() for text in figure.axes[0].get_legend().get_texts()} == {
        "mean of a group",
        "slope within groups",
        "slope between groups",
    }


def test_a_pair_is_the_same_whichever_of_its_groups_stands_first():
    rng, names = np.random.default_rng(3), "abcdef"
    pairs = [(a, b) for a, b in permutations(names, 2) if a < b for _ in range(4)]
    table = pd.DataFrame(pairs, columns=["first", "second"]).assign(
        x=rng.normal(size=len(pairs)), y=rng.normal(size=len(pairs))
    )
    turned = table.copy()
    turned.loc[::2, ["first", "second"]] = table.loc[::2, ["second", "first"]].to_numpy()
    design = Design("y", ("x",), ("first", "second"))
    with pytest.raises(
        ConfigError, match=r"first and second contain a pair in both orders: . and ., . and ."
    ):
        fit_groups(turned, design)
    one, other = fit_groups(table, design), fit_groups(turned, design, pairs=True)
    assert (one.num_groups, other.num_groups) == (15, 15)
    for level in ("within", "between"):
        assert other.find(level, "x").interval == pytest.approx(
            one.find(level, "x").interval, rel=1e-9
        )


@pytest.mark.parametrize(
    ("few", "many", "shared"),
    [
        (["A", "B", "other"], ["other", *(f"s{k}" for k in range(19))], 1),
        pytest.param(list("012"), list(map(str, range(12))), 3, marks=pytest.mark.long),
    ],
)
def test_a_name_that_two_columns_share_makes_no_degrees_of_freedom(few, many, shared):
    """Slopes scatter over three groups of one column; the names of another change nothing but
    theirs."""
    num_found = 0
    for seed in range(100):
        rng = np.random.default_rng([seed, len(many)])
        site, scanner = (codes.ravel() for codes in np.indices((3, len(many))).repeat(3, axis=1))
        x = rng.normal(size=len(site))
        table = pd.DataFrame({"y": rng.normal(size=3)[site] * x + rng.normal(size=len(x)), "x": x})
        table = table.assign(site=np.array(few)[site], scanner=np.array(many)[scanner])
        design = Design("y", ("x",), ("site", "scanner"))
        fit = fit_groups(table, design)
        num_found += any(slope.is_significant for slope in fit.slopes)
        if not seed:
            apart = fit_groups(table.assign(site="of " + table["site"]), design)
            for level in ("within", "between"):
                one, other = fit.find(level, "x"), apart.find(level, "x")
                assert (one.value, one.p_value) == pytest.approx((other.value, other.p_value))
            assert (
                f"{shared} name{'s' * (shared > 1)} in both site and scanner are read as diff"
                in fit.remarks[0]
            )
    assert num_found <= 5


def test_names_that_any_two_of_three_columns_share_are_told_and_kept_apart():
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
    assert "between 45 combinations of site, seed and fold, " in fit.sentence("x")


@pytest.mark.parametrize(
    "groups", [("dataset", "other"), pytest.param(("dataset",), marks=pytest.mark.long)]
)
def test_as_many_groups_as_rows_are_fitted_as_by_hand(groups):
    """5,000 patients of three rows, alone or crossed with others: no square of their number is
    held."""
    rng, codes = np.random.default_rng(5), np.arange(5_000).repeat(3)
    table = pd.DataFrame(
        {"d": rng.normal(size=5_000)[codes] + rng.normal(size=len(codes)), "dataset": codes}
    )
    table = table.assign(
        loss=0.1 * table["d"] + rng.normal(size=len(codes)), other=rng.integers(-9, 0, len(codes))
    )
    fit = fit_groups(table, Design("loss", ("d",), groups))
    means = table.groupby(list(groups))[["loss", "d"]].mean()
    by_hand = sm.OLS(means["loss"], sm.add_constant(means["d"])).fit().params["d"]
    without = means.drop(index=17, level=0) if len(groups) > 1 else means.drop(17)
    slope = fit.find("between", "d")
    assert slope.value == pytest.approx(by_hand, rel=1e-9)
    assert slope.left_out["17"] == pytest.approx(
        sm.OLS(without["loss"], sm.add_constant(without["d"])).fit().params["d"], rel=1e-9
    )
    assert slope.is_significant
