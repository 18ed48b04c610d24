"""A new SQLite file of MLflow's is made whole or not at all."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from uuid import uuid4

from mlflow.exceptions import MlflowException

from tasks.atomic import place_once

SQLITE = "sqlite:///"


def make_whole(uri: str) -> None:
    """Make the SQLite file of ``uri`` where there is none; anything else is left alone.

    MLflow makes its tables in dozens of steps, and cannot go on from between two of them: a driver that was
    killed there would leave a file that no later one can use. So they are made beside it, and it appears when
    they are done.
    """
    path = Path(uri.removeprefix(SQLITE))
    if not uri.startswith(SQLITE) or path.name in ("", ":memory:") or "?" in uri or path.exists():
        return
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    # A name of its own at every try: MLflow keeps connections by the name of the file.
    draft = path.with_name(f".{path.name}-{uuid4().hex[:8]}")
    try:
        artifacts = path.absolute().with_name("mlflow-artifacts").as_uri()
        SqlAlchemyStore(f"{SQLITE}{draft}", artifacts).engine.dispose()
        place_once(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def follow_root(uri: str, experiment: str, old: str, new: str) -> None:
    """Let an experiment in the SQLite file of ``uri`` keep its artifacts where the root is now.

    MLflow notes whole paths and has no call that changes them: after a move it would make the old folder
    again, open to everybody, and from a copy of a root it would write over the artifacts of the first.

    Raises:
        MlflowException: when the file does not take it.
    """
    runs = "UPDATE runs SET artifact_uri = ? || substr(artifact_uri, ?) WHERE experiment_id = ?"
    where = " AND substr(artifact_uri, 1, ?) = ?"
    try:
        with closing(sqlite3.connect(uri.removeprefix(SQLITE), timeout=20)) as database, database:
            database.execute(runs + where, (new, len(old) + 1, experiment, len(old) + 1, f"{old}/"))
            database.execute(
                "UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?", (new, experiment)
            )
    except sqlite3.Error as error:
        raise MlflowException(str(error)) from error
