"""The MLflow store that a sweep uses, and the client that is connected to it.

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
from orchestrator.results.mlflow_errors import Refused, first_line, is_final
from search_spaces.errors import ConfigError, SetupError
from tasks.atomic import place_once

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
"""Databases that MLflow opens. A URL may also name the driver, ``postgresql+psycopg``."""
SCHEMES = ("http", "https", *DATABASES, "databricks")
"""Schemes of URLs that MLflow opens without a plugin."""
SQLITE = "sqlite:///"
REQUEST_TIMEOUT_S = 15
"""Seconds that one request may take, unless the environment says otherwise."""
_DAMAGED_FILE = re.compile("file is not a database|disk image is malformed")


def mlflow_uri(paths: RootPaths, uri: str | None) -> str:
    """Return the URI of the MLflow store to use.

    Args:
        paths: of the root, below which the default SQLite file lies.
        uri: requested by the user; None takes the environment's, or the default.

    Raises:
        ConfigError: neither MLflow nor a plugin opens the URI. MLflow has closed file stores.
        SetupError: the root's path would be another one inside a URL.
    """
    requested = uri or os.environ.get("MLFLOW_TRACKING_URI")
    if requested:
        scheme, mark, _ = requested.partition("://")
        plugins = [plugin.name for plugin in entry_points(group="mlflow.tracking_store")]
        if not mark or scheme.partition("+")[0] not in {*SCHEMES, *plugins}:
            raise ConfigError(
                f"The MLflow URI {without_secrets(requested)} is neither a database nor a server",
                hint="Give a URI such as sqlite:////data/mlflow.db or https://…",
            )
        return requested
    # A question mark begins options for MLflow. Quoting does not help: MLflow creates folders with
    # the quoted name.
    if any(sign in str(paths.root) for sign in "?%"):
        raise SetupError(
            f"The path of the root {paths.root} has '?' or '%', with which MLflow's SQLite file "
            "cannot be opened",
            hint="Choose another root with --root, name an MLflow server with --mlflow-uri, or "
            "run with --no-tracking",
        )
    return f"{SQLITE}{paths.mlflow_database}"


def check_tracker(paths: RootPaths, uri: str | None) -> str:
    """Return in words that MLflow answers; nothing is created there.

    Raises:
        SetupError: it does not answer.
    """
    resolved = mlflow_uri(paths, uri)
    if resolved == f"{SQLITE}{paths.mlflow_database}" and not paths.mlflow_database.exists():
        return f"the first run creates {paths.mlflow_database}"
    connect(resolved)
    return f"answers ({resolved.partition('://')[0]})"


def connect(uri: str) -> MlflowClient:
    """Return a client for ``uri`` whose tables exist.

    Raises:
        Refused: MLflow answered that it refuses us.
        SetupError: MLflow does not answer. This is known within seconds.
    """
    _set_up_mlflow()
    path = Path(uri.removeprefix(SQLITE))
    is_file = uri.startswith(SQLITE) and path.name not in ("", ":memory:") and "?" not in uri
    try:
        if is_file and not path.exists():
            _create_database(path)
        return _client(uri)
    except Exception as error:
        kind = Refused if is_final(error) else SetupError
        reason = first_line(error, uri)
        problem = f"The MLflow store {without_secrets(uri)} does not answer: {reason}"
        raise kind(problem, hint=_fix(error, reason)) from None


def _set_up_mlflow() -> None:
    """Make MLflow quiet, and let it neither repeat calls nor print to stdout."""
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # It logs tracebacks and rows for what we report in one line.
    logging.getLogger("mlflow.store.db").setLevel(logging.CRITICAL)
    # MLflow's client would repeat a call whose reply is lost, and so create two runs. We look
    # whether there is a run before we repeat a call.
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(REQUEST_TIMEOUT_S))
    # Our stdout is for data.
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"


def _create_database(path: Path) -> None:
    """Create MLflow's tables in a new SQLite file, complete or not at all.

    A driver that is killed while MLflow creates them would leave a file that nobody can use. So
    they are created in a draft beside it. Every attempt has a new draft, because MLflow keeps
    connections by the name of the file.
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
        # MLflow tries ten times in 102 s, also with a wrong password. We repeat calls ourselves.
        engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool)
        sqlalchemy.inspect(engine)
        engine.dispose()
    client = MlflowClient(uri)
    client.search_experiments(max_results=1)
    return client


def _fix(error: Exception, reason: str) -> str:
    """Return what a user does about an MLflow store that cannot be opened."""
    if isinstance(error, ModuleNotFoundError) and "psycopg" in reason:
        return "Run `pip install 'isweep[postgres]'`"
    if _DAMAGED_FILE.search(reason):
        return "Remove the file, and run `isweep reconcile SWEEP` for every sweep"
    return "Start MLflow, correct --mlflow-uri, or run with --no-tracking"
