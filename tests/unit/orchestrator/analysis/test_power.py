from itertools import combinations

import numpy as np
import pandas as pd
import pytest

from orchestrator.analysis.experiments.interventions import judged
from orchestrator.analysis.experiments.records import MOVED, Arm, Effect
from orchestrator.analysis.fits import fit_scaling_laws
from orchestrator.analysis.inference import mean_interval, t_quantile
from orchestrator.analysis.number_formats import in_hundred
from orchestrator.analysis.power import (
    NO_CLAIM_BETWEEN_WORLDS,
    TRIAL_STD,
    WORLD_STD,
    Design,
    Truth,
    design_of,
    draw_table,
    drawn_answers,
    drawn_fits,
    experiment_power,
    planned_power,
    power,
)
from orchestrator.planning.costs.gpu_models import GPU_MODELS
from orchestrator.planning.costs.needs import need_of
from orchestrator.planning.estimate import DEFAULT_GPU
from orchestrator.planning.plan import plan_sweep
from orchestrator.planning.sweep_file import load_sweep
from search_spaces.errors import ConfigError

SMALL = Design(
    tuple((f"n{j}", "natural", 2) for j in range(4))
    + tuple((f"m{j}", "medical", 1) for j in range(4)),
    ("a", "b"),
    (500, 1000, 2000),
)
EXACT = dict.fromkeys(
    (
        "dataset_std",
        "pair_std",
        "model_std",
        "subset_std",
        "trial_std",
        "d_error",
        "sharpness_error",
    ),
    0,
)


def test_without_errors_the_ground_truth_is_recovered_exactly():
    truth = Truth(exponent=1.3, sharpness=0.7, **EXACT)
    headline, exponent = drawn_fits(SMALL, truth, np.random.default_rng(0))
    assert headline.estimate("log_sharpness").value == pytest.approx(0.7)
    growth_of_d = np.exp(0.05 * np.log(2))
    assert exponent.estimates[0].value == pytest.approx(1.3 * growth_of_d)


def test_simulated_answers_are_those_of_the_analysis_of_the_same_table():
    """The power of a plan comes from the same estimates, p-values and verdicts as the analysis."""
    truth = Truth(dataset_std=0.1, trial_std=0.05)
    for seed in range(3):
        drawn_table = draw_table(SMALL, truth, np.random.default_rng(seed))
        simulated = drawn_answers(SMALL, truth, np.random.default_rng(seed))
        names = np.array([name for name, _, _ in SMALL.datasets])
        table = pd.DataFrame(
            {
                "trial_id": np.arange(len(drawn_table.d)).astype(str),
                "model": np.array(SMALL.models)[SMALL.model],
                "dataset": names[SMALL.dataset],
                "domain": np.array(SMALL.domains)[SMALL.dataset],
                "class_pair": SMALL.subset.astype(str),
                "train_size": np.array(SMALL.train_sizes)[SMALL.size],
                "test_loss": np.exp(
                    drawn_table.log_loss - drawn_table.log_loss.max() - 3
                ),  # below chance
                "d_data_mle": drawn_table.d,
                "label_sharpness": np.exp(drawn_table.log_sharpness),
            }
        )
        analyzed = fit_scaling_laws(table).answers
        for simulated_answer, expected in zip(simulated[:4], analyzed[:4], strict=True):
            assert simulated_answer.verdict == expected.verdict
            assert simulated_answer.value == pytest.approx(expected.value)
            assert simulated_answer.interval == pytest.approx(expected.interval)
            if expected.p_value <= 0.05:  # above 0.05 the simulation draws no permutation
                assert simulated_answer.p_value == pytest.approx(expected.p_value)


def test_attacks_of_a_plan_count_in_the_correction():
    with_attacks = Design(SMALL.datasets, SMALL.models, SMALL.train_sizes, has_attacks=True)
    truth = Truth(dataset_std=0.1, trial_std=0.05)
    answers = drawn_answers(SMALL, truth, np.random.default_rng(0))
    answers_with_attacks = drawn_answers(with_attacks, truth, np.random.default_rng(0))
    smallest = min(range(4), key=lambda k: answers[k].p_value)
    assert answers[smallest].adjusted_p == pytest.approx(4 * answers[smallest].p_value)
    assert answers_with_attacks[smallest].adjusted_p == pytest.approx(5 * answers[smallest].p_value)
    assert design_of(plan_sweep(load_sweep("demo"))).has_attacks


def test_power_is_the_level_without_an_effect_and_one_without_noise():
    null = power(SMALL, truth=Truth(exponent=0, sharpness=0), num_tables=60)
    shares = [share for name, share in null.adjusted.items() if name != "exponent_below_bound"]
    assert max(shares) <= 0.15
    clear = power(SMALL, truth=Truth(**{**EXACT, "trial_std": 0.001}), num_tables=20)
    assert clear.alone["exponent"] == 1.0
    assert clear.table().note.startswith("The numbers are shares of 20 simulated tables")


def test_the_line_of_a_plan_names_the_questions_about_the_effect_and_no_others():
    plan_power = power(SMALL, effect="exponent", num_tables=20)
    share = in_hundred(plan_power.adjusted["exponent"])
    assert plan_power.lines()[0] == (
        f"Power if only the law's fall with N holds, with 8 datasets: {share} such sweeps decide the "
        "question on the exponent b of N^(−b/d) within datasets, against no fall. The standard error of "
        "these shares is at most 11 percentage points."
    )
    assert "d_data" not in plan_power.lines()[0]


@pytest.mark.long
def test_eleven_datasets_cannot_separate_sharpness_from_the_domain_label():
    study = Design(
        tuple((f"n{j}", "natural", 1) for j in range(4))
        + tuple((f"m{j}", "medical", 1) for j in range(7)),
        ("a",),
        (500, 1750),
    )
    power_of_study = power(study, effect="sharpness", num_tables=100)
    # study.md, E5: 0.18 with the scatter of the published residuals.
    assert 0.05 <= power_of_study.alone["sharpness_beyond_label"] <= 0.40
    larger = Design(study.datasets * 5, study.models, study.train_sizes)
    power_of_larger = power(larger, effect="sharpness", num_tables=40)
    assert power_of_larger.alone["sharpness_beyond_label"] >= 0.6


def test_questions_that_a_design_cannot_test_are_named():
    three_datasets = [
        {"name": "mnist5k", "class_pairs": [[3, 8]]},
        {"name": "digits", "class_pairs": [[3, 8]]},
        {"name": "mri_lesion"},
    ]
    plan = plan_sweep(load_sweep("demo", {"datasets": three_datasets}))
    plan_power = planned_power(plan, num_tables=20)
    question = "slope of log loss on log K_F, given 1/d and the domain label"
    assert f"the question on the {question} cannot be tested; " in plan_power.lines()[0]
    assert "such sweeps decide the question on the exponent b" in plan_power.lines()[0]
    note = plan_power.table().note
    untested = f"slope of log loss on 1/d, given K_F and the domain label; {question}."
    assert f"do not allow a test of: {untested}" in note
    assert set(plan_power.alone) == {"exponent", "exponent_below_bound"}


def test_the_same_seed_gives_the_same_power():
    assert power(SMALL, num_tables=5, seed=3) == power(SMALL, num_tables=5, seed=3)


def test_the_design_of_the_paper_has_its_datasets_trials_and_sizes():
    design = design_of(plan_sweep(load_sweep("paper")))
    assert len(design.datasets) == 11
    assert len(design.dataset) == 972
    assert design.train_sizes == (500, 750, 1000, 1250, 1500, 1750)


def test_conditions_of_an_experiment_are_not_counted_as_datasets():
    plan = plan_sweep(load_sweep("interventions"))
    assert [name for name, _, _ in design_of(plan).datasets] == [
        "g1_base",
        "g2_base",
        "g3_base",
        "g4_base",
        "wide1_base",
        "wide2_base",
        "wide3_base",
        "lesions_base",
        "digits_base",
    ]
    plan_power = planned_power(plan, num_tables=4)
    assert plan_power.experiment.num_worlds == 6
    conditions = "Power with 6 base datasets: suppose the true slope is 1 and every condition"
    assert conditions in plan_power.lines()[0]
    assert plan_power.experiment.slope == 1


def test_the_hours_of_a_plan_are_those_of_its_trials():
    plan = plan_sweep(load_sweep("demo"))
    gpu = GPU_MODELS[DEFAULT_GPU]
    seconds = sum(need_of(trial, gpu).gpu_seconds for trial in plan.trials)
    assert planned_power(plan, num_tables=1).gpu_hours == pytest.approx(seconds / 3600)


def test_the_power_of_an_experiment_agrees_with_drawn_experiments():
    """Draw base datasets of different slopes, whose conditions share the trials of their base.

    The interval is the t interval over base datasets.
    """
    num_conditions = np.array([3, 1, 2, 1, 1])
    num_trials = 4
    rng = np.random.default_rng(2)
    num_differ_from_zero = 0
    num_differ_from_law = 0
    for _ in range(2000):
        estimates = []
        for num in num_conditions:
            slope = rng.normal(1.0, WORLD_STD)
            base = rng.normal(0, TRIAL_STD, num_trials)
            changes = slope * MOVED + rng.normal(0, TRIAL_STD, (num, num_trials)) - base
            estimates.append(changes.mean() / MOVED)
        low, high = mean_interval(np.array(estimates))[2]
        num_differ_from_zero += not low <= 0 <= high
        num_differ_from_law += not low <= 1 <= high
    arms = [
        Arm(f"w{k}_{n}", f"w{k}", "sharpness")
        for k, num in enumerate(num_conditions)
        for n in range(num)
    ]
    calculated = experiment_power(arms, num_models=2, num_sizes=2)
    # Four standard errors of 2,000 draws.
    assert num_differ_from_zero / 2000 == pytest.approx(calculated.from_none, abs=0.045)
    assert calculated.from_law == pytest.approx(0.05)
    assert num_differ_from_law / 2000 == pytest.approx(0.05, abs=0.02)


def test_base_datasets_that_share_digits_have_the_wider_interval_of_isweep_fit():
    """Draw slopes for all 45 pairs of digits, and take the interval of the fit."""
    pairs = [*combinations("0123456789", 2)]
    rng = np.random.default_rng(0)
    half_widths = []
    num_claims = 0
    arms = [Arm(f"{a}{b}_near", f"{a}{b}", "sharpness", shows=(a, b)) for a, b in pairs]
    calculated = experiment_power(arms, num_models=2, num_sizes=2)
    error = calculated.half_width / t_quantile(0.975, 9) / 1.5  # 9/10 · 10 · (1/36 − 1/45) · 45
    for _ in range(400):
        slopes = rng.normal(1, error * np.sqrt(45), 45)
        by_world = {f"{a}{b}": slope for (a, b), slope in zip(pairs, slopes, strict=True)}
        effect = Effect(
            estimand="", response="loss", arm="", theory=1.0, num_worlds=45, by_world=by_world
        )
        low, high = judged(effect, {arm.world: arm.shows for arm in arms}).interval
        half_widths.append((high - low) / 2)
        num_claims += not low <= 0 <= high
    assert calculated.num_classes == 10
    mean_half_width = np.sqrt(np.mean(np.square(half_widths)))
    assert mean_half_width == pytest.approx(calculated.half_width, rel=0.05)
    assert num_claims / 400 == pytest.approx(calculated.from_none, abs=0.1)


def test_no_claim_is_promised_between_base_datasets_that_share_images():
    plan_power = planned_power(plan_sweep(load_sweep("interventions-digits")), num_tables=1)
    experiment, no_claim = plan_power.lines()
    interval = (
        "a jackknife over the 10 classes that base datasets share, because this interval is wider"
    )
    assert interval in experiment
    assert plan_power.experiment.half_width > 0.3
    assert no_claim == NO_CLAIM_BETWEEN_WORLDS
    assert NO_CLAIM_BETWEEN_WORLDS in plan_power.table().note
    assert "such sweeps" not in " ".join(plan_power.lines())


def test_an_experiment_with_two_base_datasets_is_refused():
    arms = [Arm(f"w{k}_flips", f"w{k}", "sharpness") for k in range(2)]
    with pytest.raises(
        ConfigError, match=r"changes K_F of 2 base datasets .*needs at least 3\. Add base datasets"
    ):
        experiment_power(arms, num_models=1, num_sizes=2)


def test_mistakes_in_a_power_calculation_are_refused():
    with pytest.raises(ConfigError, match=r"effect .*'sharpnes'.*[Dd]id you mean 'sharpness'"):
        power(SMALL, effect="sharpnes")
    with pytest.raises(
        ConfigError, match=r"has 2 datasets, but a power calculation needs at least 3\. Add"
    ):
        power(Design(SMALL.datasets[:2], ("a",), (500, 1000)))
    with pytest.raises(ConfigError, match="num_tables is 0"):
        power(SMALL, num_tables=0)
