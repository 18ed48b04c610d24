"""The loop that runs trials: it sends them to workers, stores results, and retries failed trials.

The store decides which trials remain, and Ray Tune only executes them. Only this loop, in the
driver, writes the records of trials. Workers store weights and predictions through an actor. Tune
calls the loop's methods when a trial starts, ends or fails.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
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
from orchestrator.running.queue import TrialGenerator, assignment_of, release, trial_id_of
from orchestrator.running.recovery.failures import classify_broken_loop
from orchestrator.running.recovery.resource_policy import ResourcePolicy
from orchestrator.running.recovery.retries import Retries
from orchestrator.running.recovery.watchdog import Watchdog
from orchestrator.running.trial_source import RunContext, TrialSource
from orchestrator.running.worker import REPORT
from search_spaces.errors import SetupError, SweepError
from tasks.clock import SYSTEM, Clock
from tasks.trials.records import TrialResult

log = logging.getLogger(__name__)

MAX_BROKEN_LOOPS = 5
"""Largest number of failures of Tune's loop in a row, without a result between them."""
NO_RESULT = TrialFailure(
    kind=FailureKind.WORKER_CRASH, message="Ray Tune ended without a result for this trial"
)
"""Failure of a trial that ended without a result or an error."""


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
        self._resources = ResourcePolicy(
            run.resources, run.expectation, self._backend.node_memory_bytes, run.small_gpus
        )
        self._watchdog = Watchdog(
            run.monitor.note,
            self._backend.killer_of,
            self._backend.shortage,
            is_private=run.cluster.local,
            cpu_seconds=self._backend.worker_cpu_seconds,
            clock=clock,
        )
        self._attempts: Counter[str] = Counter()
        self._num_broken_loops = 0
        self._locations: dict[str, WorkerLocation] = {}
        self._nodes: dict[str, str] = {}
        self._shown_notes = {""}

    def __getstate__(self) -> dict[str, Any]:
        """Return no state: Tune saves it, but this program never restores it."""
        return {}

    def run(self) -> None:
        """Run trials until each has a result or gets no further attempt.

        Raises:
            SweepError: results cannot be stored, or no trial can run.
        """
        arrays = self._backend.arrays
        with at_forced_end(arrays.close), closing(arrays):
            while not self._queue.is_empty:
                generator = TrialGenerator(self._queue, self._assign, self._clock)
                try:
                    self._backend.fit(self, generator)
                except Exception as error:
                    # Running trials may lose an attempt; other trials do not.
                    self._loop_broke(error)
                self._queue.raise_if_stopped()
                for trial_id in sorted(self._queue.running):  # Tune ended without their results
                    self._ended_without_report(trial_id, NO_RESULT)

    def _assign(self, trial_id: str) -> TrialAssignment:
        """Count an attempt at a trial, and return the assignment for its worker."""
        self._attempts[trial_id] += 1
        # The location of the last attempt is not valid for this one.
        self._locations.pop(trial_id, None)
        self._nodes.pop(trial_id, None)
        trial = self._source.trials[trial_id]
        return self._source.assignment(trial, self._resources.request_for(trial))

    # What Tune reports.

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Make a trial's images available to its worker, and show that it runs."""
        trial_id = trial_id_of(trial)
        spec = self._source.trials[trial_id]
        self._queue.started.add(trial_id)
        with self._stop_run_on_error():
            self._backend.arrays.trial_started(trial_id, self._array(trial_id))
        if self._queue.is_stopped:
            return
        domain = self._source.domain_of(spec)
        tags = trial_tags(spec, domain, CellStatus.RUNNING, self._attempt(trial_id))
        self._run.tracker.start_trial(trial_id, tags)
        self._run.monitor.trial_started(trial_id)
        self._watchdog.started(trial_id, self._source.time_limit_s(spec))
        self._log_event(trial_id, "started")

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Check the running trials and process messages, several times a second.

        Errors that end the run are raised here; otherwise Tune would continue for hours.
        """
        raise_if_asked()
        with self._stop_run_on_error():
            self._watchdog.check(trials, self._queue.running)
        self._queue.raise_if_stopped()
        self._backend.arrays.check_actor()
        self._take_messages()
        requests = (
            assignment_of(trial).resources.as_ray() for trial in trials if trial.status == "RUNNING"
        )
        self._backend.publish(self._run.monitor, requests)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Process a worker's report."""
        report = TrialReport.model_validate_json(result[REPORT])
        self._reported(trial_id_of(trial), report)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Process the failure of a trial or of its process, such as a crash or a lost node."""
        trial_id = trial_id_of(trial)
        self._take_messages(wait=True)
        location = self._locations.get(trial_id)
        outcome = self._hang_failure(trial_id) or self._backend.outcome_of(trial, location)
        if isinstance(outcome, TrialReport):
            self._reported(trial_id, outcome)
        else:
            self._ended_without_report(trial_id, outcome)
        release(trial)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Process the end of a trial in Tune; without a report, its attempt failed.

        A trial that has reported is not in ``running`` any more, so this call changes nothing.
        """
        self._ended_without_report(trial_id_of(trial), NO_RESULT)
        release(trial)

    # What becomes of a trial.

    def _reported(self, trial_id: str, report: TrialReport) -> None:
        """Process a worker's report; a repeated report has no effect."""
        if trial_id not in self._queue.running or self._queue.is_stopped:
            return
        self._nodes[trial_id] = report.node
        outcome = report.outcome
        with self._stop_run_on_error():
            if isinstance(outcome, TrialFailure):
                self._failed(
                    trial_id,
                    outcome,
                    process_ended=outcome.ends_process,
                    log_text=report.log,
                    gpu_name=report.gpu_name,
                )
                self._check_nodes(trial_id, outcome)
            else:
                self._finished(trial_id, report)

    def _ended_without_report(self, trial_id: str, failure: TrialFailure) -> None:
        """Process an attempt that ended without a report: crashed, hung, or stopped with Tune.

        It has no effect if the trial has already reported.
        """
        if trial_id not in self._queue.running or self._queue.is_stopped:
            return
        with self._stop_run_on_error():
            self._failed(trial_id, failure, process_ended=True)

    def _hang_failure(self, trial_id: str) -> TrialFailure | None:
        """Return the failure of a trial that hung, with its GPU, which may be the cause."""
        failure = self._watchdog.failure(trial_id)
        location = self._locations.get(trial_id)
        if failure is None or location is None or not location.num_gpus or not location.gpus:
            return failure
        gpu = f"GPU {location.gpus} of node {location.node}"
        return failure.model_copy(update={"gpu": gpu, "message": f"{failure.message} ({gpu})"})

    def _check_nodes(self, trial_id: str, failure: TrialFailure) -> None:
        """Count a failure for its node.

        Raises:
            SetupError: no node can run trials.
        """
        node = self._nodes.get(trial_id, "")
        self._retries.check_nodes(node, failure, self._backend.eligible_nodes(failure))

    def _finished(self, trial_id: str, report: TrialReport) -> None:
        """Store a result, and show it in MLflow and the terminal."""
        trial = self._source.trials[trial_id]
        status = cast("TrialResult", report.outcome).status
        row = self._source.store_result(trial, report, self._attempt(trial_id))
        self._resources.finished(trial)
        location = self._locations.get(trial_id)
        self._retries.finished(report.node, location.gpus if location else "")
        self._num_broken_loops = 0
        self._close(trial_id)
        self._run.tracker.finish(row)
        self._run.monitor.trial_finished(trial_id, status)
        self._show_counts()
        self._log_event(trial_id, "finished", str(status), report.log)
        if report.gpu_note not in self._shown_notes:  # once for each GPU
            self._shown_notes.add(report.gpu_note)
            self._run.monitor.note(report.gpu_note)

    def _failed(
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
            process_ended: whether the worker's process has died, or must not be used again.
            log_text: log of the attempt.
            gpu_name: the driver's name of the GPU on which it failed; empty if unknown.
        """
        trial = self._source.trials[trial_id]
        verdict = self._resources.failed(trial, failure, gpu_name)
        failure = _without_secrets(failure, verdict.hint)
        record = FailureRecord(
            trial_id=trial_id, spec=trial, attempt=self._attempt(trial_id), failure=failure
        )
        self._run.stored.save(record)
        self._backend.count_failure(failure.kind)
        self._quarantine(trial_id, failure)
        mps = self._run.cluster.mps
        if mps is not None and breaks_mps(failure):
            mps.end_use(f"{trial_id} failed ({failure.kind})")
        decision = self._retries.failed(
            trial_id, failure, process_ended=process_ended, hopeless=verdict.is_final
        )
        if decision.pause_s is None:
            self._close(trial_id)
            self._source.give_up(trial_id)
            ending = f"given up: {decision.reason}"
        else:
            self._retry_later(trial_id, decision.pause_s)
            ending = decision.reason
        message = f"{failure.message} ({ending})"
        self._run.tracker.fail_trial(record)
        self._run.monitor.trial_failed(trial_id, failure.kind, message, decision.pause_s)
        self._show_counts()
        if failure.traceback:
            log_text = f"{log_text}\n{failure.traceback}"
        self._log_event(trial_id, "failed", f"{failure.kind}: {message}", log_text)

    def _quarantine(self, trial_id: str, failure: TrialFailure) -> None:
        """Quarantine the GPU of a trial, if the failure names a GPU as its cause."""
        location = self._locations.get(trial_id)
        if failure.gpu and location is not None:
            seconds = self._retries.quarantine_s(location.node, location.gpus)
            self._backend.quarantine(location, seconds)

    def _close(self, trial_id: str) -> None:
        """Remove a trial that has a result, or that gets no further attempt."""
        self._queue.settle(trial_id)
        self._watchdog.ended(trial_id)
        self._backend.arrays.trial_ended(trial_id, self._array(trial_id), for_good=True)

    def _retry_later(self, trial_id: str, pause_s: float) -> None:
        """Let a trial start again after a pause."""
        self._queue.retry(trial_id, self._clock.monotonic() + pause_s)
        self._watchdog.ended(trial_id)
        self._backend.arrays.trial_ended(trial_id, self._array(trial_id), for_good=False)

    # What concerns the whole run.

    def _loop_broke(self, error: Exception) -> None:
        """Prepare the next loop after Tune failed: fail the started trials, and queue the others.

        If Ray killed a worker for lack of memory, only its trial counts as failed.
        """
        if self._queue.is_stopped:
            return
        self._num_broken_loops += 1
        log.warning("Ray Tune failed (%d times in a row)", self._num_broken_loops, exc_info=error)
        failure = classify_broken_loop(error)
        killed: set[str] = set()
        if failure.kind == FailureKind.OUT_OF_MEMORY:
            killed = self._killed_for_memory()
        failed_ids = killed if killed else self._queue.started
        for trial_id in sorted(self._queue.running):
            if trial_id in failed_ids:
                self._ended_without_report(trial_id, failure)
            else:
                self._stopped(trial_id, failure, killed)
        if not self._backend.is_up() or self._num_broken_loops > MAX_BROKEN_LOOPS:
            error_of_run = SetupError(
                f"Ray Tune cannot run trials: {failure.message}",
                hint="Read the details in isweep.log below the root, and run the same "
                "command again. Finished trials are kept",
            )
            self._queue.stop(error_of_run)

    def _killed_for_memory(self) -> set[str]:
        """Return the ids of running trials whose worker Ray killed because memory ran out."""
        self._take_messages(wait=True)
        locations = {
            trial_id: self._locations[trial_id]
            for trial_id in sorted(self._queue.running)
            if trial_id in self._locations
        }
        return self._backend.killed_for_memory(locations)

    def _stopped(self, trial_id: str, failure: TrialFailure, killed: set[str]) -> None:
        """Queue a trial again that stopped because Tune failed, without counting an attempt.

        The trial had no worker yet, or another trial was the cause.
        """
        reason = f"Ray Tune ended: {failure.message} {', '.join(sorted(killed))}".strip()
        self._log_event(trial_id, "stopped", reason)
        self._attempts[trial_id] -= 1
        self._retry_later(trial_id, 0.0)
        self._run.monitor.trial_stopped(trial_id)

    @contextmanager
    def _stop_run_on_error(self) -> Iterator[None]:
        """Stop the run if the block raises a SweepError, which does not leave the block.

        Tune would otherwise handle the error as a failure of its own. No further trial starts, and
        ``run`` raises the error.
        """
        try:
            yield
        except SweepError as error:
            self._queue.stop(error)

    def _take_messages(self, *, wait: bool = False) -> None:
        """Process workers' messages: locations, epochs, and notes to the user."""
        now_ms = round(self._clock.time() * 1000)
        for message in self._backend.poll(wait=wait):
            trial_id = message.trial_id
            self._watchdog.message_from(trial_id)
            if isinstance(message, WorkerLocation):
                self._locations[trial_id] = message
                self._nodes[trial_id] = message.node
            elif isinstance(message, Note):
                self._run.monitor.note(f"{trial_id}: {message.text}")
            elif trial_id in self._queue.running:
                self._epoch_ended(message, now_ms)

    def _epoch_ended(self, message: EpochReport, now_ms: int) -> None:
        """Show an epoch of a running trial."""
        trial_id = message.trial_id
        self._retries.epoch_ended(self._nodes.get(trial_id, ""))
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
        node = ""
        if kind != "started":
            node = self._nodes.get(trial_id, "")
        event = Event(
            at=self._clock.time(), what=kind, attempt=self._attempt(trial_id), node=node, said=text
        )
        self._run.stored.store.log_event(trial_id, event, without_secrets(log_text))

    def _attempt(self, trial_id: str) -> int:
        """Return the number of a trial's present attempt, counted from 1 over all runs."""
        return self._source.earlier_attempts.get(trial_id, 0) + self._attempts[trial_id]

    def _array(self, trial_id: str) -> str:
        return self._source.array_of(self._source.trials[trial_id])


def _without_secrets(failure: TrialFailure, hint: str) -> TrialFailure:
    """Return a failure for storage: without secrets, and with a hint to the user at its start."""
    message = without_secrets(failure.message)
    if hint:
        message = f"{hint} ({message})"
    traceback = without_secrets(failure.traceback)
    return failure.model_copy(update={"message": message, "traceback": traceback})
