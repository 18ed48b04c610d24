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

NEW_DATASET = {"d_data": 10.0, "label_sharpness": 1.5e-4}


def true_loss(train_size, d_data=10.0, label_sharpness=1.5e-4):
    return np.exp(8 - np.log(train_size) / d_data + np.log(label_sharpness))


def exact_table(**options):
    """Return a table that follows the law with one d for each dataset.

    In ``synthetic_table`` the estimates of d grow with N.
    """
    table = synthetic_table(**options)
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


@pytest.mark.parametrize(
    "domain", [None, pytest.param("natural", marks=pytest.mark.long), "medical"]
)
@pytest.mark.parametrize("model", ["resnet18", "pooled"])
def test_an_exact_law_predicts_exactly(model, domain):
    growth = fit_growth(exact_table(num_natural=6), model=model, domain=domain)
    prediction = predict(growth, train_size=1000, **NEW_DATASET)
    assert prediction.value == pytest.approx(true_loss(1000))
    # The datasets of one domain cover a smaller range than those of both domains.
    assert prediction.extrapolating == ("outside the fitted range" in prediction.warning)
    assert domain is not None or not prediction.extrapolating


def test_json_has_the_documented_keys(noisy):
    loss = predict(noisy, train_size=1000, **NEW_DATASET).to_json()
    size = predict(noisy, target_loss=0.2, **NEW_DATASET).to_json()
    other_keys = ["interval", "extrapolating", "warning", "shorter", "num_pilot"]
    assert list(loss) == ["loss", *other_keys]
    assert list(size) == ["train_size", *other_keys]
    json.dumps([loss, size], allow_nan=False)
    assert loss["interval"][0] < loss["loss"] < loss["interval"][1]


def prior_and_new_dataset(seed):
    """Return a prior from ten datasets, and the trials of an eleventh."""
    table = synthetic_table(
        num_natural=5,
        num_medical=6,
        dataset_std=0.5,
        trial_std=0.1,
        seed=seed,
        train_sizes=(100, 300, 1000, 3000),
    )
    new_dataset = table[table["dataset"] == "natural4"]
    return fit_growth(table[table["dataset"] != "natural4"]), new_dataset


@pytest.mark.long
def test_intervals_cover_a_new_dataset_with_their_confidence():
    num_covered = {"without pilot": 0, "with pilot": 0}
    shorter = []
    for seed in range(20):
        growth, new = prior_and_new_dataset(seed)
        last = new.iloc[-1]
        pilot = [
            PilotPoint(row["train_size"], row["test_loss"]) for _, row in new.iloc[:3].iterrows()
        ]
        for name, points in (("without pilot", ()), ("with pilot", pilot)):
            curve = GrowthCurve(growth, new["d_data_mle"].iloc[-1], last["label_sharpness"], points)
            value, reach = curve.at(last["train_size"])
            num_covered[name] += abs(value - np.log(last["test_loss"])) <= reach
        shorter.append(curve.shorter(last["train_size"]))
    # At 90 %, fewer than 13 of 20 repeats have a probability below 1/1,000.
    assert num_covered["without pilot"] >= 13
    assert num_covered["with pilot"] >= 13
    assert np.median(shorter) >= 0.3


def test_values_outside_the_fitted_ranges_are_named_and_widen_the_interval(noisy):
    def log_width(prediction):
        low, high = prediction.interval
        return np.log(high / low)

    inside = predict(noisy, **NEW_DATASET, train_size=1000)
    outside = predict(noisy, d_data=60.0, label_sharpness=1e-2, train_size=10**6)
    assert log_width(outside) > 1.5 * log_width(inside)
    assert outside.extrapolating
    for words in ("N 1,000,000 lies outside", "d_data 60 lies outside", "K_F 0.01 lies outside"):
        assert words in outside.warning


def test_a_domain_without_a_fit_uses_all_datasets_with_a_warning():
    fits = fit_growth(synthetic_table(num_natural=6, num_medical=1), domain="medical")
    prediction = predict(fits, train_size=1000, **NEW_DATASET)
    reason = "no fit for medical datasets (1 dataset has losses, d_data and K_F, but a fit needs"
    assert reason in prediction.warning
    assert "all datasets are used" in prediction.warning


@pytest.mark.parametrize(
    ("table", "target", "reason"),
    [
        (exact_table(num_natural=6), 1e-4, "more than 1,000,000,000,000,000 images"),
        (
            exact_table(num_natural=6),
            50.0,
            "at or below 50 at every train size in this fit; the smallest fitted train size is 500",
        ),
        (synthetic_table(size_slope=-1.0), 0.1, "does not fall with N"),
    ],
    ids=["out of reach", "above every loss", "rising"],
)
def test_a_size_that_cannot_be_predicted_has_a_reason(table, target, reason):
    prediction = predict(fit_growth(table), target_loss=target, **NEW_DATASET)
    assert (prediction.value, prediction.interval, prediction.extrapolating) == (None, None, True)
    assert prediction.warning.startswith("no prediction: ")
    assert reason in prediction.warning


def test_an_uncertain_size_has_the_bounded_end_of_its_interval():
    table = synthetic_table(
        num_natural=4, trial_std=0.1, dataset_std=0.5, size_slope=0.5, train_sizes=(100, 1000)
    )
    prediction = predict(fit_growth(table), target_loss=true_loss(1000), **NEW_DATASET)
    low, high = prediction.interval
    assert prediction.value > 0
    assert high is None
    assert low is None or low < prediction.value
    assert re.search(r"interval from \d[\d,]* on|no interval", prediction.lines()[0])
    assert prediction.to_json()["interval"] == [low, None]


def test_k_f_of_1_everywhere_is_left_out_of_the_fit():
    table = synthetic_table(num_natural=6, trial_std=0.1).assign(label_sharpness=1.0)
    growth = fit_growth(table)
    assert "label_sharpness" not in growth.informed.terms
    prediction = predict(growth, train_size=1000, d_data=10.0, label_sharpness=1.0)
    assert (
        "the effect of K_F on the height of the loss could not be estimated" in prediction.warning
    )


def test_d_data_and_k_f_enter_only_if_they_improve_predictions_of_left_out_datasets():
    growth_by_law = fit_growth(exact_table(num_natural=6))
    assert growth_by_law.measures_help(num_pilot=0)
    assert GrowthCurve(growth_by_law, 10.0, 1.5e-4).is_informed
    table = synthetic_table(num_natural=6, trial_std=0.1, dataset_std=0.2)
    generator = np.random.default_rng(5)
    losses = np.exp(-0.3 * np.log(table["train_size"]) + generator.normal(0, 0.05, len(table)))
    unrelated_growth = fit_growth(table.assign(test_loss=losses))
    assert not unrelated_growth.measures_help(num_pilot=2)
    prediction = predict(
        unrelated_growth, train_size=1000, pilot=[PilotPoint(500, 0.15)], **NEW_DATASET
    )
    assert (
        "d_data and K_F do not improve the predictions for left-out datasets" in prediction.warning
    )
    other_warnings = prediction.warning.replace("d_data and K_F do not improve", "")
    assert "d_data" not in other_warnings.split("lies outside")[0]


def test_d_data_of_a_pilot_measured_at_far_fewer_images_is_not_used(noisy):
    pilot = Pilot((PilotPoint(100, 0.5),), d_data=4.0, label_sharpness=1e-4, d_data_size=100)
    assert not pilot.measures_suit(largest_size=10_000)
    assert pilot.measures_suit(largest_size=200)
    prediction, _ = predict_sweep(
        {},
        lambda: noisy,
        lambda: pilot,
        d_data=None,
        label_sharpness=None,
        train_size=1000,
        target_loss=None,
    )
    assert "comes from far fewer images than the sweep's" in prediction.warning
    curve_without_measures = GrowthCurve(noisy, 4.0, 1e-4, pilot.points, informed=False)
    assert prediction.value == pytest.approx(np.exp(curve_without_measures.moments(1000)[0]))


def test_a_pilot_suffices_without_d_data_and_k_f(noisy):
    pilot = Pilot((PilotPoint(100, 0.5), PilotPoint(300, 0.4)))
    options = {"d_data": None, "label_sharpness": None, "train_size": 1000, "target_loss": None}
    prediction, _ = predict_sweep({}, lambda: noisy, lambda: pilot, **options)
    curve = GrowthCurve(noisy, None, None, pilot.points)
    assert prediction.value == pytest.approx(np.exp(curve.moments(1000)[0]))
    assert "d_data and K_F are not both known, so they are not used" in prediction.warning


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
    target = predict(fits, train_size=1000, **NEW_DATASET).value
    size_prediction = predict(fits, target_loss=target, **NEW_DATASET)
    low, high = size_prediction.interval
    assert size_prediction.value == pytest.approx(1000)
    assert low < 1000 < high
    for size, bound in ((round(low), 0), (round(high), 1)):
        loss_prediction = predict(fits, train_size=size, **NEW_DATASET)
        assert loss_prediction.interval[bound] == pytest.approx(target, rel=0.05)


def test_a_loss_with_too_wide_an_interval_is_not_predicted():
    fits = fit_growth(synthetic_table(num_natural=3, num_medical=0, dataset_std=2.0, trial_std=0.5))
    prediction = predict(fits, train_size=1000, **NEW_DATASET)
    assert (prediction.value, prediction.interval, prediction.shorter) == (None, None, None)
    number = r"[\d.,^-]+"
    reason = f"no prediction: the loss could lie between {number} and {number}, which differ"
    assert re.match(f"{reason} by more than a factor of 10,", prediction.warning)
    # One sentence about a pilot: it would help, or it would not.
    assert prediction.warning.count("a pilot") == 1


def test_predictions_from_losses_at_chance_level_have_a_warning():
    table = synthetic_table(num_natural=6)
    losses = np.log(2) * np.minimum(1, table["test_loss"] / table["test_loss"].quantile(0.5))
    table = table.assign(test_loss=losses, test_accuracy=0.5)
    prediction = predict(fit_growth(table), train_size=1000, **NEW_DATASET)
    assert re.search(r"the losses of \d+ of \d+ points are at chance level", prediction.warning)


def test_a_prediction_with_a_pilot_is_the_conditional_gaussian():
    growth, _ = prior_and_new_dataset(0)
    prior = growth.informed
    pilot = [PilotPoint(300, 0.5)]
    curve = GrowthCurve(growth, 10.0, 1.5e-4, pilot, informed=True)
    curve_without_pilot = GrowthCurve(growth, 10.0, 1.5e-4, informed=True)
    design = np.array([curve_without_pilot.design_row(300), curve_without_pilot.design_row(3000)])
    covariance = design @ curve_without_pilot.covariance @ design.T
    covariance += np.eye(2) * prior.residual_variance
    mean = design @ curve_without_pilot.mean
    expected = mean[1] + covariance[1, 0] / covariance[0, 0] * (np.log(0.5) - mean[0])
    variance = covariance[1, 1] - covariance[1, 0] ** 2 / covariance[0, 0]
    quantile = stats.t.ppf(0.95, prior.degrees_of_freedom)
    reach = prior.stretch[1] * quantile * np.sqrt(variance)
    assert curve.at(3000) == pytest.approx((expected, reach))
    prediction = predict(growth, train_size=3000, pilot=[PilotPoint(300, 0.5)], **NEW_DATASET)
    assert (prediction.value, prediction.num_pilot) == (pytest.approx(np.exp(expected)), 1)
    assert prediction.shorter > curve_without_pilot.shorter(3000)


@pytest.mark.long
def test_the_prior_is_that_of_a_mixed_model():
    table = synthetic_table(
        num_natural=15,
        num_medical=15,
        dataset_std=0.5,
        trial_std=0.1,
        train_sizes=(100, 300, 1000, 3000),
    )
    points = prepare(table).points
    prior = fit_growth(table).informed
    centred_log_size = points["log_train_size"] - points["log_train_size"].mean()
    x = np.column_stack(
        [
            np.ones(len(points)),
            -centred_log_size / points["d_reference"],
            points["inverse_d"],
            points["log_sharpness"],
        ]
    )
    mixed_model = sm.MixedLM(points["log_loss"], x, groups=points["dataset"]).fit(reml=True)
    assert prior.values == pytest.approx(mixed_model.fe_params.to_numpy(), rel=0.05)
    assert prior.height_variance == pytest.approx(float(mixed_model.cov_re.iloc[0, 0]), rel=0.05)
    assert prior.residual_variance == pytest.approx(mixed_model.scale, rel=0.05)


@pytest.fixture(scope="module")
def table_and_fits():
    table = synthetic_table(num_natural=6, num_medical=6, trial_std=0.1, dataset_std=0.3)
    return table, fit_growth(table)


@pytest.mark.parametrize(
    ("name", "factor"),
    [
        ("train_size", 100),
        pytest.param("label_sharpness", 17.0, marks=pytest.mark.long),
        ("test_loss", 1 / np.log(2)),
    ],
)
def test_no_unit_changes_a_prediction(table_and_fits, name, factor):
    table, fits = table_and_fits
    options = {"train_size": 1000.0, **NEW_DATASET}
    expected = predict(fits, **options)
    fits_in_other_unit = fit_growth(table.assign(**{name: table[name] * factor}))
    options_in_other_unit = dict(options)
    if name in options:
        options_in_other_unit[name] *= factor
    prediction = predict(fits_in_other_unit, **options_in_other_unit)
    scale = factor if name == "test_loss" else 1.0
    assert prediction.value / scale == pytest.approx(expected.value, rel=1e-3)
    assert np.array(prediction.interval) / scale == pytest.approx(
        np.array(expected.interval), rel=5e-3
    )


@pytest.mark.parametrize(
    ("constant_columns", "missing", "terms"),
    [
        ({"d_data_mle": 10.0}, "d_data", ("exponent", "log_sharpness")),
        ({"label_sharpness": 1e-4}, "K_F", ("exponent", "inverse_d")),
        ({"d_data_mle": 10.0, "label_sharpness": 1e-4}, "d_data and K_F", ("exponent",)),
    ],
)
def test_a_property_that_is_the_same_for_all_datasets_is_left_out_of_a_prediction(
    constant_columns, missing, terms
):
    fits = fit_growth(synthetic_table(trial_std=0.1, dataset_std=0.2).assign(**constant_columns))
    assert fits.informed.terms == terms
    prediction = predict(fits, train_size=1000, **NEW_DATASET)
    assert prediction.interval[0] < prediction.value < prediction.interval[1]
    reason = f"the effect of {missing} on the height of the loss could not be estimated"
    assert reason in prediction.warning


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("d_data", [1e-40, 1e40])
@pytest.mark.parametrize("pilot", [[], [PilotPoint(500, 0.3), PilotPoint(1, 1e-40)]])
def test_extreme_numbers_give_no_arithmetic_warning(noisy, d_data, pilot):
    options = {"label_sharpness": 1e-4, "pilot": pilot}
    for target in ({"train_size": 1000}, {"target_loss": 0.3}):
        prediction = predict(noisy, d_data=d_data, **target, **options)
        json.dumps(prediction.to_json(), allow_nan=False)
        assert prediction.value is not None or "no prediction" in prediction.warning


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "nosuch"}, "fitted model.*'nosuch'"),
        ({"model": "resnet81"}, "fitted model.*'resnet81'.*[Dd]id you mean 'resnet18'"),
        ({"domain": "medica"}, "domain.*[Dd]id you mean 'medical'"),
    ],
)
def test_an_unknown_model_or_domain_is_named_before_a_pilot_is_trained(options, message):
    with pytest.raises(ConfigError, match=message):
        fit_growth(synthetic_table(), **options)


def test_trainings_of_one_size_are_one_training_of_a_pilot(noisy):
    options = {"train_size": 1000, **NEW_DATASET}
    expected = predict(noisy, pilot=[PilotPoint(300, 0.2)], **options)
    # The geometric mean of 0.1 and 0.4 is 0.2.
    two_trainings = [PilotPoint(300, 0.1), PilotPoint(300, 0.4)]
    assert predict(noisy, pilot=two_trainings, **options) == expected


def test_too_few_datasets_give_a_value_without_an_interval():
    table = synthetic_table(
        num_natural=2, num_medical=0, train_sizes=(100, 200, 400, 800), trial_std=0.05
    )
    prediction = predict(fit_growth(table), train_size=200, **NEW_DATASET)
    assert prediction.interval is None
    assert "with 2 datasets no interval can be given" in prediction.warning


def test_a_table_that_cannot_be_fitted_is_an_error_with_its_reason():
    with pytest.raises(
        DataError, match="1 dataset has losses, d_data and K_F, but a fit needs at least 2"
    ):
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
def test_impossible_options_of_a_prediction_are_refused(exact, changes, message):
    with pytest.raises(ConfigError, match=message):
        predict(exact, **({"train_size": 1000, **NEW_DATASET} | changes))


def test_a_wide_interval_names_a_pilot_that_shortens_it_as_promised():
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
    options = {"d_data": 12.0, "label_sharpness": 1e-4, "train_size": 2000}
    wide_prediction = predict(fits, **options)
    advice = re.search(
        r"a pilot at ([\d, and]+) images would make it (\d+)% shorter", wide_prediction.warning
    )
    assert wide_prediction.shorter < 0.3
    assert advice
    sizes = [int(digits) for digits in re.findall(r"\d+", advice[1])]
    prediction_with_pilot = predict(
        fits, **options, pilot=[PilotPoint(size, 0.4) for size in sizes]
    )
    assert f"{prediction_with_pilot.shorter:.0%}" == f"{advice[2]}%"
    assert prediction_with_pilot.shorter >= 0.3
    assert "a pilot at" not in prediction_with_pilot.warning


@pytest.fixture(scope="module")
def fits_of_low_losses():
    """Return the fits of losses far below chance level, of two and of ten classes."""
    table = synthetic_table(trial_std=0.1)
    table["test_loss"] /= 1000
    return fit_growth(table), fit_growth(table.assign(num_classes=10))


@pytest.mark.parametrize(
    ("pilot", "warning"),
    [
        ([PilotPoint(1e9, 0.01)], "the pilot's train size 1,000,000,000 is far from the sweep's"),
        ([PilotPoint(500, 5.0)], "the pilot's test loss 5 is at chance level or above"),
        (
            [PilotPoint(500, 0.01), PilotPoint(1000, 0.02)],
            "the pilot's test loss rises with its train size",
        ),
    ],
)
def test_an_implausible_pilot_gives_a_warning(fits_of_low_losses, pilot, warning):
    fits, fits_of_ten_classes = fits_of_low_losses
    options = {"d_data": 15.0, "label_sharpness": 1e-4, "train_size": 1000}
    assert warning in predict(fits, **options, pilot=pilot).warning
    plausible_pilot = [PilotPoint(500, 2e-4), PilotPoint(1000, 1e-4)]
    assert "pilot's" not in predict(fits, **options, pilot=plausible_pilot).warning
    prediction = predict(fits_of_ten_classes, **options, pilot=[PilotPoint(500, 1.5)])
    assert "chance level" not in prediction.warning


def test_losses_that_are_all_the_same_predict_nothing():
    with pytest.raises(DataError, match="the losses are the same everywhere"):
        fit_growth(synthetic_table().assign(test_loss=0.3))


def inverse_law(num_datasets, unit=1):
    """Return losses of exactly 30 / N, whatever d is: 6,000 images reach 0.005."""
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
        for j in range(num_datasets)
        for size in (500, 1000, 2000, 4000)
    ]
    return pd.DataFrame(rows)


@pytest.mark.long
@pytest.mark.parametrize("num_datasets", [4, 6])
def test_no_unit_of_n_changes_a_prediction_from_few_datasets(num_datasets):
    """Below five datasets, 1/d is not in the fit.

    Log N was once mixed with intercepts there: the target that 6,000 images reach was predicted
    to need more than 1e15.
    """
    options = {"d_data": 10.0, "label_sharpness": 1.1e-4, "target_loss": 0.005}
    ones = predict(fit_growth(inverse_law(num_datasets, unit=1)), **options)
    thousands = predict(fit_growth(inverse_law(num_datasets, unit=1000)), **options)
    assert ones.value == pytest.approx(6000, rel=0.1)
    assert thousands.value == pytest.approx(1000 * ones.value, rel=1e-6)
    assert np.array(thousands.interval) == pytest.approx(1000 * np.array(ones.interval), rel=0.02)
    assert ones.interval == pytest.approx((6000, 6000), rel=0.1)


@pytest.mark.long
def test_a_prediction_from_all_models_together_has_a_warning():
    table = synthetic_table(models=("a", "b"), trial_std=0.1)
    together = predict(fit_growth(table), train_size=1000, **NEW_DATASET)
    assert "the fit uses the losses of all models together, and models differ" in together.warning
    of_one_model = predict(fit_growth(table, model="a"), train_size=1000, **NEW_DATASET)
    assert "all models" not in of_one_model.warning
