"""All pairs of a set's classes: against slow formulas, and on tables whose law is known."""

import json
import re
from html import unescape
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from scipy import stats

from orchestrator.analysis.claims import PAIRS, ledger
from orchestrator.analysis.class_pairs import (
    AT_DELTA,
    DROP_ON_DELTA,
    EXPONENT,
    EXPONENT_BEYOND,
    LOSS,
    LOSS_AT_DELTA,
    NO_DELTA,
    R_HAT,
    R_HAT_AT_DELTA,
    R_HAT_FREE,
    fit_pairs,
    pair_answer,
)
from orchestrator.analysis.findings import family, findings, summary
from orchestrator.analysis.fits import fit_scaling_laws, prepare
from orchestrator.analysis.grouped_tables.design import Design
from orchestrator.analysis.grouped_tables.fit import fit_groups
from orchestrator.analysis.limits import SweepFacts
from orchestrator.analysis.number_formats import interval, number, p_equals
from orchestrator.analysis.report import write_report
from orchestrator.analysis.sentences.finding import ASKED_AFTER_SEEING
from orchestrator.analysis.tables.of_trials import pair_table

CLASSES, SIZES = range(6), (20, 60, 180)


def table(exponent=2.0, on_k=0.0, noise=0.0, class_noise=0.0, seed=0, classes=CLASSES):
    """Losses N^(-exponent / d) K_F^on_k and R̂ = δ (K_F δ)^-on_k, with noise of points, and of
    classes.
    """
    rng, rng_of_delta = np.random.default_rng(seed), np.random.default_rng([seed, 1])
    own_d, own_k, own = rng.uniform(3, 7, 9), rng.normal(0, 0.5, 9), rng.normal(0, class_noise, 9)
    rows = []
    for a, b in combinations(classes, 2):
        d, log_k = own_d[a] + own_d[b], own_k[a] + own_k[b] + rng.normal(0, 0.3)
        log_delta = rng_of_delta.normal(0, 0.3)
        for model in ("one", "two"):
            for size in SIZES:
                log_loss = (
                    -exponent / d * np.log(size)
                    + on_k * log_k
                    + own[a]
                    + own[b]
                    + rng.normal(0, noise)
                )
                rows.append(
                    {
                        "trial_id": f"{a}-{b}-{model}-{size}",
                        "dataset": "set",
                        "domain": "natural",
                        "class_pair": f"{a}-{b}",
                        "model": model,
                        "train_size": size,
                        "status": "done",
                        "test_loss": np.exp(log_loss - 1),
                        "test_accuracy": 0.9,
                        "d_data_mle": d,
                        "label_sharpness": np.exp(log_k - 7),
                        "mean_unlike_distance": np.exp(7 + log_delta),
                        "r_hat_pred": np.exp(log_delta - on_k * (log_k + log_delta)),
                    }
                )
    return pd.DataFrame(rows)


def slow(rows, formula, name):
    """A slope with its jackknife over classes, by least squares with dummies, class by class."""
    rows = rows.assign(
        y=np.log(rows["test_loss"]),
        x=-np.log(rows["train_size"]) / rows["d_data_mle"],
        k=np.log(rows["label_sharpness"]),
        inverse_d=1 / rows["d_data_mle"],
        curve=rows["class_pair"] + rows["model"],
    )
    held = rows["class_pair"].str.split("-", expand=True).astype(int)
    names = sorted(set(held.to_numpy().ravel()))
    value = smf.ols(formula, rows).fit().params[name]
    without = [
        smf.ols(formula, rows[(held != each).all(axis=1)]).fit().params[name] for each in names
    ]
    error = np.sqrt((len(names) - 1) / len(names) * np.square(np.array(without) - value).sum())
    return value, value + error * np.array(stats.t.ppf([0.025, 0.975], len(names) - 1))


def found(rows):
    return {slope.on: slope for slope in fit_pairs(prepare(rows).points)}


@pytest.mark.parametrize(
    ("question", "formula", "name"),
    [
        (EXPONENT, "y ~ x + C(curve)", "x"),
        (LOSS, "y ~ k + inverse_d + C(model):C(train_size)", "k"),
    ],
)
def test_a_number_is_that_of_least_squares_with_dummies_refitted_without_each_class(
    question, formula, name
):
    rows = table(on_k=0.7, noise=0.2, class_noise=0.2)
    if question == EXPONENT:  # an intercept per pair and network, where a cell is missing too
        rows = rows.drop(index=[1, 8, 30])
    slope = found(rows)[question]
    value, bounds = slow(rows, formula, name)
    assert slope.value == pytest.approx(value, rel=1e-9)
    assert slope.interval == pytest.approx(bounds, rel=1e-9)


def test_any_table_with_two_columns_of_groups_is_refitted_without_each():
    rows = table(on_k=0.7, noise=0.2, class_noise=0.2)
    held = rows["class_pair"].str.split("-", expand=True)
    own = rows.assign(
        loss=np.log(rows["test_loss"]), size=np.log(rows["train_size"]), a=held[0], b=held[1]
    )
    slope = fit_groups(own, Design("loss", ("size",), ("a", "b"), ("model",))).find(
        "within", "size"
    )
    formula = "loss ~ size + C(class_pair) + C(model)"
    without = [
        smf.ols(formula, own[(held != each).all(axis=1)]).fit().params["size"] for each in "012345"
    ]
    assert slope.value == pytest.approx(smf.ols(formula, own).fit().params["size"], rel=1e-9)
    assert slope.left_out == pytest.approx(dict(zip("012345", without, strict=True)), rel=1e-9)
    error = np.sqrt(5 / 6 * np.square(np.array(without) - slope.value).sum())
    assert slope.interval == pytest.approx(stats.t.interval(0.95, 5, slope.value, error), rel=1e-9)


def test_what_follows_k_f_is_significant_and_its_sign_is_told():
    slopes = found(table(exponent=1.0, on_k=1.0, noise=0.05))
    assert slopes[LOSS].is_significant
    assert slopes[LOSS].value == pytest.approx(1, abs=0.1)
    assert slopes["slope of log R̂ on log K_F at equal 1/d"].value == pytest.approx(-1, abs=0.1)
    assert slopes[EXPONENT_BEYOND].value == pytest.approx(slopes[EXPONENT].value - 1)
    assert slopes[EXPONENT].is_significant
    assert not slopes[EXPONENT_BEYOND].is_significant


def test_answers_of_pairs_stand_where_those_between_datasets_would(tmp_path):
    rows = table(on_k=1.0, noise=0.05)
    fits = fit_scaling_laws(rows)
    by_estimand = {slope.on: slope for slope in fits.class_pairs}
    slopes = [by_estimand[name] for name in (EXPONENT, EXPONENT_BEYOND, LOSS, R_HAT_FREE)]
    found = findings(fits)[:5]
    assert [one.verdict for one in found[:4]] == [pair_answer(one).verdict for one in slopes]
    assert f"the {LOSS} is {slopes[2].value:.3g} (95 % interval " in found[2].answer
    assert f"Over pairs of 6 classes, the {R_HAT_FREE} is −1 (" in found[3].answer
    reverse = findings(fit_scaling_laws(table(on_k=-1.0, noise=0.05)))
    verdicts = [one.verdict for one in (*found[2:4], *reverse[2:4])]
    assert verdicts == ["supported", "supported", "contradicted", "contradicted"]
    assert found[2].claim == "Sharper labels go with a higher loss."
    assert reverse[2].claim == "Sharper labels go with a lower loss."
    assert reverse[2].line.startswith(f"{reverse[2].claim} Pairs with 10 % higher K_F have ")
    assert re.search(r"[Ww]ithout class ", found[2].answer)
    assert (
        f"Over pairs of 6 classes, the exponent b less the law's 1 is {slopes[1].value:.3g} ("
        in found[1].line
    )
    d_data = 1 / (1 / rows["d_data_mle"]).mean()
    fall, high, low = (2 ** (-value / d_data) for value in (slopes[0].value, *slopes[0].interval))
    shown = (
        f"Doubling N goes with {fall:.3g} times the loss (95 % interval {interval((low, high))};"
    )
    assert shown in found[0].line
    other = rows.assign(trial_id="other " + rows["trial_id"], dataset="another", d_data_mle=np.nan)
    beside = findings(fit_scaling_laws(pd.concat([rows, other], ignore_index=True)))[0]
    assert beside.line == found[0].line
    for k, of, what in ((2, "K_F", "loss"), (3, "K_F·δ", "R̂/δ")):
        by, low, high = (1.1**value for value in (slopes[k].value, *slopes[k].interval))
        step = f"Pairs with 10 % higher {of} have {by:.3g} times the {what} (95 % interval "
        evidence = f"{interval((low, high))}; adjusted {p_equals(slopes[k].adjusted_p)})."
        assert f"{step}{evidence}" in found[k].line
    assert {one.reason for one in ledger(rows, sweep="pairs", compare=False).entries[:5]} == {PAIRS}
    assert "The verdicts rest on 6 tests, adjusted together (Holm)" in family(fits)
    said = summary(fits)
    assert not any("NOT TESTABLE" in line for line in said)
    page = unescape(
        write_report(rows, fits, tmp_path, sweep="pairs", summary={}).read_text("utf-8")
    )
    assert (
        "not testable" not in page[page.index('id="verdicts"') : page.index('id="what-was-seen"')]
    )
    for finding in found:
        assert finding.question in page
        assert finding.line in page
        assert " ".join(finding.details) in page
    stored = json.loads((tmp_path / "fits.json").read_text("utf-8"))["class_pairs"]
    assert {one["on"]: one["value"] for one in stored} == {
        name: slope.value for name, slope in by_estimand.items()
    }
    assert len(said) <= 39
    assert max(map(len, said)) <= 80


def lost(rows):
    """The same table with an attack that costs 0.4 − 0.6 (log δ − 7) of the accuracy, and noise."""
    rng = np.random.default_rng(7)
    log_delta = np.log(rows["mean_unlike_distance"]) - 7
    drop = 0.4 - 0.6 * log_delta + rng.normal(0, 0.01, len(rows))
    return rows.assign(pgd_32_accuracy_drop=drop, pgd_32_loss_gain=drop)


def test_what_accuracy_is_lost_to_is_said_in_points_for_pairs_ten_per_cent_further_apart():
    rows = lost(table(noise=0.1))
    fits = fit_scaling_laws(rows)
    (slope,) = [one for one in fits.class_pairs if one.on == DROP_ON_DELTA]
    (finding,) = [one for one in findings(fits) if "closer together" in one.question]
    less, low, high = (-100 * np.log(1.1) * value for value in (slope.value, *slope.interval[::-1]))
    assert finding.verdict == "supported"
    assert less == pytest.approx(100 * 0.6 * np.log(1.1), rel=0.05)
    size = f"{number(less, 2)} percentage points less accuracy to PGD at 32/255"
    assert (
        f"Pairs with 10 % larger δ lost {size} (95 % interval {number(low, 2)} to" in finding.line
    )
    assert finding.line.endswith("δ is the mean distance to the nearest image with another label.")
    assert number(high, 2) in finding.line
    late = SweepFacts(asked_after_seeing=("pairs_drop_on_delta",))
    told = fit_scaling_laws(rows, facts=late)
    (asked_late,) = [one for one in findings(told) if "closer together" in one.question]
    assert asked_late.line == f"{finding.line} {ASKED_AFTER_SEEING}"


def test_a_page_of_pairs_shows_its_finding_first_in_a_figure_and_a_table(tmp_path):
    rows = lost(table(noise=0.1))
    fits = fit_scaling_laws(rows)
    page = unescape(
        write_report(rows, fits, tmp_path, sweep="pairs", summary={}).read_text("utf-8")
    )
    assert page.index("accuracy lost (percentage points)") < page.index("label sharpness K_F (1")
    assert "A trend shows N, not K_F" not in page
    assert page.count("Pairs share classes, so dots are not independent") >= 2
    shown = pair_table(prepare(rows).points, fits)
    assert shown.header[:3] == ("pair", "δ", "accuracy lost to PGD at 32/255")
    at_largest = rows[rows["train_size"] == max(SIZES)]
    means = at_largest.groupby("class_pair")[
        ["mean_unlike_distance", "pgd_32_accuracy_drop"]
    ].mean()
    in_order = means.sort_values("mean_unlike_distance")
    assert [row[0] for row in shown.rows] == [*in_order.index]
    expected = [number(100 * drop) for drop in in_order["pgd_32_accuracy_drop"]]
    assert [row[2] for row in shown.rows] == expected
    words = page[page.index('<dl id="words">') : page.index("</dl>")]
    assert "Its replicates are classes, not pairs or trainings" in words
    assert "projected gradient descent" in words
    assert "fast gradient" not in words


@pytest.mark.parametrize("seed", range(3))
def test_where_nothing_is_decided_a_screen_has_the_answers_and_the_details_have_their_power(seed):
    rng, rows = (
        np.random.default_rng(seed),
        table(exponent=0.0, noise=1.5, class_noise=1.0, seed=seed),
    )
    rows["r_hat_pred"], rows["fgsm_8_accuracy_drop"] = np.exp(rng.normal(size=(2, len(rows))))
    fits = fit_scaling_laws(rows)
    lines = summary(fits)
    said = " ".join(" ".join(lines).split())
    assert said.count("UNDECIDED: ") == 7
    assert said.count("UNDECIDED") == 7
    assert " such studies would detect " not in said
    details = " ".join(" ".join(finding.details) for finding in findings(fits))
    assert details.count(" such studies would detect ") == 9
    assert len(lines) <= 39


def test_a_slope_that_units_alone_give_is_shown_and_claims_nothing():
    rows = table(on_k=0.5, noise=0.05)
    slopes, answers = found(rows), findings(fit_scaling_laws(rows))
    (robustness,) = [one for one in answers if "less robustness" in one.question]
    in_pixels = slopes[R_HAT]
    assert f"the {R_HAT_FREE} is −0.5 (" in robustness.answer
    assert robustness.notes == (
        f"In pixel units the {R_HAT} is −{-in_pixels.value:.3g} (95 % interval "
        f"{interval(in_pixels.interval)}), but units alone give −1: R̂ is a length, and K_F one "
        "over a length.",
    )
    assert (in_pixels.adjusted_p, in_pixels.is_significant) == (None, False)
    assert pair_answer(in_pixels).verdict == "not testable"


def test_what_goes_with_k_f_at_equal_mean_distance_is_one_answer():
    rows = table(on_k=1.0, noise=0.05)
    slopes, answer = found(rows), findings(fit_scaling_laws(rows))[4]
    assert slopes[LOSS_AT_DELTA].value == pytest.approx(1, abs=0.1)
    assert slopes[R_HAT_AT_DELTA].value == pytest.approx(-1, rel=1e-6)
    assert answer.verdict == "supported"
    assert "At equal δ, log loss rises with K_F. At equal δ, log R̂ falls with K_F." in answer.line
    assert "accuracy lost" not in answer.answer


def test_at_equal_mean_distance_is_least_squares_with_that_column():
    rows = table(on_k=0.7, noise=0.2, class_noise=0.2)
    rows = rows.assign(delta=np.log(rows["mean_unlike_distance"]))
    slope = found(rows)[LOSS_AT_DELTA]
    value, bounds = slow(rows, "y ~ k + inverse_d + delta + C(model):C(train_size)", "k")
    assert slope.value == pytest.approx(value, rel=1e-9)
    assert slope.interval == pytest.approx(bounds, rel=1e-9)


def test_without_mean_distances_the_questions_that_need_them_say_so():
    rows = table(on_k=1.0, noise=0.05).drop(columns="mean_unlike_distance")
    slopes = found(rows)
    needing = {R_HAT_FREE, *AT_DELTA} & {*slopes}
    assert needing == {R_HAT_FREE, LOSS_AT_DELTA, R_HAT_AT_DELTA}
    assert {slopes[name].reason for name in needing} == {NO_DELTA}
    assert [slopes[name].value for name in needing] == [None] * 3
    untested = [one for one in findings(fit_scaling_laws(rows)) if one.verdict == "not testable"]
    assert [one.sentences for one in untested] == [(f"This cannot be tested: {NO_DELTA}.",)] * 2
    assert slopes[LOSS].is_significant
    assert slopes[R_HAT].value is not None


@pytest.mark.long
def test_heights_that_classes_share_are_not_taken_for_an_effect_of_k_f():
    slopes = [found(table(noise=0.1, class_noise=0.5, seed=seed))[LOSS] for seed in range(20)]
    assert sum(slope.is_significant for slope in slopes) <= 1


def test_tables_that_are_not_pairs_of_one_set_have_no_such_answer():
    both = pd.concat(
        [table(), table().assign(dataset="other", trial_id=lambda rows: rows["trial_id"] + "o")]
    )
    for rows in (table(classes=range(4)), both, table().assign(class_pair="")):
        assert fit_scaling_laws(rows).class_pairs == ()
