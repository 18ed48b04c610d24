import numpy as np
import pandas as pd
import pytest

from orchestrator.analysis.fits import fit_scaling_laws
from orchestrator.analysis.results_tables.checks import (
    DIVERGED,
    Exclusion,
    finished_trials,
    normalise,
)
from orchestrator.analysis.results_tables.points import LOG_LOSS, fitted_points
from search_spaces.errors import DataError
from tests.synthetic import synthetic_table


def points_of(table):
    return fitted_points(normalise(table)[0])[0]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda table: table.drop(columns="test_loss"), "has no column test_loss"),
        (lambda table: pd.concat([table, table.head(1)]), "has 1 repeated trial id, such as"),
        (
            lambda table: pd.concat([table, table[["test_loss"]]], axis=1),
            "column names are repeated: test_loss",
        ),
        (
            lambda table: table.assign(domain="satellite"),
            "unknown domain 'satellite'. Write natural",
        ),
        (
            lambda table: table.assign(domain=["medical", *table["domain"][1:]]),
            "The dataset 'natural0' has two domains",
        ),
        (
            lambda table: table.assign(test_accuracy=[0.8, 85.0] + [0.8] * (len(table) - 2)),
            r"Trial '.*-natural0-.*' has the accuracy 85, .* \(1 row in all\)\. Divide",
        ),
    ],
)
def test_a_table_that_contradicts_itself_is_refused(spoil, message):
    with pytest.raises(DataError, match=message):
        fit_scaling_laws(spoil(synthetic_table()))


def test_an_impossible_measure_is_missing_and_counted():
    table = synthetic_table()
    table.loc[:2, "d_data_mle"] = -3.0
    table.loc[:1, "label_sharpness"] = 0.0
    full, exclusions = normalise(table)
    assert full["d_data_mle"].isna().sum() == 3
    assert set(exclusions) == {
        Exclusion("values of d_data_mle that are not above zero", 3),
        Exclusion("values of label_sharpness that are not above zero", 2),
    }


def test_mlflows_stand_in_for_infinity_is_missing_and_counted():
    table = synthetic_table()
    table.loc[:1, "label_sharpness"] = [1.797e308, np.inf]
    full, infinities = normalise(table)
    assert full["label_sharpness"].isna().sum() == 2
    assert infinities == (Exclusion("values of label_sharpness that are infinite", 2),)


def test_text_in_place_of_a_number_is_missing_and_counted():
    table = synthetic_table().astype({"d_data_mle": object, "test_loss": object})
    table.loc[:3, "d_data_mle"] = ["ten", "", None, "12.5"]
    table.loc[0, "test_loss"] = "0,3"
    full, unusable = normalise(table)
    without_d = full.loc[full["d_data_mle"].isna(), "trial_id"]
    assert sorted(set(without_d)) == sorted(table["trial_id"][:3])
    assert set(unusable) == {
        Exclusion("values of d_data_mle that are not a number", 1),
        Exclusion("values of test_loss that are not a number", 1),
    }


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("dataset", " ", "has 2 rows without a dataset"),
        ("model", None, "has 2 rows without a model"),
        ("trial_id", np.nan, "has 2 rows without a trial_id"),
        ("status", "banana", "unknown status 'banana'. Write done or diverged"),
        ("train_size", 500.5, r"In 2 rows .* for example 500.5"),
        ("train_size", True, r"In 2 rows .* for example True"),
    ],
)
@pytest.mark.parametrize("check", [normalise, finished_trials])
def test_a_row_that_is_no_trial_is_refused(check, column, value, message):
    table = synthetic_table().astype({column: object})
    table.loc[3:4, column] = value
    with pytest.raises(DataError, match=message):
        check(table)


@pytest.mark.parametrize("check", [normalise, finished_trials])
def test_a_column_without_a_name_is_refused(check):
    with pytest.raises(DataError, match="columns whose names are not text: 5"):
        check(synthetic_table().assign(more=1).rename(columns={"more": 5}))


def test_a_truth_value_is_no_number():
    table = synthetic_table().astype({"test_loss": object})
    table.loc[0, "test_loss"] = True
    full, unusable = normalise(table)
    assert full["test_loss"].isna().sum() == 1
    assert unusable == (Exclusion("values of test_loss that are not a number", 1),)


@pytest.mark.filterwarnings("error")
def test_numbers_whose_squares_under_or_overflow_are_missing_and_counted():
    table = synthetic_table(trial_std=0.1)
    table.loc[0, "d_data_mle"] = 1e-300
    table.loc[1, "label_sharpness"] = 1e-60
    table.loc[2, "d_data_mle"] = 1e200
    fits = fit_scaling_laws(table)
    counts = {(exclusion.reason, exclusion.count) for exclusion in fits.excluded}
    assert counts == {
        ("values of d_data_mle that are too close to zero", 1),
        ("values of d_data_mle that are infinite", 1),
        ("values of label_sharpness that are too close to zero", 1),
    }
    assert fits.headline().status == "ok"


def test_every_unusable_loss_is_counted_under_its_first_reason():
    table = synthetic_table()
    table["status"] = "done"
    table.loc[0, ["status", "test_loss"]] = ["diverged", np.nan]
    table.loc[1, "test_loss"] = np.nan
    table.loc[2, "test_loss"] = 0.0
    table.loc[3, "test_loss"] = -1.0
    points, excluded = fitted_points(normalise(table)[0])
    assert excluded == (
        Exclusion(DIVERGED, 1),
        Exclusion("trials without a test loss", 1),
        Exclusion("trials with a test loss of 0 or less, which has no logarithm", 2),
    )
    assert len(points) == len(table) - 1
    assert points[LOG_LOSS].isna().sum() == 3


def test_seeds_are_averaged_as_logarithms():
    table = synthetic_table(num_natural=1, num_medical=0, train_sizes=(500,), num_seeds=2)
    table["test_loss"] = [0.1, 10.0]
    points = points_of(table)
    assert points["test_loss"].tolist() == pytest.approx([1.0])


def test_the_pairs_of_a_dataset_weigh_as_much_as_one_without_pairs():
    paired = synthetic_table(num_natural=1, num_medical=0, class_pairs=("0-1", "2-3", "4-5"))
    without_pairs = synthetic_table(num_natural=0, num_medical=1)
    points = points_of(pd.concat([paired, without_pairs]))
    weights = points.groupby("dataset")["weight"].sum()
    assert weights["natural0"] == pytest.approx(weights["medical0"])


def test_absent_columns_count_as_missing():
    full, _ = normalise(synthetic_table().drop(columns=["d_data_mle", "data_mode", "status"]))
    assert full["d_data_mle"].isna().all()
    assert set(full["status"]) == {"done"}
    assert set(full["data_mode"]) == {""}
