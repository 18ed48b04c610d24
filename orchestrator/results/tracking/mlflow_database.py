"""A new SQLite file of MLflow's is made whole or not at all."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

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
