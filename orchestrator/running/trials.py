"""Running cells as Ray Tune trials: one loop for the cells of a grid and for the trials of a
search.

The store decides what is left; Tune only executes. What a grid and a search do differently is a
:class:`Work`; all else is here: its cells are run by workers (:mod:`orchestrator.running.worker`),
and what comes back is stored, told to the tracker and shown, by this driver alone.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

from ray import tune

from orchestrator.machine.cluster import Cluster, Resources
from orchestrator.machine.signals import at_forced_end, raise_if_asked
from orchestrator.planning.paths import RootPaths
from orchestrator.planning.plan import CellStatus, SweepPlan
from orchestrator.planning.redaction import without_secrets
from orchestrator.planning.runtimes import RuntimeModel, expected_seconds, time_limit
from orchestrator.planning.trial_order import array_key, order_trials
from orchestrator.results.flat_runs import CurvePoint, FlatRun, epoch_points, flat_trial, trial_tags
from orchestrator.results.metrics import index_measures
from orchestrator.results.provenance import provenance
from orchestrator.results.records import (
    CellReport,
    FailureKind,
    FailureRecord,
    TrialFailure,
    TrialRecord,
)
from orchestrator.results.state import State
from orchestrator.results.store import Event, EventKind, ResultStore
from orchestrator.results.stored_results import StoredResults
from orchestrator.results.tracking import Tracker
from orchestrator.running.actors import Desk, Note
from orchestrator.running.failures import (
    OF_GPU,
    Place,
    Retries,
    TrialWatch,
    classify_broken_fit,
    gpu_named,
)
from orchestrator.running.progress import Progress
from orchestrator.running.queue import CellQueue, Execution, Feed, TuneExecution, empty, trial_name
from orchestrator.running.requests import Requests
from orchestrator.running.worker import REPORT, Perform, perform_cell
from search_spaces.errors import SetupError, SweepError
from search_spaces.specs import Domain, NetworkSpec, SubsetSpec, TrialSpec
from tasks.clock import SYSTEM, Clock
from tasks.prepared.subsets import TrialData
from tasks.trials.records import EpochRecord, EpochScore, TrialResult

log = logging.getLogger(__name__)

OBJECT_STORE_SHARE = 0.6
"""How much of the smallest object store arrays may fill; the rest is for measures and Ray."""
MOST_BROKEN_FITS = 5
WITHOUT_A_WORD = TrialFailure(
    kind=FailureKind.WORKER_CRASH, message="Tune ended without a result for this trial"
)


@dataclass
class Run:
    """What everything in one run shares."""

    plan: SweepPlan
    paths: RootPaths
    cluster: Cluster
    resources: Resources
    stored: StoredResults
    tracker: Tracker
    monitor: Progress
    expectation: RuntimeModel = field(default_factory=RuntimeModel)
    desk: Desk | None = None

    @property
    def array_budget(self) -> float:
        """Bytes of the object store that arrays may fill."""
        return self.cluster.object_store_bytes * OBJECT_STORE_SHARE


class Work:
    """What differs between the cells of a grid and the trials of a search.

    Attributes:
        cells: Everything that was taken from the queue, or may be, by id.
        perform: Does a cell, in a worker.
        keep_url: Where workers keep weights, predictions and checkpoints; None keeps none.
        num_uses: How many cells need each array; None where nobody knows.
        earlier: Attempts at cells in earlier runs.
        pretrained: What networks start from, by :attr:`ModelSpec.pretrained_key`.
    """

    perform: Perform
    keep_url: str | None = None
    num_uses: Counter[str] | None = None
    pretrained: Mapping[str, bytes] = {}

    def __init__(self, run: Run, queue: CellQueue, cells: dict[str, TrialSpec]) -> None:
        self.run, self.queue, self.cells = run, queue, cells
        self.earlier: dict[str, int] = {}

    def load(self, key: str) -> TrialData:
        """Read an array."""
        raise NotImplementedError

    def job(self, cell: TrialSpec) -> dict[str, Any]:
        """Return what a worker is told of a cell beside what it may use."""
        raise NotImplementedError

    def found(self, cell: TrialSpec, report: CellReport, attempt: int) -> FlatRun:
        """Seal the result of a cell; returns what a tracker shows of it."""
        raise NotImplementedError

    def sealed(self, cell: TrialSpec, report: CellReport, attempt: int) -> dict[str, Any]:
        """Return what every record says of a cell and of what its worker told."""
        names = ("data_fingerprint", "gpu_share", "started_at", "finished_at", "provenance")
        return {
            "trial_id": cell.trial_id,
            "sweep": self.run.plan.sweep.name,
            "spec": cell,
            "domain": self.domain_of(cell),
            "attempt": attempt,
            "result": report.outcome,
            **{name: getattr(report, name) for name in names},
        }

    def domain_of(self, cell: TrialSpec) -> Domain | None:
        """Return the domain of a cell's images."""
        return self.run.plan.datasets[cell.network.subset.dataset].domain

    def given_up(self, trial_id: str) -> None:
        """A cell failed and is not tried again in this run."""

    def trained_on(self, cell: TrialSpec) -> NetworkSpec:
        """Return the network of a cell, with the number of images that it is trained on."""
        return cell.network

    def points(
        self, epoch: EpochRecord, score: EpochScore | None, at_ms: int
    ) -> tuple[CurvePoint, ...]:
        """Return what the tracker is told of an epoch while its trial runs."""
        return epoch_points(epoch, score, at_ms)

    def seconds_allowed(self, cell: TrialSpec) -> float:
        """Return the seconds without a word after which a cell counts as hung."""
        return time_limit(cell, (), self.run.expectation)


class GridWork(Work):
    """The cells of a plan that are left; ``load`` reads a subset's arrays, given how many training
    images.
    """

    perform = staticmethod(perform_cell)

    def __init__(
        self,
        run: Run,
        cells: Iterable[TrialSpec],
        load: Callable[[SubsetSpec, int], TrialData],
        *,
        state: State | None = None,
        keep_url: str | None = None,
        pretrained: Mapping[str, bytes] | None = None,
    ) -> None:
        cells, plan = list(cells), run.plan
        seconds = expected_seconds(cells, run.expectation)
        run.monitor.expected = seconds
        ordered = {
            cell.trial_id: cell for cell in order_trials(plan, cells, run.array_budget, seconds)
        }
        super().__init__(run, CellQueue(deque(ordered)), ordered)
        self._load, self.keep_url, self.pretrained = load, keep_url, pretrained or {}
        self._networks = {array_key(plan, cell): cell.network for cell in cells}
        self.num_uses = Counter(array_key(plan, cell) for cell in cells)
        self._incomplete = frozenset(state.partial) if state else frozenset()
        self._measured = state.measured_trials() if state else []
        self._measures = index_measures(state.measures.values() if state else ())
        self.earlier = (
            {name: record.attempt for name, record in state.failures.items()} if state else {}
        )

    def load(self, key: str) -> TrialData:
        """See :class:`Work`."""
        network = self._networks[key]
        return self._load(
            network.subset, self.run.plan.load_size(network.subset, network.train_size)
        )

    def job(self, cell: TrialSpec) -> dict[str, Any]:
        """See :class:`Work`; an earlier result of this very network and these images is only added
        to.
        """
        known = (
            self.run.stored.trials.get(cell.trial_id) if cell.trial_id in self._incomplete else None
        )
        return {
            "spec": cell.model_dump_json(),
            "known": "" if known is None else known.text(),
            "keep_weights": self.run.plan.keeps_weights(cell),
        }

    def found(self, cell: TrialSpec, report: CellReport, attempt: int) -> FlatRun:
        """See :class:`Work`."""
        result = cast("TrialResult", report.outcome)
        about = self.sealed(cell, report, attempt) | {
            "shared_group_share": report.shared_group_share
        }
        known = None if report.trained else self.run.stored.trials.get(cell.trial_id)
        made_by = (
            report if known is None else known
        )  # where nothing was trained, its training's times stay
        training = ("gpu_share", "gpu_name", "started_at", "finished_at")
        about |= {name: getattr(made_by, name) for name in training}
        record = TrialRecord(**about, measured_at=None if known is None else report.finished_at)
        self.run.stored.save(record)
        for kind, note in (
            ("weights", result.weights_note),
            ("predictions", result.predictions_note),
        ):
            if note:
                self.run.monitor.note(f"{cell.trial_id}: its {kind} are not kept: {note}")
        if self.keep_url is not None:
            ResultStore(self.keep_url).remove_checkpoint(cell.trial_id)
        return flat_trial(record, self._measures)

    def seconds_allowed(self, cell: TrialSpec) -> float:
        """See :class:`Work`."""
        return time_limit(cell, self._measured, self.run.expectation)


class Trials(tune.Callback):  # type: ignore[misc]  # Ray ships without types
    """Runs the cells of a :class:`Work`, and again those whose failure allows it: loop and single
    writer.
    """

    def __init__(
        self, run: Run, work: Work, execution: Execution | None = None, clock: Clock = SYSTEM
    ) -> None:
        self._retries, self._attempts = Retries(), Counter[str]()
        self._run, self._work, self._queue, self._num_broken = run, work, work.queue, 0
        self._execution, self._clock = execution or TuneExecution(run, work), clock
        self._requests = Requests(run.resources, run.expectation, self._execution.node_memory_bytes)
        why, process = self._execution.why_nothing_starts, self._execution.process
        self._watch = TrialWatch(
            run.monitor.note, process, why, ends=run.cluster.local, clock=clock
        )
        self._places: dict[str, Place] = {}
        self._nodes: dict[str, str] = {}
        self._noted = {""}

    def __getstate__(
        self,
    ) -> dict[str, Any]:  # for Tune's saved state, of which nothing is ever read back
        return {}

    def run(self) -> None:
        """Run until nothing more may be tried; SweepError when nothing can be stored or run."""
        arrays = self._execution.arrays
        with at_forced_end(arrays.close), closing(arrays):
            while not self._queue.empty:
                try:
                    self._execution.fit(self, Feed(self._queue, self._taken, self._clock))
                except Exception as error:
                    # Whatever Tune raises costs the cells that ran an attempt, and no other cell
                    # anything.
                    self._fit_failed(error)
                if self._queue.error is not None:
                    raise self._queue.error
                for trial_id in sorted(self._queue.running):  # that Tune ended without a word
                    self._lost(trial_id, WITHOUT_A_WORD)

    def _taken(self, trial_id: str) -> dict[str, Any]:
        """Count the attempt of a cell that is given to Tune, and return what its worker is told."""
        self._attempts[trial_id] += 1
        cell = self._work.cells[trial_id]
        return {
            "cell": {
                "trial_id": trial_id,
                "data": self._array(trial_id),
                "own_network": cell.network.model.library == "own",
                "precision": cell.network.recipe.precision,
                **self._requests.of(cell).for_worker(),
                "code": provenance().code,
                **self._work.job(cell),
            }
        }

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Put the trial's array where it can find it, and open its run."""
        trial_id = trial_name(trial)
        cell = self._work.cells[trial_id]
        self._queue.begun.add(trial_id)
        with self._ends_on_error():
            self._execution.arrays.trial_started(trial_id, self._array(trial_id))
        if self._queue.error is not None:
            return
        tags = trial_tags(
            cell, self._work.domain_of(cell), CellStatus.RUNNING, self._attempt(trial_id)
        )
        self._run.tracker.start_trial(trial_id, tags)
        self._run.monitor.trial_started(trial_id)
        self._watch.started(trial_id, self._work.seconds_allowed(cell))
        self._tell(trial_id, "started")

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """End what hangs; say where the sweep stands; raise what ends it, or Tune would go on for
        hours.
        """
        raise_if_asked()
        with self._ends_on_error():
            self._watch.look(trials, self._queue.running)
        if self._queue.error is not None:
            raise self._queue.error
        self._hear()
        running = (trial.config["cell"]["request"] for trial in trials if trial.status == "RUNNING")
        self._execution.show(self._run.monitor, running)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Store the outcome first, then tell the tracker."""
        self._reported(trial_name(trial), CellReport.model_validate_json(result[REPORT]))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The cell failed, or its process died: a lost node, a crash, or the memory killer."""
        trial_id = trial_name(trial)
        self._hear(wait=True)
        place, hung = self._places.get(trial_id), self._watch.failure(trial_id)
        if hung and place and place.num_gpus:  # it may be the GPU that hangs
            told = f"{hung.message} (GPU {place.gpus} of node {place.node})"
            hung = hung.model_copy(update={"message": told})
        failure = hung or self._execution.failure_of(trial, place)
        if isinstance(failure, CellReport):
            self._reported(trial_id, failure)
        else:
            self._lost(trial_id, failure)
        empty(trial)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial that ended without a result is a failure too, never silently gone."""
        self._lost(trial_name(trial), WITHOUT_A_WORD)
        empty(trial)

    def _reported(self, trial_id: str, report: CellReport) -> None:
        """A worker has said how its cell ended."""
        if trial_id not in self._queue.running or self._queue.error is not None:
            return
        self._nodes[trial_id], failure = report.node, report.outcome
        with self._ends_on_error():
            if isinstance(failure, TrialFailure):
                self._failed(trial_id, failure, log_text=report.log)
                self._retries.check_nodes(report.node, failure, self._execution.fit_nodes(failure))
            else:
                self._finished(trial_id, report)

    def _lost(self, trial_id: str, failure: TrialFailure) -> None:
        """The process of a trial is gone, of what only counts where nobody knows yet how it
        ended.
        """
        if trial_id not in self._queue.running or self._queue.error is not None:
            return
        with self._ends_on_error():
            self._failed(trial_id, failure, died=True)
            if failure.kind == FailureKind.DEVICE_ERROR:
                node, offered = self._nodes.get(trial_id, ""), self._execution.fit_nodes(failure)
                self._retries.check_nodes(node, failure, offered)

    @contextmanager
    def _ends_on_error(self) -> Iterator[None]:
        """Let an error of the block end the sweep: no more cells are given out."""
        try:
            yield
        except SweepError as error:
            self._queue.error = error

    def _hear(self, *, wait: bool = False) -> None:
        """Take what running trials said: where they run, and of their epochs."""
        at = round(self._clock.time() * 1000)
        for said in self._execution.heard(wait=wait):
            self._watch.heard(said.trial_id)
            if isinstance(said, Place):
                self._places[said.trial_id], self._nodes[said.trial_id] = said, said.node
            elif isinstance(said, Note):
                self._run.monitor.note(f"{said.trial_id}: {said.text}")
            elif said.trial_id in self._queue.running:
                self._retries.computes(self._nodes.get(said.trial_id, ""))
                cell = self._work.cells[said.trial_id]
                self._run.monitor.trial_epoch(
                    said.trial_id, said.epoch, self._work.trained_on(cell)
                )
                if points := self._work.points(said.epoch, said.score, at):
                    self._run.tracker.log_points(said.trial_id, points)

    def _finished(self, trial_id: str, report: CellReport) -> None:
        """Store a result and tell everybody."""
        status = cast("TrialResult", report.outcome).status
        shown = self._work.found(self._work.cells[trial_id], report, self._attempt(trial_id))
        self._requests.finished(self._work.cells[trial_id])
        place = self._places.get(trial_id)
        self._retries.finished(report.node, place.gpus if place else "")
        self._num_broken = 0
        self._settled(trial_id)
        self._run.tracker.finish(shown)
        self._run.monitor.trial_finished(trial_id, status)
        self._tell(trial_id, "finished", str(status), report.log)
        if report.gpu_note not in self._noted:  # once of each GPU
            self._noted.add(report.gpu_note)
            self._run.monitor.note(report.gpu_note)

    def _failed(
        self, trial_id: str, failure: TrialFailure, *, died: bool = False, log_text: str = ""
    ) -> None:
        """Store a failure, do what follows from it, and tell everybody; ``died`` is of its
        process.
        """
        said = {name: without_secrets(getattr(failure, name)) for name in ("message", "traceback")}
        failure, cell = failure.model_copy(update=said), self._work.cells[trial_id]
        if hint := self._requests.failed(cell, failure):
            failure = failure.model_copy(update={"message": f"{hint} ({failure.message})"})
        record = FailureRecord(
            trial_id=trial_id, spec=cell, attempt=self._attempt(trial_id), failure=failure
        )
        self._run.stored.save(record)
        self._execution.count_failure(failure.kind)
        gpu = gpu_named(failure.message) if failure.kind in OF_GPU else ""
        if gpu and (place := self._places.get(trial_id)):
            self._execution.gpu_failed(place, self._retries.rest_s(place.node, place.gpus))
        decision = self._retries.failed(
            trial_id, failure.kind, died=died, gpu=gpu, hopeless=bool(hint)
        )
        if decision.pause_s is None:
            self._settled(trial_id)
            self._work.given_up(trial_id)
            ending = f"given up: {decision.reason}"
        else:
            self._waits_again(trial_id, decision.pause_s)
            ending = decision.reason
        self._run.tracker.fail_trial(record)
        self._run.monitor.trial_failed(trial_id, failure.kind, f"{failure.message} ({ending})")
        told = f"{failure.kind}: {failure.message} ({ending})"
        trace = f"\n{failure.traceback}" if failure.traceback else ""
        self._tell(trial_id, "failed", told, log_text + trace)

    def _fit_failed(self, error: Exception) -> None:
        """Tune itself gave up: what ran then has failed, and what waits is still to be run."""
        if self._queue.error is not None:
            return
        self._num_broken += 1
        log.warning("Tune ended early (%d times in a row)", self._num_broken, exc_info=error)
        running, failure = sorted(self._queue.running), classify_broken_fit(error)
        killed: set[str] = set()
        if failure.kind == FailureKind.OUT_OF_MEMORY:
            self._hear(wait=True)
            places = {i: self._places[i] for i in running if i in self._places}
            killed = self._execution.killed_for_memory(places)
        for trial_id in running:
            if trial_id in (killed or self._queue.begun):
                self._lost(trial_id, failure)
                continue
            # It has ended through no fault of its own, or waited for its worker: no attempt is
            # counted.
            reason = f"Tune ended: {failure.message} {', '.join(sorted(killed))}".strip()
            self._tell(trial_id, "stopped", reason)
            self._attempts[trial_id] -= 1
            self._waits_again(trial_id, 0.0)
            self._run.monitor.trial_stopped(trial_id)
        if not self._execution.is_up() or self._num_broken > MOST_BROKEN_FITS:
            hint = (
                "run the same command again: what is done is kept; the log below the root says more"
            )
            self._queue.error = SetupError(
                "Ray Tune must be able to run trials", failure.message, hint
            )

    def _settled(self, trial_id: str) -> None:
        """A cell has its result, or has failed for good."""
        self._queue.settle(trial_id)
        self._watch.ended(trial_id)
        self._execution.arrays.trial_ended(trial_id, self._array(trial_id), for_good=True)

    def _waits_again(self, trial_id: str, pause_s: float) -> None:
        self._queue.again(trial_id, self._clock.monotonic() + pause_s)
        self._watch.ended(trial_id)
        self._execution.arrays.trial_ended(trial_id, self._array(trial_id), for_good=False)

    def _tell(self, trial_id: str, what: EventKind, said: str = "", log_text: str = "") -> None:
        """Add to the story of a cell, and tell how far the sweep is."""
        if what in ("finished", "failed"):
            counts = self._run.monitor.counts()
            self._run.tracker.log_counts(counts["trials_done"] + counts["trials_failed"], counts)
        node = "" if what == "started" else self._nodes.get(trial_id, "")
        event = Event(
            at=self._clock.time(), what=what, attempt=self._attempt(trial_id), node=node, said=said
        )
        self._run.stored.store.log_event(trial_id, event, without_secrets(log_text))

    def _attempt(self, trial_id: str) -> int:
        return self._work.earlier.get(trial_id, 0) + self._attempts[trial_id]

    def _array(self, trial_id: str) -> str:
        return array_key(self._run.plan, self._work.cells[trial_id])
