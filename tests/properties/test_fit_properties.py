"""Promises of the fits that hold for every table, tested on random tables."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.analysis.fits import fit_scaling_laws
from orchestrator.analysis.loss_growth import fit_growth
from orchestrator.analysis.prediction import predict
from orchestrator.analysis.results_tables.csv_files import (
    escape_cell,
    read_csv,
    unescape_cell,
    write_csv,
)
from tests.synthetic import synthetic_table

FEW_EXAMPLES = settings(max_examples=3, suppress_health_check=[HealthCheck.function_scoped_fixture])


def small_table(**parameters):
    """Return a table without attacks and d_repr: 21 rows of seven datasets, whose fits are quick.

    Its largest loss is 0.1, so that no loss is at chance level, which fits treat differently.
    """
    table = synthetic_table(num_natural=3, num_medical=4, **parameters)
    table["test_loss"] *= 0.1 / table["test_loss"].max()
    return table[[name for name in table if not name.startswith(("fgsm", "d_repr"))]]


SEEDS = st.integers(0, 10_000)


@FEW_EXAMPLES
@given(seed=SEEDS, order=st.randoms(use_true_random=False))
def test_row_order_changes_nothing(seed, order):
    table = small_table(seed=seed, trial_std=0.3)
    rows = list(range(len(table)))
    order.shuffle(rows)
    assert fit_scaling_laws(table) == fit_scaling_laws(table.iloc[rows])


@FEW_EXAMPLES
@given(seed=SEEDS, missing_rows=st.sets(st.integers(0, 20), max_size=21))
def test_no_pattern_of_missing_numbers_breaks_the_fits_or_leaks_nan(seed, missing_rows):
    table = small_table(seed=seed, trial_std=0.3)
    rows = sorted(missing_rows)
    table.loc[rows[0::3], "test_loss"] = np.nan
    table.loc[rows[1::3], "d_data_mle"] = np.nan
    table.loc[rows[2::3], "label_sharpness"] = 1.797e308
    fits = fit_scaling_laws(table, explore=True)
    json.dumps(fits.to_json(), allow_nan=False)
    for fit in fits.fits:
        assert (fit.status == "ok") == bool(fit.estimates)
        assert fit.status == "ok" or fit.reason


@FEW_EXAMPLES
@given(
    seed=SEEDS,
    size=st.integers(10, 10**6),
    d_data=st.floats(3, 40),
    sharpness=st.floats(1e-5, 1e-2),
)
def test_predicting_a_size_inverts_predicting_a_loss(seed, size, d_data, sharpness):
    table = small_table(seed=seed)
    mean_d_data = table.groupby("dataset")["d_data_mle"].transform("mean")
    exact = np.exp(8 - np.log(table["train_size"]) / mean_d_data) * table["label_sharpness"]
    fits = fit_growth(table.assign(d_data_mle=mean_d_data, test_loss=exact))
    properties = {"d_data": d_data, "label_sharpness": sharpness}
    loss = predict(fits, train_size=size, **properties).value
    predicted_size = predict(fits, target_loss=loss, **properties).value
    assert predicted_size == pytest.approx(size, rel=1e-3)


@pytest.mark.long
@FEW_EXAMPLES
@given(
    seed=SEEDS,
    factor=st.sampled_from([0.004, 7.0, 1000.0]),
    name=st.sampled_from(["train_size", "label_sharpness", "test_loss"]),
)
def test_no_unit_changes_the_law(seed, factor, name):
    table = small_table(seed=seed, trial_std=0.3)
    # No loss may be at chance level after the change of unit: an exponent may be refused there.
    table["test_loss"] /= 1000
    table["train_size"] = table["train_size"].astype(float)
    original = fit_scaling_laws(table)
    rescaled = fit_scaling_laws(table.assign(**{name: table[name] * factor}))
    fit_pairs = (
        (original.headline(), rescaled.headline()),
        (original.exponent(), rescaled.exponent()),
    )
    for before_fit, after_fit in fit_pairs:
        for before, after in zip(before_fit.estimates, after_fit.estimates, strict=True):
            assert after.value == pytest.approx(before.value, rel=1e-6, abs=1e-9)
            assert after.interval == pytest.approx(before.interval, rel=1e-6, abs=1e-9)
            assert after.resampled_p == pytest.approx(before.resampled_p, abs=1e-3)


@given(st.text())
def test_escaping_a_cell_is_undone(text):
    assert unescape_cell(escape_cell(text)) == text
    assert not str(escape_cell(text)).startswith(("=", "+", "-", "@"))


@FEW_EXAMPLES
@given(
    texts=st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0"), max_size=8), min_size=1
    ),
    data=st.data(),
)
def test_csv_loses_nothing(tmp_path, texts, data):
    numbers = data.draw(
        st.lists(
            st.floats(allow_nan=False, allow_infinity=False),
            min_size=len(texts),
            max_size=len(texts),
        )
    )
    table = pd.DataFrame({"trial_id": texts, "test_loss": numbers})
    back = read_csv(write_csv(table, tmp_path / "results.csv"))
    assert back["trial_id"].tolist() == texts
    assert back["test_loss"].tolist() == numbers
