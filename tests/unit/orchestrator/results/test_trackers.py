"""One contract for all trackers, and what MLflow alone must do."""

import os
import random
import socket
import threading
from contextlib import closing

import mlflow
import pytest
from sqlalchemy.exc import OperationalError

from orchestrator.planning.paths import without_secrets
from orchestrator.planning.plan import Workspace
from orchestrator.results import mlflow_pages, mlflow_tracker, tracking, tracking_choice
from orchestrator.results.mlflow_pages import Page, Refused
from orchestrator.results.mlflow_tracker import MLflowTracker, connect, connector, read_rows
from orchestrator.results.rows import FlatRun
from orchestrator.results.store import ResultStore
from orchestrator.results.tracking import (
    PARENT_KEY,
    Failure,
    InMemoryTracker,
    RunPages,
    keep_run_pages,
    read_run_pages,
)
from orchestrator.results.tracking_choice import TRACKERS, TrackerKind
from search_spaces.errors import ConfigError, SetupError
from search_spaces.fingerprint import fingerprint

SWEEP = {
    "name": "s",
    "models": ["small_mlp"],
    "datasets": ["manifold_d4"],
    "train_sizes": [40],
    "test_size": 40,
    "image_size": 16,
    "recipe": "smoke",
}


def flat(key: str, loss: float, kind: str = "trial", train_size: int = 10, made: int = 2000) -> FlatRun:
    tags = {
        f"{kind}_id": key,
        "sweep": "s",
        "train_size": str(train_size),
        "class_pair": "",
        "status": "done",
    }
    return FlatRun(
        key,
        kind,
        tags,
        {"recipe.learning_rate": "0.001", "subset.class_pair": ""},
        {"test_loss": loss, "d_data_mle": 9.5},
        (("epoch_train_loss", 1, 0.7, 1500), ("epoch_train_loss", 2, 0.3, 1500)),
        1000,
        2000,
        made,
        content=f"content {loss}",
    )


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    """One database for the module: making MLflow's tables costs seconds.

    ``TEST_DATABASE`` names another one, such as a PostgreSQL server's.
    """
    made = os.environ.get("TEST_DATABASE") or f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"
    connect(made)
    return made


@pytest.fixture
def sweep(request):
    return request.node.name.replace("[", "-").replace("]", "")


@pytest.fixture
def runs(uri, sweep):
    def find():
        mlflow.set_tracking_uri(uri)
        table = mlflow.search_runs(experiment_names=[f"isweep/{sweep}"])
        return table.set_index("tags.isweep.run_key")

    return find


def opened(name, uri, sweep, root):
    """Open a tracker of the table for a sweep of its own, as a run does."""
    workspace = Workspace.open({**SWEEP, "name": f"s-{fingerprint(sweep)[:12]}"}, root)
    workspace.paths.make()
    return workspace, TRACKERS[name].open(workspace, ResultStore(workspace.results_url), uri, lambda _: None)


@pytest.mark.parametrize("name", TRACKERS)
def test_every_tracker_takes_all_that_a_sweep_says(name, uri, sweep, root, tmp_path):
    workspace, tracker = opened(name, uri, sweep, root)
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "report.html").write_text("a report")
    tracker.start_trial("a", {"trial_id": "a"})
    tracker.fail_trial(Failure("a", "worker_crash", "gone", 1))
    tracker.finish(flat("a", 0.5))
    tracker.add_report(tmp_path / "report", {"done": 1, "failed": 0})
    tracker.reconcile([flat("a", 0.5)], [Failure("b", "code_error", "boom", 1)], wait=False)
    tracker.close("FINISHED")
    assert tracker.num_behind == 0
    shown = TRACKERS[name].rows(workspace, uri, ResultStore(workspace.results_url).identity())
    assert [row["trial_id"] for row in shown] == (["a"] if TRACKERS[name].keeps else [])
    assert TRACKERS[name].check(workspace.paths, uri)


@pytest.mark.parametrize("name", TRACKERS)
def test_asking_a_tracker_makes_nothing(name, root):
    workspace = Workspace.open(SWEEP, root)
    assert TRACKERS[name].rows(workspace, None, None) == []
    assert TRACKERS[name].check(workspace.paths, None)
    assert not workspace.paths.exist


@pytest.mark.parametrize("sign", ["?", "%"])
def test_a_root_whose_path_is_another_one_in_a_url_holds_no_database(sign, tmp_path):
    workspace = Workspace.open(SWEEP, tmp_path / f"my{sign}41root")
    workspace.paths.make()
    with pytest.raises(SetupError, match=r"no '\?' and no '%'; found: .*; choose another with --root"):
        tracking_choice.make_tracker(workspace, ResultStore(workspace.results_url), None)
    assert tracking_choice.mlflow_uri(workspace.paths, "http://127.0.0.1:5000") == "http://127.0.0.1:5000"
    assert [path.name for path in tmp_path.iterdir()] == [f"my{sign}41root"]


def test_the_tracker_is_chosen_in_one_place(root, monkeypatch):
    told = TrackerKind(lambda *_: InMemoryTracker(), lambda *_: [{"trial_id": "a"}], lambda *_: "is well")
    monkeypatch.setitem(TRACKERS, "other", told)
    monkeypatch.setattr(tracking_choice, "CHOSEN", "other")
    workspace = Workspace.open(SWEEP, root)
    store = ResultStore(workspace.results_url)
    assert isinstance(tracking_choice.make_tracker(workspace, store, None), InMemoryTracker)
    assert tracking_choice.tracked_rows(workspace, None, None) == [{"trial_id": "a"}]
    assert tracking_choice.check_tracker(workspace.paths, None) == "is well"


class TestContract:
    @pytest.fixture(params=["memory", *(name for name, kind in TRACKERS.items() if kind.keeps)])
    def tracker(self, request, uri, sweep, root):
        return InMemoryTracker() if request.param == "memory" else opened(request.param, uri, sweep, root)[1]

    def test_rows_are_the_trials_with_a_result(self, tracker):
        tracker.start_trial("b", {"trial_id": "b"})
        tracker.start_trial("a", {"trial_id": "a"})
        tracker.finish(flat("b", 0.5))
        tracker.finish(flat("a", 0.25, train_size=20))
        tracker.finish(flat("m", 1.0, kind="measure"))
        tracker.fail_trial(Failure("c", "code_error", "boom", 1))
        rows = tracker.rows()
        assert [(row["trial_id"], row["test_loss"], row["train_size"]) for row in rows] == [
            ("a", 0.25, 20),
            ("b", 0.5, 10),
        ]
        tracker.close("FINISHED")
        assert tracker.num_behind == 0

    def test_pages_name_the_run_of_every_trial_without_asking(self, tracker):
        tracker.finish(flat("a", 0.5))
        tracker.rows()  # everything was sent
        pages = tracker.pages()
        assert pages.prefix
        assert pages.runs["a"]

    def test_a_failed_trial_may_finish_later(self, tracker):
        tracker.fail_trial(Failure("a", "worker_crash", "gone", 1))
        tracker.start_trial("a", {"trial_id": "a", "attempt": "2"})
        tracker.finish(flat("a", 0.5))
        assert [row["trial_id"] for row in tracker.rows()] == ["a"]
        tracker.close("FINISHED")

    def test_reconcile_shows_what_was_missed(self, tracker):
        tracker.finish(flat("a", 0.5))
        assert tracker.reconcile([flat("a", 0.5), flat("b", 0.25)])["replayed"] == 1
        assert [row["trial_id"] for row in tracker.rows()] == ["a", "b"]
        tracker.close("FINISHED")

    def test_a_later_result_replaces_an_earlier_one(self, tracker):
        tracker.finish(flat("a", 0.5))
        tracker.finish(flat("a", 0.25, made=3000))
        assert [row["test_loss"] for row in tracker.rows()] == [0.25]
        tracker.close("FINISHED")


def test_no_run_is_left_running(uri, sweep, runs):
    tracker = MLflowTracker(connector(uri), Page(sweep))
    tracker.start_trial("a", {"status": "running"})
    tracker.close("KILLED")
    assert dict(runs()["status"]) == {"a": "KILLED", "sweep": "KILLED"}
    assert runs().loc["a", "tags.status"] == "killed"


def test_children_hang_below_the_parent_and_keep_their_series(uri, sweep, runs):
    tracker = MLflowTracker(connector(uri), Page(sweep))
    tracker.finish(flat("a", 0.5))
    tracker.close("FINISHED")
    table = runs()
    assert table.loc["a", "tags.mlflow.parentRunId"] == table.loc["sweep", "run_id"]
    history = connect(uri).get_metric_history(table.loc["a", "run_id"], "epoch_train_loss")
    assert [(point.step, point.value) for point in history] == [(1, 0.7), (2, 0.3)]


def test_one_run_per_trial_for_ever(uri, sweep, runs):
    for attempt in range(3):
        tracker = MLflowTracker(connector(uri), Page(sweep))
        tracker.start_trial("a", {"attempt": str(attempt)})
        tracker.close("KILLED")
    tracker = MLflowTracker(connector(uri), Page(sweep))
    tracker.finish(flat("a", 0.5))
    tracker.close("FINISHED")
    assert dict(runs()["status"]) == {"a": "FINISHED", "sweep": "FINISHED"}


def test_reconcile_replays_closes_ghosts_and_marks_duplicates(uri, sweep, runs):
    client = connect(uri)
    tracker = MLflowTracker(lambda: client, Page(sweep))
    tracker.start_trial("ghost", {})
    tracker.finish(flat("shown", 0.5))
    tracker.flush()
    experiment = client.get_experiment_by_name(f"isweep/{sweep}").experiment_id
    second = client.create_run(experiment, tags={"isweep.run_key": "shown", "kind": "trial"})
    # As after a SIGKILL: nothing closed.
    later = MLflowTracker(lambda: client, Page(sweep))
    counts = later.reconcile([flat("shown", 0.5), flat("missed", 0.75)])
    assert counts == {"replayed": 1, "closed": 1, "duplicates": 1, "up_to_date": 1}
    assert [row["trial_id"] for row in later.rows()] == ["missed", "shown"]
    assert later.reconcile([flat("shown", 0.5), flat("missed", 0.75)]) == {
        "replayed": 0,
        "closed": 0,
        "duplicates": 0,
        "up_to_date": 2,
    }
    later.close("FINISHED")
    table = runs()
    assert table.loc["ghost", "status"] == "KILLED"
    assert client.get_run(second.info.run_id).info.status == "KILLED"
    assert "RUNNING" not in set(table["status"])


def test_infinity_as_mlflow_stores_it_is_never_a_value(uri, sweep):
    client = connect(uri)
    tracker = MLflowTracker(lambda: client, Page(sweep))
    tracker.finish(flat("a", 0.5))
    tracker.flush()
    run = client.search_runs(
        [client.get_experiment_by_name(f"isweep/{sweep}").experiment_id], "tags.kind = 'trial'"
    )[0]
    client.log_metric(run.info.run_id, "test_loss", float("inf"))
    assert "test_loss" not in tracker.rows()[0]
    tracker.close("FINISHED")


def test_a_dead_store_costs_no_result_and_is_counted(uri, sweep, monkeypatch):
    client = connect(uri)
    said: list[str] = []
    tracker = MLflowTracker(lambda: client, Page(sweep), say=said.append)
    for name in ("PATIENCE_S", "STOP_PATIENCE_S"):
        monkeypatch.setattr(mlflow_tracker, name, 0.3)
    monkeypatch.setattr(tracking, "SAID_AFTER_S", 0.0)

    def dead(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr(client, "create_run", dead)
    tracker.finish(flat("a", 0.5))
    tracker.flush()
    monkeypatch.setattr(client, "search_runs", dead)
    with pytest.raises(SetupError, match="MLflow must answer; found: no route"):
        tracker.rows()
    with pytest.raises(SetupError, match="MLflow must answer; found: no route"):
        tracker.reconcile([flat("a", 0.5)])
    tracker.close("FINISHED")
    # The result, both questions and the end of the parent run.
    assert tracker.num_behind == 4
    assert said == ["MLflow does not answer (no route); the sweep goes on, and it is told later"]


def test_a_server_that_does_not_answer_is_a_clear_message():
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(
        SetupError, match=rf"must answer; found: http://…@127\.0\.0\.1:{port}: .*--no-tracking"
    ):
        connect(f"http://user:secret@127.0.0.1:{port}")


def test_a_database_that_cannot_be_opened_is_not_tried_for_minutes(tmp_path, monkeypatch):
    slept = []
    monkeypatch.setattr("mlflow.store.db.utils.time.sleep", slept.append)
    (tmp_path / "mlflow.db").mkdir()
    with pytest.raises(SetupError, match=r"must answer; found: sqlite:.*unable to open database file"):
        connect(f"sqlite:///{tmp_path}/mlflow.db")
    assert sum(slept) < 5


def test_the_message_keeps_the_password_to_itself():
    with pytest.raises(SetupError) as caught:
        connect("http://user:secret@127.0.0.1:9")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("bad", ["./mlruns", "file:///tmp/mlruns", "mlruns"])
def test_the_file_store_is_refused(bad):
    with pytest.raises(ConfigError, match="must be a database or server"):
        connect(bad)


def edit(uri: str, sweep: str, key: str, change) -> str:
    """Change a run in MLflow behind the tracker's back."""
    client = connect(uri)
    experiment = client.get_experiment_by_name(f"isweep/{sweep}").experiment_id
    (run,) = client.search_runs([experiment], f"tags.`isweep.run_key` = '{key}'")
    change(client, run.info.run_id)
    return run.info.run_id


EDITS = {
    "a value logged later": lambda client, run: client.log_metric(
        run, "test_loss", 0.001, 99_000_000_000_000
    ),
    "a value at a later step": lambda client, run: client.log_metric(run, "test_loss", 0.001, step=7),
    "a tag": lambda client, run: client.set_tag(run, "class_pair", "3-8"),
    "a status": lambda client, run: client.set_terminated(run, "FAILED"),
}


@pytest.mark.parametrize("name", EDITS)
def test_reconcile_compares_values_and_mends_them(uri, sweep, runs, name):
    tracker = MLflowTracker(connector(uri), Page(sweep))
    tracker.finish(flat("a", 0.5))
    tracker.close("FINISHED")
    edit(uri, sweep, "a", EDITS[name])
    again = MLflowTracker(connector(uri), Page(sweep))
    assert again.reconcile([flat("a", 0.5)])["replayed"] == 1
    assert again.reconcile([flat("a", 0.5)])["up_to_date"] == 1
    (row,) = again.rows()
    assert (row["test_loss"], row["class_pair"]) == (0.5, "")
    again.close("FINISHED")
    assert dict(runs()["status"]) == {"a": "FINISHED", "sweep": "FINISHED"}


@pytest.mark.parametrize(
    "change",
    [
        lambda client, run: client.log_metric(run, "d_repr_mle", 3.0),
        lambda client, run: client.log_metric(run, "fgsm_2_loss_gain", 3.0),
    ],
)
def test_what_mlflow_cannot_forget_is_set_aside_for_a_new_run(uri, sweep, runs, change):
    tracker = MLflowTracker(connector(uri), Page(sweep))
    tracker.finish(flat("a", 0.5))
    tracker.close("FINISHED")
    old = edit(uri, sweep, "a", change)
    again = MLflowTracker(connector(uri), Page(sweep))
    assert again.reconcile([flat("a", 0.5)])["replayed"] == 1
    (row,) = again.rows()
    assert row["test_loss"] == 0.5
    assert not {"d_repr_mle", "fgsm_2_loss_gain"} & set(row)
    again.close("FINISHED")
    table = runs().set_index("run_id")
    assert table.loc[old, "status"] == "KILLED"
    assert sorted(table["status"]) == ["FINISHED", "FINISHED", "KILLED"]


def test_a_note_of_ones_own_in_mlflow_is_no_difference(uri, sweep):
    tracker = MLflowTracker(connector(uri), Page(sweep))
    tracker.finish(flat("a", 0.5))
    tracker.close("FINISHED")
    edit(uri, sweep, "a", lambda client, run: client.set_tag(run, "reviewed", "yes"))
    edit(uri, sweep, "a", lambda client, run: client.log_metric(run, "my_score", 1.0))
    again = MLflowTracker(connector(uri), Page(sweep))
    assert again.reconcile([flat("a", 0.5)])["up_to_date"] == 1
    again.close("FINISHED")


def test_an_older_clock_does_not_keep_an_old_number(uri, sweep):
    tracker = MLflowTracker(connector(uri), Page(sweep))
    tracker.finish(flat("a", 0.5, made=9_000_000))
    tracker.finish(flat("a", 0.25, made=3000))
    assert [row["test_loss"] for row in tracker.rows()] == [0.25]
    tracker.close("FINISHED")


def test_two_stores_on_one_server_never_mix(uri, sweep):
    said: list[str] = []
    first = MLflowTracker(connector(uri), Page(sweep), storage="a" * 16)
    first.finish(flat("x", 0.5))
    second = MLflowTracker(connector(uri), Page(sweep), storage="b" * 16, say=said.append)
    second.finish(flat("x", 0.25))
    assert [row["test_loss"] for row in first.rows()] == [0.5]
    assert [row["test_loss"] for row in second.rows()] == [0.25]
    for tracker in (first, second):
        tracker.close("FINISHED")
    client = connect(uri)
    assert [row["test_loss"] for row in read_rows(client, sweep, "b" * 16)] == [0.25]
    assert [row["test_loss"] for row in read_rows(client, sweep, "a" * 16)] == [0.5]
    assert read_rows(client, sweep, "c" * 16) == []
    assert f"isweep/{sweep} belongs to another result store" in said[0]


class Lossy:
    """A client some of whose answers are lost after the server did what was asked."""

    def __init__(self, client, share: float) -> None:
        self._client, self._share, self._random, self.lost = client, share, random.Random(13), 0

    def __getattr__(self, name):
        call = getattr(self._client, name)

        def lossy(*arguments, **keywords):
            answer = call(*arguments, **keywords)
            if self._random.random() < self._share:
                self.lost += 1
                raise ConnectionResetError("the reply was lost")
            return answer

        return lossy


@pytest.mark.parametrize("share", [0.2, 0.4])
def test_one_run_per_key_although_replies_are_lost(uri, sweep, runs, monkeypatch, share):
    monkeypatch.setattr(tracking, "FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(tracking, "LONGEST_PAUSE_S", 0.01)
    client = Lossy(connect(uri), share)
    tracker = MLflowTracker(lambda: client, Page(sweep))
    keys = [f"t{number}" for number in range(8)]
    for key in keys:
        tracker.start_trial(key, {"trial_id": key})
        tracker.finish(flat(key, 0.5))
    tracker.close("FINISHED")
    assert tracker.num_behind == 0
    assert client.lost >= 5
    table = runs()
    assert sorted(table.index) == sorted([*keys, "sweep"])
    assert set(table["status"]) == {"FINISHED"}


def test_a_server_that_is_down_at_the_start_is_told_later(uri, sweep, runs, monkeypatch):
    monkeypatch.setattr(tracking, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(tracking, "SAID_AFTER_S", 0.0)
    up = threading.Event()

    def slow():
        if not up.is_set():
            raise SetupError("The MLflow store must answer", "Connection refused")
        return connect(uri)

    said: list[str] = []
    tracker = MLflowTracker(slow, Page(sweep), say=said.append)
    tracker.start_trial("a", {"trial_id": "a"})
    tracker.finish(flat("a", 0.5))
    assert tracker.num_behind == 2
    up.set()
    tracker.close("FINISHED")
    assert tracker.num_behind == 0
    assert dict(runs()["status"]) == {"a": "FINISHED", "sweep": "FINISHED"}
    assert [text.split(" (")[0] for text in said] == ["MLflow does not answer", "MLflow answers again"]


def test_a_server_that_refuses_us_is_a_message_at_once(uri, sweep):
    def refused():
        raise mlflow_pages.Refused("The MLflow store must answer", "401 Unauthorized", "log in")

    with pytest.raises(SetupError, match="must answer; found: 401 Unauthorized; log in"):
        MLflowTracker(refused, Page(sweep))


def test_a_database_whose_driver_is_not_installed_is_refused_at_once(monkeypatch, sweep):
    def without_driver(_: str) -> None:
        raise ModuleNotFoundError("No module named 'psycopg'")

    monkeypatch.setattr(mlflow_tracker, "make_whole", without_driver)
    way_out = r"No module named 'psycopg'; pip install 'isweep\[postgres\]'"
    with pytest.raises(SetupError, match=rf"must answer; found: postgresql://h/x: {way_out}"):
        MLflowTracker(connector("postgresql://h/x"), Page(sweep))


@pytest.mark.parametrize(
    ("words", "final"),
    [
        ('password authentication failed for user "lab"', True),
        ('database "isweep" does not exist', True),
        ("the database system is starting up", False),
        ("Connection refused", False),
    ],
)
def test_a_database_that_will_say_the_same_again_is_refused_at_once(monkeypatch, sweep, words, final):
    def refuse(_: str) -> None:
        said = f'connection to server at "127.0.0.1", port 5432 failed: FATAL:  {words}'
        raise OperationalError("select 1", {}, Exception(said))

    monkeypatch.setattr(mlflow_tracker, "make_whole", refuse)
    with pytest.raises(SetupError, match="MLflow store must answer") as caught:
        connect("postgresql://h/x")
    assert isinstance(caught.value, Refused) == final


def test_failures_that_mlflow_missed_are_replayed(uri, sweep, runs):
    tracker = MLflowTracker(connector(uri), Page(sweep))
    failure = Failure("a", "code_error", "boom", 2)
    tracker.reconcile([], [failure])
    tracker.reconcile([], [failure])
    tracker.close("KILLED")
    table = runs()
    assert table.loc["a", "status"] == "FAILED"
    assert table.loc["a", "tags.failure_message"] == "boom"


@pytest.mark.parametrize("uri", ["http://u:p@ss@host:5000", "postgresql://u:p@ss@host/db"])
def test_a_password_with_an_at_sign_stays_secret(uri):
    assert "ss@" not in without_secrets(f"cannot reach {uri}")


@pytest.mark.parametrize("password", ["p@canary-word", "p%40canary-word", "p:canary-word", "p/canary-word"])
def test_a_password_that_a_driver_takes_for_a_host_stays_secret(password):
    """As psycopg says it; an unescaped sign ends a password for some readers and not for others."""
    uri = f"postgresql://lab:{password}@db:5432/isweep"
    host = password.partition("@")[2] or password
    said = mlflow_pages.first_line(OSError(f"failed to resolve host '{host}@db' or 'canary-word@db'"), uri)
    assert "canary" not in said
    assert said.startswith("failed to resolve host")


def test_a_server_that_hangs_holds_up_neither_start_nor_end(monkeypatch):
    for name in ("FIRST_TRY_S", "STOP_PATIENCE_S"):
        monkeypatch.setattr(mlflow_tracker, name, 0.2)
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        tracker = MLflowTracker(connector(f"http://127.0.0.1:{silent.getsockname()[1]}"), Page("hangs"))
        tracker.start_trial("a", {"trial_id": "a"})
        tracker.close("KILLED")
        assert tracker.num_behind >= 2


def test_curves_are_shown_while_a_trial_runs_and_no_point_comes_twice(uri, sweep, runs):
    tracker = MLflowTracker(connector(uri), Page(sweep))
    tracker.start_trial("a", {"trial_id": "a"})
    tracker.extend("a", [("epoch_train_loss", 1, 0.7, 1200)])
    tracker.flush()
    table = runs()
    assert table.loc["a", ["status", "metrics.epoch_train_loss"]].tolist() == ["RUNNING", 0.7]
    # A worker that died and was started again tells its first epoch again; then the result has both.
    tracker.fail_trial(Failure("a", "worker_crash", "gone", 1))
    tracker.start_trial("a", {"trial_id": "a", "attempt": "2"})
    tracker.extend("a", [("epoch_train_loss", 1, 0.7, 1300)])
    tracker.finish(flat("a", 0.5))
    tracker.extend("a", [("epoch_train_loss", 2, 9.0, 1400)])  # too late, and not what the result says
    tracker.close("FINISHED")
    history = connect(uri).get_metric_history(table.loc["a", "run_id"], "epoch_train_loss")
    assert sorted((point.step, point.value) for point in history) == [(1, 0.7), (2, 0.3)]
    assert runs().loc["a", "metrics.epoch_train_loss"] == 0.3


def test_the_result_overrules_what_was_shown_live(uri, sweep, runs):
    tracker = MLflowTracker(connector(uri), Page(sweep))
    tracker.start_trial("a", {"trial_id": "a"})
    tracker.extend("a", [("epoch_train_loss", step, 0.9, 1200) for step in (1, 2, 3)])
    tracker.finish(flat("a", 0.5))
    tracker.close("FINISHED")
    assert runs().loc["a", "metrics.epoch_train_loss"] == 0.3
    again = MLflowTracker(connector(uri), Page(sweep))
    assert again.reconcile([flat("a", 0.5)])["up_to_date"] == 1
    again.close("FINISHED")


def test_an_outage_loses_no_point(uri, sweep, runs, monkeypatch):
    client = connect(uri)
    tracker = MLflowTracker(lambda: client, Page(sweep))
    tracker.start_trial("a", {"trial_id": "a"})
    tracker.flush()
    real, calls = client.log_batch, []

    def away(*arguments, **keywords):
        calls.append(arguments)
        if len(calls) < 3:
            raise ConnectionError("no route")
        return real(*arguments, **keywords)

    monkeypatch.setattr(client, "log_batch", away)
    tracker.extend("a", [("epoch_train_loss", 1, 0.7, 1200)])
    tracker.extend("a", [("epoch_train_loss", 2, 0.6, 1300)])
    tracker.close("KILLED")
    history = client.get_metric_history(runs().loc["a", "run_id"], "epoch_train_loss")
    assert sorted((point.step, point.value) for point in history) == [(1, 0.7), (2, 0.6)]


@pytest.mark.parametrize("refused", ["FAILED", "KILLED"])
def test_a_refused_start_leaves_a_finished_sweep_alone(uri, sweep, runs, refused):
    first = MLflowTracker(connector(uri), Page(sweep, "as it ran"))
    first.finish(flat("a", 0.5))
    first.close("FINISHED")
    before = runs().loc["sweep"]
    later = MLflowTracker(connector(uri), Page(sweep, "as it is refused"))
    later.reconcile([flat("a", 0.5)], wait=False)
    later.close(refused)
    after = runs().loc["sweep"]
    assert after[["status", "end_time", "tags.description"]].tolist() == [
        "FINISHED",
        before["end_time"],
        "as it ran",
    ]
    worked = MLflowTracker(connector(uri), Page(sweep, "as it ran again"))
    worked.start_trial("b", {})
    worked.close(refused)
    assert runs().loc["sweep", ["status", "tags.description"]].tolist() == [refused, "as it ran again"]


def test_a_set_up_that_fails_is_failed(uri, sweep, runs):
    MLflowTracker(connector(uri), Page(sweep)).close("FAILED")
    assert dict(runs()["status"]) == {"sweep": "FAILED"}


def test_a_report_links_to_the_runs_that_mlflow_shows(uri, sweep, runs, tmp_path):
    tracker = MLflowTracker(connector(uri), Page(sweep))
    tracker.finish(flat("a", 0.5))
    tracker.close("FINISHED")
    keep_run_pages(tmp_path / "pages.json", tracker.pages())
    keep_run_pages(tmp_path / "pages.json", RunPages())  # a run without tracking forgets nothing
    pages = read_run_pages(tmp_path / "pages.json")
    run = runs().loc["a"]
    assert pages.runs["a"] == run["run_id"]
    experiment = mlflow.get_experiment_by_name(f"isweep/{sweep}").experiment_id
    assert pages.prefix == f"http://127.0.0.1:5000/#/experiments/{experiment}/runs/"


def test_a_root_that_was_moved_keeps_its_artifacts_below_itself(sweep, tmp_path, monkeypatch):
    report = tmp_path / "report"
    report.mkdir()
    (report / "report.html").write_text("first")
    first, moved = tmp_path / "first", tmp_path / "moved"
    for root in (first, moved):
        if root == moved:
            first.rename(moved)
            # As in another process: MLflow keeps in mind where it put a run's artifacts.
            monkeypatch.setattr("mlflow.tracking._tracking_service.utils._artifact_repos_cache", {})
            (report / "report.html").write_text("second")
        workspace = Workspace.open({**SWEEP, "name": f"s-{fingerprint(sweep)[:12]}"}, root)
        workspace.paths.make()
        tracker = tracking_choice.make_tracker(workspace, ResultStore(workspace.results_url), None)
        tracker.add_report(report, {})
        tracker.close("FINISHED")
        assert tracker.num_behind == 0
    assert not first.exists()
    assert [path.read_text() for path in moved.rglob("report/report.html")] == ["second"]


def test_pages_that_cannot_be_read_are_none(tmp_path, caplog):
    (tmp_path / "pages.json").write_text("{")
    assert read_run_pages(tmp_path / "pages.json") == read_run_pages(tmp_path / "absent") == RunPages()
    assert "reports link to no runs" in caplog.text


def test_pages_say_what_a_run_is(uri, sweep, runs):
    page = Page(sweep, "Digits against slices.", 3, "fgsm_1_loss_gain")
    tracker = MLflowTracker(connector(uri), page)
    said = {"dataset": "digits", "class_pair": "3-8", "model": "small_cnn", "seed": "1", "recipe": "demo"}
    run = flat("a", 0.5)
    run.tags.update(said, data_fingerprint="f" * 64)
    tracker.finish(run)
    tracker.extend(PARENT_KEY, [("trials_done", 1, 1.0, 1500)])
    tracker.close("FINISHED")
    table = runs()
    assert table.loc["a", "tags.mlflow.runName"] == "small_cnn digits 3-8 N=10 seed 1"
    assert table.loc["a", "tags.mlflow.source.name"] == f"isweep run {sweep}"
    assert table.loc["sweep", "metrics.trials_done"] == 1
    client = connect(uri)
    (used,) = client.get_run(table.loc["a", "run_id"]).inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == ("digits 3-8", "f" * 36)
    experiment = client.get_experiment_by_name(f"isweep/{sweep}")
    note = experiment.tags["mlflow.note.content"]
    assert note == table.loc["sweep", "tags.mlflow.note.content"]
    links, description, _ = note.split("\n\n")  # MLflow shows one line of it until it is opened
    assert links.count("](#/") == 3
    assert description == "Digits against slices."
    charts = "&compareRunsMode=CHART"
    pages = f"#/experiments/{experiment.experiment_id}/runs?viewStateShareKey="
    for view, mode in (("best", ""), ("curve", charts), ("sharpness", charts)):
        assert f"({pages}{view}{mode}&workflowType=machine_learning)" in links
        assert experiment.tags[f"mlflow.sharedViewState.{view}"].startswith("{")
