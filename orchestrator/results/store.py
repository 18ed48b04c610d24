"""The result store: one sealed JSON file per finished trial or measure, the truth of a sweep.

A file is believed only when its checksum matches its content and its schema is one that we read. Files are
written by the driver alone, each to a temporary sibling that is flushed and renamed, so a reader sees the old
one, the new one, or none: :mod:`orchestrator.results.storage`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import posixpath
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import ValidationError

from orchestrator.results.records import FailureRecord, SealedRecord, TrialRecord
from orchestrator.results.storage import Content, Folder, Found, open_storage
from search_spaces.errors import CorruptStoreError, NewerRecordError, SweepError
from search_spaces.fingerprint import fingerprint

log = logging.getLogger(__name__)
R = TypeVar("R", bound=SealedRecord)

IDENTITY_FILE = "store.json"


@dataclass
class Unreadable:
    """A stored file that is not believed, and why."""

    path: str
    reason: str


@dataclass
class Newer(Unreadable):
    """A stored file that a newer version made: nothing may be written over it."""


@dataclass
class Scan(Generic[R]):
    """All records of one kind, by id, and what was left out.

    Attributes:
        records: What is believed.
        unreadable: What is not.
        stamps: Of the files of ``records``, see :class:`Found`.
    """

    records: dict[str, R] = field(default_factory=dict)
    unreadable: list[Unreadable] = field(default_factory=list)
    stamps: dict[str, str] = field(default_factory=dict)


class ResultStore:
    """Sealed records of one sweep below ``url``, a local path or the URL of an object store.

    Layout: ``trials/<trial_id>/result.json`` (the completion marker), ``trials/<trial_id>/failure.json`` (the
    latest failed attempt) and ``measures/<measure_id>/result.json``.
    """

    def __init__(self, url: str) -> None:
        """Open it; nothing is asked or made.

        Raises:
            ConfigError: see :func:`open_storage`.
        """
        self.url = url
        self._files = open_storage(url)

    def save(self, record: SealedRecord) -> None:
        """Write a record; a trial's result is its completion marker, and its earlier failure is forgotten.

        Raises:
            SetupError: when the storage is full or cannot be written; the previous file is still whole.
        """
        self._files.write(self._path(record.folder, record.record_id, record.file), self.sealed(record))
        if isinstance(record, TrialRecord):
            self._files.remove(self._path(FailureRecord.folder, record.record_id, FailureRecord.file))

    @staticmethod
    def sealed(record: SealedRecord) -> bytes:
        """Return what a record's file holds."""
        plain = record.plain()
        sealed = {"sha256": fingerprint(plain), "record": plain}
        return json.dumps(sealed, indent=1, allow_nan=False).encode()

    def listing(self, kind: type[R]) -> dict[str, Found]:
        """Return the files of ``kind``, by id, without reading them."""
        listed = self._files.find(self._path(kind.folder), kind.file)
        return {posixpath.basename(posixpath.dirname(file.path)): file for file in listed}

    def stamp(self, record: SealedRecord) -> str:
        """Return the stamp of a record's file as it is now; empty where it cannot be asked."""
        return self._files.stamp(self._path(record.folder, record.record_id, record.file))

    def scan(self, kind: type[R], files: Iterable[Found] | None = None) -> Scan[R]:
        """Read all records of ``kind``, or those in ``files`` alone, by id."""
        scan: Scan[R] = Scan()
        if files is None:
            files = self._files.find(self._path(kind.folder), kind.file)
        for file, content in self._files.read_many(files):
            record_id = posixpath.basename(posixpath.dirname(file.path))
            try:
                scan.records[record_id] = _believed(file.path, content, kind, record_id)
                scan.stamps[record_id] = file.stamp
            except CorruptStoreError as error:
                log.warning("%s", error)
                left_out = Newer if isinstance(error, NewerRecordError) else Unreadable
                scan.unreadable.append(left_out(file.path, error.value.removeprefix(f"{file.path}: ")))
        return scan

    def read(self, kind: type[R], record_id: str) -> R | None:
        """Read one record; None when there is none.

        Raises:
            CorruptStoreError: when the file is there but cannot be believed.
            NewerRecordError: when a newer version made it.
        """
        path = self._path(kind.folder, record_id, kind.file)
        try:
            found: Content = self._files.read(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            found = error
        return _believed(path, found, kind, record_id)

    @property
    def lock(self) -> Path | None:
        """File that the one driver of a store holds; None for an object store, which has no locks."""
        return Path(self._files.base) / "driver.lock" if isinstance(self._files, Folder) else None

    def identity(self) -> str | None:
        """Return what tells this store from every other one, wherever it is moved; None before a run."""
        path = self._path(IDENTITY_FILE)
        try:
            return str(json.loads(self._files.read(path))["store_id"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise CorruptStoreError(
                "The result store's own id must be whole",
                f"{path}: {error}",
                "delete the file: the next run makes a new one, and MLflow gets the runs again under it",
            ) from None

    def own_identity(self) -> str:
        """Return :meth:`identity`, made where there is none yet.

        Raises:
            CorruptStoreError: when it cannot be read.
            SetupError: when it cannot be written.
        """
        found = self.identity()
        if found is None:
            found = secrets.token_hex(8)
            self._files.write(self._path(IDENTITY_FILE), json.dumps({"store_id": found}).encode())
        return found

    def _path(self, *parts: str) -> str:
        return posixpath.join(self._files.base, *parts)


def _believed(path: str, found: Content, kind: type[R], record_id: str) -> R:
    """Return the record that a file holds, when its seal is whole and it lies in its own cell's folder.

    Raises:
        CorruptStoreError: saying why it is not believed.
        NewerRecordError: when a newer version made it.
    """

    def broken(reason: str) -> CorruptStoreError:
        way_out = "run the sweep again: this cell is done anew and the file replaced"
        return CorruptStoreError("A stored record must be whole", f"{path}: {reason}", way_out)

    if isinstance(found, OSError):
        raise broken(found.strerror or type(found).__name__)
    try:
        sealed = json.loads(found)
        record, seal = sealed["record"], sealed["sha256"]
        intact = seal == _seal(record)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise broken("truncated or not a sealed record") from None
    if not intact:
        raise broken("checksum does not match its content")
    try:
        version = record.get("schema_version")
        if version is None:
            raise broken("it has no schema version")
        if isinstance(version, int) and version > kind.version:
            reason = f"made by a newer isweep (schema version {version}, this one reads {kind.version})"
            rule = "A stored record must be of a version that this isweep knows"
            raise NewerRecordError(rule, f"{path}: {reason}", "update isweep; the file is left as it is")
        read = kind.model_validate(record, strict=False)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise broken(f"{where}: {first['msg'].removeprefix('Value error, ')}") from None
    except CorruptStoreError:
        raise
    except (SweepError, KeyError, TypeError, AttributeError) as error:
        raise broken(f"not a record of this kind: {error}") from None
    if read.record_id != record_id:
        raise broken(f"the record of another cell, {read.record_id}")
    return read


def _seal(parsed: object) -> str:
    """Return the fingerprint of what ``json.loads`` gave: its plain values need no spelling of our own."""
    text = json.dumps(parsed, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
