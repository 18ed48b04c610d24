"""MLflow shows what the store has, whatever becomes of calls, servers and files on the way."""

import os
import random
import shutil
import socket
import threading
from contextlib import closing
from dataclasses import replace

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, PERMISSION_DENIED
from sqlalchemy.exc import OperationalError

from orchestrator.planning.workspace import Workspace
from orchestrator.results import tracking
from orchestrator.results.flat_runs import CurvePoint, FlatRun, curve_runs
from orchestrator.results.mlflow_connection import check_tracker, connect, mlflow_uri
from orchestrator.results.mlflow_differences import differences, tracked_rows
from orchestrator.results.mlflow_errors import Refused, first_line
from orchestrator.results.mlflow_pages import Page, RunPages, read_run_pages
from orchestrator.results.mlflow_runs import SweepRuns, read_rows
from orchestrator.results.records import FailureKind, FailureRecord, TrialFailure
from orchestrator.results.store import ResultStore
from orchestrator.results.sweep_tracking import make_tracker
from orchestrator.results.tracking import Tracker
from search_spaces.errors import ConfigError, SetupError
from tests.mlflow_client import SimulatedClient
from tests.unit.orchestrator.results.examples import trial_spec

CURVE_OF_AN_EARLIER_VERSION = {"isweep.run_key": "curve small_cnn paper digits", "kind": "curve"}
UP_TO_DATE = {"replayed": 0, "closed": 0, "duplicates": 0, "up_to_date": 1}


def flat(key: str, loss: float, train_size: int = 10, made: int = 2000) -> FlatRun:
    about = {
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
    return FlatRun(
        key, about, params, {"test_loss": loss, "d_data_mle": 9.5}, epochs, 1000, 2000, made
    )


def failed(key: str, kind: str, message: str, attempt: int) -> FailureRecord:
    failure = TrialFailure(kind=FailureKind(kind), message=message)
    return FailureRecord(trial_id=key, spec=trial_spec(), attempt=attempt, failure=failure)


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    """One database for the module: making MLflow's tables costs seconds.

    ``TEST_DATABASE`` names another one, such as a PostgreSQL server's.
    """
    made = (
        os.environ.get("TEST_DATABASE")
        or f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"
    )
    connect(made)
    return made


@pytest.fixture
def sweep(request):
    return request.node.name.replace("[", "-").replace("]", "")


@pytest.fixture(params=["simulated", "mlflow"])
def client(request):
    return (
        SimulatedClient()
        if request.param == "simulated"
        else connect(request.getfixturevalue("uri"))
    )


@pytest.fixture
def tracker(client, sweep):
    return opened(client, sweep)


def opened(client, sweep, description="", storage=None, say=lambda _: None) -> Tracker:
    return Tracker(lambda: SweepRuns(client, Page(sweep, description), storage, None), say)


def finished(tracker, *runs, ending="FINISHED") -> Tracker:
    for run in runs:
        tracker.finish(run)
    tracker.close(ending)
    return tracker


def reconciled(client, sweep, results, failures=(), ending="FINISHED") -> dict[str, int]:
    tracker = opened(client, sweep)
    counts = tracker.reconcile(results, failures)
    tracker.close(ending)
    return counts


def shown(client, sweep):
    """Return the runs that count by key, asked without our own reader."""
    experiment = client.get_experiment_by_name(f"isweep/{sweep}").experiment_id
    runs = client.search_runs([experiment])
    assert len({run.data.tags["isweep.run_key"] for run in runs}) == len(runs)
    return {run.data.tags["isweep.run_key"]: run for run in runs}


def statuses(client, sweep):
    return {key: run.info.status for key, run in shown(client, sweep).items()}


def losses(client, sweep, storage=None):
    return {row["trial_id"]: row["test_loss"] for row in read_rows(client, sweep, storage)}


def history(client, sweep, key, name):
    points = client.get_metric_history(shown(client, sweep)[key].info.run_id, name)
    return sorted((point.step, point.value) for point in points)


class TestWhatIsShown:
    def test_rows_are_the_trials_with_a_result(self, tracker, client, sweep):
        tracker.start_trial("b", {"trial_id": "b"})
        tracker.fail_trial(failed("c", "code_error", "boom", 1))
        finished(tracker, flat("b", 0.5), flat("a", 0.25, train_size=20))
        assert tracker.num_unsent_updates == 0
        rows = [
            (row["trial_id"], row["test_loss"], row["train_size"])
            for row in read_rows(client, sweep)
        ]
        assert rows == [("a", 0.25, 20), ("b", 0.5, 10)]
        runs = shown(client, sweep)
        assert runs["c"].data.tags["failure_message"] == "boom"
        own = runs.pop("sweep").info.run_id
        assert {run.data.tags["mlflow.parentRunId"] for run in runs.values()} == {own}
        assert history(client, sweep, "a", "epoch_train_loss") == [(1, 0.7), (2, 0.3)]
        # MLflow keeps infinity as a number, which is never a value.
        client.log_metric(runs["a"].info.run_id, "test_loss", 1.7976931348623157e308)
        assert "test_loss" not in read_rows(client, sweep)[0]

    def test_one_run_per_trial_for_ever(self, client, sweep):
        for attempt in range(3):
            tracker = opened(client, sweep)
            tracker.start_trial("a", {"attempt": str(attempt)})
            if attempt:
                tracker.fail_trial(failed("a", "worker_crash", "gone", attempt))
            tracker.close("KILLED")
            assert statuses(client, sweep) == {
                "a": "FAILED" if attempt else "KILLED",
                "sweep": "KILLED",
            }
            ended = "failed" if attempt else "killed"
            assert shown(client, sweep)["a"].data.tags["status"] == ended
        finished(opened(client, sweep), flat("a", 0.5))
        assert statuses(client, sweep) == {"a": "FINISHED", "sweep": "FINISHED"}

    def test_a_later_result_replaces_an_earlier_one_whatever_the_clock_says(
        self, tracker, client, sweep
    ):
        for key in ("a", "b"):
            tracker.finish(flat(key, 0.5, made=5000))
        tracker.flush()
        finished(tracker, flat("a", 0.25, made=3000), flat("b", 0.25, made=9000))
        assert losses(client, sweep) == {"a": 0.25, "b": 0.25}

    def test_a_curve_over_n_has_one_run_which_stays_whatever_sizes_are_added(self, client, sweep):
        about = {"model": "small_cnn", "recipe": "paper", "dataset": "digits"}

        def drawn(losses) -> str:
            trials = [flat(f"n{size}", loss, size) for size, loss in losses.items()]
            curves = curve_runs(replace(one, tags=one.tags | about) for one in trials)
            finished(opened(client, sweep), *curves)
            experiment = client.get_experiment_by_name(f"isweep/{sweep}").experiment_id
            (run,) = client.search_runs([experiment], "tags.kind = 'curve'")
            assert run.info.status == "FINISHED"
            assert history(client, sweep, run.data.tags["isweep.run_key"], "test_loss") == [
                *losses.items()
            ]
            return run.info.run_id

        first = drawn({60: 0.5, 120: 0.25})
        assert drawn({30: 0.75, 60: 0.5, 120: 0.25, 240: 0.125}) == first
        other = drawn({60: 0.5, 120: 0.375})  # another mean
        assert other != first
        assert drawn({60: 0.5, 120: 0.375}) == other
        client.delete_run(other)
        experiment = client.get_experiment_by_name(f"isweep/{sweep}").experiment_id
        older = client.create_run(experiment, 1, CURVE_OF_AN_EARLIER_VERSION).info.run_id
        client.log_metric(older, "test_loss", 0.25, step=120)
        assert drawn({60: 0.5, 120: 0.375}) != older

    def test_curves_are_shown_while_a_trial_runs_and_no_point_comes_twice(
        self, tracker, client, sweep
    ):
        tracker.start_trial("a", {"trial_id": "a"})
        tracker.log_points("a", [CurvePoint("epoch_train_loss", 1, 0.7, 1200)])
        tracker.flush()
        run = shown(client, sweep)["a"]
        assert (run.info.status, run.data.metrics) == ("RUNNING", {"epoch_train_loss": 0.7})
        # A worker that died and was started again reports its first epoch again; then the result
        # has both.
        tracker.fail_trial(failed("a", "worker_crash", "gone", 1))
        tracker.start_trial("a", {"trial_id": "a", "attempt": "2"})
        tracker.log_points("a", [CurvePoint("epoch_train_loss", 1, 0.7, 1300)])
        tracker.finish(flat("a", 0.5))
        tracker.log_points("a", [CurvePoint("epoch_train_loss", 2, 9.0, 1400)])  # too late
        tracker.close("FINISHED")
        assert history(client, sweep, "a", "epoch_train_loss") == [(1, 0.7), (2, 0.3)]

    def test_the_result_overrules_what_was_shown_live(self, tracker, client, sweep):
        tracker.start_trial("a", {"trial_id": "a"})
        tracker.log_points(
            "a", [CurvePoint("epoch_train_loss", step, 0.9, 1200) for step in (1, 2, 3)]
        )
        tracker.flush()
        finished(tracker, flat("a", 0.5))
        run = shown(client, sweep)["a"]
        assert run.data.metrics["epoch_train_loss"] == 0.3
        # Notes of one's own are no difference.
        client.set_tag(run.info.run_id, "reviewed", "yes")
        client.log_metric(run.info.run_id, "my_score", 1.0)
        assert reconciled(client, sweep, [flat("a", 0.5)]) == UP_TO_DATE


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
    def test_replays_closes_ghosts_and_deletes_duplicates(self, tracker, client, sweep):
        tracker.start_trial("ghost", {})
        tracker.finish(flat("shown", 0.5))
        tracker.flush()  # and then a SIGKILL: nothing is closed
        experiment = client.get_experiment_by_name(f"isweep/{sweep}").experiment_id
        second = client.create_run(experiment, tags={"isweep.run_key": "shown", "kind": "trial"})
        later, results = opened(client, sweep), [flat("shown", 0.5), flat("missed", 0.75)]
        counts = later.reconcile(results)
        assert counts == {"replayed": 1, "closed": 1, "duplicates": 1, "up_to_date": 1}
        assert later.reconcile(results) == {**UP_TO_DATE, "up_to_date": 2}
        later.close("FINISHED")
        assert losses(client, sweep) == {"missed": 0.75, "shown": 0.5}
        assert client.get_run(second.info.run_id).info.lifecycle_stage == "deleted"
        assert statuses(client, sweep)["ghost"] == "KILLED"

    @pytest.mark.parametrize("name", EDITS)
    def test_compares_values_and_mends_them(self, tracker, client, sweep, name):
        finished(tracker, flat("a", 0.5))
        old = shown(client, sweep)["a"].info.run_id
        EDITS[name](client, old)
        assert reconciled(client, sweep, [flat("a", 0.5)])["replayed"] == 1
        assert reconciled(client, sweep, [flat("a", 0.5)]) == UP_TO_DATE
        (row,) = read_rows(client, sweep)
        assert (row["test_loss"], row["class_pair"]) == (0.5, "")
        assert not {"d_repr_mle", "fgsm_2_loss_gain"} & set(row)
        assert statuses(client, sweep) == {"a": "FINISHED", "sweep": "FINISHED"}
        # What MLflow cannot forget is deleted, and another run is made.
        assert (shown(client, sweep)["a"].info.run_id != old) == ("too many" in name)
        assert client.get_run(old).info.lifecycle_stage == (
            "deleted" if "too many" in name else "active"
        )

    def test_shows_a_result_copied_from_another_sweep_as_that_sweeps(self, tracker, client, sweep):
        """The trial is the same, and so are its numbers: only the sweep's name differs."""
        run = flat("a", 0.5)
        copied = replace(run, tags={**run.tags, "sweep": "other"})
        finished(tracker, run)
        assert reconciled(client, sweep, [copied])["replayed"] == 1
        assert [row["sweep"] for row in read_rows(client, sweep)] == ["other"]
        assert reconciled(client, sweep, [copied]) == UP_TO_DATE

    def test_replays_failures_once(self, client, sweep):
        ended = []
        for message in ("boom", "boom", "another"):
            reconciled(client, sweep, [], [failed("a", "code_error", message, 2)], "KILLED")
            run = shown(client, sweep)["a"]
            assert (run.info.status, run.data.tags["failure_message"]) == ("FAILED", message)
            ended.append(run.info.end_time)
        assert ended[0] == ended[1]

    @pytest.mark.parametrize("refused", ["FAILED", "KILLED"])
    def test_a_refused_start_leaves_a_finished_sweep_alone(self, client, sweep, refused):
        finished(opened(client, sweep, "as it ran"), flat("a", 0.5))
        before = shown(client, sweep)["sweep"]
        later = opened(client, sweep, "as it is refused")
        later.reconcile([flat("a", 0.5)], wait=False)
        later.close(refused)
        after = shown(client, sweep)["sweep"]
        assert (after.info.status, after.info.end_time) == ("FINISHED", before.info.end_time)
        assert after.data.tags["description"] == "as it ran"
        worked = opened(client, sweep, "as it ran again")
        worked.start_trial("b", {})
        worked.close(refused)
        after = shown(client, sweep)["sweep"]
        assert (after.info.status, after.data.tags["description"]) == (refused, "as it ran again")


class TestTheSweepsOwnRun:
    @pytest.fixture
    def report(self, tmp_path):
        (tmp_path / "report" / "figures").mkdir(parents=True)
        for name in ("report.html", "results.csv", "figures/one.png"):
            (tmp_path / "report" / name).write_text(name)
        return tmp_path / "report"

    @staticmethod
    def files(client, sweep):
        run = shown(client, sweep)["sweep"].info.run_id
        found = client.list_artifacts(run, "report")
        inner = [
            item for one in found if one.is_dir for item in client.list_artifacts(run, one.path)
        ]
        return sorted(item.path for item in [*found, *inner] if not item.is_dir)

    def test_shows_final_numbers_over_live_ones_and_every_file(
        self, tracker, client, sweep, report
    ):
        tracker.log_counts(7, {"trials_done": 5, "trials_failed": 2})
        tracker.flush()
        tracker.log_counts(8, {"trials_done": 6, "trials_failed": 2})
        tracker.log_report(
            {"trials_done": 8, "trials_failed": 0, "best": 0.5, "none": float("inf")}, report
        )
        tracker.close("FINISHED")
        metrics = shown(client, sweep)["sweep"].data.metrics
        assert metrics == {"trials_done": 8, "trials_failed": 0, "best": 0.5}
        assert history(client, sweep, "sweep", "trials_done") == [(7, 5), (8, 6), (8, 8)]
        names = ("figures/one.png", "report.html", "results.csv")
        assert self.files(client, sweep) == [f"report/{name}" for name in names]

    def test_is_mended_like_every_other(self, client, sweep, report):
        """What a killed driver did not send, somebody changed or a new report has is sent by the
        next one."""
        killed = opened(client, sweep)
        killed.log_counts(1, {"trials_done": 1})
        killed.close("KILLED")
        for number, (done, page) in enumerate([(2, "first"), (3, "second"), (3, "second")]):
            (report / "report.html").write_text(page)
            again = opened(client, sweep, "as it is now")
            again.log_report({"trials_done": done}, report)
            again.reconcile([])
            again.close("FINISHED")
            run = shown(client, sweep)["sweep"]
            assert (run.info.status, run.data.metrics["trials_done"]) == ("FINISHED", done)
            assert run.data.tags["description"] == "as it is now"
            points = client.get_metric_history(run.info.run_id, "trials_done")
            assert len(points) == min(number, 1) + 2  # none is sent twice
            if isinstance(client, SimulatedClient):
                assert (
                    client.runs[run.info.run_id]["artifacts"]["report/report.html"] == page.encode()
                )
        assert len(self.files(client, sweep)) == 3

    def test_files_are_sent_one_by_one(self, sweep, report, quick):
        """Most calls fail, and none is made again that was answered."""
        for number in range(20):
            (report / f"file{number}").write_text("x")
        client, calls = SimulatedClient(), []
        real = client.log_artifact

        def log_artifact(run, path, place):
            calls.append(path)
            if random.Random(len(calls)).random() < 0.7:
                raise ConnectionResetError("the reply was lost")
            real(run, path, place)

        client.log_artifact = log_artifact
        tracker = opened(client, sweep)
        tracker.log_report({}, report)
        tracker.close("FINISHED")
        assert tracker.num_unsent_updates == 0
        assert len(self.files(client, sweep)) == 23
        answered = [
            path for number, path in enumerate(calls, 1) if random.Random(number).random() >= 0.7
        ]
        assert len(answered) == len(set(answered)) == 23


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(tracking, "FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(tracking, "MAX_PAUSE_S", 0.01)


def test_a_dead_server_costs_no_result_and_is_counted(sweep, monkeypatch, quick):
    client, said = SimulatedClient(), []
    for name in ("FLUSH_S", "STOP_FLUSH_S"):
        monkeypatch.setattr(tracking, name, 0.3)
    monkeypatch.setattr(tracking, "WARN_AFTER_S", 0.0)
    tracker = opened(client, sweep, say=said.append)
    tracker.flush()

    def dead(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr(client, "create_run", dead)
    monkeypatch.setattr(client, "search_runs", dead)
    tracker.finish(flat("a", 0.5))
    with pytest.raises(
        SetupError, match=r"MLflow does not answer: no route\. Run `isweep reconcile SWEEP` later"
    ):
        tracker.reconcile([flat("a", 0.5), flat("b", 0.5)])
    tracker.close("FINISHED")
    assert tracker.num_unsent_updates == 4  # both results, the sweep's run and its end
    assert said == [
        "MLflow does not answer: no route. Results are stored without MLflow, and isweep tries again"
    ]


def test_a_server_that_is_down_at_the_start_is_told_later(sweep, monkeypatch, quick):
    monkeypatch.setattr(tracking, "WARN_AFTER_S", 0.0)
    client, up, said = SimulatedClient(), threading.Event(), []

    def connect_later():
        if not up.is_set():
            raise SetupError("The MLflow store does not answer: Connection refused")
        return SweepRuns(client, Page(sweep), None, None)

    tracker = Tracker(connect_later, said.append)
    tracker.check()  # such a server ends no sweep
    tracker.start_trial("a", {"trial_id": "a"})
    tracker.finish(flat("a", 0.5))
    assert tracker.num_unsent_updates == 2  # the trial's run and the sweep's
    up.set()
    tracker.close("FINISHED")
    assert tracker.num_unsent_updates == 0
    assert statuses(client, sweep) == {"a": "FINISHED", "sweep": "FINISHED"}
    assert [text.split(":")[0] for text in said] == [
        "The MLflow store does not answer",
        "MLflow answers again",
    ]


def test_a_server_that_refuses_us_is_a_message_at_once(sweep):
    calls = []

    def refused():
        calls.append(1)
        raise Refused("The MLflow store refuses this user", hint="Log in")

    tracker = Tracker(refused)
    with pytest.raises(SetupError, match=r"refuses this user\. Log in"):
        tracker.check()
    with pytest.raises(SetupError, match=r"refuses this user\. Log in"):
        tracker.reconcile([flat(f"t{number}", 0.5) for number in range(100)])
    tracker.close("FAILED")
    assert len(calls) < 10  # it is not asked for every run


def test_one_that_waits_begins_when_there_is_something_to_show(sweep, quick):
    client, opened = SimulatedClient(), list[int]()

    def waiting():
        return Tracker(
            lambda: opened.append(1) or SweepRuns(client, Page(sweep), None, None),
            connect_late=True,
        )

    idle, busy = waiting(), waiting()
    for tracker in (idle, busy):
        tracker.check()
        tracker.reconcile([], wait=False)
    idle.close("FAILED")  # nothing was done, and nothing is there to be closed
    assert opened == []
    busy.start_trial("a", {"trial_id": "a"})
    busy.close("KILLED")
    assert opened == [1]
    assert statuses(client, sweep) == {"a": "KILLED", "sweep": "KILLED"}
    assert waiting().reconcile([flat("b", 0.5)])["replayed"] == 1


def test_what_mlflow_refuses_is_counted_until_it_is_shown(sweep):
    client = SimulatedClient()
    real = client.log_batch

    def refuse(*_, **__):
        raise Refused("A tag is too long")

    tracker = opened(client, sweep)
    tracker.flush()
    client.log_batch = refuse
    tracker.finish(flat("a", 0.5))
    with pytest.raises(SetupError, match="A tag is too long"):
        tracker.reconcile([flat("a", 0.5)])
    assert tracker.num_unsent_updates == 1
    client.log_batch = real
    assert tracker.reconcile([flat("a", 0.5)])["replayed"] == 1
    tracker.close("FINISHED")
    assert tracker.num_unsent_updates == 0


def test_check_reports_a_refused_experiment_as_a_setup_error():
    def refused():
        raise MlflowException("not your experiment", PERMISSION_DENIED)

    tracker = Tracker(refused)
    with pytest.raises(
        SetupError, match=r"MLflow refuses the connection: .*not your experiment.*--no-tracking"
    ):
        tracker.check()
    tracker.close("FAILED")


def test_an_update_that_always_fails_does_not_keep_runs_open(sweep, monkeypatch, quick, tmp_path):
    monkeypatch.setattr(tracking, "FLUSH_S", 0.3)
    (tmp_path / "report.html").write_text("report")
    client = SimulatedClient()

    def not_writable(*_):
        raise PermissionError(13, "Permission denied")

    client.log_artifact = not_writable
    tracker = opened(client, sweep)
    tracker.start_trial("a", {"trial_id": "a"})
    tracker.flush()
    tracker.log_report({"trials_done": 0}, tmp_path)
    tracker.close("FINISHED")
    assert statuses(client, sweep) == {"a": "KILLED", "sweep": "FINISHED"}
    assert tracker.num_unsent_updates == 1  # the report


def test_the_updates_behind_those_that_always_fail_are_sent_at_the_end(sweep, monkeypatch, quick):
    monkeypatch.setattr(tracking, "FLUSH_S", 0.3)
    client = SimulatedClient()
    send = client.log_batch
    tracker = opened(client, sweep)
    tracker.flush()

    def fail_for_some_runs(run_id, metrics=(), params=(), tags=()):
        # The metrics of a result with this loss are never stored.
        if any(metric.value == 0.125 for metric in metrics):
            raise MlflowException("value too long", INTERNAL_ERROR)
        send(run_id, metrics, params, tags)

    client.log_batch = fail_for_some_runs
    for index in range(5):
        tracker.finish(flat(f"bad{index}", 0.125))
    for index in range(5):
        tracker.finish(flat(f"good{index}", 0.5))
    tracker.log_report({"trials_done": 10})

    tracker.close("FINISHED")

    assert tracker.num_unsent_updates == 5
    stored = losses(client, sweep)
    assert {key: loss for key, loss in stored.items() if key.startswith("good")} == {
        f"good{index}": 0.5 for index in range(5)
    }
    assert statuses(client, sweep)["sweep"] == "FINISHED"


def test_a_refused_update_does_not_discard_the_newer_one(sweep):
    client = SimulatedClient()
    real = client.log_batch
    tracker = opened(client, sweep)
    tracker.flush()

    def refuse_once(*_, **__):
        client.log_batch = real
        tracker.finish(flat("a", 0.25))  # while MLflow processes the older result
        raise Refused("A tag is too long")

    client.log_batch = refuse_once
    tracker.finish(flat("a", 0.5))
    assert tracker.flush()
    assert tracker.num_unsent_updates == 0
    assert losses(client, sweep) == {"a": 0.25}
    tracker.close("FINISHED")


def test_two_stores_on_one_server_never_mix(client, sweep):
    first, second = "a" * 16, "b" * 16
    for storage, loss in ((first, 0.5), (second, 0.25)):
        finished(opened(client, sweep, storage=storage), flat("x", loss))
    assert losses(client, sweep, first) == {"x": 0.5}
    assert losses(client, sweep, second) == {"x": 0.25}
    assert losses(client, sweep, "c" * 16) == {}


# Which MLflow: its URI, its answers, its files.


def test_asking_makes_nothing_and_a_file_store_is_refused(root):
    workspace = Workspace.open("smoke", root)
    assert tracked_rows(workspace, None, None) == []
    assert (
        check_tracker(workspace.paths, None)
        == f"the first run creates {workspace.paths.mlflow_database}"
    )
    for bad in ("./mlruns", "file:///tmp/mlruns", "mlruns", "foo://h/x"):
        with pytest.raises(ConfigError, match="is neither a database nor a server"):
            mlflow_uri(workspace.paths, bad)
    assert not workspace.paths.root.is_dir()


@pytest.mark.parametrize("sign", ["?", "%"])
def test_a_root_whose_path_is_another_one_in_a_url_holds_no_database(sign, tmp_path):
    workspace = Workspace.open("smoke", tmp_path / f"my{sign}41root")
    workspace.paths.make()
    with pytest.raises(
        SetupError, match=r"root .* contains '\?' or '%'.*\. Choose another root with --root"
    ):
        make_tracker(workspace, ResultStore(workspace.results_url), None)
    assert mlflow_uri(workspace.paths, "http://127.0.0.1:5000") == "http://127.0.0.1:5000"
    assert [path.name for path in tmp_path.iterdir()] == [f"my{sign}41root"]


def test_a_server_that_hangs_holds_up_neither_start_nor_end(sweep, monkeypatch):
    for name in ("FIRST_ANSWER_S", "STOP_FLUSH_S"):
        monkeypatch.setattr(tracking, name, 0.2)
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        tracker = Tracker(lambda: SweepRuns(connect(uri), Page(sweep), None, None))
        tracker.check()
        tracker.start_trial("a", {"trial_id": "a"})
        tracker.close("KILLED")
        assert tracker.num_unsent_updates == 3


def test_a_server_that_does_not_answer_is_a_clear_message():
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    message = rf"The MLflow store http://…@127\.0\.0\.1:{port} does not answer: .*--no-tracking"
    with pytest.raises(SetupError, match=message) as caught:
        connect(f"http://user:secret@127.0.0.1:{port}")
    assert "secret" not in str(caught.value)


def test_a_database_that_cannot_be_opened_is_not_tried_for_minutes(tmp_path, monkeypatch):
    slept = []
    monkeypatch.setattr("time.sleep", slept.append)
    (tmp_path / "folder.db").mkdir()
    (tmp_path / "text.db").write_text("no database, but a text that is long enough to be none")
    for name, told in (
        ("folder", r"unable to open database file\. Start the MLflow server"),
        (
            "text",
            r"file is not a database\. Delete the file, and run `isweep reconcile SWEEP` for every sweep",
        ),
    ):
        with pytest.raises(SetupError, match=f"sqlite:.* does not answer: .*{told}"):
            connect(f"sqlite:///{tmp_path}/{name}.db")
    assert sum(slept) < 5


@pytest.mark.parametrize(
    ("error", "told", "final"),
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
def test_a_database_that_will_say_the_same_again_is_refused_at_once(
    monkeypatch, error, told, final
):
    def refuse(*_, **__):
        if isinstance(error, Exception):
            raise error
        said = f'connection to server at "127.0.0.1", port 5432 failed: FATAL:  {error}'
        raise OperationalError("select 1", {}, Exception(said))

    monkeypatch.setattr("sqlalchemy.create_engine", refuse)
    message = f"The MLflow store postgresql://h/x does not answer: .*{told}"
    with pytest.raises(SetupError, match=message) as caught:
        connect("postgresql://h/x")
    assert isinstance(caught.value, Refused) == final


@pytest.mark.parametrize(
    "password", ["p@canary-word", "p%40canary-word", "p:canary-word", "p/canary-word"]
)
def test_a_password_that_a_driver_takes_for_a_host_stays_secret(password):
    """As psycopg says it; an unescaped sign ends a password for some readers and not for others."""
    uri = f"postgresql://lab:{password}@db:5432/isweep"
    host = password.partition("@")[2] or password
    said = first_line(OSError(f"failed to resolve host '{host}@db' or 'canary-word@db'"), uri)
    assert "canary" not in said
    assert said.startswith("failed to resolve host")


def test_a_driver_stopped_while_tables_are_made_leaves_nothing_to_stumble_over(
    tmp_path, monkeypatch
):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"

    def stopped(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("alembic.command.upgrade", stopped)
        with pytest.raises(KeyboardInterrupt, match=r"^$"):
            connect(uri)
    assert not [path for path in tmp_path.iterdir() if path.is_file()]
    assert [one.name for one in connect(uri).search_experiments()] == ["Default"]
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["mlflow.db"]


def test_a_root_that_was_moved_keeps_its_artifacts_below_itself(uri, tmp_path, monkeypatch):
    if not uri.startswith("sqlite"):
        pytest.skip("a root's own file")
    report, first, moved = tmp_path / "report", tmp_path / "first", tmp_path / "moved"
    report.mkdir()
    for root, page in ((first, "first"), (moved, "second")):
        (report / "report.html").write_text(page)
        if root == moved:
            first.rename(moved)
            # As in another process: MLflow keeps in mind where it put a run's artifacts.
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
    assert [path.read_text() for path in moved.rglob("report/report.html")] == ["second"]


def test_a_report_links_to_the_runs_that_mlflow_shows(uri, sweep, tmp_path, caplog):
    client = connect(uri)
    tracker = finished(opened(client, sweep), flat("a", 0.5))
    tracker.save_run_pages(tmp_path / "pages.json")
    Tracker().save_run_pages(tmp_path / "pages.json")  # a run without tracking forgets nothing
    pages = read_run_pages(tmp_path / "pages.json")
    assert pages.runs["a"] == shown(client, sweep)["a"].info.run_id
    experiment = client.get_experiment_by_name(f"isweep/{sweep}").experiment_id
    assert pages.prefix == f"http://127.0.0.1:5000/#/experiments/{experiment}/runs/"
    (tmp_path / "pages.json").write_text("{")
    assert (
        read_run_pages(tmp_path / "pages.json") == read_run_pages(tmp_path / "absent") == RunPages()
    )
    assert "reports have no links to MLflow" in caplog.text


def test_pages_say_what_a_run_is(client, sweep):
    page = Page(sweep, "Digits against slices.", 3, "fgsm_1_loss_gain")
    tracker = Tracker(lambda: SweepRuns(client, page, None, None))
    run = flat("a", 0.5)
    named = {
        "dataset": "digits",
        "class_pair": "3-8",
        "model": "small_cnn",
        "seed": "1",
        "recipe": "demo",
    }
    run.tags.update(named)
    finished(tracker, run)
    runs = shown(client, sweep)
    assert runs["a"].data.tags["mlflow.runName"] == "small_cnn N=10 digits 3-8 seed 1"
    experiment = client.get_experiment_by_name(f"isweep/{sweep}")
    note = experiment.tags["mlflow.note.content"]
    assert note == runs["sweep"].data.tags["mlflow.note.content"]
    links, description, _ = note.split("\n\n")  # MLflow shows one line of it until it is opened
    assert links.count("](#/") == 3
    assert description == "Digits against slices."
    pages = f"#/experiments/{experiment.experiment_id}/runs?viewStateShareKey="
    charts = "&compareRunsMode=CHART"
    for view, mode in (("best", ""), ("curve", charts), ("sharpness", charts)):
        assert f"({pages}{view}{mode}&workflowType=machine_learning)" in links
        assert experiment.tags[f"mlflow.sharedViewState.{view}"].startswith("{")


# What MLflow shows otherwise than the store: the store's numbers are used, and the difference is
# reported.


def test_values_and_trials_that_one_side_lacks_are_counted():
    rows = [{"trial_id": name, "model": "m", "test_loss": 0.5} for name in ("a", "b", "c")]
    assert (
        differences(rows, [one | {"my_note": 1.0} for one in rows[::-1]], "mend") == []
    )  # one's own column
    lacking = [
        {"trial_id": name, "model": "other", "data_fingerprint": "x"} for name in ("a", "b", "x")
    ]
    assert differences(rows, lacking, "mend") == [
        "MLflow differs from the result store in 6 values of 2 trials (model of a is 'other' in "
        "MLflow and 'm' in the store; test_loss of a is nothing in MLflow and 0.5 in the store; "
        "data_fingerprint of a is 'x' in MLflow and nothing in the store; and 3 more). isweep "
        "uses the values of the result store. To correct MLflow, run `mend`.",
        "MLflow lacks 1 result of the result store. To send them to MLflow, run `mend`.",
        "MLflow has rows of 1 trial without a result in this sweep. isweep ignores these rows.",
    ]


def test_mlflow_reports_nothing_to_its_makers():
    from mlflow.environment_variables import MLFLOW_DISABLE_TELEMETRY

    assert MLFLOW_DISABLE_TELEMETRY.get()
