"""Messages between the driver and its workers: assignments, reports, epochs and notes.

The driver decides only by typed fields. It never decides by a text, because texts are for
people.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, NamedTuple

import ray

from orchestrator.machine.cluster import Resources
from orchestrator.results.records import Provenance, TrialFailure, TrialRecord
from search_spaces.specs import TrialSpec
from tasks.json_record import JsonRecord
from tasks.trials.records import EpochRecord, EpochScore, SearchResult, TrialResult


@dataclass(frozen=True, repr=False)
class TrialAssignment:
    """Everything that a worker needs to run one trial.

    Attributes:
        spec: the trial. In a search, it is a :class:`~search_spaces.tuning.SearchTrialSpec`.
        array: key of the trial's images in :class:`~orchestrator.running.actors.IsweepArrays`.
        resources: CPUs, GPU share and memory of the trial, and the settings with which it
            trains.
        code: fingerprint of the driver's source code. The fingerprint of the worker's code
            must be the same.
        earlier: stored result of this trial that lacks only measurements, or None. If there is
            such a result, the worker measures the stored network. If there is none, or if the
            stored weights are missing or damaged, the worker trains the network.
        keep_weights: True if the worker stores the trained network.
    """

    spec: TrialSpec
    array: str
    resources: Resources
    code: str
    earlier: TrialRecord | None = None
    keep_weights: bool = False

    @property
    def trial_id(self) -> str:
        """Id of the trial."""
        return self.spec.trial_id

    def __repr__(self) -> str:
        """Return a short text with the trial's id. Tune uses this text as a tag."""
        return f"TrialAssignment({self.trial_id})"

    def __deepcopy__(self, memo: dict[int, Any]) -> TrialAssignment:
        """Return the assignment itself. It never changes, so Tune's repeated copies would be
        useless.
        """
        return self


class TrialReport(JsonRecord):
    """A worker's report of one attempt at a trial.

    Attributes:
        started_at: time at which the attempt started, by the worker's clock, in seconds since
            1970.
        finished_at: time at which the attempt ended, by the worker's clock, in seconds since
            1970.
        outcome: the trial's result, or its failure.
        data_fingerprint: hash of the prepared dataset.
        shared_group_share: share of the test images whose group also has training images, from
            0 to 1. A group is, for example, all images of one patient.
        gpu_share: share of a GPU that the trial used, or 0 if the trial ran on CPUs.
        gpu_name: name of the GPU as NVIDIA's driver reports it, or an empty text if the trial
            ran on CPUs.
        gpu_note: note to the user about the GPU, which the run prints once.
        trained: True if the attempt trained the network, False if it measured a stored
            network.
        provenance: versions of the code and the packages that the worker used.
        node: address of the worker's node.
        log: log messages, warnings and output of the attempt.
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


class TrialFailedError(Exception):
    """Error that a worker raises if its trial failed, so that Ray shows the task as failed.

    Tune then ends the worker's process, so that the failure cannot affect the next trial.

    Args:
        message: text that Ray's dashboard shows.
        report: the attempt's :class:`TrialReport` as JSON text.
    """

    def __init__(self, message: str, report: str) -> None:
        super().__init__(message, report)  # both, so that it can be pickled
        self.report = report

    def __str__(self) -> str:
        """Return the message without the report."""
        return str(self.args[0])


class WorkerLocation(NamedTuple):
    """The location of an attempt at a trial.

    Attributes:
        trial_id: id of the trial.
        actor: Ray's id of the worker.
        node: address of the node.
        node_id: Ray's id of the node.
        gpus: value of ``CUDA_VISIBLE_DEVICES`` in the worker's process.
        num_gpus: the worker's share of a GPU.
        pid: id of the worker's process on its node, or 0 if it is unknown.
    """

    trial_id: str
    actor: str
    node: str
    node_id: str = ""
    gpus: str = ""
    num_gpus: float = 1.0
    pid: int = 0

    @property
    def has_gpu(self) -> bool:
        """True if the worker has a GPU, or a share of one."""
        return bool(self.num_gpus and self.gpus)

    @classmethod
    def here(cls, trial_id: str) -> WorkerLocation:
        """Return the location of this process, which must be a worker."""
        context = ray.get_runtime_context()
        return cls(
            trial_id,
            actor=context.get_actor_id(),
            node=ray.util.get_node_ip_address(),
            node_id=context.get_node_id(),
            gpus=os.environ.get("CUDA_VISIBLE_DEVICES", ""),
            num_gpus=context.get_assigned_resources().get("GPU", 0.0),
            pid=os.getpid(),
        )


class EpochReport(NamedTuple):
    """The end of an epoch of a running trial.

    Attributes:
        trial_id: id of the trial.
        epoch: losses of the epoch.
        score: score on the test images, or None if they were not evaluated.
    """

    trial_id: str
    epoch: EpochRecord
    score: EpochScore | None


class Note(NamedTuple):
    """A note to the user about a running trial.

    Attributes:
        trial_id: id of the trial.
        text: the note.
    """

    trial_id: str
    text: str


WorkerMessage = EpochReport | WorkerLocation | Note
