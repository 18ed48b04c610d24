"""Rivals of K_F and of the number of neighbours, where they were measured."""

import numpy as np
import pytest
import statsmodels.api as sm

from orchestrator.analysis import fit_scaling_laws
from orchestrator.analysis.synthetic import synthetic_table
from orchestrator.analysis.tables import fit_tables

pytestmark = pytest.mark.usefixtures("without_priors")


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(3)
    table = synthetic_table(num_natural=5, num_medical=5, trial_std=0.1)
    own = {name: rng.normal(0, 0.5) for name in table["dataset"].unique()}
    return table.assign(
        label_sharpness_mean=table["label_sharpness"] * np.exp(table["dataset"].map(own)),
        label_sharpness_permuted=table["label_sharpness"] * np.exp(2 * table["dataset"].map(own)),
        d_data_mle_k5=table["d_data_mle"] * 0.9,
        d_data_mle_k10=table["d_data_mle"] * 1.1,
    )


def test_rivals_of_sharpness_stand_in_the_same_table_with_their_own_slopes(table):
    fits = fit_scaling_laws(table)
    means = table.assign(log_loss=np.log(table["test_loss"])).groupby("dataset").mean(numeric_only=True)
    last = table[table["train_size"] == table["train_size"].max()].set_index("dataset")
    relative = (
        np.log(table["label_sharpness"] / table["label_sharpness_permuted"]).groupby(table["dataset"]).mean()
    )
    theirs = sm.OLS(
        means["log_loss"],
        sm.add_constant(np.column_stack([1 / last["d_data_mle"][means.index], relative[means.index]])),
    ).fit()
    fit = fits.level("inverse_d", "log_relative_sharpness")
    assert fit.coefficient("log_relative_sharpness").value == pytest.approx(theirs.params.iloc[2])
    assert fit.coefficient("log_relative_sharpness").std_error == pytest.approx(theirs.bse.iloc[2])
    assert fits.level("inverse_d", "log_smoothness").num_datasets == 10
    rows = next(shown for shown in fit_tables(fits) if shown.key == "levels").rows
    assert any("1/d, log average smoothness" in row for row in rows)


def test_what_was_not_measured_is_no_rival():
    fits = fit_scaling_laws(synthetic_table(num_natural=5, num_medical=5, trial_std=0.1))
    assert not any("log_smoothness" in fit.terms for fit in fits.levels)


def test_the_exponent_is_shown_for_fewer_neighbours(table):
    found = {fit.dimension: fit for fit in fit_scaling_laws(table).sensitivity}
    exponent = fit_scaling_laws(table).exponent().value
    # exponent · d is proportional to d.
    assert found["5 neighbours"].value == pytest.approx(0.9 * exponent)
    assert found["10 neighbours"].value == pytest.approx(1.1 * exponent)
    bare = fit_scaling_laws(table.drop(columns="d_data_mle_k5")).sensitivity
    assert {fit.dimension: fit for fit in bare}["5 neighbours"].status == "not_enough_data"


def test_rounding_is_no_scatter(table):
    fit = fit_scaling_laws(table.assign(test_accuracy=0.8)).exponent(response="test_error")
    assert (fit.status, fit.reason) == ("not_enough_data", "the errors are the same at every N")
    assert (fit.value, fit.interval) == (None, None)


def test_forms_that_lack_numbers_for_one_reason_share_a_row(table):
    guessing = table.assign(test_loss=np.log(2) * 0.95)
    rows = next(shown for shown in fit_tables(fit_scaling_laws(guessing)) if shown.key == "levels").rows
    about_loss = [row for row in rows if row[:3] == ("log loss", "pooled", "all (10)")]
    (row,) = about_loss
    assert row[3].split("; ")[:2] == ["nothing", "medical (against natural)"]
    assert "1/d, log K_F" in row[3].split("; ")
    assert row[4].startswith("refused: ")
