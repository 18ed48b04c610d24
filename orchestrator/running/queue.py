"""Cells on their way to Ray Tune, which only executes: taken one by one, put back, and named for people."""

from __future__ import annotations

import contextlib
import gc
import logging
import shutil
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import ray
from ray import tune
from ray.tune.execution.tune_controller import TuneController
from ray.tune.search import Searcher

from orchestrator.results.records import CellReport, FailureKind, TrialFailure
from orchestrator.running.actors import (
    ArrayCache,
    EpochBoard,
    EpochListener,
    Keeper,
    Said,
    keep_out_of_runtime_environments,
)
from orchestrator.running.failures import Place, fit_nodes, killed_for_memory, read_failure, told_failure
from orchestrator.running.preparation import own_code
from orchestrator.running.progress import Progress, Series, offer_board
from orchestrator.running.requests import node_memory_bytes, why_nothing_starts
from orchestrator.running.worker import TrialTrainable, equipped
from search_spaces.errors import SweepError
from tasks.clock import SYSTEM, Clock

if TYPE_CHECKING:
    from orchestrator.running.trials import Run, Work

log = logging.getLogger(__name__)

TRAIN = "train"
"""The method of a trial's actor that Tune calls for its work."""
MOST_NAMED = 1_000
"""For each name of a task Ray keeps series of metrics, about 18 kB of the driver (Ray 2.60).

That is with the older of its two exporters, which :mod:`orchestrator.running.cluster` and the launch files
ask for. The newer one keeps memory of every series at every export: with 400 names the driver grew by 0.15 MB
a second at rest, against 0.009 (``benchmarks/named_tasks.py``).
"""


@dataclass
class CellQueue:
    """Ids of cells that wait, run, or are tried again later.

    Attributes:
        ready: Waiting, in the order in which they are taken.
        later: When each cell that failed may be taken again, by a monotonic clock; ready cells go first.
        running: Taken and not settled.
        error: Why no more are given out, where something ended the sweep.
    """

    ready: deque[str]
    later: dict[str, float] = field(default_factory=dict)
    running: set[str] = field(default_factory=set)
    error: SweepError | None = None

    @classmethod
    def of(cls, trial_ids: Iterable[str]) -> CellQueue:
        """Return a queue in which these wait."""
        return cls(deque(trial_ids))

    @property
    def empty(self) -> bool:
        """Whether every cell is settled, or none is given out any more."""
        return self.error is not None or not (self.ready or self.later or self.running)

    def take(self, now: float) -> str | None:
        """Return the next cell, which runs from now on; None when none may be taken yet."""
        if self.error is not None:
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

    def __init__(
        self, queue: CellQueue, config: Callable[[str], dict[str, Any]], clock: Clock = SYSTEM
    ) -> None:
        super().__init__()
        self._queue, self._config, self._clock = queue, config, clock

    def __getstate__(self) -> dict[str, Any]:  # for Tune's saved state, of which nothing is ever read back
        return {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the next cell, ``FINISHED``, or None for "not yet"."""
        if self._queue.empty:
            return str(Searcher.FINISHED)
        cell = self._queue.take(self._clock.monotonic())
        return None if cell is None else self._config(cell)

    def on_trial_complete(self, *_: Any, **__: Any) -> None:
        """Do nothing: :class:`~orchestrator.running.trials.Trials` settles cells, and Tune restores none."""

    save = restore = on_trial_complete


def trial_name(trial: Any) -> str:
    """Return the id of the cell that a Tune trial runs."""
    return str(trial.config["cell"]["trial_id"])


class _Named:
    """An actor whose next call has a name."""

    def __init__(self, actor: Any, name: str) -> None:
        self._actor, self._name = actor, name

    def __getattr__(self, method: str) -> Any:
        return getattr(self._actor, method).options(name=self._name)


@contextlib.contextmanager
def trial_tasks_named(named: set[str], most: int = MOST_NAMED) -> Iterator[None]:
    """Name the tasks of trials after them inside the block.

    Tune has no public way to. Where the private ones are missing that this takes, tasks keep Tune's name.

    Args:
        named: Ids of the trials whose tasks have a name; added to.
        most: How many may have one.
    """
    schedule = getattr(TuneController, "_schedule_trial_task", None)
    if schedule is None:
        log.info("this Ray has no place where tasks could be named: they keep Tune's name")
        yield
        return

    def schedule_named(controller: Any, trial: Any, method_name: str, *rest: Any, **options: Any) -> Any:
        live: dict[Any, Any] = {}
        actor = None
        if method_name == TRAIN and (trial_name(trial) in named or len(named) < most):
            named.add(trial_name(trial))
            with contextlib.suppress(AttributeError, KeyError, ValueError):
                live = controller._actor_manager._live_actors_to_ray_actors_resources
                actor = controller._trial_to_actor[trial]
                handle, resources = held = live[actor]
                live[actor] = (_Named(handle, f"trial {trial_name(trial)}"), resources)
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


def empty(trial: Any) -> None:
    """Leave nothing in a Tune trial that has ended but the id of its cell.

    Tune holds every trial until the last has ended, each with copies of what it was told, its whole report,
    statistics of every number in it, and an object of Ray's. Nothing of that is read again: results are in
    the store.
    """
    trial.config["cell"] = {"trial_id": trial_name(trial)}
    # Private: with a Ray that has them no more, the driver grows by 20 kB for each trial.
    with contextlib.suppress(AttributeError):
        trial.evaluated_params, trial.experiment_tag = {}, ""
        about = trial.run_metadata
        about.last_result, about.metric_analysis, about.metric_n_steps = {}, {}, {}
        # The answer to a question that Tune asks each trial's actor, which Ray keeps with the question.
        trial._default_result_or_future = None


class Execution(Protocol):
    """All that a sweep asks of whoever executes its trials.

    Attributes:
        arrays: What trials are given to train on.
    """

    arrays: Any

    def fit(self, trials: tune.Callback, feed: Feed) -> None:
        """Take trials from ``feed`` until it is at its end, and tell ``trials`` what becomes of each."""

    def heard(self, *, wait: bool = False) -> list[Said]:
        """Return what running trials said since the last call; with ``wait``, what they said until now."""

    def show(self, monitor: Progress, requests: Iterable[Mapping[str, float]]) -> None:
        """Show elsewhere how far the sweep is and what running trials asked for."""

    def count_failure(self, kind: FailureKind) -> None:
        """Count there an attempt that failed."""

    def told_failure(self, trial: Any) -> CellReport | None:
        """Return what a worker said of its failure; None when it went without a word."""

    def lost_failure(self, trial: Any, place: Place | None) -> TrialFailure:
        """Return of what a worker went that said nothing."""

    def process(self, trial: Any) -> Callable[[], object] | None:
        """Return how to kill a trial's process; None where it has none."""

    def fit_nodes(self, failure: TrialFailure) -> set[str]:
        """Return the addresses of nodes to which a trial that failed for its node could be given."""

    def killed_for_memory(self, places: Mapping[str, Place]) -> set[str]:
        """Return whose process was killed for memory."""

    def why_nothing_starts(self) -> str:
        """Say what is missing."""

    def node_memory_bytes(self) -> float:
        """Return the memory of the largest node."""

    def is_up(self) -> bool:
        """Tell whether there is still a cluster."""


class TuneExecution:
    """Ray Tune, with workers that are used again; every start makes a fresh experiment.

    Args:
        run: What everything in the run shares.
        work: What is run.
        trainable: What runs a cell; another one is for tests and benchmarks.
    """

    def __init__(self, run: Run, work: Work, trainable: type[TrialTrainable] = TrialTrainable) -> None:
        self._run, self._work, self._trainable = run, work, trainable
        self._named: set[str] = set()
        self._board = EpochBoard()
        self._keeper = None if work.keep_url is None else Keeper(work.keep_url, self._board)
        series = Series(run.plan.sweep.name, run.cluster.num_gpus)
        self.arrays = ArrayCache(work.load, run.array_budget, work.num_uses)
        self.heard, self.show, self.count_failure = (
            EpochListener(self._board).heard,
            series.tell,
            series.failed,
        )
        self.told_failure, self.lost_failure = told_failure, read_failure
        self.fit_nodes, self.killed_for_memory = fit_nodes, killed_for_memory
        self.node_memory_bytes = node_memory_bytes
        offer_board(run.cluster.session)

    def fit(self, trials: tune.Callback, feed: Feed) -> None:
        """See :class:`Execution`."""
        # Actors of a loop that broke keep their CPUs until nothing refers to them, its error included.
        gc.collect()
        name = f"{self._run.plan.sweep.name}-{uuid.uuid4().hex[:8]}"
        trainable = equipped(
            self._trainable,
            perform=self._work.perform,
            arrays=self.arrays.references,
            keeper=self._keeper,
            epochs=self._board,
            code=own_code(self._work.cells.values()),
            pretrained=dict(self._work.pretrained),
        )
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=feed,
                num_samples=-1,
                reuse_actors=True,
                trial_name_creator=trial_name,
                trial_dirname_creator=trial_name,
            ),
            run_config=tune.RunConfig(
                name=name,
                storage_path=str(self._run.paths.tune),
                # Tune saves class trainables at their end unless told otherwise, into a folder that the nodes
                # would have to share.
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                callbacks=[trials],
                verbose=0,
            ),
        )
        keep_out_of_runtime_environments()
        # A private cluster without a dashboard shows names to nobody.
        shown = bool(self._run.cluster.dashboard) or not self._run.cluster.local
        try:
            with trial_tasks_named(self._named, MOST_NAMED if shown else 0):
                tuner.fit()
        finally:
            shutil.rmtree(self._run.paths.tune / name, ignore_errors=True)

    def process(self, trial: Any) -> Callable[[], object] | None:
        """See :class:`Execution`."""
        # Private: with a Ray that has it no more, hung trials are waited for.
        actor = getattr(getattr(trial, "temporary_state", None), "ray_actor", None)
        return None if actor is None else partial(ray.kill, actor)

    def why_nothing_starts(self) -> str:
        """See :class:`Execution`."""
        return why_nothing_starts(self._run.resources)

    def is_up(self) -> bool:
        """See :class:`Execution`."""
        return bool(ray.is_initialized())
