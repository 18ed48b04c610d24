"""Test the sweep that trains a pilot."""

import shutil

import numpy as np
import pytest

from orchestrator import RunOptions, load_sweep, plan_sweep
from orchestrator.running.pilot import pilot_sweep, run_pilot
from search_spaces.errors import ConfigError, DataError

OUTER = {
    "name": "outer",
    "models": ["small_mlp", "small_cnn"],
    "datasets": [{"name": "digits", "class_pairs": [[3, 8]]}],
    "train_sizes": [40, 160, 20, 80],
    "test_size": 30,
    "image_size": 16,
    "recipe": {
        "from": "smoke",
        "overrides": [
            {"datasets": ["digits"], "learning_rate": 0.5},
            {"models": ["small_cnn"], "learning_rate": 0.25},
            {"models": ["small_mlp", "small_cnn"], "epochs": 2},
        ],
    },
}


@pytest.fixture
def images(tmp_path):
    path = tmp_path / "mine.npz"
    pixels = np.random.default_rng(0).integers(0, 255, (90, 16, 16), dtype=np.uint8)
    np.savez(path, images=pixels, labels=np.arange(90) % 2)
    return str(path)


def test_a_pilot_trains_one_model_on_your_data_with_the_recipe_of_the_sweep(images):
    sweep = pilot_sweep(load_sweep(OUTER), images, "small_mlp")
    trials = [trial.network for trial in plan_sweep(sweep).trials]
    assert [trial.train_size for trial in trials] == [20, 40, 80]
    assert {trial.model.name for trial in trials} == {"small_mlp"}
    assert {trial.recipe.epochs for trial in trials} == {2}
    assert {trial.recipe.learning_rate for trial in trials}.isdisjoint({0.5, 0.25})
    assert (sweep.test_size, sweep.image_size, sweep.attacks.methods) == (30, 16, ())
    assert sweep.name.startswith("outer-pilot-")


def test_more_sizes_extend_a_pilot_and_other_models_or_data_have_another_pilot(images, tmp_path):
    outer = load_sweep(OUTER)
    other_images = shutil.copy(images, tmp_path / "other.npz")
    first = pilot_sweep(outer, images, "small_mlp")
    more = pilot_sweep(outer, images, "small_mlp", train_sizes=(20, 40, 60), test_size=12)
    assert (more.name, more.train_sizes, more.test_size) == (first.name, (20, 40, 60), 12)
    assert pilot_sweep(outer, images, "small_cnn").name != first.name
    pilot_of_other_images = pilot_sweep(outer, str(other_images), "small_mlp")
    assert pilot_of_other_images.datasets[0].name != first.datasets[0].name
    assert pilot_sweep(outer, "mnist5k", "small_mlp").datasets[0].name == "mnist5k"


def test_too_few_images_for_a_pilot_are_refused_with_the_options_of_the_pilot(images, tmp_path):
    options = RunOptions(root=str(tmp_path / "root"), tracking=False)
    with pytest.raises(DataError, match=r"pilot-.*400.*\. Lower `--pilot-sizes` to"):
        run_pilot(load_sweep(OUTER), images, "small_mlp", options, train_sizes=(20, 400))


@pytest.mark.parametrize(
    ("source", "model", "recipe", "message"),
    [
        (
            "absent",
            "small_mlp",
            "smoke",
            "absent is neither a path that exists nor the name of a dataset",
        ),
        (
            "mnist5k",
            "pooled",
            "smoke",
            r"The model is pooled, .*one model\. Choose one model with `--model` \(small_mlp or",
        ),
        ("mnist5k", "x", "smoke", "Unknown model 'x' of the sweep"),
        (
            "mnist5k",
            "small_mlp",
            {"from": "smoke", "epochs": [1, 2]},
            "The recipe of sweep outer has several values of epochs",
        ),
    ],
)
def test_an_impossible_pilot_is_refused(source, model, recipe, message):
    with pytest.raises(ConfigError, match=message):
        pilot_sweep(load_sweep({**OUTER, "recipe": recipe}), source, model)
