import json
import re

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from scipy import stats

from orchestrator.analysis.fits import prepare
from orchestrator.analysis.loss_growth import GrowthCurve, fit_growth
from orchestrator.analysis.predict_sweep import predict_sweep
from orchestrator.analysis.prediction import predict
from orchestrator.analysis.prediction_inputs import Pilot, PilotPoint
from search_spaces.errors import ConfigError, DataError
from tests.synthetic import synthetic_table

AT = {"d_data": 10.0, "label_sharpness": 1.5e-4}


def true_loss(train_size, d_data=10.0, label_sharpness=1.5e-4):
    return np.exp(8 - np.log(train_size) / d_data + np.log(label_sharpness))


def exact_table(**about):
    """The law with one d per dataset; the estimates of `synthetic_table` grow with N."""
    table = synthetic_table(**about)
    d_data = table.groupby("dataset")["d_data_mle"].transform("mean")
    losses = true_loss(table["train_size"], d_data, table["label_sharpness"])
    return table.assign(d_data_mle=d_data, test_loss=losses)


@pytest.fixture(scope="module")
def exact():
    return fit_growth(exact_table(num_natural=6))


@pytest.fixture(scope="module")
def noisy():
    table = synthetic_table(
        num_natural=6, trial_std=0.1, dataset_std=0.2, train_sizes=(100, 1000, 10_000)
    )
    return fit_growth(table)


@pytest.mark.parametrize("domain", [None, "natural", "medical"])
@pytest.mark.parametrize("model", ["resnet18", "pooled"])
def test_an_exact_law_predicts_exactly(model, domain):
    growth = fit_growth(exact_table(num_natural=6), model=model, domain=domain)
    found = predict(growth, train_size=1000, **AT)
    assert found.value == pytest.approx(true_loss(1000))
    # One domain's datasets cover less ground than both domains' together.
    assert found.extrapolating == ("outside the fitted range" in found.warning)
    assert domain is not None or not found.extrapolating


def test_json_has_the_agreed_keys(noisy):
    loss = predict(noisy, train_size=1000, **AT).to_json()
    size = predict(noisy, target_loss=0.2, **AT).to_json()
    rest = ["interval", "extrapolating", "warning", "shorter", "num_pilot"]
    assert list(loss) == ["loss", *rest]
    assert list(size) == ["train_size", *rest]
    json.dumps([loss, size], allow_nan=False)
    assert loss["interval"][0] < loss["loss"] < loss["interval"][1]


def seen_and_new(seed):
    """A prior from ten datasets, and the losses of an eleventh."""
    table = synthetic_table(
        num_natural=5,
        num_medical=6,
        dataset_std=0.5,
        trial_std=0.1,
        seed=seed,
        train_sizes=(100, 300, 1000, 3000),
    )
    new = table[table["dataset"] == "natural4"]
    return fit_growth(table[table["dataset"] != "natural4"]), new


@pytest.mark.long
def test_intervals_hold_a_new_dataset_as_often_as_they_say():
    hits = piloted = 0
    repeats = 20
    shorter = []
    for seed in range(repeats):
        growth, new = seen_and_new(seed)
        last = new.iloc[-1]
        pilot = [
            PilotPoint(row["train_size"], row["test_loss"]) for _, row in new.iloc[:3].iterrows()
        ]
        for points in ((), pilot):
            curve = GrowthCurve(growth, new["d_data_mle"].iloc[-1], last["label_sharpness"], points)
            value, reach = curve.at(last["train_size"])
            hit = abs(value - np.log(last["test_loss"])) <= reach
            hits, piloted = (hits + hit, piloted) if not points else (hits, piloted + hit)
        shorter.append(curve.shorter(last["train_size"]))
    # Of 20 repeats at 90 %, fewer than 13 happen less than once in a thousand times.
    assert hits >= 13
    assert piloted >= 13
    assert np.median(shorter) >= 0.3


def test_outside_the_fitted_ranges_every_excess_is_named_and_widens_the_interval(noisy):
    def width(**changes):
        found = predict(noisy, **{**AT, "train_size": 1000, **changes})
        return np.log(found.interval[1] / found.interval[0]), found

    near, _ = width()
    far, found = width(d_data=60.0, label_sharpness=1e-2, train_size=10**6)
    assert far > 1.5 * near
    assert found.extrapolating
    for words in ("N 1,000,000 lies outside", "d_data 60 lies outside", "K_F 0.01 lies outside"):
        assert words in found.warning


def test_a_domain_without_a_fit_falls_back_and_says_so():
    fits = fit_growth(synthetic_table(num_natural=6, num_medical=1), domain="medical")
    found = predict(fits, train_size=1000, **AT)
    assert (
        "no fit for medical datasets (only 1 of at least 2 datasets has losses, d_data and K_F"
        in found.warning
    )
    assert "all datasets are used" in found.warning


@pytest.mark.parametrize(
    ("table", "target", "told"),
    [
        (exact_table(num_natural=6), 1e-4, "more than 1,000,000,000,000,000 images"),
        (
            exact_table(num_natural=6),
            50.0,
            "at or below 50 at every train size in this fit; the smallest fitted is 500",
        ),
        (synthetic_table(size_slope=-1.0), 0.1, "does not fall with N"),
    ],
    ids=["out of reach", "above every loss", "rising"],
)
def test_a_size_that_cannot_be_told_is_not_given(table, target, told):
    found = predict(fit_growth(table), target_loss=target, **AT)
    assert (found.value, found.interval, found.extrapolating) == (None, None, True)
    assert found.warning.startswith("no prediction: ")
    assert told in found.warning


def test_an_uncertain_size_is_given_with_the_end_that_is_bounded():
    table = synthetic_table(
        num_natural=4, trial_std=0.1, dataset_std=0.5, size_slope=0.5, train_sizes=(100, 1000)
    )
    found = predict(fit_growth(table), target_loss=true_loss(1000), **AT)
    low, high = found.interval
    assert found.value > 0
    assert high is None
    assert low is None or low < found.value
    assert re.search(r"interval from \d[\d,]* on|no interval", found.lines()[0])
    assert found.to_json()["interval"] == [low, None]


def test_k_f_of_1_everywhere_is_left_out_of_the_fit():
    table = synthetic_table(num_natural=6, trial_std=0.1).assign(label_sharpness=1.0)
    growth = fit_growth(table)
    assert "label_sharpness" not in growth.informed.terms
    found = predict(growth, train_size=1000, d_data=10.0, label_sharpness=1.0)
    assert "the effect of K_F on the height of the loss could not be estimated" in found.warning


def test_d_data_and_k_f_enter_only_if_left_out_datasets_are_better_with_them():
    lawful = fit_growth(exact_table(num_natural=6))
    assert lawful.measures_help(num_pilot=0)
    assert GrowthCurve(lawful, 10.0, 1.5e-4).is_informed
    table = synthetic_table(num_natural=6, trial_std=0.1, dataset_std=0.2)
    generator = np.random.default_rng(5)
    losses = np.exp(-0.3 * np.log(table["train_size"]) + generator.normal(0, 0.05, len(table)))
    unrelated = fit_growth(table.assign(test_loss=losses))
    assert not unrelated.measures_help(num_pilot=2)
    found = predict(unrelated, train_size=1000, pilot=[PilotPoint(500, 0.15)], **AT)
    assert "d_data and K_F do not improve the predictions for left-out datasets" in found.warning
    other_warnings = found.warning.replace("d_data and K_F do not improve", "")
    assert "d_data" not in other_warnings.split("lies outside")[0]


def test_a_pilot_whose_d_data_was_measured_at_far_fewer_images_lends_none(noisy):
    small = Pilot((PilotPoint(100, 0.5),), d_data=4.0, label_sharpness=1e-4, d_data_size=100)
    assert not small.measures_suit(largest_size=10_000)
    assert small.measures_suit(largest_size=200)
    found, _ = predict_sweep(
        {},
        lambda: noisy,
        lambda: small,
        d_data=None,
        label_sharpness=None,
        train_size=1000,
        target_loss=None,
    )
    assert "measured at far fewer images than the sweep's" in found.warning
    plain = GrowthCurve(noisy, 4.0, 1e-4, small.points, informed=False)
    assert found.value == pytest.approx(np.exp(plain.moments(1000)[0]))


def test_a_pilot_answers_without_d_data_and_k_f(noisy):
    pilot = Pilot((PilotPoint(100, 0.5), PilotPoint(300, 0.4)))
    asked = {"d_data": None, "label_sharpness": None, "train_size": 1000, "target_loss": None}
    found, _ = predict_sweep({}, lambda: noisy, lambda: pilot, **asked)
    plain = GrowthCurve(noisy, None, None, pilot.points)
    assert found.value == pytest.approx(np.exp(plain.moments(1000)[0]))
    assert "d_data and K_F are not both known, so they are not used" in found.warning


def test_the_size_interval_is_where_the_loss_interval_meets_the_target():
    table = synthetic_table(
        num_natural=6,
        num_medical=6,
        size_slope=8.0,
        trial_std=0.02,
        dataset_std=0.02,
        train_sizes=(100, 1000, 10000),
    )
    fits = fit_growth(table)
    target = predict(fits, train_size=1000, **AT).value
    found = predict(fits, target_loss=target, **AT)
    low, high = found.interval
    assert found.value == pytest.approx(1000)
    assert low < 1000 < high
    for size, bound in ((round(low), 0), (round(high), 1)):
        at = predict(fits, train_size=size, **AT)
        assert at.interval[bound] == pytest.approx(target, rel=0.05)


def test_a_loss_that_could_be_anything_is_not_given_as_one():
    fits = fit_growth(synthetic_table(num_natural=3, num_medical=0, dataset_std=2.0, trial_std=0.5))
    found = predict(fits, train_size=1000, **AT)
    assert (found.value, found.interval, found.shorter) == (None, None, None)
    assert re.match(
        (
            r"no prediction: the loss could lie between [\d.,^-]+ and [\d.,^-]+, more "
            r"than a "
            r"factor 10,"
        ),
        found.warning,
    )
    # A pilot is promised once, or said not to help: never both.
    assert found.warning.count("a pilot") == 1


def test_predictions_from_losses_at_guessing_say_so():
    table = synthetic_table(num_natural=6)
    losses = np.log(2) * np.minimum(1, table["test_loss"] / table["test_loss"].quantile(0.5))
    table = table.assign(test_loss=losses, test_accuracy=0.5)
    found = predict(fit_growth(table), train_size=1000, **AT)
    assert re.search(r"the losses of \d+ of \d+ points are at chance level", found.warning)


def test_a_pilot_is_conditioned_on_as_a_gaussian_should_be():
    growth, _ = seen_and_new(0)
    prior = growth.informed
    pilot = [PilotPoint(300, 0.5)]
    curve = GrowthCurve(growth, 10.0, 1.5e-4, pilot, informed=True)
    bare = GrowthCurve(growth, 10.0, 1.5e-4, informed=True)
    a, b = bare.design_row(300), bare.design_row(3000)
    both = (
        np.array([a, b]) @ bare.covariance @ np.array([a, b]).T
        + np.eye(2) * prior.residual_variance
    )
    mean = np.array([a, b]) @ bare.mean
    expected = mean[1] + both[1, 0] / both[0, 0] * (np.log(0.5) - mean[0])
    variance = both[1, 1] - both[1, 0] ** 2 / both[0, 0]
    quantile = stats.t.ppf(0.95, prior.degrees_of_freedom)
    reach = prior.stretch[1] * quantile * np.sqrt(variance)
    assert curve.at(3000) == pytest.approx((expected, reach))
    told = predict(growth, train_size=3000, pilot=[PilotPoint(300, 0.5)], **AT)
    assert (told.value, told.num_pilot) == (pytest.approx(np.exp(expected)), 1)
    assert told.shorter > bare.shorter(3000)


def test_the_prior_is_that_of_a_mixed_model():
    table = synthetic_table(
        num_natural=15,
        num_medical=15,
        dataset_std=0.5,
        trial_std=0.1,
        train_sizes=(100, 300, 1000, 3000),
    )
    points = prepare(table).points
    ours = fit_growth(table).informed
    x = np.column_stack(
        [
            np.ones(len(points)),
            -(points["log_train_size"] - points["log_train_size"].mean()) / points["d_reference"],
            points["inverse_d"],
            points["log_sharpness"],
        ]
    )
    theirs = sm.MixedLM(points["log_loss"], x, groups=points["dataset"]).fit(reml=True)
    assert ours.values == pytest.approx(theirs.fe_params.to_numpy(), rel=0.05)
    assert ours.height_variance == pytest.approx(float(theirs.cov_re.iloc[0, 0]), rel=0.05)
    assert ours.residual_variance == pytest.approx(theirs.scale, rel=0.05)


@pytest.fixture(scope="module")
def in_our_units():
    table = synthetic_table(num_natural=6, num_medical=6, trial_std=0.1, dataset_std=0.3)
    return table, fit_growth(table)


@pytest.mark.parametrize(
    ("name", "factor"),
    [("train_size", 100), ("label_sharpness", 17.0), ("test_loss", 1 / np.log(2))],
)
def test_no_unit_changes_a_prediction(in_our_units, name, factor):
    table, fits = in_our_units
    asked = {"train_size": 1000.0, **AT}
    one = predict(fits, **asked)
    other = fit_growth(table.assign(**{name: table[name] * factor}))
    two = predict(
        other, **{key: value * (factor if key == name else 1) for key, value in asked.items()}
    )
    scale = factor if name == "test_loss" else 1.0
    assert two.value / scale == pytest.approx(one.value, rel=1e-3)
    assert np.array(two.interval) / scale == pytest.approx(np.array(one.interval), rel=5e-3)


@pytest.mark.parametrize(
    ("same", "missing", "terms"),
    [
        ({"d_data_mle": 10.0}, "d_data", ("exponent", "log_sharpness")),
        ({"label_sharpness": 1e-4}, "K_F", ("exponent", "inverse_d")),
        ({"d_data_mle": 10.0, "label_sharpness": 1e-4}, "d_data and K_F", ("exponent",)),
    ],
)
def test_what_is_the_same_for_all_datasets_is_left_out_of_a_prediction(same, missing, terms):
    fits = fit_growth(synthetic_table(trial_std=0.1, dataset_std=0.2).assign(**same))
    assert fits.informed.terms == terms
    found = predict(fits, train_size=1000, **AT)
    assert found.interval[0] < found.value < found.interval[1]
    assert (
        f"the effect of {missing} on the height of the loss could not be estimated" in found.warning
    )


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("d_data", [1e-40, 1e40])
@pytest.mark.parametrize("pilot", [[], [PilotPoint(500, 0.3), PilotPoint(1, 1e-40)]])
def test_numbers_far_off_are_told_without_a_warning_of_arithmetic(noisy, d_data, pilot):
    about = {"label_sharpness": 1e-4, "pilot": pilot}
    for asked in ({"train_size": 1000}, {"target_loss": 0.3}):
        found = predict(noisy, d_data=d_data, **asked, **about)
        json.dumps(found.to_json(), allow_nan=False)
        assert found.value is not None or "no prediction" in found.warning


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"model": "nosuch"}, "fitted model.*'nosuch'"),
        ({"model": "resnet81"}, "fitted model.*'resnet81'.*[Dd]id you mean 'resnet18'"),
        ({"domain": "medica"}, "domain.*[Dd]id you mean 'medical'"),
    ],
)
def test_an_unknown_model_or_domain_is_named_before_a_pilot_is_trained(asked, message):
    with pytest.raises(ConfigError, match=message):
        fit_growth(synthetic_table(), **asked)


def test_trainings_of_one_size_are_one_training_of_a_pilot(noisy):
    about = {"train_size": 1000, **AT}
    one = predict(noisy, pilot=[PilotPoint(300, 0.2)], **about)
    assert predict(noisy, pilot=[PilotPoint(300, 0.1), PilotPoint(300, 0.4)], **about) == one


def test_too_few_datasets_give_a_value_without_an_interval():
    fits = fit_growth(
        synthetic_table(
            num_natural=2, num_medical=0, train_sizes=(100, 200, 400, 800), trial_std=0.05
        )
    )
    found = predict(fits, train_size=200, **AT)
    assert found.interval is None
    assert "with 2 datasets no interval can be given" in found.warning


def test_no_fit_at_all_is_an_error_with_its_reason():
    with pytest.raises(DataError, match="only 1 of at least 2 datasets has losses, d_data and K_F"):
        fit_growth(synthetic_table(num_natural=1, num_medical=0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"d_data": 0.0},
            "d_data is 0.0, which is not a number between 1e-50 and 1e.50. Measure the dataset",
        ),
        ({"d_data": 1e-300}, "d_data is 1e-300, which is not a number between"),
        ({"label_sharpness": float("nan")}, "label_sharpness is nan, which is not a number"),
        ({"train_size": -5.0}, "train_size is -5.0, .*Give a number of images"),
        (
            {"train_size": 1.5},
            "train_size is 1.5, which is not a whole number of images. Round train_size",
        ),
        ({"train_size": True}, "train_size is True, which is not a number"),
        ({"train_size": 10**400}, "train_size is 1000.*, which is not a number between"),
        (
            {"train_size": None, "target_loss": -1.0},
            "target_loss is -1.0, .*Give a test loss",
        ),
        (
            {"pilot": [PilotPoint(0, 0.5)]},
            "pilot train size is 0, .*Give the number of training images",
        ),
        (
            {"pilot": [PilotPoint(10.5, 0.3)]},
            "pilot train size is 10.5, which is not a whole number of images",
        ),
        (
            {"pilot": [PilotPoint(100, -0.5)]},
            "pilot loss is -0.5, .*Give the test loss",
        ),
        ({"target_loss": 0.1}, "has both a train size and a target loss"),
        ({"train_size": None}, "has neither a train size nor a target loss"),
    ],
)
def test_mistakes_are_told(exact, changes, message):
    with pytest.raises(ConfigError, match=message):
        predict(exact, **({"train_size": 1000, **AT} | changes))


def test_a_poor_interval_says_which_pilot_would_shorten_it_and_that_pilot_does():
    table = synthetic_table(
        num_natural=8,
        num_medical=0,
        sharpness_slope=0,
        size_slope=0,
        dataset_std=1.0,
        trial_std=0.05,
        train_sizes=(250, 500, 1000, 2000),
        seed=4,
    )
    fits = fit_growth(table, model="resnet18")
    about = {"d_data": 12.0, "label_sharpness": 1e-4, "train_size": 2000}
    poor = predict(fits, **about)
    said = re.search(r"a pilot at ([\d, and]+) images would make it (\d+)% shorter", poor.warning)
    assert poor.shorter < 0.3
    assert said
    sizes = [int(n) for n in re.findall(r"\d+", said[1])]
    better = predict(fits, **about, pilot=[PilotPoint(n, 0.4) for n in sizes])
    assert f"{better.shorter:.0%}" == f"{said[2]}%"
    assert better.shorter >= 0.3
    assert "a pilot at" not in better.warning


@pytest.mark.parametrize(
    ("pilot", "told"),
    [
        ([PilotPoint(1e9, 0.01)], "the pilot's train size 1,000,000,000 is far from the sweep's"),
        ([PilotPoint(500, 5.0)], "the pilot's test loss 5 is at chance level or above"),
        (
            [PilotPoint(500, 0.01), PilotPoint(1000, 0.02)],
            "the pilot's test loss rises with its train size",
        ),
    ],
)
def test_a_pilot_that_is_hard_to_believe_is_said(pilot, told):
    table = synthetic_table(trial_std=0.1)
    table["test_loss"] /= 1000  # clear of guessing
    fits = fit_growth(table)
    about = {"d_data": 15.0, "label_sharpness": 1e-4, "train_size": 1000}
    assert told in predict(fits, **about, pilot=pilot).warning
    calm = [PilotPoint(500, 2e-4), PilotPoint(1000, 1e-4)]
    assert "pilot's" not in predict(fits, **about, pilot=calm).warning
    ten = fit_growth(table.assign(num_classes=10))
    assert "chance level" not in predict(ten, **about, pilot=[PilotPoint(500, 1.5)]).warning


def test_losses_that_are_all_the_same_predict_nothing():
    with pytest.raises(DataError, match="the losses are the same everywhere"):
        fit_growth(synthetic_table().assign(test_loss=0.3))


def inverse_law(num, unit=1):
    """Losses that are exactly 30 images over N, whatever d is: 6,000 reach 0.005."""
    rows = [
        {
            "trial_id": f"{j}-{size}",
            "model": "m",
            "dataset": f"set{j}",
            "domain": "natural",
            "train_size": size * unit,
            "test_loss": 30 / size,
            "d_data_mle": 8 + 1.5 * j,
            "label_sharpness": 1e-4 * (1 + 0.1 * j),
        }
        for j in range(num)
        for size in (500, 1000, 2000, 4000)
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize("num", [4, 6])
def test_no_unit_of_n_changes_a_prediction_of_few_datasets(num):
    """Below five datasets, where 1/d is not in the fit, log N of any unit was mixed with heights:
    the target that 6,000 images reach was said to need more than 1e15."""
    at = {"d_data": 10.0, "label_sharpness": 1.1e-4, "target_loss": 0.005}
    ones, thousands = (predict(fit_growth(inverse_law(num, unit)), **at) for unit in (1, 1000))
    assert ones.value == pytest.approx(6000, rel=0.1)
    assert thousands.value == pytest.approx(1000 * ones.value, rel=1e-6)
    assert np.array(thousands.interval) == pytest.approx(1000 * np.array(ones.interval), rel=0.02)
    assert ones.interval == pytest.approx((6000, 6000), rel=0.1)


def test_a_prediction_from_all_models_together_says_so():
    table = synthetic_table(models=("a", "b"), trial_std=0.1)
    together = predict(fit_growth(table), train_size=1000, **AT)
    assert "the fit uses the losses of all models together, and models differ" in together.warning
    assert "all models" not in predict(fit_growth(table, model="a"), train_size=1000, **AT).warning
