"""Running the cells that are left as Ray Tune trials.

The store decides what is left; Tune only executes. Every start makes a fresh experiment from an explicit
list of cells, so none of Tune's own state is ever read back.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import shutil
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import ray
from ray import tune
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial
from ray.tune.search.searcher import Searcher

from orchestrator.planning.paths import RootPaths, without_secrets
from orchestrator.planning.plan import CellStatus, SweepPlan
from orchestrator.planning.predict import Expectation, array_key, expected_seconds, order_trials
from orchestrator.results import table
from orchestrator.results.records import (
    CellReport,
    FailureKind,
    FailureRecord,
    TrialFailure,
    TrialRecord,
    provenance,
)
from orchestrator.results.state import Event, History, StoredResults, What
from orchestrator.results.store import WeightStore
from orchestrator.results.table import MeasureIndex, Point, epoch_points, flat_trial
from orchestrator.results.tracking import Tracker
from orchestrator.running.cluster import Cluster, Resources
from orchestrator.running.failures import (
    Retries,
    classify_broken_fit,
    gpu_named,
    killed_for_memory,
    nodes_with_cards,
    place_of,
    read_failure,
)
from orchestrator.running.networks import own_code
from orchestrator.running.progress import Monitor, Series, offer_board
from orchestrator.running.requests import Requests, node_memory_bytes
from orchestrator.running.signals import raise_if_asked
from orchestrator.running.waiting import StartWatch
from orchestrator.running.worker import (
    REPORT,
    EpochBoard,
    EpochListener,
    Keeper,
    Shelf,
    TrialTrainable,
    equipped,
    keep_out_of_runtime_environments,
)
from search_spaces.errors import SetupError, SweepError
from search_spaces.specs import Domain, NetworkSpec, SubsetSpec, TrialSpec, pair_name
from tasks.prepared.subsets import TrialData
from tasks.trials.records import EpochRecord, EpochScore, TrialResult

# The queue from which Tune takes cells one by one, and into which a cell that failed goes back.


@dataclass
class CellQueue:
    """Ids of cells that wait, run, or are tried again later.

    Attributes:
        ready: Waiting, in the order in which they are taken.
        later: When each cell that failed may be taken again, by a monotonic clock; ready cells go first.
        running: Taken and not settled.
        closed: Whether no more are given out.
    """

    ready: deque[str]
    later: dict[str, float] = field(default_factory=dict)
    running: set[str] = field(default_factory=set)
    closed: bool = False

    @classmethod
    def of(cls, trial_ids: Iterable[str]) -> CellQueue:
        """Return a queue in which these wait."""
        return cls(deque(trial_ids))

    @property
    def empty(self) -> bool:
        """Whether every cell is settled, or none is given out any more."""
        return self.closed or not (self.ready or self.later or self.running)

    def take(self, now: float) -> str | None:
        """Return the next cell, which runs from now on; None when none may be taken yet."""
        if self.closed:
            return None
        due = min(self.later, key=self.later.__getitem__, default=None)
        if self.ready:
            taken = self.ready.popleft()
        elif due is not None and self.later[due] <= now:
            taken = due
            del self.later[due]
        else:
            return None
        self.running.add(taken)
        return taken

    def settle(self, trial_id: str) -> None:
        """A cell has its result, or has failed for good."""
        self.running.discard(trial_id)

    def again(self, trial_id: str, at: float) -> None:
        """A cell that ran may be taken again from the time ``at`` on."""
        self.running.discard(trial_id)
        self.later[trial_id] = at


class Feed(Searcher):  # type: ignore[misc]  # Ray ships without types
    """Gives Tune one cell at a time; ``config`` makes what its worker needs of it."""

    def __init__(self, queue: CellQueue, config: Callable[[str], dict[str, Any]]) -> None:
        super().__init__()
        self._queue, self._config = queue, config

    # Tune saves its searcher in its own state, of which nothing is ever read back.
    def __getstate__(self) -> dict[str, Any]:
        return {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the next cell, ``FINISHED``, or None for "not yet"."""
        if self._queue.empty:
            return str(Searcher.FINISHED)
        cell = self._queue.take(time.monotonic())
        return None if cell is None else self._config(cell)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Learn nothing: the sweep's bookkeeping settles cells."""

    def save(self, checkpoint_path: str) -> None:
        """Save nothing."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing."""


# Trials that hang: found by a limit from the time that was expected of them, and ended.

HELD_UP_S = 30.0
"""A gap between two looks from which on it was the driver that stood still, and no trial is to blame."""


class HangWatch:
    """Watches the trials of one sweep.

    Args:
        limit: Seconds without a word after which a trial counts as hung; None sets no limit.
    """

    def __init__(self, limit: Callable[[TrialSpec], float] | None) -> None:
        self._limit = limit
        self._running: dict[str, tuple[float, float]] = {}
        self._hung: dict[str, float] = {}
        self._looked_at = time.monotonic()

    def started(self, cell: TrialSpec) -> None:
        """A trial begins, for the first time or again."""
        self._hung.pop(cell.trial_id, None)
        if self._limit is not None:
            self._running[cell.trial_id] = (time.monotonic(), self._limit(cell))

    def ended(self, trial_id: str) -> None:
        """A trial has its result."""
        self._running.pop(trial_id, None)

    def heard(self, trial_id: str) -> None:
        """A trial told of an epoch: it lives, however slow it is, and its limit begins anew."""
        if trial_id in self._running:
            self._running[trial_id] = (time.monotonic(), self._running[trial_id][1])

    def end_hung(self, trials: Iterable[Any]) -> None:
        """End the process of each of Tune's running ``trials`` that is past its limit."""
        now, before = time.monotonic(), self._looked_at
        self._looked_at = now
        if now - before > HELD_UP_S:
            self._running = {key: (start + now - before, m) for key, (start, m) in self._running.items()}
        for trial in trials:
            trial_id = str(trial.config["cell"]["trial_id"])
            start, limit = self._running.get(trial_id, (0.0, float("inf")))
            actor = trial.temporary_state.ray_actor
            if actor is not None and trial_id not in self._hung and now - start > limit:
                self._hung[trial_id] = limit
                ray.kill(actor)

    def failure(self, trial_id: str) -> TrialFailure | None:
        """Return the failure of a trial that was ended here; None for any other."""
        if trial_id not in self._hung:
            return None
        message = (
            f"neither a result nor an epoch in {self._hung[trial_id]:.0f} s, far beyond what was expected"
        )
        return TrialFailure(kind=FailureKind.HUNG, message=message)


# From what a worker reports to the record that is stored.


def trial_record(
    cell: TrialSpec,
    report: CellReport,
    result: TrialResult,
    known: TrialRecord | None,
    sweep: str,
    domain: Domain | None,
    attempt: int,
) -> TrialRecord:
    """Return the record of a finished trial.

    Args:
        cell: What was asked for.
        report: What the worker says of its run.
        result: What it found.
        known: An earlier record of the same trial: where nothing was trained since, its times stay.
        sweep: Name of the sweep.
        domain: Of the dataset.
        attempt: Which one this was.
    """
    # Seconds of epochs are never the same twice: with equal histories nothing was trained.
    trained = known is None or known.result.history != result.history
    return TrialRecord(
        trial_id=cell.trial_id,
        sweep=sweep,
        spec=cell,
        domain=domain,
        data_fingerprint=report.data_fingerprint,
        shared_group_share=report.shared_group_share,
        gpu_share=report.gpu_share if trained or known is None else known.gpu_share,
        gpu_name=report.gpu_name if trained or known is None else known.gpu_name,
        attempt=attempt,
        started_at=report.started_at if trained or known is None else known.started_at,
        finished_at=report.finished_at if trained or known is None else known.finished_at,
        measured_at=None if trained else report.finished_at,
        provenance=provenance(),
        result=result,
    )


def start_tags(plan: SweepPlan, cell: TrialSpec, attempt: int) -> dict[str, str]:
    """Return what a tracker is told of a trial that starts."""
    network, dataset = cell.network, cell.network.subset.prepared.dataset
    return {
        table.TRIAL_ID: cell.trial_id,
        table.MODEL: network.model.name,
        table.DATASET: dataset,
        table.DOMAIN: plan.datasets[dataset].domain or "",
        table.CLASS_PAIR: pair_name(network.subset.class_pair),
        table.RECIPE: network.recipe.name,
        table.TRAIN_SIZE: str(network.train_size),
        table.SEED: str(network.seed),
        table.ATTEMPT: str(attempt),
        table.STATUS: str(CellStatus.RUNNING),
    }


# The single writer of a sweep: turns Tune's events into stored results, tracked runs and progress.

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
        self._noted = {""}
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
                if report.gpu_note not in self._noted:  # once of each GPU
                    self._noted.add(report.gpu_note)
                    self._sweep.monitor.note(report.gpu_note)
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
                    self._sweep.tracker.log_points(trial_id, points)

    def _trained(self, trial_id: str) -> NetworkSpec:
        """Return the network of a trial, with the number of images that it is trained on."""
        return self._cells[trial_id].network

    def _points(self, epoch: EpochRecord, score: EpochScore | None, at_ms: int) -> tuple[Point, ...]:
        """Return what the tracker is told of an epoch while its trial runs."""
        return epoch_points(epoch, score, at_ms)

    def _show_counts(self) -> None:
        """Tell how far the sweep is."""
        counts = self._sweep.monitor.counts()
        self._sweep.tracker.log_counts(counts["trials_done"] + counts["trials_failed"], counts)

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
        way_out = self._sweep.requests.failed(self._cells[trial_id], failure)
        if way_out:
            failure = failure.model_copy(update={"message": f"{way_out} ({failure.message})"})
        attempt = self._attempt(trial_id)
        spec = self._cells[trial_id]
        record = FailureRecord(trial_id=trial_id, spec=spec, attempt=attempt, failure=failure)
        self._sweep.stored.save(record)
        self._series.failed(failure.kind)
        decision = self._sweep.retries.failed(
            trial_id, failure.kind, died=died, gpu=gpu_named(failure.message), hopeless=bool(way_out)
        )
        key = array_key(self._sweep.plan, self._cells[trial_id])
        self._shelf.trial_ended(trial_id, key, for_good=decision.pause_s is None)
        if decision.pause_s is None:
            self._queue.settle(trial_id)
            ending = f"given up: {decision.reason}"
        else:
            self._queue.again(trial_id, time.monotonic() + decision.pause_s)
            ending = decision.reason
        self._sweep.tracker.fail_trial(record)
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


# Trials by their ids on Ray's dashboard, where Tune would show ``IsweepTrial.train`` for each of them.

TRAIN = "train"
"""The method of a trial's actor that Tune calls for its work."""
MOST_NAMED = 1_000
"""For each name of a task Ray keeps series of metrics, about 18 kB of the driver (Ray 2.60).

That is with the older of its two exporters, which :mod:`orchestrator.running.cluster` and the launch files
ask for. The newer one keeps memory of every series at every export: with 400 names the driver grew by 0.15 MB
a second at rest, against 0.009 (``benchmarks/results/named_tasks.json``).
"""


@dataclass
class TaskNames:
    """The trials whose tasks have their name, in one run.

    Attributes:
        most: How many may have one.
        given: Ids of those that have.
    """

    most: int = MOST_NAMED
    given: set[str] = field(default_factory=set)

    def give(self, trial_id: str) -> bool:
        """Tell whether a trial's task is to be named."""
        if len(self.given) < self.most:
            self.given.add(trial_id)
        return trial_id in self.given


class _Named:
    """An actor whose next call has a name."""

    def __init__(self, actor: Any, name: str) -> None:
        self._actor, self._name = actor, name

    def __getattr__(self, method: str) -> Any:
        return getattr(self._actor, method).options(name=self._name)


@contextlib.contextmanager
def trial_tasks_named(names: TaskNames) -> Iterator[None]:
    """Name the tasks of trials after them inside the block, as far as ``names`` has some.

    Tune has no public way to. Where the private ones are missing that this takes, tasks keep Tune's name.
    """
    schedule = getattr(TuneController, "_schedule_trial_task", None)
    if schedule is None:
        log.info("this Ray has no place where tasks could be named: they keep Tune's name")
        yield
        return

    def schedule_named(controller: Any, trial: Any, method_name: str, *rest: Any, **options: Any) -> Any:
        live: dict[Any, Any] = {}
        actor = None
        if method_name == TRAIN and names.give(trial_name(trial)):
            with contextlib.suppress(AttributeError, KeyError, ValueError):
                live = controller._actor_manager._live_actors_to_ray_actors_resources
                actor = controller._trial_to_actor[trial]
                handle, resources = held = live[actor]
                live[actor] = (_Named(handle, trial_name(trial)), resources)
        try:
            return schedule(controller, trial, method_name, *rest, **options)
        finally:
            if actor in live:
                live[actor] = held

    TuneController._schedule_trial_task = schedule_named
    try:
        yield
    finally:
        TuneController._schedule_trial_task = schedule


OBJECT_STORE_SHARE = 0.6
"""How much of the smallest object store arrays may fill; the rest is for measures and Ray."""


@dataclass
class TrialSweep:
    """All that the trials of one ``isweep run`` share.

    Attributes:
        plan: The whole grid.
        cluster: Where it runs.
        resources: What each trial asks for.
        paths: Where Tune's scratch goes.
        stored: Where results go.
        tracker: Who is told.
        monitor: Who shows it.
        measures: Stored measure records by subset id and train size.
        load: Reads the arrays of a subset, given how many training images.
        weights_url: Where weights and checkpoints are kept, beside the results; None keeps none.
        expectation: How long trials will take, and what share of the cluster's kind of card they need;
            without a card all get the same share.
        trainable: What runs a cell; another one is for tests and benchmarks.
        measured_only: Ids of cells whose network is trained: only measurements are missing.
        pretrained: Weights that pretrained networks start from, by library and architecture.
        time_limit: Seconds after which a cell counts as hung; None sets no limit.
        attempts: Attempts at each cell in this run.
        retries: Failures in this run, and what follows from them.
    """

    plan: SweepPlan
    cluster: Cluster
    resources: Resources
    paths: RootPaths
    stored: StoredResults
    tracker: Tracker
    monitor: Monitor
    measures: MeasureIndex
    load: Callable[[SubsetSpec, int], TrialData]
    weights_url: str | None = None
    expectation: Expectation = field(default_factory=Expectation)
    trainable: type[TrialTrainable] = TrialTrainable
    measured_only: frozenset[str] = frozenset()
    time_limit: Callable[[TrialSpec], float] | None = None
    pretrained: dict[str, bytes] = field(default_factory=dict)
    attempts: Counter[str] = field(default_factory=Counter)
    retries: Retries = field(default_factory=Retries)

    def run(self, cells: Iterable[TrialSpec], earlier_attempts: dict[str, int]) -> None:
        """Run ``cells``, and again those whose failure allows it, until nothing more may be tried.

        Raises:
            SweepError: when results cannot be stored; whatever finished before is kept.
        """
        cells = list(cells)
        seconds = expected_seconds(cells, self.expectation)
        self.monitor.trials_expected(seconds)
        cells = order_trials(self.plan, cells, self._array_budget, seconds)
        networks = {array_key(self.plan, cell): cell.network for cell in cells}

        def load(key: str) -> TrialData:
            network = networks[key]
            return self.load(network.subset, self.plan.load_size(network.subset, network.train_size))

        shelf = Shelf((array_key(self.plan, cell) for cell in cells), load, self._array_budget)
        try:
            self._run_cells(cells, shelf, earlier_attempts)
        finally:
            shelf.close()

    @cached_property
    def requests(self) -> Requests:
        """What each attempt gets."""
        return Requests(self.resources, self.expectation, node_memory_bytes)

    @property
    def _array_budget(self) -> float:
        return self.cluster.object_store_bytes * OBJECT_STORE_SHARE

    def _run_cells(self, cells: list[TrialSpec], shelf: Shelf, earlier: dict[str, int]) -> None:
        by_id = {cell.trial_id: cell for cell in cells}
        queue = CellQueue.of(by_id)
        callback = Bookkeeping(self, by_id, queue, shelf, earlier)
        offer_board()
        while not queue.empty:
            try:
                self._fit(by_id, shelf, queue, callback)
            except Exception as error:
                # Whatever Tune raises costs the cells that ran an attempt, and no other cell anything.
                callback.fit_failed(error)
            # Actors of a Tune loop that broke keep their CPUs until nothing refers to them.
            gc.collect()
            if callback.fatal is not None:
                raise callback.fatal
            callback.account_for_the_rest()

    def _fit(
        self,
        cells: dict[str, TrialSpec],
        shelf: Shelf,
        queue: CellQueue,
        callback: Bookkeeping,
    ) -> None:
        name = f"{self.plan.sweep.name}-{uuid.uuid4().hex[:8]}"
        keep, code = self._keeper, own_code(cells.values())
        shared = {"arrays": shelf.references, "keeper": keep, "code": code, "epochs": self.epochs}
        trainable = equipped(self.trainable, pretrained=self.pretrained, **shared)

        def taken(trial_id: str) -> dict[str, Any]:
            self.attempts[trial_id] += 1
            return {"cell": self._cell(cells[trial_id])}

        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=Feed(queue, taken),
                num_samples=-1,
                reuse_actors=True,
                trial_name_creator=trial_name,
                trial_dirname_creator=trial_name,
            ),
            run_config=tune.RunConfig(
                name=name,
                storage_path=str(self.paths.tune),
                # Tune saves class trainables at their end unless told otherwise, into a folder that the
                # nodes would have to share.
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                callbacks=[callback],
                verbose=0,
            ),
        )
        keep_out_of_runtime_environments()
        try:
            with trial_tasks_named(self._task_names):
                tuner.fit()
        finally:
            shutil.rmtree(self.paths.tune / name, ignore_errors=True)

    @cached_property
    def epochs(self) -> EpochBoard:
        """Where trials tell of their epochs."""
        return EpochBoard()

    @cached_property
    def _task_names(self) -> TaskNames:
        """A private cluster without a dashboard shows names to nobody."""
        return TaskNames() if self.cluster.dashboard or not self.cluster.local else TaskNames(most=0)

    @cached_property
    def _keeper(self) -> Keeper | None:
        return None if self.weights_url is None else Keeper(self.weights_url)

    def _cell(self, cell: TrialSpec) -> dict[str, Any]:
        known = self.stored.trials.get(cell.trial_id)
        request = self.requests.of(cell)
        return {
            # An earlier result of this very network, made from these very images, is only added to.
            "known": known.text() if known is not None and cell.trial_id in self.measured_only else "",
            "keep_weights": self.plan.keeps_weights(cell),
            "trial_id": cell.trial_id,
            "spec": cell.model_dump_json(),
            "data": array_key(self.plan, cell),
            **request.for_worker(),
        }
