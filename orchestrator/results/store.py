"""What a sweep's store seals, and the store itself: one sealed JSON file per finished trial or
measure.

A file is believed only when its checksum matches its content, it lies in its own cell's folder and
its schema is one that we read: each kind counts its own version. Records are written by the driver
alone; a reader sees the old one, the new one, or none: :mod:`.storage`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import posixpath
import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Generic, Literal, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json, to_json

from orchestrator.results.records import FailureRecord, SealedRecord, TrialRecord
from orchestrator.results.storage import Content, Folder, Found, Storage, open_storage
from search_spaces.errors import CorruptStoreError, NewerRecordError, SetupError, SweepError
from search_spaces.fingerprint import fingerprint
from tasks.finding import Finding
from tasks.trials.records import KeptFile

log = logging.getLogger(__name__)

R = TypeVar("R", bound=SealedRecord)

MOST_EVENTS = 200
"""Of one cell; lost nodes are tried again without limit. The oldest go."""


@dataclass
class Unreadable:
    """A stored file that is not believed, and why; nothing may be written over one that is
    ``newer``.
    """

    path: str
    reason: str
    newer: bool = False


@dataclass
class Scan(Generic[R]):
    """All records of one kind that are believed, by id, and what was left out."""

    records: dict[str, R] = field(default_factory=dict)
    unreadable: list[Unreadable] = field(default_factory=list)


class FileKind(StrEnum):
    """A kind of file that is kept of a trial beside its result; the folder that it lies in."""

    WEIGHTS = "weights"
    PREDICTIONS = "predictions"
    CHECKPOINT = "checkpoints"
    """The state of a training so far, which lives while its trial does, with its checksum before
    it."""


_ENDINGS = {
    FileKind.WEIGHTS: "safetensors",
    FileKind.PREDICTIONS: "parquet",
    FileKind.CHECKPOINT: "pt",
}

What = Literal["started", "finished", "failed", "stopped"]


class Event(Finding):
    """Something that happened to a cell, in seconds since 1970 by the driver's clock; attempts are
    from 1.

    ``said`` is of a failure its kind and reason, and whether there is another attempt; of an end,
    how.
    """

    at: float
    what: What
    attempt: int
    node: str = ""
    said: str = ""


_EVENTS = TypeAdapter(list[Event])


class ResultStore:
    """What one sweep keeps below ``url``, a local path or the URL of an object store.

    ``trials/<trial_id>/`` has ``result.json`` (the completion marker), ``failure.json`` (the latest
    failed attempt), ``history.json`` and ``attempt-<n>.log`` (the cell's story),
    ``measures/<measure_id>/`` has ``result.json``. ``weights``, ``predictions`` and ``checkpoints``
    of trials are written before the result that names their checksums, and never go to MLflow.

    Methods raise SetupError where the storage is full, away, or not to be read or written, which
    leaves whole what was there; and CorruptStoreError for a file that is there and cannot be
    believed.
    """

    def __init__(self, url: str | Storage) -> None:
        """Open it, see :func:`open_storage`; nothing is asked or made."""
        self.url = url
        self._files = open_storage(url)

    def save(self, record: SealedRecord) -> str:
        """Write a record; returns its file's stamp. A trial that has its result has no failure any
        more.
        """
        plain = record.plain()
        data = to_json({"sha256": fingerprint(plain), "record": plain}, indent=1)
        stamp = self._files.write(self._path(record.folder, record.record_id, record.file), data)
        if isinstance(record, TrialRecord):
            self._files.remove(
                self._path(FailureRecord.folder, record.record_id, FailureRecord.file)
            )
        return stamp

    def listing(self, kind: type[SealedRecord]) -> dict[str, Found]:
        """Return the files of ``kind``, by id, without reading them."""
        return {_id(file): file for file in self._files.find(self._path(kind.folder), kind.file)}

    def scan(self, kind: type[R], files: Iterable[Found] | None = None) -> Scan[R]:
        """Read all records of ``kind``, or those in ``files`` alone, by id."""
        scan, files = Scan[R](), self.listing(kind).values() if files is None else files
        scan.records.update(self.each(kind, files, scan.unreadable))
        return scan

    def each(
        self, kind: type[R], files: Iterable[Found], unreadable: list[Unreadable]
    ) -> Iterator[tuple[str, R]]:
        """Yield the records in ``files`` with their ids; those that are not believed go to
        ``unreadable``.
        """
        for file, content in self._files.read_many(files):
            try:
                yield _id(file), _believed(file.path, content, kind, _id(file))
            except CorruptStoreError as error:
                log.warning("%s", error)
                reason = error.value.removeprefix(f"{file.path}: ")
                unreadable.append(
                    Unreadable(file.path, reason, isinstance(error, NewerRecordError))
                )

    def read(self, kind: type[R], record_id: str) -> R | None:
        """Read one record; None when there is none, and NewerRecordError when a newer version made
        it.
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
        """File that the one driver of a store holds; None for an object store, which has no
        locks.
        """
        return Path(self._files.base) / "driver.lock" if isinstance(self._files, Folder) else None

    def identity(self, *, make: bool = False) -> str | None:
        """Return what tells this store from every other one, wherever it is moved; made if asked,
        or None.
        """
        path, found = self._path("store.json"), None
        try:
            return str(json.loads(self._files.read(path))["store_id"])
        except FileNotFoundError:
            if make:
                found = secrets.token_hex(8)
                self._files.write(path, json.dumps({"store_id": found}).encode())
            return found
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise CorruptStoreError(
                "The result store's own id must be whole",
                f"{path}: {error}",
                (
                    "delete the file: the next run makes a new one, and MLflow gets the runs again "
                    "under it"
                ),
            ) from None

    # Files of trials, whole or not at all.

    def put(self, kind: FileKind, trial_id: str, data: bytes) -> KeptFile:
        """Keep a file of a trial."""
        seal = hashlib.sha256(data)
        sealed = seal.digest() + data if kind == FileKind.CHECKPOINT else data
        self._files.write(self._file(kind, trial_id), sealed)
        return KeptFile(sha256=seal.hexdigest(), num_bytes=len(data))

    def get(self, kind: FileKind, trial_id: str, kept: KeptFile) -> bytes:
        """Return a file that was kept; CorruptStoreError where it is gone or not what was kept."""
        path, found = self._file(kind, trial_id), "checksum does not match"
        try:
            data = self._files.read(path)
            if hashlib.sha256(data).hexdigest() == kept.sha256:
                return data
        except OSError as error:
            found = "gone" if isinstance(error, FileNotFoundError) else error.strerror or str(error)
        hint = "run the sweep again: made anew, from kept weights where there are some"
        raise CorruptStoreError(f"Kept {kind} must be whole", f"{path}: {found}", hint)

    def checkpoint(self, trial_id: str) -> bytes | None:
        """Return a trial's checkpoint; None where there is none that is whole."""
        try:
            sealed = self._files.read(self._file(FileKind.CHECKPOINT, trial_id))
        except OSError:
            return None
        return sealed[32:] if hashlib.sha256(sealed[32:]).digest() == sealed[:32] else None

    def forget_checkpoint(self, trial_id: str) -> None:
        """Remove a trial's checkpoint: it has a result. One that stays costs room alone."""
        try:
            self._files.remove(self._file(FileKind.CHECKPOINT, trial_id))
        except (SetupError, OSError) as error:
            log.warning("the checkpoint of %s stays: %s", trial_id, error)

    def damaged(self, kind: FileKind, kept: Mapping[str, KeptFile]) -> set[str]:
        """Return of which trials a file is gone or not what was kept; ``kept`` is what was, by
        trial id.
        """
        ids = {self._file(kind, trial_id): trial_id for trial_id in kept}
        found = self._files.read_many(Found(path, "") for path in ids) if ids else ()
        whole = {
            ids[file.path]
            for file, data in found
            if isinstance(data, bytes)
            and hashlib.sha256(data).hexdigest() == kept[ids[file.path]].sha256
        }
        return kept.keys() - whole

    # The story of each cell, for people: nothing is decided by it, and one that is not kept costs
    # nothing.

    def tell(self, trial_id: str, event: Event, log_text: str = "") -> None:
        """Add an event to a cell's story; ``log_text`` is what its attempt logged, which has ended
        then.
        """
        try:
            events = []
            try:
                events = self.story(trial_id)
            except CorruptStoreError as error:
                log.warning("the story of %s begins anew: %s", trial_id, error)
            story = _EVENTS.dump_json([*events, event][-MOST_EVENTS:], indent=1)
            path = self._path(TrialRecord.folder, trial_id, "history.json")
            self._files.write(path, story, durable=False)
            if log_text:
                self._files.write(
                    self.log_path(trial_id, event.attempt), log_text.encode(), durable=False
                )
        except SweepError as error:
            log.warning("the story of %s is not kept: %s", trial_id, error)

    def story(self, trial_id: str) -> list[Event]:
        """Return what happened to a cell, oldest first."""
        path = self._path(TrialRecord.folder, trial_id, "history.json")
        try:
            return _EVENTS.validate_json(self._files.read(path))
        except FileNotFoundError:
            return []
        except (OSError, ValidationError) as error:
            reason = str(error).splitlines()[0]
            hint = "delete it: nothing is decided by it"
            raise CorruptStoreError(
                "A cell's story must be whole", f"{path}: {reason}", hint
            ) from None

    def log_path(self, trial_id: str, attempt: int) -> str:
        """Return where an attempt's log is, if it left one."""
        return self._path(TrialRecord.folder, trial_id, f"attempt-{attempt}.log")

    def log(self, trial_id: str, attempt: int) -> str | None:
        """Return what an attempt logged; None where it left nothing."""
        try:
            return self._files.read(self.log_path(trial_id, attempt)).decode(errors="replace")
        except OSError:
            return None

    def _file(self, kind: FileKind, trial_id: str) -> str:
        return self._path(kind, f"{trial_id}.{_ENDINGS[kind]}")

    def _path(self, *parts: str) -> str:
        return posixpath.join(self._files.base, *parts)


def _id(file: Found) -> str:
    """Return whose a file is: the name of its folder."""
    return posixpath.basename(posixpath.dirname(file.path))


def _believed(path: str, found: Content, kind: type[R], record_id: str) -> R:
    """Return the record that a file holds, when its seal is whole and it lies in its own cell's
    folder.

    CorruptStoreError says why it is not believed; NewerRecordError, that a newer version made it.
    """

    def broken(reason: str) -> CorruptStoreError:
        hint = "run the sweep again: this cell is done anew and the file replaced"
        return CorruptStoreError("A stored record must be whole", f"{path}: {reason}", hint)

    if isinstance(found, OSError):
        raise broken(found.strerror or type(found).__name__)
    try:
        sealed = from_json(found)
        record = sealed["record"]
        # The fingerprint of what was read: plain values need no spelling of our own.
        text = json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False)
        intact = sealed["sha256"] == hashlib.sha256(text.encode()).hexdigest()
    except (ValueError, KeyError, TypeError, RecursionError):
        raise broken("truncated or not a sealed record") from None
    version = record.get("schema_version") if isinstance(record, dict) else None
    if not intact:
        raise broken("checksum does not match its content")
    if version is None:
        raise broken("it has no schema version")
    if isinstance(version, int) and version > kind.version:
        reason = f"made by a newer isweep (schema version {version}, this one reads {kind.version})"
        rule = "A stored record must be of a version that this isweep knows"
        raise NewerRecordError(
            rule, f"{path}: {reason}", "update isweep; the file is left as it is"
        )
    try:
        read = kind.model_validate(record, strict=False)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise broken(f"{where}: {first['msg'].removeprefix('Value error, ')}") from None
    except (SweepError, KeyError, TypeError, AttributeError) as error:
        raise broken(f"not a record of this kind: {error}") from None
    if read.record_id != record_id:
        raise broken(f"the record of another cell, {read.record_id}")
    return read
