"""What a pilot's table says, and what it must not be."""

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


def table(**columns):
    rows = {
        "model": "m",
        "dataset": "mine",
        "train_size": [50, 50, 100, 200],
        "test_loss": [0.4, 0.9, 0.5, 0.3],
    }
    return pd.DataFrame({**rows, **columns})


def test_points_are_geometric_means_per_train_size():
    found = pilot_of(table(), "m", where="t")
    assert [p.train_size for p in found.points] == [50, 100, 200]
    assert [p.test_loss for p in found.points] == pytest.approx([np.sqrt(0.36), 0.5, 0.3])
    assert (found.d_data, found.label_sharpness, found.notes) == (None, None, ())


def test_measures_are_those_of_the_largest_train_size_that_has_them():
    found = pilot_of(
        table(d_data_mle=[1.0, 1.0, 7.0, np.nan], label_sharpness=[1e-4, 1e-4, 1e-4, 3e-4]),
        "m",
        where="t",
    )
    assert (found.d_data, found.label_sharpness) == (7.0, 3e-4)


def test_what_is_left_out_is_counted():
    found = pilot_of(
        table(test_loss=[0.4, np.inf, 0.5, 0.3], status=["done", "done", "diverged", "done"]),
        "m",
        where="t",
    )
    assert [p.train_size for p in found.points] == [50, 200]
    assert found.notes == (
        "Left out of the pilot: 2 trainings without a usable train size and loss",
    )
    others = pilot_of(table(model=["m", "m", "m", "other"]), "m", where="t")
    assert others.notes == ("Left out of the pilot: 1 training of other models",)


def test_what_stands_for_no_number_is_left_out_as_in_the_fits():
    found = pilot_of(
        table(
            train_size=["50", "50", "100", "90"],
            test_loss=[0.4, 1.797e308, 0.5, 0.3],
            d_data_mle=[1.0, 2.0, 7.0, 1.797e308],
        ),
        "m",
        where="t",
    )
    assert [p.train_size for p in found.points] == [50, 90, 100]
    assert found.d_data == 7.0
    assert found.notes == (
        "Left out of the pilot: 1 training without a usable train size and loss",
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": ["a", "a", "b", "b"]}, "The pilot t has more than one dataset: a and b"),
        ({"test_loss": np.nan}, "The pilot t has no training with a finite loss above 0"),
        (
            {"train_size": 60.5},
            r"train size 60.5, which is not a whole number of images \(4 rows in all",
        ),
        ({"status": "banana"}, "unknown status 'banana'. Write done or diverged"),
        ({"model": "other"}, "model of the pilot t.*'m'"),
    ],
)
def test_a_table_that_is_no_pilot_is_refused(changes, message):
    with pytest.raises(SweepError, match=message):
        pilot_of(table(**changes), "m", where="t")


def test_pooled_takes_one_models_losses_only():
    assert len(pilot_of(table(), "pooled", where="t").points) == 3
    with pytest.raises(ConfigError, match="The pilot t has more than one model: a and b"):
        pilot_of(table(model=["a", "a", "b", "b"]), "pooled", where="t")


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
def test_what_spreadsheets_write_is_read(tmp_path, text):
    path = tmp_path / "pilot.csv"
    path.write_text(text, encoding="utf-8")
    assert is_pilot_table(path)
    assert read_pilot(path, "m").points == (PilotPoint(60.0, 0.5),)


def test_a_results_table_is_told_from_a_table_of_images(tmp_path):
    results, images = tmp_path / "results.csv", tmp_path / "images.csv"
    table().to_csv(results, index=False)
    images.write_text("path,label\na.png,0\n", encoding="utf-8")
    assert is_pilot_table(results)
    assert not is_pilot_table(images)
    assert not is_pilot_table(tmp_path)
    assert len(read_pilot(results, "m").points) == 3
    with pytest.raises(ConfigError, match=r"The pilot .*images\.csv has no column train_size"):
        read_pilot(images, "m")


@pytest.mark.parametrize(
    ("text", "lacks"),
    [("train_size,loss\n60,0.5\n", "test_loss"), ("N;test_loss\n60;0,5\n", "train_size")],
)
def test_results_that_lack_a_column_are_results_all_the_same(tmp_path, text, lacks):
    path = tmp_path / "pilot.csv"
    path.write_text(text, encoding="utf-8")
    assert is_pilot_table(path)
    with pytest.raises(ConfigError, match=f"The pilot .* has no column {lacks}"):
        read_pilot(path, "m")


def test_a_pilot_of_no_losses_is_said_to_lack_the_two_numbers():
    asked = {"d_data": None, "label_sharpness": None, "train_size": 100, "target_loss": None}
    fits = SimpleNamespace(scale=None, ranges={"train_size": (10.0, 20.0)})
    with pytest.raises(
        ConfigError, match=r"needs d_data and label_sharpness of the new dataset\. .* or a pilot"
    ):
        predict_sweep({}, lambda: fits, lambda: Pilot(()), **asked)
    with pytest.raises(ConfigError, match="needs d_data and label_sharpness"):
        predict_sweep({}, lambda: fits, **asked)
