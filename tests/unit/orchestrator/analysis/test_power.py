import numpy as np
import pytest

from orchestrator.analysis import design_of, power
from orchestrator.analysis.clusters import dataset_effects, means_regression
from orchestrator.analysis.power import best_additions
from orchestrator.analysis.simulation import Design, Truth, draw, exponent_fit, exponent_sums, level_slopes
from orchestrator.planning.plan import plan_sweep
from orchestrator.planning.sweep_file import load_sweep
from search_spaces.errors import ConfigError

SMALL = Design(
    tuple((f"n{j}", "natural", 2) for j in range(4)) + tuple((f"m{j}", "medical", 1) for j in range(4)),
    ("a", "b"), (500, 1000, 2000),
)  # fmt: skip
EXACT = dict.fromkeys(
    ("dataset_std", "pair_std", "model_std", "subset_std", "trial_std", "d_error", "sharpness_error"), 0
)


def test_without_errors_the_truth_is_found_exactly():
    sample = draw(SMALL, Truth(exponent=1.3, sharpness=0.7, label=0.4, **EXACT), np.random.default_rng(0))
    at = SMALL.layout
    label = at.medical[at.dataset].astype(float)
    _, sharpness, offset = level_slopes(SMALL, sample, [1 / sample.d_reference, sample.log_sharpness, label])
    assert sharpness.value == pytest.approx(0.7)
    assert offset.value == pytest.approx(0.4)
    grown = np.exp(0.05 * np.log(2))
    assert exponent_fit(SMALL, sample).value == pytest.approx(1.3 * grown)


def test_effects_and_sums_of_the_simulation_are_those_of_the_fits():
    sample, at = draw(SMALL, Truth(), np.random.default_rng(1)), SMALL.layout
    _, reduced = dataset_effects(
        np.column_stack([sample.log_loss, sample.log_sharpness]),
        at.cell.astype(str),
        at.dataset.astype(str),
        at.weights,
    )
    theirs = means_regression(reduced[:, 0], reduced[:, 1:])
    (ours,) = level_slopes(SMALL, sample, [sample.log_sharpness])
    assert ours.value == pytest.approx(theirs[0].value)
    assert ours.interval == pytest.approx(theirs[0].interval)
    sums = exponent_sums(SMALL, sample)
    x, y = -at.log_size / sample.d_reference, sample.log_loss
    one = 0.0
    for curve in np.unique(at.curve[at.dataset == 0]):
        rows = at.curve == curve
        one += at.weights[rows] @ ((x[rows] - x[rows].mean()) * (y[rows] - y[rows].mean()))
    assert sums.xy[0] == pytest.approx(one)


def test_power_is_the_level_where_nothing_is_and_one_where_nothing_hides_it():
    null = power(SMALL, truth=Truth(exponent=0, sharpness=0), num_tables=60)
    assert max(share for name, share in null.adjusted.items() if name != "exponent_below_bound") <= 0.15
    clear = power(SMALL, truth=Truth(**{**EXACT, "trial_std": 0.001}), num_tables=20)
    assert clear.alone["exponent"] == 1.0
    assert "8 datasets settle: " in clear.line()
    assert "Share of 20 drawn tables" in clear.to_text()


def test_the_study_cannot_part_sharpness_from_the_label_with_eleven_datasets():
    study = Design(
        tuple((f"n{j}", "natural", 1) for j in range(4)) + tuple((f"m{j}", "medical", 1) for j in range(7)),
        ("a",), (500, 1750),
    )  # fmt: skip
    found = power(study, effect="sharpness", num_tables=100)
    # study.md, E5: 0.18 with the scatter of the published residuals.
    assert 0.05 <= found.alone["sharpness_beyond_label"] <= 0.40
    larger = Design(study.datasets * 5, study.models, study.train_sizes)
    many = power(larger, effect="sharpness", num_tables=40)
    assert many.alone["sharpness_beyond_label"] >= 0.6


def test_the_same_seed_gives_the_same_power():
    assert power(SMALL, num_tables=5, seed=3) == power(SMALL, num_tables=5, seed=3)


def test_additions_are_ranked_by_what_they_gain_per_cost():
    gains = best_additions(SMALL, "exponent", num_tables=10, cost=lambda d: float(len(d.layout.dataset)))
    assert {g.addition for g in gains} == {
        "one natural dataset", "one medical dataset", "train size 8,000", "one model",
    }  # fmt: skip
    rates = [g.gain_per_gpu_hour for g in gains]
    assert rates == sorted(rates, reverse=True)


def test_the_design_of_the_paper_is_its_plan():
    design = design_of(plan_sweep(load_sweep("paper")))
    assert len(design.datasets) == 11
    assert len(design.layout.dataset) == 972
    assert design.train_sizes == (500, 750, 1000, 1250, 1500, 1750)


def test_mistakes_are_told():
    with pytest.raises(ConfigError, match="Unknown effect; found: 'sharpnes'; did you mean 'sharpness'"):
        power(SMALL, effect="sharpnes")
    with pytest.raises(ConfigError, match="at least 3 datasets and one table; found: 2 datasets"):
        power(Design(SMALL.datasets[:2], ("a",), (500, 1000)))
