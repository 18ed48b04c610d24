"""The worker: a process of Ray that runs one trial after another and keeps nothing between them.

It needs no disk of the driver's. An exception inside a trial is an outcome like a result: the
driver is told everything that is known about it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import ray
from ray import tune
from ray.tune.result import DONE

from orchestrator.machine import gpus
from orchestrator.results.provenance import code_fingerprint, provenance
from orchestrator.results.records import FailureKind, TrialFailure
from orchestrator.running import trial_device
from orchestrator.running.actors import ArtifactStore, MessageQueue
from orchestrator.running.attempt_log import recorded
from orchestrator.running.messages import (
    TrialAssignment,
    TrialFailedError,
    TrialReport,
    WorkerLocation,
)
from orchestrator.running.perform import Perform, TrialTask, perform_trial
from orchestrator.running.queue import ASSIGNMENT
from orchestrator.running.recovery.failures import OtherCodeError, classify
from search_spaces.errors import SweepError
from tasks.prepared.subsets import TrialData

REPORT = "report"
"""Key of a trial's only Tune result: its :class:`TrialReport` as JSON text."""
NODE_FAILURES = (FailureKind.DEVICE_ERROR, FailureKind.OTHER_CODE)
"""Failures that a process's first trial suffers because of its node."""


class TrialTrainable(tune.Trainable):  # type: ignore[misc]  # Ray ships without types
    """Runs one trial per ``step`` and answers with a :class:`TrialReport`.

    A failed trial raises its report as :class:`TrialFailedError`. Tune then ends the process: Ray
    shows the task as failed, and nothing that a failure left in the process meets the next trial.
    """

    def setup(
        self,
        config: dict[str, Any],
        perform: Perform = perform_trial,
        arrays: Any = None,
        files: ArtifactStore | None = None,
        messages: MessageQueue | None = None,
        code: Mapping[str, str] | None = None,
        pretrained: Mapping[str, bytes] | None = None,
    ) -> None:
        """Take the first trial, and what all trials of the run share.

        Args:
            config: configuration of the Tune trial, which holds the assignment.
            perform: performs a trial.
            arrays: actor that hands out images.
            files: stores weights, predictions and checkpoints; None stores none.
            messages: takes messages for the driver; None if nobody polls.
            code: source of user-defined networks by relative path.
            pretrained: weights that networks start from, by :attr:`ModelSpec.pretrained_key`.
        """
        self.assignment: TrialAssignment = config[ASSIGNMENT]
        self._perform = perform
        self._arrays = arrays
        self._files = files
        self._messages = messages
        self._code = code or {}
        self._pretrained = pretrained or {}
        self._has_run = False
        self._gpu_name = ""
        self._gpu_uuid = ""

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take another trial in the same process: starting a process costs seconds."""
        self.assignment = new_config[ASSIGNMENT]
        return True

    def step(self) -> dict[str, Any]:
        """Run the trial and return its report.

        Raises:
            TrialFailedError: the trial failed; the error holds the report.
        """
        trial_id = self.assignment.trial_id
        started_at = time.time()
        began = time.monotonic()
        if self._messages is not None:
            self._messages.publish(WorkerLocation.here(trial_id))
        # In ``top`` and on the dashboard's node page, until Ray puts its own title back.
        # Private: with a Ray that lacks it, the class's name is shown instead.
        getattr(ray._raylet, "setproctitle", lambda title: None)(f"ray::isweep {trial_id}")
        with recorded() as attempt_log:
            try:
                self._check_code()
                report = self._run(started_at)
                self._check_code()
                self._has_run = True
            except (Exception, SystemExit) as error:  # a user's network may raise SystemExit
                failure = self._failure(error)
                report = TrialReport(started_at=started_at, finished_at=started_at, outcome=failure)
            outcome = report.outcome
            # Durations are stored, so they are taken by a clock that nobody sets.
            seconds = time.monotonic() - began
            if isinstance(outcome, TrialFailure):
                ending = f"failed ({outcome.kind})"
            else:
                ending = outcome.status.value
            # Into the attempt's log, and the worker's, which the dashboard shows beside the task.
            print(f"{trial_id}: {ending} after {seconds:.1f} s", flush=True)  # noqa: T201
        report = report.model_copy(
            update={
                "finished_at": started_at + seconds,
                "provenance": provenance(),
                "node": ray.util.get_node_ip_address(),
                "log": attempt_log.text(),
            }
        )
        if isinstance(outcome, TrialFailure):
            raise TrialFailedError(f"{outcome.kind}: {outcome.message}", report.text())
        return {DONE: True, REPORT: report.text()}

    def _run(self, started_at: float) -> TrialReport:
        """Perform the trial; its report still lacks what ``step`` adds."""
        assignment = self.assignment
        resources = assignment.resources
        network = assignment.spec.network
        data = self._images()
        device = trial_device.device_for(resources, network)
        if device.device == "cuda":
            # Now, because a GPU that has failed cannot be asked any more.
            gpu = gpus.gpu_in_use()
            self._gpu_name = gpu.name
            self._gpu_uuid = gpu.uuid
        task = TrialTask(assignment, data, device, self._files, self._messages, self._pretrained)
        performed = self._perform(task)
        return TrialReport(
            started_at=started_at,
            finished_at=started_at,
            outcome=performed.result,
            trained=performed.trained,
            data_fingerprint=data.data_fingerprint,
            shared_group_share=data.shared_group_share,
            gpu_share=resources.num_gpus,
            gpu_name=self._gpu_name,
            gpu_note=device.note,
        )

    def _failure(self, error: BaseException) -> TrialFailure:
        """Return the failure that an error in a trial stands for, with what this process knows.

        A process that has finished no trial waits first if its node is to blame. Otherwise the node
        would be free at once, be given every trial of the sweep, and fail each.
        """
        failure = classify(error)
        num_gpus = self.assignment.resources.num_gpus
        facts: dict[str, Any] = {}
        message = failure.message
        # A trial with a share of a GPU has a limit: what others hold does not matter to it.
        if failure.memory == "gpu" and num_gpus >= 1:
            held_memory = trial_device.held_by_others()
            if held_memory is not None:
                facts["held_by_others"] = held_memory.share
                message = f"{held_memory}: {message}"
        if failure.ends_process and num_gpus:
            gpu = trial_device.gpu_and_node(self._gpu_uuid)
            message = f"{message} ({gpu})"
            if failure.kind == FailureKind.DEVICE_ERROR and not failure.capture_failed:
                facts["gpu"] = gpu
        failure = failure.model_copy(update={**facts, "message": message})
        is_of_node = failure.kind in NODE_FAILURES and not failure.capture_failed
        if not self._has_run and (is_of_node or failure.unfit_node):
            time.sleep(trial_device.REST_S)
        return failure

    def _images(self) -> TrialData:
        """Return the trial's images, in a process that is made ready to compute."""
        from tasks.trials.isolation import keep_freed_memory
        from tasks.trials.models import install_code

        keep_freed_memory()
        (reference,) = ray.get(self._arrays.take.remote(self.assignment.array))
        if isinstance(reference, SweepError):
            raise reference
        install_code(self._code)
        data: TrialData = ray.get(reference)
        return data

    def _check_code(self) -> None:
        """Check that this process runs the driver's code.

        A process that has run a trial has loaded everything it needs, and is not checked again.

        Raises:
            OtherCodeError: the source here is another one.
        """
        if self._has_run:
            return
        expected = self.assignment.code
        code_here = code_fingerprint()
        if code_here == expected:
            return
        node = ray.util.get_node_ip_address()
        raise OtherCodeError(
            f"Node {node} runs isweep {provenance().code_version} with source {code_here}, but the "
            f"driver's source is {expected}",
            hint="Install the same isweep on every node, and do not change it while a sweep runs",
        )

    def save_checkpoint(self, _: Any) -> None:
        """Do nothing, like ``load_checkpoint``: only a trial's result is worth keeping."""

    load_checkpoint = save_checkpoint


def configured(trainable: type[TrialTrainable], **shared: Any) -> Any:
    """Return the trainable for Tune, with arguments that all trials share, and its dashboard name.

    Args:
        trainable: the class of the workers.
        shared: arguments of its ``setup``.
    """
    with_shared = tune.with_parameters(trainable, **shared)
    with_request = tune.with_resources(
        with_shared, lambda config: config[ASSIGNMENT].resources.as_ray()
    )
    # Ray's dashboard would call the actors ResourceTrainable.
    with_request.__name__ = with_request.__qualname__ = "IsweepTrial"
    return with_request
