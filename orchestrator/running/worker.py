"""The worker: a Ray process that runs one trial after another and shares no state between them.

A worker needs no disk of the driver. If a trial raises an exception, the worker sends the driver
a report of the failure.
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
"""Failures that count as caused by the node if the first trial of a process has them."""


class TrialTrainable(tune.Trainable):  # type: ignore[misc]  # Ray ships without types
    """Tune's trainable: each ``step`` runs one trial and returns its :class:`TrialReport`.

    If a trial fails, ``step`` raises :class:`TrialFailedError` with the report. Tune then ends the
    process. So Ray shows the task as failed, and the failure cannot affect the next trial.
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
        """Store the first trial, and everything that all trials of the run share.

        Args:
            config: configuration of the Tune trial, which contains the assignment.
            perform: function that trains or measures.
            arrays: actor that returns references of images.
            files: stores weights, predictions and checkpoints; None stores none.
            messages: sends messages to the driver; None sends none.
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
        """Store the next trial for the same process, because a new process takes seconds."""
        self.assignment = new_config[ASSIGNMENT]
        return True

    def step(self) -> dict[str, Any]:
        """Run the trial and return its report.

        Raises:
            TrialFailedError: the trial failed; the error contains the report.
        """
        trial_id = self.assignment.trial_id
        started_at = time.time()
        began = time.monotonic()
        if self._messages is not None:
            self._messages.publish(WorkerLocation.here(trial_id))
        # `top` and the dashboard's node page show this title until Ray restores its own.
        # Private: if a Ray lacks this function, they show the name of the class.
        getattr(ray._raylet, "setproctitle", lambda title: None)(f"ray::isweep {trial_id}")
        with recorded() as attempt_log:
            try:
                self._check_code()
                report = self._run(started_at)
                self._check_code()
                self._has_run = True
            except (Exception, SystemExit) as error:  # a user's network may raise SystemExit
                failure = self._failure(error)
                report = TrialReport(
                    started_at=started_at,
                    finished_at=started_at,
                    outcome=failure,
                    gpu_name=self._gpu_name,
                )
            outcome = report.outcome
            # The monotonic clock: durations are stored, and somebody may set the system's clock.
            seconds = time.monotonic() - began
            if isinstance(outcome, TrialFailure):
                ending = f"failed ({outcome.kind})"
            else:
                ending = outcome.status.value
            # This line goes to the attempt's log and to the worker's log on the dashboard.
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
        """Run the trial; return its report without the fields that ``step`` adds."""
        assignment = self.assignment
        resources = assignment.resources
        network = assignment.spec.network
        data = self._images()
        device = trial_device.device_for(resources, network)
        if device.device == "cuda":
            # Before the training, because a failed GPU does not answer any more.
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
        """Return the failure for an exception, with facts about the GPU of this process.

        If the node caused the failure of a process's first trial, this method waits for
        ``FIRST_QUARANTINE_S`` seconds. A node that fails at once would otherwise get every trial of
        the sweep.
        """
        failure = classify(error)
        num_gpus = self.assignment.resources.num_gpus
        facts: dict[str, Any] = {}
        message = failure.message
        # A trial with a share of a GPU has its own limit, which others' memory does not change.
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
            time.sleep(trial_device.FIRST_QUARANTINE_S)
        return failure

    def _images(self) -> TrialData:
        """Prepare the process for computing, and return the trial's images."""
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
        """Check that this process runs the same source code as the driver.

        After its first trial a process has loaded all modules and is not checked again.

        Raises:
            OtherCodeError: the source code differs.
        """
        if self._has_run:
            return
        expected = self.assignment.code
        code_here = code_fingerprint()
        if code_here == expected:
            return
        node = ray.util.get_node_ip_address()
        raise OtherCodeError(
            f"The source code of isweep on node {node} (version {provenance().code_version}, hash "
            f"{code_here}) differs from the driver's (hash {expected})",
            hint="Install the same isweep on every node, and do not change it while a sweep runs",
        )

    def save_checkpoint(self, _: Any) -> None:
        """Do nothing: Tune's checkpoints are not used. ``load_checkpoint`` does the same."""

    load_checkpoint = save_checkpoint


def configured(trainable: type[TrialTrainable], **shared: Any) -> Any:
    """Return the trainable for Tune, with shared arguments, its requests and its dashboard name.

    Args:
        trainable: class of the workers.
        shared: arguments of ``setup`` that are the same for all trials.
    """
    with_shared = tune.with_parameters(trainable, **shared)
    with_request = tune.with_resources(
        with_shared, lambda config: config[ASSIGNMENT].resources.as_ray()
    )
    # Without this name Ray's dashboard shows the actors as ResourceTrainable.
    with_request.__name__ = with_request.__qualname__ = "IsweepTrial"
    return with_request
