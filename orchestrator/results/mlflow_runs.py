"""Write the runs of one sweep to MLflow: one run per run key.

Every call can be repeated after a lost reply. If MLflow's reply to the creation of a run was
lost, isweep first searches for the run by its tag, and creates another run only if the search
finds nothing. If several runs have the same key, isweep uses the oldest run and deletes the
others.
"""

from __future__ import annotations

import hashlib
import json
import math
import posixpath
import sqlite3
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from mlflow.entities import Experiment, Metric, Param, Run, RunData, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from orchestrator.planning.redaction import without_secrets
from orchestrator.results.columns import DATA_FINGERPRINT, STATUS, SWEEP, TRIAL_ID, describe
from orchestrator.results.flat_runs import CURVE, CurvePoint, FlatRun, LiveRun, milliseconds
from orchestrator.results.mlflow_connection import SQLITE
from orchestrator.results.mlflow_errors import no_answer_error
from orchestrator.results.mlflow_pages import EXPERIMENT_TAGS, SWEEP_KEY, Page, RunPages
from orchestrator.results.rows import Row, row_of

MAX_METRICS = 900
"""Largest number of metrics in one call of MLflow. MLflow allows at most 1,000 metrics, params
and tags together."""
MAX_PARAMS = 100
"""Largest number of params in one call of MLflow."""
MAX_TAGS = 100
"""Largest number of tags in one call of MLflow."""
MAX_SEARCHED = 5000
"""Largest number of runs that MLflow returns at a time when isweep searches runs."""
INF_AS_STORED = 1.7e308
"""A metric of at least this size counts as infinity, because a database stores infinity as the
largest float."""
KEY_TAG = "isweep.run_key"
"""Tag that contains the key of a run."""
REPORT_TAG = "isweep.report"
"""Tag of the sweep's run. It contains the hash of the report's files."""
STORAGE_TAG = "isweep.storage"
"""Tag of an experiment. It contains the id of the result store whose runs are in the
experiment."""
KILLED = "killed"
"""Value of the tag ``status`` of a trial that has no result and is not running any more, for
example because its driver was killed."""
LOCAL_PAGES = "http://127.0.0.1:5000"
"""Address at which ``mlflow ui`` serves the runs of a database."""
PERHAPS_RUNNING = "RUNNING?"
"""Status of a run after a request to change its status to RUNNING, until MLflow replies."""
OPEN = ("RUNNING", PERHAPS_RUNNING)
"""Statuses of runs that are open or may be open."""
NO_PARAMS: Mapping[str, str] = MappingProxyType({})
"""A mapping without params. It is a default value of arguments, so it is read-only."""


@dataclass
class _TrackedRun:
    """The last known state of a run in MLflow.

    Attributes:
        run_id: MLflow's id.
        status: MLflow's status, or :data:`PERHAPS_RUNNING`.
        digest: Hash of tags, params and metrics. The text is empty if the values in MLflow are
            unknown.
        sent_points: Metric, step and value of each point that was sent during the training.
    """

    run_id: str
    status: str
    digest: str = ""
    sent_points: set[tuple[str, int, float]] = field(default_factory=set)


class SweepRuns:
    """The runs of one sweep by run key, in one experiment of MLflow.

    Args:
        client: Client of the MLflow store.
        page: Texts about the sweep for MLflow's pages.
        storage: Id of the result store. It separates sweeps with the same name.
        artifacts: Folder for the files of a new experiment. None means that the server chooses
            the folder.

    Attributes:
        name: Name of the experiment.
    """

    def __init__(
        self, client: MlflowClient, page: Page, storage: str | None, artifacts: Path | None
    ) -> None:
        self.client = client
        self._page = page
        experiment = claim_experiment(client, page.sweep, storage, artifacts)
        self._experiment = str(experiment.experiment_id)
        self.name = str(experiment.name)
        self._sweep_tags = page.sweep_tags(self._experiment)
        for tag, text in page.experiment_tags(self._experiment).items():
            if experiment.tags.get(tag) != text:
                client.set_experiment_tag(self._experiment, tag, text)
        self._duplicate_ids: list[str] = []
        self._uncertain_keys = set[str]()
        """Keys of runs that MLflow may have, because the reply to their creation was lost."""
        self._sent_files = set[tuple[str, str]]()
        """Name and hash of each file of the report that was sent."""
        self._load()

    def run_pages(self) -> RunPages:
        """Return the addresses of the pages of all known runs.

        If MLflow's store is a database, the addresses are those of ``mlflow ui``.
        """
        server = LOCAL_PAGES
        uri = str(self.client.tracking_uri)
        if uri.startswith("http"):
            server = without_secrets(uri).rstrip("/")
        ids = {key: tracked.run_id for key, tracked in self._runs.copy().items()}
        return RunPages(prefix=f"{server}/#/experiments/{self._experiment}/runs/", runs=ids)

    def show_live(self, key: str, live: LiveRun) -> None:
        """Set a run to RUNNING or FAILED, with new tags and the points that were not sent yet.

        An update without tags adds points to an open run. If there is no open run, the update
        is
        ignored: the result contains all points.
        """
        tracked = self._find(key)
        tags = live.tags
        if tags is None:
            if tracked is None or tracked.status not in OPEN:
                return
            tags = {}
        elif key == SWEEP_KEY:
            tags = self._sweep_tags
        if live.failed and tracked is not None and tracked.status == "FAILED":
            shown_tags = self.client.get_run(tracked.run_id).data.tags
            if tags.items() <= shown_tags.items():
                return  # MLflow shows this failure
        sent_points = set() if tracked is None else tracked.sent_points
        new_points = [point for point in live.points if point[:3] not in sent_points]
        open_run = self._open(key, tags, live.at_ms, map(_metric_of, new_points))
        open_run.sent_points.update(point[:3] for point in new_points)
        if live.failed:
            self._end(open_run, "FAILED")

    def show(self, run: FlatRun) -> bool:
        """Set a run to FINISHED with exactly these values.

        MLflow can neither change a param nor delete a point of a metric. If the run in MLflow
        has other params or points, it is deleted, and a new run is created.

        Returns:
            True if MLflow was changed.
        """
        final_metrics = _final_metrics(run)
        digest = _digest({SWEEP: self._page.sweep, **run.tags}, run.params, final_metrics)
        stored_points: dict[str, list[Metric]] = {}
        tracked = self._find(run.run_key)
        if tracked is not None:
            is_finished = tracked.status == "FINISHED"
            if is_finished and tracked.digest == digest:
                return False  # MLflow has exactly these values
            data = self.client.get_run(tracked.run_id).data
            if _must_be_replaced(run, final_metrics, data):
                self.client.delete_run(tracked.run_id)
                del self._runs[run.run_key]  # a new run without points is opened below
            elif is_finished and _has_all(run, final_metrics, data):
                tracked.digest = digest
                return False
            else:
                stored_points = self._stored_points(tracked, run, final_metrics, data)
        points = _missing_points(run, final_metrics, stored_points)
        tracked = self._open(run.run_key, run.tags, run.started_ms, points, run.params)
        self._end(tracked, "FINISHED", run.finished_ms)
        tracked.digest = digest
        tracked.sent_points.clear()
        return True

    def _stored_points(
        self, tracked: _TrackedRun, run: FlatRun, final_metrics: Mapping[str, float], data: RunData
    ) -> dict[str, list[Metric]]:
        """Return the points that MLflow has, for each metric of which MLflow may lack a point."""
        curves = {point.metric for point in run.series}
        stored_points = {}
        for name, value in final_metrics.items():
            may_lack_points = name in curves or data.metrics.get(name) != value
            if may_lack_points and name in data.metrics:
                stored_points[name] = self.client.get_metric_history(tracked.run_id, name)
        return stored_points

    def show_report(
        self,
        numbers: Mapping[str, float],
        folder: Path | None,
        on_file_sent: Callable[[], None] = lambda: None,
    ) -> None:
        """Send final numbers and the report's files to the sweep's run.

        The status of the run does not change.

        Args:
            numbers: Final numbers by name. Infinite numbers and NaN are not sent.
            folder: Folder of the report, or None if there is no report.
            on_file_sent: Function that is called after each file was sent. Each file is sent
                in a separate call, so that only the remaining files are sent again after a
                failure.
        """
        run_id = self._sweep_run().run_id
        data = self.client.get_run(run_id).data
        points = []
        for name, value in numbers.items():
            if math.isfinite(value) and data.metrics.get(name) != value:
                points.append(self._latest_point(run_id, name, value, data))
        tags = {
            name: text for name, text in self._sweep_tags.items() if data.tags.get(name) != text
        }
        self._log(run_id, points, {}, tags)
        if folder is not None:
            self._send_files(run_id, folder, data, on_file_sent)

    def _latest_point(self, run_id: str, name: str, value: float, data: RunData) -> Metric:
        """Return a point that is later than all points of a metric: MLflow shows the latest one."""
        last = Metric(name, value, milliseconds(time.time()), 0)
        if name in data.metrics:
            history = self.client.get_metric_history(run_id, name)
            last = max(history, key=_display_rank, default=last)
        return Metric(name, value, last.timestamp + 1, last.step)

    def _send_files(
        self, run_id: str, folder: Path, data: RunData, on_file_sent: Callable[[], None]
    ) -> None:
        """Send the files of a report that MLflow does not have yet."""
        hashes = {}
        for path in sorted(filter(Path.is_file, folder.rglob("*"))):
            hashes[str(path.relative_to(folder))] = _hash(path.read_bytes())
        report_hash = _hash(json.dumps(hashes).encode())
        # isweep sets the tag only after all files were sent. If the tag is missing or
        # different, the files in MLflow may belong to another report.
        stored: set[str] = set()
        if data.tags.get(REPORT_TAG) == report_hash:
            stored = self._artifacts("report")
        for name, file_hash in hashes.items():
            artifact = f"report/{name}"
            if artifact not in stored and (name, file_hash) not in self._sent_files:
                self.client.log_artifact(run_id, f"{folder}/{name}", posixpath.dirname(artifact))
                self._sent_files.add((name, file_hash))
                on_file_sent()
        if hashes and not stored:
            self.client.set_tag(run_id, REPORT_TAG, report_hash)

    def end_running(self, open_keys: Collection[str] = ()) -> tuple[int, int]:
        """End all abandoned runs, and delete duplicate runs of a key.

        Args:
            open_keys: Keys of runs that stay open. The sweep's run stays open too.

        Returns:
            Number of ended runs, and number of deleted runs.
        """
        if self._uncertain_keys:
            # If MLflow did not reply when isweep created a run, the run may exist by now.
            self._load()
            self._uncertain_keys.clear()
        abandoned = [
            tracked
            for key, tracked in self._runs.items()
            if tracked.status in OPEN and key != SWEEP_KEY and key not in open_keys
        ]
        for tracked in abandoned:
            # The tag still has the value `running` from the start of the trial.
            self.client.set_tag(tracked.run_id, STATUS, KILLED)
            self._end(tracked, "KILLED")
        num_duplicates = len(self._duplicate_ids)
        for run_id in self._duplicate_ids:
            self.client.delete_run(run_id)
        self._duplicate_ids = []
        return len(abandoned), num_duplicates

    def end_sweep(self, status: str) -> None:
        """End the sweep's run. A run that has ended can only be set to FINISHED."""
        tracked = self._sweep_run()
        if tracked.status in OPEN or (status == "FINISHED" and tracked.status != status):
            self._end(tracked, status)

    def _sweep_run(self) -> _TrackedRun:
        """Return the sweep's run, and create it if it does not exist.

        A run that has ended is not opened here, because the start of the sweep may still fail.
        """
        tracked = self._find(SWEEP_KEY)
        if tracked is None:
            tracked = self._open(SWEEP_KEY, self._sweep_tags, milliseconds(time.time()))
        return tracked

    def _load(self) -> None:
        """Read all runs of the experiment."""
        self._runs: dict[str, _TrackedRun] = {}
        self._duplicate_ids = []
        self._add_runs(search(self.client, self._experiment, ""))

    def _add_runs(self, runs: Iterable[Run]) -> None:
        """Add runs of MLflow by their key.

        If several runs have the same key, add only the first run.
        """
        for run in runs:
            data = run.data
            key = data.tags.get(KEY_TAG)
            if key in self._runs:
                self._duplicate_ids.append(run.info.run_id)
            elif key is not None:
                digest = _digest(data.tags, data.params, data.metrics)
                self._runs[key] = _TrackedRun(run.info.run_id, run.info.status, digest)

    def _find(self, key: str) -> _TrackedRun | None:
        """Return the run of a key, or None.

        If its creation got no reply, search for it in MLflow.
        """
        if key in self._uncertain_keys and key not in self._runs:
            query = f"tags.`{KEY_TAG}` = '{key}'"
            self._add_runs(search(self.client, self._experiment, query))
        return self._runs.get(key)

    def _open(
        self,
        key: str,
        tags: Mapping[str, str],
        start_ms: int,
        points: Iterable[Metric] = (),
        params: Mapping[str, str] = NO_PARAMS,
    ) -> _TrackedRun:
        """Create or reopen the run of a key, and log tags, params and points to it.

        A call may change MLflow although its reply is lost. So the run's status and digest
        count as unknown from the start of a call until its reply.
        """
        tracked = self._find(key)
        if tracked is None:
            tracked = self._create(key, tags, start_ms)
            tags = {}  # the new run has them
        elif tracked.status != "RUNNING":
            tracked.status = PERHAPS_RUNNING
            tracked.digest = ""
            self.client.update_run(tracked.run_id, status="RUNNING")
            tracked.status = "RUNNING"
        tracked.digest = ""
        self._log(tracked.run_id, [*points], params, tags)
        return tracked

    def _create(self, key: str, tags: Mapping[str, str], start_ms: int) -> _TrackedRun:
        """Create the run of a key.

        The runs of trials and curves are nested in the sweep's run.
        """
        base_tags = {KEY_TAG: key, "kind": SWEEP_KEY, SWEEP: self._page.sweep}
        if key != SWEEP_KEY:
            base_tags["kind"] = "trial"
            base_tags["mlflow.parentRunId"] = self._sweep_run().run_id
        self._uncertain_keys.add(key)
        name = self._page.run_name(key, tags)
        run = self.client.create_run(self._experiment, start_ms, {**base_tags, **tags}, name)
        self._uncertain_keys.discard(key)
        self._runs[key] = _TrackedRun(str(run.info.run_id), "RUNNING")
        return self._runs[key]

    def _log(
        self, run_id: str, points: list[Metric], params: Mapping[str, str], tags: Mapping[str, str]
    ) -> None:
        """Send points, params and tags, in as many calls as MLflow's limits require."""
        param_items = [Param(name, text) for name, text in params.items()]
        tag_items = [RunTag(name, text) for name, text in tags.items()]
        while points or param_items or tag_items:
            self.client.log_batch(
                run_id, points[:MAX_METRICS], param_items[:MAX_PARAMS], tag_items[:MAX_TAGS]
            )
            points = points[MAX_METRICS:]
            param_items = param_items[MAX_PARAMS:]
            tag_items = tag_items[MAX_TAGS:]

    def _artifacts(self, folder: str) -> set[str]:
        """Return the paths of all files below an artifact folder of the sweep's run."""
        paths: set[str] = set()
        for item in self.client.list_artifacts(self._sweep_run().run_id, folder):
            if item.is_dir:
                paths |= self._artifacts(item.path)
            else:
                paths.add(item.path)
        return paths

    def _end(self, tracked: _TrackedRun, status: str, end_ms: int | None = None) -> None:
        """End a run with a status. Until MLflow replies, the run may still be open."""
        tracked.status = PERHAPS_RUNNING
        self.client.set_terminated(tracked.run_id, status, end_ms)
        tracked.status = status


def _metric_of(point: CurvePoint) -> Metric:
    return Metric(point.metric, point.value, point.at_ms, point.step)


def _final_metrics(run: FlatRun) -> dict[str, float]:
    """Return the value of each metric that MLflow must show.

    For a curve, this is the value of its last finite point.
    """
    final_metrics = dict(run.metrics)
    for point in sorted(run.series, key=lambda point: (point.step, point.at_ms)):
        if math.isfinite(point.value):
            final_metrics[point.metric] = point.value
    return final_metrics


def _must_be_replaced(run: FlatRun, final_metrics: Mapping[str, float], data: RunData) -> bool:
    """Return whether a run in MLflow has wrong values that MLflow cannot change.

    The wrong values are params with other values, results from another prepared dataset, other
    points of a learning curve, or a metric of isweep that the result lacks.
    """
    for name, text in run.params.items():
        if data.params.get(name, text) != text:  # a missing param can be added
            return True
    if not _is_extended_curve(run.tags.get(CURVE, ""), data.tags):
        return True
    fingerprint = run.tags.get(DATA_FINGERPRINT)
    if data.tags.get(DATA_FINGERPRINT, fingerprint) != fingerprint:
        return True
    extra_columns = describe(data.metrics.keys() - final_metrics.keys())
    return any(column.origin is not None for column in extra_columns)


def _is_extended_curve(curve: str, tags: Mapping[str, str]) -> bool:
    """Return whether ``curve`` contains all points of MLflow's learning curve."""
    shown_curve = tags.get(CURVE)
    if shown_curve is None:
        # An earlier version of isweep wrote runs without this tag, so their points are
        # unknown.
        return not curve
    return set(shown_curve.split()) <= set(curve.split())


def _has_all(run: FlatRun, final_metrics: Mapping[str, float], data: RunData) -> bool:
    """Return whether MLflow has all values of a run."""
    has_tags = run.tags.items() <= data.tags.items()
    has_params = run.params.items() <= data.params.items()
    has_metrics = final_metrics.items() <= data.metrics.items()
    return bool(has_tags and has_params and has_metrics)


def _missing_points(
    run: FlatRun, final_metrics: Mapping[str, float], stored_points: Mapping[str, list[Metric]]
) -> list[Metric]:
    """Return the points that MLflow lacks.

    Args:
        run: The run. MLflow must have each point of the run once.
        final_metrics: The values that MLflow must show.
        stored_points: Points in MLflow, by metric.
    """
    stored = defaultdict(set)
    for name, points in stored_points.items():
        stored[name] = {(point.step, point.value) for point in points}
    all_points = [Metric(name, value, run.metrics_ms, 0) for name, value in run.metrics.items()]
    all_points += map(_metric_of, run.series)
    missing = [point for point in all_points if (point.step, point.value) not in stored[point.key]]
    # MLflow may show another point than the final point. In this case, one more point with a
    # later time repeats the final value.
    for name, points in stored_points.items():
        new_points = [point for point in missing if point.key == name]
        last = max([*points, *new_points], key=_display_rank)
        if last.value != final_metrics[name]:
            missing.append(Metric(name, final_metrics[name], last.timestamp + 1, last.step))
    return missing


def _display_rank(point: Metric) -> tuple[int, int, float]:
    """Return the rank of a point of a metric. MLflow shows the point with the highest rank."""
    return point.step, point.timestamp, point.value


def _digest(
    tags: Mapping[str, str], params: Mapping[str, str], metrics: Mapping[str, float]
) -> str:
    """Return a hash of a run's metrics, params and tags. Internal tags are not included."""
    result_tags = {
        name: text
        for name, text in tags.items()
        if name != "kind" and not name.startswith(("mlflow.", "isweep."))
    }
    return _hash(json.dumps([result_tags, dict(params), dict(metrics)], sort_keys=True).encode())


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def experiment_names(sweep: str, storage: str | None) -> list[str]:
    """Return possible names of a sweep's experiment, in order of preference."""
    names = [f"isweep/{sweep}"]
    if storage is not None:
        names.append(f"isweep/{sweep}@{storage[:8]}")
    return names


def claim_experiment(
    client: MlflowClient, sweep: str, storage: str | None, artifacts: Path | None
) -> Experiment:
    """Return the experiment of a sweep, and create it if it does not exist.

    An experiment of another result store is never used. So if two roots use the same MLflow
    server, their runs are in separate experiments. See :class:`SweepRuns` for the arguments.
    """
    location = ""
    if artifacts:
        location = artifacts.absolute().as_uri()
    storage_tags = {}
    if storage:
        storage_tags[STORAGE_TAG] = storage
    for name in experiment_names(sweep, storage):
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            tags = {**EXPERIMENT_TAGS, **storage_tags}
            return client.get_experiment(client.create_experiment(name, location or None, tags))
        if storage is None or experiment.tags.get(STORAGE_TAG, storage) == storage:
            break
    experiment_id = str(experiment.experiment_id)
    if experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment_id)
    if storage is not None and STORAGE_TAG not in experiment.tags:
        client.set_experiment_tag(experiment_id, STORAGE_TAG, storage)
    old_location = str(experiment.artifact_location)
    if artifacts and old_location != location and old_location.endswith(f"/{artifacts.name}"):
        _move_artifacts(str(client.tracking_uri), experiment_id, old_location, location)
    return experiment


def _move_artifacts(uri: str, experiment: str, old: str, new: str) -> None:
    """Change the artifact paths of an experiment in an SQLite file after the root was moved.

    MLflow stores absolute paths and has no call that changes them. Without this function,
    MLflow would create the old folder again, and all users could read it. If a root was
    copied, MLflow would overwrite the files of the original root.

    Args:
        uri: URI of the SQLite file.
        experiment: Id of the experiment.
        old: Old location of its files.
        new: New location of its files.
    """
    update_runs = (
        "UPDATE runs SET artifact_uri = ? || substr(artifact_uri, ?)"
        " WHERE experiment_id = ? AND substr(artifact_uri, 1, ?) = ?"
    )
    update_experiment = "UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?"
    # These tables are internal to MLflow. If a version of MLflow changes these tables, isweep
    # cannot write the runs of a moved root to MLflow and raises the error below.
    try:
        with closing(sqlite3.connect(uri.removeprefix(SQLITE), timeout=20)) as database, database:
            database.execute(update_runs, (new, len(old) + 1, experiment, len(old) + 1, f"{old}/"))
            database.execute(update_experiment, (new, experiment))
    except sqlite3.Error as error:
        raise MlflowException(
            "The root was moved, but isweep cannot change the old paths in MLflow's SQLite "
            f"file: {error}"
        ) from error


def read_rows(client: MlflowClient, sweep: str, storage: str | None = None) -> list[Row]:
    """Return the rows of a sweep's finished trials from MLflow, sorted by trial id.

    Args:
        client: Client of the MLflow store.
        sweep: Name of the sweep. If MLflow has no sweep with this name, there are no rows.
        storage: Id of the result store whose rows are returned. None means that the rows of
            every result store are returned.

    Raises:
        SetupError: MLflow does not answer.
    """
    rows: list[Row] = []
    try:
        for name in experiment_names(sweep, storage):
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                continue
            if storage and experiment.tags.get(STORAGE_TAG) not in (None, storage):
                continue
            query = "attribute.status = 'FINISHED' and tags.kind = 'trial'"
            for run in search(client, str(experiment.experiment_id), query):
                metrics = {
                    metric: value
                    for metric, value in run.data.metrics.items()
                    if abs(value) < INF_AS_STORED
                }
                rows.append(row_of(run.data.tags, metrics))
            break
    except Exception as error:
        raise no_answer_error(error) from error
    return sorted(rows, key=lambda row: str(row[TRIAL_ID]))


def search(client: MlflowClient, experiment: str, query: str) -> Iterator[Run]:
    """Yield all runs of an experiment that match ``query``, the oldest first."""
    token: str | None = ""
    while token is not None:
        page = client.search_runs(
            [experiment],
            query,
            page_token=token or None,
            max_results=MAX_SEARCHED,
            order_by=["attribute.start_time ASC"],
        )
        yield from page
        token = page.token or None
