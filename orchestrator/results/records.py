"""Records that a sweep stores: results of trials, measures of datasets, and failures.

Every kind of record has a schema version. A new optional field does not change the version: an
older record has the default of the field. If the meaning of a field changes, the version
becomes larger.
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from search_spaces.specs import (
    Domain,
    MeasurementRequest,
    MeasureSpec,
    PredictionRequest,
    TrialSpec,
)
from tasks.json_record import JsonRecord
from tasks.measures.records import MeasureResult
from tasks.trials.records import SearchResult, TrialResult


class FailureKind(StrEnum):
    """Cause of a failed attempt. The number of retries depends on the cause."""

    OUT_OF_MEMORY = "out_of_memory"
    """The memory of the GPU or of the machine ran out."""
    LOST_NODE = "lost_node"
    """The node of the worker ended or lost its connection."""
    WORKER_CRASH = "worker_crash"
    """The worker's process died without a report."""
    CLUSTER_ERROR = "cluster_error"
    """Ray failed to do something that the trial needed, for example to fetch the images."""
    DEVICE_ERROR = "device_error"
    """The GPU of the worker's process failed or was missing. isweep never uses this process
    again."""
    HUNG = "hung"
    """The trial ran much longer than expected and still had no result."""
    OTHER_CODE = "other_code"
    """The worker has another version of the code than the driver."""
    BAD_CONFIG = "bad_config"
    """The trial cannot run with the settings of the sweep file."""
    SETUP = "setup"
    """The machine of the worker is not set up for the trial."""
    BAD_DATA = "bad_data"
    """The images cannot be read or used."""
    DISK_FULL = "disk_full"
    """The worker's disk is full."""
    CODE_ERROR = "code_error"
    """The code of the trial or of its network raised an exception for any other cause."""


class Provenance(JsonRecord):
    """Code and packages that computed a result, without host names and paths.

    Attributes:
        code_version: Version of the package, with the commit if it is known.
        commit: Git commit of the code, or an empty text if it is unknown.
        dirty: True if the Git checkout had uncommitted changes.
        code: Hash of the source files.
        python: Version of Python.
        machine: Architecture of the processor, for example ``x86_64``.
        packages: Version of each package, by name of the package.
    """

    code_version: str = "unknown"
    commit: str = ""
    dirty: bool = False
    code: str = ""
    python: str = ""
    machine: str = ""
    packages: dict[str, str] = Field(default_factory=dict)


class StoredRecord(JsonRecord):
    """Base class of all records in the result store.

    Attributes:
        folder: Folder of all records of this kind, relative to the store.
        file: Name of the record's file in the folder of its id.
        version: Schema version that this version of isweep writes.
        oldest_version: Oldest schema version that this version of isweep reads, or None if it
            reads only ``version``.
        id_field: Name of the field with the record's id.
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
        """Return a schema version, or raise an error if this version of isweep cannot read it."""
        oldest = cls.oldest_version or cls.version
        if oldest <= value <= cls.version:
            return value
        versions = str(cls.version)
        if oldest < cls.version:
            versions = f"{oldest} to {cls.version}"
        raise ValueError(
            f"the schema version is {value}, but this version of isweep reads {versions}"
        )


class ComputedRecord(StoredRecord):
    """Base class of records that are computed from prepared data.

    Attributes:
        domain: ``natural`` or ``medical``, or None if the sweep sets no domain.
        data_fingerprint: Content hash of the prepared dataset.
        started_at: Start of the computation, seconds since 1970.
        finished_at: End of the computation, seconds since 1970.
        provenance: Versions of the code and packages that computed the record.
    """

    domain: Domain | None
    data_fingerprint: str
    started_at: float
    finished_at: float
    provenance: Provenance = Provenance()


class ResultRecord(ComputedRecord):
    """Base class of the results of trials in a grid or in a search.

    Attributes:
        sweep: Name of the sweep that ran the trial.
        gpu_share: Share of a GPU that the trial had. 0 on a CPU.
        attempt: Number of the successful attempt, from 1.
    """

    folder: ClassVar[str] = "trials"

    trial_id: str
    sweep: str
    spec: TrialSpec
    gpu_share: float = 0.0
    attempt: int
    result: TrialResult | SearchResult


class TrialRecord(ResultRecord):
    """A finished trial of a grid, with its result.

    Attributes:
        shared_group_share: Share of test images whose group is also in the training set.
        gpu_name: The driver's name of the GPU. Empty on a CPU.
        measured_at: Time of the latest measurement on the stored network, seconds since 1970.
            None if nothing was measured after the training. All other times of the record are
            times of the training.
    """

    file: ClassVar[str] = "result.json"
    version: ClassVar[int] = 2

    schema_version: int = version
    shared_group_share: float = 0.0
    gpu_name: str = ""
    measured_at: float | None = None
    result: TrialResult

    def lacks(self, requested: TrialSpec) -> tuple[MeasurementRequest, ...]:
        """Return the measurements of ``requested`` that the result lacks."""
        has_weights = self.result.weights is not None
        has_predictions = self.result.predictions is not None
        lost_predictions = has_weights and not has_predictions
        return missing_measurements(self.spec, requested, lost_predictions=lost_predictions)


def missing_measurements(
    performed: TrialSpec, requested: TrialSpec, *, lost_predictions: bool
) -> tuple[MeasurementRequest, ...]:
    """Return the measurements of ``requested`` that a trial lacks.

    Args:
        performed: The trial with the settings with which it was run.
        requested: The same trial in the present plan.
        lost_predictions: True if the trial has stored weights, but no stored predictions.
    """
    lacking = performed.missing_for(requested)
    # To list all requested measurements would take longer than the rest of this function.
    if not lost_predictions:
        return lacking
    predictions = [
        measurement
        for measurement in requested.requests
        if isinstance(measurement, PredictionRequest)
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


class TrialFailure(JsonRecord):
    """The failure of one attempt at a trial, and its cause.

    isweep only prints ``message`` and ``traceback``. Its decisions depend on the other fields.

    Attributes:
        kind: Kind of the cause.
        message: One line for the user.
        traceback: Traceback for developers. The text is empty if the user made a mistake.
        gpu: UUID or number of the failed GPU, with its node. The text is empty if no GPU
            failed.
        unfit_node: True if the trial cannot compute on the GPU that the node assigned to it.
        device_lost: True if the GPU failed, and nothing suggests that the trial's code was the
            cause.
        capture_failed: True if PyTorch could not capture a training step of this network as a
            CUDA graph.
        no_engine: True if cuDNN reported that it has no engine for an operation. Then either
            memory or a kernel is missing.
        ends_process: True if the worker's process must not be used again.
        memory: Memory that ran out: ``gpu`` or ``machine``. The text is empty if no memory ran
            out, or if isweep does not know which memory ran out.
        held_by_others: Share of this memory, 0 to 1, that other processes used. None if the
            share is unknown.
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
    """The latest failed attempt at a trial that has no complete result."""

    folder: ClassVar[str] = "trials"
    file: ClassVar[str] = "failure.json"
    version: ClassVar[int] = 2

    schema_version: int = version
    trial_id: str
    spec: TrialSpec
    attempt: int
    failure: TrialFailure

    def row(self) -> dict[str, str]:
        """Return the failure as a row for the command line and the report."""
        return {
            "trial_id": self.trial_id,
            "kind": str(self.failure.kind),
            "message": self.failure.message,
        }
