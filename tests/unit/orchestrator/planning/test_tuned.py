"""Sweeps that use a searched recipe: by name or path, as part of a trial's identity, only where searched."""

import pytest
import yaml

from orchestrator.planning.plan import Workspace, plan_sweep
from orchestrator.planning.sweep_file import load_sweep
from search_spaces.errors import ConfigError

MINE = {
    "name": "mine",
    "models": ["small_mlp", "small_cnn"],
    "datasets": ["manifold_d4"],
    "train_sizes": [40, 80],
    "test_size": 40,
    "image_size": 16,
    "recipe": "smoke",
}
RECIPE = {
    "from": "smoke",
    "epochs": 9,
    "overrides": [
        {"models": ["small_mlp"], "datasets": ["manifold_d4"], "learning_rate": 0.02, "batch_size": 8},
        {"models": ["small_cnn"], "datasets": ["manifold_d4"], "learning_rate": 0.005, "batch_size": 32},
        {"models": ["small_cnn"], "datasets": ["manifold_d12"], "learning_rate": 0.007, "batch_size": 32},
    ],
    "tuned": {
        "sweep": "mine",
        "cells": [
            {"model": "small_mlp", "dataset": "manifold_d4", "validation_loss": 0.1},
            {"model": "small_cnn", "dataset": "manifold_d4", "validation_loss": 0.2},
            {"model": "small_cnn", "dataset": "manifold_d12", "validation_loss": 0.2},
            {"model": "small_mlp", "dataset": "manifold_d12", "not_tuned": "diverged or failed"},
        ],
    },
}


@pytest.fixture
def recipes(tmp_path):
    folder = tmp_path / "root" / "recipes"
    folder.mkdir(parents=True)
    (folder / "tuned-mine.yaml").write_text(yaml.safe_dump(RECIPE), encoding="utf-8")
    return folder


def found(sweep):
    return {
        (t.network.model.name, t.network.subset.prepared.dataset): (
            t.network.recipe.learning_rate,
            t.network.recipe.batch_size,
            t.network.recipe.epochs,
        )
        for t in plan_sweep(sweep).trials
    }


def test_a_recipe_is_named_in_three_ways(recipes):
    ways = ("tuned", "tuned-mine", str(recipes / "tuned-mine.yaml"))
    sweeps = [load_sweep({**MINE, "recipe": way}, recipes=recipes) for way in ways]
    assert found(sweeps[0]) == {
        ("small_mlp", "manifold_d4"): (0.02, 8, 9),
        ("small_cnn", "manifold_d4"): (0.005, 32, 9),
    }
    ids = [set(plan_sweep(sweep).trials_by_id) for sweep in sweeps]
    assert ids[0] == ids[1] == ids[2]
    longer = load_sweep({**MINE, "recipe": {"from": "tuned", "epochs": 4}}, recipes=recipes)
    assert found(longer)["small_mlp", "manifold_d4"] == (0.02, 8, 4)


def test_the_content_of_the_recipe_is_part_of_a_trials_identity_and_its_evidence_is_not(recipes):
    before = set(plan_sweep(load_sweep({**MINE, "recipe": "tuned"}, recipes=recipes)).trials_by_id)
    path = recipes / "tuned-mine.yaml"
    other = {**RECIPE, "tuned": {**RECIPE["tuned"], "settings": {"budget": 4}}}
    path.write_text(yaml.safe_dump(other), encoding="utf-8")
    assert set(plan_sweep(load_sweep({**MINE, "recipe": "tuned"}, recipes=recipes)).trials_by_id) == before
    other["overrides"][0]["learning_rate"] = 0.03
    path.write_text(yaml.safe_dump(other), encoding="utf-8")
    after = set(plan_sweep(load_sweep({**MINE, "recipe": "tuned"}, recipes=recipes)).trials_by_id)
    assert {name.startswith("small_cnn") for name in before & after} == {True}
    assert len(before & after) == len(before) / 2


def test_a_model_or_dataset_without_a_searched_recipe_is_named(recipes):
    more = {**MINE, "datasets": ["manifold_d4", "manifold_d12"], "models": ["small_mlp", "resnet_tiny"]}
    with pytest.raises(ConfigError, match="searched for every model and dataset of the sweep") as caught:
        load_sweep({**more, "recipe": "tuned"}, recipes=recipes)
    for cell in ("small_mlp on manifold_d12", "resnet_tiny on manifold_d4", "resnet_tiny on manifold_d12"):
        assert cell in str(caught.value)
    assert "small_mlp on manifold_d4" not in str(caught.value)
    assert "add them to sweep mine and tune it again" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "run"),
    [("tuned", "isweep tune other --set recipe=NAME"), ("tuned-absent", "isweep tune absent")],
)
def test_a_recipe_that_nobody_searched_is_refused_with_the_command_that_searches(recipes, name, run):
    with pytest.raises(ConfigError, match="must have been searched below this root") as caught:
        load_sweep({**MINE, "name": "other", "recipe": name}, recipes=recipes)
    assert run in str(caught.value)
    assert "searched recipes there: tuned-mine" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("from: [", "tuned-mine.yaml"),
        ("[1, 2]", "must be a mapping"),
        ("", "must be a mapping"),
        ("{from: smoke, learning_rate: -1, tuned: {cells: []}}", "learning_rate"),
        ("{from: smoke, tuned: {cells: []}}", "none for small_cnn on manifold_d4, small_mlp on manifold_d4"),
        ("{from: smoke, tuned: {cells: [3]}}", "none for small_cnn on manifold_d4"),
        ("{from: smoke, tuned: {}}", "none for small_cnn on manifold_d4"),
        ("{from: smoke, tuned: {cells: 3}}", "none for small_cnn on manifold_d4"),
        ("{from: smoke, overrides: 3, tuned: {cells: []}}", "overrides"),
        (
            "{from: smoke, tuned: {cells: [{model: [1], dataset: {a: b}}]}}",
            "none for small_cnn on manifold_d4",
        ),
    ],
)
def test_a_broken_recipe_file_is_one_message(recipes, text, message):
    (recipes / "tuned-mine.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        load_sweep({**MINE, "recipe": "tuned"}, recipes=recipes)


def test_a_recorded_sweep_keeps_what_it_was_run_with(recipes, tmp_path):
    """A later search must not change what `isweep status` calls the sweep's trials."""
    root = str(tmp_path / "root")
    Workspace.open({**MINE, "recipe": "tuned"}, root).record()
    before = set(Workspace.open("mine", root, as_run=True).plan.trials_by_id)
    (recipes / "tuned-mine.yaml").unlink()
    assert set(Workspace.open("mine", root, as_run=True).plan.trials_by_id) == before


@pytest.mark.parametrize("field", ["learning_rate", "weight_decay", "batch_size"])
def test_what_was_searched_is_not_changed_for_all_without_effect(recipes, field):
    """Rows of the recipe would hold over it; rows of the sweep's own hold over them."""
    value = 8 if field == "batch_size" else 0.5
    for way in ("tuned", str(recipes / "tuned-mine.yaml")):
        with pytest.raises(
            ConfigError, match=f"cannot be changed for all .* recipe.{field}; change it for some"
        ):
            load_sweep({**MINE, "recipe": {"from": way, field: value}}, recipes=recipes)
    row = {"models": ["small_mlp"], field: value}
    sweep = load_sweep({**MINE, "recipe": {"from": "tuned", "overrides": [row]}}, recipes=recipes)
    made = {t.network.recipe for t in plan_sweep(sweep).trials if t.network.model.name == "small_mlp"}
    assert {getattr(recipe, field) for recipe in made} == {value}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (f"tuned-{'a' * 300}", "must have been searched below this root"),
        ("a" * 300, "Unknown recipe"),
        ("~nobody-is-called-so/recipe.yaml", "The recipe file must exist"),
    ],
)
def test_a_name_that_no_file_can_have_is_one_message(recipes, name, message):
    with pytest.raises(ConfigError, match=message):
        load_sweep({**MINE, "recipe": name}, recipes=recipes)
