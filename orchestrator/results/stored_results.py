"""All stored results of a sweep in memory. Every write updates the store and the memory."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from orchestrator.results.outlines import IndexEntry, OutlineIndex, TrialOutline
from orchestrator.results.records import FailureRecord, MeasureRecord, StoredRecord, TrialRecord
from orchestrator.results.storage import RetryWithBackoff, Storage
from orchestrator.results.store import FileKind, ResultStore, Unreadable
from search_spaces.errors import NewerRecordError, plural


class TrialRecords(MutableMapping[str, TrialRecord]):
    """Results of trials by id.

    All outlines are in memory. A record is in memory or is read when it is needed.

    As a Python object, a record would use 15 to 100 kB of memory. So a new record stays in
    memory as compressed text of 1 to 5 kB.

    Args:
        store: Result store from which records are read.
        outlines: Outlines of all results, by trial id.
        records: Records that were already read, by trial id.
    """

    def __init__(
        self,
        store: ResultStore,
        outlines: dict[str, TrialOutline],
        records: Mapping[str, TrialRecord],
    ) -> None:
        self.outlines = outlines
        self._store = store
        # The records in memory. Some records are compressed text.
        self._records: dict[str, TrialRecord | bytes] = dict(records)

    def __getitem__(self, trial_id: str) -> TrialRecord:
        if trial_id not in self.outlines:
            raise KeyError(trial_id)
        record = self._records.get(trial_id)
        if record is None:
            record = self._store.read(TrialRecord, trial_id)
        if record is None:
            raise KeyError(trial_id)
        if isinstance(record, bytes):
            return TrialRecord.model_validate_json(zlib.decompress(record))
        return record

    def __setitem__(self, trial_id: str, record: TrialRecord) -> None:
        # A higher level of compression would take longer and save only 10 % of the memory.
        self._records[trial_id] = zlib.compress(record.text().encode(), level=1)
        self.outlines[trial_id] = TrialOutline.of(record)

    def __delitem__(self, trial_id: str) -> None:
        del self.outlines[trial_id]
        self._records.pop(trial_id, None)

    def __contains__(self, trial_id: object) -> bool:
        return trial_id in self.outlines

    def __iter__(self) -> Iterator[str]:
        return iter(self.outlines)

    def __len__(self) -> int:
        return len(self.outlines)


class DamagedPredictions(NamedTuple):
    """Numbers of trials whose stored predictions are missing or damaged.

    Attributes:
        num_from_weights: Number of trials whose stored network is intact. The network computes
            the predictions again.
        num_retrained: Number of trials without an intact stored network. These trials must be
            trained again.
    """

    num_from_weights: int
    num_retrained: int


@dataclass
class StoredResults:
    """All stored records of a sweep, by id.

    Attributes:
        store: The result store.
        trials: Results of trials, by trial id.
        measures: Measures of datasets, by measure id.
        failures: Failures of the latest attempts, by trial id.
        unreadable: Files that cannot be used.
        index: Index of outlines, which the next command can read. None means that there is no
            index.
        retry: Object that repeats a write while the storage is full or does not answer. If it
            is None, each write is tried only once.
    """

    store: ResultStore
    trials: TrialRecords
    measures: dict[str, MeasureRecord]
    failures: dict[str, FailureRecord]
    unreadable: list[Unreadable]
    index: OutlineIndex | None = None
    retry: RetryWithBackoff | None = None

    @classmethod
    def read(
        cls, url: str | Storage, index_path: Path | None = None, *, quick: bool = False
    ) -> StoredResults:
        """Read every record of a store.

        Args:
            url: Folder or URL of the store.
            index_path: File with the outlines of results. None means that there is no index.
            quick: If True, read only the results whose outline is not in the index. If False,
                read all results. A run reads all results.
        """
        store = ResultStore(url)
        index = None
        if index_path is not None:
            index = OutlineIndex(index_path)
        unreadable: list[Unreadable] = []
        trials = _read_trials(store, index, unreadable, quick=quick)
        measures = store.scan(MeasureRecord)
        failures = store.scan(FailureRecord)
        return cls(
            store=store,
            trials=trials,
            measures=measures.records,
            failures=failures.records,
            unreadable=unreadable + failures.unreadable + measures.unreadable,
            index=index,
        )

    def drop_deleted_results(self) -> int:
        """Remove results and measures from memory if their file was deleted.

        Return the number of removed results and measures.
        """
        lost = self.trials.keys() - self.store.listing(TrialRecord).keys()
        lost_measures = self.measures.keys() - self.store.listing(MeasureRecord).keys()
        for trial_id in lost:
            del self.trials[trial_id]
        for measure_id in lost_measures:
            del self.measures[measure_id]
        return len(lost) + len(lost_measures)

    def drop_damaged_predictions(self, planned: Iterable[str]) -> DamagedPredictions:
        """Remove missing or damaged predictions from memory, so that a run computes them again.

        If the weights of the trial are intact, its result stays in memory without predictions.
            Otherwise the whole result is removed from memory, so that a run trains the trial
            again. No stored file changes: the old result stays in the store until the new
            result replaces it.

        Args:
            planned: Ids of the trials to check.
        """
        planned_records = {
            trial_id: self.trials[trial_id] for trial_id in planned if trial_id in self.trials
        }
        predictions = {}
        for trial_id, record in planned_records.items():
            if record.result.predictions:
                predictions[trial_id] = record.result.predictions
        damaged_ids = self.store.damaged_files(FileKind.PREDICTIONS, predictions)
        weights = {}
        for trial_id in damaged_ids:
            file = planned_records[trial_id].result.weights
            if file:
                weights[trial_id] = file
        ids_to_measure = weights.keys() - self.store.damaged_files(FileKind.WEIGHTS, weights)
        ids_to_train = damaged_ids - ids_to_measure
        for trial_id in ids_to_train:
            del self.trials[trial_id]
        for trial_id in ids_to_measure:
            record = planned_records[trial_id]
            result = record.result.model_copy(update={"predictions": None})
            self.trials[trial_id] = record.model_copy(update={"result": result})
        return DamagedPredictions(len(ids_to_measure), len(ids_to_train))

    def check_writable(self) -> None:
        """Raise an error if a newer version of isweep wrote a record: a run would replace it.

        Raises:
            NewerRecordError: A newer version of isweep wrote a record of the store.
        """
        newer = [item for item in self.unreadable if item.newer]
        if not newer:
            return
        further_files = ""
        if len(newer) > 1:
            further_files = f" (and {plural(len(newer) - 1, 'more file')})"
        raise NewerRecordError(
            f"A newer version of isweep wrote {newer[0].path}{further_files}: {newer[0].reason}",
            hint="Update isweep, or choose another --root or --storage for this version",
        )

    def save(self, record: StoredRecord) -> None:
        """Store a record and add it to the results in memory.

        If the record cannot be stored, the memory does not change.
        """
        if self.retry is None:
            stamp = self.store.save(record)
        else:
            stamp = self.retry.until_done(partial(self.store.save, record))
        if isinstance(record, TrialRecord):
            self.trials[record.trial_id] = record
            if self.index is not None:
                self.index.add([IndexEntry(stamp, self.trials.outlines[record.trial_id])])
            self.failures.pop(record.trial_id, None)
        elif isinstance(record, MeasureRecord):
            self.measures[record.measure_id] = record
        elif isinstance(record, FailureRecord):
            self.failures[record.trial_id] = record


def _read_trials(
    store: ResultStore, index: OutlineIndex | None, unreadable: list[Unreadable], *, quick: bool
) -> TrialRecords:
    """Read the results of trials, and add the outlines that the index lacks.

    Args:
        store: The result store.
        index: Index of outlines. None means that there is no index.
        unreadable: List to which files are added that cannot be used.
        quick: If True, read only the results whose outline is not in the index, and keep no
            record in memory.
    """
    files = store.listing(TrialRecord)
    outlines: dict[str, TrialOutline] = {}
    if index is not None and quick:
        for trial_id, entry in index.read().items():
            if trial_id in files and entry.stamp == files[trial_id].stamp:
                outlines[trial_id] = entry.outline
    unread_files = [file for trial_id, file in files.items() if trial_id not in outlines]
    records: dict[str, TrialRecord] = {}
    new_entries: list[IndexEntry] = []
    for trial_id, record in store.read_each(TrialRecord, unread_files, unreadable):
        outlines[trial_id] = TrialOutline.of(record)
        new_entries.append(IndexEntry(files[trial_id].stamp, outlines[trial_id]))
        if not quick:
            records[trial_id] = record
    if index is not None and new_entries:
        index.add(new_entries)
    in_order = {trial_id: outlines[trial_id] for trial_id in files if trial_id in outlines}
    return TrialRecords(store, in_order, records)
