"""The single writer of a sweep: turns Tune's events into stored results, tracked runs and progress."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import ray
from ray import tune
from ray.tune.experiment import Trial

from orchestrator.planning.order import array_key
from orchestrator.planning.redaction import without_secrets
from orchestrator.results.history import Event, History, What
from orchestrator.results.records import CellReport, FailureKind, FailureRecord, TrialFailure
from orchestrator.results.rows import Point, epoch_points, flat_trial
from orchestrator.results.tracking.tracker import PARENT_KEY, Failure
from orchestrator.results.weights import WeightStore
from orchestrator.running.epochs import EpochListener
from orchestrator.running.failures import classify_broken_fit
from orchestrator.running.feed import CellQueue
from orchestrator.running.hangs import HangWatch
from orchestrator.running.lost_workers import killed_for_memory, nodes_with_cards, place_of, read_failure
from orchestrator.running.outcomes import start_tags, trial_record
from orchestrator.running.scheduling import StartWatch
from orchestrator.running.series import Series
from orchestrator.running.shelf import Shelf
from orchestrator.running.signals import raise_if_asked
from orchestrator.running.trainable import REPORT
from search_spaces.errors import SetupError, SweepError
from search_spaces.trials import NetworkSpec, TrialSpec
from tasks.trials.measured import EpochScore
from tasks.trials.result import EpochRecord, TrialResult

if TYPE_CHECKING:
    from orchestrator.running.sweep import TrialSweep

log = logging.getLogger(__name__)

MOST_BROKEN_FITS = 5
WITHOUT_A_WORD = TrialFailure(
    kind=FailureKind.WORKER_CRASH, message="Tune ended without a result for this trial"
)


class Bookkeeping(tune.Callback):  # type: ignore[misc]  # Ray ships without types
    """The single writer: turns Tune's events into stored results, tracked runs and progress."""

    def __init__(
        self,
        sweep: TrialSweep,
        cells: dict[str, TrialSpec],
        queue: CellQueue,
        shelf: Shelf,
        earlier: dict[str, int],
    ) -> None:
        self.fatal: SweepError | None = None
        self._sweep = sweep
        self._cells = cells
        self._queue = queue
        self._shelf = shelf
        self._earlier = earlier
        self._broken = 0
        self._starts = StartWatch(sweep.resources, sweep.monitor.note)
        self._hangs = HangWatch(sweep.time_limit)
        self._listener = EpochListener(sweep.epochs)
        self._series = Series(sweep.plan.sweep.name, sweep.cluster.num_gpus)
        self._history = History(sweep.stored.store.url)

    # Tune copies its callbacks into its own saved state; this one belongs to the driver alone.
    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Put the trial's array where it can find it, and open its run."""
        cell = self._cells[trial.config["cell"]["trial_id"]]
        try:
            self._shelf.trial_started(cell.trial_id, trial.config["cell"]["data"])
        except SweepError as error:
            self._end(error)
            return
        tags = start_tags(self._sweep.plan, cell, self._attempt(cell.trial_id))
        self._sweep.tracker.start_trial(cell.trial_id, tags)
        self._sweep.monitor.trial_started(cell.trial_id)
        self._hangs.started(cell)
        self._tell(cell.trial_id, "started")

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """End the process of every trial that has been silent past its limit; say where the sweep stands.

        Raises:
            SweepError: that ends the sweep. Tune would first run the trials that it was given, for hours.
        """
        raise_if_asked()
        if self.fatal is not None:
            raise self.fatal
        self._starts.look(trials, waiting=bool(self._queue.running))
        self._hangs.end_hung(trial for trial in trials if trial_name(trial) in self._queue.running)
        self._show_epochs()
        running = (trial.config["cell"]["request"] for trial in trials if trial.status == Trial.RUNNING)
        self._series.tell(self._sweep.monitor, running)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Store the outcome first, then tell the tracker."""
        trial_id = trial.config["cell"]["trial_id"]
        if trial_id not in self._queue.running or self.fatal is not None:
            return
        try:
            report = CellReport.model_validate_json(result[REPORT])
            if isinstance(report.outcome, TrialFailure):
                ending = self._fail(trial_id, report.outcome)
                self._tell(trial_id, "failed", ending, report.log)
                self._sweep.retries.check_cards(self._node(trial_id), report.outcome, nodes_with_cards())
            else:
                self._finish(trial_id, report, report.outcome)
                ending = str(report.outcome.status)
                self._tell(trial_id, "finished", ending, report.log)
        except SweepError as error:
            self._end(error)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The process died: a lost node, a crash, or the memory killer."""
        trial_id = trial_name(trial)
        self._lost(trial_id, lambda: self._hangs.failure(trial_id) or read_failure(trial))
        empty(trial)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial that ended without a result is a failure too, never silently gone."""
        self._lost(trial_name(trial), lambda: WITHOUT_A_WORD)
        empty(trial)

    def _show_epochs(self) -> None:
        """Tell what running trials said of their epochs."""
        at = round(time.time() * 1000)
        for trial_id, epoch, score in self._listener.heard():
            if trial_id in self._queue.running:
                self._hangs.heard(trial_id)
                self._sweep.monitor.trial_epoch(trial_id, epoch, self._trained(trial_id))
                if points := self._points(epoch, score, at):
                    self._sweep.tracker.extend(trial_id, points)

    def _trained(self, trial_id: str) -> NetworkSpec:
        """Return the network of a trial, with the number of images that it is trained on."""
        return self._cells[trial_id].network

    def _points(self, epoch: EpochRecord, score: EpochScore | None, at_ms: int) -> tuple[Point, ...]:
        """Return what the tracker is told of an epoch while its trial runs."""
        return epoch_points(epoch, score, at_ms)

    def _show_counts(self) -> None:
        """Tell how far the sweep is."""
        counts = self._sweep.monitor.counts()
        step, at = counts["trials_done"] + counts["trials_failed"], round(time.time() * 1000)
        self._sweep.tracker.extend(PARENT_KEY, [(name, step, n, at) for name, n in counts.items()])

    def fit_failed(self, error: Exception) -> None:
        """Tune itself gave up: what ran then has failed, and what waits is still to be run."""
        if self.fatal is not None:
            return
        self._broken += 1
        log.warning("Tune ended early (%d times in a row)", self._broken, exc_info=error)
        running = sorted(self._queue.running)
        if not ray.is_initialized() or self._broken > MOST_BROKEN_FITS:
            self._end(
                SetupError(
                    "Ray Tune must be able to run trials",
                    classify_broken_fit(error).message,
                    "run the same command again: what is done is kept; the log below the root says more",
                )
            )
        failure = classify_broken_fit(error)
        killed = killed_for_memory(running) if failure.kind == FailureKind.OUT_OF_MEMORY else set()
        for trial_id in running:
            if not killed or trial_id in killed:
                self._lost(trial_id, lambda: failure)
            else:
                self._spare(trial_id, f"the memory killer, which ended Tune, hit {', '.join(sorted(killed))}")

    def _spare(self, trial_id: str, reason: str) -> None:
        """A trial has ended through no fault of its own: it waits again, no attempt is counted."""
        self._tell(trial_id, "stopped", reason)
        self._sweep.attempts[trial_id] -= 1
        self._shelf.trial_ended(trial_id, array_key(self._sweep.plan, self._cells[trial_id]), for_good=False)
        self._queue.again(trial_id, time.monotonic())
        self._sweep.monitor.trial_stopped(trial_id)
        log.warning("trial %s waits again: %s", trial_id, reason)

    def account_for_the_rest(self) -> None:
        """Cells that Tune ended without a word are failures too, never silently gone."""
        for trial_id in sorted(self._queue.running):
            self._lost(trial_id, lambda: WITHOUT_A_WORD)

    def _lost(self, trial_id: str, failure: Callable[[], TrialFailure]) -> None:
        if trial_id not in self._queue.running or self.fatal is not None:
            return
        try:
            found = failure()
            self._tell(trial_id, "failed", self._fail(trial_id, found, died=True), log_text=found.traceback)
        except SweepError as error:
            self._end(error)

    def _end(self, error: SweepError) -> None:
        """Give out no more cells, because of an error that ends the sweep."""
        self.fatal = error
        self._queue.closed = True

    def _attempt(self, trial_id: str) -> int:
        return self._earlier.get(trial_id, 0) + self._sweep.attempts[trial_id]

    def _finish(self, trial_id: str, report: CellReport, result: TrialResult) -> None:
        cell, plan = self._cells[trial_id], self._sweep.plan
        dataset = plan.datasets[cell.network.subset.prepared.dataset]
        known = self._sweep.stored.trials.get(trial_id)
        record = trial_record(
            cell, report, result, known, plan.sweep.name, dataset.domain, self._attempt(trial_id)
        )
        self._sweep.stored.save(record)
        if self._sweep.weights_url is not None:
            WeightStore(self._sweep.weights_url).forget_checkpoint(trial_id)
        self._queue.settle(trial_id)
        self._hangs.ended(trial_id)
        self._shelf.trial_ended(trial_id, array_key(self._sweep.plan, cell), for_good=True)
        self._sweep.retries.finished(trial_id, self._node(trial_id))
        self._broken = 0
        self._sweep.tracker.finish(flat_trial(record, self._sweep.measures))
        self._sweep.monitor.trial_finished(trial_id, result.status)
        self._show_counts()

    def _tell(self, trial_id: str, what: What, said: str = "", log_text: str = "") -> None:
        """Add to the story of a cell."""
        node = "" if what == "started" else self._node(trial_id)
        event = Event(at=time.time(), what=what, attempt=self._attempt(trial_id), node=node, said=said)
        self._history.tell(trial_id, event, without_secrets(log_text))

    @staticmethod
    def _node(trial_id: str) -> str:
        """Return the address of the node of the latest attempt; empty where it never came so far."""
        place = place_of(trial_id)
        return "" if place is None else place.node

    def _fail(self, trial_id: str, failure: TrialFailure, *, died: bool = False) -> str:
        """Store a failure and do what follows from it; returns both in words.

        Args:
            trial_id: Whose.
            failure: What happened.
            died: Whether the trial's process went with it.
        """
        failure = failure.model_copy(
            update={
                "message": without_secrets(failure.message),
                "traceback": without_secrets(failure.traceback),
            }
        )
        attempt = self._attempt(trial_id)
        self._sweep.stored.save(
            FailureRecord(trial_id=trial_id, spec=self._cells[trial_id], attempt=attempt, failure=failure)
        )
        self._series.failed(failure.kind)
        decision = self._sweep.retries.failed(trial_id, failure.kind, died=died)
        self._sweep.requests.out_of_memory[trial_id] += failure.kind == FailureKind.OUT_OF_MEMORY
        key = array_key(self._sweep.plan, self._cells[trial_id])
        self._shelf.trial_ended(trial_id, key, for_good=decision.pause_s is None)
        if decision.pause_s is None:
            self._queue.settle(trial_id)
            ending = f"given up: {decision.reason}"
        else:
            self._queue.again(trial_id, time.monotonic() + decision.pause_s)
            ending = decision.reason
        self._sweep.tracker.fail_trial(Failure(trial_id, failure.kind, failure.message, attempt))
        self._sweep.monitor.trial_failed(trial_id, failure.kind, f"{failure.message} ({ending})")
        self._show_counts()
        log.warning("trial %s failed (%s): %s (%s)", trial_id, failure.kind, failure.message, ending)
        return f"{failure.kind}: {failure.message} ({ending})"


def trial_name(trial: Any) -> str:
    """Return the id of the cell that a Tune trial runs."""
    return str(trial.config["cell"]["trial_id"])


def empty(trial: Any) -> None:
    """Leave nothing in a Tune trial that has ended but the id of its cell.

    Tune holds every trial until the last has ended, each with copies of what it was told, its whole report,
    statistics of every number in it, and an object of Ray's. Nothing of that is read again: results are in
    the store.
    """
    trial.config["cell"] = {"trial_id": trial_name(trial)}
    trial.evaluated_params, trial.experiment_tag = {}, ""
    about = trial.run_metadata
    about.last_result, about.metric_analysis, about.metric_n_steps = {}, {}, {}
    # Private: the answer to a question that Tune asks each trial's actor, which Ray keeps with the question.
    trial._default_result_or_future = None
