"""A search with real trainings in this process: begun, begun again, extended, refused; blind to
every test image."""

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
    """Rows of prepared images that are read while a search runs."""
    rows: list[int] = []
    read = PreparedDataset.read_rows

    def spy(self, wanted, *args, **kwargs):
        rows.extend(np.asarray(wanted).tolist())
        return read(self, wanted, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PreparedDataset, "read_rows", spy)
        yield rows


@pytest.fixture(scope="module")
def found(in_process, rows_read, tmp_path_factory):
    """Summary and root of a finished search."""
    root = str(tmp_path_factory.mktemp("root"))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(
            "MLFLOW_TRACKING_URI", raising=False
        )  # before the environment of a single test is
        return tune_sweep(TINY, RunOptions(root=root)), root


def records(root, **changes) -> dict[str, SearchRecord]:
    workspace = Workspace.open({**TINY, **changes}, root)
    return ResultStore(workspace.search_url).scan(SearchRecord).records


def mlflow_runs(root):
    client = connect_mlflow(f"sqlite:///{root}/mlflow.db")
    experiment = client.get_experiment_by_name("isweep/tiny-search")
    return client.search_runs([experiment.experiment_id], max_results=1000)


def run_nothing(monkeypatch) -> list[Search]:
    """Let searches begin and train nothing; returns where they will be."""
    begun: list[Search] = []
    monkeypatch.setattr(pipeline._Tuning, "_run", lambda self, search, *_: begun.append(search))
    return begun


def test_every_trial_is_stored_told_and_tracked_once(found):
    summary, root = found
    stored = records(root)
    assert summary.exit_code == 0
    assert summary.num_new == len(stored) >= 4
    runs = mlflow_runs(root)
    tracked = Counter(run.data.tags["trial_id"] for run in runs if run.data.tags["kind"] == "trial")
    assert tracked == Counter(dict.fromkeys(stored, 1))
    assert {run.info.status for run in runs} == {"FINISHED"}
    standing, rows = (known(Workspace.open(TINY, root)) for known in (search_standing, search_rows))
    assert sum(standing["by_status"].values()) == standing["trials"] == len(stored)
    assert f"search: {standing['trials']} trials (" in standing["text"]
    assert {row["trial_id"] for row in rows} == set(stored)
    assert search_standing(Workspace.open("smoke", root)) is None


def test_again_trains_nothing_and_starts_no_cluster(found, monkeypatch):
    summary, root = found
    before, recipe = records(root), summary.recipe.read_bytes()
    monkeypatch.setattr(stages, "connect", None)
    again = tune_sweep(TINY, RunOptions(root=root))
    assert again.num_new == 0
    assert again.combinations == summary.combinations
    assert records(root) == before
    assert summary.recipe.read_bytes() == recipe
    assert len(mlflow_runs(root)) == len(before) + 1


def test_what_mlflow_misses_is_counted_once_it_was_told_all(found, monkeypatch):
    """The report is told last, and was always counted as missing."""

    class Slow(Tracker):
        num_unsent_updates = 0

        def log_report(self, *_):
            self.num_unsent_updates = 2

        def close(self, _):
            self.num_unsent_updates -= 1

    _, root = found
    monkeypatch.setattr(pipeline, "make_tracker", lambda *_, **__: Slow())
    assert tune_sweep(TINY, RunOptions(root=root)).num_unsent_updates == 1


def test_a_finished_search_whose_data_were_removed_prepares_them_also_where_no_gpu_would_do(
    found, monkeypatch
):
    summary, root = found
    workspace = Workspace.open(TINY, root)
    (prepared,) = map(workspace.paths.prepared, workspace.plan.prepared)
    shutil.rmtree(prepared)
    monkeypatch.setattr(pipeline._Tuning, "check_machine", None)  # which would refuse it
    again = tune_sweep(TINY, RunOptions(root=root))
    assert (again.num_new, again.combinations) == (0, summary.combinations)
    assert prepared.is_dir()


def test_a_notebook_gets_a_table_and_the_recipe(found):
    summary, root = found
    tuned = isweep.tune(TINY, root=root, progress=False)
    (outcome,), (row,) = summary.combinations, tuned.table.to_dict("records")
    assert (row["model"], row["dataset"]) == ("small_mlp", "manifold_d4")
    assert row["learning_rate"] == outcome.chosen.point.learning_rate
    assert row["validation_loss"] == outcome.chosen.mean
    assert tuned.recipe == str(summary.recipe)
    (said,) = tuned.problems  # nine epochs of a tiny search learn next to nothing, and that is told
    assert "hardly below the chance loss" in said
    assert repr(tuned) == f"Recipe of 1 of 1 models on datasets: {summary.recipe}"
    assert "<table" in tuned._repr_html_()
    assert tuned.report.name == "search.html"
    used = isweep.plan(TINY, root=root, changes={"name": "used", "recipe": tuned.recipe})
    assert len(used.table) == 2
    with pytest.raises(isweep.SweepError, match="two rising numbers"):
        isweep.tune(TINY, root=root, changes={"tune.learning_rate": [1e-2, 1e-3]})


def test_no_test_image_was_read_and_poisoned_ones_change_nothing(found, rows_read):
    """Whatever a test image shows: the same trial on data whose test images are noise is equal bit
    by bit."""
    _, root = found
    workspace = Workspace.open(TINY, root)
    (data,) = workspace.prepared.values()
    stored = next(record for record in records(root).values() if record.role == Role.OWN)
    subset = stored.spec.network.subset
    test_rows = make_subset(data.classes, data.groups, subset, data.splits).test_rows
    assert len(rows_read) > 0
    assert not set(rows_read) & set(test_rows.tolist())

    class Poisoned:
        classes, groups, splits, fingerprint = (
            data.classes,
            data.groups,
            data.splits,
            data.fingerprint,
        )

        @staticmethod
        def read_rows(rows):
            images = data.read_rows(rows).copy()
            images[np.isin(rows, test_rows)] = 255
            return images

    validation = stored.spec.validation
    arrays = load_validation(Poisoned, subset, stored.spec.network.train_size, validation)
    again = run_search_trial(stored.spec.network, arrays)
    assert again.curve == stored.result.curve


def test_another_split_is_another_search_and_says_what_it_leaves(found, monkeypatch):
    _, root = found
    said = []
    searches = run_nothing(monkeypatch)

    class Heard(Progress):
        def note(self, message):
            said.append(message)

    before = records(root)
    tune_sweep(
        TINY, RunOptions(root=root), progress=Heard(), changes={"tune.validation_share": 0.5}
    )
    assert any(f"{len(before)} stored trials of this sweep, because they" in line for line in said)
    asked = searches[0].next_trial()
    assert asked.role == Role.OWN
    assert asked.spec.trial_id not in before
    assert records(root) == before


def test_a_damaged_trial_is_not_believed_and_asked_for_again(found, monkeypatch):
    """Even the sweep's own recipe, when the budget is spent: all else is compared with it."""
    _, root = found
    searches = run_nothing(monkeypatch)
    victim = next(name for name, record in records(root).items() if record.role == Role.OWN)
    path = (
        Workspace.open(TINY, root).sweep_paths.folder / "search" / "trials" / victim / "search.json"
    )
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
            "tune.batch_size contains 64, but a trial of the search has only 60 training",
        ),
        # By shares 31 are left; both classes alike, 30.
        (
            {"tune.batch_size": [31], "tune.train_size": 41},
            ConfigError,
            "tune.batch_size contains 31, but a trial of the search has only 30 training",
        ),
        ({"tune.learning_rate": [1e-2, 1e-3]}, ConfigError, "two rising numbers"),
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
        ({"recipe.epochs": 0}, ConfigError, "The recipe of small_mlp on .* has 0 epochs"),
    ],
)
def test_mistakes_are_said_before_anything_is_trained(found, monkeypatch, changes, kind, message):
    _, root = found
    monkeypatch.setattr(pipeline._Tuning, "_run", None)
    with pytest.raises(kind, match=message):
        tune_sweep({**TINY, "name": "wrong"}, RunOptions(root=root), changes=changes)
