import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from benchmarks import null_interventions
from orchestrator.analysis.experiments.interventions import fit_interventions
from orchestrator.analysis.experiments.records import Arm
from orchestrator.analysis.findings import findings, summary
from orchestrator.analysis.fits import fit_scaling_laws
from orchestrator.analysis.number_formats import number
from orchestrator.analysis.report import write_report

ARMS = tuple(
    Arm(f"w{world}_{name}", f"w{world}", moves)
    for world in range(4)
    for name, moves in (
        ("base", "base"),
        ("contrast", "sharpness"),
        ("nuisance", "dimension"),
        ("scale", "nothing"),
    )
)


def intervention_table(follows, *, d_of_contrast=1.0, contrast=3.0, seed=0, noise=0.05):
    """Return trials whose log losses follow log K_F with the slope ``follows``.

    The contrast arm multiplies K_F; the scale arm divides it by 10 and leaves the loss.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for arm in ARMS:
        name = arm.dataset.split("_")[1]
        factor = {"base": 1.0, "contrast": contrast, "nuisance": 1.0, "scale": 0.1}[name]
        d = 8.0 * {"contrast": d_of_contrast, "nuisance": 1.5}.get(name, 1.0)
        factor_in_loss = 1.0 if name == "scale" else factor
        shift = rng.normal(0, noise)
        for size in (250, 1000, 4000):
            loss = np.exp(-np.log(size) / d + follows * np.log(factor_in_loss) + shift)
            rows.append(
                {
                    "trial_id": f"{arm.dataset}-{size}",
                    "model": "m",
                    "dataset": arm.dataset,
                    "domain": "natural",
                    "train_size": size,
                    "test_loss": loss,
                    "d_data_mle": d,
                    "label_sharpness": 1e-3 * factor,
                }
            )
    return pd.DataFrame(rows)


def find_effect(fit, words):
    """Return the first effect whose estimand contains the words."""
    return next(estimate for estimate in fit.effects if words in estimate.estimand)


def find_gate(fit, dataset):
    """Return the gate of an arm: whether the arm counts."""
    return next(gate for gate in fit.gates if gate.arm.dataset == dataset)


@pytest.mark.parametrize(
    ("follows", "verdict"),
    [
        (1.0, "log loss rises with K_F, at a rate that agrees with the law"),
        (0.0, "log loss does not follow K_F as the law says"),
        (0.5, "log loss rises with K_F, more weakly than the law says"),
        (2.0, "log loss rises with K_F, more strongly than the law says"),
        (-1.0, "log loss moves against the law"),
    ],
)
def test_the_answer_names_the_result_for_every_slope(follows, verdict):
    fit = fit_interventions(intervention_table(follows), ARMS)
    assert find_effect(fit, "Δ log K_F").value == pytest.approx(follows, abs=0.12)
    assert verdict in fit.answer
    gates = "4 of 4 arms changed K_F by a factor of 2 or more and log d by less than 0.05."
    assert gates in fit.answer


def test_the_first_line_has_the_slope_with_its_interval():
    all_findings = findings(fit_scaling_laws(intervention_table(2.0), arms=ARMS))
    (finding,) = [
        candidate for candidate in all_findings if "one property is changed" in candidate.question
    ]
    slope = find_effect(fit_interventions(intervention_table(2.0), ARMS), "Δ log K_F")
    low, high = (number(bound) for bound in slope.interval)
    words = (
        f"/ Δ log K_F = {number(slope.value)}, 95 % interval {low} to {high} over 4 worlds; "
        "the law says 1"
    )
    assert words in finding.line


def test_trials_of_arms_that_diverged_are_counted_in_the_answer():
    trials = intervention_table(1.0).assign(status="done")
    trials.loc[trials["dataset"] == "w1_contrast", "status"] = ["diverged", "done", "done"]
    trials.loc[trials["trial_id"] == "w2_contrast-250", "test_loss"] = np.nan
    answer = fit_interventions(trials, ARMS).answer
    assert (
        "Left out: trials that diverged because their loss was no longer a finite number (1). "
        "Left out: trials without a test loss (1)." in answer
    )
    assert "Left out" not in fit_interventions(intervention_table(1.0), ARMS).answer


def test_base_datasets_are_the_replicates_of_a_paired_t_test():
    slope = find_effect(fit_interventions(intervention_table(0.7), ARMS), "Δ log K_F")
    values = np.array(list(slope.by_world.values()))
    t_test = stats.ttest_1samp(values, 0.0)
    assert slope.num_worlds == 4
    assert slope.p_zero == pytest.approx(t_test.pvalue)
    assert slope.interval == pytest.approx(tuple(t_test.confidence_interval()))
    assert slope.p_theory == pytest.approx(stats.ttest_1samp(values, 1.0).pvalue)


@pytest.mark.long
def test_an_interval_over_base_datasets_that_share_classes_is_the_wider_of_two():
    pairs = ("01", "23", "40", "12")
    arms = tuple(replace(arm, shows=tuple(pairs[int(arm.world[1])])) for arm in ARMS)
    rows = intervention_table(0.7, noise=0.01)
    has_class_0 = rows["dataset"].isin(["w0_contrast", "w2_contrast"])  # both show class 0
    rows.loc[has_class_0, "test_loss"] *= 1.4
    slope = find_effect(fit_interventions(rows, arms), "Δ log K_F")
    slopes = np.array(list(slope.by_world.values()))
    without = []
    for class_name in "01234":
        others_of_class = [k for k in range(4) if class_name not in pairs[k]]
        without.append(slopes[others_of_class].mean())
    without = np.array(without)
    error = np.sqrt(4 / 5 * np.square(without - slopes.mean()).sum())
    by_class = stats.t.interval(0.95, 4, slopes.mean(), error)
    assert np.ptp(by_class) > np.ptp(tuple(stats.ttest_1samp(slopes, 0.0).confidence_interval()))
    assert slope.interval == pytest.approx(by_class)
    assert slope.p_zero == pytest.approx(2 * stats.t.sf(slopes.mean() / error, 4))
    assert "over 4 worlds that share 5 classes" in fit_interventions(rows, arms).answer
    slope_without_classes = find_effect(fit_interventions(rows, ARMS), "Δ log K_F")
    assert (slope_without_classes.num_classes, slope.num_classes) == (0, 5)


@pytest.mark.long
def test_the_answer_of_many_base_datasets_comes_before_their_rows(tmp_path):
    copies = [intervention_table(1.0, seed=k) for k in range(7)]
    for k, rows in enumerate(copies):
        rows[["trial_id", "dataset"]] = f"{k}" + rows[["trial_id", "dataset"]]
    rows = pd.concat(copies)
    arms = [
        replace(arm, dataset=f"{k}{arm.dataset}", world=f"{k}{arm.world}")
        for k in range(7)
        for arm in ARMS
    ]
    page = write_report(
        rows, fit_scaling_laws(rows, arms=arms), tmp_path, sweep="worlds", summary={}
    )
    text = page.read_text("utf-8")
    answer = text.index("28 of 28 arms changed K_F")
    first_row = text.index("0w0_base</td>")
    assert answer < text.index('id="what-was-seen"') < first_row
    assert text[:first_row].count("<summary>28 rows</summary>") == 1


def test_an_arm_that_moves_too_little_or_too_much_is_left_out_by_name():
    weak = fit_interventions(intervention_table(1.0, contrast=1.9), ARMS)
    assert "0 of 4 arms" in weak.answer
    assert "it is undecided whether log loss follows K_F (0 worlds" in weak.answer
    assert "Left out because of failed checks: w0_contrast, w1_contrast" in weak.answer
    gate = find_gate(weak, "w0_contrast")
    assert (gate.counts, gate.reason) == (False, "K_F changed too little")
    moves_d_up = fit_interventions(intervention_table(1.0, d_of_contrast=1.06), ARMS)
    gate = find_gate(moves_d_up, "w0_contrast")
    assert (gate.counts, gate.reason) == (False, "|Δ log d| is 0.05 or more")
    # 4.89 % less is 0.0501 of the logarithm.
    moves_d_down = fit_interventions(intervention_table(1.0, d_of_contrast=0.9511), ARMS)
    gate = find_gate(moves_d_down, "w0_contrast")
    assert (gate.counts, gate.reason) == (False, "|Δ log d| is 0.05 or more")


def test_arms_that_keep_k_f_controls_and_bases_agree_with_the_law():
    fit = fit_interventions(intervention_table(1.0), ARMS)
    nuisance = find_gate(fit, "w0_nuisance")
    assert nuisance.counts
    assert (nuisance.dimension_moved, nuisance.sharpness_moved) == pytest.approx((np.log(1.5), 0))
    low, high = find_effect(fit, "controls").interval
    assert low <= 0 <= high
    assert find_effect(fit, "exponent").value == pytest.approx(1.0)
    assert set(find_effect(fit, "exponent").by_world) == {"w0", "w1", "w2", "w3"}


def test_no_claim_is_made_about_differences_between_base_datasets():
    fits = fit_scaling_laws(intervention_table(1.0), arms=ARMS)
    assert [finding.verdict for finding in findings(fits)] == ["described"]
    assert "No claim is made about differences between base datasets" in "\n".join(summary(fits))


def test_a_base_dataset_whose_networks_have_one_train_size_each_has_no_exponent():
    rows = intervention_table(1.0)
    rows["model"] = np.where(rows["train_size"] == 250, "m", "other")
    rows = rows[(rows["dataset"] != "w0_base") | (rows["train_size"] <= 1000)]
    exponent = find_effect(fit_interventions(rows, ARMS), "exponent")
    assert sorted(exponent.by_world) == ["w1", "w2", "w3"]
    assert np.isfinite(exponent.value)


def test_arms_without_their_base_dataset_have_a_reason():
    arms = tuple(arm for arm in ARMS if arm.dataset != "w0_base")
    gate = next(
        candidate
        for candidate in fit_interventions(intervention_table(1.0), arms).gates
        if candidate.arm.world == "w0"
    )
    assert (gate.counts, gate.reason) == (False, "world w0 has no base dataset")


TRAINING_ARMS = tuple(
    Arm(f"w{world:02}_{name}", f"w{world:02}", moves, name, intervene_on="training")
    for world in range(12)
    for name, moves in (("base", "base"), ("near", "sharpness"))
)
NUM_TEST, NUM_MOVED = 100, 5


def training_table(follows, artefact, *, factor=4.0, scatter=0.1, seed=0):
    """Return trials whose log losses follow K_F of training and of test images with known slopes.

    The artefact changes only the moved images: the other 95 have the loss of the base dataset.
    """
    rng = np.random.default_rng(seed)
    deviations = rng.normal(0, scatter, 12)
    slopes_of_worlds = follows + deviations - deviations.mean()
    rows = []
    for place, arm in enumerate(TRAINING_ARMS):
        is_base = arm.moves == "base"
        slope = slopes_of_worlds[place // 2]
        for size in (30, 85, 240):
            loss = 0.2 * size**-0.3 * (1.0 if is_base else factor**slope)
            harder = loss * factor ** (artefact + rng.normal(0, scatter))
            unmoved = loss
            moved_loss = (NUM_TEST * harder - (NUM_TEST - NUM_MOVED) * unmoved) / NUM_MOVED
            rows.append(
                {
                    "trial_id": f"{arm.dataset}-{size}",
                    "model": "m",
                    "dataset": arm.dataset,
                    "domain": "natural",
                    "train_size": size,
                    "test_loss": loss,
                    "test_accuracy": 0.9,
                    "d_data_mle": 6.0,
                    "label_sharpness": 1e-3 * (1.0 if is_base else factor),
                    "test_on_near_loss": harder,
                    "test_on_near_accuracy": 0.85,
                    "test_on_near_num_moved": NUM_MOVED,
                    "test_on_near_moved_loss": moved_loss,
                    "test_on_near_unmoved_loss": unmoved,
                }
            )
    return pd.DataFrame(rows)


def slopes_by_images(fit, response="loss"):
    """Return the slopes on log K_F by (training images, test images)."""
    return {
        (estimate.trained_on, estimate.tested_on): estimate
        for estimate in fit.effects
        if estimate.response == response and "Δ log K_F" in estimate.estimand and not estimate.arm
    }


def test_effects_of_training_images_and_of_test_images_are_separated():
    fit = fit_interventions(training_table(0.2, 1.0), TRAINING_ARMS)
    estimates = slopes_by_images(fit)
    assert {images: estimate.num_worlds for images, estimate in estimates.items()} == {
        ("condition", "base"): 12,
        ("base", "condition"): 12,
        ("condition", "condition"): 12,
    }
    assert estimates["condition", "base"].value == pytest.approx(0.2, abs=0.1)
    assert estimates["base", "condition"].value == pytest.approx(1.0, abs=0.1)
    assert estimates["condition", "condition"].value == pytest.approx(1.2, abs=0.15)
    error_slope = slopes_by_images(fit, "error")["base", "condition"]
    assert error_slope.value == pytest.approx(np.log(0.15 / 0.1) / np.log(4))


def test_if_test_images_are_moved_the_added_loss_is_on_these():
    """Positive control: the analysis detects the artefact of the first sweeps."""
    fit = fit_interventions(training_table(0.0, 1.3), TRAINING_ARMS)
    artefact = slopes_by_images(fit)["base", "condition"]
    assert artefact.told_from_zero
    assert not artefact.smaller_than_half
    assert fit.moved_shares["base"] == pytest.approx(0.05)
    share = 1 - 0.95 / 4**1.3
    assert fit.moved_shares["condition"] == pytest.approx(share, abs=0.05)
    assert share > 0.8  # of the loss, on 5 % of the images


@pytest.mark.parametrize(
    ("follows", "scatter", "is_detected", "is_small", "words"),
    [
        (0.0, 0.1, False, True, "shows no effect, and an effect of half the law's rate is ruled"),
        (0.25, 0.1, True, True, "rises with K_F, by less than half the law's rate"),
        (1.0, 0.1, True, False, "rises with K_F, at a rate that agrees with the law"),
        (0.75, 0.1, True, False, "rises with K_F, more weakly than the law says"),
        (-0.75, 0.1, True, False, "moves against the law"),
        (0.3, 2.0, False, False, "effects of half the law's rate are compatible with these data"),
    ],
)
def test_each_conclusion_of_the_registered_rule(follows, scatter, is_detected, is_small, words):
    fit = fit_interventions(training_table(follows, 1.0, scatter=scatter), TRAINING_ARMS)
    slope = slopes_by_images(fit)["condition", "base"]
    low, high = slope.interval
    assert is_detected == (not low <= 0 <= high)
    assert slope.told_from_zero == is_detected
    assert is_small == (low > -0.5 and high < 0.5)
    assert slope.smaller_than_half == is_small
    assert words in fit.answer


def test_a_condition_that_moves_nothing_gives_no_conclusion():
    fit = fit_interventions(training_table(0.0, 0.0, factor=1.0001), TRAINING_ARMS)
    assert not any(gate.counts for gate in fit.gates)
    slope = slopes_by_images(fit)["condition", "base"]
    assert (slope.num_worlds, slope.told_from_zero, slope.smaller_than_half) == (0, False, False)
    assert "cannot be judged (0 worlds; an interval needs at least 3 worlds" in fit.answer


@pytest.mark.long
def test_without_an_effect_one_is_detected_in_at_most_five_percent_of_sets():
    """Check the committed 4,000 drawn sets for each slope, and draw 300 again."""
    path = Path(__file__).parents[4] / "benchmarks/results/interventions_training_drawn.json"
    committed = json.loads(path.read_text(encoding="utf-8"))
    nulls = [conclusion for conclusion in committed["drawn"] if conclusion["slope"] == 0]
    assert committed["tables"] >= 1000
    assert [conclusion["told from 0"] <= 0.05 for conclusion in nulls] == [True, True]
    halves = [conclusion for conclusion in committed["drawn"] if conclusion["slope"] == 0.5]
    assert [conclusion["smaller than half the law's rate"] <= 0.05 for conclusion in halves] == [
        True,
        True,
    ]
    new_draws = null_interventions.conclusions(0.0, 0.5, 300, seed=1)
    # 2.6 standard errors of a share of 300 draws.
    assert new_draws["told from 0"] <= 0.05 + 2.6 * np.sqrt(0.05 * 0.95 / 300)


def test_conditions_that_move_all_images_have_no_separate_estimates():
    fit = fit_interventions(intervention_table(1.0), ARMS)
    assert all((estimate.trained_on, estimate.tested_on) == ("", "") for estimate in fit.effects)
    assert not fit.moved_shares
