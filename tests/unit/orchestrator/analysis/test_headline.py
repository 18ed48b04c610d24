"""A sweep's numbers by name, as a tracker takes them."""

import pytest
from mlflow.utils.validation import _validate_metric_name

from orchestrator.analysis import fit_scaling_laws
from orchestrator.analysis.findings import headline
from orchestrator.analysis.synthetic import synthetic_table

pytestmark = pytest.mark.usefixtures("without_priors")


@pytest.fixture(scope="module")
def table():
    return synthetic_table(seed=0)


@pytest.fixture(scope="module")
def fits(table):
    return fit_scaling_laws(table)


def test_best_losses_are_the_lowest(table, fits):
    found = headline(table, fits)
    for name in table["dataset"].unique():
        assert found[f"best_test_loss/{name}"] == min(table.loc[table["dataset"] == name, "test_loss"])


def test_every_coefficient_is_there_with_its_interval(table, fits):
    found, seen = headline(table, fits), 0
    for law in fits.laws:
        for one in law.coefficients:
            path = f"law/{law.law}/{law.model}/{law.subset}/{one.name}"
            assert found[path] == one.value
            if one.interval is not None:
                assert (found[f"{path}/low"], found[f"{path}/high"]) == one.interval
            seen += 1
    for level in fits.levels:
        seen += len(level.coefficients)
    assert seen > 10
    assert sum(name.startswith("level/") and not name.endswith(("/low", "/high")) for name in found) == sum(
        len(level.coefficients) for level in fits.levels
    )


def test_mlflow_takes_every_name(table, fits):
    for name in headline(table, fits):
        _validate_metric_name(name)
