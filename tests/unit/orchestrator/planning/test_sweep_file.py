import os
import re
from importlib.metadata import EntryPoint

import numpy as np
import pandas as pd
import pytest
import yaml

from orchestrator.analysis.results_tables.checks import split_by_recipe
from orchestrator.planning.estimate_text import extras_text
from orchestrator.planning.extra_costs import extras
from orchestrator.planning.plan import plan_sweep
from orchestrator.planning.sweep_changes import read_changes, with_changes
from orchestrator.planning.sweep_file import load_sweep, parse_sweep
from orchestrator.planning.workspace import Workspace
from search_spaces.attacks import ATTACKS
from search_spaces.errors import ConfigError
from tasks import sources
from tasks.trials.scores import to_parquet

GOOD = """
name: mine
models: [small_cnn]
datasets: [mnist5k]
train_sizes: [20, 40]
test_size: 20
image_size: 28
recipe: smoke
"""


def parse(text: str):
    return parse_sweep(text, origin="mine.yaml")


def test_all_mistakes_are_reported_at_once():
    text = GOOD.replace("small_cnn", "resnet19").replace("[20, 40]", "[20, x]") + "epoch: 3\n"
    with pytest.raises(ConfigError) as caught:
        parse(text)
    message = str(caught.value)
    assert "3 problems found" in message
    assert "`epoch` is not a known key" in message
    assert "value 2 of `train_sizes` is 'x', but must be a whole number" in message
    assert re.search("'resnet19'.*'resnet18'", message)


def good_with(old, new):
    """Return the valid sweep file with one part replaced."""
    assert old in GOOD
    return GOOD.replace(old, new, 1)


def good_with_dataset(text):
    return good_with("[mnist5k]", f"[{{{text}}}]")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            good_with("mine", "Mine!"),
            r"`name` is 'Mine!', which is not a valid name\. Use at most 64 lower case letters",
        ),
        (good_with("[mnist5k]", "[mnist5]"), r"Unknown dataset.*'mnist5'.*'mnist5k'"),
        (good_with("smoke", "smok"), r"Unknown recipe.*'smok'.*'smoke'"),
        (good_with("[20, 40]", "[]"), r"`train_sizes` is empty\. Add at least one value"),
        (good_with("[20, 40]", "[20, 20]"), r"`train_sizes` lists 20 more than once"),
        (
            good_with("size: 20", "size: '20'"),
            r"`test_size` is '20', but must be a whole number",
        ),
        (
            good_with("size: 20", "size: 12:30"),
            r"`test_size` is '12:30', but must be a whole number",
        ),
        (good_with("test_size: 20", "seeds: [-1]"), r"`test_size` is missing"),
        (
            good_with("test_size: 20", "tset_size: 20"),
            r"`tset_size` is not a known key. Did you mean 'test_size'\?",
        ),
        (
            good_with("name: mine", "name: mine\nname: other"),
            r'line 3, column 1 repeats the key "name"',
        ),
        (
            good_with("mine", "&a mine"),
            r"line 2, column 7 has an anchor \(&\) or an alias \(\*\)\. Write the whole value",
        ),
        (
            good_with("mine", "!!python/object/apply:os.system [ls]"),
            r"line 2, column 7 has the tag",
        ),
        (
            good_with("datasets: [mnist5k]", "test_sise: 3"),
            r"`test_sise` .*\n.* has neither `datasets` nor `wo",
        ),
        (good_with("mine", '"C:\\Users"'), r"a backslash in double quotes. Write / in a path"),
        (
            good_with("models: [small_cnn]", "models: [{name: mine}]"),
            r"models\.mine\.from` is missing\. Write, for example, `models",
        ),
        (good_with("name: mine", "name: mine\n5: 6"), r"`5` is not a known key"),
        (
            good_with("[mnist5k]", "[mnist5k, mnist5k]"),
            r"`datasets` lists mnist5k more than once",
        ),
        (good_with("size: 28", "size: 1e400"), r"image_size"),
        (
            good_with_dataset("name: mnist5k, own: {kind: folder, path: x, domain: medical}"),
            r"Your dataset has the name 'mnist5k', which is the name of a known dataset",
        ),
        (
            good_with_dataset("name: mine, own: {kind: csv, path: x, domain: medical, modalty: x}"),
            (
                r"^`datasets\.mine\.own\.modalty` is not a known key\. Did you mean 'modality'\? Use one "
                r"of these keys: kind, path"
            ),
        ),
        (
            good_with_dataset("name: mine, own: {kind: foldr, path: x, domain: medical}"),
            r"Unknown kind.*'foldr'",
        ),
        (
            good_with_dataset("name: mine, own: {kind: csv, path: x}"),
            r"^The key `datasets\.mine\.own\.domain` is missing",
        ),
        (
            good_with_dataset("name: mine, own: {kind: csv, path: x, domain: null}"),
            r"`own` has no domain\. Add `domain: natural`",
        ),
        (
            GOOD + "resources: {cpus: 1}",
            r"`resources\.cpus` is not a known key\. Did you mean 'num_cpus'\? Use",
        ),
        (
            GOOD + "resources: {num_gpus: 0.00001}",
            r"`resources.num_gpus` is 1e-05, but must be 0, or at least 0\.0001 of a GPU",
        ),
        (
            GOOD + "worlds: [{name: g, from: generated, dial: {gap: 9}}]",
            r"^`worlds\.g\.dial` is not a known key\. Did you mean 'dials'\? .*: from, dials, name\.",
        ),
        (
            GOOD + "worlds: [{name: g, from: generated, dials: {gap: true}}]",
            r"^`worlds\.g\.dials\.gap` is True, but must be a number",
        ),
        (
            GOOD + "worlds: [{name: g, from: generated, dials: {gap: 900}}]",
            r"^`worlds\.g`: `dials\.gap` is 900, but must be a number from 0 to 400\.$",
        ),
        (
            GOOD + "attacks: {methods: [pgd], parameters: {pgd: {num_steps: many}}}",
            r"^`attacks\.parameters\.pgd\.num_steps` is 'many', but must be a number\.$",
        ),
        (
            GOOD + "arms: [{name: a, moves: nothing, dials: {gap: 9}, world: [g]}]",
            r"^`arms\.a\.world` is not a known key\. Did you mean 'worlds'\? .*: name, moves, dials, ",
        ),
        (GOOD + "base_datasets: []", r"^`base_datasets` is not a known key"),
        (
            GOOD + "resources: {num_cpus: 0.00001}",
            r"`resources.num_cpus` is 1e-05, but must be at least 0\.0001",
        ),
        (
            GOOD + "resources: {num_gpus: 1.5}",
            r"`resources.num_gpus` is 1\.5, but must be a fraction below 1 or a whole number, ",
        ),
        (
            GOOD + "attacks: {models: 1}",
            r"`attacks\.models` is not a known key\. .*these keys: methods, epsilons, parameters\.",
        ),
        (
            GOOD + "attacks: {epsilons: [0]}",
            r"value 1 of `attacks\.epsilons` is 0, but must be above 0",
        ),
        (GOOD + "attacks: {epsilons: [1.0, 1.0]}", r"`attacks\.epsilons` .* 1\.0 more than once"),
        (
            GOOD + "attacks: {epsilons: [0.03, 0.3]}",
            r"`attacks\.epsilons` .*all values are below 0\.5\. .*1/255 .* 8 for 8/255",
        ),
        (GOOD + "estimators: []", r"`estimators` is empty"),
        (GOOD + "estimators: [mlee]", r"Unknown estimator.*'mlee'.*'mle'"),
        (GOOD + f"seeds: [{2**63}]", r"value 1 of `seeds` is .*must be below 9223372036854775808"),
        (GOOD + "estimators: mle", r"^`estimators` is 'mle', but should be a list"),
        (
            GOOD.replace(
                "datasets: [",
                "datasets: [{name: m, own: {path: x, domain: natural, "
                "label_map: {10: cat, 9: 7, 8: dog}}}, ",
                1,
            ),
            r"`datasets\.m\.own\.label_map\.9` is 7, but must be text",
        ),
        (
            GOOD.replace(
                "datasets: [",
                "datasets: [{name: m, own: {path: x, domain: natural, "
                "label_map: {0: cat, 1: dog, '1': x}}}, ",
                1,
            ),
            r"has the key '1' twice in one mapping, once as a number and once as text",
        ),
        (GOOD + "calibrate: no", r"`calibrate` is 'no', but must be true or false"),
        (GOOD + "<<: {calibrate: true}", r"has the merge key <<\. Remove it"),
        (
            GOOD + "own: {domain: natural}",
            r"^`own` is a key of each entry of `datasets`, not of the sweep itself\. In the sweep",
        ),
        (
            GOOD.replace("datasets: [", "datasets: [{name: m, path: x, own: {kind: folder}}, ", 1),
            r"`datasets\.m\.path` is a key of `own`, not of the entry of `datasets` itself\. Move",
        ),
        (
            GOOD + "learning_rate: 0.1",
            r"^`learning_rate` is a key of `recipe`, .* Write, for example, `recipe: {f",
        ),
        (
            GOOD + "description: !!binary aGVsbG8=",
            r"line 9, column 14 has the tag tag:yaml.org,2002:binary",
        ),
        (
            GOOD + "description: 2024-01-01",
            r"line 9, column 14 has '2024-01-01' without quotes\. Put the text in quotes",
        ),
        (GOOD + "description: =", r"line 9, column 14 has '=' without quotes"),
        (GOOD + "description: \0", r"unacceptable character #x0000"),
        (GOOD + 'description: "\\ud800"', r"has the character '\\ud800', which cannot be saved"),
        (
            GOOD
            + "worlds: [{name: a, from: generated}, {name: a_b, from: generated}]\n"
            + "arms: [{name: b_c, moves: nothing, dials: {gap: 9}},"
            + " {name: c, moves: nothing, dials: {gap: 8}}]",
            r"the sweep has several datasets with the name a_b_c\. .* Rename a world, an arm or",
        ),
    ],
    ids=range(54),
)
def test_a_mistake_names_the_key_the_value_and_the_rule(text, message):
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("- a\n- b", "contains a list, but should contain keys with values"),
        ("a: [b\nc: [d]", "line 1, column 4 has a bracket that is not closed"),
        (
            "a: 1\nname:x\nb: 2",
            r"line 2, column 1 has a key without a value\. Write a colon and a space after the key",
        ),
        ("name: x\n a: [b]", "line 2, column 3 has a colon in a wrong place"),
        ("a:\n    b: 1\n  c: 2", "line 3, column 3 is not indented like the lines above"),
        (
            'a: "C:\\data"',
            r"line 1, column 8 has a backslash in double quotes\. Write / in a path, or use single",
        ),
        (
            "a: @x",
            r"line 1, column 4 has a character that no value can begin with\. Put the text in quo",
        ),
        ("a: *", r"line 1, column 5 has \* or & at the beginning of a value"),
        ("a: ]", "line 1, column 4 has a character in a wrong place"),
        (
            "a: &a [x]\n" + "".join(f"b{i}: [*a, *a]\n" for i in range(40)),
            r"line 1, column 4 has an anchor \(&\) or",
        ),
        (
            GOOD + "seeds: [" + "1, " * 50_000 + "]",
            r"has more than 20,000 values\. Split the file",
        ),
        (GOOD + "seeds: [" + "1" * 90_000 + "]", r"is not YAML: Exceeds the limit"),
        (
            GOOD.replace("small_cnn", ", ".join(f"x{i}" for i in range(2_000))),
            r"'x19'(?s:.)*The sweep has 1 more problem\.$",
        ),
        (
            GOOD.replace("20, 40", "x, " * 900),
            r"value 20 of `train_sizes` is (?s:.)*The sweep has 880 more problems\.$",
        ),
        ("[" * 90_000, r"line 1, column 21 has more than 20 levels of nesting"),
        ("a: 'x" + "b " * 40_000, r"line 1, column 4 has a quote that is not closed"),
        (
            GOOD.replace("name: mine", 'name: "a\\0b"'),
            r"`name` is 'a\\x00b', which is not a valid name",
        ),
        (
            "%YAML 1.1\n---\n" + GOOD + "calibrate: no",
            r"line 2, column 1 has a %YAML line\. Remove the line",
        ),
        (
            GOOD + "---\n" + GOOD,
            r"line 9, column 1 begins a second YAML document\. Remove the line with",
        ),
        ("? [a]\n: 1\n", r"a value that is not allowed in a sweep file: keys must be str"),
        ("{{a: 1}: 2}", r"unhashable key"),
        (
            GOOD.replace("20, 40", "9" * 30),
            r"value 1 of `train_sizes` is 9+, but must be at most 1000000000",
        ),
        (
            GOOD.replace("smoke", "/etc/passwd"),
            r"/etc/passwd contains a single value, but should contain keys with values\. Write, for",
        ),
    ],
    ids=range(24),
)
def test_a_malicious_file_is_refused_with_one_message(text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        parse(text)
    assert len(str(caught.value)) < 10_000


def test_words_stay_text_and_numbers_with_an_exponent_are_numbers():
    for text in ("no", "12:30", "'2024-01-01'"):
        assert parse(GOOD + f"description: {text}\n").description == text.strip("'")
    assert parse(GOOD + "attacks: {epsilons: [5e-1]}\n").attacks.epsilons == (0.5,)


def test_a_wrong_dataset_gives_no_second_message():
    with pytest.raises(
        ConfigError, match=r"^`datasets\.mnist5k\.nam` is not a known key\. Did you mean 'name'"
    ) as caught:
        parse(GOOD.replace("[mnist5k]", "[{name: mnist5k, nam: x}]"))
    assert "is empty" not in str(caught.value)


@pytest.mark.parametrize("name", ["", "x y", "x.y", "x" * 65])
def test_a_dataset_whose_name_is_no_name_is_shown_by_its_index(name):
    with pytest.raises(ConfigError, match=r"`datasets\.0\.nam` is not a known key"):
        parse(GOOD.replace("[mnist5k]", f"[{{name: {name!r}, nam: x}}]"))


def test_kinds_of_data_from_other_packages_are_accepted(monkeypatch):
    point = EntryPoint("theirs", "elsewhere:Theirs", "isweep.sources")
    monkeypatch.setattr(sources, "entry_points", lambda group: [point])
    datasets = "[{name: mine, own: {kind: theirs, path: x, domain: medical}}]"
    sweep = parse(GOOD.replace("[mnist5k]", datasets))
    assert sweep.datasets[0].user_source.kind == "theirs"


def test_files_that_cannot_be_read_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "binary.yaml").write_bytes(b"# a\n\xff\n")
    (tmp_path / "big.yaml").write_bytes(b"#" * 1_000_001)
    text = good_with_dataset(
        "name: mine, own: {kind: folder, path: ~nobody-of-this-name/x, domain: medical}"
    )
    (tmp_path / "home.yaml").write_text(text, encoding="utf-8")
    for name, message in {
        "pipe": r"pipe\.yaml is not a regular file",
        "folder": r"folder\.yaml is a folder, not a sweep file\. .* with `isweep init .*folder\.yaml`",
        "hom": r"hom\.yaml does not exist\. .*home\.yaml",
        "absent": r"The sweep file .*absent\.yaml does not exist\. .*use a preset: .*demo",
        "binary": r"binary\.yaml, line 2, is not UTF-8 text\. Save the file as UTF-8",
        "big": "big.yaml has 1,000,001 bytes, but a sweep file can have at most 1,000,000",
        "home": "own.path` starts with ~, but isweep cannot find this home folder: ~nobody-of",
    }.items():
        with pytest.raises(ConfigError, match=message):
            load_sweep(str(tmp_path / f"{name}.yaml"))


@pytest.mark.parametrize(
    ("path", "expected"), [("images", "{folder}/images"), ("/data/x", "/data/x")]
)
def test_paths_of_your_data_are_relative_to_the_sweep_file(tmp_path, monkeypatch, path, expected):
    file = tmp_path / "mine.yaml"
    text = good_with_dataset(f"name: own, own: {{kind: folder, path: {path}, domain: medical}}")
    file.write_text("\ufeff" + text, encoding="utf-8")
    # A sweep that ran as ./mine.yaml is read again from the folder of its root.
    monkeypatch.chdir(tmp_path)
    for name in (str(file), "./mine.yaml"):
        assert load_sweep(name).datasets[0].user_source.path == expected.format(folder=tmp_path)


MINE = {
    "name": "mine",
    "models": ["small_mlp", "small_cnn"],
    "datasets": ["manifold_d4"],
    "train_sizes": [40, 80],
    "test_size": 40,
    "image_size": 16,
    "recipe": "smoke",
}
TUNED_VALUES = [
    # (model, dataset, learning rate, batch size)
    ("small_mlp", "manifold_d4", 0.02, 8),
    ("small_cnn", "manifold_d4", 0.005, 32),
    ("small_cnn", "manifold_d12", 0.007, 32),
]
CELLS: list[dict[str, object]] = [
    {"model": model, "dataset": dataset, "validation_loss": 0.1}
    for model, dataset, *_ in TUNED_VALUES
]
CELLS += [{"model": "small_mlp", "dataset": "manifold_d12", "not_tuned": "diverged or failed"}]
RECIPE = {
    "from": "smoke",
    "epochs": 9,
    "overrides": [
        {"models": [model], "datasets": [dataset], "learning_rate": rate, "batch_size": size}
        for model, dataset, rate, size in TUNED_VALUES
    ],
    "tuned": {"sweep": "mine", "cells": CELLS},
}


@pytest.fixture
def recipes(tmp_path):
    folder = tmp_path / "root" / "recipes"
    folder.mkdir(parents=True)
    (folder / "tuned-mine.yaml").write_text(yaml.safe_dump(RECIPE), encoding="utf-8")
    return folder


def recipes_in_plan(plan):
    """Return the recipe of each (model, dataset)."""
    networks = [trial.network for trial in plan.trials]
    return {
        (network.model.name, network.subset.prepared.dataset): network.recipe
        for network in networks
    }


def recipe_values(sweep):
    """Return learning rate, batch size and epochs of each (model, dataset)."""
    recipes = recipes_in_plan(plan_sweep(sweep))
    return {
        combination: (recipe.learning_rate, recipe.batch_size, recipe.epochs)
        for combination, recipe in recipes.items()
    }


def test_a_tuned_recipe_can_be_named_in_three_ways(recipes):
    names = ("tuned", "tuned-mine", str(recipes / "tuned-mine.yaml"))
    sweeps = [load_sweep({**MINE, "recipe": name}, recipes=recipes) for name in names]
    assert recipe_values(sweeps[0]) == {
        ("small_mlp", "manifold_d4"): (0.02, 8, 9),
        ("small_cnn", "manifold_d4"): (0.005, 32, 9),
    }
    ids = [set(plan_sweep(sweep).trials_by_id) for sweep in sweeps]
    assert ids[0] == ids[1] == ids[2]
    longer = load_sweep({**MINE, "recipe": {"from": "tuned", "epochs": 4}}, recipes=recipes)
    assert recipe_values(longer)["small_mlp", "manifold_d4"] == (0.02, 8, 4)


def test_a_trial_id_depends_on_the_values_of_the_recipe_and_not_on_its_evidence(recipes):
    def planned_ids():
        sweep = load_sweep({**MINE, "recipe": "tuned"}, recipes=recipes)
        return set(plan_sweep(sweep).trials_by_id)

    before = planned_ids()
    path = recipes / "tuned-mine.yaml"
    changed_recipe = {**RECIPE, "tuned": {**RECIPE["tuned"], "settings": {"budget": 4}}}
    path.write_text(yaml.safe_dump(changed_recipe), encoding="utf-8")
    assert planned_ids() == before
    changed_recipe["overrides"][0]["learning_rate"] = 0.03
    path.write_text(yaml.safe_dump(changed_recipe), encoding="utf-8")
    after = planned_ids()
    assert {name.startswith("small_cnn") for name in before & after} == {True}
    assert len(before & after) == len(before) / 2


def test_a_model_or_dataset_without_a_tuned_recipe_is_named(recipes):
    larger_sweep = {
        **MINE,
        "datasets": ["manifold_d4", "manifold_d12"],
        "models": ["small_mlp", "resnet_tiny"],
    }
    with pytest.raises(
        ConfigError, match="The recipe that `isweep tune` wrote has no values for"
    ) as caught:
        load_sweep({**larger_sweep, "recipe": "tuned"}, recipes=recipes)
    for combination in (
        "small_mlp on manifold_d12",
        "resnet_tiny on manifold_d4",
        "resnet_tiny on manifold_d12",
    ):
        assert combination in str(caught.value)
    assert "small_mlp on manifold_d4" not in str(caught.value)
    assert "to the sweep mine and run `isweep tune mine` again" in str(caught.value)


SEARCHED = r"writes the recipe .*, but .* does not exist\. {}.* into this root: tuned-mine"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tuned", SEARCHED.format("Run `isweep tune other --set recipe=NAME` first")),
        ("tuned-absent", SEARCHED.format("Run `isweep tune absent` first")),
        (f"tuned-{'a' * 300}", "`isweep tune` writes the recipe"),
        ("a" * 300, "Unknown recipe"),
        ("~nobody-is-called-so/recipe.yaml", "The recipe file ~nobody.* does not exist"),
    ],
)
def test_a_missing_recipe_is_refused_with_the_command_that_makes_it(recipes, name, message):
    with pytest.raises(ConfigError, match=message):
        load_sweep({**MINE, "name": "other", "recipe": name}, recipes=recipes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("from: [", "tuned-mine.yaml"),
        ("[1, 2]", "contains a list, but should contain keys with values"),
        ("{from: smoke, learning_rate: -1, tuned: {cells: []}}", "learning_rate"),
        (
            "{from: smoke, tuned: {cells: []}}",
            "no values for small_cnn on manifold_d4, small_mlp on manifold_d4",
        ),
        ("{from: smoke, tuned: {cells: [3]}}", "no values for small_cnn on manifold_d4"),
        ("{from: smoke, tuned: {cells: 3}}", "no values for small_cnn on manifold_d4"),
        ("{from: smoke, overrides: 3, tuned: {cells: []}}", "has `overrides`, which is not a list"),
        (
            "{from: smoke, tuned: {cells: [{model: [1], dataset: {a: b}}]}}",
            "no values for small_cnn on manifold_d4",
        ),
    ],
)
def test_a_broken_recipe_file_is_refused_with_one_message(recipes, text, message):
    (recipes / "tuned-mine.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        load_sweep({**MINE, "recipe": "tuned"}, recipes=recipes)


def test_wrong_overrides_are_blamed_on_the_file_that_has_them(tmp_path):
    (tmp_path / "inner.yaml").write_text("from: smoke\n", encoding="utf-8")
    outer = tmp_path / "outer.yaml"
    outer.write_text("{from: ./inner.yaml, overrides: 3}", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"outer\.yaml has `overrides`, which is not a list"):
        load_sweep({**MINE, "recipe": str(outer)})


def test_a_recorded_sweep_keeps_its_recipe(recipes, tmp_path):
    """A later search must not change the trials that `isweep status` shows for the sweep."""
    root = str(tmp_path / "root")
    Workspace.open({**MINE, "recipe": "tuned"}, root).write_sweep_file()
    before = set(Workspace.open("mine", root, prefer_root=True).plan.trials_by_id)
    (recipes / "tuned-mine.yaml").unlink()
    assert set(Workspace.open("mine", root, prefer_root=True).plan.trials_by_id) == before


@pytest.mark.parametrize("field", ["learning_rate", "weight_decay", "batch_size"])
def test_a_tuned_value_cannot_be_changed_for_all_without_effect(recipes, field):
    """The overrides of the tuned recipe would replace the value; those of the sweep come last."""
    value = 8 if field == "batch_size" else 0.5
    message = rf"The sweep sets `recipe\.{field}` for all .*\. Set the value for some"
    for name in ("tuned", str(recipes / "tuned-mine.yaml")):
        with pytest.raises(ConfigError, match=message):
            load_sweep({**MINE, "recipe": {"from": name, field: value}}, recipes=recipes)
    row = {"models": ["small_mlp"], field: value}
    sweep = load_sweep({**MINE, "recipe": {"from": "tuned", "overrides": [row]}}, recipes=recipes)
    networks = [trial.network for trial in plan_sweep(sweep).trials]
    recipes_of_mlp = {network.recipe for network in networks if network.model.name == "small_mlp"}
    assert {getattr(recipe, field) for recipe in recipes_of_mlp} == {value}


def test_changes_are_read_like_values_of_a_sweep_file():
    changes = read_changes(["recipe.epochs=3", "train_sizes=[10, 20]", "description=a=b"])
    assert changes == {"recipe.epochs": 3, "train_sizes": [10, 20], "description": "a=b"}
    for word in ("epochs", "epochs=", "epochs= "):
        with pytest.raises(ConfigError, match=f"`--set {word}` has no value"):
            read_changes([word])
    with pytest.raises(ConfigError, match="`--set =3` has no key"):
        read_changes(["=3"])


def test_changes_do_not_modify_the_document():
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
        ("datasets.1.name", "`--set datasets.1.name` has the index 1, but the list has the ind"),
        ("datasets.x", "the index x, but the list has the indices 0 to 0"),
        (
            "name.first",
            "cannot set the key `first`: the value that should contain `first` is 'a', which",
        ),
    ],
)
def test_keys_that_do_not_exist_are_refused(key, message):
    with pytest.raises(ConfigError, match=message):
        with_changes({"name": "a", "datasets": ["mnist5k"]}, {key: 1})


def with_dataset(dataset):
    return {
        **MINE,
        "models": ["small_cnn"],
        "datasets": [dataset],
        "train_sizes": [20],
        "test_size": 20,
    }


def planned_pairs(dataset):
    plan = plan_sweep(load_sweep(with_dataset(dataset)))
    return [trial.network.subset.class_pair for trial in plan.trials]


def test_classes_of_a_known_dataset_have_names_and_indices():
    by_name = planned_pairs({"name": "cifar10", "class_pairs": [["cat", "dog"]]})
    by_index = planned_pairs({"name": "cifar10", "class_pairs": [[3, 5]]})
    assert by_name == by_index == [(3, 5)]


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (["cat", "dgo"], "Unknown class 'dgo' of cifar10.*'dog'"),
        (["cat", 3], r"class_pairs` lists the pair \[3, 3\], which contains the same class twice"),
        (["cat", "dog", "frog"], r"datasets\.cifar10\.class_pairs\.0` has more than 2 values"),
        (
            ["cat", "cat"],
            r"class_pairs` lists the pair \[3, 3\], which contains the same class twice",
        ),
        ([True, 3], r"is not a class\. Write the index of a class .* or its name"),
        ([1.5, 3], r"is not a class\. Write the index of a class .* or its name"),
        ([3], r"The value `datasets\.cifar10\.class_pairs\.0\.1` is missing"),
    ],
)
def test_pairs_that_are_not_two_classes_are_refused(pair, message):
    with pytest.raises(ConfigError, match=message):
        planned_pairs({"name": "cifar10", "class_pairs": [pair]})
    with pytest.raises(ConfigError, match=r"class_pairs` lists the pair \[3, 8\] twice"):
        planned_pairs({"name": "mnist5k", "class_pairs": [[3, 8], ["8", 3]]})


@pytest.fixture
def own_source(tmp_path):
    """Write images of the classes 3, 5 and 8, which have the indices 0, 1 and 2."""
    labels = np.array([3, 5, 8] * 20)
    np.savez(tmp_path / "own.npz", images=np.zeros((60, 8, 8), np.uint8), labels=labels)
    return {"kind": "npz", "path": str(tmp_path / "own.npz"), "domain": "natural"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            GOOD.replace("test_size: ", "test_size:\t"),
            r"line 6, column 11 has a tab\. Replace the tab by spaces",
        ),
        (
            GOOD.replace("test_size: 20", "test_size: 20\x85image_size: 8"),
            r"line 6, column 14 has an invisible character \(next line, U\+0085\)\. Remove the ch",
        ),
        (
            GOOD.replace("small_cnn", "small\u2028cnn"),
            r"line 3, column 15 has an invisible character \(line separator, U\+2028\)",
        ),
        (
            "# a\u2029b\n" + GOOD,
            r"line 1, column 4 has an invisible character \(paragraph separator, U\+2029\)",
        ),
        (
            GOOD.replace("recipe: smoke", "recipe:\n  <<: {from: smoke}\n  epochs: 3"),
            r"line \d, column 3 has the merge key <<\. Remove it, and write all keys in this place",
        ),
        (
            GOOD.replace("test_size: 20", "test_size: null"),
            r"^mine.yaml, line 6: `test_size` has no value\. Write a value after the colon",
        ),
        (
            GOOD.replace("20, 40", "20, null"),
            r"^mine.yaml, line 5: value 2 of `train_sizes` has no value\. Write a value\.$",
        ),
        (
            GOOD.replace(
                "[mnist5k]", "[{name: skin, own: {kind: csv,\n  path: ,\n domain: medical}}]"
            ),
            r"^mine.yaml, line 5: `datasets.skin.own.path` has no value\. Write a value",
        ),
        (GOOD + "seeds:", r"`seeds` has no value\. Write a value, or remove the key"),
        (
            GOOD.replace("recipe: smoke", "recipe:"),
            r"`recipe` has no value\. Write, for example, `recipe: {from: demo",
        ),
        (
            GOOD.replace("datasets: [mnist5k]", "datasets:"),
            r"^mine.yaml, line 4: `datasets` has no value\. Write, for example, `datasets: \[digits\]`",
        ),
    ],
)
def test_invisible_characters_merge_keys_and_missing_values_are_explained(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_sweep(text, origin="mine.yaml")


@pytest.mark.parametrize("separator", ["\x85", "\u2028", "\u2029"])
def test_a_stored_sweep_may_have_an_invisible_separator_in_its_description(separator):
    from orchestrator.planning.sweep_file import sweep_text

    text = sweep_text(load_sweep({**MINE, "description": f"one{separator}two"}))
    assert parse_sweep(text, origin="stored").description.startswith("one")


def test_classes_of_your_data_with_numbers_as_names_are_named_as_text(own_source):
    assert planned_pairs({"name": "mine", "own": own_source, "class_pairs": [["3", "8"]]}) == [
        (0, 2)
    ]
    with pytest.raises(ConfigError, match=r"Unknown class '4' of mine"):
        planned_pairs({"name": "mine", "own": own_source, "class_pairs": [["3", "4"]]})


def test_a_recorded_sweep_can_be_planned_without_its_data(own_source, tmp_path):
    from orchestrator.planning.sweep_file import sweep_text

    sweep = load_sweep(
        with_dataset({"name": "mine", "own": own_source, "class_pairs": [["3", "8"]]})
    )
    (tmp_path / "own.npz").unlink()
    (tmp_path / "kept.yaml").write_text(sweep_text(sweep), encoding="utf-8")
    assert plan_sweep(load_sweep(tmp_path / "kept.yaml")).trials == plan_sweep(sweep).trials


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


def test_a_recipe_is_changed_for_all_and_overridden_for_some():
    row = "{models: [small_mlp], datasets: [manifold_d12], learning_rate: 1e-4}"
    changes = f"{{from: demo, epochs: 7, learning_rate: 3e-4, overrides: [{row}]}}"
    recipes = recipes_in_plan(planned(recipe=changes))
    assert {recipe.epochs for recipe in recipes.values()} == {7}
    rows = [key for key, recipe in recipes.items() if recipe.learning_rate == 1e-4]
    assert rows == [("small_mlp", "manifold_d12")]
    assert recipes["small_cnn", "manifold_d4"].name == "demo+epochs=7+learning_rate=0.0003"
    assert recipes["small_cnn", "manifold_d4"].batch_size == 32  # that of the recipe demo


def test_a_value_equal_to_that_of_the_recipe_gives_the_same_network():
    plain = planned(recipe="smoke")
    assert planned(recipe="{from: smoke, epochs: 2}").trials == plain.trials
    longer = planned(recipe="{from: smoke, epochs: 3}")
    assert longer.trials_by_id.keys().isdisjoint(plain.trials_by_id)


def test_lists_of_values_are_axes_of_the_grid():
    plan = planned(recipe="{from: smoke, learning_rate: [1e-3, 1e-4], batch_size: [8, 16, 32]}")
    assert len(plan.trials) == len(plan.trials_by_id) == 2 * 2 * 2 * 6
    recipes = [trial.network.recipe for trial in plan.trials]
    values = {(recipe.learning_rate, recipe.batch_size) for recipe in recipes}
    assert values == {(rate, size) for rate in (1e-3, 1e-4) for size in (8, 16, 32)}


def test_a_recipe_file_may_be_in_the_folder_of_the_sweep_file(tmp_path):
    rows = "[{models: [small_cnn], epochs: 6}]"
    (tmp_path / "mine.yaml").write_text(f"{{from: smoke, epochs: 5, overrides: {rows}}}")
    text = f"{BASE}\nmodels: [small_cnn, small_mlp]\nrecipe: {{from: ./mine.yaml, batch_size: 4}}\n"
    (tmp_path / "sweep.yaml").write_text(text)
    recipes = recipes_in_plan(plan_sweep(load_sweep(str(tmp_path / "sweep.yaml"))))
    values = [(recipe.epochs, recipe.batch_size) for recipe in recipes.values()]
    assert values == [(6, 4), (5, 4), (6, 4), (5, 4)]
    (tmp_path / "mine.yaml").write_text("from: ./mine.yaml")
    with pytest.raises(ConfigError, match="is at the end of a chain of more than 5 recipe files"):
        load_sweep(str(tmp_path / "sweep.yaml"))


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("{from: papers}", "Unknown recipe.*'papers'.*'paper'"),
        (
            "{from: smoke, learning_rat: 1}",
            r"`recipe\.learning_rat` is not a known key\. Did you mean 'learning_rate'",
        ),
        ("{from: smoke, learning_rate: abc}", r"`recipe\.learning_rate` is 'abc', but must be"),
        (
            "{from: smoke, epochs: [1, -1]}",
            r"value 2 of `recipe\.epochs` is -1, but must be at least 1",
        ),
        ("{from: smoke, epochs: '3'}", r"`recipe\.epochs` is '3', but must be"),
        ("{from: smoke, epochs: []}", r"`recipe\.epochs` is \[\]: the list is empty"),
        ("{from: smoke, epochs: [3, 3]}", "`epochs` lists 3 more than once"),
        (
            "{epochs: 3}",
            r"`recipe\.from` is missing\. Write, for example, `recipe: {from: demo, epochs: 3}",
        ),
        (
            "{from: smoke, overrides: [{epochs: [1, 2]}]}",
            "the override has more than one value for epochs",
        ),
        ("{from: smoke, overrides: [{models: [small_cnn]}]}", "the override changes nothing"),
        (
            "{from: smoke, overrides: [{models: [vgg13], epochs: 1}]}",
            "Unknown model 'vgg13' of this sweep",
        ),
        (
            "{from: smoke, overrides: [{datasets: [mnist], epochs: 1}]}",
            "Unknown dataset 'mnist' of this sweep",
        ),
        (
            "./nowhere.yaml",
            r"nowhere\.yaml does not exist\. Correct the path, or use a known recipe: paper, rel",
        ),
    ],
)
def test_a_wrong_recipe_is_refused_with_one_message(recipe, message):
    with pytest.raises(ConfigError, match=message):
        planned(recipe=recipe)


@pytest.mark.parametrize(
    ("models", "message"),
    [
        (
            "[resnet81]",
            "Unknown model.*'resnet81'.*'resnet18'.*torchvision:NAME",
        ),
        ("['nowhere.net:build']", "nowhere"),
        ("[{frm: small_cnn}]", r"`models\.0\.frm` is not a known key"),
        ("[small_cnn, small_cnn]", "`models` lists small_cnn more than once"),
        (
            "[small_cnn, {from: small_mlp, name: small_cnn}]",
            "The list `models` has these names more than once: small_cnn",
        ),
        ("[{from: small_cnn, arguments: {width: 3}}]", "arguments"),
    ],
)
def test_a_wrong_model_is_refused_with_one_message(models, message):
    with pytest.raises(ConfigError, match=message):
        planned(models=models)


def test_policies_decide_which_weights_are_kept_and_change_no_identity():
    plans = {policy: planned(more=f"keep_weights: {policy}") for policy in ("all", "last", "none")}
    assert len({frozenset(plan.trials_by_id) for plan in plans.values()}) == 1
    for policy, sizes in {"all": {40, 80}, "last": {80}, "none": set()}.items():
        plan = plans[policy]
        with_weights = [trial for trial in plan.trials if plan.keeps_weights(trial)]
        assert {trial.network.train_size for trial in with_weights} == sizes
    sizes = [extras(plan, ())["weights_bytes"] for plan in plans.values()]
    assert sizes[0] == 2 * sizes[1] > sizes[2] == 0


def test_measurements_change_no_network():
    plain = planned()
    more = planned(more="robustness: {num_images: 9}\nattacks: {methods: [fgsm, pgd]}")
    assert plain.trials_by_id.keys() == more.trials_by_id.keys()
    missing = plain.trials[0].missing_for(more.trials[0])
    assert len(missing) == 5  # PGD at four strengths, and R
    share = sum(extras(plain, ())["attack_shares"].values())
    larger_share = sum(extras(more, ())["attack_shares"].values())
    assert share < larger_share


def test_the_disk_of_predictions_is_counted():
    assert extras(planned(), ())["predictions_bytes"] == 0
    assert "predictions" not in extras_text(extras(planned(), ()))
    plan = planned(more="predictions: true")
    extra_costs = extras(plan, ())
    (size,) = {trial.network.subset.test_size for trial in plan.trials}
    logits = np.random.default_rng(0).normal(size=(size, 2)).astype(np.float32)
    bytes_of_one = len(to_parquet(logits, np.arange(size) % 2, np.arange(size)))
    assert extra_costs["predictions_bytes"] == pytest.approx(
        bytes_of_one * len(plan.trials), rel=0.3
    )
    assert "stored predictions: " in extras_text(extra_costs)


def test_the_plan_has_the_cost_of_attacks_in_percent_of_training():
    recipe = "{from: smoke, epochs: 1000}"
    assert extras_text(extras(planned(recipe=recipe), ())).endswith(
        "% as many operations as training"
    )
    more = "robustness: {num_images: 20}\nattacks: {methods: [fgsm, pgd]}"
    extra_costs = extras(planned(recipe=recipe, more=more), ())
    assert list(extra_costs["attack_shares"]) == [*ATTACKS, "robustness"]
    shares = r"% as many operations as training \(fgsm .*, pgd .*, robustness .*\)"
    assert re.search(shares, extras_text(extra_costs))


def test_recipes_that_vary_within_a_combination_separate_the_models():
    fields = {"model": "vgg13", "dataset": "mnist", "class_pair": "", "train_size": 500, "seed": 0}
    recipes = ("paper+learning_rate=0.001", "paper")
    rows = [fields | {"data_mode": "corrected", "recipe": recipe} for recipe in recipes]
    table = split_by_recipe(pd.DataFrame(rows))
    assert list(table["model"]) == ["vgg13 (learning_rate=0.001)", "vgg13 (learning_rate=as given)"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("user_source", {"kind": "folder", "path": "x", "domain": "natural"}),
        ("generated", {"from": "generated"}),
    ],
)
def test_the_name_of_a_field_in_the_code_is_not_a_key_of_a_sweep_file(key, value):
    document = {
        "name": "x",
        "models": ["small_cnn"],
        "datasets": [{"name": "a", key: value}],
        "train_sizes": [10],
        "test_size": 10,
        "image_size": 16,
        "recipe": "demo",
    }
    with pytest.raises(ConfigError, match=rf"`datasets\.a\.{key}` is not a known key"):
        load_sweep(document)


def test_a_key_without_a_space_after_its_colon_is_one_problem_with_its_fix():
    text = GOOD.replace("[mnist5k]", "[{name: scans, own: {kind: folder, path:./mini}}]")
    with pytest.raises(
        ConfigError, match=r"Put a space after the colon: `path: \./mini`"
    ) as caught:
        parse(text)
    assert "own.path` is missing" not in str(caught.value)
