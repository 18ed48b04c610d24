"""What decides whether a result counts and what it cost, kept in an index for quick looks."""

from __future__ import annotations

import logging
import sqlite3
import zlib
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from pydantic import ConfigDict

from orchestrator.results.records import (
    TrialRecord,
    missing,
)
from search_spaces.specs import Measurement, TrialSpec
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
