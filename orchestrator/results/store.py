"""The result store of a sweep: one JSON file with a checksum per finished trial or measure.

isweep uses a file only if its checksum is correct, if it is in the folder of its id, and if
this version of isweep can read its schema version. Only the driver writes records. A record is
replaced completely or not at all, see :mod:`.storage`.
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
from tasks.json_record import JsonRecord
from tasks.trials.records import TrialFile

log = logging.getLogger(__name__)

R = TypeVar("R", bound=StoredRecord)

MAX_EVENTS = 200
"""Largest number of events in a trial's history. If there are more, the oldest events are
deleted. The limit is necessary, because isweep retries a trial without limit if its nodes are
lost."""
CHECKSUM_BYTES = 32
"""Length of the SHA-256 digest at the start of a checkpoint file, bytes."""


@dataclass
class Unreadable:
    """A stored file that cannot be used.

    Attributes:
        path: Path of the file.
        reason: Reason why it cannot be used.
        newer: True if a newer version of isweep wrote the file. Such a file must not be
            replaced.
    """

    path: str
    reason: str
    newer: bool = False


@dataclass
class Scan(Generic[R]):
    """The records of one kind.

    Attributes:
        records: Records that can be used, by id.
        unreadable: Files that cannot be used.
    """

    records: dict[str, R] = field(default_factory=dict)
    unreadable: list[Unreadable] = field(default_factory=list)


class FileKind(StrEnum):
    """A kind of file that a trial has besides its result.

    The value is the name of the folder that contains the files.
    """

    WEIGHTS = "weights"
    """Weights of the trained network."""
    PREDICTIONS = "predictions"
    """Predictions for the test images."""
    CHECKPOINT = "checkpoints"
    """State of an unfinished training, with a checksum. The file is deleted when the trial has
    a result."""


_FILE_ENDINGS = {
    FileKind.WEIGHTS: "safetensors",
    FileKind.PREDICTIONS: "parquet",
    FileKind.CHECKPOINT: "pt",
}


EventKind = Literal["started", "finished", "failed", "stopped"]


class Event(JsonRecord):
    """An event of a trial: the start or the end of an attempt.

    The fields have the same names in the stored files.

    Attributes:
        at: Time of the event by the driver's clock, seconds since 1970.
        what: Kind of the event.
        attempt: Number of the attempt, from 1.
        node: Address of the worker's node.
        said: Text for users. For a failure: its kind, its reason, and whether the trial is
            retried. For a finished attempt: the status of the result.
    """

    at: float
    what: EventKind
    attempt: int
    node: str = ""
    said: str = ""


_EVENTS = TypeAdapter(list[Event])


class ResultStore:
    """The result store of one sweep, at a local path or the URL of an object store.

    The folder ``trials/<trial_id>/`` contains these files:

    - ``result.json``: the result. A trial with this file is done.
    - ``failure.json``: the latest failed attempt of a trial without a result.
    - ``history.json``: the trial's events.
    - ``attempt-<n>.log``: the log of the n-th attempt.

    The folder ``measures/<measure_id>/`` contains ``result.json``. Weights and predictions are
    written first. The result is written last and contains their checksums.

    If the storage is full, does not answer or refuses access, a method raises a SetupError and
    changes no stored file. If a file is damaged, a method raises a CorruptStoreError.
    """

    def __init__(self, url: str | Storage) -> None:
        """Open the store with :func:`open_storage`, without any request."""
        self.url = url
        self._files = open_storage(url)
        self._known_id = ""
        """The id of this store. The text is empty as long as the id was neither read nor
        created."""

    def save(self, record: StoredRecord) -> str:
        """Write a record, and return the stamp of its file. The stamp changes with every write.

        After a trial's result is written, its failure is deleted.
        """
        plain = record.plain()
        # Existing files have these keys, so they must not change.
        data = to_json({"sha256": fingerprint(plain), "record": plain}, indent=1)
        stamp = self._files.write(self._path(record.folder, record.record_id, record.file), data)
        if isinstance(record, TrialRecord):
            failure = self._path(FailureRecord.folder, record.record_id, FailureRecord.file)
            self._files.remove(failure)
        return stamp

    def listing(self, kind: type[StoredRecord]) -> dict[str, StoredFile]:
        """Return the files of one kind of record by id. The files are only listed, not read."""
        return {_id(file): file for file in self._files.find(self._path(kind.folder), kind.file)}

    def scan(self, kind: type[R]) -> Scan[R]:
        """Read all records of one kind."""
        scan = Scan[R]()
        files = self.listing(kind).values()
        scan.records.update(self.read_each(kind, files, scan.unreadable))
        return scan

    def read_each(
        self, kind: type[R], files: Iterable[StoredFile], unreadable: list[Unreadable]
    ) -> Iterator[tuple[str, R]]:
        """Yield the usable records in ``files`` with their ids.

        Args:
            kind: Kind of record.
            files: Files to read: values of the result of :meth:`listing`.
            unreadable: List to which files that cannot be used are added.
        """
        for file, content in self._files.read_many(files):
            try:
                yield _id(file), _parse_record(file.path, content, kind, _id(file))
            except _UnusableRecord as error:
                log.warning("%s", error.for_user())
                unreadable.append(Unreadable(file.path, error.reason, error.is_newer))

    def read(self, kind: type[R], record_id: str) -> R | None:
        """Return one record, or None if it does not exist.

        Raises:
            CorruptStoreError: The record is damaged.
            NewerRecordError: A newer version of isweep wrote the record.
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
        """File that the driver of this store locks. None if the store is in an object store."""
        if isinstance(self._files, Folder):
            return Path(self._files.base) / "driver.lock"
        return None

    def store_id(self, *, create: bool = False) -> str | None:
        """Return the id of this store, which does not change if the store is moved.

        Args:
            create: If True, create the id if it does not exist.

        Returns:
            The id, or None if it does not exist.
        """
        path = self._path("store.json")
        try:
            self._known_id = str(json.loads(self._files.read(path))["store_id"])
            return self._known_id
        except FileNotFoundError:
            if not create:
                return None
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise CorruptStoreError(
                f"The id of the result store in {path} is damaged: {error}",
                hint="Delete the file. The next run then creates a new id and sends all results "
                "to MLflow again",
            ) from None
        self._known_id = secrets.token_hex(8)
        self._write_id()
        return self._known_id

    def keep_id(self) -> None:
        """Write the id of this store again if its file was deleted after the id was read.

        With another id, the next run would send all results to another experiment of MLflow.
        """
        try:
            self._files.read(self._path("store.json"))
        except FileNotFoundError:
            if self._known_id:
                self._write_id()

    def _write_id(self) -> None:
        content = json.dumps({"store_id": self._known_id})
        self._files.write(self._path("store.json"), content.encode())

    # The next methods are for the files of trials.

    def put(self, kind: FileKind, trial_id: str, data: bytes) -> TrialFile:
        """Store a file of a trial, and return its checksum and size."""
        checksum = hashlib.sha256(data)
        content = data
        if kind == FileKind.CHECKPOINT:
            # While a training has a checkpoint, its trial has no record yet. So the
            # checkpoint's file itself contains the checksum.
            content = checksum.digest() + data
        self._files.write(self._file_path(kind, trial_id), content)
        return TrialFile(sha256=checksum.hexdigest(), num_bytes=len(data))

    def get(self, kind: FileKind, trial_id: str, file: TrialFile) -> bytes:
        """Return a stored file of a trial.

        Args:
            kind: Kind of file.
            trial_id: Id of the trial.
            file: Entry of the file in the trial's record, which contains the checksum.

        Raises:
            CorruptStoreError: The file does not exist, cannot be read, or has another
                checksum.
        """
        path = self._file_path(kind, trial_id)
        problem = "does not have the checksum in the trial's record"
        try:
            data = self._files.read(path)
            if hashlib.sha256(data).hexdigest() == file.sha256:
                return data
        except FileNotFoundError:
            problem = "does not exist"
        except OSError as error:
            problem = f"cannot be read: {error.strerror or error}"
        raise CorruptStoreError(
            f"The {kind} file {path} {problem}",
            hint="Run the sweep again. isweep then creates the file again",
        )

    def checkpoint(self, trial_id: str) -> bytes | None:
        """Return a trial's checkpoint, or None if it does not exist or is damaged."""
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
        """Delete the checkpoint of a trial that has a result.

        An error is only logged, because a checkpoint that is not deleted only wastes disk
        space.
        """
        try:
            self._files.remove(self._file_path(FileKind.CHECKPOINT, trial_id))
        except (SetupError, OSError) as error:
            log.warning("The checkpoint of trial %s cannot be deleted: %s", trial_id, error)

    def damaged_files(self, kind: FileKind, expected: Mapping[str, TrialFile]) -> set[str]:
        """Return the ids of trials whose file is missing or damaged, and log the files' paths.

        Args:
            kind: Kind of file.
            expected: Checksums of the files by trial id.
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
        for path, trial_id in trial_ids.items():
            if trial_id not in intact:
                log.warning("The stored file %s is missing or damaged", path)
        return expected.keys() - intact

    # No decision depends on the events and logs of trials. An error of writing them is only
    # logged.

    def log_event(self, trial_id: str, event: Event, attempt_log: str = "") -> None:
        """Add an event to a trial's history.

        Args:
            trial_id: Id of the trial.
            event: The event.
            attempt_log: Complete log of the attempt, or an empty text if the attempt has not
            ended.
        """
        try:
            earlier = []
            try:
                earlier = self.events(trial_id)
            except CorruptStoreError as error:
                log.warning(
                    "The history of trial %s starts again with this event: %s", trial_id, error
                )
            history = _EVENTS.dump_json([*earlier, event][-MAX_EVENTS:], indent=1)
            self._files.write(self._history_path(trial_id), history, durable=False)
            if attempt_log:
                path = self.attempt_log_path(trial_id, event.attempt)
                self._files.write(path, attempt_log.encode(), durable=False)
        except SweepError as error:
            log.warning("The history of trial %s cannot be stored: %s", trial_id, error)

    def events(self, trial_id: str) -> list[Event]:
        """Return the events of a trial, the oldest first."""
        path = self._history_path(trial_id)
        try:
            return _EVENTS.validate_json(self._files.read(path))
        except FileNotFoundError:
            return []
        except (OSError, ValidationError) as error:
            reason = str(error).splitlines()[0]
            raise CorruptStoreError(
                f"The history of a trial in {path} is damaged: {reason}",
                hint="Delete the file. No result depends on this file",
            ) from None

    def attempt_log_path(self, trial_id: str, attempt: int) -> str:
        """Return the path of an attempt's log. The file may not exist."""
        return self._path(TrialRecord.folder, trial_id, f"attempt-{attempt}.log")

    def attempt_log(self, trial_id: str, attempt: int) -> str | None:
        """Return the log of an attempt, or None if the attempt has no log."""
        try:
            content = self._files.read(self.attempt_log_path(trial_id, attempt))
        except OSError:
            return None
        return content.decode(errors="replace")

    def _history_path(self, trial_id: str) -> str:
        """Return the path of a trial's events."""
        return self._path(TrialRecord.folder, trial_id, "history.json")

    def _file_path(self, kind: FileKind, trial_id: str) -> str:
        """Return the path of a trial's file."""
        return self._path(kind, f"{trial_id}.{_FILE_ENDINGS[kind]}")

    def _path(self, *parts: str) -> str:
        """Return a path below the folder or URL of the store."""
        return posixpath.join(self._files.base, *parts)


def _id(file: StoredFile) -> str:
    """Return the id of a record: the name of the folder that contains the record's file."""
    return posixpath.basename(posixpath.dirname(file.path))


def _parse_record(path: str, content: Content, kind: type[R], record_id: str) -> R:
    """Return the record in a file.

    Args:
        path: Path of the file, for messages.
        content: Content of the file, or the error that was raised when it was read.
        kind: Kind of record.
        record_id: Id in the path of the file.

    Raises:
        _UnusableRecord: The record is damaged, belongs to another id, or was written by a
            newer version of isweep.
    """
    if isinstance(content, OSError):
        raise _UnusableRecord(path, content.strerror or type(content).__name__)
    fields = _checked_fields(path, content)
    version = fields.get("schema_version")
    if version is None:
        raise _UnusableRecord(path, "it has no schema version")
    if isinstance(version, int) and version > kind.version:
        reason = f"it has schema version {version}, but this version of isweep reads {kind.version}"
        raise _UnusableRecord(path, reason, is_newer=True)
    try:
        record = kind.model_validate(fields, strict=False)
    except ValidationError as error:
        problems = error.errors()
        first = problems[0]
        field_name = ".".join(map(str, first["loc"]))
        # If a newer version of isweep wrote the record, it may have optional fields that this
        # version does not know.
        if all(problem["type"] == "extra_forbidden" for problem in problems):
            reason = f"this version of isweep does not know the field {field_name}"
            raise _UnusableRecord(path, reason, is_newer=True) from None
        reason = f"{field_name}: {first['msg'].removeprefix('Value error, ')}"
        raise _UnusableRecord(path, reason) from None
    except (SweepError, KeyError, TypeError, AttributeError) as error:
        raise _UnusableRecord(path, f"it is not a record of this kind ({error})") from None
    if record.record_id != record_id:
        raise _UnusableRecord(path, f"it is the record of {record.record_id}")
    return record


def _checked_fields(path: str, content: bytes) -> dict[str, Any]:
    """Return the fields of a record.

    Raises:
        _UnusableRecord: The file is not a record, or its checksum is wrong.
    """
    try:
        document = from_json(content)
        fields = document["record"]
        # For plain JSON values, fingerprint() returns the hash of this JSON text.
        text = json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False)
        is_intact = document["sha256"] == hashlib.sha256(text.encode()).hexdigest()
    except (ValueError, KeyError, TypeError, RecursionError):
        raise _UnusableRecord(path, "it is truncated or not a stored record") from None
    if not is_intact:
        raise _UnusableRecord(path, "its checksum does not match its content")
    if not isinstance(fields, dict):
        raise _UnusableRecord(path, "its record is not a JSON object")
    return fields


class _UnusableRecord(Exception):
    """Raised for a stored record that is damaged, or that a newer version of isweep wrote."""

    def __init__(self, path: str, reason: str, *, is_newer: bool = False) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason
        self.is_newer = is_newer

    def for_user(self) -> CorruptStoreError:
        """Return an error with a message for users."""
        if self.is_newer:
            return NewerRecordError(
                f"The stored record {self.path} was written by a newer version of isweep: "
                f"{self.reason}",
                hint="Update isweep. This version does not change the file",
            )
        return CorruptStoreError(
            f"The stored record {self.path} is damaged: {self.reason}",
            hint="Run the sweep again. isweep then computes this result again and replaces the "
            "file",
        )
