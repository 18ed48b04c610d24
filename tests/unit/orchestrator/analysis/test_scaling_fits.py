import json

import numpy as np
import pandas as pd
import pytest

from orchestrator.analysis import ScalingFits, fit_scaling_laws, published_table
from orchestrator.analysis.synthetic import synthetic_table
from search_spaces.errors import DataError
from tests.laws import fit_laws


def test_an_exact_law_is_recovered_exactly():
    fits = fit_laws(synthetic_table(size_slope=1.3, sharpness_slope=0.8, models=("a", "b")))
    for model in ("a", "b", "pooled"):
        law = fits.law("predicted_form", model=model)
        assert law.coefficient("scaled_log_train_size").value == pytest.approx(1.3)
        assert law.coefficient("log_sharpness").value == pytest.approx(0.8)
        assert law.r_squared == pytest.approx(1.0)


def test_theory_wins_the_comparison_where_it_is_true():
    fits = fit_laws(synthetic_table(trial_std=0.05, num_natural=7))
    scores = {s.form: s for s in fits.comparisons[-1].scores}
    assert min(scores.values(), key=lambda s: s.held_out_rmse).form in (
        "slopes_fixed_at_theory",
        "predicted_form",
    )
    assert scores["predicted_form"].aicc < scores["domain_form"].aicc < scores["constant"].aicc
    assert scores["constant"].r_squared == 0.0


def test_the_domain_label_wins_where_sharpness_has_no_part():
    table = synthetic_table(sharpness_slope=0.0, trial_std=0.05)
    table.loc[table["domain"] == "medical", "test_loss"] *= 3
    scores = {s.form: s for s in fit_laws(table).comparisons[-1].scores}
    assert scores["domain_form"].held_out_rmse < scores["predicted_form"].held_out_rmse
    assert scores["domain_form"].aicc < scores["predicted_form"].aicc


def test_the_result_is_json_without_nan_and_comes_back_equal():
    fits = fit_scaling_laws(synthetic_table(trial_std=0.3, dataset_std=0.3))
    text = json.dumps(fits.to_json(), allow_nan=False)
    assert ScalingFits.from_json(json.loads(text)) == fits


def test_stored_fits_of_another_version_are_refused():
    with pytest.raises(DataError, match="schema version 2; found: 0"):
        ScalingFits.from_json({"schema_version": 0})


def test_the_order_of_rows_and_of_other_models_changes_nothing():
    table = synthetic_table(num_natural=3, num_medical=3, trial_std=0.3, models=("a", "b"))
    table = table.drop(columns=[f"fgsm_{e}_loss_gain" for e in (2, 4, 8)])
    shuffled = table.sample(frac=1, random_state=np.random.RandomState(5))
    fits = fit_laws(table)
    assert fits == fit_laws(shuffled)
    alone = fit_laws(table[table["model"] == "a"])
    assert alone.law("predicted_form", model="a") == fits.law("predicted_form", model="a")


def test_the_seed_moves_drawn_permutations_and_nothing_else():
    table = synthetic_table(trial_std=0.3, dataset_std=2.0, num_natural=8, num_medical=8)
    one, two = (fit_laws(table, seed=seed) for seed in (1, 2))
    assert one.laws == two.laws
    assert one.exponents == two.exponents
    first, second = (f.level("inverse_d", "log_sharpness", "is_medical").coefficients[1] for f in (one, two))
    assert (first.value, first.interval) == (second.value, second.interval)
    assert first.permutation_p != second.permutation_p


def test_an_empty_table_gives_no_fit_and_no_error():
    fits = fit_scaling_laws(synthetic_table().head(0))
    assert fits.num_trials == 0
    assert fits.laws == ()
    assert fits.law("predicted_form").status == "not_enough_data"
    assert any("No medical dataset" in caveat for caveat in fits.caveats)


def test_one_dataset_is_refused_in_words():
    law = fit_laws(synthetic_table(num_natural=1, num_medical=0)).law("loss_on_d_data", subset="natural")
    assert law.status == "not_enough_data"
    assert law.reason == "only 1 dataset (natural0): a slope over datasets needs at least 2"
    assert law.coefficients == ()


def test_too_few_points_are_refused_with_their_number():
    law = fit_laws(synthetic_table(num_natural=2, num_medical=0, train_sizes=(500, 1000))).law(
        "predicted_form"
    )
    assert law.reason == "4 points, at least 6 needed"


def test_an_offset_between_domains_needs_both():
    law = fit_laws(synthetic_table(num_natural=4, num_medical=0)).law("domain_form")
    assert law.reason == "only natural datasets: an offset between domains needs both"


def test_few_datasets_are_said_in_words_and_given_no_interval():
    law = fit_laws(synthetic_table(num_natural=2, num_medical=6, trial_std=0.1)).law(
        "loss_on_d_data", subset="natural"
    )
    assert law.coefficients[1].interval is None
    assert law.caveats == (
        "2 natural datasets: a trend over natural datasets cannot be told from the peculiarities of these; "
        "at least 5 are needed.",
    )


def test_no_variation_in_a_regressor_is_said():
    table = synthetic_table().assign(label_sharpness=1e-4)
    assert "do not vary enough" in fit_laws(table).law("predicted_form").reason


def test_measures_equal_up_to_rounding_explain_nothing():
    table = synthetic_table(num_natural=5, trial_std=0.3).assign(d_data_mle=7.3, label_sharpness=0.1 + 0.2)
    fits = fit_laws(table)
    for terms in (("d_data_mle",), ("inverse_d", "log_sharpness"), ("log_sharpness",)):
        found = fits.level(*terms)
        assert found.status != "ok"
        assert "not vary enough" in found.reason
        assert found.versus_label is None


def test_nothing_to_fit_is_said_without_the_names_of_our_fits():
    fits = fit_scaling_laws(synthetic_table().assign(status="diverged"))
    assert fits.level("d_data_mle", subset="natural").reason == "no usable trial on a natural dataset"
    assert fits.exponent(model="resnet18").reason == "no usable trial of resnet18"


def test_points_without_a_measure_are_counted():
    table = synthetic_table()
    table.loc[table["dataset"] == "natural0", "d_data_mle"] = np.nan
    law = fit_laws(table).law("loss_on_d_data", subset="natural")
    assert [(e.reason, e.count) for e in law.excluded] == [("no usable d_data_mle", 3)]
    assert law.num_datasets == 4


def test_unequal_channels_refuse_what_compares_sharpness_and_only_that():
    fits = fit_laws(published_table())
    assert not fits.sharpness_scale.comparable
    assert "3 channels, range 255: cifar10, imagenet, svhn" in fits.sharpness_scale.note
    assert fits.law("predicted_form", model="resnet34").status == "refused"
    assert fits.law("predicted_form", model="resnet34").reason == "K_F was measured on unequal scales"
    assert fits.law("domain_form", model="resnet34").status == "ok"
    assert "predicted_form" not in {s.form for s in fits.comparisons[-1].scores}


def test_rescaling_converts_by_the_root_of_the_channels_and_says_so():
    table = synthetic_table(sharpness_slope=1.0)
    rgb = table["dataset"].isin(["natural0", "natural1"])
    table.loc[rgb, "sharpness_channels"] = 3
    table.loc[rgb, "label_sharpness"] /= np.sqrt(3)
    fits = fit_laws(table, sharpness_policy="rescale")
    assert fits.law("predicted_form").coefficient("log_sharpness").value == pytest.approx(1.0)
    assert "converted to 64×64 pixels, 1 channel, range 255" in fits.sharpness_scale.note


def test_an_unrecorded_scale_is_not_rescaled_but_refused():
    table = synthetic_table()
    table.loc[table["dataset"] == "natural0", "sharpness_channels"] = np.nan
    fits = fit_laws(table, sharpness_policy="rescale")
    assert not fits.sharpness_scale.comparable
    assert "unrecorded channels" in fits.sharpness_scale.note


def test_attacks_refuse_unequal_scales_but_keep_the_contrast():
    table = synthetic_table()
    table.loc[table["dataset"] == "natural0", "image_size"] = 32
    attack = fit_laws(table).attacks[-1]
    assert attack.on_sharpness.status == "refused"
    assert attack.on_d_data.status == "ok"


def test_attack_correlations_carry_what_leaving_a_dataset_out_does():
    found = next(f for f in fit_laws(synthetic_table()).attacks if f.model == "pooled" and f.epsilon == 8)
    sharp = found.on_sharpness
    assert sharp.pearson > 0.5
    assert len(sharp.pearson_left_out) == 12
    low, high = sharp.pearson_interval
    assert -1 <= low < sharp.pearson < high <= 1
    assert abs(found.on_d_data.pearson) < sharp.pearson


def test_a_loss_gain_that_never_varies_is_no_correlation():
    table = synthetic_table().assign(fgsm_1_loss_gain=0.0)
    assert "same value everywhere" in fit_laws(table).attacks[0].on_sharpness.reason


def test_the_exponent_of_a_pure_power_law_is_found_and_a_span_is_convincing():
    sizes = (100, 300, 1000, 3000, 10000)
    table = synthetic_table(num_natural=2, num_medical=0, train_sizes=sizes, class_pairs=("0-1", "2-3"))
    table["d_data_mle"] = 10.0
    rng = np.random.default_rng(0)
    table["test_loss"] = 3 * table["train_size"] ** -0.1 * np.exp(rng.normal(0, 0.005, len(table)))
    found = next(f for f in fit_laws(table).train_size if f.model == "pooled")
    assert found.exponent == pytest.approx(-0.1, abs=0.01)
    assert found.verdict == "agrees with the prediction"
    assert found.aicc_power < found.aicc_constant


@pytest.mark.parametrize(
    ("exponent", "verdict"),
    [(-0.5, "falls faster"), (0.3, "falls more slowly with N than the bound allows, or rises")],
)
def test_exponents_off_the_prediction_are_told(exponent, verdict):
    table = synthetic_table(num_natural=1, num_medical=0, train_sizes=(100, 300, 1000, 3000))
    table["test_loss"] = table["train_size"] ** exponent * np.exp([0.01, -0.01, 0.01, -0.01])
    assert verdict in fit_laws(table).train_size[0].verdict


def test_two_train_sizes_identify_no_exponent():
    found = fit_laws(synthetic_table(train_sizes=(500, 1000))).train_size[0]
    assert found.status == "not_enough_data"
    assert found.reason == "2 train sizes and 2 points, at least 3 sizes needed"


def test_what_limits_the_whole_sweep_is_listed():
    table = synthetic_table(num_natural=5, num_medical=0)
    table["status"] = "done"
    table.loc[0, ["status", "test_loss"]] = ["diverged", np.nan]
    table.loc[1, "data_mode"] = "as_released"
    table.loc[2, "num_conflicts"] = 1
    words = " ".join(fit_laws(table).caveats)
    for part in ("No medical dataset", "1 trial diverged", "as_released and corrected", "in natural0"):
        assert part in words


def test_trials_without_a_loss_still_count_for_representations():
    table = synthetic_table().assign(test_loss=np.nan)
    fits = fit_scaling_laws(table)
    assert fits.num_used == 0
    assert fits.law("predicted_form").status == "not_enough_data"
    assert fits.representations[0].num_points == len(table)


def test_a_contradictory_table_is_an_error_of_the_data():
    table = synthetic_table()
    with pytest.raises(DataError, match="one row per trial"):
        fit_laws(pd.concat([table, table]))
