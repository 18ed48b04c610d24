"""A new SQLite file of MLflow's appears when it is whole."""

import sqlite3

import pytest

from orchestrator.results.mlflow_pages import make_whole
from orchestrator.results.mlflow_tracker import connect


def files(folder):
    return {path.name for path in folder.iterdir() if path.is_file()}


def test_a_driver_stopped_while_tables_are_made_leaves_nothing_that_a_later_one_stumbles_over(
    tmp_path, monkeypatch
):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"

    def stopped(engine):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("mlflow.store.db.utils._upgrade_db", stopped)
        with pytest.raises(KeyboardInterrupt, match=r"^$"):
            connect(uri)
    assert files(tmp_path) == set()
    assert [one.name for one in connect(uri).search_experiments()] == ["Default"]
    assert files(tmp_path) == {"mlflow.db"}


def test_who_comes_second_leaves_the_file_of_the_first_alone(tmp_path, monkeypatch):
    path = tmp_path / "mlflow.db"

    class Store:
        def __init__(self, uri, artifacts):
            open(uri.removeprefix("sqlite:///"), "w").close()
            path.write_bytes(b"of another driver")
            self.engine = self

        def dispose(self):
            pass

    monkeypatch.setattr("mlflow.store.tracking.sqlalchemy_store.SqlAlchemyStore", Store)
    make_whole(f"sqlite:///{path}")
    assert path.read_bytes() == b"of another driver"
    assert files(tmp_path) == {"mlflow.db"}


def test_a_file_that_is_there_is_left_to_mlflow(tmp_path):
    path = tmp_path / "mlflow.db"
    sqlite3.connect(path).close()
    path.touch()
    make_whole(f"sqlite:///{path}")
    make_whole("sqlite:///:memory:")
    assert path.read_bytes() == b""
    assert files(tmp_path) == {"mlflow.db"}
