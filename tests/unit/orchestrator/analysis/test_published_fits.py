"""The fits against the numbers derived earlier, by other code, from the same published values.

Natural d_data is recorded as a mean over models, where the earlier derivation used each model's own value, so
numbers that need natural datasets agree to a few hundredths only; medical ones agree to the last digit given.
"""

import pandas as pd
import pytest

from orchestrator.analysis.fits import fit_exponent, fit_scaling_laws, prepare
from orchestrator.analysis.published import (
    LOSS_ON_D_DATA,
    PREDICTED_FORM,
    fit_published,
    published_report,
    published_table,
)
from search_spaces.published import read_published


@pytest.fixture(scope="module")
def fits():
    return fit_scaling_laws(published_table(), sharpness_policy="ignore", explore=True)


@pytest.fixture(scope="module")
def points():
    """Fitted points of two models, with and without the prostate set."""
    table = published_table()
    table = table[table["model"].isin(["resnet34", "vgg13"])]
    return [
        prepare(rows, sharpness_policy="ignore").points
        for rows in (table, table[table["dataset"] != "prostate"])
    ]


@pytest.fixture(scope="module")
def redone():
    return {(row["model"], row["datasets"]): row for row in published_report().regressions}


def test_the_table_has_every_published_combination():
    table = published_table()
    assert len(table) == 6 * 11 * 6 + 11
    gains = table.dropna(subset=["fgsm_2_loss_gain"]).set_index("dataset")["fgsm_2_loss_gain"]
    published = pd.DataFrame(read_published("fgsm_loss_gain")).set_index("dataset")["loss_gain"]
    assert gains.to_dict() == published.astype(float).to_dict()
    assert table["trial_id"].is_unique
    assert table["test_loss"].notna().sum() == 261


@pytest.mark.parametrize(
    ("model", "slope", "r_squared", "slope_without_prostate", "r_squared_without"),
    [("resnet34", 0.249, 0.38, 0.008, 0.00), ("vgg13", 0.325, 0.33, -0.043, 0.05)],
)
def test_the_medical_slope_rests_on_the_prostate_set(
    points, redone, model, slope, r_squared, slope_without_prostate, r_squared_without
):
    coefficient = fit_published(points[0], LOSS_ON_D_DATA, model=model, subset="medical").estimates[0]
    assert coefficient.value == pytest.approx(slope, abs=5e-4)
    assert coefficient.influential == "prostate"
    assert coefficient.left_out["prostate"] == pytest.approx(slope_without_prostate, abs=5e-4)
    whole, refit = redone[model, "all"], redone[model, "without prostate"]
    assert whole["slope"] == pytest.approx(coefficient.value)
    assert whole["r_squared"] == pytest.approx(r_squared, abs=5e-3)
    assert refit["slope"] == pytest.approx(coefficient.left_out["prostate"])
    assert refit["r_squared"] == pytest.approx(r_squared_without, abs=5e-3)
    low, high = coefficient.interval
    assert low < 0 < high


@pytest.mark.parametrize(
    ("model", "datasets", "size", "sharpness", "r_squared", "off"),
    [
        ("resnet34", "all", 4.30, 1.39, 0.67, (0.02, 0.015)),
        ("vgg13", "all", 5.84, 1.68, 0.71, (0.02, 0.015)),
        ("resnet34", "without prostate", 3.00, 1.22, 0.39, (0.08, 0.035)),
        ("vgg13", "without prostate", 1.93, 1.16, 0.36, (0.08, 0.035)),
    ],
)
def test_the_predicted_form(points, redone, model, datasets, size, sharpness, r_squared, off):
    row = redone[model, datasets]
    assert row["form"][0] == pytest.approx(size, rel=off[0])
    assert row["form"][1] == pytest.approx(sharpness, rel=0.02)
    assert row["form_r_squared"] == pytest.approx(r_squared, abs=off[1])
    fit = fit_published(points[0], PREDICTED_FORM, model=model)
    assert (fit.num_points, fit.num_datasets) == (66, 11)


def test_the_exponent_without_prostate(points):
    estimate = fit_exponent(points[1]).estimates[0]
    assert estimate.value == pytest.approx(1.92, abs=0.01)
    assert estimate.interval == pytest.approx((-0.46, 4.29), abs=0.01)


@pytest.mark.parametrize(
    ("model", "with_prostate", "without"), [("resnet34", 0.30, 0.005), ("vgg13", 0.70, 0.014)]
)
def test_the_bare_label_is_tested_by_exact_permutation(redone, model, with_prostate, without):
    for datasets, expected in (("all", with_prostate), ("without prostate", without)):
        row = redone[model, datasets]
        assert row["exact"]
        assert row["permutation_p"] == pytest.approx(expected, abs=5e-3)


def test_the_share_of_representations_below_the_data_dimension(fits):
    found = fits.find("representation")
    assert (found.num_held, found.num_points) == (334, 396)
    assert found.estimates[0].value == pytest.approx(0.841, abs=0.005)
    assert found.by_dataset["oai"] == pytest.approx(18 / 36)
    for name, above in {"chexpert": 4, "mnist": 4, "prostate": 2, "mura": 1}.items():
        assert found.by_dataset[name] == pytest.approx(above / 36)
    one = fits.find("representation", model="resnet34")
    assert one.num_held / one.num_points == pytest.approx(0.83, abs=5e-3)


def test_exponents_of_the_train_size_within_a_dataset(fits):
    """Each dataset's own exponent times d, over d at the largest N, beside those derived earlier."""
    found = fits.find("exponent", model="resnet34").by_dataset
    last = published_table().query("train_size == 1750").groupby("dataset")["d_data_mle"].mean()
    expected = {
        "brats": -0.24, "dbc": -0.30, "oai": -0.59, "chexpert": -1.06,
        "prostate": -2.9, "mnist": -0.03, "cifar10": -0.01, "svhn": -0.84, "imagenet": 0.08,
    }  # fmt: skip
    assert {name: -found[name] / last[name] for name in expected} == pytest.approx(expected, abs=0.011)
    assert last["prostate"] == pytest.approx(4.60, abs=0.01)


def test_the_answer_about_attacks_is_given_the_label(fits):
    found = fits.find("attack", response="fgsm_2_loss_gain", model="a model not stated")
    r = found.estimates[0]
    assert (found.num_datasets, r.value) == (11, pytest.approx(0.636, abs=5e-4))
    assert r.num_resamples == 24 * 5040
    assert r.resampled_p == pytest.approx(0.0455, abs=5e-4)
