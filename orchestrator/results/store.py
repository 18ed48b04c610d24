"""The result store of a sweep: one JSON file with its checksum per finished trial or measure.

A file is used only if its checksum fits, it lies in the folder of its own id, and its schema
version is one that this program reads. Only the driver writes records. A reader finds the old
record, the new one, or none: see :mod:`.storage`.
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
from typing import Any, Generic, Literal, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json, to_json

from orchestrator.results.records import FailureRecord, StoredRecord, TrialRecord
from orchestrator.results.storage import Content, Folder, Storage, StoredFile, open_storage
from search_spaces.errors import CorruptStoreError, NewerRecordError, SetupError, SweepError
from search_spaces.fingerprint import fingerprint
from tasks.finding import Finding
from tasks.trials.records import TrialFile

log = logging.getLogger(__name__)

R = TypeVar("R", bound=StoredRecord)

MAX_EVENTS = 200
"""Events that are kept of one trial. A trial on lost nodes is retried without limit; the oldest
events are dropped."""
CHECKSUM_BYTES = 32
"""Bytes of the SHA-256 digest before a checkpoint's content."""


@dataclass
class Unreadable:
    """A stored file that is not used, and why.

    Attributes:
        path: the file.
        reason: what is wrong with it.
        newer: whether a newer version of this program wrote it; then nothing may replace it.
    """

    path: str
    reason: str
    newer: bool = False


@dataclass
class Scan(Generic[R]):
    """All usable records of one kind by id, and the files that are not used."""

    records: dict[str, R] = field(default_factory=dict)
    unreadable: list[Unreadable] = field(default_factory=list)


class FileKind(StrEnum):
    """A kind of file that is stored for a trial beside its result; the folder of such files."""

    WEIGHTS = "weights"
    PREDICTIONS = "predictions"
    CHECKPOINT = "checkpoints"
    """The state of an unfinished training, after its checksum. It is removed with the result."""


_ENDINGS = {
    FileKind.WEIGHTS: "safetensors",
    FileKind.PREDICTIONS: "parquet",
    FileKind.CHECKPOINT: "pt",
}


EventKind = Literal["started", "finished", "failed", "stopped"]


class Event(Finding):
    """Something that happened to a trial.

    Attributes:
        at: seconds since 1970 by the driver's clock.
        what: what happened.
        attempt: the attempt that it happened to, from 1.
        node: address of the worker's node.
        said: for people: of a failure its kind, its reason and whether there is another attempt;
            of an end, how it ended.
    """

    at: float
    what: EventKind
    attempt: int
    node: str = ""
    said: str = ""


_EVENTS = TypeAdapter(list[Event])


class ResultStore:
    """The result store of one sweep, at a local path or the URL of an object store.

    ``trials/<trial_id>/`` has ``result.json``, which marks the trial as done, ``failure.json`` of
    the latest failed attempt, ``history.json`` with the trial's events, and ``attempt-<n>.log``.
    ``measures/<measure_id>/`` has ``result.json``. ``weights``, ``predictions`` and ``checkpoints``
    are written before the result, which has their checksums.

    Methods raise a SetupError if the storage is full, away or not accessible; what was there stays
    as it was. They raise a CorruptStoreError for a file that is damaged.
    """

    def __init__(self, url: str | Storage) -> None:
        """Open the store, see :func:`open_storage`; nothing is requested or created."""
        self.url = url
        self._files = open_storage(url)

    def save(self, record: StoredRecord) -> str:
        """Write a record, and return the stamp of its file.

        A trial's result removes its failure.
        """
        plain = record.plain()
        # The keys are those of every stored file: they must not change.
        data = to_json({"sha256": fingerprint(plain), "record": plain}, indent=1)
        stamp = self._files.write(self._path(record.folder, record.record_id, record.file), data)
        if isinstance(record, TrialRecord):
            failure = self._path(FailureRecord.folder, record.record_id, FailureRecord.file)
            self._files.remove(failure)
        return stamp

    def listing(self, kind: type[StoredRecord]) -> dict[str, StoredFile]:
        """Return the files of a kind of record by id, without reading them."""
        return {_id(file): file for file in self._files.find(self._path(kind.folder), kind.file)}

    def scan(self, kind: type[R]) -> Scan[R]:
        """Read all records of a kind."""
        scan = Scan[R]()
        files = self.listing(kind).values()
        scan.records.update(self.read_each(kind, files, scan.unreadable))
        return scan

    def read_each(
        self, kind: type[R], files: Iterable[StoredFile], unreadable: list[Unreadable]
    ) -> Iterator[tuple[str, R]]:
        """Yield the usable records in ``files`` with their ids.

        Args:
            kind: the kind of record.
            files: of :meth:`listing`.
            unreadable: files that are not used are added to it.
        """
        for file, content in self._files.read_many(files):
            try:
                yield _id(file), _parse_record(file.path, content, kind, _id(file))
            except _UnusableRecord as error:
                log.warning("%s", error.for_user())
                unreadable.append(Unreadable(file.path, error.reason, error.is_newer))

    def read(self, kind: type[R], record_id: str) -> R | None:
        """Return one record, or None if there is none.

        Raises:
            CorruptStoreError: it is damaged.
            NewerRecordError: a newer version of this program wrote it.
        """
        path = self._path(kind.folder, record_id, kind.file)
        content: Content
        try:
            content = self._files.read(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            content = error
        try:
            return _parse_record(path, content, kind, record_id)
        except _UnusableRecord as error:
            raise error.for_user() from None

    @property
    def lock(self) -> Path | None:
        """Lock file of the store's one driver; None for an object store, which has no locks."""
        if isinstance(self._files, Folder):
            return Path(self._files.base) / "driver.lock"
        return None

    def store_id(self, *, create: bool = False) -> str | None:
        """Return the id of this store, which it keeps wherever it is moved.

        Args:
            create: create the id if there is none.

        Returns:
            The id; None if there is none.
        """
        path = self._path("store.json")
        try:
            return str(json.loads(self._files.read(path))["store_id"])
        except FileNotFoundError:
            if not create:
                return None
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise CorruptStoreError(
                f"The id of the result store in {path} is damaged: {error}",
                hint="Delete the file. The next run creates a new id, and sends the results to "
                "MLflow again",
            ) from None
        store_id = secrets.token_hex(8)
        self._files.write(path, json.dumps({"store_id": store_id}).encode())
        return store_id

    # Files of trials.

    def put(self, kind: FileKind, trial_id: str, data: bytes) -> TrialFile:
        """Store a file of a trial, and return its checksum and size."""
        checksum = hashlib.sha256(data)
        content = data
        if kind == FileKind.CHECKPOINT:
            # No record has a checkpoint's checksum: it is written before its training has a result.
            content = checksum.digest() + data
        self._files.write(self._file_path(kind, trial_id), content)
        return TrialFile(sha256=checksum.hexdigest(), num_bytes=len(data))

    def get(self, kind: FileKind, trial_id: str, file: TrialFile) -> bytes:
        """Return a stored file of a trial.

        Args:
            kind: what the file holds.
            trial_id: the trial.
            file: its checksum, from the trial's record.

        Raises:
            CorruptStoreError: the file is gone or has another checksum.
        """
        path = self._file_path(kind, trial_id)
        problem = "has another checksum than the trial's record says"
        try:
            data = self._files.read(path)
            if hashlib.sha256(data).hexdigest() == file.sha256:
                return data
        except FileNotFoundError:
            problem = "does not exist"
        except OSError as error:
            problem = f"cannot be read: {error.strerror or error}"
        raise CorruptStoreError(
            f"The file {path} of stored {kind} {problem}",
            hint="Run the sweep again, which makes the file again",
        )

    def checkpoint(self, trial_id: str) -> bytes | None:
        """Return a trial's checkpoint; None if there is none or it is damaged."""
        try:
            content = self._files.read(self._file_path(FileKind.CHECKPOINT, trial_id))
        except OSError:
            return None
        checksum = content[:CHECKSUM_BYTES]
        data = content[CHECKSUM_BYTES:]
        if hashlib.sha256(data).digest() != checksum:
            return None
        return data

    def remove_checkpoint(self, trial_id: str) -> None:
        """Remove the checkpoint of a trial that has a result; one that stays only takes space."""
        try:
            self._files.remove(self._file_path(FileKind.CHECKPOINT, trial_id))
        except (SetupError, OSError) as error:
            log.warning("the checkpoint of %s is not removed: %s", trial_id, error)

    def damaged_files(self, kind: FileKind, expected: Mapping[str, TrialFile]) -> set[str]:
        """Return the ids of trials whose file is gone or damaged.

        Args:
            kind: what the files hold.
            expected: checksums of the files by trial id.
        """
        trial_ids = {self._file_path(kind, trial_id): trial_id for trial_id in expected}
        intact = set()
        if trial_ids:
            files = [StoredFile(path, stamp="") for path in trial_ids]
            for file, content in self._files.read_many(files):
                trial_id = trial_ids[file.path]
                if isinstance(content, bytes):
                    checksum = hashlib.sha256(content).hexdigest()
                    if checksum == expected[trial_id].sha256:
                        intact.add(trial_id)
        return expected.keys() - intact

    # Events and logs of trials are for people. No decision depends on them, so a failure to write
    # them is only logged.

    def log_event(self, trial_id: str, event: Event, attempt_log: str = "") -> None:
        """Add an event to a trial's history.

        Args:
            trial_id: the trial.
            event: what happened.
            attempt_log: everything that the attempt logged, if it has ended.
        """
        try:
            earlier = []
            try:
                earlier = self.events(trial_id)
            except CorruptStoreError as error:
                log.warning("the history of %s begins anew: %s", trial_id, error)
            history = _EVENTS.dump_json([*earlier, event][-MAX_EVENTS:], indent=1)
            self._files.write(self._history_path(trial_id), history, durable=False)
            if attempt_log:
                path = self.attempt_log_path(trial_id, event.attempt)
                self._files.write(path, attempt_log.encode(), durable=False)
        except SweepError as error:
            log.warning("the history of %s is not stored: %s", trial_id, error)

    def events(self, trial_id: str) -> list[Event]:
        """Return what happened to a trial, oldest first."""
        path = self._history_path(trial_id)
        try:
            return _EVENTS.validate_json(self._files.read(path))
        except FileNotFoundError:
            return []
        except (OSError, ValidationError) as error:
            reason = str(error).splitlines()[0]
            raise CorruptStoreError(
                f"The history of a trial in {path} is damaged: {reason}",
                hint="Delete the file: no decision depends on it",
            ) from None

    def attempt_log_path(self, trial_id: str, attempt: int) -> str:
        """Return the path of an attempt's log, whether or not there is one."""
        return self._path(TrialRecord.folder, trial_id, f"attempt-{attempt}.log")

    def attempt_log(self, trial_id: str, attempt: int) -> str | None:
        """Return what an attempt logged; None if it left nothing."""
        try:
            content = self._files.read(self.attempt_log_path(trial_id, attempt))
        except OSError:
            return None
        return content.decode(errors="replace")

    def _history_path(self, trial_id: str) -> str:
        return self._path(TrialRecord.folder, trial_id, "history.json")

    def _file_path(self, kind: FileKind, trial_id: str) -> str:
        return self._path(kind, f"{trial_id}.{_ENDINGS[kind]}")

    def _path(self, *parts: str) -> str:
        return posixpath.join(self._files.base, *parts)


def _id(file: StoredFile) -> str:
    """Return the id of a record: the name of its file's folder."""
    return posixpath.basename(posixpath.dirname(file.path))


def _parse_record(path: str, content: Content, kind: type[R], record_id: str) -> R:
    """Return the record in a file.

    Args:
        path: the file, for messages.
        content: what is in it, or why it cannot be read.
        kind: the kind of record.
        record_id: the id to which the file's folder belongs.

        _UnusableRecord: the record is damaged, is of another trial, or was written by a newer
            version of this program.
    """
    if isinstance(content, OSError):
        raise _UnusableRecord(path, content.strerror or type(content).__name__)
    fields = _checked_fields(path, content)
    version = fields.get("schema_version")
    if version is None:
        raise _UnusableRecord(path, "it has no schema version")
    if isinstance(version, int) and version > kind.version:
        reason = f"it has schema version {version}, but this isweep reads {kind.version}"
        raise _UnusableRecord(path, reason, is_newer=True)
    try:
        record = kind.model_validate(fields, strict=False)
    except ValidationError as error:
        problems = error.errors()
        first = problems[0]
        field_name = ".".join(map(str, first["loc"]))
        # A newer version may have optional fields that this one does not know.
        if all(problem["type"] == "extra_forbidden" for problem in problems):
            reason = f"this isweep does not know the field {field_name}"
            raise _UnusableRecord(path, reason, is_newer=True) from None
        reason = f"{field_name}: {first['msg'].removeprefix('Value error, ')}"
        raise _UnusableRecord(path, reason) from None
    except (SweepError, KeyError, TypeError, AttributeError) as error:
        raise _UnusableRecord(path, f"it is not a record of this kind ({error})") from None
    if record.record_id != record_id:
        raise _UnusableRecord(path, f"it is the record of another trial, {record.record_id}")
    return record


def _checked_fields(path: str, content: bytes) -> dict[str, Any]:
    """Return the fields of a record whose checksum fits, or raise an _UnusableRecord."""
    try:
        document = from_json(content)
        fields = document["record"]
        # The fingerprint of plain values, which needs no canonical form of our own types.
        text = json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False)
        is_intact = document["sha256"] == hashlib.sha256(text.encode()).hexdigest()
    except (ValueError, KeyError, TypeError, RecursionError):
        raise _UnusableRecord(path, "it is truncated or not a stored record") from None
    if not is_intact:
        raise _UnusableRecord(path, "its checksum does not match its content")
    if not isinstance(fields, dict):
        raise _UnusableRecord(path, "it has no schema version")
    return fields


class _UnusableRecord(Exception):
    """A stored record that is damaged, or that a newer version of this program wrote."""

    def __init__(self, path: str, reason: str, *, is_newer: bool = False) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason
        self.is_newer = is_newer

    def for_user(self) -> CorruptStoreError:
        """Return the error that a user sees."""
        if self.is_newer:
            return NewerRecordError(
                f"The stored record {self.path} was written by a newer isweep: {self.reason}",
                hint="Update isweep. The file is left as it is",
            )
        return CorruptStoreError(
            f"The stored record {self.path} is damaged: {self.reason}",
            hint="Run the sweep again, which runs this trial again and replaces the file",
        )
