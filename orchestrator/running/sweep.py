"""Running the cells that are left as Ray Tune trials.

The store decides what is left; Tune only executes. Every start makes a fresh experiment from an explicit
list of cells, so none of Tune's own state is ever read back.
"""

from __future__ import annotations

import logging
import math
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import ray
from ray import tune

from orchestrator.planning.cards import Card
from orchestrator.planning.order import longest_first_within
from orchestrator.planning.packing import flops
from orchestrator.planning.paths import RootPaths
from orchestrator.planning.plan import SweepPlan
from orchestrator.results import columns
from orchestrator.results.records import CellReport, FailureKind, FailureRecord, TrialFailure, TrialRecord
from orchestrator.results.rows import MeasureIndex, flat_trial
from orchestrator.results.state import StoredResults
from orchestrator.results.tracking.provenance import provenance
from orchestrator.results.tracking.tracker import Failure, Tracker
from orchestrator.running.cluster import Cluster, Resources
from orchestrator.running.failures import classify_lost_worker, may_retry
from orchestrator.running.progress import Monitor
from orchestrator.running.requests import Request, Requests
from orchestrator.running.shelf import Shelf
from orchestrator.running.trainable import REPORT, TrialTrainable
from search_spaces.errors import SweepError
from search_spaces.specs import SubsetSpec
from search_spaces.trials import TrialSpec
from tasks.prepared.subsets import TrialData
from tasks.trials.result import TrialResult

log = logging.getLogger(__name__)

OBJECT_STORE_SHARE = 0.6
"""How much of the smallest object store arrays may fill; the rest is for measures and Ray."""


@dataclass
class TrialSweep:
    """All that the trials of one ``isweep run`` share.

    Attributes:
        plan: The whole grid.
        cluster: Where it runs.
        resources: What each trial asks for; its GPU share is predicted per trial where ``card`` is given.
        paths: Where Tune's scratch goes.
        stored: Where results go.
        tracker: Who is told.
        monitor: Who shows it.
        measures: Stored measure records by subset id and train size.
        load: Reads the arrays of a subset, given how many training images.
        card: The cluster's kind of card, to predict each trial's share of it; None gives all the same share.
        trainable: What runs a cell; another one is for tests and benchmarks.
        attempts: Attempts at each cell in this run.
        failed: Latest failure of each cell that has no result.
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
    card: Card | None = None
    trainable: type[TrialTrainable] = TrialTrainable
    attempts: Counter[str] = field(default_factory=Counter)
    failed: dict[str, TrialFailure] = field(default_factory=dict)

    def run(self, cells: Iterable[TrialSpec], earlier_attempts: dict[str, int]) -> None:
        """Run ``cells``, then again those whose failure allows it, until nothing more may be tried.

        Raises:
            SweepError: when results cannot be stored; whatever finished before is kept.
        """
        pending = list(cells)
        while pending:
            self._run_cells(self._ordered(pending), earlier_attempts)
            pending = [
                cell
                for cell in pending
                if (failure := self.failed.get(cell.trial_id)) is not None
                and may_retry(failure.kind, self.attempts[cell.trial_id])
            ]
            for cell in pending:
                failure = self.failed.pop(cell.trial_id)
                self.requests.out_of_memory[cell.trial_id] += failure.kind == FailureKind.OUT_OF_MEMORY
                log.warning("retrying %s after %s: %s", cell.trial_id, failure.kind, failure.message)

    @cached_property
    def requests(self) -> Requests:
        """What each attempt gets."""
        return Requests(self.resources, self.card)

    @property
    def array_budget(self) -> float:
        """Bytes that arrays may take of the object store at once."""
        return self.cluster.object_store_bytes * OBJECT_STORE_SHARE

    def _ordered(self, cells: list[TrialSpec]) -> list[TrialSpec]:
        return longest_first_within(
            cells,
            seconds=_work,
            array=self._data_key,
            array_bytes=self._array_bytes,
            budget=self.array_budget,
        )

    def _array_bytes(self, cell: TrialSpec) -> int:
        network, prepared = cell.network, cell.network.subset.prepared
        num_images = self.plan.load_size(network.subset, network.train_size) + network.subset.test_size
        return num_images * prepared.channels * prepared.image_size**2

    def _data_key(self, cell: TrialSpec) -> str:
        subset = cell.network.subset
        return f"{subset.subset_id}@{self.plan.load_size(subset, cell.network.train_size)}"

    def _run_cells(self, cells: list[TrialSpec], earlier: dict[str, int]) -> None:
        by_id = {cell.trial_id: cell for cell in cells}
        for trial_id in by_id:
            self.attempts[trial_id] += 1
        first = {self._data_key(cell): cell.network for cell in cells}

        def load(key: str) -> TrialData:
            network = first[key]
            return self.load(network.subset, self.plan.load_size(network.subset, network.train_size))

        shelf = Shelf(map(self._data_key, cells), load, self.array_budget)
        callback = _Bookkeeping(self, by_id, earlier, shelf)
        try:
            self._tune(cells, callback, shelf)
        finally:
            shelf.close()
        if callback.fatal is not None:
            raise callback.fatal
        callback.account_for_the_rest()

    def _tune(self, cells: list[TrialSpec], callback: _Bookkeeping, shelf: Shelf) -> None:
        name = f"{self.plan.sweep.name}-{uuid.uuid4().hex[:8]}"
        requests = {cell.trial_id: self.requests.of(cell) for cell in cells}
        grid = [self._cell(cell, requests[cell.trial_id]) for cell in cells]
        trainable = tune.with_resources(
            tune.with_parameters(self.trainable, arrays=shelf.references),
            lambda config: requests[config["cell"]["trial_id"]].resources.as_ray(),
        )
        tuner = tune.Tuner(
            trainable,
            param_space={"cell": tune.grid_search(grid)},
            tune_config=tune.TuneConfig(
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

    def _cell(self, cell: TrialSpec, request: Request) -> dict[str, Any]:
        return {
            "trial_id": cell.trial_id,
            "spec": cell.model_dump_json(),
            "data": self._data_key(cell),
            "num_threads": request.resources.num_threads,
            "num_gpus": request.resources.num_gpus,
            "micro_batch": request.micro_batch,
        }


class _Bookkeeping(tune.Callback):  # type: ignore[misc]  # Ray ships without types
    """The single writer: turns Tune's events into stored results, tracked runs and progress."""

    def __init__(
        self, sweep: TrialSweep, cells: dict[str, TrialSpec], earlier: dict[str, int], shelf: Shelf
    ) -> None:
        self._shelf = shelf
        self.fatal: SweepError | None = None
        self._sweep = sweep
        self._cells = cells
        self._earlier = earlier
        self._open = set(cells)

    # Tune copies its callbacks into its own saved state; this one belongs to the driver alone.
    def __getstate__(self) -> dict[str, Any]:
        return {}

    def should_stop(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Stop every trial as soon as results cannot be stored any more."""
        return self.fatal is not None

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Put the trial's array where it can find it, and open its run."""
        try:
            self._shelf.trial_started(trial.config["cell"]["data"])
        except SweepError as error:
            self.fatal = error
            return
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

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Store the outcome first, then tell the tracker."""
        trial_id = trial.config["cell"]["trial_id"]
        if trial_id not in self._open or self.fatal is not None:
            return
        try:
            report = CellReport.model_validate_json(result[REPORT])
            if isinstance(report.outcome, TrialFailure):
                self._fail(trial_id, report.outcome)
            else:
                self._finish(trial_id, report, report.outcome)
        except SweepError as error:
            self.fatal = error

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The process died: a lost node, a crash, or the memory killer."""
        trial_id = trial.config["cell"]["trial_id"]
        if trial_id not in self._open or self.fatal is not None:
            return
        try:
            dead = [node["NodeID"] for node in ray.nodes() if not node["Alive"]]
            self._fail(
                trial_id,
                classify_lost_worker(trial.get_pickled_error(), trial.get_error() or "", dead),
            )
        except SweepError as error:
            self.fatal = error

    def account_for_the_rest(self) -> None:
        """Cells that Tune ended without a word are failures too, never silently gone."""
        for trial_id in sorted(self._open):
            message = "Tune ended without a result for this trial"
            self._fail(trial_id, TrialFailure(kind=FailureKind.WORKER_CRASH, message=message))

    def _close(self, trial_id: str) -> None:
        self._open.discard(trial_id)
        self._shelf.trial_ended(self._sweep._data_key(self._cells[trial_id]))

    def _attempt(self, trial_id: str) -> int:
        return self._earlier.get(trial_id, 0) + self._sweep.attempts[trial_id]

    def _finish(self, trial_id: str, report: CellReport, result: TrialResult) -> None:
        cell, plan = self._cells[trial_id], self._sweep.plan
        record = TrialRecord(
            trial_id=trial_id,
            sweep=plan.sweep.name,
            spec=cell,
            domain=plan.datasets[cell.network.subset.prepared.dataset].domain,
            data_fingerprint=report.data_fingerprint,
            shared_group_share=report.shared_group_share,
            gpu_share=report.gpu_share,
            attempt=self._attempt(trial_id),
            started_at=report.started_at,
            finished_at=report.finished_at,
            provenance=provenance(),
            result=result,
        )
        self._sweep.stored.save(record)
        self._close(trial_id)
        self._sweep.tracker.finish(flat_trial(record, self._sweep.measures))
        self._sweep.monitor.trial_finished(trial_id, result.status)

    def _fail(self, trial_id: str, failure: TrialFailure) -> None:
        self._close(trial_id)
        attempt = self._attempt(trial_id)
        self._sweep.failed[trial_id] = failure
        self._sweep.stored.save(
            FailureRecord(trial_id=trial_id, spec=self._cells[trial_id], attempt=attempt, failure=failure)
        )
        self._sweep.tracker.fail_trial(Failure(trial_id, failure.kind, failure.message, attempt))
        self._sweep.monitor.trial_failed(trial_id, failure.kind, failure.message)
        log.warning("trial %s failed (%s): %s", trial_id, failure.kind, failure.message)


def _work(cell: TrialSpec) -> float:
    try:
        return flops(cell)
    except SweepError as error:  # it will say so itself, and soonest when it goes first
        log.warning("%s: %s", cell.trial_id, error)
        return math.inf


def _trial_name(trial: Any) -> str:
    return str(trial.config["cell"]["trial_id"])
