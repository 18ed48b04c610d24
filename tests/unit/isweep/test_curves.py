"""Learning curves of one dataset from Python."""

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
    curves = isweep.learning_curves(TABLE)
    assert list(curves.displayed()["train_size"]) == [480]
    assert curves.answers[0].question.metric == "loss"
    assert "With 480 training images expect" in repr(curves)


def test_a_file_gives_the_answers_of_its_table(tmp_path):
    file = tmp_path / "results.csv"
    TABLE.to_csv(file, index=False)
    options = {"metric": "accuracy", "target": 0.86, "test_size": 200}
    by_file = isweep.learning_curves(file, **options)
    assert by_file.displayed().equals(isweep.learning_curves(TABLE, **options).displayed())


def test_a_message_names_the_file_of_a_wrong_cell(tmp_path):
    file = tmp_path / "results.csv"
    TABLE.assign(test_loss=[0.7, -1, 0.5]).to_csv(file, index=False)
    with pytest.raises(isweep.SweepError, match=r"results\.csv: Line 3 of the table has test_loss"):
        isweep.learning_curves(file)


def test_a_message_names_an_unknown_network():
    with pytest.raises(isweep.SweepError, match=r"model.*'vgg'"):
        isweep.learning_curves(TABLE.assign(model="resnet"), model="vgg")


@pytest.mark.parametrize("results", [TABLE.to_dict("list"), [(60, 0.7)], TABLE.to_numpy(), None])
def test_results_of_another_type_are_refused(results):
    with pytest.raises(
        isweep.SweepError,
        match=r"`results` has the type \w+, but must be a sweep, a DataFrame, or the path of a CSV "
        r"file\. Pass, for example, isweep\.open",
    ):
        isweep.learning_curves(results)


def test_the_name_of_a_sweep_in_place_of_a_file_leads_to_open():
    with pytest.raises(isweep.SweepError, match=r"pass isweep\.open\('demo'\)"):
        isweep.learning_curves("demo")


def test_a_path_that_cannot_be_searched_is_refused():
    with pytest.raises(isweep.SweepError, match=r"x cannot be read: File name too long\. Correct"):
        isweep.learning_curves("x" * 300)


def test_an_accuracy_as_target_of_predict_leads_to_learning_curves():
    with pytest.raises(TypeError, match=r"'target_accuracy'.*isweep\.learning_curves"):
        isweep.predict(None, TABLE, target_accuracy=0.9)  # type: ignore[arg-type]


def test_a_table_in_place_of_a_record_leads_to_learning_curves(tmp_path):
    file = tmp_path / "results.csv"
    TABLE.to_csv(file, index=False)
    with pytest.raises(
        isweep.SweepError,
        match=r"csv is a table, not the record .*isweep\.learning_curves\('.*results\.csv'\)",
    ):
        isweep.predict(file, TABLE, target_loss=0.3)


def test_a_frame_of_scores_in_place_of_a_record_leads_to_learning_curves():
    with pytest.raises(
        isweep.SweepError,
        match=r"`measured` has the type DataFrame, .*isweep\.learning_curves\(results",
    ):
        isweep.predict(TABLE, target_loss=0.3)


def test_the_command_fit_has_a_replacement_in_python():
    with pytest.raises(
        AttributeError, match=r"no attribute 'fit'\. Use isweep\.open\('demo'\)\.fits"
    ):
        isweep.fit("mine")
