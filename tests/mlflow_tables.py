"""MLflow's tables made once per process: each further SQLite database is a copy of the first.

MLflow makes a new database by all migrations that there ever were: two seconds of processor time.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy


@contextlib.contextmanager
def copied_tables() -> Iterator[None]:
    """Let MLflow copy its tables into empty SQLite databases of this process."""
    from mlflow.store.db import utils

    make_tables = utils._initialize_tables
    with (
        contextlib.closing(sqlite3.connect(":memory:", check_same_thread=False)) as template,
        pytest.MonkeyPatch.context() as patch,
    ):

        def initialize(engine: Any) -> None:
            is_new = not sqlalchemy.inspect(engine).get_table_names()
            if engine.dialect.name != "sqlite" or not is_new:
                make_tables(engine)
                return
            is_first = not template.execute("SELECT name FROM sqlite_master").fetchall()
            if is_first:
                make_tables(engine)
            with contextlib.closing(engine.raw_connection()) as connection:
                if is_first:
                    connection.driver_connection.backup(template)
                else:
                    template.backup(connection.driver_connection)

        patch.setattr(utils, "_initialize_tables", initialize)
        yield
