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
import platform
import posixpath
import secrets
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar

from pydantic import Field, TypeAdapter, ValidationError, field_validator
from pydantic_core import from_json, to_json

from orchestrator.results.storage import Content, Folder, Found, Storage, open_storage
from search_spaces.errors import CorruptStoreError, NewerRecordError, SetupError, SweepError
from search_spaces.fingerprint import fingerprint
from search_spaces.specs import Domain, Measurement, MeasureSpec, PredictionMeasurement, TrialSpec
from tasks.finding import Finding
from tasks.measures.records import MeasureResult
from tasks.trials.records import KeptFile, SearchResult, TrialResult

log = logging.getLogger(__name__)


class FailureKind(StrEnum):
    """Cause of a failed attempt; :mod:`orchestrator.running.retries` says what follows."""

    OUT_OF_MEMORY = "out_of_memory"
    LOST_NODE = "lost_node"
    WORKER_CRASH = "worker_crash"
    CLUSTER_ERROR = "cluster_error"
    """Ray itself could not do what the trial asked of it, such as fetching the images."""
    DEVICE_ERROR = "device_error"
    """The device of a process failed, or was not there; the process is never used again."""
    HUNG = "hung"
    """No result long after the time that was expected of it."""
    OTHER_CODE = "other_code"
    """Its worker runs other code than the driver."""
    BAD_CONFIG = "bad_config"
    SETUP = "setup"
    BAD_DATA = "bad_data"
    DISK_FULL = "disk_full"
    CODE_ERROR = "code_error"


class Provenance(Finding):
    """Which code, with a hash of its source, and packages made a result; never a host name or a
    path.
    """

    code_version: str = "unknown"
    commit: str = ""
    dirty: bool = False
    code: str = ""
    python: str = ""
    machine: str = ""
    packages: dict[str, str] = Field(default_factory=dict)


class SealedRecord(Finding):
    """What all stored records share: a place in the store, and a schema version of their kind."""

    folder: ClassVar[str]
    file: ClassVar[str]
    version: ClassVar[int]
    id_field: ClassVar[str] = "trial_id"

    schema_version: int

    @property
    def record_id(self) -> str:
        """Name of the record's folder in the store."""
        return str(getattr(self, self.id_field))

    @field_validator("schema_version")
    @classmethod
    def _check_version(cls, value: int) -> int:
        if value != cls.version:
            raise ValueError(f"schema version {value}, this program reads {cls.version}")
        return value


class MadeRecord(SealedRecord):
    """A result, and what it was made from and by; times are in seconds since 1970."""

    domain: Domain | None
    data_fingerprint: str
    started_at: float
    finished_at: float
    provenance: Provenance = Provenance()


class ResultRecord(MadeRecord):
    """The result of a trial, of a grid or of a search: of which attempt, from 1, on which share of
    a GPU.
    """

    folder: ClassVar[str] = "trials"

    trial_id: str
    sweep: str
    spec: TrialSpec
    gpu_share: float = 0.0
    attempt: int
    result: TrialResult | SearchResult


class TrialRecord(ResultRecord):
    """One trial with a result.

    Attributes:
        shared_group_share: Share of test images whose group is also trained on.
        gpu_name: In its driver's words; empty on a CPU.
        measured_at: When more was measured on the kept network, if ever; the other times are its
            training's.
    """

    file: ClassVar[str] = "result.json"
    version: ClassVar[int] = 2

    schema_version: int = version
    shared_group_share: float = 0.0
    gpu_name: str = ""
    measured_at: float | None = None
    result: TrialResult

    def lacks(self, asked: TrialSpec) -> tuple[Measurement, ...]:
        """Return the measurements of ``asked`` that it lacks, predictions that found no room among
        them.
        """
        result = self.result
        return missing(
            self.spec, asked, kept_without=bool(result.weights) and not result.predictions
        )


def missing(made: TrialSpec, asked: TrialSpec, *, kept_without: bool) -> tuple[Measurement, ...]:
    """Return what a trial made by ``made`` lacks; ``kept_without``: its network but no
    predictions.
    """
    lacking = made.lacks(asked)
    if not kept_without:  # spelling out all that is asked for takes longer than all else here
        return lacking
    return lacking + tuple(
        item
        for item in asked.measurements
        if isinstance(item, PredictionMeasurement) and item not in lacking
    )


class MeasureRecord(MadeRecord):
    """The measures of one subset at all its train sizes."""

    folder: ClassVar[str] = "measures"
    file: ClassVar[str] = "result.json"
    version: ClassVar[int] = 2
    id_field: ClassVar[str] = "measure_id"

    schema_version: int = version
    measure_id: str
    spec: MeasureSpec
    result: MeasureResult


class TrialFailure(Finding):
    """Why an attempt at a trial failed.

    ``message`` and ``traceback`` are for people. Decisions are made by the other fields.

    Attributes:
        kind: the cause.
        message: one line for the user.
        traceback: for developers; empty for a user's mistake.
        gpu: the GPU that failed, by its UUID or number and its node; empty if no GPU did.
        unfit_node: the node gave the trial a GPU on which it cannot compute.
        device_lost: the GPU failed, and nothing says that the trial's own code broke it.
        capture_failed: a step could not be captured as a CUDA graph, which the network prevents.
        ends_process: the worker's process must not be used again.
        memory: memory that ran out: of the GPU or the machine; empty if none did or it is unknown.
        held_by_others: share of that memory, 0 to 1, that other processes held; None if unknown.
    """

    kind: FailureKind
    message: str
    traceback: str = ""
    gpu: str = ""
    unfit_node: bool = False
    device_lost: bool = False
    capture_failed: bool = False
    ends_process: bool = False
    memory: Literal["", "gpu", "machine"] = ""
    held_by_others: float | None = None


class FailureRecord(SealedRecord):
    """The latest failed attempt at a trial that has no result."""

    folder: ClassVar[str] = "trials"
    file: ClassVar[str] = "failure.json"
    version: ClassVar[int] = 2

    schema_version: int = version
    trial_id: str
    spec: TrialSpec
    attempt: int
    failure: TrialFailure

    def row(self) -> dict[str, str]:
        """Return the failure as the command line and the report print it."""
        return {
            "trial_id": self.trial_id,
            "kind": str(self.failure.kind),
            "message": self.failure.message,
        }


# Where a result came from: code, versions, never a host name or a path.

PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "scipy",
    "scikit-learn",
    "ray",
    "mlflow",
    "zarr",
)
SOURCES = ("search_spaces", "tasks", "orchestrator")
_PACKAGE = Path(__file__).resolve().parents[1]


def code_fingerprint() -> str:
    """Return a hash of our source as it lies here now, the same of a checkout and a wheel of it."""
    files = [path for name in SOURCES for path in sorted((_PACKAGE.parent / name).rglob("*.py"))]
    stats = [path.stat() for path in files]
    return _hash_of(
        tuple((path, s.st_size, s.st_mtime_ns) for path, s in zip(files, stats, strict=True))
    )


@lru_cache(maxsize=1)
def _hash_of(stamped: tuple[tuple[Path, int, int], ...]) -> str:
    found = hashlib.sha256()
    for path, *_ in stamped:
        found.update(
            f"{path.relative_to(_PACKAGE.parent).as_posix()}\0".encode() + path.read_bytes()
        )
    return found.hexdigest()[:16]


@lru_cache(maxsize=1)
def provenance() -> Provenance:
    """Return the code version, whether the checkout had uncommitted changes, and package versions.

    The commit is the checkout's, or the one baked into the installed wheel.
    """

    def version(package: str) -> str:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            return "absent"

    def git(*words: str) -> str:
        command = ["git", "-C", str(folder), *words]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()

    baked, folder = _PACKAGE / "commit.json", _PACKAGE.parent
    made: dict[str, Any] = {"commit": "", "dirty": False}
    if baked.exists():
        made = json.loads(baked.read_text(encoding="utf-8"))
    elif (folder / ".git").exists():
        with suppress(OSError, subprocess.SubprocessError):
            changes = git("status", "--porcelain", "--untracked-files=no")
            made = {"commit": git("rev-parse", "HEAD"), "dirty": bool(changes)}
    commit, dirty, release = str(made["commit"]), bool(made["dirty"]), version("isweep")
    return Provenance(
        code_version=f"{release}+{commit[:12]}{'.dirty' if dirty else ''}" if commit else release,
        commit=commit,
        dirty=dirty,
        code=code_fingerprint(),
        python=platform.python_version(),
        machine=platform.machine(),
        packages={name: version(name) for name in PACKAGES},
    )


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
        way_out = "run the sweep again: made anew, from kept weights where there are some"
        raise CorruptStoreError(f"Kept {kind} must be whole", f"{path}: {found}", way_out)

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
            way_out = "delete it: nothing is decided by it"
            raise CorruptStoreError(
                "A cell's story must be whole", f"{path}: {reason}", way_out
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
        way_out = "run the sweep again: this cell is done anew and the file replaced"
        return CorruptStoreError("A stored record must be whole", f"{path}: {reason}", way_out)

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
