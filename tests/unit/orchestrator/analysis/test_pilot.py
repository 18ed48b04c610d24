"""Test reading a pilot: a table of results that a user gives to `isweep predict`."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from orchestrator.analysis.predict_sweep import predict_sweep
from orchestrator.analysis.prediction_inputs import (
    Pilot,
    PilotPoint,
    is_pilot_table,
    pilot_of,
    read_pilot,
)
from search_spaces.errors import ConfigError, SweepError


def pilot_table(**columns):
    rows = {
        "model": "m",
        "dataset": "mine",
        "train_size": [50, 50, 100, 200],
        "test_loss": [0.4, 0.9, 0.5, 0.3],
    }
    return pd.DataFrame({**rows, **columns})


def test_points_are_geometric_means_per_train_size():
    pilot = pilot_of(pilot_table(), "m", where="t")
    assert [point.train_size for point in pilot.points] == [50, 100, 200]
    assert [point.test_loss for point in pilot.points] == pytest.approx([np.sqrt(0.36), 0.5, 0.3])
    assert (pilot.d_data, pilot.label_sharpness, pilot.notes) == (None, None, ())


def test_measures_are_those_of_the_largest_train_size_that_has_them():
    table = pilot_table(
        d_data_mle=[1.0, 1.0, 7.0, np.nan], label_sharpness=[1e-4, 1e-4, 1e-4, 3e-4]
    )
    pilot = pilot_of(table, "m", where="t")
    assert (pilot.d_data, pilot.label_sharpness) == (7.0, 3e-4)


def test_trainings_that_are_left_out_are_counted():
    table = pilot_table(
        test_loss=[0.4, np.inf, 0.5, 0.3], status=["done", "done", "diverged", "done"]
    )
    pilot = pilot_of(table, "m", where="t")
    assert [point.train_size for point in pilot.points] == [50, 200]
    assert pilot.notes == (
        "Left out of the pilot: 2 trainings without a usable train size and loss",
    )
    pilot_of_two_models = pilot_of(pilot_table(model=["m", "m", "m", "other"]), "m", where="t")
    assert pilot_of_two_models.notes == ("Left out of the pilot: 1 training of other models",)


def test_numbers_that_stand_for_a_missing_value_are_left_out_as_in_the_fits():
    # MLflow stores infinity as the largest float, 1.797e308.
    table = pilot_table(
        train_size=["50", "50", "100", "90"],
        test_loss=[0.4, 1.797e308, 0.5, 0.3],
        d_data_mle=[1.0, 2.0, 7.0, 1.797e308],
    )
    pilot = pilot_of(table, "m", where="t")
    assert [point.train_size for point in pilot.points] == [50, 90, 100]
    assert pilot.d_data == 7.0
    assert pilot.notes == (
        "Left out of the pilot: 1 training without a usable train size and loss",
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": ["a", "a", "b", "b"]}, "The pilot t has more than one dataset: a and b"),
        ({"test_loss": np.nan}, "The pilot t has no training with a finite loss above 0"),
        (
            {"train_size": 60.5},
            r"In 4 rows of the results table, .* for example 60.5",
        ),
        ({"status": "banana"}, "unknown status 'banana'. Write done or diverged"),
        ({"model": "other"}, "Unknown model 'm' of the pilot t"),
    ],
)
def test_a_table_that_is_no_pilot_is_refused(changes, message):
    with pytest.raises(SweepError, match=message):
        pilot_of(pilot_table(**changes), "m", where="t")


def test_a_pooled_pilot_has_losses_of_one_model_only():
    assert len(pilot_of(pilot_table(), "pooled", where="t").points) == 3
    with pytest.raises(ConfigError, match="The pilot t has more than one model: a and b"):
        pilot_of(pilot_table(model=["a", "a", "b", "b"]), "pooled", where="t")


@pytest.mark.parametrize(
    "text",
    [
        "train_size,test_loss\n60,0.5\n",
        "train_size, test_loss\n60, 0.5\n",
        "train_size;test_loss\n60;0,5\n",
        "train_size;test_loss\n60;0.5\n",
        "\ufefftrain_size\ttest_loss\n60\t0.5\n",
    ],
)
def test_files_of_spreadsheets_are_read(tmp_path, text):
    path = tmp_path / "pilot.csv"
    path.write_text(text, encoding="utf-8")
    assert is_pilot_table(path)
    assert read_pilot(path, "m").points == (PilotPoint(60.0, 0.5),)


def test_a_results_table_is_distinguished_from_a_table_of_images(tmp_path):
    results = tmp_path / "results.csv"
    images = tmp_path / "images.csv"
    pilot_table().to_csv(results, index=False)
    images.write_text("path,label\na.png,0\n", encoding="utf-8")
    assert is_pilot_table(results)
    assert not is_pilot_table(images)
    assert not is_pilot_table(tmp_path)
    assert len(read_pilot(results, "m").points) == 3
    with pytest.raises(
        ConfigError, match=r"The pilot .*images\.csv lacks 2 columns: train_size and"
    ):
        read_pilot(images, "m")


@pytest.mark.parametrize(
    ("text", "missing_column"),
    [("train_size,loss\n60,0.5\n", "test_loss"), ("N;test_loss\n60;0,5\n", "train_size")],
)
def test_results_without_a_column_still_count_as_a_results_table(tmp_path, text, missing_column):
    path = tmp_path / "pilot.csv"
    path.write_text(text, encoding="utf-8")
    assert is_pilot_table(path)
    with pytest.raises(ConfigError, match=f"The pilot .* lacks 1 column: {missing_column}"):
        read_pilot(path, "m")


def test_a_pilot_without_losses_needs_d_data_and_label_sharpness():
    options = {"d_data": None, "label_sharpness": None, "train_size": 100, "target_loss": None}
    fits = SimpleNamespace(scale=None, ranges={"train_size": (10.0, 20.0)})
    with pytest.raises(
        ConfigError, match=r"needs d_data and label_sharpness of the new dataset\. .* or a pilot"
    ):
        predict_sweep({}, lambda: fits, lambda: Pilot(()), **options)
    with pytest.raises(ConfigError, match="needs d_data and label_sharpness"):
        predict_sweep({}, lambda: fits, **options)
