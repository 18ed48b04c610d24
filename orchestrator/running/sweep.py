"""Running the cells that are left as Ray Tune trials.

The store decides what is left; Tune only executes. Every start makes a fresh experiment from an explicit
list of cells, so none of Tune's own state is ever read back.
"""

from __future__ import annotations

import gc
import logging
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ray import tune

from orchestrator.planning.measured import Expectation
from orchestrator.planning.order import array_key, expected_seconds, order_trials
from orchestrator.planning.paths import RootPaths
from orchestrator.planning.plan import SweepPlan
from orchestrator.results.rows import MeasureIndex
from orchestrator.results.state import StoredResults
from orchestrator.results.tracking.tracker import Tracker
from orchestrator.running.bookkeeping import Bookkeeping, trial_name
from orchestrator.running.cluster import Cluster, Resources
from orchestrator.running.credentials import keep_out_of_runtime_environments
from orchestrator.running.epochs import EpochBoard
from orchestrator.running.feed import CellQueue, Feed
from orchestrator.running.keeper import Keeper
from orchestrator.running.networks import own_code
from orchestrator.running.progress import Monitor
from orchestrator.running.requests import Requests, node_memory_bytes
from orchestrator.running.retries import Retries
from orchestrator.running.series import offer_board
from orchestrator.running.shelf import Shelf
from orchestrator.running.task_names import TaskNames, trial_tasks_named
from orchestrator.running.trainable import TrialTrainable, equipped
from search_spaces.specs import SubsetSpec
from search_spaces.trials import TrialSpec
from tasks.prepared.subsets import TrialData

log = logging.getLogger(__name__)

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
