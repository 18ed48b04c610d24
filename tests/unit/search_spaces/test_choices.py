"""The tables of what the study chooses agree with each other, and importing them is light."""

import subprocess
import sys

import pytest

from search_spaces.datasets import DATASETS
from search_spaces.models import MODELS
from search_spaces.recipes import RECIPES, recipe_spec


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_every_recipe_resolves_for_every_model_and_dataset(recipe):
    for model in MODELS:
        for dataset in DATASETS:
            assert recipe_spec(recipe, model, dataset).name == recipe


def test_importing_a_package_loads_nothing_heavy():
    """In one process, of which each package loads more."""
    packages = ["search_spaces", "isweep", "tasks", "tasks.measures.measure", "orchestrator"]
    packages += ["orchestrator.planning.plan", "orchestrator.cli.app", "orchestrator.analysis"]
    code = (
        "import importlib, sys\nfor name in sys.argv[1:]:\n    importlib.import_module(name)\n"
        "    print({*'torch ray mlflow pandas numpy yaml'.split()} & {*sys.modules})"
    )
    words = [sys.executable, "-c", code, *packages]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    first, second, *_, last = done.stdout.splitlines()
    assert (first, "pandas" in second) == ("set()", False)
    assert not any(f"'{name}'" in last for name in ("torch", "ray", "mlflow")), last
