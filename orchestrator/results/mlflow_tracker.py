"""MLflow as a view of the result store: one run per trial and measure for ever, below one parent per sweep.

With :mod:`orchestrator.results.mlflow_runs` the only module that imports ``mlflow``. Runs are
written by this process alone, in batches, by one background thread, so that neither a trial nor Tune's event
loop ever waits for a server, and a server that is down when a sweep starts lets training begin.
"""

from __future__ import annotations

import importlib
import logging
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from mlflow.entities import Metric
from mlflow.tracking import MlflowClient

from orchestrator.planning.paths import without_secrets
from orchestrator.planning.plan import CellStatus
from orchestrator.results import table
from orchestrator.results.mlflow_pages import (
    Page,
    Refused,
    experiment_names,
    find_experiment,
    first_line,
    is_final,
    make_whole,
    rows_of_experiment,
)
from orchestrator.results.mlflow_runs import SweepRuns, now
from orchestrator.results.rows import FlatRun, Point, Row
from orchestrator.results.store import pack_run, unpack_run
from orchestrator.results.tracking import Curves, Ending, Failure, Outbox, RunPages
from search_spaces.errors import ConfigError, SetupError

log = logging.getLogger(__name__)

FIRST_TRY_S = 5.0
"""How long a sweep's start waits for the server to refuse it; one that is slow or away is told later."""
PATIENCE_S = 60.0
STOP_PATIENCE_S = 8.0
"""How long the end of a sweep, and Ctrl-C, wait for a server. A new SQLite file takes 5 s when quiet."""
MAX_MESSAGE = 4000
DATABASE_TRIES = 2
SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks")
"""What MLflow itself opens, of databases also with a driver, as in ``postgresql+psycopg``."""


def connector(uri: str) -> Callable[[], MlflowClient]:
    """Return what connects to ``uri``, after a look at the URI alone.

    Raises:
        ConfigError: for a file store, which MLflow has closed, and what neither MLflow nor a plugin opens.
    """
    scheme, found, _ = uri.partition("://")
    plugins = (plugin.name for plugin in entry_points(group="mlflow.tracking_store"))
    if not found or scheme.partition("+")[0] not in {*SCHEMES, *plugins}:
        raise ConfigError(
            "The MLflow URI must be a database or server",
            without_secrets(uri),
            "e.g. sqlite:////data/mlflow.db or https://…",
        )
    return lambda: connect(uri)


def connect(uri: str) -> MlflowClient:
    """Return a client for ``uri`` whose store answers and whose tables exist.

    Called by the driver before anything else uses it, since several first users of a new SQLite file break
    its schema migration.

    Raises:
        ConfigError: for a file store, which MLflow has closed.
        SetupError: when the store or server does not answer, within seconds rather than MLflow's minutes.
    """
    connector(uri)
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db").setLevel(
        logging.CRITICAL
    )  # it gives tracebacks and rows for what we say
    # MLflow's client repeats a call whose reply is lost, and so makes two runs of one; we look first.
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
    # Our stdout is for data.
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    # Ten attempts take MLflow 102 s, also where the password is wrong; what goes away is tried again by us.
    database: Any = importlib.import_module("mlflow.store.db.utils")
    database.MAX_RETRY_COUNT = DATABASE_TRIES
    try:
        make_whole(uri)
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
    except Exception as error:
        kind = Refused if is_final(error) else SetupError
        lacks_driver = isinstance(error, ModuleNotFoundError) and "psycopg" in str(error)
        raise kind(
            "The MLflow store must answer",
            f"{without_secrets(uri)}: {first_line(error, uri)}",
            "pip install 'isweep[postgres]'"
            if lacks_driver
            else "start it, correct --mlflow-uri, or run with --no-tracking and `isweep reconcile` later",
        ) from None
    return client


class MLflowTracker:
    """Mirror of one sweep in MLflow; see :class:`orchestrator.results.tracking.Tracker`.

    Args:
        connect: From :func:`connector`.
        page: What the sweep's pages say; the experiment is called as the sweep, prefixed with ``isweep/``.
        artifacts: Where a new experiment keeps artifacts; None leaves it to the server.
        storage: Identity of the result store that is mirrored: another store's sweep of the same name is kept
            apart, in an experiment whose name ends in this identity.
        say: Is told when the server goes away or comes back.

    Raises:
        SetupError: when the server refuses us.
    """

    def __init__(
        self,
        connect: Callable[[], MlflowClient],
        page: Page,
        artifacts: Path | None = None,
        storage: str | None = None,
        say: Callable[[str], None] = log.info,
    ) -> None:
        self._sweep = page.sweep
        self._say = say
        self._open_runs: Callable[[], SweepRuns] = lambda: SweepRuns(connect(), page, storage, artifacts)
        self._runs_opened: SweepRuns | None = None
        self._outbox = Outbox(self._connect, is_final, say, "MLflow", first_line)
        self._curves = Curves(lambda key, points: self._runs.extend(key, points), self._outbox.put)
        try:
            self._outbox.wait_for_first_try(FIRST_TRY_S)
        except Exception:
            self._outbox.stop()
            raise

    @property
    def num_behind(self) -> int:
        """Updates that MLflow has not taken."""
        return self._outbox.num_behind

    def start_trial(self, trial_id: str, tags: dict[str, str]) -> None:
        """Open the trial's one run, again if it had failed before."""
        at = now()

        def start() -> None:
            self._runs.begin()
            self._runs.open(trial_id, "trial", tags, at)

        self._outbox.put(start)

    def extend(self, run_key: str, points: Sequence[Point]) -> None:
        """Send points of curves, those that come fast together."""
        self._curves.add(run_key, points)

    def finish(self, run: FlatRun) -> None:
        """Send the result, unless the run already shows exactly this."""
        packed = pack_run(run)

        def write() -> None:
            self._runs.begin()
            self._write(unpack_run(packed))

        self._curves.send()
        self._outbox.put(write)

    def fail_trial(self, failure: Failure) -> None:
        """End the trial's run as FAILED with the kind and message of its failure."""
        self._curves.send()
        self._outbox.put(lambda: self._fail(failure))

    def add_report(self, folder: Path, summary: Mapping[str, float]) -> None:
        """Attach the report's files and what it found to the parent run."""
        at = now()

        def write() -> None:
            runs = self._runs
            runs.client.log_artifacts(runs.parent, str(folder), "report")
            runs.log(runs.parent, [Metric(name, value, at, 0) for name, value in summary.items()])

        self._outbox.put(write)

    def rows(self) -> list[Row]:
        """Read the trials with a result back from MLflow, ordered by trial id.

        Raises:
            SetupError: when MLflow does not answer.
        """
        found: list[Row] = []
        self._ask(lambda: found.extend(rows_of_experiment(self._runs.client, self._runs.experiment)))
        return found

    def pages(self) -> RunPages:
        """Return where MLflow's server shows the runs that are known; none before it has answered."""
        runs = self._runs_opened
        return RunPages() if runs is None else RunPages(prefix=runs.pages, runs=runs.run_ids())

    def reconcile(
        self, results: Iterable[FlatRun], failures: Sequence[Failure] = (), *, wait: bool = True
    ) -> dict[str, int]:
        """Make MLflow show exactly what the store holds, comparing every value.

        Sends what is missing or differs, marks second runs of one cell as duplicates, and ends every run
        that is RUNNING although nobody works on it.

        Args:
            results: What to show.
            failures: Cells that have no result.
            wait: False does it in the background and returns nothing.

        Returns:
            Counts: ``replayed``, ``closed`` (ghosts), ``duplicates``, ``up_to_date``.

        Raises:
            SetupError: when MLflow does not answer.
        """
        runs = list(results)
        counts: dict[str, int] = {}

        def work() -> None:
            counts.update(self._reconcile(runs, failures))

        self._ask(work) if wait else self._outbox.put(work)
        return counts

    def flush(self) -> bool:
        """Wait until everything said so far was sent; False when MLflow took nothing for a while."""
        return self._outbox.flush(PATIENCE_S)

    def close(self, ending: Ending) -> None:
        """Send what is queued, then end every run still open, and the parent run as it ended."""

        def end() -> None:
            self._runs.end_running()
            self._runs.end_sweep(ending)

        self._curves.send()
        self._outbox.put(end)
        self._outbox.flush(PATIENCE_S if ending == "FINISHED" else STOP_PATIENCE_S)
        self._outbox.stop()

    @property
    def _runs(self) -> SweepRuns:
        if self._runs_opened is None:
            raise SetupError("MLflow must answer", "it has not yet")
        return self._runs_opened

    def _connect(self) -> None:
        self._runs_opened = self._open_runs()
        plain = experiment_names(self._sweep, None)[0]
        if self._runs_opened.name != plain:
            self._say(
                f"MLflow's {plain} belongs to another result store; this one's runs are in "
                f"{self._runs_opened.name}"
            )

    def _write(self, run: FlatRun) -> bool:
        self._outbox.moved()
        if self._runs.shows(run):
            return False
        self._runs.write(run)
        return True

    def _fail(self, failure: Failure) -> None:
        tags = {
            table.STATUS: str(CellStatus.FAILED),
            "failure_kind": failure.kind,
            "attempt": str(failure.attempt),
            "failure_message": failure.message[:MAX_MESSAGE],
        }
        self._runs.open(failure.run_key, "trial", tags, now())
        self._runs.end(failure.run_key, "FAILED")

    def _reconcile(self, results: list[FlatRun], failures: Sequence[Failure]) -> dict[str, int]:
        counts = {"replayed": 0, "closed": 0, "duplicates": self._runs.mark_duplicates(), "up_to_date": 0}
        for run in results:
            counts["replayed" if self._write(run) else "up_to_date"] += 1
        for failure in failures:
            if self._runs.status(failure.run_key) != "FAILED":
                self._fail(failure)
        counts["closed"] = self._runs.end_running()
        return counts

    def _ask(self, work: Callable[[], None]) -> None:
        """Do something in its turn and wait for it.

        Raises:
            SetupError: when MLflow does not answer.
        """
        done = threading.Event()
        problem: list[Exception] = []

        def run() -> None:
            try:
                work()
            except Exception as error:
                problem.append(error)
            done.set()

        self._outbox.put(run)
        while not done.wait(0.1):
            if self._outbox.trouble() > PATIENCE_S:
                raise _no_answer(self._outbox.last_error or TimeoutError())
        if problem:
            raise _no_answer(problem[0])


def read_rows(client: MlflowClient, sweep: str, storage: str | None = None) -> list[Row]:
    """Return the rows of a sweep's finished trials from MLflow, ordered by trial id; [] when unknown.

    Args:
        client: From :func:`connect`.
        sweep: Name of the sweep.
        storage: Identity of the result store whose runs are wanted; None takes whatever bears the name.

    Raises:
        SetupError: when MLflow does not answer.
    """
    try:
        experiment = find_experiment(client, sweep, storage)
        return [] if experiment is None else rows_of_experiment(client, experiment)
    except Exception as error:
        raise _no_answer(error) from error


def _no_answer(error: Exception) -> SetupError:
    if isinstance(error, SetupError):
        return error
    return SetupError(
        "MLflow must answer", first_line(error), "the result store has everything: isweep reconcile, later"
    )
