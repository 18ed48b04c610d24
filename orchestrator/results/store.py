"""The result store: one sealed JSON file per finished trial or measure, the truth of a sweep.

A file is believed only when its checksum matches its content and its schema is one that we read. Files are
written by the driver alone, each to a temporary sibling that is flushed and renamed, so a reader sees the old
one, the new one, or none. Storage is a local folder or any fsspec URL (an object store's put is atomic by
itself).
"""

from __future__ import annotations

import json
import logging
import posixpath
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem
from pydantic import ValidationError

from orchestrator.results.records import FailureRecord, SealedRecord, TrialRecord
from search_spaces.errors import ConfigError, CorruptStoreError, SetupError, SweepError
from search_spaces.fingerprint import fingerprint
from tasks.atomic import write_atomic

log = logging.getLogger(__name__)
R = TypeVar("R", bound=SealedRecord)

IDENTITY_FILE = "store.json"


@dataclass
class Unreadable:
    """A stored file that is not believed, and why."""

    path: str
    reason: str


@dataclass
class Scan(Generic[R]):
    """All records of one kind, by id, and what was left out."""

    records: dict[str, R] = field(default_factory=dict)
    unreadable: list[Unreadable] = field(default_factory=list)


class ResultStore:
    """Sealed records of one sweep below ``url``, a local path or fsspec URL.

    Layout: ``trials/<trial_id>/result.json`` (the completion marker), ``trials/<trial_id>/failure.json`` (the
    latest failed attempt) and ``measures/<measure_id>/result.json``.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            self._fs, self._base = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise ConfigError(
                "--storage must be a URL that fsspec can open",
                f"{url}: {str(error).splitlines()[0]}",
                "install the package it names, or use a path",
            ) from None
        self._local = isinstance(self._fs, LocalFileSystem)

    def save(self, record: SealedRecord) -> None:
        """Write a record; a trial's result is its completion marker, and its earlier failure is forgotten.

        Raises:
            SetupError: when the storage is full or cannot be written; the previous file is still whole.
        """
        self._write(self._path(record.folder, record.record_id, record.file), record.plain())
        if isinstance(record, TrialRecord):
            failure = self._path(FailureRecord.folder, record.record_id, FailureRecord.file)
            if self._fs.exists(failure):
                self._fs.rm(failure)

    def scan(self, kind: type[R]) -> Scan[R]:
        """Read all records of ``kind``, by id."""
        scan: Scan[R] = Scan()
        for record_id, path in self._files(kind.folder, kind.file):
            try:
                scan.records[record_id] = self._read(path, kind)
            except CorruptStoreError as error:
                log.warning("%s", error)
                scan.unreadable.append(Unreadable(path, error.value))
        return scan

    def read(self, kind: type[R], record_id: str) -> R | None:
        """Read one record; None when there is none.

        Raises:
            CorruptStoreError: when the file is there but cannot be believed.
        """
        path = self._path(kind.folder, record_id, kind.file)
        return self._read(path, kind) if self._fs.exists(path) else None

    def identity(self) -> str | None:
        """Return what tells this store from every other one, wherever it is moved; None before a run."""
        path = self._path(IDENTITY_FILE)
        try:
            found = json.loads(self._fs.cat_file(path)) if self._fs.exists(path) else {}
            return str(found["store_id"]) if found else None
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
            self._put(self._path(IDENTITY_FILE), json.dumps({"store_id": found}).encode())
        return found

    def _path(self, *parts: str) -> str:
        return posixpath.join(self._base, *parts)

    def _files(self, kind: str, name: str) -> Iterator[tuple[str, str]]:
        folder = self._path(kind)
        self._fs.invalidate_cache()
        if not self._fs.isdir(folder):
            return
        for path in sorted(self._fs.glob(posixpath.join(folder, "*", name))):
            yield posixpath.basename(posixpath.dirname(path)), path

    def _read(self, path: str, kind: type[R]) -> R:
        def broken(reason: str) -> CorruptStoreError:
            way_out = "run the sweep again: this cell is done anew and the file replaced"
            return CorruptStoreError("A stored record must be whole", f"{path}: {reason}", way_out)

        try:
            sealed = json.loads(self._fs.cat_file(path))
            record, seal = sealed["record"], sealed["sha256"]
            intact = seal == fingerprint(record)
        except (ValueError, KeyError, TypeError):
            raise broken("truncated or not a sealed record") from None
        if not intact:
            raise broken("checksum does not match its content")
        if "schema_version" in sealed:  # version 1 kept it beside the record
            record = {"schema_version": sealed["schema_version"], **record}
        try:
            return kind.model_validate(record, strict=False)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise broken(f"{where}: {first['msg'].removeprefix('Value error, ')}") from None
        except (SweepError, KeyError, TypeError) as error:
            raise broken(f"not a record of this kind: {error}") from None

    def _write(self, path: str, record: dict[str, Any]) -> None:
        sealed = {"sha256": fingerprint(record), "record": record}
        self._put(path, json.dumps(sealed, indent=1, allow_nan=False).encode())

    def _put(self, path: str, data: bytes) -> None:
        try:
            if self._local:
                write_atomic(path, data)
            else:
                self._fs.pipe_file(path, data)
        except OSError as error:
            raise SetupError(
                "The result store must be writable",
                f"{path} ({len(data):,} bytes needed): {error.strerror or error}; {free_space(self._base)}",
                "free space or fix the permissions, then run the same command again: what is done is kept",
            ) from error


def free_space(path: str) -> str:
    """Say how many bytes are free where ``path`` lies, for messages."""
    try:
        return f"{shutil.disk_usage(path).free:,} bytes free"
    except OSError:
        return "free space unknown"
