"""Read the trials of a search that earlier commands requested or finished."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from orchestrator.results.store import ResultStore, Unreadable
from orchestrator.tuning.combinations import Combination
from orchestrator.tuning.search_records import RequestRecord, SearchRecord
from tasks.trials.records import SearchResult


class EarlierTrial(NamedTuple):
    """A trial that an earlier command requested, with its result. The result may be None."""

    record: RequestRecord | SearchRecord
    result: SearchResult | None


@dataclass(frozen=True)
class EarlierTrials:
    """The stored trials of a search, by trial id.

    Attributes:
        requests: Trials that were requested.
        records: Trials with a result, in the order in which they ended.
        num_others: Number of results for another train size, recipe, split or version of the
            prepared data. These results stay in the store, but the search does not use them.
        unreadable: Stored files that cannot be used.
    """

    requests: dict[str, RequestRecord]
    records: dict[str, SearchRecord]
    num_others: int
    unreadable: list[Unreadable]

    @classmethod
    def read(
        cls,
        store: ResultStore,
        combinations: Iterable[Combination],
        fingerprints: Mapping[str, str],
    ) -> EarlierTrials:
        """Read the stored trials of combinations.

        Args:
            store: Result store of the search.
            combinations: The combinations with their present settings.
            fingerprints: Content hashes of the datasets by prepared id.
        """
        by_key = {combination.key: combination for combination in combinations}

        def is_current(record: RequestRecord | SearchRecord) -> bool:
            """Return whether a trial has the settings and the images of the present search."""
            combination = by_key.get(record.key)
            if combination is None or combination.trial(record.point, record.run) != record.spec:
                return False
            prepared_id = record.spec.network.subset.prepared.prepared_id
            return fingerprints.get(prepared_id) == record.data_fingerprint

        requests = store.scan(RequestRecord)
        results = store.scan(SearchRecord)
        records = sorted(
            filter(is_current, results.records.values()), key=lambda record: record.finished_at
        )
        return cls(
            requests={
                record.trial_id: record for record in filter(is_current, requests.records.values())
            },
            records={record.trial_id: record for record in records},
            num_others=len(results.records) - len(records),
            unreadable=requests.unreadable + results.unreadable,
        )

    def trials(self) -> list[EarlierTrial]:
        """Return all trials in the order in which they were requested.

        If a result has no request, its place in this order is unknown. Such results come
        first.
        """
        # If a trial has both records, its place comes from the request, because only the
        # request has a number.
        record_of: dict[str, RequestRecord | SearchRecord] = {**self.records, **self.requests}
        trials = []
        for record in sorted(record_of.values(), key=_request_number):
            result = None
            if record.trial_id in self.records:
                result = self.records[record.trial_id].result
            trials.append(EarlierTrial(record, result))
        return trials


def _request_number(record: RequestRecord | SearchRecord) -> int:
    """Return the number of a trial's request, or -1 if the trial has no request."""
    if isinstance(record, RequestRecord):
        return record.number
    return -1
