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
from dataclasses import dataclass, field
from pathlib import Path

from mlflow.entities import Metric, Param, RunTag
from mlflow.tracking import MlflowClient

from orchestrator.planning.paths import without_secrets
from orchestrator.results import table
from orchestrator.results.mlflow_pages import (
    DUPLICATE_TAG,
    NOTE_TAG,
    Page,
    claim_experiment,
    dataset_input,
    describe_experiment,
    run_name,
    search,
)
from orchestrator.results.rows import FlatRun, Point
from orchestrator.results.tracking import PARENT_KEY
from tasks.trials.records import TrialStatus

MAX_METRICS_PER_CALL = 900
MAX_PARAMS_PER_CALL = 100
MAX_TAGS_PER_CALL = 100
KEY_TAG = "isweep.run_key"
KILLED = "killed"
"""Value of ``columns.STATUS`` where nobody works on a trial any more and no result came."""
LOCAL_PAGES = "http://127.0.0.1:5000"
"""Where ``mlflow ui`` serves unless told otherwise."""


@dataclass
class _Known:
    """What is known of a run without asking again."""

    run_id: str
    status: str
    shown: str = ""
    live: set[tuple[str, int, float]] = field(default_factory=set)
    """Points of curves that were sent while the run was running."""


class SweepRuns:
    """Runs of one sweep by run key.

    Args:
        client: Answers.
        page: What the sweep's pages say.
        storage: Identity of the result store that the runs mirror; None claims nothing.
        artifacts: Where a new experiment keeps artifacts; None leaves it to the server.
    """

    def __init__(self, client: MlflowClient, page: Page, storage: str | None, artifacts: Path | None) -> None:
        self.client = client
        self.experiment, self.name = claim_experiment(client, page.sweep, storage, artifacts)
        self._page = page
        self._begun = False
        self._runs: dict[str, _Known] = {}
        self._extra: list[str] = []
        self._uncertain: set[str] = set()
        self._load()
        describe_experiment(client, self.experiment, page)
        known = self._runs.get(PARENT_KEY)
        # One that has ended stays as it is until something is done: a start may yet be refused.
        self.parent = known.run_id if known else self.begin()

    def begin(self) -> str:
        """Return the id of the sweep's own run, which is RUNNING from now on."""
        if self._begun:
            return self.parent
        tags = {**self._page.parent_tags(), NOTE_TAG: self._page.note(self.experiment)}
        self.parent = self.open(PARENT_KEY, PARENT_KEY, tags, now())
        self._begun = True
        return self.parent

    def end_sweep(self, status: str) -> None:
        """End the sweep's own run; one that ended before and was not begun again can only become FINISHED."""
        known = self._runs[PARENT_KEY]
        if known.status == "RUNNING" or (status == "FINISHED" and known.status != status):
            self.end(PARENT_KEY, status)

    @property
    def pages(self) -> str:
        """What stands before a run's id in the address of its page."""
        uri = str(self.client.tracking_uri)
        # A database has no pages of its own: those of `mlflow ui`, as README starts it.
        server = without_secrets(uri).rstrip("/") if uri.startswith("http") else LOCAL_PAGES
        return f"{server}/#/experiments/{self.experiment}/runs/"

    def run_ids(self) -> dict[str, str]:
        """Return the id of every run that is known, by its key."""
        return {key: known.run_id for key, known in self._runs.copy().items()}

    def status(self, key: str) -> str | None:
        """Return the status of a key's run; None when there is no run."""
        known = self._runs.get(key)
        return known.status if known else None

    def open(self, key: str, kind: str, tags: dict[str, str], start_ms: int, name: str = "") -> str:
        """Return the id of the key's one run, made or reopened, with these tags; ``name`` is a new run's."""
        known = self._runs.get(key) or self._look_up(key)
        if known is None:
            return self._create(key, kind, tags, start_ms, name or run_name(key, kind, tags))
        if known.status != "RUNNING":
            self.client.update_run(known.run_id, status="RUNNING")
            known.status = "RUNNING"
        if tags:
            self.client.log_batch(known.run_id, tags=[RunTag(*item) for item in tags.items()])
        known.shown = ""
        return known.run_id

    def extend(self, key: str, points: Iterable[Point]) -> None:
        """Add points to the curves of a run that is running; one that has ended has all from its result."""
        known = self._runs.get(key)
        if known is None or known.status != "RUNNING":
            return
        new = [point for point in points if point[:3] not in known.live]
        self.log(known.run_id, [Metric(name, value, at, step) for name, step, value, at in new])
        known.live.update(point[:3] for point in new)
        known.shown = ""

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
        wanted, history = expected_metrics(run), dict[str, list[Metric]]()
        known = self._runs.get(run.run_key)
        if known is not None:
            data = self.client.get_run(known.run_id).data
            gap = _Gap.between(run, data.tags, data.params, data.metrics)
            if gap.for_ever:
                self._set_aside(self._runs.pop(run.run_key).run_id)
            else:
                there = {name for name, *_ in run.series if name in data.metrics}
                history = {n: self.client.get_metric_history(known.run_id, n) for n in {*gap.metrics, *there}}
        name = run_name(run.run_key, run.kind, run.tags)
        run_id = self.open(run.run_key, run.kind, {}, run.started_ms, name)
        self.log(run_id, _missing_points(run, wanted, history), run)
        data_used = dataset_input(run.tags)
        if data_used is not None:
            self.client.log_inputs(run_id, [data_used])
        self.end(run.run_key, "FINISHED", run.finished_ms)
        self._runs[run.run_key].shown = _digest(run.tags, run.params, wanted)
        self._runs[run.run_key].live.clear()

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
            # Its tags are those of its start, and would say for ever that it is running.
            self.client.set_tag(self._runs[key].run_id, table.STATUS, KILLED)
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

    def _create(self, key: str, kind: str, tags: dict[str, str], start_ms: int, name: str) -> str:
        base = {KEY_TAG: key, "kind": kind, "sweep": self._page.sweep, **self._page.source_tags()}
        if key != PARENT_KEY:
            base["mlflow.parentRunId"] = self.parent
        else:
            name = self._page.sweep
        self._uncertain.add(key)
        run = self.client.create_run(
            self.experiment, start_time=start_ms, tags={**base, **tags}, run_name=name
        )
        self._uncertain.discard(key)
        self._runs[key] = _Known(run.info.run_id, "RUNNING")
        return str(run.info.run_id)

    def log(self, run_id: str, points: list[Metric], run: FlatRun | None = None) -> None:
        """Send points, and the tags and params of ``run``, in calls of a size that MLflow takes."""
        params = [Param(*item) for item in run.params.items()] if run else []
        tags = [RunTag(*item) for item in run.tags.items()] if run else []
        while points or params or tags:
            self.client.log_batch(
                run_id, points[:MAX_METRICS_PER_CALL], params[:MAX_PARAMS_PER_CALL], tags[:MAX_TAGS_PER_CALL]
            )
            points, params = points[MAX_METRICS_PER_CALL:], params[MAX_PARAMS_PER_CALL:]
            tags = tags[MAX_TAGS_PER_CALL:]

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
        strangers = {column.name for column in table.describe(metrics) if column.origin is None}
        # A diverged trial has none of these numbers, and its row leaves out what an earlier attempt left.
        diverged = run.tags.get(table.STATUS) == TrialStatus.DIVERGED
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


def _missing_points(
    run: FlatRun, wanted: Mapping[str, float], history: Mapping[str, list[Metric]]
) -> list[Metric]:
    """Return the points to send, so that every point is there once and the wanted value is shown of each.

    Args:
        run: What the run should have.
        wanted: What it should show, from :func:`expected_metrics`.
        history: Points that MLflow has, of the metrics that it may show otherwise.
    """
    there = {(name, point.step, point.value) for name, points in history.items() for point in points}
    points = [Metric(name, value, run.metrics_ms, 0) for name, value in run.metrics.items()]
    points += [Metric(name, value, at, step) for name, step, value, at in run.series]
    points = [point for point in points if (point.key, point.step, point.value) not in there]
    for name, old in history.items():
        # Of all points MLflow shows the one of the highest step, and of those the newest.
        last = max(
            [*old, *(p for p in points if p.key == name)], key=lambda p: (p.step, p.timestamp, p.value)
        )
        if last.value != wanted.get(name, last.value):
            points.append(Metric(name, wanted[name], last.timestamp + 1, last.step))
    return points


def expected_metrics(run: FlatRun) -> dict[str, float]:
    """Return the values that MLflow shows of a run: of a series its last point."""
    shown = dict(run.metrics)
    for name, _, value, _ in sorted(run.series, key=lambda point: (point[1], point[3])):
        if math.isfinite(value):
            shown[name] = value
    return shown


def now() -> int:
    """Return milliseconds since 1970."""
    return round(time.time() * 1000)


def _digest(tags: Mapping[str, str], params: Mapping[str, str], metrics: Mapping[str, float]) -> str:
    """Return a digest of what a run shows, without the tags that MLflow and we keep beside it."""
    beside = {"kind", "sweep"}
    kept = {k: v for k, v in tags.items() if k not in beside and not k.startswith(("mlflow.", "isweep."))}
    text = json.dumps([kept, dict(params), dict(metrics)], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
