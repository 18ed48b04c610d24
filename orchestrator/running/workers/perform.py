"""Functions that run a trial in a worker: train a network, or measure a stored network."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from orchestrator.results.store import FileKind
from orchestrator.running.actors import ArtifactStore, MessageQueue
from orchestrator.running.messages import TrialAssignment
from orchestrator.running.workers.trial_device import TrialDevice
from search_spaces.errors import CorruptStoreError
from tasks.prepared.subsets import TrialData
from tasks.trials.records import SearchResult, TrialResult

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrialTask:
    """A trial in its worker, with everything that is needed to run it.

    Attributes:
        assignment: the driver's assignment.
        data: the trial's images.
        device: the device on which the trial computes, with its settings.
        files: store for weights, predictions and checkpoints. None means that these files are
            not stored.
        messages: queue that sends finished epochs to the driver. None means that nothing is
            sent.
        pretrained: pretrained weights from which networks start, by
            :attr:`ModelSpec.pretrained_key`.
    """

    assignment: TrialAssignment
    data: TrialData
    device: TrialDevice
    files: ArtifactStore | None = None
    messages: MessageQueue | None = None
    pretrained: Mapping[str, bytes] | None = None


class PerformedTrial(NamedTuple):
    """The result of a trial that ran to its end.

    Attributes:
        result: the result.
        trained: True if the network was trained, False if a stored network was measured.
    """

    result: TrialResult | SearchResult
    trained: bool


TrialFunction = Callable[[TrialTask], PerformedTrial]
"""Function that runs a trial in a worker. A sweep and a search use different functions."""


def perform_trial(task: TrialTask) -> PerformedTrial:
    """Train and measure a network. If only measurements are missing, measure the stored network."""
    result = _measure_stored(task)
    if result is not None:
        return PerformedTrial(result, trained=False)
    return PerformedTrial(_train(task), trained=True)


def _measure_stored(task: TrialTask) -> TrialResult | None:
    """Measure the stored network of an earlier result, and return the completed result. Return
    None if there is no such network, or if its weights are damaged.
    """
    assignment = task.assignment
    files = task.files
    earlier = assignment.earlier
    if files is None or earlier is None or earlier.result.weights is None:
        return None
    from tasks.trials.trial import measure_trial

    trial_id = assignment.trial_id
    try:
        return measure_trial(
            assignment.spec,
            task.data,
            files.get(FileKind.WEIGHTS, trial_id, earlier.result.weights),
            earlier.result,
            earlier.lacks(assignment.spec),
            task.device,
            store_predictions=partial(files.put, FileKind.PREDICTIONS, trial_id),
        )
    except CorruptStoreError as error:
        log.warning("Trial %s is trained again: %s", trial_id, error)
        return None


def _train(task: TrialTask) -> TrialResult:
    """Train a network, and return its result."""
    from tasks.trials.checkpoints import Checkpoints
    from tasks.trials.trial import run_trial

    assignment = task.assignment
    files = task.files
    trial_id = assignment.trial_id
    on_epoch = None
    on_score = None
    if task.messages is not None:
        publisher = task.messages.publisher(trial_id)
        on_epoch = publisher.epoch_ended
        on_score = publisher.score_evaluated
    store_weights = None
    store_predictions = None
    checkpoints = None
    if files is not None:
        if assignment.keep_weights:
            store_weights = partial(files.put, FileKind.WEIGHTS, trial_id)
        store_predictions = partial(files.put, FileKind.PREDICTIONS, trial_id)
        checkpoints = Checkpoints(
            partial(files.checkpoint, trial_id), partial(files.put, FileKind.CHECKPOINT, trial_id)
        )
    pretrained = task.pretrained or {}
    return run_trial(
        assignment.spec,
        task.data,
        task.device,
        on_epoch=on_epoch,
        on_score=on_score,
        store_weights=store_weights,
        store_predictions=store_predictions,
        checkpoints=checkpoints,
        pretrained_weights=pretrained.get(assignment.spec.network.model.pretrained_key),
    )
