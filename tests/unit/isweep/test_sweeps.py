"""Sweeps from Python: every way to write one, its plan, its results and its messages."""

import json

import numpy as np
import pandas as pd
import pytest

import isweep
from orchestrator.planning.sweep_file import load_sweep, sweep_text
from orchestrator.planning.written_files import preset_names

SMALL = {
    "name": "small",
    "models": ["small_mlp", "small_cnn"],
    "datasets": ["manifold_d4"],
    "train_sizes": [40, 80],
    "test_size": 40,
    "image_size": 16,
    "recipe": "smoke",
    "num_neighbors": 10,
}


def test_every_way_to_write_a_sweep_is_the_same_sweep(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(json.dumps(SMALL), encoding="utf-8")
    spec = load_sweep(str(path))
    assert load_sweep(SMALL) == load_sweep(path) == load_sweep(spec) == spec


@pytest.mark.parametrize("name", preset_names())
def test_a_sweep_written_down_reads_back_the_same(name, tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text(sweep_text(load_sweep(name)), encoding="utf-8")
    read = load_sweep(path)
    preset = load_sweep(name)
    assert read.model_copy(update={"datasets": ()}) == preset.model_copy(update={"datasets": ()})
    read_names = [choice.name for choice in read.datasets]
    assert read_names == [choice.name for choice in preset.datasets]


def test_changes_override_the_sweep_file(root):
    plan = isweep.plan(SMALL, root=root, changes={"recipe.epochs": 3, "seeds": [0, 1]})
    assert len(plan.table) == 8
    assert set(plan.table["recipe"]) == {"smoke+epochs=3"}
    assert plan.summary()["trials"].tolist() == [4, 4]
    assert repr(plan).startswith("Plan of 8 trials. 8 trials left")


def test_a_sweep_that_never_ran_has_no_results(root):
    sweep = isweep.open(SMALL, root=root)
    assert (
        repr(sweep) == f"Sweep 'small'. Trials: 4 planned, 0 done, 0 failed, 4 left. Root: {root}"
    )
    with pytest.warns(UserWarning, match="Sweep 'small' has no results yet. Run the sweep"):
        assert sweep.table.empty
    assert sweep.failures.empty
    for get_result in (sweep.best, lambda: sweep.fits, lambda: sweep.report):
        with pytest.raises(
            isweep.SweepError, match=r"has no results yet\. .*isweep\.run\('small'\)"
        ):
            get_result()


CIRCLE: list[object] = []
CIRCLE.append(CIRCLE)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("dmo", {}, "'dmo' is not a preset, .* Did you mean 'demo'"),
        ("./absent.yaml", {}, "The sweep file absent.yaml does not exist"),
        ({**SMALL, "model": []}, {}, r"`model` is not a known key\. Did you mean 'models'"),
        ({**SMALL, "models": [3j]}, {}, "a value that is not allowed in a sweep file: 3j"),
        (
            {**SMALL, "models": (name for name in ["small_cnn"])},
            {},
            "a value that is not allowed in a sweep file: <generator",
        ),
        (
            {**SMALL, "datasets": CIRCLE},
            {},
            r"the sweep has a list or mapping that contains itself, or too many nested levels\. Write",
        ),
        (
            {**SMALL, "datasets": np.array(["mnist"]), "model": []},
            {},
            r"`model` is not a known key\. Did you mean 'models'",
        ),
        ({**SMALL, "recipe": "smke"}, {}, "Unknown recipe"),
        (SMALL, {"changes": {"models.7": "x"}}, "index 7, but the list has the indices 0 to 1"),
        (SMALL, {"changes": {"name.x.y": 1}}, "'small', which has no keys"),
        (
            SMALL,
            {"changes": {"train_size": [10]}},
            r"`train_size` is not a known key\. Did you mean 'train_sizes'",
        ),
        (SMALL, {"cpus": 4}, "option.*'cpus'.*[Dd]id you mean 'num_cpus'"),
        (SMALL, {"num_cpus": 0}, "`num_cpus` is 0, but must be at least 1"),
        (SMALL, {"num_cpus": "two"}, "`num_cpus` is 'two', but must be a whole number"),
        (
            SMALL,
            {"device": "cuda"},
            "`device` is 'cuda', but should be 'auto', 'cpu' or 'gpu'",
        ),
        (SMALL, {"address": 5}, "`address` is 5, but must be text"),
        (SMALL, {"address": "ray://x:1"}, "--address ray://x:1` is not the host:port"),
        (SMALL, {"mlflow_uri": 5}, "`mlflow_uri` is 5, but must be text"),
        (SMALL, {"raw": {"manifold_d4": 3}}, "`raw.manifold_d4` is 3, which is not a valid path"),
        (
            SMALL,
            {"raw": {"manifold_d4": "/absent"}},
            "The raw download /absent of manifold_d4 was not found",
        ),
        (
            SMALL,
            {"max_skipped_share": 2},
            "`max_skipped_share` is 2, but must be at most 1",
        ),
        (SMALL, {"progress": "loud"}, "`progress` is 'loud', but must be True or False"),
        (SMALL, {"changes": {3: 4}}, "`changes` has the key 3, which is not text"),
        (
            SMALL,
            {"changes": {"seeds": {1, 2}}},
            r"is not allowed in a sweep file: \{1, 2\}\. Use numbers, text, lists",
        ),
    ],
)
def test_a_wrong_argument_of_run_is_refused_with_its_hint(root, source, options, message):
    with pytest.raises(isweep.SweepError, match=message):
        isweep.run(source, root=root, **options)


@pytest.mark.parametrize("names", [("manifold_d4",), np.array(["manifold_d4"])])
def test_datasets_may_be_a_tuple_or_an_array_of_names(root, names):
    plan = isweep.plan({**SMALL, "datasets": names}, root=root)
    listed_plan = isweep.plan({**SMALL, "datasets": ["manifold_d4"]}, root=root)
    assert plan.table.equals(listed_plan.table)


@pytest.mark.parametrize("names", [("digits",), np.array(["digits"])])
def test_changed_datasets_may_be_a_tuple_or_an_array_of_names(names):
    (choice,) = load_sweep("demo", {"datasets": names}).datasets
    assert choice.name == "digits"


def test_numbers_of_numpy_are_numbers(root):
    changes = {"seeds": np.arange(2), "recipe.epochs": np.int64(3)}
    changed_plan = isweep.plan(SMALL, root=root, changes=changes)
    plan = isweep.plan(SMALL, root=root)
    assert len(changed_plan.table) == 2 * len(plan.table)


def test_the_best_by_another_score_is_printed_whole_in_a_narrow_terminal(root, monkeypatch):
    table = pd.DataFrame(
        {
            "dataset": "manifold_d12",
            "train_size": 240,
            "model": ["small_cnn", "resnet_tiny"],
            "test_loss": [0.5, 0.4],
            "auc": [0.9, 0.7],
            "status": "done",
        }
    )
    sweep = isweep.open(SMALL, root=root)
    monkeypatch.setitem(vars(sweep), "table", table)
    assert sweep.best()[["model", "runner_up"]].values.tolist() == [["resnet_tiny", "small_cnn"]]
    by_auc = sweep.best(metric="auc")
    assert by_auc[["model", "auc", "runner_up_auc"]].values.tolist() == [["small_cnn", 0.9, 0.7]]
    lines = repr(by_auc).splitlines()
    assert max(map(len, lines)) <= 80
    assert "..." not in repr(by_auc)
    assert {*by_auc.columns} <= {*repr(by_auc).split()}
    with pytest.raises(isweep.SweepError, match=r"score.*'acc'"):
        sweep.best(metric="acc")
    with pytest.raises(isweep.SweepError, match=r"'train_size'\. Known scores: auc, test_loss"):
        sweep.best(metric="train_size")


@pytest.mark.parametrize("wrong", [{"dataset": ["a"]}, {"train_size": 11}, {"model": 3}])
def test_the_best_of_absent_results_is_refused(root, wrong, monkeypatch):
    table = pd.DataFrame(
        {"dataset": ["a"], "train_size": [240], "model": ["m"], "test_loss": [1.0]}
    )
    sweep = isweep.open(SMALL, root=root)
    monkeypatch.setitem(vars(sweep), "table", table)
    with pytest.raises(isweep.SweepError, match="of these results"):
        sweep.best(**wrong)
    monkeypatch.setitem(vars(sweep), "table", pd.concat([table, table.assign(train_size=60)]))
    with pytest.raises(isweep.SweepError, match="Unknown train size '11' of these results"):
        sweep.best(train_size=11)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: isweep.open("smoke", storage=5),
            "`storage` is 5, which is not text",
        ),
        (lambda: isweep.open("smoke", root=""), "`root` is '', but must be the path of a folder"),
        (lambda: isweep.open("smoke", root=3), "`root` is 3, but must be the path of a folder"),
        (
            lambda: isweep.open(3),
            "The sweep is of type int, but should be a name, a path",
        ),
        (
            lambda: isweep.plan("smoke", changes="a=3"),
            "changes is of type str, but should be a mapping",
        ),
        (
            lambda: isweep.predict(3, "smoke", train_size=5),
            "`measured` has the type int, but must be a measurement, its JSON record",
        ),
    ],
)
def test_a_wrong_type_from_python_is_refused_with_its_hint(call, message):
    with pytest.raises(isweep.SweepError, match=message):
        call()
