"""Cells on their way to Ray Tune, which only executes: what waits, and all that is asked of Tune
and Ray.
"""

from __future__ import annotations

import contextlib
import gc
import shutil
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Protocol

import ray
from ray import tune
from ray.tune.execution.tune_controller import TuneController
from ray.tune.search import Searcher

from orchestrator.results.records import CellReport, FailureKind, TrialFailure
from orchestrator.running.actors import STORAGE_PREFIXES, Desk, Said
from orchestrator.running.failures import Place, failure_of, fit_nodes, keep_out, killed_for_memory
from orchestrator.running.preparation import own_code
from orchestrator.running.progress import Progress, Series
from orchestrator.running.requests import node_memory_bytes, why_nothing_starts
from orchestrator.running.worker import TrialTrainable, equipped
from search_spaces.errors import DataError, SweepError
from tasks.clock import SYSTEM, Clock
from tasks.prepared.subsets import TrialData

if TYPE_CHECKING:
    from orchestrator.running.trials import Run, Work

MOST_NAMED = 1_000
"""For each name of a task Ray keeps series of metrics, about 18 kB of the driver (Ray 2.60).

That is with its older exporter, which :mod:`orchestrator.machine.cluster` and the launch files ask
for: with the newer one and 400 names the driver grew by 0.15 MB a second at rest, against 0.009.
"""


@dataclass
class CellQueue:
    """Ids of cells that wait (``ready``), run, or are tried again ``later``: after ready ones, by a
    clock.

    Those that ``begun`` have their worker. ``error`` says why no more are given out, where
    something ended the sweep.
    """

    ready: deque[str]
    later: dict[str, float] = field(default_factory=dict)
    running: set[str] = field(default_factory=set)
    begun: set[str] = field(default_factory=set)
    error: SweepError | None = None

    @property
    def empty(self) -> bool:
        """Whether every cell is settled, or none is given out any more."""
        return self.error is not None or not (self.ready or self.later or self.running)

    def take(self, now: float) -> str | None:
        """Return the next cell, which runs from now on; None when none may be taken yet."""
        if self.error is not None:
            return None
        if self.ready:
            taken = self.ready.popleft()
        elif self.later and min(self.later.values()) <= now:
            taken = min(self.later, key=self.later.__getitem__)
            del self.later[taken]
        else:
            return None
        self.running.add(taken)
        self.begun.discard(taken)
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

    def __getstate__(
        self,
    ) -> dict[str, Any]:  # for Tune's saved state, of which nothing is ever read back
        return {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the next cell, ``FINISHED``, or None for "not yet"."""
        if self._queue.empty:
            return str(Searcher.FINISHED)
        cell = self._queue.take(self._clock.monotonic())
        return None if cell is None else self._config(cell)

    def on_trial_complete(self, *_: Any, **__: Any) -> None:
        """Do nothing: :class:`~orchestrator.running.trials.Trials` settles cells, and Tune restores
        none.
        """

    save = restore = on_trial_complete


def trial_name(trial: Any) -> str:
    """Return the id of the cell that a Tune trial runs."""
    return str(trial.config["cell"]["trial_id"])


@contextlib.contextmanager
def trial_tasks_named(named: set[str], most: int = MOST_NAMED) -> Iterator[None]:
    """Name the tasks of trials after them inside the block, of ``named``, which grows, and ``most``
    others.

    Tune has no public way to. Where the private ones are missing that this takes, tasks keep Tune's
    name.
    """
    schedule = getattr(TuneController, "_schedule_trial_task", None)
    if schedule is None:
        yield
        return

    def schedule_named(
        controller: Any, trial: Any, method_name: str, *rest: Any, **options: Any
    ) -> Any:
        live: dict[Any, Any] = {}
        actor, name = None, trial_name(trial)
        if method_name == "train" and (name in named or len(named) < most):
            named.add(name)
            with contextlib.suppress(AttributeError, KeyError, ValueError):
                live = controller._actor_manager._live_actors_to_ray_actors_resources
                actor = controller._trial_to_actor[trial]
                handle, resources = held = live[actor]
                live[actor] = (
                    SimpleNamespace(train=handle.train.options(name=f"trial {name}")),
                    resources,
                )
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
    """Leave nothing in a Tune trial that has ended but the id of its cell: results are in the
    store.

    Tune holds every trial until the last has ended, each with copies of what it was told, its whole
    report, statistics of every number in it, and an object of Ray's.
    """
    trial.config["cell"] = {"trial_id": trial_name(trial)}
    # Private: with a Ray that has them no more, the driver grows by 20 kB for each trial.
    with contextlib.suppress(AttributeError):
        trial.evaluated_params, trial.experiment_tag = {}, ""
        about = trial.run_metadata
        about.last_result, about.metric_analysis, about.metric_n_steps = {}, {}, {}
        # The answer to a question that Tune asks each trial's actor, which Ray keeps with the
        # question.
        trial._default_result_or_future = None


class Execution(Protocol):
    """All that a sweep asks of whoever executes its trials, and gives them ``arrays`` to train
    on.
    """

    arrays: Any

    def fit(self, trials: tune.Callback, feed: Feed) -> None:
        """Take trials from ``feed`` until it is at its end, and tell ``trials`` what becomes of
        each.
        """

    def heard(self, *, wait: bool = False) -> list[Said]:
        """Return what running trials said since the last call; with ``wait``, what they said until
        now.
        """

    def show(self, monitor: Progress, requests: Iterable[Mapping[str, float]]) -> None:
        """Show elsewhere how far the sweep is and what running trials asked for."""

    def count_failure(self, kind: FailureKind) -> None:
        """Count there an attempt that failed."""

    def failure_of(self, trial: Any, place: Place | None) -> CellReport | TrialFailure:
        """Return what a worker said of its failure, or of what it went that said nothing."""

    def process(self, trial: Any) -> Callable[[], object] | None:
        """Return how to kill a trial's process; None where it has none."""

    def fit_nodes(self, failure: TrialFailure) -> set[str]:
        """Return the addresses of nodes to which a trial that failed for its node could be
        given.
        """

    def gpu_failed(self, place: Place, seconds: float) -> None:
        """Give the GPU of a trial, which failed, to no other for so long."""

    def killed_for_memory(self, places: Mapping[str, Place]) -> set[str]:
        """Return whose process was killed for memory."""

    def why_nothing_starts(self) -> str:
        """Say what is missing."""

    def node_memory_bytes(self) -> float:
        """Return the memory of the largest node."""

    def is_up(self) -> bool:
        """Tell whether there is still a cluster."""


class TuneExecution:
    """Ray Tune, with workers that are used again; another ``trainable`` is for tests and
    benchmarks.
    """

    def __init__(
        self, run: Run, work: Work, trainable: type[TrialTrainable] = TrialTrainable
    ) -> None:
        self._run, self._work, self._trainable = run, work, trainable
        self._named: set[str] = set()
        self._resting: dict[Any, tuple[str, str]] = {}
        self._desk = run.desk or Desk(work.keep_url)
        series = Series(run.plan.sweep.name, run.cluster.num_gpus)
        shelf = self._desk.arrays, work.num_uses, self._desk.end
        self.arrays = ArrayCache(work.load, run.array_budget, *shelf)
        self.heard, self.show, self.count_failure = (
            self._desk.board.heard,
            series.tell,
            series.failed,
        )
        self.failure_of, self.fit_nodes, self.killed_for_memory = (
            failure_of,
            fit_nodes,
            killed_for_memory,
        )
        self.node_memory_bytes = node_memory_bytes

    def fit(self, trials: tune.Callback, feed: Feed) -> None:
        """Take trials from ``feed`` until it is at its end, and tell ``trials`` what becomes of
        each.
        """
        # Actors of a loop that broke keep their CPUs until nothing refers to them, its error
        # included.
        gc.collect()
        name = f"{self._run.plan.sweep.name}-{uuid.uuid4().hex[:8]}"
        trainable = equipped(
            self._trainable,
            perform=self._work.perform,
            arrays=self.arrays.references,
            keeper=self._desk.keeper,
            epochs=self._desk.board,
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
                # Tune saves class trainables at their end unless told otherwise, into a folder that
                # the nodes would have to share.
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
        """Return how to kill a trial's process; None where it has none."""
        # Private: with a Ray that has it no more, hung trials are waited for.
        actor = getattr(getattr(trial, "temporary_state", None), "ray_actor", None)
        return None if actor is None else partial(ray.kill, actor)

    def gpu_failed(self, place: Place, seconds: float) -> None:
        """Give the GPU of a trial, which failed, to no other for so long, where one is left that
        works.
        """
        over = (
            ray.wait(parts, num_returns=len(parts), timeout=0)[0]
            if (parts := [*self._resting])
            else []
        )
        self._resting = {part: gpu for part, gpu in self._resting.items() if part not in over}
        gpu, resting = (place.node, place.gpus), [*self._resting.values()]
        is_last = len({gpu, *resting}) >= self._run.cluster.num_gpus
        if not is_last and (resting.count(gpu) + 1) * place.num_gpus <= 1:
            self._resting[keep_out(place, seconds)] = gpu

    def why_nothing_starts(self) -> str:
        """Say what is missing."""
        return why_nothing_starts(self._run.resources)

    def is_up(self) -> bool:
        """Tell whether there is still a cluster."""
        return bool(ray.is_initialized())


def keep_out_of_runtime_environments() -> None:
    """Take credentials off the variables that Tune copies to its trials: Ray's agents would log
    them.
    """
    from ray.tune.execution import class_cache

    # Private: with a Ray that has it no more, nothing is copied, or `docs/security.md` has to say
    # so.
    copied: Any = getattr(class_cache, "ENV_VARS_TO_PROPAGATE", set())
    copied.difference_update({name for name in copied if name.startswith(STORAGE_PREFIXES)})


class ArrayCache:
    """Which arrays are in the object store, and who still needs them.

    The driver puts an array when the first trial that needs it starts, and drops it when none that
    is left needs it, or when others need its room: ``budget`` bytes, which running trials may
    exceed. Trials ask an actor for the reference, because theirs is not made yet when they are
    planned.
    """

    def __init__(
        self,
        load: Callable[[str], TrialData],
        budget: float,
        references: Any,
        num_uses: Counter[str] | None = None,
        end: Callable[[], object] = lambda: None,
    ) -> None:
        self._left = None if num_uses is None else Counter(num_uses)
        self._running: dict[str, str] = {}  # array by trial
        self._held: dict[str, tuple[Any, int]] = {}  # in the order of last use
        self._load, self._budget, self.references, self._end = load, budget, references, end

    @property
    def num_bytes(self) -> int:
        """Bytes of the arrays that are held now."""
        return sum(size for _, size in self._held.values())

    def trial_started(self, trial: str, key: str) -> None:
        """Make sure that the array of a trial that starts is there."""
        self._running[trial] = key
        if key in self._held:
            self._held[key] = self._held.pop(key)
            return
        try:
            data = self._load(key)
        except SweepError as error:
            # Or the trial would wait for ever. Of bad data its own cells die, each with this
            # message.
            ray.get(self.references.put.remote(key, [error]))
            if isinstance(error, DataError):
                return
            raise
        size = data.train_images.nbytes + data.test_images.nbytes
        self._make_room(size)
        reference = ray.put(data)
        self._held[key] = (reference, size)
        ray.get(self.references.put.remote(key, [reference]))

    def trial_ended(self, trial: str, key: str, *, for_good: bool) -> None:
        """Let the array go with the last trial that needs it; not ``for_good`` is one that is tried
        again.
        """
        self._running.pop(trial, None)
        if self._left is not None:
            self._left[key] -= for_good
            if self._left[key] <= 0:
                self._drop(key)

    def close(self) -> None:
        """Let everything go."""
        self._held.clear()
        self._end()

    def _make_room(self, size: int) -> None:
        in_use = set(self._running.values())
        for key in [key for key in self._held if key not in in_use]:
            if self.num_bytes + size <= self._budget:
                return
            self._drop(key)

    def _drop(self, key: str) -> None:
        if self._held.pop(key, None) is not None:
            self.references.drop.remote(key)
