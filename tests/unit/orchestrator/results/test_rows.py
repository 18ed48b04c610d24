"""Test rows of a real small trial and measure: every column is described and has its type."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from orchestrator.results import columns as c
from orchestrator.results.flat_runs import flat_trial
from orchestrator.results.metrics import index_measures, trial_metrics
from orchestrator.results.rows import json_rows, measure_rows, rows_of
from search_spaces.specs import AttackSpec, RepresentationSpec, RobustnessSpec
from tasks.measures.measure import measure_nested
from tasks.measures.records import MeasureSettings
from tasks.prepared.subsets import TrialData
from tasks.trials.records import EpochScore
from tasks.trials.trial import run_trial
from tests.unit.orchestrator.results.examples import (
    attack,
    dimension,
    measure_record,
    trial_record,
    trial_result,
    trial_spec,
)


@pytest.fixture(scope="module")
def real_row():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, 1, 16, 16), np.uint8)
    labels = np.arange(60) % 2
    estimators = ("mle", "twonn", "gride")
    measurements = {
        "attacks": AttackSpec(epsilons=(0.5, 3.0)),
        "representation": RepresentationSpec(estimators=estimators, num_neighbors=10),
        "robustness": RobustnessSpec(num_images=8, num_steps=10, num_bisections=5),
    }
    spec = trial_spec().model_copy(update=measurements)
    data = TrialData(images[:40], labels[:40], images[40:], labels[40:], 2, "f")
    result = run_trial(spec, data)
    settings = MeasureSettings(num_neighbors=10, pixel_range=(0.0, 255.0))
    measured = measure_nested(images[:40], labels[:40], [40], settings=settings)
    (row,) = rows_of([trial_record(result, spec=spec)], [measure_record(result=measured)])
    return row


def test_every_column_of_a_real_row_is_described(real_row):
    undescribed = [column.name for column in c.describe(real_row) if column.origin is None]
    assert not undescribed, f"name these in orchestrator/results/columns.py: {undescribed}"
    assert {"fgsm_0.5_loss", "fgsm_3_robust_accuracy", "d_repr_gride"} <= set(real_row)


def test_every_described_column_is_in_a_real_row_and_of_its_type(real_row):
    always = {column.name for column in c.COLUMNS if column.origin != "attack"}
    # Only a GPU reports energy, and only a trial short of memory divides its batches.
    missing = always - set(real_row) - {c.ENERGY_J, c.MICRO_BATCH}
    assert not missing, (
        f"a real trial has no value of {missing}: set the field in tasks/trials/trial.py or "
        "tasks/measures/measure.py, and read it in orchestrator/results/metrics.py"
    )
    types = {"text": str, "integer": int, "number": float}
    for column in c.describe(real_row):
        assert type(real_row[column.name]) is types[column.kind]


def test_an_undefined_value_has_no_metric():
    undefined_attack = attack(1.0).model_copy(
        update={"loss": None, "loss_gain": None, "reason": "inf"}
    )
    undefined = {"d_repr": {"mle": dimension("mle", None)}, "attacks": (undefined_attack,)}
    metrics = trial_metrics(trial_result().model_copy(update=undefined))
    assert not {"d_repr_mle", "fgsm_1_loss", "fgsm_1_loss_gain"} & set(metrics)
    assert metrics["fgsm_1_accuracy_drop"] == 0.25


def test_measures_are_joined_by_subset_size_and_data():
    (row,) = rows_of([trial_record()], [measure_record()])
    assert row["d_data_mle"] == 4.5
    assert row["label_sharpness"] == 0.25
    assert row["sharpness_pixel_range"] == 255.0
    assert "d_data_gride" not in row
    (row_of_other_data,) = rows_of([trial_record()], [measure_record(data_fingerprint="g")])
    assert "d_data_mle" not in row_of_other_data


def test_a_new_estimator_has_columns_without_a_change_of_the_results_table():
    record = measure_record()
    (size,) = record.result.sizes
    size = replace(size, d_data={"mine": dimension("mine", 3.5)})
    result = record.result.model_copy(update={"sizes": (size,)})
    (row,) = rows_of([trial_record()], [measure_record(result=result)])
    assert row["d_data_mine"] == 3.5
    assert type(row["d_data_mine_std_error"]) is float
    value, std_error = c.describe(["d_data_mine", "d_data_mine_std_error"])
    assert value.meaning == "d_data by the estimator `mine` (docs/measures.md)"
    assert std_error.meaning == "standard error of `d_data_mine`"


def test_a_row_has_the_gpu_of_its_trial():
    """A sweep may run on two kinds of GPU or change its GPU: the rows show it."""
    (row,) = rows_of([trial_record(gpu_name="NVIDIA L4")], [])
    assert row["gpu"] == "NVIDIA L4"
    assert rows_of([trial_record(gpu_name="")], [])[0]["gpu"] == ""


def test_params_depend_on_the_network_only():
    """Params of MLflow never change, while more may be measured on a network later."""
    with_other_attack = trial_spec().model_copy(update={"attacks": AttackSpec(epsilons=(16.0,))})
    first = flat_trial(trial_record(spec=trial_spec()), {})
    second = flat_trial(trial_record(spec=with_other_attack), {})
    assert first.params == second.params
    assert first.params["recipe.name"] == "smoke"
    assert first.tags["attacks.epsilons"] == "[1.0, 2.0, 4.0, 8.0]"
    assert second.tags["attacks.epsilons"] == "[16.0]"


DOCS = Path(__file__).parents[4] / "docs" / "results-columns.md"


def test_the_documented_columns_are_those_of_the_code():
    attacks = c.columns_of_attack("{attack}_{eps}", "the attack at epsilon {eps}/255")
    further = [
        c.Column(c.further_test_column("{condition}", name), text.format("{condition}"), unit)
        for name, (text, unit) in c.FURTHER_TEST_QUANTITIES.items()
    ]
    defined = [column for column in c._DEFINED.values() if column.origin != "attack"]
    estimators = c.columns_of_estimator("{estimator}")
    everything = (*defined, *estimators, *attacks, *further)
    units = {
        column.name: f" ({column.unit})" if column.unit != "–" else "" for column in everything
    }
    lines = [f"| `{column.name}` | {column.meaning}{units[column.name]} |" for column in everything]
    documented = DOCS.read_text(encoding="utf-8").split("<!-- columns -->\n")[1].splitlines()
    expected = ["| column | meaning (unit) |", "|---|---|", *lines]
    missing = [line for line in expected if line not in documented]
    unknown = [line for line in documented if line not in expected]
    assert documented == expected, (
        "docs/results-columns.md, table under `<!-- columns -->`, must have a line for each column "
        "of the code, in the order of orchestrator/results/columns.py\n"
        f"add these lines: {missing}\nremove these lines: {unknown}"
    )


def test_attack_columns_are_described_by_strength_and_unknown_columns_are_marked():
    names = [
        "fgsm_16_loss_gain",
        "fgsm_2_loss_gain",
        "fgsm_2_loss",
        "test_loss",
        "fgsm_x_loss_gain",
    ]
    # In the order of numbers: as text, 16 would come before 2.
    assert [column.epsilon for column in c.attack_columns(names)] == [2.0, 16.0]
    drop, loss, unknown = c.describe(["pgd_4_accuracy_drop", "pgd_4_loss", "my_column"])
    assert "pgd at epsilon 4/255" in drop.meaning
    assert loss.unit == "nat"
    assert unknown.meaning == "not part of the standard table"


@pytest.mark.parametrize("epsilon", [1.0, 1.0000001, 10.0, 0.5, 1 / 3, 1e-5, 1e-9, 255.0])
def test_an_attack_of_any_strength_has_its_own_columns(epsilon):
    assert c.attack_columns(["pgd_linf_0.5_loss_gain"]) == (
        ("pgd_linf_0.5_loss_gain", "pgd_linf", 0.5),
    )
    record = attack(epsilon)
    (column,) = c.attack_columns([f"{record.name}_loss_gain"])
    assert (column.attack, column.epsilon) == ("fgsm", epsilon)
    names = [f"{record.name}_{quantity}" for quantity in c.ATTACK_QUANTITIES]
    assert all(entry.origin == "attack" for entry in c.describe(names))


def test_every_metric_of_a_tracker_and_column_of_measures_is_described():
    epochs = (EpochScore(epoch=1, test_loss=0.5, test_accuracy=0.75),)
    result = trial_result().model_copy(update={"test_history": epochs})
    run = flat_trial(trial_record(result), index_measures([measure_record()]))
    (row,) = measure_rows(measure_record())
    names = {*run.metrics, *(name for name, *_ in run.series), *row, c.D_DATA_CALIBRATED}
    assert {
        "epoch_train_loss",
        "epoch_test_accuracy",
        "d_data_gride",
        "label_sharpness_p99",
    } <= names
    undescribed = [column.name for column in c.describe(names) if column.origin is None]
    assert undescribed == []


def test_json_rows_have_every_digit_of_a_number_and_none_for_a_missing_one():
    table = pd.DataFrame(
        {
            "loss": [6.0392534130990265, 1.2345678901234567e-12, float("nan")],
            "train_size": pd.array([80, None, 320], dtype="Int64"),
            "model": ["small_cnn", "", None],
        }
    )
    rows = json.loads(json.dumps(json_rows(table), allow_nan=False))
    assert [row["loss"] for row in rows] == [6.0392534130990265, 1.2345678901234567e-12, None]
    assert [row["train_size"] for row in rows] == [80, None, 320]
    assert [row["model"] for row in rows] == ["small_cnn", "", None]
