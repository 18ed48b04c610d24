"""Test the fits: an exact law is recovered, a fit that is impossible has a reason, and no result
rests on an accident."""

import re
from itertools import permutations

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from mlflow.utils.validation import _validate_metric_name

from orchestrator.analysis.chance_ceiling import why_flattened
from orchestrator.analysis.findings import findings
from orchestrator.analysis.fits import fit_scaling_laws, prepare
from orchestrator.analysis.headline import ATTACKS, SHARPNESS, with_p_values
from orchestrator.analysis.law_fits.heights import fit_height
from orchestrator.analysis.limits import SweepFacts
from orchestrator.analysis.published import published_table
from orchestrator.analysis.report import headline
from orchestrator.analysis.results_tables.chance_level import is_over_confident
from orchestrator.analysis.results_tables.points import WORDS
from orchestrator.analysis.tables.of_fits import answer_table, fit_tables, not_fitted
from orchestrator.analysis.tables.of_trials import seen_table
from search_spaces.datasets import ImageOrigin
from tests.synthetic import synthetic_table


def explore_fits(table, **options):
    return fit_scaling_laws(table, explore=True, **options)


def test_the_headline_is_least_squares_over_datasets():
    table = synthetic_table(trial_std=0.2, dataset_std=0.4, models=("a", "b"))
    with_log_loss = table.assign(log_loss=np.log(table["test_loss"]))
    means = with_log_loss.groupby("dataset").mean(numeric_only=True)
    largest = table[table["train_size"] == table["train_size"].max()]
    at_largest_n = largest.groupby("dataset").mean(numeric_only=True)
    sharpness = np.log(table["label_sharpness"]).groupby(table["dataset"]).mean()
    label = means.index.str.startswith("medical").astype(float)

    def fit_by_statsmodels(rows):
        x = np.column_stack([1 / at_largest_n["d_data_mle"], sharpness, label])
        return sm.OLS(means["log_loss"].to_numpy()[rows], sm.add_constant(x)[rows]).fit()

    fit = fit_scaling_laws(table).headline()
    assert fit.terms == ("inverse_d", "log_sharpness", "is_medical")
    expected = fit_by_statsmodels(np.ones(12, dtype=bool))
    assert [e.value for e in fit.estimates] == pytest.approx(expected.params[1:])
    assert [e.std_error for e in fit.estimates] == pytest.approx(expected.bse[1:])
    for k, name in enumerate(means.index):
        without = fit_by_statsmodels(np.arange(12) != k).params[1:]
        assert [e.left_out[name] for e in fit.estimates] == pytest.approx(without)


def test_the_headline_omits_terms_that_the_table_cannot_estimate():
    table = synthetic_table(trial_std=0.2)
    assert fit_scaling_laws(table[table["domain"] == "medical"]).headline().terms == (
        "inverse_d",
        "log_sharpness",
    )
    with_mixed_sizes = table.assign(image_size=np.where(table["dataset"] == "natural0", 32, 64))
    fits = fit_scaling_laws(with_mixed_sizes)
    assert fits.headline().terms == ("inverse_d", "is_medical")
    assert {"dimension", "exponent", "exponent_below_bound", "attacks_on_sharpness"} == {
        answer.question.key for answer in with_p_values(fits.answers)
    }
    without_k_f = fit_scaling_laws(table.assign(label_sharpness=np.nan))
    assert without_k_f.headline().terms == ("inverse_d", "is_medical")


def test_exploratory_fits_are_made_only_on_request_and_change_no_answer():
    table = synthetic_table(num_natural=4, num_medical=4, trial_std=0.2, models=("a", "b"))
    standard = fit_scaling_laws(table)
    explored = explore_fits(table)
    assert standard.answers == explored.answers
    assert set(map(repr, standard.fits)) <= set(map(repr, explored.fits))
    assert len(standard.fits) < len(explored.fits)
    assert explored.exponent(model="a").status == "ok"


@pytest.mark.long
def test_other_models_change_no_fit_of_one_model():
    table = synthetic_table(num_natural=3, num_medical=3, trial_std=0.3, models=("a", "b"))
    fits_of_one_model = explore_fits(table[table["model"] == "a"])
    fits_of_two_models = explore_fits(table)
    assert fits_of_one_model.headline("a") == fits_of_two_models.headline("a")
    assert fits_of_one_model.exponent("a") == fits_of_two_models.exponent("a")


def test_an_empty_table_gives_no_fit_and_no_error():
    fits = fit_scaling_laws(synthetic_table().head(0))
    assert (fits.num_trials, fits.fits, [*with_p_values(fits.answers)]) == (0, (), [])
    assert fits.headline().reason == "no usable trial"
    assert any("There is no medical dataset" in caveat for caveat in fits.caveats)


def test_too_few_datasets_are_refused_with_the_number_that_is_needed():
    headline_of_three_datasets = fit_scaling_laws(
        synthetic_table(num_natural=2, num_medical=1)
    ).headline()
    assert (
        headline_of_three_datasets.reason
        == "the fit needs at least 5 datasets with all its numbers, and there are 3 (medical0, "
        "natural0 and natural1)"
    )
    assert (headline_of_three_datasets.num_datasets, headline_of_three_datasets.num_needed) == (
        3,
        5,
    )
    fits_of_one_dataset = explore_fits(synthetic_table(num_natural=1, num_medical=0))
    reason = fits_of_one_dataset.exponent().reason
    assert reason == (
        "the fit needs at least 3 datasets with two train sizes and d_data, and there is 1"
    )


ERRORS_OF_MEASURES = (
    "The fits use d_data and K_F as if they were measured without error. Errors in d_data and K_F "
    "usually make a relation look weaker, and the intervals do not correct for this."
)
"""A caveat of every table of several datasets."""


def test_few_datasets_and_one_seed_are_caveats():
    table = synthetic_table(num_natural=2, num_medical=6, trial_std=0.1)
    assert fit_scaling_laws(table).caveats == (
        "There is only one model and seed. With another model or seed, the results could be different.",
        "2 natural datasets are too few for a statement about natural datasets alone.",
        ERRORS_OF_MEASURES,
    )
    large_table = synthetic_table(num_natural=5, models=("a", "b"), num_seeds=2, trial_std=0.1)
    assert fit_scaling_laws(large_table).caveats == (ERRORS_OF_MEASURES,)


@pytest.mark.parametrize(
    ("test_size", "error"), [(100, "3 percentage points"), (900, "1 percentage points"), (1000, "")]
)
def test_the_error_of_a_small_test_set_is_a_caveat(test_size, error):
    table = synthetic_table(num_natural=5, trial_std=0.1).assign(test_size=test_size)
    caveats = " ".join(fit_scaling_laws(table).caveats)
    assert ("smallest test set" in caveats) == bool(error)
    assert f"standard error of {error}" in caveats or not error


def test_datasets_of_one_origin_are_a_caveat_as_dependent():
    table = synthetic_table(num_natural=3, num_medical=2, trial_std=0.1)
    origins = {
        "natural0": ImageOrigin(collection="handwritten digits"),
        "natural2": ImageOrigin(collection="handwritten digits"),
        "medical0": ImageOrigin(collection="one brain", cut_from="one volume"),
        "medical1": ImageOrigin(cut_from="one slide"),
        "absent": ImageOrigin(collection="one brain"),
    }
    fits_without_origins = fit_scaling_laws(table)
    fits = fit_scaling_laws(table, facts=SweepFacts(origins=origins))
    assert fits.caveats == (
        "In 2 of 5 datasets, training and test images come from the same few pictures.",
        "No medical dataset of this sweep has several patients, so no result is about patients.",
        "natural0 and natural2 are not independent: both show handwritten digits.",
        "Because of this, intervals over the 5 datasets may be too narrow.",
        "Images are cut from these pictures: medical0 (one volume) and medical1 (one slide). "
        "Losses on new pictures are probably higher.",
        *fits_without_origins.caveats,
    )
    assert fits.answers == fits_without_origins.answers


def test_measures_equal_up_to_rounding_explain_nothing():
    table = synthetic_table(num_natural=5, trial_std=0.3).assign(
        d_data_mle=7.3, label_sharpness=0.1 + 0.2
    )
    fits = explore_fits(table)
    assert fits.headline().reason == (
        "1/d and the domain label vary too little, or only together, so their slopes are not "
        "identified"
    )
    sharpness = fit_height(prepare(table).points, fits.sharpness_scale, ("log_sharpness",))
    assert sharpness.reason == "log K_F does not vary enough over these datasets"


def test_without_usable_trials_the_reason_names_the_model_only():
    fits = explore_fits(synthetic_table().assign(status="diverged"))
    assert fits.exponent(model="resnet18").reason == "no usable trial of resnet18"


def test_datasets_without_a_measure_are_not_counted():
    table = synthetic_table()
    table.loc[table["dataset"] == "natural0", "d_data_mle"] = np.nan
    assert fit_scaling_laws(table).headline().num_datasets == 11


def test_unequal_channels_refuse_only_fits_that_compare_sharpness():
    fits = explore_fits(published_table())
    assert not fits.sharpness_scale.comparable
    assert "3 channels, range 255: cifar10, imagenet, svhn" in fits.sharpness_scale.note
    assert fits.exponent(model="resnet34").status == "ok"
    table = synthetic_table(num_natural=3, num_medical=3, models=("a",))
    table["sharpness_channels"] = np.where(table["domain"] == "medical", 1, 3)
    attack_fits = [fit for fit in fit_scaling_laws(table).fits if fit.kind == "attack"]
    assert {(fit.status, fit.reason) for fit in attack_fits} == {
        ("refused", "K_F was measured on unequal scales")
    }


def test_with_unequal_scales_attacks_are_fitted_over_datasets_of_one_scale():
    """Compare with Pearson's r over the medical sets in every order.

    The only natural set with this scale gives no relation.
    """
    rows = published_table().dropna(subset=["fgsm_2_loss_gain"]).query("domain == 'medical'")
    gain = rows["fgsm_2_loss_gain"].to_numpy()
    sharpness = rows["label_sharpness"].to_numpy()
    (fit,) = (fit for fit in fit_scaling_laws(published_table()).attacks if fit.estimates)
    r = fit.estimates[0]
    orders = np.array([*permutations(gain)])
    assert r.value == pytest.approx(np.corrcoef(gain, sharpness)[0, 1])
    products = (orders - gain.mean()) @ (sharpness - sharpness.mean())
    assert r.resampled_p == pytest.approx(np.mean(products >= products[0] - 1e-9))
    assert (fit.num_datasets, fit.variant) == (8, "224×224 pixels, 1 channel, range 255")


def test_an_unrecorded_scale_counts_as_a_different_scale():
    table = synthetic_table()
    table.loc[table["dataset"] == "natural0", "sharpness_channels"] = np.nan
    scale = fit_scaling_laws(table).sharpness_scale
    assert not scale.comparable
    assert "unrecorded channels" in scale.note


@pytest.mark.long
def test_below_six_datasets_no_correlation_is_given_and_the_datasets_are_counted():
    """Fisher's z is not accurate for five datasets, and three datasets once gave r = 1."""
    for num in (1, 2, 4):
        table = synthetic_table(num_natural=num, num_medical=1, models=("a", "b"))
        attack_fits = [fit for fit in fit_scaling_laws(table).fits if fit.kind == "attack"]
        assert attack_fits
        assert {(fit.status, fit.estimates) for fit in attack_fits} == {("not_enough_data", ())}
        assert {fit.reason for fit in attack_fits} == {
            "the fit needs at least 6 datasets with K_F and attacks at equal N, and there are "
            f"{num + 1}"
        }
        table_keys = [fit_table.key for fit_table in fit_tables(explore_fits(table))]
        assert "attacks" not in table_keys


def test_k_f_is_compared_with_gains_at_equal_n():
    """K_F grows with N: a dataset that has only large N would have too high a mean."""
    table = synthetic_table(num_natural=6, num_medical=0, train_sizes=(250, 1000, 4000))
    sharpness = table.groupby("dataset")["label_sharpness"].transform("mean")
    grown = sharpness + 1e-4 * np.log(table["train_size"] / 250)
    table = table.assign(label_sharpness=grown, fgsm_8_loss_gain=1e4 * sharpness)
    is_small = (table["dataset"] == "natural0") & (table["train_size"] < 4000)
    fits = fit_scaling_laws(table[~is_small])
    r = fits.attack("fgsm_8_loss_gain", model="resnet18").estimate("r")
    assert r.value == pytest.approx(1)
    assert [*r.left_out.values()] == pytest.approx([1] * 6)


def test_a_loss_gain_that_never_varies_is_no_correlation():
    table = synthetic_table().assign(fgsm_1_loss_gain=0.0)
    fit = fit_scaling_laws(table).attack(response="fgsm_1_loss_gain")
    assert "same for all datasets" in fit.reason


def test_claims_take_the_larger_of_both_p_values_and_are_adjusted_for_their_number():
    fits = fit_scaling_laws(synthetic_table(trial_std=0.3, dataset_std=0.3))
    headline_fit = fits.headline()
    exponent = fits.exponent()
    answers = {answer.question.key: answer for answer in fits.answers}
    sharpness = headline_fit.estimate("log_sharpness")
    assert answers["sharpness_beyond_label"].p_value == max(
        sharpness.p_value, sharpness.resampled_p
    )
    assert answers["exponent"].p_value == max(
        exponent.estimates[0].p_value, exponent.estimates[0].resampled_p
    )
    smallest = min(answers.values(), key=lambda claim: claim.p_value)
    assert smallest.adjusted_p == pytest.approx(min(1, 5 * smallest.p_value))
    assert all(answer.is_decided == (answer.adjusted_p <= 0.05) for answer in fits.answers)


@pytest.mark.long
def test_an_answer_has_the_same_verdict_in_the_table_and_on_the_page():
    """The p of an attack is one-sided and its interval two-sided: a verdict needs both."""
    k = np.random.default_rng(0).uniform(1, 2, (10, 7))
    gain = k + np.random.default_rng(1).normal(0, 0.6, k.shape)
    num_disagreements = 0
    for sharpness, gained in zip(k, gain, strict=True):
        table = synthetic_table(num_natural=7, num_medical=0, train_sizes=(100,)).assign(
            label_sharpness=sharpness, fgsm_8_loss_gain=gained, d_data_mle=np.nan
        )
        other_attacks = [name for name in table if re.match("fgsm_[124]_", name)]
        fits = fit_scaling_laws(table.drop(columns=other_attacks))
        claim = fits.answer(ATTACKS)
        answer = findings(fits)[3]
        assert claim.verdict == answer.verdict
        assert ("of the loss gained with K_F" in str(answer_table(fits).rows)) == (
            claim is not None
        )
        num_disagreements += claim.adjusted_p <= 0.05 and not claim.is_decided
    assert num_disagreements, "no table here where p and interval disagree"


def test_limits_of_the_whole_sweep_are_caveats():
    table = synthetic_table(num_natural=5, num_medical=0)
    table.loc[1, "data_mode"] = "as_released"
    table.loc[2, "num_conflicts"] = 1
    words = " ".join(fit_scaling_laws(table).caveats)
    for part in ("There is no medical dataset", "as_released and corrected", "In natural0"):
        assert part in words


def test_trials_without_a_loss_still_count_for_representations():
    table = synthetic_table().assign(test_loss=np.nan)
    fits = fit_scaling_laws(table)
    assert fits.num_used == 0
    assert fits.headline().status == "not_enough_data"
    assert fits.representation().num_points == len(table)


@pytest.mark.long
def test_the_exponent_is_shown_for_other_choices_of_d():
    table = synthetic_table(num_natural=5, num_medical=5, trial_std=0.1)
    table = table.assign(
        d_data_mle_k5=table["d_data_mle"] * 0.9, d_data_mle_k10=table["d_data_mle"] * 1.1
    )
    fits = explore_fits(table)
    exponent = fits.exponent().estimates[0].value
    # exponent · d is proportional to d.
    for variant, factor in (("5 neighbours", 0.9), ("10 neighbours", 1.1), ("TwoNN", 1.1)):
        assert fits.exponent(variant=variant).estimates[0].value == pytest.approx(factor * exponent)
    fits_without_k5 = explore_fits(table.drop(columns="d_data_mle_k5"))
    assert fits_without_k5.exponent(variant="5 neighbours").status == "not_enough_data"
    # d by 5 neighbours was not measured, so the list of fits has none for it.
    assert "5 neighbours" not in [fit.variant for fit in fits_without_k5.fits]
    twonn_of_one = table["d_data_twonn"].where(table["dataset"] == "natural0")
    fits_of_one_twonn = explore_fits(table.assign(d_data_twonn=twonn_of_one))
    reason = fits_of_one_twonn.exponent(variant="TwoNN").reason
    assert reason == (
        "the fit needs at least 3 datasets with two train sizes and d_data by TwoNN, and there is 1"
    )


def test_refusals_are_one_line_and_never_rows():
    table = synthetic_table(num_natural=2, num_medical=1, trial_std=0.1)
    fits = explore_fits(table)
    refused = [fit for fit in fits.fits if fit.status != "ok"]
    line = not_fitted(fits)
    assert line.startswith(f"{len(refused)} fits were not possible: ")
    assert "\n" not in line
    rows = [row for fit_table in fit_tables(fits) for row in fit_table.rows]
    cells = [cell for row in rows for cell in row]
    assert not any(fit.reason in cell for fit in refused for cell in cells)


# Chance level


def limit_to_chance_loss(table):
    """Return the table with losses flattened so that none is above the chance loss."""
    return table.assign(test_loss=np.log(2) * np.tanh(table["test_loss"] / np.log(2)))


def test_every_count_of_points_at_chance_level_is_equal():
    """One page once had "4 of 24" and "5 of 24" for the same points."""
    table = synthetic_table(num_natural=6, num_medical=6, dataset_std=0.5, trial_std=0.1)
    limited = limit_to_chance_loss(
        table.assign(test_loss=table["test_loss"] * 2, test_accuracy=0.5)
    )
    limited.loc[limited.index[:2], "test_loss"] = 0.9
    num_at_chance = int((limited["test_loss"] >= 0.8 * np.log(2)).sum())
    fits = explore_fits(limited)
    assert fits.num_at_chance_level == num_at_chance
    assert fits.caveats[:2] == (
        f"In {num_at_chance} of 36 points the loss is at least 80% of the loss of guessing, "
        "that is, at least 0.555 for 2 classes.",
        f"At {num_at_chance} of these points, AUROC is below 0.75 and accuracy less than a "
        "third of the way from chance to 100 %. These points count as chance level.",
    )
    reason = (
        f"the losses of {num_at_chance} of 36 points are at chance level, which flattens slopes by an "
        "unknown amount"
    )
    for fit in (fits.headline(), fits.height("is_medical")):
        assert (fit.status, fit.reason) == ("refused", reason)
    assert fits.answer(SHARPNESS).verdict == "not testable"


def test_chance_level_depends_on_the_number_of_classes():
    """Losses of 0.5 to 0.72 are near chance level for two classes, and far below it for ten."""
    table = synthetic_table(num_natural=6, num_medical=6, trial_std=0.1).assign(test_accuracy=0.1)
    ranks = table["test_loss"].rank() / len(table)
    low = table.assign(test_loss=0.5 + 0.22 * ranks)
    fits_of_two_classes = fit_scaling_laws(low.assign(num_classes=2))
    fits_of_ten_classes = fit_scaling_laws(low.assign(num_classes=10))
    assert (fits_of_two_classes.num_at_chance_level, fits_of_two_classes.headline().status) == (
        28,
        "refused",
    )
    assert (fits_of_ten_classes.num_at_chance_level, fits_of_ten_classes.headline().status) == (
        0,
        "ok",
    )
    assert ["chance" in str(row) for row in seen_table(fits_of_ten_classes).rows] == [False] * 12
    fits_of_high_losses = fit_scaling_laws(table.assign(test_loss=2.5 * ranks, num_classes=10))
    assert "the loss is at least 80% of the loss of guessing" in fits_of_high_losses.caveats[0]
    assert "These points count as chance level" in fits_of_high_losses.caveats[1]


def test_all_pairs_of_a_dataset_count_as_one_point_of_a_ceiling():
    pairs = synthetic_table(
        num_natural=1, num_medical=0, class_pairs=("0-1", "2-3"), train_sizes=(500,)
    )
    single = synthetic_table(num_natural=0, num_medical=1, train_sizes=(500,))
    two_sizes = synthetic_table(num_natural=0, num_medical=2, train_sizes=(500,)).iloc[1:]
    at_chance = pd.concat([single, two_sizes]).assign(test_loss=0.69, test_accuracy=0.5)
    points = prepare(pd.concat([pairs.assign(test_loss=0.01), at_chance])).points
    assert why_flattened(points) == (
        "the losses of 2 of 4 points are at chance level, which flattens slopes by an unknown "
        "amount"
    )


def test_losses_that_rise_above_chance_level_show_no_ceiling_effect():
    table = synthetic_table(num_natural=6, num_medical=6, dataset_std=1.0, trial_std=0.3)
    table = table.assign(test_loss=table["test_loss"] * 2, test_accuracy=0.5)
    fits = fit_scaling_laws(table)
    assert fits.num_at_chance_level > 10
    assert fits.height("is_medical").status == "ok"
    assert fits.exponent().num_at_chance == 0


def test_one_point_at_chance_level_refuses_no_fit():
    """One of eight points is 12 %. A ceiling needs several points and more than a tenth of them."""
    table = synthetic_table(num_natural=4, num_medical=4, train_sizes=(500,), trial_std=0.2)
    table["test_loss"] /= 10
    table["test_accuracy"] = 0.9
    table.loc[table.index[0], ["test_loss", "test_accuracy"]] = (0.69, 0.5)
    fits = fit_scaling_laws(table)
    assert (fits.num_at_chance_level, fits.headline().status) == (1, "ok")
    table.loc[table.index[1], ["test_loss", "test_accuracy"]] = (0.69, 0.5)
    assert fit_scaling_laws(table).headline().status == "refused"


@pytest.mark.parametrize(
    ("loss", "accuracy", "auc", "has_learned", "mark"),
    [
        (0.835, 0.5, np.nan, False, " (at chance level)"),
        (0.835, np.nan, np.nan, False, " (at chance level)"),
        (0.835, 0.69, np.nan, True, " (over-confident)"),
        (0.835, 0.6, 0.85, True, " (over-confident)"),
        (0.835, np.nan, 0.85, True, " (over-confident)"),
        (0.6, 0.7, np.nan, True, ""),
        (0.6, np.nan, 0.85, True, ""),
    ],
)
def test_a_high_loss_of_a_network_that_learned_is_not_called_chance_level(
    loss, accuracy, auc, has_learned, mark
):
    """A network that is right and confident in 70 % of the images has a loss of 0.611."""
    table = synthetic_table(num_natural=2, num_medical=2, trial_std=0.1)
    fits = fit_scaling_laws(table.assign(test_loss=loss, test_accuracy=accuracy, auc=auc))
    classified = (
        ", AUROC is below 0.75 and accuracy less than a third of the way from chance to "
        "100 %. These points count as chance level"
    )
    if has_learned:
        classified = (
            " the network still separates the classes: accuracy or AUROC is well above chance"
        )
    text = " ".join(fits.caveats)
    assert "In 12 of 12 points the loss is at least 80% of the loss of guessing" in text
    assert f"At 12 of these points{classified}" in text
    assert fits.num_at_chance_level == (0 if has_learned else 12)
    assert f"{loss}{mark}" in seen_table(fits).rows[0]


@pytest.mark.parametrize(("num_classes", "accuracy"), [(2, 0.7), (4, 0.55), (10, 0.5)])
def test_over_confident_is_a_loss_above_that_of_a_calibrated_network(num_classes, accuracy):
    probability_of_other_class = (1 - accuracy) / (num_classes - 1)
    calibrated = -accuracy * np.log(accuracy) - (1 - accuracy) * np.log(probability_of_other_class)
    assert calibrated >= 0.8 * np.log(num_classes) or num_classes == 10
    high_loss = max(calibrated, 0.8 * np.log(num_classes)) + 0.01
    assert is_over_confident(high_loss, num_classes, accuracy=accuracy)
    assert not is_over_confident(calibrated - 0.01, num_classes, accuracy=accuracy)


def test_curves_that_are_flat_only_at_chance_level_have_no_exponent():
    table = synthetic_table(
        num_natural=6, num_medical=6, train_sizes=(10, 30, 100, 1000, 4000, 16000)
    )
    d = table.groupby("dataset")["d_data_mle"].transform("max")
    noise = np.random.default_rng(0).normal(0, 0.01, len(table))

    def exponent_of(exponent, start=1.0):
        """Fit losses that fall as N^(-exponent / d) from N = 100.

        Up to N = 100 they are ``start`` times the chance loss.
        """
        fall = exponent / d * np.log(np.maximum(table["train_size"], 100) / 100)
        losses = start * np.log(2) * np.exp(noise - fall)
        rows = table.assign(d_data_mle=d, test_loss=losses, test_accuracy=np.nan)
        return fit_scaling_laws(rows).exponent()

    fit_near_chance = exponent_of(1.2)
    assert fit_near_chance.reason == (
        "the fit needs at least 3 datasets with two train sizes and d_data whose losses are clear "
        "of chance level, and there are 0"
    )
    assert (fit_near_chance.num_curves, fit_near_chance.num_at_chance) == (12, 12)
    fit_of_late_fall = exponent_of(12.0)
    assert fit_of_late_fall.estimates[0].value == pytest.approx(12, abs=0.1)
    assert fit_of_late_fall.num_points == (12 - fit_of_late_fall.num_at_chance) * 3


@pytest.mark.filterwarnings("error")
def test_losses_that_are_all_the_same_give_no_slope_and_no_interval():
    table = synthetic_table().assign(test_loss=0.3, test_accuracy=0.8)
    fits = explore_fits(table)
    fits_of_losses = [fit for fit in fits.fits if fit.kind in ("headline", "height", "exponent")]
    assert {fit.status for fit in fits_of_losses} == {"not_enough_data"}
    assert fits.exponent().reason == "the losses are the same at every N"


def test_losses_that_are_the_same_within_datasets_have_no_exponent_but_a_height():
    table = synthetic_table(dataset_std=0.3)
    table["test_loss"] = table.groupby("dataset")["test_loss"].transform("mean")
    fits = fit_scaling_laws(table)
    assert fits.exponent().reason == "the losses are the same at every N"
    assert fits.height("is_medical").status == "ok"


def test_datasets_without_a_common_condition_are_not_compared():
    table = synthetic_table(num_natural=6, num_medical=0, trial_std=0.2)
    modes = np.where(np.arange(len(table)) % 2 == 0, "corrected", "as_released")
    reason = fit_scaling_laws(table.assign(data_mode=modes)).headline().reason
    assert "share no model, train size and data mode" in reason


def test_a_tracker_gets_best_losses_and_claims_under_valid_names():
    table = synthetic_table()
    fits = fit_scaling_laws(table)
    metrics = headline(table, fits)
    for name in table["dataset"].unique():
        assert metrics[f"best_test_loss/{name}"] == min(
            table.loc[table["dataset"] == name, "test_loss"]
        )
    answers = [*with_p_values(fits.answers)]
    for answer in answers:
        assert metrics[f"claim/{answer.question.key}/adjusted_p"] == answer.adjusted_p
    assert len(metrics) == table["dataset"].nunique() + 2 * len(answers)
    for name in metrics:
        _validate_metric_name(name)
    assert WORDS["inverse_d"] == "1/d"
