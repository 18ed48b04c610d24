"""The worker, a Ray process that runs trials one after the other. No trial affects a later
trial.

A worker reads no files of the driver's disk. If a trial raises an exception, the worker
reports the failure to the driver.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import ray
from ray import tune
from ray.tune.result import DONE

from orchestrator.machine.gpus import torch_gpus
from orchestrator.machine.mps import may_break_mps
from orchestrator.machine.mps_worker import abandon_mps_in_run
from orchestrator.results.provenance import code_fingerprint, provenance
from orchestrator.results.records import FailureKind, TrialFailure
from orchestrator.running.actors import ArtifactStore, MessageQueue
from orchestrator.running.capacity import live_nodes
from orchestrator.running.messages import (
    TrialAssignment,
    TrialFailedError,
    TrialReport,
    WorkerLocation,
)
from orchestrator.running.queue import ASSIGNMENT
from orchestrator.running.recovery.failures import OtherCodeError, classify
from orchestrator.running.workers import trial_device
from orchestrator.running.workers.attempt_log import recorded
from orchestrator.running.workers.perform import TrialFunction, TrialTask, perform_trial
from search_spaces.errors import SweepError
from tasks.prepared.subsets import TrialData

REPORT = "report"
"""Key under which the only Tune result of a trial contains the :class:`TrialReport` as JSON
text."""
NODE_FAILURES = (FailureKind.DEVICE_ERROR, FailureKind.OTHER_CODE)
"""Failure kinds that show a problem of the node if the first trial of a process fails with
them."""


class TrialTrainable(tune.Trainable):  # type: ignore[misc]  # Ray ships without types
    """Trainable for Tune. Each ``step`` runs one trial and returns its :class:`TrialReport`.

    If a trial fails, ``step`` raises :class:`TrialFailedError` with the report. Ray then shows
    the task as failed, and Tune ends the process. The failure can therefore not affect the
    next trial.
    """

    def setup(
        self,
        config: dict[str, Any],
        perform: TrialFunction = perform_trial,
        arrays: Any = None,
        files: ArtifactStore | None = None,
        messages: MessageQueue | None = None,
        code: Mapping[str, str] | None = None,
        pretrained: Mapping[str, bytes] | None = None,
    ) -> None:
        """Save the first trial, and the objects that all trials of the run share.

        Args:
            config: configuration of the Tune trial. It contains the assignment.
            perform: function that trains a network, or measures a stored network.
            arrays: actor that returns references of images.
            files: store for weights, predictions and checkpoints. None means that these files
                are not stored.
            messages: queue for messages to the driver. None means that nothing is sent.
            code: source code of user-defined networks, by relative path.
            pretrained: pretrained weights from which networks start, by
                :attr:`ModelSpec.pretrained_key`.
        """
        self.assignment: TrialAssignment = config[ASSIGNMENT]
        self._perform = perform
        self._arrays = arrays
        self._files = files
        self._messages = messages
        self._code = code or {}
        self._pretrained = pretrained or {}
        self._has_finished_a_trial = False
        self._gpu_name = ""
        self._gpu_uuid = ""

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Save the next trial. It runs in the same process, because the start of a new process
        takes seconds.
        """
        self.assignment = new_config[ASSIGNMENT]
        return True

    def step(self) -> dict[str, Any]:
        """Run the trial and return its report.

        Raises:
            TrialFailedError: the trial failed. The error contains the report.
        """
        trial_id = self.assignment.trial_id
        started_at = time.time()
        # Durations are stored, so they need a clock that nobody can set.
        monotonic_start = time.monotonic()
        if self._messages is not None:
            self._messages.publish(WorkerLocation.here(trial_id))
        # `top` and the dashboard's node page show this title until Ray restores its own. This
        # function is private. If a version of Ray lacks it, they show the name of the class.
        getattr(ray._raylet, "setproctitle", lambda title: None)(f"ray::isweep {trial_id}")
        with recorded() as attempt_log:
            try:
                self._check_code()
                report = self._run(started_at)
                # The code is checked again, because the trial imports further modules.
                self._check_code()
                self._has_finished_a_trial = True
            except (Exception, SystemExit) as error:  # A user's network may raise SystemExit.
                failure = self._failure(error)
                self._delay_broken_node(failure)
                report = TrialReport(
                    started_at=started_at,
                    finished_at=started_at,
                    outcome=failure,
                    gpu_name=self._gpu_name,
                )
            outcome = report.outcome
            seconds = time.monotonic() - monotonic_start
            if isinstance(outcome, TrialFailure):
                ending = f"failed ({outcome.kind})"
            else:
                ending = outcome.status.value
            # This line appears in the attempt's log, and in the worker's log on the dashboard.
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
        """Run the trial, and return its report. :meth:`step` adds the missing fields."""
        assignment = self.assignment
        resources = assignment.resources
        network = assignment.spec.network
        data = self._images()
        device = trial_device.device_for(resources, network)
        if device.device == "cuda":
            # The GPU is read before the training, because a failed GPU no longer answers.
            gpu = torch_gpus.gpu_in_use()
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
        """Return the failure for an exception. Add facts about the GPU of this process."""
        failure = classify(error)
        num_gpus = self.assignment.resources.num_gpus
        facts: dict[str, Any] = {}
        message = failure.message
        # A trial with less than one GPU has a fixed memory limit, so memory of other processes
        # cannot be the cause.
        if failure.memory == "gpu" and num_gpus >= 1:
            memory_of_others = trial_device.held_by_others()
            if memory_of_others is not None:
                facts["held_by_others"] = memory_of_others.share
                message = f"{memory_of_others}: {message}"
        if failure.ends_process and num_gpus:
            gpu = trial_device.gpu_and_node(self._gpu_uuid)
            message = f"{message} ({gpu})"
            if failure.kind == FailureKind.DEVICE_ERROR and not failure.capture_failed:
                facts["gpu"] = gpu
        failure = failure.model_copy(update={**facts, "message": message})
        if may_break_mps(failure):
            abandon_mps_in_run()
        return failure

    def _delay_broken_node(self, failure: TrialFailure) -> None:
        """Wait for FIRST_QUARANTINE_S seconds if the first trial of this process failed
        because of the node.

        Without this wait, a node on which trials fail at once would get every trial of the
        sweep. If the node is the only one and has other source code, the worker does not wait,
        because no other node could run the trials.
        """
        if failure.kind == FailureKind.OTHER_CODE and len(live_nodes()) == 1:
            return
        is_by_node = failure.kind in NODE_FAILURES and not failure.capture_failed
        if not self._has_finished_a_trial and (is_by_node or failure.unfit_node):
            time.sleep(trial_device.FIRST_QUARANTINE_S)

    def _images(self) -> TrialData:
        """Set up the process for computing, and return the trial's images."""
        from tasks.trials.isolation import keep_freed_memory
        from tasks.trials.user_networks import install_code

        keep_freed_memory()
        # The reference is in a list, because Ray would load the images of a bare reference
        # into the process of the actor.
        (reference,) = ray.get(self._arrays.take.remote(self.assignment.array))
        if isinstance(reference, SweepError):
            raise reference
        install_code(self._code)
        data: TrialData = ray.get(reference)
        return data

    def _check_code(self) -> None:
        """Check that this process runs the same source code as the driver.

        If the process has finished a trial, it is not checked again, because it has loaded all
        modules.

        Raises:
            OtherCodeError: the source code differs.
        """
        if self._has_finished_a_trial:
            return
        expected = self.assignment.code
        code_here = code_fingerprint()
        if code_here == expected:
            return
        node = ray.util.get_node_ip_address()
        raise OtherCodeError(
            f"The source code of isweep on node {node} (version {provenance().code_version}, hash "
            f"{code_here}) differs from the source code on the driver (hash {expected})",
            hint="Install the same isweep on every node, and do not change it while a sweep runs",
        )

    def save_checkpoint(self, _: Any) -> None:
        """Do nothing, because Tune's checkpoints are not used."""

    load_checkpoint = save_checkpoint


def configured_trainable(trainable: type[TrialTrainable], **shared: Any) -> Any:
    """Return a trainable for Tune with the arguments that all trials share. Tune reads a
    trial's resource request from its assignment.

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
