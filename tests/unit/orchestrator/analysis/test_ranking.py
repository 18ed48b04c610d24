"""Test which model is best, against means calculated by hand."""

import pandas as pd
import pytest

from orchestrator.analysis.number_formats import number
from orchestrator.analysis.report import script_json, trial_data
from orchestrator.analysis.tables.of_trials import best_models, best_table


def trial_table(*cells):
    names = ("model", "class_pair", "seed", "test_loss", "status")
    table = pd.DataFrame([dict(zip(names, cell, strict=True)) for cell in cells])
    ids = [f"t{k}" for k in range(len(table))]
    return table.assign(dataset="d", train_size=100, test_accuracy=0.5, trial_id=ids)


def test_the_lowest_mean_over_shared_combinations_is_best():
    table = trial_table(
        ("a", "0-1", 0, 0.4, "done"),
        ("a", "0-1", 1, 0.6, "done"),
        ("b", "0-1", 0, 0.5, "done"),
        ("b", "0-1", 1, 0.7, "done"),
        ("b", "2-3", 0, 0.0, "done"),  # only b has it
    )
    (best,) = best_models(table).to_dict("records")
    assert (best["model"], best["runner_up"], best["num_compared"]) == ("a", "b", 2)
    assert best["test_loss"] == pytest.approx(0.5)
    assert best["runner_up_loss"] == pytest.approx(0.6)
    assert best["seed_std"] == pytest.approx(0.1 * 2**0.5)


@pytest.mark.parametrize("score", ["fgsm_8_loss", "fgsm_8_accuracy_drop", "calibration_error"])
def test_the_lowest_value_of_a_loss_or_an_error_is_best(score):
    table = trial_table(("a", "", 0, 0.1, "done"), ("b", "", 0, 0.2, "done"))
    (best,) = best_models(table.assign(**{score: [0.4, 0.3]}), score).to_dict("records")
    assert (best["model"], best[score]) == ("b", 0.3)


def test_a_combination_that_diverged_for_one_model_is_compared_for_none():
    table = trial_table(
        ("a", "", 0, 0.1, "diverged"),
        ("a", "", 1, 0.6, "done"),
        ("b", "", 0, 0.2, "done"),
        ("b", "", 1, 0.5, "done"),
    )
    (best,) = best_models(table).to_dict("records")
    assert (best["model"], best["num_compared"]) == ("b", 1)


def test_models_without_a_shared_combination_are_not_compared():
    table = trial_table(("a", "", 0, 0.1, "done"), ("b", "", 1, 0.2, "done")).assign(
        train_size=1500.0
    )
    assert best_models(table)["num_compared"].tolist() == [0]
    assert best_table(table).rows[0][1:3] == ("models share no class pair and seed", "1,500")


def test_trial_data_keep_numbers_and_cannot_close_their_script_element():
    data = trial_data(trial_table(("</script>", "", 0, float("inf"), "diverged")), {"t0": "cpu"})
    (row,) = data["rows"]
    assert dict(zip(data["header"], row, strict=True))["test loss"] == "∞"
    assert dict(zip(data["header"], row, strict=True))["device"] == "cpu"
    assert "<" not in script_json(data)


def test_trials_are_in_natural_order_with_links_to_their_runs():
    table = trial_table(
        ("b", "", 0, 0.4, "done"), ("a", "", 10, 0.3, "done"), ("a", "", 9, 0.2, "done")
    )
    data = trial_data(table.assign(auc=0.75), {}, {"t2": "run2", "t0": "run0"}, "http://at/runs/")
    trials = [dict(zip(data["header"], row, strict=True)) for row in data["rows"]]
    assert [(row["model"], row["seed"], row["trial"]) for row in trials] == [
        ("a", 9, "t2"),
        ("a", 10, "t1"),
        ("b", 0, "t0"),
    ]
    assert {row["AUC"] for row in trials} == {0.75}
    assert (data["pages"], data["runs"]) == ("http://at/runs/", ["run2", "", "run0"])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (-0.0, "0"),
        (1880.0, "1,880"),
        (9.0, "9"),
        (-1.5, "−1.5"),
        (2.04e-4, "0.000204"),
        (1e-5, "1.00e−05"),
        (1e9, "1,000,000,000"),
        (6.2543e8, "625,000,000"),
        (2e15, "2e+15"),
    ],
)
def test_numbers_are_formatted_alike(value, text):
    assert number(value) == text
