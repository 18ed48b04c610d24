"""What a driver of thousands of trials keeps of those that are done, small in memory."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass

from pydantic import TypeAdapter

from orchestrator.results.records import TrialRecord
from orchestrator.results.rows import FlatRun
from search_spaces.trials import TrialSpec

FAST = 1
"""Level of compression: a higher one takes twice as long and saves a tenth."""

_FLAT = TypeAdapter(FlatRun)


def pack_run(run: FlatRun) -> bytes:
    """Return a run that waits for MLflow, which may be away for a night, in 2 kB instead of 20."""
    return zlib.compress(_FLAT.dump_json(run), FAST)


def unpack_run(packed: bytes) -> FlatRun:
    """Return what :func:`pack_run` was given."""
    return _FLAT.validate_json(zlib.decompress(packed))


@dataclass(frozen=True, slots=True)
class _Packed:
    """A record as compressed text; its spec stays as it is, since all of a plan share their parts."""

    spec: TrialSpec
    rest: bytes

    @classmethod
    def of(cls, record: TrialRecord) -> _Packed:
        text = json.dumps(record.model_dump(mode="json", exclude={"spec"}), allow_nan=False)
        return cls(record.spec, zlib.compress(text.encode(), FAST))

    def record(self) -> TrialRecord:
        fields = json.loads(zlib.decompress(self.rest))
        return TrialRecord.model_validate({**fields, "spec": self.spec}, strict=False)


class PackedTrials(MutableMapping[str, TrialRecord]):
    """Records by trial id: each that is added is packed, and made anew whenever it is asked for.

    As objects they take 15 to 100 kB each, packed 1 to 5. Equal comes out to what went in, as it does from
    the store.

    Args:
        records: There already; they stay as they are, since reading them took their memory.
    """

    def __init__(self, records: Mapping[str, TrialRecord] | None = None) -> None:
        self._records: dict[str, TrialRecord | _Packed] = dict(records or {})

    def __getitem__(self, trial_id: str) -> TrialRecord:
        found = self._records[trial_id]
        return found.record() if isinstance(found, _Packed) else found

    def __setitem__(self, trial_id: str, record: TrialRecord) -> None:
        self._records[trial_id] = _Packed.of(record)

    def __delitem__(self, trial_id: str) -> None:
        del self._records[trial_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._records)

    def __len__(self) -> int:
        return len(self._records)

    def __contains__(self, trial_id: object) -> bool:
        return trial_id in self._records
