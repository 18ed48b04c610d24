"""What the driver finds out of a worker that is gone, and how long it stands still for that."""

from types import SimpleNamespace

import pytest
import ray.exceptions as rex
from ray import cloudpickle

from orchestrator.results.records import TrialFailure
from orchestrator.running.messages import TrialFailedError, TrialReport, WorkerLocation
from orchestrator.running.recovery import lost_workers
from orchestrator.running.recovery.lost_workers import killed_for_memory, outcome_of

HERE = WorkerLocation("t", "actor", "10.0.0.1", node_id="n1")
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
def asked(monkeypatch):
    """Addresses of the nodes that were asked whether they are there; none is."""
    addresses = []
    monkeypatch.setattr(
        lost_workers, "accepts_connections", lambda host, port: addresses.append(host)
    )
    monkeypatch.setattr(lost_workers.ray, "nodes", lambda: NODES)
    return addresses


def test_a_trials_report_comes_out_of_the_error_that_ray_kept(tmp_path, asked):
    failure = TrialFailure(kind="code_error", message="a bug")
    report = TrialReport(started_at=1.0, finished_at=2.0, outcome=failure)
    file = tmp_path / "error.pkl"
    file.write_bytes(cloudpickle.dumps(TrialFailedError("a bug", report.text())))
    assert outcome_of(SimpleNamespace(pickled_error_file=str(file)), HERE) == report
    assert asked == []


def test_of_a_hundred_nodes_only_the_trial_s_own_is_asked(tmp_path, asked):
    """Each may take two seconds to not answer, in which Tune's loop stands still."""
    error = tmp_path / "error.txt"
    error.write_text("Failure # 1\nolder n1\nFailure # 2 (occurred at noon)\ngone: n1\n")
    failure = outcome_of(SimpleNamespace(error_file=str(error)), HERE)
    assert (failure.kind, failure.message) == ("lost_node", "gone: n1")
    assert asked == ["10.0.0.1"]


def test_an_actor_on_a_node_that_is_gone_died_with_it(tmp_path, asked):
    file = tmp_path / "error.pkl"
    error = rex.ActorDiedError()
    error.actor_id = "ab12"
    file.write_bytes(cloudpickle.dumps(error))
    trial = SimpleNamespace(pickled_error_file=str(file), error_file=str(tmp_path / "error.txt"))
    (tmp_path / "error.txt").write_text("Failure # 1\nThe actor ab12 died.\n")
    assert outcome_of(trial, HERE).kind in ("lost_node", "worker_crash")


def test_who_was_killed_for_memory_is_asked_for_two_seconds_at_most(monkeypatch):
    """It stands still after Tune's loop has ended: no trial runs that could wait."""
    now, states = [0.0], iter(("ALIVE", "ALIVE", "DEAD"))
    monkeypatch.setattr(lost_workers.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(lost_workers.time, "sleep", lambda s: now.__setitem__(0, now[0] + s))
    cause = SimpleNamespace(HasField=lambda name: name == "oom_context")
    monkeypatch.setattr(
        lost_workers.ray._private.state,
        "actors",
        lambda actor: {"State": next(states, "ALIVE"), "DeathCause": cause},
    )
    assert killed_for_memory({"t": HERE}) == {"t"}
    assert killed_for_memory({"t": HERE}) == set()
    assert now[0] < 2.5
    assert killed_for_memory({}) == set()
