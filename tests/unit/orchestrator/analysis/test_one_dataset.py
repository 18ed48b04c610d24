"""Test the answers for a sweep of one dataset."""

import json

import numpy as np
import pandas as pd
import pytest
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.power import NormalIndPower
from statsmodels.stats.proportion import proportion_confint, proportion_effectsize

from orchestrator.analysis.curve_answers import CurveQuestion, answers
from orchestrator.analysis.findings import findings, next_steps, summary, what_was_found
from orchestrator.analysis.fits import fit_scaling_laws
from orchestrator.analysis.number_formats import number
from orchestrator.analysis.one_dataset import Target, best_network, next_target, one_dataset
from orchestrator.analysis.paired_networks import (
    independent_test_size,
    mcnemar_p,
    paired_comparison,
    paired_test_size,
)

SIZES = (105, 210, 420, 840)
LOSSES = {"small_cnn": (0.93, 0.82, 0.81, 0.79), "resnet_tiny": (1.25, 1.12, 1.0, 1.152)}
ACCURACIES = {"small_cnn": (0.6, 0.66, 0.7, 0.74), "resnet_tiny": (0.5, 0.58, 0.63, 0.67)}


def trial_table(seeds=(0,), dataset="my-images", class_pair=""):
    """Return trials of two networks on one dataset; losses of several seeds scatter by 2 %."""
    generator = np.random.default_rng(3)
    return pd.DataFrame(
        {
            "trial_id": f"{model}-{size}-{seed}",
            "domain": "medical",
            "dataset": dataset,
            "class_pair": class_pair,
            "model": model,
            "train_size": size,
            "seed": seed,
            "status": "done",
            "test_loss": loss * (np.exp(generator.normal(0, 0.02)) if len(seeds) > 1 else 1.0),
            "test_accuracy": accuracy,
            "d_data_mle": 9.0,
            "label_sharpness": 0.0018,
            "num_classes": 4,
        }
        for model, losses in LOSSES.items()
        for size, loss, accuracy in zip(SIZES, losses, ACCURACIES[model], strict=True)
        for seed in seeds
    )


def test_the_first_answers_are_the_best_network_and_its_curve():
    all_findings = findings(fit_scaling_laws(trial_table()))
    assert [finding.question for finding in all_findings] == [
        "Which network is best on my-images?",
        "What would more images bring small_cnn?",
        "What would more images bring resnet_tiny?",
        "What do d_data and K_F decide?",
    ]
    assert all_findings[0].answer.startswith(
        "small_cnn has the lowest test loss at all 4 train sizes. At N = 840, the largest train size, "
        "the test loss is 0.79 nat (accuracy 0.74) for small_cnn and 1.15 nat (accuracy 0.67) for "
        "resnet_tiny."
    )
    assert "With 1 seed, another training could change these losses" in all_findings[0].answer
    assert "With 1,680 training images expect" in all_findings[1].line
    # Twice 840 images are expected to give the best network an accuracy of 0.77.
    assert "For an accuracy of 0.77: " in all_findings[1].line
    proposed = (
        "isweep proposes the target accuracy of 0.77, because about this accuracy is expected with "
        "twice your largest train size."
    )
    assert proposed in all_findings[1].line
    remark = "with 4 train sizes, the numbers of images for a probability of 80% were large enough"
    assert remark in all_findings[1].line
    assert "isweep proposes" not in all_findings[2].line
    assert "the median estimate is" in all_findings[1].line
    assert all_findings[0].details == (
        "The two lowest test losses at each train size: N = 105: small_cnn 0.93, resnet_tiny 1.25; "
        "N = 210: small_cnn 0.82, resnet_tiny 1.12; N = 420: small_cnn 0.81, resnet_tiny 1; "
        "N = 840: small_cnn 0.79, resnet_tiny 1.15.",
    )


def test_the_first_screen_has_the_best_result_beside_guessing():
    fits = fit_scaling_laws(trial_table())
    assert what_was_found(fits) == (
        "2 kinds of network were trained 8 times on 1 dataset.",
        "With 840 training images, small_cnn has the lowest test loss: accuracy 0.74, test loss 0.79 "
        "nat. Guessing among 4 equally frequent classes has accuracy 0.25 and test loss 1.39 nat.",
    )


def test_the_first_screen_has_the_largest_train_size_also_if_another_one_has_a_lower_loss():
    rows = trial_table()
    is_last = rows["train_size"] == 840
    is_small = rows["model"] == "small_cnn"
    rows.loc[is_last & is_small, "test_loss"] = 0.85
    first = what_was_found(fit_scaling_laws(rows))[1]
    assert first.startswith(
        "With 840 training images, small_cnn has the lowest test loss: accuracy 0.74, test loss 0.85 nat."
    )
    rows.loc[is_last & ~is_small, "test_accuracy"] = 0.8
    comparison, _ = one_dataset(rows).best_sentences
    assert comparison.endswith(" resnet_tiny has the higher accuracy.")
    without = one_dataset(rows.assign(test_accuracy=np.nan))
    assert without.best_score.sentence.startswith(
        "With 840 training images, small_cnn has the lowest test loss: test loss 0.85 nat."
    )
    assert "accuracy" not in without.best_sentences[0]
    (only,) = {one_dataset(rows[is_small]).best_score.sentence}
    assert only.startswith("With 840 training images, small_cnn has accuracy 0.74, ")


def test_the_accuracy_on_the_first_screen_has_wilsons_interval():
    low, high = proportion_confint(222, 300, method="wilson")
    rows = trial_table().assign(test_size=300)
    sentence = one_dataset(rows).best_score.sentence
    expected = f"accuracy 0.74 (95 % interval {number(low)} to {number(high)} from 300 test images)"
    assert expected in sentence


def test_the_comparison_of_two_networks_has_their_aurocs():
    rows = trial_table()
    rows["auc"] = np.where(rows["model"] == "small_cnn", 0.93, 0.91)
    comparison, _ = one_dataset(rows).best_sentences
    assert "(accuracy 0.74, AUROC 0.93) for small_cnn" in comparison
    assert "(accuracy 0.67, AUROC 0.91) for resnet_tiny" in comparison


def test_the_first_screen_has_the_accuracy_under_attack():
    rows = trial_table()
    for epsilon, drop in ((1, 0.1), (8, 0.5), (16, 0.7)):
        rows[f"fgsm_{epsilon}_loss_gain"] = epsilon / 10
        rows[f"fgsm_{epsilon}_accuracy_drop"] = drop
    assert what_was_found(fit_scaling_laws(rows))[2] == (
        "Under FGSM, its accuracy is 0.64 at 1/255 and 0.24 at 8/255. These fractions are the largest "
        "change of a pixel, as a share of the pixel range. A stronger attack can lower the accuracy "
        "further."
    )


def test_trainings_that_last_too_long_are_counted():
    rows = trial_table()
    rows["num_epochs"] = 14
    rows["best_epoch"] = rows["train_size"].map({105: 14, 210: 13, 420: 10, 840: 7})
    finding = findings(fit_scaling_laws(rows))[1]
    assert finding.sentences[0] == (
        "First train small_cnn for fewer epochs: in 1 of 1 training at N = 840, the test loss was "
        "lowest in the first half of the epochs and rose later."
    )
    assert finding.details[-1] == (
        "The mean epoch of the lowest test loss of small_cnn is 14 at N = 105, 13 at N = 210, 10 at "
        "N = 420 and 7 at N = 840."
    )
    # The same best epoch is not early in a training of 13 epochs.
    rows["num_epochs"] = 13
    assert "fewer epochs" not in findings(fit_scaling_laws(rows))[1].line
    without = rows.drop(columns="num_epochs")
    assert "fewer epochs" not in findings(fit_scaling_laws(without))[1].line


def test_the_next_command_has_the_sweep_and_a_place_for_your_own_target():
    fits = fit_scaling_laws(trial_table())
    predict = next_steps(fits, "isweep predict my-sweep")[0]
    assert predict.endswith("`isweep predict my-sweep --target-accuracy TARGET`.")
    assert "`isweep predict --curve results.csv --target-accuracy TARGET`" in next_steps(fits)[0]


def test_a_target_lies_between_the_best_score_and_a_perfect_one():
    rows = trial_table()
    target = next_target(rows)
    assert target == Target("accuracy", pytest.approx(0.77, abs=0.03), is_expected=True)
    assert target.value == answers(rows, CurveQuestion("accuracy")).example_target()
    perfect = rows.assign(test_accuracy=rows["test_accuracy"] / rows["test_accuracy"].max())
    target = next_target(perfect)
    assert target.metric == "loss"
    assert 0 < target.value < rows["test_loss"].min()
    # If scores get worse with more images, the target has half the errors of the best one.
    falling = rows.assign(test_accuracy=1 - rows["test_accuracy"])
    assert next_target(falling).metric == "accuracy"
    assert next_target(falling).value > falling["test_accuracy"].max()
    steep = rows.assign(test_accuracy=[0.9, 0.6, 0.5, 0.4] * 2)
    assert next_target(steep) == Target("accuracy", 0.95, is_expected=False)
    assert "about half the error rate of the best result" in next_target(steep).reason
    without = rows.assign(test_accuracy=np.nan)
    assert next_target(without).metric == "loss"


def test_the_curves_of_the_target_are_numbers_in_json():
    document = fit_scaling_laws(trial_table()).to_json()
    curves = document["one_dataset"]["target_curves"]
    assert [curve["target"] for curve in curves] == [0.77, 0.77]
    json.dumps(document, allow_nan=False)


def test_questions_that_need_more_datasets_share_one_line():
    lines = summary(fit_scaling_laws(trial_table()))
    assert sum("NOT TESTABLE" in line for line in lines) == 1
    text = "\n".join(lines)
    assert "1 medical dataset" not in text
    assert "There is no natural dataset" not in text


def test_several_seeds_give_the_difference_an_interval():
    single = one_dataset(trial_table(seeds=(0, 1, 2, 3)))
    low, high = single.best[-1].difference
    assert low < np.log(1.152 / 0.79) < high
    assert low > 0
    sentences = " ".join(single.best_sentences)
    assert "Over seeds at N = 840, the losses differ: the loss of resnet_tiny is 1." in sentences


def test_the_best_network_may_depend_on_n():
    rows = trial_table()
    is_largest = rows["train_size"] == 840
    rows.loc[(rows["model"] == "resnet_tiny") & is_largest, "test_loss"] = 0.5
    single = one_dataset(rows)
    assert single.best_sentences[0] == (
        "By test loss, the best network depends on N: small_cnn at 105, small_cnn at 210, small_cnn "
        "at 420 and resnet_tiny at 840. At N = 840, the largest train size, the test loss is 0.5 "
        "nat (accuracy 0.67) for resnet_tiny and 0.79 nat (accuracy 0.74) for small_cnn. "
        "small_cnn has the higher accuracy."
    )


def test_one_network_is_no_comparison():
    rows = trial_table()
    assert best_network(rows[(rows["model"] == "small_cnn") & (rows["train_size"] == 840)]) is None
    assert one_dataset(rows[rows["model"] == "small_cnn"]).best == ()


def test_the_size_of_a_test_set_is_that_of_two_independent_proportions():
    effect = proportion_effectsize(0.74, 0.67)
    expected = NormalIndPower().solve_power(effect, alpha=0.05, power=0.8)
    assert independent_test_size(0.74, 0.67) == pytest.approx(expected, rel=0.03)
    assert independent_test_size(0.7, 0.7) is None
    assert independent_test_size(float("nan"), 0.7) is None


def test_several_datasets_or_pairs_are_not_one_dataset():
    two_datasets = pd.concat([trial_table(), trial_table(dataset="other")])
    assert one_dataset(two_datasets) is None
    one_failed = pd.concat([trial_table(), trial_table(dataset="other").assign(test_loss=np.nan)])
    assert one_dataset(one_failed) is None
    one_failed["trial_id"] += one_failed["dataset"]
    assert findings(fit_scaling_laws(one_failed.reset_index(drop=True)))
    two_pairs = pd.concat([trial_table(class_pair="0-1"), trial_table(class_pair="0-2")])
    assert one_dataset(two_pairs) is None


def test_a_table_without_seeds_or_with_a_loss_of_zero_is_still_answered():
    assert one_dataset(trial_table().assign(seed=np.nan)).best[-1].model == "small_cnn"
    rows = trial_table()
    rows.loc[rows["train_size"] == 105, "test_loss"] = 0.0
    assert [best.train_size for best in one_dataset(rows).best] == [210, 420, 840]
    assert one_dataset(trial_table().assign(test_loss=0.0)) is None


def test_curves_that_mix_experiments_are_left_out_with_the_reason():
    mixed = trial_table().assign(image_size=[32, 64] * 4)
    single = one_dataset(mixed)
    assert single.curves == ()
    reason = "The table contains trainings of more than one image_size: 32, 64"
    assert reason in single.why_no_curves


def stored_predictions(is_right, seed=0, model="a", train_size=840):
    """Return the logits of one training for two classes; they are right where ``is_right`` is."""
    is_right = np.asarray(is_right, dtype=bool)
    labels = np.arange(len(is_right)) % 2
    chosen = np.where(is_right, labels, 1 - labels)
    return pd.DataFrame(
        {
            "model": model,
            "train_size": train_size,
            "seed": seed,
            "image": np.arange(len(is_right)),
            "label": labels,
            "logit_0": np.where(chosen == 0, 1.0, 0.0),
            "logit_1": np.where(chosen == 1, 1.0, 0.0),
        }
    )


def test_networks_are_compared_on_the_images_that_only_one_classifies_correctly():
    first = [1] * 60 + [1] * 25 + [0] * 8 + [0] * 7
    second = [1] * 60 + [0] * 25 + [1] * 8 + [0] * 7
    comparison = paired_comparison(stored_predictions(first), stored_predictions(second))
    assert (comparison.only_first_right, comparison.only_second_right) == (25, 8)
    assert comparison.accuracy_difference == pytest.approx(0.17)
    expected = mcnemar([[60, 25], [8, 7]], exact=True)
    assert comparison.p_value == pytest.approx(expected.pvalue)
    # A wrong answer costs 1 nat more than a right one with these logits.
    assert comparison.loss_difference == pytest.approx(0.17)
    low, high = comparison.loss_interval
    assert 0 < low < 0.17 < high


def test_seeds_make_no_image_count_twice():
    first = [stored_predictions([1] * 6 + [0] * 4, seed=seed) for seed in range(5)]
    second = [stored_predictions([0] * 6 + [0] * 4, seed=seed) for seed in range(5)]
    comparison = paired_comparison(pd.concat(first), pd.concat(second))
    assert (comparison.num_seeds, comparison.num_images) == (5, 10)
    assert (comparison.only_first_right, comparison.only_second_right) == (6, 0)
    assert comparison.p_value == pytest.approx(mcnemar_p(6, 0))


def test_the_needed_test_images_are_counted_as_images_with_several_seeds():
    """In one of two seeds both networks are right everywhere, so half the predictions differ."""
    first = [stored_predictions([1] * 20, seed=seed) for seed in range(2)]
    second = [stored_predictions([0] * 6 + [1] * 14), stored_predictions([1] * 20, seed=1)]
    comparison = paired_comparison(pd.concat(first), pd.concat(second))
    assert (comparison.only_first_right, comparison.only_second_right) == (6, 0)
    assert comparison.images_needed == paired_test_size(6 / 20, 6 / 20)


def test_networks_that_share_no_image_or_seed_are_not_compared():
    assert paired_comparison(stored_predictions([1]), stored_predictions([1], seed=1)) is None
    one_image = stored_predictions([1, 0]).iloc[:1]
    comparison = paired_comparison(one_image, stored_predictions([0, 0]))
    assert comparison.num_images == 1
    assert mcnemar_p(0, 0) == 1.0


def test_a_paired_test_set_detects_a_difference_in_eight_of_ten_studies():
    discordant_share = 0.2
    difference = 0.06
    size = paired_test_size(discordant_share, difference)
    generator = np.random.default_rng(0)
    shares = [
        (discordant_share + difference) / 2,
        (discordant_share - difference) / 2,
        1 - discordant_share,
    ]
    num_detected = 0
    for wins, losses, _ in generator.multinomial(size, shares, 2000):
        statistic = (wins - losses) ** 2 / (wins + losses)
        num_detected += statistic > 3.841  # 95 % quantile of χ² with one degree of freedom
    assert num_detected / 2000 == pytest.approx(0.80, abs=0.03)
    assert paired_test_size(0.2, 0.0) is None


def test_stored_predictions_give_a_test_of_the_difference_between_networks():
    rows = trial_table()
    predictions = pd.concat(
        [
            stored_predictions([1] * 80 + [0] * 20, model="small_cnn"),
            stored_predictions([1] * 60 + [0] * 40, model="resnet_tiny"),
        ]
    )
    single = one_dataset(rows, predictions)
    sentences = " ".join(single.best_sentences)
    assert "On the same 100 test images at N = 840, the accuracies differ (McNemar's p" in sentences
    assert (
        "Only small_cnn is right on 20 of them, and only resnet_tiny is right on 0 of them."
        in sentences
    )
    assert single.test_set_line.endswith("with both networks tested on the same images.")
    assert "--set predictions=true" in one_dataset(rows).test_set_line


def test_robustness_is_described_for_each_train_size():
    rows = trial_table()
    rows["fgsm_2_loss_gain"] = np.where(rows["train_size"] == 840, 0.9, 0.4)
    rows["fgsm_16_loss_gain"] = 7.0
    line = one_dataset(rows).robustness_line
    assert line == (
        "FGSM at 2/255 raises the loss of resnet_tiny by 0.4 nat at N = 105 and by 0.9 nat at N = "
        "840. FGSM at 2/255 raises the loss of small_cnn by 0.4 nat at N = 105 and by 0.9 nat at "
        "N = 840."
    )
    rows["fgsm_2_accuracy_drop"] = np.where(rows["train_size"] == 840, 0.5, 0.3)
    assert one_dataset(rows).robustness_line.endswith(
        "Under FGSM at 2/255, the accuracy of small_cnn is 0.3 instead of 0.6 at N = 105 and 0.24 "
        "instead of 0.74 at N = 840. FGSM at 2/255 raises the loss of small_cnn by 0.4 nat "
        "at N = 105 and by 0.9 nat at N = 840."
    )


def test_networks_at_chance_level_are_left_out_of_the_robustness_sentences():
    rows = trial_table()
    rows["fgsm_2_loss_gain"] = np.where(rows["train_size"] == 840, 0.9, 0.4)
    is_small = (rows["model"] == "resnet_tiny") & (rows["train_size"] == 105)
    rows.loc[is_small, ["test_loss", "test_accuracy"]] = 1.38, 0.26
    assert one_dataset(rows).robustness_line == (
        "FGSM at 2/255 raises the loss of resnet_tiny by 0.4 nat at N = 210 and by 0.9 nat at N = "
        "840. FGSM at 2/255 raises the loss of small_cnn by 0.4 nat at N = 105 and by 0.9 nat at "
        "N = 840. Left out, because the network is at chance level: 1 of 8 combinations of "
        "network and N."
    )
    rows["fgsm_2_accuracy_drop"] = 0.1
    first_screen = " ".join(what_was_found(fit_scaling_laws(rows)))
    assert "Under FGSM, its accuracy is" in first_screen
    rows[["test_loss", "test_accuracy"]] = 1.38, 0.26
    assert "Under FGSM" not in " ".join(what_was_found(fit_scaling_laws(rows)))
    assert one_dataset(rows).robustness_line == (
        "Left out, because the network is at chance level: 8 of 8 combinations of network and N."
    )


def test_the_dimension_is_compared_with_the_published_ones():
    line = one_dataset(trial_table()).dimension_line
    assert "d_data 9 is higher than d_data of 1 of the 11 published datasets" in line
    assert one_dataset(trial_table().drop(columns="d_data_mle")).dimension_line == ""
