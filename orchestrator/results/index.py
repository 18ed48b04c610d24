"""An index of a sweep's results: what a look needs of each, so that not every record is read again.

It is a cache in one SQLite file below the root: a row for each record file of a certain size and time. A row
that is not whole, or whose file has changed, counts for nothing, and the file may always be thrown away: what
it lacks is read from the store. No number of a table comes from it.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import zlib
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from orchestrator.results.records import TrialRecord, missing
from search_spaces.specs import Measurement, TrialSpec
from tasks.trials.records import TrialStatus

log = logging.getLogger(__name__)

VERSION = TrialRecord.version
"""Of the rows; a file of another one is made anew."""


@dataclass(frozen=True, slots=True)
class TrialOutline:
    """What decides whether a result counts, and what its trial cost; attributes as of :class:`TrialRecord`.

    Attributes:
        has_weights: Whether the trained network is kept.
        has_predictions: Whether its predictions are.
        peak_bytes: What the whole batches of its process took on a card; 0 where that is not known.
    """

    trial_id: str
    spec: TrialSpec
    data_fingerprint: str
    status: TrialStatus
    device: str
    num_threads: int
    gpu_share: float
    started_at: float
    finished_at: float
    measured_at: float | None
    has_weights: bool
    has_predictions: bool
    gpu_name: str
    peak_bytes: int

    @property
    def on_gpu(self) -> bool:
        """Whether it ran on a card."""
        return self.device.startswith("cuda")

    def lacks(self, asked: TrialSpec) -> tuple[Measurement, ...]:
        """See :meth:`TrialRecord.lacks`."""
        return missing(self.spec, asked, kept_without=self.has_weights and not self.has_predictions)

    @classmethod
    def of(cls, record: TrialRecord) -> TrialOutline:
        """Return the outline of a record."""
        result = record.result
        return cls(
            trial_id=record.trial_id,
            spec=record.spec,
            data_fingerprint=record.data_fingerprint,
            status=result.status,
            device=result.device,
            num_threads=result.num_threads,
            gpu_share=record.gpu_share,
            started_at=record.started_at,
            finished_at=record.finished_at,
            measured_at=record.measured_at,
            has_weights=result.weights is not None,
            has_predictions=result.predictions is not None,
            gpu_name=record.gpu_name,
            peak_bytes=result.peak_memory_bytes if result.micro_batch is None else 0,
        )


Stamped = tuple[str, TrialOutline]
"""An outline with the stamp of the file that it was read from."""


class Index:
    """The index of one sweep at ``path``; it may be missing, and may be of a root that cannot be written."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> dict[str, Stamped]:
        """Return what is whole of it, by trial id."""
        if not self._path.is_file():
            return {}
        try:
            with self._opened() as database:
                rows = database.execute("SELECT stamp, outline, seal FROM outlines").fetchall()
        except sqlite3.Error as error:
            log.info("the index %s cannot be read: %s", self._path, error)
            return {}
        found: dict[str, Stamped] = {}
        for stamp, text, seal in rows:
            if seal == _seal(stamp, text):
                outline = _parsed(text)
                found[outline.trial_id] = (stamp, outline)
        return found

    def add(self, found: Iterable[Stamped], *, anew: bool = False) -> None:
        """Keep outlines; that they cannot be kept costs time at the next look and nothing else.

        Args:
            found: What to keep; without a stamp nobody could tell whether it still holds.
            anew: Whether they are all that there is.
        """
        texts = ((stamp, outline, _text(outline)) for stamp, outline in found if stamp)
        rows = [(outline.trial_id, stamp, text, _seal(stamp, text)) for stamp, outline, text in texts]
        if not self._path.parent.is_dir() or (self._path.exists() and not self._path.is_file()):
            return
        for again in (True, False):
            try:
                with self._opened() as database:
                    if anew:
                        database.execute("DELETE FROM outlines")
                    database.executemany("INSERT OR REPLACE INTO outlines VALUES (?, ?, ?, ?)", rows)
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
            if database.execute("PRAGMA user_version").fetchone() != (VERSION,):
                database.execute("DROP TABLE IF EXISTS outlines")
                columns = "trial_id TEXT PRIMARY KEY, stamp TEXT, outline TEXT, seal INTEGER"
                database.execute(f"CREATE TABLE outlines ({columns})")
                database.execute(f"PRAGMA user_version = {VERSION}")
            yield database


_VALUES = tuple(name for name in TrialOutline.__slots__ if name != "spec")


def _text(outline: TrialOutline) -> str:
    values = [getattr(outline, name) for name in _VALUES]
    return json.dumps([values, outline.spec.model_dump_json()], separators=(",", ":"))


def _parsed(text: str) -> TrialOutline:
    values, spec = json.loads(text)
    fields = dict(zip(_VALUES, values, strict=True))
    fields["status"] = TrialStatus(fields["status"])
    return TrialOutline(spec=TrialSpec.model_validate_json(spec), **fields)


def _seal(stamp: str, text: str) -> int:
    return zlib.crc32(f"{stamp} {text}".encode())
