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
import zlib
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import ValidationError

from orchestrator.results.records import FailureRecord, SealedRecord, TrialRecord
from orchestrator.results.storage import Content, Folder, Found, Storage, open_storage
from search_spaces.errors import CorruptStoreError, NewerRecordError, SetupError, SweepError
from search_spaces.fingerprint import fingerprint
from search_spaces.specs import TrialSpec
from tasks.trials.records import KeptFile

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

    def __init__(self, url: str | Storage) -> None:
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


# What a driver of thousands of trials keeps of those that are done, small in memory.

FAST = 1
"""Level of compression: a higher one takes twice as long and saves a tenth."""


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


class Records(MutableMapping[str, TrialRecord]):
    """Records of trials by id: held packed, and read from the store when one is asked for that is not held.

    As objects they take 15 to 100 kB each, packed 1 to 5. Equal comes out to what went in, as it does from
    the store. Those that are only in the store are found when they are named, and not counted.

    Args:
        store: Where they are sealed.
        records: Read already; they stay as they are, since reading them took their memory.
    """

    def __init__(self, store: ResultStore, records: Mapping[str, TrialRecord] | None = None) -> None:
        self._store = store
        self._held: dict[str, TrialRecord | _Packed] = dict(records or {})

    def __getitem__(self, trial_id: str) -> TrialRecord:
        found = self._held.get(trial_id) or self._store.read(TrialRecord, trial_id)
        if found is None:
            raise KeyError(trial_id)
        return found.record() if isinstance(found, _Packed) else found

    def __setitem__(self, trial_id: str, record: TrialRecord) -> None:
        self._held[trial_id] = _Packed.of(record)

    def __delitem__(self, trial_id: str) -> None:
        del self._held[trial_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, trial_id: object) -> bool:
        return trial_id in self._held


class FileKind(StrEnum):
    """A kind of file that is kept of a trial beside its result; the folder that it lies in."""

    WEIGHTS = "weights"
    PREDICTIONS = "predictions"
    CHECKPOINT = "checkpoints"
    """The state of a training so far, which lives while its trial does."""


_ENDINGS = {
    FileKind.WEIGHTS: ("safetensors", "the network is trained again"),
    FileKind.PREDICTIONS: (
        "parquet",
        "run the sweep again: they are made anew, from kept weights where there are some",
    ),
    FileKind.CHECKPOINT: ("pt", "the training begins anew"),
}
"""How the name of each kind's files ends, and what follows from one that is not whole."""


class KeptFiles:
    """Weights, predictions and checkpoints of one sweep below ``url``, beside its results, checked when read.

    They are written before the result that names their checksums, so what a result names is there. A
    checkpoint has its checksum inside. None goes to MLflow.
    """

    def __init__(self, url: str | Storage) -> None:
        self._files = open_storage(url)

    def put(self, kind: FileKind, trial_id: str, data: bytes) -> KeptFile:
        """Keep a file, whole or not at all.

        Raises:
            SetupError: when there is no room or no permission.
        """
        seal = hashlib.sha256(data)
        rule = "Weights, predictions and checkpoints must have room where results are kept"
        way_out = "free space, or set keep_weights to last or none"
        sealed = seal.digest() + data if kind == FileKind.CHECKPOINT else data
        self._files.write(self._path(kind, trial_id), sealed, rule, way_out)
        return KeptFile(sha256=seal.hexdigest(), num_bytes=len(data))

    def get(self, kind: FileKind, trial_id: str, kept: KeptFile) -> bytes:
        """Return a file that was kept.

        Raises:
            CorruptStoreError: when it is gone or not what was kept.
        """
        path = self._path(kind, trial_id)
        try:
            data = self._files.read(path)
        except FileNotFoundError:
            found = "gone"
        else:
            if hashlib.sha256(data).hexdigest() == kept.sha256:
                return data
            found = "checksum does not match"
        raise CorruptStoreError(f"Kept {kind} must be whole", f"{path}: {found}", _ENDINGS[kind][1])

    def checkpoint(self, trial_id: str) -> bytes | None:
        """Return a trial's checkpoint; None where there is none that is whole."""
        try:
            sealed = self._files.read(self._path(FileKind.CHECKPOINT, trial_id))
        except FileNotFoundError:
            return None
        return sealed[32:] if hashlib.sha256(sealed[32:]).digest() == sealed[:32] else None

    def forget_checkpoint(self, trial_id: str) -> None:
        """Remove a trial's checkpoint: it has a result. One that stays costs room alone."""
        try:
            self._files.remove(self._path(FileKind.CHECKPOINT, trial_id))
        except (SetupError, OSError) as error:
            log.warning("the checkpoint of %s stays: %s", trial_id, error)

    def damaged(self, kind: FileKind, kept: Mapping[str, KeptFile]) -> set[str]:
        """Return of which trials a file is gone or not what was kept; ``kept`` is what was, by trial id."""
        whole = set()
        ids = {self._path(kind, trial_id): trial_id for trial_id in kept}
        for found, content in self._files.read_many(Found(path, "") for path in ids):
            trial_id = ids[found.path]
            if isinstance(content, bytes) and hashlib.sha256(content).hexdigest() == kept[trial_id].sha256:
                whole.add(trial_id)
        return kept.keys() - whole

    def _path(self, kind: FileKind, trial_id: str) -> str:
        return posixpath.join(self._files.base, kind, f"{trial_id}.{_ENDINGS[kind][0]}")
