"""The result store: one sealed JSON file per finished trial or measure, the truth of a sweep.

A file is believed only when its checksum matches its content and its schema is ours. Files are written by
the driver alone, each to a temporary sibling that is flushed and renamed, so a reader sees the old one, the
new one, or none. Storage is a local folder or any fsspec URL (an object store's put is atomic by itself).
"""

from __future__ import annotations

import json
import logging
import posixpath
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from search_spaces.errors import ConfigError, CorruptStoreError, SetupError
from search_spaces.fingerprint import fingerprint
from search_spaces.specs import SCHEMA_VERSION
from tasks.atomic import write_atomic

log = logging.getLogger(__name__)
Record = dict[str, Any]

RESULT = "result.json"
FAILURE = "failure.json"


@dataclass
class Unreadable:
    """A stored file that is not believed, and why."""

    path: str
    reason: str


@dataclass
class Scan:
    """All records of one kind, by id, and what was left out."""

    records: dict[str, Record] = field(default_factory=dict)
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

    def save_result(self, kind: str, record_id: str, record: Record) -> None:
        """Write the completion marker of a trial or measure and forget its earlier failure.

        Args:
            kind: ``"trials"`` or ``"measures"``.
            record_id: The trial's or measure's id.
            record: Plain JSON, finite numbers only.

        Raises:
            SetupError: when the storage is full or cannot be written; the previous file is still whole.
        """
        self._write(self._path(kind, record_id, RESULT), record)
        failure = self._path(kind, record_id, FAILURE)
        if self._fs.exists(failure):
            self._fs.rm(failure)

    def save_failure(self, kind: str, record_id: str, record: Record) -> None:
        """Write the latest failed attempt of a trial or measure; see :meth:`save_result`."""
        self._write(self._path(kind, record_id, FAILURE), record)

    def results(self, kind: str) -> Scan:
        """Read all completion markers of ``kind``."""
        return self._scan(kind, RESULT)

    def failures(self, kind: str) -> Scan:
        """Read the latest failures of ``kind``; those of cells that finished since are gone."""
        return self._scan(kind, FAILURE)

    def result(self, kind: str, record_id: str) -> Record | None:
        """Read one completion marker; None when there is none.

        Raises:
            CorruptStoreError: when the file is there but cannot be believed.
        """
        path = self._path(kind, record_id, RESULT)
        return self._read(path) if self._fs.exists(path) else None

    def _path(self, *parts: str) -> str:
        return posixpath.join(self._base, *parts)

    def _scan(self, kind: str, name: str) -> Scan:
        scan = Scan()
        for record_id, path in self._files(kind, name):
            try:
                scan.records[record_id] = self._read(path)
            except CorruptStoreError as error:
                log.warning("%s", error)
                scan.unreadable.append(Unreadable(path, error.value))
        return scan

    def _files(self, kind: str, name: str) -> Iterator[tuple[str, str]]:
        folder = self._path(kind)
        self._fs.invalidate_cache()
        if not self._fs.isdir(folder):
            return
        for path in sorted(self._fs.glob(posixpath.join(folder, "*", name))):
            yield posixpath.basename(posixpath.dirname(path)), path

    def _read(self, path: str) -> Record:
        def broken(reason: str) -> CorruptStoreError:
            way_out = "run the sweep again: this cell is done anew and the file replaced"
            return CorruptStoreError("A stored record must be whole", f"{path}: {reason}", way_out)

        try:
            sealed = json.loads(self._fs.cat_file(path))
            record, seal, schema = sealed["record"], sealed["sha256"], sealed["schema_version"]
        except (ValueError, KeyError, TypeError):
            raise broken("truncated or not a sealed record") from None
        if schema != SCHEMA_VERSION:
            raise broken(f"schema version {schema!r}, this program reads {SCHEMA_VERSION}")
        if seal != fingerprint(record):
            raise broken("checksum does not match its content")
        if not isinstance(record, dict):
            raise broken("not a record")
        return record

    def _write(self, path: str, record: Record) -> None:
        sealed = {"schema_version": SCHEMA_VERSION, "sha256": fingerprint(record), "record": record}
        data = json.dumps(sealed, indent=1, allow_nan=False).encode()
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
