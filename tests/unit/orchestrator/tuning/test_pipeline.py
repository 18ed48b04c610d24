"""Test a search with real trainings in this process: started, started again, extended, refused.

No test image may be read.
"""

import shutil
from collections import Counter

import numpy as np
import pytest

import isweep
from orchestrator import RunOptions
from orchestrator.planning.workspace import Workspace
from orchestrator.results.mlflow_connection import connect as connect_mlflow
from orchestrator.results.store import ResultStore
from orchestrator.results.tracking import Tracker
from orchestrator.running import stages
from orchestrator.running.progress import Progress
from orchestrator.tuning import tune_sweep as pipeline
from orchestrator.tuning.search import Search
from orchestrator.tuning.search_records import Role, SearchRecord, search_rows, search_standing
from orchestrator.tuning.tune_sweep import tune_sweep
from search_spaces.errors import ConfigError, SweepError
from tasks.prepared.store import PreparedDataset
from tasks.prepared.subsets import load_validation, make_subset
from tasks.trials.trial import run_search_trial

TINY = {
    "name": "tiny",
    "models": ["small_mlp"],
    "datasets": ["manifold_d4"],
    "train_sizes": [40, 80],
    "test_size": 40,
    "image_size": 16,
    "recipe": {"from": "smoke", "epochs": 9},
    "resources": {"num_cpus": 1, "num_gpus": 0},
    "tune": {"budget": 0.12, "finalists": 1, "seeds": 2},
}


@pytest.fixture(scope="module")
def rows_read():
    """Collect the rows of prepared images that are read while a search runs."""
    rows: list[int] = []
    read = PreparedDataset.read_rows

    def spy(self, requested_rows, *args, **kwargs):
        rows.extend(np.asarray(requested_rows).tolist())
        return read(self, requested_rows, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PreparedDataset, "read_rows", spy)
        yield rows


@pytest.fixture(scope="module")
def finished_search(in_process, rows_read, tmp_path_factory):
    """Return the summary and the root of a finished search."""
    root = str(tmp_path_factory.mktemp("root"))
    with pytest.MonkeyPatch.context() as patch:
        # A fixture of each test removes this variable, but only after this fixture has run.
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        return tune_sweep(TINY, RunOptions(root=root)), root


def records(root, **changes) -> dict[str, SearchRecord]:
    workspace = Workspace.open({**TINY, **changes}, root)
    return ResultStore(workspace.search_url).scan(SearchRecord).records


def mlflow_runs(root):
    client = connect_mlflow(f"sqlite:///{root}/mlflow.db")
    experiment = client.get_experiment_by_name("isweep/tiny-search")
    return client.search_runs([experiment.experiment_id], max_results=1000)


def prevent_training(monkeypatch) -> list[Search]:
    """Let searches start without training, and return the list that will hold them."""
    searches: list[Search] = []
    monkeypatch.setattr(pipeline._Tuning, "_run", lambda self, search, *_: searches.append(search))
    return searches


def test_every_trial_is_stored_shown_and_tracked_once(finished_search):
    summary, root = finished_search
    stored = records(root)
    assert summary.exit_code == 0
    assert summary.num_new == len(stored) >= 4
    runs = mlflow_runs(root)
    tracked = Counter(run.data.tags["trial_id"] for run in runs if run.data.tags["kind"] == "trial")
    assert tracked == Counter(dict.fromkeys(stored, 1))
    assert {run.info.status for run in runs} == {"FINISHED"}
    standing = search_standing(Workspace.open(TINY, root))
    rows = search_rows(Workspace.open(TINY, root))
    assert sum(standing["by_status"].values()) == standing["trials"] == len(stored)
    assert f"search: {standing['trials']} trials (" in standing["text"]
    assert {row["trial_id"] for row in rows} == set(stored)
    assert search_standing(Workspace.open("smoke", root)) is None


def test_a_finished_search_trains_nothing_again_and_starts_no_cluster(finished_search, monkeypatch):
    summary, root = finished_search
    before = records(root)
    recipe = summary.recipe.read_bytes()
    monkeypatch.setattr(stages, "connect", None)
    again = tune_sweep(TINY, RunOptions(root=root))
    assert again.num_new == 0
    assert again.combinations == summary.combinations
    assert records(root) == before
    assert summary.recipe.read_bytes() == recipe
    assert len(mlflow_runs(root)) == len(before) + 1


def test_updates_that_mlflow_lacks_are_counted_after_the_last_update(finished_search, monkeypatch):
    """The report is the last update. It was once always counted as missing."""

    class Slow(Tracker):
        num_unsent_updates = 0

        def log_report(self, *_):
            self.num_unsent_updates = 2

        def close(self, _):
            self.num_unsent_updates -= 1

    _, root = finished_search
    monkeypatch.setattr(pipeline, "make_tracker", lambda *_, **__: Slow())
    assert tune_sweep(TINY, RunOptions(root=root)).num_unsent_updates == 1


def test_a_finished_search_prepares_removed_data_without_a_check_of_the_machine(
    finished_search, monkeypatch
):
    summary, root = finished_search
    workspace = Workspace.open(TINY, root)
    (prepared,) = map(workspace.paths.prepared, workspace.plan.prepared)
    shutil.rmtree(prepared)
    monkeypatch.setattr(pipeline._Tuning, "check_machine", None)  # a call would fail
    again = tune_sweep(TINY, RunOptions(root=root))
    assert (again.num_new, again.combinations) == (0, summary.combinations)
    assert prepared.is_dir()


def test_a_notebook_gets_a_table_and_the_recipe(finished_search):
    summary, root = finished_search
    tuned = isweep.tune(TINY, root=root, progress=False)
    (outcome,) = summary.combinations
    (row,) = tuned.table.to_dict("records")
    assert (row["model"], row["dataset"]) == ("small_mlp", "manifold_d4")
    assert row["learning_rate"] == outcome.chosen.point.learning_rate
    assert row["validation_loss"] == outcome.chosen.mean
    assert tuned.recipe == str(summary.recipe)
    # Nine epochs of a tiny search stay near chance level, which is reported.
    (problem,) = tuned.problems
    assert "hardly below the chance loss" in problem
    chosen = "The search chose values for 1 of 1 combinations of model and dataset."
    assert repr(tuned) == f"{chosen} Recipe file: {summary.recipe}"
    assert "<table" in tuned._repr_html_()
    assert tuned.report.name == "search.html"
    used = isweep.plan(TINY, root=root, changes={"name": "used", "recipe": tuned.recipe})
    assert len(used.table) == 2
    with pytest.raises(isweep.SweepError, match="two different numbers"):
        isweep.tune(TINY, root=root, changes={"tune.learning_rate": [1e-2, 1e-3]})


def test_no_test_image_is_read_and_changed_test_images_change_nothing(finished_search, rows_read):
    """A trial of the search is equal bit by bit even if all test images are white."""
    _, root = finished_search
    workspace = Workspace.open(TINY, root)
    (data,) = workspace.prepared.values()
    stored = next(record for record in records(root).values() if record.role == Role.SWEEP_RECIPE)
    subset = stored.spec.network.subset
    test_rows = make_subset(data.classes, data.groups, subset, data.splits).test_rows
    assert len(rows_read) > 0
    assert not set(rows_read) & set(test_rows.tolist())

    class WithWhiteTestImages:
        classes = data.classes
        groups = data.groups
        splits = data.splits
        fingerprint = data.fingerprint

        @staticmethod
        def read_rows(rows):
            images = data.read_rows(rows).copy()
            images[np.isin(rows, test_rows)] = 255
            return images

    validation = stored.spec.validation
    train_size = stored.spec.network.train_size
    arrays = load_validation(WithWhiteTestImages, subset, train_size, validation)
    again = run_search_trial(stored.spec.network, arrays)
    assert again.curve == stored.result.curve


def test_another_split_is_another_search_and_reports_the_trials_it_does_not_use(
    finished_search, monkeypatch
):
    _, root = finished_search
    messages = []
    searches = prevent_training(monkeypatch)

    class CollectingProgress(Progress):
        def note(self, message):
            messages.append(message)

    before = records(root)
    changes = {"tune.validation_share": 0.5}
    tune_sweep(TINY, RunOptions(root=root), progress=CollectingProgress(), changes=changes)
    expected = f"{len(before)} stored trials of this sweep, because these"
    assert any(expected in message for message in messages)
    request = searches[0].next_trial()
    assert request.role == Role.SWEEP_RECIPE
    assert request.spec.trial_id not in before
    assert records(root) == before


def test_a_damaged_trial_is_not_used_and_is_requested_again(finished_search, monkeypatch):
    """The recipe of the sweep is trained again even after the whole budget is used.

    All other recipes are compared with it.
    """
    _, root = finished_search
    searches = prevent_training(monkeypatch)
    victim = next(
        name for name, record in records(root).items() if record.role == Role.SWEEP_RECIPE
    )
    trials = Workspace.open(TINY, root).sweep_paths.folder / "search" / "trials"
    path = trials / victim / "search.json"
    path.write_text(path.read_text(encoding="utf-8").replace("0.", "1.", 1), encoding="utf-8")
    assert victim not in records(root)
    assert search_standing(Workspace.open(TINY, root))["unreadable"] == 1
    tune_sweep(TINY, RunOptions(root=root))
    assert searches[0].next_trial().spec.trial_id == victim
    assert searches[0].next_trial() is None


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        (
            {"tune.batch_size": [64]},
            ConfigError,
            "`tune.batch_size` contains 64, but a trial of the search has only 60 training",
        ),
        # The shares leave 31 images, of which 30 have equal numbers of both classes.
        (
            {"tune.batch_size": [31], "tune.train_size": 41},
            ConfigError,
            "`tune.batch_size` contains 31, but a trial of the search has only 30 training",
        ),
        ({"tune.learning_rate": [1e-2, 1e-3]}, ConfigError, "two different numbers"),
        ({"tune.train_size": 10**6}, SweepError, "1000000|1,000,000"),
        (
            {"data_mode": "as_released"},
            ConfigError,
            "needs corrected data, but the sweep has the faults misaligned_labels",
        ),
        (
            {"recipe.learning_rate": [1e-3, 1e-4]},
            ConfigError,
            "The recipe has several values of learning_rate",
        ),
        ({"recipe.epochs": 0}, ConfigError, "`recipe.epochs` is 0, but must be at least 1"),
    ],
)
def test_mistakes_are_refused_before_anything_is_trained(
    finished_search, monkeypatch, changes, kind, message
):
    _, root = finished_search
    monkeypatch.setattr(pipeline._Tuning, "_run", None)
    with pytest.raises(kind, match=message):
        tune_sweep({**TINY, "name": "wrong"}, RunOptions(root=root), changes=changes)
