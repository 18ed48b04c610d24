"""Values of a sweep changed for one run, and classes named in sweep files."""

import numpy as np
import pytest

from orchestrator.planning.plan import plan_sweep
from orchestrator.planning.sweep_file import load_sweep, read_changes, with_changes
from search_spaces.errors import ConfigError


def test_values_are_read_as_in_a_sweep_file():
    words = ["recipe.epochs=3", "train_sizes=[10, 20]", "description=a=b", "seeds=[0]"]
    assert read_changes(words) == {
        "recipe.epochs": 3,
        "train_sizes": [10, 20],
        "description": "a=b",
        "seeds": [0],
    }


@pytest.mark.parametrize("word", ["epochs", "=3", "epochs=", "epochs= "])
def test_a_word_that_is_no_change(word):
    with pytest.raises(ConfigError, match="--set must be KEY=VALUE; found: "):
        read_changes([word])


def test_a_value_that_is_no_number_is_one_value():
    assert list(read_changes(["resources.num_gpus=.nan"])) == ["resources.num_gpus"]


def test_the_document_itself_stays():
    document = {"recipe": "smoke", "datasets": ["mnist5k"]}
    changed = with_changes(document, {"recipe.epochs": 3, "datasets.0.class_pairs": [[3, 8]]})
    assert changed == {
        "recipe": {"from": "smoke", "epochs": 3},
        "datasets": [{"name": "mnist5k", "class_pairs": [[3, 8]]}],
    }
    assert document == {"recipe": "smoke", "datasets": ["mnist5k"]}


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("datasets.1.name", "--set datasets.1.name: the list has places 0 to 0; found: 1"),
        ("datasets.x", "the list has places 0 to 0; found: x"),
        ("name.first", "nothing can be set there; found: 'a'"),
        ("name.first.second", "nothing can be set there; found: 'a'"),
    ],
)
def test_keys_that_lead_nowhere(key, message):
    with pytest.raises(ConfigError, match=message):
        with_changes({"name": "a", "datasets": ["mnist5k"]}, {key: 1})


def sweep(dataset):
    return {
        "name": "mine", "models": ["small_cnn"], "datasets": [dataset], "train_sizes": [20],
        "test_size": 20, "image_size": 28, "recipe": "smoke",
    }  # fmt: skip


def pairs(dataset):
    plan = plan_sweep(load_sweep(sweep(dataset)))
    return [trial.network.subset.class_pair for trial in plan.trials]


def test_classes_of_a_table_go_by_name_or_place():
    named = pairs({"name": "cifar10", "class_pairs": [["cat", "dog"]]})
    assert named == pairs({"name": "cifar10", "class_pairs": [[3, 5]]}) == [(3, 5)]


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (["cat", "dgo"], "Unknown class of cifar10; found: 'dgo'; did you mean 'dog'"),
        (["cat", 3], "class_pairs must name different classes"),
        (["cat", "dog", "frog"], "datasets.0.class_pairs.0: must have at most 2 values; found: "),
        (["cat", "cat"], "a class pair needs two different classes"),
        ([True, 3], "a class is its place, a number from 0, or its name as text"),
        ([-1, 3], "a class is its place, a number from 0, or its name as text"),
        ([1.5, 3], "a class is its place, a number from 0, or its name as text"),
        ([3], "datasets.0.class_pairs.0.1: this value is required"),
    ],
)
def test_pairs_that_are_none(pair, message):
    with pytest.raises(ConfigError, match=message):
        pairs({"name": "cifar10", "class_pairs": [pair]})


@pytest.fixture
def own(tmp_path):
    """Images whose classes are called 3, 5 and 8: places 0, 1 and 2."""
    labels = np.array([3, 5, 8] * 20)
    np.savez(tmp_path / "own.npz", images=np.zeros((60, 8, 8), np.uint8), labels=labels)
    return {"kind": "npz", "path": str(tmp_path / "own.npz"), "domain": "natural"}


def test_own_classes_with_numbers_as_names_are_named_as_text(own):
    assert pairs({"name": "mine", "own": own, "class_pairs": [["3", "8"]]}) == [(0, 2)]
    with pytest.raises(ConfigError, match="Unknown class of mine; found: '4'"):
        pairs({"name": "mine", "own": own, "class_pairs": [["3", "4"]]})


def test_a_recorded_sweep_needs_its_data_no_more(own, tmp_path):
    from orchestrator.planning.sweep_file import sweep_text

    spec = load_sweep(sweep({"name": "mine", "own": own, "class_pairs": [["3", "8"]]}))
    (tmp_path / "own.npz").unlink()
    (tmp_path / "kept.yaml").write_text(sweep_text(spec), encoding="utf-8")
    assert plan_sweep(load_sweep(tmp_path / "kept.yaml")).trials == plan_sweep(spec).trials


def test_a_pair_turned_round_is_the_same_pair():
    with pytest.raises(ConfigError, match=r"each pair once, in one order; found: \[3, 8\]"):
        pairs({"name": "mnist5k", "class_pairs": [[3, 8], ["8", 3]]})
