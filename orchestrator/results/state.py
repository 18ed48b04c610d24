"""What a sweep's store holds, and what of the plan is therefore done, failed or left."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.planning.measured import MeasuredTrial
from orchestrator.planning.plan import CellStatus
from orchestrator.planning.workspace import Workspace
from orchestrator.results.outlines import OutlineIndex, TrialOutline
from orchestrator.results.packed import PackedTrials
from orchestrator.results.patience import Patience
from orchestrator.results.records import FailureRecord, MeasureRecord, SealedRecord, TrialRecord
from orchestrator.results.rows import FlatRun, Row, flat_measure, flat_trial, index_measures, rows_of
from orchestrator.results.store import Newer, ResultStore, Unreadable
from orchestrator.results.tracking.tracker import Failure
from search_spaces.errors import NewerRecordError
from search_spaces.specs import MeasureSpec
from search_spaces.trials import TrialSpec
from tasks.trials.result import TrialStatus


@dataclass
class StoredResults:
    """All records of a sweep: read once, then kept up to date by writing through it.

    Attributes:
        store: Where they are sealed.
        trials: Results by trial id; those that are saved are kept packed, and after a mere look, each is read
            when it is asked for.
        outlines: Of the same results.
        index: Where outlines are kept for the next look.
        measures: Measures by measure id.
        failures: Latest failures of trials without a result, by trial id.
        unreadable: Files that are not believed.
        patience: Waits for storage that is full or away; None raises at once.
    """

    store: ResultStore
    trials: MutableMapping[str, TrialRecord] = field(default_factory=PackedTrials)
    measures: dict[str, MeasureRecord] = field(default_factory=dict)
    failures: dict[str, FailureRecord] = field(default_factory=dict)
    unreadable: list[Unreadable] = field(default_factory=list)
    patience: Patience | None = None
    outlines: dict[str, TrialOutline] = field(default_factory=dict)
    index: OutlineIndex | None = None

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
        kept = None if index is None else OutlineIndex(index)
        if kept is not None and outlines:
            kept.renew((scan.stamps[name], outline) for name, outline in outlines.items())
        return cls(store, PackedTrials(scan.records), outlines=outlines, index=kept)._with_the_rest(
            scan.unreadable
        )

    @classmethod
    def look(cls, url: str, index: Path) -> StoredResults:
        """As :meth:`read`, of a sweep that is only looked at: a result whose outline is known is not read."""
        store, kept = ResultStore(url), OutlineIndex.read(index)
        files = store.listing(TrialRecord)
        known = {n: o for n, (stamp, o) in kept.known.items() if n in files and stamp == files[n].stamp}
        scan = store.scan(TrialRecord, [file for name, file in files.items() if name not in known])
        new = {name: TrialOutline.of(record) for name, record in scan.records.items()}
        kept.add((scan.stamps[name], outline) for name, outline in new.items())
        outlines = {name: known.get(name) or new[name] for name in files if name in known or name in new}
        return cls(store, _ReadWhenAsked(store), outlines=outlines, index=kept)._with_the_rest(
            scan.unreadable
        )

    def _with_the_rest(self, unreadable: list[Unreadable]) -> StoredResults:
        """Read what there is beside results."""
        measures, failures = self.store.scan(MeasureRecord), self.store.scan(FailureRecord)
        self.measures, self.failures = measures.records, failures.records
        self.unreadable = unreadable + failures.unreadable + measures.unreadable
        return self

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

    def told_failures(self) -> list[Failure]:
        """Return what a tracker should know of cells that have no result."""
        return [
            Failure(record.trial_id, record.failure.kind, record.failure.message, record.attempt)
            for record in self.failures.values()
        ]

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


class _ReadWhenAsked(dict[str, TrialRecord]):
    """Records of which only outlines are known: each is read from the store when it is asked for."""

    def __init__(self, store: ResultStore) -> None:
        super().__init__()
        self._store = store

    def __missing__(self, trial_id: str) -> TrialRecord:
        record = self._store.read(TrialRecord, trial_id)
        if record is None:
            raise KeyError(trial_id)
        return record
