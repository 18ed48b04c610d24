"""The records that a sweep stores: results of trials, measures of datasets, failures.

Every kind of record counts its own schema version. A new optional field keeps the version: records
without it are read with its default. A change of what a field means counts the version up.
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from search_spaces.specs import Domain, Measurement, MeasureSpec, PredictionMeasurement, TrialSpec
from tasks.finding import Finding
from tasks.measures.records import MeasureResult
from tasks.trials.records import SearchResult, TrialResult


class FailureKind(StrEnum):
    """Cause of a failed attempt; the retry policy says what follows."""

    OUT_OF_MEMORY = "out_of_memory"
    LOST_NODE = "lost_node"
    WORKER_CRASH = "worker_crash"
    CLUSTER_ERROR = "cluster_error"
    """Ray itself could not do what the trial needed, such as fetching the images."""
    DEVICE_ERROR = "device_error"
    """The process's device failed or was missing. The process is never used again."""
    HUNG = "hung"
    """No result long after the expected time."""
    OTHER_CODE = "other_code"
    """The worker runs other code than the driver."""
    BAD_CONFIG = "bad_config"
    SETUP = "setup"
    BAD_DATA = "bad_data"
    DISK_FULL = "disk_full"
    CODE_ERROR = "code_error"


class Provenance(Finding):
    """Code and packages that made a result; never a host name or a path.

    Attributes:
        code_version: package version, and the commit if it is known.
        commit: Git commit of the code; empty if unknown.
        dirty: whether the checkout had uncommitted changes.
        code: hash of the source files.
        python: version of Python.
        machine: architecture of the processor.
        packages: versions by package.
    """

    code_version: str = "unknown"
    commit: str = ""
    dirty: bool = False
    code: str = ""
    python: str = ""
    machine: str = ""
    packages: dict[str, str] = Field(default_factory=dict)


class StoredRecord(Finding):
    """A record with a place in the store and a schema version of its kind.

    Attributes:
        folder: folder of all records of this kind, below the store.
        file: name of the record's file in the folder of its id.
        version: schema version that this program writes.
        oldest_version: oldest schema version that it reads; None if that is ``version``.
        id_field: field that holds the record's id.
    """

    folder: ClassVar[str]
    file: ClassVar[str]
    version: ClassVar[int]
    oldest_version: ClassVar[int | None] = None
    id_field: ClassVar[str] = "trial_id"

    schema_version: int

    @property
    def record_id(self) -> str:
        """Name of the record's folder in the store."""
        return str(getattr(self, self.id_field))

    @field_validator("schema_version")
    @classmethod
    def _check_version(cls, value: int) -> int:
        oldest = cls.oldest_version or cls.version
        if oldest <= value <= cls.version:
            return value
        versions = str(cls.version)
        if oldest < cls.version:
            versions = f"{oldest} to {cls.version}"
        raise ValueError(f"the schema version is {value}, but this program reads {versions}")


class ComputedRecord(StoredRecord):
    """A record of something computed from prepared data.

    Attributes:
        domain: ``natural`` or ``medical``; None if none was given.
        data_fingerprint: content hash of the prepared dataset.
        started_at: seconds since 1970; likewise ``finished_at``.
        provenance: the code that computed it.
    """

    domain: Domain | None
    data_fingerprint: str
    started_at: float
    finished_at: float
    provenance: Provenance = Provenance()


class ResultRecord(ComputedRecord):
    """The result of a trial, of a grid or of a search.

    Attributes:
        sweep: name of the sweep that ran the trial.
        gpu_share: share of a GPU that the trial had; 0 on a CPU.
        attempt: the attempt that succeeded, from 1.
    """

    folder: ClassVar[str] = "trials"

    trial_id: str
    sweep: str
    spec: TrialSpec
    gpu_share: float = 0.0
    attempt: int
    result: TrialResult | SearchResult


class TrialRecord(ResultRecord):
    """A trial of a grid with its result.

    Attributes:
        shared_group_share: share of test images whose group is also trained on.
        gpu_name: the GPU by its driver's name; empty on a CPU.
        measured_at: seconds since 1970 of the latest measurement on the stored network; None if
            there was none after training. The other times are those of the training.
    """

    file: ClassVar[str] = "result.json"
    version: ClassVar[int] = 2

    schema_version: int = version
    shared_group_share: float = 0.0
    gpu_name: str = ""
    measured_at: float | None = None
    result: TrialResult

    def lacks(self, requested: TrialSpec) -> tuple[Measurement, ...]:
        """Return the measurements of ``requested`` that the result lacks."""
        has_weights = self.result.weights is not None
        has_predictions = self.result.predictions is not None
        lost_predictions = has_weights and not has_predictions
        return missing_measurements(self.spec, requested, lost_predictions=lost_predictions)


def missing_measurements(
    performed: TrialSpec, requested: TrialSpec, *, lost_predictions: bool
) -> tuple[Measurement, ...]:
    """Return the measurements of ``requested`` that a trial lacks.

    Args:
        performed: the trial as it was run.
        requested: the same trial as it is planned now.
        lost_predictions: the trial has stored weights, but its predictions could not be stored.
    """
    lacking = performed.missing_for(requested)
    # Listing all requested measurements takes longer than everything else here.
    if not lost_predictions:
        return lacking
    predictions = [
        measurement
        for measurement in requested.measurements
        if isinstance(measurement, PredictionMeasurement)
    ]
    return lacking + tuple(item for item in predictions if item not in lacking)


class MeasureRecord(ComputedRecord):
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
        no_engine: cuDNN has no engine for an operation: memory or a kernel was missing.
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
    no_engine: bool = False
    ends_process: bool = False
    memory: Literal["", "gpu", "machine"] = ""
    held_by_others: float | None = None


class FailureRecord(StoredRecord):
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
