import json
from dataclasses import replace

import numpy as np
import pytest

from orchestrator.analysis import fit_scaling_laws, predict
from orchestrator.analysis.laws import PREDICTED_FORM, fit_law
from orchestrator.analysis.points import fitted_points, normalise, usable_trials
from orchestrator.analysis.synthetic import synthetic_table
from search_spaces.errors import ConfigError, DataError

AT = {"d_data": 10.0, "label_sharpness": 1.5e-4}


@pytest.fixture(scope="module")
def exact():
    return fit_scaling_laws(synthetic_table(num_natural=6))


@pytest.fixture(scope="module")
def noisy():
    return fit_scaling_laws(synthetic_table(num_natural=6, trial_std=0.1, dataset_std=0.2))


def true_loss(train_size, d_data=10.0, label_sharpness=1.5e-4):
    return np.exp(8 - np.log(train_size) / d_data + np.log(label_sharpness))


@pytest.mark.parametrize("domain", [None, "natural", "medical"])
@pytest.mark.parametrize("model", ["resnet18", "pooled"])
def test_an_exact_law_predicts_exactly(exact, model, domain):
    found = predict(exact, model=model, domain=domain, train_size=1000, **AT)
    assert found.value == pytest.approx(true_loss(1000))
    # One domain's datasets cover less ground than both domains' together.
    assert found.extrapolating == ("outside the fitted range" in found.warning)
    assert domain is not None or not found.extrapolating


def test_size_and_loss_are_inverse(exact):
    found = predict(exact, model="pooled", domain=None, target_loss=true_loss(900), **AT)
    assert found.value == pytest.approx(900)
    assert found.quantity == "train_size"


def test_json_has_the_agreed_keys(noisy):
    loss = predict(noisy, model="pooled", domain=None, train_size=1000, **AT).to_json()
    size = predict(noisy, model="pooled", domain=None, target_loss=0.2, **AT).to_json()
    assert list(loss) == ["loss", "interval", "extrapolating", "warning"]
    assert list(size) == ["train_size", "interval", "extrapolating", "warning"]
    json.dumps([loss, size], allow_nan=False)
    assert loss["interval"][0] < loss["loss"] < loss["interval"][1]


def test_intervals_hold_a_new_dataset_as_often_as_they_say(noisy):
    hits, repeats = 0, 60
    for seed in range(repeats):
        table = synthetic_table(num_natural=5, num_medical=5, dataset_std=0.3, trial_std=0.1, seed=seed)
        new = table[table["dataset"] == "natural4"].iloc[0]
        seen = fitted_points(usable_trials(normalise(table[table["dataset"] != "natural4"])[0])[0])
        law = fit_law(seen, PREDICTED_FORM, model="pooled", subset="all", scale=noisy.sharpness_scale)
        found = predict(
            replace(noisy, laws=(law,)), model="pooled", domain=None, d_data=new["d_data_mle"],
            label_sharpness=new["label_sharpness"], train_size=new["train_size"],
        )  # fmt: skip
        low, high = found.interval
        hits += low <= new["test_loss"] <= high
    # Of 60 repeats at 95 %, fewer than 51 happen about once in two thousand times.
    assert hits >= 51


def test_outside_the_fitted_ranges_every_excess_is_named_and_widens_the_interval(noisy):
    def width(**changes):
        found = predict(noisy, model="pooled", domain=None, **{**AT, "train_size": 1000, **changes})
        return np.log(found.interval[1] / found.interval[0]), found

    near, _ = width()
    far, found = width(d_data=60.0, label_sharpness=1e-2, train_size=10**6)
    assert far > 1.5 * near
    assert found.extrapolating
    for words in (
        "train size 1e+06 lies outside",
        "d_data 60 lies outside",
        "label sharpness 0.01 lies outside",
    ):
        assert words in found.warning


def test_a_domain_without_a_fit_falls_back_and_says_so():
    fits = fit_scaling_laws(synthetic_table(num_natural=6, num_medical=1))
    found = predict(fits, model="pooled", domain="medical", train_size=1000, **AT)
    assert "no fit for medical datasets (only 1 dataset" in found.warning
    assert "all datasets are used" in found.warning


def test_a_target_out_of_reach_gives_no_size(exact):
    found = predict(exact, model="pooled", domain=None, target_loss=1e-4, **AT)
    assert found.value is None
    assert found.extrapolating
    assert "more than 1e+15 images" in found.warning


def test_a_fit_that_rises_with_n_gives_no_size():
    fits = fit_scaling_laws(synthetic_table(size_slope=-1.0))
    found = predict(fits, model="pooled", domain=None, target_loss=0.1, **AT)
    assert found.value is None
    assert "does not fall with N" in found.warning


def test_the_size_interval_is_where_the_loss_interval_meets_the_target(noisy):
    target = predict(noisy, model="pooled", domain=None, train_size=1000, **AT).value
    found = predict(noisy, model="pooled", domain=None, target_loss=target, **AT)
    low, high = found.interval
    assert found.value == pytest.approx(1000)
    assert low < 1000
    assert high is None or high > 1000
    if high is not None:
        at_high = predict(noisy, model="pooled", domain=None, train_size=high, **AT)
        assert at_high.interval[1] == pytest.approx(target, rel=0.02)


def test_too_few_datasets_give_a_value_without_an_interval():
    fits = fit_scaling_laws(
        synthetic_table(num_natural=2, num_medical=0, train_sizes=(100, 200, 400, 800), trial_std=0.05),
    )
    found = predict(fits, model="pooled", domain=None, train_size=200, **AT)
    assert found.interval is None
    assert "with 2 datasets no interval can be given" in found.warning


def test_no_fit_at_all_is_an_error_with_its_reason():
    fits = fit_scaling_laws(synthetic_table(num_natural=1, num_medical=0))
    with pytest.raises(DataError, match="only 1 dataset"):
        predict(fits, model="pooled", domain=None, train_size=1000, **AT)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "resnet81"}, "Unknown fitted model; found: 'resnet81'; did you mean 'resnet18'"),
        ({"domain": "medica"}, "Unknown domain.*did you mean 'medical'"),
        ({"d_data": 0.0}, "d_data must be a positive finite number; found: 0.0; measure the dataset first"),
        (
            {"train_size": None, "target_loss": -1.0},
            "target_loss must be .*found: -1.0; give a test loss in nat",
        ),
        ({"train_size": -5.0}, "train_size must be .*found: -5.0; give a number of images"),
        ({"label_sharpness": float("nan")}, "label_sharpness must be a positive"),
        ({"train_size": -5}, "train_size must be a positive"),
        ({"target_loss": 0.1}, "either a train size or a target loss; found: both"),
        ({"train_size": None}, "found: neither"),
    ],
)
def test_mistakes_are_told(exact, changes, message):
    arguments = {"model": "pooled", "domain": None, "train_size": 1000, **AT, **changes}
    with pytest.raises(ConfigError, match=message):
        predict(exact, **arguments)
