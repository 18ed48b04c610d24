"""The loop that runs trials: it sends them to workers, stores results, and retries failed trials.

Ray Tune only executes trials: it calls the loop's methods when a trial starts, ends or fails. Only
this loop, in the driver, writes the records of trials. Workers store weights, predictions and
checkpoints through an actor.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, cast

from ray import tune

from orchestrator.machine.mps import breaks_mps
from orchestrator.machine.signals import at_forced_end, raise_if_asked
from orchestrator.planning.plan import CellStatus
from orchestrator.planning.redaction import without_secrets
from orchestrator.results.flat_runs import trial_tags
from orchestrator.results.records import FailureKind, FailureRecord, TrialFailure
from orchestrator.results.store import Event, EventKind
from orchestrator.running.backend import Backend, TuneBackend
from orchestrator.running.messages import (
    EpochReport,
    Note,
    TrialAssignment,
    TrialReport,
    WorkerLocation,
)
from orchestrator.running.queue import TrialGenerator, assignment_of, free_memory, trial_id_of
from orchestrator.running.recovery.failures import classify_broken_loop
from orchestrator.running.recovery.node_health import NodeHealth
from orchestrator.running.recovery.resource_policy import ResourcePolicy
from orchestrator.running.recovery.retries import Decision, Retries
from orchestrator.running.recovery.watchdog import Watchdog
from orchestrator.running.trial_source import RunContext, TrialSource
from orchestrator.running.worker import REPORT
from search_spaces.errors import SetupError, SweepError
from tasks.clock import SYSTEM, Clock
from tasks.trials.records import TrialResult

log = logging.getLogger(__name__)

MAX_TUNE_FAILURES = 5
"""Largest number of failures of Tune's loop, without a finished trial in between, after which the
loop is started again. The next failure ends the run."""
NO_RESULT = TrialFailure(
    kind=FailureKind.WORKER_CRASH, message="Ray Tune ended without a result for this trial"
)
"""Failure of a trial that ended in Tune without a result or an error."""


@dataclass
class Attempt:
    """The present attempt at a trial, or its last one.

    Attributes:
        number: number of attempts at the trial so far, in all runs.
        location: where the attempt runs; None until its worker has sent this.
        node: address of the attempt's node; empty if unknown.
        started_s: monotonic time at which Tune started the attempt, in seconds; infinite before.
    """

    number: int
    location: WorkerLocation | None = None
    node: str = ""
    started_s: float = math.inf


class TrialLoop(tune.Callback):  # type: ignore[misc]  # Ray ships without types
    """The loop that runs the trials of a source, and retries failed trials.

    Args:
        run: context that the trials share.
        source: the trials.
        backend: executes the trials; None uses Ray Tune.
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
        self._retries = Retries()
        self._node_health = NodeHealth(monotonic=clock.monotonic)
        self._resources = ResourcePolicy(
            run.resources, run.runtime_model, self._backend.node_memory_bytes, run.small_gpus
        )
        self._watchdog = Watchdog(
            run.monitor.note,
            self._killer_of,
            self._backend.shortage,
            is_private=run.cluster.is_private,
            cpu_seconds=self._backend.worker_cpu_seconds,
            clock=clock,
        )
        self._attempts: dict[str, Attempt] = {}
        self._num_tune_failures = 0
        self._shown_gpu_notes = {""}  # The empty note is never shown.

    def __getstate__(self) -> dict[str, Any]:
        """Return no state: Tune saves it, but this program never restores it."""
        return {}

    def run(self) -> None:
        """Run trials until each has a result or gets no further attempt.

        Raises:
            SweepError: results cannot be stored, or no trial can run.
        """
        arrays = self._backend.arrays
        # A forced end of the process skips the end of `with` blocks, so it needs its own call.
        with at_forced_end(arrays.close), closing(arrays):
            while not self._queue.is_empty:
                generator = TrialGenerator(self._queue, self._start_attempt, self._clock)
                try:
                    self._backend.fit(self, generator)
                except Exception as error:
                    # For the trials that ran, this counts as a failed attempt.
                    self._process_tune_failure(error)
                self._queue.raise_if_stopped()
                # These trials did not report before Tune ended.
                for trial_id in sorted(self._queue.submitted):
                    self._process_missing_report(trial_id, NO_RESULT)

    def _start_attempt(self, trial_id: str) -> TrialAssignment:
        """Start an attempt at a trial: count it, and return the assignment for its worker."""
        self._attempts[trial_id] = Attempt(self._attempt(trial_id).number + 1)
        trial = self._source.trials[trial_id]
        return self._source.assignment(trial, self._resources.start_attempt(trial))

    # Calls from Tune. It passes its own trial objects by the keywords `trial` and `trials`.

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Make a trial's images available to its worker, and show that it runs.

        For the first trial with these images, this call may read the images for seconds.
        """
        trial_id = trial_id_of(trial)
        planned_trial = self._source.trials[trial_id]
        self._queue.running.add(trial_id)
        self._attempt(trial_id).started_s = self._clock.monotonic()
        with self._stop_run_on_error():
            self._backend.arrays.add_trial(trial_id, self._array_key(trial_id))
        if self._queue.is_stopped:
            return
        domain = self._source.domain_of(planned_trial)
        number = self._attempt(trial_id).number
        tags = trial_tags(planned_trial, domain, CellStatus.RUNNING, number)
        self._run.tracker.start_trial(trial_id, tags)
        self._run.monitor.trial_started(trial_id)
        self._watchdog.add(trial_id, self._source.time_limit_s(planned_trial))
        self._log_event(trial_id, "started")

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Check the running trials and process messages, several times a second.

        An error that stops the run is raised here. Otherwise Tune would run further trials.
        """
        raise_if_asked()
        with self._stop_run_on_error():
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

        After an error, Tune kills the trials' processes. With NVIDIA's MPS, their GPU work must end
        first.
        """
        mps = self._run.cluster.mps
        if self._queue.is_stopped and mps is not None:
            mps.end_clients()
        self._queue.raise_if_stopped()

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Process a worker's report. Tune calls this method if the worker raised no exception."""
        report = TrialReport.model_validate_json(result[REPORT])
        self._process_report(trial_id_of(trial), report)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Process the failure of a trial or of its process, such as a crash or a lost node.

        Tune calls this method if the worker raised an exception, or does not answer any more. A
        report of a failure is part of the exception.
        """
        trial_id = trial_id_of(trial)
        self._take_messages(wait=True)
        location = self._attempt(trial_id).location
        outcome = self._hang_failure(trial_id) or self._backend.outcome_of(trial, location)
        if isinstance(outcome, TrialReport):
            self._process_report(trial_id, outcome)
        else:
            self._process_missing_report(trial_id, outcome)
        free_memory(trial)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Process the end of a trial in Tune; without a report, its attempt failed.

        Tune calls this method after the last ``on_trial_result``. A trial that has reported is not
        submitted any more, so this call changes nothing.
        """
        self._process_missing_report(trial_id_of(trial), NO_RESULT)
        free_memory(trial)

    # Outcomes of attempts.

    def _process_report(self, trial_id: str, report: TrialReport) -> None:
        """Process a worker's report; a repeated report has no effect."""
        if trial_id not in self._queue.submitted or self._queue.is_stopped:
            return
        self._attempt(trial_id).node = report.node
        outcome = report.outcome
        with self._stop_run_on_error():
            if isinstance(outcome, TrialFailure):
                self._process_failure(
                    trial_id,
                    outcome,
                    process_ended=outcome.ends_process,
                    log_text=report.log,
                    gpu_name=report.gpu_name,
                )
                # Only reported failures count for the node: a crash has no report, and it does not
                # show that its node is unfit.
                self._report_to_node_health(trial_id, outcome)
            else:
                self._process_result(trial_id, report)

    def _process_missing_report(self, trial_id: str, failure: TrialFailure) -> None:
        """Process an attempt that ended without a report: crashed, hung, or stopped with Tune.

        It has no effect if the trial has already reported.
        """
        if trial_id not in self._queue.submitted or self._queue.is_stopped:
            return
        with self._stop_run_on_error():
            self._process_failure(trial_id, failure, process_ended=True)

    def _hang_failure(self, trial_id: str) -> TrialFailure | None:
        """Return the failure of a trial that hung, with its GPU, which may be the cause."""
        failure = self._watchdog.failure(trial_id)
        location = self._attempt(trial_id).location
        if failure is None or location is None or not location.num_gpus or not location.gpus:
            return failure
        gpu = f"GPU {location.gpus} of node {location.node}"
        return failure.model_copy(update={"gpu": gpu, "message": f"{failure.message} ({gpu})"})

    def _report_to_node_health(self, trial_id: str, failure: TrialFailure) -> None:
        """Report a failure to the node health, which counts it if the node caused it.

        Raises:
            SetupError: no node can run trials.
        """
        eligible = self._backend.eligible_nodes(failure)
        attempt = self._attempt(trial_id)
        gpus = "" if attempt.location is None else attempt.location.gpus
        self._node_health.count_node_failure(
            attempt.node, failure, eligible, gpus, attempt.started_s
        )

    def _process_result(self, trial_id: str, report: TrialReport) -> None:
        """Store a result, and show it in MLflow and the terminal."""
        trial = self._source.trials[trial_id]
        status = cast("TrialResult", report.outcome).status
        attempt = self._attempt(trial_id)
        row = self._source.store_result(trial, report, attempt.number)
        self._resources.finished(trial)
        self._retries.finished()
        gpus = "" if attempt.location is None else attempt.location.gpus
        self._node_health.finished(report.node, gpus)
        self._num_tune_failures = 0
        self._remove(trial_id)
        self._run.tracker.finish(row)
        self._run.monitor.trial_finished(trial_id, status)
        self._show_counts()
        self._log_event(trial_id, "finished", str(status), report.log)
        if report.gpu_note not in self._shown_gpu_notes:  # once for each GPU
            self._shown_gpu_notes.add(report.gpu_note)
            self._run.monitor.note(report.gpu_note)

    def _process_failure(
        self,
        trial_id: str,
        failure: TrialFailure,
        *,
        process_ended: bool = False,
        log_text: str = "",
        gpu_name: str = "",
    ) -> None:
        """Store a failure, decide about a retry, and show both.

        Args:
            trial_id: id of the trial.
            failure: why the attempt failed.
            process_ended: True if the worker's process has died, or must not be used again.
            log_text: log of the attempt.
            gpu_name: the driver's name of the GPU on which it failed; empty if unknown.
        """
        trial = self._source.trials[trial_id]
        verdict = self._resources.failed(trial, failure, gpu_name)
        failure = _without_secrets(failure, verdict.hint)
        number = self._attempt(trial_id).number
        record = FailureRecord(trial_id=trial_id, spec=trial, attempt=number, failure=failure)
        self._run.stored.save(record)
        self._backend.count_failure(failure.kind)
        self._protect_other_trials(trial_id, failure)
        decision = self._retries.failed(
            trial_id, failure, process_ended=process_ended, is_final=verdict.is_final
        )
        if decision.pause_s is None:
            self._remove(trial_id)
            self._source.give_up(trial_id)
        else:
            self._retry_later(trial_id, decision.pause_s)
        self._show_failure(record, decision, log_text)

    def _show_failure(self, record: FailureRecord, decision: Decision, log_text: str) -> None:
        """Show a failure and what follows from it in MLflow, the terminal and the event log."""
        trial_id = record.trial_id
        failure = record.failure
        ending = decision.reason
        if decision.pause_s is None:
            ending = f"given up: {ending}"
        message = f"{failure.message} ({ending})"
        self._run.tracker.fail_trial(record)
        self._run.monitor.trial_failed(trial_id, failure.kind, message, decision.pause_s)
        self._show_counts()
        if failure.traceback:
            log_text = f"{log_text}\n{failure.traceback}"
        self._log_event(trial_id, "failed", f"{failure.kind}: {message}", log_text)

    def _protect_other_trials(self, trial_id: str, failure: TrialFailure) -> None:
        """Quarantine the GPU and stop using MPS, if the failure shows that they are broken."""
        attempt = self._attempt(trial_id)
        location = attempt.location
        if failure.gpu and location is not None:
            seconds = self._node_health.count_gpu_failure(
                location.node, location.gpus, attempt.started_s
            )
            self._backend.quarantine(location, seconds)
        if breaks_mps(failure):
            self._stop_using_mps(f"{trial_id} failed ({failure.kind})")

    def _stop_using_mps(self, reason: str) -> None:
        """Let new trials compute without NVIDIA's MPS, and request shares that pay without it."""
        mps = self._run.cluster.mps
        if mps is not None and mps.is_used:
            consequence = self._resources.use_shares_without_mps()
            mps.stop_using(reason, consequence)

    def _remove(self, trial_id: str) -> None:
        """Remove a trial that has a result, or that gets no further attempt."""
        self._queue.remove(trial_id)
        self._watchdog.remove(trial_id)
        self._backend.arrays.remove_trial(trial_id, self._array_key(trial_id), for_good=True)

    def _retry_later(self, trial_id: str, pause_s: float) -> None:
        """Let a trial start again after a pause."""
        self._queue.retry(trial_id, self._clock.monotonic() + pause_s)
        self._watchdog.remove(trial_id)
        self._backend.arrays.remove_trial(trial_id, self._array_key(trial_id), for_good=False)

    # Failures of Tune's loop, and messages.

    def _process_tune_failure(self, error: Exception) -> None:
        """Process a failure of Tune's loop: fail the trials that ran, and queue the others again.

        If Ray killed workers because memory ran out, only their trials count as failed.
        """
        if self._queue.is_stopped:
            return
        self._num_tune_failures += 1
        log.warning("Ray Tune failed (%d times in a row)", self._num_tune_failures, exc_info=error)
        failure = classify_broken_loop(error)
        blamed_ids: set[str] = set()
        if failure.kind == FailureKind.OUT_OF_MEMORY:
            blamed_ids = self._killed_for_memory()
        # If Ray killed no worker, all trials with a worker count as failed.
        failed_ids = blamed_ids if blamed_ids else self._queue.running
        if self._queue.running:
            # Tune calls nothing of isweep before it kills the processes.
            self._stop_using_mps("after an error, Ray Tune killed trials while they computed")
        for trial_id in sorted(self._queue.submitted):
            if trial_id in failed_ids:
                self._process_missing_report(trial_id, failure)
            else:
                self._requeue_uncounted(trial_id, failure, blamed_ids)
        if not self._backend.is_up() or self._num_tune_failures > MAX_TUNE_FAILURES:
            run_error = SetupError(
                f"Ray Tune cannot run trials: {failure.message}",
                hint="Read the details in isweep.log below the root, and run the same "
                "command again. Finished trials are kept",
            )
            self._queue.stop(run_error)

    def _killed_for_memory(self) -> set[str]:
        """Return the ids of the trials whose worker Ray killed because memory ran out."""
        self._take_messages(wait=True)
        locations: dict[str, WorkerLocation] = {}
        for trial_id in sorted(self._queue.submitted):
            location = self._attempt(trial_id).location
            if location is not None:
                locations[trial_id] = location
        return self._backend.killed_for_memory(locations)

    def _requeue_uncounted(
        self, trial_id: str, failure: TrialFailure, blamed_ids: set[str]
    ) -> None:
        """Queue a trial again that stopped because Tune failed, without counting the attempt.

        Nothing else must be undone: the policies for memory and retries do not know of a failure.

        Args:
            trial_id: id of a trial that had no worker yet, or that did not cause the failure.
            failure: the failure of Tune's loop.
            blamed_ids: ids of the trials that caused the failure; empty if unknown.
        """
        reason = f"Ray Tune ended: {failure.message} {', '.join(sorted(blamed_ids))}".strip()
        self._log_event(trial_id, "stopped", reason)
        self._attempt(trial_id).number -= 1
        self._retry_later(trial_id, 0.0)
        self._run.monitor.trial_stopped(trial_id)

    @contextmanager
    def _stop_run_on_error(self) -> Iterator[None]:
        """Catch a SweepError of the block, and stop the run with it.

        ``run`` raises the error later. Tune would treat an error that leaves the block as a failure
        of its own.
        """
        try:
            yield
        except SweepError as error:
            self._queue.stop(error)

    def _killer_of(self, tune_trial: Any) -> Callable[[], object] | None:
        """Return a function that kills a trial's process; None if the trial has no process.

        If the process uses NVIDIA's MPS, the function first ends its work on the GPU.
        """
        kill = self._backend.killer_of(tune_trial)
        location = self._attempt(trial_id_of(tune_trial)).location
        mps = self._run.cluster.mps
        if kill is None or mps is None or location is None:
            return kill

        def end_work_and_kill() -> None:
            mps.end_clients({location.pid})
            kill()

        return end_work_and_kill

    def _take_messages(self, *, wait: bool = False) -> None:
        """Process workers' messages: locations, epochs, and notes to the user."""
        now_ms = round(self._clock.time() * 1000)
        for message in self._backend.poll(wait=wait):
            trial_id = message.trial_id
            self._watchdog.note_message(trial_id)
            if isinstance(message, WorkerLocation):
                attempt = self._attempt(trial_id)
                attempt.location = message
                attempt.node = message.node
            elif isinstance(message, Note):
                self._run.monitor.note(f"{trial_id}: {message.text}")
            elif trial_id in self._queue.submitted:
                self._epoch_ended(message, now_ms)

    def _epoch_ended(self, message: EpochReport, now_ms: int) -> None:
        """Show the end of an epoch of a running trial."""
        trial_id = message.trial_id
        self._node_health.epoch_ended(self._attempt(trial_id).node)
        network = self._source.trained_network(self._source.trials[trial_id])
        self._run.monitor.trial_epoch(trial_id, message.epoch, network)
        points = self._source.curve_points(message.epoch, message.score, now_ms)
        if points:
            self._run.tracker.log_points(trial_id, points)

    def _show_counts(self) -> None:
        """Log the numbers of trials to MLflow."""
        counts = self._run.monitor.counts()
        num_ended = counts["trials_done"] + counts["trials_failed"]
        self._run.tracker.log_counts(num_ended, counts)

    def _log_event(
        self, trial_id: str, kind: EventKind, text: str = "", log_text: str = ""
    ) -> None:
        """Add an event to a trial's event log, together with the log of its attempt."""
        attempt = self._attempt(trial_id)
        event = Event(
            at=self._clock.time(),
            what=kind,
            attempt=attempt.number,
            node="" if kind == "started" else attempt.node,
            said=text,
        )
        self._run.stored.store.log_event(trial_id, event, without_secrets(log_text))

    def _attempt(self, trial_id: str) -> Attempt:
        """Return the present attempt at a trial, or its last one."""
        if trial_id not in self._attempts:
            self._attempts[trial_id] = Attempt(self._source.earlier_attempts.get(trial_id, 0))
        return self._attempts[trial_id]

    def _array_key(self, trial_id: str) -> str:
        """Return the key of a trial's images."""
        return self._source.array_of(self._source.trials[trial_id])


def _without_secrets(failure: TrialFailure, hint: str) -> TrialFailure:
    """Return a failure for storage, without secrets and with the hint in front of its message."""
    message = without_secrets(failure.message)
    if hint:
        message = f"{hint} ({message})"
    traceback = without_secrets(failure.traceback)
    return failure.model_copy(update={"message": message, "traceback": traceback})
