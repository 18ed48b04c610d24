"""MLflow as a view of the result store: one run per trial and measure for ever, below one parent per sweep.

This is the only module that imports ``mlflow``. Runs are found by tag, created by this process alone and
written in batches by one background thread, so neither a trial nor Tune's event loop ever waits for a
server. Every write is idempotent: metrics carry their own timestamps, params come from the trial's identity.
"""

from __future__ import annotations

import logging
import os
import queue
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from orchestrator.results.rows import FlatRun, Row, row_of
from orchestrator.results.tracking.tracker import Failure
from search_spaces.errors import ConfigError, SetupError

log = logging.getLogger(__name__)

MAX_METRICS_PER_CALL = 1000
MAX_PARAMS_PER_CALL = 100
PAGE_SIZE = 5000
INF_AS_STORED = 1.7e308
CLOSE_TIMEOUT_S = 60.0
PARENT_KIND = "sweep"
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""Makes MLflow's page open on runs; it opens on language-model traces otherwise."""


def connect(uri: str, artifacts: Path | None = None) -> MlflowClient:
    """Return a client for ``uri`` whose store answers and whose tables exist.

    Called by the driver before anything else runs, since several first users of a new SQLite file break
    its schema migration.

    Raises:
        ConfigError: for a file store, which MLflow has closed.
        SetupError: when the store or server does not answer, within seconds rather than MLflow's minutes.
    """
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # MLflow retries every call for about four minutes by default; the store is our retry.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
    # Our stdout is for data.
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    if "://" not in uri or uri.startswith("file:"):
        raise ConfigError(
            "The MLflow URI must be a database or server", uri, "e.g. sqlite:////data/mlflow.db or https://…"
        )
    try:
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
    except Exception as error:
        raise SetupError(
            "The MLflow store must answer",
            f"{_without_password(uri)}: {_first_line(error)}",
            "start it, correct --mlflow-uri, or run with --no-tracking and `isweep reconcile` later",
        ) from None
    return client


@dataclass
class _Known:
    """What is known of a run without asking again."""

    run_id: str
    status: str
    content: str = ""


class MLflowTracker:
    """Mirror of one sweep in MLflow; see :class:`orchestrator.results.tracking.tracker.Tracker`.

    Args:
        client: From :func:`connect`.
        sweep: Name of the sweep; also the experiment's name, prefixed with ``isweep/``.
        parent_tags: Tags of the parent run, e.g. the number of planned trials.
        artifacts: Where a new experiment keeps artifacts; None leaves it to the server.
    """

    def __init__(
        self,
        client: MlflowClient,
        sweep: str,
        parent_tags: dict[str, str] | None = None,
        artifacts: Path | None = None,
    ) -> None:
        self.num_behind = 0
        self._client = client
        self._sweep = sweep
        self._experiment = self._experiment_id(f"isweep/{sweep}", artifacts)
        self._runs: dict[str, _Known] = {}
        self._duplicates: list[str] = []
        self._load_runs()
        self._parent = self._open(PARENT_KIND, PARENT_KIND, parent_tags or {}, _now())
        self._queue: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._drain, name="mlflow-writer", daemon=True)
        self._thread.start()

    def start_trial(self, trial_id: str, tags: dict[str, str]) -> None:
        """Open the trial's one run, again if it had failed before."""

        def write() -> None:
            self._open(trial_id, "trial", tags, _now())

        self._queue.put(write)

    def finish(self, run: FlatRun) -> None:
        """Send the result, unless the run already shows exactly this content."""
        self._queue.put(lambda: self._write(run))

    def fail_trial(self, failure: Failure) -> None:
        """End the trial's run as FAILED with the kind and message of its failure."""

        def write() -> None:
            tags = {"status": "failed", "failure_kind": failure.kind, "attempt": str(failure.attempt)}
            run_id = self._open(failure.run_key, "trial", tags, _now())
            self._client.log_batch(run_id, tags=[RunTag("failure_message", failure.message[:4000])])
            self._end(failure.run_key, "FAILED")

        self._queue.put(write)

    def add_report(self, folder: Path, summary: dict[str, Any]) -> None:
        """Attach the report's files to the parent run."""

        def write() -> None:
            self._client.log_artifacts(self._parent, str(folder), "report")
            tags = [RunTag(f"isweep.{name}", str(value)) for name, value in summary.items()]
            self._client.log_batch(self._parent, tags=tags)

        self._queue.put(write)

    def rows(self) -> list[Row]:
        """Read the trials with a result back from MLflow, ordered by trial id.

        Raises:
            SetupError: when MLflow does not answer.
        """
        self.flush()
        with _answering():
            return read_rows(self._client, self._sweep)

    def reconcile(self, results: Iterable[FlatRun]) -> dict[str, int]:
        """Make MLflow show exactly what the store holds.

        Replays what is missing or differs, marks second runs of one cell as duplicates, and ends every run
        that is RUNNING although nobody works on it.

        Returns:
            Counts: ``replayed``, ``closed`` (ghosts), ``duplicates``, ``up_to_date``.

        Raises:
            SetupError: when MLflow does not answer.
        """
        self.flush()
        with _answering():
            return self._reconcile(results)

    def _reconcile(self, results: Iterable[FlatRun]) -> dict[str, int]:
        counts = {"replayed": 0, "closed": 0, "duplicates": len(self._duplicates), "up_to_date": 0}
        for run_id in self._duplicates:
            self._client.set_tag(run_id, "isweep.duplicate", "true")
            self._client.set_terminated(run_id, "KILLED")
        self._duplicates = []
        for run in results:
            counts["up_to_date" if self._shows(run) else "replayed"] += 1
            self._write(run)
        counts["closed"] = self._end_running()
        return counts

    def flush(self, timeout: float = CLOSE_TIMEOUT_S) -> bool:
        """Wait until everything said so far was sent; False when ``timeout`` seconds were not enough."""
        done = threading.Event()
        self._queue.put(done.set)
        return done.wait(timeout)

    def close(self, *, completed: bool) -> None:
        """Send what is queued, then end the parent run and every run still open."""
        if not self.flush():
            self.num_behind += self._queue.qsize()
        self._queue.put(None)
        self._thread.join(5.0)
        try:
            self._end_running()
            self._end(PARENT_KIND, "FINISHED" if completed else "KILLED")
        except Exception as error:
            log.warning("MLflow did not take the end of the sweep: %s", _first_line(error))
            self.num_behind += 1

    def _drain(self) -> None:
        while (work := self._queue.get()) is not None:
            try:
                work()
            except Exception as error:
                self.num_behind += 1
                log.warning("MLflow is behind by %d: %s", self.num_behind, _first_line(error))

    def _experiment_id(self, name: str, artifacts: Path | None) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            if found.lifecycle_stage == "deleted":
                self._client.restore_experiment(found.experiment_id)
            return str(found.experiment_id)
        location = artifacts.absolute().as_uri() if artifacts else None
        try:
            return str(self._client.create_experiment(name, location, tags=EXPERIMENT_TAGS))
        except MlflowException:
            # Another driver on the same server was first.
            found = self._client.get_experiment_by_name(name)
            if found is None:
                raise
            return str(found.experiment_id)

    def _load_runs(self) -> None:
        for run in _search(self._client, self._experiment, ""):
            tags = run.data.tags
            key = tags.get("isweep.run_key")
            if key is None or tags.get("isweep.duplicate") == "true":
                continue
            if key in self._runs:
                self._duplicates.append(run.info.run_id)
            else:
                content = tags.get("isweep.content", "")
                self._runs[key] = _Known(run.info.run_id, run.info.status, content)

    def _open(self, key: str, kind: str, tags: dict[str, str], start_ms: int) -> str:
        known = self._runs.get(key)
        if known is None:
            base = {"isweep.run_key": key, "kind": kind, "sweep": self._sweep}
            if kind != PARENT_KIND:
                base["mlflow.parentRunId"] = self._parent
            name = self._sweep if kind == PARENT_KIND else key
            run = self._client.create_run(
                self._experiment, start_time=start_ms, tags={**base, **tags}, run_name=name
            )
            self._runs[key] = _Known(run.info.run_id, "RUNNING")
            return str(run.info.run_id)
        if known.status != "RUNNING":
            self._client.update_run(known.run_id, status="RUNNING")
            known.status = "RUNNING"
        self._client.log_batch(known.run_id, tags=[RunTag(*item) for item in tags.items()])
        return known.run_id

    def _end(self, key: str, status: str, end_ms: int | None = None) -> None:
        known = self._runs[key]
        self._client.set_terminated(known.run_id, status, end_ms)
        known.status = status

    def _end_running(self) -> int:
        running = [k for k, known in self._runs.items() if known.status == "RUNNING" and k != PARENT_KIND]
        for key in running:
            self._end(key, "KILLED")
        return len(running)

    def _shows(self, run: FlatRun) -> bool:
        known = self._runs.get(run.run_key)
        return known is not None and known.status == "FINISHED" and known.content == run.content

    def _write(self, run: FlatRun) -> None:
        if self._shows(run):
            return
        run_id = self._open(run.run_key, run.kind, run.tags, run.started_ms)
        metrics = [Metric(n, v, run.metrics_ms, 0) for n, v in run.metrics.items()]
        metrics += [Metric(name, value, at, step) for name, step, value, at in run.series]
        params = [Param(*item) for item in run.params.items()]
        for start in range(0, len(params), MAX_PARAMS_PER_CALL):
            self._client.log_batch(run_id, params=params[start : start + MAX_PARAMS_PER_CALL])
        for start in range(0, len(metrics), MAX_METRICS_PER_CALL - 100):
            self._client.log_batch(run_id, metrics=metrics[start : start + MAX_METRICS_PER_CALL - 100])
        self._client.log_batch(run_id, tags=[RunTag("isweep.content", run.content)])
        self._end(run.run_key, "FINISHED", run.finished_ms)
        self._runs[run.run_key].content = run.content


def read_rows(client: MlflowClient, sweep: str) -> list[Row]:
    """Return the rows of a sweep's finished trials from MLflow, ordered by trial id; [] when unknown."""
    experiment = client.get_experiment_by_name(f"isweep/{sweep}")
    if experiment is None:
        return []
    rows = []
    for run in _search(
        client, experiment.experiment_id, "attribute.status = 'FINISHED' and tags.kind = 'trial'"
    ):
        if run.data.tags.get("isweep.duplicate") != "true":
            finite = {k: v for k, v in run.data.metrics.items() if abs(v) < INF_AS_STORED and v == v}
            rows.append(row_of(run.data.tags, finite))
    return sorted(rows, key=lambda row: str(row["trial_id"]))


@contextmanager
def _answering() -> Iterator[None]:
    """Turn whatever a silent server makes the client raise into one clear error."""
    try:
        yield
    except Exception as error:
        raise SetupError(
            "MLflow must answer",
            _first_line(error),
            "the result store has everything: isweep reconcile, later",
        ) from error


def _search(client: MlflowClient, experiment: str, query: str) -> Iterable[Run]:
    token: str | None = None
    while True:
        page = client.search_runs(
            [experiment],
            query,
            max_results=PAGE_SIZE,
            order_by=["attribute.start_time ASC"],
            page_token=token,
        )
        yield from page
        token = page.token
        if not token:
            return


def _now() -> int:
    return round(time.time() * 1000)


def _first_line(error: Exception) -> str:
    return _without_password((str(error).strip() or type(error).__name__).splitlines()[0])[:300]


def _without_password(text: str) -> str:
    return re.sub(r"://[^@/\s]+@", "://", text)
