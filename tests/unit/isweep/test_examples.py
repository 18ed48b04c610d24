"""Docstrings of public functions are complete, and their examples give the output they show."""

import doctest
import inspect

import pytest

import isweep
from orchestrator.cli.app import COMMANDS

FUNCTIONS = [name for name in isweep.__all__ if inspect.isfunction(getattr(isweep, name))]
NEED_RESULTS = {"run", "tune", "compare"}
"""Functions whose examples need the results of a sweep: tests/integration/test_small_sweep.py."""


def examples(name: str) -> list[doctest.DocTest]:
    """Return the examples of a public function."""
    return doctest.DocTestFinder(recurse=False).find(getattr(isweep, name), name)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_docstring_explains_arguments_results_and_errors(name):
    text = inspect.getdoc(getattr(isweep, name))
    for heading in ("Args:", "Returns:", "Raises:", "Example:"):
        assert heading in text, f"{name} lacks {heading}"
    for parameter in inspect.signature(getattr(isweep, name)).parameters:
        assert f"{parameter}:" in text, f"{name} does not explain {parameter}"
    assert sum(len(test.examples) for test in examples(name)) >= 2


@pytest.mark.parametrize("name", sorted({*FUNCTIONS} - NEED_RESULTS))
def test_the_example_of_a_function_gives_its_output(name, root, monkeypatch):
    monkeypatch.setenv("ISWEEP_ROOT", str(root))
    for test in examples(name):
        assert doctest.DocTestRunner().run(test).failed == 0


def test_python_has_a_function_for_every_command_about_results():
    for group in ("Sweeps", "Results", "Predictions"):
        for command in COMMANDS[group]:
            name = command.__name__
            assert name in isweep.__all__ or name in (
                "status",
                "reconcile",
                "results",
                "fit",
                "report",
            )


def test_the_package_knows_its_version():
    assert isweep.__version__ == __import__("importlib.metadata").metadata.version("isweep")
