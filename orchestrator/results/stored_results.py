"""All that is stored of a sweep, read once and kept up to date by writing through it."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from orchestrator.results.outlines import Index, TrialOutline
from orchestrator.results.records import (
    FailureRecord,
    MeasureRecord,
    SealedRecord,
    TrialRecord,
)
from orchestrator.results.storage import Patience, Storage
from orchestrator.results.store import FileKind, ResultStore, Unreadable
from search_spaces.errors import NewerRecordError


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
