"""The runs of one sweep in MLflow: found by tag, one per key for ever, compared with what they should show.

Every call may be repeated after a lost reply. A run that was perhaps created is looked up by its tag before
another one is; of several runs for one key the oldest counts and the others are marked.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote
from uuid import uuid4

import sqlalchemy
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from orchestrator.planning.paths import without_secrets
from orchestrator.planning.plan import CellStatus
from orchestrator.results import table
from orchestrator.results.mlflow_pages import (
    DUPLICATE_TAG,
    NOTE_TAG,
    SQLITE,
    Page,
    claim_experiment,
    dataset_input,
    experiment_names,
    rows_of_sweep,
    run_name,
    search,
)
from orchestrator.results.records import FailureRecord
from orchestrator.results.rows import FlatRun, Point, Row
from search_spaces.errors import ConfigError, SetupError, SweepError
from tasks.atomic import place_once
from tasks.trials.records import TrialStatus

MOST_METRICS, MOST_PARAMS, MOST_TAGS = 900, 100, 100
"""Of one call."""
MAX_MESSAGE = 4000
SWEEP_KEY = "sweep"
"""Run key of the sweep's own run."""
KEY_TAG, REPORT_TAG = "isweep.run_key", "isweep.report"
FAILURE_TAGS = (table.ATTEMPT, "failure_kind", "failure_message")
KILLED = "killed"
"""Value of the tag ``status`` where nobody works on a trial any more and no result came."""
LOCAL_PAGES = "http://127.0.0.1:5000"
"""Where ``mlflow ui`` serves unless told otherwise."""
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")


@dataclass
class _Known:
    """What is known of a run without asking again.

    Attributes:
        run_id: MLflow's.
        status: MLflow's, such as ``RUNNING``.
        shown: Digest of all that it shows; empty where that is unknown.
        failure: Values of ``FAILURE_TAGS``.
        live: Points of curves that were sent while it was running.
    """

    run_id: str
    status: str
    shown: str = ""
    failure: tuple[str | None, ...] = ()
    live: set[tuple[str, int, float]] = field(default_factory=set)


class SweepRuns:
    """Runs of one sweep by run key.

    Args:
        client: Answers.
        page: What the sweep's pages say.
        storage: Identity of the result store that the runs mirror; None claims nothing. Another store's sweep
            of the same name is kept apart, in an experiment whose name ends in this identity.
        artifacts: Where a new experiment keeps artifacts; None leaves it to the server.

    Attributes:
        name: Of the experiment.
        usual_name: Of the experiment where no other store has it.
    """

    def __init__(self, client: MlflowClient, page: Page, storage: str | None, artifacts: Path | None) -> None:
        self.client = client
        self.experiment, self.name = claim_experiment(client, page.sweep, storage, artifacts)
        self.usual_name = experiment_names(page.sweep, None)[0]
        self._page = page
        self._begun = False
        self._runs: dict[str, _Known] = {}
        self._extra: list[str] = []
        self._uncertain: set[str] = set()
        self._sent: set[tuple[str, str]] = set()
        self._load()
        shown = client.get_experiment(self.experiment).tags
        for tag, text in page.experiment_tags(self.experiment).items():
            if shown.get(tag) != text:
                client.set_experiment_tag(self.experiment, tag, text)
        known = self._runs.get(SWEEP_KEY)
        # One that has ended stays as it is until something is done: a start may yet be refused.
        self.parent = known.run_id if known else self.begin()

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

    def begin(self) -> str:
        """Return the id of the sweep's own run, which is RUNNING from now on."""
        if not self._begun:
            self.parent = self.open(SWEEP_KEY, SWEEP_KEY, self._sweep_tags(), _now())
            self._begun = True
        return self.parent

    def end_sweep(self, status: str) -> None:
        """End the sweep's own run; one that ended before and was not begun again can only become FINISHED."""
        known = self._runs[SWEEP_KEY]
        if known.status == "RUNNING" or (status == "FINISHED" and known.status != status):
            self._end(SWEEP_KEY, status)

    def open(self, key: str, kind: str, tags: Mapping[str, str], start_ms: int, name: str = "") -> str:
        """Return the id of the key's one run, made or reopened, with these tags; ``name`` is a new run's."""
        known = self._runs.get(key) or self._look_up(key)
        if known is None:
            return self._create(key, kind, tags, start_ms, name or run_name(key, kind, tags))
        if known.status != "RUNNING":
            self.client.update_run(known.run_id, status="RUNNING")
            known.status = "RUNNING"
        self._log(known.run_id, [], tags=tags)
        known.shown = ""
        return known.run_id

    def log_points(self, key: str | None, points: Iterable[Point]) -> None:
        """Add points to the curves of a run that is running; one that has ended has all from its result.

        Args:
            key: Of the run; None for the sweep's own.
            points: Those that were sent before are left out.
        """
        known = self._runs.get(key or SWEEP_KEY)
        if known is None or known.status != "RUNNING":
            return
        new = [point for point in points if point[:3] not in known.live]
        self._log(known.run_id, [Metric(name, value, at, step) for name, step, value, at in new])
        known.live.update(point[:3] for point in new)
        known.shown = ""

    def show(self, run: FlatRun) -> bool:
        """Make the key's run FINISHED with exactly these values; returns whether anything had to be done."""
        known = self._runs.get(run.run_key)
        digest = _digest(run.tags, run.params, expected_metrics(run))
        if known is not None and known.status == "FINISHED":
            if known.shown == digest:
                return False
            data = self.client.get_run(known.run_id).data
            if not _Gap.between(run, data.tags, data.params, data.metrics):
                known.shown = digest
                return False
        self._write(run)
        known = self._runs[run.run_key]
        known.shown = digest
        known.live.clear()
        return True

    def show_failure(self, record: FailureRecord, at_ms: int) -> None:
        """Make the run of a trial FAILED with the kind and message of its failure."""
        key, failure = record.trial_id, record.failure
        wanted = (str(record.attempt), str(failure.kind), failure.message[:MAX_MESSAGE])
        known = self._runs.get(key)
        if known is not None and known.status == "FAILED" and known.failure == wanted:
            return
        tags = {table.STATUS: str(CellStatus.FAILED), **dict(zip(FAILURE_TAGS, wanted, strict=True))}
        self.open(key, "trial", tags, at_ms)
        self._end(key, "FAILED")
        self._runs[key].failure = wanted

    def show_report(
        self, numbers: Mapping[str, float], folder: Path | None, sent: Callable[[], None] = lambda: None
    ) -> None:
        """Make the sweep's own run show final numbers and the report's files; its status stays.

        Args:
            numbers: By name; those that are not finite are left out, since MLflow shows them as others.
            folder: Of the report; None for none.
            sent: Called whenever a file was sent: each is sent by itself, and not again after a lost reply.
        """
        data = self.client.get_run(self.parent).data
        points = []
        for name, value in numbers.items():
            if math.isfinite(value) and data.metrics.get(name) != value:
                old = self.client.get_metric_history(self.parent, name) if name in data.metrics else []
                last = max(old, key=_shown_last, default=Metric(name, value, _now(), 0))
                points.append(Metric(name, value, last.timestamp + len(old[:1]), last.step))
        tags = {name: text for name, text in self._sweep_tags().items() if data.tags.get(name) != text}
        self._log(self.parent, points, {}, tags)
        files = {} if folder is None else _digests(folder)
        whole = _hash(files)
        there = set(self._artifacts("report")) if data.tags.get(REPORT_TAG) == whole else set[str]()
        for name, digest in files.items():
            if f"report/{name}" not in there and (name, digest) not in self._sent:
                self.client.log_artifact(self.parent, f"{folder}/{name}", f"report/{name}".rpartition("/")[0])
                self._sent.add((name, digest))
                sent()
        if files and not there:
            self.client.set_tag(self.parent, REPORT_TAG, whole)

    def mark_duplicates(self) -> int:
        """Mark and end every run beyond the oldest of its key; returns how many."""
        for run_id in self._extra:
            self._set_aside(run_id)
        number, self._extra = len(self._extra), []
        return number

    def end_running(self, but: Iterable[str] = ()) -> int:
        """End every run that is still RUNNING, the sweep's own and ``but`` excepted; returns how many."""
        but = {SWEEP_KEY, *but}
        running = [key for key, one in self._runs.items() if one.status == "RUNNING" and key not in but]
        for key in running:
            # Its tags are those of its start, and would say for ever that it is running.
            self.client.set_tag(self._runs[key].run_id, table.STATUS, KILLED)
            self._end(key, "KILLED")
        if self._uncertain:
            # A create whose reply was lost may have been carried out after we looked.
            self._load()
            self._uncertain.clear()
            self.mark_duplicates()
        return len(running)

    def _sweep_tags(self) -> dict[str, str]:
        return {**self._page.sweep_tags(), NOTE_TAG: self._page.note(self.experiment)}

    def _load(self) -> None:
        self._runs, self._extra = {}, []
        for run in search(self.client, self.experiment, ""):
            key = run.data.tags.get(KEY_TAG)
            if key is None or run.data.tags.get(DUPLICATE_TAG) == "true":
                continue
            if key in self._runs:
                self._extra.append(run.info.run_id)
            else:
                self._runs[key] = _known(run)

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
        self._runs[key] = _known(found[0])
        return self._runs[key]

    def _create(self, key: str, kind: str, tags: Mapping[str, str], start_ms: int, name: str) -> str:
        base = {KEY_TAG: key, "kind": kind, "sweep": self._page.sweep, **self._page.source_tags()}
        if key != SWEEP_KEY:
            base["mlflow.parentRunId"] = self.parent
        self._uncertain.add(key)
        run = self.client.create_run(
            self.experiment,
            start_time=start_ms,
            tags={**base, **tags},
            run_name=self._page.sweep if key == SWEEP_KEY else name,
        )
        self._uncertain.discard(key)
        self._runs[key] = _Known(run.info.run_id, "RUNNING")
        return str(run.info.run_id)

    def _write(self, run: FlatRun) -> None:
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
        self._log(run_id, _missing_points(run, wanted, history), run.params, run.tags)
        data_used = dataset_input(run.tags)
        if data_used is not None:
            self.client.log_inputs(run_id, [data_used])
        self._end(run.run_key, "FINISHED", run.finished_ms)

    def _log(
        self,
        run_id: str,
        points: list[Metric],
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Send points, params and tags in calls of a size that MLflow takes."""
        chosen = [Param(*item) for item in (params or {}).items()]
        labels = [RunTag(*item) for item in (tags or {}).items()]
        while points or chosen or labels:
            self.client.log_batch(run_id, points[:MOST_METRICS], chosen[:MOST_PARAMS], labels[:MOST_TAGS])
            points, chosen, labels = points[MOST_METRICS:], chosen[MOST_PARAMS:], labels[MOST_TAGS:]

    def _artifacts(self, folder: str) -> Iterator[str]:
        for item in self.client.list_artifacts(self.parent, folder):
            if item.is_dir:
                yield from self._artifacts(item.path)
            else:
                yield item.path

    def _end(self, key: str, status: str, end_ms: int | None = None) -> None:
        known = self._runs[key]
        self.client.set_terminated(known.run_id, status, end_ms)
        known.status = status

    def _set_aside(self, run_id: str) -> None:
        self.client.set_tag(run_id, DUPLICATE_TAG, "true")
        self.client.set_terminated(run_id, "KILLED")


@dataclass
class _Gap:
    """What a run in MLflow shows otherwise than it should.

    Attributes:
        metrics: Names of metrics that are there with another value.
        absent: Whether a tag, param or metric is absent, or a tag another one.
        for_ever: Whether a param is another, or a metric too many: MLflow keeps both for ever.
    """

    metrics: list[str]
    absent: bool
    for_ever: bool

    def __bool__(self) -> bool:
        return bool(self.metrics or self.absent or self.for_ever)

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
            metrics=[name for name, value in wanted.items() if metrics.get(name, value) != value],
            absent=any(tags.get(name) != value for name, value in run.tags.items())
            or not run.params.keys() <= params.keys()
            or not wanted.keys() <= metrics.keys(),
            for_ever=bool(surplus)
            or any(params.get(name, value) != value for name, value in run.params.items()),
        )


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
        last = max([*old, *(point for point in points if point.key == name)], key=_shown_last)
        if last.value != wanted.get(name, last.value):
            points.append(Metric(name, wanted[name], last.timestamp + 1, last.step))
    return points


def _shown_last(point: Metric) -> tuple[int, int, float]:
    """Return a key by which the greatest point is the one that MLflow shows of a metric."""
    return point.step, point.timestamp, point.value


def expected_metrics(run: FlatRun) -> dict[str, float]:
    """Return the values that MLflow shows of a run: of a series its last point."""
    shown = dict(run.metrics)
    for name, _, value, _ in sorted(run.series, key=lambda point: (point[1], point[3])):
        if math.isfinite(value):
            shown[name] = value
    return shown


def _known(run: Run) -> _Known:
    tags = run.data.tags
    failure = tuple(tags.get(name) for name in FAILURE_TAGS)
    shown = _digest(tags, run.data.params, run.data.metrics)
    return _Known(run.info.run_id, run.info.status, shown, failure)


def _digest(tags: Mapping[str, str], params: Mapping[str, str], metrics: Mapping[str, float]) -> str:
    """Return a digest of what a run shows, without the tags that MLflow and we keep beside it."""
    beside = {"kind", "sweep"}
    kept = {k: v for k, v in tags.items() if k not in beside and not k.startswith(("mlflow.", "isweep."))}
    return _hash([kept, dict(params), dict(metrics)])


def _hash(values: object) -> str:
    return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=16).hexdigest()


def _digests(folder: Path) -> dict[str, str]:
    """Return the digest of every file of a folder by its name below it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
        for path in files
    }


def _now() -> int:
    """Return milliseconds since 1970."""
    return round(time.time() * 1000)


# The other side, and what it says when it does not do as asked.


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
        return rows_of_sweep(client, sweep, storage)
    except Exception as error:
        raise no_answer(error) from error


def connect(uri: str) -> MlflowClient:
    """Return a client for ``uri`` whose store answers and whose tables exist.

    Called by the driver before anything else uses it, since several first users of a new SQLite file break
    its schema migration.

    Raises:
        SetupError: when the store or server does not answer, within seconds rather than MLflow's minutes.
    """
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # It gives tracebacks and rows for what we say in a line.
    logging.getLogger("mlflow.store.db").setLevel(logging.CRITICAL)
    # MLflow's client repeats a call whose reply is lost, and so makes two runs of one; we look first.
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
    # Our stdout is for data.
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    try:
        _make_whole(uri)
        return _client(uri)
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


def _client(uri: str) -> MlflowClient:
    if uri.partition("://")[0].partition("+")[0] in DATABASES:
        # MLflow tries ten times in 102 s, also where the password is wrong; we try again ourselves.
        engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool)
        sqlalchemy.inspect(engine)
        engine.dispose()
    client = MlflowClient(uri)
    client.search_experiments(max_results=1)
    return client


def _make_whole(uri: str) -> None:
    """Make the SQLite file of ``uri`` where there is none; anything else is left alone.

    MLflow makes its tables in dozens of steps, and cannot go on from between two of them: a driver that was
    killed there would leave a file that no later one can use. So they are made beside it, and it appears when
    they are done.
    """
    path = Path(uri.removeprefix(SQLITE))
    if not uri.startswith(SQLITE) or path.name in ("", ":memory:") or "?" in uri or path.exists():
        return
    # A name of its own at every try: MLflow keeps connections by the name of the file.
    draft = path.with_name(f".{path.name}-{uuid4().hex[:8]}")
    try:
        _client(f"{SQLITE}{draft}")
        place_once(draft, path)
    finally:
        draft.unlink(missing_ok=True)


FINAL_CODES = (
    "INVALID_PARAMETER_VALUE",
    "BAD_REQUEST",
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
    "CUSTOMER_UNAUTHORIZED",
)
FINAL_WORDS = re.compile(
    r"error code 40[0134]|password authentication failed|Access denied|(database|role) \S+ does not exist"
)


class Refused(SetupError):
    """The server answered, and will answer the same again."""


def is_final(error: Exception) -> bool:
    """Tell whether an error will be the same however often one tries."""
    if isinstance(error, SweepError):
        return isinstance(error, Refused | ConfigError)
    if isinstance(error, ModuleNotFoundError):  # of the database's driver
        return True
    if isinstance(error, MlflowException) and error.error_code in FINAL_CODES:
        return True
    # A database's own errors too: MLflow passes some on, and its tables are looked at before it is asked.
    return bool(FINAL_WORDS.search(str(error)[:600]))


def no_answer(error: Exception) -> SetupError:
    """Return what a person reads when MLflow does not answer."""
    if isinstance(error, SetupError):
        return error
    return SetupError(
        "MLflow must answer", first_line(error), "the result store has everything: isweep reconcile, later"
    )


def first_line(error: Exception, uri: str = "") -> str:
    """Return what an error says in one line, without secrets, those of ``uri`` in any spelling among them."""
    if isinstance(error, SweepError):
        return error.value
    # SQLAlchemy says first under which circumstances it met the database's error.
    lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith("(raised as")]
    text = (lines or [type(error).__name__])[0]
    for secret in _spellings(uri):
        text = text.replace(secret, "…")
    return without_secrets(text)[:300]


def _spellings(uri: str) -> list[str]:
    """Return a URI's password as a driver may quote it: whole, decoded, or taken for a part of the host."""
    found = re.search(r"://[^:\s]*:(\S*)@", uri)
    password = found[1] if found else ""
    wholes = [password, unquote(password)]
    ends = [f"{one[place + 1 :]}@" for one in wholes for place, sign in enumerate(one) if sign in "@:/"]
    return [spelling for spelling in (*wholes, *ends) if len(spelling) > 1]
