"""The second half of the trial loop: it processes the outcome of each attempt at a trial.

A result is stored, and the trial has ended. A failure is stored, and three policies decide what
follows:

- The resource policy chooses the next request, or decides that no request can succeed.
- The retries decide whether the trial starts again, and after which pause.
- The node health decides how long a failed GPU is not used, and when no node can run trials.

Each outcome then appears in MLflow, in the terminal and in the trial's event log. Only the
driver writes the records of trials. Workers store weights, predictions and checkpoints through
an actor.
"""

from __future__ import annotations

from typing import cast

from orchestrator.machine.mps import may_break_mps
from orchestrator.planning.redaction import without_secrets
from orchestrator.results.records import FailureRecord, TrialFailure
from orchestrator.running.attempts import Attempts
from orchestrator.running.backend import Backend
from orchestrator.running.messages import TrialReport
from orchestrator.running.recovery.node_health import NodeHealth
from orchestrator.running.recovery.resource_policy import ResourcePolicy
from orchestrator.running.recovery.retries import Decision, Retries
from orchestrator.running.recovery.watchdog import Watchdog
from orchestrator.running.trial_source import RunContext, TrialSource
from tasks.clock import Clock
from tasks.trials.records import TrialResult


class Outcomes:
    """The processing of results and failures.

    A second outcome of the same attempt has no effect.

    Args:
        run: context that the trials share.
        source: the trials.
        backend: the system that executes the trials.
        attempts: the attempts at the trials.
        watchdog: the time limits of the trials.
        clock: source of the time.

    Attributes:
        resources: policy of the resources that each attempt requests.
        node_health: the failures of nodes and GPUs.
        num_tune_failures: number of failures of Tune's loop since the last result. The trial loop
            counts the failures. A result sets the number to 0.
    """

    def __init__(
        self,
        run: RunContext,
        source: TrialSource,
        backend: Backend,
        attempts: Attempts,
        watchdog: Watchdog,
        clock: Clock,
    ) -> None:
        self.resources = ResourcePolicy(
            run.resources, run.runtime_model, backend.node_memory_bytes, run.small_gpus
        )
        self.node_health = NodeHealth(monotonic=clock.monotonic)
        self.num_tune_failures = 0
        self._run = run
        self._source = source
        self._queue = source.queue
        self._backend = backend
        self._attempts = attempts
        self._watchdog = watchdog
        self._clock = clock
        self._retries = Retries()
        self._shown_gpu_notes = set[str]()

    def process_report(self, trial_id: str, report: TrialReport) -> None:
        """Process a worker's report of a result or a failure."""
        if trial_id not in self._queue.submitted or self._queue.is_stopped:
            return
        self._attempts.of(trial_id).node = report.node
        outcome = report.outcome
        with self._queue.stop_on_error():
            if isinstance(outcome, TrialFailure):
                self._process_failure(
                    trial_id,
                    outcome,
                    process_ended=outcome.ends_process,
                    log_text=report.log,
                    gpu_name=report.gpu_name,
                )
                # Only reported failures count for the node: a crash has no report, and it does
                # not show that its node is unfit.
                self._count_node_failure(trial_id, outcome)
            else:
                self._process_result(trial_id, report)

    def process_unreported_end(self, trial_id: str, failure: TrialFailure) -> None:
        """Process an attempt that ended without a report: crashed, hung, or stopped with Tune."""
        if trial_id not in self._queue.submitted or self._queue.is_stopped:
            return
        with self._queue.stop_on_error():
            self._process_failure(trial_id, failure, process_ended=True)

    def requeue_without_count(
        self, trial_id: str, failure: TrialFailure, killed_ids: set[str]
    ) -> None:
        """Queue a trial again that stopped because Tune failed. Do not count its attempt.

        Only the number of the attempt must be undone: the policies for memory and retries have
        counted no failure.

        Args:
            trial_id: id of a trial that had no worker yet, or whose worker Ray did not kill.
            failure: the failure of Tune's loop.
            killed_ids: ids of the trials whose workers Ray killed because memory ran out. The set
                may be empty.
        """
        reason = f"Ray Tune ended: {failure.message} {', '.join(sorted(killed_ids))}".strip()
        self._attempts.log_event(trial_id, "stopped", reason)
        self._attempts.of(trial_id).number -= 1
        self._retry_later(trial_id, 0.0)
        self._run.monitor.trial_stopped(trial_id)

    def abandon_mps(self, reason: str) -> None:
        """Let new trials compute without NVIDIA's MPS, with the shares planned for this case."""
        mps = self._run.cluster.mps
        if mps is not None and mps.is_used:
            self.resources.use_shares_without_mps()
            mps.abandon(reason, self.resources.shares_without_mps_text)

    def _count_node_failure(self, trial_id: str, failure: TrialFailure) -> None:
        """Count a failure of a node, if the node caused it.

        Raises:
            SetupError: no node can run trials.
        """
        eligible = self._backend.eligible_nodes(failure)
        attempt = self._attempts.of(trial_id)
        self.node_health.count_node_failure(
            attempt.node, failure, eligible, attempt.gpus, attempt.started_s
        )

    def _process_result(self, trial_id: str, report: TrialReport) -> None:
        """Store a result, and show it in MLflow and the terminal."""
        trial = self._source.trials[trial_id]
        status = cast("TrialResult", report.outcome).status
        attempt = self._attempts.of(trial_id)
        row = self._source.store_result(trial, report, attempt.number)
        self.resources.finished(trial)
        self._retries.finished()
        self.node_health.finished(report.node, attempt.gpus)
        self.num_tune_failures = 0
        self._remove(trial_id)
        self._run.tracker.finish(row)
        self._run.monitor.trial_finished(trial_id, status)
        self._show_counts()
        self._attempts.log_event(trial_id, "finished", str(status), report.log)
        if report.gpu_note and report.gpu_note not in self._shown_gpu_notes:  # once for each GPU
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
            failure: description of the failed attempt.
            process_ended: True if the worker's process has died, or must not be used again.
            log_text: log of the attempt.
            gpu_name: the driver's name of the GPU on which the attempt failed, or an empty text if
                it is unknown.
        """
        trial = self._source.trials[trial_id]
        verdict = self.resources.failed(trial, failure, gpu_name)
        failure = _without_secrets(failure, verdict.hint)
        number = self._attempts.of(trial_id).number
        # The failure is stored first: if the driver is killed now, the attempt still counts.
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
        self._attempts.log_event(trial_id, "failed", f"{failure.kind}: {message}", log_text)

    def _protect_other_trials(self, trial_id: str, failure: TrialFailure) -> None:
        """Quarantine the GPU and abandon MPS, if the failure shows that they are broken."""
        attempt = self._attempts.of(trial_id)
        location = attempt.location
        if failure.gpu and location is not None:
            seconds = self.node_health.count_gpu_failure(
                location.node, location.gpus, attempt.started_s
            )
            self._backend.quarantine(location, seconds)
        if may_break_mps(failure):
            self.abandon_mps(f"{trial_id} failed ({failure.kind})")

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

    def _show_counts(self) -> None:
        """Log the numbers of trials to MLflow."""
        counts = self._run.monitor.counts()
        num_ended = counts["trials_done"] + counts["trials_failed"]
        self._run.tracker.log_counts(num_ended, counts)

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
