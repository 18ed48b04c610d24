"""Trials by their ids on Ray's dashboard, where Tune would show ``IsweepTrial.train`` for each of them."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ray.tune.execution.tune_controller import TuneController

log = logging.getLogger(__name__)

TRAIN = "train"
"""The method of a trial's actor that Tune calls for its work."""
MOST_NAMED = 1_000
"""For each name of a task Ray keeps series of metrics, about 18 kB of the driver (Ray 2.60).

That is with the older of its two exporters, which :mod:`orchestrator.running.cluster` and the launch files
ask for. The newer one keeps memory of every series at every export: with 400 names the driver grew by 0.15 MB
a second at rest, against 0.009 (``benchmarks/named_tasks.py``).
"""


def trial_name(trial: Any) -> str:
    """Return the id of the cell that a Tune trial runs."""
    return str(trial.config["cell"]["trial_id"])


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
