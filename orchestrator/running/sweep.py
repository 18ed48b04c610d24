"""Running the cells that are left as Ray Tune trials.

The store decides what is left; Tune only executes. Every start makes a fresh experiment from an explicit
list of cells, so none of Tune's own state is ever read back.
"""

from __future__ import annotations

import logging
import shutil
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import ray
from ray import tune

from orchestrator.planning.paths import RootPaths
from orchestrator.planning.plan import SweepPlan
from orchestrator.results import columns
from orchestrator.results.records import CellReport, FailureKind, FailureRecord, TrialFailure
from orchestrator.results.rows import MeasureIndex, flat_trial
from orchestrator.results.state import StoredResults
from orchestrator.results.tracking.tracker import Failure, Tracker
from orchestrator.results.weights import WeightStore
from orchestrator.running.cluster import Cluster, Resources
from orchestrator.running.failures import classify_broken_fit
from orchestrator.running.feed import CellQueue, Feed
from orchestrator.running.hangs import HangWatch
from orchestrator.running.keeper import Keeper
from orchestrator.running.lost_workers import read_failure
from orchestrator.running.networks import own_code
from orchestrator.running.outcomes import trial_record
from orchestrator.running.progress import Monitor
from orchestrator.running.retries import Retries
from orchestrator.running.trainable import REPORT, TrialTrainable
from search_spaces.errors import SetupError, SweepError
from search_spaces.specs import SubsetSpec
from search_spaces.trials import TrialSpec
from tasks.prepared.subsets import TrialData
from tasks.trials.result import TrialResult

log = logging.getLogger(__name__)

OBJECT_STORE_SHARE = 0.6
"""How much of the smallest object store the arrays of one wave may fill; the rest is for measures and Ray."""

MOST_BROKEN_FITS = 5
WITHOUT_A_WORD = TrialFailure(
    kind=FailureKind.WORKER_CRASH, message="Tune ended without a result for this trial"
)


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
        trainable: What runs a cell; another one is for tests and benchmarks.
        measured_only: Ids of cells whose network is trained: only measurements are missing.
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
    trainable: type[TrialTrainable] = TrialTrainable
    measured_only: frozenset[str] = frozenset()
    time_limit: Callable[[TrialSpec], float] | None = None
    attempts: Counter[str] = field(default_factory=Counter)
    retries: Retries = field(default_factory=Retries)

    def run(self, cells: Iterable[TrialSpec], earlier_attempts: dict[str, int]) -> None:
        """Run ``cells``, and again those whose failure allows it, until nothing more may be tried.

        Raises:
            SweepError: when results cannot be stored; whatever finished before is kept.
        """
        for wave in self._waves(list(cells)):
            self._run_wave(wave, earlier_attempts)

    def _waves(self, cells: list[TrialSpec]) -> Iterator[tuple[list[TrialSpec], dict[str, TrialData]]]:
        """Group cells by the arrays they share, so that the arrays of each wave fit the object stores."""
        groups: dict[str, list[TrialSpec]] = {}
        for cell in cells:
            groups.setdefault(self._data_key(cell), []).append(cell)
        budget = self.cluster.object_store_bytes * OBJECT_STORE_SHARE
        wave: list[TrialSpec] = []
        arrays: dict[str, TrialData] = {}
        used = 0
        for key, group in groups.items():
            first = group[0]
            subset = first.network.subset
            data = self.load(subset, self.plan.load_size(subset, first.network.train_size))
            size = data.train_images.nbytes + data.test_images.nbytes
            if wave and used + size > budget:
                yield wave, arrays
                wave, arrays, used = [], {}, 0
            # Long trials first within a subset, so that the last ones to finish are short.
            wave += sorted(group, key=lambda cell: -cell.network.train_size)
            arrays[key] = data
            used += size
        if wave:
            yield wave, arrays

    def _data_key(self, cell: TrialSpec) -> str:
        subset = cell.network.subset
        return f"{subset.subset_id}@{self.plan.load_size(subset, cell.network.train_size)}"

    def _run_wave(self, wave: tuple[list[TrialSpec], dict[str, TrialData]], earlier: dict[str, int]) -> None:
        cells, arrays = wave
        references = {key: ray.put(data) for key, data in arrays.items()}
        by_id = {cell.trial_id: cell for cell in cells}
        queue = CellQueue.of(by_id)
        callback = _Bookkeeping(self, by_id, queue, earlier)
        while not queue.empty:
            try:
                self._fit(by_id, references, queue, callback)
            except Exception as error:
                # Whatever Tune raises costs the cells that ran an attempt, and no other cell anything.
                callback.fit_failed(error)
            if callback.fatal is not None:
                raise callback.fatal
            callback.account_for_the_rest()

    def _fit(
        self,
        cells: dict[str, TrialSpec],
        references: dict[str, Any],
        queue: CellQueue,
        callback: _Bookkeeping,
    ) -> None:
        name = f"{self.plan.sweep.name}-{uuid.uuid4().hex[:8]}"
        trainable = tune.with_resources(
            tune.with_parameters(
                self.trainable, arrays=references, keeper=self._keeper, code=own_code(cells.values())
            ),
            self.resources.as_ray(),
        )
        # What Ray's dashboard calls the actors; it would be ResourceTrainable.
        trainable.__name__ = trainable.__qualname__ = "IsweepTrial"

        def taken(trial_id: str) -> dict[str, Any]:
            self.attempts[trial_id] += 1
            return {"cell": self._cell(cells[trial_id])}

        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=Feed(queue, taken),
                num_samples=-1,
                reuse_actors=True,
                trial_name_creator=_trial_name,
                trial_dirname_creator=_trial_name,
            ),
            run_config=tune.RunConfig(
                name=name,
                storage_path=str(self.paths.tune),
                # Tune saves class trainables at their end unless told otherwise, into a folder that the
                # nodes would have to share.
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                callbacks=[callback],
                stop=callback.should_stop,
                verbose=0,
            ),
        )
        try:
            tuner.fit()
        finally:
            shutil.rmtree(self.paths.tune / name, ignore_errors=True)

    @cached_property
    def _keeper(self) -> Keeper | None:
        return None if self.weights_url is None else Keeper(self.weights_url)

    def _cell(self, cell: TrialSpec) -> dict[str, Any]:
        known = self.stored.trials.get(cell.trial_id)
        return {
            # An earlier result of this very network is only added to.
            "known": known.text() if known is not None and cell.trial_id in self.measured_only else "",
            "keep_weights": self.plan.keeps_weights(cell),
            "trial_id": cell.trial_id,
            "spec": cell.model_dump_json(),
            "data": self._data_key(cell),
            "num_threads": self.resources.num_threads,
            "num_gpus": self.resources.num_gpus,
        }


class _Bookkeeping(tune.Callback):  # type: ignore[misc]  # Ray ships without types
    """The single writer: turns Tune's events into stored results, tracked runs and progress."""

    def __init__(
        self, sweep: TrialSweep, cells: dict[str, TrialSpec], queue: CellQueue, earlier: dict[str, int]
    ) -> None:
        self.fatal: SweepError | None = None
        self._sweep = sweep
        self._cells = cells
        self._queue = queue
        self._earlier = earlier
        self._broken = 0
        self._hangs = HangWatch(sweep.time_limit)

    # Tune copies its callbacks into its own saved state; this one belongs to the driver alone.
    def __getstate__(self) -> dict[str, Any]:
        return {}

    def should_stop(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Stop every trial as soon as results cannot be stored any more."""
        return self.fatal is not None

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Open the trial's run."""
        cell = self._cells[trial.config["cell"]["trial_id"]]
        network, dataset = cell.network, cell.network.subset.prepared.dataset
        tags = {
            columns.TRIAL_ID: cell.trial_id,
            columns.MODEL: network.model.name,
            columns.DATASET: dataset,
            columns.DOMAIN: self._sweep.plan.datasets[dataset].domain or "",
            columns.TRAIN_SIZE: str(network.train_size),
            columns.SEED: str(network.seed),
            columns.ATTEMPT: str(self._attempt(cell.trial_id)),
            columns.STATUS: "running",
        }
        self._sweep.tracker.start_trial(cell.trial_id, tags)
        self._sweep.monitor.trial_started(cell.trial_id)
        self._hangs.started(cell)

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """End the process of every trial that has been silent past its limit."""
        self._hangs.end_hung(trial for trial in trials if _trial_name(trial) in self._queue.running)

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
                self._fail(trial_id, report.outcome)
            else:
                self._finish(trial_id, report, report.outcome)
        except SweepError as error:
            self._end(error)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The process died: a lost node, a crash, or the memory killer."""
        trial_id = trial.config["cell"]["trial_id"]
        self._lost(trial_id, lambda: self._hangs.failure(trial_id) or read_failure(trial))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial that ended without a result is a failure too, never silently gone."""
        self._lost(trial.config["cell"]["trial_id"], lambda: WITHOUT_A_WORD)

    def fit_failed(self, error: Exception) -> None:
        """Tune itself gave up: what ran then has failed, and what waits is still to be run."""
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
        for trial_id in running:
            self._lost(trial_id, lambda: classify_broken_fit(error))

    def account_for_the_rest(self) -> None:
        """Cells that Tune ended without a word are failures too, never silently gone."""
        for trial_id in sorted(self._queue.running):
            self._lost(trial_id, lambda: WITHOUT_A_WORD)

    def _lost(self, trial_id: str, failure: Callable[[], TrialFailure]) -> None:
        if trial_id not in self._queue.running or self.fatal is not None:
            return
        try:
            self._fail(trial_id, failure())
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
        domain = plan.datasets[cell.network.subset.prepared.dataset].domain
        known, attempt = self._sweep.stored.trials.get(trial_id), self._attempt(trial_id)
        record = trial_record(cell, report, result, known, plan.sweep.name, domain, attempt)
        self._sweep.stored.save(record)
        if self._sweep.weights_url is not None:
            WeightStore(self._sweep.weights_url).forget_checkpoint(trial_id)
        self._queue.settle(trial_id)
        self._sweep.retries.finished(trial_id)
        self._broken = 0
        self._sweep.tracker.finish(flat_trial(record, self._sweep.measures))
        self._sweep.monitor.trial_finished(trial_id, result.status)

    def _fail(self, trial_id: str, failure: TrialFailure) -> None:
        attempt = self._attempt(trial_id)
        self._sweep.stored.save(
            FailureRecord(trial_id=trial_id, spec=self._cells[trial_id], attempt=attempt, failure=failure)
        )
        decision = self._sweep.retries.failed(trial_id, failure.kind)
        if decision.pause_s is None:
            self._queue.settle(trial_id)
            ending = f"given up: {decision.reason}"
        else:
            self._queue.again(trial_id, time.monotonic() + decision.pause_s)
            ending = decision.reason
        self._sweep.tracker.fail_trial(Failure(trial_id, failure.kind, failure.message, attempt))
        self._sweep.monitor.trial_failed(trial_id, failure.kind, f"{failure.message} ({ending})")
        log.warning("trial %s failed (%s): %s (%s)", trial_id, failure.kind, failure.message, ending)


def _trial_name(trial: Any) -> str:
    return str(trial.config["cell"]["trial_id"])
