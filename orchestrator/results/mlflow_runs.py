"""The runs of one sweep in MLflow: found by tag, one per key for ever, compared with what they
should show.

Every call may be repeated after a lost reply. A run that was perhaps created is looked up by its
tag before another one is; of several runs for one key the oldest counts and the others are deleted.
"""

from __future__ import annotations

import hashlib
import json
import math
import posixpath
import sqlite3
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mlflow.entities import Experiment, Metric, Param, Run, RunData, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from orchestrator.planning.redaction import without_secrets
from orchestrator.results import columns
from orchestrator.results.flat_runs import CURVE, FlatRun, Live, milliseconds
from orchestrator.results.mlflow_connection import SQLITE
from orchestrator.results.mlflow_errors import no_answer
from orchestrator.results.mlflow_pages import EXPERIMENT_TAGS, SWEEP_KEY, Page, RunPages
from orchestrator.results.rows import Row, row_of

MOST_METRICS, MOST_PARAMS, MOST_TAGS = 900, 100, 100  # of one call

INF_AS_STORED = 1.7e308

KEY_TAG, REPORT_TAG, STORAGE_TAG = "isweep.run_key", "isweep.report", "isweep.storage"

KILLED = "killed"

"""Value of the tag ``status`` where nobody works on a trial any more and no result came."""

LOCAL_PAGES = "http://127.0.0.1:5000"

PERHAPS_RUNNING = "RUNNING?"

OPEN = ("RUNNING", PERHAPS_RUNNING)


@dataclass
class _Known:
    """What is known of a run without asking: a digest of what it shows, if any; points sent while
    it ran.
    """

    run_id: str
    status: str
    shown: str = ""
    live: set[tuple[str, int, float]] = field(default_factory=set)


class SweepRuns:
    """Runs of one sweep by run key, in the experiment called ``name``.

    ``storage``, the identity of the result store that they mirror, keeps sweeps of one name apart;
    a new experiment keeps ``artifacts`` there, None leaves it to the server.
    """

    def __init__(
        self, client: MlflowClient, page: Page, storage: str | None, artifacts: Path | None
    ) -> None:
        self.client, self._page = client, page
        experiment = claim_experiment(client, page.sweep, storage, artifacts)
        self._experiment, self.name = str(experiment.experiment_id), str(experiment.name)
        self._sweep_tags = page.sweep_tags(self._experiment)
        for tag, text in page.experiment_tags(self._experiment).items():
            if experiment.tags.get(tag) != text:
                client.set_experiment_tag(self._experiment, tag, text)
        self._extra: list[str] = []
        self._uncertain, self._sent = set[str](), set[tuple[str, str]]()
        self._load()

    def run_pages(self) -> RunPages:
        """Return where the server shows the runs that are known; for a database, where `mlflow ui`
        would.
        """
        uri = str(self.client.tracking_uri)
        server = without_secrets(uri).rstrip("/") if uri.startswith("http") else LOCAL_PAGES
        ids = {key: known.run_id for key, known in self._runs.copy().items()}
        return RunPages(prefix=f"{server}/#/experiments/{self._experiment}/runs/", runs=ids)

    def show_live(self, key: str, live: Live) -> None:
        """Make the key's run RUNNING or FAILED, with these tags and those points that were not sent
        before.

        Points alone are for a run that is RUNNING: one that has ended has all from its result.
        """
        known, tags = self._find(key), live.tags or {}
        if live.tags is None and (known is None or known.status not in OPEN):
            return
        failed = known if live.failed and known is not None and known.status == "FAILED" else None
        if failed and tags.items() <= self.client.get_run(failed.run_id).data.tags.items():
            return
        if key == SWEEP_KEY and live.tags is not None:
            tags = self._sweep_tags
        new = [point for point in live.points if known is None or point[:3] not in known.live]
        known = self._open(
            key, tags, live.at_ms, [Metric(n, value, at, step) for n, step, value, at in new]
        )
        known.live.update(point[:3] for point in new)
        if live.failed:
            self._end(known, "FAILED")

    def show(self, run: FlatRun) -> bool:
        """Make the key's run FINISHED with exactly these values; returns whether anything had to be
        done.

        A run that never can, since MLflow keeps params and metrics for ever, is deleted for a new
        one.
        """
        # MLflow shows the last point of a series.
        series = sorted(run.series, key=lambda point: (point[1], point[3]))
        wanted = run.metrics | {name: value for name, _, value, _ in series if math.isfinite(value)}
        known, history = self._find(run.run_key), dict[str, list[Metric]]()
        digest = _digest(run.tags, run.params, wanted)
        if known is not None:
            finished = known.status == "FINISHED"
            if finished and known.shown == digest:
                return False
            data = self.client.get_run(known.run_id).data
            if _has_too_much(run, wanted, data):
                self.client.delete_run(known.run_id)
                del self._runs[run.run_key]
            elif (
                finished
                and wanted.items() <= data.metrics.items()
                and run.tags.items() <= data.tags.items()
                and run.params.items() <= data.params.items()
            ):
                known.shown = digest
                return False
            else:
                curves = {name for name, *_ in run.series}
                unsure = {
                    name
                    for name in wanted
                    if name in curves or data.metrics.get(name) != wanted[name]
                }
                there = unsure & data.metrics.keys()
                history = {
                    name: self.client.get_metric_history(known.run_id, name) for name in there
                }
        points = _missing_points(run, wanted, history)
        known = self._open(run.run_key, run.tags, run.started_ms, points, run.params)
        self._end(known, "FINISHED", run.finished_ms)
        known.shown = digest
        known.live.clear()
        return True

    def show_report(
        self,
        numbers: Mapping[str, float],
        folder: Path | None,
        sent: Callable[[], None] = lambda: None,
    ) -> None:
        """Make the sweep's own run show final finite numbers and the report's files; its status
        stays.

        Each file is sent by itself, and not again after a lost reply; ``sent`` is called whenever
        one was.
        """
        own = self._own().run_id
        data, points = self.client.get_run(own).data, []
        for name, value in numbers.items():
            if math.isfinite(value) and data.metrics.get(name) != value:
                old = self.client.get_metric_history(own, name) if name in data.metrics else []
                last = max(
                    old, key=_shown_last, default=Metric(name, value, milliseconds(time.time()), 0)
                )
                points.append(Metric(name, value, last.timestamp + 1, last.step))
        tags = {
            name: text for name, text in self._sweep_tags.items() if data.tags.get(name) != text
        }
        self._log(own, points, {}, tags)
        paths = sorted(filter(Path.is_file, folder.rglob("*"))) if folder else []
        files = {str(path.relative_to(folder or "")): _hash(path.read_bytes()) for path in paths}
        whole = _hash(json.dumps(files).encode())
        there = self._artifacts("report") if data.tags.get(REPORT_TAG) == whole else set[str]()
        for name, digest in files.items():
            place = f"report/{name}"
            if place not in there and (name, digest) not in self._sent:
                self.client.log_artifact(own, f"{folder}/{name}", posixpath.dirname(place))
                self._sent.add((name, digest))
                sent()
        if files and not there:
            self.client.set_tag(own, REPORT_TAG, whole)

    def end_running(self, but: Collection[str] = ()) -> tuple[int, int]:
        """Let none be RUNNING but the sweep's own and ``but``, nor two of a key count; returns how
        many.
        """
        if self._uncertain:
            self._load()  # a create whose reply was lost may have been carried out after we looked
            self._uncertain.clear()
        kept = {SWEEP_KEY, *but}
        left = [
            known for key, known in self._runs.items() if known.status in OPEN and key not in kept
        ]
        for known in left:
            # Its tags are those of its start, and would say for ever that it is running.
            self.client.set_tag(known.run_id, columns.STATUS, KILLED)
            self._end(known, "KILLED")
        num_extra = len(self._extra)
        for run_id in self._extra:
            self.client.delete_run(run_id)
        self._extra = []
        return len(left), num_extra

    def end_sweep(self, status: str) -> None:
        """End the sweep's own run; one that ended before and was not begun again can only become
        FINISHED.
        """
        own = self._own()
        if own.status in OPEN or (status == "FINISHED" and own.status != status):
            self._end(own, status)

    def _own(self) -> _Known:
        """Return the sweep's own run, as it ended until something is done: a start may yet be
        refused.
        """
        return self._find(SWEEP_KEY) or self._open(
            SWEEP_KEY, self._sweep_tags, milliseconds(time.time())
        )

    def _load(self) -> None:
        self._runs, self._extra = dict[str, _Known](), []
        self._take(search(self.client, self._experiment, ""))

    def _take(self, runs: Iterable[Run]) -> None:
        for run in runs:
            key, data = run.data.tags.get(KEY_TAG), run.data
            if key in self._runs:
                self._extra.append(run.info.run_id)
            elif key is not None:
                shown = _digest(data.tags, data.params, data.metrics)
                self._runs[key] = _Known(run.info.run_id, run.info.status, shown)

    def _find(self, key: str) -> _Known | None:
        """Return a key's run; one that was perhaps created although no reply came is looked for."""
        if key in self._uncertain and key not in self._runs:
            self._take(search(self.client, self._experiment, f"tags.`{KEY_TAG}` = '{key}'"))
        return self._runs.get(key)

    def _open(
        self,
        key: str,
        tags: Mapping[str, str],
        start_ms: int,
        points: Iterable[Metric] = (),
        params: Mapping[str, str] = MappingProxyType({}),
    ) -> _Known:
        """Make or reopen the key's one run, and log to it."""
        known = self._find(key)
        if known is None:
            base = {KEY_TAG: key, "kind": SWEEP_KEY, "sweep": self._page.sweep}
            if key != SWEEP_KEY:
                base |= {"kind": "trial", "mlflow.parentRunId": self._own().run_id}
            self._uncertain.add(key)
            run = self.client.create_run(
                self._experiment, start_ms, {**base, **tags}, self._page.run_name(key, tags)
            )
            self._uncertain.discard(key)
            known, tags = _Known(str(run.info.run_id), "RUNNING"), {}
            self._runs[key] = known
        elif known.status != "RUNNING":
            known.status, known.shown = PERHAPS_RUNNING, ""  # until the reply is here
            self.client.update_run(known.run_id, status="RUNNING")
            known.status = "RUNNING"
        known.shown = ""
        self._log(known.run_id, [*points], params, tags)
        return known

    def _log(
        self, run_id: str, points: list[Metric], params: Mapping[str, str], tags: Mapping[str, str]
    ) -> None:
        """Send points, params and tags in calls of a size that MLflow takes."""
        chosen = [Param(*item) for item in params.items()]
        labels = [RunTag(*item) for item in tags.items()]
        while points or chosen or labels:
            self.client.log_batch(
                run_id, points[:MOST_METRICS], chosen[:MOST_PARAMS], labels[:MOST_TAGS]
            )
            points, chosen, labels = points[MOST_METRICS:], chosen[MOST_PARAMS:], labels[MOST_TAGS:]

    def _artifacts(self, folder: str) -> set[str]:
        found = self.client.list_artifacts(self._own().run_id, folder)
        inner = [self._artifacts(item.path) for item in found if item.is_dir]
        return {item.path for item in found if not item.is_dir}.union(*inner)

    def _end(self, known: _Known, status: str, end_ms: int | None = None) -> None:
        known.status = PERHAPS_RUNNING  # until the reply is here
        self.client.set_terminated(known.run_id, status, end_ms)
        known.status = status


def _has_too_much(run: FlatRun, wanted: Mapping[str, float], data: RunData) -> bool:
    """Tell whether params, data or points are others, or a metric of ours is there that the run has
    not.
    """
    images = run.tags.get(columns.DATA_FINGERPRINT)
    others = any(data.params.get(name, value) != value for name, value in run.params.items())
    points = run.tags.get(CURVE, "")
    drawn = data.tags.get(CURVE, "of an earlier version" if points else "")
    others |= not {*drawn.split()} <= {*points.split()}
    if others or data.tags.get(columns.DATA_FINGERPRINT, images) != images:
        return True
    return any(
        column.origin is not None
        for column in columns.describe(data.metrics.keys() - wanted.keys())
    )


def _missing_points(
    run: FlatRun, wanted: Mapping[str, float], history: Mapping[str, list[Metric]]
) -> list[Metric]:
    """Return the points to send beside ``history``: every one is there once then, and ``wanted`` is
    shown.
    """
    there = {
        (name, point.step, point.value) for name, points in history.items() for point in points
    }
    points = [Metric(name, value, run.metrics_ms, 0) for name, value in run.metrics.items()]
    points += [Metric(name, value, at, step) for name, step, value, at in run.series]
    points = [point for point in points if (point.key, point.step, point.value) not in there]
    for name, old in history.items():
        last = max([*old, *(point for point in points if point.key == name)], key=_shown_last)
        if last.value != wanted[name]:
            points.append(Metric(name, wanted[name], last.timestamp + 1, last.step))
    return points


def _shown_last(point: Metric) -> tuple[int, int, float]:
    """Return a key by which the greatest point is the one that MLflow shows of a metric."""
    return point.step, point.timestamp, point.value


def _digest(
    tags: Mapping[str, str], params: Mapping[str, str], metrics: Mapping[str, float]
) -> str:
    """Return a digest of what a run shows, without the tags that MLflow and we keep beside it."""
    beside = {"kind", "sweep"}
    kept = {
        k: v
        for k, v in tags.items()
        if k not in beside and not k.startswith(("mlflow.", "isweep."))
    }
    return _hash(json.dumps([kept, dict(params), dict(metrics)], sort_keys=True).encode())


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def experiment_names(sweep: str, storage: str | None) -> list[str]:
    """Return the experiments that may hold a sweep's runs, the first choice first."""
    return [f"isweep/{sweep}"] + ([] if storage is None else [f"isweep/{sweep}@{storage[:8]}"])


def claim_experiment(
    client: MlflowClient, sweep: str, storage: str | None, artifacts: Path | None
) -> Experiment:
    """Return the experiment for this sweep of this store, made where missing.

    One that belongs to another store is left alone: two roots on one server keep their runs apart.
    """
    location = artifacts.absolute().as_uri() if artifacts else ""
    own = {STORAGE_TAG: storage} if storage else {}
    for name in experiment_names(sweep, storage):
        found = client.get_experiment_by_name(name)
        if found is None:
            made = client.create_experiment(name, location or None, tags={**EXPERIMENT_TAGS, **own})
            return client.get_experiment(made)
        if storage is None or found.tags.get(STORAGE_TAG, storage) == storage:
            break
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    if storage is not None and STORAGE_TAG not in found.tags:
        client.set_experiment_tag(found.experiment_id, STORAGE_TAG, storage)
    before = str(found.artifact_location)
    if artifacts and before != location and before.endswith(f"/{artifacts.name}"):
        _follow_root(str(client.tracking_uri), str(found.experiment_id), before, location)
    return found


def _follow_root(uri: str, experiment: str, old: str, new: str) -> None:
    """Let an experiment in the SQLite file of ``uri`` keep its artifacts where the root is now.

    MLflow notes whole paths and has no call that changes them: after a move it would make the old
    folder again, open to everybody, and from a copy of a root write over the first one's artifacts.
    """
    runs = "UPDATE runs SET artifact_uri = ? || substr(artifact_uri, ?) WHERE experiment_id = ?"
    where = " AND substr(artifact_uri, 1, ?) = ?"
    experiments = "UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?"
    try:  # private: MLflow's tables; without them a root that was moved has no mirror, and says so
        with closing(sqlite3.connect(uri.removeprefix(SQLITE), timeout=20)) as database, database:
            database.execute(runs + where, (new, len(old) + 1, experiment, len(old) + 1, f"{old}/"))
            database.execute(experiments, (new, experiment))
    except sqlite3.Error as error:
        raise MlflowException(
            f"The root was moved, and MLflow's file does not follow: {error}"
        ) from error


def read_rows(client: MlflowClient, sweep: str, storage: str | None = None) -> list[Row]:
    """Return the rows of a sweep's finished trials from MLflow, ordered by trial id; [] when
    unknown.

    ``storage`` is the identity of the result store whose runs are wanted; None takes whatever bears
    the name.
    """
    rows: list[Row] = []
    try:
        known = [client.get_experiment_by_name(name) for name in experiment_names(sweep, storage)]
        whose = (None, storage)
        ours = [one for one in known if one and (not storage or one.tags.get(STORAGE_TAG) in whose)]
        query = "attribute.status = 'FINISHED' and tags.kind = 'trial'"
        for run in search(client, str(ours[0].experiment_id), query) if ours else ():
            finite = {k: v for k, v in run.data.metrics.items() if abs(v) < INF_AS_STORED}
            rows.append(row_of(run.data.tags, finite))
    except Exception as error:
        raise no_answer(error) from error
    return sorted(rows, key=lambda row: str(row[columns.TRIAL_ID]))


def search(client: MlflowClient, experiment: str, query: str) -> Iterator[Run]:
    """Yield all runs of an experiment that fit ``query``, oldest first."""
    token: str | None = ""
    asked: dict[str, Any] = {"max_results": 5000, "order_by": ["attribute.start_time ASC"]}
    while token is not None:
        page = client.search_runs([experiment], query, page_token=token or None, **asked)
        yield from page
        token = page.token or None
