"""The runs of one sweep in MLflow: found by tag, one per key for ever, compared with what they should show.

Every call may be repeated after a lost reply. A run that was perhaps created is looked up by its tag before
another one is; of several runs for one key the oldest counts and the others are marked.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from orchestrator.results import columns
from orchestrator.results.rows import FlatRun, Row, row_of
from tasks.trials.result import TrialStatus

MAX_METRICS_PER_CALL = 900
MAX_PARAMS_PER_CALL = 100
MAX_TAGS_PER_CALL = 100
PAGE_SIZE = 5000
INF_AS_STORED = 1.7e308
PARENT_KEY = "sweep"
KEY_TAG = "isweep.run_key"
DUPLICATE_TAG = "isweep.duplicate"
STORAGE_TAG = "isweep.storage"
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""Makes MLflow's page open on runs; it opens on language-model traces otherwise."""


@dataclass
class _Known:
    """What is known of a run without asking again."""

    run_id: str
    status: str
    shown: str = ""


class SweepRuns:
    """Runs of one sweep by run key.

    Args:
        client: Answers.
        sweep: Name of the sweep.
        storage: Identity of the result store that the runs mirror; None claims nothing.
        parent_tags: Tags of the parent run.
        artifacts: Where a new experiment keeps artifacts; None leaves it to the server.
    """

    def __init__(
        self,
        client: MlflowClient,
        sweep: str,
        storage: str | None,
        parent_tags: dict[str, str],
        artifacts: Path | None,
    ) -> None:
        self.client = client
        self.experiment, self.name = _claim_experiment(client, sweep, storage, artifacts)
        self._sweep = sweep
        self._runs: dict[str, _Known] = {}
        self._extra: list[str] = []
        self._uncertain: set[str] = set()
        self._load()
        self.parent = self.open(PARENT_KEY, PARENT_KEY, parent_tags, now())

    def status(self, key: str) -> str | None:
        """Return the status of a key's run; None when there is no run."""
        known = self._runs.get(key)
        return known.status if known else None

    def open(self, key: str, kind: str, tags: dict[str, str], start_ms: int) -> str:
        """Return the id of the key's one run, made or reopened, with these tags."""
        known = self._runs.get(key) or self._look_up(key)
        if known is None:
            return self._create(key, kind, tags, start_ms)
        if known.status != "RUNNING":
            self.client.update_run(known.run_id, status="RUNNING")
            known.status = "RUNNING"
        if tags:
            self.client.log_batch(known.run_id, tags=[RunTag(*item) for item in tags.items()])
        known.shown = ""
        return known.run_id

    def end(self, key: str, status: str, end_ms: int | None = None) -> None:
        """End the key's run."""
        known = self._runs[key]
        self.client.set_terminated(known.run_id, status, end_ms)
        known.status = status

    def shows(self, run: FlatRun) -> bool:
        """Tell whether the key's run is finished and shows exactly these values."""
        known = self._runs.get(run.run_key)
        if known is None or known.status != "FINISHED":
            return False
        if known.shown == _digest(run.tags, run.params, expected_metrics(run)):
            return True
        data = self.client.get_run(known.run_id).data
        return not _Gap.between(run, data.tags, data.params, data.metrics)

    def write(self, run: FlatRun) -> None:
        """Make the key's run show these values; a run that never can is set aside for a new one."""
        later: dict[str, tuple[int, int]] = {}
        known = self._runs.get(run.run_key)
        if known is not None:
            data = self.client.get_run(known.run_id).data
            gap = _Gap.between(run, data.tags, data.params, data.metrics)
            if gap.for_ever:
                self._set_aside(self._runs.pop(run.run_key).run_id)
            elif gap.metrics:
                later = {name: self._newest_point(known.run_id, name) for name in gap.metrics}
        run_id = self.open(run.run_key, run.kind, {}, run.started_ms)
        points = [Metric(n, v, run.metrics_ms, 0) for n, v in run.metrics.items() if n not in later]
        points += [Metric(name, value, at, step) for name, step, value, at in run.series if name not in later]
        wanted = expected_metrics(run)
        points += [Metric(name, wanted[name], at + 1, step) for name, (at, step) in later.items()]
        self._log(run_id, points, run)
        self.end(run.run_key, "FINISHED", run.finished_ms)
        self._runs[run.run_key].shown = _digest(run.tags, run.params, wanted)

    def mark_duplicates(self) -> int:
        """Mark and end every run beyond the oldest of its key; returns how many."""
        for run_id in self._extra:
            self._set_aside(run_id)
        number, self._extra = len(self._extra), []
        return number

    def end_running(self) -> int:
        """End every run of this sweep that is still RUNNING, the parent excepted; returns how many."""
        running = [k for k, known in self._runs.items() if known.status == "RUNNING" and k != PARENT_KEY]
        for key in running:
            self.end(key, "KILLED")
        if self._uncertain:
            # A create whose reply was lost may have been carried out after we looked.
            self._load()
            self._uncertain.clear()
            self.mark_duplicates()
        return len(running)

    def _load(self) -> None:
        self._runs, self._extra = {}, []
        for run in search(self.client, self.experiment, ""):
            tags = run.data.tags
            key = tags.get(KEY_TAG)
            if key is None or tags.get(DUPLICATE_TAG) == "true":
                continue
            if key in self._runs:
                self._extra.append(run.info.run_id)
            else:
                shown = _digest(tags, run.data.params, run.data.metrics)
                self._runs[key] = _Known(run.info.run_id, run.info.status, shown)

    def _look_up(self, key: str) -> _Known | None:
        """Ask for a run whose creation was perhaps carried out although no reply came."""
        if key not in self._uncertain:
            return None
        found = [
            run
            for run in search(self.client, self.experiment, f"tags.`{KEY_TAG}` = '{key}'")
            if run.data.tags.get(DUPLICATE_TAG) != "true"
        ]
        if not found:
            return None
        self._extra += [run.info.run_id for run in found[1:]]
        self._runs[key] = _Known(found[0].info.run_id, found[0].info.status)
        return self._runs[key]

    def _create(self, key: str, kind: str, tags: dict[str, str], start_ms: int) -> str:
        base = {KEY_TAG: key, "kind": kind, "sweep": self._sweep}
        if key != PARENT_KEY:
            base["mlflow.parentRunId"] = self.parent
        name = self._sweep if key == PARENT_KEY else key
        self._uncertain.add(key)
        run = self.client.create_run(
            self.experiment, start_time=start_ms, tags={**base, **tags}, run_name=name
        )
        self._uncertain.discard(key)
        self._runs[key] = _Known(run.info.run_id, "RUNNING")
        return str(run.info.run_id)

    def _log(self, run_id: str, points: list[Metric], run: FlatRun) -> None:
        params = [Param(*item) for item in run.params.items()]
        tags = [RunTag(*item) for item in run.tags.items()]
        while points or params or tags:
            self.client.log_batch(
                run_id, points[:MAX_METRICS_PER_CALL], params[:MAX_PARAMS_PER_CALL], tags[:MAX_TAGS_PER_CALL]
            )
            points, params = points[MAX_METRICS_PER_CALL:], params[MAX_PARAMS_PER_CALL:]
            tags = tags[MAX_TAGS_PER_CALL:]

    def _newest_point(self, run_id: str, name: str) -> tuple[int, int]:
        """Return time and step that a value must beat to be the one that MLflow shows."""
        history = self.client.get_metric_history(run_id, name)
        return max((p.timestamp for p in history), default=0), max((p.step for p in history), default=0)

    def _set_aside(self, run_id: str) -> None:
        self.client.set_tag(run_id, DUPLICATE_TAG, "true")
        self.client.set_terminated(run_id, "KILLED")


@dataclass
class _Gap:
    """What a run in MLflow shows otherwise than it should."""

    tags: bool
    metrics: list[str]
    for_ever: bool
    """MLflow can neither change a param nor forget a metric."""

    def __bool__(self) -> bool:
        return bool(self.tags or self.metrics or self.for_ever)

    @classmethod
    def between(
        cls, run: FlatRun, tags: Mapping[str, str], params: Mapping[str, str], metrics: Mapping[str, float]
    ) -> _Gap:
        wanted = expected_metrics(run)
        strangers = {column.name for column in columns.describe(metrics) if column.origin is None}
        # A diverged trial has none of these numbers, and its row leaves out what an earlier attempt left.
        diverged = run.tags.get(columns.STATUS) == TrialStatus.DIVERGED
        surplus = set() if diverged else metrics.keys() - wanted.keys() - strangers
        return cls(
            tags=any(tags.get(name) != value for name, value in run.tags.items())
            or any(name not in params for name in run.params),
            metrics=[name for name, value in wanted.items() if name in metrics and metrics[name] != value],
            for_ever=bool(surplus)
            or any(params.get(name, value) != value for name, value in run.params.items()),
        ).with_absent(wanted, metrics)

    def with_absent(self, wanted: Mapping[str, float], metrics: Mapping[str, float]) -> _Gap:
        self.tags = self.tags or any(name not in metrics for name in wanted)
        return self


def expected_metrics(run: FlatRun) -> dict[str, float]:
    """Return the values that MLflow shows of a run: of a series its last point."""
    shown = dict(run.metrics)
    for name, _, value, _ in sorted(run.series, key=lambda point: (point[1], point[3])):
        if math.isfinite(value):
            shown[name] = value
    return shown


def experiment_names(sweep: str, storage: str | None) -> list[str]:
    """Return the experiments that may hold a sweep's runs, the first choice first."""
    plain = f"isweep/{sweep}"
    return [plain] if storage is None else [plain, f"{plain}@{storage[:8]}"]


def find_experiment(client: MlflowClient, sweep: str, storage: str | None) -> str | None:
    """Return the id of the experiment that mirrors this sweep of this store; None when there is none."""
    for name in experiment_names(sweep, storage):
        found = client.get_experiment_by_name(name)
        if found is not None and (storage is None or found.tags.get(STORAGE_TAG) in (None, storage)):
            return str(found.experiment_id)
    return None


def _claim_experiment(
    client: MlflowClient, sweep: str, storage: str | None, artifacts: Path | None
) -> tuple[str, str]:
    """Return id and name of the experiment for this sweep of this store, made where missing.

    One that belongs to another store is left alone: two roots on one server keep their runs apart.
    """
    location = artifacts.absolute().as_uri() if artifacts else None
    own = {STORAGE_TAG: storage} if storage else {}
    names = experiment_names(sweep, storage)
    for name in names:
        found = client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(client.create_experiment(name, location, tags={**EXPERIMENT_TAGS, **own})), name
            except MlflowException:
                # Another driver on the same server was first, or the reply was lost.
                found = client.get_experiment_by_name(name)
                if found is None:
                    raise
        if storage is not None and found.tags.get(STORAGE_TAG, storage) != storage and name != names[-1]:
            continue
        if found.lifecycle_stage == "deleted":
            client.restore_experiment(found.experiment_id)
        if storage is not None and STORAGE_TAG not in found.tags:
            client.set_experiment_tag(found.experiment_id, STORAGE_TAG, storage)
        return str(found.experiment_id), name
    raise AssertionError("the last name is always taken")


def rows_of_experiment(client: MlflowClient, experiment: str) -> list[Row]:
    """Return the rows of an experiment's finished trials, ordered by trial id."""
    rows = []
    for run in search(client, experiment, "attribute.status = 'FINISHED' and tags.kind = 'trial'"):
        if run.data.tags.get(DUPLICATE_TAG) != "true":
            finite = {k: v for k, v in run.data.metrics.items() if abs(v) < INF_AS_STORED and v == v}
            rows.append(row_of(run.data.tags, finite))
    return sorted(rows, key=lambda row: str(row["trial_id"]))


def search(client: MlflowClient, experiment: str, query: str) -> Iterable[Run]:
    """Yield all runs of an experiment that fit ``query``, oldest first."""
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


def now() -> int:
    """Return milliseconds since 1970."""
    return round(time.time() * 1000)


def _digest(tags: Mapping[str, str], params: Mapping[str, str], metrics: Mapping[str, float]) -> str:
    """Return a digest of what a run shows, without the tags that MLflow and we keep beside it."""
    beside = {"kind", "sweep"}
    kept = {k: v for k, v in tags.items() if k not in beside and not k.startswith(("mlflow.", "isweep."))}
    text = json.dumps([kept, dict(params), dict(metrics)], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
