"""Every trial has one finished run with its numbers after faults of a real MLflow server or file."""

import pytest

from tests.integration.mlflow_faults import CASES, Server, deleted_database, locked_database

# The server warns about the way in which its packages are imported.
pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("server") / "mlflow.db")
    yield server
    server.end()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ("away", "restarted") else pytest.mark.chaos)
        for name in CASES
    ],
)
def test_every_trial_has_one_finished_run_despite_the_fault(server, name):
    report = CASES[name](server)
    assert report["right"], report
    assert report["faults"] or name in ("slow", "restarted")  # the tracker met what is tested
    assert report.get("waiting", 1) > 0
    assert report["statuses"] == {"FINISHED": report["counted"] + 1}
    assert (report["running"], report["behind"]) == (0, 0)
    assert all(len(text) < 500 and "\n" not in text for text in report["said"])


def test_a_database_that_another_program_holds_is_waited_for(tmp_path):
    report = locked_database(tmp_path / "mlflow.db")
    assert (report["counted"], report["statuses"], report["behind"]) == (4, {"FINISHED": 5}, 0)


@pytest.mark.chaos  # waits for MLflow for a minute
def test_a_deleted_database_costs_no_number(tmp_path):
    report = deleted_database(tmp_path / "mlflow.db")
    assert report["said"] == [
        "MLflow does not answer: (sqlite3.OperationalError) attempt to write a readonly database. "
        "isweep tries again. The result store has all results"
    ]
    assert report["behind"] > 0
    assert report["losses"] == {f"deleted-{number}": 1 / (number + 1) for number in range(4)}
    assert report["statuses"] == {"FINISHED": 5}
