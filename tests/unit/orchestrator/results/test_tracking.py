"""Test that MLflow shows the content of the store whatever happens to calls, servers and files."""

import os
import random
import shutil
import socket
import threading
from contextlib import closing
from dataclasses import replace

import pytest
import requests
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, PERMISSION_DENIED
from sqlalchemy.exc import OperationalError

from orchestrator.planning.workspace import Workspace
from orchestrator.results import outage_notes, round_pauses, tracking
from orchestrator.results.flat_runs import CurvePoint, FlatRun, curve_runs, trial_tags
from orchestrator.results.mlflow_connection import check_tracker, connect, mlflow_uri
from orchestrator.results.mlflow_differences import differences, tracked_rows
from orchestrator.results.mlflow_errors import Refused, first_line
from orchestrator.results.mlflow_pages import Page, RunPages, read_run_pages
from orchestrator.results.mlflow_runs import SweepRuns, read_rows
from orchestrator.results.records import FailureKind, FailureRecord, TrialFailure
from orchestrator.results.store import ResultStore
from orchestrator.results.sweep_tracking import make_tracker
from orchestrator.results.tracking import Tracker
from orchestrator.results.update_sender import WaitLimit
from search_spaces.errors import ConfigError, SetupError
from tests.mlflow_client import SimulatedClient
from tests.unit.orchestrator.results.examples import trial_spec

CURVE_OF_AN_EARLIER_VERSION = {"isweep.run_key": "curve small_cnn paper digits", "kind": "curve"}
UP_TO_DATE = {"replayed": 0, "closed": 0, "duplicates": 0, "up_to_date": 1}


def finished_run(key: str, loss: float, train_size: int = 10, modified_at: int = 2000) -> FlatRun:
    tags = {
        "trial_id": key,
        "sweep": "s",
        "class_pair": "",
        "status": "done",
        "train_size": str(train_size),
    }
    params = {"recipe.learning_rate": "0.001", "subset.class_pair": ""}
    epochs = (
        CurvePoint("epoch_train_loss", 1, 0.7, 1500),
        CurvePoint("epoch_train_loss", 2, 0.3, 1500),
    )
    metrics = {"test_loss": loss, "d_data_mle": 9.5}
    return FlatRun(key, tags, params, metrics, epochs, 1000, 2000, modified_at)


def failure(key: str, kind: str, message: str, attempt: int) -> FailureRecord:
    trial_failure = TrialFailure(kind=FailureKind(kind), message=message)
    return FailureRecord(trial_id=key, spec=trial_spec(), attempt=attempt, failure=trial_failure)


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    """Return the URI of one database for the module: creating the tables of MLflow takes seconds.

    ``TEST_DATABASE`` names another database, such as that of a PostgreSQL server.
    """
    database = os.environ.get("TEST_DATABASE")
    if not database:
        database = f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"
    connect(database)
    return database


@pytest.fixture
def sweep(request):
    return request.node.name.replace("[", "-").replace("]", "")


@pytest.fixture(params=["simulated", "mlflow"])
def client(request):
    if request.param == "simulated":
        return SimulatedClient()
    return connect(request.getfixturevalue("uri"))


@pytest.fixture
def tracker(client, sweep):
    return open_tracker(client, sweep)


def open_tracker(client, sweep, description="", storage=None, say=lambda _: None) -> Tracker:
    return Tracker(lambda: SweepRuns(client, Page(sweep, description), storage, None), say)


def finish_runs(tracker, *runs, ending="FINISHED") -> Tracker:
    for run in runs:
        tracker.finish(run)
    tracker.close(ending)
    return tracker


def reconcile(client, sweep, results, failures=(), ending="FINISHED") -> dict[str, int]:
    tracker = open_tracker(client, sweep)
    counts = tracker.reconcile(results, failures)
    tracker.close(ending)
    return counts


def active_runs(client, sweep):
    """Return the active runs by key, read without the reader that is tested."""
    experiment = client.get_experiment_by_name(f"isweep/{sweep}").experiment_id
    runs = client.search_runs([experiment])
    assert len({run.data.tags["isweep.run_key"] for run in runs}) == len(runs)
    return {run.data.tags["isweep.run_key"]: run for run in runs}


def statuses(client, sweep):
    return {key: run.info.status for key, run in active_runs(client, sweep).items()}


def losses(client, sweep, storage=None):
    return {row["trial_id"]: row["test_loss"] for row in read_rows(client, sweep, storage)}


def history(client, sweep, key, name):
    points = client.get_metric_history(active_runs(client, sweep)[key].info.run_id, name)
    return sorted((point.step, point.value) for point in points)


class TestRuns:
    def test_rows_are_the_trials_with_a_result(self, tracker, client, sweep):
        tracker.start_trial("b", {"trial_id": "b"})
        tracker.fail_trial(failure("c", "code_error", "boom", 1))
        finish_runs(tracker, finished_run("b", 0.5), finished_run("a", 0.25, train_size=20))
        assert tracker.num_unsent_updates == 0
        rows = read_rows(client, sweep)
        values = [(row["trial_id"], row["test_loss"], row["train_size"]) for row in rows]
        assert values == [("a", 0.25, 20), ("b", 0.5, 10)]
        runs = active_runs(client, sweep)
        assert runs["c"].data.tags["failure_message"] == "boom"
        run_of_sweep = runs.pop("sweep").info.run_id
        assert {run.data.tags["mlflow.parentRunId"] for run in runs.values()} == {run_of_sweep}
        assert history(client, sweep, "a", "epoch_train_loss") == [(1, 0.7), (2, 0.3)]
        # MLflow stores infinity as this number, which is never a value.
        client.log_metric(runs["a"].info.run_id, "test_loss", 1.7976931348623157e308)
        assert "test_loss" not in read_rows(client, sweep)[0]

    def test_all_attempts_of_a_trial_have_one_run(self, client, sweep):
        for attempt in range(3):
            tracker = open_tracker(client, sweep)
            tracker.start_trial("a", {"attempt": str(attempt)})
            if attempt:
                tracker.fail_trial(failure("a", "worker_crash", "gone", attempt))
            tracker.close("KILLED")
            expected_status = "failed" if attempt else "killed"
            assert statuses(client, sweep) == {"a": expected_status.upper(), "sweep": "KILLED"}
            assert active_runs(client, sweep)["a"].data.tags["status"] == expected_status
        finish_runs(open_tracker(client, sweep), finished_run("a", 0.5))
        assert statuses(client, sweep) == {"a": "FINISHED", "sweep": "FINISHED"}

    def test_a_failure_before_the_start_is_sent_keeps_the_tags_of_the_start(self, client, sweep):
        tracker = open_tracker(client, sweep)
        tracker.start_trial("a", {"domain": "natural"})
        tracker.fail_trial(failure("a", "worker_crash", "gone", 1))
        tracker.close("KILLED")
        tags = active_runs(client, sweep)["a"].data.tags
        assert (tags["domain"], tags["failure_message"]) == ("natural", "gone")

    def test_a_later_result_replaces_an_earlier_one_at_any_clock_time(self, tracker, client, sweep):
        for key in ("a", "b"):
            tracker.finish(finished_run(key, 0.5, modified_at=5000))
        tracker.flush()
        finish_runs(
            tracker,
            finished_run("a", 0.25, modified_at=3000),
            finished_run("b", 0.25, modified_at=9000),
        )
        assert losses(client, sweep) == {"a": 0.25, "b": 0.25}

    def test_a_curve_over_n_keeps_its_run_if_sizes_are_added(self, client, sweep):
        curve_tags = {"model": "small_cnn", "recipe": "paper", "dataset": "digits"}

        def log_curve(losses) -> str:
            trials = [finished_run(f"n{size}", loss, size) for size, loss in losses.items()]
            curves = curve_runs(replace(trial, tags=trial.tags | curve_tags) for trial in trials)
            finish_runs(open_tracker(client, sweep), *curves)
            experiment = client.get_experiment_by_name(f"isweep/{sweep}").experiment_id
            (run,) = client.search_runs([experiment], "tags.kind = 'curve'")
            assert run.info.status == "FINISHED"
            points = history(client, sweep, run.data.tags["isweep.run_key"], "test_loss")
            assert points == [*losses.items()]
            return run.info.run_id

        first_run = log_curve({60: 0.5, 120: 0.25})
        assert log_curve({30: 0.75, 60: 0.5, 120: 0.25, 240: 0.125}) == first_run
        run_of_other_mean = log_curve({60: 0.5, 120: 0.375})  # another mean
        assert run_of_other_mean != first_run
        assert log_curve({60: 0.5, 120: 0.375}) == run_of_other_mean
        client.delete_run(run_of_other_mean)
        experiment = client.get_experiment_by_name(f"isweep/{sweep}").experiment_id
        run_of_earlier_version = client.create_run(
            experiment, 1, CURVE_OF_AN_EARLIER_VERSION
        ).info.run_id
        client.log_metric(run_of_earlier_version, "test_loss", 0.25, step=120)
        assert log_curve({60: 0.5, 120: 0.375}) != run_of_earlier_version

    def test_curves_are_shown_while_a_trial_runs_without_repeated_points(
        self, tracker, client, sweep
    ):
        tracker.start_trial("a", {"trial_id": "a"})
        tracker.log_points("a", [CurvePoint("epoch_train_loss", 1, 0.7, 1200)])
        tracker.flush()
        run = active_runs(client, sweep)["a"]
        assert (run.info.status, run.data.metrics) == ("RUNNING", {"epoch_train_loss": 0.7})
        # A worker that died and was started again reports its first epoch again. The result has
        # both epochs.
        tracker.fail_trial(failure("a", "worker_crash", "gone", 1))
        tracker.start_trial("a", {"trial_id": "a", "attempt": "2"})
        tracker.log_points("a", [CurvePoint("epoch_train_loss", 1, 0.7, 1300)])
        tracker.finish(finished_run("a", 0.5))
        tracker.log_points("a", [CurvePoint("epoch_train_loss", 2, 9.0, 1400)])  # too late
        tracker.close("FINISHED")
        assert history(client, sweep, "a", "epoch_train_loss") == [(1, 0.7), (2, 0.3)]

    def test_the_result_replaces_live_values(self, tracker, client, sweep):
        tracker.start_trial("a", {"trial_id": "a"})
        points = [CurvePoint("epoch_train_loss", step, 0.9, 1200) for step in (1, 2, 3)]
        tracker.log_points("a", points)
        tracker.flush()
        finish_runs(tracker, finished_run("a", 0.5))
        run = active_runs(client, sweep)["a"]
        assert run.data.metrics["epoch_train_loss"] == 0.3
        # Notes of a user are not a difference.
        client.set_tag(run.info.run_id, "reviewed", "yes")
        client.log_metric(run.info.run_id, "my_score", 1.0)
        assert reconcile(client, sweep, [finished_run("a", 0.5)]) == UP_TO_DATE


EDITS = {
    "a value logged later": lambda client, run: client.log_metric(
        run, "test_loss", 0.001, 99_000_000_000_000
    ),
    "a value at a later step": lambda client, run: client.log_metric(
        run, "test_loss", 0.001, step=7
    ),
    "a tag": lambda client, run: client.set_tag(run, "class_pair", "3-8"),
    "a status": lambda client, run: client.set_terminated(run, "FAILED"),
    "a metric too many": lambda client, run: client.log_metric(run, "d_repr_mle", 3.0),
    "one of an attack too many": lambda client, run: client.log_metric(
        run, "fgsm_2_loss_gain", 3.0
    ),
}


class TestReconcile:
    def test_reconcile_sends_missing_results_closes_open_runs_and_deletes_duplicates(
        self, tracker, client, sweep
    ):
        tracker.start_trial("ghost", {})
        tracker.finish(finished_run("shown", 0.5))
        tracker.flush()  # then comes a SIGKILL: no run is closed
        experiment = client.get_experiment_by_name(f"isweep/{sweep}").experiment_id
        duplicate = client.create_run(experiment, tags={"isweep.run_key": "shown", "kind": "trial"})
        next_tracker = open_tracker(client, sweep)
        results = [finished_run("shown", 0.5), finished_run("missed", 0.75)]
        counts = next_tracker.reconcile(results)
        assert counts == {"replayed": 1, "closed": 1, "duplicates": 1, "up_to_date": 1}
        assert next_tracker.reconcile(results) == {**UP_TO_DATE, "up_to_date": 2}
        next_tracker.close("FINISHED")
        assert losses(client, sweep) == {"missed": 0.75, "shown": 0.5}
        assert client.get_run(duplicate.info.run_id).info.lifecycle_stage == "deleted"
        assert statuses(client, sweep)["ghost"] == "KILLED"

    @pytest.mark.parametrize("name", EDITS)
    def test_reconcile_corrects_changed_values(self, tracker, client, sweep, name):
        finish_runs(tracker, finished_run("a", 0.5))
        old = active_runs(client, sweep)["a"].info.run_id
        EDITS[name](client, old)
        assert reconcile(client, sweep, [finished_run("a", 0.5)])["replayed"] == 1
        assert reconcile(client, sweep, [finished_run("a", 0.5)]) == UP_TO_DATE
        (row,) = read_rows(client, sweep)
        assert (row["test_loss"], row["class_pair"]) == (0.5, "")
        assert not {"d_repr_mle", "fgsm_2_loss_gain"} & set(row)
        assert statuses(client, sweep) == {"a": "FINISHED", "sweep": "FINISHED"}
        # MLflow cannot remove a metric, so the run is deleted and another one is made.
        is_replaced = "too many" in name
        assert (active_runs(client, sweep)["a"].info.run_id != old) == is_replaced
        old_run = client.get_run(old)
        assert old_run.info.lifecycle_stage == ("deleted" if is_replaced else "active")

    def test_reconcile_shows_a_copied_result_with_the_name_of_its_sweep(
        self, tracker, client, sweep
    ):
        """Trial and numbers are equal: only the name of the sweep differs."""
        run = finished_run("a", 0.5)
        copied = replace(run, tags={**run.tags, "sweep": "other"})
        finish_runs(tracker, run)
        assert reconcile(client, sweep, [copied])["replayed"] == 1
        assert [row["sweep"] for row in read_rows(client, sweep)] == ["other"]
        assert reconcile(client, sweep, [copied]) == UP_TO_DATE

    def test_reconcile_sends_a_failure_once(self, client, sweep):
        end_times = []
        for message in ("boom", "boom", "another"):
            reconcile(client, sweep, [], [failure("a", "code_error", message, 2)], "KILLED")
            run = active_runs(client, sweep)["a"]
            assert (run.info.status, run.data.tags["failure_message"]) == ("FAILED", message)
            end_times.append(run.info.end_time)
        assert end_times[0] == end_times[1]

    def test_a_failed_measurement_does_not_hide_the_result_of_its_trial(self, client, sweep):
        result = finished_run("a", 0.5)
        failed_measurement = failure("a", "code_error", "the attack failed", 2)
        assert reconcile(client, sweep, [result], [failed_measurement])["replayed"] == 1
        assert reconcile(client, sweep, [result], [failed_measurement]) == UP_TO_DATE
        assert losses(client, sweep) == {"a": 0.5}
        assert statuses(client, sweep) == {"a": "FINISHED", "sweep": "FINISHED"}

    def test_reconcile_corrects_a_result_that_is_shown_as_failed(self, client, sweep):
        result = finished_run("a", 0.5)
        failed_measurement = failure("a", "code_error", "the attack failed", 2)
        reconcile(client, sweep, [], [failed_measurement])
        assert statuses(client, sweep)["a"] == "FAILED"
        assert reconcile(client, sweep, [result], [failed_measurement])["replayed"] == 1
        assert losses(client, sweep) == {"a": 0.5}
        assert statuses(client, sweep)["a"] == "FINISHED"

    def test_reconcile_shows_which_network_failed_even_if_mlflow_has_no_run_of_it(
        self, client, sweep
    ):
        trial = trial_spec()
        reconcile(client, sweep, [], [failure(trial.trial_id, "code_error", "boom", 2)], "KILLED")
        tags = active_runs(client, sweep)[trial.trial_id].data.tags
        expected = trial_tags(trial, None, "failed", 2)
        del expected["domain"]
        assert expected.items() <= tags.items()

    @pytest.mark.parametrize("status", ["FAILED", "KILLED"])
    def test_a_refused_start_does_not_change_the_run_of_a_finished_sweep(
        self, client, sweep, status
    ):
        finish_runs(open_tracker(client, sweep, "as it ran"), finished_run("a", 0.5))
        before = active_runs(client, sweep)["sweep"]
        refused_tracker = open_tracker(client, sweep, "as it is refused")
        refused_tracker.reconcile([finished_run("a", 0.5)], wait=False)
        refused_tracker.close(status)
        after = active_runs(client, sweep)["sweep"]
        assert (after.info.status, after.info.end_time) == ("FINISHED", before.info.end_time)
        assert after.data.tags["description"] == "as it ran"
        working_tracker = open_tracker(client, sweep, "as it ran again")
        working_tracker.start_trial("b", {})
        working_tracker.close(status)
        after = active_runs(client, sweep)["sweep"]
        assert (after.info.status, after.data.tags["description"]) == (status, "as it ran again")


class TestRunOfTheSweep:
    @pytest.fixture
    def report(self, tmp_path):
        (tmp_path / "report" / "figures").mkdir(parents=True)
        for name in ("report.html", "results.csv", "figures/one.png"):
            (tmp_path / "report" / name).write_text(name)
        return tmp_path / "report"

    @staticmethod
    def files(client, sweep):
        run = active_runs(client, sweep)["sweep"].info.run_id
        artifacts = client.list_artifacts(run, "report")
        for folder in [artifact for artifact in artifacts if artifact.is_dir]:
            artifacts = [*artifacts, *client.list_artifacts(run, folder.path)]
        return sorted(artifact.path for artifact in artifacts if not artifact.is_dir)

    def test_the_run_of_a_sweep_has_final_numbers_and_every_file(
        self, tracker, client, sweep, report
    ):
        tracker.log_counts(7, {"trials_done": 5, "trials_failed": 2})
        tracker.flush()
        tracker.log_counts(8, {"trials_done": 6, "trials_failed": 2})
        final_numbers = {"trials_done": 8, "trials_failed": 0, "best": 0.5, "none": float("inf")}
        tracker.log_report(final_numbers, report)
        tracker.close("FINISHED")
        metrics = active_runs(client, sweep)["sweep"].data.metrics
        assert metrics == {"trials_done": 8, "trials_failed": 0, "best": 0.5}
        assert history(client, sweep, "sweep", "trials_done") == [(7, 5), (8, 6), (8, 8)]
        names = ("figures/one.png", "report.html", "results.csv")
        assert self.files(client, sweep) == [f"report/{name}" for name in names]

    def test_the_run_of_a_sweep_is_corrected_like_every_other_run(self, client, sweep, report):
        """The next driver sends updates that are missing, values that changed and new reports."""
        killed = open_tracker(client, sweep)
        killed.log_counts(1, {"trials_done": 1})
        killed.close("KILLED")
        for number, (done, page) in enumerate([(2, "first"), (3, "second"), (3, "second")]):
            (report / "report.html").write_text(page)
            next_tracker = open_tracker(client, sweep, "as it is now")
            next_tracker.log_report({"trials_done": done}, report)
            next_tracker.reconcile([])
            next_tracker.close("FINISHED")
            run = active_runs(client, sweep)["sweep"]
            assert (run.info.status, run.data.metrics["trials_done"]) == ("FINISHED", done)
            assert run.data.tags["description"] == "as it is now"
            points = client.get_metric_history(run.info.run_id, "trials_done")
            assert len(points) == min(number, 1) + 2  # none is sent twice
            if isinstance(client, SimulatedClient):
                artifacts = client.runs[run.info.run_id]["artifacts"]
                assert artifacts["report/report.html"] == page.encode()
        assert len(self.files(client, sweep)) == 3

    def test_files_are_sent_one_by_one(self, sweep, report, short_pauses):
        """Most calls fail, but no file is sent again after an answer."""
        for number in range(20):
            (report / f"file{number}").write_text("x")
        client = SimulatedClient()
        calls = []
        real_log_artifact = client.log_artifact

        def fails(call_number):
            return random.Random(call_number).random() < 0.7

        def log_artifact(run, path, place):
            calls.append(path)
            if fails(len(calls)):
                raise ConnectionResetError("the reply was lost")
            real_log_artifact(run, path, place)

        client.log_artifact = log_artifact
        tracker = open_tracker(client, sweep)
        tracker.log_report({}, report)
        tracker.close("FINISHED")
        assert tracker.num_unsent_updates == 0
        assert len(self.files(client, sweep)) == 23
        answered = [path for number, path in enumerate(calls, 1) if not fails(number)]
        assert len(answered) == len(set(answered)) == 23


@pytest.fixture
def short_pauses(monkeypatch):
    monkeypatch.setattr(round_pauses, "FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(round_pauses, "MAX_PAUSE_S", 0.01)


WAITING = (
    "isweep waits until MLflow has stored all results. If MLflow does not answer, isweep waits at "
    "most 0 s"
)


def test_a_dead_server_loses_no_result_and_unsent_updates_are_counted(
    sweep, monkeypatch, short_pauses
):
    client = SimulatedClient()
    messages = []
    for name in ("FINISHED_SWEEP", "STOPPED_SWEEP"):
        monkeypatch.setattr(tracking, name, WaitLimit(idle_s=0.3))
    monkeypatch.setattr(outage_notes, "WARN_AFTER_S", 0.0)
    tracker = open_tracker(client, sweep, say=messages.append)
    tracker.flush()

    def fail_to_connect(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr(client, "create_run", fail_to_connect)
    monkeypatch.setattr(client, "search_runs", fail_to_connect)
    tracker.finish(finished_run("a", 0.5))
    with pytest.raises(
        SetupError, match=r"MLflow does not answer: no route\. Run `isweep reconcile SWEEP` later"
    ):
        tracker.reconcile([finished_run("a", 0.5), finished_run("b", 0.5)])
    tracker.close("FINISHED")
    assert tracker.num_unsent_updates == 4  # both results, the run of the sweep and its end
    assert messages == [
        "MLflow does not answer: no route. isweep tries again. The result store has all results",
        WAITING,
    ]


def test_a_server_that_is_down_at_the_start_gets_all_updates_later(
    sweep, monkeypatch, short_pauses
):
    monkeypatch.setattr(outage_notes, "WARN_AFTER_S", 0.0)
    client = SimulatedClient()
    up = threading.Event()
    messages = []

    def connect_later():
        if not up.is_set():
            raise SetupError("The MLflow store does not answer: Connection refused")
        return SweepRuns(client, Page(sweep), None, None)

    tracker = Tracker(connect_later, messages.append)
    tracker.check()  # a server that does not answer ends no sweep
    tracker.start_trial("a", {"trial_id": "a"})
    tracker.finish(finished_run("a", 0.5))
    assert tracker.num_unsent_updates == 2  # the run of the trial and that of the sweep
    up.set()
    tracker.close("FINISHED")
    assert tracker.num_unsent_updates == 0
    assert statuses(client, sweep) == {"a": "FINISHED", "sweep": "FINISHED"}
    assert [text.split(":")[0] for text in messages] == [
        "The MLflow store does not answer",
        "MLflow answers again",
    ]


def test_a_server_that_refuses_the_user_is_an_error_at_once(sweep):
    calls = []

    def refuse():
        calls.append(1)
        raise Refused("The MLflow store refuses this user", hint="Log in")

    tracker = Tracker(refuse)
    with pytest.raises(SetupError, match=r"refuses this user\. Log in"):
        tracker.check()
    with pytest.raises(SetupError, match=r"refuses this user\. Log in"):
        tracker.reconcile([finished_run(f"t{number}", 0.5) for number in range(100)])
    tracker.close("FAILED")
    assert len(calls) < 10  # fewer than the number of runs


def test_a_late_tracker_connects_with_its_first_update(sweep, short_pauses):
    client = SimulatedClient()
    connections: list[int] = []

    def connect_once():
        connections.append(1)
        return SweepRuns(client, Page(sweep), None, None)

    idle = Tracker(connect_once, connect_at_first_update=True)
    busy = Tracker(connect_once, connect_at_first_update=True)
    for tracker in (idle, busy):
        tracker.check()
        tracker.reconcile([], wait=False)
    idle.close("FAILED")  # this tracker has done nothing, so it has nothing to close
    assert connections == []
    busy.start_trial("a", {"trial_id": "a"})
    busy.close("KILLED")
    assert connections == [1]
    assert statuses(client, sweep) == {"a": "KILLED", "sweep": "KILLED"}
    late_tracker = Tracker(connect_once, connect_at_first_update=True)
    assert late_tracker.reconcile([finished_run("b", 0.5)])["replayed"] == 1


def test_an_update_that_mlflow_refuses_is_counted_until_it_is_accepted(sweep):
    client = SimulatedClient()
    real_log_batch = client.log_batch

    def refuse(*_, **__):
        raise Refused("A tag is too long")

    tracker = open_tracker(client, sweep)
    tracker.flush()
    client.log_batch = refuse
    tracker.finish(finished_run("a", 0.5))
    with pytest.raises(SetupError, match="A tag is too long"):
        tracker.reconcile([finished_run("a", 0.5)])
    assert tracker.num_unsent_updates == 1
    client.log_batch = real_log_batch
    assert tracker.reconcile([finished_run("a", 0.5)])["replayed"] == 1
    tracker.close("FINISHED")
    assert tracker.num_unsent_updates == 0


def test_check_reports_a_refused_experiment_as_a_setup_error():
    def refuse():
        raise MlflowException("not your experiment", PERMISSION_DENIED)

    tracker = Tracker(refuse)
    with pytest.raises(
        SetupError, match=r"MLflow refuses the connection: .*not your experiment.*--no-tracking"
    ):
        tracker.check()
    tracker.close("FAILED")


def test_an_update_that_always_fails_does_not_keep_runs_open(
    sweep, monkeypatch, short_pauses, tmp_path
):
    monkeypatch.setattr(tracking, "FINISHED_SWEEP", WaitLimit(idle_s=0.3))
    (tmp_path / "report.html").write_text("report")
    client = SimulatedClient()

    def refuse_to_write(*_):
        raise PermissionError(13, "Permission denied")

    client.log_artifact = refuse_to_write
    tracker = open_tracker(client, sweep)
    tracker.start_trial("a", {"trial_id": "a"})
    tracker.flush()
    tracker.log_report({"trials_done": 0}, tmp_path)
    tracker.close("FINISHED")
    assert statuses(client, sweep) == {"a": "KILLED", "sweep": "FINISHED"}
    assert tracker.num_unsent_updates == 1  # the report


def test_the_updates_behind_those_that_always_fail_are_sent_at_the_end(
    sweep, monkeypatch, short_pauses
):
    monkeypatch.setattr(tracking, "FINISHED_SWEEP", WaitLimit(idle_s=0.3))
    client = SimulatedClient()
    send = client.log_batch
    tracker = open_tracker(client, sweep)
    tracker.flush()

    def fail_for_some_runs(run_id, metrics=(), params=(), tags=()):
        # The metrics of a result with this loss are never stored.
        if any(metric.value == 0.125 for metric in metrics):
            raise MlflowException("value too long", INTERNAL_ERROR)
        send(run_id, metrics, params, tags)

    client.log_batch = fail_for_some_runs
    for index in range(5):
        tracker.finish(finished_run(f"bad{index}", 0.125))
    for index in range(5):
        tracker.finish(finished_run(f"good{index}", 0.5))
    tracker.log_report({"trials_done": 10})

    tracker.close("FINISHED")

    assert tracker.num_unsent_updates == 5
    stored = losses(client, sweep)
    assert {key: loss for key, loss in stored.items() if key.startswith("good")} == {
        f"good{index}": 0.5 for index in range(5)
    }
    assert statuses(client, sweep)["sweep"] == "FINISHED"


def test_an_end_that_fails_once_in_the_last_round_is_tried_again(sweep, monkeypatch, short_pauses):
    monkeypatch.setattr(tracking, "FINISHED_SWEEP", WaitLimit(idle_s=0.3))
    client = SimulatedClient()
    tracker = open_tracker(client, sweep)
    tracker.flush()
    send = client.log_batch
    end_run = client.set_terminated
    ended_runs = []

    def fail_for_the_result(run_id, metrics=(), params=(), tags=()):
        if any(metric.key == "test_loss" for metric in metrics):
            raise MlflowException("value too long", INTERNAL_ERROR)
        send(run_id, metrics, params, tags)

    def fail_once(run_id, *args, **kwargs):
        ended_runs.append(run_id)
        if len(ended_runs) == 1:
            raise ConnectionResetError("the reply was lost")
        end_run(run_id, *args, **kwargs)

    client.log_batch = fail_for_the_result
    client.set_terminated = fail_once
    tracker.finish(finished_run("a", 0.5))

    tracker.close("FINISHED")

    assert statuses(client, sweep)["sweep"] == "FINISHED"
    assert tracker.num_unsent_updates == 1  # the result


def test_an_update_that_always_fails_is_reported_once_and_not_as_a_server_without_answer(
    sweep, monkeypatch, short_pauses
):
    monkeypatch.setattr(tracking, "FINISHED_SWEEP", WaitLimit(idle_s=0.1))
    monkeypatch.setattr(outage_notes, "WARN_AFTER_S", 0.0)
    client = SimulatedClient()
    send = client.log_batch
    messages = []
    tracker = open_tracker(client, sweep, say=messages.append)
    tracker.start_trial("first", {})
    tracker.flush()

    def fail_for_one_result(run_id, metrics=(), params=(), tags=()):
        if any(metric.value == 0.125 for metric in metrics):
            raise MlflowException("value too long", INTERNAL_ERROR)
        send(run_id, metrics, params, tags)

    client.log_batch = fail_for_one_result
    with tracker._sender.lock:  # both updates are sent in one round
        tracker.finish(finished_run("first", 0.5))
        tracker.finish(finished_run("bad", 0.125))
    for index in range(5):
        assert not tracker.flush()  # only the update of "bad" is left
        tracker.finish(finished_run(f"good{index}", 0.5))
    tracker.close("FINISHED")

    assert messages == [
        "MLflow stores other updates, but not the update of bad: value too long. "
        "isweep tries again. The result store has all results",
        WAITING,
    ]


def test_a_message_that_cannot_be_printed_does_not_stop_the_updates(
    sweep, monkeypatch, short_pauses
):
    monkeypatch.setattr(outage_notes, "WARN_AFTER_S", 0.0)
    client = SimulatedClient()
    up = threading.Event()
    warned = threading.Event()

    def connect_later():
        if not up.is_set():
            raise ConnectionError("no route")
        return SweepRuns(client, Page(sweep), None, None)

    def fail_to_print(_):
        warned.set()
        raise OSError("the terminal is closed")

    tracker = Tracker(connect_later, fail_to_print)
    tracker.finish(finished_run("a", 0.5))
    assert warned.wait(timeout=30)
    up.set()
    tracker.close("FINISHED")
    assert tracker.num_unsent_updates == 0
    assert losses(client, sweep) == {"a": 0.5}


def test_a_refused_update_does_not_discard_the_newer_one(sweep):
    client = SimulatedClient()
    real_log_batch = client.log_batch
    tracker = open_tracker(client, sweep)
    tracker.flush()

    def refuse_once(*_, **__):
        client.log_batch = real_log_batch
        tracker.finish(finished_run("a", 0.25))  # while MLflow processes the older result
        raise Refused("A tag is too long")

    client.log_batch = refuse_once
    tracker.finish(finished_run("a", 0.5))
    assert tracker.flush()
    assert tracker.num_unsent_updates == 0
    assert losses(client, sweep) == {"a": 0.25}
    tracker.close("FINISHED")


def test_two_stores_on_one_server_never_mix(client, sweep):
    first, second = "a" * 16, "b" * 16
    for storage, loss in ((first, 0.5), (second, 0.25)):
        finish_runs(open_tracker(client, sweep, storage=storage), finished_run("x", loss))
    assert losses(client, sweep, first) == {"x": 0.5}
    assert losses(client, sweep, second) == {"x": 0.25}
    assert losses(client, sweep, "c" * 16) == {}


# The URI, the answers and the files of MLflow


def test_a_check_of_mlflow_creates_nothing_and_a_file_store_is_refused(root):
    workspace = Workspace.open("smoke", root)
    assert tracked_rows(workspace, None, None) == []
    expected = f"the first run creates {workspace.paths.mlflow_database}"
    assert check_tracker(workspace.paths, None) == expected
    for bad in ("./mlruns", "file:///tmp/mlruns", "mlruns", "foo://h/x"):
        with pytest.raises(ConfigError, match="is neither a database nor a server"):
            mlflow_uri(workspace.paths, bad)
    assert not workspace.paths.root.is_dir()


@pytest.mark.parametrize("sign", ["?", "%"])
def test_a_root_whose_path_changes_in_a_url_cannot_have_the_database(sign, tmp_path):
    workspace = Workspace.open("smoke", tmp_path / f"my{sign}41root")
    workspace.paths.make()
    with pytest.raises(
        ConfigError, match=r"root .* contains '\?' or '%', so .*\. Choose another root with --root"
    ):
        make_tracker(workspace, ResultStore(workspace.results_url), None)
    assert mlflow_uri(workspace.paths, "http://127.0.0.1:5000") == "http://127.0.0.1:5000"
    assert [path.name for path in tmp_path.iterdir()] == [f"my{sign}41root"]


def test_a_server_that_hangs_delays_neither_start_nor_end(sweep, monkeypatch):
    monkeypatch.setattr(tracking, "FIRST_ANSWER_S", 0.2)
    monkeypatch.setattr(tracking, "STOPPED_SWEEP", WaitLimit(idle_s=0.2))
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        tracker = Tracker(lambda: SweepRuns(connect(uri), Page(sweep), None, None))
        tracker.check()
        tracker.start_trial("a", {"trial_id": "a"})
        tracker.close("KILLED")
        assert tracker.num_unsent_updates == 3


def test_a_server_that_does_not_answer_is_an_error_without_the_password():
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    message = rf"The MLflow store http://…@127\.0\.0\.1:{port} does not answer: Connection refused\. .*--no-tracking"
    with pytest.raises(SetupError, match=message) as caught:
        connect(f"http://user:secret@127.0.0.1:{port}")
    assert "secret" not in str(caught.value)


def test_a_database_that_cannot_be_opened_is_not_tried_for_minutes(tmp_path, monkeypatch):
    pauses = []
    monkeypatch.setattr("time.sleep", pauses.append)
    (tmp_path / "folder.db").mkdir()
    (tmp_path / "text.db").write_text("no database, but a text that is long enough to be none")
    for name, reason in (
        ("folder", r"unable to open database file\. Start the MLflow server"),
        (
            "text",
            r"file is not a database\. Rename the file, and run `isweep reconcile SWEEP` for every sweep",
        ),
    ):
        with pytest.raises(
            SetupError, match=f"sqlite:.* (cannot be used|does not answer): .*{reason}"
        ):
            connect(f"sqlite:///{tmp_path}/{name}.db")
    assert sum(pauses) < 5


@pytest.mark.parametrize(
    ("error", "hint", "final"),
    [
        ('password authentication failed for user "lab"', "", True),
        ('database "isweep" does not exist', "", True),
        ("the database system is starting up", "", False),
        ("Connection refused", "", False),
        (
            ModuleNotFoundError("No module named 'psycopg'"),
            r"pip install 'isweep\[postgres\]'",
            True,
        ),
    ],
)
def test_a_database_error_that_will_not_change_is_refused_at_once(monkeypatch, error, hint, final):
    def refuse(*_, **__):
        if isinstance(error, Exception):
            raise error
        text = f'connection to server at "127.0.0.1", port 5432 failed: FATAL:  {error}'
        raise OperationalError("select 1", {}, Exception(text))

    monkeypatch.setattr("sqlalchemy.create_engine", refuse)
    problem = "cannot be used" if final else "does not answer"
    message = f"The MLflow store postgresql://h/x {problem}: .*{hint}"
    with pytest.raises(SetupError, match=message) as caught:
        connect("postgresql://h/x")
    assert isinstance(caught.value, Refused) == final


@pytest.mark.parametrize(
    "password", ["p@canary-word", "p%40canary-word", "p:canary-word", "p/canary-word"]
)
def test_a_password_that_a_driver_takes_for_a_host_stays_secret(password):
    """Psycopg prints such a part as a host: parsers disagree on where an unescaped password ends."""
    uri = f"postgresql://lab:{password}@db:5432/isweep"
    host = password.partition("@")[2] or password
    message = first_line(OSError(f"failed to resolve host '{host}@db' or 'canary-word@db'"), uri)
    assert "canary" not in message
    assert message.startswith("failed to resolve host")


def test_a_broken_proxy_is_not_reported_as_a_server_that_refuses_the_connection():
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        proxy = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(requests.ConnectionError) as caught:
        requests.get("https://mlflow.invalid/", proxies={"https": proxy}, timeout=5)
    assert first_line(caught.value).endswith("connect to proxy")


def test_a_driver_stopped_while_tables_are_created_leaves_no_broken_database(tmp_path, monkeypatch):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"

    def interrupt(engine):
        with engine.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE experiments (experiment_id INTEGER)")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("mlflow.store.db.utils._initialize_tables", interrupt)
        with pytest.raises(KeyboardInterrupt, match=r"^$"):
            connect(uri)
    assert not [path for path in tmp_path.iterdir() if path.is_file()]
    assert [experiment.name for experiment in connect(uri).search_experiments()] == ["Default"]
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["mlflow.db"]


def test_a_root_that_was_moved_stores_artifacts_in_its_new_folder(uri, tmp_path, monkeypatch):
    if not uri.startswith("sqlite"):
        pytest.skip("the file of a root")
    report = tmp_path / "report"
    first = tmp_path / "first"
    second = tmp_path / "moved"
    report.mkdir()
    for root, page in ((first, "first"), (second, "second")):
        (report / "report.html").write_text(page)
        if root == second:
            first.rename(second)
            # As in another process: MLflow caches where it stored the artifacts of a run.
            monkeypatch.setattr("mlflow.tracking._tracking_service.utils._artifact_repos_cache", {})
        workspace = Workspace.open("smoke", root)
        workspace.paths.make()
        if root == first:
            shutil.copyfile(uri.removeprefix("sqlite:///"), workspace.paths.mlflow_database)
        tracker = make_tracker(workspace, ResultStore(workspace.results_url), None)
        tracker.log_report({}, report)
        tracker.close("FINISHED")
        assert tracker.num_unsent_updates == 0
    assert not first.exists()
    pages = [path.read_text() for path in second.rglob("report/report.html")]
    assert pages == ["second"]


def test_a_report_links_to_the_runs_that_mlflow_shows(uri, sweep, tmp_path, caplog):
    client = connect(uri)
    tracker = finish_runs(open_tracker(client, sweep), finished_run("a", 0.5))
    tracker.save_run_pages(tmp_path / "pages.json")
    Tracker().save_run_pages(tmp_path / "pages.json")  # a run without tracking keeps the file
    pages = read_run_pages(tmp_path / "pages.json")
    assert pages.runs["a"] == active_runs(client, sweep)["a"].info.run_id
    experiment = client.get_experiment_by_name(f"isweep/{sweep}").experiment_id
    assert pages.prefix == f"http://127.0.0.1:5000/#/experiments/{experiment}/runs/"
    (tmp_path / "pages.json").write_text("{")
    assert read_run_pages(tmp_path / "pages.json") == RunPages()
    assert read_run_pages(tmp_path / "absent") == RunPages()
    assert "reports have no links to MLflow" in caplog.text


def test_pages_of_mlflow_have_names_and_links(client, sweep):
    page = Page(sweep, "Digits against slices.", 3, "fgsm_1_loss_gain")
    tracker = Tracker(lambda: SweepRuns(client, page, None, None))
    run = finished_run("a", 0.5)
    tags = {
        "dataset": "digits",
        "class_pair": "3-8",
        "model": "small_cnn",
        "seed": "1",
        "recipe": "demo",
    }
    run.tags.update(tags)
    finish_runs(tracker, run)
    runs = active_runs(client, sweep)
    assert runs["a"].data.tags["mlflow.runName"] == "small_cnn N=10 digits 3-8 seed 1"
    experiment = client.get_experiment_by_name(f"isweep/{sweep}")
    note = experiment.tags["mlflow.note.content"]
    assert note == runs["sweep"].data.tags["mlflow.note.content"]
    links, description, _ = note.split("\n\n")  # MLflow shows the first line until it is opened
    assert links.count("](#/") == 3
    assert description == "Digits against slices."
    pages = f"#/experiments/{experiment.experiment_id}/runs?viewStateShareKey="
    charts = "&compareRunsMode=CHART"
    for view, mode in (("best", ""), ("curve", charts), ("sharpness", charts)):
        assert f"({pages}{view}{mode}&workflowType=machine_learning)" in links
        assert experiment.tags[f"mlflow.sharedViewState.{view}"].startswith("{")


# Differences between MLflow and the store: the numbers of the store are used, and the difference
# is reported.


def test_differing_values_and_missing_trials_are_counted():
    rows = [{"trial_id": name, "model": "m", "test_loss": 0.5} for name in ("a", "b", "c")]
    # A column that a user added is not a difference.
    with_note = [row | {"my_note": 1.0} for row in rows[::-1]]
    assert differences(rows, with_note, "mend") == []
    different_rows = [
        {"trial_id": name, "model": "other", "data_fingerprint": "x"} for name in ("a", "b", "x")
    ]
    assert differences(rows, different_rows, "mend") == [
        "MLflow differs from the result store in 6 values of 2 trials (model of a is 'other' in "
        "MLflow, but 'm' in the result store; test_loss of a is nothing in MLflow, but 0.5 in the "
        "result store; data_fingerprint of a is 'x' in MLflow, but nothing in the result store; "
        "and 3 more). isweep uses the values of the result store. To correct MLflow, run `mend`.",
        "MLflow lacks 1 result of the result store. To send the missing results to MLflow, run "
        "`mend`.",
        "isweep ignores rows of 1 trial in MLflow, because these trials have no result in this "
        "sweep.",
    ]


def test_telemetry_of_mlflow_is_off():
    from mlflow.environment_variables import MLFLOW_DISABLE_TELEMETRY

    assert MLFLOW_DISABLE_TELEMETRY.get()
