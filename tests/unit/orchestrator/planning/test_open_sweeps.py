"""Sweep files that name their own networks and recipes."""

import re

import numpy as np
import pandas as pd
import pytest

from orchestrator.analysis.table import split_by_recipe
from orchestrator.planning.estimate import extras, extras_text
from orchestrator.planning.plan import plan_sweep
from orchestrator.planning.sweep_file import load_sweep, parse_sweep
from search_spaces.errors import ConfigError
from tasks.trials.scores import to_parquet

BASE = """
name: open
datasets: [manifold_d4, manifold_d12]
train_sizes: [40, 80]
test_size: 40
image_size: 16
"""


def planned(models="[small_cnn, small_mlp]", recipe="smoke", more=""):
    text = f"{BASE}\nmodels: {models}\nrecipe: {recipe}\n{more}\n"
    return plan_sweep(parse_sweep(text, origin="sweep"))


def recipes(plan):
    return {(t.network.model.name, t.network.subset.prepared.dataset): t.network.recipe for t in plan.trials}


def test_a_recipe_is_changed_for_all_and_overridden_for_some():
    changes = (
        "{from: demo, epochs: 7, learning_rate: 3e-4, "
        "overrides: [{models: [small_mlp], datasets: [manifold_d12], learning_rate: 1e-4}]}"
    )
    found = recipes(planned(recipe=changes))
    assert {recipe.epochs for recipe in found.values()} == {7}
    assert {key for key, recipe in found.items() if recipe.learning_rate == 1e-4} == {
        ("small_mlp", "manifold_d12")
    }
    assert found["small_cnn", "manifold_d4"].name == "demo+epochs=7+learning_rate=0.0003"
    assert found["small_cnn", "manifold_d4"].batch_size == 32  # the recipe's own


def test_a_change_that_changes_nothing_is_the_same_network():
    plain = planned(recipe="smoke")
    assert planned(recipe="{from: smoke, epochs: 2}").trials == plain.trials
    assert planned(recipe="{from: smoke, epochs: 3}").trials_by_id.keys().isdisjoint(plain.trials_by_id)


def test_lists_of_values_are_axes_of_the_grid():
    plan = planned(recipe="{from: smoke, learning_rate: [1e-3, 1e-4], batch_size: [8, 16, 32]}")
    assert len(plan.trials) == len(plan.trials_by_id) == 2 * 2 * 2 * 6
    cells = {(t.network.recipe.learning_rate, t.network.recipe.batch_size) for t in plan.trials}
    assert cells == {(rate, size) for rate in (1e-3, 1e-4) for size in (8, 16, 32)}


def test_a_recipe_may_lie_in_a_file_beside_the_sweep_file(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "{from: smoke, epochs: 5, overrides: [{models: [small_cnn], epochs: 6}]}"
    )
    text = f"{BASE}\nmodels: [small_cnn, small_mlp]\nrecipe: {{from: ./mine.yaml, batch_size: 4}}\n"
    (tmp_path / "sweep.yaml").write_text(text)
    found = recipes(plan_sweep(load_sweep(str(tmp_path / "sweep.yaml"))))
    assert [(r.epochs, r.batch_size) for r in found.values()] == [(6, 4), (5, 4), (6, 4), (5, 4)]


def test_recipe_files_that_start_from_one_another_are_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("from: ./b.yaml")
    (tmp_path / "b.yaml").write_text("from: ./a.yaml")
    with pytest.raises(ConfigError, match="must not start from one another"):
        parse_sweep(f"{BASE}\nmodels: [small_cnn]\nrecipe: ./a.yaml\n", origin="sweep", folder=tmp_path)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("{from: papers}", "Unknown recipe; found: 'papers'; did you mean 'paper'"),
        ("{from: smoke, learning_rat: 1}", r"recipe.learning_rat: unknown key; did you mean 'learning_rate'"),
        ("{from: smoke, learning_rate: abc}", r"recipe.learning_rate: .*; found: 'abc'"),
        ("{from: smoke, epochs: [1, -1]}", r"recipe.epochs.1: .*greater than or equal to 0; found: -1"),
        ("{from: smoke, epochs: '3'}", r"recipe.epochs: .*found: '3'"),
        ("{from: smoke, epochs: []}", "recipe.epochs: needs a value"),
        ("{from: smoke, epochs: [3, 3]}", "recipe: epochs names a value more than once"),
        ("{epochs: 3}", "recipe.from: this key is required; write e.g. recipe: {from: demo, epochs: 3}"),
        ("{from: smoke, overrides: [{epochs: [1, 2]}]}", "an override takes one value each; epochs has more"),
        ("{from: smoke, overrides: [{models: [small_cnn]}]}", "an override must change something"),
        ("{from: smoke, overrides: [{models: [vgg13], epochs: 1}]}", "Unknown model of this sweep"),
        ("{from: smoke, overrides: [{datasets: [mnist], epochs: 1}]}", "Unknown dataset of this sweep"),
        ("./nowhere.yaml", "must exist; found: nowhere.yaml; known recipes are: paper, released, demo"),
    ],
)
def test_a_recipe_without_meaning_is_one_clear_message(recipe, message):
    with pytest.raises(ConfigError, match=message):
        planned(recipe=recipe)


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ("[resnet81]", "Unknown model; found: 'resnet81'; did you mean 'resnet18'.*or torchvision:NAME"),
        ("['nowhere.net:build']", "The module of your own network must be found"),
        ("[{frm: small_cnn}]", r"models.0.frm: unknown key"),
        ("[small_cnn, small_cnn]", "models names small_cnn more than once"),
        ("[small_cnn, {from: small_mlp, name: small_cnn}]", "needs a name of its own; found: small_cnn"),
        ("[{from: small_cnn, arguments: {width: 3}}]", "take no arguments; found: width for small_cnn"),
    ],
)
def test_a_model_that_is_none_is_one_clear_message(models, message):
    with pytest.raises(ConfigError, match=message):
        planned(models=models)


def attack_share(found):
    return sum(found["attack_shares"].values())


def test_policies_decide_which_weights_are_kept_and_change_no_identity():
    plans = {policy: planned(more=f"keep_weights: {policy}") for policy in ("all", "last", "none")}
    assert len({frozenset(plan.trials_by_id) for plan in plans.values()}) == 1
    kept = {
        p: {t.network.train_size for t in plan.trials if plan.keeps_weights(t)} for p, plan in plans.items()
    }
    assert kept == {"all": {40, 80}, "last": {80}, "none": set()}
    sizes = [extras(plan, {})["weights_bytes"] for plan in plans.values()]
    assert sizes[0] == 2 * sizes[1] > sizes[2] == 0


def test_measurements_change_no_network():
    plain, more = planned(), planned(more="robustness: {num_images: 9}\nattacks: {methods: [fgsm, pgd]}")
    assert plain.trials_by_id.keys() == more.trials_by_id.keys()
    missing = plain.trials[0].lacks(more.trials[0])
    assert len(missing) == 5  # PGD at four strengths, and R
    assert attack_share(extras(more, {"a": True, "b": False})) > attack_share(extras(plain, {}))


def test_the_disk_of_predictions_is_counted():
    assert extras(planned(), {})["predictions_bytes"] == 0
    assert "predictions" not in extras_text(extras(planned(), {}))
    plan = planned(more="predictions: true")
    found = extras(plan, {})
    (size,) = {trial.network.subset.test_size for trial in plan.trials}
    logits = np.random.default_rng(0).normal(size=(size, 2)).astype(np.float32)
    one = len(to_parquet(logits, np.arange(size) % 2, np.arange(size)))
    assert found["predictions_bytes"] == pytest.approx(one * len(plan.trials), rel=0.3)
    assert "kept predictions: " in extras_text(found)


def test_attacks_are_no_share_of_a_training_that_there_is_not():
    found = extras(planned(recipe="{from: smoke, epochs: 0}"), {})
    assert found["attack_shares"] == {}
    assert extras_text(found).endswith("; nothing is trained")


def test_the_plan_says_by_how_much_attacks_exceed_what_is_meant_and_what_is_cheaper():
    long = "{from: smoke, epochs: 1000}"
    cheap = extras(planned(recipe=long), {})
    assert attack_share(cheap) < 0.15
    assert extras_text(cheap).endswith("% of training")
    dear = extras(
        planned(recipe=long, more="robustness: {num_images: 20}\nattacks: {methods: [fgsm, pgd]}"), {}
    )
    assert list(dear["attack_shares"]) == ["fgsm", "pgd", "robustness"]
    assert re.search(
        r"\(fgsm .*, pgd .*, robustness .*\), [\d.]+ times the 15% that are meant", extras_text(dear)
    )
    assert "300 passes per image and strength, so leave pgd out" in extras_text(dear)
    radii = extras(planned(recipe="{from: smoke, epochs: 100}", more="robustness: {num_images: 40}"), {})
    assert "times the 15% that are meant: a smaller robustness.num_images" in extras_text(radii)


def table(*rows):
    names = ["model", "dataset", "class_pair", "train_size", "seed", "data_mode", "recipe"]
    return pd.DataFrame([dict(zip(names, row, strict=True)) for row in rows])


def test_recipes_that_vary_within_a_cell_part_the_models():
    cell = ("vgg13", "mnist", "", 500, 0, "corrected")
    found = split_by_recipe(table((*cell, "paper+learning_rate=0.001"), (*cell, "paper")))
    assert list(found["model"]) == ["vgg13 (learning_rate=0.001)", "vgg13 (learning_rate=as given)"]
