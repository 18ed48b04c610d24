"""Test what the driver learns about a lost worker, and for how long it waits for that."""

from types import SimpleNamespace

import pytest
import ray.exceptions as rex
from ray import cloudpickle

from orchestrator.results.records import TrialFailure
from orchestrator.running.messages import TrialFailedError, TrialReport, WorkerLocation
from orchestrator.running.recovery import lost_workers
from orchestrator.running.recovery.lost_workers import killed_for_memory, outcome_of

LOCATION = WorkerLocation("t", "actor", "10.0.0.1", node_id="n1")
NODES = [
    {
        "NodeID": f"n{number}",
        "Alive": True,
        "NodeManagerAddress": f"10.0.0.{number}",
        "NodeManagerPort": 1,
    }
    for number in range(1, 100)
]


@pytest.fixture
def contacted(monkeypatch):
    """Return a list that receives the address of each contacted node; no node answers."""
    addresses = []
    monkeypatch.setattr(
        lost_workers, "accepts_connections", lambda host, port: addresses.append(host)
    )
    monkeypatch.setattr(lost_workers.ray, "nodes", lambda: NODES)
    return addresses


def test_the_report_of_a_trial_is_read_from_the_error_that_ray_stored(tmp_path, contacted):
    failure = TrialFailure(kind="code_error", message="a bug")
    report = TrialReport(started_at=1.0, finished_at=2.0, outcome=failure)
    file = tmp_path / "error.pkl"
    file.write_bytes(cloudpickle.dumps(TrialFailedError("a bug", report.text())))
    assert outcome_of(SimpleNamespace(pickled_error_file=str(file)), LOCATION) == report
    assert contacted == []


def test_only_the_node_of_the_trial_is_contacted(tmp_path, contacted):
    """A node that does not answer takes up to two seconds, during which the loop of Tune waits."""
    error = tmp_path / "error.txt"
    error.write_text("Failure # 1\nolder n1\nFailure # 2 (occurred at noon)\ngone: n1\n")
    failure = outcome_of(SimpleNamespace(error_file=str(error)), LOCATION)
    assert (failure.kind, failure.message) == ("lost_node", "gone: n1")
    assert contacted == ["10.0.0.1"]


def test_an_actor_on_a_lost_node_is_a_lost_worker(tmp_path, contacted):
    file = tmp_path / "error.pkl"
    error = rex.ActorDiedError()
    error.actor_id = "ab12"
    file.write_bytes(cloudpickle.dumps(error))
    trial = SimpleNamespace(pickled_error_file=str(file), error_file=str(tmp_path / "error.txt"))
    (tmp_path / "error.txt").write_text("Failure # 1\nThe actor ab12 died.\n")
    assert outcome_of(trial, LOCATION).kind in ("lost_node", "worker_crash")


def test_the_driver_waits_at_most_two_seconds_for_kills_for_lack_of_memory(monkeypatch):
    """The driver waits after the loop of Tune has ended, so no running trial is delayed."""
    now = [0.0]
    states = iter(("ALIVE", "ALIVE", "DEAD"))
    monkeypatch.setattr(lost_workers.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(lost_workers.time, "sleep", lambda s: now.__setitem__(0, now[0] + s))
    cause = SimpleNamespace(HasField=lambda name: name == "oom_context")
    monkeypatch.setattr(
        lost_workers.ray._private.state,
        "actors",
        lambda actor: {"State": next(states, "ALIVE"), "DeathCause": cause},
    )
    assert killed_for_memory({"t": LOCATION}) == {"t"}
    assert killed_for_memory({"t": LOCATION}) == set()  # this actor stays alive
    assert now[0] < 2.5
    assert killed_for_memory({}) == set()
