"""Tables of the study's choices: every row is usable, and published numbers are unchanged."""

from __future__ import annotations

import subprocess
import sys
from importlib.resources import files

import pandas as pd
import pytest

from search_spaces.datasets import DATASETS, GENERATED
from search_spaces.models import MODELS
from search_spaces.published import read_published
from search_spaces.recipes import RECIPES, recipe_spec
from tasks.sources import source_for


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_every_recipe_resolves_for_every_model_and_dataset(recipe):
    for model in MODELS:
        for dataset in DATASETS:
            assert recipe_spec(recipe, model, dataset).name == recipe


def test_importing_a_package_loads_nothing_heavy():
    """One process imports the packages in turn, so each line shows what is loaded by then."""
    packages = ["search_spaces", "isweep", "tasks", "tasks.measures.measure", "orchestrator"]
    packages += ["orchestrator.planning.plan", "orchestrator.cli.app", "orchestrator.analysis"]
    code = (
        "import importlib, sys\nfor name in sys.argv[1:]:\n    importlib.import_module(name)\n"
        "    print({*'torch ray mlflow pandas numpy yaml'.split()} & {*sys.modules})"
    )
    command = [sys.executable, "-c", code, *packages]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    after_search_spaces, after_isweep, *_, after_all = process.stdout.splitlines()
    assert (after_search_spaces, "pandas" in after_isweep) == ("set()", False)
    assert not any(f"'{name}'" in after_all for name in ("torch", "ray", "mlflow")), after_all


@pytest.mark.parametrize("row", [*DATASETS.values(), *GENERATED.values()], ids=lambda row: row.name)
def test_every_row_has_a_source_sound_pairs_and_a_description(row):
    source_for(row.source)
    labels_of_pairs = [label for pair in row.class_pairs for label in pair]
    assert len(set(labels_of_pairs)) == len(labels_of_pairs)
    assert set(labels_of_pairs) <= set(range(len(row.label_names)))
    assert row.origin == "real" or row.description.startswith(row.origin.upper())


@pytest.mark.parametrize(
    "name", ["d_data", "d_repr", "fgsm_loss_gain", "label_sharpness", "test_loss"]
)
def test_published_tables_are_those_that_pandas_reads(name):
    rows = read_published(name)
    theirs = pd.read_csv(
        files("search_spaces.published") / f"{name}.csv", dtype=str, keep_default_na=False
    )
    assert rows == theirs.to_dict("records")
    assert rows
    assert not {"", None} & set(rows[0])
