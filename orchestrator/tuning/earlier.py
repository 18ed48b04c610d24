"""What earlier starts left of a search: trainings that were asked for, in their order, and what they gave."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from orchestrator.results.store import ResultStore, Unreadable
from orchestrator.tuning.cells import CellKey, TuningCell
from orchestrator.tuning.records import AskedRecord, SearchRecord
from orchestrator.tuning.search import Training


@dataclass(frozen=True)
class Earlier:
    """What is stored of a search.

    Attributes:
        asked: What was asked for, by trial id.
        records: What was found, likewise, the first to end first.
        num_others: Results of another train size, recipe, split or prepared data; kept and not used.
        unreadable: Files that are not believed.
    """

    asked: dict[str, AskedRecord]
    records: dict[str, SearchRecord]
    num_others: int
    unreadable: list[Unreadable]

    @classmethod
    def read(
        cls, store: ResultStore, cells: Iterable[TuningCell], fingerprints: Mapping[str, str]
    ) -> Earlier:
        """Read it.

        Args:
            store: Of the search.
            cells: What is searched now.
            fingerprints: Content hash of each prepared dataset, by prepared id.
        """
        by_key = {cell.key: cell for cell in cells}
        asked, found = store.scan(AskedRecord), store.scan(SearchRecord)
        records = [one for one in found.records.values() if _belongs(one, by_key, fingerprints)]
        records.sort(key=lambda record: record.finished_at)
        return cls(
            {name: one for name, one in asked.records.items() if _belongs(one, by_key, fingerprints)},
            {record.trial_id: record for record in records},
            len(found.records) - len(records),
            asked.unreadable + found.unreadable,
        )

    def trainings(self) -> list[Training]:
        """Return everything in the order in which it was asked for; what is of no known place comes first."""
        every: dict[str, AskedRecord | SearchRecord] = {**self.records, **self.asked}
        ordered = sorted(every.values(), key=lambda one: one.number if isinstance(one, AskedRecord) else -1)
        results = {name: record.result for name, record in self.records.items()}
        return [Training(one.key, one.point, one.role, one.run, results.get(one.trial_id)) for one in ordered]


def _belongs(
    record: AskedRecord | SearchRecord, cells: Mapping[CellKey, TuningCell], fingerprints: Mapping[str, str]
) -> bool:
    """Tell whether a record is of one of these very cells, and made from the data prepared now."""
    cell = cells.get(record.key)
    if cell is None or cell.trial(record.point, record.run) != record.spec:
        return False
    prepared = record.spec.network.subset.prepared.prepared_id
    return fingerprints.get(prepared) == record.data_fingerprint
