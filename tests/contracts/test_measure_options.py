"""The options of a measure agree everywhere: command line, sweep file, stored spec and Python.

``MeasureSettings`` declares them.
"""

from dataclasses import fields

import pytest

from orchestrator.cli.data import MethodOptions
from search_spaces.specs import MeasureSpec
from search_spaces.sweeps import SweepSpec
from tasks.measures.records import MeasureSettings

DEFAULTS = {field.name: field.default for field in fields(MeasureSettings)}
SWEEP_OPTIONS = ("num_neighbors", "estimators", "sharpness_sample", "calibrate")


def test_a_command_without_options_measures_with_the_default_settings():
    assert {field.name for field in fields(MethodOptions)} <= DEFAULTS.keys()
    assert MethodOptions().settings() == MeasureSettings()


@pytest.mark.parametrize("declared", [SweepSpec, MeasureSpec])
def test_a_sweep_measures_with_the_default_settings_unless_its_file_changes_them(declared):
    defaults = {name: declared.model_fields[name].default for name in SWEEP_OPTIONS}
    assert defaults == {name: DEFAULTS[name] for name in SWEEP_OPTIONS}


def test_every_measure_option_of_a_sweep_file_is_stored_in_the_spec_of_its_measures():
    shared = SweepSpec.model_fields.keys() & DEFAULTS.keys()
    assert shared == set(SWEEP_OPTIONS)
    assert shared <= MeasureSpec.model_fields.keys()
