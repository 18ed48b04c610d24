"""Choose the MLflow store of a sweep, and connect a client to it.

Importing this module does not import ``mlflow``.
"""

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
from orchestrator.results.mlflow_errors import Refused, first_line, is_refusal
from search_spaces.errors import ConfigError, SetupError
from tasks.atomic import place_once

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
"""Databases that MLflow supports. A URL may also name the driver of the database, as in
``postgresql+psycopg``."""
SCHEMES = ("http", "https", *DATABASES, "databricks")
"""Schemes of URLs that MLflow supports without a plugin."""
SQLITE = "sqlite:///"
"""Prefix of the URI of an SQLite file."""
REQUEST_TIMEOUT_S = 15
"""Longest time for one request, seconds. ``MLFLOW_HTTP_REQUEST_TIMEOUT`` sets another time."""
_DAMAGED_FILE = re.compile("file is not a database|disk image is malformed")


def mlflow_uri(paths: RootPaths, uri: str | None) -> str:
    """Return the URI of the MLflow store to use.

    Args:
        paths: Paths of the root's files, for example of the default SQLite file.
        uri: URI from the user. If it is None, use the environment variable
            ``MLFLOW_TRACKING_URI``. If this variable is not set either, use an SQLite file
            below the root.

    Raises:
        ConfigError: Neither MLflow nor a plugin supports the URI. For example, MLflow no
            longer supports the path of a folder.
        SetupError: The root's path has characters with a special meaning in a URL.
    """
    requested = uri or os.environ.get("MLFLOW_TRACKING_URI")
    if requested:
        scheme, mark, _ = requested.partition("://")
        plugins = [plugin.name for plugin in entry_points(group="mlflow.tracking_store")]
        if not mark or scheme.partition("+")[0] not in {*SCHEMES, *plugins}:
            raise ConfigError(
                f"The MLflow URI {without_secrets(requested)} is neither a database nor a server",
                hint="Use, for example, `--mlflow-uri sqlite:////data/mlflow.db`",
            )
        return requested
    # In a URL, a question mark begins the options. If isweep escaped the question mark as %3F,
    # MLflow would create a folder with %3F in its name.
    if any(sign in str(paths.root) for sign in "?%"):
        raise ConfigError(
            f"The path of the root {paths.root} contains '?' or '%', so MLflow cannot open its "
            "SQLite file in the root",
            hint="Choose another root with --root, use an MLflow server with --mlflow-uri, or "
            "add --no-tracking",
        )
    return f"{SQLITE}{paths.mlflow_database}"


def check_tracker(paths: RootPaths, uri: str | None) -> str:
    """Check that MLflow answers, and return the result as text. Create nothing in MLflow.

    Raises:
        SetupError: MLflow does not answer.
    """
    resolved = mlflow_uri(paths, uri)
    if resolved == f"{SQLITE}{paths.mlflow_database}" and not paths.mlflow_database.exists():
        return f"the first run creates {paths.mlflow_database}"
    connect(resolved)
    return f"answers ({resolved.partition('://')[0]})"


def connect(uri: str) -> MlflowClient:
    """Return a client for ``uri``. If tables of MLflow are missing, create them.

    Raises:
        Refused: MLflow refused the connection, or its SQLite file is damaged.
        SetupError: MLflow does not answer within a few seconds.
    """
    _set_up_mlflow()
    path = Path(uri.removeprefix(SQLITE))
    is_file = uri.startswith(SQLITE) and path.name not in ("", ":memory:") and "?" not in uri
    try:
        if is_file and not path.exists():
            _create_database(path)
        return _client(uri)
    except Exception as error:
        reason = first_line(error, uri)
        kind = SetupError
        problem = f"The MLflow store {without_secrets(uri)} does not answer: {reason}"
        if is_refusal(error) or _DAMAGED_FILE.search(reason):
            kind = Refused
            problem = f"The MLflow store {without_secrets(uri)} cannot be used: {reason}"
        raise kind(problem, hint=_fix(error, reason)) from None


def _set_up_mlflow() -> None:
    """Configure MLflow so that it logs little, repeats no call and prints nothing to stdout."""
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # For an error, MLflow logs a traceback and rows of data. isweep prints the same error in
    # one line.
    logging.getLogger("mlflow.store.db").setLevel(logging.CRITICAL)
    # If a reply is lost, MLflow's client would repeat the call and create a second run. isweep
    # checks whether the run exists before it repeats a call.
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(REQUEST_TIMEOUT_S))
    # isweep's stdout is only for data.
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"


def _create_database(path: Path) -> None:
    """Create a new SQLite file with all of MLflow's tables, or create no file.

    If a driver is killed while MLflow creates the tables, the file cannot be used. So the
    tables are first created in a temporary file in the same folder. Each attempt has a new
    temporary file, because MLflow caches connections by file name.
    """
    draft = path.with_name(f".{path.name}-{uuid4().hex[:8]}")
    try:
        _client(f"{SQLITE}{draft}")
        place_once(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def _client(uri: str) -> MlflowClient:
    import sqlalchemy
    from mlflow.tracking import MlflowClient

    if uri.partition("://")[0].partition("+")[0] in DATABASES:
        # MLflow would try ten times in 102 s, even with a wrong password. isweep retries
        # itself.
        engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool)
        sqlalchemy.inspect(engine)
        engine.dispose()
    client = MlflowClient(uri)
    client.search_experiments(max_results=1)
    return client


def _fix(error: Exception, reason: str) -> str:
    """Return the hint for an MLflow store that cannot be opened."""
    if isinstance(error, ModuleNotFoundError) and "psycopg" in reason:
        return "Run `pip install 'isweep[postgres]'`"
    if _DAMAGED_FILE.search(reason):
        return "Rename the file, and run `isweep reconcile SWEEP` for every sweep"
    return "Start the MLflow server, correct --mlflow-uri, or add --no-tracking"
