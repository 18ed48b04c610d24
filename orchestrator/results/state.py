"""What a sweep's store holds, and what of the plan is therefore done, failed or left."""

from __future__ import annotations

import logging
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ConfigDict

from orchestrator.planning.estimate_text import amount
from orchestrator.planning.plan import CellStatus, SweepPlan
from orchestrator.planning.runtimes import MeasuredTrial
from orchestrator.planning.workspace import Workspace
from orchestrator.results.storage import Patience, Storage
from orchestrator.results.store import (
    FailureRecord,
    FileKind,
    MeasureRecord,
    ResultStore,
    SealedRecord,
    TrialRecord,
    Unreadable,
    missing,
)
from orchestrator.results.table import FlatRun, Row, flat_trial, index_measures, rows_of
from search_spaces.errors import NewerRecordError
from search_spaces.specs import Measurement, MeasureSpec, TrialSpec
from tasks.finding import Finding
from tasks.trials.records import TrialStatus

log = logging.getLogger(__name__)


class TrialOutline(Finding):
    """What decides whether a result counts, and what its trial cost; attributes as of
    :class:`TrialRecord`.

    ``peak_bytes`` is what the whole batches of its process took on a GPU; 0 where that is not
    known.
    """

    model_config = ConfigDict(extra="ignore")

    trial_id: str
    spec: TrialSpec
    data_fingerprint: str
    status: TrialStatus
    device: str
    num_threads: int
    gpu_share: float
    gpu_name: str
    started_at: float
    finished_at: float
    has_weights: bool
    has_predictions: bool
    peak_bytes: int

    def lacks(self, asked: TrialSpec) -> tuple[Measurement, ...]:
        """See :meth:`TrialRecord.lacks`."""
        return missing(self.spec, asked, kept_without=self.has_weights and not self.has_predictions)

    @classmethod
    def of(cls, record: TrialRecord) -> TrialOutline:
        """Return the outline of a record."""
        result = record.result
        more = {
            "has_weights": result.weights is not None,
            "has_predictions": result.predictions is not None,
            "peak_bytes": result.peak_memory_bytes if result.micro_batch is None else 0,
        }
        return cls.model_validate({**dict(result), **dict(record), **more})


INDEX_VERSION = TrialRecord.version + 1
Stamped = tuple[str, TrialOutline]
"""An outline with the stamp of the file that it was read from."""


class Index:
    """Outlines of a sweep's results in one SQLite file at ``path``, so that a look reads no record
    twice.

    A row that is not whole, or whose record file has changed, counts for nothing; the file may be
    missing, or below a root that cannot be written. No number of a table comes from it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> dict[str, Stamped]:
        """Return what is whole of it, by trial id."""
        rows: list[tuple[str, str, int]] = []
        try:
            if self._path.is_file():
                with self._opened() as database:
                    rows = database.execute("SELECT stamp, outline, seal FROM outlines").fetchall()
        except sqlite3.Error as error:
            log.info("the index %s cannot be read: %s", self._path, error)
        found = (
            (stamp, TrialOutline.model_validate_json(text))
            for stamp, text, seal in rows
            if seal == zlib.crc32(f"{stamp} {text}".encode())
        )
        return {outline.trial_id: (stamp, outline) for stamp, outline in found}

    def add(self, found: Iterable[Stamped]) -> None:
        """Keep outlines that have a stamp; without them looks are slower."""
        texts = (
            (outline.trial_id, stamp, outline.model_dump_json())
            for stamp, outline in found
            if stamp
        )
        rows = [(*row, zlib.crc32(f"{row[1]} {row[2]}".encode())) for row in texts]
        if not self._path.parent.is_dir() or (self._path.exists() and not self._path.is_file()):
            return
        for again in (True, False):
            try:
                with self._opened() as database:
                    database.executemany(
                        "INSERT OR REPLACE INTO outlines VALUES (?, ?, ?, ?)", rows
                    )
                return
            except sqlite3.Error as error:
                log.info("the index %s cannot be written: %s", self._path, error)
                if not again or isinstance(error, sqlite3.OperationalError):
                    return
                self._path.unlink(missing_ok=True)  # no database, or a damaged one

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self._path, timeout=5.0)) as database, database:
            # It may be lost at any time, so nothing waits for the disk.
            database.execute("PRAGMA synchronous = OFF")
            if database.execute("PRAGMA user_version").fetchone() != (INDEX_VERSION,):
                database.execute("DROP TABLE IF EXISTS outlines")
                columns = "trial_id TEXT PRIMARY KEY, stamp TEXT, outline TEXT, seal INTEGER"
                database.execute(f"CREATE TABLE outlines ({columns})")
                database.execute(f"PRAGMA user_version = {INDEX_VERSION}")
            yield database


class Records(MutableMapping[str, TrialRecord]):
    """Results of trials by id: an outline of each, and its record, held or read when it is asked
    for.

    As an object a record takes 15 to 100 kB; what a run adds is held as compressed text of 1 to 5
    kB.
    """

    def __init__(
        self,
        store: ResultStore,
        outlines: dict[str, TrialOutline],
        records: Mapping[str, TrialRecord],
    ) -> None:
        self._store, self.outlines = store, outlines
        self._held: dict[str, TrialRecord | bytes] = dict(records)

    def __getitem__(self, trial_id: str) -> TrialRecord:
        found = None
        if trial_id in self.outlines:
            found = self._held.get(trial_id) or self._store.read(TrialRecord, trial_id)
        if found is None:
            raise KeyError(trial_id)
        return (
            TrialRecord.model_validate_json(zlib.decompress(found))
            if isinstance(found, bytes)
            else found
        )

    def __setitem__(self, trial_id: str, record: TrialRecord) -> None:
        self._held[trial_id] = zlib.compress(
            record.text().encode(), 1
        )  # more takes longer and saves a tenth
        self.outlines[trial_id] = TrialOutline.of(record)

    def __delitem__(self, trial_id: str) -> None:
        del self.outlines[trial_id]
        self._held.pop(trial_id, None)

    def __contains__(self, trial_id: object) -> bool:
        return trial_id in self.outlines

    def __iter__(self) -> Iterator[str]:
        return iter(self.outlines)

    def __len__(self) -> int:
        return len(self.outlines)


@dataclass
class StoredResults:
    """All that is stored of a sweep, by id: read once, then kept up to date by writing through it.

    ``unreadable`` files are not believed. ``index`` keeps outlines for the next look, and
    ``patience`` waits for storage that is full or away, if they are there.
    """

    store: ResultStore
    trials: Records
    measures: dict[str, MeasureRecord]
    failures: dict[str, FailureRecord]
    unreadable: list[Unreadable]
    index: Index | None = None
    patience: Patience | None = None

    @classmethod
    def read(
        cls, url: str | Storage, index: Path | None = None, *, look: bool = False
    ) -> StoredResults:
        """Read every record below ``url``; for a ``look``, no result whose outline the index
        has.
        """
        store, kept = ResultStore(url), None if index is None else Index(index)
        files, known = store.listing(TrialRecord), kept.read() if kept and look else {}
        believed = {
            n: o for n, (stamp, o) in known.items() if n in files and stamp == files[n].stamp
        }
        left = [file for name, file in files.items() if name not in believed]
        new, held, unreadable = (
            dict[str, TrialOutline](),
            dict[str, TrialRecord](),
            list[Unreadable](),
        )
        for name, record in store.each(TrialRecord, left, unreadable):
            new[name] = TrialOutline.of(record)
            if not look:
                held[name] = record
        if kept is not None and new:
            kept.add((files[name].stamp, outline) for name, outline in new.items())
        found, measures, failures = (
            believed | new,
            store.scan(MeasureRecord),
            store.scan(FailureRecord),
        )
        outlines = {name: found[name] for name in files if name in found}
        trials = Records(store, outlines, held)
        unreadable += failures.unreadable + measures.unreadable
        return cls(store, trials, measures.records, failures.records, unreadable, kept)

    def forget_lost(self) -> int:
        """Forget results and measures whose file was removed since it was known; returns how
        many.
        """
        lost = self.trials.keys() - self.store.listing(TrialRecord).keys()
        gone = self.measures.keys() - self.store.listing(MeasureRecord).keys()
        for trial_id in lost:
            del self.trials[trial_id]
        for measure_id in gone:
            del self.measures[measure_id]
        return len(lost) + len(gone)

    def forget_damaged(self, planned: Iterable[str]) -> tuple[int, int]:
        """Take predictions that are gone or damaged for not made, in memory, so that a run makes
        them again.

        A trial without kept weights is taken for not done; its stored result stays until it is
        replaced. Returns how many are made from kept weights, and how many networks are trained
        again.
        """
        known = {trial_id: self.trials[trial_id] for trial_id in planned if trial_id in self.trials}
        kept = {
            trial_id: one.result.predictions
            for trial_id, one in known.items()
            if one.result.predictions
        }
        damaged = self.store.damaged(FileKind.PREDICTIONS, kept)
        lost = {trial_id for trial_id in damaged if known[trial_id].result.weights is None}
        for trial_id in damaged - lost:
            without = known[trial_id].result.model_copy(update={"predictions": None})
            self.trials[trial_id] = known[trial_id].model_copy(update={"result": without})
        for trial_id in lost:
            del self.trials[trial_id]
        return len(damaged - lost), len(lost)

    def check_writable(self) -> None:
        """Refuse a store in which a newer version wrote: a run would replace what that one
        found.
        """
        newer = [item for item in self.unreadable if item.newer]
        if newer:
            more = f" (and {len(newer) - 1:,} more files)" if len(newer) > 1 else ""
            raise NewerRecordError(
                "A run needs a result store whose records it knows",
                f"{newer[0].path}: {newer[0].reason}{more}",
                "update isweep, or keep these results apart with another --root or --storage",
            )

    def save(self, record: SealedRecord) -> None:
        """Seal a record, and know it without reading again; one that cannot be stored changes
        nothing.
        """
        write = partial(self.store.save, record)
        stamp = write() if self.patience is None else self.patience.until_done(write)
        if isinstance(record, TrialRecord):
            self.trials[record.trial_id] = record
            if self.index is not None:
                self.index.add([(stamp, self.trials.outlines[record.trial_id])])
            self.failures.pop(record.trial_id, None)
        elif isinstance(record, MeasureRecord):
            self.measures[record.measure_id] = record
        elif isinstance(record, FailureRecord):
            self.failures[record.trial_id] = record


@dataclass(frozen=True)
class State:
    """What is done, failed and left of a plan; everything by id.

    Attributes:
        results: Outlines of the believed results of planned trials that have everything asked for.
        trials: Records of these and other results.
        stale: Planned trials whose result was made from other data, or other choices under the same
            id.
        partial: Outlines of believed results that lack a measurement that is asked for now.
        foreign: Results of trials that are not in the plan (kept, not used).
    """

    results: dict[str, TrialOutline]
    trials: Mapping[str, TrialRecord] = field(default_factory=dict)
    measures: dict[str, MeasureRecord] = field(default_factory=dict)
    failures: dict[str, FailureRecord] = field(default_factory=dict)
    running: frozenset[str] = frozenset()
    stale: frozenset[str] = frozenset()
    partial: dict[str, TrialOutline] = field(default_factory=dict)
    foreign: frozenset[str] = frozenset()
    unreadable: list[Unreadable] = field(default_factory=list)

    def status(self, trial_id: str) -> CellStatus:
        """Return where a planned trial stands."""
        if trial_id in self.results:
            return CellStatus.DONE
        if trial_id in self.running:
            return CellStatus.RUNNING
        if trial_id in self.failures:
            return CellStatus.FAILED
        return CellStatus.STALE if trial_id in self.stale else CellStatus.PENDING

    def counts(self, plan: SweepPlan) -> dict[str, int]:
        """Return how many trials are planned and in each state."""
        return {
            "planned": len(plan.trials),
            "done": len(self.results),
            "failed": len(self.failures),
            "diverged": sum(one.status == TrialStatus.DIVERGED for one in self.results.values()),
        }

    def flat_runs(self) -> Iterator[FlatRun]:
        """Yield all results of planned trials as MLflow shows them."""
        index = index_measures(self.measures.values())
        return (flat_trial(record, index) for record in self.records)

    @property
    def records(self) -> list[TrialRecord]:
        """Records of all results of planned trials, with everything asked for or not."""
        return [self.trials[trial_id] for trial_id in (*self.results, *self.partial)]

    def rows(self) -> list[Row]:
        """Return the rows of all results of planned trials, ordered by trial id."""
        return rows_of(self.records, self.measures.values())

    def failure_rows(self) -> list[dict[str, str]]:
        """Return the failures as the command line and the report print them, ordered by trial
        id.
        """
        return [record.row() for _, record in sorted(self.failures.items())]

    def measured_trials(self) -> list[MeasuredTrial]:
        """Return what done trials cost; diverged ones stopped at an unknown epoch."""
        return [
            MeasuredTrial(
                spec=outline.spec,
                on_gpu=(on_gpu := outline.device.startswith("cuda")),
                # Older records know no share: the trial had the GPU to itself.
                share=(outline.gpu_share or 1.0) if on_gpu else outline.num_threads,
                seconds=outline.finished_at - outline.started_at,
                gpu=outline.gpu_name,
                peak_bytes=outline.peak_bytes,
            )
            for outline in (*self.results.values(), *self.partial.values())
            if outline.status == TrialStatus.DONE
        ]

    def cost(self) -> dict[str, Any]:
        """Return what the trials that have a result cost, in words too; failed attempts leave no
        times.

        Hours are of whole GPUs, time times share, or of cores where a trial ran without one.
        """
        hours = {True: 0.0, False: 0.0}
        for trial in self.measured_trials():
            hours[trial.on_gpu] += trial.seconds * trial.share / 3600
        gpu, core = hours[True], hours[False]
        said = [f"{amount(gpu)} GPU-hours"] * bool(gpu)
        said += [f"{amount(core)} core-hours"] * bool(core or not gpu)
        return {"gpu_hours": gpu, "core_hours": core, "text": f"cost so far {' and '.join(said)}"}


def read_state(workspace: Workspace, running: Iterable[str] = (), *, look: bool = False) -> State:
    """Read the store of a sweep and judge it; a ``look``, for what no network found, uses the
    index.
    """
    index = workspace.sweep_paths.index if look else None
    return judge(workspace, StoredResults.read(workspace.results_url, index, look=look), running)


def judge(workspace: Workspace, stored: StoredResults, running: Iterable[str] = ()) -> State:
    """Compare what is stored with the plan, the data prepared now, and what a live driver is
    ``running``.
    """
    planned = workspace.plan.trials_by_id
    known = {i: outline for i, outline in stored.trials.outlines.items() if i in planned}
    stale = {i for i, outline in known.items() if _is_stale(workspace, planned[i], outline)}
    believed = {i: outline for i, outline in known.items() if i not in stale}
    partial = {i: outline for i, outline in believed.items() if outline.lacks(planned[i])}
    results = {i: outline for i, outline in believed.items() if i not in partial}
    return State(
        results=results,
        trials=stored.trials,
        measures=_measures(workspace, stored),
        failures={i: f for i, f in stored.failures.items() if i in planned and i not in results},
        running=frozenset(running),
        stale=frozenset(stale),
        partial=partial,
        foreign=frozenset(stored.trials.keys() - planned.keys()),
        unreadable=list(stored.unreadable),
    )


def _measures(workspace: Workspace, stored: StoredResults) -> dict[str, MeasureRecord]:
    """Return the believed measures of the plan; for one that is not made yet, those of other train
    sizes.

    What is found at a train size does not depend on the others: a sweep file that was extended
    keeps it.
    """
    alike: dict[MeasureSpec, dict[str, MeasureRecord]] = {}
    for name, record in stored.measures.items():
        if not _is_stale(workspace, record.spec, record):
            alike.setdefault(record.spec.model_copy(update={"train_sizes": ()}), {})[name] = record
    found: dict[str, MeasureRecord] = {}
    for spec in workspace.plan.measures:
        same = alike.get(spec.model_copy(update={"train_sizes": ()}), {})
        own = same.get(spec.measure_id)
        found |= same if own is None else {spec.measure_id: own}
    return found


def _is_stale(
    workspace: Workspace, spec: TrialSpec | MeasureSpec, record: TrialOutline | MeasureRecord
) -> bool:
    subset = spec.network.subset if isinstance(spec, TrialSpec) else spec.subset
    dataset = workspace.prepared.get(subset.prepared.prepared_id)
    if dataset is not None and dataset.fingerprint != record.data_fingerprint:
        return True
    # An id leaves out what has its default: one that changed under the same version must not go
    # unseen.
    return (spec.network if isinstance(spec, TrialSpec) else spec) != (
        record.spec.network if isinstance(record, TrialOutline) else record.spec
    )
