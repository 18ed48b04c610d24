"""Messages between the driver and its workers: what a worker is given, and what it answers.

The driver decides by fields. Texts are for people: rewording one changes nothing that a sweep does.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, NamedTuple

import ray

from orchestrator.machine.cluster import Resources
from orchestrator.results.records import Provenance, TrialFailure, TrialRecord
from search_spaces.specs import TrialSpec
from tasks.finding import Finding
from tasks.trials.records import EpochRecord, EpochScore, SearchResult, TrialResult


@dataclass(frozen=True, repr=False)
class TrialAssignment:
    """Everything that a worker is given for one trial.

    Attributes:
        spec: the trial; in a search a :class:`~search_spaces.tuning.SearchTrialSpec`.
        array: key of the trial's images in :class:`~orchestrator.running.actors.IsweepArrays`.
        resources: the trial's share of CPUs, GPU and memory, and how it takes its steps.
        code: fingerprint of the driver's source, which the worker's source must equal.
        earlier: the stored result of this trial, to which measurements are added; None to train.
        keep_weights: whether the trained network is stored.
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
        """Return the trial's id: Tune makes a tag from the text of every value it passes on."""
        return f"TrialAssignment({self.trial_id})"

    def __deepcopy__(self, memo: dict[int, Any]) -> TrialAssignment:
        """Return itself: Tune copies each assignment several times, and none ever changes."""
        return self


class TrialReport(Finding):
    """A worker's answer about one attempt at a trial.

    Attributes:
        started_at: time by the worker's clock, in seconds since 1970; likewise ``finished_at``.
        outcome: the result, or why there is none.
        data_fingerprint: hash of the prepared dataset.
        shared_group_share: share of test images whose group is also trained on.
        gpu_share: share of a GPU that the trial had; 0 on a CPU.
        gpu_name: its driver's name for the GPU; empty on a CPU.
        gpu_note: something about the GPU that the user should know; shown once.
        trained: whether a network was trained; False if a stored one was measured.
        provenance: code and packages of the worker.
        node: address of the worker's node.
        log: what the attempt logged, warned of and printed.
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
    """Raised by a worker whose trial failed, so that Ray shows the task as failed.

    Tune answers it by ending the worker's process: nothing that a failure left there can meet the
    next trial.

    Args:
        message: what Ray's dashboard shows.
        report: the attempt's :class:`TrialReport` as JSON text.
    """

    def __init__(self, message: str, report: str) -> None:
        super().__init__(message, report)  # both, so that it can be pickled
        self.report = report

    def __str__(self) -> str:
        """Return the message alone."""
        return str(self.args[0])


class WorkerLocation(NamedTuple):
    """The location of an attempt at a trial.

    Attributes:
        trial_id: the trial.
        actor: Ray's id of the worker.
        node: address of the node.
        node_id: Ray's id of the node.
        gpus: value of ``CUDA_VISIBLE_DEVICES`` in the worker's process.
        num_gpus: the worker's share of a GPU.
        pid: id of the worker's process on its node; 0 if unknown.
    """

    trial_id: str
    actor: str
    node: str
    node_id: str = ""
    gpus: str = ""
    num_gpus: float = 1.0
    pid: int = 0

    @classmethod
    def here(cls, trial_id: str) -> WorkerLocation:
        """Return the location of this process, which must be a worker's."""
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
    """An epoch of a running trial; ``score`` is None if the test images were not evaluated."""

    trial_id: str
    epoch: EpochRecord
    score: EpochScore | None


class Note(NamedTuple):
    """Something that the user should know about a running trial."""

    trial_id: str
    text: str


WorkerMessage = EpochReport | WorkerLocation | Note
