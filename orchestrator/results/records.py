"""What the store seals: one typed record per trial, measure and failed attempt, with where it came from.

Each kind counts its own schema version. A record of another version is not believed, and a newer one is never
written over.
"""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
from enum import StrEnum
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import ClassVar

from pydantic import Field, field_validator

import orchestrator
from search_spaces.specs import Domain, Measurement, MeasureSpec, PredictionMeasurement, TrialSpec
from tasks.finding import Finding
from tasks.measures.records import MeasureResult
from tasks.trials.records import SearchResult, TrialResult


class FailureKind(StrEnum):
    """What a failed attempt at a trial died of; :mod:`orchestrator.running.failures` says what follows."""

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
    """Which code, with a hash of its source, and packages made a result; never a host name or a path."""

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


class TrialRecord(SealedRecord):
    """One trial with a result.

    Attributes:
        trial_id: Of the planned trial; the network's.
        domain: Of the dataset; None where none was given.
        data_fingerprint: Content hash of the prepared dataset.
        shared_group_share: Share of test images whose group is also trained on.
        gpu_share: Share of a GPU that the trial had; 0 on a CPU.
        gpu_name: The GPU, in its driver's words; empty on a CPU.
        attempt: Which attempt this was, from 1.
        started_at: Seconds since 1970, as the others.
        measured_at: When more was measured on the kept network, if ever; the other times are its training's.
    """

    folder: ClassVar[str] = "trials"
    file: ClassVar[str] = "result.json"
    version: ClassVar[int] = 2

    schema_version: int = version
    trial_id: str
    sweep: str
    spec: TrialSpec
    domain: Domain | None
    data_fingerprint: str
    shared_group_share: float = 0.0
    gpu_share: float = 0.0
    gpu_name: str = ""
    attempt: int
    started_at: float
    finished_at: float
    measured_at: float | None = None
    provenance: Provenance = Provenance()
    result: TrialResult

    def lacks(self, asked: TrialSpec) -> tuple[Measurement, ...]:
        """Return the measurements of ``asked`` that this record does not have.

        Predictions that found no room are missing, where the network is kept to make them from.
        """
        result = self.result
        return missing(self.spec, asked, kept_without=bool(result.weights) and not result.predictions)


def missing(made: TrialSpec, asked: TrialSpec, *, kept_without: bool) -> tuple[Measurement, ...]:
    """Return what a trial made by ``made`` lacks; ``kept_without``: its network but no predictions."""
    lacking = made.lacks(asked)
    if not kept_without:  # spelling out all that is asked for takes longer than all else here
        return lacking
    return lacking + tuple(
        item for item in asked.measurements if isinstance(item, PredictionMeasurement) and item not in lacking
    )


class MeasureRecord(SealedRecord):
    """The measures of one subset at all its train sizes; attributes as those of :class:`TrialRecord`."""

    folder: ClassVar[str] = "measures"
    file: ClassVar[str] = "result.json"
    version: ClassVar[int] = 2
    id_field: ClassVar[str] = "measure_id"

    schema_version: int = version
    measure_id: str
    spec: MeasureSpec
    domain: Domain | None
    data_fingerprint: str
    started_at: float
    finished_at: float
    provenance: Provenance = Provenance()
    result: MeasureResult


class TrialFailure(Finding):
    """Why an attempt failed: its kind, one line for people, the traceback for developers."""

    kind: FailureKind
    message: str
    traceback: str = ""


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
        return {"trial_id": self.trial_id, "kind": str(self.failure.kind), "message": self.failure.message}


class CellReport(Finding):
    """What a worker hands to the driver about one attempt at a cell: a result or a failure.

    Attributes as those of :class:`TrialRecord`, times by the worker's clock, and:

    Attributes:
        data_fingerprint: Of the images it was given; empty with a failure.
        gpu_note: What the user is to know of the GPU, once.
        trained: Whether a network was trained; otherwise a kept one was measured.
        node: Address of the node where it ran.
        log: What it logged, warned of and printed.
    """

    started_at: float
    finished_at: float
    outcome: TrialResult | SearchResult | TrialFailure
    data_fingerprint: str = ""
    shared_group_share: float = 0.0
    gpu_share: float = 0.0
    gpu_name: str = ""
    gpu_note: str = ""
    trained: bool = True
    provenance: Provenance = Provenance()
    node: str = ""
    log: str = ""


# Where a result came from: code, versions, never a host name or a path.

PACKAGES = ("torch", "torchvision", "timm", "numpy", "scipy", "scikit-learn", "ray", "mlflow", "zarr")
SOURCES = ("search_spaces", "tasks", "orchestrator")
_PACKAGE = Path(orchestrator.__file__).resolve().parent
_hashed: dict[tuple[tuple[str, int, int], ...], str] = {}


def code_fingerprint() -> str:
    """Return a hash of our source as it lies on this machine now; a checkout and a wheel of it give the same.

    Files are read again only when one has changed.
    """
    root = _PACKAGE.parent
    files = [path for name in SOURCES for path in sorted((root / name).rglob("*.py"))]
    about = [path.stat() for path in files]
    stamps = tuple((str(p), a.st_size, a.st_mtime_ns) for p, a in zip(files, about, strict=True))
    if stamps not in _hashed:
        found = hashlib.sha256()
        for path in files:
            found.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes())
        _hashed.clear()
        _hashed[stamps] = found.hexdigest()[:16]
    return _hashed[stamps]


@lru_cache(maxsize=1)
def provenance() -> Provenance:
    """Return the code version, whether the checkout had uncommitted changes, and package versions."""
    commit, dirty = _commit()
    release = _version("isweep")
    return Provenance(
        code_version=f"{release}+{commit[:12]}{'.dirty' if dirty else ''}" if commit else release,
        commit=commit,
        dirty=dirty,
        code=code_fingerprint(),
        python=platform.python_version(),
        machine=platform.machine(),
        packages={name: _version(name) for name in PACKAGES},
    )


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


def _commit() -> tuple[str, bool]:
    """Return the commit of the checkout, or the one baked into the installed wheel."""
    baked, folder = _PACKAGE / "commit.json", _PACKAGE.parent
    if baked.exists():
        made = json.loads(baked.read_text(encoding="utf-8"))
        return str(made["commit"]), bool(made["dirty"])
    if not (folder / ".git").exists():
        return "", False

    def git(*words: str) -> str:
        command = ["git", "-C", str(folder), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return "", False
