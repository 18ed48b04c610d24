"""Test messages of commands before a search, and for a sweep that has no search."""

import json

import pytest

from orchestrator.planning.workspace import Workspace
from orchestrator.results.records import FailureKind, FailureRecord, TrialFailure
from orchestrator.results.store import ResultStore
from orchestrator.tuning import tune_sweep as pipeline
from orchestrator.tuning.combinations import combinations_to_tune
from orchestrator.tuning.outcome import TuneSummary

SWEEP = {
    "name": "mine",
    "models": ["small_mlp"],
    "datasets": ["manifold_d4", "manifold_d12"],
    "train_sizes": [40, 80],
    "test_size": 40,
    "image_size": 16,
    "recipe": "smoke",
}


@pytest.fixture
def sweep(tmp_path):
    def write(**changes) -> str:
        path = tmp_path / "mine.yaml"
        path.write_text(json.dumps({**SWEEP, **changes}), encoding="utf-8")
        return str(path)

    return write


def test_tune_refuses_a_batch_larger_than_the_training_set(run, sweep):
    code, out, err = run("tune", sweep(tune={"batch_size": [128]}))
    assert (code, out) == (2, "")
    reason = "`tune.batch_size` contains 128, but a trial of the search has only 60 training images"
    assert reason in err


@pytest.mark.parametrize("command", ["run", "tune"])
def test_an_impossible_search_is_refused_before_anything_starts(run, sweep, command, tmp_path):
    code, _, err = run(command, sweep(), "--mlflow-uri", "foo", at=str(tmp_path / "none"))
    assert (code, (tmp_path / "none").exists()) == (2, False)
    assert "start" not in err
    assert "The MLflow URI foo is neither a database nor a server. Use, for example" in err
    code, _, err = run(command, sweep(models=["small_mpl"], datasets=["manifold_d5"]))
    assert code == 2
    assert "'small_mpl'" in err
    assert "'manifold_d5'" in err


def test_a_sweep_without_its_tuned_recipe_gets_the_command_to_start_with(run, sweep):
    code, _, err = run("tune", sweep(recipe="tuned"))
    assert code == 2
    assert "Run `isweep tune mine --set recipe=NAME` first" in err


def test_results_without_a_search_name_the_command_to_start_one(run, sweep):
    code, _, err = run("results", sweep(), "--search")
    assert code == 2
    assert "`isweep tune` has stored no trial of the sweep" in err
    assert "isweep tune" in err


def test_updates_that_mlflow_lacks_are_counted_with_the_command_that_sends_them(
    run, sweep, tmp_path, monkeypatch
):
    tune_summary = TuneSummary((), tmp_path / "tuned-mine.yaml", None, 0, num_unsent_updates=3)
    monkeypatch.setattr(pipeline, "tune_sweep", lambda *_, **__: tune_summary)
    path = sweep()
    code, _, err = run("tune", path, "--set", "tune.budget=0.4")
    assert code == 0
    hint = f"To send all updates, run `isweep tune {path} --set tune.budget=0.4"
    assert f"MLflow lacks 3 updates. {hint}" in err


def test_status_counts_trials_of_a_search_that_failed(run, sweep, root):
    path = sweep()
    workspace = Workspace.open(path, root)
    combination = combinations_to_tune(workspace.plan)[0]
    trial = combination.trial(combination.sweep_point)
    failure = TrialFailure(kind=FailureKind.CODE_ERROR, message="boom")
    record = FailureRecord(trial_id=trial.trial_id, spec=trial, attempt=1, failure=failure)
    ResultStore(workspace.search_url).save(record)
    code, out, _ = run("status", path)
    assert code == 0
    assert "search: 0 trials, 1 failed; the recipe is not written yet" in out
    assert json.loads(run("status", path, "--json")[1])["search"]["failed"] == 1
