"""Cells on their way to Tune: taken one by one, put back when they failed, and named for people."""

from __future__ import annotations

import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ray.tune.execution.tune_controller import TuneController
from ray.tune.search import Searcher

from search_spaces.errors import SweepError

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

    def __init__(self, queue: CellQueue, config: Callable[[str], dict[str, Any]]) -> None:
        super().__init__()
        self._queue, self._config = queue, config

    def __getstate__(self) -> dict[str, Any]:  # for Tune's saved state, of which nothing is ever read back
        return {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the next cell, ``FINISHED``, or None for "not yet"."""
        if self._queue.empty:
            return str(Searcher.FINISHED)
        cell = self._queue.take(time.monotonic())
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
