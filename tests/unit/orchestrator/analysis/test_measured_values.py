"""What a measured record says, and what in it is no number."""

import pytest

from orchestrator.analysis.measured_values import values_of


def test_a_record_gives_its_numbers_nested_or_plain():
    both = {"d_data": 8.0, "label_sharpness": 1e-4}
    assert values_of(both) == both
    assert values_of({"d_data": {"mle": {"value": 8}}, "label_sharpness": {"value": 1e-4}}) == both
    assert values_of({"d_data": {"mle": 8}, "label_sharpness": 1e-4}) == both


@pytest.mark.parametrize("value", [True, 10**400, "8", None, [8], {"mle": None}, {"mle": {"value": True}}])
def test_what_is_no_number_counts_as_not_measured(value):
    assert values_of({"d_data": value, "label_sharpness": 1e-4}) == {"label_sharpness": 1e-4}
