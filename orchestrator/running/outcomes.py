"""The second half of the trial loop, which processes the outcome of each attempt at a trial.

If the outcome is a result, it is stored and the trial has ended. If the outcome is a failure,
it is stored and three policies decide what follows:

- The resource policy chooses the resources that the next attempt requests. It may also decide
  that no request can succeed.
- ``Retries`` decides whether the trial starts again, and after which pause.
- ``NodeHealth`` decides for how long a failed GPU is not used. It ends the run if no node can
  run trials.

Each outcome is then shown in MLflow, in the terminal and in the trial's event log. Only the
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
    """The part of the trial loop that processes results and failures.

    If an attempt has two outcomes, only the first is processed.

    Args:
        run: context that the trials share.
        source: the trials.
        backend: the system that executes the trials.
        attempts: the attempts at the trials.
        watchdog: the time limits of the trials.
        clock: source of the time.

    Attributes:
        resources: policy of the resources that each attempt requests.
        node_health: counts the failures of nodes and GPUs.
        num_tune_failures: number of failures of Tune's loop since the last result. The trial
            loop counts the failures. A result sets the number to 0.
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
        """Process an attempt that ended without a report. It crashed, it hung, or Tune's loop
        ended.
        """
        if trial_id not in self._queue.submitted or self._queue.is_stopped:
            return
        with self._queue.stop_on_error():
            self._process_failure(trial_id, failure, process_ended=True)

    def requeue_without_count(
        self, trial_id: str, failure: TrialFailure, killed_ids: set[str]
    ) -> None:
        """Queue a trial again after Tune's loop failed. Do not count the trial's attempt.

        Only the attempt's number must be decreased. The policies for memory and retries have
        not counted this failure.

        Args:
            trial_id: id of a trial that had no worker yet, or whose worker Ray did not kill.
            failure: the failure of Tune's loop.
            killed_ids: ids of the trials whose workers Ray killed because memory ran out. The
                set may be empty.
        """
        reason = f"Ray Tune ended: {failure.message} {', '.join(sorted(killed_ids))}".strip()
        self._attempts.log_event(trial_id, "stopped", reason)
        self._attempts.of(trial_id).number -= 1
        self._retry_later(trial_id, 0.0)
        self._run.monitor.trial_stopped(trial_id)

    def abandon_mps(self, reason: str) -> None:
        """Let new trials run without NVIDIA's MPS, with the GPU shares that are planned for
        this case.
        """
        mps = self._run.cluster.mps
        if mps is not None and mps.is_used:
            self.resources.use_shares_without_mps()
            mps.abandon(reason, self.resources.shares_without_mps_text)

    def _count_node_failure(self, trial_id: str, failure: TrialFailure) -> None:
        """Count the failure as a failure of the trial's node, if the node caused it.

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
            gpu_name: name of the GPU on which the attempt failed, or an empty text if the name
                is unknown.
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
        """Show a failure and the decision about a retry in MLflow, the terminal and the event
        log.
        """
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
        """Quarantine the GPU if the failure shows that it is broken. Abandon MPS if the
        failure may have broken MPS.
        """
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
        """Remove a trial from the queue for good: it has a result, or it gets no further
        attempt.
        """
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
    """Return a failure that can be stored. Secrets are removed, and the hint precedes the
    message.
    """
    message = without_secrets(failure.message)
    if hint:
        message = f"{hint} ({message})"
    traceback = without_secrets(failure.traceback)
    return failure.model_copy(update={"message": message, "traceback": traceback})
