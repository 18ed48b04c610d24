"""What a sweep's store holds, and what of the plan is therefore done, failed or left."""

from __future__ import annotations

import logging
import posixpath
from collections.abc import Container, Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from orchestrator.planning.estimate import MeasuredTrial, Prices, amount
from orchestrator.planning.plan import CellStatus, Workspace
from orchestrator.results.index import Index, TrialOutline
from orchestrator.results.records import FailureRecord, MeasureRecord, SealedRecord, TrialRecord
from orchestrator.results.rows import FlatRun, Row, flat_measure, flat_trial, index_measures, rows_of
from orchestrator.results.storage import Patience, open_storage
from orchestrator.results.store import Newer, Records, ResultStore, Unreadable
from search_spaces.errors import CorruptStoreError, NewerRecordError, SweepError
from search_spaces.specs import MeasureSpec, TrialSpec
from tasks.finding import Finding
from tasks.trials.records import TrialStatus

log = logging.getLogger(__name__)


@dataclass
class StoredResults:
    """All records of a sweep: read once, then kept up to date by writing through it.

    Attributes:
        store: Where they are sealed.
        trials: Results by trial id; see :class:`Records`.
        outlines: Of the same results.
        index: Where outlines are kept for the next look.
        measures: Measures by measure id.
        failures: Latest failures of trials without a result, by trial id.
        unreadable: Files that are not believed.
        patience: Waits for storage that is full or away; None raises at once.
    """

    store: ResultStore
    trials: MutableMapping[str, TrialRecord]
    measures: dict[str, MeasureRecord] = field(default_factory=dict)
    failures: dict[str, FailureRecord] = field(default_factory=dict)
    unreadable: list[Unreadable] = field(default_factory=list)
    patience: Patience | None = None
    outlines: dict[str, TrialOutline] = field(default_factory=dict)
    index: Index | None = None

    @classmethod
    def read(cls, url: str, index: Path | None = None) -> StoredResults:
        """Read every record below ``url``.

        Args:
            url: A local path or the URL of an object store.
            index: Where outlines are kept for the next look; made anew. None keeps none.
        """
        store = ResultStore(url)
        scan = store.scan(TrialRecord)
        outlines = {name: TrialOutline.of(record) for name, record in scan.records.items()}
        stored = cls(store, Records(store, scan.records), outlines=outlines)
        if index is not None:
            stored.index = Index(index)
            stored.index.add(((scan.stamps[name], one) for name, one in outlines.items()), anew=True)
        return stored._with_the_rest(scan.unreadable)

    @classmethod
    def look(cls, url: str, index: Path) -> StoredResults:
        """As :meth:`read`, of a sweep that is only looked at: a result whose outline is known is not read."""
        store, kept = ResultStore(url), Index(index)
        files, known = store.listing(TrialRecord), kept.read()
        believed = {n: o for n, (stamp, o) in known.items() if n in files and stamp == files[n].stamp}
        scan = store.scan(TrialRecord, [file for name, file in files.items() if name not in believed])
        new = {name: TrialOutline.of(record) for name, record in scan.records.items()}
        if new:
            kept.add((scan.stamps[name], outline) for name, outline in new.items())
        found = believed | new
        outlines = {name: found[name] for name in files if name in found}
        stored = cls(store, Records(store), outlines=outlines, index=kept)
        return stored._with_the_rest(scan.unreadable)

    def _with_the_rest(self, unreadable: list[Unreadable]) -> StoredResults:
        """Read what there is beside results."""
        measures, failures = self.store.scan(MeasureRecord), self.store.scan(FailureRecord)
        self.measures, self.failures = measures.records, failures.records
        self.unreadable = unreadable + failures.unreadable + measures.unreadable
        return self

    def forget_lost(self) -> int:
        """Forget results and measures whose file was removed since it was read or sealed; returns how many.

        Raises:
            SetupError: when the storage does not answer.
        """
        lost = self.outlines.keys() - self.store.listing(TrialRecord).keys()
        for trial_id in lost:
            self.outlines.pop(trial_id)
            self.trials.pop(trial_id, None)
        gone = self.measures.keys() - self.store.listing(MeasureRecord).keys()
        for measure_id in gone:
            self.measures.pop(measure_id)
        return len(lost) + len(gone)

    def check_writable(self) -> None:
        """Refuse a store in which a newer version wrote: a run of this one would replace what that one found.

        Raises:
            NewerRecordError: naming the first such file.
        """
        newer = [item for item in self.unreadable if isinstance(item, Newer)]
        if newer:
            more = f" (and {len(newer) - 1:,} more files)" if len(newer) > 1 else ""
            raise NewerRecordError(
                "A run needs a result store whose records it knows",
                f"{newer[0].path}: {newer[0].reason}{more}",
                "update isweep, or keep these results apart with another --root or --storage",
            )

    def save(self, record: SealedRecord) -> None:
        """Seal a record, and know it without reading again.

        Raises:
            SetupError: when it cannot be stored; nothing has changed then.
        """
        if self.patience is None:
            self.store.save(record)
        else:
            self.patience.until_done(lambda: self.store.save(record))
        if isinstance(record, TrialRecord):
            self.trials[record.trial_id] = record
            self.outlines[record.trial_id] = outline = TrialOutline.of(record)
            if self.index is not None:
                self.index.add([(self.store.stamp(record), outline)])
            self.failures.pop(record.trial_id, None)
        elif isinstance(record, MeasureRecord):
            self.measures[record.measure_id] = record
        elif isinstance(record, FailureRecord):
            self.failures[record.trial_id] = record


@dataclass(frozen=True)
class State:
    """What is done, failed and left of a plan.

    Attributes:
        results: Outlines of the believed results of planned trials, with everything asked for, by id.
        trials: Records by id, of these and other results.
        measures: Stored measures of the plan made from the data prepared now, by measure id.
        failures: Latest failures of planned trials that have no result, by id.
        running: Ids that a live driver works on now.
        stale: Planned trials whose result was made from other data than are prepared now, or from other
            choices under the same id.
        partial: Outlines of believed results of planned trials that lack a measurement that is asked for now:
            what they have is shown, and a run adds what they lack.
        foreign: Results of trials that are not in the plan (kept, not used).
        unreadable: Files that are not believed.
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

    @property
    def incomplete(self) -> dict[str, bool]:
        """Whether weights of partial results are kept: then they are measured on them, else trained again."""
        return {trial_id: outline.has_weights for trial_id, outline in self.partial.items()}

    def status(self, trial_id: str) -> CellStatus:
        """Return where a planned trial stands."""
        if trial_id in self.results:
            return CellStatus.DONE
        if trial_id in self.running:
            return CellStatus.RUNNING
        if trial_id in self.failures:
            return CellStatus.FAILED
        return CellStatus.STALE if trial_id in self.stale else CellStatus.PENDING

    def flat_runs(self) -> Iterator[FlatRun]:
        """Yield what a tracker should show: all results of planned trials, measures first."""
        index = index_measures(self.measures.values())
        yield from (flat_measure(record) for record in self.measures.values())
        yield from (flat_trial(record, index) for record in self.records)

    @property
    def records(self) -> list[TrialRecord]:
        """Records of all results of planned trials, with everything asked for or not."""
        return [self.trials[trial_id] for trial_id in (*self.results, *self.partial)]

    def rows(self) -> list[Row]:
        """Return the rows of all results of planned trials, ordered by trial id."""
        return rows_of(self.records, self.measures.values())

    def failure_rows(self) -> list[dict[str, str]]:
        """Return the failures as the command line and the report print them, ordered by trial id."""
        return [record.row() for _, record in sorted(self.failures.items())]

    def measured_trials(self, among: Container[str] | None = None) -> list[MeasuredTrial]:
        """Return what done trials cost; diverged ones stopped at an unknown epoch, so they tell nothing.

        Args:
            among: Only trials with these ids; None takes all.
        """
        return [
            MeasuredTrial(
                spec=outline.spec,
                on_gpu=outline.on_gpu,
                # Older records know no share: the trial had the card to itself.
                share=(outline.gpu_share or 1.0) if outline.on_gpu else outline.num_threads,
                seconds=outline.finished_at - outline.started_at,
                card=outline.gpu_name,
                peak_bytes=outline.peak_bytes,
            )
            for name, outline in (*self.results.items(), *self.partial.items())
            if outline.status == TrialStatus.DONE and (among is None or name in among)
        ]


def read_state(workspace: Workspace, running: Iterable[str] = ()) -> State:
    """Read the store of a sweep and judge it; see :func:`judge`."""
    return judge(workspace, StoredResults.read(workspace.results_url), running)


def look_at_state(workspace: Workspace, running: Iterable[str] = ()) -> State:
    """As :func:`read_state`, by outlines: for what needs no number that a network gave."""
    stored = StoredResults.look(workspace.results_url, workspace.sweep_paths.index)
    return judge(workspace, stored, running)


def judge(workspace: Workspace, stored: StoredResults, running: Iterable[str] = ()) -> State:
    """Compare what is stored with the plan and with the data that are prepared now.

    Args:
        workspace: The sweep.
        stored: Everything in its store.
        running: Ids of trials that a live driver works on now.
    """
    planned = workspace.plan.trials_by_id
    known = {i: outline for i, outline in stored.outlines.items() if i in planned}
    stale = {i for i, outline in known.items() if _is_stale(workspace, planned[i], outline)}
    believed = {i: outline for i, outline in known.items() if i not in stale}
    partial = {i: outline for i, outline in believed.items() if outline.lacks(planned[i])}
    results = {i: outline for i, outline in believed.items() if i not in partial}
    measures = {measure.measure_id: measure for measure in workspace.plan.measures}
    return State(
        results=results,
        trials=stored.trials,
        measures={
            i: record
            for i, record in stored.measures.items()
            if i in measures and not _is_stale(workspace, measures[i], record)
        },
        failures={i: f for i, f in stored.failures.items() if i in planned and i not in results},
        running=frozenset(running),
        stale=frozenset(stale),
        partial=partial,
        foreign=frozenset(set(stored.outlines) - set(planned)),
        unreadable=list(stored.unreadable),
    )


def _is_stale(
    workspace: Workspace, spec: TrialSpec | MeasureSpec, record: TrialOutline | MeasureRecord
) -> bool:
    subset = spec.network.subset if isinstance(spec, TrialSpec) else spec.subset
    dataset = workspace.prepared.get(subset.prepared.prepared_id)
    if dataset is not None and dataset.fingerprint != record.data_fingerprint:
        return True
    # An id leaves out what has its default: one that changed under the same version must not go unseen.
    return (spec.network if isinstance(spec, TrialSpec) else spec) != (
        record.spec.network if isinstance(record, TrialOutline) else record.spec
    )


# What the stored results of a sweep cost, and what using them again has saved.

JOULES_PER_KILOWATT_HOUR = 3.6e6


@dataclass(frozen=True)
class Cost:
    """Of trials that have a result; failed attempts leave no times, so they are not in it.

    Attributes:
        gpu_hours: Hours of whole cards: time times share.
        core_hours: Hours of CPU cores of the trials that ran without a card.
        dollars: At the table's prices.
        kilowatt_hours: At the table's draw.
        saved_gpu_hours: Of training that was not repeated when more was measured on kept networks.
        saved_core_hours: Likewise.
        networks_used_again: How many those were.
        measures: Stored measures, each made once.
        trials_per_measure: Trials that read them, per measure.
        prices: Where prices and draw are from.
    """

    gpu_hours: float
    core_hours: float
    dollars: float
    kilowatt_hours: float
    saved_gpu_hours: float
    saved_core_hours: float
    networks_used_again: int
    measures: int
    trials_per_measure: float
    prices: str

    def text(self) -> str:
        """Say it in a line."""
        parts = [
            f"cost so far {_hours(self.gpu_hours, self.core_hours)}: {amount(self.dollars)} $, "
            f"{amount(self.kilowatt_hours)} kWh ({self.prices})"
        ]
        if self.networks_used_again:
            saved = _hours(self.saved_gpu_hours, self.saved_core_hours)
            parts.append(
                f"{self.networks_used_again} kept networks measured again, not trained: {saved} saved"
            )
        if self.measures:
            parts.append(f"each measure made once for {self.trials_per_measure:.3g} trials")
        return "; ".join(parts)


def cost_of(state: State, prices: Prices) -> Cost:
    """Add up the trials of a sweep that have a result."""
    again = {trial_id for trial_id, outline in state.results.items() if outline.measured_at is not None}
    gpu, core = _unit_hours(state.measured_trials())
    saved_gpu, saved_core = _unit_hours(state.measured_trials(again))
    joules = 3600 * (gpu * prices.card.watts + core * prices.core.watts)
    num_measures = len(state.measures)
    return Cost(
        gpu_hours=gpu,
        core_hours=core,
        dollars=gpu * prices.card.dollars + core * prices.core.dollars,
        kilowatt_hours=joules / JOULES_PER_KILOWATT_HOUR,
        saved_gpu_hours=saved_gpu,
        saved_core_hours=saved_core,
        networks_used_again=len(again),
        measures=num_measures,
        trials_per_measure=len(state.results) / num_measures if num_measures else 0.0,
        prices=prices.origin,
    )


def _unit_hours(trials: Iterable[MeasuredTrial]) -> tuple[float, float]:
    """Return hours of cards and of cores."""
    hours = {True: 0.0, False: 0.0}
    for trial in trials:
        hours[trial.on_gpu] += trial.seconds * trial.share / 3600
    return hours[True], hours[False]


def _hours(gpu: float, core: float) -> str:
    parts = [f"{amount(gpu)} GPU-hours"] * bool(gpu) + [f"{amount(core)} core-hours"] * bool(core or not gpu)
    return " and ".join(parts)


# The story of each cell: when its attempts started, where, how they ended, and what they logged.
#
# ``trials/<trial_id>/history.json`` and one ``attempt-<n>.log`` per attempt lie beside the result. They are
# for people: nothing is decided by them, and a story that cannot be written is worth no result.

MOST_EVENTS = 200
"""Of one cell; lost nodes are tried again without limit. The oldest go."""


What = Literal["started", "finished", "failed", "stopped"]


class Event(Finding):
    """Something that happened to a cell.

    Attributes:
        at: Seconds since 1970, by the driver's clock.
        what: What happened.
        attempt: To which attempt, from 1 over all runs.
        node: Address of the node where it ran, where that is known.
        said: Of a failure: its kind and reason, and whether there is another attempt; of an end: how.
    """

    at: float
    what: What
    attempt: int
    node: str = ""
    said: str = ""


_EVENTS = TypeAdapter(list[Event])


class History:
    """Stories and logs of the cells of one sweep, beside its results below ``url``."""

    def __init__(self, url: str) -> None:
        self._files = open_storage(url)
        self._open: dict[str, list[Event]] = {}

    def tell(self, trial_id: str, event: Event, log_text: str = "") -> None:
        """Add an event to a cell's story; ``log_text`` is what its attempt logged, which has ended then."""
        try:
            events = self._open.setdefault(trial_id, []) or self.story(trial_id)
        except SweepError as error:
            log.warning("the story of %s begins anew: %s", trial_id, error)
            events = []
        self._open[trial_id] = events = [*events, event][-MOST_EVENTS:]
        self._write(trial_id, "history.json", _EVENTS.dump_json(events, indent=1))
        if log_text:
            self._write(trial_id, f"attempt-{event.attempt}.log", log_text.encode())
        if event.what == "finished":
            del self._open[trial_id]

    def story(self, trial_id: str) -> list[Event]:
        """Return what happened to a cell, oldest first.

        Raises:
            CorruptStoreError: when the file is damaged.
            SetupError: when the store does not answer.
        """
        path = self._path(trial_id, "history.json")
        try:
            return _EVENTS.validate_json(self._files.read(path))
        except FileNotFoundError:
            return []
        except (OSError, ValidationError) as error:
            reason = str(error).splitlines()[0]
            way_out = "delete it: nothing is decided by it"
            raise CorruptStoreError("A cell's story must be whole", f"{path}: {reason}", way_out) from None

    def log_path(self, trial_id: str, attempt: int) -> str:
        """Return where an attempt's log is, if it left one."""
        return self._path(trial_id, f"attempt-{attempt}.log")

    def log(self, trial_id: str, attempt: int) -> str | None:
        """Return what an attempt logged; None where it left nothing."""
        try:
            return self._files.read(self.log_path(trial_id, attempt)).decode(errors="replace")
        except OSError:
            return None

    def _path(self, trial_id: str, name: str) -> str:
        return posixpath.join(self._files.base, TrialRecord.folder, trial_id, name)

    def _write(self, trial_id: str, name: str, data: bytes) -> None:
        try:
            self._files.write(self._path(trial_id, name), data, durable=False)
        except SweepError as error:
            log.warning("the story of %s is not kept: %s", trial_id, error)
