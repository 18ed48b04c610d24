"""Promises of every estimator of intrinsic dimension in ``ESTIMATORS``."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from orchestrator.results.columns import describe
from search_spaces.errors import ConfigError
from search_spaces.specs import DEFAULT_ESTIMATORS, MEASURE_VERSION, REPRESENTATION_VERSION
from tasks.measures import estimators
from tasks.measures.estimators import ESTIMATORS, FEW_POINTS, Fit, IntrinsicDimension, estimate
from tasks.measures.manifolds import MANIFOLDS
from tasks.measures.measure import intrinsic_dimension
from tasks.measures.neighbors import nested_neighbors
from tests.contracts.rows import check_one_row

GOLDEN = Path(__file__).parents[1] / "golden" / "estimators.json"
INSTRUCTIONS = """
The estimators that are measured by default, or their parameters, changed.
- If you changed a parameter: ids contain only the name of the estimator, so stored results would be
  taken for new ones. Give the row with the new parameter another name. Or increase MEASURE_VERSION and
  REPRESENTATION_VERSION in search_spaces/specs.py, and write the versions and parameters to {path}.
- If you changed DEFAULT_ESTIMATORS: increase MEASURE_VERSION, and write it and the parameters to {path}.
"""


def test_parameters_of_the_default_estimators_are_those_of_their_versions():
    parameters = {name: dict(ESTIMATORS[name].parameters) for name in DEFAULT_ESTIMATORS}
    versions = {"MEASURE": MEASURE_VERSION, "REPRESENTATION": REPRESENTATION_VERSION}
    committed = json.loads(GOLDEN.read_text(encoding="utf-8"))
    today = {"versions": versions, "parameters": parameters}
    assert today == committed, INSTRUCTIONS.format(path=GOLDEN)


def points_on_sphere(dimension: int, num_points: int = 800, seed: int = 0) -> np.ndarray:
    """Return points on a sphere of known dimension, rotated into 20 dimensions.

    The rotation keeps all distances.
    """
    rng = np.random.default_rng(seed)
    sphere = MANIFOLDS["hypersphere"](num_points, dimension, rng)
    rotation, _ = np.linalg.qr(rng.normal(size=(20, dimension + 1)))
    return sphere @ rotation.T


def measure(name: str, points: np.ndarray, **options) -> IntrinsicDimension:
    return intrinsic_dimension(points, estimators=(name,), **options)[name]


@pytest.mark.parametrize("name", ESTIMATORS)
class TestEstimator:
    @pytest.mark.parametrize("dimension", [2, 4])
    def test_it_estimates_a_known_dimension(self, name, dimension):
        record = measure(name, points_on_sphere(dimension))
        assert record.value == pytest.approx(dimension, rel=0.25)
        assert record.reason is None
        assert record.num_points > 0

    def test_its_row_is_complete(self, name):
        row = ESTIMATORS[name]
        check_one_row("tasks/measures/estimators.py", "ESTIMATORS", name)
        assert row.fit.__doc__, f"the function of {name} needs a docstring"
        value, std_error = describe([f"d_data_{name}", f"d_data_{name}_std_error"])
        assert value.origin == std_error.origin == "measure", (
            f"the results table has no columns for {name!r}: a name has lower-case letters, digits "
            "and underscores, and begins with a letter"
        )
        assert std_error.meaning.startswith("standard error"), name
        assert row.required_neighbors(20) in range(1, 21), (
            f"`required_neighbors` of row {name!r} must return a whole number from 1 to its argument"
        )

    def test_the_estimate_rises_with_the_dimension(self, name):
        values = [measure(name, points_on_sphere(dimension)).value for dimension in (1, 3, 6)]
        assert values == sorted(values)

    def test_unit_and_order_of_the_points_do_not_matter(self, name):
        points = points_on_sphere(3)
        expected = measure(name, points).value
        assert measure(name, points * 1000).value == pytest.approx(expected, rel=1e-4)
        assert measure(name, points[::-1]).value == pytest.approx(expected, rel=1e-4)

    def test_the_record_is_named_reproducible_and_finite_json(self, name):
        points = points_on_sphere(2, 300)
        record = measure(name, points, seed=3)
        assert record.estimator == name
        assert record.convention
        assert record.std_error is None or 0 < record.std_error < np.inf
        assert json.dumps(record.to_json(), allow_nan=False)
        assert measure(name, points, seed=3) == record

    def test_every_point_is_used_or_counted_as_dropped(self, name):
        record = measure(name, points_on_sphere(2, 300))
        assert record.num_points + record.num_dropped == 300

    @pytest.mark.parametrize("num_points", [1, 2])
    def test_too_few_points_are_undefined_with_a_reason(self, name, num_points):
        record = measure(name, points_on_sphere(2, num_points))
        assert record.value is None
        assert record.reason
        assert json.dumps(record.to_json(), allow_nan=False)

    def test_equally_far_points_are_undefined_with_a_reason(self, name):
        record = measure(name, np.eye(50))
        assert record.value is None
        assert record.reason

    def test_a_value_of_few_points_has_a_remark(self, name):
        too_few = measure(name, points_on_sphere(2, FEW_POINTS - 1), num_neighbors=4)
        enough = measure(name, points_on_sphere(2, FEW_POINTS), num_neighbors=4)
        assert "remark" in too_few.details
        assert "remark" not in enough.details

    def test_its_parameters_are_in_the_record_and_in_the_convention(self, name):
        row = ESTIMATORS[name]
        record = measure(name, points_on_sphere(2, 300))
        assert row.parameters.items() <= record.to_json().items()
        assert record.convention == row.convention.format(**row.parameters)

    def test_a_row_with_other_parameters_is_another_estimator(self, name, monkeypatch):
        row = ESTIMATORS[name]
        if not row.parameters:
            pytest.skip("has no parameters")
        table = nested_neighbors(points_on_sphere(2, 300), None, [300], 20).tables[0]
        original = estimate(table, estimators=[name])[name]
        for parameter, value in row.parameters.items():
            variant = replace(row, parameters={**row.parameters, parameter: value / 2})
            monkeypatch.setitem(ESTIMATORS, "variant", variant)
            records = estimate(table, estimators=[name, "variant"])
            assert records["variant"].value != original.value
            assert records["variant"].details[parameter] == value / 2
            assert records[name] == original
            other = {name: {parameter: value / 4}}
            records = estimate(table, estimators=[name, "variant"], parameters=other)
            assert records[name].details[parameter] == value / 4
            assert records["variant"].details[parameter] == value / 2


def test_a_message_names_the_row_whose_function_returns_no_fit(monkeypatch):
    row = replace(ESTIMATORS["mle"], fit=lambda neighborhoods: 4.0)
    monkeypatch.setitem(ESTIMATORS, "new", row)
    with pytest.raises(ConfigError, match="row 'new': the function `fit` returned float instead"):
        measure("new", points_on_sphere(2, 300))


def test_a_parameter_with_the_name_of_a_field_of_the_record_is_refused(monkeypatch):
    """Otherwise, the parameter would replace the field in the JSON of the record."""
    row = replace(ESTIMATORS["mle"], convention="order {value}", parameters={"value": 2.0})
    monkeypatch.setitem(ESTIMATORS, "new", row)
    with pytest.raises(ConfigError, match="'new' has parameters or details with the names value,"):
        measure("new", points_on_sphere(2, 300))


def test_a_message_names_the_row_whose_function_reads_an_unknown_parameter(monkeypatch):
    def fit(neighborhoods):
        return Fit(value=neighborhoods.parameters["oder"])

    row = replace(ESTIMATORS["mle"], fit=fit, convention="{order}", parameters={"order": 2.0})
    monkeypatch.setitem(ESTIMATORS, "new", row)
    with pytest.raises(
        ConfigError,
        match=r"Unknown parameter 'oder' of row 'new' of ESTIMATORS\. Did you mean 'order'",
    ):
        measure("new", points_on_sphere(2, 300))


def test_the_function_and_row_in_contributing_are_an_estimator(monkeypatch):
    text = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (example,) = re.findall("```python\n(def fit_.*?)```", text, re.DOTALL)
    monkeypatch.setitem(ESTIMATORS, "mean_ratio", None)
    exec(example, vars(estimators) | {})
    assert measure("mean_ratio", points_on_sphere(4)).value == pytest.approx(4, rel=0.25)
    assert measure("mean_ratio", np.eye(50)).value is None


def test_an_estimator_can_give_its_own_reason_for_an_undefined_dimension(monkeypatch):
    row = replace(ESTIMATORS["mle"], fit=lambda neighborhoods: Fit(reason="the tree is empty"))
    monkeypatch.setitem(ESTIMATORS, "new", row)
    assert measure("new", points_on_sphere(2, 300)).reason == "the tree is empty"
    with pytest.raises(ValueError, match="A Fit without a value needs a reason"):
        Fit()


@pytest.mark.parametrize(
    ("convention", "parameters"), [("no braces", {"p": 1.0}), ("{q} of something", {})]
)
def test_a_row_whose_convention_has_other_parameters_is_refused(convention, parameters):
    with pytest.raises(ValueError, match=r"its convention has .* in braces"):
        replace(ESTIMATORS["mle"], convention=convention, parameters=parameters)
