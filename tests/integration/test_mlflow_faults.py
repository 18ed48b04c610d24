"""Real MLflow servers and files that break: one finished run per trial with its numbers, none left
running."""

import pytest

from tests.integration.mlflow_faults import CASES, Server, deleted_database, locked_database

# The server says through which of its own packages it was imported.
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
def test_one_finished_run_per_cell_whatever_the_server_does(server, name):
    found = CASES[name](server)
    assert found["right"], found
    assert found["faults"] or name in ("slow", "restarted")  # the tracker met what is tested
    assert found.get("waiting", 1) > 0
    assert found["statuses"] == {"FINISHED": found["counted"] + 1}
    assert (found["running"], found["behind"]) == (0, 0)
    assert all(len(text) < 500 and "\n" not in text for text in found["said"])


def test_a_database_that_another_program_holds_is_waited_for(tmp_path):
    found = locked_database(tmp_path / "mlflow.db")
    assert (found["counted"], found["statuses"], found["behind"]) == (4, {"FINISHED": 5}, 0)


@pytest.mark.chaos  # waits for MLflow for a minute
def test_a_deleted_database_costs_no_number(tmp_path):
    found = deleted_database(tmp_path / "mlflow.db")
    assert found["said"] == [
        "MLflow does not answer: (sqlite3.OperationalError) attempt to write a readonly database. "
        "Results are stored without MLflow, and isweep tries again"
    ]
    assert found["behind"] > 0
    assert found["losses"] == {f"deleted-{number}": 1 / (number + 1) for number in range(4)}
    assert found["statuses"] == {"FINISHED": 5}
