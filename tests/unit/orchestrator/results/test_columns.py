import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.results import table as c
from orchestrator.results.rows import flat_trial, index_measures, measure_rows
from tasks.trials.records import AttackRecord, EpochScore
from tests.unit.orchestrator.results.examples import measure_record, trial_record, trial_result

DOCS = Path(__file__).parents[4] / "docs" / "results-columns.md"


def test_the_documented_dictionary_is_the_one_in_the_code():
    assert DOCS.read_text(encoding="utf-8").split("<!-- columns -->\n")[1] == c.markdown_table()


def test_every_column_is_described_once():
    names = [column.name for column in c.COLUMNS]
    assert len(names) == len(set(names))
    assert all(column.meaning and column.unit for column in c.COLUMNS)
    assert set(c.REQUIRED) <= set(names)


@pytest.mark.parametrize(
    ("name", "attack", "epsilon"),
    [("fgsm_8_loss_gain", "fgsm", 8.0), ("pgd_linf_0.5_loss_gain", "pgd_linf", 0.5)],
)
def test_attack_columns_are_taken_apart(name, attack, epsilon):
    assert c.attack_columns([name]) == ((name, attack, epsilon),)


def test_attack_columns_are_ordered_by_epsilon_not_by_spelling():
    names = ["fgsm_16_loss_gain", "fgsm_2_loss_gain", "fgsm_2_loss", "test_loss", "fgsm_x_loss_gain"]
    assert [column.epsilon for column in c.attack_columns(names)] == [2.0, 16.0]


def test_other_attacks_are_described_and_strangers_say_so():
    drop, loss, stranger = c.describe(["pgd_4_accuracy_drop", "pgd_4_loss", "my_column"])
    assert "pgd at epsilon 4/255" in drop.meaning
    assert loss.unit == "nat"
    assert stranger.meaning == "not part of the standard table"


def test_importing_the_analysis_loads_no_ray_torch_or_mlflow():
    code = (
        "import sys, orchestrator.analysis; "
        "print([m for m in ('ray', 'torch', 'mlflow', 'matplotlib.pyplot') if m in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


@pytest.mark.parametrize("epsilon", [1.0, 1.0000001, 10.0, 0.5, 1 / 3, 1e-5, 1e-9, 255.0])
def test_an_attack_of_any_strength_has_columns_of_its_own(epsilon):
    record = AttackRecord(
        method="fgsm",
        epsilon=epsilon,
        loss=1.0,
        loss_gain=0.5,
        accuracy=0.5,
        accuracy_drop=0.5,
        robust_accuracy=0.5,
        num_unchanged=0,
    )
    (column,) = c.attack_columns([f"{record.name}_loss_gain"])
    assert (column.attack, column.epsilon) == ("fgsm", epsilon)
    names = [f"{record.name}_{quantity}" for quantity in c.ATTACK_QUANTITIES]
    assert all(entry.origin == "attack" for entry in c.describe(names))


def test_everything_a_tracker_or_the_table_of_measures_shows_is_described():
    epochs = (EpochScore(epoch=1, test_loss=0.5, test_accuracy=0.75),)
    result = trial_result().model_copy(update={"test_history": epochs})
    run = flat_trial(trial_record(result), index_measures([measure_record()]))
    (row,) = measure_rows(measure_record())
    names = {*run.metrics, *(name for name, *_ in run.series), *row, c.D_DATA_CALIBRATED}
    assert {"epoch_train_loss", "epoch_test_accuracy", "d_data_gride", "label_sharpness_p99"} <= names
    assert [column.name for column in c.describe(names) if column.origin is None] == []
