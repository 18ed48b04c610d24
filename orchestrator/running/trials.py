"""The loop that runs trials. It supplies their assignments, and processes results and
failures.

The loop itself sends no trial to a worker. Whenever Ray Tune can start a trial, it requests
one from :class:`~orchestrator.running.queue.TrialGenerator`. The generator takes the trial
from the queue and gets the trial's assignment from the loop. Tune then sends the assignment to
a worker. When the trial starts, ends or fails, Tune calls methods of the loop.

The report of a worker contains the trial's result. The worker stores its files (weights,
predictions and checkpoints) through an actor on the driver's node
(:class:`~orchestrator.running.actors.ArtifactStore`).

Each trial of the queue has one of these states:

=========  ===============================================  ===================================
state      event                                            next state
=========  ===============================================  ===================================
waiting    Tune asks for a trial                            submitted; the attempt is counted
submitted  its worker answers                               running
submitted  result or failure                                as in the state running
submitted  Tune's loop fails                                waiting; the attempt does not count
submitted  Tune's loop fails, Ray killed this worker        as after a failure of the trial
running    result                                           ended
running    failure, and it may be retried                   waiting for the end of a pause
running    failure, and it is not retried                   ended
running    Tune's loop fails, Ray killed no worker          as after a failure of the trial
running    Tune's loop fails, Ray killed this worker        as after a failure of the trial
running    Tune's loop fails, Ray killed only other         waiting; the attempt does not count
           workers
=========  ===============================================  ===================================

In this table, "Ray killed" always means that Ray killed workers because memory ran out.

:class:`~orchestrator.running.outcomes.Outcomes` processes results and failures.

If an error must stop the run, it is first stored in the queue of trials. The next call of
``on_step_begin`` raises the error, and this ends Tune's loop.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import closing
from typing import Any

from ray import tune

from orchestrator.machine.signals import raise_if_stop_requested
from orchestrator.machine.watch import at_forced_end
from orchestrator.planning.plan import PlannedStatus
from orchestrator.results.flat_runs import trial_tags
from orchestrator.results.records import FailureKind, TrialFailure
from orchestrator.running.attempts import Attempts
from orchestrator.running.backend import Backend, TuneBackend
from orchestrator.running.messages import (
    EpochReport,
    Note,
    TrialAssignment,
    TrialReport,
    WorkerLocation,
)
from orchestrator.running.outcomes import Outcomes
from orchestrator.running.queue import TrialGenerator, assignment_of, free_memory, trial_id_of
from orchestrator.running.recovery.failures import classify_broken_loop
from orchestrator.running.recovery.start_wait import StartWait
from orchestrator.running.recovery.watchdog import Watchdog
from orchestrator.running.trial_source import RunContext, TrialSource
from orchestrator.running.workers.worker import REPORT
from search_spaces.errors import SetupError
from tasks.clock import SYSTEM, Clock

log = logging.getLogger(__name__)

MAX_TUNE_FAILURES = 5
"""Number of times in a row that Tune's loop may fail without a new result. One more failure
ends the run."""
NO_RESULT = TrialFailure(
    kind=FailureKind.WORKER_CRASH, message="Ray Tune ended without a result for this trial"
)
"""Failure of a trial that Tune ended without a result and without an error."""


class TrialLoop(tune.Callback):  # type: ignore[misc]  # Ray ships without types
    """The loop that runs the trials of a source and retries failed trials.

    Args:
        run: context that the trials share.
        source: the trials.
        backend: system that executes the trials. None means Ray Tune.
        clock: source of the time.
    """

    def __init__(
        self,
        run: RunContext,
        source: TrialSource,
        backend: Backend | None = None,
        clock: Clock = SYSTEM,
    ) -> None:
        self._run = run
        self._source = source
        self._queue = source.queue
        self._backend = backend or TuneBackend(run, source)
        self._clock = clock
        self._attempts = Attempts(source.earlier_attempts, run.stored.store, clock)
        start_wait = StartWait(
            run.monitor.note,
            self._backend.shortage,
            is_private=run.cluster.is_private,
            cpu_seconds=self._backend.worker_cpu_seconds,
            now=clock.monotonic(),
        )
        self._watchdog = Watchdog(run.monitor.note, self._killer_of, start_wait, clock)
        self._outcomes = Outcomes(run, source, self._backend, self._attempts, self._watchdog, clock)

    def __getstate__(self) -> dict[str, Any]:
        """Return an empty state. Tune saves this state, but isweep never restores it."""
        return {}

    def run(self) -> None:
        """Run trials until each has a result or gets no further attempt.

        Raises:
            SweepError: results cannot be stored, or no trial can run.
        """
        arrays = self._backend.arrays
        # A forced end of the process skips the end of `with` blocks, so it needs its own call.
        with at_forced_end(arrays.close), closing(arrays):
            while not self._queue.is_finished:
                generator = TrialGenerator(self._queue, self._start_attempt, self._clock)
                try:
                    self._backend.fit(self, generator)
                except Exception as error:
                    self._process_tune_failure(error)
                self._queue.raise_if_stopped()
                # Tune may end before all submitted trials have reported.
                for trial_id in sorted(self._queue.submitted):
                    self._outcomes.process_unreported_end(trial_id, NO_RESULT)

    def _start_attempt(self, trial_id: str) -> TrialAssignment:
        """Count a new attempt at a trial, and return the assignment for its worker."""
        self._attempts.begin(trial_id)
        trial = self._source.trials[trial_id]
        return self._source.assignment(trial, self._outcomes.resources.start_attempt(trial))

    # Tune calls the next methods. It passes its own trial objects by the keywords `trial` and
    # `trials`.

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Start a trial's time limit, send its images to its worker, and show that the trial
        runs.

        If no earlier trial has used these images, this call reads them. This may take seconds.
        """
        trial_id = trial_id_of(trial)
        spec = self._source.trials[trial_id]
        attempt = self._attempts.of(trial_id)
        self._queue.start(trial_id)
        attempt.started_s = self._clock.monotonic()
        with self._queue.stop_on_error():
            self._backend.arrays.add_trial(trial_id, self._source.array_of(spec))
        if self._queue.is_stopped:
            return
        self._watchdog.add(trial_id, self._source.time_limit_s(spec))
        domain = self._source.domain_of(spec)
        tags = trial_tags(spec, domain, PlannedStatus.RUNNING, attempt.number)
        self._run.tracker.start_trial(trial_id, tags)
        self._run.monitor.trial_started(trial_id)
        self._attempts.log_event(trial_id, "started")

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Check the running trials and process messages, several times a second.

        If an error must stop the run, it is raised here. Otherwise Tune would start further
        trials.
        """
        raise_if_stop_requested()
        with self._queue.stop_on_error():
            self._watchdog.check(trials, self._queue.submitted)
        self._raise_if_stopped()
        self._backend.arrays.check_actor()
        self._take_messages()
        requests = (
            assignment_of(trial).resources.as_ray() for trial in trials if trial.status == "RUNNING"
        )
        self._backend.publish(self._run.monitor, requests)

    def _raise_if_stopped(self) -> None:
        """Raise the error that stops the run, if there is one.

        After this error, Tune kills the processes of the trials. If these processes use
        NVIDIA's MPS, their work on the GPU must end before they are killed
        (:mod:`orchestrator.machine.mps`).
        """
        mps = self._run.cluster.mps
        if self._queue.is_stopped and mps is not None:
            mps.end_gpu_work()
        self._queue.raise_if_stopped()

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Process a worker's report. Tune calls this method if the worker raised no exception."""
        report = TrialReport.model_validate_json(result[REPORT])
        self._outcomes.process_report(trial_id_of(trial), report)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Process the failure of a trial or of its process, for example a crash or a lost
        node.

        Tune calls this method if the worker raised an exception or does not answer any more.
        If the worker reported the failure, the exception contains the report.
        """
        trial_id = trial_id_of(trial)
        self._take_messages(wait=True)
        location = self._attempts.of(trial_id).location
        outcome: TrialReport | TrialFailure | None = self._watchdog_failure(trial_id)
        if outcome is None:
            # Ask Ray only after the watchdog: to Ray, a process that the watchdog killed looks
            # like a crash.
            outcome = self._backend.outcome_of(trial, location)
        if isinstance(outcome, TrialReport):
            self._outcomes.process_report(trial_id, outcome)
        else:
            self._outcomes.process_unreported_end(trial_id, outcome)
        free_memory(trial)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Process the end of a trial in Tune. If the worker sent no report, the attempt has
        failed.

        Tune calls this method after the last ``on_trial_result``. If the worker sent a report,
        the trial is not in ``submitted`` any more, and this call changes nothing.
        """
        self._outcomes.process_unreported_end(trial_id_of(trial), NO_RESULT)
        free_memory(trial)

    def _watchdog_failure(self, trial_id: str) -> TrialFailure | None:
        """Return the failure with which the watchdog ended the last attempt. Add the trial's
        GPU to it.

        Returns:
            The failure, or None if the watchdog did not end the attempt.
        """
        failure = self._watchdog.failure_of(trial_id)
        location = self._attempts.of(trial_id).location
        if failure is None or location is None or not location.has_gpu:
            return failure
        gpu = f"GPU {location.gpus} of node {location.node}"
        return failure.model_copy(update={"gpu": gpu, "message": f"{failure.message} ({gpu})"})

    # The next methods process failures of Tune's loop, and messages.

    def _process_tune_failure(self, error: Exception) -> None:
        """Process a failure of Tune's loop. The trials that were running count as failed. The
        other submitted trials return to the queue.

        If Ray killed workers because memory ran out, only the trials of these workers count as
        failed.
        """
        if self._queue.is_stopped:
            return
        self._outcomes.num_tune_failures += 1
        log.warning(
            "Ray Tune failed (%d times in a row)", self._outcomes.num_tune_failures, exc_info=error
        )
        failure = classify_broken_loop(error)
        killed_ids: set[str] = set()
        if failure.kind == FailureKind.OUT_OF_MEMORY:
            killed_ids = self._killed_for_memory()
        # If Ray killed no worker, all trials with a worker count as failed.
        failed_ids = killed_ids or set(self._queue.running)
        if self._queue.running:
            # Tune kills the processes without a call to isweep, so their GPU work was not
            # ended.
            self._outcomes.abandon_mps(
                "Ray Tune failed, and may have killed trials while they computed"
            )
        for trial_id in sorted(self._queue.submitted):
            if trial_id in failed_ids:
                self._outcomes.process_unreported_end(trial_id, failure)
            else:
                self._outcomes.requeue_without_count(trial_id, failure, killed_ids)
        if not self._backend.is_up() or self._outcomes.num_tune_failures > MAX_TUNE_FAILURES:
            run_error = SetupError(
                f"Ray Tune cannot run trials: {failure.message}",
                hint="Run the same command again. Finished trials are kept. The details are in "
                "`isweep.log` below the root",
            )
            self._queue.stop(run_error)

    def _killed_for_memory(self) -> set[str]:
        """Return the ids of the trials whose worker Ray killed because memory ran out."""
        self._take_messages(wait=True)
        locations: dict[str, WorkerLocation] = {}
        for trial_id in sorted(self._queue.submitted):
            location = self._attempts.of(trial_id).location
            if location is not None:
                locations[trial_id] = location
        return self._backend.killed_for_memory(locations)

    def _killer_of(self, tune_trial: Any) -> Callable[[], object] | None:
        """Return a function that kills a trial's process, or None if the trial has no process.

        If the process uses NVIDIA's MPS, the function first ends its work on the GPU.
        """
        kill = self._backend.killer_of(tune_trial)
        location = self._attempts.of(trial_id_of(tune_trial)).location
        mps = self._run.cluster.mps
        if kill is None or mps is None or location is None:
            return kill

        def end_work_and_kill() -> None:
            mps.end_gpu_work({location.pid})
            kill()

        return end_work_and_kill

    def _take_messages(self, *, wait: bool = False) -> None:
        """Process the messages of workers: locations, epochs, and notes to the user.

        Args:
            wait: If True, wait until the actor for messages answers. This call then processes
                all messages that were sent before it.
        """
        now_ms = round(self._clock.time() * 1000)
        for message in self._backend.poll(wait=wait):
            trial_id = message.trial_id
            self._watchdog.note_message(trial_id)
            if isinstance(message, WorkerLocation):
                attempt = self._attempts.of(trial_id)
                attempt.location = message
                attempt.node = message.node
            elif isinstance(message, Note):
                self._run.monitor.note(f"{trial_id}: {message.text}")
            elif trial_id in self._queue.submitted:
                self._epoch_ended(message, now_ms)

    def _epoch_ended(self, message: EpochReport, now_ms: int) -> None:
        """Process the end of an epoch of a running trial, and show it."""
        trial_id = message.trial_id
        self._outcomes.node_health.epoch_ended(self._attempts.of(trial_id).node)
        network = self._source.trained_network(self._source.trials[trial_id])
        self._run.monitor.trial_epoch(trial_id, message.epoch, network)
        points = self._source.curve_points(message.epoch, message.score, now_ms)
        if points:
            self._run.tracker.log_points(trial_id, points)
