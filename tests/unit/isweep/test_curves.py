"""Learning curves of one dataset, asked from Python."""

import doctest

import pandas as pd
import pytest

import isweep
from isweep import curves

TABLE = pd.DataFrame(
    {"train_size": [60, 120, 240], "test_loss": [0.7, 0.6, 0.52], "accuracy": [0.71, 0.78, 0.83]}
)


def test_the_example_of_the_docstring_holds():
    assert doctest.testmod(curves).failed == 0


def test_a_table_answers_by_its_first_score_and_shows_itself():
    found = isweep.learning_curves(TABLE)
    assert list(found.displayed()["train_size"]) == [480]
    assert found.answers[0].question.metric == "loss"
    assert "With 480 images expect" in repr(found)


def test_a_file_answers_as_its_table_does(tmp_path):
    file = tmp_path / "results.csv"
    TABLE.to_csv(file, index=False)
    options = {"metric": "accuracy", "target": 0.86, "test_size": 200}
    by_file = isweep.learning_curves(file, **options)
    assert by_file.displayed().equals(isweep.learning_curves(TABLE, **options).displayed())


def test_a_network_that_is_not_there_is_named():
    with pytest.raises(isweep.SweepError, match=r"model.*'vgg'"):
        isweep.learning_curves(TABLE.assign(model="resnet"), model="vgg")
