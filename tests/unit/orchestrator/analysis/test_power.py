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


def test_without_errors_the_truth_is_found_exactly():
    truth = Truth(exponent=1.3, sharpness=0.7, **EXACT)
    headline, exponent = drawn_fits(SMALL, truth, np.random.default_rng(0))
    assert headline.estimate("log_sharpness").value == pytest.approx(0.7)
    grown = np.exp(0.05 * np.log(2))
    assert exponent.estimates[0].value == pytest.approx(1.3 * grown)


def test_simulated_answers_are_those_of_the_analysis_of_the_same_table():
    """The power of a plan is that of its own analysis: equal estimates, p-values and verdicts."""
    truth = Truth(dataset_std=0.1, trial_std=0.05)
    for seed in range(3):
        drawn = draw_table(SMALL, truth, np.random.default_rng(seed))
        simulated = drawn_answers(SMALL, truth, np.random.default_rng(seed))
        names = np.array([name for name, _, _ in SMALL.datasets])
        table = pd.DataFrame(
            {
                "trial_id": np.arange(len(drawn.d)).astype(str),
                "model": np.array(SMALL.models)[SMALL.model],
                "dataset": names[SMALL.dataset],
                "domain": np.array(SMALL.domains)[SMALL.dataset],
                "class_pair": SMALL.subset.astype(str),
                "train_size": np.array(SMALL.train_sizes)[SMALL.size],
                "test_loss": np.exp(drawn.log_loss - drawn.log_loss.max() - 3),  # below chance
                "d_data_mle": drawn.d,
                "label_sharpness": np.exp(drawn.log_sharpness),
            }
        )
        real = fit_scaling_laws(table).answers
        for one, other in zip(simulated[:4], real[:4], strict=True):
            assert one.verdict == other.verdict
            assert one.value == pytest.approx(other.value)
            assert one.interval == pytest.approx(other.interval)
            if other.p_value <= 0.05:  # above it the simulation tries no permutation
                assert one.p_value == pytest.approx(other.p_value)


def test_attacks_of_a_plan_count_in_the_correction():
    attacked = Design(SMALL.datasets, SMALL.models, SMALL.train_sizes, has_attacks=True)
    truth = Truth(dataset_std=0.1, trial_std=0.05)
    without = drawn_answers(SMALL, truth, np.random.default_rng(0))
    beside = drawn_answers(attacked, truth, np.random.default_rng(0))
    smallest = min(range(4), key=lambda k: without[k].p_value)
    assert without[smallest].adjusted_p == pytest.approx(4 * without[smallest].p_value)
    assert beside[smallest].adjusted_p == pytest.approx(5 * without[smallest].p_value)
    assert design_of(plan_sweep(load_sweep("demo"))).has_attacks


def test_power_is_the_level_where_nothing_is_and_one_where_nothing_hides_it():
    null = power(SMALL, truth=Truth(exponent=0, sharpness=0), num_tables=60)
    assert (
        max(share for name, share in null.adjusted.items() if name != "exponent_below_bound")
        <= 0.15
    )
    clear = power(SMALL, truth=Truth(**{**EXACT, "trial_std": 0.001}), num_tables=20)
    assert clear.alone["exponent"] == 1.0
    assert clear.table().note.startswith("The numbers are shares of 20 simulated tables")


def test_the_line_of_a_plan_names_the_questions_about_the_effect_and_no_others():
    found = power(SMALL, effect="exponent", num_tables=20)
    share = in_hundred(found.adjusted["exponent"])
    assert found.lines()[0] == (
        "Power, if “exponent” is true, with 8 datasets (± 11%): exponent b of N^(−b/d) within "
        f"datasets, against no fall: {share} such sweeps."
    )
    assert "d_data" not in found.lines()[0]


@pytest.mark.long
def test_the_study_cannot_part_sharpness_from_the_label_with_eleven_datasets():
    study = Design(
        tuple((f"n{j}", "natural", 1) for j in range(4))
        + tuple((f"m{j}", "medical", 1) for j in range(7)),
        ("a",),
        (500, 1750),
    )
    found = power(study, effect="sharpness", num_tables=100)
    # study.md, E5: 0.18 with the scatter of the published residuals.
    assert 0.05 <= found.alone["sharpness_beyond_label"] <= 0.40
    larger = Design(study.datasets * 5, study.models, study.train_sizes)
    many = power(larger, effect="sharpness", num_tables=40)
    assert many.alone["sharpness_beyond_label"] >= 0.6


def test_what_a_design_cannot_test_is_said():
    three = [
        {"name": name, "class_pairs": pairs}
        for name, pairs in (("mnist5k", [[3, 8]]), ("digits", [[3, 8]]))
    ]
    plan = plan_sweep(load_sweep("demo", {"datasets": [*three, {"name": "mri_lesion"}]}))
    found = planned_power(plan, num_tables=20)
    text = "slope of log loss on log K_F, given 1/d and the domain label"
    assert f"{text}: cannot be tested; exponent b of N^(−b/d)" in found.lines()[0]
    note = found.table().note
    assert (
        f"do not allow a test of: slope of log loss on 1/d, given K_F and the domain label; {text}."
        in note
    )
    assert set(found.alone) == {"exponent", "exponent_below_bound"}


def test_the_same_seed_gives_the_same_power():
    assert power(SMALL, num_tables=5, seed=3) == power(SMALL, num_tables=5, seed=3)


def test_the_design_of_the_paper_is_its_plan():
    design = design_of(plan_sweep(load_sweep("paper")))
    assert len(design.datasets) == 11
    assert len(design.dataset) == 972
    assert design.train_sizes == (500, 750, 1000, 1250, 1500, 1750)


def test_arms_of_an_experiment_are_no_datasets_of_their_own():
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
    found = planned_power(plan, num_tables=4)
    assert found.experiment.num_worlds == 6
    assert (
        "Power with 6 base datasets, if the true slope is 1 and every condition passes"
        in found.lines()[0]
    )
    assert found.experiment.slope == 1


def test_the_hours_of_a_plan_are_those_of_its_trials():
    plan = plan_sweep(load_sweep("demo"))
    predicted = (
        sum(need_of(trial, GPU_MODELS[DEFAULT_GPU]).gpu_seconds for trial in plan.trials) / 3600
    )
    assert planned_power(plan, num_tables=1).gpu_hours == pytest.approx(predicted)


def test_the_power_of_an_experiment_is_that_of_drawn_ones():
    """Worlds with their own slopes, arms that share their world's base, and the t interval over
    worlds."""
    num_arms, num_cells, rng, slope = np.array([3, 1, 2, 1, 1]), 4, np.random.default_rng(2), 1.0
    none = law = 0
    for _ in range(2000):
        found = []
        for num in num_arms:
            own, base = rng.normal(slope, WORLD_STD), rng.normal(0, TRIAL_STD, num_cells)
            changes = own * MOVED + rng.normal(0, TRIAL_STD, (num, num_cells)) - base
            found.append(changes.mean() / MOVED)
        low, high = mean_interval(np.array(found))[2]
        none, law = none + (not low <= 0 <= high), law + (not low <= 1 <= high)
    arms = [
        Arm(f"w{k}_{n}", f"w{k}", "sharpness") for k, num in enumerate(num_arms) for n in range(num)
    ]
    reckoned = experiment_power(arms, num_models=2, num_sizes=2)
    # Four standard errors of 2,000 draws.
    assert none / 2000 == pytest.approx(reckoned.from_none, abs=0.045)
    assert reckoned.from_law == pytest.approx(0.05)
    assert law / 2000 == pytest.approx(0.05, abs=0.02)


def test_worlds_that_share_digits_are_judged_by_the_wider_interval_as_isweep_fit_does():
    """Drawn slopes of all 45 pairs of digits, through the fit's own interval."""
    pairs = [*combinations("0123456789", 2)]
    rng, widths, claims = np.random.default_rng(0), [], 0
    arms = [Arm(f"{a}{b}_near", f"{a}{b}", "sharpness", shows=(a, b)) for a, b in pairs]
    reckoned = experiment_power(arms, num_models=2, num_sizes=2)
    error = reckoned.half_width / t_quantile(0.975, 9) / 1.5  # 9/10 · 10 · (1/36 − 1/45) · 45
    for _ in range(400):
        drawn = rng.normal(1, error * np.sqrt(45), 45)
        by_world = {f"{a}{b}": slope for (a, b), slope in zip(pairs, drawn, strict=True)}
        effect = Effect(
            estimand="", response="loss", arm="", theory=1.0, num_worlds=45, by_world=by_world
        )
        low, high = judged(effect, {arm.world: arm.shows for arm in arms}).interval
        widths.append((high - low) / 2)
        claims += not low <= 0 <= high
    assert reckoned.num_classes == 10
    assert np.sqrt(np.mean(np.square(widths))) == pytest.approx(reckoned.half_width, rel=0.05)
    assert claims / 400 == pytest.approx(reckoned.from_none, abs=0.1)


def test_of_worlds_that_share_images_no_claim_between_them_is_promised():
    found = planned_power(plan_sweep(load_sweep("interventions-digits")), num_tables=1)
    experiment, no_claim = found.lines()
    assert (
        "by the jackknife over the 10 classes that base datasets share, which is wider"
        in experiment
    )
    assert found.experiment.half_width > 0.3
    assert no_claim == NO_CLAIM_BETWEEN_WORLDS
    assert NO_CLAIM_BETWEEN_WORLDS in found.table().note
    assert "such sweeps" not in " ".join(found.lines())


def test_an_experiment_of_two_worlds_is_refused():
    arms = [Arm(f"w{k}_flips", f"w{k}", "sharpness") for k in range(2)]
    with pytest.raises(
        ConfigError, match=r"changes K_F of 2 base datasets .*needs at least 3\. Add base datasets"
    ):
        experiment_power(arms, num_models=1, num_sizes=2)


def test_mistakes_are_told():
    with pytest.raises(ConfigError, match=r"effect .*'sharpnes'.*[Dd]id you mean 'sharpness'"):
        power(SMALL, effect="sharpnes")
    with pytest.raises(
        ConfigError, match=r"has 2 datasets, but a power calculation needs at least 3\. Add"
    ):
        power(Design(SMALL.datasets[:2], ("a",), (500, 1000)))
    with pytest.raises(ConfigError, match="num_tables is 0"):
        power(SMALL, num_tables=0)
