"""Which MLflow store a sweep uses, and the client that is connected to it."""

from __future__ import annotations

import logging
import os
import re
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from orchestrator.planning.paths import RootPaths
from orchestrator.planning.redaction import without_secrets
from orchestrator.results.mlflow_errors import Refused, first_line, is_final
from search_spaces.errors import ConfigError, SetupError
from tasks.atomic import place_once

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient


DATABASES = ("sqlite", "postgresql", "mysql", "mssql")

SCHEMES = ("http", "https", *DATABASES, "databricks")
"""What MLflow itself opens, of databases also with a driver, as in ``postgresql+psycopg``."""


# Which MLflow a sweep has.


def mlflow_uri(paths: RootPaths, uri: str | None) -> str:
    """Return the MLflow store to use: as asked, else the environment's, else SQLite below the root.

    ConfigError for a file store, which MLflow has closed, and what neither MLflow nor a plugin
    opens; SetupError below a root whose path is another one in a URL.
    """
    if named := uri or os.environ.get("MLFLOW_TRACKING_URI"):
        scheme, found, _ = named.partition("://")
        plugins = (plugin.name for plugin in entry_points(group="mlflow.tracking_store"))
        if not found or scheme.partition("+")[0] not in {*SCHEMES, *plugins}:
            raise ConfigError(
                "The MLflow URI must be a database or server",
                without_secrets(named),
                "e.g. sqlite:////data/mlflow.db or https://…",
            )
        return named
    # A question mark begins options for MLflow, and quoting is no way out: it makes folders by
    # quoted names.
    if any(sign in str(paths.root) for sign in "?%"):
        raise SetupError(
            "The path of a root with MLflow's SQLite file must have no '?' and no '%'",
            str(paths.root),
            (
                "choose another with --root, name an MLflow server with --mlflow-uri, or run with "
                "--no-tracking"
            ),
        )
    return f"sqlite:///{paths.mlflow_database}"


def check_tracker(paths: RootPaths, uri: str | None) -> str:
    """Say in words that MLflow answers, where it does; nothing is made there."""
    resolved = mlflow_uri(paths, uri)
    if resolved == f"sqlite:///{paths.mlflow_database}" and not paths.mlflow_database.exists():
        return f"{paths.mlflow_database}, not made yet"
    connect(resolved)
    return f"answers ({resolved.partition('://')[0]})"


SQLITE = "sqlite:///"

DAMAGED = re.compile("file is not a database|disk image is malformed")


# The other side.


def connect(uri: str) -> MlflowClient:
    """Return a client for ``uri`` whose tables exist; SetupError in seconds where it does not
    answer.
    """
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # It gives tracebacks and rows for what we say in a line.
    logging.getLogger("mlflow.store.db").setLevel(logging.CRITICAL)
    # MLflow's client repeats a call whose reply is lost, and so makes two runs of one; we look
    # first.
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
    # Our stdout is for data.
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    path = Path(uri.removeprefix(SQLITE))
    is_file = uri.startswith(SQLITE) and path.name not in ("", ":memory:") and "?" not in uri
    try:
        if is_file and not path.exists():
            # Half of MLflow's tables, by a driver that is killed, nobody can use: they are made
            # beside, by a name of its own at every try, since MLflow keeps connections by the name
            # of the file.
            draft = path.with_name(f".{path.name}-{uuid4().hex[:8]}")
            try:
                _client(f"{SQLITE}{draft}")
                place_once(draft, path)
            finally:
                draft.unlink(missing_ok=True)
        return _client(uri)
    except Exception as error:
        said = first_line(error, uri)
        hint = (
            "start it, correct --mlflow-uri, or run with --no-tracking and `isweep reconcile` later"
        )
        if isinstance(error, ModuleNotFoundError) and "psycopg" in said:
            hint = "pip install 'isweep[postgres]'"
        elif DAMAGED.search(said):
            hint = (
                "remove the file, then `isweep reconcile` every sweep: the result stores have all"
            )
        kind = Refused if is_final(error) else SetupError
        raise kind(
            "The MLflow store must answer", f"{without_secrets(uri)}: {said}", hint
        ) from None


def _client(uri: str) -> MlflowClient:
    import sqlalchemy
    from mlflow.tracking import MlflowClient

    if uri.partition("://")[0].partition("+")[0] in DATABASES:
        # MLflow tries ten times in 102 s, also where the password is wrong; we try again ourselves.
        engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool)
        sqlalchemy.inspect(engine)
        engine.dispose()
    client = MlflowClient(uri)
    client.search_experiments(max_results=1)
    return client
