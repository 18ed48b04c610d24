"""The tables of what the study chooses agree with each other, and importing them is light."""

import subprocess
import sys

import pytest

from search_spaces.datasets import DATASETS
from search_spaces.errors import ConfigError
from search_spaces.models import MODELS, PAPER_MODELS, model_spec
from search_spaces.recipes import RECIPES, recipe_spec


def test_the_papers_models_are_torchvisions():
    assert {(MODELS[name].library, MODELS[name].architecture) for name in PAPER_MODELS} == {
        ("torchvision", name) for name in PAPER_MODELS
    }


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_every_recipe_resolves_for_every_model_and_dataset(recipe):
    for model in MODELS:
        for dataset in DATASETS:
            assert recipe_spec(recipe, model, dataset).name == recipe


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="Unknown model; found: 'vgg133'; did you mean 'vgg13'"):
        model_spec("vgg133")
    with pytest.raises(ConfigError, match="Unknown recipe; found: 'papers'; did you mean 'paper'"):
        recipe_spec("papers", "vgg13", "mnist")


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("search_spaces", {"torch", "ray", "mlflow", "numpy", "pandas", "yaml"}),
        ("tasks", {"torch", "ray", "mlflow"}),
        ("orchestrator", {"torch", "ray", "mlflow"}),
        ("orchestrator.cli.app", {"torch", "ray", "mlflow"}),
        ("orchestrator.analysis", {"torch", "ray", "mlflow"}),
        ("orchestrator.planning.plan", {"torch", "ray", "mlflow"}),
    ],
)
def test_importing_a_package_loads_nothing_heavy(package, forbidden):
    code = f"import sys, {package}; print(*sorted(set({sorted(forbidden)}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
