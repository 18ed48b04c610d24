"""Test reading the values of a measured record, numbers and others."""

from dataclasses import replace

import pytest

from orchestrator.analysis.prediction_inputs import check_scale, values_of
from orchestrator.analysis.results_tables.sharpness_scale import SharpnessScale
from search_spaces.errors import ConfigError


def test_numbers_of_a_record_are_read_nested_or_plain():
    plain_record = {"d_data": 8.0, "label_sharpness": 1e-4}
    assert values_of(plain_record) == plain_record
    nested_record = {"d_data": {"mle": {"value": 8}}, "label_sharpness": {"value": 1e-4}}
    assert values_of(nested_record) == plain_record
    assert values_of({"d_data": {"mle": 8}, "label_sharpness": 1e-4}) == plain_record


@pytest.mark.parametrize(
    "value", [True, 10**400, "8", None, [8], {"mle": None}, {"mle": {"value": True}}]
)
def test_a_value_that_is_no_number_counts_as_not_measured(value):
    assert values_of({"d_data": value, "label_sharpness": 1e-4}) == {"label_sharpness": 1e-4}


def measured_record(**changes):
    sharpness = {"value": 1e-4, "pixel_range": [0.0, 255.0], "side": [32, 32], "channels": 1}
    return {"d_data": 8.0, "label_sharpness": sharpness | changes}


SCALE = SharpnessScale(
    comparable=True,
    policy="refuse",
    note="",
    scales=(("32×32 pixels, 1 channel, range 255", ("a",)),),
)


@pytest.mark.parametrize(
    ("changes", "scale"),
    [
        ({"side": [224, 224]}, "224×224 pixels, 1 channel, range 255"),
        ({"channels": 3}, "32×32 pixels, 3 channels, range 255"),
        ({"pixel_range": [0.0, 1.0]}, "32×32 pixels, 1 channel, range 1"),
        ({"pixel_range": None}, "unrecorded scale"),
        ({"side": None}, "unrecorded scale"),
    ],
)
def test_sharpness_on_another_scale_than_the_sweeps_is_refused(changes, scale):
    check_scale(measured_record(), SCALE)
    message = rf"another scale \({scale}\) than K_F of the sweep \(32×32"
    with pytest.raises(ConfigError, match=message):
        check_scale(measured_record(**changes), SCALE)


def test_a_plain_number_or_an_unrecorded_sweep_is_not_refused():
    for record in ({"label_sharpness": 1e-4}, {}):
        check_scale(record, SCALE)
    several = (*SCALE.scales, ("64×64 pixels, 1 channel, range 255", ("b",)))
    unrecorded = (("32×32 pixels, 1 channel, unrecorded range", ("a",)),)
    for scales in ((), several, unrecorded):
        scale_of_sweep = replace(SCALE, scales=scales)
        check_scale(measured_record(channels=3), scale_of_sweep)
