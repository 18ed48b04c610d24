"""One contract for all trackers, and what MLflow alone must do."""

import socket
from contextlib import closing

import mlflow
import pytest

from orchestrator.results.rows import FlatRun
from orchestrator.results.tracking.mlflow import MLflowTracker, connect
from orchestrator.results.tracking.tracker import Failure, InMemoryTracker
from search_spaces.errors import ConfigError, SetupError


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
    """One database for the module: making MLflow's tables costs seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


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


class TestContract:
    @pytest.fixture(params=["memory", "mlflow"])
    def tracker(self, request, uri, sweep):
        return InMemoryTracker() if request.param == "memory" else MLflowTracker(connect(uri), sweep)

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
        tracker.close(completed=True)
        assert tracker.num_behind == 0

    def test_a_failed_trial_may_finish_later(self, tracker):
        tracker.fail_trial(Failure("a", "worker_crash", "gone", 1))
        tracker.start_trial("a", {"trial_id": "a", "attempt": "2"})
        tracker.finish(flat("a", 0.5))
        assert [row["trial_id"] for row in tracker.rows()] == ["a"]
        tracker.close(completed=True)

    def test_reconcile_shows_what_was_missed(self, tracker):
        tracker.finish(flat("a", 0.5))
        assert tracker.reconcile([flat("a", 0.5), flat("b", 0.25)])["replayed"] == 1
        assert [row["trial_id"] for row in tracker.rows()] == ["a", "b"]
        tracker.close(completed=True)

    def test_a_later_result_replaces_an_earlier_one(self, tracker):
        tracker.finish(flat("a", 0.5))
        tracker.finish(flat("a", 0.25, made=3000))
        assert [row["test_loss"] for row in tracker.rows()] == [0.25]
        tracker.close(completed=True)


def test_no_run_is_left_running(uri, sweep, runs):
    tracker = MLflowTracker(connect(uri), sweep)
    tracker.start_trial("a", {})
    tracker.close(completed=False)
    assert dict(runs()["status"]) == {"a": "KILLED", "sweep": "KILLED"}


def test_children_hang_below_the_parent_and_keep_their_series(uri, sweep, runs):
    tracker = MLflowTracker(connect(uri), sweep)
    tracker.finish(flat("a", 0.5))
    tracker.close(completed=True)
    table = runs()
    assert table.loc["a", "tags.mlflow.parentRunId"] == table.loc["sweep", "run_id"]
    history = connect(uri).get_metric_history(table.loc["a", "run_id"], "epoch_train_loss")
    assert [(point.step, point.value) for point in history] == [(1, 0.7), (2, 0.3)]


def test_one_run_per_trial_for_ever(uri, sweep, runs):
    for attempt in range(3):
        tracker = MLflowTracker(connect(uri), sweep)
        tracker.start_trial("a", {"attempt": str(attempt)})
        tracker.close(completed=False)
    tracker = MLflowTracker(connect(uri), sweep)
    tracker.finish(flat("a", 0.5))
    tracker.close(completed=True)
    assert dict(runs()["status"]) == {"a": "FINISHED", "sweep": "FINISHED"}


def test_reconcile_replays_closes_ghosts_and_marks_duplicates(uri, sweep, runs):
    client = connect(uri)
    tracker = MLflowTracker(client, sweep)
    tracker.start_trial("ghost", {})
    tracker.finish(flat("shown", 0.5))
    tracker.flush()
    experiment = client.get_experiment_by_name(f"isweep/{sweep}").experiment_id
    second = client.create_run(experiment, tags={"isweep.run_key": "shown", "kind": "trial"})
    # As after a SIGKILL: nothing closed.
    later = MLflowTracker(client, sweep)
    counts = later.reconcile([flat("shown", 0.5), flat("missed", 0.75)])
    assert counts == {"replayed": 1, "closed": 1, "duplicates": 1, "up_to_date": 1}
    assert [row["trial_id"] for row in later.rows()] == ["missed", "shown"]
    assert later.reconcile([flat("shown", 0.5), flat("missed", 0.75)]) == {
        "replayed": 0,
        "closed": 0,
        "duplicates": 0,
        "up_to_date": 2,
    }
    later.close(completed=True)
    table = runs()
    assert table.loc["ghost", "status"] == "KILLED"
    assert client.get_run(second.info.run_id).info.status == "KILLED"
    assert "RUNNING" not in set(table["status"])


def test_infinity_as_mlflow_stores_it_is_never_a_value(uri, sweep):
    client = connect(uri)
    tracker = MLflowTracker(client, sweep)
    tracker.finish(flat("a", 0.5))
    tracker.flush()
    run = client.search_runs(
        [client.get_experiment_by_name(f"isweep/{sweep}").experiment_id], "tags.kind = 'trial'"
    )[0]
    client.log_metric(run.info.run_id, "test_loss", float("inf"))
    assert "test_loss" not in tracker.rows()[0]
    tracker.close(completed=True)


def test_a_dead_store_costs_no_result_and_is_counted(uri, sweep, monkeypatch):
    client = connect(uri)
    tracker = MLflowTracker(client, sweep)

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
    tracker.close(completed=True)
    assert tracker.num_behind == 1


def test_a_server_that_does_not_answer_is_a_clear_message():
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(SetupError, match=rf"must answer; found: http://127\.0\.0\.1:{port}: .*--no-tracking"):
        connect(f"http://user:secret@127.0.0.1:{port}")


def test_the_message_keeps_the_password_to_itself():
    with pytest.raises(SetupError) as caught:
        connect("http://user:secret@127.0.0.1:9")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("bad", ["./mlruns", "file:///tmp/mlruns", "mlruns"])
def test_the_file_store_is_refused(bad):
    with pytest.raises(ConfigError, match="must be a database or server"):
        connect(bad)
