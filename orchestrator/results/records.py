"""The records that a sweep's store keeps, and what a worker reports to the driver."""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar

from pydantic import Field, field_validator

from search_spaces.specs import Domain, Measurement, MeasureSpec, PredictionMeasurement, TrialSpec
from tasks.finding import Finding
from tasks.measures.records import MeasureResult
from tasks.trials.records import SearchResult, TrialResult


class FailureKind(StrEnum):
    """What a failed attempt at a trial died of; :mod:`orchestrator.running.failures` says what
    follows.
    """

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
        return {
            "trial_id": self.trial_id,
            "kind": str(self.failure.kind),
            "message": self.failure.message,
        }


class CellReport(Finding):
    """What a worker hands to the driver about one attempt at a cell: a result or a failure.

    Attributes as of :class:`TrialRecord`, by the worker's clock. ``gpu_note`` is for the user,
    once; a network was ``trained``, or a kept one measured; ``log`` is what it logged, warned of
    and printed.
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
